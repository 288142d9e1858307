"""Runs the GPU tests, each file in a process of its own and several at a time, for `.ci/gpu.py`.

    python .ci/gpu_tests.py tests/test_gpu.py tests/test_captured.py

A process of its own keeps a failure that lasts (a broken capture, a corrupted context) within its file, and compiles
kernels in parallel. What a file printed is shown when it has ended, or when SIGINT has cut it.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

MOST = 6  # files at a time: each process holds a CUDA context, and compiles on a core
PATIENCE = 7.0  # seconds in which the processes may stop, less than the session leaves
OPTIONS = ("-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider")
NOTHING_SELECTED = 5  # exit status of pytest


class Running(NamedTuple):
    """A file that is being tested, and its output."""

    file: str
    process: "subprocess.Popen[bytes]"
    output: IO[bytes]


def started(file: str) -> Running:
    """Starts the tests of a file."""
    output = tempfile.TemporaryFile()
    command = [sys.executable, "-m", "pytest", *OPTIONS, file]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    return Running(file, process, output)


def show(one: Running, counts: Counter[str], note: str = "") -> None:
    """Prints the output of a file, and adds what its last line counts."""
    one.output.seek(0)
    text = one.output.read().decode(errors="replace").rstrip()
    print(f"===== {Path(one.file).name}{note}\n{text}\n", flush=True)
    for number, outcome in re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed)", text.rpartition("\n")[2]):
        counts[outcome.removesuffix("s")] += int(number)


def main(files: Sequence[str], at_once: int) -> int:
    """Runs all files, and returns 0 if all tests have passed."""
    waiting, running, counts = list(files), list[Running](), Counter[str]()
    stopped = failed = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGINT, stop)
    while (waiting or running) and not stopped:
        while waiting and len(running) < at_once:
            running.append(started(waiting.pop(0)))
        for one in [one for one in running if one.process.poll() is not None]:
            running.remove(one)
            show(one, counts)
            failed |= one.process.returncode not in (0, NOTHING_SELECTED)
        time.sleep(0.05)
    for one in running:
        with contextlib.suppress(OSError):
            one.process.send_signal(signal.SIGINT)
    until = time.monotonic() + PATIENCE
    for one in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, until - time.monotonic()))
        one.process.kill()
        one.process.wait()
        show(one, counts, ", cut")
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no tests"
    left = " ".join(Path(file).stem.removeprefix("test_") for file in [*(one.file for one in running), *waiting])
    print(f"{said}; cut or not started: {left}" if left else said, flush=True)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], max(1, min(MOST, (os.cpu_count() or 1) // 2))))
