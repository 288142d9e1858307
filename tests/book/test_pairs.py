"""Chapters as files: notebook and script in sync, parameters that papermill can set, clean committed outputs."""

import ast
import re

import jupytext
import nbformat
import pytest
from contents import BOOK, ROOT, chapters

pytestmark = pytest.mark.book

# An absolute path would tell on the machine that a chapter was executed on.
LOCAL_PATH = re.compile(r"(?:^|[\s'\"(=])(/\w[\w.-]*/[\w./-]+|[A-Z]:\\\w\S*)", re.MULTILINE)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(BOOK / f"{name}.ipynb", as_version=4)


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def test_every_notebook_is_a_pair_and_in_the_toc() -> None:
    expected = set(chapters())
    assert expected, "the table of contents names no chapter"
    assert {path.stem for path in BOOK.glob("*.ipynb")} == expected
    assert {path.stem for path in BOOK.glob("*.py")} == expected


def test_pairing_is_set_for_the_whole_repository() -> None:
    config = jupytext.config.load_jupytext_config(str(BOOK / "01_quickstart.ipynb"))
    assert config is not None, "no [tool.jupytext] in pyproject.toml"
    assert jupytext.formats.long_form_multiple_formats(config.default_formats("01_quickstart.ipynb")) == [
        {"extension": ".ipynb"},
        {"extension": ".py", "format_name": "percent"},
    ]


@pytest.mark.parametrize("name", chapters())
def test_notebook_and_script_are_in_sync(name: str) -> None:
    def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, tuple[str, ...], str]]:
        return [(c.cell_type, tuple(c.metadata.get("tags", ())), c.source.strip()) for c in notebook.cells]

    script = jupytext.read(BOOK / f"{name}.py", fmt="py:percent")
    for number, (ours, theirs) in enumerate(zip(cells(read(name)), cells(script), strict=False)):
        assert ours == theirs, f"cell {number} of {name} differs between .ipynb and .py: run `make sync`"
    assert len(read(name).cells) == len(script.cells), f"{name}.ipynb and .py differ in length: run `make sync`"


@pytest.mark.parametrize("name", chapters())
def test_kernelspec_names_its_language(name: str) -> None:
    kernel = read(name).metadata.get("kernelspec", {})
    assert kernel.get("name") == "python3"
    assert kernel.get("language") == "python", f"{name}: papermill needs a kernelspec with a language"


@pytest.mark.parametrize("name", chapters())
def test_parameters_are_literals_in_one_tagged_cell(name: str) -> None:
    tagged = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1, f"{name} has {len(tagged)} cells tagged `parameters`; papermill needs one"
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign), ast.unparse(statement)
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        assert all(isinstance(target, ast.Name) for target in targets), ast.unparse(statement)
        assert statement.value is not None, f"{ast.unparse(statement)}: a parameter needs a value"
        try:
            ast.literal_eval(statement.value)
        except ValueError:
            pytest.fail(f"{name}: {ast.unparse(statement)} is computed; papermill replaces literals only")


@pytest.mark.parametrize("name", chapters())
def test_committed_outputs_are_complete_and_clean(name: str) -> None:
    cells = code_cells(name)
    assert not any("injected-parameters" in cell.metadata.get("tags", ()) for cell in cells)
    numbers = [cell.execution_count for cell in cells if cell.source.strip()]
    assert numbers == sorted(n for n in numbers if n is not None), f"{name} was not executed from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs, f"{name} has no committed outputs"
    for output in outputs:
        assert output.output_type != "error", f"{name}: {output.ename}: {output.evalue}"
        assert output.get("name") != "stderr", f"{name} writes to stderr: {output.text[:200]}"
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        found = LOCAL_PATH.search(text)
        assert found is None, f"{name} shows a path of the machine it ran on: {found and found.group(1)}"


def test_notebooks_stay_small() -> None:
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in BOOK.glob("*.ipynb")}
    assert all(size < 2**20 for size in sizes.values()), f"a notebook above 1 MiB: {sizes}"
