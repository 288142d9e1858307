"""The claim: networks trained from scratch on a set and tested on real images."""

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
import pandas as pd
import torch

from iidlib.config import ComputeConfig, EvalProtocol
from iidlib.data import Dataset, RealSet
from iidlib.engine import default_together, precision
from iidlib.evaluation.fitting import check_arguments, check_evaluation, dataset_for, tell_differences, untested
from iidlib.networks import network_for
from iidlib.rng import stream, stream_seed
from iidlib.synthetic import SyntheticSet
from iidlib.training import Examples, Outcome, Training, fit, fit_together, range_exceeded, reached

__all__ = ["evaluate", "evaluated", "scores_of", "summarize"]

logger = logging.getLogger("iidlib")


def evaluate(
    images: SyntheticSet | RealSet,
    dataset: Dataset,
    *,
    protocol: EvalProtocol | None = None,
    seed: int = 0,
    compute: ComputeConfig | None = None,
    on_epochs: Callable[[int], object] | None = None,
) -> pd.DataFrame:
    """Trains fresh networks on a set and tests each once, after its last epoch, on the dataset's test images.

    The dataset need not be the one that the set was made from: it must have the same classes, in images of the same
    size and channels. Test images are normalised with the set's own mean and deviation; what differs otherwise is
    logged. Random real images to compare with are those of ``dataset_for(images, dataset).train``, normalised alike.

    Args:
        images: a distilled set, a selection of real images, or the whole training set. Mosaics are expanded first.
        dataset: gives the test images and the device. Classes without test images are told, and do not count.
        protocol: how networks are trained; the paper's when not given.
        seed: of the networks' weights, orders and augmentation; network i of an architecture has its own draws.
        compute: how the hardware is used (``precision``, ``compile``, ``together``); the scores depend on it up to
            rounding only.
        on_epochs: called with the number of epochs trained since the last call, those of all networks together; of
            ``len(protocol.networks) * protocol.num_eval * protocol.epochs`` in all.

    Returns:
        One row for each trained network, with the columns network, evaluation_seed, accuracy (percent), epochs, images
        (as many as are stored), seconds (of networks trained at once, an equal share each) and outcome (``trained``, or
        why the accuracy says little: ``diverged``, ``constant``, ``out of range``, see `training.Outcome`; each is also
        told with its likely cause); where classes have no test images also test_images, their number, and
        untested_classes, those without. Its ``attrs`` note dataset, seed and protocol, for
        `iidlib.experiments.result_rows`.

    Raises:
        InputError: before anything is trained, for images that do not fit the dataset, a dataset without test images,
            an unknown network or augmentation, or a network that cannot take the images. Whatever ends an evaluation
            later has a note with the rows of the networks that were finished.
    """
    rows: list[dict[str, object]] = []
    try:
        for row in evaluated(images, dataset, protocol=protocol, seed=seed, compute=compute, on_epochs=on_epochs):
            rows.append(row)
    except BaseException as error:  # out of memory, Ctrl-C: what is done stands in the traceback
        if rows:
            error.add_note(f"{len(rows)} networks were evaluated before that: {json.dumps(rows)}")
        raise
    return scores_of(rows, dataset, protocol or EvalProtocol(), seed)


def evaluated(
    images: SyntheticSet | RealSet,
    dataset: Dataset,
    *,
    protocol: EvalProtocol | None = None,
    seed: int = 0,
    compute: ComputeConfig | None = None,
    on_epochs: Callable[[int], object] | None = None,
) -> Iterator[dict[str, object]]:
    """The rows of `evaluate`, each as soon as its network is tested: for whoever shows progress or keeps each at once.

    Raises:
        InputError: as `evaluate`, with the first row.
    """
    protocol = EvalProtocol() if protocol is None else protocol
    compute = ComputeConfig() if compute is None else compute
    check_arguments(protocol, compute, seed)
    if isinstance(images, SyntheticSet):
        images = dataclasses.replace(images)  # refuses what it may have been changed into
    own = dataset_for(images, dataset)
    spec, device = own.spec, own.test.device
    check_evaluation(protocol, spec, compute)
    without = untested(own.test)
    told = {"test_images": len(own.test), "untested_classes": ", ".join(without)} if without else {}
    tell_differences(images, dataset)
    training = Training(
        epochs=protocol.epochs,
        lr=protocol.lr,
        batch=protocol.batch,
        drops=protocol.drops,
        augmentation=spec.augmentation if protocol.augmentation == "auto" else protocol.augmentation,
        cutmix=protocol.cutmix,
    )
    stored = len(images.images)
    examples = _examples(images.expanded() if isinstance(images, SyntheticSet) else images, device)
    exceeded = range_exceeded(images.images, spec) if isinstance(images, SyntheticSet) else None
    if exceeded:
        logger.warning(
            "the images reach %.3g where pictures reach %.3g, so that networks trained on them say little; was the set "
            "distilled with too high a syn.lr or queue.lr?", *exceeded,
        )  # fmt: skip
    outcomes: Counter[tuple[str, Outcome]] = Counter()
    together = compute.together or default_together(device)
    # lazily: any number of networks may be asked for
    groups = ((name, first) for name in protocol.networks for first in range(0, protocol.num_eval, together))
    for name, first in groups:
        numbers = range(first, min(first + together, protocol.num_eval))
        begun = time.perf_counter()
        done = _counted(on_epochs, len(numbers)) if on_epochs else None
        seeds = [stream_seed(seed, number, f"evaluation of {name}") for number in numbers]
        with precision(device, compute.precision):
            networks = [
                network_for(
                    name,
                    spec,
                    width=protocol.width,
                    generator=stream(drawn, 0, "network", device),
                    compile=compute.compile,
                )
                for drawn in seeds
            ]
            if together == 1:
                fit(networks[0], examples, training, seed=seeds[0], on_epoch=done)
            else:
                fit_together(networks, examples, training, seeds=seeds, on_epoch=done, hold=False)
            ended = [reached(network, own.test) for network in networks]
        seconds = (time.perf_counter() - begun) / len(numbers)
        for number, found in zip(numbers, ended, strict=True):
            outcome = "out of range" if exceeded and found.outcome == "trained" else found.outcome
            outcomes[name, outcome] += 1
            yield {
                "network": name,
                "evaluation_seed": number,
                "accuracy": found.accuracy,
                "epochs": protocol.epochs,
                "images": stored,
                "seconds": seconds,
                "outcome": outcome,
            } | told
    for (name, outcome), count in outcomes.items():
        if outcome in _MEANING:
            logger.warning(
                "%d of %d %s %s: their accuracy is that of a guess; %s",
                count, protocol.num_eval, name, _MEANING[outcome],
                "as the images are no pictures" if exceeded else f"lower eval.lr (now {protocol.lr:g})",
            )  # fmt: skip


_MEANING: dict[Outcome, str] = {
    "diverged": "diverged (their outputs are huge or not finite)",
    "constant": "give the same outputs for every image",
}
"""What a warning says of an outcome."""


def _counted(on_epochs: Callable[[int], object], networks: int) -> Callable[[int], None]:
    """What networks that are trained together call when an epoch is done."""

    def done(epoch: int) -> None:
        on_epochs(networks)

    return done


def scores_of(rows: Iterable[dict[str, object]], dataset: Dataset, protocol: EvalProtocol, seed: int) -> pd.DataFrame:
    """The frame that `evaluate` gives, from the rows of one call of `evaluated` with the same arguments."""
    scores = pd.DataFrame(list(rows))
    scores.attrs = {"dataset": dataset.name, "seed": seed, "protocol": attrs.asdict(protocol)}
    return scores


def _examples(images: SyntheticSet | RealSet, device: torch.device) -> Examples:
    """The images on the device, normalised where they are looked up."""
    labels = images.labels.to(device)
    if isinstance(images, RealSet):
        return Examples(images.to(device).images_of, labels)
    stored = images.images.detach().to(device).contiguous(memory_format=torch.channels_last)
    return Examples(lambda index: stored[index], labels)


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
