"""Every decoder that is installed here gives what Pillow gives, within its tolerance."""

import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mobilenext.data import eval_transform, image_folder, native, pillow, train_transform
from mobilenext.data.decoders import (
    NAMES,
    Decoder,
    DecodeRequest,
    DeviceDecoder,
    Problems,
    jpeg_size,
    open_decoder,
)
from mobilenext.data.encoded import EncodedImages
from mobilenext.data.sources import ArrayImages, FolderImages, Images
from mobilenext.data.transforms import Transform
from mobilenext.errors import InputError
from tests.jpegs import BASELINE, OTHERS, framed, of_kind, photo

# torchvision 0.29 announces that TorchCodec will take over.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

MOST = {
    "native": (0.25, 0.3), "simplejpeg": (0.1, 0.5), "torchvision": (0.06, 0.06), "pillow": (0, 0),
    "device": (0.06, 0.06),
}  # fmt: skip
"""Mean difference from Pillow of bilinear and of bicubic crops, of 255, in small photographs."""

REAL = {
    "native": (0.16, 0.2), "simplejpeg": (0.1, 0.04), "torchvision": (0.04, 0.04), "pillow": (0, 0),
    "device": (0.04, 0.04),
}  # fmt: skip
"""The same of training crops and of evaluation's in ImageNet's photographs, bilinear both; see the
table in mobilenext/data/decoders.py."""


def open_or_skip(name: str) -> Decoder:
    if name == "native" and native.library() is None:
        pytest.skip("the native decoder was not built (no C compiler?)")
    if name == "simplejpeg":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cv2")
    if name == "device":  # nvjpeg's, as far as it can be run without a GPU
        return DeviceDecoder(2, torch.device("cpu"))
    return open_decoder(name, 2)


@pytest.fixture(params=MOST)
def decoder(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    opened = open_or_skip(request.param)
    yield opened
    opened.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.callspec.params["decoder"]


def request_for(
    images: Images, transform: Transform, indices: np.ndarray | None = None
) -> DecodeRequest:
    """A request for these images, by default for all."""
    if indices is None:
        indices = np.arange(len(images))
    size = transform.image_size
    pixels = torch.zeros(len(indices), size, size, 3, dtype=torch.uint8)
    return DecodeRequest(images, indices, indices, transform, 5, 0, pixels)


def decoded(
    decoder: Decoder, images: Images, transform: Transform, indices: np.ndarray | None = None
) -> tuple[DecodeRequest, Problems]:
    request = request_for(images, transform, indices)
    return request, decoder.decode(request)


def by_pillow(
    images: Images, transform: Transform, indices: np.ndarray | None = None
) -> DecodeRequest:
    """The request filled without any decoder."""
    request = request_for(images, transform, indices)
    for position, index in enumerate(request.indices.tolist()):
        image, _ = images[index]
        view = transform.views(np.array([image.size]), np.array([index]), 5, 0)[0]
        request.pixels[position] = torch.from_numpy(np.array(transform.render(image, view)))
    return request


def far(one: DecodeRequest, other: DecodeRequest) -> float:
    return (one.pixels.double() - other.pixels.double()).abs().mean().item()


TRANSFORMS = {"train": train_transform, "eval": eval_transform}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_pixels_are_nearly_those_of_pillow(
    decoder: Decoder, name: str, kind: str, interpolation: str, photo_folder: Path
) -> None:
    images = image_folder(str(photo_folder)).train
    transform = TRANSFORMS[kind](64, interpolation=interpolation)
    expected = by_pillow(images, transform)
    found, problems = decoded(decoder, images, transform)
    assert problems == {}
    assert far(found, expected) <= MOST[name][interpolation == "bicubic"]


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_pixels_of_imagenet_are_nearly_those_of_pillow(
    decoder: Decoder, name: str, kind: str, development_data: Path
) -> None:
    root = development_data / "imagenet_samples"
    if not root.is_dir():
        pytest.skip(f"no imagenet_samples in {development_data}")
    images = FolderImages(root, sorted(folder.name for folder in root.iterdir() if folder.is_dir()))
    transform = TRANSFORMS[kind](224, interpolation="bilinear")
    indices = np.arange(0, len(images), 10)
    expected = by_pillow(images, transform, indices)
    found, problems = decoded(decoder, images, transform, indices)
    assert problems == {}
    assert far(found, expected) <= REAL[name][kind == "eval"]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """All kinds of JPEGs, a PNG named JPEG, and other formats, of one picture each."""
    image = photo().crop((100, 100, 221, 191))
    folder = tmp_path / "train" / "one"
    folder.mkdir(parents=True)
    for number, kind in enumerate((*BASELINE, *OTHERS)):
        if kind not in ("quality 1", "16-bit quantisation"):
            (folder / f"{number:02}.jpg").write_bytes(of_kind(kind, image))
    image.save(folder / "named.JPEG", "PNG")
    image.save(folder / "true.webp", lossless=True)
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "transparent.png")
    image.resize((3, 5)).save(folder / "tiny.jpg")
    image.resize((1, 1)).save(folder / "pixel.jpg")
    return tmp_path


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_all_kinds_of_files_are_fine_in_one_batch(
    decoder: Decoder, name: str, kind: str, mixed: Path
) -> None:
    images = FolderImages(mixed / "train", ["one"])
    transform = TRANSFORMS[kind](48, interpolation="bilinear")
    expected = by_pillow(images, transform)
    found, problems = decoded(decoder, images, transform)
    assert problems == {}
    for position in range(len(images)):
        one = found.pixels[position].double() - expected.pixels[position].double()
        # A jumble of blocks, enlarged or not, shows each difference of half a pixel.
        most = 8 * MOST[name][0]
        assert one.abs().mean().item() <= most, images.name(position)


def test_pixels_are_those_of_the_indices(decoder: Decoder, photo_folder: Path) -> None:
    images = image_folder(str(photo_folder)).train
    transform = eval_transform(32)
    whole, _ = decoded(decoder, images, transform)
    indices = np.array([20, 3, 3, 17, 0])
    some, problems = decoded(decoder, images, transform, indices)
    assert problems == {}
    assert torch.equal(some.pixels, whole.pixels[indices])


def test_draws_are_those_of_the_draw_indices(decoder: Decoder) -> None:
    """A substitute is cropped as the image whose place it takes would be."""
    pixels = np.stack([np.asarray(photo().crop((0, 0, 60, 60)))] * 3)
    images, transform = ArrayImages(pixels, [0, 1, 2]), train_transform(16)
    whole, _ = decoded(decoder, images, transform)
    request = request_for(images, transform, np.array([2]))
    assert decoder.decode(replace(request, draw_indices=np.array([1]))) == {}
    assert torch.equal(request.pixels[0], whole.pixels[1])
    assert not torch.equal(whole.pixels[2], whole.pixels[1])


def test_transforms_say_which_views_keep_their_context() -> None:
    sizes, indices = np.array([[300, 200], [200, 300], [200, 200]]), np.arange(3)
    for transform, expected in (
        (train_transform(64), [False, False, False]),
        (eval_transform(64), [True, True, True]),
        (eval_transform(50, crop_ratio=1), [True, True, False]),
    ):
        views = transform.views(sizes, indices, 0, 0)
        assert transform.keep_context(views).tolist() == expected


def test_unreadable_images_are_named_by_position(
    decoder: Decoder, name: str, photo_folder: Path
) -> None:
    folder = photo_folder / "train" / "flower"
    good = (folder / "0.jpg").read_bytes()
    images = image_folder(str(photo_folder)).train
    assert isinstance(images, EncodedImages)
    places = {Path(images.name(i)).name: i for i in range(12)}
    (folder / "1.jpg").write_bytes(good[:3000])
    (folder / "2.jpg").write_bytes(b"")
    (folder / "3.jpg").write_bytes(b"no picture")
    (folder / "4.jpg").unlink()
    (folder / "5.jpg").write_bytes(framed(good, 30000, 30000))
    found, problems = decoded(decoder, images, train_transform(32))
    bad = [places[f"{number}.jpg"] for number in (1, 2, 3, 4, 5)]
    assert sorted(problems) == sorted(bad)
    for position, message in problems.items():
        assert images.name(position) in message
        assert "replace or remove the file" in message
    kept = [index for index in range(24) if index not in bad]
    alone, _ = decoded(decoder, images, train_transform(32), np.array(kept))
    differences = found.pixels[kept].double() - alone.pixels.double()
    # A device decodes a batch at a time, and leaves one that has a damaged image to Pillow.
    assert differences.abs().mean().item() <= (MOST[name][1] if name == "device" else 0)


def test_pixels_in_memory_need_no_decoding(decoder: Decoder, name: str) -> None:
    pixels = np.stack([np.asarray(photo().crop((x, 0, x + 40, 40))) for x in range(6)])
    images = ArrayImages(pixels, [5, 4, 3, 2, 1, 0])
    transform = train_transform(24, interpolation="bilinear")
    found, problems = decoded(decoder, images, transform)
    assert problems == {}
    assert far(found, by_pillow(images, transform)) <= (0.3 if name == "native" else 0)


def test_several_batches_at_once_are_the_same_as_one_by_one(
    decoder: Decoder, photo_folder: Path
) -> None:
    images = image_folder(str(photo_folder)).train
    transform = train_transform(32)
    parts = np.split(np.arange(24), 6)
    alone = [decoded(decoder, images, transform, part)[0].pixels for part in parts]
    with ThreadPoolExecutor(3) as threads:
        together = threads.map(
            lambda part: decoded(decoder, images, transform, part)[0].pixels, parts
        )
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other)


def missing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these packages were not installed, nor the native decoder built if it is named."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> object:
        return None if name in names else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    if "native" in names:
        monkeypatch.setattr(native, "library", lambda: None)


def described(name: str) -> str:
    decoder = open_decoder(name, 1)
    decoder.close()
    return decoder.description


def test_auto_takes_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is not None:
        assert described("auto").startswith("native (")
    missing(monkeypatch, "native")
    if importlib.util.find_spec("simplejpeg") and importlib.util.find_spec("cv2"):
        assert described("auto").startswith("simplejpeg")
    missing(monkeypatch, "native", "cv2")
    assert described("auto").startswith("torchvision")


@pytest.mark.parametrize(
    ("name", "without", "message"),
    [
        ("native", "native", "was not built; install a C compiler.*data.decoder=auto"),
        ("simplejpeg", "simplejpeg", "needs simplejpeg and OpenCV: pip install simplejpeg opencv"),
        ("simplejpeg", "cv2", "needs simplejpeg and OpenCV: pip install simplejpeg opencv"),
    ],
)
def test_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, without: str, message: str
) -> None:
    missing(monkeypatch, without)
    with pytest.raises(InputError, match=f"data.decoder={name}.*{message}"):
        open_decoder(name, 1)


def test_refuses_unknown_names() -> None:
    assert NAMES == ("auto", "native", "simplejpeg", "torchvision", "pillow", "nvjpeg")
    with pytest.raises(InputError, match=f"data.decoder=turbo: expected one of {', '.join(NAMES)}"):
        open_decoder("turbo", 1)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_nvjpeg_needs_a_cuda_device(device: torch.device | None) -> None:
    message = f"decodes on a CUDA device, and this run is on {'cpu' if device else 'none'}"
    with pytest.raises(InputError, match=message):
        open_decoder("nvjpeg", 1, device)


def test_reads_the_size_from_a_header() -> None:
    image = photo().crop((0, 0, 121, 91))
    for kind in ("4:4:4", "4:2:0", "grey", "progressive", "rgb", "restarts"):
        data = of_kind(kind, image)
        assert jpeg_size(data) == jpeg_size(memoryview(data)) == (121, 91)
        assert all(jpeg_size(data[:end]) in (None, (121, 91)) for end in range(len(data)))
    assert jpeg_size(of_kind("cmyk", image)) is None
    assert jpeg_size(b"\x89PNG") is None
    assert jpeg_size(b"") is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF"])
def test_one_limit_of_pixels_for_all_decoders(
    decoder: Decoder, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    photo().crop((0, 0, 64, 50)).save(tmp_path / "one" / "0.jpg", kind)
    images = FolderImages(tmp_path, ["one"])
    for limit, refused in ((64 * 50, False), (64 * 50 - 1, True)):
        monkeypatch.setattr(pillow, "MOST_PIXELS", limit)
        for transform in (train_transform(16), eval_transform(16)):
            _, problems = decoded(decoder, images, transform)
            assert bool(problems) == refused
            assert all("more than 3,199" in message for message in problems.values())


@pytest.mark.parametrize("sides", [(8000, 1), (1, 8000), (2000, 13)])
def test_thin_images_are_evaluated_without_a_large_one(
    decoder: Decoder, sides: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of an image of 8000 x 1, resized to 256 rows, would take gigabytes and a minute."""
    (tmp_path / "one").mkdir()
    photo().resize(sides).save(tmp_path / "one" / "0.jpg", quality=95)
    images = FolderImages(tmp_path, ["one"])
    transform = eval_transform(224)
    expected = by_pillow(images, transform)
    whole = torch.nn.functional.interpolate

    def bounded(image: torch.Tensor, size: tuple[int, int], **settings) -> torch.Tensor:
        assert size[0] * size[1] < 10**7
        return whole(image, size, **settings)

    resize = PIL.Image.Image.resize

    def bounded_too(self: PIL.Image.Image, size: tuple[int, int], *arguments, **settings):
        assert size[0] * size[1] < 10**7
        return resize(self, size, *arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "interpolate", bounded)
    monkeypatch.setattr(PIL.Image.Image, "resize", bounded_too)
    found, problems = decoded(decoder, images, transform)
    assert problems == {}
    assert far(found, expected) <= 1


CLOSE = {"simplejpeg": 0.06, "torchvision": 0.06, "pillow": 0, "device": 0.06, "native": 0.45}
"""Mean difference of shrinking crops, of 255, from Pillow's with the same filter."""


def test_filters_differ_and_are_pillows_for_each_crop(
    decoder: Decoder, name: str, tmp_path: Path
) -> None:
    """Crops that shrink to 48 pixels: random interpolation means two kinds of pixels."""
    for number in range(60):
        (tmp_path / "one").mkdir(exist_ok=True)
        crop = photo().crop((number, number, number + 500, number + 350))
        crop.save(tmp_path / "one" / f"{number:02}.jpg", quality=95)
    images = FolderImages(tmp_path, ["one"])
    pixels = {}
    for interpolation in ("bilinear", "bicubic"):
        transform = train_transform(48, crop_scale=(0.1, 1), interpolation=interpolation)
        found, problems = decoded(decoder, images, transform)
        assert problems == {}
        pixels[interpolation] = found.pixels
        expected = by_pillow(images, transform).pixels
        off = (found.pixels.double() - expected.double()).abs().mean((1, 2, 3))
        assert off.max().item() <= CLOSE[name]
    differ = (pixels["bilinear"] != pixels["bicubic"]).flatten(1).any(1)
    assert differ.all()


def test_formats_wider_than_8_bits_and_pipes_in_one_batch(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    grey = np.full((20, 20), 0x80FF, np.uint16)
    PIL.Image.fromarray(grey).save(tmp_path / "one" / "0.png")
    PIL.Image.fromarray(grey.astype(np.float32)).save(tmp_path / "one" / "1.tiff")
    os.mkfifo(tmp_path / "one" / "2.jpg")
    with open(os.fsencode(tmp_path) + b"/one/\xe4.jpg", "wb") as file:
        file.write(of_kind("4:4:4", PIL.Image.new("RGB", (20, 20), (128, 128, 128))))
    images = FolderImages(tmp_path, ["one"])
    found, problems = decoded(decoder, images, train_transform(8))
    assert "floating-point samples have no known range" in problems[1]
    assert "2.jpg: expected a regular file, got a named pipe" in problems[2]
    assert len(problems) == 2
    assert found.pixels[[0, 3]].unique().tolist() == [128]
