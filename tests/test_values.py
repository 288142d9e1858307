"""iidlib.config.values: every wrong value of every setting is converted or refused in one line, never half taken."""

import math
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iidlib.config import (
    CheckpointConfig,
    ComputeConfig,
    EvalProtocol,
    MatchConfig,
    PoolConfig,
    QueueConfig,
    RunConfig,
    SynConfig,
    fingerprint,
    from_yaml,
    override,
    preset,
    resolved,
    settings,
    to_yaml,
)
from iidlib.config.values import converted
from iidlib.errors import InputError

GROUPS = (MatchConfig, SynConfig, PoolConfig, QueueConfig, EvalProtocol, CheckpointConfig, ComputeConfig, RunConfig)
WRONG: list[Any] = [
    None, True, False, np.True_, 0, 1, -1, 3, 5, 10**20, 10**400, -(10**400), 1.5, 5.0, -0.0, 0.1, 1e39, 1e-39, 1e-320,
    -1e300, math.nan, math.inf, -math.inf, np.float32(0.1), np.float64(0.25), np.float64("nan"), np.int8(3),
    np.uint64(2**64 - 1), np.array(4), np.array([4]), np.array([[1, 2]]), np.array([]), torch.tensor(2), torch.ones(3),
    torch.tensor(0.5, requires_grad=True), Decimal("0.5"), Fraction(1, 2), 1 + 2j, "", " ", "12", " 5 ", "5.0", "1e3",
    "1_000", "1__0", "_1", "0x10", "0b1", "nan", "inf", "-inf", "1e39", "1e-400", "1e400", "1e999999999", "1e5000000",
    "٣", "\uff11\uff12", "²", "1,5", "1 000", "+7", "-7", "--7", "1.", ".5", "convnet3", "convnet3,alexnet", "a,,b",
    ",", "on", "off",
    "real", "paper", "tour", "x" * 5000, "\x00", "\ud800", "\u202e", "\n", "a\nb", "\U0001f4a9", "{a: b}", "&a",
    "!!int 3", "null", "~", "2001-12-14", b"12", bytearray(b"1"), [], [1], [1.5], ["1"], ["a"], ["a", "a"],
    [None], [[1]], ["a,b"],     (), (1,), (1, 1), ("convnet3",), (2, "5"), range(1, 4), {1, 2}, frozenset(), {},
    {"cm": 1}, {"cmm": 1},
    {1: 2}, {"width": -1}, Path("a/b"), Path(), object(), int, np.float32, MatchConfig(), RunConfig, len, lambda: 1,
    np.str_("real"), np.array(["convnet3"]), np.datetime64("2020-01-01"), ..., NotImplemented, RunConfig(),
]  # fmt: skip
"""What people and programs give in the place of a number, a text, a choice or a list."""

NAMES = {
    type(value): name for name, value in attrs.asdict(RunConfig(), recurse=False).items() if attrs.has(type(value))
}
"""Names of the groups in the settings of a run."""

FIELDS = [(kind, entry.name) for kind in GROUPS for entry in attrs.fields(kind)]


def key_of(kind: type, name: str) -> str:
    return f"{NAMES[kind]}.{name}" if kind in NAMES else name


def whole_config(kind: type, built: Any) -> RunConfig:
    """The settings of a run that hold a group."""
    return built if kind is RunConfig else RunConfig(**{NAMES[kind]: built})


def reported(error: InputError, key: str) -> bool:
    """Whether a message is one line that names the setting, and of a length that is read."""
    text = str(error)
    return "\n" not in text and len(text) < 1100 and (key in text or key.split(".")[-1] in text)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[key_of(*field) for field in FIELDS])
def test_any_value_of_any_field_is_converted_or_refused_in_one_line(kind: type, name: str) -> None:
    plain = type(getattr(kind(), name))
    for value in WRONG:
        try:
            built = kind(**{name: value})
        except InputError as error:
            assert reported(error, key_of(kind, name)), (value, str(error))
            continue
        assert type(getattr(built, name)) is plain, f"{value!r} became {getattr(built, name)!r}"
        config = whole_config(kind, built)
        again = from_yaml(to_yaml(config))
        assert again == config and fingerprint(again) == fingerprint(config), value


@pytest.mark.parametrize("key", settings())
def test_override_takes_and_refuses_what_the_classes_do(key: str) -> None:
    group, _, name = key.rpartition(".")
    kind = type(getattr(RunConfig(), group)) if group else RunConfig
    start = RunConfig(method="iid-plus")  # which has every term
    for value in WRONG:
        try:
            expected = kind(**{name: value})
        except InputError as error:
            with pytest.raises(InputError) as caught:
                override(start, {key: value})
            assert str(caught.value) == str(error)
        else:
            changed = override(start, {key: value})
            assert getattr(getattr(changed, group) if group else changed, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        ("1e3", 1000, 1000.0),
        ("1_000", 1000, 1000.0),
        (" 5 ", 5, 5.0),
        ("5.0", 5, 5.0),
        ("+7", 7, 7.0),
        ("1e18", 10**18, 1e18),
        ("9007199254740993", 2**53 + 1, 2.0**53),
        ("9007199254740993.0", 2**53 + 1, 2.0**53),
        (np.int16(3), 3, 3.0),
        (np.float32(0.5), None, 0.5),
        (torch.tensor(2), 2, 2.0),
        (Fraction(1, 4), None, 0.25),
        (-0.0, 0, 0.0),
        ("0.1", None, 0.1),
        ("0x10", None, None),
        ("1__0", None, None),
        ("nan", None, None),
        ("inf", None, None),
        ("\uff11\uff12", None, None),
        ("٣", None, None),
        ("1,5", None, None),
        ("1e400", None, None),
        ("1e999999999", None, None),
        (1e39, None, None),
        ("1e39", None, None),
        (10**20, None, 1e20),
        (1e-45, None, None),
        ("1e-400", None, None),
        (np.True_, None, None),
        (np.array([1]), None, None),
        (None, None, None),
    ],
    ids=repr,
)
def test_numbers_are_read_exactly_or_refused_by_name(value: Any, whole: int | None, number: float | None) -> None:
    for build, key, kept in (
        (lambda given: RunConfig(seed=given).seed, "seed", whole),
        (lambda given: MatchConfig(cm=given).cm, "match.cm", number),
    ):
        if kept is None:
            with pytest.raises(InputError, match=f"^{key} must be "):
                build(value)
        else:
            found = build(value)
            assert found == kept and type(found) is type(kept) and math.copysign(1, found) == 1


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (lambda: RunConfig(match={"cm": 1, "width": "8"}).match, MatchConfig(cm=1.0, width=8)),
        (lambda: EvalProtocol(networks="convnet3").networks, ("convnet3",)),
        (lambda: EvalProtocol(networks=["convnet3", "alexnet"]).networks, ("convnet3", "alexnet")),
        (lambda: EvalProtocol(networks=np.array(["convnet3"])).networks, ("convnet3",)),
        (lambda: PoolConfig(path=Path("a") / "b").path, str(Path("a") / "b")),
        (lambda: PoolConfig(epochs_kept=[1, 2]).epochs_kept, (1, 2)),
        (lambda: PoolConfig(epochs_kept=np.array([1, 2])).epochs_kept, (1, 2)),
        (lambda: PoolConfig(epochs_kept=range(1, 4)).epochs_kept, (1, 2, 3)),
        (lambda: PoolConfig(epochs_kept="1,2").epochs_kept, (1, 2)),
        (lambda: PoolConfig(epochs_kept=5).epochs_kept, (5,)),
        (lambda: ComputeConfig(graph=False).graph, "off"),
        (lambda: ComputeConfig(compile=True).compile, "on"),
        (lambda: RunConfig(ipc=np.int64(3)).ipc, 3),
        (lambda: from_yaml("compute: {graph: off}").compute.graph, "off"),
        (lambda: preset("dm", ipc="7").ipc, 7),
        (lambda: preset("dm", ipc=np.int64(7), changes={"syn.lr": np.float32(0.5)}).syn.lr, 0.5),
    ],
)
def test_values_are_converted_by_rule(build: Any, kept: Any) -> None:
    found = build()
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MatchConfig(network=3), "match.network must be text, got 3"),
        (lambda: RunConfig(match=None), "match must be a MatchConfig or a mapping of its settings, got None"),
        (lambda: RunConfig(match=SynConfig()), r"match must be a MatchConfig or .*, got SynConfig\(.*"),
        (lambda: RunConfig(match={"cmm": 1}), r"unknown setting 'match.cmm'; did you mean 'cm'\?"),
        (lambda: RunConfig(match={"cm": -1}), "match.cm must not be negative, got -1.0"),
        (lambda: EvalProtocol(networks=()), r"eval.networks must be names separated by commas, got \(\)"),
        (lambda: EvalProtocol(networks="a,a"), "eval.networks must be names separated by commas, each once, got 'a,a'"),
        (
            lambda: EvalProtocol(networks="ConvNet,convnet3"),
            "eval.networks must be names separated by commas, each once, got 'convnet3,convnet3'",
        ),
        (lambda: PoolConfig(epochs_kept=(1.5,)), "pool.epochs_kept must be a whole number, got 1.5"),
        (lambda: PoolConfig(count=10**18), r"pool.count is a number of networks, at most 1000000, got 10+"),
        (lambda: MatchConfig(cm=math.inf), "match.cm must be a number, got inf"),
        (lambda: MatchConfig(batch_real=10**20), r"match.batch_real must be at most 9223372036854775807 .*"),
        (lambda: SynConfig(lr=1e39), r"syn.lr must be at most 3.4e\+38 \(float32 holds no larger number\), got 1e\+39"),
        (lambda: SynConfig(lr=1e-40), r"syn.lr must be 0 or at least 1.2e-38 \(.* is 0 in float32\), got 1e-40"),
        (lambda: RunConfig(scale=[]), r"scale must be text, got \[\]"),
        (lambda: RunConfig(ipc=True), "ipc must be a whole number, got True"),
        (lambda: override(RunConfig(), {1: 2}), "unknown setting 1; choose one of .*"),
        (lambda: override(RunConfig(), ["match.cm"]), r"changes must be a mapping such as .*, got \['match.cm'\]"),
        (lambda: override({}, {"match.cm": 1}), "settings must be a RunConfig, such as preset returns, got dict"),
        (lambda: preset(None), "method must be text, got None"),
        (lambda: preset([]), r"method must be text, got \[\]"),
        (lambda: preset("dm", None), "dataset must be text, got None"),
        (lambda: preset("dm", scale=None), "scale must be text, got None"),
        (lambda: preset("dm", scale={}), r"scale must be text, got \{\}"),
        (lambda: preset("dm", ipc="many"), "ipc must be a whole number, got 'many'"),
        (lambda: preset("dm", changes=[]), r"changes must be a mapping such as .*, got \[\]"),
        (lambda: resolved("dm", changes="match.cm=1"), "changes must be a mapping such as .*, got 'match.cm=1'"),
        (lambda: to_yaml(None), "settings must be a RunConfig, such as preset returns, got NoneType"),
        (lambda: fingerprint(MatchConfig()), "settings must be a RunConfig, such as preset returns, got MatchConfig"),
        (lambda: from_yaml(None), "the config must be text, got None"),
    ],
)  # fmt: skip
def test_wrong_types_from_python_are_one_line(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        build()


def test_equal_settings_have_one_fingerprint_however_they_were_given() -> None:
    given_as = (1, 1.0, "1", "1e0", "1_0e-1", np.float32(1), np.int64(1), torch.tensor(1.0), Fraction(1))
    configs = [RunConfig(match=MatchConfig(cm=value)) for value in given_as]
    assert len({fingerprint(config) for config in configs}) == 1 and len(set(configs)) == 1
    assert fingerprint(RunConfig(match=MatchConfig(cm=0.0))) == fingerprint(RunConfig(match=MatchConfig(cm=-0.0)))
    # as it was recorded before values were converted
    assert fingerprint(RunConfig()) == "2b9c5a322568"


def test_a_converter_of_the_field_itself_comes_after_the_rule() -> None:
    @attrs.frozen(field_transformer=converted)
    class Named:
        _prefix = "x."
        name: str = attrs.field(default="A", converter=str.lower)

    assert Named(Path("B")).name == "b"


def test_a_setting_of_a_type_without_a_rule_is_found_when_it_is_declared() -> None:
    with pytest.raises(TypeError, match="have no rule"):

        @attrs.frozen(field_transformer=converted)
        class Odd:
            _prefix = "x."
            found: dict[str, int] = attrs.field(factory=dict)


@hypothesis.settings(max_examples=300)
@given(text=st.text(max_size=20))
def test_any_text_survives_yaml(text: str) -> None:
    config = RunConfig(dataset=text, pool=PoolConfig(path=text))
    assert (config.dataset, from_yaml(to_yaml(config))) == (text, config)


PIECES = [
    *map(str, range(10)),
    *"+-_.eE,x \t\n٣²\x00\ud800",
    "nan",
    "inf",
    "1e",
    "0x",
    "convnet3",
    "auto",
    "real",
    "e400",
]


def test_thousands_of_random_settings_are_taken_exactly_or_refused_in_one_line() -> None:
    draw, keys, taken = random.Random(16), list(settings()), 0
    for _ in range(6000):
        key = draw.choice(keys)
        if draw.random() < 0.1:
            at = draw.randrange(len(key))
            key = key[:at] + draw.choice([".", "", "é", key[at] * 2]) + key[at + 1 :]
        text = "".join(draw.choice(PIECES) for _ in range(draw.randrange(6)))
        try:
            changed = override(RunConfig(method="iid-idm"), {key: text})
        except InputError as error:
            assert reported(error, key), (key, text, str(error))
            continue
        taken += 1
        group, _, name = key.rpartition(".")
        found = getattr(getattr(changed, group) if group else changed, name)
        if type(found) in (int, float):
            said = Decimal(text.strip())  # what a reader of the text would say
            assert said == found if type(found) is int else float(said) == found
        assert from_yaml(to_yaml(changed)) == changed
    assert taken > 500
