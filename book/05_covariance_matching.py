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
# # Covariance matching
#
# Two sets of images may agree in the mean of every feature and still differ in how their features vary *together*.
# Covariance matching, the second term of IID {cite:p}`deng2024iid`, compares that as well, from as few as ten images per class.
# Here you build it, learn how much so few images can say, and measure the gap that it closes.
#
# **What you will learn**
#
# 1. why positions of a feature map serve as observations, and what *local* means;
# 2. to compute a local covariance by hand, and to compare it with the library's;
# 3. how its rank and its size depend on the number of images;
# 4. what the term does to the gap between real and synthetic images, and to their spread.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`02_distribution_matching` | necessary | the loss that this term joins |
# | covariance matrix, its rank and trace | necessary | |
# | {doc}`04_class_centralization` | helpful | the term that it pulls against |
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
import pandas as pd
import torch

from iidlib import distill, experiments, load_dataset, losses, plots, preset
from iidlib.config import override
from iidlib.engine import in_chunks, pick_device
from iidlib.evaluation import random_real
from iidlib.features import RandomNetworks

experiments.take_parameters(globals(), "scale dataset ipc seed stronger")

# %% [markdown]
# ## Positions as observations
#
# The feature $z$ of an image is long: with the published network, 2048 numbers, from 128 channels at 16 positions.
# The covariance of ten such vectors has rank nine at most, out of 2048, which leaves little to compare.
#
# IID takes the map apart: each of its $P$ positions is an observation of the $K$ channels {cite:p}`deng2024iid`.
# Ten images then give 160 observations in 128 dimensions.
# This keeps how *channels* vary together at the same position, the *inter-feature* relation of the paper's title, and gives up how one position varies with another.
#
# Why not channels *within* one image, over its positions, as style transfer does?
# That would describe the texture of a single picture.
# Here the mean map over the images is subtracted first, which leaves how images of a class *differ* from one another, position by position: two channels that rise and fall together from image to image have a large entry, whatever their common level.
#
# We look at all training images through a random ConvNet {cite:p}`gidaris2018convnet`.

# %%
data = load_dataset(dataset, device=pick_device())
train, classes = data.train, data.train.num_classes
everything = train.images_of(train.class_index[:, : train.counts.min()].flatten())

# %%
options = {"seed": 7, "device": train.device, "compile": "off"}
published = RandomNetworks("convnet3", data.spec, width=128, **options)
narrow = RandomNetworks("convnet3", data.spec, width=32, **options)


# %%
@torch.no_grad()
def maps(network, images):
    """Feature maps, [C, N, K, P], of images sorted by class."""
    found = in_chunks(network.feature_map, images, 100)
    return found.flatten(2).unflatten(0, (classes, -1))


# %%
ten = maps(published.draw(0).network, random_real(train, 10, seed).images)
print("maps [C, N, K, P]:", list(ten.shape))

# %% [markdown]
# ## The local covariance by hand
#
# {eq}`notation-cm` for one class: subtract the mean map $M$ over the images, for each channel *and position*, multiply each image's map with its own transpose, and average over the images.


# %%
def covariance(fmap):
    """Local covariance [K, K] of one class, from its maps [N, K, P]."""
    mean = fmap.sum(0) / len(fmap)
    total = torch.zeros(fmap.shape[1], fmap.shape[1])
    for image in fmap:
        centred = image - mean
        total += centred @ centred.T
    return total / len(fmap)


# %%
by_hand = covariance(ten[0].cpu())
torch.testing.assert_close(losses.local_covariance(ten)[0].cpu(), by_hand)
print("covariance [K, K]:", list(by_hand.shape), f" trace {by_hand.trace():.1f}")

# %% [markdown]
# The library needs one matrix product per class, and handles all classes in one call.
# Note the two conventions of the released code that it keeps: the sum over images is divided by $N$, not $N-1$, and the sum over positions is not divided at all.
#
# The loss of a class is the squared Frobenius distance between two such matrices, which is zero for equal sets.
#
# ## What few images can say
#
# Centring costs one image, so $n$ images leave a rank of at most $P(n-1)$.
# The 128 channels of the published network are within reach from nine images on; the covariance of whole features never is.

# %%
rank = torch.linalg.matrix_rank
rows = {}
for n in (1, 2, 3, 5, 9, 10):
    fmap = ten[:1, :n].double()
    local = rank(losses.local_covariance(fmap)[0])
    whole = rank((fmap - fmap.mean(1, keepdim=True))[0].flatten(1))
    rows[n] = [int(local), 16 * (n - 1), int(whole)]
columns = ["local, of 128", "16(n-1)", "whole, of 2048"]
pd.DataFrame(rows, index=columns).T.rename_axis("n")

# %% [markdown]
# The last column is why the term is local: with so few images, hardly any of the 2048 directions of whole features is seen at all.
#
# Size matters as well as rank.
# Centred on their own mean and divided by $n$, the covariance of $n$ random images has only $(n-1)/n$ of the true one in expectation.
# On the real side $N$ is large and the factor close to one; on the synthetic side it is not:

# %%
network = narrow.draw(0).network
many = maps(network, everything)
full = losses.local_covariance(many).diagonal(0, 1, 2).sum()
rows = {}
for n in (2, 5, 10, 50):
    some = [maps(network, random_real(train, n, 10 + i).images) for i in range(4)]
    found = [losses.local_covariance(one).diagonal(0, 1, 2).sum() for one in some]
    ratio = float(sum(found) / 4 / full)
    rows[n] = {"trace over that of all": ratio, "(n-1)/n": (n - 1) / n}
pd.DataFrame(rows).T.rename_axis("n").round(2)

# %% [markdown]
# How well do $n$ images estimate a covariance as a whole?
# Its relative error $\| \Sigma_n - \Sigma \|_F / \| \Sigma \|_F$ tells us, once for the local covariance and once for that of whole features, which are maps with a single position:

# %%
errors = []
kinds = {"local": lambda f: f, "whole features": lambda f: f.flatten(2).unsqueeze(3)}
for n in (5, 10, 20, 50, 100):
    some = maps(network, random_real(train, n, 30 + n).images)
    for label, form in kinds.items():
        few, true = (losses.local_covariance(form(one)) for one in (some, many))
        error = (few - true).norm(dim=(1, 2)) / true.norm(dim=(1, 2))
        errors.append({"n": n, "label": label, "error": float(error.mean())})
noise = pd.DataFrame(errors)

# %% tags=["nbval-ignore-output"]
curve = plots.error_curves(noise, x="images per class", unit="relative error")
ten_of = noise[noise["n"] == 10].set_index("label")["error"].round(2)
finding = ", ".join(f"{label} {value}" for label, value in ten_of.items())
plots.show(curve, f"Relative error of the covariance of ten images: {finding}.")

# %% [markdown]
# Both fall with the square root of $n$; the local one starts far lower, because every image brings as many observations as it has positions.
# At ten images per class, the covariance of whole features would match mostly noise.
#
# The price is small.
# One matrix product of $K \times NP$ numbers for each class is well below a hundredth of what the network's forward pass costs, which the term shares with mean matching.
#
# So a set of ten real images, as dispersed as the class they come from, *looks* a tenth too narrow.
# In expectation the term asks synthetic images to spread a little more than real ones would, while class centralization asks them to come together.
# The two terms of IID pull against each other here, and only a measurement shows where they balance.
#
# ## What it does
#
# We run it three times from the same seed: without the term, with the published weight, and with a multiple of it.
# The multiple has a reason: the loss sums over $K^2$ entries, so at the width of `tour` the published weight has less effect than at width 128.

# %%
config = preset("dm-cm", dataset, ipc, scale, {"seed": seed})
strong = override(config, {"match.cm": stronger * config.match.cm})
runs = {
    "dm": distill(preset("dm", dataset, ipc, scale, {"seed": seed}), data),
    "dm-cm": distill(config, data),
    f"{stronger:g}x dm-cm": distill(strong, data),
}

# %%
for name, result in runs.items():
    assert result.synthetic.images.isfinite().all()
    assert ("loss_cm" in result.metrics) == (name != "dm"), "set ipc to 2 or more"

# %% [markdown]
# We measure under random networks that no run has seen.
# For each set we report the *gap*, the distance between the two covariances relative to the norm of the real one; the *spread*, its trace relative to that of the real one; and the *factor* by which the synthetic covariance would have to be multiplied to come closest to the real one.
# A factor above one means that the term pulls the images of a class apart.


# %%
def compare(syn, real):
    """Gap, spread and factor of covariances [C, K, K], mean over the classes."""
    size = real.norm(dim=(1, 2))
    spread = syn.diagonal(0, 1, 2).sum(1) / real.diagonal(0, 1, 2).sum(1)
    factor = (real * syn).sum((1, 2)) / syn.square().sum((1, 2))
    values = ((syn - real).norm(dim=(1, 2)) / size, spread, factor)
    return [float(value.mean()) for value in values]


# %%
sets = {"random": random_real(train, ipc, seed).images}
sets |= {name: result.synthetic.images for name, result in runs.items()}

# %% tags=["nbval-ignore-output"]
rows = []
for stranger in range(1, 4):
    network = narrow.draw(stranger).network
    real = losses.local_covariance(maps(network, everything))
    for name, images in sets.items():
        syn = losses.local_covariance(maps(network, images))
        rows.append([name, *compare(syn, real)])
measured = pd.DataFrame(rows, columns=["set", "gap", "spread", "factor"])
measured = measured.groupby("set", sort=False).mean()
measured.round(3)

# %%
order = measured["gap"][[f"{stronger:g}x dm-cm", "dm-cm", "dm"]]
assert scale == "ci" or "folder:" in dataset or order.diff().iloc[1:].gt(0).all()
if (scale, ipc) == ("tour", 10) and "folder:" not in dataset:
    assert measured["spread"]["dm"] > measured["spread"]["random"]
    assert measured["factor"]["random"] > 1

# %% [markdown]
# The first row is as expected: random images are too narrow by $(n-1)/n$, and their factor above one says that the term would pull them apart.
# DM alone already widens them, by what it adds to the pixels, so that little spreading is left to do.
# Mean matching could not have asked for either of the two, as {doc}`03_two_shortcomings` shows.
#
# The term changes the *shape*: the gap falls, and falls further with more weight, at about the same spread.
# Whether that makes a better training set is a question of accuracy, which {doc}`08_ablations` answers with several seeds.
#
# Entry by entry, for the first class under the last of these networks, synthetic minus real:

# %%
seen = {name: losses.local_covariance(maps(network, sets[name])) for name in runs}
pictures = {name: (own - real)[0].cpu() for name, own in seen.items()}

# %% tags=["nbval-ignore-output"]
unit = "difference (feature units²)"
heat = plots.covariance_heatmaps(pictures, unit=unit)
finding = ", ".join(f"{name} {measured['gap'][name]:.2f}" for name in pictures)
plots.show(heat, f"Gap of the covariances, relative to the real one: {finding}.")

# %% [markdown]
# ## Exercises
#
# ```{admonition} Exercise 1
# Add the same map to every image of a set: does its local covariance change?
# And if each image gets a different map?
# ```

# %% tags=["hide-cell"]
before = losses.local_covariance(ten.double())
same = losses.local_covariance(ten.double() + ten.double()[:, :1])
own = losses.local_covariance(ten.double() + ten.double().flip(1))
for name, after in (("the same map", same), ("a different map each", own)):
    change = float((after - before).norm() / before.norm())
    print(f"{name}: relative change {change:.1f}")

# %% [markdown]
# ```{admonition} Exercise 2
# Build two sets of maps whose mean-matching loss is zero and whose covariance-matching loss is not.
# ```

# %% tags=["hide-cell"]
centre = ten.mean(1, keepdim=True)
half = centre + 0.5 * (ten - centre)  # the same mean, half the distances
means = [one.flatten(2) for one in (ten, half)]
print(f"mean matching {losses.mean_matching(*means).sum():.1f}")
print(f"covariance matching {losses.covariance_matching(ten, half).sum():.0f}")

# %% [markdown]
# ## Summary
#
# Covariance matching compares how channels vary together, with the positions of the last feature map as observations.
# From $n$ images the matrix has rank $P(n-1)$ at most and $(n-1)/n$ of its true size in expectation; from one image it is zero, so the term is omitted there.
# The term closes part of a gap that mean matching leaves, and we know beforehand how much of it was mere noise.
#
# ## What's next
#
# {doc}`06_idm` puts both terms on another base, IDM; {doc}`08_ablations` measures what each of them brings.
# The {doc}`notation` page collects all equations.
#
# ## References
#
# The term is due to {cite:t}`deng2024iid`, on top of the mean matching of {cite:t}`zhao2023dm`.
# {cite:t}`wang2025ncfm` compare whole distributions instead, by their characteristic functions; {cite:t}`gretton2012mmd` give the theory behind both.
