"""Index of the images in class folders: kept between runs, and shared by a machine's processes.

The cache is one file for each root: a line with the SHA-256 of what follows, a line of JSON, the
labels as int64, the paths as bytes of one width. It is ours alone, verified when it is opened, and
only ever replaced by a whole new one. So it can be mapped, and processes share its memory; but on a
network file system, where a new one from another machine would end those that have it mapped, it is
read.
"""

import contextlib
import hashlib
import json
import mmap
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mobilenext.files import cache_folder, open_regular, write_atomically

INDEX_VERSION = 1
"""Version of the cached indexes; one more with every change of what they hold."""
FEWEST_CACHED = 20_000
"""Images of the smallest data set that gets a cache: fewer are listed in a fraction of a second."""
SETTLED_NS = 2_000_000_000
"""Nanoseconds for which a folder has to have been left alone: two changes within the granularity of
its file system's clock, 2 s at most, can't be told apart."""

FolderState = tuple[int, int, int]
"""Inode number, and nanoseconds of the last changes of content and of status.

A file that is added, removed or renamed changes its folder's times. The time of content can be set
back, as tar and rsync do; that of status can't. Device numbers are left out: those of network file
systems differ between machines that share a cache.
"""
NO_FOLDER: FolderState = (0, 0, 0)
"""State of a path where no folder is: a link to a file or to nothing."""


@dataclass(frozen=True)
class FolderIndex:
    """The images in some class folders, and what was found beside them.

    Attributes:
        paths: Paths of the images below the root, bytes (N,).
        labels: Class indices, int64 (N,).
        others: Number of files that are no images, by their endings.
        loops: Paths below the root of links that lead back to a folder above.
        states: What all of that depends on: the folders and links that may lead to folders, by
            their paths below the root, as they were before they were looked at.
    """

    paths: np.ndarray
    labels: np.ndarray
    others: dict[str, int]
    loops: list[str]
    states: dict[str, FolderState]


def folder_state(path: str) -> FolderState:
    """What shows that a folder has changed, or that none is there."""
    try:
        status = os.stat(path)
    except OSError:
        return NO_FOLDER
    if not stat.S_ISDIR(status.st_mode):
        return NO_FOLDER
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def cached_folder_index(
    root: Path, classes: Sequence[str], walk: Callable[[], FolderIndex]
) -> FolderIndex:
    """The index that `walk` makes, kept between runs while no folder in it has changed.

    The cache lies in `cache_folder`. One that can't be read or written is no error.

    Args:
        root: Folder of the split.
        classes: Names of the class folders, in the order of the labels.
        walk: Makes the index.

    Raises:
        InputError: `walk` raises it.
    """
    # A data set that has changed replaces its own cache: only the place is in the name.
    place = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:24]
    path = cache_folder() / f"folders-{place}.index"
    # No cache, another version's or a damaged one: there are many ways to say it.
    with contextlib.suppress(Exception):
        return _read(path, root, classes)
    settled = time.time_ns() - SETTLED_NS
    index = walk()
    if len(index.paths) < FEWEST_CACHED or any(
        max(times) > settled for _, *times in index.states.values()
    ):
        return index
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, classes, index)
    with contextlib.suppress(Exception):
        return _read(path, root, classes)  # memory that is shared instead of the walk's own
    return index


def _read(path: Path, root: Path, classes: Sequence[str]) -> FolderIndex:
    """The index in a cache; ValueError if it is damaged or no longer true."""
    with open_regular(path) as file:
        digest = file.readline().decode().strip()
        begin = file.tell()
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ValueError("it is damaged")
        file.seek(begin)
        about = json.loads(file.readline())
        if about["of"] != [INDEX_VERSION, *classes]:
            raise ValueError("it belongs to something else")
        states = {name: tuple(state) for name, state in about["states"].items()}
        if any(folder_state(os.path.join(root, name)) != state for name, state in states.items()):
            raise ValueError("a folder has changed")
        content = _content(file, path)
        labels = np.frombuffer(content, np.int64, about["images"], file.tell())
        paths = np.frombuffer(
            content, f"S{about['width']}", about["images"], file.tell() + labels.nbytes
        )
    return FolderIndex(paths, labels, about["others"], about["loops"], states)


def _content(file: BinaryIO, path: Path) -> mmap.mmap | bytes:
    """A whole file: mapped, and so shared by processes, where no other machine can replace it."""
    if _is_local(path):
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay")
"""File systems of one machine."""


def _is_local(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a file lies on a file system of this machine, as far as that is known."""
    try:
        rows = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    kinds = {Path(row[1].replace("\\040", " ")): row[2] for row in rows}
    nearest = next((folder for folder in path.resolve().parents if folder in kinds), None)
    return nearest is not None and kinds[nearest] in LOCAL


def _write(path: Path, classes: Sequence[str], index: FolderIndex) -> None:
    about = {
        "of": [INDEX_VERSION, *classes],
        "images": len(index.paths),
        "width": index.paths.itemsize,
        "others": index.others,
        "loops": index.loops,
        "states": index.states,
    }
    line = json.dumps(about).encode()
    hash_line = 2 * hashlib.sha256().digest_size + 1
    line += b" " * (-(hash_line + len(line) + 1) % 64) + b"\n"  # aligns the labels
    parts = line, index.labels.data, index.paths.data
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_atomically(
        path,
        lambda file: file.writelines([digest.hexdigest().encode() + b"\n", *parts]),
        shared=True,
    )
