"""Many image files at once: memory, threads, and what is said about them."""

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from iidlib import bars
from iidlib.data import image_files, load_dataset, pictures, spec
from iidlib.data.image_files import decode_all
from iidlib.data.spec import channel_statistics
from tests.factories import decode_in_threads

PINNED = ("8c3fb19760c71eda", "9311eb5f97b3fbcb")
PINNED_MEAN = (0.5097, 0.5139, 0.509)
PINNED_STD = (0.2476, 0.2419, 0.2611)

PEAK = """
import resource, sys
from PIL import Image
from iidlib.data import load_dataset
Image.init()
load_dataset(f"folder:{sys.argv[1]}?size=8")  # what is loaded late
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
data = load_dataset(f"folder:{sys.argv[1]}?size=224")
data.train.fingerprint
print(peak() - before, data.train.images.numel() + data.test.images.numel())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_a_folder_takes_less_memory_than_twice_its_images(tmp_path: Path) -> None:
    for number in range(600):
        path = tmp_path / "my" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (240, 230), (number % 256, 9, 99)).save(path, compress_level=1)
    environment = os.environ | {"IID_CACHE": str(tmp_path / "cache")}
    for state in ("decoded", "from the cache"):
        command = [sys.executable, "-c", PEAK, str(tmp_path / "my")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
        peak, images = map(int, done.stdout.split())
        assert images == 600 * 3 * 224 * 224
        assert peak < 1.6 * images, f"{state}: {peak / images:.2f} times"


@pytest.mark.parametrize("shape", [(40, 3, 8, 8), (300, 1, 8, 8), (7, 3, 32, 32), (1, 3, 8, 8)])
def test_statistics_in_pieces_are_those_of_all_pixels(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    scale = torch.tensor([250.0, 40.0, 3.0])[: shape[1]].view(-1, 1, 1)
    images = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * scale).byte()
    pixels = images.transpose(0, 1).flatten(1).double() / 255
    expected = pixels.mean(1).tolist(), pixels.std(1, correction=0).tolist()
    assert channel_statistics(images) == expected, "few pixels: to the last bit"
    monkeypatch.setattr(spec, "AT_ONCE", 0)
    monkeypatch.setattr(spec, "CACHED", 1000)
    for found, known in zip(channel_statistics(images), expected, strict=True):
        assert found == pytest.approx(known, rel=1e-12, abs=1e-12)


def test_a_folder_has_the_numbers_that_it_always_had(tmp_path: Path) -> None:
    """Pinned as measured before images were decoded in parallel: pools and sets go by them."""
    mini = load_dataset("cifar10-mini").train
    for label in range(2):
        (tmp_path / f"{label}").mkdir()
        for number, image in enumerate(mini.images[mini.of_class(label)[:30]]):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.convert(["RGB", "L", "P", "RGBA"][number % 4]).save(tmp_path / f"{label}" / f"{number:02}.png")
    data = load_dataset(f"folder:{tmp_path}?size=24")
    assert (data.train.fingerprint, data.test.fingerprint) == PINNED
    assert data.spec.mean == PINNED_MEAN and data.spec.std == PINNED_STD


def test_the_fingerprint_of_the_embedded_images_is_the_one_that_sets_and_pools_name() -> None:
    assert load_dataset("cifar10-mini").train.fingerprint == "2244121e8dc17177"


def test_a_fingerprint_in_pieces_is_that_of_the_whole() -> None:
    mini = load_dataset("cifar10-mini").train
    many = mini.subset(torch.arange(5000) % len(mini))  # more than a piece
    digest = hashlib.sha256(str(tuple(many.images.shape)).encode())
    digest.update(many.images.numpy().tobytes() + many.labels.numpy().tobytes())
    assert many.fingerprint == digest.hexdigest()[:16]


@pytest.mark.parametrize(("cores", "torch_threads", "expected"), [(8, 4, 4), (2, 64, 2), (64, 64, 16), (1, 1, 1)])
def test_as_many_threads_decode_as_the_process_may_use(
    cores: int, torch_threads: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)
    asked, executor = [], image_files.ThreadPoolExecutor
    monkeypatch.setattr(image_files, "ThreadPoolExecutor", lambda count: asked.append(count) or executor(count))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    decode_all("my", tmp_path, [tmp_path / "a.png"], 8)
    assert asked == [expected]


def test_large_pictures_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small ones are decoded at once and no third; the one that takes all the room is decoded alone."""
    room, lock, fit = 200, threading.Lock(), ImageOps.fit
    inside: list[int] = []
    seen: list[list[int]] = []

    def slowly(picture: Image.Image, *rest: Any) -> Image.Image:
        pixels = picture.width * picture.height
        with lock:
            inside.append(pixels)
            seen.append(list(inside))
        time.sleep(0.1)
        with lock:
            inside.remove(pixels)
        return fit(picture, *rest)

    for number in range(7):
        Image.new("RGB", (10, 20 if number == 3 else 10)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(pictures, "LARGEST", room)
    monkeypatch.setattr(ImageOps, "fit", slowly)
    decode_in_threads(4, monkeypatch)
    decode_all("my", tmp_path, sorted(tmp_path.iterdir()), 8)
    assert [room] in seen and [100, 100] in seen and all(sum(pixels) <= room for pixels in seen)


def test_profiles_that_cannot_be_used_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(40):
        own = b"rubbish" * 30 if number >= 3 else None
        Image.new("RGB", (9, 9), (10, 20, 30)).save(tmp_path / f"{number:02}.png", icc_profile=own)
    images = decode_all("my", tmp_path, sorted(tmp_path.iterdir()), 8)
    assert images.flatten(2).amin(2).unique(dim=0).tolist() == [[10, 20, 30]]
    (record,) = caplog.records
    reported = "my: the colour profiles of 37 images cannot be used, so their colours are read as sRGB; the first is 03"
    assert record.getMessage().startswith(reported)


def test_progress_names_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def noted(what: str, total: int, unit: str) -> contextlib.AbstractContextManager[bars.Bar]:
        titles.append(f"{what} {total}")
        return bars.bar(what, total, unit, shown=False)

    monkeypatch.setattr(image_files, "bar", noted)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("I;16", (9, 9)).save(tmp_path / "b.png")
    decode_all("my", tmp_path, sorted(tmp_path.iterdir()), 8)
    assert titles == ["decoding my 2", "decoding my, more than 8 bits 1"]
