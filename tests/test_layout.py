"""What a folder is taken for: splits by the names people give them, what is ambiguous, and nothing lost silently."""

import inspect
import os
import random
import re
import socket
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest

from iidlib.data import image_tree
from iidlib.data.image_tree import ENDINGS, Tree, scan
from iidlib.data.layout import Layout, layout_of
from iidlib.errors import InputError
from tests.factories import CATS_AND_DOGS, images_on_disk, lay, part, random_layout


def read(root: Path) -> Layout:
    tree = scan(root)
    assert not tree.all_unreadable()
    return layout_of(tree)


def refused(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(root)
    return str(caught.value).replace(f"{root}/", "").replace(str(root), "ROOT")


def shown(layout: Layout, root: Path) -> tuple[str, str]:
    """The folders of training and test images."""
    return (
        str(layout.train.path.relative_to(root)),
        str(layout.test.path.relative_to(root)) if layout.test else "held out",
    )


def left_out(layout: Layout, root: Path) -> list[str]:
    return [f"{out.path.relative_to(root)}: {out.reason}" for out in layout.left_out]


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("train", "Test"), ("Training", "Testing"),
        ("training", "test"), ("train_set", "test_set"), ("trainset", "testset"), ("training_set", "test_set"),
        ("Training Set", "Test Set"), ("train-images", "test-images"), ("train_data", "test_data"),
        ("train", "val"), ("train", "valid"), ("Train", "Validation"), ("train", "validation_set"),
        ("train", "val_set"), ("train", "dev"), ("train2017", "val2017"), ("seg_train", "seg_test"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("training_set/training_set", "test_set/test_set"), ("seg_train/seg_train", "seg_test/seg_test"),
        ("images/train", "images/test"), ("archive/train", "archive/val"), ("ILSVRC/Data/CLS-LOC/train",
        "ILSVRC/Data/CLS-LOC/val"), ("train/images", "test/images"),
    ],
)  # fmt: skip
def test_splits_are_known_by_the_names_people_give_them(train: str, test: str, tmp_path: Path) -> None:
    found = read(lay(tmp_path, *part(train), *part(test, "cat/*2.jpg", "dog/*1.jpg")))
    assert shown(found, tmp_path) == (train, test)
    assert found.train.counts == {"cat": 4, "dog": 4}
    assert found.test is not None and found.test.counts == {"cat": 2, "dog": 1}
    assert not found.left_out and not found.notes


@pytest.mark.parametrize("name", ["trains", "contest", "trainer", "latest", "evaluation", "developer", "test1"])
def test_names_that_only_hold_such_words_are_classes(name: str, tmp_path: Path) -> None:
    found = read(lay(tmp_path, *part(".", "bus/*3.png", f"{name}/*3.png")))
    assert found.test is None and found.train.classes == tuple(sorted(("bus", name)))


def test_class_folders_alone_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    lay(tmp_path, "b/*2.png", "a/deep/er/*1.png", "a/*1.png", "a/deep/*1.png", "C/*1.PNG")
    found = read(tmp_path)
    assert found.train.classes == ("C", "a", "b") and found.test is None
    assert [str(path.relative_to(tmp_path)) for path in found.train.images[1]] == [
        "a/0.png", "a/deep/0.png", "a/deep/er/0.png",
    ]  # fmt: skip


def test_labelled_validation_images_are_taken_before_unlabelled_test_images(tmp_path: Path) -> None:
    for place, flat in (("imagenet", "test/*7.png"), ("kaggle", "test/unknown/*7.png"), ("tiny", "Test/images/*7.png")):
        root = lay(tmp_path / place, *part("train"), *part("val"), flat)
        found = read(root)
        assert shown(found, root) == ("train", "val")
        (out,) = found.left_out
        assert out.images == 7 and "have no labels" in out.reason and out.path.name.lower() == "test"


def test_labelled_test_images_are_taken_before_validation_images_which_are_reported(tmp_path: Path) -> None:
    found = read(lay(tmp_path, *part("train"), *part("valid"), *part("test")))
    assert shown(found, tmp_path) == ("train", "test")
    assert left_out(found, tmp_path) == ["valid: is not used, because test holds the test images"]
    assert found.left_out[0].images == 8


def test_a_test_folder_without_labels_and_nothing_else_is_left_out(tmp_path: Path) -> None:
    found = read(lay(tmp_path, *part("train"), "test/*9.png"))
    assert shown(found, tmp_path) == ("train", "held out") and found.left_out[0].images == 9
    tiny = read(lay(tmp_path / "tiny", *part("train"), "val/images/*5.JPEG", "test/images/*6.JPEG", "words.txt"))
    assert tiny.test is None and sorted(out.images for out in tiny.left_out) == [0, 5, 6]


def test_images_to_predict_are_left_out(tmp_path: Path) -> None:
    found = read(lay(tmp_path, *part("seg_train"), *part("seg_test"), "seg_pred/seg_pred/*3.jpg"))
    assert shown(found, tmp_path) == ("seg_train", "seg_test")
    assert left_out(found, tmp_path) == ["seg_pred: is left out: its name marks it as unlabelled"]


def test_classes_that_are_called_as_a_split_are_understood_where_they_can_be(tmp_path: Path) -> None:
    vehicles = read(lay(tmp_path / "vehicles", "bus/*3.png", "car/*3.png", "train/*3.png"))
    assert vehicles.train.classes == ("bus", "car", "train") and "train is taken as a class" in vehicles.notes[0]
    tickets = read(lay(tmp_path / "tickets", "valid/*3.png", "invalid/*3.png"))
    assert tickets.train.classes == ("invalid", "valid")


AMBIGUOUS: dict[str, tuple[list[str], str]] = {
    "train and Train": ([*part("train"), *part("Train")], "Train and train, each of which can be the training images"),
    "train and training": ([*part("train"), *part("training")], "train and training, each .* merge them"),
    "two tests": ([*part("train"), *part("test"), *part("testing")], "test and testing, each of which can be the test"),
    "val and validation": ([*part("train"), *part("val"), *part("validation")], "each .* the validation images"),
    "classes beside": ([*part("train"), *part("test"), "bird/*3.png"],
                       "test and train next to other folders with images: bird; if those are classes, move them into"),
    "classes beside train": ([*part("train"), "bird/*3.png"], "train next to other folders with images: bird"),
    "test alone": (part("Test"), "a folder Test but none with training.*; put them .*, or use this one: folder:Test"),
    "a class called test": (["cat/*3.png", "dog/*3.png", "test/*3.png"],
                            "a folder test but none with training.* if it is a class, give its folder another name"),
    "validation alone": (["cat/*3.png", "dog/*3.png", "val/cat/*3.png"], "a folder val but none with training images"),
    "flat train and test beside a class": (["bus/*3.png", "train/*3.png", "test/*3.png"],
                                           "test and train next to other folders with images: bus"),
    "flat train and a numbered test": (["train/*3.png", "test1/*3.png"], "train next to other folders .*: test1"),
    "split below the classes": (["cat/train/*3.png", "cat/test/*3.png", "dog/train/*3.png", "dog/test/*3.png"],
                                r"put the split above them \(train/cat, test/cat\)"),
    "two datasets": (["images/train/cat/*3.png", "images/test/cat/*3.png", "masks/train/cat/*3.png"],
                      "if images is the dataset, write folder:images"),
    "other classes": ([*part("train"), *part("test", "0/*3.png", "1/*3.png")],
                      r"the folders 0, 1, none of which is a class of train \(cat, dog\); give them the names"),
    "capitals": ([*part("train"), *part("test", "Cat/*3.png", "Dog/*3.png")],
                 "test has the class 'Cat', which train does not have; the class there is 'cat': names are case-"),
    "capitals of one": ([*part("train"), *part("test", "cat/*3.png", "Dog/*3.png")], "the class there is 'dog'"),
    "capitals beside val": ([*part("train"), *part("val"), *part("test", "Cat/*3.png")], "the class there is 'cat'"),
    "classes only in test": ([*part("train"), *part("test"), "test/bird/*3.png"],
                             "test has the class 'bird', which train does not have; give it training images, or move"),
    "class empty in train": ([*part("train", "cat/*3.png", "cow/*3.png"), "train/dog/", *part("test")],
                             "test has the class 'dog', which train does not have"),
    "one class": (["cat/*3.png"], r"ROOT has 1 folder with images \(cat\); a dataset needs one folder for each class"),
    "one class in train": (["train/cat/*3.png", "test/cat/*3.png"], r"train has 1 folder with images \(cat\)"),
    "flat train": (["train/*3.png", "test/*3.png"], "train has 0 folders with images and 3 images directly in it"),
    "flat": (["*3.png"], "ROOT has 0 folders with images and 3 images directly in it"),
    "empty": ([], "ROOT has 0 folders with images; a dataset"),
    "classes one below": (["PetImages/Cat/*3.png", "PetImages/Dog/*3.png"], "did you mean folder:PetImages, which"),
    "a class of HEIC": (["cat/*3.png", "dog/*3.png", "cow/*3.heic"],
                        r"pictures in cow are in an unsupported format \(3 .heic\); convert them"),
    "a test of HEIC": ([*part("train"), "test/cat/*3.HEIC"], "pictures in test are in an unsupported format"),
}  # fmt: skip


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_ambiguous_or_too_little_is_refused_with_what_to_do(case: str, tmp_path: Path) -> None:
    names, message = AMBIGUOUS[case]
    reported = refused(lay(tmp_path, *names))
    assert re.search(message, reported), reported
    assert "\n" not in reported


def test_names_of_one_look_in_two_spellings_are_refused_in_one_folder_and_equal_in_two(tmp_path: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "grün") for form in ("NFC", "NFD"))
    found = read(
        lay(tmp_path / "two", *part("train", f"{composed}/*2.png", "red/*2.png"), f"test/{taken_apart}/*1.png")
    )
    assert found.test is not None and found.test.counts == {composed: 1}
    root = lay(tmp_path / "one", f"{composed}/*2.png", f"{taken_apart}/*2.png")
    if len(list(root.iterdir())) == 2:  # some file systems make them one
        assert "two folders 'grün'" in refused(root)


def test_a_name_that_is_no_text_is_refused() -> None:
    root = Path("pets")
    classes = [Tree(root / name, images=[root / name / "a.png"]) for name in ("cat", os.fsdecode(b"d\xf6g"))]
    with pytest.raises(InputError, match="is not valid UTF-8; rename it"):
        layout_of(Tree(root, folders=classes))


def test_notes_tell_what_may_be_meant_otherwise(tmp_path: Path) -> None:
    letters = read(lay(tmp_path / "letters", "a/*2.png", "A/*2.png", "b/*2.png"))
    assert letters.train.classes == ("A", "a", "b") and "taken as different classes: A, a" in letters.notes[0]
    without = read(lay(tmp_path / "without", *part("train"), "train/cow/*2.png", *part("test"), "test/cow/"))
    assert without.notes == ("1 class has no test images: cow",)


@pytest.mark.parametrize("split", [("fold1", "fold2"), ("Entrenamiento", "Prueba"), ("k1", "k2", "k3")])
def test_a_split_under_unknown_names_is_reported(split: tuple[str, ...], tmp_path: Path) -> None:
    found = read(lay(tmp_path, *(line for one in split for line in part(one))))
    assert found.train.classes == split, "as it may be meant so: cat/female, cat/male, dog/female, dog/male"
    (note,) = found.notes
    assert note.startswith(f"all classes ({', '.join(split)}) contain the same folders: cat, dog; if these are")
    assert f"rename its folders to train and test, or use one of them, as in folder:{tmp_path / split[0]}" in note


@pytest.mark.parametrize(
    "lines",
    [
        ("a/x/*2.png", "b/x/*2.png"),
        ("a/x/*2.png", "a/y/*2.png", "b/x/*2.png"),
        ("a/x/*2.png", "a/y/*2.png", "a/*1.png", "b/x/*2.png", "b/y/*2.png"),
        ("a/x/*2.png", "a/y/*2.png", "b/*2.png"),
    ],
)
def test_classes_with_other_folders_in_them_are_not_reported(lines: tuple[str, ...], tmp_path: Path) -> None:
    assert not read(lay(tmp_path, *lines)).notes


# --- what is left out is named ----------------------------------------------------------------------------------------


def test_what_is_left_out_is_reported_with_its_kind_and_an_example(tmp_path: Path) -> None:
    lay(
        tmp_path,
        *CATS_AND_DOGS,
        "cat/a.txt",
        "cat/b.txt",
        "dog/more/c.heic",
        "dog/d",
        "empty/",
        "notes/n.md",
        "loose.png",
    )
    lay(tmp_path, "cat/._0.png", "__MACOSX/cat/*2.png", ".git/x", "cat/.DS_Store")
    (tmp_path / "cat" / "circle").symlink_to(tmp_path)
    reported = left_out(read(tmp_path), tmp_path)
    assert reported == [
        ".: 1 image directly in it is left out, because it is not in a class folder",
        ".: folders without images are left out: empty, notes",
        ".: 5 files that are not images are left out (2 .txt, 1 without an ending, 1 .heic, 1 .md), "
        "the first is cat/a.txt",
        ".: hidden files and folders are left out: .git, __MACOSX, cat/._0.png",
        ".: links to their own parent folders are left out: cat/circle",
    ]


def test_every_ending_that_counts_is_one_that_pillow_opens() -> None:
    from PIL import Image

    assert ENDINGS <= set(Image.registered_extensions()) | {".mpo", ".avif"}  # these need libraries of their own
    assert not ENDINGS & image_tree.UNREAD_PICTURES


def test_endings_count_in_capitals_and_in_their_rarer_forms(tmp_path: Path) -> None:
    names = ["a.JPG", "b.Jpeg", "c.jfif", "d.TGA", "e.jp2", "f.AVIF", "g.tiff", "h.PNG", "i.dib", "j.pbm", "k.pcx"]
    found = read(lay(tmp_path, *(f"cat/{name}" for name in names), "dog/*2.png"))
    assert found.train.counts == {"cat": len(names), "dog": 2} and not found.left_out


# --- what cannot be read ----------------------------------------------------------------------------------------------


def unreadable(root: Path) -> dict[str, str]:
    return {str(one.path.relative_to(root)): one.reason for one in scan(root).all_unreadable()}


ERRORS = (PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file"), OSError(5, "I/O error"))


@pytest.mark.parametrize("name", ["cat", "cat/more", "train/dog", "."])
@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file"), OSError(5, "I/O error")]
)
def test_a_folder_that_cannot_be_read_is_named(
    name: str, error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights that root would not miss, folders that vanish while they are read, disks that fail."""
    lay(tmp_path, "cat/*2.png", "cat/more/*2.png", "dog/*2.png", "train/dog/*2.png")
    scandir = os.scandir

    def failing(path: Path) -> object:
        if Path(path) == tmp_path / name:
            raise error
        return scandir(path)

    monkeypatch.setattr(image_tree.os, "scandir", failing)
    assert unreadable(tmp_path) == {name: error.strerror.lower()}


def test_a_folder_that_breaks_off_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "cat/*2.png", "dog/*2.png")

    class Breaking:
        def __init__(self, path: Path) -> None:
            self.found, self.fails = scandir(path), Path(path).name == "cat"

        def __enter__(self) -> "Breaking":
            return self

        def __exit__(self, *error: object) -> None:
            self.found.close()

        def __iter__(self) -> Iterable[os.DirEntry[str]]:
            yield next(self.found)
            if self.fails:
                raise OSError(116, "Stale file handle")
            yield from self.found

    scandir = os.scandir
    monkeypatch.setattr(image_tree.os, "scandir", Breaking)
    assert unreadable(tmp_path) == {"cat": "stale file handle"}


def test_links_that_lead_nowhere_or_to_themselves_are_named(tmp_path: Path) -> None:
    lay(tmp_path, *CATS_AND_DOGS)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "unmounted")
    (tmp_path / "bird").symlink_to("bird")
    (tmp_path / "dog" / ".#lock").symlink_to("user@host.1234")  # as editors make them
    found = unreadable(tmp_path)
    assert set(found) == {"cat/gone.png", "dog/more", "bird"}
    assert found["cat/gone.png"] == found["dog/more"] == "a link that leads nowhere"


def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path: Path) -> None:
    lay(tmp_path, *CATS_AND_DOGS)
    os.mkfifo(tmp_path / "cat" / "x.png")
    os.mkfifo(tmp_path / "cat" / "pipe")
    (tmp_path / "cat" / "null.jpg").symlink_to("/dev/null")
    here = Path.cwd()
    os.chdir(tmp_path / "dog")  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("s.png")
    finally:
        os.chdir(here)
    assert unreadable(tmp_path) == {
        "cat/x.png": "a named pipe, not a file", "cat/null.jpg": "a device, not a file",
        "dog/s.png": "a socket, not a file",
    }  # fmt: skip


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = lay(tmp_path / "elsewhere", "cow/*3.png", "old/cats/*2.png")
    root = lay(tmp_path / "root", *CATS_AND_DOGS)
    (root / "cow").symlink_to(elsewhere / "cow")
    (root / "cat" / "old").symlink_to(elsewhere / "old")
    assert read(root).train.counts == {"cat": 6, "cow": 3, "dog": 4}
    (root / "kitty").symlink_to(root / "cat")
    (root / "dog" / "cows").symlink_to(elsewhere / "cow")
    found = unreadable(root)
    assert found["kitty"] == "the same folder as cat, so that its images would count twice"
    assert found["dog/cows"] == "the same folder as cow, so that its images would count twice"


def test_circles_of_links_end(tmp_path: Path) -> None:
    root = lay(tmp_path / "root", *CATS_AND_DOGS, "cat/deep/*1.png")
    for number, target in enumerate((root, root / "cat", root / "cat" / "deep", tmp_path, Path("/"))):
        (root / "cat" / "deep" / f"circle{number}").symlink_to(target)
    found = read(root)
    assert found.train.counts == {"cat": 5, "dog": 4}
    assert "links to their own parent folders are left out: cat/deep/circle0" in left_out(found, root)[0]
    outside = lay(tmp_path / "outside", "x/*1.png")
    (outside / "back").symlink_to(root)
    (root / "dog" / "out").symlink_to(outside)
    assert unreadable(root) == {"dog/out/back": f"the same folder as {root}, so that its images would count twice"}


def test_folders_nested_deeper_than_calls_can_be_are_read(tmp_path: Path) -> None:
    lay(tmp_path, *CATS_AND_DOGS, f"cat/{'d/' * 300}x.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert read(tmp_path).train.counts == {"cat": 5, "dog": 4}
    finally:
        sys.setrecursionlimit(limit)


# --- any layout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_any_layout_is_read_with_all_its_images_or_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    draw, read_, refusals = random.Random(seed), 0, 0
    for case in range(60):
        root = tmp_path / str(case)
        root.mkdir()
        random_layout(root, draw)
        tree = scan(root)
        if tree.all_unreadable():
            continue
        assert len(tree.all_images()) == images_on_disk(root)
        try:
            found = layout_of(tree)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 990
            refusals += 1
            continue
        read_ += 1
        taken = len(found.train.paths) + (len(found.test.paths) if found.test else 0)
        assert taken + sum(out.images for out in found.left_out) == images_on_disk(root)
    assert read_ > 5 and refusals > 5
