"""Encoded images stored one after the other in a few large files: shards of a pack, or tars."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from mobilenext.data import native
from mobilenext.data.encoded import ITEM, Located
from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import ClassTargets
from mobilenext.errors import InputError
from mobilenext.files import NotRegularError, open_regular, printable, will_need

GAP = 1 << 14
"""Bytes between two parts of a file that are fetched with them rather than left out: headers of
tars, the space up to the next record of a pack."""


class Names:
    """Strings packed into two arrays: a million names need no million Python objects.

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


class OpenFiles:
    """Large open files; any number of threads may read parts of them.

    They are read, not mapped: where a file was cut short, a mapping ends the process (SIGBUS), and
    a read fails. They stay open for as long as this object lives, unless there are too many.

    Args:
        paths: The files.

    Raises:
        InputError: A file can't be opened, or is no regular file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.files: list[Any] = []
        stay_open = len(self.paths) <= most_open()
        for path in self.paths:
            try:
                file = open_regular(path)
            except OSError as error:
                raise InputError(_unreadable(path, error)) from error
            if stay_open:
                self.files.append(file.detach())
            else:
                file.close()
        self.descriptors = np.array([file.fileno() for file in self.files], np.int32)
        # Names for native code, which opens for each image what does not stay open.
        encoded = [os.fsencode(path) + b"\0" for path in self.paths]
        self.text = np.frombuffer(b"".join(encoded), np.uint8)
        lengths = np.array([len(name) for name in encoded], np.uint64)
        self.addresses = np.uint64(self.text.ctypes.data) + np.cumsum(lengths) - lengths

    def __del__(self) -> None:
        for file in self.files:
            file.close()

    def read(self, number: int, start: int, length: int, what: str) -> bytes:
        """A part of a file.

        Args:
            number: Number of the file.
            start: Where the part begins, in bytes.
            length: Its bytes.
            what: Name of the part, for messages.

        Raises:
            InputError: The file can't be read, or is shorter now.
        """
        path = self.paths[number]
        try:
            if self.files:
                data = _pread(self.files[number].fileno(), start, length)
            else:
                with open_regular(path) as file:
                    file.seek(start)
                    data = file.read(length)
            if len(data) == length:
                return data
            size = os.stat(path).st_size
        except OSError as error:
            raise InputError(_unreadable(path, error)) from error
        raise InputError(
            f"{printable(path)}: expected at least {start + length} bytes, up to the end of "
            f"{printable(what)}, got {size}: the file was cut short after it had been opened; put "
            "it back whole, and leave it alone while it is in use"
        )

    def place(
        self, items: np.ndarray, numbers: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
    ) -> None:
        """Let native code read parts of the files.

        Args:
            items: An `ITEM` for each, to be filled.
            numbers: Number of the file of each part, (N,).
            offsets: Where each begins, in bytes, (N,).
            lengths: The bytes of each, (N,).
        """
        items["offset"], items["length"] = offsets, lengths
        if self.files:
            items["file"] = self.descriptors[numbers]
        else:
            items["path"] = self.addresses[numbers]
            items["status"][items["length"] == 0] = native.EMPTY  # not all of the file

    def read_ahead(self, numbers: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        """Ask the system to fetch parts of the files, neighbouring ones as one.

        Args:
            numbers: Number of the file of each part, (N,).
            offsets: Where each begins, in bytes, (N,).
            lengths: The bytes of each, (N,).
        """
        order = np.lexsort((offsets, numbers))
        numbers, starts = numbers[order], offsets[order].astype(np.int64)
        ends = starts + lengths[order].astype(np.int64)
        begins = np.ones(len(order), bool)
        begins[1:] = (numbers[1:] != numbers[:-1]) | (starts[1:] > ends[:-1] + GAP)
        first = np.flatnonzero(begins)
        last = np.maximum.reduceat(ends, first) if len(first) else ends
        pieces = zip(numbers[first].tolist(), starts[first].tolist(), last.tolist(), strict=True)
        for number, start, end in pieces:
            if self.files:
                will_need(self.files[number].fileno(), start, end - start)
                continue
            with suppress(OSError, NotRegularError), open_regular(self.paths[number]) as file:
                will_need(file.fileno(), start, end - start)


class StoredImages(ClassTargets):
    """Encoded images in a few large files.

    Args:
        files: The files.
        file: Number of the file of each image.
        offset: Where in it the image begins, in bytes.
        length: Bytes of the encoded image.
        labels: Class indices.
        names: Names of the images, to be shown beside that of the file.

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
        self.opened = OpenFiles(self.files)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the files again.
        arrays = self.file, self.offset, self.length, self.labels
        return type(self), (self.files, *arrays, self.names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode_bytes(self.read(index), self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        """File and name of an image."""
        return printable(f"{self.files[int(self.file[index])]}: {self.names[index]}")

    def relative(self, index: int) -> str:
        """Name of an image, with surrogates for bytes that are not UTF-8."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """The encoded bytes of an image.

        Raises:
            InputError: The file can't be read, or is shorter now.
        """
        start, length = int(self.offset[index]), int(self.length[index])
        return self.opened.read(int(self.file[index]), start, length, self.names[index])

    def read_ahead(self, indices: np.ndarray) -> None:
        """See `HasReadAhead`."""
        self.opened.read_ahead(self.file[indices], self.offset[indices], self.length[indices])

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Locations of the encoded bytes of images in the files."""
        some = np.asarray(indices, dtype=np.int64)
        items = np.zeros(len(some), ITEM)
        self.opened.place(items, self.file[some], self.offset[some], self.length[some])
        return Located(items, [self.opened])


def most_open() -> int:
    """Number of files that may stay open: a fourth of this process's limit; 0: none can."""
    if not hasattr(os, "pread"):
        return 0
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if limit == resource.RLIM_INFINITY else limit // 4


def _pread(descriptor: int, start: int, length: int) -> bytes:
    data = os.pread(descriptor, length, start)
    while len(data) < length:  # the system reads at most 2 GiB at a time
        more = os.pread(descriptor, length - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"{printable(path)}: expected a file that can be read ({error.strerror or error}); fix the "
        "path or its permissions"
    )
