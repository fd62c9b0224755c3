"""Our input pipeline against named ones, in one run: prints ratios.

    python benchmarks/loader.py [--transform train|eval] [--cores 1|2] [--storage original,q90]
    python benchmarks/loader.py --chain [overrides of train.py ...]

Baseline: torchvision's usual code (ImageFolder, Pillow, v1 transforms to float32, DataLoader) on
the original files. The others are what their projects recommend (loader_peers.py); those that are
not installed are named and left out. All deliver batches of 128 images of 224 px, the same ones in
the same order: random resized crop, bilinear, and flip, or for `eval` resized to 256 and cropped at
the centre. timm's defaults add colour jitter; there is a row without it. Which boxes are cropped is
drawn by each contestant for itself. What they deliver differs as well, and is part of the result:
normalised float32 (torchvision, timm), or uint8 to be normalised on the device (all others).

Every contestant is a process of its own, pinned to the same core or cores, started and warmed up
(imports, compilation, nine batches) before anything counts, and stopped by SIGSTOP while it is not
its turn. Rounds go A B C ... A B C. An entry is the median over rounds of the ratio to the baseline
*in the same round*, with quartiles, since the speed of a machine drifts. What is compared is images
per CPU-second of all processes of a contestant, user and system, to the nanosecond: on a machine
that others use at the same time this is steadier than the clock, which is printed too. Ratios
repeat within about 10 %: read smaller differences as ties; absolute figures move by 20 % and more.
Everything lies in the page cache: disks are not measured.

Memory is the highest seen after a round: all that the processes of a contestant hold for
themselves and share with each other, and once what they map of files (libraries, packs); unlike
the sum of PSS, it does not depend on who else runs. Most of it is torch, which all import:
`added` is what comes on top. Short peaks within a round are missed.

Data: `--data` (default $MOBILENEXT_DATA or ../shared/data), subfolder imagenet_samples: original
ImageNet JPEGs in class folders, repeated to fill the list. Storage variants made from them:

    original   the files, untouched
    lossless   our pack with an index of restart segments, the same pixels; ours only
    q90        same size, encoded anew with quality 90 and 4:2:0; the same bytes as files for peers
               and as a pack for ours; FFCV writes its own .beton of the same images and quality
    short256   short side 256, quality 90, 4:2:0; files for peers, the same bytes as a pack for ours

`entropy decoding alone` is the bound of our decoder: the Huffman decoding of the same crops.

`--chain` measures what a training run gets of it: images per second of `python train.py` from
untouched JPEGs on two cores, width 0.35 at 64 px, against the plain loop of loop.py with the same
network and optimiser, fed by torchvision's DataLoader with two processes. Each round starts both
anew; the clock runs from the first epoch's begin to its end. Linux only.
"""

import argparse
import importlib.util
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL.Image
from loader_peers import BASELINE, BATCH, CONTESTANTS, FLOOR, Job

from mobilenext.data.loader import epoch_order

HERE = Path(__file__).resolve().parent
STORAGES = ("original", "lossless", "q90", "short256")
WARM_UP_SECONDS = 600.0
DISCARDED = 8
"""Batches of a warm-up: FFCV, for one, is slow until it has touched all the memory it set aside."""
SLACK = 16
"""Batches at the end of the walk that nobody asks for, so that no one's queue runs dry."""

PACKAGES = (
    *("torch", "torchvision", "timm", "pillow", "simplejpeg", "opencv-python-headless"),
    *("nvidia-dali-cuda130", "spdl", "ffcv"),
)

TARGETS = (
    ("ours native", "original", BASELINE, "original", 3.3),
    ("ours native", "lossless", BASELINE, "original", 4.2),
    ("ours native", "short256", BASELINE, "original", 8.5),
    ("ours native", "q90", "FFCV", "q90", 1.8),
    ("ours wheels", "lossless", BASELINE, "original", 2.7),
)
"""Contestant and storage, what it is compared with, and the least ratio."""
MEMORY_TARGET = ("ours native", "timm", 0.5)


class LeftOutError(Exception):
    """A contestant can't take part; the message says why."""


# ---- the data ----


class Storage:
    """The variants of the data, made when they are first asked for."""

    def __init__(self, samples: Path, work: Path) -> None:
        self.work = work
        self.original = work / "original"
        self.original.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            link = self.original / split
            if not link.exists():
                link.symlink_to(samples.resolve(), target_is_directory=True)
        self.problems: dict[Path, str] = {}

    def place(self, contestant: str, storage: str) -> Path:
        """What a contestant opens."""
        if storage == "original":
            return self.original
        if contestant == "FFCV":
            return self._run("q90.beton", [str(HERE / "loader_peers.py"), "beton", self.original])
        if storage == "lossless":
            return self._pack(self.original, "lossless", "restart")
        files = self._files(storage)
        ours = contestant.startswith("ours") or contestant == FLOOR
        return self._pack(files, f"{storage}-pack", "copy") if ours else files

    def _files(self, storage: str) -> Path:
        """Class folders of re-encoded files."""
        target = self.work / storage
        if target.exists():
            return target
        partial = self.work / f"{storage}.partial"
        for path in sorted(self.original.glob("train/*/*")):
            copy = partial / "train" / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            with PIL.Image.open(path) as opened:
                image = opened.convert("RGB")
            if storage == "short256":
                scale = 256 / min(image.size)
                size = (max(256, round(image.width * scale)), max(256, round(image.height * scale)))
                image = image.resize(size, PIL.Image.Resampling.BICUBIC)
            image.save(copy, "JPEG", quality=90, subsampling="4:2:0", optimize=True)
        (partial / "val").symlink_to("train", target_is_directory=True)
        partial.rename(target)
        return target

    def _pack(self, source: Path, name: str, mode: str) -> Path:
        script = HERE.parent / "scripts" / "prepare_imagenet.py"
        target = self.work / name
        return self._run(name, [script, f"source={source}", f"output={target}", f"mode={mode}"])

    def _run(self, name: str, command: Sequence[str | Path]) -> Path:
        """Run what writes a file or folder, once; `beton` wants its name as the last argument."""
        target, done = self.work / name, self.work / f"{name}.done"
        if done.exists():
            return target
        if target not in self.problems:
            line = [sys.executable, *map(str, command)]
            if "beton" in line:
                line.append(str(target))
            ended = subprocess.run(line, capture_output=True, text=True, check=False)
            if ended.returncode == 0:
                done.touch()
                return target
            self.problems[target] = _last_line(ended.stderr)
        raise LeftOutError(f"its data could not be prepared: {self.problems[target]}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


# ---- the processes ----


@dataclass
class Round:
    """What a contestant did in a round; a floor has no wall rate."""

    cpu_rate: float
    wall_rate: float | None = None


@dataclass
class Running:
    """A contestant: a process group that stands still between rounds."""

    name: str
    storage: str
    process: subprocess.Popen[str]
    log: Path
    first: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    megabytes: float = 0.0

    def warm_up(self) -> None:
        """Wait for the first batches, then stop it."""
        self.first = self._answer()
        self._stop()

    def measure(self, images: int) -> None:
        """One round."""
        before = self._cpu_seconds()
        os.killpg(self.process.pid, signal.SIGCONT)
        assert self.process.stdin is not None
        print(images, file=self.process.stdin, flush=True)
        answer = self._answer()
        self._stop()
        if "images_per_cpu_second" in answer:
            self.rounds.append(Round(answer["images_per_cpu_second"]))
            return
        seconds = self._cpu_seconds() - before
        self.rounds.append(Round(answer["images"] / seconds, answer["images"] / answer["seconds"]))
        self.megabytes = max(self.megabytes, self._memory())

    @property
    def added(self) -> float:
        """Megabytes beyond those of a process that has only imported torch."""
        return self.megabytes - self.first["with_torch"]

    def kill(self) -> None:
        """End all of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], WARM_UP_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            why = _last_line(self.log.read_text()) if ready else f"silent for {WARM_UP_SECONDS:g} s"
            raise LeftOutError(f"could not be run: {why}")
        return json.loads(line)

    def _members(self) -> Iterator[tuple[int, list[str]]]:
        """Each process of the group and the fields of its stat behind the name."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    text = Path("/proc", entry, "stat").read_text()
                except OSError:  # it has just ended
                    continue
                fields = text.rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid:
                    yield int(entry), fields

    def _cpu_seconds(self) -> float:
        """User and system time of all threads and processes, with those that have ended."""
        ticks = os.sysconf("SC_CLK_TCK")
        total = 0.0
        for pid, fields in self._members():
            # clock_getcpuclockid(3) by hand: nanoseconds, where stat has hundredths of a second.
            total += time.clock_gettime((~pid << 3) | 2)
            total += (int(fields[13]) + int(fields[14])) / ticks  # children it has waited for
        return total

    def _memory(self) -> float:
        """Megabytes; see the top of this file."""
        own, mapped = 0, 0
        for pid, _ in self._members():
            entries = {}
            for name in ("smaps_rollup", "status"):
                for line in Path("/proc", str(pid), name).read_text().splitlines():
                    key, _, value = line.partition(":")
                    entries[key] = value.split()
            own += int(entries["Pss_Anon"][0]) + int(entries["Pss_Shmem"][0])
            mapped = max(mapped, int(entries["RssFile"][0]))
        return (own + mapped) / 1024


def _missing(contestant: str) -> str | None:
    """Why a contestant can't take part, before it is started."""
    entry = CONTESTANTS[contestant]
    for module in entry.needs:
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        if found is None:
            return f"not installed: {entry.install}"
    return None


def _start(job: Job, storage: str, cores: Sequence[int], work: Path) -> Running:
    stem = work / f"{storage}-{job.contestant}".replace(" ", "_").replace(",", "")
    job_file, log = stem.with_suffix(".json"), stem.with_suffix(".log")
    job_file.write_text(json.dumps(asdict(job)))
    threads = {"OMP_NUM_THREADS": str(len(cores))}
    pinned = ["taskset", "-c", ",".join(map(str, cores))]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*pinned, sys.executable, HERE / "loader_peers.py", job_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | threads,
            process_group=0,  # of this session: if this process dies, the kernel ends the stopped
        )
    return Running(job.contestant, storage, process, log)


@contextmanager
def _contestants(
    names: Sequence[str], storage: str, data: Storage, arguments: argparse.Namespace
) -> Iterator[list[Running]]:
    """Start and warm up; what can't be started is said and left out."""
    cores = sorted(os.sched_getaffinity(0))[-arguments.cores :]
    count = len(list(data.original.glob("train/*/*")))
    batches = 1 + DISCARDED + arguments.rounds * (arguments.images // BATCH) + SLACK
    train = arguments.transform == "train"
    order = epoch_order(batches * BATCH, 0, 0).tolist() if train else range(batches * BATCH)
    walk = [index % count for index in order]
    running: list[Running] = []
    try:
        for name in names:
            own = "original" if name == BASELINE else storage
            try:
                missing = _missing(name)
                if missing:
                    raise LeftOutError(missing)
                place = str(data.place(name, own))
                job = Job(name, place, walk, train, arguments.cores, DISCARDED)
                running.append(_start(job, own, cores, data.work))
                running[-1].warm_up()
            except LeftOutError as reason:
                print(f"  {name}: {reason}", flush=True)
                if running and running[-1].name == name:
                    running.pop().kill()
        yield running
    finally:
        for each in running:
            each.kill()


# ---- the result ----


def _ratios(over: Running, under: Running, wall: bool = False) -> list[float]:
    """Round by round."""
    pairs = zip(over.rounds, under.rounds, strict=True)
    if wall:
        return [a.wall_rate / b.wall_rate for a, b in pairs if a.wall_rate and b.wall_rate]
    return [a.cpu_rate / b.cpu_rate for a, b in pairs]


def _quartiles(values: Sequence[float]) -> list[float]:
    return (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else [values[0]] * 3
    )


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = _quartiles(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def _table(running: Sequence[Running]) -> None:
    baseline = running[0]
    print(f"  {'':24}{'delivers':14}{'images/CPU-s':>18}{'ratio':>21}{'images/s':>10}", end="")
    print(f"{'ratio':>7}{'MB':>7}{'added':>7}")
    for each in running:
        rate = _spread([r.cpu_rate for r in each.rounds], 0)
        ratio = _spread(_ratios(each, baseline), 2)
        print(f"  {each.name:24}{each.first['kind']:14}{rate:>18}{ratio:>21}", end="")
        wall = [r.wall_rate for r in each.rounds if r.wall_rate is not None]
        if not wall:
            print()
            continue
        clock = statistics.median(_ratios(each, baseline, wall=True))
        print(f"{statistics.median(wall):>10.0f}{clock:>7.2f}", end="")
        print(f"{each.megabytes:>7.0f}{each.added:>7.0f}")


def _verdict(value: float, wanted: float) -> str:
    return "met" if value >= wanted else f"missed by {wanted - value:.2f}"


def _targets(tables: Sequence[Sequence[Running]]) -> None:
    """Which of the targets are met, of those that were measured."""
    lines = []
    for table in tables:
        found = {(each.name, each.storage): each for each in table}
        for name, storage, other, other_storage, wanted in TARGETS:
            pair = found.get((name, storage)), found.get((other, other_storage))
            if pair[0] is not None and pair[1] is not None:
                value = statistics.median(_ratios(pair[0], pair[1]))
                text = f"{name} on {storage} / {other} on {other_storage}"
                lines.append(f"{text:52} {value:5.2f}, wanted {wanted}: {_verdict(value, wanted)}")
        ours, theirs = (found.get((name, "original")) for name in MEMORY_TARGET[:2])
        if ours is not None and theirs is not None:
            share, most = ours.megabytes / theirs.megabytes, MEMORY_TARGET[2]
            verdict = "met" if share < most else f"missed by {share - most:.2f}"
            text = f"memory of {ours.name} / {theirs.name}"
            lines.append(f"{text:52} {share:5.2f}, wanted below {most}: {verdict}")
            added = ours.added / theirs.added
            lines.append(f"{'the same, of what is added to torch':52} {added:5.2f}")
    if lines:
        print("targets\n  " + "\n  ".join(lines))


def compare(arguments: argparse.Namespace, samples: Path, work: Path) -> None:
    """Rounds over all contestants, one storage after the other."""
    data = Storage(samples, work)
    chosen = arguments.only or list(CONTESTANTS)
    tables = []
    for storage in arguments.storage:
        names = [
            name
            for name, entry in CONTESTANTS.items()
            if name == BASELINE or (name in chosen and storage in entry.storages)
        ]
        title = f"{arguments.transform}, {storage}, {arguments.cores} core(s), "
        title += f"{arguments.rounds} rounds of {arguments.images} images"
        print(f"{title}; ratios to {BASELINE} on original", flush=True)
        with _contestants(names, storage, data, arguments) as running:
            if not running or running[0].name != BASELINE:
                raise SystemExit("the baseline can't be run: see above")
            if len(running) == 1 and storage != "original":
                print("  nothing to compare\n", flush=True)
                continue
            for _ in range(arguments.rounds):
                _round(running, arguments.images)
        _table(running)
        if arguments.verbose:
            _show_batches(running)
        print(f"  load {os.getloadavg()[0]:.1f}\n", flush=True)
        tables.append(running)
    _targets(tables)


def _round(running: list[Running], images: int) -> None:
    """One round; who fails in it is left out from then on."""
    for each in list(running):
        try:
            each.measure(images)
        except LeftOutError as reason:
            if each.name == BASELINE:
                raise SystemExit(f"the baseline failed: {reason}") from reason
            print(f"  {each.name}: {reason}", flush=True)
            running.remove(each)
            each.kill()


def _show_batches(running: Sequence[Running]) -> None:
    print("  first batch: range as delivered, means of R, G, B of 255; images/CPU-s of each round")
    for each in running:
        if "range" in each.first:
            low, high = each.first["range"]
            means = ", ".join(f"{value:.0f}" for value in each.first["means"])
            rates = " ".join(f"{r.cpu_rate:.0f}" for r in each.rounds)
            print(f"  {each.name:24}{low:.2f} to {high:.2f}; {means}; {rates}")


# ---- the chain ----

CHAIN = (
    *("data=imagefolder", "width=0.35", "data.image_size=64", "data.global_batch_size=128"),
    *("data.eval_interpolation=bilinear", "data.workers=2", "epochs=1", "schedule=constant"),
    *("augment.color_jitter=[0,0,0,0]", "augment.interpolation=bilinear", "runtime.device=cpu"),
    "runtime.threads=1",  # with one for each core, both loops lose to waiting for each other
)
REPEATS = 6


def chain(arguments: argparse.Namespace, samples: Path, work: Path) -> None:
    """Alternating rounds of whole training runs, each in a process of its own."""
    root = work / "chain"
    for path in sorted(samples.glob("*/*")):
        for split, times in (("train", REPEATS), ("val", 1)):
            folder = root / split / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(times):
                link = folder / f"{path.stem}_{number}{path.suffix}"
                if not link.exists():
                    link.symlink_to(path.resolve())
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    overrides = [*CHAIN, f"data.root={root}", *arguments.overrides]
    ratios = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            line = ["taskset", "-c", cores, sys.executable]
            theirs = _last_line(_checked([*line, HERE / "loader.py", "--chain-peer", *overrides]))
            _checked([*line, HERE.parent / "train.py", f"output_dir={folder}", *overrides])
            (result,) = Path(folder).glob("*/*/result.json")
            mine = json.loads(result.read_text())["images_per_second"]
        ratios.append(mine / float(theirs))
        print(
            f"round {number + 1}: ours {mine:,.0f}, plain {float(theirs):,.0f} images/s", flush=True
        )
    print(f"training from untouched JPEGs on two cores: ours / plain = {_spread(ratios, 2)}")


def _checked(command: Sequence[str | Path]) -> str:
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{Path(command[4]).name} failed:\n{ended.stderr}")
    return ended.stdout


def chain_peer(overrides: Sequence[str]) -> None:
    """Print the images per second of loop.py's plain loop on torchvision's ImageFolder."""
    from hydra import compose, initialize_config_dir
    from loop import peer
    from torchvision.datasets import ImageFolder

    from mobilenext.config import TrainConfig, register, typed
    from mobilenext.data import ImageData
    from mobilenext.main import CONFIG_DIR
    from mobilenext.runtime.distributed import process_group
    from mobilenext.runtime.torch_settings import configure_torch

    register(TrainConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = typed(compose("train", list(overrides)))
    configure_torch(config.runtime.threads, config.runtime.deterministic)
    # Our loaders would ask it for `targets(indices)`; the plain loop only indexes it.
    split: Any = ImageFolder(f"{config.data.root}/train")
    images = ImageData(split, split, tuple(split.classes))
    with process_group(config.runtime.device, 10) as process:
        print(peer(config, images, process))


# ---- the command line ----


def _names(known: Sequence[str], text: str) -> list[str]:
    """Comma-separated names; those of contestants may have commas themselves."""
    names, rest = [], text
    while rest:
        fitting = [name for name in known if f"{rest},".startswith(f"{name},")]
        if not fitting:
            raise argparse.ArgumentTypeError(f"expected some of {'; '.join(known)}, got {rest!r}")
        name = max(fitting, key=len)
        names.append(name)
        rest = rest[len(name) + 1 :].strip()
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = os.environ.get("MOBILENEXT_DATA", str(HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--work", type=Path, help="keep and reuse the storage variants here")
    parser.add_argument("--transform", choices=("train", "eval"), default="train")
    parser.add_argument("--cores", type=int, choices=(1, 2), default=1)
    parser.add_argument("--storage", type=lambda text: _names(STORAGES, text), default=STORAGES)
    parser.add_argument("--only", type=lambda text: _names(list(CONTESTANTS), text))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=2 * BATCH, help="a round, by batches of 128")
    parser.add_argument("--verbose", action="store_true", help="first batches and all rounds")
    parser.add_argument("--chain", action="store_true")
    parser.add_argument("--chain-peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="of train.py, with --chain")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.images < BATCH or arguments.images % BATCH:
        parser.error(f"expected at least one round, and a multiple of {BATCH} images")
    if len(os.sched_getaffinity(0)) < arguments.cores:
        parser.error(f"this process may not use {arguments.cores} cores")
    return arguments


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    cores = f"{os.cpu_count()} cores of {models[0] if models else 'an unknown processor'}"
    return f"{cores}, load {os.getloadavg()[0]:.1f}; {', '.join(versions)}"


def main() -> None:  # noqa: D103
    arguments = _arguments()
    if arguments.chain_peer:
        chain_peer(arguments.overrides)
        return
    samples = arguments.data / "imagenet_samples"
    if not samples.is_dir():
        raise SystemExit(
            f"{samples}: expected class folders of ImageNet's JPEGs, found none; give --data or "
            "set MOBILENEXT_DATA to the folder that has imagenet_samples"
        )
    for path in samples.glob("*/*"):
        path.read_bytes()  # into the page cache
    print(_machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        (chain if arguments.chain else compare)(arguments, samples, work)


if __name__ == "__main__":
    main()
