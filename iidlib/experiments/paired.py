"""What one method gains over another: differences over the seeds that both have, with their interval."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["paired_gains", "paired_interval"]


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """95 % t interval of the mean difference ``second - first`` over distillation seeds.

    An order of two methods is claimed only where the interval leaves out zero.

    Args:
        first: accuracy of one method for each seed (mean over its networks), in percent.
        second: of the other method, the same seeds in the same order.

    Returns:
        Mean difference, lower and upper end.

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
    """What one method is above another, over the distillation seeds that both have.

    Args:
        scores: rows of single networks, with columns seed and accuracy (percent), and one that names the method.
        pairs: base and method.
        by: the column that names the method.

    Returns:
        A row a pair, with columns base, method, seeds (how many both have) and, from three seeds on, mean, low and high
        of `paired_interval`; otherwise these are empty.

    Raises:
        ValueError: for rows of several data sets, sizes, scales or architectures, whose mean says nothing.
    """
    for column in ("dataset", "ipc", "scale", "network"):
        kinds = sorted(map(str, scores[column].unique())) if column in scores else []
        if len(kinds) > 1:
            raise ValueError(f"rows of one {column} are compared, got those of {', '.join(kinds)}")
    table = scores.pivot_table(index="seed", columns=by, values="accuracy")
    rows = []
    for base, method in pairs:
        both = table.reindex(columns=[base, method]).dropna()
        known = len(both) >= 3
        found = paired_interval(both[base].tolist(), both[method].tolist()) if known else (float("nan"),) * 3
        rows.append((base, method, len(both), *found))
    return pd.DataFrame(rows, columns=["base", "method", "seeds", "mean", "low", "high"])
