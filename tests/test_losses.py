"""iidlib.losses: every loss against its equation, its gradient, its invariances, errors, classes of any size."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iidlib.losses import (
    class_centralization,
    class_cross_entropy,
    covariance_matching,
    local_covariance,
    mean_matching,
    scatter,
    squared_distances,
)
from tests import reference
from tests.factories import COUNTS, draw, near, ragged
from tests.strategies import SEEDS, SIZES

# Values against the equations, one class and one image at a time


@pytest.mark.parametrize("seed", range(3))
def test_mean_matching_is_its_equation(seed):
    real, syn = draw(3, 7, 5, seed=seed), draw(3, 4, 5, seed=seed + 10)
    expected = torch.stack([reference.mean_matching(r, s) for r, s in zip(real, syn, strict=True)])
    assert near(mean_matching(real, syn), expected)


@pytest.mark.parametrize("seed", range(3))
def test_covariance_and_its_matching_are_their_equations(seed):
    real, syn = draw(3, 7, 5, 4, seed=seed), draw(3, 2, 5, 4, seed=seed + 10)
    covariance = torch.stack([reference.local_covariance(r) for r in real])
    expected = torch.stack([reference.covariance_matching(r, s) for r, s in zip(real, syn, strict=True)])
    assert near(local_covariance(real), covariance)
    assert near(covariance_matching(real, syn), expected)


@pytest.mark.parametrize(
    "settings",
    [{}, {"form": "exp"}, {"form": "exp", "alpha": 0.05}, {"form": "exp", "alpha": 0.1, "beta": 1.6}],
    ids=str,
)
def test_class_centralization_is_its_equation(settings):
    features = draw(3, 5, 8)
    expected = torch.stack([reference.class_centralization(f, **settings) for f in features])
    assert near(class_centralization(features, **settings), expected)
    distances = torch.stack([torch.stack(reference.squared_distances(f)) for f in features])
    assert near(squared_distances(features), distances)


@given(st.integers(0, 2**32))
def test_class_cross_entropy_is_its_equation(seed):
    logits = torch.randn(4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5
    for each, tolerance in ((logits, 1e-10), (logits.float(), 1e-4)):
        found = class_cross_entropy(each)
        expected = torch.stack([reference.class_cross_entropy(own, c) for c, own in enumerate(logits)])
        assert found.shape == (4,) and found.dtype == each.dtype
        assert float((found.double() - expected).norm()) <= tolerance * float(expected.norm())


def test_class_cross_entropy_by_hand_and_its_gradient():
    assert class_cross_entropy(torch.zeros(3, 2, 3)).tolist() == pytest.approx([math.log(3)] * 3)
    sure = 100.0 * torch.eye(3)[:, None].expand(3, 2, 3)
    assert class_cross_entropy(sure).tolist() == pytest.approx([0] * 3, abs=1e-6)
    logits = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(class_cross_entropy, (logits,))
    (gradient,) = torch.autograd.grad(class_cross_entropy(logits)[1], logits)
    assert not gradient[0].any() and not gradient[2].any() and gradient[1].any(), "classes do not see each other"


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4), (3, 0, 3)])
def test_logits_of_a_wrong_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"logits must .* got"):
        class_cross_entropy(torch.zeros(shape))


def test_values_by_hand():
    real, syn = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    assert mean_matching(real, syn).tolist() == [10.0]  # (2, 3) against (1, 0)
    # one channel, two positions, two images: centre (1, 3), the scatter is 1 + 1 + 1 + 1, divided by 2 images
    assert local_covariance(torch.tensor([[[[0.0, 2.0]], [[2.0, 4.0]]]])).tolist() == [[[2.0]]]
    assert class_centralization(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])).tolist() == [2.0]
    exp = class_centralization(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), form="exp", alpha=0.5, beta=1.0)
    assert exp.tolist() == pytest.approx([2 * (math.exp(0.5) - 1)])


# Gradients


def test_gradients_are_those_worked_out_by_hand():
    real, syn = draw(6, 5, 4), draw(3, 5, 4, seed=1).requires_grad_()
    flat = (real.flatten(1)[None], syn.flatten(1)[None])
    (mean,) = torch.autograd.grad(mean_matching(*flat).sum(), syn)
    assert near(mean.flatten(1), reference.mean_matching_gradient(real.flatten(1), syn.detach().flatten(1)))
    (cm,) = torch.autograd.grad(covariance_matching(real[None], syn[None]).sum(), syn)
    assert near(cm, reference.covariance_matching_gradient(real, syn.detach()))
    (cc,) = torch.autograd.grad(class_centralization(syn.flatten(1)[None]).sum(), syn)
    assert near(cc.flatten(1), reference.class_centralization_gradient(syn.detach().flatten(1)))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_by_finite_differences(masked):
    mask = torch.tensor([[True, True, False], [True, True, True]]) if masked else None
    vectors = (draw(2, 3, 4).requires_grad_(), draw(2, 3, 4, seed=1).requires_grad_())
    maps = (draw(2, 3, 3, 2).requires_grad_(), draw(2, 3, 3, 2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda r, s: mean_matching(r, s, mask, mask), vectors)
    assert torch.autograd.gradcheck(lambda r, s: covariance_matching(r, s, mask, mask), maps)
    assert torch.autograd.gradcheck(lambda x: local_covariance(x, mask), maps[:1])
    assert torch.autograd.gradcheck(lambda x: squared_distances(x, mask), vectors[:1])
    assert torch.autograd.gradcheck(lambda x: class_centralization(x, mask), vectors[:1])
    exp = {"form": "exp", "alpha": 0.1, "beta": 1.2}
    assert torch.autograd.gradcheck(lambda x: class_centralization(x, mask, **exp), vectors[:1])


def test_one_image_a_class_has_no_gradient_but_that_of_the_mean():
    real, syn = draw(2, 6, 5, 4), draw(2, 1, 5, 4, seed=1).requires_grad_()
    (cm,) = torch.autograd.grad(covariance_matching(real, syn).sum(), syn)
    (cc,) = torch.autograd.grad(class_centralization(syn.flatten(2)).sum(), syn)
    exp_loss = class_centralization(syn.flatten(2), form="exp", alpha=0.5)
    (exp,) = torch.autograd.grad(exp_loss.sum(), syn)
    (mean,) = torch.autograd.grad(mean_matching(real.flatten(2), syn.flatten(2)).sum(), syn)
    assert not cm.any() and not cc.any() and not exp.any() and mean.any()
    assert not class_centralization(syn.flatten(2)).any() and exp_loss.tolist() == [1.0, 1.0]
    assert not local_covariance(syn).any()


# Classes of unequal size


@pytest.mark.parametrize("padding", [0.0, 7.0, math.inf, math.nan])
def test_what_is_padded_takes_no_part_in_values_or_gradients(padding):
    reals, real, real_mask = ragged(COUNTS, 4, 3, padding=padding)
    syns, syn, syn_mask = ragged((1, 3, 2, 5), 4, 3, seed=50, padding=padding)
    pairs = [(r, s.requires_grad_()) for r, s in zip(reals, syns, strict=True)]
    syn.requires_grad_()
    cases = {
        "mean": (
            mean_matching(real.flatten(2), syn.flatten(2), real_mask, syn_mask),
            [reference.mean_matching(r.flatten(1), s.flatten(1)) for r, s in pairs],
        ),
        "covariance": (
            local_covariance(syn, syn_mask).sum((1, 2)),
            [reference.local_covariance(s).sum() for _, s in pairs],
        ),
        "cm": (
            covariance_matching(real, syn, real_mask, syn_mask),
            [reference.covariance_matching(r, s) for r, s in pairs],
        ),
        "distances": (
            squared_distances(syn.flatten(2), syn_mask).sum(1),
            [sum(reference.squared_distances(s.flatten(1))) for _, s in pairs],
        ),
        "cc": (
            class_centralization(syn.flatten(2), syn_mask),
            [reference.class_centralization(s.flatten(1)) for _, s in pairs],
        ),
        "exp": (
            class_centralization(syn.flatten(2), syn_mask, form="exp", alpha=0.1),
            [reference.class_centralization(s.flatten(1), "exp", 0.1) for _, s in pairs],
        ),
        "exp above beta": (
            class_centralization(syn.flatten(2), syn_mask, form="exp", alpha=0.1, beta=1.1),
            [reference.class_centralization(s.flatten(1), "exp", 0.1, 1.1) for _, s in pairs],
        ),
    }
    for name, (value, expected) in cases.items():
        assert near(value.detach(), torch.stack(expected).detach()), name
        (gradient,) = torch.autograd.grad(value.sum(), syn)
        by_class = torch.autograd.grad(sum(expected), syns, materialize_grads=True)
        assert near(gradient[syn_mask], torch.cat(by_class)), name
        assert not gradient[~syn_mask].any(), name


@pytest.mark.parametrize("count", COUNTS)
def test_a_mask_that_leaves_nothing_out_is_no_mask(count):
    fmap, mask = draw(2, count, 3, 2), torch.ones(2, count, dtype=torch.bool)
    other = draw(2, 4, 3, 2, seed=1)
    assert near(covariance_matching(fmap, other, mask), covariance_matching(fmap, other))
    assert near(
        mean_matching(fmap.flatten(2), other.flatten(2), mask), mean_matching(fmap.flatten(2), other.flatten(2))
    )
    masked = class_centralization(fmap.flatten(2), mask)
    assert torch.allclose(masked, class_centralization(fmap.flatten(2)), rtol=1e-12, atol=0)


def test_distances_are_zero_where_there_is_no_image():
    mask = torch.tensor([[True, True, False]])
    assert squared_distances(draw(1, 3, 2), mask)[0, 2] == 0


def test_scatter_is_the_mean_distance_and_zero_for_copies_however_they_are_rounded():
    features = draw(3, 5, 8)
    distances = [torch.stack(reference.squared_distances(one)).mean() for one in features]
    assert near(scatter(features), torch.stack(distances))
    mask = torch.tensor([[True] * 3 + [False] * 2] * 3)
    assert near(scatter(features, mask), scatter(features[:, :3]))
    for size in (1e-10, 1e10):
        assert near(scatter(features * size) / size**2, scatter(features)), "it has the unit of the features, squared"
    copies = features[:, :1].float() * (1 + 1e-6 * torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)))
    assert squared_distances(copies).sum() > 0 and scatter(copies).tolist() == [0, 0, 0]
    assert scatter(copies, mask).tolist() == [0, 0, 0] and scatter(torch.zeros(1, 2, 3)).tolist() == [0]


# Invariances


@given(seed=SEEDS, images=SIZES)
def test_the_order_of_images_in_a_batch_does_not_matter(seed, images):
    real, syn = draw(2, images, 4, 3, seed=seed), draw(2, 3, 4, 3, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randperm(images, generator=generator), torch.randperm(3, generator=generator)
    shuffled = real[:, one], syn[:, other]
    assert near(covariance_matching(*shuffled), covariance_matching(real, syn))
    flat, shuffled_flat = (real.flatten(2), syn.flatten(2)), tuple(x.flatten(2) for x in shuffled)
    assert near(mean_matching(*shuffled_flat), mean_matching(*flat))
    for form in ("linear", "exp"):
        assert near(class_centralization(shuffled_flat[1], form=form), class_centralization(flat[1], form=form))


@given(seed=SEEDS, images=SIZES)
def test_classes_do_not_see_each_other(seed, images):
    real, syn = draw(3, images, 4, 3, seed=seed), draw(3, 2, 4, 3, seed=seed + 1)
    order = torch.tensor([2, 0, 1])
    assert near(covariance_matching(real[order], syn[order]), covariance_matching(real, syn)[order])
    assert near(covariance_matching(real[:1], syn[:1]), covariance_matching(real, syn)[:1])
    real, syn = real.flatten(2), syn.flatten(2)
    assert near(mean_matching(real[1:2], syn[1:2]), mean_matching(real, syn)[1:2])
    assert near(class_centralization(syn[2:]), class_centralization(syn)[2:])


@given(seed=SEEDS, images=SIZES)
def test_equal_sets_match_and_so_does_a_set_taken_twice(seed, images):
    fmap = draw(2, images, 4, 3, seed=seed)
    assert not mean_matching(fmap.flatten(2), fmap.flatten(2)).any()
    assert not covariance_matching(fmap, fmap).any()
    twice = torch.cat([fmap, fmap], 1)
    assert torch.allclose(covariance_matching(fmap, twice), torch.zeros(2, dtype=torch.float64), atol=1e-20)
    assert torch.allclose(mean_matching(fmap.flatten(2), twice.flatten(2)), torch.zeros(2, dtype=torch.float64))
    # centralization asks for more: the images of a class at one point
    assert (class_centralization(fmap.flatten(2)) > 0).all()
    assert not class_centralization(torch.ones(2, images, 4)).any()


@given(seed=SEEDS, images=SIZES)
def test_a_shift_of_all_images_moves_only_the_mean(seed, images):
    fmap, other, shift = (
        draw(2, images, 4, 3, seed=seed),
        draw(2, 3, 4, 3, seed=seed + 1),
        draw(2, 1, 4, 3, seed=seed + 2),
    )
    assert near(local_covariance(fmap + shift), local_covariance(fmap))
    assert near(covariance_matching(fmap + shift, other), covariance_matching(fmap, other))
    assert near(class_centralization((fmap + shift).flatten(2)), class_centralization(fmap.flatten(2)))
    moved = mean_matching((fmap + shift).flatten(2), fmap.flatten(2))
    assert near(moved, shift.square().sum((1, 2, 3)))


@given(seed=SEEDS, images=SIZES, scale=st.floats(0.1, 10))
def test_scaling_laws(seed, images, scale):
    fmap, other = draw(2, images, 4, 3, seed=seed), draw(2, 3, 4, 3, seed=seed + 1)
    flat, other_flat = fmap.flatten(2), other.flatten(2)
    assert near(mean_matching(scale * flat, scale * other_flat), scale**2 * mean_matching(flat, other_flat))
    assert near(local_covariance(scale * fmap), scale**2 * local_covariance(fmap))
    assert near(covariance_matching(scale * fmap, scale * other), scale**4 * covariance_matching(fmap, other))
    assert near(class_centralization(scale * flat), scale**2 * class_centralization(flat))


@given(seed=SEEDS, images=SIZES)
def test_a_rotation_of_the_channels_changes_no_distance(seed, images):
    fmap, other = draw(2, images, 4, 3, seed=seed), draw(2, 3, 4, 3, seed=seed + 1)
    rotation = torch.linalg.qr(draw(4, 4, seed=seed + 2)).Q
    assert near(local_covariance(rotation @ fmap), rotation @ local_covariance(fmap) @ rotation.T)
    assert near(covariance_matching(rotation @ fmap, rotation @ other), covariance_matching(fmap, other))
    turned, flat, other = (rotation @ fmap)[..., 0], fmap[..., 0], other[..., 0]
    assert near(class_centralization(turned), class_centralization(flat))
    assert near(mean_matching(turned, other @ rotation.T), mean_matching(flat, other))


@given(seed=SEEDS, images=SIZES)
def test_the_order_of_positions_does_not_matter_to_the_covariance(seed, images):
    fmap = draw(2, images, 4, 3, seed=seed)
    assert near(local_covariance(fmap[..., [2, 0, 1]]), local_covariance(fmap))


@given(seed=SEEDS, images=SIZES)
def test_the_covariance_is_symmetric_and_of_the_rank_that_its_images_allow(seed, images):
    covariance = local_covariance(draw(1, images, 9, 2, seed=seed))[0]
    assert torch.equal(covariance, covariance.T) or torch.allclose(covariance, covariance.T, rtol=1e-12, atol=1e-14)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12
    assert torch.linalg.matrix_rank(covariance, hermitian=True) == min(9, 2 * (images - 1))


# The exp form


@given(seed=SEEDS)
def test_the_exp_form_at_small_distances_is_the_linear_form_times_alpha(seed):
    features = draw(2, 5, 4, seed=seed)
    alpha = 1e-7
    linear = class_centralization(features)
    assert near(class_centralization(features, form="exp", alpha=alpha) - 5, alpha * linear, 1e-4)


@given(seed=SEEDS, beta=st.floats(0, 1))
def test_beta_up_to_one_leaves_the_gradient_as_it_is(seed, beta):
    features = draw(2, 5, 4, seed=seed).requires_grad_()
    loss = class_centralization(features, form="exp", alpha=0.02, beta=beta)
    (with_beta,) = torch.autograd.grad(loss.sum(), features)
    (without,) = torch.autograd.grad(class_centralization(features, form="exp", alpha=0.02).sum(), features)
    assert torch.equal(with_beta, without)
    assert (loss > 0).all()


def test_beta_above_one_pulls_only_the_images_farther_than_its_radius():
    alpha, beta = 0.1, 1.5
    radius = math.log(beta) / alpha  # 4.05
    # two images at squared distance 1 and two at 9 from the centre, which is the origin
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]]], dtype=torch.float64).requires_grad_()
    assert squared_distances(features)[0].gt(radius).tolist() == [False, False, True, True]
    loss = class_centralization(features, form="exp", alpha=alpha, beta=beta)
    assert loss.tolist() == pytest.approx([2 * (math.exp(0.9) - beta)])
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    assert gradient[0].abs().sum(1).gt(0).tolist() == [False, False, True, True]
    assert class_centralization(features, form="exp", alpha=alpha, beta=100.0).tolist() == [0.0]


def test_the_exp_form_overflows_where_its_docstring_says():
    def at(distance: float) -> float:
        half = math.sqrt(distance)
        return float(class_centralization(torch.tensor([[[half], [-half]]]), form="exp"))

    assert math.isfinite(at(4390)) and at(4450) == math.inf


# Dtype and errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_keep_the_dtype(dtype):
    fmap, mask = draw(2, 3, 4, 2, dtype=dtype), torch.tensor([[True, True, False], [True, True, True]])
    for value in (
        mean_matching(fmap.flatten(2), fmap.flatten(2), mask),
        covariance_matching(fmap, fmap, mask),
        class_centralization(fmap.flatten(2), mask),
        class_centralization(fmap.flatten(2), form="exp"),
    ):
        assert value.dtype == dtype and value.shape == (2,)


FLAT, MAP, MASK = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 5), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_matching(MAP, FLAT), r"real must have shape \[C, N, D\], got \(2, 3, 4, 5\)"),
        (lambda: mean_matching(FLAT, FLAT[0]), r"syn must have shape \[C, n, D\], got \(3, 4\)"),
        (lambda: mean_matching(FLAT, FLAT[:1]), r"agree in every axis .* got \(2, 3, 4\) and \(1, 3, 4\)"),
        (lambda: mean_matching(FLAT, FLAT[..., :2]), "agree in every axis"),
        (lambda: mean_matching(FLAT[:, :0], FLAT), r"real must hold at least one image .* \(2, 0, 4\)"),
        (lambda: mean_matching(FLAT, FLAT, MASK[:, :2]), r"mask of real .* \(2, 3\), got torch.bool \(2, 2\)"),
        (lambda: mean_matching(FLAT, FLAT, None, MASK.int()), "mask of syn must be boolean .* torch.int32"),
        (lambda: mean_matching(FLAT, FLAT, MASK & False), "every class needs at least one image"),
        (lambda: local_covariance(FLAT), r"fmap must have shape \[C, N, K, P\]"),
        (lambda: local_covariance(MAP, MASK[:1]), "mask of fmap"),
        (lambda: covariance_matching(FLAT, MAP), r"real must have shape \[C, N, K, P\]"),
        (lambda: covariance_matching(MAP, MAP[..., :2]), "agree in every axis"),
        (lambda: covariance_matching(MAP, MAP[:, :, :1]), "agree in every axis"),
        (lambda: covariance_matching(MAP, MAP, MASK & False), "every class needs at least one image"),
        (lambda: covariance_matching(MAP, MAP[:, :0]), "syn must hold at least one image"),
        (lambda: squared_distances(MAP), r"features must have shape \[C, n, D\]"),
        (lambda: class_centralization(MAP), r"features must have shape \[C, n, D\]"),
        (lambda: class_centralization(FLAT, MASK[:, :1]), "mask of features"),
        (lambda: class_centralization(FLAT, form="cubic"), "form must be 'linear' or 'exp', got 'cubic'"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
