"""What is wrong with the files of a data set with boxes: found in one pass, said at once.

What every format of annotations shares: sizes out of the headers of images, the rules for boxes
and images, one error for all that a rule forbids, and counts and notes for what it forgives.

The rules for boxes (`on_bad_box`), against the size that the image file itself has:

- No numbers, or no width or height, or wholly outside of the image: `error` is an error, `drop` and
  `clip` leave the box out.
- Partly outside, by at most `ROUNDING` pixels: `error` is an error, `drop` and `clip` cut the box
  at the image's edge.
- Partly outside, by more: `error` is an error, `drop` leaves the box out, `clip` cuts it.

The rules for images (`on_bad_image`): one that is missing, that can't be read, or whose annotation
is missing or can't be read is an error (`error`) or left out of its split (`skip`). Unknown classes
are always an error. What was left out or cut is counted, noted and listed.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import PIL.Image

from mobilenext.data.boxes import POLICIES, BoxData, Boxes, BoxImages
from mobilenext.data.encoded import jpeg_frame
from mobilenext.data.pillow import FORMATS, MOST_PIXELS, reason
from mobilenext.data.sources import check_class_names, some
from mobilenext.errors import InputError
from mobilenext.files import NotRegularError, open_regular, printable

IMAGE_POLICIES = ("error", "skip")
"""What to do with an image that can't be used; values of `data.on_bad_image`."""

ROUNDING = 1.0
"""Pixels that a box may stick out by for it to be cut under `drop` too: files round, or count from
0 where they should count from 1."""

FROM_DATA = "from_data"
"""Value of `classes` that takes the names that the training annotations have."""

MOST_SHOWN = 10
"""Problems that an error lists."""
MOST_NAME = 1000
"""Characters of an image's path below its folder."""
MOST_UNKNOWN = 20
"""Unknown classes that an error lists."""

THREADS, PIECE = 8, 64
"""Threads that read small files, and how many files each takes at a time. On one machine they wait
for each other (Python's lock); where the files lie on a server they wait for it together."""

Item = TypeVar("Item")
Result = TypeVar("Result")

FAR = 1e9
"""Pixels; what lies farther away is as good as here."""

JPEG_HEAD = 8192
"""Bytes in which most JPEGs have their size."""
PLAIN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of frames that everybody reads: baseline, extended and progressive."""


class Problems:
    """Problems of a data set, a line each.

    Args:
        root: The folder of the data set, for messages.
        on_bad_box: One of `POLICIES`.
        on_bad_image: One of `IMAGE_POLICIES`.

    Attributes:
        always: Those that no rule forgives.
        images: Images that can't be used.
        boxes: Boxes that are bad or stick out.
        others: What is worth a line, but no error.

    Raises:
        InputError: There is no such rule.
    """

    def __init__(self, root: Path, on_bad_box: str, on_bad_image: str) -> None:
        for key, value, known in (
            ("on_bad_box", on_bad_box, POLICIES),
            ("on_bad_image", on_bad_image, IMAGE_POLICIES),
        ):
            if value not in known:
                raise InputError(f"data.{key}={value}: expected one of {', '.join(known)}")
        self.root, self.on_bad_box, self.on_bad_image = root, on_bad_box, on_bad_image
        self.always: list[str] = []
        self.images: list[str] = []
        self.boxes: list[str] = []
        self.others: list[str] = []

    @property
    def skips(self) -> bool:
        """Whether images that can't be used are left out."""
        return self.on_bad_image == "skip"

    def lines(self) -> tuple[str, ...]:
        """All problems, each once: an image may be in both splits."""
        return tuple(dict.fromkeys([*self.always, *self.images, *self.boxes, *self.others]))

    def check(self) -> None:
        """Raise one `InputError` for all problems that are not forgiven, if there are any."""
        images = [] if self.skips else self.images
        boxes = self.boxes if self.on_bad_box == "error" else []
        lines = list(dict.fromkeys([*self.always, *images, *boxes]))
        if not lines:
            return
        advice = ["fix the files"]
        if images:
            advice.append("leave such images out (data.on_bad_image=skip)")
        if boxes:
            advice.append("leave such boxes out (data.on_bad_box=drop, or clip)")
        rest = len(lines) - MOST_SHOWN
        more = f"\n  and {rest:,} more" if rest > 0 else ""
        raise InputError(
            f"{printable(self.root)}: expected annotations and images that fit together, found "
            f"{len(lines):,} {'problem' if len(lines) == 1 else 'problems'}:\n  "
            + "\n  ".join(lines[:MOST_SHOWN])
            + f"{more}\n{', or '.join(advice)}"
        )


@dataclass
class Found(ABC):
    """What files say of the images of a split and their objects, before it is checked.

    Objects lie one image after the other. A format says how its objects are called.

    Attributes:
        paths: Paths of N images below `root`; "" for those with a fault.
        faults: Why images can't be used, by index.
        sizes: Width and height of each image file in pixels, int32 (N, 2); 0, 0 for those with a
            fault.
        said: Width and height by the annotations, int64 (N, 2); 0, 0 where they say nothing.
        image: The index of each object's image, ascending, int64 (M,).
        boxes: x0, y0, x1, y1 in pixels from the image's top left corner, float64 (M, 4).
        kinds: Names of classes, in any order.
        kind: The index of each object's class in `kinds`, int64 (M,); -1 for an object without.
        difficult: Whether each object need not be found, bool (M,).
        box_faults: Why objects have no box or class, by index.
        difficult_key: What counts call the difficult ones.
        difficult_names: What notes call one and several of them.
    """

    difficult_key: ClassVar[str]
    difficult_names: ClassVar[tuple[str, str]]

    paths: list[str]
    faults: dict[int, str]
    sizes: np.ndarray
    said: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    kinds: list[str]
    kind: np.ndarray
    difficult: np.ndarray
    box_faults: dict[int, str]

    @abstractmethod
    def object_name(self, index: int) -> str:
        """Where an object stands: file, number, class; printable."""

    @abstractmethod
    def flat(self, index: int) -> str:
        """What is wrong with an object's box that has no width or no height."""

    @abstractmethod
    def values(self, index: int) -> str:
        """An object's box as its file gives it."""

    def usable(self) -> np.ndarray:
        """Whether each image can be used, bool (N,)."""
        usable = np.ones(len(self.paths), bool)
        usable[list(self.faults)] = False
        return usable


def box_data(
    train: Found,
    val: Found,
    classes: Sequence[str] | str | None,
    default: Sequence[str],
    problems: Problems,
) -> BoxData:
    """A data set by the rules above; its protocol and its name are the caller's to say.

    Args:
        train: What the files say of the training split.
        val: What they say of the split that is evaluated on.
        classes: Names of the classes, `from_data` or None; see `class_list`.
        default: The names that the data set has by itself.
        problems: What has been found so far.

    Raises:
        InputError: Something is wrong that the rules don't forgive, or a split has no images, or
            the training split no objects.
    """
    names = class_list(classes, default, train, problems.skips)
    add_unknown_classes((train, val), names, problems)
    splits = {
        name: checked(found, name, names, problems, training=name == "train")
        for name, found in (("train", train), ("val", val))
    }
    problems.check()
    for name, split in splits.items():
        if not len(split.images) or (name == "train" and not split.counts["objects"]):
            notes = "; ".join(split.notes)
            raise InputError(
                f"{printable(problems.root)}: expected images with objects in the {name} split, "
                f"found none ({notes or 'no image is listed'}); add annotations, or choose another "
                "split"
            )
    notes = (*(note for split in splits.values() for note in split.notes), *_overlap(train, val))
    counts = {name: split.counts for name, split in splits.items()}
    return BoxData(
        splits["train"].images,
        splits["val"].images,
        names,
        notes,
        counts,
        problems=problems.lines(),
    )


def class_list(
    classes: Sequence[str] | str | None, default: Sequence[str], train: Found, skips: bool
) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels.

    Args:
        classes: The names; `from_data`: those that the training annotations have, sorted; None:
            `default`.
        default: The names that the data set has by itself.
        train: The training split.
        skips: Whether images that can't be used are left out, with the names that they alone have.

    Raises:
        InputError: A name comes twice, is no text of one line, or there are none.
    """
    if isinstance(classes, str):
        if classes != FROM_DATA:
            raise InputError(
                f"data.source.classes={printable(classes)}: expected a list of names, or "
                f"{FROM_DATA}"
            )
        counted = train.usable()[train.image] if skips else np.ones(len(train.image), bool)
        seen = np.unique(train.kind[counted & (train.kind >= 0)])
        names = sorted(train.kinds[kind] for kind in seen)
    else:
        names = list(default if classes is None else classes)
        if not names:
            raise InputError("data.source.classes: expected the names of classes, got none")
    check_class_names(names, "data.source.classes")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"data.source.classes: expected each class once, got several times: {some(twice)}"
        )
    return tuple(names)


def add_unknown_classes(
    splits: Iterable[Found], classes: Sequence[str], problems: Problems
) -> None:
    """Add a problem if objects have classes that are not in the list.

    Args:
        splits: Both splits.
        classes: The names that are known.
        problems: What to add it to.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for found in splits:
        unknown = (_labels(found, classes) < 0) & (found.kind >= 0)
        if problems.skips:
            unknown &= found.usable()[found.image]
        kinds, at, number = np.unique(found.kind[unknown], return_index=True, return_counts=True)
        places = np.flatnonzero(unknown)[at]
        for kind, place, count in zip(kinds, places.tolist(), number.tolist(), strict=True):
            counts[found.kinds[kind]] += count
            first.setdefault(found.kinds[kind], found.object_name(place))
    if counts:
        names = [
            f"{printable(name)} ({count:,}, first {first[name]})"
            for name, count in counts.most_common()
        ]
        problems.always.append(
            f"unknown classes: expected {some(list(map(printable, classes)), 100)}; got "
            f"{some(names, MOST_UNKNOWN)}; rename them, or name all classes by "
            f"data.source.classes=[...] (or {FROM_DATA})"
        )


def add_repeated(names: Sequence[str], place: str, problems: Problems) -> None:
    """Add a problem if images come twice in a split.

    Args:
        names: What the images are called.
        place: What lists them.
        problems: What to add it to.
    """
    twice = [printable(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        problems.always.append(
            f"{place}: expected each image once, got {len(twice):,} several times: {some(twice)}"
        )


def _overlap(train: Found, val: Found) -> list[str]:
    """A note, if images are in both splits."""
    both = sorted((set(train.paths) & set(val.paths)) - {""})
    if not both:
        return []
    return [
        f"{_number(len(both), 'image', 'images')} in the training and in the validation split: "
        f"{some([printable(path) for path in both])}"
    ]


@dataclass(frozen=True)
class Split:
    """A split that has been checked.

    Attributes:
        images: Its images and boxes.
        counts: What was found and left out; see `BoxData.counts`.
        notes: A sentence for each kind of problem.
    """

    images: BoxImages
    counts: dict[str, int]
    notes: tuple[str, ...]


def checked(
    found: Found, name: str, classes: Sequence[str], problems: Problems, training: bool
) -> Split:
    """A split by the rules above, without what they leave out.

    Training leaves difficult objects out, as the authors of VOC's detectors do, and images that
    have objects, of which none is left: as pictures without boxes they would teach that these are
    background. Evaluation keeps both. Images that have no objects are kept by both.

    Counts: `images` and `objects` of the split as it is returned; `difficult_objects` (VOC's),
    `crowds` (COCO's), `bad_boxes` and `clipped_boxes` among all that were found;
    `background_images` have no objects in the files; `only_difficult` and `only_bad` are images
    that training leaves out, as all their objects are difficult or bad; `wrong_size` are images of
    another size than the annotations say; `missing` are images that were left out since they can't
    be used.

    Args:
        found: What the files say.
        name: What notes call the split.
        classes: Names of the classes in the order of the labels.
        problems: What problems are added to; nothing is raised here.
        training: Whether it is trained on.
    """
    usable = found.usable()
    counted = (usable if problems.skips else np.ones_like(usable))[found.image]
    boxes, bad, cut = _judged(found, counted, problems)
    problems.images += [found.faults[index] for index in sorted(found.faults)]
    odd_sizes = _odd_sizes(found, problems)

    good = counted & ~bad
    kept = good & ~found.difficult if training else good
    images = len(found.paths)
    all_objects, kept_objects, difficult_objects = (
        np.bincount(found.image[mask], minlength=images)
        for mask in (np.ones_like(good), kept, good & found.difficult)
    )
    empty = usable & (all_objects == 0)
    without = usable & training & (all_objects > 0) & (kept_objects == 0)
    stays = np.flatnonzero(usable & ~without)

    labels = _labels(found, classes)
    paths = np.array([found.paths[index].encode("utf-8", "surrogateescape") for index in stays])
    starts = np.concatenate([[0], np.cumsum(kept_objects)])
    every = Boxes(boxes[kept], labels[kept], found.difficult[kept], starts, found.sizes)
    split = BoxImages(problems.root, paths.astype(bytes), every.taken(stays))
    left_out = {
        "only_difficult": np.flatnonzero(without & (difficult_objects > 0)),
        "only_bad": np.flatnonzero(without & (difficult_objects == 0)),
    }
    counts = {
        "images": len(split),
        "objects": len(split.labels),
        "difficult_objects": 0,
        "background_images": int(empty.sum()),
        "bad_boxes": int(bad.sum()),
        "clipped_boxes": int(cut.sum()),
        **{key: len(indices) for key, indices in left_out.items()},
        "wrong_size": len(odd_sizes),
        "crowds": 0,
        "missing": int((~usable).sum()),
    }
    counts[found.difficult_key] = difficult = int((good & found.difficult).sum())
    notes = [
        *_image_notes(found, np.flatnonzero(empty), left_out, odd_sizes),
        *_box_notes(found, bad, cut),
        *([f"{_number(difficult, *found.difficult_names)} left out"] * bool(training * difficult)),
        *_class_note(split.labels, classes),
    ]
    return Split(split, counts, tuple(f"{name}: {note}" for note in notes))


def _labels(found: Found, classes: Sequence[str]) -> np.ndarray:
    """The label of each object, int32 (M,); -1 for one of an unknown class."""
    label_of = {name: label for label, name in enumerate(classes)}
    # The last one is for objects without a name, whose kind is -1.
    table = np.array([*(label_of.get(name, -1) for name in found.kinds), -1], np.int32)
    return table[found.kind]


def _judged(
    found: Found, counted: np.ndarray, problems: Problems
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes inside of their images, float32 (M, 4); which are bad, which were cut, bool (M,).

    Lines go to `problems`. Objects that are not counted are neither.
    """
    # What is checked are the numbers that are kept: 32 bits.
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = found.boxes.astype(np.float32)
    boxes[list(found.box_faults)] = 0
    boxes = np.clip(boxes, -FAR, FAR)
    sizes = found.sizes[found.image].astype(np.float32)
    sizes[sizes[:, 0] == 0] = np.inf  # of an image that can't be read nobody knows
    faulty = np.zeros(len(boxes), bool)
    faulty[list(found.box_faults)] = True
    flat = ~faulty & ~(boxes[:, :2] < boxes[:, 2:]).all(1)
    sound = ~faulty & ~flat
    outside = sound & ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= sizes)).any(1)
    out_by = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes).max(1, initial=0)
    sticks = sound & (out_by > 0)

    if problems.on_bad_box == "clip":
        unwanted = outside
    elif problems.on_bad_box == "drop":
        unwanted = outside | (sticks & (out_by > ROUNDING))
    else:
        unwanted = sticks
    bad = counted & (faulty | flat | unwanted)
    cut = counted & sticks & ~bad
    forgiven = problems.on_bad_box != "error"
    for index in np.flatnonzero(bad | cut).tolist():
        if faulty[index]:
            what = found.box_faults[index]
        elif flat[index]:
            what = found.flat(index)
        else:
            width, height = found.sizes[found.image[index]].tolist()
            what = (
                f"expected a box inside of the image of {width} x {height} pixels, got "
                f"{found.values(index)}"
            )
        done = ("; left out" if bad[index] else "; cut at the edge") if forgiven else ""
        problems.boxes.append(f"{found.object_name(index)}: {what}{done}")
    limits = np.concatenate([sizes, sizes], 1)
    return np.clip(boxes, 0, limits), bad, cut


def _odd_sizes(found: Found, problems: Problems) -> np.ndarray:
    """Indices of images of another size than their annotations say, which are listed."""
    odd = found.usable() & found.said.any(1) & (found.sizes != found.said).any(1)
    indices = np.flatnonzero(odd)
    for index in indices.tolist():
        (width, height), (said_width, said_height) = found.sizes[index], found.said[index]
        problems.others.append(
            f"{printable(found.paths[index])}: {width} x {height} pixels, its annotation says "
            f"{said_width} x {said_height}"
        )
    return indices


def _image_notes(
    found: Found, empty: np.ndarray, left_out: dict[str, np.ndarray], odd_sizes: np.ndarray
) -> list[str]:
    def named(indices: Collection[int]) -> str:
        return some([printable(found.paths[index]) for index in indices])

    notes = []
    if found.faults:
        places = [found.faults[index].partition(": ")[0] for index in sorted(found.faults)]
        notes.append(
            f"{_number(len(places), 'image', 'images')} left out, as files are missing or can't be "
            f"read: {some(places)}"
        )
    for key, what in (("only_difficult", "difficult"), ("only_bad", "bad boxes")):
        if len(left_out[key]):
            notes.append(
                f"{_number(len(left_out[key]), 'image', 'images')} left out, as all objects are "
                f"{what}: {named(left_out[key])}"
            )
    if len(odd_sizes):
        turned = (found.sizes[odd_sizes] == found.said[odd_sizes][:, ::-1]).all(1).sum()
        why = f" ({turned:,} are turned: EXIF orientation is not applied)" if turned else ""
        notes.append(
            f"{_number(len(odd_sizes), 'image', 'images')} of another size than the annotations "
            f"say{why}, the file decides: {named(odd_sizes)}"
        )
    if len(empty):
        notes.append(
            f"{_number(len(empty), 'image', 'images')} without objects, kept as background: "
            f"{named(empty)}"
        )
    return notes


def _box_notes(found: Found, bad: np.ndarray, cut: np.ndarray) -> list[str]:
    notes = []
    for mask, what in ((bad, "left out"), (cut, "cut at the edge of the image")):
        indices = np.flatnonzero(mask)
        if len(indices):
            names = [found.object_name(index) for index in indices[:5].tolist()]
            rest = f" and {len(indices) - 5:,} more" if len(indices) > 5 else ""
            boxes = _number(len(indices), "box", "boxes")
            notes.append(f"{boxes} {what}: {', '.join(names)}{rest}")
    return notes


def _class_note(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    present = set(labels.tolist())
    absent = [printable(name) for label, name in enumerate(classes) if label not in present]
    if not absent:
        return []
    return [f"no objects of {_number(len(absent), 'class', 'classes')}: {some(absent)}"]


def _number(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def stays_inside(name: str) -> bool:
    """Whether a path out of a file names something below the folder that it is relative to.

    Args:
        name: The path, with slashes of either kind.
    """
    parts = name.replace("\\", "/").split("/")
    absolute = parts[0] == "" or re.match("[A-Za-z]:", name) is not None
    # Lone surrogates and zeros can be in no file's name.
    sound = "\0" not in name and not re.search("[\ud800-\udc7f\udd00-\udfff]", name)
    return sound and not absolute and ".." not in parts and len(name) <= MOST_NAME


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What a function makes of items, in their order.

    Args:
        work: Reads a small file.
        items: What it is called with, one by one.
    """
    pieces = [items[start : start + PIECE] for start in range(0, len(items), PIECE)]
    with ThreadPoolExecutor(THREADS, "boxes") as pool:
        done = pool.map(lambda piece: [work(item) for item in piece], pieces)
        return [result for piece in done for result in piece]


def image_size(root: Path, path: str) -> tuple[int, int]:
    """Width and height of an image in pixels, by its header; no pixels are read.

    Args:
        root: Folder of the data set.
        path: The image's path below it, which messages name.

    Raises:
        InputError: It is missing, can't be read, is no regular file or has too many pixels.
    """
    name = printable(path)
    head = b""
    try:
        with open_regular(root / path) as file:
            head = file.read(JPEG_HEAD)
            size = _jpeg_size(head)
            if size is None:
                file.seek(0)
                with PIL.Image.open(file, formats=FORMATS) as image:
                    size = image.size
    except NotRegularError as error:
        raise InputError(f"{name}:{str(error).rpartition(':')[2]}") from error
    except FileNotFoundError as error:
        raise InputError(f"{name}: expected an image file, found none") from error
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, ...
        if not head and isinstance(error, OSError) and error.strerror:
            raise InputError(
                f"{name}: expected an image file, could not read it ({error.strerror})"
            ) from error
        raise InputError(f"{name}: expected an image file, {reason(error, head)}") from error
    width, height = size
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{name}: expected an image of at most {MOST_PIXELS:,} pixels, got {width} x {height}"
        )
    return width, height


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a plain JPEG, by its first bytes; None: Pillow has to look.

    A fifth of the time that Pillow takes, which adds up for the images of COCO.
    """
    frame = jpeg_frame(head)
    if frame is None or frame.marker not in PLAIN_FRAMES or frame.precision != 8:
        return None
    plain = frame.components in (1, 3, 4) and frame.width and frame.height
    return (frame.width, frame.height) if plain else None
