"""IDM's queue in fixed slots: the matching network gathered from its slot, and training as one recorded region.

A network of the queue is a Python object with weights in a row of one tensor, so which network an iteration uses is the
number of a row, which a CUDA graph can read from a buffer. The training of an iteration (several steps of several
networks) gathers the rows of its networks, updates them, and writes them back. Both do what `NetworkQueue.draw` and
`NetworkQueue.advance` do, with the same draws.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from iidlib.config import QueueConfig
from iidlib.data import RealSet
from iidlib.engine import Packed, Recording, recorded
from iidlib.features.base import FixedNetwork
from iidlib.features.slots import Layout
from iidlib.networks import Network
from iidlib.training.loop import MOMENTUM, UPDATE_TOLERANCE, WEIGHT_DECAY

__all__ = ["FixedQueue", "Queue", "Slots"]


class Slots(NamedTuple):
    """The networks of a queue as tensors at fixed addresses; member number n is in row n modulo S."""

    layout: Layout
    """Positions of the parameters in a row."""
    weights: Tensor
    """Weights, [S, P]."""
    momenta: Tensor
    """Momenta, [S, P]."""
    meters: Tensor
    """Correct predictions and images since the last reset, int64 [S, 2]."""


class Queue(Protocol):
    """What this module uses of a queue; `network_queue.NetworkQueue` is one."""

    real: RealSet
    settings: QueueConfig

    @property
    def slots(self) -> Slots:
        """The tensors of all networks."""
        ...

    def built(self, number: int) -> Network:
        """A new network with the initial weights of a number, frozen."""
        ...

    def add_due(self, iteration: int) -> None:
        """Adds the networks that are due at an iteration."""
        ...

    def choice(self, iteration: int) -> int:
        """Number of the matching network of an iteration."""
        ...

    def own(self, iteration: int) -> list[int]:
        """Numbers of the networks that an iteration trains in this process."""
        ...

    def exchange(self, iteration: int) -> None:
        """Sends each network that an iteration has trained from the process that did to all others."""
        ...

    def batches(self, iteration: int, number: int) -> Iterator[Tensor]:
        """Indices of the batches that a network is trained on in an iteration."""
        ...

    def advance(self, iteration: int) -> None:
        """Trains the iteration's networks in place, and resets the meters if due."""
        ...

    def reset_due(self, iteration: int) -> None:
        """Resets all meters after an iteration if that is due."""
        ...


class FixedQueue(FixedNetwork):
    """A queue's networks, gathered by the number of their slot."""

    def __init__(self, queue: Queue) -> None:
        """Prepares buffers; the queue itself is not changed.

        Raises:
            ValueError: if the first iterations have fewer networks than an iteration trains.
        """
        settings, slots = queue.settings, queue.slots
        if settings.train > settings.start + 1:
            raise ValueError(f"queue.train={settings.train} networks are not there from the start")
        self._queue, self._slots = queue, slots
        self._batch = min(settings.batch, len(queue.real))
        self._weights = torch.zeros_like(slots.weights[0])  # [P]
        self.network = queue.built(0)
        slots.layout.bind(self.network, self._weights)
        self.accuracy = torch.zeros((), device=slots.weights.device)
        self.fields = {
            "queue match": ((1,), torch.int64),
            "queue train": ((len(queue.own(0)),), torch.int64),
            "queue batches": ((settings.steps, len(queue.own(0)), self._batch), torch.int64),
        }
        self._recording: Recording | None = None

    def _slot(self, number: int) -> int:
        """Row of a network; after the last iteration, whose draws are made and never used, it may be another's."""
        return number % len(self._slots.weights)

    def fill(self, iteration: int, draws: Packed) -> None:
        """Draws the matching network, the networks to train, and their batches."""
        queue, chosen = self._queue, self._queue.own(iteration)
        draws["queue match"].copy_(torch.tensor([self._slot(queue.choice(iteration))]))
        draws["queue train"].copy_(torch.tensor([self._slot(number) for number in chosen]))
        for place, number in enumerate(chosen):
            for step, index in enumerate(queue.batches(iteration, number)):
                draws["queue batches"][step, place].copy_(index)

    def load(self, iteration: int) -> None:
        """Adds the networks that are due."""
        self._queue.add_due(iteration)

    @torch.no_grad()
    def gather(self, draws: Packed) -> None:
        """Copies the weights of the matching network, and its accuracy."""
        slot = draws["queue match"]
        self._weights.copy_(self._slots.weights.index_select(0, slot)[0])
        hits, images = self._slots.meters.index_select(0, slot)[0].unbind()  # [] each
        self.accuracy.copy_(100 * hits / images.clamp_min(1))

    def train(self, draws: Packed) -> None:
        """Trains the networks of an iteration; recordable."""
        slots, real = self._slots, self._queue.real
        chosen, batches = draws["queue train"], draws["queue batches"]  # [T], [steps, T, b]
        with torch.no_grad():
            weights = slots.weights.index_select(0, chosen)  # [T, P]
            momenta = slots.momenta.index_select(0, chosen)  # [T, P]
            hits = torch.zeros(len(chosen), dtype=torch.int64, device=weights.device)  # [T]
        for batch in batches:  # [T, b]
            gradients = torch.zeros_like(weights)  # [T, P]
            for one, (row, index) in enumerate(zip(weights, batch, strict=True)):  # [P], [b]
                images, labels = real.images_of(index), real.labels[index]  # [b, K, H, H], [b]
                gradient, logits = self._gradient(row, images, labels)
                slots.layout.write(gradients[one], gradient)
                hits[one] += (logits.argmax(1) == labels).sum()
            with torch.no_grad():
                momenta.mul_(MOMENTUM).add_(gradients.add_(weights, alpha=WEIGHT_DECAY))
                weights.sub_(momenta, alpha=self._queue.settings.lr)
        with torch.no_grad():
            seen = torch.full_like(hits, len(batches) * self._batch)  # [T]
            counted = slots.meters.index_select(0, chosen) + torch.stack([hits, seen], 1)  # [T, 2]
            for rows, values in ((slots.weights, weights), (slots.momenta, momenta), (slots.meters, counted)):
                rows.index_copy_(0, chosen, values)

    def _gradient(self, row: Tensor, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradient of the mean cross-entropy with respect to each parameter in a row, and the logits, [b, C]."""
        views = [view.detach().requires_grad_() for view in self._slots.layout.views(row)]
        logits = functional_call(self.network, dict(zip(self._slots.layout.names, views, strict=True)), (images,))
        return torch.autograd.grad(F.cross_entropy(logits, labels), views), logits.detach()

    def record(self, draws: Packed) -> None:
        """Records the training of an iteration, if the device can."""
        slots = self._slots
        if not len(self._queue.own(0)):  # other processes train all networks
            return
        self._recording = recorded(
            lambda: self.train(draws),
            [slots.weights],
            state=[slots.momenta, slots.meters],
            tolerance=UPDATE_TOLERANCE,
            what="the queue's training",
        )

    @property
    def recorded(self) -> bool:
        """Whether the training is recorded."""
        return self._recording is not None or not len(self._queue.own(0))

    def advance(self, iteration: int) -> None:
        """Trains the iteration's networks, and resets the meters if due; see `NetworkQueue.advance`."""
        if self._recording is None:
            self._queue.advance(iteration)
            return
        self._recording.replay()
        self._queue.exchange(iteration)
        self._queue.reset_due(iteration)
