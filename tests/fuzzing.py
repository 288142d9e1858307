"""Every reader of what comes from outside, and a mutator that corrupts its input: one fuzzer for all of them.

A reader joins by a row of ``READERS``: good input, and what reads it. Its contract is the same everywhere. It gives a
result or raises `InputError` with one line, soon; no other exception, no hang, no file written.
"""

import gzip
import io
import json
import math
import random
import re
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import torch
from PIL import Image

from iidlib import config as configuration
from iidlib.config import ComputeConfig, preset
from iidlib.data import load_dataset, shapes, tinyimagenet
from iidlib.data.archives import unpack
from iidlib.data.download import from_mirror
from iidlib.data.folder import parse_folder
from iidlib.data.mnist import read_mnist
from iidlib.data.source import Remote
from iidlib.errors import InputError
from iidlib.experiments import check_parameters, load_grid, read_results
from iidlib.features import trained_pool
from iidlib.rng import stream
from iidlib.runs import Checkpoints, RunFolder, runs_frame
from iidlib.synthetic import SyntheticSet

SECONDS = 20.0
"""A case that takes longer hangs."""

NASTY = [
    b"", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"[]", b"{}", b'""', b'"\\u0000"',
    b"[" * 2000, b'{"a":' * 2000, b"\x00", b"\xff\xfe", b"\xed\xa0\x80", "\u202e\U0001f4a9".encode(), b"../../x",
    b"<script>alert(1)</script>", b"!!python/object/apply:os.system ['touch MARKER']", b"&a [*a, *a]", b"%s%n", b"\r\n",
    b"__class__", b"'" * 50, b"1" + b"0" * 30, b"0x7fffffffffffffff", b"1-2-3", b"2001-12-14t21:59:43.10-05:00",
]  # fmt: skip
"""Pieces that broke a reader somewhere, once."""


def mutated(good: bytes, draw: random.Random) -> bytes:
    """Good input after one to four changes: bits, cuts, repetitions, and nasty pieces in the place of a token."""
    data = bytearray(good)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        kind = draw.randrange(7)
        a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        if kind == 0 and data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[a:]
        elif kind == 2:
            del data[a : min(b, a + 40)]
        elif kind == 3:
            data[a:a] = data[a : min(b, a + 200)]
        elif kind == 4:
            data[a:a] = draw.choice(NASTY)
        elif kind == 5:
            data[a:a] = draw.randbytes(draw.randrange(1, 9))
        elif tokens := list(re.finditer(rb"[^\s,:{}\[\]\"=]+", bytes(data))):
            token = draw.choice(tokens)
            data[token.start() : token.end()] = draw.choice(NASTY)
    return bytes(data)


@dataclass(frozen=True)
class Reader:
    """A reader under test."""

    good: Callable[[Path], Path]
    """Makes a folder with good input, and says which file is corrupted."""
    read: Callable[[Path], object]
    """Reads the folder."""


def _text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def _notebook(folder: Path) -> Path:
    cell = nbformat.v4.new_code_cell("scale = 'ci'\nseed = 0", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "n.ipynb")
    return folder / "n.ipynb"


def _grid(folder: Path) -> Path:
    _notebook(folder)
    return _text("g.yaml", "notebook: n.ipynb\nproduct:\n  seed: [0, 1]\nfixed:\n  scale: ci\n")(folder)


def _synthetic(folder: Path) -> Path:
    chosen = SyntheticSet.from_real(shapes(2, 6, 8).train, 2, stream(0, 0, "initial images"))
    chosen.save(folder / "s.safetensors")
    return folder / "s.safetensors"


_POOL = preset("dm-cc", "shapes", 2, "ci", {"pool.width": 4, "pool.epochs": 12, "pool.count": 1}).pool
_SMALL = shapes(2, 20, 16)


def _read_pool(folder: Path) -> object:
    from attrs import evolve

    return trained_pool(_SMALL, evolve(_POOL, path=str(folder)), compute=ComputeConfig(compile="off"))


def _pool(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _read_pool(folder)
        return folder / name

    return make


def _run(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with RunFolder.begin(folder / "run", preset("dm", "shapes", 2, "ci")) as run:
            for iteration in (0, 10):
                run.append_metrics({"iteration": iteration, "seconds": 1.5, "loss": 2.0})
        (run.path / "scores.json").write_text(json.dumps([{"label": "dm", "network": "convnet3", "accuracy": 30.5}]))
        return run.path / name

    return make


def _checkpoint(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for number in (1, 2):
            path = Checkpoints(folder).save(number, {"images": torch.ones(2, 3)}, {"data": "abc", "chunk": 4})
        return path.with_suffix(ending)

    return make


def _rewound(folder: Path) -> object:
    run = RunFolder(folder / "run")
    run.rewind_metrics(10)
    return run.metrics()


def _mini(folder: Path) -> Path:
    from iidlib.data import data_dir

    target = folder / "cifar10-mini"
    target.mkdir()
    for source in data_dir().rglob("*"):
        if source.is_file():  # links, because a case needs the files and not copies of them
            (target / source.relative_to(data_dir())).parent.mkdir(exist_ok=True)
            (target / source.relative_to(data_dir())).symlink_to(source)
    manifest = target / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(content)
    return manifest


def _settings_given(folder: Path) -> object:
    from iidlib.cli.options import given_changes

    given = (folder / "set").read_text("utf8", errors="surrogateescape").split("\n")
    return preset("dm-cm", "shapes", 2, "ci", given_changes(given))


def _image(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        draw = torch.Generator().manual_seed(0)
        for name in ("a", "b"):
            (folder / name).mkdir()
            for number in range(2):
                pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=draw).numpy()
                Image.fromarray(pixels).save(folder / name / f"{number}.{ending}")
        return folder / "a" / f"0.{ending}"

    return make


def _tiny(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        root = folder / "tiny-imagenet-200"
        places = [root / "train" / f"n{c}" / "images" / f"n{c}_{i}.JPEG" for c in range(2) for i in range(2)]
        for path in [*places, *(root / "val" / "images" / f"val_{i}.JPEG" for i in range(2))]:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), "red").save(path)
        (root / "words.txt").write_text("n0\tgoldfish, Carassius auratus\nn1\tsalamander\n")
        (root / "val" / "val_annotations.txt").write_text(
            "val_0.JPEG\tn1\t0\t0\t62\t62\nval_1.JPEG\tn0\t0\t0\t62\t62\n"
        )
        return root / name

    return make


def _read_tiny(folder: Path) -> object:
    root = folder / "tiny-imagenet-200"
    reported = tinyimagenet.problems(root, tinyimagenet.Layout(classes=2, train=2, test=1))
    if any("test images" in line for line in reported):  # as the loader does: what is incomplete is not read
        raise InputError("; ".join(reported)[:900])
    return tinyimagenet.read_tinyimagenet(root), tinyimagenet.classes_of(root)


def _folder_named(folder: Path) -> object:
    return parse_folder("folder:" + (folder / "name").read_text("utf8", errors="replace"))


def _mirror_given(folder: Path) -> object:
    given = (folder / "url").read_text("utf8", errors="replace").replace("user:word@", "", 1)
    return from_mirror((Remote("http://host/set.zip", None, archive=True),), given)


def _archive(kind: str) -> Callable[[Path], Path]:
    def good(folder: Path) -> Path:
        path, members = folder / "archive", {"set/a.bin": bytes(range(200)), "set/b.bin": bytes(300)}
        with (
            tarfile.open(path, "w:gz")
            if kind == "tar"
            else zipfile.ZipFile(path, "w", getattr(zipfile, kind)) as archive
        ):
            for name, content in members.items():
                if isinstance(archive, tarfile.TarFile):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                else:
                    archive.writestr(name, content)
        return path

    return good


def _unpacked(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        unpack(folder / "archive", Path(place) / "inside", most_bytes=2000, most_members=5)
        assert {path.name for path in Path(place).iterdir()} <= {"inside"}


def _digits(file: str) -> Callable[[Path], Path]:
    def good(folder: Path) -> Path:
        for part in ("train", "t10k"):
            for what, shape in (("images-idx3", (3, 28, 28)), ("labels-idx1", (3,))):
                header = bytes((0, 0, 8, len(shape))) + b"".join(side.to_bytes(4, "big") for side in shape)
                (folder / f"{part}-{what}-ubyte.gz").write_bytes(gzip.compress(header + bytes(math.prod(shape))))
        return folder / file

    return good


READERS: dict[str, Reader] = {
    "config": Reader(
        _text("config.yaml", configuration.to_yaml(preset("iid-idm", "cifar10", 10, "paper"))),
        lambda folder: configuration.from_yaml((folder / "config.yaml").read_text("utf8", errors="replace")),
    ),
    "run config": Reader(_run("config.yaml"), lambda folder: RunFolder(folder / "run").config()),
    "--set": Reader(_text("set", "match.cm=0.02\nsyn.lr=1\neval.networks=convnet3,alexnet"), _settings_given),
    "grid": Reader(_grid, lambda folder: load_grid(folder / "g.yaml")),
    "notebook": Reader(_notebook, lambda folder: check_parameters(folder / "n.ipynb", {"seed": 1})),
    "synthetic set": Reader(_synthetic, lambda folder: SyntheticSet.load(folder / "s.safetensors")),
    "pool list": Reader(_pool("pool.json"), _read_pool),
    "pool weights": Reader(_pool("0000.safetensors"), _read_pool),
    "checkpoint": Reader(_checkpoint(".safetensors"), lambda folder: Checkpoints(folder).load()),
    "checkpoint facts": Reader(_checkpoint(".json"), lambda folder: Checkpoints(folder).load()),
    "metrics": Reader(_run("metrics.jsonl"), _rewound),
    "scores": Reader(_run("scores.json"), runs_frame),
    "results": Reader(
        _text("r.csv", "dataset,method,accuracy,settings\ncifar10,dm,45.5,\ncifar10,dm-cm,46,match.cm=1\n"),
        lambda folder: read_results(folder / "r.csv"),
    ),
    "png": Reader(_image("png"), lambda folder: load_dataset(f"folder:{folder}?size=16")),
    "jpeg": Reader(_image("jpg"), lambda folder: load_dataset(f"folder:{folder}?size=16")),
    "gif": Reader(_image("gif"), lambda folder: load_dataset(f"folder:{folder}?size=16")),
    "tiff": Reader(_image("tif"), lambda folder: load_dataset(f"folder:{folder}?size=16")),
    "webp": Reader(_image("webp"), lambda folder: load_dataset(f"folder:{folder}?size=16")),
    "annotations": Reader(_tiny("val/val_annotations.txt"), _read_tiny),
    "words": Reader(_tiny("words.txt"), _read_tiny),
    "folder name": Reader(_text("name", "my/images?size=64&test=0.2"), _folder_named),
    "tar.gz": Reader(_archive("tar"), _unpacked),
    "zip": Reader(_archive("ZIP_STORED"), _unpacked),
    "deflated zip": Reader(_archive("ZIP_DEFLATED"), _unpacked),
    "bzip2 zip": Reader(_archive("ZIP_BZIP2"), _unpacked),
    "lzma zip": Reader(_archive("ZIP_LZMA"), _unpacked),
    "digits": Reader(_digits("train-images-idx3-ubyte.gz"), lambda folder: read_mnist("mnist", folder)),
    "digits' labels": Reader(_digits("t10k-labels-idx1-ubyte.gz"), lambda folder: read_mnist("mnist", folder)),
    "mirror": Reader(_text("url", "https://user:word@[::1]:8080/a%20b/set.zip?x=1#y"), _mirror_given),
    "manifest": Reader(_mini, lambda folder: load_dataset("cifar10-mini", data_root=folder)),
}


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def attack(name: str, place: Path, cases: int, seed: int = 0) -> Counter[str]:
    """Corrupts a reader's input again and again; returns how often it was read and refused.

    Raises:
        AssertionError: where the contract is broken; the input stays in `place`.
    """
    reader, draw, counts = READERS[name], random.Random(f"{name} {seed}"), Counter[str]()
    place.mkdir(parents=True, exist_ok=True)
    victim = reader.good(place)
    good = victim.read_bytes()
    reader.read(place)  # what is good is read
    # metrics: what a resumed run computes again is dropped; pool list: what it no longer lists is trained
    writes = name in ("metrics", "pool list")
    for data in _cases(good, draw, cases):
        victim.write_bytes(data)
        before, begun = _snapshot(place), time.monotonic()
        try:
            reader.read(place)
            counts["read"] += 1
        except InputError as error:
            assert "\n" not in str(error) and str(error).strip(), f"not one line: {str(error)!r}"
            assert len(str(error)) < 2000, f"a message of {len(str(error))} characters"
            counts["refused"] += 1
        except RecursionError as error:
            raise AssertionError(f"{name} recursed on {data[:200]!r}") from error
        except Exception as error:
            raise AssertionError(f"{name} raised {type(error).__name__}: {error} on {data[:300]!r}") from error
        assert time.monotonic() - begun < SECONDS, f"{name} took too long for {data[:200]!r}"
        assert writes or _snapshot(place) == before, f"{name} wrote something for {data[:200]!r}"
        assert not list(Path.cwd().glob("MARKER*")), "code in the input was executed"
    shutil.rmtree(place)
    return counts


def _cases(good: bytes, draw: random.Random, count: int) -> Iterator[bytes]:
    yield from (b"", b"\x00" * 64, draw.randbytes(256), b"\xef\xbb\xbf" + good, good * 2)
    yield BOMB
    for _ in range(count):
        yield mutated(good, draw)


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
)
"""YAML whose aliases stand for a thousand million values once they are written out."""
