"""Packs: a data set's encoded images in a few large files, with checksums; see docs/packs.md.

A pack opens at once and its index takes no Python object for an image: all is mapped into memory,
where every process of a machine shares it. The order of the images is that of the class folders
which they came from, so a pack and its folder give the same batches.
"""

import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from mobilenext.data import native
from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.sources import ImageData, decode_bytes
from mobilenext.errors import InputError

FORMAT, VERSION = "mobilenext-pack", 1
SPLITS = ("train", "val")
DESCRIPTION = "pack.json"
WORK = ".work"
"""Folder inside an unfinished pack: what is finished of it."""
ALIGNMENT = 64
"""Records begin at multiples of it, in bytes."""
SHARD_BYTES = 1 << 30
"""A record that would end beyond it goes to the next shard."""

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


NATIVELY, WHOLE = np.uint8(1), np.uint8(2)
"""Who has compared the checksums of an image: native code (not that of the segments), or `read`."""


class Names:
    """Texts in two arrays, so that a million of them is no million objects.

    Args:
        text: All names, one after the other, UTF-8 as uint8.
        ends: Where each ends in `text`.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self.ends))[index]
        start = int(self.ends[index - 1]) if index else 0
        return bytes(self.text[start : int(self.ends[index])]).decode("utf-8", "surrogateescape")

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """Names from a list of them."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends.reshape(len(names)))


class MappedImages:
    """Encoded images that lie in a few large files, which are mapped once.

    Args:
        files: The files.
        file: For each image, which of them it is in.
        offset: Where in it the image begins, in bytes.
        length: Of the encoded image, in bytes.
        labels: Class indices.
        names: What images are called, beside the file's name.

    Raises:
        InputError: A file can't be opened.
    """

    def __init__(
        self,
        files: Sequence[Path],
        file: np.ndarray,
        offset: np.ndarray,
        length: np.ndarray,
        labels: np.ndarray,
        names: Names,
    ) -> None:
        self.files, self.file, self.offset, self.length = list(files), file, offset, length
        self.labels, self.names = labels, names
        self.maps = [_mapped(path) for path in files]
        self.bases = np.array([mapping.ctypes.data for mapping in self.maps], dtype=np.uint64)

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps anew: addresses mean nothing in another process, and a pickled map is a copy.
        arrays = self.file, self.offset, self.length, self.labels
        return type(self), (self.files, *arrays, self.names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode_bytes(self.read(index), self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        """File and name of an image."""
        return f"{self.files[int(self.file[index])]}: {self.names[index]}"

    def read(self, index: int) -> bytes | memoryview:
        """The encoded bytes of an image, not copied."""
        start = int(self.offset[index])
        mapping = self.maps[int(self.file[index])]
        return mapping.data[start : start + int(self.length[index])]

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Addresses of the encoded bytes of images."""
        chosen = np.asarray(indices, dtype=np.int64)
        items = np.zeros(len(chosen), ITEM)
        items["data"] = self.bases[self.file[chosen]] + self.offset[chosen].astype(np.uint64)
        items["length"] = self.length[chosen]
        return Located(items, [self.maps])


class PackImages(MappedImages):
    """A split of a pack.

    Checksums are compared when an image is first located and when it is first read in a process.

    Args:
        root: The pack's folder.
        split: train or val.

    Raises:
        InputError: The pack is not what its description says.
    """

    def __init__(self, root: Path, split: str) -> None:
        described = _describe(root)["splits"][split]
        self.root, self.split = root, split
        for shard in described["shards"]:
            _check_size(root / shard["file"], shard["bytes"])
        index, text, ends = (
            _checked_array(root / name, crc) for name, crc in described["index"].items()
        )
        if index.dtype != INDEX or not len(index) == len(ends) == described["images"]:
            raise InputError(
                f"{root}: expected an index of {described['images']} images in {split}, got one "
                f"of {len(index)} with {len(ends)} names; make the pack anew"
            )
        self.index = index
        self._check_places([shard["bytes"] for shard in described["shards"]])
        super().__init__(
            [root / shard["file"] for shard in described["shards"]],
            index["shard"],
            index["offset"],
            index["length"],
            index["label"],
            Names(text, ends),
        )
        self._checked, self._lock = np.zeros(len(index), np.uint8), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackImages, (self.root, self.split)

    def name(self, index: int) -> str:
        """Pack, split and name of an image."""
        return f"{self.root}: {self.split}/{self.names[index]}"

    def segments(self, index: int) -> np.ndarray | None:
        """Lengths of the restart segments, uint16; None if the image has no index of them.

        Raises:
            InputError: They are not what was written.
        """
        row = self.index[index]
        if not row["segments"]:
            return None
        start, count = int(row["offset"]), int(row["segments"])
        table = self.maps[int(row["shard"])][start : start + 2 * count]
        if not self._checked[index] & WHOLE and zlib.crc32(table.data) != row["segments_checksum"]:
            raise InputError(self._corrupt(index, start, start + 2 * count))
        return table.view("<u2")

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image, not copied.

        Raises:
            InputError: They or the segment table are not what was written; names the file, the
                bytes and the image.
        """
        self.segments(index)
        row = self.index[index]
        start = int(row["offset"]) + 2 * int(row["segments"])
        end = start + int(row["length"])
        data = self.maps[int(row["shard"])].data[start:end]
        if self._checked[index] & WHOLE:
            return data
        if zlib.crc32(data) != row["checksum"]:
            # Whoever decodes it next is to be told as well.
            with self._lock:
                self._checked[index] = 0
            raise InputError(self._corrupt(index, start, end))
        with self._lock:
            self._checked[index] |= WHOLE
        return data

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Addresses of the encoded bytes of images and of their segment tables.

        `verify` is set for those that have not been found whole in this process.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        rows = self.index[chosen]
        items = np.zeros(len(chosen), ITEM)
        address = self.bases[rows["shard"]] + rows["offset"]
        items["data"] = address + 2 * rows["segments"].astype(np.uint64)
        items["length"] = rows["length"]
        items["segments"] = np.where(rows["segments"] > 0, address, 0)
        items["num_segments"] = rows["segments"]
        items["checksum"] = rows["checksum"]
        fresh = self._checked[chosen] == 0
        items["verify"] = fresh
        for place in np.flatnonzero(fresh & (rows["segments"] > 0)):
            try:
                self.segments(int(chosen[place]))
            except InputError:
                items["status"][place] = native.CHECKSUM
        return Located(items, [self.maps])

    def found_whole(self, indices: np.ndarray) -> None:
        """Take note that native code has compared the checksums of these images."""
        with self._lock:
            self._checked[indices] |= NATIVELY

    def problem(self, index: int) -> str | None:
        """What is wrong with the stored bytes of an image; None: they are what was written."""
        self._checked[index] &= ~WHOLE
        try:
            self.read(index)
        except InputError as error:
            return str(error)
        return None

    def _check_places(self, sizes: list[int]) -> None:
        """Native code takes addresses on trust, so none may lie outside of a mapping."""
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
                    f"{self.root}: expected images inside of the shards of {self.split}, got an "
                    f"index that puts image {start + int(np.argmax(wrong))} elsewhere; make the "
                    "pack anew"
                )

    def _corrupt(self, index: int, start: int, end: int) -> str:
        shard = self.files[int(self.index["shard"][index])].name
        return (
            f"{self.root}: {shard}, bytes {start} to {end}, is corrupt: expected "
            f"{self.split}/{self.names[index]} as it was written, got another CRC-32; copy the "
            "shard again from where it is whole, or make the pack anew"
        )


def is_pack(root: str | Path | None) -> bool:
    """Whether the folder is a pack, or an unfinished one."""
    if root is None:
        return False
    base = Path(root).expanduser()
    return (base / DESCRIPTION).is_file() or (base / WORK / "journal.jsonl").is_file()


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
    """What `pack.json` says, checked.

    Raises:
        InputError: As `open_pack`, but for what is wrong with other files.
    """
    return _describe(Path(root).expanduser())


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
        raise InputError(f"output={root}: expected a folder, found a file; choose another path")
    if not root.exists() or (root / WORK / "journal.jsonl").exists():
        return
    strangers = sorted(set(os.listdir(root)) - {WORK})
    if strangers:
        raise InputError(
            f"output={root}: expected a new or empty folder, found {', '.join(strangers[:3])}; "
            "choose another one"
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
    """Writes a pack part by part; what is finished survives whatever ends the process.

    Images come in order, first those of train, then those of val, in parts of the caller's choice.
    A part is finished when its line is in the journal; behind it, shards are cut off on a restart.
    Without `pack.json`, which comes last, the folder is no pack. The bytes do not depend on how
    often the work was taken up again.

    Args:
        root: Folder for the pack; made if need be.
        described: What `pack.json` gets, all but `splits`; the same on a restart.
        shard_bytes: Size of the shards.

    Raises:
        InputError: The folder has other files, or a pack with other settings.
    """

    def __init__(
        self, root: Path, described: dict[str, Any], shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.root, self.work, self.shard_bytes = root, root / WORK, shard_bytes
        self.described = {"format": FORMAT, "version": VERSION, **described}
        check_lossless(self.described, str(root))
        self.parts: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._rows: list[np.ndarray] = []
        self._names: list[str] = []
        self._file: BinaryIO | None = None
        self._split, self._shard, self._end = SPLITS[0], 0, 0
        self.journal = self.work / "journal.jsonl"
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
            InputError: The disk is full, or does not take it for another reason.
        """
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
        """Make sure of all that was added since the last part.

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
                _flush(file)
            part = {"split": split, "shard": self._shard, "end": self._end, "note": note}
            self._append(part)
            self.parts[split].append(part)
            self._rows, self._names = [], []
            self._open()

    def finish(self, report: dict[str, Any]) -> None:
        """Write the index, `report.json` and `pack.json`; remove what helped to make them.

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
                        f"output={self.root}: expected images in {split}, got none that can be "
                        "read; mend the source"
                    )
            write_whole(self.root / "report.json", _json(report, indent=1) + b"\n")
            described = {**self.described, "splits": splits}
            write_whole(self.root / DESCRIPTION, _json(described, indent=1))
            shutil.rmtree(self.work)

    def close(self) -> None:
        """Let go of the files; what is not in a finished part is forgotten."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_index(self, split: str) -> dict[str, Any]:
        parts = self.parts[split]
        files = [self.work / f"{split}-{number:06d}.npz" for number in range(len(parts))]
        rows, texts, ends, total = [np.zeros(0, INDEX)], [np.zeros(0, np.uint8)], [], 0
        for path in files:
            with np.load(path) as loaded:
                rows.append(loaded["rows"])
                texts.append(loaded["text"])
                ends.append(loaded["ends"] + total)
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
                _flush(file)
            checksums[path.name] = _crc32(np.fromfile(path, np.uint8))
        count = parts[-1]["shard"] + 1 if parts else 0
        names = [_shard_name(split, number) for number in range(count)]
        shards = [{"file": name, "bytes": (self.root / name).stat().st_size} for name in names]
        return {"images": len(arrays["index"]), "shards": shards, "index": checksums}

    def _take_up(self) -> None:
        """Read the journal; its last line may be torn, and shards may have more than it says."""
        content = self.journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines and lines[0] != json.loads(_json(self.described)):
            other = sorted(
                key
                for key in {*lines[0], *self.described}
                if lines[0].get(key) != json.loads(_json(self.described)).get(key)
            )
            raise InputError(
                f"output={self.root} has an unfinished pack that was begun with other values of "
                f"{', '.join(other)}: expected the same command; use that one, or another output"
            )
        if len(whole) != len(content):
            os.truncate(self.journal, len(whole))
        if not lines:
            self._append(self.described)
        for part in lines[1:]:
            self.parts[part["split"]].append(part)

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
                f"{self._file.name}: expected at least {self._end} bytes, got {found}: what was "
                f"finished is gone; remove {self.root} and begin again"
            )
        self._file.truncate(self._end)

    def _open(self) -> None:
        path = self.root / _shard_name(self._split, self._shard)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.seek(self._end)

    def _close(self) -> None:
        if self._file is not None:
            _flush(self._file)
            self._file.close()
            self._file = None

    def _append(self, line: dict[str, Any]) -> None:
        with self.journal.open("ab") as file:
            file.write(_json(line) + b"\n")
            _flush(file)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"output={self.root}: could not write there ({error.strerror or error}); what is "
                "finished stays: make room or mend it, then run the same command again"
            ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or not there, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            _flush(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:03d}.bin"


def _mapped(path: Path) -> np.ndarray:
    """A file as uint8; an empty one can't be mapped."""
    try:
        if path.stat().st_size == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise InputError(
            f"{path}: expected a file that can be read ({error.strerror or error}); mend the path "
            "or its permissions"
        ) from error


def _crc32(data: np.ndarray) -> int:
    """Of a large array, in pieces: the mapping's pages may go as soon as they are counted."""
    crc = 0
    for start in range(0, len(data), 1 << 24):
        crc = zlib.crc32(data.data[start : start + (1 << 24)], crc)
    return crc


def _describe(root: Path) -> dict[str, Any]:
    """`pack.json`, if it is one of ours."""
    path = root / DESCRIPTION
    if not path.is_file():
        if (root / WORK / "journal.jsonl").is_file():
            raise InputError(
                f"{root}: expected a finished pack, found an unfinished one; run the command that "
                "began it again, it goes on where it ended"
            )
        raise InputError(
            f"{root}: expected a pack, found no {DESCRIPTION} there; mend the path, or make one "
            f"with python scripts/prepare_imagenet.py source=... output={root}"
        )
    try:
        described = json.loads(path.read_bytes())
        format_, version = described["format"], described["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the description of a pack, could not read it as one "
            f"({type(error).__name__}: {error}); copy or make the pack anew"
        ) from error
    if (format_, version) != (FORMAT, VERSION):
        raise InputError(
            f"{path}: expected {FORMAT}, version {VERSION}, got {format_}, version {version}; "
            "make the pack anew with this version, or use the one that it was made with"
        )
    try:
        check_lossless(described, str(path))
        needed = [described["classes"], described["splits"]]
        for split in SPLITS:
            needed.extend(needed[1][split][key] for key in ("images", "shards", "index"))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected an entry {error}, found none; copy or make the pack anew"
        ) from error
    return described


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        got = "no such file" if found is None else f"{found} bytes"
        raise InputError(
            f"{path}: expected {size} bytes, got {got}; copy it again from where it is whole, or "
            "make the pack anew"
        )


def _checked_array(path: Path, crc: int) -> np.ndarray:
    found = _crc32(_mapped(path))
    if found != crc:
        raise InputError(
            f"{path}: expected CRC-32 {crc:08x}, got {found:08x}: this index is not what was "
            "written; copy it again from where it is whole, or make the pack anew"
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)
