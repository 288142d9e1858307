"""Connection to Dask workers: processes on this machine, a scheduler that runs, or jobs of a cluster's queue."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from iidlib.cores import available_cores
from iidlib.errors import InputError, first_line, suggest
from iidlib.files import load_yaml
from iidlib.runs.environment import versions

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Workers", "connected", "job_script", "probed"]

SLOT = "iidlib-task"
"""Dask resource of which every worker has one: it executes one task at a time, whatever its number of threads."""

QUEUES = {
    "htcondor": "HTCondorCluster", "lsf": "LSFCluster", "oar": "OARCluster", "pbs": "PBSCluster", "sge": "SGECluster",
    "slurm": "SLURMCluster",
}  # fmt: skip
"""Classes of dask-jobqueue by the name in a cluster's file."""

_WAIT = 60.0
"""Seconds that a scheduler has to answer."""


@dataclass(frozen=True)
class Workers:
    """Where tasks are executed; at most one of the last three is given."""

    count: int = 1
    """Number of workers on this machine, or of jobs in a queue."""
    scheduler: str = ""
    """Address of a scheduler that runs, such as ``tcp://10.0.0.1:8786``."""
    scheduler_file: Path | None = None
    """File that names it, which ``dask scheduler --scheduler-file`` has written."""
    cluster: Path | None = None
    """YAML file that describes the jobs of a queue."""
    gpus: float = 0
    """GPUs that a task needs, of those that a worker offers as its resource ``GPU``."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: if there are no workers, there are two places for them, or they have no GPUs.
        """
        if self.count < 1:
            raise InputError(f"workers must be at least 1, got {self.count}")
        if self.gpus < 0:
            raise InputError(f"gpus must be 0 or more, got {self.gpus}")
        given = [name for name in ("scheduler", "scheduler_file", "cluster") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"give only one of --{given[0].replace('_', '-')} and --{given[1].replace('_', '-')}")
        if self.gpus and not given:
            raise InputError(
                "--gpus is for workers that offer GPUs, and those started here offer none: start a scheduler, and a "
                "worker for each GPU (CUDA_VISIBLE_DEVICES=0 dask worker ADDRESS --nthreads 1 --resources GPU=1), and "
                "give --scheduler ADDRESS"
            )

    @property
    def needs(self) -> dict[str, float]:
        """Resources of Dask that a task needs."""
        return {SLOT: 1.0} | ({"GPU": self.gpus} if self.gpus else {})


@contextlib.contextmanager
def connected(workers: Workers) -> "Iterator[Client]":
    """A client of the workers, which are started for the block if they are not there yet.

    Raises:
        InputError: without Dask, if no scheduler answers, a cluster's file is wrong, or workers have another version.
    """
    try:
        import dask
        from distributed import Client
    except ImportError:
        raise InputError("batches need Dask; install it with: pip install 'iidlib[book]'") from None
    for name in logging.root.manager.loggerDict:  # what fails is reported by the batch
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as held:
        held.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GiB"}))
        try:
            if workers.scheduler or workers.scheduler_file:
                client = held.enter_context(Client(workers.scheduler or _address(workers), timeout=_WAIT))
            else:
                cluster = held.enter_context(_cluster(workers))
                client = held.enter_context(Client(cluster, timeout=_WAIT))
        except (OSError, TimeoutError, ValueError) as error:
            place = workers.scheduler or workers.scheduler_file or "this machine"
            raise InputError(f"no scheduler answers at {place}: {first_line(error)}") from None
        _check_versions(client)
        client.register_plugin(_plugin(_versions()), name=SLOT)
        yield client


def _address(workers: Workers) -> str:
    """The address in the file of a scheduler, waiting for the file; Dask itself would wait for it without end."""
    assert workers.scheduler_file is not None
    until = time.monotonic() + _WAIT
    while True:
        try:
            return str(json.loads(workers.scheduler_file.read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if time.monotonic() > until:
                raise ValueError(f"it does not name one ({first_line(error)})") from None
        time.sleep(0.1)


def _cluster(workers: Workers) -> Any:
    """Workers that are started now."""
    if workers.cluster is not None:
        cluster = _queue(workers.cluster)
        cluster.adapt(minimum_jobs=workers.count, maximum_jobs=workers.count)  # a job that has ended is replaced
        return cluster
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers.count,
        threads_per_worker=_threads(workers.count),
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,  # what fails is reported by the batch
        preload=["iidlib.scale.uninterrupted"],
        memory_limit=0,  # a task is a process of its own, whose memory Dask does not see
    )


@contextlib.contextmanager
def probed(client: "Client", folder: Path) -> Iterator[list[bool]]:
    """Whether each worker that is there sees a folder of this machine, tested by a file in it that none else has.

    Workers that join later are not among them, so the list may be empty.
    """
    probe = folder / f".iidlib-probe-{token_hex(8)}"
    probe.touch()
    try:
        yield [*client.run(_is_file, str(probe)).values()]
    finally:
        probe.unlink(missing_ok=True)


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _threads(workers: int) -> int:
    """Number of threads of each worker on this machine: ``OMP_NUM_THREADS``, else its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else max(1, available_cores() // workers)


def job_script(path: Path) -> str:
    """The script that `connected` gives to a queue for each worker.

    Args:
        path: YAML file with the name of the ``queue``, and the options of dask-jobqueue for it.

    Raises:
        InputError: without dask-jobqueue, or if the file is wrong.
    """
    with _queue(path) as cluster:
        return str(cluster.job_script())


def _queue(path: Path) -> Any:
    """The queue that a file describes, without jobs."""
    try:
        import dask_jobqueue
    except ImportError:
        raise InputError("--cluster needs dask-jobqueue; install it with: pip install 'iidlib[cluster]'") from None
    try:
        described = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the cluster {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"the cluster {path} is not YAML: {error}") from None
    if not isinstance(described, dict) or described.get("queue") not in QUEUES:
        given = described.get("queue") if isinstance(described, dict) else described
        raise InputError(
            f"the cluster {path} must name its queue, one of {', '.join(QUEUES)}, got {given!r}"
            f"{suggest(str(given), QUEUES)}"
        )
    options = {key: value for key, value in described.items() if key != "queue"}
    try:
        cluster = getattr(dask_jobqueue, QUEUES[described["queue"]])(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"the cluster {path}: {first_line(error)}") from None
    return cluster


def _versions() -> dict[str, str]:
    """What must be the same here and in the workers; a build of torch for other hardware is no other version."""
    return {name: version.partition("+")[0] for name, version in versions().items()}


def _plugin(expected: dict[str, str]) -> Any:
    """Gives a slot to each worker, also to those that join later, if it has the expected versions."""
    from distributed import Worker, WorkerPlugin

    class Slot(WorkerPlugin):
        async def setup(self, worker: Worker) -> None:
            if _versions() == expected:
                await worker.set_resources(**{SLOT: 1})

    return Slot()


def _check_versions(client: "Client") -> None:
    """Refuses workers with another version of the library."""
    own = _versions()
    try:
        found = client.run(_versions)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"a worker does not have this version of iidlib ({first_line(error)}); install it where the workers run"
        ) from None
    for address, facts in found.items():
        for name, value in own.items():
            if facts[name] != value:
                raise InputError(
                    f"the worker at {address} has another {name}: {facts[name]}, here {value}; install the same on all "
                    "machines"
                )
