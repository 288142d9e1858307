"""Speed: one iteration of the library against the same iteration as a loop over classes, and against the hardware.

The baseline is fixed, so that ratios mean the same from release to release: the classes one after the other, each with
an eager float32 forward pass of its real and its synthetic images through plain convolutions, ``nn.GroupNorm``, ReLU
and pooling, as the released code of DM and IID does it. It is a kind baseline: the real side keeps no graph, covariance
and class centralization are vectorised, all classes share one backward pass, and it has the same threads.

Both sides start from the same images and read the same draws, iteration for iteration. That their losses and gradients
agree is checked in the same run that takes the times; a speed-up that changes the result is an error.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from iidlib import augment
from iidlib.accelerate import compiler_available, default_chunk, device_name, pick_device, precision
from iidlib.config import InputError, RunConfig, preset
from iidlib.data import Dataset, load_dataset
from iidlib.distillation import METHODS, Distillation
from iidlib.extractors import Pool, frozen, network_for
from iidlib.networks import Network
from iidlib.runs import environment
from iidlib.streams import stream

__all__ = ["TOLERANCE", "BenchReport", "Comparison", "LossesDiffer", "PerClassLoop", "measure", "random_pool"]

TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3}
"""Largest relative difference, ||a - b|| / ||b||, at which two losses or gradients count as the same, by precision."""

QUICK = {"match.width": 32, "match.batch_real": 64}
"""What a quick measurement changes in the paper's settings."""


class LossesDiffer(ArithmeticError):
    """The two sides do not compute the same thing, so the ratio of their times means nothing."""


class PerClassLoop:
    """The baseline: one iteration as a loop over classes, uncompiled, in float32 and PyTorch's default memory format.

    It takes its images, draws and trained networks from a run, and leaves that run as it is.

    Attributes:
        images: the synthetic images, float32 [C*ipc, K, H, W]; a leaf that requires gradient.
    """

    def __init__(self, run: Distillation) -> None:
        """Takes up the run's settings, and a copy of its images.

        Raises:
            ValueError: for a network that is not a ConvNet with instance norm, or a scaling of class centralization
                other than the released one.
        """
        match = run.config.match
        if not match.network.startswith("convnet") or match.network.endswith("-bn"):
            raise ValueError(f"the loop over classes matches on a ConvNet with instance norm, got {match.network!r}")
        if "cc" in run.terms and (match.cc_scaling, match.cc_form) != ("released", "linear"):
            raise ValueError(
                "the loop over classes has class centralization as released (match.cc_scaling=released, "
                f"match.cc_form=linear), got {match.cc_scaling} and {match.cc_form}"
            )
        self._run, self._terms = run, tuple(run.terms)
        self._experts = {id(network): _plain(network) for network in (run.pool.networks if run.pool else ())}
        self.images = run.images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        syn = run.config.syn
        self._optimiser = torch.optim.SGD([self.images], lr=syn.lr, momentum=syn.momentum)

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms of the objective at an iteration, each summed over classes; scalars with gradient."""
        run, config = self._run, self._run.config
        sample = run.real.sample(config.match.batch_real, stream(config.seed, iteration, "real batch"))
        draws = None
        if run.augmentation != "none":
            draws = augment.sample(run.augmentation, run.real.num_classes, stream(config.seed, iteration, "augmentation"))
        network = _plain(run.source.draw(iteration))
        expert = None
        if run.pool is not None:
            expert = self._experts[id(run.pool.sample(stream(config.seed, iteration, "expert")))]

        total = dict.fromkeys(self._terms, self.images.new_zeros(()))
        for label in range(run.real.num_classes):
            real = run.real.images_of(sample.index[sample.group == label])
            syn = self.images[run.group == label]
            if draws is not None:
                own = augment.Draws(draws.op[label : label + 1], draws.u[label : label + 1])
                real = augment.apply(real, own, torch.zeros(len(real), dtype=torch.int64))
                syn = augment.apply(syn, own, torch.zeros(len(syn), dtype=torch.int64))
            with torch.no_grad():
                real_map = _feature_map(network, real)
            syn_map = _feature_map(network, syn)
            for name in self._terms:
                if name == "mean":
                    loss = (real_map.flatten(1).mean(0) - syn_map.flatten(1).mean(0)).square().sum()
                elif name == "cm":
                    gap = _covariance(real_map.flatten(2)) - _covariance(syn_map.flatten(2))
                    loss = config.match.cm * gap.square().sum()
                else:
                    assert name == "cc" and expert is not None
                    features = expert.embed(syn)
                    loss = config.match.cc * (features - features.mean(0)).square().sum()
                total[name] = total[name] + loss
        return total

    def step(self, iteration: int) -> None:
        """One update of the images, with one backward pass for all classes."""
        with precision(self.images.device, "fp32"):
            loss = torch.stack(list(self.losses(iteration).values())).sum()
            self._optimiser.zero_grad()
            loss.backward()
        self._optimiser.step()
