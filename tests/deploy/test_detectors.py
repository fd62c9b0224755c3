"""Detectors in other runtimes and at 8 bits: the same scores and boxes, from pixels."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from mobilenext.assembly.detection import described_detector, new_detector, rebuilt_detector
from mobilenext.config.targets import build
from mobilenext.deploy.detector_graph import (
    Counted,
    expected_outputs,
    from_pixels,
    is_detector,
    postprocessing_of,
)
from mobilenext.deploy.find_objects import detections, kept
from mobilenext.deploy.formats import FORMATS, check_answers
from mobilenext.deploy.graph import prepared, relative_difference
from mobilenext.deploy.int8.graphs import module_of
from mobilenext.deploy.int8.quantization import Quantized, quantize_network
from mobilenext.deploy.preprocessing import Postprocessing, Preprocessing, read_preprocessing
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError
from mobilenext.jobs.evaluate import evaluate
from mobilenext.jobs.export import ExportConfig, export
from mobilenext.jobs.latency import LatencyConfig, latency
from mobilenext.jobs.quantize import QuantizeConfig, quantize
from mobilenext.runtime.distributed import Process
from mobilenext.training.weights_files import load_weights, save_weights
from tests.composed import composed, placed
from tests.models.nontrivial import with_weights
from tests.on_disk_boxes import voc_tree

CPU = Process(torch.device("cpu"))
SIZE = 64
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
SMALL = ("width=0.35", "+model.network.depth_mult=0.25", f"data.image_size={SIZE}", "data=voc",
         "data.source.train=[2007:trainval]", "data.source.val=[2007:test]",
         "data.source.classes=[red,green,blue]", "data.global_batch_size=6",
         f"data.mean={list(MEAN)}", f"data.std={list(STD)}")  # fmt: skip
NAMED = f"ssdlite_authors on mobilenext 0.35 ({SIZE} px)"


@pytest.fixture(scope="session")
def tree(once) -> Path:
    return once("voc_tree", voc_tree)


@pytest.fixture(scope="module")
def weights(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector in which each weight matters, as a run leaves it."""
    config = composed(*SMALL, f"data.root={tree}", job="detect")
    images = build(config.data.source)
    network, _ = new_detector(config, len(images.classes), CPU)
    folder = tmp_path_factory.mktemp("detector")
    described = described_detector(config, images)
    save_weights(folder / "model.safetensors", with_weights(network, 1.6), described)
    return folder


@pytest.fixture(scope="module")
def detector(weights: Path) -> Any:
    tensors, described = load_weights(weights / "model.safetensors")
    return rebuilt_detector(described["model"], tensors, weights, SIZE)


@pytest.fixture(scope="module")
def pixels(tree: Path) -> np.ndarray:
    """uint8 (8, 3, SIZE, SIZE)."""
    paths = sorted((tree / "VOC2007/JPEGImages").iterdir())[:8]
    pictures = [np.asarray(PIL.Image.open(path).resize((SIZE, SIZE))) for path in paths]
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def normalised(pixels: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


# ---- the graph ----


@pytest.mark.parametrize("folded", [False, True])
def test_the_graph_decodes_as_the_detector_does(
    detector: Any, pixels: np.ndarray, folded: bool
) -> None:
    ready = prepared(detector, SIZE, folded=folded, masked=True)
    left = [one for one in ready.modules() if one.training]
    assert all(isinstance(one, nn.Identity) for one in left), "in place of norms"
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in ready.modules())
    assert (norms == 0) == folded
    whole = from_pixels(ready, MEAN, STD)
    with torch.no_grad():
        scores, boxes = (one.numpy() for one in whole(torch.from_numpy(pixels)))
    wanted = expected_outputs(detector, normalised(pixels))
    assert scores.shape == (8, len(detector.anchors), 4)
    assert boxes.shape == (8, len(detector.anchors), 4)
    assert wanted[0].std() > 0.05
    assert 0 < (wanted[1] == 0).mean() < 0.3, "some boxes are cut at the edge"
    np.testing.assert_allclose(scores, wanted[0], atol=2e-5)
    np.testing.assert_allclose(boxes, wanted[1], atol=2e-5)


def test_counting_sees_the_detectors_own_outputs(detector: Any, pixels: np.ndarray) -> None:
    counted = Counted(detector, from_pixels(detector, MEAN, STD)).eval()
    with torch.no_grad():
        found = counted.detections(*counted(torch.from_numpy(pixels).float()))
        wanted = detector.detections(*detector(normalised(pixels)))
    for one, other in zip(found, wanted, strict=True):
        assert len(other["scores"]) > 3
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=1e-4)
        assert torch.equal(one["labels"], other["labels"])


def test_a_classifier_stays_one() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert not is_detector(classifier)
    assert postprocessing_of(classifier) is None
    assert from_pixels(classifier, MEAN, STD).outputs == ("logits",)
    images = torch.zeros(2, 3, 8, 8)
    assert isinstance(expected_outputs(classifier, images), np.ndarray)


def test_differences_are_of_the_worst_output() -> None:
    one = torch.tensor([1.0, -4.0])
    assert relative_difference(one, one) == 0
    assert relative_difference((one, 2 * one), (one, one)) == pytest.approx(1)
    assert np.isnan(relative_difference((one, one), (one * torch.nan, one)))


def test_a_file_that_gives_other_boxes_is_refused() -> None:
    scores, boxes = np.random.default_rng(0).random((2, 8, 5, 4)).astype(np.float32)
    pixels = np.zeros((8, 3, 2, 2), np.uint8)

    def runner(by: float):
        places = iter([slice(0, 1), slice(1, 3), slice(3, 8)])

        def run(_: np.ndarray) -> tuple[np.ndarray, ...]:
            place = next(places)
            return scores[place], boxes[place] + np.float32(by)

        return run

    form = FORMATS["onnx"]
    assert check_answers(form, runner(1e-5), (scores, boxes), pixels) < 1e-4
    for by in (0.01, float("nan")):
        with pytest.raises(InputError, match=r"other answers than the network \(outputs differ by"):
            check_answers(form, runner(by), (scores, boxes), pixels)


# ---- the program that goes along ----


@pytest.mark.parametrize("most", [100, 7])
def test_numpy_chooses_what_the_detector_does(detector: Any, most: int) -> None:
    """Scores and boxes at random, so that many overlap."""
    draws = torch.Generator().manual_seed(0)
    count = len(detector.anchors)
    logits = 3 * torch.randn(4, count, 4, generator=draws)
    codes = 2 * torch.randn(4, count, 4, generator=draws)
    detector = _with(detector, detections_per_img=most, topk_candidates=100, score_thresh=0.2)
    how = vars(postprocessing_of(detector))
    boxes = detector.decoded(codes) / SIZE
    scores = logits.softmax(2)
    for number, wanted in enumerate(detector.detections(logits, codes)):
        found = detections(scores[number].numpy(), boxes[number].numpy(), how)
        assert 5 < len(found[0]) <= most
        np.testing.assert_allclose(found[0], wanted["boxes"] / SIZE, atol=1e-6)
        np.testing.assert_allclose(found[1], wanted["scores"], atol=1e-6)
        assert found[2].tolist() == wanted["labels"].tolist()


def _with(detector: Any, **values: Any) -> Any:

    changed = copy.deepcopy(detector).eval()
    vars(changed).update(values)
    return changed


def test_nothing_is_found() -> None:
    how = {"candidates": 5, "score_threshold": 0.5, "nms_threshold": 0.5, "most": 5}
    boxes, scores, labels = detections(np.full((9, 3), 0.1), np.zeros((9, 4)), how)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
    assert kept(np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]), 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "name",
    ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "executorch"))],
)
def test_an_exported_folder_finds_objects_alone(
    weights: Path, detector: Any, tree: Path, tmp_path: Path, name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    form = FORMATS[name]
    with quietly():
        for package in form.packages:
            pytest.importorskip(package)
    output = tmp_path / "exported"
    output.mkdir()
    (output / "classify.py").touch()  # of an earlier export
    done = export(ExportConfig(str(weights), str(output), format=name), CPU)
    assert done["files"] == [form.file, "preprocessing.json", "find_objects.py"]
    assert {path.name for path in output.iterdir()} == set(done["files"])
    assert done["difference"] <= 2e-5
    said = capsys.readouterr().out
    assert "ssdlite_authors on mobilenext 0.35, voc, not evaluated" in said
    assert "scores and boxes within" in said
    assert "non-maximum suppression is outside: find_objects.py has it" in said
    picture = tree / "VOC2007/JPEGImages/test_0.jpg"
    line = [sys.executable, "-c", "import sys; sys.path[:0] = sys.argv[1:2]; del sys.argv[1]; "
            "import find_objects; find_objects.main(); print('torch' in sys.modules)"]  # fmt: skip
    more = [str(output / form.file)] if name == "onnx" else []  # else it is found beside
    *lines, drawn, torch_too = subprocess.run(
        [*line, str(output), *more, str(picture), "--least", "0"], cwd=tmp_path,
        capture_output=True, text=True, check=True, env=_quiet(),
    ).stdout.splitlines()  # fmt: skip
    assert torch_too == str(name != "onnx"), "onnxruntime, numpy and Pillow are enough"
    with PIL.Image.open(picture) as image, PIL.Image.open(tmp_path / "test_0-boxes.png") as result:
        assert result.size == image.size
        square = np.array(image.resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR))
        assert np.abs(np.asarray(result, int) - np.asarray(image)).max() > 100
        scale = torch.tensor([image.width, image.height] * 2) / SIZE
    with torch.no_grad():
        outputs = detector(normalised(square.transpose(2, 0, 1)[None]))
        (wanted,) = detector.detections(*outputs)
    assert drawn == f"test_0-boxes.png: {picture}, {len(lines)} found"
    assert len(lines) == len(wanted["scores"]) > 3
    words = [text.removeprefix(f"{picture}: ").split() for text in lines]
    assert [row[0] for row in words] == [("red", "green", "blue")[i] for i in wanted["labels"]]
    found = np.array([row[1:] for row in words], float)
    np.testing.assert_allclose(found[:, 0], wanted["scores"], atol=1e-3)
    # The program prints tenths of a pixel.
    np.testing.assert_allclose(found[:, 1:], wanted["boxes"] * scale, atol=0.05 + 1e-3 * SIZE)


def _quiet() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


def test_the_hub_takes_classifiers_only(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"format=hub: expected a classifier, got .*format=torch"):
        export(ExportConfig(str(weights), str(tmp_path / "x")), CPU)
    assert not (tmp_path / "x").exists()


HOW = Preprocessing(
    SIZE, SIZE, "bilinear", MEAN, STD, ("red", "green"), Postprocessing(0.01, 0.45, 400, 100)
)  # fmt: skip


def test_preprocessing_says_what_is_inside(tmp_path: Path) -> None:
    said = json.loads(HOW.text())
    assert said["task"] == "detection"
    assert said["postprocessing"]["nms"] == "outside"
    assert said["postprocessing"]["decoding"] == "inside"
    assert "short_side" not in said, "classify.py of earlier versions stops"
    assert "squeezed" in said["steps"]
    assert "postprocessing" not in json.loads(replace(HOW, postprocessing=None).text())
    (tmp_path / "preprocessing.json").write_text(HOW.text())
    assert read_preprocessing(tmp_path, detectors=True) == HOW
    with pytest.raises(InputError, match=r"expected a classifier, got a detector.*find_objects"):
        read_preprocessing(tmp_path)
    (tmp_path / "preprocessing.json").write_text(HOW.text().replace('"most"', '"least"'))
    with pytest.raises(InputError, match=r"expected what scripts/export\.py writes"):
        read_preprocessing(tmp_path, detectors=True)


# ---- 8 bits ----


def quantized(weights: Path, output: Path, *more: str) -> dict[str, Any]:
    given = (f"checkpoint={weights}", f"output={output}", "calibration_images=12",
             "observer=minmax", *more)  # fmt: skip
    config = composed(*given, job="quantize")
    assert isinstance(config, QuantizeConfig)
    return quantize(config, CPU)


@pytest.fixture
def at_8_bits(monkeypatch: pytest.MonkeyPatch) -> list[Quantized]:
    """What the job makes."""
    with quietly():
        pytest.importorskip("mobilenext.deploy.int8.quantizers")
    made: list[Quantized] = []

    def noted(*arguments: Any, **more: Any) -> Quantized:
        made.append(quantize_network(*arguments, **more))
        return made[-1]

    monkeypatch.setattr("mobilenext.jobs.quantize.quantize_network", noted)
    return made


def test_8_bits_are_judged_by_average_precision(
    weights: Path, tmp_path: Path, at_8_bits: list[Quantized], capsys: pytest.CaptureFixture[str]
) -> None:
    result = quantized(weights, tmp_path / "out", "formats=[]")
    said = capsys.readouterr().out
    assert (result["kind"], result["task"]) == ("quantized", "detection")
    assert (result["protocol"], result["measure"]) == ("voc", "ap_voc_11point")
    assert result["detector"] == "ssdlite_authors"
    assert result["float"]["count"] == 6
    own = evaluate(placed(composed(f"checkpoint={weights}", job="evaluate"), tmp_path / "run"), CPU)
    assert result["float"]["ap_voc_11point"] == pytest.approx(own["ap_voc_11point"], abs=1e-3)
    (row,) = result["rows"]
    assert row["drop"] == result["float"]["ap_voc_11point"] - row["ap_voc_11point"]
    assert not {"top1", "agreement", "sqnr_db", "loss"} & row.keys()
    names = {layer["name"] for layer in row["layers"]}
    assert "head.classification_head.module_list.5" in names
    assert "backbone.body.features.0.0" in names
    assert "float32: AP (VOC, 11 points)" in said
    assert "softmax and decoding stay in float" in said
    (made,) = at_8_bits
    nodes = list(made.reference.graph.nodes)
    first = next(n for n, node in enumerate(nodes) if node.target is torch.ops.aten.exp.default)
    behind = [str(node.target) for node in nodes[first:]]
    assert not any("quantize" in target for target in behind), behind
    concatenations = [node for node in nodes if node.target is torch.ops.aten.cat.default]
    assert [module_of(node) is None for node in concatenations] == [False, False, True]


@pytest.mark.slow
def test_files_at_8_bits_find_what_the_reference_does(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quantized(weights, tmp_path / "out", "formats=[executorch,onnx,torch]")
    by_name = {one["file"]: one for one in result["files"]}
    assert by_name["model.pte"]["bytes"] < 0.5 * result["float_bytes"]
    (row,) = result["rows"]
    for name, points in (("model.pt2", 1e-3), ("model.pte", 5)):
        file = by_name[name]
        assert file["drop"] == result["float"]["ap_voc_11point"] - file["ap_voc_11point"]
        assert abs(file["drop_from_reference"]) < points
        assert not {"top1", "agreement_with_reference", "sqnr_db", "loss"} & file.keys()
    assert by_name["model.pt2"]["ap_coco"] == pytest.approx(row["ap_coco"], abs=1e-3)
    assert "points below the reference" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json", "preprocessing.json", "find_objects.py", *by_name,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["finetune_steps=5"], "finetune_steps=5: expected 0 with this detector"),
        (["data.eval_size=96"], "data.eval_size=96: expected 64 with this detector"),
        (["data.eval_crop_ratio=0.8"], r"data.eval_crop_ratio=0\.8: expected 1\.0 with"),
        (["data=digits"], "data=digits: expected images with boxes"),
        (["data.root=/nowhere"], "/nowhere"),
        (["keep_float=[hed]"], r"keep_float=hed: expected a module of the network.*head"),
    ],
)
def test_what_8_bits_refuse(weights: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantized(weights, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


# ---- latency ----


def timed(output: Path, *more: str) -> dict[str, Any]:
    given = ("rounds=2", "warmup=1", "memory=false", f"output_dir={output}", *more)
    config = composed(*given, job="latency")
    assert isinstance(config, LatencyConfig)
    return latency(config, CPU)


def test_a_run_is_timed(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = timed(tmp_path, f"checkpoints=[{weights}]", "baseline=none", "profile=true")
    (row,) = result["rows"]
    assert row["label"] == NAMED
    assert (row["task"], row["detector"], row["nms"]) == (
        "detection", "ssdlite_authors", "not timed",
    )  # fmt: skip
    assert row["image_size"] == SIZE
    assert row["ms"]["min"] > 0
    layers = {one["name"] for one in result["layers"]["eager"]}
    assert {"backbone.body.features.0.0", "head.regression_head.module_list.5"} <= layers
    said = capsys.readouterr().out
    assert NAMED in said
    assert "detectors: from pixels to scores and boxes" in said
    assert "non-maximum suppression is not timed" in said


def test_random_weights_are_timed(tmp_path: Path, weights: Path) -> None:
    model = ("model=mobilenext", "detector=ssdlite_authors", "width=[0.35]", f"image_size={SIZE}",
             "+model.network.depth_mult=0.25", "num_classes=3")  # fmt: skip
    (row,) = timed(tmp_path / "runs", *model, "baseline=none")["rows"]
    assert row["label"] == NAMED
    assert row["madds"] > 0
    with pytest.raises(InputError, match=r"page: expected classifiers, got a detector"):
        timed(tmp_path, f"checkpoints=[{weights}]", f"page={tmp_path / 'page'}")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_a_detector_in_every_engine(weights: Path, tmp_path: Path) -> None:
    """And its file beside them."""
    with quietly():
        for package in ("onnxruntime", "executorch"):
            pytest.importorskip(package)
    export(ExportConfig(str(weights), str(tmp_path / "out"), format="onnx"), CPU)
    result = timed(
        tmp_path / "runs", f"checkpoints=[{weights}]", "memory=true", "profile=true",
        f"files=[{tmp_path / 'out/model.onnx'}]", "engine=[eager,compile,onnxruntime,executorch]",
    )  # fmt: skip
    engines = [row["engine"] for row in result["rows"]]
    assert engines == ["eager", "compile", "onnxruntime", "onnxruntime", "executorch"]
    assert all(row["task"] == "detection" for row in result["rows"])
    assert result["layers"].keys() == {"eager", "onnxruntime"}
