"""Files: reading those that come from anywhere, writing ours so that they are whole or not there.

Only regular files are read, by names that can be printed. Where a user chooses the path of an
output, `check_output_file` or `check_output_folder` looks at it before the work begins, and
`writable` tells of a write that fails. A leaf that every room may import.
"""

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mobilenext.errors import InputError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

SIGNATURES = (
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for"),
    (b"version https://hawser", "a Git LFS pointer, not the file that it stands for"),
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF document"),
)
ASKED_AT_ONCE = 1 << 17
"""Bytes that `will_need` asks for in one call."""
HTML = (b"<!doctype html", b"<html", b"<?xml", b"<head")


class NotRegularError(InputError):
    """A path that names something other than a regular file."""


def open_regular(path: Path) -> io.BufferedReader:
    """A regular file, opened for reading in binary.

    A named pipe would be waited for without end, a device may be read without end: neither is
    opened for reading.

    Args:
        path: The file; links are followed.

    Raises:
        NotRegularError: It is a folder, a pipe, a socket or a device.
        OSError: It can't be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    check_regular(path)  # opening a device can already have effects
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)  # it may have been exchanged meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path) -> None:
    """Raise `NotRegularError` if something other than a regular file is there.

    Raises:
        NotRegularError: See above.
        OSError: Nothing is there, or it can't be looked at.
    """
    _check_mode(path, os.stat(path).st_mode)


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: The file; links are followed.
        most: How many bytes it may have; None: any number.

    Raises:
        InputError: It is no regular file, or larger.
        OSError: It can't be opened or read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise InputError(
                f"{printable(path)}: expected at most {most:,} bytes, got {size:,}; it is not what "
                "its name says"
            )
        return file.read()


def will_need(descriptor: int, start: int, length: int) -> None:
    """Ask the system to fetch a part of an open file, and don't wait for it.

    Needs `os.posix_fadvise`. Where a system refuses, the part is fetched when it is read.

    Args:
        descriptor: The open file.
        start: Where the part begins, in bytes.
        length: Its bytes.
    """
    # Linux fetches no more at a time than its own readahead (128 KiB unless it was set).
    for at in range(start, start + length, ASKED_AT_ONCE):
        size = min(ASKED_AT_ONCE, start + length - at)
        with suppress(OSError):
            os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_WILLNEED)


def read_text(path: Path, most: int) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        InputError: It is no regular file, larger, or not UTF-8.
        OSError: It can't be opened or read.
    """
    try:
        return read_regular(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{printable(path)}: expected text in UTF-8, got byte {error.object[error.start]:#04x} "
            f"at {error.start}; save it as UTF-8"
        ) from error


def printable(name: str | Path) -> str:
    r"""A file's name as every terminal, log and JSON file takes it.

    Names that are not UTF-8 reach Python with surrogates, which nothing can print: they become
    escapes such as ``\xe4``, and so do line breaks and other control characters.
    """
    try:
        text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte, out of JSON
        text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def what_is(head: bytes) -> str | None:
    """What a file is that is not what it should be, by its first bytes; None: not known.

    Args:
        head: Its first 64 bytes or more.
    """
    if not head:
        return "an empty file"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(HTML):
        return "a web page or other XML"
    return next((name for magic, name in SIGNATURES if head.startswith(magic)), None)


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    before_rename: Callable[[Path], object] | None = None,
    shared: bool = False,
) -> None:
    """Write a temporary file beside `path`, flush it to the disk and rename it.

    A reader sees the old content or the new one, also after a power cut; if anything fails, the old
    one stays and the temporary file goes.

    Args:
        path: The file to write or replace.
        write: Writes the content.
        before_rename: Called with the temporary file when it is on the disk.
        shared: Whether several processes may write this file at once. Each then has a temporary
            file of its own, which stays if the process is killed; else the next one replaces it.
    """
    temporary = path.with_name(f".{path.name}.{f'{os.getpid()}.' if shared else ''}tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            flush(file)
        if before_rename is not None:
            before_rename(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def cache_folder() -> Path:
    """The folder of what is kept between runs and can be made again; it may not be there yet.

    `mobilenext` in $XDG_CACHE_HOME, or in ~/.cache.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "mobilenext"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as `write_atomically` does, with the folders above it where there are none.

    Args:
        path: The file to write or replace.
        content: Bytes, or text, which is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


@contextmanager
def writable(
    place: str, advice: str = "make room, fix its permissions, or choose another path"
) -> Iterator[None]:
    """Turn a failed write inside (a full disk, say) into an `InputError`.

    Args:
        place: What is written, as the user named it, for instance `output=/path`.
        advice: What the user can do.

    Raises:
        InputError: An `OSError` was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{place}: can't write there ({error}); expected a place that can be written to: "
            f"{advice}"
        ) from error


def check_output_file(option: str, path: Path, makes_folders: bool = True) -> None:
    """Raise `InputError` if a path can't become a file, before the work begins.

    Args:
        option: The option that names it, for instance `output`.
        path: The path; nothing is left there.
        makes_folders: Whether missing folders above it will be made.
    """
    folder = path.parent
    while makes_folders and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir() or not folder.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {folder}"
        raise InputError(f"{option}={path}: expected a file's path in a folder, found {found}")
    if path.exists():
        check_regular(path)  # a device would be replaced by a file
    with writable(f"{option}={path}"):
        tempfile.TemporaryFile(dir=folder).close()


def check_output_folder(option: str, path: Path, own: Collection[str] = ()) -> None:
    """Raise `InputError` unless a path is free, or a folder without files of others.

    Args:
        option: The option that names it, for instance `output`.
        path: The path; nothing is written there.
        own: Names of files that the folder may have.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{option}={path}: expected a folder, got a file; choose another path")
    others = sorted({item.name for item in path.glob("*")} - set(own))
    if others:
        only = f", or one with {', '.join(own)} only" if own else ""
        more = ", ..." if len(others) > 3 else ""
        raise InputError(
            f"{option}={path}: expected a new or empty folder{only}, got "
            f"{', '.join(others[:3])}{more}; choose another folder, or remove these"
        )


def link_atomically(source: Path, path: Path) -> None:
    """Make `path` a second name of the file `source`, replacing what had that name.

    A copy, where the file system knows no hard links.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with source.open("rb") as file:
            write_atomically(path, lambda copy: shutil.copyfileobj(file, copy))
        return
    temporary.replace(path)
    flush_folder(path.parent)


def flush(file: BinaryIO) -> None:
    """Bring a file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "no regular file")
        raise NotRegularError(f"{printable(path)}: expected a regular file, got {kind}")
