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
# # Two shortcomings, measured
#
# Mean matching asks one question of a synthetic set: is its centre where the real one is?
# A great many sets answer it equally well, but they are not equally good to learn from.
# This chapter shows what the question leaves open, first in a world of two dimensions where everything can be seen, then on real images where it has to be measured.
# The two terms of IID {cite:p}`deng2024iid`, which the next two chapters build, are answers to what you find here.
#
# **What you will learn**
#
# 1. to build sets with equal means that teach very different things;
# 2. why the gradient of mean matching moves a class as a rigid body;
# 3. to measure the scatter of a distilled class, and to say what it is large or small compared with;
# 4. to measure an error of covariance, and the part of it that is due to a small sample alone.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`02_distribution_matching` | necessary | the loss with these blind spots |
# | covariance of two variables | necessary | |
# | nearest-neighbour classification | helpful | the learner in two dimensions |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | below 1 |
# | `laptop`, `paper` | CPU, GPU | not measured yet |

# %% tags=["parameters"]
scale = "tour"
dataset = "cifar10-mini"
ipc = 10
seed = 0

# %%
import pandas as pd
import torch

from iidlib import distill, experiments, load_dataset, losses, plots, preset
from iidlib.engine import pick_device
from iidlib.evaluation import class_maps, compare, random_real
from iidlib.features import RandomNetworks, trained_pool

experiments.take_parameters(globals(), "scale dataset ipc seed")

# %% [markdown]
# ## A world of two dimensions
#
# Three classes, long and narrow, side by side.
# Here a point *is* its feature: the features of {eq}`notation-dm` are the points themselves.

# %%
draws = torch.Generator().manual_seed(0)
shape = torch.tensor([[2.0, 0.0], [0.0, 0.25]])  # wide in x, narrow in y
middles = torch.tensor([[0.0, -1.2], [0.0, 0.0], [0.0, 1.2]])
real = middles[:, None] + torch.randn(3, 300, 2, generator=draws) @ shape
real_mean = losses.class_mean(real)

# %% [markdown]
# Five synthetic points per class, in three arrangements: *along* the class, *across* it, and all at one *point*.
# Each is shifted so that its mean is exactly that of the real class.
# Think of a distillation that has converged: the loss is zero, and no gradient is left to change anything.
# All three are such end points.

# %%
line = torch.linspace(-2, 2, 5)[:, None]
forms = {
    "along": line * torch.tensor([1.5, 0.0]),
    "across": line * torch.tensor([0.0, 1.5]),
    "point": line * 0,
}
sets = {name: real_mean[:, None] + form for name, form in forms.items()}

# %%
for name, syn in sets.items():
    print(f"{name:>6}: mean matching {losses.mean_matching(real, syn).sum():.6f}")

# %% [markdown]
# To mean matching the three are one and the same.
# It could not tell them apart with more iterations, more real images or a better optimiser, because nothing in the loss depends on the difference.
# A learner disagrees.
# The simplest one, which gives a new point the class of its nearest neighbour, is tested on fresh points:


# %%
def accuracy(syn):
    """Accuracy of nearest-neighbour classification on fresh points, in percent."""
    test = middles[:, None] + torch.randn(3, 300, 2, generator=draws) @ shape
    nearest = torch.cdist(test.flatten(0, 1), syn.flatten(0, 1)).argmin(1)
    right = nearest // syn.shape[1] == torch.arange(3).repeat_interleave(300)
    return 100 * float(right.float().mean())


learned = {name: accuracy(syn) for name, syn in sets.items()}
print(", ".join(f"{name} {value:.0f} %" for name, value in learned.items()))

# %%
assert learned["along"] > 95 and learned["across"] < 80


# %%
def points(named):
    """Points of sets [3, n, 2] as rows for a figure."""
    frames = []
    for name, one in named.items():
        frame = pd.DataFrame(one.flatten(0, 1).tolist(), columns=["x", "y"])
        frame["class"] = [c for c in range(3) for _ in range(one.shape[1])]
        frames.append(frame.assign(label=name))
    return pd.concat(frames, ignore_index=True)


# %%
axes_of = {"classes": ["low", "middle", "high"], "names": ("x", "y")}
drawn = plots.projection(points({"real": real, **sets}), **axes_of)
finding = ", ".join(f"{name} {value:.0f} %" for name, value in learned.items())
plots.show(drawn, f"Accuracy learned from three sets with equal means: {finding}.")

# %% [markdown]
# The first shortcoming is in the middle panel: the points of a class lie so far apart that they run into the other classes.
# Nothing in the loss draws them together.
# The second is the difference between the left panel and the other two: the class is long in one direction and narrow in the other, and only one of the sets shows it.
# Nothing in the loss compares shapes.
# IID calls them the *inter-sample* and the *inter-feature* relation {cite:p}`deng2024iid`.
#
# The right panel deserves a second look.
# One point repeated five times is as compact as a class can be, and still loses to the points along the class, because it says nothing about where the class ends.
# Compactness keeps a class from running into its neighbours, but too much of it does harm.
#
# ## A class moves as a rigid body
#
# Could the optimisation find a good arrangement all the same, by luck?
# The gradient of {eq}`notation-dm` with respect to one synthetic feature is $\frac{2}{n}(\bar z_{syn} - \bar z_{real})$, which does not depend on *which* image it is.
# All features of a class get the same push.
# A loss that pushes all points alike cannot sort them, draw them in or spread them out.
#
# So we start from scattered, displaced points and follow the gradient; then we do the same with each term of IID added.
# The functions are those of the library; a point is a feature for class centralization, and a map with two channels and one position for covariance matching.

# %%
start = real_mean[:, None] + torch.randn(3, 5, 2, generator=draws) + 0.8


def descend(cc, cm, steps=400):
    """Points [3, 5, 2] at the end of gradient descent on the objective."""
    syn = start.clone().requires_grad_()
    for _ in range(steps):
        loss = losses.mean_matching(real, syn)
        loss = loss + cc * losses.class_centralization(syn)
        gap = losses.covariance_matching(real[..., None], syn[..., None])
        (gradient,) = torch.autograd.grad((loss + cm * gap).sum(), syn)
        syn = (syn - 0.05 * gradient).detach().requires_grad_()
    return syn.detach()


weights = {"dm": (0, 0), "dm-cc": (0.02, 0), "dm-cm": (0, 0.2)}
weights["iid-dm"] = (0.02, 0.2)
ends = {name: descend(*pair) for name, pair in weights.items()}

# %%
moved = (ends["dm"] - start).std(1).max()
narrow = ends["dm-cc"].std(1).mean() / start.std(1).mean()
form = ends["dm-cm"].var(1, correction=0)[:, 0] / real.var(1, correction=0)[:, 0]
print(f"dm: largest change of a class's scatter {moved:.3f}")
print(f"dm-cc: scatter falls to {narrow:.2f} of what it was")
print(f"dm-cm: variance along x over the real one {form.mean():.2f}")

# %%
drawn = plots.projection(points({"real": real, **ends}), **axes_of)
wide = ", ".join(f"{name} {accuracy(syn):.0f} %" for name, syn in ends.items())
plots.show(drawn, f"The same start under four objectives; accuracy: {wide}.")

# %% [markdown]
# Mean matching alone shifts the points without changing their arrangement.
# Class centralization draws them together: fewer of them run into other classes, and the class loses its length; with enough steps they would all lie on one point.
# Covariance matching gives them the length of the class, and says nothing about which image goes where.
# The two pull in different directions, and no principle says which mixture is best; {doc}`08_ablations` measures each weight by itself.
#
# Note the accuracy of the last panel, where both terms act at once: the points are spread along the class and kept out of the neighbours' way.
# This little world is built so that both shortcomings hurt; do not expect the same gains where classes overlap and features are many.
#
# The features of real images are not free points.
# They come from pixels through a network that changes at every iteration, and images *can* change their relative positions.
# The loss just does not ask them to.
#
# ## On real images: scatter
#
# So we measure what they do.
# A DM set {cite:p}`zhao2023dm` with ten images per class is compared with ten random real ones, seen through trained networks:

# %%
data = load_dataset(dataset, device=pick_device())
config = preset("dm", dataset, ipc, scale, {"seed": seed})
result = distill(config, data)
pictures = {"random": random_real(data.train, ipc, seed), "dm": result.synthetic}

# %%
assert result.synthetic.images.isfinite().all()
assert "loss_mean" in result.metrics

# %% tags=["nbval-ignore-output"]
of_iid = preset("iid-dm", dataset, ipc, scale)
pool = trained_pool(data, of_iid.pool, compute=of_iid.compute)
seen = compare(pictures, data.train, pool.networks, seed=seed)
assert set(seen["label"]) == {"real", "random", "dm"}
seen.groupby("label", sort=False)[["within", "between", "ratio"]].mean().round(2)

# %% [markdown]
# *within* is the mean squared distance to the centre of the class, *between* that of the centres to each other.
# The row `real` has a hundred images per class; with ten, distances to a centre computed from the same ten come out a tenth smaller, as the row `random` shows.
# So compare `dm` with `random`, not with `real`.

# %% tags=["nbval-ignore-output"]
eye, classes, rows = pool.networks[0], data.train.num_classes, []
for name, one in pictures.items():
    maps = class_maps(eye, one.images, classes)
    features = eye.head(maps.flatten(0, 1)).unflatten(0, (classes, -1))
    far = losses.squared_distances(features).flatten().tolist()
    rows.append(pd.DataFrame({"label": name, "distance": far}))
distances = pd.concat(rows, ignore_index=True)
unit = "squared distance to the centre of the class (feature units²)"
curve = plots.distance_distribution(distances, unit=unit)
middle = distances.groupby("label")["distance"].median()
finding = f"median {middle['dm']:.0f} for dm, {middle['random']:.0f} for random"
plots.show(curve, f"Squared distances to the centre: {finding}.")

# %% [markdown]
# The curve of `dm` lies to the right of the other over most of its length.
# After hundreds of updates that move the class mean to where it belongs, the images of a class lie as far apart as ten random ones, or farther.
# That is the rigid body of the second section, in hundreds of dimensions and through a network.
#
# ## On real images: covariance
#
# The second measure is the distance between the local covariance of the set and that of real images, relative to the size of the latter.
# A set of ten images has an error even if its images are perfect, because ten are few.
# Random real images show how large that part is, and more of them how it shrinks:

# %% tags=["nbval-ignore-output"]
width = config.match.width
device = {"device": data.train.device, "compile": config.compute.compile}
source = RandomNetworks("convnet3", data.spec, width=width, seed=99, **device)
counts = [n for n in (5, 10, 20, 40) if 4 * n <= data.train.counts.min()] or [1]
compared = {f"{n} random": random_real(data.train, n, seed + n) for n in counts}
compared["dm"] = result.synthetic
errors = compare(compared, data.train, [source.draw(0).network], seed=seed)
gap = errors.groupby("label", sort=False)["gap"].mean()
gap.round(3).to_frame()

# %%
if "folder:" not in dataset:
    assert gap["real"] < gap[f"{counts[-1]} random"] < gap[f"{counts[0]} random"]

# %% [markdown]
# This is why no table in this book shows a measure of a distilled set alone.
# An error of a third sounds bad, but ten faultless images have the same.
#
# Find the row `dm` among those of random images: how many random images are its ten worth, as far as shape is concerned?
# Its error is what covariance matching can reduce; no set can be expected to do much better than the row `real`, a second draw of a hundred.
#
# ## Exercises
#
# ```{admonition} Exercise 1
# In two dimensions, let the middle class be as long in $y$ as the others are in $x$. Is *along* still the best of the three arrangements?
# ```

# %% tags=["hide-cell"]
shapes = torch.stack([shape, shape.flip(1), shape])  # the middle one turned
fresh = middles[:, None] + torch.randn(3, 9000, 2, generator=draws) @ shapes
for name, syn in sets.items():
    nearest = torch.cdist(fresh.flatten(0, 1), syn.flatten(0, 1)).argmin(1) // 5
    right = nearest.unflatten(0, (3, -1)) == torch.arange(3)[:, None]
    share = 100 * right.float().mean(1)
    print(f"{name:>6}: {share.mean():.0f} %, middle class {share[1]:.0f} %")

# %% [markdown]
# ```{admonition} Exercise 2
# Show that mean matching is blind to any change of the set that keeps its mean: reflect every synthetic point through the centre of its class.
# ```

# %% tags=["hide-cell"]
mirrored = 2 * start.mean(1, keepdim=True) - start
before, after = (losses.mean_matching(real, one).sum() for one in (start, mirrored))
print(f"difference {abs(before - after):.6f}")

# %% [markdown]
# ## Summary
#
# Equal means leave open how far apart the images of a class lie and how their features vary together, and both decide what a learner makes of them.
# The gradient of mean matching pushes all features of a class alike, so by itself it takes care of neither.
# On real images both can be measured, by comparison with the same number of random real images.
#
# ## What's next
#
# {doc}`04_class_centralization` draws the images of a class together, {doc}`05_covariance_matching` matches their shape.
#
# ## References
#
# The two relations were identified by {cite:t}`deng2024iid`; the loss that leaves them open is due to {cite:t}`zhao2023dm`.
# {cite:t}`wang2025ncfm` match whole distributions instead, building on the statistics of {cite:t}`gretton2012mmd`.
