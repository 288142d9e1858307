"""A comparison checks before it times; the report says what was measured. No test looks at a time."""

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from iidlib.bench import report as bench_report
from iidlib.bench.timing import LOSS_TOLERANCE, LossesDiffer
from iidlib.config import preset
from iidlib.data import Dataset
from iidlib.distillation import Distillation
from iidlib.errors import InputError
from iidlib.experiments.tables import results_dir
from tests.factories import tiny_dataset

SMALL = {"match.width": 8, "match.batch_real": 6, "pool.network": "convnet3", "pool.width": 8, "compute.compile": "off"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset((5, 9, 12), 32, seed=1)


def test_random_pool_is_frozen_and_a_function_of_the_seed(dataset: Dataset) -> None:
    config = preset("iid-dm", scale="paper", changes=SMALL)
    first, again = (bench_report.random_pool(config, dataset.spec, torch.device("cpu")).networks[0] for _ in range(2))
    assert not any(p.requires_grad for p in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("classes", "per_class"), [(2, 5), (10, 400), (23, 7), (3, 1000)])
def test_timing_dataset_has_the_sizes_asked_for_and_real_images(classes: int, per_class: int) -> None:
    made = bench_report.timing_dataset(classes, per_class)
    mini = bench_report.load_dataset("cifar10-mini")
    assert made.train.counts.tolist() == [per_class] * classes
    assert len(set(made.spec.classes)) == len(made.spec.classes) == classes
    last = made.train.images[made.train.of_class(classes - 1)]
    real = mini.train.images[mini.train.of_class((classes - 1) % 10)]
    assert torch.equal(last, real[torch.arange(per_class) % len(real)])
    assert len(made.test) == 100 * min(classes, 10)


TINY = {"match.width": 4, "match.batch_real": 4, "pool.width": 4, "eval.width": 4, "compute.compile": "off"}


@pytest.fixture(scope="module")
def report() -> bench_report.BenchReport:
    return bench_report.measure(("dm", "iid-dm"), quick=True, device="cpu", changes=TINY)


def test_report_has_a_row_a_method(report: bench_report.BenchReport) -> None:
    rows = report.rows()
    named = [(row["what"], row["method"]) for row in rows]
    assert named == [
        ("distill", "dm"), ("distill", "iid-dm"), ("evaluate", "convnet3"), ("evaluate x2", "convnet3"),
    ]  # fmt: skip
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same columns"
    for row in rows:
        sizes = (2, 10, 4, 4) if row["what"] == "distill" else (10, 10, 0, 4)
        assert (row["classes"], row["ipc"], row["batch_real"], row["width"]) == sizes
        assert row["compiled"] is False and row["torch"] == torch.__version__ and row["pool_network"] == "convnet3"
        assert row["gflop"] > 0 and row["gbyte"] > 0 and row["first_seconds"] > 0 and row["peak_memory_mib"] > 0
        assert (row["loss_difference"] or 0) <= LOSS_TOLERANCE
        assert (row["weights_difference"] is None) == (row["what"] == "distill")
        assert row["recorded"] is False and row["error"] == "" and row["networks"] == 1 + (row["what"][-2:] == "x2")
        for name in ("capture_seconds", "eager_seconds", "device_seconds", "precision_loss_difference"):
            assert row[name] is None, "a CPU records nothing and has one precision"


def test_ratio_and_rates_follow_from_the_seconds(report: bench_report.BenchReport) -> None:
    made = replace(
        report.timings[0], baseline_times=(8.0, 6.0, 7.0), our_times=(2.0, 2.0, 50.0), first_seconds=9.0,
        gflop=280.0, gbyte=14.0, ceiling_gflops=200.0,
    )  # fmt: skip
    row = made.row()
    assert (row["baseline_seconds"], row["seconds"], row["ratio"]) == (7.0, 2.0, 3.5)
    assert (row["floor_fraction"], row["gflops"], row["baseline_gflops"]) == (0.7, 140.0, 40.0)
    assert (row["baseline_gbytes"], row["compile_seconds"]) == (2.0, 7.0)
    shown = replace(report, timings=(made,)).tables()
    assert (shown["seconds"][0]["ratio"], shown["seconds"][0]["floor"]) == ("3.50", "1.4")
    for timing in report.timings:
        assert timing.ratio == statistics.median(timing.baseline_times) / statistics.median(timing.our_times)


def test_tables_fit_a_narrow_terminal_and_name_what_varies(report: bench_report.BenchReport) -> None:
    for rows in report.tables().values():
        assert not {"ipc", "classes", "width"} & set(rows[0])
    wider = replace(report.timings[0], width=256)
    for rows in replace(report, timings=(report.timings[0], wider)).tables().values():
        assert [row["width"] for row in rows] == ["4", "256"]
        columns = [[name, *(row[name] for row in rows)] for name in rows[0]]
        assert sum(3 + max(map(len, column)) for column in columns) < 100


def test_report_as_json_is_its_rows(report: bench_report.BenchReport) -> None:
    read = json.loads(report.to_json())
    assert read == report.rows()
    assert {"what", "method", "seconds", "baseline_seconds", "ratio", "floor_fraction"} <= set(read[0])


def test_rows_are_added_to_a_file_that_holds_such_rows_only(report: bench_report.BenchReport, tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    for _ in range(2):
        report.append(path, "iid bench --quick")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["dm", "iid-dm", "convnet3", "convnet3"] * 2
    assert float(rows[0]["ratio"]) == report.timings[0].ratio and rows[5]["command"] == "iid bench --quick"
    other = tmp_path / "other.csv"
    other.write_text("dataset,method,accuracy\nshapes,dm,50\n")
    with pytest.raises(InputError, match="no column 'what'"):
        report.append(other)
    assert other.read_text() == "dataset,method,accuracy\nshapes,dm,50\n"


@pytest.mark.parametrize("name", ["bench", "bench-scaling"])
def test_rows_are_added_to_those_of_earlier_versions(
    name: str, report: bench_report.BenchReport, tmp_path: Path
) -> None:
    path = tmp_path / "bench.csv"
    path.write_bytes((results_dir() / f"{name}.csv").read_bytes())
    before = pd.read_csv(path)
    report.append(path)
    after = pd.read_csv(path)
    pd.testing.assert_frame_equal(after[: len(before)][list(before)], before, check_dtype=False)
    assert after["method"].tolist()[len(before) :] == ["dm", "iid-dm", "convnet3", "convnet3"]
    known = before["networks"].notna().tolist() if "networks" in before else [False] * len(before)
    assert after["networks"].notna().tolist() == known + [True] * 4, "older rows lack the column"


def test_a_gpus_timings_have_a_table_of_their_own(report: bench_report.BenchReport) -> None:
    assert set(report.tables()) == {"seconds", "rates"}
    on_gpu = replace(
        report.timings[0], recorded=True, capture_seconds=1.5, eager_times=(0.012, 0.010, 0.011), our_times=(0.003,),
        device_seconds=0.0025, precision_differences={"loss": 2e-4, "gradient": 0.11},
    )  # fmt: skip
    failed = replace(on_gpu, recorded=False)
    tables = replace(report, timings=(on_gpu, failed, report.timings[2])).tables()
    assert [list(row.values())[1:] for row in tables["on the GPU, in ms"]][:2] == [
        ["yes", "1.5e+03", "11", "3", "2.5", "2e-04, 1e-01"], ["no", "1.5e+03", "", "3", "2.5", "2e-04, 1e-01"],
    ]  # fmt: skip
    lines = replace(report, timings=(on_gpu, failed)).lines()
    assert "recorded, eager 0.011 s, device 0.0025 s" in lines[0] and "not recorded, device 0.0025 s" in lines[1]
    assert any("of fp32 from fp32" in note for note in replace(report, timings=(on_gpu,)).notes())


# What cannot be timed


def test_a_method_that_differs_or_fails_is_a_row_and_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, rows = bench_report.compare, []

    def compare(run: Distillation, **given: object) -> object:
        if run.config.method == "dm":
            raise LossesDiffer("dm: the losses differ by 1e-1")
        if run.config.method == "dm-cm":
            raise RuntimeError("out of something\nand more")
        return real(run, **given)

    monkeypatch.setattr(bench_report, "compare", compare)
    methods = ("dm", "dm-cm", "iid-dm")
    report = bench_report.measure(methods, quick=True, rounds=1, device="cpu", changes=TINY, on_row=rows.append)
    assert [failure.method for failure in report.failures] == ["dm", "dm-cm"]
    assert report.failures[0].reason == "dm: the losses differ by 1e-1"
    assert report.failures[1].reason.startswith("RuntimeError: out of something")
    assert [timing.method for timing in report.timings] == ["iid-dm", "convnet3", "convnet3"]
    assert [len(one.rows()) for one in rows] == [1] * 5 and [row for one in rows for row in one.rows()] == [
        *report.rows()[3:], *report.rows()[:3],
    ]  # fmt: skip
    assert len({tuple(row) for row in report.rows()}) == 1, "all rows have the same columns"
    assert report.rows()[3]["seconds"] is None and report.rows()[3]["error"] == "dm: the losses differ by 1e-1"
    assert report.lines()[3] == "distill dm: not timed: dm: the losses differ by 1e-1"
    assert "dm-cm could not be timed" in caplog.text and "Traceback" in caplog.text
    nothing = replace(report, timings=())
    assert nothing.tables() == {} and nothing.notes() == [] and json.loads(nothing.to_json()) == nothing.rows()


def test_an_interrupted_measurement_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real, rows = bench_report.compare, []

    def compare(run: Distillation, **given: object) -> object:
        if run.config.method == "dm-cm":
            raise KeyboardInterrupt
        return real(run, **given)

    monkeypatch.setattr(bench_report, "compare", compare)
    with pytest.raises(KeyboardInterrupt):
        bench_report.measure(("dm", "dm-cm"), quick=True, device="cpu", changes=TINY, on_row=rows.append)
    assert [row["method"] for one in rows for row in one.rows()] == ["dm"]


def test_notes_say_what_the_numbers_are_of(report: bench_report.BenchReport) -> None:
    text = "\n".join(report.notes())
    assert "2 classes, 4 real and 10 synthetic images per class, convnet3 of width 4" in text
    assert "not compiled" in text and "convnet3 with random weights" in text
    without = replace(report, timings=report.timings[:1])
    assert "random weights" not in "\n".join(without.notes())


def test_scaling_varies_one_size_at_a_time() -> None:
    changes = {"compute.compile": "off", "match.network": "convnet3"}
    axes = {"ipc": (1, 10), "width": (2, 128), "classes": (1, 10), "batch_real": (2, 256)}
    asked: list[tuple[int, ...]] = []

    def noted(run: Distillation, **named: object) -> None:
        match = run.config.match
        asked.append((run.config.ipc, run.real.num_classes, match.batch_real, match.width))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_report, "compare", noted)
        for rate in ("matrix_product_rate", "copy_rate"):
            patch.setattr(bench_report, rate, lambda *given: 1.0)
        bench_report.scaling("dm", axes=axes, changes=changes)
    assert asked == [(1, 10, 256, 128), (10, 10, 256, 128), (10, 10, 256, 2), (10, 1, 256, 128), (10, 10, 2, 128)]


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        ((), {}, "at least one round"),
        (("dm",), {"rounds": 0}, "at least one round"),
        (("dm", "iid-md"), {}, "did you mean 'iid-dm'"),
        (("iid-dm",), {"pool_network": "resnet81"}, "did you mean 'resnet18'"),
        (("dm",), {"device": "gpu"}, "'gpu' is not known"),
        (("dm",), {"changes": {"match.widht": 8}}, "did you mean 'match.width'"),
    ],
)
def test_wrong_input_is_named_before_anything_runs(methods: tuple[str, ...], options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_report.measure(methods, quick=True, **options)


@pytest.mark.gpu
def test_losses_agree_on_a_gpu_and_what_is_timed_is_recorded() -> None:
    report = bench_report.measure(("dm-cm", "iid-dm"), quick=True, device="cuda")
    assert not report.failures
    for timing in report.timings:
        assert timing.recorded is (timing.what != "evaluate")
        assert timing.precision_differences, "timed in tf32, the default"
        if timing.what == "distill":
            assert 0 < timing.device_seconds < 1.5 * timing.seconds
