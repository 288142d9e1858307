"""The methods: rows that name the terms of an objective, its source of features and its images' optimiser.

The loop knows neither names nor weights; a new term joins by a row of ``terms.TERMS``, a new method by a row of
``METHODS``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iidlib.config import RunConfig
from iidlib.config.recipes import BASES, Base
from iidlib.data import Dataset
from iidlib.distillation.optimisers import ImageOptimiserFactory, class_sweep, joint
from iidlib.distillation.terms import TERMS, Term
from iidlib.errors import InputError
from iidlib.features import NetworkQueue, NetworkSource, RandomNetworks
from iidlib.networks import Network, network_for

__all__ = ["METHODS", "Method"]


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
            f"match.statistics=cached keeps what fixed networks see; those of {config.method} are in training, "
            "leave it at fresh"
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


@dataclass(frozen=True)
class Method:
    """A row of the table of methods."""

    terms: tuple[str, ...]
    """Names out of ``TERMS``; the objective is their weighted sum."""
    source: Callable[[RunConfig, Dataset, torch.device], NetworkSource] = _random_networks
    """Makes what draws the matching network of an iteration."""
    optimiser: ImageOptimiserFactory = joint
    """Makes what moves the images along the gradient."""
    base: Base = "dm"
    """What it builds on, as `recipes.BASES` says, by which `config.preset` chooses a method's usual settings."""

    def left_out(self, config: RunConfig) -> dict[str, str]:
        """The terms that are zero under given settings, by name, with the reason; they are not computed."""
        pairs = config.ipc * config.syn.factor**2 > 1
        reasons = {}
        for name in self.terms:
            if not TERMS[name].weight(config):
                reasons[name] = "its weight is zero"
            elif TERMS[name].needs_pairs and not pairs:
                reasons[name] = "a class has one image only"
        return reasons

    def terms_in_use(self, config: RunConfig) -> dict[str, Term]:
        """The terms by name, without those that are left out."""
        return {name: TERMS[name] for name in self.terms if name not in self.left_out(config)}


METHODS: dict[str, Method] = {
    "dm": Method(("mean",), base=BASES["dm"]),
    "dm-cc": Method(("mean", "cc"), base=BASES["dm-cc"]),
    "dm-cm": Method(("mean", "cm"), base=BASES["dm-cm"]),
    "iid-dm": Method(("mean", "cm", "cc"), base=BASES["iid-dm"]),
    "idm": Method(("mean", "ce"), _network_queue, class_sweep, base=BASES["idm"]),
    "idm-cc": Method(("mean", "ce", "cc"), _network_queue, class_sweep, base=BASES["idm-cc"]),
    "idm-cm": Method(("mean", "ce", "cm"), _network_queue, class_sweep, base=BASES["idm-cm"]),
    "iid-idm": Method(("mean", "ce", "cm", "cc"), _network_queue, class_sweep, base=BASES["iid-idm"]),
}
"""The methods by name."""
