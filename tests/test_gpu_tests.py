"""The tests marked ``gpu`` run where few packages are installed, as on a rented machine, and compare in float32."""

import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
INSTALLED = (
    "torch torchvision pandas pyyaml safetensors typer rich tqdm seaborn scikit-learn attrs filelock pytest".split()
)
"""Packages that the machine has, with what they depend on."""

CODE = """
    import importlib.metadata, json, re, sys
    from importlib.machinery import PathFinder

    def normal(name):
        return re.sub("[-_.]+", "-", name).lower()

    present, open_names = set(), list(INSTALLED)
    while open_names:
        name = normal(open_names.pop())
        if name in present:
            continue
        present.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        open_names += [re.match("[A-Za-z0-9._-]+", one)[0] for one in needed if "extra ==" not in one]
    modules = importlib.metadata.packages_distributions()
    missing = {
        module for module, owners in modules.items()
        if not present & set(map(normal, owners)) and module not in ("iidlib", "tests")
    }

    class Present(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

    sys.meta_path[:] = [Present if finder is PathFinder else finder for finder in sys.meta_path]
    assert {"hypothesis", "nbformat", "jupytext"} <= missing and not {"torch", "numpy", "sklearn"} & missing

    import pytest
    import torch

    class Collected:
        def pytest_collection_finish(self, session):
            self.items = [(item.path.name, item.name) for item in session.items]

    collected = Collected()
    status = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", *FILES], plugins=[collected])
    torch.cuda.is_available = lambda: True  # for a test that needs no GPU, but is marked
    one = "test_gpu.py::test_tests_of_a_gpu_compare_in_full_precision"
    ran = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", one])
    print(json.dumps([int(status), int(ran), collected.items]))
"""


def test_tests_of_a_gpu_need_few_packages_and_skip_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS.parent / ".ci"))
    session = importlib.import_module("gpu_session")
    sys.modules.pop("gpu_session")
    files, worth = [path.name for path in session.gpu_tests()], [f"test_{name}.py" for name in session.WORTH]
    marked = {path.name for path in TESTS.glob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8")}
    assert marked - {"test_gpu_tests.py"} == set(files)
    assert set(worth) <= set(files), "names that are gone"
    assert [name for name in files if name in worth] == worth and files[-1] == "test_bench.py"
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = f"INSTALLED, FILES = {INSTALLED!r}, {files!r}\n" + textwrap.dedent(CODE)
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *said, last = done.stdout.splitlines()
    status, ran, items = json.loads(last)
    assert (status, ran) == (0, 0), done.stdout
    assert {name for name, _ in items} == set(files) and len(items) > 20
    assert any(f"{len(items)} skipped" in line for line in said), "without a GPU each is skipped"
