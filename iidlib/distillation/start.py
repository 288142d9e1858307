"""Start of a distillation: real images, noise, or the images of a saved set."""

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
from iidlib.notes import log_once
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

__all__ = ["Start", "first_images", "starting_from"]


@dataclass(frozen=True)
class Start:
    """A set from which a run starts.

    Attributes:
        synthetic: the set.
        source: where the set was read from, for its provenance.
        digest: twelve hex digits of its images and of their specification.
    """

    synthetic: SyntheticSet
    source: str
    digest: str


def starting_from(config: RunConfig, init: SyntheticSet | str | Path) -> tuple[RunConfig, Start]:
    """Settings with ``syn.init=set:DIGEST``, which identifies a set to start from, and the set.

    Args:
        config: the settings.
        init: the set, its file, or the folder of its finished run.

    Raises:
        InputError: for a file that is missing, corrupted, or not a synthetic set.
    """
    given = isinstance(init, SyntheticSet)
    synthetic = init if isinstance(init, SyntheticSet) else SyntheticSet.load(init)
    digest = synthetic.fingerprint
    if not same_dataset(synthetic.spec.name, config.dataset):
        log_once(
            logging.WARNING,
            f"the run on {config.dataset} starts from a set made from {synthetic.spec.name}; test images of the former "
            "may be among the training images of the latter, and accuracies would then be too high",
        )
    start = Start(synthetic, "a set given in Python" if given else str(init), digest)
    return attrs.evolve(config, syn=attrs.evolve(config.syn, init=f"set:{digest}")), start


def first_images(config: RunConfig, real: RealSet, start: Start | None) -> SyntheticSet:
    """The set before the first iteration.

    Images of a saved set are used as they are, even outside the range of pixel values; if the dataset is normalised
    with another mean and standard deviation than the set, they are converted. If a network of the pool will choose the
    images, as many random real images take their place until then.

    Args:
        config: the settings.
        real: the training images.
        start: the set that ``syn.init`` identifies, if any.

    Raises:
        InputError: for a set with other classes, images per class, size, channels or factor (the message says which),
            or if ``syn.init`` identifies a set and none is given.
    """
    if start is None:
        if config.syn.init.startswith("set:"):
            raise InputError(f"syn.init={config.syn.init} is a saved set, which must be given with --init PATH")
        draws = stream(config.seed, 0, "initial images")
        init = "real" if chosen_by_pool(config) else config.syn.init
        return SyntheticSet.from_real(real, config.ipc, draws, init, config.syn.factor)
    own, spec = start.synthetic, real.spec
    wrong = "" if own.spec.classes == spec.classes else _other_classes(own.spec, spec)
    for name, has, needs in (
        ("images per class", own.ipc, config.ipc),
        ("pixels per side", own.spec.image_size, spec.image_size),
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
    """Images of a set, normalised like those of a dataset."""
    if (own.spec.mean, own.spec.std) == (spec.mean, spec.std):
        return own.images  # bit for bit
    return normalize(255 * denormalize(own.images.detach(), own.spec), spec)


def _other_classes(own: DatasetSpec, spec: DatasetSpec) -> str:
    """Difference between the classes of a set and of a dataset, in words."""
    if len(own.classes) != len(spec.classes):
        return f"it has {len(own.classes)} classes, not {len(spec.classes)}"
    number = next(n for n, (one, other) in enumerate(zip(own.classes, spec.classes, strict=True)) if one != other)
    return f"its class {number} is {own.classes[number]!r}, not {spec.classes[number]!r}"
