"""Timing of distillation against the fixed baseline, after checking that both compute the same.

Both sides start from the same images and use the same draws. They are compared in full float32, where a difference
beyond rounding is an error, and timed in the precision that was asked for, whose own rounding is reported.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from iidlib.bench.baseline import PerClassLoop
from iidlib.bench.ceilings import count_bytes, count_flops, device_seconds_of, seconds_of
from iidlib.distillation import Distillation
from iidlib.engine import can_record, peak_memory_mib, precision, precision_in_use, reset_peak_memory

__all__ = [
    "COLUMNS",
    "GRADIENT_TOLERANCE",
    "LOSS_TOLERANCE",
    "LossesDiffer",
    "Timing",
    "compare",
    "relative_difference",
]

LOSS_TOLERANCE = 1e-4
"""Largest relative difference of two losses in float32 that counts as rounding."""

GRADIENT_TOLERANCE = 1e-2
"""Largest ||a - b|| / ||b|| of two gradients in float32 that counts as rounding.

It is wider than that of losses: of the millions of activations at the paper's sizes, rounding moves a few across the
kink of the ReLU, and their share of the gradient appears or vanishes. For this reason two eager implementations of one
network differ by up to 2e-3 in float32, and by 2e-15 in float64.
"""

COLUMNS = (
    "what", "method", "classes", "ipc", "batch_real", "width", "first_seconds", "gflop", "gbyte", "seconds",
    "baseline_seconds", "ratio", "floor_fraction", "compile_seconds", "gflops", "baseline_gflops", "baseline_gbytes",
    "peak_memory_mib", "loss_difference", "gradient_difference", "weights_difference", "networks", "recorded",
    "capture_seconds", "eager_seconds", "device_seconds", "precision_loss_difference", "precision_gradient_difference",
    "precision_weights_difference",
)  # fmt: skip
"""Columns of `Timing.row`."""


class LossesDiffer(ArithmeticError):
    """The two sides do not compute the same, so the ratio of their times is meaningless."""


@dataclass(frozen=True)
class Timing:
    """Timing of the same work on both sides."""

    what: str
    """Kind of work: ``distill``, one iteration; ``evaluate``, one epoch of the training of a network; ``evaluate xK``,
    one epoch of K networks."""
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
    """Seconds of the library's repetitions, each right after one of the baseline; recorded where that works."""
    first_seconds: float
    """Seconds of the library's first repetition, in float32, including compilation; not part of `our_times`."""
    gflop: float
    """Operations in convolutions and matrix products, in 1e9."""
    gbyte: float
    """Bytes that the baseline's operations read and write, in 1e9."""
    ceiling_gflops: float
    """Peak rate of the machine's matrix product, in GFLOP/s."""
    peak_memory_mib: float
    """Peak memory of the library's first repetition in the precision asked for, in MiB."""
    differences: dict[str, float]
    """Relative differences of the two sides in float32: ``loss`` and ``gradient``, or ``weights`` after an epoch."""
    networks: int = 1
    """Number of networks that are trained together."""
    recorded: bool = False
    """Whether `our_times` are those of a CUDA graph."""
    capture_seconds: float | None = None
    """Seconds of recording and verifying the graph; None if nothing was tried."""
    eager_times: tuple[float, ...] = ()
    """Seconds of repetitions before the recording."""
    device_seconds: float | None = None
    """Seconds that a GPU was busy with a repetition, see `ceilings.device_seconds_of`; None elsewhere."""
    precision_differences: dict[str, float] = field(default_factory=dict)
    """Relative differences, by the same names, between the library in the precision asked for and in float32; empty in
    float32."""

    @property
    def baseline_seconds(self) -> float:
        """Median seconds of the baseline."""
        return statistics.median(self.baseline_times)

    @property
    def seconds(self) -> float:
        """Median seconds of the library."""
        return statistics.median(self.our_times)

    @property
    def eager_seconds(self) -> float | None:
        """Median seconds of the library before the recording; None if there is no recording."""
        return statistics.median(self.eager_times) if self.recorded and self.eager_times else None

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
        """The timing as a flat row with the columns ``COLUMNS``; what does not apply is None."""
        derived: dict[str, Any] = {
            "compile_seconds": max(0.0, self.first_seconds - self.seconds),
            "gflops": self.gflop / self.seconds,
            "baseline_gflops": self.gflop / self.baseline_seconds,
            "baseline_gbytes": self.gbyte / self.baseline_seconds,
        }
        for name in ("loss", "gradient", "weights"):
            derived[f"{name}_difference"] = self.differences.get(name)
            derived[f"precision_{name}_difference"] = self.precision_differences.get(name)
        return {name: derived[name] if name in derived else getattr(self, name) for name in COLUMNS}


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative difference ||ours - theirs|| / ||theirs||; 0 if both are zero."""
    gap, size = float((ours - theirs).norm()), float(theirs.norm())
    return gap / size if size > 0 else gap


@dataclass(frozen=True)
class _Values:
    """Weighted terms at an iteration, and the gradient of their sum on the images."""

    losses: Mapping[str, float]
    gradient: Tensor

    @classmethod
    def of(cls, side: Distillation | PerClassLoop) -> "_Values":
        losses = side.losses(0)
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), side.images)
        return cls({name: float(value.detach()) for name, value in losses.items()}, gradient)

    def differences(self, others: "_Values") -> dict[str, float]:
        """Relative differences: the largest of a term, and that of the gradient."""
        terms = [torch.tensor([values.losses[name] for name in self.losses]) for values in (self, others)]
        loss = max(relative_difference(mine, theirs) for mine, theirs in zip(*terms, strict=True))
        return {"loss": loss, "gradient": relative_difference(self.gradient, others.gradient)}


@contextlib.contextmanager
def _computing_in(run: Distillation, name: str) -> Iterator[None]:
    """Lets a run compute in another precision within the block."""
    config = run.config
    changed: Any = name  # one of the setting's choices
    run.config = attrs.evolve(config, compute=attrs.evolve(config.compute, precision=changed))
    try:
        with precision(run.images.device, name):
            yield
    finally:
        run.config = config


def compare(
    run: Distillation,
    *,
    ceiling_gflops: float,
    rounds: int = 3,
    on_iteration: Callable[[], object] | None = None,
) -> Timing:
    """Checks that a run and its loop over classes compute the same, and times both alternately.

    The run is recorded as in a distillation, if the device and ``compute.graph`` allow it, and also timed before that.

    Args:
        run: the run before its first iteration, with the pool that its method needs; its images are updated.
        ceiling_gflops: peak rate of the machine's matrix product, which gives the floor.
        rounds: timed iterations of each side.
        on_iteration: called after each compared or timed iteration of a side.

    Raises:
        LossesDiffer: if in float32 a term differs by more than ``LOSS_TOLERANCE``, or the gradient by
            ``GRADIENT_TOLERANCE``.
        ValueError: for settings that the loop over classes does not implement.
    """
    device, config = run.images.device, run.config
    asked = precision_in_use(device, config.compute.precision)
    loop, done = PerClassLoop(run), on_iteration or (lambda: None)
    found: list[_Values] = []

    def first_of_loop() -> None:
        with _computing_in(run, "fp32"):
            found.append(_Values.of(loop))
            loop.advance(0)

    def first_of_ours() -> None:
        with _computing_in(run, "fp32"):
            found.append(_Values.of(run))

    flops: list[int] = []
    moved = count_bytes(lambda: flops.append(count_flops(first_of_loop)))
    done()
    reset_peak_memory(device)
    first_seconds = seconds_of(first_of_ours, device)
    theirs, ours = found
    differences = ours.differences(theirs)
    # "not <=" rather than ">", so that NaN is caught
    if not (differences["loss"] <= LOSS_TOLERANCE and differences["gradient"] <= GRADIENT_TOLERANCE):
        raise LossesDiffer(
            f"{config.method}: the losses of the loop and ours differ by {differences['loss']:.1e} (at most "
            f"{LOSS_TOLERANCE:.0e} is rounding), their gradients by {differences['gradient']:.1e} (at most "
            f"{GRADIENT_TOLERANCE:.0e}); terms (loop, ours): "
            f"{ {name: (theirs.losses[name], value) for name, value in ours.losses.items()} }"
        )
    with _computing_in(run, asked):
        rounding: dict[str, float] = {}
        if asked != "fp32":
            reset_peak_memory(device)
            rounding = _Values.of(run).differences(ours)
        first_seconds += seconds_of(partial(run.advance, 0), device)
    peak = peak_memory_mib(device)
    done()
    found.clear()
    del theirs, ours

    eager_times, capture_seconds = [], None
    if can_record(device) and config.compute.graph == "auto":
        eager_times = [seconds_of(partial(run.step, number), device) for number in range(1, rounds + 1)]
        capture_seconds = seconds_of(partial(run.record, rounds + 1), device)
    baseline_times, our_times, start = [], [], len(eager_times) + 1
    for number in range(rounds):
        baseline_times.append(seconds_of(partial(loop.step, number + 1), device))
        done()
        our_times.append(seconds_of(partial(run.step, start + number), device))
        done()
    last = partial(run.step, start + rounds)
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
        differences=differences,
        recorded=run.recorded,
        capture_seconds=capture_seconds,
        eager_times=tuple(eager_times),
        device_seconds=device_seconds_of(last, device, host_seconds=statistics.median(our_times)),
        precision_differences=rounding,
    )
