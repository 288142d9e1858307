"""What is around the code: dependencies in their three files, the wheel, the Makefile, licence, citation, versions."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import iidlib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf8")
README = (ROOT / "README.md").read_text(encoding="utf8")

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "linux-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    "macos-arm64": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
}
# Names on conda-forge that differ from those on PyPI.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def lower_bound(requirement: Requirement) -> str:
    (bound,) = [item.version for item in requirement.specifier if item.operator == ">="]
    return bound


CORE = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = [Requirement(text) for extra in ("book", "dev") for text in PROJECT["optional-dependencies"][extra]]


# --- dependencies -----------------------------------------------------------------------------------------------------


def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))


def test_conda_environment_uses_conda_forge_only() -> None:
    environment = conda()
    assert environment["name"] == "iid-book"
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_conda_environment_agrees_with_pyproject() -> None:
    listed = {}
    for entry in conda()["dependencies"]:
        if isinstance(entry, str):
            name, _, bounds = entry.partition(" ")
            listed[CONDA_NAMES.get(name, name)] = bounds
    python = listed.pop("python")
    assert python.startswith(PROJECT["requires-python"])
    listed.pop("pip")
    assert listed == {name: f">={lower_bound(requirement)}" for name, requirement in CORE.items()}


def test_conda_environment_installs_the_project_with_its_extras() -> None:
    (pip,) = [entry["pip"] for entry in conda()["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-e .[book,dev]"]
    assert set(PROJECT["optional-dependencies"]) == {"book", "cluster", "dev"}
    assert set(PROJECT["optional-dependencies"]["cluster"]) <= set(PROJECT["optional-dependencies"]["dev"])


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each requirement of the lock with its hashes."""
    text = (ROOT / ".ci" / "requirements.lock").read_text(encoding="utf8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [
        (Requirement(line.split(" --hash")[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})", line)) for line in lines
    ]


def test_lock_pins_every_package_with_hashes() -> None:
    for requirement, hashes in locked():
        operators = [item.operator for item in requirement.specifier]
        assert operators == ["=="], f"{requirement} is not pinned"
        assert hashes, f"{requirement.name} has no hashes"
        assert requirement.url is None


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_lock_has_an_allowed_version_of_every_dependency(platform: str, python: str) -> None:
    environment = default_environment() | PLATFORMS[platform]
    environment |= {"python_version": python, "python_full_version": f"{python}.1", "os_name": "posix"}
    versions: dict[str, str] = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            assert versions.setdefault(name, pin.version) == pin.version, f"two versions of {name}"
    # Without its CUDA libraries torch does not import on Linux; on macOS there are none.
    assert any(name.startswith("nvidia-") for name in versions) == platform.startswith("linux")
    for requirement in [*CORE.values(), *EXTRAS]:
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in the lock: run `make lock`"
        assert requirement.specifier.contains(version), f"the lock has {requirement.name} {version}: run `make lock`"


def test_editable_install_needs_nothing_outside_the_lock() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["build-system"]["requires"]
    names = {canonicalize_name(requirement.name) for requirement, _ in locked()}
    assert {canonicalize_name(Requirement(text).name) for text in build} | {"editables"} <= names


def test_supported_pythons_are_stated() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    stated = [text.rsplit(" ", 1)[1] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert stated == PYTHONS
    first, last = PYTHONS[0], PYTHONS[-1]
    for text in (README, MAKEFILE, (ROOT / "book" / "environment.md").read_text(encoding="utf8")):
        assert set(re.findall(r"Python (3\.\d+ to 3\.\d+)", text)) == {f"{first} to {last}"}
    after = f"3.{int(last.split('.')[1]) + 1}"
    assert f"python >={first},<{after}" in (ROOT / "environment.yml").read_text(encoding="utf8")


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_modules_and_the_embedded_images(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "iidlib").rglob("*.py")} | {
        "iidlib/engine/kernels.cpp",
        "iidlib/engine/layers.cpp",
        "iidlib/py.typed",
    }
    mini = ROOT / "data" / "cifar10-mini"
    images = {f"iidlib/_data/cifar10-mini/{path.relative_to(mini)}" for path in mini.rglob("*") if path.is_file()}
    assert len(images) >= 3
    assert modules | images <= names
    rest = {name for name in names - modules - images if ".dist-info/" not in name}
    assert not rest, f"the wheel holds more than the library: {sorted(rest)[:5]}"


def test_wheel_has_licence_and_console_script(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"iidlib-{PROJECT['version']}.dist-info"
    assert b"MIT License" in archive.read(f"{info}/licenses/LICENSE")
    assert "iid = iidlib.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_scripts_that_use_the_installed_wheel_are_type_checked(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, without torch: types of the library's own names are known all the same."""
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "script.py").write_text(
        "import iidlib\n"
        "from iidlib.data import RealSet\n"
        "reveal_type(iidlib.preset('dm', 'shapes', 1, 'ci').iterations)\n"
        "reveal_type(iidlib.load_dataset('shapes').train)\n"
        "iidlib.destill\n"
        "iidlib.load_dataset(3)\n"
    )
    command = [sys.executable, "-m", "mypy", "--python-executable", str(tmp_path / "env/bin/python"), "script.py"]
    free = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=free)
    printed = done.stdout.replace('"builtins.int"', '"int"')  # as mypy before version 2 says
    assert re.findall(r"(\d): (?:note|error): (.*)", printed) == [
        ("3", 'Revealed type is "int"'),
        ("4", 'Revealed type is "iidlib.data.realset.RealSet"'),
        ("5", 'Module has no attribute "destill"; maybe "distill"?  [attr-defined]'),
        ("6", 'Argument 1 to "load_dataset" has incompatible type "int"; expected "str | PathLike[str]"  [arg-type]'),
    ], done.stdout + done.stderr


def test_installed_wheel_finds_its_images_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import iidlib.data; print(iidlib.data.__file__); print(iidlib.data.data_dir('cifar10-mini'))"
    environment = {name: value for name, value in os.environ.items() if name != "IID_DATA"}
    environment["PYTHONPATH"] = str(tmp_path / "site")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module, folder = map(Path, done.stdout.split("\n")[:2])
    assert module == tmp_path / "site" / "iidlib" / "data" / "__init__.py"
    assert folder == tmp_path / "site" / "iidlib" / "_data" / "cifar10-mini"


def test_editable_install_copies_no_images() -> None:
    installed = importlib.metadata.files("iidlib") or []
    assert not [str(path) for path in installed if "_data" in path.parts], "reinstall with: pip install --no-deps -e ."


def test_console_script_leads_to_the_command_line() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="iid")
    assert callable(script.load())


# --- versions, licence, citation --------------------------------------------------------------------------------------


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf8"), flags=re.MULTILINE)
    released = [name for name in changes if name != "Unreleased"]
    assert iidlib.__version__ == PROJECT["version"] == citation["version"] == released[0]


def test_licence_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf8")
    assert text.startswith("MIT License\n")
    assert re.search(r"Copyright \(c\) \d{4} \S", text)
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in text
    assert PROJECT["license"] == "MIT"


def test_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert citation["license"] == "MIT"
    titles = [reference["title"] for reference in citation["references"]]
    assert "Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation" in titles
    for reference in citation["references"]:
        assert reference["authors"]
        assert reference["year"]


def test_tracked_files_stay_small() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    total = sum(path.stat().st_size for path in files if path.is_file())
    assert total < 25 * 2**20, f"tracked files hold {total / 2**20:.1f} MiB; the limit is 25"


# --- Makefile and documentation ---------------------------------------------------------------------------------------


def targets() -> list[str]:
    """Targets of the Makefile."""
    listed = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    return [name for line in listed for name in line.split() if "$" not in name]


def make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(name: str) -> ModuleType:
    """A script of .ci, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_six_lines_of_the_readme_print_what_it_says(tmp_path: Path) -> None:
    code, printed = script("release").sixty_seconds()
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "distilled.png").read_bytes().startswith(b"\x89PNG")
    # another processor rounds otherwise, and other threads: the same set within the spread of its networks
    assert float(done.stdout) == pytest.approx(float(printed), abs=2)


def test_a_moved_environment_is_repaired(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / ".venv", tmp_path / "new clone" / ".venv"
    venv.create(old, with_pip=True)
    (old / "bin" / "tool").write_text(f"#!{old}/bin/python\nprint('{old}2')\n")
    shutil.copytree(old, new, symlinks=True)
    command = [new / "bin" / "python", ROOT / ".ci" / "relocate.py", new]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Repaired" in done.stdout
    named = [path.name for path in (new / "bin").iterdir() if path.is_file() and f"{old}/" in path.read_text("latin1")]
    assert not named
    assert (new / "bin" / "tool").read_text() == f"#!{new}/bin/python\nprint('{old}2')\n", "another path stays"
    assert f"{old}/bin/python" in (old / "bin" / "tool").read_text(), "the original stays as it is"
    assert not subprocess.run(command, capture_output=True, text=True, check=True).stdout, "nothing is left to repair"


def test_make_repairs_an_environment_that_was_made_elsewhere(tmp_path: Path) -> None:
    """Only what make would run: the rule is due where the stamp names another place, and is not where it is right."""
    made = tmp_path / ".venv"
    made.mkdir()
    (made / "bin").mkdir()
    (made / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".ci").mkdir()
    for name in (".ci/requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    command = ["make", "--dry-run", "-f", str(ROOT / "Makefile"), "install"]
    for place, due in (("/elsewhere .venv", True), (f"{tmp_path} .venv", False)):
        (made / ".installed").write_text(f"key\n{place}\n")
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert ("relocate" in done.stdout) == due, done.stdout


@pytest.fixture
def releasable(tmp_path: Path) -> Path:
    """A small checkout of version 9.8.7 with nothing in the way of its release."""
    files = {
        "pyproject.toml": '[project]\nversion = "9.8.7"\n',
        "iidlib/_version.py": '__version__ = "9.8.7"\n',
        "CITATION.cff": 'version: "9.8.7"\ndate-released: "2030-01-02"\n',
        "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 9.8.7 - 2030-01-02\n\n- a change\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "all"]):
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        subprocess.run(git, cwd=tmp_path, check=True)
    return tmp_path


def test_a_release_is_refused_for_what_is_not_ready(releasable: Path) -> None:
    def found(version: str = "9.8.7") -> list[str]:
        return list(script("release").problems(version, releasable))

    assert found() == []
    assert "three numbers" in found("")[0] and "three numbers" in found("v9.8.7")[0]
    assert {text.split(" says")[0] for text in found("9.8.8") if " says " in text} == {
        "pyproject.toml", "iidlib/_version.py", "CITATION.cff", "CHANGELOG.md",
    }  # fmt: skip
    log = releasable / "CHANGELOG.md"
    log.write_text(log.read_text().replace("## 9.8.7 - 2030-01-02", "- new\n\n## 9.8.7"))
    assert [text.split(":")[0] for text in found()] == [
        "CHANGELOG.md needs the line '## 9.8.7 - YEAR-MONTH-DAY'",
        "CHANGELOG.md has changes under Unreleased",
        "the working tree has changes that are not committed",
    ]
    subprocess.run(["git", "checkout", "-q", "."], cwd=releasable, check=True)
    log.write_text(log.read_text().replace("2030-01-02", "2030-01-03"))
    assert found()[0] == "CITATION.cff has date-released: 2030-01-02, and CHANGELOG.md says 2030-01-03"
    subprocess.run(["git", "checkout", "-q", "."], cwd=releasable, check=True)
    subprocess.run(["git", "tag", "v9.8.7"], cwd=releasable, check=True)
    subprocess.run(["git", "checkout", "-q", "-b", "side"], cwd=releasable, check=True)
    assert found() == [
        "this is the branch side, and releases are made from main",
        "the tag v9.8.7 already exists",
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_the_demo_says_a_line_per_stage_and_shows_the_end_of_a_failure(tmp_path: Path, fails: bool) -> None:
    log, code = tmp_path / "log.txt", "print('much output')\n"
    for name in ("dm-seed0", "iid-dm-seed0"):
        code += f"import pathlib; p = pathlib.Path({str(tmp_path)!r}, {name!r}); p.mkdir()\n"
        code += "(p / 'synthetic.safetensors').touch(); import time; time.sleep(0.7)\n"
    runs = script("demo").executed([sys.executable, "-c", code + "raise SystemExit(3)\n" * fails], log, tmp_path)
    assert [next(runs), next(runs)] == ["dm-seed0", "iid-dm-seed0"]
    if fails:
        with pytest.raises(SystemExit, match=r"much output\nerror: the demo failed; all of its output is in .*log.txt"):
            list(runs)
    else:
        assert list(runs) == []
    assert log.read_text() == "much output\n"


@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_make_lists_every_target_with_what_it_does(arguments: list[str]) -> None:
    lines = dict(re.findall(r"^  ([\w-]+) +(\S.*)$", make(*arguments), flags=re.MULTILINE))
    assert list(lines) == targets()
    assert {"demo", "test", "test-long", "book", "print", "lab", "lint", "sync", "lock", "bench", "clean"} <= set(lines)


def test_the_makefile_is_free_of_what_make_3_81_lacks() -> None:
    assert not re.search(r"^\.ONESHELL|^\s*\w+ *(::=|!=)|\$\(file ", MAKEFILE, flags=re.MULTILINE)


def test_make_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.18; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    done = fresh_install(tmp_path, old)
    assert "Python 3.11" in done.stderr
    assert "Python 3.9.18" in done.stderr
    assert "PYTHON=python3" in done.stderr


def test_make_names_a_missing_python3_venv(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    bare.chmod(0o755)
    assert "sudo apt install python3-venv" in fresh_install(tmp_path, bare).stderr


def fresh_install(folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """`make install` into a folder without environment, which is expected to fail before anything is made."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "install", f"VENV={folder / 'venv'}", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert not (folder / "venv").exists()
    return done


def test_targets_remove_only_what_targets_made(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    made = ["summary.txt", "scores.csv", "01_quickstart.ipynb", "dm-seed0/config.yaml", "dm-seed0/.lock"]
    made += ["dm-seed0/checkpoints/0000005.json", "iid-dm-seed0/synthetic.safetensors"]
    mine = [
        "runs/demo/notes.txt",
        "runs/demo/dm-seed0/notes.txt",
        "runs/demo/dm-seed7/config.yaml",
        "runs/own/scores.csv",
    ]
    mine += ["env/notes.txt", "iidlib/a.py", "tests/a.py", "book/a.py"]
    for name in [*(f"runs/demo/{name}" for name in made), *mine]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-f", str(ROOT / "Makefile"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert run("clean").returncode == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)
    assert not (tmp_path / "runs" / "demo" / "iid-dm-seed0").exists()
    refused = run("distclean", "VENV=env")
    assert refused.returncode != 0 and "env is not a virtual environment" in refused.stderr
    for name in (".ci/requirements.lock", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    refused = run("install", "VENV=env", f"PYTHON={sys.executable}")
    assert refused.returncode != 0 and "env is not a virtual environment; name another" in refused.stderr
    assert (tmp_path / "env" / "notes.txt").is_file()


def test_the_demo_names_all_that_it_makes(tmp_path: Path) -> None:
    """The names in the Makefile are those of the chapter, with its own seeds and methods."""
    text = (ROOT / "book" / "01_quickstart.py").read_text(encoding="utf8")
    made = re.findall(r"(\S+)-seed0", (ROOT / "Makefile").read_text(encoding="utf8").partition("DEMO_FILES")[0])
    listed = ", ".join(f'"{name}"' for name in (one.rpartition(",")[2].rpartition("/")[2] for one in made))
    assert f"methods = [{listed}]" in text and "seeds = [0]" in text
    assert set(re.findall(r'Path\(out, f?"([^"]+)"', text)) == {"{name}-seed{seed}", "summary.txt", "scores.csv"}


def test_continuous_integration_runs_the_same_targets() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf8")
    assert "set -euo pipefail" in text
    assert "IID_REQUIRE_BROWSER=1" in text
    assert text.rstrip().splitlines()[-1].startswith("exec make test")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf8"))["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["test"] == [".ci/run"] and "make test-floor" in commands["floor"]
    pythons = {job["steps"][1]["with"]["python-version"] for job in jobs.values()}
    assert {PYTHONS[0], PYTHONS[-1]} <= pythons, "the oldest and the newest that are promised"
    for job in jobs.values():
        assert any(step.get("uses", "").startswith("actions/cache@") for step in job["steps"])


@pytest.mark.parametrize(("given", "selected"), [([], False), (["-m", "not slow"], False), (["-m", "long"], True)])
def test_long_tests_run_only_where_they_are_named(given: list[str], selected: bool) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "tests/test_pictures.py",
    ]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
    assert ("test_many_random_files" in done.stdout) == selected and done.returncode == 0, done.stdout
    assert ("test_random_files_are_read_right_or_refused" in done.stdout) != selected


def shell_lines() -> list[str]:
    """Lines of the shell blocks of the README and of the page on the command line, without their comments."""
    pages = README + (ROOT / "book" / "command_line.md").read_text(encoding="utf8")
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", pages, flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line.strip()]


def test_readme_names_targets_that_exist() -> None:
    named = re.findall(r"\bmake ([a-z-]+)\b", README)
    assert {"demo", "lab", "book"} <= set(named)
    assert set(named) <= set(targets())


def test_readme_can_be_read_in_two_minutes() -> None:
    assert len(README.splitlines()) <= 120
    assert len(README.split()) <= 700


def test_readme_commands_and_options_are_those_of_the_command_line() -> None:
    iid = Path(sys.executable).parent / "iid"
    lines = [line.split()[1:] for line in shell_lines() if line.startswith("iid ")]
    assert {"distill", "evaluate", "data", "sweep", "bench"} <= {words[0] for words in lines}
    wide = os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    for words in lines:
        command = words[: 2 if words[0] == "data" else 1]
        done = subprocess.run([iid, *command, "--help"], capture_output=True, text=True, env=wide)
        assert done.returncode == 0, f"iid {' '.join(command)}: {done.stderr}"
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= set(re.findall(r"--[a-z-]+", done.stdout)), f"iid {' '.join(words)}: {done.stdout}"


def test_readme_python_runs_as_far_as_names_go() -> None:
    (block, *_) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    compile(block, "README.md", "exec")
    for name in re.findall(r"\biidlib\.(\w+)", block):
        assert hasattr(iidlib, name), f"README.md uses iidlib.{name}"


def test_readme_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (ROOT / target).exists(), f"{name} links to {target}"
