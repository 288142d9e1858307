"""Settings shared by all tests: no window, no surprise in the user's folders, few threads, skips that give a reason."""

import importlib.util
import logging
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before anything imports matplotlib or torch; the processes that tests start inherit them.
os.environ["MPLBACKEND"] = "Agg"
# Compiled code is kept for all workers and the next session; the library refuses the folder if it is somebody else's.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"iidlib-tests-{getattr(os, 'getuid', int)()}"
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many worker processes as cores: more threads in each only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A script's background job starts with SIGINT ignored, which its processes would inherit; tests send that signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

try:
    import hypothesis
except ModuleNotFoundError:  # tests of a GPU do without, on machines that are rented by the minute
    hypothesis = None

if TYPE_CHECKING:
    from iidlib.data import Dataset
    from tests.command_line import Run

Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).mkdir(mode=0o700, exist_ok=True)

# torch's first call is slow, and so is a machine that builds a book meanwhile.
if hypothesis is not None:
    hypothesis.settings.register_profile("iidlib", deadline=None, max_examples=25, derandomize=True)
    hypothesis.settings.load_profile("iidlib")


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pools that tests train go to a folder of their own: none is there from before, and the user's stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def interrupted_evaluations_of_this_test(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Where evaluations in this process keep finished networks: no test resumes another one's."""
    from iidlib.evaluation import interrupted

    cache = tmp_path_factory.getbasetemp() / f"interrupted-{uuid.uuid4().hex}"
    monkeypatch.setattr(interrupted, "cache_dir", lambda: cache)
    return cache / "evaluations"


@pytest.fixture(autouse=True)
def full_precision_on_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked ``gpu`` compare with full float32; torch's default would round the factors of convolutions."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    from iidlib.engine import precision

    with precision(torch.device("cuda"), "fp32"):
        yield


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest) -> "Dataset":
    """The module's dataset: `tiny_dataset` of its ``PICTURES``, else of 4 classes of 40 images."""
    from tests.factories import tiny_dataset

    return tiny_dataset(**getattr(request.module, "PICTURES", {"per_class": 40}))


@pytest.fixture
def handlers_as_before() -> Iterator[None]:
    """The command line sets handlers for the process that it takes this to be."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("iidlib").level
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logging.getLogger("iidlib").setLevel(level)


@pytest.fixture
def iid(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    handlers_as_before: None,
) -> "Run":
    """Runs a command line in this process, in an empty folder."""
    from iidlib import cli
    from tests.command_line import Ended

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(part) for part in arguments])
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    return run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the long tests unless ``-m`` names them, and skips what this machine cannot run, with the reason."""
    if "long" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("realdata") and not _has_whole_data():
            item.add_marker(pytest.mark.skip(reason="no whole CIFAR-10 under IID_DATA"))


def _has_whole_data() -> bool:
    from iidlib.data.registry import SOURCES

    return SOURCES["cifar10"].find() is not None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the long tests counted: kills survived, inputs tried."""
    counted = [report for report in terminalreporter.getreports("passed") if report.user_properties]
    if counted:
        terminalreporter.section("counts")
    for report in counted:
        for name, counts in report.user_properties:
            reported = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            terminalreporter.line(f"{report.nodeid.split('::')[-1]}: {name}: {reported}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; without one the tests are skipped, or fail where IID_REQUIRE_BROWSER is set."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = []
    if chromium is None:
        missing.append("no chromium on the PATH (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        missing.append("no package playwright (pip install -e '.[dev]')")
    if missing and os.environ.get("IID_REQUIRE_BROWSER") == "1":
        pytest.fail(f"IID_REQUIRE_BROWSER=1, but {' and '.join(missing)}", pytrace=False)
    if missing:
        pytest.skip(" and ".join(missing))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # nothing but this machine has an address: what a page asks for elsewhere fails, as it would offline
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()
