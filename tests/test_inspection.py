"""``iid data check folder:PATH``: all that cannot be read, pictures that are there twice, classes, sizes."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iidlib import cli
from iidlib.data import image_files, inspect_folder, load_dataset
from iidlib.data.duplicates import identical, nearly_identical
from iidlib.data.folder import read_folder
from iidlib.errors import InputError
from tests.factories import lay

MINI = load_dataset("cifar10-mini")


def picture(number: int, side: int = 32) -> Image.Image:
    pixels = MINI.train.images[number].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Training images 0 to 39 in two classes, test images 40 to 51; all of different pictures."""
    root = tmp_path / "pets"
    for number in range(52):
        part = "Train" if number < 40 else "Test"
        path = root / part / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 32 + number).save(path)
    return root


def test_a_folder_in_order_is_described(pets: Path) -> None:
    report = inspect_folder(f"folder:{pets}")
    assert report.ok and not report.notes and not report.left_out and not report.unreadable
    assert report.summary == (
        "40 training images in Train (2 classes: cat 20, dog 20); 12 test images in Test (2 classes: cat 6, dog 6)"
    )
    assert report.train == {"cat": 20, "dog": 20} and report.test == {"cat": 6, "dog": 6}
    assert (report.leaks, report.contradictions, report.repeated) == ((), (), 0)
    assert report.width is not None and (report.width.least, report.width.median, report.width.most) == (32, 57.5, 83)
    assert report.modes == {"RGB": 52} and report.formats == {"PNG": 52}


def test_pictures_that_are_there_twice_are_named(pets: Path) -> None:
    picture(1, 64).save(pets / "Test" / "cat" / "again.jpg", quality=75)
    Image.open(pets / "Train" / "cat" / "3.png").save(pets / "Test" / "cat" / "copy.bmp")
    Image.open(pets / "Train" / "cat" / "5.png").save(pets / "Train" / "dog" / "wrong.png")
    Image.open(pets / "Train" / "cat" / "7.png").save(pets / "Train" / "cat" / "twice.png")
    report = inspect_folder(f"folder:{pets}")
    assert [(one.first, one.second, one.same) for one in report.leaks] == [
        ("Train/cat/3.png", "Test/cat/copy.bmp", True), ("Train/cat/1.png", "Test/cat/again.jpg", False),
    ]  # fmt: skip
    assert [(one.first, one.second) for one in report.contradictions] == [("Train/cat/5.png", "Train/dog/wrong.png")]
    assert report.repeated == 1 and report.ok


def test_pictures_of_both_sides_of_a_split_of_our_own_are_found(tmp_path: Path) -> None:
    for name, start in (("cat", 0), ("dog", 50)):
        (tmp_path / name).mkdir()
        for number in range(20):  # ten pictures, each twice
            picture(start + number // 2).save(tmp_path / name / f"{number:02}.png")
    report = inspect_folder(f"folder:{tmp_path}")
    assert report.test == {"cat": 4, "dog": 4}
    assert 1 <= len(report.leaks) <= 8 and report.repeated == 20 - len(report.leaks)


def test_what_is_uneven_little_or_small_is_noted(tmp_path: Path) -> None:
    for name, count in (("cat", 40), ("cow", 4), ("dog", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            picture(50 * len(name) + number + count, 24).save(tmp_path / name / f"{number}.png")
    report = inspect_folder(f"folder:{tmp_path}?size=32")
    assert report.notes == (
        "classes with one image have no test images: dog",
        "classes with fewer than 10 training images: cow 3, dog 1",
        "the classes are imbalanced: cat has 32 training images, dog 1; a distilled set has the same number for "
        "every class",
        "45 pictures are smaller than 32 x 32 pixels and are enlarged; consider a smaller size=",
    )


def test_all_that_cannot_be_read_is_named(pets: Path) -> None:
    for number in range(40):
        (pets / "Train" / "dog" / f"bad{number}.jpg").write_text("no image")
    os.mkfifo(pets / "Train" / "cat" / "pipe.png")
    (pets / "Test" / "gone").symlink_to("nowhere")
    report = inspect_folder(f"folder:{pets}")
    assert len(report.unreadable) == 42 and not report.ok
    assert report.unreadable["Train/dog/bad39.jpg"] == "not an image"
    assert report.unreadable["Train/cat/pipe.png"] == "a named pipe, not a file"
    assert report.unreadable["Test/gone"] == "a link that leads nowhere"
    assert report.modes == {"RGB": 52} and report.train["dog"] == 60


def test_a_second_look_and_the_first_use_need_no_decoding(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect_folder(f"folder:{pets}").ok

    def opened(*arguments: object) -> None:
        raise AssertionError("decoded again")

    for name in ("decode", "read_picture"):
        monkeypatch.setattr(image_files, name, opened, raising=False)
    assert inspect_folder(f"folder:{pets}").ok
    assert len(read_folder(f"folder:{pets}").train[0]) == 40


def test_what_cannot_be_a_dataset_is_the_problem_of_the_report(tmp_path: Path) -> None:
    report = inspect_folder(f"folder:{lay(tmp_path, 'cat/*2.png')}")
    assert not report.ok and "has 1 folder with images (cat)" in report.problem and not report.summary
    with pytest.raises(InputError, match="no folder at"):
        inspect_folder(f"folder:{tmp_path / 'nowhere'}")


# --- the same, and nearly so ------------------------------------------------------------------------------------------


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def saved(image: Image.Image, **options: object) -> Image.Image:
    content = io.BytesIO()
    image.save(content, **options)  # type: ignore[arg-type]
    return Image.open(content)


AGAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of good quality": lambda image: saved(image, format="JPEG", quality=90),
    "JPEG of usual quality": lambda image: saved(image, format="JPEG", quality=75),
    "JPEG of low quality": lambda image: saved(image, format="JPEG", quality=50),
    "WebP": lambda image: saved(image, format="WEBP", quality=80),
    "256 colours": lambda image: image.quantize(256).convert("RGB"),
    "larger": lambda image: image.resize((150, 150), Image.Resampling.LANCZOS),
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
    "brighter": lambda image: image.point(lambda value: min(255, round(value * 1.03))),
}


@pytest.mark.parametrize("kind", AGAIN)
def test_a_picture_that_was_saved_again_is_found(kind: str) -> None:
    originals = [picture(number, 96) for number in range(0, 4000, 40)]
    images = torch.stack([as_tensor(image) for image in (*originals, *map(AGAIN[kind], originals))])
    found = {*nearly_identical(images), *((group[0], group[1]) for group in identical(images))}
    expected = {(number, number + 100) for number in range(100)}
    assert found <= expected, "nothing else is taken for the same"
    assert len(found) >= 95


OTHER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mirrored": lambda images: images.flip(3),
    "turned": lambda images: images.rot90(1, (2, 3)),
    "moved": lambda images: images.roll(3, 3),
    "of other colours": lambda images: images.roll(1, 1),
    "negative": lambda images: 255 - images,
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_pictures_are_not_taken_for_the_same(kind: str) -> None:
    images = MINI.train.images[::40]
    colourful = (images.float().mean((2, 3)).diff(dim=1).abs().amax(1) > 20) | (kind != "of other colours")
    images = images[colourful]
    found = nearly_identical(torch.cat([images, OTHER[kind](images)]))
    assert len(found) <= len(images) // 50, "but a picture that is its own mirror image"


def test_no_two_of_five_thousand_pictures_are_taken_for_the_same() -> None:
    images = torch.cat([MINI.train.images, MINI.test.images])
    assert not identical(images) and not nearly_identical(images)


def test_the_result_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = MINI.train.images[:60]
    noisy = (images + torch.randint(0, 3, images.shape, generator=torch.Generator().manual_seed(0))).clamp(max=255)
    both = torch.cat([images, noisy.byte(), images[:5]])
    expected = [(number, number + 60) for number in range(60)]
    assert sorted(nearly_identical(both)) == expected
    monkeypatch.setattr("iidlib.data.duplicates.ROWS", 7)
    assert sorted(nearly_identical(both)) == expected
    assert identical(both) == [[number, number + 120] for number in range(5)]


def test_frames_of_a_film_are_paired_once_each() -> None:
    """All pairs of two thousand would be two million."""
    frames = MINI.train.images[:1].repeat(2000, 1, 1, 1)
    frames[torch.arange(2000), 0, torch.arange(2000) % 32, torch.arange(2000) // 32 % 32] += 9
    frames[torch.arange(2000), 1, 0, 0] = (torch.arange(2000) // 1024).byte()
    found = nearly_identical(frames)
    assert len(found) <= 1999 and {second for _, second in found} == set(range(1, 2000))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_plain_and_few_pictures_are_no_trouble(count: int) -> None:
    plain = torch.full((count, 3, 8, 8), 7, dtype=torch.uint8)
    plain[:, :, 0, 0] = torch.arange(count)[:, None]
    assert identical(plain) == [] and nearly_identical(plain) == []


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "check", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out.splitlines(), err


def test_the_command_says_what_was_found(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(1, 64).save(pets / "Test" / "cat" / "again.jpg", quality=75)
    status, out, _ = run(capsys, f"folder:{pets}")
    assert status == 0 and out[-1] == f"folder:{pets}: ready to use"
    assert "  cat: 20 for training, 7 for testing" in out
    place = out.index("duplicate images in both the training and the test set: 1")
    assert out[place + 1] == "  Train/cat/1.png and Test/cat/again.jpg (nearly identical)"


def test_the_command_names_every_unreadable_file_and_ends_with_two(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        (pets / "Train" / "dog" / f"bad{number}.jpg").write_text("no image")
    status, out, err = run(capsys, f"folder:{pets}")
    assert status == 2
    assert [line for line in out if "bad" in line] == [
        f"cannot be read: Train/dog/bad{number}.jpg (not an image)" for number in sorted(range(40), key=str)
    ]
    assert err.splitlines()[-1] == (
        f"iid: folder:{pets}: 40 files or folders cannot be read (listed above); replace or remove them"
    )


def test_the_command_gives_json(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, f"folder:{pets}?size=16", "--json")
    found = json.loads("\n".join(out))
    assert status == 0 and found["ok"] and found["train"] == {"cat": 20, "dog": 20}
    assert found["width"] == {"least": 32, "median": 57.5, "most": 83}
    status, out, _ = run(capsys, "cifar10-mini", "--json")
    assert status == 0 and json.loads("\n".join(out))["ok"]


def test_the_command_tells_what_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, f"validation:folder:{lay(tmp_path, 'cat/*2.png')}")
    assert status == 2 and out == [] and "has 1 folder with images (cat)" in err


def drawn(root: Path, counts: dict[str, int]) -> str:
    """A folder with as many pictures of each class; returns the dataset's name."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir()
        for number in range(count):
            picture(100 * place + number).save(root / name / f"{number}.png")
    return f"folder:{root}"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_every_line_is_one_line_whatever_the_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = drawn(tmp_path, {"a\nb": 12, "cat\x1b[31m": 12, "few\n": 1})
    status, out, _ = run(capsys, name)
    assert status == 0 and "  a\\nb: 10 for training, 2 for testing" in out
    assert any("classes with one image have no test images: few\\n" in line for line in out)
    assert any(
        line.startswith("25 training images (3 classes: ") and "a\\nb 12, cat\\x1b[31m 12" in line for line in out
    )


def test_a_class_that_cannot_be_read_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = drawn(tmp_path, {"cat": 12, "cow": 12, "dog": 2})
    (tmp_path / "empty").mkdir()
    look = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "dog":  # for root, too, who may read everything
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    _, out, err = run(capsys, name)
    assert [line for line in [*out, err] if "dog" in line] == ["cannot be read: dog (permission denied)"]
    assert any("folders without images are left out: empty" in line for line in out)


@pytest.mark.parametrize("name", ["validation:cifar10-mini", "Validation:CIFAR10_mini", "validation:shapes"])
def test_the_files_behind_held_out_images_are_checked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, name)
    assert status == 0 and not err


def test_long_lists_are_cut_but_not_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        for place in range(4):
            path = tmp_path / f"class{number:02}" / f"{place}.png"
            path.parent.mkdir(exist_ok=True)
            picture(number * 4 + place).save(path)
    _, out, _ = run(capsys, f"folder:{tmp_path}?test=0.5")
    assert "  and 10 more (listed by --json)" in out
    _, out, _ = run(capsys, f"folder:{tmp_path}?test=0.5", "--json")
    assert len(json.loads("\n".join(out))["test"]) == 30
