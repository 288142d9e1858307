"""The run: the loop over steps, its checkpoints and its progress."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import pandas as pd
import torch

from iidlib.bars import Bar, bar
from iidlib.config import RunConfig, flattened
from iidlib.data import Dataset, load_dataset
from iidlib.distillation.divergence import remedy, warn_of_range
from iidlib.distillation.finished import (
    check_continued,
    conditions_kept,
    facts_of,
    keep_set,
    kept_start,
    note_device,
    opened,
    restored,
)
from iidlib.distillation.start import starting_from
from iidlib.distillation.step import Distillation, check_dataset
from iidlib.distillation.stopping import Stopped, signals_noted
from iidlib.engine import configure, pick_device, threads
from iidlib.errors import InputError
from iidlib.features import Pool
from iidlib.networks import check_network_for
from iidlib.notes import log_once
from iidlib.ranks import current
from iidlib.runs import Checkpoints, RunFolder
from iidlib.runs.environment import versions
from iidlib.synthetic import SyntheticSet

__all__ = ["DistillResult", "distill", "finished_run", "pool_bar"]

logger = logging.getLogger("iidlib")

LOG_EVERY = 10
"""Interval of logged iterations; the last is always logged."""


@dataclass
class DistillResult:
    """Result of a distillation.

    Attributes:
        synthetic: the set after the last iteration.
        metrics: the logged iterations: iteration, seconds, loss, ``loss_<term>``, ``grad_<term>``; with a queue of
            networks also their number, memory and accuracy, with stages of a pool the accuracy of the one drawn.
        seconds: time spent by this call on iterations and on choosing initial images, without the pool's training.
        pool: the pretrained networks, if the iterations of this call used them.
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
    allow_mismatch: bool = False,
    device: str = "auto",
    init: SyntheticSet | str | Path | None = None,
    on_iteration: Callable[[int, SyntheticSet], None] | None = None,
    iterations_to_show: tuple[int, ...] = (),
    progress: bool | None = False,
) -> DistillResult:
    """Distils a dataset: learns ``config.ipc`` synthetic images per class.

    Some process-wide options are set for speed, see `engine.configure`.

    Args:
        config: the settings, see ``config.preset``.
        dataset: the dataset to distil, which must be the one that ``config.dataset`` names; loaded if not given.
        out: folder of the run, created here; without it nothing is saved.
        resume: resume the run in `out` from its newest checkpoint. On a CPU, under unchanged conditions, the result is
            bit for bit that of an uninterrupted run. With more iterations in `config` than before, the run is
            continued, as if it had been started with that number; its previous set, picture and settings are replaced
            at the end. A finished run is only read.
        allow_mismatch: resume even where conditions have changed (versions, device, compiled kernels), which is then
            recorded in ``environment.json`` and in the set's provenance.
        device: as in ``engine.pick_device``; used if the dataset is loaded here.
        init: a set, its file, or the folder of its run, to start from its images, see `start.starting_from`. A run
            that has a checkpoint and whose ``syn.init`` identifies the set is resumed without it.
        on_iteration: called at `iterations_to_show` with the number of updates done and a copy of the set.
        iterations_to_show: numbers of updates, 0 for the start.
        progress: draw a progress bar; None draws one on a terminal, and otherwise logs a line every minute.

    Raises:
        InputError: for settings that do not fit the data or are for another dataset, or a folder that cannot be used.
        Stopped: on SIGINT or SIGTERM, after the iteration was finished and saved.
        FloatingPointError: if a term of the objective, or the images at a checkpoint, are not finite.

    Example:
        >>> from iidlib import distill, preset
        >>> config = preset("dm", "cifar10-mini", 1, "ci", {"iterations": 1, "compute.compile": "off"})
        >>> distill(config).synthetic.images.shape
        torch.Size([10, 3, 32, 32])
    """
    if not isinstance(config, RunConfig):
        raise InputError(f"config must be a RunConfig, such as preset('dm', 'cifar10-mini') gives one, got {config!r}")
    if not isinstance(dataset, Dataset | None):
        raise InputError(f"dataset must be a Dataset, such as load_dataset('cifar10-mini'), got {dataset!r}")
    if not isinstance(out, str | os.PathLike | None):
        raise InputError(f"out must be the path of a folder, got {out!r}")
    configure(compiled=config.compute.compiled)
    ranks = current()
    with ranks.agreed():
        if dataset is None:
            dataset = load_dataset(config.dataset, device=pick_device(device))
        start = None
        only_named = resume and init is None and config.syn.init.startswith("set:")
        if resume:
            check_dataset(config, dataset)
    shown = tuple(iterations_to_show) if on_iteration is not None else ()
    ranks.check_same(_facts(config, dataset) | {"resume": resume, "iterations to show": shown})
    kept = None
    with ranks.agreed():
        if init is not None and ranks.leads:
            config, start = starting_from(config, init)
        if resume and ranks.leads:  # a finished run is only read, even if it could not be repeated here
            kept = finished_run(config, dataset, out)
    config, start, kept = ranks.first((config, start, kept))
    if kept:
        if on_iteration is not None and config.iterations in iterations_to_show:
            on_iteration(config.iterations, kept.synthetic)
        return kept
    with contextlib.ExitStack() as held:
        with ranks.agreed():
            if only_named and out is not None and ranks.leads:
                start = kept_start(config, dataset.train, RunFolder.reopen(out, config, more=True))
        start = ranks.first(start)
        folder, saved = None, None
        with _begun(lambda: None if resume else folder), ranks.agreed():
            run = Distillation(config, dataset, start)
            _warn_of_evaluation(config, dataset)
            if ranks.leads:
                folder = held.enter_context(opened(config, out, resume))
                saved = Checkpoints(folder.checkpoints).load() if folder and resume else None
            if folder and resume:
                check_continued(run, folder, saved)
                if only_named and saved is None:
                    raise InputError(
                        f"the run at {folder.path} has no checkpoint, so it starts again from {config.syn.init}; give "
                        "that set with --init PATH"
                    )
            count = conditions_kept(run, folder, saved[1], allow_mismatch) if folder and saved else None
            if saved and saved[1].get("ranks", 1) != ranks.size:
                count = None  # the threads of another number of processes
        saved, (count, run.mismatched) = ranks.first(saved), ranks.first((count, run.mismatched))
        held.enter_context(threads(count))
        try:
            with pool_bar(attrs.evolve(config, pool=run.pool_settings), progress) as on_pool_epoch:
                run.make_pool(on_pool_epoch, resumed=saved is not None)
        except InputError:
            if folder and not resume:
                folder.discard()
            raise
        if folder and run.trained and not folder.noted("pool"):
            pool = run.trained
            facts = {"networks": pool.digest, "accuracies": pool.accuracies, "seconds": pool.seconds}
            folder.note("pool", facts | ({"ensemble": pool.ensemble} if pool.ensemble else {}))
        with ranks.agreed():
            done = restored(run, folder, saved) if resume else 0
        try:
            return _distill(run, folder, done, on_iteration, iterations_to_show, progress if ranks.leads else False)
        finally:
            run.close()


@contextlib.contextmanager
def _begun(folder: Callable[[], RunFolder | None]) -> Iterator[None]:
    """A block that begins a run; if the input is refused in it, on any rank, the folder is as it was."""
    try:
        yield
    except InputError:
        if (begun := folder()) is not None:
            begun.discard()
        raise


def _facts(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """What must be the same in all processes of a run."""
    return versions() | flattened(config) | {"fingerprint of the data": dataset.train.fingerprint}


def finished_run(config: RunConfig, dataset: Dataset, out: str | Path | None) -> DistillResult | None:
    """Result of a finished run, without its pool; None if the run is not finished.

    Nothing is written, so the folder may be read-only.

    Args:
        config: the settings, with the total number of iterations.
        dataset: the dataset that was distilled.
        out: folder of the run.

    Raises:
        InputError: if there is no run, or it was started with other settings or data.
    """
    if out is None:
        return None
    folder = RunFolder.reopen(out, config, more=True)
    if not folder.finished or folder.config().iterations != config.iterations:
        return None
    try:
        synthetic = SyntheticSet.load(folder.path, dataset.train.device)
    except InputError as error:
        again = "from the last checkpoint" if Checkpoints(folder.checkpoints).paths() else "from the first iteration"
        log_once(logging.WARNING, f"{error}; rebuilding it {again}")  # once: the command line calls this too
        return None
    known = synthetic.provenance
    if known.get("iterations") != str(config.iterations):
        return None
    data = known.get("data", dataset.train.fingerprint)
    if data != dataset.train.fingerprint:
        raise InputError(
            f"the run at {folder.path} was started with other data ({data}, now {dataset.train.fingerprint}); its set "
            f"can be evaluated: iid evaluate {folder.path}"
        )
    # a run that was stopped while being continued has logged iterations beyond those of its set
    rows = [row for row in folder.metric_rows() if row["iteration"] < config.iterations]
    return DistillResult(synthetic, pd.DataFrame(rows), 0.0, None, config)


def _distill(
    run: Distillation,
    folder: RunFolder | None,
    done: int,
    on_iteration: Callable[[int, SyntheticSet], None] | None,
    iterations_to_show: tuple[int, ...],
    progress: bool | None,
) -> DistillResult:
    """Runs the loop from iteration `done` on and saves the result, in a folder that is locked."""
    config = run.config
    facts = facts_of(run)  # before the recording, since a kernel that fails in it does so in every process
    if done < config.iterations:
        run.record(done)
        facts |= note_device(run, folder, done)
    rows: list[dict[str, Any]] = folder.metric_rows() if folder else []
    saved_at = time.perf_counter()
    started = saved_at - run.choice_seconds
    seconds_before = float(rows[-1].get("seconds", 0)) if rows else 0.0

    def show() -> None:
        if on_iteration is not None and done in iterations_to_show:
            on_iteration(done, run.synthetic(done))

    shown = bar(config.method, config.iterations, "iteration", done=done, shown=progress)
    with signals_noted() as noted, shown as progress_bar, _last_good_named(folder):
        show()
        while done < config.iterations:
            row = run.step(done, log=done % LOG_EVERY == 0 or done == config.iterations - 1)
            if row:
                rows.append({"iteration": done, "seconds": seconds_before + time.perf_counter() - started} | row)
                losses = [f"{name}={value:.3g}" for name, value in row.items() if name.startswith("loss")]
                progress_bar.note(", ".join(losses))
                if folder:
                    folder.append_metrics(rows[-1])
            done += 1
            progress_bar.advance()
            show()
            # all ranks save, and stop, after the same iteration
            stop, due = run.ranks.any(bool(noted), 0 < config.checkpoint.seconds <= time.perf_counter() - saved_at)
            if stop or due or done % config.checkpoint.every == 0 or done == config.iterations:
                # on a GPU nothing else checks between logged iterations; earlier checkpoints are still good
                (broken,) = run.ranks.any(not bool(torch.isfinite(run.optimiser.images).all()))
                if broken:
                    raise FloatingPointError(f"the images are not finite after {done} iterations; {remedy(run)}")
                if folder or run.ranks.size > 1:
                    state = run.state()  # of all ranks
                if folder:
                    Checkpoints(folder.checkpoints).save(done, state, facts)
                saved_at = time.perf_counter()
            if stop and done < config.iterations:
                raise Stopped(noted[0] if noted else signal.SIGTERM, done, folder.path if folder else None)
    synthetic = run.synthetic(done)
    warn_of_range(run)
    if folder:
        keep_set(synthetic, run, folder)
    if run.statistics is not None:
        logger.info(
            "statistics of %d pairs cached: %.1f s, %.0f MiB",
            min(run.statistics.pairs, config.iterations), run.statistics.seconds, run.statistics.mebibytes,
        )  # fmt: skip
    if noted:  # during the last iteration
        raise Stopped(noted[0], done, folder.path if folder else None)
    return DistillResult(synthetic, pd.DataFrame(rows), time.perf_counter() - started, run.pool, config)


@contextlib.contextmanager
def _last_good_named(folder: RunFolder | None) -> Iterator[None]:
    """Adds the last good checkpoint to the message of a FloatingPointError within the block."""
    try:
        yield
    except FloatingPointError as error:
        good = Checkpoints(folder.checkpoints).paths() if folder else []
        last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        raise FloatingPointError(f"{error}; {last}") from None


def _warn_of_evaluation(config: RunConfig, dataset: Dataset) -> None:
    """Warns before the first iteration about networks of ``eval.networks`` that cannot be trained on the result."""
    for name in config.eval.networks:
        try:
            check_network_for(name, dataset.spec, width=config.eval.width, compile=config.compute.compile)
        except InputError as error:  # the set can still be distilled, and evaluated with other networks
            logger.warning("eval.networks: %s", error)


@contextlib.contextmanager
def pool_bar(config: RunConfig, progress: bool | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the epochs of the pool's training, which appears with the first epoch."""
    progress_bar: Bar | None = None

    def on_epoch(number: int, epoch: int) -> None:
        nonlocal progress_bar
        if progress_bar is None:
            epochs = (config.pool.count - number) * config.pool.epochs
            progress_bar = stack.enter_context(bar("training the pool", epochs, "epoch", shown=progress))
        progress_bar.advance()

    with contextlib.ExitStack() as stack:
        yield on_epoch
