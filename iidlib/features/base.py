"""What every source of features has in common: it draws the matching network of an iteration."""

from collections.abc import Mapping

from torch import Tensor

from iidlib.networks import Network

__all__ = ["NetworkSource"]


class NetworkSource:
    """What draws the matching network of each iteration; one without a history is all in its `draw`."""

    def draw(self, iteration: int) -> Network:
        """The iteration's network, frozen; the same if it is asked for again before `advance`."""
        raise NotImplementedError

    @property
    def accuracy(self) -> Tensor | float:
        """Of the network drawn last, on what it was trained on, in percent; 0 for one that is not trained."""
        return 0.0

    def advance(self, iteration: int) -> None:
        """Called once an iteration, after the update of the images."""

    def facts(self) -> dict[str, float]:
        """What is logged beside the losses."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the iterations that follow."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave."""
