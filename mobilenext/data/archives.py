"""Data sets read where they lie, without unpacking: ImageNet's own tars, WebDataset, Parquet.

Each is indexed once into numpy arrays; images are then found by their address. Names inside of
archives are only ever texts: nothing is created from them.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from mobilenext.data import native
from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.pack import MappedImages, Names, write_whole
from mobilenext.data.sources import EXTENSIONS, ImageData, decode_bytes
from mobilenext.errors import InputError

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LABELS_PATTERN = "*validation_synset_labels.txt"

BLOCK = 512
INDEX_VERSION = 1
"""Of the cached indexes; one more with every change of what they hold."""
CACHED_ROW_GROUPS = 1 << 28
"""Bytes of Parquet row groups to keep; one group is kept in any case."""


class Member(NamedTuple):
    """A regular file in a tar; offset and size in bytes."""

    name: str
    offset: int
    size: int


# ---- tars ----


def tar_members(path: Path, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """Regular files of an uncompressed tar, which may lie within another one.

    Only headers are read. Links, folders and devices are passed over.

    Args:
        path: The file.
        start: Where the tar begins in it, in bytes.
        end: Where it ends; None: the file's end.

    Raises:
        InputError: It is no tar, damaged, or ends without an end marker.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"{path}: expected a tar that can be read ({error.strerror}); mend the path or its "
            "permissions"
        ) from error
    try:
        if hasattr(os, "posix_fadvise"):
            # Between headers lie images; reading ahead would read nearly all of the archive.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        end = os.fstat(descriptor).st_size if end is None else end
        yield from _members(descriptor, path, start, end)
    finally:
        os.close(descriptor)


def _members(descriptor: int, path: Path, at: int, end: int) -> Iterator[Member]:
    name, size = None, None  # from headers that only describe the next one
    while True:
        block = os.pread(descriptor, BLOCK, at) if at + BLOCK <= end else b""
        if not block:
            raise InputError(
                f"{path}: expected the end marker of a tar, found the end of the file at byte "
                f"{at}: it was cut short; fetch it again"
            )
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            return
        except tarfile.HeaderError as error:
            advice = "it is compressed; unpack it" if block[:2] == b"\x1f\x8b" else "fetch it again"
            raise InputError(
                f"{path}: expected a tar header at byte {at}, found other bytes ({error}); {advice}"
            ) from error
        length = header.size if size is None else size
        data = at + BLOCK
        at = data + -(-length // BLOCK) * BLOCK
        if length < 0 or data + length > end:
            raise InputError(
                f"{path}: expected {length} bytes of {header.name}, found the end of the archive: "
                "it was cut short; fetch it again"
            )
        if header.type == tarfile.GNUTYPE_LONGNAME:
            content = os.pread(descriptor, length, data)
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE:
            told = _pax(os.pread(descriptor, length, data), f"{path}, byte {data}")
            name = told.get("path", name)
            size = int(told["size"]) if "size" in told else None
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield Member(name or header.name, data, length)
            name, size = None, None


def _pax(content: bytes, place: str) -> dict[str, str]:
    """Records of a pax header, each a length, a space, key=value and a newline."""
    found = {}
    while content[:1].isdigit():
        number = content.split(b" ", 1)[0]
        length = int(number) if number.isdigit() else 0
        key, _, value = content[:length].partition(b" ")[2].partition(b"=")
        if not 0 < length <= len(content) or (key == b"size" and not value.strip().isdigit()):
            raise InputError(f"{place}: expected pax records, found others; fetch it again")
        found[key.decode(errors="replace")] = value.rstrip(b"\n").decode("utf-8", "surrogateescape")
        content = content[length:]
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _cached(
    files: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that `build` makes of these files, kept between runs while the files are the same.

    A cache that can't be read or written is done without.
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([INDEX_VERSION, *stats]).encode()).hexdigest()[:24]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "mobilenext" / f"index-{key}.npz"
    # numpy and zipfile have many ways to say "damaged"
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}
    arrays = build()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
        write_whole(path, content.getvalue())
    return arrays


def _arrays(
    names: list[str], offsets: list[int], lengths: list[int], labels: list[int], files: list[int]
) -> dict[str, np.ndarray]:
    packed = Names.of(names)
    return {
        "text": packed.text,
        "ends": packed.ends,
        "offset": np.array(offsets, np.int64),
        "length": np.array(lengths, np.int64),
        "label": np.array(labels, np.int32),
        "which": np.array(files, np.int32),
    }


def _images(files: Sequence[Path], arrays: dict[str, np.ndarray]) -> MappedImages:
    return MappedImages(
        files,
        arrays["which"],
        arrays["offset"],
        arrays["length"],
        arrays["label"],
        Names(arrays["text"], arrays["ends"]),
    )


# ---- ImageNet's official tars ----


def has_tars(root: str | Path | None) -> bool:
    """Whether ImageNet's official training or validation tar lies in this folder."""
    if root is None:
        return False
    base = Path(root).expanduser()
    return (base / TRAIN_TAR).is_file() or (base / VAL_TAR).is_file()


def imagenet_tars(
    root: str | Path | None, expected_classes: Sequence[str] | None = None
) -> ImageData:
    """ImageNet-1k from its two official tars, read in place.

    The order is that of class folders: synset, then file name. Labels of the validation images come
    from the official development kit beside the tars, or from a text file with one synset a line,
    for the images in the order of their names. The first opening walks over all headers; what it
    finds is cached under $XDG_CACHE_HOME or ~/.cache.

    Args:
        root: Folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, and
            ILSVRC2012_devkit_t12.tar.gz or *validation_synset_labels.txt.
        expected_classes: If given, the synsets have to be exactly these.

    Raises:
        InputError: A file is missing, damaged or cut short, or labels and images do not fit.
    """
    if root is None:
        raise InputError(
            f"data.root is not set: expected the folder with {TRAIN_TAR} and {VAL_TAR}; add "
            "data.root=/path/to/it"
        )
    base = Path(root).expanduser()
    train_tar, val_tar = base / TRAIN_TAR, base / VAL_TAR
    for path in (train_tar, val_tar):
        if not path.is_file():
            raise InputError(
                f"{path}: expected ImageNet's official tar, found none; put it there, or a link"
            )
    train = _cached([train_tar], lambda: _index_train(train_tar))
    classes = str(train.pop("classes").tobytes(), "utf-8").split("\n")
    if expected_classes is not None and classes != list(expected_classes):
        odd = sorted(set(classes) ^ set(expected_classes))
        raise InputError(
            f"{train_tar}: expected the {len(expected_classes)} synsets of ImageNet-1k, got "
            f"{len(classes)}; missing or unknown: {', '.join(odd[:5])}; fetch the official archive"
        )
    val = _cached([val_tar], lambda: _index_val(val_tar))
    synsets = _validation_synsets(base, len(val["length"]))
    number = {synset: label for label, synset in enumerate(classes)}
    unknown = sorted(set(synsets) - set(classes))
    if unknown:
        raise InputError(
            f"{base}: expected validation labels among the {len(classes)} synsets of {TRAIN_TAR}, "
            f"got {len(unknown)} others: {', '.join(unknown[:5])}; training archive and labels "
            "have to be of the same data set (ILSVRC2012)"
        )
    labels = np.array([number[synset] for synset in synsets], np.int32)
    order = np.argsort(labels, kind="stable")  # within a class the names are in order already
    plain = Names(val["text"], val["ends"])
    names = Names.of([f"{synsets[index]}/{plain[index]}" for index in order.tolist()])
    val = {name: val[name][order] for name in ("offset", "length", "which")}
    val |= {"label": labels[order], "text": names.text, "ends": names.ends}
    return ImageData(_images([train_tar], train), _images([val_tar], val), tuple(classes))


def _index_train(path: Path) -> dict[str, np.ndarray]:
    """A tar of a tar for each class."""
    inner = sorted(
        (Path(member.name).stem, member)
        for member in tar_members(path)
        if member.name.endswith(".tar")
    )
    classes = [synset for synset, _ in inner]
    if not classes or len(set(classes)) != len(classes):
        raise InputError(
            f"{path}: expected one tar for each class in it, got {len(classes)} tars of "
            f"{len(set(classes))} names; fetch the official archive"
        )
    parts = []
    for label, (synset, tar) in enumerate(inner):
        images = sorted(
            (os.path.basename(member.name), member.offset, member.size)
            for member in tar_members(path, tar.offset, tar.offset + tar.size)
            if _is_image(member.name)
        )
        if not images:
            raise InputError(f"{path}: expected images in {tar.name}, found none; fetch it again")
        # As arrays at once: all the tuples together would take half a gigabyte.
        names, offsets, lengths = zip(*images, strict=True)
        full = [f"{synset}/{name}" for name in names]
        count = len(full)
        parts.append(_arrays(full, list(offsets), list(lengths), [label] * count, [0] * count))
    shift = np.cumsum([0, *(len(part["text"]) for part in parts[:-1])])
    for part, before in zip(parts, shift, strict=True):
        part["ends"] = part["ends"] + before
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**arrays, "classes": np.frombuffer("\n".join(classes).encode(), np.uint8)}


def _index_val(path: Path) -> dict[str, np.ndarray]:
    """A flat tar of images, without labels as yet."""
    images = sorted(
        (os.path.basename(member.name), member.offset, member.size)
        for member in tar_members(path)
        if _is_image(member.name)
    )
    if not images:
        raise InputError(f"{path}: expected images in it, found none; fetch the official archive")
    names, offsets, lengths = (list(column) for column in zip(*images, strict=True))
    return _arrays(names, offsets, lengths, [0] * len(names), [0] * len(names))


def _validation_synsets(base: Path, images: int) -> list[str]:
    """The synset of each validation image, in the order of their names."""
    devkit = base / DEVKIT
    texts = sorted(base.glob(LABELS_PATTERN))
    if devkit.is_file():
        path, synsets = devkit, _read_devkit(devkit)
    elif texts:
        path = texts[0]
        synsets = path.read_text(encoding="utf-8", errors="replace").split()
    else:
        raise InputError(
            f"{base}: expected the labels of the validation images, found neither {DEVKIT} (it is "
            f"offered where the tars are) nor {LABELS_PATTERN} (one synset a line); put one there"
        )
    if len(synsets) != images:
        raise InputError(
            f"{path}: expected a label for each of the {images} images of {VAL_TAR}, got "
            f"{len(synsets)}; fetch both again, they have to be of the same data set (ILSVRC2012)"
        )
    return synsets


def _read_devkit(path: Path) -> list[str]:
    from scipy.io import loadmat

    truth = "ILSVRC2012_validation_ground_truth.txt"
    try:
        found = {}
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and name in (truth, "meta.mat"):
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
        synsets = np.atleast_1d(loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"])
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [names[int(number)] for number in found[truth].split()]
    except Exception as error:  # gzip, tarfile and scipy raise nearly anything on damaged files
        raise InputError(
            f"{path}: expected ImageNet's development kit with data/{truth} and data/meta.mat, "
            f"could not read them ({type(error).__name__}: {error}); fetch it again, or give the "
            f"labels as {LABELS_PATTERN}"
        ) from error


# ---- WebDataset ----


def webdataset(root: str | Path | None) -> ImageData:
    """Tars in the WebDataset layout, read in place and in any order.

    `root/train-*.tar` and `root/val-*.tar` with members `key.jpg` (or another image's ending) and
    `key.cls` (the class index as text), or `key.json` with an entry `label`. Class names come from
    `root/classes.txt`, one a line; else they are the numbers.

    Args:
        root: The folder with the tars.

    Raises:
        InputError: Tars are missing, compressed or damaged, or an image has no label.
    """
    base = _root(root, "train-*.tar and val-*.tar")
    found: dict[str, tuple[list[Path], dict[str, np.ndarray]]] = {}
    for split in ("train", "val"):
        files = sorted(base.glob(f"{split}-*.tar"))
        if not files:
            packed = sorted([*base.glob(f"{split}-*.tar.*"), *base.glob(f"{split}-*.tgz")])
            advice = (
                f"{packed[0].name} is compressed, so its images can't be found one by one: "
                "unpack it to a plain tar (gunzip), JPEGs do not shrink anyway"
                if packed
                else "mend the path, or name the tars like that"
            )
            raise InputError(f"{base}: expected {split}-*.tar, found none; {advice}")
        found[split] = files, _cached(files, functools.partial(_index_samples, files))
    classes = _class_names(base, [arrays["label"] for _, arrays in found.values()])
    train, val = (_images(*found[split]) for split in ("train", "val"))
    return ImageData(train, val, classes)


def has_webdataset(root: str | Path | None) -> bool:
    """Whether tars in the WebDataset layout lie in this folder."""
    return root is not None and any(Path(root).expanduser().glob("train-*.tar"))


def _index_samples(files: Sequence[Path]) -> dict[str, np.ndarray]:
    names: list[str] = []
    offsets: list[int] = []
    lengths: list[int] = []
    labels: list[int] = []
    numbers: list[int] = []
    for number, path in enumerate(files):
        with path.open("rb") as file:
            for key, members in _samples(path):
                image, label = _image_and_label(file, path, key, members)
                names.append(image.name)
                offsets.append(image.offset)
                lengths.append(image.size)
                labels.append(label)
                numbers.append(number)
    if not names:
        raise InputError(f"{files[0].parent}: expected images in {files[0].name}, found none")
    return _arrays(names, offsets, lengths, labels, numbers)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Neighbouring members with the same name up to the first dot of the file's name."""
    key, members = None, {}
    for member in tar_members(path):
        folder, base = os.path.split(member.name)
        stem, _, ending = base.partition(".")
        if not stem or not ending:
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key:
            if key is not None:
                yield key, members
            key, members = this, {}
        members[ending.lower()] = member
    if key is not None:
        yield key, members


def _image_and_label(
    file: io.BufferedReader, path: Path, key: str, members: dict[str, Member]
) -> tuple[Member, int]:
    images = [member for ending, member in members.items() if f".{ending}" in EXTENSIONS]
    told = members.get("cls") or members.get("json")
    if len(images) != 1 or told is None:
        raise InputError(
            f"{path}: expected one image and a .cls or .json with each key, found "
            f"{', '.join(members)} with {key}; mend or rewrite the tar"
        )
    file.seek(told.offset)
    content = file.read(told.size)
    try:
        value = content if told.name.lower().endswith(".cls") else json.loads(content)["label"]
        return images[0], int(value)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the class index in {told.name}, as text or as label of a JSON "
            f"object, got {content[:40]!r}; mend or rewrite the tar"
        ) from error


def _class_names(base: Path, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """From classes.txt, or the numbers; labels have to be among them."""
    path = base / "classes.txt"
    highest = max(int(part.max()) for part in labels)
    names = tuple(str(number) for number in range(highest + 1))
    if path.is_file():
        names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    _check_labels(base, labels, len(names))
    return names


def _check_labels(base: Path, labels: Sequence[np.ndarray], classes: int) -> None:
    for part in labels:
        if int(part.min()) < 0 or int(part.max()) >= classes:
            raise InputError(
                f"{base}: expected labels from 0 to {classes - 1}, got {int(part.min())} to "
                f"{int(part.max())}; mend the labels or the list of classes"
            )


# ---- Parquet ----


def parquet(root: str | Path | None) -> ImageData:
    """A data set in the layout of the Hugging Face hub.

    `train-*.parquet` and `validation-*.parquet` (or val-*, test-*) in `root` or `root/data`, with a
    column `image` (struct of bytes and path) and an integer column `label`. Needs pyarrow. An image
    comes with its whole row group, so in random order much is read in vain: fit for evaluation and
    for making a pack of it.

    Args:
        root: The folder.

    Raises:
        InputError: pyarrow or files are missing, or have other columns.
    """
    base = _root(root, "train-*.parquet and validation-*.parquet")
    splits = {}
    for split, prefixes in (("train", ("train",)), ("val", ("validation", "val", "test"))):
        files = _parquet_files(base, prefixes)
        if not files:
            raise InputError(
                f"{base}: expected {' or '.join(f'{name}-*.parquet' for name in prefixes)} there "
                "or in data/, found none; mend the path"
            )
        splits[split] = ParquetImages(files)
    train, val = splits["train"], splits["val"]
    classes = train.classes or val.classes
    if classes is None:
        classes = _class_names(base, [train.labels, val.labels])
    _check_labels(base, [train.labels, val.labels], len(classes))
    return ImageData(train, val, classes)


def has_parquet(root: str | Path | None) -> bool:
    """Whether Parquet files of a training split lie in this folder, or in its folder `data`."""
    return root is not None and bool(_parquet_files(Path(root).expanduser(), ("train",)))


def _parquet_files(base: Path, prefixes: Sequence[str]) -> list[Path]:
    for prefix in prefixes:
        for folder in (base, base / "data"):
            files = sorted(folder.glob(f"{prefix}-*.parquet"))
            if files:
                return files
    return []


class ParquetImages:
    """A split in Parquet files; keeps a few row groups in memory.

    Args:
        files: The files, in the order of the images.

    Raises:
        InputError: As `parquet`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._parquet = _pyarrow_parquet()
        self._lock = threading.Lock()
        self._readers: dict[int, Any] = {}
        self._groups: OrderedDict[int, Any] = OrderedDict()
        labels, starts, places = [], [0], []
        self.classes: tuple[str, ...] | None = None
        for number, path in enumerate(self.files):
            reader = self._reader(number)
            self._check(path, reader.schema_arrow)
            if number == 0:
                self.classes = _feature_names(reader.schema_arrow.metadata)
            column = reader.read(["label"]).column("label")
            if column.null_count:
                raise InputError(f"{path}: expected a label in each row, found rows without one")
            labels.append(column.to_numpy().astype(np.int64))
            for group in range(reader.num_row_groups):
                starts.append(starts[-1] + reader.metadata.row_group(group).num_rows)
                places.append((number, group))
        self.labels = np.concatenate(labels)
        self.starts, self.places = np.array(starts), places
        if not len(self.labels):
            raise InputError(f"{self.files[0]}: expected rows with images, found none")

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
        return f"{self.files[number]}: row {before + row}"

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image.

        Raises:
            InputError: The file can't be read, or the row has no bytes.
        """
        group, row = self._place(index)
        value = self._group(group)[row].as_buffer()
        if value is None or not len(value):
            raise InputError(
                f"{self.name(index)}: expected the bytes of an image, found none; data sets that "
                "only have paths or links can't be read"
            )
        return memoryview(value)

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Addresses of copies of the encoded bytes of images."""
        items = np.zeros(len(indices), ITEM)
        keep = []
        for place, index in enumerate(indices):
            group, row = self._place(int(index))
            try:
                value = self._group(group)[row].as_buffer()
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
                self._readers[number] = self._parquet.ParquetFile(path, memory_map=True)
            except Exception as error:  # pyarrow's errors are many
                raise InputError(
                    f"{path}: expected a Parquet file, could not open it "
                    f"({type(error).__name__}: {error}); fetch it again"
                ) from error
        return self._readers[number]

    def _group(self, group: int) -> Any:
        """The column of encoded images of a row group."""
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
            number, inner = self.places[group]
            try:
                table = self._reader(number).read_row_group(inner, columns=["image"])
                column = table.column("image").combine_chunks()
                images = column.field("bytes")
            except Exception as error:
                raise InputError(
                    f"{self.files[number]}: expected row group {inner} with images, could not read "
                    f"it ({type(error).__name__}: {error}); fetch the file again"
                ) from error
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
                f"{path}: expected a column image (struct of bytes and path) and an integer column "
                f"label, got {', '.join(f'{field.name}: {field.type}' for field in schema)}; use "
                "a data set for image classification"
            )


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "Parquet files: expected the package pyarrow, found none; pip install pyarrow"
        ) from error
    return pyarrow.parquet


def _feature_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """Class names that the `datasets` library has left in the schema, if so."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
        return tuple(names.values() if isinstance(names, dict) else names)
    except (KeyError, TypeError, ValueError):
        return None


def _root(root: str | Path | None, expected: str) -> Path:
    if root is None:
        raise InputError(
            f"data.root is not set: expected the folder with {expected}; add data.root=/path/to/it"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(f"data.root={root}: expected a folder, found none there; mend the path")
    return base
