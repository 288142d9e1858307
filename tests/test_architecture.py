"""The shape of the library: who imports whom, what it needs to be imported, names and docstrings."""

import ast
import graphlib
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import iidlib
from tests.factories import MODULES, PACKAGE

# The house, floor by floor: a room (a file or a folder of the package) imports only rooms of lower floors. Inside a
# folder the files form a graph without circles. A new room gets a place here, on the lowest floor that can hold it.
FLOORS: tuple[tuple[str, ...], ...] = (
    # the ground
    ("bars", "cores", "errors", "files", "locks", "names", "notes", "private", "resampling", "rng", "_version"),
    ("losses", "augment", "engine", "plots", "ranks"),
    ("augment_ops", "config", "data"),
    ("networks", "synthetic", "runs", "experiments"),
    ("training", "scale"),
    ("features", "evaluation"),
    ("distillation",),
    ("continual", "bench"),
    ("cli",),
)

# Stricter than their floor: what these rooms import at most.
NARROW = {
    "engine": {"errors", "files", "locks", "private"},
    "data": {"bars", "cores", "errors", "files", "locks", "names", "notes"},  # no settings, no engine, no runs
    "config": {"errors", "files", "names"},
    "experiments": {"bars", "config", "errors", "files", "locks", "names"},  # reading results needs no torch
}

# Rooms for chapters, scripts and the command line, which no other room imports.
ASIDE = {"plots", "bench", "continual", "scale", "cli"}

# The only files of the folder of the method that know of folders and checkpoints.
WITH_FOLDERS = ("distillation.run", "distillation.finished")

# Imported without torch, so that settings and tables of results are read at once.
LIGHT = ("_version", "bars", "config", "errors", "experiments", "files", "locks", "names", "notes", "private")

LONGEST_FACE = 20

# Only chapters and sweeps of chapters need these; a GPU machine runs the library without them.
NOTEBOOK_PACKAGES = (
    "IPython bokeh dask dask_jobqueue distributed ipykernel ipywidgets jupyter jupyter_book jupyter_client "
    "jupyter_core jupyterlab jupytext nbclient "
    "nbconvert nbformat nbval papermill pyarrow sphinx"
).split()


def parse(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf8"))


def imports(tree: ast.Module) -> set[str]:
    """What a module imports of the package anywhere, also inside functions and for types only, as dotted names.

    ``from iidlib.data import RealSet`` is ``data.RealSet``: whether the last part is a module is for `_module` to say.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("iidlib.") for alias in node.names if alias.name.split(".")[0] == "iidlib"
            }
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # from . import data, from .data import RealSet
                source = f"iidlib.{source}".rstrip(".")
            if source.split(".")[0] == "iidlib":
                place = source.removeprefix("iidlib").removeprefix(".")
                found |= {f"{place}.{alias.name}".removeprefix(".") for alias in node.names}
    return found - {"__version__"}


def room(module: str) -> str:
    """The room that a module, or a name in it, belongs to."""
    return module.split(".")[0]


def module_of(name: str) -> str:
    """The module that a dotted name is, or lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


FLOOR = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}


def public(module: str) -> list[str]:
    """The names in a module's ``__all__``."""
    for node in parse(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import iidlib.data", {"data"}),
        ("from iidlib import data, networks", {"data", "networks"}),
        ("from iidlib.data import RealSet", {"data.RealSet"}),
        ("from . import data", {"data"}),
        ("from .data import RealSet", {"data.RealSet"}),
        ("def f():\n    from iidlib.plots import grid", {"plots.grid"}),
        ("from iidlib.cli.session import load", {"cli.session.load"}),
        ("from iidlib.cli import distill, sweep", {"cli.distill", "cli.sweep"}),
        ("from iidlib import __version__\nimport torch.data", set()),
        ("import iidlib", {"iidlib"}),
    ],
)
def test_imports_are_read_in_every_form(code: str, expected: set[str]) -> None:
    assert imports(ast.parse(code)) == expected


def test_every_room_has_one_floor_and_every_floor_its_rooms() -> None:
    listed = [name for rooms in FLOORS for name in rooms]
    assert len(listed) == len(set(listed)), "a room stands on two floors"
    assert {room(module) for module in MODULES} == set(listed), "give the new room a floor, or take a gone one off"
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "tools"}


def test_the_readme_shows_every_folder_with_five_words() -> None:
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf8")
    rows = re.findall(r"^(?:[├└]── )?(\S+/) +(\S.*)$", text, re.MULTILINE)
    folders = {f"{name}/" for rooms in FLOORS for name in rooms if (PACKAGE / name).is_dir()}
    top = {f"{path.name}/" for path in PACKAGE.parent.iterdir() if path.name in ("book", "iidlib", "data", "tests")}
    assert sorted(name for name, _ in rows) == sorted([*folders, *top])
    assert [name for name, _ in rows[2:5]] == ["losses/", "distillation/", "evaluation/"], "what to read first"
    assert all(2 <= len(words.split()) <= 5 for _, words in rows)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_of_lower_floors(module: str) -> None:
    own, wrong = room(module), []
    for name in sorted({room(name) for name in imports(parse(module))} - {own}):
        if name not in FLOOR or FLOOR[name] >= FLOOR[own]:
            wrong.append(f"{name} is not on a floor below")
        elif name not in NARROW.get(own, FLOOR):
            wrong.append(f"{own} may import {', '.join(sorted(NARROW[own]))} only, not {name}")
        elif name in ASIDE and own != "cli":
            wrong.append(f"{name} is for chapters, scripts and the command line")
        elif (own, name) == ("distillation", "runs") and module not in WITH_FOLDERS:
            wrong.append(f"only {' and '.join(WITH_FOLDERS)} know of run folders")
        elif {own, name} == {"distillation", "evaluation"}:
            wrong.append("evaluation reaches the loop as a callback")
    assert not wrong, f"{module}: {'; '.join(wrong)}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: {module_of(name) for name in imports(parse(module))} - {""} for module in MODULES}
    for package in {room(module) for module in MODULES if "." in module}:
        inner = [module for module in MODULES if room(module) == package and module != package]
        graph[package] |= set() if package == "cli" else set(inner)
        for module in inner:
            assert package == "cli" or package not in graph[module], (
                f"{module} imports the face of its own room; name the file"
            )
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


@pytest.mark.parametrize("package", sorted({room(module) for module in MODULES if "." in module} - {"cli"}))
def test_an_init_file_is_short_and_only_reexports(package: str) -> None:
    text = (PACKAGE / package / "__init__.py").read_text(encoding="utf8")
    assert len(text.splitlines()) <= LONGEST_FACE
    for node in ast.parse(text).body[1:]:
        assert isinstance(node, ast.ImportFrom) or (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
        ), f"the face of {package} holds code of its own"


@pytest.mark.parametrize("name", LIGHT)
def test_reading_settings_and_results_needs_no_torch(name: str) -> None:
    done = run_python(
        f"import sys, iidlib.{name}; assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_and_what_is_public(module: str) -> None:
    assert ast.get_docstring(parse(module)), f"{module} has no docstring"
    assert public(module), f"{module} has no __all__"
    loaded = importlib.import_module(f"iidlib.{module}")
    missing = [name for name in public(module) if not hasattr(loaded, name)]
    assert not missing, f"{module}.__all__ names what it does not have: {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_and_classes_have_docstrings(module: str) -> None:
    bare = []
    names = set(public(module))
    for node in parse(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
            inner = node.body if isinstance(node, ast.ClassDef) else []
            methods = [item for item in inner if isinstance(item, ast.FunctionDef) and item.name[0] != "_"]
            bare += [item.name for item in (node, *methods) if not ast.get_docstring(item)]
    assert not bare, f"{module}: no docstring on {bare}"


def test_the_package_offers_the_names_of_the_readme() -> None:
    for name in ("SyntheticSet", "distill", "evaluate", "load_dataset", "preset"):
        assert name in iidlib.__all__
    assert set(iidlib.__all__) <= set(dir(iidlib)), "a shell completes the names that are not loaded yet"
    for name in iidlib.__all__:
        assert name.startswith("_") or name in (iidlib.__doc__ or ""), f"the docstring does not name {name}"
        assert hasattr(iidlib, name), f"iidlib.__all__ names {name}, which cannot be had"
        assert name not in MODULES, f"iidlib.{name} shadows the module of that name"
        if inspect.isfunction(getattr(iidlib, name)) or inspect.isclass(getattr(iidlib, name)):
            assert inspect.getdoc(getattr(iidlib, name))


def test_no_test_module_imports_from_another() -> None:
    """What two of them need is in `factories`, or in another module whose name does not begin with test."""
    wrong = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom):
                source = f"tests.{node.module or ''}".rstrip(".") if node.level else node.module or ""
                names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # code of another process
                names = [name for name in re.findall(r"\btests\.test_\w+", node.value) if name != f"tests.{path.stem}"]
            wrong += [f"{path.name} imports {name}" for name in names if re.match(r"tests\.test_\w+", name)]
    assert not wrong, "; ".join(wrong)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)


def test_names_and_rooms_are_listed_before_they_are_loaded() -> None:
    rooms = {module for module in MODULES if "." not in module and module[0] != "_"}
    done = run_python(f"""
        import sys, iidlib
        shown = {{name for name in dir(iidlib) if name[0] != "_"}}
        assert shown == {rooms | {name for name in iidlib.__all__ if name[0] != "_"}}, shown
        assert "torch" not in sys.modules
        assert iidlib.files.PACKAGE and not hasattr(iidlib, "destill") and "torch" not in sys.modules
        assert iidlib.data.RealSet and iidlib.plots.__all__
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [module for module in MODULES if (PACKAGE / module).is_dir()])
def test_faces_list_what_they_offer(module: str) -> None:
    face = importlib.import_module(f"iidlib.{module}")
    assert set(public(module)) <= set(dir(face))


def test_help_shows_the_docstrings_of_the_public_names() -> None:
    reported = pydoc.render_doc(iidlib, renderer=pydoc.plaintext)
    for name in ("distill", "evaluate", "load_dataset", "preset", "SyntheticSet"):
        described = inspect.getdoc(getattr(iidlib, name))
        assert described and described.splitlines()[0] in reported, name


def test_library_and_command_line_need_no_notebook_packages() -> None:
    done = run_python(f"""
        import importlib, sys

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {NOTEBOOK_PACKAGES}:
                    raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

        sys.meta_path.insert(0, Block())
        for module in {MODULES}:
            importlib.import_module(f"iidlib.{{module}}")
        import iidlib
        [getattr(iidlib, name) for name in iidlib.__all__]
        sys.argv = ["iid", "--help"]
        iidlib.cli.main()
    """)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


def test_importing_the_package_is_quick() -> None:
    done = run_python("""
        import sys
        import iidlib
        assert iidlib.__version__
        print([name for name in ("torch", "pandas", "matplotlib", "sklearn") if name in sys.modules])
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "import iidlib loads its names when they are first used, not before"
