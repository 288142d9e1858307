"""Training of one network on labelled images, and its accuracy; shared by pools and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib import augment
from iidlib.config import Drop
from iidlib.data import RealSet
from iidlib.engine import default_chunk, in_chunks
from iidlib.errors import InputError
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.training import cutmix
from iidlib.training.outcome import Outcome, Outputs

__all__ = [
    "MOMENTUM",
    "UPDATE_TOLERANCE",
    "WEIGHT_DECAY",
    "Examples",
    "Reached",
    "Training",
    "accuracy",
    "augmentation_stages",
    "fit",
    "reached",
    "resolve_augmentation",
]

MOMENTUM = 0.9
"""Momentum of the SGD that trains networks."""

WEIGHT_DECAY = 5e-4
"""Weight decay of the SGD that trains networks."""

UPDATE_TOLERANCE = 1e-1
"""Largest relative difference, in norm, of a network's update from the same update by other kernels.

In TF32, different kernels put some activations on the other side of the ReLU's kink, which changes a gradient by a few
hundredths; a recording that reads the wrong buffers is off by 100 %.
"""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images to train on, looked up when they are needed.

    Attributes:
        images_of: returns normalised images [b, K, H, H] for indices [b] into the labels, on the labels' device.
        labels: classes, int64 [N].
    """

    images_of: Callable[[Tensor], Tensor]
    labels: Tensor


@dataclass(frozen=True)
class Training:
    """How a network is trained: SGD with momentum 0.9 and weight decay 5e-4 on the cross-entropy."""

    epochs: int
    """Number of epochs, each in a new random order; the last, smaller batch of an epoch is kept."""
    lr: float
    """Learning rate up to the first drop."""
    batch: int
    """Images per step and network."""
    drops: tuple[Drop, ...] = ()
    """Changes of the learning rate before some epochs; ``restart`` also makes a new optimiser, as in the official
    protocol."""
    augmentation: str = "none"
    """DSA operations joined by ``_``, of which one is drawn per batch, with parameters per image; several such stages
    are joined by ``>``; ``none`` for none."""
    cutmix: float = 0.0
    """Probability that a batch is mixed by CutMix, after the augmentation."""


def resolve_augmentation(setting: str, dataset_default: str) -> str:
    """DSA operations for a setting: ``auto`` means the dataset's own, ``none`` means no augmentation.

    Raises:
        InputError: for an unknown operation.
    """
    strategy = dataset_default if setting == "auto" else setting
    if strategy != "none":
        try:
            augment.parse_strategy(strategy)
        except ValueError as error:
            raise InputError(str(error)) from None
    return strategy


def augmentation_stages(strategy: str) -> tuple[str, ...]:
    """Strategies of an augmentation, applied one after the other; empty for ``none``.

    Raises:
        InputError: for an unknown operation.
    """
    stages = () if strategy == "none" else tuple(strategy.split(">"))
    return tuple(resolve_augmentation(stage, "none") for stage in stages)


def fit(
    network: Network,
    examples: Examples,
    training: Training,
    *,
    seed: int,
    on_epoch: Callable[[int], None] | None = None,
) -> Network:
    """Trains a network in place.

    Args:
        network: the network, on the labels' device; in training mode afterwards.
        examples: the training data.
        training: how to train.
        seed: random seed of the orders and the augmentation.
        on_epoch: called with the index of each finished epoch.

    Returns:
        The network.

    Raises:
        InputError: for an unknown augmentation operation.
    """
    labels = examples.labels

    def optimiser(rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    network.train()
    sgd, stages = optimiser(training.lr), augmentation_stages(training.augmentation)
    for epoch in range(training.epochs):
        for drop in training.drops:
            if drop.before == epoch and drop.restart:
                sgd = optimiser(drop.lr)
            elif drop.before == epoch:
                sgd.param_groups[0]["lr"] = drop.lr
        draws = stream(seed, epoch, "training")
        for index in torch.randperm(len(labels), generator=draws).split(training.batch):
            index = index.to(labels.device)
            images = examples.images_of(index)
            for stage in stages:
                images = augment.apply(images, augment.sample(stage, len(index), draws, shared_op=True))
            mix = cutmix.sample(len(index), images.shape[-1], training.cutmix, draws) if training.cutmix else None
            if mix is not None:
                images = cutmix.apply(images, mix.partner.to(images.device), mix.box.to(images.device))
            images = images.contiguous(memory_format=torch.channels_last)
            logits = network(images)
            loss = F.cross_entropy(logits, labels[index])
            if mix is not None:
                other = F.cross_entropy(logits, labels[index[mix.partner.to(index.device)]])
                loss = mix.share * loss + (1 - mix.share) * other
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        if on_epoch is not None:
            on_epoch(epoch)
    return network


@dataclass(frozen=True)
class Reached:
    """Performance of a network on images that it was not trained on."""

    accuracy: float
    """Share of images whose largest logit is their label, in percent."""
    outcome: Outcome
    """How training ended."""


def accuracy(network: Network, real: RealSet, chunk: int = 0) -> float:
    """Share of images whose largest logit is their label, in percent; the network is put in evaluation mode.

    Args:
        network: the network, on the images' device.
        real: the images to classify.
        chunk: maximum number of images in one forward pass, 0 for the device's default.
    """
    return reached(network, real, chunk).accuracy


@torch.no_grad()
def reached(network: Network, real: RealSet, chunk: int = 0) -> Reached:
    """Accuracy as in `accuracy`, and whether the network's outputs are meaningful."""
    network.eval()
    outputs = Outputs()
    correct = torch.zeros((), dtype=torch.int64, device=real.device)
    for index in torch.arange(len(real)).split(2000):
        images = real.images_of(index).contiguous(memory_format=torch.channels_last)
        logits = in_chunks(network, images, chunk or default_chunk(real.device))
        outputs.add(logits)
        correct += (logits.argmax(1) == real.labels[index.to(real.device)]).sum()
    return Reached(100 * int(correct) / len(real), outputs.outcome)
