"""Number of CPU cores that a process may use."""

import os

__all__ = ["available_cores"]


def available_cores() -> int:
    """Number of CPU cores that this process may use: a container or a queue may grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
