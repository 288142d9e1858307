"""Steps recorded as CUDA graphs: hundreds of small kernels, launched as one. The library's one recorder.

On a GPU a small kernel takes microseconds, and Python needs longer to launch it. A step that works on tensors at fixed
addresses and never waits for the device can be captured once and replayed as a whole. A recording is used only after
its update was found to be that of the plain step, and recording never changes the state: whatever goes wrong, the step
goes on kernel by kernel, and one warning says why.
"""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Recording", "can_record", "recorded", "warn_no_graph"]

WARM_UPS = 3
"""Plain calls before a capture, in which libraries choose kernels and allocate their workspaces."""

TIMED = 3
"""Replays by which several forms of a step are compared."""

logger = logging.getLogger("iidlib")

_capture_failed = False
"""Whether a capture has failed in this process.

Before version 2.12, torch's allocator then believes that the capture still runs, and the next capture, or emptying the
allocator's cache, raises an internal error. So a process has no second try.
"""


def can_record(device: torch.device) -> bool:
    """Whether steps can be recorded: on CUDA, as long as no capture has failed in this process."""
    return device.type == "cuda" and not _capture_failed


def warn_no_graph(what: str, reason: object) -> None:
    """Says in one warning that `what` runs without a CUDA graph, for the first line of `reason`."""
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    rest = "; this process records no further steps" if _capture_failed else ""
    logger.warning("no CUDA graph of %s (%s); going on with single kernels, slower%s", what, first, rest)


class Recording:
    """A step as a CUDA graph; made by `recorded`, which checks it.

    Attributes:
        form: the name of the form that was recorded, empty where the step has one form only.
    """

    def __init__(self, step: Callable[[], None], device: torch.device, form: str = "") -> None:
        """Calls the step WARM_UPS times and captures it once more; what the step changes stays changed.

        Raises:
            RuntimeError: if the step cannot be captured, or does not fit into memory.
        """
        self.form = form
        _warm_up(step, device)
        self._graph = _captured(step, device)

    def replay(self) -> None:
        """Does the step once more, on the tensors it was recorded with."""
        self._graph.replay()


def recorded(
    step: Callable[[], None] | Mapping[str, Callable[[], None]],
    updated: Sequence[Tensor],
    *,
    state: Sequence[Tensor] = (),
    plain: Callable[[], None] | None = None,
    tolerance: float,
    what: str,
) -> Recording | None:
    """Records a step, checks the recording against the plain step, and leaves all tensors as they were.

    Args:
        step: works on tensors at fixed addresses, draws nothing, and does not wait for the device. Or several forms of
            one step by name, of which the fastest that passes the check is kept.
        updated: floating-point tensors that the step changes in place; their change is what is compared.
        state: whatever else it changes in place, such as momenta and running statistics.
        plain: what a replay must agree with; the form that was recorded where it is not given.
        tolerance: largest norm-wise difference of the update by a replay from that by a plain call.
        what: names the step in the warning.

    Returns:
        None, with one warning, if no form can be recorded or every recording differs. None without a warning on a
        device other than CUDA, and after a capture has failed in this process, which was said then.
    """
    device = updated[0].device
    if not can_record(device):
        return None
    forms = {"": step} if callable(step) else step
    best: Recording | None = None
    fastest, problems = float("inf"), []
    with _restored([*updated, *state]) as restore:
        for name, form in forms.items():
            if not can_record(device):
                break
            try:
                recording = Recording(form, device, name)
                apart = _difference(recording.replay, plain or form, updated, restore)
                if not apart <= tolerance:  # nan is not
                    raise RuntimeError(f"its update differs by {apart:.1e}")
                seconds = _seconds(recording) if len(forms) > 1 else 0.0
            except (RuntimeError, ValueError) as error:  # too little memory is a RuntimeError, too
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                problems.append(f"{name}: {reason}" if name else reason)
            else:
                if seconds < fastest:
                    fastest, best = seconds, recording
    if best is None:
        warn_no_graph(what, "; ".join(problems))
    elif not can_record(device):
        logger.warning("a capture of %s failed (%s); this process records no further steps", what, "; ".join(problems))
    return best


@contextlib.contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Within the block, a function that gives the tensors the values they have now; it is called at the end as well."""
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
) -> float:
    """Norm-wise difference of the update by `first` from that by `second`, both from the restored state."""
    updates = []
    for step in (first, second):
        restore()
        before = [tensor.detach().clone() for tensor in updated]
        step()
        moved = zip(updated, before, strict=True)
        updates.append(torch.cat([(tensor.detach() - old).flatten() for tensor, old in moved]))
    return float((updates[0] - updates[1]).norm() / updates[1].norm())


def _seconds(recording: Recording) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(TIMED):
        recording.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


# What torch.cuda is asked for, and what stands in for it on a CPU in the tests


def _warm_up(step: Callable[[], None], device: torch.device) -> None:
    """Calls a step on a side stream, as recording asks for."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream(device).wait_stream(side)


def _captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Captures a call of a step on a side stream.

    Not by ``torch.cuda.graph``: if a capture breaks, that block (of torch 2.11) never leaves its stream, so that all
    that follows in the process would go to the stream of the broken capture.
    """
    global _capture_failed
    torch.cuda.synchronize(device)
    gc.collect()  # a graph that dies in a circle of objects during the capture would break it
    torch.cuda.empty_cache()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    _capture_failed = True  # until this one has ended well
    with torch.cuda.stream(side), _no_collection():
        graph.capture_begin()
        try:
            step()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # raised of every broken capture; the first error says why
                graph.capture_end()
            raise
        graph.capture_end()
    _capture_failed = False
    return graph


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Within the block, the garbage collector is off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
