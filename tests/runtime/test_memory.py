"""Memory that is left, and memory that glibc keeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mobilenext.runtime import memory

CPU = torch.device("cpu")
PROGRAM = """
import resource, torch
from mobilenext.runtime.memory import (
    keep_freed_memory, keeps_freed_memory, return_kept_memory)
keep_freed_memory()
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(48 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(10)  # the pieces of freed memory take some rounds to settle
print(keeps_freed_memory(), faults(5))
return_kept_memory()
print(faults(1))
"""


def pages(**variables: str) -> list[str]:
    env = {**os.environ, **variables}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(memory._glibc("mallopt") is None, reason="needs glibc")
def test_freed_memory_is_kept_until_it_is_returned() -> None:
    kept, faults, after = pages()
    assert kept == "True"
    assert int(faults) < 1000, "48 MB are 12,288 pages of 4 KB"
    assert int(after) > 10_000
    kept, faults, _ = pages(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False", "the user's settings stay"
    assert int(faults) > 10_000


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.parametrize(
    ("membership", "groups", "expected"),
    [
        ("0::/", {"": (V2, "max", 0, "")}, 8_192_000),
        ("0::/", {"": (V2, "5000000", 1_000_000, "")}, 4_000_000),
        ("0::/", {"": (V2, "5000000", 6_000_000, "")}, 0),
        # what is kept of files goes when memory is needed
        ("0::/", {"": (V2, "5000000", 4_900_000, "inactive_file 3000000\nactive_file 900000")},
         4_000_000),
        # the process's own group, below one that allows less
        ("0::/slurm/job", {"slurm/job": (V2, "7000000", 0, ""), "slurm": (V2, "6000000", 0, "")},
         6_000_000),
        ("4:memory:/docker/x\n1:cpu:/", {"memory/docker/x": (
            V1, "5000000", 3_000_000, "inactive_file 1\ntotal_inactive_file 1000000\n"
            "total_active_file 500000")}, 3_500_000),
        ("4:memory:/", {"memory": (V1, "9223372036854771712", 3_000_000, "")}, 8_192_000),
        ("4:memory:/", {}, 8_192_000),
    ],
)  # fmt: skip
def test_available_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, groups: dict, expected: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "self").write_text(f"{membership}\n")
    for name, (files, limit, used, stat) in groups.items():
        folder = tmp_path / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in zip((*files, "memory.stat"), (limit, used, stat), strict=True):
            (folder / file).write_text(f"{text}\n" if text != "" else "")
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    places = tmp_path / "cgroup", tmp_path / "self"
    assert memory.available_bytes(CPU, *places) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available_bytes(CPU, *places) == expected // 2


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "none")
    assert memory.available_bytes(CPU) is None


def test_what_torch_says_when_memory_is_out() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.is_out_of_memory(error.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes"))
