"""Packs: a data set's encoded images in a few large files, with checksums; see docs/packs.md.

A pack opens at once, and its index takes no Python object for an image. The order of the images is
that of the class folders which they came from, so a pack and its folder give the same batches;
unless the training images were shuffled (`order=shuffled`), to be read in blocks (`data.orders`).
"""

import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.sources import ImageData, check_class_names, some
from mobilenext.data.stored import Names, StoredImages
from mobilenext.errors import InputError
from mobilenext.files import (
    check_regular,
    flush,
    flush_folder,
    open_regular,
    printable,
    read_regular,
    read_text,
    what_is,
    write_atomically,
)

FORMAT, VERSION = "mobilenext-pack", 1
SPLITS = ("train", "val")
DESCRIPTION = "pack.json"
WORK = ".work"
"""Folder inside an unfinished pack, with its finished parts."""
JOURNAL, REPORT = "journal.jsonl", "report.json"
ALIGNMENT = 64
"""Records begin at multiples of it, in bytes."""
SHARD_BYTES = 1 << 30
"""A record that would end beyond it goes to the next shard."""

CHECKSUM = "crc32"
"""Name of an entry of `pack.json`, and of each line of an unfinished pack's journal: the CRC-32 of
all other entries. The first packs have none."""
MOST_DESCRIPTION = 1 << 26
"""Bytes that `pack.json` and `report.json` may have."""
MOST_JOURNAL = 1 << 30
"""Bytes that the journal of an unfinished pack may have."""
MOST_HEADER = 1 << 16
"""Bytes that the header of an index file may have."""
MOST_BYTES = (1 << 32) - 1
"""Bytes that an encoded image may have."""
MOST_NAME = 4096
"""Bytes that the name of an image may have, on the average."""

INDEX = np.dtype(
    [
        ("offset", "<u8"),  # of the record in its shard: the segment table, then the image
        ("shard", "<u4"),
        ("length", "<u4"),  # of the encoded image, in bytes
        ("segments", "<u4"),  # entries of the segment table; 0: there is none
        ("checksum", "<u4"),  # CRC-32 of the encoded image
        ("segments_checksum", "<u4"),  # CRC-32 of the segment table
        ("label", "<i4"),
        ("width", "<u4"),  # in pixels; 0 if the image can't be read
        ("height", "<u4"),
    ]
)
"""One image of a pack."""


class PackImages(StoredImages):
    """A split of a pack.

    Checksums are compared when an image is first used in a process.

    Args:
        root: The pack's folder.
        split: train or val.

    Raises:
        InputError: The pack is not what its description says.
    """

    def __init__(self, root: Path, split: str) -> None:
        described = _describe(root)
        part = described["splits"][split]
        self.root, self.split = root, split
        for shard in part["shards"]:
            _check_size(root / shard["file"], shard["bytes"])
        count = part["images"]
        index, text, ends = (
            _index_array(root / name, part["index"][name], dtype, count * most)
            for name, dtype, most in _index_files(split)
        )
        if not len(index) == len(ends) == count:
            raise InputError(
                f"{printable(root)}: expected an index of {count} images in {split}, got one of "
                f"{len(index)} with {len(ends)} names; make the pack again"
            )
        self.index = index
        self._check_rows([shard["bytes"] for shard in part["shards"]], len(described["classes"]))
        if ends[0] < 0 or ends[-1] > len(text) or (np.diff(ends) < 0).any():
            raise InputError(
                f"{printable(root)}: expected names of {split} within the {len(text)} bytes of all "
                "of them, got others; make the pack again"
            )
        super().__init__(
            [root / shard["file"] for shard in part["shards"]],
            index["shard"],
            index["offset"],
            index["length"],
            index["label"],
            Names(text, ends),
        )
        self._checked = np.zeros(count, bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackImages, (self.root, self.split)

    def name(self, index: int) -> str:
        """Pack, split and name of an image."""
        return printable(f"{self.root}: {self.split}/{self.names[index]}")

    def segments(self, index: int) -> np.ndarray | None:
        """Lengths of the restart segments, uint16; None if the image has no index of them.

        Raises:
            InputError: They are not what was written.
        """
        row = self.index[index]
        if not row["segments"]:
            return None
        start, size = int(row["offset"]), 2 * int(row["segments"])
        table = self.opened.read(int(row["shard"]), start, size, self.names[index])
        if not self._checked[index] and zlib.crc32(table) != row["segments_checksum"]:
            raise InputError(self._corrupt(index, start, start + size))
        return np.frombuffer(table, "<u2")

    def read(self, index: int) -> bytes:
        """The encoded bytes of an image.

        Raises:
            InputError: They or the segment table are not what was written, or can't be read; names
                the file, the bytes and the image.
        """
        if not self._checked[index]:
            self.segments(index)
        row = self.index[index]
        start = int(row["offset"]) + 2 * int(row["segments"])
        length = int(row["length"])
        data = self.opened.read(int(row["shard"]), start, length, self.names[index])
        if not self._checked[index] and zlib.crc32(data) != row["checksum"]:
            raise InputError(self._corrupt(index, start, start + length))
        self._checked[index] = True
        return data

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Where the encoded bytes of images and their segment tables lie in the shards.

        `verify` is set for those that have not been found whole in this process.
        """
        rows = self.index[np.asarray(indices, dtype=np.int64)]
        items = np.zeros(len(rows), ITEM)
        starts = rows["offset"] + 2 * rows["segments"].astype(np.uint64)
        self.opened.place(items, rows["shard"], starts, rows["length"])
        items["num_segments"] = rows["segments"]
        items["checksum"] = rows["checksum"]
        items["segments_checksum"] = rows["segments_checksum"]
        items["verify"] = ~self._checked[np.asarray(indices, dtype=np.int64)]
        return Located(items, [self.opened])

    def read_ahead(self, indices: np.ndarray) -> None:
        """See `HasReadAhead`; segment tables come with their images."""
        rows = self.index[indices]
        sizes = rows["length"] + 2 * rows["segments"].astype(np.int64)
        self.opened.read_ahead(rows["shard"], rows["offset"], sizes)

    def found_whole(self, indices: np.ndarray) -> None:
        """Note that native code has found the checksums of these images equal."""
        self._checked[indices] = True

    def problem(self, index: int) -> str | None:
        """The problem with the stored bytes of an image; None: they are as they were written."""
        self._checked[index] = False
        try:
            self.read(index)
        except InputError as error:
            return str(error)
        return None

    def _check_rows(self, sizes: list[int], classes: int) -> None:
        """Raise `InputError` for images outside of their shards, and for labels without a class."""
        bytes_of = np.array([*sizes, 0], dtype=np.uint64)
        for start in range(0, len(self.index), 1 << 16):
            rows = self.index[start : start + (1 << 16)]
            ends = rows["offset"] + 2 * rows["segments"].astype(np.uint64) + rows["length"]
            shards = np.minimum(rows["shard"], len(sizes))
            # Sums may wrap, so the beginning is looked at as well.
            wrong = (
                (ends > bytes_of[shards])
                | (rows["offset"] > bytes_of[shards])
                | (rows["offset"] % ALIGNMENT != 0)
            )
            if wrong.any():
                raise InputError(
                    f"{printable(self.root)}: expected images inside of the shards of "
                    f"{self.split}, got an index that puts image {start + int(np.argmax(wrong))} "
                    "elsewhere; make the pack again"
                )
            wrong = (rows["label"] < 0) | (rows["label"] >= classes)
            if wrong.any():
                first = int(np.argmax(wrong))
                raise InputError(
                    f"{printable(self.root)}: expected class indices of 0 to {classes - 1}, got "
                    f"{rows['label'][first]} for image {start + first} of {self.split}; make the "
                    "pack again"
                )

    def _corrupt(self, index: int, start: int, end: int) -> str:
        shard = self.files[int(self.index["shard"][index])].name
        return (
            f"{printable(self.root)}: {shard}, bytes {start} to {end}, is corrupt: expected "
            f"{self.split}/{printable(self.names[index])} as it was written, got another CRC-32; "
            "copy the shard again from where it is whole, or make the pack again"
        )


def is_pack(root: str | Path | None) -> bool:
    """Whether the folder is a pack, or an unfinished one."""
    if root is None:
        return False
    base = Path(root).expanduser()
    return any(os.path.exists(base / name) for name in (DESCRIPTION, f"{WORK}/{JOURNAL}"))


def open_pack(root: str | Path | None) -> ImageData:
    """Open a pack, as `scripts/prepare_imagenet.py` makes it.

    Args:
        root: The pack's folder.

    Raises:
        InputError: There is none, it is unfinished, of another version, damaged or cut short, or
            its validation images were altered.
    """
    if root is None:
        raise InputError(
            "data.root is not set: expected the folder of a pack; add data.root=/path/to/it"
        )
    base = Path(root).expanduser()
    described = _describe(base)
    return ImageData(
        PackImages(base, "train"), PackImages(base, "val"), tuple(described["classes"])
    )


def describe_pack(root: str | Path) -> dict[str, Any]:
    """The entries of `pack.json`, checked.

    Raises:
        InputError: As `open_pack`, except for errors of other files.
    """
    return _describe(Path(root).expanduser())


def read_report(root: Path) -> dict[str, Any]:
    """The entries of `report.json`: plain values, as `PackWriter.finish` got them.

    Raises:
        InputError: It is not there, or damaged.
    """
    path = root / REPORT
    report = _read_json(path, "the report of a pack")
    if not isinstance(report, dict):
        raise _malformed(path, "the report of a pack", report)
    return report


def check_lossless(described: dict[str, Any], what: str) -> None:
    """Raise `InputError` if the validation images are not those of the source."""
    if not described["lossless"]["val"]:
        raise InputError(
            f"{what}: expected validation images as the source has them, got re-encoded ones, on "
            "which accuracies compare with nothing; only the training split can be resized"
        )


def check_output(root: Path) -> None:
    """Raise `InputError` unless a pack can be begun or taken up again in this folder."""
    if root.exists() and not root.is_dir():
        raise InputError(
            f"output={printable(root)}: expected a folder, found a file; choose another path"
        )
    if not root.exists() or (root / WORK / JOURNAL).exists():
        return
    strangers = [printable(name) for name in sorted(set(os.listdir(root)) - {WORK})]
    if strangers:
        raise InputError(
            f"output={printable(root)}: expected a new or empty folder, found "
            f"{', '.join(strangers[:3])}; choose another one"
        )


@dataclass(frozen=True)
class Record:
    """An image as a pack stores it.

    Attributes:
        data: The encoded image.
        segments: Lengths of its restart segments, uint16; empty: no index.
        label: Class index.
        width: In pixels.
        height: In pixels.
        name: class/file, with slashes.
    """

    data: bytes | memoryview
    segments: np.ndarray
    label: int
    width: int
    height: int
    name: str


class PackWriter:
    """Writes a pack part by part; finished parts survive whatever ends the process.

    Images come in order, first those of train, then those of val, in parts of the caller's choice.
    A part is finished when its line is in the journal; behind it, shards are cut off on a restart.
    Without `pack.json`, which comes last, the folder is no pack. The bytes do not depend on how
    often the work was taken up again.

    Args:
        root: Folder for the pack; made if need be.
        described: The entries of `pack.json` without `splits`; the same on a restart.
        shard_bytes: Size of the shards.

    Raises:
        InputError: The folder has other files, or a pack with other settings.
    """

    def __init__(
        self, root: Path, described: dict[str, Any], shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.root, self.work, self.shard_bytes = root, root / WORK, shard_bytes
        self.described = {"format": FORMAT, "version": VERSION, **described}
        check_lossless(self.described, printable(root))
        _check_classes(self.described["classes"], f"output={printable(root)}")
        self.parts: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._rows: list[np.ndarray] = []
        self._names: list[str] = []
        self._file: BinaryIO | None = None
        self._split, self._shard, self._end = SPLITS[0], 0, 0
        self.journal = self.work / JOURNAL
        check_output(root)
        with self._writable():
            self.work.mkdir(parents=True, exist_ok=True)
            if self.journal.exists():
                self._take_up()
            else:
                self._append(self.described)

    def add(self, split: str, record: Record) -> None:
        """Append an image to a split.

        Raises:
            InputError: Its label has no class, it is too large, or the disk is full or does not
                take it for another reason.
        """
        self._check(split, record)
        with self._writable():
            if self._file is None or split != self._split:
                self._continue(split)
            table = np.asarray(record.segments, dtype="<u2").tobytes()
            size = len(table) + len(record.data)
            start = -(-self._end // ALIGNMENT) * ALIGNMENT
            if start and start + size > self.shard_bytes:
                self._close()
                self._shard, self._end, start = self._shard + 1, 0, 0
                self._open()
            assert self._file is not None
            for piece in (bytes(start - self._end), table, record.data):
                self._file.write(piece)
            self._end = start + size
        row = np.zeros(1, INDEX)
        row[0] = (
            start,
            self._shard,
            len(record.data),
            len(record.segments),
            zlib.crc32(record.data),
            zlib.crc32(table),
            record.label,
            record.width,
            record.height,
        )
        self._rows.append(row)
        self._names.append(record.name)

    def end_part(self, split: str, note: dict[str, Any]) -> None:
        """Flush all images that were added since the last part to the disk.

        Args:
            split: The split that it belongs to; a part has images of one only.
            note: Plain values to keep with it, which `parts` gives back.

        Raises:
            InputError: As `add`.
        """
        with self._writable():
            if self._file is None or split != self._split:
                self._continue(split)  # a part without images, all of which were left out
            self._close()
            names = Names.of(self._names)
            path = self.work / f"{split}-{len(self.parts[split]):06d}.npz"
            rows = np.concatenate([np.zeros(0, INDEX), *self._rows])
            with path.open("wb") as file:
                np.savez(file, rows=rows, text=names.text, ends=names.ends)
                flush(file)
            # Else a power cut could leave the line in the journal without the files it speaks of.
            for folder in (self.root, self.work):
                flush_folder(folder)
            part = {"split": split, "shard": self._shard, "end": self._end, "note": note}
            self._append(part)
            self.parts[split].append(part)
            self._rows, self._names = [], []
            self._open()

    def finish(self, report: dict[str, Any]) -> None:
        """Write the index, `report.json` and `pack.json`; remove the working files.

        Args:
            report: Plain values that tell how the pack came about.

        Raises:
            InputError: As `add`.
        """
        splits: dict[str, Any] = {}
        with self._writable():
            self._close()
            for split in SPLITS:
                splits[split] = self._write_index(split)
                if not splits[split]["images"]:
                    raise InputError(
                        f"output={printable(self.root)}: expected images in {split}, got none that "
                        "can be read; fix the source"
                    )
            _write(self.root / REPORT, _json(report, indent=1) + b"\n")
            described = _with_checksum({**self.described, "splits": splits})
            _write(self.root / DESCRIPTION, _json(described, indent=1))
            shutil.rmtree(self.work)

    def close(self) -> None:
        """Close the files; images that are in no finished part are dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _check(self, split: str, record: Record) -> None:
        """Raise `InputError` for a record that the index can't hold."""
        name = f"{split}/{printable(record.name)}"
        classes = len(self.described["classes"])
        if not 0 <= record.label < classes:
            raise InputError(
                f"{name}: expected a class index of 0 to {classes - 1}, got {record.label}; fix "
                "the labels of the source"
            )
        if len(record.data) > MOST_BYTES:
            raise InputError(
                f"{name}: expected an image of at most {MOST_BYTES:,} bytes, got "
                f"{len(record.data):,}; remove it from the source"
            )

    def _write_index(self, split: str) -> dict[str, Any]:
        parts = self.parts[split]
        files = [self.work / f"{split}-{number:06d}.npz" for number in range(len(parts))]
        rows, texts, ends, total = [np.zeros(0, INDEX)], [np.zeros(0, np.uint8)], [], 0
        for path in files:
            for name, array in self._read_part(path).items():
                {"rows": rows, "text": texts, "ends": ends}[name].append(array)
            ends[-1] = ends[-1] + total
            total += len(texts[-1])
        arrays = {
            "index": np.concatenate(rows),
            "names": np.concatenate(texts),
            "name-ends": np.concatenate([np.zeros(0, np.int64), *ends]),
        }
        checksums = {}
        for name, array in arrays.items():
            path = self.root / f"{split}-{name}.npy"
            with path.open("wb") as file:
                np.save(file, array)
                flush(file)
            checksums[path.name] = zlib.crc32(read_regular(path))
        count = parts[-1]["shard"] + 1 if parts else 0
        names = [_shard_name(split, number) for number in range(count)]
        shards = [{"file": name, "bytes": (self.root / name).stat().st_size} for name in names]
        return {"images": len(arrays["index"]), "shards": shards, "index": checksums}

    def _read_part(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with open_regular(path) as file, np.load(file, allow_pickle=False) as loaded:
                part = {name: loaded[name] for name in ("rows", "text", "ends")}
        except Exception as error:  # numpy and zipfile have many ways to say "damaged"
            raise self._damaged(path, f"{type(error).__name__}: {error}") from error
        kinds = [(array.dtype, array.ndim) for array in part.values()]
        if kinds != [(INDEX, 1), (np.uint8, 1), (np.int64, 1)]:
            raise self._damaged(path, f"arrays of {', '.join(str(kind) for kind, _ in kinds)}")
        return part

    def _damaged(self, path: Path, why: str) -> InputError:
        return InputError(
            f"{printable(path)}: expected what was finished of a pack, could not read it "
            f"({printable(why)}); remove {printable(self.root)} and begin again"
        )

    def _take_up(self) -> None:
        """Read the journal; its last line may be cut off, and shards may be longer than it says."""
        content = read_regular(self.journal, MOST_JOURNAL)
        whole = content[: content.rfind(b"\n") + 1]
        lines = [self._read_line(line) for line in whole.splitlines()]
        if lines and lines[0] != json.loads(_json(self.described)):
            other = sorted(
                key
                for key in {*lines[0], *self.described}
                if lines[0].get(key) != json.loads(_json(self.described)).get(key)
            )
            raise InputError(
                f"output={printable(self.root)} has an unfinished pack that was begun with other "
                f"values of {', '.join(other)}: expected the same command; use that one, or "
                "another output"
            )
        if len(whole) != len(content):
            os.truncate(self.journal, len(whole))
        if not lines:
            self._append(self.described)
        for part in lines[1:]:
            if not _is_part(part):
                raise self._damaged(self.journal, f"no part of a pack: {part}"[:200])
            self.parts[part["split"]].append(part)

    def _read_line(self, line: bytes) -> dict[str, Any]:
        try:
            read = json.loads(line)
            if not isinstance(read, dict):
                raise ValueError("a line is no object")
            if CHECKSUM in read and read != _with_checksum(read):
                raise ValueError("a line has another CRC-32")
        except (ValueError, RecursionError) as error:
            raise self._damaged(self.journal, f"{type(error).__name__}: {error}") from error
        read.pop(CHECKSUM, None)
        return read

    def _continue(self, split: str) -> None:
        """Go to the end of a split's last finished part."""
        self.close()
        self._split, self._shard, self._end = split, 0, 0
        if self.parts[split]:
            last = self.parts[split][-1]
            self._shard, self._end = last["shard"], last["end"]
        number = self._shard + 1
        while (self.root / _shard_name(split, number)).exists():
            (self.root / _shard_name(split, number)).unlink()
            number += 1
        self._open()
        assert self._file is not None
        found = os.fstat(self._file.fileno()).st_size
        if found < self._end:
            raise InputError(
                f"{printable(self._file.name)}: expected at least {self._end} bytes, got {found}: "
                f"what was finished is gone; remove {printable(self.root)} and begin again"
            )
        self._file.truncate(self._end)

    def _open(self) -> None:
        path = self.root / _shard_name(self._split, self._shard)
        exists = path.exists()
        if exists:
            check_regular(path)
        self._file = path.open("r+b" if exists else "w+b")
        self._file.seek(self._end)

    def _close(self) -> None:
        if self._file is not None:
            flush(self._file)
            self._file.close()
            self._file = None

    def _append(self, line: dict[str, Any]) -> None:
        with self.journal.open("ab") as file:
            file.write(_json(_with_checksum(line)) + b"\n")
            flush(file)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"output={printable(self.root)}: could not write there "
                f"({error.strerror or error}); what is finished stays: make room or fix it, then "
                "run the same command again"
            ) from error


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def _with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Plain values with a CRC-32 of them, whatever the order and spacing of their JSON."""
    plain = json.loads(_json({key: value[key] for key in value if key != CHECKSUM}))
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return {**plain, CHECKSUM: zlib.crc32(canonical.encode())}


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:03d}.bin"


def _index_files(split: str) -> tuple[tuple[str, np.dtype, int], ...]:
    """The files of an index: name, type, and how many entries an image may have in it."""
    return (
        (f"{split}-index.npy", INDEX, 1),
        (f"{split}-names.npy", np.dtype(np.uint8), MOST_NAME),
        (f"{split}-name-ends.npy", np.dtype("<i8"), 1),
    )


# ---- reading ----


def _describe(root: Path) -> dict[str, Any]:
    """The entries of `pack.json`, checked."""
    path = root / DESCRIPTION
    if not os.path.exists(path):
        if os.path.exists(root / WORK / JOURNAL):
            raise InputError(
                f"{printable(root)}: expected a finished pack, found an unfinished one; run the "
                "command that began it again, it goes on where it ended"
            )
        raise InputError(
            f"{printable(root)}: expected a pack, found no {DESCRIPTION} there; fix the path, or "
            "make one with python scripts/prepare_imagenet.py source=... "
            f"output={printable(root)}"
        )
    described = _read_json(path, "the description of a pack")
    format_, version = _entry(path, described, "format", str), _entry(path, described, "version")
    if (format_, version) != (FORMAT, VERSION):
        raise InputError(
            f"{printable(path)}: expected {FORMAT}, version {VERSION}, got {printable(format_)}, "
            f"version {version}; make the pack again with this version, or use the one that it was "
            "made with"
        )
    if CHECKSUM in described and described != _with_checksum(described):
        raise InputError(
            f"{printable(path)}: expected the description as it was written, got another CRC-32: "
            "it was changed or damaged; copy it again from where it is whole, or make the pack "
            "again"
        )
    lossless = _entry(path, described, "lossless", dict)
    for split in SPLITS:
        _entry(path, lossless, split, bool)
    check_lossless(described, printable(path))
    _check_classes(_entry(path, described, "classes", list), printable(path))
    splits = _entry(path, described, "splits", dict)
    for split in SPLITS:
        _check_split(path, split, _entry(path, splits, split, dict))
    return described


def _check_split(path: Path, split: str, part: dict[str, Any]) -> None:
    """Raise `InputError` for names that lead elsewhere, and for impossible numbers."""
    _number(path, part, "images", 1, 1 << 32)
    for number, shard in enumerate(_entry(path, part, "shards", list)):
        name = _entry(path, shard, "file", str)
        if name != _shard_name(split, number):
            raise _malformed(path, f"{_shard_name(split, number)} as shard {number}", name)
        _number(path, shard, "bytes", 0, 1 << 62)
    index = _entry(path, part, "index", dict)
    for name, *_ in _index_files(split):
        _number(path, index, name, 0, (1 << 32) - 1)


def _check_classes(classes: list[Any], what: str) -> None:
    """Raise `InputError` for class names that are no texts, or that are there twice."""
    for name in classes:
        if not isinstance(name, str):
            raise InputError(
                f"{what}: expected the names of the classes as texts, got {_short(name)}; make "
                "the pack again"
            )
    check_class_names(classes, what)
    seen = set()
    twice = [name for name in classes if name in seen or seen.add(name)]
    if twice:
        raise InputError(
            f"{what}: expected each class once, got several times: {printable(some(twice))}; give "
            "each a name of its own"
        )


def _read_json(path: Path, expected: str) -> Any:
    try:
        text = read_text(path, MOST_DESCRIPTION)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: expected {expected}, could not read it "
            f"({error.strerror or error}); fix the path or its permissions, or make the pack again"
        ) from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        found = what_is(text[:512].encode())
        problem = f"could not read it as one ({type(error).__name__}: {printable(str(error))})"
        if found:
            problem = f"but it is {found}"
        raise InputError(
            f"{printable(path)}: expected {expected}, {problem}; "
            "copy it again from where it is whole, or make the pack again"
        ) from error


def _entry(path: Path, owner: Any, key: str, kind: type = int) -> Any:
    """An entry of `pack.json`, whose type is checked."""
    if not isinstance(owner, dict) or key not in owner:
        raise InputError(
            f"{printable(path)}: expected an entry {key!r}, found none; copy it again from where "
            "it is whole, or make the pack again"
        )
    if type(owner[key]) is not kind:
        raise _malformed(path, f"{key!r} to be of type {kind.__name__}", owner[key])
    return owner[key]


def _number(path: Path, owner: Any, key: str, least: int, most: int) -> None:
    value = _entry(path, owner, key)
    if not least <= value <= most:
        raise _malformed(path, f"{key!r} to be {least} to {most}", value)


def _malformed(path: Path, expected: str, got: Any) -> InputError:
    return InputError(
        f"{printable(path)}: expected {expected}, got {_short(got)}; copy it again from where it "
        "is whole, or make the pack again"
    )


def _short(value: Any) -> str:
    """A value for messages; lists and mappings may be long, and deep."""
    return type(value).__name__ if isinstance(value, list | dict) else printable(repr(value)[:80])


def _is_part(line: dict[str, Any]) -> bool:
    """Whether a line of the journal is one that `PackWriter.end_part` writes."""
    numbers = [line.get("shard"), line.get("end")]
    return (
        line.get("split") in SPLITS
        and all(type(number) is int and number >= 0 for number in numbers)
        and isinstance(line.get("note"), dict)
    )


def _check_size(path: Path, size: int) -> None:
    found = os.path.getsize(path) if os.path.isfile(path) else None
    if found != size:
        got = "no such file" if found is None else f"{found} bytes"
        raise InputError(
            f"{printable(path)}: expected {size} bytes, got {got}; copy it again from where it is "
            "whole, or make the pack again"
        )


def _index_array(path: Path, crc: int, dtype: np.dtype, most: int) -> np.ndarray:
    """A file of the index, read into memory.

    It is not mapped: if it is replaced while a run uses it, a mapping may end the process.

    Args:
        path: The file.
        crc: CRC-32 of its bytes.
        dtype: Type of its array.
        most: Entries that the array may have.
    """
    try:
        content = read_regular(path, MOST_HEADER + most * dtype.itemsize)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: expected a file that can be read ({error.strerror or error}); fix "
            "the path or its permissions"
        ) from error
    found = zlib.crc32(content)
    if found != crc:
        raise InputError(
            f"{printable(path)}: expected CRC-32 {crc:08x}, got {found:08x}: this index is not "
            "what was written; copy it again from where it is whole, or make the pack again"
        )
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0 of the format")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 1 or kind != dtype:
            raise ValueError(f"an array of shape {shape} and type {kind}")
        return np.frombuffer(content, dtype, shape[0], file.tell())
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{printable(path)}: expected a one-dimensional array of {dtype}, could not read it as "
            f"one ({printable(str(error))[:200]}); make the pack again"
        ) from error
