"""The examples of docstrings give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import iidlib

PACKAGE = Path(iidlib.__file__).parent
WITH_EXAMPLES = sorted(
    "iidlib." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf8")
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_a_module_give_what_they_show(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module), report=True)
    assert tried, f"{module} holds an example that is not found"
    assert not failed, f"{failed} of {tried} lines give something else; see the captured output"


@pytest.mark.parametrize(
    "name",
    [
        "losses.mean_matching",
        "losses.class_centralization",
        "losses.covariance_matching",
        "distillation.distill",
        "evaluation.evaluate",
        "synthetic.SyntheticSet",
        "data.load_dataset",
        "rng.stream",
    ],
)
def test_what_a_newcomer_calls_first_has_an_example(name: str) -> None:
    module, _, own = name.rpartition(".")
    assert ">>> " in (getattr(importlib.import_module(f"iidlib.{module}"), own).__doc__ or "")
