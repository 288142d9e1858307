"""The file of a synthetic set: safetensors, no pickle, with checksums over all that an evaluation reads.

``sha256`` is over the bytes of the images and labels, as in files of version 0.1.0, which are read as well.
``metadata_sha256`` is over all other metadata, ``sha256`` included, as JSON with sorted keys: mean and deviation decide
how test images are normalised, so that one changed digit would change the accuracy.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from iidlib.data import DatasetSpec
from iidlib.errors import InputError
from iidlib.synthetic.foreign import kind_of_tensors

__all__ = ["FORMAT", "pack", "spec_from", "unpack"]

FORMAT = "iidlib.synthetic/1"
"""Names the format in the file."""

FIRST_KEYS = frozenset(
    "augmentation channels classes dataset factor format image_size ipc mean provenance sha256 std stored".split()
)
"""What the metadata of version 0.1.0 hold; with any other name the checksum of the metadata must be there too."""


def pack(images: Tensor, labels: Tensor, metadata: Mapping[str, str]) -> bytes:
    """The content of the file; equal for equal sets, byte for byte.

    Args:
        images: float32, or uint8.
        labels: int64.
        metadata: all but the format and the checksums.
    """
    tensors = {"images": images.cpu().contiguous(), "labels": labels.cpu().contiguous()}
    known = {"format": FORMAT, **metadata, "sha256": _digest(**tensors)}
    known["metadata_sha256"] = _metadata_digest(known)
    return _in_order(to_bytes(tensors, known))


def unpack(path: Path, device: torch.device | str) -> tuple[Tensor, Tensor, dict[str, str], bool]:
    """Images, labels and metadata of a file, checked; and whether the checksums cover the metadata.

    Raises:
        InputError: for a safetensors file that holds something else.
        SafetensorError: for a file of another format, or one that is cut.
        ValueError: for content that is not what was written; KeyError where something lacks.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise InputError(
                f"{path} is not a synthetic set of this library, but {kind_of_tensors(file.keys(), metadata)} (its "
                f"metadata lack {FORMAT!r})"
            )
        # copies: on a CPU these are the file's own pages, which change, or are gone, when somebody writes to it
        images, labels = file.get_tensor("images").clone(), file.get_tensor("labels").clone()
    expected = torch.uint8 if metadata.get("stored") == "uint8" else torch.float32
    if images.dtype != expected or labels.dtype != torch.int64 or not len(images):
        raise ValueError(f"images {images.dtype} {tuple(images.shape)}, labels {labels.dtype}")
    digest = _digest(images, labels)
    if "sha256" not in metadata:  # which all versions wrote
        raise ValueError("the checksum of its images and labels is missing")
    if metadata["sha256"] != digest:
        raise ValueError("its images or labels are not those that were written")
    sealed = "metadata_sha256" in metadata
    if sealed and metadata["metadata_sha256"] != _metadata_digest(metadata):
        raise ValueError("its metadata, such as classes, mean or std, are not those that were written")
    if not sealed and (unknown := sorted(set(metadata) - FIRST_KEYS)):
        raise ValueError(f"its metadata have no checksum, but {unknown[0]!r}")
    return images, labels, metadata, sealed


def _ascii() -> bool:
    """Whether names of files are ASCII here, and all else in them stands for bytes."""
    return sys.getfilesystemencoding() in ("ascii", "us-ascii")


def spec_from(metadata: Mapping[str, str]) -> DatasetSpec:
    """The dataset that the metadata describe; whether its numbers make sense is for `check_spec` to say.

    Raises:
        ValueError: for what cannot be read; KeyError where something lacks.
    """
    classes = json.loads(metadata["classes"])
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes {metadata['classes']}")
    return DatasetSpec(
        # as Python gives a folder's name under this locale, so that it is found
        name=os.fsdecode(metadata["dataset"].encode()) if _ascii() else metadata["dataset"],
        classes=tuple(classes),
        image_size=int(metadata["image_size"]),
        channels=int(metadata["channels"]),
        mean=_numbers(metadata["mean"]),
        std=_numbers(metadata["std"]),
        augmentation=metadata["augmentation"],
    )


def _numbers(text: str) -> tuple[float, ...]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(f"{text} is not a list of numbers")
    return tuple(float(number) for number in found)


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header in order; the format's own writer shuffles the metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header + content[end:]


def _digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the bytes of both, by which a flipped bit is found."""
    digest = hashlib.sha256(images.cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()


def _metadata_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata without the key that holds it."""
    covered = {key: value for key, value in metadata.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
