"""iidlib.cli: every command does what it says; wrong input is one line and changes nothing; what is stopped resumes."""

import dataclasses
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

import iidlib
from iidlib import cli
from iidlib.augment import OPERATIONS
from iidlib.cli import output
from iidlib.cli.score_files import KeptRows
from iidlib.config import SCALES, RunConfig, fingerprint, from_yaml, override, preset, settings
from iidlib.config.recipes import IDM_SCALES, PUBLISHED, Row
from iidlib.data import data_dir, registry, shapes
from iidlib.distillation import run as distillation_run
from iidlib.distillation import step as distillation_step
from iidlib.errors import InputError
from iidlib.evaluation import coresets
from iidlib.evaluation import run as evaluation_run
from iidlib.experiments import Published, append_results, cells, read_results
from iidlib.experiments.published import ACCURACIES
from iidlib.experiments.results import RESULT_COLUMNS
from iidlib.features import pool_training as pool
from iidlib.notes import log_once
from tests.command_line import Ended, Run
from tests.factories import contents

# Seconds of an iteration and of a network are what they are; all else of two equal runs is equal.
COSTS = ["seconds_per_iteration", "pool_seconds"]
TIMES = [
    "seconds",
    "seconds_per_iteration",
    "pool_seconds",
    "distilled_on",
    "peak_memory_mib",
    "date",
    "command",
    "commit",
]

TINY = ("--dataset", "shapes", "--ipc", "2", "--scale", "ci")

pytestmark = pytest.mark.usefixtures("handlers_as_before")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, never changed: iid-dm with seed 3."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("finished")
        patch.chdir(folder)
        patch.setenv("IID_TEST_VARIABLE", "a-secret-of-the-environment")
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            cli.main(["distill", "iid-dm", *TINY, "--seed", "3", "--iterations", "12", "--out", "run"])
        signal.signal(signal.SIGTERM, before)
        assert not end.value.code
    return folder / "run"


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, below the working folder."""
    return Path(shutil.copytree(finished_run, tmp_path / "run")).relative_to(tmp_path)


def assert_one_line(ended: Ended, message: str, status: int = 2) -> None:
    assert ended.status == status, ended
    assert ended.err.count("\n") == 1 and ended.err.startswith("iid: "), ended.err
    assert re.search(message, ended.err), ended.err


def rows_of(path: Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads(path.read_text()))


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_answers_without_loading_the_library() -> None:
    code = (
        "import sys; from iidlib import cli\n"
        "for words in sys.argv[1:]:\n"
        "    try: cli.main(words.split())\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
        "slow = {'torch', 'pandas', 'numpy', 'matplotlib', 'tqdm', 'papermill'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    commands = [
        "distill",
        "evaluate",
        "experts",
        "sweep",
        "bench",
        "config",
        "data",
        "data list",
        "data fetch",
        "data check",
    ]
    words = ["", "--help", "--version", *(f"{command} --help" for command in commands)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=wide())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"iidlib {iidlib.__version__}" in done.stdout
    for option in ("--dataset", "--ipc", "--scale", "--iterations", "--seed", "--device", "--out", "--resume", "--set",
                   "--networks", "--num-eval", "--epochs", "--network", "--count", "--workers", "--quick", "--json",
                   "--data-root", "--results"):  # fmt: skip
        assert option in done.stdout, option


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("distill dm --ipc ten", r"'--ipc'.*'ten'( is not a valid integer\.)? \(see iid distill --help\)"),
        ("distill dm --ipc=1.5", r"'--ipc'.*'1.5'( is not a valid integer\.)? \(see iid distill --help\)"),
        ("reproduce main --seeds 0", r"'--seeds'.*'0' \(see"),
        ("reproduce main --list --only nowhere", "main has no cell 'nowhere'; see iid reproduce main --list"),
        ("destill dm", r"No such command 'destill'; did you mean 'distill'\? \(see iid --help\)"),
        ("data fetsh", r"No such command 'fetsh'; did you mean 'fetch'\? \(see iid data --help\)"),
    ],
)
def test_what_is_mistyped_is_named(iid: Run, command: str, message: str) -> None:
    assert_one_line(iid(*command.split()), message)


@pytest.mark.parametrize("command", ["", "distill", "evaluate", "continual", "experts", "reproduce", "sweep", "bench",
                                     "config", "data", "data list", "data fetch", "data check"])  # fmt: skip
def test_a_short_option_asks_for_help(iid: Run, command: str) -> None:
    ended = iid(*command.split(), "-h")
    assert ended.status == 0 and "Usage" in ended.out and ended.err == ""


def wide() -> dict[str, str]:
    return os.environ | {"COLUMNS": "160", "TERM": "dumb"}


def test_the_console_script_is_this_one() -> None:
    from importlib.metadata import entry_points

    (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "iid"]
    assert script.load() is cli.main


# --- distill ----------------------------------------------------------------------------------------------------------


def test_run_folder_is_as_the_design_says(finished_run: Path) -> None:
    assert set(contents(finished_run)) == {
        "config.yaml", "metrics.jsonl", "environment.json", "synthetic.safetensors", "synthetic.png", "scores.json",
        "checkpoints/0000010.safetensors", "checkpoints/0000010.json",
        "checkpoints/0000012.safetensors", "checkpoints/0000012.json",
    }  # fmt: skip
    config = preset("iid-dm", "shapes", 2, "ci", {"seed": 3, "iterations": 12})
    assert from_yaml((finished_run / "config.yaml").read_text()) == config

    logged = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in logged] == [0, 10, 11]
    for row in logged:
        assert set(row) == {"iteration", "seconds", "loss"} | {
            f"{kind}_{term}" for kind in ("loss", "grad") for term in ("mean", "cm", "cc")
        }

    with safe_open(finished_run / "synthetic.safetensors", framework="pt") as file:
        metadata, images = file.metadata(), file.get_tensor("images")
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    provenance = json.loads(metadata["provenance"])
    assert (metadata["dataset"], metadata["ipc"], metadata["factor"]) == ("shapes", "2", "1")
    assert json.loads(metadata["mean"]) == [0.5] * 3 and json.loads(metadata["std"]) == [0.25] * 3
    assert provenance["method"] == "iid-dm" and provenance["seed"] == "3" and provenance["iterations"] == "12"
    assert provenance["config"] == fingerprint(config) and provenance["version"] == iidlib.__version__

    with Image.open(finished_run / "synthetic.png") as picture:
        assert picture.size == (2 * 34 + 2, 4 * 34 + 2) and picture.mode == "RGB"  # a class a row


def test_run_folder_keeps_no_environment_variables(finished_run: Path) -> None:
    stamp = json.loads((finished_run / "environment.json").read_text())
    assert {"iidlib", "torch", "python", "platform", "commit", "date"} <= set(stamp)
    for name, content in contents(finished_run).items():
        assert b"a-secret-of-the-environment" not in content, name
        assert str(Path.home()).encode() not in content, name


def test_table_shows_random_real_images_beside_the_set(iid: Run) -> None:
    ended = iid("distill", "dm", *TINY, "--out", "a[b]/ü", "--set", "eval.networks=convnet1,convnet2")
    assert ended.status == 0 and ended.err == "", "quiet where there is no terminal"
    scores = rows(Path("a[b]/ü/scores.json"))
    assert list(scores["method"]) == ["random"] * 4 + ["dm"] * 4
    assert list(scores["network"]) == ["convnet1", "convnet1", "convnet2", "convnet2"] * 2
    assert list(scores["evaluation_seed"]) == [0, 1] * 4
    lines = [line for line in ended.out.splitlines() if line.startswith("│")]
    for line, (names, group) in zip(lines, scores.groupby(["method", "network"], sort=False), strict=True):
        mean, spread = group["accuracy"].mean(), group["accuracy"].std(ddof=0)
        assert [cell.strip() for cell in line.strip("│").split("│")] == [*names, f"{mean:.1f} ± {spread:.1f}", "2"]
    assert "images in a[b]/ü/synthetic.png" in ended.out, "names are not taken for markup"
    assert "4 epochs" in ended.out and "scale ci" in ended.out and "last iteration" in ended.out


def test_random_images_are_those_that_the_run_starts_from(iid: Run) -> None:
    iid("distill", "dm", *TINY, "--out", "run", "--seed", "5", "--set", "syn.lr=1e-30", "--iterations", "1")
    scores = rows(Path("run/scores.json")).groupby("method", sort=False)["accuracy"].apply(list)
    assert scores["random"] == scores["dm"]


def test_mosaics_stand_beside_random_images_and_random_mosaics(iid: Run) -> None:
    ended = iid("distill", "iid-idm", *TINY, "--out", "run", "--results", "results.csv")
    assert ended.status == 0 and ended.err == "", ended.err
    assert re.search(r"network queue: 4 of at most 4 networks, \d+\.\d MiB, training accuracy \d+ %", ended.out)
    scores = rows(Path("run/scores.json"))
    assert list(scores["method"]) == ["random"] * 2 + ["random-mosaic"] * 2 + ["iid-idm"] * 2
    assert set(scores["images"]) == {8}, "as many are stored"
    assert ["expanded to 4" in text for text in scores["protocol"]] == [False] * 2 + [True] * 4
    with Image.open("run/synthetic.png") as stored, Image.open("run/synthetic-expanded.png") as seen:
        assert stored.height == seen.height and seen.width > 3 * stored.width
    again = iid("evaluate", "run", "--out", "again.json")
    assert again.status == 0 and rows(Path("again.json"))["accuracy"].tolist() == scores["accuracy"].tolist()
    alone = iid("evaluate", "random-mosaic", *TINY, "--out", "mosaic.json")
    assert alone.status == 0 and set(rows(Path("mosaic.json"))["method"]) == {"random-mosaic"}
    mosaics = scores[scores["method"] == "random-mosaic"]["accuracy"].tolist()
    assert rows(Path("mosaic.json"))["accuracy"].tolist() == mosaics


def test_published_accuracy_is_said_with_its_source_at_the_scale_of_the_paper_only(iid: Run, monkeypatch) -> None:
    small = {key: value for key, value in SCALES["ci"].items() if key != "match.cc_scaling"} | IDM_SCALES["ci"]
    monkeypatch.setitem(PUBLISHED, ("shapes", 2), Row(small, "somebody's command"))
    monkeypatch.setitem(ACCURACIES, ("shapes", "idm", 2), Published(12.5, "a table"))
    said = "published: 12.5 % (a table); settings: somebody's command"
    arguments = ["distill", "idm", "--dataset", "shapes", "--ipc", "2"]
    assert said in iid(*arguments, "--scale", "paper", "--out", "paper").out
    assert "published" not in iid(*arguments, "--scale", "ci", "--out", "ci").out


def test_random_mosaics_are_left_out_where_a_class_has_too_few_images(iid: Run) -> None:
    arguments = ["distill", "idm", "--dataset", "shapes", "--scale", "ci", "--ipc", "11", "--out", "run"]
    assert_one_line(
        iid(*arguments), "ipc 11 with syn.factor 2 takes 44 real images per class, .* has 40; lower ipc to 10"
    )
    ended = iid(*arguments, "--set", "syn.init=crops")
    assert ended.status == 0 and "random-mosaic is left out: ipc 11 with syn.factor 2 takes 44" in ended.out
    assert set(rows(Path("run/scores.json"))["method"]) == {"random", "idm"}


def test_terms_that_need_two_images_are_said_to_be_left_out(iid: Run) -> None:
    common = ["--dataset", "shapes", "--scale", "ci", "--no-evaluate"]
    assert (
        "left out: cm (a class has only one image), cc (a class has only one image)"
        in iid("distill", "iid-dm", *common, "--ipc", "1").out
    )
    assert "left out" not in iid("distill", "dm", *common, "--ipc", "1").out
    assert "left out" not in iid("distill", "dm-cm", *common, "--ipc", "2").out


def test_signs_that_the_terminal_does_not_have(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert iid("evaluate", finished).status == 0
    sys.stdout.flush()
    assert b"iid-dm" in buffer.getvalue()


def test_default_folder_says_what_it_holds(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert iid("distill", "dm", *TINY, "--seed", "7", "--no-evaluate").status == 0
    assert Path("runs/dm-shapes-ipc2-ci-seed7/synthetic.safetensors").is_file()
    assert not Path("runs/dm-shapes-ipc2-ci-seed7/scores.json").exists()
    monkeypatch.setattr(cli.distill, "load", lambda *given: pytest.fail("the images are read before that is reported"))
    ended = iid("distill", "dm", *TINY, "--seed", "7", "--no-evaluate")
    assert_one_line(ended, "runs/dm-shapes-ipc2-ci-seed7 already exists; nothing was overwritten.*--resume")


def test_settings_reach_the_run(iid: Run) -> None:
    changes = ["match.cm = 0.5", "eval.networks=convnet1", "syn.init=noise", "match.augmentation=none", "syn.lr=5e-1"]
    ended = iid("distill", "dm-cm", *TINY, "--no-evaluate", "--out", "run", *[f"--set={text}" for text in changes])
    assert ended.status == 0
    config = from_yaml(Path("run/config.yaml").read_text())
    assert (config.match.cm, config.syn.init, config.match.augmentation, config.syn.lr) == (0.5, "noise", "none", 0.5)
    assert config.eval.networks == ("convnet1",)


def test_a_pool_is_trained_once_and_said_so(
    iid: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    iid("distill", "dm-cc", *TINY, "--out", "a", "--no-evaluate")
    said = [record.getMessage() for record in caplog.records]
    assert any("training 1 convnet3" in text for text in said)
    assert any("% on held-out images" in text for text in said)
    caplog.clear()
    iid("distill", "dm-cc", *TINY, "--out", "b", "--no-evaluate")
    assert not caplog.records
    assert Path("a/synthetic.safetensors").read_bytes() == Path("b/synthetic.safetensors").read_bytes()


# --- tables of results ------------------------------------------------------------------------------------------------


def test_results_have_every_column(iid: Run) -> None:
    command = ["distill", "iid-dm", *TINY, "--seed", "3", "--out", "my run", "--results", "deep/results.csv"]
    assert iid(*command).status == 0
    table = pd.read_csv("deep/results.csv")
    assert tuple(table.columns) == RESULT_COLUMNS
    distilled, beside = table[table["method"] == "iid-dm"], table[table["method"] == "random"]
    assert len(distilled) == len(beside) == 2
    assert table["command"].unique().tolist() == [shlex.join(["iid", *command])]
    for name, value in {"dataset": "shapes", "ipc": 2, "scale": "ci", "network": "convnet3", "seed": 3, "epochs": 4,
                        "protocol": "dm, 4 epochs, batch 256, lr 0.01, width 8", "networks_seed": 3,
                        "torch": torch.__version__, "iidlib": iidlib.__version__, "images": 8}.items():  # fmt: skip
        assert table[name].unique().tolist() == [value], name
    assert table["evaluation_seed"].tolist() == [0, 1, 0, 1]
    assert table["accuracy"].between(0, 100).all() and (table["peak_memory_mib"] > 50).all()
    assert (distilled["iterations"] == 4).all() and (beside["iterations"] == 0).all()
    spent = json.loads(Path("my run/metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    assert distilled["seconds_per_iteration"].tolist() == pytest.approx([spent / 4] * 2)
    assert beside["seconds_per_iteration"].isna().all()
    assert table["device"].str.contains("cpu|cuda|NVIDIA").all()
    assert (pd.to_datetime(table["date"]) > pd.Timestamp("2024-01-01", tz="UTC")).all()
    kept = rows(Path("my run/scores.json"))
    assert kept["accuracy"].tolist() == table["accuracy"].tolist() and tuple(kept.columns) == RESULT_COLUMNS


def test_rows_made_in_python_are_those_of_the_command(
    iid: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iidlib.evaluation import evaluate, made_by, origin_of
    from iidlib.experiments import result_rows

    monkeypatch.setitem(cells.EXPERIMENTS, "mine", cells.Experiment("Mine", (cells.Cell("cifar10", "iid-dm", 2),)))
    monkeypatch.setitem(SCALES, "tour", SCALES["ci"])  # the smallest scale that the list shows
    given = {"match.cm": 0.02, "eval.lr": 0.02}
    dataset = registry.load_dataset("cifar10-mini")
    config = preset("iid-dm", "cifar10-mini", 2, "tour", {"seed": 3} | given)
    result = distillation_run.distill(config, dataset)
    scores = evaluate(result.synthetic, dataset, protocol=config.eval, seed=config.seed, compute=config.compute)
    origin = dataclasses.replace(
        origin_of(result.synthetic), settings=given, pool_accuracies=result.pool.accuracies, seconds_per_iteration=1.0
    )
    ours = result_rows(scores, config, origin=origin, made_by=made_by(dataset.test.device))
    append_results(tmp_path / "python" / "mine.csv", ours)

    command = ["distill", "iid-dm", "--dataset", "cifar10-mini", "--ipc", "2", "--scale", "tour", "--seed", "3"]
    command += [f"--set={key}={value}" for key, value in given.items()]
    assert iid(*command, "--no-baseline", "--out", "run", "--results", "command/mine.csv").status == 0
    theirs, ours = pd.read_csv("command/mine.csv"), pd.read_csv(tmp_path / "python" / "mine.csv")
    assert tuple(ours.columns) == RESULT_COLUMNS and len(ours) == 2
    pd.testing.assert_frame_equal(ours.drop(columns=TIMES), theirs.drop(columns=TIMES))
    assert ours["command"].isna().all() and ours["commit"].equals(theirs["commit"])
    assert theirs["distilled_on"].equals(theirs["device"]) and ours["distilled_on"].isna().all(), "no folder says where"

    plain = preset("iid-dm", "cifar10-mini", 2, "tour")
    scores = evaluate(result.synthetic, dataset, protocol=plain.eval, seed=3, compute=plain.compute)
    append_results(Path("plain/mine.csv"), result_rows(scores, plain))
    for folder, counted in (("python", False), ("command", False), ("plain", True)):
        listed = iid("reproduce", "mine", "--list", "--results", folder).out
        mean = f"{pd.read_csv(Path(folder) / 'mine.csv')['accuracy'].mean():.1f} (1)"
        assert (mean in listed) == counted, listed


def test_adding_results_keeps_earlier_rows_to_the_letter(iid: Run) -> None:
    # a commit that reads as a number, digits that a float would lose, quotes, a column of somebody's own
    earlier = 'dataset,method,accuracy,commit,note\nx,"a ""b"", c",37.123456789012345678,1e10,\ny,dm,038,000123,é [i]\n'
    Path("results.csv").write_text(earlier, encoding="utf-8")
    for number in (1, 2):
        ended = iid("evaluate", "random", *TINY, "--num-eval", "1", "--results", "results.csv")
        assert ended.status == 0, ended
        lines = Path("results.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 3 + number
        header, *before = earlier.splitlines()
        assert lines[0].startswith(header) and set(RESULT_COLUMNS) <= set(lines[0].split(","))
        added = len(lines[0].split(",")) - len(header.split(","))
        assert lines[1:3] == [line + "," * added for line in before]


def test_rows_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    row = {"dataset": "d", "method": "m", "accuracy": 1.5}

    def add(number: int) -> None:
        append_results(path, pd.DataFrame([row | {"seed": number}]))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pd.read_csv(path)["seed"]) == list(range(16))
    assert list(tmp_path.iterdir()) == [path]


def test_results_behind_a_link_stay_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here.csv").symlink_to(tmp_path / "there" / "results.csv")
    append_results(tmp_path / "here.csv", pd.DataFrame([{"dataset": "d", "method": "m", "accuracy": 1.5}]))
    assert (tmp_path / "here.csv").is_symlink() and len(pd.read_csv(tmp_path / "there" / "results.csv")) == 1


NO_TABLES = {
    "text": (b"# Results\n\nof a run\n", "no column 'dataset'"),
    "other table": (b"dataset,accuracy\na,1\n", "no column 'method'"),
    "long row": (b"dataset,method,accuracy\na,dm,1\na,dm,1,2\n", "row 3 has 4 values for 3 columns"),
    "half row": (b"dataset,method,accuracy\na,dm,1\na,d", "row 3 has 2 values for 3 columns"),
    "open quote": (b'dataset,method,accuracy\na,"dm,1\n', "unexpected end of data"),
    "twice": (b"dataset,method,accuracy,dataset\na,dm,1,b\n", "no column 'dataset'|more than one"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "codec can't decode|line contains NUL"),
}


@pytest.mark.parametrize("case", NO_TABLES)
@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_malformed_results_are_found_before_anything_starts(
    iid: Run, monkeypatch: pytest.MonkeyPatch, command: str, case: str
) -> None:
    monkeypatch.setattr(registry, "load_dataset", lambda *given, **named: pytest.fail("something was started"))
    content, message = NO_TABLES[case]
    Path("results.csv").write_bytes(content)
    what = ["dm", "--out", "run"] if command == "distill" else ["random"]
    assert_one_line(iid(command, *what, *TINY, "--results", "results.csv"), f"results.csv is not a table.*{message}")
    assert contents(Path()) == {"results.csv": content}


@pytest.mark.parametrize("option", ["--results", "--out"])
def test_files_that_cannot_be_written_are_found_before_anything_starts(
    iid: Run, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(registry, "load_dataset", lambda *given, **named: pytest.fail("something was started"))
    Path("file").write_text("mine")
    Path("folder").mkdir()
    for path, message in {"file/x.csv": "cannot write", "file/y/x.csv": "cannot write", "x" * 300: "cannot write",
                          "folder": "already exists|Is a directory"}.items():  # fmt: skip
        assert_one_line(iid("evaluate", "random", *TINY, option, path), message)
    assert contents(Path()) == {"file": b"mine"}
    if option == "--results":
        assert_one_line(iid("distill", "dm", *TINY, option, "file/x.csv"), "cannot write")


def test_results_need_an_evaluation(iid: Run) -> None:
    ended = iid("distill", "dm", *TINY, "--no-evaluate", "--results", "results.csv")
    assert_one_line(ended, "--results needs an evaluation")


# --- settings ---------------------------------------------------------------------------------------------------------


def resolved(ended: Ended) -> dict[str, tuple[object, str]]:
    assert ended.status == 0, ended
    return {row["key"]: (row["value"], row["source"]) for row in json.loads(ended.out)}


def test_each_setting_is_shown_with_where_it_comes_from(iid: Run) -> None:
    command = ["config", "iid-idm", "--dataset", "tinyimagenet", "--ipc", "50", "--scale", "paper", "--seed", "3"]
    found = resolved(iid(*command, "--set", "match.cm=5e-4", "--json"))
    assert found["method"] == ("iid-idm", "METHOD") and found["seed"] == (3, "--seed")
    assert found["ipc"] == (50, "--ipc") and found["scale"] == ("paper", "--scale")
    assert found["match.cm"] == (0.0005, "--set") and found["match.cc"] == (0.01, "method")
    assert found["eval.networks"] == (["convnet4"], "dataset") and found["match.ce"] == (0.8, "published row")
    assert found["match.width"] == (128, "default")
    usual = resolved(iid("config", "idm", "--json"))
    assert usual["dataset"] == ("cifar10-mini", "default") and usual["seed"] == (0, "default")
    assert usual["match.width"] == (32, "scale") and usual["queue.every"] == (10, "method at this scale")
    one = resolved(iid("config", "iid-plus", "--ipc", "1", "--json"))
    assert one["match.ce"] == (2.0, "method at this IPC") and one["pool.count"] == (3, "method at this scale")


@pytest.mark.parametrize("method", ["dm", "iid-idm", "random-mosaic"])
def test_settings_as_json_make_the_config_of_the_run(iid: Run, method: str) -> None:
    command = ["config", method, *TINY, "--iterations", "7", "--set", "pool.epochs_kept=1,2", "--json"]
    values = {key: value for key, (value, _) in resolved(iid(*command)).items()}
    made = preset(method, "shapes", 2, "ci", {"iterations": 7, "pool.epochs_kept": (1, 2)})
    assert override(RunConfig(), values) == made
    assert fingerprint(override(RunConfig(), values)) == fingerprint(made)


def test_settings_have_whole_values_in_80_columns(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.console, "width", 80)
    long = "folder:/a/rather/long/path/to/somebody's/own/images/that/is/given/in/full?size=64"
    shown = iid(
        "config", "iid-idm", "--dataset", "cifar10", "--ipc", "1", "--scale", "paper", "--set", f"pool.path={long}"
    )
    lines = shown.out.splitlines()
    assert shown.status == 0 and lines[0] == "iid-idm on cifar10, IPC 1, scale paper"
    assert [line.partition("=")[0] for line in lines[1:-1]] == list(settings())
    assert f"pool.path={long}  (--set)" in lines and "match.batch_real=5000  (published row)" in lines
    assert "published row: uitrbn/IDM, command.txt" in shown.out


def test_settings_are_shown_without_loading_the_library() -> None:
    code = (
        "import sys; from iidlib import cli\n"
        "try: cli.main(['config', 'iid-idm', *sys.argv[1:]])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "slow = {'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    for words in ([], ["--json"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=wide())
        assert done.returncode == 0, done.stderr


def test_config_of_the_whole_set_is_what_its_evaluation_takes(iid: Run) -> None:
    def epochs(*more: str) -> dict[str, object]:
        rows = json.loads(iid("config", "whole", "--dataset", "shapes", *more, "--json").out)
        return next(row for row in rows if row["key"] == "eval.epochs")

    assert epochs() == {"key": "eval.epochs", "value": 60, "source": "method"}
    assert epochs("--set", "eval.epochs=70") == {"key": "eval.epochs", "value": 70, "source": "--set"}


@pytest.mark.parametrize("link", [False, True])
def test_scores_replace_no_file_behind_a_way_back_up_or_a_link(iid: Run, tmp_path: Path, link: bool) -> None:
    Path("x.json").write_text("mine")
    if link:
        Path("link.json").symlink_to("nowhere.json")
    given = ["evaluate", "random", "--dataset", "shapes", "--ipc", "1", "--scale", "ci"]
    assert_one_line(iid(*given, "--out", "link.json" if link else "new/../x.json"), "already exists; nothing was")
    assert Path("x.json").read_text() == "mine" and (not link or Path("link.json").is_symlink())


def test_a_file_at_the_place_of_a_tables_lock_is_reported_before_the_run(iid: Run) -> None:
    Path(".rows.csv.lock").write_text("mine")
    given = ["evaluate", "random", "--dataset", "shapes", "--ipc", "1", "--scale", "ci", "--results", "rows.csv"]
    assert_one_line(iid(*given), "is needed as a lock and is another file; move it away")
    assert Path(".rows.csv.lock").read_text() == "mine" and not Path("rows.csv").exists()


def test_operations_named_without_torch_are_those_of_the_augmentation() -> None:
    assert cli.config.OPERATIONS == OPERATIONS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "match.network=convnt3"], r"unknown network 'convnt3'; did you mean 'convnet3'\?"),
        (["--set", "pool.network=resnet19"], r"unknown network 'resnet19'; did you mean 'resnet18'"),
        (["--set", "eval.networks=convnet3,foo"], "unknown network 'foo'; choose one of convnet1, "),
        (
            ["--set", "eval.augmentation=flip>crops"],
            r"unknown DSA operation 'crops' in eval.augmentation; did you mean",
        ),
        (["--set", "match.augmentation=flip>crop"], "unknown DSA operation 'flip>crop' in match.augmentation; "),
        (["--dataset", "folder:"], "dataset 'folder:' has no path; write it as folder:PATH"),
        (["--dataset", "folder:?size=32"], "has no path"),
        (
            ["--set", "match.cm=0.02"],
            "match.cm=0.02 has no effect on dm: only dm-cm, .*; take dm-cm, or leave match.cm out",
        ),
    ],
)
def test_config_checks_names_as_a_run_does(iid: Run, given: list[str], message: str) -> None:
    assert_one_line(iid("config", "dm", *given), message)
    assert (
        iid("config", "dm", "--set", "eval.augmentation=flip>color_crop", "--set", "match.augmentation=none").status
        == 0
    )


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_keys_and_values_of_config_are_whole_in_any_terminal(
    iid: Run, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.console, "_width", width)
    path = "/data/" + "a-long-name/" * 6
    out = iid("config", "dm", "--set", f"pool.path={path}", "--set", "eval.networks=convnet3,resnet18-bn,vgg11").out
    for text in ("checkpoint.seconds", "match.cc_scaling", path, "convnet3,resnet18-bn,vgg11"):
        assert text in out, "whole, on one line"


def test_a_set_of_an_unknown_method_is_still_evaluated(iid: Run, finished: Path) -> None:
    path = finished / "synthetic.safetensors"
    own = changed(path.read_bytes(), provenance='{"method": "somebody\'s", "seed": "3", "scale": "ci"}')
    Path("theirs.safetensors").write_bytes(own)
    ended = iid("evaluate", "theirs.safetensors", "--no-baseline", "--results", "theirs.csv")
    assert ended.status == 0, ended
    theirs = pd.read_csv("theirs.csv")
    assert set(theirs["method"]) == {"somebody's"} and set(theirs["scale"]) == {"ci"}
    # nothing of the evaluation depends on the name
    assert iid("evaluate", path, "--no-baseline", "--results", "ours.csv").status == 0
    assert theirs["accuracy"].tolist() == pd.read_csv("ours.csv")["accuracy"].tolist()


def test_a_set_of_an_unknown_scale_keeps_its_name_under_the_scale_that_is_asked_for(iid: Run, finished: Path) -> None:
    own = changed((finished / "synthetic.safetensors").read_bytes(), provenance='{"method": "dm", "scale": "huge"}')
    Path("theirs.safetensors").write_bytes(own)
    ended = iid("evaluate", "theirs.safetensors", "--scale", "ci", "--no-baseline", "--results", "theirs.csv")
    assert ended.status == 0, ended
    assert set(pd.read_csv("theirs.csv")["scale"]) == {"huge"}


# --- what is found out before the work, and what is kept after it ----------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ("convnet3,convnet33", "unknown network 'convnet33'"),
        (
            "convnet2,vgg11",
            "vgg11 takes square images of a side that is a multiple of 32 .*got image_size 16; convnet1, ",
        ),
        ("convnet2,resnet18", "resnet18 takes square images"),
    ],
)
@pytest.mark.parametrize("command", ["distill", "evaluate", "continual"])
def test_a_network_that_cannot_take_the_images_is_found_out_before_any_work(
    iid: Run, monkeypatch: pytest.MonkeyPatch, command: str, networks: str, message: str
) -> None:
    small = registry.shapes(4, 8, 16)
    monkeypatch.setattr(registry, "shapes", lambda: small)
    monkeypatch.setattr(distillation_step.Distillation, "step", lambda *given, **named: pytest.fail("distilled"))
    monkeypatch.setattr(evaluation_run, "fit", lambda *given, **named: pytest.fail("trained"))
    own = ["--steps", "2"] if command == "continual" else []
    given = [command, "random" if command == "evaluate" else "dm", *TINY, *own, "--out", "out"]
    ended = iid(*given, "--set", f"eval.networks={networks}", "--set", "match.network=convnet2")
    assert_one_line(ended, message)
    assert not Path("out").exists() and not Path("runs").exists()


def test_without_an_evaluation_its_networks_do_not_matter(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small = registry.shapes(4, 8, 16)
    monkeypatch.setattr(registry, "shapes", lambda: small)
    ended = iid("distill", "dm", *TINY, "--set", "eval.networks=vgg11", "--no-evaluate", "--out", "run")
    assert ended.status == 0, ended


@pytest.fixture
def fails_at_the_third(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The third network of a set cannot be trained at first; the list has an entry for each attempt."""
    trained, fit = [], evaluation_run.fit

    def failing(*given: object, **named: object) -> object:
        trained.append(1)
        if len(trained) == 3:
            raise torch.OutOfMemoryError("no memory")
        return fit(*given, **named)

    monkeypatch.setattr(evaluation_run, "fit", failing)
    return trained


def test_rows_of_finished_networks_are_kept_when_a_later_one_fails(
    iid: Run,
    finished: Path,
    fails_at_the_third: list[int],
    interrupted_evaluations_of_this_test: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = contents(finished)
    given = ["evaluate", "run", "--networks", "convnet3,convnet2", "--out", "s.json", "--results", "r.csv"]
    ended = iid(*given)
    assert ended.status == 1, ended
    assert (
        "2 networks were already evaluated; their rows are saved in s-incomplete.json and r.csv; a resumed "
        "evaluation continues after them" in ended.err
    )
    assert "out of memory" in ended.err
    kept = rows(Path("s-incomplete.json"))
    assert kept["network"].tolist() == ["convnet3"] * 2 and kept["incomplete"].all()
    assert kept["accuracy"].tolist() == rows(finished / "scores.json").query("method == 'iid-dm'")["accuracy"].tolist()
    assert pd.read_csv("r.csv")["accuracy"].tolist() == kept["accuracy"].tolist()
    assert contents(finished) == before, "another protocol than the run's own"
    again = iid(*given)
    assert again.status == 0, again
    assert "resuming an interrupted evaluation: 2 of 4 networks are finished" in caplog.messages
    assert len(fails_at_the_third) == 3 + 6, "two networks of the set, and four of random images"
    table, scores = pd.read_csv("r.csv"), rows(Path("s.json"))
    assert len(table) == len(scores) == 8 and not table.duplicated(["method", "network", "evaluation_seed"]).any()
    own = scores[scores["method"] == "iid-dm"]
    assert own["seconds"].tolist()[:2] == kept["seconds"].tolist()
    assert not Path("s-incomplete.json").exists() and not interrupted_evaluations_of_this_test.exists()


def test_a_distillation_whose_evaluation_fails_keeps_its_rows_beside_the_set(
    iid: Run, fails_at_the_third: list[int]
) -> None:
    ended = iid("distill", "dm", *TINY, "--out", "run")
    assert ended.status == 1 and "their rows are saved in run/scores-incomplete.json" in ended.err, ended
    assert set(rows(Path("run/scores-incomplete.json"))["method"]) == {"dm"}
    assert not Path("run/scores.json").exists()
    assert iid("distill", "dm", *TINY, "--out", "run", "--resume").status == 0
    assert len(fails_at_the_third) == 3 + 2, "only the random images are left, of which one had failed"
    assert len(rows(Path("run/scores.json"))) == 4 and not Path("run/scores-incomplete.json").exists()


def test_rows_find_a_place_where_the_table_has_become_something_else(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = evaluation_run.reached

    def meanwhile(*given: object) -> object:
        Path("r.csv").write_text("a shopping list")
        return reached(*given)

    monkeypatch.setattr(evaluation_run, "reached", meanwhile)
    ended = iid("evaluate", "run", "--results", "r.csv", "--no-baseline", "--num-eval", "1")
    assert ended.status == 2 and "r.csv is not a table of results" in ended.err, ended
    assert "1 networks were already evaluated; their rows are saved in scores-incomplete.json" in ended.err
    assert len(rows(Path("scores-incomplete.json"))) == 1 and Path("r.csv").read_text() == "a shopping list"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_that_appears_where_the_scores_go_stays_as_it_is(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    reached = evaluation_run.reached

    def meanwhile(*given: object) -> object:
        Path("s.json").write_text("mine")
        return reached(*given)

    def no_links(*given: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(evaluation_run, "reached", meanwhile)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    ended = iid("evaluate", "run", "--out", "s.json", "--no-baseline")
    assert (
        ended.status == 0
        and "s.json was created in the meantime and is not overwritten; the scores are in s-2.json" in ended.err
    )
    assert Path("s.json").read_text() == "mine" and len(rows(Path("s-2.json"))) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["run", "s-2.json", "s.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["distill", "dm", *TINY, "--out", "g", "--results", "g/scores.json"],
            "reserved for files of the run in g",
        ),
        (
            ["distill", "dm", *TINY, "--out", "g", "--results", "g/../g/config.yaml"],
            "reserved for files of the run in g",
        ),
        (
            ["distill", "dm", *TINY, "--out", "g", "--results", "g/checkpoints/r.csv"],
            "reserved for files of the run in g",
        ),
        (["distill", "dm", *TINY, "--out", "g", "--results", "g"], "--results g and --out g are the same"),
        (
            ["distill", "dm", *TINY, "--out", "g/run", "--results", "g"],
            "--results g and --out g/run overlap",
        ),
        (["evaluate", "random", *TINY, "--out", "s", "--results", "s"], "--results s and --out s are the same"),
        (
            ["evaluate", "random", *TINY, "--out", "s", "--results", "s/r.csv"],
            "overlap: one of them is a file",
        ),
        (["evaluate", "run", "--results", "run/scores-incomplete.json"], "reserved for files of the run in run"),
        (["evaluate", "run", "--results", "run/scores-12.json"], "reserved for files of the run in run"),
    ],
)
def test_a_table_where_the_command_writes_something_else_is_found_out_before(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(evaluation_run, "fit", lambda *given, **named: pytest.fail("trained"))
    before = contents(Path())
    assert_one_line(iid(*arguments), message)
    assert contents(Path()) == before


def test_a_table_of_its_own_may_lie_in_the_runs_folder(iid: Run) -> None:
    assert iid("distill", "dm", *TINY, "--out", "g", "--results", "g/rows.csv").status == 0
    assert len(pd.read_csv("g/rows.csv")) == 4


# --- a set and another dataset ---------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images as people have it: two classes, six images for training and four for testing of each."""
    drawn = registry.shapes(2, 6, 8)
    for part, real in (("train", drawn.train), ("test", drawn.test)):
        for name, label in (("cats", 0), ("dogs", 1)):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number, index in enumerate(real.of_class(label)[:6]):
                Image.fromarray(real.images[index].permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return Path("pictures")


SMALL = ("--ipc", "1", "--scale", "ci")


def test_a_set_is_evaluated_after_its_folder_has_changed(
    iid: Run, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert iid("distill", "dm", "--dataset", "folder:pictures", *SMALL, "--no-evaluate", "--out", "run").status == 0
    log_once.cache_clear()
    before = iid("evaluate", "run", "--no-baseline", "--out", "before.json")
    assert before.status == 0 and "note" not in caplog.text, before
    (pictures / "train" / "cats" / "0.png").unlink()
    ended = iid("evaluate", "run", "--out", "after.json")
    assert ended.status == 0, ended
    reported = [record.getMessage() for record in caplog.records if "note: " in record.getMessage()]
    assert len(reported) == 1
    assert reported[0].startswith(
        "note: the training images of folder:pictures are no longer those that the set was made from"
    )
    own = rows(Path("after.json")).query("method == 'dm'")
    assert own["accuracy"].tolist() == rows(Path("before.json"))["accuracy"].tolist(), "the same test images"


def test_a_set_is_evaluated_on_a_new_folder_of_its_classes(
    iid: Run, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert iid("distill", "dm", "--dataset", "folder:pictures", *SMALL, "--no-evaluate", "--out", "run").status == 0
    shutil.copytree("pictures", "newer")
    for path in Path("newer/train/dogs").iterdir():
        Image.new("RGB", (8, 8), (200, 10, 10)).save(path)
    log_once.cache_clear()
    ended = iid("evaluate", "run", "--dataset", "folder:newer", "--results", "r.csv")
    assert ended.status == 0, ended
    assert (
        "note: the set was made from folder:pictures and is tested on folder:newer; images are normalised with the "
        "set's own mean and standard deviation" in caplog.text
    )
    table = pd.read_csv("r.csv", keep_default_na=False)
    assert set(table["dataset"]) == {"folder:newer"} and table["method"].tolist() == ["random"] * 2 + ["dm"] * 2
    assert table["settings"].tolist() == ["", "", *["made_from=folder:pictures"] * 2]


def test_a_folder_with_too_few_images_for_random_ones_beside_a_set_is_no_obstacle(iid: Run, pictures: Path) -> None:
    made = iid(
        "distill", "dm", "--dataset", "folder:pictures", "--ipc", "4", *SMALL[2:], "--no-evaluate", "--out", "run"
    )
    assert made.status == 0, made
    for path in sorted(Path("pictures/train/cats").iterdir())[3:]:
        path.unlink()
    ended = iid("evaluate", "run", "--out", "s.json")
    assert (
        ended.status == 0 and "random is left out: ipc must be 1 to 3, the training images of class 'cats'" in ended.out
    )
    assert set(rows(Path("s.json"))["method"]) == {"dm"}


def test_a_class_without_test_images_is_reported_once(
    iid: Run, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "test"):
        shutil.copytree(pictures / part / "dogs", pictures / part / "wolves")
    shutil.rmtree(pictures / "test" / "dogs")
    log_once.cache_clear()
    ended = iid("distill", "dm", "--dataset", "folder:pictures", *SMALL, "--out", "run")
    assert ended.status == 0, ended
    reported = "no test images of 1 of its 3 classes ('dogs'); accuracies are over the 12 images of the other 2"
    assert sum(reported in record.getMessage() for record in caplog.records) == 1
    scores = rows(Path("run/scores.json"))
    assert set(scores["untested_classes"]) == {"dogs"} and set(scores["test_images"]) == {12}


def test_a_set_of_a_dataset_that_is_not_known_here_says_what_to_give(iid: Run, finished: Path) -> None:
    path = finished / "synthetic.safetensors"
    path.write_bytes(changed(path.read_bytes(), dataset="birds"))
    message = "unknown dataset 'birds'.*the set was distilled from birds; choose another dataset to test on"
    assert_one_line(iid("evaluate", "run"), message)
    assert iid("evaluate", "run", "--dataset", "shapes", "--no-baseline").status == 0


@pytest.mark.parametrize("what", ["res_DC.pt", "synthetic.png", "run"])
def test_what_is_no_set_is_named_as_what_it_is(iid: Run, finished: Path, what: str) -> None:
    (finished / "synthetic.safetensors").unlink()
    torch.save({"data": [[torch.zeros(1), torch.zeros(1)]], "accs_all_exps": {}}, "res_DC.pt")
    Image.new("RGB", (4, 4)).save("synthetic.png")
    named = {
        "res_DC.pt": "in DatasetCondensation's layout",
        "synthetic.png": "is a PNG picture of 4 x 4",
        "run": "a run that",
    }
    assert_one_line(iid("evaluate", what), named[what])


# --- wrong input ------------------------------------------------------------------------------------------------------

WRONG = {
    "no method": (["distill"], "Missing argument.*iid distill --help"),
    "method": (["distill", "idm-dm"], "unknown method 'idm-dm'; did you mean 'iid-dm'"),
    "dataset": (["distill", "dm", "--dataset", "cifer10"], "unknown dataset 'cifer10'; did you mean 'cifar10'"),
    "scale": (["distill", "dm", "--scale", "papper"], "unknown scale 'papper'; did you mean 'paper'"),
    "network": (["distill", "dm", *TINY, "--set", "match.network=convnet5"], "unknown network 'convnet5'; did you"),
    "pool network": (["distill", "dm", *TINY, "--set", "pool.network=resnet19"], "'resnet19'; did you mean 'resnet18'"),
    "eval network": (["distill", "dm", *TINY, "--set", "eval.networks=lenet,vgg"], "unknown network 'vgg'"),
    "eval augmentation": (["distill", "dm", *TINY, "--set", "eval.augmentation=colour"], "colour"),
    "augmentation": (["distill", "dm", *TINY, "--set", "match.augmentation=colour"], "colour"),
    "key": (["distill", "dm", *TINY, "--set", "match.cn=1"], "unknown setting 'match.cn'; did you mean 'match.cm'"),
    "config method": (["config", "iid-md"], "unknown method 'iid-md'; did you mean 'iid-dm'"),
    "config dataset": (["config", "dm", "--dataset", "cifer10"], "unknown dataset 'cifer10'; did you mean 'cifar10'"),
    "config scale": (["config", "dm", "--scale", "papper"], "unknown scale 'papper'; did you mean 'paper'"),
    "config key": (["config", "dm", "--set", "match.cn=1"], "unknown setting 'match.cn'; did you mean 'match.cm'"),
    "config value": (["config", "dm", "--set", "match.cm=-1"], "match.cm must not be negative, got -1.0"),
    "no equals": (["distill", "dm", *TINY, "--set", "match.cm"], "--set takes KEY=VALUE, got 'match.cm'"),
    "value": (["distill", "dm", *TINY, "--set", "match.cm=much"], "match.cm must be a number, got 'much'"),
    "value range": (["distill", "dm", *TINY, "--set", "match.width=0"], "match.width must be above 0"),
    "choice": (["distill", "dm", *TINY, "--set", "compute.compile=maybe"], "must be one of auto, on, off"),
    "scale by set": (["distill", "dm", *TINY, "--set", "scale=paper"], "scale cannot be given with --set"),
    "ipc 0": (["distill", "dm", "--dataset", "shapes", "--ipc", "0"], "ipc must be above 0, got 0"),
    "ipc negative": (["distill", "dm", "--dataset", "shapes", "--ipc", "-3"], "ipc must be above 0, got -3"),
    "ipc above": (["distill", "dm", "--dataset", "shapes", "--ipc", "41"], "ipc must be 1 to 40.*not 41"),
    "ipc word": (["distill", "dm", "--ipc", "ten"], "--ipc.*iid distill --help"),
    "iterations": (["distill", "dm", *TINY, "--iterations", "0"], "iterations must be above 0"),
    "seed": (["distill", "dm", *TINY, "--seed", "-1"], "seed must not be negative"),
    "device": (["distill", "dm", *TINY, "--device", "gpu"], "device 'gpu' is not known; choose auto"),
    "option": (["distill", "dm", "--ipk", "3"], "No such option: --ipk.*--ipc"),
    "extra": (["distill", "dm", "extra"], "unexpected extra argument"),
    "command": (["distil", "dm"], "No such command 'distil'"),
    "resume nothing": (["distill", "dm", *TINY, "--resume"], "no run to resume at runs/dm-shapes.*omit --resume"),
    "pool path": (["distill", "dm-cc", *TINY, "--out", "x", "--set", "pool.path=nowhere"], "no folder nowhere"),
    "no data": (["distill", "dm", "--dataset", "cifar10", "--data-root", "nowhere"], "cifar10 not found.*data fetch"),
    "evaluate nothing": (["evaluate"], "Missing argument"),
    "evaluate absent": (["evaluate", "nowhere"], "no synthetic set at nowhere"),
    "evaluate network": (["evaluate", "random", *TINY, "--networks", "convnet3,alexnt"], "'alexnt'; did you mean"),
    "evaluate no network": (["evaluate", "random", *TINY, "--networks", ""], "eval.networks must be names"),
    "evaluate epochs": (["evaluate", "random", *TINY, "--epochs", "0"], "eval.epochs must be above 0"),
    "evaluate num": (["evaluate", "random", *TINY, "--num-eval", "0"], "eval.num_eval must be above 0"),
    "evaluate ipc": (["evaluate", "random", "--dataset", "shapes", "--ipc", "41"], "ipc must be 1 to 40.*not 41"),
    "evaluate ipc 0": (["evaluate", "random", "--dataset", "shapes", "--ipc", "0"], "ipc must be above 0"),
    "evaluate dataset": (["evaluate", "random", "--dataset", "shape"], "'shape'; did you mean 'shapes'"),
    "experts no out": (["experts"], "Missing option '--out'"),
    "experts network": (["experts", "--out", "pool", "--network", "resnet19"], "did you mean 'resnet18'"),
    "experts count": (["experts", "--out", "pool", "--count", "0"], "pool.count must be above 0"),
    "experts untrained": (["experts", "--dataset", "shapes", "--out", "pool", "--network", "convnet1", "--set",
                           "pool.width=1", "--set", "pool.lr=1e-9", "--count", "1", "--epochs", "1",
                           "--set", "compute.compile=off"],
                          "no better than guessing .* Raise pool.epochs"),
    "bench device": (["bench", "--device", "gpu"], "device 'gpu' is not known"),
    "data nothing": (["data"], "Missing command.*iid data --help"),
    "data check": (["data", "check", "cifar"], "unknown dataset 'cifar'; did you mean 'cifar10'"),
    "data check absent": (["data", "check", "cifar10", "--data-root", "nowhere"], "cifar10 not found"),
    "data fetch": (["data", "fetch", "cifar"], "unknown dataset 'cifar'"),
    "data fetch where": (["data", "fetch", "cifar10"], "no folder to download cifar10 to"),
    "sweep": (["sweep", "nowhere.yaml"], "cannot read the grid nowhere.yaml"),
    "sweep workers": (["sweep", "nowhere.yaml", "--workers", "two"], "--workers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(
    iid: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    monkeypatch.delenv("IID_DATA", raising=False)
    arguments, message = WRONG[case]
    assert_one_line(iid(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_experts_remove_no_folder_that_was_there(iid: Run, tmp_path: Path) -> None:
    untrained, _ = WRONG["experts untrained"]
    (tmp_path / "pool").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    assert_one_line(iid(*untrained), "Raise pool.epochs")
    assert_one_line(iid(*["a/b/pool" if word == "pool" else word for word in untrained]), "Raise pool.epochs")
    assert_one_line(
        iid(*["link" if word == "pool" else word for word in untrained]), "link is a link that leads nowhere"
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "pool"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("arguments", [["distill", "dm", *TINY], ["evaluate", "random"], ["experts", "--out", "pool"]])
def test_cuda_asked_for_and_absent(iid: Run, arguments: list[str], tmp_path: Path) -> None:
    assert_one_line(iid(*arguments, "--device", "cuda"), "'cuda' requested, but torch sees 0 CUDA")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(iid: Run, finished: Path) -> None:
    Path("file").write_text("mine")
    Path("link").symlink_to("run")
    before = contents(Path())
    for out in ("run", "link", "file", "."):
        assert_one_line(iid("distill", "dm", *TINY, "--out", out), f"{re.escape(out)} already exists; nothing was over")
    assert_one_line(iid("distill", "dm", *TINY, "--out", "file/run"), "cannot write the run folder")
    assert_one_line(iid("evaluate", "run", "--results", ""), "is not a table of results")
    assert_one_line(iid("evaluate", "run", "--out", "file"), "file already exists; nothing was overwritten")
    assert_one_line(iid("experts", "--out", "file", "--dataset", "shapes"), "cannot write file")
    assert contents(Path()) == before


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root writes everywhere, and Windows' folders differ")
def test_folder_without_permission(iid: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    assert_one_line(iid("distill", "dm", *TINY, "--out", "locked/run"), "cannot write the run folder locked/run")
    assert_one_line(iid("evaluate", "random", *TINY, "--results", "locked/r.csv"), "cannot write locked/r.csv")


# --- corrupted files --------------------------------------------------------------------------------------------------


def changed(content: bytes, **metadata: str) -> bytes:
    """The same tensors with other metadata, which no checksum covers, as in version 0.1.0."""
    length = int.from_bytes(content[:8], "little")
    known = json.loads(content[8 : 8 + length])["__metadata__"]
    known.pop("metadata_sha256", None)
    return to_bytes(from_bytes(content), {**known, **metadata})


def with_tensors(content: bytes, **tensors: torch.Tensor) -> bytes:
    length = int.from_bytes(content[:8], "little")
    return to_bytes({**from_bytes(content), **tensors}, json.loads(content[8 : 8 + length])["__metadata__"])


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"a text\nof two lines\n",
    "truncated": lambda content: content[:-1000],
    "header cut": lambda content: content[:40],
    "header flipped": lambda content: content[:12] + bytes([content[12] ^ 0xFF]) + content[13:],
    "header length": lambda content: b"\xff" * 8 + content[8:],
    "other format": lambda content: changed(content, format="mine"),
    "no metadata": lambda content: to_bytes(from_bytes(content)),
    "dataset size": lambda content: changed(content, image_size="64"),
    "size no number": lambda content: changed(content, image_size="big"),
    "classes": lambda content: changed(content, classes='["a", "b"'),
    "classes number": lambda content: changed(content, classes="3"),
    "fewer classes": lambda content: changed(content, classes='["a", "b", "c"]'),
    "factor": lambda content: changed(content, factor="3"),
    "factor no number": lambda content: changed(content, factor="two"),
    "provenance": lambda content: changed(content, provenance="[1]"),
    "seed": lambda content: changed(content, provenance='{"method": "dm", "seed": "x"}'),
    "iterations": lambda content: changed(content, provenance='{"method": "dm", "iterations": "many"}'),
    "scale": lambda content: changed(content, provenance='{"method": "dm", "scale": "huge"}'),
    "not finite": lambda content: with_tensors(content, images=torch.full((8, 3, 32, 32), float("nan"))),
    "no images": lambda content: with_tensors(content, images=torch.zeros(0, 3, 32, 32), labels=torch.zeros(0).long()),
    "bytes": lambda content: with_tensors(content, images=torch.zeros(8, 3, 32, 32, dtype=torch.uint8)),
    "labels": lambda content: with_tensors(content, labels=torch.zeros(8).long()),
    "labels as numbers": lambda content: with_tensors(content, labels=torch.arange(4).repeat_interleave(2).float()),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corrupted_set_is_one_line(iid: Run, finished: Path, case: str) -> None:
    file = finished / "synthetic.safetensors"
    file.write_bytes(CORRUPTIONS[case](file.read_bytes()))
    before = contents(Path())
    ended = iid("evaluate", "run")
    assert_one_line(ended, "run/synthetic.safetensors|run is corrupted|scale 'huge'")
    assert len(ended.err) < 400 and contents(Path()) == before


CORRUPTED_CONFIGS = {
    "binary": b"\xff\xfe\x00",
    "not yaml": b"method: [",
    "a list": b"- 1\n",
    "empty": b"",
    "unknown": b"method: iid-dm\nipk: 3\n",
    "group": b"match: 3\n",
    "type": b"iterations: many\n",
    "list": b"eval:\n  networks: 3\n",
    "nested": b"ipc:\n  a: 1\n",
}


@pytest.mark.parametrize("case", CORRUPTED_CONFIGS)
def test_corrupted_config_is_one_line(iid: Run, finished: Path, case: str) -> None:
    (finished / "config.yaml").write_bytes(CORRUPTED_CONFIGS[case])
    before = contents(Path())
    for command in (["distill", "iid-dm", *TINY, "--out", "run", "--resume"], ["evaluate", "run"]):
        assert_one_line(iid(*command), "run/config.yaml")
        assert contents(Path()) == before


def test_a_tilde_is_the_users_home_in_every_option_that_is_a_path(
    iid: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves it as it is in --out=~/run."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    ended = iid("distill", "dm", *TINY, "--out=~/run", "--results=~/all.csv", "--data-root=~/data")
    assert ended.status == 0, ended.err
    assert iid("evaluate", "~/run", "--out=~/scores.json", "--no-baseline", "--set", "eval.num_eval=1").status == 0
    assert iid("distill", "dm", *TINY, "--out=~/next", "--init=~/run", "--no-evaluate").status == 0
    ended = iid("experts", "--out=~/pool", "--dataset", "shapes", "--network", "convnet2", "--count", "1", "--epochs",
                "3", "--set", "pool.lr=0.05", "--set", "pool.width=8")  # fmt: skip
    assert (home / "pool" / "pool.json").is_file() == (ended.status == 0), ended.err
    assert {"run", "next", "all.csv", "scores.json"} <= {path.name for path in home.iterdir()}
    assert not Path("~").exists()


NAMES = ["--out", "rün", "--results", "tabéllé.csv"]


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=lambda locale: " ".join(locale),
)
def test_names_that_the_locale_does_not_know_end_no_run(locale: dict[str, str], tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment |= {"PYTHONPATH": str(Path(iidlib.__file__).parents[1])} | locale
    command = [sys.executable, "-m", "iidlib.cli"]
    for given in (["distill", "dm", *TINY, *NAMES], ["evaluate", "rün", "--no-baseline", "--out", "ergebnis-ü.json"]):
        ended = subprocess.run([*command, *given], cwd=tmp_path, env=environment, capture_output=True, timeout=300)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert {"rün", "tabéllé.csv", "ergebnis-ü.json"} <= {path.name for path in tmp_path.iterdir()}
    assert pd.read_csv(tmp_path / "tabéllé.csv")["command"].str.contains("--out rün|--out 'rün'").all()
    assert json.loads((tmp_path / "rün" / "scores.json").read_text(encoding="utf8"))


# --- resume -----------------------------------------------------------------------------------------------------------

LONGER = ["distill", "iid-dm", *TINY, "--seed", "3", "--iterations", "12", "--out", "run"]


def test_resuming_a_finished_run_keeps_the_set_and_evaluates_it(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)
    shutil.rmtree(finished / "checkpoints")  # what is finished needs none
    monkeypatch.setattr(distillation_run, "distill", lambda *given, **named: pytest.fail("it was distilled again"))
    ended = iid(*LONGER, "--resume")
    assert ended.status == 0 and "the run in run is already finished; its images are unchanged" in ended.out
    assert "random" in ended.out and "iid-dm" in ended.out
    after = contents(finished)
    scores = [pd.DataFrame(json.loads(files.pop("scores.json"))) for files in (before, after)]
    assert after == {name: content for name, content in before.items() if not name.startswith("checkpoints")}
    left, right = (frame.drop(columns=[name for name in TIMES if name not in COSTS]) for frame in scores)
    pd.testing.assert_frame_equal(left, right)
    assert right.loc[right["method"] == "iid-dm", COSTS].notna().all(axis=None), "what it took is reported again"


def make_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing be written below the working folder."""
    really = os.open

    def read_only(place: str | Path, flags: int, *rest: object, **named: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and Path(place).absolute().is_relative_to(Path.cwd()):
            raise OSError(30, "Read-only file system")
        return really(place, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)


@pytest.mark.parametrize("scored", [False, True])
def test_evaluating_a_run_in_a_read_only_folder_shows_its_scores(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    if not scored:
        (finished / "scores.json").unlink()
    before = contents(finished)
    make_read_only(monkeypatch)
    ended = iid("evaluate", "run", "--json")
    assert ended.status == 0, ended.err
    assert [line["method"] for line in json.loads(ended.out)["scores"]] == ["random", "iid-dm"]
    reported = "scores are shown but not saved (cannot write run/scores.json: Read-only file system"
    assert (reported in ended.err) is not scored and contents(finished) == before


def test_a_finished_run_in_a_read_only_folder_is_evaluated_and_its_scores_shown(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)
    make_read_only(monkeypatch)
    ended = iid(*LONGER, "--resume")
    assert ended.status == 0 and "its images are unchanged" in ended.out and "convnet" in ended.out
    assert "scores are shown but not saved (cannot write run/scores.json: Read-only file system" in ended.err
    assert contents(finished) == before
    ended = iid(*LONGER, "--resume", "--iterations", "14")
    assert_one_line(ended, "cannot resume in the run folder run: Read-only file system")


def test_a_finished_run_is_resumed_and_evaluated_again(iid: Run, finished: Path) -> None:
    before = contents(finished)
    ended = iid(*LONGER, "--resume", "--iterations", "14")
    assert ended.status == 0, ended.err
    after = contents(finished)
    assert after["scores-12.json"] == before["scores.json"]
    assert {row["iterations"] for row in json.loads(after["scores.json"]) if row["method"] == "iid-dm"} == {14}
    assert after["synthetic.png"] != before["synthetic.png"]
    again = [part for part in LONGER if part not in ("--iterations", "12")]
    ended = iid(*again, "--resume", "--no-evaluate")
    assert ended.status == 0 and "14 iterations" in ended.out and "its images are unchanged" in ended.out
    whole = [part if part != "run" else "whole" for part in LONGER]
    assert iid(*whole, "--iterations", "14", "--no-evaluate").status == 0
    from iidlib import SyntheticSet

    assert SyntheticSet.load("whole").images.equal(SyntheticSet.load("run").images)


@pytest.mark.parametrize("killed", [False, True])
def test_a_set_whose_continuation_was_stopped_keeps_its_own_numbers(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    again = [part for part in LONGER if part not in ("--iterations", "12")]
    asked = [*again, "--resume", "--no-baseline", "--json", "--results"]
    before = iid(*asked, "before.csv")

    class Killed(BaseException):
        pass

    def stop() -> None:
        if killed:
            raise Killed
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        at_iteration(33, stop, patch)
        if killed:
            with pytest.raises(Killed):
                iid(*again, "--resume", "--iterations", "60")
        else:
            assert iid(*again, "--resume", "--iterations", "60").status == 130
    assert rows_of(finished / "metrics.jsonl")[-1]["iteration"] == 30, "the case is what it says"
    after = iid(*asked, "after.csv")
    left, right = (json.loads(ended.out) for ended in (before, after))
    known = rows_of(finished / "metrics.jsonl")[2]
    assert (known["iteration"], known["seconds"]) == (11, left["seconds"])
    for name in ("iterations", "seconds", "loss", "terms"):
        assert left[name] == right[name], name
    tables = [pd.read_csv(name)["seconds_per_iteration"] for name in ("before.csv", "after.csv")]
    assert tables[0].tolist() == tables[1].tolist() == pytest.approx([known["seconds"] / 12] * len(tables[0]))


def test_a_run_starts_from_a_set_that_is_given(iid: Run, finished: Path) -> None:
    ended = iid(*LONGER, "--out", "next", "--init", "run", "--results", "all.csv")
    assert ended.status == 0, ended.err
    from iidlib import SyntheticSet

    made = SyntheticSet.load("next")
    start = re.search(r"syn\.init=(set:[0-9a-f]{12})", made.provenance["settings"])
    assert start and made.provenance["init"] == f"{start[1]} from run"
    table = pd.read_csv("all.csv")
    assert table.loc[table["method"] == "iid-dm", "settings"].str.contains(start[0]).all()
    assert iid(*LONGER, "--out", "next", "--init", "run", "--resume", "--no-evaluate").status == 0
    assert iid("evaluate", "next", "--no-baseline", "--out", "scores.json").status == 0
    for arguments, message in {
        ("--init", "nowhere"): "no synthetic set at nowhere",
        ("--init", "run", "--set", "syn.init=noise"): "--init and --set syn.init= both choose the initial images",
        ("--init", "run", "--ipc", "1"): "the set in run cannot be the start of a run on .*images per class, not 1",
    }.items():
        assert_one_line(iid(*LONGER, "--out", "other", *arguments), message)
        assert not Path("other").exists()


def test_a_run_from_a_set_resumes_when_the_set_is_another_or_gone(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*LONGER, "--out", "next", "--no-evaluate"]
    with monkeypatch.context() as patch:
        at_iteration(4, lambda: signal.raise_signal(signal.SIGINT), patch)
        stopped = iid(*command, "--init", "run")
    kept = from_yaml(Path("next/config.yaml").read_text()).syn.init
    assert iid(*LONGER, "--resume", "--iterations", "14", "--no-evaluate").status == 0  # the source changes
    assert_one_line(
        iid(*go_on(stopped)),
        f"the run in next was started from {kept}, but the set in run is now set:.*; leave out --init",
    )
    shutil.rmtree(finished)
    ended = iid(*command, "--resume")
    assert ended.status == 0, ended.err
    from iidlib import SyntheticSet

    made = SyntheticSet.load("next").provenance
    assert made["init"] == f"{kept} from run" and f"syn.init={kept}" in made["settings"]
    ended = iid(*command, "--resume", "--iterations", "14")
    assert ended.status == 0 and SyntheticSet.load("next").provenance["init"] == f"{kept} from run"
    assert_one_line(iid(*command, "--resume", "--set", "syn.init=noise"), f"started with syn.init={kept}, not noise")


def test_corrupted_scores_are_replaced_when_the_run_is_evaluated_again(iid: Run, finished: Path) -> None:
    from iidlib.runs import runs_frame

    whole = (finished / "scores.json").read_bytes()
    (finished / "scores.json").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="evaluate the run again to replace it: iid evaluate run"):
        runs_frame(finished)
    assert iid("evaluate", "run").status == 0
    assert len(runs_frame(finished)) == len(json.loads(whole))
    assert (finished / "scores.json.corrupted").read_bytes() == whole[:-20]


def test_resuming_with_other_settings_is_refused(iid: Run, finished: Path) -> None:
    before = contents(finished)
    for changes, message in {
        ("--seed", "4"): "started with seed=3, not 4",
        ("--iterations", "11"): "has done 12 iterations, more than iterations=11; give 12 or more",
        ("--set", "syn.lr=9"): "started with syn.lr=1.0, not 9.0",
        ("--set", "eval.epochs=9"): "started with eval.epochs=4, not 9",
    }.items():
        assert_one_line(iid(*LONGER, "--resume", *changes), message)
    assert contents(finished) == before


def test_a_corrupted_checkpoint_is_passed_over_and_without_a_whole_one_nothing_is_touched(
    iid: Run, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from iidlib import SyntheticSet

    whole = SyntheticSet.load(finished).images
    (finished / "synthetic.safetensors").unlink()
    newest = finished / "checkpoints" / "0000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    ended = iid(*LONGER, "--resume", "--no-evaluate")
    assert ended.status == 0 and "0000012.safetensors is corrupted" in caplog.text
    assert SyntheticSet.load(finished).images.equal(whole)
    (finished / "synthetic.safetensors").unlink()
    for path in (finished / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-50])
    before = contents(finished)
    ended = iid(*LONGER, "--resume")
    assert ended.status == 2 and "all checkpoints in" in ended.err.splitlines()[-1]
    assert contents(finished) == before


def test_a_half_written_line_of_metrics_does_not_end_a_run(iid: Run, finished: Path, finished_run: Path) -> None:
    """What a power cut leaves: the log ends within a line, behind the newest checkpoint."""
    (finished / "synthetic.safetensors").unlink()
    for path in (finished / "checkpoints").glob("0000012*"):
        path.unlink()
    log = finished / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert iid(*LONGER, "--resume", "--no-evaluate").status == 0
    assert [json.loads(line)["iteration"] for line in log.read_text().splitlines()] == [0, 10, 11]
    assert (finished / "synthetic.safetensors").read_bytes() == (finished_run / "synthetic.safetensors").read_bytes()


# --- stopped and failed -----------------------------------------------------------------------------------------------


def go_on(ended: Ended | str) -> list[str]:
    """The arguments of the command that resumes a stopped run, as it says."""
    last = (ended if isinstance(ended, str) else ended.err).splitlines()[-1]
    assert last.startswith("resume with: iid "), last
    return shlex.split(last.removeprefix("resume with: iid "))


def at_iteration(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets something happen within an iteration."""
    step = distillation_step.Distillation.step

    def acting(self, iteration: int, *, log: bool = False):
        row = step(self, iteration, log=log)
        if iteration == number:
            act()
        return row

    monkeypatch.setattr(distillation_step.Distillation, "step", acting)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("out", [["--out", "my [run]"], []])
def test_a_stopped_run_is_kept_and_resumes_to_the_same_end(
    iid: Run, finished_run: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, out: list[str]
) -> None:
    command = ["distill", "iid-dm", *TINY, "--seed", "3", "--iterations", "12", *out]
    folder = Path(out[1]) if out else Path("runs/iid-dm-shapes-ipc2-ci-seed3")
    with monkeypatch.context() as patch:
        at_iteration(4, lambda: signal.raise_signal(number), patch)
        ended = iid(*command)
    assert ended.status == 128 + number
    assert ended.err.splitlines()[0] == f"stopped after 5 iterations; kept in {folder}"
    assert len(ended.err.splitlines()) == 2
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.safetensors"))[-1] == "0000005.safetensors"
    assert not (folder / "synthetic.safetensors").exists()

    with monkeypatch.context() as patch:
        at_iteration(8, lambda: signal.raise_signal(number), patch)
        again = iid(*go_on(ended))
    assert go_on(again) == go_on(ended), "the command does not grow"
    assert iid(*go_on(again)).status == 0
    assert (folder / "synthetic.safetensors").read_bytes() == (finished_run / "synthetic.safetensors").read_bytes()
    for name in ("synthetic.png", "checkpoints/0000012.safetensors"):
        assert (folder / name).read_bytes() == (finished_run / name).read_bytes(), name
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    unbroken = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    drop = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in logged] == [
        {k: v for k, v in row.items() if k not in drop} for row in unbroken
    ]
    left, right = (rows(path / "scores.json").drop(columns=TIMES) for path in (folder, finished_run))
    pd.testing.assert_frame_equal(left, right)


def test_a_stop_within_the_last_iteration_keeps_the_set_and_does_not_evaluate(
    iid: Run, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_iteration(11, lambda: signal.raise_signal(signal.SIGTERM), patch)
        ended = iid(*LONGER)
    assert ended.status == 143 and "random" not in ended.out
    assert (Path("run/synthetic.safetensors")).read_bytes() == (finished_run / "synthetic.safetensors").read_bytes()
    assert iid(*go_on(ended)).status == 0 and Path("run/scores.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_evaluating(iid: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_run, "fit", lambda *given, **named: signal.raise_signal(number))
        ended = iid(*LONGER, "--out", "t")
        alone = iid("evaluate", "t")
    assert ended.status == 128 + number
    assert ended.err.splitlines()[0] == "stopped; progress is kept in t" and len(ended.err.splitlines()) == 2
    assert (alone.status, alone.err) == (128 + number, "stopped\n")
    before = Path("t/synthetic.safetensors").read_bytes()
    assert iid(*go_on(ended)).status == 0
    assert Path("t/synthetic.safetensors").read_bytes() == before and Path("t/scores.json").is_file()


def test_a_stop_while_the_pool_is_trained(iid: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    trained = []
    fit = pool.fit

    def second_is_stopped(*given, **named):
        trained.append(1)
        if len(trained) == 2:
            signal.raise_signal(signal.SIGINT)
        return fit(*given, **named)

    command = ["distill", "dm-cc", *TINY, "--out", "run", "--set", "pool.count=2", "--no-evaluate", "--set",
               "pool.epochs=6"]  # fmt: skip
    monkeypatch.setattr(pool, "fit", second_is_stopped)
    ended = iid(*command)
    assert ended.status == 130
    assert ended.err.splitlines()[0] == "stopped; progress is kept in run" and len(ended.err.splitlines()) == 2
    assert iid(*go_on(ended)).status == 0
    assert len(trained) == 3, "the first network is not trained again"


def test_numbers_that_are_not_finite(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FloatingPointError("the term 'cm' is nan at iteration 8; lower its weight or syn.lr")

    at_iteration(8, fail, monkeypatch)
    ended = iid(*LONGER)
    assert ended.status == 1
    first, second = ended.err.splitlines()
    assert first == (
        "iid: failed: the term 'cm' is nan at iteration 8; lower its weight or syn.lr; the last good checkpoint is "
        "run/checkpoints/0000008.safetensors; progress is kept in run"
    )
    assert second == "start again with another --out"
    assert Path("run/checkpoints/0000008.safetensors").is_file() and not Path("run/synthetic.safetensors").exists()


def test_too_little_memory_says_what_to_lower(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13.00 GiB\nand more")

    at_iteration(8, fail, monkeypatch)
    ended = iid(*LONGER)
    assert ended.status == 1
    first, second = ended.err.splitlines()
    assert first.startswith("iid: failed: out of memory (CUDA out of memory. Tried to allocate 13.00 GiB and more); ")
    assert "lower --set compute.chunk=" in first and first.endswith("progress is kept in run")
    assert second == "start again with another --out"


def test_a_full_disk(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        at_iteration(8, fail, patch)
        ended = iid(*LONGER)
    assert ended.status == 1
    assert ended.err.splitlines()[0].startswith("iid: failed: [Errno 28] No space left on device; progress is kept")
    assert iid(*go_on(ended)).status == 0


def test_a_fault_of_the_program_keeps_its_traceback(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())
    at_iteration(1, lambda: [][0], monkeypatch)
    with pytest.raises(IndexError):
        cli.main(LONGER)


def start(*arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "iidlib.cli", *arguments], env=environment, text=True, **options)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to other processes")
def test_signals_to_a_real_process(iid: Run) -> None:
    command = ["distill", "dm", *TINY, "--iterations", "100", "--set", "checkpoint.every=1000", "--no-evaluate"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert iid(*command, "--out", "unbroken").status == 0
    finally:
        torch.set_num_threads(threads)
    arguments = [*command, "--out", "ru n"]
    done = -1
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            while last_iteration(Path("ru n")) <= done + 10:  # it resumes, beyond where it was before
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 128 + number, said
        *went_on, reported, _ = said.splitlines()
        assert went_on == ([] if done < 0 else [going_on(done)])
        stopped = re.fullmatch(r"stopped after (\d+) iterations; kept in ru n", reported)
        assert stopped and done < int(stopped[1]) < 100, said
        done = int(stopped[1])
        assert Path(f"ru n/checkpoints/{done:07d}.safetensors").is_file()
        arguments = go_on(said)
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, going_on(done) + "\n")
    assert Path("ru n/synthetic.safetensors").read_bytes() == Path("unbroken/synthetic.safetensors").read_bytes()


def going_on(done: int) -> str:
    return f"resuming after {done} iterations from ru n/checkpoints/{done:07d}.safetensors"


def last_iteration(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return json.loads(lines[-1])["iteration"] if lines else -1


def test_progress_bars_on_a_terminal(tmp_path: Path) -> None:
    """In a terminal of its own: loss terms and time left; elsewhere (all other tests) nothing of it."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # a new one has no columns
    process = start("distill", "dm-cm", *TINY, "--out", "run", cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        until = time.monotonic() + 120
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            assert time.monotonic() < until
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    chunk = os.read(ours, 65536)
                except OSError:  # Linux says so that the other end is closed
                    break
                if not chunk:
                    break
                shown += chunk
    finally:
        process.kill()
        os.close(ours)
    text = shown.decode()
    assert process.wait() == 0, text
    assert re.search(r"dm-cm: .*\| 4/4 \[\d+:\d+<\d+:\d+, .*loss=.*loss_mean=.*loss_cm=", text), text
    assert re.search(r"evaluating random: .*\| 8/8 .*<.*epoch/s", text), "two networks, four epochs"
    assert re.search(r"evaluating dm-cm: .*\| 8/8 .*convnet3 \d+\.\d %", text)
    assert "random │ convnet3" in re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_stop_of_many_runs_says_how_to_go_on(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from iidlib import experiments

    def stopped(todo: object, **given: object) -> None:
        Path("cells/one").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run_jobs", stopped)
    command = ["reproduce", "main", "--scale", "tour", "--runs", "cells"]
    ended = iid(*command)
    assert ended.status == 130 and ended.err.splitlines()[0] == "stopped; progress is kept in cells"
    assert go_on(ended) == command


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_rows_of_finished_sets_are_kept_when_the_evaluation_of_several_is_stopped(
    iid: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iidlib import scale

    row = read_results(Path(__file__).parents[1] / "data" / "results" / "tour.csv").head(1)

    def stopped(workers: object, commands: Mapping[str, Any], *rest: object, **given: object) -> None:
        (words,) = commands["herding"]
        append_results(words[words.index("--results") + 1], row)
        raise KeyboardInterrupt

    monkeypatch.setattr(scale, "run_commands", stopped)
    ended = iid("evaluate", "random", "herding", *TINY, "--results", "scores.csv")
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "stopped; finished: herding, whose rows are in scores.csv"
    assert read_results("scores.csv")["accuracy"].tolist() == row["accuracy"].tolist()
    assert [path.name for path in Path().iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("name", ["", "synthetic.safetensors"])
def test_evaluating_a_run_gives_the_scores_that_it_got(iid: Run, finished: Path, name: str) -> None:
    ended = iid("evaluate", finished / name, "--out", "new/[scores].json", "--results", "results.csv")
    assert ended.status == 0 and ended.err == ""
    scores = rows(Path("new/[scores].json"))
    kept = rows(finished / "scores.json")
    pd.testing.assert_frame_equal(
        scores.drop(columns=[*TIMES, "pool_accuracies"]), kept.drop(columns=[*TIMES, "pool_accuracies"])
    )
    assert pd.read_csv("results.csv")["accuracy"].tolist() == scores["accuracy"].tolist()
    assert "iid-dm" in ended.out and "random" in ended.out


def test_evaluating_with_other_networks_and_another_protocol(iid: Run, finished: Path) -> None:
    before = contents(finished)
    ended = iid("evaluate", finished, "--networks", "convnet1,lenet", "--num-eval", "1", "--epochs", "2", "--seed", "9",
                "--scale", "tour", "--set", "compute.compile=off", "--no-baseline", "--out", "s.json")  # fmt: skip
    assert ended.status == 0
    scores = rows(Path("s.json"))
    assert scores["network"].tolist() == ["convnet1", "lenet"] and scores["method"].unique().tolist() == ["iid-dm"]
    for name, value in {"protocol": "dm, 2 epochs, batch 256, lr 0.01, width 32", "scale": "ci", "seed": 3,
                        "networks_seed": 9, "iterations": 12, "ipc": 2}.items():  # fmt: skip
        assert scores[name].unique().tolist() == [value], name
    assert contents(finished) == before
    assert "±" not in ended.out.split("mean")[0], "one network has no spread"


def test_rows_of_a_set_say_what_it_was_made_with(iid: Run) -> None:
    """However it is evaluated, and also where only the set was kept."""
    from iidlib.experiments import Cell, all_rows, measured

    common = ["--set", "match.cc=7", "--set", "eval.width=4", "--set", "compute.chunk=8"]
    assert iid("distill", "dm-cc", *TINY, *common, "--no-evaluate", "--out", "run").status == 0
    shutil.copy("run/synthetic.safetensors", "alone.safetensors")
    for place in ("run", "alone.safetensors"):
        assert iid("evaluate", place, "--no-baseline", "--set", "eval.lr=0.5", "--results", "r/ci.csv").status == 0
    found = all_rows(Path("r"))
    assert found["settings"].unique().tolist() == ["match.cc=7.0 eval.lr=0.5"]
    assert measured(Cell("shapes", "dm-cc", 2), "ci", found).empty


def test_a_set_evaluated_on_another_dataset_says_what_it_was_made_from(iid: Run) -> None:
    from iidlib.experiments import Cell, all_rows, measured

    own = ["--ipc", "2", "--scale", "ci", "--no-evaluate", "--out", "run"]
    assert iid("distill", "dm", "--dataset", "validation:cifar10-mini", *own).status == 0
    assessed = ["--dataset", "cifar10-mini", "--no-baseline", "--results", "r/ci.csv"]
    assert iid("evaluate", "run", *assessed).status == 0
    found = all_rows(Path("r"))
    assert found["settings"].unique().tolist() == ["made_from=validation:cifar10-mini"]
    assert measured(Cell("cifar10", "dm", 2), "ci", found).empty
    assert iid("evaluate", "random", *own[:4], *assessed).status == 0, "the cell itself has its row"
    assert len(measured(Cell("cifar10", "random", 2), "ci", all_rows(Path("r")))) == 1


def settings_by_method(path: str) -> dict[str, list[str]]:
    """What the rows of a table say of settings, by method."""
    table = pd.read_csv(path, dtype={"settings": str}, keep_default_na=False)
    return table.groupby("method")["settings"].unique().map(list).to_dict()


def test_random_images_beside_a_set_do_not_claim_its_settings(iid: Run) -> None:
    """Only those of the evaluation, which are theirs too, and the form of mosaics."""
    given = ["match.cm=0.5", "syn.factor=4", "compute.chunk=8", "eval.lr=0.02"]
    made = [*TINY, *(f"--set={pair}" for pair in given), "--out", "run", "--results", "results.csv"]
    assert iid("distill", "dm-cm", *made).status == 0
    assert settings_by_method("results.csv") == {
        "random": ["eval.lr=0.02"],
        "random-mosaic": ["syn.factor=4 eval.lr=0.02"],
        "dm-cm": [" ".join(given)],
    }


def test_random_images_beside_a_set_that_is_evaluated_again_do_not_claim_its_settings(iid: Run) -> None:
    """Nor what it was made from."""
    from iidlib.experiments import Cell, all_rows, measured

    made = ["--dataset", "validation:cifar10-mini", *TINY[2:], "--set", "match.cm=0.5", "--set", "syn.factor=4"]
    assert iid("distill", "dm-cm", *made, "--no-evaluate", "--out", "run").status == 0
    assessed = ["evaluate", "run", "--dataset", "cifar10-mini", "--results"]
    assert iid(*assessed, "r/ci.csv").status == 0
    assert settings_by_method("r/ci.csv") == {
        "random": [""],
        "random-mosaic": ["syn.factor=4"],
        "dm-cm": ["match.cm=0.5 syn.factor=4 made_from=validation:cifar10-mini"],
    }
    found = all_rows(Path("r"))
    assert len(measured(Cell("cifar10", "random", 2), "ci", found)) == 1, "they are what iid evaluate random gives"
    assert measured(Cell("cifar10", "random-mosaic", 2), "ci", found).empty, "whose mosaics are of four"
    given = ["--set", "eval.augmentation=flip", "--set", "compute.precision=fp32", "--set", "match.cm=3"]
    assert iid(*assessed, "given.csv", *given).status == 0
    own = "eval.augmentation=flip compute.precision=fp32"
    said = settings_by_method("given.csv")
    assert said["random"] == [own] and said["random-mosaic"] == [f"{own} syn.factor=4"]


def test_random_images_beside_a_run_of_another_protocol_fill_no_cell(iid: Run) -> None:
    from iidlib.experiments import Cell, all_rows, measured

    for place, changes, counts in (("own", [], 1), ("other", ["--set", "eval.width=4"], 0)):
        made = ["--results", f"{place}/ci.csv", "--out", f"run-{place}", *changes]
        assert iid("distill", "dm", "--dataset", "cifar10-mini", *TINY[2:], *made).status == 0
        assert len(measured(Cell("cifar10", "random", 2), "ci", all_rows(Path(place)))) == counts


def test_each_seed_of_herding_has_features_of_its_own(iid: Run) -> None:
    for seed in (0, 1):
        given = ["--seed", str(seed), "--num-eval", "1", "--epochs", "1", "--results", "r/ci.csv"]
        assert iid("evaluate", "herding", *TINY, *given, "--set", "pool.epochs=6").status == 0
    accuracies = pd.read_csv("r/ci.csv")["pool_accuracies"]
    assert accuracies.nunique() == 2


def test_scores_are_kept_with_a_run_that_has_none(iid: Run, finished: Path) -> None:
    kept = rows(finished / "scores.json")
    (finished / "scores.json").unlink()
    assert iid("evaluate", finished, "--epochs", "2").status == 0
    assert not (finished / "scores.json").exists(), "not under a protocol that is not the run's"
    assert iid("evaluate", finished).status == 0
    assert rows(finished / "scores.json")["accuracy"].tolist() == kept["accuracy"].tolist()


@pytest.mark.parametrize("other", ["dataset", "seed", "baseline", "data"])
def test_scores_of_another_evaluation_are_not_kept_as_the_runs_own(
    iid: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    (finished / "scores.json").unlink()
    given = {"seed": ["--seed", "7"], "baseline": ["--no-baseline"], "dataset": ["--dataset", "validation:shapes"]}
    if other == "data":
        monkeypatch.setattr(registry, "shapes", lambda: shapes(4, 44))
    assert iid("evaluate", finished, *given.get(other, []), "--out", "scores.json").status == 0
    assert not (finished / "scores.json").exists() and Path("scores.json").is_file()
    monkeypatch.setattr(evaluation_run, "fit", lambda *given, **named: signal.raise_signal(signal.SIGINT))
    assert iid("evaluate", finished, *given.get(other, [])).status == 130
    assert not list(finished.glob("scores*"))


def test_scores_with_the_runs_own_seed_and_dataset_named_are_its_own(iid: Run, finished: Path) -> None:
    (finished / "scores.json").unlink()
    assert iid("evaluate", finished, "--seed", "3", "--dataset", "shapes").status == 0
    assert set(rows(finished / "scores.json")["method"]) == {"random", "iid-dm"}


def test_random_images_are_not_put_beside_themselves(iid: Run) -> None:
    coresets.random_real(registry.load_dataset("shapes").train, 2).save(Path("random.safetensors"))
    assert iid("evaluate", "./random.safetensors", "--scale", "ci", "--out", "s.json").status == 0
    assert rows(Path("s.json"))["method"].tolist() == ["random"] * 2


def test_evaluating_random_and_whole(iid: Run, finished: Path) -> None:
    assert iid("evaluate", "random", *TINY, "--seed", "3", "--out", "random.json").status == 0
    kept = rows(finished / "scores.json")
    scores = rows(Path("random.json"))
    assert scores["accuracy"].tolist() == kept[kept["method"] == "random"]["accuracy"].tolist()

    ended = iid("evaluate", "whole", "--dataset", "shapes", "--scale", "ci", "--num-eval", "1", "--out", "whole.json")
    assert ended.status == 0
    (score,) = json.loads(Path("whole.json").read_text())
    assert (score["method"], score["images"], score["ipc"], score["epochs"]) == ("whole", 160, 40, 4)
    assert score["protocol"].startswith("whole set, 4 epochs")


def test_whole_set_has_a_protocol_of_its_own(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs_seen = []
    monkeypatch.setattr(evaluation_run, "fit", lambda *given, **named: epochs_seen.append(given[2].epochs))
    common = ["evaluate", "whole", "--dataset", "shapes", "--scale", "tour", "--num-eval", "1",
              "--set", "compute.compile=off"]  # fmt: skip
    assert iid(*common).status == iid(*common, "--epochs", "70").status == 0
    assert iid(*common, "--set", "eval.epochs=80", "--set", "eval.augmentation=flip", "--out", "s.json").status == 0
    assert epochs_seen == [60, 70, 80]
    assert (
        rows(Path("s.json"))["protocol"][0] == "whole set, 80 epochs, batch 256, lr 0.01, width 32, augmentation flip"
    )


def test_a_set_is_tested_only_on_what_it_was_made_for(iid: Run, finished: Path) -> None:
    assert_one_line(iid("evaluate", finished, "--dataset", "cifar10-mini"), "the set was made for shapes")
    assert_one_line(
        iid("evaluate", finished, "--ipc", "5"), "--ipc is for baselines only; the set in run has 2 images per class"
    )


# --- iid experts, data, bench, sweep ----------------------------------------------------------------------------------


def test_experts_are_trained_completed_and_used(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["experts", "--dataset", "shapes", "--network", "convnet3", "--epochs", "6", "--out", "po ol",
              "--set", "pool.width=16"]  # fmt: skip
    assert iid(*common, "--count", "1").status == 0
    first = Path("po ol/0000.safetensors").read_bytes()
    ended = iid(*common, "--count", "2")
    assert ended.status == 0 and "2 convnet3 in po ol" in ended.out
    assert set(contents(Path("po ol"))) == {"0000.safetensors", "0001.safetensors", "pool.json"}
    assert Path("po ol/0000.safetensors").read_bytes() == first

    # the settings that it says to use it with are enough, whatever the scale
    monkeypatch.setattr(pool, "fit", lambda *given, **named: pytest.fail("a network was trained"))
    hint = ended.out.splitlines()[-1].removeprefix("to use this pool, add: ")
    assert iid("distill", "dm-cc", *TINY, "--out", "run", "--no-evaluate", *shlex.split(hint)).status == 0
    stages = ["--set", "match.width=16", *shlex.split(hint)]
    ended = iid("distill", "iid-plus", *TINY, "--out", "plus", "--no-evaluate", *stages)
    assert ended.status == 0, "also of a method whose pool is trained otherwise"
    other = iid("distill", "dm-cc", *TINY, "--out", "run2", "--set", "pool.path=po ol", "--set", "pool.lr=0.5")
    assert_one_line(other, "the pool in po ol was trained with other data or settings")
    assert not Path("run2").exists()


def test_experts_stopped_half_way_resume(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, trained = pool.fit, []

    def second_is_stopped(*given, **named):
        trained.append(1)
        if len(trained) == 2:
            signal.raise_signal(signal.SIGINT)
        return fit(*given, **named)

    monkeypatch.setattr(pool, "fit", second_is_stopped)
    command = ["experts", "--dataset", "shapes", "--network", "convnet3", "--epochs", "6", "--out", "pool",
               "--set", "pool.width=16", "--count", "2"]  # fmt: skip
    ended = iid(*command)
    assert ended.status == 130 and ended.err.splitlines()[0] == "stopped; progress is kept in pool"
    assert go_on(ended) == command and iid(*command).status == 0
    assert len(trained) == 3


def test_data_commands(iid: Run, tmp_path: Path) -> None:
    listed = iid("data", "list", "--data-root", "[nowhere]")
    assert listed.status == 0
    for word in ("cifar10-mini", "4000", "shapes", "50000", "iid data fetch cifar10"):
        assert word in listed.out, word
    assert iid("data", "check", "cifar10-mini").out.splitlines()[-1] == "cifar10-mini: 21 files, all verified"
    assert iid("data", "check", "shapes").out == "shapes: no files, comes with iidlib\n"
    fetched = iid("data", "fetch", "cifar10-mini")
    assert fetched.out == "cifar10-mini: 4000 training and 1000 test images, complete\n"

    copy = shutil.copytree(data_dir(), tmp_path / "a[b]" / "cifar10-mini")
    corrupted = copy / "train" / "3-cat.webp"
    corrupted.write_bytes(corrupted.read_bytes()[:-1])
    ended = iid("data", "check", "cifar10-mini", "--data-root", "a[b]")
    assert_one_line(ended, "cifar10-mini is incomplete or corrupted")
    assert re.search(r"corrupted +\S*a\[b\]/cifar10-mini/train/3-cat.webp", ended.out)
    assert_one_line(iid("evaluate", "random", "--data-root", "a[b]"), r"3-cat.webp is corrupted")


@pytest.mark.parametrize("columns", [40, 80])
def test_the_list_of_datasets_fits_a_terminal(columns: int, iid: Run, tmp_path: Path) -> None:
    (tmp_path / "root" / "svhn").mkdir(parents=True)
    (tmp_path / "root" / "svhn" / "train_32x32.mat").write_bytes(b"")
    output.console.width = columns
    try:
        lines = iid("data", "list", "--data-root", "root").out.splitlines()
    finally:
        output.console._width = None
    table = lines[: next(i for i, line in enumerate(lines) if ":" in line)]
    rows = [line.replace("│", " ").split() for line in table]
    assert max(map(len, table)) <= columns, "names, numbers and words stay whole"
    assert ["cifar10-mini", "4000", "1000", "yes"] in rows and ["mnist", "60000", "10000", "no"] in rows
    assert ["svhn", "73257", "26032", "incomplete"] in rows
    reported = {line.partition(": ")[0]: line for line in lines[len(table) :]}
    assert reported["cifar10-mini"] == f"cifar10-mini: {data_dir()}"
    assert (
        "svhn: incomplete, " in reported["svhn"] and "test_32x32.mat is missing; fetch it (246 MB)" in reported["svhn"]
    )
    assert "iid data fetch mnist --data-root" in reported["mnist"]


def test_a_mirror_is_given_on_the_command_line(iid: Run) -> None:
    for words, reported in (
        (["svhn", "--data-root", "new", "--mirror", "www.host.org"], "--mirror takes an http://.* got 'www.host.org'"),
        (["svhn", "--data-root", "new", "--mirror", "file:///no/such/place"], "svhn could not be downloaded.*--mirror"),
        (["CIFAR10-mini", "--mirror", "http://host/"], "cifar10-mini comes with iidlib"),
    ):
        assert_one_line(iid("data", "fetch", *words), reported)
    assert not Path("new").exists()


@dataclass(frozen=True)
class FakeReport:
    failures: tuple[object, ...] = ()

    def lines(self) -> list[str]:
        return ["distill dm[x]: 0.5 s"]

    def tables(self) -> dict[str, list[dict[str, str]]]:
        rows = [{"work": "distill dm[x]", "ours": "0.5"}, {"work": "distill iid-dm", "ours": "0.7"}]
        return {"seconds": rows, "rates": rows}

    def notes(self) -> list[str]:
        return ["measured [here]"]

    def to_json(self) -> str:
        return "[]"

    def append(self, path: Path, command: str) -> None:
        with path.open("a") as file:
            file.write(command)


def test_bench_is_wired(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from iidlib.bench import Failure
    from iidlib.bench import report as bench_report

    asked = []

    def measured(report: FakeReport = FakeReport(), **given: Any) -> FakeReport:
        asked.append({"quick": "scaling"} | given)
        for _ in range(2):
            given["on_row"](FakeReport())
        return report

    monkeypatch.setattr(bench_report, "measure", measured)
    monkeypatch.setattr(bench_report, "scaling", measured)
    shown = iid("bench", "--quick", "--device", "cpu")
    assert shown.status == 0 and "dm[x]" in shown.out and "0.7" in shown.out and "measured [here]" in shown.out
    assert shown.out.startswith("distill dm[x]: 0.5 s\n" * 2), "each row once it is there"
    as_json = iid("bench", "--json", "--results", "b c.csv")
    assert json.loads(as_json.out) == [] and as_json.err == "distill dm[x]: 0.5 s\n" * 2
    assert Path("b c.csv").read_text() == "iid bench --json --results 'b c.csv'" * 2, "each row once it is there"
    quiet = iid("bench", "--json", "--quiet")
    assert json.loads(quiet.out) == [] and quiet.err == ""
    assert iid("bench", "--scaling").status == 0
    assert [(given["quick"], given["device"], given["progress"]) for given in asked] == [
        (True, "cpu", None), (False, "auto", None), (False, "auto", None), ("scaling", "auto", None),
    ]  # fmt: skip

    differing = FakeReport((Failure("distill", "dm", "losses differ by 1e-1"),))
    monkeypatch.setattr(bench_report, "measure", partial(measured, differing))
    failed = iid("bench")
    assert "0.7" in failed.out, "the others are shown"
    assert_one_line(failed, "failed: distill dm: losses differ by 1e-1", status=1)
    assert json.loads(iid("bench", "--json").out) == [], "one document, whatever failed"
    Path("other.csv").write_text("dataset,method,accuracy\n")
    assert_one_line(iid("bench", "--results", "other.csv"), "other.csv is not a table of results")
    assert_one_line(iid("bench", "--quick", "--scaling"), "--quick, --scaling and --ranks are different measurements")


def test_sweep_says_what_failed(iid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from iidlib import experiments, scale

    points = [
        {"point": 0, "status": "done", "error": "", "notebook": "point-000/n.ipynb"},
        {"point": 1, "status": "failed", "error": "ValueError: [no]", "notebook": "point-001/n.ipynb"},
    ]
    asked = []
    monkeypatch.setattr(experiments, "load_grid", lambda path: path)
    monkeypatch.setattr(
        scale, "run_sweep", lambda plan, out, **given: asked.append((plan, out, given)) or pd.DataFrame(points)
    )
    ended = iid("sweep", "g[1].yaml", "--workers", "2")
    assert ended.status == 1
    assert ended.err == "failed: runs/sweep-g[1]/point-001/n.ipynb: ValueError: [no]\n"
    assert ended.out == "1 of 2 points done, table in runs/sweep-g[1]/sweep.csv\n"
    ((plan, out, given),) = asked
    assert (plan, out, given["workers"]) == (Path("g[1].yaml"), Path("runs/sweep-g[1]"), scale.Workers(2))
    points.pop()
    assert iid("sweep", "g[1].yaml", "--out", "x").status == 0


@pytest.mark.parametrize("command", [["evaluate", "herding"], ["continual", "k-center", "--steps", "2"]])
def test_too_few_images_to_choose_from_are_reported_before_a_network_is_trained(
    command: list[str], iid: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "fit", lambda *given, **named: pytest.fail("trained"))
    monkeypatch.setattr(pool, "fit_together", lambda *given, **named: pytest.fail("trained"))
    ended = iid(*command, "--dataset", "shapes", "--scale", "ci", "--ipc", "500")
    assert_one_line(ended, "needs 500 images per class, but class '.*' has [0-9]+; lower ipc to [0-9]+ or less")


def test_rows_of_a_folder_that_python_could_not_decode_are_kept(tmp_path: Path) -> None:
    given = b"folder:\xc3\xbc".decode("ascii", "surrogateescape")
    frame = pd.DataFrame({"dataset": pd.Series([given], dtype=object), "accuracy": [50.0]})
    with pytest.raises(KeyboardInterrupt), KeptRows(out=tmp_path / "cut.json") as kept:
        kept.add(frame)
        raise KeyboardInterrupt
    (row,) = json.loads((tmp_path / "cut-incomplete.json").read_text(encoding="utf-8"))
    assert row == {"dataset": "folder:ü", "accuracy": 50.0, "incomplete": True}
    KeptRows(out=tmp_path / "whole.json").save(frame, of_run=False)
    (row,) = json.loads((tmp_path / "whole.json").read_text(encoding="utf-8"))
    assert row == {"dataset": "folder:ü", "accuracy": 50.0}
