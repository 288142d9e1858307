"""Runs that are continued to more iterations: what they give, what they write and when, and what is refused."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from iidlib.distillation import distill, finished, save_pictures
from iidlib.engine import device_name
from iidlib.errors import InputError
from iidlib.evaluation import evaluate, origin_of
from iidlib.experiments import result_rows
from iidlib.runs import Checkpoints, RunFolder, runs_frame
from iidlib.synthetic import SyntheticSet
from tests.factories import ALL, ON_IDM, Crash, crash, logged_rows, settings, stop_at, tiny_dataset
from tests.fake_cuda import fake_cuda

EVERY = {"checkpoint__every": 3}


def run_of(method: str, iterations: int, folder: Path, *, resume: bool = False, **options: object) -> SyntheticSet:
    config = settings(method, iterations=iterations, **EVERY)
    return distill(config, tiny_dataset(40), out=folder, resume=resume, **options).synthetic


@pytest.mark.parametrize("method", [*ALL, *ON_IDM, "iid-plus"])
def test_a_continued_run_is_one_begun_with_as_many_iterations_bit_for_bit(method: str, tmp_path: Path) -> None:
    """No method has a rate or a queue that depends on when the run is to end."""
    first = run_of(method, 5, tmp_path / "two")
    second = run_of(method, 10, tmp_path / "two", resume=True)
    whole = run_of(method, 10, tmp_path / "one")
    assert torch.equal(second.images, whole.images) and not torch.equal(second.images, first.images)
    assert SyntheticSet.load(tmp_path / "two").images.equal(whole.images)
    states = [Checkpoints(tmp_path / name / "checkpoints").load() for name in ("two", "one")]
    assert all(torch.equal(states[0][0][name], tensor) for name, tensor in states[1][0].items())
    logged, known = logged_rows(tmp_path / "two"), {row["iteration"]: row for row in logged_rows(tmp_path / "one")}
    assert [row["iteration"] for row in logged] == [0, 4, 9], "the last iteration of each is logged"
    assert [row for row in logged if row["iteration"] in known] == list(known.values())


def test_cached_statistics_and_the_queue_at_another_interval_are_continued_too(tmp_path: Path) -> None:
    for method, changes in (
        ("iid-dm", {"match__statistics": "cached", "match__cached_pairs": 3}),
        ("idm", {"queue__every": 2, "queue__size": 4, "queue__meter_interval": 4}),
    ):
        folder = tmp_path / method
        for iterations in (5, 7, 10):
            config = settings(method, iterations=iterations, **EVERY, **changes)
            last = distill(config, tiny_dataset(40), out=folder, resume=iterations > 5).synthetic
        assert torch.equal(last.images, distill(config, tiny_dataset(40)).synthetic.images)


def test_the_record_says_how_a_run_was_continued(tmp_path: Path) -> None:
    for iterations in (4, 7, 10):
        synthetic = run_of("dm", iterations, tmp_path / "run", resume=iterations > 4)
    assert synthetic.provenance["iterations"] == "10"
    assert synthetic.provenance["continued"] == "iterations was 4, then 7"
    assert SyntheticSet.load(tmp_path / "run").provenance == synthetic.provenance
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert text.startswith("# continued: iterations was 4, then 7\n") and yaml.safe_load(text)["iterations"] == 10
    noted = json.loads((tmp_path / "run" / "environment.json").read_text())["continued"]
    assert [(one["from"], one["done"], one["to"]) for one in noted] == [(4, 4, 7), (7, 7, 10)]
    whole = run_of("dm", 10, tmp_path / "whole")
    assert "continued" not in whole.provenance
    assert whole.provenance["config"] == synthetic.provenance["config"], "the settings are the same"
    assert (
        distill(settings("dm", iterations=10, **EVERY), tiny_dataset(40), out=tmp_path / "run", resume=True).seconds
        == 0
    )


def finished_with_scores(folder: Path) -> dict[str, bytes]:
    synthetic = run_of("dm", 5, folder)
    save_pictures(synthetic, RunFolder(folder))
    RunFolder(folder).write_scores(pd.DataFrame({"method": ["dm"], "iterations": [5], "accuracy": [50.0]}))
    names = ("config.yaml", "synthetic.safetensors", "synthetic.png", "scores.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("end", [6, 9])
def test_the_earlier_set_its_picture_and_scores_stay_until_the_new_one_is_there(end: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = finished_with_scores(folder)
    with pytest.raises(Crash):
        run_of("dm", 10, folder, resume=True, **stop_at(end, crash))
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert runs_frame(tmp_path)["accuracy"].tolist() == [50.0]
    last = run_of("dm", 10, folder, resume=True)
    assert all((folder / name).read_bytes() != before[name] for name in before if name != "scores.json")
    assert runs_frame(tmp_path).empty, "scores of the earlier set are shown for the new one"
    assert (folder / "scores-5.json").read_bytes() == before["scores.json"]
    assert last.provenance["continued"] == "iterations was 5"
    assert last.images.equal(run_of("dm", 10, tmp_path / "whole").images)
    assert not (folder / "synthetic-expanded.png").exists()


@pytest.mark.parametrize("stopped_at", ["synthetic.safetensors", "config.yaml", "synthetic.png"])
def test_a_run_that_dies_while_the_new_set_is_written_is_continued_again(
    stopped_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    finished_with_scores(folder)
    replace = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if Path(target).name == stopped_at:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        run_of("dm", 10, folder, resume=True)
    monkeypatch.undo()
    assert runs_frame(tmp_path).empty, "scores of the earlier set are shown for the new one"
    last = run_of("dm", 10, folder, resume=True)
    assert last.images.equal(run_of("dm", 10, tmp_path / "whole").images)
    assert RunFolder(folder).config().iterations == 10 and SyntheticSet.load(folder).provenance["iterations"] == "10"


def test_fewer_iterations_than_done_and_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = finished_with_scores(folder)
    newest = folder / "checkpoints" / "0000005.safetensors"
    content = newest.read_bytes()
    for corruption in (content, content[:-5]):  # the one before it is at 3, which is no leave to make a shorter set
        newest.write_bytes(corruption)
        with pytest.raises(InputError, match=r"has done 5 iterations, more than iterations=4; give 5 or more"):
            run_of("dm", 4, folder, resume=True)
    with pytest.raises(InputError, match=r"started with seed=0, not 1; resume it with the same settings"):
        distill(settings("dm", iterations=10, seed=1, **EVERY), tiny_dataset(40), out=folder, resume=True)
    assert {name: (folder / name).read_bytes() for name in before} == before
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"no checkpoint to continue from to iterations=10; .* --init .*with another"):
        run_of("dm", 10, folder, resume=True)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "continued" not in json.loads((folder / "environment.json").read_text())


def test_a_run_that_was_stopped_may_end_earlier_or_later(tmp_path: Path) -> None:
    for total in (8, 20):
        with pytest.raises(Crash):
            run_of("dm", 12, tmp_path / str(total), **stop_at(7, crash))
        last = run_of("dm", total, tmp_path / str(total), resume=True)
        assert last.provenance["continued"] == "iterations was 12" and last.provenance["iterations"] == str(total)
        assert last.images.equal(run_of("dm", total, tmp_path / f"whole-{total}").images)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of("dm", 4, tmp_path / "run")

    def read_only(*given: object, **named: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError, match=r"cannot resume in the run folder .*run: Read-only file system"):
        run_of("dm", 8, tmp_path / "run", resume=True)


def test_rows_without_a_time_are_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run_of("dm", 12, tmp_path / "run", **stop_at(7, crash))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"iteration": 0}\n[]\n{"iteration": 1, "seconds": "x"}\n')
    distill(settings("dm", iterations=12, **EVERY), tiny_dataset(40), out=tmp_path / "run", resume=True)
    assert [row["iteration"] for row in logged_rows(tmp_path / "run")] == [0, 10, 11]


def test_pictures_are_those_that_networks_see_too_where_they_differ(tmp_path: Path) -> None:
    config = settings("dm", iterations=1, syn__factor=2)
    synthetic = distill(config, tiny_dataset(40), out=tmp_path / "run").synthetic
    folder = RunFolder(tmp_path / "run")
    finished.save_pictures(synthetic, folder, only_there=True)
    assert not list(folder.path.glob("*.png"))
    finished.save_pictures(synthetic, folder)
    assert sorted(path.name for path in folder.path.glob("*.png")) == ["synthetic-expanded.png", "synthetic.png"]


@pytest.mark.parametrize(("saved", "now"), [("half", "weights rounded to half precision"), ("none", "initial weights")])
def test_a_queue_that_is_not_saved_in_full_is_said_where_it_is_resumed(saved, now, tmp_path, caplog):
    config = settings("idm", iterations=6, checkpoint__every=3, checkpoint__queue=saved)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(40), out=tmp_path, **stop_at(4, crash))
    assert f"resume with {now}" not in caplog.text
    whole = distill(config, tiny_dataset(40)).synthetic
    resumed = distill(config, tiny_dataset(40), out=tmp_path, resume=True).synthetic
    assert f"the networks of the queue resume with {now} (checkpoint.queue)" in caplog.text
    assert not torch.equal(resumed.images, whole.images)
    assert "environment_mismatch" in resumed.provenance and "environment_mismatch" not in whole.provenance
    assert RunFolder(tmp_path).noted("environment_mismatch") == {"iteration": 3, "queue": ["full", now]}


def test_whether_steps_are_recorded_is_noted_and_a_change_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, dataset = settings("dm", iterations=6, checkpoint__every=3), tiny_dataset((12, 12, 12, 12))
    with pytest.raises(Crash):
        distill(config, dataset, out=tmp_path / "cpu", **stop_at(4, crash))
    assert "recorded" not in RunFolder(tmp_path / "cpu").noted("device"), "nothing is recorded on a CPU"
    for name in ("kept", "lost"):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            fake_cuda(patch)
            distill(config, dataset, out=tmp_path / name, **stop_at(4, crash))
        folder = RunFolder(tmp_path / name)
        assert folder.noted("device") == {"name": device_name(torch.device("cpu")), "from": 0, "recorded": True}
    with monkeypatch.context() as patch:
        fake_cuda(patch)
        kept = distill(config, dataset, out=tmp_path / "kept", resume=True).synthetic
    assert "CUDA graphs" not in caplog.text and "environment_mismatch" not in kept.provenance
    lost = distill(config, dataset, out=tmp_path / "lost", resume=True).synthetic
    assert "were recorded as CUDA graphs before and are not recorded now" in caplog.text
    assert "environment_mismatch" in lost.provenance
    mismatch = {"iteration": 3, "steps": ["recorded as CUDA graphs", "not recorded"]}
    assert RunFolder(tmp_path / "lost").noted("environment_mismatch") == mismatch


@pytest.mark.parametrize(("recorded", "written"), [(True, "yes"), (False, "no"), (None, None)])
def test_a_row_says_whether_the_iterations_were_recorded(recorded: bool | None, written: str | None, tmp_path: Path):
    config, dataset = settings("dm", iterations=1, eval__epochs=1, eval__num_eval=1), tiny_dataset(40)
    synthetic = distill(config, dataset, out=tmp_path / "run").synthetic
    folder = RunFolder(tmp_path / "run")
    folder.note("device", folder.noted("device") | ({} if recorded is None else {"recorded": recorded}))
    origin = origin_of(synthetic, run=folder)
    scores = evaluate(synthetic, dataset, protocol=config.eval, seed=config.seed)
    (row,) = result_rows(scores, config, origin=origin).to_dict("records")
    assert row["recorded"] == written or (written is None and pd.isna(row["recorded"]))
