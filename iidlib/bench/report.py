"""Speed: what `iid bench` measures, the library against the fixed baselines and against the machine, in one run."""

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
"""The sizes that `scaling` varies, one at a time, about the paper's: IPC 10, 10 classes, 256 real images, width 128."""

NEEDED = ("what", "method", "seconds")
"""Columns by which a CSV file is known to hold such rows."""

_METHODS = ("dm", "dm-cm", "iid-dm", "idm", "iid-idm")

_ROUNDS, _QUICK_ROUNDS = 3, 2

_CLASSES, _QUICK_CLASSES = 10, 2


def timing_dataset(classes: int, per_class: int, *, device: torch.device | str = "cpu") -> Dataset:
    """cifar10-mini in other sizes, for times alone: its classes and images come round again where more are asked for.

    Args:
        classes: how many; class c has the images of class c modulo 10.
        per_class: training images of each.
        device: where the images are put.
    """
    mini = load_dataset("cifar10-mini", device=device)
    own = mini.train.num_classes
    rows = [mini.train.of_class(c % own) for c in range(classes)]
    index = torch.cat([row[torch.arange(per_class) % len(row)] for row in rows]).to(device)
    labels = torch.arange(classes, device=device).repeat_interleave(per_class)
    names = tuple(mini.spec.classes[c % own] + (f"-{c // own}" if c >= own else "") for c in range(classes))
    spec = dataclasses.replace(mini.spec, classes=names)
    test = mini.test.labels < classes
    return Dataset(
        mini.name,
        RealSet(mini.train.images[index], labels, spec),
        RealSet(mini.test.images[test], mini.test.labels[test], spec),
        spec,
    )


def random_pool(config: RunConfig, spec: DatasetSpec, device: torch.device) -> Pool:
    """One network with random weights in the place of the trained pool: its time is that of a trained one.

    Its features are not; nothing but times may be taken from a run with it.

    Args:
        config: gives the architecture (``pool.network``, ``pool.width``) and the seed.
        spec: the data set that the network fits.
        device: where it goes.
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
    """What a measurement found, and under which conditions."""

    timings: tuple[Timing, ...]
    network: str
    pool_network: str
    """Architecture for class centralization; its weights are random."""
    device: str
    precision: str
    """Of our matrix products; the baseline's is fp32."""
    compiled: bool
    """Whether our kernels were compiled."""
    ceiling_gflops: float
    """The machine's matrix product, in GFLOP/s."""
    ceiling_gbytes: float
    """The machine's copy, in GB/s, read and written together."""
    environment: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """A row a timing, as `Timing.row`, with the conditions beside: what ``--json`` and ``--results`` give."""
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
        """The rows as JSON text, a list."""
        return json.dumps(self.rows(), indent=2)

    def append(self, path: Path, command: str = "") -> None:
        """Adds the rows to a CSV file, made where absent.

        Args:
            path: the file.
            command: what was typed, for the record.

        Raises:
            InputError: if the file holds something else than such a table.
            OSError: if it cannot be written.
        """
        append_rows(path, pd.DataFrame(self.rows()).assign(command=command), needed=NEEDED)

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """The rows as text under short headings, by the title of the table."""
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
        """What the tables must be read with, a line each."""
        first = self.timings[0]
        lines = [
            f"{first.classes} classes, {first.batch_real} real and {first.ipc} synthetic images a class, "
            f"{self.network} of width {first.width}, where a row says nothing else",
            f"device: {self.device}, {self.precision}, kernels {'compiled' if self.compiled else 'not compiled'}, "
            f"torch {self.environment['torch']}",
            "distill: an iteration; loop: each class one eager fp32 forward pass, one backward pass, the same draws",
            "evaluate: a pass over the set, of the 1001 that train a network; loop: eager fp32, the same draws",
            f"medians of {len(first.our_times)} interleaved repetitions; first: compilation included",
            f"floor: counted convolutions and matrix products at {self.ceiling_gflops:.4g} GFLOP/s, the machine's "
            f"matrix product; its copy moves {self.ceiling_gbytes:.3g} GB/s",
            "differs: loss, gradient, or weights after a pass, relative to the loop's",
        ]
        if any("cc" in METHODS[t.method].terms for t in self.timings if t.method in METHODS):
            lines.append(f"class centralization on a {self.pool_network} with random weights, enough for times")
        return lines


def _sizes(timing: Timing, others: Sequence[Timing]) -> dict[str, str]:
    """The sizes in which the timings of a report differ."""
    vary = [name for name in AXES if len({getattr(other, name) for other in others if other.batch_real}) > 1]
    return {name.removeprefix("batch_"): f"{getattr(timing, name)}" for name in vary}


@dataclass(frozen=True)
class _Bench:
    """The machine that a report is about, its ceilings measured."""

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
                "queue; time a distillation instead: iid distill says its seconds"
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
    """Times methods and evaluation at the paper's shapes, on images of cifar10-mini at 10 images a class.

    Args:
        methods: names of ``distillation.METHODS``.
        quick: two classes instead of ten, fewer rounds and the small pool network: a minute.
        device: as in ``engine.pick_device``.
        rounds: timed iterations of each side; 3, or 2 when quick, if not given.
        pool_network: architecture for class centralization, with random weights; ``resnet18`` as in the paper, or
            ``convnet3`` when quick, if not given.
        changes: further settings by dotted key, as for ``config.override``.
        progress: draw a progress bar; None draws one on a terminal, and elsewhere logs a line every minute.

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
    """Times a method as the work grows, along one axis at a time about the paper's shapes.

    Args:
        method: a name of ``distillation.METHODS``.
        axes: sizes by the names of ``AXES``, which stands where none are given.
        device: as in ``engine.pick_device``.
        rounds: timed iterations of each side.
        changes: further settings by dotted key, as for ``config.override``.
        progress: draw a progress bar; None draws one on a terminal, and elsewhere logs a line every minute.

    Raises:
        InputError: for an unknown method, device or setting.
        timing.LossesDiffer: if the two sides do not compute the same thing.
    """
    base = preset(method, scale="paper", changes={"pool.network": "convnet3"} | dict(changes or {}))
    middle = {
        "ipc": base.ipc,
        "classes": _CLASSES,
        "batch_real": base.match.batch_real,
        "width": base.match.width,
    }
    points = [middle | {name: value} for name, values in (axes or AXES).items() for value in values]
    points = [point for number, point in enumerate(points) if point not in points[:number]]
    named = {"pool.network": base.pool.network} | dict(changes or {})
    configs = [
        preset(
            method,
            ipc=point["ipc"],
            scale="paper",
            changes=named | {"match.batch_real": point["batch_real"], "match.width": point["width"]},
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
    with bar("bench", (len(configs) + evaluate) * 2 * (rounds + 1), "iteration", shown=progress) as told:
        for config, count in zip(configs, classes, strict=True):
            told.rename(config.method)
            timings.append(bench.distill(config, count, rounds, told.advance))
        if evaluate:
            told.rename("evaluation")
            timings.append(bench.evaluate(configs[0], _CLASSES, rounds, told.advance))
    return bench.report(timings, configs[0])
