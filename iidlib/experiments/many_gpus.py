"""A model of one distillation on several GPUs, with classes sharded over processes: not a measurement.

time = iterations · one · (repeated + (1 - repeated) / processes) + checkpoints · gathered bytes / link

with whole classes per process, and no iteration faster than a host can start it.

The seconds ``one`` of an iteration on one GPU are those that `costs` predicts; the repeated share is fitted to rows of
``iid bench --ranks``, and what travels at a checkpoint is counted.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from iidlib.config import preset
from iidlib.experiments.costs import DATASET_SIZES, DatasetSize, device_model, seconds_per_iteration

__all__ = ["LARGE", "ModelledRun", "modelled", "repeated_share"]

LARGE: dict[str, DatasetSize] = {
    "tinyimagenet": DATASET_SIZES["tinyimagenet"],
    "imagenet-1k": DatasetSize(1000, 224, 3, 1_281_167, 50_000),
}
"""Datasets that are too large for one GPU at some number of images per class."""

LINK = 50e9
"""Bytes per second between two GPUs, assumed: those of a fast network between machines."""

_FLOAT = 4


@dataclass(frozen=True)
class ModelledRun:
    """What a run is expected to take, by the model."""

    dataset: str
    ipc: int
    ranks: int
    """Number of processes, each with a GPU."""
    seconds: float
    """Seconds per iteration, with their share of the checkpoints."""
    hours: float
    """Hours of all iterations and checkpoints, without the pool and the evaluation."""
    images_gib: float
    """GiB on each GPU for synthetic images: a copy of all, and gradient and momentum of its own classes."""
    real_gib: float
    """GiB on each GPU for the real training images, one byte per value."""
    repeated: float
    """Share of an iteration that every process repeats, see `repeated_share`."""


def repeated_share(rows: pd.DataFrame) -> float:
    """Share of an iteration that every process repeats, by least squares.

    Args:
        rows: rows of ``iid bench --ranks`` of one method; those of one process are the reference.

    Returns:
        The share in seconds(n) = seconds(1) · (share + (1 - share) / n), within 0 and 1; NaN without rows of several.
    """
    one = rows[rows["ranks"] == 1]["seconds"].median()
    several = rows[rows["ranks"] > 1]
    if several.empty:
        return math.nan
    inverse = 1 / several["ranks"]
    left, right = 1 - inverse, several["seconds"] / one - inverse  # right = share · left
    return float(min(1.0, max(0.0, (left * right).sum() / (left * left).sum())))


def modelled(
    rows: pd.DataFrame, ranks: Iterable[int], *, method: str = "iid-dm", ipcs: Iterable[int] = (10, 50),
    device: str = "h100",
) -> list[ModelledRun]:  # fmt: skip
    """Runs with the published settings of TinyImageNet, on that dataset and on ImageNet-1k at 224 pixels.

    Args:
        rows: rows of ``iid bench --ranks``; those of the method count, see `repeated_share`.
        ranks: numbers of processes.
        method: the method.
        ipcs: numbers of images per class.
        device: name of the model of a GPU, see `device_model`.

    Returns:
        A run for each dataset, number of images per class and number of processes.
    """
    repeated, gpu, ranks = repeated_share(rows[rows["method"] == method]), device_model(device), list(ranks)
    runs = []
    for name, size in LARGE.items():
        for ipc in ipcs:
            config = preset(method, "tinyimagenet", ipc, "paper")
            one = seconds_per_iteration(config, size, gpu)
            pixels = size.channels * size.side**2
            images = size.classes * ipc * pixels * _FLOAT
            checkpoints = config.iterations / config.checkpoint.every
            for count in ranks:
                own = -(-size.classes // count) / size.classes  # of the process with most classes
                share = repeated + (1 - repeated) * own
                gathers = checkpoints * 2 * images * (1 - 1 / count) / LINK  # images and momenta
                seconds = max(one * share, gpu.host) + gathers / config.iterations
                hours = seconds * config.iterations / 3600
                synthetic = images * (1 + 2 * own)
                real = size.train * pixels
                sizes = (synthetic / 2**30, real / 2**30)
                runs.append(ModelledRun(name, ipc, count, seconds, hours, *sizes, repeated))
    return runs
