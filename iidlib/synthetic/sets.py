"""The synthetic set: the images being learned, their labels and where they come from; saved without pickle."""

import dataclasses
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
from iidlib.notes import say_once
from iidlib.synthetic.beginnings import check_real
from iidlib.synthetic.door import as_factor, as_images, as_labels, check_spec, class_order
from iidlib.synthetic.foreign import kind_of_folder, refusal
from iidlib.synthetic.mosaics import expand, mosaics
from iidlib.synthetic.storage import pack, spec_from, unpack

__all__ = ["SyntheticSet"]


@dataclass
class SyntheticSet:
    """Synthetic (or selected real) images of every class, the same number each, sorted by class.

    Images of other programs are taken as they come: what has another form is converted, into a copy, and what cannot
    be is refused. Half and double precision become float32; uint8 is taken for pixels, and normalised by `spec`; labels
    may be any whole numbers, also in a list or an array; images in another order are sorted by class, those of a class
    keep their order. What is float32 and sorted already stays the tensor that was given.

    Attributes:
        images: float32 [C*ipc, channels, H, W], normalised with the mean and standard deviation of `spec`; finite.
        labels: long [C*ipc]: 0 ... 0, 1 ... 1, and so on, on the images' device.
        spec: the dataset that they stand for.
        provenance: method, seed, iterations, config hash, library version and so on, as text.
        factor: tiles along a side of an image, see `expand`; 1 for images that are shown as they are.

    Raises:
        InputError: for images or labels of another shape or type, images that are not finite, labels that are no class,
            classes with unequal numbers of images, or a factor that does not fit.

    Example:
        >>> from iidlib import load_dataset
        >>> from iidlib.rng import stream
        >>> real = load_dataset("cifar10-mini").train
        >>> synthetic = SyntheticSet.from_real(real, ipc=2, generator=stream(0, 0, "start"))
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
        self.images = as_images(self.images, self.spec)
        self.labels = as_labels(self.labels, self.images, self.spec)
        if (order := class_order(self.labels)) is not None:
            self.images, self.labels = self.images[order], self.labels[order]
        if not isinstance(self.provenance, dict):
            raise InputError(f"provenance of a synthetic set must be a dict of texts, got {self.provenance!r}")
        if self.spec.ranges:
            self.provenance = self.provenance | {"range": self.spec.ranges}
        self.factor = as_factor(self.factor)
        expand(self.images[:1].detach(), self.factor)  # refuses a factor that does not fit

    @property
    def ipc(self) -> int:
        """Images stored a class; a network sees factor^2 times as many."""
        return len(self.images) // len(self.spec.classes)

    def expanded(self) -> "SyntheticSet":
        """The images that a network is trained on, factor^2 for each stored one; the set itself where that is one."""
        if self.factor == 1:
            return self
        labels = self.labels.repeat_interleave(self.factor**2)
        return SyntheticSet(expand(self.images.detach(), self.factor), labels, self.spec, dict(self.provenance))

    def by_class(self) -> Tensor:
        """The images with a class axis, [C, ipc, channels, H, W]; a view."""
        return self.images.unflatten(0, (len(self.spec.classes), self.ipc))

    def to_uint8(self) -> Tensor:
        """The images as they are seen, uint8 [C*ipc, channels, H, W]: denormalised, clipped to [0, 255], rounded."""
        return denormalize(self.images.detach(), self.spec).clamp(0, 1).mul(255).round().to(torch.uint8)

    def save_png(self, path: str | Path) -> None:
        """Writes the images as a picture, a class a row, each image in its own pixels with a line between them."""
        grid = make_grid(self.to_uint8().cpu(), nrow=self.ipc, padding=2, pad_value=255)
        buffer = io.BytesIO()
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
        atomic_write(_file_to_write(path), buffer.getvalue())

    @classmethod
    def from_real(
        cls, real: RealSet, ipc: int, generator: torch.Generator, init: str = "real", factor: int = 1
    ) -> "SyntheticSet":
        """A starting point: random real images of each class, without replacement, or normal noise.

        Args:
            real: the training images.
            ipc: images stored a class.
            generator: on the CPU; the same draw on every device, and the same first images for every factor.
            init: ``"real"``: with a factor above 1 each tile is another real image, downscaled; ``"crops"``: whole
                real images, whose tiles are then crops (what the released IDM script for TinyImageNet does);
                ``"noise"``.
            factor: tiles along a side of an image.

        Raises:
            InputError: if ipc is below 1, if it takes more images than the smallest class has, if the factor does not
                divide the image's side, or if init is unknown.
        """
        if init not in ("real", "crops", "noise"):
            raise InputError(f"syn.init must be real, crops or noise, got {init!r}")
        ipc, factor = check_real(real, ipc, init, factor)
        if init == "real":
            return cls.from_index(real, real.sample(ipc * factor**2, generator).index, factor)
        if init == "noise":
            size = real.spec.image_size
            images = torch.randn((real.num_classes * ipc, real.spec.channels, size, size), generator=generator)
            images = images.to(real.device)
        else:
            images = real.images_of(real.sample(ipc, generator).index)
        labels = torch.arange(real.num_classes, device=real.device).repeat_interleave(ipc)
        return cls(images, labels, real.spec, {"init": init}, factor)

    @classmethod
    def from_index(cls, real: RealSet, index: Tensor, factor: int = 1, init: str = "real") -> "SyntheticSet":
        """Given real images of each class; with a factor each tile is one of them, downscaled.

        Args:
            real: the training images.
            index: which of them, int64 [C*ipc*factor^2], as many of each class; each factor^2 in a row are the tiles of
                one image, row by row.
            factor: tiles along a side of an image.
            init: how they were chosen, for the record.

        Raises:
            InputError: if the tiles of an image are of different classes, or there are not as many of each class, or
                the factor does not fit.
        """
        factor = as_factor(factor)
        images, labels = real.images_of(index), real.labels[index.to(real.device)]
        expand(images[:1], factor)  # refuses a factor that does not fit
        tiles = factor**2
        if len(labels) % tiles or bool((labels.unflatten(0, (-1, tiles)) != labels[::tiles, None]).any()):
            raise InputError(f"each {tiles} indices in a row must be images of one class, the tiles of one image")
        if factor > 1:
            images = mosaics(images, factor)
        return cls(images, labels[::tiles].contiguous(), real.spec, {"init": init}, factor)

    def save(self, path: str | Path, *, eight_bits: bool = False) -> None:
        """Writes a safetensors file (images float32, labels; metadata as text), whole or not at all.

        Equal sets give equal files, byte for byte. Checksums cover images, labels and metadata, all that an evaluation
        reads.

        Args:
            path: the file.
            eight_bits: store the images as `to_uint8` gives them, in a quarter of the bytes. What lies outside of an
                image's range is clipped, so that such a set is another one, to be evaluated by itself.

        Raises:
            InputError: if the images or labels were changed into what is no set, such as images that are not finite; or
                for a path that is a folder, or lies in one that is not there.
        """
        path = _file_to_write(path)
        own = dataclasses.replace(self, images=self.images.detach())  # converted, sorted and checked anew
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
        images = own.to_uint8() if eight_bits else own.images
        try:
            atomic_write(path, pack(images, own.labels, metadata))
        except FileNotFoundError:
            raise InputError(f"{path} cannot be written, as there is no folder {path.parent}") from None

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "SyntheticSet":
        """Reads what `save` wrote.

        A file of version 0.1.0, whose checksum leaves out the metadata, is read with one warning.

        Args:
            path: the file, or the run's folder that holds ``synthetic.safetensors``.
            device: where the images go.

        Raises:
            InputError: for a file that is missing, damaged, or not a synthetic set: then the line says what it is.
        """
        try:
            path = user_path(path)
        except TypeError:
            raise InputError(f"path of a synthetic set must be text or a path, got {path!r}") from None
        try:
            path = _file_of_a_set(path)
            images, labels, metadata, sealed = unpack(path, device)
            factor, spec = int(metadata["factor"]), spec_from(metadata)
            provenance = {str(key): str(value) for key, value in json.loads(metadata["provenance"]).items()}
            ipc = int(metadata.get("ipc", len(images) // len(spec.classes)))
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, SafetensorError) and (told := refusal(path)):
                raise InputError(told) from None
            empty = "it is empty, 0 bytes; " if not path.stat().st_size else ""
            raise InputError(
                f"{path} is damaged and cannot be read ({empty}{' '.join(str(error).split())}); distil or copy it again"
            ) from None
        try:
            found = cls(images, labels, spec, provenance, factor)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}; distil or copy it again") from None
        if found.ipc != ipc or found.labels is not labels:
            raise InputError(
                f"{path} is damaged: its labels are not {ipc} of each class in order; distil or copy it again"
            )
        if not sealed:
            say_once(
                logging.WARNING,
                f"{path.resolve()} was written by iidlib 0.1.0, whose checksum leaves out the metadata (classes, mean, "
                "std, factor); SyntheticSet.load(...).save(...) writes it with one that covers them",
            )
        return found


def _file_to_write(path: str | Path) -> Path:
    """A path that a user gave, for a file.

    Raises:
        InputError: if it is no path, or there is a folder.
    """
    try:
        place = user_path(path)
    except TypeError:
        raise InputError(f"path must be text or a path, got {path!r}") from None
    if place.is_dir():
        raise InputError(f"{place} is a folder; give the path of a file in it, such as {place / 'set.safetensors'}")
    return place


def _file_of_a_set(path: Path) -> Path:
    """The file that a path means.

    Raises:
        InputError: if there is none: with what is there.
        OSError: if it cannot be looked at.
    """
    if path.is_dir():
        if not (path / "synthetic.safetensors").exists():
            raise InputError(kind_of_folder(path))
        path = path / "synthetic.safetensors"
    if not path.is_file():
        what = f"{path} is no regular file" if path.exists() else f"no synthetic set at {path}"
        raise InputError(f"{what}; give the file or the folder of a finished run")
    return path
