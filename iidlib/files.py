"""Files and folders of the user: paths that know ``~``, plain YAML, whole writes, the cache."""

import os
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["PACKAGE", "atomic_write", "cache_dir", "checkout", "load_yaml", "user_path"]

PACKAGE = Path(__file__).resolve().parent
"""The folder that the package is installed in."""


class _NoAliases(yaml.SafeLoader):
    """Reads plain data only: no objects, and no aliases, with which a few lines stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{self.peek_event().anchor} are not read")
        return super().compose_node(parent, index)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave; ``~`` and ``~name`` are resolved where there is such a user, else left alone."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, which raises where there is no such user


def checkout() -> Path | None:
    """The checkout of the repository that the package is imported from; None for an installed one.

    The package's parent is a checkout if ``pyproject.toml`` lies there; in an installation it is ``site-packages``.
    """
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None


def load_yaml(text: str) -> Any:
    """Plain data from YAML text: mappings, lists, texts, numbers, dates.

    Raises:
        ValueError: if it is not YAML, or more than plain data, or nested without end.
    """
    try:
        return yaml.load(text, _NoAliases)  # a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all: temporary file beside it, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_dir() -> Path:
    """Where pools are kept: ``IID_CACHE``, or ``iidlib`` in the user's cache folder."""
    if os.environ.get("IID_CACHE"):
        return user_path(os.environ["IID_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "iidlib"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidlib"
