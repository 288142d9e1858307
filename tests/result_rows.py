"""Rows of results made for tests."""

from typing import Any

import pandas as pd


def rows(*found: dict[str, Any]) -> pd.DataFrame:
    """Rows of dm on CIFAR-10 at scale laptop, each with what is given in its place.

    A row that names no network stands for the three of the scale.
    """
    usual = {
        "dataset": "cifar10", "method": "dm", "ipc": 10, "scale": "laptop", "network": "convnet3", "seed": 0,
        "networks_seed": 0, "accuracy": 45.0, "iterations": 1200, "epochs": 400, "settings": "",
        "protocol": "dm, 400 epochs, batch 256, lr 0.01, width 64", "date": "2026-01-01T00:00:00+00:00",
        "step": float("nan"), "steps": float("nan"), "order": float("nan"),
    }  # fmt: skip
    each = [
        {"evaluation_seed": number} | row
        for row in found
        for number in ([row["evaluation_seed"]] if "evaluation_seed" in row else range(3))
    ]
    return pd.DataFrame([usual | row for row in each])
