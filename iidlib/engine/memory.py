"""Available and required memory, compared so that what cannot fit is refused before any work."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from iidlib.errors import InputError

__all__ = ["available_bytes", "check_fits", "total_bytes"]


def available_bytes(device: torch.device) -> int | None:
    """Available memory of a device in bytes; None if the system does not report it.

    On CUDA: the driver's free memory plus torch's cached blocks. Elsewhere: Linux's available memory plus swap, at most
    the limit of the control group; on other systems all memory of the machine.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        kibibytes = {name: int(value) for name, value, *_ in lines}
        available = 1024 * (kibibytes["MemAvailable:"] + kibibytes["SwapFree:"])
    except (OSError, ValueError, KeyError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    try:
        return min(available, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such group, or "max"
        return available


def total_bytes(device: torch.device) -> int | None:
    """Memory of a GPU in bytes, whatever else runs on it; None for other devices.

    What is derived from it, unlike what is derived from free memory, is the same in every run.
    """
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def check_fits(needs: Mapping[str, int], device: torch.device) -> None:
    """Checks that there is enough memory.

    Args:
        needs: required bytes, as a lower bound, by purpose; each name includes the setting to lower.
        device: device of the memory.

    Raises:
        InputError: if there is too little memory; the message names the largest need.
    """
    free, total = available_bytes(device), sum(needs.values())
    if free is not None and total > free:
        largest = max(needs, key=lambda what: needs[what])
        raise InputError(
            f"this needs at least {_size(total)} of memory, but {device.type} has {_size(free)} available; "
            f"most of it is for {largest}"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count < 2**50 else f"{count / 2**30:.1e} GiB"
