"""iidlib.config: every setting can be changed, read and written; what is wrong is one line that says what to do."""

import hashlib
import math
import subprocess
import sys
import typing

import attrs
import hypothesis
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from iidlib.config import (
    SCALES,
    CheckpointConfig,
    EvalProtocol,
    MatchConfig,
    PoolConfig,
    RunConfig,
    SynConfig,
    differing,
    fingerprint,
    from_yaml,
    override,
    preset,
    resolved,
    settings,
    to_yaml,
)
from iidlib.config.overrides import ADDED
from iidlib.config.recipes import BASELINES, BASES
from iidlib.errors import InputError, suggest
from iidlib.networks import build_network
from tests.factories import one_line

ALL = settings()
HUGE = 10**400
"""No float holds it."""
DEFAULTS = RunConfig()
WITH_ALL_TERMS = RunConfig(method="iid-plus")

# What each setting may be, beside its type.
BELOW_ONE = {"syn.momentum"}
POSITIVE_WHOLE, WHOLE = st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1)
POSITIVE = st.floats(2.0**-126, 3.4e38)
"""What float32 holds; test_values tries what it does not."""
NOT_NEGATIVE, SHARE = (st.just(0.0) | st.floats(2.0**-126, most, exclude_max=True) for most in (3.4e38, 1))
ZERO_ALLOWED = {
    "seed",
    "pool.seed",
    "compute.chunk",
    "compute.classes",
    "compute.together",
    "checkpoint.seconds",
    "match.mean",
    "match.cm",
    "match.cc",
    "match.ce",
    "match.mmd",
    "match.cc_alpha",
    "match.cc_beta",
    "syn.momentum",
    "eval.cutmix",
}


def values(key: str) -> st.SearchStrategy:
    """Valid values of a setting."""
    hint = ALL[key]
    if key == "scale":
        return st.sampled_from(list(SCALES))
    if key == "match.cc_form":
        return st.just("linear")  # exp does not go with every scaling; tested by itself
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if key == "pool.epochs_kept":
        return st.sampled_from(
            [(), (0,), (0, 1)]
        )  # what goes with any number of epochs; others are tested by themselves
    if typing.get_origin(hint) is tuple:
        names = st.text("abcdefgh-0123", min_size=1, max_size=8)
        return st.lists(names, min_size=1, max_size=4, unique=True).map(tuple)
    if key == "pool.count":
        return st.integers(1, 10**6)
    if key == "syn.init":
        return st.sampled_from(["real", "crops", "noise", "centres", "easiest", "set:0123456789ab"])
    if hint is str:
        return st.text("abcdefgh_-/.0123", max_size=12)
    if key in BELOW_ONE | {"eval.cutmix"}:
        return SHARE
    if hint is float:
        return NOT_NEGATIVE if key in ZERO_ALLOWED else POSITIVE
    assert hint is int, f"{key}: a new kind of setting, {hint}"
    return WHOLE if key in ZERO_ALLOWED else POSITIVE_WHOLE


def value(config: RunConfig, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


# Overriding


@pytest.mark.parametrize("key", ALL)
@hypothesis.settings(max_examples=5)
@given(data=st.data())
def test_every_setting_is_overridden_alone_and_survives_yaml(key, data):
    new = data.draw(values(key))
    changed = override(WITH_ALL_TERMS, {key: new})
    assert value(changed, key) == new and type(value(changed, key)) is type(value(WITH_ALL_TERMS, key))
    for other in ALL:
        if other != key:
            assert value(changed, other) == value(WITH_ALL_TERMS, other)
    assert from_yaml(to_yaml(changed)) == changed
    assert (fingerprint(changed) == fingerprint(WITH_ALL_TERMS)) == (changed == WITH_ALL_TERMS)


@pytest.mark.parametrize("key", [key for key in ALL if ALL[key] in (int, float)])
@hypothesis.settings(max_examples=5)
@given(data=st.data())
def test_numbers_may_be_text(key, data):
    new = data.draw(values(key))
    assert value(override(WITH_ALL_TERMS, {key: str(new)}), key) == new
    assert value(override(WITH_ALL_TERMS, {key: f" {new} "}), key) == new


@given(data=st.data(), keys=st.lists(st.sampled_from(list(ALL)), min_size=2, max_size=6, unique=True))
def test_settings_are_overridden_together(data, keys):
    new = {key: data.draw(values(key)) for key in keys}
    changed = override(WITH_ALL_TERMS, new)
    assert all(value(changed, key) == new[key] for key in keys)
    one_by_one = WITH_ALL_TERMS
    for key in reversed(keys):
        one_by_one = override(one_by_one, {key: new[key]})
    assert one_by_one == changed


@pytest.mark.parametrize(
    ("key", "given_value", "kept"),
    [
        ("match.cm", "5e-4", 5e-4),
        ("match.cm", 1, 1.0),
        ("iterations", "1e3", 1000),
        ("iterations", 20.0, 20),
        ("iterations", "+7", 7),
        ("seed", str(2**62 + 1), 2**62 + 1),
        ("eval.networks", "convnet3, alexnet ,vgg11", ("convnet3", "alexnet", "vgg11")),
        ("eval.networks", ["convnet3"], ("convnet3",)),
        ("pool.epochs_kept", "2, 5,10", (2, 5, 10)),
        ("pool.epochs_kept", [2, "5"], (2, 5)),
        ("pool.epochs_kept", 3, (3,)),
        ("pool.epochs_kept", 0, (0,)),
        ("stages.interpolate", True, "on"),
        ("pool.epochs_kept", "", ()),
        ("compute.compile", False, "off"),
        ("compute.compile", True, "on"),
        ("pool.path", "", ""),
        ("dataset", "folder:/data/my images", "folder:/data/my images"),
    ],
)
def test_values_take_the_type_of_their_setting(key, given_value, kept):
    found = value(override(DEFAULTS, {key: given_value}), key)
    assert found == kept and type(found) is type(kept)


def test_the_given_settings_stay_as_they_are():
    before = to_yaml(DEFAULTS)
    override(DEFAULTS, {"match.cm": 0.5, "seed": 3})
    assert to_yaml(DEFAULTS) == before
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        DEFAULTS.match.cm = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match.cmm": 1}, r"unknown setting 'match.cmm'; did you mean 'match.cm'\?"),
        ({"mathc.cm": 1}, r"did you mean 'match.cm'\?"),
        ({"match": {}}, "unknown setting 'match'"),
        ({"zzzzzzzz": 1}, "unknown setting 'zzzzzzzz'; choose one of method, dataset, ipc"),
        ({"match.cm": "much"}, "match.cm must be a number, got 'much'"),
        ({"match.cm": "nan"}, "match.cm must be a number, got 'nan'"),
        ({"match.cm": math.inf}, "match.cm must be a number, got inf"),
        ({"match.cm": None}, "match.cm must be a number, got None"),
        ({"match.cm": True}, "match.cm must be a number, got True"),
        ({"match.cm": [1]}, r"match.cm must be a number, got \[1\]"),
        ({"match.cm": -0.1}, "match.cm must not be negative, got -0.1"),
        ({"iterations": 1.5}, "iterations must be a whole number, got 1.5"),
        ({"iterations": "1.5"}, "iterations must be a whole number, got '1.5'"),
        ({"iterations": ""}, "iterations must be a whole number, got ''"),
        ({"iterations": 0}, "iterations must be above 0, got 0"),
        ({"seed": HUGE}, r"seed must be at most 9223372036854775807 \(64 bits\), got 1000"),
        ({"ipc": 0}, "ipc must be above 0, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"syn.lr": 0}, "syn.lr must be above 0, got 0.0"),
        ({"syn.momentum": 1}, "syn.momentum must be below 1, got 1.0"),
        ({"syn.init": "zeros"}, "syn.init must be one of real, crops, noise, centres, easiest, got 'zeros'"),
        ({"match.cc_scaling": "rel"}, "match.cc_scaling must be one of released, per_image, relative, got 'rel'"),
        ({"compute.precision": True}, "compute.precision must be one of fp32, tf32, bf16, got True"),
        ({"eval.networks": ""}, "eval.networks must be names separated by commas, got ''"),
        ({"eval.networks": "a,,b"}, "names separated by commas, got 'a,,b'"),
        ({"eval.networks": 5}, "names separated by commas, got 5"),
        ({"eval.networks": None}, "names separated by commas, got None"),
        ({"eval.networks": [1, 2]}, r"names separated by commas, got \[1, 2\]"),
        ({"pool.epochs_kept": "2,x"}, "pool.epochs_kept must be a whole number, got 'x'"),
        ({"pool.epochs_kept": True}, "pool.epochs_kept must be whole numbers separated by commas, got True"),
        ({"pool.epochs_kept": (-1, 2)}, r"pool.epochs_kept must lie in 0 to pool.epochs \(now \d+\), got -1, 2"),
        ({"pool.epochs_kept": (2, 6), "pool.epochs": 5}, r"in 0 to pool.epochs \(now 5\), got 2, 6"),
        ({"dataset": False}, "dataset must be text, got False"),
        ({"scale": "papr"}, r"unknown scale 'papr'; did you mean 'paper'\?"),
    ],
    ids=lambda item: str(item)[:40],
)
def test_wrong_values_are_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        override(DEFAULTS, changes)
    assert one_line(caught)


@pytest.mark.parametrize("key", [key for key in ALL if ALL[key] in (int, float)])
def test_every_number_has_its_bound(key):
    below = -1 if key in ZERO_ALLOWED else 0
    with pytest.raises(InputError, match=rf"^{key} must (be above 0|not be negative), got {below}"):
        override(DEFAULTS, {key: below})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MatchConfig(cm=-1.0), "match.cm must not be negative, got -1.0"),
        (lambda: MatchConfig(cm=math.nan), "match.cm must be a number, got nan"),
        (lambda: MatchConfig(cm="much"), "match.cm must be a number, got 'much'"),
        (lambda: MatchConfig(width=1.5), "match.width must be a whole number, got 1.5"),
        (lambda: MatchConfig(width=True), "match.width must be a whole number, got True"),
        (lambda: MatchConfig(statistics="all"), "match.statistics must be one of fresh, cached, got 'all'"),
        (lambda: SynConfig(momentum=1.0), "syn.momentum must be below 1, got 1.0"),
        (lambda: EvalProtocol(cutmix=2.0), "eval.cutmix is a share of the batches, at most 1, got 2.0"),
        (lambda: PoolConfig(epochs=3, epochs_kept=(4,)), r"pool.epochs_kept must lie in 0 to .*\(now 3\), got 4"),
        (lambda: attrs.evolve(PoolConfig(epochs_kept=(20,)), epochs=3), r"in 0 to pool.epochs \(now 3\), got 20"),
        (lambda: CheckpointConfig(every=0), "checkpoint.every must be above 0, got 0"),
        (lambda: RunConfig(ipc=0), "ipc must be above 0, got 0"),
        (lambda: RunConfig(scale="papr"), r"unknown scale 'papr'; did you mean 'paper'\?"),
    ],
)
def test_classes_built_directly_refuse_what_override_refuses(build, message):
    with pytest.raises(InputError, match=f"^.*{message}$"):
        build()


@hypothesis.settings(max_examples=300)
@given(
    key=st.sampled_from(list(ALL)),
    wrong=st.none()
    | st.text(max_size=5)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
def test_any_value_is_taken_or_is_an_input_error(key, wrong):
    try:
        changed = override(DEFAULTS, {key: wrong})
    except InputError as error:
        assert key in str(error) or "match.cc" in str(error) or "scale" in str(error)
    else:
        assert type(value(changed, key)) is type(value(DEFAULTS, key))


def test_the_exp_form_goes_with_the_other_scalings():
    for scaling in ("released", "per_image"):
        changed = override(DEFAULTS, {"match.cc_scaling": scaling, "match.cc_form": "exp"})
        assert from_yaml(to_yaml(changed)) == changed


# Presets


def test_the_paper_scale_is_the_papers_settings():
    config = preset("iid-dm", "cifar10", 10, "paper")
    assert (config.iterations, config.match.batch_real, config.match.width) == (20_000, 256, 128)
    assert (config.match.cm, config.match.cc, config.match.cc_scaling) == (0.01, 0.05, "released")
    assert (config.match.cc_form, config.match.cc_alpha, config.match.augmentation) == ("linear", 0.02, "auto")
    assert (config.syn.lr, config.syn.momentum, config.syn.init) == (1.0, 0.5, "real")
    assert (config.pool.network, config.pool.lr, config.pool.batch) == ("resnet18", 0.01, 256)
    assert (config.eval.epochs, config.eval.lr, config.eval.batch, config.eval.num_eval) == (1001, 0.01, 256, 5)
    assert config == RunConfig("iid-dm", "cifar10", 10, "paper")


def test_a_pool_at_the_papers_scale_costs_less_than_the_distillation_that_it_serves():
    """In operations, on CIFAR-10 at IPC 10: a convolution's backward pass counts twice, that for the images once."""
    config = preset("iid-dm", "cifar10", 10, "paper")
    matching, pretrained = (
        operations(name, config.match.width if name.startswith("convnet") else None)
        for name in (config.match.network, config.pool.network)
    )
    real, syn = 10 * config.match.batch_real, 10 * config.ipc
    distillation = config.iterations * ((real + 2 * syn) * matching + 2 * syn * pretrained)
    pool = config.pool.count * config.pool.epochs * 50_000 * 3 * pretrained
    assert pool < 0.75 * distillation
    official = preset("iid-dm", "cifar10", 10, "paper", {"pool.count": 1000, "pool.epochs": 40}).pool
    assert official.count * official.epochs * 50_000 * 3 * pretrained > 100 * distillation


def operations(name: str, width: int | None) -> int:
    """Of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter:
        build_network(name, width=width)(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def test_the_scales_of_the_design():
    assert list(SCALES) == ["paper", "laptop", "tour", "ci"]
    laptop = preset(scale="laptop")
    assert (laptop.match.width, laptop.match.batch_real, laptop.iterations, laptop.eval.epochs) == (64, 128, 1200, 400)
    for scale in ("laptop", "tour", "ci"):
        small = preset(scale=scale)
        assert small.match.cc_scaling == "relative" and small.pool.network == "convnet3"


@pytest.mark.parametrize("scale", SCALES)
def test_a_preset_is_its_table_and_what_was_asked_for(scale):
    config = preset("dm-cm", "shapes", 7, scale)
    assert (config.method, config.dataset, config.ipc, config.scale) == ("dm-cm", "shapes", 7, scale)
    for key in ALL:
        if key not in ("method", "dataset", "ipc", "scale"):
            expected = SCALES[scale].get(key, value(DEFAULTS, key))
            assert value(config, key) == expected, key
    assert from_yaml(to_yaml(config)) == config


def test_scales_differ_and_changes_win_over_them():
    assert len({fingerprint(preset(scale=scale)) for scale in SCALES}) == len(SCALES)
    config = preset(scale="tour", changes={"iterations": "9", "match.width": 16})
    assert (config.iterations, config.match.width, config.match.batch_real) == (9, 16, 64)


def test_presets_that_cannot_be():
    with pytest.raises(InputError, match=r"unknown scale 'labtop'; did you mean 'laptop'\?"):
        preset(scale="labtop")
    with pytest.raises(InputError, match="ipc must be above 0, got 0"):
        preset(ipc=0)
    with pytest.raises(InputError, match=r"did you mean 'iterations'\?"):
        preset(changes={"iteration": 3})


def test_a_preset_is_of_a_known_method_or_baseline():
    with pytest.raises(InputError, match=r"^unknown method 'iid-md'; did you mean 'iid-dm'\?$"):
        preset("iid-md")
    with pytest.raises(InputError, match=r"^unknown method 'nonsense'; choose one of dm, dm-cc"):
        resolved("nonsense")
    for name in (*BASES, *BASELINES):
        assert preset(name).method == name
    # settings of a method of one's own are still compared with the scale's
    assert differing(override(preset("dm"), {"method": "mine", "match.cm": 0.5})) == {"match.cm": "0.5"}


def sources(*arguments: object) -> dict[str, str]:
    return {setting.key: setting.source for setting in resolved(*arguments)}


def test_each_setting_says_where_it_comes_from():
    idm = sources("iid-idm", "tinyimagenet", 50, "paper", {"match.cc": "0.5", "seed": 3})
    assert list(idm) == list(ALL)
    assert {idm[key] for key in ("method", "dataset", "ipc", "scale")} == {"argument"}
    assert idm["match.cm"] == idm["syn.factor"] == "method"
    assert idm["match.network"] == idm["eval.networks"] == "dataset"
    assert idm["match.ce"] == idm["queue.steps"] == "published row"
    assert idm["match.cc"] == idm["seed"] == "change"  # over the method's own
    assert idm["match.width"] == idm["queue.size"] == "default"
    small = sources("iid-idm", "cifar10", 10, "laptop")
    assert small["match.cc"] == small["queue.every"] == "method at this scale"  # over the scale's own
    assert small["match.width"] == small["iterations"] == "scale" and small["match.cm"] == "method"
    # a table's value counts as the table's even where it is equal to the default
    assert SCALES["tour"]["pool.count"] == DEFAULTS.pool.count and sources("dm")["pool.count"] == "scale"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", [*BASES, *BASELINES])
def test_resolved_settings_are_those_of_the_preset(method, scale):
    for dataset in ("cifar10", "tinyimagenet", "validation:cifar100"):
        for changes in ({}, {"eval.networks": "convnet3, alexnet", "pool.epochs_kept": "1,2", "syn.lr": "5e-4"}):
            config, found = preset(method, dataset, 10, scale, changes), resolved(method, dataset, 10, scale, changes)
            assert {setting.key: setting.value for setting in found} == {key: value(config, key) for key in ALL}
            assert override(RunConfig(), {setting.key: setting.text for setting in found}) == config
            for setting in found:
                if setting.source == "default":
                    assert setting.value == value(DEFAULTS, setting.key)


# YAML


def test_yaml_is_a_tree_that_a_person_can_read_and_write():
    tree = yaml.safe_load(to_yaml(preset("dm", scale="ci")))
    assert tree["method"] == "dm" and tree["match"]["width"] == 8 and tree["eval"]["networks"] == ["convnet3"]
    assert list(tree) == [field.name for field in attrs.fields(RunConfig)]
    short = from_yaml("method: dm\nmatch: {cm: 5e-4, width: 16}\ncompute:\n  compile: off\n")
    assert (short.method, short.match.cm, short.match.width, short.compute.compile) == ("dm", 5e-4, 16, "off")
    assert short.iterations == 20_000
    assert from_yaml("{}") == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a YAML mapping of settings, got NoneType"),
        ("[1, 2]", "must be a YAML mapping of settings, got list"),
        ("dm", "got str"),
        ("method: [", "the config is not YAML"),
        ("a: b: c", "the config is not YAML"),
        ("match: 3", "match must be a mapping of settings, got 3"),
        ("match:\n", "match must be a mapping of settings, got None"),
        ("match: {cmm: 1}", r"unknown setting 'match.cmm'; did you mean 'match.cm'\?"),
        ("mathc: {cm: 1}", "unknown setting 'mathc'"),
        ("5: 6", "unknown setting '5'"),
        ("iterations: many", "iterations must be a whole number, got 'many'"),
        ("eval: {networks: 3}", "names separated by commas, got 3"),
        ("!!python/object/apply:os.system ['true']", "the config is not YAML"),
    ],
)
def test_yaml_that_is_wrong_is_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        from_yaml(text)
    assert one_line(caught)


# Fingerprints and suggestions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("iid-dm", "cifar10", 10, "paper"), "f39bd7eabd42"),
        (("dm", "cifar10-mini", 10, "tour"), "a4e89aaa4b7b"),
        (("iid-idm", "cifar100", 10, "paper"), "51af1224ee48"),
        (("idm-cc", "tinyimagenet", 50, "paper"), "d53bd4d4a17d"),
        (("dm-cm", "shapes", 2, "ci"), "a968d02d2ec2"),
        (("iid-idm", "svhn", 1, "laptop"), "2dd86389a95f"),
        (("random-mosaic", "cifar10", 10, "laptop"), "001151dfc66b"),
        (("whole", "validation:cifar10", 10, "tour"), "0d6e5d7e165d"),
        (
            (
                "iid-dm",
                "cifar10",
                10,
                "paper",
                {
                    "seed": 3,
                    "match.cm": "5e-4",
                    "eval.networks": "convnet3, alexnet",
                    "pool.epochs_kept": "1,3",
                    "compute.compile": "off",
                },
            ),
            "598484fbdbe7",
        ),
    ],
)
def test_fingerprints_stay_what_results_and_runs_have_recorded(arguments, expected):
    assert fingerprint(preset(*arguments)) == expected


def test_settings_that_came_later_leave_fingerprints_and_files_as_they_were():
    assert {key: value(DEFAULTS, key) for key in ADDED} == ADDED
    config = preset("iid-idm", "cifar100", 10, "paper")
    tree = yaml.safe_load(to_yaml(config))
    for key in ADDED:
        group, name = key.split(".")
        del tree[group][name]
    assert tree.pop("stages") == {}, "version 0.1.0 had no such group"
    text = yaml.safe_dump(tree, sort_keys=False)
    assert from_yaml(text) == config
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == fingerprint(config) == "51af1224ee48"


def test_a_fingerprint_names_the_settings():
    name = fingerprint(preset("dm"))
    assert len(name) == 12 and set(name) <= set("0123456789abcdef")
    assert name == fingerprint(from_yaml(to_yaml(preset("dm"))))
    assert name != fingerprint(preset("dm-cm")) != fingerprint(preset("dm-cm", changes={"match.cm": 0.011}))


def test_suggestions():
    assert suggest("iid-md", ["dm", "iid-dm"]) == "; did you mean 'iid-dm'?"
    assert suggest("what", ["dm", "iid-dm"]) == "; choose one of dm, iid-dm"


@pytest.mark.parametrize("key", [key for key in ALL if typing.get_origin(ALL[key]) is typing.Literal])
def test_every_choice_is_checked_where_it_is_declared(key):
    group, _, name = key.partition(".")
    with pytest.raises(InputError, match=f"^{key} must be one of .*, got 'nonsense'$"):
        attrs.evolve(getattr(DEFAULTS, group), **{name: "nonsense"})


def test_a_class_knows_the_name_of_its_settings():
    for entry in attrs.fields(RunConfig):
        group = getattr(DEFAULTS, entry.name)
        if attrs.has(type(group)):
            for field in attrs.fields(type(group)):
                with pytest.raises(InputError, match=rf"\b{entry.name}\.{field.name}\b"):
                    attrs.evolve(group, **{field.name: object()})


def test_every_setting_has_a_place_in_the_design():
    assert {key.split(".")[0] for key in ALL if "." in key} == {
        "match", "syn", "pool", "stages", "queue", "eval", "checkpoint", "compute"
    }  # fmt: skip
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("module", ["config", "errors", "files"])
def test_settings_are_read_without_torch(module):
    code = f"import sys, iidlib.{module}; print([n for n in ('torch', 'pandas', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
