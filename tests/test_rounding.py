"""tests.rounding, and the library's tolerances under it: each allows what rounding on a GPU does, and no mistake."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iidlib.bench import timing
from iidlib.bench.baseline import PerClassLoop
from iidlib.distillation import Distillation, captured
from iidlib.networks import build_network
from iidlib.rng import stream
from iidlib.training import Examples, Training, ensemble, loop, testing
from iidlib.training.together import Form
from tests.factories import difference, draw, labelled_noise, noise_images, ready_run, settings, tiny_dataset
from tests.rounding import Rounding, bf16, rounded, tf32

# The emulation


@pytest.mark.parametrize(
    ("value", "bits", "expected"),
    [
        (1 + 2**-10, 10, 1 + 2**-10),
        (1 + 2**-11, 10, 1 + 2**-10),  # half way, away from zero
        (-1 - 2**-11, 10, -1 - 2**-10),
        (1 + 2**-12, 10, 1.0),
        (1 + 2**-8 + 2**-20, 7, 1 + 2**-7),
        (1 + 2**-9, 7, 1.0),
        (2 - 2**-12, 10, 2.0),  # into the next power of two
        (3e38, 7, 3e38),
        (0.0, 10, 0.0),
        (float("inf"), 10, float("inf")),
    ],
)
def test_values_are_rounded_to_the_nearest(value, bits, expected):
    assert float(rounded(torch.tensor([value]), bits)) == pytest.approx(expected, rel=2e-3 if value == 3e38 else 0)


def test_nan_stays_and_float64_too():
    assert rounded(torch.tensor([torch.nan]), 10).isnan()
    x = draw(5)
    assert rounded(x, 10) is x


def test_seven_bits_are_bfloat16():
    x = draw(1000, dtype=torch.float32)
    assert torch.equal(rounded(x, 7), x.bfloat16().float())  # nothing of it is half way


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_is_kept(layout):
    x = draw(2, 3, 4, 4, dtype=torch.float32).contiguous(memory_format=layout)
    assert rounded(x, 10).is_contiguous(memory_format=layout)
    assert rounded(x[:, :2], 10).stride() in (x[:, :2].stride(), x[:, :2].clone().stride())


PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "mm": (torch.mm, ((4, 5), (5, 3))),
    "bmm": (torch.bmm, ((2, 4, 5), (2, 5, 3))),
    "addmm": (lambda a, b: torch.addmm(torch.zeros(3), a, b), ((4, 5), (5, 3))),
    "baddbmm": (lambda a, b: torch.baddbmm(torch.zeros(2, 4, 3), a, b), ((2, 4, 5), (2, 5, 3))),
    "convolution": (torch.conv2d, ((2, 3, 6, 6), (4, 3, 3, 3))),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("bits", [10, 7])
def test_products_and_their_gradients_see_rounded_factors(name, bits):
    function, shapes = PRODUCTS[name]
    a, b = (draw(*shape, seed=seed, dtype=torch.float32).requires_grad_() for seed, shape in enumerate(shapes))
    cotangent = draw(*function(a, b).shape, seed=3, dtype=torch.float32)
    with Rounding(bits) as mode:
        out = function(a, b)
        found = out.detach(), *torch.autograd.grad(out, (a, b), cotangent)
    assert mode.products >= 2, "forward and backward"
    a, b = (rounded(x.detach(), bits).requires_grad_() for x in (a, b))
    out = function(a, b)
    expected = out.detach(), *torch.autograd.grad(out, (a, b), rounded(cotangent, bits))
    assert all(difference(one, other) < 1e-6 for one, other in zip(found, expected, strict=True))
    assert difference(found[0], function(draw(*shapes[0], dtype=torch.float32), b).detach()) > 1e-5, "rounding is seen"


def test_the_other_order_of_summation_is_the_same_product():
    x, weight = draw(2, 8, 6, 6, dtype=torch.float32), draw(4, 8, 3, 3, seed=1, dtype=torch.float32)
    with tf32():
        one = torch.conv2d(x, weight)
    with tf32(reverse=True):
        other = torch.conv2d(x, weight)
    assert 0 < difference(one, other) < 1e-5


# The tolerances

METHODS = ("dm", "dm-cm", "iid-dm", "idm", "iid-idm")
each_method = pytest.mark.parametrize("method", METHODS)


def realistic(method: str) -> Distillation:
    """Networks of the paper, narrower, on images of 32 pixels."""
    sizes = {"match__network": "convnet3", "match__width": 32, "match__batch_real": 8}
    return ready_run(settings(method, 3, **sizes), tiny_dataset(12, 32), pretrained="convnet3")


def losses_and_gradient(
    side: Distillation | PerClassLoop, mode: Rounding | None = None, iteration: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Terms of an iteration and their gradient, with the rounding of a mode."""
    with mode or contextlib.nullcontext():
        losses = side.losses(iteration)
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), side.images)
    return {name: loss.detach() for name, loss in losses.items()}, gradient


@pytest.mark.parametrize("mode", [tf32, bf16])
@each_method
def test_a_recording_may_use_other_kernels_but_no_other_draws(method, mode):
    """A replay and a plain step round the same factors, but a library may choose kernels that add up otherwise."""
    run = realistic(method)
    (_, one), (_, other) = (losses_and_gradient(run, mode(reverse=reverse)) for reverse in (False, True))
    assert 0 < difference(other, one) < captured.TOLERANCE / 4
    _, of_next = losses_and_gradient(run, mode(), iteration=1)
    assert difference(of_next, one) > 4 * captured.TOLERANCE


@each_method
def test_the_bench_compares_in_float32_where_rounding_would_exceed_its_tolerance(method):
    run = realistic(method)
    theirs, their_gradient = losses_and_gradient(PerClassLoop(run))
    ours, gradient = losses_and_gradient(run)
    found = max(timing.relative_difference(ours[name], theirs[name]) for name in run.terms)
    assert found < timing.LOSS_TOLERANCE and difference(gradient, their_gradient) < timing.GRADIENT_TOLERANCE
    in_tf32, in_bf16 = (difference(losses_and_gradient(run, mode)[1], gradient) for mode in (tf32(), bf16()))
    assert 1e-3 < in_tf32 < in_bf16 < 0.5, "what the bench reports as the rounding of the precision"


def update(form: Form, mode: Rounding, first: int = 0) -> Tensor:
    """The change of the weights of two networks by a step on 16 images from the first of them on."""
    networks = [
        build_network("convnet3", num_classes=4, image_size=32, width=32, generator=stream(number, 0, "network"))
        for number in range(2)
    ]
    before = torch.cat([p.detach().flatten() for network in networks for p in network.parameters()])
    pictures, labels = labelled_noise(32, 32, classes=4, dtype=torch.float32)
    examples, training = Examples(lambda index: pictures[index], labels), Training(epochs=1, lr=0.01, batch=16)
    # private, since only this takes the form of a step
    trained = ensemble._Ensemble(networks, examples, training, form)
    with mode:
        trained.train_epoch(torch.arange(first, first + 16).expand(2, -1), [stream(0, 0, "draws") for _ in range(2)])
    trained.write_back()
    return torch.cat([p.detach().flatten() for network in networks for p in network.parameters()]) - before


@pytest.mark.parametrize(("mode", "share"), [(tf32, 0.25), (bf16, 0.7)])
def test_networks_at_once_and_in_turn_differ_less_than_their_recordings_may(mode, share):
    """Grouped convolutions for all networks against a convolution for each: other kernels, with the same factors.

    Maps that are kept in bfloat16 are rounded eight times as coarsely, which takes most of the tolerance.
    """
    one, other = update("at_once", mode()), update("in_turn", mode(reverse=True))
    assert 0 < difference(one, other) < share * loop.UPDATE_TOLERANCE
    assert difference(update("in_turn", mode(), first=16), other) > 4 * loop.UPDATE_TOLERANCE, "other images"


@pytest.mark.parametrize("mode", [tf32, bf16])
def test_outputs_of_tested_networks_differ_less_than_their_recording_may(mode):
    """The same factors added up in another order, on the scale that a recording is compared on."""
    network = build_network("convnet3", num_classes=4, image_size=32, width=32, generator=stream(0, 0, "network"))
    images = noise_images(16, dtype=torch.float32)
    found = []
    for reverse in (False, True):
        with torch.no_grad(), mode(reverse=reverse):
            found.append(network(images))
    assert difference(*found) < testing.TOLERANCE / 4
    assert difference(network(images.flip(0)).detach(), found[0]) > 4 * testing.TOLERANCE, "other images"
