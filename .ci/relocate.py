"""Repairs a virtual environment that was moved or copied with its clone.

    .venv/bin/python .ci/relocate.py .venv

The scripts in ``bin`` name the interpreter by its full path: in a moved environment they do not start, and in a copied
one they run the code of the old clone. Every text file in ``bin`` and ``pyvenv.cfg`` gets the new path; the old one is
read from pip's own script. Only the standard library is used, and nothing is written where the path is right.
"""

import re
import sys
from pathlib import Path


def relocate(environment: Path) -> int:
    """Replaces the environment's old path by its current one.

    Args:
        environment: folder of the virtual environment, where it lies now.

    Returns:
        Number of files that were changed.
    """
    new, scripts = str(environment.absolute()), environment / "bin"
    starts = [path.read_bytes()[:4096] for path in sorted(scripts.glob("pip*")) if path.is_file()]
    found = [match[1].decode() for start in starts if (match := re.search(rb"(/[^\n\"]*)/bin/python", start))]
    old = next((path for path in found if path != new), None)
    if old is None:
        return 0
    changed = 0
    # a name that merely begins like the old path, such as /clone/.venv2, stays
    pattern = re.compile(re.escape(old.encode()) + rb"(?![\w.-])")
    for path in [*scripts.iterdir(), environment / "pyvenv.cfg"]:
        if path.is_symlink() or not path.is_file() or b"\0" in (text := path.read_bytes()):
            continue
        if (corrected := pattern.sub(lambda _: new.encode(), text)) != text:
            path.write_bytes(corrected)
            changed += 1
    return changed


if __name__ == "__main__":
    if count := relocate(Path(sys.argv[1])):
        print(f"Repaired {sys.argv[1]}, which was moved or copied: corrected its path in {count} files")
