"""Writes what is known of this machine: versions, card, driver, measured rates, and which datasets it has.

    python .ci/gpu_environment.py environment.json [--device cuda]

Whatever fails is reported in place of its value, so that the rest is still written.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BESIDES = ("pytest", "triton")  # packages that the library does not need itself
PRECISIONS = ("fp32", "tf32", "bf16")


def attempted(function: Callable[[], Any]) -> Any:
    """The value of a function, or the error as text."""
    try:
        return function()
    except Exception as error:  # the report must be written, whatever is broken
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def version(name: str) -> str:
    """Installed version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def needed() -> dict[str, str]:
    """The library's dependencies with the versions that it asks for, by ``pyproject.toml``."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found = (re.match(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", one) for one in listed)
    return {one[1]: one[2] or "0" for one in found if one is not None}


def too_old() -> str:
    """Dependencies that are missing or older than asked for; they may fail anywhere."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]

    installed = {name: version(name) for name in needed()}
    return ", ".join(
        f"{name} {installed[name]} (needs {least})"
        for name, least in needed().items()
        if installed[name] == "not installed" or numbers(installed[name]) < numbers(least)
    )


def card() -> dict[str, str]:
    """What the driver says about the first card."""
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    return dict(zip(fields.split(","), map(str.strip, out.splitlines()[0].split(",")), strict=True))


def gpu(device: str) -> str | None:
    """Name of the GPU that is measured; None without one."""
    from iidlib.engine import device_name, pick_device

    picked = pick_device(device)
    return device_name(picked) if picked.type == "cuda" else None


def torch_build() -> dict[str, Any]:
    """Versions that torch was built with."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    return found


def rates(device_name: str) -> dict[str, Any]:
    """Rates of a large matrix product in each precision, in GFLOP/s, and of a copy, in GB/s."""
    from iidlib.bench.ceilings import copy_rate, matrix_product_rate
    from iidlib.engine import pick_device

    device = pick_device(device_name)
    precisions = PRECISIONS if device.type == "cuda" else PRECISIONS[:1]
    found = {
        f"matrix product {name}, GFLOP/s": attempted(partial(matrix_product_rate, device, name)) for name in precisions
    }
    return found | {"copy, GB/s": attempted(partial(copy_rate, device))}


def datasets() -> dict[str, bool]:
    """Whether each dataset is complete on this machine."""
    from iidlib.data.registry import datasets as listed

    return {row.name: row.found is not None for row in listed()}


def compiled_kernels(device_name: str) -> bool:
    """Whether compiled kernels (Triton on CUDA, C++ on a CPU) run on the device, found out by trying."""
    from iidlib.engine import kernels_in_use, pick_device

    return kernels_in_use(pick_device(device_name), "auto")


def write(path: Path, device: str) -> None:
    """Writes the report; what is needed first is written at once, before what may take long."""
    from iidlib.runs.environment import environment

    found: dict[str, Any] = {"device": device}
    known = attempted(environment)
    found |= known if isinstance(known, dict) else {"environment": known}
    parts: dict[str, Callable[[], Any]] = {
        "gpu": lambda: gpu(device),  # of several, the one in use
        "datasets": datasets,
        "packages": lambda: {name: version(name) for name in (*needed(), *BESIDES)},
        "too old": too_old,
        "build": torch_build,
        "card": card,
        "cpus": os.cpu_count,
        "compiled kernels": lambda: compiled_kernels(device),
        "rates": lambda: rates(device),
    }
    for name, part in parts.items():
        found[name] = attempted(part)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("path", type=Path)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    write(given.path, given.device)
