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
# Seeds, weights and data sets make dozens, and dozens by hand end in a folder of files whose settings nobody remembers.
# The chapters of this book are experiments with parameters; here you run them in batches, and fill the cells of the paper's tables by name.
#
# **What you will learn**
#
# 1. how a chapter becomes a run with other parameters;
# 2. to describe a grid in a file and execute it, a few notebooks at a time;
# 3. to read the table that comes out, failures included;
# 4. to let `iid reproduce` choose what to run next, within a budget;
# 5. what happens when a batch fails or is interrupted.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`01_quickstart` | necessary | the chapter that is run in batches here |
# | {doc}`07_results` | helpful | cells, scales, and what counts as measured |
# | YAML | helpful | two levels of it |
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
# papermill executes a copy of the notebook with another cell put behind it, in which some of them have other values:
#
# ```console
# $ papermill book/01_quickstart.ipynb seed3.ipynb -p seeds "[3]" -p scale laptop
# ```
#
# That the cell holds literals only is a rule with a reason: papermill puts its cell *behind* it, so that anything computed from a parameter in the same cell would still have the old value.
#
# What a chapter can be given, it says itself:

# %%
chapter = experiments.results_dir().parents[1] / "book" / "01_quickstart.ipynb"
declared = check_parameters(chapter, {})
pd.Series(declared, name="default").to_frame()

# %% [markdown]
# papermill only warns about a name that the notebook does not have, and runs the defaults: an hour later you own a result of something else.
# So a sweep checks names and values before anything starts, and the line after a chapter's imports, `take_parameters`, does the same where papermill is called by hand:

# %%
try:
    check_parameters(chapter, {"icp": 10})
except InputError as error:
    print(error)

# %% [markdown]
# ## A grid
#
# A grid is a file: the notebook, the parameters to vary, and those that stay.
# `product` makes every combination; `zip` walks lists side by side.
# The file is worth keeping beside its results: it is the shortest complete description of the experiment, and the command that repeats it is one line.

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
# Four points, each an execution of the whole chapter with a folder of its own.
# From a terminal this is `iid sweep weights.yaml --workers 2`; from Python it is the same function.
# Two workers are two notebooks at a time, and each is given its share of the cores: more would only get in each other's way.

# %% tags=["nbval-ignore-output"]
ended = run_sweep(sweep, folder / "out", workers=2)
ended[["point", "ipc", "seeds", "status", "seconds", "notebook"]]

# %%
assert set(ended["status"]) == {"done"} and len(ended) == 4

# %% [markdown]
# The chapter leaves a table of scores in the folder of its point.
# The sweep puts the four together in `sweep.csv`, with the parameters of each point in front; from here on it is a data frame like any other:

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
# They are reports that need no writing: the text explains the experiment, the first cell says what was asked, the figures show what came out.
# When a number looks odd, open its notebook.
# And every distillation has left its run, with its settings, the versions it ran under and the loss of each logged iteration:

# %% tags=["nbval-ignore-output"]
runs = runs_frame(folder / "out")
print(len(runs), "evaluated networks; some of what is known of each:")
runs[["method", "ipc", "seed", "iterations", "network", "accuracy"]].head(4)

# %%
assert {"dm", "dm-cm"} == set(runs["method"]) and set(runs["ipc"]) == {1, 2}

# %% [markdown]
# ## When something fails
#
# A point that fails does not take the others with it.
# That sounds obvious and is what most shell scripts get wrong, in one of two ways: they stop at the first failure and waste the night, or they go on and leave no trace of it.
#
# Its row says so, its notebook stops at the cell that failed, and the sweep ends with a status that a script can see.
# Say that the images are not where they should be:

# %% tags=["nbval-ignore-output"]
text = grid.read_text().replace("seeds: [[0], [1]]", "dataset: ['folder:gone']")
(folder / "wrong.yaml").write_text(text.replace("ipc: [1, 2]", "ipc: [1]"))
failed = run_sweep(load_grid(folder / "wrong.yaml"), folder / "wrong")
print(failed["status"].iloc[0], "-", failed["error"].iloc[0][:100])

# %%
assert failed["status"].tolist() == ["failed"]

# %% [markdown]
# A sweep that is interrupted keeps the points that are done, in `sweep.csv` and in their folders.
# It does not write into a folder that holds something: start it again with another `--out`, and with the points that are missing.
#
# ## By name
#
# For the tables and figures of the paper {cite:p}`deng2024iid` you need no grid.
# `iid reproduce` knows their cells, and which of them have rows; the rest it runs in the order of worth, every cell once before any cell twice.

# %%
for name, one in experiments.EXPERIMENTS.items():
    print(f"{name:14} {one.title}")

# %% [markdown]
# The order matters when time is short.
# A single seed of every cell shows the shape of a table, and where it is worth looking closer; ten seeds of the first cell show nothing but the first cell.
#
# A job is a command that you could have typed.
# These are the first of an experiment whose rows are not there yet, here asked for in an empty folder:

# %% tags=["nbval-ignore-output"]
place = {"folder": Path("results"), "runs": Path("runs")}
kept_whole = {"subsequent_indent": "    ", "break_on_hyphens": False}
todo = jobs("ablation", scale=scale, seeds=3, **place)
print(len(todo), "runs; the first three:")
for job in todo[:3]:
    print(textwrap.fill(str(job), 80, **kept_whole))
assert all(job.command[0] == "distill" for job in todo)

# %% [markdown]
# They share their seeds across methods, so that what is run last can be compared in pairs with what was run first.
#
# With a budget the command stops cleanly when time is up: the run in progress writes a checkpoint, and the same command goes on from there.
#
# ```console
# $ iid reproduce ablation --scale laptop --seeds 3 --budget 8h
# ```
#
# The budget is not a promise about the end of a cell.
# What is cut is resumed, at the iteration where it stopped, so that nothing is lost however short the pieces are.
#
# So a night's worth of work needs nobody awake, and a machine that is lent for half an hour is used for half an hour.
# Rows are appended to `data/results`, and a row that is there is never measured again.
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
# There is no server to set up and no queue to watch, and a machine that falls out takes nothing with it.
# Give each machine its part (`--only cifar10/ipc10`, or a grid of its own) and a folder of results of its own, and put the tables together afterwards: rows carry everything that identifies them, and a row that is there twice counts once.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# How many points has a product of three pairs of methods, two sizes and five seeds? Write the grid so that all seeds of a point are run by one notebook.
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
# Walk three sizes and three seeds side by side with `zip`. Which points does it run, and which question do they fail to answer?
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
# A grid executes it over their combinations, and the table that comes out says of every point what it was, whether it ended, and what it scored.
# The paper's cells have names, and a command that fills what is missing within a budget, one seed of every cell before a second of any.
#
# ## What's next
#
# {doc}`14_speed` makes each of the runs shorter.
#
# ## References
#
# What is run is the method of {cite:t}`deng2024iid`, on {cite:t}`zhao2023dm` and {cite:t}`zhao2023idm`.
# That comparisons need one protocol and several seeds is the point of {cite:t}`cui2022dcbench`.
