"""iidlib.engine.staging: two blocks of host memory, neither overwritten before it has been copied."""

import pytest
import torch

from iidlib.engine import staging
from iidlib.engine.staging import Staging


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What events of a device are asked for; the stand-in does everything at once."""
    asked: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert not enable_timing
            Event.made += 1
            self.name = f"event {Event.made}"

        def record(self, stream: object) -> None:
            asked.append(f"{self.name} recorded on {stream}")

        def synchronize(self) -> None:
            asked.append(f"{self.name} awaited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(staging, "_copies_are_queued", lambda device: True)
    memory = staging._host_memory
    monkeypatch.setattr(
        staging,
        "_host_memory",
        lambda like, *, locked: asked.append("locked" if locked else "pageable") or memory(like, locked=False),
    )
    return asked


def test_a_block_is_filled_once_its_last_copy_is_complete(log):
    staged = Staging(torch.zeros(3, 2))
    assert log == ["locked"] * 2
    log.clear()
    for _ in range(3):
        staged.block()
        staged.send(3)
    first, second = ([f"event {n} awaited", f"event {n} recorded on the stream of cpu"] for n in (1, 2))
    assert log == [*first, *second, *first]


def test_the_buffer_receives_the_rows_that_were_filled():
    buffer = torch.zeros(3, 2)
    staged, place = Staging(buffer), buffer.data_ptr()
    blocks = []
    for rows, value in ((3, 1.0), (2, 2.0), (1, 3.0)):
        block = staged.block()
        block[:rows] = value
        blocks.append(block)
        staged.send(rows)
    assert buffer[:, 0].tolist() == [3, 2, 1] and buffer.data_ptr() == place
    assert blocks[0].data_ptr() == blocks[2].data_ptr() != blocks[1].data_ptr()


def test_without_a_queue_the_memory_is_pageable_and_nothing_is_awaited(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", None)
    staged = Staging(torch.zeros(1))
    staged.block().fill_(2)
    staged.send(1)
    assert not staged.block().is_pinned() and float(staged._buffer) == 2
