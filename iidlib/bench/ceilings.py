"""The work of a computation and the limits of the machine: operations and bytes, counted and timed.

The counters run a function once and add up its work. The ceilings are the machine's best rates, measured on a large
matrix product and a large copy. Work divided by ceiling is a floor: the same arithmetic cannot take less time.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from iidlib.engine.device import tf32_allowed

__all__ = [
    "copy_rate", "count_bytes", "count_flops", "device_seconds_of", "matrix_product_rate", "seconds_of", "wait",
]  # fmt: skip

_CYCLES = 2e9
"""Cycles that a GPU makes in a second at most, for waits of at least a given time."""


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in a call, including backward passes.

    A multiply-add counts as two. Norms, activations, pooling and augmentation are not counted.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write; views count zero."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        stores = {x.untyped_storage().data_ptr() for x in read}
        if func._schema.is_mutable or any(x.untyped_storage().data_ptr() not in stores for x in written):
            self.total += sum(x.nbytes for x in (*read, *written))
        return out


def count_bytes(function: Callable[[], object]) -> int:
    """Bytes that the operations of a call read and write, each tensor once per operation, including backward passes.

    This is the memory traffic of an eager program if no cache holds a tensor from one operation to the next. A fused
    kernel counts as one operation; a compiled kernel is not counted at all.
    """
    with _Traffic() as traffic:
        function()
    return traffic.total


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, including the work that it queues on a GPU."""
    wait(device)
    started = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - started


def device_seconds_of(function: Callable[[], object], device: torch.device, *, host_seconds: float) -> float | None:
    """Seconds that a GPU is busy with one call, without the time that the host takes to launch its kernels.

    The device is kept waiting while the host queues the call. If the call waits for the device itself, or launches more
    kernels than the driver queues (about a thousand), the result contains a part of the host's time.

    Args:
        function: the call.
        device: the device; None is returned for all but CUDA.
        host_seconds: seconds that the call takes, including the host's time.
    """
    if device.type != "cuda":
        return None
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        torch.cuda._sleep(int(2 * min(host_seconds, 5.0) * _CYCLES))
        start.record()
        function()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1000


def wait(device: torch.device) -> None:
    """Waits until the device has done all work that was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_product_rate(device: torch.device, name: str = "fp32", *, size: int = 0, repeats: int = 10) -> float:
    """Peak rate of a large square matrix product of random numbers, in GFLOP/s.

    The numbers matter: on equal ones a GPU switches fewer transistors, and its clock stays higher than in real work.

    Args:
        device: the device to measure.
        name: precision, as in ``compute.precision``: that of the convolutions, for which this is the ceiling.
        size: rows and columns; 0 for 2048 on a CPU and 8192 elsewhere.
        repeats: number of products; the fastest counts.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    kind = torch.bfloat16 if name == "bf16" else torch.float32
    draws = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, device=device, dtype=kind, generator=draws).unbind()
    out = torch.empty_like(a)
    with _products_in(device, name):
        best = min(seconds_of(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats + 1))
    return 2 * size**3 / best / 1e9


@contextlib.contextmanager
def _products_in(device: torch.device, name: str) -> Iterator[None]:
    """Sets the precision of matrix products on CUDA for a block; `engine.precision` keeps them in float32."""
    if device.type != "cuda":
        yield
        return
    with tf32_allowed(products=name != "fp32", convolutions=False):
        yield


def copy_rate(device: torch.device, *, megabytes: int = 0, repeats: int = 5) -> float:
    """Memory bandwidth of a copy that exceeds all caches, reading plus writing, in GB/s (1e9 bytes).

    Args:
        device: the device to measure.
        megabytes: size of the copied tensor, in 1e6 bytes; 0 for 256 on a CPU and 1024 elsewhere.
        repeats: number of copies; the fastest counts.
    """
    count = (megabytes or (256 if device.type == "cpu" else 1024)) * 250_000
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    best = min(seconds_of(lambda: target.copy_(source), device) for _ in range(repeats + 1))
    return 2 * source.nbytes / best / 1e9
