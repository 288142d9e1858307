"""Errors in user input: one clear line, with a suggestion for a misspelt name; texts of other errors."""

import difflib
import os
from collections.abc import Iterable, Sequence

__all__ = [
    "InputError", "RankLost", "SchedulerLost", "first_line", "listed", "memory_text", "near", "one_line",
    "out_of_memory", "shortened", "shown_cause", "suggest",
]  # fmt: skip


class InputError(ValueError):
    """Invalid user input; the message is one line that says what is wrong and what to do.

    The message may quote the input, so line breaks are removed and very long lines are cut in the middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(" ".join(message.splitlines())))


class SchedulerLost(RuntimeError):
    """The scheduler of a batch has gone; what had finished before is kept."""


class RankLost(RuntimeError):
    """Another process of a computation on several has ended before its time."""


def shortened(text: str, most: int = 1000) -> str:
    """The text, without its middle if it is longer than `most` characters.

    >>> shortened("0123456789" * 9, 20)
    '012345678901 ... 3456789'
    """
    return text if len(text) <= most else f"{text[: most * 60 // 100]} ... {text[-(most * 39 // 100) :]}"


def one_line(error: object, most: int = 200) -> str:
    r"""The beginning of an error's message on one line, to be quoted in another message.

    >>> one_line(ValueError("no number:\n  x"))
    'no number: x'
    """
    return " ".join(str(error).split())[:most]


def listed(names: Sequence[str], most: int = 5, *, between: str = ", ") -> str:
    """The first names of a list and the number of the others.

    >>> listed(["cat", "dog", "owl"], 2)
    'cat, dog and 1 more'
    """
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def near(value: str, choices: Iterable[str]) -> str:
    """The closest choice as the end of an error message that already lists them; empty if none is close."""
    matches = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def suggest(value: str, choices: Iterable[str]) -> str:
    """The end of an error message: the closest valid choice, or all of them if none is close.

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
"""Phrases by which torch and numpy report a tensor larger than memory or than their largest index."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory; for the CPU torch has no exception class of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's class for a GPU
        return True
    kinds = (RuntimeError, OverflowError, ValueError, TypeError)
    return isinstance(error, kinds) and any(words in str(error) for words in _TOO_LARGE)


def memory_text(error: BaseException) -> str:
    """An out-of-memory message that quotes the error."""
    reason = one_line(error, 120) if str(error) else ""
    return f"out of memory ({reason})" if reason else "out of memory"


def first_line(reason: object) -> str:
    """The first line of a text or of an error's message, or the name of its type if it has none."""
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0]


def shown_cause(reason: object) -> BaseException | None:
    """The exception behind a warning, for its ``exc_info``, if the user wants to see tracebacks (``IID_DEBUG``)."""
    return reason if isinstance(reason, BaseException) and os.environ.get("IID_DEBUG") else None
