"""How images follow the gradient of the objective: all of them at once (DM), or class after class (IDM).

The released code of IDM takes an optimiser step after each class, on the tensor of all images, with momentum: while one
class has its turn, all others coast on their velocity. The gradient of a class depends on its own images alone, so a
whole sweep has a closed form, and no class waits for another. With C classes, momentum m and rate r, a class whose
gradient is g at its turn has ::

    velocity <- m^C velocity + g
    image    <- image - r (1 - m^C) / (1 - m) velocity

at its next turn. Class p, of 0 to C-1, has made C - p of those C steps when the sweep ends;
`ImageOptimiser.images_after_sweep` gives the images of that moment. With ten classes or more this is, but for a
thousandth, gradient descent at the rate r / (1 - m).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from iidlib.config import SynConfig

__all__ = ["ImageOptimiser", "ImageOptimiserFactory", "class_sweep", "joint"]


class ImageOptimiser:
    """Gradient descent with momentum on the images, in place.

    Attributes:
        images: [C*n, K, H, W], sorted by class.
        velocity: of the same shape; None before the first step.
    """

    def __init__(
        self, images: Tensor, *, lr: float, momentum: float, step_size: float, look_ahead: Tensor | None = None
    ) -> None:
        """Starts at the images, without velocity.

        Args:
            images: what is updated.
            lr: the learning rate.
            momentum: the fraction of the velocity that is kept at the next step.
            step_size: how many times ``lr * velocity`` the images move in a step.
            look_ahead: how many times ``lr * velocity`` the images of class p are ahead of where a sweep leaves them,
                [C]; None if they are not.
        """
        self.images = images
        self.velocity: Tensor | None = None
        self._lr, self._momentum, self._step_size, self._look_ahead = lr, momentum, step_size, look_ahead

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One update, from the gradient at the images."""
        if self.velocity is None:
            self.velocity = gradient.clone()
        else:
            self.velocity.mul_(self._momentum).add_(gradient)
        self.images.add_(self.velocity, alpha=-self._lr * self._step_size)

    @torch.no_grad()
    def images_after_sweep(self) -> Tensor:
        """A copy of the images as an optimiser that takes one class after the other has them at the end of a sweep."""
        if self._look_ahead is None or self.velocity is None:
            return self.images.clone()
        per_image = self._look_ahead.to(self.images).repeat_interleave(len(self.images) // len(self._look_ahead))
        return self.images + self._lr * per_image[:, None, None, None] * self.velocity  # [C*n, K, H, W]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"images": self.images} | ({} if self.velocity is None else {"momentum": self.velocity})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state from a checkpoint."""
        self.images.copy_(state["images"])
        if "momentum" in state:
            self.velocity = state["momentum"].to(self.images.device).clone()


ImageOptimiserFactory = Callable[[Tensor, SynConfig, int], ImageOptimiser]
"""From images sorted by class, their settings and the number of classes."""


def joint(images: Tensor, syn: SynConfig, classes: int) -> ImageOptimiser:
    """One step an iteration for all images: SGD with momentum, as in DM."""
    return ImageOptimiser(images, lr=syn.lr, momentum=syn.momentum, step_size=1.0)


def class_sweep(images: Tensor, syn: SynConfig, classes: int) -> ImageOptimiser:
    """A step a class and iteration, on all images, as in IDM; see the module's equations. Explained in chapter 06."""
    m = syn.momentum
    left = torch.arange(classes, 0, -1, dtype=torch.float64)  # steps that class p makes after its gradient
    return ImageOptimiser(
        images,
        lr=syn.lr,
        momentum=m**classes,
        step_size=(1 - m**classes) / (1 - m),
        look_ahead=(m**left - m**classes) / (1 - m),
    )
