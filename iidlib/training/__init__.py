"""Networks trained on labelled images; ``ensemble`` is the same for many at once and may be skipped."""

from iidlib.training.ensemble import fit_together
from iidlib.training.loop import Examples, Training, accuracy, augmentation_stages, fit, resolve_augmentation

__all__ = ["Examples", "Training", "accuracy", "augmentation_stages", "fit", "fit_together", "resolve_augmentation"]
