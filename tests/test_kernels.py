"""iidlib.engine.kernels: a block's values are those of its four operations; when used, what where it fails."""

import copy
import functools
import logging
import os
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

from iidlib.engine import FusedBlock, kernels, norm_relu_pool
from iidlib.engine import fused as engine_fused
from iidlib.networks import build_network, draw_parameters_, prepare, set_backend
from tests import factories
from tests.factories import difference

draw = functools.partial(factories.draw, dtype=torch.float32)

pytestmark = pytest.mark.skipif(not engine_fused.compiler_available(), reason="torch finds no C++ compiler")


def parameters(channels: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = draw(width, channels, 3, 3, seed=1) / (9 * channels) ** 0.5
    return weight, draw(width, seed=4), 1 + 0.1 * draw(width, seed=2), draw(width, seed=3)


def operations(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """The block in float64, one operation after the other."""
    x, weight, bias, norm_weight, norm_bias = (t.double() for t in (x, weight, bias, norm_weight, norm_bias))
    x = F.group_norm(F.conv2d(x, weight, bias, padding=1), len(weight), norm_weight, norm_bias, eps)
    return F.avg_pool2d(F.relu(x), 2)


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
    channels = inputs * block()
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
    plain = norm_relu_pool(F.conv2d(x, own[0], own[1], padding=1), *own[2:])
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
    # private, since packing again costs time and changes no result
    original = kernels._transform
    monkeypatch.setattr(kernels, "_transform", lambda given: packed.append(given) or original(given))
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
    set_backend(plain, "eager")
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
        set_backend(network, "compiled")
        plain = network.feature_map(images)
    assert difference(after, plain) < 1e-5 < difference(after, before)


# Gradients


def no_kink(x: Tensor, *own: Tensor) -> bool:
    """Whether every activation before ReLU is so far from zero that rounding moves none to the other side."""
    weight, _, norm_weight, norm_bias = (tensor.double() for tensor in own)
    before = F.group_norm(F.conv2d(x.double(), weight, padding=1), len(weight), norm_weight, norm_bias)
    return float(before.abs().min()) > 1e-5


def smooth(batch: int, channels: int, side: int, width: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Images and parameters without an activation at a kink."""
    own = parameters(channels, width)
    for seed in range(10, 100):
        x = draw(batch, channels, side, side, seed=seed)
        if no_kink(x, *own):
            return x, own
    raise AssertionError("every draw has an activation at a kink")


@pytest.mark.parametrize(
    ("batch", "channels", "side"), [(3, 3, 8), (2, 1, 6), (5, 4, 2), (1, 32, 4), (3, 32, 8), (2, 64, 12), (17, 64, 4)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_on_everything(batch: int, channels: int, side: int, layout: torch.memory_format) -> None:
    x, own = smooth(batch, channels, side, 2 * block())
    inputs = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=layout), *own)]
    twins = [t.double().requires_grad_() for t in (x, *own)]
    if not FusedBlock.fits(*inputs[:2]):
        pytest.skip(f"{channels} channels in are no multiple of this processor's {block()}")
    found, expected = FusedBlock()(*inputs, 1e-5), operations(*twins)
    assert difference(found.detach(), expected.detach()) < 1e-5
    cotangent = draw(*found.shape, seed=7)
    gradients = torch.autograd.grad(found, inputs, cotangent, retain_graph=True)
    references = torch.autograd.grad(expected, twins, cotangent.double())
    again = torch.autograd.grad(found, inputs, cotangent)  # a graph may be walked twice
    for name, mine, second, theirs in zip(
        "x weight bias gain shift".split(), gradients, again, references, strict=True
    ):
        assert torch.equal(mine, second), name
        if name == "bias":
            assert not mine.any() and theirs.abs().max() < 1e-12
        else:
            assert difference(mine, theirs) < 1e-4, name


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 4), (1, 2, 3, 4)])
def test_gradients_on_some(channels: int, wanted: tuple[int, ...]) -> None:
    x, own = smooth(2, channels, 4, block())
    whole = [t.clone().requires_grad_() for t in (x, *own)]
    expected = torch.autograd.grad(FusedBlock()(*whole, 1e-5).square().sum(), whole)
    some = [t.clone().requires_grad_(number in wanted) for number, t in enumerate((x, *own))]
    FusedBlock()(*some, 1e-5).square().sum().backward()
    for number, tensor in enumerate(some):
        assert (tensor.grad is not None) == (number in wanted)
        assert tensor.grad is None or torch.equal(tensor.grad, expected[number])


def test_a_network_learns_as_it_does_without(network) -> None:
    plain = copy.deepcopy(network)
    set_backend(plain, "eager")
    images, labels = draw(20, 3, 8, 8), torch.arange(20) % 10
    start = [p.detach().clone() for p in plain.parameters()]
    for one in (network, plain):
        sgd = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(5):
            sgd.zero_grad()
            F.cross_entropy(one(images), labels).backward()
            sgd.step()
    for before, mine, theirs in zip(start, network.parameters(), plain.parameters(), strict=True):
        assert float((mine - theirs).norm()) < 1e-2 * float((theirs - before).norm()) + 1e-7


def test_gradients_of_gradients_are_refused() -> None:
    x, own = draw(1, 3, 4, 4).requires_grad_(), parameters(3, block())
    (gradient,) = torch.autograd.grad(FusedBlock()(x, *own, 1e-5).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


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
        "cannot build the C++ kernels (no header); continuing without them, which is slower"
    ]


def test_a_built_library_is_found_by_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    code = """
        from iidlib.engine import kernels
        assert kernels.library().block() > 0
    """
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)
        found.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")})
    assert found[0] and found[0] == found[1]


@pytest.mark.parametrize("processor", [(), ("-mavx2", "-mfma"), ("-march=native",)], ids=" ".join)
def test_no_access_out_of_bounds_and_no_undefined_behaviour(processor: tuple[str, ...], tmp_path: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    if "-mavx2" in processor and "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip(f"this processor has no AVX2: {torch.backends.cpu.get_cpu_capability()}")
    here = Path(__file__).parent
    program = tmp_path / "sanitized"
    flags = ["-O1", "-std=c++20", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [get_cpp_compiler(), *flags, *processor, "-I", str(here.parent / "iidlib" / "engine"), "-o", str(program)]
    built = subprocess.run([*command, str(here / "kernels_sanitized.cpp")], capture_output=True, text=True, timeout=300)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip(f"no sanitizers: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    leaks = {"ASAN_OPTIONS": "detect_leaks=0"}  # of the OpenMP runtime
    done = subprocess.run([program], capture_output=True, text=True, env=os.environ | leaks, timeout=300)
    assert done.stdout == "clean\n", done.stderr[:2000]
