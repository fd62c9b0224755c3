"""Batch norms in training on the CPU by native/norms.c, called by ctypes.

torch reads a channels_last feature map three times for a norm and twice more for the ReLU6 behind
it; here it is read twice for both, and what ReLU6 cut off is computed again in the backward pass
instead of being kept. `pip install` builds the library where a C compiler with OpenMP is; where it
is missing, `library()` is None and torch's norms serve.
"""

import ctypes
import functools
import importlib.machinery
import math
from pathlib import Path

import torch
from torch import Tensor

ABI = 2
"""Version of native/norms.c; a library that was built from another one is not used."""
BOUNDS = ((-math.inf, math.inf), (0.0, 6.0))
"""Of outputs, without ReLU6 and with it."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native norms; None if they were not built or can't share torch's threads."""
    found = [Path(__file__).with_name(f"_norms{s}") for s in importlib.machinery.EXTENSION_SUFFIXES]
    found = [path for path in found if path.exists()]
    threads = _openmp_of_torch()
    if not found or threads is None:
        return None
    try:
        ctypes.CDLL(threads, ctypes.RTLD_GLOBAL)  # where the library looks for OpenMP's functions
        loaded = ctypes.CDLL(str(found[0]))
        if loaded.mn_norms_abi() != ABI:
            return None
    except (OSError, AttributeError):
        return None
    count, pointer, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    loaded.mn_norm_work.restype = count
    loaded.mn_norm_work.argtypes = [count, count]
    loaded.mn_norm.restype = None
    loaded.mn_norm.argtypes = [
        *[pointer] * 3, *[count] * 3, *[pointer] * 4, *[ctypes.c_double] * 2, *[real] * 2,
        *[pointer] * 2, ctypes.c_int,
    ]  # fmt: skip
    loaded.mn_norm_backward.restype = None
    loaded.mn_norm_backward.argtypes = [
        *[pointer] * 3, *[count] * 2, *[real] * 2, *[pointer] * 4, ctypes.c_int,
    ]  # fmt: skip
    return loaded


def _openmp_of_torch() -> str | None:
    """The file of GNU's OpenMP library that torch has loaded; another copy has other threads."""
    try:
        mapped = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:  # no Linux
        return None
    paths = sorted({line.split(maxsplit=5)[-1] for line in mapped if "/libgomp" in line})
    home = Path(torch.__file__).parent
    folders = (home / "lib", home.parent / "torch.libs")
    brought = [path for path in paths if Path(path).parent in folders]
    # Copies that other packages bring have a hash in their name.
    found = brought or [path for path in paths if Path(path).name.startswith("libgomp.so")]
    return found[0] if len(found) == 1 else None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float,
    eps: float, clamped: bool, shortcut: Tensor | None, added: int,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The output, and what `backward` needs beside the input; see `mobilenext.models.fused`."""
    loaded = library()
    assert loaded is not None
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    y, kept = torch.empty_like(x), x.new_empty(5, channels)
    work = x.new_empty(loaded.mn_norm_work(rows, channels))
    loaded.mn_norm(
        x.data_ptr(), None if shortcut is None else shortcut.data_ptr(), y.data_ptr(),
        rows, channels, added, weight.data_ptr(), bias.data_ptr(), running[0].data_ptr(),
        running[1].data_ptr(), momentum, eps, *BOUNDS[clamped], kept.data_ptr(), work.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y, [kept]


def backward(
    dy: Tensor, x: Tensor, kept: Tensor, *, clamped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the weight and the bias."""
    loaded = library()
    assert loaded is not None
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    dx, work = torch.empty_like(x), x.new_empty(loaded.mn_norm_work(rows, channels))
    dweight, dbias = x.new_empty(channels), x.new_empty(channels)
    loaded.mn_norm_backward(
        x.data_ptr(), dy.data_ptr(), dx.data_ptr(), rows, channels, *BOUNDS[clamped],
        kept.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), work.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return dx, dweight, dbias
