"""One way to 8-bit RGB for all formats, modes and sizes, and words for what has none."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import PngImagePlugin

from mobilenext.data import pillow
from mobilenext.data.pillow import decode_bytes
from mobilenext.errors import InputError
from tests.conftest import DEVELOPMENT_DATA


def decoded(data: bytes) -> np.ndarray:
    image = decode_bytes(data, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(image: PIL.Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png(mode: int, bits: int, rows: list[bytes], width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
        )

    header = struct.pack(">LLBBBBB", width, len(rows), bits, mode, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    middle = b"".join(chunk(*one) for one in chunks)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", pixels)
            + chunk(b"IEND", b""))  # fmt: skip


def tiff(order: str, bits: int, photometric: int, data: bytes, sample_format: int = 1) -> bytes:
    """One row of two grey pixels."""
    fields = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1),
              (278, 1), (279, len(data)), (339, sample_format)]  # fmt: skip
    at = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(
        struct.pack(f"{order}HHLHxx", tag, 3, 1, at if tag == 273 else value)
        for tag, value in fields
    )
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}HLH", 42, 8, len(fields))
    return mark + head + entries + bytes(4) + data


BIG, LITTLE = struct.pack(">HH", 0x4000, 0x80FF), struct.pack("<HH", 0x4000, 0x80FF)

WIDE = {
    "png": png(0, 16, [BIG], 2),
    "png with alpha": png(4, 16, [BIG[:2] + b"\0\0" + BIG[2:] + b"\xff\xff"], 2),
    "png colour": png(2, 16, [BIG[:2] * 3 + BIG[2:] * 3], 2),
    "tiff": tiff("<", 16, 1, LITTLE),
    "tiff big-endian": tiff(">", 16, 1, BIG),
    "tiff 12 bits": tiff("<", 12, 1, bytes([0x40, 0x08, 0x0F])),
    "pgm": b"P5 2 1 65535\n" + BIG,
    "pgm of text": b"P2 2 1 65535\n16384 33023\n",
    "pgm 10 bits": b"P5 2 1 1023\n" + struct.pack(">HH", 257, 515),
}


@pytest.mark.parametrize("kind", WIDE)
def test_up_to_16_bits_become_the_upper_8(kind: str) -> None:
    assert decoded(WIDE[kind])[0].tolist() == [[64] * 3, [128] * 3]


def test_where_zero_is_white_it_stays_white() -> None:
    assert decoded(tiff("<", 16, 0, LITTLE))[0].tolist() == [[191] * 3, [127] * 3]
    assert decoded(tiff("<", 8, 0, b"\x40\x80"))[0].tolist() == [[191] * 3, [127] * 3]


def test_16_bits_of_grey_as_in_the_given_sample() -> None:
    sample = DEVELOPMENT_DATA.parent / "faults" / "images" / "min_grey16_2x1.png"
    if not sample.is_file():
        pytest.skip(f"no {sample}; set MOBILENEXT_DATA")
    assert decoded(sample.read_bytes())[0].tolist() == [[64] * 3, [128] * 3]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff("<", 32, 1, struct.pack("<2f", 0.25, 0.5), 3), "floating-point"),
        (tiff("<", 32, 1, struct.pack("<2L", 9, 70000)), "32-bit or signed"),
        (tiff("<", 16, 1, struct.pack("<2h", -9, 700), 2), "32-bit or signed"),
        (b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.25, 0.5), "floating-point"),
    ],
)
def test_samples_without_a_known_range_are_refused(data: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=f"^it: .*its {kind} samples have no known range; conv"):
        decode_bytes(data, "it")


def test_8_bit_modes_are_as_pillow_converts_them() -> None:
    """And as torchvision's ImageFolder does: transparency is dropped."""
    random = np.random.default_rng(0)
    colours = PIL.Image.fromarray(random.integers(0, 256, (9, 7, 4), np.uint8))
    see_through = colours.convert("RGB").convert("P")
    see_through.info["transparency"] = bytes(range(256))
    for image, kind in (
        (colours, "PNG"),
        (colours.convert("LA"), "PNG"),
        (colours.convert("L"), "PNG"),
        (colours.convert("1"), "PNG"),
        (see_through, "PNG"),
        (colours.convert("CMYK"), "TIFF"),
        (colours.convert("RGB").convert("P"), "GIF"),
        (colours.convert("RGB"), "WEBP"),
        (colours.convert("RGB"), "PPM"),
    ):
        data = saved(image, kind)
        expected = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(decoded(data), np.asarray(expected))
    small = png(0, 2, [b"\x1b"], 4)  # 0, 1, 2, 3 of 3
    assert decoded(small)[0, :, 0].tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF"])
def test_one_limit_of_pixels_for_all_formats(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(PIL.Image.new("RGB", (64, 50)), kind)
    monkeypatch.setattr(pillow, "MOST_PIXELS", 64 * 50)
    assert decoded(data).shape == (50, 64, 3)
    monkeypatch.setattr(pillow, "MOST_PIXELS", 64 * 50 - 1)
    with pytest.raises(
        InputError, match=r"it: .*64 x 50 pixels are more than 3,199; make it small"
    ):
        decode_bytes(data, "it")


def test_the_limit_is_ours_whatever_others_set(monkeypatch: pytest.MonkeyPatch) -> None:
    large = saved(PIL.Image.new("1", (9500, 9500)), "PNG")  # above Pillow's limit for a warning
    with PIL.Image.open(io.BytesIO(large)) as image:
        assert image.width * image.height > PIL.Image.MAX_IMAGE_PIXELS  # type: ignore[operator]
    assert pillow.open_pixels(large).size == (9500, 9500)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    bomb = png(0, 1, [b""], 178_956_971)
    with pytest.raises(InputError, match="178956971 x 1 pixels are more than 178,956,970"):
        decode_bytes(bomb, "it")


def test_pixels_do_not_depend_on_metadata() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("compressed", "x" * 3_000_000, zip=True)
    text.add_text("plain", "y" * 3_000_000)
    text.add_itxt("international", "ü" * 3_000_000, zip=True)
    image = PIL.Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    profile = np.random.default_rng(0).bytes(3_000_000)
    data = saved(image, "PNG", pnginfo=text, icc_profile=profile)
    np.testing.assert_array_equal(decoded(data), np.asarray(image))


def test_metadata_is_limited() -> None:
    def text(megabytes: int) -> tuple[bytes, bytes]:
        return b"zTXt", b"a\0\0" + zlib.compress(bytes(megabytes << 20))

    with pytest.raises(InputError, match=r"^it: expected an image file, could not decode it"):
        decode_bytes(png(0, 8, [b"\x40"], 1, text(65)), "it")
    with pytest.raises(InputError, match=r"^it: expected an image file, could not decode it"):
        decode_bytes(png(0, 8, [b"\x40"], 1, *[text(30)] * 3), "it")
    assert decoded(png(0, 8, [b"\x40"], 1, text(60))).tolist() == [[[64] * 3]]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a Git LFS pointer",
        ),
        (b"\x1f\x8b\x08" + bytes(50), "gzip-compressed"),
        (b"PK\x03\x04" + bytes(50), "a zip archive"),
    ],
)
def test_other_files_are_called_by_what_they_are(data: bytes, found: str) -> None:
    with pytest.raises(InputError, match=f"^it: expected an image file, but it is {found}.*; rep"):
        decode_bytes(data, "it")


def test_odd_files(development_data: Path) -> None:
    """Every odd file gives an RGB image or names itself; nothing else comes out."""

    def outcome(path: Path) -> str:
        try:
            return decode_bytes(path.read_bytes(), str(path)).mode
        except InputError as error:
            return "refused" if path.name in str(error) else "nameless"

    outcomes = {path.name: outcome(path) for path in (development_data / "odd").iterdir()}
    assert set(outcomes.values()) == {"RGB", "refused"}
    assert outcomes["cmyk_tench.JPEG"] == outcomes["png_rgba_named.JPEG"] == "RGB"
    assert outcomes["hopper_gray.jpg"] == outcomes["exif_orientation6.JPEG"] == "RGB"
    assert outcomes["truncated_half.JPEG"] == outcomes["zero_bytes.JPEG"] == "refused"
