"""The run around the step: folder, lock, signals, checkpoints, resume and progress."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from iidlib.config import RunConfig
from iidlib.data import Dataset, load_dataset
from iidlib.distillation.step import Distillation
from iidlib.engine import configure, pick_device, threads
from iidlib.errors import InputError
from iidlib.features import Pool
from iidlib.networks import check_network_for
from iidlib.runs import Checkpoints, RunFolder
from iidlib.runs.environment import conditions, drift
from iidlib.synthetic import SyntheticSet

__all__ = ["DistillResult", "Stopped", "distill", "pool_bar", "progress"]

logger = logging.getLogger("iidlib")

LOG_EVERY = 10
"""Iterations between logged ones; the last is logged too."""


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
        pool: the pretrained networks, where the method used them.
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

    Some switches of the whole process are set for speed, see `engine.configure`.

    Args:
        config: the settings, see ``config.preset``.
        dataset: what is distilled, of the name that ``config.dataset`` gives; loaded by it when not given.
        out: the run's folder, made here; nothing is kept without it.
        resume: go on with the run in `out` from its newest checkpoint. On a CPU the outcome is that of an unbroken run
            bit for bit, as long as the conditions are those that it was begun under.
        allow_drift: go on even where conditions have changed (versions, device, compiled kernels), which is then said
            in ``environment.json`` and in the set's provenance.
        device: as in ``engine.pick_device``; used when the data set is loaded here.
        on_iteration: called with the number of updates done and a copy of the set, at `iterations_to_show`.
        iterations_to_show: numbers of updates, 0 for the start.
        progress: show a progress bar.

    Raises:
        InputError: for settings that do not fit the data or are for another dataset, or a folder that cannot be used.
        Stopped: on SIGINT or SIGTERM, after the iteration was finished and kept.
        FloatingPointError: if a term of the objective, or the images at a checkpoint, are not finite.
    """
    configure(compiled=config.compute.compile != "off")
    if dataset is None:
        dataset = load_dataset(config.dataset, device=pick_device(device))
    run = Distillation(config, dataset)
    _warn_of_evaluation(config, dataset)
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
                held.close()  # the lock is a file in the folder
                folder.discard()
            raise
        done = _restore(run, folder, saved) if folder and resume else 0
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
        logger.info(
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


def _warn_of_evaluation(config: RunConfig, dataset: Dataset) -> None:
    """Says before the first iteration if the settings name a network that could not be trained on the result."""
    for name in config.eval.networks:
        try:
            check_network_for(name, dataset.spec, width=config.eval.width, compile=config.compute.compile)
        except InputError as error:  # the set is distilled all the same, and may be evaluated by others
            logger.warning("eval.networks: %s", error)


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


def _restore(run: Distillation, folder: RunFolder, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> int:
    """Restores the state of `run` from a checkpoint, if there is one; returns the iterations already done."""
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
    logger.info("going on after %d iterations, from %s", done, Checkpoints(folder.checkpoints).path(done))
    folder.rewind_metrics(done)
    return done


def progress(
    config: RunConfig,
    dataset: Dataset,
    judge: Callable[[SyntheticSet], pd.DataFrame],
    *,
    points: Sequence[int],
    **options: Any,
) -> pd.DataFrame:
    """What a measure says of a set in the course of its distillation.

    The run is that of ``distill``: looking at it in between changes nothing.

    Args:
        config: of the distillation.
        dataset: what is distilled.
        judge: called with a copy of the set; gives rows, such as those of ``evaluate``.
        points: after how many iterations, 0 for the start.
        options: further arguments of ``distill``, such as its folder.

    Returns:
        The rows of `judge`, with a column iteration before them.

    Raises:
        InputError: for a point beyond the distillation's end.
    """
    beyond = [point for point in points if not 0 <= point <= config.iterations]
    if beyond:
        raise InputError(f"the distillation has {config.iterations} iterations, there is no state after {beyond[0]}")
    frames: list[pd.DataFrame] = []

    def look(iteration: int, synthetic: SyntheticSet) -> None:
        rows = judge(synthetic)
        rows.insert(0, "iteration", iteration)
        frames.append(rows)

    distill(config, dataset, on_iteration=look, iterations_to_show=tuple(points), **options)
    return pd.concat(frames, ignore_index=True)
