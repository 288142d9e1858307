"""Dataset distillation by distribution matching, with the two plug-in terms of IID (Deng et al., CVPR 2024).

A newcomer reads ``losses`` (the paper), ``distillation/`` (the loop) and ``evaluation/`` (the claim), and knows the
system. A script needs six names at first: `load_dataset`, `preset`, `distill`, `evaluate`, `SyntheticSet` and
`InputError`. They are loaded when first used, so that ``iid --help`` does not wait for torch; the others come from
their rooms, as in ``from iidlib.data import RealSet`` or ``iidlib.data.RealSet``.
"""

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING

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


if not TYPE_CHECKING:  # to a type checker, a name that is not there is an error and not anything at all

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(importlib.import_module(f"iidlib.{_HOMES[name]}"), name)
        if not name.startswith("_") and importlib.util.find_spec(f"iidlib.{name}"):
            return importlib.import_module(f"iidlib.{name}")
        raise AttributeError(f"module 'iidlib' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """The public names and the rooms, also those that are not loaded yet."""
        own = [name for name in globals() if name.startswith("__")]
        rooms = [room.name for room in pkgutil.iter_modules(__path__) if not room.name.startswith("_")]
        return sorted({*own, *rooms, *__all__})
