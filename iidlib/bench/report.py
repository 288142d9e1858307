"""Speed report of `iid bench`: the library against the fixed baselines and the limits of the machine."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from iidlib.bars import bar
from iidlib.bench.ceilings import copy_rate, matrix_product_rate
from iidlib.bench.timing import Timing, compare, compare_training
from iidlib.config import RunConfig, preset
from iidlib.data import Dataset, DatasetSpec, RealSet, load_dataset
from iidlib.distillation import METHODS, Distillation
from iidlib.engine import compiler_available, device_name, pick_device
from iidlib.errors import InputError, suggest
from iidlib.experiments.tables import append_rows
from iidlib.features import Pool
from iidlib.networks import NETWORKS, frozen, network_for
from iidlib.rng import stream
from iidlib.runs.environment import environment

__all__ = ["AXES", "NEEDED", "BenchReport", "measure", "random_pool", "scaling", "timing_dataset"]

AXES: dict[str, tuple[int, ...]] = {
    "ipc": (1, 10, 50),
    "classes": (10, 30, 100),
    "batch_real": (64, 256, 1024),
    "width": (32, 64, 128, 256),
}
"""Sizes that `scaling` varies one at a time, around the paper's: IPC 10, 10 classes, 256 real images, width 128."""

NEEDED = ("what", "method", "seconds")
"""Columns that identify a CSV file with such rows."""

_METHODS = ("dm", "dm-cm", "iid-dm", "idm", "iid-idm")

_ROUNDS, _QUICK_ROUNDS = 3, 2

_CLASSES, _QUICK_CLASSES = 10, 2


def timing_dataset(classes: int, per_class: int, *, device: torch.device | str = "cpu") -> Dataset:
    """cifar10-mini in other sizes, only for timing: its classes and images are repeated if more are needed.

    Args:
        classes: number of classes; class c has the images of class c modulo 10.
        per_class: training images per class.
        device: the device of the images.
    """
    mini = load_dataset("cifar10-mini", device=device)
    distinct = mini.train.num_classes
    rows = [mini.train.of_class(c % distinct) for c in range(classes)]
    index = torch.cat([row[torch.arange(per_class) % len(row)] for row in rows]).to(device)
    labels = torch.arange(classes, device=device).repeat_interleave(per_class)
    names = tuple(
        mini.spec.classes[c % distinct] + (f"-{c // distinct}" if c >= distinct else "") for c in range(classes)
    )
    spec = dataclasses.replace(mini.spec, classes=names)
    test = mini.test.labels < classes
    return Dataset(
        mini.name,
        RealSet(mini.train.images[index], labels, spec),
        RealSet(mini.test.images[test], mini.test.labels[test], spec),
        spec,
    )


def random_pool(config: RunConfig, spec: DatasetSpec, device: torch.device) -> Pool:
    """A network with random weights in place of the pretrained pool, which takes as much time as a trained one.

    Its features are not those of a trained one, so a run with it must only be timed.

    Args:
        config: the architecture (``pool.network``, ``pool.width``) and the seed.
        spec: specification of the dataset.
        device: the device of the network.
    """
    network = network_for(
        config.pool.network,
        spec,
        width=config.pool.width,
        generator=stream(config.pool.seed, 0, "random pool", device),
        compile=config.compute.compile,
    )
    return Pool([frozen(network).eval()], [float("nan")], "random")


@dataclass(frozen=True)
class BenchReport:
    """Timings of a measurement, and its conditions."""

    timings: tuple[Timing, ...]
    network: str
    pool_network: str
    """Architecture for class centralization, with random weights."""
    device: str
    precision: str
    """Precision of the library's matrix products; the baseline's is fp32."""
    compiled: bool
    """Whether the library's kernels were compiled."""
    ceiling_gflops: float
    """Peak rate of the machine's matrix product, in GFLOP/s."""
    ceiling_gbytes: float
    """Rate of the machine's copy, reading plus writing, in GB/s."""
    environment: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One row per timing, from `Timing.row`, with the conditions; written by ``--json`` and ``--results``."""
        conditions = {
            "network": self.network,
            "pool_network": self.pool_network,
            "device": self.device,
            "precision": self.precision,
            "compiled": self.compiled,
            "ceiling_gflops": self.ceiling_gflops,
            "ceiling_gbytes": self.ceiling_gbytes,
        } | {name: self.environment[name] for name in ("torch", "iidlib", "commit", "date")}
        return [timing.row() | conditions for timing in self.timings]

    def to_json(self) -> str:
        """The rows as a JSON list."""
        return json.dumps(self.rows(), indent=2)

    def append(self, path: Path, command: str = "") -> None:
        """Appends the rows to a CSV file, which is created if it does not exist.

        Args:
            path: the file.
            command: the command line, for the record.

        Raises:
            InputError: if the file does not hold such a table.
            OSError: if it cannot be written.
        """
        append_rows(path, pd.DataFrame(self.rows()).assign(command=command), needed=NEEDED)

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """The rows as text with short headings, by title of the table."""
        same = len({(t.what, t.method) for t in self.timings}) == 1
        work = [(t, ({} if same else {"work": f"{t.what} {t.method}"}) | _sizes(t, self.timings)) for t in self.timings]
        return {
            "seconds": [
                head
                | {
                    "loop": f"{t.baseline_seconds:.3g}",
                    "ours": f"{t.seconds:.3g}",
                    "ratio": f"{t.ratio:.2f}",
                    "floor": f"{t.floor_fraction * t.seconds:.3g}",
                    "first": f"{t.first_seconds:.3g}",
                    "peak MiB": f"{t.peak_memory_mib:.0f}",
                }
                for t, head in work
            ],
            "rates": [
                head
                | {
                    "GFLOP": f"{t.gflop:.4g}",
                    "loop GFLOP/s": f"{t.gflop / t.baseline_seconds:.0f}",
                    "ours": f"{t.gflop / t.seconds:.0f}",
                    "loop GB/s": f"{t.gbyte / t.baseline_seconds:.3g}",
                    "differs": ", ".join(f"{value:.0e}" for value in t.differences.values()),
                }
                for t, head in work
            ],
        }

    def notes(self) -> list[str]:
        """Explanations of the tables, one per line."""
        first = self.timings[0]
        lines = [
            f"{first.classes} classes, {first.batch_real} real and {first.ipc} synthetic images per class, "
            f"{self.network} of width {first.width}, unless a row says otherwise",
            f"device: {self.device}, {self.precision}, kernels {'compiled' if self.compiled else 'not compiled'}, "
            f"torch {self.environment['torch']}",
            "distill: one iteration; loop: one eager fp32 forward pass per class, one backward pass, the same draws",
            "evaluate: one epoch of the training of a network; loop: eager fp32, the same draws",
            f"medians of {len(first.our_times)} interleaved repetitions; first: including compilation",
            f"floor: counted convolutions and matrix products at {self.ceiling_gflops:.4g} GFLOP/s, the machine's "
            f"matrix product; its copy moves {self.ceiling_gbytes:.3g} GB/s",
            "differs: loss, gradient, or weights after an epoch, relative to the loop's",
        ]
        if any("cc" in METHODS[t.method].terms for t in self.timings if t.method in METHODS):
            lines.append(f"class centralization on a {self.pool_network} with random weights, sufficient for timing")
        return lines


def _sizes(timing: Timing, others: Sequence[Timing]) -> dict[str, str]:
    """Sizes of a timing that vary within the report."""
    vary = [name for name in AXES if len({getattr(other, name) for other in others if other.batch_real}) > 1]
    return {name.removeprefix("batch_"): f"{getattr(timing, name)}" for name in vary}


@dataclass(frozen=True)
class _Bench:
    """The machine that is measured, and its ceilings."""

    device: torch.device
    precision: str
    ceiling_gflops: float
    ceiling_gbytes: float

    @classmethod
    def on(cls, name: str, precision: str) -> "_Bench":
        try:
            device = pick_device(name)
        except ValueError as error:
            raise InputError(str(error)) from None
        precision = precision if device.type == "cuda" else "fp32"
        return cls(device, precision, matrix_product_rate(device, precision), copy_rate(device))

    def distill(self, config: RunConfig, classes: int, rounds: int, on_iteration: Callable[[], object]) -> Timing:
        per_class = max(config.match.batch_real, config.ipc * config.syn.factor**2)
        run = Distillation(config, timing_dataset(classes, per_class, device=self.device))
        if run.source.from_pool:
            raise InputError(
                f"{config.method} cannot be compared with the loop over classes, whose networks are random or in a "
                "queue; run a distillation instead: iid distill reports its seconds"
            )
        if any(term.needs_pool for term in run.terms.values()):
            run.pool = random_pool(config, run.real.spec, self.device)
        return compare(run, ceiling_gflops=self.ceiling_gflops, rounds=rounds, on_iteration=on_iteration)

    def evaluate(self, config: RunConfig, classes: int, rounds: int, on_iteration: Callable[[], object]) -> Timing:
        dataset = timing_dataset(classes, config.ipc, device=self.device)
        ceiling = self.ceiling_gflops
        return compare_training(config, dataset, ceiling_gflops=ceiling, rounds=rounds, on_iteration=on_iteration)

    def report(self, timings: Sequence[Timing], config: RunConfig) -> BenchReport:
        return BenchReport(
            timings=tuple(timings),
            network=config.match.network,
            pool_network=config.pool.network,
            device=device_name(self.device),
            precision=self.precision,
            compiled=config.compute.compile != "off" and compiler_available(),
            ceiling_gflops=self.ceiling_gflops,
            ceiling_gbytes=self.ceiling_gbytes,
            environment=environment(),
        )


def measure(
    methods: Sequence[str] = _METHODS,
    *,
    quick: bool = False,
    device: str = "auto",
    rounds: int | None = None,
    pool_network: str | None = None,
    changes: Mapping[str, Any] | None = None,
    progress: bool | None = False,
) -> BenchReport:
    """Times methods and evaluation at the paper's sizes, on cifar10-mini with 10 images per class.

    Args:
        methods: names of ``distillation.METHODS``.
        quick: two classes instead of ten, fewer rounds and a small pool network; takes a minute.
        device: as in ``engine.pick_device``.
        rounds: timed iterations of each side; by default 3, or 2 if quick.
        pool_network: architecture for class centralization, with random weights; ``resnet18`` as in the paper, or
            ``convnet3`` if quick, by default.
        changes: further settings by dotted key, as for ``config.override``.
        progress: draw a progress bar; None draws one on a terminal, and otherwise logs a line every minute.

    Raises:
        InputError: for an unknown method, network, device or setting, no method, or fewer than one round.
        timing.LossesDiffer: if the two sides do not compute the same thing.
    """
    rounds = (_QUICK_ROUNDS if quick else _ROUNDS) if rounds is None else rounds
    if rounds < 1 or not methods:
        raise InputError(f"a measurement needs a method and at least one round, got {list(methods)} and {rounds}")
    settings = {"pool.network": pool_network or ("convnet3" if quick else "resnet18")} | dict(changes or {})
    configs = [preset(method, scale="paper", changes=settings) for method in methods]
    classes = [_QUICK_CLASSES if quick else _CLASSES] * len(configs)
    return _timed(configs, classes, rounds, device, progress, evaluate=True)


def scaling(
    method: str = "dm-cm",
    *,
    axes: Mapping[str, Sequence[int]] | None = None,
    device: str = "auto",
    rounds: int = 1,
    changes: Mapping[str, Any] | None = None,
    progress: bool | None = False,
) -> BenchReport:
    """Times one method at varying sizes, along one axis at a time around the paper's sizes.

    Args:
        method: a name of ``distillation.METHODS``.
        axes: sizes by name of the axis; by default ``AXES``.
        device: as in ``engine.pick_device``.
        rounds: timed iterations of each side.
        changes: further settings by dotted key, as for ``config.override``.
        progress: draw a progress bar; None draws one on a terminal, and otherwise logs a line every minute.

    Raises:
        InputError: for an unknown method, device or setting.
        timing.LossesDiffer: if the two sides do not compute the same thing.
    """
    base = preset(method, scale="paper", changes={"pool.network": "convnet3"} | dict(changes or {}))
    centre = {
        "ipc": base.ipc,
        "classes": _CLASSES,
        "batch_real": base.match.batch_real,
        "width": base.match.width,
    }
    points = [centre | {name: value} for name, values in (axes or AXES).items() for value in values]
    points = [point for number, point in enumerate(points) if point not in points[:number]]
    settings = {"pool.network": base.pool.network} | dict(changes or {})
    configs = [
        preset(
            method,
            ipc=point["ipc"],
            scale="paper",
            changes=settings | {"match.batch_real": point["batch_real"], "match.width": point["width"]},
        )
        for point in points
    ]
    return _timed(configs, [point["classes"] for point in points], rounds, device, progress)


def _timed(
    configs: Sequence[RunConfig],
    classes: Sequence[int],
    rounds: int,
    device: str,
    progress: bool | None,
    evaluate: bool = False,
) -> BenchReport:
    for config in configs:  # before anything is timed
        if config.method not in METHODS:
            raise InputError(f"unknown method {config.method!r}{suggest(config.method, METHODS)}")
        for name in (config.match.network, config.pool.network):
            if name not in NETWORKS:
                raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    bench = _Bench.on(device, configs[0].compute.precision)
    timings = []
    with bar("bench", (len(configs) + evaluate) * 2 * (rounds + 1), "iteration", shown=progress) as progress_bar:
        for config, count in zip(configs, classes, strict=True):
            progress_bar.rename(config.method)
            timings.append(bench.distill(config, count, rounds, progress_bar.advance))
        if evaluate:
            progress_bar.rename("evaluation")
            timings.append(bench.evaluate(configs[0], _CLASSES, rounds, progress_bar.advance))
    return bench.report(timings, configs[0])
