"""Dataset distillation by distribution matching, with the two plug-in terms of IID (Deng et al., CVPR 2024).

To understand the system, read ``losses`` (the paper), ``distillation/`` (the loop) and ``evaluation/`` (the claim). A
first script needs six names: `load_dataset`, `preset`, `distill`, `evaluate`, `SyntheticSet` and `InputError`.

The names below can be imported from ``iidlib`` itself. They are loaded on first use, so that ``import iidlib`` and
``iid --help`` do not import torch.

- Data and settings: `load_dataset`, `denormalize`, `preset`, `override`, `SynConfig`
- Networks and features: `build_network`, `frozen`, `RandomNetworks`, `trained_pool`
- Distillation: `distill`, `class_sweep`, `progress`, `SyntheticSet`, `expand`
- Evaluation: `evaluate`, `summarize`, `compare`, `random_real`, `class_maps`, `project`
- Continual learning: `class_order`, `class_steps`, `learn_in_steps`, `of_classes`
- Runs and results: `RunFolder`, `runs_frame`, `results_dir`, `rows_of`, `paired_gains`, `paired_interval`, `jobs`,
  `load_grid`, `run_sweep`, `sweep_status`, `check_parameters`, `take_parameters`
- Devices, random numbers and speed: `pick_device`, `in_chunks`, `stream`, `copy_rate`, `count_flops`,
  `matrix_product_rate`
- Errors: `InputError`

All other names are imported from their modules: ``from iidlib.data import RealSet`` or ``iidlib.data.RealSet``. The
name `compare` is ``iidlib.evaluation.compare``; the benchmark's function is ``iidlib.bench.compare``.
"""

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING

from iidlib._version import __version__

if TYPE_CHECKING:
    # the modules that no import below leads to; `as` exports them, so that a type checker knows `iidlib.plots`
    from iidlib import cli as cli
    from iidlib import plots as plots
    from iidlib.bench import copy_rate, count_flops, matrix_product_rate
    from iidlib.config import SynConfig, override, preset
    from iidlib.continual import class_order, class_steps, learn_in_steps, of_classes
    from iidlib.data import denormalize, load_dataset
    from iidlib.distillation import class_sweep, distill, progress
    from iidlib.engine import in_chunks, pick_device
    from iidlib.errors import InputError
    from iidlib.evaluation import class_maps, compare, evaluate, project, random_real, summarize
    from iidlib.experiments import (
        check_parameters,
        jobs,
        load_grid,
        paired_gains,
        paired_interval,
        results_dir,
        rows_of,
        take_parameters,
    )
    from iidlib.features import RandomNetworks, trained_pool
    from iidlib.networks import build_network, frozen
    from iidlib.rng import stream
    from iidlib.runs import RunFolder, runs_frame
    from iidlib.scale import run_sweep, sweep_status
    from iidlib.synthetic import SyntheticSet, expand

__all__ = [
    "InputError",
    "RandomNetworks",
    "RunFolder",
    "SynConfig",
    "SyntheticSet",
    "__version__",
    "build_network",
    "check_parameters",
    "class_maps",
    "class_order",
    "class_steps",
    "class_sweep",
    "compare",
    "copy_rate",
    "count_flops",
    "denormalize",
    "distill",
    "evaluate",
    "expand",
    "frozen",
    "in_chunks",
    "jobs",
    "learn_in_steps",
    "load_dataset",
    "load_grid",
    "matrix_product_rate",
    "of_classes",
    "override",
    "paired_gains",
    "paired_interval",
    "pick_device",
    "preset",
    "progress",
    "project",
    "random_real",
    "results_dir",
    "rows_of",
    "run_sweep",
    "runs_frame",
    "stream",
    "summarize",
    "sweep_status",
    "take_parameters",
    "trained_pool",
]

_HOMES = {
    "InputError": "errors",
    "RandomNetworks": "features",
    "RunFolder": "runs",
    "SynConfig": "config",
    "SyntheticSet": "synthetic",
    "build_network": "networks",
    "check_parameters": "experiments",
    "class_maps": "evaluation",
    "class_order": "continual",
    "class_steps": "continual",
    "class_sweep": "distillation",
    "compare": "evaluation",
    "copy_rate": "bench",
    "count_flops": "bench",
    "denormalize": "data",
    "distill": "distillation",
    "evaluate": "evaluation",
    "expand": "synthetic",
    "frozen": "networks",
    "in_chunks": "engine",
    "jobs": "experiments",
    "learn_in_steps": "continual",
    "load_dataset": "data",
    "load_grid": "experiments",
    "matrix_product_rate": "bench",
    "of_classes": "continual",
    "override": "config",
    "paired_gains": "experiments",
    "paired_interval": "experiments",
    "pick_device": "engine",
    "preset": "config",
    "progress": "distillation",
    "project": "evaluation",
    "random_real": "evaluation",
    "results_dir": "experiments",
    "rows_of": "experiments",
    "run_sweep": "scale",
    "sweep_status": "scale",
    "runs_frame": "runs",
    "stream": "rng",
    "summarize": "evaluation",
    "take_parameters": "experiments",
    "trained_pool": "features",
}
"""Room of each name that is loaded on first use."""


if not TYPE_CHECKING:  # hidden from type checkers, to which every attribute would exist otherwise

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(importlib.import_module(f"iidlib.{_HOMES[name]}"), name)
        if not name.startswith("_") and importlib.util.find_spec(f"iidlib.{name}"):
            return importlib.import_module(f"iidlib.{name}")
        raise AttributeError(f"module 'iidlib' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Public names and modules, including those that are not loaded yet."""
        special = [name for name in globals() if name.startswith("__")]
        rooms = [room.name for room in pkgutil.iter_modules(__path__) if not room.name.startswith("_")]
        return sorted({*special, *rooms, *__all__})
