"""Distillation. The method is in ``methods``, ``terms`` and ``step``; ``captured`` is for GPUs, ``run`` is the loop."""

from iidlib.distillation.batch import StepBatch
from iidlib.distillation.captured import CapturedStep, captured_step
from iidlib.distillation.curve import progress
from iidlib.distillation.draws import LazyDraws, StepDraws
from iidlib.distillation.finished import save_pictures
from iidlib.distillation.methods import METHODS, Method
from iidlib.distillation.optimisers import ImageOptimiser, class_sweep, joint
from iidlib.distillation.run import DistillResult, distill, finished_run, pool_bar
from iidlib.distillation.start import starting_from
from iidlib.distillation.step import Distillation, check_dataset
from iidlib.distillation.stopping import Stopped
from iidlib.distillation.terms import TERMS, Term

__all__ = [
    "METHODS", "TERMS", "CapturedStep", "DistillResult", "Distillation", "ImageOptimiser", "LazyDraws", "Method",
    "StepBatch", "StepDraws", "Stopped", "Term", "captured_step", "check_dataset", "class_sweep", "distill",
    "finished_run", "joint", "pool_bar", "progress", "save_pictures", "starting_from",
]  # fmt: skip
