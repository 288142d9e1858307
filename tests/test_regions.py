"""Regions of code that are recorded as CUDA graphs: what they launch, what is left outside, and what they keep alive.

A row of ``REGIONS`` is all that a region needs. Its counts are of today, so that a change that adds kernels is noticed
where there is no GPU.
"""

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from iidlib import resampling
from iidlib.augment import OPERATIONS
from iidlib.augment_ops import apply_drawn
from iidlib.distillation import METHODS, Distillation, captured
from iidlib.engine import LoadedAhead, norm_ops, triton_augment
from iidlib.experiments import costs
from iidlib.features.fixed_queue import FixedQueue
from iidlib.networks import blocks, build_network
from iidlib.rng import stream
from iidlib.training import Examples, Training, ensemble, fit_together
from tests.factories import labelled_noise, on_buffers, pretrained_pool, ready_run, settings, tiny_dataset
from tests.fake_cuda import FakeCuda, fake_cuda
from tests.tape import check_region
from tests.watch import DEVICE, Watch

EVEN = (12, 12, 12, 12)


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The end of a ConvNet's block as the one operation that it is on CUDA."""
    return norm_ops._norm_relu(x, weight, bias, None, eps, True, 2)[0]


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, relu: bool) -> Tensor:
    """The norm of a ResNet as the one operation that it is on CUDA."""
    return norm_ops._norm_relu(x, weight, bias, residual, eps, relu, 1)[0]


@torch.library.custom_op("iidlib_tests::transformed", mutates_args=())
def transformed(images: Tensor) -> Tensor:
    """The augmentation, or its gradient, as the one operation that it is on CUDA; it only mirrors."""
    return images.flip(3)


@dataclass(frozen=True)
class Region:
    """Something that records steps, and what an iteration of it costs.

    Attributes:
        iterate: records, does iterations, and returns the watch over one of them.
        kernels: kernels of each graph, in the order of their captures.
        outside: kernels, copies from the host and waits for the device of an iteration outside of its graphs.
        before: what was counted at version 0.1.0, with two kernels for the forward pass of a norm and none for fixing
            the order in which gradients are summed.
    """

    iterate: Callable[[FakeCuda], Watch]
    kernels: tuple[int, ...]
    outside: tuple[int, int, int]
    before: str = ""


def small_run(method: str) -> Distillation:
    """A run with the networks of the paper, where a number of kernels depends on the network but not on its width."""
    sizes = {"match__network": "convnet3", "match__width": 3, "match__batch_real": 4, "queue__steps": 2}
    dataset = tiny_dataset(EVEN, 32)
    network = "convnet3" if method == "iid-plus" else "resnet18"  # as in its settings
    pool = pretrained_pool(dataset, network, widths=[3]) if "cc" in METHODS[method].terms else None  # of one network
    sizes |= {"pool__network": network, "pool__width": 3}
    return ready_run(settings(method, 2, **sizes), dataset, pool=pool)


def watch_over(cuda: FakeCuda, device: Sequence[Tensor], host: Sequence[Tensor] = ()) -> Watch:
    """A watch that knows the buffers of the graphs."""
    watch = Watch(device, host)
    for graph in cuda.graphs:
        watch.declare(graph.tape.buffers, DEVICE)
    return watch


def distillation(method: str) -> Callable[[FakeCuda], Watch]:
    def iterate(cuda: FakeCuda) -> Watch:
        run = small_run(method)
        run.record()
        run.step(0)
        device, host = [run.real.images, run.real.labels], [run.group, run.real.counts, run.real.class_index]
        with watch_over(cuda, device, host) as watch:
            run.step(1)
        return watch

    return iterate


def evaluation(cuda: FakeCuda) -> Watch:
    """Two networks, whose only batch in an epoch is the set."""
    pictures, labels = labelled_noise(4, dtype=torch.float32)
    training = Training(epochs=3, lr=0.05, batch=4, augmentation="_".join(OPERATIONS))
    watches: list[Watch] = []

    def on_epoch(epoch: int) -> None:
        if epoch == 0:
            watches.append(watch_over(cuda, [labels]).__enter__())
        elif epoch == 1:
            watches[0].__exit__(None, None, None)

    draws = [stream(number, 0, "network") for number in range(2)]
    networks = [build_network("convnet2", num_classes=3, image_size=16, width=3, generator=draw) for draw in draws]
    examples = Examples(lambda index: pictures[index], labels)
    fit_together(networks, examples, training, seeds=[3, 4], on_epoch=on_epoch, hold=False)
    return watches[0]


REGIONS = {
    "dm": Region(distillation("dm"), (53, 70), (15, 0, 0), "226, and 154 to load"),
    "dm-cm": Region(distillation("dm-cm"), (83, 123), (15, 0, 0), "256"),
    "dm-cc": Region(distillation("dm-cc"), (160, 237), (16, 0, 0)),
    "iid-dm": Region(distillation("iid-dm"), (190, 290), (16, 0, 0), "640, 100 of them a second augmentation"),
    "idm": Region(distillation("idm"), (117, 227, 156), (1, 0, 0), "351, and 57 for each step of a network's training"),
    "iid-idm": Region(
        distillation("iid-idm"), (254, 525, 156), (2, 0, 0), "622, and 57 for each step of a network's training"
    ),
    "iid-plus": Region(distillation("iid-plus"), (234, 358), (3, 0, 0)),
    "evaluation": Region(evaluation, (218,), (7, 5, 0)),
}
"""Regions by name.

The graphs of a distillation are the step, with the augmentation of the real images, the logged step, and two steps of
the queue's training. What is left outside is the draw of a random network, one copy of all draws, which counts as a
kernel here, and the copy of a pretrained network.
"""


@pytest.mark.parametrize("name", REGIONS)
def test_kernels_in_graphs_and_outside(name, monkeypatch):
    region, cuda = REGIONS[name], fake_cuda(monkeypatch)
    if name != "evaluation":  # vmap cannot transform it
        monkeypatch.setattr(blocks, "norm_relu_pool", norm_relu_pool)
        monkeypatch.setattr(blocks, "norm_relu", norm_relu)
    monkeypatch.setattr(resampling, "_collects", lambda images: True)  # private: as on CUDA, see its docstring
    monkeypatch.setattr(triton_augment, "usable", lambda images: True)
    monkeypatch.setattr(triton_augment, "transformed", lambda images, *_, **__: transformed(images))
    for module in (captured, ensemble):  # the settings and networks of tests forbid compiled kernels
        monkeypatch.setattr(module, "apply_drawn", lambda *given, compiled: apply_drawn(*given))
    # as on CUDA: a thread fills a block of the host, which is copied at once
    monkeypatch.setattr(captured, "LoadedAhead", partial(LoadedAhead, ahead=True))
    watch = region.iterate(cuda)
    kernels = tuple(graph.tape.kernels.total() for graph in cuda.graphs)
    outside = watch.kernels.total(), watch.copies, watch.reads
    assert close(kernels, region.kernels) and close(outside, region.outside), (
        f"kernels of the graphs {kernels}, the table says {region.kernels}; kernels, copies and waits outside "
        f"{outside}, the table says {region.outside}; outside are {dict(watch.kernels)}"
    )


@pytest.mark.parametrize("name", [name for name in REGIONS if name in METHODS])
def test_costs_are_predicted_with_these_kernels(name: str) -> None:
    terms = {f"match.{term}" for term in METHODS[name].terms}
    predicted = costs._kernels(terms, pretrained="match.cc" in terms and METHODS[name].source != "stages")
    counted = REGIONS[name].kernels[0] + REGIONS[name].outside[0]
    assert predicted == pytest.approx(counted, rel=0.1)


def close(found: tuple[int, ...], noted: tuple[int, ...]) -> bool:
    """Whether none is more than a tenth above what the table says, nor far below, where the table should follow."""
    return len(found) == len(noted) and all(0.9 * b <= a <= 1.1 * b for a, b in zip(found, noted, strict=True))


# A step works on what its run holds


def held_by(root: object) -> dict[str, Tensor]:
    """All tensors within an object of the library, by their places in it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def visit(name: str, one: Any) -> None:
        if isinstance(one, Tensor):
            found[name] = one
        elif id(one) in seen:
            return
        elif isinstance(one, nn.Module):
            for own, tensor in (*one.named_parameters(), *one.named_buffers()):
                found[f"{name}.{own}"] = tensor
        elif isinstance(one, Mapping):
            for key, value in one.items():
                visit(f"{name}.{key}", value)
        elif isinstance(one, list | tuple):
            for number, value in enumerate(one):
                visit(f"{name}.{number}", value)
        elif type(one).__module__.startswith("iidlib.") and hasattr(one, "__dict__"):
            seen.add(id(one))
            visit(name, vars(one))

    visit(type(root).__name__, root)
    return found


@pytest.mark.parametrize("part", ["step", "logged", "training"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_uses_its_runs_tensors_only_and_moves_none(method, part):
    run = ready_run(settings(method, 2, queue__every=100), tiny_dataset(EVEN))  # no network joins
    step = on_buffers(run)
    step.step(0)  # makes the momentum
    host = [run.group, run.real.counts, run.real.class_index, step.draws.counts]
    on_host = {tensor.data_ptr() for tensor in host}

    def buffers() -> dict[str, Tensor]:
        held = held_by(step) | held_by(run)
        return {name: tensor for name, tensor in held.items() if tensor.data_ptr() not in on_host}

    fixed = step.draws.fixed
    regions = {"step": step.compute, "logged": partial(step.compute, log=True)}
    if isinstance(fixed, FixedQueue):
        regions["training"] = partial(fixed.train, step.draws.buffers)
    elif part == "training":
        assert method.startswith(("dm", "iid-dm", "iid-plus")), "nothing is trained"
        return
    check_region(regions[part], buffers, load=step.load, host=host)


# Memory


@pytest.fixture
def no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_graph_is_freed_with_its_run(no_collection, monkeypatch):
    """It holds gigabytes of activations, and a collection while another step is captured would break that capture."""
    cuda, run = fake_cuda(monkeypatch), small_run("dm")
    run.record()
    graphs = [weakref.ref(graph) for graph in cuda.graphs]
    cuda.graphs.clear()
    assert len(graphs) == 2 and all(graph() is not None for graph in graphs)
    del run
    assert not any(graph() for graph in graphs)


def test_graphs_of_an_evaluation_are_freed_with_it(no_collection, monkeypatch):
    cuda = fake_cuda(monkeypatch)
    graphs: list[weakref.ref[object]] = []
    evaluation(cuda)
    graphs = [weakref.ref(graph) for graph in cuda.graphs]
    cuda.graphs.clear()
    assert len(graphs) == 1 and not any(graph() for graph in graphs)


class Allocations(Watch):
    """Notes which of the storages that were made still exist."""

    def __init__(self) -> None:
        super().__init__()
        self._weak: list[StorageWeakRef] = []

    def note(self, function: Any, args: Any, kwargs: Any, out: Any, fresh: Any, written: Any) -> None:
        self._weak += [StorageWeakRef(tensor.untyped_storage()) for tensor in fresh]

    @property
    def alive(self) -> int:
        return sum(not weak.expired() for weak in self._weak)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("method", ["dm", "iid-dm", "idm"])
def test_every_step_allocates_as_much_and_keeps_nothing(method, recorded, monkeypatch):
    if recorded:
        fake_cuda(monkeypatch)
    changes = {"match__augmentation": "none", "queue__every": 100, "queue__steps": 1}
    run = ready_run(settings(method, 2, **changes), tiny_dataset(EVEN))
    run.record()
    run.step(0)
    steps = []
    for iteration in (1, 2, 3):
        with Allocations() as allocations:
            run.step(iteration)
        steps.append(allocations)
    assert steps[0].made > 0 and len({step.made for step in steps}) == 1
    assert steps[0].alive == steps[1].alive == 0, "the last may leave what the next replaces"
