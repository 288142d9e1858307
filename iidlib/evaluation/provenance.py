"""What the rows of an evaluation say beside its scores: how the set was made, and by which command and versions."""

import dataclasses

import torch

from iidlib.engine import device_name, peak_memory_mib
from iidlib.errors import InputError
from iidlib.experiments import MadeBy, SetOrigin
from iidlib.runs.environment import environment
from iidlib.synthetic import SyntheticSet

__all__ = ["made_by", "origin_of", "with_memory"]


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


def origin_of(images: SyntheticSet) -> SetOrigin:
    """How a set was made, as its provenance says.

    Raises:
        InputError: where its seed or iterations are not numbers.
    """
    noted = images.provenance
    try:
        iterations, seed = int(noted.get("iterations", 0)), int(noted.get("seed", 0))
    except ValueError:
        raise InputError(
            "the set is damaged (its seed or iterations are not numbers); distil or copy it again"
        ) from None
    pairs = (pair.partition("=") for pair in noted.get("settings", "").split())
    return SetOrigin(
        method=noted.get("method", "unknown"),
        scale=noted.get("scale", "tour"),
        seed=seed,
        iterations=iterations,
        factor=images.factor,
        settings={key: value for key, _, value in pairs},
    )
