"""Benchmarks run: their parts on tiny sizes, without a GPU. What they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import REPO, environment

pytestmark = pytest.mark.slow


def told(part: str, *more: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(REPO / "benchmarks/gpu.py"), "--part", part, "--batch", "8",
               "--size", "64", "--device", "cpu", "--count", "40", *more]  # fmt: skip
    env = {**environment(), "STEPS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]


@pytest.mark.parametrize("part", ["syncs", "steps", "colours", "precision"])
def test_gpu_parts_on_a_ready_batch(part: str) -> None:
    assert told(part)


def test_gpu_equal_bits() -> None:
    assert all(row["two_runs"] for row in told("exact"))
    (row,) = told("runs")
    assert row["two_runs"]
    assert row["stopped_and_whole"]
    assert row["stops"] == 2


@pytest.mark.parametrize("part", ["ours", "bare"])
def test_gpu_end_to_end(part: str, photo_folder: Path) -> None:
    (row,) = told(part, "--images", str(photo_folder / "train"))
    assert row["images_per_second"] > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_memory_kept_and_not() -> None:
    command = [sys.executable, str(REPO / "benchmarks/memory.py"), "--rounds", "1", "width=0.35",
               "data.image_size=32", "data.source.train_images=64"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert "kept over not kept, median:" in done.stdout, done.stderr
