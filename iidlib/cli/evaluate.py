"""``iid evaluate``: trains networks from scratch on a small set and tests them on real images."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iidlib.cli.batches import Cluster, Gpus, Retries, Scheduler, SchedulerFile, Timeout, time_of
from iidlib.cli.completion import (
    complete_baseline,
    complete_dataset,
    complete_networks,
    complete_protocol,
    complete_scale,
)
from iidlib.cli.following import post, several_ranks
from iidlib.cli.options import Baseline, Changes, DataRoot, Device, Results, given_changes
from iidlib.cli.output import AsJson, Quiet, report
from iidlib.cli.score_files import KeptRows, can_be_scored, check_apart
from iidlib.cli.scores import scored, show_scores, summary, with_random_baselines
from iidlib.cli.session import check_names, given_command, keeping, load
from iidlib.cli.several import evaluate_several
from iidlib.errors import InputError
from iidlib.names import dataset_name

if TYPE_CHECKING:
    from iidlib.data import RealSet

__all__ = ["evaluate"]


def evaluate(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...",
            help="Run folder or file of a distilled set; or a baseline: random, random-mosaic, herding, k-center, "
            "or whole for all training images. Several sets need Dask.",
            autocompletion=complete_baseline,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            callback=dataset_name,
            help="Dataset to test on (default: the one it was distilled from; for a baseline, cifar10-mini).",
            autocompletion=complete_dataset,
        ),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            "--networks",
            metavar="NAMES",
            help="Comma-separated architectures, e.g. convnet3,alexnet.",
            autocompletion=complete_networks,
        ),
    ] = None,
    num_eval: Annotated[
        int | None, typer.Option("--num-eval", metavar="N", help="Number of networks per architecture.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Training epochs per network (paper: 1001).")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            metavar="SCALE",
            help="Scale of the evaluation: ci, tour, laptop or paper (default: that of the set; for a baseline, tour).",
            autocompletion=complete_scale,
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="Evaluation protocol: dm (used by DC, DM, IDM, IID) or idc (IDC, DREAM, DANCE: CutMix, 1500 epochs).",
            autocompletion=complete_protocol,
        ),
    ] = "dm",
    ipc: Annotated[
        int | None, typer.Option("--ipc", metavar="N", help="Images per class of a baseline (default: 10).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Random seed (default: that of the set; for a baseline, 0)."),
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
    baseline: Baseline = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="JSON file to write the scores to.")] = None,
    results: Results = None,
    workers: Annotated[
        int,
        typer.Option("--workers", metavar="N", min=1, help="Number of sets evaluated at a time, if several are given."),
    ] = 1,
    scheduler: Scheduler = "",
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    retries: Retries = 0,
    timeout: Timeout = None,
    gpus: Gpus = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train networks from scratch on a distilled set or a baseline and test them on real images."""
    from iidlib.config.recipes import BASELINES
    from iidlib.evaluation import (
        check_evaluation,
        check_protocol,
        dataset_for,
        evaluation_config,
        made_by,
        origin_of,
        random_baselines,
        real_images,
        untested,
    )
    from iidlib.evaluation.coresets import CHOICES, check_choice
    from iidlib.experiments import SetOrigin, check_results, check_writable, protocol_text
    from iidlib.features import choosing_pool
    from iidlib.files import resolved_path, user_path
    from iidlib.runs import RunFolder
    from iidlib.scale import Workers
    from iidlib.synthetic import SyntheticSet

    if len(paths) > 1:
        if several_ranks() is not None:
            raise InputError("several sets are evaluated by workers; start the command without torchrun")
        if out is not None:
            raise InputError("--out is for one set; give --results for several")
        where = Workers(workers, scheduler, scheduler_file, cluster, gpus)
        longest = None if timeout is None else time_of(timeout, "--timeout")
        evaluate_several(ctx, paths, where, results=results, retries=retries, timeout=longest)
        return
    if scheduler or scheduler_file or cluster or retries or timeout or gpus or workers > 1:
        raise InputError("options for workers are for several sets; one is evaluated by this process")
    (path,) = paths
    path = path if path in BASELINES else str(user_path(path))
    if out is not None:
        check_writable(out)
        if resolved_path(out).exists() or out.is_symlink():
            raise InputError(f"{out} already exists; nothing was overwritten: give another --out")
    if results is not None:
        if out is not None:
            check_apart(results, out, folder=False)
        check_results(results)
    synthetic = None if path in BASELINES else SyntheticSet.load(path)
    if synthetic and ipc not in (None, synthetic.ipc):
        raise InputError(f"--ipc is for baselines only; the set in {path} has {synthetic.ipc} images per class")
    run = RunFolder(path) if (Path(path) / "config.yaml").is_file() else None
    if run is not None and results is not None:
        check_apart(results, run.path, folder=True)
    origin = SetOrigin(path, scale or "tour", seed or 0)
    if synthetic:
        origin = origin_of(synthetic, run=run, scale=origin.scale, seed=origin.seed, called=path)
    check_protocol(protocol)
    overrides = given_changes(changes)
    given = {"eval.networks": networks, "eval.num_eval": num_eval, "eval.epochs": epochs}
    chosen = {key: value for key, value in given.items() if value is not None} | overrides
    name = dataset or (synthetic.spec.name if synthetic else "cifar10-mini")
    try:
        loaded = load(name, data_root, device)
    except InputError as error:
        if dataset is not None or synthetic is None:
            raise
        raise InputError(
            f"{error} (the set was distilled from {name}; choose another dataset to test on with --dataset)"
        ) from None
    fitted = dataset_for(synthetic, loaded) if synthetic else loaded
    size = synthetic.ipc if synthetic else 10 if ipc is None else ipc
    config = evaluation_config(origin, fitted, size, scale=scale, protocol=protocol, changes=chosen)
    check_names(config)
    check_evaluation(config.eval, fitted.spec, config.compute)
    untested(loaded.test)
    stamp = made_by(loaded.train.device, given_command(ctx))  # now, because the checkout may change during the run
    made_from = synthetic.provenance.get("data", loaded.train.fingerprint) if synthetic else ""
    # only scores that `iid distill` itself would have written belong into the run's folder
    as_made = (
        run is not None
        and run.config().eval == config.eval
        and (loaded.name, loaded.train.fingerprint) == (run.config().dataset, made_from)
        and seed in (None, origin.seed)
        and baseline
    )
    of_run = run is not None and as_made and not run.scored() and can_be_scored(run)
    with keeping(), KeptRows(run=run if as_made else None, out=out, results=results) as kept:
        images: SyntheticSet | RealSet
        if synthetic:
            images = synthetic
        else:
            pool = None
            if path in CHOICES:
                check_choice(path, loaded.train, size)
                post("choosing_pool", config=config)
                pool = choosing_pool(loaded, config)
            images = real_images(
                path,
                loaded.train,
                size,
                seed=config.seed,
                factor=config.syn.factor,
                network=pool.networks[0] if pool else None,
                compute=config.compute,
            )
            origin = origin_of(images, scale=origin.scale, seed=origin.seed)
            origin = dataclasses.replace(origin, pool_accuracies=pool.accuracies if pool else ())
        origin = dataclasses.replace(origin, settings=dict(origin.settings) | overrides)
        networks_seed = origin.seed if seed is None else seed
        beside: list[SyntheticSet] = []
        if baseline and synthetic and origin.method not in ("random", "random-mosaic"):
            beside = random_baselines(fitted.train, config.ipc, origin.seed, origin.factor, say=typer.echo)
        scores = scored(images, loaded, config, origin=origin, seed=networks_seed, made_by=stamp, kept=kept)
        if beside:
            scores = with_random_baselines(
                scores, beside, fitted, config, origin=origin, given=overrides, made_by=stamp, kept=kept
            )
        kept.save(scores, of_run=of_run)  # before they are shown, because writing to a closed pipe fails
        protocol_name = protocol_text(config.eval, origin.method, origin.factor)
        show_scores(scores, f"tested on {name}", "mean ± std over networks", protocol_name)
        report(
            None,
            {
                "set": path,
                "dataset": name,
                "protocol": protocol_name,
                "seconds": scores["seconds"].sum(),
                "scores": summary(scores),
            },
        )
