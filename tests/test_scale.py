"""iidlib.scale on clusters that others have started: another folder and cache, queues, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from iidlib.errors import InputError
from iidlib.experiments import read_results
from iidlib.scale import Ended, Task, Workers, batch, connected, job_script, run_batch
from iidlib.scale import cluster as cluster_module
from iidlib.scale.cluster import SLOT
from iidlib.scale.task import perform, place_for
from iidlib.synthetic import SyntheticSet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the schedulers of clusters run on POSIX")

ROOT = Path(__file__).parents[1]

HIDE = """
import pathlib
if not hasattr(pathlib, "real"):  # dask may execute this twice
    pathlib.real = pathlib.Path.is_file
    pathlib.Path.is_file = lambda self: not str(self).startswith({hidden!r}) and pathlib.real(self)
"""
"""Preloaded by workers, to which the user's folder is then not there, as on another machine."""

SMALL = ("--scale", "ci", "--device", "cpu", "--quiet")


class Cluster(NamedTuple):
    """A scheduler that was started by hand, with two workers in another folder."""

    file: Path
    address: str
    away: Path
    scheduler: "subprocess.Popen[bytes]"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, user: Path) -> Iterator[Cluster]:
    away = tmp_path_factory.mktemp("away")
    file = away / "scheduler.json"
    (away / "hide.py").write_text(HIDE.format(hidden=str(user)))
    environment = os.environ | {"IID_CACHE": str(away / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = ["--scheduler-file", str(file)]
    words = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *options]]
    words += [["worker", *options, "--nthreads", "1", "--no-dashboard", "--preload", str(away / "hide.py")]] * 2
    with (away / "log").open("wb") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *one], cwd=away, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )
            for one in words
        ]  # fmt: skip
    try:
        wait_for(lambda: file.is_file() and bool(file.read_text()), seconds=120)
        yield Cluster(file, json.loads(file.read_text())["address"], away, started[0])
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def iid(*arguments: str, cwd: Path, status: int = 0, path: str = "") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {}
    words = [sys.executable, "-m", "iidlib.cli", *arguments]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def write_notebook(path: Path, code: str) -> None:
    cells = [new_code_cell("out = None\nipc = 1", metadata={"tags": ["parameters"]}), new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


WHERE = """
import os
from pathlib import Path
(Path(out) / 'checkpoints').mkdir()
(Path(out) / 'checkpoints' / 'state').write_text('not sent back')
(Path(out) / 'run').mkdir()
(Path(out) / 'run' / 'synthetic.safetensors').write_bytes(bytes(3))
(Path(out) / 'scores.csv').write_text(f'accuracy,cwd,cache\\n{ipc},{os.getcwd()},{os.environ["IID_CACHE"]}\\n')
"""


@pytest.mark.notebook
def test_points_travel_to_workers_without_a_common_folder_and_their_files_come_back(
    cluster: Cluster, user: Path
) -> None:
    write_notebook(user / "n.ipynb", WHERE)
    (user / "grid.yaml").write_text("notebook: n.ipynb\nproduct:\n  ipc: {from: 1, to: 3, step: 1}\n")
    said = iid("sweep", "grid.yaml", "--scheduler", cluster.address, "--out", "sweep", cwd=user)
    assert "3 of 3 points done" in said.stdout
    table = pd.read_csv(user / "sweep" / "sweep.csv")
    assert list(table["accuracy"]) == [1, 2, 3]
    assert set(table["cache"]) == {str(cluster.away / "cache")}
    assert not any(Path(place).is_relative_to(user) for place in table["cwd"])
    assert not any(Path(place).exists() for place in table["cwd"]), "the worker has tidied up"
    for number in range(3):
        point = user / "sweep" / f"point-{number:03d}"
        assert (point / "run" / "synthetic.safetensors").read_bytes() == bytes(3)
        assert sorted(path.name for path in point.iterdir()) == [
            "n.html", "n.ipynb", "output.log", "parameters.yaml", "point.json", "run", "scores.csv",
        ]  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(user / "sweep" / "sweep.parquet")[["ipc"]], table[["ipc"]])
    summary = nbformat.read(user / "sweep" / "summary.ipynb", as_version=4)
    assert any("image/png" in out.get("data", {}) for cell in summary.cells for out in cell.get("outputs", []))
    assert "none" in str(summary.cells[-1].outputs)
    assert "3 of 3 points done, 0 failed (ended)" in iid("sweep", "sweep", "--status", cwd=user).stdout
    again = iid("sweep", "grid.yaml", "--scheduler", "tcp://127.0.0.1:1", "--out", "sweep", cwd=user)
    assert "3 of 3 points done" in again.stdout, "nothing is to be done, so no scheduler is asked"


BREAKS = """
import os
from pathlib import Path
kept = Path(out) / 'run' / 'checkpoints' / 'state'
assert os.environ['IID_CACHE']
if not kept.exists():
    kept.parent.mkdir(parents=True)
    kept.write_text('half')
    raise ValueError('stopped half way')
(Path(out) / 'scores.csv').write_text('accuracy\\n' + str(len(kept.read_text())))
"""


@pytest.mark.notebook
def test_what_a_point_has_left_travels_to_the_worker_that_continues_it(cluster: Cluster, user: Path) -> None:
    """Its checkpoints came back with the failure; the next worker has neither the folder nor the first one's."""
    write_notebook(user / "half.ipynb", BREAKS)
    (user / "half.yaml").write_text("notebook: half.ipynb\nproduct:\n  ipc: [1]\n")
    words = ["sweep", "half.yaml", "--scheduler", cluster.address, "--out", "half"]
    assert "ValueError: stopped half way" in iid(*words, cwd=user, status=1).stderr
    assert (user / "half" / "point-000" / "run" / "checkpoints" / "state").read_text() == "half"
    assert "1 of 1 points done" in iid(*words, cwd=user).stdout
    assert list(pd.read_csv(user / "half" / "sweep.csv")["accuracy"]) == [4]
    assert not [*(user / "half").glob(".iidlib*")]


def test_a_file_that_is_too_large_stays_and_the_user_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iidlib.scale.task.MOST_BYTES", 10)
    code = "open('large', 'w').write(11 * 'x'); open('small', 'w').write(10 * 'x'); open('empty', 'w')"
    ended = perform(Task("one", (("writes",),), tmp_path / "elsewhere", "token", {"writes.py": code.encode()}), 1)
    assert ended.error == "" and {*ended.files} == {"empty", "output.log", "small"}
    assert ended.too_large == ("large", "writes.py")


def test_cells_of_the_paper_run_on_a_cluster(cluster: Cluster, user: Path) -> None:
    """Workers share nothing with the user: rows, runs and logs come back, and the same command finds nothing to do."""
    words = ["reproduce", "ablation", "--scale", "ci", "--seeds", "1", "--only", "cifar10/ipc10/dm", "--device", "cpu"]
    words += ["--results", "results", "--runs", "runs", "--scheduler-file", str(cluster.file)]
    said = iid(*words, cwd=user).stdout
    count = int(said.split(" runs to do")[0].split()[-1])
    assert count >= 1 and f"{count} of {count} runs done" in said
    rows = pd.concat([read_results(path) for path in (user / "results").glob("*.csv")])
    assert len(rows) and set(rows["scale"]) == {"ci"}
    runs = [path.parent for path in (user / "runs").glob("*/config.yaml")]
    assert len(runs) == count and all(SyntheticSet.load(run).ipc == 10 for run in runs)
    assert len([*(user / "runs" / "logs").iterdir()]) == count
    assert "0 runs to do" in iid(*words, cwd=user).stdout
    assert not [*user.glob(".iidlib-task-*")]


def test_a_run_that_was_begun_since_it_was_planned_is_resumed(tmp_path: Path) -> None:
    """By a task that shares its folder, or in a try that was killed; the words of both were planned before."""
    words = ("iidlib.cli", "distill", "dm", "--out", "run", *SMALL, "--no-evaluate", "--no-baseline", "--ipc", "1")
    short = (*words, "--iterations", "2", "--set", "checkpoint.every=1")
    (tmp_path / "token").touch()
    for _ in range(2):
        ended = perform(Task("one", (short,), tmp_path, "token", run="run"), 1)
        assert ended.error == ""
    assert "already exists" in perform(Task("other", (short,), tmp_path, "token"), 1).error


def test_files_that_have_not_changed_are_not_sent_back_and_those_of_a_failed_task_are(tmp_path: Path) -> None:
    code = "import pathlib; pathlib.Path('checkpoints').mkdir(); pathlib.Path('checkpoints/1').touch(); assert False"
    (tmp_path / "fails.py").write_text(code)
    inputs = {"fails.py": code.encode(), "old": b"1"}
    ended = perform(Task("one", (("fails",),), tmp_path / "elsewhere", "token", inputs), 1)
    assert {*ended.files} == {"checkpoints/1", "output.log"} and ended.error == "AssertionError"


def test_a_worker_cannot_write_outside_the_folder(tmp_path: Path) -> None:
    assert place_for("a/b", tmp_path) == tmp_path / "a" / "b"
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(InputError, match="a file outside"):
            place_for(name, tmp_path)


def test_several_sets_are_evaluated_on_a_cluster(cluster: Cluster, user: Path) -> None:
    words = ["evaluate", "random", "herding", *SMALL, "--ipc", "1", "--num-eval", "1", "--epochs", "2"]
    done = iid(*words, "--results", "scores.csv", "--scheduler", cluster.address, cwd=user)
    rows = read_results(user / "scores.csv")
    assert list(rows["method"]) == ["random", "herding"] or list(rows["method"]) == ["herding", "random"]
    assert done.stdout.count("convnet3") == 2
    alone = iid(*words[:2], *words[3:], "--results", "alone.csv", cwd=user)
    assert alone.returncode == 0
    same = read_results(user / "alone.csv").set_index("method").loc["random", "accuracy"]
    assert rows.set_index("method").loc["random", "accuracy"] == same
    assert not [*user.glob(".iidlib-evaluate-*")]


def test_a_path_that_a_worker_does_not_have_is_refused(cluster: Cluster, user: Path) -> None:
    words = ["evaluate", "random", "herding", *SMALL, "--data-root", str(user), "--scheduler", cluster.address]
    assert "does not share this folder" in iid(*words, cwd=user, status=2).stderr


def test_who_waits_for_a_worker_hears_of_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(batch, "_WITHOUT", 0.5)
    where = Workers(scheduler=cluster.address, gpus=1)
    with connected(where) as client:
        task = Task("one", (("this",),), tmp_path, "token")
        left = run_batch(client, [task], needs=where.needs, until=time.monotonic() + 3, on_end=lambda task, end: None)
    assert (left.finished, left.failed, left.workers) == ({}, {}, 0)
    assert [record.message for record in caplog.records] == [
        "waiting for a worker that offers GPU=1; 2 others are there"
    ]


@pytest.mark.notebook
def test_a_scheduler_that_goes_keeps_what_is_finished(cluster: Cluster, user: Path) -> None:
    """The last of those with this scheduler. The same command, elsewhere, executes only what is missing."""
    write_notebook(user / "slow.ipynb", "import time\ntime.sleep(600 if ipc == 2 else 0)")
    (user / "slow.yaml").write_text("notebook: slow.ipynb\nproduct:\n  ipc: [1, 2]\n")
    words = ["sweep", "slow.yaml", "--scheduler", cluster.address, "--out", "slow"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "iidlib.cli", *words], cwd=user, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        table = user / "slow" / "sweep.csv"
        wait_for(lambda: table.is_file() and "done" in table.read_text())
        assert "1 of 2 points done, 0 failed" in iid("sweep", "slow", "--status", cwd=user).stdout
        assert "slow is in use" in iid(*words, cwd=user, status=2).stderr
        os.killpg(cluster.scheduler.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in said
    assert "iid: failed: the scheduler has gone; finished points are kept in slow" in said
    assert said.splitlines()[-1] == "repeat the command to continue"
    again = iid("sweep", "slow.yaml", "--out", "slow", "--timeout", "8s", "--workers", "1", cwd=user, status=1)
    assert "1 of 2 points done" in again.stdout and "stopped after 8 seconds" in again.stderr


# Where workers come from


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "workers must be at least 1"),
        ({"scheduler": "tcp://x:1", "cluster": Path("c")}, "give only one of --scheduler and --cluster"),
        ({"gpus": 1}, "start a scheduler, and a worker for each GPU"),
        ({"gpus": -1}, "gpus must be 0 or more"),
    ],
)
def test_wrong_places_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workers(**options)  # type: ignore[arg-type]
    assert Workers(2).needs == {SLOT: 1} and Workers(scheduler="x", gpus=2).needs == {SLOT: 1, "GPU": 2}


def test_a_task_has_as_many_threads_as_its_worker_and_workers_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask sets ``OMP_NUM_THREADS`` to 1 in every worker, also in one of many threads."""
    (tmp_path / "token").touch()
    (tmp_path / "says.py").write_text(
        "import os\nassert 0, (os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    for given, count, expected in ((None, 1, 6), (None, 4, 1), ("3", 1, 3), ("2,1", 1, 2), ("x", 2, 3)):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert cluster_module._threads(count) == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    ended: list[str] = []
    with connected(Workers(1)) as client:
        task = Task("one", (("says",),), tmp_path, "token")
        run_batch(client, [task], needs=Workers(1).needs, on_end=lambda task, end: ended.append(end.error))
        assert [*client.nthreads().values()] == [3]
    assert ended == ["AssertionError: ('3', '3')"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue: slrum\n", "must name its queue, one of htcondor, lsf, oar, pbs, sge, slurm, got 'slrum'.*slurm"),
        ("- 1\n", "must name its queue"),
        ("queue: slurm\nmemory: 1GiB\n", "cores"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_wrong_file_of_a_cluster_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message), connected(Workers(cluster=tmp_path / "c.yaml")):
        pass
    with pytest.raises(InputError, match="cannot read"):
        job_script(tmp_path / "gone.yaml")


def test_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iidlib.scale.cluster._WAIT", 2.0)
    for where in (Workers(scheduler="tcp://127.0.0.1:1"), Workers(scheduler_file=tmp_path / "gone.json")):
        with pytest.raises(InputError, match=r"no scheduler answers at .*(127.0.0.1:1|gone.json)"), connected(where):
            pass


def test_the_example_of_a_cluster_asks_slurm_for_what_it_says() -> None:
    script = job_script(ROOT / "data" / "clusters" / "slurm.yaml").splitlines()
    for line in ("#SBATCH --cpus-per-task=8", "#SBATCH --mem=32G", "#SBATCH -t 08:00:00", "#SBATCH --gres=gpu:1"):
        assert line in script
    assert "source .venv/bin/activate" in script
    started = script[-1]
    assert "dask worker" in started or "dask_worker" in started
    assert "--resources GPU=1" in started and "--nthreads 8" in started and "--nworkers" not in started


SBATCH = """#!/bin/sh
cp "$1" "$0.$$"
setsid sh "$0.$$" >>"$0.log" 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.mark.notebook
def test_jobs_of_a_queue_execute_points(user: Path) -> None:
    """A queue that executes each job at once, here."""
    tools = user / "tools"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill -KILL -- "-$1"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (user / "queue.yaml").write_text(
        "queue: slurm\ncores: 1\nmemory: 1GiB\nworker_extra_args: ['--resources', 'GPU=1']\ninterface: lo\n"
    )
    write_notebook(user / "short.ipynb", "assert ipc")
    (user / "short.yaml").write_text("notebook: short.ipynb\nproduct:\n  ipc: [1]\n")
    words = ["sweep", "short.yaml", "--cluster", "queue.yaml", "--gpus", "1", "--out", "queued"]
    planned = iid(*words, "--dry-run", cwd=user, path=str(tools)).stdout
    assert "#SBATCH --cpus-per-task=1" in planned and not (user / "queued").exists()
    assert "1 of 1 points done" in iid(*words, cwd=user, path=str(tools)).stdout


def test_a_task_that_cannot_start_says_why(tmp_path: Path) -> None:
    ended = perform(Task("one", (("no.such.module",), ("never",)), tmp_path, "token"), 1)
    assert (isinstance(ended, Ended) and "no.such.module" in ended.error) or "No module named" in ended.error
    assert not ended.stopped and not ended.timed_out
