"""The built book, once a session and shared by all worker processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contents import ROOT

from iidlib.locks import locked


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with the book built from the working tree, warnings being errors; its `errors.txt` says what failed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "book"  # pytest-xdist: one folder for all workers
    folder.mkdir(exist_ok=True)
    errors = folder / "errors.txt"
    with locked(folder / "lock"):
        if not errors.exists():
            errors.write_text(_errors_of_build(folder))
    return folder


@pytest.fixture(scope="session")
def html(build: Path) -> Path:
    """The folder of the book's HTML."""
    if errors := (build / "errors.txt").read_text():
        pytest.fail(f"the book did not build: {errors.splitlines()[0]} ...", pytrace=False)
    return build / "_build" / "html"


def _errors_of_build(target: Path) -> str:
    """Runs ``jb build`` as ``make book`` does, but into `target`; returns its complaints, or nothing."""
    main = "from jupyter_book.cli.main import main; main()"
    options = ["--config", "_config.yml", "--path-output", str(target), "-W", "-n", "--keep-going"]
    done = subprocess.run(
        [sys.executable, "-c", main, "build", "book", *options],
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).splitlines()
    return "\n".join([line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-30:])
