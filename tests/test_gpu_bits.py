"""The same seed gives the same bits on one device: distillations and evaluations made twice in one process.

Imports only torch, pytest and the library, so that the file can be run alone on a machine with a GPU::

    pytest -m gpu tests/test_gpu_bits.py
"""

from pathlib import Path

import pytest
import torch

from iidlib import SyntheticSet, distill, evaluate, preset
from iidlib.config import ComputeConfig, EvalProtocol
from iidlib.data import Dataset, shapes
from iidlib.rng import stream

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]

SMALL = {
    "iterations": 12,  # logged ones and others, which have a recording each
    "match.batch_real": 16,
    "match.width": 16,
    "pool.network": "convnet3",
    "pool.width": 16,
    "pool.count": 1,
    "pool.epochs": 2,
    "pool.untrained": "warn",
    "queue.batch": 32,
    "queue.steps": 2,
}

ALL = "color_crop_cutout_flip_scale_rotate"


def on(device: str, side: int = 32) -> Dataset:
    drawn = shapes(4, 24, side)
    return Dataset(drawn.name, drawn.train.to(device), drawn.test.to(device), drawn.spec)


def distilled(method: str, device: str, cache: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> torch.Tensor:
    """The learned images, with a pool that is trained for this run."""
    monkeypatch.setenv("IID_CACHE", str(cache))
    changes = {"syn.factor": 2, "syn.init": "crops"} if method == "idm" else {"match.cc": 0.05}
    config = preset(method, "shapes", 2, "ci", SMALL | changes | {"seed": seed, "match.augmentation": ALL})
    return distill(config, on(device)).synthetic.images.cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["iid-dm", "idm"])
def test_a_distillation_has_the_same_bits_for_the_same_seed(method, device, tmp_path, monkeypatch):
    first, second = (distilled(method, device, tmp_path / str(n), monkeypatch) for n in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, distilled(method, device, tmp_path / "other", monkeypatch, seed=1))


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_an_evaluation_has_the_same_bits_for_the_same_seed(device, together, monkeypatch):
    """Networks trained one after the other, and together, as CUDA does it; there the latter is recorded."""
    from iidlib.evaluation import run as evaluation_run

    data = on(device)
    draws = stream(0, 0, "initial images")
    chosen = SyntheticSet.from_real(data.train, 4, draws)
    protocol = EvalProtocol(networks=("convnet3",), width=16, num_eval=2, epochs=6, batch=8, augmentation=ALL)
    weights: list[torch.Tensor] = []
    name = "reached" if together == 1 else "reached_together"
    reached = getattr(evaluation_run, name)

    def noted(trained, *rest):
        for network in trained if together > 1 else [trained]:
            weights.append(torch.cat([parameter.detach().flatten().cpu() for parameter in network.parameters()]))
        return reached(trained, *rest)

    monkeypatch.setattr(evaluation_run, name, noted)
    compute = ComputeConfig(together=together)
    scores = [evaluate(chosen, data, protocol=protocol, compute=compute) for _ in range(2)]
    assert scores[0]["accuracy"].tolist() == scores[1]["accuracy"].tolist()
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
