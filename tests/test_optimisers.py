"""iidlib.distillation.optimisers: one step for all images, and IDM's sweep over classes in closed form."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iidlib.config import SynConfig
from iidlib.distillation import class_sweep, joint
from iidlib.rng import stream
from tests import reference
from tests.factories import difference

EXACT = 1e-12


def start(classes: int, n: int = 2) -> Tensor:
    return torch.randn(classes, n, 1, 4, 4, dtype=torch.float64, generator=stream(0, classes, "images"))


def slope(iteration: int, c: int, images: Tensor) -> Tensor:
    """Some gradient of a class, which depends on where its images are, as that of a loss does."""
    target = torch.randn(images.shape, dtype=torch.float64, generator=stream(1, iteration, f"target {c}"))
    return torch.sin(images) + 0.3 * images.mean() - target


def swept(x: Tensor, sweeps: int, syn: SynConfig) -> tuple[Tensor, Tensor]:
    """Images at the end of the last sweep, by the library, and as they are kept between sweeps."""
    classes = len(x)
    optimiser = class_sweep(x.clone().flatten(0, 1), syn, classes)
    for iteration in range(sweeps):
        own = optimiser.images.unflatten(0, (classes, -1))
        optimiser.step(torch.stack([slope(iteration, c, own[c]) for c in range(classes)]).flatten(0, 1))
    return optimiser.images_after_sweep().unflatten(0, (classes, -1)), optimiser.images.unflatten(0, (classes, -1))


def by_steps(x: Tensor, sweeps: int, syn: SynConfig) -> Tensor:
    velocity = torch.zeros_like(x)
    for iteration in range(sweeps):
        x, velocity = reference.class_sweep(x, velocity, partial(slope, iteration), syn.lr, syn.momentum)
    return x


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.0])
def test_the_closed_form_is_the_sequence_of_steps(classes, momentum):
    syn = SynConfig(lr=0.2, momentum=momentum)
    x = start(classes)
    for sweeps in (1, 2, 5):
        after, kept = swept(x, sweeps, syn)
        assert difference(after, by_steps(x, sweeps, syn)) <= EXACT
        if momentum:
            assert difference(kept, by_steps(x, sweeps, syn)) > 1e-3, "the last classes have not coasted yet"
        assert torch.equal(kept[0], after[0]), "the first class has made all its steps"


@given(
    classes=st.integers(1, 12),
    momentum=st.just(0.0) | st.floats(1e-30, 0.99),
    lr=st.floats(1e-3, 1),
    sweeps=st.integers(0, 4),
)
def test_for_any_settings(classes, momentum, lr, sweeps):
    syn, x = SynConfig(lr=lr, momentum=momentum), start(classes)
    assert difference(swept(x, sweeps, syn)[0], by_steps(x, sweeps, syn)) <= 1e-9


def test_one_class_is_plain_momentum():
    syn, x = SynConfig(lr=0.3, momentum=0.5), start(1)
    images, velocity = x, torch.zeros_like(x)
    for iteration in range(3):
        images, velocity = reference.sgd(images, velocity, slope(iteration, 0, images[0])[None], 0.3, 0.5)
    assert difference(swept(x, 3, syn)[0], images) <= EXACT


def test_joint_is_the_optimiser_of_torch():
    mine, theirs = start(3).flatten(0, 1), start(3).flatten(0, 1).requires_grad_()
    optimiser, sgd = joint(mine, SynConfig(lr=0.7, momentum=0.4), 3), torch.optim.SGD([theirs], lr=0.7, momentum=0.4)
    for iteration in range(4):
        theirs.grad = slope(iteration, 0, theirs.detach())
        optimiser.step(slope(iteration, 0, mine))
        sgd.step()
        assert torch.equal(optimiser.images_after_sweep(), theirs.detach())


@pytest.mark.parametrize("make", [joint, class_sweep])
def test_what_is_restored_continues_as_it_would_have(make):
    syn, x = SynConfig(lr=0.2, momentum=0.5), start(4).flatten(0, 1)

    def go(optimiser, iterations):
        for iteration in iterations:
            optimiser.step(slope(iteration, 0, optimiser.images))
        return optimiser

    whole = go(make(x.clone(), syn, 4), range(5))
    half = go(make(x.clone(), syn, 4), range(2))
    state = {name: tensor.clone() for name, tensor in half.state().items()}
    other = make(torch.zeros_like(x), syn, 4)
    other.restore(state)
    go(half, range(2, 4))  # the state is a copy's, not the running one's
    assert torch.equal(go(other, range(2, 5)).images_after_sweep(), whole.images_after_sweep())
    fresh = make(torch.zeros_like(x), syn, 4)
    fresh.restore(make(x.clone(), syn, 4).state())
    assert torch.equal(fresh.images_after_sweep(), x)


@pytest.mark.parametrize("make", [joint, class_sweep])
def test_restoring_keeps_the_tensors_that_a_recorded_step_holds(make):
    syn, x = SynConfig(lr=0.2, momentum=0.5), start(4).flatten(0, 1)
    fresh = make(x.clone(), syn, 4)
    initial = {name: tensor.clone() for name, tensor in fresh.state().items()}
    fresh.step(slope(0, 0, fresh.images))
    later = {name: tensor.clone() for name, tensor in fresh.state().items()}
    fresh.step(slope(1, 0, fresh.images))
    held = fresh.images, fresh.velocity
    addresses = [tensor.data_ptr() for tensor in held]
    fresh.restore(later)
    assert (fresh.images, fresh.velocity) == held and [tensor.data_ptr() for tensor in held] == addresses
    assert torch.equal(fresh.images, later["images"]) and torch.equal(fresh.velocity, later["momentum"])
    fresh.restore(initial)
    assert fresh.velocity is held[1] and not fresh.velocity.any()
    fresh.step(slope(0, 0, fresh.images))
    assert torch.equal(fresh.images, later["images"]), "zero velocity is as none"


def test_what_is_shown_is_a_copy():
    for make in (joint, class_sweep):
        optimiser = make(start(3).flatten(0, 1), SynConfig(), 3)
        for _ in range(2):
            before = optimiser.images.clone()
            optimiser.images_after_sweep().zero_()
            assert torch.equal(optimiser.images, before)
            optimiser.step(torch.ones_like(optimiser.images))
