"""The synthetic set: the images being learned, their labels and where they come from; saved without pickle."""

import hashlib
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torchvision.utils import make_grid

from iidlib.config import InputError
from iidlib.data import DatasetSpec, RealSet, denormalize
from iidlib.runs import atomic_write

__all__ = ["SyntheticSet"]

FORMAT = "iidlib.synthetic/1"


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
    """

    images: Tensor
    labels: Tensor
    spec: DatasetSpec
    provenance: dict[str, str] = field(default_factory=dict)

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

    @property
    def ipc(self) -> int:
        """Images a class."""
        return len(self.images) // len(self.spec.classes)

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
    def from_real(cls, real: RealSet, ipc: int, generator: torch.Generator, init: str = "real") -> "SyntheticSet":
        """A starting point: random real images of each class, without replacement, or normal noise.

        Args:
            real: the training images.
            ipc: images a class.
            generator: on the CPU; the same draw on every device.
            init: ``"real"`` or ``"noise"``.

        Raises:
            InputError: if ipc is below 1 or above the size of the smallest class, or init is unknown.
        """
        smallest = int(real.counts.min())
        if not 1 <= ipc <= smallest:
            name = real.spec.classes[int(real.counts.argmin())]
            raise InputError(
                f"ipc must be 1 to {smallest}, the training images of class {name!r} in {real.spec.name}, not {ipc}"
            )
        if init == "real":
            images = real.images_of(real.sample(ipc, generator).index)
        elif init == "noise":
            size = real.spec.image_size
            images = torch.randn((real.num_classes * ipc, real.spec.channels, size, size), generator=generator)
            images = images.to(real.device)
        else:
            raise InputError(f"syn.init must be real or noise, got {init!r}")
        labels = torch.arange(real.num_classes, device=real.device).repeat_interleave(ipc)
        return cls(images, labels, real.spec, {"init": init})

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file (images float32, labels; metadata as text), whole or not at all."""
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
            "factor": "1",
        }
        tensors = {"images": self.images.detach().float().cpu().contiguous(), "labels": self.labels.cpu()}
        metadata["sha256"] = _digest(**tensors)
        content = to_bytes(tensors, {"provenance": json.dumps(self.provenance), **metadata})
        atomic_write(Path(path), content)

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
            if metadata["factor"] != "1":
                raise InputError(f"{path} has partition factor {metadata['factor']!r}; this version reads factor 1")
            if images.dtype != torch.float32 or labels.dtype != torch.int64 or not len(images):
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
        if not bool(torch.isfinite(images).all()):
            raise InputError(f"{path} is damaged: its images hold values that are not finite; distil or copy it again")
        try:
            return cls(images, labels, spec, provenance)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from None
