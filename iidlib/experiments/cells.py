"""The paper's experiments by name: its tables and figures, and their cells.

A cell is one number of a table or one point of a figure; `iidlib.experiments.measurements` defines which rows fill it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, NamedTuple

from attrs import evolve

from iidlib.config import EvalProtocol, RunConfig, override, preset, protocol

__all__ = [
    "EXPERIMENTS", "MATCHING", "ORDERS", "PARTS", "Cell", "Evaluation", "Experiment", "Part", "usual_network", "within",
]  # fmt: skip

Evaluation = Literal["", "idc", "paper"]
"""How a set is evaluated: ``""`` as its scale does, ``idc`` the same under the protocol ``idc``, ``paper`` as scale
``paper`` does, with one network per distillation seed."""


def usual_network(dataset: str) -> str:
    """The evaluation network of a dataset in the paper's main table."""
    return "convnet4" if dataset.removeprefix(_VALIDATION) == "tinyimagenet" else "convnet3"


_LONGEST = 160
"""Maximum number of characters of a cell in a folder's name; file systems allow 255 bytes for all of it."""

_VALIDATION = "validation:"
"""Prefix of a dataset's name that replaces its test images by held-out training images."""


@dataclass(frozen=True)
class Cell:
    """One number of a table or figure."""

    dataset: str
    method: str
    ipc: int
    """Images per class; 0 for the whole training set."""
    network: str = "convnet3"
    """The evaluation network."""
    settings: tuple[tuple[str, str], ...] = ()
    """Settings that differ from the scale's own."""
    steps: int = 0
    """Number of steps of class-incremental learning: the accuracy is that after the last step, and the seed also
    determines the order of the classes. 0 if all classes are distilled at once."""
    evaluation: Evaluation = ""
    """How the set is evaluated, if not as its scale does."""

    @property
    def name(self) -> str:
        """Name such as ``cifar10/ipc10/dm``, with network and settings if they are not the usual ones."""
        parts = [self.dataset, f"ipc{self.ipc}" if self.ipc else "all", self.method]
        parts += [self.network] if self.network != self.usual.network else []
        parts += [f"{self.steps}steps"] if self.steps else []
        parts += [f"{self.evaluation}-protocol"] if self.evaluation else []
        return "/".join([*parts, *(f"{key}={value}" for key, value in self.settings)])

    @property
    def usual(self) -> "Cell":
        """The cell of the same set, evaluated by the usual network under the scale's protocol."""
        return replace(self, network=usual_network(self.dataset), evaluation="")

    @property
    def file(self) -> str:
        """The cell in a file name, which is `name` without characters that file names may not contain."""
        name = self.name.translate({ord("/"): "-", ord(":"): "-", ord("%"): "pct"})
        return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{sha256(name.encode()).hexdigest()[:8]}"

    def protocol_of(self, config: RunConfig) -> EvalProtocol:
        """Protocol of the evaluation, given the scale's settings; the augmentation, however, is the dataset's."""
        if self.evaluation == "idc":
            return override(config, protocol("idc", "none", config.scale) | {"eval.augmentation": "auto"}).eval
        if self.evaluation == "paper":
            paper = preset(self.method, self.dataset, max(self.ipc, 1), "paper")
            return evolve(paper.eval, num_eval=1)
        return config.eval

    def table_at(self, scale: str) -> str:
        """File for its rows; those on validation images, or under another protocol, have files of their own."""
        kind = "-validation" if self.dataset.startswith(_VALIDATION) else ""
        return f"{scale}{kind}{f'-{self.evaluation}-protocol' if self.evaluation else ''}.csv"

    def dataset_at(self, scale: str) -> str:
        """Dataset of a run of the cell: the embedded images at the smallest scales."""
        base = self.dataset.removeprefix(_VALIDATION)
        embedded = scale in ("tour", "ci") and (base == "cifar10" or self.steps)
        return f"{self.dataset.removesuffix(base)}cifar10-mini" if embedded else self.dataset

    def runs_at(self, scale: str) -> bool:
        """Whether the cell exists at a scale: scales below ``laptop`` only have the embedded images."""
        return scale in ("paper", "laptop") or self.dataset.removesuffix("-mini").endswith("cifar10") or self.steps == 5

    def changes(self, scale: str) -> dict[str, str]:
        """Settings of a run of the cell besides the scale's, with iterations as a number.

        Weights and thresholds of class centralization are relative to the scatter of the real images at every scale,
        because a grid in the units of one pool's features is meaningless in those of another.
        """
        given = dict(self.settings)
        usual = preset(self.method, self.dataset, max(self.ipc, 1), scale)
        centralizes = any(key.startswith("match.cc") for key in given)
        if "match.cc_scaling" not in given and centralizes and usual.match.cc_scaling != "relative":
            given["match.cc_scaling"] = "relative"
        if (share := given.get("iterations", "")).endswith("%"):
            given["iterations"] = str(max(1, round(usual.iterations * int(share[:-1]) / 100)))
        return given

    def settings_at(self, scale: str) -> RunConfig:
        """All settings of a run of the cell.

        Raises:
            InputError: if its own settings are incompatible with the scale's.
        """
        usual = preset(self.method, self.dataset_at(scale), max(self.ipc, 1), scale)
        return override(usual, self.changes(scale))


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    title: str
    cells: tuple[Cell, ...]
    """The cells, most important first."""
    by_dataset: bool = False
    """Whether all seeds of a dataset come before the next dataset; otherwise every cell comes once before any twice."""


def _main() -> tuple[Cell, ...]:
    methods = ("dm", "iid-dm", "idm", "iid-idm", "iid-plus", "random", "random-mosaic", "herding", "k-center")
    cells = []
    for dataset in ("cifar10", "cifar100", "svhn", "tinyimagenet"):
        network = usual_network(dataset)
        for ipc in (10, 50, 1):
            cells += [Cell(dataset, method, ipc, network) for method in methods]
        cells.append(Cell(dataset, "whole", 0, network))
    return tuple(cells)


def _gpu(*datasets: str) -> tuple[Cell, ...]:
    methods = ("dm", "iid-dm", "idm", "iid-idm", "iid-plus")
    return tuple(Cell(dataset, method, ipc) for dataset in datasets for ipc in (10, 1, 50) for method in methods)


def _sweep(method: str, key: str, values: Sequence[float | str], **more: str) -> list[Cell]:
    fixed = tuple((name.replace("__", "."), value) for name, value in more.items())
    return [Cell("cifar10", method, 10, settings=(*fixed, (key, str(value)))) for value in values]


class Part(NamedTuple):
    """A part of iid-plus."""

    label: str
    """Name of the part."""
    off: str
    """Value of its setting that turns it off."""
    needs: tuple[str, ...] = ()
    """Settings of the parts without which it has no effect."""


PARTS: dict[str, Part] = {
    "syn.factor": Part("mosaics", "1"),
    "syn.init": Part("initial images by clusters", "real"),
    "match.source": Part("networks of the stages", "random"),
    "match.ce": Part("cross-entropy", "0", ("match.source",)),  # has no effect with networks that are not trained
    "match.cm": Part("covariance matching", "0"),
    "match.cc": Part("class centralization", "0"),
    "match.mmd": Part("kernel distance", "0"),
}
"""Parts of iid-plus by the setting that turns each off."""

MATCHING: dict[str, tuple[str, ...]] = {
    "mean matching": ("match.mean",),
    "all matching": ("match.mean", "match.cm", "match.mmd"),
}
"""The matching that the parts are added to, with the settings that turn it off; the second also includes two parts."""

_ABLATED = ("dm", "dm-cc", "dm-cm", "iid-dm", "idm", "idm-cc", "idm-cm", "iid-idm")

_NETWORKS = ("convnet3", "alexnet", "vgg11", "resnet18")


def _plus() -> tuple[Cell, ...]:
    """iid-plus, with its parts and its matching left out one at a time, and with the parts added one at a time.

    They are added to iid-plus without any part, which is dm with the learning rate of iid-plus.
    """
    off = {key: part.off for key, part in PARTS.items()}
    cells = [Cell("cifar10", "iid-plus", 10), Cell("cifar10", "iid-plus", 10, settings=tuple(off.items()))]
    cells += [Cell("cifar10", "iid-plus", 10, settings=((part, off[part]),)) for part in PARTS]
    cells += [Cell("cifar10", "iid-plus", 10, settings=tuple((key, "0") for key in keys)) for keys in MATCHING.values()]
    for key, part in PARTS.items():
        kept = {key, *part.needs}
        cells.append(Cell("cifar10", "iid-plus", 10, settings=tuple((one, off[one]) for one in off if one not in kept)))
    return tuple(cells)


_SHORT = (("iterations", "50%"), ("pool.count", "1"))
"""Settings of iid-plus in half the time: a pool of one training run, and half the iterations."""


def _plus_sizes() -> tuple[Cell, ...]:
    methods = ("iid-plus", "iid-idm", "random-mosaic", "idm", "iid-dm", "dm", "random")
    sizes = (("cifar10", 10), ("cifar10", 1), ("cifar10", 50), ("cifar100", 10), ("cifar100", 1))
    protocols: tuple[Evaluation, ...] = ("", "idc")
    cells = [
        Cell(dataset, method, ipc, evaluation=evaluation)
        for evaluation in protocols
        for dataset, ipc in sizes
        for method in methods
    ]
    return (
        *cells,
        *(Cell(dataset, "whole", 0, evaluation=e) for dataset in ("cifar10", "cifar100") for e in protocols),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "main": Experiment("Test accuracy on four datasets (the paper's main table)", _main()),
    "ablation": Experiment(
        "Each term alone, added to DM and to IDM", tuple(Cell("cifar10", method, 10) for method in _ABLATED)
    ),
    "architectures": Experiment(
        "Sets distilled with a ConvNet, evaluated with other networks",
        tuple(Cell("cifar10", m, 10, n) for m in ("iid-dm", "dm", "iid-idm", "idm", "iid-plus", "random")
              for n in _NETWORKS),
    ),
    "weights": Experiment(
        "Accuracy against the weights of the two terms",
        tuple(_sweep("dm-cc", "match.cc", (0.3, 1, 3, 10, 30)) + _sweep("dm-cm", "match.cm", (0.001, 0.01, 0.1))),
    ),
    "beta": Experiment(
        "Accuracy against beta, in the exponential form of class centralization",
        tuple(
            _sweep("dm-cc", "match.cc_beta", (0, 2.2, 2.4, 2.75), match__cc="1", match__cc_form="exp",
                   match__cc_alpha="1")
        ),
    ),
    "iterations": Experiment(
        "Accuracy against the number of iterations",
        tuple(cell for method in ("dm", "iid-dm") for cell in _sweep(method, "iterations", ("25%", "50%", "75%"))),
    ),
    "plus": Experiment("iid-plus: each part left out, and each added on its own", _plus()),
    "plus-sizes": Experiment("iid-plus and the other methods, under both evaluation protocols", _plus_sizes()),
    "headline": Experiment(
        "Sets of smaller scales under the paper's evaluation, one network per seed",
        (
            Cell("cifar10", "iid-plus", 10, evaluation="paper"),
            Cell("cifar10", "iid-plus", 10, settings=_SHORT, evaluation="paper"),
            *(
                Cell("cifar10", method, ipc, evaluation="paper")
                for ipc, method in ((1, "iid-plus"), (50, "iid-plus"), (10, "iid-idm"), (1, "iid-idm"), (50, "iid-idm"))
            ),
        ),
    ),
    "tsne": Experiment(
        "Sets for the t-SNE figure (drawn in chapter 09)",
        tuple(Cell("cifar10", method, 50) for method in ("iid-dm", "dm")),
    ),
    "continual": Experiment(
        "Class-incremental learning from 20 images per class, after the last step",
        tuple(
            Cell("cifar100", method, 20, steps=steps)
            for steps in (5, 10)
            for method in ("iid-dm", "dm", "iid-idm", "idm", "random", "herding")
        ),
    ),
}  # fmt: skip
"""Experiments by name."""


ORDERS: dict[str, Experiment] = {
    "gpu": Experiment(
        "Distilled sets of CIFAR-10 and CIFAR-100, in the order of worth for a rented GPU",
        _gpu("cifar10", "cifar100"),
        by_dataset=True,
    ),
    "gpu-embedded": Experiment(
        "The same methods on the embedded images, for a GPU without the whole datasets", _gpu("cifar10-mini")
    ),
}
"""Cells in the order of their worth where time is short. Those of datasets in ``EXPERIMENTS`` are the same cells."""


def within(name: str, only: str) -> bool:
    """Whether a cell's name begins with the parts of `only`: ``cifar10/ipc10`` is not within ``cifar10/ipc1``."""
    return f"{name}/".startswith(f"{only.rstrip('/')}/" if only else "")
