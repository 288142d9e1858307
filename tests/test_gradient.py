"""iidlib.distillation.gradient: by groups of classes it is the gradient of all; how large a group is."""

import pytest
import torch

from iidlib.config import preset
from iidlib.data import load_dataset
from iidlib.distillation import METHODS, LazyDraws, memory
from iidlib.distillation.gradient import class_groups, objective_gradient
from iidlib.networks import activation_bytes
from tests.factories import difference, ready_run, settings, tiny_dataset


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_groups_of_classes_give_the_gradient_of_all(method, limit):
    run = ready_run(settings(method, syn__init="noise"), tiny_dataset((12, 12, 4, 12)), double=True)
    groups = class_groups(range(4), limit)
    assert len(groups) == {1: 4, 2: 2, 3: 2}[limit]
    whole, all_logged = objective_gradient(run, LazyDraws(run, 3), run.terms, class_groups(range(4), 0), norms=True)
    parts, logged = objective_gradient(run, LazyDraws(run, 3), run.terms, groups, norms=True)
    assert difference(parts, whole) < 1e-10
    for name in run.terms:
        assert torch.allclose(logged.values[name], all_logged.values[name], rtol=1e-10)
        assert torch.allclose(logged.norms[name], all_logged.norms[name], rtol=1e-10)


def test_groups_with_cached_statistics_too():
    changes = {"match__statistics": "cached", "match__cached_pairs": 2, "match__cc_scaling": "relative"}
    run = ready_run(settings("iid-dm", **changes), tiny_dataset(12), double=True)
    for iteration in range(3):
        whole, _ = objective_gradient(run, LazyDraws(run, iteration), run.terms, class_groups(range(4), 0))
        parts, _ = objective_gradient(run, LazyDraws(run, iteration), run.terms, class_groups(range(4), 3))
        assert difference(parts, whole) < 1e-10


def test_the_setting_decides_and_a_step_uses_it():
    whole, parts = (ready_run(settings("iid-dm", compute__classes=n), tiny_dataset(12), double=True) for n in (0, 2))
    assert whole.groups == (range(4),) and parts.groups == (range(2), range(2, 4))
    start = whole.images.detach().clone()
    rows = [run.step(iteration, log=True) for iteration in range(2) for run in (whole, parts)]
    assert rows[2] == pytest.approx(rows[3], rel=1e-8)
    assert difference(parts.images.detach() - start, whole.images.detach() - start) < 1e-8


@pytest.mark.parametrize(("classes", "limit"), [(10, 0), (10, 3), (100, 30), (7, 7), (7, 1), (5, 9)])
def test_groups_are_all_classes_in_order_and_even(classes, limit):
    groups = class_groups(range(classes), limit)
    assert [label for group in groups for label in group] == list(range(classes))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1 and (limit == 0 or max(sizes) <= limit)


def test_no_gradient_holds_activations_of_more_classes_than_a_group():
    """Bytes kept for the backward passes of a step, at their peak."""

    def peak(limit: int) -> int:
        run = ready_run(settings("iid-dm", compute__compile="off"), tiny_dataset(12))
        draws, held, most = LazyDraws(run, 0), [0], [0]
        _ = draws.real(range(4))

        class Kept:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor = tensor
                held[0] += tensor.nbytes
                most[0] = max(most[0], held[0])

            def __del__(self) -> None:
                held[0] -= self.tensor.nbytes

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            objective_gradient(run, draws, run.terms, class_groups(range(4), limit))
        return most[0]

    assert peak(1) < 0.35 * peak(0)


@pytest.mark.parametrize(("name", "mebibytes"), [("convnet3", 2.14), ("resnet18", 4.52)])
def test_activations_are_counted_as_measured(name, mebibytes):
    """The values that were measured on a CPU, per CIFAR-10 image."""
    spec = load_dataset("cifar10-mini").spec
    assert activation_bytes(name, spec, 128) / 2**20 == pytest.approx(mebibytes, abs=0.01)


@pytest.mark.parametrize(
    ("dataset", "ipc", "gibibytes", "several"),
    [
        ("cifar10", 50, 80, False),
        ("cifar100", 10, 80, False),
        ("cifar100", 50, 80, True),
        ("tinyimagenet", 50, 80, True),
    ],
)
def test_large_cells_are_split_and_small_ones_not_on_a_gpu_of_80_gib(dataset, ipc, gibibytes, several, monkeypatch):
    mini = load_dataset("cifar10-mini")
    config = preset("iid-dm", dataset, ipc, "paper")
    classes, side = {"cifar10": (10, 32), "cifar100": (100, 32), "tinyimagenet": (200, 64)}[dataset]
    spec = type(mini.spec)(**{**vars(mini.spec), "classes": tuple(map(str, range(classes))), "image_size": side})
    sized = type(mini)(mini.name, mini.train, mini.test, spec)
    monkeypatch.setattr(memory, "total_bytes", lambda device: gibibytes * 2**30)
    limit = memory.default_classes(config, sized, METHODS["iid-dm"].terms)
    assert (limit < classes) is several
    images = min(limit, classes) * ipc
    networks = ((config.match.network, config.match.width), (config.pool.network, config.pool.width))
    kept = images * sum(activation_bytes(name, spec, width) for name, width in networks)
    assert kept < 0.4 * gibibytes * 2**30


def test_a_cpu_takes_all_classes_at_once():
    mini = load_dataset("cifar10-mini")
    assert memory.default_classes(preset("iid-dm", "cifar10-mini", 10), mini, ("mean", "cc")) == 0
