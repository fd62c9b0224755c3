"""Batches: which images, in which order, transformed with which random draws.

The interface that the training loop knows: `len(loader)` batches, and `loader.epoch(epoch,
first_batch)` yields (images uint8 (N, H, W, 3), labels int64 (N,)) on the host, pinned if asked.

Global batch b of epoch e is a function of (seed, e, b): its order comes from (seed, epoch), each
image's augmentation from (seed, epoch, index). Ranks take contiguous slices of it, so the slices
of all ranks, one after the other, are the same pixels for any world size, and for any number of
workers. An image that can't be read stops the run or, if asked, gives its place to another one,
chosen by (seed, epoch, index) as well.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenext.data.sources import Images, SyntheticImages
from mobilenext.data.transforms import Transform
from mobilenext.errors import InputError
from mobilenext.seeding import counter_seed, generator, seed_host

Batch = tuple[Tensor, Tensor]
Key = tuple[int, int]

MOST_SUBSTITUTES = 16


class Loader(Protocol):
    """What the loop iterates over."""

    unreadable: dict[int, str]
    """Images that this process could not read so far: by index, what is wrong with them."""
    missed: int
    """How many images the present epoch has had to do without, so far."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of the batches of an epoch, from `first_batch` on."""
        ...

    def close(self) -> None:
        """End the helpers of the loader, if it has any."""
        ...


def train_loader(
    images: Images,
    transform: Transform,
    *,
    seed: int,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    on_bad_image: str = "error",
    max_bad_share: float = 1.0,
) -> Loader:
    """Shuffled, augmented batches; the incomplete last batch of an epoch is left out.

    Args:
        images: The training split.
        transform: From an RGB image to uint8 pixels; draws from the host's global generators.
        seed: The run's seed.
        global_batch_size: Images of one optimiser step over all ranks.
        rank: This process.
        world_size: Number of processes; has to divide the batch.
        workers: Loader processes; 0 loads in this process.
        pin_memory: Page-locked batches, for copies to a CUDA device that do not wait.
        on_bad_image: What to do with an image that can't be read: `error` raises, `skip` puts a
            readable one in its place, a function of (seed, epoch, index) and the files.
        max_bad_share: With `skip`: share of the split that may be unreadable.

    Raises:
        InputError: The ranks can't share the batch, or the split is smaller than one batch.
    """
    if global_batch_size < 1 or global_batch_size % world_size:
        lower = global_batch_size // world_size * world_size
        choices = [str(size) for size in (lower, lower + world_size) if size > 0]
        raise InputError(
            f"data.global_batch_size={global_batch_size} can't be shared evenly by {world_size} "
            f"process{'es' if world_size > 1 else ''}: use a positive multiple of {world_size}, "
            f"for instance {' or '.join(choices)}"
        )
    if len(images) < global_batch_size:
        raise InputError(
            f"data.global_batch_size={global_batch_size} is more than the {len(images)} training "
            "images: lower it"
        )
    if isinstance(images, SyntheticImages):
        return _ReadyBatch(images, transform, global_batch_size, rank, world_size, pin_memory)
    keys = _TrainKeys(len(images), seed, global_batch_size, rank, world_size)
    policy = "substitute" if on_bad_image == "skip" else "error"
    keyed = _KeyedImages(images, transform, seed, policy)
    return _ImageLoader(keyed, keys, workers, pin_memory, max_bad_share)


def eval_loader(
    images: Images,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    on_bad_image: str = "error",
    max_bad_share: float = 1.0,
) -> Loader:
    """Every image once: rank r takes images r, r + world_size, ... without padding.

    Ranks may have different numbers of batches, or none, so nothing inside a loop over them may
    wait for other ranks.

    Args:
        images: The split to evaluate on.
        transform: From an RGB image to uint8 pixels, without random draws.
        batch_size: Images of one forward pass of one rank.
        rank: This process.
        world_size: Number of processes.
        workers: Loader processes; 0 loads in this process.
        pin_memory: As for `train_loader`.
        on_bad_image: What to do with an image that can't be read: `error` raises, `skip` leaves it
            out; then batches may be smaller, and `unreadable` tells of it.
        max_bad_share: As for `train_loader`.
    """
    if batch_size < 1:
        raise InputError(f"data.eval_batch_size: expected at least 1, got {batch_size}")
    keys = _EvalKeys(range(rank, len(images), world_size), batch_size)
    policy = "leave out" if on_bad_image == "skip" else "error"
    keyed = _KeyedImages(images, transform, 0, policy)
    return _ImageLoader(keyed, keys, workers, pin_memory, max_bad_share)


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images: a permutation of range(length), from (seed, epoch)."""
    return torch.randperm(length, generator=generator("order", seed, epoch))


class _TrainKeys:
    """Batch sampler: this rank's (epoch, index) keys, batch by batch, of the epoch last set."""

    def __init__(
        self, length: int, seed: int, global_batch_size: int, rank: int, world_size: int
    ) -> None:
        self.length, self.seed, self.global_batch_size = length, seed, global_batch_size
        self.share = global_batch_size // world_size
        self.offset = rank * self.share
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return self.length // self.global_batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = epoch_order(self.length, self.seed, epoch)
        for batch in range(self.first_batch, len(self)):
            start = batch * self.global_batch_size + self.offset
            yield [(epoch, index) for index in order[start : start + self.share].tolist()]


class _EvalKeys:
    """Batch sampler: consecutive images of a shard."""

    def __init__(self, shard: range, batch_size: int) -> None:
        self.shard, self.batch_size = shard, batch_size
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return math.ceil(len(self.shard) / self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in range(self.first_batch, len(self)):
            start = batch * self.batch_size
            yield [(0, index) for index in self.shard[start : start + self.batch_size]]


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor | None
    label: int
    unreadable: dict[int, str]


class _Collated(NamedTuple):
    batch: Batch | None
    unreadable: dict[int, str]


class _KeyedImages(Dataset[_Sample | InputError]):
    """(epoch, index) -> sample, with the host's generators seeded by the key."""

    def __init__(self, images: Images, transform: Transform, seed: int, policy: str) -> None:
        self.images, self.transform, self.seed, self.policy = images, transform, seed, policy

    def __getitem__(self, key: Key) -> _Sample | InputError:
        epoch, index = key
        unreadable: dict[int, str] = {}
        for attempt in range(1 + MOST_SUBSTITUTES):
            chosen = index
            if attempt:
                draw = counter_seed("substitute", self.seed, epoch, index, attempt)
                chosen = draw % len(self.images)
            try:
                image, label = self.images[chosen]
            except InputError as error:
                if self.policy == "error":
                    return error  # raised in the main process, where no traceback wraps it
                unreadable[chosen] = str(error)
                if self.policy == "leave out":
                    return _Sample(None, 0, unreadable)
            else:
                seed_host("sample", self.seed, epoch, index)
                return _Sample(self.transform(image), label, unreadable)
        return InputError(
            f"{len(unreadable)} images drawn one after the other could not be read, for instance: "
            f"{next(iter(unreadable.values()))}"
        )


def _collate(samples: list[_Sample | InputError]) -> _Collated | InputError:
    pixels, labels, unreadable = [], [], {}
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        unreadable |= sample.unreadable
        if sample.pixels is not None:
            pixels.append(sample.pixels)
            labels.append(sample.label)
    batch = (torch.stack(pixels), torch.tensor(labels)) if pixels else None
    return _Collated(batch, unreadable)


class _ImageLoader:
    """A torch DataLoader whose workers live as long as the run."""

    def __init__(
        self,
        images: _KeyedImages,
        keys: _TrainKeys | _EvalKeys,
        workers: int,
        pin_memory: bool,
        max_bad_share: float,
    ) -> None:
        self.keys = keys
        self.unreadable: dict[int, str] = {}
        self.missed = 0
        self.length, self.max_bad_share = len(images.images), max_bad_share
        self.batches = DataLoader(
            images,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_outlive_signals,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        self.keys.epoch, self.keys.first_batch = epoch, first_batch
        self.missed = 0
        for collated in self.batches:
            if isinstance(collated, InputError):
                raise collated
            if collated.unreadable:
                self.missed += len(collated.unreadable)
                self.unreadable |= collated.unreadable
                check_bad_share(self.unreadable, self.length, self.max_bad_share)
            if collated.batch is not None:
                yield collated.batch

    def close(self) -> None:
        # There is no public way; otherwise workers end when the iterator is collected.
        running = getattr(self.batches, "_iterator", None)
        if running is not None:
            running._shutdown_workers()


def check_bad_share(unreadable: dict[int, str], length: int, most: float) -> None:
    """Raise `InputError` if more than a share `most` of `length` images are unreadable."""
    if len(unreadable) > most * length:
        some = "; ".join(list(unreadable.values())[:3])
        raise InputError(
            f"data.max_bad_share={most:g}: {len(unreadable)} of {length:,} images could not be "
            f"read, which is more: {some}. Mend the files, or raise data.max_bad_share"
        )


def _outlive_signals(_: int) -> None:
    """Let a worker end when its process does, which may need batches for some steps more.

    A scheduler or a Ctrl-C signals all processes, also these. SIGTERM is obeyed if it comes from
    the worker's own process, which ends it in that way if nobody has closed the loader.
    """
    signal.set_wakeup_fd(-1)  # inherited: would tell the parent of a signal to this process
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process()
        assert parent is not None
        threading.Thread(target=_obey_the_parent, args=(parent.pid,), daemon=True).start()


def _obey_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _ReadyBatch:
    """The same batch again and again, at no cost: what is left to measure is the loop."""

    def __init__(
        self,
        images: SyntheticImages,
        transform: Transform,
        global_batch_size: int,
        rank: int,
        world_size: int,
        pin_memory: bool,
    ) -> None:
        self.batches = len(images) // global_batch_size
        share = global_batch_size // world_size
        keyed = _KeyedImages(images, transform, 0, "error")
        collated = _collate([keyed[0, rank * share + i] for i in range(share)])
        assert isinstance(collated, _Collated)
        assert collated.batch is not None
        pixels, labels = collated.batch
        self.batch = (pixels.pin_memory(), labels.pin_memory()) if pin_memory else (pixels, labels)
        self.unreadable: dict[int, str] = {}
        self.missed = 0

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        for _ in range(first_batch, self.batches):
            yield self.batch

    def close(self) -> None:
        pass
