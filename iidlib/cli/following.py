"""Commands under torchrun: rank 0 runs the command, and announces to the others what it computes next.

Rank 0 alone reads the options, talks and writes files. Before each computation that the ranks share it calls `post`;
the others wait for that in `follower.follow`, and make the same call of the library.
"""

import contextlib
import os
from typing import TYPE_CHECKING, Any

from iidlib.errors import RankLost

if TYPE_CHECKING:
    from iidlib.ranks import Ranks

__all__ = ["SHARED", "post", "release", "several_ranks"]

SHARED = ("distill", "evaluate", "experts")
"""Commands whose work several ranks share."""


def several_ranks() -> "Ranks | None":
    """The ranks that this process belongs to, if torchrun has started several; torch is only imported then."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from iidlib.ranks import current

    ranks = current()
    return ranks if ranks.size > 1 else None


def post(task: str, **arguments: Any) -> None:
    """Announces to the other ranks, if there are any, what this one computes next.

    Args:
        task: a method of `_Follower`.
        arguments: its arguments.
    """
    if (ranks := several_ranks()) is not None:
        ranks.first((task, arguments))


def release() -> None:
    """Tells the other ranks, if there are any, that the command has ended."""
    if (ranks := several_ranks()) is not None and ranks.leads:
        with contextlib.suppress(RankLost):  # they have ended themselves, after a signal
            ranks.first(("", {}))
