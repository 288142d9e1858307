"""The command line, ``iid``: thin commands over the functions of the library.

Exit status: 0 done, 1 failed while running (with what is kept and how to go on), 2 wrong input (one line, nothing
overwritten), 130 and 143 stopped by SIGINT and SIGTERM.
"""

# The library is imported inside the commands, so that `iid --help` answers at once.

import contextlib
import io
import itertools
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from iidlib._version import __version__
from iidlib.cli import bench, config, continual, data, distill, evaluate, experts, reproduce, sweep
from iidlib.cli.session import Failed
from iidlib.errors import InputError, memory_text, out_of_memory, shortened
from iidlib.files import user_path

__all__ = ["app", "main"]

# click's base of all usage errors; newer typers carry a click of their own, so it is found through what they export
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with an exit status of its own."""

    signal = signal.SIGTERM


class _Commands(TyperGroup):
    """The commands; a stop is told in the words of whoever was stopped."""

    def invoke(self, ctx: Any) -> Any:
        # here and not in `main`: newer typers make a silent exit of it before it gets there
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "stopped", err=True)
            raise typer.Exit(128 + getattr(stop, "signal", signal.SIGINT)) from None


class _Command(TyperCommand):
    """A command whose paths know ``~``, which a shell leaves as it is in ``--out=~/run``."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            if isinstance(value, Path):
                ctx.params[name] = user_path(value)
        return super().invoke(ctx)


class _Log(logging.Handler):
    """Messages on stderr, above a progress bar where there is one; what cannot be said there ends no work."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:  # closed by the shell, or never there
            with contextlib.suppress(OSError, ValueError):
                tqdm.write(self.format(record), file=sys.stderr)


app = typer.Typer(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False
)
"""The commands, as Typer gathers them; `main` runs them."""
app.command()(distill.distill)
app.command()(evaluate.evaluate)
app.command()(experts.experts)
app.command()(continual.continual)
app.command()(reproduce.reproduce)
app.command()(sweep.sweep)
app.command()(bench.bench)
app.command()(config.config)
data_app = typer.Typer(help="Data sets: what is known, fetch one, check its files.")
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
        arguments: without the program's name; those of this process if not given.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table is not lost for a sign that the terminal does not have
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Log()])
    logging.getLogger("iidlib").setLevel(logging.INFO)
    # the loop of a distillation, which ends its iteration first, has handlers of its own
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(args=given or ["--help"], prog_name="iid", obj=given, standalone_mode=False)
    except InputError as error:
        _end(2, str(error))
    except _UsageError as error:
        help_of = f" (see {error.ctx.command_path} --help)" if getattr(error, "ctx", None) else ""
        _end(2, shortened(_with_value(error, given)) + help_of)
    except Failed as error:
        _end(1, *str(error).splitlines())
    except OSError as error:
        _end(1, f"failed: {error}")
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError) as error:
        if not out_of_memory(error):
            raise
        _end(1, f"failed: {memory_text(error)}", "give smaller numbers")
    sys.exit(status if isinstance(status, int) else 0)


def _with_value(error: Any, given: Sequence[str]) -> str:
    """What is wrong with an option, with the value that it was given, which not every typer names."""
    text: str = error.format_message()
    for option in getattr(getattr(error, "param", None), "opts", ()):
        values = [word.partition("=")[2] for word in given if word.startswith(f"{option}=")]
        values += [after for word, after in itertools.pairwise(given) if word == option]
        if values and repr(values[-1]) not in text:
            return f"{text}, got {values[-1]!r}"
    return text


def _end(status: int, message: str, *more: str) -> NoReturn:
    """Ends with a line on stderr, and what goes below it."""
    with contextlib.suppress(OSError):  # the status says it too
        typer.echo("\n".join([f"iid: {' '.join(message.split())}", *more]), err=True)
    sys.exit(status)
