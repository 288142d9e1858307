"""``iid continual``: classes that come in steps, learned from a memory of distilled images."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from iidlib.cli.options import Changes, DataRoot, DatasetName, Device, Results, given_changes
from iidlib.cli.session import check_names, given_command, keeping, load, run_stamp
from iidlib.config import preset
from iidlib.errors import InputError

__all__ = ["continual"]


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

    from iidlib.continual import class_order, class_steps, learn_in_steps
    from iidlib.engine import device_name, peak_memory_mib
    from iidlib.evaluation.coresets import CHOICES
    from iidlib.experiments import append_results, check_results, protocol_text
    from iidlib.experiments.results import RESULT_COLUMNS

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
