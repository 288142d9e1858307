"""iidlib.distillation.terms: what a term may read of an iteration, when it is computed, and what weights mean."""

import pytest
import torch
from torch import Tensor

from iidlib import losses
from iidlib.data import Dataset
from iidlib.distillation import TERMS, Distillation, LazyDraws, StepBatch
from iidlib.features import Drawn, Pool
from iidlib.rng import stream
from iidlib.synthetic import expand
from tests.factories import pretrained_pool, ready_run, settings, tiny_dataset


def run_on(dataset: Dataset, *widths: int, **changes: object) -> Distillation:
    """A run of iid-dm whose pool has a network of each width."""
    return ready_run(settings("iid-dm", **changes), dataset, pool=pretrained_pool(dataset, widths=widths or (5,)))


def term(name: str, run: Distillation, iteration: int = 0) -> Tensor:
    return TERMS[name].loss(run.batch(iteration)).detach()


# What a step may read


def test_shapes_of_all_features():
    run = run_on(tiny_dataset())
    batch = run.batch(0)
    assert batch.real_fmap.shape == (4, 6, 4, 4) and batch.syn_fmap.shape == (4, 3, 4, 4)
    assert batch.real_features.shape == (4, 6, 16) and batch.syn_features.shape == (4, 3, 16)
    assert batch.real_mask is None
    assert batch.pretrained_syn_features.shape == (4, 3, 80)
    real, mask = batch.pretrained_real_features(2)
    assert real.shape == (4, 2, 80) and mask is None
    assert batch.config is run.config


def test_features_are_the_flattened_maps_of_a_convnet():
    batch = run_on(tiny_dataset()).batch(0)
    assert torch.equal(batch.syn_features, batch.syn_fmap.flatten(2))
    assert torch.equal(batch.real_features, batch.real_fmap.flatten(2))


def test_features_of_a_network_with_a_head_are_what_its_classifier_sees():
    run = run_on(tiny_dataset((3, 4), size=32), match__network="lenet", ipc=2, match__augmentation="none")
    batch = run.batch(0)
    assert batch.syn_fmap.shape == (2, 2, 16, 25) and batch.syn_features.shape == (2, 2, 84)
    assert torch.allclose(batch.syn_features.flatten(0, 1), batch.network.embed(run.images), atol=1e-6)
    assert batch.real_features.shape == (2, 4, 84)
    smaller = batch.network.embed(run.real.images_of(run.real.of_class(0))).mean(0)
    assert torch.allclose(batch.real_features[0][batch.real_mask[0]].mean(0), smaller, atol=1e-6)


def test_classes_of_unequal_size_are_padded_and_masked():
    run = run_on(tiny_dataset((3, 7, 4)))
    batch = run.batch(0)
    assert batch.real_fmap.shape == (3, 6, 4, 4)
    assert batch.real_mask.sum(1).tolist() == [3, 6, 4]
    assert batch.real_mask[0].tolist() == [True] * 3 + [False] * 3
    features, mask = batch.pretrained_real_features(4)
    assert features.shape == (3, 4, 80) and mask.sum(1).tolist() == [3, 4, 4]
    features, mask = batch.pretrained_real_features(3)
    assert features.shape == (3, 3, 80) and mask is None


@pytest.mark.parametrize("per_class", [(3, 7, 4), (7, 7, 7)])
def test_the_pretrained_networks_real_features_are_those_of_the_first_drawn_images_of_each_class(per_class):
    run = run_on(tiny_dataset(per_class), match__augmentation="none")
    drawn = run.real.sample(6, stream(0, 0, "real batch"))
    features, mask = run.batch(0).pretrained_real_features(4)
    assert (mask is None) == (len(set(per_class)) == 1)
    for c in range(3):
        images = run.real.images_of(drawn.index[drawn.group == c][:4])
        expected = run.pool.networks[0].embed(images)
        held = torch.ones(4, dtype=torch.bool) if mask is None else mask[c]
        assert torch.allclose(features[c][held], expected, rtol=1e-4, atol=1e-5)
        assert not features[c][~held].any()


def test_gradients_reach_the_synthetic_side_alone():
    run = run_on(tiny_dataset())
    batch = run.batch(0)
    for real in (batch.real_fmap, batch.real_features, batch.pretrained_real_features(4)[0]):
        assert not real.requires_grad
    for syn in (batch.syn_fmap, batch.syn_features, batch.pretrained_syn_features):
        (gradient,) = torch.autograd.grad(syn.square().sum(), run.images, retain_graph=True)
        assert gradient.flatten(1).any(1).all()
    assert not any(parameter.requires_grad for parameter in batch.network.parameters())


def test_nothing_is_computed_before_it_is_asked_for_and_nothing_twice(monkeypatch):
    run = run_on(tiny_dataset())
    calls: list[str] = []
    forward, draw = run.forward, run.source.draw
    monkeypatch.setattr(run, "forward", lambda function, images: calls.append("forward") or forward(function, images))
    monkeypatch.setattr(run.source, "draw", lambda iteration: calls.append("draw") or draw(iteration))
    monkeypatch.setattr(Pool, "sample", lambda self, generator: calls.append("pretrained") or self.networks[0])
    batch = run.batch(0)
    assert calls == []
    for _ in range(2):
        _ = batch.syn_fmap, batch.syn_features
        assert calls == ["draw", "forward"]
    for _ in range(2):
        _ = batch.real_fmap, batch.real_features, batch.real_mask
        assert calls == ["draw", "forward", "forward"]
    for _ in range(2):
        _ = batch.pretrained_syn_features
        assert calls[3:] == ["pretrained", "forward"]


def test_a_batch_computes_from_the_draws_that_it_is_given():
    run = run_on(tiny_dataset())
    network = run.source.draw(3).network

    class Given:
        """Draws that no iteration of the run would make."""

        iteration, counts = 0, torch.full((4,), 2)

        def real(self, classes: range) -> Tensor:
            return torch.ones(2 * len(classes), 3, 16, 16)

        def augmented(self, images: Tensor, classes: range) -> Tensor:
            return 2 * images

    Given.matching, Given.pretrained = Drawn(network, 25.0), run.pool.networks[0]
    batch = StepBatch(run, Given())
    expected = network.embed(torch.cat([torch.ones(1, 3, 16, 16), 2 * run.images.detach()]))
    assert torch.allclose(batch.real_features.flatten(0, 1), expected[0].expand(8, -1), atol=1e-5)
    assert torch.allclose(batch.syn_features.flatten(0, 1), expected[1:], atol=1e-5)
    assert batch.network is network and batch.accuracy == 25
    assert torch.equal(batch.pretrained_real_features(1)[0][0], batch.pretrained_real_features(1)[0][3])


def test_draws_are_those_of_the_iteration_and_not_made_twice():
    run = run_on(tiny_dataset(), 2, 3, 4)
    draws, again, other = LazyDraws(run, 5), LazyDraws(run, 5), LazyDraws(run, 6)
    every = range(4)
    real = draws.real(every)
    assert torch.equal(real, again.real(every)) and not torch.equal(real[:6], other.real(every)[:6])
    assert draws.real(every).data_ptr() == real.data_ptr() and draws.counts.tolist() == [6, 6, 6, 6]
    assert torch.equal(draws.real(range(1, 3)), real[6:18])
    images = run.images.detach()
    assert torch.equal(draws.augmented(images, every), again.augmented(images, every))
    for label in every:
        own, one = run.group == label, range(label, label + 1)
        assert torch.allclose(draws.augmented(images, every)[own], draws.augmented(images[own], one), atol=1e-6)


def test_both_sides_of_a_class_go_through_one_transform_and_classes_through_their_own():
    dataset = tiny_dataset((3, 3, 3, 3, 3, 3))
    run = run_on(dataset, ipc=3, match__batch_real=3)
    drawn = run.real.sample(3, stream(0, 0, "real batch"))
    with torch.no_grad():  # the very images that the real side draws
        run.images.copy_(run.real.images_of(drawn.index))
    batch = run.batch(0)
    assert torch.allclose(batch.real_fmap, batch.syn_fmap, atol=1e-6)
    assert float(term("mean", run).sum()) == pytest.approx(0, abs=1e-9)
    plain = run_on(dataset, ipc=3, match__batch_real=3, match__augmentation="none")
    with torch.no_grad():
        plain.images.copy_(run.images)
    changed = (plain.batch(0).syn_fmap - batch.syn_fmap).flatten(1).abs().amax(1) > 1e-4
    assert changed.sum() >= 4  # a flip may leave a class as it was


def test_an_image_has_the_features_that_it_has_in_any_batch():
    small, large = run_on(tiny_dataset((3, 7, 4))), run_on(tiny_dataset((3, 7, 4)), match__batch_real=3)
    drawn = [
        run.real.sample(run.config.match.batch_real, stream(0, 0, "real batch")).index[:3] for run in (small, large)
    ]
    assert torch.equal(*drawn)
    assert torch.allclose(small.batch(0).real_fmap[0, :3], large.batch(0).real_fmap[0, :3], atol=1e-6)


def test_logits_are_those_of_the_features_that_are_matched():
    run = run_on(tiny_dataset())
    batch = run.batch(0)
    assert batch.syn_logits.shape == (4, 3, 4)
    assert torch.equal(batch.syn_logits, batch.network.classifier(batch.syn_features))
    assert batch.accuracy == 0 and not term("ce", run).any(), "a random network has no say"


def test_mosaics_are_expanded_before_they_are_augmented():
    plain = run_on(tiny_dataset((9, 9, 9)), ipc=8, match__augmentation="cutout")
    mosaics = run_on(tiny_dataset((9, 9, 9)), ipc=2, match__augmentation="cutout", syn__factor=2, syn__init="crops")
    with torch.no_grad():
        plain.images.copy_(expand(mosaics.images, 2))
    assert torch.allclose(mosaics.batch(0).syn_fmap, plain.batch(0).syn_fmap, atol=1e-6)
    assert mosaics.batch(0).syn_fmap.shape[:2] == (3, 8)


# Weights and scalings


def test_weights_are_those_of_the_settings():
    config = settings("iid-dm", match__cm=0.3, match__cc=0.7)
    assert [TERMS[name].weight(config) for name in ("mean", "cm", "cc", "ce")] == [1.0, 0.3, 0.7, 0.5]
    assert [name for name in TERMS if TERMS[name].needs_pool] == ["cc"]
    assert [name for name in TERMS if TERMS[name].needs_pairs] == ["cm", "cc"]


def test_per_image_is_as_released_at_ten_images_a_class():
    dataset = tiny_dataset((20, 21))
    for ipc, ratio in ((10, 1.0), (5, 2.0), (20, 0.5)):
        released = term("cc", run_on(dataset, ipc=ipc))
        per_image = term("cc", run_on(dataset, ipc=ipc, match__cc_scaling="per_image"))
        assert torch.allclose(per_image, ratio * released)
    released = term("cc", run_on(dataset, ipc=2, syn__factor=2))
    per_image = term("cc", run_on(dataset, ipc=2, syn__factor=2, match__cc_scaling="per_image"))
    assert torch.allclose(per_image, 5 * released), "stored images count, not their tiles"


def test_relative_is_one_where_the_synthetic_images_are_the_real_ones():
    run = run_on(tiny_dataset((6, 6, 6)), ipc=6, match__cc_scaling="relative")
    drawn = run.real.sample(6, stream(0, 0, "real batch"))
    with torch.no_grad():
        run.images.copy_(run.real.images_of(drawn.index))
    assert torch.allclose(term("cc", run), torch.ones(3), rtol=1e-4)


def test_relative_has_no_unit():
    """Features a hundred times as large, as another network may have them, change the released value alone."""
    run = run_on(tiny_dataset((20, 21, 22)), ipc=5)
    relative = run_on(tiny_dataset((20, 21, 22)), ipc=5, match__cc_scaling="relative")
    before = term("cc", run), term("cc", relative)
    for each in (run, relative):
        block = each.pool.networks[0].trunk.block2
        block.norm.weight.mul_(100), block.norm.bias.mul_(100)
    assert torch.allclose(term("cc", run), 1e4 * before[0], rtol=1e-3)
    assert torch.allclose(term("cc", relative), before[1], rtol=1e-3)


def test_relative_carries_over_between_networks_and_images_a_class():
    """Random real images are as dispersed as real images: about 1, whatever the network and the number of images."""
    dataset, values = tiny_dataset((60, 60, 60)), {}
    for scaling in ("released", "relative"):
        for ipc in (6, 50):
            for width in (4, 32):
                run = run_on(dataset, width, ipc=ipc, match__cc_scaling=scaling, match__batch_real=60)
                value = torch.stack([term("cc", run, iteration) for iteration in range(3)]).mean()
                values.setdefault(scaling, []).append(float(value))
    assert all(0.6 < value < 1.4 for value in values["relative"]), values
    assert max(values["released"]) > 5 * min(values["released"]), values


def test_relative_measures_on_as_many_real_images_as_asked_for():
    few, more, all_of_them = (
        term(
            "cc",
            run_on(tiny_dataset((20, 21)), ipc=5, match__cc_scaling="relative", match__batch_real=8, match__cc_real=n),
        )
        for n in (3, 8, 64)
    )
    assert torch.equal(more, all_of_them) and not torch.allclose(few, more, rtol=1e-2)


def test_relative_asks_nothing_of_a_class_whose_one_real_image_has_no_scatter():
    run = run_on(tiny_dataset((1, 21)), ipc=1, match__cc_scaling="relative", syn__init="noise", syn__factor=2)
    loss = TERMS["cc"].loss(run.batch(0))
    (gradient,) = torch.autograd.grad(loss.sum(), run.images)
    assert loss[0] == 0 and loss[1] > 0
    assert gradient.isfinite().all() and gradient.flatten(1).any(1).tolist() == [False, True]


@pytest.mark.parametrize("scaling", ["released", "per_image"])
def test_the_exp_form_follows_its_settings(scaling):
    run = run_on(
        tiny_dataset((20, 21)),
        ipc=5,
        match__cc_form="exp",
        match__cc_alpha=0.03,
        match__cc_beta=1.1,
        match__cc_scaling=scaling,
    )
    features = run.batch(0).pretrained_syn_features
    expected = losses.class_centralization(features, form="exp", alpha=0.03, beta=1.1)
    assert torch.allclose(term("cc", run), expected.detach() * (2 if scaling == "per_image" else 1))


def test_pretrained_networks_are_drawn_each_iteration_and_uniformly():
    run = run_on(tiny_dataset((3, 3)), 2, 3, 4)
    drawn = [run.pool.networks.index(run.batch(iteration).pretrained) for iteration in range(60)]
    counts = torch.bincount(torch.tensor(drawn), minlength=3)
    assert counts.min() >= 10
    assert drawn == [run.pool.networks.index(run.batch(iteration).pretrained) for iteration in range(60)]
