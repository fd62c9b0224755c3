"""A network as a file of another runtime: written, and loaded again to be run."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilenext.deploy.detector_graph import from_pixels
from mobilenext.deploy.graph import LOGITS, prepared
from mobilenext.deploy.preprocessing import Preprocessing
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError, first_line
from mobilenext.files import printable

MOST_BATCH = 1024
MODULES = "pkg.torch.onnx.name_scopes"
"""Key of an ONNX node's metadata: the modules that it comes from."""

Runner = Callable[[np.ndarray], np.ndarray]
"""Maps pixels, uint8 (N, 3, H, W), to logits, float32 (N, num_classes)."""

OutputsRunner = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""Maps pixels, uint8 (N, 3, H, W), to all that a file gives: a detector's scores and boxes."""


@dataclass(frozen=True)
class Format:
    """A kind of file that a runtime takes.

    Attributes:
        name: On the command line.
        file: The file's name in an exported folder.
        runtime: What runs it, in words.
        packages: Those that it needs beside torch; the extra of its name has them.
        runs_in: The package of its runtime.
        folded: See `graph.prepared`.
        masked: See `graph.prepared`.
        any_batch: Whether a file takes batches of any size; else one image at a time.
        write: Writes a network that takes pixels, given as an example, to a path; the names are
            those of its outputs.
        load: Opens such a file, to be run with a number of threads.
    """

    name: str
    file: str
    runtime: str
    packages: tuple[str, ...]
    runs_in: str
    folded: bool
    masked: bool
    any_batch: bool
    write: Callable[[nn.Module, torch.Tensor, Path, Sequence[str]], None]
    load: Callable[[Path, int], OutputsRunner]


def check_packages(form: Format, what: str) -> None:
    """Raise `InputError` if a package is missing that a format needs.

    Args:
        form: The format.
        what: What needs it, for the message.
    """
    for package in form.packages:
        try:
            with quietly():
                importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{what} needs {error.name}, which is not installed: pip install "
                f"'mobilenext[{form.name}]' (in a checkout pip install -e '.[{form.name}]')"
            ) from error


def _batch() -> Any:
    return ({0: torch.export.Dim("batch", min=1, max=MOST_BATCH)},)


def _write_onnx(
    network: nn.Module, pixels: torch.Tensor, path: Path, outputs: Sequence[str]
) -> None:
    program = torch.onnx.export(
        network, (pixels[:2].clone(),), dynamo=True, dynamic_shapes=_batch(),
        input_names=["pixels"], output_names=list(outputs), verbose=False,
    )  # fmt: skip
    assert program is not None
    for (
        node
    ) in program.model.graph:  # a third of a small network's file, with paths of this machine
        module = node.metadata_props.get(MODULES)
        node.metadata_props.clear()
        if module is not None:
            node.metadata_props[MODULES] = module
    program.save(path)


def _load_onnx(path: Path, threads: int) -> OutputsRunner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # A session that waits awake would take its core from whatever runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda pixels: tuple(session.run(None, {"pixels": pixels}))


def _write_executorch(
    network: nn.Module, pixels: torch.Tensor, path: Path, outputs: Sequence[str]
) -> None:
    del outputs  # they are told apart by their order
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(network, (pixels[:1].clone(),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _load_executorch(path: Path, threads: int) -> OutputsRunner:
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)  # all programs of a process share it
    method = Runtime.get().load_program(path).load_method("forward")
    if method is None:
        raise ValueError("it has no method forward")

    def run(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        # The next image's outputs come to the same memory.
        found = [[one.clone() for one in method.execute([image[None]])] for image in images]
        return tuple(torch.cat(one).numpy() for one in zip(*found, strict=True))

    return run


def _write_torch(
    network: nn.Module, pixels: torch.Tensor, path: Path, outputs: Sequence[str]
) -> None:
    del outputs
    program = torch.export.export(network, (pixels[:2].clone(),), dynamic_shapes=_batch())
    torch.export.save(program, path)


def _load_torch(path: Path, threads: int) -> OutputsRunner:
    network = torch.export.load(path).module()

    def run(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                found = network(torch.from_numpy(np.ascontiguousarray(pixels)))
        finally:
            torch.set_num_threads(before)
        several = (found,) if isinstance(found, torch.Tensor) else found
        return tuple(one.numpy() for one in several)

    return run


FORMATS = {
    form.name: form
    for form in (
        Format(
            "onnx", "model.onnx", "ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"),
            runs_in="onnxruntime", folded=True, masked=True, any_batch=True, write=_write_onnx,
            load=_load_onnx,
        ),
        Format(
            "executorch", "model.pte", "ExecuTorch (XNNPACK)", ("executorch", "torchao"),
            runs_in="executorch", folded=True, masked=False, any_batch=False,
            write=_write_executorch, load=_load_executorch,
        ),
        Format(
            "torch", "model.pt2", "torch.export", (),
            runs_in="torch", folded=False, masked=True, any_batch=True, write=_write_torch,
            load=_load_torch,
        ),
    )
}  # fmt: skip
"""By name."""

BY_SUFFIX = {Path(form.file).suffix: form for form in FORMATS.values()}


def write(
    form: Format, network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray, path: Path
) -> None:
    """Write a network, normalisation inside, as a file of a runtime.

    Args:
        form: The kind of file.
        network: Takes normalised images; on the CPU, in evaluation mode.
        preprocessing: How its pixels are made.
        pixels: At least two images, uint8 (N, 3, H, W).
        path: The file.

    Raises:
        InputError: A package is missing, or the network can't be exported.
    """
    check_packages(form, f"format={form.name}")
    ready = prepared(network, preprocessing.image_size, form.folded, form.masked)
    whole = from_pixels(ready, preprocessing.mean, preprocessing.std)
    write_as_it_is(form, whole, pixels, path, whole.outputs)


def write_as_it_is(
    form: Format,
    whole: nn.Module,
    pixels: np.ndarray,
    path: Path,
    outputs: Sequence[str] = LOGITS,
) -> None:
    """Write what takes pixels as a file of a runtime; see `write`.

    Args:
        form: The kind of file.
        whole: Maps pixels to logits, or a detector to scores and boxes; on the CPU.
        pixels: At least two images, uint8 (N, 3, H, W).
        path: The file.
        outputs: Names of what it gives.

    Raises:
        InputError: It can't be exported.
    """
    try:
        with quietly(), torch.no_grad():
            form.write(whole, torch.from_numpy(pixels), path, outputs)
    except Exception as error:  # exporters raise anything
        raise InputError(
            f"format={form.name}: this network can't be exported: {first_line(error)}"
        ) from error


def load(path: Path, threads: int) -> Runner:
    """Open an exported classifier; see `load_outputs`."""
    run = load_outputs(path, threads)
    return lambda pixels: run(pixels)[0]


def load_outputs(path: Path, threads: int) -> OutputsRunner:
    """Open an exported network.

    Args:
        path: A file with one of the suffixes in `BY_SUFFIX`.
        threads: That one call may use.

    Raises:
        InputError: A package is missing, or the runtime does not take the file.
    """
    form = BY_SUFFIX[path.suffix]
    check_packages(form, printable(path))
    try:
        with quietly():
            return form.load(path, threads)
    except Exception as error:  # runtimes raise anything
        raise InputError(
            f"{printable(path)}: {form.runtime} does not take it: {first_line(error)}"
        ) from error


BATCHES = (1, 2, 5)
"""Sizes of batches that a file is tried with."""
ALIKE = 1e-4
"""Largest difference of logits that rounding may make, of the largest logit; of a detector's scores
and boxes, of the largest, which is about 1."""


def check_answers(
    form: Format,
    runner: Runner | OutputsRunner,
    expected: np.ndarray | tuple[np.ndarray, ...],
    pixels: np.ndarray,
) -> float:
    """Compare a reloaded file's answers with the network's, in batches of `BATCHES`.

    Args:
        form: The kind of file.
        runner: The reloaded file.
        expected: The network's logits, (N, num_classes); or a detector's scores and boxes.
        pixels: Their images, uint8 (N, 3, H, W), N at least the sum of `BATCHES`.

    Returns:
        The largest difference, of the largest value of the same output.

    Raises:
        InputError: Values differ by more than rounding, or a classifier's answer is another one.
    """
    classifies = isinstance(expected, np.ndarray)
    parts, first = [], 0
    for size in BATCHES:
        parts.append(_several(runner(np.ascontiguousarray(pixels[first : first + size]))))
        first += size
    found = [np.concatenate(one) for one in zip(*parts, strict=True)]
    wanted = [one[:first] for one in _several(expected)]
    shares = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, wanted, strict=True)]
    difference = float(np.max(shares))
    others = int((found[0].argmax(1) != wanted[0].argmax(1)).sum()) if classifies else 0
    if not difference <= ALIKE or others:
        what = f"{others} of {first} images; logits differ" if classifies else "outputs differ"
        raise InputError(
            f"format={form.name}: {form.runtime} gives other answers than the network ({what} by "
            f"{difference:.1e} of the largest): nothing was written. This is a fault of the "
            "exporter or of this package: please report it"
        )
    return difference


def _several(outputs: np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return (outputs,) if isinstance(outputs, np.ndarray) else outputs
