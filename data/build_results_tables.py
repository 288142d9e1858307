"""Writes the table of results on the book's front page and in README anew, from the measured rows.

python data/build_results_tables.py            # a test compares both with what this would write
"""

import sys
from pathlib import Path

from iidlib import experiments

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "book" / "intro.md", ROOT / "README.md")
BEGIN, END = "<!-- results: begin (python data/build_results_tables.py) -->", "<!-- results: end -->"
METHODS = {
    "random": "random real images",
    "random-mosaic": "random mosaics of four",
    "dm": "DM",
    "iid-dm": "IID on DM",
    "idm": "IDM",
    "iid-idm": "IID on IDM",
}


def table() -> str:
    """CIFAR-10 at 1 and 10 images a class, published beside ours at scale laptop."""
    cells = experiments.table("main")
    cells = cells[cells["dataset"] == "cifar10"].set_index(["method", "ipc"])
    lines = ["| set | IPC 1, ours | published | IPC 10, ours | published |", "| --- | --- | --- | --- | --- |"]
    for method, name in METHODS.items():
        parts = []
        for ipc in (1, 10):
            row = cells.loc[method, ipc]
            seeds = int(row["laptop_seeds"])
            spread = f" ± {row['laptop_std']:.1f}" if seeds > 1 else ""
            parts.append(f"{row['laptop_mean']:.1f}{spread} ({seeds})" if seeds else "missing")
            parts.append("not found" if row["source"] == "not found" else f"{row['published']:.1f}")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with the table as it should be."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_table(path.read_text()))
    sys.exit()
