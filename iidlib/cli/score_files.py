"""Saves the rows of evaluated networks where the options say, even if the evaluation is interrupted."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from iidlib.errors import InputError
from iidlib.files import atomic_write, resolved_path, write_new

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.runs import RunFolder

__all__ = ["KeptRows", "can_be_scored", "check_apart"]


def check_apart(results: Path, out: Path, *, folder: bool) -> None:
    """Rejects a ``--results`` path that collides with the command's other output, before any work is done.

    Args:
        results: path given with ``--results``.
        out: path given with ``--out``, or the folder of the run.
        folder: whether `out` is a folder (of a run, or of the runs of several steps) rather than a file.

    Raises:
        InputError: if the paths are equal, or one would lie inside the other where it cannot.
    """
    table, other = resolved_path(results), resolved_path(out)
    clash = "are the same" if table == other else "overlap: one of them is a file that would contain the other"
    if table == other or table in other.parents or (not folder and other in table.parents):
        raise InputError(f"--results {results} and --out {out} {clash}; give another --results")
    if folder and other in table.parents:
        from iidlib.runs.contents import belongs_to_run

        first = table.relative_to(other).parts[0]
        if belongs_to_run(first) or first.startswith("step-"):
            raise InputError(f"--results {results} is reserved for files of the run in {out}; give another --results")


def can_be_scored(folder: "RunFolder") -> bool:
    """Whether scores can be saved in the folder of a finished run; prints a note if it is read-only."""
    from iidlib.experiments import check_writable

    try:
        check_writable(folder.path / "scores.json")
    except InputError as error:
        typer.echo(f"scores are shown but not saved ({error})", err=True)
        return False
    return True


class KeptRows:
    """Rows of an evaluation so far. If the block ends early, they are saved, and a line says where.

    ``scores.json`` of a run always holds a complete evaluation; an incomplete one goes to ``scores-incomplete.json``.

    Attributes:
        tables: rows of the finished networks of each set.
        finished: the finished networks, kept in the cache until all rows are saved, so that the command can be resumed.
    """

    def __init__(self, *, run: "RunFolder | None" = None, out: Path | None = None, results: Path | None = None) -> None:
        from iidlib.evaluation import FinishedNetworks

        self.tables: list[pd.DataFrame] = []
        self.finished = FinishedNetworks()
        self._run, self._out, self._results = run, out, results
        self._places: list[str] = []

    def add(self, rows: "pd.DataFrame") -> None:
        """Adds the finished rows of a set."""
        self.tables.append(rows)

    def save(self, scores: "pd.DataFrame", *, of_run: bool) -> None:
        """Saves the complete evaluation.

        Args:
            scores: its rows.
            of_run: whether they are the run's own, by its own protocol.

        Raises:
            OSError: if a file cannot be written; leaving the block then saves the rows elsewhere.
            InputError: likewise, if the table was replaced by something else in the meantime.
        """
        from iidlib.experiments import append_results

        if self._out is not None:
            from iidlib.runs.records import score_text

            written = write_new(self._out, score_text(scores))
            if written != self._out:
                typer.echo(
                    f"{self._out} was created in the meantime and is not overwritten; the scores are in {written}",
                    err=True,
                )
            _remove_incomplete(self._out)
            self._out = None
            self._places.append(str(written))
        if self._run is not None:
            if of_run:
                self._run.write_scores(scores)
                self._places.append(str(self._run.path / "scores.json"))
            _remove_incomplete(self._run.path / "scores.json")
            self._run = None
        if self._results is not None:
            append_results(self._results, scores)
            self._results = None
        self.tables.clear()
        self.finished.forget()

    def __enter__(self) -> "KeptRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self.tables:
            return
        import pandas as pd

        rows = pd.concat(self.tables, ignore_index=True)
        saved = self._saved(rows)
        where = f"are saved in {' and '.join(saved)}" if saved else "could not be saved"
        again = "; a resumed evaluation continues after them" if self.finished.writable else ""
        typer.echo(f"{len(rows)} networks were already evaluated; their rows {where}{again}", err=True)

    def _saved(self, rows: "pd.DataFrame") -> list[str]:
        """Saves rows in each place that does not have them yet; if all of these fail, in a fallback location."""
        from iidlib.runs.records import score_text

        marked = score_text(rows.assign(incomplete=True))
        places: list[Callable[[], Path]] = []
        if self._run is not None and self._run.path.is_dir():
            incomplete = _incomplete(self._run.path / "scores.json")[0]
            places.append(lambda: _rewritten(incomplete, marked))
        if (out := self._out) is not None:
            places.append(lambda: _write_incomplete(out, marked))
        if (results := self._results) is not None:
            places.append(lambda: _added(results, rows))
        found = self._places
        for place in places:
            with contextlib.suppress(OSError, InputError):
                found.append(str(place()))
        if not found:
            for folder in (Path(), Path(tempfile.gettempdir())):
                with contextlib.suppress(OSError):
                    return [str(write_new(folder / "scores-incomplete.json", marked))]
        return found


def _incomplete(out: Path) -> tuple[Path, bool]:
    """Path of an incomplete evaluation next to that of the complete one, and whether the file there holds one."""
    from iidlib.runs.records import score_records

    path = out.with_name(f"{out.stem}-incomplete{out.suffix}")
    records = []
    with contextlib.suppress(ValueError, OSError):
        records = score_records(path)
    return path, bool(records) and all(record.get("incomplete") for record in records)


def _write_incomplete(out: Path, content: str) -> Path:
    """Writes the scores of an interrupted evaluation, which the same command does not take for a complete one."""
    path, ours = _incomplete(out)
    return _rewritten(path, content) if ours else write_new(path, content)


def _remove_incomplete(out: Path) -> None:
    """Removes the scores of an interrupted evaluation."""
    path, ours = _incomplete(out)
    if ours:
        with contextlib.suppress(OSError):
            path.unlink()


def _rewritten(path: Path, content: str) -> Path:
    atomic_write(path, content)
    return path


def _added(path: Path, rows: "pd.DataFrame") -> Path:
    from iidlib.experiments import append_results

    append_results(path, rows)
    return path
