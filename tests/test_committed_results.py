"""What is committed under data/: tables and pictures that are drawn from it are as they would be drawn now."""

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from iidlib.config import preset
from iidlib.data import load_dataset
from iidlib.distillation import distill
from iidlib.experiments import gains_of_parts, results_dir, rows_of, table
from iidlib.experiments.cells import MATCHING, PARTS
from iidlib.experiments.results import RESULT_COLUMNS
from iidlib.synthetic import SyntheticSet

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data" / "distilled"
SETS = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def script(name: str) -> ModuleType:
    """A script of data/scripts, which find each other as they do when they are run."""
    folder = ROOT / "data" / "scripts"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Tables of results


@pytest.mark.parametrize("page", ["README.md", "book/intro.md", "data/results/README.md"])
def test_the_tables_of_results_are_those_of_the_rows(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text == script("build_results_tables").with_tables(text), "run python data/scripts/build_results_tables.py"
    assert len(re.findall(r"^\| IID on IDM \|", text, flags=re.M)) == text.count("<!-- results at ") > 0
    assert len(re.findall(r"^\| `iid-idm` over `idm` \|", text, flags=re.M)) == text.count("<!-- gains at ")


def test_the_table_of_parts_has_a_row_for_each_and_what_is_measured_of_it() -> None:
    lines = script("build_results_tables").parts("tour_laptop").splitlines()
    assert len(lines) == 2 + len(PARTS) + len(MATCHING)
    reported = gains_of_parts("laptop").set_index(["part", "group"])["text"]
    for line in lines[2:]:
        name, *columns = (column.strip() for column in line.strip("|").split("|"))
        assert len(columns) == 4 and columns[2] == reported[name, "left out"]
        assert columns[3] == ("" if name in MATCHING else reported[name, "added alone"])


def test_the_table_says_what_is_missing_and_what_was_not_found() -> None:
    text = script("build_results_tables").table("laptop")
    mosaics = next(line for line in text.splitlines() if line.startswith("| random mosaics"))
    assert mosaics.count("not found") == 2
    cells = table("main").query("dataset == 'cifar10' and ipc in (1, 10)")
    shown = cells[cells["method"].isin(script("build_results_tables").METHODS)]
    unmeasured = text.count("missing") + text.count("as DM")
    assert len(shown) == 14 and unmeasured == (shown["laptop_seeds"] == 0).sum()


def test_the_cells_at_a_scale_have_the_hours_of_their_rows_and_a_cell_without_any_has_none() -> None:
    lines = script("build_results_tables").cells("paper").splitlines()[2:]
    rows = rows_of("paper")
    assert len(lines) >= rows["method"].nunique() > 2
    for method, own in rows.groupby("method"):
        distillation = (own["iterations"] * own["seconds_per_iteration"].fillna(0)).mean()
        hours = distillation + own["seconds"].sum() / own["seed"].nunique()
        (line,) = (one for one in lines if f"/ipc10/{method}`" in one)
        assert line.endswith(f"| {hours / 3600:.1f} |")


@pytest.mark.parametrize(("method", "ipc"), sorted(script("build_results_tables").SAME_AS_DM))
def test_what_the_table_calls_as_dm_is_dm(method: str, ipc: int) -> None:
    one, other = (distill(preset(name, "shapes", ipc, "ci")).synthetic.images for name in ("dm", method))
    assert one.equal(other)


def test_a_card_says_the_command_that_makes_its_set() -> None:
    changes = {"iterations": 3, "match.ce": 0.7, "syn.lr": 2, "pool.epochs_kept": (1, 2)}
    reported = script("build_distilled").made_by(preset("iid-plus", "cifar10-mini", 1, "ci", changes))
    assert reported == (
        "iid distill iid-plus --dataset cifar10-mini --ipc 1 --scale ci --seed 0 --iterations 3 --set match.ce=0.7 "
        "--set syn.lr=2.0 --set pool.epochs_kept=1,2"
    )
    assert all(
        row["made_by"]
        == script("build_distilled").made_by(preset(row["method"], row["dataset"], row["ipc"], row["scale"]))
        for rows in script("build_distilled").cards().values()
        for row in rows
        if "random" not in row["method"]
    )


def test_the_settings_of_scales_are_those_that_rows_were_measured_with() -> None:
    now = script("build_settings_of_rows").settings_of_rows()
    before = pd.read_csv(ROOT / "data" / "settings_of_rows.csv")
    assert len(now) > 30
    assert now.values.tolist() == before.values.tolist(), (
        "where settings of a scale have changed, let the rows of before name them in their column settings, then run "
        "python data/scripts/build_settings_of_rows.py"
    )


@pytest.mark.parametrize("path", sorted(results_dir().glob("*.csv")), ids=lambda path: path.name)
def test_rows_name_no_folder_of_a_machine(path: Path) -> None:
    assert not re.search(r"/(tmp|home|root|work|Users)/", path.read_text())


@pytest.mark.parametrize("path", sorted(results_dir().glob("*.csv")), ids=lambda path: path.name)
def test_accuracies_say_all_that_identifies_them(path: Path) -> None:
    rows = pd.read_csv(path)
    if "accuracy" not in rows:
        return  # times, not accuracies
    needed = ["dataset", "method", "ipc", "scale", "network", "seed", "evaluation_seed", "protocol", "command", "date"]
    # some were measured before rows said what their networks came to, and what a pool took
    assert (
        set(RESULT_COLUMNS) - {"outcome", "pool_seconds", "distilled_on", "ensemble", "recorded"} <= set(rows.columns)
        and rows[needed].notna().all().all()
    )
    assert rows["accuracy"].between(0, 100).all()
    keys = ["dataset", "method", "ipc", "scale", "network", "seed", "evaluation_seed", "protocol", "settings"]
    keys += ["iterations", *(name for name in ("step", "steps", "order") if name in rows)]
    assert not rows.duplicated(keys).any(), rows[rows.duplicated(keys)][keys]


def test_rows_of_one_kind_are_those_that_a_reader_of_the_file_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.csv"
    path.write_text("dataset,ipc,settings,accuracy\ncifar10,1,,40.5\ncifar10,10,,50\ncifar100,1,a=2,9\n")
    monkeypatch.setattr("iidlib.experiments.tables.results_dir", lambda: tmp_path)
    assert rows_of("some")["settings"].tolist() == ["", "", "a=2"]
    assert rows_of("some", dataset="cifar10", ipc=1)["accuracy"].tolist() == [40.5]
    assert rows_of("some", ipc=1, settings="")["dataset"].tolist() == ["cifar10"]
    assert rows_of("some", ipc=3).empty
    with pytest.raises(KeyError, match="network"):
        rows_of("some", network="convnet3")


# Distilled sets


def test_there_are_distilled_sets_with_cards() -> None:
    assert SETS and SETS == sorted(path.stem for path in FOLDER.glob("*.json"))
    assert SETS == sorted(path.stem for path in FOLDER.glob("*.png"))
    assert list(FOLDER.glob("*/way.png"))


@pytest.mark.parametrize("name", SETS)
def test_a_distilled_set_is_small_and_what_its_card_says(name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 3 * 2**20
    stored, rows = SyntheticSet.load(path), json.loads((FOLDER / f"{name}.json").read_text())
    own = [row for row in rows if not row["method"].startswith("random")]
    assert {row["method"] for row in own} == {stored.provenance["method"]}
    for row in rows:
        assert (row["dataset"], row["ipc"], str(row["seed"])) == (
            stored.spec.name,
            stored.ipc,
            stored.provenance["seed"],
        )
    assert {str(row["iterations"]) for row in own} == {stored.provenance["iterations"]}
    assert {row["scale"] for row in own} == {stored.provenance["scale"]}
    random = [row["accuracy"] for row in rows if row["method"] == "random"]
    assert min(row["accuracy"] for row in own) > max(random)


PICTURES = ["hero.png", "front.png", *sorted(f"{path.parent.name}/way.png" for path in FOLDER.glob("*/way.png"))]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_have_no_channel_of_transparency(name: str) -> None:
    """It would be opaque, and take a tenth of the file."""
    with Image.open((ROOT / "book" / "_static" if "/" not in name else FOLDER) / name) as picture:
        assert picture.mode == "RGB"


def test_a_picture_is_written_without_transparency_and_with_its_caption(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    script("build_distilled").save_opaque(figure, tmp_path / "one.png", 80, "what it shows")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.mode == "RGB" and picture.info["Description"] == "what it shows"
        assert picture.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("folder", sorted(path.parent for path in FOLDER.glob("*/way.png")), ids=lambda one: one.name)
def test_snapshots_are_of_the_set_that_they_are_named_after(folder: Path) -> None:
    """They are sets of their own, from the initial images on, which become more like the last one."""
    last = SyntheticSet.load(folder.with_suffix(".safetensors"))
    way = {int(path.stem): SyntheticSet.load(path) for path in sorted(folder.glob("*.safetensors"))}
    assert min(way) == 0 and max(way) < int(last.provenance["iterations"])
    for iteration, one in way.items():
        assert one.provenance["iterations"] == str(iteration) and one.images.shape == last.images.shape
        assert all(one.provenance[key] == last.provenance[key] for key in ("method", "seed", "scale"))
    apart = [(one.images - last.images).norm().item() for one in way.values()]
    assert apart == sorted(apart, reverse=True) and len(set(apart)) == len(apart)


def test_the_page_of_cards_is_that_of_the_cards() -> None:
    assert (FOLDER / "README.md").read_text() == script("build_distilled").page(), (
        "run python data/scripts/build_distilled.py"
    )


@pytest.mark.parametrize("name", ["front", "hero"])
def test_the_pictures_of_the_front_pages_say_what_the_cards_say(name: str) -> None:
    from PIL import Image

    drawn = Image.open(ROOT / "book" / "_static" / f"{name}.png").text["Description"]
    assert drawn == getattr(script("build_pictures"), f"{name}_caption")(), "run python data/scripts/build_pictures.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_stored_set_teaches_more_than_random_images(name: str) -> None:
    """Evaluated again, by a small network on the embedded test images: the stored file is complete and of use."""
    from iidlib.config import EvalProtocol
    from iidlib.evaluation import evaluate, random_real

    mini = load_dataset("cifar10-mini")
    stored = SyntheticSet.load(FOLDER / f"{name}.safetensors")
    protocol = EvalProtocol(width=32, num_eval=1, epochs=60)
    reached = [
        evaluate(one, mini, protocol=protocol)["accuracy"].iloc[0]
        for one in (stored, random_real(mini.train, stored.ipc))
    ]
    assert reached[0] > reached[1] + 2


# Minutes


def test_every_chapter_has_its_minutes() -> None:
    with (results_dir() / "chapters.csv").open(newline="") as file:
        rows = {row["chapter"]: row for row in csv.DictReader(file)}
    assert set(rows) == {path.stem for path in (ROOT / "book").glob("[0-9][0-9]_*.py")}
    assert all(0 < float(row["minutes"]) <= 5 for row in rows.values())
