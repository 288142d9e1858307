"""The terms of the objectives, each a row of ``TERMS``.

A term of your own is a function from a `StepBatch` to one value a class, entered in ``TERMS`` with its weight, and
named in a row of ``methods.METHODS``; the loop needs no change.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from iidlib import losses
from iidlib.config import RunConfig, preset
from iidlib.config.uses import WEIGHTS
from iidlib.distillation.batch import StepBatch
from iidlib.errors import InputError

__all__ = ["TERMS", "Term", "check_terms", "what_to_lower"]


@dataclass(frozen=True)
class Term:
    """A term of the objective."""

    loss: Callable[[StepBatch], Tensor]
    """One value a class, [C], before the weight."""
    weight: Callable[[RunConfig], float]
    """Its weight under given settings."""
    needs_pairs: bool = False
    """It relates images of a class to each other, so it is zero, and left out, with one synthetic image a class
    (mosaics of several tiles are several)."""
    needs_pool: bool = False
    """It reads a pretrained network (``StepBatch.pretrained``)."""
    needs_trained: bool = False
    """It is weighted by the accuracy of the matching network, so it is zero, and left out, under random networks."""


def _mean_term(batch: StepBatch) -> Tensor:
    return losses.mean_matching_to(batch.real_mean, batch.syn_features)  # [C, D], [C, n, D] -> [C]


def _cm_term(batch: StepBatch) -> Tensor:
    last = losses.covariance_matching_to(batch.real_covariance, batch.syn_fmap)  # [C, K, K], [C, n, K, P] -> [C]
    for real, syn in batch.earlier_fmaps:  # [C, N, K, P'], [C, n, K, P']
        positions = batch.syn_fmap.shape[3] / syn.shape[3]  # a covariance sums over positions, of which these have more
        last = last + positions**2 * losses.covariance_matching(real, syn, batch.real_mask)
    return last


def _cc_term(batch: StepBatch) -> Tensor:
    match, features = batch.config.match, batch.pretrained_syn_features  # [C, n, D]
    measure = partial(losses.class_centralization, form=match.cc_form, alpha=match.cc_alpha, beta=match.cc_beta)
    if match.cc_scaling == "released":
        return measure(features)
    if match.cc_scaling == "per_image":
        return measure(features) * (10 / batch.config.ipc)
    scatter = batch.pretrained_real_scatter  # [C]
    known = scatter > 0  # one real image, or copies of it, have no scatter to compare with; they ask for nothing
    unit = torch.where(known, scatter, 1).sqrt()
    return torch.where(known, measure(features / unit[:, None, None]) / features.shape[1], 0)  # [C]


def _ce_term(batch: StepBatch) -> Tensor:
    return batch.accuracy * losses.class_cross_entropy(batch.syn_logits)  # [C, n, C] -> [C]


def _mmd_term(batch: StepBatch) -> Tensor:
    real, syn, mask = batch.real_features, batch.syn_features, batch.real_mask
    scatter = losses.scatter(real, mask)  # [C]
    scatter = torch.where(scatter > 0, scatter, 1)  # one real image, or copies of it, have none
    if batch.config.match.mmd_form == "gaussian":
        return losses.kernel_distance(real, syn, scatter, mask)
    return losses.characteristic_distance(real, syn, scatter, batch.frequencies, mask)


TERMS: dict[str, Term] = {
    "mean": Term(_mean_term, weight=lambda config: config.match.mean),
    "cm": Term(_cm_term, weight=lambda config: config.match.cm, needs_pairs=True),
    "cc": Term(_cc_term, weight=lambda config: config.match.cc, needs_pairs=True, needs_pool=True),
    "ce": Term(_ce_term, weight=lambda config: config.match.ce, needs_trained=True),
    "mmd": Term(_mmd_term, weight=lambda config: config.match.mmd),
}
"""The terms of the objectives, by the name under which they are logged."""


def check_terms(config: RunConfig, terms: Collection[str]) -> None:
    """Finds out whether the terms in use can be computed under given settings.

    Raises:
        InputError: for blocks that the matching network does not have, what cached statistics do not hold, or real
            images of which one alone is looked at, which has no scatter to measure others by.
    """
    match = config.match
    relative = "cc" in terms and match.cc_scaling == "relative"
    for key, needed in (("batch_real", relative or "mmd" in terms), ("cc_real", relative)):
        if needed and getattr(match, key) < 2:
            of = "match.cc_scaling=relative" if relative else "match.mmd"
            raise InputError(f"match.{key} must be 2 or more where {of} measures the scatter of real images, got 1")
    beyond: dict[str, float] = {"match.cm_blocks": match.cm_blocks} if "cm" in terms and match.cm_blocks > 1 else {}
    depth = match.network.removeprefix("convnet").partition("-")[0]
    if beyond and match.network.startswith("convnet"):
        if depth.isdigit() and match.cm_blocks > int(depth):  # a name that is none is told where networks are built
            raise InputError(
                f"match.cm_blocks must be at most {depth}, as {match.network} has blocks; got {match.cm_blocks}"
            )
    elif beyond:
        raise InputError(f"match.cm_blocks={match.cm_blocks} needs a ConvNet; {match.network} has no such blocks")
    if "mmd" in terms:
        beyond["match.mmd"] = match.mmd
    if beyond and match.statistics == "cached":
        told = " and ".join(f"{key}={value:g}" for key, value in beyond.items())
        without = " ".join(f"{key}={1 if key == 'match.cm_blocks' else 0}" for key in beyond)
        raise InputError(
            f"match.statistics=cached holds means and covariances of the last block alone, {told} "
            f"{'asks' if len(beyond) == 1 else 'ask'} for more; set {without}, or leave match.statistics at fresh"
        )


def what_to_lower(config: RunConfig, terms: Collection[str], suspect: str = "") -> str:
    """Advice for images that run away: weights raised far above the method's own, that of a suspect, and the step size.

    Args:
        config: the settings of the run.
        terms: in use, by name.
        suspect: a term that is named whatever its weight.
    """
    usual = preset(config.method, config.dataset, config.ipc, config.scale).match
    told = []
    for key in WEIGHTS:
        name = key.removeprefix("match.")
        weight, own = getattr(config.match, name), getattr(usual, name)
        if name in terms and weight > 10 * own:
            told.append(f"{key} (now {weight:g}, usually {own:g})")
        elif name == suspect:
            told.append(f"{key} (now {weight:g})")
    return f"lower {' or '.join([*told, f'syn.lr (now {config.syn.lr:g})'])}"
