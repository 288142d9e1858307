"""The paper's equations (`paper`) and distances between distributions; ``masked`` holds helpers that may be skipped."""

from iidlib.losses.distributions import characteristic_distance, kernel_distance
from iidlib.losses.paper import (
    class_centralization, class_cross_entropy, class_mean, covariance_matching, covariance_matching_to,
    local_covariance, mean_matching, mean_matching_to, scatter, squared_distances,
)  # fmt: skip

__all__ = [
    "characteristic_distance", "class_centralization", "class_cross_entropy", "class_mean", "covariance_matching",
    "covariance_matching_to", "kernel_distance", "local_covariance", "mean_matching", "mean_matching_to",
    "scatter", "squared_distances",
]  # fmt: skip
