"""iidlib.experiments.sweep, iidlib.scale.sweep: grids are checked first; each point leaves notebook, error, scores."""

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from iidlib.errors import InputError
from iidlib.experiments import Sweep, check_parameters, expected, load_grid
from iidlib.experiments.expected import expected_seconds
from iidlib.locks import locked
from iidlib.scale import run_sweep, sweep, sweep_status
from tests.command_line import Run

PARAMETERS = "ipc = 1\nseeds = [0]\nname = 'a'\nout = 'nowhere'"


def notebook(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook with a parameters cell, unless that is None."""
    made = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    if parameters is not None:
        made.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    made.cells += [new_code_cell(text) for text in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


def grid(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump({"notebook": "n.ipynb", **content}, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a notebook n.ipynb in it."""
    notebook(tmp_path / "n.ipynb")
    return tmp_path


def test_product_is_every_combination(folder: Path) -> None:
    plan = load_grid(grid(folder / "g.yaml", product={"ipc": [1, 10], "seeds": [[0], [1, 2]]}, fixed={"name": "b"}))
    assert plan.notebook.resolve() == folder / "n.ipynb"
    assert plan.points == (
        {"name": "b", "ipc": 1, "seeds": [0]},
        {"name": "b", "ipc": 1, "seeds": [1, 2]},
        {"name": "b", "ipc": 10, "seeds": [0]},
        {"name": "b", "ipc": 10, "seeds": [1, 2]},
    )


def test_zip_walks_side_by_side(folder: Path) -> None:
    plan = load_grid(grid(folder / "g.yaml", zip={"ipc": [1, 10], "name": ["x", "y"]}))
    assert plan.points == ({"ipc": 1, "name": "x"}, {"ipc": 10, "name": "y"})


def test_notebook_is_relative_to_the_grid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    grid(folder / "g.yaml", product={"ipc": [1]})
    assert load_grid("../g.yaml").notebook.samefile(folder / "n.ipynb")
    absolute = grid(elsewhere / "g.yaml", notebook=str(folder / "n.ipynb"), product={"ipc": [1]})
    assert load_grid(absolute).notebook == folder / "n.ipynb"


PRODUCT = {"product": {"ipc": [1]}}

WRONG_GRIDS = {
    "no mapping": ([1, 2], "must be a mapping with a notebook"),
    "no notebook": (PRODUCT, "must be a mapping with a notebook"),
    "notebook no text": ({"notebook": 3} | PRODUCT, "must be a mapping with a notebook"),
    "notebook absent": ({"notebook": "m.ipynb"} | PRODUCT, "no notebook at"),
    "unknown key": ({"notebook": "n.ipynb", "produkt": {"ipc": [1]}}, "unknown key 'produkt'.*'product'"),
    "neither": ({"notebook": "n.ipynb"}, "needs product or zip"),
    "both give one": ({"notebook": "n.ipynb", "zip": {"ipc": [1]}} | PRODUCT, "gives 'ipc' twice"),
    "empty": ({"notebook": "n.ipynb", "product": {}}, "must map parameters to lists"),
    "list": ({"notebook": "n.ipynb", "product": [1]}, "must map parameters to lists"),
    "no list": ({"notebook": "n.ipynb", "product": {"ipc": 1}}, "must map parameters to lists"),
    "empty list": ({"notebook": "n.ipynb", "product": {"ipc": []}}, "must map parameters to lists"),
    "fixed list": ({"notebook": "n.ipynb", "fixed": [1]} | PRODUCT, "fixed in the grid .* must map"),
    "twice": ({"notebook": "n.ipynb", "fixed": {"ipc": 2}} | PRODUCT, "'ipc' both in fixed and in product or zip"),
    "lengths": ({"notebook": "n.ipynb", "zip": {"ipc": [1], "seeds": [0, 1]}}, r"one length, got \[1, 2\]"),
    "unknown": ({"notebook": "n.ipynb", "product": {"ipcs": [1]}}, "no parameter 'ipcs'; did you mean 'ipc'"),
    "unknown fixed": ({"notebook": "n.ipynb", "fixed": {"sceds": 0}} | PRODUCT, "no parameter 'sceds'.*'seeds'"),
    "number as name": ({"notebook": "n.ipynb", "product": {1: [1]}}, "no parameter 1"),
    "number beside name": ({"notebook": "n.ipynb", "product": {"ipc": [1]}, "fixed": {2: 1}}, "no parameter 2"),
    "our column": ({"notebook": "n.ipynb", "product": {"seconds": [1]}}, "'seconds' .* name of a column"),
}


@pytest.mark.parametrize("case", WRONG_GRIDS)
def test_wrong_grid_is_one_line(folder: Path, case: str) -> None:
    content, message = WRONG_GRIDS[case]
    (folder / "g.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message) as error:
        load_grid(folder / "g.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"a: [", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"", "must be a mapping")]
)
def test_corrupted_grid_is_one_line(folder: Path, content: bytes, message: str) -> None:
    (folder / "g.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_grid(folder / "g.yaml")
    assert "\n" not in str(error.value)


def test_grid_that_is_absent_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot read the grid"):
            load_grid(path)


def test_notebook_without_parameters_cell(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no parameter 'ipc'; it has no cell tagged parameters"):
        check_parameters(notebook(tmp_path / "n.ipynb", "1 + 1", parameters=None), {"ipc": 1})


def test_corrupted_notebook(tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text("{")
    with pytest.raises(InputError, match="not a notebook that papermill can read") as error:
        check_parameters(tmp_path / "n.ipynb", {})
    assert "\n" not in str(error.value)


def test_declared_parameters_and_defaults(folder: Path) -> None:
    declared = check_parameters(folder / "n.ipynb", {"ipc": 5})
    assert {name: value.strip() for name, value in declared.items()} == {
        "ipc": "1", "seeds": "[0]", "name": "'a'", "out": "'nowhere'",
    }  # fmt: skip


def test_a_value_of_another_type_is_found_at_any_point_and_a_number_for_a_list_is_taken(folder: Path) -> None:
    plan = load_grid(grid(folder / "g.yaml", product={"seeds": [0, [1, 2]]}))
    assert plan.points == ({"seeds": [0]}, {"seeds": [1, 2]})
    with pytest.raises(InputError, match="ipc must be a number, got 'three'"):
        load_grid(grid(folder / "g.yaml", product={"ipc": [1, 2, "three"]}))
    with pytest.raises(InputError, match="name must be text, got 3"):
        load_grid(grid(folder / "g.yaml", product={"ipc": [1]}, fixed={"name": 3}))


def test_nothing_starts_when_something_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "connected", lambda *given: pytest.fail("a point was started"))
    unknown = Sweep(folder / "n.ipynb", ({"ipc": 1}, {"ipcs": 2}))
    with pytest.raises(InputError, match="no parameter 'ipcs'"):
        run_sweep(unknown, folder / "out")
    with pytest.raises(InputError, match="seeds must be a list, got 'abc'"):
        run_sweep(Sweep(folder / "n.ipynb", ({"seeds": [1]}, {"seeds": "abc"})), folder / "out")
    good = Sweep(folder / "n.ipynb", ({"ipc": 1},))
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        run_sweep(good, folder / "out", workers=0)
    assert not (folder / "out").exists()
    with pytest.raises(InputError, match="already exists"):
        run_sweep(good, folder)
    with pytest.raises(InputError, match="is a file, not a folder"):
        run_sweep(good, folder / "n.ipynb")
    with pytest.raises(InputError, match="cannot write"):
        run_sweep(good, folder / "n.ipynb" / "below")


def test_a_second_sweep_in_a_folder_is_refused_and_a_folder_of_others_too(folder: Path) -> None:
    good, out = Sweep(folder / "n.ipynb", ({"ipc": 1},)), folder / "out"
    out.mkdir()
    (out / sweep.STATUS).write_text("{}")
    with locked(out / ".sweep.lock"), pytest.raises(InputError, match="out is in use by process"):
        run_sweep(good, out)
    with pytest.raises(InputError, match="is no sweep"):
        sweep_status(folder)


# What a sweep is expected to take


def rows_of_two_seeds(**changed: object) -> pd.DataFrame:
    """Rows of dm at scale laptop: 100 iterations of 0.5 s, and 30 s for each of two networks."""
    usual = {
        "scale": "laptop", "dataset": "cifar10", "ipc": 10, "method": "dm", "settings": "", "network": "convnet3",
        "iterations": 100, "seconds_per_iteration": 0.5, "seconds": 30.0,
    }  # fmt: skip
    return pd.DataFrame([usual | {"seed": seed} | changed for seed in (0, 0, 1, 1)])


def test_the_time_of_a_point_is_that_of_measured_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = "scale = 'tour'\ndataset = 'cifar10'\nmethods = ['dm']\nipc = 10\nseeds = [0]"
    chapter = notebook(folder / "c.ipynb", parameters=parameters)
    rows = pd.concat([rows_of_two_seeds(), rows_of_two_seeds(method="random", seconds=10.0)])
    monkeypatch.setattr(expected, "all_rows", lambda folder: rows)
    seconds = partial(expected_seconds, chapter, folder=folder)
    assert seconds({"scale": "laptop"}) == 100 * 0.5 + 2 * 30
    assert seconds({"scale": "laptop", "seeds": [0, 1, 2]}) == 3 * 110
    assert seconds({"scale": "laptop", "methods": ["dm", "random"]}) == 110 + 20
    assert math.isnan(seconds({"scale": "tour"})), "nothing was measured at that scale"
    assert math.isnan(seconds({"scale": "laptop", "ipc": 50}))


def test_the_time_of_a_chapter_is_its_own_with_other_seeds_only(folder: Path) -> None:
    chapter = notebook(folder / "09_x.ipynb", parameters="scale = 'tour'\nseed = 0")
    (folder / "chapters.csv").write_text("chapter,minutes\n09_x,2.5\n")
    assert expected_seconds(chapter, {"seed": 3}, folder) == 150
    assert expected_seconds(chapter, {"scale": "tour"}, folder) == 150
    assert math.isnan(expected_seconds(chapter, {"scale": "laptop"}, folder))


def test_a_dry_run_lists_points_and_their_time_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, iid: Run
) -> None:
    monkeypatch.chdir(folder)
    grid(folder / "g.yaml", product={"ipc": [1, 2]})
    times = iter([60.0, math.nan])
    monkeypatch.setattr(expected, "expected_seconds", lambda *given: next(times))
    status, out, _ = iid("sweep", "g.yaml", "--workers", "2", "--dry-run")
    assert status == 0 and [line.split()[1] for line in out.splitlines()[:2]] == ["ipc=1", "ipc=2"]
    assert "1 point: 1.0 min by measured rows, 0.5 min with 2 at a time" in out
    assert "1 point: nothing was measured at this scale" in out
    assert not (folder / "runs").exists()


# Two at a time, so that the first two find each other; the third fails, the fourth leaves something else than a table.
POINT = """
import os, pathlib, time
folder = pathlib.Path(out)
assert os.environ['JUPYTER_PREFER_ENV_PATH'] == '1'
cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
assert os.environ['OMP_NUM_THREADS'] == str(max(1, cores // 2))
assert folder.is_dir() and isinstance(ipc, int) and isinstance(seeds, list)
(folder / 'here').touch()
if ipc < 3:
    other = folder.parent / f'point-{2 - ipc:03d}' / 'here'
    until = time.time() + 120
    while not other.exists() and time.time() < until:
        time.sleep(0.01)
    assert other.exists(), 'the other point does not run at the same time'
if ipc == 3:
    raise ValueError(f'no luck with {name}')
if ipc == 4:
    (folder / 'scores.csv').write_bytes(b'a,b\\n1,2,3\\n4\\xff')
else:
    lines = ['network,accuracy,commit,ipc,seconds'] + [f'convnet3,{20.125 + n},0123,99,7' for n in range(ipc)]
    (folder / 'scores.csv').write_text('\\n'.join(lines))
"""


@pytest.mark.notebook
def test_points_run_in_parallel_and_each_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    source = notebook(tmp_path / "bö[ok]" / "n.ipynb", POINT)
    before = source.read_bytes()
    points = tuple({"name": "ä'[b]", "ipc": ipc, "seeds": [ipc, 0]} for ipc in (1, 2, 3, 4))
    out = tmp_path / "swëep[1]"
    rows = run_sweep(Sweep(source, points), out, workers=2, summary=False)

    assert list(rows["status"]) == ["done", "done", "failed", "failed"]
    assert list(rows["point"]) == [0, 1, 2, 3]
    assert list(rows["error"][:2]) == ["", ""]
    assert rows["error"][2] == "ValueError: no luck with ä'[b]"
    assert rows["error"][3].startswith("scores.csv cannot be read") and "\n" not in rows["error"][3]
    assert (rows["seconds"] > 0).all()

    assert source.read_bytes() == before, "the chapter itself is only read"
    for number, name in enumerate(rows["notebook"]):
        executed = nbformat.read(out / name, as_version=4)
        tagged = [cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1 and f"ipc = {number + 1}" in tagged[0].source
    failed = nbformat.read(out / rows["notebook"][2], as_version=4)
    assert "no luck" in str([output for cell in failed.cells for output in cell.get("outputs", [])])

    table = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    assert list(table["point"]) == ["0", "1", "1", "2", "3"], "one line a score, one for a point without"
    assert list(table["accuracy"]) == ["20.125", "20.125", "21.125", "", ""]
    assert list(table["commit"][:3]) == ["0123"] * 3, "text stays text"
    assert list(table["ipc"]) == ["1", "2", "2", "3", "4"], "the parameter, not the column of the scores"
    assert [yaml.safe_load(text) for text in table["seeds"]] == [[1, 0], [2, 0], [2, 0], [3, 0], [4, 0]]
    assert set(table["name"]) == {"ä'[b]"}
    own = ["status", "error", "seconds", "worker", "notebook"]
    assert list(table.columns[:9]) == ["point", "name", "ipc", "seeds", *own]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to other processes")
@pytest.mark.notebook
def test_ctrl_c_ends_what_runs_and_keeps_what_is_done(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time\n(pathlib.Path(out) / 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(0 if ipc == 0 else 600)"
    )
    notebook(tmp_path / "n.ipynb", code)
    path = grid(tmp_path / "g.yaml", product={"ipc": [0, 1, 2]})
    command = [sys.executable, "-m", "iidlib.cli", "sweep", str(path), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    kernel = tmp_path / "out" / "point-001" / "pid"
    try:
        wait_for(lambda: kernel.is_file() and kernel.read_text() != "", process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers receive it, too
        said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said[1].splitlines()[0].startswith("dashboard: http://127.0.0.1:")
    assert said[1].splitlines()[-1] == f"stopped; 1 of 3 points are finished, kept in {tmp_path / 'out'}"
    assert "Traceback" not in said[1]
    assert list(pd.read_csv(tmp_path / "out" / "sweep.csv")["ipc"]) == [0]
    assert not (tmp_path / "out" / "point-002").exists()
    pid = int(kernel.read_text())
    wait_for(lambda: not running(pid))


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


# Twelve points on two workers: one point fails, and the worker of another is killed the first time

COUNTED = """
import os, pathlib, signal, time
folder = pathlib.Path(out)
with (folder / 'begun').open('a') as file:
    file.write('x')
if ipc == 3:
    raise ValueError('no luck')
if ipc == 5 and (folder / 'begun').read_text() == 'x':
    worker = int(pathlib.Path(f'/proc/{os.getppid()}/stat').read_text().rsplit(')', 1)[1].split()[1])
    os.kill(worker, signal.SIGKILL)
    time.sleep(600)
(folder / 'scores.csv').write_text(f'network,accuracy\\nconvnet3,{ipc}')
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker below /proc")
@pytest.mark.notebook
def test_a_point_that_fails_and_a_worker_that_is_killed_cost_nothing_else(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", COUNTED)
    points = tuple({"ipc": ipc} for ipc in range(12))
    out = tmp_path / "out"
    rows = run_sweep(Sweep(source, points), out, workers=2, summary=False)
    assert list(rows["status"]) == ["failed" if ipc == 3 else "done" for ipc in range(12)]
    assert rows["error"][3] == "ValueError: no luck"
    begun = [(out / f"point-{number:03d}" / "begun").read_text() for number in range(12)]
    assert begun[5] == "xx" and set(begun[:5] + begun[6:]) == {"x"}

    again = run_sweep(Sweep(source, points), out, workers=2)
    begun = [len((out / f"point-{number:03d}" / "begun").read_text()) for number in range(12)]
    assert begun == [1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1], "only the failed point was executed again"
    assert again["status"].equals(rows["status"])
    table = pd.read_csv(out / "sweep.csv")
    assert sorted(table["accuracy"].dropna()) == [ipc for ipc in range(12) if ipc != 3]
    assert (out / "summary.ipynb").is_file() and (out / "point-000" / "n.html").is_file()


@pytest.mark.notebook
def test_a_changed_notebook_is_executed_again_and_what_it_replaces_is_kept(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", "import pathlib; (pathlib.Path(out) / 'one').touch()")
    out = tmp_path / "out"
    run_sweep(Sweep(source, ({"ipc": 1},)), out, summary=False)
    notebook(tmp_path / "n.ipynb", "import pathlib; (pathlib.Path(out) / 'two').touch()")
    run_sweep(Sweep(source, ({"ipc": 1},)), out, summary=False)
    assert (out / "point-000" / "two").exists() and not (out / "point-000" / "one").exists()
    assert (out / "replaced" / "point-000-1" / "one").exists()


@pytest.mark.notebook
def test_a_point_that_takes_too_long_is_stopped_and_tried_no_more(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", "import time; time.sleep(600)")
    rows = run_sweep(Sweep(source, ({"ipc": 1},)), tmp_path / "out", timeout=10, retries=3, summary=False)
    assert list(rows["error"]) == ["stopped after 10 seconds (--timeout)"]


@pytest.mark.notebook
def test_a_failing_point_is_tried_again(tmp_path: Path) -> None:
    code = "import pathlib\nfile = pathlib.Path(out) / 'tries'\ntries = len(file.read_text()) if file.exists() else 0\n"
    code += "file.write_text('x' * (tries + 1))\nassert tries >= ipc"
    source = notebook(tmp_path / "n.ipynb", code)
    rows = run_sweep(Sweep(source, ({"ipc": 1}, {"ipc": 3})), tmp_path / "out", workers=2, retries=1, summary=False)
    assert list(rows["status"]) == ["done", "failed"]
    assert [(tmp_path / "out" / f"point-{n:03d}" / "tries").read_text() for n in (0, 1)] == ["xx", "xx"]
