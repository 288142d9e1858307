"""The loop: one step of a method, and the run around it with checkpoints and resume.

A method is a row of ``METHODS``: the terms of its objective, where its features come from, and how the images follow
the gradient. The loop knows neither names nor weights; a new term joins by a row of ``terms.TERMS``, a new method by a
row of ``METHODS``.

All classes go through one batched forward pass: the norms of the networks act on each image by itself, so the sum over
classes is the same as the official loop over classes, one at a time.
"""

import contextlib
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from iidlib import __version__
from iidlib import config as configuration
from iidlib.accelerate import default_chunk, half_maps, in_chunks, pick_device, precision, threads
from iidlib.capture import CapturedStep, captured_step
from iidlib.checkpoints import Checkpoints, conditions, drift
from iidlib.config import RunConfig
from iidlib.data import Dataset, load_dataset
from iidlib.extractors import NetworkSource, Pool, RandomNetworks, network_for, trained_pool
from iidlib.inputs import InputError, suggest
from iidlib.network_queue import NetworkQueue
from iidlib.networks import Network
from iidlib.runs import RunFolder
from iidlib.statistics import CachedStatistics
from iidlib.streams import stream
from iidlib.synthetic import SyntheticSet
from iidlib.terms import TERMS, StepBatch, Term
from iidlib.training import resolve_augmentation
from iidlib.updaters import UpdaterFactory, class_sweep, joint

__all__ = ["METHODS", "DistillResult", "Distillation", "Method", "Stopped", "distill", "pool_bar"]

log = logging.getLogger("iidlib")

LOG_EVERY = 10
"""Iterations between logged ones; the last is logged too."""


def _random_networks(config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
    match = config.match
    return RandomNetworks(
        match.network,
        dataset.spec,
        width=match.width,
        seed=config.seed,
        device=device,
        compile=config.compute.compile,
    )


def _network_queue(config: RunConfig, dataset: Dataset, device: torch.device) -> NetworkSource:
    match = config.match
    if match.statistics == "cached":
        raise InputError(
            f"match.statistics=cached keeps what fixed networks see; those of {config.method} are in training, "
            "leave it at fresh"
        )

    def build(generator: torch.Generator) -> Network:
        return network_for(
            match.network,
            dataset.spec,
            width=match.width,
            device=device,
            generator=generator,
            compile=config.compute.compile,
        )

    return NetworkQueue(build, dataset.train, config.queue, config.seed)


@dataclass(frozen=True)
class Method:
    """A row of the table of methods."""

    terms: tuple[str, ...]
    """Names out of ``TERMS``; the objective is their weighted sum."""
    source: Callable[[RunConfig, Dataset, torch.device], NetworkSource] = _random_networks
    """Makes what draws the matching network of an iteration."""
    updater: UpdaterFactory = joint
    """Makes what moves the images along the gradient."""

    def terms_in_use(self, config: RunConfig) -> dict[str, Term]:
        """The terms by name, without those that would be zero for want of a second image in each class."""
        pairs = config.ipc * config.syn.factor**2 > 1
        return {name: TERMS[name] for name in self.terms if pairs or not TERMS[name].needs_pairs}


METHODS: dict[str, Method] = {
    "dm": Method(("mean",)),
    "dm-cc": Method(("mean", "cc")),
    "dm-cm": Method(("mean", "cm")),
    "iid-dm": Method(("mean", "cm", "cc")),
    "idm": Method(("mean", "ce"), _network_queue, class_sweep),
    "idm-cc": Method(("mean", "ce", "cc"), _network_queue, class_sweep),
    "idm-cm": Method(("mean", "ce", "cm"), _network_queue, class_sweep),
    "iid-idm": Method(("mean", "ce", "cm", "cc"), _network_queue, class_sweep),
}
"""The methods by name."""


class Distillation:
    """The state of a run: the images being learned, their optimiser and the sources of features.

    Attributes:
        config: the settings.
        real: the training images.
        images: the synthetic images as they are stored, float32 [C*ipc, K, H, W], normalised; a leaf that requires
            gradient.
        group: class of each of them, on the CPU.
        terms: the terms in use, by name.
        source: draws the matching network.
        updater: moves the images.
        pool: trained networks, where a term needs them.
        statistics: of the real images, where the run keeps them.
        augmentation: DSA operations, or ``none``.
        chunk: most images in one forward pass, 0 for all at once.
        drifted: whether the run went on under other conditions than it was begun under.
    """

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        """Checks that the settings fit the data and draws the initial images; the pool is made by `make_pool`.

        Raises:
            InputError: for settings that do not fit the data, or an unknown method, network or augmentation.
        """
        if config.method not in METHODS:
            raise InputError(f"unknown method {config.method!r}{suggest(config.method, METHODS)}")
        self.config, self.real, self._dataset = config, dataset.train, dataset
        device = self.real.device
        method = METHODS[config.method]
        self.augmentation = resolve_augmentation(config.match.augmentation, dataset.spec.augmentation)
        if config.match.network.endswith("-bn"):
            raise InputError(
                f"match.network must look at each image by itself; {config.match.network!r} has batch norm, through "
                "which the classes of a batch would see each other"
            )
        start = SyntheticSet.from_real(
            self.real, config.ipc, stream(config.seed, 0, "initial images"), config.syn.init, config.syn.factor
        )
        self.group = start.labels.cpu()
        self.images = start.images.requires_grad_()
        self._labels = start.labels
        self.terms = method.terms_in_use(config)
        self.source = method.source(config, dataset, device)
        # the first block's maps: convolved, normalised, pooled, and what a backward pass keeps of them
        image_bytes = 4 * 4 * config.match.width * dataset.spec.image_size**2
        self.chunk = config.compute.chunk or default_chunk(device, image_bytes)
        self.pool: Pool | None = None
        self.statistics: CachedStatistics | None = None
        if config.match.statistics == "cached":
            self.statistics = CachedStatistics(config.match.cached_pairs, config.seed)
        self.updater = method.updater(self.images, config.syn, self.real.num_classes)
        self.drifted = False
        self._recorded: CapturedStep | None = None

    def make_pool(self, on_epoch: Callable[[int, int], None] | None = None) -> None:
        """Loads the trained networks, or trains and keeps them, if a term of the method needs them.

        Args:
            on_epoch: called with the network's number and the pass that is done.
        """
        if any(term.needs_pool for term in self.terms.values()):
            self.pool = trained_pool(
                self._dataset,
                self.config.pool,
                device=self.real.device,
                compile=self.config.compute.compile,
                together=self.config.compute.together,
                on_epoch=on_epoch,
            )

    def record(self) -> None:
        """Records the step as a CUDA graph where the settings ask for it and it can be had."""
        if self.config.compute.graph == "auto":
            with precision(self.images.device, self.config.compute.precision):
                self._recorded = captured_step(self, self.terms, self.updater)

    def forward(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Applies a network's function to a batch, in chunks that fit the device."""
        with half_maps(images.device, self.config.compute.precision):
            out = in_chunks(function, images.contiguous(memory_format=torch.channels_last), self.chunk)
        return out.to(images.dtype)  # what is computed from the features is computed in full

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        batch = StepBatch(self, iteration)
        return {name: term.weight(self.config) * term.loss(batch).sum() for name, term in self.terms.items()}

    def step(self, iteration: int, *, log: bool = False) -> dict[str, float]:
        """One update of the images.

        Args:
            iteration: names the draws; the same iteration with the same images gives the same update.
            log: compute what is logged (waits for the device, and takes a backward pass more for each term).

        Returns:
            With `log`: ``loss``, ``loss_<term>`` (weighted) and ``grad_<term>`` (norm of its gradient on the images),
            and what the source of networks has to say.

        Raises:
            FloatingPointError: if a term is not finite (on a GPU seen with `log` only); the images are left as
                they were.
        """
        with precision(self.images.device, self.config.compute.precision):
            if self._recorded is not None and not log:
                self._recorded.step(iteration)
                return {}
            parts = self.losses(iteration)
            row: dict[str, float] = {}
            if log or self.images.device.type == "cpu":  # elsewhere a look would wait for the device
                self._check(parts, iteration)
            if log:
                row = self._describe(parts) | self.source.facts()
            (gradient,) = torch.autograd.grad(torch.stack(list(parts.values())).sum(), self.images)
            self.updater.step(gradient)
            self.advance(iteration)
        return row

    def advance(self, iteration: int) -> None:
        """What follows an update of the images: the source of networks goes on to the next iteration."""
        self.source.advance(iteration)

    def _check(self, parts: Mapping[str, Tensor], iteration: int) -> None:
        """Stops where a term is not finite, before the images follow it."""
        for name, part in parts.items():
            if not bool(part.detach().isfinite()):
                at = f"at iteration {iteration}"
                if not bool(torch.isfinite(self.images).all()):
                    at = f"before iteration {iteration}, and so are the images"
                raise FloatingPointError(
                    f"the term {name!r} is {float(part.detach())} {at}; lower its weight or syn.lr"
                )

    def _describe(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        values = {name: float(part.detach()) for name, part in parts.items()}
        norms = {
            f"grad_{name}": float(torch.autograd.grad(part, self.images, retain_graph=True)[0].norm())
            for name, part in parts.items()
        }
        return {"loss": sum(values.values())} | {f"loss_{name}": value for name, value in values.items()} | norms

    def synthetic(self, iteration: int) -> SyntheticSet:
        """A copy of the set as it is now, after `iteration` updates."""
        provenance = {
            "method": self.config.method,
            "dataset": self.config.dataset,
            "scale": self.config.scale,
            "seed": str(self.config.seed),
            "iterations": str(iteration),
            "config": configuration.fingerprint(self.config),
            "data": self.real.fingerprint,
            "pool": self.pool.fingerprint if self.pool else "",
            "version": __version__,
        }
        if own := configuration.differing(self.config):
            provenance["settings"] = " ".join(f"{key}={value}" for key, value in own.items())
        if self.drifted:
            provenance["drift"] = "see environment.json"
        return SyntheticSet(self.updater.settled(), self._labels, self.real.spec, provenance, self.config.syn.factor)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds; draws are functions of seed and iteration and need no history."""
        return self.updater.state() | self.source.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a checkpoint's state."""
        self.updater.restore(state)
        self.source.restore(state)

    def facts(self) -> dict[str, Any]:
        """What must be the same when a checkpoint is taken up again."""
        facts = {"data": self.real.fingerprint, "pool": self.pool.fingerprint if self.pool else ""}
        return facts | ({"pool weights": self.pool.digest} if self.pool else {})


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal; the iteration was finished and a checkpoint written.

    Attributes:
        signal: the signal's number.
        iteration: iterations done.
        folder: the run's folder, or None where nothing is kept.
    """

    def __init__(self, signal_number: int, iteration: int, folder: Path | None) -> None:
        kept = f"kept in {folder}" if folder else "nothing kept, as no out folder was given"
        super().__init__(f"stopped after {iteration} iterations; {kept}")
        self.signal, self.iteration, self.folder = signal_number, iteration, folder


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Within the block, a first SIGINT or SIGTERM is only noted in the list; a second one acts as usual."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


@dataclass
class DistillResult:
    """What a distillation leaves.

    Attributes:
        synthetic: the set after the last iteration.
        metrics: the logged iterations: iteration, seconds, loss, ``loss_<term>``, ``grad_<term>``, and with a queue
            of networks their number, memory and accuracy.
        seconds: of the iterations of this call, the pool's training not counted.
        pool: the trained networks, where the method used them.
        config: the settings.
    """

    synthetic: SyntheticSet
    metrics: pd.DataFrame
    seconds: float
    pool: Pool | None
    config: RunConfig


def distill(
    config: RunConfig,
    dataset: Dataset | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    allow_drift: bool = False,
    device: str = "auto",
    on_iteration: Callable[[int, SyntheticSet], None] | None = None,
    iterations_to_show: tuple[int, ...] = (),
    progress: bool = False,
) -> DistillResult:
    """Distils a data set: learns ``config.ipc`` synthetic images a class.

    Args:
        config: the settings, see ``config.preset``.
        dataset: what is distilled; loaded by ``config.dataset`` when not given.
        out: the run's folder, made here; nothing is kept without it.
        resume: go on with the run in `out` from its newest checkpoint. On a CPU the outcome is that of an unbroken run
            bit for bit, as long as the conditions are those that it was begun under.
        allow_drift: go on even where conditions have changed (versions, device, compiled kernels), which is then said
            in ``environment.json`` and in the set's provenance.
        device: as in ``accelerate.pick_device``; used when the data set is loaded here.
        on_iteration: called with the number of updates done and a copy of the set, at `iterations_to_show`.
        iterations_to_show: numbers of updates, 0 for the start.
        progress: show a progress bar.

    Raises:
        InputError: for settings that do not fit the data, or a folder that cannot be used.
        Stopped: on SIGINT or SIGTERM, after the iteration was finished and kept.
        FloatingPointError: if a term of the objective, or the images at a checkpoint, are not finite.
    """
    if dataset is None:
        dataset = load_dataset(config.dataset, device=pick_device(device))
    run = Distillation(config, dataset)
    folder = _open(config, out, resume)
    with contextlib.ExitStack() as held:
        held.enter_context(folder.lock() if folder else contextlib.nullcontext())
        if folder and resume:
            folder.remove_unfinished()
        saved = Checkpoints(folder.checkpoints).load() if folder and resume else None
        if folder and saved:
            held.enter_context(threads(_conditions_kept(run, folder, saved[1], allow_drift)))
        try:
            with pool_bar(config, progress) as on_pool_epoch:
                run.make_pool(on_pool_epoch)
        except InputError:
            if folder and not resume:
                shutil.rmtree(folder.path)  # made a moment ago and empty but for the settings
            raise
        done = _take_up(run, folder, saved) if folder and resume else 0
        return _distill(run, folder, done, on_iteration, iterations_to_show, progress)


def _distill(
    run: Distillation,
    folder: RunFolder | None,
    done: int,
    on_iteration: Callable[[int, SyntheticSet], None] | None,
    iterations_to_show: tuple[int, ...],
    progress: bool,
) -> DistillResult:
    """The loop and what surrounds it, after `done` iterations, in a folder that no other process works in."""
    config = run.config
    facts = run.facts() | {"chunk": run.chunk, "drifted": run.drifted}
    facts["conditions"] = conditions(run.real.device, config.compute.compile)
    run.record()
    rows: list[dict[str, Any]] = folder.metric_rows() if folder else []
    begun = saved_at = time.perf_counter()
    seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
    bar = tqdm(total=config.iterations, initial=done, desc=config.method, unit="it", disable=not progress)

    def show() -> None:
        if on_iteration is not None and done in iterations_to_show:
            on_iteration(done, run.synthetic(done))

    with _signals_noted() as noted, bar, _last_good_named(folder):
        show()
        while done < config.iterations:
            row = run.step(done, log=done % LOG_EVERY == 0 or done == config.iterations - 1)
            if row:
                rows.append({"iteration": done, "seconds": seconds_before + time.perf_counter() - begun} | row)
                bar.set_postfix({name: f"{value:.3g}" for name, value in row.items() if name.startswith("loss")})
                if folder:
                    folder.append_metrics(rows[-1])
            done += 1
            bar.update()
            show()
            waited = 0 < config.checkpoint.seconds <= time.perf_counter() - saved_at
            if noted or waited or done % config.checkpoint.every == 0 or done == config.iterations:
                # between logged iterations nothing else looks; the checkpoints before are still good
                if not bool(torch.isfinite(run.images).all()):
                    raise FloatingPointError(f"the images are not finite after {done} iterations; lower syn.lr")
                if folder:
                    Checkpoints(folder.checkpoints).save(done, run.state(), facts)
                saved_at = time.perf_counter()
            if noted and done < config.iterations:
                raise Stopped(noted[0], done, folder.path if folder else None)
    synthetic = run.synthetic(done)
    if folder:
        synthetic.save(folder.synthetic)
    if run.statistics is not None:
        log.info(
            "statistics of %d pairs cached: %.1f s, %.0f MiB",
            min(run.statistics.pairs, config.iterations), run.statistics.seconds, run.statistics.mebibytes,
        )  # fmt: skip
    if noted:  # within the last iteration
        raise Stopped(noted[0], done, folder.path if folder else None)
    return DistillResult(synthetic, pd.DataFrame(rows), time.perf_counter() - begun, run.pool, config)


@contextlib.contextmanager
def _last_good_named(folder: RunFolder | None) -> Iterator[None]:
    """Within the block, what is not finite is told with the checkpoint that is still good."""
    try:
        yield
    except FloatingPointError as error:
        good = Checkpoints(folder.checkpoints).paths() if folder else []
        last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        raise FloatingPointError(f"{error}; {last}") from None


@contextlib.contextmanager
def pool_bar(config: RunConfig, progress: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the passes of the pool's training, which appears with the first pass."""
    bar: tqdm | None = None

    def on_epoch(number: int, epoch: int) -> None:
        nonlocal bar
        if bar is None:
            passes = (config.pool.count - number) * config.pool.epochs
            bar = tqdm(total=passes, desc="training the pool", unit="pass", disable=not progress)
        bar.update()

    try:
        yield on_epoch
    finally:
        if bar is not None:
            bar.close()


def _open(config: RunConfig, out: str | Path | None, resume: bool) -> RunFolder | None:
    """The run's folder, made or found; None where nothing is kept."""
    if out is None:
        if resume:
            raise InputError("resume needs the folder of the run to go on with")
        return None
    return RunFolder.reopen(out, config) if resume else RunFolder.create(out, config)


def _conditions_kept(run: Distillation, folder: RunFolder, facts: Mapping[str, Any], allow_drift: bool) -> int | None:
    """Compares the conditions with those that the run was begun under; returns its number of threads.

    Raises:
        InputError: if they have changed and that is not allowed.
    """
    begun = facts.get("conditions", {})
    changed = drift(begun, conditions(run.real.device, run.config.compute.compile))
    if changed and not allow_drift:
        text = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in changed.items())
        raise InputError(
            f"the run at {folder.path} was begun under other conditions ({text}), so that its numbers would be others "
            "than those of an unbroken run; restore them, or accept that with --allow-drift"
        )
    if changed:
        folder.note("drift", {"iteration": facts["iteration"]} | changed)
        run.drifted = True
    return begun.get("threads")


def _take_up(run: Distillation, folder: RunFolder, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> int:
    """Gives `run` the state of a checkpoint; returns the iterations already done."""
    if saved is None:
        folder.rewind_metrics(0)
        return 0
    state, facts = saved
    for name, value in run.facts().items():
        if facts.get(name, value) != value:
            raise InputError(f"the run at {folder.path} was begun with other {name} ({facts.get(name)}, now {value})")
    run.chunk = int(facts.get("chunk", run.chunk))  # what memory was free then decides, so that rounding is the same
    run.drifted = run.drifted or bool(facts.get("drifted"))
    run.restore(state)
    done = int(facts["iteration"])
    log.info("going on after %d iterations, from %s", done, Checkpoints(folder.checkpoints).path(done))
    folder.rewind_metrics(done)
    return done
