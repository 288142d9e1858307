"""iidlib.files: where the cache is, and which folders may hold code that is run."""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iidlib import files
from iidlib.files import cache_dir, private_dir

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


# A folder for code that will be run


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_a_private_folder_is_made_with_those_above_it_whatever_the_umask(tmp_path: Path) -> None:
    for _ in range(2):  # made, then found
        assert private_dir(tmp_path / "cache" / "iidlib" / "compiled") == tmp_path / "cache" / "iidlib" / "compiled"
    assert mode(tmp_path / "cache" / "iidlib" / "compiled") == 0o700
    assert mode(tmp_path / "cache") == mode(tmp_path / "cache" / "iidlib") == 0o755


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder somebody else's; where this user may not, it looks so."""
    if os.geteuid() == 0:
        os.chown(path, 54321, 54321)
        return
    lstat = Path.lstat

    def of_another(self: Path) -> os.stat_result:
        found = lstat(self)
        return os.stat_result((*found[:4], 54321, *found[5:10])) if self == path else found

    monkeypatch.setattr(Path, "lstat", of_another)


def linked(path: Path) -> None:
    path.rmdir()
    (path.parent.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent.parent / "elsewhere")


def a_file(path: Path) -> None:
    path.rmdir()
    path.touch(mode=0o600)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.chmod(0o777), "{path} has mode 0777, not 0700"),
        (lambda path: path.chmod(0o755), "{path} has mode 0755, not 0700"),
        (lambda path: path.chmod(0o710), "{path} has mode 0710, not 0700"),
        (linked, "{path} is a link, not a folder"),
        (a_file, "{path} is not a folder"),
        (lambda path: path.parent.chmod(0o777), "{above} has mode 0777, so that others can write in it"),
        (lambda path: path.parent.parent.chmod(0o702), "{top} has mode 0702, so that others can write in it"),
    ],
)
def test_a_folder_that_does_not_keep_others_out_is_refused(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    path = private_dir(tmp_path / "above" / "compiled")
    change(path)
    with pytest.raises(PermissionError) as caught:
        private_dir(path)
    assert str(caught.value) == reason.format(path=path, above=path.parent, top=tmp_path)
    path.parent.chmod(0o700)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(("mode", "accepted"), [(0o755, True), (0o757, False), (0o1777, False)])
def test_a_folder_that_another_program_made_may_be_readable(mode: int, accepted: bool, tmp_path: Path) -> None:
    path = tmp_path / "compiled"
    path.mkdir()
    path.chmod(mode)
    if accepted:
        assert private_dir(path, readable=True) == path
        return
    with pytest.raises(PermissionError, match=rf"/compiled has mode {mode:04o}, "):
        private_dir(path, readable=True)


@pytest.mark.parametrize("above", [False, True])
def test_a_folder_of_another_owner_is_refused(above: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = private_dir(tmp_path / "above" / "compiled")
    give_away(path.parent if above else path, monkeypatch)
    with pytest.raises(PermissionError, match=rf"/{'above' if above else 'compiled'} belongs to user 54321, not to "):
        private_dir(path)


def test_a_sticky_folder_above_keeps_others_from_renaming(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    assert private_dir(tmp_path / "shared" / "compiled").is_dir()


def test_the_users_own_group_does_not_count_as_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o770)
    monkeypatch.setattr(files, "_own_group", lambda gid: gid == tmp_path.stat().st_gid)
    assert private_dir(tmp_path / "compiled").is_dir()
    monkeypatch.setattr(files, "_own_group", lambda gid: False)
    with pytest.raises(PermissionError, match=f"^{re.escape(str(tmp_path))} has mode 0770"):
        private_dir(tmp_path / "compiled")


@pytest.mark.parametrize(
    ("name", "members", "own"),
    [("me", [], True), ("me", ["me"], True), ("users", [], False), ("me", ["me", "you"], False)],
)
def test_a_group_is_the_users_own_by_its_name_and_members(
    name: str, members: list[str], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("me", "", uid, 7, "", "", "")))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((name, "", gid, members)))
    assert files._own_group(7) is own
    assert not files._own_group(8), "not the user's primary group"


def test_links_above_are_followed_once_and_for_all(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert private_dir(tmp_path / "link" / "compiled") == tmp_path / "real" / "compiled"


def test_a_system_without_owners_is_not_asked_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid")
    assert private_dir(tmp_path / "above" / "compiled").is_dir()


def test_a_lock_that_is_gone_again_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes its lock between two looks at it."""
    for content in (b"", b"process 7 on here\n", b"\nprocess 7 on here\n"):
        (tmp_path / "lock").write_bytes(content)
        files.check_lock(tmp_path / "lock")
    (tmp_path / "lock").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is needed as a lock and is another file"):
        files.check_lock(tmp_path / "lock")
    files.check_lock(tmp_path / "none")

    def gone(path: Path) -> bytes:
        raise FileNotFoundError(2, "No such file", str(path))

    monkeypatch.setattr(Path, "read_bytes", gone)
    files.check_lock(tmp_path / "lock")
