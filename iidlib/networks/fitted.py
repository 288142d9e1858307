"""Networks built for a dataset: sized for its images and classes, placed on its device, optimised for speed."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from iidlib.data import DatasetSpec
from iidlib.engine import check_fits, compiler_available, configure, kernels
from iidlib.errors import InputError, suggest
from iidlib.names import network_name
from iidlib.networks.architectures import NETWORKS, build_network, empty_network
from iidlib.networks.blocks import replaceable
from iidlib.networks.network import Network

__all__ = ["check_network_for", "frozen", "network_bytes", "network_for", "prepare"]


def prepare(network: nn.Module, *, compile: str = "auto") -> nn.Module:
    """Makes a network fast on its device, in place: channels-last weights and fused kernels.

    It also sets the process-wide switches that speed depends on, once per process (see `engine.configure`).

    Args:
        network: the network, already on the device where it will run.
        compile: ``"auto"`` (on CUDA, and on a CPU where a compiler is found), ``"on"`` (an error without one) or
            ``"off"``.

    Returns:
        The same network; its values change only by rounding.

    Raises:
        ValueError: for an unknown setting, or ``"on"`` without a compiler or a folder for compiled kernels.
    """
    check_compile(compile)
    network.to(memory_format=torch.channels_last)
    configure(compiled=compile != "off")
    on_cuda = any(parameter.is_cuda for parameter in network.parameters())  # Triton needs no C++ compiler
    if compile != "off" and (on_cuda or compiler_available()):
        for module in replaceable(network):
            if module.backend == "eager":  # any other backend was chosen explicitly
                module.use("fused")
    return network


def check_compile(compile: str) -> None:
    """Checks whether `prepare` accepts the setting on this machine.

    Raises:
        ValueError: for an unknown setting, or ``"on"`` without a compiler or a folder for compiled kernels.
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
    """Turns off the gradients of the parameters; gradients still flow through the network to the images."""
    return network.requires_grad_(False)


_WIDE = 1024
"""Width above which a ConvNet may not fit in memory, so its size is checked before it is built."""


def network_bytes(name: str, spec: DatasetSpec, width: int) -> int:
    """Bytes of a network's weights, computed without allocating them.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels per layer; only ConvNets have a choice.

    Raises:
        ValueError: for an unknown network, or one that cannot take the images.
    """
    channel_width = width if name.startswith("convnet") else None
    if channel_width is None or channel_width <= _WIDE:
        network = empty_network(name, **_fitting(name, spec, width))
        return 4 * sum(parameter.numel() for parameter in network.parameters())
    # a quadratic function of the width, which also gives sizes that torch cannot represent
    one, two, three = (network_bytes(name, spec, narrow) for narrow in (1, 2, 3))
    square = (three - 2 * two + one) // 2
    return square * channel_width**2 + (two - one - 3 * square) * channel_width + (3 * one - 3 * two + three)


@functools.cache
def activation_bytes(name: str, spec: DatasetSpec, width: int) -> int:
    """Bytes per image that are kept for a backward pass through a network, counted without allocating them.

    They are counted for separate operations; fused kernels keep less.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels per layer; only ConvNets have a choice.

    Raises:
        ValueError: for an unknown network, or one that cannot take the images.
    """
    network = empty_network(name, **_fitting(name, spec, width)).train()

    def kept(count: int) -> int:
        storages = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # on the meta device, no storage has an address
            return tensor

        images = torch.zeros(count, spec.channels, spec.image_size, spec.image_size, device="meta").requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(images)
        return sum(storage.nbytes() for storage in storages.values())

    return kept(3) - kept(2)  # weights are kept too, whatever the number of images


def network_for(
    name: str,
    spec: DatasetSpec,
    *,
    width: int,
    generator: torch.Generator,
    compile: str = "auto",
) -> Network:
    """Builds a network for a dataset, with newly drawn parameters, and prepares it for its device.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels per layer; only ConvNets have a choice.
        generator: draws the parameters; the network is built on its device.
        compile: as in ``networks.prepare``.

    Raises:
        InputError: for an unknown network, one that cannot take the images, or one whose weights do not fit in memory.
    """
    name = network_name(name)
    with _input_errors(name):
        _check_width(name, spec, width, generator.device)
        network = build_network(name, **_fitting(name, spec, width), generator=generator)
        prepare(network, compile=compile)
    return network


def check_network_for(name: str, spec: DatasetSpec, *, width: int, compile: str = "auto") -> None:
    """Checks in advance whether `network_for` can build a network.

    Args:
        name: as in ``networks.NETWORKS``.
        spec: gives the number of classes, image size and channels.
        width: channels per layer; only ConvNets have a choice.
        compile: as in ``networks.prepare``.

    Raises:
        InputError: as `network_for`.
    """
    name = network_name(name)
    with _input_errors(name):
        _check_width(name, spec, width, torch.device("cpu"))
        empty_network(name, **_fitting(name, spec, width))
        check_compile(compile)


def _check_width(name: str, spec: DatasetSpec, width: int, device: torch.device) -> None:
    """Rejects a ConvNet whose weights do not fit in memory.

    Raises:
        InputError: with the memory that the weights would need.
    """
    if width > _WIDE and name.startswith("convnet"):
        weights = network_bytes(name, spec, width)
        check_fits({f"the weights of a {name} of width {width}: lower the width": weights}, device)


@contextlib.contextmanager
def _input_errors(name: str) -> Iterator[None]:
    """Turns a ValueError within the block into an InputError."""
    if name not in NETWORKS:
        raise InputError(f"unknown network {name!r}{suggest(name, NETWORKS)}")
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None


def _fitting(name: str, spec: DatasetSpec, width: int) -> dict[str, Any]:
    """Arguments of `build_network` for a dataset."""
    return {
        "num_classes": len(spec.classes),
        "image_size": spec.image_size,
        "channels": spec.channels,
        "width": width if name.startswith("convnet") else None,
    }
