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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ABI = 2
"""Version of native/norms.c; a library that was built from another one is not used."""


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


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None,
        running: tuple[Tensor, Tensor], momentum: float, eps: float, clamped: bool, added: int,
    ) -> Tensor:  # fmt: skip
        loaded = library()
        assert loaded is not None
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        y = torch.empty_like(x)
        kept = x.new_empty(5, channels)
        work = x.new_empty(loaded.mn_norm_work(rows, channels))
        bounds = (0.0, 6.0) if clamped else (-math.inf, math.inf)
        loaded.mn_norm(
            x.data_ptr(), None if shortcut is None else shortcut.data_ptr(), y.data_ptr(),
            rows, channels, added, weight.data_ptr(), bias.data_ptr(), running[0].data_ptr(),
            running[1].data_ptr(), momentum, eps, *bounds, kept.data_ptr(), work.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        torch.autograd.graph.increment_version(running)
        ctx.save_for_backward(x, kept)
        ctx.bounds, ctx.added = bounds, added
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        loaded = library()
        assert loaded is not None
        x, kept = ctx.saved_tensors
        # Hooks on what is saved may have changed the format.
        x, dy = (one.contiguous(memory_format=torch.channels_last) for one in (x, dy))
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        dx, work = torch.empty_like(x), x.new_empty(loaded.mn_norm_work(rows, channels))
        dweight, dbias = x.new_empty(channels), x.new_empty(channels)
        loaded.mn_norm_backward(
            x.data_ptr(), dy.data_ptr(), dx.data_ptr(), rows, channels, *ctx.bounds,
            kept.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), work.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return dx, dweight, dbias, _of_shortcut(dy, ctx.added), *[None] * 5


def _of_shortcut(dy: Tensor, added: int) -> Tensor | None:
    """The gradient of what was added: that of the output in its channels, 0 in the others."""
    if added in (0, dy.shape[1]):
        return dy if added else None
    gradient = torch.zeros_like(dy)
    gradient[:, :added] = dy[:, :added]
    return gradient


def fused_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
    *,
    clamped: bool,
    shortcut: Tensor | None = None,
    added: int = 0,
) -> Tensor:
    """Batch norm of a batch's own statistics, then perhaps ReLU6, then perhaps an addition.

    The bits are the same for any number of threads. It can't be differentiated twice.

    Args:
        x: Feature map (N, C, H, W), float32 on the CPU, channels_last in memory, with at least two
            values a channel.
        weight: Of the norm, float32 (C,).
        bias: Of the norm, float32 (C,).
        running: Running mean and variance, float32 (C,), changed in place as `nn.BatchNorm2d` does.
        momentum: Share of the batch in them.
        eps: Added to variances.
        clamped: Whether ReLU6 follows; its gradient is 0 at 0 and at 6, as torch's.
        shortcut: What is added after it; of the shape, type and memory format of `x`.
        added: How many of its channels, the first ones, are.

    Returns:
        A tensor of the shape, type and memory format of `x`.
    """
    return _Norm.apply(x, weight, bias, shortcut, running, momentum, eps, clamped, added)  # pyright: ignore[reportReturnType]
