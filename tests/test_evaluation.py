"""iidlib.evaluation: the protocol to the letter, seeds that do not depend on each other, baselines, intervals."""

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import math
import statistics
from collections.abc import Sequence

import attrs
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from iidlib.augment import sample
from iidlib.config import SCALES, ComputeConfig, Drop, EvalProtocol, override, preset
from iidlib.config import protocol as protocol_changes
from iidlib.config.recipes import PROTOCOLS
from iidlib.data import Dataset, DatasetSpec, RealSet, load_dataset, shapes
from iidlib.distillation import Distillation
from iidlib.errors import InputError
from iidlib.evaluation import (
    check_evaluation,
    dataset_for,
    evaluate,
    evaluated,
    evaluation_config,
    origin_of,
    random_baselines,
    random_real,
    summarize,
)
from iidlib.evaluation import run as evaluation_run
from iidlib.experiments import SetOrigin, paired_gains, paired_interval, result_rows
from iidlib.networks import Network, build_network
from iidlib.notes import log_once
from iidlib.rng import stream, stream_seed
from iidlib.synthetic import SyntheticSet
from iidlib.training import Reached, Training
from tests import reference, reference_augment
from tests.fake_cuda import fake_cuda

PICTURES = {"per_class": (9, 12, 15, 8)}
"""Of the fixture `pictures`."""

QUICK = EvalProtocol(networks=("convnet2",), width=4, num_eval=2, epochs=4, lr=0.02, batch=8)


def changed(**changes: object) -> EvalProtocol:
    return attrs.evolve(QUICK, **changes)


def assess(
    images: SyntheticSet | RealSet, dataset: Dataset, protocol: EvalProtocol = QUICK, **settings
) -> pd.DataFrame:
    compute = ComputeConfig(compile="off", together=settings.pop("together", 0))
    return evaluate(images, dataset, protocol=protocol, compute=compute, **settings)


@pytest.fixture
def networks(monkeypatch) -> list[dict[str, Tensor]]:
    """The weights of every network that is assessed, as they are then."""
    kept: list[dict[str, Tensor]] = []
    reached, together = evaluation_run.reached, evaluation_run.reached_together

    def keep(network: Network, real: RealSet) -> Reached:
        kept.append(copy.deepcopy(network.state_dict()))
        return reached(network, real)

    def keep_all(networks: Sequence[Network], real: RealSet) -> list[Reached]:
        kept.extend(copy.deepcopy(network.state_dict()) for network in networks)
        return together(networks, real)

    monkeypatch.setattr(evaluation_run, "reached", keep)
    monkeypatch.setattr(evaluation_run, "reached_together", keep_all)
    return kept


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# The protocol


def test_the_papers_protocol_is_the_default():
    protocol = EvalProtocol()
    assert (protocol.epochs, protocol.lr, protocol.batch, protocol.augmentation) == (1001, 0.01, 256, "auto")
    assert (protocol.networks, protocol.width, protocol.num_eval) == (("convnet3",), 128, 5)


@pytest.mark.parametrize(
    ("epochs", "last"), [(1001, 501), (1000, 500), (300, 150), (301, 151), (4, 2), (3, 2), (2, 1), (1, 1)]
)
def test_the_last_pass_before_the_drop(epochs, last):
    (drop,) = EvalProtocol(epochs=epochs).drops
    assert drop == Drop(last + 1, 0.001, restart=True)


def test_the_idc_familys_protocol_by_name():
    config = preset("random", "cifar10", 10, "paper")
    assert config.eval.name == "dm"
    given = protocol_changes("idc", "color_crop_cutout_flip_scale_rotate", "paper")
    protocol = override(config, given).eval
    assert (protocol.name, protocol.epochs, protocol.batch, protocol.cutmix) == ("idc", 1500, 64, 0.5)
    assert protocol.augmentation == "flip>color>crop_scale_rotate"
    assert protocol.drops == (Drop(1000, 0.2 * 0.01), Drop(1250, 0.04 * 0.01))
    assert protocol_changes("dm", "flip", "paper") == PROTOCOLS["dm"]
    # digits are not mirrored, and smaller scales keep their own number of epochs
    smaller = protocol_changes("idc", "color_crop_cutout_scale_rotate", "laptop")
    assert smaller["eval.augmentation"] == "color>crop_scale_rotate" and "eval.epochs" not in smaller
    assert override(config, {"eval.cutmix": 0.3}).eval.name == "own"
    with pytest.raises(InputError, match=r"eval\.cutmix is a share of the batches, at most 1, got 1\.5"):
        override(config, {"eval.cutmix": 1.5})
    assert all(preset("dm", "cifar10", 10, scale).eval.name == "dm" for scale in SCALES)


def test_the_protocol_is_what_training_is_given(pictures, monkeypatch):
    asked = []

    def fit(network, examples, training, **settings):
        assert torch.equal(examples.images_of(torch.tensor([2, 0])), chosen.images[[2, 0]])
        assert torch.equal(examples.labels, chosen.labels)
        asked.append((training, settings))

    monkeypatch.setattr(evaluation_run, "fit", fit)
    chosen = random_real(pictures.train, 3)
    assess(chosen, pictures, changed(epochs=11, num_eval=2), seed=5)
    training = Training(11, 0.02, 8, (Drop(7, 0.002, restart=True),), pictures.spec.augmentation, cutmix=0.0)
    seeds = [stream_seed(5, number, "evaluation of convnet2") for number in range(2)]
    assert asked == [(training, {"seed": seed, "on_epoch": None}) for seed in seeds]
    asked.clear()
    assess(chosen, pictures, changed(augmentation="none", num_eval=1))
    assess(chosen, pictures, changed(augmentation="flip", num_eval=1))
    assert [training.augmentation for training, _ in asked] == ["none", "flip"]


def test_a_network_is_trained_as_a_loop_written_by_hand(pictures, networks):
    """Batches, augmentation and optimiser written out: the rate falls after pass 3 of 6, the momentum forgotten."""
    chosen = random_real(pictures.train, 3)
    scores = assess(chosen, pictures, changed(epochs=6, num_eval=1), seed=7)
    seed = stream_seed(7, 0, "evaluation of convnet2")
    generator = stream(seed, 0, "network")
    network = build_network("convnet2", num_classes=4, image_size=16, width=4, generator=generator)
    lr, velocity = 0.02, {}
    for epoch in range(6):
        if epoch == 4:
            lr, velocity = 0.002, {}
        draws = stream(seed, epoch, "training")
        order = torch.randperm(12, generator=draws)
        for index in (order[:8], order[8:]):
            augmented = reference_augment.augment(
                chosen.images[index], sample(pictures.spec.augmentation, len(index), draws, shared_op=True)
            )
            loss = reference.cross_entropy(network(augmented), chosen.labels[index])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    before = velocity.get(parameter, torch.zeros_like(parameter))
                    new, velocity[parameter] = reference.sgd(parameter, before, gradient + 5e-4 * parameter, lr, 0.9)
                    parameter.copy_(new)
    found, expected = networks[0], network.state_dict()
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-7, name
    logits = torch.cat([network(pictures.test.images_of(torch.tensor([i]))) for i in range(len(pictures.test))])
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, pictures.test.labels, strict=True))
    assert scores["accuracy"].tolist() == [pytest.approx(100 * right / 80, abs=1.3)]  # one image may sit on the fence


# Rows


def test_rows(pictures):
    chosen = random_real(pictures.train, 3)
    protocol = changed(networks=("convnet2", "convnet1"))
    scores = assess(chosen, pictures, protocol)
    assert list(scores) == ["network", "evaluation_seed", "accuracy", "epochs", "images", "seconds", "outcome"]
    assert scores["network"].tolist() == ["convnet2"] * 2 + ["convnet1"] * 2
    assert scores["evaluation_seed"].tolist() == [0, 1, 0, 1]
    assert set(scores["epochs"]) == {4} and set(scores["images"]) == {12} and (scores["seconds"] > 0).all()
    heard = pd.DataFrame(evaluated(chosen, pictures, protocol=protocol, compute=ComputeConfig(compile="off")))
    assert heard.drop(columns="seconds").equals(scores.drop(columns="seconds"))


def test_rows_come_one_by_one(pictures, networks):
    chosen = random_real(pictures.train, 3)
    rows = evaluated(chosen, pictures, protocol=QUICK, compute=ComputeConfig(compile="off"))
    assert next(rows)["evaluation_seed"] == 0 and len(networks) == 1, "the second network is not trained yet"


def test_what_ends_an_evaluation_early_notes_the_rows_of_finished_networks(pictures, monkeypatch):
    begun, fit = [], evaluation_run.fit

    def failing(*given, **named):
        begun.append(1)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return fit(*given, **named)

    chosen, protocol = random_real(pictures.train, 3), changed(num_eval=3)
    whole = assess(chosen, pictures, protocol)["accuracy"].tolist()
    monkeypatch.setattr(evaluation_run, "fit", failing)
    with pytest.raises(KeyboardInterrupt) as caught:
        assess(chosen, pictures, protocol)
    (note,) = caught.value.__notes__
    reported, _, rows = note.partition(": ")
    assert reported == "2 networks were evaluated before that"
    assert [row["accuracy"] for row in json.loads(rows)] == whole[:2]


def test_a_seed_repeats_bit_for_bit(pictures, networks):
    chosen = random_real(pictures.train, 3)
    first = assess(chosen, pictures)
    torch.rand(3)
    again = assess(chosen, pictures)
    assert first.drop(columns="seconds").equals(again.drop(columns="seconds"))
    assert same(networks[0], networks[2]) and same(networks[1], networks[3])
    assert not same(networks[0], networks[1])
    assess(chosen, pictures, seed=1)
    assert not same(networks[0], networks[4])


def test_a_network_does_not_depend_on_how_many_others_are_evaluated(pictures, networks):
    chosen = random_real(pictures.train, 3)
    assess(chosen, pictures, changed(num_eval=1))
    assess(chosen, pictures, changed(num_eval=3, networks=("convnet1", "convnet2")))
    alone, *ones, first, second, third = networks
    assert same(alone, first) and not same(first, second) and not same(second, third)
    assert len(ones) == 3


def test_networks_evaluated_at_once_are_those_evaluated_one_by_one(pictures, networks, monkeypatch):
    chosen = random_real(pictures.train, 3)
    protocol = changed(num_eval=3, networks=("convnet2", "convnet3-bn"))
    alone = assess(chosen, pictures, protocol)
    monkeypatch.setattr(evaluation_run, "fit", None)
    at_once = assess(chosen, pictures, protocol, together=2)
    assert (at_once["ensemble"] == "in_turn").all() and "ensemble" not in alone
    timed = ["accuracy", "seconds"]
    assert at_once.drop(columns=[*timed, "ensemble"]).equals(alone.drop(columns=timed))
    assert ((at_once["accuracy"] - alone["accuracy"]).abs() <= 2.5).all()  # two images may sit on the fence
    for mine, other in zip(networks[6:], networks[:6], strict=True):
        for name, tensor in other.items():
            assert (mine[name].double() - tensor).norm() <= 1e-3 * tensor.double().norm() + 1e-5, name


@pytest.mark.parametrize("together", [1, 2])
def test_networks_are_trained_and_tested_with_deterministic_algorithms(pictures, together, monkeypatch):
    on, trained, tested = [], [], []

    @contextlib.contextmanager
    def deterministic(device):
        on.append(device)
        yield
        on.pop()

    monkeypatch.setattr(evaluation_run, "deterministic", deterministic)
    tests = "reached" if together == 1 else "reached_together"
    for name, log in (("fit", trained), ("fit_together", trained), (tests, tested)):
        used = getattr(evaluation_run, name)
        noted = functools.partial(
            lambda used, log, *given, **named: log.append([*on]) or used(*given, **named), used, log
        )
        monkeypatch.setattr(evaluation_run, name, noted)
    assess(random_real(pictures.train, 3), pictures, together=together)
    device = [pictures.train.device]
    assert trained == tested == [device] * (2 // together) and not on


@pytest.mark.parametrize("form", ["at_once", "in_turn"])
def test_an_evaluation_whose_training_and_test_are_recorded_is_the_plain_one(pictures, form, monkeypatch, caplog):
    chosen, compute = random_real(pictures.train, 3), ComputeConfig(compile="off", together=2, ensemble=form)
    alone = assess(chosen, pictures, together=1)
    cuda, counted = fake_cuda(monkeypatch), []
    found = evaluate(chosen, pictures, protocol=QUICK, compute=compute, on_epochs=counted.append)
    assert found["ensemble"].tolist() == [f"{form}, recorded"] * 2 and counted == [2] * QUICK.epochs
    assert ((found["accuracy"] - alone["accuracy"]).abs() <= 2.5).all()  # two images may sit on the fence
    assert sum(done.startswith("capture") for done in cuda.log) == 3, "both sizes of a batch, and the test"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    config = override(preset("random", pictures.name, 3, "ci"), {"compute.ensemble": form})
    rows = result_rows(found, attrs.evolve(config, eval=QUICK))
    assert rows["ensemble"].tolist() == found["ensemble"].tolist()


def test_evaluating_leaves_the_set_and_the_global_generator_alone(pictures):
    chosen = random_real(pictures.train, 3)
    before, state = chosen.images.clone(), torch.get_rng_state()
    assess(chosen, pictures)
    assert torch.equal(chosen.images, before) and torch.equal(torch.get_rng_state(), state)


def test_a_set_that_was_changed_into_none_is_refused(pictures, networks):
    chosen = random_real(pictures.train, 2)
    usual = assess(chosen, pictures, changed(num_eval=1))["accuracy"].tolist()
    chosen.images = chosen.images.double()
    assert assess(chosen, pictures, changed(num_eval=1))["accuracy"].tolist() == usual
    networks.clear()
    chosen.images[3, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"not finite .*, the first is image 3"):
        assess(chosen, pictures)
    assert not networks


def test_images_that_need_a_gradient_can_be_evaluated(pictures):
    chosen = random_real(pictures.train, 2)
    chosen.images.requires_grad_()
    assess(chosen, pictures, changed(num_eval=1))
    assert chosen.images.grad is None


@pytest.mark.parametrize("name", ["convnet3-bn", "alexnet-bn", "lenet", "mlp"])
def test_every_kind_of_network_is_evaluated(name):
    dataset = shapes(3, 12, 32)
    scores = assess(random_real(dataset.train, 4), dataset, changed(networks=(name,), num_eval=1, epochs=2))
    assert 0 <= scores["accuracy"][0] <= 100


def test_a_batch_norm_network_learns(pictures):
    protocol = changed(networks=("convnet3-bn",), num_eval=1, epochs=20, augmentation="none", batch=16)
    assert assess(pictures.train, pictures, protocol)["accuracy"][0] > 40


def test_more_real_images_score_higher_and_the_order_is_not_chance():
    dataset = shapes(4, 40, 16)
    protocol = changed(epochs=15, num_eval=2, lr=0.05, batch=16)
    few = assess(random_real(dataset.train, 1), dataset, protocol)["accuracy"].mean()
    whole = assess(dataset.train, dataset, protocol)["accuracy"].mean()
    assert whole > 60 and whole > few + 10


# Baselines


def test_random_images_are_real_ones_and_those_that_a_distillation_starts_from(pictures):
    chosen = random_real(pictures.train, 3, seed=6)
    real = {image.numpy().tobytes() for image in pictures.train.images}
    assert all(image.numpy().tobytes() in real for image in chosen.to_uint8())
    assert len({image.numpy().tobytes() for image in chosen.to_uint8()}) == 12
    run = Distillation(preset("dm", "shapes", 3, "ci", {"seed": 6, "match.network": "convnet2"}), pictures)
    assert torch.equal(chosen.images, run.images.detach())
    assert chosen.provenance == {"init": "real", "method": "random", "seed": "6", "data": pictures.train.fingerprint}
    assert not torch.equal(chosen.images, random_real(pictures.train, 3, seed=7).images)


@pytest.mark.parametrize("ipc", [0, 9])
def test_random_images_a_class_within_bounds(pictures, ipc):
    with pytest.raises(InputError, match=rf"ipc must be 1 to 8, .* not {ipc}"):
        random_real(pictures.train, ipc)


def test_the_whole_set_is_evaluated_under_its_own_protocol(pictures):
    scores = assess(pictures.train, pictures, changed(num_eval=1))
    assert scores["images"].tolist() == [44]
    assert EvalProtocol().for_whole_set() == EvalProtocol(epochs=60)
    assert QUICK.for_whole_set() == QUICK


# Sets that do not fit


def like(dataset: Dataset, **changes: object) -> Dataset:
    """The dataset with another specification: the same pixels."""
    spec = dataclasses.replace(dataset.spec, **changes)
    parts = (RealSet(part.images, part.labels, spec) for part in (dataset.train, dataset.test))
    return Dataset(spec.name, *parts, spec)


@pytest.mark.parametrize(
    ("other", "reported"),
    [
        (
            lambda own: like(own, classes=("a", "b", "c", "plus")),
            "in the set, 4 in the dataset - only in the set 'disc', 'square', 'triangle' - only in .* 'a', 'b', 'c'$",
        ),
        (lambda own: shapes(3, 3, 16), "4 classes in the set, 3 in the dataset - only in the set 'plus'$"),
        (lambda own: shapes(4, 3, 8), "the set's images are 16 pixels wide and high, the dataset's 8$"),
        (
            lambda own: like(shapes(3, 3, 24), name="folder:a?size=24"),
            "only in the set 'plus'; the set's .* 16 pixels .*, the dataset's 24 .use folder:a.size=16.$",
        ),
        (
            lambda own: Dataset.of(
                dataclasses.replace(own.spec, channels=1, mean=(0.5,), std=(0.5,)),
                *((part.images[:, :1], part.labels) for part in (own.train, own.test)),
            ),
            "the set's images have 3 channels, the dataset's 1$",
        ),
    ],
    ids=["names", "classes", "size", "classes and size", "channels"],
)
def test_what_keeps_a_set_from_a_dataset_is_named(pictures, other, reported):
    dataset = other(pictures)
    name = dataset.name.partition("?")[0]
    message = f"the set was made for shapes, whose images or classes are not those of {name}.*: .*{reported}"
    with pytest.raises(InputError, match=message):
        assess(random_real(pictures.train, 2), dataset)
    with pytest.raises(InputError, match="the set was made for shapes"):
        assess(pictures.train, dataset)


@pytest.mark.parametrize("changes", [{"mean": (0.4, 0.5, 0.6)}, {"std": (0.25, 0.25, 0.3)}], ids=str)
def test_test_images_are_normalised_as_the_set_is(pictures, networks, changes):
    chosen = random_real(pictures.train, 2)
    usual = assess(chosen, pictures)["accuracy"].tolist()
    moved = like(pictures, name="other", **changes)
    assert assess(chosen, moved)["accuracy"].tolist() == usual
    assert same(networks[0], networks[2]) and same(networks[1], networks[3])
    # the set of the other specification has images of another scale, and its own test images too
    fitted = dataset_for(chosen, moved)
    assert (fitted.spec, fitted.name) == (dataclasses.replace(pictures.spec, name="other"), "other")
    index = torch.arange(5)
    for part in ("train", "test"):
        assert torch.equal(getattr(fitted, part).images_of(index), getattr(pictures, part).images_of(index))
        assert not torch.equal(getattr(fitted, part).images_of(index), getattr(moved, part).images_of(index))
    beside = random_baselines(fitted.train, 2, 0, 1)[0]
    assert torch.equal(beside.images, chosen.images), "normalised as the set, for a fair comparison"


def test_classes_in_another_order_are_brought_into_the_sets(pictures, networks):
    chosen = random_real(pictures.train, 2)
    usual = assess(chosen, pictures)["accuracy"].tolist()
    order = [2, 0, 3, 1]
    place = torch.tensor([order.index(label) for label in range(4)])
    turned = Dataset.of(
        dataclasses.replace(pictures.spec, classes=tuple(pictures.spec.classes[label] for label in order)),
        *((part.images, place[part.labels]) for part in (pictures.train, pictures.test)),
    )
    assert turned.spec.classes != pictures.spec.classes
    fitted = dataset_for(chosen, turned)
    assert torch.equal(fitted.test.labels, pictures.test.labels) and fitted.train.counts.tolist() == [9, 12, 15, 8]
    assert assess(chosen, turned)["accuracy"].tolist() == usual
    again = SyntheticSet(chosen.images, chosen.labels, dataclasses.replace(chosen.spec, classes=("a", "a", "b", "c")))
    with pytest.raises(InputError, match="two classes have the same name, and the order of the classes differs"):
        assess(again, like(pictures, classes=("a", "b", "a", "c")))


def test_what_is_no_set_or_no_dataset_is_refused(pictures):
    with pytest.raises(InputError, match=r"must be a SyntheticSet or RealSet, got 'set'; SyntheticSet.load reads one"):
        assess("set", pictures)
    with pytest.raises(InputError, match=r"dataset must be a Dataset, such as load_dataset\(.*\), got 'shapes'"):
        evaluate(random_real(pictures.train, 2), "shapes")


def test_a_dataset_that_fits_as_it_is_stays_itself(pictures):
    assert dataset_for(random_real(pictures.train, 2), pictures) is pictures
    assert dataset_for(pictures.train, pictures) is pictures


def notes(caplog: pytest.LogCaptureFixture, images: SyntheticSet | RealSet, dataset: Dataset) -> list[str]:
    """What two evaluations say."""
    log_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "iidlib"):
        for seed in range(2):
            assess(images, dataset, changed(num_eval=1, epochs=1), seed=seed)
    return [record.getMessage() for record in caplog.records]


def test_what_differs_from_the_images_that_a_set_was_made_from_is_said_once(pictures, caplog):
    chosen = random_real(pictures.train, 2)
    assert notes(caplog, chosen, pictures) == []
    one_image_less = Dataset(pictures.name, pictures.train.subset(torch.arange(1, 44)), pictures.test, pictures.spec)
    assert notes(caplog, chosen, one_image_less) == [
        "note: the training images of shapes are no longer those that the set was made from"
    ]
    assert notes(caplog, chosen, like(pictures, name="mine", mean=(0.4, 0.5, 0.5))) == [
        "note: the set was made from shapes and is tested on mine; images are normalised with the set's own mean and "
        "standard deviation"
    ]
    turned = like(pictures, classes=tuple(reversed(pictures.spec.classes)))
    assert notes(caplog, chosen, turned) == ["note: classes are numbered in the set's order"]


def test_a_distilled_set_of_cifar10_is_tested_on_cifar10_mini(caplog):
    mini = load_dataset("cifar10-mini")
    made = random_real(like(mini, name="cifar10").train, 1)
    protocol = changed(networks=("convnet3",), epochs=1, num_eval=1)
    compute = ComputeConfig(compile="off")
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, "iidlib"):
        scores = evaluate(made, mini, protocol=protocol, compute=compute)
    assert "the set was made from cifar10 and is tested on cifar10-mini" in caplog.text
    config = attrs.evolve(preset("random", "cifar10-mini", 1, "ci"), eval=protocol)
    (row,) = result_rows(scores, config, origin=origin_of(made)).to_dict("records")
    assert row["dataset"] == "cifar10-mini" and row["settings"] == "made_from=cifar10"


# Test images that are missing


def without(dataset: Dataset, *labels: int) -> Dataset:
    """The dataset without the test images of some classes."""
    kept = torch.tensor([label not in labels for label in dataset.test.labels.tolist()]).nonzero()[:, 0]
    return Dataset(dataset.name, dataset.train, dataset.test.subset(kept), dataset.spec)


def test_classes_without_test_images_are_reported_and_do_not_count(pictures, networks, caplog):
    chosen, dataset = random_real(pictures.train, 3), without(pictures, 1, 3)
    reported = notes(caplog, chosen, dataset)
    assert reported == [
        "shapes has no test images of 2 of its 4 classes ('square', 'plus'); accuracies are over the 40 images of the "
        "other 2"
    ]
    networks.clear()
    scores = assess(chosen, dataset, changed(num_eval=1))
    assert scores["test_images"].tolist() == [40] and scores["untested_classes"].tolist() == ["square, plus"]
    network = build_network("convnet2", num_classes=4, image_size=16, width=4)
    network.load_state_dict(networks[0])
    with torch.no_grad():
        right = network.eval()(dataset.test.images_of(torch.arange(40))).argmax(1) == dataset.test.labels
    assert scores["accuracy"].tolist() == [100 * int(right.sum()) / 40]
    config = attrs.evolve(preset("random", "shapes", 3, "ci"), eval=changed(num_eval=1))
    assert result_rows(scores, config)["untested_classes"].tolist() == ["square, plus"]


def test_a_dataset_without_test_images_is_refused_before_anything_is_trained(pictures, networks):
    with pytest.raises(InputError, match="shapes has no test images, so nothing can be evaluated on it"):
        assess(random_real(pictures.train, 2), without(pictures, 0, 1, 2, 3))
    assert not networks


def test_a_renamed_dataset_is_the_same_one(pictures):
    chosen = random_real(pictures.train, 2)
    chosen.spec = dataclasses.replace(chosen.spec, name="mine", augmentation="none")
    assert len(assess(chosen, pictures, changed(num_eval=1))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ("convnet2", "resnet81")}, "unknown network 'resnet81'; did you mean 'resnet18'"),
        (
            {"networks": ("convnet2", "convnet1", "vgg11")},
            "vgg11 takes square images of a side that is a multiple of 32 .*got image_size 16",
        ),
        ({"augmentation": "crops"}, r"'crops'.*did you mean 'crop'"),
    ],
    ids=str,
)
def test_a_protocol_that_does_not_fit_is_one_line_before_anything_is_trained(pictures, networks, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        assess(random_real(pictures.train, 2), pictures, changed(**changes))
    assert "\n" not in str(caught.value) and not networks
    with pytest.raises(InputError, match=message):
        check_evaluation(changed(**changes), pictures.spec)


# Tables


def test_a_table_has_the_mean_and_the_population_deviation_in_the_order_of_the_rows():
    scores = pd.DataFrame(
        {
            "label": ["iid", "iid", "dm", "dm", "dm", "iid"],
            "network": ["b", "b", "a", "a", "a", "a"],
            "accuracy": [10.0, 14.0, 1.0, 2.0, 6.0, 5.0],
        }
    )
    table = summarize(scores)
    assert list(table) == ["label", "network", "mean", "std", "n"]
    assert table[["label", "network"]].to_numpy().tolist() == [["iid", "b"], ["dm", "a"], ["iid", "a"]]
    assert table["mean"].tolist() == [12, 3, 5] and table["n"].tolist() == [2, 3, 1]
    assert table["std"].tolist() == [2, pytest.approx(statistics.pstdev([1, 2, 6])), 0]
    by_label = summarize(scores, by=["label"])
    assert list(by_label) == ["label", "mean", "std", "n"] and by_label["n"].tolist() == [3, 3]
    assert by_label["std"][0] == pytest.approx(np.std([10, 14, 5]))


# Intervals


def test_an_interval_by_hand():
    mean, low, high = paired_interval([10, 20, 30], [11, 22, 33])
    half = reference.t_quantile_975(2) * 1 / math.sqrt(3)  # the differences 1, 2, 3 have standard deviation 1
    assert (mean, low, high) == (2, pytest.approx(2 - half), pytest.approx(2 + half))
    assert half == pytest.approx(2.4841, abs=1e-4)


def test_an_interval_of_five_seeds_from_the_table_of_t():
    mean, low, high = paired_interval([0, 0, 0, 0, 0], [1.0, 2.0, 2.0, 3.0, 4.0])
    half = 2.7764 * statistics.stdev([1, 2, 2, 3, 4]) / math.sqrt(5)
    assert mean == pytest.approx(2.4) and low == pytest.approx(2.4 - half, abs=1e-4)
    assert high == pytest.approx(2.4 + half, abs=1e-4)


def test_an_interval_turns_with_its_sides_and_is_a_point_where_all_seeds_agree():
    mean, low, high = paired_interval([1, 5, 2], [2, 3, 7])
    assert paired_interval([2, 3, 7], [1, 5, 2]) == pytest.approx((-mean, -high, -low))
    assert paired_interval([1, 2, 3], [2, 3, 4]) == (1, 1, 1)


@pytest.mark.parametrize(("first", "second"), [([1, 2], [2, 3]), ([1, 2, 3], [1, 2]), ([], [])])
def test_an_interval_of_fewer_than_three_seeds_is_refused(first, second):
    with pytest.raises(ValueError, match="needs the same 3 or more seeds on both sides"):
        paired_interval(first, second)


def test_the_specification_is_compared_in_full():
    """A field added to DatasetSpec: does it tell images or classes apart, or belong to the set as its mean does?"""
    compared = {"classes", "image_size", "channels", "mean", "std"}
    assert {field.name for field in dataclasses.fields(DatasetSpec)} == compared | {"name", "augmentation", "ranges"}


# Mosaics


def test_mosaics_are_evaluated_by_the_images_that_they_expand_to(tmp_path, networks):
    dataset = shapes(3, 20, 16)
    mosaics = random_real(dataset.train, 2, 1, factor=2)
    mosaics.save(tmp_path / "synthetic.safetensors")
    scores = [assess(one, dataset) for one in (mosaics, SyntheticSet.load(tmp_path), mosaics.expanded())]
    assert scores[0]["images"].tolist() == [6, 6] and scores[2]["images"].tolist() == [24, 24]
    for other in scores[1:]:
        assert other["accuracy"].tolist() == scores[0]["accuracy"].tolist()
    for i in (0, 1):
        assert same(networks[i], networks[i + 2]) and same(networks[i], networks[i + 4])
    assess(random_real(dataset.train, 2, 1), dataset)
    assert not same(networks[0], networks[6])


def test_random_mosaics_are_those_that_a_distillation_starts_from():
    dataset = shapes(3, 20, 16)
    chosen = random_real(dataset.train, 2, 5, factor=2)
    run = Distillation(preset("idm", "shapes", 2, "ci", {"seed": 5}), dataset)
    assert torch.equal(run.images.detach(), chosen.images) and chosen.factor == 2
    assert chosen.provenance["method"] == "random-mosaic"
    assert random_real(dataset.train, 2, 5).provenance["method"] == "random"


class TestPairedGains:
    def scores(self) -> pd.DataFrame:
        """Two networks for each of four seeds, of which the second method lacks one and the third all but two."""
        rows = [
            {"method": method, "seed": seed, "accuracy": 10 * seed + gain + network}
            for method, gain, seeds in (("dm", 0, 4), ("dm-cm", 2, 3), ("iid-dm", 5, 2))
            for seed in range(seeds)
            for network in (-1, 1)
        ]
        return pd.DataFrame(rows)

    def test_seeds_that_both_have_are_compared_by_the_mean_over_networks(self) -> None:
        scores = self.scores()
        scores.loc[scores["method"].eq("dm-cm") & scores["seed"].eq(2), "accuracy"] += 3
        (row,) = paired_gains(scores, [("dm", "dm-cm")]).itertuples()
        assert (row.base, row.method, row.seeds) == ("dm", "dm-cm", 3)
        assert (row.mean, row.low, row.high) == pytest.approx(paired_interval([0, 10, 20], [2, 12, 25]))

    def test_fewer_than_three_seeds_give_a_count_and_no_claim(self) -> None:
        gains = paired_gains(self.scores(), [("dm", "iid-dm"), ("dm", "idm")])
        assert gains["seeds"].tolist() == [2, 0]
        assert gains[["mean", "low", "high"]].isna().all(axis=None)

    @pytest.mark.parametrize("column", ["dataset", "ipc", "scale", "network"])
    def test_rows_of_several_kinds_are_refused(self, column: str) -> None:
        scores = self.scores().assign(**{column: "one"})
        assert len(paired_gains(scores, [("dm", "dm-cm")])) == 1
        scores.loc[3, column] = "other"
        with pytest.raises(ValueError, match=f"rows must share one {column}, got one, other"):
            paired_gains(scores, [("dm", "dm-cm")])


# How a set was made, and what evaluates it


def test_the_origin_of_a_set_is_what_its_provenance_says(pictures):
    made = random_real(pictures.train, 2, seed=6)
    assert origin_of(made, scale="ci") == SetOrigin("random", "ci", 6, dataset="shapes")
    made.provenance |= {
        "method": "dm",
        "iterations": "9",
        "scale": "laptop",
        "settings": "syn.lr=2.0 match.cc_form=exp",
    }
    reported = {"syn.lr": "2.0", "match.cc_form": "exp"}
    assert origin_of(made, scale="ci") == SetOrigin("dm", "laptop", 6, 9, 1, reported, dataset="shapes")
    assert origin_of(pictures.train, scale="ci", seed=4) == SetOrigin("whole", "ci", 4, dataset="shapes")
    made.provenance["seed"] = "six"
    with pytest.raises(InputError, match=r"my.file is corrupted \(its seed or iterations are not numbers\)"):
        origin_of(made, called="my.file")


def test_a_set_is_evaluated_by_the_protocol_of_its_scale_or_another(pictures):
    origin = SetOrigin("iid-idm", "laptop", 3)
    own = evaluation_config(origin, pictures, 5)
    assert own == preset("iid-idm", "shapes", 5, "laptop", {"seed": 3})
    other = evaluation_config(origin, pictures, 5, scale="tour", protocol="idc", changes={"eval.lr": 0.5})
    assert (other.scale, other.eval.width, other.eval.name, other.eval.lr) == ("laptop", 32, "idc", 0.5)
    with pytest.raises(InputError, match="unknown protocol 'idm'"):
        evaluation_config(origin, pictures, 5, protocol="idm")


def test_the_whole_set_is_evaluated_with_fewer_epochs_unless_set(pictures):
    origin = SetOrigin("whole", "laptop")
    usual = evaluation_config(origin, pictures, 5)
    assert (usual.eval.epochs, usual.ipc) == (60, int(pictures.train.counts.max()))
    assert evaluation_config(origin, pictures, 5, changes={"eval.epochs": 80}).eval.epochs == 80


def test_scores_note_how_they_were_obtained(pictures):
    protocol = changed(epochs=1, num_eval=1)
    noted = assess(random_real(pictures.train, 1), pictures, protocol, seed=4).attrs
    assert noted == {"dataset": "shapes", "seed": 4, "protocol": attrs.asdict(protocol)}


def test_any_number_of_networks_may_be_asked_for(pictures):
    """Nothing is listed beforehand; a reader may stop after any of them."""
    rows = evaluation_run.evaluated(
        random_real(pictures.train, 1), pictures, protocol=changed(num_eval=10**12, epochs=1)
    )
    assert next(rows)["evaluation_seed"] == 0
    rows.close()
