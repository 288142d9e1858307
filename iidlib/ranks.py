"""One computation on several processes that torchrun has started: who computes what, and what they exchange.

A process is called a rank, as in ``torch.distributed``. A computation asks `current` for its rank; without torchrun
that is the only one, and nothing is exchanged. Tensors travel by gloo on a CPU and by NCCL between GPUs.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from iidlib.errors import InputError, RankLost, first_line

__all__ = ["Ranks", "current", "launched"]

_T = TypeVar("_T")

PATIENCE = timedelta(days=30)
"""Time that ranks wait for each other: one may train a network for hours. A rank that has ended is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a computation, seen from one of them."""

    rank: int = 0
    """Number of this one; 0 reads and writes files and talks to the user."""
    size: int = 1
    """Number of ranks."""

    @property
    def leads(self) -> bool:
        """Whether this rank reads and writes files and talks to the user."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """Numbers, of ``range(count)``, that a rank handles, by default this one; as even as possible."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def total(self, values: Tensor) -> Tensor:
        """Sum of the values of all ranks."""
        if self.size == 1:
            return values
        with _exchange():
            total = values.clone()
            dist.all_reduce(total)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on any rank."""
        if self.size == 1:
            return flags
        with _exchange():
            together = torch.tensor(flags, dtype=torch.uint8)
            dist.all_reduce(together, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in together)

    def joined(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        """The rows of all ranks in order, on every rank.

        Args:
            own: the rows of this rank, [n, ...].
            rows: number of rows of each rank.
        """
        if self.size == 1:
            return own
        padded = own.new_zeros((max(rows), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in rows]
        with _exchange():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    def first(self, value: _T | None) -> _T:
        """The value of rank 0, on every rank, by pickle: only for what this program has made itself."""
        if self.size == 1:
            return value  # type: ignore[return-value]
        held = [value]
        with _exchange():
            dist.broadcast_object_list(held, 0, device=torch.device("cpu"))
        return held[0]  # type: ignore[return-value]

    def every(self, value: _T) -> list[_T]:
        """The values of all ranks, in order."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(held, value)
        return held

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """A block that no rank leaves before all have: if one refuses its input in it, all do.

        Raises:
            InputError: on every rank, with the message of the first that refused.
        """
        if self.size == 1:
            yield
            return
        refused: InputError | None = None
        try:
            yield
        except InputError as error:
            refused = error
        answers = self.every(None if refused is None else str(refused))
        for rank, answer in enumerate(answers):
            if answer is not None:
                raise InputError(answer if rank == 0 else f"rank {rank}: {answer}") from refused

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Compares facts that must be the same on all ranks.

        Raises:
            InputError: on every rank, with the first fact that differs.
        """
        first, *others = self.every(dict(facts))
        for rank, other in enumerate(others, 1):
            for name in first | other:
                own, value = other.get(name, "none"), first.get(name, "none")
                if own != value:
                    raise InputError(f"rank {rank} has another {name} than rank 0: {own}, not {value}")

    def says(self) -> bool:
        """Whether this rank is the first to ask; of several that fail, one reports it."""
        if self.size == 1:
            return True
        try:
            return int(dist.distributed_c10d._get_default_store().add("iidlib said", 1)) == 1
        except RuntimeError:  # the store has gone with the rank that held it
            return True


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """A block that exchanges tensors with other ranks.

    Raises:
        RankLost: if another has ended.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RankLost(f"another process has ended before its time ({first_line(error)[:100]})") from error


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


@functools.cache
def current() -> Ranks:
    """The ranks that this process belongs to, which are joined at the first call."""
    if not launched():
        return Ranks()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size())
