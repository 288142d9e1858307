"""iidlib.synthetic: where sets start from, how they look, and files that come back as they were or not at all."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from iidlib.data import Dataset, DatasetSpec, shapes
from iidlib.errors import InputError
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet, expand, storage
from tests import reference

PICTURES = {"per_class": (5, 4, 6), "size": 8}
"""Of the fixture `pictures`."""


@pytest.fixture
def chosen(pictures) -> SyntheticSet:
    made = SyntheticSet.from_real(pictures.train, 2, stream(0, 0, "initial images"))
    made.images += torch.randn(made.images.shape, generator=stream(0, 0, "learned"))
    made.provenance |= {"method": "dm", "note": "ünïcode \n and lines"}
    return made


# Where a set starts from


def test_real_images_of_each_class_without_repetition(pictures):
    made = SyntheticSet.from_real(pictures.train, 4, stream(0, 0, "initial images"))
    assert made.images.shape == (12, 3, 8, 8) and made.images.dtype == torch.float32
    assert made.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and made.ipc == 4
    assert made.spec == pictures.spec and made.provenance == {"init": "real"}
    for c, images in enumerate(made.by_class()):
        own = pictures.train.images_of(pictures.train.of_class(c))
        found = [int((own == image).flatten(1).all(1).nonzero()) for image in images]
        assert len(set(found)) == 4


def test_the_start_is_a_function_of_the_generator(pictures):
    for init in ("real", "noise"):
        first, again, other = (
            SyntheticSet.from_real(pictures.train, 3, stream(seed, 0, "x"), init).images for seed in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_is_normal(pictures):
    noise = SyntheticSet.from_real(shapes(10, 10, 32).train, 10, stream(0, 0, "x"), "noise")
    assert noise.images.shape == (100, 3, 32, 32) and noise.provenance == {"init": "noise"}
    assert float(noise.images.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.images.std()) == pytest.approx(1, abs=0.01)
    assert noise.labels.tolist() == sorted(list(range(10)) * 10)


@pytest.mark.parametrize("init", ["real", "noise"])
@pytest.mark.parametrize("ipc", [-1, 0, 5])
def test_images_a_class_within_what_the_smallest_class_has(pictures, ipc, init):
    name = pictures.spec.classes[1]
    with pytest.raises(
        InputError, match=f"ipc must be 1 to 4, the training images of class '{name}' in shapes, not {ipc}"
    ):
        SyntheticSet.from_real(pictures.train, ipc, stream(0, 0, "x"), init)


def test_an_unknown_start_is_refused(pictures):
    with pytest.raises(InputError, match=r"syn\.init must be real, crops or noise, got 'zeros'"):
        SyntheticSet.from_real(pictures.train, 1, stream(0, 0, "x"), "zeros")


# Mosaics


def normal(*shape: int, double: bool = True) -> Tensor:
    drawn = torch.randn(shape, dtype=torch.float64, generator=stream(0, 0, "mosaic"))
    return drawn if double else drawn.float()


@pytest.mark.parametrize(("factor", "side"), [(1, 8), (2, 8), (3, 12), (4, 8), (8, 8)])
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-10), (False, 1e-4)])
def test_expanding_cuts_and_enlarges_tile_by_tile(factor, side, double, tolerance):
    images = normal(3, 2, side, side, double=double)
    expected = torch.stack([tile for image in images.double() for tile in reference.expand(image, factor)])
    found = expand(images, factor)
    assert found.shape == (3 * factor**2, 2, side, side) and found.dtype == images.dtype
    assert float((found.double() - expected).norm()) <= tolerance * float(expected.norm())


def test_tiles_stay_with_their_image_and_have_its_order():
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, :2, 2:], images[1, 0, 2:, :2] = 5, 7  # above right, below left
    assert expand(images, 2)[:, 0, 0, 0].tolist() == [0, 5, 0, 0, 0, 0, 7, 0]
    assert torch.equal(expand(images, 2)[1], torch.full((1, 4, 4), 5.0))


def test_gradients_go_through_an_expansion():
    images = normal(2, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: expand(x, 2), (images,))
    assert torch.autograd.gradcheck(lambda x: expand(x, 4), (images,))


@pytest.mark.parametrize("factor", [0, -2, 3, 5, 16])
def test_a_factor_that_does_not_divide_the_image_is_refused_in_one_line(factor, pictures):
    message = rf"syn\.factor must divide the side of the images, 8, .* got {factor}; it can be 1, 2, 4, 8$"
    for make in (
        lambda: expand(torch.zeros(1, 3, 8, 8), factor),
        lambda: SyntheticSet.from_real(pictures.train, 1, stream(0, 0, "x"), factor=factor),
        lambda: SyntheticSet(torch.zeros(3, 3, 8, 8), torch.arange(3), pictures.spec, {}, factor),
    ):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize("factor", [2, 4])
def test_a_mosaic_is_made_of_different_downscaled_images_of_its_class(factor):
    real = shapes(3, 20, 8).train
    made = SyntheticSet.from_real(real, 1, stream(0, 0, "x"), factor=factor)
    drawn = real.sample(factor**2, stream(0, 0, "x")).index
    small = 8 // factor
    assert made.images.shape == (3, 3, 8, 8) and made.ipc == 1 and made.factor == factor
    assert len(set(drawn.tolist())) == 3 * factor**2
    for c, image in enumerate(made.images):
        for place in range(factor**2):
            y, x = divmod(place, factor)
            tile = image[:, y * small : (y + 1) * small, x * small : (x + 1) * small]
            whole = real.images_of(drawn[c * factor**2 + place][None])[0]
            assert torch.allclose(tile, reference.average_pool(whole, factor), atol=1e-6)
            assert real.labels[drawn[c * factor**2 + place]] == c


def test_averaging_is_the_bilinear_downscaling_of_the_released_code(pictures):
    real = shapes(2, 8, 8).train
    made = SyntheticSet.from_real(real, 2, stream(0, 0, "x"), factor=2).images
    drawn = real.images_of(real.sample(8, stream(0, 0, "x")).index)
    half = torch.nn.functional.interpolate(drawn, scale_factor=0.5, mode="bilinear", align_corners=False)
    assert torch.allclose(made[0, :, :4, :4], half[0], atol=1e-6)
    assert torch.allclose(made[3, :, 4:, 4:], half[15], atol=1e-6)


def test_given_real_images_are_taken_in_their_order(pictures: Dataset) -> None:
    real = pictures.train
    index = torch.stack([real.of_class(c)[[3, 0, 2, 1]] for c in range(real.num_classes)])  # [C, 4]
    whole = SyntheticSet.from_index(real, index.flatten(), init="centres")
    assert torch.equal(whole.images, real.images_of(index.flatten())) and whole.ipc == 4
    assert whole.labels.tolist() == real.labels[index.flatten()].tolist() and whole.provenance["init"] == "centres"
    mosaic = SyntheticSet.from_index(real, index.flatten(), 2)
    assert (mosaic.ipc, mosaic.factor) == (1, 2)
    small, half = F.avg_pool2d(real.images_of(index[1]), 2), real.spec.image_size // 2
    assert torch.equal(mosaic.images[1, :, :half, half:], small[1]), "row by row"
    assert torch.equal(mosaic.images[1, :, half:, :half], small[2])
    drawn = real.sample(4, stream(0, 0, "x")).index
    as_real = SyntheticSet.from_real(real, 1, stream(0, 0, "x"), factor=2)
    assert torch.equal(SyntheticSet.from_index(real, drawn, 2).images, as_real.images)
    with pytest.raises(InputError, match="every 4 consecutive indices must be images of one class, the tiles of one"):
        SyntheticSet.from_index(real, index.T.flatten(), 2)
    with pytest.raises(InputError, match="every 4 consecutive indices"):
        SyntheticSet.from_index(real, index.flatten()[:-1], 2)
    with pytest.raises(InputError, match=r"syn\.factor must divide"):
        SyntheticSet.from_index(real, index.flatten(), 0)


def test_crops_are_whole_images(pictures):
    whole = SyntheticSet.from_real(pictures.train, 3, stream(0, 0, "x"))
    crops = SyntheticSet.from_real(pictures.train, 3, stream(0, 0, "x"), "crops", 2)
    assert torch.equal(crops.images, whole.images) and crops.factor == 2
    noise = SyntheticSet.from_real(pictures.train, 3, stream(0, 0, "x"), "noise", 2)
    assert noise.images.shape == (9, 3, 8, 8) and noise.factor == 2


def test_a_mosaic_that_takes_more_images_than_a_class_has_is_refused_in_one_line(pictures):
    message = (
        rf"ipc 2 with syn\.factor 2 takes 8 real images per class, but class '{pictures.spec.classes[1]}' in shapes "
        r"has 4; lower ipc to 1 or less, or syn\.factor"
    )
    with pytest.raises(InputError, match=message):
        SyntheticSet.from_real(pictures.train, 2, stream(0, 0, "x"), factor=2)
    assert SyntheticSet.from_real(pictures.train, 1, stream(0, 0, "x"), factor=2).ipc == 1


def test_an_expanded_set_is_sorted_by_class_and_stores_nothing_more(chosen):
    mosaic = SyntheticSet(chosen.images, chosen.labels, chosen.spec, chosen.provenance, 2)
    assert mosaic.ipc == 2 and chosen.expanded() is chosen
    seen = mosaic.expanded()
    assert (seen.ipc, seen.factor, seen.provenance) == (8, 1, chosen.provenance)
    assert torch.equal(seen.images, expand(chosen.images, 2))
    assert seen.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    seen.provenance["more"] = "text"
    assert "more" not in mosaic.provenance


def test_the_factor_is_kept_in_the_file(chosen, tmp_path):
    mosaic = SyntheticSet(chosen.images, chosen.labels, chosen.spec, chosen.provenance, 2)
    mosaic.save(tmp_path / "set")
    read = SyntheticSet.load(tmp_path / "set")
    assert read.factor == 2 and torch.equal(read.images, mosaic.images)
    assert torch.equal(read.expanded().images, mosaic.expanded().images)
    mosaic.save_png(tmp_path / "stored.png")
    mosaic.expanded().save_png(tmp_path / "expanded.png")
    with Image.open(tmp_path / "stored.png") as stored, Image.open(tmp_path / "expanded.png") as seen:
        assert stored.size == (2 * 10 + 2, 3 * 10 + 2) and seen.size == (8 * 10 + 2, 3 * 10 + 2)


# What a set is


def test_the_class_axis_is_a_view(chosen):
    by_class = chosen.by_class()
    assert by_class.shape == (3, 2, 3, 8, 8)
    by_class[1, 0] = 7
    assert (chosen.images[2] == 7).all() and not (chosen.images[1] == 7).any()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.zeros(6, 3, 8, 9),
            torch.arange(3).repeat_interleave(2),
            r"needs images \[3 \* ipc, 3, 8, 8\], got \(6, ",
        ),
        (torch.zeros(6, 1, 8, 8), torch.arange(3).repeat_interleave(2), r"got \(6, 1, 8, 8\)"),
        (torch.zeros(7, 3, 8, 8), torch.zeros(7, dtype=torch.int64), r"got \(7, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8), torch.arange(3), r"got \(3, 8, 8\)"),
        (
            torch.zeros(6, 8, 8, 3),
            torch.arange(3).repeat_interleave(2),
            r"channels come first: images.permute\(0, 3, 1, 2",
        ),
        (
            torch.zeros(0, 3, 8, 8),
            torch.arange(0),
            r"got \(0, 3, 8, 8\); it must have at least one image of each c",
        ),
        (
            torch.zeros(6, 3, 8, 8),
            torch.tensor([0, 0, 0, 1, 2, 2]),
            "6 images needs 2 of each class; got .* 3, ",
        ),
        (torch.zeros(6, 3, 8, 8), torch.tensor([0, 0, 1, 1, 2, 3]), "must lie in 0 to 2, got 3 for image 5"),
        (torch.zeros(6, 3, 8, 8), [-1, 0, 1, 1, 2, 2], "must lie in 0 to 2, got -1 for image 0"),
        (torch.zeros(6, 3, 8, 8), torch.arange(3), r"must be \[6\], one for each image, got \[3\]"),
        (
            torch.zeros(6, 3, 8, 8),
            torch.zeros(6, 3),
            r"whole numbers.*got float32 \[6, 3\]; soft labels are not supported",
        ),
        (torch.zeros(6, 3, 8, 8), torch.zeros(6, dtype=torch.bool), "whole numbers, the index of a class; got bool"),
        (torch.zeros(6, 3, 8, 8), ["a"] * 6, r"labels .* must be a tensor, got list \['a', .*'str'"),
        (torch.zeros(6, 3, 8, 8), None, "labels of a synthetic set must be a tensor, got NoneType None"),
        (
            torch.zeros(6, 3, 8, 8, dtype=torch.int64),
            [0, 0, 1, 1, 2, 2],
            "floating point, .*, or pixels in uint8; got int64",
        ),
        (torch.zeros(6, 3, 8, 8, dtype=torch.cfloat), [0, 0, 1, 1, 2, 2], "got complex64"),
        (torch.zeros(6, 3, 8, 8, dtype=torch.bool), [0, 0, 1, 1, 2, 2], "got bool"),
        (
            torch.zeros(6, 3, 8, 8).to_sparse(),
            [0, 0, 1, 1, 2, 2],
            "dense tensor with values, got float32 .* sparse_coo",
        ),
        (
            torch.zeros(6, 3, 8, 8, device="meta"),
            [0, 0, 1, 1, 2, 2],
            "dense tensor with values, got float32 .* on meta",
        ),
        ([torch.zeros(3, 8, 8)] * 6, [0, 0, 1, 1, 2, 2], "must be one tensor, got a list of 6: torch.stack them"),
        (
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
            [0, 1, 2],
            "got a nested one: torch.stack its parts",
        ),
        ("images.pt", [0, 0, 1, 1, 2, 2], "images of a synthetic set must be a tensor, got str 'images.pt'"),
        (np.full((6, 3, 8, 8), 1e39), [0, 0, 1, 1, 2, 2], "6 of 6 images hold values that are not finite"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(pictures, images, labels, message):
    with pytest.raises(InputError, match=message):
        SyntheticSet(images, labels, pictures.spec)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_refused_by_number(pictures, value):
    images, labels = torch.zeros(6, 3, 8, 8), torch.arange(3).repeat_interleave(2)
    images[4, 2, 7, 7] = value
    with pytest.raises(InputError, match=r"1 of 6 images hold values that are not finite .*, the first is image 4"):
        SyntheticSet(images, labels, pictures.spec)


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (lambda images: images, 0),
        (lambda images: images.half(), 2e-3),
        (lambda images: images.bfloat16(), 2e-2),
        (lambda images: images.double(), 0),
        (lambda images: images.numpy(), 0),
        (lambda images: images.double().numpy(), 0),
        (lambda images: images.tolist(), 0),
        (lambda images: images.numpy().astype(">f8"), 0),
        (lambda images: images.flip(0).numpy()[::-1], 0),
        (lambda images: images.contiguous(memory_format=torch.channels_last), 0),
        (lambda images: images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), 0),
        (lambda images: images.clone().requires_grad_(), 0),
    ],
)
def test_images_in_other_forms_become_float32(chosen, form, tolerance, tmp_path):
    made = SyntheticSet(form(chosen.images), chosen.labels, chosen.spec)
    assert made.images.dtype == torch.float32
    assert torch.allclose(made.images.detach(), chosen.images, rtol=tolerance, atol=tolerance)
    made.save(tmp_path / "set")
    assert torch.equal(SyntheticSet.load(tmp_path / "set").images, made.images)


def test_a_set_that_needs_no_change_holds_the_very_tensors(chosen):
    images = chosen.images.clone().requires_grad_()
    made = SyntheticSet(images, chosen.labels, chosen.spec)
    assert made.images is images and made.labels is chosen.labels


def test_uint8_is_taken_for_pixels(pictures):
    pixels = pictures.train.images[:6]
    made = SyntheticSet(pixels, [0, 0, 1, 1, 2, 2], pictures.spec)
    assert torch.equal(made.images, pictures.train.images_of(torch.arange(6)))
    assert torch.equal(made.to_uint8(), pixels)


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        lambda labels: torch.tensor(labels, dtype=torch.int32),
        lambda labels: torch.tensor(labels, dtype=torch.uint8),
        np.array,
        lambda labels: np.array(labels, dtype=np.int16),
    ],
)
def test_labels_in_other_forms_become_int64_and_images_are_sorted_stably(chosen, form):
    given, order = [2, 0, 1, 2, 0, 1], [1, 4, 2, 5, 0, 3]
    made = SyntheticSet(chosen.images, form(given), chosen.spec)
    assert made.labels.dtype == torch.int64 and made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(made.images, chosen.images[order])
    sorted_already = SyntheticSet(chosen.images, form([0, 0, 1, 1, 2, 2]), chosen.spec)
    assert sorted_already.images is chosen.images


def test_a_range_is_a_list_of_labels(chosen):
    assert SyntheticSet(chosen.images[:3], range(3), chosen.spec).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": (0.25, 0.25, 0.0)}, "std of the spec of shapes must be above 0"),
        ({"std": (0.25, -1, 0.25)}, "std of the spec of shapes must be above 0"),
        ({"mean": (0.5,)}, "needs one mean for each of 3 channels"),
        ({"std": (0.25, 0.25, 1e39)}, "needs one std for each of 3 channels"),
        ({"mean": (0.5, -1e39, 0.5)}, "needs one mean for each of 3 channels"),
        ({"std": (0.25, 0.25, 1e-50)}, "std of the spec of shapes must be above 0"),
        ({"mean": (0.5, 0.5, float("nan"))}, "needs one mean for each of 3 channels"),
        ({"classes": ()}, "has no classes"),
    ],
)
def test_a_specification_by_which_nothing_can_be_normalised_is_refused(chosen, changes, message):
    with pytest.raises(InputError, match=message):
        SyntheticSet(chosen.images, chosen.labels, dataclasses.replace(chosen.spec, **changes))
    with pytest.raises(InputError, match=r"spec must be a DatasetSpec, .*, got str 'cifar10'"):
        SyntheticSet(chosen.images, chosen.labels, "cifar10")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"factor": "2"}, "factor of a synthetic set must be a whole number, got str '2'"),
        ({"factor": 1.5}, r"must be a whole number, got float 1\.5"),
        ({"provenance": None}, "provenance of a synthetic set must be a dict of strings, got None"),
    ],
)
def test_a_factor_or_provenance_that_is_none_is_refused(chosen, more, message):
    with pytest.raises(InputError, match=message):
        SyntheticSet(chosen.images, chosen.labels, chosen.spec, **more)
    assert SyntheticSet(chosen.images, chosen.labels, chosen.spec, factor=np.int64(2)).factor == 2


def test_a_path_may_begin_at_home_and_is_a_path(chosen, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen.save(tmp_path / "set")
    assert torch.equal(SyntheticSet.load("~/set").images, chosen.images)
    with pytest.raises(InputError, match="path of a synthetic set must be text or a path, got None"):
        SyntheticSet.load(None)


def test_a_set_that_was_changed_into_none_is_not_saved(chosen, tmp_path):
    chosen.images[3] = float("nan")
    with pytest.raises(InputError, match="the first is image 3"):
        chosen.save(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_provenance_is_saved_as_text(chosen, tmp_path):
    chosen.provenance |= {"iterations": 12, "path": Path("a")}
    chosen.save(tmp_path / "set")
    assert SyntheticSet.load(tmp_path / "set").provenance["iterations"] == "12"


# How it looks


def test_pixels_are_denormalised_clipped_and_rounded(pictures):
    spec = dataclasses.replace(pictures.spec, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.1))
    images = torch.zeros(3, 3, 8, 8)
    images[1] = 100
    images[2] = -100
    images[0, :, 0, 0] = 1.0
    images[0, 0, 0, 1] = (100.6 / 255 - 0.5) / 0.25
    pixels = SyntheticSet(images, torch.arange(3), spec).to_uint8()
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 3, 8, 8)
    assert pixels[0, :, 5, 5].tolist() == [128, 102, 76]  # half to even: 127.5
    assert pixels[0, :, 0, 0].tolist() == [191, 230, 102] and pixels[0, 0, 0, 1] == 101
    assert (pixels[1] == 255).all() and (pixels[2] == 0).all()


def test_real_images_look_as_they_were(pictures):
    made = SyntheticSet.from_real(pictures.train, 4, stream(0, 0, "x"))
    drawn = pictures.train.sample(4, stream(0, 0, "x")).index
    assert torch.equal(made.to_uint8(), pictures.train.images[drawn])


def test_a_picture_has_a_class_a_row_in_its_own_pixels(chosen, tmp_path):
    chosen.save_png(tmp_path / "set.png")
    with Image.open(tmp_path / "set.png") as picture:
        assert picture.size == (2 * 10 + 2, 3 * 10 + 2) and picture.mode == "RGB"
        pixels = torch.tensor(list(picture.tobytes())).view(32, 22, 3)
    for c in range(3):
        for i in range(2):
            cell = pixels[2 + 10 * c : 10 + 10 * c, 2 + 10 * i : 10 + 10 * i].permute(2, 0, 1)
            assert torch.equal(cell, chosen.to_uint8()[2 * c + i].long())


# Files


def test_a_set_comes_back_as_it_was(chosen, tmp_path):
    chosen.save(tmp_path / "synthetic.safetensors")
    for path in (tmp_path / "synthetic.safetensors", tmp_path, str(tmp_path)):
        loaded = SyntheticSet.load(path)
        assert torch.equal(loaded.images, chosen.images) and torch.equal(loaded.labels, chosen.labels)
        assert loaded.spec == chosen.spec and loaded.provenance == chosen.provenance


def test_a_set_in_eight_bits_is_what_is_seen(chosen, tmp_path):
    bright = SyntheticSet(chosen.images * 3, chosen.labels, chosen.spec, dict(chosen.provenance), chosen.factor)
    bright.save(tmp_path / "small", eight_bits=True)
    bright.save(tmp_path / "whole")
    back = SyntheticSet.load(tmp_path / "small")
    assert back.images.dtype == torch.float32 and torch.equal(back.to_uint8(), bright.to_uint8())
    assert (back.images - bright.images).abs().max() > 0.5, "what lies outside of the range is clipped"
    assert back.spec == bright.spec and back.provenance == bright.provenance
    saved = (tmp_path / "whole").stat().st_size - (tmp_path / "small").stat().st_size
    assert abs(saved - bright.images.numel() * 3) < 64, "a quarter of the bytes, but for the header"
    back.save(tmp_path / "again", eight_bits=True)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "small").read_bytes()


def test_images_in_another_layout_or_being_learned_are_saved_alike(chosen, tmp_path):
    images = chosen.images
    chosen.images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    chosen.save(tmp_path / "other")
    assert torch.equal(SyntheticSet.load(tmp_path / "other").images, images)
    chosen.images = chosen.images.detach().double()
    chosen.save(tmp_path / "double")
    assert SyntheticSet.load(tmp_path / "double").images.dtype == torch.float32


def test_the_file_says_what_the_design_promises(chosen, tmp_path):
    chosen.save(tmp_path / "set")
    with safe_open(tmp_path / "set", framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"images", "labels"}
    assert metadata["dataset"] == "shapes" and metadata["ipc"] == "2" and metadata["factor"] == "1"
    assert json.loads(metadata["mean"]) == [0.5] * 3 and json.loads(metadata["std"]) == [0.25] * 3
    assert json.loads(metadata["classes"]) == list(chosen.spec.classes)
    assert json.loads(metadata["provenance"])["method"] == "dm"
    assert "augmentation" in metadata
    # ranges are in the provenance, of sets that have any
    assert {field.name for field in dataclasses.fields(DatasetSpec)} - {"name", "ranges"} <= set(metadata)


def test_a_file_is_written_whole_or_not_at_all(chosen, tmp_path, monkeypatch):
    path = tmp_path / "set"
    chosen.save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    chosen.images.zero_()
    with pytest.raises(OSError, match="disk full"):
        chosen.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def refused(path: Path, text: str | None = None) -> str:
    """What `load` says; one line that names the file."""
    with pytest.raises(InputError, match=text) as caught:
        SyntheticSet.load(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_what_is_not_there(tmp_path):
    assert str(tmp_path / "set") in refused(tmp_path / "set", "no synthetic set at .*; give the file or the folder")
    refused(tmp_path, r"no synthetic set at .*synthetic\.safetensors")


def test_what_is_not_a_synthetic_set(tmp_path):
    (tmp_path / "text").write_text("hello\nworld")
    refused(tmp_path / "text", "text is a text file, not a synthetic set of this library")
    (tmp_path / "other").write_bytes(to_bytes({"weight": torch.zeros(3)}))
    refused(tmp_path / "other", "is not a synthetic set of this library")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "corrupted and cannot be read .it is empty, 0 bytes")


def test_a_file_cut_anywhere_is_refused(chosen, tmp_path):
    chosen.save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in [*range(0, len(content), 101), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        refused(tmp_path / "cut", "cut is corrupted and cannot be read")


def test_a_bit_that_flipped_anywhere_is_refused_or_changes_nothing_that_matters(chosen, tmp_path):
    chosen.save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, header, 5), *range(header, len(content), 97)]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (tmp_path / "flipped").write_bytes(bytes(flipped))
        try:
            loaded = SyntheticSet.load(tmp_path / "flipped")
        except InputError as error:
            assert "\n" not in str(error)
        else:  # nothing that is covered by a checksum: a blank behind the header
            assert position < header
            assert torch.equal(loaded.images, chosen.images) and loaded.ipc == 2
            assert (loaded.spec, loaded.provenance, loaded.factor) == (chosen.spec, chosen.provenance, chosen.factor)


def rewrite(path: Path, tensors: Mapping[str, Tensor | None], metadata: Mapping[str, str | None]) -> None:
    """The file again, with other content; None takes out."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() | metadata
    facts.pop("sha256", None)
    facts.pop("metadata_sha256", None)
    kept = from_bytes(path.read_bytes()) | dict(tensors)
    path.write_bytes(
        to_bytes(
            {key: value for key, value in kept.items() if value is not None},
            {key: value for key, value in facts.items() if value is not None},
        )
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, None)
            for key in ("classes", "mean", "std", "channels", "image_size", "dataset", "provenance", "factor")
        ),
        ("format", "iidlib.synthetic/2"),
        ("format", None),
        ("factor", "3"),
        ("classes", "[]"),
        ("classes", '"abc"'),
        ("classes", '["a", "b"]'),
        ("classes", "[1, 2, 3]"),
        ("classes", "not json"),
        ("channels", "1"),
        ("channels", "three"),
        ("image_size", "16"),
        ("image_size", "8.5"),
        ("mean", "[]"),
        ("mean", "[0.5, 0.5]"),
        ("mean", "[0.5, 0.5, NaN]"),
        ("mean", '["a", "b", "c"]'),
        ("mean", "null"),
        ("std", "[0.25]"),
        ("std", "[0.25, 0.25, 0]"),
        ("std", "[null, 1, 1]"),
        ("provenance", "[]"),
        ("provenance", "{"),
    ],
)
def test_wrong_metadata_is_refused(key, value, chosen, tmp_path):
    path = tmp_path / "set"
    chosen.save(path)
    rewrite(path, {}, {key: value})
    refused(path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("images", None),
        ("labels", None),
        ("images", torch.full((6, 3, 8, 8), float("nan"))),
        ("images", torch.full((6, 3, 8, 8), float("inf"))),
        ("images", torch.zeros(6, 3, 8, 8, dtype=torch.uint8)),
        ("images", torch.zeros(6, 3, 8, 8, dtype=torch.float16)),
        ("images", torch.zeros(7, 3, 8, 8)),
        ("images", torch.zeros(6, 3, 8, 4)),
        ("images", torch.zeros(0, 3, 8, 8)),
        ("labels", torch.zeros(6, dtype=torch.int64)),
        ("labels", torch.arange(3).repeat_interleave(2).float()),
        ("labels", torch.arange(3)),
    ],
)
def test_wrong_tensors_are_refused(name, tensor, chosen, tmp_path):
    path = tmp_path / "set"
    chosen.save(path)
    rewrite(path, {name: tensor}, {})
    refused(path)


def test_an_empty_set_is_refused(chosen, tmp_path):
    chosen.save(tmp_path / "set")
    rewrite(
        tmp_path / "set", {"images": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}, {"ipc": "0"}
    )
    refused(tmp_path / "set", "corrupted")


def test_the_format_has_a_number_for_the_day_it_changes():
    assert storage.FORMAT == "iidlib.synthetic/1"


def test_equal_sets_are_equal_files(tmp_path: Path) -> None:
    """The format's own writer puts metadata into another order each time."""
    chosen = SyntheticSet.from_real(shapes().train, 2, stream(0, 0, "initial images"))
    contents = set()
    for number in range(8):
        chosen.save(tmp_path / f"{number}.safetensors")
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    (content,) = contents
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0
    assert torch.equal(SyntheticSet.load(tmp_path / "0.safetensors").images, chosen.images)


def test_a_folders_name_that_python_could_not_decode_is_kept_as_it_is(tmp_path, monkeypatch):
    """As it gives them where the locale knows ASCII only."""
    from iidlib.synthetic import storage as module

    given = b"folder:\xc3\xbc".decode("ascii", "surrogateescape")
    spec = dataclasses.replace(shapes(2, 4, 16).spec, name=given)
    made = SyntheticSet(torch.zeros(2, 3, 16, 16), torch.arange(2), spec)
    made.save(tmp_path / "set.safetensors")
    assert SyntheticSet.load(tmp_path / "set.safetensors").spec.name == "folder:ü"
    monkeypatch.setattr(module.sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(module.os, "fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    assert SyntheticSet.load(tmp_path / "set.safetensors").spec.name == given


def test_a_set_that_was_changed_is_saved_as_it_would_be_made(tmp_path):
    made = SyntheticSet(torch.rand(4, 3, 16, 16), torch.tensor([0, 0, 1, 1]), shapes(2, 4, 16).spec)
    made.labels = made.labels.flip(0)
    made.save(tmp_path / "set.safetensors")
    again = SyntheticSet.load(tmp_path / "set.safetensors")
    assert again.labels.tolist() == [0, 0, 1, 1] and torch.equal(again.images, made.images[[2, 3, 0, 1]])


def test_a_folder_that_is_not_there_is_named(tmp_path):
    made = SyntheticSet(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), shapes(2, 4, 16).spec)
    with pytest.raises(InputError, match=r"set.safetensors cannot be written: the folder .*/no/such does not exist$"):
        made.save(tmp_path / "no" / "such" / "set.safetensors")
