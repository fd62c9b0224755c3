"""Batches: their images, the order, the crops and the targets.

The interface that the training loop knows: `len(loader)` batches, and `loader.epoch(epoch,
first_batch)` yields (pixels uint8 (N, H, W, 3), targets), pinned if asked. The targets are the
split's (`Images.targets`): class indices, int64 (N,), where each image has one class.

Global batch b of epoch e is a function of (seed, e, b): its order (`orders`) of (seed, epoch), each
image's crop from (seed, epoch, index). Ranks take contiguous slices of it, so the slices of all
ranks, one after the other, are the same pixels for any world size, and for any number of threads.
An image that can't be read stops the run or, if asked, gives its place to another one, chosen by
(seed, epoch, index) as well.

Threads make batches ahead of their use: decoders hold no GIL, so no processes are needed, and no
pixels are copied between them.
"""

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mobilenext.data.decoders import (
    DECODERS,
    Decoder,
    DecodeRequest,
    Problems,
    check_decoder,
    open_decoder,
)
from mobilenext.data.encoded import HasReadAhead
from mobilenext.data.orders import check_order, epoch_order
from mobilenext.data.sources import Images, SyntheticImages
from mobilenext.data.transforms import Transform, covered
from mobilenext.errors import InputError
from mobilenext.seeding import counter_seed, generator

Batch = tuple[Tensor, Tensor]
"""Pixels uint8 (N, H, W, 3), and the targets of the N images."""

MOST_SUBSTITUTES = 16
"""Images that are tried in the place of one that can't be read."""

MAKERS = 2
"""Batches that are being made at a time: while the last images of one are decoded, threads that
have nothing left to do there begin with the next."""

DECODING_NICE = 10
"""Niceness of decoding threads beside a GPU: the thread that launches kernels must not wait for a
core."""

AHEAD_BYTES = 64 * 2**20
"""Bytes of pixels that a loader keeps ready or is making, at most; but always `MAKERS` batches."""
MOST_AHEAD = 16
"""Batches that a loader keeps ready or is making, however small they are."""


class Loader(Protocol):
    """One split's batches, epoch by epoch: what a loop iterates over."""

    unreadable: dict[int, str]
    """Images that this process could not read so far: what is wrong with each, by its index."""
    decoder: str
    """The decoder's description, for logs and results."""
    missed: int
    """Number of unreadable images in the present epoch so far."""
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
        """Raise `InputError` if this many unreadable images are more than the split may have."""
        ...

    def close(self) -> None:
        """End the loader's threads, if it has any."""
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
    paired_share: float | None = None,
    order: str = "shuffled",
    readahead: int | None = None,
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
        device: The network's device, for decoders that decode there.
        paired_share: If given: batches of pairs, an image of one part of the split followed by one
            of the other, so twice as many images; the first part has this share of the split. An
            epoch goes through the first part, and through the other one as often as it takes.
        order: shuffled or blocks; see `orders`.
        readahead: Batches beyond those that are made ahead whose bytes the system is asked to fetch
            already; for images on a network file system. None or 0: none. Without effect where
            the system has no posix_fadvise, and without `workers`.

    Raises:
        InputError: The ranks can't share the batch, the split is smaller than one batch, the
            decoder can't be opened, or the images do not suit `order` or `readahead`.
    """
    check_decoder(decoder)
    check_order(order, images)
    _check_readahead(readahead, images)
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
    pairs = None
    if paired_share is not None:
        pairs = _PairedIndices(
            len(images), seed, global_batch_size, rank, world_size, paired_share, order
        )
    if isinstance(images, SyntheticImages):
        size = global_batch_size if pairs is None else 2 * global_batch_size
        return _ReadyBatch(images, transform, size, rank, world_size, pin_memory)
    on_host = {"randaugment": transform.finish, "pad_crop": transform.fill}
    for key, wanted in on_host.items():
        if wanted is not None and decoder in DECODERS and DECODERS[decoder].on_device:
            raise InputError(
                f"data.decoder={decoder} leaves no pixels on the host for augment.{key}: use "
                f"another decoder, or augment.{key}=null"
            )
    shuffled = _ShuffledIndices(len(images), seed, global_batch_size, rank, world_size, order)
    indices = shuffled if pairs is None else pairs
    policy = "substitute" if on_bad_image == "skip" else "error"
    opened = _opened(decoder, workers, device)
    parts = () if pairs is None else pairs.parts
    maker = BatchMaker(images, transform, opened, seed, policy, workers, parts)
    return _ImageLoader(
        maker, indices, workers, pin_memory, max_bad_share, readahead, _launches(device)
    )


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
    whole_batches: bool = False,
    places: np.ndarray | None = None,
    readahead: int | None = None,
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
            out of its batch, which gets smaller, and adds it to `unreadable`.
        max_bad_share: As for `train_loader`.
        decoder: As for `train_loader`.
        device: As for `train_loader`.
        whole_batches: Share by whole batches of consecutive images instead: rank r takes batches
            r, r + world_size, ... An image then meets the same batch for any number of processes,
            so that its outputs are the same bits.
        places: Indices of the images, if not all of the split are evaluated; int64 (N,).
        readahead: As for `train_loader`.

    Raises:
        InputError: The batch is empty, the decoder can't be opened, or the images do not suit
            `readahead`.
    """
    _check_readahead(readahead, images)
    if batch_size < 1:
        raise InputError(f"data.eval_batch_size: expected at least 1, got {batch_size}")
    shard = _shard(len(images) if places is None else len(places), rank, world_size)
    indices = _ShardIndices(shard if places is None else places[shard], batch_size)
    if whole_batches:
        indices = _BatchIndices(len(images), batch_size, rank, world_size)
    policy = "leave out" if on_bad_image == "skip" else "error"
    opened = _opened(decoder, workers, device)
    maker = BatchMaker(images, transform, opened, 0, policy, workers)
    return _ImageLoader(
        maker, indices, workers, pin_memory, max_bad_share, readahead, _launches(device)
    )


def _launches(device: torch.device | None) -> bool:
    """Whether this process launches kernels, so that threads that decode have to give way to it."""
    return device is not None and device.type == "cuda"


def _give_way() -> None:
    """Lower the priority of this thread and of those that it starts, where the system can."""
    if sys.platform == "linux":  # elsewhere the number of a thread is that of another process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), DECODING_NICE)


def _opened(name: str, threads: int, device: torch.device | None) -> Decoder:
    """A decoder, whose threads have a lower priority where this process launches kernels."""
    if not _launches(device) or not threads or name == "nvjpeg":
        return open_decoder(name, threads, device)
    with ThreadPoolExecutor(1, initializer=_give_way) as thread:
        return thread.submit(open_decoder, name, threads, device).result()


def evaluated_indices(
    length: int, rank: int, world_size: int, unreadable: Collection[int]
) -> np.ndarray:
    """Indices of the images of a rank's evaluation batches, one after the other, int64.

    Args:
        length: Images of the split.
        rank: As for `eval_loader`.
        world_size: As for `eval_loader`.
        unreadable: The loader's `unreadable`, which it left out.
    """
    shard = _shard(length, rank, world_size)
    return shard[~np.isin(shard, np.fromiter(unreadable, np.int64, len(unreadable)))]


def _check_readahead(readahead: int | None, images: Images) -> None:
    if readahead and not isinstance(images, HasReadAhead):
        raise InputError(
            f"data.readahead={readahead}: expected images in files as they are (class folders, "
            f"tars, a pack), got {type(images).__name__}, which can't be asked for ahead; use "
            "data.readahead=0"
        )


def _shard(length: int, rank: int, world_size: int) -> np.ndarray:
    return np.arange(rank, length, world_size)


class _ShuffledIndices:
    """A rank's indices of the training batches: its slice of each batch of a shuffled epoch."""

    def __init__(
        self,
        length: int,
        seed: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        order: str = "shuffled",
    ) -> None:
        self.length, self.seed, self.order = length, seed, order
        self.global_batch_size = global_batch_size
        self.batch_size = global_batch_size // world_size
        self.offset = rank * self.batch_size

    def __len__(self) -> int:
        return self.length // self.global_batch_size

    def batches(self, epoch: int, first_batch: int) -> Iterator[np.ndarray]:
        """Indices of the images of each batch from `first_batch` on."""
        order = epoch_order(self.length, self.seed, epoch, self.order).numpy()
        for batch in range(first_batch, len(self)):
            start = batch * self.global_batch_size + self.offset
            yield order[start : start + self.batch_size]


def two_parts(length: int, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of a split, a function of its length and the seed: sorted indices, int64.

    Args:
        length: Images of the split.
        seed: The run's seed.
        share: That of the first part.
    """
    order = torch.randperm(length, generator=generator("halves", seed)).numpy()
    first = round(length * share)
    return np.sort(order[:first]), np.sort(order[first:])


class _PairedIndices:
    """A rank's indices of batches of pairs: images of one part at even places, of the other at odd.

    Neighbours stay together for any number of ranks, so that all batches do.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        share: float,
        order: str = "shuffled",
    ) -> None:
        self.parts, self.seed, self.order = two_parts(length, seed, share), seed, order
        self.global_batch_size = global_batch_size
        self.share = global_batch_size // world_size
        self.batch_size, self.offset = 2 * self.share, rank * self.share
        first, other = map(len, self.parts)
        if min(first, other) < global_batch_size:
            raise InputError(
                f"train_share={share:g} leaves {first:,} of {length:,} training images to the "
                f"weights and {other:,} to the alphas, and a batch has {global_batch_size}: "
                "expected at least as many of each; choose a share nearer to 0.5, or lower "
                "data.global_batch_size"
            )

    def __len__(self) -> int:
        return len(self.parts[0]) // self.global_batch_size

    def batches(self, epoch: int, first_batch: int) -> Iterator[np.ndarray]:
        """Indices of the images of each batch from `first_batch` on."""
        orders = [
            part[epoch_order(len(part), self.seed, epoch, self.order, purpose).numpy()]
            for part, purpose in zip(self.parts, ("order", "order-other"), strict=True)
        ]
        for batch in range(first_batch, len(self)):
            start = batch * self.global_batch_size + self.offset
            places = np.arange(start, start + self.share)
            pairs = [order[places % len(order)] for order in orders]
            yield np.stack(pairs, 1).reshape(-1)


class _ShardIndices:
    """A rank's indices of the evaluation batches: consecutive images of its shard."""

    def __init__(self, shard: np.ndarray, batch_size: int) -> None:
        self.shard, self.batch_size = shard, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.shard) / self.batch_size)

    def batches(self, epoch: int, first_batch: int) -> Iterator[np.ndarray]:
        """Indices of the images of each batch from `first_batch` on, equal in every epoch."""
        del epoch
        for start in range(first_batch * self.batch_size, len(self.shard), self.batch_size):
            yield self.shard[start : start + self.batch_size]


class _BatchIndices:
    """A rank's indices of evaluation batches that are shared as a whole."""

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int) -> None:
        self.length, self.batch_size = length, batch_size
        self.mine = range(rank * batch_size, length, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.mine)

    def batches(self, epoch: int, first_batch: int) -> Iterator[np.ndarray]:
        """Indices of the images of each batch from `first_batch` on, equal in every epoch."""
        del epoch
        for start in self.mine[first_batch:]:
            yield np.arange(start, min(start + self.batch_size, self.length))


@dataclass(frozen=True)
class MadeBatch:
    """A batch and the images that could not be read for it.

    Attributes:
        batch: Pixels and targets; None if no image of it could be read.
        unreadable: What is wrong with each unreadable image, by its index.
    """

    batch: Batch | None
    unreadable: dict[int, str] = field(default_factory=dict)


class BatchMaker:
    """Makes batches of the images with given indices; several threads may call it at once.

    Args:
        images: The split.
        transform: Says what is seen of an image.
        decoder: Makes the pixels; closed with the maker.
        seed: The run's seed.
        policy: What to do with an unreadable image: `error`, `substitute` or `leave out`.
        workers: Threads for `transform.finish`; 0: the caller's.
        parts: Indices of parts of the split that are kept apart, sorted: the substitute of an image
            is of its part.
    """

    def __init__(
        self,
        images: Images,
        transform: Transform,
        decoder: Decoder,
        seed: int,
        policy: str,
        workers: int,
        parts: Sequence[np.ndarray] = (),
    ) -> None:
        self.parts = parts
        self.images, self.transform, self.decoder = images, transform, decoder
        self.seed, self.policy = seed, policy
        self.finishers = None
        if workers and transform.finish is not None:
            self.finishers = ThreadPoolExecutor(workers, "finish")

    def __call__(self, epoch: int, indices: np.ndarray, pin_memory: bool) -> MadeBatch:
        """The batch of these images.

        Raises:
            InputError: An image can't be read and the policy is `error`, or no substitute can be
                read either.
        """
        pixels = self.decoder.allocate(len(indices), self.transform.image_size, pin_memory)
        problems, views = self._decode(epoch, indices, indices, pixels)
        unreadable = {int(indices[position]): text for position, text in problems.items()}
        used = indices
        if problems and self.policy == "error":
            raise InputError(problems[min(problems)])
        if problems and self.policy == "substitute":
            used = indices.copy()
            for position in sorted(problems):
                place = slice(position, position + 1)
                used[position], views[place], more = self._substitute(
                    epoch, indices[place], pixels[place], problems[position]
                )
                unreadable |= more
        if self.transform.fill is not None:
            _fill(pixels.numpy(), views, self.transform.fill)
        if self.transform.finish is not None:
            self._finish(epoch, indices, pixels.numpy())
        if problems and self.policy == "leave out":
            readable = [position for position in range(len(indices)) if position not in problems]
            if not readable:
                return MadeBatch(None, unreadable)
            pixels, used, views = pixels[readable], indices[readable], views[readable]
        targets = self.transform.targets(self.images, used, views)
        if pin_memory:
            targets = targets.pin_memory()
        return MadeBatch((pixels, targets), unreadable)

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
        """End the threads, and close the decoder."""
        if self.finishers is not None:
            self.finishers.shutdown()
        self.decoder.close()

    def _decode(
        self, epoch: int, indices: np.ndarray, draw_indices: np.ndarray, pixels: Tensor
    ) -> tuple[Problems, np.ndarray]:
        """Fill the pixels; the images that can't be read, and the view of each of the others."""
        request = DecodeRequest(
            self.images, indices, draw_indices, self.transform, self.seed, epoch, pixels
        )
        return self.decoder.decode(request), request.seen

    def _substitute(
        self, epoch: int, index: np.ndarray, pixels: Tensor, problem: str
    ) -> tuple[int, np.ndarray, dict[int, str]]:
        """Fill the place of an unreadable image with another one.

        Args:
            epoch: Counter of the draws.
            index: The unreadable image, (1,).
            pixels: Its place in the batch, (1, H, W, 3).
            problem: What is wrong with it.

        Returns:
            The image that was taken, its view (1,), and further images that could not be read.
        """
        unreadable: dict[int, str] = {}
        for attempt in range(1, 1 + MOST_SUBSTITUTES):
            draw = counter_seed("substitute", self.seed, epoch, int(index[0]), attempt)
            other = draw % len(self.images)
            for part in self.parts:
                if index[0] in part:
                    other = int(part[draw % len(part)])
            problems, view = self._decode(epoch, np.array([other]), index, pixels)
            if not problems:
                return other, view, unreadable
            unreadable[other] = problems[0]
        raise InputError(
            f"{1 + len(unreadable)} images drawn one after the other could not be read, for "
            f"instance: {problem}"
        )


def _fill(pixels: np.ndarray, views: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Give the pixels (N, H, W, 3) a colour where their views show no image."""
    places = np.round(covered(views, pixels.shape[1])).astype(int).tolist()
    for picture, (left, top, right, bottom) in zip(pixels, places, strict=True):
        picture[:top] = picture[bottom:] = colour
        picture[:, :left] = picture[:, right:] = colour


class _ImageLoader:
    """A loader that makes batches ahead of their use."""

    def __init__(
        self,
        maker: BatchMaker,
        indices: "_ShuffledIndices | _PairedIndices | _ShardIndices | _BatchIndices",
        workers: int,
        pin_memory: bool,
        max_bad_share: float,
        readahead: int | None = None,
        gives_way: bool = False,
    ) -> None:
        self.maker, self.indices, self.pin_memory = maker, indices, pin_memory
        self.decoder = maker.decoder.description
        self.unreadable: dict[int, str] = {}
        self.missed = 0
        self.skips = maker.policy != "error"
        self.length, self.max_bad_share = len(maker.images), max_bad_share
        begins = _give_way if gives_way else None
        self.threads = ThreadPoolExecutor(MAKERS, "batch", begins) if workers else None
        size = indices.batch_size * 3 * maker.transform.image_size**2
        self.ahead = max(MAKERS, min(MOST_AHEAD, AHEAD_BYTES // size))
        self.readahead = readahead if readahead and hasattr(os, "posix_fadvise") else 0
        # One thread: all that it does is to ask.
        self.asking = ThreadPoolExecutor(1, "read-ahead") if workers and self.readahead else None
        self.begun: tuple[tuple[int, int], Prefetched] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def prefetch(self, epoch: int, first_batch: int = 0) -> None:
        if self.threads is None or (self.begun and self.begun[0] == (epoch, first_batch)):
            return
        self._abandon()
        self.begun = ((epoch, first_batch), self._start(self.threads, epoch, first_batch))

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        self.missed = 0
        batches: Iterator[MadeBatch]
        if self.threads is None:
            indices = self.indices.batches(epoch, first_batch)
            batches = (self.maker(epoch, some, self.pin_memory) for some in indices)
        else:
            self.prefetch(epoch, first_batch)
            assert self.begun is not None
            batches, self.begun = iter(self.begun[1]), None
        with closing(batches):  # pyright: ignore[reportArgumentType]
            for made in batches:
                if made.unreadable:
                    self.missed += len(made.unreadable)
                    self.unreadable |= made.unreadable
                    self.check_share(self.unreadable)
                if made.batch is not None:
                    yield made.batch

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
        if self.asking is not None:
            self.asking.shutdown(cancel_futures=True)
        self.maker.close()

    def _start(self, threads: ThreadPoolExecutor, epoch: int, first_batch: int) -> "Prefetched":
        indices = self.indices.batches(epoch, first_batch)
        ask = None if self.asking is None else self._ask
        return Prefetched(
            self.maker, threads, epoch, indices, self.pin_memory, self.ahead, ask, self.readahead
        )

    def _ask(self, indices: np.ndarray) -> Future[None]:
        images = self.maker.images
        assert self.asking is not None
        assert isinstance(images, HasReadAhead)
        return self.asking.submit(images.read_ahead, indices)

    def _abandon(self) -> None:
        if self.begun is not None:
            self.begun[1].cancel()
            self.begun = None


class Prefetched:
    """Batches of an epoch in their order, `ahead` of them being made or ready at any time.

    Args:
        maker: Makes the batches.
        threads: Call the maker.
        epoch: Counter of the draws.
        indices: Indices of the images of each batch.
        pin_memory: Whether the batches are page-locked.
        ahead: How many batches to make ahead.
        ask: Has images with given indices asked for ahead, in another thread; None: nothing is.
        readahead: For how many batches behind those that are made ahead.
    """

    def __init__(
        self,
        maker: BatchMaker,
        threads: ThreadPoolExecutor,
        epoch: int,
        indices: Iterator[np.ndarray],
        pin_memory: bool,
        ahead: int,
        ask: Callable[[np.ndarray], Future[None]] | None = None,
        readahead: int = 0,
    ) -> None:
        self.maker, self.threads, self.epoch = maker, threads, epoch
        self.indices, self.pin_memory, self.ask = indices, pin_memory, ask
        self.futures: deque[Future[MadeBatch]] = deque()
        self.asked: deque[tuple[np.ndarray, Future[None]]] = deque()
        for _ in range(ahead):
            self._submit()
        for _ in range(readahead if ask is not None else 0):
            self._ask()

    def __iter__(self) -> Iterator[MadeBatch]:
        try:
            while self.futures:
                made = self.futures.popleft().result()
                self._submit()
                yield made
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what is not begun, and wait for the rest."""
        begun = [*self.futures, *(asked for _, asked in self.asked)]
        self.futures.clear()
        self.asked.clear()
        for future in begun:
            future.cancel()
        for future in begun:
            if not future.cancelled():
                future.exception()

    def _submit(self) -> None:
        """Let the next batch be made."""
        indices = self._next()
        if indices is not None:
            self.futures.append(
                self.threads.submit(self.maker, self.epoch, indices, self.pin_memory)
            )

    def _next(self) -> np.ndarray | None:
        """The indices of the next batch; another one is asked for in its place."""
        if not self.asked:
            return next(self.indices, None)
        indices, asked = self.asked.popleft()
        if not asked.cancel() and asked.done():  # not begun by now, it would come too late
            asked.result()  # sources keep quiet about files; anything else is a bug
        self._ask()
        return indices

    def _ask(self) -> None:
        indices = next(self.indices, None)
        if indices is not None:
            assert self.ask is not None
            self.asked.append((indices, self.ask(indices)))


class _ReadyBatch:
    """Yields one ready batch again and again, at no cost, so that only the loop is measured."""

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
        maker = BatchMaker(images, transform, open_decoder("pillow", 1), 0, "error", 0)
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
