"""iidlib.augment: every operation equals its definition, and all groups in one call equal one image at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from iidlib.augment import OPERATIONS, Draws, apply, parse_strategy, sample
from tests import reference_augment
from tests.factories import noise_images, seeded

ALL = "color_crop_cutout_flip_scale_rotate"
LAST = 1 - 2**-24  # the largest float32 below 1: what torch.rand can return at most


def draws_of(operation: str, *rows: tuple[float, float, float]) -> Draws:
    return Draws(torch.full((len(rows),), OPERATIONS.index(operation)), torch.tensor(rows))


def many(operation: str, count: int = 4000) -> Draws:
    return sample(operation, count, seeded(1))


# The strategy


def test_parse_strategy_keeps_the_order_given():
    assert parse_strategy(ALL) == OPERATIONS
    assert parse_strategy("flip_color") == ("flip", "color")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("", "at least one operation"),
        ("color_crops", "'crops'.*did you mean 'crop'"),
        ("color_solarize", "'solarize'.*known are color, crop"),
        ("color__crop", "unknown DSA operation ''"),
        ("flip_color_flip", "twice"),
    ],
)
def test_parse_strategy_says_what_is_wrong(strategy, message):
    with pytest.raises(ValueError, match=message):
        parse_strategy(strategy)


# The draws


@pytest.mark.parametrize(
    ("op", "u", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 3), r"op \[2\].*u \[3, 3\]"),
        (torch.zeros(2), torch.zeros(2, 3), "float32"),
        (torch.tensor([0, 6]), torch.zeros(2, 3), r"indexes 6 operations, got \[0, 6\]"),
        (torch.tensor([-1]), torch.zeros(1, 3), "indexes 6 operations"),
        (torch.tensor([0]), torch.ones(1, 3), r"\[0, 1\)"),
        (torch.tensor([0]), torch.full((1, 3), math.nan), r"\[0, 1\)"),
        (torch.tensor([0], device="meta"), torch.zeros(1, 3), "kept on the CPU"),
    ],
)
def test_draws_reject_what_apply_could_not_use(op, u, message):
    with pytest.raises(ValueError, match=message):
        Draws(op, u)


def test_sample_gives_one_draw_a_group():
    draws = sample(ALL, 7, seeded())
    assert len(draws) == 7
    assert draws.op.shape == (7,) and draws.op.dtype == torch.int64
    assert draws.u.shape == (7, 3) and draws.u.dtype == torch.float32


def test_sample_is_a_function_of_the_generator_alone():
    before = torch.get_rng_state()
    a, b, other = sample(ALL, 50, seeded(3)), sample(OPERATIONS, 50, seeded(3)), sample(ALL, 50, seeded(4))
    assert torch.equal(a.op, b.op) and torch.equal(a.u, b.u)
    assert not torch.equal(a.op, other.op) and not torch.equal(a.u, other.u)
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_draws_every_operation_of_the_strategy_equally_often_and_no_other():
    count = 6000
    draws = sample("flip_color_rotate", count, seeded())
    frequency = draws.op.bincount(minlength=6)
    expected, deviation = count / 3, math.sqrt(count * (1 / 3) * (2 / 3))
    for index, name in enumerate(OPERATIONS):
        if name in ("flip", "color", "rotate"):
            assert abs(frequency[index] - expected) < 5 * deviation
        else:
            assert frequency[index] == 0


def test_sample_draws_uniform_independent_numbers():
    count = 6000
    draws = sample(ALL, count, seeded())
    assert (draws.u.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * count)
    columns = torch.cat([draws.u, draws.op[:, None].float()], 1)
    assert (torch.corrcoef(columns.T) - torch.eye(4)).abs().max() < 5 / math.sqrt(count)
    # Neighbouring groups do not share their draw (in the released code they can, by the clock).
    assert draws.u.unique(dim=0).shape[0] == count
    assert abs(torch.corrcoef(torch.stack([draws.op[:-1].float(), draws.op[1:].float()]))[0, 1]) < 5 / math.sqrt(count)


def test_the_evaluation_form_shares_the_operation_and_nothing_else():
    seen = set()
    for seed in range(40):
        draws = sample(ALL, 64, seeded(seed), shared_op=True)
        assert len(draws.op) == 64 and draws.op.unique().numel() == 1
        assert draws.u.unique(dim=0).shape[0] == 64
        seen.add(int(draws.op[0]))
    assert seen == set(range(6))


def test_sample_says_what_is_wrong():
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        sample(ALL, 0, seeded())
    with pytest.raises(ValueError, match="did you mean 'flip'"):
        sample(("color", "flop"), 3, seeded())


# Each operation equals its definition


@pytest.mark.parametrize("side", [8, 15, 32])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_the_definition(operation, side):
    images, draws = noise_images(12, side), sample(operation, 12, seeded(2))
    torch.testing.assert_close(apply(images, draws), reference_augment.augment(images, draws), rtol=0, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_the_definition_in_float32(operation):
    images, draws = noise_images(12, dtype=torch.float32), sample(operation, 12, seeded(2))
    expected = reference_augment.augment(images.double(), draws)
    torch.testing.assert_close(apply(images, draws).double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 4])
def test_operation_equals_the_definition_for_any_number_of_channels(operation, channels):
    images, draws = noise_images(5, 16, channels), sample(operation, 5, seeded(2))
    torch.testing.assert_close(apply(images, draws), reference_augment.augment(images, draws), rtol=0, atol=1e-12)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
def test_affine_operations_equal_affine_grid_and_grid_sample(operation):
    images, draws = noise_images(40), sample(operation, 40, seeded())
    theta = torch.zeros(40, 2, 3, dtype=torch.float64)
    u = draws.u.double()
    if operation == "scale":
        theta[:, 0, 0] = 1 / 1.2 + u[:, 0] * (1.2 - 1 / 1.2)
        theta[:, 1, 1] = 1 / 1.2 + u[:, 1] * (1.2 - 1 / 1.2)
    else:
        angle = (u[:, 0] - 0.5) * 2 * 15 / 180 * math.pi
        theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), -angle.sin()
        theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos()
    expected = F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)
    torch.testing.assert_close(apply(images, draws), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [32, 64])
def test_crop_reaches_an_eighth_of_the_side_in_each_direction_and_no_further(side):
    images, s = noise_images(3, side, dtype=torch.float32), side // 8
    low, middle, high = apply(images, draws_of("crop", (0, LAST, 0), (0.5, 0.5, 0), (LAST, 0, 0)))
    assert torch.equal(low[:, s:, :-s], images[0][:, :-s, s:])
    assert not low[:, :s].any() and not low[:, :, -s:].any()
    assert torch.equal(middle, images[1])
    assert torch.equal(high[:, :-s, s:], images[2][:, s:, :-s])
    assert not high[:, -s:].any() and not high[:, :, :s].any()


def test_crop_shifts_are_uniform_over_nine_by_nine():
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    place = torch.stack([rows, columns]).expand(4000, 2, 32, 32)
    shifts = (apply(place, many("crop"))[:, :, 16, 16] - 16).long()  # exact, also in float32
    for axis in (0, 1):
        values, counts = shifts[:, axis].unique(return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert (counts - 4000 / 9).abs().max() < 5 * math.sqrt(4000 / 9)


def test_cutout_cuts_a_square_of_half_the_side_clipped_at_the_border():
    ones = torch.ones(3, 1, 32, 32)
    low, middle, high = apply(ones, draws_of("cutout", (0, 0, 0), (0.5, 0.5, 0), (LAST, LAST, 0)))
    for out, first, last in ((low, 0, 8), (middle, 8, 24), (high, 24, 32)):
        hole = torch.zeros(32, 32, dtype=torch.bool)
        hole[first:last, first:last] = True
        assert torch.equal(out[0] == 0, hole)


def test_cutout_centres_are_uniform_over_corners_between_pixels():
    hole = apply(torch.ones(4000, 1, 32, 32), many("cutout"))[:, 0] == 0
    for rows in (hole.any(2), hole.any(1)):
        first, last = rows.int().argmax(1), 32 - rows.flip(1).int().argmax(1)
        centre = torch.where(first == 0, last - 8, first + 8)
        values, counts = centre.unique(return_counts=True)
        assert values.tolist() == list(range(33))
        assert (counts - 4000 / 33).abs().max() < 5 * math.sqrt(4000 / 33)


def test_flip_mirrors_columns_below_one_half():
    images = noise_images(2)
    mirrored, same = apply(images, draws_of("flip", (0.4999, 0, 0), (0.5, 0, 0)))
    assert torch.equal(mirrored, images[0].flip(-1))
    assert torch.equal(same, images[1])


def test_flip_happens_half_the_time():
    left_to_right = torch.arange(8.0).expand(4000, 1, 8, 8)
    flipped = apply(left_to_right, many("flip"))[:, 0, 0, 0] == 7
    assert abs(flipped.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)


def test_brightness_shifts_by_half_a_unit_either_way():
    flat = torch.full((3, 3, 8, 8), 0.25, dtype=torch.float64)  # nothing for saturation and contrast to act on
    low, middle, high = apply(flat, draws_of("color", (0, 0.3, 0.9), (0.5, 0.3, 0.9), (LAST, 0.3, 0.9)))
    for out, value in ((low, -0.25), (middle, 0.25), (high, 0.75)):
        torch.testing.assert_close(out, torch.full_like(out, value), rtol=0, atol=1e-6)


def test_saturation_goes_from_gray_to_double():
    images = noise_images(3)
    images -= images.mean((1, 2, 3), keepdim=True)
    gray = images.mean(1, keepdim=True)
    out = apply(images, draws_of("color", (0.5, 0, 0.5), (0.5, 0.5, 0.5), (0.5, LAST, 0.5)))
    torch.testing.assert_close(out[0], gray[0].expand(3, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(out[1], images[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(out[2], 2 * images[2] - gray[2], rtol=0, atol=1e-6)


def test_contrast_scales_about_the_mean_by_a_half_to_three_halves():
    images = noise_images(3)
    mean = images.mean((1, 2, 3), keepdim=True)
    out = apply(images, draws_of("color", (0.5, 0.5, 0), (0.5, 0.5, 0.5), (0.5, 0.5, LAST)))
    for i, factor in enumerate((0.5, 1.0, 1.5)):
        torch.testing.assert_close(out[i], mean[i] + factor * (images[i] - mean[i]), rtol=0, atol=1e-6)


def test_scale_factors_are_uniform_and_independent_on_each_axis():
    position = (2 * torch.arange(32.0, dtype=torch.float64) + 1) / 32 - 1
    rows, columns = torch.meshgrid(position, position, indexing="ij")
    out = apply(torch.stack([columns, rows]).expand(4000, 2, 32, 32), many("scale"))
    # Bilinear interpolation of a ramp is exact, so a pixel inside tells the factor.
    factors = torch.stack([out[:, 0, 16, 20] / position[20], out[:, 1, 20, 16] / position[20]], 1)
    assert factors.min() >= 1 / 1.2 - 1e-9 and factors.max() <= 1.2 + 1e-9
    assert factors.min() < 0.84 and factors.max() > 1.195
    width = 1.2 - 1 / 1.2
    assert (factors.mean(0) - (1.2 + 1 / 1.2) / 2).abs().max() < 5 * width / math.sqrt(12 * 4000)
    assert torch.corrcoef(factors.T)[0, 1].abs() < 5 / math.sqrt(4000)
    assert torch.allclose(factors[:, 0].std(), torch.tensor(width / math.sqrt(12), dtype=torch.float64), rtol=0.05)


def test_scale_above_one_shrinks():
    ones = torch.ones(1, 1, 32, 32)
    assert (apply(ones, draws_of("scale", (LAST, LAST, 0))) == 0).any()
    assert torch.allclose(apply(ones, draws_of("scale", (0, 0, 0))), ones)


def test_rotation_is_uniform_within_fifteen_degrees():
    position = (2 * torch.arange(32.0, dtype=torch.float64) + 1) / 32 - 1
    rows, columns = torch.meshgrid(position, position, indexing="ij")
    x, y = apply(torch.stack([columns, rows]).expand(4000, 2, 32, 32), many("rotate"))[:, :, 16, 20].T
    angle = torch.rad2deg(torch.atan2(y, x) - torch.atan2(position[16], position[20]))
    assert angle.abs().max() <= 15 + 1e-9
    assert angle.min() < -14.8 and angle.max() > 14.8
    assert angle.mean().abs() < 5 * 30 / math.sqrt(12 * 4000)
    assert abs(angle.std() - 30 / math.sqrt(12)) < 0.3


# All groups in one call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_groups_in_one_call_equal_one_image_at_a_time(dtype):
    images = noise_images(60, 16, dtype=dtype)
    draws = sample(ALL, 20, seeded())
    assert draws.op.unique().numel() == 6
    group = torch.randint(20, (60,), generator=seeded(5))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    expected = reference_augment.augment(images.double(), draws, group)
    torch.testing.assert_close(apply(images, draws, group).double(), expected, rtol=0, atol=tolerance)


many_draws = st.builds(
    lambda seed, groups, names: sample(tuple(sorted(names)), groups, seeded(seed)),
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.sets(st.sampled_from(OPERATIONS), min_size=1),
)


@given(draws=many_draws, seed=st.integers(0, 2**31), count=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_permuting_images_permutes_the_result(draws, seed, count):
    images = noise_images(count, 8)
    group = torch.randint(len(draws), (count,), generator=seeded(seed))
    order = torch.randperm(count, generator=seeded(seed))
    assert torch.equal(apply(images[order], draws, group[order]), apply(images, draws, group)[order])


@given(draws=many_draws, copies=st.integers(2, 4))
@settings(deadline=None, max_examples=40)
def test_images_of_a_group_get_the_same_transform(draws, copies):
    group = torch.arange(len(draws)).repeat_interleave(copies)
    out = apply(noise_images(1, 8).expand(len(group), -1, -1, -1), draws, group).unflatten(0, (len(draws), copies))
    assert torch.equal(out, out[:, :1].expand_as(out))


@given(draws=many_draws, real=st.integers(1, 4), syn=st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_real_and_synthetic_images_of_a_class_get_the_same_transform(draws, real, syn):
    classes = torch.arange(len(draws))
    group_real, group_syn = classes.repeat_interleave(real), classes.repeat_interleave(syn)
    images_real, images_syn = noise_images(len(group_real), 8), noise_images(len(group_syn), 8) + 1
    together = apply(torch.cat([images_real, images_syn]), draws, torch.cat([group_real, group_syn]))
    apart = torch.cat([apply(images_real, draws, group_real), apply(images_syn, draws, group_syn)])
    assert torch.equal(together, apart)


@given(draws=many_draws, a=st.floats(-3, 3), b=st.floats(-3, 3))
@settings(deadline=None, max_examples=40)
def test_every_operation_is_linear_up_to_the_brightness_shift(draws, a, b):
    x, y = noise_images(len(draws), 8), noise_images(len(draws), 16)[:, :, :8, :8].contiguous()
    shift = apply(torch.zeros_like(x), draws)
    combined = apply(a * x + b * y, draws) - shift
    apart = a * (apply(x, draws) - shift) + b * (apply(y, draws) - shift)
    torch.testing.assert_close(combined, apart, rtol=0, atol=1e-10)
    is_color = draws.op == OPERATIONS.index("color")
    assert not shift[~is_color].any()


def test_without_groups_image_b_has_draw_b():
    images, draws = noise_images(9, 8), sample(ALL, 9, seeded())
    assert torch.equal(apply(images, draws), apply(images, draws, torch.arange(9)))


@pytest.mark.parametrize("operations", [ALL, *OPERATIONS])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_memory_format_are_kept_and_the_images_untouched(operations, memory_format):
    images = noise_images(24, 8, dtype=torch.float32).contiguous(memory_format=memory_format)
    before = images.clone()
    draws = sample(operations, 24, seeded())
    out = apply(images, draws)
    assert out.shape == images.shape and out.dtype == images.dtype
    assert out.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    torch.testing.assert_close(out, apply(before.contiguous(), draws), rtol=0, atol=1e-6)


def test_a_strided_view_of_images_is_transformed_like_its_copy():
    images = noise_images(24, 16)[::2, :, ::2, ::2]
    draws = sample(ALL, 12, seeded())
    torch.testing.assert_close(apply(images, draws), apply(images.contiguous(), draws), rtol=0, atol=1e-14)


def test_half_precision_is_computed_in_float32():
    images, draws = noise_images(24, 16, dtype=torch.bfloat16), sample(ALL, 24, seeded())
    out = apply(images, draws)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, apply(images.float(), draws).bfloat16())


# Gradients


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradient_of_each_operation(operation):
    images, draws = noise_images(2, 6, 2).requires_grad_(), sample(operation, 2, seeded(1))
    assert torch.autograd.gradcheck(lambda x: apply(x, draws), images)


def test_gradient_with_all_operations_in_one_call():
    draws = Draws(torch.arange(6).repeat(2), torch.rand(12, 3, generator=seeded()))
    images = noise_images(13, 4, 2).requires_grad_()
    group = torch.cat([torch.arange(12), torch.tensor([3])])
    assert torch.autograd.gradcheck(lambda x: apply(x, draws, group), images)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_equals_that_of_the_definition(memory_format):
    images = noise_images(24, 12).contiguous(memory_format=memory_format).requires_grad_()
    draws, group = sample(ALL, 8, seeded()), torch.arange(8).repeat(3)
    weight = torch.randn(images.shape, dtype=torch.float64, generator=seeded(9))
    ours = torch.autograd.grad((apply(images, draws, group) * weight).sum(), images)[0]
    theirs = torch.autograd.grad((reference_augment.augment(images, draws, group) * weight).sum(), images)[0]
    assert (ours - theirs).norm() / theirs.norm() < 1e-12


# Wrong input


@pytest.mark.parametrize(
    ("images", "groups", "group", "message"),
    [
        (torch.zeros(2, 3, 8, 6), 2, None, r"square image,.*\[2, 3, 8, 6\]"),
        (torch.zeros(3, 8, 8), 3, None, r"square image,.*\[3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), 1, torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2, None, "torch.uint8; normalise"),
        (torch.zeros(2, 3, 8, 8), 3, None, "2 images but 3 draws; pass group"),
        (torch.zeros(2, 3, 8, 8), 3, torch.tensor([0, 1, 2]), r"\[2\], one entry per image, got \[3\]"),
        (torch.zeros(2, 3, 8, 8), 3, torch.tensor([0.0, 1.0]), "float32"),
        (torch.zeros(2, 3, 8, 8), 3, torch.tensor([0, 3]), r"\[0, 3\).*0 to 3"),
        (torch.zeros(2, 3, 8, 8), 3, torch.tensor([-1, 0]), r"\[0, 3\).*-1 to 0"),
    ],
)
def test_apply_says_what_is_wrong(images, groups, group, message):
    with pytest.raises(ValueError, match=message):
        apply(images, sample(ALL, groups, seeded()), group)
