"""Restart-indexed JPEGs: the same pixels, and crops of them that any decoder can read."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mobilenext.data import native, restart
from mobilenext.data.restart import layout, restart_index, stitch
from mobilenext.errors import InputError

needs_native = pytest.mark.skipif(
    not restart.available(), reason="the native decoder was not built with libjpeg-turbo"
)
KINDS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": 0}


def photo(width: int, height: int) -> PIL.Image.Image:
    from sklearn.datasets import load_sample_image

    return PIL.Image.fromarray(load_sample_image("china.jpg")[:height, :width])


def encoded(kind: str, width: int = 333, height: int = 171, **settings: object) -> bytes:
    image, file = photo(width, height), io.BytesIO()
    if kind == "grey":
        image = image.convert("L")
    image.save(file, "JPEG", subsampling=KINDS[kind], **{"quality": 90, **settings})
    return file.getvalue()


def pixels(data: bytes | memoryview) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def indexed(data: bytes, **limits: int) -> tuple[bytes, np.ndarray]:
    result = restart_index(data, **limits)
    assert not isinstance(result, int), native.PROBLEMS[result]
    return result


@needs_native
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_stay(kind: str, progressive: bool) -> None:
    data = encoded(kind, progressive=progressive)
    written, segments = indexed(data)
    np.testing.assert_array_equal(pixels(written), pixels(data))
    shape = layout(written)
    assert (shape.width, shape.height) == (333, 171)
    assert shape.interval == {"4:4:4": 6, "grey": 6}.get(kind, 7)
    assert len(segments) == shape.per_row // shape.interval * shape.rows
    ends = shape.scan + np.cumsum(segments, dtype=np.int64)
    assert ends[-1] == len(written)
    assert [written[end - 1] for end in ends[:-1]] == [0xD0 + n % 8 for n in range(len(ends) - 1)]
    assert written[-2:] == b"\xff\xd9"


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_bit_exact(kind: str) -> None:
    written, segments = indexed(encoded(kind))
    whole, random = pixels(written), np.random.default_rng(0)
    smaller = 0
    for _ in range(60):
        left, right = np.sort(random.choice(334, 2, replace=False)).tolist()
        top, bottom = np.sort(random.choice(172, 2, replace=False)).tolist()
        part, x, y = stitch(written, segments, (left, top, right, bottom))
        shown = pixels(part)[top - y : bottom - y, left - x : right - x]
        np.testing.assert_array_equal(shown, whole[top:bottom, left:right])
        smaller += len(part) < len(written)
    assert smaller > 30


@needs_native
def test_single_pixels_at_the_seams_of_mcus() -> None:
    written, segments = indexed(encoded("4:2:0"), low=1, high=1)
    whole = pixels(written)
    for x0 in [*range(14, 18), *range(318, 333)]:
        for y0 in (0, 15, 16, 159, 160, 170):
            part, x, y = stitch(written, segments, (x0, y0, x0 + 1, y0 + 1))
            assert (pixels(part)[y0 - y, x0 - x] == whole[y0, x0]).all(), (x0, y0)


@needs_native
def test_the_whole_file_comes_back_where_nothing_can_be_left_out() -> None:
    data = encoded("4:4:4")
    written, segments = indexed(data)
    assert stitch(data, None, (0, 0, 8, 8)) == (data, 0, 0)
    assert stitch(written, segments, (0, 0, 333, 171)) == (written, 0, 0)
    with pytest.raises(InputError, match="expected a box inside of 333 x 171 pixels"):
        stitch(written, segments, (0, 0, 334, 8))
    with pytest.raises(InputError, match="belongs to another file"):
        stitch(written, segments[:-1], (0, 0, 8, 8))
    longer = segments.copy()
    longer[5] += segments[6:14].sum()  # ends with a marker of the same number
    with pytest.raises(InputError, match="belongs to another file"):
        stitch(written, longer, (0, 0, 8, 8))


@needs_native
@pytest.mark.parametrize(
    ("width", "interval"), [(8, 1), (40, 5), (8 * 42, 6), (8 * 23, 23), (8 * 26, 13)]
)
def test_the_interval_divides_a_row(width: int, interval: int) -> None:
    written, _ = indexed(encoded("4:4:4", width, 32))
    assert layout(written).interval == interval


@needs_native
def test_rgb_stays_rgb_for_every_decoder() -> None:
    file = io.BytesIO()
    photo(120, 80).save(file, "JPEG", quality=90, keep_rgb=True)
    data = file.getvalue()
    bare = data.replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xed\x00\x0eAdobe")  # only R, G, B say it
    for source in (data, bare):
        written, _ = indexed(source)
        assert b"\xff\xee\x00\x0eAdobe" in written
        assert b"JFIF" not in written
        np.testing.assert_array_equal(pixels(written), pixels(source))


@needs_native
def test_what_is_refused() -> None:
    file = io.BytesIO()
    photo(64, 64).convert("CMYK").save(file, "JPEG")
    assert restart_index(file.getvalue()) == native.UNSUPPORTED
    data = encoded("4:2:0")
    jfif = data[:20]
    assert jfif[6:10] == b"JFIF"
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    assert restart_index(jfif + adobe + data[20:]) == native.UNSUPPORTED  # who is right?
    assert restart_index(b"") == native.EMPTY
    assert restart_index(b"\x89PNG") == native.NOT_JPEG
    assert restart_index(data[:-100]) == native.TRUNCATED
    assert restart_index(data[:300]) in (native.TRUNCATED, native.CORRUPT)
    random = np.random.default_rng(0)
    for _ in range(200):  # damage anywhere: a status or the pixels that others see, never a crash
        broken = bytearray(data)
        broken[random.integers(2, len(data))] ^= 1 << random.integers(8)
        result = restart_index(bytes(broken))
        if isinstance(result, int):
            assert result in native.PROBLEMS
        else:
            np.testing.assert_array_equal(pixels(result[0]), pixels(bytes(broken)))


@needs_native
def test_memory_is_given_back() -> None:
    resource = pytest.importorskip("resource")
    good, bad = encoded("4:2:0"), encoded("4:2:0")[:-200]
    peaks = []
    for _ in range(3):
        for _ in range(150):
            restart_index(good)
            restart_index(bad)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[2] - peaks[1] < 2000  # kilobytes; a leak would be 150 times 100


@needs_native
def test_development_images(development_data: Path) -> None:
    files = sorted((development_data / "imagenet_samples").rglob("*.JPEG"))[::12]
    for path in files:
        data = path.read_bytes()
        written, _ = indexed(data)
        np.testing.assert_array_equal(pixels(written), pixels(data))


def test_headers_that_are_none() -> None:
    assert layout(encoded("4:2:0")).interval == 0
    with pytest.raises(InputError, match="found other bytes"):
        layout(b"GIF89a")
    with pytest.raises(InputError, match="found the end"):
        layout(encoded("grey")[:100])
    with pytest.raises(InputError, match="found another kind"):
        layout(encoded("grey", progressive=True))


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(InputError, match=r"built with libjpeg-turbo, got .*install a C compiler"):
        restart_index(b"")
