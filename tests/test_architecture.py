"""The shape of the library: who imports whom, what it needs to be imported, names and docstrings."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import iidlib

PACKAGE = Path(iidlib.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path not in (PACKAGE / "__init__.py", PACKAGE / "cli" / "__main__.py")
)

# What a module may import of the package. Leaves import nothing; plots is for chapters and the command line alone.
LEAVES = {"augment", "cutmix", "inputs", "losses", "kernels", "plots", "presets", "streams"}
BASE = (LEAVES | {"accelerate", "config"}) - {"plots", "presets"}
MATERIAL = {"data", "networks", "runs"}
MIDDLE = {"extractors", "interchange", "results", "synthetic"}
ABOVE = {"analysis", "coresets", "continual", "distillation", "evaluation", "terms"}
TOP = {"baseline", "bench", "experiments", "ladder", "reproduce", "sweep", "timing"}

ALLOWED = (
    {name: set() for name in LEAVES}
    | {"config": {"inputs", "presets"}}  # what single methods change, a table
    | {"accelerate": {"kernels"}}  # which alone decides when they are used
    | {"ceilings": {"accelerate"}}  # what bench divides by
    | {"download": BASE, "torchvision_sets": BASE | {"download"}}
    | {"image_files": BASE | {"runs"}, "folders": BASE | {"image_files"}}
    | {"tinyimagenet": BASE | {"download", "image_files"}}
    | {"sources": BASE | {"tinyimagenet", "torchvision_sets"}}  # the files behind `data`
    | {name: BASE for name in MATERIAL}
    | {"data": BASE | {"folders", "sources"}}
    | {"training": BASE | MATERIAL}  # what pools and evaluation share
    | {"stacked": BASE | MATERIAL | {"training"}}  # many at once, in its place
    | {name: BASE | MATERIAL | {"stacked", "training"} for name in MIDDLE}
    | {name: BASE | MATERIAL | MIDDLE | {"stacked", "training"} | ABOVE for name in ABOVE}
    | {"statistics": BASE | MATERIAL}  # of real images, kept for a run
    | {"network_queue": BASE | MATERIAL | {"extractors", "training"}}  # IDM's source of features, beside DM's
    | {"updaters": BASE, "published": set()}
    | {"checkpoints": BASE | {"runs"}}
    | {"terms": BASE | MATERIAL | MIDDLE | {"statistics"}}  # what a step reads; the loop stands above it
    | {"capture": BASE | MATERIAL | {"extractors", "synthetic", "terms", "updaters"}}  # a step on fixed buffers
    | {
        "distillation": BASE
        | MATERIAL
        | MIDDLE
        | {"capture", "checkpoints", "network_queue", "statistics", "terms", "training", "updaters"}
    }  # evaluation comes in as a callback
    | {
        name: BASE | MATERIAL | MIDDLE | ABOVE | TOP | {"ceilings", "network_queue", "published", "training"}
        for name in TOP
    }
    | {
        f"cli.{name}": BASE
        | MATERIAL
        | MIDDLE
        | ABOVE
        | TOP
        | {"cli.frame", "cli.scores", "presets", "published", "training"}
        for name in ("frame", "scores", "datasets", "sets", "studies")
    }
    | {"cli": {"cli.datasets", "cli.frame", "cli.sets", "cli.studies", "inputs"}}  # the commands, put together
)

# Only chapters and sweeps of chapters need these; a GPU machine runs the library without them.
NOTEBOOK_PACKAGES = (
    "IPython ipykernel ipywidgets jupyter jupyter_book jupyter_client jupyter_core jupyterlab jupytext nbclient "
    "nbconvert nbformat nbval papermill sphinx"
).split()


def parse(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf8"))


def imports(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports anywhere, also inside functions and for types only."""
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
            if source == "iidlib":
                found |= {alias.name for alias in node.names}
            elif source == "iidlib.cli":
                found |= {f"cli.{alias.name}" for alias in node.names}
            elif source.startswith("iidlib."):
                found.add(source.removeprefix("iidlib."))
    return found - {"__version__"}


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
        ("from iidlib.data import RealSet", {"data"}),
        ("from . import data", {"data"}),
        ("from .data import RealSet", {"data"}),
        ("def f():\n    from iidlib.plots import grid", {"plots"}),
        ("from iidlib.cli.frame import load", {"cli.frame"}),
        ("from iidlib.cli import sets, studies", {"cli.sets", "cli.studies"}),
        ("from iidlib import __version__\nimport torch.data", set()),
        ("import iidlib", {"iidlib"}),
    ],
)
def test_imports_are_read_in_every_form(code: str, expected: set[str]) -> None:
    assert imports(ast.parse(code)) == expected


def test_every_module_has_a_place_in_the_design() -> None:
    assert not set(MODULES) - set(ALLOWED), "give the new module a row in ALLOWED, or its content a home in another one"
    assert not set(MODULES) & {"utils", "util", "helpers", "common", "misc", "tools"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_design(module: str) -> None:
    wrong = imports(parse(module)) - ALLOWED[module]
    assert not wrong, (
        f"{module} imports {sorted(wrong)}; it may import {sorted(ALLOWED[module]) or 'nothing of the package'}"
    )


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imports(parse(module)) for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


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
    for name in iidlib.__all__:
        assert hasattr(iidlib, name), f"iidlib.__all__ names {name}, which cannot be had"
        assert name not in MODULES, f"iidlib.{name} shadows the module of that name"
        if inspect.isfunction(getattr(iidlib, name)) or inspect.isclass(getattr(iidlib, name)):
            assert inspect.getdoc(getattr(iidlib, name))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)


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
