"""The file format of a synthetic set: safetensors, no pickle, with checksums over everything that an evaluation reads.

``sha256`` covers the bytes of the images and labels, as in files of version 0.1.0, which can still be read.
``metadata_sha256`` covers all other metadata, ``sha256`` included, as JSON with sorted keys: mean and standard
deviation determine how test images are normalised, so one changed digit would change the accuracy.
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
from iidlib.synthetic.other_formats import kind_of_tensors

__all__ = ["FORMAT", "pack", "spec_from", "unpack"]

FORMAT = "iidlib.synthetic/1"
"""Identifier of the format, written to the file."""

FIRST_KEYS = frozenset(
    "augmentation channels classes dataset factor format image_size ipc mean provenance sha256 std stored".split()
)
"""Metadata keys of version 0.1.0; a file with any other key must have a checksum of the metadata."""


def pack(images: Tensor, labels: Tensor, metadata: Mapping[str, str]) -> bytes:
    """Bytes of the file; equal sets give equal bytes.

    Args:
        images: float32, or uint8.
        labels: int64.
        metadata: everything but the format and the checksums.
    """
    tensors = {"images": images.cpu().contiguous(), "labels": labels.cpu().contiguous()}
    known = {"format": FORMAT, **metadata, "sha256": _digest(**tensors)}
    known["metadata_sha256"] = _metadata_digest(known)
    return _in_order(to_bytes(tensors, known))


def unpack(path: Path, device: torch.device | str) -> tuple[Tensor, Tensor, dict[str, str], bool]:
    """Images, labels and metadata of a verified file, and whether its checksums cover the metadata.

    Raises:
        InputError: for a safetensors file that holds something else.
        SafetensorError: for a file of another format, or a truncated one.
        ValueError: for content that differs from what was written; KeyError if something is missing.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise InputError(
                f"{path} is not a synthetic set of this library, but {kind_of_tensors(file.keys(), metadata)} (its "
                f"metadata do not contain {FORMAT!r})"
            )
        # copies: on a CPU these are pages of the file, which change or vanish when it is written to
        images, labels = file.get_tensor("images").clone(), file.get_tensor("labels").clone()  # [C*ipc, ...], [C*ipc]
    expected = torch.uint8 if metadata.get("stored") == "uint8" else torch.float32
    if images.dtype != expected or labels.dtype != torch.int64 or not len(images):
        raise ValueError(f"images {images.dtype} {tuple(images.shape)}, labels {labels.dtype}")
    digest = _digest(images, labels)
    if "sha256" not in metadata:  # all versions wrote it
        raise ValueError("the checksum of its images and labels is missing")
    if metadata["sha256"] != digest:
        raise ValueError("its images or labels have changed since they were written")
    sealed = "metadata_sha256" in metadata
    if sealed and metadata["metadata_sha256"] != _metadata_digest(metadata):
        raise ValueError("its metadata (classes, mean, std, ...) have changed since they were written")
    if not sealed and (unknown := sorted(set(metadata) - FIRST_KEYS)):
        raise ValueError(f"its metadata have no checksum, but contain {unknown[0]!r}")
    return images, labels, metadata, sealed


def _ascii() -> bool:
    """Whether file names are ASCII here, with every other character standing for a byte."""
    return sys.getfilesystemencoding() in ("ascii", "us-ascii")


def spec_from(metadata: Mapping[str, str]) -> DatasetSpec:
    """Specification of the dataset in the metadata; `check_spec` validates its numbers.

    Raises:
        ValueError: for malformed values; KeyError if something is missing.
    """
    classes = json.loads(metadata["classes"])
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes {metadata['classes']}")
    return DatasetSpec(
        # as Python decodes a folder's name in this locale, so that it can be found
        name=os.fsdecode(metadata["dataset"].encode()) if _ascii() else metadata["dataset"],
        classes=tuple(classes),
        image_size=int(metadata["image_size"]),
        channels=int(metadata["channels"]),
        mean=_numbers(metadata["mean"]),
        std=_numbers(metadata["std"]),
        augmentation=metadata["augmentation"],
    )


def _numbers(text: str) -> tuple[float, ...]:
    numbers = json.loads(text)
    if not isinstance(numbers, list):
        raise ValueError(f"{text} is not a list of numbers")
    return tuple(float(number) for number in numbers)


def _in_order(content: bytes) -> bytes:
    """Sorts the header of a safetensors file; the format's own writer shuffles the metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors must start at a multiple of eight
    return len(header).to_bytes(8, "little") + header + content[end:]


def _digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 over the bytes of both, which reveals a flipped bit."""
    digest = hashlib.sha256(images.cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()


def _metadata_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata without its own key."""
    covered = {key: value for key, value in metadata.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
