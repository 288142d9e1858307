"""Every run below a folder as one table."""

from pathlib import Path

import pandas as pd

from iidlib.runs.folder import RunFolder

__all__ = ["runs_frame"]


def runs_frame(root: str | Path) -> pd.DataFrame:
    """Every evaluated network of every run below a folder, one row each: settings, scores and environment.

    Args:
        root: searched for folders that hold ``config.yaml`` and ``scores.json``.

    Raises:
        InputError: for a file among them that is damaged.

    Returns:
        Columns run, dataset, method, ipc, scale, seed, iterations, and those of the scores; empty without runs.
    """
    frames = []
    for scores in sorted(Path(root).rglob("scores.json")):
        folder = RunFolder(scores.parent)
        if not (folder.path / "config.yaml").is_file():
            continue
        config = folder.config()
        frame = pd.DataFrame(folder.scores())
        names = ("dataset", "method", "ipc", "scale", "seed", "iterations")
        for position, name in enumerate(names):
            if name not in frame:
                frame.insert(position, name, getattr(config, name))
        frame.insert(0, "run", folder.path.relative_to(root).as_posix())
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
