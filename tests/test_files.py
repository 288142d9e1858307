"""iidlib.files: where the cache is, files written whole or not at all, folders made."""

import os
import stat
import sys
from pathlib import Path

import pytest

from iidlib import files
from iidlib.files import atomic_write, cache_dir, make_folders, write_new
from tests.factories import mode

# Where the cache is


def test_the_cache_is_where_the_user_says_or_where_the_system_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IID_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    for unset in ("", None):
        monkeypatch.setenv("IID_CACHE", "") if unset == "" else monkeypatch.delenv("IID_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setattr(sys, "platform", "linux")
        assert cache_dir() == tmp_path / "xdg" / "iidlib"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_dir() == tmp_path / ".cache" / "iidlib"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert cache_dir() == tmp_path / "Library" / "Caches" / "iidlib"
    assert not list(tmp_path.iterdir()), "asking makes nothing"


# Whole writes


@pytest.mark.parametrize("content", ["text, ünïcode\n", b"bytes\x00\xff", ""])
def test_a_file_has_the_content_and_nothing_is_left_beside_it(content, tmp_path):
    atomic_write(tmp_path / "file", "before")
    atomic_write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_whose_writing_fails_stays_as_it_was(broken, tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("disk full")

    atomic_write(tmp_path / "file", "before")
    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: steps.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda self, target: steps.append("replace") or replace(self, target))
    atomic_write(tmp_path / "file", "content")
    assert steps == ["fsync", "replace"]


def test_a_file_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "new", "")
        for kept in (0o600, 0o664, 0o400):
            (tmp_path / "old").unlink(missing_ok=True)
            (tmp_path / "old").touch()
            (tmp_path / "old").chmod(kept)
            atomic_write(tmp_path / "old", "after")
            assert mode(tmp_path / "old") == kept and (tmp_path / "old").read_text() == "after"
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o640


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_of_another_owner_stays_his(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o640)
    os.chown(tmp_path / "file", 54321, 54322)
    atomic_write(tmp_path / "file", "after")
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (54321, 54322, 0o640)


def test_an_owner_that_cannot_be_kept_stops_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "file").touch(mode=0o640)
    monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result((0o100640, 1, 1, 1, 54321, 54322, 0, 0, 0, 0)))
    monkeypatch.setattr(os, "fchown", refuse)
    atomic_write(tmp_path / "file", "after")
    monkeypatch.undo()
    assert (tmp_path / "file").read_text() == "after" and mode(tmp_path / "file") == 0o640


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_what_the_cache_holds_is_for_its_user_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        make_folders(tmp_path / "cache" / "pools", private=True)
        atomic_write(tmp_path / "cache" / "pools" / "pool.json", "{}", private=True)
    finally:
        os.umask(before)
    assert mode(tmp_path / "cache") == mode(tmp_path / "cache" / "pools") == 0o700
    assert mode(tmp_path / "cache" / "pools" / "pool.json") == 0o600
    tmp_path.chmod(0o755)
    assert make_folders(tmp_path, private=True) == [] and mode(tmp_path) == 0o755, "what was there stays as it is"


def test_no_file_at_the_temporary_name_is_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where somebody guesses the random part."""
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".file.{os.getpid()}-{'0' * 16}.unfinished").symlink_to("victim")
    with pytest.raises(FileExistsError):
        atomic_write(tmp_path / "file", "after")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "file").exists()


def test_temporary_names_differ_from_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(Path, "replace", lambda self, target: names.append(self.name))
    for name in ("config.yaml", ".hidden", "a b\n.c", "ü" * 127):
        atomic_write(tmp_path / name, "")
        assert name.startswith(str(files.unfinished(names[-1]))) and len(os.fsencode(names[-1])) <= 255
    assert len(set(names)) == 4 and not list(tmp_path.iterdir())
    mine = ".config.yaml.77", ".config.yaml.77.unfinished", ".config.yaml", "config.yaml.77-0123456789abcdef.unfinished"
    assert not any(map(files.unfinished, mine))


def test_names_that_python_could_not_decode_are_written_as_they_are(tmp_path: Path) -> None:
    """As it gives them where the locale knows ASCII only."""
    atomic_write(tmp_path / "file", b"folder:\xc3\xbc".decode("ascii", "surrogateescape"))
    assert (tmp_path / "file").read_bytes() == "folder:ü".encode()
    for content in ("\udcff", "\ud800"):  # no UTF-8, no byte at all
        atomic_write(tmp_path / "file", f"a{content}")
        assert (tmp_path / "file").read_text() == f"a\\u{ord(content):x}"


def test_a_corrupted_file_is_set_aside_under_a_name_that_is_free(tmp_path: Path) -> None:
    for number, name in enumerate(("a.json.corrupted", "a.json.corrupted-1", "a.json.corrupted-2")):
        (tmp_path / "a.json").write_text(str(number))
        assert files.set_aside(tmp_path / "a.json") == tmp_path / name
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["0", "1", "2"]


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that knows hard links, and one that does not."""

    def refuse(source: Path, place: Path) -> None:
        if place.exists():
            raise FileExistsError(place)
        raise OSError("Operation not supported")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)
    return request.param


@pytest.mark.usefixtures("links")
def test_a_new_file_goes_beside_those_that_are_there(tmp_path):
    target = tmp_path / "new" / "scores.json"
    assert [write_new(target, f"{number}").name for number in (1, 2, 3)] == [
        "scores.json", "scores-2.json", "scores-3.json",
    ]  # fmt: skip
    assert [path.read_text() for path in sorted(target.parent.iterdir())] == ["2", "3", "1"]
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    assert write_new(tmp_path / "link.json", "").name == "link-2.json"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_nothing_is_left_of_a_new_file_that_cannot_be_written(broken, tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        write_new(tmp_path / "file", "after")
    assert not list(tmp_path.iterdir())


# Folders


def test_making_folders_tells_those_that_were_missing(tmp_path):
    assert make_folders(tmp_path) == []
    assert make_folders(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]
    assert make_folders(tmp_path / "a" / "c") == [tmp_path / "a" / "c"]
    assert make_folders(tmp_path / "d" / ".." / "e")[0] == tmp_path / "d" / ".." / "e" and (tmp_path / "e").is_dir()
    (tmp_path / "a" / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "a" / "file" / "f" / "g")
