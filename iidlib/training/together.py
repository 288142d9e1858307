"""How many networks train together, in which form, and what is recorded about it in results."""

from dataclasses import dataclass
from typing import Literal

import torch

from iidlib.config import ComputeConfig
from iidlib.data import DatasetSpec
from iidlib.engine import default_together, total_bytes
from iidlib.networks import activation_bytes, check_network_for, network_bytes

__all__ = ["Form", "HowTrained", "default_form", "networks_together"]

Form = Literal["at_once", "in_turn"]
"""How a step computes the gradients of K networks: with one call for all (``torch.func.vmap``), or one by one."""

COPIES = 12
"""Tensors of the size of a network's weights per trained network: its own weights, those of the ensemble, momenta,
gradients and their stack, an update, and the copies with which a recording is verified."""

IMAGE_COPIES = 8
"""Tensors of the size of a batch per network: images, and their augmentation by every operation."""


@dataclass(frozen=True)
class HowTrained:
    """How an ensemble was trained, for the provenance of results."""

    form: Form
    """The form that ran, which is not the one that was asked for if that one did not work."""
    recorded: bool
    """Whether all steps were replays of recordings."""

    def __str__(self) -> str:
        """Text in tables of results, such as ``in_turn, recorded``."""
        return f"{self.form}, recorded" if self.recorded else self.form


MATRIX_PRODUCTS = ("mlp",)
"""Architectures without convolutions."""


def default_form(name: str, device: torch.device) -> Form:
    """The form of ``compute.ensemble=auto``: in turn, except for networks without convolutions on CUDA.

    It is a rule and not the outcome of a measurement during the run, because the two forms round differently: in TF32 a
    gradient changes by up to a few hundredths, so two runs of one seed must not differ in it. In turn is the better
    rule for networks with convolutions:

    - vmap turns convolutions with K sets of weights into grouped ones of K groups, whose training is slow in cuDNN
      (pytorch issue 70954), in the channels-last format in particular. On a CPU they take 7 to 14 times as long as one
      network after another.
    - A network's result does not depend on how many others train with it, nor therefore on the device's memory.
    - It needs the activations of one network instead of K.

    Without convolutions, vmap makes batched matrix products, which GPUs compute as well as single ones.

    Args:
        name: architecture, as in ``networks.NETWORKS``.
        device: device of the training.
    """
    return "at_once" if device.type == "cuda" and name in MATRIX_PRODUCTS else "in_turn"


def networks_together(
    name: str, spec: DatasetSpec, *, width: int, batch: int, device: torch.device, compute: ComputeConfig
) -> int:
    """Number of networks of one architecture that train together.

    It is ``compute.together`` if that is given, otherwise the default of the device, on CUDA limited so that weights,
    momenta, gradients and activations take at most half of the device's total memory. The free memory does not matter,
    so that equal devices give equal groups whatever else they hold.

    Args:
        name: architecture, as in ``networks.NETWORKS``.
        spec: the dataset, for the size of images and the number of classes.
        width: channels per layer; only ConvNets have a choice.
        batch: images per step and network.
        device: the device of the training.
        compute: the number, if it is given, and the form.

    Raises:
        InputError: for an unknown network, or one that cannot take the images; only where the default is limited.
    """
    most = compute.together or default_together(device)
    total = total_bytes(device)
    if compute.together or total is None:
        return most
    check_network_for(name, spec, width=width)
    activations = batch * activation_bytes(name, spec, width)
    each = COPIES * network_bytes(name, spec, width) + IMAGE_COPIES * 4 * batch * spec.channels * spec.image_size**2
    form = default_form(name, device) if compute.ensemble == "auto" else compute.ensemble
    left = total // 2
    if form == "at_once":
        each += activations
    else:
        left -= activations
    return max(1, min(most, left // each))
