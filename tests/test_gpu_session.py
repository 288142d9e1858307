"""The session on a rented GPU, rehearsed on a CPU: parts that fail, limits, signals, files, a second call."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

from iidlib.distillation import distill
from iidlib.experiments.tables import append_rows
from tests.factories import Crash, crash, settings, stop_at, tiny_dataset

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "gpu.py"

# What a rented machine is asked to have; the packages that these need come with them.
PACKAGES = (
    "torch torchvision pandas pyyaml safetensors typer rich tqdm seaborn scikit-learn attrs filelock numpy pillow"
).split()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, whose signals are those of this process again afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    module = importlib.import_module("gpu")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield module
    for number, handler in before.items():
        signal.signal(number, handler)
    for name in ("gpu", "gpu_environment", "gpu_files", "gpu_session", "gpu_summary", "gpu_tests"):
        sys.modules.pop(name, None)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code))


def with_parts(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, **parts: tuple[str, float]) -> None:
    """Replaces the commands of parts by Python code with a limit."""
    monkeypatch.setattr(
        gpu.Session, "phase", lambda self, name: gpu.Phase(name, python(parts[name][0]), parts[name][1])
    )


def knows(out: Path, **facts: Any) -> None:
    """Writes a report of the machine."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "environment.json").write_text(json.dumps(facts))


def outcomes(out: Path) -> dict[str, str]:
    """Outcome of each part, by the table of the summary."""
    text = (out / "summary.md").read_text()
    return dict(re.findall(r"^\| (environment|tests|bench|cells) \| ([^|]*) \|", text, re.MULTILINE))


def call(out: Path, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--runs", str(out.parent / "runs"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=out.parent, **more)


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu_leaves_rows_and_a_summary(tmp_path: Path) -> None:
    """The real parts at the smallest scale, and a second call that has nothing left to do."""
    out = tmp_path / "out"
    options = ["--budget", "10m", "--scale", "ci", "--device", "cpu", "--seeds", "1", "--only", "cifar10/ipc1/dm"]
    tests = ["--tests", str(ROOT / "tests" / "test_gpu.py")]
    environment = {name: value for name, value in os.environ.items() if name not in ("IID_DATA", "PYTHONPATH")}
    environment |= {"OMP_NUM_THREADS": "1", "IID_CACHE": str(tmp_path / "cache")}
    done = call(out, *options, *tests, "--phases", "environment,tests,cells", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "ci.csv", "environment.json", "log.txt", "sets.zip", "summary.md", "tests.txt",
    ]  # fmt: skip
    rows = pd.read_csv(out / "ci.csv")
    assert set(rows["dataset"]) == {"cifar10-mini"} and set(rows["method"]) == {"dm"} and len(rows) == 2
    assert outcomes(out) == {"environment": "done", "tests": "done", "cells": "done"}
    shown = (out / "summary.md").read_text()
    assert shown.strip() == done.stdout.strip()
    assert "4,000 embedded images of CIFAR-10" in shown and "Rows name them as cifar10-mini" in shown
    assert (
        f"| {rows['accuracy'].mean():.2f} ±" in shown
        and "0 rows are of earlier" in shown
        and "0 runs are missing" in shown
    )
    known = json.loads((out / "environment.json").read_text())
    assert known["rates"]["copy, GB/s"] > 0 and known["datasets"]["cifar10"] is False and known["gpu"] is None
    assert known["card"].startswith("failed") or known["card"]["name"]
    assert known["compiled kernels"] is True and "compiled kernels" not in shown
    run = "ci-cifar10-mini-ipc1-dm-seed0"
    with zipfile.ZipFile(out / "sets.zip") as archive:
        kept = archive.read(f"{run}/synthetic.safetensors")
        assert {f"{run}/{name}" for name in ("config.yaml", "environment.json", "metrics.jsonl")} <= set(
            archive.namelist()
        )
    assert kept == (tmp_path / "runs" / "cells" / run / "synthetic.safetensors").read_bytes()

    again = call(out, *options, *tests, "--phases", "tests,cells", env=environment)
    clean = not known["commit"].endswith("+")  # otherwise the code may have changed, so the tests run again
    assert again.returncode == 0 and outcomes(out)["tests"] == ("ended in an earlier call: done" if clean else "done")
    assert "No rows of this call" in again.stdout and "2 rows are of earlier calls" in again.stdout
    assert len(pd.read_csv(out / "ci.csv")) == 2


def test_the_commands_of_the_parts_can_be_typed(gpu: ModuleType, tmp_path: Path) -> None:
    import typer

    from iidlib.cli import app

    group: Any = typer.main.get_command(app)
    session = gpu.Session(tmp_path, tmp_path / "runs", 540.0, device="cuda")
    for name in ("bench", "cells"):
        _, _, module, command, *arguments = session.phase(name).command
        assert module == "iidlib.cli"
        context = group.commands[command].make_context(command, arguments)
        assert context.params["device"] == "cuda"
    assert [session.phase(name).limit for name in gpu.PHASES[:3]] == [120, 60, 60]
    assert 480 < session.phase("cells").limit < 540 - 5
    assert gpu.Session(tmp_path, tmp_path, 100.0).phase("bench").limit == pytest.approx(15)
    assert [session.phase(name).stop for name in gpu.PHASES] == [signal.SIGTERM, signal.SIGINT, *[signal.SIGTERM] * 2]
    late = gpu.Session(tmp_path, tmp_path, 540.0, started=time.monotonic() - 500)
    for name in gpu.PHASES:
        assert 20 < late.phase(name).limit < late.left - 9, "a part that must be stopped still ends in time"
    assert Path(session.phase("environment").command[1]).is_file()
    script, *files = session.phase("tests").command[1:]
    assert Path(script).name == "gpu_tests.py" and "test_gpu.py" in {Path(file).name for file in files}


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(
        gpu, monkeypatch,
        environment=("raise SystemExit(3)", 20),
        tests=("print('first'); print('7 failed, 1 passed'); raise SystemExit(1)", 20),
        bench=("import time; print('half', flush=True); time.sleep(60)", 2),
        cells=("print('failed with status 1, skipped: cifar10/ipc10/dm, seed 0'); print('0 of 3 runs done')", 20),
    )  # fmt: skip
    out = tmp_path / "out"
    knows(out, torch="that of another machine")
    assert gpu.main(["--out", str(out), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--scale", "ci"]) == 0
    assert outcomes(out) == {
        "environment": "failed with status 3", "tests": "failed with status 1", "bench": "stopped at its limit of 2 s",
        "cells": "done",
    }  # fmt: skip
    shown = (out / "summary.md").read_text()
    assert "torch unknown" in shown, "the report of an earlier call does not stay"
    assert "7 failed, 1 passed" in shown and "The end of bench:" in shown and "half" in shown
    assert "- failed with status 1, skipped: cifar10/ipc10/dm, seed 0" in shown
    assert "first" in (out / "tests.txt").read_text() and "0 of 3 runs done" in (out / "log.txt").read_text()


def test_a_part_that_has_ended_is_repeated_only_at_another_commit(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, counts = tmp_path / "out", tmp_path / "counts"
    note = f"open({str(counts)!r}, 'a').write('{{}} ')"
    with_parts(
        gpu, monkeypatch,
        tests=(note.format("tests") + "; raise SystemExit(1)", 20),
        bench=(note.format("bench") + "; import time; time.sleep(60)", 1),
        cells=(note.format("cells"), 20),
    )  # fmt: skip
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--scale", "ci"]
    given += ["--phases", "tests,bench,cells"]
    knows(out, commit="abc")
    assert gpu.main(given) == gpu.main(given) == 0
    assert counts.read_text().split() == ["tests", "bench", "cells", "bench", "cells"], "what was cut is repeated"
    assert outcomes(out)["tests"] == "ended in an earlier call: failed with status 1"
    (out / ".paper.csv.lock").write_text("")
    (out / ".paper.csv.1-0123456789abcdef.unfinished").write_text("")
    knows(out, commit="def")
    assert gpu.main(given) == 0 and counts.read_text().split()[5:] == ["tests", "bench", "cells"]
    assert not [path for path in out.iterdir() if path.name[0] == "."], "what a killed process left has gone"
    for folder in (out, tmp_path / "runs" / "kept"):
        (folder / "tests.txt").unlink()
    assert gpu.main(given) == 0 and "tests" in counts.read_text().split()[8:], "its output has gone"


def test_other_tests_or_another_device_have_not_ended(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, counts = tmp_path / "out", tmp_path / "counts"
    with_parts(gpu, monkeypatch, tests=(f"open({str(counts)!r}, 'a').write('tests ')", 20))
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--scale", "ci", "--phases", "tests"]
    knows(out, commit="abc")
    for number, more in enumerate((["--tests", "a.py"], ["--tests", "b.py"], ["--device", "cpu"], []), 1):
        assert gpu.main([*given, *more]) == gpu.main([*given, *more]) == 0
        assert len(counts.read_text().split()) == number


def test_what_was_measured_is_known_although_the_folder_of_results_was_emptied(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, counts, row = tmp_path / "out", tmp_path / "counts", "dataset,method,accuracy\\nd,m,1\\n"
    with_parts(
        gpu, monkeypatch,
        tests=(f"open({str(counts)!r}, 'a').write('tests ')", 20),
        cells=(f"open({str(out / 'ci.csv')!r}, 'a').write('{row}')", 20),
    )  # fmt: skip
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--scale", "ci"]
    knows(out, commit="abc", datasets={"cifar10": True})
    assert gpu.main([*given, "--phases", "tests,cells"]) == 0
    measured, report = (out / "ci.csv").read_text(), (out / "environment.json").read_text()
    shutil.rmtree(out)
    assert gpu.main([*given, "--phases", "tests"]) == 0
    assert counts.read_text().split() == ["tests"] and (out / "tests.txt").is_file()
    assert (out / "ci.csv").read_text() == measured and (out / "environment.json").read_text() == report
    shutil.rmtree(out)
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "checkout")
    (tmp_path / "checkout" / "data" / "results").mkdir(parents=True)
    header = measured.splitlines()[0]
    (tmp_path / "checkout" / "data" / "results" / "ci.csv").write_text(f"{header}\nother,m,2\n")
    assert gpu.main([*given, "--phases", "tests"]) == 0
    assert "other,m,2" in (out / "ci.csv").read_text() and "d,m,1" in (out / "ci.csv").read_text()
    (out / "ci.csv").write_text("newer")
    assert gpu.main([*given, "--phases", "tests"]) == 0
    assert (out / "ci.csv").read_text() == "newer", "what is there counts"


def test_a_part_that_takes_long_is_in_the_summary_before_it_ends(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "REFRESH", 0.3)
    log = tmp_path / "out" / "log.txt"
    waits = f"""
        import pathlib, time
        print("a row", flush=True)
        log = pathlib.Path({str(log)!r})
        while not log.is_file() or "a row" not in log.read_text().splitlines():
            time.sleep(0.1)
    """
    with_parts(gpu, monkeypatch, cells=(textwrap.dedent(waits), 120))
    given = ["--out", str(log.parent), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--scale", "ci"]
    assert gpu.main([*given, "--phases", "cells"]) == 0
    assert outcomes(log.parent)["cells"] == "done", "it has seen its own row before it ended"


def test_compiled_code_has_a_private_folder_wherever_the_runs_lie(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "elsewhere"))
    monkeypatch.delenv("IID_CACHE")
    session = gpu.Session(tmp_path / "out", tmp_path / "runs", 540.0)
    assert session.cache == tmp_path / "runs" / "cache" and not session.remarks
    assert session.variables()["IID_CACHE"] == str(tmp_path / "runs" / "cache" / "iidlib")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    session = gpu.Session(tmp_path / "out", open_to_all / "runs", 540.0)
    assert session.cache.parent == tmp_path / "elsewhere" and str(session.cache) in session.remarks[0]


def test_dependencies_that_are_too_old_are_named(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = importlib.import_module("gpu_environment")
    needed = environment.needed()
    assert {"torch", "filelock", "attrs"} <= set(needed) and needed["torch"].startswith("2.")
    assert environment.too_old() == "", "of this environment"
    known = environment.version
    old = {"filelock": "3.2", "tqdm": "not installed", "torch": "10.0.1+cu132"}
    monkeypatch.setattr(environment, "version", lambda name: old.get(name, known(name)))
    least = {name: needed[name] for name in old}
    named = environment.too_old().split(", ")
    assert sorted(named) == [f"filelock 3.2 (needs {least['filelock']})", f"tqdm not installed (needs {least['tqdm']})"]


@pytest.mark.slow
def test_each_file_is_tested_in_a_process_of_its_own(tmp_path: Path) -> None:
    """One that crashes or hangs costs no other; what it has printed is shown."""
    mark = (
        f"import os, time, pytest\npytestmark = {'.'.join(('pytest', 'mark', 'gpu'))}\n"  # this file has no such test
    )
    files = {
        "bad": "import logging\ndef test_bad():\n    logging.getLogger('iidlib').warning('the reason')\n    assert 0\n",
        "crash": "def test_crash():\n    os._exit(9)\n",
        "hang": "def test_done():\n    pass\ndef test_hang():\n    open('hangs', 'w').close(); time.sleep(100)\n",
        "late": "def test_late():\n    pass\n",
    }
    for name, text in files.items():
        (tmp_path / f"test_{name}.py").write_text(mark + text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    log = (tmp_path / "log").open("wb")
    names = [f"test_{name}.py" for name in files]
    code = "import sys, gpu_tests; sys.exit(gpu_tests.main(sys.argv[1:], 1))"
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *names], cwd=tmp_path, stdout=log, stderr=log, env=environment
    )
    until = time.monotonic() + 120
    while "===== test_crash.py" not in (tmp_path / "log").read_text() and time.monotonic() < until:
        time.sleep(0.2)
    while not (tmp_path / "hangs").exists() and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
    text = (tmp_path / "log").read_text()
    shown = re.findall(r"^===== (.*)$", text, re.MULTILINE)
    assert shown == ["test_bad.py", "test_crash.py", "test_hang.py, cut"]
    assert "the reason" in text and "test_hang.py::test_done PASSED" in text
    said = text.strip().splitlines()[-1]
    assert said == "1 failed, 1 passed; cut or not started: hang late", "one that crashed counts nothing"


@pytest.mark.parametrize("commit", [None, "", "abc+"])
def test_code_that_is_not_known_to_be_the_same_is_tested_again(
    commit: str | None, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, counts = tmp_path / "out", tmp_path / "counts"
    with_parts(gpu, monkeypatch, tests=(f"open({str(counts)!r}, 'a').write('tests ')", 20))
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--scale", "ci"]
    knows(out, commit=commit)
    assert gpu.main([*given, "--phases", "tests"]) == gpu.main([*given, "--phases", "tests"]) == 0
    assert counts.read_text().split() == ["tests", "tests"]


def test_without_git_the_code_is_known_by_its_files(gpu: ModuleType, tmp_path: Path) -> None:
    import gpu_session

    knows(tmp_path, commit="files abc")
    here = gpu.Session(tmp_path, tmp_path / "runs", 540.0).code
    assert re.fullmatch("files abc [0-9a-f]{12}", here)
    assert gpu.Session(tmp_path, tmp_path / "runs", 540.0).code == here
    for folder, name in (("tests", "test_a.py"), (".ci", "gpu.py")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("1")
    gpu_session.ROOT = tmp_path
    other = gpu.Session(tmp_path, tmp_path / "runs", 540.0).code
    (tmp_path / "tests" / "test_a.py").write_text("2")
    assert len({here, other, gpu.Session(tmp_path, tmp_path / "runs", 540.0).code}) == 3


def test_without_time_or_a_gpu_no_cell_is_started(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(gpu, monkeypatch, bench=("import time; time.sleep(60)", 1), cells=("print('begun')", 20))
    given = ["--runs", str(tmp_path / "runs"), "--phases", "bench,cells"]
    out = tmp_path / "short"
    started = time.monotonic()
    assert gpu.main(["--out", str(out), *given, "--budget", "11s", "--scale", "ci", "--device", "cpu"]) == 0
    assert outcomes(out)["cells"] == "not started: no time left" and time.monotonic() - started < 8
    out = tmp_path / "paper"
    assert gpu.main(["--out", str(out), *given, "--budget", "60s"]) == 0
    assert outcomes(out)["cells"].startswith("not started: no GPU was found")
    knows(tmp_path / "card", gpu="NVIDIA H100", commit=None)
    assert gpu.main(["--out", str(tmp_path / "card"), *given, "--budget", "60s"]) == 0
    assert outcomes(tmp_path / "card")["cells"] == "done"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to other processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_summary_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """The part has started a process in a group of its own, as a run is, which does not stop when asked."""
    noted, out = tmp_path / "noted", tmp_path / "out"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", {deaf!r}], process_group=0)
        open({str(noted)!r}, "w").write(str(child.pid))
        time.sleep(100)
    """
    driver = f"""
        import sys
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        sys.path.insert(0, {str(ROOT)!r})
        import gpu
        parts = {{"tests": "print('one passed')", "cells": {textwrap.dedent(code)!r}}}
        gpu.Session.phase = lambda self, name: gpu.Phase(name, [sys.executable, "-c", parts[name]], 60)
        gpu.GRACE = 1.0
        sys.exit(gpu.main(["--out", {str(out)!r}, "--runs", {str(tmp_path / "runs")!r}, "--phases", "tests,cells",
                           "--scale", "ci", "--device", "cpu"]))
    """
    process = subprocess.Popen(python(driver), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not (noted.is_file() and noted.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        assert outcomes(out) == {"tests": "done"}, "there is a summary while a part is running"
        assert "running: cells" in (out / "summary.md").read_text()
        process.send_signal(number)
        printed, failed = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, failed
    assert outcomes(out) == {"tests": "done", "cells": f"stopped by {number.name}"}
    assert f"- stopped by {number.name};" in printed and "one passed" in printed
    with pytest.raises(ProcessLookupError):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            os.kill(int(noted.read_text()), 0)
            time.sleep(0.1)


def test_the_folder_keeps_within_its_limits(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_files

    monkeypatch.setattr(gpu_files, "MOST_BYTES", 1000)
    out, elsewhere = tmp_path / "out", tmp_path / "left-out"
    out.mkdir()
    (out / "tests.txt").write_text("".join(f"line {number}\n" for number in range(1000)))
    (out / "paper.csv").write_text("a\n")
    (out / "bench.csv").write_text("x" * 1001)
    (out / "folder").mkdir()
    (out / ".paper.csv.lock").write_text("")
    for number in range(9):
        (out / f"extra-{number}.csv").write_text("b\n")
        os.utime(out / f"extra-{number}.csv", (number, number))
    said = gpu_files.tidy(out, elsewhere)
    kept = sorted(path.name for path in out.iterdir() if path.name[0] != ".")
    assert len(kept) == 7, "with room for the summary"
    assert {"tests.txt", "paper.csv", "extra-8.csv"} <= set(kept) and "extra-0.csv" not in kept
    assert all(path.stat().st_size <= 1000 for path in out.iterdir())
    text = (out / "tests.txt").read_text()
    assert re.match(r"\[the first \d+ bytes were left out\]\n", text) and text.endswith("line 999\n")
    assert {"bench.csv", "folder", "extra-0.csv"} <= {path.name for path in elsewhere.iterdir()}
    assert all(any(line.startswith(name) for line in said) for name in ("tests.txt", "bench.csv", "folder", "extra-0"))
    assert gpu_files.tidy(out, elsewhere) == [], "once is enough"


def test_as_many_sets_as_may_be_kept_come_back(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_files

    monkeypatch.setattr(gpu_files, "MOST_BYTES", 2**16 + 1000)
    for number, size in enumerate((300, 900, 500, 4000)):  # from old to new
        path = tmp_path / "runs" / str(number) / "synthetic.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (number, number))
    gpu_files.sets(tmp_path / "runs", tmp_path / "sets.zip")
    with zipfile.ZipFile(tmp_path / "sets.zip") as archive:
        assert archive.namelist() == ["2/synthetic.safetensors", "0/synthetic.safetensors"], "the newest that fit"


def test_a_run_that_was_cut_is_resumed_from_the_archive(gpu: ModuleType, tmp_path: Path) -> None:
    """As on another machine, to the same bits."""
    import gpu_files

    cells, config = tmp_path / "cells", settings("dm", iterations=7, checkpoint__every=2)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=cells / "cut", **stop_at(5, crash))
    distill(settings("dm", iterations=1), tiny_dataset(), out=cells / "whole")
    (cells / "begun").mkdir()
    (cells / "begun" / "config.yaml").write_text("")
    gpu_files.sets(cells, tmp_path / "sets.zip")
    with zipfile.ZipFile(tmp_path / "sets.zip") as archive:
        names = archive.namelist()
        assert names[0].startswith("cut/") and "whole/synthetic.safetensors" in names, "what can be resumed first"
        assert not [name for name in names if name.startswith("begun")]
        kept = [name for name in names if "checkpoints" in name]
        assert kept == [f"cut/checkpoints/0000004.{end}" for end in ("safetensors", "json")], "the newest"
        archive.extractall(tmp_path / "elsewhere")
    resumed = distill(config, tiny_dataset(), out=tmp_path / "elsewhere" / "cut", resume=True).synthetic
    assert torch.equal(resumed.images, distill(config, tiny_dataset()).synthetic.images)


def test_the_embedded_images_take_the_place_of_absent_datasets(gpu: ModuleType, tmp_path: Path) -> None:
    from gpu_summary import images, summary

    def session(scale: str = "paper", only: str = "", **found: bool) -> Any:
        knows(tmp_path, gpu="NVIDIA H200", datasets=found)
        return gpu.Session(tmp_path, tmp_path / "runs", 540.0, scale=scale, only=only)

    absent = session(cifar10=False, cifar100=True)
    assert absent.experiment == "gpu-embedded" and absent.prefix == ""
    assert "the whole CIFAR-10 was not found" in images(absent) and images(absent) in summary(absent)
    assert "cifar10-mini/ipc10/dm, seed 0: " in summary(absent) and "predicted for h200" in summary(absent)
    assert session(only="cifar10/ipc10").prefix == "cifar10-mini/ipc10"
    some = session(cifar10=True, cifar100=False)
    assert (some.experiment, some.prefix) == ("gpu", "cifar10") and images(some).startswith("CIFAR-10, whole")
    both = session(cifar10=True, cifar100=True)
    assert (both.experiment, both.prefix, images(both)) == ("gpu", "", "CIFAR-10 and CIFAR-100, whole")
    assert session("tour", cifar10=True).experiment == "gpu-embedded"
    (tmp_path / "environment.json").write_text("half of")
    assert gpu.Session(tmp_path, tmp_path / "runs", 540.0).embedded, "without a report nothing is known to be there"


def test_the_summary_shows_the_benchmark(gpu: ModuleType, tmp_path: Path) -> None:
    from gpu_summary import summary

    shutil.copy(ROOT / "data" / "results" / "bench.csv", tmp_path / "bench.csv")
    rows = pd.read_csv(tmp_path / "bench.csv").set_index("method")["seconds"]
    shown = summary(gpu.Session(tmp_path, tmp_path / "runs", 540.0))
    assert f"| distill iid-dm | {1e3 * rows['iid-dm']:.3g} | " in shown


def test_a_benchmark_that_failed_hides_nothing_else(gpu: ModuleType, tmp_path: Path) -> None:
    from gpu_summary import summary

    from iidlib.bench.tables import NEEDED

    shutil.copy(ROOT / "data" / "results" / "bench.csv", tmp_path / "bench.csv")
    shutil.copy(ROOT / "data" / "results" / "laptop.csv", tmp_path / "paper.csv")
    failed = {"what": "distill", "method": "idm", "error": "LossesDiffer: by 3 | 4", "device": "cuda"}
    append_rows(tmp_path / "bench.csv", pd.DataFrame([failed]), needed=NEEDED)
    shown = summary(gpu.Session(tmp_path, tmp_path / "runs", 540.0))
    assert "| distill idm | not timed: LossesDiffer: by 3 / 4 |  | cuda |" in shown and "cannot be read" not in shown
    assert "| distill dm |" in shown and "runs are missing" in shown
    (tmp_path / "bench.csv").write_text("what,method,seconds\ndistill\n")
    shown = summary(gpu.Session(tmp_path, tmp_path / "runs", 540.0))
    assert "cannot be read" in shown and "runs are missing" in shown, "one part that is broken"


def test_the_guide_gives_the_minutes_that_are_predicted() -> None:
    from iidlib.experiments import Cell
    from iidlib.experiments.costs import costs

    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf8").split())
    said = re.search(
        r"Predicted for an H100, dm at IPC 10 takes (\S+) minutes and idm (\S+), idm with one .* class (\d+);", text
    )
    assert said is not None
    cells = [Cell("cifar10", "dm", 10), Cell("cifar10", "idm", 10), Cell("cifar10", "idm", 1)]
    found = costs(cells, scale="paper", device="h100", rows=pd.DataFrame())
    minutes = [cost.seconds / 60 for cost in found.values() if cost is not None]
    assert [f"{minutes[0]:.1f}", f"{minutes[1]:.1f}", f"{minutes[2]:.0f}"] == list(said.groups())


def test_a_summary_is_written_whatever_is_broken(gpu: ModuleType, tmp_path: Path) -> None:
    tmp_path = tmp_path / "out"
    tmp_path.mkdir()
    (tmp_path / "paper.csv").write_text("dataset,method,ipc,scale,network,seed,accuracy\ncifar10\n")
    session = gpu.Session(tmp_path, tmp_path.parent / "runs", 540.0)
    session.runs.mkdir()
    gpu.write(session)
    assert "The rows cannot be read: InputError" in (tmp_path / "summary.md").read_text()


def test_rows_of_the_checkout_are_not_measured_again(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(gpu, monkeypatch, tests=("", 20))
    out = tmp_path / "out"
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--phases", "tests", "--scale", "laptop"]
    assert gpu.main(given) == 0
    assert (out / "laptop.csv").read_bytes() == (ROOT / "data" / "results" / "laptop.csv").read_bytes()
    (out / "laptop.csv").write_text("dataset,method,accuracy\n")
    assert gpu.main(given) == 0 and len((out / "laptop.csv").read_text()) < 100, "rows of an earlier call stay"


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [(["--budget", "soon"], "expected a time above zero"), (["--budget", "0m"], "expected a time above zero"),
     (["--phases", "tests,bunch"], "unknown part 'bunch'"), ([], "holds other files (mine.txt)"),
     (["--device", "gpu"], "expected auto, cuda, cuda:N or cpu, got 'gpu'"),
     (["--seeds", "0"], "expected a number above zero, got '0'"),
     (["--out", __file__], "--out must be a folder"), (["--runs", __file__], "--runs must be a folder")],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_written(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reported: str
) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(SystemExit) as end:
        gpu.main(["--out", str(tmp_path), "--runs", str(tmp_path / "runs"), *arguments])
    assert end.value.code == 2 and reported in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "out" / "runs")])
    assert "must not lie in" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_make_passes_its_variables(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = [
        "make",
        "--dry-run",
        "--no-print-directory",
        "-f",
        str(ROOT / "Makefile"),
        "gpu",
        "BUDGET=3m",
        "OUT=a b",
        "SCALE=ci",
        "DEVICE=cpu",
    ]
    printed = subprocess.run([*command, "PYTHON=python3"], cwd=tmp_path, capture_output=True, text=True, check=True)
    words = " ".join(printed.stdout.replace("\\\n", " ").split())
    assert words == 'python3 .ci/gpu.py --budget 3m --out "a b" --scale ci --device cpu', "and nothing is installed"


def allowed_modules() -> set[str]:
    """Names that the packages of a rented machine, and what these need, can be imported by."""
    todo, known = [name.lower() for name in PACKAGES], set()
    while todo:
        name = re.sub("[-_.]+", "-", todo.pop()).lower()
        if name in known:
            continue
        known.add(name)
        for needed in (metadata.requires(name) or []) if installed(name) else []:
            if "extra ==" not in needed:
                todo.append(re.split(r"[^\w.-]", needed, maxsplit=1)[0])
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if known & {re.sub("[-_.]+", "-", owner).lower() for owner in owners}
    }


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
def test_the_commands_need_only_the_packages_of_a_rented_machine(tmp_path: Path) -> None:
    """Every other installed package cannot be found, as on a machine that lacks it."""
    allowed = allowed_modules()
    others = set(metadata.packages_distributions()) - allowed - {"iidlib"}
    assert {"torch", "pandas", "typer", "sympy"} <= allowed and {"pytest", "jupytext", "hypothesis"} <= others
    run = ["distill", "dm", "--dataset", "shapes", "--scale", "ci", "--ipc", "1", "--iterations", "1", "--out", "run"]
    code = f"""
        import sys

        class Without:
            def __init__(self, finder):
                self.finder = finder

            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] not in {sorted(others)!r}:
                    return self.finder.find_spec(name, path, target)

        sys.meta_path[:] = map(Without, sys.meta_path)
        from iidlib.cli import main

        for arguments in (["reproduce", "--help"], ["bench", "--help"], ["distill", "--help"],
                          ["reproduce", "gpu", "--list", "--only", "cifar10/ipc10/dm"], {run!r}):
            try:
                main(arguments)
            except SystemExit as end:
                assert not end.code, (arguments, end.code)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(python(code), capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert (tmp_path / "run" / "synthetic.safetensors").is_file()
