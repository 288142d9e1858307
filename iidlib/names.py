"""Canonical names of datasets and networks: ``CIFAR-10`` is cifar10, ``ConvNet`` is convnet3.

Every function that takes such a name normalises it here first, so that settings, runs and rows of results use one
spelling. Unknown names are returned unchanged; looking them up raises an error with a suggestion.
"""

import os
import re
from collections.abc import Iterable

__all__ = [
    "DATASET_NAMES",
    "NETWORK_NAMES",
    "dataset_name",
    "network_name",
    "network_names",
    "on_one_line",
    "same_dataset",
]

DATASET_NAMES = (
    "cifar10-mini", "cifar10", "cifar100", "svhn", "mnist", "fashionmnist", "tinyimagenet", "shapes",
)  # fmt: skip
"""Datasets of the registry (`iidlib.data`), repeated here because importing it imports torch."""

NETWORK_NAMES = (
    "convnet1", "convnet2", "convnet3", "convnet4", "alexnet", "vgg11", "resnet18", "mlp", "lenet",
    "convnet3-bn", "convnet4-bn", "alexnet-bn", "vgg11-bn", "resnet18-bn",
)  # fmt: skip
"""Networks that `iidlib.networks` builds."""

# Aliases that ignoring case and separators does not resolve: TinyImageNet's folder, common abbreviations, and the
# names in DatasetCondensation's code, whose ConvNet has three blocks.
_OTHER_DATASETS = {"tinyimagenet200": "tinyimagenet", "fmnist": "fashionmnist", "cifarmini": "cifar10-mini"}
_OTHER_NETWORKS = {"convnet": "convnet3", "convnetbn": "convnet3-bn"} | {
    f"convnetd{n}": f"convnet{n}" for n in (1, 2, 3, 4)
}

_PREFIXES = ("validation:", "folder:")


def _without_separators(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _canonical(name: str, names: Iterable[str], others: dict[str, str]) -> str:
    """The canonical name, or the given one if it is unknown."""
    known = {_without_separators(each): each for each in names} | others
    return known.get(_without_separators(name), name)


def dataset_name(name: str) -> str:
    """The registry's name of a dataset; the path of ``folder:PATH`` is left unchanged.

    >>> dataset_name("CIFAR-10"), dataset_name("Tiny_ImageNet"), dataset_name("Validation:CIFAR100")
    ('cifar10', 'tinyimagenet', 'validation:cifar100')
    >>> dataset_name("my-own-set")
    'my-own-set'
    """
    if not isinstance(name, str):  # the caller rejects other types
        return name
    for prefix in _PREFIXES:
        if name[: len(prefix)].casefold() == prefix:
            rest = name[len(prefix) :]
            return prefix + (rest if prefix == "folder:" else dataset_name(rest))
    return _canonical(name, DATASET_NAMES, _OTHER_DATASETS)


def same_dataset(one: str, other: str) -> bool:
    """Whether two names denote the same dataset; folder names may differ in spelling.

    >>> same_dataset("folder:./pets?size=8&test=0.3", "folder:pets/?test=0.3&size=8"), same_dataset("mnist", "svhn")
    (True, False)
    """
    return _normalised(one) == _normalised(other)


def _normalised(name: str) -> str:
    prefix, found, rest = dataset_name(name).partition("folder:")
    if not found or prefix not in ("", "validation:"):
        return dataset_name(name)
    path, _, query = rest.partition("?")
    path = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111, pathlib keeps ".." and requires a home
    return f"{prefix}folder:{path}?{'&'.join(sorted(query.split('&')))}"


def on_one_line(text: str) -> str:
    r"""Text with line breaks and other unprintable characters escaped as in Python.

    >>> print(on_one_line("a\nclass"))
    a\nclass
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def network_name(name: str) -> str:
    """The canonical name of a network.

    >>> [network_name(name) for name in ("ConvNet", "ResNet18", "VGG-11", "convnet3_bn", "AlexNetBN")]
    ['convnet3', 'resnet18', 'vgg11', 'convnet3-bn', 'alexnet-bn']
    """
    return _canonical(name, NETWORK_NAMES, _OTHER_NETWORKS) if isinstance(name, str) else name


def network_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The canonical names of several networks."""
    return tuple(map(network_name, names)) if isinstance(names, list | tuple) else names
