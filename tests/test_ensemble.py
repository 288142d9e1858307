"""iidlib.training.ensemble: networks trained together are those trained one by one, whatever the step."""

import copy
import logging

import pytest
import torch
from torch import Tensor

from iidlib.augment import OPERATIONS
from iidlib.config import Drop
from iidlib.engine import compiler_available
from iidlib.networks import NETWORKS, Network, build_network, prepare
from iidlib.rng import stream
from iidlib.training import Examples, Training, ensemble, fit, fit_together
from tests.factories import drop_at, labelled_noise, network_difference
from tests.fake_cuda import BROKEN, FakeCuda, fake_cuda

COUNT, CLASSES = 10, 3
EVERYTHING = "_".join(OPERATIONS)
FORMS = pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in turn"])


def network(
    number: int, name: str = "convnet2", size: int = 16, dtype: torch.dtype = torch.float64, width: int = 3
) -> Network:
    width = width if name.startswith("convnet") else None
    generator = stream(number, 0, "network")
    return build_network(name, num_classes=CLASSES, image_size=size, width=width, generator=generator).to(dtype)


def together(
    networks: list[Network], pictures: Tensor, labels: Tensor, at_once: bool, **changes: object
) -> list[Network]:
    settings = {"epochs": 6, "lr": 0.05, "batch": 4, "seeds": range(3, 3 + len(networks)), "on_epoch": None} | changes
    seeds, on_epoch = settings.pop("seeds"), settings.pop("on_epoch")
    examples = Examples(lambda index: pictures[index], labels)
    # private, since `fit_together` chooses the form by the device, and only this takes the one to test
    return ensemble._Ensemble(networks, examples, Training(**settings), at_once).fit(seeds, on_epoch)


def one_by_one(networks: list[Network], pictures: Tensor, labels: Tensor, **changes: object) -> list[Network]:
    settings = {"epochs": 6, "lr": 0.05, "batch": 4} | changes
    examples, training = Examples(lambda index: pictures[index], labels), Training(**settings)
    return [fit(own, examples, training, seed=3 + number) for number, own in enumerate(networks)]


@FORMS
@pytest.mark.parametrize(
    ("drop_after", "strategy"),
    [(None, "none"), (3, "none"), (3, EVERYTHING), (0, "color_flip"), (5, "crop"), (9, "none")],
)
def test_networks_trained_together_are_those_trained_alone(at_once, drop_after, strategy):
    """Orders, the last smaller batch, augmentation, momentum, decay, and the drop with its new optimiser."""
    start = [network(number) for number in range(3)]
    settings = {"drops": drop_at(drop_after), "augmentation": strategy}
    found = together(copy.deepcopy(start), *labelled_noise(), at_once, **settings)
    for own, expected, before in zip(
        found, one_by_one(copy.deepcopy(start), *labelled_noise(), **settings), start, strict=True
    ):
        assert network_difference(own, expected) < 1e-10 and network_difference(before, expected) > 1e-2


@FORMS
def test_the_idc_familys_training_together_is_that_alone(at_once):
    """Stages of augmentation, CutMix drawn for each network, rates that fall and leave the momentum as it is."""
    start = [network(number) for number in range(3)]
    drops = (Drop(3, 0.01), Drop(5, 0.002))
    settings = {"drops": drops, "augmentation": "flip>color>crop_scale_rotate", "cutmix": 0.5}
    found = together(copy.deepcopy(start), *labelled_noise(), at_once, **settings)
    expected = one_by_one(copy.deepcopy(start), *labelled_noise(), **settings)
    plain = one_by_one(copy.deepcopy(start), *labelled_noise(), **settings | {"cutmix": 0.0})
    for own, alone, unmixed in zip(found, expected, plain, strict=True):
        assert network_difference(own, alone) < 1e-10 and network_difference(unmixed, alone) > 1e-2


def vmap_transforms_group_norm() -> bool:
    """Whether torch can on this CPU, for channels-last images; version 2.11 cannot."""
    images = torch.zeros(2, 1, 4, 4, 8).permute(0, 1, 4, 2, 3)
    try:
        torch.func.vmap(lambda one: torch.nn.functional.group_norm(one, 8))(images)
    except RuntimeError as error:
        if "NYI" not in str(error):  # any other error is a failure
            raise
        return False
    return True


@FORMS
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_together_its_running_statistics_included(at_once, name):
    if at_once and name in ("vgg11", "resnet18") and not vmap_transforms_group_norm():
        pytest.skip("this torch cannot do it on a CPU, where the library never trains all networks at once")
    start = [network(number, name, 32) for number in range(2)]
    settings = {"epochs": 1, "batch": 2, "lr": 0.01}
    found = together(copy.deepcopy(start), *labelled_noise(4, 32), at_once, **settings)
    for own, expected, before in zip(
        found, one_by_one(copy.deepcopy(start), *labelled_noise(4, 32), **settings), start, strict=True
    ):
        assert network_difference(own, expected) < 1e-10 < network_difference(before, expected)
        for key, tensor in expected.state_dict().items():
            if key.endswith("num_batches_tracked"):
                assert own.state_dict()[key] == tensor == 2


@FORMS
def test_a_network_does_not_depend_on_how_many_train_with_it(at_once):
    settings = {"drops": drop_at(2), "augmentation": EVERYTHING}
    (alone,) = together([network(1)], *labelled_noise(), at_once, **settings, seeds=[8])
    _, among, _ = together(
        [network(0), network(1), network(2)], *labelled_noise(), at_once, **settings, seeds=[3, 8, 5]
    )
    assert network_difference(among, alone) < 1e-12
    (other,) = together([network(1)], *labelled_noise(), at_once, **settings, seeds=[9])
    assert network_difference(other, alone) > 1e-3


@FORMS
def test_networks_come_back_in_training_mode_and_hold_their_weights_after_each_pass(at_once):
    networks = [network(0).eval(), network(1).eval()]
    seen: list[tuple[int, list[Network]]] = []
    before = torch.get_rng_state()
    found = together(
        networks,
        *labelled_noise(),
        at_once,
        epochs=3,
        on_epoch=lambda epoch: seen.append((epoch, copy.deepcopy(networks))),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(a is b and a.training for a, b in zip(found, networks, strict=True))
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    for epoch, then in seen:
        expected = one_by_one([network(0), network(1)], *labelled_noise(), epochs=epoch + 1)
        assert all(network_difference(a, b) < 1e-10 for a, b in zip(then, expected, strict=True))


@FORMS
@pytest.mark.skipif(not compiler_available(), reason="no C++ compiler")
def test_networks_with_compiled_kernels_train_together(at_once):
    start = [network(number, dtype=torch.float32, width=16) for number in range(2)]
    pictures, labels = labelled_noise(dtype=torch.float32)
    found = together([prepare(copy.deepcopy(own)) for own in start], pictures, labels, at_once, epochs=2)
    for own, expected in zip(found, one_by_one(start, pictures, labels, epochs=2), strict=True):
        assert network_difference(own, expected) < 1e-4


def test_a_batch_larger_than_the_set_is_the_set():
    (large,), (whole,) = (together([network(0)], *labelled_noise(), True, batch=batch) for batch in (256, COUNT))
    assert network_difference(large, whole) == 0


@pytest.mark.parametrize(
    ("networks", "seeds", "message"),
    [
        ([], [], "no networks"),
        ([network(0)], [1, 2], "1 networks and 2 seeds"),
        ([network(0), network(0, "convnet1")], [1, 2], "one architecture and one shape"),
        ([network(0), network(0, size=32)], [1, 2], "one architecture and one shape"),
    ],
    ids=["none", "seeds", "architecture", "shape"],
)
def test_what_cannot_train_together_is_refused(networks, seeds, message):
    with pytest.raises(ValueError, match=message):
        examples = Examples(lambda index: labelled_noise()[0][index], labelled_noise()[1])
        fit_together(networks, examples, Training(epochs=1, lr=0.1, batch=4), seeds=seeds)


# Recording, with a stand-in for the device


def recording(
    monkeypatch, *, broken=(), breaking=(), wrong=(), faster=True
) -> tuple[list[Network], list[str | None], FakeCuda]:
    """Trains with recordings.

    Args:
        broken: forms that cannot be recorded.
        breaking: forms whose capture breaks.
        wrong: forms whose recording does something else.
        faster: the form that takes less time.
    """
    cuda, batches = fake_cuda(monkeypatch), []
    # private, since a recording changes no result that could be seen: which form is recorded, and that none is broken
    update, record = ensemble._Ensemble._update, ensemble._Ensemble._record

    def updated(self, batch, *, at_once):
        cuda.label = at_once
        update(self, batch, at_once=at_once)  # a failure comes when the weights have moved
        if at_once in broken:
            raise RuntimeError("an operation is not permitted\nwhile recording")

    def break_capture():
        if cuda.label in breaking:
            raise RuntimeError(BROKEN)

    cuda.breaks, cuda.wrong, cuda.cost = break_capture, set(wrong), {faster: 1.0, not faster: 2.0}
    monkeypatch.setattr(ensemble._Ensemble, "_update", updated)
    monkeypatch.setattr(ensemble._Ensemble, "_record", lambda self, batch: batches.append(batch) or record(self, batch))
    pictures, labels = labelled_noise()
    training = Training(epochs=3, lr=0.05, batch=4, augmentation=EVERYTHING, drops=drop_at(1))
    found = fit_together(
        [network(0), network(1)], Examples(lambda index: pictures[index], labels), training, seeds=[3, 4]
    )
    return found, [None if batch.recording is None else batch.recording.form for batch in batches], cuda


@pytest.mark.parametrize(
    ("how", "expected", "said"),
    [
        ({}, "at once", ""),
        ({"faster": False}, "in turn", ""),
        ({"broken": (True,)}, "in turn", ""),
        ({"wrong": (True,)}, "in turn", ""),
        ({"wrong": (False,)}, "at once", ""),
        ({"broken": (True,), "wrong": (False,)}, None, "at once: an operation is not permitted; in turn: its update"),
    ],
    ids=["at once is faster", "in turn is faster", "at once breaks", "at once is wrong", "in turn is wrong", "neither"],
)
def test_the_faster_recording_that_is_right_is_kept_and_training_stays_the_same(
    how, expected, said, monkeypatch, caplog
):
    caplog.set_level(logging.WARNING, "iidlib")
    found, used, cuda = recording(monkeypatch, **how)
    assert used == [expected] * 2  # batches of 4, and the last one of 2
    assert_trained(found)
    replayed = len(cuda.log) - max(n for n, done in enumerate(cuda.log) if done.startswith("capture"))
    assert (replayed > 5) is (expected is not None), "steps are replayed"
    messages = [record.message for record in caplog.records]
    assert len(messages) == (2 if said else 0)  # once for each size of a batch
    assert all("no CUDA graph of training" in message and said in message for message in messages)


def assert_trained(found: list[Network]) -> None:
    """As plain training leaves networks after 3 epochs."""
    expected = one_by_one(
        [network(0), network(1)], *labelled_noise(), epochs=3, drops=drop_at(1), augmentation=EVERYTHING
    )
    assert all(network_difference(a, b) < 1e-10 for a, b in zip(found, expected, strict=True))


def test_after_a_capture_that_breaks_training_continues_without_and_says_so_once(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    found, used, cuda = recording(monkeypatch, breaking=(True,))
    assert used == [None] * 2 and cuda.stream == "main"
    assert [done for done in cuda.log if done.startswith("capture")] == ["capture on side 2"]
    assert_trained(found)
    (message,) = (record.message for record in caplog.records)
    assert message == (
        f"no CUDA graph of training (at once: {BROKEN}); launching kernels one by one, which is slower; "
        "this process records no further steps"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("at_once", [None, True, False])
@pytest.mark.parametrize("name", ["convnet3", "convnet3-bn"])
def test_recorded_training_on_a_gpu_is_the_plain_one(name, at_once, caplog):
    pictures, labels = (tensor.cuda() for tensor in labelled_noise(size=32, dtype=torch.float32))
    start = [network(number, name, 32, torch.float32).cuda() for number in range(3)]
    settings = {"epochs": 3, "drops": drop_at(1), "augmentation": EVERYTHING}
    found = together([prepare(copy.deepcopy(own)) for own in start], pictures, labels, at_once, **settings)
    assert not caplog.records
    for own, expected in zip(found, one_by_one(start, pictures, labels, **settings), strict=True):
        assert network_difference(own, expected) < 1e-2
