"""The guard of speed: fails where the ratio to the fixed baseline has fallen by more than a fifth.

Not part of the default run, because it takes times: ``pytest tests/benchmarks`` on a quiet machine. ``ratios.json``
holds the ratios of the machine named in it; ``IID_RECORD_RATIOS=1 pytest tests/benchmarks`` writes those of this one.
"""

import json
import os
import statistics
from pathlib import Path

import pytest

from iidlib.bench import report as bench_report

RECORD = Path(__file__).with_name("ratios.json")
TOLERATED = 0.8
REPEATS = 3
GUARDED = ("dm", "dm-cm", "iid-dm")
"""An iteration on IDM is for the most part the training of its queue, which the evaluation's row guards."""


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """Medians of several reports, as a single one may meet another process."""
    reports = [bench_report.measure(GUARDED, quick=True) for _ in range(REPEATS)]
    rows = [{f"{t.what} {t.method}": t.ratio for t in report.timings} for report in reports]
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    if os.environ.get("IID_RECORD_RATIOS") == "1":
        content = {"device": reports[0].device, "torch": reports[0].environment["torch"], "ratios": found}
        RECORD.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
    return found


@pytest.mark.parametrize("work", [*(f"distill {method}" for method in GUARDED), "evaluate convnet3"])
def test_ratio_has_not_fallen(work: str, measured: dict[str, float]) -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf8"))["ratios"][work]
    assert measured[work] > TOLERATED * recorded, (
        f"{work}: {measured[work]:.2f} times the baseline, where {recorded:.2f} was recorded"
    )
