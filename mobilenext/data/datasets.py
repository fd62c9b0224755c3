"""Data sets by name: the functions that a config's `data.source` calls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from mobilenext.data.imagenet_tars import imagenet_tars
from mobilenext.data.layouts import Layout, check_nearly_right, has_splits, layout_of
from mobilenext.data.pack import describe_pack, open_pack
from mobilenext.data.parquet import parquet
from mobilenext.data.sources import (
    ArrayImages,
    ImageData,
    SyntheticImages,
    class_folders,
    data_folder,
    some,
)
from mobilenext.data.webdataset import webdataset
from mobilenext.errors import InputError
from mobilenext.files import check_regular, printable

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
    """1,797 real scans of handwritten digits, a file of this package.

    8 x 8 grey values are repeated to RGB and enlarged (bicubic). The split is fixed: a stratified
    fifth, 360 images, is held out. Images, order and split are those of scikit-learn's
    `load_digits` and `train_test_split(test_size=0.2, random_state=0)`.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0.

    Args:
        image_size: Height and width after enlarging, in pixels.

    Raises:
        InputError: The size is not 1 to 512.
    """
    if not 1 <= image_size <= 512:
        raise InputError(f"digits: expected an image_size of 1 to 512 pixels, got {image_size}")
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        grey, labels, train, val = (file[name] for name in ("grey", "labels", "train", "val"))
    grey = np.rint(grey * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    pixels = np.stack(
        [
            np.asarray(
                PIL.Image.fromarray(image).convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC)
            )
            for image in grey
        ]
    )
    return ImageData(
        ArrayImages(pixels[train], labels[train]),
        ArrayImages(pixels[val], labels[val]),
        tuple(str(digit) for digit in range(10)),
    )


BY_IMAGE_FOLDER = frozenset(Layout) - {Layout.IMAGENET_TARS}
"""Layouts that `image_folder` reads; only `imagenet` reads the official tars, which name their
classes by synsets."""


def image_folder(
    root: str | None,
    expected_classes: Sequence[str] | None = None,
    reencoded: bool = False,
    val_folder: str | None = None,
    val_share: float | None = None,
) -> ImageData:
    """Labelled images in a folder, in any of these layouts.

    A pack (`scripts/prepare_imagenet.py`); class folders, `root/train/<class>/*` and
    `root/val/<class>/*`; WebDataset's `root/train-*.tar` and `root/val-*.tar`; Hugging Face's
    `root/train-*.parquet` and `root/validation-*.parquet`.

    Args:
        root: The folder.
        expected_classes: If given, the classes have to be exactly these. (Parquet files may name
            them by words, as `named_by_synsets` accepts them.)
        reencoded: Whether the training images of a pack were re-encoded, smaller for instance. It
            has to be set for such a pack, since its runs are not those on the original images.
        val_folder: Where class folders have their validation images, below `root`; None: val.
        val_share: Share of the images in `root/train/<class>/*` or `root/<class>/*` that is held
            out for validation; see `class_folders`.

    Raises:
        InputError: Something is missing, empty or damaged, or the classes of the splits differ.
    """
    base = data_folder(root, "a folder with train/<class>/* and val/<class>/*, or a pack")
    layout = layout_of(base, BY_IMAGE_FOLDER)
    if layout not in (None, Layout.CLASS_FOLDERS) and (val_folder or val_share):
        raise InputError(
            f"{printable(base)} is {layout.value}, which says itself what is validation: expected "
            f"data.val_folder=null and data.val_share=null, got {val_folder} and {val_share}"
        )
    match layout:
        case Layout.PACK:
            data = open_pack(base)
            _check_reencoded(base, reencoded)
        case Layout.WEBDATASET:
            data = webdataset(base)
        case Layout.PARQUET:
            data = parquet(base)
            if expected_classes is not None:
                data = named_by_synsets(base, data, expected_classes)
        case layout:
            # A data set of known classes has splits of its own, and no keys to make others.
            any_images = expected_classes is None
            if not (any_images and has_splits(base, val_folder, val_share)) and layout is None:
                check_nearly_right(base)
            data = class_folders(base, val_folder, val_share)
    if expected_classes is not None and tuple(expected_classes) != data.classes:
        raise InputError(
            f"{printable(base)}: expected the {len(expected_classes)} class folders "
            f"{some(list(expected_classes))}; missing: "
            f"{some(sorted(set(expected_classes) - set(data.classes)))}; unknown: "
            f"{some(sorted(set(data.classes) - set(expected_classes)))}. "
            "For other classes use data=imagefolder"
        )
    return data


MOST_ODD_NAMES = 0.02
"""Share of the class names that may have a spelling that is in no list of words."""


def named_by_synsets(base: Path, data: ImageData, synsets: Sequence[str]) -> ImageData:
    """Parquet data with ImageNet's synsets as the names of its classes.

    The files name classes by words ("tench, Tinca tinca"), by synsets, or not at all. Words are
    compared with those of WordNet, which timm has, label by label.

    Args:
        base: The folder, for messages.
        data: What `parquet` returned.
        synsets: The expected synsets, in the order of the labels.

    Raises:
        InputError: The classes are others, or have another order.
    """
    if len(data.classes) != len(synsets):
        raise InputError(
            f"{printable(base)}: expected the {len(synsets)} classes {some(list(synsets))}, got "
            f"{len(data.classes)}: {some(list(map(printable, data.classes)))}. For other classes "
            "use data=imagefolder"
        )
    notes = data.notes
    if data.classes == tuple(map(str, range(len(synsets)))):
        notes = (*notes, f"labels are taken to be in the order of the {len(synsets)} synsets")
    elif data.classes != tuple(synsets):
        _check_words(base, data.classes, synsets)
    return ImageData(data.train, data.val, tuple(synsets), notes)


def _check_words(base: Path, names: Sequence[str], synsets: Sequence[str]) -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    words = [_words(info.label_name_to_description(synset)) | {synset} for synset in synsets]
    known = set().union(*words)
    odd = [label for label, name in enumerate(names) if not _words(name) & words[label]]
    if any(_words(names[label]) & known for label in odd) or len(odd) > MOST_ODD_NAMES * len(names):
        label = odd[0]
        raise InputError(
            f"{printable(base)}: expected the classes of the {len(synsets)} synsets in their "
            f"order, got others for {len(odd)} labels: {label} is {printable(names[label])}, "
            f"expected {info.label_name_to_description(synsets[label])} ({synsets[label]}). For "
            "other classes use data=imagefolder"
        )


def _words(description: str) -> set[str]:
    """The synonyms of a description, in one spelling."""
    return {word.strip().replace("_", " ").casefold() for word in description.split(",")}


def _check_reencoded(pack: Path, expected: bool) -> None:
    described = describe_pack(pack)
    if expected == described["lossless"]["train"]:
        how = "as the source had them"
        if not expected:
            sides = {"max_side": "long", "short_side": "short"}
            how = (
                f"encoded anew ({sides[described['mode']]} side {described['size']}, quality "
                f"{described['quality']})"
            )
        raise InputError(
            f"data.reencoded={str(expected).lower()}: the training images of {pack} are {how}; add "
            f"data.reencoded={str(not expected).lower()}, or give another pack"
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
    if root is not None and layout_of(Path(root).expanduser()) is Layout.IMAGENET_TARS:
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
    for name in [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"]]]:
        path = base / CIFAR10.base_folder / name[0]
        if path.exists():
            check_regular(path)
    try:
        train, val = (CIFAR10(base, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"data.root={root}: expected CIFAR-10 in {base / CIFAR10.base_folder} ({error}); "
            "fix the path or add data.download=true"
        ) from error
    return ImageData(
        ArrayImages(train.data, train.targets),
        ArrayImages(val.data, val.targets),
        tuple(train.classes),
    )


def synthetic(
    train_images: int = 4096, val_images: int = 512, num_classes: int = 1000, image_size: int = 224
) -> ImageData:
    """Synthetic images for tests, and for measuring the loop: training reuses one ready batch.

    Args:
        train_images: Length of the training split.
        val_images: Length of the validation split.
        num_classes: Classes; image i is of class i % num_classes.
        image_size: Height and width in pixels.
    """
    most = max(train_images, val_images) > 1 << 27 or num_classes > 1 << 20 or image_size > 2048
    if most or min(train_images, val_images, num_classes, image_size) < 1:
        raise InputError(
            "synthetic data: expected counts and sizes of at least 1, at most 2**27 images, 2**20 "
            "classes and 2048 pixels, got "
            f"train_images={train_images}, val_images={val_images}, num_classes={num_classes}, "
            f"image_size={image_size}"
        )
    return ImageData(
        SyntheticImages(train_images, num_classes, image_size, "synthetic-train"),
        SyntheticImages(val_images, num_classes, image_size, "synthetic-val"),
        tuple(str(index) for index in range(num_classes)),
    )
