"""The native decoder of native/, called by ctypes, without the GIL.

`pip install` builds it where a C compiler is; where it is missing, `library()` is None and other
decoders serve (`mobilenext.data.decoders`).
"""

import ctypes
import functools
import importlib.machinery
import threading
import time
from pathlib import Path

import numpy as np

from mobilenext.data.encoded import ITEM, VIEW, EncodedImages
from mobilenext.data.transforms import Transform

ABI = 2
"""Version of native/mobilenext.h; a library that was built from another one is not used."""

OK, NOT_JPEG, UNSUPPORTED, CORRUPT, TRUNCATED, TOO_LARGE = range(6)
UNREADABLE, MISSING, CHECKSUM, NO_MEMORY, EMPTY = range(6, 11)

PROBLEMS = {
    NOT_JPEG: "not a JPEG",
    UNSUPPORTED: "a JPEG of a rare kind",
    CORRUPT: "a damaged JPEG",
    TRUNCATED: "ends too early",
    TOO_LARGE: "has too many pixels",
    UNREADABLE: "can't be read",
    MISSING: "does not exist",
    CHECKSUM: "bytes differ from those that were written (checksum)",
    NO_MEMORY: "not enough memory",
    EMPTY: "is empty",
}
"""The problem that each status stands for."""

FILE_PROBLEMS = frozenset({UNREADABLE, MISSING, CHECKSUM, EMPTY})
"""Problems with which no other decoder could help."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native decoder, or None if it was not built or does not fit these sources."""
    found = _path()
    if found is None:
        return None
    try:
        loaded = ctypes.CDLL(str(found))
        if loaded.mn_abi() != ABI:
            return None
    except (OSError, AttributeError):
        return None
    pointer, integer, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    loaded.mn_path.restype = ctypes.c_char_p
    loaded.mn_use_path.argtypes = [ctypes.c_char_p]
    loaded.mn_pool_new.restype = pointer
    loaded.mn_pool_new.argtypes = [integer]
    loaded.mn_pool_free.argtypes = [pointer]
    loaded.mn_load.argtypes = [pointer, pointer, count, count]
    batch = [pointer, pointer, pointer, count, integer, integer, pointer]
    loaded.mn_decode.argtypes = batch
    loaded.mn_resize.argtypes = batch
    loaded.mn_entropy.argtypes = [pointer, pointer, pointer, count]
    loaded.mn_release.argtypes = [pointer, count]
    loaded.mn_restart_index.argtypes = [pointer, count, integer, integer, *[pointer] * 4]
    loaded.mn_free.argtypes = [pointer]
    loaded.mn_crc32.argtypes = [pointer, count]
    loaded.mn_crc32.restype = ctypes.c_uint32
    for name in ("mn_pool_free", "mn_load", "mn_decode", "mn_resize", "mn_entropy", "mn_release"):
        getattr(loaded, name).restype = None
    return loaded


def _path() -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (folder / f"_native{suffix}").exists():
            return folder / f"_native{suffix}"
    return None


def description() -> str:
    """Processor path and libjpeg-turbo's version, for logs."""
    loaded = library()
    if loaded is None:
        return "not built"
    number = loaded.mn_libjpeg()
    version = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
    turbo = f"libjpeg-turbo {version}" if number else "without libjpeg-turbo"
    return f"native ({loaded.mn_path().decode()}, {turbo})"


class Pool:
    """A pool of threads that decode; it may serve several batches at once.

    Args:
        threads: How many.

    Raises:
        RuntimeError: The native decoder was not built, or there are no more threads to be had.
    """

    def __init__(self, threads: int) -> None:
        loaded = library()
        if loaded is None:
            raise RuntimeError("the native decoder was not built")
        self.library = loaded
        self.handle: int | None = loaded.mn_pool_new(threads)
        if self.handle is None:
            raise RuntimeError(f"could not start {threads} decoding threads")
        self.users = 0
        self.idle = threading.Condition()

    def load(self, items: np.ndarray, max_pixels: int) -> None:
        """Read files and headers: sets status, width and height of each `ITEM`.

        Args:
            items: `ITEM`s, (N,), contiguous; as everywhere here.
            max_pixels: Images of more get the status `TOO_LARGE`.

        Raises:
            ValueError: Native code would read or write beside an array; so for the other methods.
            RuntimeError: The pool is closed; so for `decode`, `resize` and `entropy`.
        """
        if not 0 <= max_pixels < 2**63:
            raise ValueError(f"expected max_pixels of 0 to 2**63 - 1, got {max_pixels}")
        self._call(self.library.mn_load, items, len(items), max_pixels)

    def decode(self, items: np.ndarray, views: np.ndarray, out: np.ndarray) -> None:
        """Decode the loaded items.

        Args:
            items: `ITEM`s after `load`; those whose status is not 0 are left out.
            views: A `VIEW` for each, (N,), contiguous.
            out: Gets pixels, uint8 (N or more, height, width, 3), contiguous.
        """
        self._batch(self.library.mn_decode, items, views, out)

    def resize(self, items: np.ndarray, views: np.ndarray, out: np.ndarray) -> None:
        """As `decode`, from RGB pixels in memory: data, length, width and height are set."""
        self._batch(self.library.mn_resize, items, views, out)

    def entropy(self, items: np.ndarray, views: np.ndarray) -> None:
        """Entropy decoding alone, for measurements; out is taken to be 224 x 224."""
        _check_views(views, items)
        self._call(self.library.mn_entropy, items, views.ctypes.data, len(items))

    def release(self, items: np.ndarray) -> None:
        """Give back the memory of files that `load` has read."""
        _check_array("items", items, ITEM, "ITEM")
        self.library.mn_release(items.ctypes.data, len(items))

    def close(self) -> None:
        """End the threads, once they have nothing to do."""
        with self.idle:
            self.idle.wait_for(lambda: self.users == 0)
            if self.handle is not None:
                self.library.mn_pool_free(self.handle)
                self.handle = None

    def _batch(self, call, items: np.ndarray, views: np.ndarray, out: np.ndarray) -> None:
        _check_views(views, items)
        _check_layout("out", out, np.dtype(np.uint8), "uint8")
        if out.ndim != 4 or len(out) < len(items) or 0 in out.shape[1:3] or out.shape[3] != 3:
            raise ValueError(
                f"expected out of shape ({len(items)} or more, height, width, 3), got {out.shape}"
            )
        height, width = out.shape[1:3]
        self._call(call, items, views.ctypes.data, len(items), width, height, out.ctypes.data)

    def _call(self, call, items: np.ndarray, *arguments) -> None:
        _check_array("items", items, ITEM, "ITEM")
        with self.idle:
            if self.handle is None:
                raise RuntimeError("the pool is closed")
            self.users += 1
        try:
            call(self.handle, items.ctypes.data, *arguments)
        finally:
            with self.idle:
                self.users -= 1
                self.idle.notify_all()


def _check_layout(
    name: str, array: np.ndarray, dtype: np.dtype, called: str, written: bool = True
) -> None:
    """Raise `ValueError` unless native code can take the array's address."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"expected {name} as a numpy array, got {type(array).__name__}")
    if array.dtype != dtype:
        raise ValueError(f"expected {name} of dtype {called}, got {array.dtype}")
    if not array.flags.c_contiguous:
        raise ValueError(f"expected {name} to be contiguous, got strides {array.strides}")
    if written and not array.flags.writeable:
        raise ValueError(f"expected {name} to be writable, got a read-only array")


def _check_array(
    name: str, array: np.ndarray, dtype: np.dtype, called: str, written: bool = True
) -> None:
    _check_layout(name, array, dtype, called, written)
    if array.ndim != 1:
        raise ValueError(f"expected {name} of shape (N,), got {array.shape}")


def _check_views(views: np.ndarray, items: np.ndarray) -> None:
    _check_array("items", items, ITEM, "ITEM")
    _check_array("views", views, VIEW, "VIEW", written=False)
    if len(views) != len(items):
        raise ValueError(f"expected {len(items)} views, got {len(views)}")


def entropy_floor(images: EncodedImages, transform: Transform, count: int, threads: int) -> float:
    """Images per CPU-second if nothing but entropy decoding were done, for the same crops.

    Args:
        images: The split.
        transform: Says what is seen of an image.
        count: How many to decode; they are repeated if there are fewer.
        threads: Threads that decode.
    """
    pool = Pool(threads)
    indices = np.arange(count) % len(images)
    seconds = []
    for _ in range(3):
        located = images.locate(indices)
        pool.load(located.items, 2**40)
        sizes = np.stack([located.items["width"], located.items["height"]], axis=1)
        views = transform.views(sizes.astype(np.int64), np.arange(count), 0, 0)
        started = time.process_time()
        pool.entropy(located.items, views)
        seconds.append(time.process_time() - started)
        pool.release(located.items)
    pool.close()
    return count / min(seconds)
