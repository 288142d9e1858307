"""The draws of an iteration in one block of memory, which a thread fills ahead and one copy takes to the device.

Draws are functions of seed and iteration (`iidlib.rng`), so those of the next iteration can be made while the device is
busy with this one. Copies from pageable memory would wait for the device; copies from pinned memory do not.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["Fields", "LoadedAhead", "Packed"]

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of each tensor in a block, by name."""

ALIGNMENT = 16
"""Bytes that the address of each tensor in a block is a multiple of."""

BLOCKS = 3
"""Host blocks in use: one is filled, one waits for its copy, one is being copied."""


class Packed:
    """Tensors in one block of memory.

    Attributes:
        block: the block, uint8 [bytes].
    """

    def __init__(self, fields: Fields, device: torch.device, *, pinned: bool = False) -> None:
        """Allocates the block, filled with zeros.

        Args:
            fields: the tensors.
            device: device of the block.
            pinned: whether the block is in pinned host memory.
        """
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in fields.values()]
        padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        self.block = torch.zeros(sum(padded), dtype=torch.uint8, device=device, pin_memory=pinned)
        self._tensors: dict[str, Tensor] = {}
        offset = 0
        for (name, (shape, dtype)), size, step in zip(fields.items(), sizes, padded, strict=True):
            self._tensors[name] = self.block[offset : offset + size].view(dtype).view(shape)
            offset += step

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a field, as a view of the block."""
        return self._tensors[name]


class LoadedAhead:
    """Buffers on a device that hold one iteration's draws at a time.

    On CUDA, a thread fills pinned blocks one iteration ahead; elsewhere the buffers are filled directly. The thread
    makes no call to CUDA, which could break a capture in the main thread.

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
        self.buffers = Packed(fields, device)
        self._fill = fill
        self._thread: ThreadPoolExecutor | None = None
        if device.type == "cuda" if ahead is None else ahead:
            pinned = device.type == "cuda"
            self._blocks = [Packed(fields, torch.device("cpu"), pinned=pinned) for _ in range(BLOCKS)]
            self._copied: list[torch.cuda.Event | None] = [None] * BLOCKS
            self._next: tuple[int, int, Future[None]] | None = None  # iteration, block, its filling
            self._thread = ThreadPoolExecutor(1, "iidlib-draws")

    def load(self, iteration: int) -> None:
        """Brings an iteration's draws into the buffers, and starts to draw those of the next."""
        if self._thread is None:
            self._fill(iteration, self.buffers)
            return
        drawn, block, filled = self._next or self._start(iteration, 0)
        if drawn != iteration:  # not the order of a run, as at the start and in tests
            filled.result()
            drawn, block, filled = self._start(iteration, block)
        filled.result()
        self.buffers.block.copy_(self._blocks[block].block, non_blocking=True)
        copied = torch.cuda.Event(enable_timing=False)
        copied.record(torch.cuda.current_stream(self.buffers.block.device))
        self._copied[block] = copied
        self._next = self._start(iteration + 1, (block + 1) % BLOCKS)

    def _start(self, iteration: int, block: int) -> tuple[int, int, "Future[None]"]:
        """Starts to fill a block as soon as its last copy has ended."""
        assert self._thread is not None
        if (copied := self._copied[block]) is not None:
            copied.synchronize()  # rarely waits: that copy is from BLOCKS iterations ago
        return iteration, block, self._thread.submit(self._fill, iteration, self._blocks[block])

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
