"""Settings shared by all tests: no window, no surprise in the user's folders, few threads, skips that give a reason."""

import os
from collections.abc import Iterator

import pytest

# Before anything imports matplotlib or torch; the processes that tests start inherit them.
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many worker processes as cores: more threads in each only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import torch

# torch's first call is slow, and so is a machine that builds a book meanwhile.
hypothesis.settings.register_profile("iidlib", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("iidlib")


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pools that tests train go to a folder of their own: none is there from before, and the user's stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, and says why."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("realdata") and not _has_whole_data():
            item.add_marker(pytest.mark.skip(reason="no whole CIFAR-10 under IID_DATA"))


def _has_whole_data() -> bool:
    from iidlib.sources import SOURCES

    return SOURCES["cifar10"].find() is not None
