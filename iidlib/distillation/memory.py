"""What a distillation needs of memory at the least, looked at before it begins."""

from collections.abc import Collection

import torch

from iidlib.config import RunConfig
from iidlib.config.recipes import FROM_POOL
from iidlib.config.uses import chosen_by_pool
from iidlib.data import Dataset
from iidlib.engine import check_fits
from iidlib.networks import network_bytes

__all__ = ["check_memory", "least_memory"]


def least_memory(
    config: RunConfig, dataset: Dataset, terms: Collection[str], source: str = "random", *, pool: bool = False
) -> dict[str, int]:
    """Bytes that a distillation holds at one time at the least, by what they are for.

    Counted are an iteration's real images and the last maps that the matching network gives of all of them (ConvNets
    only), the synthetic images as a network sees them, cached statistics, and the weights of networks that are kept:
    of the matching network, a queue with its momenta, a pool. Activations within a chunk are left out: what is refused
    does not fit, what is not refused may still be too much.

    Args:
        config: the settings.
        dataset: what is distilled.
        terms: names of the terms in use.
        source: of the matching networks: a name of ``match.source``; "" for one of the caller's own.
        pool: whether the iterations use the pool in any case, such as for a term of the caller's own.
    """
    spec, match = dataset.spec, config.match
    pixels = 4 * spec.channels * spec.image_size**2
    # an iteration's real images of all classes; cached statistics are measured on all images of a class at a time
    counts = dataset.train.counts
    real = int(counts.max() if match.statistics == "cached" else counts.clamp(max=match.batch_real).sum())
    syn = len(spec.classes) * config.ipc * config.syn.factor**2
    position = 0
    if match.network.startswith("convnet") and match.network[7:8].isdigit():
        position = 4 * match.width * (spec.image_size >> int(match.network[7])) ** 2
    needs = {
        f"{real} real images in an iteration: lower match.batch_real or match.width": real * (pixels + position),
        f"{syn} synthetic images: lower ipc or syn.factor": syn * (pixels + position),
    }
    if match.statistics == "cached":
        kept = min(match.cached_pairs, config.iterations)
        statistics = len(spec.classes) * (position + 4 * match.width**2) if position else 0
        # their order is drawn as one list of numbers
        needs["the cached statistics: lower match.cached_pairs"] = 8 * match.cached_pairs + kept * statistics
    if (weights := _weights(match.network, dataset, match.width)) is not None:
        held = 1
        if source == "queue":
            settings = config.queue
            held = 2 * min(settings.size, settings.start + config.iterations // settings.every + 1)
        lower = "match.width, queue.size or queue.start" if source == "queue" else "match.width"
        needs[f"the weights of {match.network}: lower {lower}"] = held * weights
    if "mmd" in terms and match.mmd_form == "characteristic":  # the frequencies, and real and imaginary parts at them
        at_frequencies = match.mmd_frequencies * (position + 8 * (real + syn))
        needs[f"{match.mmd_frequencies} frequencies: lower match.mmd_frequencies"] = at_frequencies
    used = pool or "cc" in terms or source in FROM_POOL
    weights = None
    if used or chosen_by_pool(config):
        weights = _weights(config.pool.network, dataset, config.pool.width)
    if weights is not None:
        kept = len({*config.pool.epochs_kept, config.pool.epochs})
        members = config.pool.count * kept if used else 1  # the one that chooses the initial images
        needs["the weights of the pool: lower pool.width or pool.count"] = members * weights
    return needs


def _weights(name: str, dataset: Dataset, width: int) -> int | None:
    """Bytes of a network's weights; None for one that cannot be built, which is told where it is."""
    try:
        return network_bytes(name, dataset.spec, width)
    except ValueError:
        return None


def check_memory(
    config: RunConfig, dataset: Dataset, terms: Collection[str], source: str = "random", *, pool: bool = False
) -> None:
    """Refuses settings that no memory holds, see `least_memory`.

    Raises:
        InputError: with what takes most of the memory, and the setting to lower.
    """
    device: torch.device = dataset.train.device
    check_fits(least_memory(config, dataset, terms, source, pool=pool), device)
