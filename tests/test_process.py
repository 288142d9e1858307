"""iidlib.engine.process: one function sets the switches of the process; imports set none, and no result needs it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from iidlib.engine import compiler_available

needs_compiler = pytest.mark.skipif(not compiler_available(), reason="no C++ compiler")

# What a process says of its switches; the allocator's are asked for by `mallopt`, and cannot be read.
LOOK = """
import ctypes, importlib, logging, pkgutil, threading
import torch, torch._dynamo, torch._functorch.config

class Library:
    def __init__(self, *given):
        self.real = Real(*given)
    def __getattr__(self, name):
        if name != "mallopt":
            return getattr(self.real, name)
        return lambda *given: asked.append(given)

Real, ctypes.CDLL, asked = ctypes.CDLL, Library, []

def switches():
    return (
        torch._dynamo.config.force_parameter_static_shapes,
        torch._functorch.config.donated_buffer,
        logging.getLogger("torch.utils.cpp_extension").level,
        len(asked),
    )

before = switches()
expected = (False, False, logging.ERROR, 2)
assert before == (True, True, logging.NOTSET, 0), before
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOK + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_imports_change_nothing():
    run("""
        import iidlib
        for module in pkgutil.walk_packages(iidlib.__path__, "iidlib."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        [getattr(iidlib, name) for name in iidlib.__all__]
        iidlib.networks.build_network("convnet2", image_size=8, width=4)
        assert switches() == before, switches()
    """)


def test_one_call_sets_all_and_a_second_none():
    run("""
        from iidlib.engine import configure
        configure()
        assert switches() == expected, switches()
        torch._functorch.config.donated_buffer = True
        configure()
        assert torch._functorch.config.donated_buffer and len(asked) == 2, "what was set since then stays"
    """)


@needs_compiler
@pytest.mark.parametrize("gpu", [True, False])
def test_compiled_kernels_are_not_chosen_by_timing_where_there_is_a_gpu(gpu):
    run(f"""
        import torch._inductor.config
        from iidlib.engine import configure
        torch.cuda.is_available = lambda: {gpu}
        seen = []
        look = lambda: seen.append(torch._inductor.config.deterministic)
        look()
        configure()
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [False, {gpu}, {gpu}], seen
    """)


PREPARE = 'networks.prepare(networks.build_network("convnet1", image_size=8, width=4), compile="{}")'
DISTILL = 'iidlib.distill(iidlib.preset("dm", ipc=1, scale="ci"), iidlib.load_dataset("cifar10-mini"))'


@pytest.mark.parametrize(
    ("call", "compiled"),
    [
        (PREPARE.format("auto"), True),
        (PREPARE.format("off"), False),
        (DISTILL, False),
        ('session.load("cifar10-mini", None, "cpu")', False),
    ],
    ids=["prepare", "prepare off", "distill off", "command"],
)
def test_who_sets_them(call, compiled):
    """Without compiled kernels torch's compiler keeps its settings, and its folder is not asked for."""
    run(f"""
        import os
        import iidlib
        if not {compiled}:  # would be refused with a warning, if anybody asked for it
            os.environ["IID_CACHE"] = "/dev/null/none"
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
        expected = expected if {compiled} else (True, True, *expected[2:])
        from iidlib import networks
        from iidlib.cli import session
        assert switches() == before
        {call}
        assert switches() == expected, switches()
    """)


@needs_compiler
def test_a_process_that_only_evaluates_has_them_and_uses_the_compiled_kernel():
    said = run("""
        import iidlib
        from iidlib.config import ComputeConfig, EvalProtocol
        from iidlib.data import shapes
        from iidlib.engine import fused
        calls, compiled = [], fused._Compiled.__call__
        fused._Compiled.__call__ = lambda self, *given: calls.append(1) or compiled(self, *given)
        data = shapes(num_classes=2, per_class=[4, 4], seed=0)
        protocol = EvalProtocol(epochs=2, num_eval=1, width=6, networks=("convnet3",))
        scores = iidlib.evaluate(data.train, data, protocol=protocol, compute=ComputeConfig(compile="on"))
        assert 0 <= scores["accuracy"][0] <= 100
        assert calls and not fused.compiled_norm_relu_pool().broken
        assert switches() == expected, switches()
    """)
    assert not said


@needs_compiler
@pytest.mark.parametrize("configured", [True, False], ids=["with configure", "without"])
def test_the_compiled_kernel_works_in_every_thread(configured):
    """A graph is walked twice, and many widths make few graphs, also in a thread other than that of `configure`."""
    run(f"""
        from iidlib.engine import configure, fused
        from iidlib.networks import build_network, set_backend

        def forward(width):
            network = set_backend(build_network("convnet2", image_size=8, width=width), "compiled")
            images = torch.randn(2, 3, 8, 8, requires_grad=True)
            return network(images).square().sum(), images

        def backward(loss, images):
            first, second = (torch.autograd.grad(loss, images, retain_graph=True)[0] for _ in range(2))
            assert torch.equal(first, second)
            done.append(width)

        def in_a_thread(work):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

        if {configured}:
            configure()
        widths, done = (3, 4, 5, 6, 7, 9, 10, 11, 12, 13), []
        for width in widths:
            in_a_thread(lambda: backward(*forward(width)))
            loss, images = forward(width)
            in_a_thread(lambda: backward(loss, images))  # as on CUDA
            backward(*forward(width))
        assert len(done) == 3 * len(widths), done
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
        assert not fused.compiled_norm_relu_pool().broken
    """)
