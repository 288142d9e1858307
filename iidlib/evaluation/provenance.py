"""What surrounds an evaluation: how the set was made, the settings that evaluate it, the versions behind its rows."""

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
    """Versions, commit, date and machine as they are now, for `iidlib.experiments.result_rows`.

    Args:
        device: where networks are trained.
        command: the command line behind the rows, where there is one.
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
    """The same with the peak memory up to now, where versions were noted before the work began."""
    return dataclasses.replace(known, peak_memory_mib=round(peak_memory_mib(device)))


def origin_of(
    images: SyntheticSet | RealSet,
    *,
    run: RunFolder | None = None,
    scale: str = "tour",
    seed: int = 0,
    called: str = "the set",
) -> SetOrigin:
    """How a set was made, as its provenance says.

    Args:
        images: distilled, or chosen by `real_images`; ``whole`` for all training images.
        run: the folder of the run that made it, where that was kept: its settings are those of the set.
        scale: of a set whose provenance names none, such as chosen images.
        seed: likewise.
        called: what an error calls the set.

    Raises:
        InputError: where its seed or iterations are not numbers.
    """
    if isinstance(images, RealSet):
        return SetOrigin("whole", scale, seed, dataset=images.spec.name)
    noted = images.provenance
    try:
        iterations, own_seed = int(noted.get("iterations", 0)), int(noted.get("seed", seed))
    except ValueError:
        raise InputError(
            f"{called} is damaged (its seed or iterations are not numbers); distil or copy it again"
        ) from None
    pairs = (pair.partition("=") for pair in noted.get("settings", "").split())
    return SetOrigin(
        method=noted.get("method", "unknown"),
        scale=noted.get("scale", scale),
        seed=own_seed,
        iterations=iterations,
        factor=images.factor,
        settings={key: value for key, _, value in pairs} if run is None else differing(run.config()),
        dataset=images.spec.name,
        **({} if run is None else cost_of(run, iterations)),
    )


def cost_of(run: RunFolder, iterations: int) -> dict[str, Any]:
    """What a run's folder says of its time, its device and its pool, as fields of `SetOrigin`.

    Args:
        run: the folder.
        iterations: of its set; the log may say more, where a continuation was stopped.
    """
    rows, pool = [], run.noted("pool")
    with contextlib.suppress(InputError):  # a log that cannot be read costs the row its time, not its accuracy
        rows = [row for row in run.metric_rows() if row["iteration"] < iterations]
    found: dict[str, Any] = {}
    if rows and rows[-1].get("seconds"):
        found["seconds_per_iteration"] = rows[-1]["seconds"] / (rows[-1]["iteration"] + 1)  # counted from 0
    if "accuracies" in pool:
        found |= {"pool_accuracies": pool["accuracies"], "pool_seconds": pool.get("seconds")}
    if "name" in (device := run.noted("device")):
        found["distilled_on"] = device["name"]
    return found


def check_protocol(name: str) -> None:
    """Refuses a protocol that `evaluation_config` does not know.

    Raises:
        InputError: with the name that may have been meant.
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
    """The settings by which a set is evaluated; its rows keep the scale at which it was made.

    Args:
        origin: how the set was made, or the name, scale and seed of images yet to be chosen.
        dataset: what it is tested on.
        ipc: images per class; of ``whole`` those of the largest class are counted instead.
        scale: whose protocol is used; the set's own when not given.
        protocol: ``dm`` or ``idc``, see `iidlib.config.recipes.PROTOCOLS`.
        changes: further settings by dotted key. Without ``eval.epochs`` the whole training set gets fewer epochs, see
            ``EvalProtocol.for_whole_set``.

    Raises:
        InputError: for an unknown protocol, scale or setting, or a value out of range.
    """
    check_protocol(protocol)
    given, start = dict(changes or {}), scale or origin.scale
    family = {} if protocol == "dm" else protocol_changes(protocol, dataset.spec.augmentation, start)
    # a set of an unknown method is evaluated as one of DM, on which no method changes the evaluation
    method = origin.method if origin.method in (*BASES, *BASELINES) else "dm"
    config = preset(method, dataset.name, ipc, start, {"seed": origin.seed} | family | given)
    judged = config.eval
    if origin.method == "whole":
        ipc = int(dataset.train.counts.max())
        judged = judged if "eval.epochs" in given else judged.for_whole_set()
    made_at = origin.scale if origin.scale in SCALES else config.scale
    return attrs.evolve(config, eval=judged, scale=made_at, ipc=ipc)
