"""How a command line that a test ran has ended; the fixture ``iid`` runs it."""

from collections.abc import Callable
from typing import NamedTuple


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]
