"""iidlib.training: a network is trained as a loop written by hand trains it, and assessed on every image once."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from iidlib.augment import OPERATIONS, sample
from iidlib.config import EvalProtocol
from iidlib.data import RealSet, shapes
from iidlib.errors import InputError
from iidlib.networks import Network, build_network
from iidlib.rng import stream
from iidlib.training import Examples, Training, accuracy, cutmix, fit, resolve_augmentation
from iidlib.training.loop import MOMENTUM, WEIGHT_DECAY
from tests import reference, reference_augment
from tests.factories import drop_at, labelled_noise, network_difference

COUNT, CLASSES = 10, 3


def network(name: str = "convnet2", **settings: object) -> Network:
    width = 3 if name.startswith("convnet") else None
    return build_network(
        name, num_classes=CLASSES, image_size=16, width=width, generator=stream(0, 0, "network"), **settings
    )


def by_hand(
    trained: Network, epochs: int, lr: float, batch: int, seed: int, drop_after: int | None, strategy: str, reset: bool
) -> Network:
    """The same training with everything written out: batches, augmentation, cross-entropy, SGD."""
    pictures, labels = labelled_noise()
    velocity = [torch.zeros_like(p) for p in trained.parameters()]
    for epoch in range(epochs):
        if drop_after is not None and epoch == drop_after + 1:
            lr = lr / 10
            if reset:
                velocity = [torch.zeros_like(p) for p in trained.parameters()]
        draws = stream(seed, epoch, "training")
        order = torch.randperm(COUNT, generator=draws).tolist()
        for start in range(0, COUNT, batch):
            chosen = order[start : start + batch]
            seen = pictures[chosen]
            if strategy != "none":
                seen = reference_augment.augment(seen, sample(strategy, len(chosen), draws, shared_op=True))
            loss = reference.cross_entropy(trained(seen), labels[chosen])
            gradients = torch.autograd.grad(loss, list(trained.parameters()))
            with torch.no_grad():
                for i, (parameter, gradient) in enumerate(zip(trained.parameters(), gradients, strict=True)):
                    with_decay = gradient + 5e-4 * parameter
                    new, velocity[i] = reference.sgd(parameter, velocity[i], with_decay, lr, 0.9)
                    parameter.copy_(new)
    return trained


def trained(**changes: object) -> Network:
    pictures, labels = labelled_noise()
    settings = {"epochs": 6, "lr": 0.05, "batch": 4, "seed": 3} | changes
    seed = settings.pop("seed")
    return fit(network().double(), Examples(lambda index: pictures[index], labels), Training(**settings), seed=seed)


@pytest.mark.parametrize(
    ("drop_after", "strategy"),
    [(None, "none"), (3, "none"), (3, "_".join(OPERATIONS)), (0, "color_flip"), (5, "none"), (9, "none")],
)
def test_training_is_the_loop_written_by_hand(drop_after, strategy):
    expected = by_hand(network().double(), 6, 0.05, 4, 3, drop_after, strategy, reset=True)
    assert network_difference(trained(drops=drop_at(drop_after), augmentation=strategy), expected) < 1e-10
    assert network_difference(network().double(), expected) > 1e-2


def test_the_drop_comes_with_a_new_optimiser():
    """Momentum that survived the drop would end elsewhere, which is what the equality above would then miss."""
    found = trained(drops=drop_at(3))
    assert network_difference(found, by_hand(network().double(), 6, 0.05, 4, 3, 3, "none", reset=False)) > 1e-4
    assert (
        network_difference(found, trained(drops=drop_at(2))) > 1e-4
        and network_difference(found, trained(drops=drop_at(4))) > 1e-4
    )


def test_the_idc_familys_training_is_the_loop_written_by_hand():
    """Stages of augmentation, CutMix on some batches, and rates that fall without a new optimiser."""
    protocol = EvalProtocol(epochs=6, lr=0.05, batch=4, cutmix=0.5, schedule="milestones")
    assert [(drop.before, round(drop.lr, 6), drop.restart) for drop in protocol.drops] == [
        (4, 0.01, False),
        (5, 0.002, False),
    ]
    stages = ("flip", "color", "crop_scale_rotate")
    found = trained(drops=protocol.drops, augmentation=">".join(stages), cutmix=0.5)

    pictures, labels = labelled_noise()
    expected, mixed = network().double(), []
    velocity = [torch.zeros_like(p) for p in expected.parameters()]
    for epoch in range(6):
        lr = 0.05 if epoch < 4 else 0.01 if epoch < 5 else 0.002
        draws = stream(3, epoch, "training")
        for chosen in torch.randperm(COUNT, generator=draws).split(4):
            seen = pictures[chosen]
            for stage in stages:
                seen = reference_augment.augment(seen, sample(stage, len(chosen), draws, shared_op=True))
            mix = cutmix.sample(len(chosen), 16, 0.5, draws)
            top, bottom, left, right = mix.box.tolist()
            cut = seen.clone()
            for own, partner in enumerate(mix.partner.tolist()):
                cut[own, :, top:bottom, left:right] = seen[partner, :, top:bottom, left:right]
            logits = expected(cut)
            own, other = labels[chosen], labels[chosen[mix.partner]]
            kept = 1 - (bottom - top) * (right - left) / 256
            mixed.append(kept < 1)
            loss = kept * reference.cross_entropy(logits, own) + (1 - kept) * reference.cross_entropy(logits, other)
            gradients = torch.autograd.grad(loss, list(expected.parameters()))
            with torch.no_grad():
                for i, (parameter, gradient) in enumerate(zip(expected.parameters(), gradients, strict=True)):
                    new, velocity[i] = reference.sgd(parameter, velocity[i], gradient + 5e-4 * parameter, lr, 0.9)
                    parameter.copy_(new)
    assert any(mixed) and not all(mixed)
    assert network_difference(found, expected) < 1e-10


def test_constants_are_the_protocols():
    assert (MOMENTUM, WEIGHT_DECAY) == (0.9, 5e-4)


def test_every_pass_takes_every_image_once_in_a_new_order_and_keeps_the_last_smaller_batch():
    pictures, labels = labelled_noise()
    seen: list[Tensor] = []
    examples = Examples(lambda index: seen.append(index) or pictures[index], labels)
    fit(network().double(), examples, Training(epochs=2, lr=0.01, batch=4), seed=0)
    assert [len(index) for index in seen] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(COUNT))
    assert first.tolist() != second.tolist() != list(range(COUNT))


def test_a_batch_larger_than_the_set_is_the_set():
    assert network_difference(trained(batch=256), trained(batch=COUNT)) == 0


def test_augmentation_is_one_operation_a_batch_with_parameters_for_each_image():
    pictures = torch.ones(COUNT, 3, 16, 16)
    batches: list[Tensor] = []
    net = network()
    net.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
    examples = Examples(lambda index: pictures[index], labelled_noise()[1])
    fit(net, examples, Training(epochs=3, lr=0.01, batch=5, augmentation="color"), seed=0)
    assert len(batches) == 6
    for batch in batches:
        assert len({float(image.mean()) for image in batch}) == 5
    batches.clear()
    fit(net, examples, Training(epochs=1, lr=0.01, batch=5), seed=0)
    assert all(torch.equal(batch, torch.ones(5, 3, 16, 16)) for batch in batches)


def test_a_seed_repeats_bit_for_bit_and_another_differs():
    before = torch.get_rng_state()
    settings = {"augmentation": "_".join(OPERATIONS), "drops": drop_at(2)}
    first = trained(**settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert network_difference(trained(**settings), first) == 0
    assert network_difference(trained(**settings, seed=4), first) > 1e-3


def test_epochs_are_reported_and_the_network_comes_back_in_training_mode():
    epochs_seen: list[int] = []
    pictures, labels = labelled_noise()
    net = network().double().eval()
    examples, training = Examples(lambda index: pictures[index], labels), Training(epochs=3, lr=0.01, batch=4)
    assert fit(net, examples, training, seed=0, on_epoch=epochs_seen.append) is net
    assert epochs_seen == [0, 1, 2] and net.training


# Accuracy


class Brightness(nn.Module):
    """Says class 1 where an image is brighter than the mean colour, else class 0."""

    def __init__(self, seen: Callable[[int], None] = lambda size: None) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, pictures: Tensor) -> Tensor:
        assert not self.training
        self.seen(len(pictures))
        bright = pictures.mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)


def real_set(count: int) -> RealSet:
    """Image i is white where i is a multiple of 3; labels say so, but for those of every fifth image."""
    white = torch.arange(count) % 3 == 0
    pictures = (255 * white).to(torch.uint8)[:, None, None, None].expand(count, 3, 8, 8).contiguous()
    labels = white.long() ^ (torch.arange(count) % 5 == 0).long()
    return RealSet(pictures, labels, shapes(2, 1, 8).spec)


@pytest.mark.parametrize(("count", "share"), [(5, 80.0), (10, 80.0), (9, 700 / 9), (4001, 100 * 3200 / 4001)])
def test_accuracy_is_the_share_of_images_in_percent(count, share):
    assert accuracy(Brightness(), real_set(count)) == pytest.approx(share)


def test_accuracy_takes_chunks_of_the_size_asked_for_and_does_not_depend_on_it():
    sizes: list[int] = []
    values = {accuracy(Brightness(sizes.append), real_set(50), chunk) for chunk in (1, 7, 32, 50, 1000)}
    assert values == {80.0}
    assert sizes[:50] == [1] * 50 and sizes[50:58] == [7, 7, 6, 6, 6, 6, 6, 6] and sizes[-2:] == [50, 50]
    sizes.clear()
    accuracy(Brightness(sizes.append), real_set(50))
    assert sizes == [25, 25], "without a size, what suits the device"


def test_accuracy_is_taken_in_evaluation_mode_without_a_trace_in_the_network():
    net = build_network("convnet3-bn", num_classes=4, image_size=16, width=3, generator=stream(0, 0, "network"))
    real = shapes(4, 5, 16).test
    net.train()
    before = copy.deepcopy(net.state_dict())
    whole = accuracy(net, real)
    assert not net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert accuracy(net, real, 3) == whole, "batch norm must not see who shares a chunk"
    assert all(parameter.grad is None for parameter in net.parameters())


# Augmentation settings


def test_augmentation_settings():
    assert resolve_augmentation("auto", "color_crop") == "color_crop"
    assert resolve_augmentation("auto", "none") == "none"
    assert resolve_augmentation("none", "color_crop") == "none"
    assert resolve_augmentation("flip", "color_crop") == "flip"
    with pytest.raises(InputError, match=r"'crops'.*did you mean 'crop'"):
        resolve_augmentation("crops", "color_crop")
