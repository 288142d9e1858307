"""How a command line that a test ran has ended; the fixture ``iid`` runs it in an empty folder."""

from collections.abc import Callable
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]


def exit_status(*arguments: str) -> int:
    """Runs a command line in this process and folder; what it writes is for the test's own capture."""
    from iidlib.cli import main

    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)
