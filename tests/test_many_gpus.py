"""The speed of one run on several processes: the benchmark, and the model of many GPUs that rests on its rows."""

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest

from iidlib.bench import compare_ranks
from iidlib.config import preset
from iidlib.errors import InputError
from iidlib.experiments import results_dir, rows_of
from iidlib.experiments.costs import DATASET_SIZES, device_model, seconds_per_iteration
from iidlib.experiments.many_gpus import LARGE, ModelledRun, modelled, repeated_share

ROWS = pd.DataFrame({"method": "iid-dm", "ranks": [1, 2, 4], "seconds": [100.0, 55.0, 32.5]})
"""An iteration of which every process repeats a tenth."""


def test_the_share_that_every_process_repeats() -> None:
    assert repeated_share(ROWS) == pytest.approx(0.1)
    assert repeated_share(ROWS.assign(seconds=[100.0, 49.0, 24.0])) == 0, "faster than the number of processes"
    assert repeated_share(ROWS.assign(seconds=[100.0, 120.0, 140.0])) == 1
    assert math.isnan(repeated_share(ROWS[:1]))


def test_the_model_by_hand() -> None:
    runs = {(run.dataset, run.ipc, run.ranks): run for run in modelled(ROWS, [1, 8, 64])}
    assert len(runs) == len(LARGE) * 2 * 3
    one, eight = runs["tinyimagenet", 10, 1], runs["tinyimagenet", 10, 8]
    config = preset("iid-dm", "tinyimagenet", 10, "paper")
    alone = seconds_per_iteration(config, DATASET_SIZES["tinyimagenet"], device_model("h100"))
    assert one.seconds == pytest.approx(alone)
    assert one.hours == pytest.approx(alone * config.iterations / 3600)
    image = 3 * 64 * 64
    assert one.images_gib == pytest.approx(3 * 200 * 10 * image * 4 / 2**30)
    assert one.real_gib == pytest.approx(100_000 * image / 2**30)
    gathered = 2 * 200 * 10 * image * 4 * 7 / 8 / config.checkpoint.every
    assert eight.seconds == pytest.approx(alone * (0.1 + 0.9 * 25 / 200) + gathered / 50e9)
    assert eight.images_gib == pytest.approx((1 + 2 * 25 / 200) * 200 * 10 * image * 4 / 2**30)
    others = ROWS.assign(method="idm", seconds=[1.0, 2.0, 3.0])
    assert modelled(pd.concat([others, ROWS]), [1, 8, 64]) == [*runs.values()], "rows of another method do not count"


@pytest.mark.parametrize("name", LARGE)
def test_more_gpus_are_faster_and_hold_less(name: str) -> None:
    runs = [run for run in modelled(ROWS, [1, 2, 8, 64], ipcs=[50]) if run.dataset == name]
    for fewer, more in itertools.pairwise(runs):
        assert isinstance(more, ModelledRun)
        assert more.seconds < fewer.seconds and more.images_gib < fewer.images_gib
        assert more.seconds >= 0.1 * runs[0].seconds, "the repeated share stays"


def test_one_process_and_two_are_timed(tmp_path: Path) -> None:
    small = {"match.batch_real": 8, "match.width": 8, "pool.width": 8, "match.cc_real": 8}
    seen: list[dict[str, object]] = []
    rows = compare_ranks((1, 2), classes=5, ipc=1, rounds=1, changes=small, on_row=seen.append)
    assert rows == seen and [row["ranks"] for row in rows] == [1, 2]
    assert rows[0]["ratio"] == 1 and rows[1]["ratio"] == rows[0]["seconds"] / rows[1]["seconds"]
    assert all(row["seconds"] > 0 and row["gather_seconds"] >= 0 for row in rows)
    assert {(row["width"], row["batch_real"], row["classes"]) for row in rows} == {(8, 8, 5)}


def test_what_cannot_be_timed_is_refused_before_a_process_starts() -> None:
    with pytest.raises(InputError, match=r"unknown method 'iid-md'.*iid-dm"):
        compare_ranks(method="iid-md")
    with pytest.raises(InputError, match="3 classes can be shared by 1 to 3 processes, got 4"):
        compare_ranks((1, 4), classes=3)
    with pytest.raises(InputError, match=r"unknown setting 'match\.x'"):
        compare_ranks(changes={"match.x": 1})


def test_the_committed_rows_are_those_that_the_texts_name() -> None:
    rows = rows_of("bench-ranks")
    assert {(row.method, row.classes, row.ipc) for row in rows.itertuples()} == {("iid-dm", 100, 10), ("idm", 10, 10)}
    text = " ".join((results_dir() / "README.md").read_text(encoding="utf8").split())
    for method, classes, least in (("iid-dm", 100, 1.8), ("idm", 10, 1.5)):
        own = rows[rows["method"] == method]
        one, two = (own[own["ranks"] == count]["seconds"].median() for count in (1, 2))
        assert one / two >= least
        said = (
            f"{two:.1f} s instead of {one:.1f} s for `{method}` with {classes} classes, {one / two:.1f} times as fast"
        )
        assert said in text
