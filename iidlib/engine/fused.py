"""Instance norm, ReLU and pooling as one function, compiled if a compiler is available."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iidlib.engine import kernels
from iidlib.errors import first_line, shown_cause

__all__ = ["compiler_available", "norm_relu", "norm_relu_pool"]

logger = logging.getLogger("iidlib")


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm, affine, ReLU and 2x2 average pooling, as one function that a compiler can fuse.

    Equal to ``avg_pool2d(relu(group_norm(x, K, weight, bias, eps)), 2)`` with one group per channel.

    Args:
        x: [B, K, H, W]; if H or W is odd, the last row or column is dropped, as in average pooling.
        weight: [K].
        bias: [K].
        eps: added to the variance.

    Returns:
        [B, K, H // 2, W // 2], in x's memory format and dtype; half precision is computed in float32.
    """
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    # mean first, then variance: compiled, this is vectorised and takes half the time of var_mean
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    scale = torch.rsqrt(variance + eps) * weight[:, None, None]
    shift = bias[:, None, None] - mean * scale
    return torch.nn.functional.avg_pool2d(torch.relu(x * scale + shift), 2).to(dtype)


def norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """Instance norm, affine, then an optional residual and an optional ReLU.

    Equal to ``relu(group_norm(x, K, weight, bias, eps) + residual)`` with one group per channel; unlike ``group_norm``,
    it works under ``torch.vmap`` in every memory format, also in torch 2.11.

    Args:
        x: [B, K, H, W].
        weight: [K].
        bias: [K].
        eps: added to the variance.
        residual: added after the norm, [B, K, H, W], or None.
        relu: whether ReLU follows.

    Returns:
        [B, K, H, W], in x's memory format and dtype; half precision is computed in float32.
    """
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean((2, 3), keepdim=True)
    centred = x - mean
    variance = centred.square().mean((2, 3), keepdim=True)
    out = centred * (torch.rsqrt(variance + eps) * weight[:, None, None]) + bias[:, None, None]
    if residual is not None:
        out = out + residual
    return (torch.relu(out) if relu else out).to(dtype)


@functools.cache
def compiler_available() -> bool:
    """Whether torch.compile can build CPU kernels here: a working C++ compiler and a private folder are available."""
    if kernels.refusal():
        return False
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception:
        return False
    return True


def set_torch() -> None:
    """Sets the options of torch's compiler that the compiled kernel needs, for the whole process.

    Changes only options that differ, and nothing at all without a private folder for compiled code, since then nothing
    is compiled.
    """
    if kernels.refusal():  # also sets that folder before torch creates one of its own
        return
    import torch._dynamo.config
    import torch._functorch.config

    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    if dynamo.force_parameter_static_shapes:
        # otherwise parameters are static: one graph per width, until dynamo's limit stops all compilation
        _set_for_all_threads(dynamo, "force_parameter_static_shapes", False)
    if functorch.donated_buffer:
        # the gradient of each term is logged, so a graph may be traversed backward more than once
        _set_for_all_threads(functorch, "donated_buffer", False)
    if torch.cuda.is_available():
        import torch._inductor.config

        # otherwise each process times several ways to add up an image's pixels at a kernel's first launch, and may keep
        # another one than the last process
        _set_for_all_threads(torch._inductor.config, "deterministic", True)


def _set_for_all_threads(config: Any, name: str, value: object) -> None:
    """Sets an option in one of torch's configuration modules.

    Newer versions of torch set it for the current thread only, but a backward pass, which reads it too, may run in
    another thread, as on CUDA. A thread that has set nothing reads the default, so the default is changed as well.
    """
    setattr(config, name, value)
    entry = getattr(config, "_config", {}).get(name)
    if entry is not None and hasattr(entry, "default"):
        entry.default = value


class _Compiled:
    """A function compiled once for all shapes at its first call; runs uncompiled if compilation is refused or fails.

    Attributes:
        broken: whether compilation was refused or failed.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._plain = function
        self.broken = bool(kernels.refusal())
        # one graph for every width, size and batch; static graphs are slightly faster but compile for minutes
        self._compiled = torch.compile(function, dynamic=True)

    def __call__(self, *arguments: object) -> Tensor:
        if not self.broken:
            set_torch()
            try:
                return self._compiled(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.broken = True
                logger.warning(
                    "torch.compile failed (%s); continuing uncompiled, slower", first_line(error),
                    exc_info=shown_cause(error),
                )  # fmt: skip
        return self._plain(*arguments)


@functools.cache
def compiled_norm_relu_pool() -> _Compiled:
    """The compiled kernel, created once per process."""
    return _Compiled(norm_relu_pool)
