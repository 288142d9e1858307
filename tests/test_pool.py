"""iidlib.features: random networks by iteration; pools that are trained once, kept, loaded as they were, checked."""

import contextlib
import copy
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from hashlib import sha256
from math import comb
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

from iidlib.config import ComputeConfig, PoolConfig, preset
from iidlib.data import Dataset, RealSet, shapes
from iidlib.errors import InputError
from iidlib.features import (
    HeldOut,
    Pool,
    RandomNetworks,
    choosing_pool,
    pool_files,
    pool_fingerprint,
    pool_members,
    trained_pool,
)  # fmt: skip
from iidlib.features import pool_training as features_pool
from iidlib.networks import NETWORKS, Network, build_network, frozen, network_for
from iidlib.rng import stream
from iidlib.training import Training, accuracy
from tests.factories import one_line
from tests.fake_cuda import fake_cuda

CPU = torch.device("cpu")
SMALL = PoolConfig(network="convnet2", width=6, count=2, epochs=3, lr=0.05, batch=8)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(**changes: object) -> PoolConfig:
    return attrs.evolve(SMALL, **changes)


def train(dataset: Dataset, settings: PoolConfig = SMALL, **arguments: object) -> Pool:
    compute = ComputeConfig(compile="off", together=arguments.pop("together", 0))
    return trained_pool(dataset, settings, compute=compute, **arguments)


def same(a: Network, b: Network) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def folder_of(dataset: Dataset, cache: Path, settings: PoolConfig = SMALL) -> Path:
    return cache / "pools" / pool_fingerprint(dataset, settings)


@pytest.fixture(scope="module")
def kept(pictures, tmp_path_factory) -> Path:
    """A pool of SMALL, trained once for this module."""
    folder = tmp_path_factory.mktemp("kept")
    train(pictures, config(path=str(folder)))
    return folder


@pytest.fixture
def pool_folder(pictures, cache, kept) -> Path:
    """A copy of it in the cache."""
    return shutil.copytree(kept, folder_of(pictures, cache))


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("a network was trained")


# Random networks


def random_networks(dataset: Dataset, seed: int = 0, name: str = "convnet2") -> RandomNetworks:
    return RandomNetworks(name, dataset.spec, width=5, seed=seed, device=CPU, compile="off")


def test_every_iteration_has_its_network_whatever_came_before(pictures):
    source = random_networks(pictures)
    first = copy.deepcopy(source.draw(3).network)
    assert not same(source.draw(4).network, first)
    assert same(source.draw(3).network, first)
    assert same(random_networks(pictures).draw(3).network, first)
    assert not same(random_networks(pictures, seed=1).draw(3).network, first)


def test_random_networks_are_frozen_and_let_gradients_through_to_the_images(pictures):
    network, accuracy = random_networks(pictures).draw(0)
    assert accuracy == 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = pictures.train.images_of(torch.arange(3)).requires_grad_()
    network.embed(images).square().sum().backward()
    assert images.grad.flatten(1).any(1).all()


def test_random_networks_take_nothing_of_the_global_generator(pictures):
    before = torch.get_rng_state()
    random_networks(pictures).draw(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_returns_the_network_itself():
    network = build_network("convnet1", width=2)
    assert frozen(network) is network and not any(p.requires_grad for p in network.parameters())


# Networks for a dataset


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_fits_its_dataset(name):
    spec = shapes(3, 1, 32).spec
    network = network_for(name, spec, width=4, generator=stream(0, 0, "x"), compile="off")
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    if name.startswith("convnet"):
        assert network.feature_map(torch.zeros(2, 3, 32, 32)).shape[1] == 4


@pytest.mark.parametrize(
    ("name", "size", "compile", "message"),
    [
        ("resnet81", 32, "off", "unknown network 'resnet81'; did you mean 'resnet18'"),
        ("convnet4", 24, "off", "convnet4 takes square images of a side that is a multiple of 16"),
        ("convnet3", 32, "maybe", "compute.compile must be auto, on or off, got 'maybe'"),
    ],
)
def test_networks_that_do_not_fit_are_input_errors(name, size, compile, message):
    with pytest.raises(InputError, match=message):
        network_for(name, shapes(2, 1, size).spec, width=4, generator=stream(0, 0, "x"), compile=compile)


# Training a pool, keeping it, taking it up again


def test_a_pool_is_trained_kept_and_loaded_bit_for_bit(pictures, cache, monkeypatch):
    trained = train(pictures)
    folder = folder_of(pictures, cache)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.safetensors", "0001.safetensors", "pool.json"]
    monkeypatch.setattr(features_pool, "fit", never)
    loaded = train(pictures)
    assert loaded.accuracies == trained.accuracies and loaded.fingerprint == trained.fingerprint
    for kept, fresh in zip(loaded.networks, trained.networks, strict=True):
        assert same(kept, fresh)
        images = pictures.test.images_of(torch.arange(5))
        assert torch.equal(kept.embed(images), fresh.embed(images))


def test_networks_of_a_pool_are_trained_frozen_different_and_in_evaluation_mode(pictures, cache):
    pool = train(pictures)
    for network, reached in zip(pool.networks, pool.accuracies, strict=True):
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
        assert reached == accuracy(network, pictures.test) >= 50
    assert not same(*pool.networks)


def test_training_repeats_bit_for_bit(pictures, cache, monkeypatch):
    first = train(pictures)
    monkeypatch.setenv("IID_CACHE", str(cache) + "-2")
    torch.rand(3)
    again = train(pictures)
    assert all(same(a, b) for a, b in zip(first.networks, again.networks, strict=True))
    other = train(pictures, config(seed=10, count=1))
    assert not any(same(other.networks[0], network) for network in first.networks)


def test_training_is_plain_sgd_on_all_training_images_without_augmentation(pictures, cache, monkeypatch):
    asked = {}

    def fit(network, examples, training, **settings):
        asked.update(settings, training=training)
        assert torch.equal(examples.labels, pictures.train.labels)
        assert torch.equal(examples.images_of(torch.tensor([5])), pictures.train.images_of(torch.tensor([5])))
        settings["on_epoch"](training.epochs - 1)

    monkeypatch.setattr(features_pool, "fit", fit)
    monkeypatch.setattr(features_pool, "accuracy", lambda network, real: 99.0 if real is pictures.test else 0.0)
    assert train(pictures, config(seed=4, count=1)).accuracies == [99.0]
    asked.pop("on_epoch")
    assert asked == {"training": Training(epochs=3, lr=0.05, batch=8), "seed": 4}


def test_the_first_networks_of_a_larger_pool_are_those_of_a_smaller_one(pictures, cache, monkeypatch):
    small = train(pictures, config(count=1))
    epochs_seen = []
    large = train(pictures, config(count=3), on_epoch=lambda number, epoch: epochs_seen.append((number, epoch)))
    assert epochs_seen == [(number, epoch) for number in (1, 2) for epoch in range(3)]
    assert same(small.networks[0], large.networks[0]) and large.accuracies[:1] == small.accuracies
    monkeypatch.setattr(features_pool, "fit", never)
    assert train(pictures, config(count=2)).accuracies == large.accuracies[:2]


def test_a_pool_interrupted_half_way_resumes_where_it_stopped(pictures, cache, monkeypatch):
    def stop(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pictures, on_epoch=stop)
    folder = folder_of(pictures, cache)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.safetensors", "pool.json"]
    kept = (folder / "0000.safetensors").read_bytes()
    epochs_seen = []
    resumed = train(pictures, on_epoch=lambda number, epoch: epochs_seen.append(number))
    assert epochs_seen == [1, 1, 1] and (folder / "0000.safetensors").read_bytes() == kept
    monkeypatch.setenv("IID_CACHE", str(cache) + "-2")
    assert all(same(a, b) for a, b in zip(resumed.networks, train(pictures).networks, strict=True))


def test_training_is_said_once_with_what_it_reached(pictures, cache, caplog):
    caplog.set_level(logging.INFO, "iidlib")
    pool = train(pictures)
    assert [record.message for record in caplog.records] == [
        "training 2 convnet2 for the pool",
        f"network 1 of 2: {pool.accuracies[0]:.1f} % on held-out images",
        f"network 2 of 2: {pool.accuracies[1]:.1f} % on held-out images",
    ]
    caplog.clear()
    train(pictures)
    assert not caplog.records


# What names a pool


def test_the_fingerprint_names_the_data_and_every_setting_that_shapes_a_network(pictures):
    mine = pool_fingerprint(pictures, SMALL)
    assert len(mine) == 12 and mine == pool_fingerprint(shapes(4, 40, 16), SMALL)
    changed = {
        "network": "convnet1", "width": 7, "epochs": 4, "lr": 0.06, "batch": 9, "seed": 1, "epochs_kept": (1,),
        "stored": "fp32", "augmentation": "flip",
    }  # fmt: skip
    others = {pool_fingerprint(pictures, config(**{key: value})) for key, value in changed.items()}
    assert len(others) == len(changed) and mine not in others
    assert mine == pool_fingerprint(pictures, config(count=9, path="elsewhere"))
    assert set(attrs.asdict(SMALL)) == {*changed, "count", "path", "untrained"}, (
        "a new setting: does it shape the networks?"
    )
    assert mine != pool_fingerprint(shapes(4, 40, 16, seed=1), SMALL)


def test_other_settings_train_a_pool_of_their_own(pictures, cache):
    train(pictures, config(count=1))
    train(pictures, config(count=1, epochs=4))
    assert len(list((cache / "pools").iterdir())) == 2


def test_copies_that_are_named_in_another_order_or_twice_are_one_pool(pictures):
    wanted = config(epochs_kept=(0, 1))
    for kept in ((1, 0), (0, 1, 1), (1, 0, 3)):  # the last of three epochs is always kept
        assert pool_fingerprint(pictures, config(epochs_kept=kept)) == pool_fingerprint(pictures, wanted)
        assert pool_members(config(epochs_kept=kept)) == pool_members(wanted)
    assert config(epochs_kept=(1, 0, 1)) == wanted
    assert pool_fingerprint(pictures, config(epochs_kept=(1,))) != pool_fingerprint(pictures, wanted)


# Members from one training, and their precision


def test_copies_after_chosen_epochs_are_members(pictures, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "iidlib")
    settings = config(epochs=4, epochs_kept=(4, 2, 3), stored="fp32")
    pool = train(pictures, settings)
    members = [(number, epochs) for number in range(2) for epochs in (2, 3, 4)]
    assert pool_members(settings) == members and len(pool.networks) == len(pool.accuracies) == 6
    assert sorted(path.stem for path in folder_of(pictures, cache, settings).glob("*.safetensors")) == [
        "0000", "0000-after-2", "0000-after-3", "0001", "0001-after-2", "0001-after-3"
    ]  # fmt: skip
    assert f"network 2 of 2 after 3 of 4 epochs: {pool.accuracies[4]:.1f} % on held-out images" in caplog.messages
    for (number, epochs), network in zip(members, pool.networks, strict=True):
        # a copy after so many epochs is the network of a training that ends there
        assert same(network, train(pictures, config(epochs=epochs, stored="fp32")).networks[number])
    monkeypatch.setattr(features_pool, "fit", never)
    loaded = train(pictures, settings)
    assert loaded.accuracies == pool.accuracies
    assert all(same(a, b) for a, b in zip(loaded.networks, pool.networks, strict=True))


def test_a_training_that_lacks_a_member_is_done_again(pictures, cache):
    settings = config(count=1, epochs_kept=(2,))
    pool = train(pictures, settings)
    path = folder_of(pictures, cache, settings) / "pool.json"
    facts = json.loads(path.read_text())
    del facts["accuracies"]["0000"]
    path.write_text(json.dumps(facts))
    assert (
        train(pictures, settings).accuracies
        == pool.accuracies
        == list(json.loads(path.read_text())["accuracies"].values())
    )


def test_an_untrained_copy_is_refused_by_the_epochs_it_had(pictures, cache):
    with pytest.raises(
        InputError, match=r"after 1 epochs \(pool.epochs_kept\), no better than guessing .*Keep later epochs"
    ):
        train(pictures, config(lr=1e-9, epochs_kept=(1,), seed=1))
    assert not cache.exists()


def test_half_precision_on_disk_changes_no_more_than_rounding(pictures, cache):
    half, full = train(pictures), train(pictures, config(stored="fp32"))
    images = pictures.test.images_of(torch.arange(len(pictures.test)))
    for mine, exact in zip(half.networks, full.networks, strict=True):
        for name, tensor in mine.state_dict().items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, exact.state_dict()[name].half().float())
        apart = (mine.embed(images) - exact.embed(images)).norm() / exact.embed(images).norm()
        assert 0 < apart < 2e-3
    for one, other in zip(half.accuracies, full.accuracies, strict=True):
        assert abs(one - other) <= 2.5  # two of 80 images
    sizes = [
        (folder_of(pictures, cache, settings) / "0000.safetensors").stat().st_size
        for settings in (SMALL, config(stored="fp32"))
    ]
    assert sizes[0] < 0.75 * sizes[1]


def test_what_half_precision_cannot_hold_is_kept_in_full(pictures, cache, monkeypatch):
    fit = features_pool.fit

    def fit_with_large_numbers(network, *rest, on_epoch, **named):
        def grow(epoch):
            buffers = [tensor for name, tensor in network.named_buffers() if name.endswith("running_var")]
            buffers[0][0] = 1e6  # of a channel, which then hardly counts
            on_epoch(epoch)

        return fit(network, *rest, on_epoch=grow, **named)

    monkeypatch.setattr(features_pool, "fit", fit_with_large_numbers)
    settings = config(network="convnet3-bn", count=1, epochs=15)
    pool = train(pictures, settings)
    stored = load_file(folder_of(pictures, cache, settings) / "0000.safetensors")
    (large, *others) = [name for name in stored if name.endswith("running_var")]
    assert stored[large].dtype == torch.float32 and stored[large][0] == 1e6 and not stored[large][1:].isinf().any()
    for name, tensor in stored.items():
        counter = name.endswith("num_batches_tracked")
        assert tensor.dtype == (torch.int64 if counter else torch.float32 if name == large else torch.float16), name
    buffers = dict(pool.networks[0].named_buffers())
    assert torch.equal(buffers[large], stored[large]) and any(buffers[name].std() > 0 for name in others)


def test_networks_are_trained_with_deterministic_algorithms(pictures, cache, monkeypatch):
    on, seen = [], []

    @contextlib.contextmanager
    def deterministic(device):
        on.append(device)
        yield
        on.pop()

    used = features_pool.fit
    monkeypatch.setattr(features_pool, "deterministic", deterministic)
    monkeypatch.setattr(features_pool, "fit", lambda *given, **named: seen.append([*on]) or used(*given, **named))
    train(pictures, config(epochs=1))
    assert seen == [[CPU], [CPU]] and not on


def test_networks_trained_at_once_are_those_trained_alone(pictures, cache, monkeypatch):
    settings = config(count=3, epochs_kept=(2,), stored="fp32")
    alone = train(pictures, settings)
    monkeypatch.setenv("IID_CACHE", str(cache) + "-2")
    monkeypatch.setattr(features_pool, "fit", never)
    epochs_seen = []
    at_once = train(pictures, settings, together=2, on_epoch=lambda number, epoch: epochs_seen.append((number, epoch)))
    assert epochs_seen == [(n, e) for group in ((0, 1), (2,)) for e in range(3) for n in group]
    for mine, other in zip(at_once.networks, alone.networks, strict=True):
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6
    assert (at_once.ensemble, alone.ensemble) == ("in_turn", "")
    pools = [folder_of(pictures, Path(f"{cache}{end}"), settings) / "pool.json" for end in ("", "-2")]
    assert "ensemble" not in json.loads(pools[0].read_text())
    assert json.loads(pools[1].read_text())["ensemble"] == {"0": "in_turn", "1": "in_turn", "2": "in_turn"}
    assert train(pictures, settings).ensemble == "in_turn", "a pool that is loaded says it too"


def test_a_pool_whose_training_is_recorded_is_the_plain_one(pictures, cache, monkeypatch, caplog):
    settings = config(count=2, epochs_kept=(1,), stored="fp32", network="convnet3-bn")
    alone = train(pictures, settings, together=1)
    monkeypatch.setenv("IID_CACHE", str(cache) + "-2")
    cuda = fake_cuda(monkeypatch)
    recorded = train(pictures, settings, together=2)
    assert recorded.ensemble == "in_turn, recorded" and "replay" in cuda.log
    assert not [record for record in caplog.records if "CUDA graph" in record.message]
    for mine, other in zip(recorded.networks, alone.networks, strict=True):
        for (name, a), b in zip(mine.state_dict().items(), other.state_dict().values(), strict=True):
            assert (a.double() - b).norm() <= 1e-3 * b.double().norm() + 1e-5, name


def test_a_pool_from_before_members_had_epochs_and_precision_is_refused(pictures, cache, pool_folder):
    """Its fingerprint named fewer settings; nobody takes it for one of today's."""
    facts = {
        key: value
        for key, value in attrs.asdict(SMALL).items()
        if key in ("network", "width", "epochs", "lr", "batch", "seed")
    }
    old = sha256(json.dumps([pictures.train.fingerprint, facts], sort_keys=True).encode()).hexdigest()[:12]
    path = pool_folder / "pool.json"
    path.write_text(path.read_text().replace(pool_fingerprint(pictures, SMALL), old))
    with pytest.raises(InputError, match="was trained with other data or settings"):
        train(pictures)


# Members before any training, and augmentation


def test_a_network_before_its_training_is_a_member(pictures, cache, monkeypatch, caplog):
    settings = config(count=1, epochs_kept=(0, 2), stored="fp32")
    pool = train(pictures, settings)
    assert pool_members(settings) == [(0, 0), (0, 2), (0, 3)] and len(pool.networks) == 3
    assert same(pool.networks[0], network_for(
        "convnet2", pictures.spec, width=6, generator=stream(0, 0, "pool network", CPU), compile="off"
    ))  # fmt: skip
    assert same(pool.networks[2], train(pictures, config(count=1, stored="fp32")).networks[0])
    monkeypatch.setattr(features_pool, "fit", never)
    loaded = train(pictures, settings)
    assert loaded.accuracies == pool.accuracies and loaded.digest == pool.digest
    assert all(same(a, b) for a, b in zip(loaded.networks, pool.networks, strict=True))


def test_a_network_before_its_training_in_a_pool_that_is_trained_together(pictures, cache, tmp_path):
    settings = config(count=2, epochs_kept=(0,), stored="fp32")
    for together in (1, 2):
        (tmp_path / str(together)).mkdir()
    one, two = (
        train(pictures, attrs.evolve(settings, path=str(tmp_path / str(together))), together=together)
        for together in (1, 2)
    )
    for number in (0, 2):
        assert same(one.networks[number], two.networks[number]), "weights of the start know of no training"


def test_a_network_before_its_training_need_not_have_learned_anything(pictures, cache, caplog):
    held_out = HeldOut.of(pictures.test)
    seed = next(  # a network that is no better than guessing, whatever the others are
        seed for seed in range(20)
        if held_out.right(accuracy(network_for("convnet2", pictures.spec, width=6, compile="off",
                                               generator=stream(seed, 0, "pool network", CPU)), pictures.test))
        < held_out.better_than_chance
    )  # fmt: skip
    settings = config(count=1, epochs=20, epochs_kept=(0,), seed=seed)
    pool = train(pictures, settings)
    assert held_out.right(pool.accuracies[0]) < held_out.better_than_chance <= held_out.right(pool.accuracies[1])
    assert train(pictures, settings).accuracies == pool.accuracies, "nor when the pool is loaded"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "nobody expects it to"


def test_augmentation_names_a_pool_only_where_there_is_some(pictures):
    facts = {key: value for key, value in attrs.asdict(SMALL).items() if key not in ("count", "path", "untrained")}
    del facts["augmentation"]  # as version 0.1.0 named it
    earlier = sha256(json.dumps([pictures.train.fingerprint, facts], sort_keys=True).encode()).hexdigest()[:12]
    assert pool_fingerprint(pictures, SMALL) == pool_fingerprint(pictures, config(augmentation="none")) == earlier
    own = pictures.spec.augmentation
    names = [pool_fingerprint(pictures, config(augmentation=each)) for each in ("auto", own, "flip", "none")]
    assert names[0] == names[1] and len(set(names)) == 3


def test_networks_are_trained_with_the_augmentation_that_is_asked_for(pictures, cache, monkeypatch):
    trainings: list[Training] = []
    fit = features_pool.fit

    def spy(network: Network, examples: object, training: Training, **named: object) -> None:
        trainings.append(training)
        fit(network, examples, training, **named)

    monkeypatch.setattr(features_pool, "fit", spy)
    one = {"count": 1, "stored": "fp32", "untrained": "warn"}
    plain, auto = (train(pictures, config(augmentation=each, **one)) for each in ("none", "auto"))
    spelled = train(pictures, config(augmentation=pictures.spec.augmentation, **one))
    assert [training.augmentation for training in trainings] == ["none", pictures.spec.augmentation]
    assert same(auto.networks[0], spelled.networks[0]) and not same(auto.networks[0], plain.networks[0])
    with pytest.raises(InputError, match=r"'flop'.*did you mean 'flip'"):
        pool_fingerprint(pictures, config(augmentation="flop"))


def test_the_network_that_chooses_images_is_the_last_whatever_stages_are_kept(pictures, cache):
    chosen = []
    for changes in ({}, {"pool.epochs_kept": (0, 1, 2)}):
        small = {"pool.network": "convnet2", "pool.width": 6, "pool.epochs": 5, "pool.lr": 0.05, "pool.batch": 8}
        chosen.append(choosing_pool(pictures, preset("dm", "shapes", 1, "ci", small | changes)))
    assert [len(pool.networks) for pool in chosen] == [1, 1] and chosen[0].digest == chosen[1].digest
    assert len(list((cache / "pools").iterdir())) == 1


# A folder named in the settings


def test_a_pool_by_its_path(pictures, cache, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    trained = train(pictures, config(path=str(mine)))
    assert (mine / "pool.json").is_file() and not cache.exists()
    monkeypatch.setattr(features_pool, "fit", never)
    assert same(train(pictures, config(path=str(mine))).networks[1], trained.networks[1])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(train(pictures, config(path="~/mine")).networks[1], trained.networks[1])


@pytest.mark.parametrize("changes", [{"epochs": 4}, {"width": 7}, {"seed": 1}])
def test_a_pool_of_other_settings_is_refused(changes, pictures, kept):
    before = {path: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(InputError, match="was trained with other data or settings") as caught:
        train(pictures, config(path=str(kept), **changes))
    assert one_line(caught, 600) and before == {path: path.read_bytes() for path in kept.iterdir()}


def test_a_pool_of_other_data_is_refused(kept):
    with pytest.raises(InputError, match="was trained with other data or settings"):
        train(shapes(4, 40, 16, seed=1), config(path=str(kept)))


def test_a_path_that_is_not_there_is_refused(pictures, tmp_path):
    with pytest.raises(InputError, match=r"pool.path: no folder .*nowhere; omit it"):
        train(pictures, config(path=str(tmp_path / "nowhere")))
    assert not (tmp_path / "nowhere").exists()


# What is wrong with a pool


def binomial_tail(right: int, images: int, chance: Fraction) -> Fraction:
    """The probability of at least so many right answers when each is right with probability `chance`."""
    return sum(
        (comb(images, k) * chance**k * (1 - chance) ** (images - k) for k in range(right, images + 1)), Fraction(0)
    )


@pytest.mark.parametrize("images", [5, 8, 20, 160, 400])
@pytest.mark.parametrize("chance", [Fraction(1, 2), Fraction(1, 10), Fraction(7, 10)])
def test_better_than_chance_is_what_guessing_hardly_reaches(images, chance):
    needed = HeldOut(images, 10, float(chance)).better_than_chance
    if needed is None:
        assert binomial_tail(images, images, chance) > Fraction(1, 20)
    else:
        assert binomial_tail(needed, images, chance) <= Fraction(1, 20) < binomial_tail(needed - 1, images, chance)


def test_four_images_of_two_classes_prove_nothing():
    assert HeldOut(4, 2, 0.5).better_than_chance is None
    assert HeldOut(5, 2, 0.5).better_than_chance == 5


@pytest.mark.parametrize(("classes", "usual"), [(2, 600), (3, 500), (4, 450), (10, 180), (100, 18)])
def test_the_accuracy_of_useful_networks(classes, usual):
    assert HeldOut(900, classes, 1 / classes).well_trained == usual


def test_chance_is_the_share_of_the_largest_class():
    images, labels = torch.zeros(10, 3, 16, 16, dtype=torch.uint8), torch.tensor([0] * 7 + [1] * 2 + [2])
    held_out = HeldOut.of(RealSet(images, labels, shapes(3, 1, 16).spec))
    assert (held_out.images, held_out.classes, held_out.chance) == (10, 3, 0.7)


def cats_and_dogs(right: float) -> Dataset:
    """Two classes of which some test images are of the class that they are said to be of, and the others are not."""
    whole = shapes(2, 40, 16)
    labels = whole.test.labels.clone()
    wrong = round((1 - right) * 20)
    for label in (0, 1):
        labels[(whole.test.labels == label).nonzero().flatten()[:wrong]] = 1 - label
    return Dataset(whole.name, whole.train, RealSet(whole.test.images, labels, whole.spec), whole.spec)


def test_a_weak_network_is_used_with_a_warning(cache, caplog):
    dataset = cats_and_dogs(0.65)
    with caplog.at_level(logging.WARNING, logger="iidlib"):
        pool = train(dataset, config(lr=0.02))
    assert pool.accuracies == [65.0, 65.0]  # below the two thirds that were asked for before
    (warning,) = [record.getMessage() for record in caplog.records]
    for part in ("has learned little: 26, 26 of 40", "27 are usual and 26", "raise", "dm and dm-cm need no pool"):
        assert part.lower() in warning.lower()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="iidlib"):
        train(dataset, config(lr=0.02))  # from the cache
    assert len(caplog.records) == 1


def test_a_copy_on_the_way_is_not_called_weak(pictures, cache, caplog):
    held_out = HeldOut.of(pictures.test)
    pool = train(pictures, config(count=1, epochs=20, epochs_kept=(1,), untrained="warn", lr=0.006))
    early, late = map(held_out.right, pool.accuracies)
    assert early < held_out.well_trained <= late
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_guess_at_the_largest_class_is_weak_however_large_it_is(cache, caplog):
    whole = shapes(2, 40, 16)
    uneven = torch.cat([torch.arange(20), torch.arange(20, 25)])  # 20 of one class, five of the other
    test = RealSet(whole.test.images[uneven], whole.test.labels[uneven], whole.spec)
    held_out = HeldOut.of(test)
    assert held_out.chance == 0.8 and held_out.well_trained < 20 < held_out.better_than_chance
    with caplog.at_level(logging.WARNING, logger="iidlib"):
        train(Dataset(whole.name, whole.train, test, whole.spec), config(lr=1e-9, epochs=1, untrained="warn"))
    assert f"where {held_out.better_than_chance} are usual" in caplog.text


def test_a_dataset_without_test_images_has_no_pool(pictures, cache):
    none = RealSet(pictures.test.images[:0], pictures.test.labels[:0], pictures.spec)
    with pytest.raises(InputError, match=r"shapes has no test images .*dm and dm-cm need no pool"):
        train(Dataset(pictures.name, pictures.train, none, pictures.spec))
    assert not cache.exists()


def test_labels_that_nothing_can_learn_are_reported(cache):
    with pytest.raises(InputError, match=r"classifies 20 of 40 held-out images correctly, no better .* \(26 would"):
        train(cats_and_dogs(0.5), config(lr=0.02))


def test_an_untrained_pool_is_refused_and_not_kept(pictures, cache):
    with pytest.raises(InputError) as caught:
        train(pictures, config(lr=1e-9, epochs=1, seed=1))
    assert one_line(caught, 600)
    for part in ("network 0 of the pool (convnet2) classifies", "no better than guessing", "Raise pool.epochs (now 1)"):
        assert part in str(caught.value)
    for remedy in ("give more images", "pool.untrained=warn", "dm and dm-cm need no pool"):
        assert remedy in str(caught.value)
    assert not cache.exists()


def test_an_untrained_pool_is_taken_on_request_and_reported(pictures, cache, caplog):
    with caplog.at_level(logging.WARNING, logger="iidlib"):
        pool = train(pictures, config(lr=1e-9, epochs=1, seed=1, untrained="warn"))
    assert len(pool.networks) == 2 and "nothing that is better than guessing" in caplog.text
    with pytest.raises(InputError, match="no better than guessing"):
        train(pictures, config(lr=1e-9, epochs=1, seed=1))  # the kept one, without the request


def test_too_few_held_out_images_are_reported_and_refuse_nothing(cache, caplog):
    whole = shapes(2, 8, 16)
    two_each = torch.tensor([0, 1, 20, 21])
    few = RealSet(whole.test.images[two_each], whole.test.labels[two_each], whole.spec)
    with caplog.at_level(logging.WARNING, logger="iidlib"):
        train(Dataset(whole.name, whole.train, few, whole.spec), config(epochs=1))
    assert "4 held-out images are too few to determine" in caplog.text


def test_a_pool_that_diverged_says_so(pictures, cache):
    with pytest.raises(InputError, match=r"has diverged: its weights are not finite; lower pool.lr \(now 1e\+"):
        train(pictures, config(lr=1e30, untrained="warn"))
    assert not cache.exists()


def test_how_untrained_pools_are_met_is_no_part_of_their_name(pictures):
    assert pool_fingerprint(pictures, SMALL) == pool_fingerprint(pictures, config(untrained="warn"))


def test_a_kept_pool_below_the_bar_is_refused_too(pictures, pool_folder):
    path = pool_folder / "pool.json"
    facts = json.loads(path.read_text())
    facts["accuracies"]["0001"] = 25.0
    path.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"network 1 of the pool .* classifies \d+ of \d+ held-out images correctly"):
        train(pictures)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_in_the_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12] ^= 0xFF
    path.write_bytes(bytes(content))


def write(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


@pytest.mark.parametrize(
    ("name", "corruption"),
    [
        ("0001.safetensors", cut),
        ("0001.safetensors", flip_in_the_header),
        ("0001.safetensors", Path.unlink),
        ("0001.safetensors", write("")),
        ("pool.json", cut),
        ("pool.json", write("")),
        ("pool.json", write("[]")),
        ("pool.json", write("{}")),
        ("pool.json", write('{"fingerprint": "x", "accuracies": [1]}')),
        ("pool.json", write('{"fingerprint": "x", "accuracies": {"0000": "high"}}')),
        ("pool.json", write('{"fingerprint": "x", "accuracies": {"0000": null}}')),
        ("pool.json", lambda path: path.write_bytes(b"\xff\xfe") and None),
    ],
)
def test_corruption_is_one_line_that_says_what_to_remove(name, corruption, pictures, pool_folder, monkeypatch):
    path = pool_folder / name
    corruption(path)
    monkeypatch.setattr(features_pool, "fit", never)
    with pytest.raises(InputError, match=r"is corrupted \(.*remove (the|its) folder to train the pool again") as caught:
        train(pictures)
    assert one_line(caught, 600) and str(path) in str(caught.value)


def test_weights_of_another_network_are_a_corruption(pictures, cache, pool_folder):
    train(pictures, config(width=7, count=1))
    other = folder_of(pictures, cache, config(width=7)) / "0000.safetensors"
    (pool_folder / "0000.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"0000.safetensors is corrupted") as caught:
        train(pictures)
    assert one_line(caught, 600)


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_trained(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(features_pool, "fit", lambda *given, **named: pytest.fail("a network is trained"))
    monkeypatch.setattr(features_pool, "fit_together", features_pool.fit)
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot keep the pool in .*; set IID_CACHE to another folder") as caught:
        train(pictures, config(count=1))
    assert one_line(caught, 600)


def test_a_read_only_cache_is_named_and_a_whole_pool_is_loaded_from_it(pictures, cache, pool_folder, monkeypatch):
    def read_only(*given, **named):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert len(train(pictures).networks) == 2
    with pytest.raises(
        InputError, match=r"cannot keep the pool in .*: Read-only file system; set IID_CACHE to another"
    ):
        train(pictures, config(width=7))
    assert [path.name for path in (cache / "pools").iterdir()] == [pool_folder.name]


@pytest.mark.parametrize("together", [1, 2])
def test_networks_that_find_the_cache_full_still_serve_the_run(together, pictures, cache, monkeypatch, caplog):
    whole = train(pictures, together=together)
    shutil.rmtree(cache)
    write, written = pool_files.atomic_write, []

    def full(path, content, **named):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        write(path, content, **named)

    monkeypatch.setattr(pool_files, "atomic_write", full)
    pool = train(pictures, together=together)
    assert all(map(same, pool.networks, whole.networks)) and pool.accuracies == whole.accuracies
    assert (pool.digest, pool.fingerprint) == (whole.digest, whole.fingerprint)
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "No space left on device" in warning and "this run uses the networks" in warning and "\n" not in warning
    monkeypatch.undo()
    monkeypatch.setenv("IID_CACHE", str(cache))
    assert all(map(same, train(pictures, together=together).networks, whole.networks)), "what was left is no pool"


def test_a_folder_that_was_asked_for_and_is_full_is_an_error(pictures, tmp_path, monkeypatch):
    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool_files, "atomic_write", full)
    with pytest.raises(InputError, match=r"cannot keep the pool in .*: No space left on device; give another folder"):
        train(pictures, config(path=str(tmp_path)))


def test_a_pool_in_the_cache_is_for_its_user_alone(pictures, cache, tmp_path):
    before = os.umask(0)
    try:
        train(pictures, config(count=1))
        (tmp_path / "mine").mkdir()
        train(pictures, config(count=1, path=str(tmp_path / "mine")))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (cache, *cache.rglob("*")) if path.is_dir()}
    assert modes == {0o700} and {path.stat().st_mode & 0o777 for path in cache.rglob("*.*")} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "mine").iterdir()} == {0o666}, "as the umask says"


# Drawing from a pool


def test_samples_are_uniform_and_a_function_of_the_generator():
    pool = Pool([build_network("convnet1", width=1) for _ in range(4)], [99.0] * 4, "x")
    generator = stream(0, 0, "expert")
    drawn = [pool.networks.index(pool.sample(generator)) for _ in range(400)]
    assert set(Counter(drawn)) == {0, 1, 2, 3} and min(Counter(drawn).values()) > 70
    generator = stream(0, 0, "expert")
    assert drawn == [pool.networks.index(pool.sample(generator)) for _ in range(400)]


def test_class_centralization_meets_no_network_from_before_its_training(pictures, cache):
    pool = train(pictures, config(count=2, epochs=1, epochs_kept=(0,)))
    assert pool.epochs == [0, 1, 0, 1]
    drawn = [pool.networks.index(pool.sample(stream(0, i, "expert"))) for i in range(100)]
    assert set(drawn) == {1, 3}
    trained = Pool(pool.networks[1::2], pool.accuracies[1::2], "the trained ones")
    alone = [trained.networks.index(trained.sample(stream(0, i, "expert"))) for i in range(100)]
    assert alone == [number // 2 for number in drawn]
