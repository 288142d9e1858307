"""Launches of Triton kernels: where they can run, and what happens if they cannot."""

import contextlib
import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from iidlib.engine import kernels
from iidlib.errors import first_line, shown_cause

__all__ = ["DEVICES", "available", "launch", "power_of_two", "runs_on"]

DEVICES = ("cuda",)
"""Device types on which the kernels run; tests add the CPU, with Triton's interpreter."""

logger = logging.getLogger("iidlib")

_broken: set[str] = set()
"""Kernels of which a launch has failed in this process."""

_PURPOSE = {"forward": "norms", "backward": "norms", "transform": "augmentations"}
"""What each kernel is for, in warnings."""


@functools.cache
def _kernels() -> SimpleNamespace | None:
    """The kernels by name; None without Triton or a private folder for compiled code."""
    if kernels.refusal():  # logged there
        return None
    # Triton's default is a folder in the home directory
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "triton"))
    from iidlib.engine import triton_kernels, triton_transforms

    if triton_kernels.available():
        return SimpleNamespace(
            forward=triton_kernels.forward, backward=triton_kernels.backward, transform=triton_transforms.kernel()
        )
    logger.warning(
        "Triton is not installed; norms and augmentations run as separate operations on the GPU, which is slower"
    )
    return None


def runs_on(x: Tensor) -> bool:
    """Whether the kernels are meant for a tensor's device."""
    return x.device.type in DEVICES


def available(*names: str) -> bool:
    """Whether kernels can be compiled for a GPU, as far as is known; imports Triton.

    Logs one warning if that is impossible.

    Args:
        *names: their names; none for all.
    """
    return not (_broken.intersection(names) if names else _broken) and _kernels() is not None


def launch(
    name: str, x: Tensor, programs: int, arguments: tuple[Any, ...], constants: Mapping[str, Any], *,
    warps: int, contract: bool,
) -> bool:  # fmt: skip
    """Launches one kernel.

    Args:
        name: name of the kernel.
        x: a tensor on the device.
        programs: number of programs.
        arguments: arguments of the kernel.
        constants: its compile-time constants.
        warps: warps per program.
        contract: whether the compiler may contract products and sums, which rounds once instead of twice.

    Returns:
        False, with one warning, if that fails.

    Raises:
        torch.OutOfMemoryError: if memory runs out.
        RuntimeError: if a launch within a capture fails.
    """
    kernel = getattr(_kernels(), name)
    if programs == 0:
        return True
    try:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=contract)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, drivers and launchers have their own: continue whatever fails
        if _is_captured(x):  # and so broken, which the recorder reports; plain operations would fail, too
            raise RuntimeError(str(error)) from error
        if "out of memory" in str(error):  # of the driver, which loads the compiled code
            raise torch.OutOfMemoryError(str(error)) from error
        _broken.add(name)
        logger.warning(
            "a Triton kernel failed (%s); %s now run as separate operations, which is slower", first_line(error),
            _PURPOSE[name], exc_info=shown_cause(error),
        )  # fmt: skip
        return False
    return True


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less than a number."""
    return 1 << (number - 1).bit_length()


def _is_captured(x: Tensor) -> bool:
    """Whether operations on a tensor are being captured in a CUDA graph."""
    if not x.is_cuda:
        return False
    with torch.cuda.device(x.device):
        return torch.cuda.is_current_stream_capturing()
