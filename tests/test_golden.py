"""What must not change by accident: run folders' names, and what runs leave.

The golden files in tests/golden say how it is; a change that is meant renews them with
`python -m tests.test_golden`, and its commit says why. A changed fingerprint makes runs that were
begun before start again; other keys in results or checkpoints make tables and old runs unreadable.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenext.config import fingerprint
from mobilenext.config.schemas import schema_name
from mobilenext.training.run_folder import RunFolder
from tests.composed import SCHEMAS, composed
from tests.test_configs import NEEDS_NAME, choices, job_of

GOLDEN = Path(__file__).parent / "golden"
VARIANTS: tuple[tuple[str, ...], ...] = ((), ("width=0.5", "identity=1/2"), ("model=mobilenetv2",))
CLOCK = ("images_per_second", "data_wait_share", "seconds_left")


def of(job: str, *overrides: str) -> str:
    """The fingerprint of a command, or the kind of error that refuses it."""
    try:
        config = composed("data.root=/data", *overrides, job=job)
    except Exception as error:
        return type(error).__name__
    config.runtime.precision = "fp32"  # what `auto` means depends on the machine
    return fingerprint(config)


def fingerprints(variants: Sequence[tuple[str, ...]] = VARIANTS) -> dict[str, str]:
    """Fingerprints of every experiment, of every choice of each group, and of other jobs."""
    found = {}
    for experiment in choices("experiment"):
        if experiment == "tune_recipe":
            continue  # needs the extra optuna
        job = job_of("experiment", experiment)
        for more in variants:
            chosen = (f"experiment={experiment}", *more)
            if experiment in ("finetune", "ssdlite_voc_mini"):  # they need given weights
                chosen = (*chosen, "init_from=/w.pt")
            found[" ".join(chosen)] = of(job, *chosen)
    for group in ("data", "model", "augment", "optimizer", "schedule", "runtime"):
        for choice in choices(group):
            named = (f"model.name={NEEDS_NAME[choice]}",) if choice in NEEDS_NAME else ()
            job = job_of(group, choice)
            found[f"{group}={choice}"] = of(job, f"{group}={choice}", *named)
    for override in ("init_from=/w.pt", "freeze_backbone=true", "layer_decay=0.8", "seed=1",
                     "data.workers=3", "output_dir=/x", "checkpoint.keep=5"):  # fmt: skip
        given = (override, "init_from=/w.pt") if "freeze" in override else (override,)
        found[override] = of("train", *given)
    found["evaluate"] = of("evaluate", "checkpoint=/x.pt")
    found["gradients"] = of("gradients")
    return found


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

    train(path, "runtime=exact", "ema_decay=0.9", "data.workers=2")


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


@pytest.mark.parametrize("variants", [1, pytest.param(len(VARIANTS), marks=pytest.mark.slow)])
def test_every_recipe_keeps_its_run_folder(variants: int) -> None:
    left_out = [" ".join(more) for more in VARIANTS[variants:]]
    expected = {
        key: value
        for key, value in golden("fingerprints").items()
        if not (key.startswith("experiment=") and any(more in key for more in left_out))
    }
    found = fingerprints(VARIANTS[:variants])
    assert {key: found.get(key) for key in expected} == expected
    assert found.keys() == expected.keys(), "new configs: python -m tests.test_golden"


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
