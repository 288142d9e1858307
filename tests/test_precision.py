"""The precision of convolutions and matrix products wherever networks are trained or applied, read as each one runs.

On a CPU the settings have no effect, but they can be set and read, so what a GPU would do is seen here.
"""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iidlib.config import ComputeConfig, EvalProtocol, PoolConfig
from iidlib.distillation import METHODS
from iidlib.engine import device as engine_device
from iidlib.engine import precision, precision_in_use
from iidlib.errors import InputError
from iidlib.evaluation import choose, compare, covariance_gap, evaluate, mmd, random_real
from iidlib.features import chosen_images, pool_fingerprint, trained_pool
from iidlib.features import pool_training as features_pool
from iidlib.networks import Network, build_network, frozen
from tests.factories import draw, ready_run, seeded, settings, tiny_dataset

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


class Flags(TorchDispatchMode):
    """Whether each convolution and matrix product within a block could be rounded to TF32, by kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[bool] = []
        self.backward: list[bool] = []
        self.products: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "convolution":
            self.convolutions.append(torch.backends.cudnn.allow_tf32)
        elif name == "convolution_backward":
            self.backward.append(torch.backends.cudnn.allow_tf32)
        elif name in PRODUCTS:
            self.products.append(torch.backends.cuda.matmul.allow_tf32)
        return function(*args, **(kwargs or {}))

    def assert_all(self, name: str) -> None:
        """Every convolution is in the precision of this name, and every matrix product in float32."""
        assert self.convolutions and set(self.convolutions + self.backward) == {name != "fp32"}
        assert set(self.products) <= {False}


@pytest.mark.parametrize("how", ["", "matmul", "cudnn.conv", "all"])
def test_settings_of_either_generation_are_put_back(how: str) -> None:
    """In a process of its own: torch refuses to read the first generation once a program has used the second."""
    code = f"""
        import torch
        from iidlib.engine import device

        backends = torch.backends
        def now():
            found = [part.fp32_precision for part in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]
            for legacy in (backends.cuda.matmul, backends.cudnn):
                try:
                    found.append(legacy.allow_tf32)
                except RuntimeError:
                    found.append(None)
            return found

        if {how!r} == "matmul":
            backends.cuda.matmul.fp32_precision = "tf32"
        elif {how!r} == "cudnn.conv":
            backends.cudnn.conv.fp32_precision = "ieee"
        elif {how!r} == "all":
            backends.fp32_precision = "tf32"
        else:
            backends.cuda.matmul.allow_tf32 = True
        before = now()
        assert (None in before) == bool({how!r}), before
        device._has_tf32 = lambda _: True
        for name in ("fp32", "tf32"):
            with device.precision(torch.device("cpu"), name):
                rounded = "tf32" if name == "tf32" else "ieee"
                assert now()[:3] == ["ieee", rounded, rounded], now()
        assert now() == before, (now(), before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A precision that the CPU has for once; the settings before it are the opposite, and stay as they are."""
    monkeypatch.setattr(engine_device, "_has_tf32", lambda device: True)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = True, request.param == "fp32"
    try:
        yield request.param
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, request.param == "fp32")
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def compute(name: str, **changes: object) -> ComputeConfig:
    return attrs.evolve(ComputeConfig(compile="off", precision=name), **changes)


def network(name: str = "convnet2") -> Network:
    return frozen(build_network(name, width=4, num_classes=4, image_size=16, generator=seeded())).eval()


@pytest.mark.parametrize("method", [*METHODS])
def test_a_step_rounds_convolutions_forward_and_backward_and_no_product(name: str, method: str) -> None:
    run = ready_run(settings(method, compute__precision=name), tiny_dataset((16, 16, 16, 16)))
    for log in (False, True):
        with Flags() as flags:
            run.step(0, log=log)
        flags.assert_all(name)
        assert flags.backward
    assert flags.products or "cm" not in run.terms


@pytest.mark.parametrize("form", ["gaussian", "characteristic"])
def test_the_products_of_a_kernel_distance_are_in_full(name: str, form: str) -> None:
    changes = {"compute__precision": name, "match__mmd": 0.1, "match__mmd_form": form}
    run = ready_run(settings("iid-plus", **changes), tiny_dataset((16, 16, 16, 16)))
    with Flags() as flags:
        run.step(0)
    flags.assert_all(name)
    assert flags.products


@pytest.mark.parametrize("together", [1, 2])
def test_a_pool_is_trained_and_tested_in_the_precision_asked_for(
    name: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IID_CACHE", str(tmp_path))
    pool = PoolConfig(network="convnet2", width=4, count=2, epochs=1, batch=8, untrained="warn")
    with Flags() as flags:
        trained_pool(tiny_dataset(), pool, compute=compute(name, together=together))
    flags.assert_all(name)
    assert flags.backward and flags.products


@pytest.mark.parametrize("kind", ["centres", "easiest"])
def test_initial_images_are_chosen_in_the_precision_asked_for(name: str, kind: str) -> None:
    with Flags() as flags:
        chosen_images(kind, tiny_dataset().train, network(), 2, compute=compute(name))
    flags.assert_all(name)


@pytest.mark.parametrize("kind", ["herding", "k-center"])
def test_real_images_are_chosen_in_the_precision_asked_for(name: str, kind: str) -> None:
    with Flags() as flags:
        choose(kind, tiny_dataset().train, 2, network(), compute=compute(name))
    flags.assert_all(name)


def test_measures_of_features_are_in_full(name: str) -> None:
    data = tiny_dataset()
    with Flags() as flags:
        compare({"random": random_real(data.train, 2)}, data.train, [network()], compute=compute(name))
    flags.assert_all(name)
    real, syn = draw(2, 40, 3, 4, seed=0, dtype=torch.float32), draw(2, 40, 3, 4, seed=1, dtype=torch.float32)
    with Flags() as flags:
        covariance_gap(real, syn)
        mmd(real.flatten(2), syn.flatten(2))
    assert flags.products and not any(flags.products)


@pytest.mark.parametrize("together", [1, 2])
def test_an_evaluation_trains_and_tests_in_the_precision_asked_for(name: str, together: int) -> None:
    data = tiny_dataset()
    protocol = EvalProtocol(networks=("convnet2",), num_eval=2, epochs=1, batch=8, width=4)
    with Flags() as flags:
        evaluate(random_real(data.train, 2), data, protocol=protocol, compute=compute(name, together=together))
    flags.assert_all(name)
    assert flags.backward and flags.products


# A pool's name


POOL = PoolConfig(network="convnet2", width=4, count=1, epochs=1, batch=8, untrained="warn")


def test_a_cpu_knows_one_precision_and_its_pools_one_name() -> None:
    cpu, data = torch.device("cpu"), tiny_dataset()
    assert precision_in_use(cpu, "tf32") == "fp32" and precision_in_use(torch.device("cuda"), "tf32") == "tf32"
    assert len({pool_fingerprint(data, POOL, compute(name)) for name in ("fp32", "tf32", "bf16")}) == 1
    assert pool_fingerprint(data, POOL) == pool_fingerprint(data, POOL, compute("tf32"))


def test_on_cuda_rounded_networks_are_another_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_dataset()
    on_cpu = pool_fingerprint(data, POOL)
    monkeypatch.setattr(engine_device, "_has_tf32", lambda device: True)
    full, rounded, half = (pool_fingerprint(data, POOL, compute(name)) for name in ("fp32", "tf32", "bf16"))
    assert full == on_cpu != rounded == half == pool_fingerprint(data, POOL)


def test_a_pool_in_the_users_folder_is_used_whatever_its_precision_but_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, data = attrs.evolve(POOL, path=str(tmp_path / "mine")), tiny_dataset()
    (tmp_path / "mine").mkdir()
    with monkeypatch.context() as on_cuda:
        on_cuda.setattr(engine_device, "_has_tf32", lambda device: True)
        made = trained_pool(data, mine, compute=compute("tf32"))
    with pytest.raises(InputError, match="lacks 1 of 2 networks, and the others were trained in another precision"):
        trained_pool(data, attrs.evolve(mine, count=2), compute=compute("tf32"))
    monkeypatch.setattr(features_pool, "fit", None)  # nothing is trained
    used = trained_pool(data, mine, compute=compute("tf32"))
    assert (used.digest, used.fingerprint) == (made.digest, made.fingerprint) != ("", pool_fingerprint(data, mine))


# The block itself


@pytest.mark.parametrize(("name", "flag"), [("tf32", True), ("bf16", True), ("fp32", False)])
def test_precision_is_set_on_cuda_alone_and_restored(name: str, flag: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with precision(torch.device("cpu"), name):
        assert flags() == before
    with pytest.raises(KeyError), precision(torch.device("cuda"), name):
        assert flags() == (False, flag)
        raise KeyError
    assert flags() == before
