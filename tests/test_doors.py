"""Wrong arguments at the doors of the library: one line that says what was expected."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from iidlib.config import EvalProtocol, preset
from iidlib.data import load_dataset
from iidlib.distillation import distill
from iidlib.engine import pick_device
from iidlib.errors import InputError
from iidlib.evaluation import evaluate, random_real
from iidlib.synthetic import SyntheticSet

DATA = load_dataset("shapes")
CHOSEN = random_real(DATA.train, 1)
CONFIG = preset("dm", "shapes", 1, "ci", {"iterations": 1})
PROTOCOL = EvalProtocol(networks=("mlp",), num_eval=1, epochs=1)
DRAW = torch.Generator()


def scored(**arguments: object) -> object:
    return evaluate(CHOSEN, DATA, **{"protocol": PROTOCOL} | arguments)  # type: ignore[arg-type]


DOORS: dict[str, tuple[Callable[..., object], str]] = {
    "no name": (lambda: load_dataset(None), "name of a dataset must be text, such as 'cifar10-mini' .*, got None"),
    "a number for a name": (lambda: load_dataset(3), "name of a dataset must be text"),
    "bytes for a name": (lambda: load_dataset(b"shapes"), "name of a dataset must be text"),
    "a device of no kind": (lambda: load_dataset("shapes", device="cudaa"), "device 'cudaa' is not known; choose cpu,"),
    "a number for a device": (lambda: load_dataset("shapes", device=3.5), "device 3.5 is not known"),
    "a device that is not there": (lambda: load_dataset("shapes", device="cuda:77"), "'cuda:77' cannot be used here"),
    "a device to pick": (lambda: pick_device(3.5), "device 3.5 is not known; choose auto"),
    "a device to distil on": (lambda: distill(CONFIG, device="cudaa"), "device 'cudaa' is not known; choose auto"),
    "a number for a data root": (lambda: load_dataset("cifar10", data_root=3), "data_root must be the path"),
    "a number for a mirror": (lambda: load_dataset("svhn", download=True, mirror=3), "mirror must be the text"),
    "a method for settings": (lambda: distill("dm", DATA), "config must be a RunConfig, such as preset.*, got 'dm'"),
    "no settings": (lambda: distill(None), "config must be a RunConfig"),
    "a name for a dataset": (lambda: distill(CONFIG, "shapes"), "dataset must be a Dataset, .*, got 'shapes'"),
    "images for a dataset": (lambda: distill(CONFIG, DATA.train), "dataset must be a Dataset"),
    "a number for a folder": (lambda: distill(CONFIG, DATA, out=3), "out must be the path of a folder, got 3"),
    "a name for a protocol": (lambda: scored(protocol="dm"), "protocol must be an EvalProtocol, .*, got 'dm'"),
    "an empty protocol": (lambda: scored(protocol={}), "protocol must be an EvalProtocol"),
    "a name for the hardware": (lambda: scored(compute="cpu"), "compute must be a ComputeConfig, got 'cpu'"),
    **{
        f"{seed!r} for a seed": (lambda seed=seed: scored(seed=seed), "seed must be a whole number from 0 to .*, got")
        for seed in ("x", -1, 10**30, True, None, 1.5)
    },
    "a number for a file": (lambda: CHOSEN.save(3), "path must be text or a path, got 3"),
    "a number for a picture": (lambda: CHOSEN.save_png(3), "path must be text or a path, got 3"),
    **{
        f"{ipc!r} for ipc": (
            lambda ipc=ipc: SyntheticSet.from_real(DATA.train, ipc, DRAW), "ipc of a synthetic set must be a whole"
        )
        for ipc in ("x", 1.5, True, None)
    },
    "a dataset for images": (lambda: SyntheticSet.from_real(DATA, 1, DRAW), "real must be .*, got a Dataset"),
    "true for a factor": (
        lambda: SyntheticSet(CHOSEN.images, CHOSEN.labels, CHOSEN.spec, {}, True), "factor .* a whole number, got bool"
    ),
    "text for a factor": (
        lambda: SyntheticSet.from_real(DATA.train, 1, DRAW, factor="x"), "factor of .* whole number, got str 'x'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DOORS)
def test_a_wrong_argument_is_reported_in_one_line(case: str) -> None:
    call, reported = DOORS[case]
    with pytest.raises(InputError, match=reported) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_set_is_not_written_where_a_folder_is(tmp_path: Path) -> None:
    for write in (CHOSEN.save, CHOSEN.save_png):
        with pytest.raises(InputError, match=r"is a folder; give the path of a file in it, such as .*set.safetensors"):
            write(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_path_object_stands_for_a_folder(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (32, 32), number).save(path)
    assert load_dataset(tmp_path).name == load_dataset(f"folder:{tmp_path}").name == f"folder:{tmp_path}"
    with pytest.raises(InputError, match="no folder at"):
        load_dataset(tmp_path / "none")
