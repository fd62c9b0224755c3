"""Packs of images with boxes: bytes come from a pack, boxes from where they were.

A pack (`scripts/prepare_imagenet.py source=VOCdevkit`) has the images of a data set in a few large
files, with restart markers, so that a crop is decoded from a part of the bytes. Annotations stay in
their own files, and headers of images are still read there at the start.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from mobilenext.data.boxes import BoxData, BoxImages
from mobilenext.data.encoded import Located
from mobilenext.data.pack import PackImages, describe_pack, open_pack
from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import (
    ClassTargets,
    ImageData,
    ListedFiles,
    is_hidden,
    is_image,
    some,
)
from mobilenext.errors import InputError
from mobilenext.files import printable

ONE_CLASS = "images"
"""The only class of such a pack; its images have boxes elsewhere."""


class PackedBoxImages(BoxImages):
    """Images with boxes whose bytes lie in a pack.

    Args:
        images: The images, by their paths.
        pack: A split of the pack.
        places: Where each of them is in it, (N,).
    """

    def __init__(self, images: BoxImages, pack: PackImages, places: np.ndarray) -> None:
        super().__init__(images.root, images.paths, images.boxes)
        self.pack, self.places = pack, places

    def name(self, index: int) -> str:
        """Pack, split and name of an image."""
        return self.pack.name(int(self.places[index]))

    def read(self, index: int) -> bytes:
        """The encoded bytes; see `PackImages.read`."""
        return self.pack.read(int(self.places[index]))

    def segments(self, index: int) -> np.ndarray | None:
        """See `PackImages.segments`."""
        return self.pack.segments(int(self.places[index]))

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """See `PackImages.locate`."""
        return self.pack.locate(self.places[np.asarray(indices)])

    def read_ahead(self, indices: np.ndarray) -> None:
        """See `PackImages.read_ahead`."""
        self.pack.read_ahead(self.places[indices])

    def found_whole(self, indices: np.ndarray) -> None:
        """See `PackImages.found_whole`."""
        self.pack.found_whole(self.places[indices])


def with_pack(data: BoxData, pack: str | None) -> BoxData:
    """The same data, with the images' bytes from a pack.

    Args:
        data: As its source made it.
        pack: Folder of the pack; None: bytes stay where they are.

    Raises:
        InputError: There is no such pack, it lacks an image, or an image has another size in it.
    """
    if pack is None:
        return data
    opened = open_pack(pack)
    if not describe_pack(Path(pack).expanduser())["lossless"]["train"]:
        raise InputError(
            f"data.source.pack={printable(pack)}: expected a pack of the images as they are, got "
            "one whose training images were encoded anew; make it with mode=restart or mode=copy"
        )
    parts = [part for part in (opened.train, opened.val) if isinstance(part, PackImages)]
    return replace(data, train=_packed(data.train, parts, pack), val=_packed(data.val, parts, pack))


def _packed(images: BoxImages, parts: Sequence[PackImages], pack: str) -> PackedBoxImages:
    lacking: list[str] = []
    for part in parts:
        numbers = {part.relative(index): index for index in range(len(part))}
        places = [numbers.get(images.relative(index), -1) for index in range(len(images))]
        if min(places, default=0) >= 0:
            found = np.array(places, np.int64)
            sizes = np.stack([part.index["width"], part.index["height"]], 1)[found]
            other = np.flatnonzero((sizes != images.boxes.sizes).any(1))
            if len(other):
                name, size = images.relative(int(other[0])), sizes[other[0]].tolist()
                raise InputError(
                    f"data.source.pack={printable(pack)}: expected images of the sizes that their "
                    f"boxes belong to, got {printable(name)} of {size[0]} x {size[1]} pixels; make "
                    "the pack with mode=restart or mode=copy"
                )
            return PackedBoxImages(images, part, found)
        missing = [images.relative(i) for i, place in enumerate(places) if place < 0]
        lacking = missing if not lacking or len(missing) < len(lacking) else lacking
    raise InputError(
        f"data.source.pack={printable(pack)}: expected all {len(images):,} images of a split in "
        f"one split of the pack, {len(lacking):,} are not there: "
        f"{some(list(map(printable, lacking)))}; make the pack of this data.root again, or leave "
        "data.source.pack out"
    )


class _Pictures(ListedFiles, ClassTargets):
    """Image files that are packed as they lie, all of one class.

    Args:
        root: Folder that the paths are below.
        paths: Paths below it.
    """

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        super().__init__(root, np.array([os.fsencode(path) for path in paths], dtype=bytes))
        self.labels = np.zeros(len(self.paths), np.int64)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode_bytes(self.read(index), self.name(index)), 0


def pictures_of(base: Path) -> ImageData | None:
    """All images of a data set with boxes, to be packed; None: the folder has no such data set.

    Images of VOC's test lists, and of COCO's val and test folders, become the pack's validation
    images.

    Args:
        base: VOCdevkit, or COCO's folder.

    Raises:
        InputError: It has no images for one of the splits.
    """
    devkits = sorted(path.parent for path in base.glob("*/JPEGImages") if path.is_dir())
    if devkits:
        held_out = {
            f"{folder.name}/{name}" for folder in devkits for name in _listed(folder, "test")
        } or {f"{folder.name}/{name}" for folder in devkits for name in _listed(folder, "val")}
        paths = [
            f"{folder.name}/JPEGImages/{name}"
            for folder in devkits
            for name in _images_in(folder / "JPEGImages")
        ]
        is_val = [f"{path.split('/')[0]}/{Path(path).stem}" in held_out for path in paths]
    elif any((base / "annotations").glob("instances_*.json")):
        folders = sorted(path.name for path in base.iterdir() if path.is_dir())
        paths = [f"{name}/{file}" for name in folders for file in _images_in(base / name)]
        is_val = [path.startswith(("val", "test")) for path in paths]
    else:
        return None
    splits = [
        _Pictures(base, [path for path, val in zip(paths, is_val, strict=True) if val == wanted])
        for wanted in (False, True)
    ]
    if not all(map(len, splits)):
        raise InputError(
            f"{printable(base)}: expected images to train on and images to evaluate on, got "
            f"{len(splits[0])} and {len(splits[1])}"
        )
    return ImageData(splits[0], splits[1], (ONE_CLASS,))


def _listed(folder: Path, split: str) -> list[str]:
    try:
        return (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    except OSError:
        return []


def _images_in(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder))
    return [name for name in names if is_image(name) and not is_hidden(name)]
