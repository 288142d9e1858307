"""What is missing as commands, and a budget that cuts nothing in half."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from iidlib import experiments
from iidlib.cli import main, output
from iidlib.cli.batches import time_of
from iidlib.errors import InputError
from iidlib.experiments import (
    EXPERIMENTS,
    Cell,
    Experiment,
    Job,
    all_rows,
    append_results,
    coverage,
    jobs,
    rows_of,
    run_jobs,
)  # fmt: skip
from iidlib.experiments.costs import Cost, PoolCost
from tests.command_line import Run
from tests.result_rows import rows


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
        assert context.params["scale"] == (scale if job.cell.evaluation != "paper" else "paper")


def test_what_is_missing_comes_in_the_order_of_worth(tmp_path: Path) -> None:
    rows({}, {"method": "iid-dm"}).to_csv(tmp_path / "laptop.csv", index=False)
    todo = jobs("ablation", scale="laptop", seeds=2, folder=tmp_path)
    assert [(job.cell.method, job.seed) for job in todo[:3]] == [("dm-cc", 0), ("dm-cm", 0), ("idm", 0)]
    seeds = [job.seed for job in todo]
    assert seeds == sorted(seeds) and len(todo) == 2 * 8 - 2
    for part in ("cifar10/ipc1/", "cifar10/ipc1"):
        only = jobs("main", scale="laptop", seeds=1, only=part, folder=tmp_path)
        assert {job.cell.ipc for job in only} == {1} and all("--ipc 1 " in f"{job} " for job in only)
    alone = jobs("ablation", scale="laptop", seeds=1, only="cifar10/ipc10/idm", folder=tmp_path)
    assert [job.cell.method for job in alone] == ["idm"], "and not idm-cc"
    with pytest.raises(InputError, match="no cell 'mnist'"):
        jobs("main", scale="laptop", only="mnist", folder=tmp_path)
    with pytest.raises(InputError, match=r"unknown experiment 'ablatoin'; did you mean 'ablation'\?"):
        jobs("ablatoin", scale="laptop", folder=tmp_path)


def test_the_experiment_for_a_rented_gpu_is_in_the_order_of_worth(tmp_path: Path) -> None:
    """All cells and seeds of CIFAR-10 come before CIFAR-100, and 10 images per class before 1 and 50."""
    methods = ["dm", "iid-dm", "idm", "iid-idm", "iid-plus"]
    for name, datasets in (("gpu", ["cifar10", "cifar100"]), ("gpu-embedded", ["cifar10-mini"])):
        todo = jobs(name, scale="paper", seeds=2, folder=tmp_path)
        assert [(job.cell.dataset, job.seed, job.cell.ipc, job.cell.method) for job in todo] == [
            (dataset, seed, ipc, method)
            for dataset in datasets for seed in (0, 1) for ipc in (10, 1, 50) for method in methods
        ]  # fmt: skip
        assert all(f"--dataset {job.cell.dataset} " in f"{job} " for job in todo), (
            "rows name the images they were made of"
        )


def begun(folder: Path, seconds: float, *, finished: bool = False) -> None:
    """A run's folder as it was left some time ago."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    if finished:
        (folder / "synthetic.safetensors").write_text("")
    for path in (folder, folder / "config.yaml", folder / "checkpoints"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_runs_that_were_begun_are_resumed_first(tmp_path: Path) -> None:
    """The one that was active last is the one that the budget has stopped; one that only lacks rows keeps its place."""
    given = {"scale": "laptop", "seeds": 2, "folder": tmp_path, "runs": tmp_path / "runs"}
    usual = [(job.cell.method, job.seed) for job in jobs("ablation", **given)]
    begun(tmp_path / "runs" / "laptop-cifar10-ipc10-idm-seed1", 10)
    begun(tmp_path / "runs" / "laptop-cifar10-ipc10-dm-cm-seed0", 1000)
    begun(tmp_path / "runs" / "laptop-cifar10-ipc10-iid-idm-seed0", 1, finished=True)
    todo = jobs("ablation", **given)
    assert [(job.cell.method, job.seed) for job in todo[:2]] == [("idm", 1), ("dm-cm", 0)]
    assert "--resume" in todo[0].command and "--resume" in todo[1].command and "--resume" not in todo[2].command
    assert [(job.cell.method, job.seed) for job in todo[2:]] == [
        one for one in usual if one not in (("idm", 1), ("dm-cm", 0))
    ]
    begun(tmp_path / "runs" / "laptop-cifar10-ipc10-iid-dm-seed0", 10)
    first = jobs("architectures", scale="laptop", seeds=1, only="cifar10/ipc10/iid-dm/vgg11", folder=tmp_path,
                 runs=tmp_path / "runs")  # fmt: skip
    assert first[0].run_folder == tmp_path / "runs" / "laptop-cifar10-ipc10-iid-dm-seed0", "the set that it evaluates"


def test_a_command_holds_on_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows keep the command; a folder below the present one is named from there."""
    monkeypatch.chdir(tmp_path)
    inside, outside = (
        jobs("main", scale="tour", seeds=1, folder=folder)[0].command
        for folder in (tmp_path / "results", tmp_path.parent / "elsewhere")
    )
    assert "results/tour.csv" in inside and str(tmp_path.parent / "elsewhere" / "tour.csv") in outside


SMALL = Experiment("small", (Cell("cifar10", "dm", 1), Cell("cifar10", "random", 1), Cell("cifar10", "iid-idm", 1)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A registry of three quick cells, and the environment of the processes that run them."""
    monkeypatch.setitem(EXPERIMENTS, "small", SMALL)
    return os.environ | {"OMP_NUM_THREADS": "1"}


def accuracies(folder: Path) -> dict[tuple[str, int], float]:
    found = all_rows(folder)
    return found.groupby(["method", "seed"])["accuracy"].mean().to_dict()


def test_a_run_that_was_cut_resumes_and_nothing_is_run_twice(small: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    todo = {"scale": "ci", "seeds": 1, "folder": tmp_path, "runs": tmp_path / "runs"}
    whole = tmp_path / "whole"
    assert run_jobs(jobs("small", **todo | {"folder": whole, "runs": whole / "runs"}), environment=small).done == 3

    assert run_jobs(jobs("small", **todo), budget=0.0, say=said.append, environment=small).done == 0
    assert said[-1] == "the budget is spent" and not list(tmp_path.glob("*.csv"))
    first = jobs("small", **todo)[:1]
    assert run_jobs(first, say=said.append, environment=small).done == 1
    left = jobs("small", **todo)
    assert [job.cell.method for job in left] == ["random", "iid-idm"]
    before = (tmp_path / "ci.csv").read_text()
    assert run_jobs(left, environment=small).done == 2
    assert (tmp_path / "ci.csv").read_text().startswith(before.rstrip("\n")), "rows that were measured stay"
    assert jobs("small", **todo) == [] and accuracies(tmp_path) == accuracies(whole)


def test_a_set_that_several_networks_evaluate_is_distilled_once(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluators = Experiment(
        "evaluators", tuple(Cell("cifar10", "dm", 1, name) for name in ("lenet", "convnet3", "mlp"))
    )
    monkeypatch.setitem(EXPERIMENTS, "evaluators", evaluators)
    todo = {"scale": "ci", "seeds": 1, "folder": tmp_path, "runs": tmp_path / "runs"}
    lenet, _, _ = jobs("evaluators", **todo)
    assert [command[0] for command in lenet.commands()] == ["distill", "evaluate"]
    said: list[str] = []
    assert run_jobs([lenet], say=said.append, environment=small).done == 1
    (run,) = (tmp_path / "runs").iterdir()
    before = (run / "synthetic.safetensors").read_bytes()
    assert run_jobs(jobs("evaluators", **todo), say=said.append, environment=small).done == 2
    assert (run / "synthetic.safetensors").read_bytes() == before and len(list((tmp_path / "runs").iterdir())) == 1
    assert [text.split()[1] for text in said] == ["distill", "evaluate", "distill", "evaluate"]
    assert jobs("evaluators", **todo) == []
    rows = all_rows(tmp_path)
    assert rows.groupby("network").size().to_dict() == {"convnet3": 2, "lenet": 2, "mlp": 2}


def test_the_budget_stops_a_run_with_a_checkpoint(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Experiment("long", (Cell("cifar10", "dm", 1, settings=(("checkpoint.every", "100000"),)),))
    monkeypatch.setitem(EXPERIMENTS, "long", long)
    (job,) = jobs("long", scale="tour", seeds=1, folder=tmp_path, runs=tmp_path / "runs")
    endless = Job(job.cell, 0, (*job.command, "--iterations", "100000"))
    said: list[str] = []
    for budget in (15.0, 60.0, 240.0):  # a loaded machine takes longer to begin
        assert run_jobs([endless], budget=budget, say=said.append, environment=small).done == 0
        assert said[-1] == "the budget is spent; run the same command again to continue"
        if (tmp_path / "runs").is_dir():
            break
    (run,) = (tmp_path / "runs").iterdir()
    assert list((run / "checkpoints").glob("*.safetensors")), "it was stopped between two iterations and kept"
    assert "--resume" in jobs("long", scale="tour", seeds=1, folder=tmp_path, runs=tmp_path / "runs")[0].command


def test_what_fits_into_the_budget_comes_before_longer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PoolCost("two networks", 100)
    first, long, pooled, same_pool, unknown = cells = [Cell("cifar10", "dm", ipc) for ipc in (1, 2, 3, 4, 5)]
    costs = {first: Cost(80, 10, 10), long: Cost(700, 0, 0), pooled: Cost(50, 0, 10, pool)}
    costs |= {same_pool: Cost(200, 0, 60, pool), unknown: None}
    takes, started, clock = {"1": 100, "2": 700, "3": 160, "4": 260, "5": 20}, [], [0.0]

    class Process:
        def __init__(self, command: list[str], **given: Any) -> None:
            started.append(command[4])

        def wait(self, timeout: float) -> int:
            clock[0] += min(timeout, takes[started[-1]])
            if timeout < takes[started[-1]]:
                takes[started[-1]] = 0  # it stops when asked
                raise subprocess.TimeoutExpired("iid", timeout)
            return 0

        def send_signal(self, number: int) -> None:
            assert number == signal.SIGTERM

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    todo, said = [Job(cell, 0, ("distill", str(cell.ipc))) for cell in cells], []
    assert run_jobs(todo, budget=600, say=said.append, costs=costs) == (4, 0)
    assert started == ["1", "3", "4", "5", "2"], "the pool counts once, and what fits nowhere is begun at the end"
    assert [line for line in said if "wait" in line] == [
        f"{minutes} minutes are left; longer runs wait" for minutes in ("8.2", "5.5", "1.2")
    ]

    made = tmp_path / "set" / "synthetic.safetensors"
    made.parent.mkdir()
    made.write_bytes(b"")
    takes, started[:], clock = {"1": 100, "2": 50}, [], [0.0]
    run_jobs(
        [Job(long, 0, ("evaluate", "2"), ("distill", "9"), made), todo[0]], budget=600, say=said.append, costs=costs
    )
    assert started == ["2", "1"], "a set that is there need not be distilled"

    takes, started[:], clock = {"1": 100}, [], [0.0]
    shared = [Job(cell, 0, ("distill", "1", "--out", "same")) for cell in (long, first)]
    run_jobs(shared, budget=600, say=said.append, costs=costs)
    assert [line for line in said if "wait" in line][3:] == [], "the first of those that share a run begins it"

    takes, started[:], clock = {"1": 1, "2": 1}, [], [0.0]
    begun = Job(long, 0, ("distill", "2", "--resume"))
    run_jobs([begun, todo[0]], budget=600, say=said.append, costs=costs)
    assert started == ["2", "1"], "what was begun comes first in any case"


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize(("budget", "asked"), [(50.0, 45.0), (1000.0, 990.0)])
def test_the_budget_leaves_time_for_the_checkpoint_and_ends_a_run_that_does_not_stop(
    monkeypatch: pytest.MonkeyPatch, budget: float, asked: float, stops: bool
) -> None:
    class Process:
        """A run that takes longer than the budget, and notes what it is asked for."""

        noted: tuple[Any, ...] = ()

        def __init__(self, command: list[str], **given: Any) -> None:
            Process.noted = ()

        def wait(self, timeout: float | None = None) -> int:
            Process.noted += (timeout,)
            if timeout is not None and not (stops and signal.SIGTERM in self.noted):
                raise subprocess.TimeoutExpired("iid", timeout)
            return 143

        def send_signal(self, number: int) -> None:
            Process.noted += (number,)

        def kill(self) -> None:
            Process.noted += ("killed",)

    monkeypatch.setattr(subprocess, "Popen", Process)
    said: list[str] = []
    job = Job(Cell("cifar10", "dm", 10), 0, ("distill", "dm"))
    assert run_jobs([job, job], budget=budget, say=said.append) == (0, 0)
    first, *later = Process.noted
    assert first == pytest.approx(asked, abs=1)
    assert later == [signal.SIGTERM, 60.0] + ([] if stops else ["killed", None])
    assert said == ["iid distill dm", "the budget is spent; run the same command again to continue"]


def test_a_job_that_fails_is_reported_and_left_out(small: dict[str, str], tmp_path: Path) -> None:
    bad = Job(Cell("cifar10", "dm", 10), 0, ("distill", "dn"))
    good = jobs("small", scale="ci", seeds=1, only="cifar10/ipc1/random", folder=tmp_path)
    said: list[str] = []
    assert run_jobs([bad, *good], say=said.append, environment=small).done == 1
    assert "failed with status 2, skipped: cifar10/ipc10/dm, seed 0" in said
    assert run_jobs([bad], environment=small).failed == 1


def test_chosen_images_evaluated_by_another_network_fill_their_cell(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command names the network as a setting, which the row has as its network."""
    monkeypatch.setitem(EXPERIMENTS, "chosen", Experiment("chosen", (Cell("cifar10", "random", 1, "lenet"),)))
    todo = {"scale": "ci", "seeds": 1, "folder": tmp_path}
    assert run_jobs(jobs("chosen", **todo), environment=small).done == 1
    assert jobs("chosen", **todo) == []


def test_the_command_ends_with_one_where_a_run_failed(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        experiments, "jobs", lambda *given, **named: [Job(Cell("cifar10", "dm", 10), 0, ("distill", "dn"))]
    )
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "small", "--scale", "ci", "--results", str(tmp_path)])
    assert ended.value.code == 1 and "0 of 1 runs done" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to other processes")
def test_ctrl_c_reaches_a_run_once(small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal signals the whole group of the command; at a second signal a run would end without its checkpoint."""
    monkeypatch.setitem(EXPERIMENTS, "long", Experiment("long", (Cell("cifar10", "idm", 10),)))
    (job,) = jobs("long", scale="tour", seeds=1, folder=tmp_path, runs=tmp_path / "runs")
    slow = (*job.command, "--iterations", "100000", "--set", "compute.compile=off")
    code = (
        f"from iidlib.experiments import Cell, Job, run_jobs\nrun_jobs([Job(Cell('cifar10', 'idm', 10), 0, {slow!r})])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=small, start_new_session=True, stderr=subprocess.PIPE)
    try:
        metrics = tmp_path / "runs" / "tour-cifar10-ipc10-idm-seed0" / "metrics.jsonl"
        until = time.monotonic() + 240
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=240)
    finally:
        process.kill()
    until = time.monotonic() + 60  # the run itself finishes its iteration
    while not list(metrics.parent.glob("checkpoints/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.2)
    assert list(metrics.parent.glob("checkpoints/*.safetensors"))


def test_the_command_lists_and_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.console, "width", 80)
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "ablation", "--list"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "cifar10/ipc10/dm-cc" in shown and "missing" in shown and "not found" in shown
    marks = set(re.findall(r"\d\d\.\d ([a-z]) ", shown))
    assert marks and marks == set(re.findall(r"^ *([a-z]): \S", shown, flags=re.M)), "each mark has its source"
    assert max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main(["reproduce", "beta", "--list"])
    shown = capsys.readouterr().out
    names = "".join(line.split()[0] for line in shown.splitlines() if re.match(r"cifar|  match", line))
    assert names == "".join(cell.name for cell in EXPERIMENTS["beta"].cells), "folded behind slashes, and whole"
    for arguments, reported in (
        (["reproduce", "table9"], "unknown experiment 'table9'"),
        (["reproduce", "main", "--budget", "soon"], "--budget takes a time"),
        (["reproduce", "main", "--scale", "huge"], "unknown scale 'huge'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and reported in capsys.readouterr().err


def test_the_minutes_of_a_device_are_listed_on_request(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (100, 80, 60):
        for module in (output, sys.modules["iidlib.cli.reproduce"]):
            monkeypatch.setattr(module.console, "width", width)
        status, shown, _ = iid("reproduce", "ablation", "--list", "--device", "h100")
        assert status == 0 and "h100 min" in shown and "a pool, once: ~0.9 min (cifar10: 2 resnet18" in shown
        assert "minutes of one seed at scale paper" in shown and max(map(len, shown.splitlines())) <= max(width, 90)
        assert len(re.findall(r"~\d+\.\d(?! min)", shown)) == 8, "one for every cell"
    laptop = iid("reproduce", "ablation", "--list", "--device", "cpu", "--scale", "laptop").out
    assert "minutes of one seed at scale laptop" in laptop
    assert re.search(r"cifar10/ipc10/dm .*\) +\d+\.\d$|cpu min: \d+\.\d", laptop, re.MULTILINE), "measured: without ~"
    assert " min" not in iid("reproduce", "ablation", "--list").out
    for arguments, reported in (
        (["--list", "--device", "h10"], "cannot be predicted for the device 'h10'; did you mean 'h100'?"),
        (["--device", "h100"], "h100 is a device to predict times for, with --list; runs take cuda"),
        (["--device", "gpu0"], "device 'gpu0' is not known"),
    ):
        status, _, err = iid("reproduce", "main", *arguments)
        assert status == 2 and reported in err and err.count("\n") == 1


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28800), ("30m", 1800), ("1.5m", 90), (" 5s ", 5)])
def test_times(text: str, seconds: float) -> None:
    assert time_of(text, "--budget") == seconds


def test_a_network_that_cannot_take_a_cells_images_is_found_out_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = Cell("cifar10", "dm", 1), Cell("tinyimagenet", "dm", 1, "convnet33")
    monkeypatch.setitem(EXPERIMENTS, "wrong", Experiment("wrong", cells))
    monkeypatch.setattr("iidlib.experiments.run_jobs", lambda *given, **named: pytest.fail("begun"))
    (tmp_path / "results").mkdir()
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "wrong", "--scale", "laptop", "--results", str(tmp_path / "results")])
    assert end.value.code == 2
    assert "the cell tinyimagenet/ipc1/dm/convnet33 cannot be measured: unknown network" in capsys.readouterr().err


def test_the_coverage_counts_the_cells_that_a_scale_has(tmp_path: Path) -> None:
    empty = coverage(tmp_path)
    assert list(empty.index) == list(EXPERIMENTS) and list(empty.columns) == ["tour", "laptop", "paper"]
    assert empty.loc["ablation"].tolist() == ["0 of 8", "0 of 8", "0 of 8"]
    assert empty.loc["continual", "tour"] == "0 of 6" and empty.loc["continual", "paper"] == "0 of 12"
    rows = rows_of("tour")
    append_results(tmp_path / "some.csv", rows[(rows["method"] == "dm") & (rows["ipc"].astype(int) == 10)])
    assert coverage(tmp_path).loc["ablation"].tolist() == ["1 of 8", "0 of 8", "0 of 8"]
