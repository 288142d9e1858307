"""Measurements of `iid bench`: the library against the fixed baselines and the limits of the machine."""

import dataclasses
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from iidlib.bars import bar
from iidlib.bench.ceilings import copy_rate, matrix_product_rate
from iidlib.bench.tables import AXES, BenchReport, Failure
from iidlib.bench.timing import LossesDiffer, Timing, compare
from iidlib.bench.training import compare_together, compare_training
from iidlib.config import RunConfig, preset
from iidlib.data import Dataset, DatasetSpec, RealSet, load_dataset
from iidlib.distillation import METHODS, Distillation
from iidlib.engine import device_name, kernels_in_use, pick_device, precision_in_use
from iidlib.errors import InputError, one_line, suggest
from iidlib.features import Pool
from iidlib.networks import NETWORKS, frozen, network_for
from iidlib.rng import stream
from iidlib.runs.environment import environment

__all__ = ["measure", "random_pool", "scaling", "timing_dataset"]

logger = logging.getLogger("iidlib")

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
        precision = precision_in_use(device, precision)
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

    def evaluate(
        self, config: RunConfig, rounds: int, on_iteration: Callable[[], object], *, together: bool = False
    ) -> Timing:
        dataset, comparison = timing_dataset(_CLASSES, config.ipc, device=self.device), compare_training
        if together:
            comparison = compare_together
        ceiling = self.ceiling_gflops
        return comparison(config, dataset, ceiling_gflops=ceiling, rounds=rounds, on_iteration=on_iteration)

    def report(self, config: RunConfig) -> BenchReport:
        """A report without timings."""
        return BenchReport(
            timings=(),
            failures=(),
            network=config.match.network,
            pool_network=config.pool.network,
            device=device_name(self.device),
            precision=self.precision,
            compiled=kernels_in_use(self.device, config.compute.compile),
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
    on_row: Callable[[BenchReport], object] | None = None,
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
        on_row: called with a report of a single row as soon as it is there, to show or save it.

    Returns:
        The timings, and what could not be timed, because the two sides do not compute the same or an error was raised.

    Raises:
        InputError: for an unknown method, network, device or setting, no method, or fewer than one round.
    """
    rounds = (_QUICK_ROUNDS if quick else _ROUNDS) if rounds is None else rounds
    if rounds < 1 or not methods:
        raise InputError(f"a measurement needs a method and at least one round, got {list(methods)} and {rounds}")
    settings = {"pool.network": pool_network or ("convnet3" if quick else "resnet18")} | dict(changes or {})
    configs = [preset(method, scale="paper", changes=settings) for method in methods]
    classes = [_QUICK_CLASSES if quick else _CLASSES] * len(configs)
    return _timed(configs, classes, rounds, device, progress, on_row, evaluate=True)


def scaling(
    method: str = "dm-cm",
    *,
    axes: Mapping[str, Sequence[int]] | None = None,
    device: str = "auto",
    rounds: int = 1,
    changes: Mapping[str, Any] | None = None,
    progress: bool | None = False,
    on_row: Callable[[BenchReport], object] | None = None,
) -> BenchReport:
    """Times one method at varying sizes, along one axis at a time around the paper's sizes.

    Args:
        method: a name of ``distillation.METHODS``.
        axes: sizes by name of the axis; by default ``AXES``.
        device: as in ``engine.pick_device``.
        rounds: timed iterations of each side.
        changes: further settings by dotted key, as for ``config.override``.
        progress: draw a progress bar; None draws one on a terminal, and otherwise logs a line every minute.
        on_row: called with a report of a single row as soon as it is there, to show or save it.

    Returns:
        The timings, and what could not be timed, because the two sides do not compute the same or an error was raised.

    Raises:
        InputError: for an unknown method, device or setting.
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
    return _timed(configs, [point["classes"] for point in points], rounds, device, progress, on_row)


def _timed(
    configs: Sequence[RunConfig],
    classes: Sequence[int],
    rounds: int,
    device: str,
    progress: bool | None,
    on_row: Callable[[BenchReport], object] | None,
    evaluate: bool = False,
) -> BenchReport:
    for config in configs:  # before anything is timed
        if config.method not in METHODS:
            raise InputError(f"unknown method {config.method!r}{suggest(config.method, METHODS)}")
        for name in (config.match.network, config.pool.network):
            if name not in NETWORKS:
                raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    bench = _Bench.on(device, configs[0].compute.precision)
    report = bench.report(configs[0])
    with bar("bench", (len(configs) + 2 * evaluate) * 2 * (rounds + 1), "iteration", shown=progress) as progress_bar:
        done = progress_bar.advance
        works: list[tuple[str, str, Callable[[], Timing]]] = [
            ("distill", config.method, partial(bench.distill, config, count, rounds, done))
            for config, count in zip(configs, classes, strict=True)
        ]
        if evaluate:
            network = configs[0].eval.networks[0]
            works.append(("evaluate", network, partial(bench.evaluate, configs[0], rounds, done)))
            together = partial(bench.evaluate, configs[0], rounds, done, together=True)
            works.append(("evaluate together", network, together))
        for what, method, work in works:
            progress_bar.rename(method if what == "distill" else "evaluation")
            one = dataclasses.replace(report, **_outcome(what, method, work))
            if on_row is not None:
                on_row(one)
            report = dataclasses.replace(
                report, timings=report.timings + one.timings, failures=report.failures + one.failures
            )
    return report


def _outcome(what: str, method: str, work: Callable[[], Timing]) -> dict[str, Any]:
    """Does some work; returns the fields of a report with its timing, or with the reason why there is none."""
    try:
        return {"timings": (work(),), "failures": ()}
    except LossesDiffer as error:
        reason = one_line(error)
    except InputError:
        raise
    except Exception as error:  # whatever is broken, the others are timed
        reason = f"{type(error).__name__}: {one_line(error)}"
        logger.warning("%s %s could not be timed", what, method, exc_info=True)
    finally:
        gc.collect()  # graphs in reference cycles hold memory that the next work may need
    return {"timings": (), "failures": (Failure(what, method, reason),)}
