"""What a command measures of a set of images: its rows of results, and their table in the terminal."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.session import console
from iidlib.config import RunConfig
from iidlib.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.data import Dataset, RealSet
    from iidlib.synthetic import SyntheticSet

__all__ = ["chosen_beside", "scored", "show_scores"]


def chosen_beside(train: "RealSet", ipc: int, seed: int, factor: int) -> "dict[str, SyntheticSet]":
    """What stands beside a set: random real images, and such mosaics of them where the set consists of mosaics."""
    from iidlib.evaluation import random_real

    found = {"random": random_real(train, ipc, seed)}
    if factor > 1:
        try:
            found["random-mosaic"] = random_real(train, ipc, seed, factor)
        except InputError as error:  # the set itself may have begun otherwise
            typer.echo(f"random-mosaic is left out: {error}")
    return found


def scored(
    images: "SyntheticSet | RealSet",
    dataset: "Dataset",
    config: RunConfig,
    label: str,
    networks_seed: int,
    facts: Mapping[str, Any],
) -> "pd.DataFrame":
    """Evaluates a set: a row of results for each network."""
    import pandas as pd
    from tqdm import tqdm

    from iidlib.engine import device_name, peak_memory_mib
    from iidlib.evaluation import evaluated
    from iidlib.experiments import protocol_text
    from iidlib.experiments.results import RESULT_COLUMNS

    protocol, device = config.eval, dataset.train.device
    total = len(protocol.networks) * protocol.num_eval
    with tqdm(total=total, desc=f"evaluating {label}", unit="network", disable=not sys.stderr.isatty()) as bar:
        found = []
        for row in evaluated(images, dataset, protocol=protocol, seed=networks_seed, compute=config.compute):
            found.append(row)
            bar.set_postfix_str(f"{row['network']} {row['accuracy']:.1f} %")
            bar.update()
    scores = pd.DataFrame(found)
    same: dict[str, Any] = {
        "dataset": config.dataset,
        "method": label,
        "ipc": config.ipc,
        "scale": config.scale,
        "seed": config.seed,
        "protocol": protocol_text(protocol, label, getattr(images, "factor", 1)),
        "peak_memory_mib": round(peak_memory_mib(device)),
        "device": device_name(device),
        "networks_seed": networks_seed,
    }
    return scores.assign(**same | dict(facts)).reindex(columns=list(RESULT_COLUMNS))


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
