"""Points of grids: products, zips and ranges, nested in each other."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iidlib.errors import InputError
from iidlib.experiments.points import MOST, points_of


def values(grid: object, name: str = "a") -> list:
    return [point[name] for point in points_of({"product": {name: grid}}, "g.yaml")]


def test_the_last_parameter_varies_fastest() -> None:
    found = points_of({"product": {"a": [1, 2], "b": ["x", "y"]}}, "g.yaml")
    assert found == [dict(zip("ab", row, strict=True)) for row in itertools.product([1, 2], "xy")]


def test_nodes_are_nested() -> None:
    node = {"ipc": [1, 10], "zip": {"cc": [0, 1], "cm": [2, 3]}}
    assert points_of({"product": node}, "g.yaml") == [
        {"ipc": ipc, "cc": cc, "cm": cm} for ipc in (1, 10) for cc, cm in ((0, 2), (1, 3))
    ]
    zipped = {"n": [1, 2, 3, 4], "product": {"a": [1, 2], "b": [5, 6]}}
    assert points_of({"zip": zipped}, "g.yaml") == [
        {"n": n, "a": a, "b": b} for n, (a, b) in zip((1, 2, 3, 4), itertools.product((1, 2), (5, 6)), strict=True)
    ]


def test_product_and_zip_beside_each_other_are_combined() -> None:
    found = points_of({"product": {"a": [1, 2]}, "zip": {"b": [3, 4], "c": [5, 6]}}, "g.yaml")
    assert len(found) == 4 and found[0] == {"a": 1, "b": 3, "c": 5}
    several = {"product": [{"a": [1, 2]}, {"zip": {"b": [1, 2]}}, {"zip": {"c": [1, 2, 3]}}]}
    assert len(points_of(several, "g.yaml")) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"from": 0, "to": 10, "step": 2}, [0, 2, 4, 6, 8, 10]),
        ({"from": 0, "to": 9, "step": 2}, [0, 2, 4, 6, 8]),
        ({"from": 3, "to": 1, "step": -1}, [3, 2, 1]),
        ({"from": 0, "to": 0.3, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
        ({"from": 5, "to": 5, "step": 1}, [5]),
        ({"linear": [0, 1], "num": 3}, [0.0, 0.5, 1.0]),
        ({"log10": [-3, 1], "num": 5}, [0.001, 0.01, 0.1, 1.0, 10.0]),
        ({"log10": [0, -1], "num": 2}, [1.0, 0.1]),
    ],
)
def test_ranges_have_the_values_that_one_would_write(grid: dict, expected: list) -> None:
    found = values(grid)
    assert found == expected and list(map(type, found)) == list(map(type, expected))


WRONG = {
    "empty": ({"product": {}}, "product in the grid g.yaml must map parameters to lists"),
    "no list": ({"product": {"a": 1}}, "a is 1"),
    "empty list": ({"zip": {"a": []}}, r"a is \[\]"),
    "lengths": ({"zip": {"a": [1], "b": [1, 2]}}, r"of one length, got \[1, 2\]"),
    "nested lengths": ({"product": {"zip": {"a": [1], "b": [1, 2]}}}, r"of one length, got \[1, 2\]"),
    "twice": ({"product": {"a": [1], "zip": {"a": [1]}}}, "gives 'a' twice"),
    "no step": ({"product": {"a": {"from": 0, "to": 1}}}, "the range of a .* must be {from, to, step}"),
    "step of 0": ({"product": {"a": {"from": 0, "to": 1, "step": 0}}}, "has no values"),
    "wrong way": ({"product": {"a": {"from": 0, "to": 1, "step": -1}}}, "has no values"),
    "text": ({"product": {"a": {"from": "x", "to": 1, "step": 1}}}, "has no values"),
    "boolean": ({"product": {"a": {"from": True, "to": 3, "step": 1}}}, "has no values"),
    "not finite": ({"product": {"a": {"from": 0, "to": math.inf, "step": 1}}}, "has no values"),
    "one of several": ({"product": {"a": {"log10": [0, 1], "num": 1}}}, "has no values"),
    "huge": ({"product": {"a": {"log10": [0, 999], "num": 2}}}, "has no values"),
    "mistyped": ({"product": {"a": {"lgo10": [0, 1], "num": 2}}}, "did you mean 'log10'"),
    "too many": (
        {"product": {"a": {"from": 1, "to": 1000, "step": 1}, "b": {"from": 1, "to": 1000, "step": 1}}},
        "split",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_grid_is_refused_in_one_line(case: str) -> None:
    grid, message = WRONG[case]
    with pytest.raises(InputError, match=message) as error:
        points_of(grid, "g.yaml")
    assert "\n" not in str(error.value)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_a_range_of_whole_numbers_is_that_of_python_with_its_end(first: int, last: int, step: int) -> None:
    expected = list(range(first, last + (1 if step > 0 else -1), step))
    if expected:
        assert values({"from": first, "to": last, "step": step}) == expected
    else:
        with pytest.raises(InputError, match="has no values"):
            values({"from": first, "to": last, "step": step})


def test_a_long_range_costs_no_memory() -> None:
    for grid in (
        {"from": 0, "to": 1e300, "step": 1},
        {"from": 0, "to": 10**30, "step": 1},
        {"from": 1, "to": MOST + 1, "step": 1},
        {"linear": [0, 1], "num": 10**12},
    ):
        with pytest.raises(InputError, match=f"no values, or too many|more than {MOST}"):
            values(grid)
