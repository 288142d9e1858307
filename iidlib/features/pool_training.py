"""Training of a pool's networks: copies after the epochs that are kept, as they are stored, with their accuracy."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from safetensors.torch import save as to_bytes
from torch import Tensor

from iidlib.config import ComputeConfig, PoolConfig
from iidlib.data import Dataset
from iidlib.engine import default_together, deterministic, graphs, precision
from iidlib.errors import InputError
from iidlib.features.trained import HeldOut
from iidlib.networks import Network, network_for
from iidlib.rng import stream
from iidlib.training import Examples, Training, accuracy, fit, fit_together, resolve_augmentation

__all__ = ["NO_POOL", "Member", "built", "check_trained", "epochs_kept", "pool_augmentation", "train_members"]

NO_POOL = "dm and dm-cm need no pool, unless syn.init is centres or easiest"
"""Remedy that every error about a pool ends with."""


class Member(NamedTuple):
    """A network of a pool after some epochs."""

    number: int
    """Number of the network."""
    epochs: int
    """Number of training epochs."""
    content: bytes
    """Weights, as they are stored."""
    accuracy: float
    """Accuracy on held-out images, in percent."""
    seconds: float
    """Training time of the network; networks trained together share their time equally."""
    ensemble: str
    """How the network was trained together with others, see `Pool.ensemble`."""


def built(number: int, dataset: Dataset, config: PoolConfig, compute: ComputeConfig) -> Network:
    """A network of the pool with its initial weights."""
    return network_for(
        config.network,
        dataset.spec,
        width=config.width,
        generator=stream(config.seed, number, "pool network", dataset.train.device),
        compile=compute.compile,
    )


def pool_augmentation(dataset: Dataset, config: PoolConfig) -> str:
    """DSA operations used to train the networks, or ``none``."""
    return resolve_augmentation(config.augmentation, dataset.spec.augmentation)


def epochs_kept(config: PoolConfig) -> list[int]:
    """Numbers of epochs after which a network is copied into the pool, ascending; the last epoch is among them."""
    return sorted({*config.epochs_kept, config.epochs})


def train_members(
    numbers: Sequence[int],
    dataset: Dataset,
    config: PoolConfig,
    held_out: HeldOut,
    compute: ComputeConfig,
    on_epoch: Callable[[int, int], None] | None,
) -> tuple[list[Member], str]:
    """Trains networks together and measures their accuracy.

    Args:
        numbers: numbers of the networks.
        dataset: the dataset, on the device of the training.
        config: settings of the pool.
        held_out: what a network must reach.
        compute: how the hardware is used.
        on_epoch: called with a network's number and the epoch that was completed.

    Returns:
        The members, up to the first that cannot be used, and the reason for that; "" if all can.
    """
    device, members = dataset.train.device, list[Member]()
    if not numbers:
        return members, ""
    alone = (compute.together or default_together(device)) == 1
    fresh = {number: built(number, dataset, config, compute) for number in numbers}
    started = time.perf_counter()
    with precision(device, compute.precision), deterministic(device), graphs(compute.graph):
        trained, how = _train(fresh, dataset, config, None if alone else compute, on_epoch)
    seconds = round((time.perf_counter() - started) / len(fresh), 3)
    for (number, epochs), weights in trained.items():
        network = built(number, dataset, config, compute)
        network.load_state_dict(weights)
        try:
            _check_finite(config, number, weights)
            with precision(device, compute.precision):
                reached = accuracy(network, dataset.test)
            check_trained(config, held_out, number, epochs, reached)
        except InputError as error:
            return members, str(error)
        content = to_bytes({key: tensor.contiguous() for key, tensor in weights.items()})
        members.append(Member(number, epochs, content, reached, seconds, how))
    return members, ""


def _train(
    networks: Mapping[int, Network],
    dataset: Dataset,
    config: PoolConfig,
    compute: ComputeConfig | None,
    on_epoch: Callable[[int, int], None] | None,
) -> tuple[dict[tuple[int, int], dict[str, Tensor]], str]:
    """Weights as they are stored, by network number and number of training epochs, sorted; and `Pool.ensemble`.

    Without `compute`, a single network is trained alone.
    """
    kept: dict[tuple[int, int], dict[str, Tensor]] = {}

    def done(epoch: int) -> None:
        for number, network in networks.items():
            if epoch + 1 in epochs_kept(config):
                kept[number, epoch + 1] = _rounded(network.state_dict(), config.stored)
            if on_epoch is not None:
                on_epoch(number, epoch)

    examples, seeds = Examples(dataset.train.images_of, dataset.train.labels), [config.seed + n for n in networks]
    augmentation = pool_augmentation(dataset, config)
    training = Training(config.epochs, config.lr, config.batch, augmentation=augmentation)
    if 0 in epochs_kept(config):
        kept |= {(number, 0): _rounded(network.state_dict(), config.stored) for number, network in networks.items()}
    if compute is None:
        (network,) = networks.values()
        fit(network, examples, training, seed=seeds[0], on_epoch=done)
        how = ""
    else:
        how = str(fit_together(
            [*networks.values()], examples, training, seeds=seeds, on_epoch=done, form=compute.ensemble,
            compiled=compute.compiled,
        ))  # fmt: skip
    return dict(sorted(kept.items())), how


def _rounded(weights: Mapping[str, Tensor], stored: str) -> dict[str, Tensor]:
    """A copy on the CPU in the precision of the file; counters, and tensors beyond the range of fp16, are unchanged."""
    copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    if stored == "fp16":
        for name, tensor in copies.items():
            if tensor.is_floating_point() and bool((half := tensor.half()).isfinite().all()):
                copies[name] = half
    return copies


def _check_finite(config: PoolConfig, number: int, weights: Mapping[str, Tensor]) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise InputError(
            f"network {number} of the pool ({config.network}) has diverged: its weights are not finite; lower "
            f"pool.lr (now {config.lr:g})"
        )


def check_trained(config: PoolConfig, held_out: HeldOut, number: int, epochs: int, reached: float) -> None:
    """Refuses a network that is no better than guessing."""
    right, needed = held_out.right(reached), held_out.better_than_chance
    if not epochs or needed is None or right >= needed or config.untrained == "warn":
        return
    early = epochs < config.epochs
    remedy = "Keep later epochs" if early else f"Raise pool.epochs (now {config.epochs})"
    raise InputError(
        f"network {number} of the pool ({config.network}) classifies {right} of {held_out.images} held-out images "
        f"correctly{f' after {epochs} epochs (pool.epochs_kept)' if early else ''}, no better than guessing ({needed} "
        f"would be). {remedy}, give more images, or set pool.untrained=warn; {NO_POOL}"
    )
