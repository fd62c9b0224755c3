"""What 8 bits cost the same network on the same photographs, by ours and by others' ways.

    python benchmarks/quantize.py [--data FOLDER] [--network mobilenet_v2|efficientnet_lite0]
                                  [--images 334] [--calibration 32] [--runtimes] [--only NAME ...]

Peers: onnxruntime's `quantize_static` with its defaults, executorch's `XNNPACKQuantizer` as its
tutorial has it, and NNCF's `quantize_pt2e` (where it is installed). All see the same calibration
photographs. "reference" is float arithmetic between rounded values (onnxruntime: without its
optimisations), "runtime" the integers of ONNX Runtime or ExecuTorch on this processor. Target: ours
loses least.

Data: see `real_networks.py`. One photograph of 334 is 0.3 points; agreement and SQNR tell more.
"""

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from real_networks import (
    MEAN,
    STD,
    efficientnet_lite0,
    missing,
    mobilenet_v2,
    photographs,
)
from torch import Tensor, nn

from mobilenext.deploy.formats import FORMATS, load, write_as_it_is
from mobilenext.deploy.graph import FromPixels, prepared
from mobilenext.deploy.int8.graphs import drop_unused, exported
from mobilenext.deploy.int8.quantization import quantize_network
from mobilenext.deploy.int8.scheme import Scheme
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError
from mobilenext.metrics.agreement import Agreement
from mobilenext.runtime.instructions import instructions

Answer = Callable[[Tensor], Tensor]
OURS = {
    "ours, per channel": Scheme(),
    "ours, per channel, min-max": Scheme(observer="minmax"),
    "ours, per channel, biases corrected": Scheme(correct_bias=True),
    "ours, per tensor affine, min-max": Scheme("per_tensor", "affine", "minmax"),
    "ours, per tensor affine, min-max, biases corrected": Scheme(
        "per_tensor", "affine", "minmax", correct_bias=True
    ),
    "ours, per tensor affine, min-max, equalised, biases corrected": Scheme(
        "per_tensor", "affine", "minmax", equalize=True, correct_bias=True
    ),
}


def by_file(module: nn.Module, form: str, pixels: Tensor) -> tuple[Answer, int]:
    """A module run from a file of a runtime, and the file's size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FORMATS[form].file)
        write_as_it_is(FORMATS[form], module, pixels.numpy(), path)
        runner = load(path, 1)
        return lambda batch: torch.from_numpy(runner(batch.numpy())), path.stat().st_size


def tutorial(network: nn.Module, calibration: list[Tensor]) -> nn.Module:
    """ExecuTorch's tutorial for XNNPACK: its quantizer alone, on the network and not its input."""
    with quietly():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        ready = prepare_pt2e(exported(copy.deepcopy(network), calibration[0]), quantizer)
        with torch.no_grad():
            for batch in calibration:
                ready(batch)
        converted = convert_pt2e(ready)
    drop_unused(converted)
    return converted


def nncf_peer(network: nn.Module, calibration: list[Tensor]) -> nn.Module:
    """NNCF with the same quantizer, and its fast bias correction."""
    with quietly():
        import nncf  # pyright: ignore[reportMissingImports]
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from nncf.experimental.torch.fx import (  # pyright: ignore[reportMissingImports]
            quantize_pt2e,
        )

        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        return quantize_pt2e(
            exported(copy.deepcopy(network), calibration[0]), quantizer,
            nncf.Dataset(calibration), subset_size=len(calibration), fast_bias_correction=True,
        )  # fmt: skip


def onnxruntime_peer(network: nn.Module, calibration: list[Tensor], optimised: bool) -> Answer:
    """ONNX Runtime's static quantisation with its defaults, of the float file."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, quietly():
        plain, ready, found = (f"{folder}/{name}.onnx" for name in ("plain", "ready", "found"))
        write_as_it_is(FORMATS["onnx"], network, calibration[0].numpy(), Path(plain))
        quant_pre_process(plain, ready)
        quantize_static(ready, found, Reader())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(found, options, ["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"pixels": batch.numpy()})[0])


Found = Iterator[tuple[str, Answer]]
"""Arithmetic, and answers by it."""


def tutorials(network: nn.Module, calibration: list[Tensor], runtimes: bool) -> Found:
    """By the tutorial of executorch."""
    module = tutorial(network, calibration)
    yield "reference", module
    if runtimes:
        yield "ExecuTorch", by_file(module, "executorch", calibration[0])[0]


def onnxruntimes(network: nn.Module, calibration: list[Tensor], runtimes: bool) -> Found:
    """By the defaults of onnxruntime."""
    yield "reference", onnxruntime_peer(network, calibration, optimised=False)
    if runtimes:
        yield "ONNX Runtime", onnxruntime_peer(network, calibration, optimised=True)


def nncfs(network: nn.Module, calibration: list[Tensor], _runtimes: bool) -> Found:
    """By NNCF, if it is installed."""
    try:
        yield "reference", nncf_peer(network, calibration)
    except ModuleNotFoundError as error:
        print(f"NNCF: not installed ({error.name}): pip install nncf")


PEERS = {
    "executorch's tutorial": tutorials,
    "onnxruntime's quantize_static": onnxruntimes,
    "NNCF's quantize_pt2e": nncfs,
}


def ways(
    network: nn.Module, calibration: list[Tensor], wanted: list[str], runtimes: bool
) -> Iterator[tuple[str, str, Answer]]:
    """Name, arithmetic and answers of each way to 8 bits."""

    def is_wanted(name: str) -> bool:
        return not wanted or any(part in name for part in wanted)

    for name, scheme in OURS.items():
        if is_wanted(name):
            reference = quantize_network(network, calibration, scheme).reference
            yield name, "reference", reference
            if runtimes and name == "ours, per channel":
                yield name, "ExecuTorch", by_file(reference, "executorch", calibration[0])[0]
                yield name, "ONNX Runtime", by_file(reference, "onnx", calibration[0])[0]
    for name, peer in PEERS.items():
        if is_wanted(name):
            yield from ((name, *found) for found in peer(network, calibration, runtimes))


@torch.no_grad()
def answers(found: Answer, pixels: Tensor) -> Tensor:
    """Logits of all photographs."""
    return torch.cat([found(part).float() for part in pixels.split(16)])


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("MOBILENEXT_DATA", "../shared/data")
    )
    parser.add_argument("--network", default="mobilenet_v2",
                        choices=("mobilenet_v2", "efficientnet_lite0"))  # fmt: skip
    parser.add_argument("--images", type=int, default=334)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--runtimes", action="store_true", help="also integers (minutes)")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    given = parser.parse_args()
    if missing(given.data):
        raise InputError(f"no {' and no '.join(missing(given.data))} in {given.data}")
    is_v2 = given.network == "mobilenet_v2"
    bare = mobilenet_v2(given.data) if is_v2 else efficientnet_lite0()
    pixels, labels = photographs(given.data, 1, "bilinear" if is_v2 else "bicubic")
    labels = labels + 1 if is_v2 else labels
    calibration = list(pixels[: given.calibration].split(8))
    pixels, labels = pixels[: given.images], labels[: given.images]
    network = FromPixels(prepared(bare, 224, folded=True, masked=False), MEAN, STD).eval()
    expected = answers(network, pixels)
    top1 = 100 * float((expected.argmax(1) == labels).double().mean())
    print(f"{given.network}: float top-1 {top1:.2f} % of {len(labels)} photographs, "
          f"{given.calibration} of them calibrate; {instructions()}")  # fmt: skip
    print(f"{'':62s} {'arithmetic':13s} {'top-1':>6s} {'drop':>6s} {'agree':>6s} {'SQNR':>5s}")
    drops: dict[str, float] = {}
    for name, arithmetic, found in ways(network, calibration, given.only, given.runtimes):
        agreement = Agreement(torch.device("cpu"))
        agreement.add(expected, answers(found, pixels), labels)
        row = agreement.result()
        print(
            f"{name:62s} {arithmetic:13s} {row['top1']:6.2f} {row['drop']:6.2f} "
            f"{row['agreement']:6.2f} {row['sqnr_db']:5.1f}",
            flush=True,
        )
        if arithmetic == "reference":
            drops[name] = 100 - row["agreement"]
    peers = {name: lost for name, lost in drops.items() if not name.startswith("ours")}
    if peers and "ours, per channel" in drops:
        least = min(peers, key=lambda name: peers[name])
        ratio = peers[least] / max(drops["ours, per channel"], 1e-9)
        print(f"answers changed, reference arithmetic: {least} over ours: {ratio:.2f}")


if __name__ == "__main__":
    main()
