"""Optimisers of the images: one step for all images (DM), or one step per class (IDM).

The released code of IDM takes an optimiser step with momentum after each class, on the tensor of all images: in the
step of one class, all others keep moving with their velocity. The gradient of a class depends only on its own images,
so a whole sweep over the classes has a closed form, and all classes can be updated at once. With C classes, momentum m
and learning rate r, a class with gradient g at its own step has ::

    velocity <- m^C velocity + g
    image    <- image - r (1 - m^C) / (1 - m) velocity

at its own step in the next sweep. When the sweep ends, class p (from 0 to C-1) has taken C - p of those C steps;
`ImageOptimiser.images_after_sweep` returns the images at that moment. With ten classes or more this is gradient descent
at the learning rate r / (1 - m), up to a thousandth.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from iidlib.config import SynConfig

__all__ = ["ImageOptimiser", "ImageOptimiserFactory", "class_sweep", "joint"]


class ImageOptimiser:
    """Gradient descent with momentum on the images, in place.

    Attributes:
        images: the images, sorted by class, [C*n, K, H, W].
        velocity: velocity of the images, [C*n, K, H, W]; None before the first step.
    """

    def __init__(
        self, images: Tensor, *, lr: float, momentum: float, step_scale: float, lookahead: Tensor | None = None
    ) -> None:
        """Creates the optimiser, without velocity.

        Args:
            images: the images to update.
            lr: the learning rate.
            momentum: fraction of the velocity that is kept from step to step.
            step_scale: length of a step, in units of ``lr * velocity``.
            lookahead: distance of the images of each class from where they are when a sweep ends, in units of
                ``lr * velocity``, [C]; None for zero.
        """
        self.images = images
        self.velocity: Tensor | None = None
        self._lr, self._momentum, self._step_scale, self._lookahead = lr, momentum, step_scale, lookahead

    def restrict(self, classes: range, of: int) -> None:
        """Updates the images of some classes only, before the first step.

        Args:
            classes: the classes.
            of: number of all classes.
        """
        per_class = len(self.images) // of
        self.images = self.images.detach()[classes.start * per_class : classes.stop * per_class]
        if self._lookahead is not None:
            self._lookahead = self._lookahead[classes.start : classes.stop]

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Updates the images, given the gradient at them, [C*n, K, H, W]."""
        if self.velocity is None:
            self.velocity = gradient.clone()
        else:
            self.velocity.mul_(self._momentum).add_(gradient)
        self.images.add_(self.velocity, alpha=-self._lr * self._step_scale)

    @torch.no_grad()
    def images_after_sweep(self) -> Tensor:
        """A copy of the images as they are at the end of a sweep of an optimiser that steps class by class."""
        if self._lookahead is None or self.velocity is None:
            return self.images.clone()
        per_class = len(self.images) // len(self._lookahead)
        per_image = self._lookahead.to(self.images).repeat_interleave(per_class)  # [C*n]
        return self.images + self._lr * per_image[:, None, None, None] * self.velocity  # [C*n, K, H, W]

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        return {"images": self.images} | ({} if self.velocity is None else {"momentum": self.velocity})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state from a checkpoint, in place, since a recorded step holds the addresses of its tensors.

        A state without velocity, from before the first step, sets an existing velocity to zero: the next step is then
        the same as without one.
        """
        self.images.copy_(state["images"])
        if self.velocity is None:
            self.velocity = state["momentum"].to(self.images.device).clone() if "momentum" in state else None
        elif "momentum" in state:
            self.velocity.copy_(state["momentum"])
        else:
            self.velocity.zero_()


ImageOptimiserFactory = Callable[[Tensor, SynConfig, int], ImageOptimiser]
"""Factory of an image optimiser, from images sorted by class, their settings and the number of classes."""


def joint(images: Tensor, syn: SynConfig, classes: int) -> ImageOptimiser:
    """SGD with momentum, one step per iteration for all images, as in DM."""
    return ImageOptimiser(images, lr=syn.lr, momentum=syn.momentum, step_scale=1.0)


def class_sweep(images: Tensor, syn: SynConfig, classes: int) -> ImageOptimiser:
    """SGD with momentum, one step per class and iteration, as in IDM (see above). Explained in chapter 06."""
    m = syn.momentum
    left = torch.arange(classes, 0, -1, dtype=torch.float64)  # [C], steps of class p after its gradient
    return ImageOptimiser(
        images,
        lr=syn.lr,
        momentum=m**classes,
        step_scale=(1 - m**classes) / (1 - m),
        lookahead=(m**left - m**classes) / (1 - m),
    )
