"""Evaluation: networks trained from scratch on a set and tested on real images."""

import dataclasses
import functools
import itertools
import json
import logging
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import pandas as pd
import torch

from iidlib.config import ComputeConfig, EvalProtocol
from iidlib.data import Dataset, RealSet
from iidlib.engine import default_together, deterministic, graphs, precision
from iidlib.evaluation.fitting import check_arguments, check_evaluation, dataset_for, log_differences, untested
from iidlib.evaluation.interrupted import FinishedNetworks
from iidlib.networks import network_for
from iidlib.ranks import current
from iidlib.rng import stream, stream_seed
from iidlib.runs.environment import conditions, source_digest
from iidlib.synthetic import SyntheticSet
from iidlib.training import (
    Examples,
    Outcome,
    Training,
    fit,
    fit_together,
    networks_together,
    range_exceeded,
    reached,
    reached_together,
)

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
    finished: FinishedNetworks | None = None,
) -> pd.DataFrame:
    """Trains new networks on a set and tests each once, after its last epoch, on the dataset's test images.

    The dataset need not be the one that the set was made from, but must have the same classes, image size and number of
    channels. Test images are normalised with the set's mean and standard deviation; other differences are logged. To
    compare with real images under the same normalisation, choose them from ``dataset_for(images, dataset).train``.

    Args:
        images: a distilled set, a selection of real images, or the whole training set. Mosaics are expanded first.
        dataset: the dataset with the test images, on the device to use. Classes without test images do not count, with
            a warning.
        protocol: how networks are trained; by default as in the paper.
        seed: seed of the networks' weights, data order and augmentation; every network has its own random streams.
        compute: how the hardware is used (``precision``, ``compile``, ``together``, ``ensemble``); affects scores by
            rounding only.
        on_epochs: called with the number of epochs trained since the last call, summed over networks; the total is
            ``len(protocol.networks) * protocol.num_eval * protocol.epochs``, less the epochs of finished networks.
        finished: keeps each finished network, so that an equal evaluation resumes after them if this one is
            interrupted; call its ``forget`` once the scores are saved. None keeps nothing.

    Returns:
        One row per trained network, with the columns network, evaluation_seed, accuracy (percent), epochs, images
        (number stored), seconds (networks trained together share their time equally) and outcome (``trained``, or
        why the accuracy means little: ``diverged``, ``constant``, ``out of range``, see `training.Outcome`; a warning
        names the likely cause). If some classes have no test images, there are also the columns test_images, the number
        of test images, and untested_classes; if networks trained together, as on CUDA, also ensemble, how they did (see
        `training.HowTrained`). The frame's ``attrs`` record dataset, seed and protocol, for
        `iidlib.experiments.result_rows`.

    Raises:
        InputError: before any training, for images that do not fit the dataset, a dataset without test images, an
            unknown network or augmentation, or a network that does not accept the images. Exceptions raised later carry
            a note with the rows of the networks that were finished.

    Example:
        >>> from iidlib import distill, evaluate, load_dataset, preset
        >>> config = preset("dm", "cifar10-mini", 1, "ci", {"iterations": 1, "compute.compile": "off"})
        >>> data = load_dataset("cifar10-mini")
        >>> scores = evaluate(distill(config, data).synthetic, data, protocol=config.eval, compute=config.compute)
        >>> scores["network"].tolist()
        ['convnet3', 'convnet3']
    """
    rows: list[dict[str, object]] = []
    try:
        for row in evaluated(
            images, dataset, protocol=protocol, seed=seed, compute=compute, on_epochs=on_epochs, finished=finished
        ):
            rows.append(row)
    except BaseException as error:  # out of memory or Ctrl-C: the traceback shows what was finished
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
    finished: FinishedNetworks | None = None,
) -> Iterator[dict[str, object]]:
    """The rows of `evaluate`, each yielded once its network has been tested, to show progress or to save rows early.

    The row of a network that was finished before is a `FinishedRow`.

    Raises:
        InputError: as `evaluate`, with the first row.
    """
    protocol = EvalProtocol() if protocol is None else protocol
    compute = ComputeConfig() if compute is None else compute
    check_arguments(protocol, compute, seed)
    if isinstance(images, SyntheticSet):
        images = dataclasses.replace(images)  # validates fields that may have been modified
    fitted = dataset_for(images, dataset)
    spec, device = fitted.spec, fitted.test.device
    check_evaluation(protocol, spec, compute)
    without = untested(fitted.test)
    extra = {"test_images": len(fitted.test), "untested_classes": ", ".join(without)} if without else {}
    log_differences(images, dataset)
    exceeded = range_exceeded(images.images, spec) if isinstance(images, SyntheticSet) else None
    if exceeded:
        logger.warning(
            "the images reach %.3g where pictures reach %.3g, so networks trained on them mean little; was syn.lr or "
            "queue.lr too high when the set was distilled?", *exceeded,
        )  # fmt: skip
    trainer = _Trainer(images, fitted, protocol, compute, seed, "out of range" if exceeded else "trained", extra)
    facts, known, ranks = {}, {}, current()
    if ranks.size > 1:
        ranks.check_same(
            {"protocol": str(protocol), "seed": seed, "fingerprint of the data": dataset.train.fingerprint}
        )
    if finished is not None and ranks.leads:
        facts = trainer.facts()
        known = finished.rows(facts, protocol.networks, protocol.num_eval)
    known = ranks.first(known)
    if known:
        total = len(protocol.networks) * protocol.num_eval
        logger.info("resuming an interrupted evaluation: %d of %d networks are finished", len(known), total)
    outcomes: Counter[tuple[str, Outcome]] = Counter()
    together = functools.partial(
        networks_together, spec=spec, width=protocol.width, batch=protocol.batch, device=device, compute=compute
    )
    # a generator: num_eval may be arbitrarily large
    groups = (
        (name, range(first, min(first + most, protocol.num_eval)))
        for name in protocol.networks
        for most in (together(name),)
        for first in range(0, protocol.num_eval, most)
    )
    while at_once := list(itertools.islice(groups, ranks.size)):  # a group for each rank
        trained: dict[int, dict[str, Any]] = {}
        if ranks.rank < len(at_once):
            name, numbers = at_once[ranks.rank]
            missing = [number for number in numbers if (name, number) not in known]
            trained = trainer.rows(name, missing, on_epochs) if missing else {}
        for (name, numbers), of_rank in zip(at_once, ranks.every(trained), strict=False):
            if finished is not None and of_rank and ranks.leads:
                finished.keep(facts, of_rank.values())
            for number in numbers:
                row = of_rank[number] if number in of_rank else known[name, number]
                outcomes[name, row["outcome"]] += 1
                yield row
    remedy = "the images are out of range" if exceeded else f"lower eval.lr (now {protocol.lr:g})"
    for (name, outcome), count in outcomes.items():
        if outcome in _MEANING:
            logger.warning(
                "%d of %d %s %s: their accuracy is no better than guessing; %s",
                count, protocol.num_eval, name, _MEANING[outcome], remedy,
            )  # fmt: skip


_MEANING: dict[Outcome, str] = {
    "diverged": "diverged (huge or non-finite outputs)",
    "constant": "have the same outputs for every image",
}
"""Descriptions of outcomes in warnings."""


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """Trains networks of one evaluation."""

    images: SyntheticSet | RealSet
    fitted: Dataset
    protocol: EvalProtocol
    compute: ComputeConfig
    seed: int
    success: Outcome
    """Outcome of a network whose training succeeded."""
    extra: Mapping[str, object]
    """Columns that all rows have in common."""

    @functools.cached_property
    def training(self) -> Training:
        """The protocol's training on the dataset."""
        protocol, spec = self.protocol, self.fitted.spec
        return Training(
            epochs=protocol.epochs,
            lr=protocol.lr,
            batch=protocol.batch,
            drops=protocol.drops,
            augmentation=spec.augmentation if protocol.augmentation == "auto" else protocol.augmentation,
            cutmix=protocol.cutmix,
        )

    @functools.cached_property
    def examples(self) -> Examples:
        """The images on the device, mosaics expanded; real images are normalised on access."""
        images = self.images.expanded() if isinstance(self.images, SyntheticSet) else self.images
        device = self.fitted.test.device
        labels = images.labels.to(device)
        if isinstance(images, RealSet):
            return Examples(images.to(device).images_of, labels)
        stored = images.images.detach().to(device).contiguous(memory_format=torch.channels_last)
        return Examples(lambda index: stored[index], labels)

    def facts(self) -> dict[str, Any]:
        """What scores depend on besides the network and its number, as JSON values, for `FinishedNetworks`."""
        images, spec = self.images, self.fitted.spec
        protocol, compute = attrs.asdict(self.protocol), attrs.asdict(self.compute)
        normalisation = (images.spec.mean, images.spec.std, spec.mean, spec.std)
        return {
            "images": images.fingerprint,
            "classes": spec.classes,
            "test": self.fitted.test.fingerprint,
            "normalisation": [[float(value) for value in values] for values in normalisation],
            "augmentation": self.training.augmentation,
            "protocol": {key: value for key, value in protocol.items() if key not in ("networks", "num_eval")},
            # the other settings are for distillations
            "compute": {key: value for key, value in compute.items() if key not in ("chunk", "classes")},
            "seed": operator.index(self.seed),
            "code": source_digest(),
            **conditions(self.fitted.test.device, self.compute.compile, self.compute.precision),
        }

    def rows(
        self, name: str, numbers: Sequence[int], on_epochs: Callable[[int], object] | None
    ) -> dict[int, dict[str, Any]]:
        """Trains and tests networks together, and returns a row for each by its number."""
        device, compute, examples = self.fitted.test.device, self.compute, self.examples
        started = time.perf_counter()
        done = _counted(on_epochs, len(numbers)) if on_epochs else None
        seeds = [stream_seed(self.seed, number, f"evaluation of {name}") for number in numbers]
        extra = dict(self.extra)
        with precision(device, compute.precision), deterministic(device), graphs(compute.graph):
            networks = [
                network_for(
                    name,
                    self.fitted.spec,
                    width=self.protocol.width,
                    generator=stream(drawn, 0, "network", device),
                    compile=compute.compile,
                )
                for drawn in seeds
            ]
            if (compute.together or default_together(device)) == 1:
                fit(networks[0], examples, self.training, seed=seeds[0], on_epoch=done)
                results = [reached(networks[0], self.fitted.test)]
            else:
                how = fit_together(
                    networks, examples, self.training, seeds=seeds, on_epoch=done, hold=False,
                    form=compute.ensemble, compiled=compute.compiled,
                )  # fmt: skip
                extra["ensemble"] = str(how)
                results = reached_together(networks, self.fitted.test)
        seconds = (time.perf_counter() - started) / len(numbers)
        return {
            number: {
                "network": name,
                "evaluation_seed": number,
                "accuracy": result.accuracy,
                "epochs": self.protocol.epochs,
                "images": len(self.images.images),
                "seconds": seconds,
                "outcome": self.success if result.outcome == "trained" else result.outcome,
            }
            | extra
            for number, result in zip(numbers, results, strict=True)
        }


def _counted(on_epochs: Callable[[int], object], networks: int) -> Callable[[int], None]:
    """Callback for networks that are trained together, called after each epoch."""

    def done(epoch: int) -> None:
        on_epochs(networks)

    return done


def scores_of(rows: Iterable[dict[str, object]], dataset: Dataset, protocol: EvalProtocol, seed: int) -> pd.DataFrame:
    """The frame that `evaluate` returns, from the rows of one call of `evaluated` with the same arguments."""
    scores = pd.DataFrame(list(rows))
    scores.attrs = {"dataset": dataset.name, "seed": seed, "protocol": attrs.asdict(protocol)}
    return scores


def summarize(scores: pd.DataFrame, by: Sequence[str] = ("label", "network")) -> pd.DataFrame:
    """Mean and standard deviation of accuracies.

    Args:
        scores: rows of `evaluate`, with columns that distinguish the sets.
        by: the columns to group by.

    Returns:
        The columns of `by`, then mean, std (population standard deviation over networks, as in the official code) and
        n, in order of first appearance.
    """
    groups = scores.groupby(list(by), sort=False)["accuracy"]
    return groups.agg(mean="mean", std=lambda values: values.std(ddof=0), n="size").reset_index()
