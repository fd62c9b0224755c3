"""Whether this machine can have a CUDA device at all, asked without loading torch."""

import ctypes
import os
import sys
from pathlib import Path

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
ROCM = Path("/dev/kfd")
"""The kernel's driver for AMD's GPUs, which torch's ROCm builds show as CUDA devices."""


def cuda_is_ruled_out() -> bool:
    """Whether torch will find no CUDA device; False: only torch knows."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or sys.platform == "darwin":
        return True
    return not ROCM.exists() and not any(map(_loads, DRIVERS))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
