"""The paper's evidence by name: what was published, what has been measured here, what is missing.

A cell is one number of a table or a point of a figure. It is filled by rows of results (``data/results``): those of its
data set, method, images a class, network and settings, at one scale. A cell of the paper counts as measured at scale
``paper`` only; smaller scales stand beside it under their own names.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib.config import RunConfig, override, preset
from iidlib.config.recipes import BASELINES
from iidlib.errors import InputError, suggest
from iidlib.experiments.published import published_value
from iidlib.experiments.results import protocol_text
from iidlib.experiments.tables import read_results, results_dir

__all__ = [
    "EXPERIMENTS",
    "Cell",
    "Experiment",
    "all_rows",
    "find",
    "mean_of",
    "measured",
    "table",
    "within",
]


def _usual_network(dataset: str) -> str:
    """What sets of a data set are judged by in the paper's main table."""
    return "convnet4" if dataset == "tinyimagenet" else "convnet3"


@dataclass(frozen=True)
class Cell:
    """One number of a table or figure."""

    dataset: str
    method: str
    ipc: int
    """Images a class; 0 for the whole training set."""
    network: str = "convnet3"
    """What the set is judged by."""
    settings: tuple[tuple[str, str], ...] = ()
    """What differs from the scale's own settings."""
    steps: int = 0
    """Of class-incremental learning: the accuracy is that after the last one, and a seed is also that of the order of
    classes. 0 where all classes are distilled at once."""

    @property
    def name(self) -> str:
        """``cifar10/ipc10/dm``, with the network and settings where they are not the usual ones."""
        parts = [self.dataset, f"ipc{self.ipc}" if self.ipc else "all", self.method]
        parts += [self.network] if self.network != self.usual.network else []
        parts += [f"{self.steps}steps"] if self.steps else []
        return "/".join([*parts, *(f"{key}={value}" for key, value in self.settings)])

    @property
    def usual(self) -> "Cell":
        """The cell of the same set, judged by the usual network."""
        return replace(self, network=_usual_network(self.dataset))

    def dataset_at(self, scale: str) -> str:
        """The data set that a run of it takes: the embedded images at the smallest scales."""
        embedded = scale in ("tour", "ci") and (self.dataset == "cifar10" or self.steps)
        return "cifar10-mini" if embedded else self.dataset

    def runs_at(self, scale: str) -> bool:
        """Whether there is such a run: scales below ``laptop`` have the embedded images only."""
        return scale in ("paper", "laptop") or self.dataset == "cifar10" or self.steps == 5

    def changes(self, scale: str) -> dict[str, str]:
        """Settings that a run of it is given beside the scale's, iterations as a number.

        Weights and thresholds of class centralization are in units of the real images' scatter at every scale, because
        a grid in the units of one pool's features means nothing in those of another.
        """
        given = dict(self.settings)
        own = preset(self.method, self.dataset, max(self.ipc, 1), scale)
        if any(key.startswith("match.cc") for key in given) and own.match.cc_scaling != "relative":
            given["match.cc_scaling"] = "relative"
        if (share := given.get("iterations", "")).endswith("%"):
            given["iterations"] = str(round(own.iterations * int(share[:-1]) / 100))
        return given


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    title: str
    cells: tuple[Cell, ...]
    """In the order of worth: what to measure first."""


def _main() -> tuple[Cell, ...]:
    methods = ("dm", "iid-dm", "idm", "iid-idm", "random", "random-mosaic", "herding", "k-center")
    cells = []
    for dataset in ("cifar10", "cifar100", "svhn", "tinyimagenet"):
        network = _usual_network(dataset)
        for ipc in (10, 50, 1):
            cells += [Cell(dataset, method, ipc, network) for method in methods]
        cells.append(Cell(dataset, "whole", 0, network))
    return tuple(cells)


def _sweep(method: str, key: str, values: Sequence[float | str], **more: str) -> list[Cell]:
    own = tuple((name.replace("__", "."), value) for name, value in more.items())
    return [Cell("cifar10", method, 10, settings=(*own, (key, str(value)))) for value in values]


_ABLATED = ("dm", "dm-cc", "dm-cm", "iid-dm", "idm", "idm-cc", "idm-cm", "iid-idm")

_NETWORKS = ("convnet3", "alexnet", "vgg11", "resnet18")

EXPERIMENTS: dict[str, Experiment] = {
    "main": Experiment("Test accuracy on four data sets (the paper's main table)", _main()),
    "ablation": Experiment(
        "Each term alone, on DM and on IDM", tuple(Cell("cifar10", method, 10) for method in _ABLATED)
    ),
    "architectures": Experiment(
        "Sets distilled with a ConvNet, judged by other networks",
        tuple(Cell("cifar10", m, 10, n) for m in ("iid-dm", "dm", "iid-idm", "idm", "random") for n in _NETWORKS),
    ),
    "weights": Experiment(
        "Accuracy over the weights of the two terms",
        tuple(_sweep("dm-cc", "match.cc", (0.3, 1, 3, 10, 30)) + _sweep("dm-cm", "match.cm", (0.001, 0.01, 0.1))),
    ),
    "beta": Experiment(
        "Accuracy over beta, in the exponential form of class centralization",
        tuple(
            _sweep("dm-cc", "match.cc_beta", (0, 2.2, 2.4, 2.75), match__cc="1", match__cc_form="exp",
                   match__cc_alpha="1")
        ),
    ),
    "iterations": Experiment(
        "Accuracy over the iterations of a distillation",
        tuple(cell for method in ("dm", "iid-dm") for cell in _sweep(method, "iterations", ("25%", "50%", "75%"))),
    ),
    "tsne": Experiment(
        "The sets that the t-SNE figure draws (chapter 09, which draws it)",
        tuple(Cell("cifar10", method, 50) for method in ("iid-dm", "dm")),
    ),
    "continual": Experiment(
        "Class-incremental learning from 20 images a class, after the last step",
        tuple(
            Cell("cifar100", method, 20, steps=steps)
            for steps in (5, 10)
            for method in ("iid-dm", "dm", "iid-idm", "idm", "random", "herding")
        ),
    ),
}  # fmt: skip
"""What can be run by name."""


def find(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        InputError: for an unknown one.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}{suggest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]


def within(name: str, only: str) -> bool:
    """Whether a cell's name begins with the parts of another: ``cifar10/ipc1`` has ``cifar10/ipc10`` not below it."""
    return f"{name}/".startswith(f"{only.rstrip('/')}/" if only else "")


_NUMBERS = (
    "ipc", "seed", "accuracy", "iterations", "epochs", "networks_seed", "evaluation_seed", "step", "steps", "order",
)  # fmt: skip


def all_rows(folder: Path | None = None) -> pd.DataFrame:
    """Rows of every table of accuracies in a folder, one below the other.

    Args:
        folder: of the results; the checkout's own when not given.

    Returns:
        Texts as they stand in the files, and as numbers ipc, seed, accuracy, iterations, epochs, networks_seed,
        evaluation_seed, step, steps and order.
    """
    frames = []
    for path in sorted((folder or results_dir()).glob("*.csv")):
        header = path.open(encoding="utf-8-sig").readline().strip().split(",")
        if {"dataset", "method", "ipc", "scale", "network", "seed", "accuracy"} <= set(header):
            frames.append(read_results(path))
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames, ignore_index=True).fillna("")
    for name in _NUMBERS:
        rows[name] = pd.to_numeric(rows[name], errors="coerce") if name in rows else math.nan
    for name in ("settings", "date", "step_sizes", "outcome"):
        if name not in rows:
            rows[name] = ""
    return rows


def measured(cell: Cell, scale: str, rows: pd.DataFrame) -> pd.Series:
    """Accuracy of each seed that was measured, the mean over its networks; empty where there is none.

    Rows of other settings, another number of iterations or another protocol do not count, nor a seed with fewer
    networks than the protocol has. Networks that diverged count with the accuracy that they have: to leave them out
    would be to choose by the result; `table` says how many they are. A setting that is written out and is the scale's
    own makes no difference. Where a seed was measured again with the same networks, the newest row of each counts.

    Args:
        cell: what is looked for.
        scale: at which scale; at ``tour`` the data set is ``cifar10-mini``.
        rows: of results.
    """
    own = _own_rows(cell, scale, rows)
    return own.groupby("seed")["accuracy"].mean() if len(own) else pd.Series(dtype=float)


def _own_rows(cell: Cell, scale: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cell's networks, the newest of each, of the seeds that have all of them."""
    dataset = cell.dataset_at(scale)
    if not rows.empty:
        rows = rows[(rows["dataset"] == dataset) & (rows["method"] == cell.method) & (rows["scale"] == scale)]
    if rows.empty:
        return rows
    if "step_sizes" in rows:  # the paper's steps are equal
        rows = rows[rows["step_sizes"].map(lambda sizes: len(set(sizes.split(","))) == 1)]
    given = cell.changes(scale)
    usual = preset(cell.method, dataset, max(cell.ipc, 1), scale)
    planned = override(usual, given)
    chosen = cell.method in BASELINES
    protocol = planned.eval.for_whole_set() if cell.method == "whole" else planned.eval
    tiles = 1 if chosen and cell.method != "random-mosaic" else planned.syn.factor
    given.pop("iterations", None)

    def unusual(pairs: Iterable[str]) -> set[RunConfig | str]:
        """What each of them makes of the scale's settings, without those that say what it has anyway.

        Those of the evaluation are left to the row's network, epochs, protocol and number of networks.
        """
        return {_changed(usual, pair) for pair in pairs if not pair.startswith("eval.")} - {usual}

    wanted = unusual(f"{key}={value}" for key, value in given.items())
    same = [text for text in rows["settings"].unique() if unusual(text.split()) == wanted]
    own = rows[
        rows["settings"].isin(same)
        & (rows["network"] == cell.network)
        & (rows["iterations"] == (0 if chosen else planned.iterations))
        & (rows["epochs"] == protocol.epochs)
        & (rows["protocol"] == protocol_text(protocol, cell.method, tiles))
        & ((rows["ipc"] == cell.ipc) | (cell.ipc == 0))
        & (rows["steps"].fillna(0) == cell.steps)
        & (rows["step"].fillna(0) == cell.steps)
        & ((rows["order"] == rows["seed"]) | (cell.steps == 0))
    ]
    own = own.sort_values("date", kind="stable").drop_duplicates(
        ["seed", "networks_seed", "evaluation_seed"], keep="last"
    )
    return own[own.groupby("seed")["accuracy"].transform("size") >= protocol.num_eval]


def _failed(own: pd.DataFrame) -> str:
    """How many of some networks did not come to be trained, ``2 diverged``; rows older than the column do not say."""
    told = own["outcome"].replace({"trained": ""}).fillna("") if "outcome" in own else pd.Series(dtype=object)
    return ", ".join(f"{count} {outcome}" for outcome, count in told[told != ""].value_counts().items())


def _changed(config: RunConfig, pair: str) -> RunConfig | str:
    """The settings with a change such as ``match.cc=1``; itself where a table names what does not exist."""
    key, _, value = pair.partition("=")
    try:
        return override(config, {key: value})
    except InputError:
        return pair


def table(name: str, folder: Path | None = None) -> pd.DataFrame:
    """The cells of an experiment, a row each: what was published, and what was measured at every scale.

    Args:
        name: one of ``EXPERIMENTS``.
        folder: of the results; the checkout's own when not given.

    Returns:
        Columns cell (its name), dataset, ipc, method, network, settings, steps, published, source; and for each of the
        scales paper, laptop and tour its mean, std (over distillation seeds, population; of two or more), seeds and
        failed (how many networks diverged, or the like). What is missing is NaN, with 0 seeds. Two columns after
        DD-Ranking say what needs no soft labels, at scale laptop: improvement over random images, and the gap to the
        whole set under the same scale, where both were measured.

    Raises:
        InputError: for an unknown experiment.
    """
    rows, found = all_rows(folder), []
    for cell in find(name).cells:
        other = cell.settings or cell.steps or cell != cell.usual
        printed = None if other else published_value(cell.dataset, cell.method, cell.ipc)
        line: dict[str, Any] = {
            "cell": cell.name,
            "dataset": cell.dataset,
            "ipc": cell.ipc,
            "method": cell.method,
            "network": cell.network,
            "settings": " ".join(f"{key}={value}" for key, value in cell.settings),
            "steps": cell.steps,
            "published": printed.value if printed else math.nan,
            "source": printed.source if printed else "not found",
        }
        for scale in ("paper", "laptop", "tour"):
            own = _own_rows(cell, scale, rows) if cell.runs_at(scale) else rows[:0]
            values = own.groupby("seed")["accuracy"].mean()
            line |= {
                f"{scale}_mean": values.mean() if len(values) else math.nan,
                f"{scale}_std": values.std(ddof=0) if len(values) > 1 else math.nan,
                f"{scale}_seeds": len(values),
                f"{scale}_failed": _failed(own),
            }
        found.append(line)
    return _with_scores(pd.DataFrame(found))


def mean_of(row: Mapping[Any, Any], scale: str) -> str:
    """What was measured at a scale as text, ``46.0 ± 0.2 (3)``: mean, spread over seeds, how many; "" for nothing.

    Networks that diverged are named: ``10.0 ± 0.0 (3; 15 diverged)``.

    Args:
        row: of `table`.
        scale: ``paper``, ``laptop`` or ``tour``.
    """
    mean, std, seeds = (row[f"{scale}_{part}"] for part in ("mean", "std", "seeds"))
    failed = row.get(f"{scale}_failed", "")
    return (
        f"{mean:.1f}{f' ± {std:.1f}' if seeds > 1 else ''} ({seeds}{f'; {failed}' if failed else ''})" if seeds else ""
    )


def _with_scores(cells: pd.DataFrame) -> pd.DataFrame:
    keys = ["dataset", "ipc"]
    plain = cells[(cells["settings"] == "") & (cells["steps"] == 0)]
    random = plain[plain["method"] == "random"].drop_duplicates([*keys, "network"])
    base = cells[[*keys, "network"]].merge(random[[*keys, "network", "laptop_mean"]], "left", [*keys, "network"])
    whole = plain[plain["method"] == "whole"].drop_duplicates(["dataset", "network"])
    top = cells[["dataset", "network"]].merge(
        whole[["dataset", "network", "laptop_mean"]], "left", ["dataset", "network"]
    )
    return cells.assign(
        over_random=cells["laptop_mean"] - base["laptop_mean"].to_numpy(),
        below_whole=top["laptop_mean"].to_numpy() - cells["laptop_mean"],
    )
