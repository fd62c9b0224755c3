import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from mobilenext.data import (
    digits,
    eval_loader,
    eval_transform,
    image_folder,
    synthetic,
    train_loader,
    train_transform,
    two_parts,
)
from mobilenext.data import loader as loading
from mobilenext.data.loader import Loader
from mobilenext.data.orders import epoch_order
from mobilenext.data.sources import ArrayImages, Images
from mobilenext.errors import InputError

AUGMENT = {
    "color_jitter": (0.4, 0.4, 0.4, 0.1), "randaugment": "rand-m9-mstd0.5", "erasing": 0.5,
}  # fmt: skip
DIGITS = digits()


def loader(rank: int = 0, world_size: int = 1, workers: int = 0, seed: int = 7) -> Loader:
    return train_loader(
        DIGITS.train, train_transform(24, **AUGMENT), seed=seed, global_batch_size=96,
        rank=rank, world_size=world_size, workers=workers,
    )  # fmt: skip


def take(
    batches: Loader, epoch: int, count: int, first_batch: int = 0
) -> list[tuple[Tensor, Tensor]]:
    iterator = batches.epoch(epoch, first_batch)
    return [next(iterator) for _ in range(count)]


def assert_same(one: list, two: list) -> None:
    for (pixels, labels), (other_pixels, other_labels) in zip(one, two, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(labels, other_labels)


def test_batches_are_uint8_nhwc() -> None:
    pixels, labels = take(loader(), 0, 1)[0]
    assert (pixels.shape, pixels.dtype) == ((96, 24, 24, 3), torch.uint8)
    assert (labels.shape, labels.dtype) == ((96,), torch.int64)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_pixels_for_any_number_of_workers(workers: int) -> None:
    assert_same(take(loader(), 3, 3), take(loader(workers=workers), 3, 3))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_same_pixels_for_any_world_size(world_size: int) -> None:
    ranks = [take(loader(rank, world_size), 3, 3) for rank in range(world_size)]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*shares, strict=True))
        for shares in zip(*ranks, strict=True)
    ]
    assert_same(take(loader(), 3, 3), joined)


def test_same_pixels_from_the_middle_of_an_epoch() -> None:
    batches = loader()
    whole = list(batches.epoch(2))
    assert len(whole) == len(batches) == 1437 // 96
    assert_same(whole[10:], list(batches.epoch(2, first_batch=10)))


def test_epochs_and_seeds_differ() -> None:
    first = take(loader(), 0, 1)[0][0]
    assert not torch.equal(first, take(loader(), 1, 1)[0][0])
    assert not torch.equal(first, take(loader(seed=8), 0, 1)[0][0])


def test_an_epoch_is_a_permutation() -> None:
    order = epoch_order(1437, seed=7, epoch=2)
    assert torch.equal(order.sort().values, torch.arange(1437))


@pytest.mark.parametrize("length", [1, 7, 64, 65])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_each_image_once(length: int, world_size: int) -> None:
    images = synthetic(1, length, 1000, 8).val
    seen = []
    for rank in range(world_size):
        shard = eval_loader(
            images, eval_transform(8, crop_ratio=1), batch_size=4, rank=rank, world_size=world_size
        )
        batches = list(shard.epoch(0))
        assert len(batches) == len(shard)
        seen += [label for _, labels in batches for label in labels.tolist()]
    assert sorted(seen) == list(range(length))


def test_refuses_a_batch_that_ranks_cannot_share() -> None:
    with pytest.raises(InputError, match=r"can't be shared evenly by 5 processes.*95 or 100"):
        loader(world_size=5)


def test_refuses_a_batch_larger_than_the_split() -> None:
    transform = train_transform(24)
    with pytest.raises(InputError, match="more than the 1437 training images"):
        train_loader(DIGITS.train, transform, seed=0, global_batch_size=1438)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_clear_error(photo_folder: Path, workers: int) -> None:
    victim = photo_folder / "train" / "flower" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:3000])
    images = image_folder(str(photo_folder)).train
    batches = train_loader(
        images, train_transform(32), seed=0, global_batch_size=8, workers=workers
    )
    with pytest.raises(InputError, match=r"flower/3\.jpg") as caught:
        list(batches.epoch(0))
    assert "Traceback" not in str(caught.value)


class SomeBad:
    """Images of which some can't be read."""

    def __init__(self, images: Images, bad: set[int]) -> None:
        self.images, self.bad = images, bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        if index in self.bad:
            raise InputError(f"image {index} is bad")
        return self.images[index]

    def targets(self, indices: np.ndarray) -> Tensor:
        return self.images.targets(indices)


BAD = set(range(0, 1437, 40))


def lenient(rank: int = 0, world_size: int = 1, workers: int = 0, share: float = 0.1) -> Loader:
    return train_loader(
        SomeBad(DIGITS.train, BAD), train_transform(24, **AUGMENT), seed=7, global_batch_size=96,
        rank=rank, world_size=world_size, workers=workers, on_bad_image="skip",
        max_bad_share=share,
    )  # fmt: skip


def test_unreadable_images_give_their_places_to_others() -> None:
    """The same ones for any number of workers and processes, and from any batch on."""
    batches = lenient()
    whole = list(batches.epoch(1))
    assert batches.unreadable.keys() <= BAD
    assert len(batches.unreadable) > 0.9 * len(BAD)  # but for those in the part left out
    assert batches.unreadable[40] == "image 40 is bad"
    for pixels, labels in whole:
        assert len(pixels) == len(labels) == 96
    strict = list(loader().epoch(1))
    order = epoch_order(1437, 7, 1).tolist()
    for number, ((pixels, labels), (expected, expected_labels)) in enumerate(
        zip(whole, strict, strict=True)
    ):
        readable = [i not in BAD for i in order[96 * number : 96 * (number + 1)]]
        assert torch.equal(pixels[readable], expected[readable])
        assert torch.equal(labels[readable], expected_labels[readable])
    assert_same(whole, list(lenient(workers=2).epoch(1)))
    ranks = [lenient(rank, 3) for rank in range(3)]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*shares, strict=True))
        for shares in zip(*(rank.epoch(1) for rank in ranks), strict=True)
    ]
    assert_same(whole, joined)
    assert ranks[0].unreadable | ranks[1].unreadable | ranks[2].unreadable == batches.unreadable
    assert_same(whole[5:], list(lenient().epoch(1, first_batch=5)))


class Numbered:
    """Images whose grey value is their index, and their target ten times as much; some are bad."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        if index in self.bad:
            raise InputError(f"image {index} is bad")
        return PIL.Image.new("RGB", (8, 8), (index, index, index)), 10 * index

    def targets(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(10 * indices)


@pytest.mark.parametrize("evaluates", [False, True])
def test_targets_are_those_of_the_images_that_are_used(evaluates: bool) -> None:
    images = Numbered({2, 3, 5, 7, 11, 13, 17, 19})
    if evaluates:
        batches = eval_loader(images, eval_transform(8), batch_size=5, on_bad_image="skip")
    else:
        batches = train_loader(
            images, train_transform(8), seed=0, global_batch_size=5, on_bad_image="skip"
        )
    seen = 0
    for pixels, targets in batches.epoch(0):
        assert targets.tolist() == [10 * one for one in pixels[:, 0, 0, 0].tolist()]
        assert not {one // 10 for one in targets.tolist()} & images.bad
        seen += len(targets)
    assert seen == (12 if evaluates else 20)


@pytest.mark.parametrize("images", [DIGITS.train, synthetic(20, 20, 4, 8).train])
def test_an_unknown_decoder_is_refused_at_once(images: Images) -> None:
    message = "data.decoder=turbo: expected one of auto, native"
    with pytest.raises(InputError, match=message):
        train_loader(images, train_transform(8), seed=0, global_batch_size=4, decoder="turbo")
    with pytest.raises(InputError, match=message):
        eval_loader(images, eval_transform(8), batch_size=4, decoder="turbo")


def test_nvjpeg_leaves_no_pixels_for_randaugment() -> None:
    transform = train_transform(24, **AUGMENT)
    with pytest.raises(InputError, match="nvjpeg leaves no pixels on the host for "):
        train_loader(DIGITS.train, transform, seed=0, global_batch_size=4, decoder="nvjpeg")


def test_too_many_unreadable_images_stop_the_run() -> None:
    message = r"data.max_bad_share=0.01: 15 of 1,437 images could not be read.*image \d+ is bad"
    with pytest.raises(InputError, match=message):
        list(lenient(share=0.01).epoch(0))


def test_no_readable_image_at_all() -> None:
    batches = train_loader(
        SomeBad(DIGITS.train, set(range(1437))), train_transform(24), seed=0,
        global_batch_size=8, on_bad_image="skip",
    )  # fmt: skip
    with pytest.raises(InputError, match="images drawn one after the other could not be read"):
        next(batches.epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_unreadable_images_out(workers: int) -> None:
    """A batch may be smaller, or missing altogether."""
    shard = eval_loader(
        SomeBad(DIGITS.val, {0, 5, *range(16, 24)}), eval_transform(32, crop_ratio=1),
        batch_size=8, workers=workers, on_bad_image="skip",
    )  # fmt: skip
    batches = list(shard.epoch(0))
    assert [len(labels) for _, labels in batches[:3]] == [6, 8, 8]
    assert sum(len(labels) for _, labels in batches) == 350
    assert shard.unreadable.keys() == {0, 5, *range(16, 24)}


def test_synthetic_training_repeats_one_batch() -> None:
    batches = train_loader(
        synthetic(70, 1, 10, 16).train, train_transform(16), seed=0, global_batch_size=8,
        rank=1, world_size=2,
    )  # fmt: skip
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches) == 8
    assert all(pixels is epoch[0][0] for pixels, _ in epoch)
    assert epoch[0][1].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("decoder", ["auto", "torchvision", "pillow"])
@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
def test_same_pixels_from_files_for_any_number_of_threads(photo_folder: Path, decoder: str) -> None:
    images = image_folder(str(photo_folder)).train

    def batches(workers: int) -> list[tuple[Tensor, Tensor]]:
        made = train_loader(
            images, train_transform(24, **AUGMENT), seed=3, global_batch_size=8, workers=workers,
            decoder=decoder,
        )  # fmt: skip
        taken = [*made.epoch(0), *made.epoch(1)]
        made.close()
        return taken

    alone = batches(0)
    assert len(alone) == 6
    assert_same(alone, batches(1))
    assert_same(alone, batches(3))


def test_what_is_prefetched_is_what_is_asked_for() -> None:
    batches = loader(workers=1)
    batches.prefetch(4, 2)
    batches.prefetch(5)  # another request: the first one is given up
    batches.prefetch(5)
    assert_same(take(batches, 5, 3), take(loader(), 5, 3))
    batches.prefetch(6)
    assert_same(take(batches, 3, 2, first_batch=4), take(loader(), 3, 2, first_batch=4))
    batches.close()


@pytest.mark.parametrize(
    ("batch", "size", "ahead"), [(48, 24, 16), (64, 224, 6), (128, 224, 3), (256, 224, 2)]
)
def test_batches_ready_are_bounded_in_number_and_bytes(batch: int, size: int, ahead: int) -> None:
    """At most 16, and 64 MiB of them, but always as many as are made at a time."""
    transform = train_transform(size)
    batches = train_loader(DIGITS.train, transform, seed=0, global_batch_size=batch)
    assert isinstance(batches, loading._ImageLoader)
    assert batches.ahead == ahead
    ready = batches.ahead * batch * size**2 * 3
    assert ready <= loading.AHEAD_BYTES or batches.ahead == loading.MAKERS
    batches.close()


def test_only_a_few_batches_are_made_ahead() -> None:
    # Small ones, of which an epoch has more than may be ready.
    batches = train_loader(
        DIGITS.train, train_transform(24), seed=7, global_batch_size=48, workers=2
    )
    assert isinstance(batches, loading._ImageLoader)
    assert batches.ahead + 1 < len(batches)
    made = []
    make = batches.maker.__call__

    def counted(epoch: int, indices: np.ndarray, pin_memory: bool) -> loading.MadeBatch:
        made.append(epoch)
        return make(epoch, indices, pin_memory)

    batches.maker = counted  # pyright: ignore[reportAttributeAccessIssue]
    epoch = batches.epoch(0)
    assert isinstance(epoch, Generator)
    next(epoch)
    time.sleep(0.5)
    assert len(made) == batches.ahead + 1
    epoch.close()
    batches.maker = make.__self__  # pyright: ignore[reportAttributeAccessIssue]
    batches.close()


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_what_can_not_be_opened_or_printed_is_skipped(photo_folder: Path, decoder: str) -> None:
    folder = photo_folder / "train" / "flower"
    os.mkfifo(folder / "pipe.jpg")
    os.rename(folder / "0.jpg", os.fsencode(folder) + b"/g\xfct.jpg")
    with open(os.fsencode(folder) + b"/b\xe4d.jpg", "wb") as file:
        file.write(b"nothing")
    images = image_folder(str(photo_folder)).train
    made = train_loader(
        images, train_transform(24), seed=0, global_batch_size=len(images), workers=1,
        on_bad_image="skip", decoder=decoder,
    )  # fmt: skip
    ((pixels, labels),) = made.epoch(0)
    made.close()
    assert len(pixels) == len(labels) == 26
    messages = "\n".join(sorted(made.unreadable.values()))
    assert messages.isascii()
    assert len(made.unreadable) == 2
    assert "flower/b\\xe4d.jpg: expected an image file" in messages
    assert "flower/pipe.jpg: expected a regular file, got a named pipe" in messages


# ---- pairs, for searches ----


def pairs(rank: int = 0, world_size: int = 1, batch: int = 96, share: float = 0.5) -> Loader:
    return train_loader(
        DIGITS.train, train_transform(16, pad_crop=2), seed=7, global_batch_size=batch, rank=rank,
        world_size=world_size, paired_share=share,
    )  # fmt: skip


def paired(share: float = 0.5, batch: int = 96) -> list[np.ndarray]:
    """The images of an epoch's batches."""
    indices = loading._PairedIndices(len(DIGITS.train), 7, batch, 0, 1, share)
    return list(indices.batches(0, 0))


def test_parts_of_a_split_have_no_image_in_common() -> None:
    for share, first in ((0.5, 718), (0.25, 359)):
        parts = two_parts(1437, 7, share)
        assert [len(part) for part in parts] == [first, 1437 - first]
        assert sorted(np.concatenate(parts)) == list(range(1437))
    assert not np.array_equal(two_parts(1437, 7, 0.5)[0], two_parts(1437, 8, 0.5)[0])


@pytest.mark.parametrize("share", [0.5, 0.25, 0.75])
def test_pairs_are_of_one_part_and_of_the_other(share: float) -> None:
    first, other = (set(part.tolist()) for part in two_parts(len(DIGITS.train), 7, share))
    batches = paired(share)
    assert len(batches) == len(first) // 96
    seen = np.concatenate(batches).reshape(-1, 2)
    assert set(seen[:, 0].tolist()) <= first
    assert set(seen[:, 1].tolist()) <= other
    assert len(set(seen[:, 0].tolist())) == len(seen)  # each once
    _, times = np.unique(seen[:, 1], return_counts=True)
    assert times.max() - times.min() <= 1  # as often as it takes, in turn


def test_pairs_are_the_same_for_any_world_size() -> None:
    whole = take(pairs(), 2, 3)
    assert whole[0][0].shape == (192, 16, 16, 3)
    parts = [take(pairs(rank, 3), 2, 3) for rank in range(3)]
    for number, batch in enumerate(whole):
        together = [torch.cat([part[number][side] for part in parts]) for side in (0, 1)]
        assert_same([batch], [tuple(together)])
    assert_same(take(pairs(), 2, 1, first_batch=2), whole[2:])


def test_parts_smaller_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"train_share=0.95 leaves 1,365 of 1,437 training images"):
        pairs(share=0.95)


def test_the_substitute_of_an_image_is_of_its_part() -> None:
    """Else the weights would learn images that they are judged by."""

    train: Any = DIGITS.train
    own = ArrayImages(train.pixels, np.arange(len(train)))  # each its own label
    made = train_loader(
        SomeBad(own, set(range(0, 1437, 3))), train_transform(8, pad_crop=0), seed=7,
        global_batch_size=96, on_bad_image="skip", paired_share=0.5,
    )  # fmt: skip
    parts = [set(part.tolist()) for part in two_parts(1437, 7, 0.5)]
    for _, labels in made.epoch(0):
        assert set(labels[0::2].tolist()) <= parts[0]
        assert set(labels[1::2].tolist()) <= parts[1]
    assert len(made.unreadable) > 300


def test_evaluation_of_some_places() -> None:
    places = two_parts(len(DIGITS.train), 7, 0.9)[1]
    labels = []
    for rank in range(2):
        some = eval_loader(DIGITS.train, eval_transform(16, crop_ratio=1), batch_size=50, rank=rank,
                           world_size=2, places=places)  # fmt: skip
        labels.append(torch.cat([batch[1] for batch in some.epoch(0)]))
    expected = DIGITS.train.targets(places)
    assert torch.equal(labels[0], expected[0::2])
    assert torch.equal(labels[1], expected[1::2])


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere threads have no priority of their own"
)
@pytest.mark.parametrize("decoder", ["native", "pillow"])
def test_decoding_gives_way_to_the_thread_that_launches_kernels(decoder: str) -> None:
    """Threads of a loader beside a GPU have a lower priority; the caller keeps its own."""
    from mobilenext.data.decoders import DECODERS

    if DECODERS[decoder].missing(None) is not None:
        pytest.skip(f"no decoder {decoder} here")

    def niceness() -> dict[int, int]:
        threads = map(int, os.listdir("/proc/self/task"))
        return {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}

    for device, expected in (("cpu", 0), ("cuda", loading.DECODING_NICE)):
        before = niceness()
        batches = train_loader(
            DIGITS.train, train_transform(24), seed=7, global_batch_size=96, workers=2,
            decoder=decoder, device=torch.device(device),
        )  # fmt: skip
        take(batches, 0, 2)
        after = niceness()
        own = {after[thread] - after[os.getpid()] for thread in after.keys() - before.keys()}
        assert own == {expected}
        assert after[os.getpid()] == before[os.getpid()]
        batches.close()
