"""The standard networks. ``set_backend`` and ``fitted`` are about speed and may be skipped on a first reading."""

from iidlib.networks.architectures import NETWORKS, build_network, draw_parameters_, empty_network
from iidlib.networks.blocks import BACKENDS, ConvBlock, NormReLU, conv_blocks, replaceable, set_backend
from iidlib.networks.fitted import activation_bytes, check_network_for, frozen, network_bytes, network_for, prepare
from iidlib.networks.network import Network

__all__ = [
    "BACKENDS", "NETWORKS", "ConvBlock", "Network", "NormReLU", "activation_bytes", "build_network",
    "check_network_for", "conv_blocks", "draw_parameters_", "empty_network", "frozen", "network_bytes",
    "network_for", "prepare", "replaceable", "set_backend",
]  # fmt: skip
