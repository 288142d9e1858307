"""iidlib.engine.cuda_graph: only a recording that is the plain step is used; a failure costs speed and nothing else."""

import gc
import logging
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iidlib.engine import can_record, cuda_graph, graphs, recorded
from tests.fake_cuda import BROKEN, FakeCuda, fake_cuda

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> FakeCuda:
    caplog.set_level(logging.WARNING, "iidlib")
    return fake_cuda(monkeypatch)


class Descent:
    """A step with momentum on x, towards what lies in a buffer."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.x = torch.arange(6.0, device=device).view(2, 3).requires_grad_()
        self.velocity = torch.full((2, 3), 0.5, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.target = torch.ones(2, 3, device=device)
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        (gradient,) = torch.autograd.grad((self.x - self.target).pow(4).sum(), self.x)
        with torch.no_grad():
            self.velocity.mul_(0.9).add_(gradient)
            self.x.sub_(self.velocity, alpha=0.01)
            self.count.add_(1)

    @property
    def state(self) -> list[Tensor]:
        return [self.velocity, self.count]

    def values(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (self.x, *self.state)]


def record(step: Descent, form: Callable[[], None] | None = None, **changes: object) -> cuda_graph.Recording | None:
    settings = {"state": step.state, "tolerance": 1e-2, "what": "the step"} | changes
    return recorded(form or step, [step.x], **settings)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


def raising(text: str, kind: type[BaseException] = RuntimeError) -> Callable[[], None]:
    def fail() -> None:
        raise kind(text)

    return fail


def test_a_replay_is_the_step_and_reads_what_the_buffers_hold_then(cuda, caplog):
    step, plain = Descent(), Descent()
    recording = record(step)
    assert recording is not None and recording.seconds > 0
    calls = step.calls
    for value in (1.0, -2.0, 5.0):
        for one in (step, plain):
            one.target.fill_(value)
        recording.replay()
        plain()
    assert same(step.values(), plain.values())
    assert step.calls == calls and not caplog.records


def test_warm_ups_come_before_the_capture_on_a_side_stream_of_their_own(cuda):
    step, streams, collects = Descent(), [], []

    def watched() -> None:
        streams.append((cuda.stream, cuda.capturing))
        collects.append(gc.isenabled())
        step()

    record(step, watched)
    warm, capture, compared = ("side 1", False), ("side 2", True), ("main", False)
    assert collects == [True] * cuda_graph.WARM_UPS + [False, True], "freeing a graph would break the capture"
    assert streams == [warm] * cuda_graph.WARM_UPS + [capture, compared]
    assert cuda.log == ["empty cache", "capture on side 2", "replay"] and cuda.stream == "main"


def test_recording_leaves_every_tensor_as_it_was_at_its_place(cuda):
    step = Descent()
    before, places = step.values(), [tensor.data_ptr() for tensor in (step.x, *step.state)]
    assert record(step) is not None
    assert same(step.values(), before)
    assert [tensor.data_ptr() for tensor in (step.x, *step.state)] == places


def failing_at(step: Descent, call: int, error: BaseException) -> Callable[[], None]:
    """The step, which raises half way through at a call."""

    def fail() -> None:
        step()
        if step.calls == call:
            raise error

    return fail


@pytest.mark.parametrize("call", [1, 3, 4, 5], ids=["warm-up", "last warm-up", "capture", "comparison"])
@pytest.mark.parametrize("error", [RuntimeError("no memory\nmore"), ValueError("no memory")], ids=["torch", "value"])
def test_a_failure_anywhere_restores_the_state_and_is_one_warning(cuda, caplog, call, error):
    step = Descent()
    before = step.values()
    assert record(step, failing_at(step, call, error)) is None
    assert same(step.values(), before)
    assert cuda.stream == "main" and not cuda.capturing and gc.isenabled()
    assert messages(caplog) == [
        "no CUDA graph of the step (no memory); launching kernels one by one, which is slower",
    ]
    assert record(Descent()) is not None and "release" not in cuda.log, "CUDA itself is sound"


CALLS = (
    "Stream", "wait_stream", "wait_stream", "graph_pool_handle", "synchronize", "collect", "empty_cache", "CUDAGraph",
    "Stream", "capture_begin", "capture_end", "replay",
)  # fmt: skip
"""What recording asks of CUDA and of the garbage collector, in order."""


def test_these_are_all_calls_of_a_recording(cuda, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_alive", weakref.WeakSet())  # private: no pool to share
    assert record(Descent()) is not None
    assert tuple(cuda.calls) == CALLS


@pytest.mark.parametrize("number", range(len(CALLS)), ids=[f"{n}-{name}" for n, name in enumerate(CALLS)])
def test_any_call_may_fail_and_training_continues_as_if_it_had_not_been_tried(cuda, caplog, monkeypatch, number):
    monkeypatch.setattr(cuda_graph, "_alive", weakref.WeakSet())
    step, plain = Descent(), Descent()
    cuda.fails_at = number
    assert record(step) is None
    assert same(step.values(), plain.values()), "the state is restored"
    assert cuda.stream == "main" and not cuda.capturing and gc.isenabled()
    captured = CALLS[number] in ("capture_begin", "capture_end")
    rest = "; this process records no further steps" if captured else ""
    assert messages(caplog) == [
        f"no CUDA graph of the step (CUDA error: {CALLS[number]}); launching kernels one by one, which is slower{rest}"
    ]
    for one in (step, plain):
        one()
    assert same(step.values(), plain.values())
    cuda.fails_at, before = None, len(cuda.calls)
    assert cuda.log.count("release") == captured, "torch 2.11 keeps the memory otherwise"
    assert (record(Descent()) is None) is captured, "a failed capture is the only one that ends recording"
    assert (len(cuda.calls) == before) is captured, "after one, nothing is asked of CUDA"


@pytest.mark.parametrize("call", [2, 4, 5])
def test_an_interruption_goes_through_and_restores_the_state(cuda, caplog, call):
    step = Descent()
    before = step.values()
    with pytest.raises(KeyboardInterrupt):
        record(step, failing_at(step, call, KeyboardInterrupt()))
    assert same(step.values(), before) and cuda.stream == "main" and not cuda.capturing and not caplog.records


def test_a_capture_that_breaks_at_its_end_leaves_its_stream(cuda, caplog):
    """As an operation that is not allowed: torch tells of it when the capture ends."""
    step = Descent()
    before, cuda.breaks = step.values(), raising(BROKEN)
    assert record(step) is None
    assert same(step.values(), before) and cuda.stream == "main"
    assert BROKEN in caplog.text


def test_a_step_that_waits_for_the_device_breaks_its_capture(cuda, caplog):
    step = Descent()
    before = step.values()

    def waiting() -> None:
        step()
        float(step.x.detach().sum())

    assert record(step, waiting) is None and same(step.values(), before)
    assert cuda.log[-1] == "release", "torch 2.11 keeps the memory otherwise"
    assert record(Descent()) is None and "this process records no further steps" in caplog.text


def test_of_two_errors_the_first_says_why(cuda, caplog):
    step = Descent()
    cuda.breaks = raising(BROKEN)
    record(step, failing_at(step, 4, RuntimeError("a copy that waits")))
    assert "a copy that waits" in caplog.text and BROKEN not in caplog.text


def test_after_a_failed_capture_a_process_records_no_more(cuda, caplog):
    cuda.breaks = raising(BROKEN)
    assert record(Descent()) is None
    cuda.breaks, cuda.log = lambda: None, []
    assert not cuda_graph.can_record(torch.device("cuda"))
    other = Descent()
    assert record(other) is None
    assert other.calls == 0 and cuda.log == [], "nothing of a later step may touch the allocator's capture"
    assert len(caplog.records) == 1, "said once per process"


def test_only_a_failed_capture_ends_recording(cuda, caplog):
    step = Descent()
    assert record(step, failing_at(step, 2, RuntimeError("no memory"))) is None
    assert record(Descent()) is not None
    assert len(caplog.records) == 1


def test_a_recording_that_differs_is_refused(cuda, caplog):
    step = Descent()
    before, cuda.wrong = step.values(), True
    assert record(step) is None
    assert same(step.values(), before)
    (message,) = messages(caplog)
    assert message.startswith("no CUDA graph of the step (its update differs by ")
    assert message.endswith("launching kernels one by one, which is slower")
    cuda.wrong = False
    assert record(Descent()) is not None, "recording as such is sound"


def test_the_tolerance_decides(cuda):
    step = Descent()

    def nearly() -> None:
        step()
        if cuda.capturing:
            with torch.no_grad():
                step.x.sub_(step.velocity, alpha=0.01 * 0.05)  # the same update and a twentieth of it

    assert record(step, nearly, tolerance=0.04) is None
    assert record(step, nearly, tolerance=0.06) is not None


def test_nan_is_refused(cuda, caplog):
    step = Descent()
    step.target.fill_(torch.nan)
    before = step.values()
    assert record(step) is None
    assert same(step.values(), before)
    assert messages(caplog) == [
        "no CUDA graph of the step (nothing to compare: the plain update has the norm nan); launching kernels one by "
        "one, which is slower"
    ]


def test_a_step_that_does_nothing_says_nothing_about_its_recording(cuda, caplog):
    step = Descent()
    assert record(step, lambda: None) is None
    assert "nothing to compare: the plain update has the norm 0" in caplog.text


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, AttributeError], ids=lambda kind: kind.__name__)
def test_whatever_fails_costs_speed_only_and_its_traceback_is_shown_on_request(cuda, caplog, monkeypatch, kind):
    """Another version of torch may fail with another error."""
    for asked in ("", "1"):
        monkeypatch.setenv("IID_DEBUG", asked)
        caplog.clear()
        step = Descent()
        before = step.values()
        assert record(step, raising("no such attribute", kind)) is None and same(step.values(), before)
        (said,) = caplog.records
        assert "no such attribute" in said.message and "\n" not in said.message
        assert ("Traceback" in caplog.text) is bool(asked)


def test_the_pool_of_a_recording_that_is_collected_meanwhile_is_in_use_until_the_next_is_captured(cuda, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_alive", weakref.WeakSet())
    step = Descent()
    first = record(step)
    pool, alive = first._pool, weakref.ref(first)
    cycle: list[object] = [first]
    cycle.append(cycle)
    del first, cycle
    seen = []

    def watched() -> None:
        seen.append(alive() is not None)
        step()

    second = record(step, watched)
    assert second._pool is pool and seen[: cuda_graph.WARM_UPS + 1] == [True] * (cuda_graph.WARM_UPS + 1)
    gc.collect()
    assert alive() is None, "and not longer"


def test_settings_can_forbid_recordings_within_a_block(cuda, caplog):
    with graphs("off"):
        assert record(Descent()) is None
        with graphs("auto"):
            assert record(Descent()) is not None
        with pytest.raises(OSError, match="within"), graphs("auto"):
            raise OSError("within")
        assert record(Descent()) is None
    assert record(Descent()) is not None
    assert not caplog.records, "it was asked for"


# Without the stand-in


def test_on_a_cpu_nothing_is_recorded_and_nothing_is_said(caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    step = Descent()
    assert not can_record(CPU) and record(step) is None
    assert step.calls == 0 and not caplog.records


@pytest.mark.gpu
def test_a_recording_on_a_gpu_is_the_step():
    step, plain = (Descent(torch.device("cuda")) for _ in range(2))
    before = step.values()
    recording = record(step)
    assert recording is not None and same(step.values(), before)
    for value in (1.0, -2.0, 5.0):
        for one in (step, plain):
            one.target.fill_(value)
        recording.replay()
        plain()
    torch.testing.assert_close(step.values(), plain.values())


@pytest.mark.gpu
def test_a_capture_that_breaks_on_a_gpu_leaves_a_process_that_continues():
    """In a process of its own, which records no more afterwards."""
    code = """
        import torch
        from iidlib.engine import can_record
        from tests.test_cuda_graph import Descent, record, same

        step, stream = Descent(torch.device("cuda")), torch.cuda.current_stream()

        def waits():
            step()
            if torch.cuda.is_current_stream_capturing():
                step.x.sum().item()

        before = step.values()
        assert record(step, waits) is None
        assert same(step.values(), before) and torch.cuda.current_stream() == stream
        step()
        assert not can_record(step.x.device) and bool(step.x.isfinite().all())
        torch.cuda.empty_cache()  # refused by torch 2.11 while it takes the capture for underway
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no CUDA graph of the step") == 1
