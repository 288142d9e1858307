"""Loaded by the workers of this machine: Ctrl-C, which terminals send to them too, is handled by who started them."""

import signal

__all__ = ["dask_setup"]


def dask_setup(worker: object) -> None:
    """Called by Dask when the worker starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
