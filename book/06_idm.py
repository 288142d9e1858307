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
# # IDM and IID on IDM
#
# Distribution matching stores single images, and looks at them through random networks.
# *Improved distribution matching* (IDM, {cite:t}`zhao2023idm`) changes both: it stores mosaics, and looks at them through networks that are being trained meanwhile.
# IID reaches its highest numbers on top of it {cite:p}`deng2024iid`.
# Here you build the parts one by one, and measure what each of them brings before you draw conclusions about the whole.
#
# **What you will learn**
#
# 1. what partitioning is, and what it brings before anything is learned;
# 2. how a queue of networks in training provides features, a cross-entropy and its weight;
# 3. why a step after each class has a closed form, and what it amounts to;
# 4. what class centralization and covariance matching add here.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`02_distribution_matching` | necessary | the loss that IDM starts from |
# | {doc}`04_class_centralization`, {doc}`05_covariance_matching` | helpful | the two terms of IID |
# | momentum in gradient descent | helpful | for the closed form |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | 2 to 3 |
# | `laptop`, `paper` | CPU, GPU | not measured yet |

# %% tags=["parameters"]
scale = "tour"
dataset = "cifar10-mini"
ipc = 1
seed = 0
share = 0.5  # of the scale's iterations; 1 for the whole experiment
networks = 2  # networks that evaluate each set

# %%
import pandas as pd
import torch

from iidlib import distill, evaluate, experiments, load_dataset, plots, preset
from iidlib.config import SynConfig
from iidlib.data import denormalize
from iidlib.distillation import class_sweep
from iidlib.engine import pick_device
from iidlib.evaluation import random_real, summarize
from iidlib.synthetic import expand

experiments.take_parameters(globals(), "scale dataset ipc seed share networks")

# %% [markdown]
# ## Partitioning by hand
#
# Half the side is enough to recognise most objects, and costs a quarter of the numbers.
# So one stored image can be a *mosaic* of four smaller ones.
# Initially, each tile is a different real image of the class, downscaled by averaging two by two pixels.

# %%
data = load_dataset(dataset, device=pick_device())
train, classes, size = data.train, data.train.num_classes, data.spec.image_size
half = size // 2
four = train.images_of(train.of_class(0)[:4])
small = four.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
upper, lower = torch.cat([small[0], small[1]], 2), torch.cat([small[2], small[3]], 2)
mosaic = torch.cat([upper, lower], 1)
print("four images:", list(four.shape), " one mosaic:", list(mosaic.shape))

# %% [markdown]
# The networks never see the mosaic itself.
# Before the augmentation of every iteration, and before the evaluation, it is *expanded*: cut into its tiles, each enlarged to full size by bilinear interpolation.
# The gradient goes back through the interpolation to the pixels of the mosaic, which are what is learned.

# %%
corners = [(0, 0), (0, half), (half, 0), (half, half)]
tiles = torch.stack([mosaic[:, y : y + half, x : x + half] for y, x in corners])
enlarge = {"size": size, "mode": "bilinear", "align_corners": False}
by_hand = torch.nn.functional.interpolate(tiles, **enlarge)
torch.testing.assert_close(expand(mosaic[None], 2), by_hand)
print("expanded:", list(by_hand.shape))

# %%
shown = denormalize(torch.cat([four, mosaic[None], by_hand]).cpu(), data.spec)
names = ["four real", "and their mosaic", "expanded"]
axes = plots.panels(3, height=2.2)
for ax, part, name in zip(axes, shown.split([4, 1, 4]), names, strict=True):
    plots.image_grid(part, columns=2, title=name, ax=ax)
finding = "blurred when expanded, but still distinct"
plots.show(axes, f"Four images in the space of one: {finding}.")

# %% [markdown]
# A set with factor two is counted by what it *stores*: `ipc` mosaics per class, as many numbers as `ipc` images.
# A network is then trained on four times as many images.
# That alone is worth something, and none of it is distillation.
# So every set of mosaics has to be compared with random mosaics, and a table that compares IDM with single random images only flatters it.


# %%
def scores_of(images, label):
    """Accuracy of networks trained on a set, one row each."""
    config = preset("dm", dataset, ipc, scale, {"eval.num_eval": networks})
    scores = evaluate(images, data, protocol=config.eval, seed=seed)
    return scores.assign(label=label)


# %% tags=["nbval-ignore-output"]
rows = [scores_of(random_real(train, ipc, seed), "random")]
rows.append(scores_of(random_real(train, ipc, seed, factor=2), "random-mosaic"))
summarize(pd.concat(rows)).round(1)

# %%
for row in rows:
    assert (row["images"] == classes * ipc).all(), "the same storage"

# %% [markdown]
# ## A queue of networks in training
#
# A network with random weights sees edges and colours.
# One that has been trained sees objects, and little of what does not help to tell its classes apart.
# IDM keeps everything in between {cite:p}`zhao2023idm`: a queue that a fresh network joins every few iterations, and that the oldest network leaves once it is full.
# In each iteration one of them, drawn at random, serves as the matching network; after the update of the images two are trained for a few steps on real images, without augmentation.
#
# The library's loop is that of DM, except that its networks come from the queue.
# All runs of this chapter share their seed, so they see the same networks, real images and transforms.


# %%
def learned(method):
    """Runs a distillation of this chapter's length."""
    whole = preset(method, dataset, ipc, scale).iterations
    length = {"iterations": max(1, int(share * whole)), "seed": seed}
    return distill(preset(method, dataset, ipc, scale, length), data)


# %%
runs = {"dm": learned("dm"), "idm": learned("idm")}

# %%
queue = runs["idm"].metrics
assert queue["queue_networks"].is_monotonic_increasing
assert queue["queue_accuracy"].iloc[0] == 0, "trained before the first update"

# %% tags=["nbval-ignore-output"]
axes = plots.queue_curves(queue, chance=100 / classes)
last = queue.iloc[-1]
finding = f"{last['queue_networks']:.0f} networks, {last['queue_accuracy']:.0f} %"
plots.show(axes, f"The queue fills with networks that learn; at the end: {finding}.")

# %% [markdown]
# The accuracy comes from a *meter* that each network carries: the share of correct predictions on its training batches since the meter was last reset.
# The published code resets the meters whenever it evaluates, so evaluating more often changes what is learned; here they are reset every `queue.meter_interval` iterations, whatever is evaluated.
# The curve can fall when fresh networks join, and after a reset.
#
# Networks that tell classes apart can also say whether synthetic images look like their class.
# IDM adds their cross-entropy, on features that are computed anyway, weighted by the meter in percent:
#
# $$
# \mathcal{L}_{CE}^c = \lambda_{CE}\; a \;\frac1n \sum_{i=1}^{n} -\log p_c\big(\omega(S_{ci})\big),
# $$ (idm-ce)
#
# with $a$ the accuracy of the matching network, and $p_c$ the probability that it gives to class $c$.
# An untrained network has no say; at an accuracy of one half and a weight of `0.5`, the factor $\lambda_{CE}\,a$ is 25.
# The norm of each term's gradient shows its share of the pull on the pixels:

# %% tags=["nbval-ignore-output"]
columns = ["iteration", "grad_mean", "grad_ce"]
queue[columns].iloc[[0, len(queue) // 2, -1]].round(1)

# %% [markdown]
# ## A step after each class
#
# DM adds up the losses of all classes and takes one step.
# The published code of IDM takes a step after *each* class, on the tensor of all images, with momentum: while one class has its turn, the others keep coasting.
# In the code it is a loop, and looks as if it had to be one.
# But the gradient of a class depends on its own images only, so a sweep of $C$ steps with momentum $m$ and learning rate $r$ has a closed form.
# For the class with gradient $g$ at its turn, until its next turn,
#
# $$
# v \leftarrow m^C v + g, \qquad S \leftarrow S - r\,\frac{1-m^C}{1-m}\, v .
# $$ (idm-sweep)
#
# At the end of a sweep the class at position $p$, counted from zero, has coasted for $C - p$ steps only: its exponent is $C - p$ until then, and the rest follows when the next sweep begins.
# Three classes of one pixel each, with given gradients, show the state at the end of a sweep:

# %%
gradients, rate, m = torch.tensor([1.0, -2.0, 0.5]), 0.2, 0.5
pixels, velocity = torch.zeros(3), torch.zeros(3)
for c in range(3):
    velocity = m * velocity
    velocity[c] += gradients[c]
    pixels = pixels - rate * velocity
print("step by step:", *(f"{x:.3f}" for x in pixels))

# %%
optimiser = class_sweep(torch.zeros(3, 1, 1, 1), SynConfig(lr=rate, momentum=m), 3)
optimiser.step(gradients.view(3, 1, 1, 1))
at_once = optimiser.images_after_sweep().flatten()
torch.testing.assert_close(at_once, pixels)
print("all at once: ", *(f"{x:.3f}" for x in at_once))

# %% [markdown]
# With it, all classes go through the networks in one batch, as in DM, and nothing of the published update is lost.
#
# ## What CC and CM add
#
# The two terms of IID are added as for DM, with weights of their own. One thing is different: to them, a mosaic of four is four images.
# On DM both terms vanish at one image per class, because there is no second one; on IDM they do not.

# %%
for method in ("idm-cc", "idm-cm", "iid-idm"):
    runs[method] = learned(method)

# %%
assert all(run.synthetic.images.isfinite().all() for run in runs.values())
assert {"loss_cm", "loss_cc"} <= set(runs["iid-idm"].metrics)
assert "loss_ce" not in runs["dm"].metrics

# %% tags=["nbval-ignore-output"]
for label, run in runs.items():
    rows.append(scores_of(run.synthetic, label))
scores = pd.concat(rows)
bars = plots.accuracy_bars(scores, chance=100 / classes)
mean = scores.groupby("label")["accuracy"].mean().to_dict()
names = scores["label"].unique()
finding = ", ".join(f"{name} {mean[name]:.0f} %" for name in names)
plots.show(bars, f"Test accuracy at the same storage, IPC {ipc}: {finding}.")

# %%
if scale != "ci" and "folder:" not in dataset:
    assert mean["random-mosaic"] > mean["random"]
    for method in ("idm", "iid-idm"):
        assert mean[method] > mean["random-mosaic"] and mean[method] > mean["dm"]

# %% [markdown]
# The figure holds three comparisons, and only the first two show large differences.
# Random mosaics against random images: the effect of partitioning.
# IDM against random mosaics: what is learned in that form.
# The four rows on IDM against each other: the terms of IID.
#
# How far these four lie apart, compared with the spread of the points within a row, shows how little one seed says about them.
# This book ranks two methods only if a paired interval over at least three distillations excludes zero; the rows for that are in `data/results/`.
# The published gains of IID over IDM are between half a point and five {cite:p}`wang2025ncfm`, at twenty thousand iterations, with pools and networks of another size.
#
# The images show what partitioning does to them:

# %% tags=["nbval-ignore-output"]
two = {name: runs[name].synthetic for name in ("dm", "idm")}
few = [images.to_uint8()[::ipc] for images in two.values()]
grid = plots.image_grid(few, row_labels=list(two))
finding = "one picture per class for dm, four small ones for idm"
plots.show(grid, f"The stored images, one column per class: {finding}.")

# %% [markdown]
# ## Exercises
#
# ```{admonition} Exercise 1
# Why stop at four?
# Evaluate random mosaics of sixteen tiles, and say what is gained and lost.
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
finer = scores_of(random_real(train, ipc, seed, factor=4), "sixteen tiles")
assert (finer["images"] == classes * ipc).all()
summarize(pd.concat([*rows[:2], finer])).round(1)

# %% [markdown]
# ```{admonition} Exercise 2
# With ten classes and a momentum of one half, what does the sweep amount to in practice?
# And with three classes and a momentum of nine tenths?
# ```

# %% tags=["hide-cell"]
for count, m in ((10, 0.5), (3, 0.9)):
    kept, reach = m**count, (1 - m**count) / (1 - m)
    does = f"keeps {kept:.3f} of v, moves {reach:.2f} r v"
    print(f"{count} classes, momentum {m}: {does}")

# %% [markdown]
# ## Summary
#
# IDM stores mosaics, matches under networks at every stage of training, adds the cross-entropy of those that have learned something, and takes a step after each class.
# The first of these helps without any learning, as random mosaics show; the last changes little but the step size.
# The terms of IID act on the tiles, so they apply even at one mosaic per class.
#
# ## What's next
#
# `iid distill iid-idm --scale tour` runs all of it from the command line, and `--scale paper` uses the published settings, which `iidlib.config.recipes` lists with their sources.
# {doc}`07_results` compares what was measured with what was published.
#
# ## References
#
# IDM is due to {cite:t}`zhao2023idm`, on the matching of {cite:t}`zhao2023dm`; the terms on top of it are due to {cite:t}`deng2024iid`.
# {cite:t}`zhou2024bacon` build on the same code.
