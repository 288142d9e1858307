"""Mistakes in the step of a distillation that a CUDA graph would not report, made on purpose: each is caught.

Those of small regions are in ``test_tape``.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iidlib.distillation import CapturedStep, Distillation, ImageOptimiser, captured_step
from iidlib.distillation.batch import StepBatch
from iidlib.distillation.captured import BufferedDraws
from tests.factories import difference, ready_run, settings, tiny_dataset
from tests.fake_cuda import fake_cuda

EVEN = (8, 8, 8, 8)


def mutated(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: Callable[..., object]) -> None:
    """Adds something to the end of a method."""
    method = getattr(owner, name)

    def changed(self: object, *given: object, **named: object) -> object:
        out = method(self, *given, **named)
        after(self, *given)
        return out

    monkeypatch.setattr(owner, name, changed)


def rebound(optimiser: ImageOptimiser, gradient: Tensor) -> None:
    optimiser.velocity = optimiser.velocity.clone()


REFUSED = {
    "a hidden item": (ImageOptimiser, "step", lambda self, gradient: gradient.sum().item(), "waits for the device"),
    "a draw": (ImageOptimiser, "step", lambda self, gradient: torch.rand_like(gradient), "draws random numbers"),
    "a draw on the host": (CapturedStep, "compute", lambda self: torch.randint(4, ()), "draws random numbers"),
    "a copy": (ImageOptimiser, "step", lambda self, gradient: gradient.mul_(torch.ones(16)), "mixes tensors"),
    "momentum that moves": (ImageOptimiser, "step", rebound, "that recording does not restore"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_capture_of_a_step_with_a_mistake_fails(mistake, monkeypatch, caplog):
    owner, name, after, message = REFUSED[mistake]
    fake_cuda(monkeypatch)
    mutated(monkeypatch, owner, name, torch.no_grad()(after))
    run = ready_run(settings("dm", 2), tiny_dataset(EVEN))
    assert captured_step(run, run.terms, run.optimiser) is None
    assert message in caplog.text


def kept_across_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The means of the real images are those of the first step."""
    first: list[Tensor] = []
    mean = StepBatch.real_mean.func

    def real_mean(batch: StepBatch) -> Tensor:
        if isinstance(batch._draws, BufferedDraws):
            first.extend([] if first else [mean(batch)])
            return first[0]
        return mean(batch)

    monkeypatch.setattr(StepBatch, "real_mean", property(real_mean))


def rate_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of Python that each iteration sets before its step."""
    step = Distillation.step

    def slower(run: Distillation, iteration: int) -> dict[str, float]:
        run.optimiser._lr = run.config.syn.lr / (1 + iteration)
        return step(run, iteration)

    monkeypatch.setattr(Distillation, "step", slower)


@pytest.mark.parametrize("mistake", [None, kept_across_steps, rate_that_changes])
def test_replays_show_what_a_recording_has_frozen(mistake, monkeypatch, caplog):
    """Recording cannot, for it compares a replay and a call with the same draws."""
    fake_cuda(monkeypatch)
    plain, run = (ready_run(settings("dm", 2), tiny_dataset(EVEN)) for _ in range(2))
    start = run.images.detach().clone()
    if mistake:
        mistake(monkeypatch)
    run.record()
    assert not caplog.records
    for iteration in range(3):
        plain.step(iteration)
        run.step(iteration)
    found = difference(run.images.detach() - start, plain.images.detach() - start)
    assert found > 1e-2 if mistake else found < 1e-4
