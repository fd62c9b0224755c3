"""Detectors in tables and on the page: which stand beside the paper, which by themselves."""

import copy
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from mobilenext.errors import InputError
from mobilenext.tables.deployed import quantization_tables
from mobilenext.tables.detected import detection_tables, detector_views, published_detection
from mobilenext.tables.render import to_markdown
from mobilenext.tables.results import DETECTION, other_results

RESULT: dict[str, Any] = {
    "kind": "detection", "model": "mobilenext", "width": 1.0, "identity": 1.0,
    "detector": "ssdlite_authors", "taps": "authors", "data": "voc", "split": None,
    "protocol": "voc", "image_size": 320, "epochs": 348, "seed": 0, "num_params": 3_470_548,
    "madds": 708_726_528, "count": 4_952, "unreadable_images": {"train": {}, "val": {}},
    "init_from": {"path": "/w/a.pt", "sha256": "b" * 64}, "ap_voc_11point": 70.0,
    "ap_voc_area": 71.0, "ap_coco": 40.0,
    "objects": {"train": {"images": 16_551}, "val": {"images": 4_952}},
    "config": {"data": {"name": "voc", "source": {"_target_": "voc", "root": "/a"}, "root": "/a",
                        "workers": 2},
               "runtime": {"precision": "bf16", "threads": 1}, "seed": 0, "name": "x",
               "freeze_backbone": False},
}  # fmt: skip


def result(**changes: Any) -> dict[str, Any]:
    values = copy.deepcopy(RESULT)
    inner = changes.pop("config", {})
    values["config"] |= inner
    return values | changes


def cells(one: dict[str, Any], name: str) -> str:
    rows = published_detection([one]).rows
    return next(row[-1] for row in rows if row[0].startswith(name))


def test_only_the_whole_of_voc_stands_beside_the_paper() -> None:
    whole = result(split="VOC07+12")
    assert cells(whole, "SSDLite320 with MobileNeXt") == "70.00"
    assert cells(whole, "SSDLite320 with MobileNetV2") == "not measured"
    for other in (result(), result(split="VOC07"), result(split="VOC07+12", image_size=300),
                  result(split="VOC07+12", width=0.5), result(split="VOC07+12", epochs=120),
                  result(split="VOC07+12", init_from=None), result(split="VOC07+12", count=4_951),
                  result(split="VOC07+12", detector="ssdlite_torchvision")):  # fmt: skip
        assert cells(other, "SSDLite320 with MobileNeXt") == "not measured"
    thin = result(split="VOC07+12", model="mobilenetv2")
    wide = result(split="VOC07+12", model="mobilenetv2", taps="expansion", ap_voc_11point=72.5)
    assert cells(thin, "SSDLite320 with MobileNetV2, expanded") == "not measured"
    assert cells(wide, "SSDLite320 with MobileNetV2, expanded") == "72.50"


def test_the_papers_numbers_carry_their_tags() -> None:
    text = to_markdown(published_detection([]))
    assert "72.6 [S2]" in text
    assert "not measured" in text


def test_seeds_stand_together_and_recipes_apart() -> None:
    same = [result(seed=seed, ap_voc_11point=60.0 + 2 * seed, init_from=None) for seed in (0, 1)]
    same[1]["config"] |= {"seed": 1, "runtime": {"precision": "bf16", "threads": 8}}
    frozen = result(
        config={"freeze_backbone": True}, init_from={"path": "/w/best.pt", "sha256": "a" * 64}
    )
    (table,) = detection_tables([*same, frozen])
    assert [row[2] for row in table.rows] == ["1", "2"]
    assert [row[1] for row in table.rows] == ["best (aaaaaaaa), frozen", "random weights"]
    assert table.rows[1][3] == "61.00 ± 1.41"
    assert any("nothing published compares" in note for note in table.footnotes)
    assert len(detection_tables([*same, result(epochs=20, config={"epochs": 20})])) == 2


def test_results_are_found_and_checked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/result.json").write_text(json.dumps(result()))
    assert len(other_results([tmp_path], DETECTION)) == 1
    lacking = result()
    del lacking["ap_coco"]
    (tmp_path / "a/result.json").write_text(json.dumps(lacking))
    with pytest.raises(InputError, match="it lacks ap_coco"):
        other_results([tmp_path], DETECTION)


def test_detectors_at_8_bits_have_tables_of_their_own() -> None:
    row = {"weights": "per_channel", "grid": "symmetric", "observer": "minmax", "layers": [],
           "ap_voc_11point": 69.0, "drop": 1.0}  # fmt: skip
    quantized = {
        "kind": "quantized", "task": "detection", "model": "mobilenext", "width": 0.5,
        "identity": 1.0, "detector": "ssdlite_authors", "data": "mine", "image_size": 160,
        "float": {"ap_voc_11point": 70.0, "count": 120}, "measure": "ap_voc_11point",
        "calibration": {"images": 64}, "rows": [row],
        "files": [{"file": "model.pte", "ap_voc_11point": 68.5, "drop": 1.5}],
    }  # fmt: skip
    (table,) = quantization_tables([quantized])
    assert table.columns[2:4] == ("float AP (VOC, 11 points)", "8-bit AP (VOC, 11 points)")
    assert [row[1] for row in table.rows] == [
        "weights per channel symmetric, minmax", "file model.pte",
    ]  # fmt: skip
    assert [row[-1] for row in table.rows] == ["1.00", "1.50"]


def test_views_show_what_lies_beside(tmp_path: Path) -> None:
    curves = {"classes": {"<b>": {"ap_voc_11point": None, "recall": [], "precision": []},
                          "dog": {"ap_voc_11point": 50.0, "recall": [0.5, 1.0],
                                  "precision": [1.0, 0.5]}}}  # fmt: skip
    (tmp_path / "precision_recall.json").write_text(json.dumps(curves))
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "detections.jpg")
    (view,) = detector_views({tmp_path / "result.json": result()}, lambda folder: f"{folder}/")
    assert "dog 50.0 %" in view.curves
    assert "&lt;b&gt; no object" in view.curves
    assert view.curves.count("<polyline") == 2
    assert view.picture.startswith("data:image/jpeg;base64,")
    (tmp_path / "precision_recall.json").write_text("{}")
    (tmp_path / "detections.jpg").unlink()
    (view,) = detector_views({tmp_path / "result.json": result()}, lambda folder: f"{folder}/")
    assert (view.curves, view.picture) == ("", "")
