"""iidlib.training.together: how many networks train together, and in which form."""

import pytest
import torch

from iidlib.config import ComputeConfig
from iidlib.data import DatasetSpec
from iidlib.errors import InputError
from iidlib.networks import NETWORKS
from iidlib.training import HowTrained, networks_together, together
from iidlib.training.together import default_form
from tests.factories import tiny_dataset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


def number(
    monkeypatch, total: float, name: str = "resnet18", *, spec: DatasetSpec | None = None, **compute: object
) -> int:
    """Number of networks on a device with so many GiB."""
    monkeypatch.setattr(together, "total_bytes", lambda device: int(total * GIB))
    spec = spec or tiny_dataset(size=32).train.spec
    settings = ComputeConfig(**compute)
    return networks_together(name, spec, width=128, batch=256, device=CUDA, compute=settings)


def test_a_large_device_trains_the_default_number_of_every_architecture(monkeypatch):
    names = [name for name in NETWORKS if name != "convnet4-bn"]
    assert {name: number(monkeypatch, 80, name) for name in names} == dict.fromkeys(names, 20)


def test_in_turn_needs_the_activations_of_one_network_and_at_once_those_of_all(monkeypatch):
    """ResNet18 keeps 4.5 MiB per image of 32 pixels: 1.13 GiB per network, and 0.5 GiB of weights and copies."""
    in_turn = [number(monkeypatch, total) for total in (2, 8, 16, 24, 40)]
    at_once = [number(monkeypatch, total, ensemble="at_once") for total in (2, 8, 16, 24, 40, 80)]
    assert in_turn == [1, 5, 13, 20, 20] and at_once == [1, 2, 4, 7, 12, 20]
    larger = number(monkeypatch, 40, spec=tiny_dataset(size=64).train.spec, ensemble="at_once")
    assert larger < at_once[4]


def test_a_given_number_is_kept_and_other_devices_have_one_of_their_own(monkeypatch):
    assert number(monkeypatch, 2, together=7) == 7
    monkeypatch.undo()
    spec, compute = tiny_dataset(size=32).train.spec, ComputeConfig()
    assert networks_together("resnet18", spec, width=128, batch=256, device=CPU, compute=compute) == 1


def test_a_network_that_does_not_exist_is_an_error_of_the_input(monkeypatch):
    with pytest.raises(InputError, match="unknown network 'resnet19'"):
        number(monkeypatch, 80, "resnet19")


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_convolutions_train_in_turn_by_default(name, device):
    expected = "at_once" if name == "mlp" and device == CUDA else "in_turn"
    assert default_form(name, device) == expected


def test_how_networks_were_trained_is_said_in_a_word_or_two():
    assert [str(HowTrained("at_once", recorded)) for recorded in (False, True)] == ["at_once", "at_once, recorded"]
