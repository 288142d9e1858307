"""Executes the book's chapters in place, one after the other, and records the time and memory each one takes.

    python data/scripts/measure_chapters.py [NAME ...]

Without names it executes all of them. The outputs are those to commit. The times go to ``results/chapters.csv``, the
source of the book's page "Environment and run times". Run it on an otherwise idle machine.
"""

import csv
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "data" / "results" / "chapters.csv"
COLUMNS = ("chapter", "minutes", "peak MiB", "cores", "machine", "date")


def measure(script: Path) -> dict[str, str]:
    """Executes a chapter, writes the notebook next to its script, and returns a row of the table."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", "--execute", script.name]
    process = subprocess.Popen([*command, "-o", f"{script.stem}.ipynb"], cwd=script.parent)
    _, status, used = os.wait4(process.pid, 0)  # its own usage and that of the kernel it waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script.name} failed, see above")
    minutes = (time.perf_counter() - started) / 60
    return {
        "chapter": script.stem,
        "minutes": f"{minutes:.1f}",
        "peak MiB": f"{used.ru_maxrss // 1024}",
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(names: list[str]) -> None:
    """Measures chapters and updates their rows."""
    scripts = sorted((ROOT / "book").glob("[0-9][0-9]_*.py"))
    if names:
        scripts = [script for script in scripts if script.stem in names]
    rows = {}
    if TABLE.exists():
        with TABLE.open(newline="") as file:
            rows = {row["chapter"]: row for row in csv.DictReader(file)}
    for script in scripts:
        rows[script.stem] = measure(script)
        print(rows[script.stem], flush=True)
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
