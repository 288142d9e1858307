"""Rounding of a GPU's tensor cores on a CPU: operands of convolutions and matrix products with fewer bits.

In TF32 a GPU rounds the operands of a product to 10 bits of mantissa and adds up in float32; in bfloat16 it rounds them
to 7 bits and the result as well. With these modes a CPU shows differences that a tolerance has to allow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.watch import name_of

OPERANDS = {
    "convolution": (0, 1),
    "convolution_backward": (0, 1, 2),
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
}
"""Positions of the factors among the arguments of an operation."""

CONVOLUTIONS = ("convolution", "convolution_backward")


def rounded(x: Tensor, bits: int) -> Tensor:
    """A float32 tensor with mantissas of some bits: the nearest, of two the one that is larger in magnitude."""
    if x.dtype != torch.float32:
        return x
    dropped = 23 - bits
    integers = x.view(torch.int32)
    nearest = (integers + (1 << (dropped - 1))) & -(1 << dropped)
    return torch.where(x.isfinite(), nearest.view(torch.float32), x)


class Rounding(TorchDispatchMode):
    """Products within the block have rounded operands.

    Attributes:
        products: number of products that were rounded.
    """

    def __init__(self, bits: int, *, results: Sequence[str] = (), reverse: bool = False) -> None:
        """Describes the products of a GPU.

        Args:
            bits: bits of mantissa that operands have.
            results: names of operations whose results are rounded likewise.
            reverse: add up the channels of a convolution from the last to the first, as another kernel may.
        """
        super().__init__()
        self._bits, self._results, self._reverse = bits, results, reverse
        self.products = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, args = name_of(function), list(args)
        for position in OPERANDS.get(name, ()):
            args[position] = rounded(args[position], self._bits)
        self.products += name in OPERANDS
        if self._reverse and name == "convolution" and args[8] == 1:
            args[:2] = args[0].flip(1), args[1].flip(1)
        out = function(*args, **(kwargs or {}))
        if name in self._results:
            out = tuple(each if each is None else rounded(each, self._bits) for each in _each(out))
            return out if len(out) > 1 else out[0]
        return out


def _each(out: Any) -> tuple[Any, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def tf32(*, reverse: bool = False) -> Rounding:
    """Products of a GPU in TF32."""
    return Rounding(10, reverse=reverse)


def bf16(*, reverse: bool = False) -> Rounding:
    """Products of a GPU in bfloat16, with maps that are kept in it."""
    return Rounding(7, results=CONVOLUTIONS, reverse=reverse)
