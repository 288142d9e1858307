"""What users give wrong: one clear line, with a suggestion where a name is nearly right."""

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["InputError", "listed", "memory_text", "near", "one_line", "out_of_memory", "shortened", "suggest"]


class InputError(ValueError):
    """Wrong input from a user; its text is one clear line that says what is wrong and what to do.

    What the user gave may be part of it, so that line breaks are taken out and the middle of a very long line is left
    out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(" ".join(message.splitlines())))


def shortened(text: str, most: int = 1000) -> str:
    """Text of any length, such as one that repeats an endless number; where it is too long, without its middle.

    >>> shortened("0123456789" * 9, 20)
    '012345678901 ... 3456789'
    """
    return text if len(text) <= most else f"{text[: most * 60 // 100]} ... {text[-(most * 39 // 100) :]}"


def one_line(error: object, most: int = 200) -> str:
    r"""The beginning of an error's text in one line, for a message around it.

    >>> one_line(ValueError("no number:\n  x"))
    'no number: x'
    """
    return " ".join(str(error).split())[:most]


def listed(names: Sequence[str], most: int = 5, *, between: str = ", ") -> str:
    """The first names of a list, and how many more there are.

    >>> listed(["cat", "dog", "owl"], 2)
    'cat, dog and 1 more'
    """
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def near(value: str, choices: Iterable[str]) -> str:
    """The end of an error message that names the choices already: the nearest of them, or nothing."""
    found = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def suggest(value: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest valid choice, or all of them.

    >>> suggest("iid-md", ["dm", "iid-dm"])
    "; did you mean 'iid-dm'?"
    """
    names = list(choices)
    return near(value, names) or f"; choose one of {', '.join(names)}"


_TOO_LARGE = (
    "can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed",
    "integer multiplication overflow", "numel overflow", "invalid buffer size", "too large to convert",
    "Unable to allocate", "without overflow", "Overflow when unpacking", "array is too big",
)  # fmt: skip
"""How torch and numpy say that a tensor is larger than memory, or than they can count."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; on a CPU torch has no class of its own for that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return True
    kinds = (RuntimeError, OverflowError, ValueError, TypeError)
    return isinstance(error, kinds) and any(words in str(error) for words in _TOO_LARGE)


def memory_text(error: BaseException) -> str:
    """That memory was not enough, with what the error says of it."""
    said = one_line(error, 120) if str(error) else ""
    return f"out of memory ({said})" if said else "out of memory"
