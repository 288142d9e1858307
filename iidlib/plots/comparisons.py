"""Figures that compare methods: accuracy against cost, and the gain from each part of a method."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from iidlib.plots.style import colours, log_limits, needs_rows, panels, shortened, styled

__all__ = ["pareto", "part_gains"]

_PLACES = [
    (x, y, across, up)
    for reach in (8, 16, 28, 42)
    for x, y, across, up in (
        (reach, 0, "left", "center"), (-reach, 0, "right", "center"), (0, reach, "center", "bottom"),
        (0, -reach, "center", "top"), (reach, reach, "left", "bottom"), (-reach, reach, "right", "bottom"),
        (reach, -reach, "left", "top"), (-reach, -reach, "right", "top"),
    )
]  # fmt: skip
"""Candidate offsets, in points, of a name from its dot, with alignment; the first free one is used."""


def pareto(runs: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy against the seconds of a distillation, with a line through the Pareto-optimal methods.

    A method is a dot at the mean of its distillations, with their range on both axes. If the training time of its pool
    is known, the dot includes it, and a ring connected to the dot marks the seconds without it: a pool is trained once
    for any number of distilled sets. The line includes pools and skips methods whose pool time is unknown; their dots
    are half filled.

    Args:
        runs: one row per distillation, with columns label, seconds (of the iterations, positive) and accuracy (percent;
            mean over the evaluation networks), and optionally pool_seconds: 0 without a pool, NaN if unknown. Without
            that column there are no pools.
        ax: axes to draw on.
    """
    needs_rows("pareto", runs)
    pool = runs["pool_seconds"] if "pool_seconds" in runs else pd.Series(0.0, index=runs.index)
    runs = runs.assign(pool=pool, total=runs["seconds"] + pool.fillna(0))
    by_label = runs.groupby("label", sort=False)[["seconds", "total", "accuracy", "pool"]]
    means, lows, highs = by_label.mean(), by_label.min(), by_label.max()
    palette = colours(list(means.index))
    with styled():
        ax = ax or panels(height=3.8)[0]
        known = ~means.index.isin(runs.loc[runs["pool"].isna(), "label"])
        best = (
            means[known]
            .dropna(subset=["total", "accuracy"])
            .sort_values(["total", "accuracy"], ascending=[True, False])
        )
        best = best[best["accuracy"] > best["accuracy"].cummax().shift(fill_value=-np.inf)]
        ax.plot(best["total"], best["accuracy"], color="#8c8c8c", linewidth=1.2, drawstyle="steps-post", zorder=1)
        for label, mean in means.iterrows():
            style: dict[str, Any] = {"color": palette[str(label)], "zorder": 2}
            if mean["pool"] > 0:
                ax.plot([mean["seconds"], mean["total"]], [mean["accuracy"]] * 2, linewidth=0.8, **style)
                ax.scatter(
                    mean["seconds"], mean["accuracy"], s=40, facecolors="white", edgecolors=style["color"], zorder=3
                )
            low, high = lows.loc[str(label)], highs.loc[str(label)]
            ax.plot([mean["total"]] * 2, [low["accuracy"], high["accuracy"]], linewidth=1.5, **style)
            ax.plot([low["total"], high["total"]], [mean["accuracy"]] * 2, linewidth=1.5, **style)
            complete = known[means.index.get_loc(label)]
            half: dict[str, Any] = {} if complete else {"fillstyle": "left", "markerfacecoloralt": "white"}
            point = [mean["total"]], [mean["accuracy"]]
            ax.plot(*point, "o", markersize=40**0.5, color=style["color"], label=label, zorder=4, **half)
        seconds = pd.concat([runs["seconds"], runs["total"]])
        low_end, high_end = log_limits(seconds)
        ticks = [lead * 10.0**power for power in range(-6, 9) for lead in (1, 2, 3, 5, 7)]
        ax.set(
            xscale="log",
            xlabel="seconds per distillation (log scale)",
            ylabel="test accuracy (%)",
            xlim=(low_end, high_end),
        )
        ticks = [tick for tick in ticks if low_end <= tick <= high_end]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        kinds: dict[str, Any] = (
            {"with pool training": "full", "without it": "none"} if (means["pool"] > 0).any() else {}
        )
        kinds |= {} if known.all() else {"pool not recorded": "left"}
        look: dict[str, Any] = {"markersize": 40**0.5, "color": "#404040", "markerfacecoloralt": "white"}
        marks = [Line2D([], [], marker="o", linestyle="", fillstyle=kind, **look) for kind in kinds.values()]
        if marks:
            ax.legend(marks, list(kinds), loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        ax.margins(y=0.15)
        sns.despine(ax=ax)
        _write_names(ax, means, palette)
    return ax


def _write_names(ax: Axes, means: pd.DataFrame, palette: dict[str, str]) -> None:
    """Writes the name of each method next to its dot, where it covers neither a mark nor another name."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # determines the sizes of texts and the positions of axes
    half = 5 * figure.dpi / 72  # half the size of a mark, in pixels
    taken = [line.get_window_extent().padded(1) for line in ax.lines[1:]]  # whiskers, and lines between ring and dot
    path = ax.transData.transform(_corners(ax.lines[0]))
    taken += [Bbox([one, other]).padded(1) for one, other in pairwise(path)]  # padded: a horizontal line has no height
    for column in ("seconds", "total"):
        for x, y in ax.transData.transform(means[[column, "accuracy"]].to_numpy(dtype=float)):
            taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    for label, mean in means.iterrows():
        point = (mean["total"], mean["accuracy"])
        if not np.isfinite(point).all():
            continue
        text = ax.annotate(
            shortened(str(label)), point, _PLACES[0][:2], textcoords="offset points", fontsize=9,
            color=palette[str(label)],
        )  # fmt: skip
        for x, y, across, up in _PLACES:
            text.set(position=(x, y), horizontalalignment=across, verticalalignment=up)
            box = text.get_window_extent()
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def _corners(line: Line2D) -> NDArray[np.float64]:
    """Corners of a step line, [2 n - 1, 2]: one above or below each of its points except the first."""
    points = np.asarray(line.get_xydata(), dtype=np.float64)
    corners = np.repeat(points, 2, axis=0)[:-1]
    corners[1::2, 0] = points[1:, 0]
    return corners


def part_gains(gains: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Gain from each part of a method, as a forest plot: one mean and interval per row, with a line at zero.

    A dot is filled if its interval excludes zero. A mean over too few seeds for an interval is a diamond. A row without
    a mean shows a note instead.

    Args:
        gains: one row per part, in the order of drawing, with columns group, part, mean, low and high (points of
            accuracy; NaN if unknown), and optionally note, the text to show without a mean (default ``missing``).
        title: title of the panel.
        ax: axes to draw on.
    """
    needs_rows("part_gains", gains)
    groups = list(dict.fromkeys(gains["group"]))
    palette = dict(zip(groups, colours([f"group {number}" for number in range(len(groups))]).values(), strict=True))
    with styled():
        ax = ax or panels(height=1 + 0.3 * (len(gains) + len(groups)))[0]
        heights: list[int] = []
        for number, (_, row) in enumerate(gains.iterrows()):
            height = number + 1 + groups.index(row["group"])  # the row above each group holds its name
            heights.append(height)
            colour = palette[row["group"]]
            if not np.isfinite(row["mean"]):
                ax.annotate(
                    str(row.get("note") or "missing"), (0.5, height), xycoords=("axes fraction", "data"), ha="center",
                    va="center", fontsize=8, color="#595959", backgroundcolor="white",
                )  # fmt: skip
                continue
            if not np.isfinite(row["low"]):
                ax.scatter(row["mean"], height, s=26, marker="D", facecolors="white", edgecolors=colour, zorder=3)
                continue
            clear = row["low"] > 0 or row["high"] < 0
            ax.plot([row["low"], row["high"]], [height] * 2, color=colour, linewidth=1.5, zorder=2)
            ax.scatter(
                row["mean"], height, s=34, facecolors=colour if clear else "white", edgecolors=colour, zorder=3
            )  # fmt: skip
        ax.axvline(0, color="black", linewidth=1, zorder=1)
        heads = [min(p for p, group in zip(heights, gains["group"], strict=True) if group == one) - 1 for one in groups]
        _name_rows(ax, [*heads, *heights], [*groups, *gains["part"]], bold=len(groups))
        ax.set(xlabel="gain (points of accuracy)", ylabel="", title=title, ylim=(max(heights) + 0.7, -0.6))
        low, high = ax.get_xlim()
        if not np.isfinite(gains["mean"]).any():
            low, high = -1, 1
        ax.set_xlim(min(low, -0.1 * high), max(high, -0.1 * low))  # keep the line at zero away from the edge
        sns.despine(ax=ax, left=True)
        ax.tick_params(axis="y", length=0)
    return ax


def _name_rows(ax: Axes, heights: Sequence[int], names: Sequence[str], *, bold: int) -> None:
    """Labels rows at the left of a figure, the first `bold` of them in bold."""
    ax.set_yticks(heights, [shortened(name) for name in names])
    for text in ax.get_yticklabels()[:bold]:
        text.set_fontweight("bold")
