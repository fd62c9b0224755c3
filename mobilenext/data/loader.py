"""Batches: which images, in which order, with which crops.

The interface that the training loop knows: `len(loader)` batches, and `loader.epoch(epoch,
first_batch)` yields (pixels uint8 (N, H, W, 3), labels int64 (N,)), pinned if asked.

Global batch b of epoch e is a function of (seed, e, b): its order comes from (seed, epoch), each
image's crop from (seed, epoch, index). Ranks take contiguous slices of it, so the slices of all
ranks, one after the other, are the same pixels for any world size, and for any number of threads.
An image that can't be read stops the run or, if asked, gives its place to another one, chosen by
(seed, epoch, index) as well.

Batches are made ahead of their use, by threads: what decodes holds no GIL, so there is nothing that
processes would be needed for, and no pixels are copied between them.
"""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mobilenext.data.decoders import Decoder, Order, Problems, open_decoder
from mobilenext.data.sources import Images, SyntheticImages
from mobilenext.data.transforms import Transform
from mobilenext.errors import InputError
from mobilenext.seeding import counter_seed, generator

Batch = tuple[Tensor, Tensor]

MOST_SUBSTITUTES = 16

MAKERS = 2
"""Batches that are being made at a time: while the last images of one are decoded, threads that
have nothing left to do there begin with the next."""

AHEAD_BYTES = 64 * 2**20
"""About as much is kept ready; at least the batches that are being made, at most four."""


class Loader(Protocol):
    """What the loop iterates over."""

    unreadable: dict[int, str]
    """Images that this process could not read so far: by index, what is wrong with them."""
    decoder: str
    """What decodes the images, for logs and results."""
    missed: int
    """How many images the present epoch has had to do without, so far."""
    skips: bool
    """Whether images that can't be read are left out or replaced, not an error."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of the batches of an epoch, from `first_batch` on."""
        ...

    def prefetch(self, epoch: int, first_batch: int = 0) -> None:
        """Begin to make these batches, so that `epoch` with the same arguments finds some ready."""
        ...

    def check_share(self, unreadable: dict[int, str]) -> None:
        """Raise `InputError` if so many of the split's images are more than may be unreadable."""
        ...

    def close(self) -> None:
        """End the threads of the loader, if it has any."""
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
    decoder: str = "auto",
    device: torch.device | None = None,
) -> Loader:
    """Shuffled, augmented batches; the incomplete last batch of an epoch is left out.

    Args:
        images: The training split.
        transform: Says what is seen of an image.
        seed: The run's seed.
        global_batch_size: Images of one optimiser step over all ranks.
        rank: This process.
        world_size: Number of processes; has to divide the batch.
        workers: Threads that decode; 0 makes each batch when it is asked for.
        pin_memory: Page-locked batches, for copies to a CUDA device that do not wait.
        on_bad_image: What to do with an image that can't be read: `error` raises, `skip` puts a
            readable one in its place, a function of (seed, epoch, index) and the files.
        max_bad_share: With `skip`: share of the split that may be unreadable.
        decoder: A name of `mobilenext.data.decoders`.
        device: Where the network is; for decoders that decode there.

    Raises:
        InputError: The ranks can't share the batch, the split is smaller than one batch, or the
            decoder is not to be had.
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
    if transform.finish is not None and decoder == "nvjpeg":
        raise InputError(
            "data.decoder=nvjpeg leaves no pixels on the host for augment.randaugment: use another "
            "decoder, or augment.randaugment=null"
        )
    keys = _TrainKeys(len(images), seed, global_batch_size, rank, world_size)
    policy = "substitute" if on_bad_image == "skip" else "error"
    maker = _Maker(images, transform, open_decoder(decoder, workers, device), seed, policy, workers)
    return _ImageLoader(maker, keys, workers, pin_memory, max_bad_share)


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
    decoder: str = "auto",
    device: torch.device | None = None,
) -> Loader:
    """Every image once: rank r takes images r, r + world_size, ... without padding.

    Ranks may have different numbers of batches, or none, so nothing inside a loop over them may
    wait for other ranks.

    Args:
        images: The split to evaluate on.
        transform: Says what is seen of an image.
        batch_size: Images of one forward pass of one rank.
        rank: This process.
        world_size: Number of processes.
        workers: As for `train_loader`.
        pin_memory: As for `train_loader`.
        on_bad_image: What to do with an image that can't be read: `error` raises, `skip` leaves it
            out; then batches may be smaller, and `unreadable` tells of it.
        max_bad_share: As for `train_loader`.
        decoder: As for `train_loader`.
        device: As for `train_loader`.
    """
    if batch_size < 1:
        raise InputError(f"data.eval_batch_size: expected at least 1, got {batch_size}")
    keys = _EvalKeys(np.arange(rank, len(images), world_size), batch_size)
    policy = "leave out" if on_bad_image == "skip" else "error"
    maker = _Maker(images, transform, open_decoder(decoder, workers, device), 0, policy, workers)
    return _ImageLoader(maker, keys, workers, pin_memory, max_bad_share)


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images: a permutation of range(length), from (seed, epoch)."""
    return torch.randperm(length, generator=generator("order", seed, epoch))


class _TrainKeys:
    """This rank's indices, batch by batch."""

    def __init__(
        self, length: int, seed: int, global_batch_size: int, rank: int, world_size: int
    ) -> None:
        self.length, self.seed, self.global_batch_size = length, seed, global_batch_size
        self.batch_size = global_batch_size // world_size
        self.offset = rank * self.batch_size

    def __len__(self) -> int:
        return self.length // self.global_batch_size

    def of(self, epoch: int, first_batch: int) -> Iterator[np.ndarray]:
        """Indices of the batches from `first_batch` on."""
        order = epoch_order(self.length, self.seed, epoch).numpy()
        for batch in range(first_batch, len(self)):
            start = batch * self.global_batch_size + self.offset
            yield order[start : start + self.batch_size]


class _EvalKeys:
    """Consecutive images of a shard."""

    def __init__(self, shard: np.ndarray, batch_size: int) -> None:
        self.shard, self.batch_size = shard, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.shard) / self.batch_size)

    def of(self, epoch: int, first_batch: int) -> Iterator[np.ndarray]:
        """Indices of the batches from `first_batch` on; the epoch does not matter."""
        del epoch
        for start in range(first_batch * self.batch_size, len(self.shard), self.batch_size):
            yield self.shard[start : start + self.batch_size]


@dataclass(frozen=True)
class _Made:
    batch: Batch | None
    unreadable: dict[int, str] = field(default_factory=dict)


class _Maker:
    """Makes batches; may be called by several threads at once."""

    def __init__(
        self,
        images: Images,
        transform: Transform,
        decoder: Decoder,
        seed: int,
        policy: str,
        workers: int,
    ) -> None:
        self.images, self.transform, self.decoder = images, transform, decoder
        self.seed, self.policy = seed, policy
        self.finishers = None
        if workers and transform.finish is not None:
            self.finishers = ThreadPoolExecutor(workers, "finish")

    def __call__(self, epoch: int, indices: np.ndarray, pin_memory: bool) -> _Made:
        """The batch of these images.

        Raises:
            InputError: An image can't be read, and nothing else was asked for.
        """
        count = len(indices)
        pixels = self.decoder.allocate(count, self.transform.image_size, pin_memory)
        labels = torch.empty(count, dtype=torch.int64, pin_memory=pin_memory)
        problems = self._decode(epoch, indices, indices, pixels, labels)
        unreadable = {int(indices[position]): text for position, text in problems.items()}
        if problems and self.policy == "error":
            raise InputError(problems[min(problems)])
        if problems and self.policy == "substitute":
            for position in sorted(problems):
                place = slice(position, position + 1)
                unreadable |= self._substitute(
                    epoch, indices[place], pixels[place], labels[place], problems[position]
                )
        if self.transform.finish is not None:
            self._finish(epoch, indices, pixels.numpy())
        if problems and self.policy == "leave out":
            readable = [position for position in range(count) if position not in problems]
            if not readable:
                return _Made(None, unreadable)
            pixels, labels = pixels[readable], labels[readable]
        return _Made((pixels, labels), unreadable)

    def _finish(self, epoch: int, indices: np.ndarray, pixels: np.ndarray) -> None:
        finish = self.transform.finish
        assert finish is not None

        def one(position: int) -> None:
            index = int(indices[position])
            pixels[position] = finish(pixels[position], self.seed, epoch, index)

        apply = map if self.finishers is None else self.finishers.map
        for _ in apply(one, range(len(indices))):
            pass

    def close(self) -> None:
        """End the threads."""
        if self.finishers is not None:
            self.finishers.shutdown()
        self.decoder.close()

    def _decode(
        self, epoch: int, chosen: np.ndarray, keys: np.ndarray, pixels: Tensor, labels: Tensor
    ) -> Problems:
        """Images `chosen` with the draws of `keys`."""
        order = Order(self.images, chosen, keys, self.transform, self.seed, epoch, pixels, labels)
        return self.decoder.decode(order)

    def _substitute(
        self, epoch: int, index: np.ndarray, pixels: Tensor, labels: Tensor, problem: str
    ) -> dict[int, str]:
        """Fill the place of an unreadable image; returns what else could not be read."""
        unreadable: dict[int, str] = {}
        for attempt in range(1, 1 + MOST_SUBSTITUTES):
            draw = counter_seed("substitute", self.seed, epoch, int(index[0]), attempt)
            chosen = draw % len(self.images)
            problems = self._decode(epoch, np.array([chosen]), index, pixels, labels)
            if not problems:
                return unreadable
            unreadable[chosen] = problems[0]
        raise InputError(
            f"{1 + len(unreadable)} images drawn one after the other could not be read, for "
            f"instance: {problem}"
        )


class _ImageLoader:
    """Makes batches ahead of their use."""

    def __init__(
        self,
        maker: _Maker,
        keys: _TrainKeys | _EvalKeys,
        workers: int,
        pin_memory: bool,
        max_bad_share: float,
    ) -> None:
        self.maker, self.keys, self.pin_memory = maker, keys, pin_memory
        self.decoder = maker.decoder.description
        self.unreadable: dict[int, str] = {}
        self.missed = 0
        self.skips = maker.policy != "error"
        self.length, self.max_bad_share = len(maker.images), max_bad_share
        self.threads = ThreadPoolExecutor(MAKERS, "batch") if workers else None
        size = keys.batch_size * 3 * maker.transform.image_size**2
        self.ahead = max(MAKERS, min(4, AHEAD_BYTES // size))
        self.begun: tuple[tuple[int, int], _Ahead] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def prefetch(self, epoch: int, first_batch: int = 0) -> None:
        if self.threads is None or (self.begun and self.begun[0] == (epoch, first_batch)):
            return
        self._abandon()
        self.begun = ((epoch, first_batch), self._start(self.threads, epoch, first_batch))

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        self.missed = 0
        made: Iterator[_Made]
        if self.threads is None:
            keys = self.keys.of(epoch, first_batch)
            made = (self.maker(epoch, indices, self.pin_memory) for indices in keys)
        else:
            self.prefetch(epoch, first_batch)
            assert self.begun is not None
            made, self.begun = iter(self.begun[1]), None
        with closing(made):  # pyright: ignore[reportArgumentType]
            for one in made:
                if one.unreadable:
                    self.missed += len(one.unreadable)
                    self.unreadable |= one.unreadable
                    self.check_share(self.unreadable)
                if one.batch is not None:
                    yield one.batch

    def check_share(self, unreadable: dict[int, str]) -> None:
        if len(unreadable) > self.max_bad_share * self.length:
            some = "; ".join(list(unreadable.values())[:3])
            raise InputError(
                f"data.max_bad_share={self.max_bad_share:g}: {len(unreadable)} of "
                f"{self.length:,} images could not be read, which is more: {some}. Fix the files, "
                "or raise data.max_bad_share"
            )

    def close(self) -> None:
        self._abandon()
        if self.threads is not None:
            self.threads.shutdown(cancel_futures=True)
        self.maker.close()

    def _start(self, threads: ThreadPoolExecutor, epoch: int, first_batch: int) -> "_Ahead":
        keys = self.keys.of(epoch, first_batch)
        return _Ahead(self.maker, threads, epoch, keys, self.pin_memory, self.ahead)

    def _abandon(self) -> None:
        if self.begun is not None:
            self.begun[1].cancel()
            self.begun = None


class _Ahead:
    """Batches of an epoch, `ahead` of them being made or ready at any time."""

    def __init__(
        self,
        maker: _Maker,
        threads: ThreadPoolExecutor,
        epoch: int,
        keys: Iterator[np.ndarray],
        pin_memory: bool,
        ahead: int,
    ) -> None:
        self.maker, self.threads, self.epoch = maker, threads, epoch
        self.keys, self.pin_memory = keys, pin_memory
        self.futures: deque[Future[_Made]] = deque()
        for _ in range(ahead):
            self._submit()

    def __iter__(self) -> Iterator[_Made]:
        try:
            while self.futures:
                made = self.futures.popleft().result()
                self._submit()
                yield made
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what is not begun, and wait for the rest."""
        for future in self.futures:
            future.cancel()
        while self.futures:
            future = self.futures.popleft()
            if not future.cancelled():
                future.exception()

    def _submit(self) -> None:
        indices = next(self.keys, None)
        if indices is not None:
            self.futures.append(
                self.threads.submit(self.maker, self.epoch, indices, self.pin_memory)
            )


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
        maker = _Maker(images, transform, open_decoder("pillow", 1), 0, "error", 0)
        made = maker(0, rank * share + np.arange(share), pin_memory)
        maker.close()
        assert made.batch is not None
        self.batch = made.batch
        self.decoder = "none"
        self.unreadable: dict[int, str] = {}
        self.missed = 0
        self.skips = False

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        for _ in range(first_batch, self.batches):
            yield self.batch

    def prefetch(self, epoch: int, first_batch: int = 0) -> None:
        pass

    def check_share(self, unreadable: dict[int, str]) -> None:
        pass

    def close(self) -> None:
        pass
