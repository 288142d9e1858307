"""Evaluating a set in the terminal: the progress bar, and the table of its scores."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.session import console
from iidlib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.cli.kept import KeptRows
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
    kept: "KeptRows",
) -> "pd.DataFrame":
    """Evaluates a set behind a progress bar: a row of results for each network, kept also if it ends early."""
    from tqdm import tqdm

    from iidlib.evaluation import evaluated, scores_of, with_memory
    from iidlib.experiments import result_rows

    protocol = config.eval
    found: list[dict[str, object]] = []
    total = len(protocol.networks) * protocol.num_eval

    def rows() -> "pd.DataFrame":
        scores = scores_of(found, dataset, protocol, seed)
        return result_rows(scores, config, origin=origin, made_by=with_memory(made_by, dataset.train.device))

    with tqdm(total=total, desc=f"evaluating {origin.method}", unit="network", disable=not sys.stderr.isatty()) as bar:
        try:
            for row in evaluated(images, dataset, protocol=protocol, seed=seed, compute=config.compute):
                found.append(row)
                bar.set_postfix_str(f"{row['network']} {row['accuracy']:.1f} %")
                bar.update()
        finally:
            if found:
                kept.add(rows())
    return rows()


def with_random_beside(
    scores: "pd.DataFrame",
    chosen: "Sequence[SyntheticSet]",
    dataset: "Dataset",
    config: RunConfig,
    *,
    origin: "SetOrigin",
    given: Mapping[str, object],
    made_by: "MadeBy",
    kept: "KeptRows",
) -> "pd.DataFrame":
    """The rows of a set behind those of as many random real images, evaluated with the same seed.

    Args:
        scores: the rows of the set.
        chosen: the random real images, as `iidlib.evaluation.random_beside` chooses them.
        dataset: on which it was evaluated, as `iidlib.evaluation.dataset_for` gives it.
        config: by which it was evaluated.
        origin: of the set.
        given: settings of the command, of which those of the evaluation are also theirs.
        made_by: as for `scored`.
        kept: as for `scored`.
    """
    import pandas as pd

    from iidlib.evaluation import origin_of

    seed, beside = int(scores["networks_seed"].iloc[0]), []
    for images in chosen:
        own = dataclasses.replace(origin_of(images, scale=origin.scale), settings=given)
        beside.append(scored(images, dataset, config, origin=own, seed=seed, made_by=made_by, kept=kept))
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
