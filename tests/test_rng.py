"""iidlib.rng: draws are functions of seed, iteration and name, the same in every process and version."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from iidlib.rng import stream, stream_seed

SEEDS, ITERATIONS, NAMES = st.integers(0, 2**63), st.integers(0, 10**6), st.text(max_size=20)


def test_seeds_stay_what_they_are():
    """A number written down with its seed must be drawn again by later versions."""
    assert stream_seed(0, 0, "real batch") == 2820657506995902253
    assert stream_seed(1, 20_000, "network") == 4479669777925015037


@given(SEEDS, ITERATIONS, NAMES)
def test_seeds_fit_every_generator(seed, iteration, name):
    assert 0 <= stream_seed(seed, iteration, name) < 2**63
    assert stream(seed, iteration, name).initial_seed() == stream_seed(seed, iteration, name)


@given(SEEDS, ITERATIONS, NAMES)
def test_the_same_three_give_the_same_draws_and_any_other_gives_others(seed, iteration, name):
    drawn = torch.rand(4, generator=stream(seed, iteration, name))
    assert torch.equal(drawn, torch.rand(4, generator=stream(seed, iteration, name)))
    for other in ((seed + 1, iteration, name), (seed, iteration + 1, name), (seed, iteration, name + "x")):
        assert not torch.equal(drawn, torch.rand(4, generator=stream(*other)))


def test_no_two_of_many_neighbours_collide():
    seeds = {
        stream_seed(seed, iteration, name)
        for seed in range(20)
        for iteration in range(50)
        for name in ("real batch", "augmentation", "network", "expert")
    }
    assert len(seeds) == 20 * 50 * 4
    assert stream_seed(1, 11, "x") != stream_seed(11, 1, "x") and stream_seed(1, 2, "3/x") != stream_seed(1, 23, "/x")


def test_neighbours_are_unrelated():
    drawn = torch.stack([torch.randn(1000, generator=stream(0, iteration, "x")) for iteration in range(20)])
    off_diagonal = torch.corrcoef(drawn) - torch.eye(20)
    assert off_diagonal.abs().max() < 0.15


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=stream(0, 0, "x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_is_on_the_device_asked_for():
    assert stream(0, 0, "x").device.type == "cpu" and stream(0, 0, "x", torch.device("cpu")).device.type == "cpu"
