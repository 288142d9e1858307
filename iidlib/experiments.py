"""The paper's evidence by name: what was published, what has been measured here, what is missing, and what to run next.

A cell is one number of a table or a point of a figure. It is filled by rows of results (``data/results``): those of its
data set, method, images a class, network and settings, at one scale. A cell of the paper counts as measured at scale
``paper`` only; smaller scales stand beside it under their own names.
"""

import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib.config import preset
from iidlib.inputs import InputError, suggest
from iidlib.published import published_value
from iidlib.results import read_results, results_dir

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "Job", "jobs", "measured", "reproduce", "table"]

BASELINES = ("random", "random-mosaic", "herding", "k-center", "whole")


@dataclass(frozen=True)
class Cell:
    """One number of a table or figure."""

    dataset: str
    method: str
    ipc: int
    """Images a class; 0 for the whole training set."""
    network: str = "convnet3"
    """What the set is judged by."""
    settings: tuple[tuple[str, str], ...] = ()
    """What differs from the scale's own settings."""
    steps: int = 0
    """Of class-incremental learning: the accuracy is that after the last one, and a seed is also that of the order of
    classes. 0 where all classes are distilled at once."""

    @property
    def name(self) -> str:
        """``cifar10/ipc10/dm``, with the network and settings where they are not the usual ones."""
        parts = [self.dataset, f"ipc{self.ipc}" if self.ipc else "all", self.method]
        usual = "convnet4" if self.dataset == "tinyimagenet" else "convnet3"
        parts += [self.network] if self.network != usual else []
        parts += [f"{self.steps}steps"] if self.steps else []
        return "/".join([*parts, *(f"{key}={value}" for key, value in self.settings)])


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    title: str
    cells: tuple[Cell, ...]
    """In the order of worth: what to measure first."""


def _main() -> tuple[Cell, ...]:
    methods = ("dm", "iid-dm", "idm", "iid-idm", "random", "random-mosaic", "herding", "k-center")
    cells = []
    for dataset in ("cifar10", "cifar100", "svhn", "tinyimagenet"):
        network = "convnet4" if dataset == "tinyimagenet" else "convnet3"
        for ipc in (10, 50, 1):
            cells += [Cell(dataset, method, ipc, network) for method in methods]
        cells.append(Cell(dataset, "whole", 0, network))
    return tuple(cells)


def _sweep(method: str, key: str, values: Sequence[float | str], **more: str) -> list[Cell]:
    own = tuple((name.replace("__", "."), value) for name, value in more.items())
    return [Cell("cifar10", method, 10, settings=(*own, (key, str(value)))) for value in values]


_ABLATED = ("dm", "dm-cc", "dm-cm", "iid-dm", "idm", "idm-cc", "idm-cm", "iid-idm")
_NETWORKS = ("convnet3", "alexnet", "vgg11", "resnet18")

EXPERIMENTS: dict[str, Experiment] = {
    "main": Experiment("Test accuracy on four data sets (the paper's main table)", _main()),
    "ablation": Experiment(
        "Each term alone, on DM and on IDM", tuple(Cell("cifar10", method, 10) for method in _ABLATED)
    ),
    "architectures": Experiment(
        "Sets distilled with a ConvNet, judged by other networks",
        tuple(Cell("cifar10", m, 10, n) for m in ("iid-dm", "dm", "iid-idm", "idm", "random") for n in _NETWORKS),
    ),
    "weights": Experiment(
        "Accuracy over the weights of the two terms",
        tuple(_sweep("dm-cc", "match.cc", (0.3, 1, 3, 10, 30)) + _sweep("dm-cm", "match.cm", (0.001, 0.01, 0.1))),
    ),
    "beta": Experiment(
        "Accuracy over beta, in the exponential form of class centralization",
        tuple(
            _sweep("dm-cc", "match.cc_beta", (0, 2.2, 2.4, 2.75), match__cc="1", match__cc_form="exp",
                   match__cc_alpha="1")
        ),
    ),
    "iterations": Experiment(
        "Accuracy over the iterations of a distillation",
        tuple(cell for method in ("dm", "iid-dm") for cell in _sweep(method, "iterations", ("25%", "50%", "75%"))),
    ),
    "tsne": Experiment(
        "The sets that the t-SNE figure draws (chapter 09, which draws it)",
        tuple(Cell("cifar10", method, 50) for method in ("iid-dm", "dm")),
    ),
    "continual": Experiment(
        "Class-incremental learning from 20 images a class, after the last step",
        tuple(
            Cell("cifar100", method, 20, steps=steps)
            for steps in (5, 10)
            for method in ("iid-dm", "dm", "iid-idm", "idm", "random", "herding")
        ),
    ),
}  # fmt: skip
"""What can be run by name."""


def _find(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}{suggest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]


# --- what has been measured


def _all_rows(folder: Path | None = None) -> pd.DataFrame:
    """Rows of every table of results in a folder, numbers as numbers."""
    frames = []
    for path in sorted((folder or results_dir()).glob("*.csv")):
        header = path.open(encoding="utf-8-sig").readline().strip().split(",")
        if {"dataset", "method", "ipc", "scale", "network", "seed", "accuracy"} <= set(header):
            frames.append(read_results(path))
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames, ignore_index=True).fillna("")
    for name in ("ipc", "seed", "accuracy", "iterations", "epochs", "evaluation_seed", "step", "steps"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce") if name in rows else math.nan
    if "settings" not in rows:
        rows["settings"] = ""
    return rows


def _settings_of(cell: Cell, scale: str) -> dict[str, str]:
    """The changes that a run of the cell is given, iterations as a number."""
    given = dict(cell.settings)
    if (share := given.get("iterations", "")).endswith("%"):
        whole = preset(cell.method, cell.dataset, cell.ipc, scale).iterations
        given["iterations"] = str(round(whole * int(share[:-1]) / 100))
    return given


def _planned(cell: Cell, scale: str, dataset: str) -> tuple[int, int]:
    """Iterations and epochs of evaluation that a row of the cell must have."""
    if cell.method in BASELINES:
        from iidlib.evaluation import whole_set_protocol

        protocol = preset("random", dataset, max(cell.ipc, 1), scale).eval
        return 0, (whole_set_protocol(protocol) if cell.method == "whole" else protocol).epochs
    given = _settings_of(cell, scale)
    config = preset(cell.method, dataset, cell.ipc, scale, given)
    return config.iterations, config.eval.epochs


def measured(cell: Cell, scale: str, rows: pd.DataFrame) -> pd.Series:
    """Accuracy of each seed that was measured, the mean over its networks; empty where there is none.

    Rows of other settings, another number of iterations or another protocol do not count.

    Args:
        cell: what is looked for.
        scale: at which scale; at ``tour`` the data set is ``cifar10-mini``.
        rows: of results.
    """
    if rows.empty:
        return pd.Series(dtype=float)
    dataset = _dataset_at(cell, scale)
    iterations, epochs = _planned(cell, scale, dataset)
    given = _settings_of(cell, scale)
    given.pop("iterations", None)
    wanted = " ".join(f"{key}={value}" for key, value in given.items())
    own = rows[
        (rows["dataset"] == dataset)
        & (rows["method"] == cell.method)
        & (rows["scale"] == scale)
        & (rows["network"] == cell.network)
        & (rows["iterations"] == iterations)
        & (rows["epochs"] == epochs)
        & rows["protocol"].map(_of_the_paper)
        & (rows["settings"].map(_in_order) == _in_order(wanted))
        & ((rows["ipc"] == cell.ipc) | (cell.ipc == 0))
        & (rows["steps"].fillna(0) == cell.steps)
        & (rows["step"].fillna(0) == cell.steps)
    ]
    # a set that is evaluated a second time with the same networks is not counted twice
    own = own.drop_duplicates(["seed", "evaluation_seed"])
    return own.groupby("seed")["accuracy"].mean()


def _of_the_paper(protocol: str) -> bool:
    """Rows of other protocols, such as the IDC family's, fill no cell of the paper."""
    return protocol.split(",")[0] in ("dm", "whole set", "")


def _in_order(settings: str) -> str:
    return " ".join(sorted(settings.split()))


def _dataset_at(cell: Cell, scale: str) -> str:
    return "cifar10-mini" if scale in ("tour", "ci") and (cell.dataset == "cifar10" or cell.steps) else cell.dataset


def table(name: str, folder: Path | None = None) -> pd.DataFrame:
    """The cells of an experiment, a row each: what was published, and what was measured at every scale.

    Args:
        name: one of ``EXPERIMENTS``.
        folder: of the results; the checkout's own when not given.

    Returns:
        Columns dataset, ipc, method, network, settings, steps, published, source; and for each of the scales paper,
        laptop and tour its mean, std (over distillation seeds, population; of two or more) and seeds. What is missing
        is NaN, with 0 seeds. Two columns after DD-Ranking say what needs no soft labels, at scale laptop: improvement
        over random images, and the gap to the whole set under the same scale, where both were measured.

    Raises:
        InputError: for an unknown experiment.
    """
    rows, found = _all_rows(folder), []
    for cell in _find(name).cells:
        printed = None if cell.settings or cell.steps else published_value(cell.dataset, cell.method, cell.ipc)
        if cell.network not in ("convnet3", "convnet4"):
            printed = None
        line: dict[str, Any] = {
            "dataset": cell.dataset,
            "ipc": cell.ipc,
            "method": cell.method,
            "network": cell.network,
            "settings": " ".join(f"{key}={value}" for key, value in cell.settings),
            "steps": cell.steps,
            "published": printed.value if printed else math.nan,
            "source": printed.source if printed else "not found",
        }
        for scale in ("paper", "laptop", "tour"):
            values = measured(cell, scale, rows) if _runs_at(cell, scale) else pd.Series(dtype=float)
            line |= {
                f"{scale}_mean": values.mean() if len(values) else math.nan,
                f"{scale}_std": values.std(ddof=0) if len(values) > 1 else math.nan,
                f"{scale}_seeds": len(values),
            }
        found.append(line)
    return _with_scores(pd.DataFrame(found))


def _with_scores(cells: pd.DataFrame) -> pd.DataFrame:
    keys = ["dataset", "ipc"]
    plain = cells[(cells["settings"] == "") & (cells["steps"] == 0)]
    random = plain[plain["method"] == "random"].drop_duplicates([*keys, "network"])
    base = cells[[*keys, "network"]].merge(random[[*keys, "network", "laptop_mean"]], "left", [*keys, "network"])
    whole = plain[plain["method"] == "whole"].drop_duplicates(["dataset", "network"])
    top = cells[["dataset", "network"]].merge(
        whole[["dataset", "network", "laptop_mean"]], "left", ["dataset", "network"]
    )
    return cells.assign(
        over_random=cells["laptop_mean"] - base["laptop_mean"].to_numpy(),
        below_whole=top["laptop_mean"].to_numpy() - cells["laptop_mean"],
    )


def _runs_at(cell: Cell, scale: str) -> bool:
    """Smaller scales than ``laptop`` have the embedded images only."""
    return scale in ("paper", "laptop") or cell.dataset == "cifar10" or cell.steps == 5


# --- what to run


@dataclass(frozen=True)
class Job:
    """One run that fills a cell for one seed."""

    cell: Cell
    seed: int
    command: tuple[str, ...]
    """Arguments of ``iid``."""
    before: tuple[str, ...] = ()
    """What makes the set that the command judges, where it is judged by another network than usual."""
    judged: Path | None = None
    """That set; where it is there, nothing comes before."""

    def commands(self) -> list[tuple[str, ...]]:
        """What is left to run, as it is now."""
        if self.judged is None or self.judged.is_file():
            return [self.command]
        resume = ("--resume",) if (self.judged.parent / "config.yaml").is_file() else ()
        return [(*self.before, *resume), self.command]

    def __str__(self) -> str:
        return shlex.join(("iid", *self.command))


def jobs(
    name: str,
    *,
    scale: str,
    seeds: int = 3,
    only: str = "",
    folder: Path | None = None,
    runs: Path = Path("runs/reproduce"),
    device: str = "auto",
) -> list[Job]:
    """The runs that are missing, in the order of worth: every cell once before any cell twice.

    Args:
        name: one of ``EXPERIMENTS``.
        scale: ``tour``, ``laptop`` or ``paper`` (``ci`` for tests).
        seeds: how many distillation seeds a cell should have.
        only: cells whose name begins with it, such as ``cifar10/ipc10``.
        folder: of the results.
        runs: where the runs' folders go.
        device: as for ``iid distill``.

    Raises:
        InputError: for an unknown experiment, or where `only` leaves no cell.
    """
    cells = [cell for cell in _find(name).cells if cell.name.startswith(only) and _runs_at(cell, scale)]
    if not cells:
        raise InputError(f"{name} has no cell {only!r} at scale {scale}; see iid reproduce {name} --list")
    target, rows = folder or results_dir(), _all_rows(folder)
    found: list[Job] = []
    for seed in range(seeds):
        for cell in cells:
            if seed not in measured(cell, scale, rows).index and not (cell.method == "whole" and seed > 0):
                found.append(_job(cell, scale, seed, target / f"{scale}.csv", runs, device))
    return found


def _job(cell: Cell, scale: str, seed: int, results: Path, runs: Path, device: str) -> Job:
    usual = replace(cell, network="convnet4" if cell.dataset == "tinyimagenet" else "convnet3")
    if cell == usual or cell.method in BASELINES or cell.steps:
        return Job(cell, seed, _command(cell, scale, seed, results, runs, device))
    # the same set for all networks: distilled once, by whichever cell comes first
    made = _command(usual, scale, seed, results, runs, device)
    place = Path(made[made.index("--out") + 1])
    before = tuple(part for part in made if part not in ("--resume", "--results", str(results), "--no-baseline"))
    judge = ["evaluate", str(place), "--networks", cell.network, "--no-baseline"]
    judge += ["--scale", scale, "--device", device, "--results", str(results)]
    return Job(cell, seed, tuple(judge), (*before, "--no-evaluate"), place / "synthetic.safetensors")


def _command(cell: Cell, scale: str, seed: int, results: Path, runs: Path, device: str) -> tuple[str, ...]:
    dataset = _dataset_at(cell, scale)
    common = [
        "--dataset",
        dataset,
        "--scale",
        scale,
        "--seed",
        str(seed),
        "--device",
        device,
        "--results",
        str(results),
    ]
    common += [] if cell.network in ("convnet3", "convnet4") else ["--set", f"eval.networks={cell.network}"]
    if cell.steps:
        place = runs / f"{scale}-{cell.name.replace('/', '-')}-seed{seed}"
        resume = ["--resume"] if place.is_dir() else []
        steps = ["--ipc", str(cell.ipc), "--steps", str(cell.steps), "--out", str(place)]
        return ("continual", cell.method, *common, *steps, *resume)
    if cell.method in BASELINES:
        size = [] if cell.method == "whole" else ["--ipc", str(cell.ipc)]
        return ("evaluate", cell.method, *size, *common)
    given = _settings_of(cell, scale)
    length = ["--iterations", given.pop("iterations")] if "iterations" in given else []
    changes = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    place = runs / f"{scale}-{cell.name.replace('/', '-').replace('%', '')}-seed{seed}"
    resume = ["--resume"] if (place / "config.yaml").is_file() else []
    out = ["--ipc", str(cell.ipc), "--out", str(place), "--no-baseline"]
    return ("distill", cell.method, *common, *out, *length, *changes, *resume)


def reproduce(
    todo: Iterable[Job],
    *,
    budget: float = math.inf,
    say: Callable[[str], None] = print,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs jobs one after the other, each in a process of its own, until the budget is spent.

    A run that the budget cuts is told to stop, writes a checkpoint, and is resumed by the next call. A job that fails
    is told and left out.

    Args:
        todo: what to run.
        budget: seconds.
        say: told what is begun and what went wrong.
        environment: of the processes; this one's when not given.

    Returns:
        How many jobs were finished.
    """
    until, done = time.monotonic() + budget, 0
    for job in todo:
        left = until - time.monotonic()
        if left <= 0:
            say("the budget is spent")
            break
        status = 0
        for command in job.commands():
            say(shlex.join(("iid", *command)))
            process = subprocess.Popen([sys.executable, "-m", "iidlib.cli", *command], env=environment)
            try:
                status = process.wait(None if math.isinf(until) else max(0.0, until - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
                process.send_signal(signal.SIGTERM)
                process.wait()
                if isinstance(stop, KeyboardInterrupt):
                    raise
                say("the budget is spent; the same command goes on from here")
                return done
            if status:
                say(f"failed with status {status}, left out: {job.cell.name}, seed {job.seed}")
                break
        done += not status
    return done
