"""iidlib.experiments.effects: gains of parts and costs, from no rows, from some, and from all."""

from typing import Any

import pandas as pd
import pytest

from iidlib.config import override, preset
from iidlib.errors import InputError
from iidlib.experiments import EXPERIMENTS, costs_on_one_device, distillation_costs, gains_of_parts, headline
from iidlib.experiments.cells import MATCHING, PARTS, Cell
from iidlib.experiments.results import protocol_text
from tests.result_rows import rows

CELLS = EXPERIMENTS["plus"].cells
NOTHING = pd.DataFrame()


def of_cell(cell: Cell, accuracy: float, **more: Any) -> dict[str, Any]:
    """A row of a cell at scale laptop, as a run of it leaves it."""
    config = preset(cell.method, cell.dataset, cell.ipc, "laptop", cell.changes("laptop"))
    settings = " ".join(f"{key}={value}" for key, value in cell.changes("laptop").items())
    protocol = protocol_text(config.eval, cell.method, config.syn.factor)
    return {"method": cell.method, "accuracy": accuracy, "settings": settings, "protocol": protocol} | more


def measured(cells: list[Cell], seeds: int, without: float = 2.0) -> pd.DataFrame:
    """Rows in which every part that is left out costs `without` points, a little more or less with the seed."""
    usual = preset("iid-plus", "cifar10", 10, "laptop")
    acts = [key for key, value in (*CELLS[1].settings, ("match.mean", "0")) if override(usual, {key: value}) != usual]
    return rows(
        *(
            of_cell(cell, 56.0 - without * (1 + 0.01 * seed) * len({*acts} & {*dict(cell.settings)}), seed=seed)
            for cell in cells
            for seed in range(seeds)
        )
    )


def test_the_parts_are_those_of_the_experiment() -> None:
    assert tuple(dict(CELLS[1].settings)) == tuple(PARTS) and CELLS[0].settings == ()
    assert [dict(cell.settings).keys() for cell in CELLS[2 : 2 + len(PARTS)]] == [{part} for part in PARTS]
    matching = CELLS[2 + len(PARTS) : -len(PARTS)]
    assert [tuple(dict(cell.settings)) for cell in matching] == [*MATCHING.values()]
    assert all(cell.settings_at("laptop").match.mean == 0 for cell in matching)
    for part, cell in zip(PARTS, CELLS[-len(PARTS) :], strict=True):
        assert part not in dict(cell.settings)


def in_use(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["note"] != "not in use"]


def test_without_rows_every_part_is_missing() -> None:
    table = gains_of_parts("laptop", NOTHING)
    assert len(table) == 2 * len(PARTS) + len(MATCHING) and set(table["group"]) == {"left out", "added alone"}
    assert table[["mean", "low", "high"]].isna().all(axis=None)
    assert set(in_use(table)["text"]) == {"missing"}


def test_a_part_is_measured_by_the_cells_with_and_without_it() -> None:
    table = in_use(gains_of_parts("laptop", measured(list(CELLS), seeds=3)))
    assert set(table["seeds"]) == {3} and set(table["note"]) == {""}
    apart = table["part"].map(lambda name: len(MATCHING.get(name, "1")))  # settings; also where a part needs another
    assert table["mean"].round(2).equals((2.02 * apart).round(2))
    assert (table["low"] > 0).all() and table["text"].iloc[0] == "+2.0 from +2.0 to +2.1 (3)"


def test_a_part_that_harms_has_a_negative_gain() -> None:
    table = in_use(gains_of_parts("laptop", measured(list(CELLS), seeds=3, without=-1.0)))
    assert (table["high"] < 0).all()


def test_what_is_measured_in_part_is_reported_in_part() -> None:
    some = pd.concat([measured([CELLS[0], CELLS[2]], seeds=3), measured([CELLS[4]], seeds=2)])
    one = pd.concat([measured([CELLS[0]], seeds=3), measured([CELLS[3]], seeds=1)])
    alone = gains_of_parts("laptop", one).set_index("note").loc["1 seed"]
    assert alone["text"] == "+2.0 (1 seed)" and pd.isna(alone["low"])
    table = gains_of_parts("laptop", some).set_index(["group", "part"])
    assert table.loc[("left out", "mosaics"), "seeds"] == 3
    assert table.loc[("left out", "networks of the stages"), "text"].endswith(" (2 seeds)")
    assert table.loc[("added alone", "mosaics"), "text"] == "missing"


def test_a_part_without_weight_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from iidlib.config import recipes

    monkeypatch.setitem(recipes.PLUS_SCALES, "laptop", recipes.PLUS_SCALES["laptop"] | {"match.cc": 0.0, "match.cm": 1})
    table = gains_of_parts("laptop", measured(list(CELLS), seeds=3)).set_index("part")
    assert set(table.loc["class centralization", "text"]) == {"not in use"}
    assert table.loc["class centralization", "mean"].isna().all()
    assert set(table.loc["covariance matching", "note"]) == {""}


def timed(method: str, **more: Any) -> dict[str, Any]:
    return of_cell(Cell("cifar10", method, 10), 50.0, seconds_per_iteration=0.5, device="cpu (2 threads)") | more


def test_costs_are_seconds_of_a_distillation_with_and_without_its_pool() -> None:
    own = rows(timed("dm"), timed("iid-plus", pool_seconds=480.0), timed("iid-plus", seed=1, accuracy=52.0))
    table = distillation_costs("laptop", ["iid-plus", "idm", "dm"], rows=own)
    assert table["label"].tolist() == ["iid-plus", "iid-plus", "dm"] and table["seconds"].eq(600).all()
    assert table["pool_seconds"].fillna(-1).tolist() == [480, -1, 0], "not said, and none"
    assert table["accuracy"].tolist() == [50, 52, 50] and table["device"].eq("cpu (2 threads)").all()


def test_costs_of_cells_are_theirs_alone() -> None:
    usual, short, paper = (Cell("cifar10", "iid-plus", 10, **own) for own in (
        {}, {"settings": (("iterations", "50%"), ("pool.count", "1"))}, {"evaluation": "paper"},
    ))  # fmt: skip
    alone = Cell("cifar10", "iid-plus", 1, settings=CELLS[1].settings)
    whole = protocol_text(paper.protocol_of(preset("iid-plus", scale="laptop")), "iid-plus", 2)
    own = rows(
        timed("iid-plus", pool_seconds=480.0),
        timed("iid-plus", pool_seconds=160.0, iterations=600, settings="pool.count=1", accuracy=48.0),
        timed("iid-plus", pool_seconds=480.0, protocol=whole, epochs=1001, accuracy=55.0),
        of_cell(alone, 30.0, ipc=1, seconds_per_iteration=0.1),
    )
    table = distillation_costs("laptop", [paper, short, usual, alone], rows=own)
    assert table["accuracy"].tolist() == [55, 48, 50, 30]
    assert table["ipc"].tolist() == [10, 10, 10, 1] and table["pool_seconds"].tolist() == [480, 160, 480, 0]
    assert table["label"].tolist()[:3] == ["iid-plus", "iid-plus iterations=50% pool.count=1", "iid-plus"]


def test_costs_are_compared_on_the_device_that_most_methods_have() -> None:
    alone, two = {"device": "cpu (1 threads)"}, {"device": "cpu (2 threads)"}
    own = rows(timed("dm", **two), timed("dm", seed=1, **alone), timed("iid-plus", **alone), timed("idm", **two),
               timed("iid-idm", **alone))  # fmt: skip
    costs = distillation_costs("laptop", ["dm", "iid-plus", "idm", "iid-idm"], rows=own)
    same = costs_on_one_device(costs)
    assert same["label"].tolist() == ["dm", "iid-plus", "iid-idm"] and set(same["device"]) == {"cpu (1 threads)"}
    assert costs_on_one_device(costs[:0]).empty
    assert len(costs_on_one_device(costs.assign(device=None))) == len(costs)


def test_costs_ask_for_known_methods_scales_and_the_network_of_the_dataset() -> None:
    for scale, method in (("nope", "dm"), ("laptop", "nope")):
        with pytest.raises(InputError, match="'nope'"):
            distillation_costs(scale, [method], rows=NOTHING)
    deep = Cell("tinyimagenet", "dm", 10, "convnet4")
    own = rows(of_cell(deep, 10.0, dataset="tinyimagenet", network="convnet4", seconds_per_iteration=1.0))
    assert len(distillation_costs("laptop", ["dm"], dataset="tinyimagenet", rows=own)) == 1


def test_the_headline_has_intervals_published_values_and_the_clock_of_quiet_runs() -> None:
    usual = Cell("cifar10", "iid-plus", 10, evaluation="paper")
    whole = protocol_text(usual.protocol_of(preset("iid-plus", scale="laptop")), "iid-plus", 2)
    paper = {"protocol": whole, "epochs": 1001, "pool_seconds": 500.0}
    busy = {"device": "cpu (1 threads)", "seconds_per_iteration": 2.0}
    own = rows(
        *(timed("iid-plus", seed=seed, accuracy=60.0 + seed, **paper, **(busy if seed else {})) for seed in range(3))
    )
    table = headline("laptop", own)
    assert table["ipc"].tolist() == [1, 10, 10, 50] and table["seeds"].tolist() == [0, 3, 0, 0]
    one = table.loc[1]
    assert one["accuracy"] == pytest.approx(61) and one["iid-dm"] == 55.1 and one["iid-idm"] == 59.9
    assert one["high"] - 61 == pytest.approx(4.303 * 1 / 3**0.5, rel=1e-3) and one["low"] == pytest.approx(
        122 - one["high"]
    )
    assert (one["seconds"], one["pool_seconds"], one["device"]) == (600, 500, "cpu (2 threads)")
    assert table.loc[[0, 2, 3], "accuracy"].isna().all() and headline("laptop", own[:2]).loc[1, ["low"]].isna().all()
    assert headline("laptop", NOTHING)["seeds"].eq(0).all()

    unknown = pd.concat([own[own["seed"] < 2], own[own["seed"] == 2].assign(seconds_per_iteration=float("nan"))])
    reported = headline("laptop", unknown).loc[1]
    assert (reported["seeds"], reported["accuracy"], reported["seconds"]) == (3, pytest.approx(61), 600), (
        "a seed without a time"
    )
    on_gpu = headline("laptop", own.assign(device="NVIDIA H200", seconds_per_iteration=0.5)).loc[1]
    assert (on_gpu["seconds"], on_gpu["device"]) == (600, "NVIDIA H200")
    elsewhere = own.assign(device="cpu (2 threads)", distilled_on=own["device"])  # the threads of the iterations count
    assert headline("laptop", elsewhere).loc[1, "seconds"] == 600


def test_costs_of_texts_and_of_tables_older_than_their_columns_are_read_too() -> None:
    own = rows(timed("dm")).astype({"seconds_per_iteration": str})
    assert distillation_costs("laptop", ["dm"], rows=own)["seconds"].tolist() == [600]
    older = rows(timed("dm")).drop(columns=["seconds_per_iteration", "device"])
    assert distillation_costs("laptop", ["dm"], rows=older).empty
    assert distillation_costs("laptop", ["dm"], rows=NOTHING).empty


def test_costs_of_another_evaluation_or_length_do_not_count() -> None:
    other = rows(timed("dm", protocol="idc, 400 epochs, batch 64, lr 0.01, width 64"), timed("dm", iterations=400))
    assert distillation_costs("laptop", ["dm"], rows=other).empty
