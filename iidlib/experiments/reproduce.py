"""The missing runs of an experiment as commands, and their execution one after the other within a time budget."""

import itertools
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from iidlib.config import RunConfig
from iidlib.config.recipes import BASELINES
from iidlib.errors import InputError
from iidlib.experiments.cells import Cell, within
from iidlib.experiments.costs import Cost
from iidlib.experiments.grids import find
from iidlib.experiments.measurements import all_rows, measured
from iidlib.experiments.tables import results_dir

__all__ = ["Job", "Outcome", "jobs", "run_jobs"]


@dataclass(frozen=True)
class Job:
    """One run that fills a cell for one seed."""

    cell: Cell
    seed: int
    command: tuple[str, ...]
    """Arguments of ``iid``."""
    before: tuple[str, ...] = ()
    """Arguments that make the set that the command evaluates, if it does so with an unusual network or protocol."""
    evaluated: Path | None = None
    """That set; if it exists, `before` is skipped."""

    def commands(self) -> list[tuple[str, ...]]:
        """Commands that are left to run at this moment."""
        if self.evaluated is None or self.evaluated.is_file():
            return [self.command]
        resume = ("--resume",) if (self.evaluated.parent / "config.yaml").is_file() else ()
        return [(*self.before, *resume), self.command]

    @property
    def run_folder(self) -> Path | None:
        """Folder of the run that the job starts or resumes; None if it keeps none."""
        if self.evaluated is not None:
            return self.evaluated.parent
        return Path(self.command[self.command.index("--out") + 1]) if "--out" in self.command else None

    @property
    def begun(self) -> bool:
        """Whether the job resumes a run."""
        return any("--resume" in command for command in self.commands())

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
    """Missing runs: those that were begun, and then the others, most important first.

    A run that a budget has stopped is thus resumed before another one starts. Among runs that were begun, the one that
    was active last comes first; a run that failed may be among them.

    Args:
        name: one of ``EXPERIMENTS``, or the file of a grid.
        scale: ``tour``, ``laptop`` or ``paper`` (``ci`` for tests).
        seeds: number of distillation seeds for each cell.
        only: select cells whose name begins with these parts, such as ``cifar10/ipc10``.
        folder: folder of the results.
        runs: parent of the run folders.
        device: as for ``iid distill``.

    Raises:
        InputError: for an unknown experiment, if `only` selects no cell, or for a cell whose settings are incompatible
            with the scale's.
    """
    experiment = find(name)
    cells = [cell for cell in experiment.cells if within(cell.name, only) and cell.runs_at(scale)]
    if not cells:
        raise InputError(f"{name} has no cell {only!r} at scale {scale}; see iid reproduce {name} --list")
    target, rows = folder or results_dir(), all_rows(folder)
    if target.is_absolute() and target.is_relative_to(Path.cwd()):
        target = target.relative_to(Path.cwd())  # rows record their command, which should work on other machines, too
    groups = [list(group) for _, group in itertools.groupby(cells, lambda cell: cell.dataset)]
    missing: dict[Any, Job] = {}
    for group, seed in itertools.product(groups if experiment.by_dataset else [cells], range(seeds)):
        for cell in group:
            # among cells that mean the same, such as 1 and 1.0, the first one fills all
            same = (seed, _settings(cell, scale), cell.dataset, cell.network, cell.steps, cell.evaluation)
            if same in missing or (cell.method == "whole" and seed > 0) or seed in measured(cell, scale, rows).index:
                continue
            missing[same] = _job(cell, scale, seed, target / cell.table_at(scale), runs, device)
    return sorted(missing.values(), key=lambda job: -_last_active(job))  # stable: the others keep their order


def _last_active(job: Job) -> float:
    """Time at which a job's run has last written a line or a checkpoint; 0 if it was not begun, or has its set."""
    folder = job.run_folder
    if folder is None or (folder / "synthetic.safetensors").is_file():
        return 0
    written = [folder / "config.yaml", folder / "metrics.jsonl", folder / "checkpoints"]
    return max((path.stat().st_mtime for path in written if path.exists()), default=0)


def _settings(cell: Cell, scale: str) -> RunConfig:
    try:
        return cell.settings_at(scale)
    except InputError as error:
        raise InputError(f"{cell.name} does not run at scale {scale}: {error}") from None


def _job(cell: Cell, scale: str, seed: int, results: Path, runs: Path, device: str) -> Job:
    chosen = cell.method in BASELINES
    if cell == cell.usual or cell.steps or (chosen and not cell.evaluation):
        return Job(cell, seed, _command(cell, scale, seed, results, runs, device))
    if chosen:
        made = _command(replace(cell, evaluation=""), scale, seed, results, runs, device)
        return Job(cell, seed, (*made, *_evaluation(cell, scale)))
    # one set for all networks and protocols, distilled by whichever cell comes first
    made = _command(cell.usual, scale, seed, results, runs, device)
    run_folder = Path(made[made.index("--out") + 1])
    before = tuple(part for part in made if part not in ("--resume", "--results", results.as_posix(), "--no-baseline"))
    evaluate = ["evaluate", run_folder.as_posix(), "--networks", cell.network, "--no-baseline"]
    evaluate += ["--scale", scale] if cell.evaluation != "paper" else []
    evaluate += ["--device", device, "--results", results.as_posix(), *_evaluation(cell, scale)]
    return Job(cell, seed, tuple(evaluate), (*before, "--no-evaluate"), run_folder / "synthetic.safetensors")


def _evaluation(cell: Cell, scale: str) -> list[str]:
    """Options of ``iid evaluate`` for an evaluation that is not the scale's own."""
    return {"": [], "idc": ["--protocol", "idc"], "paper": ["--scale", "paper", "--num-eval", "1"]}[cell.evaluation]


def _command(cell: Cell, scale: str, seed: int, results: Path, runs: Path, device: str) -> tuple[str, ...]:
    dataset = cell.dataset_at(scale)
    common = ["--dataset", dataset, "--scale", scale, "--seed", str(seed), "--device", device]
    common += ["--results", results.as_posix()]  # a row records its command, which should work anywhere
    common += [] if cell == cell.usual else ["--set", f"eval.networks={cell.network}"]
    if cell.steps:
        run_folder = runs / f"{scale}-{cell.file}-seed{seed}"
        resume = ["--resume"] if run_folder.is_dir() else []
        steps = ["--ipc", str(cell.ipc), "--steps", str(cell.steps), "--out", run_folder.as_posix()]
        return ("continual", cell.method, *common, *steps, *resume)
    if cell.method in BASELINES:
        size = [] if cell.method == "whole" else ["--ipc", str(cell.ipc)]
        return ("evaluate", cell.method, *size, *common)
    given = cell.changes(scale)
    length = ["--iterations", given.pop("iterations")] if "iterations" in given else []
    changes = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    run_folder = runs / f"{scale}-{cell.file}-seed{seed}"
    resume = ["--resume"] if (run_folder / "config.yaml").is_file() else []
    out = ["--ipc", str(cell.ipc), "--out", run_folder.as_posix(), "--no-baseline"]
    return ("distill", cell.method, *common, *out, *length, *changes, *resume)


_FOR_CHECKPOINT = 10.0
"""Seconds of a budget, at most, that are left for the last checkpoint; one of IDM holds 256 MB."""

_PATIENCE = 60.0
"""Seconds after which a run that was asked to stop is killed."""


class Outcome(NamedTuple):
    """Numbers of finished and of failed jobs."""

    done: int
    failed: int


def run_jobs(
    todo: Iterable[Job],
    *,
    budget: float = math.inf,
    say: Callable[[str], None] = print,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    costs: Mapping[Cell, Cost | None] | None = None,
) -> Outcome:
    """Runs jobs, each in its own process, one after the other until the budget is spent.

    With costs, a job that needs more than what is left lets shorter ones go first, so that a budget ends with as many
    rows as possible. A run that was begun is resumed in any case; if nothing fits, the next job is begun.

    Before the budget ends, the current run is asked to stop, writes a checkpoint, and is resumed by the next call; a
    tenth of the budget, at most 10 seconds, is left for that. A run that has not stopped 60 seconds after the request
    is killed, and resumed from its last checkpoint, as it is on Windows, which has no suitable signal. A job that fails
    is reported and skipped.

    Args:
        todo: jobs to run.
        budget: time budget in seconds.
        say: called with a line for each job that starts or fails.
        environment: environment variables of the processes; defaults to those of this one.
        options: options added to every command, such as ``--quiet``.
        costs: expected costs of cells, see `iidlib.experiments.costs.costs`.

    Returns:
        Numbers of finished and of failed jobs.
    """
    reserve = 0.0 if math.isinf(budget) else min(_FOR_CHECKPOINT, budget / 10)
    until, done, failed = time.monotonic() + budget - reserve, 0, 0
    waiting, pools = list(todo), set[str]()
    while waiting:
        left = until - time.monotonic()
        if left <= 0:
            say("the budget is spent")
            break
        fitting = (place for place, job in enumerate(waiting) if _seconds(job, costs or {}, pools) <= left)
        place = next(fitting, 0)
        if place and waiting[place].run_folder is not None:  # the first of those that share a run begins it
            place = next(at for at, job in enumerate(waiting) if job.run_folder == waiting[place].run_folder)
        if place:
            say(f"{left / 60:.1f} minutes are left; longer runs wait")
        job, status = waiting.pop(place), 0
        for words in job.commands():
            command = (*words, *options)
            say(shlex.join(("iid", *command)))
            # a process group of its own, so that Ctrl-C reaches it once, through us: a second signal kills a run
            call = [sys.executable, "-m", "iidlib.cli", *command]
            process = subprocess.Popen(call, env=environment, process_group=0)
            try:
                status = process.wait(None if math.isinf(until) else max(0.0, until - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
                # on Windows Ctrl-C has reached the whole console, and another signal would kill the run
                if os.name == "posix" or isinstance(stop, subprocess.TimeoutExpired):
                    process.send_signal(signal.SIGTERM)
                _wait(process, math.inf if isinstance(stop, KeyboardInterrupt) else _PATIENCE)
                if isinstance(stop, KeyboardInterrupt):
                    raise
                say("the budget is spent; run the same command again to continue")
                return Outcome(done, failed)
            if status:
                say(f"failed with status {status}, skipped: {job.cell.name}, seed {job.seed}")
                break
        done += not status
        failed += bool(status)
        if not status and (cost := (costs or {}).get(job.cell)) is not None and cost.pool is not None:
            pools.add(cost.pool.name)
    return Outcome(done, failed)


def _seconds(job: Job, costs: Mapping[Cell, Cost | None], pools: Collection[str]) -> float:
    """Seconds that a job is expected to take, its pool included if no job of this call has trained it.

    0 if unknown, or begun; only the evaluation if the set is there.
    """
    cost = costs.get(job.cell)
    if cost is None or job.begun:
        return 0
    if job.evaluated is not None and job.evaluated.is_file():
        return cost.start + cost.evaluation
    return cost.seconds + (cost.pool.seconds if cost.pool is not None and cost.pool.name not in pools else 0)


def _wait(process: "subprocess.Popen[bytes]", patience: float) -> None:
    """Waits for a process to stop, and kills it if it does not."""
    try:
        process.wait(None if math.isinf(patience) else patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
