"""iidlib.ranks: one distillation on several processes that torchrun starts, compared with one process."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from iidlib.errors import InputError
from iidlib.ranks import Ranks
from iidlib.runs import Checkpoints, RunFolder
from iidlib.synthetic import SyntheticSet
from tests.factories import difference

pytestmark = pytest.mark.skipif(os.name != "posix", reason="torchrun and gloo are tested on POSIX")

ALL_METHODS = ("dm", "iid-dm", "idm", "iid-idm")

SMALL = (
    "--dataset", "cifar10-mini", "--scale", "ci", "--ipc", "2", "--device", "cpu", "--no-baseline", "--no-evaluate",
    "--quiet", "--set", "pool.epochs=1", "--set", "pool.untrained=warn",
)  # fmt: skip

MANY = """
import json, sys
from iidlib.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code not in (0, 2):
            raise
"""
"""Executes several commands in the same processes, which need seconds to start; wrong input ends no other command."""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def launcher(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def run(ranks: int, *commands: Sequence[str], script: Path) -> str:
    """Executes commands of ``iid`` on a number of ranks, on one without torchrun; returns what they print to stderr."""
    script.write_text(MANY)
    words = [*(launcher(ranks) if ranks > 1 else [sys.executable]), str(script), json.dumps([*map(list, commands)])]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stderr


def own_lines(said: str) -> list[str]:
    return [line.removeprefix("iid: ") for line in said.splitlines() if line.startswith("iid: ")]


# Shares


@pytest.mark.parametrize(("count", "size"), [(10, 3), (3, 3), (7, 2), (2, 5), (0, 2), (200, 64)])
def test_shares_are_everything_once_and_even(count: int, size: int) -> None:
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Ranks(0, size).share(count, size - 1) == shares[-1]


def test_a_single_rank_exchanges_nothing() -> None:
    ranks, tensor = Ranks(), torch.arange(3.0)
    assert ranks.leads and ranks.says()
    assert ranks.total(tensor) is tensor and ranks.joined(tensor, [3]) is tensor
    assert ranks.any(True, False) == (True, False)
    assert ranks.first("x") == "x" and ranks.every("x") == ["x"]
    ranks.check_same({"settings": 1})
    with pytest.raises(InputError, match="wrong"), ranks.agreed():
        raise InputError("wrong")


# One, two and three ranks that compute the same: ten classes, so that one rank has more of them than another


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with what all commands have left, and what those on three ranks have said."""
    folder = tmp_path_factory.mktemp("ranks")

    def distil(method: str, out: str, *more: str) -> list[str]:
        return ["distill", method, *SMALL, "--out", str(folder / out), *more]

    def whole(ranks: int) -> list[list[str]]:
        return [distil(method, f"{method}-{ranks}", "--iterations", "12") for method in ALL_METHODS]

    def begun(name: str) -> list[str]:
        return distil("iid-idm", name, "--iterations", "6")

    def resumed(name: str) -> list[str]:
        return distil("iid-idm", name, "--iterations", "12", "--resume")

    def others(ranks: int) -> list[list[str]]:
        small = ["--scale", "ci", "--device", "cpu", "--quiet"]
        scores = ["--ipc", "1", "--num-eval", "4", "--out", str(folder / f"scores-{ranks}.json")]
        pool = ["--set", "pool.width=8", "--set", "pool.untrained=warn", "--count", "4", "--epochs", "1"]
        return [
            ["evaluate", "random", *small, *scores],
            ["experts", "--network", "convnet3", *pool, *small[2:], "--out", str(folder / f"pool-{ranks}")],
        ]

    script = folder / "many.py"
    run(1, *whole(1), begun("1-then-3"), *others(1), script=script)
    run(2, *whole(2), begun("2-then-3"), script=script)
    images = folder / "two"
    for split, name in itertools.product(("train", "test"), ("a", "b")):
        (images / split / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(images / split / name / "1.png")
    refused = [
        distil("dm", "two-classes", "--ipc", "1", "--dataset", f"folder:{images}"),
        ["sweep", "grid.yaml"],
        ["distill", "dm", "--iterations", "none"],
        distil("dm", "unknown", "--set", "match.cc=-1"),
    ]
    more = [resumed("1-then-3"), resumed("2-then-3"), begun("3-then-1")]
    said = run(3, *whole(3), *more, *others(3), *refused, script=script)
    run(1, resumed("3-then-1"), script=script)
    return folder, said


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_ranks_distil_what_one_process_distils(ended: tuple[Path, str], method: str, ranks: int) -> None:
    """The images, and the logged losses and norms of all classes."""
    alone, shared = (ended[0] / f"{method}-{count}" for count in (1, ranks))
    expected, found = SyntheticSet.load(alone), SyntheticSet.load(shared)
    assert difference(found.images, expected.images) < 1e-4
    assert found.labels.equal(expected.labels) and found.factor == expected.factor
    log, own = (pd.read_json(folder / "metrics.jsonl", lines=True) for folder in (alone, shared))
    assert list(own.columns) == list(log.columns)
    for name in set(log.columns) - {"seconds"}:
        assert own[name].to_numpy() == pytest.approx(log[name].to_numpy(), rel=1e-3), name
    assert RunFolder(shared).config() == RunFolder(alone).config()


@pytest.mark.parametrize("name", ["1-then-3", "2-then-3", "3-then-1"])
def test_a_run_resumes_with_another_number_of_ranks(ended: tuple[Path, str], name: str) -> None:
    saved = Checkpoints(ended[0] / name / "checkpoints").load()
    assert saved is not None and saved[1]["iteration"] == 12
    whole = SyntheticSet.load(ended[0] / "iid-idm-1")
    assert difference(SyntheticSet.load(ended[0] / name).images, whole.images) < 1e-4


def test_evaluation_on_ranks_is_that_of_one_process(ended: tuple[Path, str]) -> None:
    alone, shared = (pd.DataFrame(json.loads((ended[0] / f"scores-{ranks}.json").read_text())) for ranks in (1, 3))
    columns = ["network", "evaluation_seed", "accuracy", "epochs", "images", "outcome"]
    assert shared[columns].equals(alone[columns]) and len(alone) == 4


def test_a_pool_trained_on_ranks_is_that_of_one_process(ended: tuple[Path, str]) -> None:
    alone, shared = (
        {path.name: path.read_bytes() for path in (ended[0] / f"pool-{ranks}").glob("*.safetensors")}
        for ranks in (1, 3)
    )
    assert shared == alone and len(alone) == 4


# What goes wrong


def test_what_ranks_cannot_do_is_refused_in_one_line_each(ended: tuple[Path, str]) -> None:
    assert own_lines(ended[1]) == [
        "3 processes cannot share 2 classes; start at most 2",
        "iid sweep runs in one process, without torchrun; these run on several: distill, evaluate, experts",
        *own_lines(ended[1])[2:],
    ]
    assert len(own_lines(ended[1])) == 4 and "--iterations" in own_lines(ended[1])[2]
    assert "match.cc" in own_lines(ended[1])[3]
    assert not (ended[0] / "two-classes").exists()


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    words = ["-m", "iidlib.cli", "distill", "dm", *SMALL, "--iterations", "100000", "--out", str(out), *more]
    return subprocess.Popen(
        [*launcher(2), *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process numbers of the ranks that torchrun has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(map(int, listed.stdout.split()))


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not path.is_file() or not path.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_which_resumes(tmp_path: Path, victim: int) -> None:
    out = tmp_path / "run"
    process = started(out, "--set", "checkpoint.every=5")
    try:
        wait_for(out / "metrics.jsonl", process)
        time.sleep(1)
        os.kill(ranks_of(process)[victim], signal.SIGKILL)
        begun = time.monotonic()
        _, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert time.monotonic() - begun < 60 and process.returncode == 1
    own = [line for line in said.splitlines() if line.startswith("iid: ")]
    if victim:  # the first rank, which talks, is alive
        assert len(own) == 1 and "another process has ended" in own[0]
        assert re.search(r"^resume with: ", said, flags=re.M)
    saved = Checkpoints(out / "checkpoints").load()
    done = saved[1]["iteration"] if saved else 0
    finished = ["--iterations", str(done + 2), "--set", "checkpoint.every=5", "--resume"]
    run(1, ["distill", "dm", *SMALL, "--out", str(out), *finished], script=tmp_path / "many.py")
    assert len(SyntheticSet.load(out).images) == 20


def test_a_loss_that_is_not_finite_on_one_rank_is_one_line(tmp_path: Path) -> None:
    """The weight overflows on both, and neither ends in a traceback."""
    words = ["distill", "dm", *SMALL, "--iterations", "200", "--out", str(tmp_path / "run"), "--set", "match.mean=1e38"]
    done = subprocess.run(
        [*launcher(2), "-m", "iidlib.cli", *words], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "FloatingPointError" not in done.stderr
    (line,) = own_lines(done.stderr)
    assert line.startswith("failed: the term 'mean' is inf at iteration") and "another process" not in line


def test_ctrl_c_stops_all_ranks_after_the_same_iteration(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(out)
    try:
        wait_for(out / "metrics.jsonl", process)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    stopped = re.search(r"stopped after (\d+) iterations", said)
    assert stopped, said
    saved = Checkpoints(out / "checkpoints").load()
    assert saved is not None and saved[1]["iteration"] == int(stopped[1])


DIFFERENT = """
import os, sys
import iidlib.runs.environment
from iidlib import distill, preset
from iidlib.data import shapes
from iidlib.errors import InputError
second, out = os.environ["RANK"] == "1", sys.argv[1]
data, settings = shapes(3, 20), {"iterations": 2}
for given, changes, digest in [
    (shapes(3, 20, seed=1), settings, "0123"),
    (data, settings | {"match.cm": 0.5}, "0123"),
    (data, settings, "4567"),
]:
    given, changes, digest = (given, changes, digest) if second else (data, settings, "0123")
    iidlib.runs.environment.source_digest = lambda digest=digest: digest
    try:
        distill(preset("dm-cm", "shapes", 2, "ci", changes), given, out=out)
    except InputError as error:
        os.write(1, f"{int(second)}: {error}\\n".encode())
"""


def test_a_rank_with_other_data_settings_or_library_is_refused_by_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DIFFERENT)
    words = [*launcher(2), str(script), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        lines = [line[3:] for line in done.stdout.splitlines() if line.startswith(f"{rank}: ")]
        assert len(lines) == 3
        assert lines[0].startswith("rank 1 has another fingerprint of the data than rank 0: ")
        assert lines[1] == "rank 1 has another match.cm than rank 0: 0.5, not 0.01"
        assert re.fullmatch(
            r"rank 1 has another version of iidlib than rank 0: \S+ \(4567\), not \S+ \(0123\)", lines[2]
        )
    assert not (tmp_path / "out").exists()
