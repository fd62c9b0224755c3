"""The system is asked for images before they are read, and for no others."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from torch import Tensor

from mobilenext import files
from mobilenext.data import (
    digits,
    eval_loader,
    eval_transform,
    image_folder,
    stored,
    synthetic,
    train_loader,
    train_transform,
)
from mobilenext.data.encoded import HasReadAhead
from mobilenext.data.loader import Loader
from mobilenext.data.orders import epoch_order
from mobilenext.data.pack import PackImages
from mobilenext.data.sources import ListedFiles
from mobilenext.data.stored import Names, StoredImages
from mobilenext.errors import InputError
from tests.data.test_loader import assert_same
from tests.data.test_pack import pack  # noqa: F401

pytestmark = pytest.mark.skipif(
    not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise"
)

DIGITS = digits()
BATCH = 16
SECONDS = 60
"""Longest wait for another thread."""


class Noting:
    """Digits that note what is asked for and what is read, and may wait before it is read."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.gate = gate
        self.asked: list[tuple[int, ...]] = []
        self.read: set[int] = set()
        self.late: list[int] = []
        """Images that were asked for when they had been read."""

    def __len__(self) -> int:
        return len(DIGITS.train)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        if self.gate is not None:
            assert self.gate.wait(SECONDS)
        self.read.add(index)
        return DIGITS.train[index]

    def targets(self, indices: np.ndarray) -> Tensor:
        return DIGITS.train.targets(indices)

    def read_ahead(self, indices: np.ndarray) -> None:
        self.asked.append(tuple(indices.tolist()))
        self.late += [index for index in indices.tolist() if index in self.read]


def loader(images: Any, readahead: int | None, workers: int = 1) -> Loader:
    return train_loader(
        images, train_transform(8), seed=7, global_batch_size=BATCH, workers=workers,
        readahead=readahead, decoder="pillow",
    )  # fmt: skip


def batches(epoch: int) -> list[tuple[int, ...]]:
    order = epoch_order(len(DIGITS.train), 7, epoch).tolist()
    whole = len(order) // BATCH * BATCH
    return [tuple(order[start : start + BATCH]) for start in range(0, whole, BATCH)]


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_batches_are_asked_for_before_they_are_read() -> None:
    gate = threading.Event()
    images = Noting(gate)
    made = loader(images, 3)
    made.prefetch(0)
    expected = batches(0)
    ahead = made.ahead  # pyright: ignore[reportAttributeAccessIssue]
    # Nothing has been read, those being made are not asked for, and no more than three behind them.
    eventually(lambda: len(images.asked) == 3)
    assert images.asked == expected[ahead : ahead + 3]
    gate.set()
    for number, _ in enumerate(made.epoch(0)):
        coming = min(len(expected), ahead + number + 1 + 3)
        eventually(lambda coming=coming: len(images.asked) == coming - ahead)
        assert images.asked[-1] == expected[coming - 1]
    made.close()
    assert images.asked == expected[ahead:]  # each once, in their order
    assert not images.late


def test_nothing_is_asked_for_beyond_an_epoch_or_after_its_end() -> None:
    images = Noting()
    made = loader(images, 8)
    expected = batches(1)
    ahead = made.ahead  # pyright: ignore[reportAttributeAccessIssue]
    # From the middle on, with fewer batches left than might be asked for.
    start = len(expected) - ahead - 4
    assert sum(1 for _ in made.epoch(1, start)) == ahead + 4
    assert set(images.asked) <= set(expected[start + ahead :])
    images.asked.clear()
    assert sum(1 for _ in made.epoch(1, len(expected) - 2)) == 2
    assert images.asked == []
    made.close()


def test_an_epoch_that_is_given_up_asks_for_nothing_more() -> None:
    images = Noting()
    made = loader(images, 8)
    made.prefetch(4)
    made.prefetch(5)  # the first one is given up
    running = made.epoch(5)
    next(running)
    running.close()  # pyright: ignore[reportAttributeAccessIssue]
    made.close()
    asked = len(images.asked)
    assert asked <= 2 * 8 + 1
    assert set(images.asked) <= {*batches(4), *batches(5)}
    time.sleep(0.05)
    assert len(images.asked) == asked
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_a_question_that_comes_too_late_is_not_asked() -> None:
    """Where the system answers slowly, decoding does not wait for it."""
    gate = threading.Event()

    class Slow(Noting):
        def read_ahead(self, indices: np.ndarray) -> None:
            super().read_ahead(indices)
            assert gate.wait(SECONDS)

    images = Slow()
    made = loader(images, 4)
    count = sum(1 for _ in made.epoch(0))
    assert count == len(batches(0))
    assert len(images.asked) == 1
    gate.set()
    made.close()


def test_what_is_no_question_of_files_is_a_bug() -> None:
    class Broken(Noting):
        def read_ahead(self, indices: np.ndarray) -> None:
            raise ZeroDivisionError

    made = loader(Broken(), 4)
    with pytest.raises(ZeroDivisionError):
        list(made.epoch(0))
    made.close()


def test_nothing_is_asked_for_by_default_or_without_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = Noting()
    for readahead, workers in ((None, 1), (0, 1), (4, 0)):
        made = loader(images, readahead, workers)
        list(made.epoch(0))
        made.close()
    monkeypatch.delattr(os, "posix_fadvise")
    made = loader(images, 4)
    list(made.epoch(0))
    made.close()
    assert images.asked == []


def test_sources_that_cannot_be_asked_are_refused() -> None:
    message = "data.readahead=2: expected images in files as they are .*, got ArrayImages"
    with pytest.raises(InputError, match=message):
        loader(DIGITS.train, 2)
    with pytest.raises(InputError, match=message):
        eval_loader(DIGITS.val, eval_transform(8), batch_size=8, readahead=2)
    with pytest.raises(InputError, match="got SyntheticImages"):
        loader(synthetic(20, 20, 4, 8).train, 2)


@pytest.mark.parametrize("evaluates", [False, True])
def test_pixels_are_the_same(photo_folder: Path, evaluates: bool) -> None:
    images = image_folder(str(photo_folder)).train
    assert isinstance(images, HasReadAhead)

    def made(readahead: int | None) -> list[tuple[Tensor, Tensor]]:
        options: dict[str, Any] = {"workers": 2, "readahead": readahead}
        if evaluates:
            batches = eval_loader(images, eval_transform(24), batch_size=1, **options)
        else:
            batches = train_loader(
                images, train_transform(24), seed=0, global_batch_size=1, **options
            )
        taken = [*batches.epoch(0), *batches.epoch(1)]
        batches.close()
        return taken

    assert_same(made(None), made(4))


Asked = list[tuple[str, int, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the system is asked for: name of the file, beginning and length."""
    found: Asked = []

    def note(descriptor: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        found.append((os.path.basename(name), start, length))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc/self/fd to name open files by")
    monkeypatch.setattr(os, "posix_fadvise", note)
    return found


def test_files_are_asked_for_as_a_whole(tmp_path: Path, asked: Asked) -> None:
    large = 2 * files.ASKED_AT_ONCE + 5
    for name, size in (("a.jpg", 10), ("b.jpg", large), ("empty.jpg", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    images = ListedFiles(tmp_path, np.array([b"a.jpg", b"b.jpg", b"empty.jpg"]))
    images.read_ahead(np.array([1, 2, 0]))
    step = files.ASKED_AT_ONCE
    assert asked == [("b.jpg", 0, step), ("b.jpg", step, step), ("b.jpg", 2 * step, 5),
                     ("a.jpg", 0, 10)]  # fmt: skip


def test_nothing_is_said_of_files_that_cannot_be_read(tmp_path: Path, asked: Asked) -> None:
    (tmp_path / "good.jpg").write_bytes(b"123")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opened as files are, it would be waited for without end
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    names = [b"missing.jpg", b"folder.jpg", b"pipe.jpg", b"loop.jpg", b"b\xe4d.jpg", b"good.jpg"]
    ListedFiles(tmp_path, np.array(names)).read_ahead(np.arange(6))
    assert asked == [("good.jpg", 0, 3)]


def test_a_system_that_refuses_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(29, "Illegal seek")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    (tmp_path / "a.jpg").write_bytes(b"123")
    ListedFiles(tmp_path, np.array([b"a.jpg"])).read_ahead(np.array([0]))


@pytest.mark.parametrize("stays_open", [True, False])
def test_neighbouring_parts_of_files_are_one(
    tmp_path: Path, asked: Asked, stays_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stays_open:
        monkeypatch.setattr(stored, "most_open", lambda: 0)
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(bytes(10))
    far = 100 + 50 + stored.GAP + 1
    file = np.array([1, 0, 0, 0, 1, 0], np.uint32)
    offset = np.array([100, 100, far, 150, 0, 110], np.uint64)  # the last lies inside of another
    length = np.array([7, 50, 9, stored.GAP - 3, 100, 20], np.uint32)
    images = StoredImages(paths, file, offset, length, np.zeros(6, int), Names.of(list("abcdef")))
    images.read_ahead(np.array([3, 0, 1, 4, 5]))
    assert asked == [("a", 100, 50 + stored.GAP - 3), ("b", 0, 107)]
    asked.clear()
    images.read_ahead(np.array([2, 1]))
    assert asked == [("a", 100, 50), ("a", far, 9)]
    asked.clear()
    images.read_ahead(np.array([], np.int64))
    assert asked == []
    if not stays_open:
        paths[0].unlink()
        images.read_ahead(np.array([1, 0]))
        assert asked == [("b", 100, 7)]


def test_packs_are_asked_for_with_their_segment_tables(pack: Path, asked: Asked) -> None:  # noqa: F811
    images = PackImages(pack, "train")
    for index in range(len(images)):
        asked.clear()
        images.read_ahead(np.array([index]))
        row = images.index[index]
        size = int(row["length"]) + 2 * int(row["segments"])
        assert asked == [(images.files[row["shard"]].name, int(row["offset"]), size)]


def test_the_decoder_names_what_is_missing(photo_folder: Path) -> None:
    images = image_folder(str(photo_folder)).train
    (photo_folder / "train" / "flower" / "3.jpg").unlink()
    made = train_loader(
        images, train_transform(8), seed=0, global_batch_size=1, workers=1, readahead=2
    )
    with pytest.raises(InputError, match=r"flower/3\.jpg: expected an image file"):
        list(made.epoch(0))
    made.close()
