"""iidlib.engine.buffers: tensors in one block, drawn ahead by a thread, and loaded in the order of the iterations."""

import threading

import pytest
import torch

from iidlib.engine import LoadedAhead, Packed
from iidlib.engine.staging import Staging

CPU = torch.device("cpu")
FIELDS = {
    "index": ((3,), torch.int64),
    "op": ((5,), torch.uint8),
    "u": ((2, 3), torch.float32),
    "one": ((), torch.int64),
}


def fill(iteration: int, draws: Packed) -> None:
    draws["index"].fill_(iteration)
    draws["u"].fill_(iteration / 2)


def test_a_block_holds_every_tensor_at_an_aligned_place_of_its_own():
    packed = Packed(FIELDS)
    for number, (name, (shape, dtype)) in enumerate(FIELDS.items(), 1):
        assert packed[name].shape == shape and packed[name].dtype == dtype
        assert (packed[name].data_ptr() - packed.block.data_ptr()) % 16 == 0
        packed[name].fill_(number)
    assert [int(packed[name].flatten()[0]) for name in FIELDS] == [1, 2, 3, 4]
    other = Packed(FIELDS, packed.block.clone())
    assert all(torch.equal(other[name], packed[name]) for name in FIELDS)


@pytest.mark.parametrize("ahead", [False, True])
def test_buffers_hold_the_iteration_that_was_loaded_in_any_order(ahead):
    loaded = LoadedAhead(FIELDS, fill, CPU, ahead=ahead)
    place = loaded.buffers["index"].data_ptr()
    for iteration in (0, 1, 2, 3, 4, 9, 10, 2, 3):
        loaded.load(iteration)
        assert loaded.buffers["index"].tolist() == [iteration] * 3
        assert loaded.buffers["u"].unique().tolist() == [iteration / 2]
    assert loaded.buffers["index"].data_ptr() == place
    loaded.close()


def test_the_next_iteration_is_drawn_in_another_thread_while_this_one_is_used():
    seen: dict[int, str] = {}
    drawn = threading.Event()

    def watched(iteration: int, draws: Packed) -> None:
        seen[iteration] = threading.current_thread().name
        fill(iteration, draws)
        if iteration == 1:
            drawn.set()

    loaded = LoadedAhead(FIELDS, watched, CPU, ahead=True)
    loaded.load(0)
    assert drawn.wait(10), "iteration 1 is drawn before it is asked for"
    assert loaded.buffers["index"].tolist() == [0, 0, 0], "in a block of its own"
    assert all(name.startswith("iidlib-draws") for name in seen.values())
    loaded.load(1)
    assert loaded.buffers["index"].tolist() == [1, 1, 1]
    loaded.close()


def test_a_block_is_filled_again_only_after_its_copy_has_ended(monkeypatch):
    order: list[str] = []
    blocks = Staging.block, Staging.send

    def block(staging: Staging) -> torch.Tensor:
        order.append(f"wait {staging._next}")
        return blocks[0](staging)

    def send(staging: Staging, rows: int) -> None:
        order.append(f"send {staging._next}")
        blocks[1](staging, rows)

    monkeypatch.setattr(Staging, "block", block)
    monkeypatch.setattr(Staging, "send", send)
    loaded = LoadedAhead(FIELDS, fill, CPU, ahead=True)
    for iteration in range(3):
        loaded.load(iteration)
    loaded.close()
    assert order == ["wait 0", "send 0", "wait 1", "send 1", "wait 0", "send 0", "wait 1"]


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_loaded():

    def failing(iteration: int, draws: Packed) -> None:
        if iteration == 2:
            raise ValueError("no such images")

    loaded = LoadedAhead(FIELDS, failing, CPU, ahead=True)
    loaded.load(0)
    loaded.load(1)
    with pytest.raises(ValueError, match="no such images"):
        loaded.load(2)
    loaded.load(1)  # draws iteration 2 ahead, which nobody asks for
    loaded.load(5)
    loaded.close()
