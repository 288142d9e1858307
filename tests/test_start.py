"""Runs that start from the images of a saved set."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from iidlib.config import differing, fingerprint, preset
from iidlib.data import denormalize
from iidlib.distillation import Distillation, distill, starting_from, step
from iidlib.errors import InputError
from iidlib.notes import log_once
from iidlib.runs import RunFolder
from iidlib.synthetic import SyntheticSet
from tests.factories import Crash, crash, settings, stop_at, tiny_dataset

CONFIG = settings("dm", iterations=4, checkpoint__every=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A finished run of another method, seed and length."""
    distill(settings("dm-cm", iterations=3, seed=5), tiny_dataset(), out=tmp_path / "saved")
    return tmp_path / "saved"


def first(init: object, **options: object) -> SyntheticSet:
    shown: list[SyntheticSet] = []
    look = {"on_iteration": lambda done, synthetic: shown.append(synthetic), "iterations_to_show": (0,)}
    distill(CONFIG, tiny_dataset(), init=init, **look, **options)
    return shown[0]


@pytest.mark.parametrize("given", ["folder", "file", "text", "set"])
def test_the_first_images_are_those_of_the_set(given: str, saved: Path) -> None:
    known = SyntheticSet.load(saved)
    init = {"folder": saved, "file": saved / "synthetic.safetensors", "text": str(saved), "set": known}[given]
    start = first(init)
    assert torch.equal(start.images, known.images), "bit for bit, beyond an image's range too"
    _, noted = starting_from(CONFIG, init)
    source = "a set given in Python" if given == "set" else str(init)
    assert start.provenance["init"] == f"set:{noted.digest} from {source}"
    assert torch.equal(known.images, SyntheticSet.load(saved).images), "the set that was given is not learned on"


def test_a_set_of_a_set_stays_as_it_is(saved: Path) -> None:
    known = SyntheticSet.load(saved)
    before = known.images.clone()
    distill(CONFIG, tiny_dataset(), init=known)
    assert torch.equal(known.images, before)


def test_settings_name_the_set_and_so_does_their_fingerprint(saved: Path, tmp_path: Path) -> None:
    result = distill(CONFIG, tiny_dataset(), init=saved, out=tmp_path / "run")
    config, start = starting_from(CONFIG, saved)
    assert result.config == config == RunFolder(tmp_path / "run").config()
    assert config.syn.init == f"set:{start.digest}"
    assert fingerprint(config) != fingerprint(CONFIG)
    assert result.synthetic.provenance["config"] == fingerprint(config)
    assert differing(config)["syn.init"] == config.syn.init
    assert f"syn.init={config.syn.init}" in result.synthetic.provenance["settings"].split()
    other = SyntheticSet.load(saved)
    other.images[0, 0, 0, 0] += 1e-3
    assert starting_from(CONFIG, other)[1].digest != start.digest
    spec = dataclasses.replace(other.spec, mean=(0.1, 0.2, 0.3))
    moved = SyntheticSet(SyntheticSet.load(saved).images, other.labels, spec)
    assert starting_from(CONFIG, moved)[1].digest != start.digest, "what the images mean is part of it"


def test_images_normalised_otherwise_are_converted(saved: Path) -> None:
    known = SyntheticSet.load(saved)
    spec = dataclasses.replace(known.spec, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    start = first(SyntheticSet(known.images, known.labels, spec))
    assert torch.allclose(denormalize(start.images, start.spec), denormalize(known.images, spec), atol=1e-6)
    assert not torch.allclose(start.images, known.images, atol=1e-2)


def of(known: SyntheticSet, **changes: object) -> SyntheticSet:
    return SyntheticSet(known.images, known.labels, dataclasses.replace(known.spec, **changes), {}, known.factor)


GREY = dataclasses.replace(tiny_dataset().spec, channels=1, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: of(s, classes=("a", *s.spec.classes[1:])), "its class 0 is 'a', not '"),
        (lambda s: SyntheticSet(s.images[:6], s.labels[:6], dataclasses.replace(s.spec, classes=("a", "b"))),
         "it has 2 classes, not 4"),
        (lambda s: SyntheticSet(s.by_class()[:, :2].flatten(0, 1), s.labels.view(4, 3)[:, :2].flatten(), s.spec),
         "it has 2 images per class, not 3"),
        (lambda s: SyntheticSet(s.images[..., :8, :8], s.labels, dataclasses.replace(s.spec, image_size=8)),
         "it has 8 pixels per side, not 16"),
        (lambda s: SyntheticSet(s.images[:, :1], s.labels, GREY), "it has 1 channels, not 3"),
        (lambda s: SyntheticSet(s.images, s.labels, s.spec, {}, 2), "it has 2 as its factor, not 1"),
    ],
)  # fmt: skip
def test_a_set_that_does_not_fit_is_named(change: object, message: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    change(SyntheticSet.load(saved)).save(path)
    with pytest.raises(InputError, match=r"cannot be the start of a run on .*: ") as caught:
        distill(CONFIG, tiny_dataset(), init=path, out=tmp_path / "run")
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_set_that_is_only_named_is_asked_for(saved: Path, tmp_path: Path) -> None:
    config, _ = starting_from(CONFIG, saved)
    with pytest.raises(InputError, match=r"syn.init=set:\w{12} is a saved set, which must be given with --init PATH"):
        Distillation(config, tiny_dataset())
    for wrong in ("set:", "set:xyz", "set:0123456789ab ", "Set:0123456789ab", "zeros"):
        with pytest.raises(InputError, match=r"syn\.init must be one of real, crops, noise, centres, easiest, got"):
            preset("dm", changes={"syn.init": wrong})
    with pytest.raises(InputError, match="no synthetic set at"):
        distill(CONFIG, tiny_dataset(), init=tmp_path / "nowhere", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_from_a_set_is_resumed_with_the_same_set_only(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        distill(CONFIG, tiny_dataset(), init=saved, out=tmp_path / "run", **stop_at(3, crash))
    other = SyntheticSet.load(saved)
    other.images[0, 0, 0, 0] += 1
    for init in (None, other):
        with pytest.raises(InputError, match=r"started with syn.init=set:[0-9a-f]{12}, not (real|set:)"):
            distill(CONFIG, tiny_dataset(), init=init, out=tmp_path / "run", resume=True)
    resumed = distill(CONFIG, tiny_dataset(), init=saved, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.synthetic.images, distill(CONFIG, tiny_dataset(), init=saved).synthetic.images)


@pytest.mark.parametrize("method", ["dm", "idm"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_resumed_without_the_set_that_it_was_begun_from(
    method: str, finished: bool, saved: Path, tmp_path: Path
) -> None:
    given = settings(method, iterations=4, checkpoint__every=2, syn__factor=1)
    longer = settings(method, iterations=6, checkpoint__every=2, syn__factor=1)
    if finished:
        distill(given, tiny_dataset(), init=saved, out=tmp_path / "run")
    else:
        with pytest.raises(Crash):
            distill(longer, tiny_dataset(), init=saved, out=tmp_path / "run", **stop_at(3, crash))
    whole = distill(longer, tiny_dataset(), init=saved).synthetic
    config, _ = starting_from(longer, saved)
    shutil.rmtree(saved)
    resumed = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True).synthetic
    assert torch.equal(resumed.images, whole.images)
    assert resumed.provenance["init"] == whole.provenance["init"] == f"{config.syn.init} from {saved}"
    again = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True).synthetic
    assert torch.equal(again.images, whole.images), "a finished run is read without the set too"


def test_a_run_without_a_checkpoint_asks_for_its_set(saved: Path, tmp_path: Path) -> None:
    config, _ = starting_from(CONFIG, saved)
    with pytest.raises(Crash):
        distill(CONFIG, tiny_dataset(), init=saved, out=tmp_path / "run", **stop_at(1, crash))
    with pytest.raises(InputError, match=r"syn.init=set:\w{12} is a saved set, which must be given with --init PATH"):
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="no run to resume"):
        distill(config, tiny_dataset(), out=tmp_path / "nowhere", resume=True)
    finished = distill(CONFIG, tiny_dataset(), init=saved, out=tmp_path / "run", resume=True).synthetic
    assert torch.equal(finished.images, distill(CONFIG, tiny_dataset(), init=saved).synthetic.images)
    # a set that is not its last iteration's, and nothing that the run could resume from
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    finished.provenance["iterations"] = "3"
    finished.save(tmp_path / "run" / "synthetic.safetensors")
    with pytest.raises(InputError, match=r"no checkpoint, so it starts again from set:\w{12}; give"):
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)


def test_a_start_from_a_set_of_another_dataset_is_reported(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Test images of the one may be training images of the other, as with the held-out images of validation:NAME."""
    log_once.cache_clear()
    starting_from(CONFIG, saved)
    assert not caplog.records
    starting_from(preset("dm", "validation:shapes", 2, "ci"), saved)
    assert "the run on validation:shapes starts from a set made from shapes; test images" in caplog.text


def test_a_finished_run_is_only_read_whatever_it_would_take_to_make_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "check_memory", lambda *given, **named: pytest.fail("made again"))
    config = settings("dm-cm", iterations=3, seed=5)
    assert len(distill(config, tiny_dataset(), out=saved, resume=True).metrics) == 2
