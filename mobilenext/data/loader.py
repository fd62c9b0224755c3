"""Batches: which images, in which order, transformed with which random draws.

The interface that the training loop knows: `len(loader)` batches, and `loader.epoch(epoch,
first_batch)` yields (images uint8 (N, H, W, 3), labels int64 (N,)) on the host, pinned if asked.

Global batch b of epoch e is a function of (seed, e, b): its order comes from (seed, epoch), each
image's augmentation from (seed, epoch, index). Ranks take contiguous slices of it, so the slices
of all ranks, one after the other, are the same pixels for any world size, and for any number of
workers.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenext.data.sources import Images, SyntheticImages
from mobilenext.data.transforms import Transform
from mobilenext.errors import InputError
from mobilenext.seeding import generator, seed_host

Batch = tuple[Tensor, Tensor]
Key = tuple[int, int]
Sample = tuple[Tensor, int] | InputError


class Loader(Protocol):
    """What the loop iterates over."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of the batches of an epoch, from `first_batch` on."""
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
    return _ImageLoader(_KeyedImages(images, transform, seed), keys, workers, pin_memory)


def eval_loader(
    images: Images,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
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
    """
    if batch_size < 1:
        raise InputError(f"data.eval_batch_size: expected at least 1, got {batch_size}")
    keys = _EvalKeys(range(rank, len(images), world_size), batch_size)
    return _ImageLoader(_KeyedImages(images, transform, 0), keys, workers, pin_memory)


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


class _KeyedImages(Dataset[Sample]):
    """(epoch, index) -> (pixels, label), with the host's generators seeded by the key."""

    def __init__(self, images: Images, transform: Transform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        try:
            image, label = self.images[index]
        except InputError as error:
            return error  # raised in the main process, where it is not wrapped in a traceback
        seed_host("sample", self.seed, epoch, index)
        return self.transform(image), label


def _collate(samples: list[Sample]) -> Batch | InputError:
    good = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    pixels, labels = zip(*good, strict=True)
    return torch.stack(pixels), torch.tensor(labels)


class _ImageLoader:
    """A torch DataLoader whose workers live as long as the run."""

    def __init__(
        self,
        images: _KeyedImages,
        keys: _TrainKeys | _EvalKeys,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.keys = keys
        self.batches = DataLoader(
            images,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        self.keys.epoch, self.keys.first_batch = epoch, first_batch
        for batch in self.batches:
            if isinstance(batch, InputError):
                raise batch
            yield batch


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
        keyed = _KeyedImages(images, transform, 0)
        batch = _collate([keyed[0, rank * share + i] for i in range(share)])
        assert not isinstance(batch, InputError)
        self.batch = (batch[0].pin_memory(), batch[1].pin_memory()) if pin_memory else batch

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        for _ in range(first_batch, self.batches):
            yield self.batch
