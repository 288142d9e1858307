"""``iid experts``: trains a pool of networks."""

import shlex
from pathlib import Path
from typing import Annotated

import attrs
import typer

from iidlib.cli.completion import complete_network
from iidlib.cli.following import post
from iidlib.cli.options import Changes, DataRoot, DatasetName, Device, given_changes
from iidlib.cli.output import AsJson, Quiet, print_table, report
from iidlib.cli.session import check_names, given_command, keeping, load
from iidlib.config import SCALES, PoolConfig, preset
from iidlib.config.recipes import BASES
from iidlib.files import make_folders, remove_empty

__all__ = ["experts"]


def experts(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Output folder; a pool in it is completed.")],
    dataset: DatasetName = "cifar10-mini",
    network: Annotated[
        str,
        typer.Option(
            "--network", metavar="NAME", help="Architecture of the networks.", autocompletion=complete_network
        ),
    ] = PoolConfig().network,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of networks.")] = PoolConfig().count,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", help="Training epochs per network.")
    ] = PoolConfig().epochs,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the pool of networks that class centralization, iid-plus, herding and k-center use."""
    from iidlib.distillation import pool_bar
    from iidlib.experiments import check_writable
    from iidlib.features import pool_members, trained_pool

    options = {"pool.network": network, "pool.count": count, "pool.epochs": epochs}
    given = options | given_changes(changes) | {"pool.path": str(out)}
    config = preset("dm-cc", dataset, 10, "paper", given)
    check_names(config)
    check_writable(out / "pool.json")
    loaded = load(dataset, data_root, device)
    made = make_folders(out)
    try:
        with keeping(out, given_command(ctx)), pool_bar(config, None) as on_epoch:
            post("pool", config=config.pool, compute=config.compute)
            pool = trained_pool(loaded, config.pool, compute=config.compute, on_epoch=on_epoch)
    finally:
        remove_empty(made)  # if no network was saved
    networks = [
        {"network": number, "epochs": trained, "accuracy": value}
        for (number, trained), value in zip(pool_members(config.pool), pool.accuracies, strict=True)
    ]
    print_table(
        {"network": "name", "epochs": "number", "held-out accuracy (%)": "number"},
        [(str(row["network"]), str(row["epochs"]), f"{row['accuracy']:.1f}") for row in networks],
        f"{len(pool.networks)} {config.pool.network} in {out}",
    )
    # a pool is only valid with the settings it was trained with, and these differ between methods and scales
    presets = {preset(method, dataset, 10, scale).pool for method in BASES for scale in SCALES}
    keys = [f"pool.{field.name}" for field in attrs.fields(PoolConfig) if field.name != "untrained"]
    differing = [key for key in keys if any(getattr(one, key[5:]) != getattr(config.pool, key[5:]) for one in presets)]
    named = {key: getattr(config.pool, key[5:]) for key in dict.fromkeys([*differing, *given]) if key[:5] == "pool."}
    named |= {key: ",".join(map(str, value)) for key, value in named.items() if isinstance(value, tuple)}
    settings_text = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in named.items())
    typer.echo(f"to use this pool, add: {settings_text}")
    report(out, {"pool": out, "dataset": dataset, "networks": networks, "settings": named})
