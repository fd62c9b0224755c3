"""Provenance of a result: command, commit, versions, hardware."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mobilenext.program import command_line
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.memory import keeps_freed_memory

PACKAGES = ("mobilenext", "torch", "torchvision", "timm", "hydra-core", "omegaconf", "pillow")


def provenance(process: Process) -> dict[str, Any]:
    """The entries of a result.json that say where it came from."""
    return {
        "command": command_line(),
        "git_commit": git_commit(),
        "hardware": hardware(process),
        "versions": versions(),
    }


def git_commit() -> str | None:
    """The source's commit, with `-dirty` behind it if files differ; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = _git(folder, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if dirty else "")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def version_of(package: str) -> str:
    """A package's version, or `not installed`, as is mobilenext itself in a mere checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def hardware(process: Process) -> dict[str, Any]:
    """Device, processor and threads of this run."""
    accelerator = None
    if process.device.type == "cuda":
        accelerator = torch.cuda.get_device_name(process.device)
    return {
        "device": process.device.type,
        "accelerator": accelerator,
        "processes": process.world_size,
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads_per_process": torch.get_num_threads(),
        "freed_memory": "kept" if keeps_freed_memory() else "as the C library has it",
        "platform": platform.platform(),
    }


def cpu_name() -> str:
    """The processor's model, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
