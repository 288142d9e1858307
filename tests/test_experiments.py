"""The paper's cells: what was published, and which rows count as measured."""

from pathlib import Path
from typing import Any

import attrs
import pandas as pd
import pytest

from iidlib.config import EvalProtocol, RunConfig, preset
from iidlib.errors import InputError
from iidlib.experiments import (
    EXPERIMENTS,
    Cell,
    MadeBy,
    SetOrigin,
    mean_of,
    measured,
    protocol_text,
    result_rows,
    table,
)  # fmt: skip
from iidlib.experiments.published import ACCURACIES
from iidlib.experiments.results import RESULT_COLUMNS
from tests.result_rows import rows


def test_every_published_number_has_its_source_and_stands_in_the_main_table() -> None:
    cells = {(cell.dataset, cell.method, cell.ipc) for cell in EXPERIMENTS["main"].cells}
    assert set(ACCURACIES) <= cells
    assert all(0 < found.value < 100 and found.source for found in ACCURACIES.values())


def test_numbers_that_were_not_found_are_not_there() -> None:
    for missing in (("cifar10", "iid-dm", 1), ("svhn", "iid-idm", 10), ("tinyimagenet", "iid-idm", 10)):
        assert missing not in ACCURACIES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_cells_have_names_of_their_own(name: str) -> None:
    names = [cell.name for cell in EXPERIMENTS[name].cells]
    assert len(set(names)) == len(names) >= 2


DM = Cell("cifar10", "dm", 10)


def test_a_seed_is_the_mean_over_its_networks() -> None:
    networks = [{"evaluation_seed": number, "accuracy": 44.0 + number} for number in range(3)]
    given = rows(*networks, {"seed": 2, "accuracy": 50.0})
    assert measured(DM, "laptop", given).to_dict() == {0: 45.0, 2: 50.0}


def test_a_seed_with_fewer_networks_than_the_protocol_has_is_not_measured_yet() -> None:
    networks = [{"evaluation_seed": number} for number in range(3)]
    assert measured(DM, "laptop", rows(*networks[:2])).empty and len(measured(DM, "laptop", rows(*networks))) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "cifar100"}, {"method": "dm-cm"}, {"ipc": 50}, {"scale": "paper"}, {"network": "vgg11"},
        {"iterations": 600}, {"epochs": 1001}, {"settings": "match.cm=1"}, {"dataset": "validation:cifar10"},
        {"protocol": "idc, 400 epochs"}, {"step": 5.0, "steps": 5.0}, {"settings": "made_from=validation:cifar10"},
        {"protocol": "dm, 400 epochs, batch 256, lr 0.01, width 32"},
        {"protocol": "dm, 400 epochs, batch 256, lr 0.01, width 64, each image expanded to 4"},
        {"protocol": "dm, 400 epochs, batch 256, lr 0.01, width 64, augmentation none"},
    ],
    ids=str,
)  # fmt: skip
def test_rows_of_something_else_do_not_count(other: dict[str, Any]) -> None:
    assert measured(DM, "laptop", rows(other)).empty


def test_an_evaluation_that_was_repeated_counts_once() -> None:
    later = {"accuracy": 47.0, "date": "2026-02-01T00:00:00+00:00"}
    assert measured(DM, "laptop", rows({}, later)).to_dict() == {0: 47.0}, "the newest row"
    assert measured(DM, "laptop", rows(later, {})).to_dict() == {0: 47.0}
    assert measured(DM, "laptop", rows({}, later | {"networks_seed": 9})).to_dict() == {0: 46.0}, "other networks"


def test_a_step_by_step_row_of_another_order_does_not_count() -> None:
    cell = Cell("cifar100", "random", 20, steps=5)
    own = {"dataset": "cifar100", "method": "random", "ipc": 20, "iterations": 0, "step": 5.0, "steps": 5.0}
    assert len(measured(cell, "laptop", rows(own | {"order": 0.0}))) == 1
    assert measured(cell, "laptop", rows(own | {"order": 7.0})).empty


def test_a_grid_of_class_centralization_is_in_units_of_the_real_scatter_at_every_scale() -> None:
    for cell in (*EXPERIMENTS["weights"].cells, *EXPERIMENTS["beta"].cells):
        for scale in ("tour", "laptop", "paper"):
            config = preset(cell.method, cell.dataset_at(scale), cell.ipc, scale, cell.changes(scale))
            assert config.match.cc_scaling == "relative" or cell.method == "dm-cm"


def test_settings_count_in_any_order_and_iterations_are_a_share() -> None:
    cell = Cell("cifar10", "dm-cc", 10, settings=(("match.cc", "3"), ("match.cc_form", "exp")))
    for text in ("match.cc_form=exp match.cc=3", "match.cc=3.0 match.cc_form=exp"):
        given = rows({"method": "dm-cc", "settings": text})
        assert measured(cell, "laptop", given).to_dict() == {0: 45.0}
    half = Cell("cifar10", "dm", 10, settings=(("iterations", "50%"),))
    assert measured(half, "laptop", rows({"iterations": 600})).to_dict() == {0: 45.0}


def test_a_setting_that_is_the_scales_own_makes_no_difference() -> None:
    """Else a point of a sweep at the usual weight would be measured twice."""
    plain = Cell("cifar10", "dm-cc", 10)
    written = Cell("cifar10", "dm-cc", 10, settings=(("match.cc", "1"),))
    for scale, counts in (("laptop", True), ("tour", False)):  # where the weight is 1, and 0.3
        own = {"method": "dm-cc", "scale": scale, "dataset": plain.dataset_at(scale)}
        assessed = preset(scale=scale).eval
        own |= {"iterations": preset(scale=scale).iterations, "epochs": assessed.epochs}
        own |= {"protocol": protocol_text(assessed, "dm-cc")}
        assert len(measured(plain, scale, rows(own))) == 1
        assert len(measured(plain, scale, rows(own | {"settings": "match.cc=1.0"}))) == counts
        assert len(measured(written, scale, rows(own))) == counts
    strange = rows({"method": "dm-cc", "settings": "match.dd=1"}, {"method": "dm-cc", "settings": "much"})
    assert measured(plain, "laptop", strange).empty, "a table from elsewhere is no error"


def test_the_table_tells_published_measured_and_missing_apart(tmp_path: Path) -> None:
    rows({}, {"seed": 1, "accuracy": 47.0}, {"method": "random", "iterations": 0, "accuracy": 30.0}).to_csv(
        tmp_path / "laptop.csv", index=False
    )
    cells = table("main", tmp_path).set_index(["dataset", "ipc", "method"])
    dm = cells.loc[("cifar10", 10, "dm")]
    assert (dm["published"], dm["laptop_mean"], dm["laptop_std"], dm["laptop_seeds"]) == (48.9, 46.0, 1.0, 2)
    assert dm["paper_seeds"] == 0 and pd.isna(dm["paper_mean"]), "a smaller scale fills no cell of the paper"
    assert dm["over_random"] == 16.0 and pd.isna(dm["below_whole"])
    mosaic = cells.loc[("cifar10", 10, "random-mosaic")]
    assert mosaic["source"] == "not found" and pd.isna(mosaic["published"])


OPERATIONS = "augmentation flip>color>crop_scale_rotate"


def test_scores_beside_random_images_and_the_whole_set_are_of_one_protocol(tmp_path: Path) -> None:
    idc = {"protocol": f"idc, 400 epochs, batch 64, lr 0.01, width 64, {OPERATIONS}"}
    random, whole = {"method": "random", "iterations": 0}, {"method": "whole", "iterations": 0, "epochs": 60}
    usual = {"protocol": "whole set, 60 epochs, batch 256, lr 0.01, width 64", "accuracy": 80.0}
    other = {"protocol": f"whole set (idc), 60 epochs, batch 64, lr 0.01, width 64, {OPERATIONS}", "accuracy": 75.0}
    own = rows(
        {}, idc | {"accuracy": 40.0}, random | {"accuracy": 30.0}, random | idc | {"accuracy": 28.0}, whole | usual,
        whole | other,
    )  # fmt: skip
    own.to_csv(tmp_path / "laptop.csv", index=False)
    cells = table("plus-sizes", tmp_path).set_index(["dataset", "ipc", "method", "evaluation"])
    found = cells.loc[[("cifar10", 10, "dm", ""), ("cifar10", 10, "dm", "idc")], ["over_random", "below_whole"]]
    assert found.to_numpy().tolist() == [[15.0, 35.0], [12.0, 35.0]]


def test_the_whole_set_counts_under_each_protocol() -> None:
    """Else its training, the longest of all, would be asked for again at every call."""
    cell = Cell("cifar10", "whole", 0, evaluation="idc")
    own = {"method": "whole", "ipc": 5000, "iterations": 0, "epochs": 60}
    text = f"whole set (idc), 60 epochs, batch 64, lr 0.01, width 64, {OPERATIONS}"
    assert len(measured(cell, "laptop", rows(own | {"protocol": text}))) == 1
    other = own | {"protocol": "whole set, 60 epochs, batch 256, lr 0.01, width 64"}
    assert measured(cell, "laptop", rows(other)).empty


def test_a_mean_says_its_spread_and_seeds_where_there_are_some() -> None:
    row = {"laptop_mean": 46.04, "laptop_std": 0.21, "laptop_seeds": 3, "tour_mean": 37.5, "tour_std": float("nan")}
    row |= {"tour_seeds": 1, "paper_mean": float("nan"), "paper_std": float("nan"), "paper_seeds": 0}
    assert [mean_of(row, scale) for scale in ("laptop", "tour", "paper")] == ["46.0 ± 0.2 (3)", "37.5 (1)", ""]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_folder_without_results_has_nothing_but_missing_cells(tmp_path: Path, name: str) -> None:
    cells = table(name, tmp_path)
    for scale in ("paper", "laptop", "tour"):
        assert cells[f"{scale}_mean"].isna().all() and not cells[f"{scale}_seeds"].any()
        assert (cells[f"{scale}_failed"] == "").all()


def test_the_table_reads_what_is_in_the_checkout() -> None:
    cells = table("main").set_index(["dataset", "ipc", "method"])
    assert cells.loc[("cifar10", 10, "dm"), "laptop_seeds"] >= 1
    assert cells.loc[("cifar10", 1, "iid-idm"), "tour_seeds"] == 3


# Rows of results


def scores_of(config: RunConfig, **noted: object) -> pd.DataFrame:
    """Scores as `iidlib.evaluate` returns them."""
    scores = pd.DataFrame(
        {"network": "convnet3", "evaluation_seed": range(3), "accuracy": [45.0, 46.0, 47.0], "epochs": 400,
         "images": 100, "seconds": 2.5}
    )  # fmt: skip
    scores.attrs = {"dataset": config.dataset, "seed": 5, "protocol": attrs.asdict(config.eval)} | noted
    return scores


def test_rows_of_a_planned_run_fill_its_cell() -> None:
    config = preset("dm", "cifar10", 10, "laptop", {"seed": 2})
    found = result_rows(scores_of(config), config)
    assert tuple(found.columns) == RESULT_COLUMNS
    assert found["networks_seed"].unique().tolist() == [5] and found["settings"].isna().all()
    cell_rows = found.assign(settings="", date="", step=float("nan"), steps=float("nan"), order=float("nan"))
    assert measured(DM, "laptop", cell_rows).to_dict() == {2: 46.0}
    other = preset("dm", "cifar10", 10, "laptop", {"syn.lr": 2, "eval.lr": 0.01})
    assert result_rows(scores_of(other), other)["settings"].unique().tolist() == ["syn.lr=2.0"], "unasked"


def test_rows_say_what_is_known_and_keep_further_columns() -> None:
    config = preset("dm-cc", "cifar10", 10, "laptop")
    origin = SetOrigin("dm-cc", "tour", 7, 90, 2, {"match.cc": "3"}, "x", 0.5, [61.234, 70])
    made_by = MadeBy(command="iid evaluate", torch="2", iidlib="1", commit="a", date="d", device="cpu")
    found = result_rows(scores_of(config).assign(step=4), config, origin=origin, made_by=made_by)
    assert tuple(found.columns) == (*RESULT_COLUMNS, "step")
    row = found.iloc[0].to_dict()
    assert (row["scale"], row["seed"], row["iterations"], row["seconds_per_iteration"]) == ("tour", 7, 90, 0.5)
    assert row["pool_accuracies"] == "61.23 70.00" and row["settings"] == "match.cc=3 made_from=x"
    assert row["protocol"].endswith("width 64, each image expanded to 4")
    assert (row["command"], row["torch"], row["device"], row["step"]) == ("iid evaluate", "2", "cpu", 4)


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ({"dataset": "cifar100"}, "obtained on cifar100, but the settings say cifar10; .*dataset=dataset.name"),
        ({"protocol": attrs.asdict(EvalProtocol())}, "trained with eval.width=128, but the settings say 64; "),
        (None, "rows of results need the scores of one call of evaluate"),
    ],
)
def test_rows_that_would_say_something_false_are_refused(noted: dict[str, object] | None, message: str) -> None:
    config = preset("dm", "cifar10", 10, "laptop")
    scores = scores_of(config, **(noted or {}))
    if noted is None:
        scores.attrs = {}
    with pytest.raises(InputError, match=message):
        result_rows(scores, config)


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("random", "eval.lr=1"),
        ("random-mosaic", "syn.factor=3 eval.lr=1"),
        ("herding", "pool.epochs=6 eval.lr=1"),
        ("whole", "eval.lr=1"),
        ("dm-cc", "match.cc=3 syn.lr=2 syn.factor=3 pool.epochs=6 pool.count=9 eval.lr=1 compute.chunk=8"),
    ],
)
def test_chosen_images_name_only_settings_that_shape_them(method: str, kept: str) -> None:
    config = preset(method, "cifar10", 10, "laptop")
    text = "match.cc=3 syn.lr=2 syn.factor=3 pool.epochs=6 pool.count=9 eval.lr=1 compute.chunk=8"
    given = dict(pair.split("=") for pair in text.split())
    found = result_rows(scores_of(config), config, origin=SetOrigin(method, "laptop", factor=3, settings=given))
    assert found["settings"].unique().tolist() == [kept]
    made_from = SetOrigin(method, "laptop", factor=3, settings=given, dataset="folder:my images")
    found = result_rows(scores_of(config), config, origin=made_from)
    assert found["settings"].unique().tolist() == [f"{kept} made_from=folder:my_images"]


def test_planned_random_images_with_a_factor_are_mosaics() -> None:
    for changes, method, factor in (({}, "random", 1), ({"syn.factor": 2}, "random-mosaic", 2)):
        planned = SetOrigin.planned(preset("random", "cifar10", 10, "laptop", changes))
        assert (planned.method, planned.factor, planned.iterations) == (method, factor, 0)
    assert SetOrigin.planned(preset("herding", "cifar10", 10, "laptop", {"syn.factor": 2})).factor == 1
