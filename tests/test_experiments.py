"""The paper's cells: what counts as measured, what is run next, and a budget that cuts nothing in half."""

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from iidlib import cli, experiments
from iidlib.cli import _seconds, main
from iidlib.experiments import EXPERIMENTS, Cell, Experiment, jobs, measured, reproduce, table
from iidlib.inputs import InputError
from iidlib.published import ACCURACIES

ALL = [(name, cell) for name, experiment in EXPERIMENTS.items() for cell in experiment.cells]


def test_every_published_number_has_its_source_and_stands_in_the_main_table() -> None:
    cells = {(cell.dataset, cell.method, cell.ipc) for cell in EXPERIMENTS["main"].cells}
    assert set(ACCURACIES) <= cells
    assert all(0 < found.value < 100 and found.source for found in ACCURACIES.values())


def test_numbers_that_were_not_found_are_not_there() -> None:
    for missing in (("cifar10", "iid-dm", 1), ("svhn", "iid-idm", 10), ("tinyimagenet", "iid-idm", 10)):
        assert missing not in ACCURACIES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_cells_have_names_of_their_own(name: str) -> None:
    names = [cell.name for cell in EXPERIMENTS[name].cells]
    assert len(set(names)) == len(names) >= 2


@pytest.mark.parametrize("scale", ["tour", "laptop", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_can_be_typed(name: str, scale: str, tmp_path: Path) -> None:
    """Each is read by the command line up to the point where it would load its data."""
    import click
    import typer

    from iidlib.cli import app

    group: Any = typer.main.get_command(app)
    for job in jobs(name, scale=scale, seeds=1, folder=tmp_path):
        command, *arguments = job.command
        try:
            context = group.commands[command].make_context(command, list(arguments), resilient_parsing=False)
        except click.ClickException as error:
            pytest.fail(f"{job}: {error.format_message()}")
        assert context.params["scale"] == scale


def rows(*found: dict[str, Any]) -> pd.DataFrame:
    usual = {
        "dataset": "cifar10", "method": "dm", "ipc": 10, "scale": "laptop", "network": "convnet3", "seed": 0,
        "evaluation_seed": 0, "accuracy": 45.0, "iterations": 1200, "epochs": 400, "settings": "",
        "protocol": "dm, 400 epochs", "step": float("nan"), "steps": float("nan"),
    }  # fmt: skip
    return pd.DataFrame([usual | row for row in found])


DM = Cell("cifar10", "dm", 10)


def test_a_seed_is_the_mean_over_its_networks() -> None:
    given = rows({"accuracy": 44.0}, {"evaluation_seed": 1, "accuracy": 46.0}, {"seed": 2, "accuracy": 50.0})
    assert measured(DM, "laptop", given).to_dict() == {0: 45.0, 2: 50.0}


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "cifar100"}, {"method": "dm-cm"}, {"ipc": 50}, {"scale": "paper"}, {"network": "vgg11"},
        {"iterations": 600}, {"epochs": 1001}, {"settings": "match.cm=1"}, {"dataset": "validation:cifar10"},
        {"protocol": "idc, 400 epochs"}, {"step": 5.0, "steps": 5.0},
    ],
    ids=str,
)  # fmt: skip
def test_rows_of_something_else_do_not_count(other: dict[str, Any]) -> None:
    assert measured(DM, "laptop", rows(other)).empty


def test_an_evaluation_that_was_repeated_counts_once() -> None:
    given = rows({"accuracy": 44.0}, {"evaluation_seed": 1, "accuracy": 46.0}, {"accuracy": 44.0})
    assert measured(DM, "laptop", given).to_dict() == {0: 45.0}


def test_settings_count_in_any_order_and_iterations_are_a_share() -> None:
    cell = Cell("cifar10", "dm-cc", 10, settings=(("match.cc", "1"), ("match.cc_form", "exp")))
    given = rows({"method": "dm-cc", "settings": "match.cc_form=exp match.cc=1"})
    assert measured(cell, "laptop", given).to_dict() == {0: 45.0}
    half = Cell("cifar10", "dm", 10, settings=(("iterations", "50%"),))
    assert measured(half, "laptop", rows({"iterations": 600})).to_dict() == {0: 45.0}


def test_the_table_tells_published_measured_and_missing_apart(tmp_path: Path) -> None:
    rows({}, {"seed": 1, "accuracy": 47.0}, {"method": "random", "iterations": 0, "accuracy": 30.0}).to_csv(
        tmp_path / "laptop.csv", index=False
    )
    cells = table("main", tmp_path).set_index(["dataset", "ipc", "method"])
    dm = cells.loc[("cifar10", 10, "dm")]
    assert (dm["published"], dm["laptop_mean"], dm["laptop_std"], dm["laptop_seeds"]) == (48.9, 46.0, 1.0, 2)
    assert dm["paper_seeds"] == 0 and pd.isna(dm["paper_mean"]), "a smaller scale fills no cell of the paper"
    assert dm["over_random"] == 16.0 and pd.isna(dm["below_whole"])
    mosaic = cells.loc[("cifar10", 10, "random-mosaic")]
    assert mosaic["source"] == "not found" and pd.isna(mosaic["published"])


def test_the_table_reads_what_is_in_the_checkout() -> None:
    cells = table("main").set_index(["dataset", "ipc", "method"])
    assert cells.loc[("cifar10", 10, "dm"), "laptop_seeds"] >= 1
    assert cells.loc[("cifar10", 1, "iid-idm"), "tour_seeds"] == 3


def test_what_is_missing_comes_in_the_order_of_worth(tmp_path: Path) -> None:
    rows({}, {"method": "iid-dm"}).to_csv(tmp_path / "laptop.csv", index=False)
    todo = jobs("ablation", scale="laptop", seeds=2, folder=tmp_path)
    assert [(job.cell.method, job.seed) for job in todo[:3]] == [("dm-cc", 0), ("dm-cm", 0), ("idm", 0)]
    seeds = [job.seed for job in todo]
    assert seeds == sorted(seeds) and len(todo) == 2 * 8 - 2
    only = jobs("main", scale="laptop", seeds=1, only="cifar10/ipc1/", folder=tmp_path)
    assert {job.cell.ipc for job in only} == {1} and all("--ipc 1 " in f"{job} " for job in only)
    with pytest.raises(InputError, match="no cell 'mnist'"):
        jobs("main", scale="laptop", only="mnist", folder=tmp_path)
    with pytest.raises(InputError, match=r"unknown experiment 'ablatoin'; did you mean 'ablation'\?"):
        jobs("ablatoin", scale="laptop", folder=tmp_path)


SMALL = Experiment("small", (Cell("cifar10", "dm", 1), Cell("cifar10", "random", 1), Cell("cifar10", "iid-idm", 1)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A registry of three quick cells, and the environment of the processes that run them."""
    monkeypatch.setitem(EXPERIMENTS, "small", SMALL)
    return os.environ | {"OMP_NUM_THREADS": "1"}


def accuracies(folder: Path) -> dict[tuple[str, int], float]:
    found = experiments._all_rows(folder)
    return found.groupby(["method", "seed"])["accuracy"].mean().to_dict()


def test_a_run_that_was_cut_goes_on_and_nothing_is_run_twice(small: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    todo = {"scale": "ci", "seeds": 1, "folder": tmp_path, "runs": tmp_path / "runs"}
    whole = tmp_path / "whole"
    assert reproduce(jobs("small", **todo | {"folder": whole, "runs": whole / "runs"}), environment=small) == 3

    assert reproduce(jobs("small", **todo), budget=0.0, say=said.append, environment=small) == 0
    assert said[-1] == "the budget is spent" and not list(tmp_path.glob("*.csv"))
    first = jobs("small", **todo)[:1]
    assert reproduce(first, say=said.append, environment=small) == 1
    left = jobs("small", **todo)
    assert [job.cell.method for job in left] == ["random", "iid-idm"]
    before = (tmp_path / "ci.csv").read_text()
    assert reproduce(left, environment=small) == 2
    assert (tmp_path / "ci.csv").read_text().startswith(before.rstrip("\n")), "rows that were measured stay"
    assert jobs("small", **todo) == [] and accuracies(tmp_path) == accuracies(whole)


def test_a_set_that_several_networks_judge_is_distilled_once(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = Experiment("judges", tuple(Cell("cifar10", "dm", 1, name) for name in ("lenet", "convnet3", "mlp")))
    monkeypatch.setitem(EXPERIMENTS, "judges", judges)
    todo = {"scale": "ci", "seeds": 1, "folder": tmp_path, "runs": tmp_path / "runs"}
    lenet, _, _ = jobs("judges", **todo)
    assert [command[0] for command in lenet.commands()] == ["distill", "evaluate"]
    said: list[str] = []
    assert reproduce([lenet], say=said.append, environment=small) == 1
    (run,) = (tmp_path / "runs").iterdir()
    before = (run / "synthetic.safetensors").read_bytes()
    assert reproduce(jobs("judges", **todo), say=said.append, environment=small) == 2
    assert (run / "synthetic.safetensors").read_bytes() == before and len(list((tmp_path / "runs").iterdir())) == 1
    assert [text.split()[1] for text in said] == ["distill", "evaluate", "distill", "evaluate"]
    assert jobs("judges", **todo) == []
    rows = experiments._all_rows(tmp_path)
    assert rows.groupby("network").size().to_dict() == {"convnet3": 2, "lenet": 2, "mlp": 2}


def test_the_budget_stops_a_run_with_a_checkpoint(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Experiment("long", (Cell("cifar10", "dm", 1, settings=(("checkpoint.every", "100000"),)),))
    monkeypatch.setitem(EXPERIMENTS, "long", long)
    (job,) = jobs("long", scale="tour", seeds=1, folder=tmp_path, runs=tmp_path / "runs")
    endless = experiments.Job(job.cell, 0, (*job.command, "--iterations", "100000"))
    said: list[str] = []
    for budget in (15.0, 60.0, 240.0):  # a loaded machine takes longer to begin
        assert reproduce([endless], budget=budget, say=said.append, environment=small) == 0
        assert said[-1] == "the budget is spent; the same command goes on from here"
        if (tmp_path / "runs").is_dir():
            break
    (run,) = (tmp_path / "runs").iterdir()
    assert list((run / "checkpoints").glob("*.safetensors")), "it was stopped between two iterations and kept"
    assert "--resume" in jobs("long", scale="tour", seeds=1, folder=tmp_path, runs=tmp_path / "runs")[0].command


def test_a_job_that_fails_is_told_and_left_out(small: dict[str, str], tmp_path: Path) -> None:
    bad = experiments.Job(DM, 0, ("distill", "dn"))
    good = jobs("small", scale="ci", seeds=1, only="cifar10/ipc1/random", folder=tmp_path)
    said: list[str] = []
    assert reproduce([bad, *good], say=said.append, environment=small) == 1
    assert "failed with status 2, left out: cifar10/ipc10/dm, seed 0" in said


def test_the_command_lists_and_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.console, "width", 80)
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "ablation", "--list"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "cifar10/ipc10/dm-cc" in shown and "missing" in shown and "not found" in shown
    marks = set(re.findall(r"\d\d\.\d ([a-z]) ", shown))
    assert marks and marks == set(re.findall(r"^ *([a-z]): \S", shown, flags=re.M)), "each mark has its source"
    assert max(map(len, shown.splitlines())) <= 80
    for arguments, told in (
        (["reproduce", "table9"], "unknown experiment 'table9'"),
        (["reproduce", "main", "--budget", "soon"], "--budget takes a time"),
        (["reproduce", "main", "--scale", "huge"], "unknown scale 'huge'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28800), ("30m", 1800), ("1.5m", 90), (" 5s ", 5)])
def test_times(text: str, seconds: float) -> None:
    assert _seconds(text) == seconds
