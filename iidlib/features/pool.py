"""The pool of pretrained networks behind class centralization: trained on first use, cached by fingerprint."""

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import attrs
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from iidlib.config import ComputeConfig, PoolConfig, RunConfig
from iidlib.data import Dataset
from iidlib.engine import default_together, deterministic, graphs, precision, precision_in_use
from iidlib.errors import InputError
from iidlib.features.pool_files import check_keepable, keep, load_weights, read_facts
from iidlib.features.trained import HeldOut
from iidlib.files import cache_dir, user_path
from iidlib.networks import Network, frozen, network_for
from iidlib.rng import stream
from iidlib.training import (
    Examples,
    Training,
    accuracy,
    fit,
    fit_together,
    networks_together,
    resolve_augmentation,
)

__all__ = ["Pool", "choosing_pool", "pool_fingerprint", "pool_members", "trained_pool"]

NO_POOL = "dm and dm-cm need no pool, unless syn.init is centres or easiest"
"""Remedy that every error about a pool ends with."""

logger = logging.getLogger("iidlib")


@dataclass
class Pool:
    """Pretrained networks, used by class centralization and as the matching networks of iid-plus.

    Attributes:
        networks: the networks, frozen; at least one.
        accuracies: accuracy of each network on held-out images, in percent.
        fingerprint: identifies the data and settings that the networks were trained with.
        digest: twelve hex digits of the stored weights, which depend on the machine and the number of threads.
        seconds: total training time, whenever it was spent; None for pools of earlier versions, which do not record it.
        epochs: number of epochs that each network was trained for; empty if unknown, and all then count as trained.
        ensemble: how networks were trained together (see `training.HowTrained`); empty if they were not, or if unknown.
    """

    networks: list[Network]
    accuracies: list[float]
    fingerprint: str
    digest: str = ""
    seconds: float | None = None
    epochs: Sequence[int] = ()
    ensemble: str = ""

    def sample(self, generator: torch.Generator) -> Network:
        """A pretrained network, drawn uniformly by a generator on the CPU.

        Class centralization needs a network that knows the classes, so copies from before the training
        (``pool.epochs_kept`` of 0) are left out. If the matching networks themselves come from the pool, class
        centralization uses them instead, whatever their stage.
        """
        epochs = self.epochs or [1] * len(self.networks)
        trained = [network for network, done in zip(self.networks, epochs, strict=True) if done]
        trained = trained or self.networks
        return trained[int(torch.randint(len(trained), (), generator=generator))]


def pool_fingerprint(dataset: Dataset, config: PoolConfig, compute: ComputeConfig | None = None) -> str:
    """Twelve hex digits that identify the training images and every setting that affects the networks.

    Args:
        dataset: the dataset that the networks are trained on, on the device where they are trained.
        config: the settings of the pool.
        compute: gives the precision, which affects the networks on CUDA only; by default ``ComputeConfig()``.
    """
    in_use = precision_in_use(dataset.train.device, (compute or ComputeConfig()).precision)
    return _fingerprint(dataset, config, rounded=in_use != "fp32")


def _fingerprint(dataset: Dataset, config: PoolConfig, *, rounded: bool) -> str:
    """The fingerprint for training in full float32, or with convolutions whose factors are `rounded` to TF32."""
    facts = {key: value for key, value in attrs.asdict(config).items() if key not in ("count", "path", "untrained")}
    facts["augmentation"] = _augmentation(dataset, config)
    facts["epochs_kept"] = [kept for kept in config.epochs_kept if kept != config.epochs]  # the last is always kept
    if facts["augmentation"] == "none":  # pools from before the option existed keep their fingerprint
        del facts["augmentation"]
    if rounded:
        facts["convolutions"] = "tf32"
    return sha256(json.dumps([dataset.train.fingerprint, facts], sort_keys=True).encode()).hexdigest()[:12]


def pool_members(config: PoolConfig) -> list[tuple[int, int]]:
    """Network number and number of training epochs of every member of a pool, in order."""
    return list(itertools.product(range(config.count), _epochs_kept(config)))


def trained_pool(
    dataset: Dataset,
    config: PoolConfig,
    *,
    compute: ComputeConfig | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> Pool:
    """The pool that the settings ask for: loaded if it exists, otherwise trained and saved.

    Explained in chapter 04.

    Each network is trained at a constant learning rate on all training images, without augmentation, as in the official
    code, or with ``config.augmentation``. Copies after the epochs ``config.epochs_kept`` and after the last one are the
    members of the pool. They are rounded to the precision ``config.stored``, so a pool is the same whether it was just
    trained or loaded, and saved as soon as their training is done, so an interrupted pool can be resumed. Held-out
    accuracy is measured on the test images. Nothing is selected by it; it only distinguishes networks that have learned
    something from those that guess (see `HeldOut`). Networks that have learned little are used with a warning.

    Args:
        dataset: the dataset that the networks are trained on, on the device where they are trained and used.
        config: architecture, number, epochs; ``config.path`` names a folder, otherwise the cache is used. A complete
            pool in a named folder is used whatever precision it was trained in.
        compute: how the hardware is used (``precision``, ``compile``, ``together``, ``ensemble``).
        on_epoch: called with the network's number and the epoch that was completed.

    Raises:
        InputError: for an unknown network, a network that is no better than guessing (accepted with
            ``config.untrained="warn"``), weights that are not finite, a corrupted file, or a folder with a pool of
            other data or settings.
    """
    compute, device = compute or ComputeConfig(), dataset.train.device
    own = pool_fingerprint(dataset, config, compute)
    folder = user_path(config.path) if config.path else cache_dir() / "pools" / own
    either = {_fingerprint(dataset, config, rounded=rounded) for rounded in (False, True)} if config.path else {own}
    read = read_facts(folder, own, explicit=bool(config.path), accepted=either)
    known, seconds, ensemble, fingerprint = read

    def build(number: int) -> Network:
        return network_for(
            config.network,
            dataset.spec,
            width=config.width,
            generator=stream(config.seed, number, "pool network", device),
            compile=compute.compile,
        )

    if not len(dataset.test):
        raise InputError(f"{dataset.name} has no test images to check pretrained networks with; add some ({NO_POOL})")
    held_out = HeldOut.of(dataset.test)
    members = {(number, epochs): _file_name(config, number, epochs) for number, epochs in pool_members(config)}
    missing = sorted({number for (number, _), name in members.items() if name not in known})
    if missing and fingerprint != own:
        raise InputError(
            f"the pool in {folder} lacks {len(missing)} of {config.count} networks, and the others were trained in "
            "another precision: train these on the same kind of device with the same compute.precision, or give "
            "another pool.path"
        )
    if missing:
        unwritten = next(name for name in members.values() if name not in known)
        check_keepable(folder, unwritten, private=not config.path)
        logger.info("training %d %s for the pool", len(missing), config.network)
    alone = (compute.together or default_together(device)) == 1
    together = networks_together(
        config.network, dataset.spec, width=config.width, batch=config.batch, device=device, compute=compute
    )
    unkept: dict[str, bytes] = {}
    for first in range(0, len(missing), together):
        fresh = {number: build(number) for number in missing[first : first + together]}
        started = time.perf_counter()
        with precision(device, compute.precision), deterministic(device), graphs(compute.graph):
            trained, how = _train(fresh, dataset, config, None if alone else compute, on_epoch)
        ensemble |= dict.fromkeys(map(str, fresh), how)
        seconds |= dict.fromkeys(map(str, fresh), round((time.perf_counter() - started) / len(fresh), 3))
        for (number, epochs), weights in trained.items():
            network, name = build(number), members[number, epochs]
            network.load_state_dict(weights)
            _check_finite(config, number, weights)
            with precision(device, compute.precision):
                known[name] = accuracy(network, dataset.test)
            _check_trained(config, held_out, number, epochs, known[name])
            facts = {"fingerprint": fingerprint, "network": config.network, "accuracies": known, "seconds": seconds}
            facts |= {"ensemble": ensemble} if any(ensemble.values()) else {}
            content = to_bytes({key: tensor.contiguous() for key, tensor in weights.items()})
            if unkept or not keep(folder, name, content, facts, private=not config.path):
                unkept[name] = content
            after = "" if epochs == config.epochs else f" after {epochs} of {config.epochs} epochs"
            logger.info("network %d of %d%s: %.1f %% on held-out images", number + 1, config.count, after, known[name])
    networks, digest = [], sha256()
    for (number, epochs), name in members.items():
        _check_trained(config, held_out, number, epochs, known[name])
        networks.append(frozen(build(number)).eval())
        digest.update(load_weights(folder / f"{name}.safetensors", networks[-1], unkept.get(name)))
    _warn_of_weak(config, held_out, [known[name] for (_, epochs), name in members.items() if epochs == config.epochs])
    times = [seconds.get(str(number)) for number in range(config.count)]
    total = None if None in times else sum(one for one in times if one is not None)
    accuracies, epochs_done = [known[name] for name in members.values()], [epochs for _, epochs in members]
    forms = "; ".join(sorted({ensemble.get(str(number), "") for number in range(config.count)} - {""}))
    return Pool(networks, accuracies, fingerprint, digest.hexdigest()[:12], total, epochs_done, forms)


def choosing_pool(dataset: Dataset, config: RunConfig) -> Pool:
    """A pool of one network, whose features real images are chosen by: trained on the whole dataset, one per seed.

    Args:
        dataset: the dataset that the network is trained on.
        config: the settings; ``config.pool`` describes the training, but its number of networks is ignored, and
            ``config.seed`` is added to its seed.

    Raises:
        InputError: as for `trained_pool`.
    """
    one = attrs.evolve(config.pool, count=1, epochs_kept=(), seed=config.pool.seed + config.seed)
    return trained_pool(dataset, one, compute=config.compute)


def _augmentation(dataset: Dataset, config: PoolConfig) -> str:
    """DSA operations used to train the networks, or ``none``."""
    return resolve_augmentation(config.augmentation, dataset.spec.augmentation)


def _epochs_kept(config: PoolConfig) -> list[int]:
    """Numbers of epochs after which a network is copied into the pool, ascending; the last epoch is among them."""
    return sorted({*config.epochs_kept, config.epochs})


def _file_name(config: PoolConfig, number: int, epochs: int) -> str:
    return f"{number:04d}" if epochs == config.epochs else f"{number:04d}-after-{epochs}"


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
            if epoch + 1 in _epochs_kept(config):
                kept[number, epoch + 1] = _rounded(network.state_dict(), config.stored)
            if on_epoch is not None:
                on_epoch(number, epoch)

    examples, seeds = Examples(dataset.train.images_of, dataset.train.labels), [config.seed + n for n in networks]
    augmentation = _augmentation(dataset, config)
    training = Training(config.epochs, config.lr, config.batch, augmentation=augmentation)
    if 0 in _epochs_kept(config):
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


def _check_trained(config: PoolConfig, held_out: HeldOut, number: int, epochs: int, reached: float) -> None:
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


def _warn_of_weak(config: PoolConfig, held_out: HeldOut, accuracies: Sequence[float]) -> None:
    """Warns once if the fully trained networks of a pool have learned little, or if that cannot be determined.

    Copies of earlier epochs are meant to know less.
    """
    right, needed = [held_out.right(reached) for reached in accuracies], held_out.better_than_chance
    who = f"{config.network} trained for {config.epochs} epochs"
    usual = max(held_out.well_trained, needed or 0)
    if needed is None:
        logger.warning(
            "%d held-out images are too few to determine whether the pool (%s) has learned anything",
            held_out.images,
            who,
        )
    elif weak := [count for count in right if count < usual]:
        guessing = [count for count in weak if count < needed]
        logger.warning(
            "the pool (%s) has learned %s: %s of %d held-out images correct, where %d are usual and %d are better than "
            "chance; its features may carry little information. Raise pool.epochs or give more images; %s",
            who,
            "nothing that is better than guessing" if guessing else "little",
            ", ".join(map(str, weak)),
            held_out.images,
            usual,
            needed,
            NO_POOL,
        )
