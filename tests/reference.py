"""The method written from its equations: a class, an image, a position at a time; for equality only, never timed.

Axis letters: N real and n synthetic images of the one class, K channels, P positions, D dimensions, H side of an image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.config import MatchConfig
from tests import reference_augment

# Losses of one class


def mean_of(rows: Sequence[Tensor] | Tensor) -> Tensor:
    total = torch.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total / len(rows)


def mean_matching(real: Tensor, syn: Tensor) -> Tensor:
    """[N, D] and [n, D] to one value."""
    gap = mean_of(real) - mean_of(syn)
    return (gap * gap).sum()


def local_covariance(fmap: Tensor) -> Tensor:
    """[N, K, P] to [K, K]."""
    images, channels, positions = fmap.shape
    centre = mean_of(fmap)
    total = torch.zeros(channels, channels, dtype=fmap.dtype)
    for b in range(images):
        for p in range(positions):
            x = fmap[b, :, p] - centre[:, p]
            total = total + torch.outer(x, x)
    return total / images


def covariance_matching(real: Tensor, syn: Tensor) -> Tensor:
    """[N, K, P] and [n, K, P] to one value."""
    gap = local_covariance(real) - local_covariance(syn)
    return (gap * gap).sum()


def covariance_matching_of_blocks(real: Sequence[Tensor], syn: Sequence[Tensor]) -> Tensor:
    """A [N, K, P] and a [n, K, P] for each block to one value.

    A covariance is a sum over positions. Those of earlier blocks are brought to as many as the last block has.
    """
    total = 0 * real[-1].sum()
    for own, other in zip(real, syn, strict=True):
        positions = syn[-1].shape[2] / other.shape[2]
        gap = positions * local_covariance(own) - positions * local_covariance(other)
        total = total + (gap * gap).sum()
    return total


def squared_distances(features: Tensor) -> list[Tensor]:
    """[n, D] to n values."""
    centre = mean_of(features)
    return [((f - centre) * (f - centre)).sum() for f in features]


def class_centralization(features: Tensor, form: str = "linear", alpha: float = 0.02, beta: float = 0.0) -> Tensor:
    """[n, D] to one value."""
    total = 0 * features.sum()  # of the graph even where every image is gated off
    for d in squared_distances(features):
        if form == "linear":
            total = total + d
        elif torch.exp(alpha * d) > beta:
            total = total + torch.exp(alpha * d) - beta
    return total


def class_cross_entropy(logits: Tensor, label: int) -> Tensor:
    """[n, C] to one value."""
    return cross_entropy(logits, torch.full((len(logits),), label))


def kernel_distance(real: Tensor, syn: Tensor, squared_width: Tensor) -> Tensor:
    """[N, D] and [n, D] to one value."""

    def mean_kernel(xs: Tensor, ys: Tensor) -> Tensor:
        return mean_of([torch.exp(-((x - y) * (x - y)).sum() / (2 * squared_width)) for x in xs for y in ys])

    return mean_kernel(real, real) + mean_kernel(syn, syn) - 2 * mean_kernel(real, syn)


def characteristic_distance(real: Tensor, syn: Tensor, squared_width: Tensor, frequencies: Tensor) -> Tensor:
    """[N, D], [n, D] and [F, D] to one value."""

    def characteristic(xs: Tensor, t: Tensor) -> Tensor:
        return mean_of([torch.exp(1j * (t * x).sum() / torch.sqrt(squared_width)) for x in xs])

    gaps = [characteristic(real, t) - characteristic(syn, t) for t in frequencies]
    return mean_of([gap.real * gap.real + gap.imag * gap.imag for gap in gaps])


# Their gradients by hand, with respect to the synthetic side


def mean_matching_gradient(real: Tensor, syn: Tensor) -> Tensor:
    return torch.stack([-2 / len(syn) * (mean_of(real) - mean_of(syn)) for _ in syn])


def covariance_matching_gradient(real: Tensor, syn: Tensor) -> Tensor:
    # the centre's own part vanishes, because the centred images of a class sum to zero
    gap = local_covariance(syn) - local_covariance(real)
    centre = mean_of(syn)
    return torch.stack([4 / len(syn) * gap @ (x - centre) for x in syn])


def class_centralization_gradient(features: Tensor) -> Tensor:
    centre = mean_of(features)
    return torch.stack([2 * (f - centre) for f in features])


# Networks, one image at a time, from their parameters by name


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """A convolution that keeps the size, as a sum of shifted images: [K_in, H, H] -> [K, H / stride, H / stride]."""
    kernel, side = weight.shape[-1], x.shape[-1]
    padded = F.pad(x, (kernel // 2,) * 4)
    out = torch.zeros(len(weight), side, side, dtype=x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            out = out + torch.einsum("ok,khw->ohw", weight[:, :, i, j], padded[:, i : i + side, j : j + side])
    if bias is not None:
        out = out + bias[:, None, None]
    return out[:, ::stride, ::stride]


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of the one image to mean 0 and variance 1 over its positions, then scaled and shifted."""
    count = x.shape[1] * x.shape[2]
    centred = x - x.sum((1, 2), keepdim=True) / count
    variance = (centred * centred).sum((1, 2), keepdim=True) / count
    return centred / torch.sqrt(variance + 1e-5) * weight[:, None, None] + bias[:, None, None]


def average_pool(x: Tensor, size: int) -> Tensor:
    total = torch.zeros_like(x[:, ::size, ::size])
    for i in range(size):
        for j in range(size):
            total = total + x[:, i::size, j::size]
    return total / (size * size)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


Parameters = Mapping[str, Tensor]


def convnet(p: Parameters, image: Tensor) -> Tensor:
    """An instance-norm ConvNet of any depth: its last feature map, [K, P]."""
    return convnet_blocks(p, image)[-1]


def convnet_blocks(p: Parameters, image: Tensor) -> list[Tensor]:
    """Its feature maps after every block, [K, P] each."""
    x, maps = image, []
    while f"trunk.block{len(maps) + 1}.conv.weight" in p:
        name = f"trunk.block{len(maps) + 1}"
        x = convolve(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"])
        x = average_pool(relu(instance_norm(x, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])), 2)
        maps.append(x.flatten(1))
    return maps


def resnet18(p: Parameters, image: Tensor) -> Tensor:
    """The instance-norm ResNet18 for small images: its features, [512] at 32x32."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        return instance_norm(convolve(x, p[f"{conv}.weight"], None, stride), p[f"{norm}.weight"], p[f"{norm}.bias"])

    x = relu(conv_norm(image, "trunk.stem.conv", "trunk.stem.norm"))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"trunk.stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = relu(conv_norm(x, f"{name}.conv1", f"{name}.norm1", stride))
            out = conv_norm(out, f"{name}.conv2", f"{name}.norm2")
            if stride == 2:
                x = conv_norm(x, f"{name}.shortcut.conv", f"{name}.shortcut.norm", stride)
            x = relu(out + x)
    return average_pool(x, 4).flatten()


# Mosaics


def enlarge(tile: Tensor, side: int) -> Tensor:
    """Bilinear, pixel centres at half-integers, the border repeated: [K, h, h] to [K, side, side]."""
    small = tile.shape[-1]
    weights = torch.zeros(side, small, dtype=tile.dtype)
    for i in range(side):
        place = max(0.0, (i + 0.5) * small / side - 0.5)
        below = min(int(place), small - 1)
        weights[i, below] += 1 - (place - below)
        weights[i, min(below + 1, small - 1)] += place - below
    return weights @ tile @ weights.T


def expand(image: Tensor, factor: int) -> list[Tensor]:
    """The tiles of one mosaic [K, H, H], row by row, each enlarged to [K, H, H]."""
    side = image.shape[-1]
    small = side // factor
    starts = [(i * small, j * small) for i in range(factor) for j in range(factor)]
    return [enlarge(image[:, y : y + small, x : x + small], side) for y, x in starts]


# A step


@dataclass
class ClassBatch:
    """What an iteration sees of one class."""

    real: Tensor
    """[N, K, H, H], normalised."""
    syn: Tensor
    """[n, K, H, H]."""
    operation: str | None
    """The DSA operation that both sides share; None for none."""
    u: list[float]
    """Its parameters."""
    factor: int = 1
    """Each of `syn` is a mosaic of factor x factor tiles."""
    label: int = 0


def augmented(images: Tensor, batch: ClassBatch) -> list[Tensor]:
    if batch.operation is None:
        return list(images)
    return [reference_augment.augment_one(image, batch.operation, batch.u) for image in images]


@dataclass
class Classifier:
    """The last layer of the matching network, and what IDM's meter says of the network."""

    weight: Tensor
    bias: Tensor
    accuracy: float
    """In percent."""


def terms_of_class(
    names: Sequence[str],
    match: MatchConfig,
    batch: ClassBatch,
    block_maps: Callable[[Tensor], list[Tensor]],
    pretrained: Callable[[Tensor], Tensor] | None,
    classifier: Classifier | None,
    frequencies: Tensor | None,
) -> dict[str, Tensor]:
    """The weighted terms of one class, one image through the networks at a time."""
    tiles = [tile for mosaic in batch.syn for tile in expand(mosaic, batch.factor)]
    real, syn = augmented(batch.real, batch), augmented(torch.stack(tiles), batch)
    real_blocks, syn_blocks = (
        [torch.stack(maps) for maps in zip(*[block_maps(image) for image in images], strict=True)]
        for images in (real, syn)
    )
    real_blocks = [maps.detach() for maps in real_blocks]
    real_maps, syn_maps = real_blocks[-1], syn_blocks[-1]
    values = {}
    for name in names:
        if name == "mean":
            values[name] = match.mean * mean_matching(real_maps.flatten(1), syn_maps.flatten(1))
        elif name == "cm":
            last = slice(-match.cm_blocks, None)
            values[name] = match.cm * covariance_matching_of_blocks(real_blocks[last], syn_blocks[last])
        elif name == "ce":
            logits = torch.stack([classifier.weight @ x.flatten() + classifier.bias for x in syn_maps])
            values[name] = match.ce * classifier.accuracy * class_cross_entropy(logits, batch.label)
        elif name == "mmd":
            own, other = real_maps.flatten(1), syn_maps.flatten(1)
            width = mean_of(squared_distances(own)) if len(own) > 1 else torch.ones((), dtype=own.dtype)
            if match.mmd_form == "gaussian":
                values[name] = match.mmd * kernel_distance(own, other, width)
            else:
                values[name] = match.mmd * characteristic_distance(own, other, width, frequencies)
        elif name == "cc":
            features = torch.stack([pretrained(image) for image in syn])
            unit = 1.0
            if match.cc_scaling == "relative":
                measured = torch.stack([pretrained(image) for image in real[: match.cc_real]]).detach()
                unit = float(mean_of(squared_distances(measured))) if len(measured) > 1 else math.inf
            value = class_centralization(features / math.sqrt(unit), match.cc_form, match.cc_alpha, match.cc_beta)
            value = (
                value * {"released": 1, "per_image": 10 / len(batch.syn), "relative": 1 / len(syn)}[match.cc_scaling]
            )
            values[name] = match.cc * value
        else:
            raise AssertionError(name)
    return values


def step(
    names: Sequence[str],
    match: MatchConfig,
    classes: Sequence[ClassBatch],
    block_maps: Callable[[Tensor], list[Tensor]],
    pretrained: Callable[[Tensor], Tensor] | None = None,
    classifier: Classifier | None = None,
    frequencies: Tensor | None = None,
) -> dict[str, tuple[float, Tensor]]:
    """Every term's value, summed over classes, and its gradient on the synthetic images, [C * n, K, H, H]."""
    values = dict.fromkeys(names, 0.0)
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in classes:
        batch.syn = batch.syn.detach().requires_grad_()
        for name, value in terms_of_class(names, match, batch, block_maps, pretrained, classifier, frequencies).items():
            values[name] += float(value.detach())
            gradients[name].append(torch.autograd.grad(value, batch.syn, retain_graph=True, materialize_grads=True)[0])
    return {name: (values[name], torch.cat(gradients[name])) for name in names}


# Optimisers, written out


def sgd(x: Tensor, velocity: Tensor, gradient: Tensor, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
    """One update: the images (or a parameter) and the velocity after it."""
    velocity = momentum * velocity + gradient
    return x - lr * velocity, velocity


def class_sweep(
    x: Tensor, velocity: Tensor, gradient_of: Callable[[int, Tensor], Tensor], lr: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """IDM's update: a step of SGD on all images [C, n, ...] after the gradient of each class, one after the other.

    ``gradient_of(c, images)`` sees the images of class c as they are at its turn; the others' gradient is zero.
    """
    for c in range(len(x)):
        gradient = torch.zeros_like(x)
        gradient[c] = gradient_of(c, x[c])
        x, velocity = sgd(x, velocity, gradient, lr, momentum)
    return x, velocity


def train_step(
    p: Parameters, momenta: Parameters, images: Tensor, labels: Tensor, lr: float
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """A step of SGD (momentum 0.9, weight decay 5e-4) of a ConvNet; its hits on the batch before it."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in p.items()}
    rows = [leaves["classifier.weight"] @ convnet(leaves, image).flatten() for image in images]
    logits = torch.stack([row + leaves["classifier.bias"] for row in rows])
    gradients = torch.autograd.grad(cross_entropy(logits, labels), list(leaves.values()))
    after, velocities = {}, {}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        decayed = gradient + 5e-4 * leaf.detach()
        after[name], velocities[name] = sgd(leaf.detach(), momenta[name], decayed, lr, 0.9)
    hits = sum(int(row.argmax()) == label for row, label in zip(logits, labels.tolist(), strict=True))
    return after, velocities, hits


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels.tolist(), strict=True):
        total = total - row[label] + torch.log(torch.exp(row - row.max()).sum()) + row.max()
    return total / len(logits)


def t_quantile_975(degrees: int) -> float:
    """Of Student's t with 2 degrees of freedom, where it has a closed form."""
    assert degrees == 2
    p = 0.975
    return (2 * p - 1) / math.sqrt(2 * p * (1 - p))


# Real images chosen instead of learned


def herding(features: Tensor, count: int) -> list[int]:
    """Each next image is tried with those chosen; the one that leaves their mean nearest to the class's is taken."""
    target, chosen = mean_of(list(features)), []
    for _ in range(count):
        tried = {}
        for candidate in range(len(features)):
            if candidate not in chosen:
                mean = mean_of([features[i] for i in [*chosen, candidate]])
                tried[candidate] = float(((mean - target) ** 2).sum())
        chosen.append(min(tried, key=tried.__getitem__))
    return chosen


def k_center(features: Tensor, count: int) -> list[int]:
    """Each next image is the one whose nearest chosen image is farthest; the first is nearest to the class's mean."""
    target = mean_of(list(features))
    chosen = [min(range(len(features)), key=lambda i: float(((features[i] - target) ** 2).sum()))]
    while len(chosen) < count:
        far = {}
        for candidate in range(len(features)):
            if candidate not in chosen:
                far[candidate] = min(float(((features[candidate] - features[i]) ** 2).sum()) for i in chosen)
        chosen.append(max(far, key=far.__getitem__))
    return chosen


def nearest_to_centres(features: Tensor, centres: Tensor, clusters: Sequence[int]) -> list[int]:
    """Each centre, those of large clusters first, takes the nearest image that is not taken."""
    sizes = {centre: list(clusters).count(centre) for centre in range(len(centres))}
    chosen: list[int] = []
    for centre in sorted(sizes, key=lambda centre: (-sizes[centre], centre)):
        free = [i for i in range(len(features)) if i not in chosen]
        chosen.append(min(free, key=lambda i: float(((features[i] - centres[centre]) ** 2).sum())))
    return chosen


def easiest(losses: Sequence[float], count: int) -> list[int]:
    """Each next image is the one of the smallest loss that is not taken; of equal ones the first."""
    chosen: list[int] = []
    while len(chosen) < count:
        best = None
        for i, loss in enumerate(losses):
            if i not in chosen and (best is None or loss < losses[best]):
                best = i
        assert best is not None
        chosen.append(best)
    return chosen


def tiles(mosaic: Tensor, factor: int) -> list[Tensor]:
    """The tiles of an image [K, H, H] as they are stored, row by row."""
    side = mosaic.shape[-1] // factor
    return [
        mosaic[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(factor)
        for column in range(factor)
    ]


# Measures of sets on features


def spread(features: Tensor) -> list[tuple[float, float]]:
    """Of each class: mean squared distance to its centre; squared distance of the centre to the mean of centres."""
    centres = [mean_of(list(own)) for own in features]
    middle = mean_of(centres)
    found = []
    for own, centre in zip(features, centres, strict=True):
        within = sum(float(((image - centre) ** 2).sum()) for image in own) / len(own)
        found.append((within, float(((centre - middle) ** 2).sum())))
    return found


def covariance_gap(real: Tensor, syn: Tensor) -> list[float]:
    """Of each class: root of the sum of squared differences of covariances, over that of the first's own squares."""
    found = []
    for own, other in zip(real, syn, strict=True):
        first, second = local_covariance(own), local_covariance(other)
        found.append(math.sqrt(float(((first - second) ** 2).sum()) / float((first**2).sum())))
    return found


def gaussian_mmd(real: Tensor, syn: Tensor) -> list[float]:
    """Of each class: the mean kernel among real, plus that among synthetic images, less twice that between them."""
    found = []
    for own, other in zip(real, syn, strict=True):

        def squared(a: Tensor, b: Tensor) -> float:
            return float(((a - b) ** 2).sum())

        pairs = sorted(squared(a, b) for i, a in enumerate(own) for j, b in enumerate(own) if i != j)
        width = pairs[(len(pairs) - 1) // 2]

        def mean(left: Tensor, right: Tensor, width: float = width) -> float:
            kernels = [math.exp(-squared(a, b) / (2 * width)) for a in left for b in right]
            return sum(kernels) / len(kernels)

        found.append(mean(own, own) + mean(other, other) - 2 * mean(own, other))
    return found
