"""Random numbers as functions of counters, never of history.

A leaf that every room may import. Everything random in a run is drawn after seeding with
`counter_seed(purpose, seed, counters...)`: the order of an epoch from `(seed, epoch)`, one image's
crop from `(seed, epoch, index)`, a step's dropout from `(seed, step, rank)`. So nothing depends on
the number of threads, on the world size or on where a run was resumed, and no generator state has
to be saved.
"""

import functools
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HOST_GENERATORS = threading.Lock()


def counter_seed(purpose: str, *counters: int) -> int:
    """A seed in [0, 2**63) that is a pure function of its arguments.

    Args:
        purpose: What is drawn; keeps streams with equal counters apart.
        *counters: For instance seed, epoch and index.
    """
    text = ":".join([purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(indices: np.ndarray, count: int, purpose: str, *counters: int) -> np.ndarray:
    """Numbers in [0, 1), a function of (purpose, counters, index), for many indices at once.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), one stream for each index.

    Args:
        indices: Integers (N,).
        count: Numbers for each of them.
        purpose: As for `counter_seed`.
        *counters: As for `counter_seed`.

    Returns:
        float64 (N, count).
    """
    base = np.uint64(counter_seed(purpose, *counters))
    with np.errstate(over="ignore"):
        streams = _mixed(base + _GOLDEN * (np.asarray(indices).astype(np.uint64) + np.uint64(1)))
        steps = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        bits = _mixed(streams[:, None] + steps)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@contextmanager
def host_draws(purpose: str, *counters: int) -> Iterator[None]:
    """Seed the global generators of `random` and numpy, and keep other threads from them.

    For libraries that know no others. torch's generator is left alone: it belongs to the network.
    """
    value = counter_seed(purpose, *counters)
    with _HOST_GENERATORS:
        random.seed(value)
        np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002 - the libraries we call use the global one
        yield


def seed_devices(purpose: str, *counters: int) -> None:
    """Seed torch on the CPU and on this process's accelerator (initialisation, dropout)."""
    value = counter_seed(purpose, *counters)
    for seed in _seeders():
        seed(value)


@functools.cache
def _seeders() -> tuple[Callable[[int], object], ...]:
    """Functions that seed torch's generators here.

    `torch.manual_seed` takes a stack trace for each kind of device that has not been used, at every
    call; in a training step that shows.
    """
    known = {"cuda": torch.cuda.manual_seed, "mps": torch.mps.manual_seed}
    if not torch.accelerator.is_available():
        return (torch.default_generator.manual_seed,)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type not in known:
        return (torch.manual_seed,)
    return torch.default_generator.manual_seed, known[accelerator.type]


def generator(purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator of its own, seeded by `counter_seed`."""
    return torch.Generator().manual_seed(counter_seed(purpose, *counters))
