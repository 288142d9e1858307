"""iidlib.synthetic.storage: checksums cover all that an evaluation reads; files of version 0.1.0 are still read."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from iidlib.data import data_dir, shapes
from iidlib.errors import InputError
from iidlib.notes import log_once
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = SyntheticSet.from_real(shapes(3, 5, 8).train, 2, stream(0, 0, "initial images"))
    made.provenance |= {"method": "dm", "seed": "0"}
    made.save(tmp_path / "set")
    return tmp_path / "set"


def header_of(path: Path) -> dict:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(path: Path, header: dict) -> None:
    """The same tensors behind another header, in the order in which it is given."""
    content = path.read_bytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :])


CHANGED = {
    "augmentation": "none",
    "channels": "1",
    "classes": '["a", "b", "c"]',
    "dataset": "cifar10",
    "factor": "2",
    "image_size": "4",
    "ipc": "3",
    "mean": "[0.5, 0.5, 0.6]",
    "provenance": '{"method": "iid-dm", "seed": "0"}',
    "std": "[0.25, 0.25, 0.26]",
    "stored": "uint8",
    "sha256": "0" * 64,
    "metadata_sha256": "0" * 64,
    "format": "iidlib.synthetic/2",
    "more": "text",
}


@pytest.mark.parametrize("key", CHANGED)
def test_any_field_of_the_metadata_that_was_changed_is_found(saved, key):
    header = header_of(saved)
    assert header["__metadata__"].get(key) != CHANGED[key]
    header["__metadata__"][key] = CHANGED[key]
    with_header(saved, header)
    with pytest.raises(InputError, match=r"corrupted|is not a synthetic set") as caught:
        SyntheticSet.load(saved)
    assert "\n" not in str(caught.value)


def test_every_field_is_among_those_that_are_changed(saved):
    assert set(header_of(saved)["__metadata__"]) <= set(CHANGED)


@pytest.mark.parametrize("key", sorted(set(CHANGED) - {"stored", "more", "metadata_sha256"}))
def test_a_field_that_is_gone_is_found(saved, key):
    header = header_of(saved)
    del header["__metadata__"][key]
    with_header(saved, header)
    with pytest.raises(InputError, match=r"corrupted|is not a synthetic set"):
        SyntheticSet.load(saved)


def test_every_digit_of_mean_and_std_counts(saved):
    for key in ("mean", "std"):
        text = header_of(saved)["__metadata__"][key]
        for place in [place for place, sign in enumerate(text) if sign.isdigit()]:
            header = header_of(saved)
            header["__metadata__"][key] = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
            changed = saved.with_name("changed")
            changed.write_bytes(saved.read_bytes())
            with_header(changed, header)
            with pytest.raises(
                InputError, match=r"its metadata \(classes, mean, std, ...\) have changed since they were wri"
            ):
                SyntheticSet.load(changed)


def test_the_order_of_the_header_does_not_matter(saved, caplog):
    before, header = SyntheticSet.load(saved), header_of(saved)
    header["__metadata__"] = dict(reversed(header["__metadata__"].items()))
    with_header(saved, dict(reversed(header.items())))
    after = SyntheticSet.load(saved)
    assert torch.equal(after.images, before.images) and after.spec == before.spec and not caplog.records


def as_version_0_1_0(path: Path, **changes: str) -> None:
    """The file as version 0.1.0 wrote it: a checksum of the tensors alone."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
    del metadata["metadata_sha256"]
    tensors = from_bytes(path.read_bytes())
    digest = hashlib.sha256(tensors["images"].numpy().tobytes())
    digest.update(tensors["labels"].numpy().tobytes())
    assert metadata["sha256"] == digest.hexdigest()
    path.write_bytes(to_bytes(tensors, metadata))


def test_a_set_of_version_0_1_0_is_read_with_one_warning(saved, caplog):
    before = SyntheticSet.load(saved)
    as_version_0_1_0(saved)
    log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "iidlib"):
        after = [SyntheticSet.load(saved) for _ in range(3)][-1]
    assert torch.equal(after.images, before.images) and after.spec == before.spec
    (record,) = caplog.records
    assert "written by iidlib 0.1.0, whose checksum does not cover the metadata" in record.getMessage()
    after.save(saved)
    caplog.clear()
    assert SyntheticSet.load(saved).spec == before.spec and not caplog.records


def test_a_file_without_any_checksum_is_of_no_version(saved):
    as_version_0_1_0(saved)
    header = header_of(saved)
    del header["__metadata__"]["sha256"]
    with_header(saved, header)
    with pytest.raises(InputError, match=r"corrupted .*the checksum of its images and labels is missing"):
        SyntheticSet.load(saved)


def test_numbers_of_version_0_1_0_that_are_none_in_float32_are_refused(saved):
    as_version_0_1_0(saved, std="[0.25, 0.25, 1e39]")
    with pytest.raises(InputError, match="needs one std for each of 3 channels"):
        SyntheticSet.load(saved)


def test_a_set_that_was_read_does_not_change_with_its_file(saved):
    read = SyntheticSet.load(saved)
    before = read.images.clone()
    with saved.open("r+b") as file:
        file.seek(-200, 2)
        file.write(bytes(100))
    assert torch.equal(read.images, before)


@pytest.mark.parametrize("changes", [{"ipc": "3"}, {"ipc": "two"}, {"metadata_shb256": "0" * 64}])
def test_a_set_without_the_checksum_that_version_0_1_0_did_not_write_is_refused(saved, changes):
    as_version_0_1_0(saved, **changes)
    with pytest.raises(InputError, match="corrupted"):
        SyntheticSet.load(saved)


def test_version_0_1_0_reads_what_this_one_writes(saved):
    """The key that it compares is there, over what it takes it to be over, and the format is the one it knows."""
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    digest = hashlib.sha256(from_bytes(saved.read_bytes())["images"].numpy().tobytes())
    digest.update(from_bytes(saved.read_bytes())["labels"].numpy().tobytes())
    assert metadata["sha256"] == digest.hexdigest() and metadata["format"] == "iidlib.synthetic/1"


def test_the_sets_that_come_with_a_checkout_have_the_checksum_of_their_metadata():
    paths = sorted(data_dir("distilled").rglob("*.safetensors"))
    assert paths
    for path in paths:
        assert "metadata_sha256" in header_of(path)["__metadata__"], path.name
        assert SyntheticSet.load(path).spec.name == "cifar10"
