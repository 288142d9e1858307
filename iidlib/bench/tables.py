"""Report of a measurement of speed: its rows, and the tables and notes that explain them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib.bench.timing import COLUMNS, Timing
from iidlib.distillation import METHODS
from iidlib.experiments.tables import append_rows

__all__ = ["AXES", "NEEDED", "BenchReport", "Failure"]

AXES: dict[str, tuple[int, ...]] = {
    "ipc": (1, 10, 50),
    "classes": (10, 30, 100),
    "batch_real": (64, 256, 1024),
    "width": (32, 64, 128, 256),
}
"""Sizes that `report.scaling` varies one at a time, around the paper's: IPC 10, 10 classes, 256 real images, width 128.
"""

NEEDED = ("what", "method", "seconds")
"""Columns that identify a CSV file with such rows."""


@dataclass(frozen=True)
class Failure:
    """Work that could not be timed."""

    what: str
    """Kind of work, as in `Timing`."""
    method: str
    """Method, or the network that is trained."""
    reason: str
    """One line: how the two sides differ, or what failed."""

    def row(self) -> dict[str, Any]:
        """The failure as a row with the columns of `Timing.row`, all but the first two None."""
        return dict.fromkeys(COLUMNS) | {"what": self.what, "method": self.method}


@dataclass(frozen=True)
class BenchReport:
    """Timings of a measurement, and its conditions."""

    timings: tuple[Timing, ...]
    failures: tuple[Failure, ...]
    """Work that could not be timed: losses that differ, or an error."""
    network: str
    pool_network: str
    """Architecture for class centralization, with random weights."""
    device: str
    precision: str
    """Precision that the library is timed in; the baseline's is fp32."""
    compiled: bool
    """Whether the library's kernels were compiled."""
    ceiling_gflops: float
    """Peak rate of the machine's matrix product, in GFLOP/s."""
    ceiling_gbytes: float
    """Rate of the machine's copy, reading plus writing, in GB/s."""
    environment: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One row per timing and failure, with the conditions; written by ``--json`` and ``--results``.

        The column ``error`` says why work could not be timed; it is empty for timings.
        """
        conditions = {
            "network": self.network,
            "pool_network": self.pool_network,
            "device": self.device,
            "precision": self.precision,
            "compiled": self.compiled,
            "ceiling_gflops": self.ceiling_gflops,
            "ceiling_gbytes": self.ceiling_gbytes,
        } | {name: self.environment[name] for name in ("torch", "iidlib", "commit", "date")}
        timed = [timing.row() | conditions | {"error": ""} for timing in self.timings]
        return timed + [failure.row() | conditions | {"error": failure.reason} for failure in self.failures]

    def lines(self) -> list[str]:
        """One line per timing and failure, to be shown while others are still being measured."""
        lines = []
        for t in self.timings:
            parts = [f"{t.seconds:.3g} s", f"loop {t.baseline_seconds:.3g} s", f"ratio {t.ratio:.2f}"]
            if t.capture_seconds is not None:
                parts.append("recorded" if t.recorded else "not recorded")
            if t.eager_seconds is not None:
                parts.append(f"eager {t.eager_seconds:.3g} s")
            if t.device_seconds is not None:
                parts.append(f"device {t.device_seconds:.3g} s")
            lines.append(f"{t.what} {t.method}: {', '.join(parts)}")
        return lines + [f"{failure.what} {failure.method}: not timed: {failure.reason}" for failure in self.failures]

    def to_json(self) -> str:
        """The rows as a JSON list."""
        return json.dumps(self.rows(), indent=2)

    def append(self, path: Path, command: str = "") -> None:
        """Appends the rows to a CSV file, which is created if it does not exist.

        Args:
            path: the file.
            command: the command line, for the record.

        Raises:
            InputError: if the file does not hold such a table.
            OSError: if it cannot be written.
        """
        append_rows(path, pd.DataFrame(self.rows()).assign(command=command), needed=NEEDED)

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """The timings as text with short headings, by title of the table; no table without timings."""
        if not self.timings:
            return {}
        same = len({(t.what, t.method) for t in self.timings}) == 1
        work = [(t, ({} if same else {"work": f"{t.what} {t.method}"}) | _sizes(t, self.timings)) for t in self.timings]
        tables = {
            "seconds": [
                head
                | {
                    "loop": f"{t.baseline_seconds:.3g}",
                    "ours": f"{t.seconds:.3g}",
                    "ratio": f"{t.ratio:.2f}",
                    "floor": f"{t.floor_fraction * t.seconds:.3g}",
                    "first": f"{t.first_seconds:.3g}",
                    "peak MiB": f"{t.peak_memory_mib:.0f}",
                }
                for t, head in work
            ],
            "rates": [
                head
                | {
                    "GFLOP": f"{t.gflop:.4g}",
                    "loop GFLOP/s": f"{t.gflop / t.baseline_seconds:.0f}",
                    "ours": f"{t.gflop / t.seconds:.0f}",
                    "loop GB/s": f"{t.gbyte / t.baseline_seconds:.3g}",
                    "differs": ", ".join(f"{value:.0e}" for value in t.differences.values()),
                }
                for t, head in work
            ],
        }
        if any(t.device_seconds is not None or t.capture_seconds is not None for t in self.timings):
            tables["on the GPU, in ms"] = [
                head
                | {
                    "recorded": "yes" if t.recorded else "no",
                    "capture": _milliseconds(t.capture_seconds),
                    "eager": _milliseconds(t.eager_seconds),
                    "ours": _milliseconds(t.seconds),
                    "device": _milliseconds(t.device_seconds),
                    "rounding": ", ".join(f"{value:.0e}" for value in t.precision_differences.values()),
                }
                for t, head in work
            ]
        return tables

    def notes(self) -> list[str]:
        """Explanations of the tables, one per line."""
        if not self.timings:
            return []
        first = self.timings[0]
        lines = [
            f"{first.classes} classes, {first.batch_real} real and {first.ipc} synthetic images per class, "
            f"{self.network} of width {first.width}, unless a row says otherwise",
            f"device: {self.device}, {self.precision}, kernels {'compiled' if self.compiled else 'not compiled'}, "
            f"torch {self.environment['torch']}",
            "distill: one iteration; loop: one eager fp32 forward pass per class, one backward pass, the same draws",
            "evaluate: one epoch of the training of a network, xK: of K networks at once; loop: eager fp32, the same "
            "draws, one network after another",
            f"medians of {len(first.our_times)} interleaved repetitions; first: including compilation",
            f"floor: counted convolutions and matrix products at {self.ceiling_gflops:.4g} GFLOP/s, the machine's "
            f"matrix product; its copy moves {self.ceiling_gbytes:.3g} GB/s",
            "differs: loss, gradient, or weights after an epoch in fp32, relative to the loop's",
        ]
        if any(t.device_seconds is not None for t in self.timings):
            lines.append("ours: recorded where it says so; eager: before that; device: the GPU's share of ours")
        if any(t.precision_differences for t in self.timings):
            lines.append(f"rounding: the same differences, of {self.precision} from fp32")
        if any("cc" in METHODS[t.method].terms for t in self.timings if t.method in METHODS):
            lines.append(f"class centralization on a {self.pool_network} with random weights, sufficient for timing")
        return lines


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"


def _sizes(timing: Timing, others: Sequence[Timing]) -> dict[str, str]:
    """Sizes of a timing that vary within the report."""
    vary = [name for name in AXES if len({getattr(other, name) for other in others if other.batch_real}) > 1]
    return {name.removeprefix("batch_"): f"{getattr(timing, name)}" for name in vary}
