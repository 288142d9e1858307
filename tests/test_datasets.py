"""Datasets in their true formats, written in small: CIFAR-100, SVHN, TinyImageNet, folders; whole and corrupted."""

import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from iidlib import bars
from iidlib.config import preset
from iidlib.data import check, datasets, image_files, load_dataset, tinyimagenet
from iidlib.data.archives import unpack
from iidlib.data.download import fetch
from iidlib.data.pictures import decode
from iidlib.data.registry import SOURCES
from iidlib.distillation import distill
from iidlib.errors import InputError
from iidlib.synthetic import SyntheticSet
from tests.factories import md5, one_line

torchvision_datasets = torchvision.datasets


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))


# --- CIFAR-100 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Its three files with twelve images, torchvision's checksums changed to theirs."""
    kind, folder = torchvision_datasets.CIFAR100, tmp_path / "cifar-100-python"
    folder.mkdir()
    images = torch.randint(0, 256, (12, 3072), dtype=torch.uint8)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    train = write("train", {"data": images[:8].numpy(), "fine_labels": list(range(8)), "coarse_labels": [0] * 8})
    test = write("test", {"data": images[8:].numpy(), "fine_labels": [96, 97, 98, 99], "coarse_labels": [0] * 4})
    monkeypatch.setattr(kind, "train_list", [["train", train]])
    monkeypatch.setattr(kind, "test_list", [["test", test]])
    names = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["coarse"]}
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write("meta", names)})
    return images.view(12, 3, 32, 32)


def test_cifar100_has_its_hundred_fine_classes(cifar100: torch.Tensor, tmp_path: Path) -> None:
    data = load_dataset("cifar100", data_root=tmp_path)
    assert data.train.images.equal(cifar100[:8]) and data.test.images.equal(cifar100[8:])
    assert data.train.labels.tolist() == [*range(8)] and data.test.labels.tolist() == [96, 97, 98, 99]
    assert data.spec.classes[99] == "fine 99" and len(data.spec.classes) == 100
    assert data.spec.mean == (0.5071, 0.4866, 0.4409) and data.spec.std == (0.2673, 0.2564, 0.2762)


def test_a_corrupted_file_of_cifar100_is_named(cifar100: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"x")
    with pytest.raises(InputError, match=r"cifar100: .*train is corrupted") as caught:
        load_dataset("cifar100", data_root=tmp_path)
    assert "iid data fetch cifar100" in one_line(caught)


# --- SVHN -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Its two files as MATLAB wrote them: images [32, 32, 3, N] in X, labels [N, 1] with 10 for the digit 0 in y."""
    draw, folder, parts = np.random.default_rng(0), tmp_path / "svhn", {}
    folder.mkdir()
    lists = dict(torchvision_datasets.SVHN.split_list)
    for part, labels in (("train", [10, 1, 2, 3, 4, 5, 6, 7, 8, 9]), ("test", [10, 10, 9])):
        images = draw.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        path = folder / f"{part}_32x32.mat"
        savemat(path, {"X": images, "y": np.array(labels, dtype=np.uint8)[:, None]}, do_compression=True)
        lists[part] = [lists[part][0], path.name, md5(path)]
        parts[part] = images
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", lists)
    return parts


def test_svhn_in_matlabs_format(svhn: dict[str, np.ndarray], tmp_path: Path) -> None:
    data = load_dataset("svhn", data_root=tmp_path)
    assert data.train.images.shape == (10, 3, 32, 32) and data.train.images.is_contiguous()
    for number in (0, 7):  # row, column, channel, image
        assert data.train.images[number].permute(1, 2, 0).numpy().tolist() == svhn["train"][..., number].tolist()
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert data.test.labels.tolist() == [0, 0, 9] and data.spec.classes[0] == "0"
    assert "flip" not in data.spec.augmentation, "a mirrored digit is another sign"


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing"])
def test_a_corrupted_file_of_svhn_is_named_before_it_is_read(harm: str, svhn: object, tmp_path: Path) -> None:
    path = tmp_path / "svhn" / "train_32x32.mat"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    {
        "cut": lambda: path.write_bytes(content[:200]),
        "flipped": lambda: path.write_bytes(content),
        "missing": path.unlink,
    }[harm]()
    with pytest.raises(InputError, match=r"train_32x32\.mat is (corrupted|missing)") as caught:
        load_dataset("svhn", data_root=tmp_path)
    assert "iid data fetch svhn" in one_line(caught)
    assert not check("svhn", tmp_path).ok


# --- TinyImageNet -----------------------------------------------------------------------------------------------------

SMALL = tinyimagenet.Layout(classes=3, train=4, test=2)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The original layout with three classes of four, one image of them grey, as some are in the original."""
    root, numbers = tmp_path / "tiny-imagenet-200", ["n01443537", "n01629819", "n02094433"]
    draw = np.random.default_rng(0)

    def picture(path: Path, grey: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 64) if grey else (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")

    rows = []
    for place, number in enumerate(numbers):
        for count in (0, 1, 2, 10):  # the order is that of the numbers, not of the letters
            picture(root / "train" / number / "images" / f"{number}_{count}.JPEG", grey=count == 2)
        for count in (0, 1):
            name = f"val_{3 * count + place}.JPEG"
            picture(root / "val" / "images" / name)
            rows.append(f"{name}\t{number}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn01629819\tsalamander\nn02094433\tgoldfish\n"
    )
    source = SOURCES["tinyimagenet"]
    monkeypatch.setitem(
        SOURCES, "tinyimagenet",
        dataclasses.replace(source, problems=lambda folder: tinyimagenet.problems(folder, SMALL)),
    )  # fmt: skip
    return root


def test_tinyimagenet_in_its_original_folder(tiny: Path, tmp_path: Path) -> None:
    data = load_dataset("tinyimagenet", data_root=tmp_path)
    assert data.train.images.shape == (12, 3, 64, 64) and data.test.images.shape == (6, 3, 64, 64)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.spec.classes == ("n01443537", "salamander", "n02094433"), "two classes have the same first word"
    grey = data.train.images[2]
    assert grey[0].equal(grey[1]) and not data.train.images[0][0].equal(data.train.images[0][1])
    last = np.asarray(Image.open(tiny / "train/n01443537/images/n01443537_10.JPEG"))
    assert data.train.images[3].permute(1, 2, 0).numpy().tolist() == last.tolist()


def test_tinyimagenet_is_decoded_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("tinyimagenet", data_root=tmp_path)
    monkeypatch.setattr(image_files, "read_picture", lambda *_: pytest.fail("decoded again"))
    assert load_dataset("tinyimagenet", data_root=tmp_path).train.images.equal(first.train.images)
    (kept,) = (tmp_path / "cache" / "images").glob("*.safetensors")
    monkeypatch.undo()
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)  # its checksum is another: decoded again
    paths = sorted((tiny / "train/n01443537/images").glob("*"))
    assert image_files.decode_all("x", tiny, paths, 64).shape == (4, 3, 64, 64)


def test_what_is_missing_or_too_much_in_tinyimagenet_is_one_message(tiny: Path, tmp_path: Path) -> None:
    (tiny / "train/n01629819/images/n01629819_1.JPEG").unlink()
    (tiny / "val/images/val_0.JPEG").unlink()
    (tiny / "val/images/val_77.JPEG").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_dataset("tinyimagenet", data_root=tmp_path)
    text = one_line(caught)
    for reported in ("n01629819 has 3 of 4 training images", "test images missing: 1, such as val_0.JPEG",
                 "test images not listed: 1, such as val_77.JPEG", "iid data fetch tinyimagenet"):  # fmt: skip
        assert reported in text
    report = check("tinyimagenet", tmp_path)
    assert not report.ok and len(report.problems) == 3


def test_a_corrupted_image_of_tinyimagenet_is_named(tiny: Path, tmp_path: Path) -> None:
    (tiny / "val/images/val_0.JPEG").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 18 images .* cannot be read: val/images/val_0.JPEG \(not an image\)"):
        load_dataset("tinyimagenet", data_root=tmp_path)


@pytest.mark.realdata
def test_twenty_classes_of_tinyimagenet_are_incomplete_and_a_folder() -> None:
    root = Path(os.environ["IID_DATA"]) / "tiny-imagenet-200"
    if not root.is_dir():
        pytest.skip("no TinyImageNet under IID_DATA")
    with pytest.raises(InputError, match="20 of 200 classes"):
        load_dataset("tinyimagenet")
    data = load_dataset(f"folder:{root}?size=64&test=0.1")
    assert len(data.spec.classes) == 20 and len(data.train) == 9000 and len(data.test) == 1000


@pytest.mark.realdata
def test_the_whole_cifar100() -> None:
    data = load_dataset("cifar100")
    assert data.train.counts.tolist() == [500] * 100 and data.test.counts.tolist() == [100] * 100
    assert data.spec.classes[:2] == ("apple", "aquarium_fish")
    mean = data.train.images.double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor(data.spec.mean).double(), atol=1e-3)


# --- folders of images ------------------------------------------------------------------------------------------------


def paint(
    path: Path, colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (40, 30), mode: str = "RGB"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("red", (220, 20, 20)), ("grün", (20, 220, 20))):
        for number in range(5):
            paint(tmp_path / "my" / name / f"{number}.png", colour)
    return tmp_path / "my"


def test_a_folder_is_a_dataset(folder: Path) -> None:
    data = load_dataset(f"folder:{folder}")
    assert data.spec.classes == ("grün", "red") and data.spec.image_size == 32
    assert data.train.counts.tolist() == [4, 4] and data.test.counts.tolist() == [1, 1]
    assert data.train.images[0, :, 16, 16].tolist() == [20, 220, 20]
    assert data.spec.mean == pytest.approx((120 / 255, 120 / 255, 20 / 255), abs=1e-4)
    again = load_dataset(f"folder:{folder}?size=16&test=0.5")
    assert (
        again.spec.image_size == 16 and again.train.counts.tolist() == [3, 3] and again.test.counts.tolist() == [2, 2]
    )


@pytest.mark.parametrize(
    ("query", "side"), [("28&fit=pad", 32), ("27&fit=pad", 32), ("32&fit=pad", 32), ("9&fit=pad", 16)]
)
def test_a_size_that_is_no_multiple_of_eight_is_padded_on_request(query: str, side: int, folder: Path) -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, :20] = 255  # white on the left, black on the right, to the edge
    Image.fromarray(picture).save(folder / "red" / "0.png")
    size = int(query.partition("&")[0])
    padded, plain = (load_dataset(f"folder:{folder}?size={q}&test=0.5") for q in (query, 64))
    assert padded.spec.image_size == side and padded.train.images.shape[-2:] == (side, side)
    first = (side - size) // 2
    inner = torch.stack([decode(path, size) for path in sorted((folder / "red").glob("*.png"))])
    found = torch.cat([padded.train.images, padded.test.images])
    for image in inner:
        same = (found[..., first : first + size, first : first + size] == image).flatten(1).all(1)
        assert bool(same.any())
        whole = found[int(same.nonzero()[0])]
        assert bool((whole[:, :, 0] == whole[:, :, first]).all() and (whole[:, -1] == whole[:, first + size - 1]).all())
    assert plain.spec.classes == padded.spec.classes


def test_a_padded_folder_is_distilled_and_found_again(folder: Path, tmp_path: Path) -> None:
    name = f"folder:{folder}?size=12&fit=pad"
    result = distill(preset("idm", name, 1, "ci", {"pool.epochs": 8}), out=tmp_path / "run")
    assert result.synthetic.images.shape[-1] == 16 and SyntheticSet.load(tmp_path / "run").spec.name == name


def test_a_folder_with_test_images_of_its_own(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    (whole / "train").parent.mkdir()
    folder.rename(whole / "train")
    for part in ("red", "grün"):
        paint(whole / "test" / part / "deep" / "a.jpg")
    data = load_dataset(f"folder:{whole}")
    assert data.train.counts.tolist() == [5, 5] and data.test.counts.tolist() == [1, 1]
    paint(whole / "test" / "blue" / "a.jpg")
    with pytest.raises(InputError, match=r"has the class 'blue', which .* does not have"):
        load_dataset(f"folder:{whole}")


def test_a_folder_is_distilled_and_the_set_knows_its_classes(folder: Path, tmp_path: Path) -> None:
    name = f"folder:{folder}?size=16"
    result = distill(preset("iid-idm", name, 1, "ci", {"pool.epochs": 8}), out=tmp_path / "run")
    loaded = SyntheticSet.load(tmp_path / "run")
    assert loaded.spec.classes == ("grün", "red") and loaded.spec.name == name and loaded.images.shape[-1] == 16
    assert torch.equal(loaded.images, result.synthetic.images)


STRANGE: dict[str, Callable[[Path], object]] = {
    "grey": lambda p: paint(p / "a.png", (77,), mode="L"),
    "one bit": lambda p: paint(p / "a.png", (1,), mode="1"),
    "palette": lambda p: Image.new("RGB", (9, 9), (10, 200, 30)).convert("P").save(p / "a.png"),
    "cmyk": lambda p: paint(p / "a.jpg", (0, 90, 90, 10), mode="CMYK"),
    "alpha": lambda p: paint(p / "a.png", (255, 0, 0, 0), mode="RGBA"),
    "grey with alpha": lambda p: paint(p / "a.png", (9, 128), mode="LA"),
    "sixteen bits": lambda p: Image.fromarray(np.full((9, 9), 32768, np.uint16)).save(p / "a.png"),
    "one pixel": lambda p: paint(p / "a.png", size=(1, 1)),
    "long": lambda p: paint(p / "a.png", size=(2000, 3)),
    "animated": lambda p: Image.new("P", (9, 9)).save(
        p / "a.gif", save_all=True, append_images=[Image.new("P", (9, 9), 1)]
    ),
    "unicode name": lambda p: paint(p / "ж 漢字 \U0001f600.png"),
    "capital ending": lambda p: paint(p / "A.png").rename(p / "A.PNG"),
    "link": lambda p: (p / "a.png").symlink_to(paint(p.parent / "elsewhere.png")),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_images_are_read(kind: str, folder: Path) -> None:
    place = folder / "strange"
    place.mkdir()
    STRANGE[kind](place)
    data = load_dataset(f"folder:{folder}")
    assert data.spec.classes == ("grün", "red", "strange") and data.train.counts.tolist()[2] == 1
    middle = data.train.images[data.train.labels == 2][0, :, 16, 16].tolist()
    expected = {"alpha": [255, 255, 255], "sixteen bits": [128, 128, 128], "grey": [77, 77, 77], "palette": None}
    if expected.get(kind):
        assert middle == expected[kind]


def bomb(path: Path) -> None:
    """A PNG whose header speaks of a picture of ten thousand million pixels."""
    paint(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


CORRUPTED: dict[str, Callable[[Path], object]] = {
    "truncated": lambda p: (p / "a.png").write_bytes(paint(p / "a.png", size=(300, 300)).read_bytes()[:400]),
    "text": lambda p: (p / "a.png").write_text("I am no image"),
    "empty": lambda p: (p / "a.png").write_bytes(b""),
    "bomb": lambda p: bomb(p / "a.png"),
    "link to nowhere": lambda p: (p / "a.png").symlink_to(p / "nowhere.png"),
    "html": lambda p: (p / "a.jpg").write_text("<script>alert(1)</script>"),
}


@pytest.mark.parametrize("kind", CORRUPTED)
def test_corrupted_images_are_reported_in_one_line(kind: str, folder: Path) -> None:
    place = folder / "corrupted"
    place.mkdir()
    CORRUPTED[kind](place)
    with pytest.raises(
        InputError, match=r"1 of 11 images in .* cannot be read: corrupted/a\.\w+ \(.+\); replace"
    ) as caught:
        load_dataset(f"folder:{folder}")
    one_line(caught)


def test_files_that_are_no_images_and_empty_classes_are_left_out_and_reported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "red" / "notes.txt").write_text("mine")
    (folder / "red" / ".DS_Store").write_bytes(b"x")
    (folder / "empty").mkdir()
    (folder / "red" / "circle").symlink_to(folder)
    assert load_dataset(f"folder:{folder}").spec.classes == ("grün", "red")
    reported = " ".join(record.message for record in caplog.records)
    assert (
        "1 file that is not an image is left out" in reported
        and "folders without images are left out: empty" in reported
    )


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("folder:", "needs the path of a folder"),
        ("folder:/no/such/place", "no folder at /no/such/place"),
        ("folder:HERE?size=30", "size must be a multiple of 8 .* got 30; use size=32 .*, or fit=pad to pad .* to 32"),
        (
            "folder:HERE?size=7",
            "size must be a multiple of 8 .* got 7; use size=8 to resize the images to that$",
        ),
        ("folder:HERE?size=1000&fit=pad", "from 8 to 512, got 1000; use size=512"),
        ("folder:HERE?size=28&fit=stretch", "fit can be pad, got 'stretch'; without it images are resized"),
        ("folder:HERE?size=huge", "size takes a whole number"),
        ("folder:HERE?test=1", "test must be a share between 0 and 1"),
        ("folder:HERE?pixels=8", "has the options size, fit, test and range, got 'pixels'"),
        ("folder:HERE/red", "has 0 folders with images"),
    ],
)
def test_wrong_folders_are_one_line(name: str, reported: str, folder: Path) -> None:
    with pytest.raises(InputError, match=reported) as caught:
        load_dataset(name.replace("HERE", str(folder)))
    one_line(caught)


def test_one_image_a_class_leaves_none_to_test_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paint(tmp_path / "one" / name / "x.png")
    with pytest.raises(InputError, match="none is left to test on"):
        load_dataset(f"folder:{tmp_path / 'one'}")
    paint(tmp_path / "one" / "a" / "y.png")
    assert load_dataset(f"folder:{tmp_path / 'one'}").test.counts.tolist() == [1, 0]


def test_a_picture_taken_sideways_is_turned(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 20), "blue")
    picture.paste((255, 0, 0), (0, 0, 20, 10))  # red above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    assert decode(tmp_path / "a.png", 16)[:, 2, 8].tolist() == [0, 0, 255]


# --- from the network -------------------------------------------------------------------------------------------------


class Ranged(http.server.BaseHTTPRequestHandler):
    """Serves one content, from where it is asked; breaks off at first where it is asked to."""

    content = b""
    breaks_at: int | None = None
    asked: list[str | None] = []  # noqa: RUF012, of the class on purpose

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        Ranged.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        end, Ranged.breaks_at = Ranged.breaks_at, None
        self.wfile.write(self.content[start:end])

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], str]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranged) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(content: bytes, breaks_at: int | None = None) -> str:
            Ranged.content, Ranged.breaks_at, Ranged.asked = content, breaks_at, []
            return f"http://127.0.0.1:{server.server_port}/file.zip"

        yield serve
        server.shutdown()


def test_a_download_resumes_where_it_broke_off(served: Callable[..., str], tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(5_000_000)
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    url, target = served(content, 2_000_000), tmp_path / "file.zip"
    with pytest.raises(OSError, match="broke off"):
        fetch(url, target, checksum)
    have = (tmp_path / "file.zip.part").stat().st_size
    fetch(url, target, checksum)
    assert target.read_bytes() == content and not (tmp_path / "file.zip.part").exists()
    assert have and Ranged.asked[-1] == f"bytes={have}-"
    fetch(url, target, checksum)
    assert len(Ranged.asked) == 2, "what is there is not fetched again"


def test_what_arrives_corrupted_is_removed(served: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="arrived corrupted"):
        fetch(served(b"something else"), tmp_path / "file.zip", "0" * 32)
    assert not list(tmp_path.glob("file*"))


ROOMY = {"most_bytes": 1_000_000, "most_members": 100}


def test_no_member_of_an_archive_leaves_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../outside.txt", "caught")
    with pytest.raises(InputError, match="leads out of"):
        unpack(tmp_path / "a.zip", inside, **ROOMY)
    for name, kind in (("../outside.txt", None), ("/outside.txt", None), ("link", "/etc/passwd")):
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo(name)
            if kind:
                member.type, member.linkname = tarfile.SYMTYPE, kind
            else:
                member.size = 6
            archive.addfile(member, io.BytesIO(b"caught"))
        with pytest.raises(InputError, match="cannot be unpacked"):
            unpack(tmp_path / "a.tar.gz", inside, **ROOMY)
    assert not (tmp_path / "outside.txt").exists() and not Path("/outside.txt").exists()


def test_tinyimagenet_is_fetched(
    tiny: Path, served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(tiny.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    monkeypatch.setattr(tinyimagenet, "URL", served(buffer.getvalue()).replace("file", "tiny"))
    (tmp_path / "new" / "tiny-imagenet-200" / "train").mkdir(parents=True)  # a download that broke off while unpacking
    with pytest.raises(InputError, match=r"0 of \d+ classes are in train; val/val_annotations.txt cannot"):
        load_dataset("tinyimagenet", data_root=tmp_path / "new")
    data = load_dataset("tinyimagenet", data_root=tmp_path / "new", download=True)
    assert data.train.images.equal(load_dataset("tinyimagenet", data_root=tmp_path).train.images)
    assert not list((tmp_path / "new").glob("*.zip*")), "what was downloaded goes once it is unpacked"


@pytest.mark.parametrize("content", ["whole", "of another set", "no archive"])
def test_an_archive_of_the_users_stays(
    content: str, tiny: Path, served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was put there by hand is unpacked, and stays even where what it holds is refused."""
    own, buffer = tmp_path / "new" / "tiny.zip", io.BytesIO()
    own.parent.mkdir()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(tiny.rglob("*")) if content == "whole" else [tiny / "words.txt"]:
            archive.write(path, path.relative_to(tmp_path))
    own.write_bytes(b"mine" if content == "no archive" else buffer.getvalue())
    before = own.read_bytes()
    monkeypatch.setattr(tinyimagenet, "URL", served(b"").replace("file", "tiny"))
    if content == "whole":
        load_dataset("tinyimagenet", data_root=own.parent, download=True)
    else:
        with pytest.raises(InputError, match="cannot be unpacked" if content == "no archive" else "is incomplete"):
            load_dataset("tinyimagenet", data_root=own.parent, download=True)
    assert own.read_bytes() == before and Ranged.asked == []


def test_a_file_with_another_checksum_is_not_overwritten(served: Callable[..., str], tmp_path: Path) -> None:
    own, content = tmp_path / "file.zip", b"what is served"
    checksum, url = hashlib.md5(content, usedforsecurity=False).hexdigest(), served(content)
    own.write_bytes(b"mine")
    with pytest.raises(
        InputError, match=r"file\.zip does not match .* \(md5 is .*\); move it away and fetch"
    ) as caught:
        fetch(url, own, checksum)
    one_line(caught)
    assert own.read_bytes() == b"mine" and Ranged.asked == [] and [own] == list(tmp_path.iterdir())
    own.unlink()
    assert fetch(url, own, checksum) and not fetch(url, own, checksum)


def test_a_file_that_came_during_the_download_is_not_overwritten(
    served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "file.zip"

    def put_meanwhile(*_: object) -> None:
        """Stands for the user, who puts the file there meanwhile."""
        own.write_bytes(b"mine")

    monkeypatch.setattr(bars.Bar, "advance", put_meanwhile)
    assert not fetch(served(b"what is served"), own)
    assert own.read_bytes() == b"mine" and [own] == list(tmp_path.iterdir())


def test_every_set_says_how_to_get_it(tmp_path: Path) -> None:
    for row in datasets(tmp_path):
        assert row.name in ("cifar10-mini", "shapes") or f"iid data fetch {row.name}" in row.get
