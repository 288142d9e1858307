"""What a user might write: distils a dataset, evaluates the images, and saves a table and a figure."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import iidlib


def main(out: Path, method: str = "iid-dm") -> pd.DataFrame:
    """Returns mean and standard deviation of the test accuracy, for distilled and random images; writes to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    dataset = iidlib.load_dataset("shapes")
    config = iidlib.preset(method, dataset.name, ipc=2, scale="ci", changes={"iterations": 4, "eval.epochs": 2})
    result = iidlib.distill(config, dataset)
    distilled: iidlib.SyntheticSet = result.synthetic
    chosen = iidlib.random_real(dataset.train, config.ipc, seed=config.seed)
    frames = []
    for label, images in {"random": chosen, method: distilled}.items():
        rows: pd.DataFrame = iidlib.evaluate(images, dataset, protocol=config.eval, seed=0)
        frames.append(rows.assign(label=label))
    scores = pd.concat(frames, ignore_index=True)
    distilled.save(out / "synthetic.safetensors")
    scores.to_csv(out / "scores.csv", index=False)
    chance = 100 / len(dataset.spec.classes)
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    iidlib.plots.accuracy_bars(scores, chance=chance, ax=left)
    iidlib.plots.image_grid(distilled.to_uint8(), columns=config.ipc, ax=right)
    figure.savefig(out / "figure.png")
    return scores.groupby("label")["accuracy"].agg(["mean", "std"])


if __name__ == "__main__":
    try:
        print(main(Path(sys.argv[1]), *sys.argv[2:3]))
    except iidlib.InputError as error:
        sys.exit(f"error: {error}")
