"""A tape of a region of code: its operations with their tensors, replayed as a CUDA graph would be.

A CUDA graph freezes control flow, numbers of Python, values on the host and addresses, and cannot wait for the device.
`check_region` asserts that a region is as it must be for that. Operations on tensors of the host run while the tape
records and are not replayed.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from tests.watch import DEVICE, HOST, OVERWRITES, Watch, address, name_of, tensors_of

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Largest relative difference, in norm, between the changes by replays and by plain steps."""


class Tape(Watch):
    """The operations within a block, replayed on the tensors they had.

    Tensors of the outside are kept by their address only, as by a graph: a replay after one was freed is an error.
    """

    def __init__(
        self, device: Iterable[Tensor] = (), host: Iterable[Tensor] = (), *, declared: bool = True, raises: bool = False
    ) -> None:
        """Prepares recording.

        Args:
            device: buffers that the region reads and writes.
            host: tensors on the host that it reads, whose values never change.
            declared: whether these are all, so that using another is a violation.
            raises: raise a violation where it happens, as CUDA does.
        """
        super().__init__(device, host)
        self._known = {address(tensor) for tensor in tensors_of(self._kept)}
        self._declared, self._raises = declared, raises
        self._operations: list[tuple[Any, Any, Any, list[Tensor | None], int]] = []
        self._outside: dict[int, tuple[StorageWeakRef, str]] = {}
        self._overwritten: set[int] = set()
        self._used: set[int] = set()  # storages of the outside that a replay works on
        self.written: dict[int, str] = {}  # storages of the outside by address, with the operation
        self.carried: dict[int, str] = {}  # those whose values were read before, so that they count for the next replay

    def __exit__(self, *error: Any) -> None:
        kept = self._kept.copy()  # until operations know no tensor of the outside
        try:
            super().__exit__(*error)
        finally:
            with torch.no_grad():
                self._operations = [self._forgotten(*one) for one in self._operations if self._replayed(one[-1])]
            kept.clear()

    @property
    def buffers(self) -> set[int]:
        """Addresses of the storages on the device that the region works on."""
        return {storage for storage in self._outside if self._places.of(storage) == DEVICE}

    def violated(self, what: str) -> None:
        super().violated(what)
        if self._raises:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def outside(self, tensor: Tensor, function: Any) -> None:
        super().outside(tensor, function)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._outside:
            self._outside[storage.data_ptr()] = StorageWeakRef(storage), name_of(function)
            if self._declared and storage.data_ptr() not in self._known:
                self.violated(f"uses a tensor that is no buffer: {name_of(function)} on {list(tensor.shape)}")

    def note(
        self, function: Any, args: Any, kwargs: Any, out: Any, fresh: Sequence[Tensor], written: Sequence[Tensor]
    ) -> None:
        for tensor in written:
            storage = address(tensor)
            if storage in self._outside:
                self.written.setdefault(storage, name_of(function))
                if name_of(function) in OVERWRITES:
                    self._overwritten.add(storage)
                elif storage not in self._overwritten:
                    self.carried.setdefault(storage, name_of(function))
        if not fresh and not written:  # a view is right as it is
            return
        new = {id(tensor) for tensor in fresh}
        args, kwargs = tree_map_only(Tensor, self._frozen, (args, kwargs))
        outs = [tensor if id(tensor) in new else None for tensor in tensors_of(out)]
        self._operations.append((function, args, kwargs, outs, address((*fresh, *written)[0])))

    def _frozen(self, tensor: Tensor) -> Tensor:
        """A number on the host as it is now, for it is part of a recording."""
        return tensor.detach().clone() if tensor.ndim == 0 and self.place(tensor) == HOST else tensor

    def _replayed(self, changed: int) -> bool:
        return self._places.of(changed) != HOST

    def _forgotten(self, function: Any, args: Any, kwargs: Any, outs: Any, changed: int) -> Any:
        """An operation that keeps no tensor of the outside alive, nor any graph of autograd."""
        return *tree_map_only(Tensor, self._alias, (function, args, kwargs, outs)), changed

    def _alias(self, tensor: Tensor) -> Tensor:
        if address(tensor) not in self._outside:
            return tensor.detach()
        self._used.add(address(tensor))
        size = tensor.untyped_storage().nbytes()
        memory = (ctypes.c_char * size).from_address(address(tensor))
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=size // tensor.element_size())
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    @torch.no_grad()
    def replay(self) -> None:
        """Repeats the operations of the device.

        Raises:
            RuntimeError: if memory that they use has been freed since.
        """
        for storage in self._used:
            weak, name = self._outside[storage]
            if weak.expired():
                raise RuntimeError(f"a replay uses memory that was freed or moved after its recording: {name}")
        with _disable_current_modes():
            for function, args, kwargs, outs, _ in self._operations:
                results = tensors_of(function(*args, **kwargs))
                for old, new in zip(outs, results, strict=True):
                    if old is not None:
                        old.copy_(new)


def check_region(
    step: Callable[[], object],
    buffers: Callable[[], Mapping[str, Tensor]],
    *,
    load: Callable[[int], object] = lambda iteration: None,
    host: Iterable[Tensor] = (),
    iterations: int = 4,
) -> Tape:
    """Asserts that a region can be recorded: replays are the plain step, and nothing in it waits, draws or moves.

    Args:
        step: the region, which works on buffers.
        buffers: returns them by name: all tensors on the device that the region reads or writes.
        load: copies an iteration's draws into the buffers; not recorded.
        host: tensors on the host that the region reads, whose values never change.
        iterations: number of replays, each with other draws.

    Returns:
        The tape, for its counts.
    """
    held = dict(buffers())
    start = {name: tensor.detach().clone() for name, tensor in held.items()}

    def values() -> dict[str, Tensor]:
        now = buffers()
        moved = [name for name, tensor in held.items() if name not in now or address(now[name]) != address(tensor)]
        assert not moved, f"these buffers have moved: {', '.join(moved)}"
        return {name: tensor.detach().clone() for name, tensor in held.items()}

    @torch.no_grad()
    def restore() -> None:
        for name, tensor in held.items():
            tensor.copy_(start[name])

    expected = []
    for iteration in range(iterations):
        load(iteration)
        step()
        expected.append(values())
    restore()
    load(0)
    with Tape(held.values(), host) as tape:
        step()
    assert not tape.violations, "\n".join(["not to be recorded:", *tape.violations])
    addresses = {address(tensor): name for name, tensor in held.items()}
    changed = {addresses[storage] for storage in tape.written}
    assert changed, "the region changes no buffer"
    restore()
    for iteration in range(iterations):
        load(iteration)
        tape.replay()
        for name, found in values().items():
            assert same(found, expected[iteration][name], start[name]), f"{name} differs after replay {iteration}"
    assert any(not torch.equal(expected[-1][name], expected[0][name]) for name in changed), "nothing changes"
    return tape


def same(found: Tensor, expected: Tensor, start: Tensor) -> bool:
    """Whether a buffer has changed from `start` as expected, up to ``TOLERANCE``; numbers that count are equal."""
    if torch.equal(found, expected):
        return True
    if not found.is_floating_point():
        return False
    moved = (expected - start).double()
    return bool(((found - start).double() - moved).norm() <= TOLERANCE[found.dtype] * moved.norm())
