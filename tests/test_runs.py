"""iidlib.runs: files written whole or not at all, folders that are never overwritten, checkpoints, and what is kept."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

from iidlib import files
from iidlib.config import preset
from iidlib.errors import InputError
from iidlib.runs import Checkpoints, RunFolder, runs_frame
from iidlib.runs import folder as runs_folder
from iidlib.runs.environment import environment

CONFIG = preset("dm", "shapes", 3, "ci")


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


# The environment's stamp


def test_the_environment_says_what_a_number_depends_on_and_no_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    stamp = environment()
    assert {"iidlib", "torch", "torchvision", "numpy", "python", "platform", "threads", "gpu", "commit", "date"} <= set(
        stamp
    )
    assert stamp["torch"] == torch.__version__ and stamp["threads"] == torch.get_num_threads()
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "hunter2" not in json.dumps(stamp)


def git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_commit_has_a_mark_where_the_checkout_was_changed(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "iidlib").mkdir(parents=True)
    (checkout / "pyproject.toml").write_text("")
    monkeypatch.setattr(files, "PACKAGE", checkout / "iidlib")
    assert environment()["commit"] is None
    git(tmp_path, "init", "-q", "checkout")
    assert environment()["commit"] is None, "no commit yet"
    (checkout / "a").write_text("a")
    git(checkout, "add", "a")
    git(checkout, "commit", "-q", "-m", "first")
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert environment()["commit"] == commit
    (checkout / "untracked").write_text("")
    assert environment()["commit"] == commit
    (checkout / "a").write_text("b")
    assert environment()["commit"] == commit + "+"
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


# A run's folder


def test_a_new_folder_has_the_settings_and_the_environment(folder):
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "environment.json"]
    assert folder.config() == CONFIG and not folder.finished
    assert json.loads((folder.path / "environment.json").read_text())["torch"] == torch.__version__
    folder.synthetic.write_bytes(b"")
    assert folder.finished and folder.synthetic == folder.path / "synthetic.safetensors"


def test_folders_above_are_made_and_an_empty_one_is_taken(tmp_path):
    RunFolder.create(tmp_path / "a" / "b", CONFIG)
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(str(tmp_path / "empty"), CONFIG).config() == CONFIG


def test_what_a_process_left_that_was_killed_while_writing_is_not_in_the_way(tmp_path):
    left = tmp_path / "run" / ".config.yaml.4711"
    left.parent.mkdir()
    left.write_text("method: d")
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    assert folder.config() == CONFIG and not left.exists()
    (folder.path / ".synthetic.safetensors.99").write_bytes(b"half")
    (folder.path / ".scores.json.99").write_bytes(b"half")
    folder.checkpoints.mkdir()
    (folder.checkpoints / ".0000005.safetensors.99").write_bytes(b"half")
    (folder.checkpoints / ".0000005.json.99").write_bytes(b"half")
    folder.remove_unfinished()
    assert not list(folder.path.rglob(".*"))


def test_hidden_files_of_the_users_are_never_taken_for_unfinished_ones(folder):
    """Names that end in a number as the library's temporary files do."""
    mine = [".mine", ".notes.2024", ".config.yaml.bak", ".config.2024", ".5.safetensors.1", ".0000005.safetensors.1"]
    mine += ["checkpoints/.notes.2024", "checkpoints/.5.json.1", "checkpoints/.config.yaml.1", "sub/.scores.json.7"]
    for name in mine:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("mine")
    (folder.path / ".scores.json.5").mkdir()
    folder.remove_unfinished()
    assert sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob(".*")) == sorted(
        [*mine, ".scores.json.5"]
    )


@pytest.mark.parametrize("above", ["there", "made"])
@pytest.mark.parametrize("left", ["nothing", "notes", "own settings"])
def test_what_was_begun_is_taken_back_by_name(left, above, tmp_path):
    """The folders go that were made for it, as long as nothing has come into them; what was there before stays."""
    path = tmp_path / "a" / "b" / "run"
    if above == "there":
        path.mkdir(parents=True)
    folder = RunFolder.create(path, CONFIG)
    if left == "notes":
        (path / "notes.txt").write_text("mine")
    if left == "own settings":
        (path / "config.yaml").write_text("mine")
    folder.discard()
    kept = {"nothing": [], "notes": ["notes.txt"], "own settings": ["config.yaml"]}[left]
    if left == "nothing" and above == "made":
        assert not list(tmp_path.iterdir())
    else:
        assert [entry.name for entry in path.iterdir()] == kept
    folder.discard()
    RunFolder(tmp_path).discard()
    assert tmp_path.is_dir()


def test_folders_above_stay_while_something_else_is_in_them(tmp_path):
    folder, other = (RunFolder.create(tmp_path / "runs" / name, CONFIG) for name in ("one", "two"))
    folder.discard()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    assert RunFolder.reopen(other.path, CONFIG).config() == CONFIG


def test_another_run_that_took_the_place_is_not_taken_back(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.path.rename(tmp_path / "moved")
    other = preset("dm", "shapes", 2, "ci", {"iterations": 12345})
    RunFolder.create(tmp_path / "run", other)
    folder.discard()
    assert RunFolder(tmp_path / "run").config() == other and RunFolder(tmp_path / "moved").config() == CONFIG


def test_a_link_to_an_empty_folder_is_that_folder_and_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    folder = RunFolder.create(tmp_path / "link", CONFIG)
    assert (tmp_path / "target" / "config.yaml").is_file()
    folder.discard()
    assert (tmp_path / "link").is_symlink() and not list((tmp_path / "target").iterdir())


def test_a_link_that_cannot_be_a_folder_is_refused_for_what_it_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    for name, target, message in (
        (
            "dangling",
            "nowhere",
            r"cannot write the run folder .*: .*dangling is a link that leads nowhere \(to nowhere\)",
        ),
        ("circle", "circle", "is a link that leads nowhere"),
        ("to-file", "file", "exists already; nothing was overwritten"),
    ):
        link = tmp_path / name
        link.symlink_to(target)
        before = sorted(tmp_path.rglob("*"))
        for path in (link, link / "run") if name != "to-file" else (link,):
            with pytest.raises(InputError, match=message) as caught:
                RunFolder.create(path, CONFIG)
            one_line(caught)
        assert sorted(tmp_path.rglob("*")) == before and str(link.readlink()) == target
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_could_not_be_begun_is_taken_back(tmp_path, monkeypatch):
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs_folder, "atomic_write", full)
    with pytest.raises(InputError, match="No space left on device"):
        RunFolder.create(tmp_path / "a" / "run", CONFIG)
    assert not list(tmp_path.iterdir())


def test_only_checkpoints_by_their_own_names_are_removed(tmp_path):
    mine = {tmp_path / name for name in ("5.safetensors", "5.json", "notes.json", "0000001-keep.safetensors")}
    for path in mine:
        path.write_text("mine")
    for iteration in (1, 2, 3, 4):
        Checkpoints(tmp_path).save(iteration, {}, {})
    ours = {f"{number:07d}.{kind}" for number in (3, 4) for kind in ("safetensors", "json")}
    assert {path.name for path in tmp_path.iterdir()} == ours | {path.name for path in mine}


def test_notes_add_to_the_environment(folder):
    folder.note("drift", {"torch": ["1", "2"]})
    folder.note("drift", {"torch": ["2", "3"]})
    noted = json.loads((folder.path / "environment.json").read_text())
    assert [entry["torch"][1] for entry in noted["drift"]] == ["2", "3"] and noted["torch"] == torch.__version__


def test_what_exists_is_never_overwritten(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    for path in (folder.path, tmp_path / "file", tmp_path / "full"):
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        with pytest.raises(
            InputError, match=r"exists already; nothing was overwritten: give another --out, or --resume"
        ) as caught:
            RunFolder.create(path, CONFIG)
        assert str(path) in one_line(caught)
        assert before == sorted(str(p) for p in tmp_path.rglob("*"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the run folder .*: Not a directory") as caught:
        RunFolder.create(tmp_path / "file" / "run", CONFIG)
    one_line(caught)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot write the run folder .*: Permission denied") as caught:
        RunFolder.create(tmp_path / "run", CONFIG)
    one_line(caught)


def test_a_run_is_taken_up_again_with_its_own_settings_alone(folder):
    assert RunFolder.reopen(folder.path, CONFIG).path == folder.path
    for changes, message in (
        ({"match.cm": 0.5}, "match.cm=0.01, not 0.5; resume it as it was"),
        ({"eval.networks": "alexnet"}, r"eval.networks=\('convnet3',\), not \('alexnet',\)"),
        ({"seed": 1, "iterations": 9}, "iterations=4, not 9"),
        ({"compute.chunk": 5}, "compute.chunk=0, not 5"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            RunFolder.reopen(folder.path, preset("dm", "shapes", 3, "ci", changes))
        one_line(caught)


def test_what_is_not_a_run_cannot_be_taken_up(tmp_path, folder):
    with pytest.raises(InputError, match=r"no run to resume at .*nowhere \(it has no config.yaml\)") as caught:
        RunFolder.reopen(tmp_path / "nowhere", CONFIG)
    one_line(caught)
    for text in ("method: [", "iteration: 5\n", "\x00"):
        (folder.path / "config.yaml").write_text(text)
        with pytest.raises(InputError) as caught:
            RunFolder.reopen(folder.path, CONFIG)
        one_line(caught)


# Metrics


def test_metrics_come_back_as_they_were_logged(folder):
    assert folder.metric_rows() == [] and folder.metrics().empty
    logged = [{"iteration": k, "loss": 0.1 * k, "seconds": k / 3} for k in (0, 10, 20)]
    for row in logged:
        folder.append_metrics(row)
    assert folder.metric_rows() == logged
    assert folder.metrics().equals(pd.DataFrame(logged))
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("iteration", "kept"), [(0, []), (1, [0]), (10, [0]), (11, [0, 10]), (50, [0, 10, 20])])
def test_metrics_are_rewound_to_before_an_iteration(folder, iteration, kept):
    for k in (0, 10, 20):
        folder.append_metrics({"iteration": k})
    folder.rewind_metrics(iteration)
    assert [row["iteration"] for row in folder.metric_rows()] == kept
    folder.append_metrics({"iteration": 99})
    assert [row["iteration"] for row in folder.metric_rows()] == [*kept, 99]


def test_metrics_without_any_are_rewound_to_nothing(folder):
    folder.rewind_metrics(0)
    assert folder.metric_rows() == []


def test_a_line_that_was_cut_off_is_dropped(folder):
    """The machine went down while a line was written."""
    for k in (0, 10):
        folder.append_metrics({"iteration": k, "loss": 1.0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 20, "lo')
    assert [row["iteration"] for row in folder.metric_rows()] == [0, 10]
    folder.rewind_metrics(10)
    folder.append_metrics({"iteration": 10})
    assert [row["iteration"] for row in folder.metric_rows()] == [0, 10]


# One process at a time


def test_a_folder_in_use_is_refused_and_its_holder_named(folder):
    with folder.lock():
        with pytest.raises(InputError, match=rf"is in use by process {os.getpid()} on .+; wait for it") as caught:
            with RunFolder(folder.path).lock():
                pass
        one_line(caught)
        with pytest.raises(InputError, match=f"is in use by process {os.getpid()}"):
            with RunFolder(folder.path).lock():
                pass
    with folder.lock():
        pass
    assert not (folder.path / ".lock").exists()


def test_the_lock_of_a_process_that_died_is_taken_over(folder):
    code = f"""
        import os
        from iidlib.runs import RunFolder
        with RunFolder({str(folder.path)!r}).lock():
            print("held", flush=True)
            os.kill(os.getpid(), 9)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert died.stdout == "held\n" and died.returncode in (-9, 9)
    assert (folder.path / ".lock").read_text().lstrip().startswith("process ")
    with folder.lock(), (folder.path / ".lock").open() as file:
        file.seek(1)  # Windows locks the first byte
        assert file.read().startswith(f"process {os.getpid()} on ")


def test_a_lock_that_cannot_be_removed_hides_no_error(folder, monkeypatch):
    def refuse(*given: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(InputError, match="the reason"), folder.lock():
        monkeypatch.setattr(Path, "unlink", refuse)
        raise InputError("the reason")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK])
def test_without_locks_in_the_file_system_it_goes_on(folder, monkeypatch, number):
    def unsupported(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    pytest.importorskip("fcntl", reason="Windows has locks on every file system")
    monkeypatch.setattr("fcntl.flock", unsupported)
    with folder.lock(), RunFolder(folder.path).lock():
        assert not (folder.path / ".lock").exists()


def test_a_lock_that_cannot_be_made_is_no_file_system_without_locks(folder, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *given: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError), folder.lock():
        pass


def test_an_error_inside_is_not_taken_for_a_folder_in_use(folder):
    with pytest.raises(BlockingIOError, match="of the work"), folder.lock():
        raise BlockingIOError("of the work")
    assert not (folder.path / ".lock").exists()


# All runs


def score(folder: RunFolder, *accuracies: float) -> None:
    folder.write_scores(pd.DataFrame({"label": "dm", "network": "convnet3", "accuracy": accuracies}))


def test_all_runs_below_a_folder_are_one_table(tmp_path):
    score(RunFolder.create(tmp_path / "b", CONFIG), 50.0, 51.0)
    score(RunFolder.create(tmp_path / "a" / "deep", preset("iid-dm", "shapes", 4, "tour", {"seed": 2})), 60.0)
    RunFolder.create(tmp_path / "unscored", CONFIG)
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "scores.json").write_text("[]")
    frame = runs_frame(tmp_path)
    assert list(frame)[:7] == ["run", "dataset", "method", "ipc", "scale", "seed", "iterations"]
    assert frame["run"].tolist() == [str(Path("a") / "deep"), "b", "b"]
    assert frame["method"].tolist() == ["iid-dm", "dm", "dm"] and frame["seed"].tolist() == [2, 0, 0]
    assert frame["accuracy"].tolist() == [60.0, 50.0, 51.0] and frame["ipc"].tolist() == [4, 3, 3]
    assert frame["scale"].tolist() == ["tour", "ci", "ci"] and frame["iterations"].tolist() == [200, 4, 4]


def test_scores_keep_what_they_say_themselves(folder):
    folder.write_scores(pd.DataFrame({"method": ["random"], "accuracy": [10.0]}))
    frame = runs_frame(folder.path)
    assert frame["method"].tolist() == ["random"] and frame["dataset"].tolist() == ["shapes"]


def test_no_runs_are_an_empty_table(tmp_path):
    assert runs_frame(tmp_path).empty and runs_frame(tmp_path / "nowhere").empty


@pytest.mark.parametrize("out", ["new/..", "new/../.", "deep/new/../.."])
def test_a_way_back_up_leads_to_no_full_folder(tmp_path, monkeypatch, out):
    """The folder that such a path means is there, although the path is not."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="exists already; nothing was overwritten"):
        RunFolder.create(out, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_a_file_at_the_place_of_the_lock_stays(folder):
    (folder.path / ".lock").write_text("mine")
    with pytest.raises(InputError, match="is needed as a lock and is another file; move it away"), folder.lock():
        pytest.fail("it was taken for a lock")
    assert (folder.path / ".lock").read_text() == "mine"
