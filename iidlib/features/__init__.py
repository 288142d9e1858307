"""Sources of features: random networks (DM), a queue of training networks (IDM), a pretrained pool (CC, iid-plus)."""

from iidlib.features.base import Drawn, FixedNetwork, NetworkSource
from iidlib.features.cached import CachedStatistics, ClassStatistics, measure_classes
from iidlib.features.choices import choosing_network, chosen_images, cluster_centres, easiest
from iidlib.features.network_queue import NetworkQueue
from iidlib.features.pool import Pool, choosing_pool, pool_fingerprint, pool_members, trained_pool
from iidlib.features.random_networks import RandomNetworks
from iidlib.features.stages import StageNetworks
from iidlib.features.trained import HeldOut

__all__ = [
    "CachedStatistics", "ClassStatistics", "Drawn", "FixedNetwork", "HeldOut", "NetworkQueue", "NetworkSource",
    "Pool", "RandomNetworks", "StageNetworks", "choosing_network", "choosing_pool", "chosen_images", "cluster_centres",
    "easiest", "measure_classes", "pool_fingerprint", "pool_members", "trained_pool",
]  # fmt: skip
