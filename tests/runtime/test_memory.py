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


@pytest.mark.parametrize(
    ("limit", "used", "expected"), [("max", "0", 8_192_000), ("5000000", "1000000", 4_000_000)]
)
def test_available_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, expected: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes(CPU) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available_bytes(CPU) == expected // 2


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "none")
    assert memory.available_bytes(CPU) is None


def test_what_torch_says_when_memory_is_out() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.is_out_of_memory(error.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes"))
