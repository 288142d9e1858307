"""Instance norm, ReLU and pooling as one function, compiled where a compiler is found."""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from iidlib.engine import kernels

__all__ = ["compiler_available", "norm_relu_pool"]

log = logging.getLogger("iidlib")


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
        # parameters count as static otherwise: a graph for each width, until dynamo's limit ends compilation altogether
        torch._dynamo.config.force_parameter_static_shapes = False
        # each term's own gradient is logged, so a graph may be walked backward more than once
        torch._functorch.config.donated_buffer = False
        # says on stderr that CUDA headers without a GPU were found, which is of no interest to a CPU kernel
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def __call__(self, *arguments: object) -> Tensor:
        if not self.broken:
            try:
                return self._compiled(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.broken = True
                log.warning("torch.compile failed (%s); going on uncompiled", str(error).splitlines()[0])
        return self._plain(*arguments)


@functools.cache
def compiled_norm_relu_pool() -> _Compiled:
    """The compiled kernel, made once a process."""
    return _Compiled(norm_relu_pool)
