"""iidlib.losses.distributions: both distances against their equations, gradients, invariances, errors, any class."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iidlib.losses import characteristic_distance, kernel_distance
from tests import reference
from tests.factories import COUNTS, draw, near, ragged
from tests.strategies import SEEDS, SIZES

FREQUENCIES = draw(6, 5, seed=77)
"""For features of 5 dimensions."""


def characteristic(real: Tensor, syn: Tensor, width: Tensor, *masks: Tensor | None) -> Tensor:
    return characteristic_distance(real, syn, width, FREQUENCIES.to(real.dtype), *masks)


def characteristic_by_hand(real: Tensor, syn: Tensor, width: Tensor) -> Tensor:
    return reference.characteristic_distance(real, syn, width, FREQUENCIES)


FORMS = [
    pytest.param(kernel_distance, reference.kernel_distance, id="kernel"),
    pytest.param(characteristic, characteristic_by_hand, id="characteristic"),
]
DISTANCES = [pytest.param(form.values[0], id=form.id) for form in FORMS]
Distance = Callable[..., Tensor]


def widths(classes: int, seed: int = 0) -> Tensor:
    """Squared widths near the squared distances of standard normal features in 5 dimensions."""
    return 2 + 5 * torch.rand(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Values against the equations, one class and one pair of images at a time


@pytest.mark.parametrize(("distance", "by_hand"), FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_distances_are_their_equations(distance: Distance, by_hand: Distance, seed: int) -> None:
    real, syn, width = draw(3, 7, 5, seed=seed), draw(3, 4, 5, seed=seed + 10), widths(3, seed)
    expected = torch.stack([by_hand(*each) for each in zip(real, syn, width, strict=True)])
    assert near(distance(real, syn, width), expected)
    single = distance(real.float(), syn.float(), width.float())
    assert single.dtype == torch.float32 and near(single.double(), expected, 1e-4)


@pytest.mark.parametrize(("distance", "by_hand"), FORMS)
def test_features_far_from_the_origin_lose_no_digits(distance: Distance, by_hand: Distance) -> None:
    """Features of trained networks have means many times their spread, and float32 has seven digits."""
    real, syn, width = draw(2, 6, 5) + 300, draw(2, 4, 5, seed=1) + 300, widths(2)
    expected = torch.stack([by_hand(*each) for each in zip(real, syn, width, strict=True)])
    assert near(distance(real.float(), syn.float(), width.float()).double(), expected, 1e-4)


def test_values_by_hand() -> None:
    real, syn, width = torch.tensor([[[0.0]]]), torch.tensor([[[2.0]]]), torch.tensor([2.0])
    assert kernel_distance(real, syn, width).tolist() == pytest.approx([2 - 2 * math.exp(-1)])
    # frequency pi / sqrt(2) in units of sqrt(2): phases 0 and pi, which lie opposite each other; frequency 0 sees none
    frequencies = torch.tensor([[math.pi / math.sqrt(2)], [0.0]])
    assert characteristic_distance(real, syn, width, frequencies).tolist() == pytest.approx([(4 + 0) / 2])


def test_both_see_what_the_mean_does_not() -> None:
    real, syn = torch.tensor([[[-1.0], [1.0]]]), torch.tensor([[[-3.0], [3.0]]])
    assert torch.equal(real.mean(1), syn.mean(1))
    width, frequencies = torch.ones(1), torch.tensor([[0.5]])
    assert kernel_distance(real, syn, width) > 0.1 and characteristic_distance(real, syn, width, frequencies) > 0.1


@pytest.mark.parametrize("squared_width", [0.5, 4.0, 30.0])
def test_over_many_frequencies_the_characteristic_distance_is_that_of_the_kernel(squared_width: float) -> None:
    """Bochner's theorem; the error of a mean of F values falls as the root of F."""
    real, syn = draw(3, 7, 5), draw(3, 4, 5, seed=1)
    width = torch.full((3,), squared_width, dtype=torch.float64)
    expected = kernel_distance(real, syn, width)
    errors = [
        float((characteristic_distance(real, syn, width, draw(count, 5, seed=2)) - expected).norm() / expected.norm())
        for count in (200, 80_000)
    ]
    assert errors[1] < 0.01 and errors[1] < errors[0] / 5


# Gradients


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_by_finite_differences(distance: Distance, masked: bool) -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]]) if masked else None
    real, syn = draw(2, 3, 5), draw(2, 3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: distance(real, s, widths(2), mask, mask), (syn,))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_origin_that_is_chosen_for_precision_has_no_part_in_the_gradient_of_the_real_side(
    distance: Distance,
) -> None:
    real, syn = draw(2, 3, 5).requires_grad_(), draw(2, 3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda r: distance(r, syn, widths(2)), (real,))


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_sets_have_no_gradient(distance: Distance) -> None:
    real = draw(2, 4, 5)
    syn = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(real, syn, widths(2)).sum(), syn)
    assert gradient.abs().max() < 1e-12


# Classes of unequal size


@pytest.mark.parametrize(("distance", "by_hand"), FORMS)
@pytest.mark.parametrize("padding", [0.0, 7.0, math.inf, math.nan])
def test_what_is_padded_takes_no_part_in_values_or_gradients(
    distance: Distance, by_hand: Distance, padding: float
) -> None:
    counts = tuple(min(count, 20) for count in COUNTS)
    reals, real, real_mask = ragged(counts, 5, padding=padding)
    syns, syn, syn_mask = ragged((1, 3, 2, 5), 5, seed=50, padding=padding)
    width = widths(4)
    syns = [each.requires_grad_() for each in syns]
    syn.requires_grad_()
    expected = [by_hand(*each) for each in zip(reals, syns, width, strict=True)]
    value = distance(real, syn, width, real_mask, syn_mask)
    assert near(value.detach(), torch.stack(expected).detach())
    (gradient,) = torch.autograd.grad(value.sum(), syn)
    assert near(gradient[syn_mask], torch.cat(torch.autograd.grad(sum(expected), syns)))
    assert not gradient[~syn_mask].any()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_mask_that_leaves_nothing_out_is_no_mask(distance: Distance) -> None:
    real, syn, width = draw(2, 6, 5), draw(2, 3, 5, seed=1), widths(2)
    masks = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    assert near(distance(real, syn, width, *masks), distance(real, syn, width))


# Invariances


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=SEEDS, images=SIZES)
def test_the_order_of_images_and_a_set_taken_twice_change_nothing(distance: Distance, seed: int, images: int) -> None:
    real, syn, width = draw(2, images, 5, seed=seed), draw(2, 3, 5, seed=seed + 1), widths(2, seed)
    value = distance(real, syn, width)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    assert near(distance(real[:, order], syn.flip(1), width), value)
    assert near(distance(torch.cat([real, real], 1), syn, width), value)


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=SEEDS, images=SIZES)
def test_classes_do_not_see_each_other(distance: Distance, seed: int, images: int) -> None:
    real, syn, width = draw(3, images, 5, seed=seed), draw(3, 2, 5, seed=seed + 1), widths(3, seed)
    order, value = torch.tensor([2, 0, 1]), distance(real, syn, width)
    assert near(distance(real[order], syn[order], width[order]), value[order])
    assert near(distance(real[:1], syn[:1], width[:1]), value[:1])


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=SEEDS, images=SIZES)
def test_equal_sets_are_at_distance_zero_and_others_within_the_bounds(
    distance: Distance, seed: int, images: int
) -> None:
    real, width = draw(2, images, 5, seed=seed), widths(2, seed)
    assert distance(real, real, width).abs().max() < 1e-14
    assert distance(real, torch.cat([real, real], 1), width).abs().max() < 1e-14
    far = distance(real, draw(2, 3, 5, seed=seed + 1) + 100, width)
    assert (far > 0).all() and (far < (2 if distance is kernel_distance else 4) + 1e-12).all()


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=SEEDS, images=SIZES)
def test_a_shift_of_both_sides_changes_nothing(distance: Distance, seed: int, images: int) -> None:
    real, syn, width = draw(2, images, 5, seed=seed), draw(2, 3, 5, seed=seed + 1), widths(2, seed)
    shift = 10 * draw(2, 1, 5, seed=seed + 2)
    assert near(distance(real + shift, syn + shift, width), distance(real, syn, width))


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_features_in_other_units_change_nothing_where_the_width_follows(
    distance: Distance, seed: int, scale: float
) -> None:
    real, syn, width = draw(2, 4, 5, seed=seed), draw(2, 3, 5, seed=seed + 1), widths(2, seed)
    assert near(distance(scale * real, scale * syn, scale**2 * width), distance(real, syn, width))


@given(seed=SEEDS, images=SIZES)
def test_a_rotation_of_the_features_changes_no_distance(seed: int, images: int) -> None:
    real, syn, width = draw(2, images, 5, seed=seed), draw(2, 3, 5, seed=seed + 1), widths(2, seed)
    rotation = torch.linalg.qr(draw(5, 5, seed=seed + 2)).Q
    turned = real @ rotation, syn @ rotation
    assert near(kernel_distance(*turned, width), kernel_distance(real, syn, width))
    assert near(
        characteristic_distance(*turned, width, FREQUENCIES @ rotation),
        characteristic_distance(real, syn, width, FREQUENCIES),
    )


# Errors

FLAT, WIDTH, MASK = torch.zeros(2, 3, 5), torch.ones(2), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FLAT[0], FLAT, WIDTH), r"real must have shape \[C, N, D\], got \(3, 5\)"),
        ((FLAT, FLAT[0], WIDTH), r"syn must have shape \[C, n, D\], got \(3, 5\)"),
        ((FLAT, FLAT[:1], WIDTH), r"agree in every axis .* got \(2, 3, 5\) and \(1, 3, 5\)"),
        ((FLAT, FLAT[..., :2], WIDTH), "agree in every axis"),
        ((FLAT[:, :0], FLAT, WIDTH), r"real must hold at least one image .* \(2, 0, 5\)"),
        ((FLAT, FLAT[:, :0], WIDTH), "syn must hold at least one image"),
        ((FLAT, FLAT, WIDTH[:1]), r"squared_width must have shape \(2,\) .* got \(1,\)"),
        ((FLAT, FLAT, WIDTH[:, None]), r"squared_width must have shape \(2,\)"),
        ((FLAT, FLAT, WIDTH, MASK[:, :2]), r"mask of real .* \(2, 3\), got torch.bool \(2, 2\)"),
        ((FLAT, FLAT, WIDTH, None, MASK.int()), "mask of syn must be boolean .* torch.int32"),
        ((FLAT, FLAT, WIDTH, MASK & False), "every class needs at least one image"),
        ((FLAT, FLAT, WIDTH, None, MASK & False), "every class needs at least one image"),
    ],
)
def test_wrong_shapes_are_named(distance: Distance, arguments: tuple[Tensor | None, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distance(*arguments)


@pytest.mark.parametrize("shape", [(6, 4), (5,), (2, 6, 5), (0, 5)])
def test_frequencies_of_a_wrong_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^frequencies must have shape \[F, 5\], F at least 1, got \({shape[0]},"):
        characteristic_distance(FLAT, FLAT, WIDTH, torch.zeros(shape))
