"""The fixed baselines of speed ratios: a loop over classes, and a training loop, in plain eager PyTorch.

They never change, so ratios are comparable across releases. A step processes one class after another, each with an
eager float32 forward pass of its real and its synthetic images through plain convolution, ``group_norm``, ReLU and
average pooling in PyTorch's default memory format, as in the released code of DM and IID. The baseline is generous: the
real side records no graph, covariance and class centralization are vectorised, all classes share one backward pass, and
it uses the same threads.

For IDM, whose released code takes an optimiser step after each class, so does the loop, with its own queue of plain
networks. It is generous here too: one forward pass of the synthetic images gives both features and logits, and no
unused gradients of network weights are computed.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib import augment
from iidlib.config import EvalProtocol
from iidlib.distillation import Distillation
from iidlib.engine import precision
from iidlib.features import NetworkQueue
from iidlib.networks import Network, NormReLU, set_backend
from iidlib.rng import stream
from iidlib.synthetic import expand
from iidlib.training.loop import MOMENTUM, WEIGHT_DECAY

__all__ = ["PerClassLoop", "PlainTraining", "plain_twin"]


def _group_norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = F.group_norm(x, len(weight), weight, bias, eps)  # [B, K, h, w]
    return F.avg_pool2d(F.relu(x, inplace=True), 2)  # [B, K, h/2, w/2]; ReLU in place, as in the released networks


def _group_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, relu: bool
) -> Tensor:
    x = F.group_norm(x, len(weight), weight, bias, eps)  # [B, K, h, w]
    x = x if residual is None else x + residual
    return F.relu(x) if relu else x


def plain_twin(network: Network) -> Network:
    """A copy of a network in PyTorch's default memory format, with blocks of plain eager calls."""
    twin = set_backend(copy.deepcopy(network).to(memory_format=torch.contiguous_format), "eager")
    for module in twin.modules():
        if isinstance(module, NormReLU):
            module.use(_group_norm_relu)
    return set_backend(twin, _group_norm_relu_pool)


def _covariance(fmap: Tensor) -> Tensor:
    """Local covariance of one class, [N, K, P] -> [K, K]; see ``losses.local_covariance``."""
    centred = (fmap - fmap.mean(0)).transpose(0, 1).flatten(1)  # [K, N*P]
    return centred @ centred.T / len(fmap)  # [K, K]


class PerClassLoop:
    """The baseline of distillation: an iteration as a loop over classes, in eager float32.

    It uses the draws, matching networks and pretrained networks of a run, but does not change the run's images.

    Attributes:
        images: the synthetic images, float32 [C*ipc, K, H, W]; a leaf that requires gradient.
    """

    def __init__(self, run: Distillation) -> None:
        """Copies a run's images and uses its settings.

        Raises:
            ValueError: for a term that the loop does not implement, class centralization in another form than the
                released one, or cached statistics.
        """
        match = run.config.match
        if not {"mean"} <= run.terms.keys() <= {"mean", "ce", "cm", "cc"}:
            raise ValueError(f"the loop over classes implements mean, ce, cm and cc, got {', '.join(run.terms)}")
        if "cc" in run.terms and (match.cc_scaling, match.cc_form) != ("released", "linear"):
            raise ValueError(
                "the loop over classes implements the released match.cc_scaling=released and match.cc_form=linear, "
                f"got {match.cc_scaling} and {match.cc_form}"
            )
        if match.statistics != "fresh":
            raise ValueError(f"the loop over classes implements match.statistics=fresh, got {match.statistics}")
        self._run = run
        self._queue = run.source.twin(plain_twin) if isinstance(run.source, NetworkQueue) else None
        self._plain_pool = {id(network): plain_twin(network) for network in (run.pool.networks if run.pool else ())}
        self.images = run.images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=run.config.syn.lr, momentum=run.config.syn.momentum)

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """Weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        total = dict.fromkeys(self._run.terms, self.images.new_zeros(()))
        for terms in self._classes(iteration):
            for name, value in terms.items():
                total[name] = total[name] + value
        return total

    def _classes(self, iteration: int) -> Iterator[dict[str, Tensor]]:
        """Terms of one class after another, each computed from the images at that time."""
        run, config = self._run, self._run.config
        drawn = run.real.sample(config.match.batch_real, stream(config.seed, iteration, "real batch"))
        network, accuracy = (run.source if self._queue is None else self._queue).draw(iteration)
        if self._queue is None:  # the loop's own queue already holds plain networks
            network = plain_twin(network)
        pretrained = self._drawn_from_pool(iteration)
        draws = None
        if run.augmentation != "none":
            draws = augment.sample(
                run.augmentation, run.real.num_classes, stream(config.seed, iteration, "augmentation")
            )
        for label in range(run.real.num_classes):
            real = run.real.images_of(drawn.index[drawn.group == label])
            syn = expand(self.images[run.group == label], config.syn.factor)
            if draws is not None:
                of_class = augment.Draws(draws.op[[label]], draws.u[[label]])
                real = augment.apply(real, of_class, torch.zeros(len(real), dtype=torch.int64))
                syn = augment.apply(syn, of_class, torch.zeros(len(syn), dtype=torch.int64))
            with torch.no_grad():
                real_map = network.feature_map(real)  # [N, K, h, w]
                real_mean = network.head(real_map).mean(0)  # [D]
            syn_map = network.feature_map(syn)  # [n, K, h, w]
            syn_features = network.head(syn_map)  # [n, D]
            terms = {"mean": config.match.mean * (real_mean - syn_features.mean(0)).square().sum()}
            if "ce" in run.terms:
                cost = F.cross_entropy(network.classifier(syn_features), syn.new_full((len(syn),), label).long())
                terms["ce"] = config.match.ce * accuracy * cost
            if "cm" in run.terms:
                gap = _covariance(real_map.flatten(2)) - _covariance(syn_map.flatten(2))  # [K, K]
                terms["cm"] = config.match.cm * gap.square().sum()
            if "cc" in run.terms:
                assert pretrained is not None, "the run needs its pool"
                features = pretrained.embed(syn)  # [n, D]
                terms["cc"] = config.match.cc * (features - features.mean(0)).square().sum()
            yield terms

    def step(self, iteration: int) -> None:
        """Updates the images, with one backward pass for all classes; with a queue, as in IDM, one update per class."""
        with precision(self.images.device, "fp32"):
            parts = self._classes(iteration) if self._queue is not None else [self.losses(iteration)]
            for terms in parts:
                loss = torch.stack(list(terms.values())).sum()
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()
            self.advance(iteration)

    def advance(self, iteration: int) -> None:
        """Trains the loop's own queue, if it has one."""
        if self._queue is not None:
            self._queue.advance(iteration)

    def _drawn_from_pool(self, iteration: int) -> Network | None:
        run = self._run
        if run.pool is None:
            return None
        return self._plain_pool[id(run.pool.sample(stream(run.config.seed, iteration, "expert")))]


class PlainTraining:
    """The baseline of evaluation: a network trained on a set in eager float32 and PyTorch's default memory format.

    It uses the same draws as ``training.fit`` and starts from a copy of the network.

    Attributes:
        network: the copy, as trained so far.
    """

    def __init__(self, network: Network, images: Tensor, labels: Tensor, protocol: EvalProtocol, strategy: str) -> None:
        """Copies the network.

        Args:
            network: the network to start from.
            images: normalised images, [B, K, H, H].
            labels: classes of the images, int64 [B].
            protocol: batch size and learning rate.
            strategy: DSA operations.
        """
        self.network = plain_twin(network).train()
        self._images, self._labels, self._strategy = images.contiguous(), labels, strategy
        self._batch = protocol.batch
        self._optimiser = torch.optim.SGD(
            self.network.parameters(), lr=protocol.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def epoch(self, seed: int) -> None:
        """Trains for one epoch with the draws of a seed."""
        draws = stream(seed, 0, "training")
        for index in torch.randperm(len(self._labels), generator=draws).split(self._batch):
            drawn = augment.sample(self._strategy, len(index), draws, shared_op=True)
            images = augment.apply(self._images[index.to(self._images.device)], drawn)
            with precision(images.device, "fp32"):
                loss = F.cross_entropy(self.network(images), self._labels[index.to(images.device)])
                self._optimiser.zero_grad()
                loss.backward()
            self._optimiser.step()
