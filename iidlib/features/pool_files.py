"""The files of a pool of pretrained networks: weights of its members, and ``pool.json``, which says what they are."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes

from iidlib.errors import InputError, one_line
from iidlib.files import atomic_write, check_writable, make_folders
from iidlib.networks import Network

__all__ = ["check_keepable", "keep", "load_weights", "read_facts"]

logger = logging.getLogger("iidlib")


def read_facts(folder: Path, fingerprint: str, *, explicit: bool) -> tuple[dict[str, float], dict[str, float]]:
    """What ``pool.json`` says of the members that are already in the folder.

    Args:
        folder: of the pool.
        fingerprint: of the data and settings that the pool is wanted for.
        explicit: the folder was asked for, and must be there.

    Returns:
        Held-out accuracy by member; and seconds of training by network, which pools of earlier versions do not say.

    Raises:
        InputError: if it is absent, damaged, or of other data or settings.
    """
    path = folder / "pool.json"
    if not path.is_file():
        if explicit and not folder.is_dir():
            raise InputError(f"pool.path: no folder {folder}; leave it out and a pool is trained and kept in the cache")
        return {}, {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        accuracies = {str(name): float(value) for name, value in facts["accuracies"].items()}
        seconds = {str(number): float(value) for number, value in facts.get("seconds", {}).items()}
        found = facts["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); remove the folder and the pool is trained again") from None
    if found != fingerprint:
        raise InputError(
            f"the pool in {folder} was trained with other data or settings ({found}, these are {fingerprint}); "
            "give the settings it was trained with, or another pool.path"
        )
    return accuracies, seconds


def check_keepable(folder: Path, name: str, *, private: bool) -> None:
    """Finds out before networks are trained whether they could be kept; leaves nothing behind.

    Args:
        folder: of the pool.
        name: of a member that is to be trained.
        private: as for `keep`.

    Raises:
        InputError: if its file could not be written.
    """
    try:
        check_writable(folder / f"{name}.safetensors")
    except OSError as error:
        raise InputError(_cannot_keep(folder, error, private=private)) from None


def _cannot_keep(folder: Path, error: OSError, *, private: bool) -> str:
    other = "set IID_CACHE to another folder" if private else "give another folder"
    return f"cannot keep the pool in {folder}: {error.strerror or error}; {other}"


def keep(folder: Path, name: str, content: bytes, facts: Mapping[str, Any], *, private: bool) -> bool:
    """Writes a member, then ``pool.json``, which says that it is there.

    Args:
        folder: of the pool.
        name: of the member.
        content: its weights, as they are stored.
        facts: what ``pool.json`` says.
        private: the folder is in the cache, for this user alone, and not one that was asked for.

    Returns:
        Whether it is kept; if the cache is full, the networks still serve this run, with a warning.

    Raises:
        InputError: if a folder that was asked for cannot be written.
    """
    try:
        make_folders(folder, private=private)
        atomic_write(folder / f"{name}.safetensors", content, private=private)
        atomic_write(folder / "pool.json", json.dumps(facts, indent=2) + "\n", private=private)
    except OSError as error:
        if not private:
            raise InputError(_cannot_keep(folder, error, private=private)) from None
        logger.warning(
            "%s; this run uses the networks, the next will train them again",
            _cannot_keep(folder, error, private=private),
        )
        return False
    return True


def load_weights(path: Path, network: Network, unkept: bytes | None = None) -> bytes:
    """Gives the network its weights, from its file or from what could not be kept; returns the file's content.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        content = path.read_bytes() if unkept is None else unkept
        network.load_state_dict(from_bytes(content))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = one_line(error)
        raise InputError(f"{path} is damaged ({reason}); remove its folder and the pool is trained again") from None
    return content
