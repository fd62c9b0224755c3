"""What the native decoder would read for an `ITEM`, read without it."""

import ctypes
import os
from pathlib import Path

import numpy as np


def bytes_of(item: np.void) -> bytes:
    """The encoded image."""
    return _read(item, int(item["data"]), int(item["offset"]), int(item["length"]))


def table_of(item: np.void) -> np.ndarray:
    """The lengths of its restart segments."""
    size = 2 * int(item["num_segments"])
    table = _read(item, int(item["segments"]), int(item["offset"]) - size, size)
    return np.frombuffer(table, np.uint16)


def _read(item: np.void, address: int, start: int, size: int) -> bytes:
    if address:
        return ctypes.string_at(address, size)
    if not item["path"]:
        return os.pread(int(item["file"]), size, start)
    name = ctypes.string_at(int(item["path"]))
    content = Path(os.fsdecode(name)).read_bytes()
    return content[start : start + size] if size else content
