"""The chapters run, at the scale `ci`, and say what they show.

The committed outputs come from the scale `tour`, which takes minutes. Here a copy of each chapter gets ``scale = "ci"``
through papermill, as a sweep would set it, keeps its committed outputs, and runs under nbval:

- A cell whose output depends on a training or on the scale is tagged ``nbval-ignore-output``; it must run, and a cell
  with assertions follows.
- Every other output, printed numbers and alt text included, must come out as committed. The examples that a chapter
  computes by hand have a size of their own, whatever the scale, so that they are compared.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import pandas as pd
import pytest
from contents import BOOK, chapters

from iidlib.errors import InputError
from iidlib.experiments import check_parameters
from iidlib.runs import RunFolder, runs_frame

IGNORED = "nbval-ignore-output"

# What trains, directly; a function of the chapter that calls one of these trains too.
TRAINING = {"distill", "evaluate", "learn_in_steps", "progress", "trained_pool"}

MEASURING = {"07_results", "13_batch_runs", "14_speed"}
"""Chapters that take times, read what was measured or execute others: they train nothing and choose no dataset."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(BOOK / f"{name}.ipynb", as_version=4)


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def lines(cell: nbformat.NotebookNode) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def prose(name: str) -> str:
    return "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")


def called(tree: ast.AST) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def training_cells(cells: list[nbformat.NotebookNode]) -> list[int]:
    """Indices of the cells that train, by what they call; defining a function that trains is not training."""
    names, found = set(TRAINING), []
    for number, cell in enumerate(cells):
        body = ast.parse(cell.source).body
        names |= {node.name for node in body if isinstance(node, ast.FunctionDef) and called(node) & names}
        if any(called(node) & names for node in body if not isinstance(node, ast.FunctionDef)):
            found.append(number)
    return found


def asserts(cell: nbformat.NotebookNode) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


def run_nbval(path: Path) -> subprocess.CompletedProcess[str]:
    """Runs the cells of a notebook under nbval, comparing outputs; in a process of its own, without our settings."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(path.parent), "-c", os.devnull]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))}
    return subprocess.run(
        [*command, *options, str(path)], cwd=path.parent, env=environment, capture_output=True, text=True, timeout=900
    )


def run_papermill(source: Path, target: Path, parameters: dict[str, object], *options: str) -> None:
    import papermill

    papermill.execute_notebook(
        source, target, parameters=parameters, kernel_name="python3", progress_bar=False, **dict.fromkeys(options, True)
    )


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("name", chapters())
def test_chapter_runs_and_shows_what_was_committed(name: str, tmp_path: Path) -> None:
    chapter = tmp_path / f"{name}.ipynb"
    run_papermill(BOOK / chapter.name, chapter, {"scale": "ci"}, "prepare_only")
    outputs = [cell.outputs for cell in nbformat.read(chapter, as_version=4).cells if cell.cell_type == "code"]
    assert any(outputs), "papermill dropped the outputs, so nothing would be compared"
    done = run_nbval(chapter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(outputs)} passed" in done.stdout


@pytest.mark.notebook
def test_nbval_sees_a_changed_output_and_an_error(tmp_path: Path) -> None:
    """Cells whose stored output is 3: they give 2, then 3, and, where nothing is compared, 2 and an error."""
    stored = nbformat.v4.new_output("execute_result", {"text/plain": "3"}, execution_count=1)
    cells = [
        nbformat.v4.new_code_cell(source, outputs=[stored], execution_count=1, metadata={"tags": tagged})
        for source, tagged in (("1 + 1", []), ("1 + 2", []), ("1 + 1", [IGNORED]), ("1 / 0", [IGNORED]))
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": read(chapters()[0]).metadata.kernelspec})
    nbformat.write(notebook, tmp_path / "four.ipynb")
    done = run_nbval(tmp_path / "four.ipynb")
    assert done.returncode == 1 and "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"^FAILED .*Cell (\d)", done.stdout, re.MULTILINE) == ["0", "3"]


@pytest.mark.notebook
@pytest.mark.slow
def test_other_parameters_are_another_experiment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parameters = {"scale": "ci", "methods": ["dm", "dm-cm"], "ipc": 2, "seeds": [3, 4, 5], "out": str(out)}
    run_papermill(BOOK / "01_quickstart.ipynb", tmp_path / "first.ipynb", parameters)
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["label"]) == {"random", "dm", "dm-cm"}
    assert set(scores["seed"]) == {3, 4, 5} and set(scores["ipc"]) == {2}
    assert len(scores) == 3 * 3 * 2  # labels, seeds, networks
    summary = (out / "summary.txt").read_text()
    assert "dm over random" in summary and "dm-cm over dm" in summary and "over 3 seeds" in summary
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == sorted(f"{method}-seed{seed}" for method in ("dm", "dm-cm") for seed in (3, 4, 5))
    assert all(RunFolder(out / name).finished for name in folders)
    assert len(runs_frame(out)) == 2 * 3 * 2

    # the same folder once more: finished runs are taken as they are
    before = {path: path.stat().st_mtime_ns for path in out.rglob("synthetic.safetensors")}
    rows = {path: path.read_text() for path in out.rglob("metrics.jsonl")}
    run_papermill(BOOK / "01_quickstart.ipynb", tmp_path / "second.ipynb", parameters)
    assert before.keys() == {path for path in out.rglob("synthetic.safetensors")}
    assert rows == {path: path.read_text() for path in rows}
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "scores.csv").drop(columns="seconds"), scores.drop(columns="seconds")
    )


@pytest.mark.notebook
@pytest.mark.parametrize("name", chapters())
def test_an_unknown_parameter_is_rejected(name: str) -> None:
    declared = check_parameters(BOOK / f"{name}.ipynb", {"scale": "ci"})
    chosen = {"folder" if name == "12_your_own_images" else "dataset", "ipc"}
    assert {"scale"} | (set() if name in MEASURING else chosen) <= set(declared)
    with pytest.raises(InputError, match="scael"):
        check_parameters(BOOK / f"{name}.ipynb", {"scael": "ci"})


# How a chapter is written; these only read the files.


@pytest.mark.parametrize("name", chapters())
def test_a_cell_that_trains_is_followed_by_one_that_asserts(name: str) -> None:
    cells = code_cells(name)
    found = training_cells(cells)
    assert bool(found) != (name in MEASURING), f"{name} trains nothing, or is no longer a chapter that only measures"
    for number in found:
        if cells[number].outputs:
            assert IGNORED in tags(cells[number]), f"cell {number} of {name} trains and shows: tag it {IGNORED}"
        assert asserts(cells[number]) or asserts(cells[number + 1]), f"no cell with assertions follows cell {number}"


def test_training_is_recognised() -> None:
    sources = ["x = distill(c)", "def f():\n    return evaluate(s)", "f()", "[f() for _ in x]", "print(1)"]
    assert training_cells([nbformat.v4.new_code_cell(source) for source in sources]) == [0, 2, 3]


@pytest.mark.parametrize("name", chapters())
def test_some_outputs_are_compared(name: str) -> None:
    compared = [cell for cell in code_cells(name) if cell.outputs and IGNORED not in tags(cell)]
    assert len(compared) >= 2, f"only {len(compared)} outputs of {name} are compared with what was committed"


@pytest.mark.parametrize("name", chapters())
def test_a_chapter_has_the_size_of_a_chapter(name: str) -> None:
    cells = code_cells(name)
    sizes = [len(lines(cell)) for cell in cells]
    assert 12 <= len(cells) <= 22, f"{len(cells)} code cells"
    assert sum(sizes) <= 120, f"{sum(sizes)} lines of code"
    assert median(sizes) <= 5 and max(sizes) <= 20, sizes
    assert sum(line.lstrip().startswith("def ") for cell in cells for line in lines(cell)) <= 3
    words = len(prose(name).split())
    assert 1200 <= words <= 2500, f"{words} words"
    wide = [line for cell in cells for line in lines(cell) if len(line) > 85]
    assert not wide, f"code that the page would cut off: {wide}"


@pytest.mark.parametrize("name", chapters())
def test_a_chapter_opens_and_closes_like_the_others(name: str) -> None:
    first, text = read(name).cells[0], prose(name)
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for part in ("**What you will learn**", "| prerequisite |", "| scale | hardware | minutes |"):
        assert part in first.source, f"{name} opens without {part!r}"
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[-4:] == ["Exercises", "Summary", "What's next", "References"]
    assert len(re.findall(r"\{cite:[tp]\}", text)) >= 4


@pytest.mark.parametrize("name", chapters())
def test_exercises_have_folded_solutions(name: str) -> None:
    cells = read(name).cells
    asked = [i for i, cell in enumerate(cells) if "```{admonition} Exercise" in cell.source]
    assert 2 <= len(asked) <= 3
    for number, i in enumerate(asked, 1):
        assert f"```{{admonition}} Exercise {number}\n" in cells[i].source
        assert "hide-cell" in tags(cells[i + 1]), f"the solution of exercise {number} is not folded"


def measured_numbers(text: str) -> list[str]:
    """Numbers in prose that look like a measurement: a percentage, points, a decimal; mathematics and code left out."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`\n]*`|\{\w+:?\w*\}`[^`]*`", " ", text, flags=re.DOTALL)
    text = re.sub(r"\b95 % interval", " ", text)  # the level is chosen, not measured
    return re.findall(r"\d+(?:\.\d+)?\s*(?:%|percent|points?\b|seconds?\b)|\d+\.\d+", text)


@pytest.mark.parametrize("name", chapters())
def test_prose_leaves_measured_numbers_to_the_cells(name: str) -> None:
    assert not measured_numbers(prose(name)), "numbers that a run gives belong in its output, which changes with it"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it gains 9.2 points", 1),
        ("37 % of them", 1),
        ("about 40 percent", 1),
        ("weight 0.01", 1),
        ("the weight `0.01` and $n = 0.5$", 0),
        ("ten of 4,000 images at 16 positions, 2048 numbers", 0),
        ("a paired 95 % interval", 0),
    ],
)
def test_measured_numbers_are_recognised(text: str, found: int) -> None:
    assert len(measured_numbers(text)) == found


@pytest.mark.parametrize("name", chapters())
def test_parameters_keep_the_committed_defaults_small(name: str) -> None:
    (cell,) = (cell for cell in code_cells(name) if "parameters" in tags(cell))
    values: dict[str, object] = {}
    exec(cell.source, values)
    assert values["scale"] == "tour" and values.get("dataset", "cifar10-mini") == "cifar10-mini"
    assert not values.get("out"), "a chapter that is only read leaves nothing behind"
