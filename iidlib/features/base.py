"""The interface of a source of features, which draws the matching network of each iteration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from iidlib.engine import Fields, Packed
from iidlib.networks import Network

if TYPE_CHECKING:
    from iidlib.features.pool import Pool

__all__ = ["Drawn", "FixedNetwork", "NetworkSource"]


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

    def fixed(self) -> "FixedNetwork | None":
        """The source's networks at one address, for a recorded step; None if they cannot be brought there."""
        return FixedNetwork(self) if self.in_place else None

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


class FixedNetwork:
    """The matching networks of a source at one address, as a recorded step needs them.

    An iteration calls `load`, which may launch kernels; the recorded step calls `gather` at its beginning; and
    `advance` follows the update of the images. This class serves sources whose draws return the same network.

    Attributes:
        network: holds the weights of the iteration's network.
        accuracy: the network's accuracy, [].
        fields: tensors that `fill` draws for an iteration.
    """

    fields: Fields = {}  # noqa: RUF012, subclasses assign their own

    def __init__(self, source: NetworkSource) -> None:
        """Takes the network that all draws of the source return."""
        self._source = source
        self.network, _ = source.draw(0)
        self.accuracy = torch.zeros((), device=self.network.classifier.weight.device)

    def fill(self, iteration: int, draws: Packed) -> None:
        """Draws the values of `fields` on the CPU, as a function of the iteration alone; may run in another thread."""

    def load(self, iteration: int) -> None:
        """Prepares an iteration."""
        _, accuracy = self._source.draw(iteration)
        self.accuracy.fill_(accuracy)

    def gather(self, draws: Packed) -> None:
        """Brings the iteration's weights into `network`; recordable.

        Args:
            draws: the values of `fields`, on the device.
        """

    def record(self, draws: Packed) -> None:
        """Records what `advance` does, if that is worth a recording."""

    @property
    def recorded(self) -> bool:
        """Whether everything that is worth a recording is recorded."""
        return True

    def advance(self, iteration: int) -> None:
        """Advances the source, after an update of the images."""
        self._source.advance(iteration)
