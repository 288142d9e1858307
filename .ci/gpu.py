"""What a rented GPU measures until a budget ends, in order of worth; all that is worth keeping lies in one folder.

    python .ci/gpu.py --budget 9m --out gpu-results

First a report of the machine, at most two minutes, then the GPU tests and the short benchmark, at most a minute each,
and then the missing cells of ``iid reproduce gpu``, most informative first. Each part is a process of its own with a
limit; one that fails does not stop the others. Rows are written as soon as they are measured, ``summary.md`` before and
after every part and every minute. The runs, pools, compiled kernels and a copy of the rows lie in another folder,
``--runs``: with it, a second call resumes the run that the first one had to stop, and repeats no cell, even if the
folder of the results was emptied meanwhile. The tests and the benchmark are not repeated with the same code either.

Needs a checkout and the packages that the library imports, and pytest for the tests; no installation, no network.
"""

import argparse
import contextlib
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
from pathlib import Path
from typing import Any

from gpu_files import FILES, LEFTOVERS, sets, tail, tidy
from gpu_session import GRACE, PHASES, ROOT, Ended, Phase, Session
from gpu_summary import summary

REFRESH = 60.0  # seconds after which the log and the summary are written again
KEPT = ("environment.json", "tests.txt")  # besides the tables: what the next call needs if its folder of results is new


class Stop(BaseException):
    """A signal that asks this script to stop."""


def run(session: Session) -> None:
    """Runs the parts one after the other, and keeps the summary up to date."""
    for name in session.phases:
        why = session.skipped(name)
        if why:
            session.ended.setdefault(name, Ended(why, 0))
            continue
        if name == "environment":  # of an earlier call, perhaps on another machine
            (session.out / "environment.json").unlink(missing_ok=True)
        phase = session.phase(name)
        session.state = f"running: {name}"
        write(session)
        session.ended[name] = execute(session, phase)
        session.remember()
    session.state = "finished"


def execute(session: Session, phase: Phase) -> Ended:
    """Runs one part; stops it with all that it has started at its limit, or when this script is asked to stop."""
    log, started = session.log(phase.name), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        file.write(f"$ {shlex.join(phase.command)}\n".encode())
        file.flush()
        process = None
        try:
            process = subprocess.Popen(
                phase.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=session.variables(), start_new_session=True,
            )  # fmt: skip
            status = watched(session, process, started + max(phase.limit, 0.1))
            outcome = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped at its limit of {phase.limit:.0f} s"
        except Stop as stop:
            session.ended[phase.name] = Ended(f"stopped by {stop}", time.monotonic() - started)
            write(session)  # now, because a kill may follow
            outcome = f"stopped by {stop}"
            raise
        finally:
            if process is not None:
                end(process, phase.stop)
    lines = [line for line in tail(log, 5) if line.strip() and line != f"$ {shlex.join(phase.command)}"]
    note = lines[-1].strip()[:160] if lines else ""
    return Ended(outcome, time.monotonic() - started, note, session.identity(phase.name))


def watched(session: Session, process: "subprocess.Popen[bytes]", until: float) -> int:
    """Waits for a process, and writes the log and the summary every minute: a machine may be taken away.

    Raises:
        subprocess.TimeoutExpired: if it has not ended by then.
    """
    while True:
        left = until - time.monotonic()
        try:
            return process.wait(min(max(left, 0.0), REFRESH))
        except subprocess.TimeoutExpired:
            if left <= REFRESH:
                raise
            try:
                write(session)
            except OSError as error:  # the part continues
                session.remarks.append(f"not written while {session.state}: {error}")


def write(session: Session) -> None:
    """Writes the log and the summary, and keeps the folder within its limits."""
    logs = [session.log(name) for name in PHASES if name != "tests" and session.log(name).is_file()]
    parts = [f"===== {log.stem}\n" + "\n".join(tail(log, 5000)) + "\n" for log in logs]
    (session.out / "log.txt").write_text("\n".join(parts), encoding="utf-8")
    with contextlib.suppress(OSError, ValueError):  # the summary must be written, whatever is broken
        session.left_out = sets(session.runs / "cells", session.out / "sets.zip")
    session.remarks = list(dict.fromkeys([*session.remarks, *tidy(session.out, session.runs / "left-out")]))
    for path in [session.out / name for name in KEPT] + list(session.out.glob("[!.]*.csv")):
        if path.is_file():
            (session.runs / "kept").mkdir(exist_ok=True)
            shutil.copy2(path, session.runs / "kept" / path.name)
    temporary = session.runs / "summary.md"
    temporary.write_text(summary(session), encoding="utf-8")
    shutil.move(temporary, session.out / "summary.md")


def end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Asks a process to stop, waits for that, and kills what is left of its session."""
    try:
        if process.poll() is None:
            with contextlib.suppress(OSError):
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    finally:  # also if this script is asked to stop meanwhile
        for entry in Path("/proc").glob("[0-9]*"):  # runs are in process groups of their own, but in the same session
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == process.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
        if process.poll() is None:
            process.kill()
        process.wait()


def bring_results(out: Path, runs: Path, name: str) -> None:
    """Brings what was measured before into the folder of the results, so that it is not measured again.

    Args:
        out: the folder; what it has stays.
        runs: folder with a copy of the results of an earlier call, whose own folder may have been emptied.
        name: name of the table of the cells, which the checkout may have come with.
    """
    from iidlib.errors import InputError
    from iidlib.experiments.tables import append_results, read_results

    known, table = ROOT / "data" / "results" / name, out / name
    emptied = [path for path in (runs / "kept").glob("*") if not (out / path.name).exists()]
    for path in emptied:
        shutil.copy2(path, out / path.name)
    if not known.is_file():
        return
    if not table.exists():
        shutil.copy(known, table)
    elif name in {path.name for path in emptied}:  # the checkout may have come with more rows since
        with contextlib.suppress(OSError, InputError):  # a table that is broken is reported in the summary
            append_results(table, read_results(known))


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
    parser.add_argument("--tests", nargs="+", default=(), help="files of the tests (default: those marked gpu)")
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
    os.umask(0o022)  # where others may write, no compiled code is used
    for folder in (out, runs):
        folder.mkdir(parents=True, exist_ok=True)
    bring_results(out, runs, f"{given.scale}.csv")
    session = Session(out, runs, given.budget, given.scale, given.device, given.seeds, given.only, phases, given.tests)

    def stop(number: int, frame: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Stop(signal.Signals(number).name)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    status = 0
    try:
        run(session)
    except Stop as stopped:
        session.state = f"stopped by {stopped}"
        status = 128 + signal.Signals[str(stopped)]
    for path in out.iterdir():
        if path.suffix in LEFTOVERS:  # whoever wrote them has ended
            path.unlink()
    write(session)
    print((out / "summary.md").read_text(encoding="utf-8"))
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
