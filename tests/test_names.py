"""Names as people write them: one spelling is kept, whatever was given, in the library and on the command line."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iidlib import cli
from iidlib.config import EvalProtocol, RunConfig, from_yaml, override, preset, resolved, to_yaml
from iidlib.data import Dataset, RealSet, check, load_dataset, shapes
from iidlib.data.registry import SOURCES
from iidlib.distillation import distill
from iidlib.errors import InputError
from iidlib.evaluation import evaluate
from iidlib.experiments import result_rows
from iidlib.names import DATASET_NAMES, NETWORK_NAMES, dataset_name, network_name
from iidlib.networks import NETWORKS, build_network

DATASETS = {
    "CIFAR10": "cifar10", "cifar-10": "cifar10", "CIFAR_100": "cifar100", " Cifar 100 ": "cifar100",
    "Tiny-ImageNet": "tinyimagenet", "tiny-imagenet-200": "tinyimagenet", "TinyImageNet": "tinyimagenet",
    "SVHN": "svhn", "MNIST": "mnist", "Fashion-MNIST": "fashionmnist", "FashionMNIST": "fashionmnist",
    "fashion_mnist": "fashionmnist", "FMNIST": "fashionmnist", "CIFAR10-Mini": "cifar10-mini",
    "cifar_10_mini": "cifar10-mini", "Shapes": "shapes", "validation:CIFAR-10": "validation:cifar10",
    "Validation:svhn": "validation:svhn", "FOLDER:My-Images?size=64": "folder:My-Images?size=64",
    "validation:Folder:A_b": "validation:folder:A_b",
}  # fmt: skip

NETWORKS_MEANT = {
    "ConvNet": "convnet3", "ConvNet3": "convnet3", "ConvNetD4": "convnet4", "ConvNetBN": "convnet3-bn",
    "convnet3_bn": "convnet3-bn", "ResNet18": "resnet18", "ResNet-18": "resnet18", "ResNet18BN": "resnet18-bn",
    "VGG-11": "vgg11", "VGG11_BN": "vgg11-bn", "AlexNet": "alexnet", "LeNet": "lenet", "MLP": "mlp",
}  # fmt: skip


def test_the_lists_are_those_of_the_rooms_that_use_them() -> None:
    assert (*SOURCES, "shapes") == DATASET_NAMES and NETWORKS == NETWORK_NAMES


@pytest.mark.parametrize("given", DATASETS)
def test_a_dataset_is_known_however_it_is_written(given: str) -> None:
    assert dataset_name(given) == DATASETS[given] == dataset_name(DATASETS[given])
    assert preset("dm", given, 1, "ci").dataset == DATASETS[given]


@pytest.mark.parametrize("given", NETWORKS_MEANT)
def test_a_network_is_known_however_it_is_written(given: str) -> None:
    assert network_name(given) == NETWORKS_MEANT[given]
    other = "convnet1" if NETWORKS_MEANT[given] == "mlp" else "mlp"
    config = preset("dm", scale="ci", changes={"match.network": given, "eval.networks": f"{given}, {other}"})
    assert config.match.network == NETWORKS_MEANT[given] and config.eval.networks == (NETWORKS_MEANT[given], other)
    assert build_network(given).name == NETWORKS_MEANT[given]


@pytest.mark.parametrize(("meant", "names"), [(dataset_name, DATASET_NAMES), (network_name, NETWORK_NAMES)])
def test_every_name_stands_for_itself_without_separators_too(
    meant: Callable[[str], str], names: tuple[str, ...]
) -> None:
    for name in names:
        for given in (name, name.upper(), name.replace("-", "_"), name.replace("-", ""), "_".join(name)):
            assert meant(given) == name, "another name is taken for it, or hides it"


@pytest.mark.parametrize("unknown", ["cifar", "imagenet", "mnist2", "", "tiny/imagenet", "my_set"])
def test_other_names_stay_as_they_are_and_are_refused_with_a_suggestion(unknown: str) -> None:
    assert dataset_name(unknown) == unknown == network_name(unknown)
    for function in (load_dataset, check):
        with pytest.raises(InputError, match=rf"unknown dataset '{unknown}'; (did you mean|choose one of)"):
            function(unknown)
    with pytest.raises(ValueError, match=f"unknown network '{unknown}'; choose one of"):
        build_network(unknown)


def test_the_one_spelling_is_recorded_and_settings_are_equal(tmp_path: Path) -> None:
    written, usual = (
        preset("iid-idm", name, 1, "paper", {"pool.network": network})
        for name, network in (("Tiny-ImageNet", "ConvNet"), ("tinyimagenet", "convnet3"))
    )
    assert written == usual and written.match.network == "convnet4", "the tables of recipes know it too"
    assert from_yaml(to_yaml(usual).replace("tinyimagenet", "TINY_IMAGENET")) == usual
    assert override(usual, {"dataset": "CIFAR-10"}).dataset == "cifar10"
    assert RunConfig(dataset="SVHN").dataset == "svhn"
    assert EvalProtocol(networks=("ConvNet", "VGG-11")).networks == ("convnet3", "vgg11")
    rows = {setting.key: setting.value for setting in resolved("idm", "CIFAR-10", 1, "paper")}
    assert rows["dataset"] == "cifar10" and rows["match.batch_real"] == 5000
    data = load_dataset("Shapes")
    assert data.spec.name == data.name == "shapes"


def test_a_set_of_ones_own_may_have_a_written_name() -> None:
    drawn = shapes(2, 8, image_size=16)
    spec = dataclasses.replace(drawn.spec, name="MNIST")
    train, test = (RealSet(part.images, part.labels, spec) for part in (drawn.train, drawn.test))
    own = Dataset("MNIST", train, test, spec)
    config = preset("dm", own.name, 1, "ci", {"iterations": 1, "eval.num_eval": 1, "eval.epochs": 1})
    result = distill(config, own)
    rows = result_rows(evaluate(result.synthetic, own, protocol=config.eval, seed=0), config)
    assert rows["dataset"].tolist() == ["mnist"] and torch.isfinite(result.synthetic.images).all()


# --- a path in place of a name


def test_a_bare_path_offers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "images").mkdir(parents=True)
    (tmp_path / "sets.zip").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("my/images", "./my", "~/my", str(tmp_path / "my"), "my/images?size=64"):
        with pytest.raises(InputError, match=f"to use the folder of that name, write {re.escape(f'folder:{path}')}$"):
            load_dataset(path)
    with pytest.raises(InputError, match=r"unknown dataset 'sets.zip', which is a file; unpack it .* write folder:"):
        load_dataset("sets.zip")
    (tmp_path / "sets" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"to use the cifar10 in it, write cifar10 and --data-root sets/cifar-10-batches-py$"
    ):
        load_dataset("sets/cifar-10-batches-py")
    (tmp_path / "Shapes").mkdir()  # a known name stays what it is
    assert load_dataset("Shapes").name == "shapes"


# --- the command line


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_commands_know_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "config", "dm", "--dataset", "CIFAR-10", "--set", "match.network=ConvNet", "--json")
    listed = {row["key"]: row["value"] for row in json.loads(out)}
    assert status == 0 and listed["dataset"] == "cifar10" and listed["match.network"] == "convnet3"
    command = "distill dm --dataset Shapes --ipc 1 --scale ci --iterations 1 --no-baseline"
    quick = ["--set", "eval.networks=ConvNet,MLP", "--set", "eval.num_eval=1", "--set", "eval.epochs=1"]
    status, out, err = run(capsys, *command.split(), *quick, "--results", "rows.csv")
    assert status == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "dm-shapes-ipc1-ci-seed0" and "dm on shapes" in out
    assert (
        "dataset: shapes" in (folder / "config.yaml").read_text() and "convnet3" in (tmp_path / "rows.csv").read_text()
    )
    networks = ["--networks", "AlexNet", "--num-eval", "1", "--epochs", "1", "--no-baseline", "--out", "scores.json"]
    status, out, err = run(capsys, "evaluate", folder, "--dataset", "SHAPES", *networks)
    assert status == 0 and "alexnet" in out, err
    status, out, _ = run(capsys, "data", "check", "CIFAR10-mini")
    assert status == 0 and out.endswith("cifar10-mini: 21 files, all verified\n")
    for words in (["evaluate", "random", "--dataset", "runs"], ["config", "dm", "--dataset", "runs"]):
        status, _, err = run(capsys, *words)
        assert status == 2 and len(err.splitlines()) == 1
        assert ("folder:runs" if words[0] == "evaluate" else "folder:PATH") in err
