"""Jobs of an experiment on Dask workers: commands of ``iid``, whose rows and runs end up where one process leaves them.

A worker that shares the working folder appends to the tables itself. Any other receives what the run has so far, and
sends back its files; the rows of its tables are then appended here.
"""

import itertools
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex

from iidlib.errors import InputError
from iidlib.experiments import Job, append_results, read_results
from iidlib.experiments.reproduce import Outcome
from iidlib.files import atomic_write
from iidlib.scale.batch import Batch, run_batch
from iidlib.scale.cluster import Workers, connected, probed
from iidlib.scale.task import Ended, Task, files_of, place_for

__all__ = ["run_commands", "run_jobs_on"]

_RESERVE = 10.0
"""Seconds of a budget, at most, that are left for the last checkpoints."""


def run_jobs_on(
    workers: Workers,
    todo: Sequence[Job],
    *,
    logs: Path,
    budget: float = math.inf,
    say: Callable[[str], None] = print,
    options: Sequence[str] = (),
    retries: int = 0,
    timeout: float | None = None,
    on_look: Callable[[Batch], None] = lambda batch: None,
) -> Outcome:
    """Runs jobs on Dask workers, those given first as early as possible; jobs that share a run follow each other.

    Args:
        workers: where the jobs run.
        todo: the jobs.
        logs: folder for what the jobs print.
        budget: time budget in seconds; before it ends, running jobs are asked to stop and write checkpoints, which the
            next call resumes from.
        say: called with a line for each job that ends.
        options: options added to every command, such as ``--quiet``.
        retries: how often a job that fails is tried again.
        timeout: seconds after which a job is stopped.
        on_look: called about once per second with the state of the batch.

    Returns:
        Numbers of finished and of failed jobs.

    Raises:
        InputError: if no workers can be had, or a job uses a folder outside the working folder that a worker may lack.
        SchedulerLost: if the scheduler has gone; what has finished is kept.
    """
    named = {f"{job.cell.name}, seed {job.seed}": job for job in todo}
    commands = {name: [(*words, *options) for words in job.commands()] for name, job in named.items()}
    runs = {name: job.run_folder for name, job in named.items()}
    reserve = 0.0 if math.isinf(budget) else min(_RESERVE, budget / 10)
    return run_commands(
        workers, commands, runs, logs=logs, until=time.monotonic() + budget - reserve, say=say, retries=retries,
        timeout=timeout, on_look=on_look,
    )  # fmt: skip


def run_commands(
    workers: Workers,
    commands: Mapping[str, Sequence[tuple[str, ...]]],
    runs: Mapping[str, Path | None],
    *,
    logs: Path,
    until: float = math.inf,
    say: Callable[[str], None] = print,
    retries: int = 0,
    timeout: float | None = None,
    on_look: Callable[[Batch], None] = lambda batch: None,
) -> Outcome:
    """Runs commands of ``iid`` on Dask workers.

    Args:
        workers: where they run.
        commands: arguments of ``iid``, by a name for the user; the commands of a name run one after the other.
        runs: folder that the commands of a name read and resume, if they have one; names that share one wait for each
            other.
        logs: folder for what the commands print.
        until: reading of the monotonic clock at which to stop.
        say: as for `run_jobs_on`, as are the following ones.
        retries: see there.
        timeout: see there.
        on_look: see there.

    Returns:
        Numbers of finished and of failed names.

    Raises:
        InputError: as for `run_jobs_on`.
        SchedulerLost: if the scheduler has gone.
    """
    here, token = Path.cwd(), f".iidlib-task-{token_hex(8)}"

    def ended(task: Task, outcome: Ended) -> None:
        _keep(outcome.files, here, token)
        where = f" ({outcome.worker}, {outcome.seconds / 60:.1f} min)"
        say(f"failed: {task.name}: {outcome.error}{where}" if outcome.error else f"done: {task.name}{where}")

    try:
        (here / token).touch()
    except OSError as error:
        raise InputError(f"cannot write {here}: {error.strerror or error}") from None
    try:
        with connected(workers) as client, probed(client, here) as seen:
            shared, apart, tasks = bool(seen) and all(seen), not all(seen), []
            for name, words in commands.items():
                run = runs[name]
                if apart:
                    _check_inside(words, name)
                inputs = {token: b""} if shared else {token: b"", **_inputs(run, here)}
                log = os.path.relpath(logs / f"{_file_name(name)}.log", here)
                modules = tuple(("iidlib.cli", *one) for one in words)
                place = "" if run is None else os.path.relpath(run, here)
                tasks.append(Task(name, modules, here, token, inputs, timeout, log, place, alone=place))
            batch = run_batch(
                client, tasks, needs=workers.needs, retries=retries, until=until, on_end=ended,
                on_stop=lambda task, outcome: _keep(outcome.files, here, token), on_look=on_look,
            )  # fmt: skip
    finally:
        (here / token).unlink(missing_ok=True)
    if len(batch.finished) + len(batch.failed) < len(tasks):
        say("the budget is spent; run the same command again to continue")
    return Outcome(len(batch.finished), len(batch.failed))


_OUTSIDE = re.compile(r"[/~]|[A-Za-z]:[\\/]|(?:.*[\\/])?\.\.(?:[\\/]|$)")
"""Paths that mean another place on another machine."""


def _check_inside(commands: Sequence[tuple[str, ...]], name: str) -> None:
    """Refuses commands with paths that mean another place on a worker without the working folder."""
    for word in itertools.chain(*commands):
        if any(_OUTSIDE.match(part) for part in re.split("[=,]|folder:", word)):
            raise InputError(
                f"a worker does not share this folder, and {name} needs {word}: give folders below the working folder"
            )


def _inputs(run: Path | None, here: Path) -> dict[str, bytes]:
    """Files of a run, by their path in the working folder, for a worker that cannot read them."""
    if run is None or not run.exists():
        return {}
    place = Path(os.path.relpath(run, here))
    if run.is_file():
        return {place.as_posix(): run.read_bytes()}
    return {(place / name).as_posix(): content for name, content in files_of(run)}


def _keep(files: Mapping[str, bytes], here: Path, token: str) -> None:
    """Writes what a worker has sent back: rows are appended to tables of results, other files replace what is there."""
    for path, content in files.items():
        target = place_for(path, here)
        if path == token:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".csv" and target.is_file():
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / target.name).write_bytes(content)
                append_results(target, read_results(Path(folder) / target.name))
        else:
            atomic_write(target, content)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=,-]+", "-", name)
