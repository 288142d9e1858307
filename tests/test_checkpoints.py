"""Checkpoints: written whole or not at all, read whole or not at all."""

import json
import random
from pathlib import Path

import pytest
import torch

from iidlib.errors import InputError
from iidlib.runs import Checkpoints
from iidlib.runs import checkpoints as module
from iidlib.runs import environment as runs_environment
from iidlib.runs.environment import conditions, mismatches
from tests.factories import one_line

TENSORS = {"images": torch.arange(6.0).view(2, 3), "momentum": torch.ones(2, 3)}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    (tmp_path / "checkpoints").mkdir()
    return Checkpoints(tmp_path / "checkpoints")


def test_the_newest_checkpoint_comes_back(checkpoints):
    assert checkpoints.load() is None
    for iteration in (5, 20, 100):
        checkpoints.save(iteration, {name: x + iteration for name, x in TENSORS.items()}, {"data": "abc", "pool": ""})
    state, facts = checkpoints.load()
    assert facts == {"iteration": 100, "data": "abc", "pool": ""}
    assert set(state) == set(TENSORS) and all(torch.equal(state[name], TENSORS[name] + 100) for name in state)


def test_two_checkpoints_are_kept_by_number_and_not_by_name(checkpoints):
    for iteration in (2, 9, 10, 9_999_999, 10_000_000):
        path = checkpoints.save(iteration, TENSORS, {})
        assert path.is_file()
    left = sorted(path.name for path in (checkpoints.folder).iterdir())
    assert left == sorted(f"{k:07d}.{ending}" for k in (9_999_999, 10_000_000) for ending in ("safetensors", "json"))
    assert checkpoints.load()[1]["iteration"] == 10_000_000


def test_tensors_of_any_layout_that_are_being_learned_are_saved_as_they_are(checkpoints):
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    checkpoints.save(1, {"images": images, "other": images.detach().contiguous(memory_format=torch.channels_last)}, {})
    state, _ = checkpoints.load()
    assert torch.equal(state["images"], images) and torch.equal(state["other"], images)
    assert not state["images"].requires_grad


def test_a_checkpoint_half_written_is_not_one(checkpoints, monkeypatch):
    checkpoints.save(1, TENSORS, {})
    write = module.atomic_write

    def stop_before_json(path: Path, content: bytes | str) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(module, "atomic_write", stop_before_json)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, TENSORS, {})
    assert checkpoints.load()[1]["iteration"] == 1


def test_other_files_among_the_checkpoints_are_left_alone(checkpoints):
    (checkpoints.folder / "notes.safetensors").write_text("mine")
    (checkpoints.folder / "notes.json").write_text("mine")
    for iteration in (1, 2, 3):
        checkpoints.save(iteration, TENSORS, {})
    assert checkpoints.load()[1]["iteration"] == 3
    assert (checkpoints.folder / "notes.safetensors").read_text() == "mine"


@pytest.mark.parametrize("ending", ["safetensors", "json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_corrupted_checkpoint_is_passed_over(checkpoints, ending, content, caplog):
    checkpoints.save(1, TENSORS, {})
    checkpoints.save(2, TENSORS, {})
    for number, left in ((2, 1), (1, None)):
        (checkpoints.folder / f"{number:07d}.{ending}").write_bytes(content)
        if left is None:
            with pytest.raises(InputError, match=r"all checkpoints in .* are corrupted; start again") as caught:
                checkpoints.load()
            one_line(caught)
        else:
            assert checkpoints.load()[1]["iteration"] == left
            (record,) = caplog.records
            assert "0000002.safetensors is corrupted" in record.message and "\n" not in record.message


def test_no_flipped_bit_is_taken_for_a_checkpoint(checkpoints):
    """200 places over both files: the checkpoint before comes back, never something wrong."""
    checkpoints.save(1, TENSORS, {"data": "abc"})
    newest = checkpoints.save(2, {name: x + 1 for name, x in TENSORS.items()}, {"data": "abc"})
    whole = {path: path.read_bytes() for path in (newest, newest.with_suffix(".json"))}
    draw = random.Random(0)
    for number in range(200):
        path = list(whole)[number % 2]
        corrupted = bytearray(whole[path])
        corrupted[draw.randrange(len(corrupted))] ^= 1 << draw.randrange(8)
        path.write_bytes(corrupted)
        state, facts = checkpoints.load()
        if path.suffix == ".json" and facts["iteration"] == 2:  # white space flipped to other white space
            assert facts == {"iteration": 2, "data": "abc"}
            assert json.loads(corrupted) == json.loads(whole[path])
        else:
            assert facts == {"iteration": 1, "data": "abc"}
            assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)
        path.write_bytes(whole[path])
    assert checkpoints.load()[1]["iteration"] == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_passed_over(checkpoints, share):
    checkpoints.save(1, TENSORS, {})
    newest = checkpoints.save(2, TENSORS, {})
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    assert checkpoints.load()[1]["iteration"] == 1


# Conditions


def test_threads_are_no_mismatch_and_what_was_not_kept_cannot_be_compared():
    now = conditions(torch.device("cpu"), "off")
    assert now["kernels"] is False and now["threads"] == torch.get_num_threads() and json.loads(json.dumps(now)) == now
    assert mismatches(now, now) == mismatches({}, now) == mismatches(now | {"threads": 99}, now) == {}
    assert mismatches(now | {"torch": "2.0"}, now) == {"torch": ["2.0", torch.__version__]}


def test_conditions_on_cuda_include_what_rounds_there_and_those_of_a_cpu_stay(monkeypatch):
    cpu = conditions(torch.device("cpu"), "off", "tf32")
    assert list(cpu) == ["iidlib", "torch", "device", "kernels", "threads"]
    assert cpu == conditions(torch.device("cpu"), "off")
    monkeypatch.setattr(runs_environment, "device_kind", lambda device: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    cuda = conditions(torch.device("cuda"), "off", "tf32")
    assert (cuda["cudnn"], cuda["precision"], cuda["threads"], cuda["kernels"]) == (91002, "tf32", None, False)
    before_they_were_recorded = {name: cuda[name] for name in cpu}
    assert mismatches(before_they_were_recorded, cuda) == {}
    assert mismatches(cuda, cuda | {"cudnn": 92000}) == {"cudnn": [91002, 92000]}
