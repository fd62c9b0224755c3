"""Random numbers as functions of counters, never of history.

A leaf that every room may import. Everything random in a run is drawn after seeding with
`counter_seed(purpose, seed, counters...)`: the order of an epoch from `(seed, epoch)`, one image's
augmentation from `(seed, epoch, index)`, a step's dropout from `(seed, step, rank)`. So nothing
depends on the number of workers, on the world size or on where a run was resumed, and no generator
state has to be saved.
"""

import hashlib
import random

import numpy as np
import torch


def counter_seed(purpose: str, *counters: int) -> int:
    """A seed in [0, 2**63) that is a pure function of its arguments.

    Args:
        purpose: What is drawn; keeps streams with equal counters apart.
        *counters: For instance seed, epoch and index.
    """
    text = ":".join([purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_host(purpose: str, *counters: int) -> None:
    """Seed the host generators (torch CPU, `random`, numpy) that image transforms draw from.

    Leaves accelerators alone: this runs once per image, and `torch.manual_seed` is fifty times as
    slow as the CPU generator's own method.
    """
    value = counter_seed(purpose, *counters)
    torch.default_generator.manual_seed(value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002 - the libraries we call use the global one


def seed_devices(purpose: str, *counters: int) -> None:
    """Seed torch on the CPU and on every accelerator (initialisation, dropout)."""
    torch.manual_seed(counter_seed(purpose, *counters))


def generator(purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator of its own, seeded by `counter_seed`."""
    return torch.Generator().manual_seed(counter_seed(purpose, *counters))
