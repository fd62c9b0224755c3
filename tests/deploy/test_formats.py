"""Networks as files of other runtimes: the same answers, in any batch, from pixels."""

import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobilenext.data import digits
from mobilenext.data.transforms import EvalTransform
from mobilenext.deploy import formats
from mobilenext.deploy.formats import FORMATS, Format, check_answers, load, write
from mobilenext.deploy.graph import FromPixels, fold_norms, prepared
from mobilenext.deploy.preprocessing import Preprocessing, read_preprocessing
from mobilenext.errors import InputError
from mobilenext.jobs.export import FILE_NAMES, ExportConfig, export
from mobilenext.models import EfficientNet, MobileNetV2, MobileNeXt, mnext_s
from mobilenext.models.sandglass import WideBlock, mask_shortcuts
from mobilenext.runtime.distributed import Process
from tests.models.nontrivial import with_weights

CPU = Process(torch.device("cpu"))
SIZE = 32
HOW = Preprocessing(
    SIZE, 37, "bilinear", (0.3, 0.4, 0.5), (0.2, 0.3, 0.4), tuple("abcdefghij")
)  # fmt: skip


@pytest.fixture(scope="module")
def half() -> nn.Module:
    """An identity tensor multiplier of 1/2, weights in channels_last, as training leaves them."""
    network = with_weights(
        MobileNeXt(0.35, 0.5, num_classes=10, depth_mult=0.5, strides=(1, 1, 2, 2, 2))
    )
    return network.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Scanned digits, uint8 (8, 3, 32, 32)."""
    pictures = np.stack([np.asarray(digits(SIZE).val[place][0]) for place in range(8)])
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


def logits_of(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    images = torch.from_numpy(pixels).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (HOW.mean, HOW.std))
    with torch.no_grad():
        return network((images - mean) / std).numpy()


def needed(form: Format) -> None:
    for package in form.packages:
        pytest.importorskip(package)


Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(
    half: nn.Module, pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """The file of a format, by its name; written once."""

    @functools.cache
    def written(name: str) -> Path:
        form = FORMATS[name]
        needed(form)
        path = tmp_path_factory.mktemp("written") / form.file
        write(form, half, HOW, pixels, path)
        return path

    return written


@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("executorch", marks=pytest.mark.slow),
    ],
)
def test_a_file_gives_the_networks_answers(
    half: nn.Module, pixels: np.ndarray, written: Written, name: str
) -> None:
    form = FORMATS[name]
    runner = load(written(name), 1)
    expected = logits_of(half, pixels)
    assert check_answers(form, runner, expected, pixels) <= 1e-5
    threads = torch.get_num_threads()
    assert load(written(name), threads + 1)(pixels[:1]).shape == (1, 10)
    assert torch.get_num_threads() == threads, "it is the whole process's"
    with pytest.raises(InputError, match=f"format={name}: .* gives other answers"):
        check_answers(form, runner, expected[::-1], pixels)


def test_torch_export_changes_no_bit(half: nn.Module, pixels: np.ndarray, written: Written) -> None:
    found = load(written("torch"), 1)(pixels)
    plain = FromPixels(prepared(half, SIZE, folded=False, masked=False), HOW.mean, HOW.std)
    with torch.no_grad():
        assert np.array_equal(found, plain(torch.from_numpy(pixels)).numpy())


def test_the_onnx_graph_has_nothing_to_spare(half: nn.Module, written: Written) -> None:
    """Shapes are no arithmetic, norms are folded, the partial shortcut is a masked addition."""
    path = written("onnx")
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(path).graph
    nodes = Counter(node.op_type for node in graph.node)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in half.modules())
    assert nodes["Conv"] == convolutions
    allowed = {"Conv", "Clip", "Add", "Mul", "Sub", "Cast", "ReduceMean", "Reshape", "Gemm"}
    assert nodes.keys() <= allowed, nodes
    (batch, *rest) = graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param, "the batch has no fixed size"
    assert [one.dim_value for one in rest] == [3, SIZE, SIZE]


@pytest.mark.slow
def test_executorch_runs_all_but_the_cast_in_one_delegate(written: Written) -> None:
    path = written("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    (plan,) = program.execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"]
    rest = {operator.name for operator in plan.operators}
    assert rest <= {"aten::_to_copy", "dim_order_ops::_to_dim_order_copy"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: MobileNeXt(0.35, 1 / 3, num_classes=10),
        lambda: MobileNetV2(0.35, num_classes=10),
        lambda: EfficientNet(num_classes=10),
        lambda: mnext_s(num_classes=10),
    ],
    ids=["MobileNeXt", "MobileNetV2", "EfficientNet", "mnext_s"],
)
def test_folding_norms_keeps_the_logits(make) -> None:
    network = with_weights(make()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert fold_norms(network, images) == norms > 20
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_a_norm_whose_convolution_serves_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), *norms()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.conv(x)
            return self.first(made) + self.second(made)

    def norms() -> tuple[nn.Module, nn.Module]:
        return nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3).eval()

    network = Twice().eval()
    fold_norms(network, torch.randn(2, 3, 4, 4))
    assert isinstance(network.first, nn.BatchNorm2d)
    assert isinstance(network.second, nn.BatchNorm2d)


def test_masked_shortcuts_are_the_same_network(half: nn.Module, pixels: np.ndarray) -> None:
    masked = mask_shortcuts(prepared(half, SIZE, folded=False, masked=False))
    assert masked.state_dict().keys() == half.state_dict().keys()
    count = sum(getattr(m, "shortcut_mask", None) is not None for m in masked.modules())
    wide = [module for module in half.modules() if isinstance(module, WideBlock)]
    assert count == sum(0 < block.identity_channels < block.out_channels for block in wide)
    assert count >= 1
    plain = prepared(half, SIZE, folded=False, masked=False)
    assert np.array_equal(logits_of(masked, pixels), logits_of(plain, pixels))


def test_preprocessing_makes_the_pixels_of_evaluation(photo_folder: Path, tmp_path: Path) -> None:
    """classify.py is a program of its own, which repeats what evaluation does."""
    from PIL import Image

    from mobilenext.deploy import classify

    how = json.loads(HOW.text())
    for interpolation in ("bilinear", "bicubic"):
        how["interpolation"] = interpolation
        for path in sorted(photo_folder.glob("val/*/*.jpg")):
            for size in ((90, 61), (50, 203), (37, 37)):
                with Image.open(path) as image:
                    image.resize(size).save(tmp_path / "odd.png")
                with Image.open(tmp_path / "odd.png") as image:
                    expected = EvalTransform(SIZE, HOW.short_side, interpolation)(image).numpy()
                found = classify.pixels(tmp_path / "odd.png", how)
                distance = np.abs(found[0].transpose(1, 2, 0).astype(int) - expected).max()
                # Evaluation resizes no more of a long, thin image than it needs.
                assert distance <= (2 if max(size) > 4 * SIZE else 0)


@pytest.mark.parametrize("name", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_export_leaves_a_folder_that_classifies_alone(
    learned: Path, tmp_path: Path, name: str
) -> None:
    needed(FORMATS[name])
    output = tmp_path / "exported"
    output.mkdir()
    (output / "model.pte").touch()  # of an earlier export: another format leaves nothing of it
    done = export(ExportConfig(str(learned), str(output), format=name), CPU)
    assert done["files"] == [FORMATS[name].file, "preprocessing.json", "classify.py"]
    assert {path.name for path in output.iterdir()} == set(done["files"])
    assert done["difference"] <= 1e-5
    how = read_preprocessing(output)
    assert how.classes == tuple("0123456789")
    data = digits(how.image_size)
    for place in range(3):
        data.val[place][0].save(tmp_path / f"{place}.png")
    line = [sys.executable, "-c", "import sys; sys.path[:0] = sys.argv[1:2]; import classify; "
            "del sys.argv[1]; classify.main(); print('torch' in sys.modules)"]  # fmt: skip
    pictures = [str(tmp_path / f"{place}.png") for place in range(3)]
    said = subprocess.run(
        [*line, str(output), *pictures], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[-1] == str(name != "onnx"), "onnxruntime, numpy and Pillow are enough"
    for place, text in enumerate(said[:3]):
        assert text.startswith(f"{pictures[place]}: ")
        assert text.count("%") == 5
    right = sum(
        text.split(": ")[1].startswith(f"{data.val[place][1]} ")
        for place, text in enumerate(said[:3])
    )
    assert right >= 2


def test_nothing_is_written_if_answers_differ(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mobilenext.jobs.export.load",
        lambda path, threads: lambda pixels: np.ones((len(pixels), 10)),
    )
    with pytest.raises(InputError, match=r"format=torch: torch\.export gives other answers"):
        export(ExportConfig(str(learned), str(tmp_path / "x"), format="torch"), CPU)
    assert not (tmp_path / "x").exists()


def test_a_missing_runtime_is_one_line(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, package in (("onnx", "onnxscript"), ("executorch", "executorch")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"format={name} needs .*pip install .*\[{name}\]"):
            export(ExportConfig(str(learned), str(tmp_path / name), format=name), CPU)
        assert not (tmp_path / name).exists()


def test_what_can_not_be_exported_is_said(
    half: nn.Module, pixels: np.ndarray, tmp_path: Path
) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(InputError, match="format=torch: this network can't be exported: "):
        write(FORMATS["torch"], Branching(), HOW, pixels, tmp_path / "x.pt2")


def test_bad_options(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format=tflite: expected one of hub, onnx, executorch, t"):
        ExportConfig(str(learned), "x", format="tflite")
    with pytest.raises(InputError, match="push=a/b: expected null with format=onnx"):
        ExportConfig(str(learned), "x", format="onnx", push="a/b")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match=r"expected a new or empty folder.*got mine\.txt"):
        export(ExportConfig(str(learned), str(tmp_path), format="torch"), CPU)
    assert set(FILE_NAMES) >= {"model.onnx", "model.pte", "model.pt2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no preprocessing.json"),
        ("{", "expected what scripts/export.py writes"),
        ('{"version": 9}', "version 9, expected 1"),
        (HOW.text().replace("bilinear", "nearest"), "bilinear or bicubic"),
    ],
)
def test_damaged_preprocessing(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "preprocessing.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_preprocessing(tmp_path)
    (tmp_path / "preprocessing.json").write_text(HOW.text())
    assert read_preprocessing(tmp_path) == HOW


def test_a_file_that_no_runtime_takes(tmp_path: Path) -> None:
    needed(FORMATS["onnx"])
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime does not take it"):
        load(tmp_path / "model.onnx", 1)
    assert formats.BY_SUFFIX.keys() == {".onnx", ".pte", ".pt2"}
