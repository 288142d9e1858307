"""Pictures of more than 8 bits: one scale for a dataset, found or given, and said once."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iidlib.data import load_dataset
from iidlib.data.depth import Found, Scale, to_bytes
from iidlib.data.folder import parse_folder
from iidlib.errors import InputError
from iidlib.evaluation import random_real
from iidlib.evaluation.fitting import log_differences
from iidlib.synthetic import SyntheticSet
from tests.factories import png_of_16_bits


@pytest.mark.parametrize(
    ("floating", "values", "expected"),
    [
        (False, [(0, 200)], (0, 255)),
        (False, [(3, 255), (0, 256)], (0, 1023)),
        (False, [(100, 4095)], (0, 4095)),
        (False, [(0, 4096)], (0, 16383)),
        (False, [(0, 16384), (0, 3)], (0, 65535)),
        (False, [(0, 70_000)], (0, 70_000)),
        (False, [(-1024, 3071), (-1000, 50)], (-1024, 3071)),
        (False, [(-500, -500)], (-500, -499)),
        (True, [(0, 1), (0.2, 0.4)], (0, 1)),
        (True, [(-0.03, 1.04)], (0, 1)),
        (True, [(-1, 0.9)], (-1, 1)),
        (True, [(0, 255)], (0, 255)),
        (True, [(0, 4000)], (0, 4095)),
        (True, [(0, 2.5)], (0, 2.5)),
        (True, [(280, 301.5)], (280, 301.5)),
        (True, [(7, 7)], (7, 8)),
    ],
)
def test_the_scale_is_the_convention_that_the_values_of_all_pictures_fit(
    floating: bool, values: list[tuple[float, float]], expected: tuple[float, float]
) -> None:
    scale = Scale.of([Found(floating, *one) for one in values])
    assert (scale.floating if floating else scale.whole) == expected
    assert (scale.whole if floating else scale.floating) is None


def test_whole_and_floating_numbers_have_scales_of_their_own_unless_one_is_given() -> None:
    found = [Found(False, 0, 4000), Found(True, 0, 0.9)]
    assert Scale.of(found) == Scale((0, 4095), (0, 1))
    assert Scale.of(found, (0, 2)) == Scale((0, 2), (0, 2))
    assert str(Scale.of(found)) == ("0 is black and 4095 is white and 0 is black and 1 is white (floating point)")
    with pytest.raises(ValueError, match="no range"):
        Scale.of(found[:1]).range_for(found[1])


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, ">u2"])
def test_values_become_bytes_in_strips_as_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(0, 5000, 7).reshape(-1, 5).astype(kind)
    expected = np.rint(np.clip(values.astype(float) / 4095 * 255, 0, 255))
    monkeypatch.setattr("iidlib.data.depth.AT_ONCE", 12)
    assert to_bytes(values, (0, 4095)).tolist() == expected.tolist()


# --- datasets ---------------------------------------------------------------------------------------------------------

Paint = Callable[[int], Image.Image]


def painted_folder(root: Path, paint: Paint, ending: str = "png", count: int = 6) -> str:
    """A folder of two classes whose pictures are painted by number; returns its name."""
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(number).save(path)
    return f"folder:{root}?size=8&test=0.34"


def level(name: str) -> dict[str, float]:
    """Smallest and largest value of all images."""
    data = load_dataset(name)
    parts = [data.train.images, data.test.images]
    return {"low": min(float(part.min()) for part in parts), "high": max(float(part.max()) for part in parts)}


def flat(value: float, kind: type) -> Image.Image:
    return Image.fromarray(np.full((9, 9), value, kind))


@pytest.mark.parametrize(
    ("kind", "ending", "low", "high", "reported"),
    [
        (np.uint16, "png", 0, 1023, "1023 is white"),
        (np.uint16, "png", 0, 4095, "4095 is white"),
        (np.uint16, "tif", 0, 16383, "16383 is white"),
        (np.uint16, "tif", 0, 65535, "65535 is white"),
        (np.int32, "tif", -1024, 3071, "-1024 is black and 3071 is white"),
        (np.float32, "tif", 0, 1, "0 is black and 1 is white"),
        (np.float32, "tif", -1, 1, "-1 is black and 1 is white"),
    ],
)
def test_deep_pictures_reach_from_black_to_white_and_this_is_said(
    kind: type, ending: str, low: float, high: float, reported: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    name = painted_folder(tmp_path, lambda n: flat(low + (high - low) * n / 5, kind), ending)
    assert level(name) == {"low": 0, "high": 255}
    assert level(name) == {"low": 0, "high": 255}, "also from the cache"
    # folder and training images are reported as well, each time
    (message,) = [line for record in caplog.records if "more than 8 bits" in (line := record.getMessage())]
    assert reported in message and "6 images have more than 8 bits" in message
    assert f"range={low},{high}" in message, "how to say otherwise"


def test_one_scale_holds_for_training_and_test_images_of_their_own(tmp_path: Path) -> None:
    painted_folder(tmp_path / "train", lambda n: flat(200, np.uint16))
    painted_folder(tmp_path / "test", lambda n: flat(4000, np.uint16))
    data = load_dataset(f"folder:{tmp_path}?size=8")
    assert set(data.train.images.flatten().tolist()) == {round(200 / 4095 * 255)}
    assert set(data.test.images.flatten().tolist()) == {round(4000 / 4095 * 255)}


def test_the_range_can_be_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    name = painted_folder(tmp_path, lambda n: flat(100 * n, np.uint16))
    assert level(name) == {"low": 0, "high": round(500 / 1023 * 255)}
    assert level(f"{name}&range=100,400") == {"low": 0, "high": 255}
    assert level(f"{name}&range=-1000,1000")["low"] == round(1000 / 2000 * 255)
    assert "100 is black and 400 is white" in caplog.text and load_dataset(f"{name}&range=0,4095").spec.name.endswith(
        "4095"
    )


@pytest.mark.parametrize("text", ["", "5", "1,2,3", "9,1", "3,3", "a,b", "nan,1", "0,inf", "0,1e999", "-1e308,1e308"])
def test_a_wrong_range_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"range takes the values of black and of white.*range=0,4095, got") as caught:
        parse_folder(f"folder:x?range={text}")
    assert "\n" not in str(caught.value)


def test_a_range_without_deep_pictures_is_reported_as_without_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = painted_folder(tmp_path, lambda n: flat(50 * n, np.uint8))
    assert level(f"{name}&range=0,1") == {"low": 0, "high": 250}
    assert "no image has more than 8 bits, so range= has no effect" in caplog.text


def test_a_mixture_of_depths_is_decided_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    name = painted_folder(tmp_path, lambda n: flat(4095, np.uint16) if n % 3 else flat(128, np.uint8))
    data = load_dataset(name)
    assert set(data.train.images.flatten().tolist()) | set(data.test.images.flatten().tolist()) == {128, 255}
    assert "4 images have more than 8 bits" in caplog.text and "the other 2 have 8 bits, 0 to 255" in caplog.text


def test_a_brighter_picture_changes_the_scale_of_those_that_are_kept(tmp_path: Path) -> None:
    name = painted_folder(tmp_path, lambda n: flat(1000, np.uint16))
    before = load_dataset(name)
    assert int(before.train.images.max()) == round(1000 / 1023 * 255)
    flat(4000, np.uint16).save(tmp_path / "a" / "bright.png")
    assert level(name) == {"low": round(1000 / 4095 * 255), "high": round(4000 / 4095 * 255)}
    (tmp_path / "a" / "bright.png").unlink()
    assert load_dataset(name).train.fingerprint == before.train.fingerprint


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pictures_with_values_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    name = painted_folder(tmp_path, lambda n: flat(value if n == 3 else 0.5, np.float32), "tif")
    with pytest.raises(InputError, match=r"1 of 6 images in .* cannot be read: b/3.tif \(has (NaN values|infin)"):
        load_dataset(name)


def test_colours_of_12_bits_in_16_are_reported_as_nearly_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png_of_16_bits(np.full((9, 9, 3), 4095 - number, np.uint16)))
    load_dataset(f"folder:{tmp_path}?size=8")
    assert "all images are nearly black: they use 12 of 16 bits per channel" in caplog.text


def test_a_set_keeps_the_range_and_is_not_tested_on_another_one_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made_from = load_dataset(painted_folder(tmp_path / "made", lambda n: flat(4095 - n, np.uint16)))
    random_real(made_from.train, 1).save(tmp_path / "set.safetensors")
    chosen = SyntheticSet.load(tmp_path / "set.safetensors")
    assert chosen.provenance["range"] == "0,4095"
    name = painted_folder(tmp_path / "dimmer", lambda n: flat(1020 - n, np.uint16))
    for images in (chosen, made_from.train, chosen):
        log_differences(images, load_dataset(name))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1, "once"
    assert f"0 is black and 4095 is white, and in {name} 0 is black and 1023 is white" in warnings[0]
    remedy = warnings[0].split()[-1]
    assert remedy == f"{name}&range=0,4095"
    caplog.clear()
    log_differences(chosen, load_dataset(remedy))
    floats = painted_folder(tmp_path / "floats", lambda n: flat(n / 5, np.float32), "tif")
    bytes_ = painted_folder(tmp_path / "bytes", lambda n: flat(40 * n, np.uint8))
    for other in (floats, bytes_):
        log_differences(chosen, load_dataset(other))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert "range" not in random_real(load_dataset(bytes_).train, 1).provenance


def test_the_held_out_images_of_a_folder_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    name = painted_folder(tmp_path, lambda n: flat(n, np.uint8), count=60)
    data = load_dataset(f"validation:{name}")
    assert (len(data.train), len(data.test)) == (36, 4)
    assert caplog.messages[-1] == (
        f"validation:{name}: 36 training images are used for training and 4 are held out for testing; the 20 test "
        "images are not used"
    )


@pytest.mark.parametrize(
    ("query", "reported"),
    [
        ("size=32&size=16", r"size is given twice \(32 and 16\); give it once"),
        ("size=32&size=32", "size is given twice"),
        ("range=0,1&test=0.3&range=0,2", "range is given twice"),
        ("size=\uff13\uff12", "size takes the digits 0 to 9, got '\uff13\uff12'"),
        ("size=3_2", "size takes the digits 0 to 9"),
        ("test=\u0660.\u0663", "test takes the digits 0 to 9"),
        ("range=0,\uff14", "range takes the digits 0 to 9"),
    ],
)
def test_options_are_given_once_and_in_plain_digits(query: str, reported: str) -> None:
    with pytest.raises(InputError, match=reported):
        parse_folder(f"folder:x?{query}")


def test_the_options_of_a_folder_say_its_range() -> None:
    options = parse_folder("folder:x?range=-1024,3071&size=64")
    assert dataclasses.astuple(options)[1:] == (64, 0.2, (-1024, 3071))
    assert parse_folder("folder:x").values is None
