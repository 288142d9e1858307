"""iidlib.config.recipes: the published rows of IDM, as the commands have them, and what smaller scales change."""

import typing

import pytest

from iidlib.config import SCALES, MatchConfig, preset, settings
from iidlib.config.recipes import (
    BASELINES,
    BASES,
    IDM_SCALES,
    PLUS_SCALES,
    PUBLISHED,
    SOURCES,
    common,
    layers,
    published,
)
from iidlib.continual import MEMORIES
from iidlib.distillation import METHODS
from iidlib.distillation.methods import SOURCES as FACTORIES

IDM = [name for name, base in BASES.items() if base == "idm"]
PLUS = [name for name, base in BASES.items() if base == "plus"]

# ce_weight, batch_real, net_generate_interval, model_train_steps of command.txt; SVHN by a fork's command
COMMANDS = {
    ("cifar10", 1): (0.5, 5000, 5, 10),
    ("cifar10", 10): (0.5, 256, 30, 10),
    ("cifar10", 50): (0.1, 256, 30, 10),
    ("cifar100", 1): (0.5, 5000, 5, 10),
    ("cifar100", 10): (0.1, 256, 30, 50),
    ("cifar100", 50): (0.1, 256, 30, 10),
    ("tinyimagenet", 1): (0.5, 256, 30, 10),
    ("tinyimagenet", 10): (0.5, 256, 30, 10),
    ("tinyimagenet", 50): (0.8, 256, 30, 50),
    ("svhn", 1): (0.5, 5000, 5, 10),
    ("svhn", 10): (0.5, 256, 30, 10),
    ("svhn", 50): (0.1, 256, 30, 10),
}


@pytest.mark.parametrize("method", IDM)
@pytest.mark.parametrize(("dataset", "ipc"), COMMANDS)
def test_the_paper_s_settings_are_those_of_the_commands(method, dataset, ipc):
    config = preset(method, dataset, ipc, "paper")
    found = (config.match.ce, config.match.batch_real, config.queue.every, config.queue.steps)
    assert found == COMMANDS[dataset, ipc]
    assert (config.syn.factor, config.syn.lr, config.syn.momentum, config.syn.init) == (2, 0.2, 0.5, "real")
    assert (config.match.cm, config.match.cc, config.match.cc_scaling) == (0.03, 0.01, "released")
    queue = config.queue
    assert (queue.size, queue.start, queue.train, queue.batch, queue.lr) == (100, 3, 2, 256, 0.01)
    assert (queue.meter_reset, queue.meter_interval) == ("interval", 100)
    assert (config.iterations, config.eval.epochs, config.match.width) == (20_000, 1001, 128)
    assert config.match.network == ("convnet4" if dataset == "tinyimagenet" else "convnet3")


def test_every_row_says_where_it_is_from():
    assert set(PUBLISHED) == set(COMMANDS)
    for row in PUBLISHED.values():
        assert row.origin
        assert set(row.changes) <= set(settings())
    assert published("iid-idm", "cifar10", 10) is PUBLISHED["cifar10", 10]
    assert published("dm", "cifar10", 10) is None and published("idm", "cifar10", 7) is None


def test_the_methods_are_those_of_the_table():
    assert {name: SOURCES[base] for name, base in BASES.items()} == {
        name: method.source for name, method in METHODS.items()
    }
    assert set(SOURCES.values()) == set(FACTORIES)
    assert set(typing.get_args(typing.get_type_hints(MatchConfig)["source"])) == {"auto", *FACTORIES}
    assert IDM == ["idm", "idm-cc", "idm-cm", "iid-idm"]
    assert {*IDM, *PLUS} == {name for name, method in METHODS.items() if "ce" in method.terms}


def test_baselines_are_no_methods_and_every_real_memory_is_one():
    assert not set(BASELINES) & set(BASES)
    assert set(MEMORIES) == set(BASELINES) - {"whole"}


def test_layers_are_named_in_the_order_in_which_they_apply():
    assert list(layers("idm", "tinyimagenet", 10, "paper")) == ["method", "scale", "dataset", "published row"]
    for method in ("idm", "iid-plus"):
        assert list(layers(method, "cifar10", 10, "tour")) == ["method", "scale", "method at this scale"]
    assert list(layers("iid-plus", "validation:tinyimagenet", 10, "paper")) == ["method", "scale", "dataset"]
    assert list(layers("iid-plus", "cifar10", 1, "laptop"))[1] == "method at this IPC"  # so that a scale may differ


@pytest.mark.parametrize("scale", SCALES)
def test_a_method_without_a_row_is_changed_by_nothing(scale):
    for method in ("dm", "iid-dm", "random", "unknown"):
        assert common(method) == {} and list(layers(method, "cifar10", 10, scale)) == ["method", "scale"]
    assert preset("random-mosaic", scale=scale).syn.factor == 2


@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale != "paper"])
def test_smaller_scales_keep_the_form_and_change_what_their_row_says(scale):
    config = preset("iid-idm", "cifar10", 10, scale)
    assert config.syn.factor == 2 and config.match.cc_scaling == "relative"
    for key, expected in IDM_SCALES[scale].items():
        group, name = key.split(".")
        assert getattr(getattr(config, group), name) == expected
    assert preset("iid-idm", "cifar10", 10, scale, {"syn.factor": 1}).syn.factor == 1


@pytest.mark.parametrize("dataset", ["cifar10", "tinyimagenet"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_networks_that_iid_plus_matches_are_those_of_its_pool(scale, dataset):
    """Otherwise its first run would be refused, see `methods._stages`."""
    config = preset("iid-plus", dataset, 10, scale)
    assert (config.match.network, config.match.width) == (config.pool.network, config.pool.width)
    assert config.match.network == config.eval.networks[0] and config.pool.epochs_kept
    assert (config.syn.factor, config.match.cc_scaling) == (2, "relative")
    for key, expected in PLUS_SCALES.get(scale, {}).items():
        group, name = key.split(".")
        assert getattr(getattr(config, group), name) == expected
