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
# # Class centralization
#
# Mean matching fixes the centre of a class and leaves open how far its images lie from it.
# Class centralization, the first of the two terms of IID {cite:p}`deng2024iid`, draws the synthetic images of a class towards their centre, as a trained network sees them.
# Here you build it, find that its weight has no scale of its own, and measure what it does.
#
# **What you will learn**
#
# 1. to write the term by hand, in the released form and in the one with $\beta$;
# 2. to train the small pool of networks that it looks through;
# 3. why one weight means different things under different networks, and what `relative` scaling does about it;
# 4. to read a term's share of the loss and of the gradient;
# 5. to measure the scatter of a class before and after.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`02_distribution_matching` | necessary | the loss that this term joins |
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
stronger = 10.0  # the last run has this many times the preset's weight

# %%
import math

import pandas as pd
import torch

from iidlib import distill, experiments, load_dataset, losses, plots, preset
from iidlib.config import override
from iidlib.engine import in_chunks, pick_device
from iidlib.evaluation import random_real
from iidlib.features import RandomNetworks, trained_pool
from iidlib.rng import stream

experiments.take_parameters(globals(), "scale dataset ipc seed stronger")

# %% [markdown]
# ## The term by hand
#
# Let $f_i$ be the feature of synthetic image $i$ of a class, and $\bar f$ the mean of these features.
# The term is the sum of squared distances to the centre, {eq}`notation-cc`.
# No real image takes part: it relates the synthetic images of a class to one another, which is the *inter-sample* relation of the paper's title.
#
# Its gradient on one feature has two parts, one through $f_i$ itself and one through the centre, which every $f_i$ moves by $1/n$.
# The second is $-\frac{2}{n} \sum_k (f_k - \bar f)$, and deviations from a mean sum to zero, so it vanishes:
#
# $$
# \frac{\partial \mathcal{L}_{CC}}{\partial f_i} = 2\,(f_i - \bar f) .
# $$ (cc-gradient)
#
# Every image is pulled straight towards the centre, in proportion to its distance, and the centre stays where it is.
# The term therefore leaves alone what mean matching controls, and changes what mean matching cannot see.
# Nothing in the linear form itself stops the pull before all images lie on one point; only the *weight*, and what the pixels can do, stop it.

# %%
features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]])  # 1 class, 3 images
centre = features.mean(1, keepdim=True)
distances = ((features - centre) ** 2).sum(2)
print("centre", *centre.flatten().tolist())
print("squared distances", *distances.flatten().tolist())
torch.testing.assert_close(losses.class_centralization(features), distances.sum(1))

# %% [markdown]
# ## Two forms
#
# This *linear* form is what the authors released, with a remark that it does as well as their earlier one.
# That one, inferred from lines that they commented out, is $\sum_i \max(0, e^{\alpha d_i} - \beta)$.
# It pulls far images exponentially harder, and with $\beta$ it leaves the near ones alone.
#
# The pull is the norm of the gradient on an image's feature.
# Two images at squared distance $d$ from their centre show it:


# %%
def pull(d, **form):
    """Norm of the gradient on each of two images at squared distance d."""
    pair = torch.tensor([[[-math.sqrt(d)], [math.sqrt(d)]]], requires_grad=True)
    losses.class_centralization(pair, **form).sum().backward()
    return float(pair.grad.abs().mean())


# %%
rows = {}
for d in (5, 50, 60, 200):
    exp, border = pull(d, form="exp"), pull(d, form="exp", beta=3.0)
    rows[d] = {"linear": pull(d), "exp": exp, "exp, beta 3": border}
print(f"ln(3) / 0.02 = {math.log(3) / 0.02:.1f}")
pd.DataFrame(rows).T.rename_axis("d").round(2)

# %% [markdown]
# Since $e^{\alpha d} \ge 1$, a $\beta$ of one or less changes nothing; above one, an image is pulled only where $d > \ln\beta / \alpha$.
# With the default $\alpha$ and $\beta = 3$ that threshold, printed above the table, lies between its second and third rows.
#
# ## A network that has learned something
#
# Distances under a random network say little about what makes two images of a class alike.
# So the term looks through a *trained* network, drawn in each iteration from a pool.
# The official recipe trains a thousand ResNet18s {cite:p}`he2016resnet`; at the small scales, a few ConvNets trained in seconds stand in for them.
# The pool is trained if it does not exist yet, and cached for the next run.

# %% tags=["nbval-ignore-output"]
data = load_dataset(dataset, device=pick_device())
config = preset("dm-cc", dataset, ipc, scale, {"seed": seed})
options = {"device": data.train.device, "compile": config.compute.compile}
pool = trained_pool(data, config.pool, compute=config.compute)
print("accuracies (%):", *(round(accuracy, 1) for accuracy in pool.accuracies))

# %%
assert len(pool.networks) == config.pool.count and ipc > 1, "set ipc to 2 or more"
assert "folder:" in dataset or min(pool.accuracies) >= 200 / data.train.num_classes

# %% [markdown]
# These are accuracies on the test images, used for one thing: to refuse a pool that could be guessing, by a binomial test.
#
# ## A weight without a scale
#
# The term sums squared distances over images and dimensions, and all of them depend on the network.
# Below, the same random real images through networks of different width, random and trained: their mean squared distance to the centre, and the term at the weight of the released code.


# %%
@torch.no_grad()
def by_class(network, images):
    """Features with a class axis, [C, N, D], of images sorted by class."""
    flat = in_chunks(network.embed, images, 100)
    return flat.unflatten(0, (data.train.num_classes, -1))


# %%
lenses = {}
for width in (8, 32, 128):
    source = RandomNetworks("convnet3", data.spec, width=width, seed=7, **options)
    lenses[f"random, width {width}"] = source.draw(0).network
for i, network in enumerate(pool.networks):
    lenses[f"trained, number {i}"] = network

# %% tags=["nbval-ignore-output"]
some = {n: random_real(data.train, n, seed).images for n in (10, 50)}
rows = {}
for name, network in lenses.items():
    few, many = (by_class(network, images) for images in some.values())
    rows[name] = {
        "dimensions": few.shape[2],
        "mean distance": losses.squared_distances(many).mean().item(),
        "0.05 CC, n = 10": 0.05 * losses.class_centralization(few).sum().item(),
        "0.05 CC, n = 50": 0.05 * losses.class_centralization(many).sum().item(),
    }
scales = pd.DataFrame(rows).T.round(0).astype(int)
scales

# %%
if "folder:" not in dataset:
    assert scales["mean distance"].iloc[2] > 5 * scales["mean distance"].iloc[0]
    assert (scales["0.05 CC, n = 50"] > 4 * scales["0.05 CC, n = 10"]).all()

# %% [markdown]
# At one and the same weight, the term is many times larger for a wider network, and about five times larger for five times the images, while the mean-matching loss *falls* with their number.
# A weight that suits the released ResNet18 features at ten images per class says nothing about other features or other numbers of images.
#
# `match.cc_scaling` offers three interpretations of the weight.
# `released` is the sum as published; `per_image` multiplies it by $10/n$; and `relative` divides the mean distance of the synthetic images by that of real ones, whose features are $g_j$, under the same network and augmentation:
#
# $$
# \frac{\frac1n \sum_{i=1}^{n} \| f_i - \bar f \|^2}{\frac1N \sum_{j=1}^{N} \| g_j - \bar g \|^2} .
# $$ (cc-relative)
#
# This ratio has no unit: one means as dispersed as the real images.
# The scales below `paper`, whose pools are small ConvNets, use it; it is ours, not the paper's.
#
# ## What it does
#
# We run it three times from the same seed, so with the same real batches, networks and augmentation: without the term, with the preset's weight, and with a multiple of it.

# %%
strong = override(config, {"match.cc": stronger * config.match.cc})
runs = {
    "dm": distill(preset("dm", dataset, ipc, scale, {"seed": seed}), data),
    "dm-cc": distill(config, data),
    f"{stronger:g}x dm-cc": distill(strong, data),
}

# %%
for name, result in runs.items():
    assert result.synthetic.images.isfinite().all()
    assert ("loss_cc" in result.metrics) == (name != "dm")

# %% [markdown]
# Each logged iteration records the weighted terms and the norm of the gradient that each sends to the images.
# The share of the gradient shows how strong a term is; neither the weight nor the share of the loss does.

# %% tags=["nbval-ignore-output"]
rows = {}
for name in list(runs)[1:]:
    mean = runs[name].metrics.mean()
    loss = mean["loss_cc"] / (mean["loss_mean"] + mean["loss_cc"])
    gradient = mean["grad_cc"] / (mean["grad_mean"] + mean["grad_cc"])
    rows[name] = {"loss (%)": 100 * loss, "gradient (%)": 100 * gradient}
shares = pd.DataFrame(rows).T
shares.round(0).astype(int)

# %%
assert "folder:" in dataset or (shares.diff(axis=1).iloc[:, 1] < 0).all()

# %% [markdown]
# The share of the loss is by far the larger one.
# A sum of squared distances is large at the current images, but changes slowly when a pixel does.
# Going by the loss, you would think the term stronger than it is.
#
# Does it do what it says?
# Here are the distances of single images to the centre of their class, as the trained networks see them, in units of the mean over real images:

# %%
few = min(100, int(data.train.counts.min()))
drawn = data.train.sample(few, stream(seed, 0, "chapter"))
real = data.train.images_of(drawn.index)
sets = {"real": real}
for name, result in runs.items():
    sets[name] = result.synthetic.images

# %% tags=["nbval-ignore-output"]
parts = []
for network in pool.networks:
    unit = losses.squared_distances(by_class(network, real)).mean()
    for name, images in sets.items():
        far = losses.squared_distances(by_class(network, images)).flatten() / unit
        parts.append(pd.DataFrame({"label": name, "distance": far.tolist()}))
distances = pd.concat(parts, ignore_index=True)
scatter = distances.groupby("label", sort=False)["distance"].mean()
scatter.round(2)

# %%
if scale != "ci" and "folder:" not in dataset:
    assert scatter[f"{stronger:g}x dm-cc"] < scatter["dm-cc"] < scatter["dm"]

# %% tags=["nbval-ignore-output"]
unit = "squared distance to the class centre (1 = mean of real images)"
curves = plots.distance_distribution(distances, unit=unit)
spread = ", ".join(f"{name} {value:.2f}" for name, value in scatter.items())
plots.show(curves, f"Mean squared distance to the class centre: {spread}.")

# %% [markdown]
# ## Too much of it
#
# A weight that is far too strong would draw the images of a class into one.
# Pixels show it less than features do, so we count the *different* images left in a class, as the networks see it: if $\lambda_k$ are the eigenvalues of the covariance of its features, $(\sum \lambda_k)^2 / \sum \lambda_k^2$ counts the directions in which they vary.

# %% tags=["nbval-ignore-output"]
counts = {}
for name, images in sets.items():
    few = by_class(pool.networks[0], images)[:, :ipc]
    centred = few - few.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(centred @ centred.mT)  # up to zeros
    counts[name] = float((values.sum(1) ** 2 / values.square().sum(1)).mean())
pd.Series(counts, name=f"directions, of {ipc - 1}").round(2).to_frame()

# %% [markdown]
# A pull of equal strength in all directions leaves their number as it is and shortens them all; where it falls, images have become copies of each other.
# Here it hardly falls: at ten times the weight the class is smaller, but has as many directions.
# {doc}`08_ablations` shows the accuracy at weights up to a hundred times the usual one.
#
# A word on the right baseline: the centre of $n$ images lies closer to them than the true one does, so $n$ random real images show only $(n-1)/n$ of the scatter in expectation.
# The images of DM lie between that and the real ones.
# The preset's weight reduces the scatter a little, its multiple a lot.
# Whether closer is better for the networks trained on the set, and at which weight, is a question of accuracy over several seeds, which this chapter does not answer.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# With one image per class, IID on DM is DM: show that the term and its gradient are then zero.
# ```

# %% tags=["hide-cell"]
lonely = torch.rand(10, 1, 512, generator=stream(0, 0, "lonely")).requires_grad_()
loss = losses.class_centralization(lonely).sum()
loss.backward()
print(f"loss {loss.item()}, largest gradient {lonely.grad.abs().max().item()}")

# %% [markdown]
# ```{admonition} Exercise 2
# Choose $\beta$ so that only the farthest fifth of the real images would be pulled, with $\alpha = 0.02$, and check the share.
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
far = losses.squared_distances(by_class(pool.networks[0], real)).double()
beta = math.exp(0.02 * far.quantile(0.8).item())
cost = (torch.exp(0.02 * far) - beta).clamp_min(0)
share = 100 * (cost > 0).double().mean()
print(f"beta {beta:.3g} pulls {share:.0f} % of the images")

# %% [markdown]
# ## Summary
#
# Class centralization is the sum of squared distances of the synthetic images to the centre of their class, under a trained network.
# Its weight means nothing without the network, the number of dimensions and the number of images; `relative` scaling makes it comparable, and the logged shares of loss and gradient show how strong it is.
# It does draw the images of a class together.
#
# ## What's next
#
# {doc}`05_covariance_matching` covers the other term, which looks at features instead of images and pulls the spread the other way.
#
# ## References
#
# The term is due to {cite:t}`deng2024iid`; {cite:t}`wang2022cafe` align features of real and synthetic images layer by layer, and {cite:t}`zhao2023idm` also use trained networks alongside mean matching.
# The mean-matching loss is due to {cite:t}`zhao2023dm`.
