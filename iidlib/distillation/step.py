"""One step of a distillation: the objective at an iteration, its gradient on the images, and their update.

All classes share one batched forward pass. The networks normalise each image by itself, so the result equals that of
the official code, which loops over classes.
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
from iidlib.distillation.divergence import check_finite, remedy
from iidlib.distillation.draws import LazyDraws
from iidlib.distillation.gradient import Logged, class_groups, objective_gradient
from iidlib.distillation.memory import check_memory, default_classes
from iidlib.distillation.methods import METHODS
from iidlib.distillation.start import Start, first_images
from iidlib.distillation.terms import check_terms
from iidlib.engine import default_chunk, deterministic, half_maps, in_chunks, precision
from iidlib.errors import InputError, suggest
from iidlib.features import CachedStatistics, Pool, choosing_network, chosen_images, trained_pool
from iidlib.names import same_dataset
from iidlib.ranks import current
from iidlib.synthetic import SyntheticSet
from iidlib.training import resolve_augmentation

__all__ = ["Distillation", "check_dataset"]

logger = logging.getLogger("iidlib")


def check_dataset(config: RunConfig, dataset: Dataset) -> None:
    """Refuses settings for another dataset, because a set and its result rows would name that one as their origin.

    Raises:
        InputError: if the settings name another dataset.
    """
    if not same_dataset(config.dataset, dataset.name):
        raise InputError(
            f"the settings are for dataset {config.dataset!r}, but the dataset given is {dataset.name!r}, and the set "
            "would claim to be made from the former; use settings for the latter: preset(..., dataset=dataset.name)"
        )


class Distillation:
    """The state of a run: the images being learned, their optimiser and the sources of features.

    Attributes:
        config: the settings.
        real: the training images.
        images: the synthetic images as they are stored, float32 [C*ipc, K, H, W], normalised; a leaf that requires
            gradient.
        group: classes of the images, on the CPU, [C*ipc].
        terms: the terms in use, by name.
        source: source of the matching networks.
        optimiser: optimiser of the images.
        pool: pretrained networks, if a term or the source needs them.
        trained: the pool, or a pool of the one network that was only needed to choose the initial images.
        choice_seconds: time spent on choosing the initial images.
        statistics: cached statistics of the real images, if the run uses them.
        augmentation: DSA operations, or ``none``.
        chunk: maximum number of images in one forward pass, 0 for no limit.
        ranks: the processes that share the computation.
        classes: the classes that this process computes; all without torchrun.
        groups: groups of them whose gradients are computed one after the other.
        mismatched: whether the run was resumed under other conditions than it was started under.
        recorded_before: whether the iterations before the checkpoint that the run resumed from were recorded; None if
            unknown, or without one.
        totals: previous total numbers of iterations of a run that was continued.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, start: Start | None = None) -> None:
        """Checks that the settings fit the data and creates the initial images; `make_pool` provides the pool.

        If a network of the pool chooses the initial images, random ones take their place until then.

        Args:
            config: the settings.
            dataset: the dataset to distil.
            start: the set to start from, if ``syn.init`` identifies one.

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
                f"match.network must process each image by itself; {config.match.network!r} has batch norm, which "
                "mixes the classes of a batch"
            )
        terms = method.terms_in_use(config)
        if not terms:
            why = ", ".join(f"{name} ({reason})" for name, reason in method.left_out(config).items())
            why = why or "the method has no terms"
            raise InputError(
                f"the objective of {config.method} is empty: {why}; give a term a weight, or use more images per class"
            )
        check_terms(config, terms)
        source = method.source_under(config)
        named = source if isinstance(source, str) else ""
        self.ranks, classes = current(), self.real.num_classes
        if self.ranks.size > classes:
            raise InputError(f"{self.ranks.size} processes cannot share {classes} classes; start at most {classes}")
        self.classes = self.ranks.share(classes)
        needs_pool = any(term.needs_pool for term in terms.values())
        check_memory(config, dataset, terms, named, pool=needs_pool, classes=self.classes)
        first = first_images(config, self.real, start)
        self.group = first.labels.cpu()
        self.images = first.images.requires_grad_()
        self._labels, self._start = first.labels, start
        self.terms = terms
        self.source = method.make_source(config, dataset, device)
        if self.source.from_pool:  # a user-defined source is only known now
            check_memory(config, dataset, terms, named, pool=True, classes=self.classes)
        # the maps of the first block: after convolution, norm and pooling, and what the backward pass keeps
        image_bytes = 4 * 4 * config.match.width * dataset.spec.image_size**2
        self.chunk = config.compute.chunk or default_chunk(device, image_bytes)
        self.pool: Pool | None = None
        self.trained: Pool | None = None
        self.choice_seconds = 0.0
        self.statistics: CachedStatistics | None = None
        if config.match.statistics == "cached":
            self.statistics = CachedStatistics(config.match.cached_pairs, config.seed)
        self.groups = class_groups(self.classes, config.compute.classes or default_classes(config, dataset, terms))
        self.optimiser = method.optimiser(self.images, config.syn, classes)
        if len(self.classes) < classes:
            self.optimiser.restrict(self.classes, classes)
        self.mismatched = False
        self.totals: list[int] = []
        self.recorded_before: bool | None = None
        self._recorded: CapturedStep | None = None

    @property
    def _uses_pool(self) -> bool:
        """Whether the iterations need pretrained networks, beyond the choice of the initial images."""
        return self.source.from_pool or any(term.needs_pool for term in self.terms.values())

    @property
    def pool_settings(self) -> PoolConfig:
        """Settings of the pool for `make_pool`, of one fully trained network if it only chooses the initial images.

        For a pool with a path, the saved copies must still match the settings.
        """
        pool = self.config.pool
        if self._uses_pool:
            return pool
        return attrs.evolve(pool, count=1, epochs_kept=pool.epochs_kept if pool.path else ())

    def make_pool(self, on_epoch: Callable[[int, int], None] | None = None, *, resumed: bool = False) -> None:
        """Loads or trains the pretrained networks if the run needs them, and chooses the initial images if they must.

        The chosen images replace the random ones in place.

        Args:
            on_epoch: called with the network's number and the epoch that was completed.
            resumed: whether images will be restored from a checkpoint, so none need to be chosen.
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
            logger.info("choosing the initial images with a %s of the pool: %s", network.name, config.syn.init)
            started = time.perf_counter()
            ipc, factor, seed = config.ipc, config.syn.factor, config.seed
            chosen = chosen_images(config.syn.init, self.real, network, ipc, factor, seed=seed, compute=config.compute)
            with torch.no_grad():
                self.images.copy_(chosen.images)  # in place: the optimiser holds this tensor
            self.choice_seconds = time.perf_counter() - started

    def record(self, iteration: int = 0) -> None:
        """Records the step as a CUDA graph if the settings ask for it and the device supports it.

        Args:
            iteration: the next iteration.
        """
        self.close()
        if self.config.compute.graph == "auto":
            self._recorded = captured_step(self, self.terms, self.optimiser, iteration)

    @property
    def recorded(self) -> bool:
        """Whether iterations are recorded as CUDA graphs, the training of a queue's networks included."""
        return self._recorded is not None and self._recorded.recorded

    def close(self) -> None:
        """Frees the recorded step; further steps run without it."""
        if self._recorded is not None:
            self._recorded.close()
            self._recorded = None

    def forward(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Applies a network's function to a batch, in chunks that fit the device."""
        with half_maps(images.device, self.config.compute.precision):
            out = in_chunks(function, images.contiguous(memory_format=torch.channels_last), self.chunk)
        return out.to(images.dtype)  # terms are computed in full precision

    def batch(self, iteration: int) -> StepBatch:
        """Inputs of the terms at an iteration, drawn and computed on demand."""
        return StepBatch(self, LazyDraws(self, iteration))

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """Weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        batch = self.batch(iteration)
        return {name: term.weight(self.config) * term.loss(batch).sum() for name, term in self.terms.items()}

    def step(self, iteration: int, *, log: bool = False) -> dict[str, float]:
        """Updates the images once.

        Args:
            iteration: determines the draws; the same iteration with the same images gives the same update.
            log: compute logged values, which synchronises with the device and needs one more backward pass per term.

        Returns:
            With `log`: ``loss``, ``loss_<term>`` (weighted), ``grad_<term>`` (norm of the term's gradient on the
            images), and the facts of the source of networks.

        Raises:
            FloatingPointError: if a term is not finite (on a GPU detected only with `log`); the images are unchanged.
        """
        device = self.images.device
        with precision(device, self.config.compute.precision), deterministic(device):
            row: dict[str, float] = {}
            if self._recorded is not None:
                logged = self._recorded.step(iteration, log=log)
                if logged is not None:
                    logged = self._of_all(logged)
                    check_finite(self, logged.values, iteration)
                    row = self._describe(logged)
            else:
                gradient, logged = objective_gradient(
                    self, LazyDraws(self, iteration), self.terms, self.groups, norms=log
                )
                if log or self.images.device.type == "cpu":  # elsewhere this would synchronise with the device
                    logged = self._of_all(logged)  # so that all ranks fail together
                    check_finite(self, logged.values, iteration)
                if log:
                    row = self._describe(logged)
                self.optimiser.step(gradient)
            self.advance(iteration)
        return row

    def advance(self, iteration: int) -> None:
        """Advances the source of networks, after an update of the images."""
        (self._recorded or self.source).advance(iteration)

    def _of_all(self, logged: Logged) -> Logged:
        """What is logged of all classes, from what is logged of those of this process."""
        if self.ranks.size == 1:
            return logged
        terms = list(logged.values)
        values = self.ranks.total(torch.stack([*logged.values.values()]).cpu())
        together = dict(zip(terms, values, strict=True))
        if not logged.norms:
            return Logged(together, {})
        squares = self.ranks.total(torch.stack([*logged.norms.values()]).cpu().square())
        return Logged(together, dict(zip(terms, squares.sqrt(), strict=True)))

    def _joined(self, own: Tensor) -> Tensor:
        """Images, or what there is of each, of all classes, from those of the classes of this process."""
        ranks, classes = self.ranks, self.real.num_classes
        return ranks.joined(own, [self.config.ipc * len(ranks.share(classes, rank)) for rank in range(ranks.size)])

    @torch.no_grad()
    def _set_images(self, images: Tensor) -> None:
        """Sets the images of all classes, of which this process updates some."""
        if self.ranks.size > 1:
            self.images.copy_(images)

    def _describe(self, logged: Logged) -> dict[str, float]:
        values = {name: float(value) for name, value in logged.values.items()}
        norms = {f"grad_{name}": float(norm) for name, norm in logged.norms.items()}
        losses = {"loss": sum(values.values())} | {f"loss_{name}": value for name, value in values.items()}
        return losses | norms | self.source.facts()

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
            source = self._start.source  # empty for runs of earlier versions, whose checkpoints lack it
            provenance["init"] = f"{self.config.syn.init} from {source}" if source else self.config.syn.init
        if self.totals:
            provenance["continued"] = f"iterations was {', then '.join(map(str, self.totals))}"
        if self.mismatched:
            provenance["environment_mismatch"] = "see environment.json"
        images, factor = self._joined(self.optimiser.images_after_sweep()), self.config.syn.factor
        if not bool(torch.isfinite(images).all()):  # SyntheticSet would report wrong input, but the run has failed
            raise FloatingPointError(f"the images are not finite after {iteration} iterations; {remedy(self)}")
        return SyntheticSet(images, self._labels, self.real.spec, provenance, factor)

    @property
    def started_from(self) -> str | None:
        """Source of the set that the run started from, for its provenance; None if it did not start from a set."""
        return self._start.source if self._start else None

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint; draws are functions of seed and iteration and have no state."""
        own = {name: self._joined(tensor) for name, tensor in self.optimiser.state().items()}
        self._set_images(own["images"])
        return own | self.source.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state from a checkpoint."""
        self._set_images(state["images"])
        rows = slice(self.classes.start * self.config.ipc, self.classes.stop * self.config.ipc)
        own = {name: state[name][rows] for name in ("images", "momentum") if name in state}
        self.optimiser.restore(own)
        self.source.restore(state)

    def facts(self) -> dict[str, Any]:
        """Facts that must be the same when a run is resumed."""
        facts = {"data": self.real.fingerprint, "pool": self.pool.fingerprint if self.pool else ""}
        return facts | ({"pool weights": self.pool.digest} if self.pool else {})
