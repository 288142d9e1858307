"""Figures of features: covariances, distances, measures of sets, projections."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from iidlib.errors import InputError
from iidlib.plots.images import as_array
from iidlib.plots.style import _PALETTE, WIDTH, colours, needs_rows, panels, shortened, styled

__all__ = ["LISTED", "covariance_heatmaps", "distance_distribution", "measure_strips", "projection"]

LISTED = 20
"""Maximum number of classes in a legend; more would leave no room for the figure."""


def covariance_heatmaps(matrices: Mapping[str, Any], *, unit: str) -> list[Axes]:
    """Matrices of channels by channels side by side, with one colour scale symmetric about zero.

    Args:
        matrices: matrices [K, K] by title.
        unit: label of the colour bar, with its unit.

    Returns:
        The axes of the matrices, in order.
    """
    if not matrices:
        raise InputError("covariance_heatmaps needs matrices, got none")
    arrays = {title: as_array(matrix) for title, matrix in matrices.items()}
    # a quantile, since a few large entries would make the rest white; non-finite entries stay white
    sizes = [np.abs(array[np.isfinite(array)]) for array in arrays.values()]
    limit = max((float(np.quantile(size, 0.995)) for size in sizes if size.size), default=0.0) or 1.0
    with styled():
        axes = panels(len(arrays), height=WIDTH / len(arrays) * 0.86 + 0.5)
        for ax, (title, array) in zip(axes, arrays.items(), strict=True):
            picture = ax.imshow(array, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
            last = len(array) - 1
            ax.set(title=title, xlabel="channel", xticks=sorted({0, last}), yticks=sorted({0, last}))
        axes[0].set_ylabel("channel")
        figure = axes[0].get_figure()
        assert figure is not None
        figure.colorbar(picture, ax=axes, location="right", shrink=0.8, label=unit, extend="both")
    return axes


def distance_distribution(distances: pd.DataFrame, *, unit: str, ax: Axes | None = None) -> Axes:
    """Cumulative distribution of the images' distances to their class centre, one curve per label.

    Args:
        distances: one row per image, with columns label and distance.
        unit: label of the distance, with its unit.
        ax: axes to draw on.
    """
    needs_rows("distance_distribution", distances)
    labels = list(dict.fromkeys(distances["label"]))
    with styled():
        ax = ax or panels(height=3)[0]
        sns.ecdfplot(distances, x="distance", hue="label", stat="percent", palette=colours(labels), linewidth=2, ax=ax)
        ax.set(xlabel=unit, ylabel="images within distance (%)", ylim=(0, 101))
        sns.move_legend(ax, "lower right", title="")
        sns.despine(ax=ax)
    return ax


def measure_strips(measures: pd.DataFrame, *, names: Mapping[str, str]) -> list[Axes]:
    """Measures of sets: one panel per measure, one row per set, one point per class and network, a bar at the mean.

    Args:
        measures: rows of ``measures.compare``, with a column label.
        names: labels of the panels by the measure's column.

    Returns:
        The axes of the panels, in order.
    """
    needs_rows("measure_strips", measures)
    labels = list(dict.fromkeys(measures["label"]))
    palette = colours(labels)
    axes = panels(len(names), height=0.9 + 0.3 * len(labels))
    with styled():
        for ax, (column, text) in zip(axes, names.items(), strict=True):
            finite = measures[np.isfinite(measures[column])]
            if len(finite):
                common = {"data": finite, "x": column, "y": "label", "hue": "label", "palette": palette, "ax": ax}
                sns.stripplot(**common, order=labels, size=3.5, alpha=0.55, jitter=0.18, legend=False)
                means = finite.groupby("label")[column].mean()
                heights = [labels.index(label) for label in means.index]
                ax.scatter(means, heights, marker="|", s=320, linewidths=2, color="black", zorder=4)
            else:
                ax.set_yticks(range(len(labels)), labels)
            ax.set(xlabel=text, ylabel="", xlim=(0, None) if len(finite) else (0, 1))
            if ax is not axes[0]:
                ax.set_yticklabels([])
            sns.despine(ax=ax)
    return axes


def projection(
    points: pd.DataFrame,
    *,
    classes: Sequence[str],
    behind: str = "real",
    names: tuple[str, str] = ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)"),
) -> list[Axes]:
    """Points in two dimensions: one panel per set, with the set `behind` pale in the background of each.

    Args:
        points: one row per image, with columns label, class (an index into `classes`), x and y.
        classes: class names for the legend, which lists the first `LISTED`; colours are colour-blind safe for up to ten
            classes, and hues for more.
        behind: label of the set in the background.
        names: labels of the two axes.

    Returns:
        The axes of the panels, in order.

    Raises:
        InputError: if there is no set other than `behind`, or no point has finite coordinates.
    """
    needs_rows("projection", points)
    points = points.loc[np.isfinite(points["x"]) & np.isfinite(points["y"])]
    needs_rows("projection", points)
    palette = sns.color_palette("colorblind" if len(classes) <= len(_PALETTE) else "husl", len(classes)).as_hex()
    labels = [label for label in dict.fromkeys(points["label"]) if label != behind]
    if not labels:
        raise InputError(f"projection needs a set besides {behind!r}, got only that one")
    axes = panels(len(labels), height=WIDTH / max(2, len(labels)) + 0.5)
    background = points[points["label"] == behind]
    limits = {}
    for side in ("x", "y"):
        low, high = points[side].min(), points[side].max()
        room = 0.04 * (high - low) or 0.5  # for a single position
        limits[f"{side}lim"] = (low - room, high + room)
    with styled():
        for ax, label in zip(axes, labels, strict=True):
            front = points[points["label"] == label]
            pale = [palette[c] for c in background["class"]]
            ax.scatter(background["x"], background["y"], c=pale, s=8, alpha=0.4, linewidths=0)
            for number, name in enumerate(classes):
                one = front[front["class"] == number]
                ax.scatter(one["x"], one["y"], c=palette[number], s=34, marker="D", edgecolors="black", linewidths=0.6,
                           label=shortened(name) if number < LISTED else None)  # fmt: skip
            ax.set(title=label, xticks=[], yticks=[], xlabel=names[0], **limits)
            sns.despine(ax=ax)
        axes[0].set_ylabel(names[1])
        rest = f"the first {LISTED} of {len(classes)}" if len(classes) > LISTED else ""
        legend = {"title": rest, "title_fontsize": 8, "fontsize": 8, "handletextpad": 0.1}
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), **legend)
    return axes
