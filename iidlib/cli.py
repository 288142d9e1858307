"""The command line, ``iid``: thin commands over the functions of the library.

Exit status: 0 done, 1 failed while running, 2 wrong input (one line, nothing overwritten), 130 and 143 stopped by
SIGINT and SIGTERM.
"""

# The library is imported inside the commands, so that `iid --help` answers at once.

import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iidlib.config import EvalProtocol, InputError, RunConfig, override, preset

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.data import Dataset

__all__ = ["app", "main"]

# click's base of all usage errors; newer typers carry a click of their own, so it is found through what they export
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dataset distillation by distribution matching, with class centralization and covariance matching.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: what is known, fetch one, check its files.")
app.add_typer(data_app, name="data")

console = Console()
errors = Console(stderr=True, soft_wrap=True)

DatasetName = Annotated[str, typer.Option("--dataset", help="cifar10-mini, cifar10 or shapes.")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder that holds the data sets; else the one in IID_DATA.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as match.cm=0.02.")
]


def _changes(given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, got {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def _load(name: str, data_root: Path | None, device: str) -> "Dataset":
    from iidlib.accelerate import pick_device
    from iidlib.data import load_dataset

    try:
        chosen = pick_device(device)
    except ValueError as error:
        raise InputError(str(error)) from None
    return load_dataset(name, data_root=data_root, device=chosen)


def _protocol_text(protocol: EvalProtocol, label: str) -> str:
    name = "whole set" if label == "whole" else "dm"
    return f"{name}, {protocol.epochs} epochs, batch {protocol.batch}, lr {protocol.lr:g}, width {protocol.width}"


def _table(scores: "pd.DataFrame", title: str, caption: str) -> Table:
    from iidlib.evaluation import summarize

    table = Table(title=escape(title), caption=escape(caption))
    for name, justify in (("set", "left"), ("network", "left"), ("accuracy (%)", "right"), ("networks", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in summarize(scores.rename(columns={"method": "label"})).to_dict("records"):
        table.add_row(
            escape(str(row["label"])), str(row["network"]), f"{row['mean']:.1f} ± {row['std']:.1f}", str(row["n"])
        )
    return table


def _facts(config: RunConfig, dataset: "Dataset", label: str, protocol: EvalProtocol) -> dict[str, Any]:
    """What a row of results says beside the accuracy."""
    from iidlib.accelerate import device_name, peak_memory_mib
    from iidlib.runs import environment

    stamp = environment()
    device = dataset.train.device
    return {
        "dataset": config.dataset,
        "method": label,
        "ipc": config.ipc,
        "scale": config.scale,
        "seed": config.seed,
        "protocol": _protocol_text(protocol, label),
        "peak_memory_mib": round(peak_memory_mib(device)),
        "device": device_name(device),
        "torch": stamp["torch"],
        "iidlib": stamp["iidlib"],
        "commit": stamp["commit"],
        "date": stamp["date"],
        "command": shlex.join(["iid", *sys.argv[1:]]),
    }


def _evaluated(
    images: Any, dataset: "Dataset", config: RunConfig, label: str, protocol: EvalProtocol, **facts: Any
) -> "pd.DataFrame":
    from iidlib.evaluation import evaluate

    with console.status(f"training {protocol.num_eval} networks on {escape(label)}"):
        scores = evaluate(
            images,
            dataset,
            protocol=protocol,
            seed=config.seed,
            compile=config.compute.compile,
            tf32=config.compute.precision == "tf32",
        )
    return scores.assign(**_facts(config, dataset, label, protocol), **facts)


def _append(path: Path, scores: "pd.DataFrame") -> None:
    """Adds rows to a table of results; columns that one side lacks stay empty."""
    import pandas as pd

    from iidlib.runs import atomic_write

    if path.is_file():
        scores = pd.concat([pd.read_csv(path), scores], ignore_index=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, scores.to_csv(index=False))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


@app.command()
def distill(
    method: Annotated[str, typer.Argument(help="dm, dm-cc, dm-cm or iid-dm.")],
    dataset: DatasetName = "cifar10-mini",
    ipc: Annotated[int, typer.Option("--ipc", help="Synthetic images a class.")] = 10,
    scale: Annotated[str, typer.Option("--scale", help="ci, tour, laptop or paper.")] = "tour",
    iterations: Annotated[int | None, typer.Option("--iterations", help="Updates; else the scale's.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every draw.")] = 0,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; else one below runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    data_root: DataRoot = None,
    changes: Changes = None,
    evaluate: Annotated[bool, typer.Option(help="Train networks on the result, and on random real images.")] = True,
    baseline: Annotated[bool, typer.Option(help="Put random real images beside the result.")] = True,
    results: Annotated[Path | None, typer.Option("--results", help="CSV file to which the scores are added.")] = None,
) -> None:
    """Learn a few synthetic images a class, and show what networks trained on them reach."""
    import pandas as pd

    from iidlib.distillation import METHODS, Stopped
    from iidlib.distillation import distill as run
    from iidlib.evaluation import random_real
    from iidlib.runs import RunFolder

    own = {"seed": seed} | ({} if iterations is None else {"iterations": iterations})
    config = preset(method, dataset, ipc, scale, own | _changes(changes))
    if config.method not in METHODS:
        from iidlib.config import suggest

        raise InputError(f"unknown method {config.method!r}{suggest(config.method, METHODS)}")
    _check_networks(config)
    loaded = _load(config.dataset, data_root, device)
    folder = out or Path("runs") / f"{config.method}-{config.dataset}-ipc{config.ipc}-{config.scale}-seed{config.seed}"
    console.print(
        f"{config.method} on {config.dataset}: {config.ipc} images a class, {config.iterations} iterations, "
        f"scale {config.scale}, {loaded.train.device}",
        highlight=False,
    )
    begun = _iterations_done(folder) if resume else 0
    try:
        result = run(config, loaded, out=folder, resume=resume, progress=sys.stderr.isatty())
    except Stopped as stop:
        again = [part for part in sys.argv[1:] if part != "--resume"] + ["--resume"]
        again += [] if out else ["--out", str(folder)]
        errors.print(f"{stop}\ngo on with: {shlex.join(['iid', *again])}", highlight=False, markup=False)
        raise typer.Exit(128 + stop.signal) from None
    except FloatingPointError as error:
        errors.print(f"failed: {error}; checkpoints are kept in {folder}", highlight=False, markup=False)
        raise typer.Exit(1) from None
    result.synthetic.save_png(folder / "synthetic.png")
    console.print(f"{result.seconds:.0f} s; images in {folder / 'synthetic.png'}", highlight=False, markup=False)
    if not evaluate:
        return
    facts = {
        "iterations": config.iterations,
        "seconds_per_iteration": result.seconds / max(1, config.iterations - begun),
        "pool_accuracies": " ".join(f"{value:.2f}" for value in result.pool.accuracies) if result.pool else "",
    }
    frames = [_evaluated(result.synthetic, loaded, config, config.method, config.eval, **facts)]
    if baseline:
        chosen = random_real(loaded.train, config.ipc, config.seed)
        frames.insert(0, _evaluated(chosen, loaded, config, "random", config.eval, iterations=0))
    scores = pd.concat(frames, ignore_index=True)
    RunFolder(folder).write_scores(scores)
    if results:
        _append(results, scores)
    caption = f"last iterate, mean ± std over networks, one distillation; {_protocol_text(config.eval, config.method)}"
    console.print(_table(scores, f"{config.dataset}, IPC {config.ipc}, scale {config.scale}", caption))


def _iterations_done(folder: Path) -> int:
    """Iterations of the newest checkpoint in a run's folder."""
    done = [int(path.stem) for path in (folder / "checkpoints").glob("*.safetensors") if path.stem.isdigit()]
    return max(done, default=0)


def _check_networks(config: RunConfig) -> None:
    """Unknown networks are found before anything starts."""
    from iidlib.config import suggest
    from iidlib.networks import NETWORKS

    for name in (config.match.network, config.pool.network, *config.eval.networks):
        if name not in NETWORKS:
            raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")


@app.command()
def evaluate(
    path: Annotated[str, typer.Argument(help="A run's folder or a synthetic set; or the word random, or whole.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Else the one the set was made for.")] = None,
    networks: Annotated[str | None, typer.Option("--networks", help="Such as convnet3,alexnet.")] = None,
    num_eval: Annotated[int | None, typer.Option("--num-eval", help="Networks of each architecture.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the set; 1001 in the paper.")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Protocol to start from; else the set's own.")] = None,
    ipc: Annotated[int, typer.Option("--ipc", help="Images a class, for random.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Of the networks, and of the choice of random images.")] = 0,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the scores.")] = None,
    results: Annotated[Path | None, typer.Option("--results", help="CSV file to which the scores are added.")] = None,
) -> None:
    """Train networks from scratch on a set and test them on the real test images."""
    from iidlib.evaluation import random_real, whole_set_protocol
    from iidlib.runs import atomic_write
    from iidlib.synthetic import SyntheticSet

    if out is not None and out.exists():
        raise InputError(f"{out} exists already; nothing was overwritten: give another --out")
    synthetic = None if path in ("random", "whole") else SyntheticSet.load(path)
    provenance = synthetic.provenance if synthetic else {}
    name = dataset or (synthetic.spec.name if synthetic else "cifar10-mini")
    label = path if synthetic is None else provenance.get("method", "unknown")
    given = {"eval.networks": networks, "eval.num_eval": num_eval, "eval.epochs": epochs, "seed": seed}
    chosen = {key: value for key, value in given.items() if value is not None} | _changes(changes)
    start = preset(label, name, synthetic.ipc if synthetic else ipc, scale or provenance.get("scale", "tour"))
    config = override(start, chosen)
    _check_networks(config)
    loaded = _load(name, data_root, device)
    protocol = config.eval
    if path == "whole" and epochs is None and "eval.epochs" not in chosen:
        protocol = whole_set_protocol(protocol)
    images: Any = synthetic
    if path == "random":
        images = random_real(loaded.train, config.ipc, seed)
    elif path == "whole":
        images = loaded.train
    facts = {"iterations": int(provenance.get("iterations", 0)), "distillation_seed": provenance.get("seed", "")}
    scores = _evaluated(images, loaded, config, label, protocol, **facts)
    if out is not None:
        atomic_write(out, scores.to_json(orient="records", indent=2) + "\n")
    if results:
        _append(results, scores)
    caption = f"mean ± std over networks; {_protocol_text(protocol, label)}"
    console.print(_table(scores, f"tested on {name}", caption))


@app.command()
def experts(
    out: Annotated[Path, typer.Option("--out", help="Folder of the pool, made or completed.")],
    dataset: DatasetName = "cifar10-mini",
    network: Annotated[str, typer.Option("--network", help="Architecture.")] = "resnet18",
    count: Annotated[int, typer.Option("--count", help="Networks.")] = 20,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training set.")] = 40,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
) -> None:
    """Train the pool of networks behind class centralization; a pool begun before is completed."""
    from iidlib.extractors import trained_pool

    own = {"pool.network": network, "pool.count": count, "pool.epochs": epochs}
    config = preset("dm-cc", dataset, 10, "paper", own | _changes(changes) | {"pool.path": str(out)})
    _check_networks(config)
    loaded = _load(dataset, data_root, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    pool = trained_pool(loaded, config.pool, device=loaded.train.device, compile=config.compute.compile)
    table = Table(title=f"{len(pool.networks)} {network} in {escape(str(out))}")
    table.add_column("network")
    table.add_column("held-out accuracy (%)", justify="right")
    for number, value in enumerate(pool.accuracies):
        table.add_row(str(number), f"{value:.1f}")
    console.print(table)
    console.print(f"use it with: --set pool.path={out}", highlight=False, markup=False)


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file: notebook, and product or zip of parameters.")],
    workers: Annotated[int, typer.Option("--workers", help="Notebooks executed at a time.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for notebooks and table; else below runs/.")] = None,
) -> None:
    """Execute a chapter over a grid of parameters, each point a notebook of its own (papermill)."""
    from iidlib.sweep import load_grid, run_sweep

    plan = load_grid(grid)
    folder = out or Path("runs") / f"sweep-{grid.stem}"
    frame = run_sweep(plan, folder, workers=workers, progress=sys.stderr.isatty())
    failed = frame[frame["status"] != "done"]
    for row in failed.to_dict("records"):
        errors.print(f"failed: {row['notebook']}: {row['error']}", highlight=False, markup=False)
    console.print(
        f"{len(frame) - len(failed)} of {len(frame)} points done; table in {folder / 'sweep.csv'}",
        highlight=False,
        markup=False,
    )
    if len(failed):
        raise typer.Exit(1)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller shapes and fewer repetitions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Time an iteration against the per-class loop, with the same losses, in one run."""
    from iidlib import bench as benchmark

    report = benchmark.measure(quick=quick, device=device)
    if as_json:
        typer.echo(report.to_json())
        return
    rows = report.rows()
    table = Table(title="seconds an iteration")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


@data_app.command("list")
def data_list(data_root: DataRoot = None) -> None:
    """Show the known data sets and where they were found."""
    from iidlib.data import datasets

    table = Table()
    for name in ("name", "train", "test", "found", "how to get it"):
        table.add_column(name)
    for row in datasets(data_root):
        table.add_row(row.name, f"{row.train_images}", f"{row.test_images}", escape(row.found or "no"), escape(row.get))
    console.print(table)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="The data set.")],
    data_root: DataRoot = None,
) -> None:
    """Download a data set into the data root, with checksums."""
    from iidlib.data import load_dataset

    loaded = load_dataset(name, data_root=data_root, download=True)
    console.print(f"{name}: {len(loaded.train)} training and {len(loaded.test)} test images, complete")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="The data set.")],
    data_root: DataRoot = None,
) -> None:
    """Compare every file of a data set with its checksum."""
    from iidlib.data import check

    report = check(name, data_root)
    for file in report.files:
        console.print(f"{file.state:8} {file.path} {file.detail}".rstrip(), highlight=False, markup=False)
    if not report.ok:
        raise InputError(f"{name} is not whole; {report.get}")
    console.print(f"{name}: {len(report.files)} files, all whole", highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("iidlib").setLevel(logging.INFO)
    # outside of the loop, which handles its own stop, SIGTERM ends the process as SIGINT does
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = app(args=arguments, prog_name="iid", standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped")
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    """One line on stderr, exit status 2."""
    errors.print(f"iid: {' '.join(message.split())}", highlight=False, markup=False)
    sys.exit(2)


if __name__ == "__main__":
    main()
