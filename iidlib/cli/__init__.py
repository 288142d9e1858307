"""The command line, ``iid``: thin wrappers around the library's functions.

Exit status: 0 success, 1 failure while running (the message says what was kept and how to resume), 2 invalid input
(one line, nothing overwritten), 130 and 143 stopped by SIGINT and SIGTERM.
"""

# The commands import the library when they run, so that `iid --help` responds at once.

import contextlib
import io
import itertools
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from iidlib._version import __version__
from iidlib.cli import bench, config, continual, data, distill, evaluate, experts, reproduce, sweep
from iidlib.cli.follower import follow
from iidlib.cli.following import SHARED, release, several_ranks
from iidlib.cli.session import Failed
from iidlib.errors import InputError, RankLost, memory_text, out_of_memory, shortened, suggest
from iidlib.files import user_path

if TYPE_CHECKING:
    from iidlib.ranks import Ranks

__all__ = ["app", "main"]

# click's base class of usage errors; newer versions of typer vendor click, so it is looked up through their exports
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command as Ctrl-C does but has its own exit status."""

    signal = signal.SIGTERM


class _Commands(TyperGroup):
    """Command group that suggests a similar command, and prints the message of an interrupted one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # older versions of typer suggest nothing
        if args and args[0][:1] != "-" and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}{suggest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        # not in `main`: newer versions of typer turn the interrupt into a silent exit before it gets there
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "stopped", err=True)
            raise typer.Exit(128 + getattr(stop, "signal", signal.SIGINT)) from None


class _Command(TyperCommand):
    """Command that expands ``~`` in its paths, which a shell does not do in ``--out=~/run``."""

    def invoke(self, ctx: Any) -> Any:
        # in older versions of typer a path is still text here, and its kind is known from the parameter
        kinds = {param.name: type(getattr(param, "type", None)).__name__ for param in self.params}
        for name, value in ctx.params.items():
            if isinstance(value, Path) or (isinstance(value, str) and kinds[name] in ("Path", "TyperPath")):
                ctx.params[name] = type(value)(user_path(value))
        return super().invoke(ctx)


class _Log(logging.Handler):
    """Log handler that writes to stderr, above any progress bar; a failing stderr never ends the command."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:  # None if the shell closed it
            with contextlib.suppress(OSError, ValueError):
                tqdm.write(self.format(record), file=sys.stderr)


app = typer.Typer(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False
)
"""Typer application with all commands; `main` runs it."""
app.command()(distill.distill)
app.command()(evaluate.evaluate)
app.command()(experts.experts)
app.command()(continual.continual)
app.command()(reproduce.reproduce)
app.command()(sweep.sweep)
app.command()(bench.bench)
app.command()(config.config)
data_app = typer.Typer(cls=_Commands, help="List, download and check datasets.")
data_app.command("list")(data.data_list)
data_app.command("fetch")(data.data_fetch)
data_app.command("check")(data.data_check)
app.add_typer(data_app, name="data")
for _registered in (*app.registered_commands, *data_app.registered_commands):
    _registered.cls = _Command


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"iidlib {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Dataset distillation by distribution matching, with class centralization and covariance matching."""


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its status.

    Args:
        arguments: command-line arguments without the program's name (default: those of this process).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stderr is None:  # closed by the shell (2>&-); some libraries write to it without asking
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal cannot show must not lose a table
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Log()])
    logging.getLogger("iidlib").setLevel(logging.INFO)
    # the distillation loop, which finishes its iteration first, installs its own handlers
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _together(given) as release_others:
            status = app(args=given or ["--help"], prog_name="iid", obj=given, standalone_mode=False)
            if not (isinstance(status, int) and status > 128):  # after a signal the others are not waiting
                release_others()
    except InputError as error:
        _end(2, str(error))
    except _UsageError as error:
        help_of = f" (see {error.ctx.command_path} --help)" if getattr(error, "ctx", None) else ""
        _end(2, shortened(_with_value(error, given)) + help_of)
    except Failed as error:
        _end(1, *str(error).splitlines())
    except OSError as error:
        _end(1, f"failed: {error}")
    except RankLost as error:
        _end(1, f"failed: {error}")
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError) as error:
        if not out_of_memory(error):
            raise
        _end(1, f"failed: {memory_text(error)}", "try smaller numbers")
    sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _together(given: Sequence[str]) -> Iterator[Callable[[], None]]:
    """The block of a command, which under torchrun only rank 0 enters, helped by the others.

    The block calls what it is given when the command has ended; after an error other than wrong input torchrun ends the
    others.
    """
    if (ranks := several_ranks()) is None:
        yield lambda: None
        return
    _joined(ranks, given)
    try:
        yield release
    except (InputError, _UsageError):
        release()
        raise


def _joined(ranks: "Ranks", given: Sequence[str]) -> None:
    """Makes sure that all ranks were given the same command, one that they can share; of those after 0 none returns."""
    from iidlib.runs.environment import versions

    try:
        ranks.check_same({"command": shlex.join(["iid", *given])} | versions())
        if given and given[0] not in SHARED:
            raise InputError(
                f"iid {given[0]} runs in one process, without torchrun; these run on several: {', '.join(SHARED)}"
            )
        if not ranks.leads:
            logging.getLogger("iidlib").setLevel(logging.CRITICAL)  # rank 0 says the same
            follow(ranks)
    except InputError:
        if ranks.leads:
            raise
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.exit(128 + getattr(stop, "signal", signal.SIGINT))
    if not ranks.leads:
        sys.exit(0)


def _with_value(error: Any, given: Sequence[str]) -> str:
    """Message of a usage error, completed with the value given, which some versions of typer leave out."""
    text: str = error.format_message()
    for option in getattr(getattr(error, "param", None), "opts", ()):
        values = [word.partition("=")[2] for word in given if word.startswith(f"{option}=")]
        values += [after for word, after in itertools.pairwise(given) if word == option]
        if values and repr(values[-1]) not in text:
            return f"{text}, got {values[-1]!r}"
    return text


def _end(status: int, message: str, *more: str) -> NoReturn:
    """Exits with a message of one line on stderr, followed by any further lines; of ranks that fail, one says it."""
    if status == 1 and (ranks := several_ranks()) is not None and not ranks.says():
        sys.exit(status)
    with contextlib.suppress(OSError):  # the exit status still reports the failure
        typer.echo("\n".join([f"iid: {' '.join(message.split())}", *more]), err=True)
    sys.exit(status)
