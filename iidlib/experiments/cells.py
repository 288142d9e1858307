"""The paper's evidence by name: its tables and figures, and the cells of which they consist.

A cell is one number of a table or a point of a figure; `iidlib.experiments.measurements` says what fills it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, NamedTuple

from attrs import evolve

from iidlib.config import EvalProtocol, RunConfig, override, preset, protocol

__all__ = ["EXPERIMENTS", "MATCHING", "PARTS", "Cell", "Evaluation", "Experiment", "Part", "usual_network", "within"]

Evaluation = Literal["", "idc", "paper"]
"""How a set is evaluated: as its scale does, as that does under the protocol ``idc``, or as scale ``paper`` does with
one network for each distillation seed."""


def usual_network(dataset: str) -> str:
    """The network that evaluates sets of a dataset in the paper's main table."""
    return "convnet4" if dataset.removeprefix(_VALIDATION) == "tinyimagenet" else "convnet3"


_LONGEST = 160
"""Characters of a folder's name, beside what comes before and after it; file systems take 255 bytes."""

_VALIDATION = "validation:"
"""Before the name of a dataset: a part of its training images in the place of its test images."""


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
    evaluation: Evaluation = ""
    """How the set is evaluated, where that is not as its scale does."""

    @property
    def name(self) -> str:
        """``cifar10/ipc10/dm``, with the network and settings where they are not the usual ones."""
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
        """The cell as part of a file name, which is `name` without what no file name may have."""
        told = self.name.translate({ord("/"): "-", ord(":"): "-", ord("%"): "pct"})
        return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}-{sha256(told.encode()).hexdigest()[:8]}"

    def protocol_of(self, config: RunConfig) -> EvalProtocol:
        """How its set is evaluated, given its scale's settings; but for the augmentation, which is the dataset's."""
        if self.evaluation == "idc":
            return override(config, protocol("idc", "none", config.scale) | {"eval.augmentation": "auto"}).eval
        if self.evaluation == "paper":
            paper = preset(self.method, self.dataset, max(self.ipc, 1), "paper")
            return evolve(paper.eval, num_eval=1)
        return config.eval

    def table_at(self, scale: str) -> str:
        """The file that its rows go to; those on validation images, or of another protocol, are kept apart."""
        kind = "-validation" if self.dataset.startswith(_VALIDATION) else ""
        return f"{scale}{kind}{f'-{self.evaluation}-protocol' if self.evaluation else ''}.csv"

    def dataset_at(self, scale: str) -> str:
        """The data set that a run of it takes: the embedded images at the smallest scales."""
        own = self.dataset.removeprefix(_VALIDATION)
        embedded = scale in ("tour", "ci") and (own == "cifar10" or self.steps)
        return f"{self.dataset.removesuffix(own)}cifar10-mini" if embedded else self.dataset

    def runs_at(self, scale: str) -> bool:
        """Whether there is such a run: scales below ``laptop`` have the embedded images only."""
        return scale in ("paper", "laptop") or self.dataset.removesuffix("-mini").endswith("cifar10") or self.steps == 5

    def changes(self, scale: str) -> dict[str, str]:
        """Settings that a run of it is given beside the scale's, iterations as a number.

        Weights and thresholds of class centralization are in units of the real images' scatter at every scale, because
        a grid in the units of one pool's features means nothing in those of another.
        """
        given = dict(self.settings)
        own = preset(self.method, self.dataset, max(self.ipc, 1), scale)
        centralizes = any(key.startswith("match.cc") for key in given)
        if "match.cc_scaling" not in given and centralizes and own.match.cc_scaling != "relative":
            given["match.cc_scaling"] = "relative"
        if (share := given.get("iterations", "")).endswith("%"):
            given["iterations"] = str(max(1, round(own.iterations * int(share[:-1]) / 100)))
        return given

    def settings_at(self, scale: str) -> RunConfig:
        """The settings of a run of it.

        Raises:
            InputError: where its own do not go together with the scale's.
        """
        usual = preset(self.method, self.dataset_at(scale), max(self.ipc, 1), scale)
        return override(usual, self.changes(scale))


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    title: str
    cells: tuple[Cell, ...]
    """In the order of worth: what to measure first."""


def _main() -> tuple[Cell, ...]:
    methods = ("dm", "iid-dm", "idm", "iid-idm", "iid-plus", "random", "random-mosaic", "herding", "k-center")
    cells = []
    for dataset in ("cifar10", "cifar100", "svhn", "tinyimagenet"):
        network = usual_network(dataset)
        for ipc in (10, 50, 1):
            cells += [Cell(dataset, method, ipc, network) for method in methods]
        cells.append(Cell(dataset, "whole", 0, network))
    return tuple(cells)


def _sweep(method: str, key: str, values: Sequence[float | str], **more: str) -> list[Cell]:
    own = tuple((name.replace("__", "."), value) for name, value in more.items())
    return [Cell("cifar10", method, 10, settings=(*own, (key, str(value)))) for value in values]


class Part(NamedTuple):
    """A part of iid-plus."""

    label: str
    """What it is called."""
    off: str
    """The value of its setting that leaves it out."""
    needs: tuple[str, ...] = ()
    """Settings of the parts without which it does nothing."""


PARTS: dict[str, Part] = {
    "syn.factor": Part("mosaics", "1"),
    "syn.init": Part("initial images by clusters", "real"),
    "match.source": Part("networks of the stages", "random"),
    "match.ce": Part("cross-entropy", "0", ("match.source",)),  # weighs nothing under networks that are not trained
    "match.cm": Part("covariance matching", "0"),
    "match.cc": Part("class centralization", "0"),
    "match.mmd": Part("kernel distance", "0"),
}
"""The parts of iid-plus by the setting that leaves one out."""

MATCHING: dict[str, tuple[str, ...]] = {
    "mean matching": ("match.mean",),
    "all matching": ("match.mean", "match.cm", "match.mmd"),
}
"""What the parts are added to, with the settings that are 0 where it is left out; the second also has two parts."""

_ABLATED = ("dm", "dm-cc", "dm-cm", "iid-dm", "idm", "idm-cc", "idm-cm", "iid-idm")

_NETWORKS = ("convnet3", "alexnet", "vgg11", "resnet18")


def _plus() -> tuple[Cell, ...]:
    """iid-plus, its parts and its matching left out one at a time, and the parts added one at a time.

    They are added to what is left without any, which is dm at the step size of iid-plus.
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
"""iid-plus in half of the time: one training for the pool, and half of the iterations."""


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
    "main": Experiment("Test accuracy on four data sets (the paper's main table)", _main()),
    "ablation": Experiment(
        "Each term alone, on DM and on IDM", tuple(Cell("cifar10", method, 10) for method in _ABLATED)
    ),
    "architectures": Experiment(
        "Sets distilled with a ConvNet, judged by other networks",
        tuple(Cell("cifar10", m, 10, n) for m in ("iid-dm", "dm", "iid-idm", "idm", "iid-plus", "random")
              for n in _NETWORKS),
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
    "plus": Experiment("iid-plus: each part left out, and each added alone", _plus()),
    "plus-sizes": Experiment("iid-plus beside the others, under both protocols of evaluation", _plus_sizes()),
    "headline": Experiment(
        "Sets of smaller scales under the paper's own evaluation, a network for each seed",
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


def within(name: str, only: str) -> bool:
    """Whether a cell's name begins with the parts of another: ``cifar10/ipc1`` has ``cifar10/ipc10`` not below it."""
    return f"{name}/".startswith(f"{only.rstrip('/')}/" if only else "")
