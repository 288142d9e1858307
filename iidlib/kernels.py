"""C++ kernels of a ConvNet's block for forward passes without gradient on a CPU: convolution to pooling in the cache.

``kernels.cpp`` holds them, and says how they work. They are built by torch's own compiler settings at their first use,
in about a second, and kept on disk; where that fails, nothing is lost but speed.
"""

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["FusedBlock", "library"]

FEW_CHANNELS = 4
"""Most channels in that are convolved directly; above, Winograd's algorithm multiplies less."""

TILE = 4
"""Outputs a side of a tile of Winograd's algorithm; the image's side must be a multiple of it."""

_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""The transform of weights for F(4x4, 3x3), the matrix G of Lavin and Gray (CVPR 2016), 6x3."""

log = logging.getLogger("iidlib")


@functools.cache
def library() -> Any:
    """The compiled kernels, built at the first call of a machine; None, said once, where they cannot be built."""
    try:
        from torch._inductor.codecache import CppCodeCache

        source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf8")
        # contraction into fused multiply-adds, which torch turns off, is half of the speed
        built = CppCodeCache.load(source, extra_flags=("-ffp-contract=fast",))
        built.block.restype = ctypes.c_long
        for function in (built.direct_block, built.winograd_block):
            function.restype = None
        return built
    except Exception as error:  # a private function of torch, a compiler and a linker: whatever goes wrong, go on
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("cannot build the C++ kernels (%s); going on without them, slower", reason)
        return None


def _direct_weight(weight: Tensor, block: int) -> Tensor:
    """[K_out, K_in, 3, 3] as [K_out/block, K_in*9, block]."""
    return weight.reshape(len(weight) // block, block, -1).transpose(1, 2).contiguous()


def _winograd_weight(weight: Tensor, block: int) -> Tensor:
    """[K_out, K_in, 3, 3], transformed, as [K_out/block, 36, K_in, block]."""
    g = weight.new_tensor(_WEIGHT)
    transformed = torch.einsum("ak,oikl,bl->oabi", g, weight, g)
    return transformed.reshape(len(weight) // block, block, 36, -1).permute(0, 2, 3, 1).contiguous()


class FusedBlock:
    """3x3 convolution, instance norm, ReLU and 2x2 average pooling of one block, without gradient.

    Equal to the operations one after the other up to rounding, 2e-6 of the norm; the values of an image depend neither
    on the others of the batch nor on the number of threads. The convolution's bias is left out, since the norm takes it
    away again. Packed weights are kept, and made anew when the weights have changed.
    """

    def __init__(self) -> None:
        self._of: tuple[Tensor, int, int] | None = None
        self._packed: Tensor | None = None

    @staticmethod
    def fits(x: Tensor, weight: Tensor) -> bool:
        """Whether a block with inputs [B, K, H, W] and weights [K_out, K, 3, 3] can be done this way."""
        if (
            x.device.type != "cpu"
            or x.dtype != torch.float32
            or weight.dtype != torch.float32
            or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            or torch._C._functorch.is_functorch_wrapped_tensor(x)
            or torch._C._functorch.is_functorch_wrapped_tensor(weight)
            or weight.is_inference()
        ):
            return False
        kernels = library()
        if kernels is None:
            return False
        block, side = kernels.block(), x.shape[2]
        direct = x.shape[1] <= FEW_CHANNELS and side % 2 == 0
        winograd = x.shape[1] % (block // 2) == 0 and side % TILE == 0
        return (direct or winograd) and weight.shape[0] % block == 0 and x.shape[3] == side > 0 < len(x)

    def __call__(self, x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
        """[B, K, H, H] to [B, K_out, H/2, H/2] in channels-last format; only for what `fits`."""
        kernels = library()
        batch, channels, side, _ = x.shape
        direct = channels <= FEW_CHANNELS
        packed = self._pack(weight, direct, kernels.block())
        x = x.detach() if direct else x.detach().contiguous(memory_format=torch.channels_last)
        norm_weight, norm_bias = norm_weight.detach().contiguous(), norm_bias.detach().contiguous()
        out = torch.empty((batch, len(weight), side // 2, side // 2), memory_format=torch.channels_last)
        sizes = [batch, side, channels, *(x.stride() if direct else ())]
        (kernels.direct_block if direct else kernels.winograd_block)(
            ctypes.c_void_p(x.data_ptr()),
            *map(ctypes.c_long, sizes),
            ctypes.c_void_p(packed.data_ptr()),
            ctypes.c_long(len(weight)),
            ctypes.c_void_p(norm_weight.data_ptr()),
            ctypes.c_void_p(norm_bias.data_ptr()),
            ctypes.c_float(eps),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out

    def _pack(self, weight: Tensor, direct: bool, block: int) -> Tensor:
        known = self._of
        if known is None or known[0] is not weight or known[1:] != (weight.data_ptr(), weight._version):
            pack = _direct_weight if direct else _winograd_weight
            self._packed = pack(weight.detach(), block)
            self._of = weight, weight.data_ptr(), weight._version
        assert self._packed is not None
        return self._packed
