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
# # Dataset distillation in ten minutes
#
# To learn CIFAR-10, a network is shown fifty thousand images.
# Suppose it may see only one hundred, ten of each class: which hundred should they be?
# Here you learn their pixels instead of choosing them, in three ways, and compare the result with random real images.
#
# **What you will learn**
#
# 1. what dataset distillation asks for, and why every comparison includes random real images;
# 2. to distil a dataset with one call: by distribution matching (DM), by IID, and by `iid-plus`, which goes beyond the paper;
# 3. to look at the result, and to evaluate it on networks that it has never seen;
# 4. when a difference between two methods counts as one;
# 5. to keep a distilled set and use it elsewhere.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | Python, one network trained in PyTorch | necessary | no GPU, no download |
# | mean, standard deviation, confidence interval | helpful | for the fourth point |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | 3 to 4 |
# | `laptop`, `paper` | CPU, GPU | not measured yet |
#
# ## Parameters
#
# Every chapter starts with the values that you may change.
# Edit them here and run all cells, or leave the notebook as it is and let papermill or `iid sweep` set them: a lesson at one scale is an experiment at another.

# %% tags=["parameters"]
scale = "tour"  # ci, tour, laptop or paper
dataset = "cifar10-mini"
methods = ["dm", "iid-dm", "iid-plus"]  # each is compared with the one before
ipc = 10  # images per class
seeds = [0]  # to rank methods, use three or more
out = ""  # a folder for the runs and the scores

# %%
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from iidlib import SyntheticSet, distill, evaluate, load_dataset, plots, preset
from iidlib.engine import pick_device
from iidlib.evaluation import random_real, summarize
from iidlib.experiments import paired_interval, take_parameters
from iidlib.runs import RunFolder

take_parameters(globals(), "scale dataset methods ipc seeds out")

# %% [markdown]
# ## The problem
#
# Let $\mathcal{T}$ be the real training images and $\mathcal{S}$ a far smaller set, a few images for each class.
# A network with random weights $\theta_0$ is trained on $\mathcal{S}$ alone, and its loss $\ell_{\mathcal{T}}$ is taken on real images.
# *Dataset distillation* {cite:p}`wang2018dd` looks for the set that makes this loss small:
#
# $$
# \mathcal{S}^\star = \operatorname*{arg\,min}_{\mathcal{S}} \;
# \mathbb{E}_{\theta_0} \Big[ \ell_{\mathcal{T}} \big( \mathrm{train}(\theta_0, \mathcal{S}) \big) \Big],
# \qquad |\mathcal{S}| \ll |\mathcal{T}| .
# $$ (quickstart-problem)
#
# The pixels of $\mathcal{S}$ are the unknowns.
# Following their gradient through a whole training is slow and fragile, so most methods use an easier surrogate: equal gradients {cite:p}`zhao2021dc`, equal training trajectories {cite:p}`cazenavette2022mtt`, or equal *features* {cite:p}`zhao2023dm,wang2022cafe`.
# This book takes the last route, where no network is trained while the images are learned.
#
# We work on `cifar10-mini`: the first images of each class of CIFAR-10 {cite:p}`krizhevsky2009cifar`, which come with the library.
# It is a twelfth of the whole, so no accuracy on this page can be compared with a published one; within the page, they compare well.

# %%
data = load_dataset(dataset, device=pick_device())
print(data.train, data.test, sep="\n")

# %% [markdown]
# The simplest answer costs nothing: keep some real images, drawn at random.
# Whatever we learn must beat *that*, with the same number of images and the same training.
# Cleverer choices exist, such as herding {cite:p}`welling2009herding` or covering the data with few centres {cite:p}`sener2018coreset`, but random images are the baseline that no comparison may omit.
#
# They are also where each distillation of this chapter starts: with the same seed, the images below are the initial state of the learned set.

# %%
start = random_real(data.train, ipc, seed=seeds[0])
few = start.to_uint8().cpu().unflatten(0, (-1, ipc))[:, :5]
grid = plots.image_grid(few, row_labels=data.spec.classes)
plots.show(grid, "Random real images, one row per class: no two look alike.")

# %% [markdown]
# ## One call
#
# `preset` gives the settings of a method at a scale, and `distill` runs it.
# DM moves the synthetic images until their mean feature agrees with that of the real ones, under one random network after another.
# IID {cite:p}`deng2024iid` adds two terms to the same loss ({eq}`intro-objective`): *class centralization* draws the synthetic images of a class together, and *covariance matching* compares how features vary together.
# Chapters {doc}`02_distribution_matching`, {doc}`04_class_centralization` and {doc}`05_covariance_matching` take them one at a time; here they are only names.
# So is `iid-plus`, the subject of {doc}`15_beyond_the_paper`: it stores each image as a mosaic of four smaller ones and matches under networks in several stages of their training.
#
# The settings of a scale are differences from the published ones.
# `paper` changes one thing only, the pool of pretrained networks behind class centralization (two ResNet18s trained for 20 epochs, not a thousand trained for 40; `pool.count` and `pool.epochs`); `tour` takes a narrower network, fewer real images and fewer iterations, so that two cores are enough.
# Any single setting can be changed by name, as in `preset("dm", changes={"syn.lr": 0.5})`.

# %% tags=["nbval-ignore-output"]
config = preset(methods[0], dataset, ipc, scale)
print(config.iterations, "iterations, each with a new", config.match.network)
print(config.match.batch_real, "real images per class in each")

# %% [markdown]
# If `out` names a folder, each run saves its settings, its loss and its images there.
# Running the chapter again with the same folder reuses finished runs and resumes a run that was interrupted; a folder that holds a run with *other* settings is an error, and nothing is overwritten.


# %%
def run(name, seed):
    """Distils with a seed, or resumes the run in the folder."""
    settings = preset(name, dataset, ipc, scale, {"seed": seed})
    folder = Path(out, f"{name}-seed{seed}") if out else None
    resume = folder is not None and folder.exists()
    return distill(settings, data, out=folder, resume=resume)


# %% [markdown]
# At the scale `tour` each run takes ten to thirty seconds on two cores.
# The first use of IID also trains the small networks that class centralization looks through, and the first use of `iid-plus` those it matches under; they are cached, so this happens once.

# %% tags=["nbval-ignore-output"]
runs = {(name, seed): run(name, seed) for name in methods for seed in seeds}
for key, result in runs.items():
    first, last = result.metrics["loss_mean"].iloc[[0, -1]]
    print(*key, f"mean matching: {first:.0f} at first, {last:.0f} in the end")

# %% [markdown]
# The term that all methods share falls: the synthetic images approach the mean of the real ones.
# Each cell that trains is followed by one that checks what the text relies on.

# %%
for result in runs.values():
    images = result.synthetic.images
    assert len(images) == ipc * data.train.num_classes
    assert images.isfinite().all() and not images.equal(start.images)
    losses = result.metrics["loss_mean"]
    if scale != "ci" and "folder:" not in dataset:
        assert losses.tail(3).mean() < losses.head(3).mean()

# %% [markdown]
# ## The result
#
# From here on a set is a set, whether its images were chosen or learned.
# A set that starts from mosaics of real images is also compared with such mosaics: they take the same storage, and show a network four times as many images.

# %%
sets = {("random", seed): random_real(data.train, ipc, seed) for seed in seeds}
tiles = {name: result.synthetic.factor for (name, _), result in runs.items()}
for seed in seeds if (factor := max(tiles.values())) > 1 else []:
    sets["random-mosaic", seed] = random_real(data.train, ipc, seed, factor)

# %%
sets |= {key: result.synthetic for key, result in runs.items()}
labels = list(dict.fromkeys(label for label, _ in sets))

# %% [markdown]
# The learned images are ordinary tensors.
# `to_uint8` undoes the normalisation and clips to what a screen can show.

# %% tags=["nbval-ignore-output"]
axes = plots.panels(len(labels), width=9, height=3.6)
for ax, label in zip(axes, labels, strict=True):
    few = sets[label, seeds[0]].to_uint8().cpu().unflatten(0, (-1, ipc))[:, :4]
    rows = data.spec.classes if label == "random" else ()
    plots.image_grid(few, row_labels=rows, title=label, ax=ax)
finding = "Real images before and after learning: objects stay, contrast grows"
plots.show(axes, f"{finding}. Mosaics hold four images each.")

# %% [markdown]
# Nothing in the loss asks for images that please the eye.
# They start as photographs and stay recognisable because they do not move far; what is added is what the random networks respond to.
#
# It is tempting to rank the methods by these pictures, but it would be a mistake.
# The images of DM and IID are hard to tell apart, and an image that looks cleaner may well teach a network less.
#
# ## Evaluation
#
# A set is worth what a network learns from it.
# The protocol is the same for every set: fresh networks, trained on the set alone with augmentation {cite:p}`zhao2021dsa`, then tested once on the real test images after the last epoch.
# Nothing is selected on the test images, neither an iteration nor a network.
# The first network starts from the same weights for every set, and so on, so that sets are compared network by network.
#
# The details follow the official code: stochastic gradient descent with momentum and weight decay, a lower learning rate with a new optimiser for the second half, and the accuracy of the last epoch, whatever an earlier one reached.
# They are data, an `EvalProtocol`, and part of the run's settings like everything else.


# %%
protocol = {"protocol": config.eval, "compute": config.compute}


def scores_of(label, seed):
    """Accuracy of fresh networks trained on a set, one row each."""
    rows = evaluate(sets[label, seed], data, seed=seed, **protocol)
    return rows.assign(label=label, seed=seed)


# %% tags=["nbval-ignore-output"]
scores = pd.concat([scores_of(*key) for key in sets], ignore_index=True)
means = scores.groupby(["label", "seed"])["accuracy"].mean().unstack("label")
scores[["label", "seed", "network", "evaluation_seed", "accuracy"]].round(1)

# %%
assert scores["accuracy"].between(0, 100).all()
assert len(scores) == len(sets) * config.eval.num_eval
if scale != "ci" and ipc == 10 and "folder:" not in dataset:
    for name in {*methods} & {"dm", "iid-dm", "iid-plus"}:  # others gain less
        base = "random" if tiles[name] == 1 else "random-mosaic"
        assert (means[name] - means[base]).mean() > 2, f"{name} gains little"

# %% tags=["nbval-ignore-output"]
axes = plots.accuracy_bars(scores, chance=100 / data.train.num_classes)
reached = ", ".join(f"{label} {means[label].mean():.0f} %" for label in labels)
plots.show(axes, f"Test accuracy of individual networks and their mean: {reached}.")

# %% [markdown]
# Each point is a network, each bar their mean, and the black line one standard deviation to each side.
#
# ## What you may claim
#
# The networks trained on one set differ in their initial weights and in the order of their batches, and the line shows that spread.
# It does *not* show what another distillation seed would have given: other starting images, other networks to match under, other augmentation.
# For two given sets it shows which one trains networks better.
# For two *methods* it shows nothing, however many networks are trained.
#
# So this book has one rule.
# One method is called better only if a paired 95 % interval, over three or more distillation seeds, excludes zero.
# Pairs are natural here: two methods with the same seed start from the same images and see the same real batches, augmentations and networks.


# %%
def verdict(first, second):
    """Compares two labels, in one line."""
    gain = (means[second] - means[first]).mean()
    line = f"{second} over {first}: {gain:+.1f} points"
    if len(seeds) < 3:
        ends = scores.groupby("label")["accuracy"].agg(["min", "max"])
        apart = ends["min"][second] > ends["max"][first]
        return f"{line}, individual networks {'do not ' if apart else ''}overlap"
    _, low, high = paired_interval(means[first].tolist(), means[second].tolist())
    kind = "significant" if low > 0 or high < 0 else "not significant"
    return f"{line}, 95 % {low:+.1f} to {high:+.1f} over {len(seeds)} seeds: {kind}"


# %% tags=["nbval-ignore-output"]
parts = [
    f"Test accuracy (%) on {dataset}, {ipc} images per class, scale {scale}:",
    "mean and standard deviation over n networks\n",
    summarize(scores).round(1).to_string(index=False) + "\n",
    *(verdict(*pair) for pair in pairwise(["random", *methods])),
    *(verdict("random-mosaic", name) for name in methods if tiles[name] > 1),
]
if len(seeds) < 3:
    parts.append("Below 3 seeds, no difference between methods is significant.")
summary = "\n".join(parts)
print(summary)

# %% [markdown]
# Read the last lines before the table.
# With one seed they compare *these* sets of images: the gain of the learned ones over the random ones is plain where individual networks do not overlap.
# The ranking of DM and IID, as methods, stays open until `seeds` has three entries or more: set `seeds = [0, 1, 2]` and run again.
#
# The scale matters as much.
# `tour` uses a narrow network, few real images and few iterations, which is enough to see a method at work but not to see where it ends; published accuracies belong to the scale `paper` and the whole of CIFAR-10.

# %%
if out:
    Path(out, "summary.txt").write_text(summary + "\n")
    found = scores.assign(dataset=dataset, ipc=ipc, scale=scale)
    found.to_csv(Path(out, "scores.csv"), index=False)
    for name, seed in runs:
        own = scores.query("label == @name and seed == @seed")
        RunFolder(Path(out, f"{name}-seed{seed}")).write_scores(own)

# %% [markdown]
# ## Save it and use it
#
# A distilled set is one file, with the normalisation it needs and its provenance.
# You load exactly what you saved, and any training loop can use `images` and `labels`.

# %% tags=["nbval-ignore-output"]
distilled = sets[methods[-1], seeds[0]]
with TemporaryDirectory() as folder:
    distilled.save(Path(folder, "distilled.safetensors"))
    again = SyntheticSet.load(Path(folder, "distilled.safetensors"))
again.provenance

# %%
assert again.images.equal(distilled.images.cpu())

# %% [markdown]
# Without a notebook, the same takes two commands:
#
# ```console
# $ iid distill iid-plus --dataset cifar10-mini --ipc 10 --scale tour --out runs/iid-plus
# $ iid evaluate runs/iid-plus
# ```
#
# ## Exercises
#
# ```{admonition} Exercise 1
# How much does it matter *which* random images you keep?
# Evaluate three draws of random real images with one network each, and compare their spread with that of networks trained on one draw.
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
one = preset(methods[0], dataset, ipc, scale, {"eval.num_eval": 1}).eval
draws = [random_real(data.train, ipc, seed=100 + draw) for draw in range(3)]
found = pd.concat([evaluate(d, data, protocol=one) for d in draws])["accuracy"]
print(f"three draws: {found.round(1).tolist()}, deviation {found.std(ddof=0):.1f}")
own = scores.query("label == 'random' and seed == @seeds[0]")["accuracy"]
print(f"networks of one: {own.round(1).tolist()}, deviation {own.std(ddof=0):.1f}")
assert found.between(0, 100).all()

# %% [markdown]
# ```{admonition} Exercise 2
# Nothing keeps a learned pixel between black and white.
# What share of the values lies outside, where `to_uint8` clips, and how does it compare with the real images?
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
mean, std = torch.tensor([data.spec.mean, data.spec.std]).view(2, -1, 1, 1)
for label in labels:
    shown = sets[label, seeds[0]].images.cpu() * std + mean
    outside = (shown - shown.clamp(0, 1)).abs() > 1e-4
    print(f"{label}: {100 * outside.float().mean():.1f} % of the values are clipped")

# %% [markdown]
# ## Summary
#
# Dataset distillation learns a small set on which a network trains well.
# Two calls, `preset` and `distill`, ran three methods; `evaluate` compared them with random real images under one protocol.
# The learned images train networks better than the real ones they started from.
# Which of two methods is better is a question for several seeds.
#
# ## What's next
#
# {doc}`02_distribution_matching` looks inside the loss that did the work, and {doc}`notation` gives every symbol with its name in the code.
#
# ## References
#
# The problem was posed by {cite:t}`wang2018dd`; DM is due to {cite:t}`zhao2023dm`, IID to {cite:t}`deng2024iid`; the protocol and its augmentation come from {cite:t}`zhao2021dsa`.
# All works cited are listed in the {doc}`bibliography`.
