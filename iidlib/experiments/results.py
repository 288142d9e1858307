"""Rows of results: what an evaluation says of a set, how the set was made, by which command, versions and machine."""

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
from iidlib.names import same_dataset

__all__ = ["RESULT_COLUMNS", "MadeBy", "SetOrigin", "protocol_text", "result_rows"]

RESULT_COLUMNS = (
    "dataset", "method", "ipc", "scale", "network", "seed", "evaluation_seed", "accuracy", "protocol", "iterations",
    "seconds_per_iteration", "peak_memory_mib", "device", "torch", "iidlib", "commit", "date", "command",
    "networks_seed", "epochs", "images", "seconds", "pool_accuracies", "settings", "outcome",
    "pool_seconds", "distilled_on",
)  # fmt: skip
"""What a row says; what does not apply is empty.

``scale`` and ``seed`` are the distillation's (or of the choice of real images), ``protocol`` says how the set was
evaluated; ``networks_seed`` with the network's number ``evaluation_seed`` names the draws of the evaluation, which took
``seconds``, on the ``device``; ``seconds_per_iteration`` are those of the distillation, on the device and with the
threads of ``distilled_on``; ``pool_seconds`` is what the training of its pool took, whenever it was. ``settings`` are
those beside the scale's that the set was made with, or the command was given, as far as they apply to it; among them
``made_from``, where a set was made of another dataset than it was evaluated on. Accuracies are in percent. ``outcome``
says what the network came to (``trained``, ``diverged``, ``constant`` or ``out of range``, see
`iidlib.training.Outcome`); rows that are older than the column lack it.
"""


def protocol_text(protocol: EvalProtocol, label: str, factor: int = 1) -> str:
    """The protocol as a row of results says it.

    Args:
        protocol: how networks were trained on the set.
        label: the set's method; ``whole`` has a protocol of its own.
        factor: tiles along a side of an image of the set.
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
    """The scale at which they were made; the protocol of the evaluation may be that of another one."""
    seed: int = 0
    """Random seed of the distillation, or of the choice of real images."""
    iterations: int = 0
    """Updates of the images; 0 for real ones."""
    factor: int = 1
    """Tiles along a side of an image."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings that are not the scale's own, by dotted key; see ``RESULT_COLUMNS``."""
    dataset: str = ""
    """Whose images they were made from, where it is not the dataset that the row names."""
    seconds_per_iteration: float | None = None
    """Of the distillation, the choice of its initial images included; the pool's training is apart."""
    pool_accuracies: Sequence[float] = ()
    """Held-out accuracy of each pretrained network that was used, in percent."""
    pool_seconds: float | None = None
    """What the training of those networks took, whenever it was; None where that is not known."""
    distilled_on: str | None = None
    """The device of the iterations, with its threads; None where that is not known."""

    @classmethod
    def planned(cls, config: RunConfig) -> "SetOrigin":
        """The origin of a set that is made with these settings from beginning to end.

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
    """Command, versions and machine behind some rows of results; `iidlib.evaluation.made_by` fills it in."""

    command: str | None = None
    torch: str | None = None
    iidlib: str | None = None
    commit: str | None = None
    date: str | None = None
    """UTC, ISO 8601; of two rows for the same networks the newer one counts."""
    device: str | None = None
    peak_memory_mib: int | None = None


def result_rows(
    scores: pd.DataFrame, config: RunConfig, *, origin: SetOrigin | None = None, made_by: MadeBy | None = None
) -> pd.DataFrame:
    """Scores of a set as rows of results, which `append_results` adds to a table and ``iid reproduce`` counts.

    For a run that keeps to its settings from beginning to end::

        dataset, config = load_dataset("cifar10-mini"), preset("dm", "cifar10-mini", 10, "tour")
        synthetic = distill(config, dataset).synthetic
        scores = evaluate(synthetic, dataset, protocol=config.eval, seed=config.seed)
        rows = result_rows(scores, config, made_by=made_by(dataset.test.device))
        append_results(Path("results/mine.csv"), rows)

    Args:
        scores: what one call of `iidlib.evaluate` gave for the set. Columns that are not in ``RESULT_COLUMNS`` are
            kept behind them.
        config: says dataset, images per class and protocol.
        origin: how the set was made, see `iidlib.evaluation.origin_of`; with `config` from beginning to end, when not
            given.
        made_by: command, versions and machine; these columns are empty without it.

    Returns:
        A row for each trained network, with the columns ``RESULT_COLUMNS``.

    Raises:
        InputError: for scores that are not of one call of `evaluate`, or were obtained on another dataset or under
            another protocol than `config` says.
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
    if settings := _settings_that_apply(made, config):
        row["settings"] = " ".join(f"{key}={value}" for key, value in settings.items())
    if made_by is not None:
        row |= dataclasses.asdict(made_by)
    more = [name for name in scores.columns if name not in RESULT_COLUMNS]
    return scores.assign(**row).reindex(columns=[*RESULT_COLUMNS, *more])


_SHAPED_BY: dict[str, tuple[str, ...]] = {
    "random": (),
    "random-mosaic": ("syn.factor",),
    "herding": ("pool.",),  # the network whose features choose the images
    "k-center": ("pool.",),
    "whole": (),
}
"""Settings, or groups of them, that a choice of real images depends on; ipc and seed have columns of their own."""


def _settings_that_apply(made: SetOrigin, config: RunConfig) -> dict[str, object]:
    """The settings that a row may name: of real images only those that shape them or their evaluation.

    With those of a distilled set, beside which they are evaluated, a row would claim a choice that was never made, and
    would not count as what it is.
    """
    kept = dict(made.settings)
    if made.method in BASELINES:
        own = ("eval.", "compute.precision", *_SHAPED_BY[made.method])
        # one network chooses, whatever pool.count says
        kept = {key: value for key, value in kept.items() if key.startswith(own) and key != "pool.count"}
    if made.method == "random-mosaic":
        usual = preset(made.method, config.dataset, config.ipc, made.scale)
        if made.factor != usual.syn.factor:
            kept["syn.factor"] = made.factor
    if made.dataset not in ("", config.dataset):
        kept["made_from"] = re.sub(r"\s+", "_", made.dataset)  # the pairs of a row stand apart by spaces
    return kept


def _evaluated_as(scores: pd.DataFrame, config: RunConfig) -> int:
    """Compares what `evaluate` noted in the ``attrs`` of its scores with the settings; returns its networks' seed."""
    noted = scores.attrs
    if not {"dataset", "seed", "protocol"} <= set(noted):
        raise InputError(
            "rows of results need the scores of one call of evaluate, which says in their attrs what it did; "
            "make the rows of each call by themselves and join those"
        )
    if not same_dataset(noted["dataset"], config.dataset):
        raise InputError(
            f"the scores were obtained on {noted['dataset']}, and the settings say {config.dataset}; "
            "take settings for it: preset(..., dataset=dataset.name)"
        )
    for name, value in attrs.asdict(config.eval).items():
        # which networks, and how many of each, the rows say themselves
        if name not in ("networks", "num_eval") and noted["protocol"].get(name) != value:
            raise InputError(
                f"the networks were trained with eval.{name}={noted['protocol'].get(name)}, and the settings say "
                f"{value}; call evaluate with protocol=config.eval"
            )
    return int(noted["seed"])
