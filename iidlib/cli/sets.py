"""Commands that make and judge sets of images: ``distill``, ``evaluate``, and ``experts`` for the pools behind them."""

import contextlib
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.frame import (
    Baseline,
    Changes,
    DataRoot,
    DatasetName,
    Device,
    Results,
    check_names,
    console,
    given_changes,
    given_command,
    keeping,
    load,
    run_stamp,
)
from iidlib.cli.scores import chosen_beside, scored, show_scores
from iidlib.config import SCALES, PoolConfig, differing, preset
from iidlib.inputs import InputError, suggest

if TYPE_CHECKING:
    from iidlib.runs import RunFolder

__all__ = ["distill", "evaluate", "experts"]


def distill(
    ctx: typer.Context,
    method: Annotated[str, typer.Argument(help="dm, dm-cc, dm-cm, iid-dm, or the same with idm.")],
    dataset: DatasetName = "cifar10-mini",
    ipc: Annotated[int, typer.Option("--ipc", help="Synthetic images a class.")] = 10,
    scale: Annotated[str, typer.Option("--scale", help="ci, tour, laptop or paper.")] = "tour",
    iterations: Annotated[int | None, typer.Option("--iterations", help="Updates; else the scale's.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every draw.")] = 0,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; else one below runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Resume under other versions, device or kernels too; it is recorded.")
    ] = False,
    data_root: DataRoot = None,
    changes: Changes = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Train networks on the result and test them.")
    ] = True,
    baseline: Baseline = True,
    results: Results = None,
) -> None:
    """Learn a few synthetic images a class, and show what networks trained on them reach."""
    import pandas as pd

    from iidlib.distillation import METHODS
    from iidlib.distillation import distill as run
    from iidlib.presets import published
    from iidlib.published import published_value
    from iidlib.results import append_results, check_results, protocol_text
    from iidlib.runs import RunFolder
    from iidlib.synthetic import SyntheticSet

    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{suggest(method, METHODS)}")
    own = {"seed": seed} | ({} if iterations is None else {"iterations": iterations})
    given = given_changes(changes)
    config = preset(method, dataset, ipc, scale, own | given)
    check_names(config)
    if results is not None:
        if not evaluate:
            raise InputError("--results needs the evaluation; leave out --no-evaluate or --results")
        check_results(results)
    loaded = load(dataset, data_root, device)
    named = re.sub(r"[^\w.-]+", "-", dataset)  # a folder's path is part of a name, and no folders
    folder = RunFolder(out or Path("runs") / f"{method}-{named}-ipc{ipc}-{scale}-seed{seed}")
    typer.echo(
        f"{method} on {dataset}, IPC {ipc}: {config.iterations} iterations, scale {scale}, {loaded.train.device}"
    )
    in_use = METHODS[method].terms_in_use(config)
    if left_out := [name for name in METHODS[method].terms if name not in in_use]:
        typer.echo(f"left out, as a class has one image only: {' and '.join(left_out)}")
    stamp = run_stamp(ctx)
    with keeping(folder.path, given_command(ctx, "--resume", *([] if out else ["--out", str(folder.path)]))):
        facts = stamp | {"iterations": config.iterations}
        if given:
            facts["settings"] = " ".join(f"{key}={value}" for key, value in given.items())
        if resume and folder.finished:
            metrics, synthetic = RunFolder.reopen(folder.path, config).metrics(), SyntheticSet.load(folder.path)
            typer.echo(f"the run in {folder.path} is finished; its set stays as it is")
        else:
            bar = sys.stderr.isatty()
            result = run(config, loaded, out=folder.path, resume=resume, allow_drift=allow_drift, progress=bar)
            metrics, synthetic = result.metrics, result.synthetic
            typer.echo(f"distilled in {result.seconds:.0f} s; images: {folder.path / 'synthetic.png'}")
            if result.pool:
                facts["pool_accuracies"] = " ".join(f"{value:.2f}" for value in result.pool.accuracies)
        synthetic.save_png(folder.path / "synthetic.png")
        if synthetic.factor > 1:
            synthetic.expanded().save_png(folder.path / "synthetic-expanded.png")
        if "queue_networks" in metrics:
            queue = metrics.iloc[-1]
            typer.echo(
                f"queue: {queue['queue_networks']:.0f} networks of at most {config.queue.size}, "
                f"{queue['queue_mib']:.1f} MiB, {queue['queue_accuracy']:.0f} % on their training images"
            )
        if not evaluate:
            return
        if len(metrics):
            facts["seconds_per_iteration"] = metrics["seconds"].iloc[-1] / config.iterations
        scores = scored(synthetic, loaded, config, method, seed, facts)
        if baseline:
            sets = chosen_beside(loaded.train, ipc, seed, synthetic.factor)
            beside = [
                scored(chosen, loaded, config, name, seed, stamp | {"iterations": 0}) for name, chosen in sets.items()
            ]
            scores = pd.concat([*beside, scores], ignore_index=True)
        folder.write_scores(scores)
        note = "last iterate, mean ± std over networks, one distillation"
        show_scores(
            scores, f"{dataset}, IPC {ipc}, scale {scale}", note, protocol_text(config.eval, method, synthetic.factor)
        )
        printed, row = published_value(dataset, method, ipc), published(method, dataset, ipc)
        if printed and scale == "paper":
            origin = f"; settings: {row.origin}" if row else ""
            typer.echo(f"published: {printed.value} % ({printed.source}){origin}")
        if results is not None:
            append_results(results, scores)


def evaluate(
    ctx: typer.Context,
    path: Annotated[
        str,
        typer.Argument(help="A run's folder or set; or random, random-mosaic, herding, k-center or whole."),
    ],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Else the one the set was made for.")] = None,
    networks: Annotated[str | None, typer.Option("--networks", help="Such as convnet3,alexnet.")] = None,
    num_eval: Annotated[int | None, typer.Option("--num-eval", help="Networks of each architecture.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the set; 1001 in the paper.")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Protocol to start from; else the set's own.")] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="dm (DC, DM, IDM, IID) or idc (IDC, DREAM, DANCE: CutMix, 1500 passes).")
    ] = "dm",
    ipc: Annotated[int | None, typer.Option("--ipc", help="Images a class, for chosen images; else 10.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the networks, and of the choice of random images; else the set's.")
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
    baseline: Baseline = True,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the scores.")] = None,
    results: Results = None,
) -> None:
    """Train networks from scratch on a set and test them on the real test images."""
    import dataclasses

    import pandas as pd

    from iidlib.coresets import CHOICES, choose
    from iidlib.evaluation import random_real, whole_set_protocol
    from iidlib.extractors import trained_pool
    from iidlib.presets import PROTOCOLS
    from iidlib.presets import protocol as protocol_changes
    from iidlib.results import append_results, check_results, check_writable, protocol_text
    from iidlib.runs import RunFolder, atomic_write
    from iidlib.synthetic import SyntheticSet

    if out is not None:
        check_writable(out)
        if out.exists():
            raise InputError(f"{out} exists already; nothing was overwritten: give another --out")
    if results is not None:
        check_results(results)
    synthetic = None if path in ("random", "random-mosaic", "whole", *CHOICES) else SyntheticSet.load(path)
    origin = synthetic.provenance if synthetic else {}
    if synthetic and ipc not in (None, synthetic.ipc):
        raise InputError(f"--ipc goes with chosen images; the set in {path} has {synthetic.ipc} images a class")
    name = dataset or (synthetic.spec.name if synthetic else "cifar10-mini")
    label = path if synthetic is None else origin.get("method", "unknown")
    try:
        iterations, own_seed = int(origin.get("iterations", 0)), int(origin.get("seed", seed or 0))
    except ValueError:
        raise InputError(
            f"{path} is damaged (its seed or iterations are not numbers); distil or copy it again"
        ) from None
    networks_seed = own_seed if seed is None else seed

    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}{suggest(protocol, PROTOCOLS)}")
    given = {"eval.networks": networks, "eval.num_eval": num_eval, "eval.epochs": epochs}
    own = given_changes(changes)
    chosen = {key: value for key, value in given.items() if value is not None} | own
    made_at = origin.get("scale", scale or "tour")
    size = synthetic.ipc if synthetic else 10 if ipc is None else ipc
    loaded = load(name, data_root, device)
    family = {} if protocol == "dm" else protocol_changes(protocol, loaded.spec.augmentation, scale or made_at)
    config = preset(label, name, size, scale or made_at, {"seed": own_seed} | family | chosen)
    if path == "whole" and "eval.epochs" not in chosen:
        config = dataclasses.replace(config, eval=whole_set_protocol(config.eval))
    check_names(config)
    kept = RunFolder(path) if (Path(path) / "config.yaml").is_file() else None
    as_planned = kept is not None and kept.config().eval == config.eval
    if path == "whole":
        size = int(loaded.train.counts.max())
    # a set keeps the scale at which it was distilled; how it is evaluated, its protocol says
    config = dataclasses.replace(config, scale=made_at, ipc=size)
    images = synthetic or loaded.train
    facts = run_stamp(ctx)
    made = _settings_of(origin, kept) | own
    if synthetic and name != synthetic.spec.name:
        made["made_from"] = re.sub(r"\s+", "_", synthetic.spec.name)  # not what the row's data set would say
    with keeping():
        if path in CHOICES:
            # features of a network trained on the whole set, another one for each seed
            one = dataclasses.replace(config.pool, count=1, seed=config.pool.seed + own_seed)
            pool = trained_pool(loaded, one, device=loaded.train.device, compile=config.compute.compile)
            images = choose(path, loaded.train, size, pool.networks[0])
            facts["pool_accuracies"] = f"{pool.accuracies[0]:.2f}"
        elif synthetic is None and path != "whole":
            images = random_real(loaded.train, size, own_seed, config.syn.factor)
            label = images.provenance["method"]
        if made:
            facts["settings"] = " ".join(f"{key}={value}" for key, value in made.items())
        scores = scored(images, loaded, config, label, networks_seed, facts | {"iterations": iterations})
        if baseline and synthetic and label not in ("random", "random-mosaic"):
            sets = chosen_beside(loaded.train, size, own_seed, synthetic.factor)
            beside = [
                scored(one, loaded, config, kind, networks_seed, facts | {"iterations": 0})
                for kind, one in sets.items()
            ]
            scores = pd.concat([*beside, scores], ignore_index=True)
        judged_by = protocol_text(config.eval, label, getattr(images, "factor", 1))
        show_scores(scores, f"tested on {name}", "mean ± std over networks", judged_by)
        if kept is not None and as_planned and not (kept.path / "scores.json").exists():
            kept.write_scores(scores)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(out, scores.to_json(orient="records", indent=2) + "\n")
        if results is not None:
            append_results(results, scores)


def _settings_of(origin: Mapping[str, str], kept: "RunFolder | None") -> dict[str, str]:
    """What a set was made with beside its scale's settings: as it says, or as its run's folder says."""
    if kept is not None:
        return differing(kept.config())
    pairs = (pair.partition("=") for pair in origin.get("settings", "").split())
    return {key: value for key, _, value in pairs}


def experts(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pool, made or completed.")],
    dataset: DatasetName = "cifar10-mini",
    network: Annotated[str, typer.Option("--network", help="Architecture.")] = PoolConfig().network,
    count: Annotated[int, typer.Option("--count", help="Networks.")] = PoolConfig().count,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training set.")] = PoolConfig().epochs,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
) -> None:
    """Train the pool of networks behind class centralization; a pool begun before is completed."""
    from iidlib.distillation import pool_bar
    from iidlib.extractors import pool_members, trained_pool
    from iidlib.results import check_writable

    own = {"pool.network": network, "pool.count": count, "pool.epochs": epochs}
    given = own | given_changes(changes) | {"pool.path": str(out)}
    config = preset("dm-cc", dataset, 10, "paper", given)
    check_names(config)
    check_writable(out / "pool.json")
    loaded = load(dataset, data_root, device)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with keeping(out, given_command(ctx)), pool_bar(config, sys.stderr.isatty()) as on_epoch:
            pool = trained_pool(
                loaded,
                config.pool,
                device=loaded.train.device,
                compile=config.compute.compile,
                together=config.compute.together,
                on_epoch=on_epoch,
            )
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()  # goes only while nothing is in it
    table = Table(title=escape(f"{len(pool.networks)} {config.pool.network} in {out}"))
    table.add_column("network")
    table.add_column("passes", justify="right")
    table.add_column("held-out accuracy (%)", justify="right")
    for (number, passes), value in zip(pool_members(config.pool), pool.accuracies, strict=True):
        table.add_row(str(number), str(passes), f"{value:.1f}")
    console.print(table)
    # a pool fits only those settings that it was trained with, and every scale has its own
    differing = dict.fromkeys([key for scale in SCALES.values() for key in scale] + list(given))
    named = {key: getattr(config.pool, key[5:]) for key in differing if key.startswith("pool.")}
    named |= {key: ",".join(map(str, value)) for key, value in named.items() if isinstance(value, tuple)}
    settings_text = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in named.items())
    typer.echo(f"use it with: {settings_text}")
