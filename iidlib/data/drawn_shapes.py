"""Coloured shapes drawn from a random seed: a dataset for tests that small networks learn in seconds."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iidlib.data.realset import Dataset
from iidlib.data.source import Images
from iidlib.data.spec import ALL_OPERATIONS, DatasetSpec
from iidlib.errors import InputError

__all__ = ["SHAPES", "draw_shapes", "shapes"]

SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v: u * u + v * v < 1,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.85,
    "triangle": lambda u, v: (v < 0.8) & (v > 2 * u.abs() - 1),
    "plus": lambda u, v: (torch.minimum(u.abs(), v.abs()) < 0.3) & (torch.maximum(u.abs(), v.abs()) < 1),
    "ring": lambda u, v: (u * u + v * v < 1) & (u * u + v * v > 0.4),
    "diamond": lambda u, v: u.abs() + v.abs() < 1.1,
    "bar": lambda u, v: (v.abs() < 0.3) & (u.abs() < 1),
    "cross": lambda u, v: (torch.minimum((u + v).abs(), (u - v).abs()) < 0.4) & (torch.maximum(u.abs(), v.abs()) < 0.9),
    "crescent": lambda u, v: (u * u + v * v < 1) & ((u - 0.5) ** 2 + v * v > 0.6),
    "frame": lambda u, v: (torch.maximum(u.abs(), v.abs()) < 0.9) & (torch.maximum(u.abs(), v.abs()) > 0.5),
}
"""Masks of the shapes, in coordinates where they span about -1 to 1."""


def draw_shapes(counts: Sequence[int], image_size: int, generator: torch.Generator) -> Images:
    """Draws coloured shapes at random positions and sizes on noisy grey backgrounds, class by class.

    Class c is a shape of the table (repeating after ten) in a hue around c / C, so small networks learn it in seconds,
    but a single pixel does not solve it.

    Args:
        counts: images of each class.
        image_size: pixels per side.
        generator: a CPU generator.
    """
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), *shape, generator=generator)

    axis = torch.linspace(-1, 1, image_size)
    radius = uniform(0.4, 0.7, 1, 1)
    u = (axis.view(1, 1, -1) - uniform(-0.3, 0.3, 1, 1)) / radius
    v = (axis.view(1, -1, 1) - uniform(-0.3, 0.3, 1, 1)) / radius
    kinds = list(SHAPES.values())
    inside = torch.stack([kinds[label % len(kinds)](u[i], v[i]) for i, label in enumerate(labels.tolist())])
    hue = (labels / len(counts)).view(-1, 1) + uniform(-0.2, 0.2, 1) + torch.tensor([0.0, 1 / 3, 2 / 3])
    colour = 0.5 + 0.4 * torch.cos(2 * torch.pi * hue)
    image = torch.where(inside[:, None], colour[:, :, None, None], uniform(0.2, 0.8, 1, 1, 1))
    image = image + uniform(-0.15, 0.15, 3, image_size, image_size)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), labels


def shapes(num_classes: int = 4, per_class: int | Sequence[int] = 40, image_size: int = 32, seed: int = 0) -> Dataset:
    """Draws a dataset of coloured shapes for tests, which networks learn in seconds, with classes of any size.

    Args:
        num_classes: number of classes.
        per_class: training images per class, or one number for each class. The test set has 20 per class.
        image_size: pixels per side.
        seed: random seed; another seed draws other images of the same classes.

    Raises:
        InputError: if `per_class` does not have one number for each class, or a number is below 1.
    """
    counts = [per_class] * num_classes if isinstance(per_class, int) else list(per_class)
    if len(counts) != num_classes or min([num_classes, image_size, *counts]) < 1:
        raise InputError(
            f"shapes needs a size of 1 or more for each class, got num_classes={num_classes}, per_class={per_class}, "
            f"image_size={image_size}"
        )
    kinds = list(SHAPES)
    spec = DatasetSpec(
        name="shapes",
        classes=tuple(kinds[c % len(kinds)] + (f"-{c // len(kinds)}" * (c >= len(kinds))) for c in range(num_classes)),
        image_size=image_size,
        channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=ALL_OPERATIONS,
    )
    generator = torch.Generator().manual_seed(seed)
    train = draw_shapes(counts, image_size, generator)
    return Dataset.of(spec, train, draw_shapes([20] * num_classes, image_size, generator))
