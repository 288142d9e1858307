"""The settings of a run; users need the names below and may skip `recipes`, the tables that presets are made of."""

from iidlib.config.overrides import differing, fingerprint, from_yaml, override, preset, resolved, settings, to_yaml
from iidlib.config.recipes import SCALES, protocol, published
from iidlib.config.schema import (
    CheckpointConfig,
    ComputeConfig,
    Drop,
    EvalProtocol,
    MatchConfig,
    PoolConfig,
    QueueConfig,
    RunConfig,
    SynConfig,
)

__all__ = ["SCALES", "CheckpointConfig", "ComputeConfig", "Drop", "EvalProtocol", "MatchConfig", "PoolConfig",
           "QueueConfig", "RunConfig", "SynConfig", "differing", "fingerprint", "from_yaml", "override", "preset",
           "protocol", "published", "resolved", "settings", "to_yaml"]  # fmt: skip
