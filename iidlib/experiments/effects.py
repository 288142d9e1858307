"""Gains of a method's parts and costs of its distillations, computed from measured rows."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iidlib.config import preset
from iidlib.config.uses import uses_pool
from iidlib.experiments.cells import EXPERIMENTS, MATCHING, PARTS, Cell, usual_network
from iidlib.experiments.grids import rounds
from iidlib.experiments.measurements import all_rows, measured, own_rows
from iidlib.experiments.paired import paired_gains, paired_interval
from iidlib.experiments.published import published_value

__all__ = ["costs_on_one_device", "distillation_costs", "gains_of_parts", "headline", "search_results"]


def gains_of_parts(scale: str, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Gain of each part of iid-plus: left out of the full method, and added alone to the method without any part.

    A gain is the accuracy with the part minus that without it, so it is positive if the part helps, in either group. A
    part that needs another one is added on top of that one. Matching itself can only be left out.

    Args:
        scale: scale at which the cells of the experiment ``plus`` were measured.
        rows: rows of results; defaults to those of the checkout.

    Returns:
        One row per part and group (``left out``, ``added alone``), with the columns seeds, mean, low and high of
        `paired_gains`, where the mean is given for one or two seeds too; a note why there is no interval (``missing``,
        ``1 seed``, ``not in use`` for a part that the scale's settings do not use), or ""; and ``text``, which says all
        of it in words.
    """
    cells = EXPERIMENTS["plus"].cells
    rows = all_rows() if rows is None else rows
    frames = []
    for cell in cells:
        one = measured(cell, scale, rows)
        frames.append(pd.DataFrame({"seed": one.index, "method": _without(cell), "accuracy": one.to_numpy()}))
    whole, bare = cells[:2]
    out = {part.label: {key} for key, part in PARTS.items()} | {name: {*keys} for name, keys in MATCHING.items()}
    pairs = [(_named(keys), _without(whole)) for keys in out.values()]
    for part, cell in zip(PARTS, cells[-len(PARTS) :], strict=True):
        off = {key for key, _ in cell.settings}
        pairs.append((_named(off | {part}), _named(off)))
    scores = pd.concat(frames, ignore_index=True)
    table = paired_gains(scores, pairs)
    by_seed = scores.pivot_table(index="seed", columns="method", values="accuracy")
    by_seed = by_seed.reindex(columns=list({name for pair in pairs for name in pair}))
    table["mean"] = [(by_seed[method] - by_seed[base]).mean() for base, method in pairs]  # NaN without a common seed
    table.insert(0, "group", np.repeat(["left out", "added alone"], [len(out), len(PARTS)]))
    table.insert(1, "part", [*out, *(part.label for part in PARTS.values())])
    usual = ("iid-plus", whole.dataset_at(scale), whole.ipc, scale)
    parts = [preset(*usual, {key: value}) == preset(*usual) for key, value in bare.settings]
    idle = [*parts, *(False for _ in MATCHING), *parts]
    table.loc[idle, ["mean", "low", "high"]] = np.nan
    table["note"] = [
        "not in use" if off else ("missing" if not n else f"{n} seed{'s' * (n > 1)}" if n < 3 else "")
        for off, n in zip(idle, table["seeds"], strict=True)
    ]
    table["text"] = [_gain_as_text(row) for row in table.to_dict("records")]
    return table.drop(columns=["base", "method"])


def _gain_as_text(row: Mapping[Any, Any]) -> str:
    if np.isnan(row["mean"]):
        return row["note"]
    if row["note"]:
        return f"{row['mean']:+.1f} ({row['note']})"
    return f"{row['mean']:+.1f} from {row['low']:+.1f} to {row['high']:+.1f} ({row['seeds']})"


def _without(cell: Cell) -> str:
    return _named({key for key, _ in cell.settings})


def _named(off: set[str]) -> str:
    """Settings of the parts that are left out, in order; "" for the full method."""
    known = dict.fromkeys([*PARTS, *chain.from_iterable(MATCHING.values())])
    return " ".join(key for key in known if key in off)


def distillation_costs(
    scale: str,
    methods: Sequence[str | Cell],
    dataset: str = "cifar10",
    ipc: int = 10,
    rows: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Seconds and accuracy of the distillations behind some cells at a scale.

    Args:
        scale: scale of the distillations and, unless a cell says otherwise, of their evaluation.
        methods: cells, or names of methods for their usual cells, in the order of the result; those without rows are
            left out.
        dataset: dataset for methods given by name, as in `Cell`: CIFAR-10 even if the scale uses the embedded images.
        ipc: images per class for methods given by name.
        rows: rows of results; defaults to those of the checkout.

    Returns:
        One row per distillation, as expected by `iidlib.plots.pareto`: label (the method, and the settings of its
        cell), ipc, scale, seed, seconds (of its iterations), pool_seconds (0 without a pool, NaN if its rows do not say
        it), accuracy (mean over its networks), device (of the iterations if the rows say it, otherwise of the
        evaluation) and date.
    """
    rows = all_rows() if rows is None else rows
    columns = ["label", "ipc", "scale", "seed", "seconds", "pool_seconds", "accuracy", "device", "date"]
    frames = [pd.DataFrame(columns=columns)]
    for one in methods:
        cell = Cell(dataset, one, ipc, usual_network(dataset)) if isinstance(one, str) else one
        settings, selected = cell.settings_at(scale), own_rows(cell, scale, rows)
        if selected.empty:
            continue
        optional = {"seconds_per_iteration", "pool_seconds", "device", "distilled_on"}
        selected = selected.reindex(columns=[*selected.columns, *(optional - {*selected})])
        for name in ("seconds_per_iteration", "pool_seconds"):
            selected[name] = pd.to_numeric(selected[name], errors="coerce")
        if not uses_pool(settings):
            selected["pool_seconds"] = 0.0
        selected["seconds"] = selected["seconds_per_iteration"] * selected["iterations"]
        selected["device"] = selected["distilled_on"].replace("", np.nan).combine_first(selected["device"])
        selected["label"] = " ".join([cell.method, *(f"{key}={value}" for key, value in cell.settings)])
        how = {"seconds": "mean", "pool_seconds": "mean", "accuracy": "mean", "device": "first", "date": "max"}
        timed = selected.groupby(["label", "ipc", "scale", "seed"], as_index=False).agg(how)
        frames.append(timed[timed["seconds"] > 0])
    return pd.concat(frames[1:] or frames, ignore_index=True)


def costs_on_one_device(costs: pd.DataFrame) -> pd.DataFrame:
    """Selects the distillations on the device on which most methods were timed, so that seconds are comparable.

    Threads count as part of a CPU's name. Ties are broken by the number of distillations.

    Args:
        costs: as returned by `distillation_costs`.

    Returns:
        The rows of that device; methods that were never timed there have none.
    """
    if costs.empty:
        return costs
    device = costs["device"].fillna("")  # rows without a device are one group, too
    by_device = costs.groupby(device)["label"].agg(["nunique", "size"])
    return costs[device == by_device.sort_values(["nunique", "size"]).index[-1]]


def headline(scale: str, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Sets of iid-plus, distilled at a scale and evaluated as in the paper, with the published values.

    Args:
        scale: scale of the distillations.
        rows: rows of results; defaults to those of the checkout.

    Returns:
        One row per set of the experiment ``headline``, sorted by ipc, with columns ipc, settings (that differ from the
        scale's), seeds, accuracy (percent, mean over seeds), low and high (its 95 % t interval, for three or more
        seeds), published values of ``iid-dm`` and ``iid-idm``, and pool_seconds, seconds and device of a distillation:
        means over the seeds that ran with the most threads, or on a GPU, among those whose rows say it. Missing values
        are NaN.
    """
    rows, results = all_rows() if rows is None else rows, []
    for cell in EXPERIMENTS["headline"].cells:
        if cell.method != "iid-plus":
            continue
        values = measured(cell, scale, rows).tolist()  # including seeds whose rows do not say what they cost
        runs = distillation_costs(scale, [cell], rows=rows)
        _, low, high = paired_interval([0.0] * len(values), values) if len(values) >= 3 else (np.nan,) * 3
        quoted = [published_value(cell.dataset, method, cell.ipc) for method in ("iid-dm", "iid-idm")]
        threads = runs["device"].astype(str).str.extract(r"(\d+) threads?", expand=False).astype(float)
        fast = threads.fillna(np.inf).where(runs["device"].fillna("") != "", 0)  # a GPU's name has no threads
        quiet = runs[fast == fast.max()]
        results.append({
            "ipc": cell.ipc,
            "settings": " ".join(f"{key}={value}" for key, value in cell.settings),
            "seeds": len(values),
            "accuracy": float(np.mean(values)) if values else np.nan,
            "low": low,
            "high": high,
            "iid-dm": quoted[0].value if quoted[0] else np.nan,
            "iid-idm": quoted[1].value if quoted[1] else np.nan,
            "pool_seconds": quiet["pool_seconds"].mean(),
            "seconds": quiet["seconds"].mean(),
            "device": next(iter(quiet["device"]), ""),
        })  # fmt: skip
    return pd.DataFrame(results).sort_values("ipc", kind="stable", ignore_index=True)


def search_results(grid: str | Path, scale: str, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Results of a search: each value that its rounds vary, and the settings given without it.

    Args:
        grid: file of the grid, see `iidlib.experiments.grids`.
        scale: scale at which it was run.
        rows: rows of results; defaults to those of the checkout.

    Returns:
        One row per cell of each round, with columns scale, ipc, round (from 1), varied (``as given`` for the first of a
        round), seeds, accuracy (percent, mean over seeds) and gain (over the given settings, in points, over common
        seeds); missing values are NaN.
    """
    rows = all_rows() if rows is None else rows
    results = []
    for number, cells in enumerate(rounds(grid), 1):
        given = measured(cells[""], scale, rows)
        for varied, cell in cells.items():
            values = measured(cell, scale, rows)
            gain = (values - given).mean() if varied else np.nan  # aligned by seed
            results.append((scale, cell.ipc, number, varied or "as given", len(values), values.mean(), gain))
    return pd.DataFrame(results, columns=["scale", "ipc", "round", "varied", "seeds", "accuracy", "gain"])
