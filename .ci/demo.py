"""Executes the first chapter into a folder and says little: a line per stage, then the table and the report.

    .venv/bin/python .ci/demo.py runs/demo

All that papermill and nbconvert print goes to ``log.txt`` in that folder; if a command fails, the end of the
log is shown.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "book" / "01_quickstart.ipynb"
FINISHED = "synthetic.safetensors"


def executed(command: list[str], log: Path, folder: Path) -> Iterator[str]:
    """Runs a command whose output goes to a log, and yields the name of each run below `folder` when it is finished.

    Raises:
        SystemExit: if the command fails, with the end of the log.
    """
    seen: set[Path] = set()
    with log.open("a") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while True:
            ended = running.poll() is not None
            new = sorted(set(folder.glob(f"*/{FINISHED}")) - seen, key=lambda path: path.stat().st_mtime)
            seen.update(new)
            yield from (path.parent.name for path in new)
            if ended:
                break
            time.sleep(0.5)
    if running.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{end}\nerror: the demo failed; all of its output is in {log}")


def main(folder: Path) -> None:
    """Runs the demo; `folder` exists and holds no earlier demo."""
    folder = folder.resolve()
    log, notebook = folder / "log.txt", folder / CHAPTER.name
    report = notebook.with_suffix(".html")
    module = [sys.executable, "-m"]
    begin = time.monotonic()

    def stage(text: str) -> None:
        print(f"{time.monotonic() - begin:5.0f} s  {text}", flush=True)

    stage(f"running {CHAPTER.relative_to(ROOT)} on the embedded images, a few minutes on two cores (log: {log})")
    parameters = ["-p", "scale", "tour", "-p", "out", str(folder)]
    command = [
        *module,
        "papermill",
        str(CHAPTER),
        str(notebook),
        "--kernel",
        "python3",
        "--no-progress-bar",
        *parameters,
    ]
    for run in executed(command, log, folder):
        stage(f"distilled {run}")
    stage("evaluated all sets and random real images")
    command = [*module, "nbconvert", "--log-level", "WARN", "--to", "html", "--template", "classic", str(notebook)]
    for _ in executed(command, log, folder / "none"):
        pass
    stage("wrote the report")
    print(f"\n{(folder / 'summary.txt').read_text()}\nReport: {report}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
