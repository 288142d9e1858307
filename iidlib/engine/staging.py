"""Values that are made on the CPU and copied to a device buffer without waiting for the device."""

import torch
from torch import Tensor

__all__ = ["Staging"]


class Staging:
    """Two blocks of host memory that are filled alternately and copied to one buffer.

    On CUDA the blocks are page-locked, so that a copy is queued like a kernel and the host can fill one block while the
    device still works on the other. Locking memory takes longer than most copies, so the blocks are allocated once. An
    event after each copy tells when its block may be overwritten, and keeps the host from running more than two copies
    ahead of the device. On other devices a copy is complete when it returns.
    """

    def __init__(self, buffer: Tensor) -> None:
        """Allocates the blocks.

        Args:
            buffer: the buffer on the device, [R, ...]; receives R rows or fewer at a time.
        """
        self._buffer, self._next = buffer, 0
        queued = _copies_are_queued(buffer.device)
        self._blocks = [_host_memory(buffer, locked=queued) for _ in range(2)]
        self._copied = [torch.cuda.Event(enable_timing=False) for _ in range(2)] if queued else []

    def block(self) -> Tensor:
        """The block to fill next, [R, ...] on the CPU, once its last copy is complete."""
        if self._copied:
            self._copied[self._next].synchronize()  # returns at once if nothing has been recorded yet
        return self._blocks[self._next]

    def send(self, rows: int) -> None:
        """Copies the first rows of the block that was filled to the buffer, after all work queued before."""
        self._buffer[:rows].copy_(self._blocks[self._next][:rows], non_blocking=True)
        if self._copied:
            self._copied[self._next].record(torch.cuda.current_stream(self._buffer.device))
        self._next = 1 - self._next


# Replaced by the tests to run on a CPU


def _copies_are_queued(device: torch.device) -> bool:
    return device.type == "cuda"


def _host_memory(like: Tensor, *, locked: bool) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, pin_memory=locked)
