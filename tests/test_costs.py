"""Predicted costs: counted as torch counts, near an estimate by hand, and replaced by what was measured."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from iidlib.config import preset
from iidlib.config.recipes import BASES
from iidlib.data.registry import SOURCES
from iidlib.data.spec import SPECS
from iidlib.distillation import METHODS
from iidlib.errors import InputError
from iidlib.experiments import EXPERIMENTS, Cell, rows_of
from iidlib.experiments.costs import DATASET_SIZES, DEVICES, _terms, costs, device_model
from iidlib.experiments.layers import network_work
from iidlib.networks import empty_network
from tests.result_rows import rows

BATCH = 2


def counted(network: torch.nn.Module, images: torch.Tensor, classes: int, *, training: bool, backward: bool) -> float:
    """FLOP per image as torch counts them."""
    for weights in network.parameters():
        weights.requires_grad_(training)
    with FlopCounterMode(display=False) as counter:
        out = network(images) if training else network.embed(images)  # type: ignore[operator]
        if backward:
            out.sum().backward()
    return counter.get_total_flops() / len(images)


@pytest.mark.parametrize(
    ("name", "side", "channels", "width", "classes"),
    [("convnet3", 32, 3, 128, 10), ("convnet4", 64, 3, 128, 200), ("convnet2", 28, 1, 32, 10),
     ("convnet3-bn", 32, 3, 64, 100), ("resnet18", 32, 3, 0, 10), ("resnet18", 64, 3, 0, 200),
     ("alexnet", 32, 3, 0, 10), ("vgg11", 64, 3, 0, 10)],
)  # fmt: skip
def test_operations_are_those_that_torch_counts(name: str, side: int, channels: int, width: int, classes: int) -> None:
    wide = {"width": width} if width else {}
    work = network_work(name, side=side, classes=classes, channels=channels, **wide)
    with torch.device("meta"):
        network = empty_network(name, num_classes=classes, image_size=side, channels=channels, **wide)
        images = torch.randn(BATCH, channels, side, side)
    assert work.forward.flop == counted(network, images, classes, training=False, backward=False)
    assert work.training.flop == counted(network, images, classes, training=True, backward=True)
    images.requires_grad_()
    assert work.image_gradient.flop == counted(network, images, classes, training=False, backward=True)


def test_bytes_are_those_of_the_maps() -> None:
    """One block of width 2 on an image of 4x4 pixels: maps of 48, 32 and 8 numbers."""
    work = network_work("convnet1", side=4, classes=10, width=2)
    assert work.forward.bytes == 4 * ((48 + 32) + (32 + 8))
    backward_of_norm = 4 * (32 + 8 + 32)
    assert work.image_gradient.bytes - work.forward.bytes == backward_of_norm + 4 * (32 + 48)
    assert work.training.bytes == work.image_gradient.bytes, "the weights' gradient reads what the image's would write"
    with pytest.raises(KeyError):
        network_work("mlp", side=32, classes=10)


# An estimate by hand for an H100 in TF32 with fused kernels and recorded steps, itself right within 40 %: minutes of
# 20,000 iterations on CIFAR-10, and seconds of the evaluation of five networks.
BY_HAND = {
    ("dm", 1): (0.9, 1), ("dm", 10): (1.0, 1.6), ("dm", 50): (1.2, 6),
    ("iid-dm", 1): (0.9, 1), ("iid-dm", 10): (1.8, 1.6), ("iid-dm", 50): (4.8, 6),
    ("idm", 1): (19, 1), ("idm", 10): (5.3, 5), ("idm", 50): (6.0, 23),
    ("iid-idm", 1): (20, 1), ("iid-idm", 10): (8.3, 5), ("iid-idm", 50): (21, 23),
}  # fmt: skip


@pytest.mark.parametrize(("method", "ipc"), BY_HAND)
def test_predictions_for_an_h100_agree_with_the_estimate_by_hand(method: str, ipc: int) -> None:
    cell = Cell("cifar10", method, ipc)
    cost = costs([cell], scale="paper", device="h100", rows=pd.DataFrame())[cell]
    minutes, seconds = BY_HAND[method, ipc]
    assert cost is not None and not cost.measured
    assert cost.distillation / 60 == pytest.approx(minutes, rel=0.4)
    assert cost.evaluation == pytest.approx(seconds, rel=0.4)
    assert (cost.pool is not None) == (method.startswith("iid") and not (method == "iid-dm" and ipc == 1))
    if cost.pool:
        assert cost.pool.name == "cifar10: 2 resnet18, 20 epochs" and cost.pool.seconds == pytest.approx(70, rel=0.4)


def test_a_cpu_takes_what_the_benchmark_measured() -> None:
    """Iterations at the paper's sizes on two threads, in data/results/bench.csv."""
    sizes = {"classes": 10, "ipc": 10, "batch_real": 256, "width": 128}
    measured = rows_of("bench", what="distill", **sizes).set_index("method")["seconds"]
    assert {"dm", "iid-dm", "idm", "iid-idm"} <= set(measured.index)
    for method, seconds in measured.items():
        cell = Cell("cifar10", str(method), 10)
        cost = costs([cell], scale="paper", device="cpu", rows=pd.DataFrame())[cell]
        assert cost is not None and cost.distillation / 20_000 == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize("scale", ["tour", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_has_a_cost_at_every_scale(name: str, scale: str) -> None:
    for cell, cost in costs(EXPERIMENTS[name].cells, scale=scale, device="t4", rows=pd.DataFrame()).items():
        assert (cost is not None) == cell.runs_at(scale), cell.name
        if cost is not None:
            assert 0 < cost.evaluation < cost.seconds
            assert (cost.distillation > 0) == (cell.method in BASES)


def test_more_work_costs_more() -> None:
    def seconds(cell: Cell, device: str = "a100") -> float:
        cost = costs([cell], scale="paper", device=device, rows=pd.DataFrame())[cell]
        assert cost is not None
        return cost.seconds

    dm = Cell("cifar10", "dm", 10)
    assert seconds(dm) < seconds(Cell("cifar10", "iid-dm", 10)) < seconds(Cell("cifar100", "iid-dm", 10))
    assert seconds(dm) < seconds(Cell("cifar10", "dm", 10, "resnet18"))
    assert seconds(Cell("cifar10", "dm", 10, settings=(("iterations", "50%"),))) < seconds(dm)
    assert seconds(Cell("cifar10", "dm", 10, settings=(("match.statistics", "cached"),))) < seconds(dm)
    assert seconds(Cell("cifar10", "dm-cc", 10, settings=(("match.cc_scaling", "relative"),))) > seconds(
        Cell("cifar10", "dm-cc", 10)
    )
    assert seconds(dm, "h200") < seconds(dm, "h100") < seconds(dm, "a100") < seconds(dm, "t4") < seconds(dm, "cpu")
    ten = Cell("cifar100", "dm", 20, steps=10)
    assert seconds(ten) == pytest.approx(seconds(Cell("cifar100", "dm", 20, steps=5)), rel=0.5), "as many images in all"


def test_sizes_and_terms_are_those_of_the_library() -> None:
    for name, size in DATASET_SIZES.items():
        spec = SPECS[name]
        assert (size.side, size.channels, size.train, size.test) == (
            spec.image_size, spec.channels, *SOURCES[name].images,
        )  # fmt: skip
        assert size.classes == len(spec.classes) or not spec.classes, "names that are read from its files"
    for method, (ipc, factor) in {(m, s) for m in BASES for s in ((1, 1), (1, 2), (10, 1))}:
        config = preset(method, "cifar10", ipc, "paper", {"syn.factor": factor})
        used = {f"match.{name}" for name in METHODS[method].terms_in_use(config)}
        assert _terms(config) == used, (method, ipc, factor)
    config = preset("idm", "cifar10", 10, "paper", {"match.source": "random"})
    assert _terms(config) == {"match.mean"}


def on(device: str, seed: int = 0, **more: object) -> dict[str, object]:
    return {"seed": seed, "device": device, "seconds": "2", "seconds_per_iteration": "0.5", **more}


def test_measured_seconds_replace_predictions_on_such_a_device_only(tmp_path) -> None:
    cell = Cell("cifar10", "dm", 10)
    rows(on("NVIDIA H100 80GB HBM3"), on("cpu (1 threads)", 1, seconds="9", seconds_per_iteration="4")).to_csv(
        tmp_path / "laptop.csv", index=False
    )

    def cost(device: str, one: Cell = cell):
        return costs([one], scale="laptop", device=device, folder=tmp_path)[one]

    measured = cost("h100")
    assert measured.measured and measured.distillation == 0.5 * 1200 and measured.evaluation == 2 * 3
    assert measured.seconds == 606, "rows do not say what a process costs besides"
    assert not cost("h200").measured and not cost("a100").measured
    assert cost("cpu").measured and cost("cpu").distillation == 4 * 1200
    assert not cost("h100", Cell("cifar10", "dm-cm", 10)).measured


def test_a_cpu_is_timed_with_the_most_threads_and_where_it_distilled(tmp_path) -> None:
    rows(
        on("cpu (1 threads)", 0, distilled_on="NVIDIA A100-SXM4-80GB", pool_seconds="100", method="iid-dm"),
        on("cpu (2 threads)", 1, seconds="1", seconds_per_iteration="3", pool_seconds="50", method="iid-dm"),
        on("cpu (1 threads)", 2, seconds="8", seconds_per_iteration="7", pool_seconds="70", method="iid-dm"),
    ).to_csv(tmp_path / "laptop.csv", index=False)
    cell = Cell("cifar10", "iid-dm", 10)
    cost = costs([cell], scale="laptop", device="cpu", folder=tmp_path)[cell]
    assert cost is not None and cost.distillation == 3 * 1200 and cost.evaluation == 1 * 3
    assert cost.pool is not None and cost.pool.measured and cost.pool.seconds == 50
    elsewhere = costs([cell], scale="laptop", device="a100", folder=tmp_path)[cell]
    assert elsewhere is not None and not elsewhere.measured, "distilled on an A100, but evaluated on a CPU"


@pytest.mark.parametrize(
    ("device", "name"),
    [("h100", "NVIDIA H100 PCIe"), ("h200", "NVIDIA H200"), ("a100", "NVIDIA A100-SXM4-40GB"), ("t4", "Tesla T4"),
     ("cpu", "cpu (16 threads)")],
)  # fmt: skip
def test_names_of_cards_are_recognised(device: str, name: str) -> None:
    assert [model.name for model in DEVICES.values() if model.owns(name)] == [device]
    assert device_model(device.upper()).name == device and DEVICES[device].source


def test_unknown_devices_datasets_and_networks() -> None:
    with pytest.raises(InputError, match=r"cannot be predicted for the device 'h10'; did you mean 'h100'\?"):
        costs([], scale="paper", device="h10", rows=pd.DataFrame())
    unknown = [Cell("folder:cifar10", "dm", 10), Cell("cifar10", "dm", 10, "mlp")]
    found = costs(unknown, scale="paper", device="h100", rows=pd.DataFrame())
    assert list(found.values()) == [None, None]
    nonsense = Cell("cifar10", "dm", 10, settings=(("match.width", "-1"),))
    assert costs([nonsense], scale="paper", device="h100", rows=pd.DataFrame())[nonsense] is None


def test_costs_need_no_torch() -> None:
    code = "import sys, iidlib.experiments.costs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
