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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.config import QueueConfig
from iidlib.data import RealSet
from iidlib.errors import InputError
from iidlib.features.base import Drawn, NetworkSource
from iidlib.networks import Network, frozen
from iidlib.rng import stream
from iidlib.training.loop import MOMENTUM, WEIGHT_DECAY

__all__ = ["RELEASED_EVALUATIONS", "NetworkQueue"]

RELEASED_EVALUATIONS = (2000, 5000, 10000, 20000)
"""Iterations before which IID's released script evaluates, which resets the meters."""


@dataclass
class _Member:
    """A network of the queue.

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
    """

    def __init__(
        self, build: Callable[[torch.Generator], Network], real: RealSet, settings: QueueConfig, seed: int
    ) -> None:
        """Creates an empty queue, which is filled at the first draw.

        Args:
            build: builds a network on the generator's device and draws its parameters with the generator.
            real: the images that the networks are trained on.
            settings: sizes and rates.
            seed: seed of the run.

        Raises:
            InputError: if ``queue.size`` is below ``queue.start`` or ``queue.train``.
        """
        for name in ("start", "train"):
            if settings.size < getattr(settings, name):
                raise InputError(
                    f"queue.size, {settings.size}, must be at least queue.{name}, {getattr(settings, name)}; "
                    "raise the former or lower the latter"
                )
        self._build, self._real, self._settings, self._seed = build, real, settings, seed
        self._members: list[_Member] = []
        self._made = 0

    def twin(self, change: Callable[[Network], Network]) -> "NetworkQueue":
        """An empty queue that will hold and train the same networks, each transformed by `change`."""
        return NetworkQueue(lambda draws: change(self._build(draws)), self._real, self._settings, self._seed)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def networks(self) -> list[Network]:
        """Networks that are in the queue now, oldest first."""
        return [member.network for member in self._members]

    def draw(self, iteration: int) -> Drawn:
        """The iteration's matching network, after adding a new one if due; repeated calls return the same.

        The accuracy is that on the network's training images since the last reset of the meters, 0 if there were none.
        """
        while self._made < self._settings.start + iteration // self._settings.every + 1:
            if len(self) == self._settings.size:
                self._members.pop(0)
            self._members.append(self._fresh(self._made))
            self._made += 1
        choice = torch.randint(len(self), (), generator=stream(self._seed, iteration, "queue match"))
        member = self._members[int(choice)]
        hits, images = member.meter.unbind()
        return Drawn(member.network, 100 * hits / images.clamp_min(1))

    def advance(self, iteration: int) -> None:
        """Trains the iteration's networks in place, and resets the meters if due.

        Networks are trained one after another: two at once (``torch.func.vmap``, grouped convolutions) take 7 times as
        long at width 32 and batch 64 on two CPU cores, and 14 times as long at width 128 and batch 256.
        """
        settings = self._settings
        for member in self._chosen(iteration):
            generator = stream(self._seed, iteration, f"queue batches of {member.number}")
            member.network.requires_grad_(True)
            for _ in range(settings.steps):
                index = torch.randperm(len(self._real), generator=generator)[: settings.batch].to(self._real.device)
                labels = self._real.labels[index]  # [B]
                logits = member.network(self._real.images_of(index))  # [B, C]
                member.sgd.zero_grad()
                F.cross_entropy(logits, labels).backward()
                member.sgd.step()
                member.meter[0] += (logits.argmax(1) == labels).sum()
                member.meter[1] += len(labels)
            member.sgd.zero_grad()
            frozen(member.network)
        if self._is_reset(iteration + 1):
            for member in self._members:
                member.meter.zero_()

    def _chosen(self, iteration: int) -> list[_Member]:
        order = torch.randperm(len(self), generator=stream(self._seed, iteration, "queue train"))
        return [self._members[i] for i in order[: self._settings.train].tolist()]

    def _is_reset(self, iteration: int) -> bool:
        if self._settings.meter_reset == "evaluations":
            return iteration in RELEASED_EVALUATIONS
        return iteration % self._settings.meter_interval == 0

    def _fresh(self, number: int) -> _Member:
        network = frozen(self._build(stream(self._seed, number, "queue network", self._real.device)))
        sgd = torch.optim.SGD(network.parameters(), lr=self._settings.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for parameter in network.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return _Member(number, network, sgd, torch.zeros(2, dtype=torch.int64, device=self._real.device))

    def facts(self) -> dict[str, float]:
        """Logged values: number of networks, MiB they hold, and mean accuracy over the meters that are not empty."""
        hits, images = torch.stack([member.meter for member in self._members]).double().cpu().unbind(1)  # [M], [M]
        counted = images > 0
        accuracy = float((100 * hits[counted] / images[counted]).mean()) if bool(counted.any()) else 0.0
        return {"queue_networks": len(self), "queue_mib": self.mebibytes, "queue_accuracy": accuracy}

    @property
    def mebibytes(self) -> float:
        """MiB held by the queue's weights and momentum buffers."""
        return sum(2 * p.nbytes for member in self._members for p in member.network.parameters()) / 2**20

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint: one row per network, its weights flattened into one vector, its momenta likewise."""
        if not self._members:
            return {}
        pairs = [member.tensors() for member in self._members]
        return {
            "queue.numbers": torch.tensor([member.number for member in self._members]),
            "queue.meters": torch.stack([member.meter for member in self._members]),
            "queue.weights": torch.stack([torch.cat([p.detach().flatten() for p, _ in own]) for own in pairs]),
            "queue.momenta": torch.stack([torch.cat([v.flatten() for _, v in own]) for own in pairs]),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state from a checkpoint."""
        if "queue.numbers" not in state:
            return
        self._members = []
        rows = zip(state["queue.weights"], state["queue.momenta"], state["queue.meters"], strict=True)
        for number, (weights, momenta, meter) in zip(state["queue.numbers"].tolist(), rows, strict=True):
            member = self._fresh(number)
            sizes = [p.numel() for p, _ in member.tensors()]
            pieces = zip(member.tensors(), weights.split(sizes), momenta.split(sizes), strict=True)
            for (parameter, velocity), weight, momentum in pieces:
                parameter.copy_(weight.view(parameter.shape))
                velocity.copy_(momentum.view(parameter.shape))
            member.meter.copy_(meter)
            self._members.append(member)
        self._made = self._members[-1].number + 1
