"""Real images chosen by herding and k-center, against the obvious versions."""

import pytest
import torch

from iidlib.config import ComputeConfig, preset
from iidlib.data import shapes
from iidlib.errors import InputError
from iidlib.evaluation import choose, coresets, random_baselines, random_real, real_images
from iidlib.features import trained_pool
from iidlib.networks import network_for
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet
from tests import reference
from tests.factories import draw


@pytest.mark.parametrize("name", ["herding", "k_center"])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_choice_is_that_of_the_obvious_version(name: str, count: int, seed: int) -> None:
    given = draw(30, 5, seed=seed)
    chosen = getattr(coresets, name)(given, count).tolist()
    assert chosen == getattr(reference, name)(given, count) and len(set(chosen)) == count


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_equal_images_are_chosen_once(name: str) -> None:
    assert sorted(getattr(coresets, name)(torch.ones(4, 3), 4).tolist()) == [0, 1, 2, 3]


def test_herding_keeps_the_mean_and_k_center_covers() -> None:
    given = draw(200, 5, seed=3)
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
    with pytest.raises(InputError, match=r"needs 13 images per class, but class '.*' has 12; lower ipc to 12 or less"):
        coresets.choose(name, data.train, 13, pool.networks[0])


def test_real_images_by_name() -> None:
    train = shapes(4, 12, 16).train
    network = network_for("convnet2", train.spec, width=4, generator=stream(0, 0, "network"))
    assert real_images("whole", train, 2) is train
    found = {name: real_images(name, train, 2, seed=3, network=network) for name in ("random", "herding", "k-center")}
    for name, chosen in found.items():
        assert isinstance(chosen, SyntheticSet) and (chosen.ipc, chosen.provenance["method"]) == (2, name)
    assert torch.equal(found["random"].images, random_real(train, 2, 3).images)
    assert torch.equal(found["herding"].images, choose("herding", train, 2, network).images)
    mosaics = real_images("random", train, 2, factor=2)
    assert isinstance(mosaics, SyntheticSet) and (mosaics.provenance["method"], mosaics.factor) == ("random-mosaic", 2)
    with pytest.raises(InputError, match="unknown choice of real images 'hearding'; did you mean 'herding'"):
        real_images("hearding", train, 2)
    with pytest.raises(InputError, match="herding chooses by the features of a network; give one"):
        real_images("herding", train, 2)


def test_baselines_of_a_set_are_random_images_and_mosaics_where_there_are_enough() -> None:
    train, said = shapes(4, 12, 16).train, []
    assert [one.factor for one in random_baselines(train, 2, 0, 1)] == [1]
    both = random_baselines(train, 2, 5, 2, say=said.append)
    assert [(one.provenance["method"], one.provenance["seed"]) for one in both] == [
        ("random", "5"), ("random-mosaic", "5"),
    ]  # fmt: skip
    assert not said
    assert [one.factor for one in random_baselines(train, 4, 0, 2, say=said.append)] == [1]
    assert len(said) == 1 and said[0].startswith("random-mosaic is left out: ipc 4 with syn.factor 2 takes 16")
    # a set may be tested on a dataset with fewer images than it was made from
    assert random_baselines(train, 13, 0, 1, say=said.append) == []
    assert said[1].startswith("random is left out: ipc must be 1 to 12, the training images of class 'disc'")
