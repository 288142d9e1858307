"""Curves of a run and its cost: losses, the queue of networks, errors, seconds."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from iidlib.errors import InputError
from iidlib.plots.style import _FIXED, WIDTH, colours, log_limits, needs_rows, panels, styled

__all__ = ["cost_curves", "error_curves", "loss_curves", "queue_curves", "time_ladder"]


def loss_curves(
    metrics: pd.DataFrame, *, names: Mapping[str, str] | None = None, window: int = 5, ax: Axes | None = None
) -> Axes:
    """Weighted terms of an objective over the iterations, on a logarithmic axis.

    Each iteration has its own network and real images, so single values fluctuate: they are drawn as thin lines, their
    rolling median as a thick one.

    Args:
        metrics: logged iterations, with columns iteration and ``loss_<term>``.
        names: labels by term.
        window: logged iterations in the median.
        ax: axes to draw on.

    Raises:
        InputError: if no column starts with ``loss_``, or there are no rows.
    """
    terms = [str(column).removeprefix("loss_") for column in metrics if str(column).startswith("loss_")]
    if not terms:
        raise InputError(f"loss_curves needs columns loss_<term>, got {list(metrics)}")
    fixed = dict(zip(("mean", "cm", "cc"), (_FIXED["dm"], _FIXED["dm-cm"], _FIXED["dm-cc"]), strict=True))
    needs_rows("loss_curves", metrics)
    palette = {**colours(terms), **fixed}
    # a logarithmic axis cannot show terms that are all zero or NaN
    scale = "log" if (metrics[[f"loss_{term}" for term in terms]] > 0).any(axis=None) else "linear"
    with styled():
        ax = ax or panels(height=3)[0]
        for term in terms:
            values = metrics[f"loss_{term}"]
            ax.plot(metrics["iteration"], values, color=palette[term], linewidth=0.8, alpha=0.45)
            median = values.rolling(window, center=True, min_periods=1).median()
            ax.plot(metrics["iteration"], median, color=palette[term], linewidth=2, label=(names or {}).get(term, term))
        ax.set(xlabel="iteration", ylabel="weighted loss, sum over classes", yscale=scale)
        for axis_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter) if scale == "log" else ():
            axis_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        if len(terms) > 1:
            ax.legend()
        sns.despine(ax=ax)
    return ax


def queue_curves(metrics: pd.DataFrame, *, chance: float, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Size of IDM's queue over the iterations, and the networks' accuracy on their training images.

    Args:
        metrics: logged iterations, with columns iteration, queue_networks and queue_accuracy (percent).
        chance: chance accuracy in percent, drawn as a dotted line.
        axes: two axes to draw on.

    Returns:
        The axes of the size and of the accuracy.
    """
    axes = list(axes or panels(2, height=2.6))
    kinds = (("queue_networks", "networks in the queue"), ("queue_accuracy", "training accuracy (%)"))
    with styled():
        for ax, (column, label) in zip(axes, kinds, strict=True):
            ax.plot(metrics["iteration"], metrics[column], color=_FIXED["idm"], linewidth=2, drawstyle="steps-post")
            ax.set(xlabel="iteration", ylabel=label, ylim=(0, None))
            sns.despine(ax=ax)
        axes[1].axhline(chance, color="black", linewidth=1, linestyle=":")
    return axes


def error_curves(errors: pd.DataFrame, *, x: str, unit: str, ax: Axes | None = None) -> Axes:
    """Errors against the number of samples: one line per label, on logarithmic axes.

    Args:
        errors: one row per point, with columns n, error and label.
        x: label of the horizontal axis.
        unit: label of the vertical axis, with the unit of the error.
        ax: axes to draw on.
    """
    needs_rows("error_curves", errors)
    labels = list(dict.fromkeys(errors["label"]))
    with styled():
        ax = ax or panels(height=3)[0]
        sns.lineplot(
            errors, x="n", y="error", hue="label", style="label", markers=True, dashes=False,
            palette=colours(labels), errorbar=None, ax=ax,
        )  # fmt: skip
        ticks = sorted(errors["n"].unique())
        low, high = log_limits(errors["error"])
        heights = [lead * 10.0**power for power in range(-6, 7) for lead in (1, 2, 5)]
        heights = [height for height in heights if low <= height <= high]
        scale = "log" if (errors["error"] > 0).any() else "linear"
        ax.set(xscale="log", yscale=scale, xlabel=x, ylabel=unit, ylim=(low, high))
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_yticks(heights, [f"{height:g}" for height in heights])
        ax.minorticks_off()
        ax.legend(title="")
        sns.despine(ax=ax)
    return ax


def time_ladder(rungs: pd.DataFrame, *, unit: str, ax: Axes | None = None) -> Axes:
    """Times of the same computation with one more acceleration in each row, and the speedup over the first row.

    Args:
        rungs: one row per rung, from the top, with columns rung, time and total (speedup over the first).
        unit: label of the horizontal axis, with the unit of the time.
        ax: axes to draw on.
    """
    needs_rows("time_ladder", rungs)
    with styled():
        ax = ax or panels(height=0.9 + 0.36 * len(rungs))[0]
        sns.barplot(rungs, x="time", y="rung", color=_FIXED["dm"], alpha=0.75, ax=ax)
        for row, (time, total) in enumerate(zip(rungs["time"], rungs["total"], strict=True)):
            ax.annotate(f" {total:.1f}x", (time, row), va="center", fontsize=9)
        ax.set(xlabel=unit, ylabel="", xlim=(0, 1.12 * rungs["time"].max()))
        sns.despine(ax=ax)
    return ax


def cost_curves(costs: pd.DataFrame, *, axes: Mapping[str, str]) -> list[Axes]:
    """Seconds per iteration against problem size: one panel per kind of size, one line per side, on logarithmic axes.

    Args:
        costs: one row per size and side, with columns axis, size, side and seconds.
        axes: labels of the panels by the name of their axis.

    Returns:
        The axes of the panels, in the order of `axes`.
    """
    needs_rows("cost_curves", costs)
    sides = list(dict.fromkeys(costs["side"]))
    with styled():
        drawn = panels(len(axes), height=2.6, width=WIDTH)
        for ax, (name, label) in zip(drawn, axes.items(), strict=True):
            panel = costs[costs["axis"] == name]
            sns.lineplot(
                panel, x="size", y="seconds", hue="side", style="side", markers=True, dashes=False,
                palette=colours(sides), legend=name == next(iter(axes)), ax=ax,
            )  # fmt: skip
            ticks = sorted(panel["size"].unique())
            ax.set(xscale="log", yscale="log", xlabel=label, ylabel="", ylim=log_limits(costs["seconds"]))
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
            if ax is not drawn[0]:
                ax.set_yticklabels([])
            sns.despine(ax=ax)
        drawn[0].set_ylabel("seconds per iteration")
        drawn[0].legend(title="")
    return drawn
