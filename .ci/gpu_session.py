"""One session on a rented GPU, for `.ci/gpu.py`: its folders, its deadline, its commands, and what has happened."""

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("environment", "tests", "bench", "cells")
SHORT, SHARE = 60.0, 0.15  # limit of tests and benchmark, in seconds and as a share of the budget; the report has twice
FOR_SUMMARY, GRACE = 5.0, 10.0  # seconds at the end for the summary; seconds in which a part may stop
START = 6.0  # seconds before a command counts its budget
LEAST = 10.0  # seconds in which a cell cannot even start
WORTH = (
    "gpu", "cuda_graph", "captured", "triton_norm", "network_queue", "ensemble", "testing", "gpu_bits", "networks",
    "resampling", "bench",
)  # fmt: skip
"""GPU tests, the most telling first. Files not named run just before the last, which takes longest."""

MARKED = re.compile(r"^@pytest\.mark\.gpu$|marks=.*pytest\.mark\.gpu", re.MULTILINE)
CACHES = {
    "IID_CACHE": "iidlib",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "CUDA_CACHE_PATH": "cuda",
}


@dataclass(frozen=True)
class Phase:
    """A part of the session: a command, and the seconds that it may take."""

    name: str
    command: Sequence[str]
    limit: float
    stop: signal.Signals = signal.SIGTERM
    """What asks it to stop at the limit."""


@dataclass
class Ended:
    """How a part has ended."""

    outcome: str
    seconds: float
    note: str = ""
    """Last line of its output."""
    code: str = ""
    """What was run, see `Session.identity`."""


def gpu_tests() -> list[Path]:
    """Files with tests marked ``gpu``, those first that say most about a run if the time ends.

    Others would not even be imported with the packages of a rented machine.
    """
    found = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if MARKED.search(path.read_text("utf-8"))]
    place = {name: number for number, name in enumerate(WORTH)}
    return sorted(found, key=lambda path: place.get(path.stem.removeprefix("test_"), len(WORTH) - 1.5))


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
    tests: Sequence[str] = ()
    """Files of the tests; none for all that are marked ``gpu``."""
    started: float = field(default_factory=time.monotonic)
    begun_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()))
    ended: dict[str, Ended] = field(default_factory=dict)
    state: str = "starting"
    remarks: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Runs that do not fit into the archive of the sets."""

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
            return Phase(name, (sys.executable, script, report, "--device", self.device), min(2 * SHORT, within))
        if name == "tests":
            # stopped by SIGINT, so that failures are shown even if the time is too short for all
            script = str(ROOT / ".ci" / "gpu_tests.py")
            return Phase(name, (sys.executable, script, *(self.tests or map(str, gpu_tests()))), short, signal.SIGINT)
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
        caches = {name: str(self.cache / folder) for name, folder in CACHES.items()}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # plugins that happen to be installed there do not take part in the tests
        own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "IID_DEBUG": "1"}
        return caches | os.environ | own

    @functools.cached_property
    def cache(self) -> Path:
        """Folder of pools and compiled kernels.

        It lies with the runs, unless others may write there, as in a folder that was copied with all rights: compiled
        code is loaded only from folders that nobody else can write to.
        """
        from iidlib.private import private_dir

        folder = self.runs / "cache"
        try:
            return private_dir(folder, readable=True)
        except (OSError, RuntimeError) as error:
            elsewhere = Path(tempfile.gettempdir()) / f"iidlib-gpu-{os.getuid() if hasattr(os, 'getuid') else 0}"
            self.remarks.append(f"pools and compiled kernels are in {elsewhere}: {' '.join(str(error).split())[:200]}")
            with contextlib.suppress(OSError, RuntimeError):  # the library checks it again, and does without
                private_dir(elsewhere)
            return elsewhere

    @property
    def code(self) -> str:
        """What identifies the code; ends in "+" if it is unknown or was changed."""
        commit = self.machine.get("commit") or "+"
        if commit.startswith("files "):  # of the library alone
            digest = hashlib.sha256()
            for path in sorted([*(ROOT / "tests").glob("*.py"), *(ROOT / ".ci").glob("*.py")]):
                digest.update(path.read_bytes())
            commit += f" {digest.hexdigest()[:12]}"
        return str(commit)

    def identity(self, name: str) -> str:
        """What a part runs, and where; ends in "+" if the code is unknown or was changed."""
        return " ".join([*(Path(file).name for file in self.tests if name == "tests"), self.device, self.code])

    def skipped(self, name: str) -> str:
        """Reason for which a part is not run; "" if it is."""
        if self.left < (LEAST if name == "cells" else 1):
            return "not started: no time left"
        if name == "cells" and self.scale == "paper" and self.device == "auto" and not self.machine.get("gpu"):
            return "not started: no GPU was found, and scale paper takes days without one (--device cpu insists)"
        earlier = self.earlier().get(name)
        same = earlier is not None and earlier.get("code") == self.identity(name) and not self.code.endswith("+")
        if name in ("tests", "bench") and earlier and same:
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
