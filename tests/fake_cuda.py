"""A stand-in for the few calls of ``torch.cuda`` that a recorder makes, so that recording runs on a CPU.

A capture is a `tape.Tape`, which freezes what a CUDA graph freezes. It fails as on a GPU if the step waits for the
device, draws random numbers or copies from the host, and also if it carries values from step to step that recording
does not restore; a replay fails if memory of the step has been freed. What a GPU alone can show is left to tests marked
``gpu``.
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from iidlib.distillation import captured
from iidlib.engine import cuda_graph
from iidlib.training import testing
from tests.tape import Tape
from tests.watch import address

BROKEN = "operation failed due to a previous error during capture"


class FakeCuda:
    """The device that the tests record on.

    A call that concerns a device must name it, since a process may use another than its current one.

    Attributes:
        device: the device.
        log: what it was asked for, in order.
        stream: the name of the current stream.
        breaks: called in each capture's end; raises where a capture shall break.
        wrong: whether a replay does the step twice.
        calls: names of the calls so far.
        fails_at: number of the call that raises, from 0; None for none.
        graphs: the graphs, in order of their captures.
        empty_cache_fails: whether a broken capture leaves the allocator as torch 2.11's, which refuses from then on.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.log: list[str] = []
        self.stream = "main"
        self.breaks: Callable[[], None] = lambda: None
        self.wrong = False
        self.calls: list[str] = []
        self.fails_at: int | None = None
        self.capturing = self.poisoned = False
        self.graphs: list[Graph] = []
        self.restored: set[int] = set()  # addresses of what recording restores
        self._streams = 0
        self._collect = gc.collect

    def check_device(self, device: torch.device | None) -> None:
        """Checks that a call names the device."""
        assert device == self.device, f"called for {device or 'the current device'}, not for {self.device}"

    def new_stream(self, device: torch.device | None = None) -> "Stream":
        self.check_device(device)
        self.called("Stream")
        self._streams += 1
        return Stream(f"side {self._streams}", self)

    def current_stream(self, device: torch.device | None = None) -> "Stream":
        self.check_device(device)
        return Stream(self.stream, self)

    def synchronize(self, device: torch.device | None = None) -> None:
        self.check_device(device)
        self.called("synchronize")

    def graph_pool_handle(self) -> object:
        self.called("graph_pool_handle")
        return object()

    def new_graph(self) -> "Graph":
        self.called("CUDAGraph")
        return Graph(self)

    def called(self, name: str) -> None:
        """Notes a call, and raises if it is the one to fail."""
        self.calls.append(name)
        if len(self.calls) - 1 == self.fails_at:
            raise RuntimeError(f"CUDA error: {name}")

    @contextlib.contextmanager
    def on(self, stream: "Stream") -> Iterator[None]:
        before, self.stream = self.stream, stream.name
        try:
            yield
        finally:
            self.stream = before

    def release(self, device: torch.device, pool: object) -> None:
        self.check_device(device)
        self.log.append("release")

    def collect(self) -> int:
        self.called("collect")
        return self._collect()

    def empty_cache(self) -> None:
        self.called("empty_cache")
        if self.poisoned:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.log.append("empty cache")


class Stream:
    def __init__(self, name: str, cuda: FakeCuda) -> None:
        self.name, self._cuda = name, cuda

    def wait_stream(self, other: "Stream") -> None:
        self._cuda.called("wait_stream")


class Graph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self.tape = cuda, Tape(declared=False, raises=True)
        cuda.graphs.append(self)

    def capture_begin(self, pool: object) -> None:
        assert not self._cuda.poisoned, "a capture after one that broke"
        self._cuda.called("capture_begin")
        self._cuda.log.append(f"capture on {self._cuda.stream}")
        self._cuda.capturing = True
        self.tape.__enter__()

    def capture_end(self) -> None:
        self._cuda.capturing = False
        try:
            self.tape.__exit__(None, None, None)
            self._cuda.called("capture_end")
            if self.tape.violations:
                raise RuntimeError(BROKEN)
            carried = [name for storage, name in self.tape.carried.items() if storage not in self._cuda.restored]
            if carried:
                raise RuntimeError(f"the step carries a tensor that recording does not restore: {', '.join(carried)}")
            self._cuda.breaks()
        except RuntimeError:
            self._cuda.poisoned = True
            raise

    def replay(self) -> None:
        self._cuda.called("replay")
        self._cuda.log.append("replay")
        for _ in range(2 if self._cuda.wrong else 1):
            self.tape.replay()


class Event:
    def record(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Puts the stand-in in place for a test, in a process that has had no failed capture."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", cuda.new_stream)
    monkeypatch.setattr(torch.cuda, "stream", cuda.on)
    monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", cuda.graph_pool_handle)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", cuda.synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", cuda.empty_cache)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", cuda.new_graph)
    monkeypatch.setattr(gc, "collect", cuda.collect)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event())
    restored = cuda_graph._restored  # private: only recording knows what it restores

    def noted(tensors: Sequence[Tensor]) -> contextlib.AbstractContextManager[Callable[[], None]]:
        cuda.restored = {address(tensor) for tensor in tensors}
        return restored(tensors)

    monkeypatch.setattr(cuda_graph, "_restored", noted)
    monkeypatch.setattr(cuda_graph, "_stream", functools.cache(cuda_graph._stream.__wrapped__))  # private: none is kept
    monkeypatch.setattr(cuda_graph, "_release", cuda.release)
    monkeypatch.setattr(cuda_graph, "_capture_failed", False)  # private: a process has no second try to ask for
    for module in (cuda_graph, captured, testing):  # where it is, and where it is asked
        monkeypatch.setattr(module, "can_record", lambda device: cuda_graph._wanted and not cuda_graph._capture_failed)
    return cuda
