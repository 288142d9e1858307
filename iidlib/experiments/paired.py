"""Gain of one method over another: differences over common seeds, with their confidence interval."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["paired_gains", "paired_interval"]


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """95 % t interval of the mean difference ``second - first`` over distillation seeds.

    The project claims that one method is better than another only if the interval excludes zero.

    Args:
        first: accuracy of one method for each seed (mean over its networks), in percent.
        second: accuracy of the other method, for the same seeds in the same order.

    Returns:
        Mean difference, lower bound and upper bound.

    Raises:
        ValueError: for fewer than 3 seeds, or sequences of different length.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    if len(first) != len(second) or len(first) < 3:
        raise ValueError(
            f"a paired interval needs the same 3 or more seeds on both sides, got {len(first)} and {len(second)}"
        )
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    mean = float(differences.mean())
    half = float(t.ppf(0.975, len(first) - 1)) * float(differences.std(ddof=1)) / len(first) ** 0.5
    return mean, mean - half, mean + half


def paired_gains(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]], by: str = "method") -> pd.DataFrame:
    """Gains of one method over another, over the distillation seeds that both have.

    Args:
        scores: rows of single networks, with columns seed and accuracy (percent), and one that names the method.
        pairs: pairs of a base and a method.
        by: name of the column with the method.

    Returns:
        One row per pair, with columns base, method, seeds (the number of common seeds) and mean, low and high of
        `paired_interval`, which are NaN for fewer than three seeds.

    Raises:
        ValueError: for rows of several datasets, sizes, scales or architectures, whose mean is meaningless.
    """
    for column in ("dataset", "ipc", "scale", "network"):
        kinds = sorted(map(str, scores[column].unique())) if column in scores else []
        if len(kinds) > 1:
            raise ValueError(f"rows must share one {column}, got {', '.join(kinds)}; select one")
    table = scores.pivot_table(index="seed", columns=by, values="accuracy")
    rows = []
    for base, method in pairs:
        both = table.reindex(columns=[base, method]).dropna()
        known = len(both) >= 3
        interval = paired_interval(both[base].tolist(), both[method].tolist()) if known else (float("nan"),) * 3
        rows.append((base, method, len(both), *interval))
    return pd.DataFrame(rows, columns=["base", "method", "seeds", "mean", "low", "high"])
