"""Writes the result tables of the README, the book's front page and data/results from the measured rows.

python data/scripts/build_results_tables.py            # a test compares each page with the output
"""

import math
import re
import statistics
from pathlib import Path

import pandas as pd

from iidlib import experiments
from iidlib.experiments import all_rows, find, paired_gains, rows_of
from iidlib.experiments.costs import cost_of_cell, device_model, model_of
from iidlib.experiments.measurements import own_rows

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "book" / "intro.md", ROOT / "data" / "results" / "README.md")
PAIRS = {
    "laptop": (
        ("dm", "dm-cc"), ("dm", "dm-cm"), ("dm", "iid-dm"), ("dm", "idm"),
        ("idm", "idm-cc"), ("idm", "idm-cm"), ("idm", "iid-idm"),
        ("random-mosaic", "dm"), ("random-mosaic", "iid-plus"), ("iid-idm", "iid-plus"),
    ),
    "tour": (
        ("random-mosaic", "dm"), ("dm", "idm"), ("random-mosaic", "idm"), ("idm", "iid-idm"),
        ("random-mosaic", "iid-plus"), ("iid-idm", "iid-plus"),
    ),
}  # fmt: skip
TABLES = {
    ("laptop", 1): ("laptop",), ("laptop", 10): ("laptop",), ("tour", 1): ("tour-idm", "tour"), ("tour", 10): ("tour",),
}  # fmt: skip
PLACE = re.compile(
    r"(<!-- (results|gains|parts|headline|cells) at (\w+): begin \(python data/scripts/build_results_tables.py\) -->\n)"
    r".*?(\n<!-- end -->)",
    re.S,
)
METHODS = {
    "random": "random real images",
    "random-mosaic": "random mosaics of four",
    "dm": "DM",
    "iid-dm": "IID on DM",
    "idm": "IDM",
    "iid-idm": "IID on IDM",
    "iid-plus": "iid-plus, beyond the paper",
}
SAME_AS_DM = {("dm-cc", 1), ("dm-cm", 1), ("iid-dm", 1)}
"""Method and IPC whose terms are left out: a single image has no other to relate to (a test compares the images)."""


def table(scale: str) -> str:
    """CIFAR-10 at 1 and 10 images per class; includes published values unless the scale uses cifar10-mini."""
    published = scale != "tour"
    cells = experiments.table("main")
    cells = cells[cells["dataset"] == "cifar10"].set_index(["method", "ipc"])
    heads = ["set"]
    for ipc in (1, 10):
        heads += [f"IPC {ipc}, ours", "published"] if published else [f"IPC {ipc}"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for method, name in METHODS.items():
        parts = []
        for ipc in (1, 10):
            row = cells.loc[method, ipc]
            same = "as DM" if (method, ipc) in SAME_AS_DM else "missing"
            parts.append(experiments.mean_of(row, scale) or same)
            if published:
                parts.append("not found" if row["source"] == "not found" else f"{row['published']:.1f}")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def gains(scale: str) -> str:
    """Paired differences of methods at a scale, in points, with their intervals over seeds.

    At 10 images per class both methods of a pair come from one table, so there is no choice between tables that contain
    the same seed. At 1 image per class no seed of a method is in two tables.
    """
    columns = []
    for ipc in (1, 10):
        dataset = experiments.Cell("cifar10", "dm", ipc).dataset_at(scale)
        cell = {"dataset": dataset, "ipc": ipc, "network": "convnet3", "settings": ""}
        rows = pd.concat([rows_of(name, **cell) for name in TABLES[scale, ipc]])
        columns.append([claim(**pair) for pair in paired_gains(rows, PAIRS[scale]).to_dict("records")])
    lines = ["| difference | IPC 1 | IPC 10 |", "| --- | --- | --- |"]
    for (base, method), *claims in zip(PAIRS[scale], *columns, strict=True):
        for place, ipc in enumerate((1, 10)):
            if claims[place] == "missing" and base == "dm" and (method, ipc) in SAME_AS_DM:
                claims[place] = "same images"
        lines.append(f"| `{method}` over `{base}` | {' | '.join(claims)} |")
    return "\n".join(lines)


def claim(*, seeds: int, mean: float, low: float, high: float, **_: str) -> str:
    """A paired difference as text."""
    incomplete = f"{seeds} of 3 seeds" if seeds else "missing"
    return f"{mean:.2f} ({low:.2f} to {high:.2f})" if seeds >= 3 else incomplete


def headline(scale: str) -> str:
    """Sets of iid-plus under the paper's evaluation, with published values and the minutes of computation."""
    heads = ("`iid-plus`", "ours", "IID on DM, published", "IID on IDM, published", "minutes")
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- | --- | --- |"]
    for one in experiments.headline(scale).to_dict("records"):
        accuracy = f"{one['accuracy']:.1f}" + (f" ({one['low']:.1f} to {one['high']:.1f})" if one["seeds"] > 2 else "")
        parts, alone = [one["pool_seconds"], one["seconds"]], " (1 thread)" * ("(1 threads)" in one["device"])
        columns = [
            " ".join([f"IPC {one['ipc']}", *(f"`{pair}`" for pair in one["settings"].split())]),
            f"{accuracy}, {one['seeds']} of 3 seeds" if one["seeds"] in (1, 2) else accuracy.replace("nan", "missing"),
            *("not found" if math.isnan(one[name]) else f"{one[name]:.1f}" for name in ("iid-dm", "iid-idm")),
            "missing" if any(map(math.isnan, parts)) else " + ".join(f"{part / 60:.1f}" for part in parts) + alone,
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def parts(scales: str) -> str:
    """Gain from each part of iid-plus, left out and added alone, at scales joined by ``_`` (``tour_laptop``)."""
    names, columns = scales.split("_"), []
    for name in names:
        gained = experiments.gains_of_parts(name)
        columns += [gained[gained["group"] == group].set_index("part")["text"] for group in ("left out", "added alone")]
    heads = [f"{group}, `{name}`" for name in names for group in ("left out", "added alone")]
    lines = [f"| {' | '.join(['part', *heads])} |", f"|{' --- |' * (1 + len(heads))}"]
    lines += [f"| {part} | {' | '.join(column.get(part, '') for column in columns)} |" for part in columns[0].index]
    return "\n".join(lines)


def cells(scale: str) -> str:
    """Every cell of the main table and the ablation that was measured at a scale.

    With the mean, over its sets, of the spread of their networks (the smallest number of networks in brackets), the
    published value, and hours, which are missing if the rows do not say them.
    """
    heads = ("cell", "ours", "over networks", "published", "hours per seed, without a pool")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    rows, names = all_rows(), ("main", "ablation")
    printed = pd.concat([experiments.table(name) for name in names]).drop_duplicates("cell").set_index("cell")
    for cell in dict.fromkeys(cell for name in names for cell in find(name).cells if cell.runs_at(scale)):
        own = own_rows(cell, scale, rows)
        if own.empty:
            continue
        row, sets = printed.loc[cell.name], [one for _, one in own.groupby("seed")]
        spread = statistics.fmean(one["accuracy"].std(ddof=0) for one in sets)
        device = model_of(own["device"].iloc[0])
        cost = cost_of_cell(cell, scale, device_model(device), rows) if device else None
        columns = [
            f"`{cell.name}`",
            experiments.mean_of(row, scale),
            f"± {spread:.1f} ({min(map(len, sets))})",
            "not found" if row["source"] == "not found" else f"{row['published']:.1f}",
            f"{cost.seconds / 3600:.1f}" if cost is not None and cost.measured else "missing",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


DRAWN = {"results": table, "cells": cells, "gains": gains, "parts": parts, "headline": headline}


def with_tables(page: str) -> str:
    """The page with its tables up to date."""
    return PLACE.sub(lambda place: f"{place[1]}\n{DRAWN[place[2]](place[3])}\n{place[4]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))
