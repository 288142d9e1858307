"""iidlib.engine.layers and norm_relu: their values and gradients are those of the separate operations."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iidlib.engine import compiler_available, kernels, norm_relu
from iidlib.engine.layers import FusedNorm, WinogradConv
from tests import factories, reference
from tests.factories import difference

draw = functools.partial(factories.draw, dtype=torch.float32)

needs_kernels = pytest.mark.skipif(not compiler_available(), reason="torch finds no C++ compiler")

FORMS = pytest.mark.parametrize(("added", "relu"), [(False, True), (True, True), (False, False), (True, False)])


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """The norm in float64, from torch's operations."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    x = F.group_norm(x, len(weight), weight, bias)
    x = x if residual is None else x + residual.double()
    return F.relu(x) if relu else x


def given_maps(batch: int, channels: int, *size: int, added: bool = True) -> tuple[Tensor, ...]:
    """Maps, the norm's weight and bias, and a residual if `added`; every value before ReLU is far from zero."""
    for seed in range(5, 300, 5):
        x, residual = draw(batch, channels, *size, seed=seed), draw(batch, channels, *size, seed=seed + 1)
        own = (x, 1 + 0.1 * draw(channels, seed=2), draw(channels, seed=3))
        if float(by_definition(*own, residual if added else None, False).abs().min()) > 1e-5:
            return (*own, residual) if added else own
    raise AssertionError("every draw has a value at the kink")


# The plain version


@FORMS
def test_norm_of_one_image_equals_the_reference(added: bool, relu: bool) -> None:
    x, weight, bias, residual = (t.double() for t in given_maps(3, 5, 4, 6))
    found = norm_relu(x, weight, bias, residual=residual if added else None, relu=relu)
    for image, own, got in zip(x, residual, found, strict=True):
        expected = reference.instance_norm(image, weight, bias)
        expected = expected + own if added else expected
        assert factories.near(got, reference.relu(expected) if relu else expected, 1e-12)


@FORMS
def test_gradient_of_the_plain_norm(added: bool, relu: bool) -> None:
    x, weight, bias, residual = (t.double().requires_grad_() for t in given_maps(2, 3, 3, 2))
    inputs = (x, weight, bias, *((residual,) if added else ()))
    assert torch.autograd.gradcheck(
        lambda x, weight, bias, residual=None: norm_relu(x, weight, bias, 1e-5, residual, relu), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    x, weight, bias, residual = given_maps(2, 8, 8, 8)
    x, residual = (100 + x).to(dtype), residual.to(dtype)
    found = norm_relu(x, weight, bias, residual=residual)
    assert found.dtype == dtype
    assert torch.equal(found, norm_relu(x.float(), weight, bias, residual=residual.float()).to(dtype))


def test_plain_norm_keeps_the_memory_format_and_is_vectorised_over_networks() -> None:
    x = torch.stack([draw(2, 8, 4, 4, seed=n).contiguous(memory_format=torch.channels_last) for n in range(3)])
    x = x.transpose(2, 4).contiguous().transpose(2, 4)
    weights, biases = draw(3, 8, seed=5), draw(3, 8, seed=6)
    together = torch.vmap(norm_relu)(x, weights, biases)
    alone = [norm_relu(*own) for own in zip(x, weights, biases, strict=True)]
    assert difference(together, torch.stack(alone)) < 1e-6
    images = x[0].contiguous(memory_format=torch.channels_last)
    assert norm_relu(images, weights[0], biases[0]).is_contiguous(memory_format=torch.channels_last)


# The norm's kernel


@needs_kernels
@given(
    batch=st.integers(1, 5), wide=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(2, 9),
    added=st.booleans(), relu=st.booleans(),
)  # fmt: skip
def test_fused_norm(batch: int, wide: int, height: int, width: int, added: bool, relu: bool) -> None:
    x, residual = draw(batch, 32 * wide, height, width), draw(batch, 32 * wide, height, width, seed=1)
    weight, bias = draw(32 * wide, seed=2), draw(32 * wide, seed=3)
    other = residual if added else None
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        assert FusedNorm.fits(images, weight, other)
        found = FusedNorm()(images, weight, bias, 1e-5, other, relu)
        assert float((found - by_definition(x, weight, bias, other, relu)).norm()) < 1e-5 * x.numel() ** 0.5
        assert found.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("side", [4, 32])
@FORMS
def test_gradients_of_the_fused_norm(side: int, added: bool, relu: bool) -> None:
    own = given_maps(3, 64 if side == 4 else 32, side, side, added=added)
    inputs = [t.clone().requires_grad_() for t in own]
    twins = [t.double().requires_grad_() for t in own]
    found = FusedNorm()(*inputs[:3], 1e-5, *inputs[3:], relu=relu)
    expected = by_definition(*twins, *(() if added else (None,)), relu=relu)
    assert difference(found.detach(), expected.detach()) < 1e-5
    cotangent = draw(*found.shape, seed=7)
    gradients = torch.autograd.grad(found, inputs, cotangent, retain_graph=True)
    references = torch.autograd.grad(expected, twins, cotangent.double())
    again = torch.autograd.grad(found, inputs, cotangent)  # a graph may be walked twice
    for mine, second, theirs in zip(gradients, again, references, strict=True):
        assert torch.equal(mine, second) and difference(mine, theirs) < 1e-5


@needs_kernels
@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 2), (1, 2, 3)])
def test_gradients_of_the_fused_norm_on_some(wanted: tuple[int, ...]) -> None:
    own = given_maps(2, 32, 4, 4)

    def gradients(of: tuple[int, ...]) -> list[Tensor | None]:
        inputs = [t.clone().requires_grad_(number in of) for number, t in enumerate(own)]
        FusedNorm()(*inputs[:3], 1e-5, inputs[3]).square().sum().backward()
        return [t.grad for t in inputs]

    for number, (some, whole) in enumerate(zip(gradients(wanted), gradients((0, 1, 2, 3)), strict=True)):
        assert (some is not None) == (number in wanted)
        assert some is None or torch.equal(some, whole)


@needs_kernels
def test_a_large_mean_does_not_cost_the_variance_its_digits() -> None:
    x, weight, bias, residual = given_maps(2, 32, 16, 16)
    expected = by_definition(1000 + x, weight, bias, residual, True)
    plain = norm_relu(1000 + x, weight, bias, residual=residual)
    assert difference(FusedNorm()(1000 + x, weight, bias, 1e-5, residual), expected) < 3 * difference(plain, expected)


@needs_kernels
@pytest.mark.parametrize("added", [False, True])
def test_what_is_not_finite_is_not_hidden(added: bool) -> None:
    x, weight, bias, *residual = given_maps(2, 32, 4, 4, added=added)
    x[1, 3, 0, 0] = float("nan")
    found = FusedNorm()(x, weight, bias, 1e-5, *residual)
    assert found[0].isfinite().all() and found[1, 3].isnan().all()


# The convolution's kernel


@needs_kernels
@given(batch=st.integers(1, 40), inputs=st.integers(1, 3), tiles=st.integers(1, 5), blocks=st.integers(1, 2))
def test_winograd_convolution(batch: int, inputs: int, tiles: int, blocks: int) -> None:
    block = kernels.library().block()
    x = draw(min(batch, 80 // tiles**2 + 1), inputs * block, 4 * tiles, 4 * tiles)
    weight = draw(blocks * block, inputs * block, 3, 3, seed=1)
    for images in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        assert WinogradConv.fits(images, weight)
        found = WinogradConv()(images, weight)
        assert difference(found, F.conv2d(images.double(), weight.double(), padding=1)) < 1e-5
        assert found.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize(("batch", "channels", "side"), [(3, 64, 8), (1, 32, 4), (70, 32, 4), (2, 64, 12)])
def test_gradients_of_the_convolution(batch: int, channels: int, side: int) -> None:
    x, weight = draw(batch, channels, side, side), draw(96, channels, 3, 3, seed=1)
    inputs, twins = (
        [t.clone().requires_grad_() for t in (x, weight)],
        [t.double().requires_grad_() for t in (x, weight)],
    )
    found, expected = WinogradConv()(*inputs), F.conv2d(*twins, padding=1)
    cotangent = draw(*found.shape, seed=7)
    gradients = torch.autograd.grad(found, inputs, cotangent)
    references = torch.autograd.grad(expected, twins, cotangent.double())
    for mine, theirs in zip(gradients, references, strict=True):
        assert difference(mine, theirs) < 1e-5
    (alone,) = torch.autograd.grad(WinogradConv()(inputs[0], weight), inputs[0], cotangent)  # of frozen weights
    assert torch.equal(alone, gradients[0])


@needs_kernels
def test_new_weights_in_place_are_used() -> None:
    convolution, x, weight = WinogradConv(), draw(2, 32, 4, 4).requires_grad_(), draw(32, 32, 3, 3, seed=1)
    for _ in range(2):
        found, expected = convolution(x, weight), F.conv2d(x, weight, padding=1)
        assert difference(found.detach(), expected.detach()) < 1e-5
        (mine,), (theirs,) = (torch.autograd.grad(out.square().sum(), x) for out in (found, expected))
        assert difference(mine, theirs) < 1e-5
        weight.mul_(-1).add_(1)


# Both


@needs_kernels
def test_an_image_has_its_own_values_whatever_is_beside_it_and_how_many_threads() -> None:
    x, weight, bias, residual = given_maps(33, 64, 8, 8)
    convolution, kernel, norm = WinogradConv(), draw(64, 64, 3, 3, seed=1), FusedNorm()
    x.requires_grad_()
    residual.requires_grad_()

    def outcome(part: slice) -> list[Tensor]:
        out = norm(convolution(x[part], kernel), weight, bias, 1e-5, residual[part])
        return [out.detach(), *(grad[part] for grad in torch.autograd.grad(out.square().sum(), (x, residual)))]

    whole, before = outcome(slice(None)), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for part in (slice(None), slice(5, 12)):
                assert all(torch.equal(own, all_[part]) for own, all_ in zip(outcome(part), whole, strict=True))
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "width", "convolution", "norm"),
    [
        ((2, 32, 8, 8), 32, True, True),
        ((2, 3, 8, 8), 32, False, False),
        ((2, 32, 6, 6), 32, False, True),
        ((2, 32, 8, 12), 32, False, True),
        ((2, 32, 8, 8), 33, False, True),
        ((2, 48, 5, 1), 32, False, False),
        ((0, 32, 8, 8), 32, False, False),
    ],
)
def test_when_they_fit(shape: tuple[int, ...], width: int, convolution: bool, norm: bool) -> None:
    x, weight, gain = torch.zeros(shape), torch.zeros(width, shape[1], 3, 3), torch.ones(shape[1])
    assert WinogradConv.fits(x, weight) is convolution and FusedNorm.fits(x, gain) is norm
    assert FusedNorm.fits(x, gain, x) is norm and not FusedNorm.fits(x, gain, x[..., :1, :1])
    for other in (x.double(), torch.zeros(shape, device="meta")):
        assert not (WinogradConv.fits(other, weight) or FusedNorm.fits(other, gain) or FusedNorm.fits(x, gain, other))
    assert not (WinogradConv.fits(x, weight.double()) or FusedNorm.fits(x, gain.double()))


@needs_kernels
def test_they_stay_out_of_functions_that_are_transformed() -> None:
    x, weight, seen = torch.zeros(1, 32, 8, 8), torch.zeros(2, 32, 32, 3, 3), []

    def inside(own: Tensor) -> Tensor:
        seen.extend([WinogradConv.fits(x, own), FusedNorm.fits(x, own[:, 0, 0, 0])])
        return own.sum()

    torch.vmap(inside)(weight)
    assert seen == [False, False]


@needs_kernels
def test_gradients_of_gradients_are_refused() -> None:
    x, weight, bias, _ = given_maps(1, 32, 4, 4)
    x.requires_grad_()
    for out in (FusedNorm()(x, weight, bias, 1e-5), WinogradConv()(x, torch.ones(32, 32, 3, 3))):
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
