"""Time that the execution of a chapter is expected to take, from what was measured at the same scale."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib.config.recipes import BASELINES
from iidlib.errors import InputError
from iidlib.experiments.measurements import all_rows
from iidlib.experiments.notebook_source import declared_in, literal
from iidlib.experiments.tables import results_dir

__all__ = ["expected_seconds"]


def expected_seconds(notebook: Path, parameters: Mapping[str, Any], folder: Path | None = None) -> float:
    """Seconds of a chapter's execution with some parameters; NaN if nothing was measured that says it.

    If the parameters name methods, it is the sum of their distillations and evaluations, of the median of the rows with
    the same dataset, scale and number of images per class. Otherwise it is what the chapter took with its own values of
    everything but seeds.

    Args:
        notebook: the chapter.
        parameters: its parameters, as a sweep gives them.
        folder: folder of the results; defaults to that of the checkout.

    Raises:
        InputError: if the notebook cannot be read.
    """
    values = {name: literal(node)[1] for name, (_, node) in declared_in(notebook)[0].items()} | dict(parameters)
    try:
        folder = folder or results_dir()
    except InputError:  # installed without results
        return math.nan
    named = values.get("methods") or values.get("method")
    methods = [named] if isinstance(named, str) else list(named or [])
    if methods and {"scale", "dataset", "ipc"} <= {*values}:
        seeds = values.get("seeds", values.get("seed", 0))
        count = len(seeds) if isinstance(seeds, list) else 1
        rows = all_rows(folder)
        same = rows[(rows["scale"] == values["scale"]) & (rows["dataset"] == values["dataset"])] if len(rows) else rows
        return count * sum(_seconds(same, method, values["ipc"]) for method in methods)
    changed = {
        name
        for name, value in parameters.items()
        if name not in ("seeds", "seed") and not _usual(notebook, name, value)
    }
    return math.nan if changed else _of_chapter(folder, notebook.stem)


def _usual(notebook: Path, name: str, value: Any) -> bool:
    declared = declared_in(notebook)[0]
    return name in declared and literal(declared[name][1])[1] == value


def _seconds(rows: pd.DataFrame, method: str, ipc: int) -> float:
    """Median seconds of a distillation and its evaluation, over seeds."""
    if rows.empty:
        return math.nan
    own = rows[
        (rows["method"] == method) & (rows["ipc"] == ipc) & (rows["settings"] == "") & (rows["network"] == "convnet3")
    ]
    per_iteration, evaluation = (
        pd.to_numeric(own[name], errors="coerce") for name in ("seconds_per_iteration", "seconds")
    )
    distillation = (
        0.0 if method in BASELINES else (own["iterations"] * per_iteration).groupby(own["seed"]).first().median()
    )
    return float(distillation + evaluation.groupby(own["seed"]).sum(min_count=1).median())


def _of_chapter(folder: Path, name: str) -> float:
    """Seconds that a chapter took at scale ``tour``."""
    try:
        with (folder / "chapters.csv").open(newline="", encoding="utf-8") as file:
            minutes = {row["chapter"]: float(row["minutes"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError):
        return math.nan
    return 60 * minutes.get(name, math.nan)
