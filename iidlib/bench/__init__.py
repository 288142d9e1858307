"""Speed, measured against a fixed loop over classes and the limits of the machine. No result depends on it."""

from iidlib.bench.baseline import PerClassLoop, PlainTraining, plain_twin
from iidlib.bench.ceilings import copy_rate, count_bytes, count_flops, matrix_product_rate, seconds_of
from iidlib.bench.ladder import forward_ladder
from iidlib.bench.ranks import compare_ranks
from iidlib.bench.report import measure, random_pool, scaling, timing_dataset
from iidlib.bench.tables import BenchReport, Failure
from iidlib.bench.timing import LossesDiffer, Timing, compare, relative_difference
from iidlib.bench.training import compare_together, compare_training

__all__ = [
    "BenchReport", "Failure", "LossesDiffer", "PerClassLoop", "PlainTraining", "Timing", "compare", "compare_ranks",
    "compare_together", "compare_training", "copy_rate", "count_bytes", "count_flops", "forward_ladder",
    "matrix_product_rate", "measure", "plain_twin", "random_pool", "relative_difference", "scaling", "seconds_of",
    "timing_dataset",
]  # fmt: skip
