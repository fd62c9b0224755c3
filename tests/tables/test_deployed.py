"""Tables of 8 bits and of latency, from results that are made up."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenext.errors import InputError
from mobilenext.jobs.report import ReportConfig, report
from mobilenext.jobs.tables import tables
from mobilenext.runtime.distributed import Process
from mobilenext.tables.deployed import (
    latency_tables,
    published_latency,
    published_quantization,
    quantization_tables,
)
from mobilenext.tables.results import other_results, read_results
from tests.composed import composed

CPU = Process(torch.device("cpu"))


def row(drop: float, top1: float, weights: str = "per_tensor") -> dict[str, Any]:
    return {
        "weights": weights, "grid": "affine", "observer": "minmax", "equalized": False,
        "bias_corrected": False, "finetune_steps": 0, "keep_float": [], "top1": top1,
        "drop": drop, "drop_std_error": 0.4, "agreement": 95.0, "sqnr_db": 15.0,
        "layers": [{"name": "features.1.conv.0", "sqnr_db": 20.0, "weight_sqnr_db": 40.0},
                   {"name": "features.2.conv.0", "sqnr_db": 14.0, "weight_sqnr_db": 38.0}],
    }  # fmt: skip


def quantized(model: str, drop: float, seed: int = 0) -> dict[str, Any]:
    return {
        "kind": "quantized", "model": model, "width": 0.5, "identity": 1.0, "trained_seed": seed,
        "data": "imagenette", "image_size": 96, "files": [],
        "float": {"top1": 80.0 + seed, "loss": 1.0, "count": 3925},
        "calibration": {"images": 256}, "rows": [row(drop, 80.0 + seed - drop)],
    }  # fmt: skip


def timed() -> dict[str, Any]:
    def one(label: str, ratio: list[float] | None, **more: Any) -> dict[str, Any]:
        low, middle, high = ratio or (1, 1, 1)
        return {
            "engine": "onnxruntime", "engine_version": "1.32.0", "label": label, "image_size": 224,
            "ms": {"min": 9.0, "q1": 10.0, "median": 11.0, "q3": 12.0, "p90": 13.0},
            "ratio": ratio and {"q1": low, "median": middle, "q3": high}, "baseline": "whole",
            "resolved": None if ratio is None else not low <= 1 <= high, "busy_share": 0.9,
            "peak_bytes": 50_000_000, "is_bound": False, **more,
        }  # fmt: skip

    return {
        "kind": "latency", "version": 1, "device": "Some <CPU>", "threads": 1, "batch": 1,
        "rounds": 50, "ratios_of": "processor time",
        "instructions": {"vector": "AVX2", "int8": "none"},
        "rows": [one("whole", None), one("half", [0.97, 0.99, 1.02]),
                 one("none", [0.90, 0.95, 0.97], is_bound=True)],
    }  # fmt: skip


def test_seeds_stand_in_one_row_and_families_are_compared() -> None:
    """By hand: drops of 3 and 5 are 4 ± 1.41, of 1 and 1 they are 1 ± 0; 3 points less."""
    (table,) = quantization_tables(
        [quantized("mobilenetv2", 3.0), quantized("mobilenetv2", 5.0, 1),
         quantized("mobilenext", 1.0), quantized("mobilenext", 1.0, 1)]
    )  # fmt: skip
    found = {cells[0]: cells for cells in table.rows}
    assert found["MobileNetV2 0.5"][2:6] == ("2", "80.50", "76.50", "4.00 ± 1.41")
    assert found["MobileNeXt 0.5"][5] == "1.00 ± 0.00"
    assert found["MobileNeXt keeps more, 0.5"][5] == "+3.00"
    assert "protocol is not known" in " ".join(table.footnotes)


def test_one_seed_has_the_error_of_its_answers() -> None:
    (table,) = quantization_tables([quantized("mobilenext", -0.5)])
    assert table.rows[0][5] == "−0.50 ± 0.40"


def test_data_sets_have_tables_of_their_own() -> None:
    other = {**quantized("mobilenext", 1.0), "data": "imagenet"}
    names = [table.name for table in quantization_tables([quantized("mobilenext", 1.0), other])]
    assert len(set(names)) == 2


def test_latency_says_what_is_not_resolved() -> None:
    (table,) = latency_tables([timed()])
    cells = {one[0]: one for one in table.rows}
    assert cells["whole"][4] == "baseline"
    assert cells["half"][4:6] == ("0.990, not resolved", "0.970–1.020")
    assert cells["none"][4] == "0.950"
    assert "AVX2" in table.title
    assert any("most that an identity tensor" in note for note in table.footnotes)


def test_published_numbers_have_their_tags() -> None:
    for table in (published_quantization(), published_latency()):
        cells = [cell for one in table.rows for cell in one[1:] if cell]
        assert cells
        assert all(re.search(r"\[\w+\]$", cell) for cell in cells)
    assert "Pixel 4" in published_latency().title


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, values in (
        ("a", quantized("mobilenetv2", 3.0)), ("b", quantized("mobilenext", 1.0)), ("c", timed()),
    ):  # fmt: skip
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(values))
    return tmp_path / "runs"


def test_the_jobs_find_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tables(composed(f"runs=[{folder}]", job="tables"), CPU)["tables"]
    assert "int8_imagenette_96_256" in found
    assert "8 bits after training: imagenette" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    page = folder.parent / "page.html"
    report(ReportConfig([str(folder)], str(page)), CPU)
    text = page.read_text()
    assert "2 networks at 8 bits, 1 measurement of latency" in capsys.readouterr().out
    assert "Some &lt;CPU&gt;" in text
    assert "Some <CPU>" not in text
    assert "features.2.conv.0" in text
    assert 'id="int8"' in text
    assert 'id="latency"' in text


def test_results_of_training_are_told_apart(folder: Path) -> None:
    assert read_results([folder], or_others=True) == []
    assert len(other_results([folder], "quantized")) == 2
    with pytest.raises(InputError, match=r"found no result\.json of a finished training run"):
        read_results([folder])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "quantized", "model": "x"}, "not the result of kind quantized: it lacks data"),
        ({"kind": "dance"}, "a result of kind dance: expected training, evaluation"),
        ([1], "expected a run's result, an object, got list"),
    ],
)
def test_what_is_no_result(tmp_path: Path, values: Any, message: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        read_results([tmp_path], or_others=True)
