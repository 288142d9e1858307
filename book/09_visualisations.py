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
# # Visualisations
#
# A distilled set is small enough to look at in full, and looking at it is how most people begin to trust it or to doubt it.
# A picture is also how one fools oneself: t-SNE makes islands out of noise, and a sharp synthetic image need not teach more than a blurred one.
# In this chapter you draw the pictures of the paper {cite:p}`deng2024iid`, and put a number beside each of them that does not depend on how one squints.
#
# **What you will learn**
#
# 1. what happens to the pixels, and when;
# 2. to place real and synthetic images in the feature space of a trained network;
# 3. to measure what such a map only suggests: spread, covariance gap, discrepancy;
# 4. how accuracy grows over the iterations, without choosing the best moment.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`04_class_centralization`, {doc}`05_covariance_matching` | necessary | the terms whose traces are looked for |
# | kernel two-sample tests | helpful | one of the measures is a discrepancy |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | about 1 |
# | `laptop`, `paper` | CPU, GPU | not measured yet |

# %% tags=["parameters"]
scale = "tour"
dataset = "cifar10-mini"
ipc = 10
seed = 0
shares = [0, 0.05, 0.1, 0.25, 0.5, 1]  # of the iterations, at which we look
judge_share = 0.25  # of the scale's passes for the networks that judge on the way

# %%
import dataclasses
import math

import pandas as pd
import torch

from iidlib import evaluate, experiments, load_dataset, plots, preset
from iidlib.config import override
from iidlib.data import denormalize
from iidlib.distillation import progress
from iidlib.engine import pick_device
from iidlib.evaluation import class_maps, compare, project, random_real
from iidlib.features import RandomNetworks, trained_pool

experiments.take_parameters(globals(), "scale dataset ipc seed shares judge_share")

# %% [markdown]
# ## Two distillations, watched
#
# `progress` runs a distillation and calls a function of ours at chosen moments.
# The usual way to make such figures is to keep a checkpoint every so often, and to come back to them later with another script, in the hope that it normalises as the first one did.
# Here the same code that distils also looks.
#
# Looking does not disturb the run: every draw is a function of the seed and the iteration, so that a run that is looked at ends where one that is not looked at ends.
# At each moment we keep a copy of the set and train a few networks on it.

# %%
data = load_dataset(dataset, device=pick_device())
config = preset("iid-dm", dataset, ipc, scale, {"seed": seed})
points = sorted({round(share * config.iterations) for share in shares})
passes = max(2, round(judge_share * config.eval.epochs))
judges = override(config, {"eval.epochs": passes, "eval.num_eval": 2}).eval

# %%
moments = {"dm": {}, "iid-dm": {}}


def watch(method):
    """Accuracies of a method's set on the way; the sets are kept in `moments`."""

    def judge(synthetic):
        at = int(synthetic.provenance["iterations"])
        moments[method][at] = synthetic
        return evaluate(synthetic, data, protocol=judges, seed=seed)

    own = preset(method, dataset, ipc, scale, {"seed": seed})
    return progress(own, data, judge, points=points).assign(label=method)


# %%
watched = pd.concat([watch(method) for method in moments], ignore_index=True)
last = {method: kept[max(kept)] for method, kept in moments.items()}

# %%
assert all(sorted(kept) == points for kept in moments.values())
start = moments["dm"][0].images
end = {method: one.images for method, one in last.items()}
assert torch.equal(start, moments["iid-dm"][0].images)
assert ipc == 1 or not torch.equal(end["dm"], end["iid-dm"])

# %% [markdown]
# ## What happens to the pixels
#
# Both runs start from the same real images, and `iid-dm` moves them like this, here three classes, a row each:

# %%
pictures = {}
for at, synthetic in moments["iid-dm"].items():
    some = synthetic.by_class()[:3]  # the first three classes
    pictures[f"iid-dm after {at} iterations"] = denormalize(some, data.spec).cpu()
print("rows:", ", ".join(data.spec.classes[:3]))

# %% tags=["nbval-ignore-output"]
far = {at: (s.images - start).norm() for at, s in moments["iid-dm"].items()}
early, end_at = points[-3:][0], points[-1]
share = f"{100 * far[early] / far[end_at]:.0f} % of their way"
finding = f"{share} in {end_at} iterations is done after {early}"
alt = f"Synthetic images over the iterations: {finding}."
plots.animate(pictures, alt)

# %% [markdown]
# (The picture moves twice and stops; run the cell to see it again.)
#
# The objects stay.
# If you expected prototypes, an average dog and an average ship, look again: each image remains that of one particular dog.
# A run that starts from real images has no reason to leave them, since they are near a solution from the first iteration on.
#
# What is added looks like texture: high frequencies in saturated colours, which a network with 3x3 filters sees well and we see as noise.
# The first quarter of the run does about half of the way, and the rest ever less.
#
# Is the texture of one method that of the other?
# Below, the first image of each class: as it starts, as each method ends, and what each has added, on a scale of its own around grey.


# %%
def added(images):
    """A change of pixels as a picture: grey is none."""
    change = images - start
    return (0.5 + change / (2 * change.abs().max())).cpu()


# %%
rows = {"start": denormalize(start, data.spec)}
rows |= {method: denormalize(images, data.spec) for method, images in end.items()}
rows |= {f"{method} - start": added(images) for method, images in end.items()}

# %% tags=["nbval-ignore-output"]
some = [images[::ipc] for images in rows.values()]
grid = plots.image_grid(some, row_labels=list(rows))
ways = [(images - start).flatten() for images in end.values()]
alike = torch.cosine_similarity(*ways, dim=0).item()
finding = f"the two methods' changes have a cosine of {alike:.2f}"
plots.show(grid, f"One image of each class: {finding}.")

# %% [markdown]
# The lower two rows show what a difference of eyes and numbers can be: the images above them look alike to us, and what was added to them is structured, follows the outlines of the object, and reaches into the background.
#
# A cosine near one would mean that the terms of IID change little; near zero, that they lead elsewhere.
# What it does *not* say is which of the two sets teaches more.
#
# ## A map of features
#
# The paper shows its sets by t-SNE: points in feature space are laid out in the plane so that neighbours stay neighbours.
# The features are those of a trained network, of which a scale keeps a small pool for class centralization anyway; at scale `paper` they are ResNet18s {cite:p}`he2016resnet`.

# %%
pool = trained_pool(data, config.pool, compute=config.compute)
assert len(pool.networks) == config.pool.count
eye = pool.networks[0]

# %%
few = min(60, int(data.train.counts.min()))
sets = {"real": random_real(data.train, few, seed + 100), **last}
seen = {}
for name, one in sets.items():
    own = class_maps(eye, one.images, data.train.num_classes)
    seen[name] = eye.head(own.flatten(0, 1))
labels = {name: one.labels for name, one in sets.items()}
placed = project(seen, labels, seed=seed)

# %% tags=["nbval-ignore-output"]
maps = plots.projection(placed, classes=data.spec.classes)
centre = placed[placed["label"] != "real"].groupby(["label", "class"])[["x", "y"]]
scatter = centre.std().groupby("label").mean().mean(axis=1)
finding = ", ".join(f"{name} {value:.1f}" for name, value in scatter.items())
what = "t-SNE of real images (dots) and synthetic ones (diamonds)"
plots.show(maps, f"{what}; scatter of a class: {finding}.")

# %% [markdown]
# The real images are the same in both panels, as pale dots; one projection was made of all of them together, so that places in the panels may be compared.
# Two separate projections could not be: each would have its own directions.
#
# Read this with care.
# A network that tells classes well apart gives islands; one that confuses half of the images, as the small ones here do, gives a cloud, in which only the most different classes lie on different sides.
# Diamonds that gather say that the images of a class are close *for this network*; how close, the plane does not say, because t-SNE stretches dense regions and squeezes thin ones.
# Change `seed` in the cell above, and everything moves.
# That is why the next section measures in the feature space itself.
#
# ## Measured instead of looked at
#
# `compare` puts each set beside real images under several networks.
# Three of its columns, each a mean over networks of one kind:
#
# - *within*: mean squared distance of the images of a class to their centre, what class centralization {eq}`notation-cc` makes small;
# - *gap*: distance of the local covariances {eq}`notation-cm` over the size of the real one, what covariance matching makes small;
# - *gaussian*: the squared maximum mean discrepancy with a Gaussian kernel {cite:p}`gretton2012mmd`, which is zero only where whole distributions agree, and which no term of the objective is about.
#
# The line `real` is a second draw of real images.
# It says what each measure gives where there is nothing to find.
#
# The three numbers answer different questions, and a set may do well in one and badly in another.
# A set of copies has no spread within its classes at all; a set of random real images has all the spread of the real ones and nothing wrong with it but its size.
# Only together, and beside these two extremes, do they describe a set.

# %% tags=["nbval-ignore-output"]
beside = {"random": random_real(data.train, ipc, seed), **last}
trained = compare(beside, data.train, pool.networks, seed=seed)
columns = ["within", "between", "gap", "gaussian"]
trained.groupby("label", sort=False)[columns].mean().round(3)

# %%
mean = trained.groupby("label")[["within", "gap", "gaussian"]].mean()
assert "folder:" in dataset or mean["gap"]["real"] < mean["gap"]["random"]
if scale != "ci" and "folder:" not in dataset:
    assert mean["within"]["iid-dm"] < mean["within"]["dm"]

# %% tags=["nbval-ignore-output"]
names = {"within": "within (feature units²)", "gap": "gap (no unit)"}
names["gaussian"] = "MMD² (no unit)"
strips = plots.measure_strips(trained, names=names)
change = 1 - mean["within"]["iid-dm"] / mean["within"]["dm"]
finding = f"{100 * change:.0f} % closer with iid-dm than with dm"
plots.show(strips, f"Under the trained networks, images of a class lie {finding}.")

# %% [markdown]
# Points are single classes under single networks, bars their means.
# Look at the widths of the clouds before the distance of the bars: classes differ from each other more than methods do.
#
# The term does what it says under the networks that it was given.
# Does it also hold under networks that no run has met?
# Random ConvNets {cite:p}`gidaris2018convnet` of another seed are such strangers:

# %% tags=["nbval-ignore-output"]
own = {"width": config.match.width, "compile": config.compute.compile}
source = RandomNetworks("convnet3", data.spec, seed=1000, device=start.device, **own)
drawn = (source.draw(k).network for k in range(3))  # each when its turn comes
strange = pd.concat([compare(beside, data.train, [one], seed=seed) for one in drawn])
strange.groupby("label", sort=False)[columns].mean().round(3)

# %% [markdown]
# Compare the two tables line by line.
# A measure that improves under the pool and not under strangers was fitted to the pool.
#
# ## Accuracy over the iterations
#
# The last picture is the one that counts.
# It is drawn from networks that were trained for fewer passes than the protocol asks for, so that its heights are not those of {doc}`07_results`; its shape is what it is for.

# %% tags=["nbval-ignore-output"]
curve = plots.accuracy_curves(watched, x="iteration", label="iteration")
heights = watched.groupby(["label", "iteration"])["accuracy"].mean()
ends = heights.loc[:, [points[0], points[-1]]].unstack().round(1)
finding = ", ".join(f"{m} {a} to {b} %" for m, a, b in ends.itertuples())
plots.show(curve, f"From the first to the last iteration, {finding}.")

# %%
assert len(watched) == 2 * len(moments) * len(points)
if scale != "ci" and "folder:" not in dataset:
    assert all(heights[m, points[-1]] > heights[m, points[0]] for m in moments)

# %% [markdown]
# Most of the way is made in the first half, and the end is still rising: at the published scale a run has a hundred times as many iterations.
# Where two curves cross, or run within each other's points, the figure has nothing to say about which method is better; {doc}`08_ablations` has the seeds for that.
#
# The iteration with the highest point is not a result.
# It was chosen by the test set, and the next seed will put it elsewhere; what is reported is the last one.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# t-SNE of noise: draw 200 points from one normal distribution in 64 dimensions, give them two labels at random, and project. How far apart are the labels' centres, beside their spread?
# ```

# %% tags=["hide-cell"]
noise = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
coin = torch.arange(200) % 2
laid = project({"noise": noise}, {"noise": coin}).groupby("class")[["x", "y"]]
apart = laid.mean().diff().iloc[-1].pow(2).sum() ** 0.5
ratio = apart / laid.std().mean().mean()
print(f"centres apart by {ratio:.1f} of a standard deviation")

# %% [markdown]
# ```{admonition} Exercise 2
# A set of identical images has the smallest spread there can be. What do the other two measures say of it?
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
only = last["dm"].by_class().mean(1, keepdim=True).expand(-1, ipc, -1, -1, -1)
collapsed = dataclasses.replace(last["dm"], images=only.flatten(0, 1).contiguous())
both = {"dm": last["dm"], "identical": collapsed}
found = compare(both, data.train, pool.networks)
found = found.groupby("label", sort=False)[["within", "gap", "gaussian"]].mean()
assert math.isclose(found["gap"]["identical"], 1, abs_tol=1e-3)
found.round(3)

# %% [markdown]
# ## Summary
#
# Distillation adds texture to real images, about half of it in the first quarter of the iterations.
# A projection shows neighbours and no more; spread, covariance gap and discrepancy say in numbers what changed, and a second draw of real images says how small such a number can be.
# A measure counts if it holds under networks that the run has not met, and accuracy counts at the last iteration.
#
# ## What's next
#
# {doc}`10_cross_architecture` asks networks of another kind.
#
# ## References
#
# The pictures follow those of {cite:t}`deng2024iid`; the base method is that of {cite:t}`zhao2023dm`, the two-sample statistic that of {cite:t}`gretton2012mmd`.
# t-SNE is by {cite:t}`vandermaaten2008tsne`.
