"""Provenance of an evaluation: how the set was made, the settings of its evaluation, the versions behind its rows."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from iidlib.config import RunConfig, differing, preset
from iidlib.config import protocol as protocol_changes
from iidlib.config.recipes import BASELINES, BASES, PROTOCOLS, SCALES
from iidlib.data import Dataset, RealSet
from iidlib.engine import device_name, peak_memory_mib
from iidlib.errors import InputError, suggest
from iidlib.experiments import MadeBy, SetOrigin
from iidlib.runs import RunFolder
from iidlib.runs.environment import environment
from iidlib.synthetic import SyntheticSet

__all__ = ["check_protocol", "cost_of", "evaluation_config", "made_by", "origin_of", "with_memory"]


def made_by(device: torch.device, command: str | None = None) -> MadeBy:
    """Current versions, commit, date and machine, for `iidlib.experiments.result_rows`.

    Args:
        device: the device that networks are trained on.
        command: the command line that produced the rows, if any.
    """
    known = environment()
    now = MadeBy(
        command=command,
        torch=known["torch"],
        iidlib=known["iidlib"],
        commit=known["commit"],
        date=known["date"],
        device=device_name(device),
    )
    return with_memory(now, device)


def with_memory(known: MadeBy, device: torch.device) -> MadeBy:
    """A copy with the current peak memory, for a record made before the work started."""
    return dataclasses.replace(known, peak_memory_mib=round(peak_memory_mib(device)))


def origin_of(
    images: SyntheticSet | RealSet,
    *,
    run: RunFolder | None = None,
    scale: str = "tour",
    seed: int = 0,
    called: str = "the set",
) -> SetOrigin:
    """Origin of a set, according to its provenance.

    Args:
        images: a distilled set, images chosen by `real_images`, or all training images.
        run: the folder of the run that made the set, if it was kept; the settings are then read from it.
        scale: scale of a set whose provenance has none, such as chosen images.
        seed: seed of a set whose provenance has none.
        called: name of the set in error messages.

    Raises:
        InputError: if the seed or the iterations in the provenance are not numbers.
    """
    if isinstance(images, RealSet):
        return SetOrigin("whole", scale, seed, dataset=images.spec.name)
    known = images.provenance
    try:
        iterations, seed = int(known.get("iterations", 0)), int(known.get("seed", seed))
    except ValueError:
        raise InputError(
            f"{called} is corrupted (its seed or iterations are not numbers); distil or copy it again"
        ) from None
    pairs = (pair.partition("=") for pair in known.get("settings", "").split())
    return SetOrigin(
        method=known.get("method", "unknown"),
        scale=known.get("scale", scale),
        seed=seed,
        iterations=iterations,
        factor=images.factor,
        settings={key: value for key, _, value in pairs} if run is None else differing(run.config()),
        dataset=images.spec.name,
        **({} if run is None else cost_of(run, iterations)),
    )


def cost_of(run: RunFolder, iterations: int) -> dict[str, Any]:
    """A run's time, device and pool according to its folder, as fields of `SetOrigin`.

    Args:
        run: the folder.
        iterations: iterations of its set; the log may have more, if a continuation was stopped.
    """
    rows, pool = [], run.noted("pool")
    with contextlib.suppress(InputError):  # without a readable log the row lacks its time, but not its accuracy
        rows = [row for row in run.metric_rows() if row["iteration"] < iterations]
    cost: dict[str, Any] = {}
    if rows and rows[-1].get("seconds"):
        cost["seconds_per_iteration"] = rows[-1]["seconds"] / (rows[-1]["iteration"] + 1)  # counted from 0
    if "accuracies" in pool:
        cost |= {"pool_accuracies": pool["accuracies"], "pool_seconds": pool.get("seconds")}
    if "name" in (device := run.noted("device")):
        cost["distilled_on"] = device["name"]
    if isinstance(recorded := device.get("recorded"), bool):
        cost["recorded"] = recorded
    return cost


def check_protocol(name: str) -> None:
    """Checks the name of a protocol for `evaluation_config`.

    Raises:
        InputError: for an unknown name, with a suggestion.
    """
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}{suggest(name, PROTOCOLS)}")


def evaluation_config(
    origin: SetOrigin,
    dataset: Dataset,
    ipc: int,
    *,
    scale: str | None = None,
    protocol: str = "dm",
    changes: Mapping[str, object] | None = None,
) -> RunConfig:
    """Settings of a set's evaluation; the rows keep the scale at which the set was made.

    Args:
        origin: how the set was made, or the name, scale and seed of images yet to be chosen.
        dataset: the dataset that the set is tested on.
        ipc: images per class; for ``whole`` the size of the largest class is used instead.
        scale: the scale whose protocol is used; by default the set's own.
        protocol: ``dm`` or ``idc``, see `iidlib.config.recipes.PROTOCOLS`.
        changes: further settings by dotted key. Without ``eval.epochs`` the whole training set gets fewer epochs, see
            ``EvalProtocol.for_whole_set``.

    Raises:
        InputError: for an unknown protocol, scale or setting, or a value out of range.
    """
    check_protocol(protocol)
    given, start = dict(changes or {}), scale or origin.scale
    family = {} if protocol == "dm" else protocol_changes(protocol, dataset.spec.augmentation, start)
    # a set of an unknown method is evaluated like one of DM: methods do not change the evaluation
    method = origin.method if origin.method in (*BASES, *BASELINES) else "dm"
    config = preset(method, dataset.name, ipc, start, {"seed": origin.seed} | family | given)
    evaluation = config.eval
    if origin.method == "whole":
        ipc = int(dataset.train.counts.max())
        evaluation = evaluation if "eval.epochs" in given else evaluation.for_whole_set()
    made_at = origin.scale if origin.scale in SCALES else config.scale
    return attrs.evolve(config, eval=evaluation, scale=made_at, ipc=ipc)
