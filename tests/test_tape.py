"""tests.tape and tests.watch: a region that a CUDA graph could not record, or would record wrongly, is caught."""

import gc
from collections.abc import Callable
from functools import cached_property

import pytest
import torch
from torch import Tensor

from tests.tape import Tape, check_region
from tests.watch import Watch


class Small:
    """Descent with momentum of x towards a target that each iteration draws."""

    def __init__(self) -> None:
        self.x = torch.arange(6.0, dtype=torch.float64).view(2, 3).requires_grad_()
        self.velocity = torch.full((2, 3), 0.5, dtype=torch.float64)
        self.target = torch.ones(2, 3, dtype=torch.float64)
        self.rate = torch.tensor(0.01, dtype=torch.float64)
        self.seen = torch.zeros(2, dtype=torch.int64)
        self.counts = torch.tensor([3, 3])  # on the host
        self.lr = 0.01  # a number of Python

    def load(self, iteration: int) -> None:
        self.target.fill_(iteration - 1.5)
        self.rate.fill_(0.01 / (1 + iteration))
        self.lr = 0.01 / (1 + iteration)

    def gradient(self) -> Tensor:
        error = (self.x - self.target).pow(4).sum() / int(self.counts[0])
        (gradient,) = torch.autograd.grad(error, self.x)
        return gradient

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        self.velocity.mul_(0.9).add_(gradient)
        self.x.sub_(self.rate * self.velocity)
        self.seen.add_(1)

    def step(self) -> None:
        self.update(self.gradient())

    def buffers(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("x", "velocity", "target", "rate", "seen")}

    def check(self, step: Callable[[], None] | None = None) -> Tape:
        return check_region(step or self.step, self.buffers, load=self.load, host=[self.counts])


def test_a_region_that_is_in_order():
    tape = Small().check()
    assert tape.kernels.total() == sum(tape.kernels.values()) > 8
    assert tape.copies == tape.reads == 0


# Mutations: each is a mistake that a graph would not report


class PythonRate(Small):
    def update(self, gradient: Tensor) -> None:
        with torch.no_grad():
            self.x.sub_(gradient, alpha=self.lr)


class HostRate(Small):
    """The rate is a number on the host, which an operation on the device takes as it is when it is recorded."""

    def update(self, gradient: Tensor) -> None:
        with torch.no_grad():
            self.x.sub_(gradient * torch.tensor(self.lr))


class Rebinds(Small):
    def update(self, gradient: Tensor) -> None:
        with torch.no_grad():
            self.velocity = 0.9 * self.velocity + gradient
            self.x.sub_(self.velocity * self.rate)


class RebindsInLoad(Small):
    def load(self, iteration: int) -> None:
        super().load(iteration)
        self.velocity = self.velocity.clone()


class KeepsAcross(Small):
    @cached_property
    def goal(self) -> Tensor:
        return self.target * 2

    def gradient(self) -> Tensor:
        return self.x.detach() - self.goal


class KeepsFromBefore(KeepsAcross):
    def __init__(self) -> None:
        super().__init__()
        self.goal  # noqa: B018 made before the recording


class Waits(Small):
    def update(self, gradient: Tensor) -> None:
        if gradient.norm().item() > 0:
            super().update(gradient)


class WaitsForTruth(Small):
    def update(self, gradient: Tensor) -> None:
        if (gradient > 0).any():
            super().update(gradient)
        else:
            super().update(gradient)


class WaitsForShape(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient - gradient[gradient > 1e6].sum())


class WaitsForCounter(Small):
    def update(self, gradient: Tensor) -> None:
        if self.seen.tolist()[0] >= 0:
            super().update(gradient)


class Draws(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient + torch.rand(2, 3, dtype=torch.float64, device=gradient.device))


class DrawsOnHost(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient * torch.rand((), dtype=torch.float64, generator=torch.Generator()))


class CopiesToDevice(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient * torch.tensor([1.0, 2, 3], dtype=torch.float64, device=gradient.device))


class MovesToDevice(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient * torch.arange(3).to(gradient.device))


class LoadsInside(Small):
    def update(self, gradient: Tensor) -> None:
        self.target.copy_(torch.ones(2, 3))
        super().update(gradient)


class IndexesFromHost(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient[torch.arange(2)])


class MixesHost(Small):
    def update(self, gradient: Tensor) -> None:
        super().update(gradient / self.counts[:, None])


class CopiesToHost(Small):
    def update(self, gradient: Tensor) -> None:
        gradient.cpu()
        super().update(gradient)


class UsesAnother(Small):
    other = torch.ones(2, 3, dtype=torch.float64)

    def update(self, gradient: Tensor) -> None:
        super().update(gradient * self.other)


class WritesToAnother(UsesAnother):
    def update(self, gradient: Tensor) -> None:
        self.other.fill_(1)
        Small.update(self, gradient)


class CountsInPython(Small):
    done = 0

    def update(self, gradient: Tensor) -> None:
        self.done += 1
        super().update(gradient / self.done)


MUTATIONS = {
    PythonRate: "x differs after replay 1",
    HostRate: "x differs after replay 1",
    Rebinds: "buffers have moved: velocity",
    RebindsInLoad: "buffers have moved: velocity",
    KeepsAcross: "uses a tensor that is no buffer",
    KeepsFromBefore: "uses a tensor that is no buffer",
    Waits: "waits for the device: _local_scalar_dense",
    WaitsForTruth: "waits for the device: _local_scalar_dense",
    WaitsForShape: "waits for the device: index",
    WaitsForCounter: "waits for the device: tolist",
    Draws: "draws random numbers: rand",
    DrawsOnHost: "draws random numbers: rand",
    CopiesToDevice: "copies from the host: tensor",
    MovesToDevice: "copies from the host: to",
    LoadsInside: "copies from the host: copy_",
    IndexesFromHost: "mixes tensors of the device and of the host: index",
    MixesHost: "mixes tensors of the device and of the host: div",
    CopiesToHost: "waits for the device: cpu",
    UsesAnother: "uses a tensor that is no buffer: mul",
    WritesToAnother: "uses a tensor that is no buffer: fill_",
    CountsInPython: "x differs after replay",
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_each_mistake_is_caught(kind):
    with pytest.raises(AssertionError, match=MUTATIONS[kind]):
        kind().check()


@pytest.mark.parametrize(
    "step",
    [
        lambda small: None,
        lambda small: small.seen.zero_(),
    ],
    ids=["nothing", "the same each time"],
)
def test_a_region_whose_replays_show_nothing_is_refused(step):
    small = Small()
    with pytest.raises(AssertionError, match=r"changes no buffer|nothing changes"):
        small.check(lambda: step(small))


# Memory


def test_a_replay_after_memory_was_freed_is_an_error():
    small = Small()
    with Tape(declared=False) as tape:
        small.step()
    tape.replay()
    small.velocity = small.velocity.clone()
    with pytest.raises(RuntimeError, match="freed or moved after its recording: mul_"):
        tape.replay()


def test_a_tape_keeps_neither_tensors_of_the_outside_nor_graphs_of_autograd():
    small = Small()
    with Tape(declared=False) as tape:
        small.step()
    tape.replay()
    gc.disable()
    try:
        del small
        with pytest.raises(RuntimeError, match="freed"):
            tape.replay()
    finally:
        gc.enable()


def test_what_a_step_carries_is_what_it_reads_before_it_writes_it():
    small, losses = Small(), torch.zeros(2)
    with Tape(declared=False) as tape:
        small.step()
        losses.fill_(1).add_(1)
    assert set(tape.carried) == {small.x.data_ptr(), small.velocity.data_ptr(), small.seen.data_ptr()}
    assert set(tape.written) == {*tape.carried, losses.data_ptr()}


# Counts


def test_kernels_are_counted_and_views_are_not():
    weights = [torch.ones(3), torch.ones(2, 2), torch.ones(1, dtype=torch.float64)]
    with Watch(weights) as watch:
        torch._foreach_mul_(weights, 2)  # two kernels, one for each dtype
        weights[1].view(4)[None, 1:].t().detach()
        torch.empty(3, device=weights[0].device)
        torch.arange(4)  # on the host
        weights[0].add_(torch.zeros(3, device=weights[0].device))  # two
    assert watch.kernels == {"_foreach_mul_": 2, "add_": 1, "zeros": 1}


def test_copies_and_waits_are_counted():
    buffer, labels = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
    with Watch([buffer, labels]) as watch:
        order = torch.randperm(4)
        buffer.copy_(torch.rand(4))
        taken = buffer[order.to(labels.device)]
        assert float(taken.sum()) >= 0 and order.tolist()
    assert (watch.copies, watch.reads) == (2, 1)
    assert watch.kernels == {"copy_": 1, "index": 1, "sum": 1}
