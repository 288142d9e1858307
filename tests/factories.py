"""Tiny datasets, pools, runs, folders and files that several test modules build, and how they compare results."""

import copy
import dataclasses
import functools
import hashlib
import json
import os
import random
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import iidlib
from iidlib.augment import OPERATIONS, sample
from iidlib.config import Drop, RunConfig, preset
from iidlib.data import Dataset, shapes
from iidlib.data.image_tree import ENDINGS
from iidlib.distillation import METHODS, CapturedStep, Distillation, distill
from iidlib.features import NetworkQueue, Pool, pool_members
from iidlib.networks import Network, build_network, frozen
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet
from tests import reference

# The library


PACKAGE = Path(iidlib.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path not in (PACKAGE / "__init__.py", PACKAGE / "cli" / "__main__.py")
)
"""Dotted names of the package's modules, without ``iidlib.``."""

# Tensors

COUNTS = (1, 3, 20, 300)
"""Classes of unequal size, for `ragged`."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of standard normal values."""
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def noise_images(count: int = 2, size: int = 32, channels: int = 3, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images of noise, [count, channels, size, size]; another size has other noise."""
    return draw(count, channels, size, size, seed=size, dtype=dtype)


def near(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    """Whether a equals b norm-wise: ||a - b|| <= tolerance ||b||."""
    assert a.shape == b.shape
    return bool((a - b).norm() <= tolerance * b.norm())


def difference(a: Tensor, b: Tensor) -> float:
    """Norm-wise relative difference ||a - b|| / ||b||, in float64."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


def ragged(
    counts: tuple[int, ...], *shape: int, seed: int = 0, padding: float = 0.0
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Classes of unequal size: one by one, padded with some value, and the mask."""
    classes = [draw(count, *shape, seed=seed + c) for c, count in enumerate(counts)]
    padded = torch.full((len(counts), max(counts), *shape), padding, dtype=torch.float64)
    mask = torch.zeros(len(counts), max(counts), dtype=torch.bool)
    for c, images in enumerate(classes):
        padded[c, : len(images)] = images
        mask[c, : len(images)] = True
    return classes, padded, mask


def labelled_noise(
    count: int = 10, size: int = 16, *, classes: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Images of noise, [count, 3, size, size], whose labels take turns."""
    images = torch.randn(count, 3, size, size, dtype=dtype, generator=stream(0, 0, "images"))
    return images, torch.arange(count) % classes


# Datasets, networks, pools


@functools.cache
def tiny_dataset(
    per_class: int | tuple[int, ...] = (9, 7, 12, 8), size: int = 16, *, classes: int = 4, seed: int = 0
) -> Dataset:
    """Drawn shapes; made once for all tests, which must not change them.

    Args:
        per_class: training images per class, or one number for each class.
        size: pixels per side.
        classes: number of classes where `per_class` is one number.
        seed: a different seed draws different images of the same classes.
    """
    counts = [per_class] * classes if isinstance(per_class, int) else list(per_class)
    return shapes(len(counts), counts, size, seed)


def in_double(dataset: Dataset) -> Dataset:
    """The same dataset, whose training images are float64 once they are normalised."""
    real = copy.copy(dataset.train)
    real.images_of = lambda index: dataset.train.images_of(index).double()  # type: ignore[method-assign]
    return dataclasses.replace(dataset, train=real)


def pretrained_pool(
    dataset: Dataset, name: str = "convnet2", *, widths: Sequence[int] = (5, 5), accuracy: float = 100.0
) -> Pool:
    """A pool of networks with random weights, for tests that do not depend on training; `widths` are of ConvNets."""
    networks = [
        frozen(
            build_network(
                name,
                num_classes=len(dataset.spec.classes),
                image_size=dataset.spec.image_size,
                width=width if name.startswith("convnet") else None,
                generator=stream(number, 0, name),
            )
        )
        for number, width in enumerate(widths)
    ]
    return Pool([network.eval() for network in networks], [accuracy] * len(networks), f"random {name}")


def network_difference(a: Network, b: Network) -> float:
    """Norm-wise relative difference of all weights and running statistics, in float64."""
    assert a.state_dict().keys() == b.state_dict().keys()
    return difference(*(torch.cat([t.flatten().double() for t in each.state_dict().values()]) for each in (a, b)))


def drop_at(after: int | None) -> tuple[Drop, ...]:
    """The official drop of the learning rate after the epoch of an index."""
    return () if after is None else (Drop(after + 1, 0.005, restart=True),)


# Runs

ALL = ("dm", "dm-cc", "dm-cm", "iid-dm")
ON_IDM = ("idm", "idm-cc", "idm-cm", "iid-idm")

CC_FORMS = [
    {"match__cc_scaling": "released"},
    {"match__cc_scaling": "per_image"},
    {"match__cc_scaling": "relative", "match__cc_real": 4},
    {"match__cc_scaling": "relative"},
    {"match__cc_form": "exp", "match__cc_alpha": 0.05},
    {"match__cc_form": "exp", "match__cc_alpha": 0.05, "match__cc_beta": 1.25, "match__cc_scaling": "per_image"},
    {"match__cc_form": "exp", "match__cc_alpha": 1.0, "match__cc_beta": 1.5, "match__cc_scaling": "relative"},
]

LONG = {"iterations": 12, "checkpoint__every": 3}


def settings(method: str, ipc: int = 3, **changes: object) -> RunConfig:
    """Small, uncompiled, and class centralization as released; keywords name settings with __ for the dot."""
    small = {
        "iterations": 7,
        "match.width": 4,
        "match.batch_real": 6,
        "match.cc_scaling": "released",
        "pool.network": "convnet2",
        "pool.width": 6,
        "pool.batch": 8,
        "pool.epochs": 4,
        "pool.lr": 0.05,
        "queue.batch": 8,
        "queue.lr": 0.05,
        "compute.chunk": 0,
    }
    if method == "iid-plus":
        small |= {"match.network": "convnet2", "pool.width": 4, "pool.epochs_kept": "0,2", "match.ce": 0.02}
        # few tests have images for mosaics, or for a choice among them
        small |= {"syn.factor": 1, "syn.init": "real", "pool.augmentation": "none"}
    if method not in ("dm", "dm-cm", "idm", "idm-cm"):  # which have no such term
        small["match.cc"] = 0.05
    return preset(
        method, "shapes", ipc, "ci", small | {key.replace("__", "."): value for key, value in changes.items()}
    )


def ready_run(
    config: RunConfig, dataset: Dataset, *, double: bool = False, pretrained: str = "convnet2", pool: Pool | None = None
) -> Distillation:
    """A run ready for its first step, with random networks in the place of pretrained ones.

    Args:
        config: the run's settings.
        dataset: what is distilled.
        double: compute in float64.
        pretrained: architecture of the networks that a term reads, where the source draws none from the pool.
        pool: pool that a term reads, in the place of two networks of that architecture.
    """
    run = Distillation(config, dataset)
    if run.source.from_pool:
        widths = [config.pool.width] * len(pool_members(config.pool))
        run.pool = pretrained_pool(dataset, config.pool.network, widths=widths)
        run.source.use_pool(run.pool)
        run.source.accuracy_of = lambda member: 40.0 + member
    elif any(term.needs_pool for term in run.terms.values()):
        run.pool = pool or pretrained_pool(dataset, pretrained)
    if double:
        doubled = in_double(dataset)
        run.real, run.images.data = doubled.train, run.images.data.double()
        if isinstance(run.source, NetworkQueue):
            source = METHODS[config.method].make_source(config, doubled, run.images.device)
            run.source = source.twin(lambda network: network.double())
        else:
            run.source.draw(0).network.double()
        for network in run.pool.networks if run.pool else ():
            network.double()
        assert run.images.is_leaf and run.images.requires_grad and run.images.dtype == torch.float64
    return run


def on_buffers(run: Distillation) -> CapturedStep:
    """The step of a run that a CUDA graph would record, on any device."""
    return CapturedStep(run, run.terms, run.optimiser)


def distilled_images(config: RunConfig, **arguments: object) -> Tensor:
    """Images of a whole run on 4 classes of 40 images."""
    return distill(config, tiny_dataset(40), **arguments).synthetic.images


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def stop_at(iteration: int, action: Callable[[], None]) -> dict[str, object]:
    """Arguments of `distill` that make it do something after as many iterations."""

    def act(done: int, synthetic: SyntheticSet) -> None:
        action()

    return {"on_iteration": act, "iterations_to_show": (iteration,)}


def logged_rows(folder: Path) -> list[dict[str, float]]:
    """Rows that a run has logged, without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


# A run's step against the reference, a loop over classes, images and positions

DOUBLE, SINGLE = 1e-10, 1e-4
"""Norm-wise agreement asked for in float64 and in float32."""


def double_parameters(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in network.state_dict().items()}


def expected(run: Distillation, iteration: int) -> dict[str, tuple[float, Tensor]]:
    """Every term's value and gradient by the reference, in float64, from the run's draws, images and networks."""
    config, real = run.config, run.real
    drawn = real.sample(config.match.batch_real, stream(config.seed, iteration, "real batch"))
    draws = sample(OPERATIONS, real.num_classes, stream(config.seed, iteration, "augmentation"))
    classes = [
        reference.ClassBatch(
            real.images_of(drawn.index[drawn.group == c]).double(),
            run.images[run.group == c].detach().double(),
            None if run.augmentation == "none" else OPERATIONS[int(draws.op[c])],
            draws.u[c].tolist(),
            config.syn.factor,
            c,
        )
        for c in range(real.num_classes)
    ]
    network, accuracy = run.source.draw(iteration)
    own = double_parameters(network)
    block_maps = functools.partial(reference.convnet_blocks, own)
    classifier = reference.Classifier(own["classifier.weight"], own["classifier.bias"], float(accuracy))
    pretrained = None
    if run.source.from_pool:
        pretrained = lambda image: reference.convnet(own, image).flatten()  # noqa: E731
    elif run.pool is not None:
        number = int(torch.randint(len(run.pool.networks), (), generator=stream(config.seed, iteration, "expert")))
        parameters = double_parameters(run.pool.networks[number])
        if config.pool.network == "resnet18":
            pretrained = functools.partial(reference.resnet18, parameters)
        else:
            pretrained = lambda image: reference.convnet(parameters, image).flatten()  # noqa: E731
    shape = config.match.mmd_frequencies, own["classifier.weight"].shape[1]
    frequencies = torch.randn(shape, generator=stream(config.seed, iteration, "frequencies")).double()
    return reference.step(tuple(run.terms), config.match, classes, block_maps, pretrained, classifier, frequencies)


def measured(run: Distillation, iteration: int) -> dict[str, tuple[float, Tensor]]:
    """Every term's value and gradient by the run."""
    parts = run.losses(iteration)
    return {
        name: (float(part.detach()), torch.autograd.grad(part, run.images, retain_graph=True)[0])
        for name, part in parts.items()
    }


def assert_step_is_the_loop(run: Distillation, iteration: int, tolerance: float) -> None:
    found, wanted = measured(run, iteration), expected(run, iteration)
    assert found.keys() == wanted.keys() == run.terms.keys()
    for name, (value, gradient) in wanted.items():
        assert value > 0 and gradient.any(), name
        assert found[name][0] == pytest.approx(value, rel=tolerance), name
        assert difference(found[name][1], gradient) <= tolerance, name


# Files and folders


def one_line(caught: pytest.ExceptionInfo[BaseException], longest: int = 2000) -> str:
    """The message of an error, which must be one line of fewer characters than `longest`."""
    message = str(caught.value)
    assert "\n" not in message and len(message) < longest
    return message


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def md5(file: Path | bytes) -> str:
    """MD5 of a file, or of its content."""
    content = file if isinstance(file, bytes) else file.read_bytes()
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder somebody else's; where this user may not, it looks so."""
    if os.geteuid() == 0:
        os.chown(path, 54321, 54321)
        return
    lstat = Path.lstat

    def of_another(self: Path) -> os.stat_result:
        found = lstat(self)
        return os.stat_result((*found[:4], 54321, *found[5:10])) if self == path else found

    monkeypatch.setattr(Path, "lstat", of_another)


class Trap:
    """Unpickling one makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel, which Pillow cannot write: uint16 [H, W, 2 to 4]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decode_in_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a process as many threads and cores for decoding images."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)


# Folders of images as people lay them out

CATS_AND_DOGS = ("cat/*4.png", "dog/*4.png")


def lay(root: Path, *names: str) -> Path:
    """Makes empty files: ``cat/*3.png`` is three of them; a name that ends in a slash is a folder."""
    for name in names:
        head, star, tail = name.partition("*")
        count, dot, ending = tail.partition(".") if star else ("1", "", "")
        for number in range(int(count)):
            path = root / (f"{head}{number}{dot}{ending}" if star else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
            else:
                path.touch()
    return root


def part(name: str, *classes: str) -> list[str]:
    """Names for `lay` of a split with some classes."""
    return [f"{name}/{one}" for one in classes or CATS_AND_DOGS]


FOLDER_NAMES = (
    "train Train training test Test testing val valid images archive cat dog Cat cow pred seg_train seg_test".split()
)


def random_layout(root: Path, draws: random.Random) -> None:
    """A folder as many have it, with something wrong in half of the cases; or one as nobody should make it."""
    places = [root]
    if draws.random() < 0.6:
        above = root / draws.choice(("", "", "archive", "a/b"))
        halves = [above / "train", above / draws.choice(("test", "Val", "dev_set"))]
        parts = [above] if draws.random() < 0.3 else halves
        places += [part / name for part in parts for name in draws.sample(("ant", "bee", "cat", "dog"), 3)]
        places += [part / "deep" for part in places[1:] if draws.random() < 0.1]
        for place in places[1:]:
            place.mkdir(parents=True, exist_ok=True)
            _fill(place, draws, (1, 2, 5, 0 if draws.random() < 0.1 else 3))
    for _ in range(draws.choice((0, 1, 2)) if places[1:] else draws.randrange(1, 14)):
        place = draws.choice(places) / draws.choice(FOLDER_NAMES)
        place.mkdir(exist_ok=True)
        places.append(place)
        _fill(place, draws, (0, 0, 1, 2, 5))
    for place in draws.sample(places, min(2, len(places))):
        kind = draws.randrange(16)
        if kind == 0:
            (place / "link").symlink_to(draws.choice(places))
        elif kind == 1:
            (place / "gone.png").symlink_to("nowhere")
        elif kind == 2 and not (place / "pipe.png").exists():
            os.mkfifo(place / "pipe.png")
        elif kind == 3:
            (place / ".hidden.png").touch()


def _fill(place: Path, draws: random.Random, counts: Sequence[int]) -> None:
    for number in range(draws.choice(counts)):
        (place / f"{number}{draws.choice(('.png', '.JPG', '.png', '.jfif', '.txt'))}").touch()


def images_on_disk(root: Path) -> int:
    """Images as `os.walk` counts them, which follows no links."""
    return sum(
        (Path(place) / name).is_file() and not name.startswith(".") and Path(name).suffix.lower() in ENDINGS
        for place, _, names in os.walk(root)
        for name in names
    )


# Compiled code in a process of its own

_COMPUTE = """
import logging, sys, torch
from iidlib.engine import fused, kernels
from iidlib.networks import build_network, prepare
logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
network = build_network("convnet1", width=16, image_size=8, generator=torch.Generator().manual_seed(0))
prepare(network)
images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
with torch.no_grad():
    print(kernels.library() is not None, float(network.feature_map(images).square().sum()))
    if "compile" in sys.argv:
        fused.compiled_norm_relu_pool()(images, torch.ones(3), torch.zeros(3), 1e-5)
        assert not fused.compiled_norm_relu_pool().broken
"""


def compute_in_process(cache: Path, temporary: Path, *arguments: str) -> tuple[bool, float, list[str]]:
    """Computes in a new process, which keeps compiled code in folders of its own.

    Args:
        cache: folder of the library's cache.
        temporary: the process's folder for temporary files, made where it is missing.
        arguments: ``compile`` also has torch compile a kernel.

    Returns:
        Whether the CPU kernels were used, a value that they computed, and the lines on stderr.
    """
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"IID_CACHE": str(cache), "TMPDIR": str(temporary)}
    del environment["TORCHINDUCTOR_CACHE_DIR"]
    command = [sys.executable, "-c", _COMPUTE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    used, value = done.stdout.split()
    return used == "True", float(value), done.stderr.splitlines()
