"""One step of a distillation: the objective at an iteration, its gradient on the images, and their update.

All classes go through one batched forward pass: the norms of the networks act on each image by itself, so the sum over
classes is the same as the official loop over classes, one at a time.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from iidlib import config as configuration
from iidlib._version import __version__
from iidlib.config import PoolConfig, RunConfig
from iidlib.config.uses import chosen_by_pool
from iidlib.data import Dataset
from iidlib.distillation.batch import StepBatch
from iidlib.distillation.captured import CapturedStep, captured_step
from iidlib.distillation.draws import LazyDraws
from iidlib.distillation.memory import check_memory
from iidlib.distillation.methods import METHODS
from iidlib.distillation.start import Start, first_images
from iidlib.distillation.terms import check_terms, what_to_lower
from iidlib.engine import default_chunk, half_maps, in_chunks, precision
from iidlib.errors import InputError, suggest
from iidlib.features import CachedStatistics, NetworkQueue, Pool, choosing_network, chosen_images, trained_pool
from iidlib.names import same_dataset
from iidlib.networks import Network
from iidlib.synthetic import SyntheticSet
from iidlib.training import range_exceeded, resolve_augmentation
from iidlib.training.outcome import RUN_AWAY

__all__ = ["Distillation", "check_dataset"]

logger = logging.getLogger("iidlib")


def check_dataset(config: RunConfig, dataset: Dataset) -> None:
    """Refuses settings for another dataset, which a set and its rows of results would say they were made from.

    Raises:
        InputError: if the settings name another dataset than this one.
    """
    if not same_dataset(config.dataset, dataset.name):
        raise InputError(
            f"the settings are for dataset {config.dataset!r}, but the dataset given is {dataset.name!r}, and the set "
            "would say that it was made from the former; take settings for it: preset(..., dataset=dataset.name)"
        )


def _has_run_away(network: Network) -> bool:
    return not all(bool((weights.detach().abs() < RUN_AWAY).all()) for weights in network.parameters())


class Distillation:
    """The state of a run: the images being learned, their optimiser and the sources of features.

    Attributes:
        config: the settings.
        real: the training images.
        images: the synthetic images as they are stored, float32 [C*ipc, K, H, W], normalised; a leaf that requires
            gradient.
        group: class of each of them, on the CPU.
        terms: the terms in use, by name.
        source: draws the matching network.
        optimiser: moves the images.
        pool: pretrained networks, where a term or the source needs them.
        trained: the same, or the one network that has only chosen the initial images.
        choice_seconds: that choosing the initial images took.
        statistics: of the real images, where the run keeps them.
        augmentation: DSA operations, or ``none``.
        chunk: most images in one forward pass, 0 for all at once.
        mismatched: whether the run went on under other conditions than it was begun under.
        totals: the numbers of iterations at which a run that was continued was to end before.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, start: Start | None = None) -> None:
        """Checks that the settings fit the data and takes the initial images; the pool is made by `make_pool`.

        Where a network of the pool chooses the initial images, random ones stand in for them until then.

        Args:
            config: the settings.
            dataset: what is distilled.
            start: the set whose images are the initial ones, if ``syn.init`` names one.

        Raises:
            InputError: for settings that do not fit the data or are for another dataset, or an unknown method, network
                or augmentation.
        """
        if config.method not in METHODS:
            raise InputError(f"unknown method {config.method!r}{suggest(config.method, METHODS)}")
        check_dataset(config, dataset)
        configuration.check_weights_by_hand(config)
        self.config, self.real, self._dataset = config, dataset.train, dataset
        device = self.real.device
        method = METHODS[config.method]
        self.augmentation = resolve_augmentation(config.match.augmentation, dataset.spec.augmentation)
        if config.match.network.endswith("-bn"):
            raise InputError(
                f"match.network must look at each image by itself; {config.match.network!r} has batch norm, through "
                "which the classes of a batch would see each other"
            )
        terms = method.terms_in_use(config)
        if not terms:
            why = ", ".join(f"{name} ({reason})" for name, reason in method.left_out(config).items())
            why = why or "the method names no term"
            raise InputError(
                f"the objective of {config.method} is empty: {why}; give a term a weight, or take more images per class"
            )
        check_terms(config, terms)
        source = method.source_under(config)
        named = source if isinstance(source, str) else ""
        check_memory(config, dataset, terms, named, pool=any(term.needs_pool for term in terms.values()))
        first = first_images(config, self.real, start)
        self.group = first.labels.cpu()
        self.images = first.images.requires_grad_()
        self._labels, self._start = first.labels, start
        self.terms = terms
        self.source = method.make_source(config, dataset, device)
        if self.source.from_pool:  # one of the caller's own says so only now
            check_memory(config, dataset, terms, named, pool=True)
        # the first block's maps: convolved, normalised, pooled, and what a backward pass keeps of them
        image_bytes = 4 * 4 * config.match.width * dataset.spec.image_size**2
        self.chunk = config.compute.chunk or default_chunk(device, image_bytes)
        self.pool: Pool | None = None
        self.trained: Pool | None = None
        self.choice_seconds = 0.0
        self.statistics: CachedStatistics | None = None
        if config.match.statistics == "cached":
            self.statistics = CachedStatistics(config.match.cached_pairs, config.seed)
        self.optimiser = method.optimiser(self.images, config.syn, self.real.num_classes)
        self.mismatched = False
        self.totals: list[int] = []
        self._recorded: CapturedStep | None = None

    @property
    def _uses_pool(self) -> bool:
        """Whether the iterations need pretrained networks, beyond the choice of the initial images."""
        return self.source.from_pool or any(term.needs_pool for term in self.terms.values())

    @property
    def pool_settings(self) -> PoolConfig:
        """What `make_pool` trains: one network, at the end of its training, where it only chooses the initial images.

        A pool that was saved before must have the copies that it has.
        """
        pool = self.config.pool
        if self._uses_pool:
            return pool
        return attrs.evolve(pool, count=1, epochs_kept=pool.epochs_kept if pool.path else ())

    def make_pool(self, on_epoch: Callable[[int, int], None] | None = None, *, resumed: bool = False) -> None:
        """Loads the pretrained networks, or trains and keeps them, if the run needs them; and lets them do their part.

        Where a network of the pool chooses the initial images, they replace, in place, the random ones.

        Args:
            on_epoch: called with the network's number and the pass that is done.
            resumed: whether the images of a checkpoint are to be restored, so that none are chosen.
        """
        chooses = chosen_by_pool(self.config) and not resumed
        if not (self._uses_pool or chooses):
            return
        pool = trained_pool(self._dataset, self.pool_settings, compute=self.config.compute, on_epoch=on_epoch)
        self.trained = pool
        if self._uses_pool:
            self.pool = pool
            self.source.use_pool(pool)
        if chooses:
            config, network = self.config, choosing_network(pool, self.pool_settings)
            logger.info("choosing the initial images by a %s of the pool: %s", network.name, config.syn.init)
            begun = time.perf_counter()
            chosen = chosen_images(config.syn.init, self.real, network, config.ipc, config.syn.factor, seed=config.seed)
            with torch.no_grad():
                self.images.copy_(chosen.images)  # the tensor that the optimiser moves
            self.choice_seconds = time.perf_counter() - begun

    def record(self) -> None:
        """Records the step as a CUDA graph where the settings ask for it and it can be had."""
        if self.config.compute.graph == "auto":
            with precision(self.images.device, self.config.compute.precision):
                self._recorded = captured_step(self, self.terms, self.optimiser)

    def forward(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Applies a network's function to a batch, in chunks that fit the device."""
        with half_maps(images.device, self.config.compute.precision):
            out = in_chunks(function, images.contiguous(memory_format=torch.channels_last), self.chunk)
        return out.to(images.dtype)  # what is computed from the features is computed in full

    def batch(self, iteration: int) -> StepBatch:
        """What the terms may use at an iteration; nothing is drawn or computed before it is asked for."""
        return StepBatch(self, LazyDraws(self, iteration))

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        batch = self.batch(iteration)
        return {name: term.weight(self.config) * term.loss(batch).sum() for name, term in self.terms.items()}

    def step(self, iteration: int, *, log: bool = False) -> dict[str, float]:
        """One update of the images.

        Args:
            iteration: names the draws; the same iteration with the same images gives the same update.
            log: compute what is logged (waits for the device, and takes a backward pass more for each term).

        Returns:
            With `log`: ``loss``, ``loss_<term>`` (weighted) and ``grad_<term>`` (norm of its gradient on the images),
            and what the source of networks has to say.

        Raises:
            FloatingPointError: if a term is not finite (on a GPU seen with `log` only); the images are left as
                they were.
        """
        with precision(self.images.device, self.config.compute.precision):
            if self._recorded is not None and not log:
                self._recorded.step(iteration)
                self.advance(iteration)
                return {}
            parts = self.losses(iteration)
            row: dict[str, float] = {}
            if log or self.images.device.type == "cpu":  # elsewhere a look would wait for the device
                self._check(parts, iteration)
            if log:
                row = self._describe(parts) | self.source.facts()
            (gradient,) = torch.autograd.grad(torch.stack(list(parts.values())).sum(), self.images)
            self.optimiser.step(gradient)
            self.advance(iteration)
        return row

    def advance(self, iteration: int) -> None:
        """What follows an update of the images: the source of networks goes on to the next iteration."""
        self.source.advance(iteration)

    def _check(self, parts: Mapping[str, Tensor], iteration: int) -> None:
        """Stops where a term is not finite, before the images follow it."""
        for name, part in parts.items():
            if not bool(part.detach().isfinite()):
                at = f"at iteration {iteration}"
                if not bool(torch.isfinite(self.images).all()):
                    at = f"before iteration {iteration}, and so are the images"
                remedy = self._remedy(name)
                raise FloatingPointError(f"the term {name!r} is {float(part.detach())} {at}; {remedy}")

    def _remedy(self, name: str) -> str:
        """The setting that most likely made a term run away, from what else has: images, networks, or neither."""
        config = self.config
        exceeded = range_exceeded(self.images, self.real.spec)
        if self._queue_has_run_away():
            return f"networks of the queue have diverged: lower queue.lr (now {config.queue.lr:g})"
        seen = name == "cc" or self.source.from_pool  # where every term looks through networks of the pool
        if seen and self.pool and any(map(_has_run_away, self.pool.networks)):
            return f"networks of the pool have diverged: lower pool.lr (now {config.pool.lr:g})"
        if exceeded:
            return f"the images reach {exceeded[0]:.3g} where pictures reach {exceeded[1]:.3g}: {self.remedy()}"
        if name == "cc" and config.match.cc_form == "exp":
            return f"its exponent overflows: lower match.cc_alpha (now {config.match.cc_alpha:g})"
        return what_to_lower(config, self.terms, name)

    def remedy(self) -> str:
        """The setting that most likely made the images run away; they are looked at every so many iterations only."""
        if self._queue_has_run_away():
            return f"networks of the queue have diverged: lower queue.lr (now {self.config.queue.lr:g})"
        return what_to_lower(self.config, self.terms)

    def _queue_has_run_away(self) -> bool:
        return isinstance(self.source, NetworkQueue) and any(map(_has_run_away, self.source.networks))

    def warn_of_range(self) -> None:
        """Tells, with the likely cause, if the images lie orders of magnitude beyond any picture."""
        if exceeded := range_exceeded(self.images, self.real.spec):
            logger.warning(
                "the images reach %.3g where pictures reach %.3g, so that they say little of the classes: %s, then "
                "distil again", *exceeded, self.remedy(),
            )  # fmt: skip

    def _describe(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        values = {name: float(part.detach()) for name, part in parts.items()}
        norms = {
            f"grad_{name}": float(torch.autograd.grad(part, self.images, retain_graph=True)[0].norm())
            for name, part in parts.items()
        }
        return {"loss": sum(values.values())} | {f"loss_{name}": value for name, value in values.items()} | norms

    def synthetic(self, iteration: int) -> SyntheticSet:
        """A copy of the set as it is now, after `iteration` updates.

        Raises:
            FloatingPointError: if the images are not finite.
        """
        provenance = {
            "method": self.config.method,
            "dataset": self.config.dataset,
            "scale": self.config.scale,
            "seed": str(self.config.seed),
            "iterations": str(iteration),
            "config": configuration.fingerprint(self.config),
            "data": self.real.fingerprint,
            "pool": self.pool.fingerprint if self.pool else "",
            "version": __version__,
        }
        if own := configuration.differing(self.config):
            provenance["settings"] = " ".join(f"{key}={value}" for key, value in own.items())
        if self._start:
            source = self._start.source  # of a run that earlier versions began, no checkpoint knows it
            provenance["init"] = f"{self.config.syn.init} from {source}" if source else self.config.syn.init
        if self.totals:
            provenance["continued"] = f"iterations was {', then '.join(map(str, self.totals))}"
        if self.mismatched:
            provenance["environment_mismatch"] = "see environment.json"
        images, factor = self.optimiser.images_after_sweep(), self.config.syn.factor
        if not bool(torch.isfinite(images).all()):  # wrong input of a set, but here a failure of the run
            raise FloatingPointError(f"the images are not finite after {iteration} iterations; {self.remedy()}")
        return SyntheticSet(images, self._labels, self.real.spec, provenance, factor)

    @property
    def started_from(self) -> str | None:
        """Where the set was read from which the run started, for the record; None for another start."""
        return self._start.source if self._start else None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds; draws are functions of seed and iteration and need no history."""
        return self.optimiser.state() | self.source.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state from a checkpoint."""
        self.optimiser.restore(state)
        self.source.restore(state)

    def facts(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        facts = {"data": self.real.fingerprint, "pool": self.pool.fingerprint if self.pool else ""}
        return facts | ({"pool weights": self.pool.digest} if self.pool else {})
