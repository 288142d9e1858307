"""Class-incremental learning with a distilled memory: classes arrive in steps, only their distilled images are kept.

At each step the new classes are distilled from their own real images, the result is added to the memory, and new
networks are trained on the memory alone and tested on all classes seen so far. Every step has its own dataset of the
step's classes, so nothing of a later class can leak into an earlier one: neither real images nor the pool of pretrained
networks behind class centralization, which is trained on the step's classes alone.

Source: Prabhu et al., *GDumb* (ECCV 2020), as used for DM by Zhao and Bilen's ``CL_DM.py``: CIFAR-100, 20 images per
class, 5 or 10 steps, class orders ``RandomState(0..4).permutation``, networks trained from scratch at each step.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pandas as pd
import torch

from iidlib.bars import bar
from iidlib.config import RunConfig
from iidlib.config.uses import chosen_by_pool
from iidlib.data import Dataset, RealSet
from iidlib.distillation import METHODS, check_dataset, distill
from iidlib.errors import InputError, listed, suggest
from iidlib.evaluation import FinishedNetworks, check_evaluation, choose, evaluate, random_real
from iidlib.evaluation.coresets import CHOICES, check_choice
from iidlib.features import choosing_pool
from iidlib.runs import RunFolder
from iidlib.synthetic import SyntheticSet

__all__ = ["MEMORIES", "class_order", "class_steps", "learn_in_steps", "of_classes"]

logger = logging.getLogger("iidlib")

MEMORIES = ("random", "random-mosaic", *CHOICES)
"""Contents of a memory other than distilled images: real ones, chosen at random or by their features."""


def class_order(classes: int, seed: int) -> list[int]:
    """Order in which classes arrive: numpy's legacy permutation, so that orders equal those of the released script.

    Explained in chapter 11.

    Raises:
        InputError: for a seed that numpy does not accept.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed of the order of classes must lie in 0 to {2**32 - 1}, got {seed}")
    return np.random.RandomState(seed).permutation(classes).tolist()


def class_steps(order: Sequence[int], steps: int | Sequence[int]) -> list[list[int]]:
    """An order of classes, split into steps. Explained in chapter 11.

    Args:
        order: the classes.
        steps: number of steps of equal size, as in the literature; or the number of classes of each step, such as
            ``(4, 3, 3)``.

    Raises:
        InputError: if the number of classes is not a multiple of the number of steps, or the classes of the steps do
            not add up to it.

    Example:
        >>> class_steps([5, 3, 1, 0, 2], (3, 2))
        [[5, 3, 1], [0, 2]]
    """
    classes = len(order)
    if isinstance(steps, int | np.integer):
        if steps < 1 or classes % steps:
            fits = ", ".join(str(n) for n in range(1, classes + 1) if classes % n == 0)
            uneven = [classes // steps + (i < classes % steps) for i in range(steps)] if 1 < steps < classes else []
            or_uneven = f", or the classes of each step, such as {','.join(map(str, uneven))}" if uneven else ""
            raise InputError(
                f"{classes} classes cannot be split into {steps} equal steps; steps can be {fits}{or_uneven}"
            )
        sizes = [classes // int(steps)] * int(steps)
    else:
        sizes, text = list(steps), ",".join(map(str, steps))
        if not sizes or min(sizes) < 1:
            raise InputError(f"every step needs at least one class, got {text or 'no steps'}")
        if sum(sizes) != classes:
            raise InputError(
                f"steps of {text} classes have {sum(sizes)} in total, but the dataset has {classes}; "
                f"give numbers that add up to {classes}"
            )
    ends = np.cumsum(sizes).tolist()
    return [list(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """A dataset of some classes only, renumbered in the given order. Explained in chapter 11."""
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
    steps: int | Sequence[int] = 5,
    order: int = 0,
    out: str | Path | None = None,
    allow_mismatch: bool = False,
    progress: bool | None = False,
    on_step: Callable[[pd.DataFrame], None] | None = None,
    finished: FinishedNetworks | None = None,
) -> pd.DataFrame:
    """Learns a dataset's classes step by step from a memory of ``config.ipc`` images per class.

    Explained in chapter 11.

    Args:
        config: settings of a distillation method, or with a method of ``MEMORIES`` for real images in the memory;
            ``config.eval`` describes the training on the memory. The pool of a step with a fifth of the classes is
            trained for five times the epochs of ``config.pool``, so for as many iterations as one of all classes.
        dataset: the dataset with all classes.
        steps: number of steps of equal size, or the number of classes of each step.
        order: seed of the order of classes.
        out: a folder for the runs of the steps, so that an interrupted call can be resumed, also within a step; without
            it nothing is saved.
        allow_mismatch: resume a step even where conditions have changed, as in `distill`.
        progress: draw progress bars; None draws them on a terminal, and otherwise logs a line every minute.
        on_step: called with the rows of each step when it is done.
        finished: keeps the finished networks of all steps, as in `iidlib.evaluate`.

    Returns:
        A row per step and network, with columns step (from 1), steps, step_sizes (classes of each step, such as
        "4,3,3"), order, classes (seen so far), network, evaluation_seed, accuracy (percent, on the test images of the
        classes seen), epochs, images (in the memory), seconds.

    Raises:
        InputError: for steps that do not fit, a step without test images, a step of one class if the method needs two,
            an unknown method, settings for another dataset, or as ``distill``.
    """
    known_methods = (*METHODS, *MEMORIES)
    if config.method not in known_methods:
        raise InputError(f"unknown method {config.method!r} for a memory{suggest(config.method, known_methods)}")
    check_dataset(config, dataset)
    check_evaluation(config.eval, dataset.spec, config.compute)
    groups = class_steps(class_order(dataset.train.num_classes, order), steps)
    _check_steps(config, dataset, groups)
    if out is not None:
        _check_kept(Path(out), dataset, groups)
    sizes = ",".join(str(len(group)) for group in groups)
    memory: list[SyntheticSet] = []
    seen: list[int] = []
    rows = []
    for number, group in enumerate(groups, 1):
        folder = Path(out) / f"step-{number:02d}" if out is not None else None
        trained_longer = _with_longer_pool(config, dataset.train.num_classes / len(group))
        try:
            memory.append(_remembered(trained_longer, of_classes(dataset, group), folder, allow_mismatch, progress))
        except InputError as error:
            if folder is None or number == 1 or config.method not in METHODS or (folder / "config.yaml").is_file():
                raise
            steps_kept = "step 1 is" if number == 2 else f"steps 1 to {number - 1} are"
            # other remedies, such as more epochs, would not match the settings of the finished steps
            change = " --set pool.untrained=warn" if "pool.untrained=warn" in str(error) else ""
            raise InputError(
                f"step {number} cannot start: {error}; {steps_kept} kept in {out}: resume with "
                f"--resume{change}, or give another --out"
            ) from None
        seen += group
        known = of_classes(dataset, seen)
        images = torch.cat([one.images for one in memory])
        labels = torch.arange(len(seen), device=images.device).repeat_interleave(config.ipc)
        # a single step's fingerprint of the data would be incomplete
        provenance = {key: text for key, text in memory[0].provenance.items() if key != "data"}
        whole = SyntheticSet(images, labels, known.spec, provenance, memory[0].factor)
        step = f"evaluating step {number} of {len(groups)}"
        with bar(step, config.eval.all_epochs, "epoch", shown=progress) as progress_bar:
            frame = evaluate(
                whole,
                known,
                protocol=config.eval,
                seed=config.seed,
                compute=config.compute,
                on_epochs=progress_bar.advance,
                finished=finished,
            )
        columns: dict[str, Any] = {
            "step": number,
            "steps": len(groups),
            "step_sizes": sizes,
            "order": order,
            "classes": len(seen),
        }
        frame = frame.assign(**columns)[[*columns, *frame.columns]]
        rows.append(frame)
        if on_step is not None:
            on_step(frame)
    return pd.concat(rows, ignore_index=True)


def _check_steps(config: RunConfig, dataset: Dataset, groups: Sequence[Sequence[int]]) -> None:
    """Checks before any training whether every step can be learned and tested.

    Warns about classes without test images, which are learned but do not enter accuracies, and about steps of a single
    class, on which no network learns to distinguish classes.

    Args:
        config: the settings.
        dataset: the dataset with all classes.
        groups: the classes of each step, from `class_steps`.

    Raises:
        InputError: if no class of a step has test images, a step of one class needs a network that distinguishes
            classes, or ``pool.path`` names one folder for the pools of several steps.
    """
    names, tested = dataset.spec.classes, dataset.test.counts
    untested = [label for group in groups for label in group if not tested[label]]
    for number, group in enumerate(groups, 1):
        if set(group) <= set(untested):
            raise InputError(
                f"step {number} ({listed([names[label] for label in group], 10)}) has no test images, so it "
                "cannot be tested; add some, or combine its classes with others by another order or other steps"
            )
    if untested:
        logger.warning(
            "no test images: %s; accuracies are those of the other classes", listed([names[n] for n in untested], 10)
        )
    if config.method in CHOICES:
        check_choice(config.method, dataset.train, config.ipc)
    if _needs_pool(config) and config.pool.path and len(groups) > 1:
        raise InputError(
            f"pool.path ({config.pool.path}) holds the pool of one dataset, but every step has its own classes; omit "
            "it to keep the pools in the cache"
        )
    alone = {number: names[group[0]] for number, group in enumerate(groups, 1) if len(group) == 1}
    if not alone or len(names) == 1:
        return
    steps = listed([f"step {number} ({name})" for number, name in alone.items()], 10)
    if _needs_pool(config):
        what = f"syn.init={config.syn.init}" if chosen_by_pool(config) else config.method
        start = " with syn.init=real" if chosen_by_pool(config) else ""
        raise InputError(
            f"{what} needs networks that distinguish classes, but {steps} has one class; give every step at least two "
            f"classes, or use dm, dm-cm or random{start}"
        )
    logger.warning("only one class in %s: networks trained on it alone cannot learn to distinguish classes", steps)


def _check_kept(out: Path, dataset: Dataset, groups: Sequence[Sequence[int]]) -> None:
    """Checks before any work whether the finished steps in a folder have the same classes.

    Raises:
        InputError: if one of them distilled other classes.
    """
    for number, group in enumerate(groups, 1):
        folder = out / f"step-{number:02d}"
        if not (folder / "synthetic.safetensors").is_file():
            continue
        expected = tuple(dataset.spec.classes[label] for label in group)
        if (classes := SyntheticSet.load(folder).spec.classes) != expected:
            raise InputError(
                f"the run in {folder} distilled other classes ({listed(classes)}, not {listed(expected)}); "
                "resume with the steps and the order it was started with, or give another --out"
            )


def _needs_pool(config: RunConfig) -> bool:
    """Whether a step trains a pool of networks on its classes."""
    if config.method not in METHODS:
        return config.method in CHOICES
    return METHODS[config.method].needs_pool(config)


def _with_longer_pool(config: RunConfig, times: float) -> RunConfig:
    """Settings with the pool's epochs multiplied by `times`, rounded."""
    kept = tuple(round(epochs * times) for epochs in config.pool.epochs_kept)
    return attrs.evolve(
        config, pool=attrs.evolve(config.pool, epochs=round(config.pool.epochs * times), epochs_kept=kept)
    )


def _remembered(
    config: RunConfig, dataset: Dataset, folder: Path | None, allow_mismatch: bool, progress: bool | None
) -> SyntheticSet:
    """Images of one step's classes that are put into the memory."""
    if config.method.startswith("random"):
        return random_real(dataset.train, config.ipc, config.seed, config.syn.factor)
    if config.method in CHOICES:
        # one network for all seeds: here seeds vary the order of classes, which varies the images of a step
        pool = choosing_pool(dataset, attrs.evolve(config, seed=0))
        return choose(config.method, dataset.train, config.ipc, pool.networks[0], compute=config.compute)
    started = folder is not None and (folder / "config.yaml").is_file()
    if folder is not None and started and RunFolder(folder).finished:
        kept = SyntheticSet.load(RunFolder.reopen(folder, config).path, dataset.train.device)
        if kept.provenance.get("data") != dataset.train.fingerprint:
            raise InputError(f"the run in {folder} distilled other images; give another --out")
        return kept
    return distill(
        config, dataset, out=folder, resume=started, allow_mismatch=allow_mismatch, progress=progress
    ).synthetic
