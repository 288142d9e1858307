"""What users give wrong: one clear line, with a suggestion where a name is nearly right."""

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "suggest"]


class InputError(ValueError):
    """Wrong input from a user; its text is one clear line that says what is wrong and what to do.

    What the user gave may be part of it, so that line breaks are taken out and the middle of a very long line is left
    out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= 1000 else f"{line[:600]} ... {line[-390:]}")


def suggest(value: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest valid choice, or all of them.

    >>> suggest("iid-md", ["dm", "iid-dm"])
    "; did you mean 'iid-dm'?"
    """
    names = list(choices)
    near = difflib.get_close_matches(value, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(names)}"
