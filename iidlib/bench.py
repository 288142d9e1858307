"""Speed: the library against the fixed baseline and against the machine, measured in one run.

Both sides start from the same images and read the same draws at every iteration. That their losses and gradients agree
is checked in the run that takes the times: a speed-up that changes the result is an error. Compilation happens in each
side's first iteration, which is timed apart.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from iidlib.accelerate import (
    compiler_available,
    device_name,
    peak_memory_mib,
    pick_device,
    precision,
    reset_peak_memory,
)
from iidlib.baseline import PerClassLoop, PlainTraining
from iidlib.ceilings import copy_rate, count_bytes, count_flops, matrix_product_rate, seconds_of
from iidlib.config import InputError, RunConfig, preset, suggest
from iidlib.data import Dataset, DatasetSpec, RealSet, load_dataset
from iidlib.distillation import METHODS, Distillation
from iidlib.evaluation import random_real
from iidlib.extractors import Pool, frozen, network_for
from iidlib.networks import NETWORKS, Network
from iidlib.results import append_rows
from iidlib.runs import environment
from iidlib.streams import stream
from iidlib.training import fit

__all__ = [
    "AXES",
    "GRADIENT_TOLERANCE",
    "LOSS_TOLERANCE",
    "NEEDED",
    "BenchReport",
    "LossesDiffer",
    "Timing",
    "compare",
    "compare_training",
    "measure",
    "random_pool",
    "scaling",
    "timing_dataset",
]

LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3}
"""Largest relative difference at which two losses count as the same, by our precision."""

GRADIENT_TOLERANCE = {"fp32": 1e-2, "tf32": 1e-1}
"""Largest ||a - b|| / ||b|| at which two gradients count as the same, by our precision.

Wider than that of losses: of the millions of activations at the paper's shapes, rounding puts a few on the other side
of the ReLU's kink, and their share of the gradient appears or vanishes. For that reason two eager forms of one network
differ by up to 2e-3 in float32, and by 2e-15 in float64.
"""

AXES: dict[str, tuple[int, ...]] = {
    "ipc": (1, 10, 50),
    "classes": (10, 30, 100),
    "batch_real": (64, 256, 1024),
    "width": (32, 64, 128, 256),
}
"""The sizes that `scaling` varies, one at a time, about the paper's: IPC 10, 10 classes, 256 real images, width 128."""

NEEDED = ("what", "method", "seconds")
"""Columns by which a CSV file is known to hold such rows."""

_METHODS = ("dm", "dm-cm", "iid-dm")
_ROUNDS, _QUICK_ROUNDS = 3, 2
_CLASSES, _QUICK_CLASSES = 10, 2


class LossesDiffer(ArithmeticError):
    """The two sides do not compute the same thing, so the ratio of their times means nothing."""


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
        device=device,
        generator=stream(config.pool.seed, 0, "random pool", device),
        compile=config.compute.compile,
    )
    return Pool([frozen(network).eval()], [float("nan")], "random")


@dataclass(frozen=True)
class Timing:
    """One piece of work, timed on both sides."""

    what: str
    """``distill``: an iteration; ``evaluate``: a pass over the set, of the 1001 that train a network."""
    method: str
    """The method, or the network that is trained."""
    classes: int
    ipc: int
    batch_real: int
    """Real images a class and iteration; 0 where none are drawn."""
    width: int
    baseline_times: tuple[float, ...]
    """Seconds of each timed repetition of the baseline."""
    our_times: tuple[float, ...]
    """Of the same work by the library, each right after the baseline's."""
    first_seconds: float
    """Of the library's first repetition, compilation included; not among those above."""
    gflop: float
    """Convolutions and matrix products, in 1e9 operations."""
    gbyte: float
    """What the baseline's operations read and write, in 1e9 bytes."""
    ceiling_gflops: float
    """The machine's matrix product, in GFLOP/s."""
    peak_memory_mib: float
    """Of the library's repetitions."""
    differences: dict[str, float]
    """How far the two sides' results are apart, relative: ``loss`` and ``gradient``, or ``weights`` after a pass."""

    @property
    def baseline_seconds(self) -> float:
        """Median of the baseline."""
        return statistics.median(self.baseline_times)

    @property
    def seconds(self) -> float:
        """Median of the library."""
        return statistics.median(self.our_times)

    @property
    def ratio(self) -> float:
        """How many times faster the library is."""
        return self.baseline_seconds / self.seconds

    @property
    def floor_fraction(self) -> float:
        """Seconds that the counted operations take at the machine's best, over the library's.

        Above 1 where an algorithm needs fewer operations than those counted.
        """
        return self.gflop / self.ceiling_gflops / self.seconds

    def row(self) -> dict[str, Any]:
        """The work, its times and what follows from them, flat."""
        names = ("what", "method", "classes", "ipc", "batch_real", "width", "first_seconds", "gflop", "gbyte")
        return (
            {name: getattr(self, name) for name in names}
            | {name: getattr(self, name) for name in ("seconds", "baseline_seconds", "ratio", "floor_fraction")}
            | {
                "compile_seconds": max(0.0, self.first_seconds - self.seconds),
                "gflops": self.gflop / self.seconds,
                "baseline_gflops": self.gflop / self.baseline_seconds,
                "baseline_gbytes": self.gbyte / self.baseline_seconds,
                "peak_memory_mib": self.peak_memory_mib,
            }
            | {f"{name}_difference": self.differences.get(name) for name in ("loss", "gradient", "weights")}
        )


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
        work = [(t, {"work": f"{t.what} {t.method}"} | _sizes(t, self.timings)) for t in self.timings]
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
        if any(t.method in ("dm-cc", "iid-dm") for t in self.timings):
            lines.append(f"class centralization on a {self.pool_network} with random weights, enough for times")
        return lines


def _sizes(timing: Timing, others: Sequence[Timing]) -> dict[str, str]:
    """The sizes in which the timings of a report differ."""
    vary = [name for name in AXES if len({getattr(other, name) for other in others if other.batch_real}) > 1]
    return {name: f"{getattr(timing, name)}" for name in vary}


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; 0 where both are zero."""
    gap, size = float((ours - theirs).norm()), float(theirs.norm())
    return gap / size if size > 0 else gap


def _weights(network: Network) -> Tensor:
    """All parameters in a row, a copy."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def compare(
    run: Distillation,
    *,
    ceiling_gflops: float,
    rounds: int = _ROUNDS,
    on_iteration: Callable[[], object] | None = None,
) -> Timing:
    """Checks that a run and its loop over classes compute the same thing, and times both, in turns.

    Args:
        run: at its first iteration, with the pool that its method needs; its images are updated.
        ceiling_gflops: the machine's matrix product, from which the floor follows.
        rounds: timed iterations of each side.
        on_iteration: called after each iteration of a side, the first ones included.

    Raises:
        LossesDiffer: if a term differs by more than ``LOSS_TOLERANCE``, or the gradient by ``GRADIENT_TOLERANCE``.
        ValueError: for settings that the loop over classes does not have.
    """
    device = run.images.device
    ours = run.config.compute.precision if device.type == "cuda" else "fp32"
    loop, done = PerClassLoop(run), on_iteration or (lambda: None)
    sides: list[tuple[dict[str, Tensor], Tensor]] = []

    def first(side: Distillation | PerClassLoop, name: str) -> None:
        with precision(device, name):
            losses = side.losses(0)
            sides.append((losses, torch.autograd.grad(torch.stack(list(losses.values())).sum(), side.images)[0]))
        done()

    flops: list[int] = []
    moved = count_bytes(lambda: flops.append(count_flops(lambda: first(loop, "fp32"))))
    reset_peak_memory(device)
    first_seconds = seconds_of(lambda: first(run, ours), device)
    peak = peak_memory_mib(device)
    (theirs, their_gradient), (mine, my_gradient) = sides
    loss_difference = max(_relative(mine[name].detach(), theirs[name].detach()) for name in run.terms)
    gradient_difference = _relative(my_gradient, their_gradient)
    # "not below" rather than "above", so that NaN is caught
    if not (loss_difference <= LOSS_TOLERANCE[ours] and gradient_difference <= GRADIENT_TOLERANCE[ours]):
        values = {name: (float(theirs[name].detach()), float(mine[name].detach())) for name in run.terms}
        raise LossesDiffer(
            f"{run.config.method}: the losses of the loop and ours differ by {loss_difference:.1e} (at most "
            f"{LOSS_TOLERANCE[ours]:.0e} is rounding), their gradients by {gradient_difference:.1e} (at most "
            f"{GRADIENT_TOLERANCE[ours]:.0e}); terms (loop, ours): {values}"
        )
    sides.clear()
    del theirs, mine

    baseline_times, our_times = [], []
    for iteration in range(1, rounds + 1):
        baseline_times.append(seconds_of(partial(loop.step, iteration), device))
        done()
        our_times.append(seconds_of(partial(run.step, iteration), device))
        done()
    config = run.config
    return Timing(
        what="distill",
        method=config.method,
        classes=run.real.num_classes,
        ipc=config.ipc,
        batch_real=min(config.match.batch_real, int(run.real.counts.max())),
        width=config.match.width,
        baseline_times=tuple(baseline_times),
        our_times=tuple(our_times),
        first_seconds=first_seconds,
        gflop=flops[0] / 1e9,
        gbyte=moved / 1e9,
        ceiling_gflops=ceiling_gflops,
        peak_memory_mib=peak,
        differences={"loss": loss_difference, "gradient": gradient_difference},
    )


def compare_training(
    config: RunConfig,
    dataset: Dataset,
    *,
    ceiling_gflops: float,
    rounds: int = _ROUNDS,
    on_iteration: Callable[[], object] | None = None,
) -> Timing:
    """Checks that evaluation and its plain loop train a network alike, and times a pass of both, in turns.

    Args:
        config: gives the protocol and the images a class.
        dataset: real images of it stand for the distilled set.
        ceiling_gflops: the machine's matrix product, from which the floor follows.
        rounds: timed passes of each side.
        on_iteration: called after each pass of a side, the first ones included.

    Raises:
        LossesDiffer: if the weights after a pass differ by more than ``GRADIENT_TOLERANCE``, relative to their change.
    """
    device, protocol, done = dataset.train.device, config.eval, on_iteration or (lambda: None)
    ours = config.compute.precision if device.type == "cuda" else "fp32"
    chosen = random_real(dataset.train, config.ipc, config.seed)
    images = chosen.images.contiguous(memory_format=torch.channels_last)
    strategy = dataset.spec.augmentation
    network = network_for(
        protocol.networks[0],
        dataset.spec,
        width=protocol.width,
        device=device,
        generator=stream(config.seed, 0, "network", device),
        compile=config.compute.compile,
    )
    start = _weights(network)
    loop = PlainTraining(network, images, chosen.labels, protocol, strategy)

    def engine(seed: int) -> None:
        with precision(device, ours):
            fit(
                network,
                lambda index: images[index],
                chosen.labels,
                epochs=1,
                lr=protocol.lr,
                batch=protocol.batch,
                seed=seed,
                augmentation=strategy,
            )
        done()

    def plain(seed: int) -> None:
        loop.epoch(seed)
        done()

    flops: list[int] = []
    moved = count_bytes(lambda: flops.append(count_flops(lambda: plain(0))))
    reset_peak_memory(device)
    first_seconds = seconds_of(lambda: engine(0), device)
    peak = peak_memory_mib(device)
    theirs = _weights(loop.network) - start
    apart = _relative(_weights(network) - start, theirs)
    if not apart <= GRADIENT_TOLERANCE[ours]:
        raise LossesDiffer(
            f"training {network.name}: after a pass the weights of the loop and ours differ by {apart:.1e} of their "
            f"change (at most {GRADIENT_TOLERANCE[ours]:.0e} is rounding)"
        )
    times = [
        (seconds_of(partial(plain, number), device), seconds_of(partial(engine, number), device))
        for number in range(1, rounds + 1)
    ]
    return Timing(
        what="evaluate",
        method=network.name,
        classes=dataset.train.num_classes,
        ipc=config.ipc,
        batch_real=0,
        width=protocol.width,
        baseline_times=tuple(first for first, _ in times),
        our_times=tuple(second for _, second in times),
        first_seconds=first_seconds,
        gflop=flops[0] / 1e9,
        gbyte=moved / 1e9,
        ceiling_gflops=ceiling_gflops,
        peak_memory_mib=peak,
        differences={"weights": apart},
    )


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
        per_class = max(config.match.batch_real, config.ipc)
        run = Distillation(config, timing_dataset(classes, per_class, device=self.device))
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
    progress: bool = False,
) -> BenchReport:
    """Times methods and evaluation at the paper's shapes, on images of cifar10-mini at 10 images a class.

    Args:
        methods: names of ``distillation.METHODS``.
        quick: two classes instead of ten, fewer rounds and the small pool network: a minute.
        device: as in ``accelerate.pick_device``.
        rounds: timed iterations of each side; 3, or 2 when quick, if not given.
        pool_network: architecture for class centralization, with random weights; ``resnet18`` as in the paper, or
            ``convnet3`` when quick, if not given.
        changes: further settings by dotted key, as for ``config.override``.
        progress: show a progress bar.

    Raises:
        InputError: for an unknown method, network, device or setting, no method, or fewer than one round.
        LossesDiffer: if the two sides do not compute the same thing.
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
    progress: bool = False,
) -> BenchReport:
    """Times a method as the work grows, along one axis at a time about the paper's shapes.

    Args:
        method: a name of ``distillation.METHODS``.
        axes: sizes by the names of ``AXES``, which stands where none are given.
        device: as in ``accelerate.pick_device``.
        rounds: timed iterations of each side.
        changes: further settings by dotted key, as for ``config.override``.
        progress: show a progress bar.

    Raises:
        InputError: for an unknown method, device or setting.
        LossesDiffer: if the two sides do not compute the same thing.
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
    progress: bool,
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
    with tqdm(total=(len(configs) + evaluate) * 2 * (rounds + 1), unit="it", disable=not progress) as bar:
        for config, count in zip(configs, classes, strict=True):
            bar.set_description(config.method)
            timings.append(bench.distill(config, count, rounds, bar.update))
        if evaluate:
            bar.set_description("evaluation")
            timings.append(bench.evaluate(configs[0], _CLASSES, rounds, bar.update))
    return bench.report(timings, configs[0])
