"""Memory: how much a process may still use, and what glibc does with what was freed."""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

from mobilenext.runtime.cgroups import CGROUPS, MEMBERSHIP, own_groups

MEMORY_INFO = Path("/proc/meminfo")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""
LARGEST_INT = 2**31 - 1

_kept = False


def available_bytes(
    device: torch.device, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP
) -> int | None:
    """Bytes that this process can still use on a device; None: the system does not say.

    Args:
        device: A CUDA device, or the CPU: then this process's share of what the machine and its
            control groups leave, a container's for instance.
        cgroups: See `cgroups.own_groups`.
        membership: See `cgroups.own_groups`.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = MEMORY_INFO.read_text().splitlines()
        entries = {line.split(":")[0]: line.split()[1] for line in lines}
        found = 1024 * int(entries["MemAvailable"])
    except (OSError, LookupError, ValueError):
        return None
    for group in own_groups("memory", cgroups, membership):
        left = _left_in(group)
        found = found if left is None else min(found, left)
    return found // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_in(group: Path) -> int | None:
    """Bytes that a control group may still use; None: it has no limit, or there is no such group.

    What it uses includes files that the kernel keeps in memory, a data set that was read for
    instance: those go when memory is needed.
    """
    for names in (("memory.max", "memory.current"),
                  ("memory.limit_in_bytes", "memory.usage_in_bytes")):  # fmt: skip
        try:
            limit, used = (int((group / name).read_text()) for name in names)
            lines = (group / "memory.stat").read_text().splitlines()
            stat = {key: int(value) for key, value in map(str.split, lines)}
            old = "total_" if "total_inactive_file" in stat else ""
            files = stat.get(f"{old}inactive_file", 0) + stat.get(f"{old}active_file", 0)
            return max(0, limit - max(0, used - files))
        except (OSError, ValueError):  # "max", or other names
            continue
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error) and "memory" in str(error)
    )


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step, for the rest of this process.

    Large tensors are otherwise mapped and handed back at every step, and the kernel clears each of
    their pages anew: half of the time of MobileNeXt-1.0 at 224 px on two cores. Settings of the
    user's (MALLOC_..., GLIBC_TUNABLES) and other allocators (LD_PRELOAD) stay as they are.
    """
    global _kept
    chosen = [key for key in os.environ if key.startswith("MALLOC_")]
    if chosen or "GLIBC_TUNABLES" in os.environ or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        _kept = bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` was called here, and had an effect."""
    return _kept


def return_kept_memory() -> None:
    """Hand what was kept back to the kernel, between parts of a run that need other sizes."""
    trim = _glibc("malloc_trim") if _kept else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _glibc(name: str) -> Any:
    """A function of glibc; None: this is another C library."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version
        return getattr(library, name)
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return None
