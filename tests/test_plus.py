"""iid-plus: its step against the loop, its parts off and on, its sources on other methods, what does not fit."""

import logging
from pathlib import Path

import attrs
import pytest
import torch

from iidlib.bench.report import measure
from iidlib.config import override, preset
from iidlib.config.recipes import FROM_POOL
from iidlib.data import Dataset, RealSet
from iidlib.distillation import METHODS, TERMS, Distillation, LazyDraws, Method, Term, distill, step
from iidlib.distillation.methods import SOURCES
from iidlib.errors import InputError
from iidlib.features import NetworkQueue, RandomNetworks, StageNetworks
from iidlib.runs import RunFolder
from tests.factories import (
    DOUBLE,
    SINGLE,
    Crash,
    assert_step_is_the_loop,
    crash,
    difference,
    distilled_images,
    logged_rows,
    on_buffers,
    ready_run,
    settings,
    stop_at,
    tiny_dataset,
)
from tests.fake_cuda import fake_cuda

EVEN = (8, 8, 8, 8)
OFF = {"match__ce": 0, "match__cm": 0, "match__cc": 0, "match__mmd": 0}
RICH = {"match__cm": 1.0, "match__mmd": 2.0}
"""Every term."""

# One step against the loop over classes, images and positions

PARTS = [
    {},
    {"match__mean": 0.5},
    {"match__mmd_form": "characteristic", "match__mmd_frequencies": 7},
    {"match__cm_blocks": 2},
    {"match__cc_scaling": "relative", "match__cc_real": 4},
    {"stages__interpolate": "on", "stages__schedule": "late"},
]


@pytest.mark.parametrize("changes", PARTS, ids=str)
def test_a_step_is_the_loop_over_classes(changes):
    config = settings("iid-plus", **RICH | changes)
    for double, tolerance in ((True, DOUBLE), (False, SINGLE)):
        run = ready_run(config, tiny_dataset(), double=double)
        assert tuple(run.terms) == METHODS["iid-plus"].terms
        for iteration in (1, 6):
            assert_step_is_the_loop(run, iteration, tolerance)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("chunk", [0, 5])
def test_covariances_of_earlier_blocks_are_the_loop_in_pixels_of_the_last(blocks, chunk):
    config = settings("iid-dm", match__cm_blocks=blocks, compute__chunk=chunk, match__cm=1.0)
    assert_step_is_the_loop(ready_run(config, tiny_dataset(), double=True), 0, DOUBLE)


def test_mosaics_under_stages_are_the_loop():
    config = settings("iid-plus", 1, **RICH | {"syn__factor": 2})
    assert_step_is_the_loop(ready_run(config, tiny_dataset(), double=True), 2, DOUBLE)


@pytest.mark.parametrize("form", ["gaussian", "characteristic"])
def test_classes_of_one_real_image_have_a_distance_too(form):
    run = ready_run(settings("iid-plus", 1, **OFF | {"match__mmd": 1, "match__mmd_form": form}),
                tiny_dataset((1, 3, 20, 5)), double=True)  # fmt: skip
    run.images.data += 0.3 * torch.randn_like(run.images)  # a class of one image starts from it
    assert_step_is_the_loop(run, 0, DOUBLE)


@pytest.mark.parametrize("form", ["gaussian", "characteristic"])
def test_a_class_of_copies_of_one_image_does_not_drive_the_images_out_of_all_range(form):
    whole = tiny_dataset((14, 14, 14, 14))
    images = whole.train.images.clone()
    images[whole.train.labels == 1] = images[whole.train.labels == 1][:1].clone()
    copies = Dataset(whole.name, RealSet(images, whole.train.labels, whole.spec), whole.test, whole.spec)
    for real in (7, 14):
        config = settings("iid-plus", 2, match__cc_scaling="relative", match__batch_real=real, syn__init="noise",
                          match__mmd=300, match__mmd_form=form, match__cc=1, iterations=3)  # fmt: skip
        result = distill(config, copies)
        assert result.synthetic.images.abs().max() < 50
        assert result.metrics[["loss_cc", "grad_cc", "loss_mmd"]].max().max() < 1e4, result.metrics


# Parts off, and on


def test_with_every_part_off_it_is_dm_bit_for_bit():
    dm = settings("dm")
    off = settings("iid-plus", match__source="random", match__network="convnet3", syn__lr=dm.syn.lr, **OFF)
    assert torch.equal(distilled_images(off), distilled_images(dm))
    for part in ({"match.source": "stages", "match.network": "convnet2"}, {"syn.factor": 2}, {"match.cm": 0.5},
                 {"match.cc": 0.5, "match.cc_scaling": "relative"}, {"match.mmd": 0.5},
                 {"match.ce": 0.5, "match.source": "stages", "match.network": "convnet2"}):  # fmt: skip
        assert not torch.equal(distilled_images(override(off, part)), distilled_images(dm)), part


def test_the_cross_entropy_weighs_nothing_under_networks_that_know_nothing():
    off = settings("iid-plus", match__source="random", match__network="convnet3", **OFF)
    on = override(off, {"match.ce": 0.5})
    assert torch.equal(distilled_images(off), distilled_images(on))
    assert METHODS["iid-plus"].left_out(on)["ce"] == "its weight is zero for random networks"
    assert "ce" not in METHODS["idm"].left_out(settings("idm"))


@pytest.mark.parametrize("method", ["iid-plus", "idm"])
def test_an_objective_of_nothing_but_cross_entropy_under_random_networks_is_empty(method):
    given = OFF | {"match__ce": 0.5, "match__mean": 0, "match__source": "random"}
    terms = {key: value for key, value in given.items() if method == "iid-plus" or "cm" not in key}
    with pytest.raises(InputError, match=rf"of {method} is empty: .*ce \(its weight is zero for random networks\)"):
        Distillation(settings(method, **terms), tiny_dataset())


@pytest.mark.parametrize(
    ("source", "kind"), [("random", RandomNetworks), ("queue", NetworkQueue), ("stages", StageNetworks)]
)
@pytest.mark.parametrize("method", ["dm", "iid-dm", "idm", "iid-plus"])
def test_every_method_takes_every_source(method, source, kind):
    changes = {"match__source": source, "match__network": "convnet2", "pool__width": 4, "match__batch_real": 4}
    result = distill(settings(method, 1, **changes), tiny_dataset(40))
    run = Distillation(settings(method, 1, **changes), tiny_dataset(40))
    assert type(run.source) is kind
    assert ("queue_networks" in result.metrics) is (source == "queue")
    assert ("stage_accuracy" in result.metrics) is (source == "stages")
    needs = source == "stages" or any(term.needs_pool for term in run.terms.values())
    assert (result.pool is not None) is needs
    own = METHODS[method].source == source
    if own:
        changes["match__source"] = "auto"
        assert torch.equal(distilled_images(settings(method, 1, **changes)), result.synthetic.images)


def test_class_centralization_under_stages_costs_no_pass_of_its_own():
    config = settings("iid-plus", **RICH | {"match__cc_scaling": "relative", "match__cc_real": 4})
    run = ready_run(config, tiny_dataset())
    network, sizes = run.source.draw(3).network, []
    network.trunk.register_forward_hook(lambda module, images, output: sizes.append(len(images[0])))
    for member in run.pool.networks:
        member.trunk.register_forward_hook(lambda module, images, output: pytest.fail("a member itself is asked"))
    batch = run.batch(3)
    assert batch.pretrained is batch.network is network
    assert batch.pretrained_syn_features is batch.syn_features
    sizes.clear()
    run.losses(3)
    assert sorted(sizes) == [4 * 3, 4 * 6], "synthetic and real images, once each"


def test_cm_blocks_change_nothing_but_covariance_matching():
    for method in ("dm", "iid-plus"):
        off = {"match__cm": 0} if method == "iid-plus" else {}
        assert torch.equal(
            distilled_images(settings(method, match__cm_blocks=2, **off)), distilled_images(settings(method, **off))
        )
    # which blocks there are is not asked where none is looked at
    other = tiny_dataset(40, 32)
    distill(settings("dm", 1, match__network="alexnet", match__cm_blocks=9, iterations=1), other)


# Stages and cached statistics


def test_cached_statistics_go_with_stages_under_a_uniform_schedule():
    changes = {"match__statistics": "cached", "match__cached_pairs": 3, "match__cc_scaling": "relative"}
    config = settings("iid-plus", match__mmd=0, **changes)
    assert torch.equal(distilled_images(config), distilled_images(config))


# What does not go together


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "iid-plus",
            {"match__cm_blocks": 3},
            r"cm_blocks must be at most 2, the number of blocks of convnet2, got 3",
        ),
        (
            "dm-cm",
            {"match__cm_blocks": 4},
            r"cm_blocks must be at most 3, the number of blocks of convnet3, got 4",
        ),
        ("dm-cm", {"match__cm_blocks": 2, "match__network": "alexnet"}, r"cm_blocks=2 needs a ConvNet; alexnet has no"),
        (
            "iid-plus",
            {"match__mmd": 0, "match__cm_blocks": 2, "match__statistics": "cached"},
            r"statistics=cached holds .* match.cm_blocks=2 needs more; set match.cm_blocks=1, or use match.stati",
        ),
        (
            "iid-plus",
            {"match__mmd": 0.5, "match__cm_blocks": 2, "match__statistics": "cached"},
            r"statistics=cached .* match.cm_blocks=2 and match.mmd=0.5 need more; set match.cm_blocks=1 match.mmd=0",
        ),
        (
            "iid-plus",
            {"match__mmd": 0.5, "match__statistics": "cached", "match__mmd_form": "characteristic"},
            r"statistics=cached holds .* match.mmd=0.5 needs more",
        ),
        (
            "iid-plus",
            {"match__width": 8},
            r"match.width \(8\) must equal pool.width \(4\); set both, or use match.source=random",
        ),
        ("iid-plus", {"pool__network": "convnet1"}, r"match.network \(convnet2\) must equal pool.network \(convnet1\)"),
        ("dm", {"match__source": "stages"}, r"match.network \(convnet3\) must equal pool.network \(convnet2\)"),
        (
            "iid-plus",
            {"match__mmd": 0, "match__statistics": "cached", "stages__schedule": "early"},
            r"match.statistics=cached cycles .*, but stages.schedule=early spreads them over",
        ),
        (
            "iid-plus",
            {"match__mmd": 0, "match__statistics": "cached", "match__source": "queue"},
            "those of the queue are in training",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(method, changes, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        distill(settings(method, **changes), tiny_dataset(), out=tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


class SpreadSource(StageNetworks):
    """A source of one's own, which goes through its networks in the course of the run."""

    spread_by = "mine"


def test_statistics_are_not_cached_for_a_source_of_ones_own_that_spreads_its_networks(monkeypatch):
    def mine(config, dataset, device):
        return SpreadSource(config.pool, config.stages, dataset.train, iterations=9, seed=0)

    monkeypatch.setitem(METHODS, "mine", Method(("mean",), mine))
    config = attrs.evolve(settings("dm", match__statistics="cached"), method="mine")
    with pytest.raises(InputError, match=r"match.statistics=cached cycles through the same networks, but mine spreads"):
        Distillation(config, tiny_dataset())


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_that_draw_from_the_pool_are_known_before_one_is_made(name):
    config = settings("iid-plus", match__source=name, match__cc=0, syn__init="real")
    made = Distillation(config, tiny_dataset())
    assert made.source.from_pool == (name in FROM_POOL) == METHODS["iid-plus"].needs_pool(config)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method(("mean",), "stage"), "unknown source of matching networks 'stage'; did you mean 'stages'"),
        (Method(("means",)), "unknown term 'means'; did you mean 'mean'"),
        (Method(()), "is empty: the method has no terms"),
    ],
)
def test_a_method_of_ones_own_with_a_wrong_name_is_one_line(method, message, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", method)
    with pytest.raises(InputError, match=message):
        Distillation(attrs.evolve(settings("dm"), method="mine"), tiny_dataset())


def test_a_pool_too_large_is_reported_for_terms_and_sources_of_ones_own(monkeypatch):
    monkeypatch.setitem(TERMS, "own", Term(lambda batch: 0, lambda config: 1.0, needs_pool=True))
    monkeypatch.setitem(SOURCES, "own", SOURCES["stages"])
    huge = {"pool__count": 10**6, "pool__width": 512, "match__width": 512, "syn__init": "real", "match__cc": 0}
    for method in (Method(("mean", "own")), Method(("mean",), "own")):
        monkeypatch.setitem(METHODS, "mine", method)
        with pytest.raises(InputError, match=r"lower pool.width or pool.count"):
            Distillation(attrs.evolve(settings("iid-plus", **huge), method="mine"), tiny_dataset())


def test_frequencies_that_no_memory_holds_are_reported_before_the_pool_is_trained():
    changes = {"match__mmd": 1.0, "match__mmd_form": "characteristic", "match__mmd_frequencies": 10**9}
    with pytest.raises(InputError, match=r"lower match.mmd_frequencies"):
        Distillation(settings("iid-plus", **changes), tiny_dataset())


def test_a_network_without_a_number_is_reported_as_such():
    with pytest.raises(InputError, match="convnetX"):
        Distillation(settings("iid-plus", match__cm_blocks=2, match__network="convnetX"), tiny_dataset())


def test_a_term_that_is_left_out_asks_for_nothing():
    changes = {"match__statistics": "cached", "match__cm_blocks": 2, "match__cm": 0, "match__mmd": 0, "match__cc": 0}
    assert "cm" not in Distillation(settings("iid-plus", **changes), tiny_dataset()).terms


# The same seed, stopped and resumed

WHOLE = {"stages__schedule": "early", "stages__interpolate": "on", "match__mmd": 1.0, "match__cm_blocks": 2}


@pytest.mark.parametrize("schedule", ["early", "late"])
def test_a_run_with_a_schedule_that_crashed_equals_the_unbroken_one(schedule, tmp_path):
    changes = WHOLE | {"stages__schedule": schedule, "match__mmd_form": "characteristic"}
    config = settings("iid-plus", iterations=12, checkpoint__every=3, **changes)
    whole = distill(config, tiny_dataset(40), out=tmp_path / "whole")
    with pytest.raises(Crash):
        distill(config, tiny_dataset(40), out=tmp_path / "broken", **stop_at(7, crash))
    resumed = distill(config, tiny_dataset(40), out=tmp_path / "broken", resume=True)
    assert torch.equal(resumed.synthetic.images, whole.synthetic.images)
    logged = {row["iteration"]: row for row in logged_rows(tmp_path / "whole")}
    assert all(
        logged[row["iteration"]] == row for row in logged_rows(tmp_path / "broken") if row["iteration"] in logged
    )
    assert torch.equal(distilled_images(config), whole.synthetic.images)
    assert not torch.equal(distilled_images(override(config, {"seed": 1})), whole.synthetic.images)


@pytest.mark.parametrize("schedule", ["early", "late"])
def test_a_run_over_which_a_schedule_was_spread_is_not_continued(schedule, tmp_path):
    def config(iterations, **changes):
        return settings("iid-plus", iterations=iterations, checkpoint__every=3, stages__schedule=schedule, **changes)

    distill(config(5), tiny_dataset(40), out=tmp_path / "done")
    with pytest.raises(Crash):
        distill(config(12), tiny_dataset(40), out=tmp_path / "stopped", **stop_at(7, crash))
    for folder, said in (("done", "5 of 5"), ("stopped", "6 of 12")):
        before = {path: path.read_bytes() for path in sorted((tmp_path / folder).rglob("*")) if path.is_file()}
        for iterations in (8, 20):
            message = rf"done {said} iterations, .* stages.schedule={schedule} .* extended to iterations={iterations};"
            with pytest.raises(InputError, match=message) as caught:
                distill(config(iterations), tiny_dataset(40), out=tmp_path / folder, resume=True)
            assert "\n" not in str(caught.value)
        assert {path: path.read_bytes() for path in before} == before
    resumed = distill(config(12), tiny_dataset(40), out=tmp_path / "stopped", resume=True).synthetic.images
    assert torch.equal(resumed, distilled_images(config(12)))


def test_a_schedule_that_nothing_reads_stops_no_run_from_being_continued(tmp_path):
    for iterations in (4, 8):
        config = settings("dm", iterations=iterations, checkpoint__every=3, stages__schedule="early")
        images = distill(config, tiny_dataset(40), out=tmp_path / "run", resume=iterations == 8).synthetic.images
    assert torch.equal(images, distilled_images(config)) and RunFolder(tmp_path / "run").config().iterations == 8


def test_a_source_of_ones_own_is_asked_what_it_does_not_what_it_is_called(monkeypatch, tmp_path):
    def stages(config, dataset, device):
        return StageNetworks(config.pool, config.stages, dataset.train, iterations=config.iterations, seed=config.seed)

    def config(iterations, **changes):
        asked = override(settings("iid-plus", 2, iterations=iterations, checkpoint__every=3), changes)
        return override(asked, {"method": "mine", "stages.schedule": "early"})

    monkeypatch.setitem(METHODS, "mine", Method(("mean",), stages))
    distill(config(5), tiny_dataset(40), out=tmp_path / "run")
    with pytest.raises(
        InputError, match=r"done 5 of 5 iterations, .* stages.schedule=early .* extended to iterations=8;"
    ):
        distill(config(8), tiny_dataset(40), out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"^this needs .*the weights of the pool: lower pool\.width or pool\.count"):
        Distillation(config(5, **{"pool.width": 10**9}), tiny_dataset(40))


def test_a_run_that_has_done_nothing_takes_another_number(tmp_path):
    def config(iterations):
        return settings("iid-plus", iterations=iterations, checkpoint__every=3, stages__schedule="early")

    with pytest.raises(Crash):
        distill(config(12), tiny_dataset(40), out=tmp_path / "run", **stop_at(2, crash))
    resumed = distill(config(8), tiny_dataset(40), out=tmp_path / "run", resume=True).synthetic.images
    assert torch.equal(resumed, distilled_images(config(8)))


# A step that is recorded


@pytest.mark.parametrize("changes", [{}, *PARTS[1:], {"match__cc": 0, "syn__factor": 2}], ids=str)
def test_a_step_on_buffers_is_the_plain_step(changes):
    config = settings("iid-plus", 2, **RICH | changes)
    plain, buffered = (ready_run(config, tiny_dataset(EVEN)) for _ in range(2))
    start = plain.images.detach().clone()
    step = on_buffers(buffered)
    for iteration in range(6):
        plain.step(iteration)
        step.step(iteration)
    assert difference(buffered.images.detach() - start, plain.images.detach().double() - start) < 1e-4


def test_buffers_hold_accuracy_and_frequencies_at_one_place():
    run = ready_run(settings("iid-plus", match__mmd=1.0, match__mmd_form="characteristic"), tiny_dataset(EVEN))
    draws = on_buffers(run).draws
    places = [tensor.data_ptr() for tensor in (draws.frequencies, draws.matching.accuracy)]
    seen = set()
    for iteration in range(8):
        draws.load(iteration)
        plain = LazyDraws(run, iteration)
        assert torch.equal(draws.frequencies, plain.frequencies) and draws.pretrained is draws.matching.network
        held = draws.matching.accuracy
        assert held == torch.tensor(plain.matching.accuracy)  # in float32, as it is held
        seen.add(float(draws.matching.accuracy))
    assert len(seen) > 1
    assert [tensor.data_ptr() for tensor in (draws.frequencies, draws.matching.accuracy)] == places


@pytest.mark.parametrize(
    ("terms", "changes", "why"),
    [
        (("mmd",), {}, r"mmd \(its weight is zero\)"),
        (("mean",), {"match.mean": 0}, r"mean \(its weight is zero\)"),
        (("cm",), {"ipc": 1}, r"cm \(a class has only one image\)"),
    ],
)
def test_a_method_without_a_term_is_one_line(terms, changes, why, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(terms))
    config = override(settings("dm"), {"method": "mine", "match.mmd": 0.0} | changes)
    with pytest.raises(InputError, match=rf"^the objective of mine is empty: {why}; give a term a weight"):
        Distillation(config, tiny_dataset())


def test_a_term_of_ones_own_may_ask_for_frequencies_on_buffers_too(monkeypatch):
    def asks(batch):
        return (batch.syn_features @ batch.frequencies.mT).cos().mean((1, 2))

    monkeypatch.setitem(TERMS, "asks", Term(asks, weight=lambda config: 1.0))
    monkeypatch.setitem(METHODS, "mine", Method(("mean", "asks")))
    config = override(settings("dm"), {"method": "mine"})
    plain, buffered = (ready_run(config, tiny_dataset(EVEN)) for _ in range(2))
    start, step = plain.images.detach().clone(), on_buffers(buffered)
    for iteration in range(3):
        plain.step(iteration)
        step.step(iteration)
    assert difference(buffered.images.detach() - start, plain.images.detach().double() - start) < 1e-4


def test_a_source_receives_recorded_iterations_too(monkeypatch):
    """One of the caller's own may draw in place and keep a history beside its weights."""
    fake_cuda(monkeypatch)
    run = ready_run(settings("dm"), tiny_dataset(EVEN))
    run.record()
    reported = []
    monkeypatch.setattr(run.source, "advance", reported.append)
    monkeypatch.setattr(step, "objective_gradient", lambda *given, **named: pytest.fail("every step is replayed"))
    for iteration in range(3):
        run.step(iteration, log=iteration == 1)
    assert reported == [0, 1, 2]


# The preset


def test_the_preset_runs_at_ci_scale_with_a_set_of_mosaics(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "iidlib")
    result = distill(preset("iid-plus", "shapes", 1, "ci", {"pool.untrained": "warn"}), out=tmp_path / "run")
    assert result.synthetic.factor == 2 and result.pool is not None and len(result.pool.networks) == 2
    assert {"loss_mean", "loss_cm", "loss_ce", "loss_mmd", "stage_accuracy"} <= set(result.metrics)


def test_a_pool_that_has_diverged_is_named_by_every_term():
    run = ready_run(settings("iid-plus", 2, match__ce=0, match__cm=0, match__cc=0), tiny_dataset())
    for network in run.pool.networks:
        network.classifier.weight.data.fill_(torch.nan)
        network.trunk[0].conv.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"networks of the pool have diverged: lower pool\.lr"):
        run.step(0)


def test_the_bench_says_that_its_loop_is_of_published_methods():
    with pytest.raises(InputError, match=r"^iid-plus cannot be compared with the loop over classes, [^\n]*$"):
        measure(("iid-plus",), quick=True, device="cpu")


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ("iid-plus", {"match.cc_real": 1}, "match.cc_real must be 2 or more where match.cc_scaling=relative"),
        ("iid-plus", {"match.batch_real": 1}, "match.batch_real must be 2 or more where match.cc_scaling=relative"),
        ("iid-plus", {"match.batch_real": 1, "match.cc": 0}, "match.batch_real must be 2 or more where match.mmd"),
    ],
)
def test_one_real_image_has_no_scatter_to_measure_others_by(method, changes, why):
    usual = {"match.cc_scaling": "relative", "match.mmd": 1.0}
    with pytest.raises(InputError, match=f"^{why} measures the scatter of real images, got 1$"):
        Distillation(override(settings(method), usual | changes), tiny_dataset())
    Distillation(override(settings("dm"), {"match.batch_real": 1}), tiny_dataset())
