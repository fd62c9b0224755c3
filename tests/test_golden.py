"""What must not change by accident: run folders' names, and what runs leave.

The golden files in tests/golden say how it is; a change that is meant renews them with
`python -m tests.test_golden`, and its commit says why. A changed fingerprint makes runs that were
begun before start again; other keys in results or checkpoints make tables and old runs unreadable.
Fingerprints are compared in test_configs, which has composed nearly all of those configs already.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenext.config.schemas import schema_name
from mobilenext.training.run_folder import RunFolder
from tests.composed import SCHEMAS
from tests.test_configs import fingerprints

GOLDEN = Path(__file__).parent / "golden"
CLOCK = ("images_per_second", "data_wait_share", "seconds_left")


def shape(value: Any) -> Any:
    """A value's keys and kinds, without its values."""
    if isinstance(value, dict):
        return {str(key): shape(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, list | tuple):
        return [shape(value[0])] if len(value) else []
    if isinstance(value, torch.Tensor):
        return "tensor"
    return "number" if type(value) in (int, float) else type(value).__name__


def run(path: Path) -> None:
    """A short run with averages, as `python train.py epochs=2 runtime=exact`, but small."""
    from tests.jobs.test_train import train

    small = ("data.image_size=16", "data.global_batch_size=144")
    train(path, "runtime=exact", "ema_decay=0.9", "data.workers=2", *small)


def left_by(path: Path) -> dict[str, Any]:
    """What a run leaves: shapes of its files, and the rows of metrics.jsonl without clocks."""
    state = torch.load(path / "last.pt", weights_only=True)
    plain = {
        key: value for key, value in state.items() if key not in ("optimizer", "network", "ema")
    }
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    result = RunFolder(path).result() or {}
    result["git_commit"] = ""  # none outside of a checkout
    return {
        "files": sorted(f.name for f in path.iterdir() if not f.name.startswith((".", "events"))),
        "checkpoint": {**shape(plain), "optimizer": sorted(state["optimizer"])},
        "tensors": {name: list(state["network"][name].shape) for name in state["network"]},
        "result": shape(result),
        "metrics": [{k: v for k, v in row.items() if k not in CLOCK} for row in rows],
        "sessions": [
            shape(json.loads(line)) for line in (path / "sessions.jsonl").read_text().splitlines()
        ],
    }


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_every_job_has_a_schema() -> None:
    assert sorted(schema_name(schema) for schema in SCHEMAS.values()) == golden("schemas")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("golden")
    run(path)
    return left_by(path)


@pytest.mark.parametrize("part", ["files", "checkpoint", "tensors", "result", "sessions"])
def test_runs_leave_what_they_left_before(left: dict[str, Any], part: str) -> None:
    assert json.loads(json.dumps(left[part])) == golden("run")[part]


def test_metrics_are_those_of_before(left: dict[str, Any]) -> None:
    """Kinds, steps and rates exactly; losses as closely as processors round alike."""
    rows, expected = left["metrics"], golden("run")["metrics"]
    assert [shape(row) for row in rows] == [shape(row) for row in expected]
    for row, before in zip(rows, expected, strict=True):
        for key in ("kind", "epoch", "step", "count"):
            assert row.get(key) == before.get(key)
        if row["kind"] == "train":
            assert row["lr"] == pytest.approx(before["lr"], rel=1e-12)
    assert rows[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-2)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "run")
        parts = {
            "fingerprints": fingerprints(),
            "schemas": sorted(schema_name(schema) for schema in SCHEMAS.values()),
            "run": left_by(Path(folder) / "run"),
        }
    for name, content in parts.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
