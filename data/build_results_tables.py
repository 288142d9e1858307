"""Writes the tables of results on the book's front page and in README anew, from the measured rows.

python data/build_results_tables.py            # a test compares both with what this would write
"""

import re
import sys
from pathlib import Path

from iidlib import experiments

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "book" / "intro.md", ROOT / "README.md")
PLACE = re.compile(
    r"(<!-- results at (\w+): begin \(python data/build_results_tables.py\) -->\n).*?(\n<!-- end -->)", re.S
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


def with_tables(page: str) -> str:
    """A page with its tables as they should be."""
    return PLACE.sub(lambda place: f"{place[1]}\n{table(place[2])}\n{place[3]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))
    sys.exit()
