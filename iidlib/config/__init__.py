"""The settings of a run. Users need the names below; `recipes` holds the tables that presets are built from."""

from iidlib.config.overrides import (
    check_weights_by_hand, differing, fingerprint, flattened, from_yaml, override, preset, resolved, settings, to_yaml,
)  # fmt: skip
from iidlib.config.protocols import Drop, EvalProtocol
from iidlib.config.recipes import SCALES, protocol, published
from iidlib.config.schema import (
    CheckpointConfig, ComputeConfig, MatchConfig, PoolConfig, QueueConfig, RunConfig, StageConfig, SynConfig,
)  # fmt: skip
from iidlib.config.uses import without_effect

__all__ = [
    "SCALES", "CheckpointConfig", "ComputeConfig", "Drop", "EvalProtocol", "MatchConfig", "PoolConfig", "QueueConfig",
    "RunConfig", "StageConfig", "SynConfig", "check_weights_by_hand", "differing", "fingerprint", "flattened",
    "from_yaml", "override", "preset", "protocol", "published", "resolved", "settings", "to_yaml", "without_effect",
]  # fmt: skip
