"""The methods: each row names the terms of an objective, its source of features and its image optimiser.

The loop knows neither names nor weights: a new term is a new row of ``terms.TERMS``, a new method a new row of
``METHODS``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iidlib.config import RunConfig
from iidlib.config.recipes import FROM_POOL
from iidlib.config.uses import chosen_by_pool, has_pairs
from iidlib.data import Dataset
from iidlib.distillation.optimisers import ImageOptimiserFactory, class_sweep, joint
from iidlib.distillation.terms import TERMS, Term
from iidlib.errors import InputError, suggest
from iidlib.features import NetworkQueue, NetworkSource, RandomNetworks, StageNetworks
from iidlib.networks import Network, network_for

__all__ = ["METHODS", "SOURCES", "Method", "SourceFactory"]


SourceFactory = Callable[[RunConfig, Dataset, torch.device], NetworkSource]
"""Factory of a source of matching networks, from the settings, the dataset and the device of the run."""


def _random_networks(config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
    match = config.match
    return RandomNetworks(
        match.network,
        dataset.spec,
        width=match.width,
        seed=config.seed,
        device=device,
        compile=config.compute.compile,
    )


def _network_queue(config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
    match = config.match
    if match.statistics == "cached":
        raise InputError(
            "match.statistics=cached needs fixed networks, but those of the queue are in training; use "
            "match.statistics=fresh"
        )

    def build(generator: torch.Generator) -> Network:
        return network_for(
            match.network,
            dataset.spec,
            width=match.width,
            generator=generator,
            compile=config.compute.compile,
        )

    return NetworkQueue(
        build,
        dataset.train,
        config.queue,
        config.seed,
        iterations=config.iterations,
        saved=config.checkpoint.queue,
    )


def _stages(config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
    match, pool = config.match, config.pool
    for name, matching, pooled in (("network", match.network, pool.network), ("width", match.width, pool.width)):
        if matching != pooled and (name == "network" or match.network.startswith("convnet")):  # others have one width
            raise InputError(
                f"the matching networks are stages of the pool, so match.{name} ({matching}) must equal pool.{name} "
                f"({pooled}); set both, or use match.source=random"
            )
    return StageNetworks(pool, config.stages, dataset.train, iterations=config.iterations, seed=config.seed)


SOURCES: dict[str, SourceFactory] = {"random": _random_networks, "queue": _network_queue, "stages": _stages}
"""Sources of matching networks by name, see ``match.source``."""


@dataclass(frozen=True)
class Method:
    """A distillation method, a row of ``METHODS``."""

    terms: tuple[str, ...]
    """Names of ``TERMS``; the objective is their weighted sum."""
    source: str | SourceFactory = "random"
    """Source of the matching networks: a name of ``SOURCES``, or a factory. The setting ``match.source`` overrides it
    unless it is ``auto``."""
    optimiser: ImageOptimiserFactory = joint
    """Factory of the optimiser of the images."""

    def source_under(self, config: RunConfig) -> str | SourceFactory:
        """The source that the settings select: a name of ``SOURCES``, or a factory."""
        return self.source if config.match.source == "auto" else config.match.source

    def make_source(self, config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
        """The source of matching networks under given settings.

        Raises:
            InputError: for settings that the source does not support.
        """
        named = self.source_under(config)
        if isinstance(named, str) and named not in SOURCES:
            raise InputError(f"unknown source of matching networks {named!r}{suggest(named, SOURCES)}")
        source = (SOURCES[named] if isinstance(named, str) else named)(config, dataset, device)
        if config.match.statistics == "cached" and (spread := source.spread_by):
            raise InputError(
                f"match.statistics=cached cycles through the same networks, but {spread} spreads them over the run; "
                "omit that setting, or use match.statistics=fresh"
            )
        return source

    def needs_pool(self, config: RunConfig) -> bool:
        """Whether a run needs pretrained networks, for its iterations or for its initial images.

        A user-defined source has its own flag for drawing from the pool, which is not considered here.
        """
        used = any(term.needs_pool for term in self.terms_in_use(config).values())
        return used or self.source_under(config) in FROM_POOL or chosen_by_pool(config)

    def left_out(self, config: RunConfig) -> dict[str, str]:
        """Terms that are zero under given settings, and thus not computed, by name with the reason."""
        reasons = {}
        for name in self.terms:
            if name not in TERMS:
                raise InputError(f"unknown term {name!r}{suggest(name, TERMS)}")
        for name in self.terms:
            if not TERMS[name].weight(config):
                reasons[name] = "its weight is zero"
            elif TERMS[name].needs_pairs and not has_pairs(config):
                reasons[name] = "a class has only one image"
            elif TERMS[name].needs_trained and self.source_under(config) == "random":
                reasons[name] = "its weight is zero for random networks"
        return reasons

    def terms_in_use(self, config: RunConfig) -> dict[str, Term]:
        """Terms by name, without those that are left out."""
        return {name: TERMS[name] for name in self.terms if name not in self.left_out(config)}


METHODS: dict[str, Method] = {
    "dm": Method(("mean",)),
    "dm-cc": Method(("mean", "cc")),
    "dm-cm": Method(("mean", "cm")),
    "iid-dm": Method(("mean", "cm", "cc")),
    "idm": Method(("mean", "ce"), "queue", class_sweep),
    "idm-cc": Method(("mean", "ce", "cc"), "queue", class_sweep),
    "idm-cm": Method(("mean", "ce", "cm"), "queue", class_sweep),
    "iid-idm": Method(("mean", "ce", "cm", "cc"), "queue", class_sweep),
    "iid-plus": Method(("mean", "ce", "cm", "cc", "mmd"), "stages"),
}
"""Methods by name."""
