"""A distillation step recorded as a CUDA graph: hundreds of small kernels with a single launch.

On a GPU the kernels of a step take microseconds, less than Python needs to launch them. A recorded step needs fixed
addresses and shapes and must not synchronise with the device, so it is split in two: `BufferedDraws.load` draws an
iteration's images, augmentation and networks into fixed buffers, exactly as a step without a graph would draw them, and
`CapturedStep.compute`, which is recorded, does everything from looking up the real images to the update of the images.

What is drawn on the CPU is drawn one iteration ahead, in another thread, and copied to the device at once (except
frequencies, which few settings use). A logged
iteration has a recording of its own, which also computes what is logged.

Both halves run on any device, where tests compare them with a plain step; only the recording needs CUDA.
"""

import copy
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from iidlib import augment
from iidlib.augment_ops import apply_drawn
from iidlib.distillation.draws import (
    Run,
    frequencies_at,
    pretrained_at,
    real_batch,
    transforms_at,
)
from iidlib.distillation.gradient import Logged, objective_gradient
from iidlib.distillation.optimisers import ImageOptimiser
from iidlib.distillation.terms import Term
from iidlib.engine import (
    Fields,
    LoadedAhead,
    Packed,
    Recording,
    can_record,
    deterministic,
    precision,
    recorded,
    warn_no_graph,
)
from iidlib.features import Drawn, FixedNetwork
from iidlib.networks import Network

__all__ = ["BufferedDraws", "CapturedStep", "captured_step"]

TOLERANCE = 1e-2
"""Largest relative difference, in norm, between an update by the recording and the same update without it."""


class _Filling:
    """Draws an iteration's values on the CPU. It runs in a thread and does not keep the run alive."""

    def __init__(self, run: Run, fixed: FixedNetwork) -> None:
        self._run, self._fixed = run, fixed

    def __call__(self, iteration: int, draws: Packed) -> None:
        draws["real"].copy_(real_batch(self._run, iteration).index)
        if (transforms := transforms_at(self._run, iteration)) is not None:
            draws["op"].copy_(transforms.op)
            draws["u"].copy_(transforms.u)
        self._fixed.fill(iteration, draws)


class BufferedDraws:
    """An iteration's draws, in buffers with the same addresses and shapes for all iterations.

    Attributes:
        iteration: the iteration whose draws are in the buffers.
        counts: number of real images per class, on the CPU.
        fixed: the matching networks.
        buffers: what was drawn on the CPU, on the device.
    """

    def __init__(self, run: Run, iteration: int = 0) -> None:
        """Allocates the buffers.

        Args:
            run: the run, which these draws do not keep alive.
            iteration: the first iteration to be loaded.

        Raises:
            ValueError: for a run whose steps do not have fixed addresses and shapes.
        """
        if run.statistics is not None:
            raise ValueError("cached statistics have no real images to load")
        if run.pool is not None and len({network.name for network in run.pool.networks}) > 1:
            raise ValueError("a pool of several architectures has no fixed shapes")
        self.counts = run.real.counts.clamp(max=run.config.match.batch_real)  # [C]
        if not bool((self.counts == self.counts[0]).all()):
            raise ValueError("classes of unequal size have no fixed shapes")
        fixed = run.source.fixed()
        if fixed is None:
            raise ValueError("the networks of this source have no fixed address")
        self._run, self.iteration, self.fixed = weakref.proxy(run), iteration, fixed
        self._pretrained: Network | None = None
        if run.pool is not None and not run.source.from_pool:
            self._pretrained = copy.deepcopy(run.pool.networks[0])
        self._frequencies: Tensor | None = None
        self._operations = () if run.augmentation == "none" else augment.parse_strategy(run.augmentation)
        classes, device = run.real.num_classes, run.images.device
        fields: Fields = {
            "real": ((int(self.counts.sum()),), torch.int64),
            "op": ((classes,), torch.int64),
            "u": ((classes, 3), torch.float32),
            **fixed.fields,
        }
        self._loaded = LoadedAhead(fields, _Filling(weakref.proxy(run), fixed), device)
        self.buffers = self._loaded.buffers

    @property
    def matching(self) -> Drawn:
        """Matching network of the iteration, and its accuracy."""
        return Drawn(self.fixed.network, self.fixed.accuracy)

    @property
    def pretrained(self) -> Network:
        """Network that the weights of the iteration's pretrained network are copied into."""
        if self._run.source.from_pool:
            return self.fixed.network
        assert self._pretrained is not None, "a term that reads `pretrained` must set needs_pool"
        return self._pretrained

    @property
    def frequencies(self) -> Tensor:
        """Frequencies for features, [F, D]; kept from their first use, which is before the recording."""
        if self._frequencies is None:
            # drawing the network again would overwrite weights that the step has already used
            self._frequencies = frequencies_at(self._run, self.iteration, self.fixed.network)
        return self._frequencies

    def real(self, classes: range) -> Tensor:
        """Augmented real images of some classes, sorted by class, [B, K, H, H]."""
        per_class = int(self.counts[0])
        index = self.buffers["real"][classes.start * per_class : classes.stop * per_class]  # [B]
        images = self._run.real.images_of(index).contiguous(memory_format=torch.channels_last)  # [B, K, H, H]
        return self.augmented(images, classes)

    def augmented(self, images: Tensor, classes: range) -> Tensor:
        """Applies to each image the transform of its class in the buffers; see `StepDraws.augmented`."""
        if not self._operations:
            return images
        per_class = len(images) // len(classes)
        op, u = (self.buffers[name][classes.start : classes.stop, None] for name in ("op", "u"))  # [C, 1], [C, 1, 3]
        op, u = op.expand(-1, per_class).flatten(), u.expand(-1, per_class, -1).flatten(0, 1)  # [B], [B, 3]
        return apply_drawn(images, op, u, self._operations, compiled=self._run.config.compute.compiled)

    @torch.no_grad()
    def load(self, iteration: int) -> None:
        """Brings an iteration's draws into the buffers."""
        self.iteration = iteration
        self._loaded.load(iteration)
        self.fixed.load(iteration)
        if self._frequencies is not None:
            self._frequencies.copy_(frequencies_at(self._run, iteration, self.fixed.network), non_blocking=True)
        if self._pretrained is not None:
            drawn = pretrained_at(self._run, iteration)
            torch._foreach_copy_(_tensors(self._pretrained), _tensors(drawn))

    def close(self) -> None:
        """Ends the thread that draws ahead."""
        self._loaded.close()


def _tensors(network: Network) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]


class CapturedStep:
    """A step of a run on fixed buffers. It does not keep the run alive, which owns it.

    Attributes:
        draws: the buffers.
    """

    def __init__(self, run: Run, terms: Mapping[str, Term], optimiser: ImageOptimiser, iteration: int = 0) -> None:
        """Allocates the buffers.

        Args:
            run: the run.
            terms: the terms of the objective.
            optimiser: optimiser of the run's images.
            iteration: the first iteration.

        Raises:
            ValueError: for a run whose steps do not have fixed addresses and shapes.
        """
        self._run: Run = weakref.proxy(run)
        self._terms, self._optimiser = terms, optimiser
        self.draws = BufferedDraws(run, iteration)
        if optimiser.velocity is None:
            # otherwise the first step would create it, inside the recording; zeros do not change the update
            optimiser.velocity = torch.zeros_like(optimiser.images)
        self._logged = torch.zeros(2, len(terms), device=run.images.device)  # values, norms of gradients
        self._recordings: dict[bool, Recording] = {}

    def load(self, iteration: int) -> None:
        """Copies an iteration's draws into the buffers."""
        self.draws.load(iteration)

    def compute(self, *, log: bool = False) -> None:
        """Computes the step from the buffers: losses, gradient, update of the images.

        Args:
            log: also compute the norm of each term's gradient, and keep what is logged in a buffer.
        """
        self.draws.fixed.gather(self.draws.buffers)
        gradient, logged = objective_gradient(self._run, self.draws, self._terms, self._run.groups, norms=log)
        if log:
            self._logged.copy_(torch.stack([*logged.values.values(), *logged.norms.values()]).view(2, -1))
        self._optimiser.step(gradient)

    def record(self) -> bool:
        """Records `compute` as CUDA graphs, with the draws in the buffers; images and momentum are unchanged.

        The training of a source's networks is recorded as well; if that fails, with a warning, it runs without.

        Returns:
            False, with one warning, if the step cannot be recorded or a recording differs from `compute`.
        """
        velocity = self._optimiser.velocity
        assert velocity is not None
        for log in (False, True):
            recording = recorded(
                lambda log=log: self.compute(log=log),  # type: ignore[misc]
                [self._optimiser.images],
                state=[velocity],
                tolerance=TOLERANCE,
                what="the logged step" if log else "the step",
            )
            if recording is None:
                return False
            self._recordings[log] = recording
        self.draws.fixed.record(self.draws.buffers)
        return True

    @property
    def recorded(self) -> bool:
        """Whether the step, the logged step, and the training of networks are all recorded."""
        return len(self._recordings) == 2 and self.draws.fixed.recorded

    @torch.no_grad()
    def step(self, iteration: int, *, log: bool = False) -> Logged | None:
        """Updates the images once.

        Returns:
            With `log`, the terms and the norms of their gradients on the CPU; the images are not updated if a term is
            not finite.
        """
        self.load(iteration)
        state = [self._optimiser.images, self._optimiser.velocity]
        before = [tensor.clone() for tensor in state if tensor is not None] if log else []
        if log in self._recordings:
            self._recordings[log].replay()
        else:
            with torch.enable_grad():
                self.compute(log=log)
        if not log:
            return None
        values, norms = self._logged.cpu()  # waits for the device
        if not bool(values.isfinite().all()):
            torch._foreach_copy_([tensor for tensor in state if tensor is not None], before)
        names = list(self._terms)
        return Logged(dict(zip(names, values, strict=True)), dict(zip(names, norms, strict=True)))

    def advance(self, iteration: int) -> None:
        """Advances the source of networks, after an update of the images."""
        self.draws.fixed.advance(iteration)

    def close(self) -> None:
        """Frees the recordings, and ends the thread that draws ahead."""
        self._recordings.clear()
        self.draws.close()


def captured_step(
    run: Run, terms: Mapping[str, Term], optimiser: ImageOptimiser, iteration: int = 0
) -> CapturedStep | None:
    """A recorded step of a run on a GPU, checked against the plain one.

    Args:
        run: the run.
        terms: the terms of the objective.
        optimiser: optimiser of the run's images.
        iteration: the first iteration.

    Returns:
        None if steps cannot be recorded, with one warning if the reason is in this run.
    """
    device = run.images.device
    if not can_record(device):
        return None
    with precision(device, run.config.compute.precision), deterministic(device):
        try:
            step = CapturedStep(run, terms, optimiser, iteration)
        except (RuntimeError, ValueError) as error:
            warn_no_graph("the step", error)
            return None
        try:
            step.load(iteration)
        except (RuntimeError, ValueError) as error:
            warn_no_graph("the step", error)
        else:
            if step.record():
                return step
    step.close()
    return None
