"""Real images: what is embedded, how corruption is reported, and the draws that a distillation is built on."""

import http.server
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from types import ModuleType

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import functional

from iidlib.config import preset
from iidlib.data import Dataset, DatasetSpec, RealSet, check, data_dir, datasets, denormalize, load_dataset, shapes
from iidlib.data.embedded import from_mosaic
from iidlib.errors import InputError
from iidlib.names import DATASET_NAMES
from tests.factories import Trap, md5, one_line

ROOT = Path(__file__).parents[1]
MINI = ROOT / "data" / "cifar10-mini"
REAL_DATA = os.environ.get("IID_DATA")
UNEQUAL = (1, 3, 20, 300)
small = settings(deadline=None, max_examples=25)


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IID_DATA", raising=False)


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load_dataset("cifar10-mini")


@pytest.fixture
def copy_of_mini(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINI, tmp_path / "cifar10-mini"))


def numbered(counts: tuple[int, ...]) -> RealSet:
    """A set whose every image holds its own number, with the classes mixed."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    spec = DatasetSpec("numbered", tuple(map(str, range(len(counts)))), 2, 3, (0.5,) * 3, (0.25,) * 3, "flip")
    images = torch.arange(len(labels)).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return RealSet(images, labels, spec)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what is embedded


def test_mini_has_400_and_100_images_of_each_class(mini: Dataset) -> None:
    assert mini.train.images.shape == (4000, 3, 32, 32) and mini.test.images.shape == (1000, 3, 32, 32)
    assert mini.train.images.dtype == torch.uint8 and mini.train.labels.dtype == torch.int64
    assert mini.train.counts.tolist() == [400] * 10 and mini.test.counts.tolist() == [100] * 10
    assert mini.spec.classes[3] == "cat" and mini.spec == mini.train.spec == mini.test.spec


def test_mini_is_the_set_that_results_were_measured_on(mini: Dataset) -> None:
    assert (mini.train.fingerprint, mini.test.fingerprint) == ("2244121e8dc17177", "96393d78c7c7caaa")


def test_mini_is_small_and_its_manifest_lists_every_file() -> None:
    files = {path.relative_to(MINI).as_posix() for path in MINI.rglob("*") if path.is_file()}
    assert sum((MINI / name).stat().st_size for name in files) <= 11 * 2**20
    assert set(json.loads((MINI / "manifest.json").read_text())["files"]) | {"manifest.json"} == files


@pytest.mark.realdata
@pytest.mark.skipif(
    REAL_DATA is None or not (Path(REAL_DATA) / "cifar-10-batches-py").is_dir(),
    reason="IID_DATA does not name a folder with cifar-10-batches-py",
)
def test_mini_is_the_first_images_of_each_class_of_cifar10(mini: Dataset) -> None:
    whole = load_dataset("cifar10", data_root=REAL_DATA)
    assert len(whole.train) == 50_000 and len(whole.test) == 10_000
    assert whole.train.counts.tolist() == [5000] * 10 and whole.test.counts.tolist() == [1000] * 10
    # the reader against torchvision's own view of the first and the last image
    reference = torchvision_datasets.CIFAR10(REAL_DATA, train=False)
    for i in (0, 9999):
        assert np.array_equal(whole.test.images[i].permute(1, 2, 0).numpy(), np.asarray(reference[i][0]))
        assert int(whole.test.labels[i]) == reference[i][1]
    assert whole.spec.classes == tuple(reference.classes)
    for part, count in (("train", 400), ("test", 100)):
        have, real = getattr(mini, part), getattr(whole, part)
        for label in range(10):
            assert have.images[have.of_class(label)].equal(real.images[real.of_class(label)[:count]])
    pixels = whole.train.images.float() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(whole.spec.mean), atol=1e-4)
    assert torch.allclose(pixels.std((2, 3)).mean(0), torch.tensor(whole.spec.std), atol=1e-4)


@pytest.fixture(scope="module")
def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "build_cifar10_mini", ROOT / "data" / "scripts" / "build_cifar10_mini.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_mosaic_reads_back_in_order(build_script: ModuleType) -> None:
    images = torch.randint(0, 256, (60, 3, 5, 5), dtype=torch.uint8, generator=generator())
    mosaic = build_script.to_mosaic(images.numpy())
    assert mosaic.shape == (15, 100, 3)
    assert np.array_equal(mosaic[5:10, 0:5], images[20].permute(1, 2, 0).numpy())
    assert from_mosaic(mosaic, 5).equal(images)


def test_the_build_script_writes_what_the_manifest_says(build_script: ModuleType, tmp_path: Path) -> None:
    drawn = shapes(2, 110, image_size=8).train
    entries = build_script.write_split(drawn, "test", tmp_path)
    assert list(entries) == ["test/0-disc.webp", "test/1-square.webp"]
    with Image.open(tmp_path / "test/1-square.webp") as mosaic:
        assert from_mosaic(np.asarray(mosaic.convert("RGB")), 8).equal(drawn.images[110:210])


# --- where it is found


def test_found_from_any_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mini: Dataset) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_dir() == MINI
    assert load_dataset().train.fingerprint == mini.train.fingerprint


def test_found_without_a_checkout_and_without_importing_torchvision(tmp_path: Path, mini: Dataset) -> None:
    package = tmp_path / "site" / "iidlib"
    shutil.copytree(ROOT / "iidlib", package, ignore=shutil.ignore_patterns("__pycache__", "_data"))
    (package / "__init__.py").write_text("")  # of the package only what the data need is imported
    shutil.copytree(MINI, package / "_data" / "cifar10-mini")
    (tmp_path / "site" / "data" / "cifar10-mini").mkdir(parents=True)  # some other package's "data" is not ours
    code = (
        "import sys; from iidlib.data import load_dataset, data_dir; train = load_dataset().train; "
        "print(data_dir(), train.fingerprint, 'torchvision' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(package / "_data" / "cifar10-mini"), mini.train.fingerprint, "False"]


@pytest.mark.parametrize("named", ["root", "folder"])
def test_a_data_root_and_iid_data_come_first(
    named: str, monkeypatch: pytest.MonkeyPatch, copy_of_mini: Path, tmp_path: Path
) -> None:
    root = copy_of_mini.parent if named == "root" else copy_of_mini
    assert check("cifar10-mini", root).folder == copy_of_mini
    monkeypatch.setenv("IID_DATA", str(root))
    assert check("cifar10-mini").folder == data_dir() == copy_of_mini
    assert check("cifar10-mini", tmp_path / "elsewhere").folder == MINI  # a root given hides the one in IID_DATA
    monkeypatch.setenv("IID_DATA", "")
    assert check("cifar10-mini").folder == MINI


def test_data_dir_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        data_dir("no-such-folder", tmp_path)
    text = one_line(error)
    assert "no-such-folder" in text and str(tmp_path) in text and str(MINI.parent) in text


def test_the_list_of_datasets(tmp_path: Path, mini: Dataset) -> None:
    rows = {row.name: row for row in datasets(tmp_path)}
    assert list(rows) == [*DATASET_NAMES]
    assert rows["cifar10-mini"].found == str(MINI) and rows["cifar10"].found is None
    assert (rows["cifar10-mini"].train_images, rows["cifar10-mini"].test_images) == (len(mini.train), len(mini.test))
    assert "iid data fetch cifar10" in rows["cifar10"].get


# --- wrong names, missing and corrupted files


@pytest.mark.parametrize("function", [load_dataset, check])
def test_an_unknown_dataset_gets_a_suggestion(function: object) -> None:
    with pytest.raises(InputError, match="unknown dataset 'cifra-10'; did you mean 'cifar10'"):
        function("cifra-10")  # type: ignore[operator]


@pytest.mark.parametrize("name", ["train/3-cat.webp", "test/9-truck.webp", "manifest.json"])
def test_a_missing_file_is_named(name: str, copy_of_mini: Path) -> None:
    (copy_of_mini / name).unlink()
    with pytest.raises(InputError) as error:
        load_dataset(data_root=copy_of_mini.parent)
    assert f"cifar10-mini: {copy_of_mini / name} is missing" in one_line(error) and "reinstall" in one_line(error)


@pytest.mark.parametrize("name", ["train/3-cat.webp", "manifest.json"])
@pytest.mark.parametrize("corruption", ["one byte", "cut short", "a folder"])
def test_a_corrupted_file_is_named(name: str, corruption: str, copy_of_mini: Path) -> None:
    path = copy_of_mini / name
    content = bytearray(path.read_bytes())
    if corruption == "a folder":
        path.unlink()
        path.mkdir()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if corruption == "one byte" else content[: len(content) // 2])
    with pytest.raises(InputError) as error:
        load_dataset(data_root=copy_of_mini.parent)
    assert f"cifar10-mini: {path} is corrupted (" in one_line(error)
    report = check("cifar10-mini", copy_of_mini.parent)
    assert not report.ok and [file.path for file in report.files if file.state == "corrupted"] == [path]


def test_a_whole_copy_passes_the_check() -> None:
    report = check("cifar10-mini")
    assert report.ok and len(report.files) == 21 and report.folder == MINI
    assert check("shapes").ok


def test_cifar10_absent_says_where_it_looked_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_dataset("cifar10", data_root=tmp_path)
    text = one_line(error)
    assert f"cifar10 not found: looked for {tmp_path / 'cifar-10-batches-py'}" in text
    assert "iid data fetch cifar10" in text
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"looked for {tmp_path / 'here'}"):  # a relative root is reported in full
        load_dataset("cifar10", data_root="here")
    with pytest.raises(InputError, match="neither --data-root nor IID_DATA"):
        load_dataset("cifar10")
    with pytest.raises(InputError, match="no folder to download cifar10 to: name one with --data-root or IID_DATA"):
        load_dataset("cifar10", download=True)
    monkeypatch.setenv("IID_DATA", str(tmp_path))
    with pytest.raises(InputError, match="cifar10 not found"):
        check("cifar10")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("offline")
def test_a_download_without_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_dataset("cifar10", data_root=tmp_path, download=True)
    text = one_line(error)
    assert f"cifar10 could not be downloaded to {tmp_path}" in text and "no network" in text


def write_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """CIFAR-10's files in small, four images each, with torchvision's list of checksums changed to theirs."""
    cifar10 = torchvision_datasets.CIFAR10
    images = torch.randint(0, 256, (24, 3072), dtype=torch.uint8, generator=generator())
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    def batch(name: str, first: int) -> list[str]:
        labels = [i % 10 for i in range(first, first + 4)]
        return [name, write(name, {"data": images[first : first + 4].numpy(), "labels": labels})]

    monkeypatch.setattr(cifar10, "train_list", [batch(f"data_batch_{i + 1}", 4 * i) for i in range(5)])
    monkeypatch.setattr(cifar10, "test_list", [batch("test_batch", 20)])
    names = {"label_names": [str(i) for i in range(10)]}
    monkeypatch.setattr(cifar10, "meta", cifar10.meta | {"md5": write("batches.meta", names)})
    return images.view(24, 3, 32, 32)


@pytest.mark.usefixtures("offline")
def test_cifar10_is_read_in_the_order_of_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = write_batches(tmp_path / "cifar-10-batches-py", monkeypatch)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        whole = load_dataset("cifar10", data_root=root, download=True)  # nothing to download
        assert whole.train.images.equal(images[:20]) and whole.test.images.equal(images[20:])
        assert whole.train.labels.tolist() == [i % 10 for i in range(20)]
    assert whole.train.images.is_contiguous()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that does not write to the terminal."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_cifar10_is_downloaded_when_asked_and_repaired_when_corrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served, root = tmp_path / "served", tmp_path / "root"
    images = write_batches(served / "cifar-10-batches-py", monkeypatch)
    archive = shutil.make_archive(str(served / "archive"), "gztar", served, "cifar-10-batches-py")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(
            torchvision_datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
        )
        monkeypatch.setattr(torchvision_datasets.CIFAR10, "tgz_md5", md5(Path(archive)))
        assert load_dataset("cifar10", data_root=root, download=True).train.images.equal(images[:20])
        assert not capfd.readouterr().err, "no bar where there is no terminal"
        (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cut short")
        assert load_dataset("cifar10", data_root=root, download=True).train.images.equal(images[:20])
        server.shutdown()


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_corrupted_batch_is_named_and_never_unpickled(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder, monkeypatch)
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError) as error:
        load_dataset("cifar10", data_root=tmp_path)
    text = one_line(error)
    assert f"cifar10: {folder / name} is corrupted (md5" in text
    assert f"iid data fetch cifar10 --data-root {tmp_path}" in text
    assert not (tmp_path / "sprung").exists()
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_dataset("cifar10", data_root=tmp_path)


# --- a set of real images


def test_the_class_index_lists_each_class_in_order() -> None:
    real = numbered(UNEQUAL)
    assert real.counts.tolist() == list(UNEQUAL) and real.class_index.shape == (4, 300)
    for c, count in enumerate(UNEQUAL):
        assert real.of_class(c).equal((real.labels == c).nonzero()[:, 0])
        assert (real.class_index[c, count:] == -1).all()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64), r"uint8 .* got float32 \[4, 3, 32, 32\]"),
        (torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), "got uint8"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"int64 \[4\]"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4), "got float32"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 2, 10]), "0 to 9, got 0 to 10"),
    ],
)
def test_wrong_tensors_are_refused(images: torch.Tensor, labels: torch.Tensor, message: str, mini: Dataset) -> None:
    with pytest.raises(ValueError, match=message):
        RealSet(images, labels, mini.spec)


def test_normalised_images_are_torchvisions(mini: Dataset) -> None:
    index = torch.tensor([0, 1999, 3999])
    for image, i in zip(mini.train.images_of(index), index, strict=True):
        picture = functional.to_tensor(mini.train.images[i].permute(1, 2, 0).numpy())
        assert image.equal(functional.normalize(picture, list(mini.spec.mean), list(mini.spec.std)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormalised_images_come_back(dtype: torch.dtype, mini: Dataset) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    normalised = mini.train.normalize(values).to(dtype)
    back = denormalize(normalised, mini.spec)
    assert back.dtype == dtype and (back * 255).round().to(torch.uint8).equal(values)
    beyond = torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert denormalize(beyond, mini.spec).flatten().tolist() == [0.0] * 3 + [1.0] * 3


def test_normalize_refuses_images_that_are_not_bytes(mini: Dataset) -> None:
    with pytest.raises(ValueError, match="uint8"):
        mini.train.normalize(torch.rand(2, 3, 32, 32))


def test_a_fingerprint_changes_with_pixels_labels_and_order() -> None:
    real = shapes(3, 4, image_size=4).train
    pixels, labels = real.images.clone(), real.labels.clone()
    pixels[0, 0, 0, 0] ^= 1
    labels[0] = 1
    others = [
        RealSet(pixels, real.labels, real.spec),
        RealSet(real.images, labels, real.spec),
        real.subset(torch.arange(11, -1, -1)),
        real.subset(torch.arange(11)),
    ]
    assert len({real.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert RealSet(real.images.clone(), real.labels.clone(), real.spec).fingerprint == real.fingerprint
    assert len(real.fingerprint) == 16 and int(real.fingerprint, 16) >= 0


# --- drawing from it


@small
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).map(tuple),
    per_class=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_a_sample_is_drawn_without_replacement_from_each_class(
    counts: tuple[int, ...], per_class: int, seed: int
) -> None:
    real = numbered(counts)
    sample = real.sample(per_class, generator(seed))
    assert sample.counts.tolist() == [min(per_class, count) for count in counts]
    assert sample.group.equal(torch.arange(len(counts)).repeat_interleave(sample.counts))
    assert real.labels[sample.index].equal(sample.group)
    assert len(set(sample.index.tolist())) == len(sample.index)


def test_unequal_classes_give_what_they_have() -> None:
    sample = numbered(UNEQUAL).sample(256, generator())
    assert sample.counts.tolist() == [1, 3, 20, 256] and len(sample.index) == 280


def test_a_seed_draws_the_same_sample_and_another_seed_another() -> None:
    real = numbered(UNEQUAL)
    global_state = torch.get_rng_state()
    first, again, other = (real.sample(20, generator(seed)).index for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    assert torch.get_rng_state().equal(global_state)


def test_every_image_is_drawn_equally_often() -> None:
    real, draws = numbered((5, 10)), generator()
    hits = torch.zeros(15)
    for _ in range(2000):
        hits[real.sample(2, draws).index] += 1
    # 800 and 400 expected; five standard deviations are 110 and 90
    for c, expected in enumerate((800, 400)):
        assert (hits[real.of_class(c)] - expected).abs().max() < 110


@pytest.mark.parametrize("per_class", [0, -1])
def test_a_sample_of_nothing_is_refused(per_class: int) -> None:
    with pytest.raises(InputError, match=f"at least 1, got {per_class}"):
        numbered((2, 2)).sample(per_class, generator())


def test_a_subset_keeps_images_and_labels_together() -> None:
    real = shapes(3, 5, image_size=4).train
    index = torch.tensor([14, 0, 7])
    part = real.subset(index)
    assert part.images.equal(real.images[index]) and part.labels.tolist() == [2, 0, 1] and part.spec == real.spec


@small
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5).map(tuple),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_split_divides_every_class_alike(counts: tuple[int, ...], fraction: float, seed: int) -> None:
    real = numbered(counts)
    first, second = real.split(fraction, generator(seed))
    assert (first.counts + second.counts).tolist() == list(counts)
    for c, count in enumerate(counts):
        assert abs(int(first.counts[c]) - fraction * count) <= 1
        if count >= 2:
            assert first.counts[c] >= 1 and second.counts[c] >= 1
    values = torch.cat([first.images, second.images])[:, 0, 0, 0]
    assert values.sort().values.equal(real.images[:, 0, 0, 0].sort().values)
    assert (first.images[:, 0, 0, 0].int().diff() > 0).all()


def test_a_split_is_random_by_class_and_repeatable(mini: Dataset) -> None:
    first, again, other = (mini.train.split(0.9, generator(seed))[1] for seed in (1, 1, 2))
    assert first.counts.tolist() == [40] * 10
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_split_of_all_or_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        numbered((2, 2)).split(fraction, generator())


# --- shapes


def test_shapes_have_the_sizes_asked_for() -> None:
    drawn = shapes(4, UNEQUAL, image_size=16)
    assert drawn.train.counts.tolist() == list(UNEQUAL) and drawn.test.counts.tolist() == [20] * 4
    assert drawn.train.images.shape == (324, 3, 16, 16) and drawn.spec.image_size == 16
    assert len(set(shapes(23, 1, image_size=8).spec.classes)) == 23
    assert load_dataset("shapes").train.fingerprint == shapes().train.fingerprint


def test_shapes_follow_their_seed() -> None:
    assert shapes(seed=1).train.fingerprint == shapes(seed=1).train.fingerprint != shapes(seed=2).train.fingerprint
    drawn = shapes(3, 20)
    assert drawn.train.fingerprint != drawn.test.fingerprint


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"per_class": [3, 3]}, {"per_class": 0}, {"image_size": 0}])
def test_shapes_of_no_size_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="shapes needs"):
        shapes(**wrong)  # type: ignore[arg-type]


def test_shapes_can_be_learned_but_not_from_one_pixel() -> None:
    drawn = shapes(10, 60, image_size=16)

    def accuracy(columns: slice) -> float:
        """Of least squares on the pixels, in percent."""
        train, test = (
            part.images_of(torch.arange(len(part))).flatten(1)[:, columns].double()
            for part in (drawn.train, drawn.test)
        )
        targets = torch.nn.functional.one_hot(drawn.train.labels, 10).double()
        weights = torch.linalg.solve(train.T @ train + 100 * torch.eye(train.shape[1]), train.T @ targets)
        return float(((test @ weights).argmax(1) == drawn.test.labels).double().mean() * 100)

    centre = slice(136, 137)
    assert accuracy(slice(None)) > 30 and accuracy(centre) < 30


class TestValidation:
    def test_training_images_are_divided_class_by_class(self) -> None:
        whole, tuned = load_dataset("shapes"), load_dataset("validation:shapes")
        assert tuned.name == tuned.spec.name == "validation:shapes"
        assert tuned.train.counts.tolist() == [36] * 4
        assert tuned.test.counts.tolist() == [4] * 4
        together = torch.cat([tuned.train.images, tuned.test.images]).flatten(1)
        assert sorted(together.tolist()) == sorted(whole.train.images.flatten(1).tolist())

    def test_is_the_same_division_every_time(self) -> None:
        first, second = load_dataset("validation:shapes"), load_dataset("validation:shapes")
        assert first.train.fingerprint == second.train.fingerprint
        assert first.test.fingerprint == second.test.fingerprint

    def test_an_unknown_set_is_named(self) -> None:
        with pytest.raises(InputError, match="unknown dataset 'cifar11'"):
            load_dataset("validation:cifar11")

    def test_settings_are_those_of_the_set_that_is_divided(self) -> None:
        plain, tuned = (
            preset("iid-idm", dataset=name, ipc=10, scale="paper") for name in ("cifar10", "validation:cifar10")
        )
        assert attrs.evolve(tuned, dataset=plain.dataset) == plain
