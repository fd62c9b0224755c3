"""Speed of a training step on one GPU, and what keeps it from being faster: ratios and gates.

    python benchmarks/gpu.py --images FOLDER [--timm TRAIN_PY] [--out FOLDER] [--seconds 460]
    python benchmarks/gpu.py --part steps --batch 4 --size 64 --device cpu     one part, anywhere

FOLDER has JPEGs in class folders; hard links repeat them to an epoch of 40,000. TRAIN_PY is the
train.py of pytorch-image-models at the tag of the installed timm. Each part is a process of its
own with a limit; parts that no longer fit into the time are named and left out. All figures are of
this machine in this run: read the ratios. The last lines say which of `GATES` they meet; with --out
all of it is in gpu.json, and what parts print beside it in logs.

    ceilings   device copy (TB/s), a launch (us of the host), a kernel in a graph (us)
    syncs      lines of a training step that wait for the device (there should be none)
    steps      an optimiser step on a ready batch: ours now, with averaged weights (ours and
               timm's), a bare loop, that with fused SGD, and in a graph; small batches
    evaluation scores of ready batches: images/s of one network, and of a raw and an averaged one
    fused_norms   our step with runtime.fused=true, eager and as a graph; as a graph without it
    ours timm bare   end to end from the JPEGs: images/s of the second epoch, share of data wait
    runs       three runs of train.py with runtime=exact, one of them ended and gone on: equal?
    exact      two runs of a bare loop, and eager against graph, by the SHA-256 of the weights
    compiled   torch.compile with wider fusions, and that in a graph; compiled_default without
    colours    to_device and jitter
    precision  fp32, tf32, bf16, fp16
"""

import argparse
import contextlib
import hashlib
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from whole_runs import timm_train, train

REPO = Path(__file__).resolve().parents[1]

PARTS = {  # seconds at most, in the order of what matters
    "ceilings": 30, "syncs": 75, "steps": 150, "ours": 120, "timm": 150, "runs": 100, "exact": 80,
    "evaluation": 60, "fused_norms": 120, "compiled": 130, "colours": 60, "bare": 120,
    "compiled_default": 130, "precision": 80,
}  # fmt: skip

STEPS = int(os.environ.get("STEPS", "20"))
SMALL_BATCHES = (64, 8)


class Figure(NamedTuple):
    """An entry of a row, of a certain batch or, None, of any."""

    row: str
    entry: str
    batch: int | None = None

    def of(self, rows: list[dict[str, Any]]) -> Any:
        """Its value, or None if it was not measured."""
        found = [r.get(self.entry) for r in rows
                 if r["row"] == self.row and self.batch in (None, r.get("batch"))]  # fmt: skip
        return found[-1] if found else None


class Gate(NamedTuple):
    """What a figure, or the ratio of two, has to be."""

    name: str
    relation: str
    bound: float
    figure: Figure
    over: Figure | None = None
    unit: str = ""

    def judged(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The measured value, and whether it meets the gate; None for both if there is none."""
        value, base = self.figure.of(rows), 1 if self.over is None else self.over.of(rows)
        if value is None or base is None:
            return {"gate": self.text(), "measured": None, "met": None}
        if self.over is not None:
            value = value / base
        elif self.unit == " %":
            value = 100 * value
        return {"gate": self.text(), "measured": value,
                "met": RELATIONS[self.relation](value, self.bound)}  # fmt: skip

    def text(self) -> str:
        """The gate without what was measured."""
        relation = "" if self.relation == "=" else f"{self.relation} "
        return f"{self.name} {relation}{self.shown(self.bound)}"

    def shown(self, value: float) -> str:
        """A value, rounded to four digits."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{float(f'{value:.4g}'):,g}{self.unit}"

    def line(self, rows: list[dict[str, Any]]) -> str:
        """The gate for people."""
        found = self.judged(rows)
        if found["met"] is None:
            return f"gate: {self.text()}: not measured"
        end = "met" if found["met"] else "missed"
        return f"gate: {self.text()} (measured {self.shown(found['measured'])}): {end}"


RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "<": operator.lt, "<=": operator.le, ">=": operator.ge
}  # fmt: skip
RATE, MS = "images_per_second", "ms"
GATES = (
    Gate("waits in a step", "=", 0, Figure("waits for the device", "count")),
    Gate("kernels a step", "<=", 1000, Figure("ours now", "kernels", 256)),
    Gate("data wait", "<", 2, Figure("end to end, ours", "data_wait_share"), unit=" %"),
    Gate("ours over timm", ">=", 1.3, Figure("end to end, ours", RATE),
         Figure("end to end, timm", RATE)),
    Gate("images/s at batch 256, eager", ">=", 6500, Figure("ours now", RATE, 256)),
    Gate("64 images, graph over eager", ">=", 1.2, Figure("ours now", MS, 64),
         Figure("bare in a CUDA graph", MS, 64)),
    Gate("8 images, graph over eager", ">=", 4, Figure("ours now", MS, 8),
         Figure("bare in a CUDA graph", MS, 8)),
    Gate("two runs of a bare loop, equal bits", "=", True,
         Figure("equal bits, runtime=exact", "two_runs")),
    Gate("two runs of train.py, equal bits", "=", True, Figure("equal bits, train.py", "two_runs")),
)  # fmt: skip
"""What one H100 or H200 is held to, with the default sizes."""


# ---- measuring ----


def wait(device: str) -> None:
    """Until the device has done all."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(
    step: Callable[[], Any], device: str, warm_up: int = min(5, STEPS), steps: int = STEPS
) -> dict[str, Any]:
    """Milliseconds of a step: of the device (median of events), of the host until it is free."""
    for _ in range(warm_up):
        step()
    wait(device)
    on_host = []
    if device != "cuda":
        for _ in range(steps):
            begun = time.perf_counter()
            step()
            on_host.append(1e3 * (time.perf_counter() - begun))
        return {"ms": statistics.median(on_host)}
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for number in range(steps):
        begun = time.perf_counter()
        step()
        on_host.append(1e3 * (time.perf_counter() - begun))
        marks[number + 1].record()
    wait(device)
    spans = [one.elapsed_time(other) for one, other in pairwise(marks)]
    return {"ms": statistics.median(spans), "host_ms": statistics.median(on_host)}


def kernels(step: Callable[[], Any], device: str) -> dict[str, Any]:
    """How many kernels a step has, and for how many milliseconds they keep the device busy."""
    if device != "cuda":
        return {}
    from torch.profiler import DeviceType, ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            step()
        wait(device)
    ran = [event for event in seen.events() or () if event.device_type == DeviceType.CUDA]
    return {"kernels": len(ran) // 3, "busy_ms": sum(e.device_time for e in ran) / 3e3}


def row(name: str, step: Callable[[], Any], a: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Measure a step and tell of it."""
    found = {**timed(step, a.device), **kernels(step, a.device), **more}
    found["images_per_second"] = 1e3 * a.batch / found["ms"]
    tell({"row": name, "batch": a.batch, **found})
    return found


@contextlib.contextmanager
def watched(device: str) -> Iterator[dict[str, Any]]:
    """Finds what waits for the device inside; the dictionary then has their count and lines.

    It stays empty where there is no CUDA, and nothing was looked for.
    """
    found: dict[str, Any] = {}
    if device != "cuda":
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")  # warns that it is a prototype: not a wait
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    lines = {f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits}
    found.update(count=len(waits), lines=sorted(lines))


def tell(value: dict[str, Any]) -> None:
    """Print a measurement for the process that started this part."""
    print("@" + json.dumps(value), flush=True)


# ---- the step ----


def made(a: argparse.Namespace, *overrides: str) -> dict[str, Any]:
    """Config, network, optimiser and a ready batch, made by what training uses."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from mobilenext.assembly.network import new_network, new_optimizer, new_update, train_mode
    from mobilenext.config import TrainConfig, register, typed
    from mobilenext.main import CONFIG_DIR
    from mobilenext.metrics.classification import SmoothedCrossEntropy
    from mobilenext.optim import weight_decay_groups
    from mobilenext.runtime.distributed import Process
    from mobilenext.runtime.precision import Precision
    from mobilenext.runtime.torch_settings import configure_torch

    register(TrainConfig)
    GlobalHydra.instance().clear()
    fixed = ["data=imagefolder", "strides=[2,2,2,2,2]", f"data.image_size={a.size}",
             f"data.global_batch_size={a.batch}", f"runtime.device={a.device}",
             "epochs=20"]  # fmt: skip
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = typed(compose("train", [*fixed, *overrides, *a.more]))
    configure_torch(None, config.runtime.deterministic)
    process = Process(torch.device(a.device, 0) if a.device == "cuda" else torch.device("cpu"))
    network, _ = new_network(config, 1000, process)
    train_mode(network, config)
    random = torch.Generator().manual_seed(0)
    shape = (a.batch, a.size, a.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 1000, (a.batch,), generator=random)
    pinned = a.device == "cuda"
    images = pixels.to(process.device).permute(0, 3, 1, 2).float().div_(58).sub_(2)
    optimizer, precision = (
        new_optimizer(network, config),
        Precision(config.runtime.precision, process.device),
    )
    return {
        "config": config, "network": network, "process": process, "optimizer": optimizer,
        "groups": weight_decay_groups(network, config.optimizer["weight_decay"], False),
        "precision": precision,
        "update": new_update(network, optimizer, precision, config, process),
        "loss": SmoothedCrossEntropy(config.label_smoothing),
        "pixels": pixels.pin_memory() if pinned else pixels,
        "labels": labels.pin_memory() if pinned else labels,
        "images": images, "targets": labels.to(process.device),
    }  # fmt: skip


def our_step(m: dict[str, Any]) -> Callable[[], Any]:
    """What training does between a batch on the device and the next."""
    from mobilenext.seeding import seed_devices

    count = 0

    def step() -> Any:
        nonlocal count
        count += 1
        seed_devices("step", 0, count, 0)
        return m["update"]((m["images"], m["targets"], m["targets"]), m["loss"])

    return step


def bare_step(
    m: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer
) -> Callable[[], Any]:
    """The least that trains: nothing is counted, checked or seeded."""
    smoothing = m["config"].label_smoothing

    def step() -> Any:
        with m["precision"].autocast():
            logits = network(m["images"]).float()
            loss = F.cross_entropy(logits, m["targets"], label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def fused(m: dict[str, Any]) -> torch.optim.Optimizer:
    """SGD in one kernel, with the rate on the device as graphs need it."""
    rate = torch.tensor(0.1, device=m["process"].device)
    return torch.optim.SGD(m["groups"], lr=rate, momentum=0.9, nesterov=True, fused=True)


def uncounted(network: nn.Module) -> None:
    """Norms count their batches for nobody, a kernel each; our step has one for all of them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None


def graphed(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# ---- parts ----


def ceilings(a: argparse.Namespace) -> None:
    """What the device and its launches do at best."""
    if a.device != "cuda":
        return
    big, small = torch.empty(2**31, dtype=torch.uint8, device="cuda"), torch.zeros(1, device="cuda")
    other = torch.empty_like(big)
    copy = timed(lambda: other.copy_(big), "cuda")["ms"]
    many = 2000

    def launches() -> None:
        for _ in range(many):
            small.add_(1)

    eager = timed(launches, "cuda", 2, 5)
    replay = timed(graphed(launches), "cuda", 2, 5)
    tell({"row": "ceilings", "copy_TB_s": 2 * big.numel() / copy / 1e9,
          "launch_us": 1e3 * eager["host_ms"] / many, "graph_kernel_us": 1e3 * replay["ms"] / many,
          "device": torch.cuda.get_device_name(), "torch": torch.__version__,
          "cudnn": torch.backends.cudnn.version(), "cores": os.cpu_count()})  # fmt: skip


def syncs(a: argparse.Namespace) -> None:
    """Lines of a step, augmentation and mixing included, that wait for the device."""
    from mobilenext.data import Augment, DeviceBatches, Mixing

    m = made(a, "augment=mobilenext")
    device = m["process"].device
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, device)
    augment = Augment((0.4, 0.4, 0.4, 0.1), 0.25, 0, a.batch)
    mixing, step = Mixing(0.2, 1.0, 1000, 0), our_step(m)

    def all_of_it() -> None:
        images, labels = to_device(m["pixels"], m["labels"], augment.at(0, 0))
        mixing(images, labels, 0, 0)
        step()

    all_of_it()
    wait(a.device)
    with watched(a.device) as waits:
        all_of_it()
    tell({"row": "waits for the device", "device": a.device, **waits})


def steps(a: argparse.Namespace) -> None:
    """Our step, alone and with averaged weights, against a bare one; and small batches."""
    from timm.utils.model_ema import ModelEmaV3

    from mobilenext.training.averages import AveragedWeights

    m = made(a)
    network, step = m["network"], our_step(m)
    row("ours now", step, a)
    for name, averages in (("ours now + EMA", AveragedWeights(network, 0.9999)),
                           ("ours now + EMA of timm", ModelEmaV3(network, 0.9999))):  # fmt: skip
        number = 1

        def averaged(averages: Any = averages) -> None:
            nonlocal number
            number += 1
            step()
            averages.update(network, number)

        row(name, averaged, a)
    row("bare loop", bare_step(m, network, m["optimizer"]), a)
    uncounted(network)
    least = bare_step(m, network, fused(m))
    row("bare, fused SGD", least, a)
    if a.device == "cuda":
        row("bare in a CUDA graph", graphed(least), a)
    for small in SMALL_BATCHES:
        if small < a.batch:
            few = argparse.Namespace(**{**vars(a), "batch": small})
            m = made(few)
            row("ours now", our_step(m), few)
            if a.device == "cuda":
                uncounted(m["network"])
                row("bare in a CUDA graph", graphed(bare_step(m, m["network"], fused(m))), few)


class Ready:
    """The same batch again and again, where an evaluation expects a loader."""

    missed = 0

    def __init__(self, m: dict[str, Any], batches: int) -> None:
        self.batch, self.batches = (m["pixels"], m["labels"]), batches
        self.images = batches * len(m["labels"])

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of any epoch."""
        del number
        return repeat(self.batch, self.batches)


def evaluation(a: argparse.Namespace) -> None:
    """Scores of one network, and of two that see the same batches."""
    from mobilenext.data import DeviceBatches
    from mobilenext.metrics.classification import score_all
    from mobilenext.training.averages import AveragedWeights

    m = made(a)
    process, network = m["process"], m["network"]
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, process.device)
    loader: Any = Ready(m, STEPS)
    both = {"val": network, "ema": AveragedWeights(network, 0.9999).module}
    for name, networks in (("one network", {"val": network}), ("raw and averaged", both)):

        def scored(networks: dict[str, nn.Module] = networks) -> None:
            score_all(networks, loader, to_device, process, loader.images)

        took = timed(scored, "cpu", 1, 3)["ms"]  # by the clock: it ends by waiting for its sums
        with watched(a.device) as waits:
            scored()
        tell({"row": f"evaluation, {name}", "batch": a.batch, "batches": loader.batches,
              "images_per_second": 1e3 * loader.images / took,
              **{f"waits_{key}": value for key, value in waits.items()}})  # fmt: skip


FUSED = ("runtime.fused=true",)
GRAPH = ("runtime.graph=true", "+optimizer.fused=true", "optimizer.foreach=null")


def fused_norms(a: argparse.Namespace) -> None:
    """Our step with fused norms, eager and as a CUDA graph, and such a graph without them."""
    for batch in (a.batch, *(small for small in SMALL_BATCHES if small < a.batch)):
        few = argparse.Namespace(**{**vars(a), "batch": batch})
        for name, overrides in (
            ("fused norms", FUSED), ("in a CUDA graph", GRAPH),
            ("fused norms, in a CUDA graph", (*FUSED, *GRAPH)),
        ):  # fmt: skip
            if a.device != "cuda":
                tell({"row": f"ours now, {name}", "batch": batch, "left_out": "needs CUDA"})
                continue
            m = made(few, *overrides)
            row(f"ours now, {name}", our_step(m), few)
            del m


WIDE = {"realize_reads_threshold": 12, "realize_opcount_threshold": 100}
"""Inductor's defaults have the backward pass of norm and ReLU6 write float32 in between: 270 MB an
image instead of 190 by its own count."""


def compiled(a: argparse.Namespace, options: dict[str, Any] | None = WIDE) -> None:
    """The bare step of a compiled network."""
    m = made(a)
    uncounted(m["network"])
    begun = time.perf_counter()
    network: Any = torch.compile(m["network"], options=options)
    step = bare_step(m, network, fused(m) if a.device == "cuda" else m["optimizer"])
    step()
    wait(a.device)
    name = "compiled" if options is None else "compiled, wide fusions"
    row(name, step, a, compile_seconds=time.perf_counter() - begun)
    if a.device == "cuda":
        row(f"{name}, in a CUDA graph", graphed(step), a)


def compiled_default(a: argparse.Namespace) -> None:
    """The same with Inductor's defaults."""
    compiled(a, None)


def precision(a: argparse.Namespace) -> None:
    """Our step in each precision."""
    for name in ("bf16", "fp16", "tf32", "fp32"):
        m = made(a, f"runtime.precision={name}")
        row(f"ours now, {name}", our_step(m), a)
        del m


def colours(a: argparse.Namespace) -> None:
    """What happens to a batch before the network sees it."""
    from mobilenext.data import Augment, DeviceBatches

    m = made(a)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, m["process"].device)
    pixels, labels = (m[key].to(m["process"].device) for key in ("pixels", "labels"))
    cases = {"none": ((0, 0, 0, 0), 0.0), "jitter": ((0.4, 0.4, 0.4, 0), 0.0),
             "jitter, hue, erasing": ((0.4, 0.4, 0.4, 0.1), 0.25)}  # fmt: skip
    for name, (strength, erasing) in cases.items():
        augment = Augment(strength, erasing, 0, a.batch)
        row(f"to_device, {name}", lambda augment=augment: to_device(pixels, labels, augment), a)


def repeated(images: Path, place: Path, count: int) -> Path:
    """Class folders under train/ and val/ with hard links to the images, as often as needed."""
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    times = -(-count // len(files))
    for split, repeats in (("train", times), ("val", 1)):
        for file in files:
            folder = place / split / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(repeats):
                copy = folder / f"{file.stem}_{number}{file.suffix}"
                try:
                    os.link(file, copy)
                except OSError:  # another file system
                    copy.symlink_to(file.resolve())
    return place


def ours(a: argparse.Namespace) -> None:
    """End to end with our train.py."""
    with tempfile.TemporaryDirectory() as work:
        data = repeated(a.images, Path(work) / "data", a.count)
        done = train(["data=imagefolder", f"data.root={data}", f"data.image_size={a.size}",
                      "epochs=2", f"data.global_batch_size={a.batch}", "strides=[2,2,2,2,2]",
                      "augment=mobilenext", "schedule=constant", f"runtime.device={a.device}",
                      "runtime.log_every=20", *a.more], output=sys.stderr)  # fmt: skip
        rates = {key: done.epoch[key] for key in ("images_per_second", "data_wait_share")}
        tell({"row": "end to end, ours", "decoder": done.result["decoder"], "batch": a.batch,
              **rates})  # fmt: skip


def timm(a: argparse.Namespace) -> None:
    """End to end with timm's train.py."""
    with tempfile.TemporaryDirectory() as work:
        data = repeated(a.images, Path(work) / "data", a.count)
        classes = len(list((data / "train").iterdir()))
        arguments = [str(data), "--model", "mobilenext_100", "--num-classes", str(classes),
                     "--img-size", str(a.size), "-b", str(a.batch), "--amp", "--amp-dtype",
                     "bfloat16", "--channels-last", "--pin-mem", "-j", str(os.cpu_count()),
                     "--device", a.device, "--opt", "nesterov", "--lr", "0.1", "--sched", "cosine",
                     "--warmup-epochs", "0", "--smoothing", "0.1", "--log-interval",
                     "20"]  # fmt: skip
        rate, waiting = timm_train(a.timm, arguments)
        tell({"row": "end to end, timm", "images_per_second": rate, "batch": a.batch,
              "data_wait_share": waiting})  # fmt: skip


def bare(a: argparse.Namespace) -> None:
    """End to end with DataLoader, torchvision's uint8 transforms and the bare step."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    m = made(a)
    with tempfile.TemporaryDirectory() as work:
        data = repeated(a.images, Path(work) / "data", a.count)
        shape = [v2.RandomResizedCrop(a.size, antialias=True), v2.RandomHorizontalFlip()]
        pipeline = v2.Compose([v2.PILToTensor(), *shape])
        loader = DataLoader(ImageFolder(str(data / "train"), pipeline), a.batch, shuffle=True,
                            drop_last=True, num_workers=os.cpu_count() or 1,
                            pin_memory=a.device == "cuda", persistent_workers=True)  # fmt: skip
        step = bare_step(m, m["network"], m["optimizer"])
        begun, count, waited = 0.0, 0, 0.0
        for _ in range(2):
            wait(a.device)
            begun, count, waited, asked = time.perf_counter(), 0, 0.0, time.perf_counter()
            for pixels, labels in loader:
                waited += time.perf_counter() - asked
                device = m["process"].device
                m["images"] = pixels.to(device, non_blocking=True).float().div_(58).sub_(2)
                m["images"] = m["images"].contiguous(memory_format=torch.channels_last)
                m["targets"] = labels.to(device, non_blocking=True)
                step()
                count += len(labels)
                asked = time.perf_counter()
            wait(a.device)
        seconds = time.perf_counter() - begun
        tell({"row": "end to end, torchvision and a bare loop", "batch": a.batch,
              "images_per_second": count / seconds,
              "data_wait_share": waited / seconds})  # fmt: skip


def exact(a: argparse.Namespace) -> None:
    """Equal bits, by the SHA-256 of a bare loop's weights."""

    def digest(network: nn.Module) -> str:
        total = hashlib.sha256()
        for value in network.state_dict().values():
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    for mode in ("runtime=exact", "runtime=auto"):
        found = []
        for graph in (False, False, True):
            if graph and a.device != "cuda":
                continue
            m = made(a, mode)
            uncounted(m["network"])
            step = bare_step(m, m["network"], fused(m) if a.device == "cuda" else m["optimizer"])
            if graph:  # three steps of warm-up; recording computes nothing
                step, count = graphed(step), 4
            else:
                count = 7
            for _ in range(count):
                step()
            wait(a.device)
            found.append(digest(m["network"]))
        tell({"row": f"equal bits, {mode}", "two_runs": found[0] == found[1],
              "graph_and_eager": found[2] == found[0] if len(found) > 2 else None})  # fmt: skip


def runs(a: argparse.Namespace) -> None:
    """Digits three times at once, one of them told to stop twice: the same weights?"""
    settings = ["runtime=exact", "width=0.35", "epochs=8", "ema_decay=0.99", "augment.mixup=0.2",
                f"runtime.device={a.device}", *a.more]  # fmt: skip
    with tempfile.TemporaryDirectory() as work:

        def started(name: str) -> subprocess.Popen[bytes]:
            place = f"output_dir={work}/{name}"
            command = [sys.executable, str(REPO / "train.py"), *settings, place]
            return subprocess.Popen(command, stdout=sys.stderr)

        def epochs(name: str) -> int:
            files = Path(work, name).glob("*/*/metrics.jsonl")
            return sum(file.read_text().count('"kind": "epoch"') for file in files)

        whole, stops = [started("first"), started("second")], 0
        for epoch in (2, 5):
            stopped = started("stopped")
            while stopped.poll() is None and epochs("stopped") < epoch:
                time.sleep(0.05)
            if stopped.poll() is None:
                stopped.terminate()
            stops += stopped.wait() != 0
        for process in (*whole, started("stopped")):
            process.wait()
        digests, steps = [], 0
        for name in ("first", "second", "stopped"):
            state = torch.load(next(Path(work, name).glob("*/*/last.pt")), weights_only=True)
            total = hashlib.sha256()
            for part in ("network", "ema"):
                for value in state[part].values():
                    total.update(value.cpu().contiguous().numpy().tobytes())
            digests.append(total.hexdigest()[:16])
            steps = state["step"]
        tell({"row": "equal bits, train.py", "two_runs": digests[0] == digests[1],
              "stopped_and_whole": digests[0] == digests[2], "stops": stops,
              "steps": steps})  # fmt: skip


# ---- all of it ----


def main() -> None:
    """All parts, or one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--only", default="")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"))
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("more", nargs="*", help="overrides of train.py")
    a = parser.parse_args()
    if a.part:
        globals()[a.part](a)
        return
    begun, rows = time.monotonic(), []
    if a.out is not None:
        a.out.mkdir(parents=True, exist_ok=True)
    for part, limit in PARTS.items():
        if a.only and part not in a.only.split(","):
            continue
        left = a.seconds - (time.monotonic() - begun)
        needs = {"ours": a.images, "bare": a.images, "timm": a.images and a.timm}.get(part, True)
        if left < 0.6 * limit or not needs:
            print(f"left out: {part} ({f'{left:.0f} s left' if needs else 'no data'})")
            continue
        started = time.monotonic()
        text, code = told(part, min(left, limit), a.out)
        rows += [json.loads(line[1:]) for line in text.splitlines() if line.startswith("@")]
        ended = f"code {code}" if code is not None else "cut off"
        print(f"{part}: {time.monotonic() - started:.0f} s, {ended}", flush=True)
        if a.out is not None:  # each time: whoever runs this has a limit too
            found = {"rows": rows, "gates": [gate.judged(rows) for gate in GATES]}
            (a.out / "gpu.json").write_text(json.dumps(found, indent=1))
    table(rows)
    for gate in GATES:
        print(gate.line(rows))


def told(part: str, limit: float, out: Path | None) -> tuple[str, int | None]:
    """What a part prints, and its exit code; None if it was cut off, with all that it started."""
    command = [sys.executable, __file__, "--part", part, *sys.argv[1:]]
    with contextlib.ExitStack() as stack:
        errors = None if out is None else stack.enter_context((out / f"{part}.log").open("w"))
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            return process.communicate(timeout=limit)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, SIGKILL)
            return process.communicate()[0], None
        finally:
            if process.poll() is None:  # Ctrl-C does not reach its session
                os.killpg(process.pid, SIGKILL)


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows for people."""
    base = {r["batch"]: r["ms"] for r in rows if r["row"] == "ours now"}
    for r in rows:
        if "ms" not in r:
            figures = {k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()}
            print(f"{figures.pop('row')}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
            continue
        ratio = base[r["batch"]] / r["ms"] if r["batch"] in base else float("nan")
        print(
            f"{r['row']:34s} batch {r['batch']:4d}  {r['ms']:8.2f} ms  "
            f"{r['images_per_second']:9,.0f} img/s  x{ratio:5.2f}  "
            f"host {r.get('host_ms', 0):6.2f} ms  kernels {r.get('kernels', 0):5d}  "
            f"busy {r.get('busy_ms', 0):7.2f} ms"
        )


if __name__ == "__main__":
    main()
