"""Puts the set of a finished run into ``data/distilled``: in 8 bits, evaluated again as it is stored, with its card.

    python data/scripts/build_distilled.py RUN NAME [--data-root FOLDER]
    python data/scripts/build_distilled.py distil METHOD IPC RUN NAME [--data-root FOLDER]   # with snapshots on the way
    python data/scripts/build_distilled.py          # only the page of cards
    python data/scripts/build_distilled.py seal     # the sets again, as this version writes files: the same tensors

A set is three files: ``NAME.safetensors``, ``NAME.png`` (as it is seen) and ``NAME.json``: a row for each network that
was trained on it, and on as many random real images, at the run's scale. ``README.md`` shows the cards. A set that was
distilled for this folder, CIFAR-10 at scale laptop, has a folder ``NAME`` beside it: the set after some iterations,
from the initial images on, and ``way.png``, where a row is one of them, and a column the first image of a class.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from iidlib.config import RunConfig, differing, preset

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "distilled"
WAY = (0, 0.01, 0.05, 0.2, 0.5)
"""Shares of the iterations after which a snapshot is kept."""

INTRODUCTION = """\
# Distilled sets

Sets that this library has distilled, with 8 bits a channel. Each is a card: how it was made, and what it reaches. The
accuracy is that of the *stored* file, on all test images of the data set, mean ± standard deviation over the networks
trained on it; random real images, as many and under the same protocol, stand beside it. Nothing was selected by test
accuracy: a set is that of the last iteration, and of one seed.

```python
from iidlib import SyntheticSet

SyntheticSet.load("data/distilled/{first}.safetensors")
```

The images began as images of CIFAR-10, whose terms are in [data/README.md](../README.md).
"""


def cards() -> dict[str, list[dict]]:
    """The rows of every set, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def reached(rows: list[dict], method: str) -> str:
    """Mean and standard deviation over networks, in percent."""
    values = [row["accuracy"] for row in rows if row["method"] == method]
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def page() -> str:
    """The page of cards."""
    parts = [INTRODUCTION.format(first=next(iter(cards()), "NAME"))]
    for name, rows in cards().items():
        own = next(row for row in rows if not row["method"].startswith("random"))
        beside = list(dict.fromkeys(row["method"] for row in rows if row["method"].startswith("random")))
        table = [(f"`{own['method']}`", own["method"])] + [(label.replace("-", " "), label) for label in beside]
        lines = [f"| {text} | {reached(rows, label)} |" for text, label in table]
        networks = f"{sum(row['method'] == own['method'] for row in rows)} {own['network']}"
        parts.append(
            f"## {name}\n\n![The images of the set]({name}.png)\n\n"
            f"`{own['method']}` on {own['dataset']}, IPC {own['ipc']}, scale `{own['scale']}`, seed "
            f"{own['seed']}, {own['iterations']} iterations. Judged by {networks}: {own['protocol']}.\n\n"
            "| set | accuracy (%) |\n| --- | --- |\n"
            + "\n".join(lines)
            + "\n\n"
            + on_the_way(name)
            + f"Made by `{own['made_by']}`, evaluated on {own['date'][:10]} with torch {own['torch']}, "
            f"iidlib {own['iidlib']}.\n"
        )
    return "\n".join(parts)


def snapshots(name: str) -> dict[int, Path]:
    """Files of a set on its way, by their iterations; empty where none were kept."""
    return {int(path.stem): path for path in sorted((FOLDER / name).glob("*.safetensors"))}


def on_the_way(name: str) -> str:
    """What the page shows of the snapshots of a set."""
    if not (kept := snapshots(name)):
        return ""
    told = ", ".join(map(str, kept))
    return (
        f"![An image of each class on its way]({name}/way.png)\n\n"
        f"On the way, a row each: after {told} iterations, whose sets are in `{name}/`, and at the end.\n\n"
    )


def distil(method: str, ipc: int, run: Path, name: str, options: list[str]) -> None:
    """Distils a set at scale laptop, keeps snapshots of it on the way, and adds it."""
    import numpy as np

    from iidlib import SyntheticSet, distill, load_dataset, plots

    config = preset(method, "cifar10", ipc, "laptop")
    points = tuple(round(share * config.iterations) for share in WAY)
    kept: dict[int, SyntheticSet] = {}
    data = load_dataset("cifar10", data_root=data_root(options))
    last = distill(config, data, out=run, on_iteration=kept.__setitem__, iterations_to_show=points).synthetic
    add(run, name, options)  # what is there is left alone until there is something better
    for old in snapshots(name).values():
        old.unlink()
    (FOLDER / name).mkdir(exist_ok=True)
    for iteration, synthetic in kept.items():
        synthetic.save(FOLDER / name / f"{iteration:06d}.safetensors", eight_bits=True)
    rows = np.stack([one.to_uint8()[:: one.ipc].cpu().numpy() for one in (*kept.values(), last)])
    labels = [f"{done} iterations" for done in (*kept, config.iterations)]
    ax = plots.image_grid(rows, row_labels=labels, ax=plots.panels(1, height=3.4)[0])
    ax.get_figure().savefig(FOLDER / name / "way.png", dpi=100, bbox_inches="tight", facecolor="white")


def data_root(options: list[str]) -> str | None:
    """The folder of the datasets that the command names."""
    return options[options.index("--data-root") + 1] if "--data-root" in options else None


def add(run: Path, name: str, options: list[str]) -> None:
    """Stores a run's set and evaluates what was stored."""
    from iidlib import SyntheticSet
    from iidlib.runs import RunFolder

    synthetic, config = SyntheticSet.load(run), RunFolder(run).config()
    with tempfile.TemporaryDirectory() as made:  # until the evaluation is done
        path, card, picture = (Path(made) / f"{name}.{kind}" for kind in ("safetensors", "json", "png"))
        synthetic.save(path, eight_bits=True)
        stored = SyntheticSet.load(path)
        (stored.expanded() if stored.factor > 1 else stored).save_png(picture)
        evaluate = ["evaluate", str(path), "--dataset", config.dataset, "--out", str(card), *options]
        subprocess.run([sys.executable, "-m", "iidlib.cli", *evaluate], check=True)
        rows = json.loads(card.read_text())
        for row in rows:
            row |= {"made_by": made_by(config), "command": f"iid evaluate data/distilled/{name}.safetensors"}
        card.write_text(json.dumps(rows, indent=2) + "\n")
        for file in (path, card, picture):
            shutil.copyfile(file, FOLDER / file.name)


def made_by(config: RunConfig) -> str:
    """The command that makes the set of some settings."""
    told = f"iid distill {config.method} --dataset {config.dataset} --ipc {config.ipc} --scale {config.scale}"
    told += f" --seed {config.seed}"
    if config.iterations != preset(config.method, config.dataset, config.ipc, config.scale).iterations:
        told += f" --iterations {config.iterations}"
    return " ".join([told, *(f"--set {key}={value}" for key, value in differing(config).items())])


def seal() -> None:
    """Writes each set again as this version writes files, with checksums of its own; the tensors stay bit for bit."""
    from safetensors.torch import load

    from iidlib import SyntheticSet

    for path in sorted(FOLDER.rglob("*.safetensors")):
        before, read = load(path.read_bytes()), SyntheticSet.load(path)
        copy = path.with_suffix(".sealed")
        read.save(copy, eight_bits=before["images"].dtype.itemsize == 1)
        after, again = load(copy.read_bytes()), SyntheticSet.load(copy)
        same = all(before[name].equal(after[name]) and before[name].dtype == after[name].dtype for name in before)
        facts = [(one.spec, one.provenance, one.factor) for one in (read, again)]
        if not same or before.keys() != after.keys() or facts[0] != facts[1]:
            copy.unlink()
            raise SystemExit(f"{path} would not stay what it is; nothing was changed")
        copy.replace(path)


def main(arguments: list[str]) -> None:
    """Adds or distils a set where one is named, and writes the page; or seals them."""
    if arguments[:1] == ["seal"]:
        seal()
    elif arguments[:1] == ["distil"]:
        method, ipc, run, name, *options = arguments[1:]
        distil(method, int(ipc), Path(run), name, options)
    elif arguments:
        run, name, *options = arguments
        add(Path(run), name, options)
    (FOLDER / "README.md").write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
