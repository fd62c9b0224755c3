"""ImageNet's official tars give the images of the class folders which they are made of."""

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from mobilenext.data import image_folder
from mobilenext.data.imagenet_tars import imagenet_tars
from mobilenext.data.layouts import Layout, layout_of
from mobilenext.errors import InputError
from tests.data.archives import change, check_same, devkit, tar


def test_official_tars_are_the_class_folders(folder: Path, official: Path, cache: Path) -> None:
    expected = image_folder(str(folder))
    assert layout_of(official) is Layout.IMAGENET_TARS
    assert layout_of(folder) is Layout.CLASS_FOLDERS
    for _ in range(2):  # the second time from the cache
        data = imagenet_tars(official)
        assert data.classes == expected.classes
        check_same(data.train, expected.train, folder / "train")
        check_same(data.val, expected.val, folder / "val")
        assert len(list(cache.glob("index-*.npz"))) == 2
    assert "ILSVRC2012_img_train.tar: n01440764/n01440764_1.JPEG" in data.train.name(0)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="expected the 1 synsets of ImageNet-1k, got 2"):
        imagenet_tars(official, ["n01440764"])


def test_validation_labels_from_the_development_kit(folder: Path, official: Path) -> None:
    (official / "imagenet_2012_validation_synset_labels.txt").write_text("nonsense")
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    devkit(kit, [2] * 5 + [1] * 5)
    check_same(imagenet_tars(official).val, image_folder(str(folder)).val, folder / "val")
    devkit(kit, [2] * 9)
    with pytest.raises(InputError, match=r"expected a label for each of the 10 images of .*got 9"):
        imagenet_tars(official)
    devkit(kit, [2] * 9 + [1001])
    with pytest.raises(InputError, match=r"expected validation labels among .*1 others: n00001740"):
        imagenet_tars(official)
    kit.write_bytes(kit.read_bytes()[:200])
    with pytest.raises(InputError, match="expected ImageNet's development kit"):
        imagenet_tars(official)


def test_damaged_and_missing_tars(official: Path, cache: Path) -> None:
    labels = official / "imagenet_2012_validation_synset_labels.txt"
    train, val = official / "ILSVRC2012_img_train.tar", official / "ILSVRC2012_img_val.tar"
    whole = train.read_bytes()
    imagenet_tars(official)
    (cached, *_) = cache.iterdir()
    cached.write_bytes(b"not an index")
    imagenet_tars(official)  # a cache is no reason to fail

    change(train, lambda data: data[:70_000])
    with pytest.raises(InputError, match=r"expected \d+ bytes of .*it was cut short; fetch it"):
        imagenet_tars(official)
    change(train, lambda _: whole[:512] + b"\xff" * 512 + whole[1024:])
    with pytest.raises(InputError, match=r"expected a tar header at byte 512, found other bytes"):
        imagenet_tars(official)
    train.write_bytes(gzip.compress(whole, 1))
    with pytest.raises(InputError, match="it is gzip-compressed; unpack it"):
        imagenet_tars(official)
    train.write_bytes(b"")
    with pytest.raises(InputError, match="found the end of the file at byte 0"):
        imagenet_tars(official)
    tar(train, {})
    with pytest.raises(InputError, match="expected one tar for each class in it, got 0"):
        imagenet_tars(official)
    train.write_bytes(whole)
    labels.unlink()
    with pytest.raises(InputError, match=r"found neither ILSVRC2012_devkit_t12.tar.gz .* nor \*"):
        imagenet_tars(official)
    val.unlink()
    with pytest.raises(
        InputError, match=r"img_val.tar: expected ImageNet's official tar, found no"
    ):
        imagenet_tars(official)
    with pytest.raises(InputError, match=r"data.root is not set"):
        imagenet_tars(None)


def test_a_pipe_in_place_of_the_index(official: Path, cache: Path) -> None:
    imagenet_tars(official)
    cached = sorted(cache.iterdir())
    for path in cached:
        path.unlink()
        os.mkfifo(path)
    assert len(imagenet_tars(official).train) == 24
    assert all(path.is_file() for path in cached)


def test_class_names_of_tars_have_to_be_text(official: Path) -> None:
    inner = tar(official / "inner.tar", {"a.JPEG": b"x"}).read_bytes()
    for name in ("caf\udce9.tar", "two\nlines.tar"):
        tar(official / "ILSVRC2012_img_train.tar", {name: inner})
        with pytest.raises(InputError, match=r"class names in UTF-8, .* got (caf|two)\\.*; rename"):
            imagenet_tars(official)


def test_odd_validation_labels(official: Path) -> None:
    labels = official / "imagenet_2012_validation_synset_labels.txt"
    labels.write_bytes(b"n01440764\xe9\n")
    with pytest.raises(InputError, match="expected text in UTF-8, got byte 0xe9"):
        imagenet_tars(official)
    member = tarfile.TarInfo("data/meta.mat")
    member.size = 100 << 20
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(gzip.compress(member.tobuf() + bytes(member.size + 1024), 1))
    with pytest.raises(InputError, match=r"ValueError: meta.mat has 104,857,600 bytes\); fetch it"):
        imagenet_tars(official)
