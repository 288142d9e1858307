"""The options that commands share, and how ``--set`` is read."""

from pathlib import Path
from typing import Annotated

import typer

from iidlib.cli.completion import complete_dataset, complete_device, complete_scale, complete_setting
from iidlib.config import settings
from iidlib.errors import InputError
from iidlib.names import dataset_name

__all__ = ["Baseline", "Changes", "DataRoot", "DatasetName", "Device", "Results", "Scale", "given_changes"]

DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset",
        callback=dataset_name,
        help="cifar10-mini, cifar10, cifar100, svhn, mnist, fashionmnist, tinyimagenet, shapes or folder:PATH; "
        "validation:NAME judges on held-out training images.",
        autocompletion=complete_dataset,
    ),
]

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder that holds the data sets; else the one in IID_DATA.")
]

Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", autocompletion=complete_device)
]

Scale = Annotated[str, typer.Option("--scale", help="ci, tour, laptop or paper.", autocompletion=complete_scale)]

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, such as match.cm=0.02.", autocompletion=complete_setting
    ),
]

Baseline = Annotated[
    bool, typer.Option("--baseline/--no-baseline", help="Put as many random real images beside the distilled set.")
]

Results = Annotated[Path | None, typer.Option("--results", help="CSV file to which the scores are added.")]


def given_changes(given: list[str] | None) -> dict[str, str]:
    """The settings of ``--set KEY=VALUE``; what they may hold, the preset checks."""
    pairs: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, got {text!r}")
        if "." not in key and key in settings():
            # a scale set here would be the name of settings that are not in use
            raise InputError(f"{key} is not for --set; give it by itself (see iid distill --help)")
        pairs[key] = value.strip()
    return pairs
