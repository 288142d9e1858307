"""Decoded images that are kept: who reads a folder again decodes only what is new in it."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from iidlib.data import image_files
from iidlib.data.decoded import DecodedImages
from iidlib.data.image_files import decode_all, decode_files
from iidlib.errors import InputError
from tests.factories import decode_in_threads


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my").mkdir()
    for number in range(20):
        Image.new("RGB", (9, 9), (number, 100, 200)).save(tmp_path / "my" / f"{number:02}.png")
    return tmp_path / "my"


def files(root: Path) -> list[Path]:
    return sorted(root.iterdir())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    names: list[str] = []
    read = image_files.read_picture

    def noting(path: Path, *rest: object) -> object:
        names.append(path.name)
        return read(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "read_picture", noting)
    return names


def whole(root: Path, paths: Sequence[Path] | None = None) -> torch.Tensor:
    return decode_all("my", root, files(root) if paths is None else paths, 8)


def kept(root: Path) -> Path:
    (path,) = (root.parent / "cache" / "images").iterdir()
    return path


def test_images_come_in_the_order_of_the_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "BLOCK", 1)
    decode_in_threads(4, monkeypatch)
    for _ in range(2):  # decoded, and from the cache
        assert whole(root)[:, 0, 0, 0].tolist() == list(range(20))


def test_the_second_try_after_a_failure_decodes_only_what_failed(root: Path, decoded: list[str]) -> None:
    good = (root / "07.png").read_bytes()
    (root / "07.png").write_bytes(good[:60])
    (root / "11.png").write_bytes(b"no image")
    for attempt in range(2):
        with pytest.raises(InputError, match=r"2 of 20 images .*: 07.png \(truncated\), 11.png \(not an image\); rep"):
            whole(root)
        assert sorted(decoded) == ([path.name for path in files(root)] if attempt == 0 else ["07.png", "11.png"])
        decoded.clear()
    (root / "07.png").write_bytes(good)
    (root / "11.png").unlink()
    assert whole(root)[:, 0, 0, 0].tolist() == [n for n in range(20) if n != 11] and decoded == ["07.png"]
    decoded.clear()
    whole(root)
    assert not decoded


def test_only_new_and_changed_files_are_decoded(root: Path, decoded: list[str]) -> None:
    Image.new("RGB", (9, 9), (3, 0, 0)).save(root / "03.png", compress_level=0)
    size = (root / "03.png").stat().st_size
    whole(root)
    decoded.clear()
    Image.new("RGB", (9, 9), (99, 0, 0)).save(root / "03.png", compress_level=0)
    os.utime(root / "03.png", (1, 1))
    assert (root / "03.png").stat().st_size == size, "the time alone tells the versions apart"
    Image.new("RGB", (9, 9), (77, 0, 0)).save(root / "new.png")
    (root / "05.png").unlink()
    (root / "06.png").rename(root / "zz.png")
    expected = [99 if n == 3 else n for n in range(20) if n not in (5, 6)] + [77, 6]
    assert whole(root)[:, 0, 0, 0].tolist() == expected and sorted(decoded) == ["03.png", "new.png", "zz.png"]


def test_another_order_and_fewer_files_are_taken_from_what_is_kept(root: Path, decoded: list[str]) -> None:
    whole(root)
    before, content = kept(root).stat().st_mtime_ns, kept(root).read_bytes()
    decoded.clear()
    paths = [root / "09.png", root / "02.png", root / "15.png"]
    assert whole(root, paths)[:, 0, 0, 0].tolist() == [9, 2, 15] and not decoded
    assert (kept(root).stat().st_mtime_ns, kept(root).read_bytes()) == (before, content)
    assert decode_all("my", root, files(root), 16).shape == (20, 3, 16, 16) and len(decoded) == 20, "another size"


def test_images_of_another_version_of_the_decoder_are_decoded_again(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(root)
    decoded.clear()
    monkeypatch.setattr("iidlib.data.decoded.DECODER", -1)
    whole(root)
    assert len(decoded) == 20


def test_what_was_decoded_before_an_interruption_is_kept(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "BLOCK", 1)
    decode_in_threads(1, monkeypatch)
    read = image_files.read_picture

    def interrupted(path: Path, *rest: object) -> object:
        if path.name == "12.png":
            raise KeyboardInterrupt
        return read(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_files, "read_picture", interrupted)
        whole(root)
    done = set(decoded)
    assert {f"{n:02}.png" for n in range(12)} <= done
    decoded.clear()
    whole(root)
    assert set(decoded) == {path.name for path in files(root)} - done


def test_unreadable_files_are_all_told(root: Path) -> None:
    for number in range(0, 20, 2):
        (root / f"{number:02}.png").write_bytes(b"x")
    found = decode_files("my", root, files(root), 8)
    assert found.unreadable == {root / f"{number:02}.png": "not an image" for number in range(0, 20, 2)}
    assert found.images[1::2, 0, 0, 0].tolist() == list(range(1, 20, 2))


@pytest.mark.parametrize("values", [None, (0.0, 4095.0)])
def test_deep_pictures_are_decoded_once_with_a_range(
    root: Path, decoded: list[str], values: tuple[float, float] | None
) -> None:
    for number in range(5):
        Image.fromarray(np.full((9, 9), 800 * number, np.uint16)).save(root / f"{number:02}.png")
    first = decode_files("my", root, files(root), 8, values=values).images
    assert len(decoded) == (20 if values else 25), "without a range their values are found first"
    decoded.clear()
    assert decode_files("my", root, files(root), 8, values=values).images.equal(first) and not decoded


def test_what_is_kept_is_written_only_where_something_changed(root: Path, decoded: list[str]) -> None:
    (root / "03.png").write_bytes(b"x")
    decode_files("my", root, files(root), 8)
    written = kept(root).stat().st_ino, kept(root).stat().st_mtime_ns
    decoded.clear()
    decode_files("my", root, files(root), 8)
    assert decoded == ["03.png"] and (kept(root).stat().st_ino, kept(root).stat().st_mtime_ns) == written
    Image.new("RGB", (9, 9)).save(root / "03.png")
    decode_files("my", root, files(root), 8)
    assert (kept(root).stat().st_ino, kept(root).stat().st_mtime_ns) != written


CORRUPTIONS = {
    "a bit of an image": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut": lambda content: content[:-1],
    "cut in the header": lambda content: content[:30],
    "empty": lambda content: b"",
    "a header without end": lambda content: b"\xff" * 8 + content[8:],
    "no JSON": lambda content: content[:8] + b"x" + content[9:],
    "other JSON": lambda content: (2).to_bytes(8, "little") + b"[]" + content,
    "nested": lambda content: (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "another name": lambda content: content.replace(b'"images"', b'"imagez"'),
    "another list": lambda content: content.replace(b'[[\\"', b'[[\\"0', 1).replace(b"    ", b"   ", 1),
    "a later scale": lambda content: content.replace(b"[null, null]", b"[null,    1]"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_cache_is_reported_and_written_again(
    corruption: str, root: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = whole(root)
    good, changed = kept(root).read_bytes(), CORRUPTIONS[corruption](kept(root).read_bytes())
    assert changed != good
    kept(root).write_bytes(changed)
    decoded.clear()
    assert whole(root).equal(first) and len(decoded) == 20
    (record,) = caplog.records
    assert "is corrupted; the images are decoded again" in record.getMessage()
    assert kept(root).read_bytes() == good


def test_a_cache_that_cannot_be_written_or_read_is_a_warning(
    root: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (root.parent / "cache").write_text("a file in the place of the folder")
    for _ in range(2):
        assert whole(root)[:, 0, 0, 0].tolist() == list(range(20))
    assert len(decoded) == 40 and "cannot keep the decoded images in" in caplog.text


def test_what_is_kept_is_private_and_an_ordinary_file_of_safetensors(root: Path) -> None:
    images = whole(root)
    with safe_open(kept(root), "pt") as content:
        assert list(content.keys()) == ["images"] and content.get_tensor("images").equal(images)
        assert len(json.loads(content.metadata()["files"])) == 20
        assert "00.png" not in str(content.metadata()), "names of files are the user's business"
    if os.name == "posix":
        assert kept(root).parent.stat().st_mode & 0o777 == 0o700
        assert kept(root).stat().st_mode & 0o777 == 0o600


def test_what_a_killed_process_left_of_the_cache_is_removed_when_it_is_old(root: Path) -> None:
    whole(root)
    cache = kept(root)
    old, new = (cache.with_name(f".{cache.name}.4711-{digit * 16}.unfinished") for digit in "01")
    other = cache.with_name(f".other.safetensors.4711-{'0' * 16}.unfinished")
    for left in (old, new, other):
        left.write_bytes(b"half")
    for left in (old, other):
        os.utime(left, (0, 0))
    cache.unlink()
    whole(root)
    assert sorted(path.name for path in cache.parent.iterdir()) == sorted([cache.name, new.name, other.name])


def test_nothing_is_left_of_a_write_that_fails(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DecodedImages(root, 8, None)
    cache.path.mkdir(parents=True)  # which no file can replace
    whole(root)
    assert "cannot keep the decoded images" in caplog.text and list(cache.path.parent.iterdir()) == [cache.path]


def read_often(root: Path, cache: Path, shift: int) -> None:
    os.environ["IID_CACHE"] = str(cache)
    for turn in range(15):
        paths = files(root)[(turn + shift) % 3 :]
        values = decode_all("my", root, paths, 8)[:, 0, 0, 0].tolist()
        assert values == [int(path.stem) for path in paths]


@pytest.mark.slow
def test_processes_that_decode_at_once_do_not_disturb_each_other(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=read_often, args=(root, root.parent / "cache", shift)) for shift in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    assert kept(root).suffix == ".safetensors", "no temporary file is left"
    assert np.all(whole(root)[:, 0, 0, 0].numpy() == np.arange(20))
