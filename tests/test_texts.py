"""What docstrings, pages and READMEs name: names of the library, settings, files and chapters that are there."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import iidlib
from iidlib import config

PACKAGE = Path(iidlib.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))
CHAPTERS = {path.name[:2]: path for path in sorted((ROOT / "book").glob("[0-9][0-9]_*.py"))}

# The changelog names what is gone; data/results is tables.
PAGES = sorted(
    path
    for pattern in ("*.md", "book/*.md", "book/*.rst", "book/[0-9]*.py", "data/**/*.md", "data/scripts/*.py")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)

QUOTED = re.compile(r"(?<![\w`>])(`{1,2})([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?\1(?!`)")
FILE = re.compile(r"\.(py|ipynb|md|rst|cpp|csv|json|jsonl|lock|mat|png|safetensors|toml|txt|yaml|yml|url|zip)$")
PATH = re.compile(r"(?<![\w/.-])((?:iidlib|data|tests|book)/[\w./-]*\w)")
EXPLAINED = re.compile(r"Explained in chapter (\d\d)\.")


def load(name: str) -> ModuleType:
    return importlib.import_module(name.removesuffix(".__init__"))


def has(thing: Any, path: list[str]) -> bool:
    """Whether an attribute of an attribute is there; a field of a dataclass counts, with or without a default."""
    for number, part in enumerate(path):
        if dataclasses.is_dataclass(thing) and part in {field.name for field in dataclasses.fields(thing)}:
            return number == len(path) - 1
        if not hasattr(thing, part):
            name = f"{getattr(thing, '__name__', '')}.{part}"
            if not (hasattr(thing, "__path__") and importlib.util.find_spec(name)):
                return False
            importlib.import_module(name)
        thing = getattr(thing, part)
    return True


@functools.cache
def places() -> dict[str, list[Any]]:
    """What the first part of a dotted name can be: a room, a file of a room, or a class of the library."""
    found: dict[str, list[Any]] = {"iidlib": [iidlib], "torch": [importlib.import_module("torch")]}
    for name in MODULES:
        if name.endswith("__main__"):
            continue
        module = load(name)
        if name.count("."):
            found.setdefault(module.__name__.rpartition(".")[2], []).append(module)
        for own, thing in vars(module).items():
            if inspect.isclass(thing) and thing.__module__.startswith("iidlib"):
                found.setdefault(own, []).append(thing)
    # `config.ipc`: the argument of that name, in most places the settings of a run, in the pool's those of a pool
    found["config"] += [config.RunConfig, config.PoolConfig]
    return found


def known(name: str) -> bool:
    """Whether a dotted name is a name of the library, a setting or a file's name."""
    first, *rest = name.split(".")
    if FILE.search(name) or name in config.settings():
        return True
    return any(has(place, rest) for place in places().get(first, []))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("iidlib.data.RealSet", True),
        ("iidlib.training.cutmix", True),
        ("networks.prepare", True),
        ("loop.fit", True),
        ("methods.METHODS", True),
        ("RealSet.split", True),
        ("Dataset.train", True),
        ("match.cc", True),
        ("config.ipc", True),
        ("torch.Generator", True),
        ("kernels.cpp", True),
        ("iidlib.accelerate", False),
        ("iidlib.accelerate.pick_device", False),
        ("accelerate.prepare", False),
        ("networks.nothing", False),
        ("RealSet.nothing", False),
        ("match.nothing", False),
    ],
)
def test_a_name_is_known_where_the_library_has_it(name: str, expected: bool) -> None:
    assert known(name) == expected


@pytest.mark.parametrize("module", MODULES)
def test_names_in_docstrings_and_comments_are_there(module: str) -> None:
    text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf8")
    wrong = {found[1] for found in QUOTED.findall(text) if not known(found[1])}
    assert not wrong, f"{module} names what is not there: {sorted(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_names_and_paths_on_pages_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf8")
    wrong = {found[1] for found in QUOTED.findall(text) if not known(found[1])}
    wrong |= {found for found in PATH.findall(text) if not (ROOT / found).exists() and "*" not in found}
    assert not wrong, f"{page.name} names what is not there: {sorted(wrong)}"


def test_test_modules_name_the_module_they_test() -> None:
    subjects = {
        path.name: named[1]
        for path in (ROOT / "tests").glob("test_*.py")
        if (named := re.match(r'"""(iidlib\.[\w.]+):', path.read_text(encoding="utf8")))
    }
    assert subjects
    wrong = {name: subject for name, subject in subjects.items() if not known(subject)}
    assert not wrong, f"tests of modules that are not there: {wrong}"


def explained() -> dict[str, list[str]]:
    """Chapters by the functions and classes whose docstrings name them."""
    found: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
                numbers := EXPLAINED.findall(ast.get_docstring(node) or "")
            ):
                found.setdefault(node.name, []).extend(numbers)
    return found


def test_chapters_that_docstrings_name_use_what_they_explain() -> None:
    assert len(explained()) >= 10
    for name, numbers in explained().items():
        for number in numbers:
            assert number in CHAPTERS, f"{name} is explained in chapter {number}, which is not there"
            code = CHAPTERS[number].read_text(encoding="utf8")
            assert re.search(rf"^[^#\n]*\b{name}\b", code, re.MULTILINE), f"chapter {number} does not use {name}"


def test_what_a_chapter_builds_by_hand_says_so() -> None:
    compared = [
        (name, number)
        for number, path in CHAPTERS.items()
        for name in re.findall(r"^torch\.testing\.assert_close\((?:losses\.)?(\w+)\(", path.read_text(), re.MULTILINE)
    ]
    assert compared
    for name, number in compared:
        assert number in explained().get(name, []), f"the docstring of {name} does not name chapter {number}"
