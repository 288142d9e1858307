"""Grids of settings: rounds of a search as cells, whose rows are kept apart where images are held out."""

import textwrap
from pathlib import Path

import pytest

from iidlib.config import preset
from iidlib.errors import InputError
from iidlib.experiments import Cell, all_rows, find, jobs, measured, protocol_text, search_results, table
from tests.result_rows import rows

ROOT = Path(__file__).parents[1]

GRID = """
title: a search
method: iid-plus
dataset: validation:cifar10
ipc: 10
rounds:
  - vary: {match.ce: [0, 0.3], stages.interpolate: [on]}
  - given: {match.ce: 0.3}
    vary: {match.cm: [0], pool.epochs_kept: [[1, 2], [0]]}
"""


def grid(tmp_path: Path, text: str = GRID) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_rounds_are_cells_each_once(tmp_path: Path) -> None:
    found = find(grid(tmp_path))
    assert found.title == "a search"
    assert [dict(cell.settings) for cell in found.cells] == [
        {},
        {"match.ce": "0"},
        {"match.ce": "0.3"},
        {"stages.interpolate": "on"},
        {"match.ce": "0.3", "match.cm": "0"},
        {"match.ce": "0.3", "pool.epochs_kept": "1,2"},
        {"match.ce": "0.3", "pool.epochs_kept": "0"},
    ]
    assert {(cell.dataset, cell.method, cell.ipc) for cell in found.cells} == {("validation:cifar10", "iid-plus", 10)}


def test_what_a_search_has_measured_is_reported_round_by_round(tmp_path: Path) -> None:
    plus = preset("iid-plus", scale="tour")
    own = {"dataset": "validation:cifar10-mini", "method": "iid-plus", "scale": "tour", "iterations": plus.iterations}
    own |= {"protocol": protocol_text(plus.eval, "iid-plus", 2), "epochs": plus.eval.epochs}
    some = [own | {"settings": "match.ce=0.3", "accuracy": 44.0}, own | {"settings": "match.ce=0.3 match.cm=0"}]
    rows(*some).to_csv(tmp_path / "tour-validation.csv", index=False)
    table = search_results(grid(tmp_path), "tour", all_rows(tmp_path))
    assert table["round"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2] and table["scale"].eq("tour").all()
    assert table["varied"].tolist()[:4] == ["as given", "match.ce=0", "match.ce=0.3", "stages.interpolate=on"]
    assert table["varied"].tolist()[4:] == ["as given", "match.cm=0", "pool.epochs_kept=1,2", "pool.epochs_kept=0"]
    assert table["seeds"].tolist() == [0, 0, 1, 0, 1, 1, 0, 0]
    assert table["gain"].fillna(-9).tolist() == [-9, -9, -9, -9, -9, 1, -9, -9], "of 44 to 45, and else unknown"


def test_a_grid_is_run_like_an_experiment_and_its_rows_are_kept_apart(tmp_path: Path) -> None:
    # two cells are at laptop what others are, in other words
    for scale, dataset, cells in (("tour", "validation:cifar10-mini", 7), ("laptop", "validation:cifar10", 5)):
        todo = jobs(grid(tmp_path), scale=scale, seeds=2, folder=tmp_path)
        assert len(todo) == 2 * cells
        (words,) = [str(job) for job in todo if "match.cm=0" in str(job) and job.seed == 0]
        assert f"--dataset {dataset} --scale {scale}" in words and "--set match.ce=0.3 --set match.cm=0" in words
        assert (tmp_path / f"{scale}-validation.csv").as_posix() in words
        assert ":" not in words.partition("--out ")[2].partition(" ")[0], "no folder of Windows has a colon"
    done = {"dataset": "validation:cifar10-mini", "method": "iid-plus", "scale": "tour", "settings": "match.ce=0"}
    plus = preset("iid-plus", scale="tour")
    more = {"iterations": plus.iterations, "protocol": protocol_text(plus.eval, "iid-plus", 2)}
    more |= {"epochs": plus.eval.epochs}
    rows(*[done | more | {"evaluation_seed": number} for number in range(plus.eval.num_eval)]).to_csv(
        tmp_path / "tour-validation.csv", index=False
    )
    assert len(jobs(grid(tmp_path), scale="tour", seeds=2, folder=tmp_path)) == 13
    assert table(grid(tmp_path), tmp_path).set_index("cell")["tour_seeds"].tolist() == [0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must be a mapping with a list of rounds"),
        ("rounds: []", "must be a mapping with a list of rounds"),
        ("rounds: [1]", "rounds in the grid .* must be mappings with vary, got 1"),
        ("rounds: [{vary: {match.ce: 1}}]", "must give a list of values for match.ce, got 1"),
        ("rounds: [{vray: {match.ce: [1]}}]", "unknown key 'vray' .*did you mean 'vary'"),
        ("rounds: [{vary: {match.cee: [1]}}]", "unknown setting 'match.cee'; did you mean 'match.ce'"),
        ("rounds: [{vary: {match.ce: [-1]}}]", "match.ce must not be negative"),
        ("rounds: [{given: [1]}]", "given and vary in the grid .* must map settings to values"),
        ("rounds: [{}]\nmethod: iidplus", "unknown method 'iidplus'; did you mean 'iid-plus'"),
        ("rounds: [{}]\nipc: 0", "ipc must be above 0"),
        ("rounds: [{}]\nmethod: random", "varies settings of a distillation; random learns nothing"),
        ("rounds: [{vary: {seed: [1]}}]", "varies seed, which is given by --seeds"),
        ("rounds: [{given: {scale: ci}}]", "varies scale, which is given by --scale"),
        ("rounds: [{vary: {iterations: [12.5%]}}]", "whole percents such as 50%, got 12.5%"),
        ("rounds: [{vary: {iterations: [0%]}}]", "whole percents such as 50%, got 0%"),
        ("rounds: [{vary: {eval.networks: [alexnet]}}]", "its cells are evaluated by convnet3; for other networks"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_no_grid_is_reported_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as reported:
        find(grid(tmp_path, text))
    assert "\n" not in str(reported.value)


def test_names_are_taken_as_rows_have_them(tmp_path: Path) -> None:
    (cell,) = find(grid(tmp_path, "rounds: [{}]\ndataset: validation:CIFAR-10\nipc: '10'")).cells
    assert cell == Cell("validation:cifar10", "iid-plus", 10)
    (deep,) = find(grid(tmp_path, "rounds: [{}]\ndataset: validation:tinyimagenet")).cells
    assert deep.network == "convnet4" and deep == deep.usual


def test_settings_that_fit_one_scale_only_are_run_there_and_missing_elsewhere(tmp_path: Path) -> None:
    short = grid(tmp_path, "dataset: cifar10\nrounds: [{given: {pool.epochs: 2}}]")  # tour keeps later epochs
    assert [job.cell.name for job in jobs(short, scale="laptop", seeds=1, folder=tmp_path)]
    with pytest.raises(InputError, match=r"cifar10/ipc10/iid-plus/pool.epochs=2 does not run at scale tour: .*now 2"):
        jobs(short, scale="tour", folder=tmp_path)
    assert table(short, tmp_path)["tour_seeds"].tolist() == [0]
    assert search_results(short, "tour", rows({"method": "iid-plus", "scale": "tour"}))["seeds"].tolist() == [0]
    with pytest.raises(InputError, match="must lie in 0 to"):
        find(grid(tmp_path, "rounds: [{given: {pool.epochs_kept: [99]}}]"))


def test_cells_that_say_the_same_in_other_words_are_run_once(tmp_path: Path) -> None:
    path = grid(tmp_path, "dataset: cifar10\nrounds: [{vary: {match.cc: [1, 1.0, 0], iterations: [100%, 1200]}}]")
    todo = jobs(path, scale="laptop", seeds=2, folder=tmp_path)
    assert [(job.cell.settings, job.seed) for job in todo] == [
        (settings, seed) for seed in (0, 1) for settings in ((), (("match.cc", "0"),))
    ]


def test_units_of_class_centralization_are_those_that_a_grid_gives(tmp_path: Path) -> None:
    text = (
        "method: iid-dm\ndataset: cifar10\nrounds: [{vary: {match.cc_scaling: [released, per_image], match.cc: [1]}}]"
    )
    found = [cell.changes("paper").get("match.cc_scaling") for cell in find(grid(tmp_path, text)).cells]
    assert found == [None, "released", "per_image", "relative"]


def test_a_missing_grid_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the grid .*: No such file or directory"):
        find(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"unknown experiment 'plsu'; did you mean 'plus'"):
        find("plsu")


def test_the_search_behind_iid_plus_can_be_run_again() -> None:
    """Its grid names validation images only: the test set chooses nothing."""
    found = find(str(ROOT / "data" / "results" / "iid-plus-search.yaml"))
    assert {cell.dataset for cell in found.cells} == {"validation:cifar10"}
    assert jobs(str(ROOT / "data" / "results" / "iid-plus-search.yaml"), scale="laptop", seeds=1, folder=Path("/none"))


def test_a_protocol_is_a_cell_of_its_own(tmp_path: Path) -> None:
    """The set is distilled once, by whichever cell comes first, and evaluated under each protocol."""
    usual, idc = Cell("cifar10", "iid-plus", 10), Cell("cifar10", "iid-plus", 10, evaluation="idc")
    assert (idc.name, idc.usual) == ("cifar10/ipc10/iid-plus/idc-protocol", usual)
    own = preset("iid-plus", scale="laptop")
    text = protocol_text(idc.protocol_of(own), "iid-plus", 2)
    line = {"method": "iid-plus", "scale": "laptop", "iterations": own.iterations, "epochs": own.eval.epochs}
    line |= {"dataset": "cifar10", "protocol": f"{text}, augmentation flip>color>crop_scale_rotate"}
    found = rows(*[line | {"evaluation_seed": number} for number in range(own.eval.num_eval)])
    for column in ("ipc", "seed", "accuracy", "iterations", "epochs", "evaluation_seed", "steps", "step", "order"):
        found[column] = found[column].astype(float) if column in found else float("nan")
    found["settings"] = found["settings"].fillna("") if "settings" in found else ""
    assert len(measured(idc, "laptop", found)) == 1 and measured(usual, "laptop", found).empty
    assert measured(idc, "laptop", found.assign(settings="eval.augmentation=none")).empty, "which is no such protocol"
    job = next(j for j in jobs("plus-sizes", scale="laptop", seeds=1, folder=tmp_path) if j.cell == idc)
    assert "--protocol idc" in str(job) and "--no-evaluate" in job.before


def test_the_folder_of_a_cell_has_a_name_that_file_systems_take() -> None:
    long = Cell("validation:cifar10", "iid-plus", 10, settings=tuple((f"match.a{n}", "1") for n in range(40)))
    other = Cell("validation:cifar10", "iid-plus", 10, settings=(*long.settings, ("match.b", "1")))
    assert len(long.file) < 200 and long.file != other.file and ":" not in long.file
    share, count = (Cell("cifar10", "dm", 10, settings=(("iterations", value),)) for value in ("25%", "25"))
    assert (share.file, count.file) == ("cifar10-ipc10-dm-iterations=25pct", "cifar10-ipc10-dm-iterations=25")
