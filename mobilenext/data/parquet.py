"""Data sets in the Parquet files of the Hugging Face hub, read in place."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from mobilenext.data import native
from mobilenext.data.class_lists import CLASS_LIST, check_labels, class_names
from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import ClassTargets, ImageData, check_class_names, data_folder, some
from mobilenext.errors import InputError
from mobilenext.files import check_regular, open_regular, printable, what_is

CACHED_ROW_GROUPS = 1 << 28
"""Bytes of Parquet row groups to keep; one group is kept in any case."""
ROW_BYTES = 1 << 28
"""Bytes of a row group to read at a time, about; Arrow can't do more than 2 GB at once."""


def parquet(root: str | Path | None) -> ImageData:
    """A data set in the layout of the Hugging Face hub.

    `train-*.parquet` and `validation-*.parquet` (or val-*, test-*) in `root` or `root/data`, or
    `train/0000.parquet` and `validation/0000.parquet` in `root` or `root/default`, with a column
    `image` (struct of bytes and path) and an integer column `label`. Needs pyarrow. An image comes
    with its whole row group, so in random order much is read in vain: fit for evaluation and for
    making a pack of it.

    Args:
        root: The folder.

    Raises:
        InputError: pyarrow or files are missing, have other columns, or name other classes.
    """
    base = data_folder(root, "the folder with train-*.parquet and validation-*.parquet")
    splits = {}
    for split, prefixes in (("train", ("train",)), ("val", ("validation", "val", "test"))):
        files = parquet_files(base, prefixes)
        if not files:
            raise InputError(
                f"{printable(base)}: expected "
                f"{' or '.join(f'{name}-*.parquet' for name in prefixes)} there or in data/, found "
                "none; fix the path"
            )
        splits[split] = ParquetImages(files)
    train, val = splits["train"], splits["val"]
    if train.classes is not None and val.classes is not None:
        _check_same_names(train.named_by, train.classes, val.named_by, val.classes)
    classes, notes = train.classes or val.classes, ()
    if classes is None:
        named = (base / CLASS_LIST).exists()
        notes = () if named else (f"{printable(base)}: the files do not name their classes",)
        classes = class_names(base, [train.labels, val.labels])
    check_labels(base, [train.labels, val.labels], len(classes))
    return ImageData(train, val, classes, notes)


def _check_same_names(
    path: Path, names: Sequence[str], other_path: Path, other_names: Sequence[str]
) -> None:
    if names == other_names:
        return
    differ = [
        f"{label} is {printable(one)} and {printable(other)}"
        for label, (one, other) in enumerate(zip(names, other_names, strict=False))
        if one != other
    ]
    what = some(differ, 3) if differ else f"{len(names)} and {len(other_names)} classes"
    raise InputError(
        f"{printable(path)} and {printable(other_path)}: expected the same names of classes in all "
        f"files, got others ({what}); take all files from one version of the data set"
    )


def parquet_files(base: Path, prefixes: Sequence[str]) -> list[Path]:
    """The Parquet files of a split, sorted; see `parquet` for where they may lie.

    Args:
        base: The folder.
        prefixes: Names of the split; the first that has files is taken.
    """
    patterns = [
        pattern
        for prefix in prefixes
        for pattern in (
            f"{prefix}-*.parquet",
            f"data/{prefix}-*.parquet",
            f"{prefix}/[0-9]*.parquet",
            f"default/{prefix}/[0-9]*.parquet",
        )
    ]
    return next((files for pattern in patterns if (files := sorted(base.glob(pattern)))), [])


class ParquetImages(ClassTargets):
    """A split in Parquet files; keeps a few row groups in memory.

    Args:
        files: The files, in the order of the images.

    Attributes:
        labels: Class indices, int64.
        classes: Names of the classes, if the files have them.
        named_by: The first file that has them.

    Raises:
        InputError: As `parquet`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._parquet = _pyarrow_parquet()
        self._lock = threading.Lock()
        self._readers: dict[int, Any] = {}
        self._groups: OrderedDict[int, _RowGroup] = OrderedDict()
        labels, starts, places = [], [0], []
        self.classes: tuple[str, ...] | None = None
        self.named_by = self.files[0]
        for number, path in enumerate(self.files):
            reader = self._reader(number)
            self._check(path, reader.schema_arrow)
            self._take_names(path, _feature_names(path, reader.schema_arrow.metadata))
            labels.append(self._labels(path, reader))
            for group in range(reader.num_row_groups):
                starts.append(starts[-1] + reader.metadata.row_group(group).num_rows)
                places.append((number, group))
        self.labels = np.concatenate(labels)
        self.starts, self.places = np.array(starts), places
        if not len(self.labels):
            raise InputError(f"{printable(self.files[0])}: expected rows with images, found none")

    def _take_names(self, path: Path, names: tuple[str, ...] | None) -> None:
        if names is None:
            return
        if self.classes is None:
            self.classes, self.named_by = names, path
        _check_same_names(self.named_by, self.classes, path, names)

    @staticmethod
    def _labels(path: Path, reader: Any) -> np.ndarray:
        try:
            column = reader.read(["label"]).column("label")
        except Exception as error:  # pyarrow's errors are many
            raise _unreadable_parquet(path, "the column label", error) from error
        if column.null_count:
            raise InputError(
                f"{printable(path)}: expected a label in each row, found rows without one"
            )
        return column.to_numpy().astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetImages, (self.files,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode_bytes(self.read(index), self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        """File and row of an image."""
        group, row = self._place(index)
        number, _ = self.places[group]
        first = next(g for g, place in enumerate(self.places) if place[0] == number)
        before = int(self.starts[group] - self.starts[first])
        return f"{printable(self.files[number])}: row {before + row}"

    def relative(self, index: int) -> str:
        """File's name and row of an image."""
        return Path(self.name(index)).name.replace(": row ", "/")

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image.

        Raises:
            InputError: The file can't be read, or the row has no bytes.
        """
        group, row = self._place(index)
        value = self._group(group).buffer(row)
        if value is None or not len(value):
            raise InputError(
                f"{self.name(index)}: expected the bytes of an image, found none; data sets that "
                "only have paths or links can't be read"
            )
        return memoryview(value)

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Locations of the encoded bytes of images: copies in memory."""
        items = np.zeros(len(indices), ITEM)
        keep = []
        for place, index in enumerate(indices):
            group, row = self._place(int(index))
            try:
                value = self._group(group).buffer(row)
            except InputError:
                items["status"][place] = native.UNREADABLE
                continue
            if value is not None:  # else the length is 0, and the status will be "empty"
                # A copy: the buffer would keep all of its row group.
                one = np.frombuffer(value, np.uint8).copy()
                keep.append(one)
                items["data"][place], items["length"][place] = one.ctypes.data, len(one)
        return Located(items, keep)

    def _place(self, index: int) -> tuple[int, int]:
        index = range(len(self.labels))[index]
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return group, int(index - self.starts[group])

    def _reader(self, number: int) -> Any:
        if number not in self._readers:
            path = self.files[number]
            try:
                check_regular(path)
                self._readers[number] = self._parquet.ParquetFile(path)
            except InputError:
                raise
            except Exception as error:  # pyarrow's errors are many
                raise _unreadable_parquet(path, "a Parquet file", error) from error
        return self._readers[number]

    def _group(self, group: int) -> "_RowGroup":
        """The encoded images of a row group."""
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
            number, inner = self.places[group]
            try:
                images = _RowGroup(self._reader(number), inner)
            except InputError:
                raise
            except Exception as error:
                what = f"row group {inner} with images"
                raise _unreadable_parquet(self.files[number], what, error) from error
            self._groups[group] = images
            while len(self._groups) > 1 and (
                sum(kept.nbytes for kept in self._groups.values()) > CACHED_ROW_GROUPS
            ):
                self._groups.popitem(last=False)
            return images

    @staticmethod
    def _check(path: Path, schema: Any) -> None:
        import pyarrow.types as kinds  # pyright: ignore[reportMissingImports]

        names = schema.names
        good = "image" in names and "label" in names
        if good:
            image, label = schema.field("image").type, schema.field("label").type
            good = kinds.is_integer(label) and kinds.is_struct(image)
            good = good and image.get_field_index("bytes") >= 0
        if not good:
            raise InputError(
                f"{printable(path)}: expected a column image (struct of bytes and path) and an "
                "integer column label, got "
                f"{', '.join(f'{field.name}: {field.type}' for field in schema)}; use a data set "
                "for image classification"
            )


class _RowGroup:
    """The encoded images of a row group, in pieces: an array of Arrow's holds at most 2 GB."""

    def __init__(self, reader: Any, group: int) -> None:
        described = reader.metadata.row_group(group)
        rows, size = described.num_rows, described.total_byte_size
        at_once = max(1, rows * ROW_BYTES // max(1, size))
        batches = reader.iter_batches(at_once, row_groups=[group], columns=["image"])
        self.pieces = [batch.column("image").field("bytes") for batch in batches]
        self.starts = np.cumsum([0, *(len(piece) for piece in self.pieces)])
        self.nbytes = sum(piece.nbytes for piece in self.pieces)
        if self.starts[-1] != rows:
            raise ValueError(f"{rows} rows expected, {self.starts[-1]} found")

    def buffer(self, row: int) -> Any:
        """The bytes of a row, a buffer of Arrow's, or None."""
        piece = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.pieces[piece][row - int(self.starts[piece])].as_buffer()


def _unreadable_parquet(path: Path, expected: str, error: Exception) -> InputError:
    try:
        with open_regular(path) as file:
            found = what_is(file.read(512))
    except OSError:
        found = None
    is_parquet = found is None or found == what_is(b"PAR1")
    problem = f"could not read it ({type(error).__name__}: {error})"
    return InputError(
        f"{printable(path)}: expected {expected}, "
        f"{problem if is_parquet else f'but it is {found}'}; fetch the file again"
    )


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "Parquet files: expected the package pyarrow, found none; pip install pyarrow"
        ) from error
    return pyarrow.parquet


def _feature_names(path: Path, metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """Class names that the `datasets` library has left in the schema, or None."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, dict):  # by label; JSON's keys are texts, in no certain order
        names = [names.get(str(label)) for label in range(len(names))]
    texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    if not isinstance(names, list) or len(texts) != len(names):
        raise InputError(
            f"{printable(path)}: expected the names of the classes as a list, or by label from 0 "
            f"on, got {printable(json.dumps(features['label']['names'])[:80])}; fetch the file "
            "again"
        )
    check_class_names(texts, str(path))
    return tuple(texts) or None
