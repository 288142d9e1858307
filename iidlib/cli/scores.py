"""Evaluating a set in the terminal: the progress bar, and the table of its scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from iidlib.bars import bar
from iidlib.cli.output import print_table, result
from iidlib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.cli.score_files import KeptRows
    from iidlib.data import Dataset, RealSet
    from iidlib.experiments import MadeBy, SetOrigin
    from iidlib.runs import RunFolder
    from iidlib.synthetic import SyntheticSet

__all__ = ["accuracy_text", "run_facts", "scored", "show_scores", "summary", "with_random_beside"]


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
    from iidlib.evaluation import evaluated, scores_of, with_memory
    from iidlib.experiments import result_rows

    protocol = config.eval
    found: list[dict[str, object]] = []

    with bar(f"evaluating {origin.method}", protocol.all_epochs, "epoch") as told:
        try:
            for row in evaluated(
                images, dataset, protocol=protocol, seed=seed, compute=config.compute, on_epochs=told.advance
            ):
                found.append(row)
                ended = f"{row['accuracy']:.1f} %" if row["outcome"] == "trained" else row["outcome"]
                told.note(f"{row['network']} {ended}")
        finally:
            if found:
                scores = scores_of(found, dataset, protocol, seed)
                known = with_memory(made_by, dataset.train.device)
                kept.add(rows := result_rows(scores, config, origin=origin, made_by=known))
    return rows


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


def accuracy_text(rows: "pd.DataFrame", unit: str = "") -> str:
    """Mean and spread of some networks, ``46.0 ± 0.2``, or what they came to where that is no number to stand alone.

    Args:
        rows: of `iidlib.evaluation.evaluate`; those of older tables may lack the column outcome.
        unit: what stands behind the numbers.
    """
    spread = f" ± {rows['accuracy'].std(ddof=0):.1f}" if len(rows) > 1 else ""
    found = f"{rows['accuracy'].mean():.1f}{spread}{unit}"
    for outcome, count in _outcomes(rows).value_counts().items():
        if outcome in ("diverged", "constant") and count == len(rows):
            return str(outcome)
        if outcome != "trained":
            found += f" ({outcome}{f': {count} of {len(rows)}' if count < len(rows) else ''})"
    return found


def _outcomes(rows: "pd.DataFrame") -> "pd.Series":
    """What each network came to; rows of older tables count as trained."""
    if "outcome" not in rows:
        return rows["accuracy"].map(lambda _: "trained")
    return rows["outcome"].astype(object).fillna("trained")


def show_scores(scores: "pd.DataFrame", title: str, note: str, protocol: str) -> None:
    """A table with a line for each set and network."""
    lines = [
        (str(method), str(network), accuracy_text(rows), str(len(rows)))
        for (method, network), rows in scores.groupby(["method", "network"], sort=False)
    ]
    with result():
        print_table({"set": "text", "network": "text", "accuracy (%)": "number", "networks": "number"}, lines, title)
    typer.echo(f"{note}; protocol: {protocol}")


def summary(scores: "pd.DataFrame") -> list[dict[str, object]]:
    """What `show_scores` shows, for programs: an entry for each set and network, accuracies in percent, and outcomes.

    ``outcomes`` says how many networks were trained, diverged, and so on: an accuracy alone may be that of a guess.
    """
    from iidlib.evaluation import summarize

    lines = summarize(scores, by=("method", "network")).rename(columns={"mean": "accuracy", "n": "networks"})
    entries = [{str(key): value for key, value in row.items()} for row in lines.to_dict("records")]
    for entry in entries:
        own = scores[(scores["method"] == entry["method"]) & (scores["network"] == entry["network"])]
        entry["outcomes"] = {str(outcome): int(count) for outcome, count in _outcomes(own).value_counts().items()}
    return entries


def run_facts(config: RunConfig, folder: "RunFolder", metrics: "pd.DataFrame") -> dict[str, object]:
    """What a distillation gave, for programs: where the set lies, seconds, the terms at the last iteration."""
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
