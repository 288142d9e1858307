"""Hardware-specific code. Readers interested in the method may skip it: it affects speed, not results."""

from iidlib.engine.buffers import Fields, LoadedAhead, Packed
from iidlib.engine.cuda_graph import Recording, can_record, graphs, recorded, warn_no_graph
from iidlib.engine.device import (
    default_chunk, default_together, deterministic, device_kind, device_name, half_maps, in_chunks, kernels_in_use,
    peak_memory_mib, pick_device, precision, precision_in_use, reset_peak_memory, threads,
)  # fmt: skip
from iidlib.engine.fused import compiler_available, norm_relu, norm_relu_pool
from iidlib.engine.kernels import FusedBlock
from iidlib.engine.memory import available_bytes, check_fits, total_bytes
from iidlib.engine.process import configure

__all__ = [
    "Fields", "FusedBlock", "LoadedAhead", "Packed", "Recording", "available_bytes", "can_record", "check_fits",
    "compiler_available", "configure", "default_chunk", "default_together", "deterministic", "device_kind",
    "device_name", "graphs", "half_maps", "in_chunks", "kernels_in_use", "norm_relu", "norm_relu_pool",
    "peak_memory_mib", "pick_device", "precision", "precision_in_use", "recorded",
    "reset_peak_memory", "threads", "total_bytes", "warn_no_graph",
]  # fmt: skip
