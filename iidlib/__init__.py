"""Dataset distillation by distribution matching, with the two plug-in terms of IID (Deng et al., CVPR 2024).

A newcomer reads ``losses`` (the paper), ``distillation/`` (the loop) and ``evaluation/`` (the claim), and knows the
system. A script needs six names at first: `load_dataset`, `preset`, `distill`, `evaluate`, `SyntheticSet` and
`InputError`. They are loaded when first used, so that ``iid --help`` does not wait for torch; the others come from
their rooms, as in ``from iidlib.data import RealSet``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from iidlib._version import __version__

if TYPE_CHECKING:
    from iidlib.config import preset
    from iidlib.data import load_dataset
    from iidlib.distillation import distill
    from iidlib.errors import InputError
    from iidlib.evaluation import evaluate
    from iidlib.synthetic import SyntheticSet

__all__ = ["InputError", "SyntheticSet", "__version__", "distill", "evaluate", "load_dataset", "preset"]

_HOMES = {
    "InputError": "errors",
    "SyntheticSet": "synthetic",
    "distill": "distillation",
    "evaluate": "evaluation",
    "load_dataset": "data",
    "preset": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iidlib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"iidlib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, including those that are not loaded yet."""
    return sorted({*globals(), *__all__})
