"""iidlib.training.ensemble: networks trained together are those trained one by one, whatever the step."""

import copy
import itertools
import logging

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from iidlib import evaluate, preset
from iidlib.augment import OPERATIONS
from iidlib.config import Drop
from iidlib.engine import compiler_available
from iidlib.evaluation import random_real
from iidlib.features import trained_pool
from iidlib.networks import NETWORKS, Network, build_network, prepare
from iidlib.rng import stream
from iidlib.training import Examples, HowTrained, Training, ensemble, ensemble_draws, fit, fit_together
from tests.factories import drop_at, labelled_noise, network_difference
from tests.fake_cuda import BROKEN, Tape, fake_cuda

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
    form = "at_once" if at_once else "in_turn"
    how = fit_together(networks, examples, Training(**settings), seeds=seeds, on_epoch=on_epoch, form=form)
    assert how == HowTrained(form, recorded=torch.cuda.is_available() and pictures.is_cuda)
    return networks


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


@FORMS
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_together_its_running_statistics_included(at_once, name):
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


EVERYTHING_AT_ONCE = {
    "epochs": 4,
    "drops": (Drop(1, 0.03), Drop(2, 0.02, restart=True)),
    "augmentation": "flip>color_cutout>crop_scale_rotate",
    "cutmix": 0.5,
}
"""Rates that fall with and without a new optimiser, stages, CutMix; ten images in batches of four."""


def recorded_together(form: str, networks: list[Network], **changes: object) -> tuple[HowTrained, list[Network]]:
    size = networks[0].image_size
    pictures, labels = labelled_noise(changes.pop("count", COUNT), size)
    settings = {"epochs": 3, "lr": 0.05, "batch": 4} | changes
    examples, seeds = Examples(lambda index: pictures[index], labels), range(3, 3 + len(networks))
    return fit_together(networks, examples, Training(**settings), seeds=seeds, form=form), networks


@FORMS
@pytest.mark.parametrize("name", ["convnet2", "convnet3-bn"])
@pytest.mark.parametrize("block_bytes", [2**25, 1], ids=["an epoch per block", "a step per block"])
def test_recorded_training_is_the_plain_one(name, at_once, block_bytes, monkeypatch, caplog):
    monkeypatch.setattr(ensemble_draws, "BLOCK_BYTES", block_bytes)
    cuda, form = fake_cuda(monkeypatch), "at_once" if at_once else "in_turn"
    start = [network(number, name) for number in range(3)]
    how, found = recorded_together(form, copy.deepcopy(start), **EVERYTHING_AT_ONCE)
    assert how == HowTrained(form, recorded=True) and not caplog.records
    assert sum(done.startswith("capture") for done in cuda.log) == 2, "batches of 4, and the last one of 2"
    expected = one_by_one(copy.deepcopy(start), *labelled_noise(), **EVERYTHING_AT_ONCE)
    for own, alone, before in zip(found, expected, start, strict=True):
        assert network_difference(own, alone) < 1e-10 and network_difference(before, alone) > 1e-2


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18-bn"])
def test_recorded_training_of_large_networks_is_the_plain_one(name, monkeypatch, caplog):
    fake_cuda(monkeypatch)
    start, settings = [network(number, name, 32) for number in range(2)], {"epochs": 1, "batch": 2, "lr": 0.01}
    how, found = recorded_together("auto", copy.deepcopy(start), count=4, **settings)
    assert str(how) == "in_turn, recorded" and not caplog.records
    expected = one_by_one(copy.deepcopy(start), *labelled_noise(4, 32), **settings)
    for own, alone, before in zip(found, expected, start, strict=True):
        assert network_difference(own, alone) < 1e-10 < network_difference(before, alone)


def test_steps_are_drawn_from_the_first_row_again_after_a_block_that_was_not_full():
    def drawn(*numbers: int) -> list[Tensor]:
        """Uniform numbers of the first step of each block of two, where three would fit."""
        steps, found = ensemble_draws.DrawnSteps(2, 4, 3, [("flip",)], torch.device("cpu")), []
        for number in numbers:
            generators = [stream(seed, number, "training") for seed in range(2)]
            assert steps.load(torch.arange(16).view(2, 8) + number, generators) == 2
            first, _ = steps.current(), steps.advance()
            assert (first.index == torch.tensor([[0, 1, 2, 3], [8, 9, 10, 11]]) + number).all()
            assert (steps.current().index == torch.tensor([[4, 5, 6, 7], [12, 13, 14, 15]]) + number).all()
            found.append(first.u)
        return found

    assert torch.equal(drawn(0, 1, 2)[2], drawn(2)[0])


class Launches(TorchDispatchMode):
    """The operations on tensors of the device and on what is made of them, while the device is a part of the CPU.

    Attributes:
        seen: their names.
    """

    def __init__(self, device: list[Tensor]) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._held = {tensor.untyped_storage().data_ptr(): tensor for tensor in device}  # kept, so places stay theirs

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given, made = (
            {leaf.untyped_storage().data_ptr(): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
            for tree in ((args, kwargs), out)
        )
        if given.keys() & self._held.keys():
            new = {place: tensor for place, tensor in made.items() if place not in given}
            self._held |= new
            if new or function._schema.is_mutable:  # anything else is a view
                self.seen.append(function._schema.name)
        return out


@FORMS
def test_a_step_of_an_ensemble_is_one_launch_and_an_epoch_two_more_for_each_size_of_batch(at_once, monkeypatch):
    """Ten images in batches of 4: two steps of 4 and one of 2."""
    cuda = fake_cuda(monkeypatch)
    pictures, labels = labelled_noise()
    changes = {name: value for name, value in EVERYTHING_AT_ONCE.items() if name != "drops"}
    training = Training(lr=0.05, batch=4, **changes)
    examples, form = Examples(lambda index: pictures[index], labels), "at_once" if at_once else "in_turn"
    # private: an epoch by itself, after the one that is recorded
    group = ensemble._Ensemble([network(0), network(1)], examples, training, form)

    def epoch(number: int) -> None:
        draws = [stream(seed, number, "training") for seed in (3, 4)]
        group.train_epoch(torch.stack([torch.randperm(COUNT, generator=draw) for draw in draws]), draws)

    epoch(0)
    cuda.log.clear()
    held = [*group._parameters.values(), *group._velocity, pictures, labels]
    held += [tensor for batch in group._batches.values() for tensor in (batch.draws._rows, batch.draws.counter)]
    replay = Tape.replay
    with Launches(held) as launches:

        def unseen(tape: Tape) -> None:
            with _disable_current_modes():
                replay(tape)

        monkeypatch.setattr(Tape, "replay", unseen)
        epoch(1)
    assert cuda.log == ["replay"] * 3
    assert launches.seen == ["aten::copy_", "aten::zero_"] * 2


def broken(monkeypatch: pytest.MonkeyPatch, form: str, wrong: bool = False) -> None:
    """Makes a form raise, or give wrong gradients."""
    name = f"_gradients_{form}"
    plain = getattr(ensemble._Ensemble, name)

    def gradients(self, draw):
        found = plain(self, draw)  # a failure comes when the running statistics have moved
        if wrong:
            return [2 * gradient for gradient in found]
        raise RuntimeError("vmap cannot do this\nat all")

    monkeypatch.setattr(ensemble._Ensemble, name, gradients)


@pytest.mark.parametrize("device", ["cpu", "fake cuda"])
@pytest.mark.parametrize(("wrong", "said"), [(False, "vmap cannot do this"), (True, "gradients of norm")])
def test_in_turn_replaces_at_once_where_that_does_not_work(wrong, said, device, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    if device == "fake cuda":
        fake_cuda(monkeypatch)
    broken(monkeypatch, "at_once", wrong)
    start = [network(number, "convnet3-bn") for number in range(2)]
    how, found = recorded_together("at_once", copy.deepcopy(start))
    assert how == HowTrained("in_turn", recorded=device == "fake cuda")
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("networks cannot be trained at once (") and said in message and "at all" not in message
    expected = one_by_one(copy.deepcopy(start), *labelled_noise(), epochs=3)
    assert all(network_difference(own, alone) < 1e-10 for own, alone in zip(found, expected, strict=True))


@FORMS
def test_a_recording_that_is_wrong_is_not_used_and_the_form_stays(at_once, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    cuda, form = fake_cuda(monkeypatch), "at_once" if at_once else "in_turn"
    cuda.wrong = True
    how, found = recorded_together(form, [network(0), network(1)])
    assert str(how) == form
    assert len(caplog.records) == 2, "once for each size of a batch"
    name = form.replace("_", " ")
    assert all(f"no CUDA graph of training {name} (its update differs" in each.message for each in caplog.records)
    assert_trained(found)


@pytest.mark.parametrize(("graph", "how"), [("auto", "in_turn, recorded"), ("off", "in_turn")])
def test_an_evaluation_and_a_pool_record_steps_unless_the_settings_forbid_it(
    pictures, tmp_path, monkeypatch, caplog, graph, how
):
    cuda = fake_cuda(monkeypatch)
    changes = {"eval.num_eval": 2, "eval.epochs": 2, "eval.width": 4, "pool.count": 2, "pool.epochs": 1}
    changes |= {"pool.network": "convnet3", "pool.width": 4, "pool.untrained": "warn", "pool.path": str(tmp_path)}
    config = preset("iid-dm", "shapes", 2, "ci", changes | {"compute.together": 2, "compute.graph": graph})
    scores = evaluate(random_real(pictures.train, 2), pictures, protocol=config.eval, compute=config.compute)
    assert scores["ensemble"].tolist() == [how] * 2
    pool = trained_pool(pictures, config.pool, compute=config.compute)
    assert pool.ensemble == how
    assert any("capture" in done for done in cuda.log) == (graph == "auto")
    assert not any("no CUDA graph" in record.message for record in caplog.records)


def assert_trained(found: list[Network]) -> None:
    """As plain training leaves networks after 3 epochs."""
    expected = one_by_one([network(0), network(1)], *labelled_noise(), epochs=3)
    assert all(network_difference(a, b) < 1e-10 for a, b in zip(found, expected, strict=True))


def test_after_a_capture_that_breaks_training_continues_without_and_says_so_once(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "iidlib")
    cuda = fake_cuda(monkeypatch)

    def break_capture() -> None:
        raise RuntimeError(BROKEN)

    cuda.breaks = break_capture
    how, found = recorded_together("auto", [network(0), network(1)])
    assert how == HowTrained("in_turn", recorded=False) and cuda.stream == "main"
    assert [done for done in cuda.log if done.startswith("capture")] == ["capture on side 2"]
    assert_trained(found)
    (message,) = (record.message for record in caplog.records)
    assert message.startswith(f"no CUDA graph of training in turn ({BROKEN}); launching kernels one by one")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "at_once"),  # batch norm under vmap is not implemented for CUDA
    [*itertools.product(["convnet3", "alexnet", "resnet18"], [True, False]), ("convnet3-bn", False)],
)
def test_recorded_training_on_a_gpu_is_the_plain_one(name, at_once, caplog):
    pictures, labels = (tensor.cuda() for tensor in labelled_noise(size=32, dtype=torch.float32))
    start = [network(number, name, 32, torch.float32).cuda() for number in range(3)]
    settings = {"epochs": 3, "drops": drop_at(1), "augmentation": EVERYTHING}
    found = together([prepare(copy.deepcopy(own)) for own in start], pictures, labels, at_once, **settings)
    assert not caplog.records
    for own, expected in zip(found, one_by_one(start, pictures, labels, **settings), strict=True):
        assert network_difference(own, expected) < 1e-2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_networks_values_begin_where_kernels_that_assume_alignment_work(layout):
    for shape in ((10,), (16,), (3, 3, 3, 3), (4, 8, 3, 3)):
        values = [torch.randn(shape) for _ in range(3)]
        if len(shape) == 4:
            values = [one.contiguous(memory_format=layout) for one in values]
        stack = ensemble._stack(values)
        for k, one in enumerate(values):
            part = ensemble._part(stack.requires_grad_(), k)
            assert torch.equal(part, one) and part.data_ptr() % ensemble.ALIGNMENT == 0 and not part.requires_grad
            assert len(shape) != 4 or part.is_contiguous(memory_format=torch.channels_last)
            copied = part.data_ptr() != stack[k].data_ptr()
            assert copied == (k * one.numel() * 4 % ensemble.ALIGNMENT != 0), "only where necessary"


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_kernels_of_the_augmentation_can_be_forbidden(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for networks without blocks that could be compiled."""
    pictures, labels = labelled_noise(8, dtype=torch.float32)
    training = Training(epochs=1, lr=0.05, batch=8, augmentation="flip")
    draws = [stream(number, 0, "network") for number in range(2)]
    networks = [build_network("mlp", num_classes=3, image_size=16, generator=draw) for draw in draws]
    asked: list[bool] = []
    monkeypatch.setattr(ensemble, "apply_drawn", lambda images, *draws, compiled: asked.append(compiled) or images)
    fit_together(networks, Examples(lambda index: pictures[index], labels), training, seeds=[0, 1], compiled=compiled)
    assert asked and set(asked) == {compiled}
