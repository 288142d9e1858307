"""The book's figures: from arrays and data frames to axes, and from axes to a notebook, with alt text.

A method has the same colour in every figure, taken from seaborn's colour-blind-safe palette. Every axis has a label and
its unit. The functions draw on new axes, or on given ones, and return them; `show` displays the finished figure in a
notebook and requires alt text that states the finding.
"""

from iidlib.plots.comparisons import pareto, part_gains
from iidlib.plots.curves import cost_curves, error_curves, loss_curves, queue_curves, time_ladder
from iidlib.plots.display import animate, show
from iidlib.plots.features import covariance_heatmaps, distance_distribution, measure_strips, projection
from iidlib.plots.images import image_grid
from iidlib.plots.scores import accuracy_bars, accuracy_curves, cell_points, note, setting_curve
from iidlib.plots.style import colours, panels

__all__ = [
    "accuracy_bars", "accuracy_curves", "animate", "cell_points", "colours", "cost_curves", "covariance_heatmaps",
    "distance_distribution", "error_curves", "image_grid", "loss_curves", "measure_strips", "note", "panels", "pareto",
    "part_gains", "projection", "queue_curves", "setting_curve", "show", "time_ladder",
]  # fmt: skip
