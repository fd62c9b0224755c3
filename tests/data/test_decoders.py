"""Every decoder that is installed here gives what Pillow gives, within its tolerance."""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilenext.data import eval_transform, image_folder, native, train_transform
from mobilenext.data.decoders import (
    NAMES,
    Decoder,
    DeviceDecoder,
    Order,
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
    "native": (0.25, 0.3), "simplejpeg": (3, 3), "torchvision": (0.06, 0.06), "pillow": (0, 0),
    "device": (0.06, 0.06),
}  # fmt: skip
"""Mean difference from Pillow of bilinear and of bicubic crops, of 255, in small photographs."""

REAL = {
    "native": (0.16, 0.2), "simplejpeg": (0.8, 1), "torchvision": (0.04, 0.04), "pillow": (0, 0),
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


def order_of(images: Images, chosen: np.ndarray, transform: Transform) -> Order:
    size = transform.image_size
    return Order(
        images, chosen, chosen, transform, 5, 0,
        torch.zeros(len(chosen), size, size, 3, dtype=torch.uint8),
        torch.full((len(chosen),), -1, dtype=torch.int64),
    )  # fmt: skip


def decoded(
    decoder: Decoder, images: Images, transform: Transform, chosen: np.ndarray | None = None
) -> tuple[Order, Problems]:
    order = order_of(images, np.arange(len(images)) if chosen is None else chosen, transform)
    return order, decoder.decode(order)


def by_pillow(images: Images, transform: Transform, chosen: np.ndarray | None = None) -> Order:
    """Without any decoder."""
    order = order_of(images, np.arange(len(images)) if chosen is None else chosen, transform)
    for position, index in enumerate(order.chosen.tolist()):
        image, order.labels[position] = images[index]
        view = transform.views(np.array([image.size]), np.array([index]), 5, 0)[0]
        order.pixels[position] = torch.from_numpy(np.array(transform.render(image, view)))
    return order


def far(one: Order, other: Order) -> float:
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
    assert torch.equal(found.labels, expected.labels)
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
    chosen = np.arange(0, len(images), 10)
    expected = by_pillow(images, transform, chosen)
    found, problems = decoded(decoder, images, transform, chosen)
    assert problems == {}
    assert torch.equal(found.labels, expected.labels)
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
    assert found.labels.tolist() == [0] * len(images)
    for position in range(len(images)):
        one = found.pixels[position].double() - expected.pixels[position].double()
        # A jumble of blocks, enlarged or not, shows each difference of half a pixel.
        most = 8 * MOST[name][0] if name != "simplejpeg" else 30
        assert one.abs().mean().item() <= most, images.name(position)


def test_labels_and_pixels_are_those_of_the_chosen(decoder: Decoder, photo_folder: Path) -> None:
    images = image_folder(str(photo_folder)).train
    transform = eval_transform(32)
    whole, _ = decoded(decoder, images, transform)
    chosen = np.array([20, 3, 3, 17, 0])
    some, problems = decoded(decoder, images, transform, chosen)
    assert problems == {}
    assert some.labels.tolist() == whole.labels[chosen].tolist() == [1, 0, 0, 1, 0]
    assert torch.equal(some.pixels, whole.pixels[chosen])


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
    assert found.labels[kept].tolist() == [0] * 7 + [1] * 12
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
    assert found.labels.tolist() == [5, 4, 3, 2, 1, 0]
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
