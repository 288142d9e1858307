"""Runs that are killed, disks that are full, folders that cannot be written: nothing that was done is lost.

A process that is killed has no say in how it ends, so these run in processes of their own. They come from a server that
has imported the library already, which makes a start cheap enough for fifty.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from iidlib.cli import main
from iidlib.config import preset
from iidlib.distillation import distill
from iidlib.runs import Checkpoints, RunFolder

resource = pytest.importorskip("resource", reason="killing, limits of a file's size and users are POSIX's here")


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Starts processes in which the library is imported already; one thread each, as a fork needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iidlib.distillation", "iidlib.cli", "pandas"])
    yield context


def work(folder: Path, method: str, scale: str, changes: Mapping[str, Any], cache: Path) -> None:
    """One attempt at a run: begins it, or resumes with what is there."""
    torch.set_num_threads(1)
    os.environ["IID_CACHE"] = str(cache)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it says is not looked at here
    config = preset(method, "cifar10-mini", changes.get("ipc", 1), scale, changes)
    distill(config, out=folder, resume=(folder / "config.yaml").exists())


def command(arguments: list[str], said: Path, largest_file: int | None = None, user: int | None = None) -> None:
    """``iid`` with all that it says in a file, as a user, on a disk that takes no larger files."""
    torch.set_num_threads(1)
    out = os.open(said, os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    main(arguments)


def unbroken(folder: Path, method: str, scale: str, changes: Mapping[str, Any], cache: Path) -> bytes:
    """The final set of a run that nothing disturbs."""
    if not folder.exists():
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("IID_CACHE", str(cache))
                distill(preset(method, "cifar10-mini", changes.get("ipc", 1), scale, changes), out=folder)
        finally:
            torch.set_num_threads(before)
    return (folder / "synthetic.safetensors").read_bytes()


def progress(folder: Path) -> int:
    """Bytes of metrics, which grow with the iterations."""
    log = folder / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def temporary(folder: Path) -> list[str]:
    """Checkpoints that are being written, or that were when a process was killed."""
    place = folder / "checkpoints"
    return [path.name for path in place.iterdir() if path.name.startswith(".")] if place.exists() else []


def kill_somewhere(process: BaseProcess, folder: Path, draw: random.Random) -> str | None:
    """Kills a run at a random moment, in every second case while a file is written; says where, None if it was done."""
    begun, start = progress(folder), time.monotonic()
    while process.is_alive() and progress(folder) == begun and time.monotonic() - start < 120:
        time.sleep(0.001)
    writing = draw.random() < 0.5
    until = time.monotonic() + draw.uniform(0, 1.0)
    while process.is_alive() and not (temporary(folder) if writing else time.monotonic() >= until):
        pass
    if not process.is_alive():
        process.join()
        assert process.exitcode == 0
        return None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return "while a checkpoint was written" if temporary(folder) else "between"


def rows(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in RunFolder(folder).metric_rows()]


def survive(
    context: ForkServerContext, place: Path, kills: int, method: str, scale: str, changes: Mapping[str, Any]
) -> Counter[str]:
    """Kills a run again and again, resumes it each time, and compares what it comes to with the unbroken run."""
    draw, counts, number = random.Random(f"{method} {scale}"), Counter[str](), 0
    cache, whole = place / "cache", place / f"{method}-whole"
    wanted = unbroken(whole, method, scale, changes, cache)
    while sum(counts.values()) < kills or number == 0:
        number += 1
        folder = place / f"{method}-{number}"
        while not (folder / "synthetic.safetensors").exists():
            process = context.Process(target=work, args=(folder, method, scale, changes, cache))
            process.start()
            if sum(counts.values()) < kills:
                where = kill_somewhere(process, folder, draw)
                counts.update([where] if where else [])
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
        assert (folder / "synthetic.safetensors").read_bytes() == wanted
        assert rows(folder) == rows(whole)
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"], "something unfinished is left"
    return counts


def test_kills_lose_nothing(processes: ForkServerContext, tmp_path: Path) -> None:
    changes = {"iterations": 60, "checkpoint.every": 5}
    counts = survive(processes, tmp_path, 4, "iid-idm", "ci", changes)
    assert sum(counts.values()) >= 4 and counts["while a checkpoint was written"] >= 1, counts


@pytest.mark.long
@pytest.mark.parametrize("method", ["dm", "iid-dm", "iid-idm"])
def test_many_kills_at_tour_lose_nothing(
    method: str, processes: ForkServerContext, tmp_path: Path, record_property: Any
) -> None:
    """Seventeen kills for each method: fifty-one."""
    counts = survive(processes, tmp_path, 17, method, "tour", {"iterations": 60, "checkpoint.every": 3})
    record_property("kills survived", dict(counts))
    assert sum(counts.values()) >= 17 and min(counts.values()) >= 3, counts


ONE = ["distill", "dm", "--dataset", "shapes", "--ipc", "2", "--scale", "ci", "--no-evaluate"]


def ended(context: ForkServerContext, *given: Any, **conditions: Any) -> tuple[int | None, str]:
    """Exit status and words of a command."""
    said = Path(given[-1])
    process = context.Process(target=command, args=given, kwargs=conditions)
    process.start()
    process.join(120)
    return process.exitcode, said.read_text()


def test_a_full_disk_leaves_the_checkpoint_before_whole(processes: ForkServerContext, tmp_path: Path) -> None:
    """The limit on a file's size lets the settings through, and no checkpoint."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    command = [*ONE, "--iterations", "20", "--set", "checkpoint.every=4"]
    assert ended(processes, [*command, "--out", str(whole)], tmp_path / "said0")[0] == 0
    size = Checkpoints(whole / "checkpoints").path(20).stat().st_size

    short = preset("dm", "shapes", 2, "ci", {"iterations": 20, "checkpoint.every": 4})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(ZeroDivisionError):
            distill(short, out=folder, on_iteration=lambda *_: 1 / 0, iterations_to_show=(9,))
    finally:
        torch.set_num_threads(before)
    status, text = ended(
        processes, [*command, "--out", str(folder), "--resume"], tmp_path / "said1", largest_file=size // 2
    )
    assert status == 1 and "File too large" in text and "resume with: iid distill --resume" in text, text
    assert "Traceback" not in text and not temporary(folder)
    state, facts = Checkpoints(folder / "checkpoints").load()
    assert facts["iteration"] == 8 and state["images"].isfinite().all()

    status, text = ended(processes, [*command, "--out", str(folder), "--resume"], tmp_path / "said2")
    assert status == 0 and "resuming after 8 iterations" in text, text
    assert (folder / "synthetic.safetensors").read_bytes() == (whole / "synthetic.safetensors").read_bytes()


def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_computed(processes: ForkServerContext) -> None:
    nobody = 65534 if os.getuid() == 0 else None  # root may write anywhere
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        closed, said = Path(place) / "closed", Path(place) / "said"
        closed.mkdir()
        closed.chmod(0o555)
        Path(place).chmod(0o755)
        status, text = ended(processes, [*ONE, "--out", str(closed / "run")], said, user=nobody)
        assert status == 2 and "Permission denied" in text and str(closed / "run") in text, text
        assert "Traceback" not in text and not any(closed.iterdir())
        closed.chmod(0o755)
