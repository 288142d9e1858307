"""What a GPU shares with the CPU: draws, augmentation, images. The modules' other tests are in files of their own.

Files with tests marked ``gpu`` import only what a rented machine has; `test_gpu_tests` shows that they do.
"""

import pytest
import torch

from iidlib.augment import OPERATIONS, apply, sample
from iidlib.data import load_dataset
from iidlib.rng import stream
from tests.factories import noise_images, seeded


@pytest.mark.gpu
def test_tests_of_a_gpu_compare_in_full_precision():
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
def test_a_stream_on_a_gpu_repeats():
    first, again = (torch.rand(4, generator=stream(0, 0, "x", "cuda"), device="cuda") for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.gpu
def test_augmentation_equals_the_cpus_without_waiting_and_whatever_the_matrix_precision():
    draws, group = sample("_".join(OPERATIONS), 20, seeded()), torch.arange(20).repeat(3)
    images = noise_images(60, dtype=torch.float32)
    on_device = images.cuda()
    torch.backends.cuda.matmul.allow_tf32 = True  # restored after every test of a GPU
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = apply(on_device, draws, group)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), apply(images, draws, group), rtol=0, atol=2e-5)


@pytest.mark.gpu
def test_a_set_on_the_gpu_draws_what_the_cpu_draws():
    here, there = load_dataset("cifar10-mini").train, load_dataset("cifar10-mini", device="cuda").train
    assert there.device.type == "cuda" and there.fingerprint == here.fingerprint
    index = here.sample(8, seeded()).index
    assert there.sample(8, seeded()).index.equal(index)
    assert torch.allclose(there.images_of(index).cpu(), here.images_of(index), atol=1e-6)
    assert there.split(0.5, seeded())[0].fingerprint == here.split(0.5, seeded())[0].fingerprint
