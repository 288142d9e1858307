"""Names of the files that a run writes in its folder."""

import re

__all__ = ["CHECKPOINT_FILE", "LOCK", "RUN_FILE", "belongs_to_run"]

LOCK = ".lock"
"""Lock file, held by the process that is using the folder."""

RUN_FILE = re.compile(
    r"config\.yaml|environment\.json|metrics\.jsonl|scores(-incomplete|-[0-9]+)?\.json"
    r"|synthetic\.safetensors|synthetic(-expanded)?\.png"
)
"""Files of a run; scores with a number belong to a set that was replaced when the run was continued."""

CHECKPOINT_FILE = re.compile(r"[0-9]{7,}\.(safetensors|json)")
"""Files in the folder of checkpoints."""


def belongs_to_run(name: str) -> bool:
    """Whether a run writes a file or a folder of this name directly in its folder."""
    return name in (LOCK, "checkpoints") or bool(RUN_FILE.fullmatch(name))
