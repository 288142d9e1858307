"""Evaluation in the terminal: the progress bar and the table of scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from iidlib.bars import bar
from iidlib.cli.following import post
from iidlib.cli.output import print_table, result
from iidlib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.cli.score_files import KeptRows
    from iidlib.data import Dataset, RealSet
    from iidlib.experiments import MadeBy, SetOrigin
    from iidlib.runs import RunFolder
    from iidlib.synthetic import SyntheticSet

__all__ = ["accuracy_text", "run_summary", "scored", "show_scores", "summary", "with_random_baselines"]


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
    """Evaluates a set with a progress bar; the rows of finished networks are kept even if it is interrupted.

    Returns:
        One row of results per network.
    """
    import pandas as pd

    from iidlib.evaluation import FinishedRow, evaluated, scores_of, with_memory
    from iidlib.experiments import result_rows
    from iidlib.synthetic import SyntheticSet

    protocol = config.eval
    found: list[dict[str, object]] = []

    given = images if isinstance(images, SyntheticSet) else None
    post("evaluate", images=given, protocol=protocol, seed=seed, compute=config.compute)
    with bar(f"evaluating {origin.method}", protocol.all_epochs, "epoch") as progress:
        try:
            for row in evaluated(
                images,
                dataset,
                protocol=protocol,
                seed=seed,
                compute=config.compute,
                on_epochs=progress.advance,
                finished=kept.finished,
            ):
                found.append(row)
                if isinstance(row, FinishedRow):
                    progress.skip(protocol.epochs)
                ended = f"{row['accuracy']:.1f} %" if row["outcome"] == "trained" else row["outcome"]
                progress.note(f"{row['network']} {ended}")
        finally:
            if found:
                scores = scores_of(found, dataset, protocol, seed)
                known = with_memory(made_by, dataset.train.device)
                rows = result_rows(scores, config, origin=origin, made_by=known)
                if any(earlier := [isinstance(row, FinishedRow) for row in found]):
                    # the memory of the process that trained them is not known here
                    memory = zip(rows["peak_memory_mib"], earlier, strict=True)
                    rows["peak_memory_mib"] = pd.Series([None if one else value for value, one in memory], dtype=object)
                kept.add(rows)
    return rows


def with_random_baselines(
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
    """Evaluates random real images with the seed of a set and puts their rows before those of the set.

    Args:
        scores: rows of the set.
        chosen: random real images, from `iidlib.evaluation.random_baselines`.
        dataset: dataset of the set's evaluation, from `iidlib.evaluation.dataset_for`.
        config: settings of the set's evaluation.
        origin: origin of the set.
        given: settings given on the command line; those of the evaluation apply to the random images too.
        made_by: as for `scored`.
        kept: as for `scored`.
    """
    import pandas as pd

    from iidlib.evaluation import origin_of

    seed, rows = int(scores["networks_seed"].iloc[0]), []
    for images in chosen:
        of_images = dataclasses.replace(origin_of(images, scale=origin.scale), settings=given)
        rows.append(scored(images, dataset, config, origin=of_images, seed=seed, made_by=made_by, kept=kept))
    return pd.concat([*rows, scores], ignore_index=True)


def accuracy_text(rows: "pd.DataFrame", unit: str = "") -> str:
    """Mean and standard deviation of networks' accuracies, ``46.0 ± 0.2``, with any outcome other than trained.

    Args:
        rows: rows from `iidlib.evaluation.evaluate`; those of older tables may lack the column outcome.
        unit: unit to append to the numbers.
    """
    spread = f" ± {rows['accuracy'].std(ddof=0):.1f}" if len(rows) > 1 else ""
    text = f"{rows['accuracy'].mean():.1f}{spread}{unit}"
    for outcome, count in _outcomes(rows).value_counts().items():
        if outcome in ("diverged", "constant") and count == len(rows):
            return str(outcome)
        if outcome != "trained":
            text += f" ({outcome}{f': {count} of {len(rows)}' if count < len(rows) else ''})"
    return text


def _outcomes(rows: "pd.DataFrame") -> "pd.Series":
    """Outcome of each network; rows of older tables count as trained."""
    if "outcome" not in rows:
        return rows["accuracy"].map(lambda _: "trained")
    return rows["outcome"].astype(object).fillna("trained")


def show_scores(scores: "pd.DataFrame", title: str, note: str, protocol: str) -> None:
    """Prints a table with one line per set and architecture."""
    lines = [
        (str(method), str(network), accuracy_text(rows), str(len(rows)))
        for (method, network), rows in scores.groupby(["method", "network"], sort=False)
    ]
    with result():
        print_table({"set": "text", "network": "text", "accuracy (%)": "number", "networks": "number"}, lines, title)
    typer.echo(f"{note}; protocol: {protocol}")


def summary(scores: "pd.DataFrame") -> list[dict[str, object]]:
    """Scores for ``--json``: one entry per set and architecture, accuracies in percent.

    ``outcomes`` counts the networks that were trained, diverged, and so on; a low accuracy alone does not show that.
    """
    from iidlib.evaluation import summarize

    lines = summarize(scores, by=("method", "network")).rename(columns={"mean": "accuracy", "n": "networks"})
    entries = [{str(key): value for key, value in row.items()} for row in lines.to_dict("records")]
    for entry in entries:
        rows = scores[(scores["method"] == entry["method"]) & (scores["network"] == entry["network"])]
        entry["outcomes"] = {str(outcome): int(count) for outcome, count in _outcomes(rows).value_counts().items()}
    return entries


def run_summary(config: RunConfig, folder: "RunFolder", metrics: "pd.DataFrame") -> dict[str, object]:
    """Facts about a distillation for ``--json``: path of the set, seconds, and the terms at the last iteration."""
    last = {str(name): value for name, value in metrics.iloc[-1].items()} if len(metrics) else {}
    return {
        "run": folder.path,
        "set": folder.synthetic,
        "method": config.method,
        "dataset": config.dataset,
        "ipc": config.ipc,
        "scale": config.scale,
        "seed": config.seed,
        "iterations": config.iterations,
        "seconds": last.get("seconds"),
        "loss": last.get("loss"),
        "terms": {name[5:]: value for name, value in last.items() if name.startswith("loss_")},
        "scores": [],
    }
