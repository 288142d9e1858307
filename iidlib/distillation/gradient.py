"""The gradient of the objective on the images, computed by groups of classes where memory requires it.

The objective is a sum over classes, and a class's terms depend on its own images only. So the gradient can be computed
for some classes at a time: each backward pass then holds the activations of these classes, not of all.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iidlib.distillation.batch import StepBatch
from iidlib.distillation.draws import Run, StepDraws
from iidlib.distillation.terms import Term

__all__ = ["Logged", "class_groups", "objective_gradient"]


class Logged(NamedTuple):
    """What is logged of an objective."""

    values: dict[str, Tensor]
    """Weighted terms by name, each summed over classes, []."""
    norms: dict[str, Tensor]
    """Norm of each term's own gradient on the images, by name, []; empty unless requested."""


def class_groups(classes: range, limit: int) -> tuple[range, ...]:
    """Groups of consecutive classes, as even as possible.

    Args:
        classes: the classes.
        limit: maximum number of classes in a group; 0 for one group of all.
    """
    count = -(-len(classes) // limit) if limit > 0 else 1
    edges = [len(classes) * number // count for number in range(count + 1)]
    return tuple(classes[first:last] for first, last in itertools.pairwise(edges))


def objective_gradient(
    run: Run, draws: StepDraws, terms: Mapping[str, Term], groups: Sequence[range], *, norms: bool = False
) -> tuple[Tensor, Logged]:
    """Gradient of an iteration's objective on the images of some classes, [C*ipc, K, H, W], and what is logged of it.

    Args:
        run: the run, with its settings and images.
        draws: the iteration's real images, augmentation and networks.
        terms: the terms of the objective.
        groups: groups of classes, in order; C is their number in all. Groups change the result by rounding only.
        norms: whether to compute the norm of each term's own gradient, which takes one more backward pass per term.
    """
    parts = []
    for classes in groups:
        images = run.images if len(classes) == run.real.num_classes else _images_of(run, classes)
        parts.append(_of_group(run, StepBatch(run, draws, classes, images), images, terms, norms))
    if len(parts) == 1:
        return parts[0]
    gradients, logged = zip(*parts, strict=True)
    return torch.cat(gradients), Logged(
        {name: torch.stack([part.values[name] for part in logged]).sum() for name in terms},
        {name: torch.stack([part.norms[name] for part in logged]).norm() for name in terms if norms},
    )


def _images_of(run: Run, classes: range) -> Tensor:
    """The images of some classes as a new leaf, which shares their memory."""
    ipc = run.config.ipc
    return run.images.detach()[classes.start * ipc : classes.stop * ipc].requires_grad_()


def _of_group(
    run: Run, batch: StepBatch, images: Tensor, terms: Mapping[str, Term], norms: bool
) -> tuple[Tensor, Logged]:
    losses = {name: term.weight(run.config) * term.loss(batch).sum() for name, term in terms.items()}
    sizes = {}
    if norms:
        for name, loss in losses.items():
            sizes[name] = torch.autograd.grad(loss, images, retain_graph=True)[0].norm()
    (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), images)
    return gradient, Logged({name: loss.detach() for name, loss in losses.items()}, sizes)
