"""The decoder of native/ against Pillow, and against files that are not as they should be."""

import ctypes
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mobilenext.data import (
    eval_transform,
    image_folder,
    native,
    pillow,
    restart,
    train_loader,
    train_transform,
)
from mobilenext.data.encoded import ITEM, VIEW
from mobilenext.data.sources import ArrayImages
from mobilenext.data.transforms import Transform
from tests import fuzz_native
from tests.commands import REPO
from tests.jpegs import BASELINE, OTHERS, framed, of_kind, part, photo, pixels, saved, segment

pytestmark = pytest.mark.skipif(
    native.library() is None, reason="the native decoder was not built (no C compiler?)"
)

MOST = 4_000_000
Box = tuple[int, int, int, int]


@pytest.fixture
def pool() -> Iterator[native.Pool]:
    opened = native.Pool(2)
    yield opened
    opened.close()


@pytest.fixture
def with_libjpeg() -> None:
    loaded = native.library()
    if loaded is None or not loaded.mn_libjpeg():
        pytest.skip("the native decoder was built without libjpeg-turbo's headers")


def items_of(files: Sequence[bytes], tables: Sequence[np.ndarray | None] = ()) -> np.ndarray:
    """Items of files in memory; the files and tables have to live as long."""
    items = np.zeros(len(files), ITEM)
    for item, data in zip(items, files, strict=True):
        item["data"] = np.frombuffer(data, np.uint8).ctypes.data if data else 0
        item["length"] = len(data)
    for item, table in zip(items, tables, strict=False):
        if table is not None:
            item["segments"], item["num_segments"] = table.ctypes.data, len(table)
    return items


def view_of(
    box: Sequence[float], limits: Sequence[int] | None = None, filter: int = 0, flip: int = 0
) -> np.ndarray:
    views = np.zeros(1, VIEW)
    views["box"], views["limits"] = box, box if limits is None else limits
    views["filter"], views["flip"] = filter, flip
    return views


def loaded(pool: native.Pool, files: Sequence[bytes], tables=(), most: int = MOST) -> np.ndarray:
    items = items_of(files, tables)
    pool.load(items, most)
    return items


def decoded(
    pool: native.Pool, items: np.ndarray, views: np.ndarray, width: int, height: int
) -> np.ndarray:
    out = np.zeros((len(items), height, width, 3), np.uint8)
    pool.decode(items, views, out)
    return out


def cropped(
    pool: native.Pool, data: bytes, box: Box, table: np.ndarray | None = None
) -> tuple[int, np.ndarray]:
    """Status and pixels of a part of an image, as they are."""
    items = loaded(pool, [data], [table])
    if items["status"][0]:
        return int(items["status"][0]), np.zeros(0)
    width, height = box[2] - box[0], box[3] - box[1]
    out = decoded(pool, items, view_of(box), width, height)[0]
    return int(items["status"][0]), out


def box_in(random: np.random.Generator, width: int, height: int) -> Box:
    left, top = int(random.integers(0, width)), int(random.integers(0, height))
    right, bottom = random.integers(left + 1, width + 1), random.integers(top + 1, height + 1)
    return left, top, int(right), int(bottom)


def assert_crops_are_pillows(pool: native.Pool, data: bytes, random: np.random.Generator) -> None:
    expected = pixels(data)
    height, width = expected.shape[:2]
    for box in [(0, 0, width, height), *(box_in(random, width, height) for _ in range(3))]:
        status, found = cropped(pool, data, box)
        assert status == native.OK
        assert np.array_equal(found, expected[box[1] : box[3], box[0] : box[2]]), (
            f"{width} x {height}: {box}"
        )


def far(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute difference, of 255."""
    return float(np.abs(found.astype(np.float64) - expected).mean())


@pytest.mark.usefixtures("with_libjpeg")
@pytest.mark.parametrize("kind", BASELINE + OTHERS)
def test_crops_of_small_images_have_pillows_pixels(pool: native.Pool, kind: str) -> None:
    """Very narrow ones too, whose chroma libjpeg treats in its own way."""
    random = np.random.default_rng(1)
    for size in range(1, 41):
        for width, height in ((size, int(random.integers(1, 41))), (41 - size, size)):
            assert_crops_are_pillows(pool, of_kind(kind, part(random, width, height)), random)


@pytest.mark.parametrize("kind", BASELINE + OTHERS)
def test_crops_of_large_images_have_pillows_pixels(pool: native.Pool, kind: str) -> None:
    if kind in OTHERS and not pool.library.mn_libjpeg():
        pytest.skip("the native decoder was built without libjpeg-turbo's headers")
    random = np.random.default_rng(2)
    for size in ((640, 427), (333, 250), (48, 400)):
        assert_crops_are_pillows(pool, of_kind(kind, part(random, *size)), random)


@pytest.mark.parametrize("kind", BASELINE)
def test_the_usual_kinds_need_no_libjpeg(pool: native.Pool, kind: str) -> None:
    """`mn_entropy` never falls back on it."""
    data = of_kind(kind, photo())  # items only point to it
    items = loaded(pool, [data])
    width, height = int(items["width"][0]), int(items["height"][0])
    pool.entropy(items, view_of((0, 0, width, height)))
    assert items["status"].tolist() == [native.OK]


def test_any_quality_has_pillows_pixels(pool: native.Pool) -> None:
    random = np.random.default_rng(3)
    for quality in range(1, 101):
        image = part(random, 71, 50)
        data = saved(image, quality=quality, subsampling=quality % 3)
        assert_crops_are_pillows(pool, data, random)


def views_and_pixels(
    pool: native.Pool, transform: Transform, files: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """What the native decoder makes of the files, and what Pillow does."""
    items = loaded(pool, files)
    assert not items["status"].any()
    sizes = np.stack([items["width"], items["height"]], axis=1).astype(np.int64)
    views = transform.views(sizes, np.arange(len(files)), 0, 0)
    size = transform.image_size
    found = decoded(pool, items, views, size, size)
    assert not items["status"].any()
    images = [PIL.Image.fromarray(pixels(data)) for data in files]
    rendered = [transform.render(image, view) for image, view in zip(images, views, strict=True)]
    return found, np.stack(rendered)


@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 0.2), ("bicubic", 0.25)])
@pytest.mark.parametrize("train", [True, False])
def test_resized_as_pillow_does(
    pool: native.Pool, train: bool, interpolation: str, most: float
) -> None:
    transform = (
        train_transform(96, interpolation=interpolation)
        if train
        else eval_transform(96, interpolation=interpolation)
    )
    sizes = [(640, 427), (300, 400), (160, 131), (80, 90)] * 4
    files = [saved(photo().resize(size), quality=90) for size in sizes]
    found, expected = views_and_pixels(pool, transform, files)
    assert far(found, expected) < most
    for one, other in zip(found, expected, strict=True):
        assert far(one, other) < most + 0.05
    # Rows are done before columns, not after them: what bicubic cuts off at 0 and 255 is not the
    # same.
    assert np.abs(found.astype(int) - expected).max() <= (1 if interpolation == "bilinear" else 8)


@pytest.mark.parametrize("box", [(10, 20, 11, 21), (0, 0, 1, 60), (3, 7, 6, 9), (50, 40, 64, 48)])
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("filter", [0, 1])
def test_enlarges_tiny_crops(pool: native.Pool, box: Box, flip: int, filter: int) -> None:
    data = saved(part(np.random.default_rng(4), 64, 60))
    items = loaded(pool, [data])
    found = decoded(pool, items, view_of(box, filter=filter, flip=flip), 50, 40)[0]
    how = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)[filter]
    image = PIL.Image.fromarray(pixels(data)).crop(box).resize((50, 40), how)
    expected = np.asarray(image)[:, ::-1] if flip else np.asarray(image)
    assert far(found, expected) < (0.3, 0.5)[filter]


def test_shrinks_a_large_image_to_a_tiny_one(pool: native.Pool) -> None:
    image = photo().resize((3000, 2000))
    data = saved(image, quality=80)
    items = loaded(pool, [data], most=10_000_000)
    for filter, how in enumerate((PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)):
        view = view_of((0, 0, 3000, 2000), filter=filter)
        found = decoded(pool, items, view, 32, 32)[0]
        assert far(found, np.asarray(PIL.Image.fromarray(pixels(data)).resize((32, 32), how))) < 0.6


def test_a_grey_picture_stays_as_grey_as_it_was(pool: native.Pool) -> None:
    data = saved(PIL.Image.new("L", (301, 211), 177))
    items = loaded(pool, [data])
    for size in (1, 7, 40, 300, 500):
        found = decoded(pool, items, view_of((3, 5, 300, 207), filter=1), size, size)
        assert (found == pixels(data)[0, 0]).all()


def test_vector_instructions_change_no_bit(pool: native.Pool) -> None:
    library = pool.library
    path = library.mn_path()
    if library.mn_use_path(b"portable") or path == b"portable":
        library.mn_use_path(path)
        pytest.skip(f"this processor has one path only: {path.decode()}")
    random = np.random.default_rng(5)
    images = [part(random, *size) for size in ((640, 427), (97, 61), (33, 21))]
    files = [of_kind(kind, image) for kind in BASELINE for image in images]
    items = loaded(pool, files)
    views = np.concatenate(
        [
            view_of(
                box_in(random, int(item["width"]), int(item["height"])),
                (0, 0, int(item["width"]), int(item["height"])),
                filter=number % 2,
                flip=number // 2 % 2,
            )
            for number, item in enumerate(items)
        ]
    )
    seen = []
    try:
        for name in (path, b"portable"):
            assert library.mn_use_path(name) == 0
            assert library.mn_path() == name
            seen += [decoded(pool, items, views, size, size) for size in (1, 31, 64)]
    finally:
        library.mn_use_path(path)
    assert not items["status"].any()
    for one, other in zip(seen[:3], seen[3:], strict=True):
        assert np.array_equal(one, other)
    assert library.mn_use_path(b"of another planet") == -1


def test_same_pixels_for_any_number_of_threads() -> None:
    random = np.random.default_rng(6)
    files = [of_kind(kind, part(random, 200, 150)) for kind in BASELINE * 3]
    seen = []
    for threads in (1, 2, 4):
        pool = native.Pool(threads)
        seen.append(views_and_pixels(pool, train_transform(48), files)[0])
        pool.close()
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])


def test_several_threads_may_use_one_pool(pool: native.Pool) -> None:
    random = np.random.default_rng(7)
    batches = [[of_kind(kind, part(random, 150, 120)) for kind in BASELINE] for _ in range(6)]
    transform = train_transform(48)
    alone = [views_and_pixels(pool, transform, files)[0] for files in batches]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            together = threads.map(lambda b: views_and_pixels(pool, transform, b)[0], batches)
            for one, other in zip(alone, together, strict=True):
                assert np.array_equal(one, other)


def test_a_pool_closes_once_it_has_nothing_to_do() -> None:
    pool = native.Pool(2)
    files = [saved(photo())] * 40
    running = threading.Thread(target=lambda: loaded(pool, files))
    running.start()
    running.join()
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="the pool is closed"):
        loaded(pool, files)


def test_says_what_is_wrong_with_a_file_and_leaves_its_neighbours_alone(
    pool: native.Pool, tmp_path: Path
) -> None:
    good = saved(part(np.random.default_rng(8), 90, 70))
    broken_table = bytearray(good)
    at, _ = segment(good, 0xDB)
    broken_table[at + 4] = 0x55
    files = {
        "good.jpg": (good, native.OK),
        "zero.jpg": (b"", native.EMPTY),
        "text.jpg": (b"this is no picture", native.NOT_JPEG),
        "one.jpg": (b"\xff", native.NOT_JPEG),
        "png.jpg": (b"\x89PNG\r\n\x1a\n" + bytes(100), native.NOT_JPEG),
        "half.jpg": (good[: len(good) // 2], native.TRUNCATED),
        "header.jpg": (good[:200], native.TRUNCATED),
        "unended.jpg": (good[:-2], native.TRUNCATED),
        "corrupt.jpg": (bytes(broken_table), native.CORRUPT),
        "no scan.jpg": (good[: segment(good, 0xDA)[0]] + b"\xff\xd9", native.CORRUPT),
        "large.jpg": (framed(good, 30000, 30000), native.TOO_LARGE),
        "good too.jpg": (good, native.OK),
        "missing.jpg": (None, native.MISSING),
        "folder.jpg": (None, native.UNREADABLE),
        "pipe.jpg": (None, native.UNREADABLE),
        "good.jpg/below a file.jpg": (None, native.MISSING),
        "still good.jpg": (good, native.OK),
    }
    for name, (data, _) in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [os.fsencode(tmp_path / name) + b"\0" for name in files]
    items = np.zeros(len(files), ITEM)
    items["path"] = [np.frombuffer(name, np.uint8).ctypes.data for name in names]
    pool.load(items, MOST)
    expected = [status for _, status in files.values()]
    assert items["status"].tolist() == expected
    views = np.concatenate([view_of((0, 0, 90, 70))] * len(files))
    out = decoded(pool, items, views, 90, 70)
    assert items["status"].tolist() == expected
    pool.release(items)
    assert not items["owned"].any()
    for pixel, status in zip(out, expected, strict=True):
        assert np.array_equal(pixel, pixels(good) if status == native.OK else np.zeros_like(pixel))
    assert set(native.PROBLEMS) == set(range(1, 11))


def test_checksums_are_compared_if_asked_for(pool: native.Pool) -> None:
    good = saved(photo())
    items = items_of([good] * 3)
    items["checksum"] = zlib.crc32(good)
    items["verify"] = (1, 1, 0)
    items["checksum"][1:] ^= 4
    pool.load(items, MOST)
    assert items["status"].tolist() == [native.OK, native.CHECKSUM, native.OK]


def test_crc32_is_that_of_zlib() -> None:
    library = native.library()
    assert library is not None
    data = np.random.default_rng(9).integers(0, 256, 3000, np.uint8)
    for begin, end in ((0, 0), (0, 1), (3, 10), (1, 9), (5, 2999), (0, 3000)):
        chosen = data[begin:end]
        assert library.mn_crc32(chosen.ctypes.data, len(chosen)) == zlib.crc32(chosen.tobytes())


def test_views_that_cannot_be_are_refused(pool: native.Pool) -> None:
    data = saved(photo())
    nan = float("nan")
    for box, limits in (
        ((0, 0, 0, 5), (0, 0, 5, 5)),
        ((nan, 0, 5, 5), (0, 0, 5, 5)),
        ((0, 0, 1e300, 5), (0, 0, 5, 5)),
        ((0, 0, 5, 5), (-1, 0, 5, 5)),
        ((0, 0, 5, 5), (0, 0, 641, 5)),
        ((0, 0, 5, 5), (5, 0, 5, 5)),
    ):
        items = loaded(pool, [data])
        decoded(pool, items, view_of(box, limits), 8, 8)
        assert items["status"][0] == native.UNSUPPORTED


def refused_calls(pool: native.Pool) -> dict[str, Callable[[], object]]:
    """Calls whose arrays native code would read or write beyond."""
    items, views = np.zeros(2, ITEM), np.concatenate([view_of((0, 0, 4, 4))] * 2)
    out = np.zeros((2, 4, 4, 3), np.uint8)
    locked = np.zeros_like(out)
    locked.flags.writeable = False
    bad_items: dict[str, Any] = {
        "expected items of dtype ITEM": np.zeros(2, np.int64),
        "expected items of shape (N,), got (1, 2)": items[None],
        "expected items to be contiguous": np.zeros(4, ITEM)[::2],
        "expected items as a numpy array, got list": [0, 0],
    }
    bad_views: dict[str, Any] = {
        "expected views of dtype VIEW": np.zeros(2, ITEM),
        "expected views to be contiguous": np.concatenate([views] * 2)[::2],
        "expected 2 views, got 1": views[:1],
        "expected views of shape (N,), got ()": np.zeros((), VIEW),
    }
    bad_outs: dict[str, Any] = {
        "expected out of dtype uint8, got int8": out.astype(np.int8),
        "expected out of shape (2 or more, height, width, 3), got (1, 4, 4, 3)": out[:1],
        "expected out of shape (2 or more, height, width, 3), got (2, 4, 4, 4)": np.zeros(
            (2, 4, 4, 4), np.uint8
        ),
        "expected out of shape (2 or more, height, width, 3), got (2, 4, 3)": np.zeros(
            (2, 4, 3), np.uint8
        ),
        "expected out of shape (2 or more, height, width, 3), got (2, 0, 4, 3)": np.zeros(
            (2, 0, 4, 3), np.uint8
        ),
        "expected out to be contiguous": np.zeros((2, 4, 8, 3), np.uint8)[:, :, ::2],
        "expected out to be writable": locked,
    }
    calls: dict[str, Callable[[], object]] = {}
    for text, bad in bad_items.items():
        calls[f"load: {text}"] = partial(pool.load, bad, MOST)
        calls[f"decode: {text}"] = partial(pool.decode, bad, views, out)
        calls[f"resize: {text}"] = partial(pool.resize, bad, views, out)
        calls[f"entropy: {text}"] = partial(pool.entropy, bad, views)
        calls[f"release: {text}"] = partial(pool.release, bad)
    for text, bad in bad_views.items():
        calls[f"decode: {text}"] = partial(pool.decode, items, bad, out)
        calls[f"resize: {text}"] = partial(pool.resize, items, bad, out)
        calls[f"entropy: {text}"] = partial(pool.entropy, items, bad)
    for text, bad in bad_outs.items():
        calls[f"decode: {text}"] = partial(pool.decode, items, views, bad)
        calls[f"resize: {text}"] = partial(pool.resize, items, views, bad)
    for most in (-1, 2**63):
        calls[f"load: expected max_pixels of 0 to 2**63 - 1, got {most}"] = partial(
            pool.load, items, most
        )
    return calls


def unrefused_calls(pool: native.Pool) -> list[str]:
    """Those that raise something other than the `ValueError` that says why."""
    found = []
    for name, call in refused_calls(pool).items():
        try:
            call()
        except ValueError as error:
            if name.partition(": ")[2] not in str(error):
                found.append(f"{name}; got {error}")
        except Exception as error:
            found.append(f"{name}; got {type(error).__name__}")
        else:
            found.append(f"{name}; nothing was raised")
    return found


def test_arrays_that_native_code_would_leave_are_refused(pool: native.Pool) -> None:
    assert unrefused_calls(pool) == []


@pytest.mark.slow
def test_refused_without_assertions_too() -> None:
    program = (
        "from tests.data.test_native import native, unrefused_calls\n"
        "assert False, 'not reached with -O'\n"
        "found = unrefused_calls(native.Pool(1))\n"
        "raise SystemExit(chr(10).join(found) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", program],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_pixels_that_are_fewer_than_their_size_says_are_not_read(pool: native.Pool) -> None:
    grey = ArrayImages(np.full((1, 8, 8), 7, np.uint8), [0]).locate_pixels(np.array([0]))
    out = np.zeros((1, 4, 4, 3), np.uint8)
    pool.resize(grey.items, view_of((0, 0, 8, 8)), out)
    assert grey.items["status"].tolist() == [native.TRUNCATED]
    assert not out.any()


@pytest.mark.parametrize("filter", [0, 1])
def test_a_grey_picture_stays_grey_beyond_the_limits(pool: native.Pool, filter: int) -> None:
    """Beside the limits weights of both signs nearly cancel, and their ratios know no bounds."""
    random = np.random.default_rng(12)
    images = ArrayImages(np.full((1, 31, 29, 3), 177, np.uint8), [0])
    located = images.locate_pixels(np.array([0]))
    for number in range(400):
        left, top, right, bottom = box_in(random, 29, 31)
        far_away = random.choice([1.0, 3.0, 30.0, 1e3, 4e5])
        x0, y0 = left + random.uniform(-1, 1) * far_away, top + random.uniform(-1, 1) * far_away
        width, height = random.uniform(0.01, 1, 2) * random.choice([1.0, 30.0, far_away])
        items = located.items.copy()
        view = view_of((x0, y0, x0 + width, y0 + height), (left, top, right, bottom), filter)
        out = np.zeros((1, 13, 17, 3), np.uint8)
        pool.resize(items, view, out)
        assert items["status"].tolist() == [native.OK]
        assert (out == 177).all(), f"{number}: {view}"


def test_orientation_in_exif_is_ignored(pool: native.Pool) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = photo().crop((0, 0, 120, 80))
    data = saved(image, exif=exif)
    assert cropped(pool, data, (0, 0, 120, 80))[1].shape == (80, 120, 3)
    assert np.array_equal(cropped(pool, data, (0, 0, 120, 80))[1], pixels(saved(image)))


@pytest.mark.usefixtures("with_libjpeg")
def test_a_file_without_code_tables_gets_the_standard_ones(pool: native.Pool) -> None:
    """Not those of the file before, which libjpeg would keep."""
    image = photo().crop((0, 0, 120, 80))
    data = saved(image)
    while b"\xff\xc4" in data[: segment(data, 0xDA)[0]]:
        begin, end = segment(data, 0xC4)
        data = data[:begin] + data[end:]
    before = saved(photo(), progressive=True)
    one = native.Pool(1)
    for files in ([data], [before, data]):
        items = loaded(one, files)
        out = decoded(one, items, np.concatenate([view_of((0, 0, 120, 80))] * len(files)), 120, 80)
        assert not items["status"].any()
        assert np.array_equal(out[-1], pixels(saved(image)))
    one.close()


def test_headers_that_promise_too_much_are_refused_at_once(pool: native.Pool) -> None:
    """A kilobyte of file would else take a gigabyte of memory, in each thread."""
    files = [framed(saved(photo().crop((0, 0, 64, 64)), **settings), 13000, 13700)
             for settings in ({}, {"progressive": True}, {"restart_marker_blocks": 1})]  # fmt: skip
    started = time.perf_counter()
    items = loaded(pool, files, most=2**40)
    assert items["status"].tolist() == [native.TRUNCATED] * 3
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("kind", ["4:2:0", "progressive"])
def test_an_image_may_have_as_many_pixels_as_the_limit_says(pool: native.Pool, kind: str) -> None:
    if kind == "progressive" and not pool.library.mn_libjpeg():
        pytest.skip("the native decoder was built without libjpeg-turbo's headers")
    data = of_kind(kind, photo().crop((0, 0, 90, 70)))
    for most, status in ((90 * 70, native.OK), (90 * 70 - 1, native.TOO_LARGE)):
        assert loaded(pool, [data], most=most)["status"].tolist() == [status]


def test_more_pixels_than_32_bits_can_count_are_too_many(pool: native.Pool) -> None:
    files = [framed(saved(photo().crop((0, 0, 64, 64))), *size)
             for size in ((65500, 65500), (65500, 1), (1, 65500), (40000, 60000))]  # fmt: skip
    expected = [native.TOO_LARGE, native.OK, native.OK, native.TOO_LARGE]
    assert loaded(pool, files, most=65500)["status"].tolist() == expected


def test_the_decoder_of_batches_sets_the_limit(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, load = [], native.Pool.load

    def recording(pool: native.Pool, items: np.ndarray, max_pixels: int) -> None:
        limits.append(max_pixels)
        load(pool, items, max_pixels)

    monkeypatch.setattr(native.Pool, "load", recording)
    images = image_folder(str(photo_folder)).train
    batches = train_loader(
        images, train_transform(16), seed=0, global_batch_size=8, decoder="native"
    )
    list(batches.epoch(0))
    batches.close()
    assert set(limits) == {pillow.MOST_PIXELS}


def test_an_empty_picture_may_be_small(pool: native.Pool) -> None:
    expected = (native.OK,) if pool.library.mn_libjpeg() else (native.OK, native.UNSUPPORTED)
    for settings in ({}, {"progressive": True}, {"optimize": True}):
        data = saved(PIL.Image.new("RGB", (3000, 2000)), **settings)
        assert loaded(pool, [data], most=10_000_000)["status"][0] in expected


def resident() -> int:
    """Bytes of memory that this process has."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc/self/statm to read the process's memory from")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", ["4:2:0", "progressive"])
def test_what_a_huge_image_took_is_given_back(kind: str) -> None:
    library = native.library()
    assert library is not None
    if kind == "progressive" and not library.mn_libjpeg():
        pytest.skip("the native decoder was built without libjpeg-turbo's headers")
    data = of_kind(kind, photo().resize((5000, 4000), PIL.Image.Resampling.NEAREST))
    one = native.Pool(1)
    before = resident()
    items = loaded(one, [data], most=2**40)
    out = decoded(one, items, view_of((0, 0, 5000, 4000)), 32, 32)
    assert not items["status"].any()
    assert out.any()
    # A buffer keeps 16 MiB at most; the image's pixels alone take 80 MB.
    assert resident() - before < 60_000_000
    one.close()


# ---- restart segments ----


@pytest.fixture
def indexed() -> tuple[bytes, np.ndarray]:
    if not restart.available():
        pytest.skip("the native decoder was built without libjpeg-turbo's headers")
    made = restart.restart_index(saved(photo(), subsampling=2), 4, 8)
    assert not isinstance(made, int)
    return made


def test_an_index_of_segments_changes_no_pixel(
    pool: native.Pool, indexed: tuple[bytes, np.ndarray]
) -> None:
    data, table = indexed
    random, expected = np.random.default_rng(10), pixels(data)
    for box in [box_in(random, 640, 427) for _ in range(100)]:
        for given in (table, None):
            status, found = cropped(pool, data, box, given)
            assert status == native.OK
            assert np.array_equal(found, expected[box[1] : box[3], box[0] : box[2]])


def test_a_wrong_index_gives_a_status_or_the_right_pixels(
    pool: native.Pool, indexed: tuple[bytes, np.ndarray]
) -> None:
    data, table = indexed
    random, expected = np.random.default_rng(11), pixels(data)
    swapped, shifted = table.copy(), table.copy()
    swapped[3], swapped[4] = table[4] + 1, table[3] - 1
    shifted[0] += 1
    wrong = [
        table[:-1],
        table[1:],
        np.append(table, np.uint16(9)),
        table[:1],
        np.zeros_like(table),
        np.ones_like(table),
        np.full_like(table, 65535),
        swapped,
        shifted,
        table[::-1].copy(),
        *(random.permutation(table) for _ in range(5)),
        *(random.integers(0, most, len(table)).astype(np.uint16) for most in (50, 300, 65536)),
    ]
    refused = 0
    for given in wrong:
        for box in [(0, 0, 640, 427), *(box_in(random, 640, 427) for _ in range(8))]:
            status, found = cropped(pool, data, box, given)
            if status == native.OK:
                assert np.array_equal(found, expected[box[1] : box[3], box[0] : box[2]])
            else:
                assert status == native.CORRUPT
                refused += 1
    assert refused


def test_an_index_that_skips_as_many_segments_as_markers_count_is_wrong(
    pool: native.Pool, indexed: tuple[bytes, np.ndarray]
) -> None:
    """Markers are numbered modulo 8, so each is the one that is looked for."""
    data, table = indexed
    given = np.concatenate([table[:20], [table[20:29].sum()], table[29:], np.full(8, 9, np.uint16)])
    assert len(given) == len(table)
    status, found = cropped(pool, data, (0, 0, 640, 427), given.astype(np.uint16))
    assert status == native.CORRUPT
    status, found = cropped(pool, data, (320, 50, 340, 60), given.astype(np.uint16))
    assert status == native.CORRUPT, f"pixels differ by {far(found, pixels(data)[50:60, 320:340])}"


def test_an_index_of_an_image_without_restarts_is_not_used(pool: native.Pool) -> None:
    data = saved(photo())
    status, found = cropped(pool, data, (100, 100, 300, 200), np.array([5, 7], np.uint16))
    assert status == native.OK
    assert np.array_equal(found, pixels(data)[100:200, 100:300])


def test_lost_and_renumbered_restart_markers_do_no_harm(pool: native.Pool) -> None:
    data = bytearray(saved(photo(), restart_marker_blocks=5, subsampling=2))
    marks = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] < 0xD8]
    for change in (0xD0, 0x00, 0xD9):
        broken = bytearray(data)
        broken[marks[50] + 1] = change
        status, _ = cropped(pool, bytes(broken), (0, 0, 640, 427))
        assert status in (native.OK, native.CORRUPT, native.TRUNCATED, native.UNSUPPORTED)


# ---- sanitizers ----


def built(folder: Path, sanitizer: str) -> Path:
    if fuzz_native.compiler() is None:
        pytest.skip("no C compiler")
    try:
        return fuzz_native.build(folder, sanitizer)
    except RuntimeError as error:
        if "cannot find" in str(error):
            pytest.skip(f"the compiler has no {sanitizer} sanitizer")
        raise


@pytest.mark.slow
@pytest.mark.timeout(fuzz_native.SECONDS + 300)
def test_damaged_files_break_no_rule_of_c(tmp_path: Path) -> None:
    program = built(tmp_path, "address")
    seed = int(time.time())
    done = fuzz_native.drive(
        program, "fuzz", fuzz_native.seeds(tmp_path), fuzz_native.SECONDS, seed
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert "ERROR" not in done.stderr


@pytest.mark.slow
def test_threads_do_not_race(tmp_path: Path) -> None:
    program = built(tmp_path, "thread")
    done = fuzz_native.drive(program, "threads", fuzz_native.seeds(tmp_path), 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.slow
def test_the_driver_itself_gives_the_same_pixels_twice(tmp_path: Path) -> None:
    program, files = built(tmp_path, "none"), fuzz_native.seeds(tmp_path)
    one, two = (fuzz_native.drive(program, "sums", files, 0) for _ in range(2))
    assert one.returncode == 0
    assert one.stdout == two.stdout


def test_structs_are_those_of_the_header() -> None:
    """The fields by their types in C, where pointers have 8 bytes."""
    pointer, number, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

    class Item(ctypes.Structure):
        _fields_ = [
            ("path", pointer), ("data", pointer), ("offset", wide), ("length", wide),
            ("segments", pointer), ("num_segments", ctypes.c_uint32),
            ("checksum", ctypes.c_uint32), ("segments_checksum", ctypes.c_uint32),
            ("file", number), ("verify", number), ("status", number), ("width", number),
            ("height", number), ("owned", pointer),
        ]  # fmt: skip

    class View(ctypes.Structure):
        _fields_ = [
            ("box", ctypes.c_double * 4), ("limits", number * 4), ("filter", number),
            ("flip", number),
        ]  # fmt: skip

    for dtype, structure in ((ITEM, Item), (VIEW, View)):
        assert dtype.itemsize == ctypes.sizeof(structure)
        names = [field[0] for field in structure._fields_]
        fields: Any = dtype.fields
        assert [(name, fields[name][1]) for name in fields] == [
            (name, getattr(structure, name).offset) for name in names
        ]
