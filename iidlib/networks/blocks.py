"""The blocks that networks are made of, and the backends by which a ConvNet's block computes."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from iidlib.engine import FusedBlock, norm_relu_pool
from iidlib.engine.fused import compiled_norm_relu_pool

__all__ = ["BACKENDS", "ConvBlock", "conv_blocks", "instance_norm", "set_backend"]

BACKENDS = ("eager", "compiled", "fused")
"""Names of the ways in which a block can compute, for `set_backend`."""

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""What follows the convolution of a block: a function of x [B, K, H, W], weight [K], bias [K] and eps."""

_Module = TypeVar("_Module", bound=nn.Module)


class ConvBlock(nn.Module):
    """3x3 convolution, instance norm, ReLU, 2x2 average pooling: [B, K_in, H, H] -> [B, K, H/2, H/2].

    What follows the convolution is one function, so that other forms can take its place; ``norm`` only holds its
    parameters.

    Attributes:
        backend: how the block computes; `set_backend` changes it.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)
        self.use("eager")

    def use(self, backend: str | Kernel) -> None:
        """Computes with another backend from now on, as `set_backend` says."""
        self.backend = backend
        self._kernel: Kernel = norm_relu_pool
        if callable(backend):
            self._kernel = backend
        elif backend != "eager":
            self._kernel = compiled_norm_relu_pool()
        self._fused = FusedBlock() if backend == "fused" else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, K, H/2, H/2] of maps [B, K_in, H, H]."""
        if self._fused is not None and self._fused.fits(x, self.conv.weight):
            return self._fused(x, self.conv.weight, self.conv.bias, self.norm.weight, self.norm.bias, self.norm.eps)
        return self._kernel(self.conv(x), self.norm.weight, self.norm.bias, self.norm.eps)


def set_backend(network: _Module, backend: str | Kernel) -> _Module:
    """Chooses how the blocks of a ConvNet compute, in place; values change by rounding only.

    The blocks are `ConvBlock`; a network that has none stays as it is. Parameters, their names and their memory format
    do not change. Whether a compiler is there is not asked here: `prepare` does, and chooses.

    Args:
        network: any network.
        backend: one of ``BACKENDS``:

            - ``"eager"``: PyTorch's own operations, one after the other (`engine.norm_relu_pool`); the form that
              ``torch.vmap`` can look into, and that every network is built with;
            - ``"compiled"``: what follows the convolution as one kernel, made by ``torch.compile`` at the first call;
            - ``"fused"``: a block, convolution included, as one C++ kernel on a CPU where it fits
              (`engine.FusedBlock.fits`), and as ``"compiled"`` elsewhere.

            Or a function of your own in place of norm, ReLU and pooling: ``(x, weight, bias, eps)`` with x
            [B, K, H, W] to [B, K, H // 2, W // 2].

    Returns:
        The same network.

    Raises:
        ValueError: for an unknown backend; nothing is changed then.
    """
    if not callable(backend) and backend not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r}; choose {', '.join(BACKENDS)}, or pass a function (x, weight, bias, eps)"
        )
    for block in conv_blocks(network):
        block.use(backend)
    return network


def conv_blocks(network: nn.Module) -> list[ConvBlock]:
    """The blocks whose backend can be chosen, from the images on."""
    return [module for module in network.modules() if isinstance(module, ConvBlock)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, each with its norm: [B, K_in, H, H] -> [B, K, H/stride, H/stride]."""

    def __init__(self, channels: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=norm(width)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def instance_norm(width: int) -> nn.GroupNorm:
    """Instance norm of K channels, affine, as in the released code."""
    return nn.GroupNorm(width, width)
