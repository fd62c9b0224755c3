"""Tars, read in place: the locations of their members, by headers alone.

Names inside of archives are only ever texts: nothing is created from them.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mobilenext.errors import InputError
from mobilenext.files import open_regular, printable, what_is

BLOCK = 512
"""Bytes of a tar's header; members begin at multiples of it."""
MOST_HEADER = 1 << 20
"""Bytes of a tar's extended header, which has names and sizes."""


class Member(NamedTuple):
    """A regular file in a tar; offset and size in bytes."""

    name: str
    offset: int
    size: int


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
