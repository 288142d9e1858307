"""All process-wide settings, in one function: `configure`."""

import contextlib
import ctypes
import functools
import logging

from iidlib.engine.fused import set_torch

__all__ = ["configure"]


def configure(*, compiled: bool = True) -> None:
    """Applies the process-wide settings of this library; only the first call has an effect.

    Importing the library changes nothing. The commands call this function when they load their data, `distill` when it
    starts, and `networks.prepare` for code that builds networks without either (evaluation, pools, chapters). Results
    do not depend on it, only speed and log output. It changes:

    - **glibc's allocator** (``mallopt``; nothing elsewhere): freed blocks of up to 32 MiB stay with the process for its
      next allocation. By default activations are returned to the system after each layer and come back as pages of
      zeros, which takes a third of the time of a forward pass. The process may hold up to 1 GiB of unused memory.
    - **torch.compile**: ``torch._dynamo.config.force_parameter_static_shapes`` and
      ``torch._functorch.config.donated_buffer`` are False. Parameters no longer count as static, and no compiled
      function reuses a buffer of its forward pass in its backward pass; your own compiled functions may notice that.
      The compiled kernel of this library requires both, so calling it sets them if necessary. With a CUDA device,
      ``torch._inductor.config.deterministic`` is True: kernels are not chosen by timing where the choice affects bits.
    - **torch's logger** ``torch.utils.cpp_extension``: errors only. It warns about CUDA headers without a GPU, which do
      not matter for a CPU kernel.

    Args:
        compiled: whether kernels may be compiled. If not, torch's compiler is not imported and its folder is not set.
    """
    _keep_freed_memory()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if compiled:
        _set_torch_once()


_set_torch_once = functools.cache(set_torch)


@functools.cache
def _keep_freed_memory() -> None:
    # fails with another C library, or one that ctypes cannot open
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
