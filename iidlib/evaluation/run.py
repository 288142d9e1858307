"""The claim: networks trained from scratch on a set and tested on real images."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from iidlib.config import EvalProtocol
from iidlib.data import Dataset, RealSet
from iidlib.engine import default_together, precision
from iidlib.errors import InputError
from iidlib.networks import network_for
from iidlib.rng import stream, stream_seed
from iidlib.synthetic import SyntheticSet
from iidlib.training import accuracy, augmentation_stages, fit, fit_together

__all__ = ["evaluate", "summarize"]


def evaluate(
    images: SyntheticSet | RealSet,
    dataset: Dataset,
    *,
    protocol: EvalProtocol | None = None,
    seed: int = 0,
    compile: str = "auto",
    tf32: bool = True,
    together: int = 0,
    on_network: Callable[[dict[str, object]], None] | None = None,
) -> pd.DataFrame:
    """Trains fresh networks on a set and tests each once, after its last pass, on the data set's test images.

    Args:
        images: a distilled set, a selection of real images, or the whole training set. Mosaics are expanded first.
        dataset: gives the test images and the device.
        protocol: how networks are trained; the paper's when not given.
        seed: of the networks' weights, orders and augmentation; network i of an architecture has its own draws.
        compile: as in ``networks.prepare``.
        tf32: whether matrix products on CUDA may round to TF32.
        together: networks of an architecture that are trained at once, 0 for the device's default; up to rounding, the
            scores do not depend on it.
        on_network: called with each row as soon as it is there.

    Returns:
        One row for each trained network, with the columns network, evaluation_seed, accuracy (percent), epochs, images
        (as many as are stored) and seconds (of networks trained at once, an equal share each).

    Raises:
        InputError: for images that do not fit the data set, or an unknown network or augmentation.
    """
    protocol = protocol or EvalProtocol()
    spec, device = dataset.spec, dataset.test.device
    if (images.spec.classes, images.spec.image_size, images.spec.channels, images.spec.mean, images.spec.std) != (
        spec.classes,
        spec.image_size,
        spec.channels,
        spec.mean,
        spec.std,
    ):
        raise InputError(
            f"the set was made for {images.spec.name}, whose images or classes are not those of {spec.name}"
        )
    augmentation = spec.augmentation if protocol.augmentation == "auto" else protocol.augmentation
    augmentation_stages(augmentation)  # refuses what it does not know before anything is trained
    stored = len(images.images)
    if isinstance(images, SyntheticSet):
        images = images.expanded()
    labels = images.labels.to(device)
    images_of = _lookup(images, device)
    training: dict[str, Any] = {
        "epochs": protocol.epochs,
        "lr": protocol.lr,
        "batch": protocol.batch,
        "drops": protocol.drops,
        "augmentation": augmentation,
        "mixed": protocol.cutmix,
    }
    together = together or default_together(device)
    rows: list[dict[str, object]] = []
    for name, first in itertools.product(protocol.networks, range(0, protocol.num_eval, together)):
        numbers = range(first, min(first + together, protocol.num_eval))
        begun = time.perf_counter()
        seeds = [stream_seed(seed, number, f"evaluation of {name}") for number in numbers]
        with precision(device, "tf32" if tf32 else "fp32"):
            networks = [
                network_for(
                    name,
                    spec,
                    width=protocol.width,
                    device=device,
                    generator=stream(own, 0, "network", device),
                    compile=compile,
                )
                for own in seeds
            ]
            if together == 1:
                fit(networks[0], images_of, labels, seed=seeds[0], **training)
            else:
                fit_together(networks, images_of, labels, seeds=seeds, **training)
            reached = [accuracy(network, dataset.test) for network in networks]
        seconds = (time.perf_counter() - begun) / len(numbers)
        for number, value in zip(numbers, reached, strict=True):
            rows.append(
                {
                    "network": name,
                    "evaluation_seed": number,
                    "accuracy": value,
                    "epochs": protocol.epochs,
                    "images": stored,
                    "seconds": seconds,
                }
            )
            if on_network is not None:
                on_network(rows[-1])
    return pd.DataFrame(rows)


def _lookup(images: SyntheticSet | RealSet, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Normalised images by index, on the device."""
    if isinstance(images, RealSet):
        return images.to(device).images_of
    stored = images.images.detach().to(device).contiguous(memory_format=torch.channels_last)
    return lambda index: stored[index]


def summarize(scores: pd.DataFrame, by: Sequence[str] = ("label", "network")) -> pd.DataFrame:
    """Mean and spread of accuracies.

    Args:
        scores: rows of `evaluate`, with columns that tell the sets apart.
        by: the columns that name a line of the table.

    Returns:
        The columns of `by`, then mean, std (population, over networks, as the official code reports it) and n, in the
        order in which the lines first appear.
    """
    groups = scores.groupby(list(by), sort=False)["accuracy"]
    return groups.agg(mean="mean", std=lambda values: values.std(ddof=0), n="size").reset_index()
