"""DM's feature source: a network with new random weights at every iteration."""

import torch

from iidlib.data import DatasetSpec
from iidlib.features.base import Drawn, NetworkSource
from iidlib.networks import draw_parameters_, frozen, network_for
from iidlib.rng import stream

__all__ = ["RandomNetworks"]


class RandomNetworks(NetworkSource):
    """Draws a network with new random weights at every iteration.

    One network is built; its weights are redrawn in place, on its device, as a function of seed and iteration.
    """

    in_place = True

    def __init__(
        self, name: str, spec: DatasetSpec, *, width: int, seed: int, device: torch.device, compile: str = "auto"
    ) -> None:
        # only to leave the global random state alone; the weights it draws are never used
        generator = stream(seed, 0, "network", device)
        network = network_for(name, spec, width=width, generator=generator, compile=compile)
        self._network = frozen(network)
        self._seed, self._device = seed, device

    def draw(self, iteration: int) -> Drawn:
        """The iteration's network, which overwrites the previous one; its accuracy is 0."""
        draw_parameters_(self._network, stream(self._seed, iteration, "network", self._device))
        return Drawn(self._network, 0.0)
