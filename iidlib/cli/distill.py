"""``iid distill``: learns synthetic images and evaluates them."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from iidlib.cli.completion import complete_method
from iidlib.cli.following import post
from iidlib.cli.options import (
    AllowMismatch,
    Baseline,
    Changes,
    DataRoot,
    DatasetName,
    Device,
    Results,
    Resume,
    Scale,
    given_changes,
)
from iidlib.cli.output import AsJson, Quiet, report
from iidlib.cli.score_files import KeptRows, can_be_scored, check_apart
from iidlib.cli.scores import run_summary, scored, show_scores, summary, with_random_baselines
from iidlib.cli.session import check_names, given_command, keeping, load
from iidlib.config import preset, without_effect
from iidlib.errors import InputError, suggest

__all__ = ["distill"]


def distill(
    ctx: typer.Context,
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Distillation method: dm, dm-cc, dm-cm, iid-dm, idm, idm-cc, idm-cm, iid-idm or iid-plus.",
            autocompletion=complete_method,
        ),
    ],
    dataset: DatasetName = "cifar10-mini",
    ipc: Annotated[int, typer.Option("--ipc", metavar="N", help="Synthetic images per class.")] = 10,
    scale: Scale = "tour",
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations",
            metavar="N",
            help="Number of iterations (default: set by --scale). With --resume, a larger number extends the run.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed.")] = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Output folder (default: runs/<method>-...).")
    ] = None,
    resume: Resume = False,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="PATH", help="Start from the images of a run or distilled set."),
    ] = None,
    allow_mismatch: AllowMismatch = False,
    data_root: DataRoot = None,
    changes: Changes = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Train networks on the distilled images and test them.")
    ] = True,
    baseline: Baseline = True,
    results: Results = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Distil a dataset into a few synthetic images per class and evaluate them."""
    from iidlib.config import published
    from iidlib.distillation import METHODS, finished_run, save_pictures, starting_from
    from iidlib.distillation import distill as run
    from iidlib.evaluation import check_evaluation, cost_of, dataset_for, made_by, random_baselines, untested
    from iidlib.experiments import SetOrigin, check_results, protocol_text, published_value
    from iidlib.runs import RunFolder

    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{suggest(method, METHODS)}")
    named = re.sub(r"[^\w.-]+", "-", dataset)  # the slashes of folder:PATH must not make folders
    folder = RunFolder(out or Path("runs") / f"{method}-{named}-ipc{ipc}-{scale}-seed{seed}")
    started = folder.config() if resume and (folder.path / "config.yaml").is_file() else None
    if started and iterations is None:
        iterations = started.iterations  # an extended run no longer has the scale's number
    options = {"seed": seed} | ({} if iterations is None else {"iterations": iterations})
    given = given_changes(changes)
    from_set = started.syn.init if started and started.syn.init.startswith("set:") else None
    if from_set and init is None:
        given.setdefault("syn.init", from_set)  # the set itself is not needed: its images are in the checkpoint
    config = preset(method, dataset, ipc, scale, options | given)
    check_names(config)
    if init is not None:
        if "syn.init" in given:
            raise InputError("--init and --set syn.init= both choose the initial images; give only one of them")
        config, _ = starting_from(config, init)
        given["syn.init"] = config.syn.init
        if from_set and from_set != config.syn.init:
            raise InputError(
                f"the run in {folder.path} was started from {from_set}, but the set in {init} is now "
                f"{config.syn.init}; leave out --init to resume the run"
            )
    if results is not None:
        if not evaluate:
            raise InputError("--results needs an evaluation; leave out --no-evaluate or --results")
        check_results(results)
        check_apart(results, folder.path, folder=True)
    if not resume:
        folder.check_free()
    loaded = load(dataset, data_root, device)
    if evaluate:
        check_evaluation(config.eval, loaded.spec, config.compute)
        untested(loaded.test)
    typer.echo(
        f"{method} on {dataset}, IPC {ipc}: {config.iterations} iterations, scale {scale}, {loaded.train.device}"
    )
    if left_out := METHODS[method].left_out(config):
        typer.echo(f"terms left out: {', '.join(f'{name} ({reason})' for name, reason in left_out.items())}")
    if unused := without_effect(config, given):
        typer.echo(f"settings without effect on {method}: {', '.join(unused)}")
    stamp = made_by(loaded.train.device, given_command(ctx))  # now, because the checkout may change during the run
    with keeping(folder.path, given_command(ctx, "--resume", *([] if out else ["--out", str(folder.path)]))):
        origin = dataclasses.replace(SetOrigin.planned(config), settings=given)
        result = finished_run(config, loaded, folder.path) if resume else None
        finished = result is not None
        if result:
            typer.echo(f"the run in {folder.path} is already finished; its images are unchanged")
        else:
            post("distill", config=config, resume=resume)
            result = run(
                config, loaded, out=folder.path, resume=resume, allow_mismatch=allow_mismatch, init=init, progress=None
            )
            typer.echo(f"distilled in {result.seconds:.0f} s, images in {folder.path / 'synthetic.png'}")
            save_pictures(result.synthetic, folder)
        metrics, synthetic = result.metrics, result.synthetic
        if "queue_networks" in metrics:
            queue = metrics.iloc[-1]
            typer.echo(
                f"network queue: {queue['queue_networks']:.0f} of at most {config.queue.size} networks, "
                f"{queue['queue_mib']:.1f} MiB, training accuracy {queue['queue_accuracy']:.0f} %"
            )
        facts = run_summary(config, folder, metrics)
        if not evaluate:
            report(folder.synthetic, facts)
            return
        keeps = not finished or can_be_scored(folder)
        origin = dataclasses.replace(origin, **cost_of(folder, config.iterations))
        with KeptRows(run=folder if keeps else None, results=results) as kept:
            scores = scored(synthetic, loaded, config, origin=origin, seed=seed, made_by=stamp, kept=kept)
            if baseline:
                # the dataset may have changed since the run was finished
                fitted = dataset_for(synthetic, loaded)
                beside = random_baselines(fitted.train, ipc, origin.seed, origin.factor, say=typer.echo)
                scores = with_random_baselines(
                    scores, beside, fitted, config, origin=origin, given=given, made_by=stamp, kept=kept
                )
            kept.save(scores, of_run=True)
        note = "images of the last iteration, mean ± std over networks, one distillation"
        show_scores(
            scores, f"{dataset}, IPC {ipc}, scale {scale}", note, protocol_text(config.eval, method, synthetic.factor)
        )
        printed, row = published_value(dataset, method, ipc), published(method, dataset, ipc)
        if printed and scale == "paper":
            source = f"; settings: {row.origin}" if row else ""
            typer.echo(f"published: {printed.value} % ({printed.source}){source}")
        report(folder.synthetic, facts | {"scores": summary(scores)})
