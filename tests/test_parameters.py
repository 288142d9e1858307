"""iidlib.experiments.parameters: what a notebook can be given, read with Python's parser and checked before it runs."""

import ast
import logging
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from iidlib.errors import InputError
from iidlib.experiments import check_parameters, take_parameters
from iidlib.experiments.parameters import CHOICES, KINDS, fitting_parameters

BOOK = Path(__file__).parents[1] / "book"
CELL = 'scale = "tour"\nipc = 10\nseeds = [0]'
CALL = 'import math\ntake_parameters(globals(), "scale ipc seeds")'
NAMES = "scale ipc seeds"


def notebook(path: Path, *cells: str) -> Path:
    """A notebook whose first cell is tagged parameters."""
    made = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    made.cells = [new_code_cell(text) for text in cells]
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


def executed(*cells: str) -> dict[str, Any]:
    """The variables of a kernel in which these cells were executed, with IPython's history of them."""
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(cell, namespace)
    return namespace | {"In": ["", *cells, CALL]}


def injected(text: str) -> str:
    """The cell that papermill puts behind the parameters."""
    return f"# Parameters\n{text}\n"


# in a chapter


def test_what_fits_is_left_alone_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    found = executed(CELL, injected('scale = "ci"\nipc = 3\nseeds = [0, 1]'))
    take_parameters(found, NAMES)
    assert (found["scale"], found["ipc"], found["seeds"]) == ("ci", 3, [0, 1])
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("seeds", "[0,1]", [0, 1]),  # -p seeds "[0,1]"
        ("seeds", "0, 1", [0, 1]),
        ("seeds", " [3] ", [3]),
        ("seeds", 0, [0]),  # -p seeds 0
        ("seeds", (0, 1), [0, 1]),
        ("seeds", [0.0, 1], [0, 1]),
        ("ipc", "3", 3),
        ("ipc", 3.0, 3),
        ("share", "0.5", 0.5),
        ("share", 1, 1),
        ("shares", "[0, 1]", [0, 1]),
        ("eval_networks", "convnet3, mlp", "convnet3,mlp"),
        ("eval_networks", ["convnet3", "mlp"], "convnet3,mlp"),
    ],
)
def test_what_only_looks_different_is_taken_as_it_is_meant(
    name: str, given: Any, taken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = {name: given}
    take_parameters(found, name)
    assert found == {name: taken} and type(found[name]) is type(taken)
    if given != taken:
        assert f"{name} = {given!r} is taken as {taken!r}" in caplog.text


WRONG = {
    "ipc": ["three", 0, -1, 1.5, True, None, [10], "1e400", float("nan"), float("inf"), "__import__('os')"],
    "seeds": ["abc", [], [0, 0], [-1], ["a"], None, True, [True], {}, [[0]], "[0", "[" * 5000],
    "seed": ["abc", -1, 0.5, [0]],
    "share": ["half", 0, -0.5, float("nan"), float("inf"), True],
    "shares": [0.5, [0, 0.5], [0, 2], "abc", []],
    "steps": [1, 0, "abc", [4, 3, 3]],
    "eval_networks": ["mlp", "", "convnet3,", "convnet3,convnet3", 3, []],
    "scale": ["Tour", "", 3, None, ["tour"]],
    "only": ["cifar11", "cifar10-mini", 10],
    "method": ["iid", "IID-DM", None],
    "folder": [2024, None, ["a"], True],
    "dataset": [10, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_does_not_fit_is_one_line_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name) as error:
        take_parameters({name: value}, name)
    assert "\n" not in str(error.value)


def test_messages_say_what_to_do() -> None:
    for given, words in (
        ({"scale": "Tour"}, "unknown scale 'Tour'; did you mean 'tour'?"),
        ({"ipc": "three"}, "ipc must be a whole number of 1 or more, got 'three'"),
        ({"seeds": "abc"}, r"such as \[0, 1, 2\], got 'abc'; papermill takes a list as in -y 'seeds: \[0, 1\]'"),
        ({"folder": 2024}, "folder must be text, got 2024; papermill takes any text as in -r folder TEXT"),
    ):
        with pytest.raises(InputError, match=words):
            take_parameters(given, next(iter(given)))


@pytest.mark.parametrize("text", ["ipcc = 3", "scale = 'ci'\nipcc = 3", "ipcc: int = 3"])
def test_a_name_that_papermill_put_there_and_nobody_knows_is_named(text: str) -> None:
    with pytest.raises(InputError, match="no parameter 'ipcc'; did you mean 'ipc'"):
        take_parameters(executed(CELL, injected(text)), NAMES)


def test_a_name_that_a_reader_mistypes_in_the_parameters_cell_is_named() -> None:
    mistyped = CELL.replace("ipc", "ipcc")
    with pytest.raises(InputError, match="gives no 'ipc'; it has 'ipcc'"):
        take_parameters(executed(mistyped), NAMES)
    with pytest.raises(InputError, match="gives no 'ipc'; it has 'ipcc'"):
        take_parameters(executed(CELL, CALL.split("\n")[0], mistyped), NAMES)  # the kernel has an ipc of before
    with pytest.raises(InputError, match="gives no 'seeds'"):
        take_parameters({"scale": "ci", "ipc": 1}, NAMES)  # plain Python, without a history


def test_what_was_wrong_before_and_has_been_mended_is_forgotten() -> None:
    mistyped = CELL.replace("ipc", "ipcc")
    for cells in (
        (CELL, injected("ipcc = 3"), CELL),  # the parameters cell was run again
        (mistyped, CELL),
        (CELL, injected("ipcc = 3"), CELL, injected("ipc = 3")),
    ):
        take_parameters(executed(*cells), NAMES)


def test_other_cells_are_no_parameters_cell() -> None:
    for other in ("scale = 'ci'", "width = 3\nother = []", "ipc = len(seeds)\nscale = 'ci'\nseeds = seeds", "x = ("):
        namespace = executed(CELL)
        namespace["In"].insert(2, other)
        take_parameters(namespace, NAMES)
    take_parameters(executed(CELL, "%matplotlib inline".replace("%", "# ")), NAMES)


def test_a_parameter_that_a_reader_adds_may_be_given() -> None:
    take_parameters(executed(CELL + "\nwidth = 64", injected("width = 32")), NAMES)


@pytest.mark.parametrize("path", sorted(BOOK.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_every_chapter_takes_its_parameters_in_the_line_after_its_imports(path: Path) -> None:
    cells = [c.source for c in nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells if c.cell_type == "code"]
    declared = [node.targets[0].id for node in ast.parse(cells[0]).body]  # type: ignore[attr-defined]
    *imports, call = ast.parse(cells[1]).body
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in imports)
    assert ast.unparse(call).removeprefix("experiments.") == f"take_parameters(globals(), {' '.join(declared)!r})"
    assert set(declared) <= {*KINDS, *CHOICES}, "a parameter of a kind that nobody checks"
    values: dict[str, Any] = {}
    exec(cells[0], values)
    before = dict(values)
    take_parameters(values, " ".join(declared))
    assert values == before, "a default that does not fit"


# in a notebook's source

SOURCE = '''
data = "folder:PATH?size=64"  # our own form, with = in it
count = 10  # a = b, and "text"
seeds = [
    0,  # the first
    1,
]
rate: float = -0.5
hinted: "dict[str, int]" = {"a=b": 1}
marked = "a # b"
nothing = None
lines = """x = 1
y = 2"""
first = second = 3
computed = 2 * 3
if count:
    hidden = 1
'''


def test_parameters_are_read_as_python_reads_them(tmp_path: Path) -> None:
    declared = check_parameters(notebook(tmp_path / "n.ipynb", SOURCE), {"data": "folder:x?size=32"})
    values = {name: ast.literal_eval(text) for name, text in declared.items() if name != "computed"}
    assert values == {
        "data": "folder:PATH?size=64", "count": 10, "seeds": [0, 1], "rate": -0.5, "hinted": {"a=b": 1},
        "marked": "a # b", "nothing": None, "lines": "x = 1\ny = 2", "first": 3, "second": 3,
    }  # fmt: skip
    assert declared["computed"] == "2 * 3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dat": "x"}, "no parameter 'dat'; did you mean 'data'?"),
        ({"hidden": 1}, "no parameter 'hidden'"),
        ({"count": "ten"}, "count must be a number, got 'ten'"),
        ({"count": [1]}, "count must be a number"),
        ({"count": True}, "count must be a number, got True"),
        ({"rate": "fast"}, "rate must be a number"),
        ({"data": 3}, "data must be text, got 3"),
        ({"seeds": "abc"}, "seeds must be a list, got 'abc'"),
        ({"seeds": ["a"]}, "seeds must be a list"),
        ({"hinted": [1]}, "hinted must be a mapping"),
    ],
)
def test_names_and_values_are_compared_with_the_source(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_parameters(notebook(tmp_path / "n.ipynb", SOURCE), given)


def test_values_that_are_meant_well_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    source = notebook(tmp_path / "n.ipynb", SOURCE)
    given = {"count": 0.5, "rate": 2, "seeds": 7, "nothing": [1], "computed": "x", "hinted": {}, "data": None}
    assert fitting_parameters(source, given) == given | {"seeds": [7]}
    assert [record.message for record in caplog.records] == ["seeds = 7 is taken as [7]"]


def test_a_notebook_that_checks_its_parameters_is_asked_for_no_others(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", CELL, CALL)
    assert fitting_parameters(source, {"seeds": 0, "ipc": 3}) == {"seeds": [0], "ipc": 3}
    for given, message in (({"ipc": 0}, "1 or more"), ({"scale": "tuor"}, "'tour'"), ({"seeds": [-1]}, "0 or more")):
        with pytest.raises(InputError, match=message):
            fitting_parameters(source, given)


@pytest.mark.parametrize("source", ["ipc <- 3", "x = (", "a\x00b = 1", "x = " + "(" * 10_000])
def test_a_parameters_cell_that_is_not_python_is_one_line(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError) as error:
        check_parameters(notebook(tmp_path / "n.ipynb", source), {"ipc": 1})
    assert "\n" not in str(error.value)


# papermill itself


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["-p", "ipcc", "3"], "InputError: this notebook has no parameter 'ipcc'; did you mean 'ipc'?"),
        (["-p", "ipc", "three"], "InputError: ipc must be a whole number of 1 or more, got 'three'"),
        (["-p", "scale", "Tour"], "InputError: unknown scale 'Tour'; did you mean 'tour'?"),
        (["-p", "seeds", "[0,1]", "-p", "ipc", "2"], ""),
        (["-p", "seeds", "0"], ""),
        (["-y", "seeds: [0, 1]"], ""),
    ],
)
def test_plain_papermill_ends_in_a_sentence_or_in_what_was_meant(tmp_path: Path, options: list[str], last: str) -> None:
    import subprocess

    call = f"from iidlib.experiments import take_parameters\n{CALL}"
    source = notebook(tmp_path / "n.ipynb", CELL, call, "assert isinstance(seeds, list), seeds")
    command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == bool(last), done.stderr
    if last:
        assert [line for line in done.stderr.splitlines() if line.strip()][-1] == last
