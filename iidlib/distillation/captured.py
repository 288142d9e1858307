"""A step of a distillation recorded as a CUDA graph: hundreds of small kernels, launched as one.

On a GPU the kernels of a step take microseconds, and Python's launching of them takes longer than they do. A recorded
step needs fixed addresses and shapes and must not wait for the device, so it is split in two: `CapturedStep.load` draws
an iteration's images, augmentation and networks into fixed buffers, as the step without a graph would draw them, and
`CapturedStep.compute`, which is recorded, does everything from the real forward pass to the update of the images.

Both halves run on any device, which is how their equality with a plain step is tested; only the recording needs CUDA.
A recording is checked against a plain step before it is used, and given up where it fails or differs.
"""

import copy
import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from iidlib import augment
from iidlib.distillation.batch import Run, StepBatch
from iidlib.distillation.optimisers import Updater
from iidlib.distillation.terms import Term
from iidlib.features import RandomNetworks
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import expand

__all__ = ["CapturedStep", "captured_step"]

TOLERANCE = 1e-2
"""Largest norm-wise difference of an update by a recording from the same computation without one."""

log = logging.getLogger("iidlib")


class _BufferedBatch(StepBatch):
    """A step's batch whose draws lie in the buffers of a `CapturedStep`."""

    def __init__(self, run: Run, buffers: "CapturedStep") -> None:
        super().__init__(run, 0)
        self._buffers = buffers

    @property
    def network(self) -> Network:
        return self._buffers.network

    @property
    def expert(self) -> Network:
        assert self._buffers.expert is not None, "a term that reads `expert` must set needs_pool"
        return self._buffers.expert

    @property
    def _real(self) -> tuple[Tensor, Tensor]:
        return self._buffers.real, self._buffers.counts

    @property
    def _syn_images(self) -> Tensor:
        return self._buffers.augmented(expand(self._run.images, self.config.syn.factor))

    def _first_real(self, per_class: int) -> tuple[Tensor, Tensor]:
        counts = self._buffers.counts.clamp(max=per_class)
        return self._buffers.real.unflatten(0, (len(counts), -1))[:, : int(counts[0])].flatten(0, 1), counts


class CapturedStep:
    """One step of a run on fixed buffers.

    Attributes:
        real: augmented real images, sorted by class.
        counts: how many each class has, on the CPU.
        network: the matching network, drawn anew in place.
        expert: a network that takes the weights of the iteration's trained one; None without a pool.
    """

    def __init__(self, run: Run, terms: Mapping[str, Term], updater: Updater) -> None:
        """Makes the buffers.

        Raises:
            ValueError: for a run whose step cannot have fixed shapes.
        """
        drawn = run.real.sample(run.config.match.batch_real, stream(run.config.seed, 0, "real batch"))
        if not bool((drawn.counts == drawn.counts[0]).all()):
            raise ValueError("classes of unequal size have no fixed shapes")
        if run.statistics is not None:
            raise ValueError("cached statistics have no real images to load")
        if not isinstance(run.source, RandomNetworks):
            raise ValueError("networks in training are not at one address")
        self._run, self._terms, self._updater = run, terms, updater
        device = run.images.device
        self.counts = drawn.counts
        self.network = run.source.draw(0)
        self.expert: Network | None = None
        if run.pool is not None:
            self.expert = copy.deepcopy(run.pool.networks[0])
            if any(network.name != self.expert.name for network in run.pool.networks):
                raise ValueError("a pool of several architectures has no fixed shapes")
        self._group = run.group.repeat_interleave(run.config.syn.factor**2).to(device)
        self._op = torch.zeros(run.real.num_classes, dtype=torch.int64, device=device)
        self._u = torch.zeros(run.real.num_classes, 3, device=device)
        self._operations = () if run.augmentation == "none" else augment.parse_strategy(run.augmentation)
        self.real = torch.empty(0)
        self.real = self._real_images(0).contiguous(memory_format=torch.channels_last).clone()
        self._graph: torch.cuda.CUDAGraph | None = None

    def _real_images(self, iteration: int) -> Tensor:
        """An iteration's augmented real images; its draws go to their buffers."""
        run, seed = self._run, self._run.config.seed
        drawn = run.real.sample(run.config.match.batch_real, stream(seed, iteration, "real batch"))
        images = run.real.images_of(drawn.index)
        if not self._operations:
            return images
        draws = augment.sample(self._operations, run.real.num_classes, stream(seed, iteration, "augmentation"))
        self._op.copy_(draws.op, non_blocking=True)
        self._u.copy_(draws.u, non_blocking=True)
        return augment.apply(images, draws, drawn.group)

    def augmented(self, images: Tensor) -> Tensor:
        """The synthetic images under the draws in the buffers."""
        if not self._operations:
            return images
        return augment.apply_everywhere(images, self._op[self._group], self._u[self._group], self._operations)

    @torch.no_grad()
    def load(self, iteration: int) -> None:
        """Puts an iteration's draws into the buffers."""
        run = self._run
        self.real.copy_(self._real_images(iteration))
        run.source.draw(iteration)  # in place
        if self.expert is not None and run.pool is not None:
            chosen = run.pool.sample(stream(run.config.seed, iteration, "expert"))
            theirs = [*chosen.parameters(), *chosen.buffers()]
            torch._foreach_copy_([*self.expert.parameters(), *self.expert.buffers()], theirs)

    def compute(self) -> None:
        """The step from what lies in the buffers: losses, gradient, update of the images."""
        batch = _BufferedBatch(self._run, self)
        config = self._run.config
        losses = [term.weight(config) * term.loss(batch).sum() for term in self._terms.values()]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), self._run.images)
        self._updater.step(gradient)

    def record(self) -> None:
        """Records `compute` as a CUDA graph; images and momentum stay as they are."""
        state = self._state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up, as recording asks for: libraries allocate their workspaces
            for _ in range(3):
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.compute()
        self._restore(state)
        self._graph = graph

    def step(self, iteration: int) -> None:
        """One update of the images."""
        self.load(iteration)
        if self._graph is not None:
            self._graph.replay()
        else:
            self.compute()

    def _state(self) -> list[Tensor]:
        if self._updater.velocity is None:
            # made by the first step otherwise, at another address in a recording; of zeros it changes no update
            self._updater.velocity = torch.zeros_like(self._run.images)
        return [tensor.detach().clone() for tensor in self._tensors()]

    def _tensors(self) -> list[Tensor]:
        assert self._updater.velocity is not None
        return [self._run.images, self._updater.velocity]

    @torch.no_grad()
    def _restore(self, state: list[Tensor]) -> None:
        for tensor, before in zip(self._tensors(), state, strict=True):
            tensor.copy_(before)

    def differs(self, iteration: int) -> float:
        """Norm-wise difference of a recorded update from that of `compute` on the same draws; nothing changes."""
        state = self._state()
        updates = []
        for recorded in (True, False):
            self.load(iteration)
            if recorded and self._graph is not None:
                self._graph.replay()
            else:
                self.compute()
            updates.append(self._run.images.detach() - state[0])
            self._restore(state)
        return float((updates[0] - updates[1]).norm() / updates[1].norm())


def captured_step(run: Run, terms: Mapping[str, Term], updater: Updater) -> CapturedStep | None:
    """A recorded step of a run on a GPU, checked against the plain one; None, said once, where it cannot be had."""
    if run.images.device.type != "cuda":
        return None
    try:
        step = CapturedStep(run, terms, updater)
        step.load(0)
        step.record()
        apart = step.differs(0)
        if apart <= TOLERANCE:
            return step
        reason = f"its update differs by {apart:.1e}"
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
    log.warning("no CUDA graph of the step (%s); going on with single kernels, slower", reason)
    return None
