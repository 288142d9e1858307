"""Where nothing but Python's portable part is there, as on Windows: everything is imported, and a distillation runs."""

import ast
import csv
import ctypes
import json
import subprocess
import sys
import textwrap
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch

from iidlib import files
from iidlib.data.folder import parse_folder
from iidlib.engine import device, peak_memory_mib
from tests.factories import MODULES, PACKAGE

TESTS = Path(__file__).parent

# What Python has on POSIX only. The lock is filelock's, which takes what each system has.
POSIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
POSIX_NAMES = ("fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "setpgid", "setsid")

BLOCKED = f"""
    import builtins, importlib, json, os, sys

    plain = builtins.__import__

    def portable(name, globals=None, *rest, **named):
        asks = (globals or {{}}).get("__name__", "").split(".")[0]
        # other packages have their own ways on each system
        if name in {POSIX_MODULES} and asks in ("iidlib", "tests", "__main__"):
            raise ModuleNotFoundError(f"{{asks}} imports {{name}}, which Windows does not have", name=name)
        return plain(name, globals, *rest, **named)

    builtins.__import__ = portable
    import filelock, multiprocessing, pandas, subprocess, torch, torchvision
    for name in {POSIX_NAMES}:
        delattr(os, name)
"""


def run(code: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED) + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=300, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_module_is_imported_without_posix() -> None:
    run(f"""
        try:
            import fcntl
        except ModuleNotFoundError as error:
            assert "Windows does not have" in str(error)
        else:
            raise AssertionError("nothing is blocked")
        for module in {MODULES}:
            importlib.import_module("iidlib." + module)
        import iidlib
        [getattr(iidlib, name) for name in iidlib.__all__]
    """)


def test_every_test_is_imported_or_skipped_by_name() -> None:
    names = [path.stem for path in TESTS.glob("*.py")]
    out = run(
        f"""
        import pytest

        def absent(name, reason=None):
            return pytest.skip(reason, allow_module_level=True) if name in {POSIX_MODULES} else wanted(name)

        wanted, pytest.importorskip = pytest.importorskip, absent
        skipped = []
        for name in {names}:
            try:
                importlib.import_module("tests." + name)
            except pytest.skip.Exception:
                skipped.append(name)
        print(json.dumps(skipped))
        """,
        cwd=TESTS.parent,
    )
    assert json.loads(out) == ["test_faults"]  # killed processes, limits of files, other users


def test_a_distillation_runs_to_its_end_without_posix(tmp_path: Path) -> None:
    run(
        """
        import ctypes
        from types import SimpleNamespace
        from iidlib.cli import main
        from iidlib.engine import device
        from tests.test_portability import Kernel32

        device.sys = SimpleNamespace(platform="win32")  # where memory is asked for in Windows' way
        ctypes.WinDLL = lambda name: Kernel32(600 << 20)
        os.environ["IID_CACHE"] = os.path.join(os.getcwd(), "cache")
        given = ["--dataset", "shapes", "--scale", "ci", "--ipc", "2", "--out", "run", "--results", "results.csv"]
        try:
            main(["distill", "dm", *given])
        except SystemExit as end:
            assert not end.code, end.code
        """,
        cwd=tmp_path,
    )
    assert (tmp_path / "run" / "synthetic.safetensors").is_file()
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        assert {row["peak_memory_mib"] for row in csv.DictReader(file)} == {"600"}
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "run"}
    assert not [path for path in (tmp_path / "run").rglob(".*")]


class Kernel32:
    """The part of Windows' library that tells the memory of a process, as its manual describes it."""

    class Function(SimpleNamespace):
        def __call__(self, *given: object) -> object:
            return self.does(*given)

    def __init__(self, peak: int, answers: bool = True) -> None:
        def tell(process: int, counters: object, size: int) -> bool:
            assert (process, size) == (2**64 - 1, 72)
            ctypes.cast(counters, ctypes.POINTER(ctypes.c_size_t))[1] = peak  # behind two numbers of 32 bits
            return answers

        self.GetCurrentProcess = self.Function(does=lambda: 2**64 - 1)
        self.K32GetProcessMemoryInfo = self.Function(does=tell)


def test_peak_memory_is_asked_for_in_windows_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel32(3 << 30), raising=False)
    assert peak_memory_mib(torch.device("cpu")) == 3 * 1024
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel32(0, answers=False), raising=False)
    with pytest.raises(OSError, match="does not report"):
        peak_memory_mib(torch.device("cpu"))


def test_the_cache_is_where_windows_keeps_those(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IID_CACHE")
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert files.cache_dir() == tmp_path / "iidlib" / "Cache"
    monkeypatch.delenv("LOCALAPPDATA")
    assert files.cache_dir() == Path.home() / "AppData" / "Local" / "iidlib" / "Cache"


def test_a_folder_of_images_may_lie_on_a_drive() -> None:
    options = parse_folder(r"folder:C:\Users\me\images?size=64&test=0.3")
    assert PureWindowsPath(options.path) == PureWindowsPath("C:/Users/me/images")
    assert (options.size, options.test) == (64, 0.3)


@pytest.mark.parametrize("module", MODULES)
def test_text_has_the_same_encoding_everywhere(module: str) -> None:
    """Without one it is that of the system, which on Windows is not UTF-8."""
    path = PACKAGE.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if name not in ("open", "read_text", "write_text") or owner in ("Image", "os", "tarfile", "archive"):
            continue
        texts = {node.value for node in ast.walk(call) if isinstance(node, ast.Constant)}
        stated = any(keyword.arg == "encoding" for keyword in call.keywords) or "utf-8" in texts
        assert stated or (name == "open" and texts & {"ab", "rb", "wb", "w+b"}), ast.unparse(call)
