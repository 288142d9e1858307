"""A run's folder: opening, resuming or extending the run, restoring its state, saving its set and pictures."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iidlib.config import RunConfig
from iidlib.data import RealSet
from iidlib.distillation.start import Start
from iidlib.distillation.step import Distillation
from iidlib.engine import device_name
from iidlib.errors import InputError
from iidlib.runs import Checkpoints, RunFolder
from iidlib.runs.environment import conditions, environment, mismatches
from iidlib.synthetic import SyntheticSet

__all__ = [
    "check_continued",
    "conditions_kept",
    "facts_of",
    "keep_set",
    "kept_start",
    "note_device",
    "opened",
    "restored",
    "save_pictures",
]

logger = logging.getLogger("iidlib")


@contextlib.contextmanager
def opened(config: RunConfig, out: str | Path | None, resume: bool) -> Iterator[RunFolder | None]:
    """The run's folder, created or resumed, locked against other processes within the block; None without a folder."""
    if out is None:
        if resume:
            raise InputError("resume needs out, the folder of the run to resume")
        yield None
        return
    with RunFolder.resume(out, config) if resume else RunFolder.begin(out, config) as folder:
        yield folder


def check_continued(
    run: Distillation, folder: RunFolder, saved: tuple[dict[str, Tensor], dict[str, Any]] | None
) -> None:
    """Checks whether a run can be resumed up to the number of iterations in the settings of `run`.

    Raises:
        InputError: if it has already done more, is finished and has no checkpoint left, or has done iterations that
            depend on their planned number.
    """
    before, now = folder.config().iterations, run.config.iterations
    done = max(saved[1]["iteration"] if saved else 0, before if folder.finished else 0)
    if done and now != before and (spread := run.source.spread_by):
        raise InputError(
            f"the run at {folder.path} has done {done} of {before} iterations, over which {spread} spreads its "
            f"networks, so it cannot be extended to iterations={now}; resume it with {before}, or start another run "
            "with another --out"
        )
    if done > now:
        raise InputError(
            f"the run at {folder.path} has done {done} iterations, more than iterations={now}; give {done} or more"
        )
    if saved is None and folder.finished and now != before:
        raise InputError(
            f"the run at {folder.path} is finished and has no checkpoint to continue from to iterations={now}; start "
            f"another run from its set: --init {folder.path} with another --out"
        )


def kept_start(config: RunConfig, real: RealSet, folder: RunFolder) -> Start | None:
    """A substitute for the set that a run was started from, so that the run can be resumed without that set.

    It holds the run's current images, which have the shape of the initial ones and are replaced by the checkpoint's.

    Args:
        config: the settings; ``syn.init`` identifies the set.
        real: the training images.
        folder: folder of the run.

    Returns:
        The start, or None if the run has neither a set nor a checkpoint.

    Raises:
        InputError: if there are checkpoints, but all are corrupted.
    """
    digest = config.syn.init.removeprefix("set:")
    if folder.finished:
        with contextlib.suppress(InputError):  # a corrupted set is rebuilt from the last checkpoint
            synthetic = SyntheticSet.load(folder.path, real.device)
            return Start(synthetic, synthetic.provenance.get("init", "").partition(" from ")[2], digest)
    saved = Checkpoints(folder.checkpoints).load()
    if saved is None:
        return None
    images = saved[0]["images"].to(real.device)
    labels = torch.arange(real.num_classes, device=real.device).repeat_interleave(config.ipc)
    if len(images) != len(labels):
        raise InputError(f"the checkpoint in {folder.checkpoints} has {len(images)} images, not {len(labels)}")
    synthetic = SyntheticSet(images, labels, real.spec, {}, config.syn.factor)
    return Start(synthetic, str(saved[1].get("init", "")), digest)


def keep_set(synthetic: SyntheticSet, run: Distillation, folder: RunFolder) -> None:
    """Writes the set and, for a run that was continued, the settings and existing pictures.

    Each file is replaced atomically. Scores of the previous set are renamed first, so they are never mistaken for the
    new one's; a run that is stopped in between can be continued from its last checkpoint.
    """
    before = folder.config().iterations
    if before != run.config.iterations:
        folder.rename_scores(before)
    synthetic.save(folder.synthetic)
    if before != run.config.iterations:
        folder.write_continued(run.config, run.totals)
        save_pictures(synthetic, folder, only_there=True)


def save_pictures(synthetic: SyntheticSet, folder: RunFolder, *, only_there: bool = False) -> None:
    """Writes the set's images as ``synthetic.png`` and, for mosaics, also as networks see them.

    Args:
        synthetic: the set.
        folder: folder of the run.
        only_there: whether only pictures that exist are replaced.
    """
    for name in ("synthetic.png", "synthetic-expanded.png"):
        path = folder.path / name
        if (name == "synthetic.png" or synthetic.factor > 1) and (path.exists() or not only_there):
            (synthetic if name == "synthetic.png" else synthetic.expanded()).save_png(path)


def conditions_kept(run: Distillation, folder: RunFolder, facts: Mapping[str, Any], allow_mismatch: bool) -> int | None:
    """Compares the current conditions with those the run was started under; returns its number of threads.

    Raises:
        InputError: if they have changed and `allow_mismatch` is false.
    """
    started = facts.get("conditions", {})
    changed = mismatches(started, _conditions_of(run))
    if changed and not allow_mismatch:
        text = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in changed.items())
        raise InputError(
            f"the run at {folder.path} was started under other conditions ({text}), so its numbers would differ from "
            "those of an uninterrupted run; restore them, or accept the difference with --allow-mismatch "
            "(allow_mismatch=True in Python)"
        )
    if changed:
        _note_mismatch(run, folder, facts["iteration"], changed)
    return started.get("threads")


def _note_mismatch(run: Distillation, folder: RunFolder, iteration: int, changed: Mapping[str, Any]) -> None:
    """Notes, in the run's folder and its provenance, what differs since an iteration: its value then and now."""
    folder.note("environment_mismatch", {"iteration": iteration, **changed})
    run.mismatched = True


def facts_of(run: Distillation) -> dict[str, Any]:
    """Facts that a checkpoint holds besides the state."""
    facts = run.facts() | {"chunk": run.chunk, "mismatched": run.mismatched, "totals": run.totals}
    facts |= {} if run.started_from is None else {"init": run.started_from}
    return facts | {"conditions": _conditions_of(run), "ranks": run.ranks.size}


def _conditions_of(run: Distillation) -> dict[str, Any]:
    compute = run.config.compute
    return conditions(run.real.device, compute.compile, compute.precision)


def restored(
    run: Distillation, folder: RunFolder | None, saved: tuple[dict[str, Tensor], dict[str, Any]] | None
) -> int:
    """Restores the state of `run` from a checkpoint, if any; returns the number of iterations already done.

    Only the rank that has the folder writes to it.
    """
    state, facts = saved or ({}, {})
    done = int(facts.get("iteration", 0))
    for name, value in run.facts().items():
        if facts.get(name, value) != value:
            raise InputError(f"the run was started with other {name} ({facts.get(name)}, now {value})")
    run.chunk = int(facts.get("chunk", run.chunk))  # of the device that it was started on; rounding depends on it
    # checkpoints written before the key was renamed have "drifted"
    run.mismatched = run.mismatched or bool(facts.get("mismatched", facts.get("drifted")))
    if saved:
        run.restore(state)
        if folder:
            logger.info("resuming after %d iterations from %s", done, Checkpoints(folder.checkpoints).path(done))
            _say_queue(run, folder, done, state)
    run.recorded_before = facts.get("recorded")
    run.totals = [int(total) for total in facts.get("totals", [])]
    if folder is None:
        return done
    before = folder.config().iterations
    if before != run.config.iterations:
        run.totals += [before] if run.totals[-1:] != [before] else []
        record = {"from": before, "done": done, "to": run.config.iterations, "date": environment()["date"]}
        folder.note("continued", record)
    folder.rewind_metrics(done)
    return done


def _say_queue(run: Distillation, folder: RunFolder, done: int, state: Mapping[str, Tensor]) -> None:
    """Says, in the log, the run's folder and its provenance, that the queue was not restored exactly, if so."""
    held = state.get("queue.weights")
    if "queue.numbers" not in state or (held is not None and held.dtype != torch.float16):
        return
    now = "initial weights" if held is None else "weights rounded to half precision"
    logger.warning(
        "the networks of the queue resume with %s (checkpoint.queue), so the result will differ from that of an "
        "uninterrupted run", now
    )  # fmt: skip
    _note_mismatch(run, folder, done, {"queue": ["full", now]})


def note_device(run: Distillation, folder: RunFolder | None, done: int) -> dict[str, Any]:
    """Notes the device of the iterations from `done` on and, on CUDA, whether they are recorded.

    Recorded and plain steps round differently, so a change since the checkpoint is a mismatch, with a warning.

    Returns:
        Facts about it for a checkpoint.
    """
    device, before = run.images.device, run.recorded_before
    facts = {"recorded": run.recorded} if device.type == "cuda" or run.recorded else {}
    if folder and before is not None and before != run.recorded:
        was, now = ("recorded as CUDA graphs" if each else "not recorded" for each in (before, run.recorded))
        logger.warning(
            "the steps of this run were %s before and are %s now, so the result will differ from that of an "
            "uninterrupted run", was, now
        )  # fmt: skip
        _note_mismatch(run, folder, done, {"steps": [was, now]})
    if folder:
        folder.note("device", {"name": device_name(device), "from": done} | facts)
    return facts | {"mismatched": run.mismatched}
