"""Benchmarks run: their parts on tiny sizes, without a GPU. What they measure is not tested."""

import importlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import operators, search_step
from mobilenext.genotype import SPACES
from mobilenext.models.darts.supernet import Supernet
from mobilenext.tables.experiments import experiments
from tests.commands import REPO, environment, run_command

SMALL = ("width=0.35", "+model.network.depth_mult=0.25")


def told(part: str, cwd: Path, *more: str) -> list[Any]:
    done = run_command("benchmarks/gpu.py", "--part", part, "--batch", 10, "--size", 32, "--count",
                       40, "--device", "cpu", *more, *SMALL, cwd=cwd, timeout=550,
                       env={"STEPS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPO / "benchmarks")
    return importlib.import_module("gpu")


TESTED = {
    "ceilings": [],  # nothing without CUDA
    "syncs": ["waits for the device"],
    "steps": ["ours now", "ours now + EMA", "ours now + EMA of timm", "bare loop",
              "bare, fused SGD", "ours now"],
    "exact": ["equal bits, runtime=exact", "equal bits, runtime=auto"],
    "evaluation": ["evaluation, one network", "evaluation, raw and averaged"],
    "colours": ["to_device, none", "to_device, jitter", "to_device, jitter, hue, erasing"],
    "fused_norms": ["ours now, fused norms", "ours now, in a CUDA graph",
                    "ours now, fused norms, in a CUDA graph"] * 2,
    "precision": ["ours now, bf16", "ours now, fp16", "ours now, tf32", "ours now, fp32"],
}  # fmt: skip
"""Rows of the parts that need no more than a ready batch, on the CPU."""
COMPILED = {"compiled": "compiled, wide fusions", "compiled_default": "compiled"}
OTHERS = {"ours", "timm", "bare", "runs"}


def test_no_gpu_part_is_forgotten(gpu: ModuleType) -> None:
    assert gpu.PARTS.keys() == TESTED.keys() | COMPILED.keys() | OTHERS


@pytest.mark.parametrize("part", TESTED)
def test_gpu_parts_on_a_ready_batch(part: str, tmp_path: Path) -> None:
    rows = told(part, tmp_path)
    assert [row["row"] for row in rows] == TESTED[part]
    if part == "steps":
        assert [row["batch"] for row in rows] == [10] * 5 + [8]
    assert all(row["two_runs"] for row in rows if part == "exact")
    assert all(row["left_out"] == "needs CUDA" for row in rows if part == "fused_norms")


@pytest.mark.slow
@pytest.mark.parametrize("part", COMPILED)
def test_gpu_compiled_parts(part: str, tmp_path: Path) -> None:
    (row,) = told(part, tmp_path)
    assert row["row"] == COMPILED[part]


@pytest.mark.slow
def test_gpu_three_runs_of_train(tmp_path: Path) -> None:
    (row,) = told("runs", tmp_path)
    assert row["two_runs"]
    assert row["stopped_and_whole"]
    assert row["stops"] == 2


@pytest.mark.parametrize("part", ["ours", "bare"])
def test_gpu_end_to_end(part: str, photo_folder: Path, tmp_path: Path) -> None:
    (row,) = told(part, tmp_path, "--images", str(photo_folder / "train"))
    assert row["images_per_second"] > 0


STAND_IN = """
import json, pathlib, sys, timm

pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(sys.argv[1:]))
timm.create_model(sys.argv[sys.argv.index("--model") + 1], num_classes=2)
print("Train: 0 [   3/4 (100%)]  Time: 0.9s,    9.00/s  (0.900s,    9.00/s)  Data: 0.8 (0.800)")
print("Train: 1 [   3/4 (100%)]  Time: 0.5s,   20.00/s  (0.400s,   25.00/s)  Data: 0.2 (0.100)")
"""


def test_gpu_gives_timm_the_same_work(photo_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(STAND_IN)
    photos = str(photo_folder / "train")
    (row,) = told("timm", tmp_path, "--images", photos, "--timm", str(script))
    assert (row["images_per_second"], row["data_wait_share"]) == (25, 0.25)
    given = json.loads(script.with_suffix(".json").read_text())
    told_timm = dict(pairwise(given))
    assert told_timm["--model"] == "mobilenext_100"
    assert (told_timm["--img-size"], told_timm["-b"], told_timm["--num-classes"]) == (
        "32", "10", "2"
    )  # fmt: skip
    assert (told_timm["--epochs"], told_timm["--device"]) == ("2", "cpu")


@pytest.mark.slow
@pytest.mark.skipif("TIMM_TRAIN_PY" not in os.environ, reason="needs timm's train.py")
def test_gpu_timm(photo_folder: Path, tmp_path: Path) -> None:
    photos, script = str(photo_folder / "train"), os.environ["TIMM_TRAIN_PY"]
    (row,) = told("timm", tmp_path, "--images", photos, "--timm", script)
    assert row["images_per_second"] > 0


def test_gpu_gates(gpu: ModuleType) -> None:
    rows = [
        {"row": "waits for the device", "count": 2, "lines": ["device.py:1"]},
        {"row": "ours now", "batch": 256, "ms": 42.5, "images_per_second": 6023.5, "kernels": 1000},
        {"row": "ours now", "batch": 64, "ms": 13.0, "kernels": 990},
        {"row": "bare in a CUDA graph", "batch": 256, "ms": 1.0},
        {"row": "bare in a CUDA graph", "batch": 64, "ms": 10.0},
        {"row": "end to end, ours", "images_per_second": 5200.0, "data_wait_share": 0.02},
        {"row": "end to end, timm", "images_per_second": 4000.0, "data_wait_share": 0.3},
        {"row": "equal bits, train.py", "two_runs": False},
    ]
    assert [gate.line(rows) for gate in gpu.GATES] == [
        "gate: waits in a step 0 (measured 2): missed",
        "gate: kernels a step <= 1,000 (measured 1,000): met",
        "gate: data wait < 2 % (measured 2 %): missed",
        "gate: ours over timm >= 1.3 (measured 1.3): met",
        "gate: images/s at batch 256, eager >= 6,500 (measured 6,024): missed",
        "gate: 64 images, graph over eager >= 1.2 (measured 1.3): met",
        "gate: 8 images, graph over eager >= 4: not measured",
        "gate: two runs of a bare loop, equal bits yes: not measured",
        "gate: two runs of train.py, equal bits yes (measured no): missed",
    ]
    assert all(gate.line([]).endswith(": not measured") for gate in gpu.GATES)
    (fewer,) = (gate for gate in gpu.GATES if gate.name == "waits in a step")
    assert fewer.line([{"row": "waits for the device", "count": 0}]).endswith("(measured 0): met")


def test_gpu_gates_ask_for_rows_that_there_are(gpu: ModuleType) -> None:
    """A row that gets another name would leave its gate unmeasured for good."""
    source = (REPO / "benchmarks" / "gpu.py").read_text()
    parts = source[source.index("# ---- parts ----") :]
    figures = [figure for gate in gpu.GATES for figure in (gate.figure, gate.over) if figure]
    for figure in figures:
        stem = figure.row.removesuffix("runtime=exact")
        assert f'"{stem}' in parts, figure


def test_gpu_all_parts(tmp_path: Path, gpu: ModuleType) -> None:
    out = tmp_path / "out"
    done = run_command("benchmarks/gpu.py", "--only", "syncs,ours,precision", "--device", "cpu",
                       "--batch", 2, "--size", 32, "--out", out, "--seconds", 48, *SMALL,
                       cwd=tmp_path, env={"STEPS": "1", "PYTHONPATH": str(REPO)})  # fmt: skip
    assert "left out: ours (no data)" in done.stdout
    assert "left out: precision (" in done.stdout
    assert "syncs: " in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("gate: ") == len(gpu.GATES)
    found = json.loads((out / "gpu.json").read_text())
    assert [row["row"] for row in found["rows"]] == ["waits for the device"]
    assert {gate["met"] for gate in found["gates"]} == {None}
    assert (out / "syncs.log").exists()


def test_gpu_parts_end_with_what_they_started(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "part.py"
    script.write_text(
        "import subprocess\nprint('@{}', flush=True)\nsubprocess.run(['sleep', '500'])\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.told("any", 5, tmp_path) == ("@{}\n", None)  # its output is open until all are gone


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
@pytest.mark.parametrize(
    ("script", "pair"), [("memory", "kept over as glibc has it"), ("norms", "native over torch")]
)
def test_runs_in_turns(script: str, pair: str) -> None:
    command = [sys.executable, str(REPO / f"benchmarks/{script}.py"), "--rounds", "1",
               "width=0.35", "data.image_size=32", "data.source.train_images=64"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert f"{pair}, median:" in done.stdout, done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_operators_are_those_that_costs_are_estimated_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CLASSIFIERS", ("mobilenext", "mobilenetv2"))
    monkeypatch.setattr(operators, "CELLS", ())
    monkeypatch.setattr(operators, "SPACES", ("darts_sandglass",))
    monkeypatch.setattr(operators, "DETECTORS", ("mobilenext",))
    first, *others = operators.counts()
    factors = [
        (round(launched / first[1], 2), round(activations / first[2], 2))
        for _, launched, activations in others
    ]
    (_, mobilenetv2), (search, _), (detector,) = (
        next(one.costs for one in experiments() if one.name == name)
        for name in ("widths", "search", "detection")
    )
    assert factors[0][0] == mobilenetv2.operators
    assert factors[1][0] == search.operators
    assert factors[2] == (detector.operators, detector.activations)
