"""Training of networks on labelled images. ``ensemble`` does it for many at once and may be skipped at first."""

from iidlib.training.ensemble import fit_together
from iidlib.training.loop import (
    Examples, Reached, Training, accuracy, augmentation_stages, fit, reached, resolve_augmentation,
)  # fmt: skip
from iidlib.training.outcome import Outcome, range_exceeded
from iidlib.training.testing import reached_together
from iidlib.training.together import HowTrained, networks_together

__all__ = [
    "Examples", "HowTrained", "Outcome", "Reached", "Training", "accuracy", "augmentation_stages", "fit",
    "fit_together", "networks_together", "range_exceeded", "reached", "reached_together", "resolve_augmentation",
]  # fmt: skip
