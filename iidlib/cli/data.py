"""``iid data``: lists, downloads and checks datasets."""

import contextlib
import dataclasses
from typing import Annotated

import typer

from iidlib.cli.completion import complete_dataset
from iidlib.cli.folder_report import print_folder_report
from iidlib.cli.options import DataRoot
from iidlib.cli.output import AsJson, Quiet, print_table, report, result
from iidlib.errors import InputError
from iidlib.names import dataset_name

__all__ = ["data_check", "data_fetch", "data_list"]


def data_list(data_root: DataRoot = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show the known datasets and where they were found."""
    from iidlib.data import datasets

    rows = datasets(data_root)
    with result():
        print_table(
            {"name": "text", "train": "number", "test": "number", "found": "text"},
            [
                (
                    row.name,
                    f"{row.train_images}",
                    f"{row.test_images}",
                    "yes" if row.found else "incomplete" if row.incomplete else "no",
                )
                for row in rows
            ],
        )
        for row in rows:  # below the table, where long paths fit and can be copied
            if row.found:
                typer.echo(f"{row.name}: {row.found}")
            elif row.incomplete:
                typer.echo(f"{row.name}: incomplete, {row.incomplete}; {row.get}")
            else:
                typer.echo(f"{row.name}: {row.get}")
    report(None, {"datasets": [dataclasses.asdict(row) for row in rows]})


def data_fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the dataset.", callback=dataset_name, autocompletion=complete_dataset
        ),
    ],
    data_root: DataRoot = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror",
            metavar="URL",
            help="Download from this http://, https:// or file:// address of the file or its folder.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Download a dataset and verify its checksums; an archive already in --data-root is used instead."""
    from iidlib.data import load_dataset

    try:
        loaded = load_dataset(name, data_root=data_root, download=True, mirror=mirror)
    except KeyboardInterrupt as stop:
        stop.args = ("stopped; partial downloads are kept, and the same command resumes them",)
        raise
    typer.echo(f"{name}: {len(loaded.train)} training and {len(loaded.test)} test images, complete")


def data_check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of the dataset, or folder:PATH for your own images.",
            callback=dataset_name,
            autocompletion=complete_dataset,
        ),
    ],
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Verify the checksum of every file of a dataset, or inspect a folder of your own images.

    For a folder, report unreadable files, duplicate images, and the number of images per class.
    """
    from iidlib.data import check, inspect_folder

    name = name.removeprefix("validation:")  # it uses the same files
    if name.startswith("folder:"):
        print_folder_report(inspect_folder(name))
        return
    found = check(name, data_root)
    report(None, dataclasses.asdict(found) | {"ok": found.ok})
    with result():
        for problem in found.problems:
            typer.echo(problem)
    for file in found.files:
        with result() if file.state != "ok" else contextlib.nullcontext():
            typer.echo(f"{file.state:9} {file.path} {file.detail}".rstrip())
    if not found.ok:
        raise InputError(f"{name} is incomplete or corrupted; {found.get}")
    typer.echo(f"{name}: {len(found.files)} files, all verified" if found.files else f"{name}: no files, {found.get}")
