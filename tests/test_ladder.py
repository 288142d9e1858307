"""iidlib.bench.ladder: every rung has the same maps, and the network is left as it was. No test looks at a time."""

import copy

import pytest
import torch

from iidlib.bench import LossesDiffer, ladder
from iidlib.engine import compiler_available
from iidlib.networks import build_network, conv_blocks


def test_rungs_and_what_follows_from_their_seconds() -> None:
    network = build_network("convnet2", image_size=8, width=32)
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(3, 5, 3, 8, 8)
    rows = ladder.forward_ladder(network, images, repeats=1)
    assert len(rows) == (6 if compiler_available() else 4)
    assert rows["rung"].is_unique and (rows["seconds"] > 0).all()
    assert rows["gain"][0] == rows["total"][0] == 1
    assert rows["total"].iloc[-1] == pytest.approx(rows["gain"].prod())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert {block.backend for block in conv_blocks(network)} == {"eager"}


def test_a_rung_that_changes_the_maps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = ladder.in_chunks
    monkeypatch.setattr(ladder, "in_chunks", lambda *given: 1.01 * chunks(*given))
    with pytest.raises(LossesDiffer, match=r"chunks of 32: the maps differ by 1.0e-02"):
        ladder.forward_ladder(build_network("convnet1", image_size=8, width=4), torch.randn(2, 2, 3, 8, 8))
