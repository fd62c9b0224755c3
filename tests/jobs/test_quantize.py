"""A run at 8 bits: what the result says, which images calibrate, and what is refused."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mobilenext.deploy.formats import FORMATS
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError
from mobilenext.jobs.quantize import QuantizeConfig, quantize
from mobilenext.runtime.distributed import Process
from mobilenext.seeding import generator
from tests.composed import composed

CPU = Process(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def quantizers() -> None:
    """Not imported before a test needs it: ExecuTorch would take each worker three seconds."""
    with quietly():
        pytest.importorskip(
            "mobilenext.deploy.int8.quantizers", reason="needs pip install 'mobilenext[executorch]'"
        )


def quantized(checkpoint: Path, output: Path, *more: str) -> dict[str, Any]:
    config = composed(f"checkpoint={checkpoint}", f"output={output}", *more, job="quantize")
    assert isinstance(config, QuantizeConfig)
    return quantize(config, CPU)


@pytest.fixture(scope="module")
def result(learned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both kinds of weights; what the file says is what the job returns."""
    output = tmp_path_factory.mktemp("quantized")
    found = quantized(
        learned, output, "weights=[per_channel,per_tensor]", "calibration_images=40", "formats=[]",
        "observer=minmax", "seed=3",
    )  # fmt: skip
    assert sorted(path.name for path in output.iterdir()) == ["result.json"]
    assert json.loads((output / "result.json").read_text()) == json.loads(json.dumps(found))
    return found


def test_the_float_network_is_the_runs(result: dict[str, Any], learned: Path) -> None:
    run = json.loads((learned / "result.json").read_text())
    assert result["kind"] == "quantized"
    assert result["float"]["count"] == run["count"]
    assert result["float"]["top1"] == pytest.approx(run["best_top1"], abs=1e-6)
    for key in ("model", "width", "identity", "num_params", "madds", "data"):
        assert result[key] == run[key], key
    assert result["trained_seed"] == run["seed"]


def test_digits_lose_next_to_nothing(result: dict[str, Any]) -> None:
    channel, tensor = result["rows"]
    assert (channel["weights"], tensor["weights"]) == ("per_channel", "per_tensor")
    assert channel["agreement"] >= 97
    assert channel["sqnr_db"] >= 20
    assert channel["drop"] == pytest.approx(result["float"]["top1"] - channel["top1"])
    assert tensor["agreement"] >= 90
    assert 0 <= channel["drop_std_error"] < 2
    names = {layer["name"] for layer in channel["layers"]}
    assert {"features.0.0", "classifier.1"} <= names or len(names) > 20


def test_calibration_is_of_the_training_split_by_seed(result: dict[str, Any]) -> None:
    calibration = result["calibration"]
    order = torch.randperm(calibration["of"], generator=generator("calibration", 3))[:40]
    places = np.sort(order.numpy())
    assert calibration["split"] == "train"
    assert calibration["images"] == 40
    assert (
        calibration["sha256_of_indices"]
        == hashlib.sha256(places.astype(np.int64).tobytes()).hexdigest()
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["keep_float=[features.1.cnov]"], r"keep_float=features\.1\.cnov: .*did you mean"),
        (["calibration_images=1"], r"calibration_images=1: expected at least 2 images"),
        (["weights=[per_row]"], r"weights=\[per_row\]: expected per_channel, per_tensor"),
        (["formats=[tflite]"], r"formats=\[tflite\]: expected some of \[onnx,executorch,torch"),
        (["grid=affine"], r"grid=affine: ExecuTorch's 8-bit kernels have no zero points"),
        (["equalize=true"], r"equalize=true: ExecuTorch's .* no ceiling of its own"),
        (["data=synthetic"], r"knows 10 classes .*: expected the same"),
    ],
)
def test_what_is_refused(learned: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantized(learned, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.pte", "model.onnx", "model.pt2"])
def test_an_exported_network_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match="got a network that was exported"):
        quantized(tmp_path / name, tmp_path / "out")


def test_a_folder_with_other_files_is_left_alone(learned: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        quantized(learned, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_weights_that_are_not_finite(learned: Path, tmp_path: Path) -> None:
    with safetensors.safe_open(learned / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["classifier.1.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata)
    with pytest.raises(InputError, match=r"finite weights, 1 tensors .* classifier\.1\.weight"):
        quantized(tmp_path / "model.safetensors", tmp_path / "out", "formats=[]")


def test_unreadable_images_do_not_calibrate(learned: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in range(10):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    with pytest.raises(InputError, match="0 of 10 can be read"):
        quantized(learned, tmp_path / "out", "data=imagefolder", f"data.root={tmp_path / 'data'}",
                  "formats=[]")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = dataclasses.replace(FORMATS["executorch"], packages=("no_such_package",))
    monkeypatch.setitem(FORMATS, "executorch", lacking)
    with pytest.raises(InputError, match=r"pip install 'mobilenext\[executorch\]'"):
        quantized(learned, tmp_path / "out")


@pytest.mark.slow
def test_files_answer_as_the_reference(learned: Path, tmp_path: Path) -> None:
    """One delegate, a quarter of the bytes; ONNX Runtime's without a processor's saturation."""
    found = quantized(learned, tmp_path / "out", "formats=[executorch,onnx,torch]",
                      "calibration_images=100")  # fmt: skip
    by_name = {one["file"]: one for one in found["files"]}
    assert set(by_name) == {"model.pte", "model.onnx", "model.pt2"}
    assert by_name["model.pt2"]["agreement_with_reference"] == 100
    assert by_name["model.pte"]["agreement_with_reference"] >= 97
    if found["instructions"]["int8"] not in ("none", None):
        assert by_name["model.onnx"]["agreement_with_reference"] >= 97
    assert by_name["model.pte"]["bytes"] < 0.4 * found["float_bytes"]
    assert {"preprocessing.json", "classify.py"} <= {p.name for p in (tmp_path / "out").iterdir()}
    shutil.rmtree(tmp_path / "out")
