"""Benchmarks run: their parts on tiny sizes, without a GPU. What they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import search_step
from mobilenext.genotype import SPACES
from mobilenext.models.darts.supernet import Supernet
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


def test_search_steps_are_the_same_and_timed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, str(REPO / "benchmarks/search_step.py"), "--channels", "4",
               "--cells", "3", "--nodes", "2", "--size", "8", "--batch", "4", "--rounds", "1",
               "--needed", "--json", str(rows)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    for space in SPACES:
        assert f"{space}, fp32: the original's form / ours = " in done.stdout
    told = [(row["space"], row["name"]) for row in json.loads(rows.read_text())["rows"]]
    names = (search_step.ORIGINAL, search_step.NEEDED, search_step.OURS)
    assert told == [(space, name) for space in SPACES for name in names]


def test_no_ratio_of_different_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Supernet(channels=4, cells=3, nodes=2, operators=SPACES["darts_sandglass"])
    original = search_step.same_network(ours, 2)
    search_step.check(search_step.differences(ours, original, 8, True))
    last = original.weights()[-3]  # before the classifier's: of the last edge's last operator
    with torch.no_grad():
        last += 0.01 * torch.randn_like(last)
    apart = search_step.differences(ours, original, 8, True)
    assert min(apart.values()) > search_step.TOLERANCE
    with pytest.raises(SystemExit, match="no ratio of different networks"):
        search_step.check(apart)

    def spoiled(ours: Supernet, nodes: int) -> search_step.Original:
        original = same_network(ours, nodes)
        with torch.no_grad():
            original.alphas[0][1, 2] += 1e-6
        return original

    same_network = search_step.same_network
    monkeypatch.setattr(search_step, "same_network", spoiled)
    given = search_step.arguments(["--channels", "4", "--cells", "3", "--nodes", "2"])
    with pytest.raises(SystemExit, match="no ratio of different networks"):
        search_step.of_space("darts", torch.device("cpu"), given)
