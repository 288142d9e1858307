"""Draws of an ensemble's steps on the device: copied for many steps at once, read by each step at a counter.

A step of an ensemble is recorded once and replayed, so what changes from step to step must come from buffers: which
images each network sees, their augmentation, their CutMix. Copied step by step, these would be several small transfers
for each launch of a recording. Here a whole epoch's draws (or as many steps of it as fit) are packed into one block and
copied at once, and a step selects its row with a counter that is on the device too and that the step itself increments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iidlib import augment
from iidlib.engine.staging import Staging
from iidlib.training import cutmix

__all__ = ["DrawnSteps", "StepDraws"]

BLOCK_BYTES = 2**25
"""Largest block of draws, unless a single step has more; it is held three times: twice on the host, once on the device.
"""


@dataclass(frozen=True, eq=False)
class StepDraws:
    """Draws of one step for K networks with b images each, in S stages of augmentation."""

    index: Tensor
    """Indices of the images, int64 [K, b]."""
    op: Tensor
    """Operation of each stage, int64 [S, K]; all images of a network share it."""
    u: Tensor
    """Uniform numbers of each stage, float32 [S, K, b, 3]."""
    partner: Tensor
    """CutMix: index of each image's partner in the batch, int64 [K, b]; [K, 0] without CutMix."""
    box: Tensor
    """CutMix: rectangle of each network's batch, int64 [K, 4]; [K, 0] without CutMix."""
    share: Tensor
    """CutMix: weight of an image's own label, float32 [K, 1]; [K, 0] without CutMix."""

    def of_network(self, number: int) -> "StepDraws":
        """The part of one network, as views with an axis of length 1 in place of K."""
        one = slice(number, number + 1)
        return StepDraws(
            self.index[one], self.op[:, one], self.u[:, one], self.partner[one], self.box[one], self.share[one]
        )


class DrawnSteps:
    """Draws of consecutive steps, one row per step, and the counter of the current one.

    Attributes:
        size: images per step and network.
        limit: largest number of steps that can be loaded at once.
        counter: row of the current step, int64 [1], on the device. A recording must restore it like any other state.
    """

    def __init__(
        self,
        networks: int,
        size: int,
        steps: int,
        stages: Sequence[Sequence[str]],
        device: torch.device,
        *,
        mixed: float = 0.0,
        side: int = 0,
    ) -> None:
        """Allocates the buffers.

        Args:
            networks: K.
            size: images per step and network, b.
            steps: number of steps that are drawn at once, if their block is not too large.
            stages: operations of each stage of augmentation.
            device: device of the buffers.
            mixed: probability that a batch is mixed by CutMix.
            side: side of the images in pixels, for CutMix.
        """
        self.size, self._stages, self._mixed, self._side = size, stages, mixed, side
        boxed = 1 if mixed else 0
        self._shapes: dict[str, tuple[int, ...]] = {
            "index": (networks, size),
            "op": (len(stages), networks),
            "u": (len(stages), networks, size, 3),
            "partner": (networks, size * boxed),
            "box": (networks, 4 * boxed),
            "share": (networks, boxed),
        }
        width = sum(math.prod(shape) for shape in self._shapes.values())
        self.limit = max(1, min(steps, BLOCK_BYTES // (4 * width)))
        # 32 bits hold an index of an image as well as the bits of a float32
        self._rows = torch.zeros(self.limit, width, dtype=torch.int32, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self._staging = Staging(self._rows)

    def load(self, orders: Tensor, generators: Sequence[torch.Generator]) -> int:
        """Draws the next steps and sets the counter to the first; does not wait for the device.

        Args:
            orders: images of these steps, int64 [K, n*b] on the CPU, for n steps, at most `limit`.
            generators: random source of each network; drawn from in the order of the steps, as `training.fit` does.

        Returns:
            The number of steps, n.
        """
        steps = orders.shape[1] // self.size
        host = self._views(self._staging.block()[:steps])
        host.index.copy_(orders.unflatten(1, (steps, self.size)).transpose(0, 1))  # [n, K, b]
        for k, generator in enumerate(generators):
            for step in range(steps):
                for stage, operations in enumerate(self._stages):
                    drawn = augment.sample(operations, self.size, generator, shared_op=True)
                    host.op[step, stage, k] = drawn.op[0]
                    host.u[step, stage, k] = drawn.u
                if self._mixed:
                    mix = cutmix.sample(self.size, self._side, self._mixed, generator)
                    host.partner[step, k] = mix.partner
                    host.box[step, k] = mix.box
                    host.share[step, k] = mix.share
        self._staging.send(steps)
        self.counter.zero_()
        return steps

    def current(self) -> StepDraws:
        """Draws of the step at the counter; a fixed sequence of kernels."""
        row = self._views(self._rows.index_select(0, self.counter))
        return StepDraws(
            row.index[0].long(), row.op[0].long(), row.u[0], row.partner[0].long(), row.box[0].long(), row.share[0]
        )

    def advance(self) -> None:
        """Moves the counter to the next row; from the last one to the first, so that it is always a valid row."""
        self.counter.add_(1).remainder_(self.limit)

    def _views(self, rows: Tensor) -> StepDraws:
        """Views of rows [n, W] by name, each [n, ...]; whole numbers as int32."""
        parts = rows.split([math.prod(shape) for shape in self._shapes.values()], dim=1)
        shaped = zip(self._shapes.items(), parts, strict=True)
        views = {name: part.unflatten(1, shape) for (name, shape), part in shaped}
        return StepDraws(**views | {name: views[name].view(torch.float32) for name in ("u", "share")})
