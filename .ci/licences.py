"""Writes .ci/licences.csv: the licence that each locked package declares, from the metadata of what is installed.

    make licences

Packages of other platforms are not installed here and are left out.
"""

import csv
import importlib.metadata
import re
from pathlib import Path

FOLDER = Path(__file__).parent


def locked() -> list[str]:
    """Names in the lock, in its order."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", (FOLDER / "requirements.lock").read_text(encoding="utf8"), re.MULTILINE)


def licence(package: importlib.metadata.PackageMetadata) -> str:
    """The SPDX expression where there is one, else the classifiers, else the first line of the free text."""
    if expression := package.get("License-Expression"):
        return expression
    found = [line.rsplit(" :: ", 1)[-1] for line in package.get_all("Classifier", []) if line.startswith("License ::")]
    text = (package.get("License") or "").strip().splitlines()
    return "; ".join(name for name in found if name != "OSI Approved") or (text[0][:80] if text else "")


def rows() -> list[tuple[str, str, str]]:
    """Name, version and licence of the locked packages that are installed."""
    found = []
    for name in locked():
        try:
            package = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append((name, package["Version"], licence(package)))
    return found


if __name__ == "__main__":
    with (FOLDER / "licences.csv").open("w", newline="", encoding="utf8") as file:
        csv.writer(file, lineterminator="\n").writerows([("package", "version", "licence"), *rows()])
