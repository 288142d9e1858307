"""iidlib.bars: a bar on a terminal, a line every minute elsewhere, nothing where it is not wanted."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from iidlib import bars
from tests.command_line import Run


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test sets."""
    time = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: time[0])
    return time


def terminal(monkeypatch: pytest.MonkeyPatch, is_one: bool, term: str = "xterm") -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_one, raising=False)
    monkeypatch.setenv("TERM", term)


@pytest.mark.parametrize(
    ("is_one", "term", "size", "drawn"),
    [(True, "xterm", (80, 24), True), (True, "xterm", (0, 0), False), (True, "dumb", (80, 24), False),
     (False, "xterm", (80, 24), False)],
)  # fmt: skip
def test_a_bar_needs_a_terminal_that_moves_its_cursor(monkeypatch, capsys, is_one, term, size, drawn) -> None:
    terminal(monkeypatch, is_one, term)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *given: os.terminal_size(size))
    with bars.bar("evaluating dm", 4, "epoch") as reported:
        for _ in range(4):
            reported.note("convnet3 60.0 %")
            reported.advance()
        reported.rename("evaluating idm")
    shown = capsys.readouterr().err
    assert ("100%" in shown and "4/4" in shown and "convnet3 60.0 %" in shown and "idm" in shown) == drawn
    assert drawn or not shown
    with bars.hidden(), bars.bar("evaluating dm", 4, "epoch") as reported:
        reported.advance()
    with bars.bar("evaluating dm", 4, "epoch", shown=False) as reported:
        reported.advance()
    assert not capsys.readouterr().err


def test_a_bar_that_was_asked_for_is_drawn_anywhere_but_under_quiet(monkeypatch, capsys) -> None:
    terminal(monkeypatch, False)
    assert list(bars.counted("ab", "spelling", "letter")) == ["a", "b"] and not capsys.readouterr().err
    with bars.bar("spelling", 2, "letter", shown=True, done=1) as reported:
        reported.advance()
    assert "2/2" in capsys.readouterr().err
    with bars.hidden(), bars.bar("spelling", 2, "letter", shown=True) as reported:
        reported.advance()
    assert not capsys.readouterr().err


def test_a_line_every_minute_where_there_is_no_bar(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    with bars.bar("evaluating dm", 100, "epoch") as reported:
        for _ in range(20):
            now[0] += 13
            reported.advance(5)
    assert [record.getMessage() for record in caplog.records] == [
        "evaluating dm: 25 of 100 epochs, about 4 min left",
        "evaluating dm: 50 of 100 epochs, about 3 min left",
        "evaluating dm: 75 of 100 epochs, about 2 min left",
    ]
    caplog.clear()
    with bars.bar("evaluating dm", 100, "epoch", shown=False) as reported:
        now[0] += 200
        reported.advance()
    assert not caplog.records


@pytest.mark.parametrize(("total", "text"), [(9, "spelling: 3 of 9 letters"), (None, "spelling: 3 letters")])
def test_nobody_knows_how_long_what_has_not_moved_takes(now, caplog, total: int | None, text: str) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    with bars.bar("spelling", total, "letter", done=3) as reported:
        now[0] += 61
        reported.advance(0)
    assert [record.getMessage() for record in caplog.records] == [text]


@pytest.mark.parametrize("stream", [None, object()], ids=["closed", "without isatty"])
@pytest.mark.parametrize("shown", [None, False])
def test_work_needs_no_stderr(monkeypatch, stream: object, shown: bool | None) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with bars.bar("spelling", 2, "letter", shown=shown) as reported:
        reported.advance()
        reported.note("b")


def test_a_bar_that_was_asked_for_needs_a_stderr(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with bars.bar("spelling", 2, "letter", shown=True) as reported:
        reported.advance()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("method", "status"), [("iid-dm", 0), ("dmm", 2)])
def test_a_stderr_that_takes_nothing_ends_no_command(tmp_path: Path, stderr: str, method: str, status: int) -> None:
    code = (
        "from iidlib import bars; bars.EVERY = 0.0; from iidlib.cli import main; "
        f"main(['distill', '{method}', '--dataset', 'shapes', '--ipc', '2', '--scale', 'ci', '--out', 'run'])"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {stderr}', sys.executable, code], cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert done.returncode == status, done.stdout
    assert (tmp_path / "run" / "scores.json").is_file() == (status == 0)


def test_what_was_done_before_is_not_counted_as_fast(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    with bars.bar("x.zip", 200_000_000, "B", done=100_000_000) as reported:
        now[0] += 120
        reported.advance(20_000_000)
    with bars.bar("y.zip", None, "B") as reported:
        now[0] += 120
        reported.advance(20_000_000)
    assert [record.getMessage() for record in caplog.records] == [
        "x.zip: 120 of 200 MB, about 8 min left",
        "y.zip: 20 MB",
    ]


def test_what_turns_out_to_be_done_is_not_counted_as_fast(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    with bars.bar("evaluating", 100, "epoch") as progress:
        progress.skip(50)
        now[0] = 60.0
        progress.advance(10)
    assert caplog.messages == ["evaluating: 60 of 100 epochs, about 4 min left"]
    with bars.bar("evaluating", 100, "epoch", shown=True) as progress:
        progress.skip(50)
        progress.advance(10)
        assert progress._drawn is not None and (progress._drawn.n, progress._drawn.initial) == (60, 50)


@pytest.mark.usefixtures("handlers_as_before")
def test_quiet_hides_what_is_read_too(iid: Run, monkeypatch, tmp_path, capsys) -> None:
    """Images are decoded behind a bar of their own, which no command knows of."""
    for name in ("ant", "bee"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number, 9, 30 * number)).save(tmp_path / "own" / name / f"{number}.png")
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    terminal(monkeypatch, True)
    given = ("evaluate", "random", "--dataset", f"folder:{tmp_path / 'own'}?size=16", "--ipc", "1", "--scale", "ci")
    loud = iid(*given, "--num-eval", "1")
    assert loud.status == 0 and "decoding" in loud.err and "evaluating random" in loud.err
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "another"))  # where nothing has been decoded yet
    quiet = iid(*given, "--num-eval", "1", "--quiet")
    assert quiet.status == 0 and "%|" not in quiet.err, quiet.err
