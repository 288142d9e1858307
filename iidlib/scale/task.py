"""A task, as a worker executes it: commands in processes of their own, in the shared folder or in one of the worker's.

A worker that has no folder in common with the user's machine receives the input files with the task, works in a
temporary folder, and sends the files back as the result.
"""

import contextlib
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from iidlib.errors import InputError
from iidlib.locks import is_lock

__all__ = ["Ended", "Task", "files_of", "perform", "place_for"]

MOST_BYTES = 2**28
"""Largest size of a file that travels."""

SKIPPED = ("checkpoints",)
"""Names that a task which has finished does not send back."""

_PATIENCE = 30.0
"""Seconds that a process has to stop before it is killed."""

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
"""Variables that would make a command part of a computation that it does not belong to."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that limit threads. Dask sets them to 1 in its workers, whatever number of threads these have."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Task:
    """Commands to execute in a folder."""

    name: str
    """Name for the user, unique in a batch."""
    commands: tuple[tuple[str, ...], ...]
    """Modules of Python with their arguments, executed in turn until one fails; ``{folder}`` is the task's folder."""
    folder: Path
    """Folder of the task on the user's machine."""
    token: str
    """Name of a file in it by which a worker recognises it: another machine may have another folder of that name."""
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the commands read, by their path in the folder; a worker without that folder writes them first."""
    timeout: float | None = None
    """Seconds after which the task is stopped."""
    log: str = "output.log"
    """File of the folder to which the commands' output is appended."""
    run: str = ""
    """Folder of the run, relative to the task's, that ``distill`` and ``continual`` resume if it was begun before."""
    alone: str = ""
    """Text that tasks share of which only one is executed at a time; "" for no such limit."""


@dataclass(frozen=True)
class Ended:
    """What an executed task has left."""

    seconds: float
    worker: str
    """Name of the machine."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files to be written to the folder of the task; none if the worker shares it."""
    error: str = ""
    """Last line of the output of the command that failed, or why it was stopped; "" if all went well."""
    stopped: bool = False
    """Whether the batch was stopped, so that the task has neither failed nor finished."""
    timed_out: bool = False
    """Whether it took more than its time."""
    too_large: tuple[str, ...] = ()
    """Files that were too large to be sent back."""


def perform(task: Task, threads: int, stopping: Callable[[], bool] = lambda: False) -> Ended:
    """Executes a task in this process' machine.

    Args:
        task: the task.
        threads: number of threads of its processes.
        stopping: asked a few times per second whether to stop.
    """
    started = time.perf_counter()
    until = math.inf if task.timeout is None else started + task.timeout
    outcome, files, too_large = _Outcome(), dict[str, bytes](), list[str]()
    with _workplace(task) as (folder, shared):
        for words in task.commands:
            command = [word.replace("{folder}", str(folder)) for word in words]
            for _ in range(_TRIES):
                outcome = _executed(_resuming(command, task, folder), folder, task.log, threads, until, stopping)
                if _IN_USE not in outcome.error:
                    break
                time.sleep(_WAIT)  # a worker that was killed leaves a run that is writing its last checkpoint
            if outcome.error:
                break
        if outcome.timed_out:
            outcome = outcome._replace(error=f"stopped after {task.timeout:g} seconds (--timeout)")
        if not shared:
            found = files_of(folder, skipped=() if outcome.error else SKIPPED, too_large=too_large)
            files = {name: content for name, content in found if task.inputs.get(name) != content}
    seconds = round(time.perf_counter() - started, 1)
    return Ended(seconds, platform.node(), files, *outcome, too_large=tuple(too_large))


class _Outcome(NamedTuple):
    """How a command has ended."""

    error: str = ""
    stopped: bool = False
    timed_out: bool = False


_IN_USE, _TRIES, _WAIT = " is in use by ", 4, 5.0


def _resuming(command: list[str], task: Task, folder: Path) -> list[str]:
    """The command, which resumes a run that was begun since it was planned: by another task, or in an earlier try."""
    name = command[1] if len(command) > 1 else ""
    if not task.run or name not in ("distill", "continual") or "--resume" in command:
        return command
    run = folder / task.run
    begun = run.is_dir() if name == "continual" else (run / "config.yaml").is_file()
    return [*command, "--resume"] if begun else command


@contextlib.contextmanager
def _workplace(task: Task) -> Iterator[tuple[Path, bool]]:
    """The folder to work in, and whether it is the user's."""
    shared = False
    with contextlib.suppress(OSError):
        shared = (task.folder / task.token).is_file()
    if shared:
        yield task.folder, True
        return
    with tempfile.TemporaryDirectory(prefix="iidlib-", ignore_cleanup_errors=True) as name:
        for path, content in task.inputs.items():
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_bytes(content)
        yield Path(name), False


def _executed(
    command: Sequence[str], folder: Path, log_name: str, threads: int, until: float, stopping: Callable[[], bool]
) -> _Outcome:
    """Executes a command in a folder, with its output at the end of a log."""
    if stopping():
        return _Outcome("stopped", stopped=True)
    environment = os.environ | dict.fromkeys(_THREADS, str(threads)) | {"JUPYTER_PREFER_ENV_PATH": "1"}
    environment = {name: value for name, value in environment.items() if name not in _OF_TORCHRUN}
    log = folder / log_name
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "iidlib.scale.attended", *command],
            cwd=folder,
            stdin=subprocess.PIPE,  # its end tells the process that this one has ended
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            if time.perf_counter() > until:
                return _Outcome("timed out", timed_out=True)
            if stopping():
                return _Outcome("stopped", stopped=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    finally:
        _end(process)
    return _Outcome() if process.returncode == 0 else _Outcome(_reason(log, begin, process.returncode))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stops a process that still runs, as Ctrl-C would, and kills it with all that it has started if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _reason(log: Path, begin: int, status: int) -> str:
    """Why a command failed: its line that says so, or its last one, which names the error of a traceback."""
    with log.open("rb") as output:
        output.seek(begin)
        text = _COLOURS.sub("", output.read().decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.removeprefix("iid: ") for line in lines if line.startswith("iid: ")]
    if status < 0:
        return f"killed by signal {-status}"
    return (own or lines or [f"exit status {status}"])[-1]


def files_of(
    folder: Path, *, skipped: Collection[str] = (), too_large: list[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Files that travel with a task or back, by their path in a folder; locks do not.

    Args:
        folder: the folder.
        skipped: names of files and folders that stay.
        too_large: receives the paths of files of more than `MOST_BYTES`, which stay too.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or {*inside.parts} & {*skipped}:
            continue
        size = path.stat().st_size
        if size and is_lock(path):  # an empty file may be one too, but is harmless
            continue
        if size > MOST_BYTES:
            if too_large is not None:
                too_large.append(inside.as_posix())
            continue
        yield inside.as_posix(), path.read_bytes()


def place_for(name: str, folder: Path) -> Path:
    """Path of a file that a worker has returned, in a folder here.

    Raises:
        InputError: if it would lie outside the folder.
    """
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise InputError(f"a worker has returned a file outside {folder}: {name}")
    return place
