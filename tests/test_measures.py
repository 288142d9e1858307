"""iidlib.evaluation.measures: measures against the obvious versions, invariances, projections and progress curves."""

import hypothesis.strategies as st
import pandas as pd
import pytest
import torch
from hypothesis import given

from iidlib.config import ComputeConfig, preset
from iidlib.data import shapes
from iidlib.distillation import distill, progress
from iidlib.errors import InputError
from iidlib.evaluation import evaluate, measures, random_real
from iidlib.networks import build_network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet
from tests import reference
from tests.factories import draw

PICTURES = {"per_class": 24, "classes": 3}
"""Of the fixture `pictures`."""


def network(number: int):
    return build_network("convnet2", num_classes=3, image_size=16, width=4, generator=stream(number, 0, "network"))


# Values


@given(seed=st.integers(0, 999), classes=st.integers(2, 4), n=st.integers(2, 6), d=st.integers(1, 5))
def test_spread_is_that_of_the_obvious_version(seed, classes, n, d):
    given_ = draw(classes, n, d, seed=seed)
    found = measures.spread(given_)
    for row, (within, between) in zip(found.itertuples(), reference.spread(given_), strict=True):
        assert row.within == pytest.approx(within, rel=1e-10) and row.between == pytest.approx(between, rel=1e-10)
        assert row.ratio == pytest.approx(within / between, rel=1e-10)


@given(seed=st.integers(0, 999), n=st.integers(2, 5), m=st.integers(1, 4))
def test_covariance_gap_and_mmd_are_those_of_the_obvious_versions(seed, n, m):
    real, syn = draw(2, n, 3, 4, seed=seed), draw(2, m, 3, 4, seed=seed + 1000)
    assert measures.covariance_gap(real, syn)["gap"].tolist() == pytest.approx(
        reference.covariance_gap(real, syn), rel=1e-10
    )
    found = measures.mmd(real.flatten(2), syn.flatten(2))
    assert found["gaussian"].tolist() == pytest.approx(
        reference.gaussian_mmd(real.flatten(2), syn.flatten(2)), rel=1e-9, abs=1e-10
    )
    expected = [float(reference.mean_matching(a, b)) for a, b in zip(real.flatten(2), syn.flatten(2), strict=True)]
    assert found["linear"].tolist() == pytest.approx(expected, rel=1e-10)


# Meaning


def test_equal_sets_differ_in_nothing_and_a_set_without_variation_in_all():
    real = draw(3, 8, 5, 4, seed=0)
    assert measures.covariance_gap(real, real)["gap"].max() < 1e-12
    assert measures.mmd(real.flatten(2), real.flatten(2))[["linear", "gaussian"]].abs().max().max() < 1e-12
    assert measures.covariance_gap(real, real[:, :1])["gap"].tolist() == pytest.approx([1.0] * 3)


def test_the_linear_kernel_sees_means_only_and_the_gaussian_one_more():
    real = draw(2, 40, 3, seed=1)
    centre = real.mean(1, keepdim=True)
    narrow = centre + 0.1 * (real - centre)
    found = measures.mmd(real, narrow)
    assert found["linear"].max() < 1e-12 and found["gaussian"].min() > 0.05


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_measures_do_not_depend_on_order_or_a_shift(shift):
    real, syn = draw(2, 9, 4, 3, seed=2), draw(2, 5, 4, 3, seed=3)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    for measure in (
        lambda a, b: measures.covariance_gap(a, b),
        lambda a, b: measures.mmd(a.flatten(2), b.flatten(2)),
        lambda a, b: measures.spread(b.flatten(2)),
    ):
        pd.testing.assert_frame_equal(measure(real, syn), measure(real + shift, syn[:, order] + shift))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.mmd(draw(2, 1, 3, seed=0), draw(2, 4, 3, seed=0)), "two or more real images"),
        (lambda: measures.mmd(draw(2, 3, seed=0), draw(2, 3, seed=0)), "two or more real images"),
        (lambda: measures.covariance_gap(draw(2, 3, 4, seed=0), draw(2, 3, 4, seed=0)), "shape"),
        (lambda: measures.spread(draw(2, 3, seed=0)), "shape"),
    ],
)
def test_wrong_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Sets


def test_sets_are_compared_under_every_network_and_the_real_images_with_themselves(pictures):
    chosen = random_real(pictures.train, 4)
    blurred = SyntheticSet(
        chosen.images.mean((2, 3), keepdim=True).expand_as(chosen.images), chosen.labels, chosen.spec
    )
    found = measures.compare({"random": chosen, "flat": blurred}, pictures.train, [network(0), network(1)])
    assert list(found["label"].unique()) == ["real", "random", "flat"] and len(found) == 2 * 3 * 3
    assert set(found["class"]) == set(pictures.spec.classes) and set(found["network"]) == {0, 1}
    mean = found.groupby("label")[["gap", "gaussian"]].mean()
    assert mean["gap"]["real"] < mean["gap"]["random"] < mean["gap"]["flat"]
    assert mean["gaussian"]["real"] < mean["gaussian"]["random"] < mean["gaussian"]["flat"]
    again = measures.compare({"random": chosen, "flat": blurred}, pictures.train, [network(0), network(1)])
    pd.testing.assert_frame_equal(found, again)


def test_a_row_of_the_comparison_is_what_the_measures_say(pictures):
    chosen, eye = random_real(pictures.train, 4), network(3)
    found = measures.compare({"random": chosen}, pictures.train, [eye], per_class=5, seed=2)
    drawn = pictures.train.sample(10, stream(2, 0, "images to compare with"))
    reals = [pictures.train.images_of(drawn.index[drawn.group == label])[:5] for label in range(3)]
    real = torch.stack([eye.feature_map(one) for one in reals]).flatten(3)
    own = eye.feature_map(chosen.images).unflatten(0, (3, 4)).flatten(3)
    rows = found[found["label"] == "random"]
    assert rows["gap"].tolist() == pytest.approx(measures.covariance_gap(real, own)["gap"].tolist(), rel=1e-4)
    expected = measures.mmd(real.flatten(2), own.flatten(2))
    assert rows["linear"].tolist() == pytest.approx(expected["linear"].tolist(), rel=1e-4)
    assert rows["within"].tolist() == pytest.approx(measures.spread(own.flatten(2))["within"].tolist(), rel=1e-4)


def test_mosaics_are_expanded_before_they_are_compared(pictures):
    mosaics = random_real(pictures.train, 2, factor=2)
    one = measures.compare({"set": mosaics}, pictures.train, [network(0)])
    other = measures.compare({"set": mosaics.expanded()}, pictures.train, [network(0)])
    pd.testing.assert_frame_equal(one, other)


def test_too_few_images_to_compare_with():
    with pytest.raises(InputError, match="four or more real images"):
        measures.compare({}, shapes(2, [9, 3], 16).train, [network(0)])


# Projection


def test_clusters_stay_clusters_and_a_seed_repeats():
    centres = torch.tensor([[0.0, 0.0, 0.0], [30.0, 0.0, 0.0], [0.0, 30.0, 0.0]])
    labels = torch.arange(3).repeat_interleave(15)
    sets = {name: centres[labels] + draw(45, 3, seed=seed).float() for seed, name in enumerate(("real", "dm"))}
    found = measures.project(sets, {name: labels for name in sets}, perplexity=10)
    assert list(found.columns) == ["label", "class", "x", "y"] and len(found) == 90
    middle = found.groupby("class")[["x", "y"]].transform("mean")
    own = ((found[["x", "y"]] - middle) ** 2).sum(axis=1).groupby(found["class"]).mean()
    means = found.groupby("class")[["x", "y"]].mean()
    apart = min(((means.loc[a] - means.loc[b]) ** 2).sum() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert own.max() < apart / 4
    pd.testing.assert_frame_equal(found, measures.project(sets, {name: labels for name in sets}, perplexity=10))


def test_few_points_lower_the_perplexity_and_too_few_are_refused():
    six = {"real": draw(6, 4, seed=0)}
    assert len(measures.project(six, {"real": torch.zeros(6, dtype=torch.int64)})) == 6
    with pytest.raises(ValueError, match="five or more"):
        measures.project({"real": draw(4, 4, seed=0)}, {"real": torch.zeros(4)})
    with pytest.raises(ValueError, match="as many labels"):
        measures.project(six, {"real": torch.zeros(5)})


# Progress


def test_progress_is_that_of_the_same_run(pictures):
    config = preset("dm", "shapes", 2, "ci", {"iterations": 4, "match.width": 4, "eval.width": 4, "eval.num_eval": 1})

    def assess(synthetic: SyntheticSet) -> pd.DataFrame:
        return evaluate(synthetic, pictures, protocol=config.eval, compute=ComputeConfig(compile="off"))

    found = progress(config, pictures, assess, points=(0, 2, 4))
    assert found["iteration"].tolist() == [0, 2, 4]
    plain = distill(config, pictures).synthetic
    assert found["accuracy"].iloc[-1] == assess(plain)["accuracy"].iloc[0]
    with pytest.raises(InputError, match="has 4 iterations, there is no set after 9"):
        progress(config, pictures, assess, points=(0, 9))
