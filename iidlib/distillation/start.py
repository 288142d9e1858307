"""Where a distillation starts: from real images or noise, or from the images of a saved set."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import attrs
import torch
from torch import Tensor

from iidlib.config import RunConfig
from iidlib.config.uses import chosen_by_pool
from iidlib.data import DatasetSpec, RealSet, denormalize, normalize
from iidlib.errors import InputError
from iidlib.names import same_dataset
from iidlib.notes import say_once
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

__all__ = ["Start", "first_images", "starting_from"]


@dataclass(frozen=True)
class Start:
    """A set from which a run starts.

    Attributes:
        synthetic: the set.
        source: where it was read, for the record.
        digest: twelve hex digits of its images and of what they stand for.
    """

    synthetic: SyntheticSet
    source: str
    digest: str


def starting_from(config: RunConfig, init: SyntheticSet | str | Path) -> tuple[RunConfig, Start]:
    """Settings that name a set as the start, by ``syn.init=set:DIGEST``, and the set.

    Args:
        config: the settings.
        init: the set; or its file, or the folder of the finished run that holds it.

    Raises:
        InputError: for a file that is missing, damaged, or not a synthetic set.
    """
    given = isinstance(init, SyntheticSet)
    synthetic = init if isinstance(init, SyntheticSet) else SyntheticSet.load(init)
    digest = _digest(synthetic)
    if not same_dataset(synthetic.spec.name, config.dataset):
        say_once(
            logging.WARNING,
            f"the run on {config.dataset} starts from a set made from {synthetic.spec.name}; test images of the one "
            "may be among the training images of the other, and then accuracies say too much",
        )
    start = Start(synthetic, "a set given in Python" if given else str(init), digest)
    return attrs.evolve(config, syn=attrs.evolve(config.syn, init=f"set:{digest}")), start


def first_images(config: RunConfig, real: RealSet, start: Start | None) -> SyntheticSet:
    """The set before the first iteration.

    Images of a saved set are taken as they are, outside of an image's range too; where the dataset is normalised by
    another mean and standard deviation than the set was, they are converted. Where a network of the pool is to choose
    the images, which is not there yet, random ones stand in for them: as many real images are taken.

    Args:
        config: the settings.
        real: the training images.
        start: the set that ``syn.init`` names, if it names one.

    Raises:
        InputError: for a set of other classes, images per class, size, channels or factor, which is named; or where
            the settings name a set and none is given.
    """
    if start is None:
        if config.syn.init.startswith("set:"):
            raise InputError(f"syn.init={config.syn.init} is a saved set, which must be given by --init PATH")
        draws = stream(config.seed, 0, "initial images")
        init = "real" if chosen_by_pool(config) else config.syn.init
        return SyntheticSet.from_real(real, config.ipc, draws, init, config.syn.factor)
    own, spec = start.synthetic, real.spec
    wrong = "" if own.spec.classes == spec.classes else _other_classes(own.spec, spec)
    for name, has, needs in (
        ("images per class", own.ipc, config.ipc),
        ("pixels a side", own.spec.image_size, spec.image_size),
        ("channels", own.spec.channels, spec.channels),
        ("as its factor", own.factor, config.syn.factor),
    ):
        wrong = wrong or (f"it has {has} {name}, not {needs}" if has != needs else "")
    if wrong:
        raise InputError(f"the set in {start.source} cannot be the start of a run on {spec.name}: {wrong}")
    images = _in_units_of(spec, own).detach().to(real.device, torch.float32).clone()
    labels = torch.arange(real.num_classes, device=real.device).repeat_interleave(own.ipc)
    return SyntheticSet(images, labels, spec, {"init": config.syn.init}, own.factor)


def _in_units_of(spec: DatasetSpec, own: SyntheticSet) -> Tensor:
    """The images of a set, normalised as those of a dataset are."""
    if (own.spec.mean, own.spec.std) == (spec.mean, spec.std):
        return own.images  # bit for bit
    return normalize(255 * denormalize(own.images.detach(), own.spec), spec)


def _other_classes(own: DatasetSpec, spec: DatasetSpec) -> str:
    """How the classes of a set differ from a dataset's, in words."""
    if len(own.classes) != len(spec.classes):
        return f"it has {len(own.classes)} classes, not {len(spec.classes)}"
    number = next(n for n, (one, other) in enumerate(zip(own.classes, spec.classes, strict=True)) if one != other)
    return f"its class {number} is {own.classes[number]!r}, not {spec.classes[number]!r}"


def _digest(synthetic: SyntheticSet) -> str:
    """Twelve hex digits of the images, and of what says what they mean."""
    spec = synthetic.spec
    facts = [list(spec.classes), spec.image_size, spec.channels, list(spec.mean), list(spec.std), synthetic.factor]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(synthetic.images.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
