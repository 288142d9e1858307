"""Speed: an iteration of the library against the same iteration as a loop over classes, and against the hardware.

The baseline is fixed, so that ratios mean the same from release to release: the classes one after the other, each with
an eager float32 forward pass of its real and of its synthetic images through plain convolution, ``group_norm``, ReLU
and average pooling in PyTorch's default memory format, as in the released code of DM and IID. It is a kind baseline:
the real side keeps no graph, covariance and class centralization are vectorised, all classes share one backward pass,
and it has the same threads.

Both sides start from the same images and read the same draws at every iteration. That their losses and gradients agree
is checked in the run that takes the times: a speed-up that changes the result is an error.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from iidlib import augment
from iidlib.accelerate import compiler_available, device_name, pick_device, precision
from iidlib.config import InputError, RunConfig, preset
from iidlib.data import DatasetSpec, load_dataset
from iidlib.distillation import Distillation
from iidlib.extractors import Pool, frozen, network_for
from iidlib.networks import Network
from iidlib.runs import environment
from iidlib.streams import stream

__all__ = [
    "GRADIENT_TOLERANCE",
    "LOSS_TOLERANCE",
    "BenchReport",
    "Comparison",
    "LossesDiffer",
    "PerClassLoop",
    "compare",
    "count_flops",
    "matrix_product_rate",
    "measure",
    "random_pool",
]

LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3}
"""Largest relative difference at which two losses count as the same, by our precision."""

GRADIENT_TOLERANCE = {"fp32": 1e-2, "tf32": 1e-1}
"""Largest ||a - b|| / ||b|| at which two gradients count as the same, by our precision.

Wider than that of losses: of the millions of activations at the paper's shapes, rounding puts a few on the other side
of the ReLU's kink, and their share of the gradient appears or vanishes. For that reason two eager forms of one network
differ by up to 2e-3 in float32, and by 2e-15 in float64.
"""

_QUICK: dict[str, Any] = {"match.width": 32, "match.batch_real": 64, "pool.width": 32}
_ROUNDS, _QUICK_ROUNDS = 3, 2


class LossesDiffer(ArithmeticError):
    """The two sides do not compute the same thing, so the ratio of their times means nothing."""


def _group_norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = F.group_norm(x, len(weight), weight, bias, eps)
    # ReLU in place, as in the released networks
    return F.avg_pool2d(F.relu(x, inplace=True), 2)


def _plain(network: Network) -> Network:
    """A copy in PyTorch's default memory format, whose blocks are plain eager calls."""
    twin = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for module in twin.modules():
        if hasattr(module, "kernel"):
            module.kernel = _group_norm_relu_pool  # type: ignore[assignment]
            module.winograd = None  # type: ignore[assignment]
    return twin


def _covariance(fmap: Tensor) -> Tensor:
    """Local covariance of one class, [N, K, P] -> [K, K]; see ``losses.local_covariance``."""
    centred = (fmap - fmap.mean(0)).transpose(0, 1).flatten(1)
    return centred @ centred.T / len(fmap)


class PerClassLoop:
    """The baseline: one iteration as a loop over classes, in eager float32.

    It reads the draws, matching networks and trained networks of a run, and leaves the run's images as they are.

    Attributes:
        images: the synthetic images, float32 [C*ipc, K, H, W]; a leaf that requires gradient.
    """

    def __init__(self, run: Distillation) -> None:
        """Takes up a run's settings and a copy of its images.

        Raises:
            ValueError: for a term that the loop does not have, or class centralization in another form than released.
        """
        match = run.config.match
        if not {"mean"} <= run.terms.keys() <= {"mean", "cm", "cc"}:
            raise ValueError(f"the loop over classes has the terms mean, cm and cc, got {', '.join(run.terms)}")
        if "cc" in run.terms and (match.cc_scaling, match.cc_form) != ("released", "linear"):
            raise ValueError(
                "the loop over classes centralizes as released (match.cc_scaling=released, match.cc_form=linear), "
                f"got {match.cc_scaling} and {match.cc_form}"
            )
        self._run = run
        self._experts = {id(network): _plain(network) for network in (run.pool.networks if run.pool else ())}
        self.images = run.images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=run.config.syn.lr, momentum=run.config.syn.momentum)

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        run, config = self._run, self._run.config
        drawn = run.real.sample(config.match.batch_real, stream(config.seed, iteration, "real batch"))
        network = _plain(run.source.draw(iteration))
        expert = self._expert(iteration)
        draws = None
        if run.augmentation != "none":
            draws = augment.sample(
                run.augmentation, run.real.num_classes, stream(config.seed, iteration, "augmentation")
            )
        total = dict.fromkeys(run.terms, self.images.new_zeros(()))
        for label in range(run.real.num_classes):
            real = run.real.images_of(drawn.index[drawn.group == label])
            syn = self.images[run.group == label]
            if draws is not None:
                own = augment.Draws(draws.op[[label]], draws.u[[label]])
                real = augment.apply(real, own, torch.zeros(len(real), dtype=torch.int64))
                syn = augment.apply(syn, own, torch.zeros(len(syn), dtype=torch.int64))
            with torch.no_grad():
                real_map = network.feature_map(real)
                real_mean = network.head(real_map).mean(0)
            syn_map = network.feature_map(syn)
            total["mean"] = total["mean"] + (real_mean - network.head(syn_map).mean(0)).square().sum()
            if "cm" in total:
                gap = _covariance(real_map.flatten(2)) - _covariance(syn_map.flatten(2))
                total["cm"] = total["cm"] + config.match.cm * gap.square().sum()
            if "cc" in total:
                assert expert is not None, "the run needs its pool"
                features = expert.embed(syn)
                total["cc"] = total["cc"] + config.match.cc * (features - features.mean(0)).square().sum()
        return total

    def step(self, iteration: int) -> None:
        """One update of the images, with one backward pass for all classes."""
        with precision(self.images.device, "fp32"):
            loss = torch.stack(list(self.losses(iteration).values())).sum()
            self._optimiser.zero_grad()
            loss.backward()
        self._optimiser.step()

    def _expert(self, iteration: int) -> Network | None:
        run = self._run
        if run.pool is None:
            return None
        return self._experts[id(run.pool.sample(stream(run.config.seed, iteration, "expert")))]


def random_pool(config: RunConfig, spec: DatasetSpec, device: torch.device) -> Pool:
    """One network with random weights in the place of the trained pool: its time is that of a trained one.

    Its features are not; nothing but times may be taken from a run with it.

    Args:
        config: gives the architecture (``pool.network``, ``pool.width``) and the seed.
        spec: the data set that the network fits.
        device: where it goes.
    """
    network = network_for(
        config.pool.network,
        spec,
        width=config.pool.width,
        device=device,
        generator=stream(config.pool.seed, 0, "random pool", device),
        compile=config.compute.compile,
    )
    return Pool([frozen(network).eval()], [float("nan")], "random")


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products that a call runs, backward passes included.

    A multiplication and its addition count as two. Norms, activations, pooling and augmentation are not counted.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one call, with the work that it leaves queued on a GPU."""
    _wait(device)
    begun = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_product_rate(device: torch.device, name: str = "fp32", *, size: int = 0, repeats: int = 10) -> float:
    """The machine's speed at what it does best, a large square matrix product: the ceiling, in GFLOP/s.

    Args:
        device: where to measure.
        name: precision on CUDA, as in ``accelerate.precision``.
        size: rows and columns; 0 for 2048 on a CPU and 8192 elsewhere.
        repeats: products, of which the fastest counts.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    a, b = torch.ones(2, size, size, device=device).unbind()
    out = torch.empty_like(a)
    with precision(device, name):
        best = min(_seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats + 1))
    return 2 * size**3 / best / 1e9


@dataclass(frozen=True)
class Comparison:
    """One method, timed on both sides."""

    method: str
    baseline_seconds: tuple[float, ...]
    """Of each timed iteration of the loop over classes."""
    our_seconds: tuple[float, ...]
    """Of the same iterations of the library, each timed right after the baseline's."""
    warm_up_seconds: float
    """Of the library's first iteration, compilation included; not among those above."""
    gflop: float
    """Convolutions and matrix products of an iteration, in 1e9 operations."""
    losses: dict[str, tuple[float, float]]
    """The weighted terms of the first iteration: the baseline's and ours."""
    loss_difference: float
    """Largest relative difference of a term."""
    gradient_difference: float
    """Of the objective's gradient on the images, norm-wise: ||ours - baseline's|| / ||baseline's||."""

    @property
    def baseline(self) -> float:
        """Median seconds an iteration of the loop over classes."""
        return statistics.median(self.baseline_seconds)

    @property
    def ours(self) -> float:
        """Median seconds an iteration of the library."""
        return statistics.median(self.our_seconds)

    @property
    def ratio(self) -> float:
        """How many times faster the library is."""
        return self.baseline / self.ours


@dataclass(frozen=True)
class BenchReport:
    """What a measurement found, and under which conditions."""

    comparisons: tuple[Comparison, ...]
    shapes: dict[str, Any]
    """Data set, classes, images a class, network and width that both sides had."""
    device: str
    precision: str
    """Of our matrix products; the baseline's is fp32."""
    compiled: bool
    """Whether our kernels were compiled."""
    ceiling_gflops: float
    """The machine's matrix product, in GFLOP/s."""
    environment: dict[str, Any]

    def rows(self) -> list[dict[str, str]]:
        """The table, one row a method, as text under column headings; times in seconds an iteration."""
        return [
            {
                "method": c.method,
                "loop (s)": f"{c.baseline:.3g}",
                "ours (s)": f"{c.ours:.3g}",
                "ratio": f"{c.ratio:.2f}",
                "floor (s)": f"{c.gflop / self.ceiling_gflops:.3g}",
                "GFLOP": f"{c.gflop:.4g}",
                "loop (GFLOP/s)": f"{c.gflop / c.baseline:.4g}",
                "ours (GFLOP/s)": f"{c.gflop / c.ours:.4g}",
                "loss differs": f"{c.loss_difference:.1e}",
                "gradient differs": f"{c.gradient_difference:.1e}",
                "first (s)": f"{c.warm_up_seconds:.3g}",
            }
            for c in self.comparisons
        ]

    def notes(self) -> list[str]:
        """What the table must be read with, a line each."""
        s = self.shapes
        lines = [
            f"{s['dataset']}: {s['classes']} classes, {s['batch_real']} real and {s['ipc']} synthetic images a class, "
            f"{s['network']} of width {s['width']}",
            f"device: {self.device}, {self.precision}, kernels {'compiled' if self.compiled else 'not compiled'}, "
            f"torch {self.environment['torch']}",
            "loop: each class one eager fp32 forward pass, one backward pass an iteration, the same draws; medians of "
            f"{len(self.comparisons[0].our_seconds)} interleaved iterations; first: compilation included",
            f"floor: counted convolutions and matrix products at {self.ceiling_gflops:.4g} GFLOP/s, "
            "the machine's matrix product",
        ]
        if any("cc" in c.losses for c in self.comparisons):
            lines.append(
                f"class centralization on a {s['pool_network']} with random weights, which is enough for times"
            )
        return lines

    def to_json(self) -> str:
        """Everything measured, with medians and ratios, as JSON text."""
        rows = [
            asdict(c) | {"baseline_median": c.baseline, "our_median": c.ours, "ratio": c.ratio}
            for c in self.comparisons
        ]
        return json.dumps(asdict(self) | {"comparisons": rows}, indent=2)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; 0 where both are zero."""
    gap, size = float((ours - theirs).norm()), float(theirs.norm())
    return gap / size if size > 0 else gap


def compare(
    run: Distillation, *, rounds: int = _ROUNDS, on_iteration: Callable[[], object] | None = None
) -> Comparison:
    """Checks that a run and its loop over classes compute the same thing, and times both, in turns.

    Args:
        run: at its first iteration, with the pool that its method needs; its images are updated.
        rounds: timed iterations of each side.
        on_iteration: called after each iteration of a side, the first ones included.

    Raises:
        LossesDiffer: if a term differs by more than ``LOSS_TOLERANCE``, or the gradient by ``GRADIENT_TOLERANCE``.
        ValueError: for settings that the loop over classes does not have.
    """
    device = run.images.device
    ours = run.config.compute.precision if device.type == "cuda" else "fp32"
    loop, done = PerClassLoop(run), on_iteration or (lambda: None)
    sides: list[tuple[dict[str, Tensor], Tensor]] = []

    def first(side: Distillation | PerClassLoop, name: str) -> None:
        with precision(device, name):
            losses = side.losses(0)
            sides.append((losses, torch.autograd.grad(torch.stack(list(losses.values())).sum(), side.images)[0]))
        done()

    flops = count_flops(lambda: first(loop, "fp32"))
    warm_up = _seconds(lambda: first(run, ours), device)
    (theirs, their_gradient), (mine, my_gradient) = sides
    losses = {name: (float(theirs[name].detach()), float(mine[name].detach())) for name in run.terms}
    loss_difference = max(_relative(mine[name].detach(), theirs[name].detach()) for name in run.terms)
    gradient_difference = _relative(my_gradient, their_gradient)
    # "not below" rather than "above", so that NaN is caught
    if not (loss_difference <= LOSS_TOLERANCE[ours] and gradient_difference <= GRADIENT_TOLERANCE[ours]):
        raise LossesDiffer(
            f"{run.config.method}: the losses of the loop and ours differ by {loss_difference:.1e} (at most "
            f"{LOSS_TOLERANCE[ours]:.0e} is rounding), their gradients by {gradient_difference:.1e} (at most "
            f"{GRADIENT_TOLERANCE[ours]:.0e}); terms (loop, ours): {losses}"
        )
    sides.clear()
    del theirs, mine

    loop_seconds, our_seconds = [], []
    for iteration in range(1, rounds + 1):
        loop_seconds.append(_seconds(partial(loop.step, iteration), device))
        done()
        our_seconds.append(_seconds(partial(run.step, iteration), device))
        done()
    return Comparison(
        method=run.config.method,
        baseline_seconds=tuple(loop_seconds),
        our_seconds=tuple(our_seconds),
        warm_up_seconds=warm_up,
        gflop=flops / 1e9,
        losses=losses,
        loss_difference=loss_difference,
        gradient_difference=gradient_difference,
    )


def measure(
    methods: Sequence[str] = ("dm", "dm-cm", "iid-dm"),
    *,
    quick: bool = False,
    device: str = "auto",
    rounds: int | None = None,
    pool_network: str | None = None,
    changes: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> BenchReport:
    """Times methods at the paper's shapes, on cifar10-mini at 10 images a class.

    Args:
        methods: names of ``distillation.METHODS``.
        quick: smaller shapes and fewer rounds: seconds instead of minutes, and no number to quote.
        device: as in ``accelerate.pick_device``.
        rounds: timed iterations of each side; 3, or 2 when quick, if not given.
        pool_network: architecture for class centralization, with random weights; ``resnet18`` as in the paper, or
            ``convnet3`` when quick, if not given.
        changes: further settings by dotted key, as for ``config.override``.
        progress: show a progress bar.

    Raises:
        InputError: for an unknown method, network, device or setting, no method, or fewer than one round.
        LossesDiffer: if the two sides do not compute the same thing.
    """
    rounds = (_QUICK_ROUNDS if quick else _ROUNDS) if rounds is None else rounds
    if rounds < 1 or not methods:
        raise InputError(f"a measurement needs a method and at least one round, got {list(methods)} and {rounds}")
    settings = {"pool.network": pool_network or ("convnet3" if quick else "resnet18")}
    settings |= (_QUICK if quick else {}) | dict(changes or {})
    configs = [preset(method, scale="paper", changes=settings) for method in methods]
    try:
        chosen = pick_device(device)
    except ValueError as error:
        raise InputError(str(error)) from None
    dataset = load_dataset(configs[0].dataset, device=chosen)
    runs = [Distillation(config, dataset) for config in configs]
    for run in runs:
        if any(term.needs_pool for term in run.terms.values()):
            run.pool = random_pool(run.config, dataset.spec, chosen)
    ceiling = matrix_product_rate(chosen, configs[0].compute.precision)
    comparisons = []
    with tqdm(total=len(runs) * 2 * (rounds + 1), unit="it", disable=not progress) as bar:
        for run in runs:
            bar.set_description(run.config.method)
            comparisons.append(compare(run, rounds=rounds, on_iteration=bar.update))
    first = configs[0]
    return BenchReport(
        comparisons=tuple(comparisons),
        shapes={
            "dataset": first.dataset,
            "classes": dataset.train.num_classes,
            "batch_real": min(first.match.batch_real, int(dataset.train.counts.max())),
            "ipc": first.ipc,
            "network": first.match.network,
            "width": first.match.width,
            "pool_network": first.pool.network,
        },
        device=device_name(chosen),
        precision=first.compute.precision if chosen.type == "cuda" else "fp32",
        compiled=first.compute.compile != "off" and compiler_available(),
        ceiling_gflops=ceiling,
        environment=environment(),
    )
