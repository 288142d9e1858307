"""Detection of terms and images that diverge, with advice on the setting that most likely made them."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from iidlib.distillation.draws import Run
from iidlib.distillation.terms import what_to_lower
from iidlib.features import NetworkQueue
from iidlib.networks import Network
from iidlib.training import range_exceeded
from iidlib.training.outcome import RUN_AWAY

__all__ = ["check_finite", "remedy", "warn_of_range"]

logger = logging.getLogger("iidlib")


def check_finite(run: Run, parts: Mapping[str, Tensor], iteration: int) -> None:
    """Checks the terms of an iteration, before the images are updated.

    Raises:
        FloatingPointError: if a term is not finite; the message names the setting to change.
    """
    for name, part in parts.items():
        if not bool(part.isfinite()):
            at = f"at iteration {iteration}"
            if not bool(torch.isfinite(run.images).all()):
                at = f"before iteration {iteration}, and so are the images"
            advice = _remedy_of(run, name)
            raise FloatingPointError(f"the term {name!r} is {float(part)} {at}; {advice}")


def _remedy_of(run: Run, name: str) -> str:
    """Advice on the setting that most likely made a term diverge: that of networks, images, or the term itself."""
    config = run.config
    exceeded = range_exceeded(run.images, run.real.spec)
    if _queue_has_run_away(run):
        return f"networks of the queue have diverged: lower queue.lr (now {config.queue.lr:g})"
    seen = name == "cc" or run.source.from_pool  # with this source every term uses networks of the pool
    if seen and run.pool and any(map(_has_run_away, run.pool.networks)):
        return f"networks of the pool have diverged: lower pool.lr (now {config.pool.lr:g})"
    if exceeded:
        return f"the images reach {exceeded[0]:.3g} where pictures reach {exceeded[1]:.3g}: {remedy(run)}"
    if name == "cc" and config.match.cc_form == "exp":
        return f"its exponent overflows: lower match.cc_alpha (now {config.match.cc_alpha:g})"
    return what_to_lower(config, run.terms, name)


def remedy(run: Run) -> str:
    """Advice on the setting that most likely made the images diverge."""
    if _queue_has_run_away(run):
        return f"networks of the queue have diverged: lower queue.lr (now {run.config.queue.lr:g})"
    return what_to_lower(run.config, run.terms)


def _queue_has_run_away(run: Run) -> bool:
    return isinstance(run.source, NetworkQueue) and any(map(_has_run_away, run.source.networks))


def _has_run_away(network: Network) -> bool:
    return not all(bool((weights.detach().abs() < RUN_AWAY).all()) for weights in network.parameters())


def warn_of_range(run: Run) -> None:
    """Warns, with the likely cause, if the images lie orders of magnitude outside the range of pictures."""
    if exceeded := range_exceeded(run.images, run.real.spec):
        logger.warning(
            "the images reach %.3g where pictures reach %.3g, so they represent the classes poorly: %s, then "
            "distil again", *exceeded, remedy(run),
        )  # fmt: skip
