"""iidlib.private: which folders may hold code that is run."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from iidlib.private import private_dir
from tests.factories import give_away, mode


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_private_folder_is_made_with_those_above_it_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        private_dir(tmp_path / "cache" / "iidlib" / "compiled")
    finally:
        os.umask(before)
    for _ in range(2):  # found
        assert private_dir(tmp_path / "cache" / "iidlib" / "compiled") == tmp_path / "cache" / "iidlib" / "compiled"
    assert mode(tmp_path / "cache" / "iidlib" / "compiled") == 0o700
    assert mode(tmp_path / "cache") == mode(tmp_path / "cache" / "iidlib") == 0o700 | 0o055 & ~umask


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
        (lambda path: path.parent.chmod(0o777), "{above} has mode 0777, so others can write to it"),
        (lambda path: path.parent.parent.chmod(0o702), "{top} has mode 0702, so others can write to it"),
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
    with pytest.raises(PermissionError, match=rf"/compiled has mode {mode:04o}, so others can write to it$"):
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


@pytest.mark.parametrize(
    ("name", "members", "primary", "own"),
    [
        ("me", [], True, True), ("me", ["me"], True, True), ("users", [], True, False),
        ("me", ["me", "you"], True, False), ("me", [], False, False),
    ],
)  # fmt: skip
def test_the_users_own_group_by_its_name_and_members_does_not_count_as_others(
    name: str, members: list[str], primary: bool, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp
    import pwd

    tmp_path.chmod(0o770)
    gid = tmp_path.stat().st_gid + (0 if primary else 1)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("me", "", uid, gid, "", "", "")))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((name, "", gid, members)))
    if own:
        assert private_dir(tmp_path / "compiled").is_dir()
        return
    with pytest.raises(PermissionError, match=f"^{re.escape(str(tmp_path))} has mode 0770"):
        private_dir(tmp_path / "compiled")


def test_links_above_are_followed_once_and_for_all(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert private_dir(tmp_path / "link" / "compiled") == tmp_path / "real" / "compiled"


def test_a_system_without_owners_is_not_asked_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid")
    assert private_dir(tmp_path / "above" / "compiled").is_dir()
