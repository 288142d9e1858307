"""``iid experts``: trains the pool of networks behind class centralization."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.options import Changes, DataRoot, DatasetName, Device, given_changes
from iidlib.cli.session import check_names, console, given_command, keeping, load
from iidlib.config import SCALES, PoolConfig, preset
from iidlib.files import make_folders, remove_empty

__all__ = ["experts"]


def experts(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pool, made or completed.")],
    dataset: DatasetName = "cifar10-mini",
    network: Annotated[str, typer.Option("--network", help="Architecture.")] = PoolConfig().network,
    count: Annotated[int, typer.Option("--count", help="Networks.")] = PoolConfig().count,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training set.")] = PoolConfig().epochs,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
) -> None:
    """Train the pool of networks behind class centralization; a pool begun before is completed."""
    from iidlib.distillation import pool_bar
    from iidlib.experiments import check_writable
    from iidlib.features import pool_members, trained_pool

    own = {"pool.network": network, "pool.count": count, "pool.epochs": epochs}
    given = own | given_changes(changes) | {"pool.path": str(out)}
    config = preset("dm-cc", dataset, 10, "paper", given)
    check_names(config)
    check_writable(out / "pool.json")
    loaded = load(dataset, data_root, device)
    made = make_folders(out)
    try:
        with keeping(out, given_command(ctx)), pool_bar(config, sys.stderr.isatty()) as on_epoch:
            pool = trained_pool(loaded, config.pool, compute=config.compute, on_epoch=on_epoch)
    finally:
        remove_empty(made)  # where no network was kept
    table = Table(title=escape(f"{len(pool.networks)} {config.pool.network} in {out}"))
    table.add_column("network")
    table.add_column("passes", justify="right")
    table.add_column("held-out accuracy (%)", justify="right")
    for (number, passes), value in zip(pool_members(config.pool), pool.accuracies, strict=True):
        table.add_row(str(number), str(passes), f"{value:.1f}")
    console.print(table)
    # a pool fits only those settings that it was trained with, and every scale has its own
    differing = dict.fromkeys([key for scale in SCALES.values() for key in scale] + list(given))
    named = {key: getattr(config.pool, key[5:]) for key in differing if key.startswith("pool.")}
    named |= {key: ",".join(map(str, value)) for key, value in named.items() if isinstance(value, tuple)}
    settings_text = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in named.items())
    typer.echo(f"use it with: {settings_text}")
