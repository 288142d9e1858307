"""The baseline computes what the library computes, in plain eager calls."""

import pytest
import torch

from iidlib.bench import baseline
from iidlib.config import RunConfig, preset
from iidlib.data import Dataset
from iidlib.distillation import METHODS, TERMS, Distillation
from iidlib.features import NetworkQueue, Pool
from iidlib.networks import conv_blocks, frozen, network_for
from iidlib.rng import stream
from tests.factories import difference, tiny_dataset

SMALL = {
    "match.width": 8, "match.batch_real": 6, "pool.network": "convnet3", "pool.width": 8, "compute.compile": "off",
    "queue.batch": 8, "queue.steps": 2, "queue.train": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset((12, 13, 14), 32, seed=1)


def run_of(method: str, dataset: Dataset, ipc: int = 3, **changes: object) -> Distillation:
    """A run at small shapes, with two random networks in its pool so that the choice between them matters."""
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    run = Distillation(preset(method, dataset.name, ipc, "paper", SMALL | keys), dataset)
    if any(term.needs_pool for term in run.terms.values()):
        run.pool = two_networks(run.config, dataset)
    return run


def two_networks(config: RunConfig, dataset: Dataset) -> Pool:
    networks = [
        frozen(
            network_for(
                config.pool.network,
                dataset.spec,
                width=config.pool.width,
                generator=torch.Generator().manual_seed(seed),
                compile="off",
            )
        )
        for seed in range(2)
    ]
    return Pool(networks, [50.0, 50.0], "two")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "iid-plus"])  # the loop is of what is published
@pytest.mark.parametrize("augmentation", ["auto", "none"])
def test_loop_has_the_losses_and_gradients_of_the_library(method: str, augmentation: str, dataset: Dataset) -> None:
    run = run_of(method, dataset, match__augmentation=augmentation)
    loop = baseline.PerClassLoop(run)
    for iteration in (0, 3):
        if isinstance(run.source, NetworkQueue):  # both queues are trained far enough for an accuracy
            for either in (run, loop):
                either.losses(iteration)
                either.advance(iteration)
        theirs = loop.losses(iteration)
        their_gradients = {name: gradient(loss, loop.images) for name, loss in theirs.items()}
        ours = run.losses(iteration)
        assert list(ours) == list(theirs) == list(METHODS[method].terms)
        for name, loss in ours.items():
            assert float(loss.detach()) > 0, f"{name} is zero, so nothing is compared"
            assert difference(loss.detach(), theirs[name].detach()) < 1e-4, name
            assert difference(gradient(loss, run.images), their_gradients[name]) < 1e-4, name


def gradient(loss: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, images, retain_graph=True)[0]


@pytest.mark.parametrize("method", ["iid-dm", "iid-idm"])
def test_loop_updates_its_own_images_as_the_library_does(method: str, dataset: Dataset) -> None:
    run = run_of(method, dataset, ipc=1 if method == "iid-idm" else 3)
    loop = baseline.PerClassLoop(run)
    start = run.images.detach().clone()
    for iteration in range(3):
        loop.step(iteration)
    assert torch.equal(run.images, start)
    for iteration in range(3):
        run.step(iteration)
    change = run.synthetic(3).images - start
    assert change.norm() > 0
    assert difference(loop.images.detach() - start, change) < 1e-3


def test_loop_runs_plain_eager_calls_in_the_default_format(dataset: Dataset) -> None:
    network = network_for("convnet3", dataset.spec, width=8, generator=stream(0, 0, "x"), compile="off")
    plain = baseline.plain_twin(network)
    assert all(p.is_contiguous() for p in plain.parameters())
    assert {block.backend.__module__ for block in conv_blocks(plain)} == {baseline.__name__}
    assert {block.backend for block in conv_blocks(network)} == {"eager"}, "the library's was changed"
    images = torch.randn(4, 3, 32, 32)
    assert difference(plain(images), network(images)) < 1e-5


def test_loop_leaves_out_terms_on_pairs_where_a_class_has_one_image(dataset: Dataset) -> None:
    loop = baseline.PerClassLoop(run_of("iid-dm", dataset, ipc=1))
    assert list(loop.losses(0)) == ["mean"]


@pytest.mark.parametrize("scaling", ["per_image", "relative"])
def test_loop_refuses_what_it_does_not_compute(scaling: str, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=f"released.*got {scaling}"):
        baseline.PerClassLoop(run_of("dm-cc", dataset, match__cc_scaling=scaling))
    run = run_of("dm", dataset)
    run.terms["mine"] = TERMS["mean"]
    with pytest.raises(ValueError, match="got mean, mine"):
        baseline.PerClassLoop(run)
