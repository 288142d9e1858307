"""Counted operations and bytes are those of the networks; ceilings are rates. No test looks at a time."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from iidlib.bench import PerClassLoop, ceilings
from iidlib.config import preset
from iidlib.data import shapes
from iidlib.distillation import Distillation
from iidlib.networks import build_network, frozen


def mega(network: str, side: int, *, backward: bool) -> float:
    """MFLOP of one image through a feature map, with or without the gradient on the image."""
    model = frozen(build_network(network, image_size=side))
    image = torch.zeros(1, 3, side, side, requires_grad=backward)

    def work() -> None:
        fmap = model.feature_map(image)
        if backward:
            fmap.sum().backward()

    return ceilings.count_flops(work) / 1e6


@pytest.mark.parametrize(
    ("network", "side", "forward", "with_gradient"),
    [("convnet3", 32, 101.45, 202.9), ("convnet4", 64, 424.7, 849.4), ("resnet18", 32, 1110.8, 2221.7)],
)
def test_counted_operations_are_those_of_the_networks(
    network: str, side: int, forward: float, with_gradient: float
) -> None:
    assert mega(network, side, backward=False) == pytest.approx(forward, rel=1e-3)
    assert mega(network, side, backward=True) == pytest.approx(with_gradient, rel=1e-3)


def test_counted_operations_of_an_iteration() -> None:
    images = shapes(num_classes=2, per_class=8)
    settings = {"match.width": 128, "match.batch_real": 4, "compute.compile": "off"}
    run = Distillation(preset("dm", images.name, 2, "paper", settings), images)
    loop = PerClassLoop(run)
    assert ceilings.count_flops(lambda: loop.step(0)) / 1e6 == pytest.approx(2 * (4 * 101.45 + 2 * 202.9), rel=1e-3)
    # a covariance is one product [K, N P] x [N P, K]; the synthetic one's gradient takes two more
    run = Distillation(preset("dm-cm", images.name, 2, "paper", settings), images)
    more = ceilings.count_flops(lambda: PerClassLoop(run).step(0)) - ceilings.count_flops(lambda: loop.step(0))
    assert more == 2 * (2 * 128 * 128 * 16) * (4 + 2 + 2 * 2)


def test_matrix_product_rate_is_a_rate() -> None:
    rate = ceilings.matrix_product_rate(torch.device("cpu"), size=64, repeats=2)
    assert 0 < rate < 1e6


def test_the_matrix_product_is_one_of_random_numbers_and_in_the_precision_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spread: list[float] = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: (spread.append(float(a.std())), product(a, b, out=out)))
    ceilings.matrix_product_rate(torch.device("cpu"), size=64, repeats=1)
    assert spread[0] == pytest.approx(1, abs=0.1)
    before = torch.backends.cuda.matmul.allow_tf32
    for name, flag in (("fp32", False), ("tf32", True)):
        with ceilings._products_in(torch.device("cuda"), name):
            assert torch.backends.cuda.matmul.allow_tf32 is flag
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_a_gpus_seconds_are_taken_while_it_has_all_work_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append(f"sleep {cycles / 1e9:g}e9"))
    seconds = ceilings.device_seconds_of(lambda: log.append("call"), torch.device("cuda"), host_seconds=0.5)
    assert seconds == 0.25 and log == ["wait", "sleep 2e9", "event", "call", "event", "wait"]
    assert ceilings.device_seconds_of(lambda: log.append("call"), torch.device("cpu"), host_seconds=1.0) is None
    assert len(log) == 6


def test_copy_rate_is_a_rate() -> None:
    assert 0 < ceilings.copy_rate(torch.device("cpu"), megabytes=1, repeats=2) < 1e6


def test_bytes_are_those_read_and_written_and_views_are_free() -> None:
    a, b = torch.zeros(10, 4), torch.zeros(10, 4)
    assert ceilings.count_bytes(lambda: a + b) == 3 * 160
    assert ceilings.count_bytes(lambda: a.t().reshape(4, 2, 5).unbind()[0]) == 0
    assert ceilings.count_bytes(lambda: a.add_(b)) == 3 * 160, "an operation in place reads and writes its target"
    assert ceilings.count_bytes(lambda: a.sum()) == 160 + 4


def test_bytes_of_a_backward_pass_count() -> None:
    image, weight = torch.zeros(1, 3, 8, 8, requires_grad=True), torch.zeros(5, 3, 3, 3)
    forward = ceilings.count_bytes(lambda: F.conv2d(image, weight, padding=1))
    assert forward == 4 * (3 * 64 + 5 * 27 + 5 * 64)
    both = ceilings.count_bytes(lambda: F.conv2d(image, weight, padding=1).sum().backward())
    assert both > 2 * forward
