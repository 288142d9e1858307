"""How a set is evaluated: the settings of the networks that are trained on it."""

from typing import ClassVar, Literal

from attrs import evolve, field, frozen

from iidlib.config.recipes import PROTOCOLS
from iidlib.config.validators import above, at_least, at_most, each_once, one_of_its_choices
from iidlib.config.values import converted
from iidlib.names import network_names

__all__ = ["WHOLE_SET_EPOCHS", "Drop", "EvalProtocol"]


@frozen
class Drop:
    """A change of the learning rate in training."""

    before: int
    """Index (from 0) of the pass that is the first at the new rate."""
    lr: float
    """The new rate."""
    restart: bool = False
    """Whether the momentum starts from nothing."""


WHOLE_SET_EPOCHS = 60
"""Epochs of a network that is trained on the whole training set."""


@frozen(field_transformer=converted)
class EvalProtocol:
    """How a set is evaluated (``eval.*``): networks trained on it from scratch and tested on real images.

    The defaults are the paper's: 1001 epochs, SGD at 0.01 with momentum 0.9 and weight decay 5e-4, a new optimiser at a
    tenth of the rate after pass ``(epochs - 1) // 2 + 1``, DSA on every batch, the last pass counts.
    """

    _prefix: ClassVar[str] = "eval."

    networks: tuple[str, ...] = field(default=("convnet3",), converter=network_names, validator=each_once)
    """Architectures, each trained ``num_eval`` times."""
    width: int = field(default=128, validator=above(0))
    """Channels a layer where the network is a ConvNet."""
    num_eval: int = field(default=5, validator=above(0))
    """Networks of each architecture."""
    epochs: int = field(default=1001, validator=above(0))
    """Passes over the set (the official argument 1000 means 1001)."""
    lr: float = field(default=0.01, validator=above(0))
    """Learning rate before the drop."""
    batch: int = field(default=256, validator=above(0))
    """Images a step; the last, smaller batch of a pass is kept."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, of which one is drawn a batch; stages of such draws joined by ``>``; ``none``; or
    ``auto`` for the dataset's own."""
    cutmix: float = field(default=0.0, validator=[at_least(0), at_most(1, "a share of the batches")])
    """Share of the batches that are mixed by CutMix, see `iidlib.training.cutmix`."""
    schedule: Literal["restart", "milestones"] = field(default="restart", validator=one_of_its_choices)
    """How the learning rate falls: to a tenth half way **with a new optimiser**, whose momentum starts from nothing
    (DC, DM, IDM, IID); or by a factor of 0.2 after two thirds and after five sixths of the passes (the IDC family)."""

    @property
    def all_epochs(self) -> int:
        """Passes of all networks together."""
        return len(self.networks) * self.num_eval * self.epochs

    @property
    def drops(self) -> tuple[Drop, ...]:
        """Before which passes the learning rate changes."""
        if self.schedule == "restart":
            return (Drop((self.epochs - 1) // 2 + 2, self.lr / 10, restart=True),)
        first, second = 2 * self.epochs // 3, 5 * self.epochs // 6
        return (Drop(first, 0.2 * self.lr), Drop(second, 0.04 * self.lr))

    @property
    def name(self) -> str:
        """``dm``, ``idc``, or ``own`` for another combination of what the two differ in."""
        same = {
            name: all(getattr(self, key.removeprefix("eval.")) == value for key, value in changes.items())
            for name, changes in PROTOCOLS.items()
        }
        return next((name for name, is_this in same.items() if is_this), "own")

    def for_whole_set(self) -> "EvalProtocol":
        """The protocol for the whole training set: the same, with 60 epochs at most.

        1001 epochs over 50,000 images would cost more than everything else together; a row that uses this says so.
        """
        return evolve(self, epochs=min(WHOLE_SET_EPOCHS, self.epochs))
