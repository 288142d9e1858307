"""Draws the pictures of the front pages from stored sets and real images of equal storage; needs CIFAR-10.

    python data/scripts/build_pictures.py [--data-root FOLDER]

``book/_static/front.png`` is for the book, ``book/_static/hero.png`` for the README. Their accuracies come from the
cards of the sets. Each picture stores its caption, which a test compares with the cards.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from build_distilled import FOLDER, cards, data_root, reached, save_opaque

from iidlib import SyntheticSet, load_dataset, plots
from iidlib.evaluation import random_real

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
FRONT = "cifar10-iid-idm-ipc1-laptop"
HERO = "cifar10-iid-plus-ipc10-laptop"


def front_caption() -> str:
    """Caption of the book's picture, from the card of its set."""
    rows = cards()[FRONT]
    return f"10 real images {reached(rows, 'random')} %, 10 distilled images {reached(rows, 'iid-idm')} %"


def hero_caption() -> str:
    """Caption of the README's picture, from the card of its set."""
    rows = cards()[HERO]
    names = {"random": "real images", "random-mosaic": "mosaics of real images", "iid-plus": "distilled mosaics"}
    return ", ".join(f"100 {name} {reached(rows, method)} %" for method, name in names.items())


def front(root: str | None) -> None:
    """Draws a row of real images and a row of distilled ones, one of each class."""
    stored = SyntheticSet.load(FOLDER / f"{FRONT}.safetensors")
    real = random_real(load_dataset("cifar10", data_root=root).train, stored.ipc, int(stored.provenance["seed"]))
    images = np.concatenate([one.to_uint8().numpy() for one in (real, stored)])  # [2 C, K, H, W]
    labels = [text.replace("images ", "images\n") for text in front_caption().split(", ")]
    rows = images.reshape(2, 10, *images.shape[1:])
    ax = plots.image_grid(rows, row_labels=labels, ax=plots.panels(1, height=2.2)[0])
    save(ax.get_figure(), "front.png", front_caption())


def hero(root: str | None) -> None:
    """Draws three sets of equal storage side by side, with ten images of each class per row."""
    stored = SyntheticSet.load(FOLDER / f"{HERO}.safetensors")
    train, seed = load_dataset("cifar10", data_root=root).train, int(stored.provenance["seed"])
    sets = [random_real(train, stored.ipc, seed), random_real(train, stored.ipc, seed, factor=stored.factor), stored]
    axes = plots.panels(3, width=12, height=4.3)
    for ax, one, text in zip(axes, sets, hero_caption().split(", "), strict=True):
        plots.image_grid(one.to_uint8().numpy(), columns=one.ipc, ax=ax)
        name, accuracy = text.split(" ± ")[0].rsplit(" ", 1)
        ax.set_title(f"{name}: {accuracy} %", size=15)
    axes[0].get_figure().get_layout_engine().set(wspace=0.04)
    save(axes[0].get_figure(), "hero.png", hero_caption(), dpi=80)


def save(figure: Any, name: str, caption: str, dpi: int = 150) -> None:
    """Writes a picture with its caption."""
    save_opaque(figure, STATIC / name, dpi, caption)


if __name__ == "__main__":
    drawings: tuple[Callable[[str | None], None], ...] = (front, hero)
    for draw in drawings:
        draw(data_root(sys.argv[1:]))
