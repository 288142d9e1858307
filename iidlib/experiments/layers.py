"""Work of the networks per image, counted from their layers: operations, bytes and kernels, without torch.

The layers are those of `iidlib.networks`, repeated here because importing them imports torch; the tests compare the
operations with torch's own count. Bytes are those that float32 feature maps move if each convolution reads its input
and writes its output, and one kernel does all that follows until the next (norm, activation, pooling), so that caches
keep nothing in between. Weights are not counted: a batch shares them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["NetworkWork", "Work", "network_work"]

_FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Work:
    """Some work, with sums and multiples."""

    flop: float = 0
    """Floating-point operations of convolutions and matrix products; a multiply-add counts as two."""
    bytes: float = 0
    """Bytes read and written."""
    kernels: float = 0
    """Kernels launched."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flop + other.flop, self.bytes + other.bytes, self.kernels + other.kernels)

    def __mul__(self, count: float) -> "Work":
        return Work(self.flop * count, self.bytes * count, self.kernels * count)


@dataclass(frozen=True)
class NetworkWork:
    """Work of a network per image."""

    forward: Work
    """Features of an image, without gradient."""
    image_gradient: Work
    """Features and their gradient with respect to the image, with frozen weights."""
    training: Work
    """Logits and the gradient of the weights."""
    training_kernels: int
    """Kernels of a training step, whatever its batch."""


class _Layer(NamedTuple):
    """A convolution with what follows it until the next one."""

    fan: int
    width: int
    kernel: int
    source: int
    """Side of its input."""
    side: int
    """Side of its output."""
    after: int
    """Side of the map after pooling."""
    residual: bool = False
    """Whether a shortcut is added to its output."""

    @property
    def flop(self) -> int:
        return 2 * self.fan * self.width * self.kernel**2 * self.side**2

    @property
    def maps(self) -> tuple[int, int, int]:
        """Bytes of its input, of its output, and of what follows it."""
        scale = _FLOAT * self.width
        return _FLOAT * self.fan * self.source**2, scale * self.side**2, scale * self.after**2


_IN_A_ROW: dict[str, tuple[tuple[int, int] | None, ...]] = {
    "alexnet": ((128, 5), None, (192, 5), None, (256, 3), (192, 3), (192, 3), None),
    "vgg11": (
        (64, 3), None, (128, 3), None, (256, 3), (256, 3), None, (512, 3), (512, 3), None, (512, 3), (512, 3), None,
    ),
}  # fmt: skip
"""Convolutions (width, kernel size) of networks that are a sequence of them; None is pooling."""


def _in_a_row(name: str, side: int, channels: int) -> Iterator[_Layer]:
    layers, fan = _IN_A_ROW[name], channels
    for number, layer in enumerate(layers):
        if layer is not None:
            width, kernel = layer
            after = side // 2 if layers[number + 1 : number + 2] == (None,) else side
            yield _Layer(fan, width, kernel, side, side, after)
            fan, side = width, after


def _convnet(depth: int, width: int, side: int, channels: int) -> Iterator[_Layer]:
    for number in range(depth):
        yield _Layer(width if number else channels, width, 3, side, side, side // 2)
        side //= 2


def _resnet18(side: int, channels: int) -> Iterator[_Layer]:
    yield _Layer(channels, 64, 3, side, side, side)
    fan = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        source, side = side, side // stride
        yield _Layer(fan, width, 3, source, side, side)
        yield _Layer(width, width, 3, side, side, side, residual=True)
        if stride != 1 or fan != width:
            yield _Layer(fan, width, 1, source, side, side)
        fan = width


def network_work(name: str, *, side: int, classes: int, width: int = 128, channels: int = 3) -> NetworkWork:
    """Work of a network per image.

    Args:
        name: network, one of ``iidlib.networks.NETWORKS``; norms are not distinguished.
        side: height and width of an image in pixels.
        classes: outputs of the classifier.
        width: channels per layer if it is a ConvNet.
        channels: channels of an image.

    Raises:
        KeyError: for a network that is not counted, such as ``mlp``.
    """
    base = name.removesuffix("-bn")
    if found := re.fullmatch(r"convnet(\d+)", base):
        layers = list(_convnet(int(found[1]), width, side, channels))
    elif base == "resnet18":
        layers = list(_resnet18(side, channels))
    else:
        layers = list(_in_a_row(base, side, channels))
    last = layers[-1]
    features = last.width * (last.after // 4 if base == "resnet18" else last.after) ** 2
    classifier = Work(2 * features * classes)
    forward, to_images, to_weights = Work(), Work(), Work()
    for number, layer in enumerate(layers):
        read, written, after = layer.maps
        added = written if layer.residual else 0
        convolution = Work(layer.flop, read + written)
        norm = Work(0, 2 * written + after + added)  # reads the map and the gradient of what follows, writes its own
        forward += Work(layer.flop, read + written + written + after + added)
        to_images += norm + convolution
        to_weights += norm + convolution + (convolution if number else Work())  # images need no gradient
    training = forward + to_weights + classifier * 3
    return NetworkWork(forward, forward + to_images, training, 20 + 12 * len(layers))
