"""Evaluating a set in the terminal: the progress bar, and the table of its scores."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.session import console
from iidlib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.data import Dataset, RealSet
    from iidlib.experiments import MadeBy, SetOrigin
    from iidlib.synthetic import SyntheticSet

__all__ = ["scored", "show_scores", "with_random_beside"]


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


def with_random_beside(
    scores: "pd.DataFrame",
    dataset: "Dataset",
    config: RunConfig,
    *,
    origin: "SetOrigin",
    given: Mapping[str, object],
    made_by: "MadeBy",
) -> "pd.DataFrame":
    """The rows of a set behind those of as many random real images, evaluated with the same seed.

    Args:
        scores: the rows of the set.
        dataset: on which it was evaluated.
        config: by which it was evaluated.
        origin: of the set.
        given: settings of the command, of which those of the evaluation are also theirs.
        made_by: as for `scored`.
    """
    import pandas as pd

    from iidlib.evaluation import origin_of, random_beside

    seed, beside = int(scores["networks_seed"].iloc[0]), []
    for images in random_beside(dataset.train, config.ipc, origin.seed, origin.factor, say=typer.echo):
        own = dataclasses.replace(origin_of(images, scale=origin.scale), settings=given)
        beside.append(scored(images, dataset, config, origin=own, seed=seed, made_by=made_by))
    return pd.concat([*beside, scores], ignore_index=True)


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
