"""iidlib.config.uses: a weight without effect is refused, by the name of the method that has the term."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from iidlib import load_dataset
from iidlib.cli import main
from iidlib.config import MatchConfig, RunConfig, from_yaml, override, preset, resolved, to_yaml
from iidlib.config.recipes import BASELINES, BASES
from iidlib.config.uses import WEIGHTS, uses_pool, without_effect
from iidlib.distillation import METHODS, distill
from iidlib.errors import InputError


def test_the_table_is_that_of_the_methods() -> None:
    for key, methods in WEIGHTS.items():
        assert set(methods) == {name for name, method in METHODS.items() if key[6:] in method.terms}
    assert {key[6:] for key in WEIGHTS} == {term for method in METHODS.values() for term in method.terms}


@pytest.mark.parametrize("method", [*BASES, *BASELINES])
@pytest.mark.parametrize("key", WEIGHTS)
def test_a_weight_is_taken_by_the_methods_that_have_its_term(method: str, key: str) -> None:
    for given in (0.02, "0.02"):
        if method in WEIGHTS[key]:
            assert getattr(preset(method, changes={key: given}).match, key[6:]) == 0.02
            assert getattr(override(preset(method), {key: given}).match, key[6:]) == 0.02
            continue
        verb = "has" if len(WEIGHTS[key]) == 1 else "have"
        for build in (preset, resolved):
            with pytest.raises(
                InputError, match=f"^{key}=0.02 has no effect on {method}: only .* {verb} this term; take "
            ):
                build(method, changes={key: given})
        with pytest.raises(InputError, match=f"^{key}=0.02 has no effect on {method}: "):
            override(preset(method), {key: given})
    assert getattr(preset(method, changes={key: 0}).match, key[6:]) == 0  # as it is


def test_the_message_names_the_nearest_method() -> None:
    for method, key, nearest in (
        ("dm", "match.cm", "dm-cm"), ("idm", "match.cm", "idm-cm"), ("dm-cm", "match.cc", "iid-dm"),
        ("dm", "match.ce", "idm"), ("random", "match.cc", "dm-cc"), ("iid-dm", "match.ce", "iid-idm"),
        ("dm-cc", "match.ce", "idm-cc"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"take {nearest}, or leave {key} out$"):
            preset(method, changes={key: 0.5})


def test_the_message_names_no_method_where_none_combines_the_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "match.cm", ("dm-cm",))
    with pytest.raises(InputError, match=r"on idm: only dm-cm has this term; leave match.cm out$"):
        preset("idm", changes={"match.cm": 0.5})


def test_only_what_the_user_gave_counts() -> None:
    for scale in ("paper", "tour"):
        for method in BASES:  # a scale sets weights that not every method uses
            config = preset(method, scale=scale)
            assert from_yaml(to_yaml(config)) == config
            assert override(config, {"match.width": 8}).match.width == 8
            assert override(config, {each.key: each.text for each in resolved(method, scale=scale)}) == config
    with pytest.raises(InputError, match=r"match.cc=0.7 has no effect on dm"):
        override(preset("iid-dm"), {"method": "dm", "match.cc": 0.7})
    own = override(preset("dm"), {"method": "mine", "match.cm": 0.5})
    assert own.match.cm == 0.5


def test_distill_refuses_a_weight_that_was_put_into_the_settings_by_hand() -> None:
    dataset = load_dataset("shapes")
    config = preset("dm", "shapes", 2, "ci")
    with pytest.raises(InputError, match=r"^match.cm=0.7 has no effect on dm: .* take dm-cm"):
        distill(attrs.evolve(config, match=attrs.evolve(config.match, cm=0.7)), dataset)
    with pytest.raises(InputError, match=r"^match.cc=0.7 has no effect on dm"):
        distill(RunConfig(method="dm", dataset="shapes", ipc=2, scale="ci", match=MatchConfig(cc=0.7)), dataset)
    # the settings of another method, under the name of this one: nobody gave its weights
    borrowed = attrs.evolve(preset("iid-idm", "shapes", 2, "ci", {"queue.batch": 8}), method="dm")
    assert len(distill(borrowed, dataset).metrics)


CC, CM, MMD, QUEUE, STAGES, POOL = (
    "match.cc_form", "match.cm_blocks", "match.mmd_form", "queue.lr", "stages.schedule", "pool.epochs"
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "changes", "unused"),
    [
        ("dm", {}, [POOL, QUEUE, STAGES, CC, CM, MMD]),
        ("dm-cc", {}, [QUEUE, STAGES, CM, MMD]),
        ("dm-cm", {}, [POOL, QUEUE, STAGES, CC, MMD]),
        ("idm", {}, [POOL, STAGES, CC, CM, MMD]),
        ("iid-idm", {}, [STAGES, MMD]),
        ("iid-plus", {"match.cc": 0.1, "match.mmd": 1}, [QUEUE]),
        ("dm", {"match.source": "stages", "pool.epochs_kept": (1,)}, [QUEUE, CC, CM, MMD]),
        ("dm", {"match.source": "queue"}, [POOL, STAGES, CC, CM, MMD]),
        ("idm", {"match.source": "random"}, [POOL, QUEUE, STAGES, CC, CM, MMD, "match.ce"]),
        ("idm", {"match.source": "stages", "pool.epochs_kept": (1,)}, [QUEUE, CC, CM, MMD]),
        ("iid-plus", {"match.source": "random", "match.cc": 0.1}, [QUEUE, STAGES, "match.ce"]),
        ("iid-plus", {"match.source": "queue", "match.cc": 0.1}, [STAGES]),
        ("iid-plus", {"match.cc": 0, "match.mmd": 0}, [QUEUE, CC, MMD]),
        ("iid-plus", {"match.source": "random", "match.cc": 0, "match.mmd": 0}, [QUEUE, STAGES, CC, MMD, "match.ce"]),
        (
            "iid-plus",
            {"match.source": "random", "match.cc": 0, "match.mmd": 0, "syn.init": "real"},
            [POOL, QUEUE, STAGES, CC, MMD, "match.ce"],
        ),
        ("iid-idm", {"match.cc": 0, "match.cm": 0}, [POOL, STAGES, CC, CM, MMD]),
        ("dm", {"syn.init": "centres"}, [QUEUE, STAGES, CC, CM, MMD]),
        ("herding", {}, []),
        ("mine", {}, []),
    ],
)
def test_settings_without_effect_are_found(method: str, changes: dict[str, Any], unused: list[str]) -> None:
    config = attrs.evolve(override(preset("dm" if method == "mine" else method), changes), method=method)
    # of a weight that the method does not have `check_weights` tells
    keys = ["match.source", POOL, QUEUE, STAGES, CC, CM, MMD, "syn.lr", "eval.lr", "match.cc", "match.ce"]
    keys = keys if method in WEIGHTS["match.ce"] else keys[:-1]
    assert without_effect(config, keys) == unused


@pytest.mark.parametrize(
    ("method", "changes", "unused"),
    [
        ("iid-plus", {}, ["match.cc_alpha", "match.cc_beta"]),
        ("iid-plus", {"pool.epochs_kept": ""}, ["stages.interpolate", "match.cc_alpha", "match.cc_beta"]),
        ("iid-plus", {"match.cc_form": "exp", "match.cc_scaling": "released"}, ["match.cc_real"]),
        ("dm", {"syn.init": "centres", "match.source": "random"}, [
            "stages.interpolate", "pool.count", "pool.epochs_kept", "match.cc_alpha", "match.cc_beta", "match.cc_real",
            "match.cm_blocks",
        ]),
        ("iid-dm", {"ipc": 1}, [
            "stages.interpolate", "pool.count", "pool.epochs_kept", "pool.lr", "match.cc_alpha", "match.cc_beta",
            "match.cc_real", "match.cm_blocks",
        ]),
    ],
)  # fmt: skip
def test_settings_of_what_is_not_looked_at_have_no_effect(
    method: str, changes: dict[str, Any], unused: list[str]
) -> None:
    keys = ["stages.interpolate", "pool.count", "pool.epochs_kept", "pool.lr"]
    keys += ["match.cc_alpha", "match.cc_beta", "match.cc_real", "match.cm_blocks"]
    config = override(preset(method), changes)
    assert without_effect(config, keys) == unused
    if changes.get("ipc") == 1:
        assert not uses_pool(config) and uses_pool(override(config, {"syn.factor": 2}))


def test_copies_on_the_way_say_which_saved_pool_fits() -> None:
    config = preset("dm", changes={"syn.init": "centres", "pool.path": "pool"})
    assert without_effect(config, ["pool.count", "pool.epochs_kept"]) == ["pool.count"]


def test_frequencies_are_of_one_form() -> None:
    for form, unused in (("gaussian", ["match.mmd_frequencies"]), ("characteristic", [])):
        config = preset("iid-plus", changes={"match.mmd": 1, "match.mmd_form": form})
        assert without_effect(config, ["match.mmd_frequencies", "match.mmd_form"]) == unused


def test_distill_says_which_settings_have_no_effect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--dataset", "shapes", "--ipc", "2", "--scale", "ci", "--no-evaluate"]
    for number, (changes, reported) in enumerate(
        ((["pool.epochs=3", "syn.lr=2", "queue.lr=1"], True), (["syn.lr=2"], False)),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["distill", "dm", *tiny, "--out", str(number), *(f"--set={text}" for text in changes)])
        assert ("without effect on dm: pool.epochs, queue.lr\n" in capsys.readouterr().out) is reported
