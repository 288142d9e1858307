# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batch runs
#
# One run is an anecdote.
# Seeds, weights and datasets make dozens, and dozens by hand end in a folder of files whose settings nobody remembers.
# The chapters of this book are experiments with parameters; here you run them in batches, and fill the cells of the paper's tables by name.
#
# **What you will learn**
#
# 1. how a chapter becomes a run with other parameters;
# 2. to describe a grid in a file and execute it, a few notebooks at a time;
# 3. to read the resulting table, failures included;
# 4. to let `iid reproduce` choose what to run next, within a budget;
# 5. what happens when a batch fails or is interrupted.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`01_quickstart` | necessary | the chapter that is run in batches here |
# | {doc}`07_results` | helpful | cells, scales, and what counts as measured |
# | YAML | helpful | two levels are enough |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci`, `tour`, `laptop`, `paper` | any | about 1, as the chapter runs its batch at scale `ci` |

# %% tags=["parameters"]
scale = "tour"  # of the cells that are listed; the batch itself is at scale ci

# %%
import tempfile
import textwrap
from pathlib import Path

import pandas as pd

from iidlib import experiments, plots
from iidlib.errors import InputError
from iidlib.experiments import check_parameters, jobs, load_grid, run_sweep
from iidlib.runs import runs_frame

experiments.take_parameters(globals(), "scale")

# %% [markdown]
# ## A chapter is a function
#
# The second cell of every chapter is tagged `parameters` and holds literals only.
# papermill executes a copy of the notebook with another cell inserted after it, in which some of them have other values:
#
# ```console
# $ papermill book/01_quickstart.ipynb seed3.ipynb -p seeds "[3]" -p scale laptop
# ```
#
# There is a reason why the cell holds literals only: papermill inserts its cell *after* it, so anything computed from a parameter in the same cell would still have the old value.
#
# Each chapter declares the parameters that it takes:

# %%
chapter = experiments.results_dir().parents[1] / "book" / "01_quickstart.ipynb"
declared = check_parameters(chapter, {})
pd.Series(declared, name="default").to_frame()

# %% [markdown]
# papermill only warns about a name that the notebook does not have, and runs with the defaults: an hour later you have the result of a different experiment.
# So a sweep checks names and values before anything starts, and the line after a chapter's imports, `take_parameters`, does the same when papermill is called by hand.
# A typo then costs a second instead of an hour:

# %%
try:
    check_parameters(chapter, {"icp": 10})
except InputError as error:
    print(error)

# %% [markdown]
# ## A grid
#
# A grid is a file: the notebook, the parameters to vary, and those that stay.
# `product` makes every combination; `zip` pairs the lists entry by entry.
# Keep the file with its results: it is the shortest complete description of the experiment, and one line repeats it.

# %%
folder = Path(tempfile.mkdtemp())
grid = folder / "weights.yaml"
grid.write_text(f"""
notebook: {chapter}
product:
  ipc: [1, 2]
  seeds: [[0], [1]]
fixed:
  scale: ci
  methods: [dm, dm-cm]
""")
sweep = load_grid(grid)
pd.DataFrame(sweep.points)

# %% [markdown]
# A list inside a list, as for `seeds`, is one value: the chapter takes a list of seeds, and each point here has a list of one.
#
# There are four points, each an execution of the whole chapter with its own folder.
# In a terminal the command is `iid sweep weights.yaml --workers 2`; in Python it is the same function.
# Two workers run two notebooks at a time, and each gets its share of the cores: more would only get in each other's way.

# %% tags=["nbval-ignore-output"]
ended = run_sweep(sweep, folder / "out", workers=2)
ended[["point", "ipc", "seeds", "status", "seconds", "notebook"]]

# %%
assert set(ended["status"]) == {"done"} and len(ended) == 4

# %% [markdown]
# The chapter saves a table of scores in the folder of its point.
# The sweep combines the four in `sweep.csv`, with the parameters of each point in front; from here on it is an ordinary data frame:

# %% tags=["nbval-ignore-output"]
table = pd.read_csv(folder / "out" / "sweep.csv")
scored = table[table["label"] == "dm-cm"]
means = scored.groupby(["ipc", "seed"])["accuracy"].mean().unstack().round(1)
means

# %%
assert means.shape == (2, 2) and means.notna().all().all()
assert {"random", "dm", "dm-cm"} <= set(table["label"])

# %% [markdown]
# The executed notebooks are there as well, one for each point, with all their figures.
# They are reports that nobody has to write: the text explains the experiment, the first cell gives its parameters, and the figures show the outcome.
# When a number looks odd, open its notebook.
# Every distillation has also saved its run, with its settings, the versions it ran under and the loss of each logged iteration:

# %% tags=["nbval-ignore-output"]
runs = runs_frame(folder / "out")
print(len(runs), "evaluated networks; some of the columns:")
runs[["method", "ipc", "seed", "iterations", "network", "accuracy"]].head(4)

# %%
assert {"dm", "dm-cm"} == set(runs["method"]) and set(runs["ipc"]) == {1, 2}

# %% [markdown]
# ## When something fails
#
# A point that fails does not take the others with it.
# That sounds obvious, but most shell scripts get it wrong in one of two ways: they stop at the first failure and waste the night, or they continue and leave no trace of it.
#
# Here its row records the failure, its notebook stops at the cell that failed, and the sweep ends with a status that a script can check.
# Suppose that the images are not where they should be:

# %% tags=["nbval-ignore-output"]
text = grid.read_text().replace("seeds: [[0], [1]]", "dataset: ['folder:gone']")
(folder / "wrong.yaml").write_text(text.replace("ipc: [1, 2]", "ipc: [1]"))
failed = run_sweep(load_grid(folder / "wrong.yaml"), folder / "wrong")
print(failed["status"].iloc[0], "-", failed["error"].iloc[0][:100])

# %%
assert failed["status"].tolist() == ["failed"]

# %% [markdown]
# A sweep that is interrupted keeps the finished points, in `sweep.csv` and in their folders.
# It does not write into a folder that is not empty: start it again with another `--out`, and with the missing points.
#
# ## By name
#
# For the tables and figures of the paper {cite:p}`deng2024iid` you need no grid.
# `iid reproduce` knows their cells, and which of them have rows; it runs the rest, the most informative first, every cell once before any cell twice.
# These are the experiments, each a list of cells:

# %%
for name, one in experiments.EXPERIMENTS.items():
    print(f"{name:14} {one.title}")

# %% [markdown]
# The order matters when time is short.
# A single seed of every cell shows the shape of a table, and where it is worth looking closer; ten seeds of the first cell show nothing but the first cell.
#
# A job is a command that you could have typed.
# These are the first jobs of an experiment that has no rows yet, since we name an empty folder:

# %% tags=["nbval-ignore-output"]
paths = {"folder": Path("results"), "runs": Path("runs")}
wrapping = {"subsequent_indent": "    ", "break_on_hyphens": False}
todo = jobs("ablation", scale=scale, seeds=3, **paths)
print(len(todo), "runs; the first three:")
for job in todo[:3]:
    print(textwrap.fill(str(job), 80, **wrapping))
assert all(job.command[0] == "distill" for job in todo)

# %% [markdown]
# They share their seeds across methods, so the last runs can be compared in pairs with the first.
#
# With a budget the command stops cleanly when time is up: the run in progress writes a checkpoint, and the same command resumes from there.
#
# ```console
# $ iid reproduce ablation --scale laptop --seeds 3 --budget 8h
# ```
#
# The budget does not wait for the end of a cell.
# An interrupted run is resumed at the iteration where it stopped, so nothing is lost, however short the pieces are.
#
# So a night's worth of work needs nobody awake, and a machine that you have for half an hour is used for half an hour.
# Rows are appended to `data/results`, and no row is ever measured twice.
#
# How much of each experiment has been measured so far, at any scale?

# %%
rows = []
for name in experiments.EXPERIMENTS:
    cells = experiments.table(name)
    for size in ("tour", "laptop", "paper"):
        done, count = (cells[f"{size}_seeds"] > 0).sum(), len(cells)
        row = {"label": name, "series": size, "done": done, "cells": count}
        rows.append(row | {"accuracy": 100 * done / count})
measured = pd.DataFrame(rows)

# %%
ax = plots.cell_points(measured)
ax.set(xlabel="cells with at least one seed (%)", xlim=(-3, 103))
full = measured.groupby("series")[["done", "cells"]].sum()
counts = full.itertuples()
finding = ", ".join(f"{size} {done} of {cells}" for size, done, cells in counts)
plots.show(ax, f"Cells with at least one seed: {finding}.")

# %% [markdown]
# ## More than one machine
#
# Points and cells do not depend on each other.
# There is no server to set up and no queue to watch, and a machine that fails takes nothing with it.
# Give each machine its part (`--only cifar10/ipc10`, or its own grid) and its own folder of results, and merge the tables afterwards: rows carry everything that identifies them, and a duplicate row counts once.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# How many points does a product of three pairs of methods, two sizes and five seeds have? Write the grid so that one notebook runs all seeds of a point.
# ```

# %% tags=["hide-cell"]
together = f"""
notebook: {chapter}
product:
  methods: [[dm, dm-cc], [dm, dm-cm], [dm, iid-dm]]
  ipc: [1, 10]
fixed:
  seeds: [0, 1, 2, 3, 4]
"""
(folder / "seeds.yaml").write_text(together)
print(3 * 2 * 5, "points, or", len(load_grid(folder / "seeds.yaml").points))

# %% [markdown]
# ```{admonition} Exercise 2
# Combine three sizes and three seeds pairwise with `zip`. Which points does it run, and which question do they fail to answer?
# ```

# %% tags=["hide-cell"]
text = f"notebook: {chapter}\nzip:\n  ipc: [1, 5, 10]\n  seeds: [[0], [1], [2]]\n"
(folder / "zip.yaml").write_text(text)
print(*load_grid(folder / "zip.yaml").points, sep="\n")
print("each size has another seed: size and luck cannot be told apart")

# %% [markdown]
# ## Summary
#
# A chapter is a function of its parameters cell.
# A grid executes it over their combinations, and the resulting table says for every point what it was, whether it finished, and what it scored.
# A point that fails or is interrupted costs only itself: finished points are kept.
# The paper's cells have names, and one command fills the missing ones within a budget, one seed of every cell before a second of any.
#
# ## What's next
#
# {doc}`14_speed` makes each of the runs shorter.
#
# ## References
#
# The method is due to {cite:t}`deng2024iid`, on top of {cite:t}`zhao2023dm` and {cite:t}`zhao2023idm`.
# {cite:t}`cui2022dcbench` argue that comparisons need one protocol and several seeds.
