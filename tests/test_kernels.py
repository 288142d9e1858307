"""iidlib.kernels: a block's values are those of its four operations; when it is used, what happens where it fails."""

import copy
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iidlib import accelerate, kernels
from iidlib.accelerate import norm_relu_pool, prepare
from iidlib.kernels import FusedBlock
from iidlib.networks import build_network, draw_parameters_

pytestmark = pytest.mark.skipif(not accelerate.compiler_available(), reason="torch finds no C++ compiler")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(channels: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(width, channels, 3, 3, seed=1), 1 + 0.1 * draw(width, seed=2), draw(width, seed=3)


def operations(x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float = 1e-5) -> Tensor:
    """The block in float64, one operation after the other."""
    x, weight, norm_weight, norm_bias = (tensor.double() for tensor in (x, weight, norm_weight, norm_bias))
    x = F.group_norm(F.conv2d(x, weight, padding=1), len(weight), norm_weight, norm_bias, eps)
    return F.avg_pool2d(F.relu(x), 2)


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def block() -> int:
    return kernels.library().block()


@given(batch=st.integers(1, 5), channels=st.integers(1, 4), half=st.integers(1, 9), blocks=st.integers(1, 2))
def test_direct_convolution_of_few_channels(batch: int, channels: int, half: int, blocks: int) -> None:
    x, own = draw(batch, channels, 2 * half, 2 * half), parameters(channels, blocks * block())
    for images in (x, x.contiguous(memory_format=torch.channels_last), x.flip(0).transpose(2, 3)):
        assert FusedBlock.fits(images, own[0])
        assert difference(FusedBlock()(images, *own, 1e-5), operations(images, *own)) < 1e-5


@given(batch=st.integers(1, 40), inputs=st.integers(1, 3), tiles=st.integers(1, 5), blocks=st.integers(1, 2))
def test_winograd_for_many_channels(batch: int, inputs: int, tiles: int, blocks: int) -> None:
    channels = inputs * block() // 2
    batch = min(batch, 80 // tiles**2 + 1)
    x, own = draw(batch, channels, 4 * tiles, 4 * tiles), parameters(channels, blocks * block())
    for images in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        assert FusedBlock.fits(images, own[0])
        found = FusedBlock()(images, *own, 1e-5)
        assert difference(found, operations(images, *own)) < 1e-5
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (128, 16), (128, 8)])
def test_rounding_at_the_papers_shapes_is_small(channels: int, side: int) -> None:
    x, own = draw(32, channels, side, side), parameters(channels, 128)
    assert difference(FusedBlock()(x, *own, 1e-5), operations(x, *own)) < 5e-6


def test_a_large_mean_does_not_cost_the_variance_its_digits() -> None:
    """Sums of squares would lose them: the mean is a thousand times the deviation."""
    x, own = 1000 + draw(2, 3, 32, 32), parameters(3, block())
    own[0].sub_(own[0].mean((2, 3), keepdim=True)).add_(0.1)
    plain = norm_relu_pool(F.conv2d(x, own[0], padding=1), *own[1:])
    expected = operations(x, *own)
    assert difference(FusedBlock()(x, *own, 1e-5), expected) < 3 * difference(plain, expected)


@pytest.mark.parametrize("channels", [3, 64])
def test_an_image_has_its_own_values_whatever_is_beside_it_and_how_many_threads(channels: int) -> None:
    x, own, fused = draw(33, channels, 8, 8), parameters(channels, block()), FusedBlock()
    whole = fused(x, *own, 1e-5)  # and the weights are packed, which torch rounds as its number of threads has it
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fused(x, *own, 1e-5), whole)
            assert torch.equal(fused(x[5:12], *own, 1e-5), whole[5:12])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(channels: int, value: float) -> None:
    x, own = draw(2, channels, 8, 8), parameters(channels, block())
    x[1, 0, 3, 3] = value
    found = FusedBlock()(x, *own, 1e-5)
    assert found[0].isfinite().all() and found[1].isnan().any(0).all()


def test_weights_are_packed_again_only_when_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Tensor] = []
    original = kernels._winograd_weight
    monkeypatch.setattr(kernels, "_winograd_weight", lambda *given: packed.append(given[0]) or original(*given))
    fused, x, (weight, *norm) = FusedBlock(), draw(1, 64, 4, 4), parameters(64, block())
    for _ in range(2):
        fused(x, weight, *norm, 1e-5)
    assert len(packed) == 1
    weight.mul_(-1)
    assert difference(fused(x, weight, *norm, 1e-5), operations(x, weight, *norm)) < 1e-5
    other = weight.clone()
    fused(x, other, *norm, 1e-5)
    assert len(packed) == 3


@pytest.mark.parametrize(
    ("shape", "width", "fits"),
    [
        ((2, 3, 8, 8), 1.0, True),
        ((2, 3, 8, 8), 0.5, False),
        ((2, 3, 7, 7), 1.0, False),
        ((2, 3, 8, 12), 1.0, False),
        ((2, 64, 8, 8), 1.0, True),
        ((2, 64, 6, 6), 1.0, False),
        ((2, 65, 8, 8), 1.0, False),
        ((0, 3, 8, 8), 1.0, False),
    ],
)
def test_when_it_fits(shape: tuple[int, ...], width: float, fits: bool) -> None:
    weight = torch.zeros(int(width * block()), shape[1], 3, 3)
    assert FusedBlock.fits(torch.zeros(shape), weight) is fits
    assert not FusedBlock.fits(torch.zeros(shape), weight.double())
    assert not FusedBlock.fits(torch.zeros(shape).double(), weight)
    assert not FusedBlock.fits(torch.zeros(shape, device="meta"), weight)
    if fits:
        assert not FusedBlock.fits(torch.zeros(shape).requires_grad_(), weight)
        assert not FusedBlock.fits(torch.zeros(shape), weight.requires_grad_())
        with torch.no_grad():
            assert FusedBlock.fits(torch.zeros(shape), weight)


def test_it_stays_out_of_functions_that_are_transformed() -> None:
    weight = torch.zeros(2, block(), 3, 3, 3)
    seen = []

    def inside(own: Tensor) -> Tensor:
        seen.append(FusedBlock.fits(torch.zeros(1, 3, 8, 8), own))
        return own.sum()

    torch.vmap(inside)(weight)
    assert seen == [False]


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)
    return prepare(build_network("convnet2", image_size=8, width=2 * block(), generator=generator)).eval()


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original: Callable[..., Tensor] = FusedBlock.__call__

    def call(self, x, *rest):
        calls.append(x.shape[2])
        return original(self, x, *rest)

    monkeypatch.setattr(FusedBlock, "__call__", call)
    return calls


def test_a_network_without_gradient_goes_that_way_and_gives_the_same_map(network, monkeypatch) -> None:
    plain = copy.deepcopy(network).double()
    for module in plain.trunk:
        module.kernel, module.fused = norm_relu_pool, None
    calls, images = spied(monkeypatch), draw(5, 3, 8, 8)
    with torch.no_grad():
        found, expected = network.feature_map(images), plain.feature_map(images.double())
    assert calls == [8, 4]
    assert difference(found, expected) < 1e-5


def test_new_weights_in_place_are_used(network) -> None:
    images = draw(3, 3, 8, 8)
    with torch.no_grad():
        before = network.feature_map(images)
        draw_parameters_(network, torch.Generator().manual_seed(7))
        after = network.feature_map(images)
        for module in network.trunk:
            module.fused = None
        plain = network.feature_map(images)
    assert difference(after, plain) < 1e-5 < difference(after, before)


def test_where_a_gradient_is_wanted_it_stays_out_of_the_way(network, monkeypatch) -> None:
    calls = spied(monkeypatch)
    network.requires_grad_(False)
    images = draw(2, 3, 8, 8)
    network.feature_map(images.requires_grad_()).sum().backward()
    assert images.grad is not None and not calls
    network.requires_grad_(True).feature_map(images.detach())
    assert not calls


# Where it fails


@pytest.fixture
def unbuilt() -> Iterator[None]:
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


@pytest.mark.usefixtures("unbuilt")
def test_kernels_that_cannot_be_built_cost_speed_and_no_result(network, monkeypatch, caplog) -> None:
    from torch._inductor import codecache

    def failing(*given: object, **named: object) -> None:
        raise RuntimeError("no header\nand more")

    images = draw(2, 3, 8, 8)
    with torch.no_grad():
        expected = network.feature_map(images)
        kernels.library.cache_clear()
        monkeypatch.setattr(codecache.CppCodeCache, "load", failing)
        caplog.set_level(logging.WARNING, "iidlib")
        found = [network.feature_map(images) for _ in range(2)]
    assert difference(found[0], expected) < 1e-5 and torch.equal(*found)
    assert [record.message for record in caplog.records] == [
        "cannot build the C++ kernels (no header); going on without them, slower"
    ]


def test_a_built_library_is_found_by_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    code = """
        from iidlib import kernels
        assert kernels.library().block() > 0
    """
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)
        found.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")})
    assert found[0] and found[0] == found[1]
