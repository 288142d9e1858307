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
# # Distribution matching
#
# Learning images by differentiating through the training of a network is expensive.
# Distribution matching (DM, {cite:t}`zhao2023dm`) trains nothing: it only asks that real and synthetic images look alike *on average* to one random network after another.
# Here you build that loss, watch it work, and find what it cannot see.
# Every method in the later chapters builds on it, so it pays to know it well.
#
# **What you will learn**
#
# 1. why means of random features say something about images;
# 2. to write the loss by hand, and to compare it with the library's;
# 3. how close random real images come to the mean, and what a mean leaves open;
# 4. why real and synthetic images go through the same augmentation;
# 5. what a distillation does to the loss and to the images.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`01_quickstart` | helpful | what a distillation is for |
# | convolutional networks in PyTorch | necessary | |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | below 1 |
# | `laptop`, `paper` | CPU, GPU | not measured yet |

# %% tags=["parameters"]
scale = "tour"  # of the distillation; the examples before it are small at any scale
dataset = "cifar10-mini"
ipc = 10
seed = 0

# %%
import pandas as pd
import torch

from iidlib import augment, distill, experiments, load_dataset, losses, plots, preset
from iidlib.data import denormalize
from iidlib.engine import in_chunks, pick_device
from iidlib.evaluation import random_real
from iidlib.features import RandomNetworks
from iidlib.rng import stream

experiments.take_parameters(globals(), "scale dataset ipc seed")

# %% [markdown]
# ## Why means of features
#
# Two distributions are equal when the mean of every function agrees under both; with a rich enough family of functions, the largest gap is a distance between them, the *maximum mean discrepancy* {cite:p}`gretton2012mmd`.
# As its functions, DM takes the features of a ConvNet {cite:p}`gidaris2018convnet` with random weights.
# Such a network has learned nothing, yet its features respond to edges, colours and textures at many places, and each new draw of its weights is a new family.
# Since every iteration uses another network, the images cannot overfit the weaknesses of one.
#
# Why not a trained network, which knows so much more about the images?
# Because it knows them for a purpose: it has learned to ignore whatever does not tell the classes apart, and a set that agrees with the real one in what such a network sees may differ in everything else.
# Random filters ignore nothing in particular.
# They are also free: a trained network costs seconds to an hour, a random one a few random numbers, and thousands of different ones are worth more than a single good one.
#
# Note, too, what the mean is taken over.
# It is the mean of a *class*; the loss never compares two classes, and does not ask whether they end up apart.
# If the real classes are apart, sets that match their means are apart as well.
#
# One network gives a vector of features for each image; below, those of all training images, with a class axis.

# %%
data = load_dataset(dataset, device=pick_device())
train, classes = data.train, data.train.num_classes
whole = train.images_of(train.class_index[:, : train.counts.min()].flatten())

# %%
options = {"width": 32, "device": train.device, "compile": "off"}
source = RandomNetworks("convnet3", data.spec, seed=7, **options)


@torch.no_grad()
def features(images):
    """Features of images sorted by class, under `network`: [C, N, D]."""
    return in_chunks(network.embed, images, 100).unflatten(0, (classes, -1))


network = source.draw(0).network
real = features(whole)
print("real features [C, N, D]:", list(real.shape))

# %% [markdown]
# ## The loss by hand
#
# For each class, the squared distance between two means, {eq}`notation-dm` without the augmentation.
# A loop over the classes makes it plain.


# %%
def mean_gap(real, syn):
    """Squared distance of mean features, class after class."""
    gaps = []
    for c in range(len(real)):
        real_mean = real[c].sum(0) / len(real[c])
        syn_mean = syn[c].sum(0) / len(syn[c])
        gaps.append(((real_mean - syn_mean) ** 2).sum())
    return torch.stack(gaps)


# %%
start = random_real(train, ipc, seed)
syn = features(start.images)
by_hand = mean_gap(real, syn)
for name, gap in zip(data.spec.classes[:3], by_hand, strict=False):
    print(f"{name:10} {gap:.2f}")

# %% [markdown]
# The library's function does the same for all classes at once, with a mask for classes of unequal size.
# It is a plain sum over the feature's dimensions, not a mean, as in the released code.

# %%
torch.testing.assert_close(losses.mean_matching(real, syn), by_hand)
print(f"sum over classes {losses.mean_matching(real, syn).sum():.1f}")

# %% [markdown]
# ## How close random images come
#
# A few random real images already have about the right mean, and more of them come closer.
# If $s^2$ is the variance of a class, summed over dimensions, then $n$ of its $N$ images, drawn without replacement, miss its mean by
#
# $$
# \mathbb{E}\, \mathcal{L}_{DM}^c = s^2 \Big( \frac1n - \frac1N \Big)
# $$ (dm-noise)
#
# in expectation: the loss of random images is nothing but noise, and it falls like $1/n$.


# %%
def law(n):
    """Expected loss of n random images per class, summed over classes."""
    count = real.shape[1]
    variance = losses.squared_distances(real).sum(1) / (count - 1)
    return float(variance.sum()) * (1 / n - 1 / count)


# %%
rows = {}
for n in (5, 10, 20, 50, 100):
    three = [features(random_real(train, n, 10 + i).images) for i in range(3)]
    found = [float(losses.mean_matching(real, one).sum()) for one in three]
    rows[n] = {"loss, mean of 3 draws": sum(found) / 3, "expected": law(n)}
pd.DataFrame(rows).T.rename_axis("images per class").round(0).astype(int)

# %% [markdown]
# A mean, of course, says nothing about what lies around it: draw the features of a class together until they all lie on its centre, and the loss does not notice.
# How the images of a class lie relative to each other, and how their features vary together, is left to chance; these are the two gaps that IID fills {cite:p}`deng2024iid`, and {doc}`03_two_shortcomings` is about them.
#
# ## The method in a dozen lines
#
# With the loss in hand, the method is a loop.
# Draw a network and a batch of real images, compute the loss, move the synthetic pixels against its gradient, and start over with another network.
# The real side needs no gradient; the synthetic side needs one for the images and none for the network, whose weights stay as they were drawn.

# %%
images = start.images.clone().requires_grad_()
found = []
for iteration in range(40):
    network = source.draw(100 + iteration).network
    batch = train.sample(32, stream(seed, iteration, "by hand"))
    target = features(train.images_of(batch.index))
    syn = network.embed(images).unflatten(0, (classes, -1))
    loss = losses.mean_matching(target, syn).sum()
    (gradient,) = torch.autograd.grad(loss, images)
    images = (images - gradient).detach().requires_grad_()
    found.append(float(loss.detach()))

# %% tags=["nbval-ignore-output"]
assert sum(found[-10:]) < sum(found[:10])
print(f"loss {found[0]:.0f} in the first iteration, {found[-1]:.0f} in the last")

# %% [markdown]
# Labels serve only to sort the images, no network is trained, and no second derivative is taken; compare that with methods that unroll a whole training {cite:p}`wang2018dd`.
# An iteration costs one forward pass of real images, and a forward and a backward pass of a few synthetic ones.
#
# That is DM {cite:p}`zhao2023dm`, except for one thing.
#
# ## The same transform for both
#
# The networks that will be trained on the set see it augmented.
# *Differentiable Siamese augmentation* (DSA, {cite:t}`zhao2021dsa`) puts that into the matching: in each iteration, each class draws one of six transforms, and its real and its synthetic images go through the very same one.
# The gradient flows back through the transform to the pixels.

# %%
draws = augment.sample(data.spec.augmentation, classes, stream(127, 0, "dsa"))
group = torch.arange(classes).repeat_interleave(2)
pairs = []
for images in (whole, start.images):
    two = images.unflatten(0, (classes, -1))[:, :2].flatten(0, 1)
    pairs.append(torch.stack([two, augment.apply(two, draws, group)], 1))

# %%
names = [augment.OPERATIONS[op] for op in draws.op[:6]]
titles = ("two real images and their transforms", "two synthetic images and theirs")
axes = plots.panels(2, height=2.9)
for ax, title, pair in zip(axes, titles, pairs, strict=True):
    shown = denormalize(pair[:12].flatten(0, 1).cpu(), data.spec)
    plots.image_grid(shown.split(4), row_labels=names, title=title, ax=ax)
plots.show(axes, "Six classes, six transforms: one for all images of a class.")

# %% [markdown]
# If each side drew its own, even a perfect copy of the real images would have a loss; the second exercise measures it.
#
# ## A distillation
#
# The whole loop is: draw a network, real images and transforms; compute the loss; move the synthetic images by one step of gradient descent.
# `distill` runs it; `on_iteration` is called with intermediate sets.

# %%
config = preset("dm", dataset, ipc, scale, {"seed": seed})
moments = (0, config.iterations // 4, config.iterations)
seen = {}
watch = {"on_iteration": seen.__setitem__, "iterations_to_show": moments}
result = distill(config, data, **watch)

# %%
distilled = result.synthetic.images
assert list(seen) == list(moments)
assert seen[0].images.equal(start.images), "a run starts from random real images"
assert distilled.isfinite().all() and not distilled.equal(start.images)

# %% tags=["nbval-ignore-output"]
curve = plots.loss_curves(result.metrics)
first, last = result.metrics["loss_mean"].iloc[[0, -1]]
finding = f"from {first:.0f} to {last:.0f} in {config.iterations} iterations"
plots.show(curve, f"The mean-matching loss goes {finding}, with jumps.")

# %% [markdown]
# The curve jumps because each iteration has its own network, real images and transforms.
# Do not look for convergence in it: a network with large random weights has a large loss, and the next one a small one, whatever the images are like.
# The thick line is a running median, and even that says less than the table below.
#
# To compare two sets, take networks that neither has seen, and the mean over *all* training images:

# %% tags=["nbval-ignore-output"]
rows = []
for stranger in range(1, 4):
    network = source.draw(stranger).network
    real = features(whole)
    both = [features(images) for images in (start.images, distilled)]
    found = [float(losses.mean_matching(real, one).sum()) for one in both]
    rows.append([*found, law(ipc)])
gaps = pd.DataFrame(rows, columns=["random", "dm", "expected of random"])
gaps.round(1)

# %% [markdown]
# The last column is the expected loss of random images, by {eq}`dm-noise`; the initial set is one such set.
# Read the other way, the law says how many random images match the mean as well as the distilled ones:

# %% tags=["nbval-ignore-output"]
gap = gaps["dm"].iloc[-1]  # under the network that `law` looks at
worth = next(n for n in range(1, real.shape[1] + 1) if law(n) <= gap)
print(f"{ipc} distilled images match the mean as well as {worth} random ones")

# %%
if scale != "ci" and "folder:" not in dataset:
    assert worth > ipc and (gaps["dm"] < 0.7 * gaps["random"]).all()

# %% [markdown]
# And this is what it does to the images, one from each class.

# %% tags=["nbval-ignore-output"]
few = [seen[moment].to_uint8()[::ipc] for moment in moments]
names = [f"iteration {moment}" for moment in moments]
grid = plots.image_grid(few, row_labels=names)
change = 100 * (distilled - start.images).std() / start.images.std()
finding = f"One image per class after {', '.join(map(str, moments))} iterations"
plots.show(grid, f"{finding}: objects stay, {change:.0f} % of the spread is new.")

# %% [markdown]
# ## Exercises
#
# ```{admonition} Exercise 1
# Which is closer to the mean features of a class: its mean *image*, or one random image of it?
# Guess first: the mean of features is not the feature of a mean.
# ```

# %% tags=["hide-cell"]
average = whole.unflatten(0, (classes, -1)).mean(1)
one = random_real(train, 1, seed).images
for name, images in (("mean image", average), ("one random image", one)):
    print(f"{name}: {losses.mean_matching(real, features(images)).sum():.0f}")

# %% [markdown]
# ```{admonition} Exercise 2
# Take the synthetic images to be the real ones.
# What is the loss when both sides go through the same transforms, and when each draws its own?
# ```

# %% tags=["hide-cell"]
some = whole.unflatten(0, (classes, -1))[:, :50].flatten(0, 1)
group = torch.arange(classes).repeat_interleave(50)
other = augment.sample(data.spec.augmentation, classes, stream(4, 0, "dsa"))
here, there = (features(augment.apply(some, d, group)) for d in (draws, other))
print(f"the same draws: {losses.mean_matching(here, here).sum():.1f}")
print(f"separate draws: {losses.mean_matching(here, there).sum():.1f}")

# %% [markdown]
# ## Summary
#
# DM compares the mean features of real and synthetic images, class by class, under a new random network in each iteration and through one shared transform per class.
# The distilled images match the mean of their class better than as many random ones.
# The loss does not see what lies around the mean.
#
# ## What's next
#
# {doc}`03_two_shortcomings` measures what the loss leaves open: how far apart the images of a class lie, and how their features vary together.
#
# ## References
#
# DM is due to {cite:t}`zhao2023dm`, and DSA to {cite:t}`zhao2021dsa`; {cite:t}`gretton2012mmd` explain the discrepancy behind it.
# {cite:t}`zhao2023idm` develop DM further.
