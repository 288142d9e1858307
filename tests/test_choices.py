"""Initial images chosen by a network of the pool: centres of clusters and easiest images, against obvious versions."""

import itertools
import json
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from iidlib.config import RunConfig, override
from iidlib.config.recipes import CHOSEN_STARTS
from iidlib.continual import learn_in_steps
from iidlib.data import Dataset, RealSet, shapes
from iidlib.distillation import Distillation, distill
from iidlib.distillation import step as distillation_step
from iidlib.distillation.memory import least_memory
from iidlib.errors import InputError
from iidlib.evaluation import cost_of
from iidlib.features import (
    Pool,
    choices,
    choosing_network,
    chosen_images,
    cluster_centres,
    easiest,
    pool_members,
    trained_pool,
)
from iidlib.networks import Network, network_for
from iidlib.rng import stream
from iidlib.runs import RunFolder
from tests import reference
from tests.factories import Crash, crash, draw, settings, stop_at, tiny_dataset

KINDS = ("centres", "easiest")


def network_of(real: RealSet) -> Network:
    return network_for("convnet2", real.spec, width=4, generator=stream(0, 0, "network"))


# The choice within a class


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_centres_are_those_of_the_obvious_version(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = draw(40, 5, seed=3), []
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
    noise = 0.1 * draw(sum(sizes), 2).float()
    given = middles.repeat_interleave(torch.tensor(sizes), 0) + noise
    chosen = cluster_centres(given, 3, 0)
    assert [int(torch.cdist(given[one][None], middles).argmin()) for one in chosen] == [1, 2, 0]
    own = given[5:25]
    assert int(chosen[0]) == 5 + int((own - own.mean(0)).square().sum(1).argmin())


def test_seeds_choose_other_images() -> None:
    assert len({tuple(sorted(cluster_centres(draw(40, 5, seed=1), 9, seed).tolist())) for seed in range(4)}) > 1


def test_equal_images_are_chosen_once_each_and_silently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(cluster_centres(torch.ones(6, 3), 4, 0).tolist()) == [0, 1, 2, 3]
    twice = draw(4, 5, seed=2).repeat(2, 1)
    assert len(set(cluster_centres(twice, 8, 0).tolist())) == 8


def test_two_centres_of_one_nearest_image_take_two(monkeypatch: pytest.MonkeyPatch) -> None:
    given, centres = torch.tensor([[0.0], [3.0], [5.0], [9.0]]), torch.tensor([[3.9], [3.1], [9.0]])
    found = SimpleNamespace(cluster_centers_=centres.numpy(), labels_=[0, 1, 1, 2])
    monkeypatch.setattr("sklearn.cluster.KMeans", lambda *_, **__: SimpleNamespace(fit=lambda features: found))
    assert cluster_centres(given, 3, 0).tolist() == [1, 2, 3], "the largest cluster first"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_easiest_are_those_of_the_obvious_version(seed: int, count: int) -> None:
    losses = torch.randint(4, (12,), generator=torch.Generator().manual_seed(seed)).double()  # with ties
    assert easiest(losses, count).tolist() == reference.easiest(losses.tolist(), count)


@pytest.mark.parametrize("count", [0, 41])
def test_more_images_than_a_class_has_are_not_chosen(count: int) -> None:
    for choose in (
        lambda: cluster_centres(draw(40, 5, seed=0), count, 0),
        lambda: easiest(draw(40, 5, seed=0)[:, 0], count),
    ):
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
        cluster_centres(draw(40, 5, seed=0), 3, 0)
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
        ({"ipc": 3, "factor": 2}, r"ipc 3 with syn\.factor 2 takes 12 real images per class, .* has 8; lower ipc to 2"),
        ({"factor": 3}, r"syn\.factor must divide the side of the images, 16"),
        ({"network": "diverged"}, r"the network of the pool that chooses .* has diverged: .*; lower pool\.lr"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_chosen_is_reported(given: dict[str, object], message: str, kind: str) -> None:
    real = shapes(2, [8, 9], 16).train
    network = network_of(real)
    if "network" in given:
        network.classifier.weight.data.fill_(torch.nan)
        network.trunk[0].conv.weight.data.fill_(torch.nan)
    given = {"kind": kind, "ipc": 2, "network": network} | given | {"network": network}
    with pytest.raises(InputError, match=message) as caught:
        chosen_images(real=real, **given)
    assert "\n" not in str(caught.value)


def test_choices_of_several_classes_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    real, seen, fit = shapes(5, 9, 16).train, [], KMeans.fit
    network, together = network_of(real), threading.Barrier(2)

    def look(self: KMeans, *images: object) -> KMeans:
        seen.append((threading.get_ident(), {pool["num_threads"] for pool in threadpool_info()}))
        if next(numbers) < 2 < threads:
            together.wait(timeout=60)  # broken if the second choice does not begin before the first has ended
        return fit(self, *images)

    limits, before, chosen = threadpool_info(), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            seen.clear()
            numbers = itertools.count()
            torch.set_num_threads(threads)
            with monkeypatch.context() as patch:
                patch.setattr(KMeans, "fit", look)
                chosen.append(chosen_images("centres", real, network, 2, seed=4).images)
            assert len(seen) == 5 and all(each == {1} for _, each in seen), "each in one thread"
            assert threading.get_ident() not in {thread for thread, _ in seen}
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*chosen), "the number of threads changes no bit"
    assert threadpool_info() == limits, "the limits of the process are as they were"


# A distillation that starts from them


def plus(kind: str, **changes: object) -> RunConfig:
    own = {"match.network": "convnet2", "match.width": 4, "match.cc_scaling": "relative", "pool.epochs_kept": (0, 2)}
    own |= {"pool.count": 2, "syn.factor": 2, "checkpoint.every": 2, "iterations": 5, "syn.init": kind}
    given = {key.replace(".", "__"): value for key, value in own.items()} | changes
    return settings("iid-plus", given.pop("ipc", 1), **given)


def by_dm(kind: str, **changes: object) -> RunConfig:
    own = {"syn__init": kind, "checkpoint__every": 2, "iterations": 5, "pool__count": 2, "pool__epochs_kept": (0, 2)}
    return settings("dm", **(own | changes))


CONFIGS = {"dm": by_dm, "iid-plus": plus}


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_from_the_images_that_the_first_trained_network_chooses(kind: str, method: str) -> None:
    config, shown = CONFIGS[method](kind, seed=3), []
    look = {"on_iteration": lambda done, synthetic: shown.append(synthetic), "iterations_to_show": (0, 5)}
    result = distill(config, tiny_dataset(), **look)
    start, end = shown
    pool = trained_pool(tiny_dataset(), config.pool, compute=config.compute)
    network = pool.networks[pool_members(config.pool).index((0, config.pool.epochs))]
    assert choosing_network(pool, config.pool) is network
    needed = Distillation(config, tiny_dataset()).pool_settings
    assert needed == (config.pool if method == "iid-plus" else attrs.evolve(config.pool, count=1, epochs_kept=()))
    saved = attrs.evolve(config, pool=attrs.evolve(config.pool, path="saved"))
    assert Distillation(saved, tiny_dataset()).pool_settings.epochs_kept == (0, 2), "its copies say which one fits"
    wanted = chosen_images(kind, tiny_dataset().train, network, config.ipc, config.syn.factor, seed=3)
    assert torch.equal(start.images, wanted.images) and torch.equal(start.labels, wanted.labels)
    assert torch.equal(end.images, result.synthetic.images) and not torch.equal(end.images, start.images)
    own = method == "iid-plus" and kind == "centres"  # which is not reported, as any setting of the scale
    assert (f"syn.init={kind}" in end.provenance["settings"].split()) != own
    assert torch.equal(distill(config, tiny_dataset()).synthetic.images, end.images), "the same seed, the same bits"
    assert (result.pool is None) == (method == "dm"), "what only chooses is not kept"
    real = override(config, {"syn.init": "real"})
    assert not torch.equal(distill(real, tiny_dataset()).synthetic.images, end.images)


def test_the_images_stay_the_tensor_that_the_optimiser_moves() -> None:
    run = Distillation(by_dm("centres"), tiny_dataset())
    before, images = run.images.detach().clone(), run.images
    run.make_pool()
    assert run.images is images is run.optimiser.images and images.is_leaf and images.requires_grad
    assert not torch.equal(images, before)
    chosen = images.detach().clone()
    run.step(0)
    assert not torch.equal(images, chosen)


@pytest.mark.parametrize("name", ["resnet18", "convnet3-bn"])
def test_networks_of_other_kinds_choose_too(name: str) -> None:
    data = shapes(2, 8, 32)
    changes = {"pool__network": name, "pool__epochs": 1, "pool__epochs_kept": (), "pool__untrained": "warn"}
    run = Distillation(by_dm("centres", ipc=1, **changes), data)
    run.make_pool()
    real = data.train.images_of(torch.arange(len(data.train)))
    assert all(bool((real == image).flatten(1).all(1).any()) for image in run.images.detach())


def test_only_the_network_that_chooses_is_trained_where_nothing_else_needs_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def trained(dataset: Dataset, pool: object, **options: object) -> Pool:
        asked.append(pool.count)
        return trained_pool(dataset, pool, **options)

    monkeypatch.setattr(distillation_step, "trained_pool", trained)
    for method, count in (("dm", 1), ("iid-plus", 2)):
        run = Distillation(CONFIGS[method]("easiest"), tiny_dataset())
        run.make_pool()
        assert asked.pop() == run.pool_settings.count == count and not asked
    assert Distillation(by_dm("real"), tiny_dataset()).make_pool() is None and not asked


@pytest.mark.parametrize("method", CONFIGS)
def test_a_run_that_was_killed_takes_its_images_from_the_checkpoint(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[method]("centres")
    whole = distill(config, tiny_dataset())
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "early", **stop_at(1, crash))
    begun_anew = distill(config, tiny_dataset(), out=tmp_path / "early", resume=True)
    assert torch.equal(begun_anew.synthetic.images, whole.synthetic.images)
    with pytest.raises(Crash):
        distill(config, tiny_dataset(), out=tmp_path / "run", **stop_at(3, crash))
    monkeypatch.setattr(distillation_step, "chosen_images", lambda *given, **named: pytest.fail("images are chosen"))
    if method == "dm":
        monkeypatch.setattr(distillation_step, "trained_pool", lambda *given, **named: pytest.fail("a pool is made"))
    resumed = distill(config, tiny_dataset(), out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.synthetic.images, whole.synthetic.images)


@pytest.mark.parametrize("method", CONFIGS)
def test_too_few_images_are_reported_before_the_pool_is_trained(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation_step, "trained_pool", lambda *given, **named: pytest.fail("a pool is made"))
    config = CONFIGS[method]("centres", ipc=2, syn__factor=2)
    reported = r"ipc 2 with syn\.factor 2 takes 8 real images per class, but .* has 7; lower ipc to 1 or less"
    with pytest.raises(InputError, match=reported):
        distill(config, tiny_dataset(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_memory_counts_the_network_that_chooses() -> None:
    def for_pool(config: RunConfig, source: str) -> int:
        needs = least_memory(config, tiny_dataset(), ("mean",), source)
        return sum(bytes for reported, bytes in needs.items() if "the pool" in reported)

    one = for_pool(by_dm("centres", pool__width=4), "random")
    assert one > 0 == for_pool(by_dm("real"), "random")
    assert for_pool(plus("centres"), "stages") == for_pool(plus("real"), "stages") == 2 * 3 * one, "with copies"


def test_a_step_of_one_class_has_no_network_that_chooses(tmp_path: Path) -> None:
    reported = "syn.init=centres needs networks that distinguish classes, .* or random with syn.init=real"
    with pytest.raises(InputError, match=reported):
        learn_in_steps(by_dm("centres", ipc=2), tiny_dataset(), steps=4, out=tmp_path / "steps")
    with pytest.raises(InputError, match=r"pool\.path \(.*\) holds the pool of one dataset"):
        learn_in_steps(by_dm("centres", ipc=2, pool__path="pool"), tiny_dataset(), steps=2, out=tmp_path / "steps")
    with pytest.raises(InputError, match="iid-plus needs networks that distinguish classes"):
        learn_in_steps(plus("real"), tiny_dataset(), steps=4, out=tmp_path / "steps")


def test_what_the_choice_took_is_counted_and_its_network_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: object, **named: object) -> object:
        time.sleep(0.3)
        return chosen_images(*given, **named)

    monkeypatch.setattr(distillation_step, "chosen_images", slow)
    result = distill(by_dm("centres"), tiny_dataset(), out=tmp_path / "run")
    assert result.seconds > 0.3 and result.metrics["seconds"].iloc[0] > 0.3
    (known,) = json.loads((tmp_path / "run" / "environment.json").read_text())["pool"]
    assert len(known["accuracies"]) == 1 and known["seconds"] > 0 and len(known["networks"]) == 12
    cost = cost_of(RunFolder(tmp_path / "run"), 5)
    assert cost["seconds_per_iteration"] == pytest.approx(result.metrics["seconds"].iloc[-1] / 5)
    assert (cost["pool_accuracies"], cost["pool_seconds"]) == (known["accuracies"], known["seconds"])


def test_the_starts_that_settings_take_are_those_that_can_be_chosen() -> None:
    assert tuple(choices.KINDS) == CHOSEN_STARTS == KINDS
