"""Batches of independent points on many processes or machines, scheduled by Dask. One run is not affected by it."""

from iidlib.scale.batch import Batch, run_batch
from iidlib.scale.cluster import Workers, connected, job_script
from iidlib.scale.jobs import run_commands, run_jobs_on
from iidlib.scale.sweep import run_sweep, sweep_status
from iidlib.scale.task import Ended, Task

__all__ = [
    "Batch", "Ended", "Task", "Workers", "connected", "job_script", "run_batch", "run_commands", "run_jobs_on",
    "run_sweep", "sweep_status",
]  # fmt: skip
