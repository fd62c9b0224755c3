"""Indexes of the images in tars: built once from all headers, then cached as numpy arrays."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mobilenext.data.stored import Names, StoredImages
from mobilenext.errors import InputError
from mobilenext.files import cache_folder, open_regular, printable, write_atomically

INDEX_VERSION = 2
"""Version of the cached indexes; one more with every change of what they hold."""


def cached_index(
    files: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that `build` makes of these files, kept between runs while the files are the same.

    The cache lies in `cache_folder`. One that can't be read or written is no error.

    Args:
        files: The files that the index belongs to, known by path, size and time of change.
        build: Makes the arrays.

    Raises:
        InputError: A file is not there, or `build` raises it.
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
    path = cache_folder() / f"index-{key}.npz"
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


def index_arrays(
    names: list[str], offsets: list[int], lengths: list[int], labels: list[int], files: list[int]
) -> dict[str, np.ndarray]:
    """The arrays of an index, an entry for each image.

    Args:
        names: Names of the images.
        offsets: Where each begins in its file, in bytes.
        lengths: Bytes of each.
        labels: Class indices.
        files: Number of the file of each.
    """
    packed = Names.of(names)
    return {
        "text": packed.text,
        "ends": packed.ends,
        "offset": np.array(offsets, np.int64),
        "length": np.array(lengths, np.int64),
        "label": np.array(labels, np.int32),
        "which": np.array(files, np.int32),
    }


def indexed_images(files: Sequence[Path], arrays: dict[str, np.ndarray]) -> StoredImages:
    """The images of an index, read from the files that it belongs to."""
    return StoredImages(
        files,
        arrays["which"],
        arrays["offset"],
        arrays["length"],
        arrays["label"],
        Names(arrays["text"], arrays["ends"]),
    )
