"""Orders of an epoch: permutations that keep neighbours together, or don't."""

import numpy as np
import pytest
import torch

from mobilenext.data import digits, train_loader, train_transform
from mobilenext.data import loader as loading
from mobilenext.data.loader import Loader
from mobilenext.data.orders import BLOCK, WINDOW, check_order, epoch_order, likeness
from mobilenext.data.sources import ArrayImages
from mobilenext.errors import InputError
from tests.data.test_loader import assert_same, take

DIGITS = digits()
ONE_WINDOW = (2 * WINDOW - 1) * BLOCK
"""Images that are shuffled as a whole, at most."""


def blocks(length: int, seed: int = 7, epoch: int = 0) -> torch.Tensor:
    return epoch_order(length, seed, epoch, "blocks")


@pytest.mark.parametrize(
    "length",
    [1, 2, 1023, 1024, 1025, 1437, 32 * 1024, 33 * 1024 + 1, ONE_WINDOW, ONE_WINDOW + 1,
     64 * 1024, 64 * 1024 + 1, 100_000, 1_281_167],
)  # fmt: skip
def test_blocks_are_a_permutation(length: int) -> None:
    order = blocks(length)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(length))


def test_blocks_depend_on_seed_and_epoch_only() -> None:
    torch.manual_seed(1)
    order = blocks(100_000)
    torch.manual_seed(2)
    assert torch.equal(order, blocks(100_000))
    for other in (blocks(100_000, epoch=1), blocks(100_000, seed=8), epoch_order(100_000, 7, 0)):
        assert not torch.equal(order, other)
    other = epoch_order(100_000, 7, 0, "blocks", purpose="other")
    assert not torch.equal(order, other)


def test_images_are_read_from_few_blocks_at_a_time() -> None:
    length = 200_000
    count = -(-length // BLOCK)
    order = blocks(length).numpy()
    numbers = order // BLOCK
    first, last = np.full(count, length), np.zeros(count, np.int64)
    np.minimum.at(first, numbers, np.arange(length))
    np.maximum.at(last, numbers, np.arange(length))
    for place in range(0, length, 5000):
        assert ((first <= place) & (place <= last)).sum() < 2 * WINDOW
    # A block is used up within its window, and a batch has images of most blocks of its window.
    assert (last - first).max() < 2 * WINDOW * BLOCK
    assert min(len(set(part)) for part in np.array_split(numbers, length // 256)) > WINDOW / 2
    # Blocks that come together are no neighbours, in other epochs they are others.
    together = set(numbers[:5000].tolist())
    assert max(together) - min(together) > count / 2
    assert together != set((blocks(length, epoch=1).numpy()[:5000] // BLOCK).tolist())


def test_a_small_split_is_shuffled_as_a_whole() -> None:
    order = blocks(1000).numpy()
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    order = blocks(ONE_WINDOW).numpy()
    assert abs(np.corrcoef(order, np.arange(ONE_WINDOW))[0, 1]) < 0.02


def of_labels(labels: np.ndarray) -> ArrayImages:
    return ArrayImages(np.zeros((1, 1, 1, 3), np.uint8), labels)


def test_images_sorted_by_class_are_refused() -> None:
    labels = np.repeat(np.arange(100), 1000)
    message = r"data.order=blocks: expected neighbouring images to be of different classes, .*order"
    for classes in (100, 2):
        with pytest.raises(InputError, match=message):
            check_order("blocks", of_labels(labels * classes // 100))
    # Tars of four classes each, shuffled within; and class folders packed by eight threads.
    random = np.random.default_rng(0)
    in_tars = labels.reshape(-1, 4000).copy()
    random.permuted(in_tars, axis=1, out=in_tars)
    in_turns = labels[:96_000].reshape(-1, 8, 1000).transpose(0, 2, 1)
    for some in (in_tars, in_turns):
        with pytest.raises(InputError, match=message):
            check_order("blocks", of_labels(some.reshape(-1)))
    check_order("shuffled", of_labels(labels))
    check_order("blocks", of_labels(random.permutation(labels)))
    check_order("blocks", of_labels(np.repeat(np.arange(63), BLOCK)))  # one window


def test_classes_of_any_sizes_may_come_in_blocks() -> None:
    """Neighbours of one class are no sign of order where most images are of it."""
    random = np.random.default_rng(0)
    for labels in (random.random(100_000) < 0.1, np.zeros(100_000, np.int64)):
        check_order("blocks", of_labels(labels.astype(np.int64)))
    long_tail = np.minimum(random.geometric(0.002, 100_000), 5000)
    assert likeness(long_tail) == pytest.approx(0, abs=1e-3)
    assert likeness(np.sort(long_tail)) > 0.05


def loader(rank: int = 0, world_size: int = 1, share: float | None = None) -> Loader:
    return train_loader(
        DIGITS.train, train_transform(16), seed=7, global_batch_size=96, rank=rank,
        world_size=world_size, workers=world_size % 3, order="blocks", paired_share=share,
    )  # fmt: skip


@pytest.mark.parametrize("share", [None, 0.5])
def test_blocks_are_the_same_for_any_world_size(
    share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenext.data.orders.BLOCK", 8)
    monkeypatch.setattr("mobilenext.data.orders.WINDOW", 4)
    monkeypatch.setattr(loading, "check_order", lambda *_: None)  # digits are in no order
    whole = take(loader(share=share), 2, 4)
    for world_size in (2, 4):
        ranks = [loader(rank, world_size, share) for rank in range(world_size)]
        shares = zip(*(take(rank, 2, 4) for rank in ranks), strict=True)
        joined = [tuple(map(torch.cat, zip(*share, strict=True))) for share in shares]
        assert_same(whole, joined)
        for rank in ranks:
            rank.close()
    resumed = loader(share=share)
    assert_same(take(resumed, 2, 2, first_batch=2), whole[2:])
    plain = train_loader(
        DIGITS.train, train_transform(16), seed=7, global_batch_size=96, paired_share=share
    )
    assert not torch.equal(take(plain, 2, 1)[0][0], whole[0][0])


def test_both_parts_of_pairs_come_in_blocks() -> None:
    length, batch = 300_000, 96
    indices = loading._PairedIndices(length, 7, batch, 0, 1, 0.5, "blocks")
    some = np.stack([pair for _, pair in zip(range(50), indices.batches(0, 0), strict=False)])
    for part, side in zip(indices.parts, (0, 1), strict=True):
        seen = some.reshape(-1, 2)[:, side]
        assert len(set((np.searchsorted(part, seen) // BLOCK).tolist())) < 2 * WINDOW
