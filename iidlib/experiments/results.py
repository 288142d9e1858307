"""Rows of results: the scores of a set, how the set was made, and the command, versions and machine behind it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import attrs
import pandas as pd

from iidlib.config import EvalProtocol, RunConfig, differing, preset
from iidlib.config.recipes import BASELINES
from iidlib.errors import InputError
from iidlib.files import readable
from iidlib.names import same_dataset

__all__ = ["RESULT_COLUMNS", "MadeBy", "SetOrigin", "protocol_text", "result_rows"]

RESULT_COLUMNS = (
    "dataset", "method", "ipc", "scale", "network", "seed", "evaluation_seed", "accuracy", "protocol", "iterations",
    "seconds_per_iteration", "peak_memory_mib", "device", "torch", "iidlib", "commit", "date", "command",
    "networks_seed", "epochs", "images", "seconds", "pool_accuracies", "settings", "outcome",
    "pool_seconds", "distilled_on", "ensemble", "recorded",
)  # fmt: skip
"""Columns of a row; those that do not apply are empty.

``scale`` and ``seed`` are those of the distillation (or of the choice of real images), ``protocol`` describes the
evaluation; ``networks_seed`` together with the network's number ``evaluation_seed`` determines the random draws of the
evaluation, which took ``seconds`` on ``device``; ``seconds_per_iteration`` is the distillation's, on the device and
with the threads of ``distilled_on``; ``pool_seconds`` is the time that the training of its pool took, whenever it was.
``settings`` are those besides the scale's that the set was made with, or that the command was given, as far as they
apply; they include ``made_from`` if a set was made from another dataset than it was evaluated on. Accuracies are in
percent. ``outcome`` is how the network's training ended (``trained``, ``diverged``, ``constant`` or ``out of range``,
see `iidlib.training.Outcome`); rows older than the column lack it. ``ensemble`` is how networks that were trained
together computed their gradients, and whether all steps were recorded (``in_turn, recorded``); empty for networks that
were trained one after the other, and in rows older than the column. ``recorded`` is ``yes`` if the iterations of the
distillation were recorded as CUDA graphs, ``no`` if a GPU computed them without, and otherwise empty.
"""


def protocol_text(protocol: EvalProtocol, label: str, factor: int = 1) -> str:
    """Text of a protocol in a row of results.

    Args:
        protocol: how networks were trained on the set.
        label: method of the set; ``whole`` has a protocol of its own.
        factor: number of tiles along a side of an image of the set.
    """
    name = "whole set" if label == "whole" else protocol.name
    if label == "whole" and protocol.name != "dm":
        name += f" ({protocol.name})"
    text = f"{name}, {protocol.epochs} epochs, batch {protocol.batch}, lr {protocol.lr:g}, width {protocol.width}"
    if factor > 1:
        text += f", each image expanded to {factor**2}"
    if protocol.name == "own":
        text += f", CutMix {protocol.cutmix:g}, schedule {protocol.schedule}"
    return text if protocol.augmentation == "auto" else f"{text}, augmentation {protocol.augmentation}"


@dataclass(frozen=True)
class SetOrigin:
    """How the images of some rows of results were made."""

    method: str
    """The distillation method, or one of ``BASELINES``."""
    scale: str
    """The scale at which they were made; the evaluation may follow the protocol of another one."""
    seed: int = 0
    """Random seed of the distillation, or of the choice of real images."""
    iterations: int = 0
    """Number of updates of the images; 0 for real ones."""
    factor: int = 1
    """Number of tiles along a side of an image."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings that differ from the scale's own, by dotted key; see ``RESULT_COLUMNS``."""
    dataset: str = ""
    """Dataset that they were made from, if it is not that of the row."""
    seconds_per_iteration: float | None = None
    """Seconds per iteration of the distillation, including the choice of initial images but not the pool's training."""
    pool_accuracies: Sequence[float] = ()
    """Held-out accuracy of each pretrained network in use, in percent."""
    pool_seconds: float | None = None
    """Seconds that the training of these networks took, whenever it was; None if unknown."""
    distilled_on: str | None = None
    """The device of the iterations, with its threads; None if unknown."""
    recorded: bool | None = None
    """Whether the iterations were recorded as CUDA graphs; None if unknown or not computed on a GPU."""

    @classmethod
    def planned(cls, config: RunConfig) -> "SetOrigin":
        """Origin of a set that is made with these settings throughout.

        Random images with ``syn.factor`` above 1 are random mosaics.
        """
        method, factor = config.method, config.syn.factor
        if method == "random" and factor > 1:
            method = "random-mosaic"
        return cls(
            method=method,
            scale=config.scale,
            seed=config.seed,
            iterations=0 if method in BASELINES else config.iterations,
            factor=factor if method == "random-mosaic" or method not in BASELINES else 1,
            settings=differing(config),
        )


@dataclass(frozen=True)
class MadeBy:
    """Command, versions and machine behind rows of results, as returned by `iidlib.evaluation.made_by`."""

    command: str | None = None
    torch: str | None = None
    iidlib: str | None = None
    commit: str | None = None
    date: str | None = None
    """Date in UTC, ISO 8601; of two rows for the same networks, the newer counts."""
    device: str | None = None
    peak_memory_mib: int | None = None


def result_rows(
    scores: pd.DataFrame, config: RunConfig, *, origin: SetOrigin | None = None, made_by: MadeBy | None = None
) -> pd.DataFrame:
    """Converts scores of a set to rows of results, which `append_results` adds to a table and ``iid reproduce`` counts.

    For a run that keeps its settings throughout::

        dataset, config = load_dataset("cifar10-mini"), preset("dm", "cifar10-mini", 10, "tour")
        synthetic = distill(config, dataset).synthetic
        scores = evaluate(synthetic, dataset, protocol=config.eval, seed=config.seed)
        rows = result_rows(scores, config, made_by=made_by(dataset.test.device))
        append_results(Path("results/mine.csv"), rows)

    Args:
        scores: result of one call of `iidlib.evaluate` for the set. Columns that are not in ``RESULT_COLUMNS`` are
            appended.
        config: settings, for dataset, images per class and protocol.
        origin: how the set was made, see `iidlib.evaluation.origin_of`; by default with `config` throughout.
        made_by: command, versions and machine; without it these columns are empty.

    Returns:
        One row per trained network, with the columns ``RESULT_COLUMNS``.

    Raises:
        InputError: for scores that are not from a single call of `evaluate`, or whose dataset or protocol differs from
            that of `config`.
    """
    made = SetOrigin.planned(config) if origin is None else origin
    networks_seed = _evaluated_as(scores, config)
    row: dict[str, Any] = {
        "dataset": config.dataset,
        "method": made.method,
        "ipc": config.ipc,
        "scale": made.scale,
        "seed": made.seed,
        "protocol": protocol_text(config.eval, made.method, made.factor),
        "iterations": made.iterations,
        "networks_seed": networks_seed,
    }
    if made.seconds_per_iteration is not None:
        row["seconds_per_iteration"] = made.seconds_per_iteration
    if made.pool_accuracies:
        row["pool_accuracies"] = " ".join(f"{value:.2f}" for value in made.pool_accuracies)
    if made.pool_seconds is not None:
        row["pool_seconds"] = made.pool_seconds
    if made.distilled_on is not None:
        row["distilled_on"] = made.distilled_on
    if made.recorded is not None:
        row["recorded"] = "yes" if made.recorded else "no"
    if settings := _settings_that_apply(made, config):
        row["settings"] = " ".join(f"{key}={value}" for key, value in settings.items())
    if made_by is not None:
        row |= dataclasses.asdict(made_by)
    more = [name for name in scores.columns if name not in RESULT_COLUMNS]
    row = {name: readable(value) if isinstance(value, str) else value for name, value in row.items()}
    return scores.assign(**row).reindex(columns=[*RESULT_COLUMNS, *more])


_SHAPED_BY: dict[str, tuple[str, ...]] = {
    "random": (),
    "random-mosaic": ("syn.factor",),
    "herding": ("pool.",),  # the network whose features select the images
    "k-center": ("pool.",),
    "whole": (),
}
"""Settings, or groups of settings, that a choice of real images depends on, besides ipc and seed."""


def _settings_that_apply(made: SetOrigin, config: RunConfig) -> dict[str, object]:
    """Settings that a row may name: for real images, only those that affect them or their evaluation.

    With the settings of the distilled set that they are compared with, a row would describe a choice that was never
    made, and would not count for its cell.
    """
    kept = dict(made.settings)
    if made.method in BASELINES:
        prefixes = ("eval.", "compute.precision", *_SHAPED_BY[made.method])
        # a single network selects, regardless of pool.count
        kept = {key: value for key, value in kept.items() if key.startswith(prefixes) and key != "pool.count"}
    if made.method == "random-mosaic":
        usual = preset(made.method, config.dataset, config.ipc, made.scale)
        if made.factor != usual.syn.factor:
            kept["syn.factor"] = made.factor
    if made.dataset not in ("", config.dataset):
        kept["made_from"] = re.sub(r"\s+", "_", made.dataset)  # spaces separate the pairs of a row
    return kept


def _evaluated_as(scores: pd.DataFrame, config: RunConfig) -> int:
    """Compares the ``attrs`` that `evaluate` gave its scores with the settings; returns the networks' seed."""
    noted = scores.attrs
    if not {"dataset", "seed", "protocol"} <= set(noted):
        raise InputError(
            "rows of results need the scores of one call of evaluate, with its attrs; make the rows of each call "
            "separately and concatenate those"
        )
    if not same_dataset(noted["dataset"], config.dataset):
        raise InputError(
            f"the scores were obtained on {noted['dataset']}, but the settings say {config.dataset}; "
            "use settings for it: preset(..., dataset=dataset.name)"
        )
    for name, value in attrs.asdict(config.eval).items():
        # the rows themselves show which networks, and how many of each
        if name not in ("networks", "num_eval") and noted["protocol"].get(name) != value:
            raise InputError(
                f"the networks were trained with eval.{name}={noted['protocol'].get(name)}, but the settings say "
                f"{value}; call evaluate with protocol=config.eval"
            )
    return int(noted["seed"])
