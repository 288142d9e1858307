"""``iid continual``: class-incremental learning with a memory of distilled images."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from iidlib.cli.completion import complete_memory
from iidlib.cli.options import (
    AllowMismatch,
    Changes,
    DataRoot,
    DatasetName,
    Device,
    Results,
    Resume,
    Scale,
    given_changes,
)
from iidlib.cli.output import AsJson, Quiet, report, result
from iidlib.cli.score_files import check_apart
from iidlib.cli.scores import accuracy_text, summary
from iidlib.cli.session import check_names, given_command, keeping, load
from iidlib.config import preset
from iidlib.errors import InputError
from iidlib.files import resolved_path

__all__ = ["continual"]


def continual(
    ctx: typer.Context,
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Distillation method: dm, dm-cc, dm-cm, iid-dm, idm, idm-cc, idm-cm, iid-idm or iid-plus; or a "
            "baseline: random, random-mosaic, herding or k-center.",
            autocompletion=complete_memory,
        ),
    ],
    dataset: DatasetName = "cifar10-mini",
    ipc: Annotated[int, typer.Option("--ipc", metavar="N", help="Images per class in the memory (paper: 20).")] = 20,
    steps: Annotated[
        str,
        typer.Option("--steps", metavar="N", help="Number of equal steps, or the classes in each step, e.g. 4,3,3."),
    ] = "5",
    order: Annotated[
        int | None,
        typer.Option("--order", metavar="N", help="Random seed of the order of classes (default: --seed)."),
    ] = None,
    scale: Scale = "tour",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed.")] = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Output folder (default: runs/continual-<method>-...)."),
    ] = None,
    resume: Resume = False,
    allow_mismatch: AllowMismatch = False,
    data_root: DataRoot = None,
    changes: Changes = None,
    results: Results = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn classes in steps with a memory of distilled images, testing on all classes seen so far."""
    import pandas as pd

    from iidlib.continual import class_order, class_steps, learn_in_steps
    from iidlib.distillation import METHODS
    from iidlib.evaluation import FinishedNetworks, made_by, with_memory
    from iidlib.experiments import SetOrigin, append_results, check_results, check_writable, result_rows
    from iidlib.runs import RunFolder

    cut, given = _steps(steps), given_changes(changes)
    config = preset(method, dataset, ipc, scale, {"seed": seed} | given)
    check_names(config)
    number = seed if order is None else order
    named = re.sub(r"[^\w.-]+", "-", dataset)
    how = f"{'-'.join(map(str, cut)) if isinstance(cut, tuple) else cut}steps"
    folder = out or Path("runs") / f"continual-{method}-{named}-ipc{ipc}-{how}-{scale}-seed{seed}-order{number}"
    place = resolved_path(folder)
    if place.exists() and not place.is_dir():
        raise InputError(f"{folder} is a file, not a folder; give another --out")
    if place.is_dir() and not resume and any(place.iterdir()):
        started = (place / "step-01" / "config.yaml").is_file()
        raise InputError(
            f"{folder} is not empty; {'resume the run with --resume, or ' if started else ''}give another --out"
        )
    if results is not None:
        check_results(results)
        check_apart(results, folder, folder=True)
    loaded = load(dataset, data_root, device)
    groups = class_steps(class_order(loaded.train.num_classes, number), cut)
    finished = all(RunFolder(folder / f"step-{step:02d}").finished for step in range(1, len(groups) + 1))
    if method in METHODS and not (resume and finished):  # a finished run is only read
        check_writable(folder / "step-01" / "config.yaml")
    networks = FinishedNetworks()
    stamp, frames = made_by(loaded.train.device, given_command(ctx)), []

    def on_step(rows: pd.DataFrame) -> None:
        last = rows.iloc[-1]
        with result():
            typer.echo(f"step {last['step']} of {len(groups)}, {last['classes']} classes: {accuracy_text(rows, ' %')}")
        frames.append(rows)

    with keeping(folder, given_command(ctx, "--resume", *([] if out else ["--out", str(folder)]))):
        learn_in_steps(
            config,
            loaded,
            steps=cut,
            order=number,
            out=folder,
            allow_mismatch=allow_mismatch,
            progress=None,
            on_step=on_step,
            finished=networks,
        )
        scores = pd.concat(frames, ignore_index=True)
        if results is not None:
            origin = dataclasses.replace(SetOrigin.planned(config), settings=given)
            known = with_memory(stamp, loaded.train.device)
            if networks.resumed:  # the memory of the processes that trained them is not known here
                known = dataclasses.replace(known, peak_memory_mib=None)
            append_results(results, result_rows(scores, config, origin=origin, made_by=known))
        networks.forget()
    facts: dict[str, object] = {
        "run": folder if method in METHODS else None,
        "method": method,
        "dataset": dataset,
        "ipc": ipc,
    }
    facts |= {"scale": scale, "seed": seed, "order": number}
    facts["steps"] = [
        {"step": step, "classes": int(rows["classes"].iloc[0]), "scores": summary(rows.assign(method=method))}
        for step, rows in scores.groupby("step")
    ]
    report(None, facts)


def _steps(text: str) -> int | tuple[int, ...]:
    """Parses ``--steps``: a number of equal steps, or the number of classes in each step."""
    try:
        first, *more = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--steps takes a number of equal steps, e.g. 5, or the classes in each step, e.g. 4,3,3; got {text!r}"
        ) from None
    return (first, *more) if more else first
