"""The terms of the objectives, each a row of ``TERMS``.

To add a term, write a function from a `StepBatch` to one value per class, enter it in ``TERMS`` with its weight, and
name it in a row of ``methods.METHODS``; the loop needs no change.
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
    """Unweighted loss, one value per class, [C]."""
    weight: Callable[[RunConfig], float]
    """Weight of the term under given settings."""
    needs_pairs: bool = False
    """Whether the term relates images of a class to each other. It is then zero, and left out, with one synthetic image
    per class (a mosaic counts as its tiles)."""
    needs_pool: bool = False
    """Whether the term uses a pretrained network (``StepBatch.pretrained``)."""
    needs_trained: bool = False
    """Whether the matching network's accuracy weights the term. It is then zero, and left out, for random networks."""


def _mean_term(batch: StepBatch) -> Tensor:
    return losses.mean_matching_to(batch.real_mean, batch.syn_features)  # [C, D], [C, n, D] -> [C]


def _cm_term(batch: StepBatch) -> Tensor:
    loss = losses.covariance_matching_to(batch.real_covariance, batch.syn_fmap)  # [C, K, K], [C, n, K, P] -> [C]
    for real, syn in batch.earlier_fmaps:  # [C, N, K, P'], [C, n, K, P']
        scale = batch.syn_fmap.shape[3] / syn.shape[3]  # P / P', because a covariance sums over positions
        loss = loss + scale**2 * losses.covariance_matching(real, syn, batch.real_mask)  # [C]
    return loss


def _cc_term(batch: StepBatch) -> Tensor:
    match, features = batch.config.match, batch.pretrained_syn_features  # [C, n, D]
    measure = partial(losses.class_centralization, form=match.cc_form, alpha=match.cc_alpha, beta=match.cc_beta)
    if match.cc_scaling == "released":
        return measure(features)  # [C]
    if match.cc_scaling == "per_image":
        return measure(features) * (10 / batch.config.ipc)  # [C]
    scatter = batch.pretrained_real_scatter  # [C]
    scattered = scatter > 0  # [C]; false for a single real image or copies of one, where the term is zero
    unit = torch.where(scattered, scatter, 1).sqrt()  # [C]
    return torch.where(scattered, measure(features / unit[:, None, None]) / features.shape[1], 0)  # [C]


def _ce_term(batch: StepBatch) -> Tensor:
    return batch.accuracy * losses.class_cross_entropy(batch.syn_logits, batch.classes)  # [C, n, C] -> [C]


def _mmd_term(batch: StepBatch) -> Tensor:
    real, syn, mask = batch.real_features, batch.syn_features, batch.real_mask  # [C, N, D], [C, n, D], [C, N] or None
    scatter = losses.scatter(real, mask)  # [C]
    scatter = torch.where(scatter > 0, scatter, 1)  # [C]; zero for a single real image or copies of one
    if batch.config.match.mmd_form == "gaussian":
        return losses.kernel_distance(real, syn, scatter, mask)  # [C]
    return losses.characteristic_distance(real, syn, scatter, batch.frequencies, mask)  # [C]


TERMS: dict[str, Term] = {
    "mean": Term(_mean_term, weight=lambda config: config.match.mean),
    "cm": Term(_cm_term, weight=lambda config: config.match.cm, needs_pairs=True),
    "cc": Term(_cc_term, weight=lambda config: config.match.cc, needs_pairs=True, needs_pool=True),
    "ce": Term(_ce_term, weight=lambda config: config.match.ce, needs_trained=True),
    "mmd": Term(_mmd_term, weight=lambda config: config.match.mmd),
}
"""Terms of the objectives, by their names in logs."""


def check_terms(config: RunConfig, terms: Collection[str]) -> None:
    """Checks whether the terms in use can be computed under given settings.

    Raises:
        InputError: for blocks that the matching network does not have, statistics that are not cached, or a single real
            image per class where its scatter is needed.
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
        if depth.isdigit() and match.cm_blocks > int(depth):  # invalid names are reported elsewhere
            raise InputError(
                f"match.cm_blocks must be at most {depth}, the number of blocks of {match.network}, "
                f"got {match.cm_blocks}"
            )
    elif beyond:
        raise InputError(f"match.cm_blocks={match.cm_blocks} needs a ConvNet; {match.network} has no such blocks")
    if "mmd" in terms:
        beyond["match.mmd"] = match.mmd
    if beyond and match.statistics == "cached":
        settings = " and ".join(f"{key}={value:g}" for key, value in beyond.items())
        without = " ".join(f"{key}={1 if key == 'match.cm_blocks' else 0}" for key in beyond)
        raise InputError(
            f"match.statistics=cached holds only means and covariances of the last block, but {settings} "
            f"{'needs' if len(beyond) == 1 else 'need'} more; set {without}, or use match.statistics=fresh"
        )


def what_to_lower(config: RunConfig, terms: Collection[str], suspect: str = "") -> str:
    """Advice for images that diverge: lower weights far above the method's defaults, a suspect's, or the learning rate.

    Args:
        config: the settings of the run.
        terms: names of the terms in use.
        suspect: a term to name whatever its weight.
    """
    usual = preset(config.method, config.dataset, config.ipc, config.scale).match
    candidates = []
    for key in WEIGHTS:
        name = key.removeprefix("match.")
        weight, default = getattr(config.match, name), getattr(usual, name)
        if name in terms and weight > 10 * default:
            candidates.append(f"{key} (now {weight:g}, usually {default:g})")
        elif name == suspect:
            candidates.append(f"{key} (now {weight:g})")
    return f"lower {' or '.join([*candidates, f'syn.lr (now {config.syn.lr:g})'])}"
