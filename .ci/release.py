"""Checks, builds and tests a release, and prints what is left to do by hand.

    make release VERSION=0.2.0          # all of it: the checks take as long as `make test`, and an environment of 6 GB
    .venv/bin/python .ci/release.py 0.2.0 --no-tests     # after a `make test` of the same commit

The wheel is tested as users install it: in a fresh environment, installed from the file with nothing but its own
dependencies, outside of the clone, by the six lines of the README.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import yaml

TOLERANCE = 2.0
"""Points of accuracy by which machines may differ in the README's six lines; they are deterministic on one machine."""

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
SIXTY_SECONDS = re.compile(r"<!-- sixty seconds: begin .*?```python\n(.*?)```.*?```text\n(.*?)```", re.S)


def problems(version: str, root: Path = ROOT) -> Iterator[str]:
    """Yields one sentence for each reason why a version cannot be released."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"a version is three numbers such as 0.2.0, got {version!r}: make release VERSION=0.2.0"
        return
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]["version"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf8"))
    places = {
        "pyproject.toml": project,
        "iidlib/_version.py": _find(r'__version__ = "(.+?)"', root / "iidlib" / "_version.py"),
        "CITATION.cff": str(citation.get("version", "nothing")),
        "CHANGELOG.md": _find(r"^## (\d\S*)", root / "CHANGELOG.md"),
    }
    yield from (f"{place} says {found}, not {version}" for place, found in places.items() if found != version)
    changes = (root / "CHANGELOG.md").read_text(encoding="utf8")
    dated = re.search(rf"^## {re.escape(version)} - (\d{{4}}-\d\d-\d\d)$", changes, re.M)
    cited = str(citation.get("date-released", "nothing"))
    if not dated:
        yield f"CHANGELOG.md needs the line '## {version} - YEAR-MONTH-DAY'"
    elif cited != dated[1]:
        yield f"CITATION.cff has date-released: {cited}, and CHANGELOG.md says {dated[1]}"
    if re.search(r"^## Unreleased\n+(?!## )\S", changes, re.M):
        yield f"CHANGELOG.md has changes under Unreleased: move them to {version}"
    if _git(root, "status", "--porcelain"):
        yield "the working tree has changes that are not committed"
    if (branch := _git(root, "branch", "--show-current")) != "main":
        yield f"this is the branch {branch or '(none)'}, and releases are made from main"
    if _git(root, "tag", "--list", f"v{version}"):
        yield f"the tag v{version} already exists"


def _find(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(encoding="utf8"), re.M)
    return found[1] if found else "nothing"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def sixty_seconds() -> tuple[str, str]:
    """Returns the README's six lines and the output that it prints under them."""
    found = SIXTY_SECONDS.search((ROOT / "README.md").read_text(encoding="utf8"))
    if not found:
        raise SystemExit("error: README.md has lost the block between the 'sixty seconds' marks")
    return found[1], found[2].strip()


def build() -> tuple[Path, Path]:
    """Builds wheel and sdist into ``dist`` and returns their paths; older files of that folder stay."""
    run("building", [sys.executable, "-m", "hatchling", "build", "-d", str(DIST)])
    wheel, sdist = (max(DIST.glob(kind), key=lambda path: path.stat().st_mtime) for kind in ("*.whl", "*.tar.gz"))
    return wheel, sdist


def try_out(wheel: Path) -> None:
    """Installs a wheel into a fresh environment and runs what the README promises there."""
    code, printed = sixty_seconds()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "env")
        venv.create(environment, with_pip=True, symlinks=True)
        python = str(environment / "bin" / "python")
        run("installing the wheel into a fresh environment", [python, "-m", "pip", "install", "-q", str(wheel)])
        run("pip check", [python, "-m", "pip", "check"])
        run("iid --version", [str(environment / "bin" / "iid"), "--version"], cwd=folder)
        run(
            "iid data check cifar10-mini",
            [str(environment / "bin" / "iid"), "data", "check", "cifar10-mini"],
            cwd=folder,
        )
        script = Path(folder, "six_lines.py")
        script.write_text(code)
        output = run("the six lines of the README", [python, script.name], cwd=folder)
        if not Path(folder, "distilled.png").stat().st_size:
            raise SystemExit("error: the six lines wrote an empty picture")
        print(f"    they print   {output}\n    README says  {printed}", flush=True)
        if not abs(float(output) - float(printed)) < TOLERANCE:
            raise SystemExit(f"error: the six lines print {output}, but the README says {printed}")


def run(what: str, command: list[str], cwd: str | Path = ROOT) -> str:
    """Runs a command, says so in one line, and returns the last line of its output.

    Raises:
        SystemExit: if it fails, with what it printed.
    """
    print(f"- {what}", flush=True)
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nerror: {what} failed: {' '.join(command)}")
    return done.stdout.strip().rpartition("\n")[2]


LEFT = """
Left to do by hand:
  git tag -a v{version} -m "Version {version}" && git push origin main v{version}
  uv tool run twine upload {wheel} {sdist}
  and open "## Unreleased" in CHANGELOG.md

Before the upload, the README needs full addresses: its picture and links are relative, and PyPI shows it without the
clone. They, and [project.urls], wait for the address of the repository.
"""


def main(arguments: list[str]) -> None:
    """Makes a release as far as a machine can."""
    version = next((word for word in arguments if not word.startswith("-")), "")
    if found := list(problems(version)):
        raise SystemExit("\n".join(["error: not ready for release:", *(f"  - {one}" for one in found)]))
    if "--no-tests" not in arguments:
        run("make test (about twenty minutes)", ["env", "IID_REQUIRE_BROWSER=1", "make", "test"])
    wheel, sdist = build()
    try_out(wheel)
    print(LEFT.format(version=version, wheel=wheel.relative_to(ROOT), sdist=sdist.relative_to(ROOT)))


if __name__ == "__main__":
    main(sys.argv[1:])
