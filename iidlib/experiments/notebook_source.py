"""Parameters in a notebook's source, found with Python's parser; nothing in the notebook is executed."""

import ast
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iidlib.errors import InputError

__all__ = ["code_of", "declared_in", "executed", "literal"]

INJECTED = "# Parameters"
"""First line of the cell that papermill inserts after the one tagged ``parameters``."""

CHECK = "take_parameters(globals()"
"""Call by which a chapter checks its own parameters."""


def executed(cells: Iterable[str], declared: list[str]) -> tuple[list[str] | None, list[str]]:
    """Names in the parameters cell that was executed last, and those that papermill has injected since."""
    injected: list[str] = []
    for cell in reversed(list(cells)):
        try:
            body = ast.parse(cell).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        names = [name for statement in body for name, _ in _assignments(statement)]
        if cell.startswith(INJECTED):
            injected = injected or names
        elif all(map(_is_literal, body)) and 2 * len({*names} & {*declared}) > len(declared):
            return names, injected  # a reader's own cell rarely sets most parameters to literals
    return None, injected


def _is_literal(statement: ast.stmt) -> bool:
    values = [value for _, value in _assignments(statement)]
    return bool(values) and all(literal(value)[0] for value in values)


def _assignments(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    """Names that an assignment sets, with their expressions; empty for other statements."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return [(statement.target.id, statement.value)]
    if isinstance(statement, ast.Assign):
        return [(target.id, statement.value) for target in statement.targets if isinstance(target, ast.Name)]
    return []


def literal(node: ast.expr) -> tuple[bool, Any]:
    """Whether an expression is a literal, and its value."""
    try:
        return True, ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False, None


def _code_cells(notebook: Path) -> list[tuple[str, bool]]:
    """Source of each code cell, and whether it is tagged ``parameters``.

    Raises:
        InputError: if the notebook does not exist, or is none.
    """
    if not os.path.isfile(notebook):  # noqa: PTH113, accepts names that no file can have, too
        raise InputError(f"no notebook at {notebook}")
    try:
        from papermill.iorw import load_notebook_node
    except ImportError:
        raise InputError("notebooks need papermill; install it with: pip install 'iidlib[book]'") from None
    try:
        return [
            (str(cell.source), "parameters" in cell.metadata.tags)
            for cell in load_notebook_node(str(notebook)).cells
            if cell.cell_type == "code"
        ]
    except Exception as error:  # papermill's reader raises anything for a corrupted notebook
        raise InputError(
            f"{notebook} is not a notebook that papermill can read ({' '.join(str(error).split())})"
        ) from None


def code_of(notebook: str | Path) -> list[str]:
    """Source of a notebook's code cells, which determine what it computes.

    Raises:
        InputError: if the notebook does not exist, or is none.
    """
    return [source for source, _ in _code_cells(Path(notebook))]


def declared_in(notebook: str | Path) -> tuple[dict[str, tuple[str, ast.expr]], bool]:
    """Parameters of a notebook, each with its default as text and parsed, and whether it checks them itself.

    Raises:
        InputError: if the notebook does not exist, or its parameters cell is not Python.
    """
    cells = _code_cells(Path(notebook))
    source = next((text for text, tagged in cells if tagged), "")
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the cell tagged parameters of {notebook} is not Python ({error})") from None
    declared = {
        name: (ast.get_source_segment(source, value) or "", value)
        for statement in body
        for name, value in _assignments(statement)
    }
    return declared, any(CHECK in text for text, _ in cells)
