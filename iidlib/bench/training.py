"""Timing of evaluation against the fixed baseline: epochs of the training of one network, and of several at once.

As for distillation, both sides are compared in float32 and timed in the precision that was asked for.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from iidlib.bench.baseline import PlainTraining
from iidlib.bench.ceilings import count_bytes, count_flops, device_seconds_of, seconds_of, wait
from iidlib.bench.timing import GRADIENT_TOLERANCE, LossesDiffer, Timing, relative_difference
from iidlib.config import RunConfig
from iidlib.data import Dataset
from iidlib.engine import (
    default_together,
    graphs,
    peak_memory_mib,
    precision,
    precision_in_use,
    reset_peak_memory,
)
from iidlib.evaluation import random_real
from iidlib.networks import Network, network_for
from iidlib.rng import stream
from iidlib.training import Examples, HowTrained, Training, fit, fit_together

__all__ = ["compare_together", "compare_training"]

_EPOCHS_ON_CUDA = 10
"""Epochs per timed repetition on CUDA, where a single one takes little longer than waiting for the device."""


class _Work:
    """The networks, images and settings of a comparison.

    Attributes:
        device: the device of the images.
        asked: precision that the library is timed in.
        examples: random real images in place of a distilled set.
        start: initial weights of the networks, flattened and concatenated.
        loops: the baseline, one per network.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, networks: int) -> None:
        self.device, self._config, self._dataset = dataset.train.device, config, dataset
        self.asked = precision_in_use(self.device, config.compute.precision)
        self._networks = networks
        chosen = random_real(dataset.train, config.ipc, config.seed)
        images = chosen.images.contiguous(memory_format=torch.channels_last)
        self.examples = Examples(lambda index: images[index], chosen.labels)
        self.strategy = dataset.spec.augmentation
        fresh = self.fresh()
        self.start = _weights(fresh)
        self.loops = [PlainTraining(network, images, chosen.labels, config.eval, self.strategy) for network in fresh]

    def fresh(self) -> list[Network]:
        """The networks with their initial weights."""
        protocol, spec = self._config.eval, self._dataset.spec
        return [
            network_for(
                protocol.networks[0],
                spec,
                width=protocol.width,
                generator=stream(self._config.seed, number, "network", self.device),
                compile=self._config.compute.compile,
            )
            for number in range(self._networks)
        ]

    def training(self, epochs: int) -> Training:
        protocol = self._config.eval
        return Training(epochs, protocol.lr, protocol.batch, augmentation=self.strategy)

    def check(
        self, train: Callable[[Sequence[Network]], object], done: Callable[[], object]
    ) -> tuple[list[Network], dict[str, object]]:
        """Trains both sides for their first epoch and compares the changes of the weights.

        Args:
            train: trains networks for an epoch.
            done: called after the epoch of each side.

        Returns:
            The library's networks, and fields of a `Timing`.

        Raises:
            LossesDiffer: if the changes differ by more than ``GRADIENT_TOLERANCE``.
        """
        flops: list[int] = []
        moved = count_bytes(lambda: flops.append(count_flops(lambda: self.plain_epoch(0))))
        done()
        theirs = _weights([loop.network for loop in self.loops]) - self.start

        def trained(name: str, networks: list[Network]) -> Tensor:
            reset_peak_memory(self.device)
            with precision(self.device, name), graphs(self._config.compute.graph):
                train(networks)
            return _weights(networks) - self.start

        networks, mine = self.fresh(), []
        first_seconds = seconds_of(lambda: mine.append(trained("fp32", networks)), self.device)
        difference = relative_difference(mine[0], theirs)
        if not difference <= GRADIENT_TOLERANCE:  # true for NaN
            raise LossesDiffer(
                f"training {networks[0].name}: after an epoch the weights of the loop and ours differ by "
                f"{difference:.1e} of their change (at most {GRADIENT_TOLERANCE:.0e} is rounding)"
            )
        rounding: dict[str, float] = {}
        if self.asked != "fp32":
            rounding["weights"] = relative_difference(trained(self.asked, self.fresh()), mine[0])
        done()
        fields: dict[str, object] = {
            "method": networks[0].name,
            "classes": self._dataset.train.num_classes,
            "ipc": self._config.ipc,
            "batch_real": 0,
            "width": self._config.eval.width,
            "first_seconds": first_seconds,
            "gflop": flops[0] / 1e9,
            "gbyte": moved / 1e9,
            "peak_memory_mib": peak_memory_mib(self.device),
            "differences": {"weights": difference},
            "precision_differences": rounding,
        }
        return networks, fields

    def plain_epoch(self, number: int) -> None:
        """Trains every network of the baseline for an epoch, one after another, each with its own draws."""
        for own, loop in enumerate(self.loops):
            loop.epoch(number * len(self.loops) + own)


def _weights(networks: Sequence[Network]) -> Tensor:
    """A copy of all parameters of all networks, flattened into one vector."""
    return torch.cat([one.detach().reshape(-1) for network in networks for one in network.parameters()])


def compare_training(
    config: RunConfig,
    dataset: Dataset,
    *,
    ceiling_gflops: float,
    rounds: int = 3,
    on_iteration: Callable[[], object] | None = None,
) -> Timing:
    """Checks that evaluation and its plain loop train a network alike, and times epochs of both alternately.

    Args:
        config: the protocol and the number of images per class.
        dataset: the dataset whose real images replace a distilled set.
        ceiling_gflops: peak rate of the machine's matrix product, which gives the floor.
        rounds: timed epochs of each side.
        on_iteration: called after each compared or timed epoch of a side.

    Raises:
        LossesDiffer: if in float32 the changes of the weights in an epoch differ by more than ``GRADIENT_TOLERANCE``.
    """
    work, done = _Work(config, dataset, 1), on_iteration or (lambda: None)

    def epoch(networks: Sequence[Network], seed: int = 0) -> None:
        fit(networks[0], work.examples, work.training(1), seed=seed)

    networks, fields = work.check(epoch, done)
    baseline_times, our_times = [], []
    with precision(work.device, work.asked):
        for number in range(1, rounds + 1):
            baseline_times.append(seconds_of(partial(work.plain_epoch, number), work.device))
            done()
            our_times.append(seconds_of(partial(epoch, networks, number), work.device))
            done()
        busy = device_seconds_of(partial(epoch, networks, rounds + 1), work.device, host_seconds=max(our_times))
    return Timing(
        what="evaluate",
        baseline_times=tuple(baseline_times),
        our_times=tuple(our_times),
        ceiling_gflops=ceiling_gflops,
        device_seconds=busy,
        **fields,  # type: ignore[arg-type]
    )


def compare_together(
    config: RunConfig,
    dataset: Dataset,
    *,
    ceiling_gflops: float,
    rounds: int = 3,
    on_iteration: Callable[[], object] | None = None,
) -> Timing:
    """Comparison as in `compare_training`, for as many networks as an evaluation trains at once, at least two.

    The baseline trains one network after another. On a GPU the library's epochs are replays of a CUDA graph, if one can
    be recorded; the first epoch, which includes the recording, is not timed.

    Args:
        config: the protocol, the number of images per class, and ``compute.together``.
        dataset: the dataset whose real images replace a distilled set.
        ceiling_gflops: peak rate of the machine's matrix product, which gives the floor.
        rounds: timed repetitions of each side.
        on_iteration: called after each compared or timed repetition of a side.

    Raises:
        LossesDiffer: if in float32 the changes of the weights in an epoch differ by more than ``GRADIENT_TOLERANCE``.
    """
    device, done = dataset.train.device, on_iteration or (lambda: None)
    count = max(2, config.compute.together or default_together(device))
    epochs = _EPOCHS_ON_CUDA if device.type == "cuda" else 1  # per repetition
    work = _Work(config, dataset, count)

    def train(
        networks: Sequence[Network], number: int = 1, on_epoch: Callable[[int], None] | None = None
    ) -> HowTrained:
        training, seeds = work.training(number), range(count)
        return fit_together(
            networks, work.examples, training, seeds=seeds, on_epoch=on_epoch, hold=False,
            compiled=config.compute.compiled,
        )  # fmt: skip

    networks, fields = work.check(train, done)
    baseline_times: list[float] = []
    our_times: list[float] = []
    first: list[float] = []
    started = time.perf_counter()

    def lap(epoch: int) -> None:
        """Takes the time after a repetition, then times one of the baseline."""
        nonlocal started
        if epoch % epochs:
            return
        wait(device)
        seconds = time.perf_counter() - started
        if epoch == 0:
            first.append(seconds)
        else:
            our_times.append(seconds / epochs)
            done()
        if len(baseline_times) < rounds:
            plain = [seconds_of(partial(work.plain_epoch, 1 + epoch + one), device) for one in range(epochs)]
            baseline_times.append(sum(plain) / epochs)
            done()
        started = time.perf_counter()

    with precision(device, work.asked), graphs(config.compute.graph):
        how = train(networks, 1 + rounds * epochs, lap)
    return Timing(
        what=f"evaluate x{count}",
        baseline_times=tuple(baseline_times),
        our_times=tuple(our_times),
        ceiling_gflops=ceiling_gflops,
        networks=count,
        recorded=how.recorded,
        capture_seconds=max(0.0, first[0] - our_times[0]) if how.recorded else None,
        **fields,  # type: ignore[arg-type]
    )
