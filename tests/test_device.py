"""iidlib.engine: devices, and that what makes things fast changes no value: kernels, layouts, chunks, fallbacks."""

import logging
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from iidlib.engine import (
    compiler_available,
    default_chunk,
    deterministic,
    device_name,
    fused,
    in_chunks,
    kernels_in_use,
    norm_relu_pool,
    peak_memory_mib,
    pick_device,
    triton_launch,
)
from iidlib.engine import device as engine_device
from iidlib.engine.device import CPU_CHUNK
from iidlib.networks import NETWORKS, build_network, conv_blocks, fitted, prepare, set_backend
from iidlib.rng import stream
from tests.factories import difference, draw


@pytest.fixture
def compiler() -> None:
    if not compiler_available():
        pytest.skip("no C++ compiler that torch finds")


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    for module in (fused, fitted):  # where it is, and where it is asked
        monkeypatch.setattr(module, "compiler_available", lambda: False)


# Devices


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("present", "picked"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(present, picked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert pick_device("auto") == pick_device() == torch.device(picked)


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("cuda", 0, r"'cuda' requested, but torch sees 0 CUDA device\(s\) here; try --device cpu"),
        ("cuda:0", 0, "'cuda:0' requested"),
        ("cuda:2", 2, r"'cuda:2' requested, but torch sees 2 CUDA device\(s\)"),
        ("mps", 0, "'mps' requested, but torch sees no Apple GPU here"),
        ("gpu", 0, "device 'gpu' is not known; choose auto, cpu, cuda, cuda:N or mps"),
        ("", 0, "device '' is not known"),
        ("cuda:x", 1, "device 'cuda:x' is not known"),
        ("meta", 0, "device 'meta' is not supported"),
        ("xpu", 0, "device 'xpu' is not supported"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name, found, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message) as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cuda", "cuda:0", "cuda:1", "mps"):
        assert pick_device(name) == torch.device(name)


def test_names_and_memory_for_the_record():
    assert device_name(torch.device("cpu")) == f"cpu ({torch.get_num_threads()} threads)"
    peak, status = peak_memory_mib(torch.device("cpu")), Path("/proc/self/status")
    assert 50 < peak < 100_000
    if status.is_file():  # Linux says the same, in KiB
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        assert peak == pytest.approx(int(line.split()[1]) / 1024, rel=0.05)


@pytest.mark.parametrize(
    ("compile", "triton", "broken", "work", "used"),
    [
        ("auto", True, False, True, True),
        ("off", True, False, True, False),
        ("on", False, False, True, False),
        ("auto", True, True, True, False),
        ("auto", True, False, False, False),
    ],
)
def test_kernels_on_cuda_are_in_use_where_they_work(compile, triton, broken, work, used, monkeypatch):
    monkeypatch.setattr(triton_launch, "_kernels", lambda: object() if triton else None)
    monkeypatch.setattr(triton_launch, "_broken", {"transform"} if broken else set())
    monkeypatch.setattr(engine_device, "_triton_works", lambda where: work)
    assert kernels_in_use(torch.device("cuda"), compile) is used
    assert kernels_in_use(torch.device("mps"), compile) is False


@pytest.mark.parametrize("benchmark", [True, False])
def test_cudnn_is_deterministic_on_cuda_alone_and_put_back(benchmark, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", False)
    monkeypatch.setattr(cudnn, "benchmark", benchmark)
    with deterministic(torch.device("cpu")):
        assert (cudnn.deterministic, cudnn.benchmark) == (False, benchmark)
    with pytest.raises(KeyError), deterministic(torch.device("cuda")):
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        raise KeyError
    assert (cudnn.deterministic, cudnn.benchmark) == (False, benchmark)


@pytest.mark.parametrize(
    ("device", "name", "on"), [("cuda", "bf16", True), ("cuda", "tf32", False), ("cpu", "bf16", False)]
)
def test_maps_are_half_on_cuda_in_bf16_alone(device, name, on, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: asked.append((given, named)))
    engine_device.half_maps(torch.device(device), name)
    assert asked == ([(("cuda", torch.bfloat16), {"cache_enabled": False})] if on else [])


def test_norms_of_half_maps_are_computed_in_full():
    x, (weight, bias) = draw(2, 4, 8, 8) + 30, draw(2, 4, seed=1)
    found = norm_relu_pool(x.bfloat16(), weight.float(), bias.float())
    assert found.dtype == torch.bfloat16
    exact = norm_relu_pool(x.bfloat16().double(), weight, bias)  # of the rounded inputs
    assert difference(found, exact) < 5e-3


# The kernel


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias, eps)), 2)


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    eps=st.floats(1e-6, 1),
)
def test_the_kernel_is_norm_relu_and_pool(batch, channels, height, width, eps):
    """Values and gradients, odd sizes too, in both memory formats."""
    x, (weight, bias) = draw(batch, channels, height, width), draw(2, channels, seed=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = [tensor.clone().requires_grad_() for tensor in (x.contiguous(memory_format=layout), weight, bias)]
        twins = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        found, expected = norm_relu_pool(*inputs, eps), by_torch(*twins, eps)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
        assert found.shape == (batch, channels, height // 2, width // 2)
        cotangent = draw(*found.shape, seed=2)
        for mine, theirs in zip(
            torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, twins, cotangent), strict=True
        ):
            assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-10)


def test_the_kernel_by_finite_differences():
    inputs = [draw(2, 2, 4, 5).requires_grad_(), draw(2, seed=1).requires_grad_(), draw(2, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(norm_relu_pool, inputs)


def test_the_kernel_keeps_the_memory_format():
    x = draw(2, 3, 8, 8, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    assert norm_relu_pool(x, torch.ones(3), torch.zeros(3)).is_contiguous(memory_format=torch.channels_last)


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


SHAPES = ((6, 4, 16, 16), (5, 7, 8, 8), (3, 12, 9, 5))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("learns", [True, False], ids=["training", "frozen"])
def test_the_compiled_kernel_is_the_plain_one_in_value_and_gradient(learns):
    kernel = fused.compiled_norm_relu_pool()
    before, made = graphs(), []
    for shape in SHAPES:
        x = draw(*shape, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight, bias = (nn.Parameter(part, requires_grad=learns) for part in draw(2, shape[1], dtype=torch.float32))
        wanted = [x, weight, bias] if learns else [x]
        found = kernel(x, weight, bias, 1e-5)
        made.append(graphs() - before)
        double = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
        expected = norm_relu_pool(*double, 1e-5)
        assert difference(found.detach(), expected.detach()) < 1e-5
        cotangent = draw(*found.shape, seed=3)
        gradients = torch.autograd.grad(found, wanted, cotangent.float(), retain_graph=True)
        references = torch.autograd.grad(expected, double[: len(wanted)], cotangent)
        again = torch.autograd.grad(found, wanted, cotangent.float())  # a graph may be walked twice
        for gradient, second, reference in zip(gradients, again, references, strict=True):
            assert difference(gradient, reference) < 1e-4 and torch.equal(gradient, second)
    assert made[-1] <= made[0] + 1, "other widths and sizes must not compile again: dynamo gives up after 8 graphs"


@pytest.mark.usefixtures("compiler")
def test_the_compiled_kernel_without_gradients():
    kernel = fused.compiled_norm_relu_pool()
    with torch.no_grad():
        for shape in SHAPES:
            x = draw(*shape, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
            weight, bias = draw(2, shape[1], dtype=torch.float32)
            assert (
                difference(kernel(x, weight, bias), norm_relu_pool(x.double(), weight.double(), bias.double())) < 1e-5
            )


# Without a compiler, or with one that fails


@pytest.fixture
def fresh_kernel() -> Iterator[None]:
    fused.compiled_norm_relu_pool.cache_clear()
    yield
    fused.compiled_norm_relu_pool.cache_clear()


@pytest.mark.usefixtures("fresh_kernel")
def test_a_compilation_that_fails_is_said_once_and_continues_uncompiled(monkeypatch, caplog):
    calls = []

    def failing(*args: object) -> None:
        calls.append(1)
        raise torch._dynamo.exc.TorchDynamoException("no header\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: failing)
    kernel = fused.compiled_norm_relu_pool()
    x, weight, bias = draw(2, 3, 8, 8), draw(3, seed=1), draw(3, seed=2)
    caplog.set_level(logging.WARNING, "iidlib")
    for _ in range(3):
        assert torch.equal(kernel(x, weight, bias, 1e-5), norm_relu_pool(x, weight, bias, 1e-5))
    assert len(calls) == 1 and len(caplog.records) == 1
    assert "torch.compile failed" in caplog.text and "continuing uncompiled" in caplog.text
    assert "\n" not in caplog.records[0].message


@pytest.mark.usefixtures("fresh_kernel")
def test_other_errors_are_not_taken_for_failed_compilations(monkeypatch):
    def failing(*args: object) -> None:
        raise ValueError("a shape that does not fit")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: failing)
    with pytest.raises(ValueError, match="a shape that does not fit"):
        fused.compiled_norm_relu_pool()(draw(1, 1, 2, 2), torch.ones(1), torch.zeros(1))


@pytest.mark.skipif(sys.platform == "win32", reason="the broken compiler is a shell script")
def test_a_compiler_that_does_not_work_costs_speed_and_no_result(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo "g++ 13.2.0"; exit 0;; esac\nexit 1\n')
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    code = """
        import torch
        from iidlib.engine import compiler_available, norm_relu_pool
        from iidlib.networks import build_network, prepare
        assert compiler_available()
        network = prepare(build_network("convnet1", width=4, image_size=8), compile="auto")
        assert network.trunk.block1.backend == "fused"
        plain = build_network("convnet1", width=4, image_size=8)
        plain.load_state_dict(network.state_dict())
        images = torch.randn(3, 3, 8, 8, requires_grad=True)
        found = network.embed(images)
        assert torch.allclose(found, plain.embed(images), atol=1e-5)
        found.sum().backward()
        print("done", bool(images.grad.any()))
    """
    environment = os.environ | {"CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
        timeout=300,
    )
    assert done.stdout == "done True\n", done.stderr
    assert "torch.compile failed" in done.stderr and "continuing uncompiled" in done.stderr


# Networks made fast


@pytest.mark.parametrize("name", NETWORKS)
def test_prepared_networks_keep_their_values(name):
    settings = {"width": 4} if name.startswith("convnet") else {}
    network, twin = (build_network(name, generator=stream(0, 0, "network"), **settings).eval() for _ in range(2))
    assert prepare(network, compile="off") is network
    images = draw(2, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        assert difference(network(images), twin(images)) < 1e-4
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.ndim != 4 or mine.is_contiguous(memory_format=torch.channels_last)


def backends(network: nn.Module) -> list[object]:
    return [block.backend for block in conv_blocks(network)]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("setting", ["auto", "on"])
def test_kernels_are_compiled_where_there_is_a_compiler(setting):
    network = prepare(build_network("convnet3", width=2), compile=setting)
    assert backends(network) == ["fused"] * 3
    prepare(network, compile=setting)
    assert backends(network) == ["fused"] * 3


def test_a_backend_that_was_chosen_stays():
    network = build_network("convnet2", width=2)
    set_backend(network, by_torch)
    prepare(network, compile="auto")
    assert backends(network) == [by_torch] * 2
    set_backend(network, "compiled")
    prepare(network, compile="auto")
    assert backends(network) == ["compiled"] * 2


def test_compilation_can_be_turned_off():
    assert backends(prepare(build_network("convnet2", width=2), compile="off")) == ["eager"] * 2


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_is_off_and_on_is_an_error():
    assert backends(prepare(build_network("convnet2", width=2), compile="auto")) == ["eager"] * 2
    with pytest.raises(ValueError, match=r"compute.compile is on, but torch finds no C\+\+ compiler here; install one"):
        prepare(build_network("convnet2", width=2), compile="on")


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match=r"compute.compile must be auto, on or off, got 'yes'"):
        prepare(build_network("convnet1", width=1), compile="yes")


def test_a_missing_compiler_is_noticed(monkeypatch):
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise RuntimeError("no compiler")

    compiler_available.cache_clear()
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    assert compiler_available() is False
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert compiler_available() is False, "asked once per process"
    compiler_available.cache_clear()
    assert compiler_available() is True
    compiler_available.cache_clear()


# Chunks


@given(rows=st.integers(0, 70), size=st.integers(0, 80))
def test_chunks_give_what_one_call_gives(rows, size):
    images, sizes = draw(rows, 3), []
    found = in_chunks(lambda chunk: sizes.append(len(chunk)) or chunk.square().sum(1), images, size)
    assert torch.equal(found, images.square().sum(1))
    assert sum(sizes) == rows and len(sizes) == max(1, -(-rows // size) if size else 1)
    assert not size or max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_chunks_of_a_network_and_their_gradient():
    network = build_network("convnet2", image_size=8, width=3, generator=stream(0, 0, "network")).double()
    images = draw(11, 3, 8, 8).requires_grad_()
    whole = network.embed(images)
    (expected,) = torch.autograd.grad(whole.square().sum(), images)
    for size in (1, 4, 10, 11, 12):
        found = in_chunks(network.embed, images, size)
        assert difference(found.detach(), whole.detach()) < 1e-12
        assert difference(torch.autograd.grad(found.square().sum(), images)[0], expected) < 1e-12


def test_the_chunk_that_suits_a_device():
    assert default_chunk(torch.device("cpu")) == CPU_CHUNK == 32
    assert default_chunk(torch.device("cuda")) == 0


def test_on_a_gpu_total_memory_decides_whatever_is_free(monkeypatch):
    properties = SimpleNamespace(total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    image = 4 * 4 * 128 * 32 * 32
    for free in (23 << 30, 1 << 20):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 24 << 30))
        assert default_chunk(torch.device("cuda"), image) == 2048
        assert default_chunk(torch.device("cuda"), 3 * image) == 1024
        assert default_chunk(torch.device("cuda"), 1 << 50) == 1
    assert default_chunk(torch.device("cpu"), image) == CPU_CHUNK
    properties.total_memory = int(23.6 * 2**30)  # as a driver may report it
    assert default_chunk(torch.device("cuda"), image) == 2048
