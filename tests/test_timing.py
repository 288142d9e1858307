"""A comparison checks before it times. No test looks at a time."""

import pytest
import torch

from iidlib.bench import timing
from iidlib.bench import training as bench_training
from iidlib.config import preset
from iidlib.data import Dataset, shapes
from iidlib.distillation import TERMS, Distillation, Term
from iidlib.engine import device as engine_device
from tests.factories import tiny_dataset
from tests.fake_cuda import BROKEN, fake_cuda

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
    found = bench_training.compare_training(
        config, dataset, ceiling_gflops=100, rounds=2, on_iteration=lambda: calls.append(None)
    )
    assert len(calls) == 2 * (1 + 2) and len(found.our_times) == 2
    assert (found.what, found.method, found.classes, found.ipc) == ("evaluate", "convnet3", 3, 3)
    assert 0 < found.differences["weights"] < 1e-4 or found.differences["weights"] == 0
    assert found.gflop > 0
    assert (found.networks, found.recorded, found.precision_differences) == (1, False, {})
    monkeypatch.setattr(bench_training, "fit", lambda network, *given, **named: network)
    with pytest.raises(timing.LossesDiffer, match=r"weights of the loop and ours differ by 1\.0e\+00 of their change"):
        bench_training.compare_training(config, dataset, ceiling_gflops=100, rounds=1)


def test_networks_trained_together_are_the_plain_ones_or_an_error(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"eval.width": 4, "eval.batch": 4, "compute.compile": "off", "compute.together": 3}
    config = preset("dm", ipc=3, scale="paper", changes=changes)
    calls: list[None] = []
    found = bench_training.compare_together(
        config, dataset, ceiling_gflops=100, rounds=2, on_iteration=lambda: calls.append(None)
    )
    assert len(calls) == 2 * (1 + 2) and len(found.our_times) == len(found.baseline_times) == 2
    assert (found.what, found.method, found.networks, found.recorded) == ("evaluate x3", "convnet3", 3, False)
    assert 0 <= found.differences["weights"] < 1e-4 and found.capture_seconds is None
    alone = bench_training.compare_training(config, dataset, ceiling_gflops=100, rounds=1)
    assert found.gflop == pytest.approx(3 * alone.gflop)
    together = bench_training.fit_together
    monkeypatch.setattr(
        bench_training, "fit_together", lambda networks, *given, seeds, **named: together(
            networks, *given, seeds=[1, *seeds[1:]], **named
        )
    )  # fmt: skip
    with pytest.raises(timing.LossesDiffer, match="weights of the loop and ours differ"):
        bench_training.compare_together(config, dataset, ceiling_gflops=100, rounds=1)


def test_on_a_cpu_two_networks_are_trained_together(dataset: Dataset) -> None:
    config = preset("dm", ipc=1, scale="paper", changes={"eval.width": 4, "compute.compile": "off"})
    found = bench_training.compare_together(config, dataset, ceiling_gflops=100, rounds=1)
    assert (found.what, found.networks) == ("evaluate x2", 2)


# Precision: compared in float32, timed as asked


def rounded_on_tensor_cores(run: Distillation) -> list[bool]:
    """Makes a run's loss a twentieth larger where convolutions are rounded; returns where it was computed, in order."""
    rounded: list[bool] = []
    true = run.terms["mean"].loss

    def loss(batch: object) -> torch.Tensor:
        rounded.append(torch.backends.cudnn.allow_tf32)
        assert rounded[-1] == (batch.config.compute.precision != "fp32")
        return true(batch) * (1.05 if rounded[-1] else 1.0)

    run.terms["mean"] = Term(loss, weight=lambda _: 1.0)
    return rounded


def test_rounding_that_was_asked_for_is_reported_and_no_error(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_device, "_has_tf32", lambda device: True)
    run = run_of("dm", dataset)
    before, where = run.config, rounded_on_tensor_cores(run)
    found = timing.compare(run, ceiling_gflops=100, rounds=2)
    assert where == [False, True, True, True], "once in float32, then as asked, which is tf32 by default"
    assert run.config is before
    assert max(found.differences.values()) < 1e-4
    assert found.precision_differences == pytest.approx({"loss": 0.05, "gradient": 0.05}, rel=1e-3)
    row = found.row()
    assert (row["precision_loss_difference"], row["precision_weights_difference"]) == (
        found.precision_differences["loss"], None,
    )  # fmt: skip


@pytest.mark.parametrize("compare", [bench_training.compare_training, bench_training.compare_together])
def test_training_is_compared_in_float32_and_timed_as_asked(
    compare, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_device, "_has_tf32", lambda device: True)
    where: list[bool] = []
    for name in ("fit", "fit_together"):
        real = getattr(bench_training, name)
        monkeypatch.setattr(bench_training, name, lambda *given, real=real, **named: (
            where.append(torch.backends.cudnn.allow_tf32), real(*given, **named)
        )[1])  # fmt: skip
    config = preset("dm", ipc=1, scale="paper", changes={"eval.width": 4, "compute.compile": "off"})
    found = compare(config, dataset, ceiling_gflops=100, rounds=1)
    assert where == [False, True, True] and found.precision_differences == {"weights": 0.0}, "a CPU does not round"


# Recording


@pytest.mark.parametrize("breaks", [False, True])
def test_a_recorded_step_is_what_is_timed_where_recording_works(breaks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda(monkeypatch)
    monkeypatch.setattr(timing, "can_record", lambda device: True)
    if breaks:
        cuda.breaks = lambda: (_ for _ in ()).throw(RuntimeError(BROKEN))
    images = shapes(num_classes=3, per_class=12, seed=1)
    changes = SMALL | {"match.augmentation": "none"}
    run = Distillation(preset("dm", images.name, 2, "paper", changes), images)
    found = timing.compare(run, ceiling_gflops=100, rounds=2)
    row = found.row()
    assert found.recorded is not breaks and len(found.eager_times) == len(found.our_times) == 2
    assert row["capture_seconds"] > 0 and (row["eager_seconds"] is None) is breaks and row["device_seconds"] is None
    verified = 2  # replays while the recordings of the step and of the logged step are verified
    assert cuda.log.count("replay") == (0 if breaks else verified + 2)


def test_what_must_not_be_recorded_is_not(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda(monkeypatch)
    monkeypatch.setattr(timing, "can_record", lambda device: True)
    run = Distillation(preset("dm", dataset.name, 2, "paper", SMALL | {"compute.graph": "off"}), dataset)
    found = timing.compare(run, ceiling_gflops=100, rounds=1)
    assert (found.recorded, found.capture_seconds, found.eager_seconds) == (False, None, None) and cuda.log == []


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
