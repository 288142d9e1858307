"""iidlib.features.stages: what an iteration draws, its weights, its accuracy; the pool stays as it is."""

import copy
import functools
import itertools
from collections import Counter

import attrs
import pytest
import torch

from iidlib.config import PoolConfig, StageConfig
from iidlib.data import Dataset, RealSet
from iidlib.errors import InputError
from iidlib.features import Pool, StageNetworks, pool_members, stages
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.training import accuracy
from tests.factories import pretrained_pool, tiny_dataset

POOL = PoolConfig(network="convnet2", width=5, count=3, epochs=8, epochs_kept=(1, 2, 4))
"""Three networks of four stages."""


def pool_of(settings: PoolConfig) -> Pool:
    """Networks with random weights, as many as the settings ask for."""
    return pretrained_pool(tiny_dataset(40), widths=[5] * len(pool_members(settings)))


def source_of(
    pictures: Dataset,
    settings: PoolConfig = POOL,
    pool: Pool | None = None,
    *,
    iterations: int = 100,
    seed: int = 0,
    **changes: str,
) -> StageNetworks:
    source = StageNetworks(settings, StageConfig(**changes), pictures.train, iterations=iterations, seed=seed)
    source.use_pool(pool or pool_of(settings))
    return source


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def member_of(source: StageNetworks, iteration: int, settings: PoolConfig = POOL) -> int:
    """The member of the pool that `source_of` made whose weights are drawn, bit for bit."""
    drawn = weights(source.draw(iteration).network)
    (member,) = [n for n, expected in enumerate(weights_of(settings)) if torch.equal(expected, drawn)]
    return member


@functools.cache
def weights_of(settings: PoolConfig) -> list[torch.Tensor]:
    """The weights of every member of a pool."""
    return [weights(network) for network in pool_of(settings).networks]


# What is drawn


def test_the_member_is_a_function_of_seed_and_iteration(pictures: Dataset) -> None:
    source = source_of(pictures)
    forth = [member_of(source, iteration) for iteration in range(40)]
    assert forth == list(reversed([member_of(source, iteration) for iteration in reversed(range(40))]))
    assert forth == [member_of(source_of(pictures), iteration) for iteration in range(40)]
    assert forth != [member_of(source_of(pictures, seed=1), iteration) for iteration in range(40)]
    before = torch.get_rng_state()
    source.draw(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_member_is_drawn_as_often(pictures: Dataset) -> None:
    source = source_of(pictures)
    counts = Counter(member_of(source, iteration) for iteration in range(1200))
    assert set(counts) == set(range(12))
    assert all(70 < count < 130 for count in counts.values()), "100 expected, standard deviation 9.6"


def test_a_draw_is_one_frozen_network_at_one_place(pictures: Dataset) -> None:
    source = source_of(pictures, interpolate="on")
    assert source.in_place and source.from_pool and source.stages == 4
    first = source.draw(0).network
    places = [parameter.data_ptr() for parameter in first.parameters()]
    assert not first.training and not any(parameter.requires_grad for parameter in first.parameters())
    values = [weights(first)]
    for iteration in range(1, 5):
        assert source.draw(iteration).network is first
        values.append(weights(first))
    assert [parameter.data_ptr() for parameter in first.parameters()] == places
    assert not torch.equal(values[0], values[1])
    images = pictures.train.images_of(torch.arange(3)).requires_grad_()
    first.embed(images).square().sum().backward()
    assert images.grad is not None and images.grad.flatten(1).any(1).all()


def test_the_pool_stays_as_it_is(pictures: Dataset) -> None:
    pool = pool_of(POOL)
    before = [copy.deepcopy(network) for network in pool.networks]
    source = source_of(pictures, pool=pool, interpolate="on")
    for iteration in range(20):
        network, _ = source.draw(iteration)
        assert all(network is not member for member in pool.networks)
    for one, other in zip(before, pool.networks, strict=True):
        assert torch.equal(weights(one), weights(other)) and not other.training


def test_a_source_has_no_history(pictures: Dataset) -> None:
    source = source_of(pictures)
    source.draw(3)
    source.advance(3)
    assert source.state() == {}
    source.restore({})


# The schedule


SCHEDULES = {
    # of 8 iterations over 4 stages: which stages each may draw from
    "early": ["0", "0", "01", "01", "012", "012", "0123", "0123"],
    "late": ["3", "3", "23", "23", "123", "123", "0123", "0123"],
    "uniform": ["0123"] * 8,
}


@pytest.mark.parametrize("interpolate", ["off", "on"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_opens_one_stage_after_the_other(schedule: str, interpolate: str, pictures: Dataset) -> None:
    source = source_of(pictures, iterations=8, schedule=schedule, interpolate=interpolate)
    for iteration, opened in enumerate(SCHEDULES[schedule]):
        assert "".join(map(str, source.open_stages(iteration))) == opened
    many = source_of(pictures, iterations=400, schedule=schedule)
    for third in range(8):
        drawn = {member_of(many, iteration) % 4 for iteration in range(50 * third, 50 * third + 50)}
        assert "".join(map(str, sorted(drawn))) == SCHEDULES[schedule][third]


@pytest.mark.parametrize("schedule", ["early", "late"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7, 1200])
def test_the_first_iteration_has_one_stage_and_the_last_has_all_where_there_are_enough(
    schedule: str, iterations: int, pictures: Dataset
) -> None:
    source = source_of(pictures, iterations=iterations, schedule=schedule)
    opened = [source.open_stages(iteration) for iteration in range(iterations)]
    assert list(opened[0]) == ([0] if schedule == "early" else [3])
    assert len(opened[-1]) == (4 if iterations >= 4 else {1: 1, 2: 3, 3: 3}[iterations])
    assert all(set(one) <= set(next_) for one, next_ in itertools.pairwise(opened)), "none is closed again"


def test_a_pool_of_one_stage_is_a_pool_without_stages(pictures: Dataset) -> None:
    settings = PoolConfig(network="convnet2", width=5, count=2, epochs=8)
    for schedule in SCHEDULES:
        source = source_of(pictures, settings, schedule=schedule, interpolate="on")
        assert source.stages == 1 and {member_of(source, iteration, settings) for iteration in range(20)} == {0, 1}


# Interpolation


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_interpolated_weights_lie_between_neighbouring_stages_of_one_network(
    schedule: str, pictures: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(pictures, iterations=40, schedule=schedule, interpolate="on")
    monkeypatch.setattr(source, "accuracy_of", lambda member: 10.0 * member)
    shares = []
    for iteration in range(40):
        draws = stream(0, iteration, "stage")
        number = int(torch.randint(3, (), generator=draws))
        opened = list(source.open_stages(iteration))
        network, reached = source.draw(iteration)
        if len(opened) == 1:
            member = 4 * number + opened[0]
            assert torch.equal(weights(network), weights_of(POOL)[member]) and reached == 10 * member
            continue
        place = float(torch.rand((), generator=draws, dtype=torch.float64)) * (len(opened) - 1)
        low, share = 4 * number + opened[0] + int(place), place - int(place)
        a, b = (weights_of(POOL)[member].double() for member in (low, low + 1))
        assert torch.allclose(weights(network).double(), (1 - share) * a + share * b, rtol=0, atol=1e-6)
        assert reached == pytest.approx(10 * (low + share)), "and so does the accuracy"
        shares.append(share)
    assert min(shares) < 0.2 and max(shares) > 0.8


# The accuracy


def test_the_accuracy_of_a_stage_is_that_on_training_images(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RealSet] = []

    def spy(network: Network, real: RealSet) -> float:
        asked.append(real)
        return accuracy(network, real)

    monkeypatch.setattr(stages, "accuracy", spy)
    pool = pool_of(POOL)
    pool.accuracies = [-1.0] * 12  # those on test images, which nothing may use
    source = source_of(pictures, pool=pool)
    for iteration in range(60):
        member = member_of(source, iteration)
        assert source.draw(iteration).accuracy == accuracy(pool.networks[member], pictures.train)
        assert source.facts() == {"stage_accuracy": source.draw(iteration).accuracy}
    assert 0 < len(asked) <= 12, "each member is asked once"
    train, test = ({image.tobytes() for image in part.images.numpy()} for part in (pictures.train, pictures.test))
    for real in asked:
        seen = {image.tobytes() for image in real.images.numpy()}
        assert seen <= train and not seen & (test - train)


def test_of_many_training_images_some_are_asked(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ASKED", 30)
    source, other = source_of(pictures), source_of(pictures, seed=1)
    reached = [source.accuracy_of(member) for member in range(12)]
    assert all(share * 30 / 100 == pytest.approx(round(share * 30 / 100)) for share in reached)
    assert reached == [source_of(pictures).accuracy_of(member) for member in range(12)]
    assert reached != [other.accuracy_of(member) for member in range(12)]


def test_a_network_before_its_training_has_no_accuracy(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PoolConfig(network="convnet2", width=5, count=2, epochs=8, epochs_kept=(0, 4))
    asked: list[Network] = []
    monkeypatch.setattr(stages, "accuracy", lambda network, real: asked.append(network) or 60.0)
    pool = pool_of(settings)
    source = source_of(pictures, settings, pool)
    assert [source.accuracy_of(member) for member in range(6)] == [0, 60, 60, 0, 60, 60]
    assert not {id(network) for network in asked} & {id(pool.networks[member]) for member in (0, 3)}
    between = source_of(pictures, settings, interpolate="on")
    for iteration in range(20):
        draws = stream(0, iteration, "stage")
        torch.randint(2, (), generator=draws)
        place = 2 * float(torch.rand((), generator=draws, dtype=torch.float64))
        assert between.draw(iteration).accuracy == pytest.approx(60 * min(place, 1))


def test_a_pool_of_as_many_other_stages_is_refused(pictures: Dataset) -> None:
    settings = attrs.evolve(POOL, epochs_kept=(1,))
    pool = pool_of(settings)
    pool.epochs = [epochs for _, epochs in pool_members(settings)]
    source_of(pictures, settings, pool)
    for kept in ((0,), (2,)):
        with pytest.raises(InputError, match=f"after 1, 8, 1, 8, 1, 8 epochs where .* ask for {kept[0]}, 8, "):
            source_of(pictures, attrs.evolve(POOL, epochs_kept=kept), pool)


def test_another_pool_has_accuracies_of_its_own(pictures: Dataset) -> None:
    first, other = pool_of(POOL), pool_of(POOL)
    other.networks.reverse()
    source = source_of(pictures, pool=first)
    before = [source.accuracy_of(member) for member in range(len(first.networks))]
    source.use_pool(other)
    assert [source.accuracy_of(member) for member in range(len(first.networks))] == before[::-1] != before


def test_one_stage_alone_is_spread_over_no_run(pictures: Dataset) -> None:
    alone = attrs.evolve(POOL, epochs_kept=())
    assert source_of(pictures, alone, schedule="early").spread_by == ""
    assert source_of(pictures, schedule="early").spread_by == "stages.schedule=early"


def test_a_pool_of_other_settings_is_refused_and_none_is_reported(pictures: Dataset) -> None:
    """Else its members would be taken for other stages."""
    source = StageNetworks(POOL, StageConfig(), pictures.train, iterations=9, seed=0)
    with pytest.raises(RuntimeError, match=r"there is no pool yet; call Distillation\.make_pool"):
        source.draw(0)
    other = pool_of(attrs.evolve(POOL, epochs_kept=()))
    with pytest.raises(InputError, match=rf"^the pool has {POOL.count} networks where .* ask for 12; give the pool"):
        source.use_pool(other)
