"""IDM's queue in fixed slots: the matching network gathered from its slot, and training as one recorded region.

A network of the queue is a Python object with weights in a row of one tensor, so which network an iteration uses is the
number of a row, which a CUDA graph can read from a buffer. The training of an iteration (several steps of several
networks) gathers the rows of its networks, updates them, and writes them back. Both do what `NetworkQueue.draw` and
`NetworkQueue.advance` do, with the same draws.

One process records the whole training. Of several, each records the gradients of a step, whose sum over all processes
is taken between two replays.
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
from iidlib.ranks import Ranks
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
    ranks: Ranks

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

    def chosen(self, iteration: int) -> list[int]:
        """Numbers of the networks that an iteration trains."""
        ...

    def share(self, batch: Tensor) -> Tensor:
        """Those indices of a batch, [..., b], that this process computes with."""
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
            "queue train": ((settings.train,), torch.int64),
            "queue batches": ((settings.steps, settings.train, self._batch), torch.int64),
        }
        # of the networks that an iteration trains: weights, momenta, gradients, [T, P]; correct predictions, [T];
        # the images of this process in a step, [T, b]
        self._trained, self._momenta, self._gradients = slots.weights.new_zeros(3, settings.train, slots.layout.size)
        self._hits = slots.meters.new_zeros(settings.train)
        self._images = queue.share(slots.meters.new_zeros(settings.train, self._batch)).clone()
        self._draws: Packed | None = None
        self._whole: Recording | None = None
        self._step: Recording | None = None

    def _slot(self, number: int) -> int:
        """Row of a network; after the last iteration, whose draws are made and never used, it may be another's."""
        return number % len(self._slots.weights)

    def fill(self, iteration: int, draws: Packed) -> None:
        """Draws the matching network, the networks to train, and their batches."""
        queue, chosen = self._queue, self._queue.chosen(iteration)
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

    @torch.no_grad()
    def train(self, draws: Packed) -> None:
        """Trains the networks of an iteration; recordable in one process."""
        self._take(draws)
        differentiate = self._differentiate if self._step is None else self._step.replay
        for batch in draws["queue batches"]:  # [T, b]
            self._images.copy_(self._queue.share(batch))
            differentiate()
            gradients = self._queue.ranks.total(self._gradients)
            self._momenta.mul_(MOMENTUM).add_(gradients.add_(self._trained, alpha=WEIGHT_DECAY))
            self._trained.sub_(self._momenta, alpha=self._queue.settings.lr)
        slots, chosen = self._slots, draws["queue train"]
        hits = self._queue.ranks.total(self._hits)
        seen = torch.full_like(hits, len(draws["queue batches"]) * self._batch)  # [T]
        counted = slots.meters.index_select(0, chosen) + torch.stack([hits, seen], 1)  # [T, 2]
        for rows, values in ((slots.weights, self._trained), (slots.momenta, self._momenta), (slots.meters, counted)):
            rows.index_copy_(0, chosen, values)

    @torch.no_grad()
    def _take(self, draws: Packed) -> None:
        """Copies weights and momenta of the networks that an iteration trains."""
        chosen = draws["queue train"]
        self._trained.copy_(self._slots.weights.index_select(0, chosen))
        self._momenta.copy_(self._slots.momenta.index_select(0, chosen))
        self._hits.zero_()

    def _differentiate(self) -> None:
        """Computes this process' part of the gradients of a step, and adds its correct predictions; recordable."""
        real = self._queue.real
        self._gradients.zero_()
        if not self._images.numel():  # there are more ranks than images
            return
        for one, (row, index) in enumerate(zip(self._trained, self._images, strict=True)):  # [P], [b]
            labels = real.labels[index]  # [b]
            gradient, logits = self._gradient(row, real.images_of(index), labels)
            self._slots.layout.write(self._gradients[one], gradient)
            self._hits[one] += (logits.argmax(1) == labels).sum()

    @torch.enable_grad()
    def _gradient(self, row: Tensor, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradient with respect to each parameter in a row, and the logits, [b, C].

        It is that of the cross-entropy's mean over the batch of all processes, as far as it comes from these images.
        """
        views = [view.detach().requires_grad_() for view in self._slots.layout.views(row)]
        logits = functional_call(self.network, dict(zip(self._slots.layout.names, views, strict=True)), (images,))
        loss = F.cross_entropy(logits, labels).mul(len(labels) / self._batch)
        return torch.autograd.grad(loss, views), logits.detach()

    def record(self, draws: Packed) -> None:
        """Records the training of an iteration, or with several ranks that of a step, if the device can."""
        self._draws, slots, what = draws, self._slots, "the queue's training"
        if self._queue.ranks.size == 1:
            self._whole = recorded(
                lambda: self.train(draws),
                [slots.weights],
                state=[slots.momenta, slots.meters],
                tolerance=UPDATE_TOLERANCE,
                what=what,
            )
        elif self._images.numel():
            self._take(draws)  # weights that have a gradient
            self._images.copy_(self._queue.share(draws["queue batches"][0]))
            self._step = recorded(
                self._differentiate, [self._gradients], state=[self._hits], tolerance=UPDATE_TOLERANCE, what=what
            )

    @property
    def recorded(self) -> bool:
        """Whether the training is recorded."""
        return (self._whole or self._step) is not None

    def advance(self, iteration: int) -> None:
        """Trains the iteration's networks, and resets the meters if due; see `NetworkQueue.advance`."""
        if self._whole is not None:
            self._whole.replay()
        elif self._step is not None:
            assert self._draws is not None
            self.train(self._draws)
        else:
            self._queue.advance(iteration)
            return
        self._queue.reset_due(iteration)
