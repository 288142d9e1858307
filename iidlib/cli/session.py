"""Tasks shared by the commands: loading data, checking names, recording the command, reporting interruptions."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from iidlib.cli.following import post
from iidlib.config import RunConfig
from iidlib.errors import InputError, RankLost, memory_text, one_line, out_of_memory, suggest
from iidlib.files import readable

if TYPE_CHECKING:
    from iidlib.data import Dataset


__all__ = ["Failed", "check_names", "given_command", "keeping", "load", "load_here"]


class Failed(Exception):
    """Failure while running that is not a bug; its message says what was kept and how to resume."""


def load(name: str, data_root: Path | None, device: str) -> "Dataset":
    """Loads a dataset onto the requested device; under torchrun every rank does."""
    post("load", name=name, data_root=data_root, device=device)
    return load_here(name, data_root, device)


def load_here(name: str, data_root: Path | None, device: str) -> "Dataset":
    """Loads a dataset onto the requested device of this rank, once all ranks have been asked to."""
    from iidlib.data import load_dataset
    from iidlib.engine import configure, pick_device
    from iidlib.ranks import current

    configure(compiled=False)  # the settings decide later whether kernels are compiled
    ranks = current()
    with ranks.agreed():
        loaded = load_dataset(name, data_root=data_root, device=pick_device(device))
    if ranks.size > 1:
        ranks.check_same({"fingerprint of the data": loaded.train.fingerprint})
    return loaded


def check_names(config: RunConfig) -> None:
    """Checks names before a long distillation that are used only after it."""
    from iidlib.networks import NETWORKS
    from iidlib.training import augmentation_stages, resolve_augmentation

    for name in (config.match.network, config.pool.network, *config.eval.networks):
        if name not in NETWORKS:
            raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    resolve_augmentation(config.match.augmentation, "none")
    augmentation_stages("none" if config.eval.augmentation == "auto" else config.eval.augmentation)


def given_command(ctx: typer.Context, *more: str) -> str:
    """Command line as it was given, to be recorded; with `more` options after its name, the command to resume it."""
    name, *rest = ctx.obj
    return readable(shlex.join(["iid", name, *more, *(part for part in rest if part not in more)]))


@contextlib.contextmanager
def keeping(folder: Path | None = None, again: str = "") -> Iterator[None]:
    """Completes the message of an interruption or failure within the block.

    Args:
        folder: folder of the run, which the message names as the place of what was kept.
        again: command that resumes the run.

    Raises:
        Failed: in place of an exception that is not a bug.
    """

    def with_remedy(message: str, remedy: str) -> str:
        if folder is None or not folder.is_dir() or not any(folder.iterdir()):
            return message
        kept = "" if f"kept in {folder}" in message else f"; progress is kept in {folder}"
        return f"{message}{kept}\n{remedy}"

    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (with_remedy(str(stop) or "stopped", f"resume with: {again}"),)
        raise
    except FloatingPointError as error:
        raise Failed(with_remedy(f"failed: {error}", "start again with another --out")) from error
    except RankLost as error:
        raise Failed(with_remedy(f"failed: {error}", f"resume with: {again}")) from error
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError) as error:
        if isinstance(error, InputError) or not out_of_memory(error):
            raise
        lower = (
            "to need less, lower --set compute.chunk= (images per forward pass), compute.together= (networks at once), "
            "match.batch_real=, eval.batch=, eval.num_eval=, or the width of a network"
        )
        distilled = folder is not None and (folder / "synthetic.safetensors").is_file()
        remedy = (
            f"evaluate the distilled set with: iid evaluate {folder} --set ..."
            if distilled
            else "start again with another --out"
        )
        raise Failed(with_remedy(f"failed: {memory_text(error)}; {lower}", remedy)) from error
    except OSError as error:
        raise Failed(with_remedy(f"failed: {one_line(error)}", f"resume with: {again}")) from error
