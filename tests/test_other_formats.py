"""iidlib.synthetic.other_formats: a file that is no synthetic set is named as what it is, and never unpickled."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from iidlib.data import shapes
from iidlib.errors import InputError
from iidlib.networks import build_network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])


class Harmful:
    """A pickle of it makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, ("harm", "w")


def saved(value: object, **settings: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def written(write: Callable, *arguments: object, **named: object) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *arguments, **named)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return buffer.getvalue()


DC = {"data": [[IMAGES, LABELS], [IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [0.4, 0.5]}}
WEIGHTS = build_network("convnet1", width=4).state_dict()

FILES: dict[str, tuple[str, bytes, str]] = {
    "DatasetCondensation": (
        "res_DM_CIFAR10_ConvNet_10ipc.pt", saved(DC),
        r"a pickle of torch.save in DatasetCondensation's layout .*torch.load\(FILE, weights_only=True\)\['data'\]\["
        r"-1\]; SyntheticSet\(images, labels, load_dataset\(NAME\).spec\)",
    ),
    "DatasetCondensation, renamed": ("mine.safetensors", saved(DC), "in DatasetCondensation's layout"),
    "DatasetCondensation, old": (
        "res_DC.pt", saved(DC, _use_new_zipfile_serialization=False),
        "a pickle in torch's format before 1.6 in DatasetCondensation's layout",
    ),
    "MTT images": ("images_best.pt", saved(IMAGES), "a pickle of torch.save in MTT's layout .*labels_best.pt"),
    "MTT labels": ("labels_best.pt", saved(LABELS), "in MTT's layout"),
    "torch weights": ("net.pth", saved(WEIGHTS), "a pickle of torch.save with the weights of a network"),
    "torch tensor": ("x.pt", saved(IMAGES), r"a pickle of torch.save, not .* built from its tensors in Python"),
    "harmful torch": ("y.pt", saved(Harmful()), "a pickle of torch.save"),
    "harmful pickle": ("z.pkl", pickle.dumps(Harmful()), "a pickle, not .*can run code when it is loaded"),
    "pickled numbers": ("d.pkl", pickle.dumps({1: 2}), "is a pickle, not .*can run code when it is loaded"),
    "pickled lists": ("l.pkl", pickle.dumps([[1, 2], [3]]), "is a pickle, not a synthetic set"),
    "pickled nothing": ("n.pkl", pickle.dumps(None, 2), "is a pickle, not a synthetic set"),
    "cut pickle": ("u.pkl", pickle.dumps(list(range(300)))[:200], "is a pickle, not a synthetic set"),
    "pickled array": ("a.pkl", pickle.dumps({"images": np.zeros(3)}), "a pickle of numpy arrays"),
    "npz": ("a.npz", written(np.savez, images=np.zeros((2, 3)), labels=np.zeros(2)), r"arrays \(images, labels\)"),
    "npy": ("a.npy", written(np.save, np.zeros((2, 3))), r"a numpy array of shape \(2, 3\)"),
    "zip": ("a.zip", zipped("readme", b"x"), "a zip archive, not .*; unpack it"),
    "cut zip": ("b.zip", saved(IMAGES)[:500], "a corrupted zip archive"),
    "png": ("synthetic.png", written(Image.new("RGB", (5, 4)).save, format="PNG"), "a PNG picture of 5 x 4 pixels"),
    "jpeg": ("a.jpg", written(Image.new("RGB", (5, 4)).save, format="JPEG"), "a JPEG picture of 5 x 4 pixels"),
    "page": ("a.html", b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "a web page, .*; download the file itself"),
    "LFS": ("b", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer .*lfs pull"),
    "settings": ("config.yaml", b"method: dm\n", "a text file"),
    "scores": ("scores.json", b'[{"accuracy": 10.0}]', "a JSON file"),
    "accents": ("c", "ü".encode() * 5000, "a text file"),
    "hdf5": ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "gzip": ("a.gz", gzip.compress(b"x"), "a gzip archive"),
    "tar": ("a.tar", tarred(), "a tar archive"),
    "empty": ("e", b"", r"e is corrupted and cannot be read \(it is empty, 0 bytes"),
    "bytes": ("f", bytes(range(256)) * 4, "f is corrupted and cannot be read"),
    "pickle of nothing": ("g", b"\x80\x04", "g is corrupted and cannot be read"),
}  # fmt: skip


def refused(path: Path, message: str) -> str:
    with pytest.raises(InputError, match=message) as caught:
        SyntheticSet.load(path)
    reported = str(caught.value)
    assert "\n" not in reported and str(path) in reported and len(reported) < 600
    return reported


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_as_what_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, content, message = FILES[name]
    (tmp_path / file).write_bytes(content)
    refused(tmp_path / file, message)
    assert os.listdir(tmp_path) == [file], "nothing of it was run"  # noqa: PTH208


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (WEIGHTS, r"not a synthetic set of this library, but the weights of a network \(classifier.bias"),
        (
            {"images": IMAGES, "momentum": IMAGES},
            "a checkpoint of a distillation, .*: resume it with iid distill --resume",
        ),
        ({"images": IMAGES, "labels": LABELS}, r"of another program with images and labels; .* safetensors.torch.load"),
        ({"a": LABELS, "b": LABELS}, r"a file of other tensors \(a, b\)"),
        ({}, "a file without tensors"),
    ],
)
def test_a_safetensors_file_of_something_else_is_reported_by_its_tensors(tensors, message, tmp_path):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "file")
    refused(tmp_path / "file", message)


def test_a_set_of_a_newer_version_is_reported(tmp_path):
    save_file({"images": IMAGES}, tmp_path / "file", {"format": "iidlib.synthetic/7"})
    refused(tmp_path / "file", "in the format iidlib.synthetic/7, of a newer version: upgrade iidlib")


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        content = next((content for file, content, _ in FILES.values() if file == Path(name).name), b"x")
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("config.yaml", "environment.json"),
            "is a run that is not finished and has no set yet; resume it with: iid distill .*--res",
        ),
        (
            ("a/synthetic.safetensors", "b/synthetic.safetensors"),
            r"contains runs \(2 of them\); give one .*such as .*/a$",
        ),
        (("a/synthetic.png", "b/synthetic.png"), "a folder of pictures, not a synthetic set.*whole --dataset folder:"),
        (("0.jpg",), "a folder of pictures"),
        (("0.JP2",), "a folder of pictures"),
        (("res_DC.pt",), "no synthetic set .*/res_DC.pt is a pickle in torch's format before 1.6 in DatasetCond"),
        (("images_best.pt", "labels_best.pt"), "images_best.pt is a pickle of torch.save in MTT's layout"),
        (
            ("notes.txt",),
            r"no synthetic set at .*synthetic\.safetensors; give the file or the folder of a finished run$",
        ),
        ((), r"no synthetic set at .*synthetic\.safetensors; .*is empty\)"),
    ],
)
def test_a_folder_without_a_set_is_named_as_what_it_is(names, message, tmp_path):
    refused(folder(tmp_path, *names), message)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe is not a regular file")
    (tmp_path / "synthetic.safetensors").mkdir()
    refused(tmp_path, "synthetic.safetensors is not a regular file")


def test_a_corrupted_set_is_still_corrupted(tmp_path):
    SyntheticSet.from_real(shapes(3, 5, 8).train, 2, stream(0, 0, "x")).save(tmp_path / "set")
    content = (tmp_path / "set").read_bytes()
    (tmp_path / "set").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "set", "set is corrupted and cannot be read .*distil or copy it again")
