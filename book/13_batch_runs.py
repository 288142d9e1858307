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
# # Batches and clusters
#
# One run is an anecdote.
# Seeds, weights and datasets make dozens, and dozens by hand end in a folder of files whose settings nobody remembers.
# And one day a single run is too large: a thousand classes do not fit one GPU in an afternoon.
# Well-kept tools solve both: [Dask](https://docs.dask.org) for many runs, [torchrun](https://docs.pytorch.org/docs/stable/elastic/run.html) for one large run. This chapter uses them.
#
# **What you will learn**
#
# 1. to turn a notebook into a function of its parameters, and to run it over a grid with two workers;
# 2. what remains after a failure, a killed worker, or Ctrl-C;
# 3. to move the same grid to other machines, and to the queue of a cluster;
# 4. to let `iid reproduce` choose what to run next, within a budget;
# 5. to share one distillation between GPUs, and what a model says about 64 of them.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`05_covariance_matching` | necessary | the weight that is varied here |
# | {doc}`07_results` | helpful | cells, scales, and what counts as measured |
# | YAML | helpful | two levels are enough |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci`, `tour`, `laptop`, `paper` | any | about 4, as the chapter runs its batch at scale `ci` |

# %% tags=["parameters"]
scale = "tour"  # of the cells that are listed; the batch itself is at scale ci

# %%
import tempfile
import textwrap
from pathlib import Path

import jupytext
import pandas as pd

from iidlib import experiments, plots, run_sweep, sweep_status
from iidlib.errors import InputError
from iidlib.experiments import jobs, load_grid, rows_of

experiments.take_parameters(globals(), "scale")

# %% [markdown]
# ## A notebook is a function
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
# Any notebook with such a cell will do.
# Here is one that distils with a weight of covariance matching, evaluates the set, and leaves two things in the folder `out`, which each execution receives: a run, and a table of scores.

# %%
folder = Path(tempfile.mkdtemp())
text = """# %% tags=["parameters"]
weight = 0.01  # of covariance matching
seed = 0
scale = "ci"
out = ""

# %%
from pathlib import Path

from iidlib import distill, evaluate, load_dataset, preset

changes = {"match.cm": weight, "seed": seed, "iterations": 50, "eval.epochs": 100}
config = preset("dm-cm", "cifar10-mini", 10, scale, changes)
run = Path(out, "run")
made = distill(config, out=run, resume=run.exists())
scores = evaluate(made.synthetic, load_dataset("cifar10-mini"), protocol=config.eval)
scores.to_csv(Path(out, "scores.csv"), index=False)
"""
notebook = jupytext.reads(text, "py:percent")
python = {"name": "python3", "display_name": "Python 3", "language": "python"}
notebook.metadata["kernelspec"] = python
jupytext.write(notebook, folder / "weight.ipynb")

# %% [markdown]
# The line with `resume` deserves a second look: an execution that was interrupted finds its own folder again, and its distillation resumes from the last checkpoint.
#
# ## A grid
#
# A grid is a file: the notebook, the parameters to vary, and those that stay.
# `product` makes every combination, `zip` pairs its lists entry by entry, and both may be nested.
# Each combination is a *point*.
# Values are a list or a range, which includes its end; weights are best spaced evenly in their logarithm, and `log10: [-3, 1]` gives their exponents.
# Keep the file with its results: it is the shortest complete description of the experiment, and one line repeats it.

# %%
grid = folder / "weights.yaml"
grid.write_text("""
notebook: weight.ipynb
product:
  weight: {log10: [-3, 1], num: 3}
  seed: {from: 0, to: 1, step: 1}
fixed:
  scale: ci
""")
sweep = load_grid(grid)
pd.DataFrame(sweep.points)

# %% [markdown]
# papermill only warns about a name that the notebook does not have, and runs with the defaults: an hour later you have the result of a different experiment.
# A grid is checked before anything starts, names and types both, and the message names the point:

# %%
try:
    typo = grid.read_text().replace("weight: {", "wieght: {")
    (folder / "typo.yaml").write_text(typo)
    load_grid(folder / "typo.yaml")
except InputError as error:
    print(str(error).replace(str(folder), "..."))

# %% [markdown]
# ## Two workers
#
# In a terminal the command is `iid sweep weights.yaml --workers 2`, and with `--dry-run` it only lists the points, for chapters with measured rows also the expected time.
# In Python it is a function.
# It starts two Dask workers, which are processes, gives each one point at a time, and as many threads as its share of the cores: with more threads than cores they would slow each other down.

# %% tags=["nbval-ignore-output"]
ended = run_sweep(sweep, folder / "out", workers=2)
ended[["point", "weight", "seed", "status", "seconds", "notebook"]]

# %%
assert set(ended["status"]) == {"done"} and len(ended) == 6

# %% [markdown]
# Every point has left an executed notebook (and the same as a page), its run, and its scores.
# The sweep combines the scores in `sweep.csv`, with the parameters of each point in front, and writes a notebook about itself, `summary.ipynb`, with the table, a plot for each parameter, and the failures.
# From here on it is an ordinary data frame:

# %% tags=["nbval-ignore-output"]
table = pd.read_csv(folder / "out" / "sweep.csv")
scores = table.groupby(["weight", "seed"])["accuracy"].mean().reset_index()
scores = scores.rename(columns={"weight": "value"}).assign(label="dm-cm")
ax = plots.setting_curve(scores, setting="weight of covariance matching")
means = scores.groupby("value")["accuracy"].mean()
finding = ", ".join(f"{mean:.1f} % at {weight:g}" for weight, mean in means.items())
plots.show(ax, f"Accuracy against the weight (a dot is a seed): {finding}.")

# %%
assert len(scores) == 6 and scores["accuracy"].between(0, 100).all()

# %% [markdown]
# Do not read much into this curve: a network of the scale `ci` is tiny and trains for seconds, and two seeds differ by as much as the weights do, or more.
# With `scale: laptop`, five seeds, and a notebook that does not shorten the run, it is an experiment, and {doc}`08_ablations` shows what such a curve looks like.
#
# ## What can go wrong
#
# A point that fails does not take the others with it.
# That sounds obvious, but most shell scripts get it wrong in one of two ways: they stop at the first failure and waste the night, or they continue and leave no trace of it.
#
# | what happens | what you find |
# | --- | --- |
# | a point fails | its notebook with the error, its row in the table; tried again up to `--retries` times, and by the next call |
# | a worker is killed | only its current point is affected, which another worker takes over: from its last checkpoint if they share a folder, else from its beginning |
# | a point takes more than `--timeout` | it is stopped and marked as failed |
# | the scheduler disappears, or you press Ctrl-C | what is finished is kept; the same command continues |
# | you change the notebook, the parameters or the library | the points concerned are executed again; what they replace is moved to `replaced` |
# | you start the same sweep twice | the second is refused |
#
# That a call continues rests on fingerprints: a point is known by the code of its notebook, its parameters, the files of a `folder:` dataset that it names, and the library.
# So the same call has nothing to do now, and a call with a wrong value fails at that point only:

# %% tags=["nbval-ignore-output"]
again = run_sweep(sweep, folder / "out", workers=2)
assert again["seconds"].equals(ended["seconds"])

wrong = grid.read_text().replace("{log10: [-3, 1], num: 3}", "[-1, 0.1]")
(folder / "wrong.yaml").write_text(wrong.replace("to: 1", "to: 0"))
failed = run_sweep(load_grid(folder / "wrong.yaml"), folder / "wrong", summary=False)
failed[["weight", "status", "error"]]

# %%
assert failed["status"].tolist() == ["failed", "done"]
assert sweep_status(folder / "out")["done"] == 6

# %% [markdown]
# While a sweep runs, its terminal shows one table: what is done, what runs where, what has failed, and the time left.
# Dask's own dashboard is at the address below it.
# From another terminal, `iid sweep runs/sweep-weights --status` says the same.
#
# ## More than one machine
#
# Nothing in the grid says where it runs.
# On machines that reach each other, start a scheduler on one and a worker on each; every worker needs the same version of iidlib and of torch (the command refuses to start otherwise, and a worker that joins later with another gets no work), and the dataset at its own `IID_DATA`:
#
# ```console
# $ dask scheduler                                        # prints its address
# $ dask worker tcp://10.0.0.1:8786 --nthreads 8          # on each machine
# $ iid sweep weights.yaml --scheduler tcp://10.0.0.1:8786
# ```
#
# Workers that share your folder write into it.
# To those that do not, notebook and parameters travel with the task, and the executed notebook, scores and sets travel back; files above 256 MiB stay where they are, with a warning.
#
# A GPU is a resource that a worker offers.
# Start one worker for each, with the GPU that it may see, and ask for one per point:
#
# ```console
# $ CUDA_VISIBLE_DEVICES=0 dask worker tcp://10.0.0.1:8786 --nthreads 4 --resources GPU=1
# $ iid sweep weights.yaml --scheduler tcp://10.0.0.1:8786 --gpus 1
# ```
#
# Where machines are behind a queue such as SLURM, the jobs of the queue are the workers.
# A file describes a job, in the words of [dask-jobqueue](https://jobqueue.dask.org) (`pip install 'iidlib[cluster]'`). Copy `data/clusters/slurm.yaml`, and adapt it:

# %%
root = experiments.results_dir().parents[1]
print((root / "data" / "clusters" / "slurm.yaml").read_text())

# %% [markdown]
# ```console
# $ iid sweep weights.yaml --cluster slurm.yaml --workers 8 --gpus 1
# ```
#
# Here `--workers` is the number of jobs; with `--scheduler` it has no effect, as the workers are there.
# With `--dry-run` the command also prints the script that SLURM would receive.
#
# ## By name
#
# For the tables and figures of the paper {cite:p}`deng2024iid` you need no grid.
# `iid reproduce` knows their entries, which {doc}`07_results` calls cells, and which of them have rows; it runs the rest, the most informative first, every cell once before any cell twice.
# The order matters when time is short: a single seed of every cell shows the shape of a table, ten seeds of the first cell show nothing but the first cell.
#
# A job is a command that you could have typed.
# These are the first jobs of an experiment that has no rows yet, since we name a folder that does not exist:

# %% tags=["nbval-ignore-output"]
paths = {"folder": Path("results"), "runs": Path("runs")}
wrapping = {"subsequent_indent": "    ", "break_on_hyphens": False}
todo = jobs("ablation", scale=scale, seeds=3, **paths)
print(len(todo), "runs; the first three:")
for job in todo[:3]:
    print(textwrap.fill(str(job), 80, **wrapping))
assert all(job.command[0] == "distill" for job in todo)

# %% [markdown]
# Each runs in a process of its own, and `--workers`, `--scheduler` and `--cluster` mean the same as for a sweep.
# With a budget the command stops cleanly when time is up: runs in progress write a checkpoint, and the same command resumes from there.
#
# ```console
# $ iid reproduce ablation --scale laptop --seeds 3 --workers 2 --budget 8h
# ```
#
# So a night's worth of work needs nobody awake, and a machine that you have for half an hour is used for half an hour.
# Rows are appended to `data/results`, and no row is ever measured twice.
# `iid evaluate SET SET ...` hands several sets to workers in the same way.
#
# How many cells of each experiment have been measured so far, with at least one seed?
# A cell may belong to several experiments, and some scales do not have all of them:

# %% tags=["nbval-ignore-output"]
experiments.coverage()

# %% [markdown]
# ## One run on several GPUs
#
# A batch makes a hundred runs faster, but not one of them.
# To speed up one run, its classes are divided among processes: the losses of all methods here are sums over classes, so each process computes the gradient for its own classes, and updates their images.
# Networks and augmentations are drawn from the same random streams everywhere, so an iteration exchanges nothing but a few flags and losses.
# IDM also trains networks: there each process takes a part of every batch, and the gradients are added up.
# At a checkpoint the images are collected, and the first process writes them.
#
# ```console
# $ torchrun --nproc-per-node 8 -m iidlib.cli distill iid-dm --scale paper \
#     --dataset tinyimagenet --ipc 50 --out runs/large
# ```
#
# The result equals that of one process up to the order of additions, which tests check for two and three processes.
# The checkpoint is the same file, so a run may resume with another number of processes, or with one.
# A process that dies ends the run within seconds, and the same command with `--resume` continues it.
# On several machines the same line is started on each, with the options `--nnodes` and `--rdzv-endpoint` of torchrun; that we have not tested.
# `iid evaluate` and `iid experts` share their networks in the same way.
#
# How much faster is it? `iid bench --ranks 2 --device cpu` measures one process and two, each with one thread of the same CPU, for a method with given networks and one that trains its own:

# %%
measurements = rows_of("bench-ranks")
measurements[["method", "classes", "ipc", "ranks", "seconds", "ratio"]].round(2)

# %% [markdown]
# We have no machine with more, so what follows is a model, not a measurement.
# It takes the seconds of an iteration on one GPU from the counted operations (as `iid reproduce --list --device h100` does), divides them by the processes except for a share that each repeats, which is fitted to the rows above, and adds the bytes that travel at checkpoints.
# No process has less than a class, and no iteration is faster than its start.
# ImageNet is taken at 224 pixels, with the settings of TinyImageNet, as if its images did fit; hours are those of the iterations, without pool and evaluation, and right within a factor of two at best:
#
# $$t(n) = t_1\left(r + \frac{1-r}{n}\right) + t_\mathrm{gather}(n)$$

# %%
predicted = pd.DataFrame(experiments.modelled(measurements, [1, 8, 64]))
predicted["label"] = predicted["dataset"] + ", IPC " + predicted["ipc"].astype(str)
predicted["GPUs"] = predicted["ranks"]
shown = predicted.pivot(index="label", columns="GPUs", values="hours").round(1)
repeated = predicted["repeated"].iloc[0]
print(f"hours, where every process repeats {repeated:.1%} of an iteration")
shown

# %%
points = predicted.rename(columns={"dataset": "axis", "ranks": "size"})
points["side"] = "IPC " + points["ipc"].astype(str)
panels = plots.cost_curves(points, axes=dict.fromkeys(points["axis"], "H100 GPUs"))
gains = []
parts = predicted.groupby("dataset", sort=False)
for ax, (name, part) in zip(panels, parts, strict=True):
    ax.set(title=name, ylim=predicted["seconds"].agg(["min", "max"]) * [0.3, 2])
    for one in part[part["ranks"] == 1]["seconds"]:
        ax.plot([1, 64], [one, one / 64], ":", color="0.5", zorder=1)
    seconds = part.groupby("ranks")["seconds"].sum()
    gains.append(f"{seconds[1] / seconds[64]:.0f} times as fast on {name}")
finding = f"by the model 64 GPUs are {' and '.join(gains)}; dotted: 64 times"
plots.show(panels, f"Seconds of an iteration against the number of GPUs: {finding}.")

# %% [markdown]
# How far to trust it? The share rests on one pair of timings on a CPU, and one percent more or less in the seconds moves it by two points.
# That hardly matters for eight processes, but a share of one percent alone holds 64 GPUs at 39 times the speed of one, since $1 / (0.01 + 0.99 / 64) = 39$.
#
# Memory is another matter.
# Each process holds a copy of all synthetic images, gradient and momentum of its own classes, and today also all real images:

# %%
columns = ["label", "ranks", "images_gib", "real_gib"]
predicted[predicted["ranks"] > 1][columns].round(1).set_index("label")

# %% [markdown]
# The last column is the limit of the present code: real images of ImageNet at 224 pixels do not fit a GPU, however many there are.
# TinyImageNet fits with room to spare.
#
# ## When to use which
#
# | you have | use |
# | --- | --- |
# | many runs, one machine | `iid sweep` or `iid reproduce` with `--workers` |
# | many runs, several machines | the same with `--scheduler` |
# | many runs, a cluster with a queue | the same with `--cluster` |
# | one run that takes days, several GPUs | `torchrun` |
# | one run that takes minutes | nothing: starting processes would take longer |
#
# Combining the two is rarely worth it: as long as there are more runs than GPUs, one GPU per run wastes nothing on exchange.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# How many points does a product of three weights and five seeds have? Write the grid so that two settings, a weight and a scale, change together, for five seeds each.
# ```

# %% tags=["hide-cell"]
together = """
notebook: weight.ipynb
product:
  seed: {from: 0, to: 4, step: 1}
  zip:
    weight: [0.01, 0.1]
    scale: [ci, tour]
"""
(folder / "seeds.yaml").write_text(together)
print(3 * 5, "points, or", len(load_grid(folder / "seeds.yaml").points))

# %% [markdown]
# ```{admonition} Exercise 2
# Combine three weights and three seeds pairwise with `zip`. Which points does it run, and which question do they fail to answer?
# ```

# %% tags=["hide-cell"]
text = "notebook: weight.ipynb\nzip:\n  weight: [0.01, 0.1, 1]\n  seed: [0, 1, 2]\n"
(folder / "zip.yaml").write_text(text)
print(*load_grid(folder / "zip.yaml").points, sep="\n")
print("each weight has another seed: weight and luck cannot be told apart")

# %% [markdown]
# ## Summary
#
# A notebook with a parameters cell is a function, and a grid executes it over combinations of its parameters, on two workers or on a cluster, with the same file.
# A point that fails, a worker that dies and a scheduler that disappears cost only what was in progress, because finished points are known by what they depend on.
# The paper's cells have names, and one command fills the missing ones within a budget.
# A single run is divided by classes, with a result that does not depend on how many processes there are.
#
# ## What's next
#
# {doc}`14_speed` makes each of the runs shorter.
#
# ## References
#
# The method is due to {cite:t}`deng2024iid`, on top of {cite:t}`zhao2023dm` and {cite:t}`zhao2023idm`.
# {cite:t}`cui2022dcbench` argue that comparisons need one protocol and several seeds.
