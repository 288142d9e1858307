"""Writes the fingerprints of the settings behind the result rows: one per method, dataset, IPC and scale.

A row lists only the settings that differ from its scale's defaults. If a later version changed those defaults, the row
would claim settings it was not measured with. A test therefore compares the fingerprints with the output.

python data/scripts/build_settings_of_rows.py          # after rows of earlier settings have been given those settings
"""

from pathlib import Path

import pandas as pd

from iidlib.config import fingerprint, preset
from iidlib.config.recipes import BASES
from iidlib.experiments import all_rows

PATH = Path(__file__).resolve().parents[1] / "settings_of_rows.csv"


def settings_of_rows() -> pd.DataFrame:
    """The fingerprints, with columns method, dataset, ipc, scale and settings."""
    rows = all_rows()
    keys = ["method", "dataset", "ipc", "scale"]
    learned = rows[rows["method"].isin(BASES)][keys].drop_duplicates().sort_values(keys, ignore_index=True)
    learned["ipc"] = learned["ipc"].astype(int)
    return learned.assign(settings=[fingerprint(preset(*one)) for one in learned.itertuples(index=False)])


if __name__ == "__main__":
    settings_of_rows().to_csv(PATH, index=False)
