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
import re
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL.Image

from mobilenext.data import native
from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import (
    EXTENSIONS,
    ImageData,
    check_class_names,
    is_hidden,
    is_image,
    some,
)
from mobilenext.data.stored import Names, StoredImages
from mobilenext.errors import InputError
from mobilenext.files import (
    check_regular,
    open_regular,
    printable,
    read_text,
    what_is,
    write_atomically,
)

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LABELS_PATTERN = "*validation_synset_labels.txt"

BLOCK = 512
INDEX_VERSION = 2
"""Of the cached indexes; one more with every change of what they hold."""
CACHED_ROW_GROUPS = 1 << 28
"""Bytes of Parquet row groups to keep; one group is kept in any case."""
ROW_BYTES = 1 << 28
"""About as many bytes of a row group are read at a time; Arrow can't do more than 2 GB at once."""
MOST_TEXT = 1 << 26
"""Bytes of a list of classes or labels, or of a file in ImageNet's development kit."""
MOST_HEADER = 1 << 20
"""Bytes of a tar's extended header, which has names and sizes."""
MOST_LABEL = 1 << 24
"""Bytes of a .cls or .json with a label; a .json may have captions and the like as well."""
MOST_LABEL_VALUE = 2**31 - 1
"""Labels are kept as int32."""
MOST_UNNAMED = 1 << 20
"""Classes of a data set that does not name them; a higher label is taken for damage."""


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
        with open_regular(path) as file:
            descriptor = file.fileno()
            if hasattr(os, "posix_fadvise"):
                # Between headers lie images; reading ahead would read nearly all of the archive.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            end = os.fstat(descriptor).st_size if end is None else end
            yield from _members(descriptor, path, start, end)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: expected a tar that can be read ({error.strerror}); fix the path "
            "or its permissions"
        ) from error


def _members(descriptor: int, path: Path, at: int, end: int) -> Iterator[Member]:
    start, place = at, printable(path)
    name, size = None, None  # from headers that only describe the next one
    while True:
        block = os.pread(descriptor, min(BLOCK, max(0, end - at)), at)
        if len(block) < BLOCK and not (block and at == start and what_is(block)):
            raise InputError(
                f"{place}: expected the end marker of a tar, found the end of the file at byte "
                f"{at}: it was cut short; fetch it again"
            )
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            return
        except tarfile.HeaderError as error:
            found = what_is(block) if at == start else None
            compressed = found is not None and "compressed" in found
            raise InputError(
                f"{place}: expected a tar header at byte {at}, found other bytes ({error}); "
                f"{f'it is {found}; ' if found else ''}"
                f"{'unpack it to a plain tar' if compressed else 'fetch it again'}"
            ) from error
        length = header.size if size is None else size
        data = at + BLOCK
        at = data + -(-length // BLOCK) * BLOCK
        if length < 0 or data + length > end:
            raise InputError(
                f"{place}: expected {length} bytes of {printable(header.name)}, found the end of "
                "the archive: it was cut short; fetch it again"
            )
        if header.type == tarfile.GNUTYPE_LONGNAME:
            content = _header_data(descriptor, place, data, length)
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE:
            content = _header_data(descriptor, place, data, length)
            records = _pax(content, f"{place}, byte {data}")
            name = records.get("path", name)
            size = int(records["size"]) if "size" in records else None
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield Member(name or header.name, data, length)
            name, size = None, None


def _header_data(descriptor: int, place: str, at: int, length: int) -> bytes:
    if length > MOST_HEADER:
        raise InputError(
            f"{place}, byte {at}: expected an extended header of at most {MOST_HEADER:,} bytes, "
            f"got {length:,}; fetch it again"
        )
    return os.pread(descriptor, length, at)


def _pax(content: bytes, place: str) -> dict[str, str]:
    """Records of a pax header, each a length, a space, key=value and a newline."""
    found = {}
    while content[:1].isdigit():
        number = content[:20].split(b" ", 1)[0]
        length = int(number) if number.isdigit() else 0
        key, _, value = content[:length].partition(b" ")[2].partition(b"=")
        wrong_size = key == b"size" and not (value.strip().isdigit() and len(value) <= 20)
        if not 0 < length <= len(content) or wrong_size:
            raise InputError(f"{place}: expected pax records, found others; fetch it again")
        found[key.decode(errors="replace")] = value.rstrip(b"\n").decode("utf-8", "surrogateescape")
        content = content[length:]
    return found


def _cached(
    files: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that `build` makes of these files, kept between runs while the files are the same.

    A cache that can't be read or written is done without.
    """
    stats = []
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(
                f"{printable(path)}: expected a file that can be read ({error.strerror}); fix the "
                "path or its permissions"
            ) from error
        stats.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    key = hashlib.sha256(json.dumps([INDEX_VERSION, *stats]).encode()).hexdigest()[:24]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "mobilenext" / f"index-{key}.npz"
    # numpy and zipfile have many ways to say "damaged"
    with (
        contextlib.suppress(Exception),
        open_regular(path) as file,
        np.load(file, allow_pickle=False) as loaded,
    ):
        return {name: loaded[name] for name in loaded.files}
    arrays = build()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
        write_atomically(path, lambda file: file.write(content.getbuffer()), shared=True)
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


def _images(files: Sequence[Path], arrays: dict[str, np.ndarray]) -> StoredImages:
    return StoredImages(
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
    return (base / TRAIN_TAR).exists() or (base / VAL_TAR).exists()


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
        if not path.exists():
            raise InputError(
                f"{printable(path)}: expected ImageNet's official tar, found none; put it there, "
                "or a link"
            )
    train = _cached([train_tar], lambda: _index_train(train_tar))
    classes = str(train.pop("classes").tobytes(), "utf-8").split("\n")
    if expected_classes is not None and classes != list(expected_classes):
        odd = sorted(set(classes) ^ set(expected_classes))
        raise InputError(
            f"{printable(train_tar)}: expected the {len(expected_classes)} synsets of "
            f"ImageNet-1k, got {len(classes)}; missing or unknown: {some(odd)}; fetch the official "
            "archive"
        )
    val = _cached([val_tar], lambda: _index_val(val_tar))
    synsets = _validation_synsets(base, len(val["length"]))
    number = {synset: label for label, synset in enumerate(classes)}
    unknown = sorted(set(synsets) - set(classes))
    if unknown:
        raise InputError(
            f"{printable(base)}: expected validation labels among the {len(classes)} synsets of "
            f"{TRAIN_TAR}, got {len(unknown)} others: {some(unknown)}; training archive and labels "
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
        if member.name.endswith(".tar") and not is_hidden(member.name)
    )
    classes = [synset for synset, _ in inner]
    check_class_names(classes, str(path))
    if not classes or len(set(classes)) != len(classes):
        raise InputError(
            f"{printable(path)}: expected one tar for each class in it, got {len(classes)} tars of "
            f"{len(set(classes))} names; fetch the official archive"
        )
    parts = []
    for label, (synset, tar) in enumerate(inner):
        images = sorted(
            (os.path.basename(member.name), member.offset, member.size)
            for member in tar_members(path, tar.offset, tar.offset + tar.size)
            if is_image(member.name)
        )
        if not images:
            raise InputError(
                f"{printable(path)}: expected images in {printable(tar.name)}, found none; fetch "
                "it again"
            )
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
        if is_image(member.name)
    )
    if not images:
        raise InputError(
            f"{printable(path)}: expected images in it, found none; fetch the official archive"
        )
    names, offsets, lengths = (list(column) for column in zip(*images, strict=True))
    return _arrays(names, offsets, lengths, [0] * len(names), [0] * len(names))


def _validation_synsets(base: Path, images: int) -> list[str]:
    """The synset of each validation image, in the order of their names."""
    devkit = base / DEVKIT
    texts = sorted(path for path in base.glob(LABELS_PATTERN) if not path.name.startswith("."))
    if devkit.exists():
        path, synsets = devkit, _read_devkit(devkit)
    elif texts:
        path, synsets = texts[0], _text(texts[0]).split()
    else:
        raise InputError(
            f"{printable(base)}: expected the labels of the validation images, found neither "
            f"{DEVKIT} (it is offered where the tars are) nor {LABELS_PATTERN} (one synset a "
            "line); put one there"
        )
    if len(synsets) != images:
        raise InputError(
            f"{printable(path)}: expected a label for each of the {images} images of {VAL_TAR}, "
            f"got {len(synsets)}; fetch both again, they have to be of the same data set "
            "(ILSVRC2012)"
        )
    return synsets


def _text(path: Path) -> str:
    """The content of a list of classes or labels."""
    try:
        return read_text(path, MOST_TEXT)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: expected a text file that can be read ({error.strerror}); fix its "
            "permissions"
        ) from error


def _read_devkit(path: Path) -> list[str]:
    from scipy.io import loadmat

    truth = "ILSVRC2012_validation_ground_truth.txt"
    try:
        found = {}
        with open_regular(path) as opened, tarfile.open(fileobj=opened, mode="r:gz") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and name in (truth, "meta.mat"):
                    if member.size > MOST_TEXT:
                        raise ValueError(f"{name} has {member.size:,} bytes")
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
        synsets = np.atleast_1d(loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"])
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [names[int(number)] for number in found[truth].split()]
    except Exception as error:  # gzip, tarfile and scipy raise nearly anything on damaged files
        raise InputError(
            f"{printable(path)}: expected ImageNet's development kit with data/{truth} and "
            f"data/meta.mat, could not read them ({type(error).__name__}: {error}); fetch it "
            f"again, or give the labels as {LABELS_PATTERN}"
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
                f"{printable(packed[0].name)} is compressed, so its images can't be found one by "
                "one: unpack it to a plain tar (gunzip), JPEGs do not shrink anyway"
                if packed
                else "fix the path, or name the tars like that"
            )
            raise InputError(f"{printable(base)}: expected {split}-*.tar, found none; {advice}")
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
        with open_regular(path) as file:
            for key, members in _samples(path):
                image, label = _image_and_label(file, path, key, members)
                names.append(image.name)
                offsets.append(image.offset)
                lengths.append(image.size)
                labels.append(label)
                numbers.append(number)
    if not names:
        raise InputError(
            f"{printable(files[0])}: expected images in it, found none; rewrite the tar"
        )
    return _arrays(names, offsets, lengths, labels, numbers)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Neighbouring members with the same name up to the first dot of the file's name."""
    key, members = None, {}
    for member in tar_members(path):
        folder, base = os.path.split(member.name)
        stem, _, ending = base.partition(".")
        if not stem or not ending or is_hidden(folder):
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key:
            if key is not None:
                yield key, members
            key, members = this, {}
        twin = members.setdefault(ending.lower(), member)
        if twin is not member:
            raise InputError(
                f"{printable(path)}: expected one .{printable(ending.lower())} with each key, "
                f"found {printable(twin.name)} at byte {twin.offset} and "
                f"{printable(member.name)} at byte {member.offset}; give each sample a key of its "
                "own and write the tar again"
            )
    if key is not None:
        yield key, members


def _image_and_label(
    file: BinaryIO, path: Path, key: str, members: dict[str, Member]
) -> tuple[Member, int]:
    images = [member for ending, member in members.items() if f".{ending}" in EXTENSIONS]
    source = members.get("cls") or members.get("json")
    if len(images) != 1 or source is None:
        raise InputError(
            f"{printable(path)}: expected one image and a .cls or .json with each key, found "
            f"{printable(', '.join(members))} with {printable(key)}; fix or rewrite the tar"
        )
    content = _content(file, path, source)
    try:
        is_text = source.name.lower().endswith(".cls")
        return images[0], _label(content.strip() if is_text else json.loads(content)["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{printable(path)}: expected the class index in {printable(source.name)}, as text or "
            f"as label of a JSON object, from 0 to {MOST_LABEL_VALUE:,}, got "
            f"{content[:40]!r}; fix or rewrite the tar"
        ) from error


def _content(file: BinaryIO, path: Path, member: Member) -> bytes:
    if member.size > MOST_LABEL:
        raise InputError(
            f"{printable(path)}: expected at most {MOST_LABEL:,} bytes in "
            f"{printable(member.name)}, got {member.size:,}; fix or rewrite the tar"
        )
    file.seek(member.offset)
    return file.read(member.size)


def _label(value: Any) -> int:
    """A class index from a JSON integer or from ASCII digits; ValueError otherwise."""
    digits = str(value) if type(value) is int else value
    digits = digits.decode("ascii") if isinstance(digits, bytes) else digits
    if not (isinstance(digits, str) and re.fullmatch("[0-9]{1,10}", digits)):
        raise ValueError
    if int(digits) > MOST_LABEL_VALUE:
        raise ValueError
    return int(digits)


def _class_names(base: Path, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """From classes.txt, or the numbers; labels have to be among them."""
    path = base / "classes.txt"
    if path.exists():
        names = tuple(line.strip() for line in _text(path).rstrip().splitlines())
        _check_listed(path, names)
    else:
        highest = max(int(part.max()) for part in labels)
        if highest >= MOST_UNNAMED:
            raise InputError(
                f"{printable(base)}: expected labels below {MOST_UNNAMED:,}, got {highest:,}; fix "
                "the labels, or name the classes in classes.txt"
            )
        names = tuple(str(number) for number in range(highest + 1))
    _check_labels(base, labels, len(names))
    return names


def _check_listed(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise InputError(
            f"{printable(path)}: expected the name of a class in each line, found none in line "
            f"{1 + names.index('')}; fill or remove it"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{printable(path)}: expected each class once, got several times: {some(twice)}; give "
            "the classes names of their own"
        )


def _check_labels(base: Path, labels: Sequence[np.ndarray], classes: int) -> None:
    for part in labels:
        if int(part.min()) < 0 or int(part.max()) >= classes:
            raise InputError(
                f"{printable(base)}: expected labels from 0 to {classes - 1}, got "
                f"{int(part.min())} to {int(part.max())}; fix the labels or the list of classes"
            )


# ---- Parquet ----


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
    base = _root(root, "train-*.parquet and validation-*.parquet")
    splits = {}
    for split, prefixes in (("train", ("train",)), ("val", ("validation", "val", "test"))):
        files = _parquet_files(base, prefixes)
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
        named = (base / "classes.txt").exists()
        notes = () if named else (f"{printable(base)}: the files do not name their classes",)
        classes = _class_names(base, [train.labels, val.labels])
    _check_labels(base, [train.labels, val.labels], len(classes))
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


def has_parquet(root: str | Path | None) -> bool:
    """Whether Parquet files of a training split lie in this folder; see `parquet` for where."""
    return root is not None and bool(_parquet_files(Path(root).expanduser(), ("train",)))


def _parquet_files(base: Path, prefixes: Sequence[str]) -> list[Path]:
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


class ParquetImages:
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
        """Addresses of copies of the encoded bytes of images."""
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
    """Class names that the `datasets` library has left in the schema, if so."""
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


def _root(root: str | Path | None, expected: str) -> Path:
    if root is None:
        raise InputError(
            f"data.root is not set: expected the folder with {expected}; add data.root=/path/to/it"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(
            f"data.root={printable(root)}: expected a folder, found none there; fix the path"
        )
    return base
