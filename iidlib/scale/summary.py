"""Summary of a sweep as a notebook: its table, its accuracies against each parameter, and its failures."""

import logging
import subprocess
import sys
from pathlib import Path

from iidlib.errors import first_line
from iidlib.files import atomic_write

__all__ = ["write_html", "write_summary"]

logger = logging.getLogger("iidlib")

_CELLS = (
    ("markdown", "# Summary of a sweep\n\nThis notebook was written by `iid sweep`; execute it again when the sweep "
                 "has continued."),
    ("parameters", 'folder = "."'),
    ("code", """%matplotlib inline
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from iidlib.experiments.sweep import OWN_COLUMNS

table = pd.read_csv(Path(folder) / "sweep.csv", keep_default_na=False)
points = table.drop_duplicates("point")
parameters = [name for name in list(table)[1 : list(table).index("status")] if table[name].astype(str).nunique() > 1]
points["status"].value_counts().rename("points").to_frame()"""),
    ("markdown", "## Points"),
    ("code", """done = table[table["status"] == "done"].copy()
if "accuracy" in done:
    done["accuracy"] = pd.to_numeric(done["accuracy"], errors="coerce")
    done["label"] = done["label"] if "label" in done else "accuracy"
    keys = [*parameters, "label"]
    scores = done.dropna(subset="accuracy").groupby(keys, sort=False)["accuracy"].agg(["mean", "std", "count"])
    display(scores.round(2))
else:
    display(points[["point", *parameters, "status", "seconds"]].set_index("point"))"""),
    ("markdown", "## Accuracy against each parameter\n\nEach point is one evaluated network; lines join the means."),
    ("code", """for name in parameters if "accuracy" in done and len(done) else []:
    drawn = done.assign(**{name: done[name].astype(str)})
    sns.pointplot(drawn, x=name, y="accuracy", hue="label", errorbar=None, linewidth=1)
    sns.stripplot(drawn, x=name, y="accuracy", hue="label", alpha=0.5, legend=False)
    plt.ylabel("test accuracy (%)")
    plt.show()"""),
    ("markdown", "## Failures"),
    ("code", """failed = points[points["status"] == "failed"]
for row in failed.to_dict("records"):
    print(f"point {row['point']}, {row['notebook']}: {row['error']}")
if failed.empty:
    print("none")"""),
)  # fmt: skip


def write_summary(folder: Path) -> None:
    """Writes ``summary.ipynb`` into a sweep's folder, and a page of it; one warning says why if that fails."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    made = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    for kind, text in _CELLS:
        if kind == "markdown":
            made.cells.append(new_markdown_cell(text))
        else:
            made.cells.append(new_code_cell(text, metadata={"tags": ["parameters"] if kind == "parameters" else []}))
    path = folder / "summary.ipynb"
    try:
        atomic_write(path, nbformat.writes(made))
        options = ["-r", "folder", str(folder), "--kernel", "python3", "--cwd", str(folder), "--no-progress-bar"]
        command = [sys.executable, "-m", "papermill", str(path), str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:  # the table is there already
            logger.warning("no summary of the sweep: %s", done.stderr.strip().rpartition("\n")[2])
        write_html(path)
    except OSError as error:
        logger.warning("no summary of the sweep: %s", first_line(error))


def write_html(notebook: Path) -> None:
    """Writes a notebook as a page beside it; nothing without the notebook, or without nbconvert."""
    try:
        from nbconvert import HTMLExporter
    except ImportError:
        return
    if notebook.is_file():
        exporter = HTMLExporter()
        exporter.log = logging.getLogger("iidlib.html")  # it would warn of figures without alternative text
        exporter.log.setLevel(logging.ERROR)
        try:
            page, _ = exporter.from_filename(str(notebook))
        except Exception as error:  # of many kinds, for a notebook that was being written when it was stopped
            logger.warning("no page of %s: %s", notebook, first_line(error))
            return
        atomic_write(notebook.with_suffix(".html"), page)
