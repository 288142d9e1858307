"""What no memory holds is refused before any work, in one line that names the setting to lower."""

import sys
from pathlib import Path

import pytest
import torch

from iidlib import distill, evaluate, preset
from iidlib.data import Dataset
from iidlib.distillation import Distillation
from iidlib.distillation.memory import least_memory
from iidlib.engine import available_bytes, check_fits
from iidlib.errors import InputError, out_of_memory
from iidlib.evaluation import random_real
from iidlib.networks import build_network, network_bytes, network_for
from iidlib.rng import stream
from tests.command_line import exit_status

PICTURES = {"per_class": 40, "size": 32}
"""Of the fixture `pictures`."""

CPU = torch.device("cpu")
HUGE = 10**15


def test_memory_that_is_there_is_that_of_a_machine() -> None:
    found = available_bytes(CPU)
    assert found is None or 2**20 < found < 2**50
    assert found is not None or not sys.platform.startswith("linux")


def test_what_does_not_fit_is_reported_with_the_largest_need() -> None:
    check_fits({"little": 10, "nothing": 0}, CPU)
    with pytest.raises(InputError, match=r"^this needs at least [\d.,]+ GiB of memory, .* most of it is for images$"):
        check_fits({"little": 10, "images": 2**49}, CPU)
    with pytest.raises(InputError, match=r"needs at least 9.3e\+90 GiB"):
        check_fits({"all": 10**100}, CPU)


@pytest.mark.parametrize("name", ["convnet1", "convnet3", "convnet4-bn", "resnet18", "mlp"])
def test_the_bytes_of_a_network_are_those_of_its_weights(name: str, pictures: Dataset) -> None:
    spec = pictures.spec
    for width in (4, 1500):
        if width > 4 and not name.startswith("convnet"):
            continue
        own = width if name.startswith("convnet") else None
        network = build_network(name, num_classes=len(spec.classes), image_size=spec.image_size, width=own)
        assert network_bytes(name, spec, width) == sum(each.nbytes for each in network.parameters())


@pytest.mark.parametrize(
    ("method", "changes", "setting"),
    [
        ("dm", {"match.width": HUGE}, "match.width"),
        ("dm", {"match.width": 2**63 - 1}, "match.width"),
        ("idm", {"queue.start": HUGE, "queue.size": HUGE}, "queue.start"),
        ("dm-cc", {"pool.width": HUGE}, "pool.width"),
        ("dm-cc", {"pool.count": 10**6, "pool.network": "resnet18"}, "pool.count"),
    ],
)
def test_a_distillation_that_does_not_fit_is_refused_before_it_begins(
    method: str, changes: dict[str, object], setting: str, pictures: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"^this needs .* most of it is for .*lower .*{setting}"):
        distill(preset(method, "shapes", 2, "ci", changes), pictures, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_of_more_images_than_there_are_takes_all(pictures: Dataset) -> None:
    keys = ("match.batch_real", "compute.chunk", "eval.batch", "queue.batch", "queue.size")
    few = {"iterations": 1, "match.width": 2, "queue.steps": 1, "eval.num_eval": 1, "eval.epochs": 1}
    config = preset("idm", "shapes", 1, "ci", few | dict.fromkeys(keys, 2**63 - 1))
    made = distill(config, pictures).synthetic
    assert evaluate(made, pictures, protocol=config.eval)["outcome"].tolist() == ["trained"]


def test_what_a_distillation_needs_is_counted_from_below(pictures: Dataset) -> None:
    changes = {"match.batch_real": 5, "match.width": 8, "match.network": "convnet3", "syn.factor": 2, "iterations": 9}
    queue = {"queue.size": 100, "queue.start": 2, "queue.every": 3}
    pool = {"pool.count": 2, "pool.network": "convnet3", "pool.width": 4, "pool.epochs": 3, "pool.epochs_kept": (1, 2)}
    config = preset("iid-idm", "shapes", 2, "ci", changes | queue | pool)
    classes, image, features = len(pictures.spec.classes), 4 * 3 * 32 * 32, 4 * 8 * 4 * 4
    weights = {width: network_bytes("convnet3", pictures.spec, width) for width in (4, 8)}
    real, synthetic = (count * classes * (image + features) for count in (5, 2 * 2**2))
    queued = (
        2 * (2 + 1 + 2) * weights[8]
    )  # with their momenta: three at the start, and one after 3 and 6 iterations each
    pooled = 2 * 3 * weights[4]  # after one, two and three epochs
    assert [*least_memory(config, pictures, ("mean", "cc"), "queue").values()] == [real, synthetic, queued, pooled]
    assert [*least_memory(config, pictures, ("mean",), "queue").values()] == [real, synthetic, queued]
    assert [*least_memory(config, pictures, ("mean",), "random").values()] == [real, synthetic, weights[8]]
    assert least_memory(config, pictures, ("mean",), classes=range(pictures.train.num_classes)) == least_memory(
        config, pictures, ("mean",)
    )
    two = list(least_memory(config, pictures, ("mean",), classes=range(2)).values())
    assert two[1] * pictures.train.num_classes == 2 * synthetic and two[0] < real, "of the classes of one process"


def test_an_evaluating_network_that_does_not_fit_is_refused(pictures: Dataset) -> None:
    protocol = preset("dm", "shapes", 2, "ci", {"eval.width": HUGE}).eval
    with pytest.raises(InputError, match=r"the weights of a convnet3 of width 1000000000000000: lower the width"):
        evaluate(random_real(pictures.train, 2), pictures, protocol=protocol)
    assert network_for("convnet3", pictures.spec, width=4, generator=stream(0, 0, "x"))


@pytest.mark.parametrize(
    ("error", "is_that"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("Storage size calculation overflowed with sizes=[1]"), True),
        (OverflowError("Python int too large to convert to C long"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13.00 GiB"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (KeyError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_was_not_enough_are_known(error: Exception, is_that: bool) -> None:
    assert out_of_memory(error) is is_that


def test_memory_that_runs_out_on_a_cpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        torch.empty(2**60)  # torch's own error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Distillation, "step", fails)
    assert exit_status("distill", "dm", "--dataset", "shapes", "--ipc", "2", "--scale", "ci", "--out", "run") == 1
    reported = capfd.readouterr().err.splitlines()
    assert (
        reported[0].startswith("iid: failed: out of memory (")
        and "match.batch_real=" in reported[0]
        and len(reported) <= 2
    )


@pytest.mark.parametrize(
    "changes",
    [
        ("--set", "match.width=1e18"), ("--set", "match.cm=1e39"), ("--set", "eval.batch=1e20"),
        ("--ipc", "1" + "0" * 18), ("--iterations", "1" + "0" * 30), ("--seed", "9" * 400),
        ("--set", "match.width=1e5000"),
        ("--set", "syn.lr=1e-50"), ("--set", "syn.factor=1e15"), ("--set", "match.cm=0.02"),
        ("--set", "match.statistics=cached", "--set", "match.cached_pairs=9223372036854775807"),
        ("--set", "queue.start=1e17", "--set", "queue.size=1e17"), ("--set", "eval.networks=convnet3,convnet3"),
        ("--set", "pool.count=1e15"), ("--set", "match.width=0x10"),
        ("--set", "checkpoint.seconds=inf"), ("--set", "compute.chunk=\u0663"), ("--ipc", "9" * 5000),
    ],
)  # fmt: skip
def test_huge_and_odd_numbers_end_in_one_line_and_leave_nothing(
    changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    method = "idm" if "queue.size=1e17" in changes else "dm"
    assert (
        exit_status("distill", method, "--dataset", "shapes", "--scale", "ci", "--ipc", "2", "--out", "run", *changes)
        == 2
    )
    reported = capfd.readouterr().err.splitlines()
    assert len(reported) == 1 and reported[0].startswith("iid: ") and len(reported[0]) < 1100, reported
    assert not list(tmp_path.iterdir())
