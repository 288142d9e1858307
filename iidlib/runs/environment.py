"""What a result depends on besides its settings: versions, platform, threads, device, commit."""

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from iidlib._version import __version__
from iidlib.engine import device_kind, kernels_in_use
from iidlib.files import PACKAGE, checkout

__all__ = ["conditions", "environment", "mismatches", "source_digest", "versions"]


def environment() -> dict[str, Any]:
    """What a result depends on besides the settings: versions, platform, threads, commit; no environment variables."""
    source_digest()  # now, since a checkout may change before an evaluation asks for it

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {
        "iidlib": __version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": _gpus(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _gpus() -> str | None:
    """Names of all GPUs, separated by commas; the one that a run used is under ``device``."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(torch.cuda.get_device_name(number) for number in range(count)) or None


def _commit() -> str | None:
    """Commit of the checkout, with ``+`` if it has changes; a digest where git knows none; None if installed."""
    root = checkout()
    if root is None:
        return None
    if not (root / ".git").exists():
        return f"files {_digest(root / 'iidlib')}"
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return f"files {_digest(root / 'iidlib')}"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


@functools.cache
def source_digest() -> str:
    """Digest of the package's source files, 12 hex digits, as they were at the first call in this process."""
    return _digest(PACKAGE)


def versions() -> dict[str, str]:
    """What must be the same in processes that work together, with names for the user."""
    return {"version of iidlib": f"{__version__} ({source_digest()})", "version of torch": str(torch.__version__)}


def _digest(folder: Path) -> str:
    """Digest of the source files in a folder, 12 hex digits."""
    digest = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def conditions(device: torch.device, compile: str, precision: str = "fp32") -> dict[str, Any]:
    """What determines a run's rounding besides settings and data, as JSON values.

    Args:
        device: the device that the run computes on.
        compile: the setting ``compute.compile``.
        precision: the setting ``compute.precision``, which only CUDA has a choice of.
    """
    known = {
        "iidlib": __version__,
        "torch": torch.__version__,
        "device": device_kind(device),
        "kernels": kernels_in_use(device, compile),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }
    if device.type == "cuda":
        known |= {"cudnn": torch.backends.cudnn.version(), "precision": precision}
    return known


def mismatches(started: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Conditions that have changed since a run was started, each with its value then and now.

    The number of threads is not compared: a resumed run uses the number that it was started with.
    """
    return {
        name: [started[name], value]
        for name, value in now.items()
        if name != "threads" and name in started and started[name] != value
    }
