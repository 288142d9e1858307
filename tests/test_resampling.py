"""iidlib.resampling: the gradient that each pixel collects, as on a GPU, is that of PyTorch's kernels on a CPU."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iidlib import resampling
from iidlib.augment import CROP, OPERATIONS, ROTATE, SCALE, Draws, apply, apply_everywhere, sample
from iidlib.resampling import enlarge, warp
from iidlib.synthetic import expand
from tests.factories import difference, draw, noise_images, seeded

LAST = 1 - 2**-24  # the largest float32 below 1: what torch.rand can return at most
FORMATS = (torch.contiguous_format, torch.channels_last)
SHIFTED = ("crop", "scale", "rotate")  # the operations that resample


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets images on the CPU take the path of images on CUDA, or their own again."""
    return lambda on: monkeypatch.setattr(resampling, "_collects", lambda images: on)


def with_gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient, for a cotangent of noise."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    out = function(images)
    cotangent = draw(*out.shape, seed=3).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, images, cotangent)[0]


def compare(as_on_cuda: Callable[[bool], None], function: Callable[[Tensor], Tensor], images: Tensor) -> None:
    as_on_cuda(False)
    expected, expected_gradient = with_gradient(function, images)
    as_on_cuda(True)
    found, gradient = with_gradient(function, images)
    assert torch.equal(found, expected)
    tolerance = 1e-12 if images.dtype == torch.float64 else 1e-6
    assert difference(gradient, expected_gradient) <= tolerance
    assert float((gradient - expected_gradient).abs().max()) <= tolerance * float(expected_gradient.abs().max())


def with_ends(operation: str, count: int) -> Draws:
    """Random draws of an operation, and all combinations of the ends and the middle of its ranges."""
    ends = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, LAST])] * 3)  # [27, 3]
    u = torch.cat([ends, sample(operation, count, seeded(count)).u])
    return Draws(torch.full((len(u),), OPERATIONS.index(operation)), u)


@pytest.mark.parametrize("side", [8, 15, 28, 32, 64])
@pytest.mark.parametrize("operation", SHIFTED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_collected_gradient_of_an_augmentation_is_that_of_grid_sample(as_on_cuda, operation, side, dtype):
    draws = with_ends(operation, 20 if side == 64 else 60)
    images = noise_images(len(draws), side, 2, dtype=dtype)
    for layout in FORMATS:
        compare(as_on_cuda, lambda x: apply(x, draws), images.contiguous(memory_format=layout))


@pytest.mark.parametrize("layout", FORMATS)
def test_the_collected_gradient_of_all_operations_together(as_on_cuda, layout):
    draws = sample(OPERATIONS, 60, seeded())
    images = noise_images(60, 16, dtype=torch.float32).contiguous(memory_format=layout)
    compare(as_on_cuda, lambda x: apply(x, draws), images)
    compare(as_on_cuda, lambda x: apply_everywhere(x, draws.op, draws.u), images)


@pytest.mark.parametrize("angle", [-30.0, -17.0, 30.0])
@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_a_map_within_the_limit_is_complete(as_on_cuda, angle, factor):
    """Also one that shrinks, turns and shifts at once; a turn by 30 degrees leaves room for a factor of 0.911."""
    cos, sin = math.cos(math.radians(angle)) * factor, math.sin(math.radians(angle)) * factor
    matrix = [
        [torch.full((3,), entry, dtype=torch.float64) for entry in row] for row in ((cos, -sin, 0.1), (sin, cos, -0.3))
    ]
    compare(as_on_cuda, lambda x: warp(x, matrix, "bilinear"), noise_images(3, 24))


def test_the_augmentation_stays_within_the_limit():
    """The rows of the inverse maps: shifts have 1, scaling at most its factor, a rotation cos + sin of its angle."""
    turned = math.radians(ROTATE)
    assert max(1, SCALE, math.cos(turned) + math.sin(turned)) < 1.5 - 0.01, "and some room for rounding"
    assert CROP < 1


@pytest.mark.parametrize(
    ("side", "factor"), [(1, 8), (2, 2), (4, 2), (4, 3), (16, 2), (5, 1), (10, 3), (32, 2), (8, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_collected_gradient_of_an_enlargement_is_that_of_interpolate(as_on_cuda, side, factor, dtype):
    for layout in FORMATS:
        images = noise_images(3, side, 2, dtype=dtype).contiguous(memory_format=layout)
        compare(as_on_cuda, lambda x: enlarge(x, factor), images)


def test_an_enlargement_may_be_of_a_rectangle(as_on_cuda):
    compare(as_on_cuda, lambda x: enlarge(x, 2), noise_images(2, 12)[:, :, :7])


@pytest.mark.parametrize("layout", FORMATS)
def test_the_collected_gradient_of_expanded_mosaics(as_on_cuda, layout):
    images = noise_images(4, 16).contiguous(memory_format=layout)
    for factor in (1, 2, 4):
        compare(as_on_cuda, lambda x, factor=factor: expand(x, factor), images)
    draws = sample(OPERATIONS, 16, seeded(1))
    compare(as_on_cuda, lambda x: apply(expand(x, 2), draws), images)


def test_gradients_by_finite_differences(as_on_cuda):
    as_on_cuda(True)
    draws = Draws(torch.tensor([1, 4, 5, 5]), torch.tensor([[0.9, 0.1, 0], [0.8, 0.1, 0], [0, 0, 0], [0.7, 0, 0]]))
    assert torch.autograd.gradcheck(lambda x: apply(x, draws), noise_images(4, 4, 1).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: enlarge(x, 3), noise_images(1, 3, 1).requires_grad_())


def test_a_second_derivative_is_refused(as_on_cuda):
    as_on_cuda(True)
    images = noise_images(1, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(enlarge(images, 2).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Operations(TorchDispatchMode):
    """Names of the operations within a block, without those that only make a view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        views = [made.alias_info is not None and not made.alias_info.is_write for made in function._schema.returns]
        if not any(views):
            self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


ORDERLESS = {
    "grid_sampler_2d_backward", "upsample_bilinear2d_backward", "index_add", "index_add_", "scatter_add",
    "scatter_add_", "scatter_reduce", "index_put", "index_put_", "_unsafe_index_put", "embedding_dense_backward",
    "put_", "histc", "cumsum",
}  # fmt: skip
"""Operations that add in no fixed order on CUDA (documentation of ``torch.use_deterministic_algorithms``)."""

ROUNDED = {"mm", "bmm", "addmm", "baddbmm", "matmul", "convolution", "convolution_backward"}
"""Operations that may round to TF32 on CUDA."""

WAITING = {"_local_scalar_dense", "nonzero", "item", "unique", "bincount"}
"""Operations that wait for the device, so that a CUDA graph cannot hold them."""


def both_passes(images: Tensor, draws: Draws) -> list[str]:
    images = images.clone().requires_grad_()
    with Operations() as seen:
        out = apply_everywhere(expand(images, 2), draws.op, draws.u)
        torch.autograd.grad(out.square().sum(), images)
    return seen.names


def test_images_to_augmented_images_have_no_orderless_rounded_or_waiting_operation(as_on_cuda):
    images, draws = noise_images(3, 16, dtype=torch.float32), sample(OPERATIONS, 12, seeded())
    as_on_cuda(False)
    usual = both_passes(images, draws)
    assert {"grid_sampler_2d_backward", "upsample_bilinear2d_backward"} <= ORDERLESS & set(usual)
    as_on_cuda(True)
    collected = both_passes(images, draws)
    assert not set(collected) & (ORDERLESS | ROUNDED | WAITING)
    assert len(collected) - len(usual) < 270, "three warps of some 70 launches each, and one enlargement of 40"
    other = both_passes(noise_images(3, 16, dtype=torch.float32) + 1, sample(OPERATIONS, 12, seeded(7)))
    assert other == collected, "the same operations for any draws"


def test_only_cuda_collects_and_nothing_is_kept_without_a_gradient(as_on_cuda):
    assert resampling._collects(torch.zeros((), device="cpu")) is False
    assert resampling._collects(torch.zeros((), device="meta")) is False
    as_on_cuda(True)
    images, draws = noise_images(2, 8), sample("rotate", 2, seeded())
    assert apply(images, draws).grad_fn is None and enlarge(images, 2).grad_fn is None
    with torch.no_grad():
        assert apply(images.requires_grad_(), draws).grad_fn is None


def test_a_strided_gradient_is_read_in_its_order(as_on_cuda):
    as_on_cuda(True)
    draws, images = sample("rotate", 2, seeded()), noise_images(2, 8).requires_grad_()
    cotangent = draw(8, 8, 3, 2).permute(3, 2, 1, 0)
    strided, compact = (
        torch.autograd.grad(apply(images, draws), images, one)[0] for one in (cotangent, cotangent.contiguous())
    )
    assert torch.equal(strided, compact)


def test_grid_sample_is_called_with_the_library_s_grid():
    """The value is that of ``grid_sample`` on the grid of ``affine_grid``."""
    images = noise_images(2, 9)
    theta = draw(2, 2, 3, seed=5)
    matrix = [list(row) for row in theta.permute(1, 2, 0)]
    expected = F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)
    torch.testing.assert_close(warp(images, matrix, "bilinear"), expected, rtol=0, atol=1e-12)


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gradient_on_a_gpu_is_that_on_the_cpu_and_has_the_same_bits_each_time():
    draws = sample(OPERATIONS, 512, seeded())
    images = noise_images(128, 32, dtype=torch.float32)
    op, u = draws.op.cuda(), draws.u.cuda()
    expected = with_gradient(lambda x: apply(expand(x, 2), draws), images)[1]
    found = [with_gradient(lambda x: apply_everywhere(expand(x, 2), op, u), images.cuda())[1].cpu() for _ in range(5)]
    assert difference(found[0], expected) < 1e-5
    assert all(torch.equal(one, found[0]) for one in found)
