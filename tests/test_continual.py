"""iidlib.continual: steps of classes, a memory that sees no later class, and runs that resume where they stopped."""

import dataclasses
import re
import shutil
from pathlib import Path

import attrs
import pandas as pd
import pytest
import torch

from iidlib import cli, continual, experiments
from iidlib.config import ComputeConfig, RunConfig, override, preset
from iidlib.continual import class_order, class_steps, learn_in_steps, of_classes
from iidlib.data import Dataset, RealSet, registry, shapes
from iidlib.distillation import distill, finished
from iidlib.errors import InputError
from iidlib.evaluation import evaluate, random_real
from iidlib.features import trained_pool
from iidlib.runs import environment
from iidlib.synthetic import SyntheticSet
from tests.command_line import exit_status

SMALL = {
    "iterations": 2,
    "match.width": 4,
    "match.batch_real": 6,
    "eval.width": 4,
    "eval.num_eval": 1,
    "eval.epochs": 2,
}


def config(method: str = "dm", **changes: object) -> RunConfig:
    return preset(method, "shapes", 2, "ci", SMALL | {"pool.epochs": 10, "pool.width": 8} | changes)


def test_orders_are_those_of_the_released_script():
    # np.random.seed(0); np.random.permutation(10)
    assert class_order(10, 0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert sorted(class_order(100, 3)) == list(range(100)) and class_order(100, 3) != class_order(100, 4)


def test_steps_are_equal_and_cover_the_order():
    assert class_steps([5, 3, 1, 0, 2, 4], 3) == [[5, 3], [1, 0], [2, 4]]
    with pytest.raises(
        InputError, match=r"6 classes cannot be split into 4 equal steps; steps can be 1, 2, 3, 6, or .* 2,2,1,1$"
    ):
        class_steps(range(6), 4)
    with pytest.raises(
        InputError, match=r"7 classes cannot be split into 3 equal steps; .*, or the classes of each step.* 3,2,2$"
    ):
        class_steps(range(7), 3)
    with pytest.raises(InputError, match=r"6 classes cannot be split into 9 equal steps; steps can be 1, 2, 3, 6$"):
        class_steps(range(6), 9)
    with pytest.raises(InputError, match="into 0 equal steps"):
        class_steps(range(6), 0)


def test_steps_may_be_uneven():
    assert class_steps([5, 3, 1, 0, 2, 4, 6], (3, 2, 2)) == [[5, 3, 1], [0, 2], [4, 6]]
    assert class_steps(range(3), [3]) == [[0, 1, 2]]
    for sizes, message in (
        ((4, 3), "steps of 4,3 classes have 7 in total, but the dataset has 6; give numbers that add up to 6"),
        ((6, 0), "every step needs at least one class, got 6,0"),
        ((7, -1), "every step needs at least one class, got 7,-1"),
        ((), "every step needs at least one class, got no steps"),
    ):
        with pytest.raises(InputError, match=message):
            class_steps(range(6), sizes)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_orders_that_numpy_does_not_know(seed):
    with pytest.raises(InputError, match=f"order of classes must lie in 0 to 4294967295, got {seed}"):
        class_order(10, seed)


def test_some_classes_of_a_set_are_renumbered(pictures):
    part = of_classes(pictures, [3, 1])
    assert part.spec.classes == (pictures.spec.classes[3], pictures.spec.classes[1])
    for own, whole in ((part.train, pictures.train), (part.test, pictures.test)):
        assert own.counts.tolist() == [int(whole.counts[3]), int(whole.counts[1])]
        for new, old in enumerate((3, 1)):
            assert torch.equal(own.images[own.of_class(new)], whole.images[whole.of_class(old)])


def test_each_step_distils_its_own_classes_and_tests_on_those_seen(pictures, monkeypatch):
    assessed = []
    real_evaluate = continual.evaluate

    def keep(images, dataset, **options):
        assessed.append((images, dataset))
        return real_evaluate(images, dataset, **options)

    monkeypatch.setattr(continual, "evaluate", keep)
    found = learn_in_steps(config(), pictures, steps=2, order=1)
    order = class_order(4, 1)
    assert found["step"].tolist() == [1, 2] and found["classes"].tolist() == [2, 4]
    assert found["images"].tolist() == [4, 8] and set(found["order"]) == {1} and set(found["steps"]) == {2}
    for number, (images, dataset) in enumerate(assessed, 1):
        seen = order[: 2 * number]
        assert dataset.spec.classes == tuple(pictures.spec.classes[label] for label in seen)
        assert len(dataset.test) == sum(int(pictures.test.counts[label]) for label in seen)
        for step in range(number):
            alone = distill(config(), of_classes(pictures, order[2 * step : 2 * step + 2])).synthetic
            assert torch.equal(images.images[4 * step : 4 * step + 4], alone.images)
    again = evaluate(assessed[1][0], assessed[1][1], protocol=config().eval, compute=ComputeConfig(compile="off"))
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


def test_uneven_steps_learn_each_their_classes_and_say_their_sizes(pictures, monkeypatch):
    from iidlib.distillation import step as distillation_step

    asked = []
    trained_pool = distillation_step.trained_pool
    monkeypatch.setattr(
        distillation_step,
        "trained_pool",
        lambda dataset, pool, **more: (
            asked.append((pool.epochs, pool.epochs_kept)) or trained_pool(dataset, pool, **more)
        ),
    )
    whole = shapes(5, 40, 16)
    found = learn_in_steps(config("iid-dm", **{"pool.epochs_kept": "5"}), whole, steps=(3, 2), order=1)
    assert found["classes"].tolist() == [3, 5] and found["images"].tolist() == [6, 10]
    assert set(found["steps"]) == {2} and set(found["step_sizes"]) == {"3,2"}
    assert asked == [(17, (8,)), (25, (12,))], "epochs are those of all classes for as many steps of the optimiser"
    even = learn_in_steps(config(), pictures, steps=2)
    pd.testing.assert_frame_equal(
        even.drop(columns="seconds"), learn_in_steps(config(), pictures, steps=(2, 2)).drop(columns="seconds")
    )


def without_tests(dataset: Dataset, *labels: int) -> Dataset:
    kept = [n for n, label in enumerate(dataset.test.labels.tolist()) if label not in labels]
    return dataclasses.replace(dataset, test=dataset.test.subset(torch.tensor(kept)))


@pytest.mark.parametrize("method", ["dm", "iid-dm", "herding"])
def test_classes_without_test_images_are_named_and_left_out_of_accuracies(pictures, caplog, method):
    first, _, third, _ = class_order(4, 0)
    names = pictures.spec.classes
    found = learn_in_steps(config(method), without_tests(pictures, first, third), steps=2)
    assert found["accuracy"].between(0, 100).all() and found["classes"].tolist() == [2, 4]
    assert f"no test images: {names[first]}, {names[third]}; accuracies are those of the other classes" in caplog.text


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_without_test_images_is_refused_before_anything_is_done(pictures, tmp_path: Path, step):
    own = class_order(4, 0)[2 * step - 2 : 2 * step]
    names = ", ".join(pictures.spec.classes[label] for label in own)
    with pytest.raises(InputError, match=rf"step {step} \({names}\) has no test images, .*; add some, or combine its"):
        learn_in_steps(config(), without_tests(pictures, *own), steps=2, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("method", ["dm", "dm-cm", "idm", "random"])
def test_a_step_of_one_class(pictures, caplog, method):
    found = learn_in_steps(config(method), pictures, steps=(1, 3))
    assert found["classes"].tolist() == [1, 4] and found["accuracy"][0] == 100
    assert f"only one class in step 1 ({pictures.spec.classes[class_order(4, 0)[0]]})" in caplog.text


@pytest.mark.parametrize("method", ["dm-cc", "iid-dm", "iid-idm", "herding", "k-center"])
def test_a_step_of_one_class_has_no_pool(pictures, tmp_path: Path, method):
    with pytest.raises(
        InputError, match=rf"{method} needs networks that distinguish classes, but step 2 \(.*one class"
    ):
        learn_in_steps(config(method), pictures, steps=(3, 1), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    if "dm" in method:  # without the term, nothing needs them
        learn_in_steps(config(method, **{"match.cc": 0}), pictures, steps=(3, 1))


def test_one_folder_of_a_pool_is_not_for_several_steps(pictures, tmp_path: Path):
    given = config("iid-dm", **{"pool.path": str(tmp_path)})
    with pytest.raises(InputError, match=r"pool.path \(.*\) holds the pool of one dataset, .*; omit it"):
        learn_in_steps(given, pictures, steps=2)
    assert not list(tmp_path.iterdir())
    learn_in_steps(given, pictures, steps=1)


@pytest.mark.parametrize("seed", [0, 3])
def test_images_are_chosen_on_the_same_network_for_every_seed(pictures, monkeypatch, seed):
    asked = []
    real = continual.choosing_pool
    monkeypatch.setattr(continual, "choosing_pool", lambda *given: asked.append(real(*given)) or asked[-1])
    learn_in_steps(config("herding", seed=seed), pictures, steps=2)
    own = of_classes(pictures, class_order(4, 0)[:2])
    usual = attrs.evolve(config().pool, count=1, epochs=20)
    assert asked[0].digest == trained_pool(own, usual).digest


@pytest.mark.parametrize("method", ["random", "random-mosaic", "herding", "k-center"])
def test_real_images_in_the_memory(pictures, method):
    found = learn_in_steps(config(method), pictures, steps=2)
    assert found["images"].tolist() == [4, 8]
    if method == "random":
        own = of_classes(pictures, class_order(4, 0))
        first = random_real(of_classes(pictures, class_order(4, 0)[:2]).train, 2)
        assert set(first.spec.classes) <= set(own.spec.classes)


def test_chosen_images_are_whole_ones_whatever_form_a_distilled_set_has(pictures, monkeypatch):
    assessed = []
    real = continual.evaluate
    monkeypatch.setattr(
        continual, "evaluate", lambda images, *given, **more: assessed.append(images) or real(images, *given, **more)
    )
    for method in ("herding", "random-mosaic"):
        learn_in_steps(config(method, **{"syn.factor": 2}), pictures, steps=2)
    assert [images.factor for images in assessed] == [1, 1, 2, 2]


def test_what_is_refused(pictures, tmp_path: Path):
    with pytest.raises(InputError, match="unknown method 'dmm' for a memory; did you mean 'dm'"):
        learn_in_steps(attrs.evolve(config(), method="dmm"), pictures, steps=2)
    for method in ("dm", "random"):
        with pytest.raises(InputError, match=r"settings are for dataset 'cifar100', .* given is 'shapes'"):
            learn_in_steps(override(config(method), {"dataset": "cifar100"}), pictures, steps=2, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    learn_in_steps(config(), pictures, steps=2, out=tmp_path)
    with pytest.raises(InputError, match=r"step-01 distilled other classes \(.*, not .*\); resume with"):
        learn_in_steps(config(), pictures, steps=2, order=1, out=tmp_path)
    train = pictures.train
    mirrored = dataclasses.replace(pictures, train=RealSet(train.images.flip(-1), train.labels, train.spec))
    with pytest.raises(InputError, match="step-01 distilled other images; give another --out"):
        learn_in_steps(config(), mirrored, steps=2, out=tmp_path)


def test_steps_that_are_done_are_not_done_again(pictures, tmp_path: Path, monkeypatch):
    first = learn_in_steps(config(), pictures, steps=2, out=tmp_path)

    def never(*arguments, **options):
        raise AssertionError("distilled again")

    monkeypatch.setattr(continual, "distill", never)
    again = learn_in_steps(config(), pictures, steps=2, out=tmp_path)
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), again.drop(columns="seconds"))


def test_networks_that_are_finished_are_not_trained_again(pictures, tmp_path: Path, monkeypatch):
    from iidlib.evaluation import FinishedNetworks
    from iidlib.evaluation import run as evaluation_run

    config = preset("dm", pictures.name, 1, "ci", {"iterations": 1, "eval.num_eval": 2, "eval.epochs": 1})
    whole = learn_in_steps(config, pictures, steps=2)
    trained, fit = [], evaluation_run.fit

    def stopped(*given, **named):
        trained.append(1)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return fit(*given, **named)

    monkeypatch.setattr(evaluation_run, "fit", stopped)
    kept = FinishedNetworks()
    with pytest.raises(KeyboardInterrupt):
        learn_in_steps(config, pictures, steps=2, out=tmp_path / "r", finished=kept)
    again = learn_in_steps(config, pictures, steps=2, out=tmp_path / "r", finished=kept)
    assert len(trained) == 5, "the last one; those of the first step are kept as well"
    assert again.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    learn_in_steps(config, pictures, steps=2, out=tmp_path / "r")
    assert len(trained) == 5 + 4, "only if asked for"


def test_a_step_resumed_under_other_conditions_is_refused_or_recorded(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "shapes", lambda: shapes(4, 40, 32))
    given = ["continual", "dm", "--dataset", "shapes", "--ipc", "2", "--steps", "2", "--scale", "ci", "--out", "r"]
    assert exit_status(*given) == 0
    (tmp_path / "r" / "step-02" / "synthetic.safetensors").unlink()
    (tmp_path / "r" / "step-02" / "scores.json").unlink(missing_ok=True)
    now = environment.conditions(torch.device("cpu"), "off") | {"torch": "another"}
    monkeypatch.setattr(finished, "conditions", lambda *rest: now)
    capsys.readouterr()
    assert exit_status(*given, "--resume") == 2
    assert "torch was" in (said := capsys.readouterr().err) and "with --allow-mismatch (allow_mismatch=True" in said
    assert exit_status(*given, "--resume", "--allow-mismatch") == 0
    assert "environment_mismatch" in SyntheticSet.load(tmp_path / "r" / "step-02").provenance
    assert "environment_mismatch" not in SyntheticSet.load(tmp_path / "r" / "step-01").provenance


def test_steps_before_a_pool_that_is_refused_are_kept_and_gone_on_from(tmp_path: Path, monkeypatch, capsys):
    from iidlib.data import registry
    from iidlib.features import pool_training as pool

    accuracy = pool.accuracy

    def none_in_the_second(network, real):
        return 0.0 if Path("r/step-01/synthetic.safetensors").is_file() else accuracy(network, real)

    monkeypatch.setattr(pool, "accuracy", none_in_the_second)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "shapes", lambda: shapes(4, 40, 32))
    given = ["continual", "dm-cc", "--dataset", "shapes", "--ipc", "2", "--steps", "2", "--scale", "ci", "--out", "r"]
    given += ["--set", "pool.count=1"]
    assert exit_status(*given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(
        r"step 2 cannot start: .* pool.untrained=warn; .*; step 1 is kept in r: resume with --resume", said
    )
    assert exit_status(*given, "--resume", "--set", "pool.untrained=warn") == 0, capsys.readouterr().err
    assert Path("r/step-02/synthetic.safetensors").is_file()
    shutil.rmtree("r")
    alone = [
        "distill",
        "dm-cc",
        "--dataset",
        "shapes",
        "--ipc",
        "2",
        "--scale",
        "ci",
        "--out",
        "alone",
        "--no-evaluate",
    ]
    assert exit_status(*alone) == 0 and exit_status(*alone, "--resume", "--set", "pool.untrained=warn") == 0


def test_the_command_learns_resumes_and_keeps_rows(tmp_path: Path, monkeypatch, capsys):
    from iidlib.cli import continual as command
    from iidlib.data import registry
    from iidlib.experiments import Cell, all_rows, measured

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "shapes", lambda: shapes(4, 40, 32))
    given = ["continual", "dm", "--dataset", "shapes", "--ipc", "2", "--steps", "2", "--scale", "ci"]
    given += ["--results", "r/rows.csv"]
    assert exit_status(*given) == 0
    out = capsys.readouterr().out
    assert "step 1 of 2, 2 classes:" in out and "step 2 of 2, 4 classes:" in out
    assert exit_status(*given) == 2
    assert "resume the run with --resume" in capsys.readouterr().err
    assert exit_status(*given, "--resume") == 0
    rows = all_rows(tmp_path / "r")
    assert len(rows) == 8 and rows["step"].tolist() == [1, 1, 2, 2] * 2
    cell = Cell("shapes", "dm", 2, steps=2)
    monkeypatch.setattr(Cell, "dataset_at", lambda cell, scale: "shapes")
    last = rows[rows["step"] == 2].drop_duplicates("evaluation_seed")["accuracy"].mean()
    assert measured(cell, "ci", rows).to_dict() == {0: last}
    assert measured(Cell("shapes", "dm", 2), "ci", rows).empty
    assert exit_status(*given[:-2], "--steps", "3", "--out", "x") == 2
    assert "4 classes cannot be split into 3 equal steps" in capsys.readouterr().err and not Path("x").exists()
    uneven = [*given[:6], "--scale", "ci", "--steps", "3, 1", "--results", "r/rows.csv"]
    assert exit_status(*uneven) == 0 and Path("runs/continual-dm-shapes-ipc2-3-1steps-ci-seed0-order0/step-02").is_dir()
    rows = all_rows(tmp_path / "r")
    assert rows["step_sizes"].tolist() == ["2,2"] * 8 + ["3,1"] * 4
    assert measured(cell, "ci", rows).to_dict() == {0: last}, "uneven steps are not those of the paper"
    assert measured(cell, "ci", rows[8:]).empty
    Path("file").write_text("mine")
    for wrong, message in (
        (["--steps", "3,2"], "steps of 3,2 classes have 5 in total, but the dataset has 4"),
        (["--steps", "two"], "--steps takes a number of equal steps, e.g. 5, or .* e.g. 4,3,3; got 'two'"),
        (["--steps", "3,"], "got '3,'"),
        (["--order", "-1"], "must lie in 0 to 4294967295, got -1"),
        (["--out", "r/rows.csv"], "r/rows.csv is a file, not a folder; give another --out"),
        (["--out", "r/rows.csv", "--resume"], "r/rows.csv is a file, not a folder; give another --out"),
        (["--out", "file/x"], "cannot write file/x/step-01/config.yaml: Not a directory"),
        (["--out", "r/rows.csv/x"], "--results r/rows.csv and --out r/rows.csv/x overlap"),
        (["--out", "new", "--results", "new"], "--results new and --out new are the same"),
        (["--out", "new", "--results", "new/step-02/scores.json"], "is reserved for files of the run in new"),
    ):
        capsys.readouterr()
        assert exit_status(*given, *wrong) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and re.search(message, said), said
    assert not Path("new").exists()
    monkeypatch.setattr(command, "load", lambda *given: pytest.fail("the images are read before that is reported"))
    assert exit_status(*given) == 2
    assert "resume the run with --resume" in capsys.readouterr().err


def test_rows_name_the_form_of_the_memory(tmp_path: Path, monkeypatch):
    from iidlib.experiments import all_rows

    monkeypatch.chdir(tmp_path)
    for method in ("herding", "random"):
        given = ["continual", method, "--dataset", "shapes", "--ipc", "2", "--steps", "2", "--scale", "ci"]
        assert exit_status(*given, "--set", "syn.factor=2", "--set", "pool.epochs=6", "--results", "r/rows.csv") == 0
    rows = all_rows(tmp_path / "r").groupby("method")["protocol"].first()
    assert "expanded" not in rows["herding"] and rows["random-mosaic"].endswith("each image expanded to 4")


def test_the_help_names_it(capsys):
    assert exit_status("continual", "--help") == 0
    assert "memory of distilled images" in capsys.readouterr().out
    assert cli.app is not None


def test_other_steps_than_those_that_are_kept_are_reported_before_anything_is_done(tmp_path, monkeypatch):
    """Their pools would have been trained for other epochs, which is not what is wrong."""
    data, config = shapes(4, 20, 16), preset("dm", "shapes", 1, "ci", {"iterations": 1, "eval.epochs": 1})
    learn_in_steps(config, data, steps=(2, 1, 1), out=tmp_path)
    monkeypatch.setattr(continual, "evaluate", lambda *given, **named: pytest.fail("evaluated"))
    for other in ((2, 2), (1, 2, 1), (4,)):
        with pytest.raises(
            InputError, match=r"step-0\d distilled other classes .*; resume with the steps and the order"
        ):
            learn_in_steps(config, data, steps=other, out=tmp_path)


def test_steps_that_are_finished_are_only_read(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "shapes", lambda: shapes(4, 40, 32))
    given = ["continual", "dm", "--dataset", "shapes", "--ipc", "1", "--steps", "2", "--scale", "ci", "--out", "r"]
    assert exit_status(*given) == 0

    def read_only(path: Path) -> None:
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr(experiments, "check_writable", read_only)
    assert exit_status(*given, "--resume") == 0, capsys.readouterr().err
    shutil.rmtree("r/step-02")
    assert exit_status(*given, "--resume") == 2 and "cannot write" in capsys.readouterr().err


def test_a_folder_of_the_users_is_not_said_to_hold_steps(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    given = ["continual", "dm", "--dataset", "shapes", "--ipc", "1", "--steps", "2", "--scale", "ci", "--out", "mine"]
    assert exit_status(*given) == 2
    assert capsys.readouterr().err == "iid: mine is not empty; give another --out\n"
