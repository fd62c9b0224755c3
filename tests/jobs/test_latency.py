"""Latency of networks: what stands in the result, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenext.deploy import peak_memory
from mobilenext.errors import InputError
from mobilenext.jobs.latency import LatencyConfig, _check_engines, latency
from mobilenext.runtime.distributed import Process
from tests.composed import composed

CPU = Process(torch.device("cpu"))
SMALL = ("width=[0.35]", "image_size=32", "num_classes=10", "rounds=4", "warmup=1", "memory=false")


def timed(output: Path, *more: str) -> dict[str, Any]:
    config = composed(*SMALL, f"output_dir={output}", *more, job="latency")
    assert isinstance(config, LatencyConfig)
    return latency(config, CPU)


def test_the_result_says_how_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    threads = torch.get_num_threads()
    found = timed(tmp_path, "identity=[1,1/2,1/6]", "profile=true")
    (file,) = tmp_path.rglob("result.json")
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    labels = [row["label"] for row in found["rows"]]
    assert labels == [
        "mobilenext 0.35", "mobilenext 0.35, no shortcuts", "mobilenext 0.35, identity 1/2",
        "mobilenext 0.35, identity 1/6",
    ]  # fmt: skip
    assert [row["identity"] for row in found["rows"]] == [1, 1, 0.5, pytest.approx(1 / 6)]
    assert [row["is_bound"] for row in found["rows"]] == [False, True, False, False]
    for row in found["rows"][1:]:
        assert row["baseline"] == "mobilenext 0.35"
        assert row["ratio"]["q1"] <= row["ratio"]["median"] <= row["ratio"]["q3"]
        assert row["ms"]["min"] <= row["ms"]["median"] <= row["ms"]["p90"]
        assert row["resolved"] == (not row["ratio"]["q1"] <= 1 <= row["ratio"]["q3"])
    assert found["rows"][0]["ratio"] is None
    assert (found["kind"], found["threads"], found["ratios_of"]) == (
        "latency", 1, "processor time",
    )  # fmt: skip
    assert found["layers"]["eager"]
    if allowed is not None:
        assert found["cores"] == sorted(allowed)[-1:]
        assert os.sched_getaffinity(0) == allowed
    assert torch.get_num_threads() == threads
    told = capsys.readouterr().out
    assert "no identity tensor multiplier can gain more" in told
    assert "by layer" in told


@pytest.mark.slow
def test_a_run_beside_an_exported_network(learned: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from mobilenext.jobs.export import export

    export(
        composed(
            f"checkpoint={learned}", f"output={tmp_path / 'out'}", "format=onnx", job="export"
        ),
        CPU,
    )
    found = timed(tmp_path / "runs", f"checkpoints=[{learned}]",
                  f"files=[{tmp_path / 'out' / 'model.onnx'}]")  # fmt: skip
    run, file = found["rows"]
    assert (run["engine"], file["engine"]) == ("eager", "onnxruntime")
    assert run["image_size"] == file["image_size"]
    assert file["baseline"] == run["label"]


@pytest.mark.slow
def test_a_page(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = timed(tmp_path, f"page={tmp_path / 'page'}")
    assert {"index.html", "networks.json"} <= set(found["files"])
    (network,) = json.loads((tmp_path / "page" / "networks.json").read_text())["networks"]
    assert network["label"] == "mobilenext 0.35"


def test_what_a_page_has_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "engine": "onnxruntime-web", "engine_version": "1.30.0", "provider": "wasm",
        "label": "mobilenext 0.35", "model": "mobilenext", "width": 0.35, "identity": 1,
        "num_params": 5, "madds": 7, "image_size": 32, "rounds": 30, "repeats": 1,
        "ms": {"min": 4.0, "q1": 5.0, "median": 6.0, "q3": 7.0, "p90": 8.0}, "ratio": None,
        "resolved": None,
    }  # fmt: skip
    other = {**row, "label": "another", "ratio": {"q1": 0.9, "median": 1.0, "q3": 1.2},
             "resolved": False}  # fmt: skip
    (tmp_path / "copied.json").write_text(
        json.dumps(
            {
                "kind": "latency", "version": 1, "device": "My phone", "user_agent": "Browser/1",
                "threads": 1, "batch": 1, "rounds": 30, "baseline": "mobilenext 0.35",
                "rows": [row, other], "clock_resolution_ms": 0.1,
            }
        )
    )  # fmt: skip
    result = timed(tmp_path / "runs", f"results={tmp_path / 'copied.json'}")
    assert result["device"] == "My phone"
    (file,) = (tmp_path / "runs").rglob("result.json")
    assert json.loads(file.read_text())["rows"][1]["ratio"]["median"] == 1.0
    assert "not resolved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], r"mobilenext 0\.35 alone has nothing to be compared with.*baseline=none"),
        (["identity=[1,1/2]", "baseline=another"], r"baseline=another: expected one of mobilenext"),
        (["identity=[1,1]"], "two candidates are called mobilenext 0.35"),
        (["engine=[tensorrt]"], r"engine=\[tensorrt\]: expected some of eager,compile"),
        (["identity=[2]"], "identity=2.0: expected an identity tensor multiplier"),
        (["width=[35]"], r"width=35.0: expected a width multiplier in \(0, 10\]"),
        (["rounds=1"], "rounds=1: expected at least 2"),
        (["files=[network.pt]"], r"files=network\.pt: expected \.onnx or \.pte"),
        (["files=[nowhere.onnx]"], r"files=nowhere\.onnx: .*found none there"),
        (["onnxruntime_web=x"], "expected page=FOLDER with it"),
        (["results=nowhere.json"], r"results=nowhere\.json: could not read it"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        timed(tmp_path / "runs", *more)
    assert not (tmp_path / "runs").exists()


def test_one_alone(tmp_path: Path) -> None:
    (row,) = timed(tmp_path, "baseline=none")["rows"]
    assert row["ratio"] is None
    assert row["baseline"] is None


@pytest.mark.slow
def test_every_engine(tmp_path: Path) -> None:
    """Ratios within each engine, memory of each candidate."""
    for package in ("onnxruntime", "executorch"):
        pytest.importorskip(package)
    found = timed(tmp_path, "identity=[1,1/2]", "memory=true",
                  "engine=[eager,compile,onnxruntime,executorch]")  # fmt: skip
    assert [row["engine"] for row in found["rows"]] == [
        engine for engine in ("eager", "compile", "onnxruntime", "executorch") for _ in range(2)
    ]
    assert [row["ratio"] is None for row in found["rows"]] == [True, False] * 4
    if peak_memory.STATUS.exists():
        assert all(row["peak_bytes"] > 0 for row in found["rows"])


GPU = Process(torch.device("cuda"))


def test_files_are_not_timed_by_a_gpu_that_does_not_run_them() -> None:
    config = composed("files=[a.onnx]", job="latency")
    with pytest.raises(InputError, match=r"files=a\.onnx runs on the processor: add runtime\.dev"):
        _check_engines(config, GPU)
    with pytest.raises(InputError, match=r"engine=onnxruntime runs on the processor"):
        _check_engines(composed("engine=[onnxruntime]", job="latency"), GPU)
