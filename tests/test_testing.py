"""iidlib.training.testing: networks tested together reach what they reach alone."""

import copy
import logging

import pytest
import torch

from iidlib.networks import Network, build_network
from iidlib.rng import stream
from iidlib.training import reached, reached_together, testing
from tests.factories import tiny_dataset
from tests.fake_cuda import BROKEN, fake_cuda


def networks(name: str = "convnet2") -> list[Network]:
    """Two random networks, one that has diverged, and one with the same outputs for every image."""
    made = [
        build_network(name, num_classes=4, image_size=16, width=4, generator=stream(number, 0, "network"))
        for number in range(4)
    ]
    with torch.no_grad():
        next(made[2].parameters())[0] = torch.nan
        for parameter in made[3].parameters():
            parameter.zero_()
        list(made[3].parameters())[-1].copy_(torch.arange(4.0))
    return made


@pytest.mark.parametrize("size", [36, 16, 9, 5], ids=["one batch", "the last smaller", "equal", "many"])
def test_a_recorded_test_of_several_networks_is_that_of_each_alone(size, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    monkeypatch.setattr(testing, "BATCH", size)
    cuda, real, tested = fake_cuda(monkeypatch), tiny_dataset().test, networks()
    found = reached_together([network.train() for network in tested], real)
    assert found == [reached(network, real) for network in networks()]
    assert [one.outcome for one in found] == ["trained", "trained", "diverged", "constant"]
    assert not caplog.records and not any(network.training for network in tested)
    assert cuda.log.count("replay") == 1 + -(-len(real) // size), "one to verify the recording, then one per batch"


def test_networks_that_have_all_diverged_need_no_warning_about_the_recording(monkeypatch, caplog):
    fake_cuda(monkeypatch)
    real, tested = tiny_dataset().test, networks()[2:3] * 2
    assert [one.outcome for one in reached_together(tested, real)] == ["diverged"] * 2
    assert not caplog.records


def test_running_statistics_are_used_and_stay(monkeypatch):
    monkeypatch.setattr(testing, "BATCH", 16)
    fake_cuda(monkeypatch)
    real = tiny_dataset().test
    tested = [
        build_network("convnet3-bn", num_classes=4, image_size=16, width=4, generator=stream(number, 0, "network"))
        for number in range(2)
    ]
    for network in tested:
        network(real.images_of(torch.arange(12)))  # in training mode
    before = copy.deepcopy(tested)
    assert reached_together(tested, real) == [reached(network, real) for network in before]
    for mine, other in zip(tested, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("problem", ["wrong", "breaks"])
def test_without_a_recording_that_is_right_the_test_is_the_same(problem, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    cuda, real = fake_cuda(monkeypatch), tiny_dataset().test

    def break_capture() -> None:
        raise RuntimeError(BROKEN)

    if problem == "wrong":  # the second batch in place of the first
        monkeypatch.setattr(testing, "BATCH", 16)
        cuda.wrong = True
    else:
        cuda.breaks = break_capture
    found = reached_together(networks(), real)
    assert found == [reached(network, real) for network in networks()]
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("no CUDA graph of testing (")
    assert cuda.log.count("replay") == (problem == "wrong")


def test_on_a_cpu_every_network_is_tested_alone(monkeypatch):
    monkeypatch.setattr(testing, "_Test", None)
    real, tested = tiny_dataset().test, networks()
    assert reached_together(tested, real) == [reached(network, real) for network in tested]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["convnet3", "resnet18"])
def test_a_recorded_test_on_a_gpu_is_that_of_each_alone(name, caplog):
    real = tiny_dataset(200, 32).test.to("cuda")
    width = 16 if name == "convnet3" else None
    tested = [
        build_network(name, num_classes=4, image_size=32, width=width, generator=stream(number, 0, "network")).cuda()
        for number in range(3)
    ]
    for mine, alone in zip(reached_together(tested, real), [reached(one, real) for one in tested], strict=True):
        assert mine.outcome == alone.outcome and abs(mine.accuracy - alone.accuracy) <= 200 / len(real)
    assert not caplog.records
