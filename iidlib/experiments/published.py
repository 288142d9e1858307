"""Published accuracies, in percent, each with its source. None of them was measured here.

The paper's own tables were not available; its rows are quoted from later papers, whose rows named IID are assigned to
DM or IDM according to the adjacent rows. Values that were not found in print are omitted.
"""

from dataclasses import dataclass

__all__ = ["ACCURACIES", "Published", "published_value"]


@dataclass(frozen=True)
class Published:
    """A published accuracy."""

    value: float
    """Accuracy in percent."""
    source: str
    """Paper and table that it is quoted from."""


_NCFM = "NCFM (CVPR 2025), Table 1"

_BACON = "BACON (2024), Table 1"

_IPCS = (1, 10, 50)


def _row(dataset: str, method: str, source: str, *values: float | None) -> dict[tuple[str, str, int], Published]:
    pairs = zip(_IPCS, values, strict=True)
    return {(dataset, method, ipc): Published(value, source) for ipc, value in pairs if value is not None}


ACCURACIES: dict[tuple[str, str, int], Published] = (
    _row("cifar10", "random", _NCFM, 14.4, 26.0, 43.4)
    | _row("cifar10", "herding", _NCFM, 21.5, 31.6, 40.4)
    | _row("cifar10", "k-center", _BACON, 21.5, 14.7, 27.0)
    | _row("cifar10", "dm", _NCFM, 26.0, 48.9, 63.0)
    | _row("cifar10", "iid-dm", _BACON, None, 55.1, 65.1)
    | _row("cifar10", "idm", _NCFM, 45.6, 58.6, 67.5)
    | _row("cifar10", "iid-idm", _NCFM, 47.1, 59.9, 69.0)
    | _row("cifar100", "random", _NCFM, 4.2, 14.6, 30.0)
    | _row("cifar100", "herding", _NCFM, 8.4, 17.3, 33.7)
    | _row("cifar100", "dm", _NCFM, 11.4, 29.7, 43.6)
    | _row("cifar100", "iid-dm", _BACON, None, 32.2, 43.6)
    | _row("cifar100", "idm", _NCFM, 20.1, 45.1, 50.0)
    | _row("cifar100", "iid-idm", _NCFM, 24.6, 45.7, 51.3)
    | _row("svhn", "random", _BACON, 14.6, 35.1, 70.9)
    | _row("svhn", "herding", _BACON, 20.9, 50.5, 72.6)
    | _row("svhn", "k-center", _BACON, 21.0, 14.0, 20.1)
    | _row("svhn", "dm", _BACON, 21.6, 72.8, 82.6)
    | _row("svhn", "iid-dm", _BACON, None, 75.7, 85.3)
    | _row("svhn", "idm", _BACON, 65.3, 81.0, 84.1)
    | _row("tinyimagenet", "random", _NCFM, 1.4, 5.0, 15.0)
    | _row("tinyimagenet", "herding", _NCFM, 2.8, 6.3, 16.7)
    | _row("tinyimagenet", "dm", _NCFM, 3.9, 12.9, 24.1)
    | _row("tinyimagenet", "iid-dm", _BACON, None, 15.4, None)
    | _row("tinyimagenet", "idm", _NCFM, 10.1, 21.9, 27.7)
    | {
        ("cifar10", "whole", 0): Published(84.8, _NCFM),
        ("cifar100", "whole", 0): Published(56.2, _NCFM),
        ("svhn", "whole", 0): Published(95.4, _BACON),
        ("tinyimagenet", "whole", 0): Published(37.6, _NCFM),
    }
)
"""Published accuracies by dataset, method and images per class (0 for the whole set)."""


def published_value(dataset: str, method: str, ipc: int) -> Published | None:
    """Published accuracy of a cell, or None if none was found."""
    return ACCURACIES.get((dataset, method, ipc))
