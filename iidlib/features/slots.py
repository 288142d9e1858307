"""The weights of many networks of one architecture, in rows of one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from iidlib.networks import Network

__all__ = ["Layout"]

ALIGNMENT = 16
"""Elements that the offset of each parameter in a row is a multiple of: 64 bytes in float32, as after an allocation."""


class Layout:
    """Positions of a network's parameters in a row of weights.

    A row holds every parameter in the order of its memory, so views of the row have the strides of the parameter and a
    kernel reads the same layout from either.

    Attributes:
        names: names of the parameters, in order.
        size: length P of a row, padding included.
    """

    def __init__(self, network: Network) -> None:
        """Takes the names and shapes of a network's parameters; their values are not used."""
        self.names = [name for name, _ in network.named_parameters()]
        self._shapes = [(p.shape, p.stride()) for p in network.parameters()]
        self._offsets: list[int] = []
        offset = 0
        for parameter in network.parameters():
            self._offsets.append(offset)
            offset += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self.size = offset

    def views(self, row: Tensor) -> list[Tensor]:
        """The parameters in a row, [P], as views of it."""
        places = zip(self._shapes, self._offsets, strict=True)
        return [torch.as_strided(row, *form, row.storage_offset() + offset) for form, offset in places]

    def bind(self, network: Network, row: Tensor) -> list[Tensor]:
        """Moves a network's parameters into a row, [P], keeping their values; returns the views."""
        views = self.views(row)
        for parameter, view in zip(network.parameters(), views, strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        return views

    def write(self, row: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copies one tensor per parameter into a row, [P]."""
        torch._foreach_copy_(self.views(row), list(tensors))
