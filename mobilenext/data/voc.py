"""Pascal VOC, and data sets in its layout: an XML file for each image.

`VOC2007/Annotations/ID.xml`, `VOC2007/JPEGImages/ID.jpg` and `VOC2007/ImageSets/Main/SPLIT.txt`,
which has the ids of a split. Source: M. Everingham et al., The Pascal Visual Object Classes
Challenge, http://host.robots.ox.ac.uk/pascal/VOC/.
"""

import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

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
from mobilenext.data.sources import EXTENSIONS, data_folder, is_image, some
from mobilenext.errors import InputError
from mobilenext.files import printable, read_regular, read_text

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""VOC's classes."""

SPLIT_NAMES = {
    "VOC07+12": ({"VOC2007:trainval", "VOC2012:trainval"}, 16_551, {"VOC2007:test"}, 4_952),
    "VOC07": ({"VOC2007:trainval"}, 5_011, {"VOC2007:test"}, 4_952),
}
"""What tables call splits: sets and number of images for training, the same for evaluation."""

EDGES = ("xmin", "ymin", "xmax", "ymax")
FIRST_PIXEL = 1
"""The number of the first column and row in VOC's files. Detectors' authors subtract it from all
four edges, though the last pixel is inside of the box, and so do we."""

MOST_XML = 1 << 22
"""Bytes of an annotation; those of VOC have about 2,000."""
MOST_LIST = 1 << 27
"""Bytes of a list of ids."""


def voc(
    root: str | Path | None,
    train: Sequence[str] = ("2007:trainval", "2012:trainval"),
    val: Sequence[str] = ("2007:test",),
    classes: Sequence[str] | str | None = None,
    on_bad_box: str = "drop",
    on_bad_image: str = "error",
    pack: str | None = None,
) -> BoxData:
    """Images and boxes of Pascal VOC, or of a data set in its layout.

    All files are looked at before anything is returned: annotations are read, and the headers of
    images. See `box_problems` for the rules.

    Args:
        root: The folder VOCdevkit, which has VOC2007 and VOC2012; the one above it, or one of
            those in it will do.
        train: What to train on: "YEAR:SPLIT", for instance "2007:trainval", or "FOLDER:SPLIT" for
            a folder of another name; "SPLIT" alone where `root` itself has the Annotations.
        val: What to evaluate on.
        classes: Names of the classes in the order of the labels; None: VOC's 20; "from_data":
            those that the training annotations have, sorted.
        on_bad_box: What to do with a box that is not inside of its image: error, clip or drop.
        on_bad_image: What to do with an image that can't be used: error or skip.
        pack: Folder of a pack of these images, see `packed_boxes`; None: they are read where they
            are.

    Raises:
        InputError: A folder or a list is missing, or files have problems that the rules don't
            forgive; all of them are in one message.
    """
    sets = {"train": _sets("train", train), "val": _sets("val", val)}
    folders = list(dict.fromkeys(part.folder for split in sets.values() for part in split))
    base = _base(data_folder(root, "the folder VOCdevkit, which has VOC2007"), folders)
    problems = Problems(base, on_bad_box, on_bad_image)
    ids = {split: _ids(base, parts, problems) for split, parts in sets.items()}
    images = {folder: _Images(base, folder) for folder in folders}
    wanted = list(dict.fromkeys([*ids["train"], *ids["val"]]))
    read = in_threads(partial(_annotation, base, images), wanted)
    annotations = dict(zip(wanted, read, strict=True))
    found_train, found_val = (
        _VocFound.of([annotations[key] for key in ids[split]]) for split in ("train", "val")
    )
    data = box_data(found_train, found_val, classes, NAMES, problems)
    data = replace(data, protocol="voc", split_name=_split_name(sets, ids, data))
    return with_pack(data, pack)


@dataclass(frozen=True)
class _Set:
    """A list of ids: VOC2007 and trainval, say; the folder is "" for `root` itself."""

    folder: str
    split: str

    @property
    def name(self) -> str:
        return f"{self.folder}:{self.split}"


def _sets(option: str, texts: Sequence[str]) -> list[_Set]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    sets = []
    for text in texts:
        folder, colon, split = str(text).rpartition(":")
        folder = f"VOC{folder}" if re.fullmatch("[0-9]{4}", folder) else folder
        good = split and bool(folder) == bool(colon)
        if not good or not _is_plain(folder) or not _is_plain(split):
            raise InputError(
                f"data.source.{option}: expected YEAR:SPLIT, for instance 2007:trainval, got "
                f"{printable(text)}"
            )
        sets.append(_Set(folder, split))
    if not sets:
        raise InputError(
            f"data.source.{option}: expected at least one YEAR:SPLIT, for instance 2007:trainval, "
            "got none"
        )
    return sets


def _base(root: Path, folders: Sequence[str]) -> Path:
    """The folder that has these folders: `root`, VOCdevkit in it, or the one above."""
    candidates = [root, root / "VOCdevkit"]
    if root.absolute().name in folders:
        candidates.append(root.absolute().parent)
    for base in candidates:
        if all((base / folder / "Annotations").is_dir() for folder in folders):
            return base
    missing = [folder for folder in folders if not (root / folder / "Annotations").is_dir()]
    elsewhere = [
        path.parent
        for pattern in ("", "*/", "*/*/")
        for path in sorted(root.glob(f"{pattern}{missing[0]}"))
        if missing[0] and path.is_dir() and path.parent != root
    ]
    there = f"; {missing[0]} is in {printable(elsewhere[0])}" if elsewhere else ""
    raise InputError(
        f"data.root={printable(root)}: expected the folder VOCdevkit with "
        f"{', '.join(f'{folder}/Annotations'.lstrip('/') for folder in folders)}, found no "
        f"{', '.join(folder or 'Annotations' for folder in missing)}{there}; fix the path, or "
        "choose other sets by data.source.train and data.source.val"
    )


def _ids(base: Path, sets: Iterable[_Set], problems: Problems) -> list[tuple[str, str]]:
    """Folders and ids of the images of a split, in the order of their lists."""
    ids: list[tuple[str, str]] = []
    lists = []
    for part in sets:
        folder = base / part.folder / "ImageSets" / "Main"
        path = folder / f"{part.split}.txt"
        lists.append(str(path.relative_to(base)))
        try:
            lines = [line.strip() for line in read_text(path, MOST_LIST).splitlines()]
        except OSError as error:
            there = sorted(file.stem for file in folder.glob("*.txt"))
            raise InputError(
                f"{printable(path)}: expected a list of ids, could not read it "
                f"({error.strerror or error}); there are {some(list(map(printable, there)), 10)}"
            ) from error
        lines = [line for line in lines if line]
        # Lists of a class say in a second column whether it is in the image.
        two = [re.fullmatch(r"(\S+)\s+(?:-1|0|1)", line) for line in lines]
        names = [match[1] for match in two if match]
        names = names if len(names) == len(lines) else lines
        odd = [
            printable(name) for name in names if not name.isprintable() or set(name) & set("/\\")
        ]
        if odd:
            raise InputError(
                f"{printable(path)}: expected ids, which are names of files without folder and "
                f"ending, got {some(odd)}"
            )
        ids += [(part.folder, name) for name in names]
    add_repeated([_joined(*key) for key in ids], " and ".join(map(printable, lists)), problems)
    return ids


def _is_plain(name: str) -> bool:
    """Whether it names something in a folder, not in another one."""
    return name not in (".", "..") and name.isprintable() and not set(name) & set("/\\:")


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


class _Images:
    """The image files of a folder such as VOC2007, by their names."""

    def __init__(self, base: Path, folder: str) -> None:
        self.folder = _joined(folder, "JPEGImages")
        self.path = base / self.folder
        try:
            names = os.listdir(self.path)
        except OSError as error:
            raise InputError(
                f"{printable(self.path)}: expected a folder with images, could not read it "
                f"({error.strerror or error}); fix the path or its permissions"
            ) from error
        self.names = frozenset(names)
        self.by_stem: dict[str, list[str]] = {}
        for name in names:
            if is_image(name):
                self.by_stem.setdefault(os.path.splitext(name)[0], []).append(name)

    def find(self, name: str, filename: str) -> str | None:
        """An image's path below the base: its id with an image's ending, or what its XML says.

        The id comes first, since XML files often keep the name of another file.

        Raises:
            InputError: The XML's name leads out of the folder.
        """
        if f"{name}.jpg" in self.names:
            return f"{self.folder}/{name}.jpg"
        if name in self.by_stem:
            return f"{self.folder}/{min(self.by_stem[name], key=_preference)}"
        if not filename:
            return None
        if not stays_inside(filename):
            raise InputError(f"expected a filename in {self.folder}, got {printable(filename)}")
        known = filename in self.names or ("/" in filename and (self.path / filename).exists())
        return f"{self.folder}/{filename}" if known else None


def _preference(name: str) -> tuple[int, str]:
    return EXTENSIONS.index(os.path.splitext(name)[1].lower()), name


@dataclass
class _Annotation:
    """What an XML file says, and its image's header.

    Attributes:
        place: The XML file below the base.
        path: The image below the base.
        fault: Why it can't be used.
        size: Width and height of the image file.
        said: Width and height by the XML; 0, 0 if it doesn't say.
        names: Classes of the objects.
        edges: xmin, ymin, xmax, ymax of each, as they stand there; NaN where there is a fault.
        difficult: Whether each is.
        faults: What is wrong with objects, by number from 0.
    """

    place: str
    path: str = ""
    fault: str | None = None
    size: tuple[int, int] = (0, 0)
    said: tuple[int, int] = (0, 0)
    names: list[str] = field(default_factory=list)
    edges: list[list[float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)


def _annotation(base: Path, images: dict[str, _Images], key: tuple[str, str]) -> _Annotation:
    folder, name = key
    place = _joined(folder, "Annotations", f"{name}.xml")
    found = _Annotation(place)
    there = images[folder]
    try:
        tree = _tree(base, place)
        _take_objects(tree, found)
        found.said = _said_size(tree)
        filename = (tree.findtext("filename") or "").strip()
        try:
            path = there.find(name, filename)
        except InputError as error:
            raise InputError(f"{printable(place)}: {error}") from error
        if path is None:
            other = f" or {printable(filename)}" if filename not in ("", f"{name}.jpg") else ""
            raise InputError(
                f"{printable(place)}: expected its image {printable(there.folder)}/"
                f"{printable(name)}.jpg{other}, found none"
            )
        found.path = path
        found.size = image_size(base, path)
    except InputError as error:
        found.fault = str(error)
    return found


def _tree(base: Path, place: str) -> ET.Element:
    name = printable(place)
    try:
        data = read_regular(base / place, MOST_XML)
    except FileNotFoundError as error:
        raise InputError(f"{name}: expected an annotation for the listed id, found none") from error
    except OSError as error:
        raise InputError(
            f"{name}: expected an annotation, could not read it ({error.strerror or error})"
        ) from error
    except InputError as error:  # its path is long
        raise InputError(f"{name}:{str(error).rpartition(':')[2]}") from error
    # Entities can make gigabytes of a few lines; they need one of these, in whatever encoding the
    # parser takes: all have ASCII's bytes, with zeros between them at most.
    plain = data.replace(b"\0", b"")
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise InputError(f"{name}: expected an annotation without DOCTYPE and entities, got one")
    try:
        tree = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:  # of encodings come the latter two
        raise InputError(f"{name}: expected an annotation, got broken XML ({error})") from error
    if tree.tag != "annotation":
        raise InputError(f"{name}: expected <annotation>, got <{printable(tree.tag[:40])}>")
    return tree


def _said_size(tree: ET.Element) -> tuple[int, int]:
    try:
        width, height = (int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return 0, 0
    return (width, height) if 0 <= min(width, height) <= max(width, height) < 1 << 31 else (0, 0)


def _take_objects(tree: ET.Element, found: _Annotation) -> None:
    for number, item in enumerate(tree.findall("object")):
        found.names.append((item.findtext("name") or "").strip())
        try:
            if not found.names[-1]:
                raise ValueError("expected the class in name, found none")
            box = item.find("bndbox")
            if box is None:
                raise ValueError("expected bndbox, found none")
            edges = [_number(box, edge) for edge in EDGES]
            text = item.findtext("difficult")
            difficult = bool(_number(item, "difficult")) if text and text.strip() else False
        except ValueError as error:
            found.faults[number] = str(error)
            edges, difficult = [math.nan] * 4, False
        found.edges.append(edges)
        found.difficult.append(difficult)


def _number(item: ET.Element, tag: str) -> float:
    text = item.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        got = f"got {printable(text.strip()[:40])}" if text and text.strip() else "found none"
        raise ValueError(f"expected a number in {tag}, {got}")
    return value


class _VocFound(Found):
    difficult_key = "difficult_objects"
    difficult_names = ("difficult object", "difficult objects")

    annotations: list[_Annotation]
    starts: np.ndarray

    @classmethod
    def of(cls, annotations: list[_Annotation]) -> "_VocFound":
        """All images of a split."""
        counts = [len(one.names) for one in annotations]
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        names = [name for one in annotations for name in one.names]
        kinds = {name: kind for kind, name in enumerate(dict.fromkeys(filter(None, names)))}
        edges = [edges for one in annotations for edges in one.edges]
        found = cls(
            paths=[one.path for one in annotations],
            faults={i: one.fault for i, one in enumerate(annotations) if one.fault},
            sizes=np.array([one.size for one in annotations], np.int32).reshape(-1, 2),
            said=np.array([one.said for one in annotations], np.int64).reshape(-1, 2),
            image=np.repeat(np.arange(len(annotations)), counts),
            boxes=np.array(edges, np.float64).reshape(-1, 4) - FIRST_PIXEL,
            kinds=list(kinds),
            kind=np.array([kinds.get(name, -1) for name in names], np.int64),
            difficult=np.array([is_so for one in annotations for is_so in one.difficult], bool),
            box_faults={
                int(start) + number: fault
                for start, one in zip(starts[:-1], annotations, strict=True)
                for number, fault in one.faults.items()
            },
        )
        found.annotations, found.starts = annotations, starts
        return found

    def _place(self, index: int) -> tuple[_Annotation, int]:
        image = int(self.image[index])
        return self.annotations[image], index - int(self.starts[image])

    def object_name(self, index: int) -> str:
        one, number = self._place(index)
        name = printable(one.names[number][:40]) or "without a name"
        return f"{printable(one.place)}: object {number + 1} ({name})"

    def flat(self, index: int) -> str:
        one, number = self._place(index)
        x0, y0, x1, y1 = one.edges[number]
        if not x0 < x1:
            return f"expected xmin < xmax, got {x0:g}, {x1:g}"
        if not y0 < y1:
            return f"expected ymin < ymax, got {y0:g}, {y1:g}"
        return f"expected a box of some width and height, got {self.values(index)}"

    def values(self, index: int) -> str:
        one, number = self._place(index)
        return ", ".join(
            f"{edge} {value:g}" for edge, value in zip(EDGES, one.edges[number], strict=True)
        )


def _split_name(
    sets: dict[str, list[_Set]], ids: dict[str, list[tuple[str, str]]], data: BoxData
) -> str | None:
    """The name that tables know the splits by, if all of their images are there."""
    train, val = data.counts["train"], data.counts["val"]
    if data.classes != NAMES or train["missing"] or val["missing"] or val["bad_boxes"]:
        return None
    for name, (train_sets, train_images, val_sets, val_images) in SPLIT_NAMES.items():
        same = {part.name for part in sets["train"]} == train_sets
        same = same and {part.name for part in sets["val"]} == val_sets
        if same and (len(ids["train"]), len(ids["val"])) == (train_images, val_images):
            return name
    return None
