"""Predicted cost of the cells: seconds on a named device, from counted operations, bytes and kernel launches.

The work of a cell is counted, as for one image of each network; a `DeviceModel` then assumes how fast a device does it.
The prediction is a sum, since convolutions rarely overlap with the norms between them::

    seconds = FLOP / rate + bytes / bandwidth + kernels * launch

and not less than what the host needs to prepare a step. Where rows of results say how long a cell took on such a
device, these seconds are used instead. Predictions are within a factor of two at best: they order the cells and show
which of them fit into an hour, and no more. They hold for the default precision, ``tf32`` on a GPU that has it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from iidlib.config import EvalProtocol, RunConfig
from iidlib.config.recipes import BASELINES, FROM_POOL
from iidlib.config.uses import WEIGHTS, has_pairs, source_of, uses_pool
from iidlib.errors import InputError, suggest
from iidlib.experiments.cells import Cell
from iidlib.experiments.layers import NetworkWork, Work, network_work
from iidlib.experiments.measurements import all_rows, own_rows

__all__ = [
    "DATASET_SIZES",
    "DEVICES",
    "Cost",
    "DatasetSize",
    "DeviceModel",
    "PoolCost",
    "cost_of_cell",
    "costs",
    "device_model",
    "model_of",
    "seconds_per_iteration",
]


@dataclass(frozen=True)
class DeviceModel:
    """Assumed speed of a device."""

    name: str
    rate: float
    """Rate of a ConvNet's convolutions, in FLOP per second."""
    other_rate: float
    """Rate of the convolutions of other networks, in FLOP per second."""
    bandwidth: float
    """Memory bandwidth, in bytes per second; infinite if the rates include the traffic."""
    launch: float
    """Seconds between two kernels of a recorded graph."""
    host: float
    """Seconds in which the host prepares a step; a step takes at least that long."""
    start: float
    """Seconds of a process besides its work: imports, compilation, recording, loading the data."""
    source: str
    """Origin of these numbers."""

    def seconds(self, work: Work, *, convnet: bool = True) -> float:
        """Seconds of some work, without regard to the host."""
        rate = self.rate if convnet else self.other_rate
        return work.flop / rate + work.bytes / self.bandwidth + work.kernels * self.launch

    def owns(self, name: str) -> bool:
        """Whether a row's device is such a device: ``NVIDIA H100 80GB HBM3`` is an h100, ``cpu (2 threads)`` a cpu."""
        return self.name in name.lower().replace("-", " ").replace("(", " ").split() or (
            self.name == "cpu" and name.startswith("cpu")
        )


_ATTAINED, _MOVED = 0.5, 0.78
"""Shares of the data sheet's rate and bandwidth that the library's convolutions and norms are assumed to attain.

Convolutions of 64 to 128 channels leave tensor cores partly idle; a plain copy moves nine tenths. Neither was measured
on a GPU yet: `iid bench` prints the ceilings, and rows of results replace the predictions.
"""


def _gpu(name: str, tflops: float, tbytes: float, note: str) -> DeviceModel:
    """Model of a GPU from its data sheet."""
    rate, share = tflops * 1e12 * _ATTAINED, f"{_ATTAINED:.0%} of the rate and {_MOVED:.0%} of the bandwidth, assumed"
    bandwidth, source = tbytes * 1e12 * _MOVED, f"data sheet: {tflops:g} TFLOP/s {note}, {tbytes:g} TB/s; {share}"
    return DeviceModel(name, rate, rate, bandwidth, launch=1.3e-6, host=1e-3, start=20, source=source)


DEVICES: dict[str, DeviceModel] = {
    model.name: model
    for model in (
        _gpu("h100", 495, 3.35, "dense TF32, SXM"),
        _gpu("h200", 495, 4.8, "dense TF32"),
        _gpu("a100", 156, 2.04, "dense TF32, 80 GB"),
        _gpu("t4", 8.1, 0.32, "FP32, which has no TF32"),
        DeviceModel(
            "cpu", rate=4.2e11, other_rate=3.7e11, bandwidth=math.inf, launch=0, host=0, start=8,
            source="data/results/bench.csv: two threads with AVX-512, compiled kernels",
        ),
    )
}  # fmt: skip
"""Device models by name."""


class DatasetSize(NamedTuple):
    """Numbers of a dataset that determine the cost of a cell."""

    classes: int
    side: int
    """Height and width of an image in pixels."""
    channels: int
    train: int
    """Training images."""
    test: int
    """Test images."""


DATASET_SIZES: dict[str, DatasetSize] = {
    "cifar10-mini": DatasetSize(10, 32, 3, 4_000, 1_000),
    "cifar10": DatasetSize(10, 32, 3, 50_000, 10_000),
    "cifar100": DatasetSize(100, 32, 3, 50_000, 10_000),
    "svhn": DatasetSize(10, 32, 3, 73_257, 26_032),
    "mnist": DatasetSize(10, 32, 1, 60_000, 10_000),
    "fashionmnist": DatasetSize(10, 32, 1, 60_000, 10_000),
    "tinyimagenet": DatasetSize(200, 64, 3, 100_000, 10_000),
}
"""Sizes of datasets, repeated here because reading the registry imports torch."""

_TERM_KERNELS = {"match.mean": 8, "match.cm": 30, "match.cc": 25, "match.ce": 50, "match.mmd": 64}
"""Kernels of an iteration by term, counted for ConvNets with three blocks."""

_MATCHING_KERNELS = 60
"""Kernels of an iteration for its draws, its augmentation, the matching network, and the update."""

_PRETRAINED_KERNELS = 83
"""Kernels of a pretrained network in an iteration, counted for a ResNet18."""


@dataclass(frozen=True)
class PoolCost:
    """A pool of pretrained networks, which is trained once for all cells that share it."""

    name: str
    """Description, such as ``cifar10: 2 resnet18, 20 epochs``."""
    seconds: float
    measured: bool = False


@dataclass(frozen=True)
class Cost:
    """Seconds of a cell for one seed; those of its pool are apart."""

    distillation: float
    evaluation: float
    start: float
    """Seconds of its process besides that; 0 if measured, because rows do not include it."""
    pool: PoolCost | None = None
    measured: bool = False
    """Whether rows of results say the seconds of distillation and evaluation."""

    @property
    def seconds(self) -> float:
        """Seconds without the pool."""
        return self.distillation + self.evaluation + self.start


def device_model(name: str) -> DeviceModel:
    """Finds a device model by its name.

    Raises:
        InputError: for an unknown name, with a suggestion.
    """
    if name.lower() not in DEVICES:
        raise InputError(f"times cannot be predicted for the device {name!r}{suggest(name.lower(), DEVICES)}")
    return DEVICES[name.lower()]


def model_of(device: str) -> str:
    """Name of the model of a device that rows name so, such as ``NVIDIA H100 80GB HBM3``; "" if there is none."""
    return next((name for name, model in DEVICES.items() if model.owns(device)), "")


def costs(
    cells: Iterable[Cell], *, scale: str, device: str, folder: Path | None = None, rows: pd.DataFrame | None = None
) -> dict[Cell, Cost | None]:
    """Cost of each cell: measured where there are rows of such a device, and predicted elsewhere.

    Args:
        cells: the cells.
        scale: scale of the runs.
        device: name of a device model, one of ``DEVICES``.
        folder: folder of the results; defaults to that of the checkout.
        rows: rows of results, in place of a folder.

    Returns:
        The costs in the order of the cells; None where the cell does not exist at the scale, or neither is known.

    Raises:
        InputError: for an unknown device.
    """
    model, known = device_model(device), all_rows(folder) if rows is None else rows
    return {cell: cost_of_cell(cell, scale, model, known) for cell in cells}


def cost_of_cell(cell: Cell, scale: str, model: DeviceModel, rows: pd.DataFrame | None = None) -> Cost | None:
    """Cost of one cell, see `costs`."""
    if not cell.runs_at(scale):
        return None
    try:
        config = cell.settings_at(scale)
    except InputError:  # a cell of a grid for another scale
        return None
    taken = None if rows is None else _measured(cell, config, scale, model, rows)
    predicted = _predicted(cell, config, model)
    if taken is None or predicted is None:
        return taken or predicted
    return taken if taken.pool else Cost(taken.distillation, taken.evaluation, 0, predicted.pool, measured=True)


def _predicted(cell: Cell, config: RunConfig, model: DeviceModel) -> Cost | None:
    """Prediction for a cell; None if its dataset or a network is unknown here."""
    size = DATASET_SIZES.get(config.dataset.removeprefix("validation:"))
    if size is None:
        return None
    try:
        steps = cell.steps or 1
        share = size.classes // steps
        distillation = 0.0 if cell.method in BASELINES else steps * _distillation(config, size, share, model)
        # incremental learning evaluates all classes so far after every step
        evaluation = sum(_evaluation(cell, config, size, share * step, model) for step in range(1, steps + 1))
        return Cost(distillation, evaluation, model.start, _pool(cell, config, size, model))
    except KeyError:  # a network that is not counted
        return None


def _work(name: str, width: int, size: DatasetSize) -> NetworkWork:
    return network_work(name, side=size.side, classes=size.classes, width=width, channels=size.channels)


def _is_convnet(name: str) -> bool:
    return name.startswith("convnet")


def _terms(config: RunConfig) -> set[str]:
    """Weights of the terms in use."""
    used = {key for key, methods in WEIGHTS.items() if config.method in methods and getattr(config.match, key[6:])}
    used -= set() if has_pairs(config) else {"match.cm", "match.cc"}
    return used - ({"match.ce"} if source_of(config) == "random" else set())


def _kernels(terms: Iterable[str], *, pretrained: bool) -> int:
    """Kernels of an iteration, without the training of a queue."""
    return _MATCHING_KERNELS + sum(_TERM_KERNELS[term] for term in terms) + (_PRETRAINED_KERNELS if pretrained else 0)


def _distillation(config: RunConfig, size: DatasetSize, classes: int, model: DeviceModel) -> float:
    """Seconds of all iterations."""
    match, queue, terms, source = config.match, config.queue, _terms(config), source_of(config)
    from_pool = source in FROM_POOL
    name, width = (config.pool.network, config.pool.width) if from_pool else (match.network, match.width)
    matching = _work(name, width, size)
    real = 0 if match.statistics == "cached" else classes * min(match.batch_real, size.train // size.classes)
    syn = classes * config.ipc * config.syn.factor**2
    work = matching.forward * real + matching.image_gradient * syn
    pretrains = "match.cc" in terms and not from_pool
    work += Work(kernels=_kernels(terms, pretrained=pretrains))
    seconds = model.seconds(work, convnet=_is_convnet(name))
    if pretrains:
        pretrained = _work(config.pool.network, config.pool.width, size)
        scatter = classes * match.cc_real if match.cc_scaling == "relative" else 0
        extra = pretrained.image_gradient * syn + pretrained.forward * scatter
        seconds += model.seconds(extra, convnet=_is_convnet(config.pool.network))
    if source == "queue":
        steps = queue.train * queue.steps
        training = matching.training * (steps * queue.batch) + Work(kernels=steps * matching.training_kernels)
        seconds += model.seconds(training, convnet=_is_convnet(name))
    return config.iterations * max(seconds, model.host)


def seconds_per_iteration(config: RunConfig, size: DatasetSize, model: DeviceModel) -> float:
    """Predicted seconds of an iteration with all classes of a dataset.

    Args:
        config: the settings.
        size: the dataset.
        model: the device.
    """
    return _distillation(config, size, size.classes, model) / config.iterations


def _evaluation(cell: Cell, config: RunConfig, size: DatasetSize, classes: int, model: DeviceModel) -> float:
    """Seconds of all evaluation networks, trained together on a GPU."""
    protocol: EvalProtocol = cell.protocol_of(config)
    if cell.method == "whole":
        protocol = protocol.for_whole_set()
    tiles = 1 if cell.method in BASELINES and cell.method != "random-mosaic" else config.syn.factor**2
    images = size.train if cell.method == "whole" else classes * config.ipc * tiles
    network, convnet = _work(cell.network, protocol.width, size), _is_convnet(cell.network)
    steps = protocol.epochs * math.ceil(images / protocol.batch)
    one = network.training * (images * protocol.epochs) + Work(kernels=steps * network.training_kernels)
    training = max(steps * model.host, protocol.num_eval * model.seconds(one, convnet=convnet))
    tested = network.forward * (size.test * classes // size.classes)
    return training + protocol.num_eval * model.seconds(tested, convnet=convnet)


def _pool(cell: Cell, config: RunConfig, size: DatasetSize, model: DeviceModel) -> PoolCost | None:
    """Pool of a cell, with a network of its own for each seed where it selects real images."""
    pool = config.pool
    if cell.method in ("herding", "k-center"):
        count = 1
    elif cell.method in BASELINES or not uses_pool(config):
        return None
    else:
        count = pool.count if "match.cc" in _terms(config) or source_of(config) in FROM_POOL else 1
    network = _work(pool.network, pool.width, size)
    steps = pool.epochs * math.ceil(size.train / pool.batch)
    one = network.training * (size.train * pool.epochs) + network.forward * size.test
    one += Work(kernels=steps * network.training_kernels)
    seconds = count * model.seconds(one, convnet=_is_convnet(pool.network))
    return PoolCost(_pool_name(config, count), max(steps * model.host, seconds))


def _pool_name(config: RunConfig, count: int) -> str:
    pool = config.pool
    width = f" of width {pool.width}" if _is_convnet(pool.network) else ""
    return f"{config.dataset}: {count} {pool.network}{width}, {pool.epochs} epochs"


def _measured(cell: Cell, config: RunConfig, scale: str, model: DeviceModel, rows: pd.DataFrame) -> Cost | None:
    """Mean seconds over the measured seeds of a cell on such a device; None if there are none.

    On a CPU the rows with the most threads count.
    """
    own = own_rows(cell, scale, rows)
    if own.empty or "seconds" not in own:
        return None
    numbers = own.reindex(columns=["seconds", "seconds_per_iteration", "pool_seconds"]).apply(
        pd.to_numeric, errors="coerce"
    )
    text = own.reindex(columns=["device", "distilled_on"]).astype(object).fillna("")
    evaluated = numbers["seconds"][_fastest(text["device"], model)].mean()
    distilled_on = text["distilled_on"].where(text["distilled_on"] != "", text["device"])
    there = _fastest(distilled_on, model)
    per_iteration = 0.0 if cell.method in BASELINES else numbers["seconds_per_iteration"][there].mean()
    if math.isnan(evaluated) or math.isnan(per_iteration):
        return None
    trained = numbers["pool_seconds"][there].mean()
    known = uses_pool(config) and cell.method not in BASELINES and not math.isnan(trained)
    pool = PoolCost(_pool_name(config, config.pool.count), trained, measured=True) if known else None
    iterations, networks = config.iterations, cell.protocol_of(config).num_eval
    return Cost(per_iteration * iterations, evaluated * networks, 0, pool, measured=True)


def _fastest(names: "pd.Series[str]", model: DeviceModel) -> "pd.Series[bool]":
    """Rows of such a device, those with the most threads only."""
    own = names.map(model.owns).astype(bool)
    threads = names.str.extract(r"(\d+) threads?", expand=False).astype(float).fillna(0)
    return own & (threads == threads[own].max())
