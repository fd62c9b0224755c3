"""Images in a few large files, read in parts by Python and by native code; files that change."""

import importlib.util
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import image_folder, native, stored, train_loader, train_transform
from mobilenext.data.pack import PackImages, open_pack
from mobilenext.data.stored import Names, OpenFiles, StoredImages
from mobilenext.errors import InputError
from tests.data.test_pack import write
from tests.items import bytes_of

CUT = 1000
"""Bytes that are left of a file that is cut short: less than an image."""

DECODERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(missing, reason=f"the decoder {name} is not installed"),
    )
    for name, missing in (
        ("native", native.library() is None),
        ("simplejpeg", importlib.util.find_spec("simplejpeg") is None),
        ("pillow", False),
    )
]


@pytest.fixture(params=[True, False], ids=["open", "opened for each read"])
def stay_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether files stay open, or are too many for that."""
    if not request.param:
        monkeypatch.setattr(stored, "most_open", lambda: 0)
    return request.param


@pytest.fixture
def images(photo_folder: Path, tmp_path: Path) -> StoredImages:
    """The 24 images of a class folder, eight in each of three files, between other bytes."""
    folder: Any = image_folder(str(photo_folder)).train
    files, places = [tmp_path / f"{number}.tar" for number in range(3)], []
    for number, path in enumerate(files):
        with path.open("wb") as file:
            for index in range(8 * number, 8 * number + 8):
                file.write(b"header")
                places.append((number, file.tell(), len(folder.read(index))))
                file.write(folder.read(index))
            file.write(b"end")
    file, offset, length = np.array(places).T
    names = Names.of([f"{index}.jpg" for index in range(24)])
    return StoredImages(files, file, offset, length, folder.labels, names)


def open_files() -> int:
    """How many this process has."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc/self/fd to count open files by")
    return len(os.listdir("/proc/self/fd"))


def test_parts_of_files(stay_open: bool, images: StoredImages, photo_folder: Path) -> None:
    expected: Any = image_folder(str(photo_folder)).train
    order = np.random.default_rng(0).permutation(24)
    located = images.locate(order)
    assert bool(located.items["path"].all()) is not stay_open
    for item, index in zip(located.items, order.tolist(), strict=True):
        assert images.read(index) == bytes_of(item) == expected.read(index)
        assert images.name(index).endswith(f"{index // 8}.tar: {index}.jpg")
    again = pickle.loads(pickle.dumps(images))
    assert again.read(9) == expected.read(9)
    assert again[9][1] == expected[9][1]


@pytest.mark.skipif(native.library() is None, reason="the native decoder was not built")
def test_native_code_reads_parts_of_files(stay_open: bool, images: StoredImages) -> None:
    pool, located = native.Pool(2), images.locate(np.arange(24))
    pool.load(located.items, 1 << 20)
    assert located.items["status"].tolist() == [native.OK] * 24
    assert [bytes_of(item) for item in located.items] == [images.read(i) for i in range(24)]
    pool.release(located.items)
    assert not located.items["data"].any()
    pool.close()


@pytest.mark.skipif(native.library() is None, reason="the native decoder was not built")
def test_places_that_cannot_be_are_a_status(stay_open: bool, images: StoredImages) -> None:
    size = images.files[0].stat().st_size
    places = [
        (0, 0),
        (6, 0),
        (-1, 10),
        (-(2**62), 10),
        (size, 1),
        (size - 5, 6),
        (2**62, 9),
        (0, 2**40),
    ]
    expected = [
        *[native.EMPTY] * 2, *[native.UNREADABLE] * 5, native.TOO_LARGE,
    ]  # fmt: skip
    images.offset, images.length = (
        np.array(column, np.int64) for column in zip(*places, strict=True)
    )
    images.file = np.zeros(len(places), np.int64)
    pool, located = native.Pool(2), images.locate(np.arange(len(places)))
    pool.load(located.items, 1 << 20)
    pool.close()
    assert located.items["status"].tolist() == expected
    assert not located.items["owned"].any()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["pack", "tars"])
def test_a_file_cut_short_while_it_is_in_use_is_named(
    stay_open: bool, kind: str, decoder: str, images: StoredImages, photo_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A mapping of it would end the process by SIGBUS."""
    used: StoredImages = images
    if kind == "pack":
        packed = open_pack(write(photo_folder, tmp_path / "pack")).train
        assert isinstance(packed, PackImages)
        used = packed
    cut = used.files[1]
    inside = set(np.flatnonzero(used.file == 1).tolist())
    batches = train_loader(used, train_transform(16), seed=0, global_batch_size=24, decoder=decoder)
    skipping = train_loader(
        used, train_transform(16), seed=0, global_batch_size=24, decoder=decoder,
        on_bad_image="skip",
    )  # fmt: skip
    os.truncate(cut, CUT)
    message = rf"^{cut}: expected at least \d+ bytes, up to the end of \S+, got {CUT}: the file was"
    with pytest.raises(InputError, match=message):
        list(batches.epoch(0))
    assert len(list(skipping.epoch(0))) == 1
    assert set(skipping.unreadable) == inside
    for text in skipping.unreadable.values():
        assert text.startswith(f"{cut}: expected at least")
    batches.close()
    skipping.close()


@pytest.mark.skipif(native.library() is None, reason="the native decoder was not built")
def test_what_could_not_be_read_is_not_taken_for_verified(
    photo_folder: Path, tmp_path: Path
) -> None:
    images = open_pack(write(photo_folder, tmp_path / "pack")).train
    assert isinstance(images, PackImages)
    cut = images.files[1]
    whole = cut.read_bytes()
    batches = train_loader(
        images, train_transform(16), seed=0, global_batch_size=24, decoder="native",
        on_bad_image="skip",
    )  # fmt: skip
    os.truncate(cut, CUT)
    list(batches.epoch(0))
    batches.close()
    cut.write_bytes(whole)
    verify = images.locate(np.arange(24)).items["verify"]
    np.testing.assert_array_equal(verify, images.file == 1)


def test_files_are_closed(stay_open: bool, images: StoredImages) -> None:
    before = open_files()
    again = pickle.loads(pickle.dumps(images))
    assert open_files() - before == (3 if stay_open else 0)
    located = again.locate([0])
    del again
    assert open_files() - before == (3 if stay_open else 0), "items are still in use"
    del located
    assert open_files() == before


def test_most_files_of_the_process_stay_free(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for limit, most in ((1024, 256), (3, 0)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert stored.most_open() == most
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert stored.most_open() > 1_000_000


def test_what_is_no_regular_file_is_refused(stay_open: bool, tmp_path: Path) -> None:
    """A named pipe would be waited for without end."""
    del stay_open
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"1")
    before = open_files()
    for name, what in (("pipe", "a named pipe"), (".", "a folder")):
        with pytest.raises(InputError, match=f"expected a regular file, got {what}"):
            OpenFiles([tmp_path / "file", tmp_path / name])
    with pytest.raises(InputError, match=r"none: expected a file that can be read \(No such file"):
        OpenFiles([tmp_path / "file", tmp_path / "none"])
    assert open_files() == before


def test_a_file_that_went_after_it_was_opened(stay_open: bool, images: StoredImages) -> None:
    data = images.read(8)
    shutil.rmtree(images.files[1].parent)
    if stay_open:
        assert images.read(8) == data
    else:
        with pytest.raises(InputError, match=r"1.tar: expected a file that can be read \(No such"):
            images.read(8)
