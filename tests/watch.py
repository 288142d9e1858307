"""Counts what a region of code would ask of a GPU, without one: kernels, copies and values the host waits for.

On a CPU all tensors lie in one memory. Where each would lie on a machine with a GPU, its place, is inferred: some are
declared; what a factory makes without ``device=`` is on the host; and the tensors of an operation lie in one place (a
tensor of the host without dimensions is a number to operations on the device).

What stays invisible: the device of ``x.to(device)`` where x is already on the CPU, unless x is known to be on the host,
and kernels of our own in C++.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

DEVICE, HOST = "device", "host"

INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._index_put_impl_.default, aten._unsafe_index_put.default}

MADE_ON_HOST = {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint}
MADE_ON_HOST |= {torch.randn, torch.randperm, torch.scalar_tensor, torch.zeros}

OVERWRITES = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_", "normal_", "uniform_", "random_"}
"""Operations that do not read what they change."""

DEPENDS_ON_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_same_size", "set_"}
NO_KERNEL |= {"detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_", "resize_", "_unsafe_view"}
"""Operations that launch nothing though they are no views by their outputs."""


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def address(tensor: Tensor) -> int:
    """Address of a tensor's storage; 0 if it is empty."""
    return tensor.untyped_storage().data_ptr()


class Places:
    """The place of each storage, as far as it is known; storages that met in an operation share theirs."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._place: dict[int, str] = {}

    def _root(self, storage: int) -> int:
        root = storage
        while root in self._next:
            root = self._next[root]
        if root != storage:
            self._next[storage] = root  # the next search is short
        return root

    def put(self, storage: int, place: str) -> None:
        self._place[self._root(storage)] = place

    def of(self, storage: int) -> str | None:
        return self._place.get(self._root(storage))

    def join(self, first: int, second: int) -> bool:
        """Notes that two storages share a place; False if they lie in different ones, which are left as they are."""
        a, b = self._root(first), self._root(second)
        if a != b:
            place, other = self._place.get(a), self._place.get(b)
            if place and other and place != other:
                return False
            self._next[a] = b
            if place:
                self._place[b] = place
        return True


class Watch(TorchDispatchMode):
    """Counts what the operations within a block ask of a GPU.

    Attributes:
        violations: what a recorded region must not do, in order.
        copies: number of copies from the host to the device.
        reads: number of values on the device that the host waits for.
        made: number of storages that were allocated.
    """

    def __init__(self, device: Iterable[Tensor] = (), host: Iterable[Tensor] = ()) -> None:
        """Declares tensors that exist before the block; among others, those of floating point count as on the device.

        Args:
            device: tensors on the device.
            host: tensors on the host, whose values never change.
        """
        super().__init__()
        self.violations: list[str] = []
        self.copies = self.reads = self.made = 0
        self._places, self._calls = Places(), _Calls(self)
        self._kept: list[Any] = []  # what was seen, so that no address is used twice
        self._inside: set[int] = set()
        self._launched: list[tuple[str, int, int]] = []  # name, number, a storage that is written
        self._unplaced_reads: list[tuple[str, int]] = []
        self._factory_on_host = False
        for place, tensors in ((DEVICE, device), (HOST, host)):
            self._kept += (tensors := list(tensors))
            self.declare(map(address, tensors), place)

    def declare(self, storages: Iterable[int], place: str) -> None:
        """Declares the place of storages by their addresses."""
        for storage in storages:
            self._places.put(storage, place)

    def __enter__(self) -> Self:
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)
        for what, storage in self._unplaced_reads:
            if self._places.of(storage) == DEVICE:
                self._read(what)
        self._unplaced_reads.clear()
        self._kept.clear()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [tensor for tensor in tensors_of((args, kwargs)) if address(tensor)]
        if function is aten.lift_fresh.default:  # the values of torch.tensor(...)
            for tensor in given:
                self._add(tensor, HOST)
            return function(*args, **kwargs)
        for tensor in given:
            if address(tensor) not in self._inside:
                self.outside(tensor, function)
        self._check(function, args, kwargs, given)
        out = function(*args, **kwargs)
        before = {address(tensor) for tensor in given}
        fresh = [tensor for tensor in tensors_of(out) if address(tensor) and address(tensor) not in before]
        for tensor in fresh:
            self._place_of_result(tensor, given)
        written = [tensor for tensor in _written(function, args, kwargs) if address(tensor)]
        if (fresh or written) and name_of(function) not in NO_KERNEL:
            changed = address((fresh + written)[0])
            self._launched.append((name_of(function), _launches(function, args), changed))
        self.note(function, args, kwargs, out, fresh, written)
        return out

    @property
    def kernels(self) -> Counter[str]:
        """Kernels launched on the device, by operation.

        An operation counts as one kernel, whatever a library makes of it, if it writes memory of the device; views and
        allocations launch nothing. An operation on lists (``_foreach_...``) is one kernel for each dtype in them.
        """
        found: Counter[str] = Counter()
        for name, number, storage in self._launched:
            if self._places.of(storage) == DEVICE:
                found[name] += number
        return found

    def place(self, tensor: Tensor) -> str | None:
        return self._places.of(address(tensor))

    def outside(self, tensor: Tensor, function: Any) -> None:
        """Called for each tensor that the block did not make, before its use."""
        self._kept.append(tensor)
        if tensor.ndim and tensor.is_floating_point() and self.place(tensor) is None:
            self._places.put(address(tensor), DEVICE)

    def note(
        self, function: Any, args: Any, kwargs: Any, out: Any, fresh: Sequence[Tensor], written: Sequence[Tensor]
    ) -> None:
        """Called after each operation, with the tensors it made and those it changed."""

    def violated(self, what: str) -> None:
        self.violations.append(what)

    def _add(self, tensor: Tensor, place: str | None) -> None:
        self._kept.append(tensor)
        self._inside.add(address(tensor))
        if place:
            self._places.put(address(tensor), place)

    def _place_of_result(self, tensor: Tensor, given: Sequence[Tensor]) -> None:
        self.made += 1
        self._add(tensor, HOST if self._factory_on_host and not given else None)
        like = [one for one in given if one.ndim] or [one for one in given if self.place(one) == DEVICE] or given
        if like:
            self._places.join(address(tensor), address(like[0]))

    def _check(self, function: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> None:
        name = name_of(function)
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.violated(f"draws random numbers: {name}")
        reads: Sequence[Tensor] = ()
        if function in INDEXING:
            reads = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        elif DEPENDS_ON_DATA.intersection(function.tags):
            reads = given
        for tensor in reads:
            self.read(tensor, name)
        copied = name in ("copy_", "_foreach_copy_")
        joined = [one for one in given if one.ndim or copied or self._is_number_inside(one)]
        for one in joined[1:]:
            if not self._places.join(address(one), address(joined[0])):
                if copied and self.place(one) == HOST:
                    self.copy(name)
                else:
                    self.violated(f"mixes tensors of the device and of the host: {name}")

    def _is_number_inside(self, tensor: Tensor) -> bool:
        """Whether it is a 0-dimensional tensor that was made with a device, and not an element of a larger one."""
        own = tensor.untyped_storage().nbytes() == tensor.element_size()
        return own and address(tensor) in self._inside and self.place(tensor) != HOST

    def read(self, tensor: Tensor, what: str) -> None:
        """Notes that the host needs values of a tensor, if that lies on the device."""
        if self.place(tensor) == DEVICE:
            self._read(what)
        elif self.place(tensor) is None:
            self._unplaced_reads.append((what, address(tensor)))

    def _read(self, what: str) -> None:
        self.reads += 1
        self.violated(f"waits for the device: {what}")

    def copy(self, what: str) -> None:
        self.copies += 1
        self.violated(f"copies from the host: {what}")


class _Calls(TorchFunctionMode):
    """What only the calls of Python show: factories without a device, and copies between host and device."""

    READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__)

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, watch = kwargs or {}, self._watch
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and torch._C._functorch.is_functorch_wrapped_tensor(first):  # under vmap, without storage
            return function(*args, **kwargs)
        if function in self.READS:
            watch.read(args[0], function.__name__)
        elif function is torch.Tensor.to and watch.place(args[0]) == HOST:
            if any(isinstance(to, torch.device | str | Tensor) for to in (*args[1:], *kwargs.values())):
                watch.copy("to")
                with _disable_current_modes():  # as a copy, which on a CPU is none
                    moved = function(*args, **kwargs).clone()
                watch._add(moved, DEVICE)
                return moved
        elif function in (torch.tensor, torch.as_tensor) and kwargs.get("device") and not isinstance(args[0], Tensor):
            watch.copy(function.__name__)
            made = function(*args, **kwargs)
            watch._add(made, DEVICE)
            return made
        elif function in MADE_ON_HOST and kwargs.get("device") is None and not tensors_of((args, kwargs)):
            watch._factory_on_host = True
            try:
                return function(*args, **kwargs)
            finally:
                watch._factory_on_host = False
        return function(*args, **kwargs)


def name_of(function: Any) -> str:
    return function._schema.name.split("::")[1]


def _written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors among an operation's arguments that it changes."""
    if not function._schema.is_mutable:
        return []
    named = dict(zip((one.name for one in function._schema.arguments), args, strict=False)) | dict(kwargs)
    changed = [one.name for one in function._schema.arguments if one.alias_info and one.alias_info.is_write]
    return tensors_of([named.get(name) for name in changed])


def _launches(function: Any, args: Sequence[Any]) -> int:
    return len({tensor.dtype for tensor in tensors_of(args[0])}) if name_of(function).startswith("_foreach") else 1
