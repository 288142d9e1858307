"""A batch of tasks on Dask workers: each is tried again if it fails, and stops no other."""

import contextlib
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from iidlib.errors import SchedulerLost, first_line
from iidlib.scale.cluster import SLOT
from iidlib.scale.task import Ended, Task, perform

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Batch", "run_batch"]

logger = logging.getLogger("iidlib")

_REFRESH = 1.0
"""Seconds between two looks at the workers."""

_GONE = "the scheduler has gone"

_WITHOUT = 20.0
"""Seconds without a worker after which the user hears of it."""

_PATIENCE = 60.0
"""Seconds that running tasks have to write their checkpoints when the batch is stopped."""


@dataclass
class Batch:
    """What is known of a batch while it runs."""

    total: int
    """Number of tasks."""
    finished: dict[str, Ended] = field(default_factory=dict)
    """Finished tasks, by name."""
    failed: dict[str, Ended] = field(default_factory=dict)
    """Failed tasks, after all tries."""
    running: dict[str, str] = field(default_factory=dict)
    """Running tasks, with the address of their worker."""
    workers: int = 0
    """Number of workers that have what a task needs."""
    dashboard: str = ""
    """Address of Dask's dashboard."""

    @property
    def seconds_left(self) -> float | None:
        """Expected time until the end, from the tasks that have ended; None before the first."""
        ended = [one.seconds for one in (*self.finished.values(), *self.failed.values())]
        if not ended or not self.workers:
            return None
        left = self.total - len(ended)
        return sum(ended) / len(ended) * left / min(self.workers, max(left, 1))


def run_batch(
    client: "Client",
    tasks: Sequence[Task],
    *,
    needs: Mapping[str, float],
    retries: int = 0,
    until: float = math.inf,
    on_begin: Callable[[Task], None] = lambda task: None,
    on_end: Callable[[Task, Ended], None],
    on_stop: Callable[[Task, Ended], None] = lambda task, ended: None,
    on_look: Callable[[Batch], None] = lambda batch: None,
) -> Batch:
    """Executes tasks, those given first as early as possible.

    Args:
        client: client of the workers.
        tasks: the tasks, with different names.
        needs: resources of Dask that a task needs, see `Workers.needs`.
        retries: how often a task that fails is tried again.
        until: reading of the monotonic clock at which running tasks are asked to stop, and no other is begun.
        on_begin: called with each task before it is given to a worker, at every try.
        on_end: called with each task that has finished, or failed in its last try, at once.
        on_stop: called with each task that was stopped with the batch, whose files may be of use to the next.
        on_look: called about once per second.

    Returns:
        What has become of the tasks; those in neither `finished` nor `failed` were stopped, or never begun.

    Raises:
        SchedulerLost: if the scheduler has gone; tasks that have ended were passed to `on_end`.
        KeyboardInterrupt: if interrupted, after running tasks have stopped.
    """
    running = _Running(client, tasks, retries, needs, on_end, on_stop)
    try:
        while running.tasks and time.monotonic() < until:
            running.submit(on_begin)
            running.look(on_look)
        running.stop(on_look)
    except KeyboardInterrupt:
        with contextlib.suppress(SchedulerLost):  # then there is nobody to ask
            running.stop(on_look)
        raise
    finally:
        running.close()
    return running.batch


class _Running:
    """The tasks of a batch that have not ended, and the futures of those that were given to Dask."""

    def __init__(
        self,
        client: "Client",
        tasks: Sequence[Task],
        retries: int,
        needs: Mapping[str, float],
        on_end: Callable[[Task, Ended], None],
        on_stop: Callable[[Task, Ended], None],
    ) -> None:
        from distributed import Event, as_completed

        self.tasks = {task.name: task for task in tasks}
        self.batch = Batch(len(tasks), dashboard=str(client.dashboard_link or ""))
        self._client, self._needs, self._on_end, self._on_stop = client, dict(needs), on_end, on_stop
        self._tries = dict.fromkeys(self.tasks, 1 + retries)
        self._futures: dict[Future, Task] = {}
        self._waiting: Any = as_completed()
        self._alone_since = time.monotonic()
        self._stop = Event(f"iidlib-{token_hex(8)}", client)

    def submit(self, on_begin: Callable[[Task], None]) -> None:
        """Gives Dask the next tasks, not more than it has workers for: others would wait for a worker each."""
        given = {task.name for task in self._futures.values()}
        alone = {task.alone for task in self._futures.values()}
        for task in self.tasks.values():
            if len(self._futures) >= self.batch.workers:
                return
            if task.name in given or (task.alone and task.alone in alone):
                continue
            alone.add(task.alone)
            on_begin(task)
            future = self._client.submit(_on_worker, task, self._stop.name, pure=False, resources=self._needs)
            self._futures[future] = task
            self._waiting.add(future)

    def look(self, on_look: Callable[[Batch], None]) -> None:
        """Handles tasks that have ended, for about a second."""
        try:
            known = self._client.scheduler_info(n_workers=-1)["workers"].values()
            processing = self._client.processing()
        except (OSError, CancelledError) as error:
            raise SchedulerLost(_GONE) from error
        self.batch.workers = sum(
            all(worker["resources"].get(name, 0) >= needed for name, needed in self._needs.items()) for worker in known
        )
        names = {str(future.key): task.name for future, task in self._futures.items()}
        self.batch.running = {
            names[key]: address for address, keys in processing.items() for key in keys if key in names
        }
        if self.batch.workers:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > _WITHOUT:
            needed = ", ".join(f"{name}={value:g}" for name, value in self._needs.items() if name != SLOT)
            offering = f" that offers {needed}" if needed else ""
            logger.warning("waiting for a worker%s; %d others are there", offering, len(known))
            self._alone_since = math.inf  # said once
        on_look(self.batch)
        until = time.monotonic() + _REFRESH
        while time.monotonic() < until:
            if self._waiting.has_ready():
                ended = list(self._waiting.next_batch(block=False))
                for future in sorted(ended, key=lambda one: one.status == "cancelled"):  # what has a result first
                    self._end(future)
                on_look(self.batch)
                return
            time.sleep(0.05)

    def _end(self, future: "Future") -> None:
        from distributed.client import FutureCancelledError

        task = self._futures.pop(future)
        try:
            error = future.exception() if future.status == "error" else None
            if future.status == "cancelled" or isinstance(error, FutureCancelledError):
                raise SchedulerLost(_GONE)
            ended = future.result() if error is None else Ended(0.0, "", error=_text(error))
        except (OSError, CancelledError) as lost:
            raise SchedulerLost(_GONE) from lost
        if ended.too_large:
            logger.warning("%s: %s stayed with the worker, too large to be sent", task.name, ", ".join(ended.too_large))
        future.release()  # a worker that dies later must not make it necessary again
        if ended.stopped:
            self._on_stop(task, ended)
            return
        self._tries[task.name] -= 1
        if ended.error and not ended.timed_out and self._tries[task.name] > 0:
            return  # to be submitted again
        del self.tasks[task.name]
        (self.batch.failed if ended.error else self.batch.finished)[task.name] = ended
        self._on_end(task, ended)

    def stop(self, on_look: Callable[[Batch], None]) -> None:
        """Asks running tasks to stop, and waits until they have."""
        if not self._futures:
            return
        try:
            self._stop.set()
        except (OSError, CancelledError) as error:
            raise SchedulerLost(_GONE) from error
        until = time.monotonic() + _PATIENCE
        while self._futures and time.monotonic() < until:
            self.look(on_look)

    def close(self) -> None:
        """Lets go of what is left."""
        with contextlib.suppress(Exception):  # the scheduler may have gone
            self._client.cancel(list(self._futures), force=True)


def _text(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if isinstance(error, Exception) else str(error)


def _on_worker(task: Task, event: str) -> Ended:
    """Executes a task in a worker."""
    from distributed import Event, get_client, get_worker

    worker, stop = get_worker(), Event(event, get_client())
    key, asked = worker.get_current_task(), [-math.inf, False]

    def stopping() -> bool:
        known = worker.state.tasks.get(key)
        if known is None or known.state in ("cancelled", "released", "forgotten"):
            return True  # the user's process has gone
        if time.monotonic() - asked[0] > _REFRESH:  # not more often, since the scheduler answers
            with contextlib.suppress(Exception):  # without a scheduler the worker itself ends
                asked[:] = [time.monotonic(), stop.is_set()]
        return bool(asked[1])

    try:
        return perform(task, worker.state.nthreads, stopping)
    except Exception as error:  # of this machine, such as a full disk; not every one could travel
        return Ended(0.0, platform.node(), error=_text(error))
