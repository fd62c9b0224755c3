"""Data sets by name: what a config's `data.source` calls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from mobilenext.data.archives import (
    has_parquet,
    has_tars,
    has_webdataset,
    imagenet_tars,
    parquet,
    webdataset,
)
from mobilenext.data.pack import describe_pack, is_pack, open_pack
from mobilenext.data.sources import ArrayImages, ImageData, SyntheticImages, class_folders, some
from mobilenext.errors import InputError

IMAGENETTE_SYNSETS = (
    "n01440764",  # tench
    "n02102040",  # English springer
    "n02979186",  # cassette player
    "n03000684",  # chain saw
    "n03028079",  # church
    "n03394916",  # French horn
    "n03417042",  # garbage truck
    "n03425413",  # gas pump
    "n03445777",  # golf ball
    "n03888257",  # parachute
)


def digits(image_size: int = 32) -> ImageData:
    """scikit-learn's `load_digits`: 1,797 real scans of handwritten digits, inside its wheel.

    8 x 8 grey values are repeated to RGB and enlarged (bicubic). The split is fixed: a stratified
    fifth, 360 images, is held out.

    Args:
        image_size: Height and width after enlarging, in pixels.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey, labels = load_digits(return_X_y=True)
    grey = np.rint(np.reshape(grey, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    pixels = np.stack(
        [
            np.asarray(
                PIL.Image.fromarray(image).convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC)
            )
            for image in grey
        ]
    )
    train, val = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    return ImageData(
        ArrayImages(pixels[train], labels[train]),
        ArrayImages(pixels[val], labels[val]),
        tuple(str(digit) for digit in range(10)),
    )


def image_folder(
    root: str | None, expected_classes: Sequence[str] | None = None, reencoded: bool = False
) -> ImageData:
    """Any labelled images, in whichever of these ways they lie in the folder.

    A pack (`scripts/prepare_imagenet.py`); class folders, `root/train/<class>/*` and
    `root/val/<class>/*`; WebDataset's `root/train-*.tar` and `root/val-*.tar`; Hugging Face's
    `root/train-*.parquet` and `root/validation-*.parquet`.

    Args:
        root: The folder.
        expected_classes: If given, the classes have to be exactly these. (Parquet files may have
            as many others: their names are made for people, their order is the same.)
        reencoded: Whether the training images of a pack were encoded anew, smaller for instance;
            has to be said, since a run on them is another one.

    Raises:
        InputError: Something is missing, empty or damaged, or the classes of the splits differ.
    """
    if root is None:
        raise InputError(
            "data.root is not set: expected a folder with train/<class>/* and val/<class>/*, or a "
            "pack; add data.root=/path/to/it"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(f"data.root={root}: expected a folder, found none there; mend the path")
    if is_pack(base):
        data = open_pack(base)
        _check_reencoded(base, reencoded)
    elif has_webdataset(base):
        data = webdataset(base)
    elif has_parquet(base):
        data = parquet(base)
        if expected_classes is not None and len(expected_classes) == len(data.classes):
            data = ImageData(data.train, data.val, tuple(expected_classes))
    else:
        data = class_folders(base)
    if expected_classes is not None and tuple(expected_classes) != data.classes:
        raise InputError(
            f"{base}: expected the {len(expected_classes)} class folders "
            f"{some(list(expected_classes))}; missing: "
            f"{some(sorted(set(expected_classes) - set(data.classes)))}; unknown: "
            f"{some(sorted(set(data.classes) - set(expected_classes)))}. "
            "For other classes use data=imagefolder"
        )
    return data


def _check_reencoded(pack: Path, said: bool) -> None:
    described = describe_pack(pack)
    if said == described["lossless"]["train"]:
        how = "as the source had them"
        if not said:
            sides = {"max_side": "long", "short_side": "short"}
            how = (
                f"encoded anew ({sides[described['mode']]} side {described['size']}, quality "
                f"{described['quality']})"
            )
        raise InputError(
            f"data.reencoded={str(said).lower()}: the training images of {pack} are {how}; add "
            f"data.reencoded={str(not said).lower()}, or give another pack"
        )


def imagenet(root: str | None, reencoded: bool = False) -> ImageData:
    """ImageNet-1k; all 1,000 synsets have to be there.

    Args:
        root: A folder as `image_folder` takes it, or one with the official
            ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which are read in place.
        reencoded: As for `image_folder`.

    Raises:
        InputError: As `image_folder`, or the classes are not ImageNet's 1,000 synsets.
    """
    from timm.data.imagenet_info import ImageNetInfo

    synsets = sorted(ImageNetInfo("imagenet-1k").label_names())
    if has_tars(root):
        return imagenet_tars(root, synsets)
    return image_folder(root, synsets, reencoded)


def imagenette(root: str | None, reencoded: bool = False) -> ImageData:
    """Imagenette (https://github.com/fastai/imagenette), any size: ten classes of ImageNet.

    Args:
        root: The unpacked folder, for instance `imagenette2-160`, or a pack of it.
        reencoded: As for `image_folder`.

    Raises:
        InputError: As `image_folder`, or the folders are not the ten synsets.
    """
    return image_folder(root, IMAGENETTE_SYNSETS, reencoded)


def cifar10(root: str | None, download: bool = False) -> ImageData:
    """CIFAR-10 by torchvision's reader.

    Args:
        root: The folder that has, or gets, `cifar-10-batches-py`.
        download: Fetch and unpack the archive if it is not there.

    Raises:
        InputError: No root, or the files are missing or damaged and `download` is off.
    """
    from torchvision.datasets import CIFAR10

    if root is None:
        raise InputError(
            "data.root is not set: expected the folder that has cifar-10-batches-py; add "
            "data.root=/path/to/it, and data.download=true to fetch the data into it"
        )
    base = Path(root).expanduser()
    try:
        train, val = (CIFAR10(base, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"data.root={root}: expected CIFAR-10 in {base / CIFAR10.base_folder} ({error}); "
            "mend the path or add data.download=true"
        ) from error
    return ImageData(
        ArrayImages(train.data, train.targets),
        ArrayImages(val.data, val.targets),
        tuple(train.classes),
    )


def synthetic(
    train_images: int = 4096, val_images: int = 512, num_classes: int = 1000, image_size: int = 224
) -> ImageData:
    """Made-up images for tests, and for measuring the loop: training re-uses one ready batch.

    Args:
        train_images: Length of the training split.
        val_images: Length of the validation split.
        num_classes: Classes; image i is of class i % num_classes.
        image_size: Height and width in pixels.
    """
    if min(train_images, val_images, num_classes, image_size) < 1:
        raise InputError(
            "synthetic data: expected counts and sizes of at least 1, got "
            f"train_images={train_images}, val_images={val_images}, num_classes={num_classes}, "
            f"image_size={image_size}"
        )
    return ImageData(
        SyntheticImages(train_images, num_classes, image_size, "synthetic-train"),
        SyntheticImages(val_images, num_classes, image_size, "synthetic-val"),
        tuple(str(index) for index in range(num_classes)),
    )
