"""Names of datasets and networks as people write them: ``CIFAR-10`` is cifar10, ``ConvNet`` is convnet3.

Whatever takes such a name passes it through here first, so that settings, runs and rows of results hold the one name
that the library knows. Unknown names stay as they are: whoever looks them up says so, with a suggestion.
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
"""Datasets of the registry (`iidlib.data`), which cannot be asked without importing torch."""

NETWORK_NAMES = (
    "convnet1", "convnet2", "convnet3", "convnet4", "alexnet", "vgg11", "resnet18", "mlp", "lenet",
    "convnet3-bn", "convnet4-bn", "alexnet-bn", "vgg11-bn", "resnet18-bn",
)  # fmt: skip
"""Networks that `iidlib.networks` builds."""

# What cannot be found by leaving out capitals, dashes and underscores: TinyImageNet's folder and usual short forms;
# the names of DatasetCondensation's code, whose ConvNet has three blocks.
_OTHER_DATASETS = {"tinyimagenet200": "tinyimagenet", "fmnist": "fashionmnist", "cifarmini": "cifar10-mini"}
_OTHER_NETWORKS = {"convnet": "convnet3", "convnetbn": "convnet3-bn"} | {
    f"convnetd{n}": f"convnet{n}" for n in (1, 2, 3, 4)
}

_PREFIXES = ("validation:", "folder:")


def _without_separators(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _meant(name: str, names: Iterable[str], others: dict[str, str]) -> str:
    """The name that is meant, or what was given."""
    known = {_without_separators(each): each for each in names} | others
    return known.get(_without_separators(name), name)


def dataset_name(name: str) -> str:
    """The registry's name of a dataset; ``folder:PATH`` keeps its path as it is.

    >>> dataset_name("CIFAR-10"), dataset_name("Tiny_ImageNet"), dataset_name("Validation:CIFAR100")
    ('cifar10', 'tinyimagenet', 'validation:cifar100')
    >>> dataset_name("my-own-set")
    'my-own-set'
    """
    if not isinstance(name, str):  # of another type, which whoever takes the name refuses
        return name
    for prefix in _PREFIXES:
        if name[: len(prefix)].casefold() == prefix:
            rest = name[len(prefix) :]
            return prefix + (rest if prefix == "folder:" else dataset_name(rest))
    return _meant(name, DATASET_NAMES, _OTHER_DATASETS)


def same_dataset(one: str, other: str) -> bool:
    """Whether two names stand for one dataset; those of folders may be written in several ways.

    >>> same_dataset("folder:./pets?size=8&test=0.3", "folder:pets/?test=0.3&size=8"), same_dataset("mnist", "svhn")
    (True, False)
    """
    return _in_one_form(one) == _in_one_form(other)


def _in_one_form(name: str) -> str:
    prefix, found, rest = dataset_name(name).partition("folder:")
    if not found or prefix not in ("", "validation:"):
        return dataset_name(name)
    path, _, query = rest.partition("?")
    path = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111, pathlib keeps ".." and wants a home
    return f"{prefix}folder:{path}?{'&'.join(sorted(query.split('&')))}"


def on_one_line(text: str) -> str:
    r"""A text whose line breaks, and other characters that do not print, are written as in Python.

    >>> print(on_one_line("a\nclass"))
    a\nclass
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def network_name(name: str) -> str:
    """The library's name of a network.

    >>> [network_name(name) for name in ("ConvNet", "ResNet18", "VGG-11", "convnet3_bn", "AlexNetBN")]
    ['convnet3', 'resnet18', 'vgg11', 'convnet3-bn', 'alexnet-bn']
    """
    return _meant(name, NETWORK_NAMES, _OTHER_NETWORKS) if isinstance(name, str) else name


def network_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The library's names of several networks."""
    return tuple(map(network_name, names)) if isinstance(names, list | tuple) else names
