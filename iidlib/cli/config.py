"""``iid config``: the settings of a run, and where each of them comes from."""

import json
from typing import Annotated, Any

import attrs
import typer

from iidlib.cli.completion import complete_recipe
from iidlib.cli.options import Changes, DatasetName, Scale, given_changes
from iidlib.cli.output import Kind, Quiet, columns_needed, console, print_table, result
from iidlib.config import published, resolved
from iidlib.config.overrides import Setting
from iidlib.config.protocols import WHOLE_SET_EPOCHS
from iidlib.errors import InputError, suggest
from iidlib.names import DATASET_NAMES, NETWORK_NAMES

__all__ = ["config"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""Operations of `iidlib.augment`, repeated because importing it would load torch and delay this command."""


def config(
    ctx: typer.Context,
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Distillation method: dm, dm-cc, dm-cm, iid-dm, idm, idm-cc, idm-cm, iid-idm or iid-plus; or a "
            "baseline such as random.",
            autocompletion=complete_recipe,
        ),
    ],
    dataset: DatasetName = "cifar10-mini",
    ipc: Annotated[int, typer.Option("--ipc", metavar="N", help="Synthetic images per class.")] = 10,
    scale: Scale = "tour",
    iterations: Annotated[
        int | None,
        typer.Option("--iterations", metavar="N", help="Number of iterations (default: set by --scale)."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed (default: 0).")] = None,
    changes: Changes = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the settings as a JSON list of key, value and source.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Show every setting of a run and where its value comes from."""
    name = dataset.removeprefix("validation:")
    if name not in DATASET_NAMES and not name.startswith("folder:"):
        raise InputError(f"unknown dataset {name!r}{suggest(name, [*DATASET_NAMES, 'folder:PATH'])}")
    options = {"iterations": iterations, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None} | given_changes(changes)
    if name.startswith("folder:") and not name.removeprefix("folder:").partition("?")[0].strip():
        raise InputError(f"dataset {dataset!r} has no path; write it as folder:PATH")
    rows = [(setting, _source(ctx, setting)) for setting in resolved(method, dataset, ipc, scale, given)]
    if method == "whole" and "eval.epochs" not in given:  # the number that `iid evaluate whole` uses
        at = next(i for i, (setting, _) in enumerate(rows) if setting.key == "eval.epochs")
        epochs = rows[at][0]
        rows[at] = attrs.evolve(epochs, value=min(WHOLE_SET_EPOCHS, epochs.value)), "method"
    _check_names(rows)
    if as_json:
        listed = [{"key": setting.key, "value": setting.value, "source": source} for setting, source in rows]
        with result():
            typer.echo(json.dumps(listed, indent=2))
        return
    columns: dict[str, Kind] = {"setting": "name", "value": "name", "from": "text"}
    cells = [(setting.key, setting.text, source) for setting, source in rows]
    title = f"{method} on {dataset}, IPC {ipc}, scale {scale}"
    with result():
        if columns_needed(columns, cells) + len(columns) <= console.width:
            print_table(columns, cells, title)
        else:  # plain lines: a terminal may wrap keys and values, but never cuts them
            typer.echo("\n".join([title, *(f"{key}={value}  ({source})" for key, value, source in cells)]))
    row = published(method, name, ipc)
    if row and any(source == "published row" for _, source in rows):
        typer.echo(f"published row: {row.origin}")


def _check_names(rows: list[tuple[Setting, str]]) -> None:
    """Rejects names of networks and augmentations that a run would reject.

    Raises:
        InputError: if a name is unknown; the message suggests a similar one.
    """
    for setting, _ in rows:
        if setting.key.endswith((".network", ".networks")):
            for name in setting.value if isinstance(setting.value, tuple) else (setting.value,):
                if name not in NETWORK_NAMES:
                    raise InputError(f"unknown network {name!r}{suggest(name, NETWORK_NAMES)}")
        elif setting.key.endswith(".augmentation") and setting.value not in ("auto", "none"):
            stages = setting.value.split(">") if setting.key == "eval.augmentation" else [setting.value]
            for name in [name for stage in stages for name in stage.split("_")]:
                if name not in OPERATIONS:
                    raise InputError(f"unknown DSA operation {name!r} in {setting.key}{suggest(name, OPERATIONS)}")


def _source(ctx: typer.Context, setting: Setting) -> str:
    """The option that gave the setting, or the name of the table it comes from."""
    if setting.source not in ("argument", "change"):
        return setting.source
    if "." in setting.key:
        return "--set"
    origin: Any = ctx.get_parameter_source(setting.key)
    if origin is not None and origin.name == "DEFAULT":
        return "default"
    return "METHOD" if setting.key == "method" else f"--{setting.key}"
