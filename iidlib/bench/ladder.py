"""Gain of each acceleration of the forward pass of real images, switched on one after another.

The first rung is the released code's way, one class at a time; the last rungs are the library's.
"""

import copy
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from iidlib.bench.baseline import plain_twin
from iidlib.bench.ceilings import seconds_of
from iidlib.bench.timing import LOSS_TOLERANCE, LossesDiffer, relative_difference
from iidlib.engine import compiler_available, in_chunks
from iidlib.engine.device import CPU_CHUNK
from iidlib.networks import Network, prepare, set_backend

__all__ = ["forward_ladder"]


def forward_ladder(network: Network, images: Tensor, *, repeats: int = 3) -> pd.DataFrame:
    """Times the feature maps of a batch without gradient, with one more acceleration per row. Explained in chapter 14.

    Args:
        network: a ConvNet on a CPU; it is not changed.
        images: normalised images, [C, N, K, H, H].
        repeats: number of timed forward passes; the fastest counts.

    Returns:
        One row per rung, with the columns rung, seconds (for all images), gain (over the previous rung) and total (over
        the first). Without a C++ compiler the rungs that need one are left out.

    Raises:
        LossesDiffer: if a rung changes the maps by more than rounding.
    """
    classes, last = images.flatten(0, 1), images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    plain = plain_twin(network)
    moved = copy.deepcopy(plain)
    moved.to(memory_format=torch.channels_last)
    rungs: dict[str, Callable[[], Tensor]] = {
        "a class at a time": lambda: torch.cat([plain.feature_map(one) for one in images]),
        "all classes at once": lambda: plain.feature_map(classes),
        "channels last": lambda: moved.feature_map(last),
        f"chunks of {CPU_CHUNK}": lambda: in_chunks(moved.feature_map, last, CPU_CHUNK),
    }
    if compiler_available():
        fused = copy.deepcopy(network)
        prepare(fused)
        compiled = set_backend(copy.deepcopy(fused), "compiled")
        rungs["norm, ReLU and pool compiled"] = lambda: in_chunks(compiled.feature_map, last, CPU_CHUNK)
        rungs["a block in one kernel"] = lambda: in_chunks(fused.feature_map, last, CPU_CHUNK)
    rows: list[dict[str, object]] = []
    with torch.no_grad():
        expected = rungs["a class at a time"]()
        for name, work in rungs.items():
            difference = relative_difference(work(), expected)  # also compiles, outside the timing
            if not difference <= LOSS_TOLERANCE:
                raise LossesDiffer(f"{name}: the maps differ by {difference:.1e} from those of the first rung")
            seconds = min(seconds_of(work, images.device) for _ in range(repeats))
            first, before = (float(rows[i]["seconds"]) if rows else seconds for i in (0, -1))  # type: ignore[arg-type]
            rows.append({"rung": name, "seconds": seconds, "gain": before / seconds, "total": first / seconds})
    return pd.DataFrame(rows)
