"""Where images come from: each function opens one kind of data set as `ImageData`."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from mobilenext.errors import InputError
from mobilenext.seeding import counter_seed

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""By content, whatever the name says; Pillow knows others, which no data set needs."""

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


class Images(Protocol):
    """One split of a data set."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        """RGB image and class index; raises `InputError` naming an image that can't be read."""
        ...


@dataclass(frozen=True)
class ImageData:
    """A data set: its two splits and the names of its classes, in the order of the labels."""

    train: Images
    val: Images
    classes: tuple[str, ...]


class ArrayImages:
    """Images in memory, (N, H, W, 3) uint8."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return PIL.Image.fromarray(self.pixels[index]), int(self.labels[index])


class FolderImages:
    """Image files under `root`, one folder a class.

    Paths lie in one numpy array, not in a list of strings: loader processes that are forked share
    it, while each look at a Python object would copy its page.
    """

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self.root = root
        class_to_index = {name: index for index, name in enumerate(classes)}
        samples = make_dataset(
            str(root), class_to_index, extensions=IMG_EXTENSIONS, allow_empty=True
        )
        self.labels = np.array([label for _, label in samples], dtype=np.int64)
        self.paths = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in samples])
        empty = np.flatnonzero(np.bincount(self.labels, minlength=len(classes)) == 0)
        if len(empty):
            raise InputError(
                f"{root}: expected images ({', '.join(IMG_EXTENSIONS)}) in every class folder, "
                f"found none in {_some([classes[index] for index in empty.tolist()])}; remove or "
                "fill these folders"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode(self.root / os.fsdecode(self.paths[index])), int(self.labels[index])


class SyntheticImages:
    """Noise with a class-dependent tint, a function of the index: no files, nothing to decode."""

    def __init__(self, length: int, num_classes: int, image_size: int, stream: str) -> None:
        self.length, self.num_classes, self.image_size = length, num_classes, image_size
        self.stream = stream

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        label = index % self.num_classes
        tint = np.random.default_rng(counter_seed("tint", label)).integers(0, 128, 3)
        noise = np.random.default_rng(counter_seed(self.stream, index))
        pixels = noise.integers(0, 128, (self.image_size, self.image_size, 3)) + tint
        return PIL.Image.fromarray(pixels.astype(np.uint8)), label


def decode(path: Path) -> PIL.Image.Image:
    """Read an image file as RGB; EXIF orientation is ignored, as torchvision does.

    Raises:
        InputError: The file can't be read or decoded, or is a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=FORMATS) as image:
                return image.convert("RGB")
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise InputError(
            f"{path}: expected an image file, could not decode it ({type(error).__name__}: "
            f"{error}); replace or remove the file"
        ) from error


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


def image_folder(root: str | None, expected_classes: Sequence[str] | None = None) -> ImageData:
    """Any data set in the layout `root/train/<class>/*`, `root/val/<class>/*`.

    Args:
        root: The folder that has `train` and `val`.
        expected_classes: If given, the class folders have to be exactly these.

    Raises:
        InputError: A folder is missing or empty, or the classes of the two splits differ.
    """
    if root is None:
        raise InputError(
            "data.root is not set: expected a folder with train/<class>/* and val/<class>/*; "
            "add data.root=/path/to/it"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(f"data.root={root}: expected a folder, found none there; mend the path")
    classes = _class_folders(base / "train")
    val_classes = _class_folders(base / "val")
    if classes != val_classes:
        raise InputError(
            f"{base}: expected the same classes in train and val; only in train: "
            f"{_some(sorted(set(classes) - set(val_classes)))}; only in val: "
            f"{_some(sorted(set(val_classes) - set(classes)))}"
        )
    if expected_classes is not None and list(expected_classes) != classes:
        raise InputError(
            f"{base}: expected the {len(expected_classes)} class folders "
            f"{_some(list(expected_classes))}; missing: "
            f"{_some(sorted(set(expected_classes) - set(classes)))}; unknown: "
            f"{_some(sorted(set(classes) - set(expected_classes)))}. "
            "For other classes use data=imagefolder"
        )
    return ImageData(
        FolderImages(base / "train", classes),
        FolderImages(base / "val", classes),
        tuple(classes),
    )


def imagenet(root: str | None) -> ImageData:
    """ImageNet-1k as class folders named by synset; all 1,000 have to be there.

    Args:
        root: The folder that has `train` and `val`.

    Raises:
        InputError: As `image_folder`, or the folders are not ImageNet's 1,000 synsets.
    """
    return image_folder(root, sorted(ImageNetInfo("imagenet-1k").label_names()))


def imagenette(root: str | None) -> ImageData:
    """Imagenette (https://github.com/fastai/imagenette), any size: ten classes of ImageNet.

    Args:
        root: The unpacked folder, for instance `imagenette2-160`.

    Raises:
        InputError: As `image_folder`, or the folders are not the ten synsets.
    """
    return image_folder(root, IMAGENETTE_SYNSETS)


def cifar10(root: str | None, download: bool = False) -> ImageData:
    """CIFAR-10 by torchvision's reader.

    Args:
        root: The folder that has, or gets, `cifar-10-batches-py`.
        download: Fetch and unpack the archive if it is not there.

    Raises:
        InputError: No root, or the files are missing or damaged and `download` is off.
    """
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


def _class_folders(split: Path) -> list[str]:
    """Sorted names of the class folders of a split."""
    if not split.is_dir():
        raise InputError(
            f"{split}: expected a folder with one folder for each class, found none; "
            "data.root has to be the folder above train and val"
        )
    with os.scandir(split) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputError(
            f"{split}: expected one folder for each class, found none; sort the images into class "
            "folders (ImageNet's validation archive comes unsorted)"
        )
    return names


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
