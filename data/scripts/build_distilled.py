"""Adds the set of a finished run to ``data/distilled``: stored with 8 bits, evaluated in that form, with a card.

    python data/scripts/build_distilled.py RUN NAME [--data-root FOLDER]
    python data/scripts/build_distilled.py distil METHOD IPC RUN NAME [--data-root FOLDER]   # with snapshots
    python data/scripts/build_distilled.py          # only the page of cards
    python data/scripts/build_distilled.py seal     # rewrites the sets in the current file format, with equal tensors

A set consists of three files: ``NAME.safetensors``, ``NAME.png`` (a picture of it) and ``NAME.json``: one row for each
network trained on it, and for each trained on as many random real images, at the run's scale. ``README.md`` shows the
cards. A set distilled for this folder (CIFAR-10 at scale laptop) also has a folder ``NAME`` with snapshots of the set,
starting with the initial images, and ``way.png``: one row per snapshot, with the first image of each class.
"""

import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from iidlib.config import RunConfig, differing, preset

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "distilled"
WAY = (0, 0.01, 0.05, 0.2, 0.5)
"""Fractions of the iterations at which snapshots are saved."""

INTRODUCTION = """\
# Distilled sets

Sets distilled with this library, stored with 8 bits per channel. Each card says how the set was made and which accuracy
it reaches. The accuracy is that of the *stored* file on all test images of the dataset: mean ± standard deviation over
the networks trained on it. The same number of random real images, evaluated under the same protocol, is reported
alongside. Nothing was selected by test accuracy: each set is from the last iteration of one seed. How the sets of scale
`paper` were made is described [beside their rows](../results/README.md#cifar-10-at-scale-paper).

```python
from iidlib import SyntheticSet

SyntheticSet.load("data/distilled/{first}.safetensors")
```

The sets were initialised with images of CIFAR-10, whose terms are in [data/README.md](../README.md).
"""


def cards() -> dict[str, list[dict]]:
    """Rows of all sets, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def reached(rows: list[dict], method: str) -> str:
    """Mean and standard deviation over networks, in percent."""
    values = [row["accuracy"] for row in rows if row["method"] == method]
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def page() -> str:
    """Text of the page of cards."""
    parts = [INTRODUCTION.format(first=next(iter(cards()), "NAME"))]
    for name, rows in cards().items():
        first = next(row for row in rows if not row["method"].startswith("random"))
        random = list(dict.fromkeys(row["method"] for row in rows if row["method"].startswith("random")))
        table = [(f"`{first['method']}`", first["method"])] + [(label.replace("-", " "), label) for label in random]
        lines = [f"| {text} | {reached(rows, label)} |" for text, label in table]
        networks = f"{sum(row['method'] == first['method'] for row in rows)} {first['network']}"
        parts.append(
            f"## {name}\n\n![The images of the set]({name}.png)\n\n"
            f"`{first['method']}` on {first['dataset']}, IPC {first['ipc']}, scale `{first['scale']}`, seed "
            f"{first['seed']}, {first['iterations']} iterations. Evaluated with {networks}: {first['protocol']}.\n\n"
            "| set | accuracy (%) |\n| --- | --- |\n"
            + "\n".join(lines)
            + "\n\n"
            + on_the_way(name)
            + f"Made by `{first['made_by']}`, evaluated on {first['date'][:10]} with torch {first['torch']}, "
            f"iidlib {first['iidlib']}.\n"
        )
    return "\n".join(parts)


def snapshots(name: str) -> dict[int, Path]:
    """Snapshot files of a set, by iteration; empty if there are none."""
    return {int(path.stem): path for path in sorted((FOLDER / name).glob("*.safetensors"))}


def on_the_way(name: str) -> str:
    """Text of the page about the snapshots of a set."""
    if not (saved := snapshots(name)):
        return ""
    iterations = ", ".join(map(str, saved))
    return (
        f"![An image of each class during the distillation]({name}/way.png)\n\n"
        f"Snapshots, one row each: after {iterations} iterations (the sets are in `{name}/`), and at the end.\n\n"
    )


def distil(method: str, ipc: int, run: Path, name: str, options: list[str]) -> None:
    """Distils a set at scale laptop, saves snapshots, and adds the set."""
    import numpy as np

    from iidlib import SyntheticSet, distill, load_dataset, plots

    config = preset(method, "cifar10", ipc, "laptop")
    points = tuple(round(share * config.iterations) for share in WAY)
    sets: dict[int, SyntheticSet] = {}
    data = load_dataset("cifar10", data_root=data_root(options))
    last = distill(config, data, out=run, on_iteration=sets.__setitem__, iterations_to_show=points).synthetic
    add(run, name, options)  # the existing files stay until this succeeds
    for old in snapshots(name).values():
        old.unlink()
    (FOLDER / name).mkdir(exist_ok=True)
    for iteration, synthetic in sets.items():
        synthetic.save(FOLDER / name / f"{iteration:06d}.safetensors", eight_bits=True)
    rows = np.stack([one.to_uint8()[:: one.ipc].cpu().numpy() for one in (*sets.values(), last)])
    labels = [f"{done} iterations" for done in (*sets, config.iterations)]
    ax = plots.image_grid(rows, row_labels=labels, ax=plots.panels(1, height=3.4)[0])
    save_opaque(ax.get_figure(), FOLDER / name / "way.png", dpi=100)


def save_opaque(figure: Any, path: Path, dpi: int, caption: str = "") -> None:
    """Writes a figure as PNG without the channel of transparency, which takes a tenth of the file and shows nothing."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    drawn, texts = io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    if caption:
        texts.add_text("Description", caption)
    Image.open(drawn).convert("RGB").save(path, pnginfo=texts, optimize=True)


def data_root(options: list[str]) -> str | None:
    """Folder of the datasets, from the command line."""
    return options[options.index("--data-root") + 1] if "--data-root" in options else None


def add(run: Path, name: str, options: list[str]) -> None:
    """Stores a run's set and evaluates the stored file."""
    from iidlib import SyntheticSet
    from iidlib.runs import RunFolder

    synthetic, config = SyntheticSet.load(run), RunFolder(run).config()
    with tempfile.TemporaryDirectory() as made:  # only until the evaluation has succeeded
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
    """The command that distils a set with these settings."""
    command = f"iid distill {config.method} --dataset {config.dataset} --ipc {config.ipc} --scale {config.scale}"
    command += f" --seed {config.seed}"
    if config.iterations != preset(config.method, config.dataset, config.ipc, config.scale).iterations:
        command += f" --iterations {config.iterations}"
    return " ".join([command, *(f"--set {key}={value}" for key, value in differing(config).items())])


def seal() -> None:
    """Rewrites each set in the current file format, with new checksums; the tensors stay bit-identical."""
    from safetensors.torch import load

    from iidlib import SyntheticSet

    for path in sorted(FOLDER.rglob("*.safetensors")):
        before, read = load(path.read_bytes()), SyntheticSet.load(path)
        copy = path.with_suffix(".sealed")
        read.save(copy, eight_bits=before["images"].dtype.itemsize == 1)
        after, again = load(copy.read_bytes()), SyntheticSet.load(copy)
        same = all(before[name].equal(after[name]) and before[name].dtype == after[name].dtype for name in before)
        metadata = [(one.spec, one.provenance, one.factor) for one in (read, again)]
        if not same or before.keys() != after.keys() or metadata[0] != metadata[1]:
            copy.unlink()
            raise SystemExit(f"rewriting {path} would change its content; it was left unchanged")
        copy.replace(path)


def main(arguments: list[str]) -> None:
    """Adds or distils the named set, or seals all sets, and writes the page."""
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
