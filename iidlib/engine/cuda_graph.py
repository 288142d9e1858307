"""Steps recorded as CUDA graphs, which launch hundreds of small kernels at once.

On a GPU a small kernel takes microseconds, less than Python needs to launch it. A step that works on tensors at fixed
addresses and never waits for the device can be captured once and replayed as a unit. A recording is used only if its
update agrees with that of the plain step, and recording leaves the state unchanged. If anything fails, the kernels are
launched one by one, and one warning gives the reason.
"""

import contextlib
import functools
import gc
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from iidlib.errors import first_line, shown_cause

__all__ = ["Recording", "can_record", "graphs", "recorded", "warn_no_graph"]

WARM_UPS = 3
"""Plain calls before a capture, during which libraries choose kernels and allocate workspaces."""

logger = logging.getLogger("iidlib")

_wanted = True
"""Whether the settings in force allow recordings, see `graphs`."""

_capture_failed = False
"""Whether a capture has failed in this process.

Before version 2.12, torch's allocator then assumes that the capture is still running, and the next capture, or emptying
the allocator's cache, raises an internal error. So a process does not try again.
"""

_alive: "weakref.WeakSet[Recording]" = weakref.WeakSet()
"""Recordings of this process. Those on one device share a memory pool and were captured on one stream, see `_stream`:
their steps never run at the same time and keep nothing in the pool, so the largest determines the memory of all.

One stream must mean one pool: in some versions of torch the end of a graph frees the workspaces of all graphs that were
captured on its stream, which harms none as long as the pool that they lie in is in use."""


@contextlib.contextmanager
def graphs(setting: Literal["auto", "off"]) -> Iterator[None]:
    """Within the block, no step is recorded if the setting, ``compute.graph``, is ``off``."""
    global _wanted
    before, _wanted = _wanted, setting == "auto"
    try:
        yield
    finally:
        _wanted = before


def can_record(device: torch.device) -> bool:
    """Whether steps can be recorded: on CUDA, unless settings forbid it or a capture has failed in this process."""
    return device.type == "cuda" and _wanted and not _capture_failed


def warn_no_graph(what: str, reason: object) -> None:
    """Warns that `what` runs without a CUDA graph, with the first line of `reason`."""
    rest = "; this process records no further steps" if _capture_failed else ""
    logger.warning(
        "no CUDA graph of %s (%s); launching kernels one by one, which is slower%s", what, first_line(reason), rest,
        exc_info=shown_cause(reason),
    )  # fmt: skip


class Recording:
    """A step as a CUDA graph; created and verified by `recorded`.

    Attributes:
        seconds: time that warming up and capturing took.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        """Calls the step WARM_UPS times and captures it once; changes made by the step remain.

        Raises:
            RuntimeError: if the step cannot be captured or does not fit into memory.
        """
        self._device = device
        started = time.perf_counter()
        _warm_up(step, device)
        # held until the capture ends, because a pool that lost its last graph before could not be captured into
        sharing = next((other for other in _alive if other._device == device), None)
        self._pool: Any = torch.cuda.graph_pool_handle() if sharing is None else sharing._pool
        self._graph = _captured(step, device, self._pool)
        self.seconds = time.perf_counter() - started
        _alive.add(self)

    def replay(self) -> None:
        """Repeats the step on the tensors it was recorded with."""
        self._graph.replay()


def recorded(
    step: Callable[[], None], updated: Sequence[Tensor], *, state: Sequence[Tensor] = (), tolerance: float, what: str
) -> Recording | None:
    """Records a step, verifies the recording against the plain step, and restores all tensors.

    Args:
        step: function that works on tensors at fixed addresses, draws no random numbers and does not wait for the
            device.
        updated: floating-point tensors that the step changes in place; their changes are compared.
        state: all other tensors it changes in place, such as momenta and running statistics.
        tolerance: largest relative difference, in norm, between the update by a replay and that by a plain call.
        what: name of the step in the warning.

    Returns:
        The recording. None, with one warning, if the step cannot be recorded or the recording differs. None without a
        warning where `can_record` is false: on other devices, by the settings, or after a failure that was reported.
    """
    device = updated[0].device
    if not can_record(device):
        return None
    with _restored([*updated, *state]) as restore:
        try:
            recording = Recording(step, device)
            difference, norm = _difference(recording.replay, step, updated, restore)
            if not 0 < norm < math.inf:
                raise RuntimeError(f"nothing to compare: the plain update has the norm {norm:g}")
            if not difference <= tolerance * norm:  # true for NaN
                raise RuntimeError(f"its update differs by {difference / norm:.1e}")
        except Exception as error:  # also of another version of torch: continue whatever fails
            warn_no_graph(what, error)
            return None
    return recording


@contextlib.contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Yields a function that restores the current values of the tensors; also called when the block ends."""
    before = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def restore() -> None:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)

    try:
        yield restore
    finally:
        restore()


def _difference(
    first: Callable[[], None], second: Callable[[], None], updated: Sequence[Tensor], restore: Callable[[], None]
) -> tuple[float, float]:
    """Norm of the difference between the updates by `first` and `second` from the restored state, and of the latter."""
    updates = []
    for step in (first, second):
        restore()
        before = [tensor.detach().clone() for tensor in updated]
        step()
        moved = zip(updated, before, strict=True)
        updates.append(torch.cat([(tensor.detach() - old).flatten() for tensor, old in moved]))
    return float((updates[0] - updates[1]).norm()), float(updates[1].norm())


# Uses of torch.cuda, replaced by the tests to run on a CPU


@functools.cache
def _stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """The stream of this process for warming up or for capturing on a device.

    Torch's allocator reuses a free block only on the stream that it was made for, so recordings can share memory only
    if all were captured on one stream. Warming up has another, because newer versions of torch free the workspaces of a
    stream together with a graph that was captured on it.
    """
    return torch.cuda.Stream(device)


def _warm_up(step: Callable[[], None], device: torch.device) -> None:
    """Calls a step on a side stream, as capturing requires."""
    side = _stream(device, "warm-up")
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step()
    finally:  # what is queued there may still write to what will be restored
        torch.cuda.current_stream(device).wait_stream(side)


def _captured(step: Callable[[], None], device: torch.device, pool: Any) -> torch.cuda.CUDAGraph:
    """Captures a call of a step on a side stream, with a memory pool that living graphs may share.

    ``torch.cuda.graph`` is not used: if a capture fails, its context manager (in torch 2.11) never leaves its stream,
    so all later work of the process would go to the stream of the failed capture.
    """
    global _capture_failed
    torch.cuda.synchronize(device)
    gc.collect()  # freeing a graph in a reference cycle during the capture would break it
    torch.cuda.empty_cache()
    graph, side = torch.cuda.CUDAGraph(), _stream(device, "capture")
    _capture_failed = True  # until this one ends well
    with torch.cuda.stream(side), _no_collection():
        _begin(graph, device, pool)
        try:
            step()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # raised after every broken capture; the first error has the reason
                _end(graph, device, pool)
            raise
        _end(graph, device, pool)
    return graph


def _begin(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Begins a capture."""
    try:
        graph.capture_begin(pool)
    except RuntimeError:  # the allocator may already send what is allocated to the pool
        _release(device, pool)
        raise


def _end(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Ends a capture; one that an error of the step has left can end well, too, which harms no later one."""
    global _capture_failed
    try:
        graph.capture_end()
    except RuntimeError:
        _release(device, pool)
        raise
    _capture_failed = False


def _release(device: torch.device, pool: Any) -> None:
    """Gives the memory of a broken capture back, which torch does itself only from version 2.12 on."""
    with contextlib.suppress(RuntimeError, AttributeError, TypeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)  # raises where torch has done it, or had not begun
        torch._C._cuda_releasePool(device.index, pool)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disables the garbage collector within the block."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
