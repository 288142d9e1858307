"""Datasets put into a data root: the user's files stay, archives are bounded, and what was begun is completed."""

import dataclasses
import http.server
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from iidlib.data import check, datasets, install, load_dataset, tinyimagenet
from iidlib.data.archives import unpack
from iidlib.data.registry import SOURCES
from iidlib.data.source import Size
from iidlib.errors import InputError
from tests.command_line import Run
from tests.factories import contents, md5, one_line

NAME, FOLDER, ARCHIVE = "tinyimagenet", "tiny-imagenet-200", "tiny-imagenet-200.zip"


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """The archive of a TinyImageNet of two classes of two, and the library taught that this is the whole one."""
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    small = tinyimagenet.Layout(classes=2, train=2, test=1)
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture, "JPEG")
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in ("n01", "n02"):
            for count in range(2):
                archive.writestr(f"{FOLDER}/train/{number}/images/{number}_{count}.JPEG", picture.getvalue())
            archive.writestr(f"{FOLDER}/val/images/val_{number}.JPEG", picture.getvalue())
        archive.writestr(f"{FOLDER}/val/val_annotations.txt", "val_n01.JPEG\tn01\nval_n02.JPEG\tn02\n")
        archive.writestr("__MACOSX/._notes", "no part of the dataset")
    source = dataclasses.replace(
        SOURCES[NAME],
        problems=lambda folder: tinyimagenet.problems(folder, small),
        size=Size(len(buffer.getvalue()), 20_000, 9),
    )
    monkeypatch.setitem(SOURCES, NAME, source)
    return buffer.getvalue()


class Served(http.server.SimpleHTTPRequestHandler):
    """A file server that notes what it was asked for."""

    asked: list[str] = []  # noqa: RUF012, of the class on purpose

    def do_GET(self) -> None:
        Served.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str, bytes], str]]:
    """Puts a file on a server at an address of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, Served.asked = tmp_path / "served", []
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()

        def serve(name: str, content: bytes) -> str:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            return f"http://127.0.0.1:{running.server_port}/{name}"

        yield serve
        running.shutdown()


Server = Callable[[str, bytes], str]


# --- what is the user's stays


def test_an_archive_placed_beside_is_unpacked_without_a_network_and_stays(packed: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / ARCHIVE).write_bytes(packed)
    assert len(load_dataset(NAME, data_root=root, download=True).train) == 4
    assert (root / ARCHIVE).read_bytes() == packed
    assert {path.name for path in root.iterdir()} == {ARCHIVE, FOLDER}, "no part of the archive but the dataset"


@pytest.mark.parametrize("kind", ["another set", "no archive", "too many", "cut", "encrypted"])
def test_an_archive_placed_beside_stays_when_it_is_refused(kind: str, packed: bytes, tmp_path: Path) -> None:
    own, buffer = tmp_path / "root" / ARCHIVE, io.BytesIO()
    own.parent.mkdir()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(1 if kind == "another set" else 100):
            archive.writestr(f"{FOLDER}/{number}.txt", "")
    cases = {"no archive": b"mine", "cut": packed[:-40], "encrypted": with_flag(packed)}
    own.write_bytes(content := cases.get(kind, buffer.getvalue()))
    with pytest.raises(InputError, match=rf"{ARCHIVE}.*; move it away and fetch again") as caught:
        load_dataset(NAME, data_root=own.parent, download=True)
    assert "removed" not in one_line(caught)
    assert contents(own.parent) == {ARCHIVE: content}, "nothing came, nothing went"


def with_flag(content: bytes) -> bytes:
    """A zip whose first member says that it is encrypted."""
    changed = bytearray(content)
    changed[changed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def test_files_of_the_user_are_not_overwritten(packed: bytes, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    mine = {f"{FOLDER}/val/val_annotations.txt": b"my own notes", f"{ARCHIVE}.part": b"mine", "__MACOSX/._notes": b"m"}
    for name, content in mine.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    mirror = server(ARCHIVE, packed)
    with pytest.raises(
        InputError, match=r"val_annotations\.txt already exists and does not match .*; move it away.* is kept in"
    ):
        load_dataset(NAME, data_root=root, download=True, mirror=mirror)
    found = contents(root)
    assert {name: found[name] for name in mine} == mine
    assert not (root / FOLDER / "train").exists(), "all files or none"
    (root / FOLDER / "val" / "val_annotations.txt").unlink()
    (root / FOLDER / "mine.txt").write_bytes(b"mine too")
    assert len(load_dataset(NAME, data_root=root, download=True, mirror=mirror).train) == 4
    found = contents(root)
    assert found[f"{FOLDER}/mine.txt"] == b"mine too" and found[f"{ARCHIVE}.part"] == b"mine"
    assert len(Served.asked) == 1, "the archive that arrived is kept for the second time"
    assert not list(root.glob(".iidlib*")), "and goes in the end"


def test_a_fetched_folder_is_repaired_and_a_users_is_not(packed: bytes, server: Server, tmp_path: Path) -> None:
    mirror, root = server(ARCHIVE, packed), tmp_path / "root"
    load_dataset(NAME, data_root=root, download=True, mirror=mirror)
    notes = root / FOLDER / "val" / "val_annotations.txt"
    for made_here in (True, False):
        notes.write_bytes(b"corrupted")
        if made_here:
            load_dataset(NAME, data_root=root, download=True, mirror=mirror)
            assert notes.read_bytes() != b"corrupted"
            (root / FOLDER / install.MARK).unlink()
            continue
        with pytest.raises(InputError, match="already exists"):
            load_dataset(NAME, data_root=root, download=True, mirror=mirror)
        assert notes.read_bytes() == b"corrupted"


# --- what was begun


def test_a_download_that_was_stopped_before_unpacking_is_resumed(
    packed: bytes, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, root = server(ARCHIVE, packed), tmp_path / "root"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "unpack", stop)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(NAME, data_root=root, download=True, mirror=mirror)
    assert [path.name for path in root.iterdir()] == [f".iidlib-fetch-{NAME}"]
    (root / f".iidlib-fetch-{NAME}" / "unpacked-left").mkdir()  # a process that was killed while unpacking
    monkeypatch.setattr(install, "unpack", unpack)
    load_dataset(NAME, data_root=root, download=True, mirror=mirror)
    assert len(Served.asked) == 1 and [path.name for path in root.iterdir()] == [FOLDER]


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_fetch_leaves_no_folder_and_no_find(
    there: bool, packed: bytes, server: Server, tmp_path: Path
) -> None:
    root = tmp_path / "above" / "root"
    if there:
        root.mkdir(parents=True)
    for mirror, reported in (
        (server("x/", b"")[:-2] + "none/", "404"),
        (server(ARCHIVE, b"no archive"), "it was removed"),
    ):
        with pytest.raises(InputError, match=reported) as caught:
            load_dataset(NAME, data_root=root, download=True, mirror=mirror)
        assert "--mirror" in one_line(caught)
        assert (list(root.iterdir()) == []) if there else not root.parent.exists()
    assert {row.name: row.found for row in datasets(root)}[NAME] is None


def test_a_file_in_the_place_of_the_lock_is_reported_and_stays(packed: bytes, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / f".iidlib-fetch-{NAME}.lock").write_text("mine")
    with pytest.raises(InputError, match=r"is needed as a lock and is .*; move it away$") as caught:
        load_dataset(NAME, data_root=root, download=True, mirror=server(ARCHIVE, packed))
    assert "network" not in one_line(caught) and "--mirror" not in one_line(caught)
    assert (root / f".iidlib-fetch-{NAME}.lock").read_text() == "mine"


def test_two_at_once_do_not_disturb_each_other(packed: bytes, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with (
        install.locked(root / f".iidlib-fetch-{NAME}.lock"),
        pytest.raises(InputError, match=r"is being fetched into .* by process .*; wait for it"),
    ):
        load_dataset(NAME, data_root=root, download=True, mirror=server(ARCHIVE, packed))
    assert not Served.asked


# --- bounds


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


BOMB = bytes(3_000_000)
HOSTILE = {
    "zip bomb": (zipped(("a", BOMB)), "unpacks to 3,000,000 bytes, more than the expected maximum of 1,000,000"),
    "zip of many": (
        zipped(*((f"{i}", b"") for i in range(50))),
        "has 50 members, more than the expected maximum of 20",
    ),
    "zip out": (zipped(("../a", b"x")), r"'\.\./a', which leads out"),
    "zip absolute": (zipped(("/a", b"x")), "'/a', which leads out"),
    "zip drive": (zipped(("C:/a", b"x")), "leads out"),
    "zip back slashes": (zipped(("x\\..\\..\\a", b"x")), "leads out"),
    "zip link": (zipped((zip_link("a"), b"/etc/passwd")), "which is a link or a device"),
    "zip encrypted": (with_flag(zipped(("a", b"x"))), "is encrypted"),
    "zip cut": (zipped(("a", b"x"))[:-10], "cannot be unpacked"),
    "zip name twice": (zipped(("a", b"x"), ("a/b", b"x")), "cannot be unpacked"),
    "tar bomb": (tar((member("a", len(BOMB)), BOMB)), "unpacks to more than 1,000,000 bytes"),
    "tar of many": (tar(*((member(f"{i}"), b"") for i in range(50))), "more than 20 members"),
    "tar out": (tar((member("../a", 1), b"x")), r"'\.\./a', which leads out"),
    "tar absolute": (tar((member("/a", 1), b"x")), "'/a', which leads out"),
    "tar link": (tar((member("a", kind=tarfile.SYMTYPE, linkname="b"), b"")), "a link or a device"),
    "tar hard link": (tar((member("a", kind=tarfile.LNKTYPE, linkname="b"), b"")), "a link or a device"),
    "tar fifo": (tar((member("a", kind=tarfile.FIFOTYPE), b"")), "a link or a device"),
    "tar device": (tar((member("a", kind=tarfile.CHRTYPE), b"")), "a link or a device"),
    "tar long header": (tar((member("a", len(BOMB), tarfile.GNUTYPE_LONGNAME), BOMB)), "unpacks to more than"),
    "tar cut": (tar((member("a", 900_000), os.urandom(900_000)))[:-5000], "cannot be unpacked"),
    "tar flipped": (tar((member("a", 5), b"hello"))[:30] + b"\xff" * 40, "cannot be unpacked"),
    "empty": (b"", "cannot be unpacked"),
    "text": (b"not found", "cannot be unpacked"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, reported = HOSTILE[kind]
    path, folder = tmp_path / "given", tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=reported) as caught:
        unpack(path, folder, most_bytes=1_000_000, most_members=20)
    assert str(path) in one_line(caught)
    assert sum(len(found) for found in contents(tmp_path / "in").values()) <= 1_000_000
    assert {place.name for place in (tmp_path / "in").iterdir()} == {"side"} and not Path("/a").exists()


@pytest.mark.parametrize("write", [zipped, lambda *given: tar(*((member(n, len(c)), c) for n, c in given))])
def test_a_whole_archive_is_unpacked(write: Callable[..., bytes], tmp_path: Path) -> None:
    files = {"d/a": b"one", "d/e/b": b"", "d/…ж": b"three"}
    (tmp_path / "given").write_bytes(write(*files.items()))
    unpack(tmp_path / "given", tmp_path / "to", most_bytes=8, most_members=3)
    assert contents(tmp_path / "to") == files


def test_more_than_the_dataset_has_is_not_downloaded(packed: bytes, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"is larger than [\d,]+ bytes, the maximum for tiny.*; it was removed"):
        load_dataset(NAME, data_root=root, download=True, mirror=server(ARCHIVE, packed + bytes(3 * len(packed))))
    assert not root.exists()


def test_too_little_room_is_reported_before_anything_is_fetched(
    packed: bytes, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"tinyimagenet needs 0 MB in .*, but only 0 MB are free; free some space"):
        load_dataset(NAME, data_root=tmp_path / "root", download=True, mirror=server(ARCHIVE, packed))
    assert not Served.asked and not (tmp_path / "root").exists()


# --- mirrors


@pytest.mark.parametrize("kind", ["folder", "folder/", "file", "query", "file address", "another name"])
def test_a_mirror_is_a_folder_or_a_file(kind: str, packed: bytes, server: Server, tmp_path: Path) -> None:
    url = server(f"sets/{ARCHIVE}", packed)
    mirror = {
        "folder": url.rpartition("/")[0],
        "folder/": url.rpartition("/")[0] + "/",
        "file": url,
        "query": f"{url}?download=1",
        "file address": (tmp_path / "served" / "sets").as_uri(),
        "another name": server("tiny.zip", packed),
    }[kind]
    assert len(load_dataset(NAME, data_root=tmp_path / "root", download=True, mirror=mirror).train) == 4


SVHN = ("train_32x32.mat", "test_32x32.mat")


@pytest.mark.parametrize(
    ("name", "mirror", "reported"),
    [
        (NAME, "ftp://host/x", "takes an http://, https:// or file:// address, got 'ftp://host/x'"),
        (NAME, "www.host.org/sets", "takes an http://"),
        (NAME, "{here}", r"did you mean file:///\S+\?"),
        (NAME, "http://", "takes an http://"),
        (NAME, "http://[::1", r"takes an http://.* \(Invalid IPv6 URL\)"),
        (NAME, "~nobody/sets", "takes an http://"),
        (NAME, "file:", "takes an http://"),
        (NAME, "x" * 3000, "takes an http://"),
        (NAME, "http://127.0.0.1:99999/", "could not be downloaded"),
        (NAME, "http://127.0.0.1:1/a b\u00e9", "could not be downloaded"),
        (NAME, "http://127.0.0.1:port/sets", "could not be downloaded"),
        (NAME, "http://user:word@127.0.0.1/sets", "takes an address without user name and password; download tiny"),
        ("svhn", "http://host/all.zip", "must be the address of the folder that holds train_32x32.mat, test_32x32.mat"),
        ("cifar10-mini", "http://host/", "comes with iidlib; there is nothing to fetch"),
        ("shapes", "http://host/", "shapes is not fetched"),
        ("folder:here", "http://host/", "folder:here is not fetched"),
    ],
)
def test_a_mirror_that_cannot_be_one_is_refused(
    name: str, mirror: str, reported: str, packed: bytes, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reported) as caught:
        load_dataset(name, data_root=tmp_path / "root", download=True, mirror=mirror.format(here=tmp_path))
    one_line(caught)
    assert not (tmp_path / "root").exists()


def test_a_mirror_without_download_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs download=True"):
        load_dataset(NAME, data_root=tmp_path, mirror="http://host/")


def test_files_of_a_mirror_are_verified(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN as KIND

    contents_of = {name: name.encode() for name in SVHN}
    lists = {
        part: [f"http://gone/{name}", name, md5(name.encode())]
        for part, name in zip(("train", "test"), SVHN, strict=True)
    }
    monkeypatch.setattr(KIND, "split_list", lists)
    monkeypatch.setitem(SOURCES, "svhn", dataclasses.replace(SOURCES["svhn"], read=lambda folder: two_black_images()))
    root = tmp_path / "root"
    mirror = next(iter([server(name, content) for name, content in contents_of.items()]))
    server(SVHN[1], b"another file")
    with pytest.raises(InputError, match=r"test_32x32\.mat arrived corrupted"):
        load_dataset("svhn", data_root=root, download=True, mirror=mirror)
    row = next(row for row in datasets(root) if row.name == "svhn")
    assert row.found is None and row.incomplete == f"{root / 'svhn'}: test_32x32.mat is missing"
    server(SVHN[1], contents_of[SVHN[1]])
    assert len(load_dataset("svhn", data_root=root, download=True, mirror=mirror).train) == 2
    assert Served.asked.count(f"/{SVHN[0]}") == 1, "what is there and whole is not fetched again"
    (root / "svhn" / SVHN[0]).write_bytes(b"corrupted")
    load_dataset("svhn", data_root=root, download=True, mirror=mirror)  # the folder was made here
    (root / "svhn" / install.MARK).unlink()
    (root / "svhn" / SVHN[0]).write_bytes(b"mine")
    with pytest.raises(InputError, match=r"train_32x32\.mat does not match .*; move it away"):
        load_dataset("svhn", data_root=root, download=True, mirror=mirror)
    assert (root / "svhn" / SVHN[0]).read_bytes() == b"mine" and check("svhn", root).files[0].state == "corrupted"


def two_black_images() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    part = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
    return part, part


# --- what is listed, and where it is looked for


def test_not_found_says_which_archive_may_be_placed_beside(tmp_path: Path) -> None:
    for name, archive in (("cifar10", "cifar-10-python"), ("cifar100", "cifar-100-python"), (NAME, FOLDER)):
        with pytest.raises(InputError, match=rf"{archive}\.(tar\.gz|zip) placed in {tmp_path} is used"):
            load_dataset(name, data_root=tmp_path)
    for name in ("cifar10", "cifar100", NAME):
        remote = SOURCES[name].remotes()[0]  # type: ignore[misc]
        assert remote.archive and f"{remote.name} placed in" in SOURCES[name].get


def test_an_empty_or_partial_folder_is_listed_as_incomplete(tmp_path: Path) -> None:
    for name in ("svhn", "cifar-10-batches-py", FOLDER, "MNIST/raw"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "svhn" / "train_32x32.mat").write_bytes(b"x")
    rows = {row.name: row for row in datasets(tmp_path)}
    assert all(rows[name].found is None for name in ("svhn", "cifar10", NAME, "mnist"))
    assert rows["svhn"].incomplete == f"{tmp_path / 'svhn'}: test_32x32.mat is missing"
    assert "data_batch_1 is missing" in rows["cifar10"].incomplete and "and 3 more" in rows["cifar10"].incomplete
    assert "0 of 200 classes" in rows[NAME].incomplete
    assert rows["cifar100"].incomplete == "" and rows["cifar100"].found is None


def test_an_empty_folder_does_not_hide_what_comes_with_the_library(tmp_path: Path) -> None:
    (tmp_path / "cifar10-mini").mkdir()
    assert len(load_dataset("cifar10-mini", data_root=tmp_path).train) == 4000


def test_a_data_root_that_is_a_file_or_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for download in (False, True):
        with pytest.raises(InputError, match=r"file is a file, not a folder"):
            load_dataset("cifar10", data_root=tmp_path / "file", download=download)
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("~/sets", "sets"):
        monkeypatch.setenv("IID_DATA", named)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=rf"looked for {tmp_path}/sets/svhn"):
            load_dataset("svhn")


def test_torchvision_that_says_other_things_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as known

    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.delattr(known.CIFAR10, "train_list")
    with pytest.raises(
        InputError, match=r"torchvision \S+ does not list .* CIFAR10 .*no CIFAR10\.train_list.*; install"
    ):
        load_dataset("cifar10", data_root=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(InputError, match=r"torchvision cannot be imported .*; install the version that matches torch"):
        load_dataset("cifar10", data_root=tmp_path)


def test_a_stopped_fetch_says_that_what_arrived_is_kept(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iidlib.data.load_dataset", stop)
    ended = iid("data", "fetch", "cifar10", "--data-root", "data")
    assert ended.status == 130
    assert "stopped; partial downloads are kept, and the same command resumes them" in ended.err
