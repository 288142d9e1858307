"""Writes the names of the settings that rows of results stand for: one for each method, dataset, IPC and scale.

A row says which of its settings are not those of its scale. Where a later version changes the scale's own, the row
would stand for what it was never measured with; a test compares the names with what this would write.

python data/scripts/build_settings_of_rows.py          # once the rows of the former settings name what they were
"""

from pathlib import Path

import pandas as pd

from iidlib.config import fingerprint, preset
from iidlib.config.recipes import BASES
from iidlib.experiments import all_rows

PATH = Path(__file__).resolve().parents[1] / "settings_of_rows.csv"


def settings_of_rows() -> pd.DataFrame:
    """The names, with the columns method, dataset, ipc, scale and settings."""
    rows = all_rows()
    named = ["method", "dataset", "ipc", "scale"]
    learned = rows[rows["method"].isin(BASES)][named].drop_duplicates().sort_values(named, ignore_index=True)
    learned["ipc"] = learned["ipc"].astype(int)
    return learned.assign(settings=[fingerprint(preset(*one)) for one in learned.itertuples(index=False)])


if __name__ == "__main__":
    settings_of_rows().to_csv(PATH, index=False)
