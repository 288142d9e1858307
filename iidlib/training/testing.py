"""Test of an ensemble: accuracies of several networks on the same images, as a recording that is replayed per batch.

On a CPU, and in a process that cannot record, every network is tested alone by `training.reached`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from iidlib.data import RealSet
from iidlib.engine import can_record, recorded
from iidlib.networks import Network
from iidlib.training.loop import Reached, reached
from iidlib.training.outcome import RUN_AWAY, outcome_of

__all__ = ["reached_together"]

BATCH = 500
"""Images per replay; enough to keep a large device busy with one network."""

TOLERANCE = 1e-2
"""Largest relative difference (in norm) of recorded outputs from plain ones."""


def reached_together(networks: Sequence[Network], real: RealSet) -> list[Reached]:
    """Accuracy and outcome of every network as in `training.reached`, up to rounding; all are put in evaluation mode.

    Where steps can be recorded, nothing waits for the device before all networks are tested.

    Args:
        networks: networks with equal numbers of outputs, on the images' device.
        real: the images to classify, at least one.
    """
    if not can_record(real.device):
        return [reached(network, real) for network in networks]
    return _Test(networks, real).run()


class _Test:
    """A test of K networks on N images in batches of b, on fixed buffers."""

    def __init__(self, networks: Sequence[Network], real: RealSet) -> None:
        self._networks, self._real, device = [network.eval() for network in networks], real, real.device
        self._size = min(BATCH, len(real))
        self._batches = -(-len(real) // self._size)
        count, classes = len(networks), real.num_classes
        dtype = next(networks[0].parameters()).dtype
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # of the current batch
        self._hits = torch.zeros(count, dtype=torch.int64, device=device)  # [K]
        self._low = torch.full((count, classes), torch.inf, dtype=dtype, device=device)  # [K, C]
        self._high = torch.full((count, classes), -torch.inf, dtype=dtype, device=device)  # [K, C]
        # outputs by which a recording is verified
        self._compared = torch.zeros(count, self._size, classes, dtype=dtype, device=device)  # [K, b, C]

    def run(self) -> list[Reached]:
        """Tests the networks; the only wait for the device is at the end."""
        state = [self._number, self._hits, self._low, self._high]
        recording = recorded(self.step, [self._compared], state=state, tolerance=TOLERANCE, what="testing")
        for _ in range(self._batches):
            if recording is not None:
                recording.replay()
            else:
                self.step()
        # one copy from the device; float64 holds the counts and the outputs exactly
        found = torch.cat([self._hits[:, None].double(), self._low.double(), self._high.double()], 1).cpu()
        results, images = [], len(self._real)
        for hits, low, high in zip(*found.split([1, self._low.shape[1], self._high.shape[1]], dim=1), strict=True):
            outcome = outcome_of(low.to(self._low.dtype), high.to(self._high.dtype), images)
            results.append(Reached(100 * int(hits) / images, outcome))
        return results

    @torch.no_grad()
    def step(self) -> None:
        """Tests all networks on the next batch; a fixed sequence of kernels."""
        index = self._number * self._size + torch.arange(self._size, device=self._real.device)  # [b]
        inside = index < len(self._real)  # [b], the last batch may reach beyond the images
        index = index.clamp(max=len(self._real) - 1)  # the last image again: changes neither hits nor ranges
        images = self._real.images_of(index).contiguous(memory_format=torch.channels_last)  # [b, K, H, H]
        labels = self._real.labels[index]  # [b]
        logits: Tensor = torch.stack([network(images) for network in self._networks])  # [K, b, C]
        self._hits.add_(((logits.argmax(2) == labels) & inside).sum(1))
        # a NaN propagates into both
        self._low.copy_(torch.minimum(self._low, logits.amin(1)))
        self._high.copy_(torch.maximum(self._high, logits.amax(1)))
        # on one scale, so that outputs of a network that has diverged do not hide differences of the others
        bounded = torch.where(logits.abs() < RUN_AWAY, logits, 0)
        scale = bounded.abs().amax((1, 2), keepdim=True)  # [K, 1, 1]
        self._compared.copy_(torch.where(scale > 0, bounded / scale, 1))
        self._number.add_(1).remainder_(self._batches)
