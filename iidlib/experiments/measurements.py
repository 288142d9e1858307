"""The paper's cells: what has been measured, what was published, and what is missing.

A cell is filled by rows of results (``data/results``): those of its dataset, method, images per class, network and
settings, at one scale. A cell of the paper counts as measured at scale ``paper`` only; smaller scales are reported
alongside under their own names.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib.config import RunConfig, override, preset
from iidlib.config.recipes import BASELINES
from iidlib.errors import InputError
from iidlib.experiments.cells import EXPERIMENTS, Cell
from iidlib.experiments.grids import find
from iidlib.experiments.published import published_value
from iidlib.experiments.results import protocol_text
from iidlib.experiments.tables import read_results, results_dir

__all__ = ["all_rows", "coverage", "mean_of", "measured", "own_rows", "table"]

_NUMBERS = (
    "ipc", "seed", "accuracy", "iterations", "epochs", "networks_seed", "evaluation_seed", "step", "steps", "order",
)  # fmt: skip


def all_rows(folder: Path | None = None) -> pd.DataFrame:
    """Rows of all tables of accuracies in a folder, concatenated.

    Args:
        folder: folder of the results; defaults to that of the checkout.

    Returns:
        All columns as text, except for the numbers ipc, seed, accuracy, iterations, epochs, networks_seed,
        evaluation_seed, step, steps and order.
    """
    frames = []
    for path in sorted((folder or results_dir()).glob("*.csv")):
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline().strip().split(",")
        if {"dataset", "method", "ipc", "scale", "network", "seed", "accuracy"} <= set(header):
            frames.append(read_results(path))
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames, ignore_index=True).fillna("")
    for name in _NUMBERS:
        rows[name] = pd.to_numeric(rows[name], errors="coerce") if name in rows else math.nan
    for name in ("settings", "date", "step_sizes", "outcome"):
        if name not in rows:
            rows[name] = ""
    return rows


def measured(cell: Cell, scale: str, rows: pd.DataFrame) -> pd.Series:
    """Accuracy of each measured seed, averaged over its networks; empty if there is none.

    Rows of other settings, another number of iterations or another protocol do not count, nor does a seed with fewer
    networks than the protocol asks for. Networks that diverged count with their accuracy: leaving them out would select
    by the result; `table` counts them. A setting that is spelled out but equals the scale's own makes no difference. If
    a seed was measured again with the same networks, the newest row of each counts.

    Args:
        cell: the cell to look for.
        scale: its scale; at ``tour`` the dataset is ``cifar10-mini``.
        rows: rows of results.
    """
    return _by_seed(own_rows(cell, scale, rows))


def _without_augmentation(text: str) -> str:
    """Protocol of a row without the augmentation, which is the dataset's own under the protocol ``idc``."""
    return text.partition(", augmentation ")[0] if text.startswith(("idc", "whole set (idc)")) else text


def _by_seed(rows: pd.DataFrame) -> pd.Series:
    """Mean accuracy of each seed's networks; without rows there are no columns either."""
    return rows.groupby("seed")["accuracy"].mean() if len(rows) else pd.Series(dtype=float)


def own_rows(cell: Cell, scale: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a cell: the newest of each network, for the seeds that have all networks.

    Args:
        cell: the cell to look for; one whose settings are incompatible with the scale's has no rows.
        scale: its scale.
        rows: rows of results, as returned by `all_rows`.
    """
    dataset = cell.dataset_at(scale)
    if not rows.empty:
        rows = rows[(rows["dataset"] == dataset) & (rows["method"] == cell.method) & (rows["scale"] == scale)]
    if rows.empty:
        return rows
    if "step_sizes" in rows:  # all steps of the paper are of one size
        rows = rows[rows["step_sizes"].map(lambda sizes: len(set(sizes.split(","))) == 1)]
    try:
        planned = cell.settings_at(scale)
    except InputError:  # the cell is from a grid for another scale
        return rows[:0]
    given = cell.changes(scale)
    usual = preset(cell.method, dataset, max(cell.ipc, 1), scale)
    chosen = cell.method in BASELINES
    protocol = cell.protocol_of(planned)
    if cell.method == "whole":
        protocol = protocol.for_whole_set()
    tiles = 1 if chosen and cell.method != "random-mosaic" else planned.syn.factor
    given.pop("iterations", None)

    def unusual(pairs: Iterable[str]) -> set[RunConfig | str]:
        """The scale's settings with each of the changes, except for changes that make no difference.

        Settings of the evaluation are skipped: the row's network, epochs, protocol and number of networks cover them.
        """
        return {_changed(usual, pair) for pair in pairs if not pair.startswith("eval.")} - {usual}

    wanted = unusual(f"{key}={value}" for key, value in given.items())
    same = [text for text in rows["settings"].unique() if unusual(text.split()) == wanted]
    selected = rows[
        rows["settings"].isin(same)
        & (rows["network"] == cell.network)
        & (rows["iterations"] == (0 if chosen else planned.iterations))
        & (rows["epochs"] == protocol.epochs)
        & ~(rows["protocol"].str.startswith("idc") & rows["settings"].str.contains("eval.augmentation="))
        & (rows["protocol"].map(_without_augmentation) == protocol_text(protocol, cell.method, tiles))
        & ((rows["ipc"] == cell.ipc) | (cell.ipc == 0))
        & (rows["steps"].fillna(0) == cell.steps)
        & (rows["step"].fillna(0) == cell.steps)
        & ((rows["order"] == rows["seed"]) | (cell.steps == 0))
    ]
    selected = selected.sort_values("date", kind="stable").drop_duplicates(
        ["seed", "networks_seed", "evaluation_seed"], keep="last"
    )
    return selected[selected.groupby("seed")["accuracy"].transform("size") >= protocol.num_eval]


def _failed(rows: pd.DataFrame) -> str:
    """Number of networks by outcome other than trained, such as ``2 diverged``; unknown for rows without the column."""
    failed = rows["outcome"].replace({"trained": ""}).fillna("") if "outcome" in rows else pd.Series(dtype=object)
    return ", ".join(f"{count} {outcome}" for outcome, count in failed[failed != ""].value_counts().items())


def _changed(config: RunConfig, pair: str) -> RunConfig | str:
    """The settings with a change such as ``match.cc=1``; the change itself if a table names an unknown setting."""
    key, _, value = pair.partition("=")
    try:
        return override(config, {key: value})
    except InputError:
        return pair


def coverage(folder: Path | None = None) -> pd.DataFrame:
    """How many cells of each experiment are measured, with at least one seed.

    Args:
        folder: folder of the results; defaults to that of the checkout.

    Returns:
        A row for each of ``EXPERIMENTS``, with its name as the index and a text such as ``3 of 28`` for each of the
        scales tour, laptop and paper; ``-`` where a scale has none of its cells. A cell of several experiments counts
        in each.
    """
    counts: dict[str, dict[str, str]] = {}
    for name, experiment in EXPERIMENTS.items():
        seeds, counts[name] = table(name, folder).set_index("cell"), {}
        for scale in ("tour", "laptop", "paper"):
            there = [cell.name for cell in experiment.cells if cell.runs_at(scale)]
            done = (seeds.loc[there, f"{scale}_seeds"] > 0).sum()
            counts[name][scale] = f"{done} of {len(there)}" if there else "-"
    return pd.DataFrame.from_dict(counts, orient="index")


def table(name: str, folder: Path | None = None) -> pd.DataFrame:
    """Cells of an experiment, one row each: what was published, and what was measured at each scale.

    Args:
        name: one of ``EXPERIMENTS``, or the file of a grid.
        folder: folder of the results; defaults to that of the checkout.

    Returns:
        Columns cell (its name), dataset, ipc, method, network, settings, steps, evaluation, published, source; and for
        each of the scales paper, laptop and tour: mean, std (population, over two or more distillation seeds), seeds
        and failed (how many networks diverged, or the like). Missing values are NaN, with 0 seeds. Two columns follow
        DD-Ranking's measures without soft labels, at scale laptop: improvement over random images, and the gap to the
        whole set under the same scale and protocol, if both were measured.

    Raises:
        InputError: for an unknown experiment.
    """
    rows, lines = all_rows(folder), []
    for cell in find(name).cells:
        other = cell.settings or cell.steps or cell.network != cell.usual.network or cell.evaluation == "idc"
        printed = None if other else published_value(cell.dataset, cell.method, cell.ipc)
        line: dict[str, Any] = {
            "cell": cell.name,
            "dataset": cell.dataset,
            "ipc": cell.ipc,
            "method": cell.method,
            "network": cell.network,
            "settings": " ".join(f"{key}={value}" for key, value in cell.settings),
            "steps": cell.steps,
            "evaluation": cell.evaluation,
            "published": printed.value if printed else math.nan,
            "source": printed.source if printed else "not found",
        }
        for scale in ("paper", "laptop", "tour"):
            selected = own_rows(cell, scale, rows) if cell.runs_at(scale) else rows[:0]
            values = _by_seed(selected)
            line |= {
                f"{scale}_mean": values.mean() if len(values) else math.nan,
                f"{scale}_std": values.std(ddof=0) if len(values) > 1 else math.nan,
                f"{scale}_seeds": len(values),
                f"{scale}_failed": _failed(selected),
            }
        lines.append(line)
    return _with_scores(pd.DataFrame(lines))


def mean_of(row: Mapping[Any, Any], scale: str) -> str:
    """Result at a scale as text, ``46.0 ± 0.2 (3)``: mean, standard deviation over seeds, their number; "" if missing.

    Networks that diverged are counted: ``10.0 ± 0.0 (3; 15 diverged)``.

    Args:
        row: a row of `table`.
        scale: ``paper``, ``laptop`` or ``tour``.
    """
    mean, std, seeds = (row[f"{scale}_{part}"] for part in ("mean", "std", "seeds"))
    failed = row.get(f"{scale}_failed", "")
    return (
        f"{mean:.1f}{f' ± {std:.1f}' if seeds > 1 else ''} ({seeds}{f'; {failed}' if failed else ''})" if seeds else ""
    )


def _with_scores(cells: pd.DataFrame) -> pd.DataFrame:
    same = ["dataset", "network", "evaluation"]  # accuracies under different protocols are not comparable
    plain = cells[(cells["settings"] == "") & (cells["steps"] == 0)]
    random = plain[plain["method"] == "random"].drop_duplicates([*same, "ipc"])
    base = cells[[*same, "ipc"]].merge(random[[*same, "ipc", "laptop_mean"]], "left", [*same, "ipc"])
    whole = plain[plain["method"] == "whole"].drop_duplicates(same)
    top = cells[same].merge(whole[[*same, "laptop_mean"]], "left", same)
    return cells.assign(
        over_random=cells["laptop_mean"] - base["laptop_mean"].to_numpy(),
        below_whole=top["laptop_mean"].to_numpy() - cells["laptop_mean"],
    )
