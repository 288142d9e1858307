"""The baseline computes what the library computes; the report says what was measured. No test looks at a time."""

import json
import statistics
from dataclasses import replace

import pytest
import torch

from iidlib import bench
from iidlib.accelerate import norm_relu_pool
from iidlib.config import InputError, RunConfig, preset
from iidlib.data import Dataset, shapes
from iidlib.distillation import METHODS, Distillation
from iidlib.extractors import Pool, frozen, network_for
from iidlib.networks import build_network
from iidlib.terms import TERMS, Term

SMALL = {"match.width": 8, "match.batch_real": 6, "pool.network": "convnet3", "pool.width": 8, "compute.compile": "off"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return shapes(num_classes=3, per_class=[5, 9, 12], seed=1)


def run_of(method: str, dataset: Dataset, ipc: int = 3, **changes: object) -> Distillation:
    """A run at small shapes, with two random networks in its pool so that the choice between them matters."""
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    run = Distillation(preset(method, ipc=ipc, scale="paper", changes=SMALL | keys), dataset)
    if any(term.needs_pool for term in run.terms.values()):
        run.pool = two_networks(run.config, dataset)
    return run


def two_networks(config: RunConfig, dataset: Dataset) -> Pool:
    networks = [
        frozen(
            network_for(
                config.pool.network,
                dataset.spec,
                width=config.pool.width,
                device=torch.device("cpu"),
                generator=torch.Generator().manual_seed(seed),
                compile="off",
            )
        )
        for seed in range(2)
    ]
    return Pool(networks, [50.0, 50.0], "two")


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("augmentation", ["auto", "none"])
def test_loop_has_the_losses_and_gradients_of_the_library(method: str, augmentation: str, dataset: Dataset) -> None:
    run = run_of(method, dataset, match__augmentation=augmentation)
    loop = bench.PerClassLoop(run)
    for iteration in (0, 3):
        theirs = loop.losses(iteration)
        their_gradients = {name: gradient(loss, loop.images) for name, loss in theirs.items()}
        ours = run.losses(iteration)
        assert list(ours) == list(theirs) == list(METHODS[method].terms)
        for name, loss in ours.items():
            assert float(loss.detach()) > 0, f"{name} is zero, so nothing is compared"
            assert differ(loss.detach(), theirs[name].detach()) < 1e-4, name
            assert differ(gradient(loss, run.images), their_gradients[name]) < 1e-4, name


def gradient(loss: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, images, retain_graph=True)[0]


def test_loop_updates_its_own_images_as_the_library_does(dataset: Dataset) -> None:
    run = run_of("iid-dm", dataset)
    loop = bench.PerClassLoop(run)
    start = run.images.detach().clone()
    for iteration in range(3):
        loop.step(iteration)
    assert torch.equal(run.images, start)
    for iteration in range(3):
        run.step(iteration)
    change = run.images.detach() - start
    assert change.norm() > 0
    assert differ(loop.images.detach() - start, change) < 1e-3


def test_loop_runs_plain_eager_calls_in_the_default_format(dataset: Dataset) -> None:
    network = network_for("convnet3", dataset.spec, width=8, device=torch.device("cpu"), compile="off")
    plain = bench._plain(network)
    assert all(p.is_contiguous() for p in plain.parameters())
    kernels = {module.kernel for module in plain.modules() if hasattr(module, "kernel")}
    assert kernels == {bench._group_norm_relu_pool}
    assert {m.kernel for m in network.modules() if hasattr(m, "kernel")} == {norm_relu_pool}, (
        "the library's was changed"
    )
    images = torch.randn(4, 3, 32, 32)
    assert differ(plain(images), network(images)) < 1e-5


def test_loop_leaves_out_terms_on_pairs_where_a_class_has_one_image(dataset: Dataset) -> None:
    loop = bench.PerClassLoop(run_of("iid-dm", dataset, ipc=1))
    assert list(loop.losses(0)) == ["mean"]


@pytest.mark.parametrize("scaling", ["per_image", "relative"])
def test_loop_refuses_what_it_does_not_compute(scaling: str, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=f"released.*got {scaling}"):
        bench.PerClassLoop(run_of("dm-cc", dataset, match__cc_scaling=scaling))
    run = run_of("dm", dataset)
    run.terms["mine"] = TERMS["mean"]
    with pytest.raises(ValueError, match="got mean, mine"):
        bench.PerClassLoop(run)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_other_losses_are_an_error(factor: float, dataset: Dataset) -> None:
    run = run_of("dm-cm", dataset)
    run.terms["cm"] = Term(TERMS["cm"].loss, weight=lambda config: factor * config.match.cm)
    with pytest.raises(bench.LossesDiffer, match="dm-cm: the losses of the loop and ours differ by"):
        bench.compare(run, rounds=1)


def test_other_gradients_are_an_error_where_losses_agree(dataset: Dataset) -> None:
    run = run_of("dm", dataset)
    half = Term(
        lambda batch: (lambda loss: (loss + loss.detach()) / 2)(TERMS["mean"].loss(batch)), weight=lambda _: 1.0
    )
    run.terms["mean"] = half
    with pytest.raises(bench.LossesDiffer, match=r"gradients by 5\.0e-01"):
        bench.compare(run, rounds=1)


def test_comparison_counts_every_iteration(dataset: Dataset) -> None:
    calls: list[None] = []
    run = run_of("dm", dataset)
    start = run.images.detach().clone()
    found = bench.compare(run, rounds=2, on_iteration=lambda: calls.append(None))
    assert len(calls) == 2 * (1 + 2)
    assert len(found.baseline_seconds) == len(found.our_seconds) == 2
    assert found.losses.keys() == {"mean"} and found.loss_difference < 1e-4 and found.gradient_difference < 1e-4
    assert not torch.equal(run.images, start)


def mega(network: str, side: int, *, backward: bool) -> float:
    """MFLOP of one image through a feature map, with or without the gradient on the image."""
    model = frozen(build_network(network, image_size=side))
    image = torch.zeros(1, 3, side, side, requires_grad=backward)

    def work() -> None:
        fmap = model.feature_map(image)
        if backward:
            fmap.sum().backward()

    return bench.count_flops(work) / 1e6


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
    run = run_of("dm", images, ipc=2, match__width=128, match__batch_real=4)
    loop = bench.PerClassLoop(run)
    assert bench.count_flops(lambda: loop.step(0)) / 1e6 == pytest.approx(2 * (4 * 101.45 + 2 * 202.9), rel=1e-3)
    # a covariance is one product [K, N P] x [N P, K]; the synthetic one's gradient takes two more
    run = run_of("dm-cm", images, ipc=2, match__width=128, match__batch_real=4)
    more = bench.count_flops(lambda: bench.PerClassLoop(run).step(0)) - bench.count_flops(lambda: loop.step(0))
    assert more == 2 * (2 * 128 * 128 * 16) * (4 + 2 + 2 * 2)


def test_matrix_product_rate_is_a_rate() -> None:
    rate = bench.matrix_product_rate(torch.device("cpu"), size=64, repeats=2)
    assert 0 < rate < 1e6


def test_random_pool_is_frozen_and_a_function_of_the_seed(dataset: Dataset) -> None:
    config = preset("iid-dm", scale="paper", changes=SMALL)
    first, again = (bench.random_pool(config, dataset.spec, torch.device("cpu")).networks[0] for _ in range(2))
    assert not any(p.requires_grad for p in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.fixture(scope="module")
def report() -> bench.BenchReport:
    tiny = {"match.width": 4, "match.batch_real": 4, "pool.width": 4, "compute.compile": "off"}
    return bench.measure(("dm", "iid-dm"), quick=True, device="cpu", changes=tiny)


def test_report_has_a_row_a_method(report: bench.BenchReport) -> None:
    rows = report.rows()
    assert [row["method"] for row in rows] == ["dm", "iid-dm"]
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same columns"
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert report.comparisons[1].losses.keys() == {"mean", "cm", "cc"}
    assert all(c.gflop > 0 and c.warm_up_seconds > 0 for c in report.comparisons)


def test_ratio_and_rates_follow_from_the_seconds(report: bench.BenchReport) -> None:
    made = replace(report.comparisons[0], baseline_seconds=(8.0, 6.0, 7.0), our_seconds=(2.0, 2.0, 50.0), gflop=280.0)
    assert (made.baseline, made.ours, made.ratio) == (7.0, 2.0, 3.5)
    row = replace(report, comparisons=(made,), ceiling_gflops=200.0).rows()[0]
    assert (row["loop (s)"], row["ours (s)"], row["ratio"]) == ("7", "2", "3.50")
    assert (row["floor (s)"], row["loop (GFLOP/s)"], row["ours (GFLOP/s)"]) == ("1.4", "40", "140")
    for c in report.comparisons:
        assert c.ratio == statistics.median(c.baseline_seconds) / statistics.median(c.our_seconds)


def test_report_as_json(report: bench.BenchReport) -> None:
    read = json.loads(report.to_json())
    assert read["shapes"]["batch_real"] == 4 and read["shapes"]["classes"] == 10 and read["compiled"] is False
    assert read["environment"]["torch"] == torch.__version__
    for c, found in zip(report.comparisons, read["comparisons"], strict=True):
        assert found["method"] == c.method
        assert found["ratio"] == pytest.approx(found["baseline_median"] / found["our_median"])
        assert found["our_seconds"] == list(c.our_seconds)


def test_notes_say_what_the_numbers_are_of(report: bench.BenchReport) -> None:
    text = "\n".join(report.notes())
    assert "10 classes, 4 real and 10 synthetic images a class, convnet3 of width 4" in text
    assert "not compiled" in text and "convnet3 with random weights" in text
    without = replace(report, comparisons=report.comparisons[:1])
    assert "random weights" not in "\n".join(without.notes())


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        ((), {}, "at least one round"),
        (("dm",), {"rounds": 0}, "at least one round"),
        (("dm", "iid-md"), {}, "did you mean 'iid-dm'"),
        (("iid-dm",), {"pool_network": "resnet81"}, "did you mean 'resnet18'"),
        (("dm",), {"device": "gpu"}, "'gpu' is not known"),
        (("dm",), {"changes": {"match.widht": 8}}, "did you mean 'match.width'"),
    ],
)
def test_wrong_input_is_named_before_anything_runs(methods: tuple[str, ...], options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench.measure(methods, quick=True, **options)


@pytest.mark.gpu
def test_losses_agree_on_a_gpu() -> None:
    report = bench.measure(("dm-cm", "iid-dm"), quick=True, device="cuda", changes={"compute.precision": "fp32"})
    assert all(c.loss_difference < 1e-4 for c in report.comparisons)
