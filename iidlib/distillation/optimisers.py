"""How images follow the gradient of the objective: all of them at once (DM), or class after class (IDM).

The released code of IDM takes an optimiser step after each class, on the tensor of all images, with momentum: while one
class has its turn, all others coast on their velocity. The gradient of a class depends on its own images alone, so a
whole sweep has a closed form, and no class waits for another. With C classes, momentum m and rate r, a class whose
gradient is g at its turn has ::

    velocity <- m^C velocity + g
    image    <- image - r (1 - m^C) / (1 - m) velocity

at its next turn. Class p, of 0 to C-1, has made C - p of those C steps when the sweep ends; `Updater.settled` gives the
images of that moment. With ten classes or more this is, but for a thousandth, gradient descent at the rate r / (1 - m).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from iidlib.config import SynConfig

__all__ = ["Updater", "UpdaterFactory", "class_sweep", "joint"]


class Updater:
    """Gradient descent with momentum on the images, in place.

    Attributes:
        images: [C*n, K, H, W], sorted by class.
        velocity: of the same shape; None before the first step.
    """

    def __init__(self, images: Tensor, *, lr: float, decay: float, reach: float, ahead: Tensor | None = None) -> None:
        """Takes up the images.

        Args:
            images: what is updated.
            lr: the rate.
            decay: what is left of the velocity at the next step.
            reach: how many times the velocity the images move in a step, beside the rate.
            ahead: how many times of it class p is ahead of the moment that is reported, [C]; None for nowhere.
        """
        self.images = images
        self.velocity: Tensor | None = None
        self._lr, self._decay, self._reach, self._ahead = lr, decay, reach, ahead

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One update, from the gradient at the images."""
        self.velocity = gradient.clone() if self.velocity is None else self.velocity.mul_(self._decay).add_(gradient)
        self.images.add_(self.velocity, alpha=-self._lr * self._reach)

    @torch.no_grad()
    def settled(self) -> Tensor:
        """A copy of the images as an optimiser that takes its steps one by one has them now."""
        if self._ahead is None or self.velocity is None:
            return self.images.clone()
        per_class = self._ahead.to(self.images).repeat_interleave(len(self.images) // len(self._ahead))
        return self.images + self._lr * per_class[:, None, None, None] * self.velocity

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"images": self.images} | ({} if self.velocity is None else {"momentum": self.velocity})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a checkpoint's state."""
        self.images.copy_(state["images"])
        if "momentum" in state:
            self.velocity = state["momentum"].to(self.images.device).clone()


UpdaterFactory = Callable[[Tensor, SynConfig, int], Updater]
"""From images sorted by class, their settings and the number of classes."""


def joint(images: Tensor, syn: SynConfig, classes: int) -> Updater:
    """One step an iteration for all images: SGD with momentum, as in DM."""
    return Updater(images, lr=syn.lr, decay=syn.momentum, reach=1.0)


def class_sweep(images: Tensor, syn: SynConfig, classes: int) -> Updater:
    """A step a class and iteration, on all images, as in IDM; see the module's equations."""
    m = syn.momentum
    left = torch.arange(classes, 0, -1, dtype=torch.float64)  # steps that class p makes after its gradient
    return Updater(
        images,
        lr=syn.lr,
        decay=m**classes,
        reach=(1 - m**classes) / (1 - m),
        ahead=(m**left - m**classes) / (1 - m),
    )
