"""Writes the tables of results on the book's front page and in README anew, from the measured rows.

python data/build_results_tables.py            # a test compares both with what this would write
"""

import re
import sys
from pathlib import Path

import pandas as pd

from iidlib import experiments
from iidlib.evaluation import paired_interval

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
            seeds = int(row[f"{scale}_seeds"])
            spread = f" ± {row[f'{scale}_std']:.1f}" if seeds > 1 else ""
            parts.append(f"{row[f'{scale}_mean']:.1f}{spread} ({seeds})" if seeds else "missing")
            if beside:
                parts.append("not found" if row["source"] == "not found" else f"{row['published']:.1f}")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def gains(scale: str) -> str:
    """Paired differences of methods at a scale, in points, with their intervals over seeds."""
    rows = experiments.all_rows()
    lines = ["| difference | IPC 1 | IPC 10 |", "| --- | --- | --- |"]
    for base, method in PAIRS[scale]:
        parts = []
        for ipc in (1, 10):
            of_both = [
                experiments.measured(experiments.Cell("cifar10", one, ipc), scale, rows) for one in (base, method)
            ]
            pairs = pd.concat(of_both, axis=1).dropna()
            text = f"{len(pairs)} of 3 seeds" if len(pairs) else "missing"
            if len(pairs) >= 3:
                text = "{:.1f} ({:.1f} to {:.1f})".format(*paired_interval(*pairs.to_numpy().T.tolist()))
            parts.append(text)
        lines.append(f"| `{method}` over `{base}` | {' | '.join(parts)} |")
    return "\n".join(lines)


DRAWN = {"results": table, "gains": gains}


def with_tables(page: str) -> str:
    """A page with its tables as they should be."""
    return PLACE.sub(lambda place: f"{place[1]}\n{DRAWN[place[2]](place[3])}\n{place[4]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))
    sys.exit()
