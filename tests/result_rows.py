"""Rows of results made for tests."""

from typing import Any

import pandas as pd


def rows(*found: dict[str, Any]) -> pd.DataFrame:
    """Rows of dm on CIFAR-10 at scale laptop, each with what is given in its place."""
    usual = {
        "dataset": "cifar10", "method": "dm", "ipc": 10, "scale": "laptop", "network": "convnet3", "seed": 0,
        "evaluation_seed": 0, "accuracy": 45.0, "iterations": 1200, "epochs": 400, "settings": "",
        "protocol": "dm, 400 epochs", "step": float("nan"), "steps": float("nan"),
    }  # fmt: skip
    return pd.DataFrame([usual | row for row in found])
