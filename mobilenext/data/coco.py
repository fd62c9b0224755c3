"""COCO, and data sets in its format: one JSON file for each split.

`annotations/instances_SPLIT.json`, and images in `SPLIT/`. Source: T.-Y. Lin et al., Microsoft
COCO: Common Objects in Context, https://cocodataset.org/#format-data.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mobilenext.data.box_problems import (
    Found,
    Problems,
    add_repeated,
    box_data,
    image_size,
    in_threads,
    stays_inside,
)
from mobilenext.data.boxes import BoxData
from mobilenext.data.packed_boxes import with_pack
from mobilenext.data.sources import data_folder, some
from mobilenext.errors import InputError
from mobilenext.files import printable, read_regular, what_is

SPLIT_NAMES = {"COCO2017": ("train2017", 118_287, "val2017", 5_000)}
"""What tables call splits: set and number of images for training, the same for evaluation."""

LISTS = ("images", "annotations", "categories")
PASSED_OVER = ("segmentation", "keypoints")
"""Keys of annotations that no box needs, and that are most of the file: let go of as it is read."""

MOST_JSON = 1 << 32
"""Bytes of a file; COCO's have up to 470 million."""
MOST_NUMBER = 1 << 62


def coco(
    root: str | Path | None,
    train: str = "train2017",
    val: str = "val2017",
    classes: Sequence[str] | str | None = None,
    on_bad_box: str = "drop",
    on_bad_image: str = "error",
    pack: str | None = None,
) -> BoxData:
    """Images and boxes of COCO, or of a data set in its format.

    Classes are numbered in the order of the categories' ids, without their holes. Crowds are left
    out of training, and are difficult objects in evaluation. All files are looked at before
    anything is returned: annotations are read, and the headers of images. See `box_problems` for
    the rules.

    Args:
        root: The folder that has annotations/ and the folders of the splits, or images/ with them.
        train: What to train on: annotations/instances_TRAIN.json and TRAIN/.
        val: What to evaluate on.
        classes: Names of the classes in the order of the labels; None: all categories of the
            training split; "from_data": those that its annotations have, sorted.
        on_bad_box: What to do with a box that is not inside of its image: error, clip or drop.
        on_bad_image: What to do with an image that can't be used: error or skip.
        pack: Folder of a pack of these images, see `packed_boxes`; None: they are read where they
            are.

    Raises:
        InputError: A folder or file is missing, a file is no JSON of this format, or there are
            problems that the rules don't forgive; these are in one message.
    """
    base = data_folder(root, "the folder that has annotations/ and the images of COCO")
    problems = Problems(base, on_bad_box, on_bad_image)
    files = {split: _File(base, split, problems) for split in dict.fromkeys((train, val))}
    for file in files.values():
        file.find_images(base)
    data = box_data(
        files[train].found(), files[val].found(), classes, files[train].category_names, problems
    )
    data = replace(data, protocol="coco", split_name=_split_name(train, val, files, data))
    return with_pack(data, pack)


class _File:
    """What a JSON file says of a split.

    Args:
        base: The folder of the data set.
        split: Name of the split.
        problems: What annotations of nothing known are added to.

    Raises:
        InputError: It can't be read, or has other keys or types.
    """

    def __init__(self, base: Path, split: str, problems: Problems) -> None:
        self.place = f"annotations/instances_{split}.json"
        self.name = printable(self.place)
        folders = [folder for folder in (split, f"images/{split}") if (base / folder).is_dir()]
        if not stays_inside(split) or not folders or not (base / self.place).exists():
            raise _not_there(base, split, self.place, bool(folders))
        self.folder = folders[0]
        self.lists = _lists(base / self.place, self.name)
        self.faults: dict[int, str] = {}
        self._take_categories()
        self._take_images(problems)
        self._take_objects(problems)
        self.lists = {}  # COCO's annotations are a gigabyte of objects

    def _take_categories(self) -> None:
        ids = self._integers("categories", "id")
        names = self._texts("categories", "name")
        for key, values in (("id", ids.tolist()), ("name", names)):
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            if twice:
                raise InputError(
                    f"{self.name}: expected each {key} of a category once, got several times: "
                    f"{some([printable(value) for value in twice])}"
                )
        order = np.argsort(ids)
        self.categories = ids[order]
        self.category_names = [names[index] for index in order]

    def _take_images(self, problems: Problems) -> None:
        self.images = self._integers("images", "id")
        files = self._texts("images", "file_name")
        ids, counts = np.unique(self.images, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"{self.name}: expected each id of an image once, got several times: "
                f"{some([str(number) for number in ids[counts > 1]])}"
            )
        add_repeated(files, self.name, problems)
        self.paths = [f"{self.folder}/{file}" for file in files]
        for index, file in enumerate(files):
            if not stays_inside(file):
                self.faults[index] = (
                    f"{self.name}: images[{index}]: expected a file_name in {self.folder}, got "
                    f"{printable(file[:100])}"
                )
        sides = [self._integers("images", side, 0) for side in ("width", "height")]
        self.said = np.stack(sides, 1)
        self.listed = len(files)

    def _take_objects(self, problems: Problems) -> None:
        entries = self.lists["annotations"]
        numbers = self._integers("annotations", "id", -1)
        image, listed = _places(self.images, self._integers("annotations", "image_id"))
        kind, known = _places(self.categories, self._integers("annotations", "category_id"))
        for key, good, what in (
            ("image_id", listed, "an image"),
            ("category_id", known, "a category"),
        ):
            self._add_unknown(key, np.flatnonzero(~good), what, problems)
        # The sort is stable, so objects of an image stay in their order.
        chosen = np.flatnonzero(listed & known)
        chosen = chosen[np.argsort(image[chosen], kind="stable")]
        self.numbers = np.where(numbers < 0, np.arange(len(numbers)), numbers)[chosen]
        self.image, self.kind = image[chosen], kind[chosen]
        self.difficult = self._integers("annotations", "iscrowd", 0)[chosen] != 0
        self.boxes, self.box_faults = _boxes([entries[place] for place in chosen.tolist()])

    def _add_unknown(self, key: str, places: np.ndarray, what: str, problems: Problems) -> None:
        entries = self.lists["annotations"]
        unknown: dict[int, list[int]] = {}
        for place in places.tolist():
            unknown.setdefault(entries[place][key], []).append(place)
        for value, found in unknown.items():
            entry = entries[found[0]]
            first = f"annotations[{found[0]}] (id {printable(str(entry.get('id'))[:40])})"
            more = f", and {len(found) - 1:,} more of it" if len(found) > 1 else ""
            problems.always.append(
                f"{self.name}: {first}: expected the id of {what} in {key}, got {value}{more}"
            )

    def _integers(self, kind: str, key: str, default: int | None = None) -> np.ndarray:
        """Integers of all entries of a list, int64; those without get the default, if any."""
        values = [entry.get(key, default) for entry in self.lists[kind]]
        column = _array(values)
        if column is not None and column.ndim == 1 and column.dtype.kind == "i":
            return column.astype(np.int64)
        for index, value in enumerate(values):
            if value is None and default is not None:
                values[index] = default
            elif value is None or not _is_number(value) or value % 1:
                raise self._wrong(kind, index, key, "an integer", value)
        return np.array([int(value) for value in values], np.int64)

    def _texts(self, kind: str, key: str) -> list[str]:
        values: list[str] = []
        for index, entry in enumerate(self.lists[kind]):
            value = entry.get(key)
            if not isinstance(value, str) or not value:
                raise self._wrong(kind, index, key, "a text", value)
            values.append(value)
        return values

    def _wrong(self, kind: str, index: int, key: str, expected: str, value: object) -> InputError:
        found = "found none" if value is None else f"got {_shown(value)}"
        return InputError(
            f"{self.name}: {kind}[{index}]: expected {expected} in {key}, {found}; fetch or export "
            "the file again"
        )

    def find_images(self, base: Path) -> None:
        """Read the headers of all images."""
        self.sizes = np.zeros((len(self.paths), 2), np.int32)
        wanted = [index for index in range(len(self.paths)) if index not in self.faults]
        read = in_threads(partial(_size, base), [self.paths[index] for index in wanted])
        for index, size in zip(wanted, read, strict=True):
            if isinstance(size, InputError):
                self.faults[index] = str(size)
            else:
                self.sizes[index] = size
        for index in self.faults:
            self.paths[index] = ""

    def found(self) -> "_CocoFound":
        """The split, for the rules."""
        corners = self.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        found = _CocoFound(
            self.paths, self.faults, self.sizes, self.said, self.image, corners,
            self.category_names, self.kind, self.difficult, self.box_faults,
        )  # fmt: skip
        found.file = self
        return found


class _CocoFound(Found):
    difficult_key = "crowds"
    difficult_names = ("crowd", "crowds")

    file: _File

    def object_name(self, index: int) -> str:
        name = printable(self.kinds[self.kind[index]][:40])
        return f"{self.file.name}: annotation {self.file.numbers[index]} ({name})"

    def flat(self, index: int) -> str:
        width, height = self.file.boxes[index, 2:].tolist()
        return f"expected a width and a height above 0 in bbox, got {width:g}, {height:g}"

    def values(self, index: int) -> str:
        x, y, width, height = self.file.boxes[index].tolist()
        return f"x {x:g}, y {y:g}, width {width:g}, height {height:g}"


def _not_there(base: Path, split: str, place: str, has_images: bool) -> InputError:
    name = place if has_images else f"{split}/ (or images/{split}/)"
    deeper = sorted(base.glob(f"*/{place}")) if stays_inside(split) else []
    there = f"; data.root={printable(deeper[0].parent.parent)} has it" if deeper else ""
    return InputError(
        f"data.root={printable(base)}: expected {printable(place)} and images in "
        f"{printable(split)}/, found no {printable(name)}{there}; fix the path, or choose other "
        "splits by data.source.train and data.source.val"
    )


def _lists(path: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """The lists of a file, whose entries are dicts."""
    data = b""
    try:
        data = read_regular(path, MOST_JSON)
        content = json.loads(data, object_hook=_slim)
    except OSError as error:
        raise InputError(f"{name}: could not read it ({error.strerror or error})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        found = what_is(data[:512])
        raise InputError(
            f"{name}: expected JSON, {f'but it is {found}' if found else f'got none ({error})'}; "
            "fetch or export the file again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected an object with {', '.join(LISTS)}, got a list or value")
    for key in LISTS:
        entries = content.get(key)
        if not isinstance(entries, list):
            found = "found none" if entries is None else f"got {_shown(entries)}"
            raise InputError(
                f"{name}: expected a list of {key}, {found}; files for captions or without "
                "annotations can't be used"
            )
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise InputError(f"{name}: {key}[{index}]: expected an object, got {_shown(entry)}")
    return {key: content[key] for key in LISTS}


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    for key in PASSED_OVER:
        entry.pop(key, None)
    return entry


def _places(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where values stand in an array without repetitions, and whether they do."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = np.argsort(known)
    at = order[np.searchsorted(known, wanted, sorter=order).clip(0, len(known) - 1)]
    return at, known[at] == wanted


def _boxes(entries: list[dict[str, Any]]) -> tuple[np.ndarray, dict[int, str]]:
    """x, y, width, height of annotations, float64 (M, 4); why others have none, by index."""
    boxes = _array([entry.get("bbox") for entry in entries])
    areas = _array([entry.get("area") for entry in entries])
    clean = np.zeros(len(entries), bool)
    if boxes is not None and boxes.shape == (len(entries), 4) and areas is not None:
        clean = np.isfinite(boxes).all(1) & (areas > 0)
    faults: dict[int, str] = {}
    values = np.zeros((len(entries), 4))
    if boxes is not None and clean.any():
        values[clean] = boxes[clean]
    for index in np.flatnonzero(~clean).tolist():
        fault = _box_fault(entries[index])
        if fault is None:
            values[index] = entries[index]["bbox"]
        else:
            faults[index] = fault
    return values, faults


def _array(values: list[Any]) -> np.ndarray | None:
    """Values as an array of integers or floats; None: they are not all numbers, or ragged."""
    try:
        array = np.array(values)
    except ValueError:
        return None
    return array if array.dtype.kind in "if" else None


def _box_fault(entry: dict[str, Any]) -> str | None:
    """What is wrong with the numbers of an annotation; None: nothing."""
    box, area = entry.get("bbox"), entry.get("area")
    if box is None:
        return "expected bbox, found none"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"expected four numbers in bbox, got {_shown(box)}"
    if area is not None and not _is_number(area):
        return f"expected a number in area, got {_shown(area)}"
    if area is not None and area <= 0 < min(box[2:]):  # else the box is at fault
        return f"expected an area above 0, got {area:g}"
    return None


def _is_number(value: object) -> bool:
    """Whether it is a finite number, which fits into 64 bits if it is an integer."""
    return isinstance(value, int | float) and abs(value) < MOST_NUMBER


def _shown(value: object) -> str:
    text = repr(value)
    return printable(text if len(text) <= 60 else f"{text[:60]}...")


def _size(base: Path, path: str) -> tuple[int, int] | InputError:
    try:
        return image_size(base, path)
    except InputError as error:
        return error


def _split_name(train: str, val: str, files: dict[str, _File], data: BoxData) -> str | None:
    """The name that tables know the splits by, if all of their images are there."""
    if any(data.counts[split]["missing"] for split in ("train", "val")):
        return None
    for name, expected in SPLIT_NAMES.items():
        if (train, files[train].listed, val, files[val].listed) == expected:
            return name
    return None
