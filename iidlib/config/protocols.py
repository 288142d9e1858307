"""Evaluation protocol of a set: the settings of the networks that are trained on it."""

from typing import ClassVar, Literal

from attrs import evolve, field, frozen

from iidlib.config.recipes import PROTOCOLS
from iidlib.config.validators import above, at_least, at_most, each_once, one_of_its_choices
from iidlib.config.values import converted
from iidlib.names import network_names

__all__ = ["WHOLE_SET_EPOCHS", "Drop", "EvalProtocol"]


@frozen
class Drop:
    """A change of the learning rate during training."""

    before: int
    """Index (from 0) of the first epoch at the new rate."""
    lr: float
    """New learning rate."""
    restart: bool = False
    """Whether the momentum buffer is reset to zero."""


WHOLE_SET_EPOCHS = 60
"""Epochs of a network trained on the whole training set."""


@frozen(field_transformer=converted)
class EvalProtocol:
    """Evaluation of a set (``eval.*``): networks trained on it from scratch and tested on real images.

    The defaults are the paper's: 1001 epochs, SGD at 0.01 with momentum 0.9 and weight decay 5e-4, a new optimiser at a
    tenth of the rate after epoch ``(epochs - 1) // 2 + 1``, DSA on every batch, accuracy after the last epoch.
    """

    _prefix: ClassVar[str] = "eval."

    networks: tuple[str, ...] = field(default=("convnet3",), converter=network_names, validator=each_once)
    """Architectures, each trained ``num_eval`` times."""
    width: int = field(default=128, validator=above(0))
    """Channels per layer if the network is a ConvNet."""
    num_eval: int = field(default=5, validator=above(0))
    """Networks of each architecture."""
    epochs: int = field(default=1001, validator=above(0))
    """Training epochs (the official argument 1000 means 1001)."""
    lr: float = field(default=0.01, validator=above(0))
    """Learning rate before the first drop."""
    batch: int = field(default=256, validator=above(0))
    """Images per step; the last, smaller batch of an epoch is kept."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, one of which is drawn per batch; several such stages joined by ``>``; ``none``;
    or ``auto`` for the dataset's default."""
    cutmix: float = field(default=0.0, validator=[at_least(0), at_most(1, "a share of the batches")])
    """Share of the batches that CutMix mixes, see `iidlib.training.cutmix`."""
    schedule: Literal["restart", "milestones"] = field(default="restart", validator=one_of_its_choices)
    """Learning rate schedule: a drop to a tenth halfway **with a new optimiser**, whose momentum starts at zero (DC,
    DM, IDM, IID); or a factor of 0.2 after two thirds and again after five sixths of the epochs (the IDC family)."""

    @property
    def all_epochs(self) -> int:
        """Total epochs of all networks."""
        return len(self.networks) * self.num_eval * self.epochs

    @property
    def drops(self) -> tuple[Drop, ...]:
        """Changes of the learning rate, in order."""
        if self.schedule == "restart":
            return (Drop((self.epochs - 1) // 2 + 2, self.lr / 10, restart=True),)
        first, second = 2 * self.epochs // 3, 5 * self.epochs // 6
        return (Drop(first, 0.2 * self.lr), Drop(second, 0.04 * self.lr))

    @property
    def name(self) -> str:
        """``dm``, ``idc``, or ``own`` for any other combination of the settings in which the two differ."""
        same = {
            name: all(getattr(self, key.removeprefix("eval.")) == value for key, value in changes.items())
            for name, changes in PROTOCOLS.items()
        }
        return next((name for name, is_this in same.items() if is_this), "own")

    def for_whole_set(self) -> "EvalProtocol":
        """Returns the protocol for the whole training set: the same, with at most 60 epochs.

        1001 epochs over 50,000 images would cost more than everything else together; rows that use this say so.
        """
        return evolve(self, epochs=min(WHOLE_SET_EPOCHS, self.epochs))
