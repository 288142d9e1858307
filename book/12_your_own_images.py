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
# # Your own images
#
# You have a folder of images and want a few of them, or something better than a few of them, to train on.
# This chapter takes you from the folder to a distilled set, to a training script that uses it without this library, and to the question of whether it was worth it.
#
# **What you will learn**
#
# 1. what a folder must look like, and how it is read;
# 2. which settings matter for images other than CIFAR-10;
# 3. to distil, save, and look at the result;
# 4. to use a set in a plain PyTorch script;
# 5. to evaluate it, and when not to distil at all.
#
# | prerequisite | | note |
# | --- | --- | --- |
# | {doc}`01_quickstart` | necessary | distilling and evaluating a set |
# | a training loop in PyTorch | necessary | you write one here |
#
# | scale | hardware | minutes |
# | --- | --- | --- |
# | `ci` | 2 CPU cores | below 1 |
# | `tour` | 2 CPU cores | about 1 |
# | `laptop`, `paper` | CPU, GPU | depends on the folder |

# %% tags=["parameters"]
scale = "tour"
folder = ""  # your folder; if empty, a small one of embedded images
size = 32  # pixels per side; multiples of 8
ipc = 5
method = "iid-dm"
seed = 0

# %%
import tempfile
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from iidlib import SyntheticSet, distill, evaluate, load_dataset, plots, preset
from iidlib.engine import pick_device
from iidlib.evaluation import random_real
from iidlib.experiments import take_parameters
from iidlib.networks import build_network

take_parameters(globals(), "scale folder size ipc method seed")

# %% [markdown]
# ## The folder
#
# There is one folder per class, named after it, with images inside at any depth:
#
# ```text
# pets/
#   cat/   0001.jpg  0002.png  more/0003.webp ...
#   dog/   ...
# ```
#
# If there are folders `train` and `test` (or `val`; `Training`, `test_set` and the like are recognised, too) with such folders in each, they are used as they are; otherwise a fifth of every class is held out for testing, always the same images.
# Sizes and formats may differ, and classes may have different numbers of images.
# Every file is opened and checked before anything is computed; the message names the first corrupted ones, and `iid data check folder:PATH` names all of them.
#
# So that the chapter runs everywhere, we make such a folder, of three animals in different sizes and formats.
# Set `folder` above to use your own.

# %%
root = Path(folder) if folder else Path(tempfile.mkdtemp()) / "animals"
source = load_dataset("cifar10-mini")
if not folder:
    for name, suffix in (("cat", "png"), ("frog", "jpg"), ("horse", "webp")):
        (root / name).mkdir(parents=True)
        own = source.train.of_class(source.spec.classes.index(name))[:200]
        for number, pixels in enumerate(source.train.images[own]):
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            side = 32 + number % 3 * 16  # 32, 48 or 64 pixels
            picture.resize((side, side)).save(root / name / f"{number}.{suffix}")

# %% [markdown]
# A folder is a dataset like any other, with its options in its name.
# Images are scaled so that their shorter side fits, and cropped to a square around their centre.
# The mean and standard deviation of the channels are those of the folder's own training images.
# Greyscale images of more than 8 bits, as written by microscopes and scanners, share one scale: the values in all of them decide what is black and what is white, or you do, with `&range=0,4095` in the name.

# %%
name = f"folder:{root}?size={size}&test=0.2"
data = load_dataset(name, device=pick_device())
spec = data.spec
counts = dict(zip(spec.classes, data.train.counts.tolist(), strict=True))
print("training images:", counts, "test images:", len(data.test))

# %%
random = random_real(data.train, ipc, seed)  # an error if a class has too few images
first = [data.train.of_class(c)[:8] for c in range(len(spec.classes))][:20]
shown = [data.train.images[few].cpu() for few in first]
grid = plots.image_grid(shown, row_labels=spec.classes[:20])
plots.show(grid, f"Up to eight training images per class, {size} pixels per side.")

# %% [markdown]
# Look at this grid before you do anything else.
# If you cannot tell the classes apart at this size, a network will have a hard time, and every number below will suffer: choose a larger side.
#
# On the command line, the same takes one line, with the whole name in quotes:
#
# ```console
# $ iid distill iid-dm --dataset "folder:pets?size=64" --ipc 5
# ```
#
# ## Settings that matter
#
# - **Size.** The ConvNet with three pooling layers takes sides that are multiples of 8.
#   Cost grows with the number of pixels; at 64 pixels a fourth block is usual, `--set match.network=convnet4 --set eval.networks=convnet4`.
# - **Images per class.** Mean matching needs real images to take a mean of: about a hundred per class are comfortable.
#   A class with fewer than `match.batch_real` contributes all its images at every iteration.
# - **Augmentation.** The default draws from colour, crop, cutout, flip, scale and rotation {cite:p}`zhao2021dsa`.
#   Where a mirror image belongs to another class (digits, text, left and right hands), leave out the flip: `--set match.augmentation=color_crop_cutout_scale_rotate`, and the same for `eval.augmentation`.
# - **The pool.** Class centralization looks through networks that are first trained on your images.
#   With few images, epochs are short, so more of them are needed: `--set pool.epochs=60`.
#   A pool that has learned nothing is refused, with this advice.
# - **Balance.** A set has the same number of images for every class, whatever the folder has.
#   The classes thus get equal weights, and the networks trained on the set will not know how frequent your classes are.
#
# The weights of the two terms were chosen for CIFAR-10.
# For other images, hold out some of the training images with `--dataset "validation:folder:PATH"` and choose there, not on the test images ({doc}`08_ablations` shows how).
#
# ## Distil and look

# %%
changes = {"seed": seed, "pool.epochs": 60}
config = preset(method, name, ipc, scale, changes)
result = distill(config, data)
synthetic = result.synthetic

# %%
assert synthetic.images.isfinite().all() and synthetic.ipc == ipc
assert synthetic.spec.classes == spec.classes

# %% tags=["nbval-ignore-output"]
seen = synthetic.to_uint8().cpu()
rows = seen.unflatten(0, (-1, ipc))[:20]
grid = plots.image_grid(rows, row_labels=spec.classes[:20])
plots.show(grid, f"The distilled set: {ipc} images of each class.")

# %% [markdown]
# With a small folder and a minute of time, the images still look like the ones they started from, with texture on top.
#
# The learned pixels are *normalised*, and nothing keeps them within the range of an image.
# `to_uint8` undoes the normalisation, clips and rounds; it is for viewing and for small files.
# For training, take the floating-point images as they are.
#
# ## Use it without this library
#
# A set is a safetensors file: `images` in float32, `labels`, and in the metadata everything needed to use it, above all the mean and standard deviation.
# It needs none of our classes, and unlike a pickle it cannot run code.
# Send it to someone who has never heard of this library, and they can use it.

# %%
path = Path(tempfile.mkdtemp(), "animals.safetensors")
synthetic.save(path)

from safetensors import safe_open

with safe_open(path, "pt") as file:
    images, labels = file.get_tensor("images"), file.get_tensor("labels")
    meta = file.metadata()
print(list(images.shape), meta["classes"], meta["mean"], meta["std"])

# %% [markdown]
# Now comes your script.
# It uses PyTorch and these tensors, and nothing else; only the network is borrowed from here.


# %%
def train(images, labels, epochs):
    """Trains a network on a few images, the plain way."""
    classes = int(labels.max()) + 1
    draws = torch.Generator().manual_seed(seed)
    options = {"image_size": images.shape[-1], "width": 32, "generator": draws}
    network = build_network("convnet3", num_classes=classes, **options)
    sgd = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        flip = torch.rand(len(images), 1, 1, 1, generator=draws) < 0.5
        batch = torch.where(flip, images.flip(3), images)
        loss = torch.nn.functional.cross_entropy(network(batch), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return network.eval()


# %% tags=["nbval-ignore-output"]
network = train(images, labels, epochs=4 if scale == "ci" else 200)
test = data.test.images_of(torch.arange(len(data.test))).cpu()  # normalised too
with torch.no_grad():
    right = network(test).argmax(1) == data.test.labels.cpu()
print(f"a plain script reaches {100 * right.float().mean():.0f} %")

# %%
assert folder or scale == "ci" or right.float().mean() >= 1 / len(spec.classes)

# %% [markdown]
# The one thing to get right is the normalisation of the *test* images: use the mean and standard deviation of the file, not those of another dataset.
# Getting this wrong is the most frequent mistake with distilled sets, and it costs many points without an error message.
#
# The other thing that matters is augmentation.
# The set was matched under random transforms, and a network trained on it should see such transforms as well; the script above uses only a flip, while the library's protocol uses all six, which explains part of the difference between its accuracy and those below.
#
# ## Was it worth it?
#
# Three accuracies answer that, under one protocol: of the same number of random real images, of the distilled set, and of all real images.

# %% tags=["nbval-ignore-output"]
sets = {"random": random, method: synthetic}
results = {}
for label, images in sets.items():
    results[label] = evaluate(images, data, protocol=config.eval)
whole = config.eval.for_whole_set()
results["all real images"] = evaluate(data.train, data, protocol=whole)

# %%
assert all(len(frame) == config.eval.num_eval for frame in results.values())

# %% tags=["nbval-ignore-output"]
parts = [frame.assign(label=label) for label, frame in results.items()]
scores = pd.concat(parts, ignore_index=True)
bars = plots.accuracy_bars(scores, chance=100 / len(spec.classes))
means = scores.groupby("label", sort=False)["accuracy"].mean().round(1)
finding = ", ".join(f"{label} {value} %" for label, value in means.items())
plots.show(bars, f"Accuracy on the held-out images of the folder: {finding}.")

# %% [markdown]
# The gap between the first bar and the last is all that can be gained by choosing or learning a few images.
# If the first two are close to each other, you may as well take random images; if all three are, your classes are easy.
# Training on all images takes many times the steps of the small sets, and needs storage for them; whether the difference is worth that is the question of distillation.
#
# Repeat with other seeds before you believe a small difference ({doc}`08_ablations`).
#
# *Do not distil* to keep images private: here synthetic images start as real ones and stay recognisable.
# And do not expect a set made for one kind of network to serve every other equally well ({doc}`10_cross_architecture`).
#
# ## Exercises
#
# ```{admonition} Exercise 1
# Store the set with 8 bits per channel and read it back. How large is the largest change of a normalised pixel, and how much smaller is the file?
# ```

# %% tags=["hide-cell", "nbval-ignore-output"]
mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
back = (seen.float() / 255 - mean) / std
far = (back - synthetic.images.cpu()).abs().max()
assert back.shape == synthetic.images.shape
print(f"largest change {far:.3f}, a quarter of the bytes")

# %% [markdown]
# ```{admonition} Exercise 2
# Load the saved file with `SyntheticSet.load` and evaluate it with the library. Is it the same set?
# ```

# %% tags=["hide-cell"]
again = SyntheticSet.load(path)
same = torch.equal(again.images, synthetic.images.cpu())
print("the same set:", same, "- made by", again.provenance["method"])

# %% [markdown]
# ## Summary
#
# A folder with one subfolder per class is a dataset.
# Size, flips and the number of real images are the settings to think about.
# A distilled set is a file of normalised images together with their mean and standard deviation; it is compared with random images and with all of them.
#
# ## What's next
#
# {doc}`13_batch_runs` repeats a chapter over seeds and settings.
#
# ## References
#
# The method is due to {cite:t}`deng2024iid`, on top of {cite:t}`zhao2023dm`, and the augmentation to {cite:t}`zhao2021dsa`.
# {cite:t}`cui2022dcbench` evaluate sets under one protocol, random images among them.
