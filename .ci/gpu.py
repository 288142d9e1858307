"""What a rented GPU measures until a budget ends, in order of worth; all that is worth keeping lies in one folder.

    python .ci/gpu.py --budget 9m --out gpu-results

First a report of the machine, then the GPU tests and the short benchmark, at most a minute each, and then the missing
cells of ``iid reproduce gpu``, most informative first. Each part is a process of its own with a limit; one that fails
does not stop the others. Rows are written as soon as they are measured, ``summary.md`` before and after every part. The
runs, pools and compiled kernels lie in another folder, ``--runs``: with it, a second call resumes the run that the
first one had to stop. A part that has ended is not repeated at the same clean commit, except for the report of the
machine.

Needs a checkout and the packages that the library imports, and pytest for the tests; no installation, no network.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_summary import summary, tail

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("environment", "tests", "bench", "cells")
FILES = ("summary.md", "environment.json", "tests.txt", "log.txt")  # besides the tables
LEFTOVERS = (".lock", ".unfinished")  # of tables that are being written, or of a process that was killed meanwhile
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
SHORT, SHARE = 60.0, 0.15  # limit of the parts before the cells, in seconds and as a share of the budget
FOR_SUMMARY, GRACE = 5.0, 10.0  # seconds at the end for the summary; seconds in which a part may stop
START = 6.0  # seconds before a command counts its budget
LEAST = 10.0  # seconds in which a cell cannot even start
CACHES = {
    "IID_CACHE": "iidlib",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "CUDA_CACHE_PATH": "cuda",
}


class Stop(BaseException):
    """A signal that asks this script to stop."""


@dataclass(frozen=True)
class Phase:
    """A part of the session: a command, and the seconds that it may take."""

    name: str
    command: Sequence[str]
    limit: float


@dataclass
class Ended:
    """How a part has ended."""

    outcome: str
    seconds: float
    note: str = ""
    """Last line of its output."""
    commit: str | None = None


@dataclass
class Session:
    """One call: its folders, its deadline, and what has happened."""

    out: Path
    runs: Path
    seconds: float
    scale: str = "paper"
    device: str = "auto"
    seeds: int = 3
    only: str = ""
    phases: Sequence[str] = PHASES
    tests: Sequence[str] = ("tests",)
    started: float = field(default_factory=time.monotonic)
    begun_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()))
    ended: dict[str, Ended] = field(default_factory=dict)
    state: str = "starting"
    remarks: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the deadline, less those for the summary."""
        return self.seconds - min(FOR_SUMMARY, self.seconds / 10) - (time.monotonic() - self.started)

    @property
    def machine(self) -> dict[str, Any]:
        """The report of the machine; empty if it is missing."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.out / "environment.json").read_text(encoding="utf-8")))
        return {}

    @property
    def embedded(self) -> bool:
        """Whether the embedded images take the place of the whole datasets."""
        return self.scale not in ("paper", "laptop") or not self.has("cifar10")

    def has(self, dataset: str) -> bool:
        """Whether a whole dataset is on this machine."""
        found = self.machine.get("datasets")
        return isinstance(found, dict) and bool(found.get(dataset))

    @property
    def experiment(self) -> str:
        """Name of the experiment whose cells are measured."""
        return "gpu-embedded" if self.embedded else "gpu"

    @property
    def prefix(self) -> str:
        """Prefix of the cells that can be measured with the datasets of this machine."""
        if self.embedded:
            return re.sub("^cifar10(?=/|$)", "cifar10-mini", self.only)
        return self.only or ("" if self.has("cifar100") else "cifar10")

    def log(self, phase: str) -> Path:
        """File with the output of a part."""
        return self.out / "tests.txt" if phase == "tests" else self.runs / "logs" / f"{phase}.txt"

    def phase(self, name: str) -> Phase:
        """The command of a part, with the limit that it has now."""
        within = max(self.left - GRACE, self.left / 2)  # a part at its limit has some time to stop
        short, iid = min(SHORT, SHARE * self.seconds, within), (sys.executable, "-m", "iidlib.cli")
        if name == "environment":
            script = str(ROOT / ".ci" / "gpu_environment.py")
            report = str(self.out / "environment.json")
            return Phase(name, (sys.executable, script, report, "--device", self.device), min(SHORT, within))
        if name == "tests":
            pytest = (sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider")
            return Phase(name, (*pytest, *self.tests), short)
        if name == "bench":
            results = str(self.out / "bench.csv")
            return Phase(name, (*iid, "bench", "--quick", "--device", self.device, "--results", results), short)
        budget = f"{max(within - min(START, within / 10), 1):.0f}s"  # so that it stops by itself, with a checkpoint
        given = ["reproduce", self.experiment, "--scale", self.scale, "--seeds", str(self.seeds), "--budget", budget]
        given += ["--device", self.device, "--results", str(self.out), "--runs", str(self.runs / "cells")]
        given += ["--only", self.prefix] if self.prefix else []
        return Phase(name, (*iid, *given), within)

    def variables(self) -> dict[str, str]:
        """Environment of the parts: the checkout is imported, and caches last from call to call."""
        caches = {name: str(self.runs / "cache" / folder) for name, folder in CACHES.items()}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return caches | os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self) -> None:
        """Runs the parts one after the other, and keeps the summary up to date."""
        for name in self.phases:
            why = self.skipped(name)
            if why:
                self.ended.setdefault(name, Ended(why, 0))
                continue
            if name == "environment":  # of an earlier call, perhaps on another machine
                (self.out / "environment.json").unlink(missing_ok=True)
            phase = self.phase(name)
            self.state = f"running: {name}"
            self.write()
            self.ended[name] = self.execute(phase)
            self.remember()
        self.state = "finished"

    def skipped(self, name: str) -> str:
        """Reason for which a part is not run; "" if it is."""
        if self.left < (LEAST if name == "cells" else 1):
            return "not started: no time left"
        if name == "cells" and self.scale == "paper" and self.device == "auto" and not self.machine.get("gpu"):
            return "not started: no GPU was found, and scale paper takes days without one (--device cpu insists)"
        earlier = self.earlier().get(name)
        commit = self.machine.get("commit") or "+"  # unknown; "+" also ends the name of a commit with changes
        if name in ("tests", "bench") and earlier and earlier["commit"] == commit and not commit.endswith("+"):
            return f"ended in an earlier call: {earlier['outcome']}"
        return ""

    def earlier(self) -> dict[str, dict[str, Any]]:
        """Parts of earlier calls that have ended by themselves and whose results are still in the folder."""
        found: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.runs / "state.json").read_text(encoding="utf-8"))
        return {name: one for name, one in found.items() if name != "tests" or self.log("tests").is_file()}

    def remember(self) -> None:
        """Notes for the next call which parts have ended by themselves."""
        now = {name: asdict(one) for name, one in self.ended.items() if one.outcome.startswith(("done", "failed"))}
        (self.runs / "state.json").write_text(json.dumps(self.earlier() | now, indent=2), encoding="utf-8")

    def execute(self, phase: Phase) -> Ended:
        """Runs one part; stops it with all that it has started at its limit, or when this script is asked to stop."""
        log, started = self.log(phase.name), time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            file.write(f"$ {shlex.join(phase.command)}\n".encode())
            file.flush()
            process = None
            try:
                process = subprocess.Popen(
                    phase.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env=self.variables(), start_new_session=True,
                )  # fmt: skip
                status = process.wait(max(phase.limit, 0.1))
                outcome = "done" if status == 0 else f"failed with status {status}"
            except subprocess.TimeoutExpired:
                outcome = f"stopped at its limit of {phase.limit:.0f} s"
            except Stop as stop:
                self.ended[phase.name] = Ended(f"stopped by {stop}", time.monotonic() - started)
                self.write()  # now, because a kill may follow
                outcome = f"stopped by {stop}"
                raise
            finally:
                if process is not None:
                    end(process)
        lines = [line for line in tail(log, 5) if line.strip() and line != f"$ {shlex.join(phase.command)}"]
        note = lines[-1].strip()[:160] if lines else ""
        return Ended(outcome, time.monotonic() - started, note, self.machine.get("commit", ""))

    def write(self) -> None:
        """Writes the log and the summary, and keeps the folder within its limits."""
        logs = [self.log(name) for name in PHASES if name != "tests" and self.log(name).is_file()]
        parts = [f"===== {log.stem}\n" + "\n".join(tail(log, 5000)) + "\n" for log in logs]
        (self.out / "log.txt").write_text("\n".join(parts), encoding="utf-8")
        self.remarks = list(dict.fromkeys([*self.remarks, *tidy(self.out, self.runs / "left-out")]))
        temporary = self.runs / "summary.md"
        temporary.write_text(summary(self), encoding="utf-8")
        shutil.move(temporary, self.out / "summary.md")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Asks a process to stop, waits for that, and kills what is left of its session."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    for entry in Path("/proc").glob("[0-9]*"):  # runs are in process groups of their own, but in the same session
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


def tidy(folder: Path, elsewhere: Path) -> list[str]:
    """Keeps a folder within the limits on files, and says what was cut or moved.

    The front of texts that are too large is cut; what else is too large, or too many, is moved.
    """
    said = []
    for path in [path for path in folder.iterdir() if path.is_file() and path.suffix == ".txt"]:
        if (size := path.stat().st_size) > MOST_BYTES:
            with path.open("rb") as file:
                file.seek(size - MOST_BYTES // 2)
                kept = file.read()
            path.write_bytes(b"[the first %d bytes were left out]\n" % (size - len(kept)) + kept)
            said.append(f"{path.name}: the first {size - len(kept)} bytes were left out")
    found = [path for path in folder.iterdir() if path.suffix not in LEFTOVERS]
    too_large = [path for path in found if path.is_dir() or path.stat().st_size > MOST_BYTES]
    others = sorted(set(found) - set(too_large), key=lambda path: (path.name not in FILES, -path.stat().st_mtime))
    room = MOST_FILES - (not (folder / "summary.md").exists())
    for path in [*too_large, *others[room:]]:  # the newest tables stay
        elsewhere.mkdir(parents=True, exist_ok=True)
        shutil.move(path, elsewhere / path.name)
        said.append(f"{path.name} was moved to {elsewhere}: at most {MOST_FILES} files of {MOST_BYTES >> 20} MiB stay")
    return said


def seconds_of(text: str) -> float:
    """Seconds of a time such as ``9m``, ``90s`` or ``1h``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    value = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a time above zero, e.g. 9m or 90s, got {text!r}")
    return value


def device_of(text: str) -> str:
    """A device that the library may have here."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cuda, cuda:N or cpu, got {text!r}")
    return text


def count_of(text: str) -> int:
    """A number above zero."""
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a session, and returns its exit status: 0 whatever has failed in it, 128 plus the signal if stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=seconds_of, default="9m", help="time for everything, e.g. 9m")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu" / "results", help="folder of the results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu", help="folder that lasts over the calls")
    parser.add_argument("--scale", default="paper", choices=("ci", "tour", "laptop", "paper"))
    parser.add_argument("--device", type=device_of, default="auto", help="auto, cuda, cuda:N or cpu")
    parser.add_argument("--seeds", type=count_of, default=3, help="seeds per cell")
    parser.add_argument("--only", default="", help="prefix of the cells, e.g. cifar10/ipc10")
    parser.add_argument("--data-root", type=Path, help="folder of the whole datasets (default: IID_DATA)")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"parts to run, of {', '.join(PHASES)}")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files of the tests, all by default")
    given = parser.parse_args(arguments)
    phases = given.phases.split(",")
    if unknown := [name for name in phases if name not in PHASES]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PHASES)}")
    out, runs = given.out.resolve(), given.runs.resolve()
    for name, folder in (("--out", out), ("--runs", runs)):
        if folder.exists() and not folder.is_dir():
            parser.error(f"{name} must be a folder, and {folder} is a file")
    found = [path for path in out.iterdir() if path.suffix not in (".csv", *LEFTOVERS)] if out.is_dir() else []
    if others := sorted(path.name for path in found if path.name not in FILES):
        parser.error(f"{out} holds other files ({others[0]}); give an empty folder, or that of an earlier call")
    if runs.is_relative_to(out):
        parser.error(f"--runs must not lie in {out}, which is to stay small")
    if given.data_root:
        os.environ["IID_DATA"] = str(given.data_root.resolve())
    for folder in (out, runs):
        folder.mkdir(parents=True, exist_ok=True)
    kept, table = ROOT / "data" / "results" / f"{given.scale}.csv", out / f"{given.scale}.csv"
    if kept.is_file() and not table.exists():
        shutil.copy(kept, table)  # cells that were measured before are not measured again
    session = Session(out, runs, given.budget, given.scale, given.device, given.seeds, given.only, phases, given.tests)

    def stop(number: int, frame: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Stop(signal.Signals(number).name)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    status = 0
    try:
        session.run()
    except Stop as stopped:
        session.state = f"stopped by {stopped}"
        status = 128 + signal.Signals[str(stopped)]
    for path in out.iterdir():
        if path.suffix in LEFTOVERS:  # whoever wrote them has ended
            path.unlink()
    session.write()
    print((out / "summary.md").read_text(encoding="utf-8"))
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
