"""What the book consists of, read from its table of contents."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"


def toc_pages() -> list[str]:
    """The pages of the table of contents, the root first, as paths without an ending."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    return [toc["root"]] + [page["file"] for part in toc["parts"] for page in part["chapters"]]


def chapters() -> list[str]:
    """Those pages that are notebooks: ``NN_name``."""
    return [page for page in toc_pages() if page[:2].isdigit()]
