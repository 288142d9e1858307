"""A distillation step recorded as a CUDA graph: hundreds of small kernels with a single launch.

On a GPU the kernels of a step take microseconds, less than Python needs to launch them. A recorded step needs fixed
addresses and shapes and must not synchronise with the device, so it is split in two: `BufferedDraws.load` draws an
iteration's images, augmentation and networks into fixed buffers, exactly as a step without a graph would draw them, and
`CapturedStep.compute`, which is recorded, does everything from the real forward pass to the update of the images.

Both halves run on any device, where tests compare them with a plain step; only the recording needs CUDA.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from iidlib import augment
from iidlib.distillation.batch import StepBatch
from iidlib.distillation.draws import LazyDraws, Run, frequencies_at
from iidlib.distillation.optimisers import ImageOptimiser
from iidlib.distillation.terms import Term
from iidlib.engine import Recording, can_record, recorded, warn_no_graph
from iidlib.features import Drawn
from iidlib.networks import Network

__all__ = ["BufferedDraws", "CapturedStep", "captured_step"]

TOLERANCE = 1e-2
"""Largest relative difference, in norm, between an update by the recording and the same update without it."""


class BufferedDraws:
    """An iteration's draws, in buffers with the same addresses and shapes for all iterations.

    Attributes:
        iteration: the iteration whose draws are in the buffers.
        real: augmented real images, sorted by class.
        counts: number of real images per class, on the CPU.
        matching: the matching network, redrawn in place, and its accuracy.
    """

    def __init__(self, run: Run) -> None:
        """Allocates the buffers.

        Raises:
            ValueError: for a run whose steps do not have fixed addresses and shapes.
        """
        if run.statistics is not None:
            raise ValueError("cached statistics have no real images to load")
        if not run.source.in_place:
            raise ValueError("networks in training have no fixed address")
        if run.pool is not None and len({network.name for network in run.pool.networks}) > 1:
            raise ValueError("a pool of several architectures has no fixed shapes")
        first = LazyDraws(run, 0)
        if not bool((first.counts == first.counts[0]).all()):
            raise ValueError("classes of unequal size have no fixed shapes")
        self._run, self.iteration = run, 0
        self.real = first.real.contiguous(memory_format=torch.channels_last).clone()  # [B, 3, H, H]
        self.counts = first.counts
        device = run.images.device
        self._frequencies: Tensor | None = None
        self._accuracy = torch.zeros((), device=device)
        self.matching = Drawn(first.matching.network, self._accuracy)
        self._pretrained: Network | None = None
        if run.pool is not None and not run.source.from_pool:
            self._pretrained = copy.deepcopy(run.pool.networks[0])
        self._group = run.group.repeat_interleave(run.config.syn.factor**2).to(device)  # [C*n]
        self._op = torch.zeros(run.real.num_classes, dtype=torch.int64, device=device)  # [C]
        self._u = torch.zeros(run.real.num_classes, 3, device=device)  # [C, 3]
        self._operations = () if run.augmentation == "none" else augment.parse_strategy(run.augmentation)

    @property
    def pretrained(self) -> Network:
        """Network that the weights of the iteration's pretrained network are copied into."""
        if self._run.source.from_pool:
            return self.matching.network
        assert self._pretrained is not None, "a term that reads `pretrained` must set needs_pool"
        return self._pretrained

    @property
    def frequencies(self) -> Tensor:
        """Frequencies for features, [F, D]; kept from their first use, which is before the recording."""
        if self._frequencies is None:
            # drawing the network again would overwrite weights that the step has already used
            self._frequencies = frequencies_at(self._run, self.iteration, self.matching.network)
        return self._frequencies

    def augmented(self, images: Tensor, label: int | None = None) -> Tensor:
        """Applies to each image the transform of its class in the buffers; see `StepDraws.augmented`."""
        if not self._operations:
            return images
        group = self._group if label is None else torch.full((len(images),), label, device=images.device)
        return augment.apply_everywhere(images, self._op[group], self._u[group], self._operations)

    @torch.no_grad()
    def load(self, iteration: int) -> None:
        """Copies an iteration's draws into the buffers."""
        draws = LazyDraws(self._run, iteration)
        self.iteration = iteration
        self.real.copy_(draws.real)
        if draws.transforms is not None:
            self._op.copy_(draws.transforms.op, non_blocking=True)
            self._u.copy_(draws.transforms.u, non_blocking=True)
        assert draws.matching.network is self.matching.network, "the source draws its network in place"
        self._accuracy.copy_(torch.as_tensor(draws.matching.accuracy))
        if self._frequencies is not None:
            self._frequencies.copy_(draws.frequencies, non_blocking=True)
        if self._pretrained is not None:
            drawn = [*draws.pretrained.parameters(), *draws.pretrained.buffers()]
            torch._foreach_copy_([*self._pretrained.parameters(), *self._pretrained.buffers()], drawn)


class CapturedStep:
    """A step of a run on fixed buffers.

    Attributes:
        draws: the buffers.
    """

    def __init__(self, run: Run, terms: Mapping[str, Term], optimiser: ImageOptimiser) -> None:
        """Allocates the buffers.

        Raises:
            ValueError: for a run whose steps do not have fixed addresses and shapes.
        """
        self._run, self._terms, self._optimiser = run, terms, optimiser
        self.draws = BufferedDraws(run)
        self._recording: Recording | None = None

    def load(self, iteration: int) -> None:
        """Copies an iteration's draws into the buffers."""
        self.draws.load(iteration)

    def compute(self) -> None:
        """Computes the step from the buffers: losses, gradient, update of the images."""
        batch = StepBatch(self._run, self.draws)
        config = self._run.config
        losses = [term.weight(config) * term.loss(batch).sum() for term in self._terms.values()]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), self._run.images)
        self._optimiser.step(gradient)

    def record(self) -> bool:
        """Records `compute` as a CUDA graph, with the draws in the buffers; images and momentum are unchanged.

        Returns:
            False, with one warning, if the step cannot be recorded or the recording differs from `compute`.
        """
        images = self._run.images
        if self._optimiser.velocity is None:
            # otherwise the first step would create it, inside the recording; zeros do not change the update
            self._optimiser.velocity = torch.zeros_like(images)
        self._recording = recorded(
            self.compute, [images], state=[self._optimiser.velocity], tolerance=TOLERANCE, what="the step"
        )
        return self._recording is not None

    def step(self, iteration: int) -> None:
        """Updates the images once."""
        self.load(iteration)
        if self._recording is not None:
            self._recording.replay()
        else:
            self.compute()


def captured_step(run: Run, terms: Mapping[str, Term], optimiser: ImageOptimiser) -> CapturedStep | None:
    """A recorded step of a run on a GPU, checked against the plain one.

    Returns:
        None if steps cannot be recorded, with one warning if the reason is in this run.
    """
    if not can_record(run.images.device):
        return None
    try:
        step = CapturedStep(run, terms, optimiser)
        step.load(0)
    except (RuntimeError, ValueError) as error:
        warn_no_graph("the step", error)
        return None
    return step if step.record() else None
