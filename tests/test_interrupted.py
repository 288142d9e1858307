"""iidlib.evaluation.interrupted: an evaluation that was interrupted resumes after its finished networks."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pandas as pd
import pytest
import torch

from iidlib.cli.score_files import KeptRows
from iidlib.cli.scores import scored
from iidlib.config import ComputeConfig, EvalProtocol, preset
from iidlib.data import Dataset, RealSet
from iidlib.evaluation import FinishedNetworks, FinishedRow, evaluate, evaluated, interrupted, random_real
from iidlib.evaluation import run as evaluation_run
from iidlib.experiments import MadeBy, SetOrigin, append_results
from iidlib.runs import environment
from iidlib.synthetic import SyntheticSet

ROOT = Path(__file__).parents[1]
PICTURES = {"per_class": (9, 12, 15, 8)}
"""Of the fixture `pictures`."""

QUICK = EvalProtocol(networks=("convnet2", "convnet1"), width=4, num_eval=2, epochs=3, lr=0.02, batch=8)


@pytest.fixture
def kept(tmp_path: Path) -> FinishedNetworks:
    return FinishedNetworks(tmp_path / "kept")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every network that is trained from now on."""
    names: list[str] = []
    made = evaluation_run.network_for

    def network_for(name: str, *given: object, **named: object) -> object:
        names.append(name)
        return made(name, *given, **named)

    monkeypatch.setattr(evaluation_run, "network_for", network_for)
    return names


def rows(
    images: SyntheticSet | RealSet,
    dataset: Dataset,
    finished: FinishedNetworks | None,
    protocol: EvalProtocol = QUICK,
    on_epochs: Callable[[int], object] | None = None,
    seed: int = 0,
    **compute: object,
) -> Iterator[dict[str, object]]:
    settings = ComputeConfig(compile="off", **compute)
    return evaluated(
        images, dataset, protocol=protocol, compute=settings, seed=seed, on_epochs=on_epochs, finished=finished
    )


def interrupted_after(
    number: int, images: SyntheticSet | RealSet, dataset: Dataset, finished: FinishedNetworks
) -> None:
    """Evaluates networks, and no more."""
    started = rows(images, dataset, finished)
    for _ in range(number):
        next(started)


def without_time(found: Iterator[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(list(found)).drop(columns="seconds")


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("together", [1, 2])
def test_only_the_missing_networks_are_trained_and_all_scores_are_those_of_one_evaluation(
    pictures, kept, trained, number, together
):
    chosen = random_real(pictures.train, 3)
    whole = without_time(rows(chosen, pictures, None, together=together))
    interrupted = rows(chosen, pictures, kept, together=together)
    first = [next(interrupted) for _ in range(number)]
    trained.clear()
    done: list[int] = []
    resumed = list(rows(chosen, pictures, kept, on_epochs=done.append, together=together))
    left = 4 - (number if together == 1 else (number + 1) // 2 * 2)
    assert len(trained) == left and trained == ["convnet2", "convnet2", "convnet1", "convnet1"][4 - left :]
    assert without_time(iter(resumed)).equals(whole), "columns, order and values"
    assert resumed[:number] == first, "also the seconds that their training took"
    assert sum(done) == left * QUICK.epochs
    assert [isinstance(row, FinishedRow) for row in resumed] == [True] * (4 - left) + [False] * left


def test_a_complete_evaluation_is_kept_until_its_rows_are_saved_elsewhere(pictures, kept, trained, tmp_path):
    chosen = random_real(pictures.train, 3)
    first = evaluate(chosen, pictures, protocol=QUICK, compute=ComputeConfig(compile="off"), finished=kept)
    trained.clear()
    again = evaluate(chosen, pictures, protocol=QUICK, compute=ComputeConfig(compile="off"), finished=kept)
    assert not trained and again.equals(first) and again.attrs == first.attrs
    kept.forget()
    assert not (tmp_path / "kept").exists(), "nor an empty folder"
    list(rows(chosen, pictures, kept))
    assert len(trained) == 4


def test_nothing_is_kept_unless_asked_for(pictures, interrupted_evaluations_of_this_test):
    list(rows(random_real(pictures.train, 3), pictures, None))
    assert not interrupted_evaluations_of_this_test.exists()


def test_more_networks_of_the_same_protocol_resume_too(pictures, kept, trained):
    chosen = random_real(pictures.train, 3)
    interrupted_after(2, chosen, pictures, kept)
    trained.clear()
    more = attrs.evolve(QUICK, networks=("convnet1", "convnet2"), num_eval=3)
    assert len(list(rows(chosen, pictures, kept, more))) == 6 and trained == ["convnet1"] * 3 + ["convnet2"]


def test_an_evaluation_of_fewer_networks_leaves_those_of_the_others(pictures, tmp_path, trained):
    chosen, folder = random_real(pictures.train, 3), tmp_path / "kept"
    interrupted_after(3, chosen, pictures, FinishedNetworks(folder))
    few = FinishedNetworks(folder)
    list(rows(chosen, pictures, few, attrs.evolve(QUICK, networks=("convnet2",), num_eval=1)))
    few.forget()
    trained.clear()
    assert len(list(rows(chosen, pictures, FinishedNetworks(folder)))) == 4
    assert trained == ["convnet2", "convnet1"], "the one that was complete and saved, and the one that was missing"


def another_picture(dataset: Dataset, part: str) -> Dataset:
    real = getattr(dataset, part)
    images = real.images.clone()
    images[0] = 255 - images[0]
    return dataclasses.replace(dataset, **{part: RealSet(images, real.labels, real.spec)})


CHANGES = (
    "seed", "images", "factor", "mean", "classes", "test images", "lr", "epochs", "width", "cutmix",
    "precision", "together", "threads", "kernels", "code", "version",
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_is_used_only_if_nothing_that_it_depends_on_has_changed(pictures, kept, trained, monkeypatch, change):
    chosen, dataset, protocol, settings = random_real(pictures.train, 3), pictures, QUICK, {}
    interrupted_after(1, chosen, dataset, kept)
    trained.clear()
    next(rows(chosen, dataset, kept))
    assert not trained, "nothing has changed yet"
    if change == "seed":
        settings["seed"] = 1
    elif change == "images":
        chosen = dataclasses.replace(chosen, images=chosen.images + 1e-6)
    elif change == "mean":
        chosen = dataclasses.replace(chosen, spec=dataclasses.replace(chosen.spec, mean=(0.4,) * 3))
    elif change == "test images":
        dataset = another_picture(dataset, "test")
    elif change == "factor":
        chosen = dataclasses.replace(chosen, factor=2)
    elif change == "classes":
        names = tuple(name.upper() for name in pictures.spec.classes)
        spec = dataclasses.replace(pictures.spec, classes=names)
        dataset = Dataset(
            pictures.name,
            *(RealSet(part.images, part.labels, spec) for part in (pictures.train, pictures.test)),
            spec,
        )
        chosen = dataclasses.replace(chosen, spec=dataclasses.replace(chosen.spec, classes=names))
    elif change in ("lr", "epochs", "width", "cutmix"):
        protocol = attrs.evolve(QUICK, **{change: {"lr": 0.01, "epochs": 2, "width": 8, "cutmix": 0.5}[change]})
    elif change == "precision":
        settings["precision"] = "bf16"
    elif change == "together":
        settings["together"] = 1
    elif change in ("threads", "kernels"):
        known = evaluation_run.conditions

        def conditions(*given: object) -> dict[str, object]:
            return known(*given) | {change: "other"}

        monkeypatch.setattr(evaluation_run, "conditions", conditions)
    elif change == "code":
        monkeypatch.setattr(evaluation_run, "source_digest", lambda: "another")
    else:
        monkeypatch.setattr(environment, "__version__", "99")
    trained.clear()
    next(rows(chosen, dataset, kept, protocol, **settings))
    assert trained == ["convnet2"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"network": "convnet2"}', '{"network": ["a"], "evaluation_seed": 0}', "\x00\xff" * 9],
)
def test_files_that_no_evaluation_wrote_do_not_count(pictures, kept, trained, tmp_path, content):
    chosen = random_real(pictures.train, 3)
    interrupted_after(2, chosen, pictures, kept)
    first, second = sorted((tmp_path / "kept").glob("*/*.json"))
    known = json.loads(first.read_text())
    second.write_text(content)
    (second.parent / "mine.json").write_text(content)
    (second.parent / "folder.json").mkdir()
    trained.clear()
    resumed = list(rows(chosen, pictures, kept))
    assert len(trained) == 3 and resumed[0] == known
    trained.clear()
    assert list(rows(chosen, pictures, kept)) == resumed and not trained


def test_a_cache_that_cannot_be_written_or_read_costs_a_warning_and_no_network(pictures, tmp_path, caplog, trained):
    (tmp_path / "kept").write_text("not a folder")
    chosen = random_real(pictures.train, 3)
    with caplog.at_level(logging.WARNING, logger="iidlib"):
        found = list(rows(chosen, pictures, FinishedNetworks(tmp_path / "kept")))
    assert len(found) == len(trained) == 4
    (message,) = [record.getMessage() for record in caplog.records if "cannot be kept" in record.getMessage()]
    assert "after an interruption they are trained again" in message


def test_without_a_home_folder_nothing_is_kept(pictures, monkeypatch, caplog, trained):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(interrupted, "cache_dir", homeless)
    finished = FinishedNetworks()
    assert finished.writable
    assert len(list(rows(random_real(pictures.train, 3), pictures, finished))) == len(trained) == 4
    assert len([message for message in caplog.messages if "home" in message]) == 1 and not finished.writable


def test_a_kept_network_is_said_once_and_its_outcome_is_counted(pictures, kept, caplog):
    chosen = random_real(pictures.train, 3)
    wild = attrs.evolve(QUICK, networks=("convnet2",), lr=1e6, epochs=9)
    next(rows(chosen, pictures, kept, wild))
    with caplog.at_level(logging.INFO, logger="iidlib"):
        found = list(rows(chosen, pictures, kept, wild))
    said = [record.getMessage() for record in caplog.records]
    assert said.count("resuming an interrupted evaluation: 1 of 2 networks are finished") == 1
    assert [row["outcome"] for row in found] == ["diverged"] * 2
    assert any(message.startswith("2 of 2 convnet2 diverged") for message in said)


def test_two_evaluations_at_the_same_time_do_not_disturb_each_other(pictures, tmp_path):
    chosen = random_real(pictures.train, 3)
    first, second = (FinishedNetworks(tmp_path / "kept") for _ in range(2))
    one, other = rows(chosen, pictures, first), rows(chosen, pictures, second)
    ours, theirs = [next(one)], [next(other)]
    theirs += other
    second.forget()  # the other one is complete and saved
    ours += one
    assert without_time(iter(ours)).equals(without_time(iter(theirs)))
    first.forget()
    assert not (tmp_path / "kept").exists() or not list((tmp_path / "kept").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signal")
def test_a_process_that_is_killed_loses_the_network_in_training_only(tmp_path):
    """Without any chance to clean up, in the middle of the third network."""
    code = """
        import os, pathlib, signal, sys
        from iidlib.evaluation import FinishedNetworks, evaluate, random_real
        from iidlib.config import ComputeConfig, EvalProtocol
        from tests.factories import tiny_dataset

        epochs = []

        def on_epochs(number):
            epochs.append(number)
            if sys.argv[2] == "die" and len(epochs) == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        data = tiny_dataset()
        protocol = EvalProtocol(networks=("convnet1",), width=4, num_eval=4, epochs=3, lr=0.02, batch=8)
        scores = evaluate(
            random_real(data.train, 1), data, protocol=protocol, compute=ComputeConfig(compile="off"),
            on_epochs=on_epochs, finished=FinishedNetworks(pathlib.Path(sys.argv[1]))
        )
        print(len(epochs), *scores["accuracy"])
    """
    script, found = textwrap.dedent(code), []
    for folder, how in (("a", "die"), ("a", "live"), ("b", "live")):
        command = [sys.executable, "-c", script, str(tmp_path / folder), how]
        found.append(subprocess.run(command, capture_output=True, text=True, cwd=ROOT))
    assert found[0].returncode == -signal.SIGKILL and not found[0].stdout
    assert found[1].returncode == found[2].returncode == 0, found[1].stderr + found[2].stderr
    (resumed, *accuracies), (trained, *expected) = (one.stdout.split() for one in found[1:])
    assert (resumed, trained) == ("6", "12") and accuracies == expected


def test_the_code_is_known_by_its_files(tmp_path, monkeypatch):
    shutil.copytree(environment.PACKAGE, tmp_path / "iidlib", ignore=shutil.ignore_patterns("__pycache__"))
    own = environment.source_digest()
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "iidlib")
    digests = []
    for path, content in (("bars.py", None), ("bars.py", "# another"), ("engine/layers.cpp", "// another"), ("x", "")):
        if content is not None:
            (tmp_path / "iidlib" / path).write_text(content)
        environment.source_digest.cache_clear()
        digests.append(environment.source_digest())
    environment.source_digest.cache_clear()
    assert digests[0] == own and len(set(digests)) == 3 and digests[2] == digests[3], "a file that is no code"


def test_old_evaluations_that_nobody_has_resumed_are_removed(pictures, kept, tmp_path):
    chosen = random_real(pictures.train, 3)
    interrupted_after(1, chosen, pictures, kept)
    (old,) = (tmp_path / "kept").glob("*/*.json")
    mine = tmp_path / "kept" / "mine"
    mine.mkdir()
    (mine / "metrics.json").write_text("")
    for path in (old, mine / "metrics.json"):
        os.utime(path, (0, 0))
    next(rows(chosen, pictures, FinishedNetworks(tmp_path / "kept"), seed=1))
    assert not old.parent.exists() and (mine / "metrics.json").is_file()


def test_an_old_evaluation_that_is_resumed_stays(pictures, kept, trained, tmp_path):
    chosen = random_real(pictures.train, 3)
    interrupted_after(2, chosen, pictures, kept)
    for path in (tmp_path / "kept").glob("*/*.json"):
        os.utime(path, (0, 0))
    resumed = FinishedNetworks(tmp_path / "kept")
    interrupted_after(2, chosen, pictures, resumed)
    next(rows(chosen, pictures, FinishedNetworks(tmp_path / "kept"), seed=1))
    trained.clear()
    assert len(list(rows(chosen, pictures, FinishedNetworks(tmp_path / "kept")))) == 4 and len(trained) == 2


def test_a_folder_may_be_given_as_text(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen = random_real(pictures.train, 3)
    interrupted_after(1, chosen, pictures, FinishedNetworks("~/kept"))
    assert len(list((tmp_path / "kept").glob("*/convnet2-0.json"))) == 1


def test_numbers_of_other_libraries_are_numbers(pictures, kept, trained):
    chosen = random_real(pictures.train, 3)
    mean = tuple(np.float32(value) for value in chosen.spec.mean)
    chosen = dataclasses.replace(chosen, spec=dataclasses.replace(chosen.spec, mean=mean))
    next(rows(chosen, pictures, kept, seed=np.int64(3)))
    trained.clear()
    assert isinstance(next(rows(chosen, pictures, kept, seed=3)), FinishedRow) and not trained


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_scores_of_an_interrupted_evaluation_do_not_pile_up(tmp_path):
    scores = pd.DataFrame([{"network": "convnet3", "accuracy": 50.0}])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), KeptRows(out=tmp_path / "s.json") as rows_so_far:
            rows_so_far.add(scores)
            raise KeyboardInterrupt
        assert names_in(tmp_path) == ["s-incomplete.json"]
    with KeptRows(out=tmp_path / "s.json") as rows_so_far:
        rows_so_far.add(scores)
        rows_so_far.save(scores, of_run=False)
    assert names_in(tmp_path) == ["s.json"]


@pytest.mark.parametrize("content", ["[]", "mine", '[{"accuracy": 1}]'])
def test_a_file_of_the_users_that_has_the_name_of_an_incomplete_one_stays(tmp_path, content):
    (tmp_path / "s-incomplete.json").write_text(content)
    scores = pd.DataFrame([{"network": "convnet3", "accuracy": 50.0}])
    with pytest.raises(KeyboardInterrupt), KeptRows(out=tmp_path / "s.json") as rows_so_far:
        rows_so_far.add(scores)
        raise KeyboardInterrupt
    with KeptRows(out=tmp_path / "s.json") as rows_so_far:
        rows_so_far.save(scores, of_run=False)
    assert (tmp_path / "s-incomplete.json").read_text() == content and "s.json" in names_in(tmp_path)


def test_a_run_keeps_no_incomplete_scores_beside_complete_ones(tmp_path):
    run = SimpleNamespace(path=tmp_path, write_scores=lambda scores: (tmp_path / "scores.json").write_text("[]"))
    scores = pd.DataFrame([{"network": "convnet3", "accuracy": 50.0}])
    for of_run in (True, False):  # the second time the run has scores already
        with pytest.raises(KeyboardInterrupt), KeptRows(run=run) as rows_so_far:
            rows_so_far.add(scores)
            raise KeyboardInterrupt
        assert "scores-incomplete.json" in names_in(tmp_path)
        with KeptRows(run=run) as rows_so_far:
            rows_so_far.save(scores, of_run=of_run)
        assert names_in(tmp_path) == ["scores.json"]


def test_interruptions_without_a_place_for_the_rows_keep_those_of_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for accuracy in (50.0, 60.0):
        with pytest.raises(KeyboardInterrupt), KeptRows() as rows_so_far:
            rows_so_far.add(pd.DataFrame([{"network": "convnet3", "accuracy": accuracy}]))
            raise KeyboardInterrupt
    found = [json.loads(path.read_text())[0]["accuracy"] for path in tmp_path.iterdir()]
    assert sorted(found) == [50.0, 60.0]


def test_what_cannot_be_resumed_is_not_promised(tmp_path, capsys):
    for writable in (True, False):
        with pytest.raises(KeyboardInterrupt), KeptRows(out=tmp_path / "s.json") as rows_so_far:
            rows_so_far.finished.writable = writable
            rows_so_far.add(pd.DataFrame([{"network": "convnet3", "accuracy": 50.0}]))
            raise KeyboardInterrupt
        assert ("a resumed evaluation continues after them" in capsys.readouterr().err) is writable


def test_a_row_does_not_name_the_memory_of_a_process_that_did_not_train_it(pictures, kept, monkeypatch):
    chosen = random_real(pictures.train, 3)
    interrupted_after(1, chosen, pictures, kept)
    config = preset("random", pictures.name, 3, "ci", {"compute.compile": "off"})
    config = attrs.evolve(config, eval=QUICK)
    collected = KeptRows()
    collected.finished = kept
    made = MadeBy(device="cpu", peak_memory_mib=7)
    found = scored(chosen, pictures, config, origin=SetOrigin.planned(config), seed=0, made_by=made, kept=collected)
    assert found["peak_memory_mib"].notna().tolist() == [False, True, True, True]
    assert [type(value) for value in found["peak_memory_mib"][1:]] == [int] * 3, "whole numbers"


def test_the_fingerprint_of_a_set_is_that_of_its_values(pictures):
    chosen = random_real(pictures.train, 4)
    images = chosen.images
    assert chosen.fingerprint == dataclasses.replace(chosen, images=images.clone().requires_grad_()).fingerprint
    layout = images.contiguous(memory_format=torch.channels_last)
    assert chosen.fingerprint == dataclasses.replace(chosen, images=layout, provenance={}).fingerprint
    changed = images.clone()
    changed[0, 0, 0, 0] += 1e-6
    others = [
        dataclasses.replace(chosen, images=changed),
        dataclasses.replace(chosen, images=images.flip(0)),
        dataclasses.replace(chosen, factor=2),
        dataclasses.replace(chosen, spec=dataclasses.replace(chosen.spec, mean=(0.4,) * chosen.spec.channels)),
        random_real(pictures.train, 3),
    ]
    assert len({one.fingerprint for one in [chosen, *others]}) == 6


def test_a_row_that_an_interrupted_evaluation_has_appended_is_not_appended_again(tmp_path):
    row = {"dataset": "d", "method": "m", "network": "n", "evaluation_seed": 0, "accuracy": 50.1, "seconds": 1 / 3}
    append_results(tmp_path / "r.csv", pd.DataFrame([row]))
    append_results(tmp_path / "r.csv", pd.DataFrame([row | {"date": "later"}, row | {"evaluation_seed": 1}]))
    found = pd.read_csv(tmp_path / "r.csv")
    assert found["evaluation_seed"].tolist() == [0, 1] and found["seconds"].tolist() == [1 / 3] * 2
    whole = {"seed": 1, "seconds": 0.5}  # becomes 1.0 where another row has none
    append_results(tmp_path / "whole.csv", pd.DataFrame([row | whole]))
    append_results(tmp_path / "whole.csv", pd.DataFrame([row | whole, row], dtype=object))
    assert len(pd.read_csv(tmp_path / "whole.csv")) == 2
    append_results(tmp_path / "r.csv", pd.DataFrame([row | {"seconds": 0.25}]))
    assert len(pd.read_csv(tmp_path / "r.csv")) == 3, "another training of the same network"
    for _ in range(2):
        append_results(tmp_path / "plain.csv", pd.DataFrame([row]).drop(columns="seconds"))
        append_results(tmp_path / "none.csv", pd.DataFrame([row | {"seconds": None}]))
    assert len(pd.read_csv(tmp_path / "plain.csv")) == len(pd.read_csv(tmp_path / "none.csv")) == 2
