"""iidlib.engine.triton_norm, triton_kernels and norm_ops: the norm as an operator with kernels of its own on CUDA.

The checks of `triton_cases` run here, those of the augmentation too.

The kernels run here in Triton's interpreter (``triton_cases``), and are compiled for an H100 without one. Both need
Triton, which comes with torch on Linux.
"""

import copy
import functools
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from iidlib.engine import fused, kernels, norm_ops, triton_kernels, triton_launch, triton_norm
from iidlib.networks import ConvBlock, build_network, set_backend
from iidlib.networks.blocks import Conv3x3
from tests.triton_build import build, resources, warps_at_once

ROOT = Path(__file__).parents[1]

needs_triton = pytest.mark.skipif(not triton_kernels.available(), reason="Triton is not installed")


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# The kernels in the interpreter


@functools.cache
def checked(*arguments: str) -> dict[str, list[dict[str, Any]]]:
    """All checks of `triton_cases`, by their group: in the interpreter on the CPU, or compiled on a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_cases", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *checks, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert last["launches"] > 100, "the kernels must have run"
    assert last["kernels"] <= 40 or "short" not in arguments, "they take most of a second each"
    groups: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        groups.setdefault(check["case"].split(":")[0], []).append(check)
    return groups


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(
    ("group", "checks"),
    [
        ("against_torch", 187),
        ("weights_alone", 3),
        ("many_networks", 75),
        ("other_inputs", 4),
        ("the_block", 17),
        ("the_augmentation", 99),
    ],
)
def test_the_kernels_are_the_plain_functions(group: str, checks: int) -> None:
    found = checked()[group]
    wrong = [check for check in found if not check["error"] <= check["limit"]]
    assert not wrong, "\n".join(map(str, wrong))
    assert len(found) == checks


SHORT_CHECKS = 197


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_compiled_kernels_are_the_plain_functions() -> None:
    """On the sizes of the networks; sums in another order, and exponents computed by the device, may cost a digit."""
    found = [check for group in checked("cuda", "short").values() for check in group]
    wrong = [check for check in found if not check["error"] <= 10 * check["limit"]]
    assert not wrong and len(found) == SHORT_CHECKS, "\n".join(map(str, wrong))


@pytest.mark.long
@needs_triton
def test_what_a_gpu_checks_holds_in_the_interpreter() -> None:
    found = [check for group in checked("short").values() for check in group]
    assert all(check["error"] <= check["limit"] for check in found) and len(found) == SHORT_CHECKS


# The kernels compiled for an H100, without one


def compiled(name: str, tile: triton_norm.Tile, dtype: torch.dtype, **constants: object) -> Any:
    """A kernel as it is built for an H100, with pointers and sizes as a network has them."""
    kernel = getattr(triton_kernels, name)
    constants |= {"WINDOWS": tile.windows, "COLUMNS": tile.columns}
    types = dict.fromkeys(kernel.arg_names, {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype])
    types |= dict.fromkeys(("weight", "bias", "stats", "grad_affine"), "*fp32")
    types |= {"columns": "i32 16", "channels": "i32 16", "eps": "fp32"}
    types = {argument: kind for argument, kind in types.items() if argument not in constants}
    return build(kernel, types, constants, warps=tile.warps, contract=True)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("side", "pool"), [(64, 2), (32, 2), (16, 2), (8, 2), (32, 1), (16, 1), (8, 1), (4, 1)])
def test_kernels_fit_an_h100(side: int, pool: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Registers for 12 warps or more per multiprocessor, none spilled, and 16 bytes per load of a map."""
    for name in ("forward", "backward"):
        constants = {"HEIGHT": side, "WIDTH": side, "POOL": pool, "RELU": True, "RESIDUAL": pool == 1}
        if name == "backward":
            constants |= {"GRAD_X": True, "GRAD_AFFINE": True, "GRAD_RESIDUAL": pool == 1}
        tile = triton_norm.tile_for(side, side, pool, dtype.itemsize, backward=name == "backward")
        built = compiled(name, tile, dtype, **constants)
        registers, spilled = resources(built, tmp_path)
        assert spilled == 0, name
        warps = warps_at_once(registers, tile.warps)
        assert registers <= 136 and warps >= (12 if tile.warps <= 4 else 16), f"{name}: {registers}, {warps}"
        loads = re.findall(r"ld\.global\S*", built.asm["ptx"])
        wide = [load for load in loads if ".v4." in load]
        assert len(wide) >= 3 and len(loads) - len(wide) <= 4, f"{name}: {loads}"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_cover_maps_of_any_size(itemsize: int, backward: bool) -> None:
    for height in (1, 2, 3, 4, 7, 8, 16, 28, 32, 64, 100, 224):
        for width in {height, max(1, height // 2), height + 3}:
            for pool in (1, 2):
                windows, columns, warps = triton_norm.tile_for(height, width, pool, itemsize, backward=backward)
                assert all(number & (number - 1) == 0 for number in (windows, columns, warps))
                assert 1 <= warps <= 16 and columns <= 128 and columns * itemsize >= 32
                elements = windows * pool**2 * columns
                assert 32 <= elements <= (8192 if backward else 32768)
                assert elements <= 64 * 32 * warps, "values per thread"
                needed = -(-height // pool) * -(-width // pool)
                assert windows < 2 * needed, "no more than the next power of two"


# The operator


EXAMPLES = [(None, True, 2), (None, True, 1), ("residual", True, 1), ("residual", False, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("residual", "relu", "pool"), EXAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_operator_is_one_of_torchs(residual: str | None, relu: bool, pool: int, dtype: torch.dtype) -> None:
    x, weight, bias = draw(3, 5, 7, 6, dtype=dtype), draw(5, seed=1), draw(5, seed=2)
    other = draw(3, 5, 7, 6, seed=3, dtype=dtype) if residual else None
    given = [None if tensor is None else tensor.requires_grad_() for tensor in (x, weight, bias, other)]
    done = torch.library.opcheck(norm_ops._norm_relu, (*given, 1e-5, relu, pool))
    assert len(done) >= 4 and set(done.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("residual", "relu", "pool"), EXAMPLES)
def test_the_operator_without_kernels_by_finite_differences(residual: str | None, relu: bool, pool: int) -> None:
    inputs = [draw(2, 3, 5, 4), draw(3, seed=1), draw(3, seed=2), draw(2, 3, 5, 4, seed=3)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs[: 4 if residual else 3]]

    def function(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
        return norm_ops._norm_relu(x, weight, bias, other, 1e-5, relu, pool)[0]

    assert torch.autograd.gradcheck(function, inputs)


def test_a_bias_that_is_left_out_has_a_gradient_of_zeros() -> None:
    norm_bias, conv_bias = draw(3).requires_grad_(), draw(3, seed=1).requires_grad_()
    found = norm_ops.without_bias(norm_bias, conv_bias)
    assert torch.equal(found, norm_bias)
    first, second = torch.autograd.grad(found.square().sum(), (norm_bias, conv_bias))
    assert torch.equal(first, 2 * norm_bias) and torch.equal(second, torch.zeros(3))
    assert norm_ops.without_bias(norm_bias, None) is norm_bias


@pytest.mark.parametrize("function", [norm_ops.norm_relu_pool, norm_ops.norm_relu])
def test_on_a_cpu_these_are_the_plain_functions(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_ops, "_norm_relu", None)
    monkeypatch.setattr(triton_launch, "_kernels", None)
    x, weight, bias = draw(2, 3, 6, 6), draw(3, seed=1), draw(3, seed=2)
    assert torch.equal(function(x, weight, bias, 1e-5), getattr(fused, function.__name__)(x, weight, bias, 1e-5))


def test_on_a_cpu_a_block_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_ops, "norm_relu_pool", None)
    block, calls = ConvBlock(3, 8), []
    block.use("compiled")
    block._kernel = lambda *given: calls.append(given) or fused.norm_relu_pool(*given)  # type: ignore[func-returns-value]
    block(draw(2, 3, 8, 8))
    assert len(calls) == 1


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_the_plain_norm_with_a_residual(relu: bool, dtype: torch.dtype) -> None:
    x, residual = draw(3, 4, 5, 6, dtype=dtype), draw(3, 4, 5, 6, seed=3, dtype=dtype)
    weight, bias = draw(4, seed=1, dtype=torch.float64), draw(4, seed=2, dtype=torch.float64)
    expected = torch.nn.functional.group_norm(x.double(), 4, weight, bias) + residual.double()
    expected = torch.relu(expected) if relu else expected
    found = fused.norm_relu(x, weight, bias, 1e-5, residual, relu)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-2)


# Where they cannot run


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Treats the CPU as CUDA, with the state of a new process."""
    monkeypatch.setattr(triton_launch, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(triton_launch, "_broken", set())
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")  # else the first use of the kernels sets it
    load = triton_launch._kernels
    load.cache_clear()
    yield monkeypatch
    load.cache_clear()


class Failing:
    """A kernel that a compiler refuses."""

    def __getitem__(self, grid: object) -> "Failing":
        return self

    def __call__(self, *arguments: object, **options: object) -> None:
        raise ValueError("no such instruction\nand more")


class Quiet(Failing):
    """A kernel that is built, and writes zeros."""

    def __call__(self, *arguments: Any, **options: object) -> None:
        for tensor in arguments[4:6]:
            tensor.zero_()


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_kernel_that_fails_is_said_once_and_continues_plainly(
    fails: str, as_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = SimpleNamespace(forward=Failing() if fails == "forward" else Quiet(), backward=Failing())
    as_cuda.setattr(triton_launch, "_kernels", lambda: module)
    inputs = [draw(2, 3, 6, 6), draw(3, seed=1), draw(3, seed=2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    caplog.set_level(logging.WARNING, "iidlib")
    assert triton_norm.usable(inputs[0])
    found = norm_ops.norm_relu_pool(*inputs)
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    assert len(caplog.records) == 1 and "no such instruction" in caplog.text and "\n" not in caplog.records[0].message
    assert not triton_norm.usable(inputs[0]) and "norms now run" in caplog.text
    assert triton_launch.available("transform"), "the augmentation has not failed"
    if fails == "forward":
        expected = fused.norm_relu_pool(*inputs)
        assert torch.equal(found, expected)
        for mine, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.equal(norm_ops.norm_relu_pool(*inputs), fused.norm_relu_pool(*inputs))
    assert len(caplog.records) == 1


def test_memory_that_runs_out_is_not_taken_for_a_failed_kernel(as_cuda: pytest.MonkeyPatch) -> None:
    class Full(Failing):
        def __call__(self, *arguments: object, **options: object) -> None:
            raise torch.OutOfMemoryError("full")

    class Unloaded(Failing):
        def __call__(self, *arguments: object, **options: object) -> None:
            raise RuntimeError("Triton Error [CUDA]: out of memory")

    for kernel in (Full(), Unloaded()):
        as_cuda.setattr(triton_launch, "_kernels", lambda kernel=kernel: SimpleNamespace(forward=kernel))
        with pytest.raises(torch.OutOfMemoryError):
            norm_ops.norm_relu_pool(draw(2, 3, 6, 6), draw(3), draw(3))
        assert not triton_launch._broken


def test_a_launch_within_a_broken_capture_says_nothing_about_the_kernel(as_cuda: pytest.MonkeyPatch) -> None:
    as_cuda.setattr(triton_launch, "_kernels", lambda: SimpleNamespace(forward=Failing()))
    as_cuda.setattr(triton_launch, "_is_captured", lambda x: True)
    with pytest.raises(RuntimeError, match="no such instruction"):  # which the recorder expects
        norm_ops.norm_relu_pool(draw(2, 3, 6, 6), draw(3), draw(3))
    assert not triton_launch._broken


@pytest.mark.parametrize(
    ("forward", "backward", "works"),
    [("Quiet", "Quiet", True), ("Failing", "Quiet", False), ("Quiet", "Failing", False)],
)
def test_whether_the_kernels_work_is_tried_before_it_is_said(
    forward: str, backward: str, works: bool, as_cuda: pytest.MonkeyPatch
) -> None:
    kinds = {"Quiet": Quiet, "Failing": Failing}
    module = SimpleNamespace(forward=kinds[forward](), backward=kinds[backward]())
    as_cuda.setattr(triton_launch, "_kernels", lambda: module)
    assert triton_norm.works(torch.device("cpu")) is works
    assert triton_launch.available() is works
    as_cuda.setattr(triton_launch, "_kernels", lambda: None)
    assert not triton_norm.works(torch.device("cpu"))


def test_a_residual_of_another_shape_is_expanded_or_refused(as_cuda: pytest.MonkeyPatch) -> None:
    x, weight, bias = draw(2, 3, 4, 4), draw(3, seed=1), draw(3, seed=2)
    expected = fused.norm_relu(x, weight, bias, 1e-5, draw(1, 3, 1, 1, seed=3).expand_as(x))
    as_cuda.setattr(triton_launch, "_kernels", lambda: SimpleNamespace(forward=Failing()))
    as_cuda.setattr(triton_norm, "usable", lambda x: True)
    found = norm_ops.norm_relu(x, weight, bias, 1e-5, draw(1, 3, 1, 1, seed=3))
    assert torch.allclose(found, expected, atol=1e-6)
    with pytest.raises(RuntimeError, match="expand"):
        norm_ops.norm_relu(x, weight, bias, 1e-5, draw(2, 3, 5, 4))


def test_without_triton_a_warning_and_the_plain_functions(
    as_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_cuda.setattr(triton_kernels, "available", lambda: False)
    x, weight, bias = draw(2, 3, 6, 6), draw(3, seed=1), draw(3, seed=2)
    block = ConvBlock(3, 4)
    block.use("fused")
    caplog.set_level(logging.WARNING, "iidlib")
    for _ in range(2):
        assert torch.equal(norm_ops.norm_relu_pool(x, weight, bias), fused.norm_relu_pool(x, weight, bias))
        found = block(x)
    assert [record.message for record in caplog.records] == [
        "Triton is not installed; norms and augmentations run as separate operations on the GPU, which is slower"
    ]
    found.sum().backward()
    assert torch.equal(block.conv.bias.grad, torch.zeros(4))


@pytest.mark.parametrize(("name", "norms", "residuals", "plain"), [("resnet18", 20, 8, 3), ("vgg11", 8, 0, 0)])
def test_the_layers_of_deeper_networks_are_norms_and_convolutions_without_bias(
    name: str, norms: int, residuals: int, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.Generator().manual_seed(0)
    network = set_backend(build_network(name, num_classes=3, image_size=32, generator=draws), "fused")
    images, calls = draw(2, 3, 32, 32).float(), []
    expected = set_backend(copy.deepcopy(network), "eager")(images)

    def noted(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, relu: bool) -> Tensor:
        calls.append((residual is not None, relu))
        return fused.norm_relu(x, weight, bias, eps, residual, relu)

    monkeypatch.setattr(norm_ops, "runs_on", lambda x: True)
    monkeypatch.setattr(norm_ops, "norm_relu", noted)
    found = network(images)
    assert torch.allclose(found, expected, atol=1e-4)
    assert len(calls) == norms and sum(residual for residual, _ in calls) == residuals
    assert sum(not relu for _, relu in calls) == plain, "the norms of shortcuts"
    found.sum().backward()
    biases = [module.bias for module in network.modules() if isinstance(module, Conv3x3) and module.bias is not None]
    assert len(biases) == (8 if name == "vgg11" else 0)
    assert all(torch.equal(bias.grad, torch.zeros_like(bias)) for bias in biases)


def test_without_a_private_folder_nothing_is_built(as_cuda: pytest.MonkeyPatch) -> None:
    as_cuda.setattr(kernels, "refusal", lambda: "the folder is not private")
    assert not triton_norm.usable(draw(2, 3, 6, 6))


@pytest.mark.parametrize("own", [False, True])
def test_kernels_are_built_in_the_private_folder(own: bool, as_cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_cuda.setattr(kernels, "refusal", lambda: "")
    as_cuda.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    if not own:
        as_cuda.delenv("TRITON_CACHE_DIR")
    triton_norm.usable(draw(2, 3, 6, 6))
    assert os.environ["TRITON_CACHE_DIR"] == ("elsewhere" if own else str(tmp_path / "triton"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_other_types_are_computed_plainly(dtype: torch.dtype, as_cuda: pytest.MonkeyPatch) -> None:
    as_cuda.setattr(triton_launch, "_kernels", lambda: ModuleType("kernels"))
    assert triton_norm.usable(draw(1, 1, 2, 2)) and not triton_norm.usable(torch.zeros(1, 1, 2, 2, dtype=dtype))


def test_the_modules_are_imported_without_triton() -> None:
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from iidlib import augment_ops
        from iidlib.engine import norm_ops, triton_kernels, triton_launch, triton_norm, triton_transforms
        assert not triton_kernels.available()
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr


def test_nothing_imports_triton_on_a_cpu() -> None:
    code = """
        import sys, torch
        from iidlib.networks import build_network, prepare
        prepare(build_network("convnet3", width=16), compile="off")(torch.zeros(1, 3, 32, 32))
        assert "iidlib.engine.triton_kernels" not in sys.modules
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
