"""Folders of images as datasets: what is said while they are read, and that no image is lost on the way."""

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from iidlib.data import image_tree, load_dataset, read_folder
from iidlib.data.folder import held_out, parse_folder
from iidlib.data.image_tree import ENDINGS
from iidlib.errors import InputError
from tests.factories import images_on_disk, lay, part, random_layout


def paint(root: Path) -> Path:
    """Puts a picture into every empty file of a layout, each of another colour."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        if path.suffix.lower() in (".png", ".jpg", ".jfif") and path.is_file() and not path.stat().st_size:
            colour = (number % 256, number // 256, 99)
            Image.new("RGB", (16, 16), colour).save(path, "PNG")  # whatever its ending says
    return root


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "iidlib")
    return caplog


def test_what_was_taken_for_what_is_said_once(tmp_path: Path, reported: pytest.LogCaptureFixture) -> None:
    root = paint(lay(tmp_path / "pets", *part("Train"), *part("val", "cat/*2.png", "dog/*1.png"), "test/*3.png"))
    read_folder(f"folder:{root}")
    assert [record.getMessage() for record in reported.records] == [
        f"{root / 'test'}: is left out: its images have no labels, because they are not in class folders",
        f"folder:{root}: 8 training images in Train (2 classes: cat 4, dog 4); 3 test images in val "
        "(2 classes: cat 2, dog 1)",
    ]  # fmt: skip
    assert [record.levelname for record in reported.records] == ["WARNING", "INFO"]


def test_what_is_held_out_is_said(tmp_path: Path, reported: pytest.LogCaptureFixture) -> None:
    root = paint(lay(tmp_path / "pets", *(f"{name}/*6.png" for name in "abcdefg"), "h/*1.png"))
    read_folder(f"folder:{root}?test=0.5")
    assert [record.getMessage() for record in reported.records] == [
        f"folder:{root}?test=0.5: 43 training images (8 classes: 1 to 6 images per class), 21 of them held out for "
        "testing",
        f"folder:{root}?test=0.5: classes with one image have no test images: h",
    ]  # fmt: skip


def test_a_class_without_test_images_is_named(tmp_path: Path, reported: pytest.LogCaptureFixture) -> None:
    root = paint(lay(tmp_path, *part("train"), "train/cow/*2.png", *part("test")))
    data = load_dataset(f"folder:{root}?size=8")
    assert data.spec.classes == ("cat", "cow", "dog") and data.test.counts.tolist() == [4, 0, 4]
    assert f"folder:{root}?size=8: 1 class has no test images: cow" in [
        record.getMessage() for record in reported.records
    ]


def test_test_images_get_the_labels_of_the_training_images(tmp_path: Path) -> None:
    names = part("train", "ant/*2.png", "bee/*2.png", "cat/*2.png")
    root = paint(lay(tmp_path, *names, "test/cat/*2.png", "test/ant/*1.png"))
    found = read_folder(f"folder:{root}?size=8")
    assert found.train[1].tolist() == [0, 0, 1, 1, 2, 2] and found.test[1].tolist() == [0, 2, 2]


def test_the_images_that_are_held_out_stay_the_same() -> None:
    """Results of runs with a folder are compared with later ones."""
    counts = torch.tensor([1, 2, 3, 10, 7])
    labels = torch.arange(5).repeat_interleave(counts)
    assert held_out(labels, 0.2).nonzero().flatten().tolist() == HELD_OUT[0.2]
    assert held_out(labels, 0.5).nonzero().flatten().tolist() == HELD_OUT[0.5]


HELD_OUT = {0.2: [1, 3, 6, 14, 17], 0.5: [1, 3, 5, 6, 8, 11, 14, 15, 17, 19, 20, 21]}


@pytest.mark.parametrize("place", ["cat", "cat/more", "train/cat"])
def test_a_folder_without_permission_is_named_and_nothing_is_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = "train/" if place.startswith("train") else ""
    names = ("cat/*2.png", "cat/more/*2.png", "cow/*2.png", "dog/*2.png")
    root = paint(lay(tmp_path, *(split + name for name in names)))
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path) == tmp_path / place:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(image_tree.os, "scandir", refusing)
    with pytest.raises(InputError, match=rf"1 folder in .* cannot be read: {place} \(permission denied\); replace"):
        read_folder(f"folder:{root}?size=8")


def test_files_and_folders_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    root = paint(lay(tmp_path, *part(".")))
    os.mkfifo(root / "cat" / "x.png")
    for number in range(3):
        (root / "dog" / f"z{number}.png").symlink_to("nowhere")
    (root / "kitty").symlink_to(root / "cat")
    (root / "zebra").symlink_to("nowhere")
    message = (
        r"1 folder and 1 link and 4 of 12 images in .* cannot be read: kitty \(the same folder as cat, so that its "
        r"images would count twice\), zebra \(a link that leads nowhere\), cat/x.png \(a named pipe, not a file\) "
        r"and 3 more \(iid data check names all\); replace or remove them, or change their permissions"
    )
    with pytest.raises(InputError, match=message):
        read_folder(f"folder:{root}?size=8")


def test_another_user_learns_what_may_not_be_read(tmp_path: Path) -> None:
    """With real rights where the tests may change the user, and else as the user that they run as."""
    root = paint(lay(tmp_path / "pets", *part("."), "dog/more/*2.png"))
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from iidlib.data.image_tree import scan\n"
        "if os.geteuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        "print([(one.path.name, one.reason) for one in scan(Path('.')).all_unreadable()])\n"
    )
    (root / "dog" / "more").chmod(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        (root / "dog" / "more").chmod(0o755)
    assert done.stdout.strip() == "[('more', 'permission denied')]", done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.write_text("x"), "pets is a file, not a folder; folder:PATH takes"),
        (lambda root: root.symlink_to("nowhere"), "no folder at .*pets; folder:PATH takes"),
        (lambda root: root.symlink_to("pets"), r"pets cannot be read \(too many levels of symbolic links\)"),
    ],
)
def test_what_is_no_folder_is_reported(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path / "pets")  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        read_folder(f"folder:{tmp_path / 'pets'}")


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    root = paint(lay(tmp_path, *part(".")))
    os.mkfifo(root / "cat" / "x.png")
    code = f"from iidlib.data import read_folder\nread_folder('folder:{root}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "cat/x.png (a named pipe, not a file)" in done.stderr


@pytest.mark.parametrize("seed", range(4))
def test_any_folder_is_read_with_all_its_images_or_refused_in_one_line(
    seed: int, tmp_path: Path, reported: pytest.LogCaptureFixture
) -> None:
    """What is read and what is said to be left out is what is on the disk."""
    draw, read = random.Random(100 + seed), 0
    for case in range(50):
        root = tmp_path / str(case)
        root.mkdir()
        random_layout(root, draw)
        paint(root)
        reported.clear()
        try:
            found = read_folder(f"folder:{root}?size=8")
        except InputError as error:
            assert "\n" not in str(error) and str(root) in str(error)
            continue
        read += 1
        lines = [record.getMessage() for record in reported.records]
        unused = [line.split(": is ")[0] for line in lines if ": is left out" in line or ": is not used" in line]
        named = sum(images_on_disk(Path(folder)) for folder in unused)
        named += sum(int(line.split(": ")[1].split()[0]) for line in lines if "directly in it" in line)
        assert len(found.train[0]) + len(found.test[0]) + named == images_on_disk(root), lines
    assert read > 4


def test_every_ending_that_counts_as_an_image_is_read(tmp_path: Path) -> None:
    formats = {ending: kind for ending, kind in Image.registered_extensions().items() if ending in ENDINGS}
    made = [ending for ending, kind in formats.items() if kind in Image.SAVE]
    assert len(made) >= len(ENDINGS) - 3  # Pillow reads PSD, but does not write it
    for name, colour in (("cat", (200, 10, 10)), ("dog", (10, 200, 10))):
        (tmp_path / name).mkdir()
        for ending in made:
            mode = {".pbm": "1", ".pgm": "L"}.get(ending, "RGB")
            Image.new("RGB", (16, 16), colour).convert(mode).save(
                tmp_path / name / f"a{ending.upper()}", formats[ending]
            )
    found = read_folder(f"folder:{tmp_path}?size=8")
    assert len(found.train[0]) + len(found.test[0]) == 2 * len(made)


def test_a_folder_with_a_question_mark_says_why_it_cannot_be_named(tmp_path: Path) -> None:
    (tmp_path / "odd?name").mkdir()
    with pytest.raises(InputError, match=r"reads what follows \? as options; rename .*odd\?name, or use a link"):
        parse_folder(f"folder:{tmp_path}/odd?name")
    with pytest.raises(InputError, match="has the options size, fit, test and range, got 'name'"):
        parse_folder(f"folder:{tmp_path}/other?name")
