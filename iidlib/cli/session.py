"""What every command does around its work: data on a device, names checked, the record, a stop or a failure told."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from iidlib.config import RunConfig
from iidlib.errors import InputError, memory_text, one_line, out_of_memory, suggest
from iidlib.files import readable

if TYPE_CHECKING:
    from iidlib.data import Dataset


__all__ = ["Failed", "check_names", "given_command", "keeping", "load"]


class Failed(Exception):
    """A failure while running that is no fault of the program; its text says what is kept and how to go on."""


def load(name: str, data_root: Path | None, device: str) -> "Dataset":
    """The data set on the device that was asked for."""
    from iidlib.data import load_dataset
    from iidlib.engine import configure, pick_device

    configure(compiled=False)  # whether kernels are compiled, the settings say later
    return load_dataset(name, data_root=data_root, device=pick_device(device))


def check_names(config: RunConfig) -> None:
    """Names that are used only after a long distillation are checked before it."""
    from iidlib.networks import NETWORKS
    from iidlib.training import augmentation_stages, resolve_augmentation

    for name in (config.match.network, config.pool.network, *config.eval.networks):
        if name not in NETWORKS:
            raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    resolve_augmentation(config.match.augmentation, "none")
    augmentation_stages("none" if config.eval.augmentation == "auto" else config.eval.augmentation)


def given_command(ctx: typer.Context, *more: str) -> str:
    """The command as it was given, for the record; or with `more` behind its name, to resume."""
    name, *rest = ctx.obj
    return readable(shlex.join(["iid", name, *more, *(part for part in rest if part not in more)]))


@contextlib.contextmanager
def keeping(folder: Path | None = None, again: str = "") -> Iterator[None]:
    """Within the block, a stop or a failure from outside says what is kept in `folder` and how to go on."""

    def told(what: str, go_on: str) -> str:
        if folder is None or not folder.is_dir() or not any(folder.iterdir()):
            return what
        kept = "" if f"kept in {folder}" in what else f"; what was done is kept in {folder}"
        return f"{what}{kept}\n{go_on}"

    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (told(str(stop) or "stopped", f"resume with: {again}"),)
        raise
    except FloatingPointError as error:
        raise Failed(told(f"failed: {error}", "begin anew with another --out")) from error
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError) as error:
        if isinstance(error, InputError) or not out_of_memory(error):
            raise
        lower = (
            "it needs less with a smaller --set compute.chunk= (images in one pass), compute.together= (networks at "
            "once), match.batch_real=, eval.batch=, eval.num_eval=, or the width of a network"
        )
        distilled = folder is not None and (folder / "synthetic.safetensors").is_file()
        next_ = (
            f"evaluate its set with: iid evaluate {folder} --set ..." if distilled else "begin anew with another --out"
        )
        raise Failed(told(f"failed: {memory_text(error)}; {lower}", next_)) from error
    except OSError as error:
        raise Failed(told(f"failed: {one_line(error)}", f"resume with: {again}")) from error
