"""The pool of pretrained networks behind class centralization: trained when absent, kept by fingerprint."""

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
from iidlib.engine import default_together
from iidlib.errors import InputError
from iidlib.features.pool_files import check_keepable, keep, load_weights, read_facts
from iidlib.features.trained import HeldOut
from iidlib.files import cache_dir, user_path
from iidlib.networks import Network, frozen, network_for
from iidlib.rng import stream
from iidlib.training import Examples, Training, accuracy, fit, fit_together, resolve_augmentation

__all__ = ["Pool", "choosing_pool", "pool_fingerprint", "pool_members", "trained_pool"]

NO_POOL = "dm and dm-cm need no pool, unless syn.init is centres or easiest"
"""What every refusal of a pool offers."""

logger = logging.getLogger("iidlib")


@dataclass
class Pool:
    """Trained networks that give the features of class centralization, and iid-plus its matching networks.

    Attributes:
        networks: frozen, at least one.
        accuracies: of each on held-out images, in percent.
        fingerprint: names the data and settings that they were trained with.
        digest: twelve hex digits of the weights as they are stored; another machine, or other threads, train others.
        seconds: that their training took, whenever it was; None for networks of earlier versions, which do not say.
        passes: of the training images that each has seen; empty where that is not known, and all count as trained.
    """

    networks: list[Network]
    accuracies: list[float]
    fingerprint: str
    digest: str = ""
    seconds: float | None = None
    passes: Sequence[int] = ()

    def sample(self, generator: torch.Generator) -> Network:
        """One trained network, uniformly drawn; the generator is on the CPU.

        Class centralization asks here for a network that knows the classes, which a copy from before the training
        (``pool.epochs_kept`` of 0) does not. Where the matching networks are drawn from the pool, it takes theirs,
        whatever their stage.
        """
        passes = self.passes or [1] * len(self.networks)
        trained = [network for network, seen in zip(self.networks, passes, strict=True) if seen]
        trained = trained or self.networks
        return trained[int(torch.randint(len(trained), (), generator=generator))]


def pool_fingerprint(dataset: Dataset, config: PoolConfig) -> str:
    """Twelve hex digits of the training images and every setting that shapes the networks."""
    facts = {key: value for key, value in attrs.asdict(config).items() if key not in ("count", "path", "untrained")}
    facts["augmentation"] = _augmentation(dataset, config)
    facts["epochs_kept"] = [kept for kept in config.epochs_kept if kept != config.epochs]  # the last one always is
    if facts["augmentation"] == "none":  # pools trained before there was a choice keep their name
        del facts["augmentation"]
    return sha256(json.dumps([dataset.train.fingerprint, facts], sort_keys=True).encode()).hexdigest()[:12]


def pool_members(config: PoolConfig) -> list[tuple[int, int]]:
    """Number of the network, and passes of its training, of every member of a pool in order."""
    return list(itertools.product(range(config.count), _passes_kept(config)))


def trained_pool(
    dataset: Dataset,
    config: PoolConfig,
    *,
    compute: ComputeConfig | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> Pool:
    """The pool that the settings ask for: loaded where it was kept, trained and kept where not.

    Explained in chapter 04.

    Each network is trained at a constant rate on all training images, without augmentation, as in the official code,
    or with that of ``config.augmentation``. Copies of it after the epochs ``config.epochs_kept`` and after the last one
    are members of the pool, rounded to the precision ``config.stored`` in which they are kept, so that a pool is the
    same when it is trained and when it is loaded. They are written as soon as their training is done, so that a pool
    that was interrupted is resumed. Held-out accuracy is that on the test images; nothing is selected by it, it only
    tells a network that has learned something from one that guesses (see `HeldOut`); networks that have learned little
    are used with a warning.

    Args:
        dataset: what the networks learn, on the device where they are trained and kept.
        config: architecture, number, epochs; ``config.path`` names a folder, else the cache is used.
        compute: how the hardware is used (``compile``, ``together``).
        on_epoch: called with the network's number and the pass that is done.

    Raises:
        InputError: for an unknown network, a network that is no better than guessing (``config.untrained="warn"`` takes
            it all the same), weights that are no finite numbers, a damaged file, or a folder that holds a pool of other
            data or settings.
    """
    compute, device = compute or ComputeConfig(), dataset.train.device
    fingerprint = pool_fingerprint(dataset, config)
    folder = user_path(config.path) if config.path else cache_dir() / "pools" / fingerprint
    known, seconds = read_facts(folder, fingerprint, explicit=bool(config.path))

    def build(number: int) -> Network:
        return network_for(
            config.network,
            dataset.spec,
            width=config.width,
            generator=stream(config.seed, number, "pool network", device),
            compile=compute.compile,
        )

    if not len(dataset.test):
        raise InputError(
            f"{dataset.name} has no test images, on which pretrained networks are tried; give it some ({NO_POOL})"
        )
    held_out = HeldOut.of(dataset.test)
    members = {(number, passes): _file_name(config, number, passes) for number, passes in pool_members(config)}
    missing = sorted({number for (number, _), name in members.items() if name not in known})
    if missing:
        unwritten = next(name for name in members.values() if name not in known)
        check_keepable(folder, unwritten, private=not config.path)
        logger.info("training %d %s for the pool", len(missing), config.network)
    together = compute.together or default_together(device)
    unkept: dict[str, bytes] = {}
    for first in range(0, len(missing), together):
        fresh = {number: build(number) for number in missing[first : first + together]}
        begun = time.perf_counter()
        trained = _train(fresh, dataset, config, together, on_epoch)
        seconds |= dict.fromkeys(map(str, fresh), round((time.perf_counter() - begun) / len(fresh), 3))
        for (number, passes), weights in trained.items():
            network, name = build(number), members[number, passes]
            network.load_state_dict(weights)
            _check_finite(config, number, weights)
            known[name] = accuracy(network, dataset.test)
            _check_trained(config, held_out, number, passes, known[name])
            facts = {"fingerprint": fingerprint, "network": config.network, "accuracies": known, "seconds": seconds}
            content = to_bytes({key: tensor.contiguous() for key, tensor in weights.items()})
            if unkept or not keep(folder, name, content, facts, private=not config.path):
                unkept[name] = content
            after = "" if passes == config.epochs else f" after {passes} of {config.epochs} epochs"
            logger.info("network %d of %d%s: %.1f %% on held-out images", number + 1, config.count, after, known[name])
    networks, digest = [], sha256()
    for (number, passes), name in members.items():
        _check_trained(config, held_out, number, passes, known[name])
        networks.append(frozen(build(number)).eval())
        digest.update(load_weights(folder / f"{name}.safetensors", networks[-1], unkept.get(name)))
    _warn_of_weak(config, held_out, [known[name] for (_, passes), name in members.items() if passes == config.epochs])
    told = [seconds.get(str(number)) for number in range(config.count)]
    whole = None if None in told else sum(one for one in told if one is not None)
    accuracies, seen = [known[name] for name in members.values()], [passes for _, passes in members]
    return Pool(networks, accuracies, fingerprint, digest.hexdigest()[:12], whole, seen)


def choosing_pool(dataset: Dataset, config: RunConfig) -> Pool:
    """The one network on whose features real images are chosen: trained on all of them, another one for each seed.

    Args:
        dataset: what it learns.
        config: ``config.pool`` says how it is trained, whatever number of networks that asks for; ``config.seed`` is
            added to the seed of the pool.

    Raises:
        InputError: as for `trained_pool`.
    """
    one = attrs.evolve(config.pool, count=1, epochs_kept=(), seed=config.pool.seed + config.seed)
    return trained_pool(dataset, one, compute=config.compute)


def _augmentation(dataset: Dataset, config: PoolConfig) -> str:
    """DSA operations of the networks' training, or ``none``."""
    return resolve_augmentation(config.augmentation, dataset.spec.augmentation)


def _passes_kept(config: PoolConfig) -> list[int]:
    """After how many passes a network's copies are kept, ascending; the last pass is one of them."""
    return sorted({*config.epochs_kept, config.epochs})


def _file_name(config: PoolConfig, number: int, passes: int) -> str:
    return f"{number:04d}" if passes == config.epochs else f"{number:04d}-after-{passes}"


def _train(
    networks: Mapping[int, Network],
    dataset: Dataset,
    config: PoolConfig,
    together: int,
    on_epoch: Callable[[int, int], None] | None,
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Weights as they are stored, by the network's number and the passes of its training; one network after another."""
    kept: dict[tuple[int, int], dict[str, Tensor]] = {}

    def done(epoch: int) -> None:
        for number, network in networks.items():
            if epoch + 1 in _passes_kept(config):
                kept[number, epoch + 1] = _rounded(network.state_dict(), config.stored)
            if on_epoch is not None:
                on_epoch(number, epoch)

    examples, seeds = Examples(dataset.train.images_of, dataset.train.labels), [config.seed + n for n in networks]
    augmentation = _augmentation(dataset, config)
    training = Training(config.epochs, config.lr, config.batch, augmentation=augmentation)
    if 0 in _passes_kept(config):
        kept |= {(number, 0): _rounded(network.state_dict(), config.stored) for number, network in networks.items()}
    if together == 1:
        (network,) = networks.values()
        fit(network, examples, training, seed=seeds[0], on_epoch=done)
    else:
        fit_together(list(networks.values()), examples, training, seeds=seeds, on_epoch=done)
    return dict(sorted(kept.items()))


def _rounded(weights: Mapping[str, Tensor], stored: str) -> dict[str, Tensor]:
    """A copy on the CPU in the precision of the disk; numbers beyond fp16's range, and counters, stay as they are."""
    copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    if stored == "fp16":
        for name, tensor in copies.items():
            if tensor.is_floating_point() and bool((half := tensor.half()).isfinite().all()):
                copies[name] = half
    return copies


def _check_finite(config: PoolConfig, number: int, weights: Mapping[str, Tensor]) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise InputError(
            f"network {number} of the pool ({config.network}) has diverged: its weights are no finite numbers; lower "
            f"pool.lr (now {config.lr:g})"
        )


def _check_trained(config: PoolConfig, held_out: HeldOut, number: int, passes: int, reached: float) -> None:
    """Refuses a network that is no better than guessing."""
    right, needed = held_out.right(reached), held_out.better_than_chance
    if not passes or needed is None or right >= needed or config.untrained == "warn":
        return
    early = passes < config.epochs
    remedy = "Keep later epochs" if early else f"Raise pool.epochs (now {config.epochs})"
    raise InputError(
        f"network {number} of the pool ({config.network}) names {right} of {held_out.images} held-out images right"
        f"{f' after {passes} epochs (pool.epochs_kept)' if early else ''}, no better than guessing ({needed} would "
        f"be). {remedy}, give more images, or set pool.untrained=warn; {NO_POOL}"
    )


def _warn_of_weak(config: PoolConfig, held_out: HeldOut, accuracies: Sequence[float]) -> None:
    """Says once what the networks of a pool are worth at the end, where that is little or cannot be known.

    Copies on the way there know less, which is why they are kept.
    """
    right, needed = [held_out.right(reached) for reached in accuracies], held_out.better_than_chance
    who = f"{config.network} trained for {config.epochs} epochs"
    usual = max(held_out.well_trained, needed or 0)
    if needed is None:
        logger.warning(
            "%d held-out images are too few to tell whether the pool (%s) has learned anything", held_out.images, who
        )
    elif weak := [count for count in right if count < usual]:
        guessing = [count for count in weak if count < needed]
        logger.warning(
            "the pool (%s) has learned %s: %s of %d held-out images right, where %d are usual and %d are better than "
            "chance; its features may say little. Raise pool.epochs or give more images; %s",
            who,
            "nothing that can be told from guessing" if guessing else "little",
            ", ".join(map(str, weak)),
            held_out.images,
            usual,
            needed,
            NO_POOL,
        )
