"""Random draws as a function of (seed, iteration, stream name).

Every draw of a run (real batches, augmentation, network parameters, networks of the pool, ...) comes from a generator
created for that purpose and iteration. A resumed run therefore needs no generator state, an evaluation in between does
not affect a distillation, and two methods with the same seed see the same real batches, networks and augmentations, so
their comparison is paired.
"""

import hashlib

import torch

__all__ = ["stream", "stream_seed"]


def stream_seed(seed: int, iteration: int, name: str) -> int:
    """A 63-bit seed from the run's seed, an iteration and a stream's name.

    It is a BLAKE2b hash rather than arithmetic, so that neighbouring seeds and iterations are unrelated.
    """
    digest = hashlib.blake2b(f"{seed}/{iteration}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(seed: int, iteration: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator for one purpose at one iteration.

    Args:
        seed: the run's seed.
        iteration: the iteration (or epoch, or index of a network) that the draw belongs to; 0 for draws made once.
        name: what is drawn, such as ``"real batch"``; each purpose has its own name.
        device: device of the generator; a GPU draws different numbers than a CPU.

    Returns:
        A generator on `device`; the global generators are not used.

    Example:
        >>> first, again = (torch.randperm(5, generator=stream(0, 7, "real batch")) for _ in range(2))
        >>> bool((first == again).all())
        True
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, iteration, name))
    return generator
