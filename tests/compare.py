"""Whether two run folders tell of the same training, bit for bit."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLOCKS = {"images_per_second", "data_wait_share", "wall_seconds", "seconds", "waited",
          "seconds_left"}  # fmt: skip
CIRCUMSTANCES = {"command", "git_commit", "hardware", "versions", "sessions", "checkpoint"}


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, averages, optimiser, position, metrics, TensorBoard and result, clocks apart."""
    assert run_differences(one, two) == []


def run_differences(one: Path, two: Path) -> list[str]:
    """Where two run folders differ, clocks and circumstances apart."""
    found = []
    for name in ("model.safetensors", "last.pt", "best.pt", "metrics.jsonl", "result.json"):
        found += differences(read(one / name), read(two / name), name)
    return found + differences(curves(one), curves(two), "TensorBoard")


def read(path: Path) -> Any:
    """A file of a run folder, a checkpoint without its clock."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    state = torch.load(path, weights_only=True)
    state["meter"].pop("clock")
    return state


def differences(one: Any, two: Any, place: str = "") -> list[str]:
    """Where two nested values differ."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if torch.equal(one, two) else [place]
    if isinstance(one, dict) and isinstance(two, dict):
        left_out = CLOCKS | CIRCUMSTANCES
        keys = [key for key in {**one, **two} if key not in left_out]
        return [
            found
            for key in keys
            for found in (
                differences(one[key], two[key], f"{place}.{key}")
                if key in one and key in two
                else [f"{place}.{key}"]
            )
        ]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return [found for i, (a, b) in pairs for found in differences(a, b, f"{place}[{i}]")]
    return [] if one == two else [f"{place}: {one!r} and {two!r}"]


def curves(path: Path) -> dict[str, list[list[float]]]:
    """TensorBoard's scalars without the clocks."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each rewinding
    with tempfile.TemporaryDirectory() as folder:
        # TensorBoard reads files by the second in their names, and a test's session takes less.
        files = sorted(path.glob("events.*"), key=lambda file: file.stat().st_mtime_ns)
        for number, file in enumerate(files):
            (Path(folder) / f"events.out.tfevents.{number:010d}").symlink_to(file.resolve())
        board = EventAccumulator(folder).Reload()
    return {
        tag: [[event.step, event.value] for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag.rpartition("/")[2] not in CLOCKS
    }
