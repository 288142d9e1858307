"""Commands over many runs: ``continual``, ``reproduce``, ``sweep``, and the measurements of ``bench``."""

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from iidlib.cli.frame import (
    Changes,
    DataRoot,
    DatasetName,
    Device,
    Failed,
    Results,
    check_names,
    console,
    given_changes,
    given_command,
    keeping,
    load,
    run_stamp,
)
from iidlib.config import SCALES, preset
from iidlib.inputs import InputError, suggest

__all__ = ["bench", "continual", "reproduce", "sweep", "time_budget"]


def continual(
    ctx: typer.Context,
    method: Annotated[str, typer.Argument(help="A distillation method; or random, random-mosaic, herding, k-center.")],
    dataset: DatasetName = "cifar10-mini",
    ipc: Annotated[int, typer.Option("--ipc", help="Images a class in the memory; 20 in the paper.")] = 20,
    steps: Annotated[int, typer.Option("--steps", help="Steps in which the classes come.")] = 5,
    order: Annotated[int | None, typer.Option("--order", help="Seed of the order of classes; else --seed.")] = None,
    scale: Annotated[str, typer.Option("--scale", help="ci, tour, laptop or paper.")] = "tour",
    seed: Annotated[int, typer.Option("--seed", help="Of every other draw.")] = 0,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the steps' runs; else one below runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the steps in --out.")] = False,
    data_root: DataRoot = None,
    changes: Changes = None,
    results: Results = None,
) -> None:
    """Learn classes step by step from a memory of distilled images, and test on all classes seen."""
    import pandas as pd

    from iidlib.accelerate import device_name, peak_memory_mib
    from iidlib.continual import class_order, class_steps, learn_in_steps
    from iidlib.coresets import CHOICES
    from iidlib.results import RESULT_COLUMNS, append_results, check_results, protocol_text

    given = given_changes(changes)
    config = preset(method, dataset, ipc, scale, {"seed": seed} | given)
    check_names(config)
    if results is not None:
        check_results(results)
    loaded = load(dataset, data_root, device)
    number = seed if order is None else order
    class_steps(class_order(loaded.train.num_classes, number), steps)
    named = re.sub(r"[^\w.-]+", "-", dataset)
    folder = out or Path("runs") / f"continual-{method}-{named}-ipc{ipc}-{steps}steps-{scale}-seed{seed}-order{number}"
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise InputError(f"{folder} holds something already; go on with it by --resume, or give another --out")
    stamp, frames = run_stamp(ctx), []

    def told(rows: pd.DataFrame) -> None:
        last = rows.iloc[-1]
        mean, spread = rows["accuracy"].mean(), rows["accuracy"].std(ddof=0)
        typer.echo(f"step {last['step']} of {steps}, {last['classes']} classes: {mean:.1f} ± {spread:.1f} %")
        frames.append(rows)

    with keeping(folder, given_command(ctx, "--resume", *([] if out else ["--out", str(folder)]))):
        learn_in_steps(
            config, loaded, steps=steps, order=number, out=folder, progress=sys.stderr.isatty(), on_step=told
        )
        if results is not None:
            factor = 1 if method in CHOICES else config.syn.factor
            same: dict[str, Any] = {
                "dataset": dataset,
                "method": "random-mosaic" if method == "random" and factor > 1 else method,
                "ipc": ipc,
                "scale": scale,
                "seed": seed,
                "protocol": protocol_text(config.eval, method, factor),
                "iterations": config.iterations if method in _methods() else 0,
                "device": device_name(loaded.train.device),
                "peak_memory_mib": round(peak_memory_mib(loaded.train.device)),
                "networks_seed": seed,
            }
            if given:
                same["settings"] = " ".join(f"{key}={value}" for key, value in given.items())
            rows = pd.concat(frames, ignore_index=True).assign(**same | stamp)
            append_results(results, rows.reindex(columns=[*RESULT_COLUMNS, "step", "steps", "order", "classes"]))


def _methods() -> Sequence[str]:
    from iidlib.distillation import METHODS

    return tuple(METHODS)


_SECONDS = {"s": 1, "m": 60, "h": 3600}


def time_budget(text: str) -> float:
    """A length of time such as ``8h``, ``30m`` or ``90s``."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        value = float(number) * _SECONDS[unit]
    except (ValueError, KeyError):
        raise InputError(f"--budget takes a time such as 8h, 30m or 90s, got {text!r}") from None
    if not 0 < value < float("inf"):
        raise InputError(f"--budget must be above zero, got {text!r}")
    return value


def _folded(name: str, width: int) -> str:
    """A cell's name in lines of at most `width`, broken behind its slashes."""
    lines = [""]
    for part in re.findall("[^/]+/?", name):
        if len(lines[-1] + part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def _cells(name: str, title: str, only: str, folder: Path | None) -> None:
    """Shows each cell of an experiment: published, measured, missing."""
    from iidlib.experiments import mean_of, table, within

    cells = table(name, folder)
    shown = Table(
        title=escape(f"{name}: {title}"), box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
    )
    shown.caption_justify = "left"
    for column in ("cell", "published", "paper", "laptop", "tour"):
        name_it = column == "cell"
        shown.add_column(column, justify="left" if name_it else "right", no_wrap=not name_it, overflow="fold")
    marks: dict[str, str] = {}
    for row in cells.to_dict("records"):
        if not within(row["cell"], only):
            continue
        ours = (mean_of(row, "paper") or "missing", mean_of(row, "laptop"), mean_of(row, "tour"))
        published = "not found"
        if row["source"] != "not found":
            mark = marks.setdefault(row["source"], ascii_lowercase[len(marks)])
            published = f"{row['published']:.1f} {mark}"
        shown.add_row(escape(_folded(row["cell"], console.width - 52)), published, *ours)
    shown.caption = escape("\n".join(f"{mark}: {source}" for source, mark in marks.items()))
    console.print(shown)


def reproduce(
    name: Annotated[str | None, typer.Argument(help="main, ablation, architectures, ...; see --list.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the cells: published, measured, missing.")] = False,
    only: Annotated[str, typer.Option("--only", help="Cells below it, such as cifar10/ipc10.")] = "",
    scale: Annotated[str, typer.Option("--scale", help="tour, laptop or paper.")] = "tour",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Distillations of each cell.")] = 3,
    budget: Annotated[str | None, typer.Option("--budget", help="Stop cleanly after it, such as 8h or 30m.")] = None,
    device: Device = "auto",
    folder: Annotated[
        Path | None, typer.Option("--results", help="Folder of the results; else the checkout's own.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the runs.")] = Path("runs/reproduce"),
) -> None:
    """Show the paper's cells, or run those that are missing, the most telling first."""
    from iidlib.experiments import EXPERIMENTS
    from iidlib.reproduce import jobs, run_jobs

    if name is not None and name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}{suggest(name, EXPERIMENTS)}")
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}{suggest(scale, SCALES)}")
    if show or name is None:
        for each in [name] if name else EXPERIMENTS:
            _cells(each, EXPERIMENTS[each].title, only, folder)
        typer.echo(
            "Accuracy in percent; ours: mean ± std over distillation seeds (how many).\n"
            "Only scale paper fills a cell of the paper; tour is measured on cifar10-mini."
        )
        return
    seconds = time_budget(budget) if budget else math.inf
    todo = jobs(name, scale=scale, seeds=seeds, only=only, folder=folder, runs=runs, device=device)
    typer.echo(f"{name} at scale {scale}: {len(todo)} runs are missing")
    outcome = run_jobs(todo, budget=seconds, say=typer.echo)
    typer.echo(f"{outcome.done} of {len(todo)} done")
    if outcome.failed:
        raise typer.Exit(1)


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file: notebook, and product or zip of parameters.")],
    workers: Annotated[int, typer.Option("--workers", help="Notebooks executed at a time.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for notebooks and table; else below runs/.")] = None,
) -> None:
    """Execute a chapter over a grid of parameters, each point a notebook of its own (papermill)."""
    from iidlib.sweep import load_grid, run_sweep

    folder = out or Path("runs") / f"sweep-{grid.stem}"
    frame = run_sweep(load_grid(grid), folder, workers=workers, progress=sys.stderr.isatty())
    failed = frame[frame["status"] != "done"]
    for row in failed.to_dict("records"):
        typer.echo(f"failed: {folder / row['notebook']}: {row['error']}", err=True)
    typer.echo(f"{len(frame) - len(failed)} of {len(frame)} points done; table in {folder / 'sweep.csv'}")
    if len(failed):
        raise typer.Exit(1)


def bench(
    ctx: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two classes instead of ten and fewer repetitions: a minute.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="One method as images, classes, batch and width grow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as a JSON list.")] = False,
    results: Annotated[Path | None, typer.Option("--results", help="CSV file to which the rows are added.")] = None,
    device: Device = "auto",
) -> None:
    """Time the library against the per-class loop and the machine's best, with the same losses, in one run."""
    from iidlib import bench as benchmark
    from iidlib.results import check_results
    from iidlib.timing import LossesDiffer

    if quick and scaling:
        raise InputError("--quick and --scaling are two measurements; give one of them")
    if results:
        check_results(results, benchmark.NEEDED)
    progress = sys.stderr.isatty()
    try:
        with keeping():
            if scaling:
                report = benchmark.scaling(device=device, progress=progress)
            else:
                report = benchmark.measure(quick=quick, device=device, progress=progress)
    except LossesDiffer as error:
        raise Failed(f"failed: {error}") from error
    if results:
        report.append(results, given_command(ctx))
    if as_json:
        typer.echo(report.to_json())
        return
    for title, rows in report.tables().items():
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "work" else "right")
        for row in rows:
            table.add_row(*(escape(value) for value in row.values()))
        console.print(table)
    for note in report.notes():
        typer.echo(note)
