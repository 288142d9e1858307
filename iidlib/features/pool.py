"""The pool of pretrained networks behind class centralization: trained on first use, cached by fingerprint."""

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import attrs
import torch

from iidlib.config import ComputeConfig, PoolConfig, RunConfig
from iidlib.data import Dataset
from iidlib.engine import precision_in_use
from iidlib.errors import InputError
from iidlib.features.pool_files import PoolFacts, check_keepable, keep, load_weights, read_facts, read_weights
from iidlib.features.pool_training import NO_POOL, built, check_trained, epochs_kept, pool_augmentation, train_members
from iidlib.features.trained import HeldOut
from iidlib.files import cache_dir, user_path
from iidlib.networks import Network, frozen
from iidlib.ranks import current
from iidlib.training import networks_together

__all__ = ["Pool", "choosing_pool", "pool_fingerprint", "pool_members", "trained_pool"]

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
    facts["augmentation"] = pool_augmentation(dataset, config)
    facts["epochs_kept"] = [kept for kept in config.epochs_kept if kept != config.epochs]  # the last is always kept
    if facts["augmentation"] == "none":  # pools from before the option existed keep their fingerprint
        del facts["augmentation"]
    if rounded:
        facts["convolutions"] = "tf32"
    return sha256(json.dumps([dataset.train.fingerprint, facts], sort_keys=True).encode()).hexdigest()[:12]


def pool_members(config: PoolConfig) -> list[tuple[int, int]]:
    """Network number and number of training epochs of every member of a pool, in order."""
    return list(itertools.product(range(config.count), epochs_kept(config)))


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
    compute, ranks = compute or ComputeConfig(), current()
    own = pool_fingerprint(dataset, config, compute)
    folder = user_path(config.path) if config.path else cache_dir() / "pools" / own
    members = {(number, epochs): _file_name(config, number, epochs) for number, epochs in pool_members(config)}
    read: tuple[PoolFacts, dict[str, bytes]] | None = None
    with ranks.agreed():
        if not len(dataset.test):
            raise InputError(
                f"{dataset.name} has no test images to check pretrained networks with; add some ({NO_POOL})"
            )
        if ranks.leads:
            either = {_fingerprint(dataset, config, rounded=rounded) for rounded in (False, True)}
            facts = read_facts(folder, own, explicit=bool(config.path), accepted=either if config.path else {own})
            _check_missing(config, folder, own, facts, list(members.values()))
            known = [name for name in members.values() if name in facts.accuracies]
            # other processes may have no folder in common with this one
            read = facts, {name: read_weights(folder, name) for name in known} if ranks.size > 1 else {}
    ranks.check_same({"settings of the pool": str(config), "fingerprint of the pool": own})
    facts, unkept = ranks.first(read)
    held_out = HeldOut.of(dataset.test)
    missing = sorted({number for (number, _), name in members.items() if name not in facts.accuracies})
    together = ranks.size * networks_together(
        config.network, dataset.spec, width=config.width, batch=config.batch, device=dataset.train.device,
        compute=compute,
    )  # fmt: skip
    keeps = ranks.leads
    for first in range(0, len(missing), together):
        group = missing[first : first + together]
        mine = [group[place] for place in ranks.share(len(group))]
        fresh, refusal = train_members(mine, dataset, config, held_out, compute, on_epoch)
        answers = ranks.every((fresh, refusal))
        with ranks.agreed():  # a file may not be writable
            for members_of_rank, _ in answers:
                for one in members_of_rank:
                    name = members[one.number, one.epochs]
                    facts.add(name, one)
                    keeps = keeps and keep(
                        folder, name, one.content, facts.as_json(config.network), private=not config.path
                    )
                    if not keeps or ranks.size > 1:
                        unkept[name] = one.content
                    after = "" if one.epochs == config.epochs else f" after {one.epochs} of {config.epochs} epochs"
                    logger.info(
                        "network %d of %d%s: %.1f %% on held-out images",
                        one.number + 1,
                        config.count,
                        after,
                        one.accuracy,
                    )
        for _, refusal in answers:
            if refusal:
                raise InputError(refusal)
    networks, digest = [], sha256()
    for (number, epochs), name in members.items():
        check_trained(config, held_out, number, epochs, facts.accuracies[name])
        networks.append(frozen(built(number, dataset, config, compute)).eval())
        digest.update(load_weights(folder, name, networks[-1], unkept.get(name)))
    accuracies = [facts.accuracies[name] for name in members.values()]
    last = [reached for (_, epochs), reached in zip(members, accuracies, strict=True) if epochs == config.epochs]
    _warn_of_weak(config, held_out, last)
    times = [facts.seconds.get(str(number)) for number in range(config.count)]
    total = None if None in times else sum(one for one in times if one is not None)
    forms = "; ".join(sorted({facts.ensemble.get(str(number), "") for number in range(config.count)} - {""}))
    epochs_done = [epochs for _, epochs in members]
    return Pool(networks, accuracies, facts.fingerprint, digest.hexdigest()[:12], total, epochs_done, forms)


def _check_missing(config: PoolConfig, folder: Path, own: str, facts: PoolFacts, names: Sequence[str]) -> None:
    """Checks before any training whether the missing networks fit those that the folder has, and can be kept."""
    missing = [name for name in names if name not in facts.accuracies]
    if not missing:
        return
    count = len({name.partition("-")[0] for name in missing})
    if facts.fingerprint != own:
        raise InputError(
            f"the pool in {folder} lacks {count} of {config.count} networks, and the others were trained in another "
            "precision: train these on the same kind of device with the same compute.precision, or give another "
            "pool.path"
        )
    check_keepable(folder, missing[0], private=not config.path)
    logger.info("training %d %s for the pool", count, config.network)


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


def _file_name(config: PoolConfig, number: int, epochs: int) -> str:
    return f"{number:04d}" if epochs == config.epochs else f"{number:04d}-after-{epochs}"


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
