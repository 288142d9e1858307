"""A network that fits a dataset: built for its images and classes, on its device, made fast there."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from iidlib.data import DatasetSpec
from iidlib.engine import check_fits, compiler_available, configure, kernels
from iidlib.errors import InputError, suggest
from iidlib.names import network_name
from iidlib.networks.architectures import NETWORKS, Network, build_network, empty_network
from iidlib.networks.blocks import conv_blocks

__all__ = ["check_network_for", "frozen", "network_bytes", "network_for", "prepare"]


def prepare(network: nn.Module, *, compile: str = "auto") -> nn.Module:
    """Makes a network fast on its device, in place: channels-last weights and fused kernels.

    It also sets the switches of the process that speed depends on, as `engine.configure` says, once a process.

    Args:
        network: on the device where it will run.
        compile: ``"auto"`` (where a compiler is found), ``"on"`` (an error without one) or ``"off"``.

    Returns:
        The same network; its values change only by rounding.

    Raises:
        ValueError: for an unknown setting, or ``"on"`` without a compiler or a folder for what it makes.
    """
    check_compile(compile)
    network.to(memory_format=torch.channels_last)
    configure(compiled=compile != "off")
    if compile != "off" and compiler_available():
        for block in conv_blocks(network):
            if block.backend == "eager":  # any other was chosen
                block.use("fused")
    return network


def check_compile(compile: str) -> None:
    """Finds out whether `prepare` takes the setting here.

    Raises:
        ValueError: for an unknown setting, or ``"on"`` without a compiler or a folder for what it makes.
    """
    if compile not in ("auto", "on", "off"):
        raise ValueError(f"compute.compile must be auto, on or off, got {compile!r}")
    if compile == "on" and kernels.refusal():
        raise ValueError(
            f"compute.compile is on, but {kernels.refusal()}; set IID_CACHE to a folder that only you can change, or "
            "use auto"
        )
    if compile == "on" and not compiler_available():
        raise ValueError("compute.compile is on, but torch finds no C++ compiler here; install one or use auto")


def frozen(network: Network) -> Network:
    """The network with parameters that need no gradient; gradients still flow through it to the images."""
    return network.requires_grad_(False)


_WIDE = 1024
"""Channels beyond which a ConvNet may not fit, and its size is looked at before it is built."""


def network_bytes(name: str, spec: DatasetSpec, width: int) -> int:
    """Bytes of a network's weights, counted without making any.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels a layer; only ConvNets have the choice.

    Raises:
        ValueError: for an unknown network, or one that cannot take the images.
    """
    own = width if name.startswith("convnet") else None
    classes, size, channels = len(spec.classes), spec.image_size, spec.channels
    if own is None or own <= _WIDE:
        network = empty_network(name, num_classes=classes, image_size=size, channels=channels, width=own)
        return 4 * sum(parameter.numel() for parameter in network.parameters())
    # a quadratic function of the width, from which sizes follow that torch cannot count
    one, two, three = (network_bytes(name, spec, narrow) for narrow in (1, 2, 3))
    square = (three - 2 * two + one) // 2
    return square * own**2 + (two - one - 3 * square) * own + (3 * one - 3 * two + three)


def network_for(
    name: str,
    spec: DatasetSpec,
    *,
    width: int,
    generator: torch.Generator,
    compile: str = "auto",
) -> Network:
    """A network that fits a dataset, with fresh parameters, made fast on its device.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels a layer; only ConvNets have the choice.
        generator: draws its parameters, on its device, where the network is built.
        compile: as in ``networks.prepare``.

    Raises:
        InputError: for an unknown network, one that cannot take the images, or one whose weights no memory holds.
    """
    name = network_name(name)
    with _told_in_one_line(name):
        _check_width(name, spec, width, generator.device)
        network = build_network(name, **_fitting(name, spec, width), generator=generator)
        prepare(network, compile=compile)
    return network


def check_network_for(name: str, spec: DatasetSpec, *, width: int, compile: str = "auto") -> None:
    """Finds out before any work whether `network_for` would build a network.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels a layer; only ConvNets have the choice.
        compile: as in ``networks.prepare``.

    Raises:
        InputError: as `network_for`.
    """
    name = network_name(name)
    with _told_in_one_line(name):
        _check_width(name, spec, width, torch.device("cpu"))
        empty_network(name, **_fitting(name, spec, width))
        check_compile(compile)


def _check_width(name: str, spec: DatasetSpec, width: int, device: torch.device) -> None:
    """Refuses a ConvNet whose weights no memory holds.

    Raises:
        InputError: saying how much it would take.
    """
    if width > _WIDE and name.startswith("convnet"):
        weights = network_bytes(name, spec, width)
        check_fits({f"the weights of a {name} of width {width}: lower the width": weights}, device)


@contextlib.contextmanager
def _told_in_one_line(name: str) -> Iterator[None]:
    """Within the block, what a network cannot be built from is wrong input."""
    if name not in NETWORKS:
        raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None


def _fitting(name: str, spec: DatasetSpec, width: int) -> dict[str, Any]:
    """How a network is built for a dataset."""
    return {
        "num_classes": len(spec.classes),
        "image_size": spec.image_size,
        "channels": spec.channels,
        "width": width if name.startswith("convnet") else None,
    }
