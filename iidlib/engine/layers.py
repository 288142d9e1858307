"""C++ kernels for single layers on a CPU, with gradients: what ResNet18 and VGG11 consist of.

``layers.cpp`` contains them; they are built together with those of a ConvNet's block (`engine.kernels`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iidlib.engine.kernels import FEW_CHANNELS, TILE, Packed, Packing, call, library, supported

__all__ = ["FusedNorm", "WinogradConv"]

WIDE = 32
"""Channels that the norm's kernel processes together."""


def _convolved(x: Tensor, packed: Packed, width: int) -> Tensor:
    out = torch.empty((len(x), width, *x.shape[2:]), memory_format=torch.channels_last)
    call(library().winograd_convolve, x, (len(x), x.shape[2], x.shape[1], width), packed.forward, out)
    return out


class _Convolution(torch.autograd.Function):
    """The convolution, differentiable in x and weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, packed: Packed) -> Tensor:
        # x is only needed for the gradient of the weights
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.packed = packed
        return _convolved(x, packed, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolved(grad, ctx.packed.adjoint, weight.shape[1])
        if ctx.needs_input_grad[1]:
            one, zero = [1, 1], [0, 0]
            _, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, one, one, one, False, zero, 1, [False, True, False]
            )
        return grad_x, grad_weight, None


class WinogradConv:
    """3x3 convolution with stride 1 and padding 1, without bias, by Winograd's algorithm, with gradients.

    Equal to ``conv2d(x, weight, padding=1)`` up to rounding, 2e-6 of the norm. The values of an image depend neither on
    the rest of the batch nor on the number of threads. Second derivatives are not supported. Packed weights are cached
    until the weights change.
    """

    def __init__(self) -> None:
        self._pack = Packing()

    @staticmethod
    def fits(x: Tensor, weight: Tensor) -> bool:
        """Whether the kernel supports inputs [B, K, H, W] and weights [K_out, K, 3, 3]."""
        if weight.is_inference() or not supported(x, weight) or weight.shape[1] <= FEW_CHANNELS:
            return False
        block, side = library().block(), x.shape[2]
        return side % TILE == 0 and x.shape[3] == side > 0 < len(x) and not any(k % block for k in weight.shape[:2])

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Maps [B, K, H, H] to [B, K_out, H, H] in channels-last format; only for inputs that `fits` accepts.

        Args:
            x: images or feature maps.
            weight: [K_out, K, 3, 3].
        """
        packed, x = self._pack(weight), x.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _Convolution.apply(x, weight, packed)
        return _convolved(x, packed, len(weight))


def _normalised(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """The output, and mean and inverse deviation of each image's channels, [2, B, K]."""
    out, moments = torch.empty_like(x, memory_format=torch.channels_last), torch.empty(2, *x.shape[:2])
    call(library().norm_relu_forward, x, _sizes(x, relu), weight, bias, eps, residual, out, moments)
    return out, moments


def _sizes(x: Tensor, relu: bool) -> tuple[int, int, int, int]:
    return len(x), x.shape[2] * x.shape[3], x.shape[1], int(relu)


class _Norm(torch.autograd.Function):
    """The norm with residual and ReLU, differentiable in all its inputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool
    ) -> Tensor:
        out, moments = _normalised(x, weight, bias, eps, residual, relu)
        # without a residual, the output before ReLU is computed again instead
        ctx.save_for_backward(x, weight, bias, out if relu and residual is not None else None, moments)
        ctx.relu = relu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, out, moments = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual, *_ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        grad_norm = torch.empty(2, *x.shape[:2])
        grad_residual = grad if needs_residual else None
        if needs_residual and ctx.relu:
            grad_residual = torch.empty_like(grad_x)
        call(
            library().norm_relu_backward,
            x,
            _sizes(x, ctx.relu),
            weight,
            bias,
            out,
            moments,
            grad,
            grad_x,
            grad_norm[0],
            grad_norm[1],
            grad_residual if ctx.relu else None,
        )
        return (
            grad_x if needs_x else None,
            grad_norm[0].sum(0) if needs_weight else None,
            grad_norm[1].sum(0) if needs_bias else None,
            grad_residual,
            None,
            None,
        )


class FusedNorm:
    """Instance norm, an optional residual and an optional ReLU in one kernel, with gradients.

    Equal to `engine.norm_relu` up to rounding. The values of an image depend neither on the rest of the batch nor on
    the number of threads. Second derivatives are not supported.
    """

    @staticmethod
    def fits(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> bool:
        """Whether the kernel supports maps [B, K, H, W], a norm's weight [K], and a residual like x."""
        tensors = (x, weight) if residual is None else (x, weight, residual)
        alike = residual is None or residual.shape == x.shape
        return supported(*tensors) and alike and x.shape[1] % WIDE == 0 and x.numel() > 0

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None, relu: bool = True
    ) -> Tensor:
        """Maps [B, K, H, W] to the same shape in channels-last format; only for inputs that `fits` accepts.

        Args:
            x: maps before the norm.
            weight: [K].
            bias: [K].
            eps: added to the variance.
            residual: added after the norm, [B, K, H, W], or None.
            relu: whether ReLU follows.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        inputs = (x, weight, bias, residual)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs if tensor is not None):
            return _Norm.apply(*inputs, eps, relu)
        return _normalised(x, weight, bias, eps, residual, relu)[0]
