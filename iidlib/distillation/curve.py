"""Measures of a set at several points of its distillation."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from iidlib.config import RunConfig
from iidlib.data import Dataset
from iidlib.distillation.run import distill
from iidlib.errors import InputError
from iidlib.synthetic import SyntheticSet

__all__ = ["progress"]


def progress(
    config: RunConfig,
    dataset: Dataset,
    measure: Callable[[SyntheticSet], pd.DataFrame],
    *,
    points: Sequence[int],
    **options: Any,
) -> pd.DataFrame:
    """Measures a set several times during its distillation. Explained in chapter 09.

    The run is that of ``distill``: measuring does not affect it.

    Args:
        config: settings of the distillation.
        dataset: the dataset to distil.
        measure: called with a copy of the set; returns rows, such as those of ``evaluate``.
        points: numbers of iterations to measure after, 0 for the start.
        options: further arguments of ``distill``, such as its folder.

    Returns:
        The rows of `measure`, with a first column iteration.

    Raises:
        InputError: for a point beyond the distillation's end.
    """
    beyond = [point for point in points if not 0 <= point <= config.iterations]
    if beyond:
        raise InputError(f"the distillation has {config.iterations} iterations, there is no set after {beyond[0]}")
    frames: list[pd.DataFrame] = []

    def on_iteration(iteration: int, synthetic: SyntheticSet) -> None:
        rows = measure(synthetic)
        rows.insert(0, "iteration", iteration)
        frames.append(rows)

    distill(config, dataset, on_iteration=on_iteration, iterations_to_show=tuple(points), **options)
    return pd.concat(frames, ignore_index=True)
