"""Real images chosen by herding and k-center, against the obvious versions."""

import pytest
import torch

from iidlib.config import ComputeConfig, preset
from iidlib.data import shapes
from iidlib.errors import InputError
from iidlib.evaluation import coresets
from iidlib.features import trained_pool
from tests import reference


def features(seed: int, count: int = 30, size: int = 5) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["herding", "k_center"])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_choice_is_that_of_the_obvious_version(name: str, count: int, seed: int) -> None:
    given = features(seed)
    chosen = getattr(coresets, name)(given, count).tolist()
    assert chosen == getattr(reference, name)(given, count) and len(set(chosen)) == count


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_equal_images_are_chosen_once(name: str) -> None:
    assert sorted(getattr(coresets, name)(torch.ones(4, 3), 4).tolist()) == [0, 1, 2, 3]


def test_herding_keeps_the_mean_and_k_center_covers() -> None:
    given = features(3, 200)
    near = given[coresets.herding(given, 10)].mean(0) - given.mean(0)
    plain = given[:10].mean(0) - given.mean(0)
    assert near.norm() < 0.3 * plain.norm()
    flat = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    cover = torch.cdist(flat, flat[coresets.k_center(flat, 20)]).min(1).values.max()
    assert cover < 0.8 * torch.cdist(flat, flat[:20]).min(1).values.max()


@pytest.mark.parametrize("name", coresets.CHOICES)
def test_chosen_images_are_real_ones_of_each_class(name: str) -> None:
    data = shapes(3, 12, 16)
    pool = trained_pool(
        data,
        preset("dm-cc", "shapes", 2, "ci", {"pool.epochs": 20, "pool.width": 8}).pool,
        compute=ComputeConfig(compile="off"),
    )
    chosen = coresets.choose(name, data.train, 4, pool.networks[0])
    assert chosen.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and chosen.provenance["method"] == name
    real = data.train.images_of(torch.arange(len(data.train)))
    for image, label in zip(chosen.images, chosen.labels, strict=True):
        same = (real == image).flatten(1).all(1).nonzero().flatten()
        assert len(same) and set(data.train.labels[same].tolist()) == {int(label)}
    with pytest.raises(InputError, match="needs 13 images a class, and a class has 12"):
        coresets.choose(name, data.train, 13, pool.networks[0])
