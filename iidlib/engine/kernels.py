"""C++ kernels for a ConvNet block on a CPU, with gradients: from convolution to pooling in the cache.

``kernels.cpp`` contains them and explains how they work; ``layers.cpp`` contains those of `engine.layers`. They are
built with torch's compiler settings at their first use, in about two seconds, and cached on disk in a private folder.
If that fails, computation is only slower.
"""

import ctypes
import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iidlib.engine.compiled import compiler_folder, load_verified
from iidlib.errors import first_line, shown_cause
from iidlib.files import cache_dir, user_path
from iidlib.private import private_dir

__all__ = ["TILE", "FusedBlock", "Packed", "Packing", "call", "library", "refusal", "supported"]

SOURCES = ("kernels.cpp", "layers.cpp")
"""C++ files of the library, in this folder; the second uses the first."""

FUNCTIONS = (
    "direct_forward", "direct_backward", "winograd_forward", "winograd_backward", "winograd_convolve",
    "norm_relu_forward", "norm_relu_backward",
)  # fmt: skip
"""Kernels of the library; none returns a value."""

FEW_CHANNELS = 4
"""Largest number of input channels convolved directly; above, Winograd's algorithm needs fewer products."""

TILE = 4
"""Side of an output tile of Winograd's algorithm; the image's side must be a multiple of it."""

_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""Transform of the weights for F(4x4, 3x3): the 6x3 matrix G of Lavin and Gray (CVPR 2016)."""

logger = logging.getLogger("iidlib")


@functools.cache
def refusal() -> str:
    """Sets a private folder for torch's compiled code; returns the reason if that is impossible, else an empty string.

    Must be called before torch builds or loads anything; a refusal is logged once. The folder is ``compiled`` in the
    cache, or the one the user has set for torch. The same rules hold for that one (`private_dir`), except that others
    may read it, since torch may have created it. By default torch uses a predictable name in the shared temporary
    folder and loads whatever anybody has put there.
    """
    variable = "TORCHINDUCTOR_CACHE_DIR"
    chosen = user_path(os.environ.get(variable, ""))
    # torch stores its own choice in the variable too
    by_torch = chosen.parent == Path(tempfile.gettempdir()) and chosen.name.startswith("torchinductor_")
    by_user = bool(os.environ.get(variable)) and not by_torch
    try:
        folder = private_dir(chosen, readable=True) if by_user else private_dir(cache_dir() / "compiled")
        folder = compiler_folder(folder, variable if by_user else "IID_CACHE")
        os.environ[variable] = str(folder)  # before the import, during which torch may create its folder
        from torch._inductor import config

        # torch stores these in the shared temporary folder regardless of the variable; not slower without them
        config.cpp_cache_precompile_headers = False
    except (OSError, RuntimeError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        logger.warning(
            "compiled code is neither built nor loaded: %s; continuing without it, which is slower; "
            "set %s to a folder that only you can write to",
            reason,
            variable if by_user else "IID_CACHE",
        )
        return reason
    return ""


@functools.cache
def library() -> Any:
    """The compiled kernels, built at the first call on a machine; None, with one warning, if they cannot be built."""
    if refusal():
        return None
    try:
        # one library, so that the layers share the parts of the blocks
        source = "\n".join(Path(__file__).with_name(name).read_text(encoding="utf8") for name in SOURCES)
        # contraction into fused multiply-adds, which torch disables, doubles the speed
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        built = load_verified(source, ("-ffp-contract=fast",), folder)
        built.block.restype = ctypes.c_long
        for name in FUNCTIONS:
            getattr(built, name).restype = None
        return built
    except Exception as error:  # torch internals, compiler and linker: continue whatever fails
        logger.warning(
            "cannot build the C++ kernels (%s); continuing without them, which is slower", first_line(error),
            exc_info=shown_cause(error),
        )  # fmt: skip
        return None


def _columns(weight: Tensor, block: int) -> Tensor:
    """[..., M, N] as [N/block, ..., M, block], with N zero-padded to a multiple of the block."""
    missing = -weight.shape[-1] % block
    padded = torch.nn.functional.pad(weight, (0, missing)) if missing else weight
    return padded.unflatten(-1, (-1, block)).movedim(-2, 0).contiguous()


def _transform(weight: Tensor) -> Tensor:
    """Winograd transform of weights [K_out, K_in, 3, 3], [36, K_in, K_out]."""
    g = weight.new_tensor(_WEIGHT)
    return torch.einsum("ak,oikl,bl->abio", g, weight, g).flatten(0, 1)


def _transform_backward(grad: Tensor) -> Tensor:
    """Gradient of the weights, [K_out, K_in, 3, 3], from that of their Winograd transform, [36, K_in, K_out]."""
    g = grad.new_tensor(_WEIGHT)
    return torch.einsum("ak,abio,bl->oikl", g, grad.unflatten(0, (6, 6)), g)


class Packed:
    """Weights of a convolution, [K_out, K_in, 3, 3], in the layouts that the kernels read."""

    def __init__(self, weight: Tensor, block: int) -> None:
        self.direct = weight.shape[1] <= FEW_CHANNELS
        self._block, self._weight = block, weight
        # one matrix [K_in*9, K_out], or 36 [K_in, K_out]
        self._matrix = weight.flatten(1).t() if self.direct else _transform(weight)
        self.forward = _columns(self._matrix, block)

    @functools.cached_property
    def backward(self) -> Tensor:
        """Packed weights for the gradient of the images."""
        columns = _columns(self._matrix.mT, self._block)
        if not self.direct:
            return columns
        # [taps/block, K_out, block] as [K_out/block, taps/block, block, block]
        return columns.unflatten(1, (-1, self._block)).transpose(0, 1).contiguous()

    @functools.cached_property
    def adjoint(self) -> "Packed":
        """Packed weights of the convolution that maps gradients of the output to those of the images."""
        return Packed(self._weight.flip(2, 3).transpose(0, 1), self._block)

    def empty_gradient(self, threads: int) -> Tensor:
        """Zeros for the gradient of the packed weights, one per thread."""
        shape = self.forward.shape if self.direct else self._matrix.shape
        return torch.zeros(threads, *shape)

    def gradient(self, packed: Tensor) -> Tensor:
        """Gradient of the weights, [K_out, K_in, 3, 3], summed over the threads' gradients."""
        total = packed.sum(0)
        if not self.direct:
            return _transform_backward(total)
        return total.transpose(1, 2).flatten(0, 1).unflatten(1, (-1, 3, 3))


class Packing:
    """Packs weights for the kernels, again only when they have changed."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, int, int] | None = None
        self._packed: Packed | None = None

    def __call__(self, weight: Tensor) -> Packed:
        """Packs weights [K_out, K_in, 3, 3]; the kernels must have been built."""
        known = self._of
        if self._packed is None or known is None or known[0] is not weight:
            fresh = True
        else:
            fresh = known[1:] != (weight.data_ptr(), weight._version)
        if fresh:
            self._packed = Packed(weight.detach(), library().block())
            self._of = weight, weight.data_ptr(), weight._version
        assert self._packed is not None
        return self._packed


def supported(*tensors: Tensor) -> bool:
    """Whether the kernels are built and take such tensors: float32 on a CPU, outside of ``torch.vmap`` and the like."""
    plain = all(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )
    return plain and library() is not None


def call(function: Any, *arguments: Tensor | Sequence[int] | float | None) -> None:
    """Calls a kernel with tensors as addresses, sizes as arrays, and the number of threads as the last argument."""
    given: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            given.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, float):
            given.append(ctypes.c_float(argument))
        elif argument is None:
            given.append(ctypes.c_void_p(None))
        else:
            given.append((ctypes.c_long * len(argument))(*argument))
    function(*given, ctypes.c_int(torch.get_num_threads()))


def _sizes(x: Tensor, weight: Tensor, packed: Packed) -> list[Sequence[int]]:
    shape = (len(x), x.shape[2], x.shape[1], len(weight))
    return [x.stride(), shape] if packed.direct else [shape]


def _forward(x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, packed: Packed) -> Tensor:
    side = x.shape[2] // 2
    out = torch.empty((len(x), len(weight), side, side), memory_format=torch.channels_last)
    kernels = library()
    function = kernels.direct_forward if packed.direct else kernels.winograd_forward
    call(function, x, *_sizes(x, weight, packed), packed.forward, norm_weight, norm_bias, eps, out)
    return out


class _Differentiable(torch.autograd.Function):
    """The block, differentiable in all its inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        packed: Packed,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, norm_weight, norm_bias)
        ctx.eps, ctx.packed = eps, packed
        return _forward(x, weight, norm_weight, norm_bias, eps, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, norm_weight, norm_bias = ctx.saved_tensors
        packed: Packed = ctx.packed
        kernels = library()
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_norm = torch.empty(2, len(x), len(weight))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            # the direct kernel writes one plane per channel
            layout = torch.contiguous_format if packed.direct else torch.channels_last
            grad_x = torch.empty(x.shape, memory_format=layout)
        if ctx.needs_input_grad[1]:
            grad_weight = packed.empty_gradient(torch.get_num_threads())
        call(
            kernels.direct_backward if packed.direct else kernels.winograd_backward,
            x,
            *_sizes(x, weight, packed),
            packed.forward,
            packed.backward if grad_x is not None else None,
            norm_weight,
            norm_bias,
            ctx.eps,
            grad,
            grad_norm[0],
            grad_norm[1],
            grad_x,
            grad_weight,
        )
        return (
            grad_x,
            None if grad_weight is None else packed.gradient(grad_weight),
            torch.zeros_like(bias) if ctx.needs_input_grad[2] else None,  # the norm cancels the bias
            grad_norm[0].sum(0) if ctx.needs_input_grad[3] else None,
            grad_norm[1].sum(0) if ctx.needs_input_grad[4] else None,
            None,
            None,
        )


class FusedBlock:
    """3x3 convolution, instance norm, ReLU and 2x2 average pooling of one block, with gradients.

    Equal to the separate operations up to rounding, 2e-6 of the norm. The values of an image depend neither on the rest
    of the batch nor on the number of threads. The convolution's bias is skipped, since the norm cancels it, and its
    gradient is zero. Second derivatives are not supported. Packed weights are cached until the weights change.
    """

    def __init__(self) -> None:
        self._pack = Packing()

    @staticmethod
    def fits(x: Tensor, weight: Tensor) -> bool:
        """Whether the kernels support a block with inputs [B, K, H, W] and weights [K_out, K, 3, 3]."""
        if weight.is_inference() or not supported(x, weight):
            return False
        block, side = library().block(), x.shape[2]
        direct = x.shape[1] <= FEW_CHANNELS and side % 2 == 0
        winograd = x.shape[1] % block == 0 and side % TILE == 0
        return (direct or winograd) and weight.shape[0] % block == 0 and x.shape[3] == side > 0 < len(x)

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, eps: float
    ) -> Tensor:
        """Maps [B, K, H, H] to [B, K_out, H/2, H/2] in channels-last format; only for inputs that `fits` accepts.

        Args:
            x: images or feature maps.
            weight: convolution's weight, [K_out, K, 3, 3].
            bias: convolution's bias, [K_out], or None; has no effect.
            norm_weight: norm's weight, [K_out].
            norm_bias: norm's bias, [K_out].
            eps: added to the variance.
        """
        packed = self._pack(weight)
        if not packed.direct:
            x = x.contiguous(memory_format=torch.channels_last)
        inputs = (x, weight, bias, norm_weight, norm_bias)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs if tensor is not None):
            return _Differentiable.apply(*inputs, eps, packed)
        return _forward(x, weight, norm_weight, norm_bias, eps, packed)
