"""What users give: wrong input is one clear line, names get a suggestion, YAML is plain data, paths know ``~``."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

__all__ = ["InputError", "load_yaml", "suggest", "user_path"]


class InputError(ValueError):
    """Wrong input from a user; its text is one clear line that says what is wrong and what to do.

    What the user gave may be part of it, so that line breaks are taken out and the middle of a very long line is left
    out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= 1000 else f"{line[:600]} ... {line[-390:]}")


class _NoAliases(yaml.SafeLoader):
    """Reads plain data only: no objects, and no aliases, with which a few lines stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{self.peek_event().anchor} are not read")
        return super().compose_node(parent, index)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave; ``~`` and ``~name`` are resolved where there is such a user, else left alone."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, which raises where there is no such user


def load_yaml(text: str) -> Any:
    """Plain data from YAML text: mappings, lists, texts, numbers, dates.

    Raises:
        ValueError: if it is not YAML, or more than plain data, or nested without end.
    """
    try:
        return yaml.load(text, _NoAliases)  # a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def suggest(value: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest valid choice, or all of them.

    >>> suggest("iid-md", ["dm", "iid-dm"])
    "; did you mean 'iid-dm'?"
    """
    names = list(choices)
    near = difflib.get_close_matches(value, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(names)}"
