"""Lower bound on the memory of a distillation, checked before it starts."""

from collections.abc import Collection

import torch

from iidlib.config import RunConfig
from iidlib.config.recipes import FROM_POOL
from iidlib.config.uses import chosen_by_pool
from iidlib.data import Dataset
from iidlib.engine import check_fits, total_bytes
from iidlib.networks import activation_bytes, network_bytes

__all__ = ["check_memory", "default_classes", "least_memory"]


def least_memory(
    config: RunConfig, dataset: Dataset, terms: Collection[str], source: str = "random", *, pool: bool = False,
    classes: range | None = None,
) -> dict[str, int]:  # fmt: skip
    """Bytes that a distillation must hold at the same time, by purpose.

    These are an iteration's real images with their last feature maps (ConvNets only), the expanded synthetic images
    with theirs, cached statistics, and the weights of all networks held: the matching network, a queue with its
    momenta, a pool. Activations within a chunk are left out. Settings that exceed this bound do not fit; settings below
    it may still not fit.

    Args:
        config: the settings.
        dataset: the dataset to distil.
        terms: names of the terms in use.
        source: source of the matching networks, a name of ``match.source``; "" for a user-defined one.
        pool: whether the iterations use the pool in any case, for instance in a user-defined term.
        classes: classes of this process, of several that share the run; None for all.
    """
    classes = range(dataset.train.num_classes) if classes is None else classes
    spec, match = dataset.spec, config.match
    pixels = 4 * spec.channels * spec.image_size**2
    # real images of all classes in an iteration; cached statistics are measured on one whole class at a time
    counts = dataset.train.counts[classes.start : classes.stop]
    real = int(counts.max() if match.statistics == "cached" else counts.clamp(max=match.batch_real).sum())
    syn = len(classes) * config.ipc * config.syn.factor**2
    position = 0
    if match.network.startswith("convnet") and match.network[7:8].isdigit():
        position = 4 * match.width * (spec.image_size >> int(match.network[7])) ** 2
    needs = {
        f"{real} real images in an iteration: lower match.batch_real or match.width": real * (pixels + position),
        f"{syn} synthetic images: lower ipc or syn.factor": syn * (pixels + position),
    }
    if match.statistics == "cached":
        kept = min(match.cached_pairs, config.iterations)
        statistics = len(classes) * (position + 4 * match.width**2) if position else 0
        # 8 bytes per pair for their order, which is one tensor
        needs["the cached statistics: lower match.cached_pairs"] = 8 * match.cached_pairs + kept * statistics
    if (weights := _weights(match.network, dataset, match.width)) is not None:
        held = 1
        if source == "queue":
            settings = config.queue
            held = 2 * min(settings.size, settings.start + (config.iterations - 1) // settings.every + 1)
        lower = "match.width, queue.size or queue.start" if source == "queue" else "match.width"
        needs[f"the weights of {match.network}: lower {lower}"] = held * weights
    if "mmd" in terms and match.mmd_form == "characteristic":  # the frequencies, and real and imaginary parts for them
        at_frequencies = match.mmd_frequencies * (position + 8 * (real + syn))
        needs[f"{match.mmd_frequencies} frequencies: lower match.mmd_frequencies"] = at_frequencies
    used = pool or "cc" in terms or source in FROM_POOL
    weights = None
    if used or chosen_by_pool(config):
        weights = _weights(config.pool.network, dataset, config.pool.width)
    if weights is not None:
        kept = len({*config.pool.epochs_kept, config.pool.epochs})
        members = config.pool.count * kept if used else 1  # the network that chooses the initial images
        needs["the weights of the pool: lower pool.width or pool.count"] = members * weights
    return needs


def _weights(name: str, dataset: Dataset, width: int) -> int | None:
    """Bytes of a network's weights; None for a network that cannot be built, which is reported where it is built."""
    try:
        return network_bytes(name, dataset.spec, width)
    except ValueError:
        return None


def check_memory(
    config: RunConfig, dataset: Dataset, terms: Collection[str], source: str = "random", *, pool: bool = False,
    classes: range | None = None,
) -> None:  # fmt: skip
    """Refuses settings that cannot fit into memory, see `least_memory`.

    Raises:
        InputError: with what needs most of the memory, and the setting to lower.
    """
    device: torch.device = dataset.train.device
    check_fits(least_memory(config, dataset, terms, source, pool=pool, classes=classes), device)


ACTIVATIONS = 0.4
"""Share of a GPU's memory for what a backward pass keeps. The plain step that verifies a recording needs as much
again; the rest holds weights, real images and workspaces."""


def default_classes(config: RunConfig, dataset: Dataset, terms: Collection[str]) -> int:
    """Default number of classes in one backward pass; 0 for all.

    On CUDA, as many as leave room for the activations of their synthetic images in all networks, and for their real
    images. It depends on the total memory of the device, so runs on one GPU model agree. 0 elsewhere.

    Args:
        config: the settings.
        dataset: the dataset to distil.
        terms: names of the terms in use.
    """
    total = total_bytes(dataset.train.device)
    if total is None:
        return 0
    spec, match = dataset.spec, config.match
    syn = activation_bytes(match.network, spec, match.width)
    if "cc" in terms:
        syn += activation_bytes(config.pool.network, spec, config.pool.width)
    pixels = 4 * spec.channels * spec.image_size**2
    per_class = config.ipc * config.syn.factor**2 * syn
    per_class += min(match.batch_real, int(dataset.train.counts.max())) * 8 * pixels  # with the copies of augmentation
    return max(1, int(ACTIVATIONS * total) // per_class)
