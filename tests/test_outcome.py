"""iidlib.training.outcome: what diverged is reported as such, wherever its accuracy stands."""

import dataclasses
import logging
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from iidlib import distill, evaluate, preset
from iidlib.cli.scores import accuracy_text, summary
from iidlib.data import Dataset
from iidlib.distillation import step
from iidlib.distillation.divergence import remedy
from iidlib.distillation.gradient import Logged
from iidlib.distillation.step import Distillation
from iidlib.evaluation import random_real
from iidlib.experiments import Cell, all_rows, append_results, mean_of, measured, result_rows, table
from iidlib.networks import Network, build_network
from iidlib.training import range_exceeded, reached
from iidlib.training.outcome import Outputs
from tests.result_rows import rows

PICTURES = {"per_class": 40, "size": 32}
"""Of the fixture `pictures`."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library has warned of."""
    own = (record for record in caplog.records if record.name == "iidlib")
    return [record.getMessage() for record in own if record.levelno == logging.WARNING]


def network(pictures: Dataset) -> Network:
    spec = pictures.spec
    return build_network("convnet3", num_classes=len(spec.classes), image_size=spec.image_size, width=4)


@pytest.mark.parametrize(
    ("logits", "outcome"),
    [
        ([[[1.0, 2.0], [1.0, 2.5]]], "trained"),
        ([[[1.0, 2.0]], [[1.0, 2.5]]], "trained"),
        ([[[1.0, 2.0]], [[1.0, 2.0]]], "constant"),
        ([[[0.0, 0.0], [0.0, 0.0]]], "constant"),
        ([[[1.0, 2.0]], [[1.0, 2.0 + 1e-6]]], "constant"),
        ([[[1.0, 2.0]]], "trained"),
        ([[[1.0, 2.0]], [[1.0, math.nan]]], "diverged"),
        ([[[1.0, math.nan]], [[1.0, 2.0]]], "diverged"),
        ([[[1.0, 2.0], [1.0, -math.inf]]], "diverged"),
        ([[[1.0, 2.0], [1.0, -1e9]]], "diverged"),
        ([], "trained"),
    ],
)
def test_outputs_say_what_a_network_came_to(logits: list[list[list[float]]], outcome: str) -> None:
    outputs = Outputs()
    for chunk in logits:
        outputs.add(torch.tensor(chunk))
    assert outputs.outcome == outcome


def test_a_network_is_tested_with_its_outcome(pictures: Dataset) -> None:
    fresh = network(pictures)
    assert reached(fresh, pictures.test).outcome == "trained"
    for value, outcome in ((0.0, "constant"), (math.nan, "diverged")):
        torch.nn.init.constant_(fresh.classifier.weight, value)
        assert reached(fresh, pictures.test).outcome == outcome


def test_images_beyond_pictures_are_orders_of_magnitude_beyond(pictures: Dataset) -> None:
    images = pictures.train.images_of(torch.arange(8))
    assert range_exceeded(images, pictures.spec) is None and range_exceeded(10 * images, pictures.spec) is None
    found = range_exceeded(1e4 * images, pictures.spec)
    assert found is not None and found[0] > 100 * found[1]
    assert range_exceeded(torch.full_like(images, math.nan), pictures.spec) is not None


def test_networks_that_diverge_are_reported_in_the_row_the_warning_and_the_cell(
    pictures: Dataset, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config = preset("random", "shapes", 2, "ci")
    fine = evaluate(random_real(pictures.train, 2), pictures, protocol=config.eval)
    assert fine["outcome"].tolist() == ["trained"] * 2 and not warnings(caplog)
    wild = preset("random", "shapes", 2, "ci", {"eval.lr": 1e6})
    scores = evaluate(random_real(pictures.train, 2), pictures, protocol=wild.eval)
    assert scores["outcome"].tolist() == ["diverged"] * 2
    (reported,) = warnings(caplog)
    assert reported.startswith("2 of 2 convnet3 diverged") and reported.endswith("lower eval.lr (now 1e+06)")
    append_results(tmp_path / "r.csv", result_rows(scores, wild))
    assert all_rows(tmp_path)["outcome"].tolist() == ["diverged"] * 2
    assert accuracy_text(scores) == "diverged" and "±" in accuracy_text(fine)


def test_images_that_left_the_range_are_reported_where_they_are_made_and_evaluated(
    pictures: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    config = preset("dm", "shapes", 2, "ci", {"syn.lr": 1e6})
    made = distill(config, pictures).synthetic
    assert "so they represent the classes poorly: lower syn.lr (now 1e+06), then distil again" in caplog.text
    caplog.clear()
    scores = evaluate(made, pictures, protocol=config.eval)
    assert scores["outcome"].tolist() == ["out of range"] * 2 and "was syn.lr or queue.lr too high" in caplog.text
    assert accuracy_text(scores).endswith("(out of range)")


def test_networks_of_the_queue_that_diverge_name_queue_lr(pictures: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    config = preset("idm", "shapes", 2, "ci", {"queue.lr": 1e30, "queue.batch": 8, "iterations": 8})
    with pytest.raises(FloatingPointError, match=r"networks of the queue have diverged: lower queue.lr \(now 1e\+30\)"):
        distill(config, pictures)


def remedy_of(run: Distillation, term: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a step tells to do where a term is not a number."""
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError) as stopped:
        made = run.images.detach(), Logged({term: torch.tensor(torch.nan)}, {})
        patch.setattr(step, "objective_gradient", lambda *given, **named: made)
        run.step(0)
    found, _, advice = str(stopped.value).partition("; ")
    assert found == f"the term {term!r} is nan at iteration 0"
    return advice


def test_what_made_a_term_run_away_is_named(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(method: str = "dm-cm", **changes: object) -> Distillation:
        given = {key.replace("__", "."): value for key, value in changes.items()}
        return Distillation(preset(method, "shapes", 2, "ci", given), pictures)

    assert remedy_of(run(), "mean", monkeypatch) == "lower match.mean (now 1) or syn.lr (now 1)"
    assert remedy_of(run(match__cm=0.02), "cm", monkeypatch) == "lower match.cm (now 0.02) or syn.lr (now 1)"
    heavy = run(match__cm=7)
    assert remedy_of(heavy, "cm", monkeypatch) == "lower match.cm (now 7, usually 0.01) or syn.lr (now 1)"
    assert (
        remedy_of(heavy, "mean", monkeypatch)
        == "lower match.mean (now 1) or match.cm (now 7, usually 0.01) or syn.lr (now 1)"
    )
    heavy.images.data.mul_(1e5)
    assert remedy(heavy) == "lower match.cm (now 7, usually 0.01) or syn.lr (now 1)", "not the step alone"
    assert remedy_of(heavy, "mean", monkeypatch).endswith(remedy(heavy)) and "where pictures reach" in remedy_of(
        heavy, "mean", monkeypatch
    )
    far = run(syn__lr=30)
    far.images.data.mul_(1e5)
    assert remedy_of(far, "cm", monkeypatch).endswith("lower syn.lr (now 30)") and "where pictures reach" in remedy_of(
        far, "cm", monkeypatch
    )
    steep = run("dm-cc", match__cc_form="exp", match__cc_alpha=100)
    assert remedy_of(steep, "cc", monkeypatch) == "its exponent overflows: lower match.cc_alpha (now 100)"


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        (["trained", "trained"], "20.0 ± 10.0"),
        (["trained", math.nan], "20.0 ± 10.0"),
        (["diverged", "diverged"], "diverged"),
        (["constant", "constant"], "constant"),
        (["trained", "diverged"], "20.0 ± 10.0 (diverged: 1 of 2)"),
        (["out of range", "out of range"], "20.0 ± 10.0 (out of range)"),
    ],
)
def test_a_table_of_scores_says_what_networks_came_to(outcomes: list[object], text: str) -> None:
    assert accuracy_text(pd.DataFrame({"accuracy": [10.0, 30.0], "outcome": outcomes})) == text
    assert accuracy_text(pd.DataFrame({"accuracy": [10.0, 30.0]})) == "20.0 ± 10.0"  # of an older table


def test_a_cell_counts_networks_that_diverged_and_says_how_many(tmp_path: Path) -> None:
    """To leave them out would be to choose by the result, and their seed would be run again and again."""
    cell = Cell("cifar10", "dm", 10)
    for outcome in ("trained", "", math.nan, "diverged"):
        assert len(measured(cell, "laptop", rows({"outcome": outcome}))) == 1
    both = rows({"outcome": "trained", "accuracy": 40.0}, {"outcome": "diverged", "seed": 1, "accuracy": 10.0})
    assert sorted(measured(cell, "laptop", both)) == [10.0, 40.0]
    later = rows({"outcome": "trained", "accuracy": 40.0}, {"outcome": "diverged", "accuracy": 10.0, "date": "9999"})
    assert measured(cell, "laptop", later).tolist() == [10.0], "the newest counts, whatever it is"
    both.to_csv(tmp_path / "laptop.csv", index=False)
    shown = table("main", tmp_path).query("dataset == 'cifar10' and ipc == 10 and method == 'dm'")
    (line,) = shown.to_dict("records")
    networks = int((both["outcome"] == "diverged").sum())
    assert line["laptop_failed"] == f"{networks} diverged"
    assert mean_of(line, "laptop") == f"25.0 ± 15.0 (2; {networks} diverged)"


def test_a_set_of_other_deviations_is_measured_by_its_own(pictures: Dataset) -> None:
    spec = dataclasses.replace(pictures.spec, std=tuple(0.001 for _ in pictures.spec.std))
    images = random_real(pictures.train, 2).images * 100
    assert range_exceeded(images, pictures.spec) and range_exceeded(images, spec) is None


def test_json_holds_the_diverged_networks() -> None:
    """An accuracy alone would be that of a guess, as clean as any other."""
    scores = pd.DataFrame({"method": "dm", "network": "convnet3", "accuracy": [10.0, 10.0, 40.0]})
    assert [entry["outcomes"] for entry in summary(scores)] == [{"trained": 3}], "of an older table"
    scores["outcome"] = ["diverged", "diverged", "trained"]
    (entry,) = summary(scores)
    assert entry["networks"] == 3 and entry["outcomes"] == {"diverged": 2, "trained": 1}
