"""The methods: rows that name the terms of an objective, its source of features and its images' optimiser.

The loop knows neither names nor weights; a new term joins by a row of ``terms.TERMS``, a new method by a row of
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
"""Makes a source of matching networks from the settings, the dataset and the device of the run."""


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
            "match.statistics=cached keeps what fixed networks see; those of the queue are in training; leave "
            "it at fresh"
        )

    def build(generator: torch.Generator) -> Network:
        return network_for(
            match.network,
            dataset.spec,
            width=match.width,
            generator=generator,
            compile=config.compute.compile,
        )

    return NetworkQueue(build, dataset.train, config.queue, config.seed)


def _stages(config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
    match, pool = config.match, config.pool
    for name, own, theirs in (("network", match.network, pool.network), ("width", match.width, pool.width)):
        if own != theirs and (name == "network" or match.network.startswith("convnet")):  # others have one width
            raise InputError(
                f"the matching networks are stages of the pool, so that match.{name} ({own}) must be pool.{name} "
                f"({theirs}); set both, or take match.source=random"
            )
    return StageNetworks(pool, config.stages, dataset.train, iterations=config.iterations, seed=config.seed)


SOURCES: dict[str, SourceFactory] = {"random": _random_networks, "queue": _network_queue, "stages": _stages}
"""Sources of matching networks by name, see ``match.source``."""


@dataclass(frozen=True)
class Method:
    """A row of the table of methods."""

    terms: tuple[str, ...]
    """Names out of ``TERMS``; the objective is their weighted sum."""
    source: str | SourceFactory = "random"
    """What draws the matching network of an iteration: a name out of ``SOURCES``, or what makes a source. The setting
    ``match.source`` takes its place where it is not ``auto``."""
    optimiser: ImageOptimiserFactory = joint
    """Makes what moves the images along the gradient."""

    def source_under(self, config: RunConfig) -> str | SourceFactory:
        """The source that given settings choose: a name out of ``SOURCES``, or what makes a source."""
        return self.source if config.match.source == "auto" else config.match.source

    def make_source(self, config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
        """What draws the matching networks under given settings.

        Raises:
            InputError: for settings that the source cannot serve.
        """
        named = self.source_under(config)
        if isinstance(named, str) and named not in SOURCES:
            raise InputError(f"unknown source of matching networks {named!r}{suggest(named, SOURCES)}")
        source = (SOURCES[named] if isinstance(named, str) else named)(config, dataset, device)
        if config.match.statistics == "cached" and (spread := source.spread_by):
            raise InputError(
                f"match.statistics=cached goes through its networks again and again, which {spread} does not allow, as "
                "it spreads them over the run; leave that out, or leave match.statistics at fresh"
            )
        return source

    def needs_pool(self, config: RunConfig) -> bool:
        """Whether a run trains pretrained networks, for its iterations or for its initial images.

        A source of the caller's own says by itself whether it draws from the pool, which is not asked here.
        """
        used = any(term.needs_pool for term in self.terms_in_use(config).values())
        return used or self.source_under(config) in FROM_POOL or chosen_by_pool(config)

    def left_out(self, config: RunConfig) -> dict[str, str]:
        """The terms that are zero under given settings, by name, with the reason; they are not computed."""
        reasons = {}
        for name in self.terms:
            if name not in TERMS:
                raise InputError(f"unknown term {name!r}{suggest(name, TERMS)}")
        for name in self.terms:
            if not TERMS[name].weight(config):
                reasons[name] = "its weight is zero"
            elif TERMS[name].needs_pairs and not has_pairs(config):
                reasons[name] = "a class has one image only"
            elif TERMS[name].needs_trained and self.source_under(config) == "random":
                reasons[name] = "random networks give it no weight"
        return reasons

    def terms_in_use(self, config: RunConfig) -> dict[str, Term]:
        """The terms by name, without those that are left out."""
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
"""The methods by name."""
