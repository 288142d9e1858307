"""Training of many networks of one architecture together, each as `training.fit` would train it alone.

A small network on a small set leaves a GPU idle: its kernels take microseconds, and launching them from Python takes
longer. Here the weights of K networks are held in tensors [K, ...], each network has its own orders and augmentation,
and a step of the whole ensemble is a fixed sequence of kernels on fixed buffers, recorded as a CUDA graph and replayed.
What changes from step to step (indices, draws) is copied to the device for an epoch at once and read there by a
counter, see `iidlib.training.ensemble_draws`; the learning rate is a buffer. So a step is one launch. Nothing waits for
the device before training ends, except that the host draws at most two epochs ahead of it.

The gradients of a step are computed in one of two forms: *at once*, with one call for all K networks
(``torch.func.vmap``), or *in turn*, network by network. Settings choose the form (`together.default_form` explains the
default); *at once* is used only if its gradients on the first batch agree with those *in turn*. If recording fails, or
a recording does not reproduce plain calls, the same form runs without one: slower, with the same values.

On a CPU, where launch costs are negligible, training one network after the other with the kernels of
`networks.prepare` is faster than either; both still work there and are tested against `training.fit`.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from iidlib import augment
from iidlib.augment_ops import apply_drawn
from iidlib.engine import Recording, recorded
from iidlib.errors import first_line, shown_cause
from iidlib.networks import Network, set_backend
from iidlib.rng import stream
from iidlib.training import cutmix
from iidlib.training.ensemble_draws import DrawnSteps, StepDraws
from iidlib.training.loop import (
    MOMENTUM,
    UPDATE_TOLERANCE,
    WEIGHT_DECAY,
    Examples,
    Training,
    augmentation_stages,
)
from iidlib.training.together import Form, HowTrained, default_form

__all__ = ["fit_together"]

logger = logging.getLogger("iidlib")

ALIGNMENT = 64
"""Bytes that the values of each network should begin at a multiple of."""


def fit_together(
    networks: Sequence[Network],
    examples: Examples,
    training: Training,
    *,
    seeds: Sequence[int],
    on_epoch: Callable[[int], None] | None = None,
    hold: bool = True,
    form: Literal["auto"] | Form = "auto",
    compiled: bool = True,
) -> HowTrained:
    """Trains networks in place, the k-th as ``fit(networks[k], ..., seed=seeds[k])`` would, up to rounding.

    Args:
        networks: K networks of one architecture and shape, on the labels' device; in training mode afterwards.
        examples: as in `training.fit`; receives the indices of all networks in one call, and must not wait for the
            device.
        training: as in `training.fit`.
        seeds: random seed of each network's orders and augmentation.
        on_epoch: called with the index of each epoch, once its steps are done or, on CUDA, queued: the device is then
            at most two epochs behind.
        hold: copy the weights to the networks before each `on_epoch`; not needed if it only counts epochs.
        form: how a step computes gradients, the setting ``compute.ensemble``. If *at once* raises or does not agree
            with *in turn* on the first batch, *in turn* is used, with a warning.
        compiled: whether the augmentation may use a compiled kernel; the networks know for themselves.

    Returns:
        How the steps ran.

    Raises:
        ValueError: if the numbers of seeds and networks differ, there are none, or the networks are not alike.
    """
    return _Ensemble(networks, examples, training, form, compiled=compiled).fit(seeds, on_epoch, hold=hold)


class _Batch:
    """Draws of steps with one number of images per network, and the recording of such a step, if there is one."""

    def __init__(self, draws: DrawnSteps) -> None:
        self.draws, self.prepared = draws, False
        self.recording: Recording | None = None


class _Ensemble:
    """K networks trained together: their weights and momenta as tensors [K, ...], and a step on them."""

    def __init__(
        self,
        networks: Sequence[Network],
        examples: Examples,
        training: Training,
        form: Literal["auto"] | Form = "auto",
        *,
        compiled: bool = True,
    ) -> None:
        """Stacks the weights of networks of one architecture and shape.

        Args:
            networks: K networks of one architecture and shape.
            examples: the training data.
            training: how to train.
            form: how a step computes gradients, as in `fit_together`.
            compiled: whether the augmentation may use a compiled kernel.

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
        self._plain = copy.deepcopy(networks[0])
        if examples.labels.device.type != "cuda":
            set_backend(self._plain, "eager")  # vmap cannot transform the kernels of a CPU
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
        self._compiled = compiled
        self._stages = [augment.parse_strategy(stage) for stage in augmentation_stages(training.augmentation)]
        self._mixed, self._side = training.cutmix, networks[0].image_size
        self._form: Form = default_form(networks[0].name, self._device) if form == "auto" else form
        self._agreed = False
        self._batches: dict[int, _Batch] = {}
        weights = list(self._parameters.values())
        self._velocity = [torch.zeros_like(weight) for weight in weights]
        # a tensor, so that a recorded step reads the current rate
        self._rate = torch.zeros((), dtype=weights[0].dtype, device=self._device)
        self.begin(training.lr)

    def fit(
        self, seeds: Sequence[int], on_epoch: Callable[[int], None] | None = None, *, hold: bool = True
    ) -> HowTrained:
        """Trains the networks from the first epoch to the last; see `fit_together`."""
        training = self._training
        if len(seeds) != len(self._networks):
            raise ValueError(f"every network needs a seed, got {len(self._networks)} networks and {len(seeds)} seeds")
        for epoch in range(training.epochs):
            for drop in training.drops:
                if drop.before == epoch:
                    self.begin(drop.lr, restart=drop.restart)
            draws = [stream(seed, epoch, "training") for seed in seeds]
            self.train_epoch(torch.stack([torch.randperm(len(self._labels), generator=draw) for draw in draws]), draws)
            if on_epoch is not None:
                if hold:
                    self.write_back()
                on_epoch(epoch)
        self.write_back()
        recordings = [batch.recording for batch in self._batches.values()]
        return HowTrained(self._form, bool(recordings) and None not in recordings)

    def begin(self, lr: float, *, restart: bool = True) -> None:
        """Sets the learning rate; with `restart` also resets the momentum, as a new optimiser would."""
        self._rate.fill_(lr)
        if restart:
            torch._foreach_zero_(self._velocity)

    def train_epoch(self, orders: Tensor, draws: Sequence[torch.Generator]) -> None:
        """Updates every network once per batch.

        Args:
            orders: each network's order of the images, int64 [K, N] on the CPU.
            draws: random source of each network's augmentation.
        """
        size = self._training.batch
        full = orders.shape[1] // size  # steps with a complete batch
        for part in (orders[:, : full * size], orders[:, full * size :]):
            if not part.numel():
                continue
            batch = self._batch(min(size, part.shape[1]), max(1, part.shape[1] // size))
            for orders_of_steps in part.split(batch.draws.limit * batch.draws.size, dim=1):
                steps = batch.draws.load(orders_of_steps, draws)
                self._prepare(batch)
                for _ in range(steps):
                    if batch.recording is not None:
                        batch.recording.replay()
                    else:
                        self._update(batch.draws)

    def _batch(self, size: int, steps: int) -> _Batch:
        """The buffers for batches of a size; allocated for the first one."""
        if size not in self._batches:
            draws = DrawnSteps(
                len(self._networks), size, steps, self._stages, self._device, mixed=self._mixed, side=self._side
            )
            self._batches[size] = _Batch(draws)
        return self._batches[size]

    @torch.no_grad()
    def write_back(self) -> None:
        """Copies weights and running statistics back to the networks."""
        mine = [*self._parameters.values(), *self._buffers.values()]
        for k, network in enumerate(self._networks):
            theirs = [*network.parameters(), *network.buffers()]
            torch._foreach_copy_(theirs, [tensor[k] for tensor in mine])

    def _images(self, draw: StepDraws) -> Tensor:
        """Augmented images of a step, [K, b, ...]."""
        networks, size = draw.index.shape
        images = self._images_of(draw.index.flatten())  # [K*b, ...]
        for stage, operations in enumerate(self._stages):
            op, u = draw.op[stage, :, None].expand(networks, size), draw.u[stage]  # [K, b], [K, b, 3]
            images = apply_drawn(images, op.flatten(), u.flatten(0, 1), operations, compiled=self._compiled)
        if self._mixed:
            per_network = zip(images.unflatten(0, (networks, size)), draw.partner, draw.box, strict=True)
            images = torch.cat([cutmix.apply(*one) for one in per_network])  # [K*b, ...]
        return images.contiguous(memory_format=torch.channels_last).unflatten(0, (networks, size))

    def _loss(self, logits: Tensor, draw: StepDraws) -> Tensor:
        """Mean cross-entropy of each network, [K], from logits [K, b, C]; CutMix splits it between two labels."""
        labels = self._labels[draw.index]  # [K, b]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)  # [K]
        if not self._mixed:
            return loss
        partners = labels.gather(1, draw.partner).flatten()  # [K*b]
        other = F.cross_entropy(logits.flatten(0, 1), partners, reduction="none").view_as(labels).mean(1)  # [K]
        share = draw.share.squeeze(1).to(loss.dtype)  # [K]
        return share * loss + (1 - share) * other  # [K]

    def _gradients_at_once(self, draw: StepDraws) -> list[Tensor]:
        """Gradients of each network's mean cross-entropy, [K, ...] per parameter, in one call for all networks."""

        def logits_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self._plain, (parameters, buffers), (images,))

        # batch norm's running statistics have an axis K like the weights, and are updated in place
        logits = vmap(logits_of)(self._parameters, self._buffers, self._images(draw))  # [K, b, C]
        return list(torch.autograd.grad(self._loss(logits, draw).sum(), list(self._parameters.values())))

    def _gradients_in_turn(self, draw: StepDraws) -> list[Tensor]:
        """Same gradients, network by network."""
        gradients = []
        for k, images in enumerate(self._images(draw)):
            parameters = {name: _part(values, k).requires_grad_() for name, values in self._parameters.items()}
            buffers = {name: values[k] for name, values in self._buffers.items()}
            logits = functional_call(self._network, (parameters, buffers), (images,))  # [b, C]
            loss = self._loss(logits[None], draw.of_network(k)).squeeze(0)  # []
            gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        return [torch.stack(each) for each in zip(*gradients, strict=True)]  # [K, ...] per parameter

    def _update(self, draws: DrawnSteps) -> None:
        """One step of SGD with the draws at the counter, which then moves on."""
        draw = draws.current()
        gradients = self._gradients_at_once(draw) if self._form == "at_once" else self._gradients_in_turn(draw)
        with torch.no_grad():
            weights = list(self._parameters.values())
            torch._foreach_mul_(self._velocity, MOMENTUM)
            torch._foreach_add_(self._velocity, gradients)
            torch._foreach_add_(self._velocity, weights, alpha=WEIGHT_DECAY)
            torch._foreach_sub_(weights, torch._foreach_mul(self._velocity, self._rate))
        draws.advance()

    def _prepare(self, batch: _Batch) -> None:
        """Checks the form on the very first batch, and records a step on the first batch of each size."""
        if batch.prepared:
            return
        batch.prepared = True
        if self._form == "at_once" and not self._agreed:
            self._check_at_once(batch.draws)
        batch.recording = recorded(
            partial(self._update, batch.draws),
            list(self._parameters.values()),
            state=[*self._velocity, *self._buffers.values(), batch.draws.counter],
            tolerance=UPDATE_TOLERANCE,
            what=f"training {self._form.replace('_', ' ')}",
        )

    def _check_at_once(self, draws: DrawnSteps) -> None:
        """Changes the form to in turn, with a warning, if at once raises or gives other gradients."""
        draw, before = draws.current(), {name: tensor.clone() for name, tensor in self._buffers.items()}
        try:
            found = self._gradients_at_once(draw)
            expected = self._gradients_in_turn(draw)
            difference, norm = (
                float(torch.cat([one.flatten() for one in each]).norm())
                for each in (torch._foreach_sub(found, expected), expected)
            )
            if not difference <= UPDATE_TOLERANCE * norm:  # true for NaN
                raise RuntimeError(f"gradients of norm {norm:.1e} differ by {difference:.1e}")
        except Exception as error:  # also of another version of torch
            logger.warning(
                "networks cannot be trained at once (%s); training them in turn (compute.ensemble=in_turn)",
                first_line(error), exc_info=shown_cause(error),
            )  # fmt: skip
            self._form = "in_turn"
        else:
            self._agreed = True
        finally:
            for name, tensor in self._buffers.items():  # running statistics, which both forms update
                tensor.copy_(before[name])


def _part(stack: Tensor, k: int) -> Tensor:
    """Network k's values of a stack [K, ...], detached.

    They are copied if they do not begin at a multiple of ``ALIGNMENT``: cuBLAS may choose a kernel that assumes it, and
    cuDNN may choose a different one than for the other networks.
    """
    values = stack[k].detach()
    return values.clone() if values.storage_offset() * values.element_size() % ALIGNMENT else values


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks K tensors to [K, ...]; weights of convolutions stay channels-last."""
    if tensors[0].ndim != 4:
        return torch.stack(list(tensors))
    channels_last = torch.stack([tensor.permute(0, 2, 3, 1) for tensor in tensors])  # [K, O, h, w, I]
    return channels_last.permute(0, 1, 4, 2, 3)  # [K, O, I, h, w]
