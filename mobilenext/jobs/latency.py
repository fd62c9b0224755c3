"""How long networks take on this machine, in several engines, beside each other."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilenext.assembly.data import evaluation_transform
from mobilenext.assembly.detection import detector_words, rebuilt_either_with_cost
from mobilenext.assembly.trained import complete_data, evaluation_data, is_detector
from mobilenext.config import DetectorConfig, HasRun, ModelConfig, RuntimeConfig, to_yaml
from mobilenext.config.fields import (
    MISSING,
    check,
    check_multipliers,
    machine_only,
    parse_number,
    path_field,
    path_list,
)
from mobilenext.config.targets import build
from mobilenext.data import eval_transform
from mobilenext.deploy.detector_graph import from_pixels, postprocessing_of
from mobilenext.deploy.engines import (
    ENGINES,
    FORMAT_OF,
    MEAN,
    STD,
    SUFFIXES,
    for_engine,
    running,
    without_shortcuts,
    write_for,
)
from mobilenext.deploy.formats import FORMATS, check_packages
from mobilenext.deploy.graph import FromPixels
from mobilenext.deploy.hub.trained import read_trained
from mobilenext.deploy.layer_times import LayerTime, eager_layers, onnxruntime_layers
from mobilenext.deploy.page import PageNetwork, page_names, read_results, write_page
from mobilenext.deploy.peak_memory import peak_memory
from mobilenext.deploy.preprocessing import DETECTION, Preprocessing, read_preprocessing
from mobilenext.deploy.timing import Quartiles, Timing, cuda_clock, measure, processor_clock
from mobilenext.errors import InputError
from mobilenext.files import check_output_folder, printable, read_text
from mobilenext.models.complexity import measure_complexity
from mobilenext.program import fraction
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.instructions import instructions
from mobilenext.runtime.provenance import cpu_name, provenance, version_of
from mobilenext.seeding import host_draws
from mobilenext.training.progress import Progress, say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import weights_path

NONE = "none"
BOUND = "no shortcuts"
MOST_RESULTS = 1 << 24
SLOWEST = 10
"""Layers of a profile that are printed."""


@dataclass
class LatencyConfig(HasRun):
    """Job `latency`."""

    model: ModelConfig = MISSING
    detector: DetectorConfig | None = field(default=None, metadata={"added": True})
    """A detector on the model's feature maps; null: the classifier itself."""
    width: list[str] = field(default_factory=lambda: ["1.0"])
    """Width multipliers."""
    identity: list[str] = field(default_factory=lambda: ["1"])
    """Identity tensor multipliers, also as fractions: 1,1/2,1/3,1/6."""
    strides: list[int] = MISSING
    """Strides of the network's five downsampling layers, the stem first: 1 or 2 each."""
    num_classes: int = 1000
    image_size: int = 224
    """Height and width in pixels; checkpoints and files have their own."""
    checkpoints: list[str] = path_list(runs=True)
    """Runs or their files, instead of `model`."""
    files: list[str] = path_list()
    """Exported networks (.onnx, .pte), beside checkpoints or instead of `model`."""
    engine: list[str] = field(default_factory=lambda: ["eager"])
    """What runs them: eager, compile, onnxruntime, executorch; files have theirs."""
    threads: int = machine_only(1)
    """Threads of one run."""
    batch: int = 1
    """Images of one run."""
    rounds: int = 50
    """Most rounds in which each candidate has a turn."""
    warmup: int = 5
    """Runs of each before."""
    precision: float = 0.02
    """Rounds end early once the quartiles of all ratios are this close."""
    baseline: str | None = None
    """Label of the candidate that all ratios are to; null: the first of each engine, or the first
    where there is one network only; none: no ratios."""
    pin: bool = machine_only(True)
    """Keep the process on as many cores as it has threads."""
    memory: bool = machine_only(True)
    """Measure peak memory, in a process of its own for each candidate (seconds each)."""
    profile: bool = machine_only(False)
    """Also milliseconds by layer, and the time without any shortcut: the most that an identity
    tensor multiplier could gain."""
    page: str | None = machine_only(None, path=True)
    """Folder for a page that classifies and measures on whatever opens it, a phone for instance;
    nothing is measured here."""
    onnxruntime_web: str | None = machine_only(None, path=True)
    """The npm package onnxruntime-web, unpacked, for the page; null: it is loaded from the net."""
    results: str | None = path_field(None)
    """JSON that such a page has copied: it becomes a result of its own; nothing is measured."""
    name: str = "latency"
    output_dir: str = machine_only("runs", path=True)
    runtime: RuntimeConfig = MISSING

    def __post_init__(self) -> None:
        check(bool(self.engine) and set(self.engine) <= set(ENGINES), "engine",
              f"some of {','.join(ENGINES)}", self.engine)  # fmt: skip
        check(bool(self.width), "width", "at least one", self.width)
        check(bool(self.identity), "identity", "at least one", self.identity)
        for width, identity in product(self.width, self.identity):
            check_multipliers(parse_number(width), parse_number(identity))
        for key in ("num_classes", "image_size", "threads", "batch"):
            check(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        check(self.rounds >= 2, "rounds", "at least 2", self.rounds)
        check(self.warmup >= 0, "warmup", "a number of runs from 0 on", self.warmup)
        check(self.precision > 0, "precision", "a share above 0", self.precision)
        if self.onnxruntime_web is not None and self.page is None:
            raise InputError("onnxruntime_web: expected page=FOLDER with it, which it is for")


def latency(config: LatencyConfig, process: Process) -> dict[str, Any]:
    """Time networks in turns and print each one's time and ratio to a baseline.

    Detectors are timed from pixels to scores and boxes; non-maximum suppression is not in it.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        What result.json says; for a page, its `files`.

    Raises:
        InputError: A network can't be had or exported, an optional package is missing, there is
            nothing to compare, or a file can't be written.
    """
    process.require_alone("latency")
    if config.results is not None:
        return _of_a_device(config)
    networks = _networks(config)
    with tempfile.TemporaryDirectory() as folder:
        if config.page is not None:
            return _page(networks, config, Path(folder))
        return _measured(networks, config, process, Path(folder))


@dataclass(frozen=True)
class _Network:
    """Something to time."""

    label: str
    facts: dict[str, Any]
    image_size: int
    module: nn.Module | None
    """Takes normalised images; None: it is a file."""
    file: Path | None = None
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class _Candidate:
    network: _Network
    engine: str
    label: str
    source: FromPixels | Path
    pixels: torch.Tensor
    is_bound: bool = False
    """Whether it only says what shortcuts cost."""


def _networks(config: LatencyConfig) -> list[_Network]:
    found = [_of_checkpoint(Path(path)) for path in config.checkpoints]
    found += [_of_file(Path(path)) for path in config.files]
    if not found:
        found = [
            _of_config(config, parse_number(width), parse_number(identity))
            for width, identity in product(config.width, config.identity)
        ]
    labels = [one.label for one in found]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise InputError(f"two candidates are called {printable(twice[0])}: leave one out")
    return found


def _of_config(config: LatencyConfig, width: float, identity: float) -> _Network:
    """A network with random weights: they take the same time as others."""
    node = {
        name: width if value == config.width else identity if isinstance(value, list)
        and name == "identity_tensor_multiplier" else value
        for name, value in config.model.network.items()
    }  # fmt: skip
    with host_draws("latency", 0):
        network = build(node, num_classes=config.num_classes)
        if config.detector is not None:
            network = build(
                config.detector.network, backbone=network, num_classes=config.num_classes,
                image_size=config.image_size,
            )  # fmt: skip
    assert isinstance(network, nn.Module)
    network.eval()
    cost = measure_complexity(network, config.image_size)
    facts = {"model": config.model.name, "width": width, "identity": identity,
             "num_params": cost.params, "madds": cost.madds}  # fmt: skip
    size = config.image_size
    classes = [f"class {number}" for number in range(config.num_classes)]
    label = _label(config.model.name, width, identity)
    if config.detector is not None:
        facts |= _of_detector(config.detector.name)
        model = {"name": config.model.name, "network": {**node, "width_mult": width},
                 "detector": {"name": config.detector.name}}  # fmt: skip
        label = _detector_label(model, identity, size)
    how = Preprocessing.of(eval_transform(size), MEAN, STD, classes, postprocessing_of(network))
    return _Network(label, facts, size, network, None, how)


def _of_checkpoint(path: Path) -> _Network:
    trained = read_trained(weights_path(path), complete_data)
    size = trained.data.eval_size
    network, cost = rebuilt_either_with_cost(trained.model, trained.tensors, trained.path, size)
    node, name = trained.model["network"], trained.model["name"]
    width, identity = node.get("width_mult", 1.0), node.get("identity_tensor_multiplier", 1.0)
    facts = {"model": name, "width": width, "identity": identity, "num_params": cost.params,
             "madds": cost.madds, "checkpoint": str(trained.path)}  # fmt: skip
    data = evaluation_data(trained.data.plain, {})
    how = Preprocessing.of(
        evaluation_transform(data), data.mean, data.std, trained.classes,
        postprocessing_of(network),
    )  # fmt: skip
    label = f"{_label(name, width, identity)} ({path.name if path.is_dir() else path.parent.name})"
    if is_detector(trained.model):
        facts |= _of_detector(trained.model["detector"].get("name"))
        label = _detector_label(trained.model, identity, size)
    return _Network(label, facts, size, network, None, how)


def _of_file(path: Path) -> _Network:
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"files={printable(path)}: expected {' or '.join(SUFFIXES)}, which engines run"
        )
    if not path.is_file():
        raise InputError(f"files={printable(path)}: expected an exported network, found none there")
    how = read_preprocessing(path.parent, detectors=True)
    facts = {"model": printable(path.stem), "file": str(path)}
    if how.postprocessing is not None:
        facts |= _of_detector(None)
    return _Network(printable(str(path)), facts, how.image_size, None, path, how)


def _label(name: str, width: float, identity: float) -> str:
    return f"{name} {width:g}" + ("" if identity == 1 else f", identity {fraction(identity)}")


def _detector_label(model: dict[str, Any], identity: float, size: int) -> str:
    """For instance `ssdlite_authors on mobilenetv2 (160 px)`."""
    more = "" if identity == 1 else f", identity {fraction(identity)}"
    return f"{printable(detector_words(model))}{more} ({size} px)"


def _of_detector(name: str | None) -> dict[str, Any]:
    """What a detector's row says more than a classifier's."""
    return {"task": DETECTION, "detector": name, "nms": "not timed"}


def _measured(
    networks: Sequence[_Network], config: LatencyConfig, process: Process, folder: Path
) -> dict[str, Any]:
    found = _candidates(networks, config, process, folder)
    candidates = sorted(found, key=lambda one: ENGINES.index(one.engine))
    baselines = _baselines(candidates, config)
    on_cuda = process.device.type == "cuda"
    by_cpu = config.threads == 1 and not on_cuda
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    timings: list[Timing] = []
    with _pinned(config.threads if config.pin and not on_cuda else 0) as cores:
        # What is compared stays close in time: an engine has rounds of its own if it can.
        for first, end in _groups(candidates, baselines):
            part = candidates[first:end]
            title = f"latency, {part[0].engine}" if len(part) < len(candidates) else "latency"
            runs = [running(one.engine, one.source, one.pixels, config.threads) for one in part]
            with Progress(title, "rounds", config.rounds, 0, process) as bar:
                timings += measure(
                    runs, [None if b is None else b - first for b in baselines[first:end]],
                    config.rounds, config.warmup, config.precision, by_cpu,
                    cuda_clock if on_cuda else processor_clock, bar.through,
                )  # fmt: skip
    peaks = [
        _peak(one, number, config, folder) if config.memory and not on_cuda else None
        for number, one in enumerate(candidates)
    ]
    layers = _layers(candidates, config) if config.profile else {}
    torch.set_num_threads(before)
    set_ = instructions()
    result = {
        "kind": "latency",
        "version": 1,
        "device": torch.cuda.get_device_name(process.device) if on_cuda else cpu_name(),
        "instructions": {"vector": set_.vector, "int8": set_.int8},
        "threads": config.threads,
        "cores": cores,
        "batch": config.batch,
        "rounds": max(len(timing.laps) for timing in timings),
        "ratios_of": "processor time" if by_cpu else "wall time",
        "baseline": config.baseline,
        "rows": [
            _row(one, timing, baseline, candidates, peak, config)
            for one, timing, baseline, peak in zip(
                candidates, timings, baselines, peaks, strict=True
            )
        ],
        "layers": {label: [one._asdict() for one in found] for label, found in layers.items()},
        **provenance(process),
    }
    path = _leave(config, result)
    say("\n".join(_lines(result)))
    for label, found in layers.items():
        say("\n".join(_profile_lines(label, found)))
    say(f"run folder: {path}")
    return result


def _candidates(
    networks: Sequence[_Network], config: LatencyConfig, process: Process, folder: Path
) -> Iterator[_Candidate]:
    """Each network in each engine, exported where the engine runs files."""
    _check_engines(config, process)
    for number, one in enumerate(networks):
        pixels = torch.randint(
            256, (max(2, config.batch), 3, one.image_size, one.image_size), dtype=torch.uint8,
            generator=torch.Generator().manual_seed(number),
        )  # fmt: skip
        batch = pixels[: config.batch].clone()
        if one.file is not None:
            yield _Candidate(one, SUFFIXES[one.file.suffix], one.label, one.file, batch)
            continue
        assert one.module is not None
        for engine in dict.fromkeys(config.engine):
            forms = [(one.label, one.module, False)]
            bare = without_shortcuts(one.module) if config.profile and number == 0 else None
            if bare is not None:
                forms.append((f"{one.label}, {BOUND}", bare, True))
            for label, module, is_bound in forms:
                source = for_engine(module, engine, one.image_size, process.device)
                if engine in FORMAT_OF:
                    say(f"exporting {printable(label)} for {engine}")
                    place = folder / f"{number}-{engine}-{int(is_bound)}"
                    place.mkdir()
                    source = write_for(engine, source, pixels.numpy(), place)
                    yield _Candidate(one, engine, label, source, batch, is_bound)
                else:
                    on_device = batch.to(process.device)
                    yield _Candidate(one, engine, label, source, on_device, is_bound)


def _check_engines(config: LatencyConfig, process: Process) -> None:
    """Raise `InputError` where an engine's package is missing, or it cannot use the device."""
    on_cuda = process.device.type == "cuda"
    for engine in dict.fromkeys(config.engine):
        if engine in FORMAT_OF:
            check_packages(FORMATS[FORMAT_OF[engine]], f"engine={engine}")
            if on_cuda:
                raise InputError(
                    f"engine={engine} runs on the processor: expected eager or compile with "
                    "runtime.device=cuda, or runtime.device=cpu for all"
                )
    if on_cuda and config.files:
        raise InputError(
            f"files={printable(config.files[0])} runs on the processor: add runtime.device=cpu"
        )


def _baselines(candidates: Sequence[_Candidate], config: LatencyConfig) -> list[int | None]:
    """For each candidate the place of the one that it is compared with."""
    if config.baseline == NONE:
        return [None] * len(candidates)
    if len(candidates) < 2:
        raise InputError(
            f"{printable(candidates[0].label)} alone has nothing to be compared with: add another "
            "network or engine (identity=1,1/2), or baseline=none to measure it alone"
        )
    labels = [one.label for one in candidates]
    if config.baseline is not None:
        if config.baseline not in labels:
            raise InputError(
                f"baseline={printable(config.baseline)}: expected one of "
                f"{'; '.join(map(printable, dict.fromkeys(labels)))}"
            )
        place = labels.index(config.baseline)
        by_engine = {
            one.engine: number
            for number, one in reversed(list(enumerate(candidates)))
            if one.label == config.baseline
        }
        return [by_engine.get(one.engine, place) for one in candidates]
    firsts: dict[str, int] = {}
    for number, one in enumerate(candidates):
        firsts.setdefault(one.engine, number)
    if len(firsts) == len(candidates):
        return [0] * len(candidates)
    return [firsts[one.engine] for one in candidates]


def _groups(
    candidates: Sequence[_Candidate], baselines: Sequence[int | None]
) -> list[tuple[int, int]]:
    """Ranges of candidates that are timed in turns.

    Engine by engine, or all together if some are compared with another engine's.
    """
    engines = [one.engine for one in candidates]
    if any(b is not None and engines[b] != engines[n] for n, b in enumerate(baselines)):
        return [(0, len(candidates))]
    starts = [n for n, engine in enumerate(engines) if engine not in engines[:n]]
    return list(zip(starts, [*starts[1:], len(candidates)], strict=True))


@contextmanager
def _pinned(threads: int) -> Iterator[list[int] | None]:
    """The process on so many of its cores; they are given, or None if it is not kept on some."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not threads or threads > len(allowed):
        yield None
        return
    kept = allowed[-threads:]  # the first one serves more interrupts
    os.sched_setaffinity(0, kept)
    try:
        yield kept
    finally:
        os.sched_setaffinity(0, allowed)


def _peak(one: _Candidate, number: int, config: LatencyConfig, folder: Path) -> int | None:
    file = one.source
    if isinstance(file, FromPixels):
        file = folder / f"{number}.module"
        torch.save(one.source, file)
    return peak_memory(one.engine, file, tuple(one.pixels.shape), config.threads)


def _layers(candidates: Sequence[_Candidate], config: LatencyConfig) -> dict[str, list[LayerTime]]:
    """Layer by layer, of the first network in engines that tell."""
    found: dict[str, list[LayerTime]] = {}
    for one in candidates:
        if one.engine in found or one.is_bound:
            continue
        if isinstance(one.source, FromPixels) and one.engine == "eager":
            found[one.engine] = eager_layers(one.source, one.pixels)
        elif isinstance(one.source, Path) and one.engine == "onnxruntime":
            found[one.engine] = onnxruntime_layers(one.source, one.pixels.numpy(), config.threads)
    return found


def _row(
    one: _Candidate,
    timing: Timing,
    baseline: int | None,
    candidates: Sequence[_Candidate],
    peak: int | None,
    config: LatencyConfig,
) -> dict[str, Any]:
    ratio, cpu = timing.ratio, timing.cpu
    runs_file = one.engine in FORMAT_OF
    package = FORMATS[FORMAT_OF[one.engine]].runs_in if runs_file else "torch"
    return {
        "engine": one.engine,
        "engine_version": version_of(package),
        "label": one.label,
        **one.network.facts,
        "is_bound": one.is_bound,
        "image_size": one.network.image_size,
        "ms": _summary(timing.wall),
        "cpu_ms": None if cpu is None else _summary(cpu),
        "baseline": None if baseline is None else candidates[baseline].label,
        "baseline_engine": None if baseline is None else candidates[baseline].engine,
        "ratio": None if ratio is None else ratio._asdict(),
        "resolved": timing.is_resolved,
        "busy_share": timing.busy_share(config.threads),
        "rounds": len(timing.laps),
        "repeats": timing.repeats,
        "peak_bytes": peak,
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": min(values),
        **Quartiles.of(values)._asdict(),
        "p90": float(np.quantile(values, 0.9)),
    }


def _leave(config: LatencyConfig, result: dict[str, Any]) -> Path:
    folder = RunFolder(config.run_path)
    folder.create(to_yaml(config))
    folder.write_result(result)
    return folder.path


def _lines(result: dict[str, Any]) -> Iterator[str]:
    """The table of a result, for a terminal."""
    cores = result.get("cores")
    yield (
        f"{printable(result['device'])}, {result['threads']} thread"
        f"{'s' if result['threads'] > 1 else ''}"
        + (f" on core {', '.join(map(str, cores))}" if cores else "")
        + f", batch {result['batch']}, {result['rounds']} rounds in turns; "
        f"ratios are of {result['ratios_of']}, with their quartiles"
    )
    width = 2 + max(len(printable(row["label"])) for row in result["rows"])
    first = 2 + max(len(row["engine"]) for row in result["rows"])
    yield (f"{'engine':<{first}}{'network':<{width}}{'min ms':>9}{'median':>9}{'cpu ms':>9}"
           f"{'busy':>6}{'peak MB':>9}  ratio")  # fmt: skip
    for row in result["rows"]:
        cpu, peak, busy = row["cpu_ms"], row["peak_bytes"], row["busy_share"]
        yield (
            f"{row['engine']:<{first}}{printable(row['label']):<{width}}{row['ms']['min']:>9.2f}"
            f"{row['ms']['median']:>9.2f}{'-' if cpu is None else format(cpu['median'], '.2f'):>9}"
            f"{'-' if busy is None else format(100 * busy, '.0f') + ' %':>6}"
            f"{'-' if peak is None else format(peak / 1e6, '.0f'):>9}  {_ratio_words(row)}"
        )
    if any(row.get("task") == DETECTION for row in result["rows"]):
        yield (
            "detectors: from pixels to scores and boxes of all default boxes; non-maximum "
            "suppression is not timed"
        )
    bound = [row for row in result["rows"] if row["is_bound"] and row["ratio"]]
    for row in bound:
        gain = 100 * (1 - row["ratio"]["median"])
        yield (
            f"{row['engine']}: without any shortcut the network takes {abs(gain):.1f} % "
            f"{'less' if gain >= 0 else 'more'}{'' if row['resolved'] else ' (not resolved)'}: "
            "no identity tensor multiplier can gain more"
        )
    busy = [row["busy_share"] for row in result["rows"] if row["busy_share"] is not None]
    if busy and min(busy) < 0.8:
        yield (
            f"note: candidates had their core for {100 * min(busy):.0f} % of the time: other "
            "programs run; wall times are too long, ratios less so"
        )


def _ratio_words(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    if ratio is None:
        return "(baseline)" if row["baseline"] else "-"
    words = f"{ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]"
    return words if row["resolved"] else f"{words} not resolved"


def _profile_lines(engine: str, layers: Sequence[LayerTime]) -> Iterator[str]:
    total = sum(one.ms for one in layers) or 1.0
    yield f"{engine}, by layer: {total:.2f} ms in {len(layers)} layers; the slowest:"
    for one in sorted(layers, key=lambda one: -one.ms)[:SLOWEST]:
        yield f"  {one.ms:8.3f} ms {100 * one.ms / total:5.1f} %  {one.kind + ' ':<28}{one.name}"


def _page(networks: Sequence[_Network], config: LatencyConfig, folder: Path) -> dict[str, Any]:
    assert config.page is not None
    output = Path(config.page)
    check_output_folder("page", output, page_names(output))
    check_packages(FORMATS["onnx"], "page")
    for one in networks:
        if one.preprocessing is not None and one.preprocessing.postprocessing is not None:
            raise InputError(
                f"page: expected classifiers, got a detector, {one.label}: the page shows a "
                "picture's classes; leave page out to measure it here"
            )
    shown = []
    for number, one in enumerate(networks):
        assert one.preprocessing is not None
        file = one.file
        if one.module is not None:
            say(f"exporting {printable(one.label)}")
            ready = for_engine(one.module, "onnxruntime", one.image_size, torch.device("cpu"))
            normal = from_pixels(ready.network, one.preprocessing.mean, one.preprocessing.std)
            place = folder / str(number)
            place.mkdir()
            images = torch.zeros(2, 3, one.image_size, one.image_size, dtype=torch.uint8)
            file = write_for("onnxruntime", normal, images.numpy(), place)
        elif file is not None and file.suffix != ".onnx":
            raise InputError(f"page: expected .onnx files, which browsers run, got {file}")
        assert file is not None
        facts = {key: value for key, value in one.facts.items()
                 if key not in ("checkpoint", "file")}  # fmt: skip
        shown.append(PageNetwork(one.label, file, one.preprocessing, facts))
    engine = None if config.onnxruntime_web is None else Path(config.onnxruntime_web)
    files = write_page(output, shown, engine)
    say(f"{output}: {', '.join(files)}")
    say(
        f"serve it: python -m http.server --directory {output}; open http://ADDRESS:8000 on the "
        "device, measure, copy the result to a file, and bring it here: results=FILE"
    )
    return {"files": files}


def _of_a_device(config: LatencyConfig) -> dict[str, Any]:
    """A page's results as a result of its own."""
    path = Path(config.results or "")
    try:
        found = read_results(read_text(path, MOST_RESULTS))
    except OSError as error:
        raise InputError(f"results={printable(path)}: could not read it ({error})") from error
    result = {**found, "ratios_of": "wall time", "source": str(path)}
    rows = [
        {"cpu_ms": None, "busy_share": None, "peak_bytes": None, "is_bound": False,
         "baseline": result["baseline"], "baseline_engine": row["engine"], **row}
        for row in result["rows"]
    ]  # fmt: skip
    result["rows"] = rows
    place = _leave(config, result)
    say("\n".join(_lines(result)))
    say(f"run folder: {place}")
    return result
