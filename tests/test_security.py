"""What comes from elsewhere is data: nothing in it is run, fetched or shown as anything but text."""

import ast
import csv
import hashlib
import json
import logging
import pickle
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import iidlib
from iidlib import files
from iidlib.config import preset
from iidlib.data import load_dataset
from iidlib.distillation import distill
from iidlib.engine import fused, kernels
from iidlib.errors import InputError
from iidlib.evaluation import evaluate
from iidlib.networks import build_network, prepare
from iidlib.runs import RunFolder
from iidlib.synthetic import SyntheticSet
from tests.factories import Trap, compute_in_process, give_away
from tests.fuzzing import READERS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(iidlib.__file__).parent


# --- no code from data ------------------------------------------------------------------------------------------------


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


def traps(sprung: Path) -> dict[str, bytes]:
    """Files that run code in readers which let them."""
    buffer = sprung.parent / "trap.pt"
    torch.save({"images": Trap(sprung)}, buffer)
    return {
        "pickle": pickle.dumps(Trap(sprung)),
        "torch": buffer.read_bytes(),
        "yaml": f"method: !!python/object/apply:os.mkdir ['{sprung}']\n".encode(),
        "yaml new": f"!!python/object/new:os.mkdir ['{sprung}']\n".encode(),
        "json": json.dumps({"__reduce__": ["os.mkdir", [str(sprung)]]}).encode(),
        "csv": f"dataset,method,accuracy\n=cmd|'mkdir {sprung}'!A1,dm,1\n".encode(),
    }


@pytest.mark.parametrize("reader", READERS)
def test_a_trap_in_the_place_of_any_file_is_not_sprung(
    reader: str, sprung: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "case"
    place.mkdir()
    victim = READERS[reader].good(place)
    for name, content in traps(sprung).items():
        victim.write_bytes(content)
        try:
            READERS[reader].read(place)
        except InputError as error:
            assert "\n" not in str(error)
        assert not sprung.exists(), f"{reader} ran the code in a {name}"


def test_the_traps_are_traps(sprung: Path) -> None:
    pickle.loads(traps(sprung)["pickle"])
    assert sprung.is_dir()


def calls(module: Path) -> set[str]:
    """Dotted names that a module calls."""
    tree = ast.parse(module.read_text(encoding="utf8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_no_module_calls_what_runs_code_from_data() -> None:
    runs = r"(pickle|cPickle|dill|joblib|shelve|marshal)\..*|torch\.load|np\.load|yaml\.(\w+_)?load|eval|exec"
    found = {(path.name, name) for path in PACKAGE.rglob("*.py") for name in calls(path) if re.fullmatch(runs, name)}
    assert found == {("files.py", "yaml.load")}  # with the loader below
    assert issubclass(files._NoAliases, files.yaml.SafeLoader)


def compute_in(folder: Path, *arguments: str) -> tuple[bool, float, list[str]]:
    """Whether a new process used the CPU kernels, a value that it computed, and its warnings of doing without."""
    used, value, lines = compute_in_process(folder / "cache", folder / "tmp", *arguments)
    return used, value, [line for line in lines if "continuing without" in line]


# --- no code from others on the same machine --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not fused.compiler_available(), reason="torch finds no C++ compiler")
def test_compiled_code_is_kept_and_loaded_where_nobody_else_can_put_any(tmp_path: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    used, expected, warnings = compute_in(tmp_path, "compile")
    assert used and not warnings
    compiled = tmp_path / "cache" / "compiled"
    assert compiled.stat().st_mode & 0o777 == 0o700
    libraries = list(compiled.rglob("*.so"))
    assert len(libraries) >= 2
    assert not list((tmp_path / "tmp").iterdir()), "something is left in the shared temporary folder"

    source, sprung = tmp_path / "trap.c", tmp_path / "sprung"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void spring(void) {{ fopen("{sprung}", "w"); }}\n'
    )
    command = [get_cpp_compiler(), "-x", "c", "-shared", "-fPIC", "-o", str(tmp_path / "trap.so"), str(source)]
    subprocess.run(command, check=True)
    for library in libraries:
        library.unlink()
        content = (tmp_path / "trap.so").read_bytes()
        library.write_bytes(content)
        Path(f"{library}.sha256").write_text(hashlib.sha256(content).hexdigest())
    compute_in(tmp_path)
    assert sprung.exists(), "the trap is none"
    sprung.unlink()

    compiled.chmod(0o777)  # now anybody may have put it there
    used, value, warnings = compute_in(tmp_path)
    assert not used and not sprung.exists()
    assert value == pytest.approx(expected, rel=1e-5)
    assert warnings == [
        f"compiled code is neither built nor loaded: {compiled} has mode 0777, not 0700; continuing without it, "
        "which is slower; set IID_CACHE to a folder that only you can write to"
    ]


@pytest.fixture
def not_yet_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not asked for compiled code yet, and fails if any is built or loaded."""
    from torch._inductor import codecache

    def called(*given: object, **named: object) -> None:
        raise AssertionError("something is compiled or loaded")

    once = (kernels.refusal, kernels.library, fused.compiler_available, fused.compiled_norm_relu_pool)
    for function in once:
        function.cache_clear()
    monkeypatch.setattr(codecache.CppCodeCache, "load", called)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: called)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    yield
    for function in once:
        function.cache_clear()


def a_link(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


FOREIGN = {
    "mode": lambda path, monkeypatch: path.chmod(0o777),
    "link": a_link,
    "owner": give_away,
    "above": lambda path, monkeypatch: path.parent.chmod(0o777),
}


@pytest.mark.usefixtures("not_yet_compiled")
@pytest.mark.parametrize("variable", ["IID_CACHE", "TORCHINDUCTOR_CACHE_DIR"])
@pytest.mark.parametrize("change", FOREIGN)
def test_a_folder_of_others_is_refused_once_and_costs_speed_alone(
    change: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache" / "compiled"
    folder.mkdir(parents=True, mode=0o700)
    FOREIGN[change](folder, monkeypatch)
    monkeypatch.setenv("IID_CACHE", str(tmp_path / ("cache" if variable == "IID_CACHE" else "unused")))
    if variable != "IID_CACHE":
        monkeypatch.setenv(variable, str(folder))
    caplog.set_level(logging.WARNING, "iidlib")
    network = build_network("convnet1", width=16, image_size=8, generator=torch.Generator().manual_seed(0))
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    expected = network.feature_map(images)
    for _ in range(2):
        found = prepare(network).feature_map(images)
        assert torch.allclose(found, expected, atol=1e-5)
    kernel = fused.compiled_norm_relu_pool()
    given = images, torch.ones(3), torch.zeros(3)
    assert torch.equal(kernel(*given), fused.norm_relu_pool(*given))
    assert kernels.library() is None and not fused.compiler_available()
    (warning,) = [record.message for record in caplog.records]
    assert str(tmp_path / "cache") in warning and "\n" not in warning
    assert warning.endswith(f"without it, which is slower; set {variable} to a folder that only you can write to")
    with pytest.raises(ValueError, match=f"compute.compile is on, but {re.escape(str(tmp_path / 'cache'))}.* use auto"):
        prepare(network, compile="on")


@pytest.mark.usefixtures("not_yet_compiled")
@pytest.mark.parametrize("before", ["", "torch's own"])
def test_the_predictable_folder_that_torch_takes_is_left_for_our_own(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before and default_cache_dir())
    monkeypatch.setenv("IID_CACHE", str(tmp_path))
    assert kernels.refusal() == ""
    assert cache_dir() == str(tmp_path / "compiled")


# --- no network, no secrets -------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any, **named: Any) -> None:
        raise AssertionError(f"something connects to {given[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("IID_CACHE", str(tmp_path / "cache"))
    for name in ("cifar10-mini", "shapes"):
        config = preset("iid-idm", name, 1, "ci", {"iterations": 2})
        dataset = load_dataset(name)
        evaluate(distill(config, dataset, out=tmp_path / name).synthetic, dataset, protocol=config.eval)
    with pytest.raises(InputError, match="iid data fetch cifar10"):
        load_dataset("cifar10", data_root=tmp_path)
    with pytest.raises(AssertionError, match="something connects"):
        load_dataset("cifar10", data_root=tmp_path, download=True)  # asked for


def test_no_environment_variable_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "GITHUB_TOKEN": "ghp_16C7e42F",
        "IID_CACHE": str(tmp_path / "c"),
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    dataset = load_dataset("shapes")
    config = preset("iid-dm", "shapes", 2, "ci", {"pool.epochs": 12})
    result = distill(config, dataset, out=tmp_path / "run")
    RunFolder(tmp_path / "run").write_scores(evaluate(result.synthetic, dataset, protocol=config.eval))
    text = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for value in (*secrets.values(), str(Path.home())):
        assert value.encode() not in text


# --- shown as text ----------------------------------------------------------------------------------------------------

HURT = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"


def hostile(folder: Path) -> Path:
    """A distilled set whose class names and provenance are HTML, in the folder of a run that has such scores too."""
    data = load_dataset("shapes")
    from dataclasses import replace

    spec = replace(data.spec, classes=(HURT, *data.spec.classes[1:]), name=HURT)
    SyntheticSet(
        torch.zeros(4, 3, 32, 32), torch.arange(4), spec, {"method": HURT, "note": "[red]no[/red] \x1b[31m"}
    ).save(folder / "synthetic.safetensors")
    return folder / "synthetic.safetensors"


@pytest.mark.book
def test_html_in_a_name_is_shown_as_text(tmp_path: Path, browser: Any) -> None:
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    source = f"""
import pandas as pd
from IPython.display import display
from iidlib import SyntheticSet, plots
from iidlib.evaluation import summarize
made = SyntheticSet.load({str(hostile(tmp_path))!r})
display(made)
method = made.provenance["method"]
display(pd.Series(made.provenance).to_frame())
display(summarize(pd.DataFrame({{"label": made.spec.classes, "network": method, "accuracy": 1.0}})))
grid = plots.image_grid(made.images[:2].clamp(0, 1), columns=2, title=made.spec.classes[0])
plots.show(grid, made.spec.name + " shown")
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    html, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    page = browser.new_page()
    page.set_content(re.sub(r"<script[^>]*src=[^>]*></script>", "", html))
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.hurt") is None
    assert page.locator("td", has_text="window.hurt").count() >= 3, "the names are there, as text"
    assert page.locator("img[src=x]").count() == 0


def test_markup_in_a_name_is_shown_as_text_in_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from iidlib.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(hostile(tmp_path)), "--dataset", "shapes", "--set", "eval.epochs=1", "--set",
              "eval.num_eval=1", "--set", "eval.width=4", "--no-baseline"])  # fmt: skip
    shown = capsys.readouterr()
    assert ended.value.code in (0, 2), shown.err
    assert "\x1b[31m" not in shown.out + shown.err


# --- dependencies -----------------------------------------------------------------------------------------------------


def test_the_list_of_licences_is_that_of_the_lock() -> None:
    lock = (ROOT / ".ci" / "requirements.lock").read_text(encoding="utf8")
    locked = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock, re.MULTILINE)  # some once for each Python
    with (ROOT / ".ci" / "licences.csv").open(encoding="utf8", newline="") as file:
        listed = {row["package"]: row for row in csv.DictReader(file)}
    stale = {name for name, row in listed.items() if (name, row["version"].split("+")[0]) not in locked}
    assert not stale, f"run `make licences`: {sorted(stale)}"
    elsewhere = {name for name, _ in locked if name not in listed}
    assert all(
        re.search(rf"^{re.escape(name)}==.*;.*(sys_platform|platform_|python_)", lock, re.MULTILINE)
        for name in elsewhere
    )
    missing = {name for name, row in listed.items() if not row["licence"]}
    assert missing <= {"cuda-toolkit", "sphinx-codeautolink"}, f"packages that declare no licence: {missing}"
