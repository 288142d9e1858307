"""MNIST and FashionMNIST: torchvision's files, one channel, and everything that is done with such images."""

import gzip
import hashlib
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from iidlib import augment, evaluate
from iidlib.config import preset
from iidlib.config.recipes import BASES
from iidlib.data import Dataset, check, denormalize, load_dataset, mnist
from iidlib.data.registry import SOURCES
from iidlib.data.source import Remote
from iidlib.distillation import distill
from iidlib.errors import InputError
from iidlib.evaluation import choose, random_real
from iidlib.networks import NETWORKS, build_network, set_backend
from iidlib.plots import image_grid
from iidlib.synthetic import SyntheticSet

FOLDERS = {"mnist": "MNIST/raw", "fashionmnist": "FashionMNIST/raw"}
TRAIN, TEST = 10, 3
"""Images of each class in the small files."""


def drawn(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] that differ by where a bright bar is, mixed, with their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(10), per_class))
    images = rng.integers(0, 60, (len(labels), 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 3 : 2 * label + 6, 4:24] += 180
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    """An array of bytes as IDX files have it."""
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_files(root: Path, name: str, *, packed: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in torchvision's layout, whose checksums the library takes for the published ones."""
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    known = {}
    for part, count, seed in (("train", TRAIN, 0), ("t10k", TEST, 1)):
        for what, values in zip(("images-idx3", "labels-idx1"), drawn(count, seed), strict=True):
            file, content = f"{part}-{what}-ubyte", idx(values)
            both = content, gzip.compress(content, mtime=0)
            known[file] = tuple(hashlib.md5(each, usedforsecurity=False).hexdigest() for each in both)
            (folder / (f"{file}.gz" if packed else file)).write_bytes(both[packed])
    monkeypatch.setitem(mnist.FILES, name, known)
    return folder


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    write_files(tmp_path, "mnist", packed=False, monkeypatch=monkeypatch)
    return load_dataset("mnist", data_root=tmp_path)


# --- the files


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FOLDERS)
def test_images_are_those_of_torchvision_in_a_black_border(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path, name, packed=packed, monkeypatch=monkeypatch)
    for root in (tmp_path, folder.parent, folder):  # whatever of the three is named
        data = load_dataset(name, data_root=root)
    assert data.train.images.shape == (10 * TRAIN, 1, 32, 32) and data.test.counts.tolist() == [TEST] * 10
    inner = data.train.images[:, 0, 2:-2, 2:-2]
    assert inner.numpy().tolist() == drawn(TRAIN, 0)[0].tolist()
    assert int(data.train.images.sum()) == int(inner.sum()), "the border is black"
    if not packed:  # torchvision reads the unpacked files
        kind = getattr(torchvision.datasets, {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[name])
        whole = kind(tmp_path, train=False)
        assert whole.data.equal(data.test.images[:, 0, 2:-2, 2:-2]) and whole.targets.equal(data.test.labels)
    assert check(name, tmp_path).ok and len(check(name, tmp_path).files) == 4


def test_a_folder_in_a_folder_of_the_same_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "MNIST", "mnist", packed=False, monkeypatch=monkeypatch)
    assert len(load_dataset("mnist", data_root=tmp_path / "MNIST").train) == 10 * TRAIN


def test_checksums_and_addresses_are_those_of_torchvision() -> None:
    for name, kind in (("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")):
        known = getattr(torchvision.datasets, kind)
        ours = [(remote.name, remote.md5) for remote in mnist.mnist_remotes(name)]
        assert ours == [tuple(each) for each in known.resources]
        assert all(remote.url.removesuffix(remote.name) in known.mirrors for remote in mnist.mnist_remotes(name))
        if name == "fashionmnist":
            assert list(load_spec(name).classes) == known.classes


def load_spec(name: str) -> object:
    from iidlib.data.spec import SPECS

    return SPECS[name]


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_corrupted_file_is_named(harm: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path, "mnist", packed=packed, monkeypatch=monkeypatch)
    path = folder / ("t10k-images-idx3-ubyte" + (".gz" if packed else ""))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    {"cut": lambda: path.write_bytes(content[:90]), "flipped": lambda: path.write_bytes(content),
     "missing": path.unlink}[harm]()  # fmt: skip
    with pytest.raises(InputError, match=r"mnist: \S*t10k-images-idx3-ubyte\S* is (corrupted|missing).*fetch mnist"):
        load_dataset("mnist", data_root=tmp_path)


@pytest.mark.parametrize("content", [b"", idx(np.zeros((3, 5, 5), np.uint8)), idx(np.zeros(30, np.uint8)), b"x" * 99])
def test_what_is_no_array_of_images_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_files(tmp_path, "mnist", packed=False, monkeypatch=monkeypatch) / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    monkeypatch.setitem(mnist.FILES["mnist"], path.name, (hashlib.md5(content, usedforsecurity=False).hexdigest(), "0"))
    with pytest.raises(InputError, match=r"is not in the IDX format|expected images of 28 x 28"):
        load_dataset("mnist", data_root=tmp_path)


def test_what_is_missing_is_fetched_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = write_files(tmp_path / "served", "fashionmnist", packed=True, monkeypatch=monkeypatch)
    for root in (tmp_path / "a", tmp_path / "b"):
        if root.name == "b":  # as torchvision leaves it, with one file gone
            folder = write_files(root, "fashionmnist", packed=False, monkeypatch=monkeypatch)
            (folder / "t10k-labels-idx1-ubyte").unlink()
        data = load_dataset("fashionmnist", data_root=root, download=True, mirror=served.as_uri())
        assert data.train.labels.tolist() == drawn(TRAIN, 0)[1].tolist() and data.spec.classes[9] == "Ankle boot"
        names = {path.name for path in (root / "FashionMNIST" / "raw").iterdir() if not path.name.startswith(".")}
        assert len(names) == 4 and "t10k-labels-idx1-ubyte.gz" in names


def test_pixels_are_normalised_as_in_the_fields_code(digits: Dataset) -> None:
    assert digits.spec.mean == (0.1307,) and digits.spec.std == (0.3081,) and "flip" not in digits.spec.augmentation
    black = digits.train.normalize(digits.train.images[:1])[0, 0, 0, 0]
    assert float(black) == pytest.approx(-0.1307 / 0.3081, abs=1e-6)
    assert SOURCES["mnist"].images == (60_000, 10_000) and isinstance(mnist.mnist_remotes("mnist")[0], Remote)


# --- what is done with images of one channel


@pytest.mark.parametrize("method", BASES)
def test_every_method_learns_images_of_one_channel(method: str, digits: Dataset, tmp_path: Path) -> None:
    config = preset(method, "mnist", 2, "ci", {"pool.epochs": 12, "iterations": 3})
    result = distill(config, digits, out=tmp_path / "run")
    assert result.synthetic.images.shape == (20, 1, 32, 32)
    kept = SyntheticSet.load(tmp_path / "run")
    assert kept.images.equal(result.synthetic.images) and kept.spec == digits.spec
    for together in (1, 2):  # one after the other, and as an ensemble
        compute = attrs.evolve(config.compute, together=together)
        scores = evaluate(kept, digits, protocol=attrs.evolve(config.eval, epochs=2), seed=0, compute=compute)
        assert len(scores) == 2 and scores["accuracy"].between(0, 100).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_one_channel(name: str, digits: Dataset) -> None:
    network = build_network(name, channels=1, generator=torch.Generator().manual_seed(0))
    images = digits.train.images_of(torch.arange(4)).requires_grad_()
    network(images).sum().backward()
    assert images.grad is not None and bool(images.grad.abs().sum() > 0)


def test_a_fused_network_computes_what_a_plain_one_does(digits: Dataset) -> None:
    plain, fused = (
        build_network("convnet3", channels=1, width=16, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    set_backend(fused.to(memory_format=torch.channels_last), "fused")
    images = digits.train.images_of(torch.arange(8))
    both = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [network(each) for network, each in zip((plain, fused), both, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.allclose(*outputs, atol=1e-5)
    assert both[0].grad is not None and torch.allclose(both[0].grad, both[1].grad, atol=1e-5)


@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_augmentation_of_one_channel_is_that_of_three_equal_ones(operation: str, digits: Dataset) -> None:
    images = digits.train.images_of(torch.arange(6)).double()
    draws = augment.sample(operation, 6, torch.Generator().manual_seed(1), shared_op=True)
    one, three = augment.apply(images, draws), augment.apply(images.expand(-1, 3, -1, -1), draws)
    assert torch.allclose(one.expand(-1, 3, -1, -1), three, atol=1e-12)


@pytest.mark.parametrize("method", ["herding", "k-center", "random", "random-mosaic"])
def test_real_images_of_one_channel_are_chosen_and_shown(method: str, digits: Dataset, tmp_path: Path) -> None:
    network = build_network("convnet3", channels=1, width=8, generator=torch.Generator().manual_seed(0))
    if method.startswith("random"):
        chosen = random_real(digits.train, 2, 0, 2 if method == "random-mosaic" else 1)
        chosen.save_png(tmp_path / "a.png")
        chosen.save(tmp_path / "a.safetensors", eight_bits=True)
        assert SyntheticSet.load(tmp_path / "a.safetensors").to_uint8().equal(chosen.to_uint8())
        with Image.open(tmp_path / "a.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels[2:34, 2:34].tolist() == chosen.to_uint8()[0].expand(3, -1, -1).permute(1, 2, 0).tolist()
        images = chosen.images
    else:
        subset = choose(method, digits.train, 2, network)
        images = subset.images if isinstance(subset, SyntheticSet) else subset.images_of(torch.arange(20))
    assert images.shape == (20, 1, 32, 32)
    shown = image_grid(denormalize(images, digits.spec), columns=2).images[0].get_array()
    assert shown is not None and shown.shape[2] == 3


def test_a_held_out_part_and_some_classes_keep_their_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iidlib.continual import of_classes

    write_files(tmp_path, "mnist", packed=True, monkeypatch=monkeypatch)
    held = load_dataset("validation:MNIST", data_root=tmp_path)
    assert held.spec.name == "validation:mnist" and held.test.images.shape == (10, 1, 32, 32)
    assert of_classes(held, [3, 1]).train.images.shape[1] == 1
