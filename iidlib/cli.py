"""The command line, ``iid``: thin commands over the functions of the library.

Exit status: 0 done, 1 failed while running (with what is kept and how to go on), 2 wrong input (one line, nothing
overwritten), 130 and 143 stopped by SIGINT and SIGTERM.
"""

# The library is imported inside the commands, so that `iid --help` answers at once.

import contextlib
import io
import logging
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from iidlib import __version__
from iidlib.config import SCALES, EvalProtocol, PoolConfig, RunConfig, preset, settings
from iidlib.inputs import InputError, suggest

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.data import Dataset, RealSet
    from iidlib.synthetic import SyntheticSet

__all__ = ["app", "main"]

# click's base of all usage errors; newer typers carry a click of their own, so it is found through what they export
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Failed(Exception):
    """A failure while running that is no fault of the program; its text says what is kept and how to go on."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with an exit status of its own."""

    signal = signal.SIGTERM


class _Commands(TyperGroup):
    """The commands; a stop is told in the words of whoever was stopped."""

    def invoke(self, ctx: Any) -> Any:
        # here and not in `main`: newer typers make a silent exit of it before it gets there
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "stopped", err=True)
            raise typer.Exit(128 + getattr(stop, "signal", signal.SIGINT)) from None


class _Log(logging.Handler):
    """Messages on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)
"""The commands, as Typer gathers them; `main` runs them."""
data_app = typer.Typer(help="Data sets: what is known, fetch one, check its files.")
app.add_typer(data_app, name="data")

console = Console()

DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset", help="cifar10-mini, cifar10 or shapes; validation:NAME judges on held-out training images."
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder that holds the data sets; else the one in IID_DATA.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as match.cm=0.02.")
]
Baseline = Annotated[
    bool, typer.Option("--baseline/--no-baseline", help="Put as many random real images beside the distilled set.")
]
Results = Annotated[Path | None, typer.Option("--results", help="CSV file to which the scores are added.")]


def _changes(given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, got {text!r}")
        if "." not in key and key in settings():
            # a scale set here would be the name of settings that are not in use
            raise InputError(f"{key} is not for --set; give it by itself (see iid distill --help)")
        pairs[key] = value.strip()
    return pairs


def _load(name: str, data_root: Path | None, device: str) -> "Dataset":
    from iidlib.accelerate import pick_device
    from iidlib.data import load_dataset

    try:
        chosen = pick_device(device)
    except ValueError as error:
        raise InputError(str(error)) from None
    return load_dataset(name, data_root=data_root, device=chosen)


def _check_names(config: RunConfig) -> None:
    """Names that are used only after a long distillation are checked before it."""
    from iidlib.networks import NETWORKS
    from iidlib.training import augmentation_stages, resolve_augmentation

    for name in (config.match.network, config.pool.network, *config.eval.networks):
        if name not in NETWORKS:
            raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    resolve_augmentation(config.match.augmentation, "none")
    augmentation_stages("none" if config.eval.augmentation == "auto" else config.eval.augmentation)


def _command(ctx: typer.Context, *more: str) -> str:
    """The command as it was given, for the record; or with `more` behind its name, to go on with."""
    name, *rest = ctx.obj
    return shlex.join(["iid", name, *more, *(part for part in rest if part not in more)])


def _stamp(ctx: typer.Context) -> dict[str, Any]:
    """The command and what it runs with; taken when it starts, as the code of a checkout may change meanwhile."""
    from iidlib.runs import environment

    known = environment()
    return {"command": _command(ctx)} | {name: known[name] for name in ("torch", "iidlib", "commit", "date")}


@contextlib.contextmanager
def _kept(folder: Path | None = None, again: str = "") -> Iterator[None]:
    """Within the block, a stop or a failure from outside says what is kept in `folder` and how to go on."""
    import torch

    def told(what: str, go_on: str) -> str:
        if folder is None or not folder.is_dir() or not any(folder.iterdir()):
            return what
        kept = "" if f"kept in {folder}" in what else f"; what was done is kept in {folder}"
        return f"{what}{kept}\n{go_on}"

    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (told(str(stop) or "stopped", f"go on with: {again}"),)
        raise
    except FloatingPointError as error:
        raise _Failed(told(f"failed: {error}", "begin anew with another --out")) from error
    except torch.OutOfMemoryError as error:
        what = f"failed: out of memory ({' '.join(str(error).split())[:120]})"
        lower = (
            "it needs less with a smaller --set compute.chunk= (images in one pass), compute.together= (networks at "
            "once), match.batch_real= or eval.batch="
        )
        raise _Failed(told(f"{what}; {lower}", "begin anew with another --out")) from error
    except OSError as error:
        raise _Failed(told(f"failed: {' '.join(str(error).split())}", f"go on with: {again}")) from error


def _protocol_text(protocol: EvalProtocol, label: str, factor: int = 1) -> str:
    name = "whole set" if label == "whole" else protocol.name
    if label == "whole" and protocol.name != "dm":
        name += f" ({protocol.name})"
    text = f"{name}, {protocol.epochs} epochs, batch {protocol.batch}, lr {protocol.lr:g}, width {protocol.width}"
    if factor > 1:
        text += f", each image expanded to {factor**2}"
    if protocol.name == "own":
        text += f", CutMix {protocol.cutmix:g}, schedule {protocol.schedule}"
    return text if protocol.augmentation == "auto" else f"{text}, augmentation {protocol.augmentation}"


def _baselines(train: "RealSet", ipc: int, seed: int, factor: int) -> "dict[str, SyntheticSet]":
    """What stands beside a set: random real images, and such mosaics of them where the set consists of mosaics."""
    from iidlib.evaluation import random_real

    found = {"random": random_real(train, ipc, seed)}
    if factor > 1:
        try:
            found["random-mosaic"] = random_real(train, ipc, seed, factor)
        except InputError as error:  # the set itself may have begun otherwise
            typer.echo(f"random-mosaic is left out: {error}")
    return found


def _scores(
    images: "SyntheticSet | RealSet",
    dataset: "Dataset",
    config: RunConfig,
    label: str,
    networks_seed: int,
    facts: Mapping[str, Any],
) -> "pd.DataFrame":
    """Evaluates a set: a row of results for each network."""
    from tqdm import tqdm

    from iidlib.accelerate import device_name, peak_memory_mib
    from iidlib.evaluation import evaluate
    from iidlib.results import RESULT_COLUMNS

    protocol, device = config.eval, dataset.train.device
    total = len(protocol.networks) * protocol.num_eval
    with tqdm(total=total, desc=f"evaluating {label}", unit="network", disable=not sys.stderr.isatty()) as bar:

        def show(row: dict[str, object]) -> None:
            bar.set_postfix_str(f"{row['network']} {row['accuracy']:.1f} %")
            bar.update()

        scores = evaluate(
            images,
            dataset,
            protocol=protocol,
            seed=networks_seed,
            compile=config.compute.compile,
            tf32=config.compute.precision != "fp32",
            together=config.compute.together,
            on_network=show,
        )
    same: dict[str, Any] = {
        "dataset": config.dataset,
        "method": label,
        "ipc": config.ipc,
        "scale": config.scale,
        "seed": config.seed,
        "protocol": _protocol_text(protocol, label, getattr(images, "factor", 1)),
        "peak_memory_mib": round(peak_memory_mib(device)),
        "device": device_name(device),
        "networks_seed": networks_seed,
    }
    return scores.assign(**same | dict(facts)).reindex(columns=list(RESULT_COLUMNS))


def _show(scores: "pd.DataFrame", title: str, note: str, protocol: str) -> None:
    from iidlib.evaluation import summarize

    table = Table(title=escape(title))
    for name, justify in (("set", "left"), ("network", "left"), ("accuracy (%)", "right"), ("networks", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in summarize(scores, by=("method", "network")).to_dict("records"):
        spread = f" ± {row['std']:.1f}" if row["n"] > 1 else ""
        table.add_row(escape(str(row["method"])), str(row["network"]), f"{row['mean']:.1f}{spread}", str(row["n"]))
    console.print(table)
    typer.echo(f"{note}; protocol: {protocol}")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"iidlib {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Dataset distillation by distribution matching, with class centralization and covariance matching."""


@app.command()
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
    from iidlib.results import append_results, check_results
    from iidlib.runs import RunFolder
    from iidlib.synthetic import SyntheticSet

    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{suggest(method, METHODS)}")
    own = {"seed": seed} | ({} if iterations is None else {"iterations": iterations})
    given = _changes(changes)
    config = preset(method, dataset, ipc, scale, own | given)
    _check_names(config)
    if results is not None:
        if not evaluate:
            raise InputError("--results needs the evaluation; leave out --no-evaluate or --results")
        check_results(results)
    loaded = _load(dataset, data_root, device)
    named = re.sub(r"[^\w.-]+", "-", dataset)  # a folder's path is part of a name, and no folders
    folder = RunFolder(out or Path("runs") / f"{method}-{named}-ipc{ipc}-{scale}-seed{seed}")
    typer.echo(
        f"{method} on {dataset}, IPC {ipc}: {config.iterations} iterations, scale {scale}, {loaded.train.device}"
    )
    in_use = METHODS[method].terms_in_use(config)
    if left_out := [name for name in METHODS[method].terms if name not in in_use]:
        typer.echo(f"left out, as a class has one image only: {' and '.join(left_out)}")
    stamp = _stamp(ctx)
    with _kept(folder.path, _command(ctx, "--resume", *([] if out else ["--out", str(folder.path)]))):
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
        scores = _scores(synthetic, loaded, config, method, seed, facts)
        if baseline:
            sets = _baselines(loaded.train, ipc, seed, synthetic.factor)
            beside = [
                _scores(chosen, loaded, config, name, seed, stamp | {"iterations": 0}) for name, chosen in sets.items()
            ]
            scores = pd.concat([*beside, scores], ignore_index=True)
        folder.write_scores(scores)
        note = "last iterate, mean ± std over networks, one distillation"
        _show(
            scores, f"{dataset}, IPC {ipc}, scale {scale}", note, _protocol_text(config.eval, method, synthetic.factor)
        )
        printed, row = published_value(dataset, method, ipc), published(method, dataset, ipc)
        if printed and scale == "paper":
            origin = f"; settings: {row.origin}" if row else ""
            typer.echo(f"published: {printed.value} % ({printed.source}){origin}")
        if results is not None:
            append_results(results, scores)


@app.command()
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
    from iidlib.results import append_results, check_results, check_writable
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
    chosen = {key: value for key, value in given.items() if value is not None} | _changes(changes)
    made_at = origin.get("scale", scale or "tour")
    size = synthetic.ipc if synthetic else 10 if ipc is None else ipc
    loaded = _load(name, data_root, device)
    family = {} if protocol == "dm" else protocol_changes(protocol, loaded.spec.augmentation, scale or made_at)
    config = preset(label, name, size, scale or made_at, {"seed": own_seed} | family | chosen)
    if path == "whole" and "eval.epochs" not in chosen:
        config = dataclasses.replace(config, eval=whole_set_protocol(config.eval))
    _check_names(config)
    kept = RunFolder(path) if (Path(path) / "config.yaml").is_file() else None
    as_planned = kept is not None and kept.config().eval == config.eval
    if path == "whole":
        size = int(loaded.train.counts.max())
    # a set keeps the scale at which it was distilled; how it is evaluated, its protocol says
    config = dataclasses.replace(config, scale=made_at, ipc=size)
    images = synthetic or loaded.train
    facts = _stamp(ctx)
    with _kept():
        if path in CHOICES:
            one = dataclasses.replace(config.pool, count=1)  # features of a network trained on the whole set
            pool = trained_pool(loaded, one, device=loaded.train.device, compile=config.compute.compile)
            images = choose(path, loaded.train, size, pool.networks[0])
            facts["pool_accuracies"] = f"{pool.accuracies[0]:.2f}"
        elif synthetic is None and path != "whole":
            images = random_real(loaded.train, size, own_seed, config.syn.factor)
            label = images.provenance["method"]
        scores = _scores(images, loaded, config, label, networks_seed, facts | {"iterations": iterations})
        if baseline and synthetic and label not in ("random", "random-mosaic"):
            sets = _baselines(loaded.train, size, own_seed, synthetic.factor)
            beside = [
                _scores(one, loaded, config, kind, networks_seed, facts | {"iterations": 0})
                for kind, one in sets.items()
            ]
            scores = pd.concat([*beside, scores], ignore_index=True)
        protocol_text = _protocol_text(config.eval, label, getattr(images, "factor", 1))
        _show(scores, f"tested on {name}", "mean ± std over networks", protocol_text)
        if kept is not None and as_planned and not (kept.path / "scores.json").exists():
            kept.write_scores(scores)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(out, scores.to_json(orient="records", indent=2) + "\n")
        if results is not None:
            append_results(results, scores)


@app.command()
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
    given = own | _changes(changes) | {"pool.path": str(out)}
    config = preset("dm-cc", dataset, 10, "paper", given)
    _check_names(config)
    check_writable(out / "pool.json")
    loaded = _load(dataset, data_root, device)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _kept(out, _command(ctx)), pool_bar(config, sys.stderr.isatty()) as on_epoch:
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


@app.command()
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
    from iidlib.results import RESULT_COLUMNS, append_results, check_results

    given = _changes(changes)
    config = preset(method, dataset, ipc, scale, {"seed": seed} | given)
    _check_names(config)
    if results is not None:
        check_results(results)
    loaded = _load(dataset, data_root, device)
    number = seed if order is None else order
    class_steps(class_order(loaded.train.num_classes, number), steps)
    named = re.sub(r"[^\w.-]+", "-", dataset)
    folder = out or Path("runs") / f"continual-{method}-{named}-ipc{ipc}-{steps}steps-{scale}-seed{seed}-order{number}"
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise InputError(f"{folder} holds something already; go on with it by --resume, or give another --out")
    stamp, frames = _stamp(ctx), []

    def told(rows: pd.DataFrame) -> None:
        last = rows.iloc[-1]
        mean, spread = rows["accuracy"].mean(), rows["accuracy"].std(ddof=0)
        typer.echo(f"step {last['step']} of {steps}, {last['classes']} classes: {mean:.1f} ± {spread:.1f} %")
        frames.append(rows)

    with _kept(folder, _command(ctx, "--resume", *([] if out else ["--out", str(folder)]))):
        learn_in_steps(
            config, loaded, steps=steps, order=number, out=folder, progress=sys.stderr.isatty(), on_step=told
        )
        if results is not None:
            distilled = config.syn.factor if method not in ("random", "herding", "k-center") else 1
            same: dict[str, Any] = {
                "dataset": dataset,
                "method": method,
                "ipc": ipc,
                "scale": scale,
                "seed": seed,
                "protocol": _protocol_text(config.eval, method, distilled),
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


def _seconds(text: str) -> float:
    """A length of time such as ``8h``, ``30m`` or ``90s``."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        value = float(number) * _SECONDS[unit]
    except (ValueError, KeyError):
        raise InputError(f"--budget takes a time such as 8h, 30m or 90s, got {text!r}") from None
    if not 0 < value < float("inf"):
        raise InputError(f"--budget must be above zero, got {text!r}")
    return value


def _cells(name: str, title: str, only: str, folder: Path | None) -> None:
    """Shows each cell of an experiment: published, measured, missing."""
    from iidlib.experiments import mean_of, table

    cells = table(name, folder)
    shown = Table(title=escape(f"{name}: {title}"), box=box.SIMPLE, show_edge=False, pad_edge=False)
    shown.caption_justify = "left"
    for column in ("cell", "published", "paper", "laptop", "tour"):
        name_it = column == "cell"
        shown.add_column(column, justify="left" if name_it else "right", no_wrap=not name_it, overflow="fold")
    marks: dict[str, str] = {}
    for row in cells.to_dict("records"):
        if not row["cell"].startswith(only):
            continue
        ours = (mean_of(row, "paper") or "missing", mean_of(row, "laptop"), mean_of(row, "tour"))
        published = "not found"
        if row["source"] != "not found":
            mark = marks.setdefault(row["source"], ascii_lowercase[len(marks)])
            published = f"{row['published']:.1f} {mark}"
        shown.add_row(escape(row["cell"]), published, *ours)
    shown.caption = escape("\n".join(f"{mark}: {source}" for source, mark in marks.items()))
    console.print(shown)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="main, ablation, architectures, ...; see --list.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the cells: published, measured, missing.")] = False,
    only: Annotated[str, typer.Option("--only", help="Cells that begin so, such as cifar10/ipc10.")] = "",
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
    import math

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
    seconds = _seconds(budget) if budget else math.inf
    todo = jobs(name, scale=scale, seeds=seeds, only=only, folder=folder, runs=runs, device=device)
    typer.echo(f"{name} at scale {scale}: {len(todo)} runs are missing")
    done = run_jobs(todo, budget=seconds, say=typer.echo)
    typer.echo(f"{done} of {len(todo)} done")


@app.command()
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


@app.command()
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
        with _kept():
            if scaling:
                report = benchmark.scaling(device=device, progress=progress)
            else:
                report = benchmark.measure(quick=quick, device=device, progress=progress)
    except LossesDiffer as error:
        raise _Failed(f"failed: {error}") from error
    if results:
        report.append(results, _command(ctx))
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


@data_app.command("list")
def data_list(data_root: DataRoot = None) -> None:
    """Show the known data sets and where they were found."""
    from iidlib.data import datasets

    rows = datasets(data_root)
    table = Table()
    for name in ("name", "train", "test", "found"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row.name, f"{row.train_images}", f"{row.test_images}", escape(row.found or "no"))
    console.print(table)
    for row in rows:
        if row.found is None:
            typer.echo(f"{row.name}: {row.get}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="The data set.")],
    data_root: DataRoot = None,
) -> None:
    """Download a data set into the data root, with checksums."""
    from iidlib.data import load_dataset

    loaded = load_dataset(name, data_root=data_root, download=True)
    typer.echo(f"{name}: {len(loaded.train)} training and {len(loaded.test)} test images, complete")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="The data set.")],
    data_root: DataRoot = None,
) -> None:
    """Compare every file of a data set with its checksum."""
    from iidlib.data import check

    report = check(name, data_root)
    for problem in report.problems:
        typer.echo(problem)
    for file in report.files:
        typer.echo(f"{file.state:8} {file.path} {file.detail}".rstrip())
    if not report.ok:
        raise InputError(f"{name} is not whole; {report.get}")
    typer.echo(f"{name}: {len(report.files)} files, all whole" if report.files else f"{name}: no files, {report.get}")


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its status.

    Args:
        arguments: without the program's name; those of this process if not given.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table is not lost for a sign that the terminal does not have
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Log()])
    logging.getLogger("iidlib").setLevel(logging.INFO)
    # the loop of a distillation, which ends its iteration first, has handlers of its own
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(args=given or ["--help"], prog_name="iid", obj=given, standalone_mode=False)
    except InputError as error:
        _end(2, str(error))
    except _UsageError as error:
        help_of = f" (see {error.ctx.command_path} --help)" if getattr(error, "ctx", None) else ""
        _end(2, error.format_message() + help_of)
    except _Failed as error:
        _end(1, *str(error).splitlines())
    except OSError as error:
        _end(1, f"failed: {error}")
    sys.exit(status if isinstance(status, int) else 0)


def _end(status: int, message: str, *more: str) -> NoReturn:
    """Ends with a line on stderr, and what goes below it."""
    typer.echo("\n".join([f"iid: {' '.join(message.split())}", *more]), err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
