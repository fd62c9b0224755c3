"""Our loader of images with boxes against torchvision's detection transforms: prints the ratios.

    python benchmarks/detection_loader.py --root VOCDEVKIT [--split 2007:trainval] [--rounds 9]
        [--images 224] [--size 320]

SSD's geometry: zoom-out up to four times, a crop that overlaps with an object, a flip, resized to
a square; uint8 pixels in batches of 32 and the boxes that are left. Photometric distortion is not
among it: ours is on the device. Peers are the transforms of torchvision's detection reference
(its preset "ssd"), RandomZoomOut, RandomIoUCrop, RandomHorizontalFlip, Resize,
ClampBoundingBoxes, SanitizeBoundingBoxes, without and with RandomPhotometricDistort, on images
that Pillow decodes and on tensors that torchvision.io decodes.

All read the same files in the same order, those of the first `--images` images (in whole batches,
again if there are fewer), with the same boxes, from the page cache. Crops are drawn by each one's
own rule: torchvision draws zoom-outs by the same one; its list of overlaps has 0.5 as well, and it
tries until a crop fits, where ours draws four overlaps at most. So what is seen, and what has to be
decoded, is alike on average only. More than half of torchvision's time goes into drawing crops.

Everything runs in this process, on one core: ours by `train_loader` with one worker, peers by a
plain loop that stacks, without the copies between processes that a DataLoader adds. Rounds go
A B C ... A B C; an entry is the median over rounds of images per CPU-second, or of their ratio *in
the same round*, with quartiles. `views alone` is what our draws and `targets alone` what our boxes
take of the time, as shares of ours. On a machine that others use read the ratios only; they repeat
within about 10 %.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from mobilenext.data import BoxImages, BoxTransform, train_loader, voc
from mobilenext.data.loader import epoch_order

BATCH = 32
ZOOM_OUT = 4.0
MEAN = (123, 117, 104)
"""Colour around images that are zoomed out, as the reference has it."""
BASELINE = "torchvision, Pillow"
OURS = "ours"
PACKAGES = ("torch", "torchvision", "pillow", "numpy")

Batches = Iterator[tuple[Any, Any]]


@dataclass
class Contestant:
    """An entry of the table.

    Attributes:
        name: What it is called.
        epoch: The batches of an epoch: pixels, and the boxes that are left.
        rates: Images per CPU-second, round by round.
        boxes: Boxes that are left of all images of all rounds.
        images: Images of all rounds.
    """

    name: str
    epoch: Callable[[int], Batches]
    rates: list[float] = field(default_factory=list)
    boxes: int = 0
    images: int = 0

    def measure(self, epochs: Sequence[int]) -> None:
        """One round: these epochs."""
        count, kept = 0, []
        started = time.process_time()
        for number in epochs:
            for pixels, boxes in self.epoch(number):
                count += len(pixels)
                kept.append(boxes)
        self.rates.append(count / (time.process_time() - started))
        self.images += count
        self.boxes += sum(map(_boxes, kept))


def _boxes(targets: Any) -> int:
    if isinstance(targets, torch.Tensor):  # ours are padded
        return int((targets[:, 1:, 4] >= 0).sum())
    return sum(len(one["boxes"]) for one in targets)


# ---- ours ----


def ours(images: BoxImages, size: int) -> tuple[Contestant, BoxTransform]:
    """The loader that trains detectors."""
    transform = BoxTransform(size, images.boxes, zoom_out=ZOOM_OUT, iou_crop=True, hflip=0.5)
    loader = train_loader(images, transform, seed=0, global_batch_size=BATCH, workers=1)
    return Contestant(f"{OURS}, {loader.decoder.split()[0]}", loader.epoch), transform


def parts(images: BoxImages, transform: BoxTransform, epochs: Sequence[int]) -> list[float]:
    """CPU-seconds of an image's view and of its targets, without pixels."""
    seconds, count = [0.0, 0.0], 0
    sizes = images.boxes.sizes.astype(np.int64)
    for number in epochs:
        for indices in order(images, number):
            started = time.process_time()
            views = transform.views(sizes[indices], indices, 0, number)
            between = time.process_time()
            transform.targets(images, indices, views)
            seconds[0] += between - started
            seconds[1] += time.process_time() - between
            count += len(indices)
    return [spent / count for spent in seconds]


def order(images: BoxImages, number: int) -> Iterator[np.ndarray]:
    """The images of each batch of an epoch, as our loader has them."""
    every = epoch_order(len(images), 0, number).numpy()
    for start in range(0, len(every) - BATCH + 1, BATCH):
        yield every[start : start + BATCH]


# ---- peers ----


def peer(images: BoxImages, size: int, backend: str, distorted: bool) -> Callable[[int], Batches]:
    """The transforms of torchvision in the order of its reference; resized at the end."""
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomPhotometricDistort()] if distorted else []
    steps += [
        v2.RandomZoomOut(fill=list(MEAN), side_range=(1.0, ZOOM_OUT)),
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(),
        v2.Resize([size, size], antialias=True),
        v2.ClampBoundingBoxes(),
    ]
    steps += [v2.PILToTensor()] if backend == "pil" else []
    transform = v2.Compose([*steps, v2.SanitizeBoundingBoxes()])
    kind: Any = tv_tensors.BoundingBoxes
    boxes = images.boxes

    def one(index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        path = str(images.path(index))
        if backend == "pil":
            image: Any = PIL.Image.open(path).convert("RGB")
            canvas = (image.height, image.width)
        else:
            image = tv_tensors.Image(decode_jpeg(read_file(path), ImageReadMode.RGB))
            canvas = tuple(image.shape[1:])
        mine = boxes.of(index)
        target = {
            "boxes": kind(torch.from_numpy(boxes.boxes[mine]), format="XYXY", canvas_size=canvas),
            "labels": torch.from_numpy(boxes.labels[mine].astype(np.int64)),
        }
        return transform(image, target)

    def epoch(number: int) -> Batches:
        for indices in order(images, number):
            pairs = [one(index) for index in indices.tolist()]
            pixels = torch.stack([image for image, _ in pairs])
            if pixels.shape != (len(pairs), 3, size, size) or pixels.dtype != torch.uint8:
                raise SystemExit(f"torchvision made {pixels.dtype} of shape {pixels.shape}")
            yield pixels, [target for _, target in pairs]

    return epoch


# ---- the result ----


def spread(values: Sequence[float], digits: int) -> str:
    """Median [quartiles]."""
    low, middle, high = [values[0]] * 3
    if len(values) > 1:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def ratios(over: Contestant, under: Contestant) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over.rates, under.rates, strict=True)]


def machine() -> str:
    """Processor, load and versions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    cores = f"{os.cpu_count()} cores of {models[0] if models else 'an unknown processor'}"
    return f"{cores}, load {os.getloadavg()[0]:.1f}; {versions}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, required=True, help="folder in VOC's layout")
    parser.add_argument("--split", default="2007:trainval", help="YEAR:SPLIT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=7 * BATCH, help="a round")
    parser.add_argument("--size", type=int, default=320, help="height and width in pixels")
    given = parser.parse_args()
    if given.rounds < 1 or given.images < BATCH or given.size < 1:
        parser.error(f"expected at least one round, {BATCH} images and one pixel")
    return given


def first_images(data: BoxImages, count: int) -> BoxImages:
    """The first images of a split, in whole batches, as a split of their own."""
    count = min(count, len(data)) // BATCH * BATCH
    if not count:
        raise SystemExit(f"--split: expected at least {BATCH} images, found {len(data)}")
    return BoxImages(data.root, data.paths[:count], data.boxes.taken(np.arange(count)))


def main() -> None:  # noqa: D103
    given = arguments()
    # torchvision 0.29 announces that TorchCodec will take over.
    warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = first_images(voc(given.root, [given.split], [given.split]).train, given.images)
    for index in range(len(images)):
        images.read(index)  # into the page cache
    mine, transform = ours(images, given.size)
    entries = [
        Contestant(BASELINE, peer(images, given.size, "pil", False)),
        Contestant("torchvision, tensors", peer(images, given.size, "tensor", False)),
        mine,
        Contestant("  Pillow, distorted", peer(images, given.size, "pil", True)),
        Contestant("  tensors, distorted", peer(images, given.size, "tensor", True)),
    ]
    epochs = -(-given.images // len(images))
    print(machine(), flush=True)
    print(
        f"{given.split}, {len(images)} images, {given.size} px, one core, {given.rounds} rounds of "
        f"{epochs * len(images)} images; ratios to {BASELINE}",
        flush=True,
    )
    shares: list[list[float]] = []
    for number in range(1 + given.rounds):
        some = range(number * epochs, (number + 1) * epochs)
        for each in entries:
            each.measure(some)
        shares.append([spent * mine.rates[-1] for spent in parts(images, transform, some)])
        if number == 0:  # imports, and memory that is touched for the first time
            shares.clear()
            for each in entries:
                each.rates.clear()
    print(f"  {'':24}{'images/CPU-s':>20}{'ratio':>21}{'boxes an image':>17}")
    for each in entries:
        rate, ratio = spread(each.rates, 0), spread(ratios(each, entries[0]), 2)
        print(f"  {each.name:24}{rate:>20}{ratio:>21}{each.boxes / each.images:>17.2f}")
    for name, values in zip(
        ("views alone", "targets alone"), zip(*shares, strict=True), strict=True
    ):
        print(f"  {name}: {spread(values, 3)} of the time of {mine.name}")
    print(f"  load {os.getloadavg()[0]:.1f}\n")
    for other in entries[:2]:
        print(f"{mine.name} / {other.name}: {spread(ratios(mine, other), 2)}")


if __name__ == "__main__":
    main()
