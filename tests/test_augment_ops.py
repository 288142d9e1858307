"""iidlib.augment_ops and the augmentation's kernel: compiled for an H100, and what happens where it cannot run.

What the kernel computes is checked with the other kernels' results (``triton_cases``).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from iidlib import augment
from iidlib.augment_ops import _ranges, apply_drawn
from iidlib.engine import triton_augment, triton_kernels, triton_launch, triton_transforms
from tests.factories import draw, noise_images, seeded
from tests.triton_build import build, resources, warps_at_once

STRIDES = ("channel_stride", "pixel_stride")


@pytest.mark.slow
@pytest.mark.skipif(not triton_kernels.available(), reason="Triton is not installed")
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (64, 3), (32, 1)])
def test_the_kernel_fits_an_h100(side: int, channels: int, gradient: bool, tmp_path: Path) -> None:
    """Registers for 16 warps or more per multiprocessor, 12 for grey images, and none spilled."""
    pixels, width, warps = triton_augment.tile_for(side, channels)
    constants: dict[str, object] = dict(_ranges(torch.empty(1, channels, side, side)))
    constants |= {"SIDE": side, "CHANNELS": channels, "PIXELS": pixels, "WIDTH": width, "GRADIENT": gradient}
    types = {"source": "*fp32", "op": "*i64", "u": "*fp32", "target": "*fp32"}
    assert {p.name for p in triton_transforms.kernel().params if p.do_not_specialize} == set(STRIDES)
    types |= dict.fromkeys(STRIDES, "i32")  # so it is one kernel, whatever the layout
    built = build(triton_transforms.kernel(), types, constants, warps=warps, contract=False)
    registers, spilled = resources(built, tmp_path)
    assert spilled == 0 and warps_at_once(registers, warps) >= (16 if channels > 1 else 12), f"{registers} registers"


def test_tiles_are_small_and_of_powers_of_two() -> None:
    for side in (1, 2, 7, 8, 28, 32, 64, 224):
        for channels in range(1, triton_augment.MOST_CHANNELS + 1):
            pixels, width, warps = triton_augment.tile_for(side, channels)
            assert all(number & (number - 1) == 0 for number in (pixels, width, warps))
            assert channels <= width < 2 * channels and pixels < 2 * side * side
            assert pixels * width <= triton_augment.TILE and pixels * width <= triton_augment.VALUES * 32 * max(
                warps, 1
            )


def with_gradient(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    draws = augment.sample(augment.OPERATIONS, 24, seeded(1))
    images = noise_images(24, 16, 3, dtype=torch.float32).requires_grad_()
    out = function(images, draws.op, draws.u)
    return out.detach(), torch.autograd.grad(out, images, draw(*out.shape, seed=2).to(out.dtype))[0]


def test_on_a_cpu_it_is_the_plain_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_kernels", None)
    for found, expected in zip(with_gradient(apply_drawn), with_gradient(augment.apply_everywhere), strict=True):
        assert torch.equal(found, expected)


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Treats the CPU as CUDA, in a process where no kernel has failed."""
    monkeypatch.setattr(triton_launch, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(triton_launch, "_broken", set())
    return monkeypatch


class Kernel:
    """A kernel that writes nothing, and fails from some call on."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __getitem__(self, grid: object) -> "Kernel":
        return self

    def __call__(self, *arguments: object, **options: object) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("no such instruction\nand more")


@pytest.mark.parametrize("calls", [0, 1], ids=["forward", "gradient"])
def test_a_kernel_that_fails_is_said_once_and_continues_plainly(
    calls: int, as_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "iidlib")
    kernel = Kernel(calls)
    as_cuda.setattr(triton_launch, "_kernels", lambda: SimpleNamespace(transform=kernel))
    found, gradient = with_gradient(apply_drawn)
    expected, expected_gradient = with_gradient(augment.apply_everywhere)
    assert torch.equal(found, expected) or calls
    torch.testing.assert_close(gradient, expected_gradient)
    assert len(caplog.records) == 1 and "no such instruction" in caplog.text and "and more" not in caplog.text
    assert torch.equal(with_gradient(apply_drawn)[0], expected)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("calls", "works"), [(0, False), (1, False), (2, True)])
def test_whether_it_works_is_tried(calls: int, works: bool, as_cuda: pytest.MonkeyPatch) -> None:
    kernel = Kernel(calls)
    as_cuda.setattr(triton_launch, "_kernels", lambda: SimpleNamespace(transform=kernel))
    assert triton_augment.works(torch.device("cpu")) is works and triton_launch.available() is works
    as_cuda.setattr(triton_launch, "_kernels", lambda: None)
    assert not triton_augment.works(torch.device("cpu"))


@pytest.mark.parametrize("case", ["forbidden", "float64", "many channels"])
def test_other_inputs_do_not_reach_the_kernel(case: str, as_cuda: pytest.MonkeyPatch) -> None:
    as_cuda.setattr(triton_launch, "_kernels", lambda: SimpleNamespace(transform=Kernel(0)))
    dtype = torch.float64 if case == "float64" else torch.float32
    images = noise_images(4, 8, 17 if case == "many channels" else 3, dtype=dtype)
    draws = augment.sample(augment.OPERATIONS, 4, seeded(1))
    found = apply_drawn(images, draws.op, draws.u, compiled=case != "forbidden")
    assert torch.equal(found, augment.apply_everywhere(images, draws.op, draws.u))
    assert triton_launch.available(), "the kernel was not asked"
