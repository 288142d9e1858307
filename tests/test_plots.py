"""Figures: what they show, what their axes say, and alt text that states a finding once."""

import base64
import io
import types
import warnings
from collections.abc import Iterator
from typing import Any

import IPython.display
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from iidlib import plots
from iidlib.errors import InputError
from iidlib.plots import display

NAN = float("nan")

FINDING = "distilled images reach 37 % where random ones reach 28 %"


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """A chapter's committed output holds nothing from stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def scores(networks: tuple[str, ...] = ("convnet3",)) -> pd.DataFrame:
    rows = [
        {"label": label, "network": network, "accuracy": mean + step}
        for label, mean in (("random", 28.0), ("dm", 37.0), ("iid-dm", 38.0))
        for network in networks
        for step in (-1, 0, 1)
    ]
    return pd.DataFrame(rows)


def far(label: str, scale: float, count: int = 40) -> pd.DataFrame:
    return pd.DataFrame({"label": label, "distance": scale * np.linspace(0.5, 1.5, count)})


def metrics() -> pd.DataFrame:
    rounds = range(0, 200, 10)
    return pd.DataFrame(
        {"iteration": rounds, "loss": 1.0, "loss_mean": np.linspace(70, 25, 20), "loss_cm": 4.0, "grad_mean": 1.0}
    )


def rungs() -> pd.DataFrame:
    return pd.DataFrame({"rung": ["plain", "all at once", "fused"], "time": [1.2, 0.9, 0.2], "total": [1, 1.3, 6]})


def costs() -> pd.DataFrame:
    rows = [
        {"axis": axis, "size": size, "side": side, "seconds": size / 10 / factor}
        for axis, sizes in (("ipc", (1, 10, 50)), ("width", (32, 64)))
        for size in sizes
        for side, factor in (("loop", 1), ("ours", 5))
    ]
    return pd.DataFrame(rows)


def runs_of_methods() -> pd.DataFrame:
    """Three distillations each: cheap and weak, dear and no better, dear with a cheap pool, dear and best."""
    rows = [
        {"label": label, "seconds": seconds + step, "accuracy": accuracy + step, "pool_seconds": pool}
        for label, seconds, accuracy, pool in (
            ("dm", 100, 46.0, 0.0), ("idm", 900, 45.0, 0.0), ("iid-plus", 200, 56.0, 300.0),
            ("iid-idm", 2000, 60.0, 0.0),
        )
        for step in (-1, 0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def parts() -> pd.DataFrame:
    rows = [
        ("left out", "mosaics", 3.0, 1.0, 5.0, ""),
        ("left out", "cross-entropy", 0.5, -1.0, 2.0, ""),
        ("added alone", "mosaics", -2.0, -3.0, -1.0, ""),
        ("added alone", "cross-entropy", NAN, NAN, NAN, ""),
        ("added alone", "centralization", NAN, NAN, NAN, "not in use"),
    ]
    return pd.DataFrame(rows, columns=["group", "part", "mean", "low", "high", "note"])


FIGURES = {
    "bars": lambda: plots.accuracy_bars(scores(), chance=10),
    "bars of two networks": lambda: plots.accuracy_bars(scores(("convnet3", "alexnet"))),
    "losses": lambda: plots.loss_curves(metrics()),
    "queue": lambda: plots.queue_curves(
        pd.DataFrame({"iteration": [0, 10], "queue_networks": [4, 5], "queue_accuracy": [0.0, 35.0]}), chance=10
    )[1],
    "distances": lambda: plots.distance_distribution(pd.concat([far("real", 1), far("dm", 0.9)]), unit="distance (1)"),
    "ladder": lambda: plots.time_ladder(rungs(), unit="seconds"),
    "costs": lambda: plots.cost_curves(costs(), axes={"ipc": "images per class", "width": "width"})[0],
    "covariances": lambda: plots.covariance_heatmaps({"dm": np.eye(8), "dm-cm": np.eye(8) / 2}, unit="gap (units²)")[0],
    "costs of methods": lambda: plots.pareto(runs_of_methods()),
    "parts": lambda: plots.part_gains(parts()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_returned_with_labels(name: str) -> None:
    ax = FIGURES[name]()
    assert isinstance(ax, Axes)
    assert ax.get_xlabel()
    # the rows of a bar chart name themselves
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_unknown_to_pyplot_and_leaves_the_settings_alone(name: str) -> None:
    before = matplotlib.rcParams.copy()
    FIGURES[name]()
    assert pyplot.get_fignums() == []
    assert matplotlib.rcParams == before


@pytest.mark.parametrize("name", ["bars", "losses", "distances"])
def test_axes_that_are_given_are_used(name: str) -> None:
    ax = plots.panels(2)[1]
    draw: dict[str, Any] = {
        "bars": lambda: plots.accuracy_bars(scores(), ax=ax),
        "losses": lambda: plots.loss_curves(metrics(), ax=ax),
        "distances": lambda: plots.distance_distribution(far("real", 1), unit="distance (1)", ax=ax),
    }
    assert draw[name]() is ax


def test_colours_are_those_of_the_book_and_told_apart() -> None:
    found = plots.colours(["real", "dm", "dm-cc", "dm-cm", "iid-dm", "another", "yet another"])
    on_idm = plots.colours(["random", "random-mosaic", "dm", "idm", "idm-cc", "idm-cm", "iid-idm"])
    assert len(set(on_idm.values())) == len(on_idm)
    assert len(set(found.values())) == len(found)
    assert plots.colours(["dm"])["dm"] == plots.colours(["another", "dm"])["dm"]
    # every two also differ in lightness or hue under the most common colour blindness (deuteranopia, Viénot 1999)
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    seen = [matrix @ np.array(to_rgb(colour)) ** 2.2 for colour in found.values()]
    nearest = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
    assert nearest > 0.03


# image_grid


def test_images_stand_where_they_belong() -> None:
    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    for i in range(5):
        images[i] = 50 * i
    ax = plots.image_grid(images.split(3), row_labels=["cat", "dog"], title="real")
    canvas = ax.get_images()[0].get_array()
    assert canvas is not None and canvas.shape == (10, 16, 3)  # two rows of three, two pixels between
    assert [int(canvas[row, column, 0]) for row in (0, 6) for column in (0, 6, 12)] == [0, 50, 100, 150, 200, 255]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    assert ax.get_title("left") == "real"
    flat = plots.image_grid(images, columns=3).get_images()[0].get_array()
    assert flat is not None and np.array_equal(flat, canvas), "a flat list in the same order"


def test_a_name_stands_beside_the_images_of_its_class_also_where_classes_differ_in_number() -> None:
    rows = [torch.full((n, 3, 4, 4), 50 * n, dtype=torch.uint8) for n in (1, 3, 0, 2)]
    ax = plots.image_grid(rows, row_labels=["one", "three", "none", "two"])
    canvas = ax.get_images()[0].get_array()
    assert canvas is not None and canvas.shape == (22, 16, 3)
    middles = dict(zip([label.get_text() for label in ax.get_yticklabels()], ax.get_yticks(), strict=True))
    found = {name: [int(canvas[int(at), column, 0]) for column in (0, 6, 12)] for name, at in middles.items()}
    assert found == {
        "one": [50, 255, 255], "three": [150, 150, 150], "none": [255, 255, 255], "two": [100, 100, 255],
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_type_and_with_a_gradient_are_drawn_alike(dtype: torch.dtype) -> None:
    images = torch.ones(2, 1, 4, 4, dtype=dtype) * (255 if dtype == torch.uint8 else 1)
    images = images if dtype == torch.uint8 else images.requires_grad_()
    canvas = plots.image_grid([images, torch.zeros(1, 3, 4, 4)]).get_images()[0].get_array()
    assert canvas is not None and int(canvas[0, 0, 0]) == 255 and int(canvas[6, 0, 0]) == 0


@pytest.mark.parametrize(("rows", "count", "side"), [(200, 8, 224), (1000, 1, 64), (1, 1, 1), (1, 1000, 8)])
def test_a_grid_of_any_size_can_be_saved(rows: int, count: int, side: int) -> None:
    images = [np.zeros((count, 1, side, side), np.uint8)] * rows
    figure = plots.image_grid(images, row_labels=[f"class {row}" for row in range(rows)]).get_figure()
    assert isinstance(figure, matplotlib.figure.Figure)
    figure.savefig(io.BytesIO(), format="png", dpi=20)
    assert max(figure.get_size_inches()) * 100 < 2**16, "what the picture can hold at the resolution of the screen"


@pytest.mark.parametrize("name", ["$5 or $10", "_hidden", "x" * 200, "two\nlines", "Äpfel & <b>Birnen</b>", "a^{b"])
def test_names_of_folders_are_written_as_they_are(name: str) -> None:
    row = np.zeros((3, 3, 16, 16), np.uint8)
    points = pd.DataFrame({"label": "dm", "class": [0], "x": [0.0], "y": [0.0]})
    (drawn,) = plots.projection(points, classes=[name])
    texts = [plots.image_grid([row], row_labels=[name]).get_yticklabels()[0], drawn.get_legend().get_texts()[0]]
    for text in texts:
        shown, mathematics = text._preprocess_math(text.get_text())
        assert not mathematics, "mathtext would leave out the $"
        assert shown.strip() == name if len(name) < 28 else shown[:14] == name[:14] and len(shown) <= 28


def test_images_in_the_unit_range_and_grey_ones_are_taken() -> None:
    ax = plots.image_grid(np.full((2, 1, 4, 4), 0.5, np.float32), columns=2)
    canvas = ax.get_images()[0].get_array()
    assert canvas is not None and canvas[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((6, 3, 4, 4), np.uint8), {"row_labels": ["a", "b", "c"]}, "one .* for each of the 3 labels"),
        (np.zeros((2, 3, 4, 4), np.uint8), {"columns": None}, "needs columns"),
        (np.zeros((2, 3, 4, 4), np.uint8), {"columns": 0}, "at least 1, got 0"),
        (np.zeros((1, 2, 3, 4, 4), np.uint8), {}, "got columns=2"),
        ([np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 3, 5, 5), np.uint8)], {"columns": None}, "one size"),
        ([np.zeros((3, 4, 4), np.uint8), np.zeros((3, 5, 5), np.uint8)], {}, "one size"),
        ([], {}, "at least one"),
        (None, {}, "got None"),
        (np.full((2, 3, 4, 4), np.nan), {}, "finite values, got NaN"),
        (np.zeros((3, 4, 4), np.uint8), {}, "at least one"),
        (np.zeros((0, 3, 4, 4), np.uint8), {}, "at least one"),
        (np.zeros((2, 4, 4, 3), np.uint8), {}, "B, 1 or 3"),
        (np.full((2, 3, 4, 4), -1.5), {}, "denormalise"),
        (np.full((2, 3, 4, 4), 1.5), {}, "denormalise"),
        (np.zeros((2, 3, 4, 4), np.int64), {}, "int64"),
        (np.zeros((1, 2, 3, 4, 4), np.uint8), {"columns": None, "row_labels": ["a", "b"]}, "2 labels for 1 rows"),
    ],
)
def test_wrong_images_are_refused(images: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plots.image_grid(images, **({"columns": 2} | options))


# what the other figures show


def test_bars_show_means_and_points_single_networks() -> None:
    ax = plots.accuracy_bars(scores(), chance=10)
    assert sorted(round(patch.get_width(), 6) for patch in ax.patches) == [28, 37, 38]
    spots = np.concatenate([np.asarray(found.get_offsets()) for found in ax.collections])
    assert sorted(spots[:, 0].round(6)) == sorted(scores()["accuracy"])
    assert "%" in ax.get_xlabel()
    assert ax.get_xlim()[0] == 0, "a bar that does not begin at zero lies about its length"
    assert [text.get_text() for text in ax.texts] == ["chance"]


def test_the_line_on_a_bar_is_the_population_deviation() -> None:
    ax = plots.accuracy_bars(scores())
    ends = sorted(float(end) for line in ax.lines for end in np.asarray(line.get_xdata()))
    deviation = np.std([-1, 0, 1])
    assert np.allclose(ends, sorted(mean + sign * deviation for mean in (28, 37, 38) for sign in (-1, 1)))


def test_bars_are_grouped_by_network() -> None:
    ax = plots.accuracy_bars(scores(("convnet3", "alexnet")))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["convnet3", "alexnet"]
    legend = ax.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["random", "dm", "iid-dm"]


def test_loss_curves_show_the_terms_and_not_the_gradients() -> None:
    ax = plots.loss_curves(metrics(), names={"mean": "mean matching"})
    legend = ax.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["mean matching", "cm"]
    assert ax.get_yscale() == "log"
    assert len(ax.lines) == 4  # each term thin, and its median thick


def test_loss_curves_need_a_term() -> None:
    with pytest.raises(ValueError, match="loss_<term>"):
        plots.loss_curves(metrics()[["iteration", "loss"]])


def test_heatmaps_share_one_scale_about_zero() -> None:
    axes = plots.covariance_heatmaps({"dm": np.diag([4.0, -2]), "dm-cm": np.diag([1.0, -1])}, unit="gap (units²)")
    limits = {ax.get_images()[0].get_clim() for ax in axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high and 3 < high <= 4
    assert [ax.get_title("left") for ax in axes] == ["dm", "dm-cm"]
    figure = axes[0].get_figure()
    assert figure is not None and figure.axes[-1].get_ylabel() == "gap (units²)"


def test_equal_covariances_have_a_heatmap_too() -> None:
    (ax,) = plots.covariance_heatmaps({"dm": np.zeros((3, 3))}, unit="gap (units²)")
    assert ax.get_images()[0].get_clim() == (-1, 1)


def test_distances_rise_to_all_images() -> None:
    ax = plots.distance_distribution(pd.concat([far("real", 1), far("dm", 0.5)]), unit="distance (1)")
    drawn = {to_hex(line.get_color()): line for line in ax.lines}
    for label in ("real", "dm"):
        assert np.asarray(drawn[plots.colours([label])[label]].get_ydata()).max() == 100


# show


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, dict]]:
    """What was displayed, with its metadata; the memory of alt text starts empty."""
    found: list[tuple[dict, dict]] = []
    monkeypatch.setattr(display, "_shown", {})  # private: nothing else forgets what a process has shown
    monkeypatch.setattr(
        IPython.display, "display", lambda content, raw, metadata: found.append((content, metadata)), raising=True
    )
    return found


def test_a_figure_is_displayed_with_its_finding(shown: list[tuple[dict, dict]]) -> None:
    plots.show(plots.accuracy_bars(scores()), FINDING.replace(" ", "\n   "))
    ((content, metadata),) = shown
    assert metadata == {"image/png": {"alt": FINDING}}
    assert content["text/plain"] == FINDING
    picture = Image.open(io.BytesIO(base64.b64decode(content["image/png"])))
    assert picture.format == "PNG" and 300 < picture.width < 900


def test_figures_axes_and_lists_of_axes_are_taken(shown: list[tuple[dict, dict]]) -> None:
    axes = plots.panels(2)
    plots.show(axes, "one finding of the three")
    plots.show(axes[0], "another finding of the three")
    figure = axes[0].get_figure()
    assert isinstance(figure, matplotlib.figure.Figure)
    plots.show(figure, "the last finding of the three")
    assert len({content["image/png"] for content, _ in shown}) == 1


def test_a_figure_of_pyplot_is_closed(shown: list[tuple[dict, dict]]) -> None:
    plots.show(pyplot.figure(), FINDING)
    assert pyplot.get_fignums() == []


def test_photographs_lose_at_most_two_levels(shown: list[tuple[dict, dict]]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, format="png")
    slim = display.slimmed(io.BytesIO(whole.getvalue()))
    change = np.asarray(Image.open(slim)).astype(int) - noise
    assert np.abs(change).max() <= 2
    assert len(slim.getvalue()) < 0.85 * len(whole.getvalue())
    white = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(white, format="png")
    assert np.asarray(Image.open(display.slimmed(white))).min() == 255


@pytest.mark.parametrize("alt", ["", "   ", "a figure", "accuracies-of-three-sets"])
def test_alt_text_without_a_finding_is_refused(shown: list[tuple[dict, dict]], alt: str) -> None:
    with pytest.raises(ValueError, match="alt text must state the finding"):
        plots.show(plots.accuracy_bars(scores()), alt)
    assert shown == []


def notebook(monkeypatch: pytest.MonkeyPatch, cell: str | None, execution: int) -> None:
    """As if a cell of a notebook ran; JupyterLab names it, other front ends do not."""
    parent = {"metadata": {"cellId": cell} if cell else {}}
    kernel = types.SimpleNamespace(get_parent=lambda channel: parent)
    shell = types.SimpleNamespace(kernel=kernel, execution_count=execution)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)


def test_alt_text_of_another_figure_is_refused(shown: list[tuple[dict, dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    figure = plots.accuracy_bars(scores())
    notebook(monkeypatch, "first", 1)
    plots.show(figure, FINDING)
    with pytest.raises(ValueError, match="that of another figure"):  # twice in one cell
        plots.show(figure, FINDING)
    notebook(monkeypatch, "second", 2)
    with pytest.raises(ValueError, match="that of another figure"):
        plots.show(figure, FINDING)
    plots.show(figure, FINDING + " here")
    assert len(shown) == 2


def test_a_cell_may_run_again(shown: list[tuple[dict, dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    figure = plots.accuracy_bars(scores())
    for execution in (1, 2, 3):
        notebook(monkeypatch, "first", execution)
        plots.show(figure, FINDING)
    assert len(shown) == 3


def test_without_a_name_a_cell_is_known_by_its_code(
    shown: list[tuple[dict, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"plots.show(figure, {FINDING!r})"
    names = {"plots": plots, "figure": plots.accuracy_bars(scores())}
    for execution in (1, 2):
        notebook(monkeypatch, None, execution)
        exec(compile(code, "cell of this code", "exec"), names)
    notebook(monkeypatch, None, 3)
    with pytest.raises(ValueError, match="that of another figure"):
        exec(compile(code, "another cell", "exec"), names)


def test_outside_of_a_notebook_a_finding_counts_once(shown: list[tuple[dict, dict]]) -> None:
    figure = plots.accuracy_bars(scores())
    plots.show(figure, FINDING)
    with pytest.raises(ValueError, match="that of another figure"):
        plots.show(figure, FINDING)


# time_ladder, cost_curves


def test_a_ladder_says_how_much_faster_each_rung_is() -> None:
    ax = plots.time_ladder(rungs(), unit="seconds")
    assert [round(bar.get_width(), 6) for bar in ax.patches] == [1.2, 0.9, 0.2]
    assert [text.get_text().strip() for text in ax.texts] == ["1.0x", "1.3x", "6.0x"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["plain", "all at once", "fused"]


def test_costs_have_a_panel_a_size_on_one_scale() -> None:
    drawn = plots.cost_curves(costs(), axes={"ipc": "images per class", "width": "width"})
    assert [ax.get_xlabel() for ax in drawn] == ["images per class", "width"]
    assert drawn[0].get_ylim() == drawn[1].get_ylim() and drawn[0].get_yscale() == drawn[0].get_xscale() == "log"
    assert [label.get_text() for label in drawn[0].get_xticklabels()] == ["1", "10", "50"]
    assert {text.get_text() for text in drawn[0].get_legend().get_texts()} == {"loop", "ours"}
    lines = [line for line in drawn[1].get_lines() if len(line.get_xdata())]
    assert sorted(float(line.get_ydata()[-1]) for line in lines) == [1.28, 6.4]


class TestSettingCurve:
    def swept(self) -> pd.DataFrame:
        rows = [
            {"label": label, "value": value, "accuracy": base + step}
            for label, base in (("dm-cc", 38.0), ("idm-cc", 41.0))
            for value in (10.0, 0.0, 0.3)
            for step in (-1, 0, 1)
        ]
        return pd.DataFrame(rows)

    def test_lines_go_through_the_means_in_the_order_of_the_values(self) -> None:
        ax = plots.setting_curve(self.swept(), setting="weight of class centralization")
        for line, mean in zip(ax.lines[:2], (38.0, 41.0), strict=True):
            np.testing.assert_allclose(line.get_xydata(), [[place, mean] for place in range(3)])
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.3", "10"]
        assert sum(len(points.get_offsets()) for points in ax.collections) == 18

    def test_axes_and_legend_say_what_is_shown(self) -> None:
        ax = plots.setting_curve(self.swept(), setting="weight of class centralization")
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("weight of class centralization", "test accuracy (%)")
        legend = ax.get_legend()
        assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["dm-cc", "idm-cc"]
        one = self.swept().query("label == 'dm-cc'")
        assert plots.setting_curve(one, setting="weight").get_legend() is None

    def test_references_are_lines_across_in_their_own_colour(self) -> None:
        ax = plots.setting_curve(self.swept(), setting="weight", references={"random": 28.5})
        line = ax.lines[-1]
        assert set(line.get_ydata()) == {28.5} and to_hex(line.get_color()) == plots.colours(["random"])["random"]
        assert [text.get_text() for text in ax.texts] == ["random"]


class TestCellPoints:
    def cells(self) -> pd.DataFrame:
        rows = [("dm, IPC 1", "published", 26.0), ("dm, IPC 1", "ours", 24.0), ("idm, IPC 1", "ours", 42.0)]
        return pd.DataFrame(rows, columns=["label", "series", "accuracy"])

    def test_a_point_a_value_in_the_order_of_the_cells(self) -> None:
        ax = plots.cell_points(self.cells())
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["dm, IPC 1", "idm, IPC 1"]
        drawn = {points.get_label(): points.get_offsets().tolist() for points in ax.collections}
        assert drawn == {"published": [[26.0, 0.0]], "ours": [[24.0, 0.0], [42.0, 1.0]]}
        assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first cell is at the top"

    def test_what_was_not_measured_here_is_a_ring(self) -> None:
        ring, dots = plots.cell_points(self.cells()).collections
        assert not len(ring.get_facecolors()) and len(dots.get_facecolors())


class TestPareto:
    def dots(self, ax: Axes) -> dict[str, list[float]]:
        marked = [line for line in ax.lines if line.get_marker() == "o"]
        return {str(line.get_label()): line.get_xydata()[0].tolist() for line in marked}

    def test_a_method_stands_at_its_means_with_its_pool(self) -> None:
        ax = plots.pareto(runs_of_methods())
        dots = self.dots(ax)
        assert dots["dm"] == [100, 46] and dots["iid-plus"] == [500, 56]
        rings = [
            dots.get_offsets().tolist() for dots in ax.collections if to_hex(dots.get_facecolors()[0]) == "#ffffff"
        ]
        assert [[200.0, 56.0]] in rings, "without its pool"
        assert ax.get_xscale() == "log" and "seconds" in ax.get_xlabel() and "%" in ax.get_ylabel()

    def test_the_line_goes_through_what_nothing_cheaper_beats(self) -> None:
        line = plots.pareto(runs_of_methods()).lines[0]
        assert line.get_xydata().tolist() == [[100, 46], [500, 56], [2000, 60]] and line.get_drawstyle() == "steps-post"

    def test_a_method_whose_pool_nobody_knows_is_drawn_and_not_on_the_line(self) -> None:
        runs = runs_of_methods()
        runs.loc[runs["label"] == "iid-idm", "pool_seconds"] = [NAN, 10.0, 10.0]
        ax = plots.pareto(runs)
        assert ax.lines[0].get_xydata().tolist() == [[100, 46], [500, 56]] and "iid-idm" in self.dots(ax)
        fills = {str(line.get_label()): line.get_fillstyle() for line in ax.lines if line.get_marker() == "o"}
        assert fills == {"dm": "full", "idm": "full", "iid-plus": "full", "iid-idm": "left"}
        names = [text.get_text() for text in ax.get_legend().get_texts()]
        assert names == ["with pool training", "without it", "pool not recorded"]

    def test_equal_costs_leave_the_better_one_on_the_line(self) -> None:
        rows = pd.DataFrame({"label": ["dm", "idm"], "seconds": [10.0, 10.0], "accuracy": [40.0, 50.0]})
        assert plots.pareto(rows).lines[0].get_xydata().tolist() == [[10, 50]]

    def test_whiskers_end_at_the_extreme_distillations(self) -> None:
        ends = [line.get_xydata().tolist() for line in plots.pareto(runs_of_methods()).lines]
        assert [[100, 45], [100, 47]] in ends and [[99, 46], [101, 46]] in ends and [[499, 56], [501, 56]] in ends

    def test_without_a_known_pool_there_is_one_mark_and_no_legend(self) -> None:
        ax = plots.pareto(runs_of_methods().drop(columns="pool_seconds"))
        assert self.dots(ax)["iid-plus"] == [200, 56] and ax.get_legend() is None

    def test_names_cover_neither_each_other_nor_marks(self) -> None:
        near = [(f"method {n}", 100.0 + 6 * n, 50.0 + 0.1 * n) for n in range(5)]
        ax = plots.pareto(pd.DataFrame(near, columns=["label", "seconds", "accuracy"]))
        ax.get_figure().draw_without_rendering()
        boxes = [text.get_window_extent() for text in ax.texts]
        assert len(boxes) == 5
        assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
        points = ax.transData.transform([(seconds, accuracy) for _, seconds, accuracy in near])
        assert not any(box.contains(*point) for box in boxes for point in points)


class TestPartGains:
    def test_a_row_a_part_below_the_name_of_its_group(self) -> None:
        ax = plots.part_gains(parts(), title="tour")
        named = dict(zip([text.get_text() for text in ax.get_yticklabels()], ax.get_yticks(), strict=True))
        assert named["left out"] == 0 and named["added alone"] == 3 and named["centralization"] == 6
        assert [text.get_fontweight() for text in ax.get_yticklabels()][:3] == ["bold", "bold", "normal"]
        assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_title("left") == "tour"

    def test_means_and_intervals_stand_about_zero(self) -> None:
        ax = plots.part_gains(parts())
        assert [dots.get_offsets()[0].tolist() for dots in ax.collections] == [[3, 1], [0.5, 2], [-2, 4]]
        ends = [line.get_xydata().tolist() for line in ax.lines]
        assert [[1, 1], [5, 1]] in ends and [[0, 0], [0, 1]] in ends

    def test_a_dot_is_filled_where_the_interval_leaves_out_zero(self) -> None:
        faces = [to_hex(dots.get_facecolors()[0]) for dots in plots.part_gains(parts()).collections]
        assert [face == "#ffffff" for face in faces] == [False, True, False]

    def test_what_was_not_measured_is_missing_or_says_why(self) -> None:
        assert [text.get_text() for text in plots.part_gains(parts()).texts] == ["missing", "not in use"]

    def test_a_mean_without_an_interval_is_a_diamond(self) -> None:
        few = parts().assign(low=NAN, high=NAN, note="1 seed")[:2]
        ax = plots.part_gains(few)
        marks = [dots.get_paths()[0].vertices.round(2).tolist() for dots in ax.collections]
        assert all(len(one) == 5 and [0, -0.71] in one for one in marks), "a square on its corner"
        assert [dots.get_offsets()[0].tolist() for dots in ax.collections] == [[3, 1], [0.5, 2]]
        assert len(ax.lines) == 1 and not ax.texts, "the line at zero"

    def test_zero_is_inside_of_the_panel_whatever_the_gains_are(self) -> None:
        one = parts()[:1].assign(low=2.9, high=3.1)
        low, high = plots.part_gains(one).get_xlim()
        assert low < 0 < 3.1 < high


def measured(labels: list[str]) -> pd.DataFrame:
    rows = [
        {"label": label, "network": n, "class": c, "within": 10 + i + (c == "dog"), "gap": 0.1 * (i + 1)}
        for i, label in enumerate(labels)
        for n in range(2)
        for c in ("cat", "dog")
    ]
    return pd.DataFrame(rows)


def test_measures_have_a_panel_each_and_a_bar_at_the_mean() -> None:
    axes = plots.measure_strips(measured(["real", "dm"]), names={"within": "within (units²)", "gap": "gap (no unit)"})
    assert [ax.get_xlabel() for ax in axes] == ["within (units²)", "gap (no unit)"]
    bars = axes[0].collections[-1].get_offsets()
    assert np.allclose(bars, [(11.5, 1), (10.5, 0)]) or np.allclose(bars, [(10.5, 0), (11.5, 1)])


def test_accuracies_along_an_axis_have_lines_through_means_and_a_point_a_network() -> None:
    rows = [
        {"label": label, "step": step, "accuracy": 50.0 + i + network - step}
        for i, label in enumerate(("dm", "random"))
        for step in (1, 2, 5)
        for network in (0, 2)
    ]
    guess = pd.DataFrame({"step": [1, 2, 5], "accuracy": [50.0, 25.0, 10.0]})
    ax = plots.accuracy_curves(pd.DataFrame(rows), x="step", label="step", chance=guess)
    drawn = [tuple(np.round(line.get_ydata(), 6)) for line in ax.lines]
    assert (50, 49, 46) in drawn and (51, 50, 47) in drawn and (50, 25, 10) in drawn
    assert list(ax.get_xticks()) == [1, 2, 5] and ax.get_ylabel() == "test accuracy (%)"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"dm", "random"}


def test_a_projection_has_a_panel_a_set_with_the_real_one_behind() -> None:
    rows = [
        {"label": label, "class": c, "x": float(i), "y": float(c)}
        for label in ("real", "dm", "iid-dm")
        for c in range(2)
        for i in range(3)
    ]
    axes = plots.projection(pd.DataFrame(rows), classes=["cat", "dog"])
    assert [ax.get_title(loc="left") for ax in axes] == ["dm", "iid-dm"]
    behind, *front = axes[0].collections
    assert len(behind.get_offsets()) == 6 and [len(one.get_offsets()) for one in front] == [3, 3]
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["cat", "dog"]
    named = plots.projection(pd.DataFrame(rows), classes=["cat", "dog"], names=("length", "width"))
    assert (named[0].get_xlabel(), named[0].get_ylabel()) == ("length", "width")


def test_an_animation_plays_every_picture_and_stops(shown: list[tuple[dict, dict]]) -> None:
    pictures = {f"after {k}": np.full((16, 3, 32, 32), 40 * k, np.uint8) for k in range(4)}
    plots.animate(pictures, "four pictures become brighter", columns=4, seconds=0.5, rounds=3)
    ((content, metadata),) = shown
    moving = Image.open(io.BytesIO(base64.b64decode(content["image/png"])))
    assert moving.n_frames == 4 and moving.info["loop"] == 3 and moving.info["duration"] == 500
    assert metadata["image/png"]["alt"] == "four pictures become brighter"
    levels = []
    for k in range(4):
        moving.seek(k)
        gray = np.asarray(moving.convert("L"))
        levels.append(int(np.median(gray)))
    assert moving.info["duration"] == 1500 and len(set(levels)) >= 3
    with pytest.raises(ValueError, match="two or more pictures, got 1"):
        plots.animate({"one": pictures["after 0"]}, "one picture does not move", columns=4)
    with pytest.raises(ValueError, match="at least"):
        plots.animate(pictures, "short", columns=4)


def test_errors_are_drawn_on_logarithmic_axes_with_plain_numbers() -> None:
    rows = [
        {"label": label, "n": n, "error": size / n**0.5}
        for label, size in (("local", 1), ("whole", 5))
        for n in (5, 50)
    ]
    ax = plots.error_curves(pd.DataFrame(rows), x="images per class", unit="relative error")
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "images per class")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["5", "50"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.1", "0.2", "0.5", "1", "2"]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"local", "whole"}


def test_a_figure_of_measured_rows_says_what_they_are() -> None:
    rows = pd.DataFrame(
        {"scale": ["laptop", "laptop", "tour"], "seed": [1, 0, 0],
         "date": ["2026-11-22T15:24:07+00:00", "2026-11-20T01:00:00+00:00", "2026-11-25T09:00:00+00:00"]}
    )  # fmt: skip
    ax = plots.panels()[0]
    plots.note(ax, rows)
    (text,) = (text.get_text() for text in ax.get_figure().texts)
    assert text == "scale laptop and tour; seeds 0, 1; measured 2026-11-20 to 2026-11-25"
    axes = plots.panels(2)
    plots.note(axes, rows[:1])
    assert axes[0].get_figure().texts[0].get_text().endswith("measured 2026-11-22")


NOTHING = {
    "bars": (plots.accuracy_bars, {}),
    "curves": (plots.accuracy_curves, {"x": "step", "label": "step"}),
    "cells": (plots.cell_points, {}),
    "settings": (plots.setting_curve, {"setting": "weight"}),
    "errors": (plots.error_curves, {"x": "n", "unit": "1"}),
    "distances": (plots.distance_distribution, {"unit": "1"}),
    "strips": (plots.measure_strips, {"names": {"within": "within"}}),
    "projection": (plots.projection, {"classes": ["a"]}),
    "ladder": (plots.time_ladder, {"unit": "s"}),
    "costs": (plots.cost_curves, {"axes": {"ipc": "images"}}),
    "costs of methods": (plots.pareto, {}),
    "parts": (plots.part_gains, {}),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_figure_of_nothing_is_a_sentence(name: str) -> None:
    draw, options = NOTHING[name]
    with pytest.raises(InputError, match="needs rows, got none"):
        draw(pd.DataFrame(), **options)


EDGES = {
    "one network that diverged": lambda: plots.accuracy_bars(scores()[:1].assign(accuracy=NAN), chance=50),
    "one step": lambda: plots.accuracy_curves(scores()[:1].assign(step=1), x="step", label="step"),
    "losses of zero": lambda: plots.loss_curves(metrics().assign(loss_mean=0.0, loss_cm=0.0)),
    "losses of NaN": lambda: plots.loss_curves(metrics().assign(loss_mean=NAN, loss_cm=NAN)),
    "no error": lambda: plots.error_curves(
        pd.DataFrame({"label": "a", "n": [1, 2], "error": [0.0, NAN]}), x="n", unit="1"
    ),
    "covariances of one channel": lambda: plots.covariance_heatmaps({"a": np.ones((1, 1))}, unit="1")[0],
    "covariances that diverged": lambda: plots.covariance_heatmaps({"a": np.full((3, 3), NAN)}, unit="1")[0],
    "covariances with a gradient": lambda: plots.covariance_heatmaps(
        {"a": torch.eye(3, dtype=torch.bfloat16, requires_grad=True)}, unit="1"
    )[0],
    "measures of one class": lambda: plots.measure_strips(
        pd.DataFrame({"label": ["dm"], "within": [1.0]}), names={"within": "within"}
    )[0],
    "measures that diverged": lambda: plots.measure_strips(
        pd.DataFrame({"label": ["dm", "real"], "within": [NAN, NAN]}), names={"within": "within"}
    )[0],
    "costs of one method that diverged": lambda: plots.pareto(runs_of_methods()[:3].assign(accuracy=NAN)),
    "costs of one distillation": lambda: plots.pareto(runs_of_methods()[:1].drop(columns="pool_seconds")),
    "no part measured": lambda: plots.part_gains(parts().assign(mean=NAN, low=NAN, high=NAN)),
    "parts without notes": lambda: plots.part_gains(parts().drop(columns="note")),
    "a single point": lambda: plots.projection(
        pd.DataFrame({"label": ["dm"], "class": [0], "x": [1.0], "y": [1.0]}), classes=["cat"]
    )[0],
    "two hundred classes": lambda: plots.projection(
        pd.DataFrame({"label": "dm", "class": range(200), "x": range(200), "y": 0.0}),
        classes=[f"class {c}" for c in range(200)],
    )[0],
}


@pytest.mark.parametrize("name", EDGES)
def test_little_or_diverged_data_is_drawn_without_a_warning(name: str) -> None:
    figure = EDGES[name]().get_figure()
    assert isinstance(figure, matplotlib.figure.Figure)
    figure.savefig(io.BytesIO(), format="png", dpi=30, bbox_inches="tight")


def test_a_series_more_than_colours_is_drawn_too() -> None:
    rows = pd.DataFrame({"label": "cell", "series": list("abcdefg"), "accuracy": range(7)})
    assert len(plots.cell_points(rows).collections) == 7


def test_a_projection_needs_a_set_beside_the_real_images() -> None:
    points = pd.DataFrame({"label": ["real"], "class": [0], "x": [1.0], "y": [1.0]})
    with pytest.raises(InputError, match="besides 'real'"):
        plots.projection(points, classes=["cat"])


def test_a_note_on_nothing_says_so() -> None:
    ax = plots.panels()[0]
    plots.note(ax, pd.DataFrame({"scale": [], "seed": [], "date": []}))
    assert [text.get_text() for text in ax.get_figure().texts] == ["nothing measured"]
