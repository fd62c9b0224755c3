"""What runs a network: a callable for each engine, from pixels to logits, or scores and boxes."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mobilenext.deploy.detector_graph import from_pixels
from mobilenext.deploy.formats import FORMATS, load_outputs, write_as_it_is
from mobilenext.deploy.graph import FromPixels, prepared
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError, first_line
from mobilenext.models.sandglass import WideBlock

ENGINES = ("eager", "compile", "onnxruntime", "executorch")
FORMAT_OF = {"onnxruntime": "onnx", "executorch": "executorch"}
"""Engines that run a file, and the format's name."""
SUFFIXES = {Path(FORMATS[name].file).suffix: engine for engine, name in FORMAT_OF.items()}
"""Engines by the suffixes of the files that they run."""
MEAN = STD = (0.5, 0.5, 0.5)
"""Of networks with random weights; any values take the same time."""


def for_engine(
    network: nn.Module, engine: str, image_size: int, device: torch.device
) -> FromPixels:
    """A network, normalisation inside, in the form that is best for an engine.

    Partial shortcuts are slices and a concatenation in eager mode and ExecuTorch, masked additions
    for torch.compile and ONNX Runtime (see `mask_shortcuts`). Batch norms are folded but in eager
    mode, which times the network as it is trained and evaluated.

    Args:
        network: Takes normalised images; on the CPU, in evaluation mode.
        engine: One of `ENGINES`.
        image_size: Height and width of its images, in pixels.
        device: Where eager mode and torch.compile compute.
    """
    if engine == "eager":
        ready = copy.deepcopy(network).eval()
    else:
        masked = engine == "compile" or FORMATS[FORMAT_OF[engine]].masked
        ready = prepared(network, image_size, folded=True, masked=masked)
    whole = from_pixels(ready, MEAN, STD)
    if engine not in FORMAT_OF:
        whole.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return whole


def without_shortcuts(network: nn.Module) -> nn.Module | None:
    """A copy whose wide blocks have no shortcut; None: it has none that could be left out.

    What it saves is the most that any identity tensor multiplier could.
    """
    bare = copy.deepcopy(network)
    blocks = [one for one in bare.modules() if isinstance(one, WideBlock) and one.residual]
    for block in blocks:
        block.residual, block.identity_channels = False, 0
    return bare if blocks else None


def running(
    engine: str, source: FromPixels | Path, pixels: torch.Tensor, threads: int
) -> Callable[[], object]:
    """A function that runs a network once on a batch of pixels.

    Args:
        engine: One of `ENGINES`.
        source: The network of `for_engine`, or the file that the engine runs.
        pixels: uint8 (N, 3, H, W), on the device of eager mode and torch.compile.
        threads: Of engines that run a file; torch's are set for the whole process.

    Raises:
        InputError: A package or a compiler is missing, or the runtime does not take the file.
    """
    if isinstance(source, Path):
        runner, images = load_outputs(source, threads), pixels.cpu().numpy()
        return lambda: runner(images)
    network: Callable[[torch.Tensor], object] = source
    if engine == "compile":
        network = torch.compile(source)

    def run() -> object:
        with torch.inference_mode():
            return network(pixels)

    if engine == "compile":
        try:
            with quietly():
                run()
        except Exception as error:  # compilers raise anything
            raise InputError(
                f"engine=compile: torch.compile failed ({first_line(error)}); on the processor it "
                "needs a C++ compiler (Debian: apt install g++)"
            ) from error
    return run


def write_for(engine: str, network: FromPixels, pixels: np.ndarray, folder: Path) -> Path:
    """Write a network of `for_engine` as the file that its engine runs.

    Args:
        engine: One of `FORMAT_OF`.
        network: On the CPU.
        pixels: At least two images, uint8 (N, 3, H, W).
        folder: For the file.

    Raises:
        InputError: It can't be exported.
    """
    form = FORMATS[FORMAT_OF[engine]]
    path = folder / form.file
    write_as_it_is(form, network, pixels, path, network.outputs)
    return path
