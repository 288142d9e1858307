"""Which device, how many threads, which precision, how much memory, how many images at once."""

import contextlib
import ctypes
import pathlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from iidlib.engine import kernels
from iidlib.errors import InputError

__all__ = [
    "CPU_CHUNK",
    "default_chunk",
    "default_together",
    "device_kind",
    "device_name",
    "half_maps",
    "in_chunks",
    "kernels_in_use",
    "peak_memory_mib",
    "pick_device",
    "precision",
    "reset_peak_memory",
    "threads",
]

CPU_CHUNK = 32
"""Images a chunk on a CPU: small enough that a layer's activations stay in the cache."""


def pick_device(name: str = "auto") -> torch.device:
    """The device that a name asks for.

    Args:
        name: ``auto`` (CUDA if present, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        InputError: for a name that is not a device, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device {name!r} is not known; choose auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise InputError(f"device {name!r} asked for, but torch sees {found} CUDA device(s) here; try --device cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(f"device {name!r} asked for, but torch sees no Apple GPU here; try --device cpu")
    elif device.type != "cpu":
        raise InputError(f"device {name!r} is not supported; choose auto, cpu, cuda, cuda:N or mps")
    return device


def device_name(device: torch.device) -> str:
    """What the device is called, for the record beside a number."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return device.type


def device_kind(device: torch.device) -> str:
    """What of a device decides how numbers are rounded: a CPU's vector instructions, a GPU's name."""
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device_name(device)


def kernels_in_use(device: torch.device, compile: str) -> bool:
    """Whether blocks go through compiled kernels with this setting, on this machine.

    Builds the kernels where that has not been done yet.
    """
    return device.type == "cpu" and compile != "off" and kernels.library() is not None


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Computes a block with a number of CPU threads, and restores it afterwards; None leaves it alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: of the device's allocator on CUDA, of this process (resident set) elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return _windows_peak_bytes() / 2**20
    import resource  # which Windows does not have

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
    """Peak resident set of this process in bytes, as Windows counts it."""
    kernel32 = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009, as other systems' ctypes lacks it
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    ask = kernel32.K32GetProcessMemoryInfo
    ask.argtypes = (ctypes.c_void_p, ctypes.POINTER(_MemoryCounters), ctypes.c_uint32)
    counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
    if not ask(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        raise OSError("Windows does not tell the memory of this process")
    return int(counters.PeakWorkingSetSize)


def reset_peak_memory(device: torch.device) -> None:
    """Lets `peak_memory_mib` count from here, where the system can: on CUDA and, for the process, on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextlib.contextmanager
def precision(device: torch.device, name: str) -> Iterator[None]:
    """Runs a block with a precision of float32 matrix products on CUDA, and restores the setting afterwards.

    Args:
        device: where the block computes; anything but CUDA always computes in full float32.
        name: ``"fp32"``; or ``"tf32"``, which rounds the factors to 10 bits, and which ``"bf16"`` takes here too.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def half_maps(device: torch.device, name: str) -> contextlib.AbstractContextManager[object]:
    """A block in which networks keep their maps in bfloat16, where the precision is ``"bf16"`` and the device CUDA.

    Norms compute in float32 inside; what is computed from the features belongs outside.
    """
    if name != "bf16" or device.type != "cuda":
        return contextlib.nullcontext()
    # without the cache of cast weights, which a recorded step must not read
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


def default_chunk(device: torch.device, image_bytes: int = 0) -> int:
    """Images a chunk where none is asked for.

    Args:
        device: where the images go through a network.
        image_bytes: what an image's maps take there at their largest, 0 if unknown.

    Returns:
        CPU_CHUNK on a CPU; on CUDA as many as fit into half of the memory that is free now, rounded down to a power of
        two so that runs on like machines agree, and 0 (all at once) where `image_bytes` is unknown; 0 elsewhere.
    """
    if device.type == "cpu":
        return CPU_CHUNK
    if device.type != "cuda" or image_bytes <= 0:
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return 1 << max(0, (free // 2 // image_bytes).bit_length() - 1)


def default_together(device: torch.device) -> int:
    """Networks trained at once where no number is asked for.

    Args:
        device: where they are trained.

    Returns:
        1 on a CPU, where a network by itself uses all cores; 20 on CUDA; 1 elsewhere.
    """
    return 20 if device.type == "cuda" else 1


def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Applies a function to chunks of a batch and joins the results; the same values as one call, in less memory.

    The chunks are as equal as they can be, so that a compiled kernel meets at most two batch sizes.

    Args:
        function: maps [b, ...] to [b, ...], each row by itself (no batch norm in training mode).
        images: [B, ...].
        size: the most rows a chunk, 0 for all at once.
    """
    count = 1 if size <= 0 else -(-len(images) // size)
    if count <= 1:
        return function(images)
    return torch.cat([function(chunk) for chunk in images.tensor_split(count)])
