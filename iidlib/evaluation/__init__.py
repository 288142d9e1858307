"""Evaluation: accuracy of networks trained on a set (``run``), baselines of chosen real images, measures of sets."""

from iidlib.evaluation.coresets import choose, herding, k_center, random_baselines, random_real, real_images
from iidlib.evaluation.fitting import check_evaluation, dataset_for, untested
from iidlib.evaluation.interrupted import FinishedNetworks, FinishedRow
from iidlib.evaluation.measures import class_maps, compare, covariance_gap, mmd, project, spread
from iidlib.evaluation.provenance import check_protocol, cost_of, evaluation_config, made_by, origin_of, with_memory
from iidlib.evaluation.run import evaluate, evaluated, scores_of, summarize

__all__ = [
    "FinishedNetworks", "FinishedRow", "check_evaluation", "check_protocol", "choose", "class_maps", "compare",
    "cost_of", "covariance_gap", "dataset_for", "evaluate", "evaluated", "evaluation_config", "herding", "k_center",
    "made_by", "mmd", "origin_of", "project", "random_baselines", "random_real", "real_images", "scores_of",
    "spread", "summarize", "untested", "with_memory",
]  # fmt: skip
