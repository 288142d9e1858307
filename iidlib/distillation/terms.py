"""The terms of the objectives, each a row of ``TERMS``.

A term of your own is a function from a `StepBatch` to one value a class, entered in ``TERMS`` with its weight, and
named in a row of ``methods.METHODS``; the loop needs no change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from iidlib import losses
from iidlib.config import RunConfig
from iidlib.distillation.batch import StepBatch

__all__ = ["TERMS", "Term"]


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


def _mean_term(batch: StepBatch) -> Tensor:
    return losses.mean_matching_to(batch.real_mean, batch.syn_features)  # [C, D], [C, n, D] -> [C]


def _cm_term(batch: StepBatch) -> Tensor:
    return losses.covariance_matching_to(batch.real_covariance, batch.syn_fmap)  # [C, K, K], [C, n, K, P] -> [C]


def _cc_term(batch: StepBatch) -> Tensor:
    match, features = batch.config.match, batch.pretrained_syn_features  # [C, n, D]
    measure = partial(losses.class_centralization, form=match.cc_form, alpha=match.cc_alpha, beta=match.cc_beta)
    if match.cc_scaling == "released":
        return measure(features)
    if match.cc_scaling == "per_image":
        return measure(features) * (10 / batch.config.ipc)
    scatter = batch.pretrained_real_scatter  # [C]
    known = scatter > 0  # a class of one real image has no scatter to compare with; it asks for nothing
    unit = torch.where(known, scatter, 1).sqrt()
    return torch.where(known, measure(features / unit[:, None, None]) / features.shape[1], 0)  # [C]


def _ce_term(batch: StepBatch) -> Tensor:
    return batch.accuracy * losses.class_cross_entropy(batch.syn_logits)  # [C, n, C] -> [C]


TERMS: dict[str, Term] = {
    "mean": Term(_mean_term, weight=lambda config: 1.0),
    "cm": Term(_cm_term, weight=lambda config: config.match.cm, needs_pairs=True),
    "cc": Term(_cc_term, weight=lambda config: config.match.cc, needs_pairs=True, needs_pool=True),
    "ce": Term(_ce_term, weight=lambda config: config.match.ce),
}
"""The terms of the objectives, by the name under which they are logged."""
