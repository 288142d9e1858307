"""Instance norm with what follows it in a network, as PyTorch operators with Triton kernels on CUDA.

Two functions, both equal to their plain versions in `engine.fused` up to rounding: `norm_relu_pool`, the end of a
ConvNet's block, and `norm_relu`, with an optional residual, as in a ResNet. Where the kernels can run they are one
operator ``iidlib::norm_relu`` and its gradient, which autograd, ``torch.vmap``, autocast and CUDA graphs can use like
any of PyTorch's; elsewhere they are the plain versions. Second derivatives and ``torch.func.grad`` need the plain ones.

Under ``torch.vmap``, weights with a batch axis make the channels of all networks those of one wide map, [B, N*K, H, W].
In memory, vmap of a convolution returns its output like that, so nothing is copied, and one launch serves all networks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.engine import fused, triton_launch, triton_norm

__all__ = ["norm_relu", "norm_relu_pool", "runs_on", "without_bias"]


def runs_on(x: Tensor) -> bool:
    """Whether norms of a map belong to this module: on CUDA, where nothing is compiled by ``torch.compile``."""
    return triton_launch.runs_on(x)


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm, affine, ReLU and 2x2 average pooling, in one kernel on CUDA.

    Args:
        x: [B, K, H, W]; if H or W is odd, the last row or column is dropped, as in average pooling.
        weight: [K].
        bias: [K].
        eps: added to the variance.

    Returns:
        [B, K, H // 2, W // 2] in x's dtype, channels-last on CUDA; half precision is computed in float32.
    """
    if min(x.shape[-2:]) < 2 or not triton_norm.usable(x):  # the plain version says what is wrong with a single row
        return fused.norm_relu_pool(x, weight, bias, eps)
    return _norm_relu(x, weight, bias, None, eps, True, 2)[0]


def norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """Instance norm, affine, residual and ReLU, in one kernel on CUDA.

    Args:
        x: [B, K, H, W].
        weight: [K].
        bias: [K].
        eps: added to the variance.
        residual: added after the affine map, [B, K, H, W]; None for none.
        relu: whether to apply a ReLU at the end.

    Returns:
        [B, K, H, W] in x's dtype, channels-last on CUDA; half precision is computed in float32.
    """
    if not triton_norm.usable(x):
        return fused.norm_relu(x, weight, bias, eps, residual, relu)
    if residual is not None:
        residual = residual.to(x.dtype).expand_as(x)
    return _norm_relu(x, weight, bias, residual, eps, relu, 1)[0]


@torch.library.custom_op("iidlib::norm_relu", mutates_args=())
def _norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: int
) -> tuple[Tensor, Tensor]:
    """Output, and the statistics that the gradient needs: see `triton_norm.forward`, whose arguments these are."""
    done = None
    if triton_norm.usable(x):
        done = triton_norm.forward(x, weight, bias, residual, eps, relu=relu, pool=pool)
    return _plain(x, weight, bias, residual, eps, relu, pool) if done is None else done


@torch.library.custom_op("iidlib::norm_relu_backward", mutates_args=())
def _norm_relu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None, stats: Tensor, relu: bool, pool: int,
    needs_x: bool, needs_affine: bool, needs_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients: see `triton_norm.backward`, whose arguments these are."""
    done, needs = None, (needs_x, needs_affine, needs_residual)
    if triton_norm.usable(x):
        done = triton_norm.backward(grad, x, weight, bias, out, stats, relu=relu, pool=pool, needs=needs)
    return _plain_backward(grad, x, weight, bias, out, stats, relu, pool, needs) if done is None else done


# The same in separate operations: where the kernels fail, and in float64


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: int
) -> tuple[Tensor, Tensor]:
    if pool > 1:
        out = fused.norm_relu_pool(x, weight, bias, eps)
    else:
        out = fused.norm_relu(x, weight, bias, eps, residual, relu)
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = full.mean((2, 3))  # [B, K]
    variance = (full - mean[..., None, None]).square().mean((2, 3))
    return out.contiguous(memory_format=torch.channels_last), torch.stack([mean, torch.rsqrt(variance + eps)])


def _plain_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None, stats: Tensor, relu: bool, pool: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    height, width = x.shape[2:]
    mean, rstd = stats[..., None, None]
    normalised = (x.to(stats.dtype) - mean) * rstd
    g = grad.to(stats.dtype)
    if pool > 1:
        g = g.repeat_interleave(pool, 2).repeat_interleave(pool, 3) / pool**2
        g = F.pad(g, (0, width - g.shape[3], 0, height - g.shape[2]))  # of an odd side
    if relu:
        y = normalised * weight[:, None, None] + bias[:, None, None] if out is None else out
        g = torch.where(y <= 0, 0.0, g)
    sum_g, sum_gx = g.sum((2, 3), keepdim=True), (g * normalised).sum((2, 3), keepdim=True)  # [B, K, 1, 1]
    grad_x = (g - (sum_g + normalised * sum_gx) / (height * width)) * (rstd * weight[:, None, None])
    grad_x, grad_residual = (
        each.to(x.dtype).contiguous(memory_format=torch.channels_last) if needed else x.new_empty(0)
        for each, needed in ((grad_x, needs[0]), (g, needs[2]))
    )
    affine = torch.stack([sum_gx, sum_g])[..., 0, 0].sum(1)  # [2, K]
    return grad_x, affine if needs[1] else stats.new_empty(0), grad_residual


# Shapes, gradients and batch axes


@_norm_relu.register_fake
def _(x, weight, bias, residual, eps, relu, pool):
    batch, channels, height, width = x.shape
    stats = x.new_empty((2, batch, channels), dtype=torch.promote_types(x.dtype, torch.float32))
    return triton_norm.empty_last((batch, channels, height // pool, width // pool), x), stats


@_norm_relu_backward.register_fake
def _(grad, x, weight, bias, out, stats, relu, pool, needs_x, needs_affine, needs_residual):
    def given(needed: bool) -> Tensor:
        return triton_norm.empty_last(x.shape, x) if needed else x.new_empty(0)

    affine = stats.new_empty((2, x.shape[1]) if needs_affine else 0)
    return given(needs_x), affine, given(needs_residual)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, _, relu, pool = inputs
    out, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, out if residual is not None and relu else None, stats)
    ctx.relu, ctx.pool = relu, pool


def _gradients(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, weight, bias, out, stats = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    if grad is None:
        return (None,) * 7
    needs_affine = needs_weight or needs_bias
    grad_x = affine = grad_residual = None
    if needs_x or needs_affine or (needs_residual and ctx.relu):
        needs = needs_x, needs_affine, needs_residual and ctx.relu
        grad_x, affine, grad_residual = _norm_relu_backward(
            grad, x, weight, bias, out, stats, ctx.relu, ctx.pool, *needs
        )
    if not ctx.relu:
        grad_residual = grad
    return (
        grad_x if needs_x else None,
        affine[0].to(weight.dtype) if needs_weight and affine is not None else None,
        affine[1].to(bias.dtype) if needs_bias and affine is not None else None,
        grad_residual if needs_residual else None,
        None,
        None,
        None,
    )


_norm_relu.register_autograd(_gradients, setup_context=_remember)


def _folded(tensor: Tensor | None, dim: int | None, size: int, axis: int) -> Tensor | None:
    """A tensor whose batch axis, of a given size, is merged into another axis, in which it comes first."""
    if tensor is None:
        return None
    if dim is None:
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis:])
        return tensor.unsqueeze(axis).expand(shape).flatten(axis, axis + 1)
    return tensor.movedim(dim, axis).flatten(axis, axis + 1)


def _unfolded(tensor: Tensor, size: int, axis: int) -> Tensor:
    return tensor.unflatten(axis, (size, tensor.shape[axis] // size))


@_norm_relu.register_vmap
def _(info, in_dims, x, weight, bias, residual, eps, relu, pool):
    size, axis = info.batch_size, 0  # of shared weights: more images
    if in_dims[1] is not None or in_dims[2] is not None:  # of each network's weights: more channels
        axis = 1
        weight, bias = (_folded(each, dim, size, 0) for each, dim in zip((weight, bias), in_dims[1:3], strict=True))
    x, residual = _folded(x, in_dims[0], size, axis), _folded(residual, in_dims[3], size, axis)
    out, stats = _norm_relu(x, weight, bias, residual, eps, relu, pool)
    return (_unfolded(out, size, axis), _unfolded(stats, size, axis + 1)), (axis, axis + 1)


class _Unused(torch.autograd.Function):
    """A tensor as it is, and a parameter that has no effect on it, whose gradient is zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, unused: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (unused,) = ctx.saved_tensors
        return grad, torch.zeros_like(unused) if ctx.needs_input_grad[1] else None


def without_bias(tensor: Tensor, conv_bias: Tensor | None) -> Tensor:
    """A tensor that follows a convolution whose bias is left out since an instance norm cancels it.

    On CUDA, adding the convolution's bias would read and write the map once more. Its gradient is exactly zero, not
    missing, so that an optimiser treats it as before: weight decay still shrinks it.

    Args:
        tensor: the output of the convolution, or the bias of the norm.
        conv_bias: [K], or None.

    Returns:
        The same tensor, on which the bias seems to depend.
    """
    return tensor if conv_bias is None else _Unused.apply(tensor, conv_bias)
