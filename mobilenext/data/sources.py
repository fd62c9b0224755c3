"""Where images come from: one class for each way in which they lie around."""

import io
import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image

from mobilenext.data.encoded import ITEM, Located
from mobilenext.errors import InputError
from mobilenext.seeding import counter_seed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files in class folders, in any case; torchvision's."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""By content, whatever the name says; Pillow knows others, which no data set needs."""


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


def labels_checksum(images: Images) -> int | None:
    """CRC-32 of all labels in their order; tells splits apart that have another order.

    Args:
        images: A split; None is returned for one that does not have its labels at hand.
    """
    labels = getattr(images, "labels", None)
    if labels is None:
        return None
    return zlib.crc32(np.ascontiguousarray(labels, dtype="<i8").tobytes())


class ArrayImages:
    """Images in memory, (N, H, W, 3) uint8."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return PIL.Image.fromarray(self.pixels[index]), int(self.labels[index])

    def locate_pixels(self, indices: np.ndarray) -> Located:
        """Where the pixels of these images are."""
        items = np.zeros(len(indices), ITEM)
        chosen = np.ascontiguousarray(self.pixels[indices])
        one = chosen[0].nbytes if len(indices) else 0
        items["data"] = chosen.ctypes.data + one * np.arange(len(indices), dtype=np.uint64)
        items["length"] = one
        items["height"], items["width"] = self.pixels.shape[1:3]
        return Located(items, [chosen])


class FolderImages:
    """Image files under `root`, one folder a class.

    Paths lie in one numpy array, not in a million Python strings.
    """

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self.root = root
        paths: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            for folder, _, files in sorted(os.walk(root / name, followlinks=True)):
                inside = os.path.relpath(folder, root)
                chosen = [file for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
                paths += [os.fsencode(os.path.join(inside, file)) for file in chosen]
                labels += [label] * len(chosen)
        self.labels = np.array(labels, dtype=np.int64)
        self.paths = np.array(paths, dtype=bytes)
        empty = np.flatnonzero(np.bincount(self.labels, minlength=len(classes)) == 0)
        if len(empty):
            raise InputError(
                f"{root}: expected images ({', '.join(EXTENSIONS)}) in every class folder, "
                f"found none in {some([classes[index] for index in empty.tolist()])}; remove or "
                "fill these folders"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode(self._path(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self._path(index))

    def read(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            return self._path(index).read_bytes()
        except OSError as error:
            raise InputError(_undecodable(self.name(index), error)) from error

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """The files' paths; native code opens them."""
        root = os.fsencode(self.root)
        names = [b"%s/%s" % (root, path) for path in self.paths[indices]]
        text = np.frombuffer(b"\0".join([*names, b""]), np.uint8)
        items = np.zeros(len(names), ITEM)
        lengths = np.fromiter((len(name) + 1 for name in names), np.uint64, len(names))
        items["path"] = np.uint64(text.ctypes.data) + np.cumsum(lengths) - lengths
        return Located(items, [text])

    def _path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.paths[index])


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
    return _decoded(path, str(path))


def decode_bytes(data: bytes | memoryview, name: str) -> PIL.Image.Image:
    """As `decode`, from the bytes of a file.

    Args:
        data: An encoded image.
        name: What to call it in messages.

    Raises:
        InputError: It can't be decoded, or is a decompression bomb.
    """
    return _decoded(io.BytesIO(data), name)


# Set once: to change filters for a moment is not safe where several threads decode.
warnings.filterwarnings("ignore", module=r"PIL\..*")


def _decoded(file: Path | io.BytesIO, name: str) -> PIL.Image.Image:
    try:
        with PIL.Image.open(file, formats=FORMATS) as image:
            most = PIL.Image.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise PIL.Image.DecompressionBombError(
                    f"{image.width} x {image.height} pixels are more than {most}"
                )
            return image.convert("RGB")
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise InputError(_undecodable(name, error)) from error


def _undecodable(name: str, error: Exception) -> str:
    return (
        f"{name}: expected an image file, could not decode it ({type(error).__name__}: {error}); "
        "replace or remove the file"
    )


def class_folders(root: Path) -> ImageData:
    """Class folders under `root/train` and `root/val`.

    Args:
        root: The folder that has `train` and `val`.

    Raises:
        InputError: A folder is missing or empty, or the classes of the two splits differ.
    """
    classes, val_classes = _class_folders(root / "train"), _class_folders(root / "val")
    if classes != val_classes:
        raise InputError(
            f"{root}: expected the same classes in train and val; only in train: "
            f"{some(sorted(set(classes) - set(val_classes)))}; only in val: "
            f"{some(sorted(set(val_classes) - set(classes)))}"
        )
    train, val = (FolderImages(root / split, classes) for split in ("train", "val"))
    return ImageData(train, val, tuple(classes))


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


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
