"""What a command measures of a set of images: its rows of results, and their table in the terminal."""

import sys
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.session import console
from iidlib.config import RunConfig
from iidlib.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.data import Dataset, RealSet
    from iidlib.experiments import MadeBy, SetOrigin
    from iidlib.synthetic import SyntheticSet

__all__ = ["chosen_beside", "scored", "show_scores"]


def chosen_beside(train: "RealSet", ipc: int, seed: int, factor: int) -> "list[SyntheticSet]":
    """What stands beside a set: random real images, and such mosaics of them where the set consists of mosaics."""
    from iidlib.evaluation import random_real

    found = [random_real(train, ipc, seed)]
    if factor > 1:
        try:
            found.append(random_real(train, ipc, seed, factor))
        except InputError as error:  # the set itself may have begun otherwise
            typer.echo(f"random-mosaic is left out: {error}")
    return found


def scored(
    images: "SyntheticSet | RealSet",
    dataset: "Dataset",
    config: RunConfig,
    *,
    origin: "SetOrigin",
    seed: int,
    made_by: "MadeBy",
) -> "pd.DataFrame":
    """Evaluates a set behind a progress bar: a row of results for each network."""
    from tqdm import tqdm

    from iidlib.evaluation import evaluated, scores_of, with_memory
    from iidlib.experiments import result_rows

    protocol, found = config.eval, []
    total = len(protocol.networks) * protocol.num_eval
    with tqdm(total=total, desc=f"evaluating {origin.method}", unit="network", disable=not sys.stderr.isatty()) as bar:
        for row in evaluated(images, dataset, protocol=protocol, seed=seed, compute=config.compute):
            found.append(row)
            bar.set_postfix_str(f"{row['network']} {row['accuracy']:.1f} %")
            bar.update()
    scores = scores_of(found, dataset, protocol, seed)
    return result_rows(scores, config, origin=origin, made_by=with_memory(made_by, dataset.train.device))


def show_scores(scores: "pd.DataFrame", title: str, note: str, protocol: str) -> None:
    """A table with a line for each set and network."""
    from iidlib.evaluation import summarize

    table = Table(title=escape(title))
    for name, justify in (("set", "left"), ("network", "left"), ("accuracy (%)", "right"), ("networks", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in summarize(scores, by=("method", "network")).to_dict("records"):
        spread = f" ± {row['std']:.1f}" if row["n"] > 1 else ""
        table.add_row(escape(str(row["method"])), str(row["network"]), f"{row['mean']:.1f}{spread}", str(row["n"]))
    console.print(table)
    typer.echo(f"{note}; protocol: {protocol}")
