"""iidlib.locks: one process at a time, and who it is."""

import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from iidlib import locks


def test_a_lock_that_is_gone_again_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes its lock between two looks at it."""
    for content in (b"", b"process 7 on here\n", b"\nprocess 7 on here\n"):
        (tmp_path / "lock").write_bytes(content)
        locks.check_lock(tmp_path / "lock")
    (tmp_path / "lock").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is needed as a lock and is another file"):
        locks.check_lock(tmp_path / "lock")
    locks.check_lock(tmp_path / "none")

    def gone(path: Path) -> os.stat_result:
        raise FileNotFoundError(2, "No such file", str(path))

    monkeypatch.setattr(Path, "lstat", gone)
    locks.check_lock(tmp_path / "lock")


@pytest.mark.parametrize(
    ("kind", "text"), [("link", "is a link; move"), ("folder", "is a folder; move"), ("fifo", "is another file; move")]
)
def test_what_is_no_file_is_never_taken_for_a_lock(kind: str, text: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "lock", tmp_path / "victim"
    victim.write_bytes(b"\nprocess 7 on here\n")
    if kind == "fifo":
        os.mkfifo(path)  # to read one waits for ever
    else:
        path.symlink_to(victim) if kind == "link" else path.mkdir()
    with pytest.raises(FileExistsError, match=text):
        locks.check_lock(path)
    with pytest.raises(FileExistsError, match=text), locks.locked(path):
        pytest.fail("it was taken")
    assert victim.read_bytes() == b"\nprocess 7 on here\n"


def test_the_lock_of_another_user_is_reported_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").write_bytes(b"\nprocess 7 on here\n")

    def refused(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied") if path.exists() else FileNotFoundError(2, "No such file")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match="lock is a lock left by another user; ask that user to remove it"):
        locks.check_lock(tmp_path / "lock")
    locks.check_lock(tmp_path / "none")


def test_a_lock_that_goes_and_another_that_comes_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at it the file of one holder goes, and that of the next one comes."""
    path = tmp_path / "lock"
    path.write_bytes(b"\nprocess 7 on here\n")

    def gone(path: Path, flags: int) -> int:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(os, "open", gone)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    locks.check_lock(path)  # it is there, and it was not when it was asked


def test_who_waits_says_so_once_and_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    path, entered = tmp_path / "lock", threading.Event()

    def wait() -> None:
        with locks.locked(path):
            entered.set()

    waiting = threading.Thread(target=wait)
    with locks.locked(path):
        waiting.start()
        for _ in range(600):
            if caplog.records:
                break
            entered.wait(0.1)
        assert not entered.is_set()
    waiting.join(60)
    assert entered.is_set()
    (record,) = caplog.records
    assert record.message.startswith(f"waiting for {path}, locked by process {os.getpid()} on ")


def test_who_waits_for_a_lock_does_not_take_the_removed_file_for_one(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="on Windows an open file cannot be removed")
    path, opened, gone, flock = tmp_path / "lock", threading.Event(), threading.Event(), fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        if threading.current_thread() is waiting and not opened.is_set():
            opened.set()
            gone.wait(60)
        flock(descriptor, operation)

    def wait() -> None:
        with locks.locked(path), pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
            with locks.locked(path, wait=False):
                pass
        done.append(True)

    waiting, done = threading.Thread(target=wait), []
    with locks.locked(path):
        monkeypatch.setattr("fcntl.flock", late)
        waiting.start()
        assert opened.wait(60)
    assert not path.exists()
    gone.set()
    waiting.join(60)
    assert done and not list(tmp_path.iterdir())


def test_one_process_at_a_time_is_let_in(tmp_path):
    code = f"""
        import os, pathlib
        from iidlib.locks import locked
        for _ in range(20):
            with locked(pathlib.Path({str(tmp_path / "lock")!r})):
                os.close(os.open({str(tmp_path / "inside")!r}, os.O_CREAT | os.O_EXCL))
                os.unlink({str(tmp_path / "inside")!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    assert not list(tmp_path.iterdir())
