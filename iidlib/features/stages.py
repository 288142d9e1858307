"""iid-plus's feature source: matching networks from several stages of the training of a few pretrained networks.

A pool keeps copies of each of its networks after the epochs of ``pool.epochs_kept``. Early copies see edges and
colours, late ones see objects; an iteration draws one of the networks and one of its stages. A queue of networks in
training (`iidlib.features.network_queue`) offers the same variety, but trains its networks from scratch in every run.

Matching in several stages of pretrained networks was proposed by Ran et al., "TGDD: trajectory guided dataset
distillation with balanced distribution" (AAAI 2026, arXiv 2512.02469), and by Zhang et al., DANCE (IJCAI 2024, arXiv
2406.01063), who draw weights between those of a random and a trained network.
"""

import copy
from collections.abc import Sequence

import torch

from iidlib.config import PoolConfig, StageConfig
from iidlib.data import RealSet
from iidlib.errors import InputError
from iidlib.features.base import Drawn, NetworkSource
from iidlib.features.pool import Pool, pool_members
from iidlib.networks import Network, frozen
from iidlib.rng import stream
from iidlib.training import accuracy

__all__ = ["ASKED", "StageNetworks"]

ASKED = 1000
"""Number of training images on which the accuracy of a stage is measured."""


class StageNetworks(NetworkSource):
    """Draws a network of the pool and a stage of its training, as a function of seed and iteration.

    The weights of a stage are copied into one network, so a recorded step finds them at a fixed address.
    """

    in_place = True
    from_pool = True

    def __init__(self, pool: PoolConfig, settings: StageConfig, real: RealSet, *, iterations: int, seed: int) -> None:
        """Prepares the source; the pool itself is passed to `use_pool`.

        Args:
            pool: settings of the pool, which define the stages.
            settings: schedule and interpolation.
            real: the training images, some of which serve to measure the accuracy of a stage.
            iterations: number of iterations of the run, over which the schedule opens one stage after another.
            seed: seed of the run.
        """
        self._settings, self._real, self._iterations, self._seed = settings, real, iterations, seed
        members = pool_members(pool)
        self._epochs = sorted({epochs for _, epochs in members})
        self._networks = pool.count
        self._pool: Pool | None = None
        self._accuracies: dict[int, float] = {}
        self._drawn = 0.0

    def use_pool(self, pool: Pool) -> None:
        """Receives the networks of the pool, which are not modified.

        Raises:
            InputError: for a pool with other networks or stages than the settings describe.
        """
        if len(pool.networks) != (needed := self._networks * self.stages):
            raise InputError(
                f"the pool has {len(pool.networks)} networks where pool.count and pool.epochs_kept ask for {needed}; "
                "give the pool that was trained with the same settings"
            )
        if pool.epochs and [*pool.epochs] != (expected := self._epochs * self._networks):
            raise InputError(
                f"the pool has networks after {_listed(pool.epochs)} epochs where pool.epochs and pool.epochs_kept ask "
                f"for {_listed(expected)}; give the pool that was trained with the same settings"
            )
        self._pool = pool
        self._accuracies.clear()
        self._network = frozen(copy.deepcopy(pool.networks[0])).eval()

    @property
    def spread_by(self) -> str:
        """The schedule, unless it is uniform or there is only one stage."""
        spread = self._settings.schedule != "uniform" and self.stages > 1
        return f"stages.schedule={self._settings.schedule}" if spread else ""

    @property
    def stages(self) -> int:
        """Number of stages of each network of the pool."""
        return len(self._epochs)

    def open_stages(self, iteration: int) -> range:
        """Stages that an iteration may draw from, numbered from 0 in the order of training."""
        if self._settings.schedule == "uniform":
            return range(self.stages)
        opened = min(self.stages, 1 + iteration * self.stages // self._iterations)
        return range(opened) if self._settings.schedule == "early" else range(self.stages - opened, self.stages)

    @torch.no_grad()
    def draw(self, iteration: int) -> Drawn:
        """The iteration's network, which overwrites the previous one, and its accuracy on training images.

        The accuracy between two stages is interpolated linearly; that of an untrained network is 0.

        Raises:
            RuntimeError: before the pool was received.
        """
        if self._pool is None:
            raise RuntimeError("there is no pool yet; call Distillation.make_pool, or use_pool, before a draw")
        draws = stream(self._seed, iteration, "stage")
        first = int(torch.randint(self._networks, (), generator=draws)) * self.stages
        opened = self.open_stages(iteration)
        if self._settings.interpolate == "off" or len(opened) == 1:
            low, share = opened[int(torch.randint(len(opened), (), generator=draws))], 0.0
        else:
            position = float(torch.rand((), generator=draws, dtype=torch.float64)) * (len(opened) - 1)
            low, share = opened[int(position)], position % 1
        self._load(self._pool.networks, first + low, share)
        reached = self.accuracy_of(first + low)
        if share:
            reached += share * (self.accuracy_of(first + low + 1) - reached)
        self._drawn = reached
        return Drawn(self._network, reached)

    def _load(self, members: Sequence[Network], low: int, share: float) -> None:
        """Copies a member's weights into the network, interpolated towards the next member's by `share`.

        Buffers, such as the running moments of a batch norm, are the member's own.
        """
        member = members[low]
        torch._foreach_copy_(
            [*self._network.parameters(), *self._network.buffers()], [*member.parameters(), *member.buffers()]
        )
        if share:
            torch._foreach_lerp_(list(self._network.parameters()), list(members[low + 1].parameters()), share)

    def accuracy_of(self, member: int) -> float:
        """Accuracy of a member of the pool on some of the training images, in percent; 0 if it is untrained.

        Test images must not be used: the accuracy weights a term of the objective.
        """
        if self._epochs[member % self.stages] == 0:
            return 0.0
        if member not in self._accuracies:
            assert self._pool is not None, "members belong to a pool"
            order = torch.randperm(len(self._real), generator=stream(self._seed, 0, "stage accuracy"))
            subset = self._real.subset(order[:ASKED].sort().values.to(self._real.device))
            self._accuracies[member] = accuracy(self._pool.networks[member], subset)
        return self._accuracies[member]

    def facts(self) -> dict[str, float]:
        """Logged values: accuracy of the last network drawn, in percent."""
        return {"stage_accuracy": self._drawn}


def _listed(epochs: Sequence[int]) -> str:
    return ", ".join(map(str, epochs))
