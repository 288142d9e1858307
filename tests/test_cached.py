"""iidlib.features.cached: they are those of all real images, and leave the real images alone afterwards."""

import pytest
import torch

from iidlib import losses
from iidlib.bench import PerClassLoop
from iidlib.config import preset
from iidlib.distillation import distill
from iidlib.errors import InputError
from iidlib.features import CachedStatistics, ClassStatistics
from tests.factories import (
    ALL,
    CC_FORMS,
    DOUBLE,
    LONG,
    SINGLE,
    Crash,
    crash,
    difference,
    expected,
    measured,
    ready_run,
    settings,
    stop_at,
    tiny_dataset,
)

CACHED = {"match__statistics": "cached", "match__cached_pairs": 3, "match__batch_real": 100}


def assert_steps_are_those_of_whole_classes(method: str, tolerance: float, **changes: object) -> None:
    run = ready_run(settings(method, **CACHED | changes), tiny_dataset((3, 9, 7, 12)), double=tolerance == DOUBLE)
    assert run.statistics is not None
    for iteration in (0, 4):
        found = measured(run, iteration)
        # the batch is as large as the largest class: the reference sees all images
        wanted = expected(run, run.statistics.pair(iteration))
        for name, (value, gradient) in wanted.items():
            assert found[name][0] == pytest.approx(value, rel=tolerance) and value > 0, name
            assert difference(found[name][1], gradient) <= tolerance, name


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("tolerance", [DOUBLE, SINGLE])
def test_a_cached_step_is_a_step_with_every_real_image(method, tolerance):
    assert_steps_are_those_of_whole_classes(method, tolerance)


@pytest.mark.parametrize("form", CC_FORMS[1:4], ids=str)
def test_with_other_scalings_too(form):
    assert_steps_are_those_of_whole_classes("iid-dm", DOUBLE, **form)


def test_without_augmentation_and_in_chunks():
    run = ready_run(settings("dm-cm", **CACHED, match__augmentation="none"), tiny_dataset(), double=True)
    other = ready_run(
        settings("dm-cm", **CACHED, match__augmentation="none", compute__chunk=4), tiny_dataset(), double=True
    )
    for name, (value, gradient) in measured(run, 1).items():
        assert measured(other, 1)[name][0] == pytest.approx(value, rel=1e-10)
        assert difference(measured(other, 1)[name][1], gradient) < 1e-10


@pytest.mark.parametrize("method", ["dm", "iid-dm"])
def test_once_a_pair_is_known_no_real_image_is_looked_at(method, monkeypatch):
    run = ready_run(settings(method, **CACHED, match__cc_scaling="relative"), tiny_dataset())
    for iteration in range(3):
        run.step(iteration)
    sizes: list[int] = []
    for network in [run.source.draw(0).network, *(run.pool.networks if run.pool else ())]:
        network.trunk.register_forward_hook(lambda module, images, output: sizes.append(len(images[0])))
    monkeypatch.setattr(run.real, "images_of", lambda index: pytest.fail("a real image was looked at"))
    monkeypatch.setattr(type(run.real), "sample", lambda *given: pytest.fail("a real image was drawn"))
    for iteration in range(3, 6):
        run.step(iteration)
    assert sizes == [len(run.images)] * 3 * (2 if run.pool else 1)


def test_every_pair_comes_once_a_round_in_another_order():
    statistics = CachedStatistics(7, seed=3)
    rounds = [[statistics.pair(7 * number + i) for i in range(7)] for number in range(4)]
    assert all(sorted(order) == list(range(7)) for order in rounds)
    assert len({tuple(order) for order in rounds}) == 4
    assert rounds != [[CachedStatistics(7, seed=4).pair(7 * n + i) for i in range(7)] for n in range(4)]


def test_time_and_memory_are_counted():
    statistics, asked = CachedStatistics(2, seed=0), []

    def measure() -> ClassStatistics:
        asked.append(1)
        return ClassStatistics(torch.zeros(2, 3), torch.zeros(2, 4, 4))

    assert statistics.mebibytes == 0 == statistics.seconds
    first = statistics.of(1, measure)
    assert statistics.of(1, measure) is first and len(asked) == 1
    statistics.scatter(0, range(2), lambda: torch.zeros(2))
    assert statistics.mebibytes == 4 * (6 + 32 + 2) / 2**20 and statistics.seconds > 0


def test_a_run_stopped_and_resumed_equals_the_unbroken_one(tmp_path, caplog):
    config, dataset = settings("iid-dm", **CACHED, **LONG), tiny_dataset(40)
    caplog.set_level("INFO", "iidlib")
    whole = distill(config, dataset)
    assert "statistics of 3 pairs cached" in caplog.text
    with pytest.raises(Crash):
        distill(config, dataset, out=tmp_path / "run", **stop_at(8, crash))
    resumed = distill(config, dataset, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.synthetic.images, whole.synthetic.images)


def test_wrong_settings_and_what_the_baseline_does_not_do():
    with pytest.raises(InputError, match=r"match.cached_pairs must be above 0, got 0"):
        preset("dm", changes={"match.cached_pairs": 0})
    with pytest.raises(InputError, match=r"match.statistics must be one of fresh, cached, got 'all'"):
        preset("dm", changes={"match.statistics": "all"})
    with pytest.raises(ValueError, match=r"match.statistics=fresh, got cached"):
        PerClassLoop(ready_run(settings("dm", **CACHED), tiny_dataset()))


def test_losses_against_known_statistics_check_shapes():
    syn, fmap = torch.zeros(2, 3, 5), torch.zeros(2, 3, 4, 6)
    with pytest.raises(ValueError, match=r"real_mean must have shape \(2, 5\)"):
        losses.mean_matching_to(torch.zeros(5), syn)
    with pytest.raises(ValueError, match=r"real_covariance must have shape \(2, 4, 4\)"):
        losses.covariance_matching_to(torch.zeros(2, 4, 6), fmap)
