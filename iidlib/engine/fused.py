"""Instance norm, ReLU and pooling as one function, compiled where a compiler is found."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iidlib.engine import kernels

__all__ = ["compiler_available", "norm_relu_pool"]

logger = logging.getLogger("iidlib")


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm, affine, ReLU and 2x2 average pooling, as one function that a compiler can fuse.

    Equal to ``avg_pool2d(relu(group_norm(x, K, weight, bias, eps)), 2)`` with one group a channel.

    Args:
        x: [B, K, H, W], H and W even or odd (odd edges are dropped, as average pooling does).
        weight: [K].
        bias: [K].
        eps: added to the variance.

    Returns:
        [B, K, H // 2, W // 2], in x's memory format and dtype; half precision is computed in float32.
    """
    kept, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    # two passes: compiled, they are vectorised, and take half the time of var_mean's one
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    scale = torch.rsqrt(variance + eps) * weight[:, None, None]
    shift = bias[:, None, None] - mean * scale
    return torch.nn.functional.avg_pool2d(torch.relu(x * scale + shift), 2).to(kept)


@functools.cache
def compiler_available() -> bool:
    """Whether torch.compile can make CPU kernels here: a C++ compiler is found and works, and has a private folder."""
    if kernels.refusal():
        return False
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception:
        return False
    return True


def set_torch() -> None:
    """Sets what the compiled kernel needs of torch's compiler, in the whole process; does nothing where it is set.

    Where torch has no folder for compiled code in which nobody else can write, nothing is compiled, and nothing is set.
    """
    if kernels.refusal():  # also names that folder before torch makes one of its own
        return
    import torch._dynamo.config
    import torch._functorch.config

    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    if dynamo.force_parameter_static_shapes:
        # parameters count as static otherwise: a graph for each width, until dynamo's limit ends compilation altogether
        _set_for_all_threads(dynamo, "force_parameter_static_shapes", False)
    if functorch.donated_buffer:
        # each term's own gradient is logged, so a graph may be walked backward more than once
        _set_for_all_threads(functorch, "donated_buffer", False)


def _set_for_all_threads(config: Any, name: str, value: object) -> None:
    """Sets a value of one of torch's modules of settings.

    Newer versions of torch set it for the current thread only, while a backward pass, which looks at it too, may run in
    another thread, as it does on CUDA. What a thread finds that has set nothing is the default.
    """
    setattr(config, name, value)
    entry = getattr(config, "_config", {}).get(name)
    if entry is not None and hasattr(entry, "default"):
        entry.default = value


class _Compiled:
    """A function compiled at its first call, once for all shapes; the plain one if compilation is refused or fails.

    Attributes:
        broken: whether compilation was refused or has failed.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._plain = function
        self.broken = bool(kernels.refusal())
        # one graph serves every width, size and batch; static ones, a little faster, would compile for minutes
        self._compiled = torch.compile(function, dynamic=True)

    def __call__(self, *arguments: object) -> Tensor:
        if not self.broken:
            set_torch()
            try:
                return self._compiled(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.broken = True
                logger.warning("torch.compile failed (%s); going on uncompiled", str(error).splitlines()[0])
        return self._plain(*arguments)


@functools.cache
def compiled_norm_relu_pool() -> _Compiled:
    """The compiled kernel, made once a process."""
    return _Compiled(norm_relu_pool)
