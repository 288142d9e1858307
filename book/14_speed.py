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
# # Speed
#
# Distillation is a small network on small images, thousands of times over.
# By its specifications, a large GPU would take a few milliseconds for the arithmetic of an iteration; two laptop cores take about a second.
# Here you count what an iteration must do, measure what this machine can do, and switch on one acceleration after another, each with the same result.
#
# **What you will learn**
#
# 1. where the operations of an iteration are, and what lower bound follows for its time;
# 2. what each acceleration brings on a CPU, and why it does not change the result;
# 3. how the cost grows with images, classes, batch and width;
# 4. which departure from the method saves still more time, and at what price.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`02_distribution_matching` | necessary | the iteration that is timed |
# | {doc}`05_covariance_matching` | helpful | the method of the tables |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | below 1 |
# | `paper` | 2 CPU cores | about 1 |

# %% tags=["parameters"]
scale = "tour"
classes = 2  # timed at once; an iteration of CIFAR-10 has ten
repeats = 3

# %%
import pandas as pd
import torch

from iidlib import bench, plots
from iidlib.bench import copy_rate, count_flops, matrix_product_rate
from iidlib.experiments import rows_of, take_parameters
from iidlib.networks import build_network, frozen

take_parameters(globals(), "scale classes repeats")

# %% [markdown]
# ## What an iteration must do
#
# At the published settings, an iteration on CIFAR-10 at IPC 10 sends 2,560 real and 100 synthetic images through a ConvNet-3 of width 128 {cite:p}`zhao2023dm`, and with class centralization the synthetic ones through a ResNet18 as well {cite:p}`deng2024iid`.
# Real images need a forward pass alone; synthetic ones also need a backward pass, but only to their pixels, since the weights are frozen.
#
# The library counts convolutions and matrix products; a multiply-add counts as two operations.


# %%
def megaflop(name, backward):
    """Operations for one image's features under a network, in millions."""
    network = frozen(build_network(name))
    image = torch.zeros(1, 3, 32, 32, requires_grad=backward)

    def work():
        features = network.embed(image)
        if backward:
            features.sum().backward()

    return count_flops(work) / 1e6


# %%
parts = {
    "real, ConvNet-3": 2560 * megaflop("convnet3", backward=False),
    "synthetic, ConvNet-3": 100 * megaflop("convnet3", backward=True),
    "synthetic, ResNet18": 100 * megaflop("resnet18", backward=True),
}
table = pd.DataFrame({"GFLOP": pd.Series(parts) / 1e3})
table["share (%)"] = 100 * table["GFLOP"] / table["GFLOP"].sum()
table.round(1)

# %% [markdown]
# Count before you measure.
# A profile shows where the time goes in the program that you have; a count shows where it would go in the best one, and which parts are not worth your while.
#
# DM spends nearly all of its operations on real images, whose features are averaged and discarded.
# That is the part to accelerate; class centralization on a ResNet18 costs nearly as much again, although it sees only a hundred images.
#
# ## What this machine can do
#
# No program runs faster than its operations at the machine's best rate.
# A large matrix product is a fair measure of that rate, and a large copy is one of memory bandwidth.

# %% tags=["nbval-ignore-output"]
cpu = torch.device("cpu")
rate, copied = matrix_product_rate(cpu), copy_rate(cpu)
floor = table["GFLOP"].iloc[:2].sum() / rate
threads = torch.get_num_threads()
print(f"{rate:.0f} GFLOP/s and {copied:.0f} GB/s with {threads} threads")
print(f"lower bound for a DM iteration: {floor:.2f} s")

# %% [markdown]
# Both are measured here and now, because they change when the machine shares its cores or gets warm.
#
# The bound holds for the operations as counted.
# An algorithm that needs fewer of them can beat it, and you will meet one.
#
# ## One acceleration after another
#
# The ladder times the forward pass of real images, at the published width.
# Every rung must give the same feature maps as the first one, up to rounding, or the call fails.

# %%
data = bench.timing_dataset(classes, 256 if scale != "ci" else 32)
network = frozen(build_network("convnet3"))
images = data.train.images_of(data.train.class_index.flatten())
images = images.unflatten(0, (classes, -1))

# %% tags=["nbval-ignore-output"]
rungs = bench.forward_ladder(network, images, repeats=repeats)
rungs["ms per image"] = 1e3 * rungs["seconds"] / images.shape[:2].numel()
rungs.round({"seconds": 3, "gain": 2, "total": 2, "ms per image": 3})

# %%
assert rungs["seconds"].gt(0).all() and rungs["total"].iloc[0] == 1
if scale != "ci" and "a block in one kernel" in set(rungs["rung"]):
    assert rungs["total"].iloc[-1] > 2

# %% tags=["nbval-ignore-output"]
times = rungs.assign(time=rungs["ms per image"])
bars = plots.time_ladder(times, unit="milliseconds per image")
gain = rungs["total"].iloc[-1]
finding = f"the last of {len(rungs)} rungs is {gain:.1f} times faster"
plots.show(bars, f"Time per image, with one more acceleration per row: {finding}.")

# %% [markdown]
# - *All classes at once.*
#   The norms of these networks act on each image by itself, so one batch gives what a loop over classes gives.
#   On a CPU, where 256 images are already a large batch, it gains nothing by itself; on a GPU, where launching small kernels takes time, it should matter most, which has not been measured here.
# - *Channels last.*
#   With the channels of a pixel adjacent in memory, a convolution reads vectors.
# - *Chunks.*
#   The maps of 2,560 images fill more than a gigabyte and go through memory at each operation; those of 32 images stay in the cache.
# - *Norm, ReLU and pool compiled.*
#   Three sweeps over the largest maps become one loop, generated by `torch.compile`.
# - *A block in one kernel.*
#   A block shrinks an image's maps sixteenfold at its end, so the intermediate maps never need to leave the cache: a few channels are convolved, normalised, pooled, and discarded.
#   For layers with many channels the convolution is Winograd's {cite:p}`lavin2016winograd`, which needs a quarter of the multiplications counted above; this is how an iteration can beat its lower bound.
#
# ## Exact, or nearly
#
# None of this changes the method.
# Everything stays in float32, sums run in another order, and the losses agree to a few millionths.
# Gradients agree to a few thousandths at worst: rounding moves single activations across the kink of the ReLU.
# In the same run that it times, `iid bench` checks the losses and the gradients of every method against a loop over classes, and fails if they differ by more than rounding.
# These rows were measured by it, on the machine named below:

# %%
bench = rows_of("bench")
columns = ["what", "method", "baseline_seconds", "seconds", "ratio"]
bench[[*columns, "floor_fraction"]].round(2)

# %%
first = bench.iloc[0]
ceiling = first["ceiling_gflops"]
print(f"{first['device']}, torch {first['torch']}, {ceiling:.0f} GFLOP/s")

# %% [markdown]
# `distill` is an iteration, `evaluate` an epoch on a distilled set of 100 images, one of the 1,001 that train a network, and `evaluate x2` an epoch of two networks trained together.
# A `floor_fraction` of 1 means that the machine runs the operations as counted at its best rate; above 1 there are fewer operations.
#
# ## How the cost grows
#
# `iid bench --scaling` varies one size at a time around the published shapes, for `dm-cm`.

# %%
scaling = rows_of("bench-scaling")
sizes = {
    "ipc": "images per class",
    "classes": "classes",
    "batch_real": "real images",
    "width": "width",
}
middle = {"ipc": 10, "classes": 10, "batch_real": 256, "width": 128}
sides = {"loop": "baseline_seconds", "ours": "seconds"}
rows = []
for axis in sizes:
    others = [name for name in sizes if name != axis]
    own = scaling[(scaling[others] == [middle[name] for name in others]).all(axis=1)]
    for side, column in sides.items():
        part = own.assign(axis=axis, side=side, size=own[axis], seconds=own[column])
        rows.append(part[["axis", "side", "size", "seconds"]])
costs = pd.concat(rows)

# %%
panels = plots.cost_curves(costs, axes=sizes)
fastest, slowest = scaling["ratio"].max(), scaling["ratio"].min()
finding = f"ours is {slowest:.1f} to {fastest:.1f} times faster at every size"
plots.show(panels, f"Seconds per iteration as the work grows: {finding}.")

# %% [markdown]
# The cost is proportional to the numbers of classes and of real images.
# The operations grow with the square of the width, the time more slowly, because wide layers come closer to the machine's best rate.
# Synthetic images cost little until there are as many as a tenth of the real ones.
#
# ## Departing from the method
#
# What remains is the real forward pass, and only a change of the method removes it.
# With `--set match.statistics=cached` a run keeps a fixed number of networks and augmentations, and the statistics of *all* real images under each; an iteration then touches synthetic images alone.
# In return, the images see less variety.
# The trade-off was measured at the scale `tour`, with three seeds and three networks each:

# %%
cached = rows_of("tour-cached")
short = cached[cached["iterations"] == 200]
kind = short["settings"].str.extract(r"statistics=(\w+)(?:.*pairs=(\d+))?")
short = short.assign(
    statistics=kind[0].str.cat(kind[1], sep=" ", na_rep="").str.strip(),
    seconds=200 * short["seconds_per_iteration"],
)
groups = short.groupby(["method", "statistics"])
trade = groups[["seconds", "accuracy"]].mean()
trade["seeds"] = groups["seed"].nunique()
trade.round(1)

# %% [markdown]
# Fifty pairs show no loss, but save nothing in a run of this length, since each pair costs a forward pass of all images; ten halve the time and cost about a point.
# In the same number of seconds, fresh draws did as well or better.
#
# CIFAR-10 as a whole, at scale `laptop`, has twelve times the images, so a pair costs as much as thirty fresh iterations, and fifty pairs more than all of them.
# Ten pairs cost far more accuracy than at `tour`, on the one seed that was run:

# %%
kind = {"dataset": "cifar10", "ipc": 10, "network": "convnet3"}
own = rows_of("laptop", method="dm", seed=0, **kind)
own["settings"] = own["settings"].replace("", "fresh draws")
own.groupby("settings")["accuracy"].agg(["mean", "std"]).round(1)

# %% [markdown]
# So the setting is off by default.
# It is kept, and measured openly, because the trade-off may differ elsewhere: with a few hundred real images, or where the matching network can only be reached over a slow connection.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# What is the lower bound for an iteration of DM on CIFAR-100 at IPC 10, on this machine?
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
real, syn = (megaflop("convnet3", backward=backward) for backward in (False, True))
work = 100 * (256 * real + 10 * syn) / 1e3
print(f"{work:.0f} GFLOP, {work / rate:.1f} s at {rate:.0f} GFLOP/s")

# %% [markdown]
# ```{admonition} Exercise 2
# At how many images per class does the synthetic side of DM take as many operations as the real side?
# And with class centralization on a ResNet18, whose forward and backward passes the synthetic images alone must pay for?
# ```

# %% tags=["hide-cell"]
resnet = megaflop("resnet18", backward=True)
print(f"DM: {256 * real / syn:.0f} images per class")
print(f"with ResNet18: {256 * real / (syn + resnet):.0f} images per class")

# %% [markdown]
# ## Summary
#
# Nearly all operations of DM are in the forward pass of real images, which needs no gradient.
# Batching, memory layout, chunks that fit the cache and fused blocks make it several times faster than a loop over classes, with the same result; Winograd's algorithm needs even fewer multiplications.
# A change of the method, the cached statistics, removes this forward pass altogether, and is off by default.
#
# ## What's next
#
# `iid bench` produces the tables of this chapter for your machine, `iid bench --quick` in less than a minute.
# {doc}`02_distribution_matching` explains the loss that all this computes.
#
# ## References
#
# The shapes are from {cite:t}`zhao2023dm` and {cite:t}`deng2024iid`, the fast convolution from {cite:t}`lavin2016winograd`.
