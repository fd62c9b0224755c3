"""Files that are either whole or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    before_rename: Callable[[Path], object] | None = None,
) -> None:
    """Write a temporary file beside `path`, flush it to the disk and rename it.

    A reader sees the old content or the new one, also after a power cut; if anything fails, the old
    one stays and the temporary file goes.

    Args:
        path: The file to write or replace.
        write: Writes the content.
        before_rename: Called with the temporary file when it is on the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
