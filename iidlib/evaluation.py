"""The claim: networks trained from scratch on a set, tested on real images; and the baselines beside it."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from iidlib.accelerate import default_together, precision
from iidlib.config import EvalProtocol
from iidlib.data import Dataset, RealSet
from iidlib.extractors import network_for
from iidlib.inputs import InputError
from iidlib.stacked import fit_together
from iidlib.streams import stream, stream_seed
from iidlib.synthetic import SyntheticSet
from iidlib.training import accuracy, augmentation_stages, fit

__all__ = [
    "EvalProtocol",
    "evaluate",
    "paired_gains",
    "paired_interval",
    "random_real",
    "summarize",
    "whole_set_protocol",
]

WHOLE_SET_EPOCHS = 60


def random_real(train: RealSet, ipc: int, seed: int = 0, factor: int = 1) -> SyntheticSet:
    """The baseline of every table: random real images, the same number a class, under the same protocol.

    With a factor, each is a mosaic of downscaled real images: what belongs beside a set distilled in that form. The
    images are those that a distillation with this seed and factor starts from.

    Raises:
        InputError: if ipc is below 1, or a class has too few images, or the factor does not fit.
    """
    chosen = SyntheticSet.from_real(train, ipc, stream(seed, 0, "initial images"), factor=factor)
    name = "random" if factor == 1 else "random-mosaic"
    chosen.provenance |= {"method": name, "seed": str(seed), "data": train.fingerprint}
    return chosen


def whole_set_protocol(protocol: EvalProtocol) -> EvalProtocol:
    """The protocol for the whole training set: the same, with 60 passes.

    1001 passes over 50,000 images would cost more than everything else together; a row that uses this says so.
    """
    return dataclasses.replace(protocol, epochs=min(WHOLE_SET_EPOCHS, protocol.epochs))


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
        compile: as in ``accelerate.prepare``.
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


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """95 % t interval of the mean difference ``second - first`` over distillation seeds.

    An order of two methods is claimed only where the interval leaves out zero.

    Args:
        first: accuracy of one method for each seed (mean over its networks), in percent.
        second: of the other method, the same seeds in the same order.

    Returns:
        Mean difference, lower and upper end.

    Raises:
        ValueError: for fewer than 3 seeds, or sequences of different length.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    if len(first) != len(second) or len(first) < 3:
        raise ValueError(
            f"a paired interval needs the same 3 or more seeds on both sides, got {len(first)} and {len(second)}"
        )
    differences = torch.tensor(second, dtype=torch.float64) - torch.tensor(first, dtype=torch.float64)
    mean = float(differences.mean())
    half = float(t.ppf(0.975, len(first) - 1)) * float(differences.std()) / len(first) ** 0.5
    return mean, mean - half, mean + half


def paired_gains(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]], by: str = "method") -> pd.DataFrame:
    """What one method is above another, over the distillation seeds that both have.

    Args:
        scores: rows of single networks, with columns seed and accuracy (percent), and one that names the method.
        pairs: base and method.
        by: the column that names the method.

    Returns:
        A row a pair, with columns base, method, seeds (how many both have) and, from three seeds on, mean, low and high
        of `paired_interval`; otherwise these are empty.

    Raises:
        ValueError: for rows of several data sets, sizes, scales or architectures, whose mean says nothing.
    """
    for column in ("dataset", "ipc", "scale", "network"):
        kinds = sorted(map(str, scores[column].unique())) if column in scores else []
        if len(kinds) > 1:
            raise ValueError(f"rows of one {column} are compared, got those of {', '.join(kinds)}")
    table = scores.pivot_table(index="seed", columns=by, values="accuracy")
    rows = []
    for base, method in pairs:
        both = table.reindex(columns=[base, method]).dropna()
        known = len(both) >= 3
        found = paired_interval(both[base].tolist(), both[method].tolist()) if known else (float("nan"),) * 3
        rows.append((base, method, len(both), *found))
    return pd.DataFrame(rows, columns=["base", "method", "seeds", "mean", "low", "high"])
