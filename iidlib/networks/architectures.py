"""The standard networks, used for matching, evaluation and cross-architecture tests.

Every network is a trunk that ends in a feature map, a head that flattens the map to a feature vector, and a linear
classifier, so the method's code reads the same for all of them::

    network = build_network("convnet3", num_classes=10, image_size=32)
    fmap = network.feature_map(images)      # [B, K, h, w], used by covariance matching
    features = network.head(fmap)           # [B, D], used by mean matching; same as network.embed(images)
    logits = network.classifier(features)   # [B, C]; same as network(images)

Instance norm is that of ``GroupNorm(K, K)``, affine, as in the released code: an image's output does not depend on the
rest of the batch, in training or evaluation mode, so a batch of all classes gives the same values as one class at a
time. Networks whose name ends in ``-bn`` use batch norm instead.

Source: the structures and parameter counts of Zhao and Bilen's DatasetCondensation code, on which the released IID code
(Deng et al., CVPR 2024) builds. Departures: parameter names are our own; VGG11's final 1x1 average pooling, a no-op, is
omitted; greyscale images are not padded to 32x32. In the original, the classifiers of AlexNet and VGG11 and the first
linear layer of LeNet fit the feature map of 32x32 images only; here, like the original's ConvNets, they fit the feature
map of the dataset's images, so these networks also take larger images. At 32x32 nothing differs.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from iidlib.errors import near
from iidlib.names import network_name
from iidlib.networks.blocks import Conv3x3, ConvBlock, NormReLU, ResidualBlock
from iidlib.networks.network import Network

__all__ = ["NETWORKS", "build_network", "draw_parameters_", "empty_network"]


# Trunk, head, and the number D of features between head and classifier.
_Parts = tuple[nn.Module, nn.Module, int]


def _convnet(channels: int, size: int, *, depth: int, width: int = 128, batch_norm: bool = False) -> _Parts:
    """ConvNet: ``depth`` blocks of convolution, norm, ReLU, average pooling (the standard network for matching)."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(depth):
        fan = width if i else channels
        if batch_norm:
            conv, norm = nn.Conv2d(fan, width, 3, padding=1), nn.BatchNorm2d(width)
            blocks[f"block{i + 1}"] = nn.Sequential(
                OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(), pool=nn.AvgPool2d(2))
            )
        else:
            blocks[f"block{i + 1}"] = ConvBlock(fan, width)
    return nn.Sequential(blocks), nn.Flatten(), width * (size >> depth) ** 2


def _in_a_row(
    channels: int, size: int, *, layers: tuple[tuple[int, int] | None, ...], norm: type[nn.Module] | None
) -> _Parts:
    """A sequence of convolutions, each (width, kernel size) with norm and ReLU; None is 2x2 max pooling."""
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    convolutions = 0
    for layer in layers:
        if layer is None:
            trunk[f"pool{convolutions}"] = nn.MaxPool2d(2)
            size //= 2
            continue
        width, kernel_size = layer
        convolutions += 1
        conv = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2) if norm is not NormReLU else None
        trunk[f"conv{convolutions}"] = conv or Conv3x3(channels, width)
        if norm is not None:
            trunk[f"norm{convolutions}"] = norm(width)
        if norm is not NormReLU:
            trunk[f"relu{convolutions}"] = nn.ReLU()
        channels = width
    return nn.Sequential(trunk), nn.Flatten(), channels * size**2


def _resnet18(channels: int, size: int, *, norm: type[NormReLU] | type[nn.BatchNorm2d]) -> _Parts:
    """ResNet18 for small images: a 3x3 stem without pooling, four stages of two blocks, average pooling over 4x4.

    The pooling leaves one position at 32x32 (512 features), 2x2 at 64x64 (2048 features), as in the released code.
    """
    conv = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    stem: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=norm(64))
    if norm is not NormReLU:
        stem["relu"] = nn.ReLU()
    trunk: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(stem))
    fan = 64
    for i, (width, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), 1):
        trunk[f"stage{i}"] = nn.Sequential(
            ResidualBlock(fan, width, stride, norm), ResidualBlock(width, width, 1, norm)
        )
        fan = width
    return nn.Sequential(trunk), nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), 512 * (size // 32) ** 2


def _mlp(channels: int, size: int) -> _Parts:
    """Two hidden layers of 128 units; the feature map is the second one, as a 1x1 map."""
    trunk: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        linear1=nn.Linear(channels * size**2, 128),
        relu1=nn.ReLU(),
        linear2=nn.Linear(128, 128),
        relu2=nn.ReLU(),
        unflatten=nn.Unflatten(1, (128, 1, 1)),
    )
    return nn.Sequential(trunk), nn.Flatten(), 128


def _lenet(channels: int, size: int) -> _Parts:
    """LeNet-5 with ReLU and max pooling; the head holds its two hidden linear layers."""
    trunk: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 6, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
    )
    head: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        linear1=nn.Linear(16 * (((size - 4) // 2 - 4) // 2) ** 2, 120),
        relu1=nn.ReLU(),
        linear2=nn.Linear(120, 84),
        relu2=nn.ReLU(),
    )
    return nn.Sequential(trunk), nn.Sequential(head), 84


@dataclass(frozen=True)
class _Architecture:
    """How a named network is built, and the image sizes it takes: multiples of one number, from the smallest up."""

    build: Callable[..., _Parts]
    multiple: int
    smallest: int = 0
    """Image side, in pixels, that leaves a 1x1 feature map; defaults to the multiple itself."""

    def takes(self, size: int) -> bool:
        """Whether the network can be built for images of this side."""
        return size >= (self.smallest or self.multiple) and size % self.multiple == 0

    def check_size(self, name: str, size: int) -> None:
        if not self.takes(size):
            first, m = self.smallest or self.multiple, self.multiple
            sides = f"a side that is a multiple of {m} ({first}, {first + m}, {first + 2 * m}, ...)"
            fitting = [each for each, other in _ARCHITECTURES.items() if other.takes(size)]
            remedy = f"; {', '.join(fitting)} {'take' if len(fitting) > 1 else 'takes'} it" if fitting else ""
            raise ValueError(f"{name} takes square images of {sides}, got image_size {size}{remedy}")


_ALEXNET = ((128, 5), None, (192, 5), None, (256, 3), (192, 3), (192, 3), None)

_VGG11 = ((64, 3), None, (128, 3), None, (256, 3), (256, 3), None, (512, 3), (512, 3), None, (512, 3), (512, 3), None)

_ARCHITECTURES = {
    "convnet1": _Architecture(partial(_convnet, depth=1), 2),
    "convnet2": _Architecture(partial(_convnet, depth=2), 4),
    "convnet3": _Architecture(partial(_convnet, depth=3), 8),
    "convnet4": _Architecture(partial(_convnet, depth=4), 16),
    "alexnet": _Architecture(partial(_in_a_row, layers=_ALEXNET, norm=None), 8),
    "vgg11": _Architecture(partial(_in_a_row, layers=_VGG11, norm=NormReLU), 32),
    "resnet18": _Architecture(partial(_resnet18, norm=NormReLU), 32),
    "mlp": _Architecture(_mlp, 1),
    "lenet": _Architecture(_lenet, 4, smallest=16),
    "convnet3-bn": _Architecture(partial(_convnet, depth=3, batch_norm=True), 8),
    "convnet4-bn": _Architecture(partial(_convnet, depth=4, batch_norm=True), 16),
    "alexnet-bn": _Architecture(partial(_in_a_row, layers=_ALEXNET, norm=nn.BatchNorm2d), 8),
    "vgg11-bn": _Architecture(partial(_in_a_row, layers=_VGG11, norm=nn.BatchNorm2d), 32),
    "resnet18-bn": _Architecture(partial(_resnet18, norm=nn.BatchNorm2d), 32),
}

NETWORKS = tuple(_ARCHITECTURES)
"""Names that ``build_network`` accepts."""


def build_network(
    name: str,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    channels: int = 3,
    width: int | None = None,
    generator: torch.Generator | None = None,
) -> Network:
    """Builds a network with newly initialised parameters (PyTorch's default distribution).

    Args:
        name: one of ``NETWORKS``; case, dashes and underscores do not matter, and ``ConvNet`` is convnet3.
        num_classes: number of logits.
        image_size: side of the square images: a multiple of 2^d for a ConvNet of depth d, of 8 for AlexNet, of 32 for
            VGG11 and ResNet18, of 4 (16 or more) for LeNet; any side for the MLP.
        channels: channels of the images.
        width: channels of every ConvNet block, 128 if ``None``; other networks have no width.
        generator: draws the parameters; the network is built on its device, and the global random state is not
            touched. With ``None``, PyTorch initialises the network on the CPU from the global random state.

    Raises:
        ValueError: for an unknown name, an image size that the network does not take, a width for a network without
            one, or a number below 1.
    """
    name = network_name(name)
    if generator is None:
        return _assembled(name, num_classes, image_size, channels, width, device="cpu")
    # The meta device holds no values, which avoids initialising every parameter twice.
    network = empty_network(name, num_classes=num_classes, image_size=image_size, channels=channels, width=width)
    network.to_empty(device=generator.device)
    draw_parameters_(network, generator)
    return network


def _assembled(name: str, num_classes: int, image_size: int, channels: int, width: int | None, device: str) -> Network:
    """The network with PyTorch's initialisation on the CPU, or without values on the meta device.

    Raises:
        ValueError: as `build_network`.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose one of {', '.join(NETWORKS)}{near(name, NETWORKS)}")
    architecture = _ARCHITECTURES[name]
    architecture.check_size(name, image_size)
    if width is not None and not name.startswith("convnet"):
        raise ValueError(f"only ConvNets have a width; omit width for {name} (got {width})")
    for label, number in (("num_classes", num_classes), ("channels", channels), ("width", width)):
        if number is not None and number < 1:
            raise ValueError(f"{label} must be at least 1, got {number}")
    widths = {} if width is None else {"width": width}
    with torch.device(device):
        trunk, head, features = architecture.build(channels, image_size, **widths)
        classifier = nn.Linear(features, num_classes)
    return Network(trunk, head, classifier, name=name, image_size=image_size, channels=channels)


def empty_network(name: str, *, num_classes: int, image_size: int, channels: int, width: int | None = None) -> Network:
    """A network without values, on the meta device; takes milliseconds and draws no random numbers.

    Args:
        name: one of ``NETWORKS``.
        num_classes: number of logits.
        image_size: side of the square images.
        channels: channels of the images.
        width: channels of every ConvNet block.

    Raises:
        ValueError: as `build_network`.
    """
    return _assembled(name, num_classes, image_size, channels, width, device="meta")


@torch.no_grad()
def draw_parameters_(network: nn.Module, generator: torch.Generator) -> None:
    """Draws all parameters again, in place and on their device: a new random network without building one.

    The distribution is PyTorch's default: weights and biases of convolutions and linear layers are uniform in
    +-1/sqrt(fan_in), norms have weight 1 and bias 0; the running statistics of batch norm are reset.

    Args:
        network: any network of convolutions, linear layers, group and batch norms.
        generator: random source on the network's device; its state determines the values.

    Raises:
        ValueError: if the generator is on another kind of device than a parameter.
        TypeError: if a module holds parameters of any other kind.
    """
    for module in network.modules():
        parameters = list(module.parameters(recurse=False))
        if parameters and parameters[0].device.type != generator.device.type:
            raise ValueError(
                f"the network is on {parameters[0].device} and the generator on {generator.device}; "
                f"pass torch.Generator({parameters[0].device.type!r})"
            )
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in parameters:
                parameter.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.reset_parameters()
        elif parameters:
            raise TypeError(
                f"draw_parameters_ supports convolutions, linear layers and norms, not {type(module).__name__}"
            )
