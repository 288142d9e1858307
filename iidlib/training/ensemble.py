"""Training of many networks of one architecture together, each as `training.fit` would train it alone.

A small network on a small set leaves a GPU idle: its kernels take microseconds, and launching them from Python takes
longer. Here the weights of K networks are held in tensors [K, ...], each network has its own orders and augmentation,
and a step of the whole ensemble is a fixed sequence of kernels on fixed buffers, recorded as a CUDA graph and replayed.
Everything that changes from step to step (indices, draws, learning rate) is copied into the buffers; nothing waits for
the device before training ends.

The gradients of a step are computed in one of two ways: *at once*, with one call for all K networks
(``torch.func.vmap``), or *in turn*, network by network, which needs the activations of only one at a time. Which is
faster depends on the device and the shapes (vmap turns convolutions into grouped ones, which not every library handles
well), so both are recorded and timed on the first batch, and the faster one is kept. If recording fails, or a recording
does not reproduce plain calls, the networks are trained in turn without one: slower, with the same values.

On a CPU, where launch costs are negligible, training one network after the other with the kernels of
`networks.prepare` is faster than either; both still work there and are tested against `training.fit`.
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
"""Largest relative difference (in norm) of a recorded update from a plain one.

In TF32, different kernels put some activations on the other side of the ReLU's kink, which changes a gradient by a few
hundredths; a recording that reads the wrong buffers is off by 100 %.
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
    """Trains networks in place, the k-th as ``fit(networks[k], ..., seed=seeds[k])`` would, up to rounding.

    Args:
        networks: K networks of one architecture and shape, on the labels' device; in training mode afterwards.
        examples: as in `training.fit`; receives the indices of all networks in one call, and must not wait for the
            device.
        training: as in `training.fit`.
        seeds: random seed of each network's orders and augmentation.
        on_epoch: called with the index of each finished epoch.
        hold: copy the weights to the networks before each `on_epoch`; not needed if it only counts epochs.

    Returns:
        The networks.

    Raises:
        ValueError: if the numbers of seeds and networks differ, there are none, or the networks are not alike.
    """
    return _Ensemble(networks, examples, training).fit(seeds, on_epoch, hold=hold)


class _Batch:
    """Buffers of a step with b images per network, and its recording, if there is one."""

    def __init__(self, networks: int, size: int, stages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.index = torch.zeros(networks, size, dtype=torch.int64, device=device)  # [K, b]
        self.op = torch.zeros(stages, networks, size, dtype=torch.int64, device=device)  # [S, K, b]
        self.u = torch.zeros(stages, networks, size, 3, device=device)  # [S, K, b, 3]
        self.partner = torch.zeros(networks, size, dtype=torch.int64, device=device)  # [K, b]
        self.box = torch.zeros(networks, 4, dtype=torch.int64, device=device)  # [K, 4]
        self.share = torch.ones(networks, dtype=dtype, device=device)  # [K]
        self.recording: Recording | None = None

    def of_network(self, number: int) -> "_Batch":
        """The part of one network that its loss needs, as views."""
        batch = copy.copy(self)
        batch.index = self.index[number : number + 1]  # [1, b]
        batch.partner = self.partner[number : number + 1]  # [1, b]
        batch.share = self.share[number : number + 1]  # [1]
        return batch


class _Ensemble:
    """K networks trained together: their weights and momenta as tensors [K, ...], and a step on them."""

    def __init__(
        self,
        networks: Sequence[Network],
        examples: Examples,
        training: Training,
        at_once: bool | None = None,
    ) -> None:
        """Stacks the weights of networks of one architecture and shape.

        Args:
            networks: K networks of one architecture and shape.
            examples: the training data.
            training: how to train.
            at_once: how a step computes gradients, see the module; None times both on CUDA, and is *in turn* elsewhere.

        Raises:
            ValueError: if there are no networks, or they are not alike.
        """
        if not networks:
            raise ValueError("no networks to train")
        shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in networks]
        if any(network.name != networks[0].name for network in networks) or any(each != shapes[0] for each in shapes):
            raise ValueError("networks trained together must have one architecture and one shape")
        self._networks = [network.train() for network in networks]
        # the weights of these two are never used: they are called with those of the ensemble
        self._network = copy.deepcopy(networks[0])
        self._plain = set_backend(copy.deepcopy(networks[0]), "eager")  # vmap cannot transform compiled kernels
        self._parameters = {
            name: _stack([dict(network.named_parameters())[name].detach() for network in networks]).requires_grad_()
            for name, _ in networks[0].named_parameters()
        }
        self._buffers = {
            name: _stack([dict(network.named_buffers())[name] for network in networks])
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
        # a tensor, so that a recorded step reads the current rate
        self._rate = torch.zeros((), dtype=weights[0].dtype, device=self._device)
        self.begin(training.lr)

    def fit(
        self, seeds: Sequence[int], on_epoch: Callable[[int], None] | None = None, *, hold: bool = True
    ) -> list[Network]:
        """Trains the networks from the first epoch to the last; see `fit_together`."""
        training = self._training
        if len(seeds) != len(self._networks):
            raise ValueError(f"every network needs a seed, got {len(self._networks)} networks and {len(seeds)} seeds")
        for epoch in range(training.epochs):
            for drop in training.drops:
                if drop.before == epoch:
                    self.begin(drop.lr, restart=drop.restart)
            draws = [stream(seed, epoch, "training") for seed in seeds]
            orders = torch.stack([torch.randperm(len(self._labels), generator=draw) for draw in draws])  # [K, N]
            for index in orders.split(training.batch, dim=1):  # [K, b]
                self.step(index, draws)
            if on_epoch is not None:
                if hold:
                    self.write_back()
                on_epoch(epoch)
        self.write_back()
        return self._networks

    def begin(self, lr: float, *, restart: bool = True) -> None:
        """Sets the learning rate; with `restart` also resets the momentum, as a new optimiser would."""
        self._rate.fill_(lr)
        if restart:
            torch._foreach_zero_(self._velocity)

    def step(self, index: Tensor, draws: Sequence[torch.Generator]) -> None:
        """Updates every network once, on its images [K, b], augmented with its own generator."""
        size = index.shape[1]
        batch = self._batches.get(size) or _Batch(len(index), size, len(self._stages), self._rate.dtype, self._device)
        self._load(batch.index, index)
        for stage, operations in enumerate(self._stages):
            drawn = [augment.sample(operations, size, draw, shared_op=True) for draw in draws]
            self._load(batch.op[stage], torch.stack([one.op for one in drawn]))  # [K, b]
            self._load(batch.u[stage], torch.stack([one.u for one in drawn]))  # [K, b, 3]
        if self._mixed:
            mixes = [cutmix.sample(size, self._side, self._mixed, draw) for draw in draws]
            self._load(batch.partner, torch.stack([mix.partner for mix in mixes]))  # [K, b]
            self._load(batch.box, torch.stack([mix.box for mix in mixes]))  # [K, 4]
            self._load(batch.share, torch.tensor([mix.share for mix in mixes]))  # [K]
        if size not in self._batches:
            self._batches[size] = batch
            self._record(batch)
        if batch.recording is not None:
            batch.recording.replay()
        else:
            self._update(batch, at_once=bool(self._at_once))

    def _load(self, buffer: Tensor, values: Tensor) -> None:
        # from pageable memory, the copy may wait for the device
        if self._device.type == "cuda":
            values = values.contiguous().pin_memory()
        buffer.copy_(values, non_blocking=True)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copies weights and running statistics back to the networks."""
        mine = [*self._parameters.values(), *self._buffers.values()]
        for k, network in enumerate(self._networks):
            theirs = [*network.parameters(), *network.buffers()]
            torch._foreach_copy_(theirs, [tensor[k] for tensor in mine])

    def _images(self, batch: _Batch) -> Tensor:
        """Augmented images of a step, [K, b, ...]."""
        networks, size = batch.index.shape
        images = self._images_of(batch.index.flatten())  # [K*b, ...]
        for stage, operations in enumerate(self._stages):
            op, u = batch.op[stage], batch.u[stage]  # [K, b], [K, b, 3]
            images = augment.apply_everywhere(images, op.flatten(), u.flatten(0, 1), operations)
        if self._mixed:
            per_network = zip(images.unflatten(0, (networks, size)), batch.partner, batch.box, strict=True)
            images = torch.cat([cutmix.apply(*one) for one in per_network])  # [K*b, ...]
        return images.contiguous(memory_format=torch.channels_last).unflatten(0, (networks, size))

    def _loss(self, logits: Tensor, batch: _Batch) -> Tensor:
        """Mean cross-entropy of each network, [K], from logits [K, b, C]; CutMix splits it between two labels."""
        labels = self._labels[batch.index]  # [K, b]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)  # [K]
        if not self._mixed:
            return loss
        partners = labels.gather(1, batch.partner).flatten()  # [K*b]
        other = F.cross_entropy(logits.flatten(0, 1), partners, reduction="none").view_as(labels).mean(1)  # [K]
        return batch.share * loss + (1 - batch.share) * other  # [K]

    def _gradients_at_once(self, batch: _Batch) -> list[Tensor]:
        """Gradients of each network's mean cross-entropy, [K, ...] per parameter, in one call for all networks."""

        def logits_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self._plain, (parameters, buffers), (images,))

        # batch norm's running statistics have an axis K like the weights, and are updated in place
        logits = vmap(logits_of)(self._parameters, self._buffers, self._images(batch))  # [K, b, C]
        return list(torch.autograd.grad(self._loss(logits, batch).sum(), list(self._parameters.values())))

    def _gradients_in_turn(self, batch: _Batch) -> list[Tensor]:
        """Same gradients, network by network."""
        gradients = []
        for k, images in enumerate(self._images(batch)):
            parameters = {name: values[k].detach().requires_grad_() for name, values in self._parameters.items()}
            buffers = {name: values[k] for name, values in self._buffers.items()}
            logits = functional_call(self._network, (parameters, buffers), (images,))  # [b, C]
            loss = self._loss(logits[None], batch.of_network(k)).squeeze(0)  # []
            gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        return [torch.stack(each) for each in zip(*gradients, strict=True)]  # [K, ...] per parameter

    def _update(self, batch: _Batch, *, at_once: bool) -> None:
        """One step of SGD on the data in the buffers."""
        gradients = self._gradients_at_once(batch) if at_once else self._gradients_in_turn(batch)
        with torch.no_grad():
            weights = list(self._parameters.values())
            torch._foreach_mul_(self._velocity, MOMENTUM)
            torch._foreach_add_(self._velocity, gradients)
            torch._foreach_add_(self._velocity, weights, alpha=WEIGHT_DECAY)
            torch._foreach_sub_(weights, torch._foreach_mul(self._velocity, self._rate))

    def _record(self, batch: _Batch) -> None:
        """Records the ways to compute gradients that were asked for; keeps the fastest that agrees with plain calls."""
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


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks K tensors to [K, ...]; weights of convolutions stay channels-last."""
    if tensors[0].ndim != 4:
        return torch.stack(list(tensors))
    channels_last = torch.stack([tensor.permute(0, 2, 3, 1) for tensor in tensors])  # [K, O, h, w, I]
    return channels_last.permute(0, 1, 4, 2, 3)  # [K, O, I, h, w]
