"""iidlib.distillation: a step equals the loop over classes, a run repeats bit for bit, stops, resumes, and says so."""

import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from iidlib import bars, evaluate
from iidlib.augment import OPERATIONS, sample
from iidlib.config import ComputeConfig, fingerprint, override, preset
from iidlib.config.recipes import BASES
from iidlib.data import load_dataset, shapes
from iidlib.distillation import METHODS, TERMS, Distillation, Method, Stopped, Term, distill, finished
from iidlib.distillation import run as distillation_run
from iidlib.distillation import step as distillation_step
from iidlib.engine import compiler_available, threads
from iidlib.errors import InputError
from iidlib.features import RandomNetworks
from iidlib.rng import stream
from iidlib.runs import Checkpoints, RunFolder
from iidlib.runs import environment as runs_environment
from iidlib.synthetic import SyntheticSet
from tests import reference
from tests.factories import (
    ALL,
    CC_FORMS,
    DOUBLE,
    LONG,
    ON_IDM,
    SINGLE,
    Crash,
    assert_step_is_the_loop,
    crash,
    difference,
    distilled_images,
    double_parameters,
    expected,
    logged_rows,
    measured,
    ready_run,
    settings,
    stop_at,
    tiny_dataset,
)

# One step against the loop over classes, images and positions

CASES = [("dm", {}), ("dm-cm", {}), *((method, form) for method in ("dm-cc", "iid-dm") for form in CC_FORMS)]


@pytest.mark.parametrize(("method", "changes"), CASES, ids=str)
def test_a_step_is_the_loop_over_classes_in_double(method, changes):
    run = ready_run(settings(method, **changes), tiny_dataset(), double=True)
    for iteration in range(2):
        assert_step_is_the_loop(run, iteration, DOUBLE)


@pytest.mark.parametrize(("method", "changes"), [*((method, {}) for method in ALL), ("iid-dm", CC_FORMS[3])], ids=str)
def test_a_step_is_the_loop_over_classes_in_single(method, changes):
    assert_step_is_the_loop(ready_run(settings(method, **changes), tiny_dataset()), 0, SINGLE)


@pytest.mark.parametrize("method", ALL)
def test_a_compiled_step_is_the_loop_over_classes(method):
    if not compiler_available():
        pytest.skip("no C++ compiler that torch finds")
    run = ready_run(settings(method, compute__compile="on", compute__chunk=5), tiny_dataset())
    assert_step_is_the_loop(run, 0, SINGLE)


def trained(run: Distillation, iteration: int) -> Distillation:
    """The run with a queue as it is after some iterations, which leave the images as they are."""
    for number in range(iteration):
        run.source.draw(number)
        run.source.advance(number)
    return run


@pytest.mark.parametrize("method", ON_IDM)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_step_on_mosaics_with_the_queue_is_the_loop_over_classes(method, factor):
    config = settings(method, 1 if factor == 4 else 2, syn__factor=factor, queue__train=4)
    for double, tolerance in ((True, DOUBLE), (False, SINGLE)):
        run = trained(ready_run(config, tiny_dataset((19, 17, 22, 18)), double=double), 3)
        assert float(run.source.draw(3).accuracy) > 0
        assert_step_is_the_loop(run, 3, tolerance)


def test_a_compiled_step_on_idm_is_the_loop_over_classes():
    if not compiler_available():
        pytest.skip("no C++ compiler that torch finds")
    config = settings("iid-idm", 2, queue__train=4, compute__compile="on", compute__chunk=5)
    assert_step_is_the_loop(trained(ready_run(config, tiny_dataset((19, 17, 22, 18))), 3), 3, SINGLE)


@pytest.mark.parametrize(("double", "tolerance"), [(True, DOUBLE), (False, SINGLE)])
@pytest.mark.parametrize("method", ["idm", "iid-idm"])
def test_updates_on_idm_are_a_step_a_class_and_the_queue_moves_on(method, double, tolerance):
    """Against the sequence of steps, with the gradient of each class taken where its images are at its turn."""
    config, dataset = settings(method, 2, syn__lr=0.7, queue__train=3, match__batch_real=4), tiny_dataset((9, 9, 9, 9))
    run, twin = ready_run(config, dataset, double=double), ready_run(config, dataset, double=True)
    x = twin.images.detach().clone().unflatten(0, (4, 2))
    velocity = torch.zeros_like(x)

    def gradient_of(c: int, images: Tensor) -> Tensor:
        twin.images.data[2 * c : 2 * c + 2] = images
        return sum(part for _, part in expected(twin, iteration).values())[2 * c : 2 * c + 2]

    for iteration in range(3):
        run.step(iteration, log=iteration == 1)
        x, velocity = reference.class_sweep(x, velocity, gradient_of, config.syn.lr, config.syn.momentum)
        twin.source.advance(iteration)
        assert difference(run.optimiser.images_after_sweep(), x.flatten(0, 1)) <= 10 * tolerance
        assert torch.equal(run.synthetic(iteration).images, run.optimiser.images_after_sweep().float())
        assert not torch.equal(run.images.detach(), run.optimiser.images_after_sweep())


def test_synthetic_images_go_through_the_matching_network_once_for_features_and_logits():
    run = trained(ready_run(settings("iid-idm", 2, queue__train=4), tiny_dataset((19, 17, 22, 18))), 3)
    sizes: list[int] = []
    run.source.draw(3).network.trunk.register_forward_hook(lambda module, images, output: sizes.append(len(images[0])))
    run.losses(3)
    assert sorted(sizes) == [4 * 6, 4 * 2 * 4]


@pytest.mark.parametrize("method", ON_IDM)
def test_one_mosaic_a_class_is_several_images(method):
    mosaics = Distillation(settings(method, 1), tiny_dataset())
    assert tuple(mosaics.terms) == METHODS[method].terms and mosaics.images.shape[0] == 4
    assert set(Distillation(settings(method, 1, syn__factor=1), tiny_dataset()).terms) == {"mean", "ce"}


def test_the_queue_is_logged():
    metrics = distill(settings("idm", 1, iterations=11), tiny_dataset()).metrics
    assert metrics["queue_networks"].tolist() == [4, 4] and (metrics["queue_mib"] > 0).all()
    assert metrics["queue_accuracy"][0] == 0 < metrics["queue_accuracy"][1] <= 100
    assert "queue_networks" not in distill(settings("dm", 1), tiny_dataset()).metrics


def test_a_step_is_the_loop_under_every_augmentation_and_none():
    for strategy in (*OPERATIONS, "none"):
        run = ready_run(settings("dm-cm", match__augmentation=strategy), tiny_dataset(), double=True)
        parts, wanted = measured(run, 0), expected_under(run, strategy)
        for name, (value, gradient) in wanted.items():
            assert parts[name][0] == pytest.approx(value, rel=DOUBLE), (strategy, name)
            assert difference(parts[name][1], gradient) <= DOUBLE, (strategy, name)


def expected_under(run: Distillation, strategy: str) -> dict[str, tuple[float, Tensor]]:
    """As `expected`, for one operation alone."""
    real, drawn = run.real, run.real.sample(run.config.match.batch_real, stream(run.config.seed, 0, "real batch"))
    operation = None if strategy == "none" else strategy
    draws = sample(operation or "flip", real.num_classes, stream(run.config.seed, 0, "augmentation"))
    classes = [
        reference.ClassBatch(
            real.images_of(drawn.index[drawn.group == c]), run.images[run.group == c], operation, draws.u[c].tolist()
        )
        for c in range(real.num_classes)
    ]
    network = functools.partial(reference.convnet_blocks, double_parameters(run.source.draw(0).network))
    return reference.step(tuple(run.terms), run.config.match, classes, network)


@pytest.mark.parametrize(("per_class", "ipc"), [((3, 20, 300), 3), ((1, 3, 20, 300), 1)])
@pytest.mark.parametrize("method", ["dm", "iid-dm"])
def test_classes_of_unequal_size_give_what_each_gives_alone(per_class, ipc, method):
    changes = {"match__batch_real": 256, "match__cc_scaling": "relative", "match__cc_real": 8}
    run = ready_run(settings(method, ipc, **changes), tiny_dataset(per_class), double=True)
    assert set(run.terms) == {"mean"} if ipc == 1 or method == "dm" else {"mean", "cm", "cc"}
    assert_step_is_the_loop(run, 0, DOUBLE)


def test_a_pretrained_resnet():
    config = settings("dm-cc", 2, pool__network="resnet18", match__batch_real=2)
    run = ready_run(config, tiny_dataset((3, 3), 32), double=True, pretrained="resnet18")
    assert_step_is_the_loop(run, 0, DOUBLE)


@pytest.mark.parametrize("method", ["dm-cm", "iid-dm"])
def test_the_gradient_is_the_slope_of_the_loss(method):
    """Finite differences: independent of every autograd, that of the reference included."""
    run = ready_run(settings(method, match__cc_scaling="relative"), tiny_dataset(), double=True)
    gradient = sum(part for _, part in measured(run, 0).values())
    direction = torch.randn(run.images.shape, dtype=torch.float64, generator=stream(0, 0, "direction"))
    step, values = 1e-6, []
    with torch.no_grad():
        for sign in (1, -1):
            run.images += sign * step * direction
            values.append(float(sum(run.losses(0).values())))
            run.images -= sign * step * direction
    slope = (values[0] - values[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(("double", "tolerance"), [(True, DOUBLE), (False, SINGLE)])
@pytest.mark.parametrize("method", ALL)
def test_updates_are_sgd_with_momentum_on_the_sum_of_the_terms(method, double, tolerance):
    config = settings(method, syn__lr=0.7, syn__momentum=0.4, match__batch_real=4)
    run, twin = ready_run(config, tiny_dataset(), double=double), ready_run(config, tiny_dataset(), double=True)
    x, velocity = twin.images.detach().clone(), torch.zeros_like(twin.images)
    for iteration in range(4):
        run.step(iteration, log=iteration == 2)
        twin.images.data = x
        twin.source = run.source
        gradient = sum(part for _, part in expected(twin, iteration).values())
        x, velocity = reference.sgd(x, velocity, gradient, config.syn.lr, config.syn.momentum)
        assert difference(run.images.detach(), x) <= tolerance
    start = ready_run(config, tiny_dataset(), double=double).images
    assert difference(run.images.detach() - start.detach(), x - start.detach().double()) <= 100 * tolerance


# Which terms, and what is drawn


@pytest.mark.parametrize("method", ["dm-cc", "dm-cm", "iid-dm"])
def test_with_one_image_a_class_every_method_is_dm(method, monkeypatch):
    def no_pool(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pool was asked for")

    monkeypatch.setattr(distillation_step, "trained_pool", no_pool)
    result = distill(settings(method, ipc=1), tiny_dataset())
    assert result.pool is None
    assert [name for name in result.metrics if name.startswith("loss_")] == ["loss_mean"]
    assert torch.equal(result.synthetic.images, distill(settings("dm", ipc=1), tiny_dataset()).synthetic.images)


def test_with_two_images_a_class_the_terms_are_those_of_the_method():
    for method in ALL:
        assert tuple(Distillation(settings(method, ipc=2), tiny_dataset()).terms) == METHODS[method].terms


def test_methods_with_one_seed_see_the_same_data_augmentation_and_networks(monkeypatch):
    seen: dict[str, list[Tensor]] = {}

    def spy(batch) -> Tensor:
        real = batch.real_fmap.clone()  # a function of the batch, its augmentation and the network
        network = batch.network.state_dict()["trunk.block1.conv.weight"].clone()
        seen.setdefault(batch.config.method, []).extend([real, network])
        return 0 * batch.syn_features.sum((1, 2))

    monkeypatch.setitem(TERMS, "spy", Term(spy, weight=lambda config: 1.0))
    for method in ("dm", "iid-dm"):
        monkeypatch.setitem(METHODS, method, Method((*METHODS[method].terms, "spy")))
        run = ready_run(settings(method), tiny_dataset())
        start = run.images.detach().clone()
        for iteration in range(3):
            run.step(iteration)
        seen[method].append(start)
    assert len(seen["dm"]) == 7
    for first, second in zip(seen["dm"], seen["iid-dm"], strict=True):
        assert torch.equal(first, second)
    # and every iteration sees others
    for kind in (0, 1):
        assert not torch.equal(seen["dm"][kind], seen["dm"][kind + 2])


@pytest.mark.parametrize("method", ["dm", "dm-cm", "iid-dm"])
def test_forward_passes_do_not_grow_with_the_number_of_classes(method):
    def forward_sizes(classes: int, chunk: int = 10_000) -> list[int]:
        dataset = shapes(classes, 6, 8)
        run = ready_run(settings(method, 2, match__cc_scaling="relative", compute__chunk=chunk), dataset)
        sizes: list[int] = []
        networks = [run.source.draw(0).network, *(run.pool.networks if run.pool else ())]
        for network in networks:
            network.trunk.register_forward_hook(lambda module, images, output: sizes.append(len(images[0])))
        run.step(0)
        assert sum(sizes) == classes * (6 + 2 + (2 + 6 if run.pool else 0))  # every image once, in each network
        return sizes

    two, twelve = forward_sizes(2), forward_sizes(12)
    assert len(two) == len(twelve) == (4 if method == "iid-dm" else 2)
    # only memory chunks make more of them, as many as their size says
    assert len(forward_sizes(12, chunk=10)) == sum(-(-size // 10) for size in twelve)


def test_logging_takes_no_forward_pass():
    run = ready_run(settings("iid-dm"), tiny_dataset())
    calls = []
    run.source.draw(0).network.trunk.register_forward_hook(lambda *_: calls.append(1))
    run.step(0)
    without = len(calls)
    run.step(1, log=True)
    assert len(calls) == 2 * without


def test_logging_changes_nothing():
    quiet, logged = (ready_run(settings("iid-dm"), tiny_dataset()) for _ in range(2))
    for iteration in range(3):
        assert quiet.step(iteration) == {}
        assert logged.step(iteration, log=True)
    assert torch.equal(quiet.images, logged.images)


# What is logged


def test_a_row_has_every_term_with_its_weighted_loss_and_its_gradient():
    run = ready_run(settings("iid-dm", match__cm=0.02), tiny_dataset())
    parts = measured(run, 3)
    row = run.step(3, log=True)
    assert list(row) == ["loss", "loss_mean", "loss_cm", "loss_cc", "grad_mean", "grad_cm", "grad_cc"]
    for name, (value, gradient) in parts.items():
        assert row[f"loss_{name}"] == pytest.approx(value)
        assert row[f"grad_{name}"] == pytest.approx(float(gradient.norm()))
    assert row["loss"] == pytest.approx(sum(value for value, _ in parts.values()))


def test_weights_scale_their_terms_alone():
    plain = ready_run(settings("iid-dm", match__cm=0.01, match__cc=0.05), tiny_dataset()).step(0, log=True)
    heavy = ready_run(settings("iid-dm", match__cm=0.03, match__cc=0.0), tiny_dataset()).step(0, log=True)
    assert heavy["loss_mean"] == plain["loss_mean"]
    assert heavy["loss_cm"] == pytest.approx(3 * plain["loss_cm"])
    assert "loss_cc" not in heavy and "grad_cc" not in heavy


@pytest.mark.parametrize(("method", "weight"), [("iid-dm", "cc"), ("iid-dm", "cm"), ("idm", "ce")])
def test_a_term_of_weight_zero_is_left_out_and_trains_no_pool(method, weight, monkeypatch):
    def no_pool(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pool was asked for")

    changes = {f"match__{weight}": 0.0} | ({"match__cc": 0.0} if "iid" in method else {})
    monkeypatch.setattr(distillation_step, "trained_pool", no_pool)
    config = settings(method, ipc=2, syn__factor=1, **changes)
    result = distill(config, tiny_dataset())
    assert f"loss_{weight}" not in result.metrics and result.pool is None
    assert METHODS[method].left_out(config)[weight] == "its weight is zero"


@pytest.mark.parametrize("iterations", [1, 10, 11, 25])
def test_every_tenth_iteration_and_the_last_are_logged(iterations):
    result = distill(settings("dm", iterations=iterations, match__batch_real=2), tiny_dataset())
    logged = [k for k in range(iterations) if k % 10 == 0 or k == iterations - 1]
    assert result.metrics["iteration"].tolist() == logged
    assert result.metrics["seconds"].is_monotonic_increasing and result.seconds >= result.metrics["seconds"].iloc[-1]


def test_the_last_iterate_is_reported():
    config = settings("dm", iterations=5)
    result, run = distill(config, tiny_dataset()), ready_run(config, tiny_dataset())
    for iteration in range(5):
        run.step(iteration)
    assert torch.equal(result.synthetic.images, run.images.detach())
    assert not result.synthetic.images.requires_grad
    provenance = result.synthetic.provenance
    assert provenance["iterations"] == "5" and provenance["method"] == "dm" and provenance["seed"] == "0"
    assert provenance["config"] == fingerprint(config) and provenance["data"] == tiny_dataset().train.fingerprint
    assert result.config == config


def test_images_are_shown_as_copies_at_the_iterations_asked_for():
    config, shown = settings("dm", iterations=4), {}

    def keep(iteration: int, synthetic: SyntheticSet) -> None:
        shown[iteration] = synthetic.images.clone()
        synthetic.images.zero_()

    result = distill(config, tiny_dataset(), on_iteration=keep, iterations_to_show=(0, 2, 4, 9))
    assert list(shown) == [0, 2, 4]
    start = SyntheticSet.from_real(tiny_dataset().train, 3, stream(0, 0, "initial images")).images
    assert torch.equal(shown[0], start) and torch.equal(shown[4], result.synthetic.images)
    assert torch.equal(result.synthetic.images, distill(config, tiny_dataset()).synthetic.images)
    assert torch.equal(shown[2], distill(override(config, {"iterations": 2}), tiny_dataset()).synthetic.images)


# What is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_images(value, monkeypatch):
    broken = Term(lambda batch: value * batch.syn_features.square().sum((1, 2)), weight=lambda config: 1.0)
    monkeypatch.setitem(TERMS, "broken", broken)
    run = ready_run(settings("iid-dm"), tiny_dataset())
    run.step(0)
    run.terms["broken"] = broken
    before = {name: tensor.detach().clone() for name, tensor in run.state().items()}
    with pytest.raises(FloatingPointError, match=r"'broken' is (nan|inf) at iteration 20; lower syn.lr"):
        run.step(20, log=True)
    for name, tensor in run.state().items():
        assert torch.equal(tensor, before[name]), name


def test_an_exponential_that_overflows_is_named_before_anything_is_learned(tmp_path):
    config = settings("dm-cc", match__cc_form="exp", match__cc_alpha=100.0)
    with pytest.raises(FloatingPointError, match="'cc' is inf at iteration 0"):
        distill(config, tiny_dataset(40), out=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").finished


def test_the_iteration_the_term_and_the_last_good_checkpoint_are_named(tmp_path, monkeypatch):
    """Not only where something is logged: on a CPU every iteration is looked at."""
    steps = []

    def breaks(batch) -> Tensor:
        steps.append(1)
        return (float("nan") if len(steps) >= 5 else 1.0) * batch.syn_features.square().sum((1, 2))

    monkeypatch.setitem(TERMS, "breaks", Term(breaks, weight=lambda config: 1.0))
    monkeypatch.setitem(BASES, "mine", "dm")
    monkeypatch.setitem(METHODS, "mine", Method(("mean", "breaks")))
    folder = tmp_path / "run"
    message = r"'breaks' is nan at iteration 4; .* last good checkpoint is .*0000003\.safetensors$"
    with pytest.raises(FloatingPointError, match=message):
        distill(settings("mine", iterations=30, checkpoint__every=3), tiny_dataset(), out=folder)
    state, facts = Checkpoints(folder / "checkpoints").load()
    assert facts["iteration"] == 3 and state["images"].isfinite().all()


def test_images_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    """On a GPU only logged iterations are looked at; what an update broke since then is seen before it is kept."""
    advance = Distillation.advance

    def breaking(run: Distillation, iteration: int) -> None:
        advance(run, iteration)
        if iteration == 5:
            run.images.data.fill_(float("inf"))

    monkeypatch.setattr(Distillation, "advance", breaking)
    with pytest.raises(FloatingPointError, match=r"not finite after 6 iterations; lower syn\.lr \(now 1\); .*0000003"):
        distill(settings("dm", iterations=30, checkpoint__every=3), tiny_dataset(), out=tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").load()[1]["iteration"] == 3
    asked = {"on_iteration": lambda done, synthetic: pytest.fail("shown"), "iterations_to_show": (6,)}
    with pytest.raises(
        FloatingPointError, match=r"not finite after 6 iterations; lower syn\.lr \(now 1\); there is no checkpoint"
    ):
        distill(settings("dm", iterations=30, checkpoint__every=30), tiny_dataset(), **asked)


# What an evaluation would refuse later


def test_a_network_that_could_not_evaluate_the_set_is_reported_before_the_first_iteration(caplog):
    reported = []

    def look(done: int, synthetic: SyntheticSet) -> None:
        reported.append("eval.networks: vgg11 takes square images of a side that is a multiple of 32" in caplog.text)

    config = settings("dm", eval__networks=("convnet3", "vgg11"))
    distill(config, tiny_dataset(), on_iteration=look, iterations_to_show=(0,))
    assert reported == [True]
    caplog.clear()
    distill(settings("dm"), tiny_dataset())
    assert "eval.networks" not in caplog.text


# Terms and methods of one's own


def test_a_term_and_a_method_join_through_the_tables(monkeypatch):
    drawn = []

    class Counting(RandomNetworks):
        def draw(self, iteration):
            drawn.append(iteration)
            return super().draw(iteration)

    def source(config, dataset, device):
        return Counting("convnet1", dataset.spec, width=3, seed=config.seed, device=device, compile="off")

    def smooth(batch):
        return batch.syn_features.square().mean((1, 2))

    monkeypatch.setitem(TERMS, "smooth", Term(smooth, weight=lambda config: 10 * config.match.cm))
    monkeypatch.setitem(BASES, "mine", "dm")
    monkeypatch.setitem(METHODS, "mine", Method(("smooth", "mean"), source))
    run = Distillation(settings("mine"), tiny_dataset())
    result = distill(settings("mine", match__cm=0.5), tiny_dataset())
    assert list(run.terms) == ["smooth", "mean"]
    assert {"loss_smooth", "grad_smooth", "loss_mean"} <= set(result.metrics)
    assert drawn == list(range(7))
    twice = distill(settings("mine", match__cm=1.0, iterations=1), tiny_dataset()).metrics["loss_smooth"][0]
    assert twice == pytest.approx(2 * result.metrics["loss_smooth"][0])


def test_a_term_of_ones_own_gets_its_pool_and_is_left_out_where_it_has_no_pairs(monkeypatch):
    monkeypatch.setitem(
        TERMS,
        "pull",
        Term(
            lambda batch: batch.pretrained_syn_features.var(1).sum(1),
            weight=lambda config: 1.0,
            needs_pairs=True,
            needs_pool=True,
        ),
    )
    monkeypatch.setitem(BASES, "mine", "dm")
    monkeypatch.setitem(METHODS, "mine", Method(("mean", "pull")))
    result = distill(settings("mine"), tiny_dataset(40))
    assert "loss_pull" in result.metrics and len(result.pool.networks) == 1
    assert "loss_pull" not in distill(settings("mine", ipc=1), tiny_dataset(40)).metrics


# The same seed gives the same result


@pytest.mark.parametrize("method", ["dm", "iid-dm", "iid-idm", "iid-plus"])
def test_a_seed_repeats_bit_for_bit_and_another_differs(method):
    config = settings(method)
    first = distilled_images(config)
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(first, distilled_images(config))
    other = distilled_images(override(config, {"seed": 1}))
    assert difference(other, first.double()) > 1e-2


def test_an_evaluation_in_between_changes_nothing():
    config = settings("iid-dm")
    before = torch.get_rng_state()

    def assess(iteration: int, synthetic: SyntheticSet) -> None:
        evaluate(
            synthetic, tiny_dataset(40), protocol=config.eval, seed=iteration, compute=ComputeConfig(compile="off")
        )
        torch.rand(iteration + 1)

    disturbed = distilled_images(config, on_iteration=assess, iterations_to_show=(0, 3))
    torch.set_rng_state(before)
    assert torch.equal(distilled_images(config), disturbed)
    assert torch.equal(torch.get_rng_state(), before), "a run leaves the global generator alone"


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | threads | environment,
    )


def test_another_process_repeats_it_bit_for_bit_its_pool_included(tmp_path):
    path = tmp_path / "set.safetensors"
    other = python(
        f"""
        from iidlib.distillation import distill
        from tests.factories import settings, tiny_dataset

        distill(settings("iid-dm"), tiny_dataset(40)).synthetic.save({str(path)!r})
        """,
        IID_CACHE=str(tmp_path / "cache"),
        PYTHONHASHSEED="7",
    )
    mine = distilled_images(settings("iid-dm"))
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors
    assert list((tmp_path / "cache" / "pools").iterdir()), "the other process trained its own pool"
    assert torch.equal(SyntheticSet.load(path).images, mine)


def test_chunks_change_only_rounding():
    whole, chunked = (
        distilled_images(settings("iid-dm", compute__chunk=0)),
        distilled_images(settings("iid-dm", compute__chunk=3)),
    )
    assert difference(chunked, whole.double()) < 1e-3


# Stopping and resuming


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def log_all(monkeypatch):
    monkeypatch.setattr(distillation_run, "LOG_EVERY", 1)


@pytest.mark.parametrize("method", ["dm", "iid-dm", "iid-idm", "iid-plus"])
@pytest.mark.parametrize(("end", "saved"), [(2, 0), (7, 6), (8, 6)])
def test_a_run_that_crashed_resumes_and_equals_the_unbroken_one(method, end, saved, tmp_path, log_all):
    config, dataset = settings(method, **LONG), tiny_dataset(40)
    whole = distill(config, dataset, out=tmp_path / "whole")
    with pytest.raises(Crash):
        distill(config, dataset, out=tmp_path / "broken", **stop_at(end, crash))
    assert len(logged_rows(tmp_path / "broken")) == end
    assert not RunFolder(tmp_path / "broken").finished
    shown = []
    resumed = distill(
        config,
        dataset,
        out=tmp_path / "broken",
        resume=True,
        on_iteration=lambda done, _: shown.append(done),
        iterations_to_show=tuple(range(13)),
    )
    assert shown == list(range(saved, 13))
    assert torch.equal(resumed.synthetic.images, whole.synthetic.images)
    assert logged_rows(tmp_path / "broken") == logged_rows(tmp_path / "whole")
    pandas_rows = resumed.metrics.drop(columns="seconds")
    assert pandas_rows.equals(whole.metrics.drop(columns="seconds"))
    assert resumed.metrics["seconds"].is_monotonic_increasing
    assert torch.equal(SyntheticSet.load(tmp_path / "broken").images, whole.synthetic.images)
    assert SyntheticSet.load(tmp_path / "broken").provenance == whole.synthetic.provenance


def test_the_queue_is_part_of_a_checkpoint(tmp_path):
    config = settings("idm", 1, **LONG)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    folder = RunFolder(tmp_path / "run")
    state, facts = Checkpoints(folder.checkpoints).load()
    assert state["queue.numbers"].tolist() == [2, 3, 4, 5] and state["queue.meters"].any()
    assert state["queue.momenta"].any() and state["queue.weights"].shape == state["queue.momenta"].shape
    # without the weights that it was given, another result
    state["queue.weights"] = state["queue.weights"].flip(0)
    Checkpoints(folder.checkpoints).save(facts.pop("iteration"), state, facts)
    resumed = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert not torch.equal(resumed.synthetic.images, distill(config, tiny_dataset()).synthetic.images)


def test_a_chunk_chosen_for_another_device_is_that_of_the_whole_run(tmp_path, monkeypatch):
    config, dataset = settings("dm", **LONG), tiny_dataset()
    monkeypatch.setattr(distillation_step, "default_chunk", lambda device, image_bytes: 5)
    whole = distill(config, dataset)
    with pytest.raises(Crash):
        distill(config, dataset, out=tmp_path / "run", **stop_at(7, crash))
    monkeypatch.setattr(distillation_step, "default_chunk", lambda device, image_bytes: 9)
    assert torch.equal(
        distill(config, dataset, out=tmp_path / "run", resume=True).synthetic.images, whole.synthetic.images
    )


def test_a_checkpoint_is_written_after_so_many_seconds(tmp_path, monkeypatch):
    """Every iteration takes 4 s by this clock, so that 10 s have passed after 3 of them."""
    clock = itertools.count(step=2)
    monkeypatch.setattr(distillation_run.time, "perf_counter", lambda: next(clock))
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, done, *rest: (saved.append(done), save(self, done, *rest)))
    config = settings("dm", iterations=9, checkpoint__every=1000, checkpoint__seconds=10.0)
    distill(config, tiny_dataset(), out=tmp_path / "run")
    assert saved[-1] == 9 and 2 <= len(saved) <= 5 and saved == sorted(set(saved))
    saved.clear()
    distill(override(config, {"checkpoint.seconds": 0.0}), tiny_dataset(), out=tmp_path / "other")
    assert saved == [9]


def test_a_run_resumes_with_the_threads_that_it_was_begun_with(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    config = settings("dm", **LONG)
    with threads(1), pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    used = []
    step = Distillation.step
    monkeypatch.setattr(
        Distillation, "step", lambda run, *a, **k: (used.append(torch.get_num_threads()), step(run, *a, **k))[1]
    )
    with threads(2):
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
        assert torch.get_num_threads() == 2
    assert set(used) == {1} and torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["torch", "iidlib", "device", "kernels"])
def test_other_conditions_are_refused_or_recorded(name, tmp_path, monkeypatch):
    config = settings("dm", **LONG)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    now = runs_environment.conditions(torch.device("cpu"), "off") | {name: "another"}
    monkeypatch.setattr(finished, "conditions", lambda *rest: now)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=rf"other conditions \({name} was .+ and is another\).*--allow-mismatch"
    ) as caught:
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    result = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True, allow_mismatch=True)
    assert result.synthetic.provenance["environment_mismatch"] == "see environment.json"
    noted = json.loads((tmp_path / "run" / "environment.json").read_text())["environment_mismatch"]
    assert noted[0]["iteration"] == 6 and noted[0][name][1] == "another" and len(noted) == 1


def test_a_mismatch_is_remembered_when_the_run_is_stopped_again(tmp_path, monkeypatch):
    config = settings("dm", **LONG)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(4, crash))
    now = runs_environment.conditions(torch.device("cpu"), "off") | {"torch": "another"}
    monkeypatch.setattr(finished, "conditions", lambda *rest: now)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=True, allow_mismatch=True, **stop_at(10, crash))
    result = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)  # as it was begun to resume
    assert "environment_mismatch" in result.synthetic.provenance
    assert "environment_mismatch" not in distill(config, tiny_dataset()).synthetic.provenance


def test_a_mismatch_is_remembered_from_a_checkpoint_with_the_old_key(tmp_path):
    config = settings("dm", **LONG)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    state, facts = checkpoints.load()
    assert facts.pop("mismatched") is False
    checkpoints.save(facts["iteration"], state, facts | {"drifted": True})
    result = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert result.synthetic.provenance["environment_mismatch"] == "see environment.json"


def test_momentum_is_part_of_a_checkpoint(tmp_path):
    config = settings("dm", **LONG, syn__momentum=0.9)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    state, facts = Checkpoints(tmp_path / "run" / "checkpoints").load()
    assert facts["iteration"] == 6 and set(state) == {"images", "momentum"} and state["momentum"].any()
    plain = settings("dm", **LONG, syn__momentum=0.0)
    whole = distill(plain, tiny_dataset(), out=tmp_path / "plain")
    with pytest.raises(Crash):
        distill(plain, tiny_dataset(), out=tmp_path / "broken", **stop_at(7, crash))
    resumed = distill(plain, tiny_dataset(), out=tmp_path / "broken", resume=True)
    assert torch.equal(resumed.synthetic.images, whole.synthetic.images)


def test_the_last_two_checkpoints_are_kept_and_the_end_is_one(tmp_path):
    distill(settings("dm", iterations=8, checkpoint__every=3), tiny_dataset(), out=tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"{k:07d}.{ending}" for k in (6, 8) for ending in ("json", "safetensors")]


def test_a_finished_run_resumed_is_only_read(tmp_path, monkeypatch):
    config, shown = settings("dm-cc", **LONG), []
    whole = distill(config, tiny_dataset(), out=tmp_path / "run")

    def read_only(place: object, flags: int, *rest: object, **named: object) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), f"{place} is written"
        return really(place, flags, *rest, **named)

    really = os.open
    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(Distillation, "make_pool", lambda *given: pytest.fail("a pool is made"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    looking = {"on_iteration": lambda done, synthetic: shown.append(done), "iterations_to_show": (3, 12)}
    again = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True, **looking)
    assert torch.equal(again.synthetic.images, whole.synthetic.images) and shown == [12]
    assert again.metrics.equals(whole.metrics) and again.config == config
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    with pytest.raises(InputError, match=r"started with other data .*; its set can be evaluated: iid evaluate"):
        distill(config, tiny_dataset((9, 7, 12, 9)), out=tmp_path / "run", resume=True)


def test_a_finished_run_whose_set_is_corrupted_writes_it_again(tmp_path, caplog):
    config = settings("dm", **LONG)
    whole = distill(config, tiny_dataset(), out=tmp_path / "run")
    path = tmp_path / "run" / "synthetic.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    again = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert torch.equal(again.synthetic.images, whole.synthetic.images) and path.read_bytes() == content
    assert "rebuilding it from the last checkpoint" in caplog.text
    path.write_bytes(content[:-20])
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    caplog.clear()
    again = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert torch.equal(again.synthetic.images, whole.synthetic.images) and path.read_bytes() == content
    assert "rebuilding it from the first iteration" in caplog.text


def test_a_folder_that_is_in_use_is_not_touched(tmp_path):
    distill(settings("dm"), tiny_dataset(), out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"already exists; nothing was overwritten"):
        distill(settings("dm", seed=1), tiny_dataset(), out=tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "dataset", "message"),
    [
        ({"seed": 3}, None, r"started with seed=0, not 3; resume it with the same settings"),
        ({"syn__lr": 0.5}, None, r"syn.lr=1.0, not 0.5"),
        ({"iterations": 5}, None, r"has done 6 iterations, more than iterations=5; give 6 or more"),
        ({}, (9, 7, 12, 9), r"started with other data \("),
    ],
)
def test_a_run_is_not_resumed_with_other_settings_or_data(changes, dataset, message, tmp_path):
    with pytest.raises(Crash):
        distill(settings("dm", **LONG), tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    with pytest.raises(InputError, match=message) as caught:
        other = tiny_dataset(dataset) if dataset else tiny_dataset()
        distill(settings("dm", **LONG | changes), other, out=tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert distill(settings("dm", **LONG), tiny_dataset(), out=tmp_path / "run", resume=True).seconds > 0


def test_a_run_is_not_resumed_with_a_pool_of_other_weights(tmp_path, monkeypatch):
    """As trained again by another machine, with the same settings and data."""
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    config = settings("dm-cc", **LONG)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    (member,) = (tmp_path / "cache" / "pools").glob("*/0000.safetensors")
    kept = member.read_bytes()
    member.write_bytes(to_bytes({name: 1.5 * tensor for name, tensor in from_bytes(kept).items()}))
    with pytest.raises(InputError, match="started with other pool weights"):
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    member.write_bytes(kept)
    assert distill(config, tiny_dataset(), out=tmp_path / "run", resume=True).seconds > 0


def test_what_cannot_be_resumed(tmp_path):
    with pytest.raises(InputError, match="resume needs out, the folder"):
        distill(settings("dm"), tiny_dataset(), resume=True)
    with pytest.raises(InputError, match="no run to resume at"):
        distill(settings("dm"), tiny_dataset(), out=tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_resumes_from_the_checkpoint_before_a_corrupted_one(tmp_path, caplog):
    config = settings("dm", **LONG)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(7, crash))
    newest = tmp_path / "run" / "checkpoints" / "0000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    resumed = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert "0000006.safetensors is corrupted" in caplog.text
    assert torch.equal(resumed.synthetic.images, distill(config, tiny_dataset()).synthetic.images)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    config = settings("dm", **LONG)

    def second() -> None:
        with pytest.raises(InputError, match="is in use by process"):
            distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)

    first = distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(5, second))
    assert torch.equal(first.synthetic.images, distill(config, tiny_dataset()).synthetic.images)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_iteration_with_a_checkpoint(number, tmp_path, log_all):
    config, before = settings("dm", **LONG), signal.getsignal(number)
    with pytest.raises(Stopped, match=r"stopped after 4 iterations; kept in .*run") as caught:
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(4, lambda: signal.raise_signal(number)))
    assert (caught.value.signal, caught.value.iteration) == (number, 4)
    assert caught.value.folder == tmp_path / "run"
    assert signal.getsignal(number) is before
    assert [row["iteration"] for row in logged_rows(tmp_path / "run")] == [0, 1, 2, 3]
    assert Checkpoints(tmp_path / "run" / "checkpoints").load()[1]["iteration"] == 4
    resumed = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.synthetic.images, distill(config, tiny_dataset()).synthetic.images)


def test_stopped_is_a_keyboard_interrupt_and_says_that_nothing_is_kept():
    with pytest.raises(KeyboardInterrupt, match="stopped after 1 iterations; nothing kept, as no out folder was given"):
        distill(settings("dm"), tiny_dataset(), **stop_at(1, interrupt))


def test_a_second_signal_acts_at_once(tmp_path):
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        distill(settings("dm"), tiny_dataset(), out=tmp_path / "run", **stop_at(1, twice))
    assert not isinstance(caught.value, Stopped)


def test_a_signal_in_the_last_iteration_stops_what_would_come_after_the_finished_run(tmp_path):
    with pytest.raises(Stopped, match="stopped after 7 iterations"):
        distill(settings("dm"), tiny_dataset(), out=tmp_path / "run", **stop_at(7, interrupt))
    kept = SyntheticSet.load(tmp_path / "run").images
    assert torch.equal(kept, distill(settings("dm"), tiny_dataset()).synthetic.images)


def test_a_run_in_a_thread_leaves_signals_alone():
    done: list[Tensor] = []
    thread = threading.Thread(target=lambda: done.append(distill(settings("dm"), tiny_dataset()).synthetic.images))
    thread.start()
    thread.join()
    assert torch.equal(done[0], distill(settings("dm"), tiny_dataset()).synthetic.images)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to other processes")
def test_a_process_that_is_interrupted_keeps_its_run(tmp_path):
    """SIGINT from outside, as Ctrl-C sends it, in the middle of the work."""
    other = python(
        f"""
        from iidlib.distillation import Stopped, distill
        from tests.factories import settings, tiny_dataset

        try:
            distill(
                settings("iid-dm", iterations=100_000, checkpoint__every=50_000), tiny_dataset(40),
                out={str(tmp_path / "run")!r},
                on_iteration=lambda done, _: print("running", flush=True), iterations_to_show=(5,),
            )
        except Stopped as stopped:
            print(stopped.iteration, stopped.signal, stopped)
        """
    )
    assert other.stdout.readline() == "running\n", other.communicate()[1]
    other.send_signal(signal.SIGINT)
    output, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors
    iteration, number, *_ = output.split()
    assert int(number) == signal.SIGINT and f"kept in {tmp_path / 'run'}" in output
    state, facts = Checkpoints(tmp_path / "run" / "checkpoints").load()
    assert facts["iteration"] == int(iteration) >= 5
    assert not RunFolder(tmp_path / "run").finished
    config = settings("iid-dm", iterations=int(iteration))
    assert torch.equal(state["images"], distill(config, tiny_dataset(40)).synthetic.images)


# Wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 8}, r"ipc must be 1 to 7, the training images of class '\w+' in shapes, not 8"),
        ({"match__network": "convnet33"}, "unknown network 'convnet33'; did you mean 'convnet3'"),
        (
            {"match__network": "vgg11"},
            r"vgg11 takes square images of a side .* 32 \(32, 64, 96, ...\), got image_size 16",
        ),
        ({"match__network": "convnet3-bn"}, "'convnet3-bn' has batch norm"),
        ({"match__augmentation": "color_crops"}, "'crops'.*did you mean 'crop'"),
        ({"syn__init": "noise", "ipc": 10_000}, "ipc must be 1 to 7"),
        ({"syn__factor": 3}, r"syn.factor must divide the side of the images, 16, .* got 3"),
        (
            {"method": "idm", "ipc": 2},
            "ipc 2 with syn.factor 2 takes 8 real images per class, .* has 7; lower ipc to 1",
        ),
        ({"method": "idm", "ipc": 1, "queue__size": 1}, "queue.size, 1, must be at least queue.start, 3"),
        (
            {"method": "idm", "ipc": 1, "match__statistics": "cached"},
            "those of the queue are in training; use match.statistics=fresh",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes, message, tmp_path):
    config = settings(**{"method": "dm"} | changes)
    with pytest.raises(InputError, match=message) as caught:
        distill(config, tiny_dataset(), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_method_without_a_row_is_one_line(tmp_path):
    config = override(settings("dm"), {"method": "iid-md"})
    with pytest.raises(InputError, match="unknown method 'iid-md'; did you mean 'iid-dm'"):
        distill(config, tiny_dataset(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_untrained_pool_is_an_error_that_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    config = settings("iid-dm", pool__lr=1e-9, pool__epochs=1, pool__seed=1)
    with pytest.raises(InputError, match=r"network 0 of the pool .* Raise pool.epochs \(now 1\)"):
        distill(config, tiny_dataset(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["made", "there", "link"])
@pytest.mark.parametrize("notes", [False, True])
def test_files_that_came_while_the_pool_trained_stay_when_it_is_refused(place, notes, tmp_path, monkeypatch):
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    out = target = tmp_path / "runs" / "run"
    if place != "made":
        out.mkdir(parents=True)
    if place == "link":
        out = tmp_path / "link"
        out.symlink_to(target)

    def written_meanwhile(*_: object) -> None:
        """Stands for the user, who writes into the folder during the first epoch."""
        assert (out / "config.yaml").is_file() and (out / ".lock").is_file()
        if notes:
            (out / "notes.txt").write_text("mine")

    monkeypatch.setattr(bars.Bar, "advance", written_meanwhile)
    with pytest.raises(InputError, match="network 0 of the pool") as caught:
        distill(settings("iid-dm", pool__lr=1e-9, pool__epochs=1, pool__seed=1), tiny_dataset(), out=out)
    assert "\n" not in str(caught.value)
    if place == "made" and not notes:
        assert not (tmp_path / "runs").exists()
    else:
        assert [path.name for path in target.iterdir()] == ["notes.txt"] * notes
    assert out.is_symlink() == (place == "link")


def test_a_run_whose_folder_vanished_while_the_pool_trained_tells_why_it_was_refused(tmp_path, monkeypatch):
    """Nothing that goes wrong while the folder is taken back hides the reason."""
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))

    def moved_meanwhile(*_: object) -> None:
        """Stands for the user, who puts a file in the folder's place."""
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").write_text("mine")

    monkeypatch.setattr(bars.Bar, "advance", moved_meanwhile)
    with pytest.raises(InputError, match="network 0 of the pool"):
        distill(settings("iid-dm", pool__lr=1e-9, pool__epochs=1, pool__seed=1), tiny_dataset(), out=tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine" and (tmp_path / "moved" / "config.yaml").is_file()


def test_a_run_loads_its_dataset_by_name():
    result = distill(settings("dm", iterations=1, match__batch_real=2))
    assert result.synthetic.spec.name == "shapes" and result.synthetic.images.shape == (12, 3, 32, 32)


def test_noise_to_start_from():
    run = ready_run(settings("dm", syn__init="noise"), tiny_dataset())
    assert abs(float(run.images.detach().mean())) < 0.1 and 0.9 < float(run.images.detach().std()) < 1.1
    assert torch.equal(run.images, ready_run(settings("dm", syn__init="noise"), tiny_dataset()).images)
    assert_step_is_the_loop(run, 0, SINGLE)


@pytest.mark.parametrize("resume", [False, True])
def test_settings_for_another_dataset_are_refused_before_anything_is_written(tmp_path: Path, resume: bool) -> None:
    config = override(settings("dm"), {"dataset": "cifar10"})
    message = r"settings are for dataset 'cifar10', .* given is 'shapes', .*preset\(..., dataset=dataset.name\)"
    with pytest.raises(InputError, match=message):
        distill(config, tiny_dataset(), out=tmp_path / "run", resume=resume)
    assert list(tmp_path.iterdir()) == []


def test_settings_name_held_out_images_as_their_dataset_does(tmp_path: Path) -> None:
    held_out = load_dataset("validation:shapes")
    small = {"match.width": 4, "match.batch_real": 4}
    for name in ("shapes", "validation:cifar10"):
        with pytest.raises(InputError, match=f"dataset '{name}', .* given is 'validation:shapes'"):
            distill(preset("dm", name, 1, "ci", small), held_out)
    result = distill(preset("dm", held_out.name, 1, "ci", small), held_out)
    assert result.synthetic.provenance["dataset"] == result.synthetic.spec.name == "validation:shapes"
