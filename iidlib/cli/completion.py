"""Shell completion for names of methods, datasets, networks, scales and settings, without importing the library."""

from collections.abc import Callable, Iterable

from iidlib.config import SCALES, settings
from iidlib.config.recipes import BASELINES, BASES, PROTOCOLS
from iidlib.names import DATASET_NAMES, NETWORK_NAMES

__all__ = [
    "EXPERIMENTS", "complete_baseline", "complete_dataset", "complete_device",
    "complete_experiment", "complete_memory", "complete_method", "complete_network", "complete_networks",
    "complete_protocol", "complete_recipe", "complete_scale", "complete_setting",
]  # fmt: skip

# The names are repeated here because their table needs pandas, whose import would delay the shell.
EXPERIMENTS = ("main", "ablation", "architectures", "weights", "beta", "iterations", "plus", "plus-sizes",
               "headline", "tsne", "continual", "gpu", "gpu-embedded")  # fmt: skip

Completion = Callable[[str], list[str]]


def _one_of(choices: Iterable[str]) -> Completion:
    """Returns a completion that offers the given choices."""
    known = list(choices)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


complete_method = _one_of(BASES)
complete_baseline = _one_of(BASELINES)
complete_memory = _one_of([*BASES, *(name for name in BASELINES if name != "whole")])
complete_dataset = _one_of(DATASET_NAMES)
complete_network = _one_of(NETWORK_NAMES)
complete_recipe = _one_of([*BASES, *BASELINES])
complete_scale = _one_of(SCALES)
complete_protocol = _one_of(PROTOCOLS)
complete_device = _one_of(["auto", "cpu", "cuda", "mps"])
complete_experiment = _one_of(EXPERIMENTS)


def complete_networks(incomplete: str) -> list[str]:
    """Completes the last name of a comma-separated list of networks."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in complete_network(last) if name not in given]


def complete_setting(incomplete: str) -> list[str]:
    """Completes the key of ``--set KEY=VALUE``."""
    return [f"{key}=" for key in settings() if "." in key and key.startswith(incomplete)]
