"""Image files of every kind as the picture that a person sees, compared with conversions by hand; and broken ones."""

import logging
import os
import random
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageFile

from iidlib.data import pictures
from iidlib.data.pictures import decode
from iidlib.data.pillow_settings import quiet
from tests.factories import png_of_16_bits

SIDE = 16
DRAW = np.random.default_rng(0)
COLOURS = DRAW.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = DRAW.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
ALPHA = DRAW.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, float)[..., None], 3, -1)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def saved(picture: Image.Image, path: Path, **options: Any) -> np.ndarray:
    """What is decoded from a file of a picture of SIDE pixels, which is not resized then: [SIDE, SIDE, 3]."""
    picture.save(path, **options)
    return read(path)


def read(path: Path) -> np.ndarray:
    return decode(path, SIDE).permute(1, 2, 0).numpy().astype(float)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


# --- colours, grey, transparency --------------------------------------------------------------------------------------


def with_alpha(mode: str, *channels: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(channel) for channel in channels])


RGB = Image.fromarray(COLOURS)
INKS = DRAW.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
SMOOTH = np.stack(np.meshgrid(np.linspace(20, 230, SIDE), np.linspace(230, 20, SIDE)), -1)
SMOOTH = np.concatenate([SMOOTH, SMOOTH[..., :1]], -1).round().astype(np.uint8)
MILD = (SMOOTH // 3 + 80).astype(np.uint8)
"""Colours that all spaces have."""
PALETTE = RGB.quantize(17)
FEW = np.asarray(PALETTE.convert("RGB"), float)
PLACES = np.asarray(PALETTE)


def lab(colours: np.ndarray) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(Image.fromarray(colours), *profiles, outputMode="LAB")
    assert made is not None
    return made


# how a file is made, what is seen, and by how many steps of 255 a conversion may round
FILES: dict[str, tuple[str, Image.Image, dict[str, Any], np.ndarray, float]] = {
    "1": ("a.png", Image.fromarray(GREY > 100), {}, grey((GREY > 100) * 255), 0),
    "L": ("a.png", Image.fromarray(GREY), {}, grey(GREY), 0),
    "L with a transparent value": ("a.png", Image.fromarray(GREY // 16), {"transparency": 5},
                                   grey(np.where(GREY // 16 == 5, 255, GREY // 16)), 0),
    "LA": ("a.png", with_alpha("LA", GREY, ALPHA), {}, on_white(grey(GREY), ALPHA), 1),
    "P": ("a.png", PALETTE, {}, FEW, 0),
    "P in a GIF": ("a.gif", PALETTE, {}, FEW, 0),
    "P with a transparent colour": ("a.png", PALETTE, {"transparency": 3},
                                    np.where((PLACES == 3)[..., None], 255, FEW), 0),
    "P with a transparent colour in a GIF": ("a.gif", PALETTE, {"transparency": 3, "optimize": False},
                                             np.where((PLACES == 3)[..., None], 255, FEW), 0),
    "P with an opacity for each colour": ("a.png", PALETTE, {"transparency": bytes(range(0, 170, 10))},
                                          on_white(FEW, PLACES * 10), 1),
    "RGB": ("a.png", RGB, {}, COLOURS.astype(float), 0),
    "RGB with a transparent colour": ("a.png", RGB, {"transparency": tuple(map(int, COLOURS[4, 4]))},
                                      np.where((COLOURS == COLOURS[4, 4]).all(-1, keepdims=True), 255, COLOURS), 0),
    "RGBA": ("a.png", with_alpha("RGBA", *COLOURS.transpose(2, 0, 1), ALPHA), {}, on_white(COLOURS, ALPHA), 1),
    "RGBA in a WEBP": ("a.webp", with_alpha("RGBA", *COLOURS.transpose(2, 0, 1), ALPHA),
                       {"lossless": True, "exact": True}, on_white(COLOURS, ALPHA), 1),
    "RGBX": ("a.tif", with_alpha("RGBX", *COLOURS.transpose(2, 0, 1), ALPHA), {}, COLOURS.astype(float), 0),
    "CMYK": ("a.tif", Image.fromarray(INKS, "CMYK"), {},
             (255.0 - INKS[..., :3]) * (255.0 - INKS[..., 3:]) / 255, 1),
    "CMYK in Adobe's JPEG": ("a.jpg", Image.new("CMYK", (SIDE, SIDE), (10, 100, 200, 50)), {"quality": 100},
                             np.full((SIDE, SIDE, 3), np.array([245, 155, 55]) * 205 / 255), 3),
    "YCbCr": ("a.jpg", Image.fromarray(SMOOTH), {"quality": 100, "subsampling": 0}, SMOOTH.astype(float), 4),
    "LAB": ("a.tif", lab(MILD), {}, MILD.astype(float), 6),
    "I;16": ("a.png", Image.fromarray(GREY.astype(np.uint16) * 257), {}, grey(GREY), 1),
    "I;16 with a transparent value": ("a.png", Image.fromarray(np.where(GREY > 128, 65535, 100).astype(np.uint16)),
                                      {"transparency": 100}, grey(np.full((SIDE, SIDE), 255)), 0),
    "I;16B": ("a.tif", Image.fromarray(GREY.astype(">u2") * 257), {}, grey(GREY), 1),
    "I": ("a.tif", Image.fromarray(GREY.astype(np.int32) * 257), {}, grey(GREY), 1),
    "F": ("a.tif", Image.fromarray((GREY / 255).astype(np.float32)), {}, grey(GREY), 1),
    "1, white is zero": ("a.tif", Image.fromarray(GREY > 100), {"tiffinfo": {262: 0}}, grey((GREY > 100) * 255), 0),
    "L, white is zero": ("a.tif", Image.fromarray(GREY), {"tiffinfo": {262: 0}}, grey(GREY), 0),
    "I;16, white is zero": ("a.tif", Image.fromarray((255 - GREY).astype(np.uint16) * 257), {"tiffinfo": {262: 0}},
                            grey(GREY), 1),
    "F, white is zero": ("a.tif", Image.fromarray((1 - GREY / 255).astype(np.float32)), {"tiffinfo": {262: 0}},
                         grey(GREY), 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_the_picture_that_a_person_sees(kind: str, tmp_path: Path) -> None:
    name, picture, options, seen, rounding = FILES[kind]
    assert distance(saved(picture, tmp_path / name, **options), seen) <= rounding


def premultiplied(mode: str) -> Image.Image:
    return FILES["RGBA"][1].convert("RGBa") if mode == "RGBa" else FILES["LA"][1].convert("La")


# modes that no file has, but that Pillow may come to open
MODES: dict[str, tuple[Callable[[], Image.Image], np.ndarray, float]] = {
    "RGBa": (lambda: premultiplied("RGBa"), on_white(COLOURS, ALPHA), 3),
    "La": (lambda: premultiplied("La"), on_white(grey(GREY), ALPHA), 3),
    "PA": (lambda: PALETTE.convert("PA"), FEW, 0),
    "HSV": (lambda: Image.fromarray(SMOOTH).convert("HSV"), SMOOTH.astype(float), 4),
    "YCbCr": (lambda: Image.fromarray(SMOOTH).convert("YCbCr"), SMOOTH.astype(float), 3),
}


def opened_as(
    picture: Image.Image, mode: str, folder: Path, monkeypatch: pytest.MonkeyPatch, scale: pictures.Scale | None = None
) -> pictures.Picture:
    """What is read from a file that Pillow opens as a picture of a mode."""
    assert picture.mode == mode
    (folder / "a.png").touch()
    monkeypatch.setattr(Image, "open", lambda file: picture)
    with quiet():
        return pictures.read_picture(folder / "a.png", SIDE, scale)


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_what_a_person_sees(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, seen, rounding = MODES[mode]
    shown = opened_as(make(), mode, tmp_path, monkeypatch)
    assert not shown.profile and distance(shown.pixels.astype(float), seen) <= rounding


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I", "F"])
def test_pictures_of_more_than_8_bits_are_known_by_their_mode(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = pictures.Scale((0, 9), (0, 9))
    shown = opened_as(Image.new(mode, (SIDE, SIDE)), mode, tmp_path, monkeypatch, scale)
    assert shown.pixels.shape == (SIDE, SIDE, 3) and (shown.found.low, shown.found.high) == (0, 0)


def test_colours_of_16_bits_are_read_with_8(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of_16_bits(COLOURS.astype(np.uint16) * 257))
    assert distance(read(tmp_path / "a.png"), COLOURS) == 0


def tiff(values: np.ndarray, bits: int, sample_format: int | None = None, channels: int = 1) -> bytes:
    """A TIFF of a kind that Pillow does not write, little-endian: [SIDE, SIDE], or its bytes as they are packed."""
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: 2 if channels == 3 else 1, 273: 8, 277: channels, 278: SIDE}
    tags |= {279: values.nbytes} | ({339: sample_format} if sample_format else {})
    table = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return (
        struct.pack("<4sI", b"II*\0", 8 + values.nbytes)
        + values.tobytes()
        + struct.pack("<H", len(tags))
        + table
        + bytes(4)
    )


RAMP = np.tile(np.linspace(0, 255, SIDE).round(), (SIDE, 1))
HALVES = np.repeat([0, 4095], SIDE * SIDE // 2).reshape(-1, 2)
PACKED = np.stack([HALVES[:, 0] >> 4, (HALVES[:, 0] & 15) << 4 | HALVES[:, 1] >> 8, HALVES[:, 1] & 255], -1)

NUMBERS: dict[str, tuple[bytes, np.ndarray]] = {
    "12 bits, packed": (tiff(PACKED.astype(np.uint8), 12), np.repeat([0, 255], SIDE * SIDE // 2).reshape(SIDE, SIDE)),
    "16 bits": (tiff((RAMP * 257).astype("<u2"), 16), RAMP),
    "16 bits, signed": (tiff((RAMP * 100 - 9000).astype("<i2"), 16, 2), RAMP),
    "32 bits, signed": (tiff((RAMP * 1e6 - 9e7).astype("<i4"), 32, 2), RAMP),
    "32 bits": (tiff((RAMP * 1.6e7).astype("<u4"), 32, 1), RAMP),
    "32 bits, of no kind that is said": (tiff((RAMP * 1.6e7).astype("<u4"), 32), RAMP),
    "floats": (tiff((RAMP / 255).astype("<f4"), 32, 3), RAMP),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_every_kind_reach_from_black_to_white(kind: str, tmp_path: Path) -> None:
    content, seen = NUMBERS[kind]
    (tmp_path / "a.tif").write_bytes(content)
    assert distance(read(tmp_path / "a.tif"), grey(seen)) <= 1


@pytest.mark.parametrize(("kind", "channels"), [("<f8", 1), ("<f2", 1), ("<f4", 3)])
def test_floats_that_pillow_does_not_know_are_refused(kind: str, channels: int, tmp_path: Path) -> None:
    content = tiff(np.ones((SIDE, SIDE, channels), kind), 8 * np.dtype(kind).itemsize, 3, channels)
    (tmp_path / "a.tif").write_bytes(content)
    assert "of an unsupported kind" in refused(tmp_path / "a.tif")


# --- frames, pages, orientation, shape --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_of_several_frames_and_pages_is_taken(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if name == "a.webp" else {}
    shown = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert distance(shown, np.full((SIDE, SIDE, 3), (200, 0, 0))) == 0


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("turn", TURNS)
def test_pictures_are_turned_the_way_they_were_taken(turn: int, name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if name == "a.webp" else {}
    options |= {"tiffinfo": {274: turn}} if name == "a.tif" else {"exif": exif}
    assert distance(saved(RGB, tmp_path / name, **options), TURNS[turn](COLOURS).astype(float)) == 0


def test_a_deep_picture_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = saved(Image.fromarray(GREY.astype(np.uint16) * 257), tmp_path / "a.png", exif=exif)
    assert distance(shown, TURNS[6](grey(GREY))) <= 1


def test_an_orientation_that_cannot_be_read_is_left_out_of_account(tmp_path: Path) -> None:
    for number, rubbish in enumerate(
        (b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    ):
        assert distance(saved(RGB, tmp_path / f"{number}.png", exif=rubbish), COLOURS) == 0
        assert saved(RGB, tmp_path / f"{number}.jpg", exif=rubbish).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 40_000), (40_000, 3), (2, 3)])
def test_pictures_of_any_shape_fill_the_square(size: tuple[int, int], tmp_path: Path) -> None:
    for mode, colour in (("RGB", (9, 99, 199)), ("L", 77), ("I;16", 4095)):
        Image.new(mode, size, colour).save(tmp_path / "a.png")
        shown = decode(tmp_path / "a.png", 8, (0, 4095))
        assert shown.flatten(1).amin(1).tolist() == shown.flatten(1).amax(1).tolist()
        assert shown[:, 0, 0].tolist() == {"RGB": [9, 99, 199], "L": [77] * 3, "I;16": [255] * 3}[mode]


def test_the_middle_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((SIDE, 5 * SIDE, 3), np.uint8)
    wide[:, 2 * SIDE : 3 * SIDE] = COLOURS
    for values in (wide, wide.swapaxes(0, 1)):
        Image.fromarray(values).save(tmp_path / "a.png")
        assert distance(read(tmp_path / "a.png"), COLOURS if values is wide else COLOURS.swapaxes(0, 1)) == 0


# --- colour profiles --------------------------------------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WHITE = np.array([0.9642, 1.0, 0.8249])  # D50, in which profiles tell colours
TO_D50 = {  # primaries as columns, adapted to D50
    "srgb": np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71689, 0.06062], [0.01392, 0.09708, 0.71410]]),
    "p3": np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]),
    "adobe": np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]),
}


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2."""
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\x05test\0" + bytes(78), b"wtpt": xyz(WHITE)} | tags
    offset, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", offset + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I", offset + len(content)) + b"\0\0\0\0\x02\x10\0\0" + kind + space + pcs + bytes(12) + b"acsp"
    head += bytes(28) + xyz(WHITE)[8:]
    return head + bytes(128 - len(head)) + table + content


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*map(float, values))


def gamma(power: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(power * 256))


def colour_profile(primaries: str, power: float = 2.2) -> bytes:
    tags = {name + b"XYZ": xyz(TO_D50[primaries][:, place]) for place, name in enumerate((b"r", b"g", b"b"))}
    return profile(b"RGB ", tags | {name + b"TRC": gamma(power) for name in (b"r", b"g", b"b")})


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light as sRGB of 8 bits."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def by_hand(colours: np.ndarray, primaries: str, power: float = 2.2) -> np.ndarray:
    light = (colours / 255) ** power @ TO_D50[primaries].T
    return encoded(light @ np.linalg.inv(TO_D50["srgb"]).T)


@pytest.mark.parametrize("primaries", ["p3", "adobe"])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.jpg"])
def test_wide_colours_become_srgb(primaries: str, name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 100, "subsampling": 0}}.get(name, {})
    shown = saved(Image.fromarray(MILD), tmp_path / name, icc_profile=colour_profile(primaries), **options)
    rounding = 5 if name == "a.jpg" else 2
    assert distance(shown, by_hand(MILD, primaries)) <= rounding < distance(MILD, by_hand(MILD, primaries))


def test_a_profile_goes_with_transparency_and_palettes(tmp_path: Path) -> None:
    own, alpha = colour_profile("adobe"), Image.fromarray(ALPHA)
    picture = Image.fromarray(MILD)
    picture.putalpha(alpha)
    shown = saved(picture, tmp_path / "a.png", icc_profile=own)
    assert distance(shown, on_white(by_hand(MILD, "adobe"), ALPHA)) <= 3
    few = Image.fromarray(MILD).quantize(9)
    shown = saved(few, tmp_path / "b.png", icc_profile=own)
    assert distance(shown, by_hand(np.asarray(few.convert("RGB")), "adobe")) <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_profiles_are_used(mode: str, tmp_path: Path) -> None:
    linear = profile(b"GRAY", {b"kTRC": gamma(1.0)})
    picture = Image.fromarray(GREY).convert(mode)
    shown = saved(picture, tmp_path / "a.png", icc_profile=linear)
    assert distance(shown, grey(encoded(np.asarray(picture.convert("L")) / 255))) <= 2


def test_grey_pictures_take_profiles_of_colours(tmp_path: Path) -> None:
    shown = saved(Image.fromarray(GREY), tmp_path / "a.png", icc_profile=colour_profile("srgb", 1.0))
    assert distance(shown, grey(encoded(GREY / 255))) <= 2


def inks_profile() -> bytes:
    """Inks whose paper is yellowish, so that no ink is not white: a table of two steps for each ink, in Lab."""
    steps = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = bytes(
        v for c, m, y, k in steps for v in (round(255 * (1 - (c + m + y + 3 * k) / 6)), 128, 128 + 20 * (1 - k))
    )
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(b"CMYK", {b"A2B0": head + straight * 4 + table + straight * 3}, b"prtr", b"Lab ")


def test_inks_are_shown_as_their_profile_says(tmp_path: Path) -> None:
    plain = saved(Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 102)), tmp_path / "a.tif")
    shown = saved(Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 102)), tmp_path / "b.tif", icc_profile=inks_profile())
    lightness = 100 * (1 - 0.4 / 2)  # two fifths of black, which takes half of the lightness
    light = (((lightness + 16) / 116) ** 3) * WHITE[1]
    assert plain[0, 0].tolist() == [153, 153, 153]
    assert abs(shown[0, 0, 1] - encoded(np.array(light))) <= 6 and shown[0, 0, 2] < shown[0, 0, 1] - 10, "not yellowish"


def test_srgb_changes_nothing_however_a_profile_tells_it(tmp_path: Path) -> None:
    steps = np.linspace(0, 1, 1024)
    light = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + (light * 65535).round().astype(">u2").tobytes()
    tags = {name + b"XYZ": xyz(TO_D50["srgb"][:, place]) for place, name in enumerate((b"r", b"g", b"b"))}
    tabled = profile(b"RGB ", tags | {name + b"TRC": curve for name in (b"r", b"g", b"b")})
    for number, own in enumerate((SRGB, tabled)):
        assert distance(saved(RGB, tmp_path / f"{number}.png", icc_profile=own), COLOURS) == 0


@pytest.mark.parametrize("kind", ["rubbish", "cut", "inks", "grey"])
def test_a_profile_that_cannot_be_used_leaves_the_colours(kind: str, tmp_path: Path) -> None:
    own = {"rubbish": b"no profile" * 30, "cut": colour_profile("p3")[:200], "inks": inks_profile(),
           "grey": profile(b"GRAY", {b"kTRC": gamma(1.0)})}[kind]  # fmt: skip
    assert distance(saved(RGB, tmp_path / "a.png", icc_profile=own), COLOURS) == 0
    with quiet():
        assert pictures.read_picture(tmp_path / "a.png", SIDE).profile


# --- broken files -----------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        decode(path, 8)
    text = str(caught.value)
    assert text and "\n" not in text and len(text) < 120 and str(path) not in text
    return text


def test_no_flipped_bit_makes_a_png_another_picture(tmp_path: Path) -> None:
    """Pillow alone takes some of them: it reads pixels without comparing checksums."""
    path = tmp_path / "a.png"
    Image.fromarray(DRAW.integers(0, 4, (5, 5, 3), dtype=np.uint8) * 60).save(path)
    good, shown, reasons = path.read_bytes(), decode(path, 8), set()
    for bit in range(8 * 8, 8 * len(good)):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert decode(path, 8).equal(shown), f"bit {bit}"
        except ValueError as error:
            reasons.add(str(error))
    assert "corrupted: a checksum differs" in reasons


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_truncated_photographs_are_refused_also_where_scripts_allow_them(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOURS).resize((400, 300)).save(path, **options)
    content = path.read_bytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for share in (0.2, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        assert refused(path) == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES, "the script's own setting is left as it was"


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_no_cut_makes_a_tiff_another_picture(compression: str, tmp_path: Path) -> None:
    """Its colour profile may lie behind its pixels, and Pillow reads on without it."""
    path, kept = tmp_path / "a.tif", 0
    Image.fromarray(MILD).save(path, icc_profile=colour_profile("p3"), compression=compression)
    content, shown = path.read_bytes(), read(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            assert distance(read(path), shown) == 0, f"{length} of {len(content)} bytes"
            kept += 1
        except ValueError as error:
            assert str(error).startswith(("truncated", "not an image", "a TIFF", "corrupted"))
    assert kept < 10


def test_the_settings_of_pillow_are_restored_by_the_last_of_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    log, filters = logging.getLogger("PIL"), list(warnings.filters)
    level = log.level
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as another thread would, while the second still reads
    assert not ImageFile.LOAD_TRUNCATED_IMAGES and log.level == logging.CRITICAL
    second.__exit__(None, None, None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES and log.level == level and list(warnings.filters) == filters


@pytest.mark.parametrize(
    ("value", "reported"), [(np.nan, "has NaN values"), (np.inf, "has infinite values"), (-np.inf, "infinite")]
)
def test_values_that_are_no_numbers_are_named(value: float, reported: str, tmp_path: Path) -> None:
    values = np.ones((9, 9), np.float32)
    values[4, 5] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert reported in refused(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == "not a regular file"
    assert refused(tmp_path / "none.png") == "No such file or directory"


def test_kinds_that_pillow_does_not_know_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    assert "a TIFF that is corrupted or of an unsupported kind" in refused(tmp_path / "a.tif")
    (tmp_path / "a.png").write_bytes(b"\0" * 100)
    assert refused(tmp_path / "a.png") == "not an image"


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_001)).save(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == "10000 x 5001 pixels are too many"


def test_nothing_of_pillow_reaches_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "a.tif"
    RGB.save(path, compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[20:40] = bytes(20)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        refused(path)
        RGB.save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0")  # a directory that ends too early
        decode(tmp_path / "b.jpg", 8)
        Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")  # Pillow warns of bombs, the library refuses them
        refused(tmp_path / "bomb.png")
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


# --- fuzz -------------------------------------------------------------------------------------------------------------

KINDS = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"],
    "gif": ["L", "P", "RGB"],
    "webp": ["RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB"],
    "ppm": ["1", "L", "RGB", "I;16"],
    "jpg": ["L", "RGB", "CMYK"],
}
EXACT = {"png": {"1", "L", "P", "RGB"}, "tif": {"1", "L", "P", "RGB"}, "webp": {"RGB"}, "bmp": {"1", "L", "P", "RGB"},
         "ppm": {"1", "L", "RGB"}, "gif": {"L", "P"}}  # fmt: skip
"""Formats and modes whose pixels come back as they were."""


def random_picture(draw: random.Random, mode: str, width: int, height: int) -> Image.Image:
    values = np.random.default_rng(draw.randrange(1 << 30))
    if mode.startswith("I;16"):
        top = 1 << draw.choice([8, 12, 16])
        return Image.fromarray(values.integers(0, top, (height, width)).astype(">u2" if mode == "I;16B" else "<u2"))
    if mode == "I":
        return Image.fromarray(values.integers(-1000, 70_000, (height, width)).astype(np.int32))
    if mode == "F":
        return Image.fromarray(values.random((height, width)).astype(np.float32))
    colours = values.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "LAB":
        return lab(colours[..., :3])
    picture = Image.fromarray(colours)
    return picture.convert(mode) if mode in ("RGBA", "LA", "RGB") else picture.convert("RGB").convert(mode)


def random_file(draw: random.Random, folder: Path) -> tuple[Path, Image.Image, bool]:
    """A file, its picture, and whether what is seen is the picture as it is."""
    ending = draw.choice(list(KINDS))
    mode = draw.choice(KINDS[ending])
    picture = random_picture(draw, mode, draw.randint(1, 40), draw.randint(1, 40))
    plain, options = True, dict[str, Any]()
    if ending == "tif" and mode not in ("LAB", "I", "F", "I;16B") and draw.random() < 0.7:
        options["compression"] = draw.choice(["tiff_lzw", "tiff_adobe_deflate", "packbits"])
    if ending == "webp":
        options["lossless"] = True
    if ending in ("png", "tif", "webp", "jpg") and draw.random() < 0.3:
        profiles = [
            SRGB,
            b"rubbish" * 20,
            colour_profile("p3"),
            profile(b"GRAY", {b"kTRC": gamma(1.8)}),
            inks_profile(),
        ]
        options["icc_profile"], plain = draw.choice(profiles), False
    if ending in ("png", "webp", "jpg") and draw.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112], plain = draw.randint(1, 9), False
        options["exif"] = exif
    if ending == "png" and mode == "L" and draw.random() < 0.3:
        options["transparency"], plain = draw.randrange(256), False
    if ending in ("gif", "tif", "webp", "png") and draw.random() < 0.2:
        options |= {"save_all": True, "append_images": [picture.copy()]}
    picture.save(folder / f"a.{ending}", **options)
    return folder / f"a.{ending}", picture, plain and mode in EXACT.get(ending, ())


def corrupted(good: bytes, draw: random.Random) -> tuple[bytes, str]:
    data, kind, at = bytearray(good), draw.choice(["cut", "flip", "flip", "zeros", "insert"]), draw.randrange(len(good))
    if kind == "cut":
        del data[at:]
    elif kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        data[at : at + 20] = bytes(len(data[at : at + 20]))
    else:
        data[at:at] = draw.randbytes(5)
    return bytes(data), kind


OLD_PILLOW = int(PIL.__version__.partition(".")[0]) < 13
"""Pillow before version 13 cannot read the uncompressed YCbCr TIFFs that it writes itself."""


def readable_by_pillow(path: Path) -> bool:
    """Whether Pillow itself can read a file."""
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


def attack(folder: Path, files: int, seed: int) -> Counter[str]:
    """Reads random files, whole and corrupted; returns what became of them.

    Raises:
        AssertionError: for an error that is none of `decode`, a lossless file that is read to other pixels, and one
            that is truncated, or a PNG that is corrupted, and read to other pixels without an error.
    """
    draw, counts = random.Random(seed), Counter[str]()
    for _ in range(files):
        path, picture, exact = random_file(draw, folder)
        if OLD_PILLOW and (path.suffix, picture.mode) == (".tif", "YCbCr") and not readable_by_pillow(path):
            counts["no reader"] += 1
            path.unlink()
            continue
        side = min(picture.size)
        whole = decode(path, side)
        counts["whole"] += 1
        if exact and (picture.width - picture.height) % 2 == 0:  # the middle begins at a whole pixel
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            middle = np.asarray(picture.convert("RGB"))[top : top + side, left : left + side]
            assert whole.permute(1, 2, 0).numpy().tolist() == middle.tolist()
            counts["compared"] += 1
        good = path.read_bytes()
        for _ in range(3):
            content, kind = corrupted(good, draw)
            path.write_bytes(content)
            try:
                shown = decode(path, side)
            except ValueError as error:
                assert type(error) is ValueError or type(error).__name__ == "_RefusedError"
                assert "\n" not in str(error) and 0 < len(str(error)) < 120
                counts["refused"] += 1
                continue
            counts["read"] += 1
            if kind == "cut" or path.suffix == ".png":
                assert shown.equal(whole), f"{path.suffix} {picture.mode} after {kind} is another picture"
        path.unlink()
    return counts


def test_random_files_are_read_right_or_refused(tmp_path: Path) -> None:
    counts = attack(tmp_path, 150, 0)
    assert counts["refused"] > 150 and counts["read"] > 50 and counts["compared"] > 20, counts


@pytest.mark.long
def test_many_random_files_are_read_right_or_refused(tmp_path: Path, record_property: Any) -> None:
    counts = attack(tmp_path, 5000, 1)
    record_property("files", dict(counts))
