"""iidlib.winograd and the block made of it: the convolution's values, its gradients left alone, and when it is used."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iidlib import accelerate, winograd
from iidlib.accelerate import WINOGRAD_CHANNELS, WinogradBlock, norm_relu_pool, prepare
from iidlib.networks import build_network, draw_parameters_


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    """All steps in a row, [B, K, H, H] to [B, K_out, H, H]."""
    tiles = winograd.input_tiles(winograd.input_rows(images.permute(0, 2, 3, 1)))
    products = winograd.products(tiles, winograd.TransformedWeight()(weight))
    return winograd.output_image(winograd.output_rows(products)).permute(0, 3, 1, 2)


@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    tiles=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_steps_together_are_the_convolution(batch, inputs, outputs, tiles, seed):
    images, weight = draw(batch, inputs, 4 * tiles, 4 * tiles, seed=seed), draw(outputs, inputs, 3, 3, seed=seed + 1)
    assert difference(convolve(images, weight), F.conv2d(images, weight, padding=1)) < 1e-12


def test_rounding_in_float32_is_small_at_the_papers_width():
    images, weight = draw(8, 128, 16, 16, dtype=torch.float32), draw(128, 128, 3, 3, seed=1, dtype=torch.float32)
    expected = F.conv2d(images.double(), weight.double(), padding=1)
    assert difference(convolve(images, weight).double(), expected) < 1e-5


def test_shapes_of_the_steps():
    rows = winograd.input_rows(draw(2, 8, 8, 3))
    assert rows.shape == (6, 2, 2, 10, 3)
    tiles = winograd.input_tiles(rows)
    assert tiles.shape == (6, 6, 2, 2, 2, 3)
    products = winograd.products(tiles, draw(36, 3, 5))
    assert products.shape == (6, 6, 2, 2, 2, 5)
    assert winograd.output_image(winograd.output_rows(products)).shape == (2, 8, 8, 5)


def test_weights_are_transformed_again_only_when_they_have_changed():
    transform, weight = winograd.TransformedWeight(), draw(4, 3, 3, 3)
    first = transform(weight)
    assert transform(weight) is first
    with torch.no_grad():
        weight.mul_(2)
    assert torch.allclose(transform(weight), 2 * first)
    other = draw(4, 3, 3, 3, seed=5)
    assert torch.allclose(transform(other), winograd.TransformedWeight()(other))


@pytest.fixture
def network():
    if not accelerate.compiler_available():
        pytest.skip("torch.compile finds no C++ compiler")
    generator = torch.Generator().manual_seed(0)
    return prepare(build_network("convnet2", image_size=8, width=WINOGRAD_CHANNELS, generator=generator)).eval()


def spied(network, monkeypatch) -> list[int]:
    calls: list[int] = []
    block: Callable[..., Tensor] = WinogradBlock.__call__

    def call(self, x, *rest):
        calls.append(x.shape[2])
        return block(self, x, *rest)

    monkeypatch.setattr(WinogradBlock, "__call__", call)
    return calls


def test_a_network_without_gradient_goes_that_way_and_gives_the_same_map(network, monkeypatch):
    plain = copy.deepcopy(network).double()
    for module in plain.trunk:
        module.kernel, module.winograd = norm_relu_pool, None
    calls, images = spied(network, monkeypatch), draw(5, 3, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        found, expected = network.feature_map(images), plain.feature_map(images.double())
    assert calls == [4], "the second block; the first has three input channels"
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert difference(found.double(), expected) < 1e-5


def test_new_weights_in_place_are_used(network):
    images = draw(3, 3, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        before = network.feature_map(images)
        draw_parameters_(network, torch.Generator().manual_seed(7))
        after = network.feature_map(images)
    network.trunk.block2.winograd = None
    with torch.no_grad():
        direct = network.feature_map(images)
    assert difference(after, direct) < 1e-5 < difference(after, before)


def test_where_a_gradient_is_wanted_it_stays_out_of_the_way(network, monkeypatch):
    calls = spied(network, monkeypatch)
    network.requires_grad_(False)
    images = draw(2, 3, 8, 8, dtype=torch.float32)
    network.feature_map(images.requires_grad_()).sum().backward()
    assert images.grad is not None and not calls
    network.requires_grad_(True).feature_map(images.detach())
    assert not calls


@pytest.mark.parametrize(
    ("shape", "channels", "pays"),
    [
        ((2, WINOGRAD_CHANNELS, 8, 8), WINOGRAD_CHANNELS, True),
        ((2, WINOGRAD_CHANNELS - 1, 8, 8), WINOGRAD_CHANNELS, False),
        ((2, WINOGRAD_CHANNELS, 8, 8), WINOGRAD_CHANNELS - 1, False),
        ((2, WINOGRAD_CHANNELS, 6, 6), WINOGRAD_CHANNELS, False),
        ((2, WINOGRAD_CHANNELS, 8, 12), WINOGRAD_CHANNELS, False),
    ],
)
def test_when_it_pays(shape, channels, pays):
    assert WinogradBlock.pays(torch.zeros(shape), torch.zeros(channels, shape[1], 3, 3)) is pays


def test_a_failed_compilation_ends_its_use(monkeypatch):
    x, weight = torch.zeros(1, WINOGRAD_CHANNELS, 4, 4), torch.zeros(WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, 3, 3)
    assert WinogradBlock.pays(x, weight)
    monkeypatch.setattr(accelerate._compiled_winograd()[2], "broken", True)
    assert not WinogradBlock.pays(x, weight)
