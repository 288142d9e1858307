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
# # Ablations
#
# A method with two new terms and three new numbers owes its readers an answer to a simple question: which of them matters, and how much?
# The paper answers at its own scale {cite:p}`deng2024iid`.
# Here you take the method apart at a scale where you can repeat every run yourself, and learn to tell an effect from the luck of a seed.
#
# **What you will learn**
#
# 1. to compare methods by paired differences, and why nothing less will do;
# 2. what each term brings at the scales measured so far;
# 3. how accuracy depends on the two weights, and why a flat curve is a result too;
# 4. what $\beta$ does when it is chosen to fit the actual distances.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`04_class_centralization`, {doc}`05_covariance_matching` | necessary | the terms that are removed here |
# | {doc}`06_idm` | helpful | the other base |
# | Student's t interval | helpful | three seeds are few |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | about 1 |
# | `laptop` | 2 CPU cores | about 30 |
# | `paper` | GPU | not measured yet |

# %% tags=["parameters"]
scale = "tour"
dataset = "cifar10-mini"
ipc = 10
seed = 0
share = 0.25  # of the scale's iterations; 1 for the whole experiment
networks = 2  # networks that evaluate each set

# %%
import math
import re

import numpy as np
import pandas as pd
from scipy.stats import t

from iidlib import distill, evaluate, experiments, load_dataset, losses, plots
from iidlib.config import preset
from iidlib.engine import in_chunks, pick_device
from iidlib.evaluation import random_real, summarize
from iidlib.experiments import paired_gains, paired_interval, rows_of
from iidlib.features import trained_pool

experiments.take_parameters(globals(), "scale dataset ipc seed share networks")

# %% [markdown]
# ## Removing the terms
#
# The objective is a sum, so an ablation takes four runs: mean matching {cite:p}`zhao2023dm` alone, with each term, and with both.
# They share a seed, hence the initial images, every real batch, every network and every augmentation.
# Any difference in the end is due to the terms, and to how small differences grow in a long optimisation.

# %%
data = load_dataset(dataset, device=pick_device())
methods = ["dm", "dm-cc", "dm-cm", "iid-dm"]
updates = share * preset("dm", dataset, ipc, scale).iterations
length = {"seed": seed, "iterations": max(1, int(updates))}
sets = {"random": random_real(data.train, ipc, seed)}
for method in methods:
    config = preset(method, dataset, ipc, scale, length)
    sets[method] = distill(config, data).synthetic

# %%
assert all(syn.images.isfinite().all() for syn in sets.values())
assert ipc == 1 or len({s.images.sum().item() for s in sets.values()}) == len(sets)

# %% tags=["nbval-ignore-output"]
own = preset("dm", dataset, ipc, scale, {"eval.num_eval": networks}).eval
parts = [evaluate(s, data, protocol=own).assign(label=n) for n, s in sets.items()]
live = pd.concat(parts, ignore_index=True)
summarize(live)[["label", "mean", "std"]].round(1)

# %%
means = live.groupby("label", sort=False)["accuracy"].mean()
assert scale == "ci" or "folder:" in dataset or means[methods].min() > means.iloc[0]

# %% tags=["nbval-ignore-output"]
bars = plots.accuracy_bars(live, chance=100 / data.train.num_classes)
finding = ", ".join(f"{name} {value:.1f} %" for name, value in means.items())
plots.show(bars, f"One distillation of each, scale {scale}, seed {seed}: {finding}.")

# %% [markdown]
# All four are far better than random images, and close to each other.
# Look at the points: they are networks trained on *one* distilled set, so their spread is that of the evaluation.
# The figure does not show how much another seed of the distillation would move a bar.
# A ranking read off it would be a ranking by luck.
#
# ## Pairs of runs
#
# The remedy is easy to state: repeat with other seeds, and subtract within a seed, where most of the luck is the same on both sides.
# With differences $\Delta_1, \dots, \Delta_m$ over $m$ seeds, the interval
#
# $$
# \bar\Delta \pm t_{m-1,\,0.975} \, \frac{s_\Delta}{\sqrt m}
# $$ (ablation-interval)
#
# contains the true difference in 95 of 100 such experiments, if differences are roughly normal; $s_\Delta$ is their standard deviation, and $t_{m-1,\,0.975}$ the quantile of Student's distribution with $m - 1$ degrees of freedom.
# Let us do it by hand on made-up numbers, where the second method is better in every seed and the seeds lie far apart:

# %%
first, second = [44.0, 46.0, 48.0], [44.6, 46.4, 48.8]
gain = pd.Series(second) - pd.Series(first)
half = 4.303 * gain.std() / math.sqrt(3)  # 4.303 is t for two degrees of freedom
low, high = gain.mean() - half, gain.mean() + half
print(f"paired: {gain.mean():.1f}, from {low:.1f} to {high:.1f}")
mean, low, high = paired_interval(first, second)
print(f"paired_interval: {mean:.1f}, from {low:.1f} to {high:.1f}")

# %% [markdown]
# The accuracies of the two methods overlap, and yet one is better each time; pairing reveals it.
# It can, because a seed is not an abstract label here: two runs with the same seed share their initial images and every random draw along the way, so an easy or an unlucky start moves both of them.
# Where methods do not share their draws, or one of them draws more than the other, a pair is a pair in name only, and nothing is gained.
# Three seeds are few: $t$ is above four, and you are lucky to get an interval one point wide.
#
# ## Each term, measured
#
# These are the rows measured so far, kept in `data/results`: all of CIFAR-10 at the scale `laptop`, and the embedded images at `tour`, with ten images per class.
# `seeds` counts the seeds that both methods of a pair have in common; below three there is nothing to say yet, and the row has no numbers.

# %%
kind = {"ipc": 10, "network": "convnet3"}
laptop = rows_of("laptop", dataset="cifar10", settings="", **kind)
own = {"laptop": laptop, "tour": rows_of("tour", settings="", **kind)}
tour = rows_of("tour-ablation", **kind)  # other versions, and sweeps

# %%
terms = [("dm", "dm-cc"), ("dm", "dm-cm"), ("dm", "iid-dm")]
terms += [("idm", "idm-cc"), ("idm", "idm-cm"), ("idm", "iid-idm")]
tables = {name: paired_gains(table, terms) for name, table in own.items()}
found = tables["laptop"].set_index("method")
assert found.loc["idm-cm", "low"] > 0 > found.loc["idm-cc", "low"]
both = paired_gains(laptop, [("dm-cc", "iid-dm"), ("dm-cm", "iid-dm")])
assert found["mean"]["dm-cc"] > found["mean"]["dm-cm"] and both["low"].min() > 0
pd.concat(tables).droplevel(1).query("seeds > 0").round(2)

# %% [markdown]
# At `laptop` the two bases differ in which term helps.
# On IDM, covariance matching alone gains as much as both together, and class centralization gains nothing that three seeds could show; at `tour`, with five, neither does.
# On DM, class centralization gains, as far as its interval allows, and both together are better than either alone, by intervals that also exclude zero.
# A conjecture, not measured: the cross-entropy of IDM asks for images which a trained network recognises, and so already does what class centralization would.
#
# Each row compares one method with another, not with the best; differences of differences, such as whether the two terms add up, need intervals of their own.
#
# Read the intervals, not the means.
# One that contains zero says that this many seeds and runs of this size cannot tell the two methods apart.
# It does not say that there is no effect, and least of all that there is none at the published scale, where a distillation has twenty thousand iterations and a pool of ResNet18s.
# The one pair measured there, one seed each of `dm` and `dm-cm`, is more than two points apart ({doc}`07_results`).
#
# How far can you trust an interval that only just excludes zero?
# Two pairs were measured twice at `tour`, with the same seeds, on different days, with different versions of the code and different numbers of threads; summing in another order is enough to make two runs diverge (in `before`, the usual weights are written out):

# %%
before = tour[tour["settings"].isin(["", "match.cc=0.3", "match.cm=0.01"])]
again = own["tour"].query("seed < 3")
pairs = [paired_gains(rows, terms[:2]) for rows in (before, again)]
assert pairs[0]["low"][1] > 0 > pairs[1]["low"][1] and pairs[1]["low"][0] > 0
pd.concat(pairs, keys=["before", "again"]).droplevel(1).round(2)

# %% [markdown]
# Class centralization gains the same both times.
# The interval of covariance matching excluded zero at first; its gain has since vanished.
# An interval over three seeds is made of three numbers, and its width is as much a matter of luck as its middle: the second time, the same method has one six times as wide.
# So take a claim that rests on three seeds, those at `laptop` above included, as a reason to measure more, and ignore one whose bound lies a few hundredths from zero.
#
# ## The weights
#
# Perhaps the terms are weak because their weights are wrong.
# So we vary them: each point below is a distillation of `dm` with one term, with `match.cc` from the usual weight to a hundred times as much, and `match.cm` from a tenth of it to ten times as much.


# %%
def sweep(key, method):
    """Rows of a sweep of one setting: label, value, seed and accuracy."""
    one = tour[tour["settings"].str.fullmatch(rf"{re.escape(key)}=[\d.]+")]
    one = one[one["method"] == method].assign(label=method)
    one["value"] = one["settings"].str.split("=").str[1].astype(float)
    return one.groupby(["label", "value", "seed"], as_index=False)["accuracy"].mean()


# %%
plain = tour[(tour["method"] == "dm") & (tour["settings"] == "")]
reference = {"dm": plain["accuracy"].mean()}
axes = plots.panels(2, height=3)
weights = {"match.cc": "dm-cc", "match.cm": "dm-cm"}
best = []
for ax, (key, method) in zip(axes, weights.items(), strict=True):
    points = sweep(key, method)
    how = {"setting": f"{key} ({method})", "references": reference}
    plots.setting_curve(points, **how, ax=ax)
    means = points.groupby("value")["accuracy"].mean()
    best.append(f"{method} is best at {means.idxmax():g} with {means.max():.1f} %")
seeds = f"{plain['seed'].nunique()} seeds"
plots.note(axes, tour)
finding = f"{' and '.join(best)}; dm {reference['dm']:.1f} %"
plots.show(axes, f"Scale tour, {seeds}: {finding}.")

# %% [markdown]
# Points are distillations, the line goes through their means, and the dotted line is `dm` without the term.
# Values are spaced evenly although they grow by factors, because the order of magnitude of a weight is the question.
#
# A curve with a hump says that the weight matters, and where it should lie.
# A fall at its right end says that beyond some strength the term takes over the objective: {doc}`04_class_centralization` shows what ten times the weight does to the distances.
#
# Beware of the best point of a sweep.
# It is the largest of several noisy numbers, and on the test set at that, so it flatters.
# A weight that will be *used* must be chosen on images held out from the training set.
# `--dataset validation:cifar10` does that: it evaluates on a tenth of each class's training images, and never touches the test images.
# This is how the weight of class centralization at scale `laptop` was chosen, on one seed:

# %%
held_out = rows_of("laptop-validation", method="iid-dm")
held_out["match.cc"] = held_out["settings"].str.split("=").str[1].astype(float)
held_out.groupby("match.cc")["accuracy"].agg(["mean", "std"]).round(1)

# %% [markdown]
# The method is `iid-dm`, and the standard deviation is over three networks.
# On this one seed the hump is plain: the right weight gains more than a point over none, and ten times as much costs several.
#
# ## Choosing $\beta$
#
# The other form of class centralization, {eq}`notation-cc` with an exponential, leaves an image alone until its cost exceeds $\beta$.
# A value of $\beta$ means something only in relation to the actual distances.
# In units of the real images' scatter, under the trained networks, random images lie here:

# %% tags=["nbval-ignore-output"]
config = preset("dm-cc", dataset, ipc, scale, {"seed": seed})
pool = trained_pool(data, config.pool, compute=config.compute)
assert len(pool.networks) == config.pool.count


# %%
def far(network, count):
    """Squared distances of real images to the centre of their class, [C, n]."""
    images = random_real(data.train, count, seed).images
    features = in_chunks(network.embed, images, 100).detach()
    return losses.squared_distances(features.unflatten(0, (-1, count)))


# %% tags=["nbval-ignore-output"]
units = [far(n, ipc) / far(n, 100).mean(1, keepdim=True) for n in pool.networks]
distance = pd.Series([float(value) for unit in units for value in unit.flatten()])
quantiles = distance.quantile([0.05, 0.2, 0.5, 0.8, 0.95])
pd.DataFrame({"distance": quantiles, "beta": quantiles.map(math.exp)}).round(2)

# %%
assert ipc == 1 or (distance.gt(0).all() and 0.4 < quantiles[0.5] < 1.6)

# %% [markdown]
# With $\alpha = 1$ an image at one unit has the cost $e$.
# A $\beta$ below the first row of the table pulls nearly every image, as zero does; one at the median pulls the farther half; one above the last row, almost none.
# That is the range in which a sweep can show anything:

# %%
rows = tour[tour["settings"].str.contains("cc_form=exp")]
beta = rows["settings"].str.extract(r"cc_beta=([\d.]+)")[0].astype(float)
exp = rows.assign(label="dm-cc", value=beta)
exp = exp.groupby(["label", "value", "seed"], as_index=False)["accuracy"].mean()
means = exp.groupby("value")["accuracy"].mean()
by_seed = exp.pivot(index="seed", columns="value", values="accuracy")
assert len(by_seed) == 3 and (by_seed.diff(axis=1).iloc[:, 1:] < 0).all(axis=None)
ends = by_seed[2.75].tolist(), by_seed[0].tolist()
assert paired_interval(*ends)[1] < 0, "three seeds do not settle it"

# %%
reference["linear"] = sweep("match.cc", "dm-cc").query("value == 1").accuracy.mean()
curve = plots.setting_curve(exp, setting="match.cc_beta", references=reference)
plots.note(curve, rows)
finding = f"from {means.iloc[0]:.1f} % without a threshold"
finding += f" to {means.iloc[-1]:.1f} %; dm {reference['dm']:.1f} %"
plots.show(curve, f"Accuracy against beta at scale tour, {seeds}: {finding}.")

# %% [markdown]
# The dotted lines are `dm` without the term, and `dm-cc` in its linear form at the same weight.
# In each of the three seeds the accuracy falls as $\beta$ grows, as if the term could have improved the images that are left alone.
# By the rule of this chapter that is a hint and not yet a ranking, since the interval of the difference between the two ends still contains zero.
# The authors report that the form without $\beta$ does as well, which these points do not contradict.
# Whether the exponential is better than the linear form is another question, and first of all one of strength: at the same weight it pulls harder, by the factor $e^d$ at distance $d$.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# How many seeds would the pair of `dm` and `dm-cm` need at scale `laptop` for an interval around its present mean to exclude zero?
# Assume that the spread of the differences stays as it is.
# ```

# %% tags=["hide-cell"]
table = laptop.pivot_table(index="seed", columns="method", values="accuracy")
difference = (table["dm-cm"] - table["dm"]).dropna()
mean, spread = abs(difference.mean()), difference.std()
sure = (m for m in range(2, 10**6) if mean > t.ppf(0.975, m - 1) * spread / m**0.5)
print(f"difference {mean:.2f}, spread {spread:.2f}: {next(sure)} seeds")

# %% [markdown]
# ```{admonition} Exercise 2
# Choose the best of six numbers that differ only by noise. By how much does it exceed their common mean, in units of the noise?
# ```

# %% tags=["hide-cell"]
draws = np.random.default_rng(0).normal(size=(100_000, 6))
print(f"{draws.max(1).mean():.2f} standard deviations")

# %% [markdown]
# ## Summary
#
# An ablation is read by paired differences over seeds, and ranks no methods whose interval contains zero.
# The measured rows show what can be said about each term so far, and the curves over the weights show how much the choice of a weight matters.
# A best point on the test set is not a measurement.
#
# ## What's next
#
# {doc}`09_visualisations` looks at the sets themselves.
#
# ## References
#
# The terms and their published ablation are due to {cite:t}`deng2024iid`; the base methods to {cite:t}`zhao2023dm` and {cite:t}`zhao2023idm`.
# {cite:t}`cui2022dcbench` demand that methods be compared under one protocol.
