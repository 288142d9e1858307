"""Class-incremental learning with a distilled memory: classes come in steps, and only their distilled images are kept.

At each step the new classes are distilled from their own real images, the memory grows by the result, and fresh
networks are trained on the memory alone and tested on all classes seen so far. Every step has a data set of its own, of
the step's classes only, so that nothing of a later class can leak into an earlier one: neither the real images nor the
pool of trained networks behind class centralization, which sees the step's classes alone.

Source: Prabhu et al., *GDumb* (ECCV 2020), as Zhao and Bilen's ``CL_DM.py`` uses it for DM: CIFAR-100, 20 images a
class, 5 or 10 steps, class orders ``RandomState(0..4).permutation``, networks trained from scratch at each step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np
import pandas as pd
import torch

from iidlib.config import RunConfig
from iidlib.data import Dataset, RealSet
from iidlib.distillation import METHODS, check_dataset, distill
from iidlib.errors import InputError, suggest
from iidlib.evaluation import check_evaluation, choose, evaluate, random_real
from iidlib.evaluation.coresets import CHOICES
from iidlib.features import trained_pool
from iidlib.runs import RunFolder
from iidlib.synthetic import SyntheticSet

__all__ = ["MEMORIES", "class_order", "class_steps", "learn_in_steps", "of_classes"]

MEMORIES = ("random", "random-mosaic", *CHOICES)
"""What a memory may hold beside distilled images: real ones, chosen at random or by their features."""


def class_order(classes: int, seed: int) -> list[int]:
    """The order in which classes come: numpy's legacy permutation, as in the released script, for the same orders.

    Explained in chapter 11.
    """
    return np.random.RandomState(seed).permutation(classes).tolist()


def class_steps(order: Sequence[int], steps: int) -> list[list[int]]:
    """An order of classes cut into steps of equal size.

    Raises:
        InputError: if the number of classes is no multiple of the number of steps.
    """
    if steps < 1 or len(order) % steps:
        fits = ", ".join(str(n) for n in range(1, len(order) + 1) if len(order) % n == 0)
        raise InputError(f"{len(order)} classes make no {steps} equal steps; steps can be {fits}")
    size = len(order) // steps
    return [list(order[first : first + size]) for first in range(0, len(order), size)]


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """A data set of some classes only, numbered anew in the order given."""
    spec = dataclasses.replace(dataset.spec, classes=tuple(dataset.spec.classes[label] for label in classes))

    def part(real: RealSet) -> RealSet:
        index = torch.cat([real.of_class(label) for label in classes])
        labels = torch.arange(len(classes)).repeat_interleave(real.counts[list(classes)])
        return RealSet(real.images[index.to(real.device)], labels.to(real.device), spec)

    return Dataset(dataset.name, part(dataset.train), part(dataset.test), spec)


def learn_in_steps(
    config: RunConfig,
    dataset: Dataset,
    *,
    steps: int = 5,
    order: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
    on_step: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Learns a data set's classes step by step from a memory of ``config.ipc`` images a class. Explained in chapter 11.

    Args:
        config: of a distillation method, or with a method out of ``MEMORIES`` for real images in the memory;
            ``config.eval`` says how networks are trained on the memory. A step's pool makes ``steps`` times the passes
            of ``config.pool``, over as many times fewer images, so that it is trained as long as one of all classes.
        dataset: all classes.
        steps: how many steps its classes are cut into.
        order: seed of the order of classes.
        out: a folder for the runs of the steps; an interrupted one goes on where it stopped, step by step and within
            a step. Nothing is kept without it.
        progress: show progress bars.
        on_step: called with the rows of each step when it is done.

    Returns:
        A row for each step and network, with columns step (from 1), steps, order, classes (seen so far),
        network, evaluation_seed, accuracy (percent, on the test images of the classes seen), epochs, images (in
        the memory), seconds.

    Raises:
        InputError: for a number of steps that does not fit, an unknown method, settings for another dataset, or what
            ``distill`` refuses.
    """
    known_methods = (*METHODS, *MEMORIES)
    if config.method not in known_methods:
        raise InputError(f"unknown method {config.method!r} for a memory{suggest(config.method, known_methods)}")
    check_dataset(config, dataset)
    check_evaluation(config.eval, dataset.spec, config.compute)
    groups = class_steps(class_order(dataset.train.num_classes, order), steps)
    passes_kept = tuple(passes * steps for passes in config.pool.epochs_kept)
    longer = attrs.evolve(config.pool, epochs=config.pool.epochs * steps, epochs_kept=passes_kept)
    config = attrs.evolve(config, pool=longer)
    memory: list[SyntheticSet] = []
    seen: list[int] = []
    rows = []
    for number, group in enumerate(groups, 1):
        folder = Path(out) / f"step-{number:02d}" if out is not None else None
        memory.append(_remembered(config, of_classes(dataset, group), folder, progress))
        seen += group
        known = of_classes(dataset, seen)
        images = torch.cat([one.images for one in memory])
        labels = torch.arange(len(seen), device=images.device).repeat_interleave(config.ipc)
        # of the images behind it one step's provenance would tell a part only
        provenance = {key: text for key, text in memory[0].provenance.items() if key != "data"}
        whole = SyntheticSet(images, labels, known.spec, provenance, memory[0].factor)
        frame = evaluate(whole, known, protocol=config.eval, seed=config.seed, compute=config.compute)
        where = {"step": number, "steps": steps, "order": order, "classes": len(seen)}
        frame = frame.assign(**where)[[*where, *frame.columns]]
        rows.append(frame)
        if on_step is not None:
            on_step(frame)
    return pd.concat(rows, ignore_index=True)


def _remembered(config: RunConfig, dataset: Dataset, folder: Path | None, progress: bool) -> SyntheticSet:
    """The images of one step's classes that go into the memory."""
    if config.method.startswith("random"):
        return random_real(dataset.train, config.ipc, config.seed, config.syn.factor)
    if config.method in CHOICES:
        one = attrs.evolve(config.pool, count=1)
        pool = trained_pool(dataset, one, compute=config.compute)
        return choose(config.method, dataset.train, config.ipc, pool.networks[0])
    begun = folder is not None and (folder / "config.yaml").is_file()
    if folder is not None and begun and RunFolder(folder).finished:
        kept = SyntheticSet.load(RunFolder.reopen(folder, config).path, dataset.train.device)
        if kept.provenance.get("data") != dataset.train.fingerprint:
            raise InputError(f"the run in {folder} distilled other classes or images; give another --out")
        return kept
    return distill(config, dataset, out=folder, resume=begun, progress=progress).synthetic
