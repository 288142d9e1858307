"""The paper's evidence by name: its tables and figures, and the cells of which they consist.

A cell is one number of a table or a point of a figure; `iidlib.experiments.measurements` says what fills it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iidlib.config import preset
from iidlib.errors import InputError, suggest

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "find", "within"]


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
