"""The synthetic set: the images being learned, their labels and their provenance; saved without pickle."""

import dataclasses
import hashlib
import io
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.utils import make_grid

from iidlib.data import DatasetSpec, RealSet, denormalize
from iidlib.errors import InputError
from iidlib.files import atomic_write, readable, user_path
from iidlib.notes import log_once
from iidlib.synthetic.mosaics import expand, mosaics
from iidlib.synthetic.other_formats import kind_of_folder, refusal
from iidlib.synthetic.storage import pack, spec_from, unpack
from iidlib.synthetic.validation import as_factor, as_images, as_labels, check_real, check_spec, class_order

__all__ = ["SyntheticSet"]


@dataclass
class SyntheticSet:
    """Synthetic (or selected real) images, the same number for every class, sorted by class.

    Images from other programs are accepted: other forms are converted into a copy, or rejected if they cannot be. Half
    and double precision become float32; uint8 is interpreted as pixels and normalised with `spec`; labels may be any
    whole numbers, in a list or an array too; unsorted images are sorted by class, stably. A tensor that is float32 and
    sorted already is used as it is.

    Attributes:
        images: float32 [C*ipc, K_in, H, W], normalised with the mean and standard deviation of `spec`; finite.
        labels: int64 [C*ipc]: 0 ... 0, 1 ... 1, and so on, on the images' device.
        spec: specification of the dataset that the images represent.
        provenance: method, seed, iterations, config hash, library version and so on, as text.
        factor: number of tiles along a side of an image, see `expand`; 1 for images that are not mosaics.

    Raises:
        InputError: for images or labels of a wrong shape or type, images that are not finite, labels that are not
            classes, unequal numbers of images per class, or a factor that does not fit.

    Example:
        >>> from iidlib import load_dataset
        >>> synthetic = SyntheticSet.from_real(load_dataset("cifar10-mini").train, ipc=2, generator=torch.Generator())
        >>> synthetic.by_class().shape
        torch.Size([10, 2, 3, 32, 32])
    """

    images: Tensor
    labels: Tensor
    spec: DatasetSpec
    provenance: dict[str, str] = field(default_factory=dict)
    factor: int = 1

    def __post_init__(self) -> None:
        check_spec(self.spec)
        self.images = as_images(self.images, self.spec)  # [C*ipc, K_in, H, W]
        self.labels = as_labels(self.labels, self.images, self.spec)  # [C*ipc]
        if (order := class_order(self.labels)) is not None:  # [C*ipc]
            self.images, self.labels = self.images[order], self.labels[order]
        if not isinstance(self.provenance, dict):
            raise InputError(f"provenance of a synthetic set must be a dict of strings, got {self.provenance!r}")
        if self.spec.ranges:
            self.provenance = self.provenance | {"range": self.spec.ranges}
        self.factor = as_factor(self.factor)
        expand(self.images[:1].detach(), self.factor)  # rejects a factor that does not fit

    @property
    def ipc(self) -> int:
        """Number of stored images per class; a network sees factor^2 times as many."""
        return len(self.images) // len(self.spec.classes)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of a SHA-256 of images, specification and factor; equal for equal sets on any device."""
        spec = self.spec
        moments = [[float(value) for value in values] for values in (spec.mean, spec.std)]
        facts = [list(map(str, spec.classes)), int(spec.image_size), int(spec.channels), *moments, self.factor]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self.images.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def expanded(self) -> "SyntheticSet":
        """The set that networks are trained on: factor^2 images for each stored one; this set itself if factor is 1."""
        if self.factor == 1:
            return self
        images = expand(self.images.detach(), self.factor)  # [C*ipc*factor^2, K_in, H, W]
        labels = self.labels.repeat_interleave(self.factor**2)  # [C*ipc*factor^2]
        return SyntheticSet(images, labels, self.spec, dict(self.provenance))

    def by_class(self) -> Tensor:
        """The images with a class axis, [C, ipc, K_in, H, W]; a view."""
        return self.images.unflatten(0, (len(self.spec.classes), self.ipc))  # [C, ipc, K_in, H, W]

    def to_uint8(self) -> Tensor:
        """The images as pixels, uint8 [C*ipc, K_in, H, W]: denormalised, clipped to [0, 255], rounded."""
        return denormalize(self.images.detach(), self.spec).clamp(0, 1).mul(255).round().to(torch.uint8)

    def save_png(self, path: str | Path) -> None:
        """Writes the images as a PNG grid, one class per row, at their own resolution with a line between them."""
        grid = make_grid(self.to_uint8().cpu(), nrow=self.ipc, padding=2, pad_value=255)  # [3, H_grid, W_grid]
        buffer = io.BytesIO()
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
        atomic_write(_file_to_write(path), buffer.getvalue())

    @classmethod
    def from_real(
        cls, real: RealSet, ipc: int, generator: torch.Generator, init: str = "real", factor: int = 1
    ) -> "SyntheticSet":
        """Starting point of a distillation: random real images of each class, without replacement, or Gaussian noise.

        Args:
            real: the training images.
            ipc: number of stored images per class.
            generator: random source, on the CPU: the draw is the same on every device, and so are the first images for
                every factor.
            init: ``"real"``: with a factor above 1, each tile is a different real image, downscaled; ``"crops"``: real
                images at full size, whose tiles are therefore crops (as in the released IDM script for TinyImageNet);
                ``"noise"``.
            factor: number of tiles along a side of an image.

        Raises:
            InputError: if ipc is below 1, the smallest class has too few images, the factor does not divide the image's
                side, or init is unknown.
        """
        if init not in ("real", "crops", "noise"):
            raise InputError(f"syn.init must be real, crops or noise, got {init!r}")
        ipc, factor = check_real(real, ipc, init, factor)
        if init == "real":
            return cls.from_index(real, real.sample(ipc * factor**2, generator).index, factor)
        if init == "noise":
            size = real.spec.image_size
            shape = (real.num_classes * ipc, real.spec.channels, size, size)
            images = torch.randn(shape, generator=generator).to(real.device)  # [C*ipc, K_in, H, W]
        else:
            images = real.images_of(real.sample(ipc, generator).index)  # [C*ipc, K_in, H, W]
        labels = torch.arange(real.num_classes, device=real.device).repeat_interleave(ipc)  # [C*ipc]
        return cls(images, labels, real.spec, {"init": init}, factor)

    @classmethod
    def from_index(cls, real: RealSet, index: Tensor, factor: int = 1, init: str = "real") -> "SyntheticSet":
        """Builds a set from given real images of each class; with a factor, each tile is one of them, downscaled.

        Args:
            real: the training images.
            index: indices of the images, int64 [C*ipc*factor^2], the same number for each class; every factor^2
                consecutive ones are the tiles of one image, row by row.
            factor: number of tiles along a side of an image.
            init: how they were chosen, for the provenance.

        Raises:
            InputError: if the tiles of an image differ in class, the numbers of images per class differ, or the factor
                does not fit.
        """
        factor = as_factor(factor)
        images = real.images_of(index)  # [C*ipc*factor^2, K_in, H, W]
        labels = real.labels[index.to(real.device)]  # [C*ipc*factor^2]
        expand(images[:1], factor)  # rejects a factor that does not fit
        tiles = factor**2
        if len(labels) % tiles or bool((labels.unflatten(0, (-1, tiles)) != labels[::tiles, None]).any()):
            raise InputError(f"every {tiles} consecutive indices must be images of one class, the tiles of one image")
        if factor > 1:
            images = mosaics(images, factor)  # [C*ipc, K_in, H, W]
        return cls(images, labels[::tiles].contiguous(), real.spec, {"init": init}, factor)

    def save(self, path: str | Path, *, eight_bits: bool = False) -> None:
        """Writes a safetensors file (images as float32, labels; metadata as text), atomically.

        Equal sets give equal files, byte for byte. Checksums cover images, labels and metadata: everything that an
        evaluation reads.

        Args:
            path: the file.
            eight_bits: store the images as `to_uint8` returns them, in a quarter of the bytes. Values outside the range
                of pictures are clipped, so the result is a different set that needs its own evaluation.

        Raises:
            InputError: if the images or labels have been made invalid, for example not finite; or if the path is a
                folder, or its parent folder does not exist.
        """
        path = _file_to_write(path)
        valid = dataclasses.replace(self, images=self.images.detach())  # converted, sorted and checked again
        metadata = {
            "dataset": readable(self.spec.name),
            "classes": json.dumps(list(self.spec.classes)),
            "image_size": str(self.spec.image_size),
            "channels": str(self.spec.channels),
            "mean": json.dumps(list(self.spec.mean)),
            "std": json.dumps(list(self.spec.std)),
            "augmentation": self.spec.augmentation,
            "ipc": str(self.ipc),
            "factor": str(self.factor),
        }
        if eight_bits:
            metadata["stored"] = "uint8"
        metadata["provenance"] = json.dumps({str(key): str(value) for key, value in self.provenance.items()})
        images = valid.to_uint8() if eight_bits else valid.images  # [C*ipc, K_in, H, W]
        try:
            atomic_write(path, pack(images, valid.labels, metadata))
        except FileNotFoundError:
            raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist") from None

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "SyntheticSet":
        """Reads a file that `save` wrote.

        A file of version 0.1.0, whose checksum does not cover the metadata, is read with one warning.

        Args:
            path: the file, or the run folder that contains ``synthetic.safetensors``.
            device: device for the images and labels.

        Raises:
            InputError: for a file that is missing, corrupted, or not a synthetic set (the message says what it is).
        """
        try:
            path = user_path(path)
        except TypeError:
            raise InputError(f"path of a synthetic set must be text or a path, got {path!r}") from None
        try:
            path = _file_of_a_set(path)
            images, labels, metadata, sealed = unpack(path, device)  # [C*ipc, K_in, H, W], [C*ipc]
            factor, spec = int(metadata["factor"]), spec_from(metadata)
            provenance = {str(key): str(value) for key, value in json.loads(metadata["provenance"]).items()}
            ipc = int(metadata.get("ipc", len(images) // len(spec.classes)))
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, SafetensorError) and (message := refusal(path)):
                raise InputError(message) from None
            empty = "it is empty, 0 bytes; " if not path.stat().st_size else ""
            reason = empty + " ".join(str(error).split())
            raise InputError(f"{path} is corrupted and cannot be read ({reason}); distil or copy it again") from None
        try:
            loaded = cls(images, labels, spec, provenance, factor)
        except InputError as error:
            raise InputError(f"{path} is corrupted: {error}; distil or copy it again") from None
        if loaded.ipc != ipc or loaded.labels is not labels:
            raise InputError(
                f"{path} is corrupted: its labels are not {ipc} of each class in order; distil or copy it again"
            )
        if not sealed:
            log_once(
                logging.WARNING,
                f"{path.resolve()} was written by iidlib 0.1.0, whose checksum does not cover the metadata (classes, "
                "mean, std, factor); SyntheticSet.load(...).save(...) writes it with one that does",
            )
        return loaded


def _file_to_write(path: str | Path) -> Path:
    """Path of a file to write, as given by a user.

    Raises:
        InputError: if it is not a path, or is that of a folder.
    """
    try:
        target = user_path(path)
    except TypeError:
        raise InputError(f"path must be text or a path, got {path!r}") from None
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the path of a file in it, such as {target / 'set.safetensors'}")
    return target


def _file_of_a_set(path: Path) -> Path:
    """The file of a set, given its path or that of a run's folder.

    Raises:
        InputError: if there is no such file; the message says what there is instead.
        OSError: if the path cannot be read.
    """
    if path.is_dir():
        if not (path / "synthetic.safetensors").exists():
            raise InputError(kind_of_folder(path))
        path = path / "synthetic.safetensors"
    if not path.is_file():
        what = f"{path} is not a regular file" if path.exists() else f"no synthetic set at {path}"
        raise InputError(f"{what}; give the file or the folder of a finished run")
    return path
