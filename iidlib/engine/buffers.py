"""The draws of an iteration in one block of memory, which a thread fills ahead and one copy takes to the device.

Draws are functions of seed and iteration (`iidlib.rng`), so those of the next iteration can be made while the device is
busy with this one. Copies from pageable memory would wait for the device; copies from pinned memory do not.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from iidlib.engine.staging import Staging

__all__ = ["Fields", "LoadedAhead", "Packed"]

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of each tensor in a block, by name."""

ALIGNMENT = 16
"""Bytes that the address of each tensor in a block is a multiple of."""


def _padded(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor in a block."""
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


class Packed:
    """Tensors in one block of memory.

    Attributes:
        block: the block, uint8 [bytes].
    """

    def __init__(self, fields: Fields, block: Tensor | None = None, *, device: torch.device | str = "cpu") -> None:
        """Makes a view of the block for each tensor.

        Args:
            fields: the tensors.
            block: the block; None for a new one, filled with zeros.
            device: device of a new block.
        """
        if block is None:
            block = torch.zeros(sum(_padded(*form) for form in fields.values()), dtype=torch.uint8, device=device)
        self.block = block
        self._tensors: dict[str, Tensor] = {}
        offset = 0
        for name, (shape, dtype) in fields.items():
            size = math.prod(shape) * dtype.itemsize
            self._tensors[name] = block[offset : offset + size].view(dtype).view(shape)
            offset += _padded(shape, dtype)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a field, as a view of the block."""
        return self._tensors[name]


class LoadedAhead:
    """Buffers on a device that hold one iteration's draws at a time.

    On CUDA, a thread fills page-locked blocks one iteration ahead, see `staging.Staging`; elsewhere the buffers are
    filled directly. The thread makes no call to CUDA, which could break a capture in the main thread.

    Attributes:
        buffers: the buffers, at fixed addresses.
    """

    def __init__(
        self, fields: Fields, fill: Callable[[int, Packed], None], device: torch.device, *, ahead: bool | None = None
    ) -> None:
        """Allocates the buffers; nothing is drawn yet.

        Args:
            fields: the tensors to be drawn.
            fill: writes an iteration's draws into CPU tensors. It must be a function of the iteration alone, and must
                not refer to the owner of this object, which would then be freed late.
            device: device of the buffers.
            ahead: whether a thread fills blocks ahead; by default on CUDA only.
        """
        self._fields, self._fill = fields, fill
        self.buffers = Packed(fields, device=device)
        self._thread: ThreadPoolExecutor | None = None
        if device.type == "cuda" if ahead is None else ahead:
            self._staging = Staging(self.buffers.block)
            self._next: tuple[int, Future[None]] | None = None  # iteration, the filling of its block
            self._thread = ThreadPoolExecutor(1, "iidlib-draws")

    def load(self, iteration: int) -> None:
        """Brings an iteration's draws into the buffers, and starts to draw those of the next."""
        if self._thread is None:
            self._fill(iteration, self.buffers)
            return
        drawn, filled = self._next or self._start(iteration, self._thread)
        self._next = None  # what fails is not raised again by the next call
        if drawn != iteration:  # not the order of a run, as at the start and in tests
            wait([filled])
            _, filled = self._start(iteration, self._thread)
        filled.result()
        self._staging.send(len(self.buffers.block))
        self._next = self._start(iteration + 1, self._thread)

    def _start(self, iteration: int, thread: ThreadPoolExecutor) -> tuple[int, "Future[None]"]:
        """Starts to fill the next block, as soon as its last copy has ended."""
        block = Packed(self._fields, self._staging.block())
        return iteration, thread.submit(self._fill, iteration, block)

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
