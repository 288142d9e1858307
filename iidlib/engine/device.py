"""Devices, threads, precision, memory and chunk sizes."""

import contextlib
import ctypes
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from iidlib.engine import kernels, triton_augment, triton_launch, triton_norm
from iidlib.engine.memory import total_bytes
from iidlib.errors import InputError

__all__ = [
    "CPU_CHUNK",
    "default_chunk",
    "default_together",
    "deterministic",
    "device_kind",
    "device_name",
    "half_maps",
    "in_chunks",
    "kernels_in_use",
    "peak_memory_mib",
    "pick_device",
    "precision",
    "precision_in_use",
    "reset_peak_memory",
    "tf32_allowed",
    "threads",
]

CPU_CHUNK = 32
"""Images per chunk on a CPU, few enough that a layer's activations stay in the cache."""


def pick_device(name: str = "auto") -> torch.device:
    """The device with a given name.

    Args:
        name: ``auto`` (CUDA if present, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Under torchrun
            ``cuda`` is the GPU of this process.

    Raises:
        InputError: if the name is not a supported device, or this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return torch.device(name)
    if name == "cuda" and "TORCHELASTIC_RUN_ID" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # of this process
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device {name!r} is not known; choose auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(f"device {name!r} requested, but torch sees {count} CUDA device(s) here; try --device cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(f"device {name!r} requested, but torch sees no Apple GPU here; try --device cpu")
    elif device.type != "cpu":
        raise InputError(f"device {name!r} is not supported; choose auto, cpu, cuda, cuda:N or mps")
    return device


def device_name(device: torch.device) -> str:
    """Name of the device, to be recorded with results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return device.type


def device_kind(device: torch.device) -> str:
    """The property of a device that determines rounding: a CPU's vector instructions, a GPU's name."""
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device_name(device)


def kernels_in_use(device: torch.device, compile: str) -> bool:
    """Whether blocks, and on CUDA the augmentation, run through compiled kernels on this machine with this setting.

    On a CPU these are the library's own in C++, which are built if necessary. On CUDA they are Triton's, and the answer
    is no as soon as one of them has failed in this process, although the others continue to run.
    """
    if compile == "off":
        return False
    if device.type == "cuda":
        return _triton_works(device) and triton_launch.available()  # one may have failed since
    return device.type == "cpu" and kernels.library() is not None


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device, tried once per process, before anything is labelled with it."""
    return triton_norm.works(device) and triton_augment.works(device)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Sets the number of CPU threads for a block and restores it afterwards; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: what the allocator reserves on CUDA, the resident set of this process elsewhere.

    Of recorded steps, the allocator counts the memory as reserved, and not as allocated.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    if sys.platform == "win32":
        return _windows_peak_bytes() / 2**20
    import resource  # missing on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class _MemoryCounters(ctypes.Structure):
    """``PROCESS_MEMORY_COUNTERS`` of the Windows API."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


def _windows_peak_bytes() -> int:
    """Peak resident set of this process in bytes, as reported by Windows."""
    kernel32 = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009, ctypes has it on Windows only
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    memory_info = kernel32.K32GetProcessMemoryInfo
    memory_info.argtypes = (ctypes.c_void_p, ctypes.POINTER(_MemoryCounters), ctypes.c_uint32)
    counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
    if not memory_info(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        raise OSError("Windows does not report the memory of this process")
    return int(counters.PeakWorkingSetSize)


def reset_peak_memory(device: torch.device) -> None:
    """Resets the peak of `peak_memory_mib` if the system can: on CUDA and, for the process, on Linux."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # after a broken capture, in versions of torch before 2.12
            torch.cuda.empty_cache()  # what is only cached would count
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _has_tf32(device: torch.device) -> bool:
    """Whether a device has settings of precision; replaced by the tests to see them on a CPU."""
    return device.type == "cuda"


def precision_in_use(device: torch.device, name: str) -> str:
    """The precision that ``compute.precision`` has on a device: ``name`` on CUDA, ``"fp32"`` elsewhere."""
    return name if _has_tf32(device) else "fp32"


@contextlib.contextmanager
def precision(device: torch.device, name: str) -> Iterator[None]:
    """Sets the precision of float32 convolutions on CUDA for a block and restores it afterwards.

    Matrix products are computed in full float32 whatever the name. Nearly all operations of a network are convolutions,
    and what is computed from its features, such as covariances, must not be rounded further. Torch reads the setting
    when an operation runs, so a backward pass belongs inside the block, too, where the convolutions' gradients are
    rounded and those of matrix products are not.

    Args:
        device: device of the computation; all but CUDA always compute in full float32.
        name: ``"fp32"``, or ``"tf32"``, which rounds the factors to 10 bits; ``"bf16"`` has the same effect here.
    """
    if not _has_tf32(device):
        yield
        return
    with tf32_allowed(products=False, convolutions=name != "fp32"):
        yield


@contextlib.contextmanager
def tf32_allowed(*, products: bool, convolutions: bool) -> Iterator[None]:
    """Sets whether CUDA may round the factors of matrix products and of convolutions, for a block.

    Torch has two generations of these settings, and the first cannot be read where a program has used the second. Both
    are restored; a setting that was inherited is then one of its own.

    Args:
        products: for matrix products.
        convolutions: for convolutions and recurrent layers.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    backends: tuple[Any, ...] = matmul, cudnn
    parts: tuple[Any, ...] = matmul, cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]
    before, names = [_allowed(backend) for backend in backends], [part.fp32_precision for part in parts]
    for backend, allowed in zip(backends, (products, convolutions), strict=True):
        backend.allow_tf32 = allowed
    for part, allowed in zip(parts, (products, convolutions, convolutions), strict=True):
        part.fp32_precision = "tf32" if allowed else "ieee"  # the former leaves what a program has set for all
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            if was is not None:
                backend.allow_tf32 = was
        for part, name in zip(parts, names, strict=True):
            part.fp32_precision = name


def _allowed(backend: Any) -> bool | None:
    """The setting ``allow_tf32`` of a backend; None where a program has used the newer one."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Lets cuDNN use only algorithms that give the same bits each time, for a block, and restores its settings.

    By default cuDNN may choose gradients of convolutions that are summed in no fixed order, and with
    ``torch.backends.cudnn.benchmark`` a stopwatch chooses the algorithms, so that the choice can change from run to
    run. Together with `iidlib.resampling` this makes a step on one model of GPU, with one version of the software, a
    function of the seed. All other differentiable operations that the library uses on a GPU already have a fixed order.

    ``torch.use_deterministic_algorithms`` is not used: it also refuses operations whose order does not matter as this
    library calls them (such as index_select with a permutation), and fills uninitialised memory.

    Args:
        device: device of the computation; nothing changes except on CUDA.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def half_maps(device: torch.device, name: str) -> contextlib.AbstractContextManager[object]:
    """A context in which networks keep their maps in bfloat16, for precision ``"bf16"`` on CUDA; else a null context.

    Norms compute in float32 inside it; computations on the features belong outside.
    """
    if name != "bf16" or device.type != "cuda":
        return contextlib.nullcontext()
    # without the cache of cast weights: a recorded step must not read it
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


def default_chunk(device: torch.device, image_bytes: int = 0) -> int:
    """Default number of images per chunk.

    Args:
        device: device of the network.
        image_bytes: peak size of an image's maps there; 0 if unknown.

    Returns:
        CPU_CHUNK on a CPU. On CUDA, as many as fit into a quarter of the device's total memory, rounded down to a power
        of two, or 0 (all at once) if `image_bytes` is unknown. 0 elsewhere. The chunk affects rounding, so it depends
        on the model of the device, not on the memory that happens to be free.
    """
    if device.type == "cpu":
        return CPU_CHUNK
    total = total_bytes(device) if image_bytes > 0 else None
    if total is None:
        return 0
    return 1 << max(0, (total // 4 // image_bytes).bit_length() - 1)


def default_together(device: torch.device) -> int:
    """Default number of networks trained at once.

    Args:
        device: device of the training.

    Returns:
        1 on a CPU, where a single network uses all cores; 20 on CUDA; 1 elsewhere.
    """
    return 20 if device.type == "cuda" else 1


def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Applies a function to chunks of a batch and concatenates the results; equal to one call, with less memory.

    The chunks are as even as possible, so that a compiled kernel sees at most two batch sizes.

    Args:
        function: maps [b, ...] to [b, ...], each row independently (no batch norm in training mode).
        images: [B, ...].
        size: maximum rows per chunk; 0 for all at once.
    """
    count = 1 if size <= 0 else -(-len(images) // size)
    if count <= 1:
        return function(images)
    return torch.cat([function(chunk) for chunk in images.tensor_split(count)])
