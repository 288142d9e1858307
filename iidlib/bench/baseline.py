"""The fixed baselines that ratios are taken against: a loop over classes, and a training loop, in plain eager PyTorch.

They stay as they are, so that ratios mean the same from release to release. A step takes the classes one after the
other, each with an eager float32 forward pass of its real and of its synthetic images through plain convolution,
``group_norm``, ReLU and average pooling in PyTorch's default memory format, as in the released code of DM and IID. It
is a kind baseline: the real side keeps no graph, covariance and class centralization are vectorised, all classes share
one backward pass, and it has the same threads.

For IDM, whose released code takes an optimiser step after each class, so does the loop; it trains a queue of its own,
of such plain networks. Kind here, too: synthetic images go through a network once for features and logits, and no
gradients of the network's weights are computed that nobody uses.
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
from iidlib.networks import Network, set_backend
from iidlib.rng import stream
from iidlib.synthetic import expand
from iidlib.training.loop import MOMENTUM, WEIGHT_DECAY

__all__ = ["PerClassLoop", "PlainTraining", "plain_twin"]


def _group_norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = F.group_norm(x, len(weight), weight, bias, eps)
    # ReLU in place, as in the released networks
    return F.avg_pool2d(F.relu(x, inplace=True), 2)


def plain_twin(network: Network) -> Network:
    """A copy in PyTorch's default memory format, whose blocks are plain eager calls."""
    twin = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    return set_backend(twin, _group_norm_relu_pool)


def _covariance(fmap: Tensor) -> Tensor:
    """Local covariance of one class, [N, K, P] -> [K, K]; see ``losses.local_covariance``."""
    centred = (fmap - fmap.mean(0)).transpose(0, 1).flatten(1)
    return centred @ centred.T / len(fmap)


class PerClassLoop:
    """The baseline: one iteration as a loop over classes, in eager float32.

    It reads the draws, matching networks and pretrained networks of a run, and leaves the run's images as they are.

    Attributes:
        images: the synthetic images, float32 [C*ipc, K, H, W]; a leaf that requires gradient.
    """

    def __init__(self, run: Distillation) -> None:
        """Takes up a run's settings and a copy of its images.

        Raises:
            ValueError: for a term that the loop does not have, class centralization in another form than released,
                or cached statistics.
        """
        match = run.config.match
        if not {"mean"} <= run.terms.keys() <= {"mean", "ce", "cm", "cc"}:
            raise ValueError(f"the loop over classes has the terms mean, ce, cm and cc, got {', '.join(run.terms)}")
        if "cc" in run.terms and (match.cc_scaling, match.cc_form) != ("released", "linear"):
            raise ValueError(
                "the loop over classes centralizes as released (match.cc_scaling=released, match.cc_form=linear), "
                f"got {match.cc_scaling} and {match.cc_form}"
            )
        if match.statistics != "fresh":
            raise ValueError(f"the loop over classes draws afresh (match.statistics=fresh), got {match.statistics}")
        self._run = run
        self._queue = run.source.twin(plain_twin) if isinstance(run.source, NetworkQueue) else None
        self._plain_pool = {id(network): plain_twin(network) for network in (run.pool.networks if run.pool else ())}
        self.images = run.images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=run.config.syn.lr, momentum=run.config.syn.momentum)

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        total = dict.fromkeys(self._run.terms, self.images.new_zeros(()))
        for terms in self._classes(iteration):
            for name, value in terms.items():
                total[name] = total[name] + value
        return total

    def _classes(self, iteration: int) -> Iterator[dict[str, Tensor]]:
        """The terms of one class after the other, each from the images as they are at its turn."""
        run, config = self._run, self._run.config
        drawn = run.real.sample(config.match.batch_real, stream(config.seed, iteration, "real batch"))
        network, accuracy = (run.source if self._queue is None else self._queue).draw(iteration)
        if self._queue is None:  # a queue of its own holds plain networks
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
                own = augment.Draws(draws.op[[label]], draws.u[[label]])
                real = augment.apply(real, own, torch.zeros(len(real), dtype=torch.int64))
                syn = augment.apply(syn, own, torch.zeros(len(syn), dtype=torch.int64))
            with torch.no_grad():
                real_map = network.feature_map(real)
                real_mean = network.head(real_map).mean(0)
            syn_map = network.feature_map(syn)
            syn_features = network.head(syn_map)
            terms = {"mean": config.match.mean * (real_mean - syn_features.mean(0)).square().sum()}
            if "ce" in run.terms:
                cost = F.cross_entropy(network.classifier(syn_features), syn.new_full((len(syn),), label).long())
                terms["ce"] = config.match.ce * accuracy * cost
            if "cm" in run.terms:
                gap = _covariance(real_map.flatten(2)) - _covariance(syn_map.flatten(2))
                terms["cm"] = config.match.cm * gap.square().sum()
            if "cc" in run.terms:
                assert pretrained is not None, "the run needs its pool"
                features = pretrained.embed(syn)
                terms["cc"] = config.match.cc * (features - features.mean(0)).square().sum()
            yield terms

    def step(self, iteration: int) -> None:
        """One update of the images, with one backward pass for all classes; with a queue, as IDM, one for each."""
        with precision(self.images.device, "fp32"):
            parts = self._classes(iteration) if self._queue is not None else [self.losses(iteration)]
            for terms in parts:
                loss = torch.stack(list(terms.values())).sum()
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()
            self.advance(iteration)

    def advance(self, iteration: int) -> None:
        """Trains the loop's own queue, where it has one."""
        if self._queue is not None:
            self._queue.advance(iteration)

    def _drawn_from_pool(self, iteration: int) -> Network | None:
        run = self._run
        if run.pool is None:
            return None
        return self._plain_pool[id(run.pool.sample(stream(run.config.seed, iteration, "expert")))]


class PlainTraining:
    """The baseline of evaluation: a network trained on a set in eager float32 and PyTorch's default memory format.

    It draws what ``training.fit`` draws, and starts from a copy of the network.

    Attributes:
        network: the copy, as trained so far.
    """

    def __init__(self, network: Network, images: Tensor, labels: Tensor, protocol: EvalProtocol, strategy: str) -> None:
        """Takes up the set and a copy of the network.

        Args:
            network: where to start.
            images: normalised, [B, K, H, H].
            labels: int64 [B].
            protocol: gives batch and learning rate.
            strategy: DSA operations.
        """
        self.network = plain_twin(network).train()
        self._images, self._labels, self._strategy = images.contiguous(), labels, strategy
        self._batch = protocol.batch
        self._optimiser = torch.optim.SGD(
            self.network.parameters(), lr=protocol.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def epoch(self, seed: int) -> None:
        """One pass over the set with the draws of a seed."""
        draws = stream(seed, 0, "training")
        for index in torch.randperm(len(self._labels), generator=draws).split(self._batch):
            drawn = augment.sample(self._strategy, len(index), draws, shared_op=True)
            images = augment.apply(self._images[index.to(self._images.device)], drawn)
            with precision(images.device, "fp32"):
                loss = F.cross_entropy(self.network(images), self._labels[index.to(images.device)])
                self._optimiser.zero_grad()
                loss.backward()
            self._optimiser.step()
