"""Writes the tables of results on the book's front page and in README anew, from the measured rows.

python data/build_results_tables.py            # a test compares both with what this would write
"""

import re
from pathlib import Path

import pandas as pd

from iidlib import experiments
from iidlib.evaluation import paired_gains

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "book" / "intro.md", ROOT / "README.md")
PAIRS = {
    "laptop": (
        ("dm", "dm-cc"), ("dm", "dm-cm"), ("dm", "iid-dm"), ("dm", "idm"),
        ("idm", "idm-cc"), ("idm", "idm-cm"), ("idm", "iid-idm"),
    ),
    "tour": (("random-mosaic", "dm"), ("dm", "idm"), ("random-mosaic", "idm"), ("idm", "iid-idm")),
}  # fmt: skip
PLACE = re.compile(
    r"(<!-- (results|gains) at (\w+): begin \(python data/build_results_tables.py\) -->\n).*?(\n<!-- end -->)", re.S
)
METHODS = {
    "random": "random real images",
    "random-mosaic": "random mosaics of four",
    "dm": "DM",
    "iid-dm": "IID on DM",
    "idm": "IDM",
    "iid-idm": "IID on IDM",
}


def table(scale: str) -> str:
    """CIFAR-10 at 1 and 10 images a class at a scale; published beside ours unless that is of cifar10-mini."""
    beside = scale != "tour"
    cells = experiments.table("main")
    cells = cells[cells["dataset"] == "cifar10"].set_index(["method", "ipc"])
    heads = ["set"]
    for ipc in (1, 10):
        heads += [f"IPC {ipc}, ours", "published"] if beside else [f"IPC {ipc}"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for method, name in METHODS.items():
        parts = []
        for ipc in (1, 10):
            row = cells.loc[method, ipc]
            parts.append(experiments.mean_of(row, scale) or "missing")
            if beside:
                parts.append("not found" if row["source"] == "not found" else f"{row['published']:.1f}")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def gains(scale: str) -> str:
    """Paired differences of methods at a scale, in points, with their intervals over seeds."""
    rows, columns = experiments.all_rows(), []
    for ipc in (1, 10):
        cells = [
            experiments.Cell("cifar10", method, ipc) for method in sorted({m for pair in PAIRS[scale] for m in pair})
        ]
        found = [experiments.measured(cell, scale, rows).reset_index().assign(method=cell.method) for cell in cells]
        pairs = paired_gains(pd.concat(found, ignore_index=True), PAIRS[scale])
        columns.append([claim(**pair) for pair in pairs.to_dict("records")])
    lines = ["| difference | IPC 1 | IPC 10 |", "| --- | --- | --- |"]
    for (base, method), *claims in zip(PAIRS[scale], *columns, strict=True):
        lines.append(f"| `{method}` over `{base}` | {' | '.join(claims)} |")
    return "\n".join(lines)


def claim(*, seeds: int, mean: float, low: float, high: float, **_: str) -> str:
    """A paired difference as text."""
    few = f"{seeds} of 3 seeds" if seeds else "missing"
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if seeds >= 3 else few


DRAWN = {"results": table, "gains": gains}


def with_tables(page: str) -> str:
    """A page with its tables as they should be."""
    return PLACE.sub(lambda place: f"{place[1]}\n{DRAWN[place[2]](place[3])}\n{place[4]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))
