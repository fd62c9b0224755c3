import os
import pickle
import re
import shutil
import socket
from hashlib import md5
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets import CIFAR10

from mobilenext.data import cifar10, digits, image_folder, imagenet, imagenette, synthetic
from mobilenext.data.sources import FolderImages
from mobilenext.errors import InputError
from mobilenext.files import printable


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


def test_digits_are_scikit_learns() -> None:
    grey, labels = load_digits(return_X_y=True)
    indices = np.arange(len(labels))
    parts = train_test_split(indices, test_size=0.2, random_state=0, stratify=labels)
    data = digits(image_size=8)
    for split, chosen in zip((data.train, data.val), parts, strict=True):
        assert np.array_equal([label for _, label in split], labels[chosen])
        pixels = np.stack([np.asarray(image) for image, _ in split])
        expected = np.rint(grey[chosen].reshape(-1, 8, 8, 1) * (255 / 16))
        assert np.array_equal(pixels, expected.repeat(3, axis=-1))


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


def test_only_regular_files_are_opened(photo_folder: Path) -> None:
    folder = photo_folder / "train" / "flower"
    os.mkfifo(folder / "00_pipe.jpg")
    (folder / "01_nothing.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/02_socket.jpg")  # names of sockets have to be short
        os.close(here)
    (folder / "03_device.jpg").symlink_to("/dev/zero")
    data = image_folder(str(photo_folder))
    assert len(data.train) == 28
    for name, what in (
        ("00_pipe", "regular file, got a named pipe"),
        ("01_nothing", "image file, could not read"),
        ("02_socket", "regular file, got a socket"),
        ("03_device", "regular file, got a device"),
    ):
        path = f"flower/{name}.jpg".encode()
        index = data.train.paths.tolist().index(path)  # type: ignore[attr-defined]
        for read in (data.train.__getitem__, data.train.read):  # type: ignore[attr-defined]
            with pytest.raises(
                InputError, match=rf"{name}\.jpg: expected an? {what}.*; replace or"
            ):
                read(index)


def test_names_that_are_not_utf8_are_read_and_shown_with_escapes(photo_folder: Path) -> None:
    folder = os.fsencode(photo_folder / "val" / "flower")
    os.rename(folder + b"/0.jpg", folder + b"/b\xe4d.jpg")
    with open(folder + b"/n\xf6.jpg", "wb") as file:
        file.write(b"nothing")
    images = image_folder(str(photo_folder)).val
    assert isinstance(images, FolderImages)
    names = [images.name(index) for index in range(len(images))]
    assert "".join(names).isascii()
    good, bad = (next(i for i, n in enumerate(names) if ending in n) for ending in ("b\\", "n\\"))
    assert names[good].endswith("flower/b\\xe4d.jpg")
    assert os.fsencode(images.relative(good)) == b"flower/b\xe4d.jpg"
    assert images[good][0].size == (200, 160)
    with pytest.raises(InputError, match=r"flower/n\\xf6\.jpg: expected an image file"):
        images[bad]


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_class_names_have_to_be_text(photo_folder: Path, name: bytes) -> None:
    for split in ("train", "val"):
        folder = os.fsencode(photo_folder / split)
        os.rename(folder + b"/flower", folder + b"/" + name)
    shown = re.escape(printable(os.fsdecode(name)))
    with pytest.raises(InputError, match=f"expected class names in UTF-8.* got {shown}; rename"):
        image_folder(str(photo_folder))


def test_hidden_files_and_folders_are_passed_over(photo_folder: Path) -> None:
    before = image_folder(str(photo_folder))
    for split in ("train", "val"):
        folder = photo_folder / split / "flower"
        (folder / "._0.jpg").write_bytes(b"\0\5\x16\7")  # what macOS leaves
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / "0-checkpoint.jpg").write_bytes(b"")
    data = image_folder(str(photo_folder))
    for split in ("train", "val"):
        one, two = getattr(before, split), getattr(data, split)
        assert one.paths.tolist() == two.paths.tolist()
    assert data.notes == ()


def test_links_to_folders_are_followed_but_never_round(photo_folder: Path, tmp_path: Path) -> None:
    folder = photo_folder / "train" / "flower"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "inner").mkdir(parents=True)
    shutil.copy(folder / "0.jpg", elsewhere / "inner" / "x.jpg")
    (elsewhere / "inner" / "back").symlink_to(elsewhere)
    (folder / "more").symlink_to(elsewhere)
    (folder / "again").symlink_to("../flower")
    (folder / "up").symlink_to("..")
    (folder / "top").symlink_to(photo_folder)
    data = image_folder(str(photo_folder))
    assert isinstance(data.train, FolderImages)
    flowers = [path for path in data.train.paths.tolist() if path.startswith(b"flower")]
    assert len(flowers) == 13
    assert b"flower/more/inner/x.jpg" in flowers
    assert data.notes == (
        "train: links to folders above them are not followed: flower/again, "
        "flower/more/inner/back, flower/top, flower/up",
    )


@pytest.mark.parametrize("target", ["../temple", "../temple/inner"])
def test_a_link_to_another_class_is_refused(photo_folder: Path, target: str) -> None:
    (photo_folder / "train" / "temple" / "inner").mkdir()
    (photo_folder / "train" / "flower" / "other").symlink_to(target)
    with pytest.raises(InputError, match=r"images of class temple only, .* class flower as well"):
        image_folder(str(photo_folder))


def test_a_link_to_a_class_before_is_refused(photo_folder: Path) -> None:
    (photo_folder / "train" / "temple" / "other").symlink_to("../flower")
    with pytest.raises(InputError, match=r"temple/other: .*belongs to class flower as well; remo"):
        image_folder(str(photo_folder))


def test_what_is_not_read_is_counted(photo_folder: Path) -> None:
    folder = photo_folder / "train" / "flower"
    for name in ("a.txt", "b.TXT", "c.heic", "README", ".DS_Store"):
        (folder / name).write_bytes(b"")
    shutil.copy(folder / "0.jpg", photo_folder / "val" / "stray.jpg")
    data = image_folder(str(photo_folder))
    assert (len(data.train), len(data.val)) == (24, 10)
    assert data.notes == (
        "train: files with these endings are not read: .txt (2), .heic (1), none (1)",
        "val: images outside of the class folders are not read: 1",
    )
    for path in list(folder.glob("*.jpg")):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(InputError, match=r"found none in flower \(.*\.heic \(13\).*\); remove or"):
        image_folder(str(photo_folder))


def test_more_endings_of_the_formats_that_are_read(photo_folder: Path) -> None:
    folder = photo_folder / "train" / "flower"
    for number, ending in enumerate((".jfif", ".jpe", ".JFIF")):
        (folder / f"{number}.jpg").rename(folder / f"{number}{ending}")
    PIL.Image.new("RGB", (4, 4), "red").save(folder / "moving.gif")
    data = image_folder(str(photo_folder))
    assert len(data.train) == 25
    assert data.notes == ()
    assert data.train[12][0].getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_that_cannot_be_read_is_named(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images do not vanish because permissions are missing."""
    (photo_folder / "train" / "temple" / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: str):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"temple/locked: .*\(Permission denied\); fix its perm"):
        image_folder(str(photo_folder))


def test_a_pipe_among_the_files_of_cifar10(tmp_path: Path) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    os.mkfifo(folder / "data_batch_1")
    with pytest.raises(InputError, match="data_batch_1: expected a regular file, got a named pipe"):
        cifar10(str(tmp_path))
