"""Figures of accuracies: bars, curves over iterations and settings, the paper's cells."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from iidlib.plots.style import _PALETTE, colours, needs_rows, panels, styled

__all__ = ["accuracy_bars", "accuracy_curves", "cell_points", "note", "setting_curve"]


def accuracy_bars(scores: pd.DataFrame, *, chance: float | None = None, ax: Axes | None = None) -> Axes:
    """Test accuracy of sets: a bar for the mean, a line for the standard deviation, a point for each network.

    Args:
        scores: one row per trained network, with columns label, network and accuracy (percent).
        chance: chance accuracy in percent, drawn as a dotted line.
        ax: axes to draw on.
    """
    needs_rows("accuracy_bars", scores)
    labels = list(dict.fromkeys(scores["label"]))
    networks = list(dict.fromkeys(scores["network"]))
    grouped = len(networks) > 1
    row, bar = ("network", "label") if grouped else ("label", "label")
    common = {"data": scores, "x": "accuracy", "y": row, "hue": bar, "hue_order": labels, "dodge": grouped}
    order = networks if grouped else labels
    with styled():
        ax = ax or panels(height=0.9 + 0.42 * len(labels) * len(networks))[0]
        sns.barplot(
            **common,
            order=order,
            palette=colours(labels),
            errorbar=_population_std,
            err_kws={"linewidth": 1.5, "color": "black"},
            alpha=0.75,
            ax=ax,
        )
        points = dict.fromkeys(labels, "black")
        sns.stripplot(**common, order=order, palette=points, size=4, alpha=0.7, jitter=False, legend=False, ax=ax)
        if chance is not None:
            ax.axvline(chance, color="black", linewidth=1, linestyle=":")
            ax.annotate(
                "chance", (chance, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8
            )
        ax.set(xlabel="test accuracy (%)", ylabel="", xlim=(0, None))
        if grouped:
            sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="")
        sns.despine(ax=ax)
    return ax


def _population_std(values: Any) -> tuple[float, float]:
    mean, spread = float(np.mean(values)), float(np.std(values))
    return mean - spread, mean + spread


def cell_points(cells: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracies of the same cells from several sources: one row per cell, one point per series.

    Args:
        cells: one row per point, with columns label (of the cell), series and accuracy (percent). The series
            ``published`` is drawn as open rings, since it was not measured here.
        ax: axes to draw on.
    """
    needs_rows("cell_points", cells)
    labels, series = (list(dict.fromkeys(cells[name])) for name in ("label", "series"))
    with styled():
        ax = ax or panels(height=0.9 + 0.26 * len(labels))[0]
        for name, colour in zip(series, itertools.cycle(_PALETTE[:3] + _PALETTE[4:]), strict=False):
            points = cells[cells["series"] == name]
            ring = name == "published"
            ax.scatter(
                points["accuracy"],
                points["label"].map(labels.index),
                s=42,
                facecolors="none" if ring else colour,
                edgecolors="#404040" if ring else colour,
                label=name,
                zorder=4 if ring else 3,  # a ring around a point of equal accuracy is seen
            )
        ax.set_yticks(range(len(labels)), labels)
        ax.set(xlabel="test accuracy (%)", ylabel="", xlim=(0, None))
        ax.invert_yaxis()
        ax.grid(axis="y", linewidth=0.5)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(series))  # above, where there are no points
        sns.despine(ax=ax)
    return ax


def setting_curve(
    scores: pd.DataFrame, *, setting: str, references: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Test accuracy against one setting: one point per distillation, a line through the means of each label.

    Values are evenly spaced, because those of a sweep usually grow geometrically and may start with zero.

    Args:
        scores: one row per distillation, with columns label, value (of the setting) and accuracy (percent).
        setting: label of the horizontal axis.
        references: accuracies that do not depend on the setting, by label, drawn as dotted lines.
        ax: axes to draw on.
    """
    needs_rows("setting_curve", scores)
    labels = list(dict.fromkeys(scores["label"]))
    values = sorted(scores["value"].unique())
    placed = scores.assign(position=scores["value"].map({value: index for index, value in enumerate(values)}))
    palette = colours([*labels, *(references or {})])
    with styled():
        ax = ax or panels(height=3)[0]
        common = {"data": placed, "x": "position", "y": "accuracy", "hue": "label", "palette": palette, "ax": ax}
        sns.lineplot(**common, errorbar=None, linewidth=2, legend="auto" if len(labels) > 1 else False)
        sns.scatterplot(**common, s=22, legend=False, zorder=3)
        for label, accuracy in (references or {}).items():
            ax.axhline(accuracy, color=palette[label], linewidth=1, linestyle=":")
            # beyond the last value, where there are no points
            ax.annotate(label, (1.01, accuracy), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        ax.set(xlabel=setting, ylabel="test accuracy (%)")
        if len(labels) > 1:
            ax.legend(title="")
        sns.despine(ax=ax)
    return ax


def accuracy_curves(
    scores: pd.DataFrame, *, x: str, label: str, chance: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Test accuracy over whole numbers, such as iterations or steps, with a line through the means of each set.

    Args:
        scores: one row per network, with columns label, accuracy (percent) and `x`; each network is a small point.
        x: column of the horizontal axis.
        label: label of that axis.
        chance: chance accuracy, with columns accuracy and `x`, drawn as a dotted line.
        ax: axes to draw on.
    """
    needs_rows("accuracy_curves", scores)
    labels = list(dict.fromkeys(scores["label"]))
    palette = colours(labels)
    with styled():
        ax = ax or panels(height=3.2)[0]
        common = {"data": scores, "x": x, "y": "accuracy", "hue": "label", "palette": palette, "ax": ax}
        sns.lineplot(**common, errorbar=None, linewidth=2)
        sns.scatterplot(**common, s=14, legend=False, zorder=3)
        if chance is not None:
            ax.plot(chance[x], chance["accuracy"], color="black", linewidth=1, linestyle=":")
            end = (chance[x].iloc[-1], chance["accuracy"].iloc[-1])
            ax.annotate("chance", end, (0, 4), textcoords="offset points", ha="right", va="bottom", fontsize=8)
        ax.set(xlabel=label, ylabel="test accuracy (%)", xticks=sorted(scores[x].unique()))
        ax.legend(title="")
        sns.despine(ax=ax)
    return ax


def note(figure: Axes | Sequence[Axes], rows: pd.DataFrame) -> None:
    """Writes the source of the data below a figure: scales, seeds and dates of the results.

    Args:
        figure: axes of the figure.
        rows: rows of results, with columns scale, seed and date.
    """
    owner = (figure if isinstance(figure, Axes) else figure[0]).get_figure()
    assert owner is not None
    seeds = sorted({int(seed) for seed in rows["seed"]})
    days = sorted({str(date)[:10] for date in rows["date"]}) or [""]
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    scales = " and ".join(dict.fromkeys(rows["scale"]))
    text = f"scale {scales}; seeds {', '.join(map(str, seeds))}; measured {when}" if len(rows) else "nothing measured"
    owner.text(0.99, -0.01, text, ha="right", va="top", fontsize=8, color="#595959")
