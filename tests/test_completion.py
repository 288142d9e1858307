"""iidlib.cli.completion: the shell completes commands, options and names, quickly and without the library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iidlib.cli import completion
from iidlib.config import SCALES
from iidlib.config.recipes import BASELINES, BASES
from iidlib.experiments import EXPERIMENTS
from iidlib.experiments.cells import ORDERS


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell receives for a line with the cursor at its end, by the protocol of Typer's scripts."""
    words = line.split(" ")
    given = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print({'torch', 'pandas', 'numpy'} & set(sys.modules) or '', file=sys.stderr))\n"
        "from iidlib.cli import main; main()"
    )
    environment = os.environ | given | {"_IID_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "\n", done.stderr
    return done.stdout.split("\n") if shell == "zsh" else done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("iid dis", ["distill"]),
        ("iid data ", ["list", "fetch", "check"]),
        ("iid distill ", list(BASES)),
        ("iid distill iid-", ["iid-dm", "iid-idm", "iid-plus"]),
        ("iid distill dm --scale ", list(SCALES)),
        ("iid distill dm --dataset cifar100", ["cifar100"]),
        ("iid distill dm --set checkpoint.", ["checkpoint.every=", "checkpoint.seconds=", "checkpoint.queue="]),
        ("iid distill dm --set it", []),
        ("iid distill dm --qu", ["--quiet"]),
        ("iid evaluate ", list(BASELINES)),
        ("iid evaluate run --networks convnet3,al", ["convnet3,alexnet", "convnet3,alexnet-bn"]),
        ("iid evaluate run --networks alexnet,alexnet", ["alexnet,alexnet-bn"]),
        ("iid evaluate run --protocol ", ["dm", "idc"]),
        ("iid experts --network vgg", ["vgg11", "vgg11-bn"]),
        ("iid continual k", ["k-center"]),
        ("iid reproduce a", ["ablation", "architectures"]),
        ("iid data fetch sv", ["svhn"]),
        ("iid distill dm --device c", ["cpu", "cuda"]),
        ("iid distill nothing", []),
    ],
)  # fmt: skip
def test_bash_completes(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


def test_zsh_and_fish_complete() -> None:
    assert completed("iid distill iid-", "fish") == ["iid-dm", "iid-idm", "iid-plus"]
    shown = completed("iid distill iid-", "zsh")
    assert shown[0].startswith("_arguments") and [line for line in shown if "iid-idm" in line]
    assert completed("iid distill nothing", "zsh")[0] == "_files"


def test_experiments_known_to_the_shell_are_those_of_the_library() -> None:
    assert completion.EXPERIMENTS == (*EXPERIMENTS, *ORDERS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown_and_installed(shell: str, tmp_path: Path) -> None:
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "iidlib.cli"]
    for option in ("--show-completion", "--install-completion"):
        done = subprocess.run([*command, option, shell], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        text = done.stdout
        if option == "--install-completion":
            text = "".join(path.read_text() for path in tmp_path.rglob("*iid*") if path.is_file())
        assert "_IID_COMPLETE" in text and f"complete_{shell}" in text
