"""iidlib.continual: steps of classes, a memory that sees no later class, and runs that go on where they stopped."""

from pathlib import Path

import attrs
import pandas as pd
import pytest
import torch

from iidlib import cli, continual
from iidlib.cli import main
from iidlib.config import ComputeConfig, RunConfig, override, preset
from iidlib.continual import class_order, class_steps, learn_in_steps, of_classes
from iidlib.data import Dataset, shapes
from iidlib.distillation import distill
from iidlib.errors import InputError
from iidlib.evaluation import evaluate, random_real

SMALL = {
    "iterations": 2,
    "match.width": 4,
    "match.batch_real": 6,
    "eval.width": 4,
    "eval.num_eval": 1,
    "eval.epochs": 2,
}


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return shapes(4, 40, 16)


def config(method: str = "dm", **changes: object) -> RunConfig:
    return preset(method, "shapes", 2, "ci", SMALL | {"pool.epochs": 10, "pool.width": 8} | changes)


def test_orders_are_those_of_the_released_script():
    # np.random.seed(0); np.random.permutation(10)
    assert class_order(10, 0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert sorted(class_order(100, 3)) == list(range(100)) and class_order(100, 3) != class_order(100, 4)


def test_steps_are_equal_and_cover_the_order():
    assert class_steps([5, 3, 1, 0, 2, 4], 3) == [[5, 3], [1, 0], [2, 4]]
    with pytest.raises(InputError, match="6 classes make no 4 equal steps; steps can be 1, 2, 3, 6"):
        class_steps(range(6), 4)
    with pytest.raises(InputError, match="no 0 equal steps"):
        class_steps(range(6), 0)


def test_some_classes_of_a_set_are_numbered_anew(pictures):
    part = of_classes(pictures, [3, 1])
    assert part.spec.classes == (pictures.spec.classes[3], pictures.spec.classes[1])
    for own, whole in ((part.train, pictures.train), (part.test, pictures.test)):
        assert own.counts.tolist() == [int(whole.counts[3]), int(whole.counts[1])]
        for new, old in enumerate((3, 1)):
            assert torch.equal(own.images[own.of_class(new)], whole.images[whole.of_class(old)])


def test_each_step_distils_its_own_classes_and_tests_on_those_seen(pictures, monkeypatch):
    judged = []
    real_evaluate = continual.evaluate

    def keep(images, dataset, **options):
        judged.append((images, dataset))
        return real_evaluate(images, dataset, **options)

    monkeypatch.setattr(continual, "evaluate", keep)
    found = learn_in_steps(config(), pictures, steps=2, order=1)
    order = class_order(4, 1)
    assert found["step"].tolist() == [1, 2] and found["classes"].tolist() == [2, 4]
    assert found["images"].tolist() == [4, 8] and set(found["order"]) == {1} and set(found["steps"]) == {2}
    for number, (images, dataset) in enumerate(judged, 1):
        seen = order[: 2 * number]
        assert dataset.spec.classes == tuple(pictures.spec.classes[label] for label in seen)
        assert len(dataset.test) == sum(int(pictures.test.counts[label]) for label in seen)
        for step in range(number):
            alone = distill(config(), of_classes(pictures, order[2 * step : 2 * step + 2])).synthetic
            assert torch.equal(images.images[4 * step : 4 * step + 4], alone.images)
    again = evaluate(judged[1][0], judged[1][1], protocol=config().eval, compute=ComputeConfig(compile="off"))
    assert again["accuracy"].tolist() == found["accuracy"].tolist()[1:]


def test_the_pool_sees_the_classes_of_its_step_only(pictures, monkeypatch):
    from iidlib.distillation import step as distillation_step

    asked = []
    trained_pool = distillation_step.trained_pool

    def keep(dataset, pool, **options):
        asked.append((dataset.spec.classes, len(dataset.train), pool.epochs))
        return trained_pool(dataset, pool, **options)

    monkeypatch.setattr(distillation_step, "trained_pool", keep)
    learn_in_steps(config("iid-dm"), pictures, steps=2)
    order = class_order(4, 0)
    names = [tuple(pictures.spec.classes[label] for label in own) for own in (order[:2], order[2:])]
    assert asked == [(names[0], 80, 20), (names[1], 80, 20)]


@pytest.mark.parametrize("method", ["random", "random-mosaic", "herding", "k-center"])
def test_real_images_in_the_memory(pictures, method):
    found = learn_in_steps(config(method), pictures, steps=2)
    assert found["images"].tolist() == [4, 8]
    if method == "random":
        own = of_classes(pictures, class_order(4, 0))
        first = random_real(of_classes(pictures, class_order(4, 0)[:2]).train, 2)
        assert set(first.spec.classes) <= set(own.spec.classes)


def test_chosen_images_are_whole_ones_whatever_form_a_distilled_set_has(pictures, monkeypatch):
    judged = []
    real = continual.evaluate
    monkeypatch.setattr(
        continual, "evaluate", lambda images, *given, **more: judged.append(images) or real(images, *given, **more)
    )
    for method in ("herding", "random-mosaic"):
        learn_in_steps(config(method, **{"syn.factor": 2}), pictures, steps=2)
    assert [images.factor for images in judged] == [1, 1, 2, 2]


def test_what_is_refused(pictures, tmp_path: Path):
    with pytest.raises(InputError, match="unknown method 'dmm' for a memory; did you mean 'dm'"):
        learn_in_steps(attrs.evolve(config(), method="dmm"), pictures, steps=2)
    for method in ("dm", "random"):
        with pytest.raises(InputError, match=r"settings are for dataset 'cifar100', .* given is 'shapes'"):
            learn_in_steps(override(config(method), {"dataset": "cifar100"}), pictures, steps=2, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    learn_in_steps(config(), pictures, steps=2, out=tmp_path)
    with pytest.raises(InputError, match="distilled other classes or images"):
        learn_in_steps(config(), pictures, steps=2, order=1, out=tmp_path)


def test_steps_that_are_done_are_not_done_again(pictures, tmp_path: Path, monkeypatch):
    first = learn_in_steps(config(), pictures, steps=2, out=tmp_path)

    def never(*arguments, **options):
        raise AssertionError("distilled again")

    monkeypatch.setattr(continual, "distill", never)
    again = learn_in_steps(config(), pictures, steps=2, out=tmp_path)
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), again.drop(columns="seconds"))


def iid(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_learns_goes_on_and_keeps_rows(tmp_path: Path, monkeypatch, capsys):
    from iidlib.data import registry
    from iidlib.experiments import cells

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "shapes", lambda: shapes(4, 40, 32))
    given = ["continual", "dm", "--dataset", "shapes", "--ipc", "2", "--steps", "2", "--scale", "ci"]
    given += ["--results", "r/rows.csv"]
    assert iid(*given) == 0
    out = capsys.readouterr().out
    assert "step 1 of 2, 2 classes:" in out and "step 2 of 2, 4 classes:" in out
    assert iid(*given) == 2
    assert "go on with it by --resume" in capsys.readouterr().err
    assert iid(*given, "--resume") == 0
    rows = cells.all_rows(tmp_path / "r")
    assert len(rows) == 8 and rows["step"].tolist() == [1, 1, 2, 2] * 2
    cell = cells.Cell("shapes", "dm", 2, steps=2)
    monkeypatch.setattr(cells.Cell, "dataset_at", lambda cell, scale: "shapes")
    last = rows[rows["step"] == 2].drop_duplicates("evaluation_seed")["accuracy"].mean()
    assert cells.measured(cell, "ci", rows).to_dict() == {0: last}
    assert cells.measured(cells.Cell("shapes", "dm", 2), "ci", rows).empty
    assert iid(*given[:-2], "--steps", "3", "--out", "x") == 2
    assert "4 classes make no 3 equal steps" in capsys.readouterr().err and not Path("x").exists()


def test_rows_name_the_form_of_the_memory(tmp_path: Path, monkeypatch):
    from iidlib.experiments import cells

    monkeypatch.chdir(tmp_path)
    for method in ("herding", "random"):
        given = ["continual", method, "--dataset", "shapes", "--ipc", "2", "--steps", "2", "--scale", "ci"]
        assert iid(*given, "--set", "syn.factor=2", "--set", "pool.epochs=6", "--results", "r/rows.csv") == 0
    rows = cells.all_rows(tmp_path / "r").groupby("method")["protocol"].first()
    assert "expanded" not in rows["herding"] and rows["random-mosaic"].endswith("each image expanded to 4")


def test_the_help_names_it(capsys):
    assert iid("continual", "--help") == 0
    assert "memory of distilled images" in capsys.readouterr().out
    assert cli.app is not None
