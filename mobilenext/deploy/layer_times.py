"""How long each layer of a network takes."""

import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mobilenext.deploy.formats import MODULES
from mobilenext.deploy.graph import FromPixels
from mobilenext.deploy.int8.graphs import NETWORK

RUNS, WARMUP = 20, 3


class LayerTime(NamedTuple):
    """A layer's time in a run, in milliseconds."""

    name: str
    """Of its module, or of the runtime's operator."""
    kind: str
    ms: float


def eager_layers(network: FromPixels, pixels: torch.Tensor) -> list[LayerTime]:
    """Median times of the modules that compute, in eager mode, in the order of the network.

    What blocks do themselves, their shortcuts for instance, is theirs: `(itself)`.

    Args:
        network: On the device of the pixels; waiting for a GPU between layers makes times longer.
        pixels: uint8 (N, 3, H, W).
    """
    watch = _Stopwatch(pixels.device)
    kinds: dict[str, str] = {}
    handles = []
    for name, module in network.network.named_modules():
        if name and not isinstance(module, nn.Sequential | nn.Identity):
            inner = any(True for _ in module.children())
            kinds[name] = type(module).__name__ + (" (itself)" if inner else "")
            handles.append(module.register_forward_pre_hook(watch.begin))
            handles.append(module.register_forward_hook(watch.ending(name)))
    with torch.inference_mode():
        for _ in range(WARMUP + RUNS):
            network(pixels)
    for handle in handles:
        handle.remove()
    return [
        LayerTime(name, kinds[name], statistics.median(values[WARMUP:]))
        for name, values in watch.taken.items()
    ]


class _Stopwatch:
    """Times of modules that may be within each other; each has its own without those inside."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.taken: dict[str, list[float]] = defaultdict(list)
        """Milliseconds of each run, by name."""
        self.running: list[list[float]] = []
        """Of the modules that have begun: when, and the time of those inside."""

    def begin(self, _module: nn.Module, _inputs: object) -> None:
        self._wait()
        self.running.append([time.perf_counter(), 0.0])

    def ending(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def end(_module: nn.Module, _inputs: object, _output: object) -> None:
            self._wait()
            started, inside = self.running.pop()
            whole = time.perf_counter() - started
            self.taken[name].append(1e3 * (whole - inside))
            if self.running:
                self.running[-1][1] += whole

        return end

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def onnxruntime_layers(file: Path, pixels: np.ndarray, threads: int) -> list[LayerTime]:
    """Median times of ONNX Runtime's operators, by its own profile, after its fusions.

    Args:
        file: The network.
        pixels: uint8 (N, 3, H, W).
        threads: Of one run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_profiling = True
    options.profile_file_prefix = str(file.with_suffix(""))
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    for _ in range(WARMUP + RUNS):
        session.run(None, {"pixels": pixels})
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text(encoding="utf-8"))
    profile.unlink()
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            taken[name.removesuffix("_kernel_time"), event["args"]["op_name"]].append(
                event["dur"] / 1e3
            )
    modules = _modules(file)
    return [
        LayerTime(
            modules.get(name.removesuffix("_nchwc"), name), kind,
            statistics.median(values[WARMUP:] or values),
        )
        for (name, kind), values in taken.items()
    ]  # fmt: skip


def _modules(file: Path) -> dict[str, str]:
    """The module that an operator comes from, by its name and by that of what it makes.

    ONNX Runtime calls a convolution that was fused with a clip by the name of the clip's output.
    """
    import onnx

    made: dict[str, str] = {}
    for node in onnx.load(file).graph.node:
        entries = {entry.key: entry.value for entry in node.metadata_props}
        scopes = re.findall(r"'([^']*)'", entries.get(MODULES, ""))
        module = scopes[-2] if len(scopes) > 1 else ""
        if node.op_type in ("Clip", "Relu") and node.input[0] in made:
            module = made[node.input[0]]
        for name in (node.name, *node.output):
            made[name] = module.removeprefix(f"{NETWORK}.") or name
    return made
