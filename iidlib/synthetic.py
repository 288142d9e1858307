"""The synthetic set: the images being learned, their labels and where they come from; saved without pickle.

With a partition factor f (IDM, Zhao et al., CVPR 2023) a stored image is a mosaic of f x f smaller ones, and what a
network sees are these, each enlarged to full size: as many numbers stored, f^2 times as many images to learn from.
"""

import hashlib
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torchvision.utils import make_grid

from iidlib.data import DatasetSpec, RealSet, denormalize, normalize
from iidlib.errors import InputError
from iidlib.files import atomic_write

__all__ = ["SyntheticSet", "expand"]

FORMAT = "iidlib.synthetic/1"


def expand(images: Tensor, factor: int) -> Tensor:
    """Cuts each image into factor x factor tiles and enlarges each tile to the image's size; differentiable.

    Bilinear, ``align_corners=False``, as in the released code of IDM. There the tiles of one place follow those of
    another; here the tiles of an image stay together, row by row, so that images sorted by class stay sorted.
    Explained in chapter 06.

    Args:
        images: floating point [B, K, H, W].
        factor: tiles along a side; 1 gives the images as they are.

    Returns:
        [B * factor^2, K, H, W].

    Raises:
        InputError: if the factor does not divide the image's sides.
    """
    if factor == 1:
        return images
    height, width = images.shape[2:]
    if factor < 1 or height % factor or width % factor:
        raise InputError(
            f"syn.factor must divide the side of the images, {height}, into whole tiles, got {factor}; "
            f"it can be {', '.join(str(f) for f in range(1, height + 1) if height % f == 0)}"
        )
    rows = images.unflatten(2, (factor, height // factor)).unflatten(4, (factor, width // factor))  # [B, K, f, h, f, w]
    tiles = rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # [B*f*f, K, h, w]
    return F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)  # [B*f*f, K, H, W]


def _mosaics(images: Tensor, factor: int) -> Tensor:
    """Each factor^2 images in a row, downscaled by averaging, as the tiles of one image: the reverse of `expand`.

    With factor 2 averaging is what the released code's bilinear downscaling computes.
    """
    tiles = F.avg_pool2d(images, factor).unflatten(0, (-1, factor, factor))  # [B, f, f, K, h, w]
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [B, K, H, W]


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


def _per_channel(text: str, channels: int) -> tuple[float, ...]:
    """One finite number a channel, from JSON.

    Raises:
        ValueError: for anything else.
    """
    numbers = tuple(float(number) for number in json.loads(text))
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text} is not one number for each of {channels} channels")
    return numbers


@dataclass
class SyntheticSet:
    """Synthetic (or selected real) images of every class, the same number each, sorted by class.

    Attributes:
        images: float32 [C*ipc, channels, H, W], normalised with the data set's mean and standard deviation.
        labels: long [C*ipc]: 0 ... 0, 1 ... 1, and so on.
        spec: the data set that they stand for.
        provenance: method, seed, iterations, config hash, library version and so on, as text.
        factor: tiles along a side of an image, see `expand`; 1 for images that are shown as they are.

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
        classes, size = len(self.spec.classes), self.spec.image_size
        shape = (self.spec.channels, size, size)
        if self.images.ndim != 4 or tuple(self.images.shape[1:]) != shape or len(self.images) % classes:
            raise InputError(
                f"a synthetic set of {self.spec.name} needs images [{classes} * ipc, {', '.join(map(str, shape))}], "
                f"got {tuple(self.images.shape)}"
            )
        if not torch.equal(self.labels.cpu(), torch.arange(classes).repeat_interleave(len(self.images) // classes)):
            raise InputError(f"labels of a synthetic set must be sorted by class, {self.ipc} images each")
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
        atomic_write(Path(path), buffer.getvalue())

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
        size, smallest = real.spec.image_size, int(real.counts.min())
        name = real.spec.classes[int(real.counts.argmin())]
        expand(torch.empty(1, real.spec.channels, size, size), factor)  # refuses a factor that does not fit
        if not 1 <= ipc <= smallest:
            raise InputError(
                f"ipc must be 1 to {smallest}, the training images of class {name!r} in {real.spec.name}, not {ipc}"
            )
        taken = ipc * factor**2 if init == "real" else ipc
        if taken > smallest:
            fewer = smallest // factor**2
            remedy = f"lower ipc to {fewer} or less, or syn.factor" if fewer else "lower syn.factor"
            raise InputError(
                f"ipc {ipc} with syn.factor {factor} takes {taken} real images a class, but class {name!r} in "
                f"{real.spec.name} has {smallest}; {remedy}, or take syn.init=crops"
            )
        if init == "noise":
            images = torch.randn((real.num_classes * ipc, real.spec.channels, size, size), generator=generator)
            images = images.to(real.device)
        else:
            images = real.images_of(real.sample(taken, generator).index)
            if taken > ipc:
                images = _mosaics(images, factor)
        labels = torch.arange(real.num_classes, device=real.device).repeat_interleave(ipc)
        return cls(images, labels, real.spec, {"init": init}, factor)

    def save(self, path: str | Path, *, eight_bits: bool = False) -> None:
        """Writes a safetensors file (images float32, labels; metadata as text), whole or not at all.

        Equal sets give equal files, byte for byte.

        Args:
            path: the file.
            eight_bits: store the images as `to_uint8` gives them, in a quarter of the bytes. What lies outside of an
                image's range is clipped, so that such a set is another one, to be evaluated by itself.
        """
        metadata = {
            "format": FORMAT,
            "dataset": self.spec.name,
            "classes": json.dumps(list(self.spec.classes)),
            "image_size": str(self.spec.image_size),
            "channels": str(self.spec.channels),
            "mean": json.dumps(list(self.spec.mean)),
            "std": json.dumps(list(self.spec.std)),
            "augmentation": self.spec.augmentation,
            "ipc": str(self.ipc),
            "factor": str(self.factor),
        }
        stored = self.to_uint8() if eight_bits else self.images.detach().float()
        tensors = {"images": stored.cpu().contiguous(), "labels": self.labels.cpu()}
        if eight_bits:
            metadata["stored"] = "uint8"
        metadata["sha256"] = _digest(**tensors)
        metadata["provenance"] = json.dumps(self.provenance)
        atomic_write(Path(path), _in_order(to_bytes(tensors, metadata)))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "SyntheticSet":
        """Reads what `save` wrote.

        Args:
            path: the file, or the run's folder that holds ``synthetic.safetensors``.
            device: where the images go.

        Raises:
            InputError: for a file that is missing, damaged, or not a synthetic set.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "synthetic.safetensors"
        if not path.is_file():
            raise InputError(f"no synthetic set at {path}; give the file or the folder of a finished run")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InputError(f"{path} is not a synthetic set of this library (its metadata lack {FORMAT!r})")
                images, labels = file.get_tensor("images"), file.get_tensor("labels")
            factor = int(metadata["factor"])
            expected = torch.uint8 if metadata.get("stored") == "uint8" else torch.float32
            if images.dtype != expected or labels.dtype != torch.int64 or not len(images):
                raise ValueError(f"images {images.dtype} {tuple(images.shape)}, labels {labels.dtype}")
            digest = _digest(images, labels)
            if metadata.get("sha256", digest) != digest:
                raise ValueError("its images or labels are not those that were written")
            classes = json.loads(metadata["classes"])
            if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
                raise ValueError(f"classes {metadata['classes']}")
            channels = int(metadata["channels"])
            spec = DatasetSpec(
                name=metadata["dataset"],
                classes=tuple(classes),
                image_size=int(metadata["image_size"]),
                channels=channels,
                mean=_per_channel(metadata["mean"], channels),
                std=_per_channel(metadata["std"], channels),
                augmentation=metadata["augmentation"],
            )
            if not all(deviation > 0 for deviation in spec.std):
                raise ValueError(f"std {metadata['std']}")
            provenance = {str(key): str(value) for key, value in json.loads(metadata["provenance"]).items()}
        except InputError:
            raise
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
            raise InputError(
                f"{path} is damaged and cannot be read ({' '.join(str(error).split())}); distil or copy it again"
            ) from None
        if images.dtype == torch.uint8:
            images = normalize(images, spec)
        if not bool(torch.isfinite(images).all()):
            raise InputError(f"{path} is damaged: its images hold values that are not finite; distil or copy it again")
        try:
            return cls(images, labels, spec, provenance, factor)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from None
