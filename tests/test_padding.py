"""Images in the middle of larger ones: their values, and the memory that takes."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iidlib.data.padding import padded


@pytest.mark.parametrize(("size", "side"), [(28, 32), (27, 32), (9, 16), (31, 32), (1, 8), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_outermost_pixels_are_repeated_to_the_edge(size: int, side: int, channels: int) -> None:
    images = torch.randint(256, (5, channels, size, size), dtype=torch.uint8)
    index = (torch.arange(side) - (side - size) // 2).clamp(0, size - 1)
    assert padded(images, side).equal(images[:, :, index][..., index])
    assert padded(images, side).is_contiguous()


class Made(TorchDispatchMode):
    """Counts the bytes of the tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}
        self._all: list[torch.Tensor] = []  # kept, so that no address is used twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, list | tuple) else [result]:
            if isinstance(one, torch.Tensor):
                self._all.append(one)
                self.storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return result


def test_padding_makes_nothing_but_the_result() -> None:
    images = torch.zeros(100, 3, 28, 28, dtype=torch.uint8)
    with Made() as made:
        larger = padded(images, 32)
    made.storages.pop(images.untyped_storage().data_ptr(), None)
    assert sum(made.storages.values()) == larger.numel()
