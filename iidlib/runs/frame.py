"""All runs below a folder as one table."""

from pathlib import Path

import pandas as pd

from iidlib.runs.folder import RunFolder

__all__ = ["runs_frame"]


def runs_frame(root: str | Path) -> pd.DataFrame:
    """Evaluated networks of all runs below a folder, one row each.

    Args:
        root: folder to search for runs with ``config.yaml`` and ``scores.json``.

    Raises:
        InputError: if one of these files is corrupted.

    Returns:
        Columns run, dataset, method, ipc, scale, seed, iterations, and those of the scores; empty if there are no runs.
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
