"""The interface of a source of features, which draws the matching network of each iteration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from iidlib.networks import Network

if TYPE_CHECKING:
    from iidlib.features.pool import Pool

__all__ = ["Drawn", "NetworkSource"]


class Drawn(NamedTuple):
    """A matching network and its accuracy."""

    network: Network
    """Matching network, frozen."""
    accuracy: Tensor | float
    """Accuracy of the network on the images that it was trained on, in percent; 0 for an untrained network."""


class NetworkSource:
    """A source of matching networks, one per iteration. A stateless source only needs to implement `draw`."""

    in_place: ClassVar[bool] = False
    """Whether every draw returns the same network object with new weights, as a recorded step requires."""
    from_pool: ClassVar[bool] = False
    """Whether the source draws from the pool of pretrained networks, which is then passed to `use_pool`; class
    centralization then uses the same networks."""

    @property
    def spread_by(self) -> str:
        """Setting that spreads the draws over all iterations of a run, which then cannot be extended; else empty."""
        return ""

    def use_pool(self, pool: "Pool") -> None:
        """Receives the pool before the first draw, if the source is `from_pool`."""

    def draw(self, iteration: int) -> Drawn:
        """The iteration's network and its accuracy; repeated calls before `advance` return the same."""
        raise NotImplementedError

    def advance(self, iteration: int) -> None:
        """Called once per iteration, after the update of the images."""

    def facts(self) -> dict[str, float]:
        """Values that are logged with the losses."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """State that a checkpoint must hold to resume."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned."""
