"""Speed of one distillation on several processes: seconds per iteration, and of collecting the images of all.

Each process of a measurement runs this module, ``python -m iidlib.bench.ranks SETTINGS``, started by torchrun if there
are several.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from iidlib.bench.ceilings import seconds_of
from iidlib.bench.report import random_pool, timing_dataset
from iidlib.config import preset
from iidlib.distillation import METHODS, Distillation
from iidlib.engine import device_name, pick_device, precision_in_use, threads
from iidlib.errors import InputError, suggest
from iidlib.ranks import current
from iidlib.runs.environment import environment

__all__ = ["compare_ranks"]


def compare_ranks(
    counts: Sequence[int] = (1, 2),
    *,
    method: str = "iid-dm",
    classes: int = 100,
    ipc: int = 10,
    rounds: int = 3,
    device: str = "cpu",
    changes: Mapping[str, Any] | None = None,
    on_row: Callable[[dict[str, Any]], object] = lambda row: None,
) -> list[dict[str, Any]]:
    """Times the same distillation on different numbers of processes.

    On a CPU every process computes with one thread, also a single one; on CUDA each has a GPU of its own.

    Args:
        counts: numbers of processes, ascending; the first is what the others are compared with.
        method: a name of ``distillation.METHODS``.
        classes: number of classes.
        ipc: number of images per class.
        rounds: timed iterations, after one that is not timed.
        device: as in ``engine.pick_device``.
        changes: further settings by dotted key, as for ``config.override``.
        on_row: called with each row as soon as it is there.

    Returns:
        A row for each number of processes. ``seconds`` is the median over iterations of the slowest process, ``ratio``
        how much faster that is than the first row, ``gather_seconds`` the time to collect the state of a checkpoint.

    Raises:
        InputError: for an unknown method, device or setting, or more processes than classes or GPUs.
        RuntimeError: if a process has failed.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{suggest(method, METHODS)}")
    if max(counts) > classes or min(counts) < 1:
        raise InputError(f"{classes} classes can be shared by 1 to {classes} processes, got {max(counts)}")
    if pick_device(device).type == "cuda" and max(counts) > torch.cuda.device_count():
        raise InputError(f"{max(counts)} processes need a GPU each; there are {torch.cuda.device_count()}")
    settings = {"pool.network": "convnet3"} | dict(changes or {})
    preset(method, ipc=ipc, scale="paper", changes=settings)  # at once, not in each process
    given = {"method": method, "classes": classes, "ipc": ipc, "rounds": rounds, "device": device}
    stamp, rows = environment(), list[dict[str, Any]]()
    for count in counts:
        found = _started(count, given | {"changes": settings}, device)
        seconds = statistics.median(found["iterations"])
        first = rows[0]["seconds"] if rows else seconds
        row = {
            "what": "ranks", "method": method, "classes": classes, "ipc": ipc, "batch_real": found["batch_real"],
            "width": found["width"], "pool_network": settings["pool.network"], "ranks": count, "seconds": seconds,
            "ratio": first / seconds, "gather_seconds": found["gather"], "rounds": rounds, "device": found["device"],
            "precision": found["precision"], "torch": stamp["torch"], "iidlib": stamp["iidlib"],
            "commit": stamp["commit"], "date": stamp["date"],
        }  # fmt: skip
        rows.append(row)
        on_row(row)
    return rows


def _started(count: int, settings: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Times a number of processes; returns what the first of them has printed."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"] if count > 1 else []
    command = [sys.executable, "-m", *launcher, "iidlib.bench.ranks", json.dumps(settings)]
    one = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    done = subprocess.run(command, env=os.environ | one, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{count} processes could not be timed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return dict(json.loads(done.stdout.strip().rpartition("\n")[2]))


def _timed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of this process' iterations, the longest of all processes each."""
    ranks, device = current(), pick_device(given["device"])
    config = preset(given["method"], ipc=given["ipc"], scale="paper", changes=given["changes"])
    dataset = timing_dataset(given["classes"], config.match.batch_real, device=device)
    with threads(1 if device.type == "cpu" else None):
        run = Distillation(config, dataset)
        run.pool = random_pool(config, dataset.spec, device)
        run.step(0)
        times = []
        for iteration in range(1, 1 + given["rounds"]):
            ranks.every(None)  # all begin together
            times.append(max(ranks.every(seconds_of(lambda iteration=iteration: run.step(iteration), device))))  # type: ignore[misc]
        gather = max(ranks.every(seconds_of(run.state, device)))
        run.close()
    return {
        "iterations": times, "gather": gather, "batch_real": config.match.batch_real, "width": config.match.width,
        "device": device_name(device), "precision": precision_in_use(device, config.compute.precision),
    }  # fmt: skip


if __name__ == "__main__":
    result = _timed(json.loads(sys.argv[1]))
    if current().leads:
        print(json.dumps(result))
