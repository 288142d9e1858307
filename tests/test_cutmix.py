"""iidlib.training.cutmix: rectangles from partners, drawn as often and as large as they should be."""

import pytest
import torch
from torchvision.transforms import v2

from iidlib.rng import stream
from iidlib.training import cutmix

SIDE = 16


def test_a_rectangle_of_each_image_comes_from_its_partner():
    images = torch.randn(5, 3, SIDE, SIDE, dtype=torch.float64, generator=stream(0, 0, "images"))
    mix = cutmix.sample(5, SIDE, 1.0, stream(4, 0, "mix"))
    top, bottom, left, right = mix.box.tolist()
    assert 0 <= top < bottom <= SIDE and 0 <= left < right <= SIDE, "another seed shows more"
    found = cutmix.apply(images, mix.partner, mix.box)
    for own, partner in enumerate(mix.partner.tolist()):
        for row in range(SIDE):
            for column in range(SIDE):
                inside = top <= row < bottom and left <= column < right
                expected = images[partner if inside else own, :, row, column]
                assert torch.equal(found[own, :, row, column], expected)
    kept = sum(not (top <= r < bottom and left <= c < right) for r in range(SIDE) for c in range(SIDE))
    assert mix.share == kept / SIDE**2


def test_partners_are_a_permutation_and_boxes_lie_in_the_image():
    draws = stream(0, 0, "mix")
    shares = []
    for _ in range(400):
        mix = cutmix.sample(7, SIDE, 1.0, draws)
        assert sorted(mix.partner.tolist()) == list(range(7))
        top, bottom, left, right = mix.box.tolist()
        assert 0 <= top <= bottom <= SIDE and 0 <= left <= right <= SIDE
        shares.append(mix.share)
    assert min(shares) < 0.4 and max(shares) > 0.95
    # an area uniform in [0, 1], of which on average less than a half is left at the border
    assert 0.6 < sum(shares) / len(shares) < 0.8


def test_as_many_batches_are_mixed_as_asked_and_the_others_are_left_alone():
    draws = stream(1, 0, "mix")
    mixes = [cutmix.sample(3, SIDE, 0.25, draws) for _ in range(400)]
    untouched = [mix for mix in mixes if mix.share == 1.0 and not mix.box.any()]
    assert 270 < len(untouched) < 330
    images = torch.randn(3, 1, SIDE, SIDE)
    assert torch.equal(cutmix.apply(images, untouched[0].partner, untouched[0].box), images)
    assert all(cutmix.sample(3, SIDE, 0.0, draws).share == 1.0 for _ in range(50))


def test_a_seed_repeats():
    one, two = (cutmix.sample(6, SIDE, 0.5, stream(3, 1, "mix")) for _ in range(2))
    assert torch.equal(one.partner, two.partner) and torch.equal(one.box, two.box) and one.share == two.share


def test_torchvision_makes_the_same_rectangles_and_shares_of_the_same_draws(monkeypatch: pytest.MonkeyPatch):
    """The law of the draws is the same, so that theirs and ours differ in where the random numbers come from alone."""
    theirs = v2.CutMix(alpha=1.0, num_classes=10)
    images = torch.randn(6, 3, SIDE, SIDE, generator=stream(0, 0, "images"))
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    kept = torch.nn.functional.one_hot(labels, 10).float()
    for seed in range(200):
        _, area, down, right = torch.rand(4, generator=stream(seed, 0, "mix")).tolist()
        places = iter([right, down])
        monkeypatch.setattr(theirs._dist, "sample", lambda shape, area=area: torch.tensor(1 - area).double())
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda high, size, places=places: torch.tensor([int(high * next(places))]))
            mixed, shares = theirs(images, labels)
        ours = cutmix.sample(6, SIDE, 1.0, stream(seed, 0, "mix"))
        partner = torch.arange(6).roll(1)  # theirs are the neighbours of a shuffled batch
        assert torch.equal(cutmix.apply(images, partner, ours.box), mixed)
        assert torch.allclose(ours.share * kept + (1 - ours.share) * kept[partner], shares, atol=1e-6, rtol=0)
