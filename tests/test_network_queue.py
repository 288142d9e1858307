"""iidlib.features.network_queue: who is in the queue when, what training does to whom, meters, the state."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from iidlib.config import QueueConfig
from iidlib.engine import Packed
from iidlib.errors import InputError
from iidlib.features import NetworkQueue
from iidlib.features.fixed_queue import FixedQueue
from iidlib.features.network_queue import RELEASED_EVALUATIONS
from iidlib.networks import network_for
from iidlib.ranks import Ranks
from iidlib.rng import stream
from tests import reference
from tests.factories import in_double, tiny_dataset
from tests.fake_cuda import fake_cuda

SMALL = {"size": 5, "start": 2, "every": 3, "train": 2, "steps": 2, "batch": 6, "lr": 0.05}


PICTURES = tiny_dataset((5, 9, 12), 8, seed=1)


def queue(seed: int = 0, double: bool = False, width: int = 4, device: str = "cpu", **changes: object) -> NetworkQueue:
    def build(generator: torch.Generator):
        network = network_for("convnet2", PICTURES.spec, width=width, generator=generator, compile="off")
        return network.double() if double else network

    real = in_double(PICTURES).train if double else PICTURES.train.to(device)
    return NetworkQueue(build, real, QueueConfig(**SMALL | changes), seed)


def numbers(made: NetworkQueue) -> list[int]:
    """How many networks were made before each that is in the queue, as a checkpoint has it."""
    return made.state()["queue.numbers"].tolist()


def weights(made: NetworkQueue) -> dict[int, Tensor]:
    """The weights of each network as one vector."""
    return {
        number: torch.cat([p.detach().flatten() for p in network.parameters()])
        for number, network in zip(numbers(made), made.networks, strict=True)
    }


def drawn(made: NetworkQueue, iteration: int) -> int:
    """The number of the network that an iteration draws."""
    network = made.draw(iteration).network
    (place,) = [place for place, own in enumerate(made.networks) if own is network]
    return numbers(made)[place]


# Who is in it


def test_it_starts_with_some_grows_by_one_and_lets_the_oldest_go():
    made, seen = queue(), []
    for iteration in range(13):
        made.draw(iteration)
        seen.append(numbers(made))
        made.advance(iteration)
    assert seen[0] == seen[2] == [0, 1, 2]
    assert seen[3] == [0, 1, 2, 3] and seen[6] == seen[8] == [0, 1, 2, 3, 4]
    assert seen[9] == [1, 2, 3, 4, 5] and seen[12] == [2, 3, 4, 5, 6]
    assert max(map(len, seen)) == len(made) == 5


def test_the_paper_s_numbers():
    """Three at the start, a fresh one every 30 iterations, full at iteration 2880."""
    made = queue(size=100, start=3, every=30)
    made.draw(0)
    assert len(made) == 4
    made.draw(2879)
    assert len(made) == 99
    made.draw(2880)
    assert len(made) == 100 and numbers(made)[0] == 0
    made.draw(19_999)
    assert len(made) == 100 and numbers(made)[-1] == 3 + 19_999 // 30 == 669


def test_asking_again_changes_nothing():
    made = queue()
    first, again = made.draw(0), made.draw(0)
    assert again.network is first.network and again.accuracy == first.accuracy and numbers(made) == [0, 1, 2]


def test_networks_are_drawn_uniformly_and_as_a_function_of_the_seed():
    made, other, again = queue(), queue(seed=1), queue()
    found = [[drawn(q, i) for i in range(3)] for q in (made, other, again)]
    assert found[0] == found[2]
    many = queue(every=1000)
    counts = torch.bincount(torch.tensor([drawn(many, i) for i in range(300)]), minlength=3)
    assert counts.min() > 70
    assert not torch.equal(weights(made)[0], weights(other)[0]) and torch.equal(weights(made)[0], weights(again)[0])
    assert not torch.equal(weights(made)[0], weights(made)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"size": 1, "start": 1},
            r"queue\.size, 1, must be at least queue\.train, 2; raise the former or",
        ),
        ({"size": 4, "start": 5}, r"queue\.size, 4, must be at least queue\.start, 5"),
        ({"train": 6}, r"queue\.size, 5, must be at least queue\.train, 6"),
    ],
)
def test_a_queue_that_is_too_small_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        queue(**changes)


# Training


def test_only_the_chosen_are_trained_and_they_are_frozen_again():
    made, trained = queue(), set()
    for iteration in range(6):
        made.draw(iteration)
        before = weights(made)
        made.advance(iteration)
        changed = {n for n, w in weights(made).items() if not torch.equal(w, before[n])}
        assert len(changed) == 2
        trained |= changed
    assert len(trained) > 2
    assert not any(p.requires_grad or p.grad is not None for network in made.networks for p in network.parameters())


def test_a_queue_with_fewer_networks_than_are_trained_trains_all():
    made = queue(start=1, train=3)
    made.draw(0)
    before = weights(made)
    made.advance(0)
    assert [torch.equal(w, before[n]) for n, w in weights(made).items()] == [False, False]


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-10), (False, 1e-4)])
def test_training_is_the_reference_one_image_at_a_time(double, tolerance):
    made, twin = queue(double=double), queue(double=True)
    twin.draw(0)
    expected = {
        number: (
            {name: p.double() for name, p in network.state_dict().items()},
            {name: torch.zeros_like(p) for name, p in network.state_dict().items()},
            [0, 0],
        )
        for number, network in zip(numbers(twin), twin.networks, strict=True)
    }
    real = PICTURES.train
    for iteration in range(3):
        made.draw(iteration)
        order = torch.randperm(3, generator=stream(0, iteration, "queue train"))
        for number in order[:2].tolist():
            draws = stream(0, iteration, f"queue batches of {number}")
            p, v, meter = expected[number]
            for _ in range(2):
                index = torch.randperm(len(real), generator=draws)[:6]
                images = real.images_of(index).double()
                p, v, hits = reference.train_step(p, v, images, real.labels[index], 0.05)
                meter[0] += hits
                meter[1] += 6
            expected[number] = p, v, meter
        made.advance(iteration)
    assert sum(meter[1] for *_, meter in expected.values()) == 3 * 2 * 2 * 6
    state = made.state()
    for place, (number, network) in enumerate(zip(numbers(made), made.networks, strict=True)):
        p, v, meter = expected[number]
        parameters = list(network.named_parameters())
        velocities = state["queue.momenta"][place].split([mine.numel() for _, mine in parameters])
        for (name, mine), velocity in zip(parameters, velocities, strict=True):
            assert float((mine.detach() - p[name]).norm()) <= tolerance * float(p[name].norm()), name
            off = float((velocity.view_as(mine) - v[name]).norm())
            assert off <= 10 * tolerance * max(1.0, float(v[name].norm())), name
        assert state["queue.meters"][place].tolist() == meter


def test_a_queue_learns():
    made = queue(steps=40, batch=16, start=1, every=1000, width=8)
    for iteration in range(3):
        made.draw(iteration)
        made.advance(iteration)
    assert made.facts()["queue_accuracy"] > 60


# Meters


def meters(made: NetworkQueue) -> int:
    """Images that all meters have counted."""
    return int(made.state()["queue.meters"][:, 1].sum())


def test_the_accuracy_is_of_the_network_drawn_and_zero_before_it_was_trained():
    made = queue()
    before = made.draw(0)
    assert float(before.accuracy) == 0
    state, place = made.state(), made.networks.index(before.network)
    state["queue.meters"][place] = torch.tensor([3, 4])
    made.restore(state)
    assert float(made.draw(0).accuracy) == 75
    assert made.facts()["queue_accuracy"] == 75, "of those that have counted"


def test_an_accuracy_that_was_drawn_is_not_changed_by_training():
    made = queue(size=1, start=1, train=1)
    before = made.draw(0)
    made.advance(0)
    assert float(before.accuracy) == 0 < float(made.draw(0).accuracy)


def test_meters_are_reset_at_their_interval():
    made, counted = queue(every=1000, meter_interval=4), []
    for iteration in range(9):
        made.draw(iteration)
        made.advance(iteration)
        counted.append(meters(made))
    each = 2 * 2 * 6
    assert counted == [each, 2 * each, 3 * each, 0, each, 2 * each, 3 * each, 0, each]


def test_meters_are_reset_where_the_released_script_evaluates_if_asked_for():
    made = queue(every=10_000, meter_reset="evaluations", meter_interval=1)
    for iteration in (0, 1998, 1999, 2000, 4999):
        made.draw(iteration)
        made.advance(iteration)
        assert (meters(made) == 0) == (iteration + 1 in RELEASED_EVALUATIONS), iteration


# State


def test_a_restored_queue_continues_as_it_would_have():
    def go(made: NetworkQueue, iterations: range) -> NetworkQueue:
        for iteration in iterations:
            made.draw(iteration)
            made.advance(iteration)
        return made

    for end in (0, 1, 4, 10):
        whole, half, other = go(queue(), range(end + 5)), go(queue(), range(end)), queue()
        other.restore({name: tensor.clone() for name, tensor in half.state().items()})
        go(other, range(end, end + 5))
        assert numbers(other) == numbers(whole)
        for name, tensor in whole.state().items():
            assert torch.equal(other.state()[name], tensor), (end, name)


def test_a_checkpoint_of_a_larger_queue_is_refused():
    large = queue(size=5, every=1)
    for iteration in range(9):
        large.draw(iteration)
    with pytest.raises(InputError, match=r"is of a queue of 5 networks, this one has room for 4$"):
        queue(size=4).restore(large.state())


def test_memory_is_bounded_and_reported():
    made = queue(every=1)
    for iteration in range(12):
        made.draw(iteration)
        one = sum(p.nbytes for p in made.networks[0].parameters())
        assert made.mebibytes == pytest.approx(2 * len(made) * one / 2**20)
    assert made.facts()["queue_networks"] == 5
    assert made.facts()["queue_mib"] == pytest.approx(10 * one / 2**20)
    state = made.state()
    assert state["queue.weights"].nbytes + state["queue.momenta"].nbytes == 10 * one


# In slots


def test_networks_are_rows_of_one_tensor_that_a_new_one_takes_over():
    made = queue(size=3, start=1, every=1)
    for iteration in range(6):
        made.draw(iteration)
        made.advance(iteration)
    slots = made.slots
    assert slots.weights.shape == slots.momenta.shape == (3, slots.layout.size) and numbers(made) == [4, 5, 6]
    for number, network in zip(numbers(made), made.networks, strict=True):
        row = slots.weights[number % 3]
        for view, parameter in zip(slots.layout.views(row), network.parameters(), strict=True):
            assert view.data_ptr() == parameter.data_ptr() and view.stride() == parameter.stride()
            assert (view.data_ptr() - slots.weights.data_ptr()) % 64 == 0, "as aligned as an allocation"


def test_a_run_that_never_fills_the_queue_has_no_more_rows_than_networks():
    def build(generator):
        return network_for("convnet2", PICTURES.spec, width=4, generator=generator, compile="off")

    made = NetworkQueue(build, PICTURES.train, QueueConfig(**SMALL | {"size": 50}), 0, iterations=7)
    for iteration in range(7):
        made.draw(iteration)
    assert len(made.slots.weights) == len(made) == 5


def in_slots(made: NetworkQueue) -> tuple[FixedQueue, Packed]:
    fixed = made.fixed()
    return fixed, Packed(fixed.fields)


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-10), (False, 1e-4)])
def test_training_in_slots_is_that_of_the_networks(double, tolerance):
    """Until the ring has wrapped around."""
    plain, other = queue(double=double), queue(double=double)
    fixed, draws = in_slots(other)
    for iteration in range(14):
        drawn = plain.draw(iteration)
        fixed.fill(iteration, draws)
        fixed.load(iteration)
        fixed.gather(draws)
        assert numbers(other) == numbers(plain)
        assert torch.allclose(fixed.accuracy, drawn.accuracy.float())
        pairs = zip(fixed.network.parameters(), drawn.network.parameters(), strict=True)
        assert all(float((mine - theirs).norm()) <= tolerance * float(theirs.norm()) for mine, theirs in pairs)
        plain.advance(iteration)
        fixed.train(draws)
        other.reset_due(iteration)
    mine, theirs = other.state(), plain.state()
    assert torch.equal(mine["queue.meters"], theirs["queue.meters"])
    for name in ("queue.weights", "queue.momenta"):
        assert float((mine[name] - theirs[name]).norm()) <= tolerance * float(theirs[name].norm())


def test_training_in_slots_touches_the_chosen_ones_only():
    made = queue(train=1)
    fixed, draws = in_slots(made)
    fixed.load(0)
    fixed.fill(0, draws)
    before = made.slots.weights.clone()
    fixed.train(draws)
    changed = (made.slots.weights != before).any(1).nonzero().flatten().tolist()
    assert changed == draws["queue train"].tolist() == [made.chosen(0)[0] % 5]


# On several ranks


class Together(Ranks):
    """A rank that is a thread; sums wait until every thread has brought its values."""

    def __init__(self, rank: int, barrier: threading.Barrier, held: dict[int, Tensor]) -> None:
        super().__init__(rank, barrier.parties)
        vars(self).update(barrier=barrier, held=held)

    def total(self, values: Tensor) -> Tensor:
        barrier, held = vars(self)["barrier"], vars(self)["held"]
        held[self.rank] = values
        barrier.wait(60)
        total = torch.stack([held[rank] for rank in range(self.size)]).sum(0)
        barrier.wait(60)
        return total


@pytest.mark.parametrize("batch", [6, 7, 2])
def test_ranks_train_what_one_process_trains(batch, monkeypatch):
    """One in its networks, one in slots, one in slots and recorded; a batch of two images leaves one rank none."""
    fake_cuda(monkeypatch)
    alone, shared = queue(double=True, batch=batch), [queue(double=True, batch=batch) for _ in range(3)]
    barrier, held = threading.Barrier(3), dict[int, Tensor]()
    for rank, made in enumerate(shared):
        made.ranks = Together(rank, barrier, held)
    slots = {rank: in_slots(shared[rank]) for rank in (1, 2)}
    fixed, draws = slots[2]
    fixed.load(0)
    fixed.fill(0, draws)
    fixed.record(draws)
    assert fixed.recorded and not slots[1][0].recorded

    def train(rank: int) -> None:
        for iteration in range(14):
            shared[rank].draw(iteration)
            if rank in slots:
                own, own_draws = slots[rank]
                own.fill(iteration, own_draws)
                own.load(iteration)
                own.gather(own_draws)
                if own.recorded:
                    own.advance(iteration)
                else:
                    own.train(own_draws)
                    shared[rank].reset_due(iteration)
            else:
                shared[rank].advance(iteration)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(train, rank) for rank in range(3)]:
            done.result(120)
    for iteration in range(14):
        alone.draw(iteration)
        alone.advance(iteration)
    for made in shared:
        mine, expected = made.state(), alone.state()
        assert torch.equal(mine["queue.meters"], expected["queue.meters"])
        for name in ("queue.weights", "queue.momenta"):
            assert float((mine[name] - expected[name]).norm()) <= 1e-10 * float(expected[name].norm())


@pytest.mark.parametrize("saved", ["full", "half", "none"])
def test_a_checkpoint_holds_the_networks_in_full_in_half_or_not(saved):
    def build(generator):
        return network_for("convnet2", PICTURES.spec, width=4, generator=generator, compile="off")

    def made() -> NetworkQueue:
        return NetworkQueue(build, PICTURES.train, QueueConfig(**SMALL), 0, saved=saved)

    first, second = made(), made()
    for iteration in range(5):
        first.draw(iteration)
        first.advance(iteration)
    state = first.state()
    second.restore(state)
    assert numbers(second) == numbers(first) == [0, 1, 2, 3]
    if saved == "none":
        assert "queue.weights" not in state and not second.slots.meters.any()
        fresh = made()
        fresh.draw(5)
        assert torch.equal(second.state()["queue.numbers"], fresh.state()["queue.numbers"][:4])
        assert torch.equal(second.slots.weights[:4], fresh.slots.weights[:4])
        return
    assert state["queue.weights"].dtype == state["queue.momenta"].dtype
    assert state["queue.weights"].dtype == (torch.float32 if saved == "full" else torch.float16)
    gap = (second.slots.weights - first.slots.weights).norm() / first.slots.weights.norm()
    assert (gap == 0) if saved == "full" else (0 < gap < 1e-3)
    assert torch.equal(second.slots.meters, first.slots.meters)


@pytest.mark.gpu
def test_training_on_a_gpu_is_that_on_the_cpu() -> None:
    here, there = queue(), queue(device="cuda")
    here.draw(0)
    there.restore(here.state())
    for made in (here, there):
        for iteration in range(2):
            made.draw(iteration)
            made.advance(iteration)
    assert numbers(there) == numbers(here) and made.state()["queue.meters"].is_cuda
    for number, expected in weights(here).items():
        assert float((weights(there)[number].cpu() - expected).norm() / expected.norm()) < 1e-4
