"""IDM's feature source: a queue of networks in training; when a new network joins a full queue, the oldest leaves.

Random networks see edges and colours, trained ones see objects; the queue holds networks at every stage in between. In
each iteration one network, drawn at random, computes the features and the logits. Then a few networks are trained for a
few steps on real images, without augmentation, each with its own momentum. A meter counts each network's correct
predictions on its training batches since the meter was last reset; the resulting accuracy weights the cross-entropy
term.

Source: Zhao et al., *Improved Distribution Matching for Dataset Condensation*, CVPR 2023, with the constants of the
released commands. Departure: meters are reset every ``queue.meter_interval`` iterations, independently of evaluation.
The released code resets them at its evaluations, so the frequency of evaluation changes what is learned
(``queue.meter_reset=evaluations`` resets at the iterations of IID's released script).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.config import QueueConfig
from iidlib.data import RealSet
from iidlib.errors import InputError
from iidlib.features.base import Drawn, NetworkSource
from iidlib.features.fixed_queue import FixedQueue, Slots
from iidlib.features.slots import Layout
from iidlib.networks import Network, frozen
from iidlib.ranks import current
from iidlib.rng import stream
from iidlib.training.loop import MOMENTUM, WEIGHT_DECAY

__all__ = ["RELEASED_EVALUATIONS", "NetworkQueue"]

RELEASED_EVALUATIONS = (2000, 5000, 10000, 20000)
"""Iterations before which IID's released script evaluates, which resets the meters."""


@dataclass
class _Member:
    """A network of the queue; its tensors are rows of the queue's.

    Attributes:
        number: number of networks created before this one; identifies its initial weights.
        network: the network, frozen except while it is trained.
        sgd: optimiser of the network, whose momentum is kept as long as the network.
        meter: int64 [2] on the network's device: correct predictions and images since the last reset.
    """

    number: int
    network: Network
    sgd: torch.optim.SGD
    meter: Tensor

    def tensors(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters and their momentum buffers, in order."""
        return [(p, self.sgd.state[p]["momentum_buffer"]) for p in self.network.parameters()]


class NetworkQueue(NetworkSource):
    """The queue; needs one `draw` and one `advance` per iteration, in order from the first.

    The draws are functions of seed and iteration; the networks themselves have a history, which `state` holds.

    Attributes:
        real: the images that the networks are trained on.
        settings: sizes and rates.
        seed: seed of the run.
    """

    def __init__(
        self,
        build: Callable[[torch.Generator], Network],
        real: RealSet,
        settings: QueueConfig,
        seed: int,
        *,
        iterations: int | None = None,
        saved: str = "full",
    ) -> None:
        """Creates an empty queue, which is filled at the first draw.

        Args:
            build: builds a network on the generator's device and draws its parameters with the generator.
            real: the images that the networks are trained on.
            settings: sizes and rates.
            seed: seed of the run.
            iterations: iterations of the run, if they may be too few to fill the queue.
            saved: how `state` holds weights and momenta, see ``checkpoint.queue``.

        Raises:
            InputError: if ``queue.size`` is below ``queue.start`` or ``queue.train``.
        """
        for name in ("start", "train"):
            if settings.size < getattr(settings, name):
                raise InputError(
                    f"queue.size, {settings.size}, must be at least queue.{name}, {getattr(settings, name)}; "
                    "raise the former or lower the latter"
                )
        self._build, self.real, self.settings, self.seed = build, real, settings, seed
        self._iterations, self._saved = iterations, saved
        self.ranks = current()
        self._members: list[_Member] = []
        self._made = 0
        self._slots: Slots | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def networks(self) -> list[Network]:
        """Networks that are in the queue now, oldest first."""
        return [member.network for member in self._members]

    @property
    def slots(self) -> Slots:
        """The tensors of all networks."""
        if self._slots is None:
            network = self.built(0)
            layout, like = Layout(network), next(network.parameters()).detach()
            rows = self.settings.size
            if self._iterations is not None:
                rows = min(rows, self._numbers(self._iterations - 1).stop)
            # on a CPU, zeros occupy no memory before they are written
            weights, momenta = (torch.zeros(rows, layout.size, dtype=like.dtype, device=like.device) for _ in range(2))
            meters = torch.zeros(rows, 2, dtype=torch.int64, device=like.device)
            self._slots = Slots(layout, weights, momenta, meters)
        return self._slots

    def built(self, number: int) -> Network:
        """A new network with the initial weights of a number, frozen."""
        return frozen(self._build(stream(self.seed, number, "queue network", self.real.device)))

    def _numbers(self, iteration: int) -> range:
        """Numbers of the networks that an iteration draws from."""
        made = self.settings.start + iteration // self.settings.every + 1
        return range(max(0, made - self.settings.size), made)

    def twin(self, change: Callable[[Network], Network]) -> "NetworkQueue":
        """An empty queue that will hold and train the same networks, each transformed by `change`."""

        def build(draws: torch.Generator) -> Network:
            return change(self._build(draws))

        iterations, saved = self._iterations, self._saved
        return NetworkQueue(build, self.real, self.settings, self.seed, iterations=iterations, saved=saved)

    def draw(self, iteration: int) -> Drawn:
        """The iteration's matching network, after adding a new one if due; repeated calls return the same.

        The accuracy is that on the network's training images since the last reset of the meters, 0 if there were none.
        """
        self.add_due(iteration)
        member = self._members[self.choice(iteration) - self._members[0].number]
        hits, images = member.meter.unbind()
        return Drawn(member.network, 100 * hits / images.clamp_min(1))

    def add_due(self, iteration: int) -> None:
        """Adds the networks that are due at an iteration; each takes the place of the oldest if the queue is full."""
        while self._made < self._numbers(iteration).stop:
            if len(self) == self.settings.size:
                self._members.pop(0)
            self._members.append(self._fresh(self._made))
            self._made += 1

    def choice(self, iteration: int) -> int:
        """Number of the matching network of an iteration, a function of seed and iteration."""
        numbers = self._numbers(iteration)
        return numbers[int(torch.randint(len(numbers), (), generator=stream(self.seed, iteration, "queue match")))]

    def chosen(self, iteration: int) -> list[int]:
        """Numbers of the networks that an iteration trains, a function of seed and iteration."""
        numbers = self._numbers(iteration)
        order = torch.randperm(len(numbers), generator=stream(self.seed, iteration, "queue train"))
        return [numbers[i] for i in order[: self.settings.train].tolist()]

    def batches(self, iteration: int, number: int) -> Iterator[Tensor]:
        """Indices of the batches that a network is trained on in an iteration, int64 [b] each, on the CPU."""
        generator = stream(self.seed, iteration, f"queue batches of {number}")
        for _ in range(self.settings.steps):
            yield torch.randperm(len(self.real), generator=generator)[: self.settings.batch]

    def fixed(self) -> "FixedQueue":
        """The networks in their slots, for a recorded step."""
        return FixedQueue(self)

    def advance(self, iteration: int) -> None:
        """Trains the iteration's networks in place, and resets the meters if due.

        Networks compute one after another: two at once (``torch.func.vmap``, grouped convolutions) take 7 times as
        long at width 32 and batch 64 on two CPU cores, and 14 times as long at width 128 and batch 256.

        Several ranks share each batch and add their gradients up. On two ranks of one CPU thread an iteration of IDM
        (10 classes, IPC 10) takes as long as if each rank trained one of its two networks, 11 s. Where it
        trains only one, so that a rank would wait, it takes 6.4 s in place of 10.
        """
        members = [self._members[number - self._members[0].number] for number in self.chosen(iteration)]
        hits = torch.zeros_like(self.slots.meters[: len(members), 0])  # [T]
        for member in members:
            member.network.requires_grad_(True)
        for batches in zip(*(self.batches(iteration, member.number) for member in members), strict=True):
            for place, (member, batch) in enumerate(zip(members, batches, strict=True)):
                index = self.share(batch).to(self.real.device)
                member.sgd.zero_grad()
                if len(index):  # otherwise there are more ranks than images
                    labels = self.real.labels[index]  # [b]
                    logits = member.network(self.real.images_of(index))  # [b, C]
                    F.cross_entropy(logits, labels).mul(len(index) / len(batch)).backward()
                    hits[place] += (logits.argmax(1) == labels).sum()
                member.meter[1] += len(batch)
            self._add_gradients([member.network for member in members])
            for member in members:
                member.sgd.step()
        for member, count in zip(members, self.ranks.total(hits), strict=True):
            member.meter[0] += count
            member.sgd.zero_grad()
            frozen(member.network)
        self.reset_due(iteration)

    def share(self, batch: Tensor) -> Tensor:
        """Those indices of a batch, [..., b], that this process computes with; all without torchrun."""
        own = self.ranks.share(batch.shape[-1])
        return batch[..., own.start : own.stop]

    @torch.no_grad()
    def _add_gradients(self, networks: Sequence[Network]) -> None:
        """Replaces the gradients of networks by their sums over all ranks, in one exchange as in `FixedQueue`."""
        if self.ranks.size == 1:
            return
        layout = self.slots.layout
        rows = torch.zeros_like(self.slots.weights[: len(networks)])  # [T, P]
        for row, network in zip(rows, networks, strict=True):
            if gradients := [p.grad for p in network.parameters() if p.grad is not None]:
                layout.write(row, gradients)
        for row, network in zip(self.ranks.total(rows), networks, strict=True):
            for parameter, gradient in zip(network.parameters(), layout.views(row), strict=True):
                parameter.grad = gradient

    def reset_due(self, iteration: int) -> None:
        """Resets all meters after an iteration if that is due."""
        if self._is_reset(iteration + 1):
            self.slots.meters.zero_()

    def _is_reset(self, iteration: int) -> bool:
        if self.settings.meter_reset == "evaluations":
            return iteration in RELEASED_EVALUATIONS
        return iteration % self.settings.meter_interval == 0

    @torch.no_grad()
    def _fresh(self, number: int) -> _Member:
        """A new member in its slot, with its initial weights."""
        network, slots = self.built(number), self.slots
        row = number % len(slots.weights)
        slots.layout.bind(network, slots.weights[row])
        slots.momenta[row].zero_()
        slots.meters[row].zero_()
        sgd = torch.optim.SGD(network.parameters(), lr=self.settings.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for parameter, momentum in zip(network.parameters(), slots.layout.views(slots.momenta[row]), strict=True):
            sgd.state[parameter]["momentum_buffer"] = momentum
        return _Member(number, network, sgd, slots.meters[row])

    def facts(self) -> dict[str, float]:
        """Logged values: number of networks, MiB they hold, and mean accuracy over the meters that are not empty."""
        hits, images = torch.stack([member.meter for member in self._members]).cpu().double().unbind(1)  # [M], [M]
        counted = images > 0
        accuracy = float((100 * hits[counted] / images[counted]).mean()) if bool(counted.any()) else 0.0
        return {"queue_networks": len(self), "queue_mib": self.mebibytes, "queue_accuracy": accuracy}

    @property
    def mebibytes(self) -> float:
        """MiB held by the queue's weights and momentum buffers."""
        return sum(2 * p.nbytes for member in self._members for p in member.network.parameters()) / 2**20

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint: one row per network, its weights flattened into one vector, its momenta likewise.

        Weights and momenta are rounded or left out if the settings say so.
        """
        if not self._members:
            return {}
        state = {"queue.numbers": torch.tensor([member.number for member in self._members])}
        if self._saved == "none":
            return state
        state["queue.meters"] = torch.stack([member.meter for member in self._members])
        pairs = [member.tensors() for member in self._members]
        rows = {
            "queue.weights": torch.stack([torch.cat([p.detach().flatten() for p, _ in own]) for own in pairs]),
            "queue.momenta": torch.stack([torch.cat([v.flatten() for _, v in own]) for own in pairs]),
        }
        return state | {name: row.half() if self._saved == "half" else row for name, row in rows.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state from a checkpoint; networks that it does not hold get initial weights and empty meters.

        Raises:
            InputError: if the checkpoint is of a larger queue.
        """
        if "queue.numbers" not in state:
            return
        numbers, room = state["queue.numbers"].tolist(), len(self.slots.weights)
        if len(numbers) > room:
            raise InputError(f"the checkpoint is of a queue of {len(numbers)} networks, this one has room for {room}")
        self._members = [self._fresh(number) for number in numbers]
        self._made = numbers[-1] + 1
        if "queue.weights" not in state:
            return
        rows = zip(state["queue.weights"], state["queue.momenta"], state["queue.meters"], strict=True)
        for member, (weights, momenta, meter) in zip(self._members, rows, strict=True):
            sizes = [p.numel() for p, _ in member.tensors()]
            pieces = zip(member.tensors(), weights.split(sizes), momenta.split(sizes), strict=True)
            for (parameter, velocity), weight, momentum in pieces:
                parameter.copy_(weight.view(parameter.shape))
                velocity.copy_(momentum.view(parameter.shape))
            member.meter.copy_(meter)
