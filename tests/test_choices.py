"""Initial images chosen by a network of the pool: centres of clusters and easiest images, against obvious versions."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from iidlib.data import RealSet, shapes
from iidlib.errors import InputError
from iidlib.features import (
    choices,
    chosen_images,
    cluster_centres,
    easiest,
)
from iidlib.networks import Network, network_for
from iidlib.rng import stream
from tests import reference

KINDS = ("centres", "easiest")


def features(seed: int, count: int = 40, size: int = 5) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network_of(real: RealSet) -> Network:
    return network_for("convnet2", real.spec, width=4, generator=stream(0, 0, "network"))


# The choice within a class


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_centres_are_those_of_the_obvious_version(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = features(3), []
    fit = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, *images: made.append(fit(self, *images)) or made[-1])
    chosen = cluster_centres(given, count, seed).tolist()
    (k_means,) = made
    assert (k_means.n_clusters, k_means.n_init) == (count, 1) and len(set(k_means.labels_.tolist())) == count
    centres = torch.as_tensor(k_means.cluster_centers_)
    assert chosen == reference.nearest_to_centres(given, centres, k_means.labels_.tolist())
    assert len(set(chosen)) == count
    assert chosen == cluster_centres(given, count, seed).tolist(), "the same seed, the same images"


def test_centres_find_the_clusters_largest_first() -> None:
    sizes, middles = (5, 20, 10), torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    noise = 0.1 * features(0, sum(sizes), 2).float()
    given = middles.repeat_interleave(torch.tensor(sizes), 0) + noise
    chosen = cluster_centres(given, 3, 0)
    assert [int(torch.cdist(given[one][None], middles).argmin()) for one in chosen] == [1, 2, 0]
    own = given[5:25]
    assert int(chosen[0]) == 5 + int((own - own.mean(0)).square().sum(1).argmin())


def test_seeds_choose_other_images() -> None:
    assert len({tuple(sorted(cluster_centres(features(1), 9, seed).tolist())) for seed in range(4)}) > 1


def test_equal_images_are_chosen_once_each_and_silently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(cluster_centres(torch.ones(6, 3), 4, 0).tolist()) == [0, 1, 2, 3]
    twice = features(2, 4).repeat(2, 1)
    assert len(set(cluster_centres(twice, 8, 0).tolist())) == 8


def test_two_centres_of_one_nearest_image_take_two(monkeypatch: pytest.MonkeyPatch) -> None:
    given, centres = torch.tensor([[0.0], [3.0], [5.0], [9.0]]), torch.tensor([[3.9], [3.1], [9.0]])
    monkeypatch.setattr(choices, "_k_means", lambda *given: (centres, torch.tensor([1, 2, 1])))
    assert cluster_centres(given, 3, 0).tolist() == [1, 2, 3], "the largest cluster first"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_easiest_are_those_of_the_obvious_version(seed: int, count: int) -> None:
    losses = torch.randint(4, (12,), generator=torch.Generator().manual_seed(seed)).double()  # with ties
    assert easiest(losses, count).tolist() == reference.easiest(losses.tolist(), count)


@pytest.mark.parametrize("count", [0, 41])
def test_more_images_than_a_class_has_are_not_chosen(count: int) -> None:
    for choose in (lambda: cluster_centres(features(0), count, 0), lambda: easiest(features(0)[:, 0], count)):
        with pytest.raises(InputError, match=f"the images to choose must be 1 to 40, .*, got {count}"):
            choose()


def test_the_choice_is_made_in_one_thread_and_leaves_the_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    seen, fit = [], KMeans.fit

    def look(self: KMeans, *images: object) -> KMeans:
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(self, *images)

    monkeypatch.setattr(KMeans, "fit", look)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        cluster_centres(features(0), 3, 0)
        assert seen and set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# The initial images of all classes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ipc", "factor"), [(3, 1), (1, 2), (2, 2)])
def test_images_of_each_class_are_dealt_out_to_its_mosaics(kind: str, ipc: int, factor: int) -> None:
    real = shapes(3, [9, 8, 12], 16).train
    network = network_of(real)
    chosen = chosen_images(kind, real, network, ipc, factor, seed=5)
    assert (chosen.ipc, chosen.factor, chosen.provenance["init"]) == (ipc, factor, kind)
    assert chosen.images.dtype == torch.float32 and chosen.labels.tolist() == [c for c in range(3) for _ in range(ipc)]
    for label, stored in enumerate(chosen.by_class()):
        own = real.images_of(real.of_class(label))
        with torch.no_grad():
            if kind == "centres":
                wanted = cluster_centres(network.embed(own), ipc * factor**2, 5).tolist()
            else:
                target = torch.full((len(own),), label)
                losses = F.cross_entropy(network(own).double(), target, reduction="none")
                wanted = easiest(losses, ipc * factor**2).tolist()
        small = F.avg_pool2d(own, factor)
        for place, image in enumerate(stored):
            for number, tile in enumerate(reference.tiles(image, factor)):
                assert torch.equal(tile, small[wanted[number * ipc + place]]), (label, place, number)
    again = chosen_images(kind, real, network, ipc, factor, seed=5)
    assert torch.equal(again.images, chosen.images)


def test_losses_that_single_precision_rounds_to_zero_are_told_apart() -> None:
    class Sure(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = 30 + images.mean((1, 2, 3))
            return torch.stack([logits, 0 * logits], 1)

    real = shapes(2, 6, 8).train
    own = real.images_of(real.of_class(0))
    assert not F.cross_entropy(Sure()(own), torch.zeros(6, dtype=torch.int64), reduction="none").any()
    brightest = own[own.mean((1, 2, 3)).argmax()]
    assert not torch.equal(brightest, own[0])
    assert torch.equal(chosen_images("easiest", real, Sure(), 1).images[0], brightest)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "centers"}, "unknown choice of initial images 'centers'; did you mean 'centres'"),
        ({"ipc": 9}, "ipc must be 1 to 8, the training images of class '.*' in .*, not 9"),
        ({"ipc": 0}, "ipc must be 1 to 8, .*, not 0"),
        ({"ipc": 3, "factor": 2}, r"ipc 3 with syn\.factor 2 takes 12 real images a class, .* has 8; lower ipc to 2"),
        ({"factor": 3}, r"syn\.factor must divide the side of the images, 16"),
        ({"network": "diverged"}, r"the network of the pool that chooses .* has diverged: .*; lower pool\.lr"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_chosen_is_told(given: dict[str, object], message: str, kind: str) -> None:
    real = shapes(2, [8, 9], 16).train
    network = network_of(real)
    if "network" in given:
        network.classifier.weight.data.fill_(torch.nan)
        network.trunk[0].conv.weight.data.fill_(torch.nan)
    given = {"kind": kind, "ipc": 2, "network": network} | given | {"network": network}
    with pytest.raises(InputError, match=message) as caught:
        chosen_images(real=real, **given)
    assert "\n" not in str(caught.value)
