"""A comparison checks before it times. No test looks at a time."""

import pytest
import torch

from iidlib.bench import timing
from iidlib.config import preset
from iidlib.data import Dataset, shapes
from iidlib.distillation import TERMS, Distillation, Term
from tests.factories import tiny_dataset

SMALL = {"match.width": 8, "match.batch_real": 6, "compute.compile": "off"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset((5, 9, 12), 32, seed=1)


def run_of(method: str, dataset: Dataset) -> Distillation:
    return Distillation(preset(method, dataset.name, 3, "paper", SMALL), dataset)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_other_losses_are_an_error(factor: float, dataset: Dataset) -> None:
    run = run_of("dm-cm", dataset)
    run.terms["cm"] = Term(TERMS["cm"].loss, weight=lambda config: factor * config.match.cm)
    with pytest.raises(timing.LossesDiffer, match="dm-cm: the losses of the loop and ours differ by"):
        timing.compare(run, ceiling_gflops=100, rounds=1)


def test_other_gradients_are_an_error_where_losses_agree(dataset: Dataset) -> None:
    run = run_of("dm", dataset)
    half = Term(
        lambda batch: (lambda loss: (loss + loss.detach()) / 2)(TERMS["mean"].loss(batch)), weight=lambda _: 1.0
    )
    run.terms["mean"] = half
    with pytest.raises(timing.LossesDiffer, match=r"gradients by 5\.0e-01"):
        timing.compare(run, ceiling_gflops=100, rounds=1)


def test_training_is_the_plain_one_or_an_error(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("dm", ipc=3, scale="paper", changes={"eval.width": 4, "eval.batch": 4, "compute.compile": "off"})
    calls: list[None] = []
    found = timing.compare_training(
        config, dataset, ceiling_gflops=100, rounds=2, on_iteration=lambda: calls.append(None)
    )
    assert len(calls) == 2 * (1 + 2) and len(found.our_times) == 2
    assert (found.what, found.method, found.classes, found.ipc) == ("evaluate", "convnet3", 3, 3)
    assert 0 < found.differences["weights"] < 1e-4 or found.differences["weights"] == 0
    assert found.gflop > 0
    monkeypatch.setattr(timing, "fit", lambda network, *given, **named: network)
    with pytest.raises(timing.LossesDiffer, match=r"weights of the loop and ours differ by 1\.0e\+00 of their change"):
        timing.compare_training(config, dataset, ceiling_gflops=100, rounds=1)


def test_comparison_counts_every_iteration(dataset: Dataset) -> None:
    calls: list[None] = []
    run = run_of("dm", dataset)
    start = run.images.detach().clone()
    found = timing.compare(run, ceiling_gflops=100, rounds=2, on_iteration=lambda: calls.append(None))
    assert len(calls) == 2 * (1 + 2)
    assert len(found.baseline_times) == len(found.our_times) == 2
    assert found.differences["loss"] < 1e-4 and found.differences["gradient"] < 1e-4
    assert not torch.equal(run.images, start)


def test_a_comparison_on_idm_trains_a_queue_on_either_side_and_counts_it() -> None:
    dataset = shapes(num_classes=3, per_class=12, seed=1)
    changes = SMALL | {"queue.batch": 8, "queue.steps": 2, "queue.train": 4}
    found = {
        steps: timing.compare(
            Distillation(preset("idm", dataset.name, 2, "paper", changes | {"queue.steps": steps}), dataset),
            ceiling_gflops=100,
            rounds=2,
        )
        for steps in (1, 3)
    }
    assert all(value < 1e-4 for one in found.values() for value in one.differences.values())
    assert found[3].gflop > 1.5 * found[1].gflop, "the queue's training is part of the work"
    run = Distillation(preset("idm", dataset.name, 2, "paper", changes), dataset)
    timing.compare(run, ceiling_gflops=100, rounds=1)
    assert run.source.facts()["queue_accuracy"] > 0
