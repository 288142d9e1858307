"""DSA one image at a time, written from the definitions: slow and obvious; for equality only, never timed."""

import functools
import math

import torch
from torch import Tensor

from iidlib.augment import OPERATIONS, Draws


def augment(images: Tensor, draws: Draws, group: Tensor | None = None) -> Tensor:
    """What ``iidlib.augment.apply`` must give: [B, K, H, H], image b by the draw of its group."""
    out = []
    for b, image in enumerate(images):
        g = b if group is None else int(group[b])
        out.append(augment_one(image, OPERATIONS[int(draws.op[g])], draws.u[g].tolist()))
    return torch.stack(out)


def augment_one(image: Tensor, operation: str, u: list[float]) -> Tensor:
    """One image [K, H, H], one operation, its three numbers in [0, 1)."""
    one = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}[operation]
    return one(image, u)


def color(x: Tensor, u: list[float]) -> Tensor:
    x = x + (u[0] - 0.5)  # brightness
    mean = x.mean(dim=0, keepdim=True)
    x = (x - mean) * (2 * u[1]) + mean  # saturation
    mean = x.mean()
    return (x - mean) * (u[2] + 0.5) + mean  # contrast


def crop(x: Tensor, u: list[float]) -> Tensor:
    side = x.shape[-1]
    s = int(0.125 * side + 0.5)
    dy = math.floor(u[0] * (2 * s + 1)) - s
    dx = math.floor(u[1] * (2 * s + 1)) - s
    out = torch.zeros_like(x)
    for i in range(side):
        for j in range(side):
            if 0 <= i + dy < side and 0 <= j + dx < side:
                out[:, i, j] = x[:, i + dy, j + dx]
    return out


def cutout(x: Tensor, u: list[float]) -> Tensor:
    side = x.shape[-1]
    size = int(0.5 * side + 0.5)
    centres = side + 1 if size % 2 == 0 else side
    top = math.floor(u[0] * centres) - size // 2
    left = math.floor(u[1] * centres) - size // 2
    out = x.clone()
    for i in range(side):
        for j in range(side):
            if top <= i < top + size and left <= j < left + size:
                out[:, i, j] = 0
    return out


def flip(x: Tensor, u: list[float]) -> Tensor:
    if u[0] >= 0.5:
        return x
    return torch.stack([x[:, :, j] for j in reversed(range(x.shape[-1]))], dim=-1)


def scale(x: Tensor, u: list[float]) -> Tensor:
    sx, sy = (1 / 1.2 + number * (1.2 - 1 / 1.2) for number in u[:2])
    return resample(x, ((sx, 0.0), (0.0, sy)))


def rotate(x: Tensor, u: list[float]) -> Tensor:
    angle = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
    return resample(x, ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))


def resample(x: Tensor, matrix: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """Output pixel p takes its value at ``matrix @ p`` (relative to the centre), bilinear, zero outside."""
    side = x.shape[-1]
    weights = sampling_weights(side, matrix).to(x)
    return (x.flatten(1) @ weights.T).unflatten(1, (side, side))


@functools.cache
def sampling_weights(side: int, matrix: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """[H * H, H * H]: what each output pixel takes of each input pixel."""
    (xx, xy), (yx, yy) = matrix
    centre = (side - 1) / 2
    weights = torch.zeros(side, side, side, side, dtype=torch.float64)
    for i in range(side):
        for j in range(side):
            x, y = j - centre, i - centre
            column, row = xx * x + xy * y + centre, yx * x + yy * y + centre
            left, top = math.floor(column), math.floor(row)
            for r, in_row in ((top, top + 1 - row), (top + 1, row - top)):
                for c, in_column in ((left, left + 1 - column), (left + 1, column - left)):
                    if 0 <= r < side and 0 <= c < side:
                        weights[i, j, r, c] += in_row * in_column
    return weights.flatten(2).flatten(0, 1)
