"""Timing of the library against the fixed baseline, after checking that both compute the same.

Both sides start from the same images or weights and use the same draws. A speed-up that changes the result is an error.
Each side compiles in its first repetition, which is timed separately.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from iidlib.bench.baseline import PerClassLoop, PlainTraining
from iidlib.bench.ceilings import count_bytes, count_flops, seconds_of
from iidlib.config import RunConfig
from iidlib.data import Dataset
from iidlib.distillation import Distillation
from iidlib.engine import peak_memory_mib, precision, reset_peak_memory
from iidlib.evaluation import random_real
from iidlib.networks import Network, network_for
from iidlib.rng import stream
from iidlib.training import Examples, Training, fit

__all__ = [
    "GRADIENT_TOLERANCE",
    "LOSS_TOLERANCE",
    "LossesDiffer",
    "Timing",
    "compare",
    "compare_training",
    "relative_difference",
]

LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 3e-2}
"""Largest relative difference of two losses that counts as rounding, by the library's precision."""

GRADIENT_TOLERANCE = {"fp32": 1e-2, "tf32": 1e-1, "bf16": 3e-1}
"""Largest ||a - b|| / ||b|| of two gradients that counts as rounding, by the library's precision.

It is wider than that of losses: of the millions of activations at the paper's sizes, rounding moves a few across the
kink of the ReLU, and their share of the gradient appears or vanishes. For this reason two eager implementations of one
network differ by up to 2e-3 in float32, and by 2e-15 in float64.
"""


class LossesDiffer(ArithmeticError):
    """The two sides do not compute the same, so the ratio of their times is meaningless."""


@dataclass(frozen=True)
class Timing:
    """Timing of the same work on both sides."""

    what: str
    """Kind of work: ``distill``, one iteration, or ``evaluate``, one epoch of the training of a network."""
    method: str
    """Method, or the network that is trained."""
    classes: int
    ipc: int
    batch_real: int
    """Real images per class and iteration; 0 if none are drawn."""
    width: int
    baseline_times: tuple[float, ...]
    """Seconds of each timed repetition of the baseline."""
    our_times: tuple[float, ...]
    """Seconds of the library's repetitions, each right after one of the baseline."""
    first_seconds: float
    """Seconds of the library's first repetition, including compilation; not part of `our_times`."""
    gflop: float
    """Operations in convolutions and matrix products, in 1e9."""
    gbyte: float
    """Bytes that the baseline's operations read and write, in 1e9."""
    ceiling_gflops: float
    """Peak rate of the machine's matrix product, in GFLOP/s."""
    peak_memory_mib: float
    """Peak memory of the library's first repetition, in MiB."""
    differences: dict[str, float]
    """Relative differences of the two sides: ``loss`` and ``gradient``, or ``weights`` after an epoch."""

    @property
    def baseline_seconds(self) -> float:
        """Median seconds of the baseline."""
        return statistics.median(self.baseline_times)

    @property
    def seconds(self) -> float:
        """Median seconds of the library."""
        return statistics.median(self.our_times)

    @property
    def ratio(self) -> float:
        """Speed-up of the library over the baseline."""
        return self.baseline_seconds / self.seconds

    @property
    def floor_fraction(self) -> float:
        """Seconds of the counted operations at the machine's peak rate, divided by the library's seconds.

        It exceeds 1 if an algorithm needs fewer operations than were counted.
        """
        return self.gflop / self.ceiling_gflops / self.seconds

    def row(self) -> dict[str, Any]:
        """The timing as a flat row, with derived values."""
        names = ("what", "method", "classes", "ipc", "batch_real", "width", "first_seconds", "gflop", "gbyte")
        return (
            {name: getattr(self, name) for name in names}
            | {name: getattr(self, name) for name in ("seconds", "baseline_seconds", "ratio", "floor_fraction")}
            | {
                "compile_seconds": max(0.0, self.first_seconds - self.seconds),
                "gflops": self.gflop / self.seconds,
                "baseline_gflops": self.gflop / self.baseline_seconds,
                "baseline_gbytes": self.gbyte / self.baseline_seconds,
                "peak_memory_mib": self.peak_memory_mib,
            }
            | {f"{name}_difference": self.differences.get(name) for name in ("loss", "gradient", "weights")}
        )


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative difference ||ours - theirs|| / ||theirs||; 0 if both are zero."""
    gap, size = float((ours - theirs).norm()), float(theirs.norm())
    return gap / size if size > 0 else gap


def _weights(network: Network) -> Tensor:
    """A copy of all parameters, flattened into one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])  # [number of weights]


def compare(
    run: Distillation,
    *,
    ceiling_gflops: float,
    rounds: int = 3,
    on_iteration: Callable[[], object] | None = None,
) -> Timing:
    """Checks that a run and its loop over classes compute the same, and times both alternately.

    Args:
        run: the run before its first iteration, with the pool that its method needs; its images are updated.
        ceiling_gflops: peak rate of the machine's matrix product, which gives the floor.
        rounds: timed iterations of each side.
        on_iteration: called after each iteration of a side, including the first ones.

    Raises:
        LossesDiffer: if a term differs by more than ``LOSS_TOLERANCE``, or the gradient by ``GRADIENT_TOLERANCE``.
        ValueError: for settings that the loop over classes does not implement.
    """
    device = run.images.device
    ours = run.config.compute.precision if device.type == "cuda" else "fp32"
    loop, done = PerClassLoop(run), on_iteration or (lambda: None)
    sides: list[tuple[dict[str, Tensor], Tensor]] = []

    def first(side: Distillation | PerClassLoop, name: str) -> None:
        with precision(device, name):
            losses = side.losses(0)
            sides.append((losses, torch.autograd.grad(torch.stack(list(losses.values())).sum(), side.images)[0]))
            side.advance(0)
        done()

    flops: list[int] = []
    moved = count_bytes(lambda: flops.append(count_flops(lambda: first(loop, "fp32"))))
    reset_peak_memory(device)
    first_seconds = seconds_of(lambda: first(run, ours), device)
    peak = peak_memory_mib(device)
    (theirs, their_gradient), (mine, my_gradient) = sides
    loss_difference = max(relative_difference(mine[name].detach(), theirs[name].detach()) for name in run.terms)
    gradient_difference = relative_difference(my_gradient, their_gradient)
    # "not <=" rather than ">", so that NaN is caught
    if not (loss_difference <= LOSS_TOLERANCE[ours] and gradient_difference <= GRADIENT_TOLERANCE[ours]):
        values = {name: (float(theirs[name].detach()), float(mine[name].detach())) for name in run.terms}
        raise LossesDiffer(
            f"{run.config.method}: the losses of the loop and ours differ by {loss_difference:.1e} (at most "
            f"{LOSS_TOLERANCE[ours]:.0e} is rounding), their gradients by {gradient_difference:.1e} (at most "
            f"{GRADIENT_TOLERANCE[ours]:.0e}); terms (loop, ours): {values}"
        )
    sides.clear()
    del theirs, mine

    baseline_times, our_times = [], []
    for iteration in range(1, rounds + 1):
        baseline_times.append(seconds_of(partial(loop.step, iteration), device))
        done()
        our_times.append(seconds_of(partial(run.step, iteration), device))
        done()
    config = run.config
    return Timing(
        what="distill",
        method=config.method,
        classes=run.real.num_classes,
        ipc=config.ipc,
        batch_real=min(config.match.batch_real, int(run.real.counts.max())),
        width=config.match.width,
        baseline_times=tuple(baseline_times),
        our_times=tuple(our_times),
        first_seconds=first_seconds,
        gflop=flops[0] / 1e9,
        gbyte=moved / 1e9,
        ceiling_gflops=ceiling_gflops,
        peak_memory_mib=peak,
        differences={"loss": loss_difference, "gradient": gradient_difference},
    )


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
        on_iteration: called after each epoch of a side, including the first ones.

    Raises:
        LossesDiffer: if the changes of the weights in an epoch differ by more than ``GRADIENT_TOLERANCE``.
    """
    device, protocol, done = dataset.train.device, config.eval, on_iteration or (lambda: None)
    ours = config.compute.precision if device.type == "cuda" else "fp32"
    chosen = random_real(dataset.train, config.ipc, config.seed)
    images = chosen.images.contiguous(memory_format=torch.channels_last)
    strategy = dataset.spec.augmentation
    network = network_for(
        protocol.networks[0],
        dataset.spec,
        width=protocol.width,
        generator=stream(config.seed, 0, "network", device),
        compile=config.compute.compile,
    )
    start = _weights(network)
    loop = PlainTraining(network, images, chosen.labels, protocol, strategy)

    examples = Examples(lambda index: images[index], chosen.labels)
    training = Training(epochs=1, lr=protocol.lr, batch=protocol.batch, augmentation=strategy)

    def engine(seed: int) -> None:
        with precision(device, ours):
            fit(network, examples, training, seed=seed)
        done()

    def plain(seed: int) -> None:
        loop.epoch(seed)
        done()

    flops: list[int] = []
    moved = count_bytes(lambda: flops.append(count_flops(lambda: plain(0))))
    reset_peak_memory(device)
    first_seconds = seconds_of(lambda: engine(0), device)
    peak = peak_memory_mib(device)
    theirs = _weights(loop.network) - start
    difference = relative_difference(_weights(network) - start, theirs)
    if not difference <= GRADIENT_TOLERANCE[ours]:
        raise LossesDiffer(
            f"training {network.name}: after an epoch the weights of the loop and ours differ by {difference:.1e} of "
            f"their change (at most {GRADIENT_TOLERANCE[ours]:.0e} is rounding)"
        )
    times = [
        (seconds_of(partial(plain, number), device), seconds_of(partial(engine, number), device))
        for number in range(1, rounds + 1)
    ]
    return Timing(
        what="evaluate",
        method=network.name,
        classes=dataset.train.num_classes,
        ipc=config.ipc,
        batch_real=0,
        width=protocol.width,
        baseline_times=tuple(first for first, _ in times),
        our_times=tuple(second for _, second in times),
        first_seconds=first_seconds,
        gflop=flops[0] / 1e9,
        gbyte=moved / 1e9,
        ceiling_gflops=ceiling_gflops,
        peak_memory_mib=peak,
        differences={"weights": difference},
    )
