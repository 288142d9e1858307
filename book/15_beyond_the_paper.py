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
# # Beyond the paper
#
# The two terms of IID compare more than means, but they still look through the networks of DM and IDM.
# Here you change the networks: `iid-plus` matches under stages of a few networks that are trained once and kept.
# You assemble it from parts, measure what each part adds, and see what the whole costs.
#
# **What you will learn**
#
# 1. what networks other than random ones bring to distribution matching;
# 2. how to build matching networks, cross-entropy, covariance matching and class centralization from one small pool;
# 3. how to find which part of a method does the work: added alone, and left out;
# 4. how to choose settings without looking at the test images.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`04_class_centralization`, {doc}`05_covariance_matching` | necessary | the terms |
# | {doc}`06_idm` | necessary | mosaics, and networks in training |
# | {doc}`08_ablations` | helpful | paired differences |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | 4 |
# | `laptop`, `paper` | CPU, GPU | not measured yet |

# %% tags=["parameters"]
scale = "tour"
dataset = "cifar10-mini"
ipc = 10
seed = 0
share = 0.5  # of the scale's iterations; 1 for the whole experiment
networks = 2  # networks that evaluate each set

# %%
import pandas as pd
import torch

from iidlib import distill, evaluate, experiments, features, losses, plots
from iidlib.config import preset
from iidlib.data import load_dataset
from iidlib.engine import in_chunks, pick_device
from iidlib.evaluation import random_real, summarize
from iidlib.features import trained_pool

experiments.take_parameters(globals(), "scale dataset ipc seed share networks")

# %% [markdown]
# ## What the paper leaves open
#
# The methods of the earlier chapters have three costs.
#
# - DM draws a network with new random weights in every iteration {cite:p}`zhao2023dm`. A random network sees edges and colours, and no single one sees much, so it takes thousands of iterations until their average says something.
# - IDM looks through networks in training {cite:p}`zhao2023idm`, which see more. It trains them during the distillation, and discards them at the end: the next run, with another seed or number of images per class, pays again.
# - Class centralization needs features of trained networks, and IID takes them from a pool of ResNet18s {cite:p}`deng2024iid` that serves this one term.
#
# One small pool can serve all three.
# Others have shown the way: DANCE draws matching networks between a random and a trained one, and adds the cross-entropy of trained networks {cite:p}`zhang2024dance`, and TGDD matches at several stages of training {cite:p}`ran2026tgdd`.
# We know of no measurement of what class centralization and covariance matching add on top of that.
#
# ## Mosaics
#
# The first part is not new: an image stores four tiles, as in IDM.
# It needs no learning at all, so everything below is compared with it.

# %%
data = load_dataset(dataset, device=pick_device())
train, classes = data.train, data.train.num_classes
sets = {"random": random_real(train, ipc, seed)}
sets["random-mosaic"] = random_real(train, ipc, seed, factor=2)
assert len({len(syn.images) for syn in sets.values()}) == 1, "equal storage"


# %%
def scored(name):
    """Accuracy of networks trained on a set, one row each."""
    own = preset("dm", dataset, ipc, scale, {"eval.num_eval": networks}).eval
    return evaluate(sets[name], data, protocol=own, seed=seed).assign(label=name)


# %% tags=["nbval-ignore-output"]
scores = {name: scored(name) for name in sets}
assert all(len(own) == networks for own in scores.values())
summarize(pd.concat(scores.values()))[["label", "mean", "std"]].round(1)

# %% [markdown]
# ## A pool that remembers its training
#
# Train a few ConvNets on the real images, and keep a copy of each after the epochs that `pool.epochs_kept` names, and one at the end.
# The copies are the *stages* of training: the first ones see little more than a random network, the last ones know the classes.
# The pool is trained once per dataset and kept; every later run with these settings loads it.

# %% tags=["nbval-ignore-output"]
config = preset("iid-plus", dataset, ipc, scale, {"seed": seed})
pool = trained_pool(data, config.pool, compute=config.compute)
members = features.pool_members(config.pool)
assert len(pool.networks) == len(members) and min(pool.accuracies) > 0
kept = pd.DataFrame(members, columns=["network", "epochs"])
kept.assign(accuracy=pool.accuracies).pivot(index="network", columns="epochs")

# %% [markdown]
# The table shows the accuracy of each copy on images that it was not trained on.
#
# {py:class}`~iidlib.features.StageNetworks` draws from it: in each iteration one network, and one of its stages, as a function of the seed and the iteration number.
# The weights are copied into a single network, so a run that is resumed, or captured as a graph on a GPU, finds them in the same place.
# To see what a draw does, compare its weights with those of every member:

# %% tags=["nbval-ignore-output"]
run = {"iterations": config.iterations, "seed": seed}
plain = preset("iid-plus", dataset, ipc, scale, {"stages.interpolate": "off"}).stages
stages = features.StageNetworks(config.pool, plain, train, **run)
stages.use_pool(pool)
known = [torch.cat([w.flatten() for w in n.parameters()]) for n in pool.networks]
for iteration in range(4):
    drawn = stages.draw(iteration)
    own = torch.cat([w.flatten() for w in drawn.network.parameters()])
    (place,) = [i for i, weights in enumerate(known) if torch.equal(own, weights)]
    print(iteration, "draws network {} after {} epochs".format(*members[place]))

# %% [markdown]
# From `laptop` on, the two stages are a network before its training and after two epochs, and a draw is a random point on the line between them (`stages.interpolate=on`), as in DANCE.

# %% [markdown]
# ## Three terms under one network
#
# A network that knows the classes can provide more than a mean.
#
# *Cross-entropy.* It can say whether a synthetic image looks like its class, as the queue of IDM does ({eq}`idm-ce`).
# The weight is again the accuracy $a$ of the drawn network, so a random network has no say.
# Here $a$ is measured on training images, and is higher than in the table above: test images must not weight a term of the objective.
#
# *Covariance matching* ({eq}`notation-cm`) uses the maps of the same network, which are computed anyway.
#
# *Class centralization* ({eq}`notation-cc`) uses its features, too, and needs no pool of ResNet18s.
# Distances under an early and a late stage have different sizes, so the term is measured in units of the scatter of real images under the same network: `match.cc_scaling=relative`.
#
# This is how the random mosaics from above look to the stages of the first network.
# A smaller weight goes with a larger cross-entropy, so *weighted*, their product, shows how much each stage contributes.
# *Scatter* is that of the mosaics' tiles around the centre of their class, in units of the scatter of as many real images:

# %% tags=["nbval-ignore-output"]
tiles, seen, by_class = sets["random-mosaic"].expanded(), [], (classes, -1)
both = tiles.images, random_real(train, 4 * ipc, seed).images
for stage, network in enumerate(pool.networks[: stages.stages]):
    logits = in_chunks(network, tiles.images, 100).unflatten(0, by_class)
    entropy = losses.class_cross_entropy(logits).mean().item()
    maps = [in_chunks(network.embed, x, 100).unflatten(0, by_class) for x in both]
    near, far = (losses.squared_distances(x).mean().item() for x in maps)
    a = stages.accuracy_of(stage)
    seen.append((members[stage][1], a, entropy, a * entropy, near / far))
names = ["epochs", "accuracy", "cross-entropy", "weighted", "scatter"]
pd.DataFrame(seen, columns=names).round(2)

# %% [markdown]
# ## More than means and covariances
#
# Mean matching cannot tell two sets with the same mean apart.
# A kernel can: the maximum mean discrepancy {cite:p}`gretton2012mmd` of two distributions under a Gaussian kernel $k$ is zero only if they are equal.
# M3D brought it to dataset distillation {cite:p}`zhang2024m3d`.
#
# $$
# \mathcal{L}_{MMD}^c = \overline{k(z, z')} + \overline{k(s, s')} - 2\,\overline{k(z, s)},
# \qquad k(x, y) = e^{-\|x - y\|^2 / 2\sigma_c^2},
# $$ (plus-mmd)
#
# where bars are means over all pairs of real features $z$ and synthetic ones $s$ of class $c$.
# Take two real images with a single feature, at $-1$ and $1$, and two synthetic ones that both sit at $0$:

# %%
real, syn = torch.tensor([[[-1.0], [1.0]]]), torch.zeros(1, 2, 1)  # [C, N, D]
one = torch.ones(1)  # the width of the kernel, squared
far, near = torch.exp(-2 * one), torch.exp(-one / 2)  # of -1 and 1, of either and 0
by_hand = (1 + far) / 2 + 1 - 2 * near
torch.testing.assert_close(losses.kernel_distance(real, syn, one), by_hand)
print("means:", losses.mean_matching(real, syn).item())
print("kernel:", by_hand.numpy().round(3))

# %% [markdown]
# The same number can be computed without pairs: from the difference of the two characteristic functions at random frequencies, which NCFM learns to choose {cite:p}`wang2025ncfm`.
# Its cost grows with the number of images instead of pairs.

# %%
frequencies = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
apart = losses.characteristic_distance(real, syn, one, frequencies)
assert (apart - by_hand).abs() < 0.005

# %% [markdown]
# `match.mmd` is the weight of either; `iid-plus` uses the kernel, the other methods neither.
#
# ## Where to start
#
# The images that a distillation starts from need not be random.
# A trained network can choose them: `syn.init=centres` takes those closest to the centres of clusters in its features, in the spirit of DREAM {cite:p}`liu2023dream`, which picks its *real batches* this way; `syn.init=easiest` takes those of which it is most certain.
# Nothing has been learned yet, so these are choices of real images, to be compared with the random mosaics above:

# %% tags=["nbval-ignore-output"]
chooser = features.choosing_network(pool, config.pool)
for kind in ("centres", "easiest"):
    sets[kind] = features.chosen_images(kind, train, chooser, ipc, 2, seed=seed)
    scores[kind] = scored(kind)
assert len(sets["centres"].images) == len(sets["random"].images)
summarize(pd.concat(scores.values()))[["label", "mean", "std"]].round(1)

# %% [markdown]
# ## The whole method
#
# The loop of {doc}`02_distribution_matching` takes any source of networks and any sum of terms, so `iid-plus` is just one more row in the table of methods.
# Distil with it, and with the two methods on random networks, for a share of the scale's iterations:

# %%
methods = ["dm", "iid-dm", "iid-plus"]
length = {"seed": seed, "iterations": max(1, int(share * config.iterations))}
for name in methods:
    run = distill(preset(name, dataset, ipc, scale, length), data)  # iid-plus last
    sets[name] = run.synthetic

# %% tags=["nbval-ignore-output"]
assert all(syn.images.isfinite().all() for syn in sets.values())
scores |= {name: scored(name) for name in methods}
live = pd.concat([scores[n] for n in ("random", "random-mosaic", *methods)])
means = live.groupby("label", sort=False)["accuracy"].mean()
assert scale == "ci" or "folder:" in dataset or means["iid-plus"] > means["random"]
bars = plots.accuracy_bars(live, chance=100 / classes)
finding = ", ".join(f"{name} {value:.1f} %" for name, value in means.items())
plots.show(bars, f"Equal storage, scale {scale}, one seed: {finding}.")

# %% [markdown]
# The points are networks trained on one set: the figure shows one run and settles nothing.
#
# ## Which part did it?
#
# A method with so many parts owes an answer to that question, and there are two ways to ask.
# *Leave a part out* of the whole: what does it add when everything else is there?
# *Add a part alone* to what remains without all of them, which is DM at the learning rate of `iid-plus`: what does it bring by itself?
# Two parts that do the same job look useless when left out and useful alone; two that need each other look the other way round.
# The cross-entropy is never quite alone, because random networks give it no weight; it is added on top of the stages.
# Two more rows leave out what the parts are added to: the mean, and everything that compares distributions.
#
# The rows are those of the experiment `plus` in `data/results`, at ten images per class: the embedded images at `tour`, all of CIFAR-10 at `laptop`.
# Both columns are gains in points of accuracy, positive where the part helps, with the 95 % interval over paired seeds ({eq}`ablation-interval`).

# %%
gains = {which: experiments.gains_of_parts(which) for which in ("tour", "laptop")}
pd.DataFrame({w: gains[w].set_index(["group", "part"])["text"] for w in gains})

# %%
axes, findings = plots.panels(2, height=4), []
for ax, (which, own) in zip(axes, gains.items(), strict=True):
    plots.part_gains(own, title=which, ax=ax)
    counts = map(sum, (own["low"] > 0, own["high"] < 0, own["low"].notna()))
    findings.append("{} above zero, {} below of {} at {}".format(*counts, which))
axes[1].set_yticks([])
plots.show(axes, f"Intervals: {'; '.join(findings)}.")

# %% [markdown]
# Read it as in {doc}`08_ablations`: an open dot is a part whose interval contains zero, and nothing is claimed about it; a diamond is a difference over one or two seeds, which has no interval.
# Without the networks of the stages, matching uses random ones, which switches off the cross-entropy, too; the pool still chooses the initial images and serves class centralization.
# At `tour` the same networks *added alone* do harm: they know the classes, but are poor at matching means. They pay off through the cross-entropy, which needs them.
# Both terms of IID gain a little there when added alone, and nothing clear when left out; perhaps other terms see what they see.
# Nor is the mean missed, as the kernel sees it, too. Without any matching the cross-entropy ruins its mosaics: this is still distribution matching.
# Of so many intervals, one in twenty excludes zero by luck alone.
#
# ## What does it cost?
#
# Accuracy has a price, and methods with the same number of iterations do not pay the same.
# Each row of `data/results` says how long its iterations took, and newer ones also how long the pool took to train.
# A pool is trained once for all sets that are distilled with it, so there are two fair answers: the seconds for the first set, and those for every further one.

# %%
costs = experiments.distillation_costs("laptop", [*methods, "idm", "iid-idm"])
mean = costs.groupby(["label", "device"], sort=False).mean(numeric_only=True)
mean = mean.drop(columns=["ipc", "seed"]).round(1)
mean.astype(object).fillna("not recorded")

# %%
same = experiments.costs_on_one_device(costs)
chart = plots.pareto(same)
plots.note(chart, same)
best = same.groupby("label").mean(numeric_only=True).sort_values("accuracy").iloc[-1]
finding = f"{best.name} is the most accurate, {best['accuracy']:.1f} %"
took = f"{best['seconds']:.0f} s plus {best['pool_seconds']:.0f} s for the pool"
plots.show(chart, f"At laptop on {same['device'].iloc[0]}: {finding}, in {took}.")

# %% [markdown]
# The figure shows distillations with one number of threads. The grey line connects the methods that nothing cheaper beats, pools included; it skips a method whose pool is not recorded.
# Times were taken on different days and alongside other work: the seeds of one method differ by up to a factor of two.
# A pool that is not recorded has its cost all the same: `iid-dm` and `iid-idm` train one, and their older rows do not say how long it took.
#
# ## Under the paper's own evaluation
#
# The networks of the smaller scales are narrower than those of the paper, and their evaluation is shorter, so none of the numbers above can be compared with a published one.
# The experiment `headline` closes half of the gap: it evaluates sets distilled at a smaller scale as the paper does, with wide networks and all epochs, but with one network per seed where the paper has five.

# %%
head = experiments.headline("laptop")
head.round(1).astype(object).fillna("missing")

# %% [markdown]
# *Low* and *high* are the 95 % interval of the mean over seeds.
# The columns of the two methods hold their published values ({doc}`07_results`), which are not measured here; those sets took twenty thousand iterations on GPUs, and each was evaluated with five networks.
# All seeds share one pool, so nothing in the intervals comes from its training.
# The seconds are those for training the pool, which all sets of one setting share, and for the iterations of one distillation.
#
# ## How it was chosen
#
# A method with this many settings can be fitted to any test set.
# So the settings were chosen on images that no result above uses, with one exception: a first test result at one image per class was the reason for the third search below.
# The last round of a search only confirms the default, and was run after its first test results.
# `validation:cifar10` holds out a part of each class's training images and evaluates on that.
# The varied settings are listed in a file of rounds; each was written after the round before it and before its own runs:

# %%
grids = {"": "tour", "-mini": "tour", "-laptop": "laptop", "-ipc1": "laptop"}
folder = experiments.results_dir()
print((folder / "iid-plus-search.yaml").read_text())

# %% [markdown]
# `iid reproduce data/results/iid-plus-search.yaml --scale tour` runs its missing cells, and the rows go to the table of that scale whose name ends in `-validation.csv`.
# Three more files hold the few cells at `laptop`, those at one image per class there, and those that ask whether the embedded images need the same pool.
#
# ## What failed
#
# These are the rounds of all four files, including what made things worse.
# *Gain* is over the first row of the round, in points and over the seeds in common; single seeds differ by about a point, so ignore anything smaller. What has not been run is left out.

# %%
files = {folder / f"iid-plus-search{g}.yaml": s for g, s in grids.items()}
found = [experiments.search_results(path, s) for path, s in files.items()]
pd.options.display.max_rows = 100
pd.concat(found, ignore_index=True).dropna(subset=["accuracy"]).round(1)

# %% [markdown]
# Most of what sounded good did not help.
#
# - *More cross-entropy*, at ten images per class. It is the first term to gain something and the first to spoil it: above a tenth the accuracy falls, at 1 by more than without the term.
# - *More class centralization.* In units of the real scatter, weights up to ten change nothing that one seed can show.
# - *Early stages first, or late stages first.* One seed gained a little, as did nearly all of its round, and the uniform draw is simpler.
# - *Covariances after earlier blocks*, and *the easiest images* to start from, which gain less than the centres.
# - *A pool trained in smaller batches* helps where there are few images, at `tour`, and not at `laptop`; the same holds for *the kernel distance*, which was kept because at this weight its harm is within the noise of the seeds.
#
# One failure was instructive.
# At one image per class the settings chosen at ten fell behind the published value of `iid-idm`, and no choice of weights fixed that.
# Earlier networks closed most of the gap: five networks trained for two epochs, and points between their beginnings and ends, instead of three trained for sixteen.
# With them more cross-entropy helps there, and by more.
# At ten images they are at least as good as the longer training, for a fifth of its cost, so they became the default for whole datasets.
# Many values of such a set lie outside the colours of a screen, and stored in eight bits it loses points (see its card in `data/distilled`).
#
# The best of some eighty cells with a seed or two is likely to be overestimated.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# Find two sets of one feature with equal mean *and* variance that the kernel tells apart.
# Does covariance matching see the difference?
# ```

# %% tags=["hide-cell"]
# The real images stay. Now both sides have mean 0 and variance 1.
syn = torch.tensor([-2.0, 0, 0, 0, 0, 0, 0, 2]).view(1, 8, 1)
blind = losses.covariance_matching(real[..., None], syn[..., None]).item()
print("mean:", losses.mean_matching(real, syn).item(), " covariance:", blind)
print("kernel:", losses.kernel_distance(real, syn, one).numpy().round(3))

# %% [markdown]
# ```{admonition} Exercise 2
# How many sets must share a pool before its training takes less than a tenth of the total time?
# First derive it for a pool of $P$ seconds and distillations of $d$ seconds each, then use the numbers of this chapter's run.
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
# P < (P + n d) / 10 means n > 9 P / d.
took = pool.seconds  # None for a pool of an earlier version, which did not record it
print("not recorded" if took is None else f"{int(9 * took / run.seconds) + 1} sets")

# %% [markdown]
# ## Summary
#
# Copies of a few networks, kept at several stages of training, can replace random networks, a queue in training and a pool of ResNet18s, as long as the cross-entropy is there.
# Cross-entropy, a kernel distance and the two terms of IID then use features that are computed anyway.
# Paired seeds decide which of these parts deserves the credit, added alone and left out, and the tables above show what has been measured so far.
#
# ## What's next
#
# `iid distill iid-plus --scale tour` runs the method from the command line; every part is a setting, so `--set match.source=random` or `--set match.mmd=0` gives you a method of your own.
# {doc}`12_your_own_images` applies it to your images, and {doc}`13_batch_runs` to many seeds.
#
# ## References
#
# The terms are due to {cite:t}`deng2024iid`, mosaics and cross-entropy to {cite:t}`zhao2023idm`.
# Matching along a training was proposed by {cite:t}`zhang2024dance` and {cite:t}`ran2026tgdd`, the kernel by {cite:t}`zhang2024m3d` and the characteristic function by {cite:t}`wang2025ncfm`.
# Choosing images by clusters follows {cite:t}`liu2023dream`.
