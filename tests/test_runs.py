"""iidlib.runs: files written whole or not at all, folders that are never overwritten, checkpoints, and what is kept."""

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

from iidlib import files
from iidlib.config import RunConfig, preset
from iidlib.errors import InputError
from iidlib.runs import Checkpoints, RunFolder, claim, runs_frame
from iidlib.runs.environment import environment
from tests.factories import one_line

CONFIG = preset("dm", "shapes", 3, "ci")


def new_folder(path: str | Path, config: RunConfig) -> RunFolder:
    """The folder of a run that was begun and left before its first iteration."""
    with RunFolder.begin(path, config) as folder:
        return folder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return new_folder(tmp_path / "run", CONFIG)


# The environment's stamp


def test_the_environment_says_what_a_number_depends_on_and_no_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    stamp = environment()
    assert {"iidlib", "torch", "torchvision", "numpy", "python", "platform", "threads", "gpu", "commit", "date"} <= set(
        stamp
    )
    assert "cudnn" in stamp and (stamp["cudnn"] is None) == (stamp["gpu"] is None)
    assert stamp["torch"] == torch.__version__ and stamp["threads"] == torch.get_num_threads()
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "hunter2" not in json.dumps(stamp)


def test_the_environment_names_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: names[number])
    assert environment()["gpu"] == "NVIDIA H100 80GB HBM3, Tesla T4"


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
    copied = environment()["commit"]
    assert re.fullmatch(r"files [0-9a-f]{12}", copied), "copied without git"
    (checkout / "iidlib" / "module.py").write_text("x = 1")
    changed = environment()["commit"]
    assert re.fullmatch(r"files [0-9a-f]{12}", changed) and changed != copied
    git(tmp_path, "init", "-q", "checkout")
    assert environment()["commit"] == changed, "no commit yet"
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
    assert environment()["commit"] == changed
    (checkout / "pyproject.toml").unlink()
    assert environment()["commit"] is None, "installed: the version says it"


# A run's folder


def test_a_new_folder_has_the_settings_and_the_environment(folder):
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "environment.json"]
    assert folder.config() == CONFIG and not folder.finished
    assert json.loads((folder.path / "environment.json").read_text())["torch"] == torch.__version__
    folder.synthetic.write_bytes(b"")
    assert folder.finished and folder.synthetic == folder.path / "synthetic.safetensors"


def test_folders_above_are_made_and_an_empty_one_is_taken(tmp_path):
    new_folder(tmp_path / "a" / "b", CONFIG)
    (tmp_path / "empty").mkdir()
    assert new_folder(str(tmp_path / "empty"), CONFIG).config() == CONFIG


def temporary(name: str) -> str:
    """The name of a temporary file of another process."""
    return f".{name}.4711-0123456789abcdef.unfinished"


def test_what_a_process_left_that_was_killed_while_writing_is_not_in_the_way(tmp_path):
    left = tmp_path / "run" / temporary("config.yaml")
    left.parent.mkdir()
    left.write_text("method: d")
    (tmp_path / "run" / ".lock").write_text("\nprocess 4711 on here\n")
    folder = new_folder(tmp_path / "run", CONFIG)
    assert folder.config() == CONFIG and not left.exists()
    folder.checkpoints.mkdir()
    for name in ("synthetic.safetensors", "scores.json", "scores-incomplete.json", "synthetic-expanded.png"):
        (folder.path / temporary(name)).write_bytes(b"half")
    for name in ("0000005.safetensors", "0000005.json"):
        (folder.checkpoints / temporary(name)).write_bytes(b"half")
    folder.remove_unfinished()
    assert not list(folder.path.rglob(".*"))


def test_hidden_files_of_the_users_are_never_taken_for_unfinished_ones(folder):
    """Names much like those of the library's temporary files."""
    mine = [".mine", ".notes.2024", ".config.yaml.bak", ".config.yaml.77", ".config.yaml.7-77.unfinished"]
    mine += [temporary("notes"), temporary("5.safetensors"), temporary("0000005.json"), ".scores.json.unfinished"]
    mine += [
        f"checkpoints/{temporary('config.yaml')}",
        "checkpoints/.0000005.json.1",
        f"sub/{temporary('scores.json')}",
    ]
    for name in mine:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("mine")
    (folder.path / temporary("scores.json")).mkdir()
    folder.remove_unfinished()
    assert sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob(".*")) == sorted(
        [*mine, temporary("scores.json")]
    )


@pytest.mark.parametrize("name", [".config.yaml.77", ".lock", ".notes"])
def test_a_folder_with_a_hidden_file_of_the_users_is_not_empty(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(InputError, match="already exists; nothing was overwritten"):
        new_folder(tmp_path / "run", CONFIG)
    assert [(path.name, path.read_text()) for path in (tmp_path / "run").iterdir()] == [(name, "mine")]


def test_nothing_is_written_before_the_lock_is_held(tmp_path, monkeypatch):
    steps = []
    lock, write = claim.Claim.lock, claim.atomic_write

    @contextlib.contextmanager
    def noted_lock(self):
        with lock(self):
            steps.append("lock")
            yield
        steps.append("let go")

    monkeypatch.setattr(claim.Claim, "lock", noted_lock)
    monkeypatch.setattr(claim, "atomic_write", lambda path, content: steps.append(path.name) or write(path, content))
    new_folder(tmp_path / "run", CONFIG)
    assert steps == ["lock", "config.yaml", "environment.json", "let go"]


def test_what_another_process_puts_there_before_the_lock_is_held_is_seen(tmp_path, monkeypatch):
    lock = claim.Claim.lock

    @contextlib.contextmanager
    def late_lock(self):
        (self.path / "config.yaml").write_text("theirs")
        with lock(self):
            yield

    monkeypatch.setattr(claim.Claim, "lock", late_lock)
    with pytest.raises(InputError, match="already exists; nothing was overwritten"):
        new_folder(tmp_path / "run", CONFIG)
    assert [(path.name, path.read_text()) for path in (tmp_path / "run").iterdir()] == [("config.yaml", "theirs")]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("other")])
def test_whatever_stops_the_beginning_only_what_it_wrote_is_taken_back(error, tmp_path, monkeypatch):
    write = claim.atomic_write

    def second_fails(path: Path, content: str) -> None:
        if path.name == "environment.json":
            (path.parent / "notes.txt").write_text("mine")
            raise error
        write(path, content)

    monkeypatch.setattr(claim, "atomic_write", second_fails)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        new_folder(tmp_path / "a" / "run", CONFIG)
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["notes.txt"]


STARTS = """
import os, pathlib, sys, time
from iidlib.config import RunConfig, preset
from iidlib.errors import InputError
from iidlib.runs import RunFolder

place, me, other, rounds = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

def meet(what):
    (place / f"{what}-{me}").touch()
    while not (place / f"{what}-{other}").exists():
        time.sleep(0)

for number in range(rounds):
    meet(f"start-{number}")
    try:
        with RunFolder.begin(place / f"run-{number}", preset("dm", "shapes", 3, "ci", {"seed": int(me)})) as folder:
            print(number, "won", os.getpid(), folder.config().seed, flush=True)
            meet(f"done-{number}")
    except InputError as error:
        print(number, "lost", os.getpid(), str(error).replace("\\n", "NEWLINE"), flush=True)
        meet(f"done-{number}")
"""


def test_of_two_processes_that_begin_at_once_one_has_the_folder_and_the_other_names_it(tmp_path):
    rounds = 20
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    racers = [
        subprocess.Popen([*command, me, other, str(rounds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for me, other in (("1", "2"), ("2", "1"))
    ]
    outcomes = [racer.communicate(timeout=300) for racer in racers]
    assert all(racer.returncode == 0 for racer in racers), outcomes
    lines = [[line.split(" ", 3) for line in out.splitlines()] for out, _ in outcomes]
    for number, (one, two) in enumerate(zip(*lines, strict=True)):
        won, lost = (one, two) if one[1] == "won" else (two, one)
        assert (won[1], lost[1]) == ("won", "lost"), (one, two)
        assert f"run-{number} is in use by process {won[2]} on " in lost[3] and "NEWLINE" not in lost[3]
        folder = RunFolder(tmp_path / f"run-{number}")
        assert str(folder.config().seed) == won[3], "the loser has overwritten the winner's settings"
        assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "environment.json"]


@pytest.mark.parametrize("above", ["there", "made"])
@pytest.mark.parametrize("left", ["nothing", "notes", "own settings"])
def test_what_was_begun_is_taken_back_by_name(left, above, tmp_path):
    """The folders go that were made for it, as long as nothing has come into them; what was there before stays."""
    path = tmp_path / "a" / "b" / "run"
    if above == "there":
        path.mkdir(parents=True)
    folder = new_folder(path, CONFIG)
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
    folder, other = (new_folder(tmp_path / "runs" / name, CONFIG) for name in ("one", "two"))
    folder.discard()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    assert RunFolder.reopen(other.path, CONFIG).config() == CONFIG


def test_another_run_that_took_the_place_is_not_taken_back(tmp_path):
    folder = new_folder(tmp_path / "run", CONFIG)
    folder.path.rename(tmp_path / "moved")
    other = preset("dm", "shapes", 2, "ci", {"iterations": 12345})
    new_folder(tmp_path / "run", other)
    folder.discard()
    assert RunFolder(tmp_path / "run").config() == other and RunFolder(tmp_path / "moved").config() == CONFIG


def test_a_link_to_an_empty_folder_is_that_folder_and_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    folder = new_folder(tmp_path / "link", CONFIG)
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
        ("to-file", "file", "already exists; nothing was overwritten"),
    ):
        link = tmp_path / name
        link.symlink_to(target)
        before = sorted(tmp_path.rglob("*"))
        for path in (link, link / "run") if name != "to-file" else (link,):
            with pytest.raises(InputError, match=message) as caught:
                new_folder(path, CONFIG)
            one_line(caught)
        assert sorted(tmp_path.rglob("*")) == before and str(link.readlink()) == target
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_could_not_be_begun_is_taken_back(tmp_path, monkeypatch):
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claim, "atomic_write", full)
    with pytest.raises(InputError, match="No space left on device"):
        new_folder(tmp_path / "a" / "run", CONFIG)
    assert not list(tmp_path.iterdir())


def test_only_checkpoints_by_their_own_names_are_removed(tmp_path):
    mine = {tmp_path / name for name in ("5.safetensors", "5.json", "notes.json", "0000001-keep.safetensors")}
    for path in mine:
        path.write_text("mine")
    for iteration in (1, 2, 3, 4):
        Checkpoints(tmp_path).save(iteration, {}, {})
    ours = {f"{number:07d}.{kind}" for number in (3, 4) for kind in ("safetensors", "json")}
    assert {path.name for path in tmp_path.iterdir()} == ours | {path.name for path in mine}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "5", "null", '{"environment_mismatch": 5}', '{"environment_mismatch": {}}', "[" * 100_000, "\xff"],
)
def test_a_corrupted_environment_is_set_aside_for_a_new_one(content, folder, caplog):
    (folder.path / "environment.json").write_text(content, encoding="latin-1")
    folder.note("environment_mismatch", {"torch": ["1", "2"]})
    noted = json.loads((folder.path / "environment.json").read_text())
    assert noted["environment_mismatch"] == [{"torch": ["1", "2"]}] and noted["torch"] == torch.__version__
    (record,) = caplog.records
    assert "environment.json is corrupted (" in record.message and "\n" not in record.message
    assert (folder.path / "environment.json.corrupted").read_text(encoding="latin-1") == content


def test_notes_add_to_the_environment(folder):
    folder.note("environment_mismatch", {"torch": ["1", "2"]})
    folder.note("environment_mismatch", {"torch": ["2", "3"]})
    noted = json.loads((folder.path / "environment.json").read_text())
    assert [entry["torch"][1] for entry in noted["environment_mismatch"]] == ["2", "3"]
    assert noted["torch"] == torch.__version__


def test_what_exists_is_never_overwritten(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "full" / ".lock").write_text("")  # the user's: no process has put its name into it
    resumed = ", or resume it with --resume"
    for path, more in ((folder.path, resumed), (tmp_path / "file", ""), (tmp_path / "full", "")):
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        with pytest.raises(
            InputError, match=rf"already exists; nothing was overwritten: give another --out{more}$"
        ) as caught:
            new_folder(path, CONFIG)
        assert str(path) in one_line(caught)
        assert before == sorted(str(p) for p in tmp_path.rglob("*"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the run folder .*: Not a directory") as caught:
        new_folder(tmp_path / "file" / "run", CONFIG)
    one_line(caught)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot write the run folder .*: Permission denied") as caught:
        new_folder(tmp_path / "run", CONFIG)
    one_line(caught)


def test_a_run_is_resumed_with_its_own_settings_alone(folder):
    assert RunFolder.reopen(folder.path, CONFIG).path == folder.path
    for changes, message in (
        ({"syn.lr": 0.5}, "syn.lr=1.0, not 0.5; resume it with the same settings"),
        ({"eval.networks": "alexnet"}, r"eval.networks=\('convnet3',\), not \('alexnet',\)"),
        ({"seed": 1, "iterations": 9}, "iterations=4, not 9"),
        ({"compute.chunk": 5}, "compute.chunk=0, not 5"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            RunFolder.reopen(folder.path, preset("dm", "shapes", 3, "ci", changes))
        one_line(caught)


def test_a_run_is_resumed_however_its_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = new_folder(tmp_path / "run", preset("dm", "folder:./pets?size=16&test=0.3", 3, "ci"))
    for same in ("folder:pets/?test=0.3&size=16", f"folder:{tmp_path}/pets?size=16&test=0.3"):
        assert RunFolder.reopen(run.path, preset("dm", same, 3, "ci")).path == run.path
    for other in ("folder:pets?size=16", "folder:pet?size=16&test=0.3", "validation:folder:pets?size=16&test=0.3"):
        with pytest.raises(InputError, match="was started with dataset="):
            RunFolder.reopen(run.path, preset("dm", other, 3, "ci"))


def test_what_is_not_a_run_cannot_be_resumed(tmp_path, folder):
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


WRONG_ROWS = [
    "[]", "5", "null", '"text"', "{}", '{"loss": 1}', '{"iteration": "7"}', '{"iteration": true}', '{"iteration": -1}',
    '{"iteration": 7.5}', '{"iteration": NaN}', '{"iteration": 7, "seconds": "x"}', '{"iteration": 7, "seconds": NaN}',
    '{"iteration": 7, "seconds": null}', '{"iteration": 7, "loss": [1]}', '{"iteration": 7, "loss": "1"}',
    '{"iteration": 0}', "[" * 100_000, "\xff",
]  # fmt: skip


@pytest.mark.parametrize("line", WRONG_ROWS, ids=lambda line: line[:30])
def test_a_line_of_the_wrong_shape_is_left_out_and_those_around_it_stay(line, folder):
    right = ['{"iteration": 0, "seconds": 0.5, "loss": 1.0}', '{"iteration": 10, "seconds": 1.5, "loss": Infinity}']
    (folder.path / "metrics.jsonl").write_text("\n".join([right[0], line, right[1]]) + "\n", encoding="latin-1")
    assert folder.metric_rows() == [json.loads(row) for row in right]
    assert list(folder.metrics()["loss"]) == [1.0, float("inf")]
    folder.rewind_metrics(20)
    assert (folder.path / "metrics.jsonl").read_text().splitlines() == right


def test_metrics_that_cannot_be_read_are_one_line(folder):
    (folder.path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*metrics.jsonl: Is a directory; move it away") as caught:
        folder.metric_rows()
    one_line(caught)


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
def test_without_locks_in_the_file_system_it_continues(folder, monkeypatch, number):
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
    score(new_folder(tmp_path / "b", CONFIG), 50.0, 51.0)
    score(new_folder(tmp_path / "a" / "deep", preset("iid-dm", "shapes", 4, "tour", {"seed": 2})), 60.0)
    new_folder(tmp_path / "unscored", CONFIG)
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
    with pytest.raises(InputError, match="already exists; nothing was overwritten"):
        new_folder(out, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_a_file_at_the_place_of_the_lock_stays(folder):
    (folder.path / ".lock").write_text("mine")
    with pytest.raises(InputError, match="is needed as a lock and is another file; move it away"), folder.lock():
        pytest.fail("it was taken for a lock")
    assert (folder.path / ".lock").read_text() == "mine"


WRONG_SCORES = [
    "", "{", "{}", "5", "null", "[5]", "[[]]", '[{"network": "convnet3"}]', '[{"accuracy": "high"}]',
    '[{"accuracy": [1, 2]}]', '[{"accuracy": true}]', '[{"accuracy": 1, "network": {}}]', "[" * 100_000, "\xff",
]  # fmt: skip


@pytest.mark.parametrize("content", WRONG_SCORES, ids=lambda content: content[:30])
def test_corrupted_scores_are_reported_with_the_remedy_which_replaces_them(content, tmp_path, caplog):
    folder = new_folder(tmp_path / "a run", CONFIG)
    (folder.path / "scores.json").write_text(content, encoding="latin-1")
    remedy = rf"evaluate the run again to replace it: iid evaluate '{folder.path}'$"
    with pytest.raises(InputError, match=rf"scores.json is corrupted \(.*\); {remedy}") as caught:
        runs_frame(tmp_path)
    one_line(caught)
    assert not folder.scored()
    score(folder, 50.0)
    assert runs_frame(tmp_path)["accuracy"].tolist() == [50.0] and folder.scored()
    assert (folder.path / "scores.json.corrupted").read_text(encoding="latin-1") == content
    (record,) = caplog.records
    assert "scores.json was corrupted; it is now scores.json.corrupted" in record.message
    score(folder, 60.0)
    assert sorted(path.name for path in folder.path.glob("scores*")) == ["scores.json", "scores.json.corrupted"]


def test_scores_of_a_folder_that_python_could_not_decode_are_written(folder):
    given = b"folder:\xc3\xbc".decode("ascii", "surrogateescape")
    folder.write_scores(pd.DataFrame({"dataset": pd.Series([given], dtype=object), "accuracy": [50.0]}))
    assert folder.scores() == [{"dataset": "folder:ü", "accuracy": 50.0}]


def test_an_accuracy_that_is_none_is_no_corruption(folder):
    folder.write_scores(pd.DataFrame({"accuracy": [float("nan"), 50.0]}))
    assert folder.scored() and [record["accuracy"] for record in folder.scores()] == [None, 50.0]


def test_a_settings_file_of_the_wrong_shape_is_one_line(folder):
    for text in ("[]", "5", "null", "match: 5", "match: {width: [1]}", "iterations: {}", "eval: {networks: 5}"):
        (folder.path / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=r"config\.yaml is corrupted: ") as caught:
            folder.config()
        one_line(caught)
    (folder.path / "config.yaml").unlink()
    (folder.path / "config.yaml").mkdir()
    with pytest.raises(InputError, match="no run to resume at") as caught:
        RunFolder.reopen(folder.path, CONFIG)
    one_line(caught)
