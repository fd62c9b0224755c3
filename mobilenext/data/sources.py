"""Image sources: one class per storage layout."""

import copy
import functools
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.folder_index import (
    NO_FOLDER,
    FolderIndex,
    FolderState,
    cached_folder_index,
    folder_state,
)
from mobilenext.data.pillow import decode_bytes
from mobilenext.errors import InputError
from mobilenext.files import NotRegularError, open_regular, printable, read_regular, will_need
from mobilenext.seeding import counter_seed

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".gif",
)  # fmt: skip
"""Endings of image files, in any case: torchvision's, and others of the formats that are read."""


class Images(Protocol):
    """One split of a data set."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, Any]:
        """RGB image and its target; raises `InputError` naming an image that can't be read."""
        ...

    def targets(self, indices: np.ndarray) -> Tensor:
        """The targets of these images, one each, in memory of their own on the host.

        Class indices, int64 (N,), where the images have one class each (`ClassTargets`).

        Args:
            indices: Indices of images, (N,).
        """
        ...


class ClassTargets:
    """Mixin of splits whose targets are class indices.

    Attributes:
        labels: The class index of each image, of any integer type.
    """

    labels: np.ndarray

    def targets(self, indices: np.ndarray) -> Tensor:
        """Class indices of these images, int64 (N,)."""
        return torch.from_numpy(self.labels[indices].astype(np.int64))


@dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        train: The training split.
        val: The validation split.
        classes: The names of the classes, in the order of the labels.
        notes: Warnings about the data, a sentence each: files that are not read, checks that could
            not be made.
    """

    train: Images
    val: Images
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def relative_name(images: Images, index: int) -> str:
    """An image's name in its data set, with surrogates for bytes that are not UTF-8.

    Its path below the folder of its split, its key in tars or in a pack, file and row of Parquet;
    its index in the split, where images have no names.
    """
    relative = getattr(images, "relative", None)
    return str(index) if relative is None else relative(index)


def labels_checksum(images: Images) -> int | None:
    """CRC-32 of all labels in their order, which differs between splits of another order.

    Args:
        images: A split; for one without an array of labels, None is returned.
    """
    labels = getattr(images, "labels", None)
    if labels is None:
        return None
    return zlib.crc32(np.ascontiguousarray(labels, dtype="<i8").tobytes())


class ArrayImages(ClassTargets):
    """Images in memory, (N, H, W, 3) uint8."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return PIL.Image.fromarray(self.pixels[index]), int(self.labels[index])

    def locate_pixels(self, indices: np.ndarray) -> Located:
        """Locations of copies of the pixels of these images."""
        items = np.zeros(len(indices), ITEM)
        pixels = np.ascontiguousarray(self.pixels[indices])
        one = pixels[0].nbytes if len(indices) else 0
        items["data"] = pixels.ctypes.data + one * np.arange(len(indices), dtype=np.uint64)
        items["length"] = one
        items["height"], items["width"] = self.pixels.shape[1:3]
        return Located(items, [pixels])


class ListedFiles:
    """Image files that are known by their paths.

    Args:
        root: Folder that the paths are below.
        paths: Paths below it, bytes (N,): one numpy array, not a million Python strings.
    """

    def __init__(self, root: Path, paths: np.ndarray) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's path, printable."""
        return printable(self.path(index))

    def relative(self, index: int) -> str:
        """The image's path below `root`, with surrogates for bytes that are not UTF-8."""
        return self.paths[index].decode("utf-8", "surrogateescape").replace("\\", "/")

    def path(self, index: int) -> Path:
        """The image's path."""
        return self.root / os.fsdecode(self.paths[index])

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            InputError: It can't be read, or is no regular file.
        """
        path = self.path(index)
        try:
            return read_regular(path)
        except NotRegularError as error:
            raise InputError(f"{error}; replace or remove the file") from error
        except OSError as error:
            raise InputError(
                f"{printable(path)}: expected an image file, could not read it "
                f"({error.strerror or error}); replace or remove the file"
            ) from error

    def read_ahead(self, indices: np.ndarray) -> None:
        """See `HasReadAhead`; the files are opened and closed again."""
        for index in indices.tolist():
            with suppress(OSError, NotRegularError), open_regular(self.path(index)) as file:
                will_need(file.fileno(), 0, os.fstat(file.fileno()).st_size)

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Locations of the files: their paths, which native code opens."""
        folder = os.fsencode(self.root)
        names = [b"%s/%s" % (folder, path) for path in self.paths[indices]]
        text = np.frombuffer(b"\0".join([*names, b""]), np.uint8)
        items = np.zeros(len(names), ITEM)
        lengths = np.fromiter((len(name) + 1 for name in names), np.uint64, len(names))
        items["path"] = np.uint64(text.ctypes.data) + np.cumsum(lengths) - lengths
        return Located(items, [text])


class FolderImages(ListedFiles, ClassTargets):
    """Image files under `root`, one folder per class.

    Hidden files and folders are passed over. Links to folders are followed, unless they lead back
    to a folder above. Many images are listed once and found in a cache from then on, until one of
    the folders changes; see `mobilenext.data.folder_index`.

    Args:
        root: Folder of the split.
        classes: Names of the class folders, in the order of the labels.

    Attributes:
        labels: Class indices, int64.
        paths: Paths below `root`, bytes.
        notes: Files and links that were left out, a sentence each.

    Raises:
        InputError: A class folder has no images or can't be read, or one folder belongs to two
            classes.
    """

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        index = cached_folder_index(root, classes, functools.partial(_walked, root, classes))
        super().__init__(root, index.paths)
        self.labels = index.labels
        self.notes = _notes(root, index.others, index.loops)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode_bytes(self.read(index), self.name(index)), int(self.labels[index])

    def taken(self, chosen: np.ndarray) -> "FolderImages":
        """The images of a mask (N,), as a split of their own."""
        part = copy.copy(self)
        part.labels, part.paths = self.labels[chosen], self.paths[chosen]
        return part


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

    def targets(self, indices: np.ndarray) -> Tensor:
        """Class indices of these images, int64 (N,)."""
        return torch.from_numpy(np.asarray(indices, np.int64) % self.num_classes)


def _walked(root: Path, classes: Sequence[str]) -> FolderIndex:
    """The images in class folders; `InputError` as `FolderImages` says."""
    paths: list[bytes] = []
    counts: list[int] = []
    others: Counter[str] = Counter()
    walk = _ClassWalk(root)
    for name in classes:
        before = len(paths)
        for folder, files in walk.files(name):
            inside = os.path.relpath(folder, root)
            images = [file for file in sorted(files) if is_image(file)]
            paths += [os.fsencode(os.path.join(inside, file)) for file in images]
            if len(images) < len(files):
                others.update(_ending(file) for file in files if not is_image(file))
        counts.append(len(paths) - before)
    loops = [os.path.relpath(loop, root) for loop in walk.loops]
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        notes = _notes(root, others, loops)
        left_out = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(
            f"{printable(root)}: expected images ({', '.join(EXTENSIONS)}) in every class "
            f"folder, found none in {some(empty)}{left_out}; remove or fill these folders"
        )
    states = {os.path.relpath(path, root): state for path, state in walk.states.items()}
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return FolderIndex(np.array(paths, dtype=bytes), labels, others, loops, states)


class _ClassWalk:
    """Walks the class folders of a split, each folder once on a path, and for one class only.

    Attributes:
        loops: Links that lead back to a folder above; they are not followed.
        states: State of each folder when it was opened, and of each link that may lead to another
            one at another time.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loops: list[str] = []
        self.states: dict[str, FolderState] = {}
        self._class_of: dict[tuple[int, int], str] = {}
        above = {root, *root.absolute().parents, *root.resolve().parents}
        self._above = frozenset(_identity(folder) for folder in above if folder.exists())

    def files(self, name: str) -> list[tuple[str, list[str]]]:
        """Folders of a class and the names of the files in each, sorted by folder.

        Raises:
            InputError: A folder can't be read, or belongs to another class as well.
        """
        found: list[tuple[str, list[str]]] = []
        pending = [(os.path.join(self.root, name), self._above)]
        while pending:
            folder, above = pending.pop()
            try:
                self.states[folder] = folder_state(folder)  # before its files are read
                identity = _identity(folder)
                if identity in above:
                    self.loops.append(folder)
                    continue
                self._check_class(folder, identity, name)
                folders, files, links = _listed(folder)
            except OSError as error:
                raise InputError(
                    f"{printable(folder)}: expected a folder that can be read ({error.strerror}); "
                    "fix its permissions, or remove it"
                ) from error
            found.append((folder, files))
            self.states.update(dict.fromkeys(links, NO_FOLDER))
            pending += [(inner, above | {identity}) for inner in folders]
        return sorted(found)

    def _check_class(self, folder: str, identity: tuple[int, int], name: str) -> None:
        other = self._class_of.setdefault(identity, name)
        if other != name:
            raise InputError(
                f"{printable(folder)}: expected images of class {name} only, got a folder that "
                f"belongs to class {other} as well; remove the link between them"
            )


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _listed(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Paths of the folders in a folder, names of its files, and paths of links among the files.

    Hidden ones are left out, and so are links with the name of an image: they would be as many as
    the images, and a folder is hardly called that.
    """
    folders, files, links = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself, for instance
                is_folder = False
            if is_folder:
                folders.append(entry.path)
                continue
            files.append(entry.name)
            if entry.is_symlink() and not is_image(entry.name):
                links.append(entry.path)
    return folders, files, links


def _ending(name: str) -> str:
    return printable(os.path.splitext(name)[1].lower()) or "none"


def _notes(split: Path, others: Mapping[str, int], loops: list[str]) -> tuple[str, ...]:
    notes = []
    if others:
        ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
        endings = some([f"{ending} ({count:,})" for ending, count in ordered])
        notes.append(f"{split.name}: files with these endings are not read: {endings}")
    if loops:
        names = [printable(loop) for loop in sorted(loops)]
        notes.append(f"{split.name}: links to folders above them are not followed: {some(names)}")
    return tuple(notes)


def data_folder(root: str | Path | None, expected: str) -> Path:
    """The folder that `data.root` names.

    Args:
        root: The value of `data.root`.
        expected: The folder that it has to name, for messages.

    Raises:
        InputError: It is not set, or is no folder.
    """
    if root is None:
        raise InputError(f"data.root is not set: expected {expected}; add data.root=/path/to/it")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(
            f"data.root={printable(root)}: expected a folder, found none there; fix the path"
        )
    return base


def is_hidden(path: str) -> bool:
    """Whether a file or an archive's member, or a folder that it lies in, is hidden by its name.

    Args:
        path: Its path, with slashes.
    """
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def is_image(path: str) -> bool:
    """Whether a file or an archive's member is an image by its name, and not hidden.

    Args:
        path: Its path, with slashes.
    """
    return path.lower().endswith(EXTENSIONS) and not is_hidden(path)


def class_folders(
    root: Path, val_folder: str | None = None, val_share: float | None = None
) -> ImageData:
    """Class folders under `root/train` and `root/val`, or a share held out of one of them.

    Args:
        root: The folder that has `train` and `val`; with `val_share` it may be the one that has
            the class folders.
        val_folder: Name below `root` of the folder with the validation images; None: val.
        val_share: Share of the images in `root/train`, or in the class folders of `root`, that
            make up the validation split; None: none, they have their own folder.

    Raises:
        InputError: A folder is missing or empty, the classes of the two splits differ, or a class
            is left without images.
    """
    if val_share is not None:
        return _held_out(root, val_share)
    val_name = val_folder or "val"
    (classes, train_notes), (val_classes, val_notes) = (
        _class_folders(root / split) for split in ("train", val_name)
    )
    if classes != val_classes:
        raise InputError(
            f"{printable(root)}: expected the same classes in train and {val_name}; only in train: "
            f"{some(sorted(set(classes) - set(val_classes)))}; only in {val_name}: "
            f"{some(sorted(set(val_classes) - set(classes)))}"
        )
    train, val = (FolderImages(root / split, classes) for split in ("train", val_name))
    notes = (*train_notes, *train.notes, *val_notes, *val.notes)
    return ImageData(train, val, tuple(classes), notes)


def _held_out(root: Path, share: float) -> ImageData:
    """One set of class folders, of whose images some are held out by their names."""
    base = root / "train" if (root / "train").is_dir() else root
    classes, notes = _class_folders(base)
    images = FolderImages(base, classes)
    held_out = np.array([_fraction(images.relative(i)) < share for i in range(len(images))])
    train, val = images.taken(~held_out), images.taken(held_out)
    untrained, unchecked = (
        [classes[label] for label in np.setdiff1d(np.arange(len(classes)), split.labels)]
        for split in (train, val)
    )
    if untrained or not len(val):
        split = "training" if untrained else "validation"
        raise InputError(
            f"data.val_share={share:g}: expected to leave {split} images in each class, left "
            f"none in {some(untrained or unchecked)}; add images or change the share"
        )
    said = [
        f"data.val_share={share:g} holds {len(val):,} of {len(images):,} images out, chosen by "
        "their names"
    ]
    if unchecked:
        said.append(f"there are no validation images of {some(unchecked)}")
    others = [folder.name for folder in root.iterdir() if folder.is_dir() and folder != base]
    if base != root and others:
        said.append(f"data.val_share takes images of train only; not read: {some(sorted(others))}")
    return ImageData(train, val, tuple(classes), (*said, *notes, *images.notes))


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _class_folders(split: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the class folders of a split; notes on other files there."""
    if not split.is_dir():
        raise InputError(
            f"{printable(split)}: expected a folder with one folder for each class, found none; "
            "data.root has to be the folder above train and val"
        )
    folders, files, _ = _listed(str(split))
    names = sorted(os.path.basename(folder) for folder in folders)
    if not names:
        raise InputError(
            f"{printable(split)}: expected one folder for each class, found none; sort the images "
            "into class folders (ImageNet's validation archive comes unsorted)"
        )
    check_class_names(names, str(split))
    images = sum(map(is_image, files))
    notes = [f"{split.name}: images outside of the class folders are not read: {images:,}"]
    return names, notes if images else []


def check_class_names(names: Iterable[str], place: str) -> None:
    """Raise `InputError` unless the names of classes are text of one line each.

    They go into checkpoints and results, which have to be readable everywhere.

    Args:
        names: The names.
        place: The file or folder that has them, for messages.
    """
    for name in names:
        if any(0xD800 <= ord(c) <= 0xDFFF or c in "\r\n" for c in name):
            raise InputError(
                f"{printable(place)}: expected class names in UTF-8, a line each, got "
                f"{printable(name)}; rename it"
            )


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and the number of further ones."""
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
