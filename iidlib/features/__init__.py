"""Where features come from: random networks (DM), a queue in training (IDM), a pretrained pool (CC, iid-plus)."""

from iidlib.features.base import Drawn, NetworkSource
from iidlib.features.cached import CachedStatistics, ClassStatistics, measure_classes
from iidlib.features.network_queue import NetworkQueue
from iidlib.features.pool import Pool, choosing_pool, pool_fingerprint, pool_members, trained_pool
from iidlib.features.random_networks import RandomNetworks
from iidlib.features.stages import StageNetworks
from iidlib.features.trained import HeldOut

__all__ = [
    "CachedStatistics", "ClassStatistics", "Drawn", "HeldOut", "NetworkQueue", "NetworkSource", "Pool",
    "RandomNetworks", "StageNetworks", "choosing_pool", "measure_classes", "pool_fingerprint", "pool_members",
    "trained_pool",
]  # fmt: skip
