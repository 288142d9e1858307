"""Options that several commands share, and the parser of ``--set``."""

from pathlib import Path
from typing import Annotated

import typer

from iidlib.cli.completion import complete_dataset, complete_device, complete_scale, complete_setting
from iidlib.config import settings
from iidlib.errors import InputError
from iidlib.names import dataset_name

__all__ = [
    "AllowMismatch", "Baseline", "Changes", "DataRoot", "DatasetName", "Device", "Results", "Resume", "Scale",
    "given_changes",
]  # fmt: skip

DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME",
        callback=dataset_name,
        help="Dataset: cifar10-mini, cifar10, cifar100, svhn, mnist, fashionmnist, tinyimagenet, shapes, or "
        "folder:PATH for your own images. validation:NAME tests on held-out training images instead.",
        autocompletion=complete_dataset,
    ),
]

DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="FOLDER", help="Folder that holds the datasets (default: $IID_DATA)."),
]

Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="Device: auto, cpu, cuda, cuda:N or mps.", autocompletion=complete_device
    ),
]

Scale = Annotated[
    str,
    typer.Option(
        "--scale", metavar="SCALE", help="Scale of the run: ci, tour, laptop or paper.", autocompletion=complete_scale
    ),
]

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, as listed by iid config METHOD. May be given several times.",
        autocompletion=complete_setting,
    ),
]

Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out from its last checkpoint.")]

AllowMismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Resume under other versions, device or kernels; it is recorded.")
]

Baseline = Annotated[
    bool,
    typer.Option("--baseline/--no-baseline", help="Also evaluate a random-selection baseline of the same size."),
]

Results = Annotated[Path | None, typer.Option("--results", metavar="FILE", help="CSV file to append the scores to.")]


def given_changes(given: list[str] | None) -> dict[str, str]:
    """Settings given as ``--set KEY=VALUE``; `iidlib.config.preset` checks their values."""
    pairs: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, got {text!r}")
        if "." not in key and key in settings():
            # a scale set here would name a preset whose settings are not the ones in use
            raise InputError(f"{key} cannot be given with --set; use its own option (see iid distill --help)")
        pairs[key] = value.strip()
    return pairs
