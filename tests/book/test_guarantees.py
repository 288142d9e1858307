"""Each promise on the page "Guarantees" has its test."""

import ast
import re
from pathlib import Path

from contents import BOOK

TESTS = Path(__file__).parents[1]
TEXT = (BOOK / "guarantees.md").read_text(encoding="utf8")


def defined(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test_that_exists() -> None:
    promises = [line for line in TEXT.splitlines() if re.match(r"\| (?!promise|---)", line)]
    assert len(promises) >= 20
    for line in promises:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line)
        assert named, f"a promise without a test: {line}"
        for file, name in named:
            assert name in defined(file), f"{file} has no {name}"


def test_what_is_called_long_is() -> None:
    for file, name in re.findall(r"long: `(test_\w+\.py)::(test_\w+)`", TEXT):
        source = (TESTS / file).read_text(encoding="utf8")
        assert re.search(rf"@pytest\.mark\.long\n(@.*\n)*def {name}\b", source), f"{name} is not marked long"
