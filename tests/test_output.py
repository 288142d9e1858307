"""iidlib.cli.output: what --quiet and --json leave, progress where it can be shown, whole numbers in narrow tables."""

import json
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from iidlib import cli
from iidlib.cli import output
from tests.command_line import Run

TINY = ("--dataset", "shapes", "--ipc", "2", "--scale", "ci")

pytestmark = pytest.mark.usefixtures("handlers_as_before")


def commands(app: object) -> Iterator[tuple[list[str], object]]:
    import typer

    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[arg-type, attr-defined]
        for inner, under in getattr(command, "commands", {"": command}).items():
            yield [name, inner] if inner else [name], under


def test_every_command_may_be_quiet() -> None:
    found = dict((" ".join(words), command) for words, command in commands(cli.app))
    assert len(found) == 11
    for words, command in found.items():
        assert "-q" in [option for parameter in command.params for option in parameter.opts], words


def test_quiet_leaves_the_result_and_json_the_facts(iid: Run) -> None:
    status, out, err = iid("distill", "dm", *TINY, "--out", "a", "-q")
    assert (status, err) == (0, "")
    *table, last = out.splitlines()
    assert last == "a/synthetic.safetensors"
    assert [line.split()[1] for line in table if line.startswith("│")] == ["random", "dm"]
    assert not re.search("distilled in|protocol", out)

    status, out, err = iid("distill", "dm", *TINY, "--out", "b", "--json")
    assert status == 0 and out.count("\n") == 1 and "distilled in" in err and "│ random" in err
    facts = json.loads(out)
    kept = json.loads(Path("b/scores.json").read_text())
    mean = sum(row["accuracy"] for row in kept if row["method"] == "dm") / 2
    random, own = facts.pop("scores")
    assert (random["method"], own["method"], own["network"], own["networks"]) == ("random", "dm", "convnet3", 2)
    assert own["accuracy"] == pytest.approx(mean) and own["std"] >= 0
    last = json.loads(Path("b/metrics.jsonl").read_text().splitlines()[-1])
    assert facts == {
        "run": "b", "set": "b/synthetic.safetensors", "method": "dm", "dataset": "shapes", "ipc": 2, "scale": "ci",
        "seed": 0, "iterations": 4, "seconds": last["seconds"], "loss": last["loss"],
        "terms": {"mean": last["loss_mean"]},
    }  # fmt: skip

    status, out, err = iid("distill", "dm", *TINY, "--out", "c", "--json", "--quiet", "--no-evaluate")
    assert (status, err) == (0, "") and json.loads(out)["scores"] == []
    status, out, err = iid("distill", "dm", *TINY, "--out", "c", "--json", "--quiet")
    assert status == 2 and out == "" and err.count("\n") == 1, "an error is an error"


def test_other_commands_print_their_result_as_json(iid: Run) -> None:
    assert iid("distill", "dm", *TINY, "--out", "run", "--no-evaluate", "-q")[1] == "run/synthetic.safetensors\n"
    status, out, _ = iid("evaluate", "run", "--json", "--num-eval", "1", "--epochs", "1")
    facts = json.loads(out)
    assert status == 0 and facts["set"] == "run" and facts["dataset"] == "shapes" and facts["seconds"] > 0
    assert [(row["method"], row["std"]) for row in facts["scores"]] == [("random", 0), ("dm", 0)]
    assert "│ dm " in iid("evaluate", "run", "-q", "--num-eval", "1", "--epochs", "1")[1]

    _, out, err = iid("continual", "random", *TINY, "--steps", "2", "--json")
    facts = json.loads(out)
    assert [(step["step"], step["classes"]) for step in facts["steps"]] == [(1, 2), (2, 4)] and "step 2 of 2" in err
    assert facts["run"] is None and facts["steps"][1]["scores"][0]["networks"] == 2
    assert iid("continual", "random", *TINY, "--steps", "2", "-q")[1].count("\n") == 2

    pool = ["experts", "--dataset", "shapes", "--count", "1", "--epochs", "6", "--network", "convnet3", "--out", "p"]
    assert iid(*pool, "-q", "--set", "pool.width=8")[1:] == ("p\n", "")
    facts = json.loads(iid(*pool, "--json", "--set", "pool.width=8")[1])
    assert facts["networks"][0]["accuracy"] > 25 and facts["settings"]["pool.width"] == 8

    rows = json.loads(iid("data", "list", "--json")[1])["datasets"]
    assert ("shapes", 160) in [(row["name"], row["train_images"]) for row in rows]


def test_quiet_lists_and_tables_are_the_result(iid: Run) -> None:
    assert "cifar10-mini" in iid("data", "list", "-q")[1]
    assert "match.cm" in iid("config", "dm-cm", "-q")[1]
    assert json.loads(iid("config", "dm-cm", "-q", "--json")[1])
    assert "published" in iid("reproduce", "beta", "--list", "-q")[1]
    assert iid("data", "check", "cifar10-mini", "--quiet")[1:] == ("", "")


def test_warnings_are_heard_under_quiet_and_notes_are_not(iid: Run, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    given = ["continual", "iid-dm", *TINY, "--set", "match.cc=0.1", "--set", "pool.epochs=8"]
    assert iid(*given, "--steps", "2", "-q")[0] == 0
    assert caplog.messages == [], "no word of the pools"
    assert iid("continual", "dm", *TINY, "--steps", "3,1", "-q")[0] == 0
    assert [message[:24] for message in caplog.messages] == ["only one class in step 2"]
    assert logging.getLogger("iidlib").level == logging.INFO, "as before"


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import typer

    app = typer.Typer()

    @app.command()
    def command(as_json: output.AsJson = False) -> None:
        output.report(None, {"a": float("nan"), "b": [np.float32(2.5), np.int64(3)], "c": Path("x"), "d": (True, None)})

    app(["--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [2.5, 3], "c": "x", "d": [True, None]}


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 3])
def test_epochs_of_an_evaluation_are_counted_while_networks_train(together: int) -> None:
    from iidlib.config import override, preset
    from iidlib.data import load_dataset
    from iidlib.evaluation import evaluate, random_real

    config = preset("dm", "shapes", 1, "ci", {"eval.num_eval": 3, "eval.epochs": 4, "compute.together": together})
    config = override(config, {"eval.networks": "convnet1,convnet3", "eval.width": 4})
    data, counted = load_dataset("shapes"), []
    given = {"protocol": config.eval, "compute": config.compute}
    scores = evaluate(random_real(data.train, 1), data, **given, on_epochs=counted.append)
    assert counted == [together] * (2 * 3 * 4 // together)
    plain = evaluate(random_real(data.train, 1), data, **given)
    assert plain["accuracy"].tolist() == scores["accuracy"].tolist(), "looking changes nothing"


# --- tables -----------------------------------------------------------------------------------------------------------


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int) -> str:
    monkeypatch.setattr(output, "console", Console(width=width))
    rows = [
        ("random-mosaic", "resnet18-bn", "61.2 ± 0.3", "20"),
        ("a set of a very long name.safetensors", "convnet3", "100.0 ± 12.3", "5"),
    ]
    columns = {"set": "text", "network": "text", "accuracy (%)": "number", "networks": "number"}
    output.print_table(columns, rows, "folder:some[where]?size=64, IPC 10")  # type: ignore[arg-type]
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 50, 60, 80, 200])
def test_narrow_terminals_keep_numbers_whole(monkeypatch, capsys, width: int) -> None:
    shown = printed(monkeypatch, capsys, width)
    for number in ("61.2 ± 0.3", "100.0 ± 12.3"):
        assert number in shown, shown
    if "│" in shown:
        assert all(len(line) <= width for line in shown.splitlines())
        assert "61.2 ± 0.3 │       20 │" in shown
    elif "─" in shown:  # without a frame
        assert all(len(line) <= width for line in shown.splitlines())
        assert re.search(r"resnet18-bn +61.2 ± 0.3 +20$", shown, re.MULTILINE)
    else:
        assert "network: resnet18-bn\naccuracy (%): 61.2 ± 0.3\nnetworks: 20\n" in shown
    assert ("│" in shown) == (width >= 60), "words are wrapped first"
    assert "some[where]" in shown.replace("\n", "") or width < 40, "names are not taken for markup"


@pytest.mark.parametrize("width", [40, 60])
def test_cells_of_the_paper_keep_their_numbers(iid: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    narrow = Console(width=width)
    monkeypatch.setattr(output, "console", narrow)
    monkeypatch.setattr(cli.reproduce, "console", narrow)
    status, out, _ = iid("reproduce", "main", "--list", "--only", "cifar10/ipc10")
    assert status == 0 and "46.0 ± 0.2 (3)" in out and "48.9 a" in out and "a: NCFM" in out


@pytest.mark.parametrize("name", ["NO_COLOR", "dumb", "piped"])
def test_no_control_characters_where_none_are_wanted(tmp_path: Path, name: str) -> None:
    """NO_COLOR takes the colours only: bars still move the cursor of a terminal."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    given = {"NO_COLOR": {"NO_COLOR": "1", "TERM": "xterm"}, "dumb": {"TERM": "dumb"}, "piped": {"TERM": "xterm"}}[name]
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")} | given
    code = f"from iidlib.cli import main; main(['evaluate', 'random', *{TINY!r}, '--num-eval', '1'])"
    command = [sys.executable, "-c", code]
    if name == "piped":
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        shown = done.stdout + done.stderr
    else:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # a new one has no columns
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait() == 0, shown
    text = shown.decode().replace("\r\n", "\n")
    assert "random" in text
    if name == "NO_COLOR":
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text), "no colours"
        assert "evaluating random: " in text
    else:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), repr(text)
