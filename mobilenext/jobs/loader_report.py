"""Whether loading or computing is the wall here, and what would help: measured, not guessed.

All of it goes through what training uses: its loader, its step, its settings. Every figure is one
of this machine at this moment, so everything is measured in turns, A B C ... A B C, and ways of
decoding are compared by CPU time, which others on the machine disturb less than the clock.
"""

import itertools
import json
import math
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from mobilenext.assembly.data import (
    decoding_threads,
    device_augment,
    device_batches,
    mixing,
    training_loader,
)
from mobilenext.assembly.network import averages, new_network, new_optimizer, new_update, train_mode
from mobilenext.config import TrainConfig
from mobilenext.config.fields import check, path_field
from mobilenext.config.targets import build
from mobilenext.data import ImageData, Loader, restart
from mobilenext.data.decoders import open_decoder
from mobilenext.data.encoded import (
    ITEM,
    EncodedClassImages,
    EncodedImages,
    HasRestarts,
    Located,
)
from mobilenext.data.loader import Batch
from mobilenext.data.packing import PackRecipe, store
from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import ClassTargets, SyntheticImages
from mobilenext.errors import InputError
from mobilenext.files import check_output_file, writable, write_whole
from mobilenext.metrics.classification import SmoothedCrossEntropy
from mobilenext.optim import set_learning_rate
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import generator
from mobilenext.training.progress import say
from mobilenext.training.run import PREFETCH


@dataclass
class LoaderReportConfig(TrainConfig):
    """Job `loader_report`: what training would do, and how to measure it."""

    seconds: float = 3.0
    """How long each measurement takes, at least."""
    sample: int = 200
    """Training images that are packed in memory, to see what that would bring."""
    report: str | None = path_field(None)
    """JSON file that gets all numbers; null: none."""

    leaves_run = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.seconds > 0, "seconds", "above 0", self.seconds)
        check(self.sample >= 1, "sample", "at least 1", self.sample)


MARGIN = 1.1
"""So much faster than the step decoding has to be, or small hiccups of it are waited for."""
NOTABLE = 1.1
"""Ratios below are not worth advice: repeated measurements differ by as much."""
IDLE = 0.7
"""Decoding that gets less than this share of its threads' time is waiting: for files, or because
other programs have the cores."""
WARM_UP = 2
"""Batches, or steps, that do not count: threads start, kernels are chosen."""
LEAST_BATCHES = 2
TURNS = 3
PACKED_SIDE, PACKED_QUALITY = 256, 90


@dataclass(frozen=True)
class Verdict:
    """What two rates say of each other.

    Attributes:
        wall: decoding or step: what limits training.
        factor: How many times as fast the other one is.
        enough: The smallest measured number of threads whose rate exceeds the step's by MARGIN.
        needed: If none does: how many would, by the rate of a thread while all cores decode.
    """

    wall: str
    factor: float
    enough: int | None
    needed: int | None


def verdict(rates: dict[int, float], step: float, threads: int, cores: int) -> Verdict:
    """Compare decoding with the step.

    Args:
        rates: Images per second by number of threads; has `threads` and `cores`.
        step: Images per second of the training step.
        threads: The number of threads that training would use.
        cores: Of this machine.
    """
    decode = rates[threads]
    wanted = MARGIN * step
    enough = min((count for count, rate in rates.items() if rate >= wanted), default=None)
    needed = None
    if enough is None:
        needed = max(cores + 1, math.ceil(wanted * cores / rates[cores]))
    wall = "decoding" if decode < step else "step"
    return Verdict(wall, max(decode, step) / min(decode, step), enough, needed)


def loader_report(config: LoaderReportConfig, process: Process) -> dict[str, Any]:
    """Measure what this machine decodes and what it computes, and say what to do about it.

    Args:
        config: The job's config: that of training, and how long to measure.
        process: This process; there may be no others.

    Returns:
        All numbers, rates in images per second, and the advice; JSON of it goes to `report`.

    Raises:
        InputError: Training would refuse these settings, or there are several processes, or the
            report can't be written.
    """
    process.require_alone(
        "loader_report",
        ". Of several processes on a machine each has its share of the cores: read the line of so "
        "many threads",
    )
    path = None if config.report is None else Path(config.report)
    if path is not None:  # before a minute is spent on measuring
        check_output_file("report", path, makes_folders=False)
    images: ImageData = build(config.data.source)
    with closing(training_loader(config, images, process)) as loader:
        decoder = loader.decoder
    threads = max(1, decoding_threads(config.data, process))
    result: dict[str, Any] = {
        "model": config.model.name,
        "width": config.width,
        "data": config.data.name,
        "train_images": len(images.train),
        "image_size": config.data.image_size,
        "global_batch_size": config.data.global_batch_size,
        "device": str(process.device),
        "precision": config.runtime.precision,
        "cores": process.cpus,
        "threads": threads,
        "workers": config.data.workers,
        "seconds": config.seconds,
        "decoder": decoder,
        "decode": {},
        "other_decoders": {},
        "packing": None,
    }
    step = _Step(config, images, process)
    entries = _entries(config, images, process, result)
    speeds: dict[tuple[str, str], _Speed] = {}
    # Each measurement has epochs of its own, so that none finds the files of another in memory.
    epochs = itertools.count(0, 1000)
    taken = _Speed(0, 0.0, 0.0)
    for turn in range(1, TURNS + 1):
        say(f"measuring, turn {turn} of {TURNS} ...")
        taken += step.speed(config.seconds / TURNS)
        for key, entry in entries.items():
            speed = entry.speed(config, process, config.seconds / TURNS, next(epochs))
            speeds[key] = speeds[key] + speed if key in speeds else speed
    result["step"] = taken.rate
    result |= _compared(entries, speeds, result)
    result["advice"] = advice(result)
    say(render(result))
    if path is not None:
        with writable(f"report={path}"):
            write_whole(path, json.dumps(result, indent=2))
        say(f"all numbers: {path}")
    return result


# ---- measuring ----


@dataclass(frozen=True)
class _Speed:
    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    def over(self, other: "_Speed", by_clock: bool) -> float:
        """How many times as fast as the other one, by CPU time unless a device does the work."""
        if by_clock:
            return self.rate / other.rate
        return self.images * other.cpu_seconds / (other.images * self.cpu_seconds)

    def __add__(self, other: "_Speed") -> "_Speed":
        return _Speed(
            self.images + other.images,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
        )


@dataclass(frozen=True)
class _Entry:
    """Something to be decoded, and how."""

    data: ImageData
    threads: int
    decoder: str

    def speed(
        self, config: LoaderReportConfig, process: Process, seconds: float, epoch: int
    ) -> _Speed:
        """That of the training loader, if nobody lets it wait.

        Batches are small, or a few seconds would see too few of them, and the device's part of
        augmentation is left out, which belongs to the step.
        """
        size = min(len(self.data.train), max(16, 8 * self.threads))
        data = replace(
            config.data, workers=self.threads, decoder=self.decoder, global_batch_size=size
        )
        changed = replace(
            config,
            data=data,
            augment=replace(config.augment, mixup=0.0, cutmix=0.0),
            norm_batch=None,
            runtime=replace(config.runtime, micro_batch=None),
        )
        count = batches = 0
        loader = training_loader(changed, self.data, process)
        with closing(loader), closing(_endless(loader, epoch)) as stream:
            for _ in range(WARM_UP):
                next(stream)
            _wait_for(process.device)
            started, cpu_started = time.perf_counter(), time.process_time()
            for pixels, _ in stream:
                count, batches = count + len(pixels), batches + 1
                enough = time.perf_counter() - started >= seconds
                if enough and batches >= LEAST_BATCHES:
                    break
            _wait_for(process.device)
            cpu_seconds = time.process_time() - cpu_started
            return _Speed(count, time.perf_counter() - started, cpu_seconds)


def _entries(
    config: LoaderReportConfig, images: ImageData, process: Process, result: dict[str, Any]
) -> dict[tuple[str, str], _Entry]:
    """What is compared: numbers of threads, decoders, packings."""
    if isinstance(images.train, SyntheticImages):
        return {}
    threads, name = result["threads"], config.data.decoder
    entries = {
        ("threads", str(count)): _Entry(images, count, name)
        for count in thread_counts(process.cpus, threads)
    }
    for other in _other_decoders(config, images, process, result["decoder"]):
        entries["decoder", other] = _Entry(images, threads, other)
    if isinstance(images.train, EncodedClassImages):
        say("packing a sample in memory ...")
        for kind, sample in _packed(config, images.train, process.cpus).items():
            data = ImageData(sample, images.val, images.classes)
            entries["pack", kind] = _Entry(data, threads, name)
    return entries


def _compared(
    entries: dict[tuple[str, str], _Entry],
    speeds: dict[tuple[str, str], _Speed],
    result: dict[str, Any],
) -> dict[str, Any]:
    """The report's numbers on decoding."""
    threads, cores = result["threads"], result["cores"]
    if not entries:
        return {"wall": "step", "factor": None, "enough_threads": None, "needed_threads": None}
    chosen = speeds["threads", str(threads)]
    on_device = entries["threads", str(threads)].decoder == "nvjpeg"

    def share(speed: _Speed) -> float | None:
        if on_device:
            return None
        return speed.cpu_seconds / (speed.seconds * min(threads, cores))

    rates = {int(name): speed.rate for (what, name), speed in speeds.items() if what == "threads"}
    found = verdict(rates, result["step"], threads, cores)
    compared: dict[str, Any] = {
        "decode": {str(count): rate for count, rate in rates.items()},
        "cpu_share": share(chosen),
        "other_decoders": {
            name: {
                "images_per_second": speed.rate,
                "to_chosen": speed.over(chosen, on_device or name == "nvjpeg"),
            }
            for (what, name), speed in speeds.items()
            if what == "decoder"
        },
        "wall": found.wall,
        "factor": found.factor,
        "enough_threads": found.enough,
        "needed_threads": found.needed,
    }
    samples = {name: entry.data.train for (what, name), entry in entries.items() if what == "pack"}
    if samples:
        now, stored = speeds["pack", "now"], samples["now"]
        assert isinstance(stored, StoredImages)
        compared["packing"] = {
            "sample": len(stored),
            "already_indexed": stored.indexed,
            "cpu_share": share(now),
            "kinds": {
                kind: {
                    "images_per_second": speeds["pack", kind].rate,
                    "to_now": speeds["pack", kind].over(now, on_device),
                    "bytes_to_now": sample.size / stored.size,
                }
                for kind, sample in samples.items()
                if isinstance(sample, StoredImages)
            },
        }
    return compared


def thread_counts(cores: int, chosen: int) -> list[int]:
    """1, 2, 4, ..., all cores, and the number that training would use."""
    doubled = (2**power for power in range(cores.bit_length()))
    return sorted({*doubled, cores, chosen})


def _endless(loader: Loader, epoch: int) -> Generator[Batch, None, None]:
    """Batches of one epoch after the other; small data sets have short ones."""
    while True:
        for batch, made in enumerate(loader.epoch(epoch)):
            if batch == max(0, len(loader) - PREFETCH):
                loader.prefetch(epoch + 1)
            yield made
        epoch += 1


def _other_decoders(
    config: LoaderReportConfig, images: ImageData, process: Process, used: str
) -> list[str]:
    """Those that are installed, suit the data and are not in use already."""
    names = ["native", "simplejpeg", "torchvision", "pillow"]
    if not isinstance(images.train, EncodedImages):
        names = ["native", "pillow"]  # all but native leave arrays to Pillow
    elif process.device.type == "cuda" and config.augment.randaugment is None:
        names.append("nvjpeg")
    found = []
    for name in names:
        try:
            with closing(open_decoder(name, 1, process.device)) as decoder:
                if decoder.description != used:
                    found.append(name)
        except InputError:
            continue
    return found


class _Step:
    """Training steps on one batch, from the host's pixels on."""

    def __init__(self, config: LoaderReportConfig, images: ImageData, process: Process) -> None:
        data, device, classes = config.data, process.device, len(images.classes)
        self.device, self.size = device, data.global_batch_size
        network, _ = new_network(config, classes, process)
        self.network = network
        self.average = averages(network, config)
        optimizer = new_optimizer(network, config)
        set_learning_rate(optimizer, 0.0)  # the same work; the loss of one batch stays finite
        precision = Precision(config.runtime.precision, device)
        self.update = new_update(network, optimizer, precision, config, process)
        train_mode(network, config)
        self.loss = SmoothedCrossEntropy(config.label_smoothing)
        self.to_device = device_batches(data, process, config.runtime.channels_last)
        self.augment = device_augment(config, process)
        self.mix = mixing(config, classes)
        shape = (self.size, data.image_size, data.image_size, 3)
        source = generator("loader_report", config.seed)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)
        labels = torch.randint(classes, (self.size,), generator=source)
        if device.type == "cuda":
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        self.batch = pixels, labels
        self.warm = False

    def speed(self, seconds: float) -> _Speed:
        """The speed of steps that take about this many seconds.

        Raises:
            InputError: The device's memory does not hold a batch.
        """
        try:
            if not self.warm:
                self._run(WARM_UP)
                self.warm = True
            one = self._run(1)
            return self._run(max(1, round(seconds / one.seconds)))
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"data.global_batch_size={self.size}: expected a batch that fits the memory of "
                f"{self.device}, it does not; set runtime.micro_batch to a divisor of it, as "
                "training will need"
            ) from error

    def _run(self, steps: int) -> _Speed:
        """The device is waited for at the end only, as in training."""
        _wait_for(self.device)
        started, cpu_started = time.perf_counter(), time.process_time()
        ready = itertools.repeat(self.batch, steps)
        for number, batch in enumerate(self.to_device.ahead(ready)):
            inputs, labels = self.to_device(*batch, self.augment.at(0, number))
            inputs, targets = self.mix(inputs, labels, 0, number)
            self.update((inputs, targets, labels), self.loss)
            if self.average is not None:
                self.average.update(self.network, number + 1)
        _wait_for(self.device)
        seconds = time.perf_counter() - started
        return _Speed(steps * self.size, seconds, time.process_time() - cpu_started)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# ---- what packing would bring ----


Stored = tuple[bytes | memoryview, np.ndarray | None]
"""An encoded image and the lengths of its restart segments."""


class StoredImages(ClassTargets):
    """Encoded images in memory.

    Args:
        stored: The encoded images, and the lengths of their restart segments, uint16; None or
            empty: no index.
        labels: Class indices.
    """

    def __init__(self, stored: Sequence[Stored], labels: Sequence[int]) -> None:
        self.labels = np.array(labels, np.int64)
        self.data = [np.array(np.frombuffer(data, np.uint8)) for data, _ in stored]
        self.tables = [
            np.array(table, np.uint16) if table is not None and len(table) else None
            for _, table in stored
        ]
        self.items = np.zeros(len(stored), ITEM)
        for item, one, table in zip(self.items, self.data, self.tables, strict=True):
            item["data"], item["length"] = one.ctypes.data, len(one)
            if table is not None:
                item["segments"], item["num_segments"] = table.ctypes.data, len(table)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return decode_bytes(self.read(index), self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        """Its number in the sample."""
        return f"image {index} of the sample"

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image, not copied."""
        return self.data[index].data

    def segments(self, index: int) -> np.ndarray | None:
        """Lengths of the restart segments; None: no index."""
        return self.tables[index]

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Addresses of the encoded bytes of images."""
        return Located(self.items[np.asarray(indices, np.int64)], [self.data, self.tables])

    @property
    def indexed(self) -> float:
        """Share of the images that have a restart index."""
        return sum(table is not None for table in self.tables) / len(self)

    @property
    def size(self) -> int:
        """Bytes of images and indices."""
        tables = sum(table.nbytes for table in self.tables if table is not None)
        return tables + sum(len(one) for one in self.data)


def _packed(
    config: LoaderReportConfig, train: EncodedClassImages, cores: int
) -> dict[str, StoredImages]:
    """A sample of the images, as it is and as packs would store it."""
    count = min(config.sample, len(train))
    indices = (np.arange(count) * len(train) // count).tolist()
    kinds = {"short_side": PackRecipe("short_side", PACKED_SIDE, PACKED_QUALITY, "error")}
    if restart.available():
        kinds["restart"] = PackRecipe("restart", None, PACKED_QUALITY, "error")

    def versions(index: int) -> dict[str, Stored] | None:
        try:
            segments = train.segments(index) if isinstance(train, HasRestarts) else None
            found: dict[str, Stored] = {"now": (train.read(index), segments)}
            for kind, recipe in kinds.items():
                record = store(train, index, recipe).record
                assert record is not None  # what can't be decoded is an error
                found[kind] = record.data, record.segments
            return found
        except InputError:
            if config.data.on_bad_image == "error":
                raise
            return None

    with ThreadPoolExecutor(cores) as pool:
        made = list(zip(indices, pool.map(versions, indices), strict=True))
    good = [(index, one) for index, one in made if one is not None]
    if not good:
        raise InputError(
            f"data.root={config.data.root}: expected images that can be read, found none among "
            f"{count} of the training split; replace them"
        )
    labels = [int(train.labels[index]) for index, _ in good]
    samples = {
        kind: StoredImages([one[kind] for _, one in good], labels)
        for kind in ("now", "restart", "short_side")
        if kind == "now" or kind in kinds
    }
    if samples["now"].indexed > 0.5:
        samples.pop("restart", None)  # has it already
    return samples


# ---- saying it ----


def advice(result: dict[str, Any]) -> list[str]:
    """Plain sentences on what was measured.

    Args:
        result: What `loader_report` returns, as far as it is known.
    """
    step, threads = result["step"], result["threads"]
    if not result["decode"]:
        return [
            f"There is nothing to decode: training re-uses one ready batch, so the step is all "
            f"there is, {step:,.0f} images/s."
        ]
    decode, factor = result["decode"][str(threads)], result["factor"]
    reached = f"{_threads(threads)} {decode:,.0f} images/s"
    if result["wall"] == "decoding":
        lines = [
            f"Decoding is the wall: by {reached} are decoded, and the step would take "
            f"{step:,.0f}, {factor:.2f} times as many."
        ]
    else:
        lines = [
            f"The step is the wall: it takes {step:,.0f} images/s, and by {reached} are decoded, "
            f"{factor:.2f} times as many. Faster loading alone would bring nothing."
        ]
    cores, percent = result["cores"], round(100 * (MARGIN - 1))
    if result["enough_threads"] is not None:
        lines.append(
            f"{_threads(result['enough_threads']).capitalize()} would be enough to decode "
            f"{percent} % more than the step takes (data.workers={result['enough_threads']})."
        )
    else:
        lines.append(
            f"All {cores} cores are not enough to decode {percent} % more than the step takes: at "
            f"the rate of one of {cores} threads it would need about {result['needed_threads']}."
        )
    if result["device"] == "cpu":
        both = 1 / (1 / result["decode"][str(cores)] + 1 / step)
        lines.append(
            f"The network computes on the same {cores} cores, so decoding and computing take time "
            f"from each other: expect about {both:,.0f} images/s of both together, not the lower "
            "of the two rates."
        )
    if result["workers"] == 0:
        lines.append(
            "data.workers=0 decodes by one thread while the step waits: set data.workers=null to "
            "decode ahead."
        )
    return [*lines, *_better_decoder(result), *_idle(result), *_packing_advice(result)]


def _better_decoder(result: dict[str, Any]) -> list[str]:
    ratios = {name: one["to_chosen"] for name, one in result["other_decoders"].items()}
    best = max(ratios, key=lambda name: ratios[name], default=None)
    if best is None or ratios[best] < NOTABLE:
        return []
    return [
        f"data.decoder={best} decodes {ratios[best]:.2f} times as fast as {result['decoder']} "
        "does; pixels differ a little between decoders."
    ]


def _idle(result: dict[str, Any]) -> list[str]:
    """Why decoding did not get the time of its threads, if so."""
    packing, files = result["packing"], result["cpu_share"]
    memory = packing["cpu_share"] if packing else files
    where = f"of {_threads(min(result['threads'], result['cores']))}"
    if files is None or files >= IDLE:
        return []
    if memory < IDLE:
        return [
            f"Decoding got only {100 * files:.0f} % of the time {where}, from memory as well: "
            "other programs seem to have the cores. Measure again when the machine is quiet."
        ]
    return [
        f"Decoding used only {100 * files:.0f} % of the time {where}, and {100 * memory:.0f} % "
        "from memory: it waits for files. More threads, a faster disk or a pack's few large files "
        "may help."
    ]


def _packing_advice(result: dict[str, Any]) -> list[str]:
    packing, lines = result["packing"], []
    if packing is None:
        return ["The images lie in memory as pixels: they are only resized, and can't be packed."]
    kinds = packing["kinds"]
    if packing["already_indexed"] > 0.5:
        lines.append("This pack has its restart index already; mode=restart has nothing to add.")
    elif "restart" not in kinds:
        lines.append(
            "What mode=restart would bring can't be measured: the native decoder was not built "
            "with libjpeg-turbo here."
        )
    texts = {
        "restart": "mode=restart (the same pixels)",
        "short_side": f"mode=short_side size={PACKED_SIDE} quality={PACKED_QUALITY} (training "
        "sees other, smaller images)",
    }
    for kind in (kind for kind in texts if kind in kinds):
        to_now, size = kinds[kind]["to_now"], kinds[kind]["bytes_to_now"]
        speed = f"is decoded {to_now:.2f} times as fast"
        if to_now < NOTABLE:
            speed = f"would not be worth it for speed ({to_now:.2f} times as fast)"
        lines.append(f"A pack with {texts[kind]} {speed}, with {size:.2f} times the bytes.")
    if result["wall"] == "step":
        lines.append("As long as the step is the wall, packing frees cores and does little else.")
    elif any(kinds[kind]["to_now"] >= NOTABLE for kind in texts if kind in kinds):
        lines.append("Packs are made by scripts/prepare_imagenet.py (docs/packs.md).")
    return lines


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def render(result: dict[str, Any]) -> str:
    """The tables and the advice as text."""
    lines = [
        "",
        f"{result['model']} width {result['width']:g} on {result['data']}: "
        f"{result['train_images']:,} training images, {result['image_size']} px, batch "
        f"{result['global_batch_size']}, {result['device']}, {result['precision']}, "
        f"{result['cores']} cores",
        "",
        f"{'images/s':>42}",
        f"{'step alone, without loading':<30}{result['step']:>12,.1f}",
    ]
    if result["decode"]:
        lines.append(f"decoding by {result['decoder']}")
        for count, rate in result["decode"].items():
            per = rate / int(count)
            lines.append(f"{'  ' + _threads(int(count)):<30}{rate:>12,.1f}{per:>12,.1f} a thread")
    if result["other_decoders"]:
        lines.append(f"{'other decoders, ' + _threads(result['threads']):<30}{'':>12}{'to it':>12}")
    for name, one in result["other_decoders"].items():
        rate, ratio = one["images_per_second"], one["to_chosen"]
        lines.append(f"{'  ' + name:<30}{rate:>12,.1f}{ratio:>12.2f}")
    if result["packing"] is not None:
        packing = result["packing"]
        lines += [
            "",
            f"{packing['sample']} images from memory, {_threads(result['threads'])}",
            f"{'':<30}{'images/s':>12}{'to now':>12}{'bytes':>12}",
        ]
        names = {
            "now": "as they are",
            "restart": "restart index",
            "short_side": f"short side {PACKED_SIDE}, q{PACKED_QUALITY}",
        }
        for kind, one in packing["kinds"].items():
            lines.append(
                f"{'  ' + names[kind]:<30}{one['images_per_second']:>12,.1f}{one['to_now']:>12.2f}"
                f"{one['bytes_to_now']:>12.2f}"
            )
    lines += ["", *(f"- {line}" for line in result["advice"])]
    lines.append(
        f"Figures are of {result['seconds']:g} s each, on this machine as busy as it is now; "
        "ratios of decoders and packings are by CPU time. Read differences below 10 % as ties."
    )
    return "\n".join(lines)
