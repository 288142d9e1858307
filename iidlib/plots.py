"""The book's figures: from arrays and data frames to axes, and from axes to a notebook, with alt text.

A set of images has the same colour in every figure, taken from seaborn's colour-blind-safe palette. Every axis has a
label and its unit. The functions draw on axes of their own, or on those given, and return them; `show` puts the
finished figure into a notebook and asks for the finding in words.
"""

import base64
import contextlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

__all__ = [
    "accuracy_bars",
    "accuracy_curves",
    "animate",
    "cell_points",
    "colours",
    "cost_curves",
    "covariance_heatmaps",
    "distance_distribution",
    "error_curves",
    "image_grid",
    "loss_curves",
    "measure_strips",
    "note",
    "panels",
    "projection",
    "queue_curves",
    "setting_curve",
    "show",
    "time_ladder",
]

DPI = 100
"""Screen resolution: a notebook with its figures stays small."""

PIXELS_PER_INCH = 60
"""Of images in a grid, at most: two thirds larger than their pixels on a screen."""

WIDTH = 7.2
"""Inches across a figure, a little more than the book's column."""

SHORTEST_ALT = 15
"""Characters; less cannot state a finding."""

_PALETTE = sns.color_palette("colorblind").as_hex()
_FIXED = {
    "real": "#6b6b6b",
    "random": "#6b6b6b",
    "loop": "#6b6b6b",
    "ours": _PALETTE[0],
    "dm": _PALETTE[0],
    "dm-cm": _PALETTE[2],
    "dm-cc": _PALETTE[4],
    "iid-dm": _PALETTE[1],
    "random-mosaic": "#a8a8a8",
    "idm": _PALETTE[9],
    "iid-idm": _PALETTE[3],
}
_SPARE = [_PALETTE[5], "#3b3b8f", "#0b5d4b"]  # dark enough for a line, apart from the palette's own

_shown: dict[str, tuple[str, int]] = {}


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, as ``#rrggbb``: the methods of the book have their own, others get what is left."""
    others = [label for label in dict.fromkeys(labels) if label not in _FIXED]
    spare = {label: _SPARE[i % len(_SPARE)] for i, label in enumerate(others)}
    return {label: _FIXED.get(label) or spare[label] for label in labels}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """The look of all figures, without a change of the reader's own settings."""
    look: dict[Any, Any] = dict(sns.axes_style("ticks"))
    look |= {"font.size": 10, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False}
    with rc_context(look):
        yield


def panels(columns: int = 1, *, height: float = 3.4, width: float = WIDTH) -> list[Axes]:
    """Axes side by side in a new figure, which pyplot does not know, so that only `show` displays it.

    Args:
        columns: how many.
        height: of the figure, in inches.
        width: of the figure, in inches.
    """
    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return list(figure.subplots(1, columns, squeeze=False)[0])


def image_grid(
    images: Any,
    *,
    columns: int,
    row_labels: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Images in rows and columns, in the order in which they come.

    Args:
        images: [B, K, H, W] with K of 1 or 3, array or tensor: uint8, or floating point in [0, 1].
        columns: images a row; the last row may be shorter.
        row_labels: names of the rows, written at their left.
        title: above the grid.
        ax: where to draw.

    Raises:
        ValueError: for another shape, values out of range (normalised images must be denormalised first), or more
            labels than rows.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        raise ValueError(f"image_grid takes images [B, 1 or 3, H, W], at least one, got {list(pixels.shape)}")
    if pixels.dtype != np.uint8:
        if not (np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"image_grid takes uint8 or [0, 1], got {pixels.dtype} from {pixels.min():.3g} to {pixels.max():.3g}; "
                "denormalise the images first"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    rows = -(-len(pixels) // columns)
    if len(row_labels) > rows:
        raise ValueError(f"{len(row_labels)} labels for {rows} rows of images")
    gap, (height, width) = 2, pixels.shape[2:]
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    with _style():
        if ax is None:
            high, wide = (side / max(PIXELS_PER_INCH, canvas.shape[1] / WIDTH) for side in canvas.shape[:2])
            ax = panels(width=min(WIDTH, wide + 1), height=high)[0]
        ax.imshow(canvas)
        ax.set_xticks([])
        ax.set_yticks([row * (height + gap) + height / 2 for row in range(len(row_labels))], row_labels)
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True, bottom=True)
        ax.set_title(title)
    return ax


def accuracy_bars(scores: pd.DataFrame, *, chance: float | None = None, ax: Axes | None = None) -> Axes:
    """Test accuracy of sets: a bar for the mean, a line for the standard deviation, a point for every network.

    Args:
        scores: rows of single networks, with columns label, network and accuracy (percent).
        chance: accuracy of guessing, in percent, drawn as a dotted line.
        ax: where to draw.
    """
    labels = list(dict.fromkeys(scores["label"]))
    networks = list(dict.fromkeys(scores["network"]))
    grouped = len(networks) > 1
    row, bar = ("network", "label") if grouped else ("label", "label")
    common = {"data": scores, "x": "accuracy", "y": row, "hue": bar, "hue_order": labels, "dodge": grouped}
    order = networks if grouped else labels
    with _style():
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


def loss_curves(
    metrics: pd.DataFrame, *, names: Mapping[str, str] | None = None, window: int = 5, ax: Axes | None = None
) -> Axes:
    """The weighted terms of an objective over the iterations, on a logarithmic axis.

    Every iteration has its own network and real images, so single values jump: they are thin, their rolling median is
    thick.

    Args:
        metrics: logged iterations, with the columns iteration and ``loss_<term>``.
        names: what to call a term, by its name.
        window: logged iterations in the median.
        ax: where to draw.

    Raises:
        ValueError: if no column starts with ``loss_``.
    """
    terms = [str(column).removeprefix("loss_") for column in metrics if str(column).startswith("loss_")]
    if not terms:
        raise ValueError(f"loss_curves needs columns loss_<term>, got {list(metrics)}")
    fixed = dict(zip(("mean", "cm", "cc"), (_FIXED["dm"], _FIXED["dm-cm"], _FIXED["dm-cc"]), strict=True))
    palette = {**colours(terms), **fixed}
    with _style():
        ax = ax or panels(height=3)[0]
        for term in terms:
            values = metrics[f"loss_{term}"]
            ax.plot(metrics["iteration"], values, color=palette[term], linewidth=0.8, alpha=0.45)
            median = values.rolling(window, center=True, min_periods=1).median()
            ax.plot(metrics["iteration"], median, color=palette[term], linewidth=2, label=(names or {}).get(term, term))
        ax.set(xlabel="iteration", ylabel="weighted loss, sum over classes", yscale="log")
        for axis_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        if len(terms) > 1:
            ax.legend()
        sns.despine(ax=ax)
    return ax


def queue_curves(metrics: pd.DataFrame, *, chance: float, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """IDM's queue over the iterations: how many networks it holds, and what they reach on their training images.

    Args:
        metrics: logged iterations, with the columns iteration, queue_networks and queue_accuracy (percent).
        chance: accuracy of guessing, in percent, drawn as a dotted line.
        axes: where to draw, two of them.

    Returns:
        The axes of the number and of the accuracy.
    """
    axes = list(axes or panels(2, height=2.6))
    kinds = (("queue_networks", "networks in the queue"), ("queue_accuracy", "accuracy by the meters (%)"))
    with _style():
        for ax, (column, label) in zip(axes, kinds, strict=True):
            ax.plot(metrics["iteration"], metrics[column], color=_FIXED["idm"], linewidth=2, drawstyle="steps-post")
            ax.set(xlabel="iteration", ylabel=label, ylim=(0, None))
            sns.despine(ax=ax)
        axes[1].axhline(chance, color="black", linewidth=1, linestyle=":")
    return axes


def covariance_heatmaps(matrices: Mapping[str, Any], *, unit: str) -> list[Axes]:
    """Square matrices of channels by channels side by side, on one colour scale that is symmetric about zero.

    Args:
        matrices: [K, K] each, by title.
        unit: what the colours measure, with its unit.

    Returns:
        The axes of the matrices, in order.
    """
    arrays = {title: np.asarray(matrix) for title, matrix in matrices.items()}
    # single large entries would leave the rest white
    limit = max(float(np.quantile(np.abs(array), 0.995)) for array in arrays.values()) or 1.0
    with _style():
        axes = panels(len(arrays), height=WIDTH / len(arrays) * 0.86 + 0.5)
        for ax, (title, array) in zip(axes, arrays.items(), strict=True):
            picture = ax.imshow(array, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
            last = len(array) - 1
            ax.set(title=title, xlabel="channel", xticks=[0, last], yticks=[0, last])
        axes[0].set_ylabel("channel")
        figure = axes[0].get_figure()
        assert figure is not None
        figure.colorbar(picture, ax=axes, location="right", shrink=0.8, label=unit, extend="both")
    return axes


def distance_distribution(distances: pd.DataFrame, *, unit: str, ax: Axes | None = None) -> Axes:
    """How far images lie from the centre of their class: the share of images within a distance, a curve a label.

    Args:
        distances: a row an image, with columns label and distance.
        unit: what the distance measures, with its unit.
        ax: where to draw.
    """
    labels = list(dict.fromkeys(distances["label"]))
    with _style():
        ax = ax or panels(height=3)[0]
        sns.ecdfplot(distances, x="distance", hue="label", stat="percent", palette=colours(labels), linewidth=2, ax=ax)
        ax.set(xlabel=unit, ylabel="images within it (%)", ylim=(0, 101))
        sns.move_legend(ax, "lower right", title="")
        sns.despine(ax=ax)
    return ax


def cell_points(cells: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracies of the same cells from several places: a line a cell, a point a series.

    Args:
        cells: a row a point, with columns label (of the cell), series and accuracy (percent). The series ``published``
            is drawn as open rings, since it was not measured here.
        ax: where to draw.
    """
    labels, series = (list(dict.fromkeys(cells[name])) for name in ("label", "series"))
    with _style():
        ax = ax or panels(height=0.9 + 0.26 * len(labels))[0]
        for name, colour in zip(series, [_PALETTE[0], _PALETTE[1], _PALETTE[2], _PALETTE[4]], strict=False):
            own = cells[cells["series"] == name]
            ring = name == "published"
            ax.scatter(
                own["accuracy"],
                own["label"].map(labels.index),
                s=42,
                facecolors="none" if ring else colour,
                edgecolors="#404040" if ring else colour,
                label=name,
                zorder=3,
            )
        ax.set_yticks(range(len(labels)), labels)
        ax.set(xlabel="test accuracy (%)", ylabel="", xlim=(0, None))
        ax.invert_yaxis()
        ax.grid(axis="y", linewidth=0.5)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(series))  # above, where no point can be
        sns.despine(ax=ax)
    return ax


def setting_curve(
    scores: pd.DataFrame, *, setting: str, references: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Test accuracy as one setting changes: a point a distillation, a line through the means of each label.

    Values lie at equal distances, because those of a sweep usually grow by factors and may begin with zero.

    Args:
        scores: a row a distillation, with columns label, value (of the setting) and accuracy (percent).
        setting: what the horizontal axis says.
        references: accuracies that the setting does not touch, by label, drawn as dotted lines.
        ax: where to draw.
    """
    labels = list(dict.fromkeys(scores["label"]))
    values = sorted(scores["value"].unique())
    placed = scores.assign(place=scores["value"].map({value: place for place, value in enumerate(values)}))
    palette = colours([*labels, *(references or {})])
    with _style():
        ax = ax or panels(height=3)[0]
        common = {"data": placed, "x": "place", "y": "accuracy", "hue": "label", "palette": palette, "ax": ax}
        if placed.empty:
            raise ValueError("setting_curve needs rows, got none")
        sns.lineplot(**common, errorbar=None, linewidth=2, legend="auto" if len(labels) > 1 else False)
        sns.scatterplot(**common, s=22, legend=False, zorder=3)
        for label, accuracy in (references or {}).items():
            ax.axhline(accuracy, color=palette[label], linewidth=1, linestyle=":")
            # beyond the last value, where no point can lie
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
    """Test accuracy along an axis of whole numbers, such as iterations or steps: a line through the means of each set.

    Args:
        scores: a row a network, with columns label, accuracy (percent) and `x`; every network is a small point.
        x: the column of the horizontal axis.
        label: what that axis says.
        chance: accuracy of guessing, with columns accuracy and `x`, drawn dotted.
        ax: where to draw.
    """
    labels = list(dict.fromkeys(scores["label"]))
    palette = colours(labels)
    with _style():
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


def measure_strips(measures: pd.DataFrame, *, names: Mapping[str, str]) -> list[Axes]:
    """Measures of sets side by side: a panel a measure, a line a set, a point a class and network, a bar at the mean.

    Args:
        measures: rows of ``measures.compare``, with a column label.
        names: what to write below each panel, by the measure's column.

    Returns:
        The axes of the panels, in order.
    """
    labels = list(dict.fromkeys(measures["label"]))
    palette = colours(labels)
    axes = panels(len(names), height=0.9 + 0.3 * len(labels))
    with _style():
        for ax, (column, text) in zip(axes, names.items(), strict=True):
            common = {"data": measures, "x": column, "y": "label", "hue": "label", "palette": palette, "ax": ax}
            sns.stripplot(**common, order=labels, size=3.5, alpha=0.55, jitter=0.18, legend=False)
            means = measures.groupby("label")[column].mean()
            heights = [labels.index(label) for label in means.index]
            ax.scatter(means, heights, marker="|", s=320, linewidths=2, color="black", zorder=4)
            ax.set(xlabel=text, ylabel="", xlim=(0, None))
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
    """Points in two dimensions: a panel a set, the set named `behind` in pale in each of them.

    Args:
        points: a row an image, with columns label, class (an index into `classes`), x and y.
        classes: names, for the legend; colours are the colour-blind-safe ones for ten classes, more are hues.
        behind: the set that is drawn behind the others.
        names: what the two axes say.

    Returns:
        The axes of the panels, in order.
    """
    palette = sns.color_palette("colorblind" if len(classes) <= len(_PALETTE) else "husl", len(classes)).as_hex()
    labels = [label for label in dict.fromkeys(points["label"]) if label != behind]
    axes = panels(len(labels), height=WIDTH / max(2, len(labels)) + 0.5)
    ground = points[points["label"] == behind]
    limits = {}
    for side in ("x", "y"):
        low, high = points[side].min(), points[side].max()
        limits[f"{side}lim"] = (low - 0.04 * (high - low), high + 0.04 * (high - low))
    with _style():
        for ax, label in zip(axes, labels, strict=True):
            own = points[points["label"] == label]
            ax.scatter(ground["x"], ground["y"], c=[palette[c] for c in ground["class"]], s=8, alpha=0.4, linewidths=0)
            for number, name in enumerate(classes):
                one = own[own["class"] == number]
                ax.scatter(one["x"], one["y"], c=palette[number], s=34, marker="D", edgecolors="black", linewidths=0.6,
                           label=name)  # fmt: skip
            ax.set(title=label, xticks=[], yticks=[], xlabel=names[0], **limits)
            sns.despine(ax=ax)
        axes[0].set_ylabel(names[1])
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, handletextpad=0.1)
    return axes


def error_curves(errors: pd.DataFrame, *, x: str, unit: str, ax: Axes | None = None) -> Axes:
    """Errors that fall as samples grow: a line a label, on logarithmic axes.

    Args:
        errors: a row a point, with columns n, error and label.
        x: what the horizontal axis says.
        unit: of the error.
        ax: where to draw.
    """
    labels = list(dict.fromkeys(errors["label"]))
    with _style():
        ax = ax or panels(height=3)[0]
        sns.lineplot(
            errors, x="n", y="error", hue="label", style="label", markers=True, dashes=False,
            palette=colours(labels), errorbar=None, ax=ax,
        )  # fmt: skip
        ticks = sorted(errors["n"].unique())
        low, high = _limits(errors["error"])
        heights = [lead * 10.0**power for power in range(-6, 7) for lead in (1, 2, 5)]
        heights = [height for height in heights if low <= height <= high]
        ax.set(xscale="log", yscale="log", xlabel=x, ylabel=unit, ylim=(low, high))
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_yticks(heights, [f"{height:g}" for height in heights])
        ax.minorticks_off()
        ax.legend(title="")
        sns.despine(ax=ax)
    return ax


def time_ladder(rungs: pd.DataFrame, *, unit: str, ax: Axes | None = None) -> Axes:
    """Times of the same work, one acceleration more in each row, and how many times faster than the first.

    Args:
        rungs: a row a rung, from the top, with columns rung, time and total (times faster than the first).
        unit: of the time.
        ax: where to draw.
    """
    with _style():
        ax = ax or panels(height=0.9 + 0.36 * len(rungs))[0]
        sns.barplot(rungs, x="time", y="rung", color=_FIXED["dm"], alpha=0.75, ax=ax)
        for place, (time, total) in enumerate(zip(rungs["time"], rungs["total"], strict=True)):
            ax.annotate(f" {total:.1f}x", (time, place), va="center", fontsize=9)
        ax.set(xlabel=unit, ylabel="", xlim=(0, 1.12 * rungs["time"].max()))
        sns.despine(ax=ax)
    return ax


def cost_curves(costs: pd.DataFrame, *, axes: Mapping[str, str]) -> list[Axes]:
    """Seconds an iteration as the work grows: a panel a size, a line a side, on logarithmic axes.

    Args:
        costs: a row a size and side, with columns axis, size, side and seconds.
        axes: what to write below a panel, by the name of its axis.

    Returns:
        The axes of the panels, in the order of `axes`.
    """
    sides = list(dict.fromkeys(costs["side"]))
    with _style():
        drawn = panels(len(axes), height=2.6, width=WIDTH)
        for ax, (name, label) in zip(drawn, axes.items(), strict=True):
            own = costs[costs["axis"] == name]
            sns.lineplot(
                own, x="size", y="seconds", hue="side", style="side", markers=True, dashes=False,
                palette=colours(sides), legend=name == next(iter(axes)), ax=ax,
            )  # fmt: skip
            ticks = sorted(own["size"].unique())
            ax.set(xscale="log", yscale="log", xlabel=label, ylabel="", ylim=_limits(costs["seconds"]))
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
            if ax is not drawn[0]:
                ax.set_yticklabels([])
            sns.despine(ax=ax)
        drawn[0].set_ylabel("seconds an iteration")
        drawn[0].legend(title="")
    return drawn


def note(figure: Axes | Sequence[Axes], rows: pd.DataFrame) -> None:
    """Writes below a figure what it was drawn from: scales, seeds and dates of measured rows.

    Args:
        figure: axes of the figure.
        rows: of results, with columns scale, seed and date.
    """
    owner = (figure if isinstance(figure, Axes) else figure[0]).get_figure()
    assert owner is not None
    seeds = sorted({int(seed) for seed in rows["seed"]})
    days = sorted({str(date)[:10] for date in rows["date"]})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    scales = " and ".join(dict.fromkeys(rows["scale"]))
    text = f"scale {scales}; seeds {', '.join(map(str, seeds))}; measured {when}"
    owner.text(0.99, -0.01, text, ha="right", va="top", fontsize=8, color="#595959")


def _limits(values: pd.Series) -> tuple[float, float]:
    """A range for a logarithmic axis that holds all values."""
    return 0.7 * float(values.min()), 1.4 * float(values.max())


def show(figure: Figure | Axes | Sequence[Axes], alt: str) -> None:
    """Displays a figure in a notebook, with its finding in words, and closes it.

    The words are what a reader without the picture gets, in JupyterLab, in the HTML book and in an exported report.
    The same words for two figures are refused; running a cell once more is not.

    Args:
        figure: the figure, or axes in it.
        alt: the finding, such as "distilled images reach 37 % where random real ones reach 28 %".

    Raises:
        ValueError: for alt text that is missing, too short to state a finding, or that of another figure.
    """
    alt, place = _finding(alt, sys._getframe(1).f_code.co_filename)
    if not isinstance(figure, Figure):
        owner = (figure if isinstance(figure, Axes) else figure[0]).get_figure()
        assert isinstance(owner, Figure)
        figure = owner
    picture = io.BytesIO()
    with _style():
        figure.savefig(picture, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05, facecolor="white")
    picture = _slimmed(picture)
    # a figure that came from pyplot would be displayed a second time at the end of the cell
    pyplot.close(figure)
    _display(picture.getvalue(), alt, place)


def animate(pictures: Mapping[str, Any], alt: str, *, columns: int, seconds: float = 0.7, rounds: int = 2) -> None:
    """Displays images that change, as an animated PNG, with what they show in words.

    It stops on its last picture after a few rounds, so that nothing moves beside the text for long. Where animation is
    not supported, and in print, the first picture is seen.

    Args:
        pictures: what `image_grid` takes, of one shape, by the title of each moment, in order; two or more.
        alt: the finding, as for `show`.
        columns: images a row.
        seconds: for each picture; the last one stays three times as long.
        rounds: how often it is played.

    Raises:
        ValueError: for fewer than two pictures, what `image_grid` refuses, or alt text that `show` would refuse.
    """
    if len(pictures) < 2:
        raise ValueError(f"an animation has two or more pictures, got {len(pictures)}")
    alt, place = _finding(alt, sys._getframe(1).f_code.co_filename)
    frames = []
    for title, images in pictures.items():
        drawn = io.BytesIO()
        figure = image_grid(images, columns=columns, title=title).get_figure()
        assert isinstance(figure, Figure)
        with _style():
            figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
        frames.append(Image.open(_slimmed(drawn)))
    moving, milliseconds = io.BytesIO(), [round(1000 * seconds)] * len(frames)
    milliseconds[-1] *= 3
    frames[0].save(
        moving, format="png", save_all=True, append_images=frames[1:], duration=milliseconds, loop=rounds, optimize=True
    )
    _display(moving.getvalue(), alt, place)


def _finding(alt: str, code: str) -> tuple[str, tuple[str, int]]:
    """Alt text in one line, and the cell that shows it; refused where it says nothing, or is that of another figure."""
    alt = " ".join(alt.split())
    if len(alt) < SHORTEST_ALT or " " not in alt:
        raise ValueError(f"alt text must state the finding in at least {SHORTEST_ALT} characters, got {alt!r}")
    cell, execution = _place(code)
    before = _shown.get(alt)
    if before is not None and (before[0] != cell or before[1] == execution):
        raise ValueError(f"this alt text is that of another figure already: {alt!r}; say what this one shows")
    return alt, (cell, execution)


def _display(png: bytes, alt: str, place: tuple[str, int]) -> None:
    from IPython.display import display  # only notebooks have it

    content = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(content, raw=True, metadata={"image/png": {"alt": alt}})
    _shown[alt] = place


def _slimmed(picture: io.BytesIO) -> io.BytesIO:
    """A PNG with six bits a channel: photographs take a third less, and no eye sees it."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    coarse = np.where(pixels > 252, 255, (pixels + 2) & 0b11111100).astype(np.uint8)
    slim = io.BytesIO()
    Image.fromarray(coarse).save(slim, format="png", optimize=True)
    return slim


def _place(code: str) -> tuple[str, int]:
    """The notebook cell that runs, and which execution it is.

    JupyterLab names the cell; elsewhere the file that the kernel makes of the cell's code stands for it.
    """
    from IPython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return code, 0
    kernel = getattr(shell, "kernel", None)
    metadata = kernel.get_parent("shell").get("metadata", {}) if kernel else {}
    return metadata.get("cellId") or code, shell.execution_count
