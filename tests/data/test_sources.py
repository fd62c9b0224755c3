import pickle
from hashlib import md5
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets import CIFAR10

from mobilenext.data import cifar10, digits, image_folder, imagenet, imagenette, synthetic
from mobilenext.errors import InputError


def test_digits() -> None:
    data = digits(image_size=40)
    assert (len(data.train), len(data.val)) == (1437, 360)
    image, label = data.train[0]
    assert image.size == (40, 40)
    assert image.mode == "RGB"
    assert data.classes[label] == str(label)
    labels = [data.val[index][1] for index in range(360)]
    assert np.bincount(labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    again = digits(image_size=40)
    assert np.array_equal(np.asarray(again.val[7][0]), np.asarray(data.val[7][0]))


def test_image_folder(photo_folder: Path) -> None:
    data = image_folder(str(photo_folder))
    assert (len(data.train), len(data.val)) == (24, 10)
    assert data.classes == ("flower", "temple")
    image, label = data.val[7]
    assert (image.size, image.mode, label) == ((200, 160), "RGB", 1)


def test_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root is not set"):
        image_folder(None)
    with pytest.raises(InputError, match="expected a folder, found none there"):
        image_folder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="has to be the folder above train and val"):
        image_folder(str(tmp_path))


def test_classes_must_agree(photo_folder: Path) -> None:
    (photo_folder / "val" / "temple").rename(photo_folder / "val" / "tempel")
    with pytest.raises(InputError, match="only in train: temple; only in val: tempel"):
        image_folder(str(photo_folder))


def test_empty_class_folder(photo_folder: Path) -> None:
    for file in (photo_folder / "val" / "temple").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="found none in temple"):
        image_folder(str(photo_folder))


def test_unsorted_validation_images(photo_folder: Path) -> None:
    for folder in list((photo_folder / "val").iterdir()):
        for file in folder.iterdir():
            file.rename(photo_folder / "val" / f"{folder.name}-{file.name}")
        folder.rmdir()
    with pytest.raises(InputError, match="sort the images into class folders"):
        image_folder(str(photo_folder))


def test_hidden_folders_are_no_classes(photo_folder: Path) -> None:
    (photo_folder / "train" / ".ipynb_checkpoints").mkdir()
    assert image_folder(str(photo_folder)).classes == ("flower", "temple")


def test_imagenet_needs_its_synsets(photo_folder: Path) -> None:
    with pytest.raises(InputError, match=r"expected the 1000 class folders n01440764.*flower"):
        imagenet(str(photo_folder))


def test_imagenet_in_order(tmp_path: Path) -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    for split in ("train", "val"):
        for number, synset in enumerate(synsets):
            (tmp_path / split / synset).mkdir(parents=True)
            pixels = np.full((2, 2, 3), number % 256, np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / split / synset / "0.png")
    data = imagenet(str(tmp_path))
    assert list(data.classes) == synsets  # timm's order is that of the sorted names
    image, label = data.val[999]
    assert (label, image.getpixel((0, 0))) == (999, (231, 231, 231))
    (tmp_path / "train" / synsets[5]).rename(tmp_path / "train" / "n99999999")
    with pytest.raises(InputError, match="only in train: n99999999"):
        imagenet(str(tmp_path))


def test_imagenette(development_data: Path) -> None:
    data = imagenette(str(development_data / "imagenette_160"))
    assert (len(data.train), len(data.val), len(data.classes)) == (9469, 3925, 10)
    assert data.train[0][0].size == (160, 160)
    assert [data.val[index][1] for index in (0, 3924)] == [0, 9]


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"data\.download=true"):
        cifar10(str(tmp_path))
    with pytest.raises(InputError, match=r"data\.root is not set"):
        cifar10(None)
    # torchvision's reader on small files of the real format
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, md5(data).hexdigest()]

    def batch(name: str) -> list[str]:
        pixels = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": list(range(10))})

    names = [f"class{index}" for index in range(10)]
    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    filename, checksum = write("batches.meta", {"label_names": names})
    meta = {"filename": filename, "key": "label_names", "md5": checksum}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    data = cifar10(str(tmp_path))
    assert (len(data.train), len(data.val), list(data.classes)) == (20, 10, names)
    image, label = data.train[13]
    assert (image.size, label) == ((32, 32), 3)


def test_synthetic_is_a_function_of_the_index() -> None:
    one, two = synthetic(100, 10, 7, 16), synthetic(100, 10, 7, 16)
    assert (len(one.train), len(one.val), len(one.classes)) == (100, 10, 7)
    assert one.train[12][1] == 5
    assert np.array_equal(np.asarray(one.train[12][0]), np.asarray(two.train[12][0]))
    assert not np.array_equal(np.asarray(one.train[3][0]), np.asarray(one.val[3][0]))
    with pytest.raises(InputError, match="at least 1"):
        synthetic(train_images=0)


def test_undecodable_files_are_named(photo_folder: Path) -> None:
    victim = photo_folder / "val" / "temple" / "0.jpg"
    data = image_folder(str(photo_folder))
    index = next(i for i in range(10) if data.val.paths[i] == b"temple/0.jpg")  # pyright: ignore
    for content in (victim.read_bytes()[:2000], b"", b"not an image"):
        victim.write_bytes(content)
        with pytest.raises(InputError, match=r"temple/0\.jpg: expected an image file"):
            data.val[index]


def test_odd_files(development_data: Path, tmp_path: Path) -> None:
    """Every odd file gives an RGB image or names itself; nothing else comes out."""
    from mobilenext.data.sources import decode

    def outcome(path: Path) -> str:
        try:
            return decode(path).mode
        except InputError as error:
            return "refused" if path.name in str(error) else "nameless"

    outcomes = {path.name: outcome(path) for path in (development_data / "odd").iterdir()}
    assert set(outcomes.values()) == {"RGB", "refused"}
    assert outcomes["cmyk_tench.JPEG"] == outcomes["png_rgba_named.JPEG"] == "RGB"
    assert outcomes["hopper_gray.jpg"] == outcomes["exif_orientation6.JPEG"] == "RGB"
    assert outcomes["truncated_half.JPEG"] == outcomes["zero_bytes.JPEG"] == "refused"


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilenext.data.sources import decode

    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.raises(InputError, match="DecompressionBomb"):
        decode(tmp_path / "bomb.png")
