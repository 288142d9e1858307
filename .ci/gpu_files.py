"""The files of a session on a rented GPU, for `.ci/gpu.py`: the ends of logs, and a folder that stays small."""

import contextlib
import shutil
import zipfile
from pathlib import Path

FILES = ("summary.md", "environment.json", "tests.txt", "log.txt", "sets.zip")  # besides the tables
LEFTOVERS = (".lock", ".unfinished")  # of tables that are being written, or of a process that was killed meanwhile
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
MOST_READ = 2 * 2**20  # bytes at the end of a log
OF_A_RUN = ("synthetic.safetensors", "config.yaml", "environment.json", "metrics.jsonl")


def tail(path: Path, lines: int) -> list[str]:
    """Last lines of a text file; of progress bars only what stood there last."""
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - MOST_READ))
            text = file.read().decode(errors="replace")
        return [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")[-lines - 1 :]][-lines:]
    return []


def sets(runs: Path, archive: Path) -> list[str]:
    """Archives the distilled sets with their settings and logs, the newest first, as many as may be kept.

    Unfinished runs come with their newest checkpoint, so that another machine can resume them from the archive: the
    newest of them before the sets, whose scores are in the tables anyway, and the others after them. Says which runs
    were too large.
    """
    folders = sorted((path for path in runs.glob("*") if path.is_dir()), key=lambda path: -_changed(path))
    finished = [path for path in folders if (path / OF_A_RUN[0]).is_file()]
    cut = {path: _newest_checkpoint(path / "checkpoints") for path in folders if path not in finished}
    resumable = [path for path, newest in cut.items() if newest]
    left, names, said = MOST_BYTES - 2**16, [], []
    for folder in [*resumable[:1], *finished, *resumable[1:]]:
        own = [*(path for name in OF_A_RUN if (path := folder / name).is_file()), *cut.get(folder, [])]
        size = sum(path.stat().st_size for path in own)
        if size <= left:
            left, names = left - size, names + own
        else:
            said.append(f"{folder.name}: not in {archive.name}, since its {size / 2**20:.0f} MiB do not fit")
    if names:
        # a rented machine's clock may be at 1970, before the first year that the format knows
        with zipfile.ZipFile(archive.with_suffix(".unfinished"), "w", strict_timestamps=False) as file:
            for path in names:
                file.write(path, path.relative_to(runs))
        archive.with_suffix(".unfinished").replace(archive)
    return said


def _changed(folder: Path) -> float:
    """Time at which a run has last written its set, or a line of its log."""
    return max((path.stat().st_mtime for name in OF_A_RUN if (path := folder / name).is_file()), default=0)


def _newest_checkpoint(folder: Path) -> list[Path]:
    """The files of the newest complete checkpoint; none without one."""
    found = [path for path in folder.glob("*.safetensors") if path.with_suffix(".json").is_file()]
    newest = max(found, key=lambda path: int(path.stem) if path.stem.isdigit() else -1, default=None)
    return [] if newest is None else [newest, newest.with_suffix(".json")]


def tidy(folder: Path, elsewhere: Path) -> list[str]:
    """Keeps a folder within the limits on files, and says what was cut or moved.

    The front of texts that are too large is cut; what else is too large, or too many, is moved.
    """
    said = []
    for path in [path for path in folder.iterdir() if path.is_file() and path.suffix == ".txt"]:
        if (size := path.stat().st_size) > MOST_BYTES:
            with path.open("rb") as file:
                file.seek(size - MOST_BYTES // 2)
                kept = file.read()
            path.write_bytes(b"[the first %d bytes were left out]\n" % (size - len(kept)) + kept)
            said.append(f"{path.name}: the first {size - len(kept)} bytes were left out")
    found = [path for path in folder.iterdir() if path.suffix not in LEFTOVERS]
    too_large = [path for path in found if path.is_dir() or path.stat().st_size > MOST_BYTES]
    others = sorted(set(found) - set(too_large), key=lambda path: (path.name not in FILES, -path.stat().st_mtime))
    room = MOST_FILES - (not (folder / "summary.md").exists())
    for path in [*too_large, *others[room:]]:  # the newest tables stay
        elsewhere.mkdir(parents=True, exist_ok=True)
        shutil.move(path, elsewhere / path.name)
        said.append(f"{path.name} was moved to {elsewhere}: at most {MOST_FILES} files of {MOST_BYTES >> 20} MiB stay")
    return said
