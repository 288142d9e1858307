"""The building blocks of the networks, and the backends of those that normalise each image by itself."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iidlib.engine import FusedBlock, norm_ops, norm_relu, norm_relu_pool
from iidlib.engine.fused import compiled_norm_relu_pool
from iidlib.engine.layers import FusedNorm, WinogradConv

__all__ = [
    "BACKENDS", "Conv3x3", "ConvBlock", "NormReLU", "ResidualBlock", "conv_blocks", "replaceable", "set_backend",
]  # fmt: skip

BACKENDS = ("eager", "compiled", "fused")
"""Implementations of a block, for `set_backend`."""

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Everything after the convolution of a block: a function of x [B, K, H, W], weight [K], bias [K] and eps."""

NormKernel = Callable[[Tensor, Tensor, Tensor, float, Tensor | None, bool], Tensor]
"""Norm, residual and ReLU: a function of x [B, K, H, W], weight [K], bias [K], eps, the residual and whether ReLU."""

_Module = TypeVar("_Module", bound=nn.Module)


class ConvBlock(nn.Module):
    """3x3 convolution, instance norm, ReLU, 2x2 average pooling: [B, K_in, H, H] -> [B, K, H/2, H/2].

    Everything after the convolution is one replaceable function; ``norm`` only holds its parameters.

    Attributes:
        backend: implementation in use; `set_backend` changes it.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)
        self.use("eager")

    def use(self, backend: str | Kernel) -> None:
        """Switches to another backend, see `set_backend`."""
        self.backend = backend
        self._kernel: Kernel = norm_relu_pool
        if callable(backend):
            self._kernel = backend
        elif backend != "eager":
            self._kernel = compiled_norm_relu_pool()
        self._fused = FusedBlock() if backend == "fused" else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, K_in, H, H] to [B, K, H/2, H/2]."""
        if self.backend in ("compiled", "fused") and norm_ops.runs_on(x):
            x = F.conv2d(x, self.conv.weight, padding=1)  # adding the bias would read and write the whole map again
            bias = norm_ops.without_bias(self.norm.bias, self.conv.bias)
            return norm_ops.norm_relu_pool(x, self.norm.weight, bias, self.norm.eps)
        if self._fused is not None and self._fused.fits(x, self.conv.weight):
            return self._fused(x, self.conv.weight, self.conv.bias, self.norm.weight, self.norm.bias, self.norm.eps)
        return self._kernel(self.conv(x), self.norm.weight, self.norm.bias, self.norm.eps)


def set_backend(network: _Module, backend: str | Kernel) -> _Module:
    """Sets the backend of every `ConvBlock`, `NormReLU` and `Conv3x3` of a network, in place.

    Values change by rounding only. A network without such modules is left as it is. Parameters, their names and their
    memory format do not change. This function does not check for a compiler; `prepare` does, and chooses accordingly.

    Args:
        network: any network.
        backend: one of ``BACKENDS``:

            - ``"eager"``: separate PyTorch operations (`engine.norm_relu_pool`), the default; on a CPU the only
              backend that works under ``torch.vmap``;
            - ``"compiled"``: everything after the convolution as one kernel, built at the first call: by
              ``torch.compile``, or on CUDA by Triton (`engine.norm_ops`), which leaves out the convolution's bias;
            - ``"fused"``: the whole block, convolution included, as one C++ kernel on a CPU where it fits
              (`engine.FusedBlock.fits`), and ``"compiled"`` elsewhere.

            The layers of VGG11 and ResNet18 have C++ kernels for ``"fused"`` on a CPU and the same Triton kernel for
            both on CUDA; otherwise they are those of ``"eager"``.

            A function ``(x, weight, bias, eps)`` may replace norm, ReLU and pooling of the blocks of a ConvNet; it maps
            x [B, K, H, W] to [B, K, H // 2, W // 2].

    Returns:
        The same network.

    Raises:
        ValueError: for an unknown backend; the network is then unchanged.
    """
    if not callable(backend) and backend not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r}; choose {', '.join(BACKENDS)}, or pass a function (x, weight, bias, eps)"
        )
    if callable(backend):
        for block in conv_blocks(network):
            block.use(backend)
    else:
        for module in replaceable(network):
            module.use(backend)
    return network


def conv_blocks(network: nn.Module) -> list[ConvBlock]:
    """The blocks of a ConvNet, whose backend can be chosen, from input to output."""
    return [module for module in network.modules() if isinstance(module, ConvBlock)]


def replaceable(network: nn.Module) -> "list[ConvBlock | NormReLU | Conv3x3]":
    """All modules whose backend can be chosen, from input to output."""
    return [module for module in network.modules() if isinstance(module, ConvBlock | NormReLU | Conv3x3)]


class NormReLU(nn.GroupNorm):
    """Instance norm of K channels, affine, as in the released code, then an optional residual and an optional ReLU.

    Attributes:
        backend: implementation in use; `set_backend` changes it.
    """

    def __init__(self, width: int, *, relu: bool = True) -> None:
        super().__init__(width, width)
        self.relu = relu
        self.use("eager")

    def use(self, backend: str | NormKernel) -> None:
        """Switches to another backend, see `set_backend`, or to a function with the arguments of `engine.norm_relu`."""
        self.backend = backend
        self._kernel: NormKernel = backend if callable(backend) else norm_relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Maps [B, K, H, W], and a residual of the same shape, to the same shape."""
        if self.backend in ("compiled", "fused") and norm_ops.runs_on(x):
            return norm_ops.norm_relu(x, self.weight, self.bias, self.eps, residual, self.relu)
        fused = self.backend == "fused" and FusedNorm.fits(x, self.weight, residual)
        kernel = FusedNorm() if fused else self._kernel
        return kernel(x, self.weight, self.bias, self.eps, residual, self.relu)


class Conv3x3(nn.Conv2d):
    """3x3 convolution with stride 1 and padding 1, followed by a norm of each channel, which cancels its bias.

    Attributes:
        backend: implementation in use; `set_backend` changes it.
    """

    def __init__(self, channels: int, width: int, *, bias: bool = True) -> None:
        super().__init__(channels, width, 3, padding=1, bias=bias)
        self.use("eager")

    def use(self, backend: str) -> None:
        """Switches to another backend, see `set_backend`."""
        self.backend = backend
        self._fused = WinogradConv() if backend == "fused" else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, K_in, H, H] to [B, K, H, H]."""
        if self.backend != "eager" and norm_ops.runs_on(x):
            out = F.conv2d(x, self.weight, padding=1)  # adding the bias would read and write the whole map again
            return norm_ops.without_bias(out, self.bias)
        # weights in training change at every step, and transforming them takes longer than is saved
        training = torch.is_grad_enabled() and self.weight.requires_grad
        if self._fused is not None and not training and self._fused.fits(x, self.weight):
            out = self._fused(x, self.weight)
            return out if self.bias is None else out + self.bias[:, None, None]
        return super().forward(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, each with its norm: [B, K_in, H, H] -> [B, K, H/stride, H/stride]."""

    def __init__(self, channels: int, width: int, stride: int, norm: type[NormReLU] | type[nn.BatchNorm2d]) -> None:
        super().__init__()
        instance = norm is NormReLU
        if instance and stride == 1:
            self.conv1: nn.Module = Conv3x3(channels, width, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = norm(width)
        conv2 = Conv3x3(width, width, bias=False) if instance else nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2: nn.Module = conv2
        self.norm2 = norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            of_shortcut = NormReLU(width, relu=False) if instance else norm(width)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=of_shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, K_in, H, H] to [B, K, H/stride, H/stride]."""
        if isinstance(self.norm1, NormReLU):
            return self.norm2(self.conv2(self.norm1(self.conv1(x))), self.shortcut(x))
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))
