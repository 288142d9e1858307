"""The names at the door of the package: those that chapters use, listed, documented, typed and loaded when used."""

import ast
import importlib
import inspect
import os
import pkgutil
import pydoc
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pandas as pd
import pytest

import iidlib

PACKAGE = Path(iidlib.__file__).parent
CHAPTERS = sorted((PACKAGE.parent / "book").glob("[0-9]*.py"))
SCRIPT = Path(__file__).with_name("user_script.py")
ROOMS = {room.name for room in pkgutil.iter_modules(iidlib.__path__) if room.name[0] != "_"}
NAMES = {name for name in iidlib.__all__ if name[0] != "_"}


def imported(tree: ast.Module) -> set[tuple[str, str]]:
    """Names that a chapter imports from the package or its rooms, each with the module that it names."""
    return {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "iidlib"
        for alias in node.names
    }


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_names_that_a_chapter_imports_are_at_the_door(chapter: Path) -> None:
    names = imported(ast.parse(chapter.read_text(encoding="utf8")))
    assert not [f"{module}.{name}" for module, name in names if name not in NAMES | ROOMS]
    for module, name in names:
        assert getattr(iidlib, name) is getattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_lists_of_the_door_agree() -> None:
    homes = {name: f"iidlib.{room}" for name, room in iidlib._HOMES.items()}
    assert set(homes) == NAMES and not NAMES & ROOMS
    for name, room in homes.items():
        assert name in importlib.import_module(room).__all__ and f"`{name}`" in (iidlib.__doc__ or "")
    typed = imported(ast.parse(Path(iidlib.__file__).read_text(encoding="utf8")))
    assert {name: room for room, name in typed if name in NAMES} == homes, "imports for type checkers"


def test_dir_and_help_are_complete() -> None:
    assert {name for name in dir(iidlib) if name[0] != "_"} == NAMES | ROOMS
    text = pydoc.render_doc(iidlib, renderer=pydoc.plaintext)
    for name in NAMES:
        described = inspect.getdoc(getattr(iidlib, name))
        assert described and described.splitlines()[0] in text, name
        assert re.search(rf"^ +(class |[|] +)?{name}\b", text, re.MULTILINE), name


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, iidlib; dir(iidlib); iidlib.preset; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'iidlib' has no attribute 'destill'"):
        _ = iidlib.destill  # type: ignore[attr-defined]


# --- a user's script --------------------------------------------------------------------------------------------------


def test_a_users_script_runs(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    command = [sys.executable, str(SCRIPT), str(out)]
    free = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=free)
    assert done.returncode == 0, done.stderr
    assert "iid-dm" in done.stdout and "random" in done.stdout
    assert {path.name for path in out.iterdir()} == {"synthetic.safetensors", "scores.csv", "figure.png"}
    assert iidlib.SyntheticSet.load(out / "synthetic.safetensors").ipc == 2
    assert set(pd.read_csv(out / "scores.csv")["label"]) == {"random", "iid-dm"}
    refused = subprocess.run([*command, "iid-dn"], cwd=tmp_path, capture_output=True, text=True, env=free)
    assert refused.returncode == 1 and refused.stderr.startswith("error: ") and "did you mean" in refused.stderr


@pytest.mark.slow
def test_a_users_script_is_typed_strictly(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    shutil.copytree(PACKAGE, site / "iidlib", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    shutil.copy(SCRIPT, tmp_path / "script.py")
    (tmp_path / "names.py").write_text(
        "import iidlib\n" + "".join(f"iidlib.{name}\n" for name in sorted(NAMES | ROOMS))
    )
    python = tmp_path / "env" / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "script.py", "names.py"]
    free = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=free)
    assert done.returncode == 0, done.stdout + done.stderr
