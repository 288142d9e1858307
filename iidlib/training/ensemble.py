"""Many networks of one architecture trained together, each as `training.fit` would train it by itself.

A small network on a small set leaves a GPU idle: its kernels take microseconds, and launching them from Python takes
longer. Here the weights of K networks lie in stacked tensors [K, ...], each network has its own orders and
augmentation, and a step of all of them is a fixed sequence of kernels on fixed buffers, recorded as a CUDA graph and
replayed. All that changes from step to step (indices, draws, learning rate) is copied into the buffers; nothing waits
for the device before training ends.

The gradients of a step come in two forms: *at once*, one call of the network for all stacked weights
(``torch.func.vmap``), and *in turn*, network after network, which needs the activations of one only. Which is faster
depends on the device and the shapes (vmap turns convolutions into grouped ones, which not every library does well), so
both are recorded and timed on the first batch, and the faster one stays. Where recording fails, or a recording does not
do what plain calls do, networks take their turns without one: slower, and the same values.

On a CPU, where launching costs nothing beside the arithmetic, training one network after the other with the kernels of
`networks.prepare` is faster than either form; both run there all the same, and are tested against `training.fit`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from iidlib import augment
from iidlib.engine import Recording, recorded
from iidlib.networks import Network, set_backend
from iidlib.rng import stream
from iidlib.training import cutmix
from iidlib.training.loop import MOMENTUM, WEIGHT_DECAY, Examples, Training, augmentation_stages

__all__ = ["fit_together"]

TOLERANCE = 1e-1
"""Largest norm-wise difference of a recorded update from a plain one.

In TF32, other kernels put some activations on the other side of the ReLU's kink, which changes a gradient by
hundredths; a recording that reads the wrong buffers is off by its whole size.
"""


def fit_together(
    networks: Sequence[Network],
    examples: Examples,
    training: Training,
    *,
    seeds: Sequence[int],
    on_epoch: Callable[[int], None] | None = None,
    hold: bool = True,
) -> list[Network]:
    """Trains networks in place; the k-th as ``fit(networks[k], ..., seed=seeds[k])`` would, up to rounding.

    Args:
        networks: K of one architecture and shape, on the labels' device; in training mode afterwards.
        examples: as in `training.fit`; gets the indices of all networks in one call, and must not wait for the device.
        training: as in `training.fit`.
        seeds: of each network's orders and augmentation.
        on_epoch: called with the index of each epoch that is done.
        hold: whether the networks hold an epoch's weights when `on_epoch` is called; who only counts epochs needs none
            of the copies.

    Returns:
        The networks.

    Raises:
        ValueError: if there are not as many seeds as networks, or none, or the networks are not alike.
    """
    return _Stack(networks, examples, training).fit(seeds, on_epoch, hold=hold)


class _Batch:
    """The buffers of a step with b images a network, and its recording, where there is one."""

    def __init__(self, networks: int, size: int, stages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.index = torch.zeros(networks, size, dtype=torch.int64, device=device)
        self.op = torch.zeros(stages, networks, size, dtype=torch.int64, device=device)
        self.u = torch.zeros(stages, networks, size, 3, device=device)
        self.partner = torch.zeros(networks, size, dtype=torch.int64, device=device)
        self.box = torch.zeros(networks, 4, dtype=torch.int64, device=device)
        self.share = torch.ones(networks, dtype=dtype, device=device)
        self.recording: Recording | None = None

    def of_network(self, number: int) -> "_Batch":
        """What one network needs for its loss, as views."""
        own = copy.copy(self)
        own.index, own.partner = self.index[number : number + 1], self.partner[number : number + 1]
        own.share = self.share[number : number + 1]
        return own


class _Stack:
    """K networks in training: stacked weights and momenta, and a step on them."""

    def __init__(
        self,
        networks: Sequence[Network],
        examples: Examples,
        training: Training,
        at_once: bool | None = None,
    ) -> None:
        """Stacks the weights of networks that are alike.

        Args:
            networks: K of one architecture and shape.
            examples: what they learn.
            training: how.
            at_once: the form of a step, see the module; None measures it on CUDA, and is *in turn* elsewhere.

        Raises:
            ValueError: if there are no networks, or they are not alike.
        """
        if not networks:
            raise ValueError("no networks to train")
        shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in networks]
        if any(network.name != networks[0].name for network in networks) or any(own != shapes[0] for own in shapes):
            raise ValueError("networks that train together have one architecture and one shape")
        self._networks = [network.train() for network in networks]
        # the weights of these two are never used: they are called with those of the stack
        self._network = copy.deepcopy(networks[0])
        self._plain = set_backend(copy.deepcopy(networks[0]), "eager")  # vmap cannot look into compiled kernels
        self._parameters = {
            name: _stacked([dict(network.named_parameters())[name].detach() for network in networks]).requires_grad_()
            for name, _ in networks[0].named_parameters()
        }
        self._buffers = {
            name: _stacked([dict(network.named_buffers())[name] for network in networks])
            for name, _ in networks[0].named_buffers()
        }
        self._images_of, self._labels, self._device = examples.images_of, examples.labels, examples.labels.device
        self._training = training
        self._stages = [augment.parse_strategy(stage) for stage in augmentation_stages(training.augmentation)]
        self._mixed, self._side = training.cutmix, networks[0].image_size
        self._at_once = at_once
        self._batches: dict[int, _Batch] = {}
        weights = list(self._parameters.values())
        self._velocity = [torch.zeros_like(weight) for weight in weights]
        # a tensor, so that a recorded step reads the rate of the day
        self._rate = torch.zeros((), dtype=weights[0].dtype, device=self._device)
        self.begin(training.lr)

    def fit(
        self, seeds: Sequence[int], on_epoch: Callable[[int], None] | None = None, *, hold: bool = True
    ) -> list[Network]:
        """Trains the networks from the first epoch to the last; see `fit_together`."""
        training = self._training
        if len(seeds) != len(self._networks):
            raise ValueError(f"every network has its seed, got {len(self._networks)} networks and {len(seeds)} seeds")
        for epoch in range(training.epochs):
            for drop in training.drops:
                if drop.before == epoch:
                    self.begin(drop.lr, restart=drop.restart)
            draws = [stream(seed, epoch, "training") for seed in seeds]
            orders = torch.stack([torch.randperm(len(self._labels), generator=own) for own in draws])
            for index in orders.split(training.batch, dim=1):
                self.step(index, draws)
            if on_epoch is not None:
                if hold:
                    self.write_back()
                on_epoch(epoch)
        self.write_back()
        return self._networks

    def begin(self, lr: float, *, restart: bool = True) -> None:
        """Goes on at a rate; with `restart` as a new optimiser, whose momentum starts from nothing."""
        self._rate.fill_(lr)
        if restart:
            torch._foreach_zero_(self._velocity)

    def step(self, index: Tensor, draws: Sequence[torch.Generator]) -> None:
        """One step of every network, on its images [K, b] under augmentation from its generator."""
        size = index.shape[1]
        batch = self._batches.get(size) or _Batch(len(index), size, len(self._stages), self._rate.dtype, self._device)
        self._load(batch.index, index)
        for stage, operations in enumerate(self._stages):
            drawn = [augment.sample(operations, size, own, shared_op=True) for own in draws]
            self._load(batch.op[stage], torch.stack([one.op for one in drawn]))
            self._load(batch.u[stage], torch.stack([one.u for one in drawn]))
        if self._mixed:
            mixes = [cutmix.sample(size, self._side, self._mixed, own) for own in draws]
            self._load(batch.partner, torch.stack([one.partner for one in mixes]))
            self._load(batch.box, torch.stack([one.box for one in mixes]))
            self._load(batch.share, torch.tensor([one.share for one in mixes]))
        if size not in self._batches:
            self._batches[size] = batch
            self._record(batch)
        if batch.recording is not None:
            batch.recording.replay()
        else:
            self._update(batch, at_once=bool(self._at_once))

    def _load(self, buffer: Tensor, values: Tensor) -> None:
        # pinned memory, because the driver may wait for the device to copy from any other
        if self._device.type == "cuda":
            values = values.contiguous().pin_memory()
        buffer.copy_(values, non_blocking=True)

    @torch.no_grad()
    def write_back(self) -> None:
        """Gives the networks their weights and running statistics."""
        mine = [*self._parameters.values(), *self._buffers.values()]
        for k, network in enumerate(self._networks):
            theirs = [*network.parameters(), *network.buffers()]
            torch._foreach_copy_(theirs, [tensor[k] for tensor in mine])

    def _images(self, batch: _Batch) -> Tensor:
        """The augmented images of a step, [K, b, ...]."""
        networks, size = batch.index.shape
        images = self._images_of(batch.index.flatten())
        for stage, operations in enumerate(self._stages):
            op, u = batch.op[stage], batch.u[stage]
            images = augment.apply_everywhere(images, op.flatten(), u.flatten(0, 1), operations)
        if self._mixed:
            own = zip(images.unflatten(0, (networks, size)), batch.partner, batch.box, strict=True)
            images = torch.cat([cutmix.apply(*one) for one in own])
        return images.contiguous(memory_format=torch.channels_last).unflatten(0, (networks, size))

    def _loss(self, logits: Tensor, batch: _Batch) -> Tensor:
        """Mean cross-entropy of each network, [K], from logits [K, b, C]; mixed batches share it between two labels."""
        labels = self._labels[batch.index]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)
        if not self._mixed:
            return loss
        partners = labels.gather(1, batch.partner).flatten()
        other = F.cross_entropy(logits.flatten(0, 1), partners, reduction="none").view_as(labels).mean(1)
        return batch.share * loss + (1 - batch.share) * other

    def _gradients_at_once(self, batch: _Batch) -> list[Tensor]:
        """Of each network's mean cross-entropy on its own weights, in one call for all networks."""

        def logits_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self._plain, (parameters, buffers), (images,))

        # batch norm's running statistics are stacked like the weights, and updated in place
        logits = vmap(logits_of)(self._parameters, self._buffers, self._images(batch))
        return list(torch.autograd.grad(self._loss(logits, batch).sum(), list(self._parameters.values())))

    def _gradients_in_turn(self, batch: _Batch) -> list[Tensor]:
        """The same, network after network."""
        gradients = []
        for k, images in enumerate(self._images(batch)):
            parameters = {name: stack[k].detach().requires_grad_() for name, stack in self._parameters.items()}
            buffers = {name: stack[k] for name, stack in self._buffers.items()}
            logits = functional_call(self._network, (parameters, buffers), (images,))
            loss = self._loss(logits[None], batch.of_network(k)).squeeze(0)
            gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        return [torch.stack(own) for own in zip(*gradients, strict=True)]

    def _update(self, batch: _Batch, *, at_once: bool) -> None:
        """A step of SGD from what lies in the buffers."""
        gradients = self._gradients_at_once(batch) if at_once else self._gradients_in_turn(batch)
        with torch.no_grad():
            weights = list(self._parameters.values())
            torch._foreach_mul_(self._velocity, MOMENTUM)
            torch._foreach_add_(self._velocity, gradients)
            torch._foreach_add_(self._velocity, weights, alpha=WEIGHT_DECAY)
            torch._foreach_sub_(weights, torch._foreach_mul(self._velocity, self._rate))

    def _record(self, batch: _Batch) -> None:
        """Records the forms that are asked for and keeps the faster one that agrees with plain calls."""
        forms = {"at once": True, "in turn": False}
        if self._at_once is not None:
            forms = {name: at_once for name, at_once in forms.items() if at_once == self._at_once}
        batch.recording = recorded(
            {name: partial(self._update, batch, at_once=at_once) for name, at_once in forms.items()},
            list(self._parameters.values()),
            state=[*self._velocity, *self._buffers.values()],
            plain=partial(self._update, batch, at_once=False),
            tolerance=TOLERANCE,
            what="training",
        )


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """[K, ...]; weights of convolutions stay channels-last."""
    if tensors[0].ndim != 4:
        return torch.stack(list(tensors))
    return torch.stack([tensor.permute(0, 2, 3, 1) for tensor in tensors]).permute(0, 1, 4, 2, 3)
