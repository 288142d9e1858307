"""What every source of features has in common: it draws the matching network of an iteration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from iidlib.networks import Network

if TYPE_CHECKING:
    from iidlib.features.pool import Pool

__all__ = ["Drawn", "NetworkSource"]


class Drawn(NamedTuple):
    """A matching network and what is known of it."""

    network: Network
    """The network, frozen."""
    accuracy: Tensor | float
    """Its accuracy on the images that it was trained on, in percent; 0 for a network that is not trained."""


class NetworkSource:
    """What draws the matching network of each iteration; one without a history is all in its `draw`."""

    in_place: ClassVar[bool] = False
    """Whether every draw gives one and the same network with other weights, as a recorded step needs it."""
    from_pool: ClassVar[bool] = False
    """Whether it draws from the pool of pretrained networks, which is then given to `use_pool`; its networks serve
    class centralization too."""

    @property
    def spread_by(self) -> str:
        """The setting that spreads the draws over all iterations of a run, which then cannot be continued; or empty."""
        return ""

    def use_pool(self, pool: "Pool") -> None:
        """Takes the pool, before the first draw, where the source is `from_pool`."""

    def draw(self, iteration: int) -> Drawn:
        """The iteration's network and its accuracy; the same if they are asked for again before `advance`."""
        raise NotImplementedError

    def advance(self, iteration: int) -> None:
        """Called once an iteration, after the update of the images."""

    def facts(self) -> dict[str, float]:
        """What is logged beside the losses."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the iterations that follow."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""
