"""The contestants of loader.py; each runs in a process of its own: `loader_peers.py JOB.json`.

A contestant is a function from a `Job` to an endless-looking stream of batches, written as its
project documents it. All walk the same list of images. The protocol, one JSON line each way: the
process says what its first batch is like when it is warm, then answers each number of images asked
for with the seconds it took to deliver them.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZE, RESIZED, BATCH = 224, 256, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Job:
    """What a contestant has to do.

    Attributes:
        contestant: Key of `CONTESTANTS`.
        root: Folder with train/<class>/*, or a pack of ours, or a .beton.
        walk: Which image comes when: indices into the sorted files.
        train: Random resized crop and flip, or else resized and cropped at the centre.
        cores: Threads, or loader processes.
        discarded: Batches between the first, which is looked at, and those that count.
    """

    contestant: str
    root: str
    walk: list[int]
    train: bool
    cores: int
    discarded: int

    def files(self) -> list[str]:
        """The files in the order of the walk."""
        files = sorted(str(path) for path in Path(self.root, "train").glob("*/*"))
        return [files[index] for index in self.walk]


Stream = Iterator[Any]
"""Batches of pixels: tensors, (N, 3, H, W) or (N, H, W, 3)."""


@dataclass(frozen=True)
class Contestant:
    """An entry of the benchmark.

    Attributes:
        stream: Its function.
        needs: Modules without which it is left out.
        install: How to get them.
        storages: Which variants of the data it reads.
    """

    stream: Callable[[Job], Any]
    needs: tuple[str, ...] = ()
    install: str = ""
    storages: tuple[str, ...] = ("original",)


# ---- peers ----


def torchvision_v1(job: Job) -> Stream:
    """ImageFolder, Pillow, v1 transforms to normalised float32, DataLoader: the usual code."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    if job.train:
        steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    else:
        steps = [transforms.Resize(RESIZED), transforms.CenterCrop(SIZE)]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = datasets.ImageFolder(f"{job.root}/train", transforms.Compose(steps))
    loader = DataLoader(images, BATCH, sampler=job.walk, num_workers=job.cores)
    return (pixels for pixels, _ in loader)


def torchvision_v2(job: Job) -> Stream:
    """The JPEG decoder of torchvision.io and v2 transforms on uint8 tensors, DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    if job.train:
        steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(RESIZED, antialias=True), v2.CenterCrop(SIZE)]

    def read(path: str) -> Any:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    images = datasets.ImageFolder(f"{job.root}/train", v2.Compose(steps), loader=read)
    loader = DataLoader(images, BATCH, sampler=job.walk, num_workers=job.cores)
    return (pixels for pixels, _ in loader)


def timm_defaults(job: Job) -> Stream:
    """The create_loader of timm as it comes; in training that has colour jitter of 0.4."""
    return _timm(job)


def timm_plain(job: Job) -> Stream:
    """The create_loader of timm without its colour jitter: crop and flip only, as the others."""
    return _timm(job, color_jitter=None)


def _timm(job: Job, **options: Any) -> Stream:
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader

    loader: Any = create_loader(
        ImageDataset(f"{job.root}/train"),
        (3, SIZE, SIZE),
        BATCH,
        is_training=job.train,
        num_workers=job.cores,
        crop_pct=SIZE / RESIZED,
        device=torch.device("cpu"),
        **options,
    )
    loader.loader.batch_sampler.sampler = job.walk  # it would shuffle in its own way
    return (pixels for pixels, _ in loader)


def simplejpeg_opencv(job: Job) -> Stream:
    """A lean loop: threads that decode, resize and flip straight into the batch."""
    import cv2  # pyright: ignore[reportMissingImports]
    import simplejpeg  # pyright: ignore[reportMissingImports]

    cv2.setNumThreads(1)

    def load(path: str, pixels: np.ndarray) -> None:
        image = simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB")
        height, width = image.shape[:2]
        left, top, w, h = (_random_box if job.train else _centre_box)(width, height)
        crop = image[top : top + h, left : left + w]
        how = cv2.INTER_AREA if min(w, h) > SIZE else cv2.INTER_LINEAR
        if job.train and random.random() < 0.5:
            cv2.flip(cv2.resize(crop, (SIZE, SIZE), interpolation=how), 1, dst=pixels)
        else:
            cv2.resize(crop, (SIZE, SIZE), dst=pixels, interpolation=how)

    files = job.files()
    with ThreadPoolExecutor(job.cores) as pool:
        waiting: list[tuple[np.ndarray, list[Future[None]]]] = []
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            pixels = np.empty((len(part), SIZE, SIZE, 3), np.uint8)
            waiting.append(
                (pixels, [pool.submit(load, *each) for each in zip(part, pixels, strict=True)])
            )
            if len(waiting) == 2:  # one batch is made while the other one is used
                pixels, futures = waiting.pop(0)
                for future in futures:
                    future.result()
                yield torch.from_numpy(pixels)


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of torchvision's random resized crop."""
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = np.exp(random.uniform(*np.log(RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def _centre_box(width: int, height: int) -> tuple[int, int, int, int]:
    side = round(min(width, height) * SIZE / RESIZED)
    return (width - side) // 2, (height - side) // 2, side, side


def dali_cpu(job: Job) -> Stream:
    """NVIDIA DALI's pipeline on the CPU, antialiased as Pillow is."""
    from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

    files = job.files()
    common = {"output_type": types.RGB, "adjust_orientation": False}
    linear = {"interp_type": types.INTERP_LINEAR, "antialias": True}

    @pipeline_def(batch_size=BATCH, num_threads=job.cores, device_id=None, seed=0)
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=files, labels=[0] * len(files))
        if job.train:
            pixels = fn.decoders.image_random_crop(
                encoded, random_area=SCALE, random_aspect_ratio=RATIO, num_attempts=10, **common
            )
            pixels = fn.resize(pixels, size=[SIZE, SIZE], **linear)
            return fn.flip(pixels, horizontal=fn.random.coin_flip())
        pixels = fn.decoders.image(encoded, **common)
        pixels = fn.resize(pixels, resize_shorter=RESIZED, **linear)
        return fn.crop(pixels, crop=[SIZE, SIZE])

    built: Any = pipeline()
    built.build()
    for _ in range(len(files) // BATCH):
        (pixels,) = built.run()
        yield torch.from_numpy(np.array(pixels.as_tensor()))  # its memory is used again


def spdl_threads(job: Job) -> Stream:
    """SPDL's thread pipeline: FFmpeg decodes, crops, scales (antialiased bilinear) and flips."""
    import spdl.io  # pyright: ignore[reportMissingImports]
    from spdl.pipeline import PipelineBuilder  # pyright: ignore[reportMissingImports]

    def load(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        box = (_random_box if job.train else _centre_box)(packets.width, packets.height)
        left, top, w, h = box
        steps = f"crop={w}:{h}:{left}:{top}:exact=1,scale={SIZE}:{SIZE}:flags=bilinear"
        flip = ",hflip" if job.train and random.random() < 0.5 else ""
        return spdl.io.decode_packets(packets, filter_desc=f"{steps}{flip},format=rgb24")

    def collate(frames: Sequence[Any]) -> Any:
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    built = (
        PipelineBuilder()
        .add_source(job.files())
        .pipe(load, concurrency=job.cores)
        .aggregate(BATCH)
        .pipe(collate)
        .add_sink(2)
        .build(num_threads=job.cores)
    )
    with built.auto_stop():
        yield from built


def ffcv_loader(job: Job) -> Stream:
    """FFCV on its own file format; compiled before the first batch comes out."""
    from ffcv.fields.rgb_image import (  # pyright: ignore[reportMissingImports]
        CenterCropRGBImageDecoder,
        RandomResizedCropRGBImageDecoder,
    )
    from ffcv.loader import Loader, OrderOption  # pyright: ignore[reportMissingImports]
    from ffcv.transforms import (  # pyright: ignore[reportMissingImports]
        RandomHorizontalFlip,
        ToTensor,
    )

    if job.train:
        steps = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), SCALE, RATIO)]
        steps += [RandomHorizontalFlip()]
    else:
        steps = [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=SIZE / RESIZED)]
    loader = Loader(
        job.root,
        batch_size=BATCH,
        num_workers=job.cores,
        order=OrderOption.SEQUENTIAL,
        indices=job.walk,
        pipelines={"image": [*steps, ToTensor()], "label": None},
    )
    return (batch[0] for batch in loader)


def write_beton(source: str, target: str) -> None:
    """Write FFCV's file from original images: re-encoded at quality 90, same size."""
    from ffcv.fields import IntField, RGBImageField  # pyright: ignore[reportMissingImports]
    from ffcv.writer import DatasetWriter  # pyright: ignore[reportMissingImports]
    from torchvision.datasets import ImageFolder

    image = RGBImageField(write_mode="jpg", jpeg_quality=90)
    writer = DatasetWriter(target, {"image": image, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(ImageFolder(f"{source}/train"))


# ---- ours ----


class Repeated:
    """A split as often as the walk needs it, so that no epoch ends while it is measured."""

    def __init__(self, images: Any, length: int) -> None:
        self.images, self.length = images, length
        self.labels = np.resize(images.labels, length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.images[index % len(self.images)]

    def name(self, index: int) -> str:
        """As `EncodedImages.name`."""
        return self.images.name(index % len(self.images))

    def read(self, index: int) -> Any:
        """As `EncodedImages.read`."""
        return self.images.read(index % len(self.images))

    def locate(self, indices: Any) -> Any:
        """As `EncodedImages.locate`."""
        return self.images.locate(np.asarray(indices) % len(self.images))


class RepeatedRestarts(Repeated):
    """The same of a split with restart segments."""

    def segments(self, index: int) -> Any:
        """As `HasRestarts.segments`."""
        return self.images.segments(index % len(self.images))


def _our_images(job: Job) -> Repeated:
    from mobilenext.data import image_folder

    images = image_folder(job.root).train
    repeated = RepeatedRestarts if hasattr(images, "segments") else Repeated
    return repeated(images, len(job.walk))


def _our_transform(train: bool) -> Any:
    from mobilenext.data import eval_transform, train_transform

    return (train_transform if train else eval_transform)(SIZE, interpolation="bilinear")


def _ours(decoder: str) -> Callable[[Job], Stream]:
    def stream(job: Job) -> Stream:
        from mobilenext import data

        # What is optional below keeps the type checker content with either version of the loader.
        train_loader: Any = data.train_loader
        eval_loader: Any = data.eval_loader
        images, transform = _our_images(job), _our_transform(job.train)
        options = {"workers": job.cores, "decoder": decoder}
        if job.train:
            loader = train_loader(images, transform, seed=0, global_batch_size=BATCH, **options)
        else:
            loader = eval_loader(images, transform, batch_size=BATCH, **options)
        return (pixels for pixels, _ in loader.epoch(0))

    return stream


def entropy_floor(job: Job) -> Callable[[int], float]:
    """Images per CPU-second of entropy decoding alone, over the same crops: no loader beats it."""
    from mobilenext.data import native  # pyright: ignore[reportAttributeAccessIssue]

    measure = getattr(native, "entropy_floor", None)
    if measure is None:
        raise ImportError("mobilenext.data.native has no entropy_floor")
    images, transform = _our_images(job), _our_transform(job.train)
    return lambda count: measure(images, transform, count, job.cores)


ALL_FILES = ("original", "q90", "short256")
PACKS = ("original", "lossless", "q90", "short256")
BASELINE = "torchvision"
FLOOR = "entropy decoding alone"
BUILD = "a C compiler, then pip install -e ."

CONTESTANTS = {
    BASELINE: Contestant(torchvision_v1),
    "torchvision v2 uint8": Contestant(torchvision_v2, storages=ALL_FILES),
    "timm": Contestant(timm_defaults),
    "timm, no jitter": Contestant(timm_plain),
    "simplejpeg+opencv": Contestant(
        simplejpeg_opencv,
        ("simplejpeg", "cv2"),
        "pip install simplejpeg opencv-python-headless",
        ALL_FILES,
    ),
    "DALI CPU": Contestant(
        dali_cpu, ("nvidia.dali",), "pip install nvidia-dali-cuda130", ALL_FILES
    ),
    "SPDL": Contestant(
        spdl_threads,
        ("spdl.io",),
        "pip install spdl, and FFmpeg's libraries (Debian: libavfilter8 libavdevice59)",
        ALL_FILES,
    ),
    "FFCV": Contestant(
        ffcv_loader,
        ("ffcv", "numba"),
        "pip install ffcv numba, built with libopencv-dev and libturbojpeg0-dev",
        ("q90",),
    ),
    "ours torchvision": Contestant(_ours("torchvision"), storages=PACKS),
    "ours wheels": Contestant(
        _ours("simplejpeg"),
        ("simplejpeg", "cv2"),
        "pip install simplejpeg opencv-python-headless",
        PACKS,
    ),
    "ours native": Contestant(_ours("native"), ("mobilenext.data._native",), BUILD, PACKS),
    FLOOR: Contestant(entropy_floor, ("mobilenext.data._native",), BUILD, PACKS),
}


# ---- the process ----


def _resident() -> float:
    """Megabytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _describe(batch: Any) -> dict[str, Any]:
    """What a batch is like; raises if it is not what all have agreed on."""
    pixels = np.asarray(batch)
    if pixels.shape not in ((BATCH, SIZE, SIZE, 3), (BATCH, 3, SIZE, SIZE)):
        raise ValueError(f"a batch of shape {pixels.shape}")
    channels = pixels if pixels.shape[-1] == 3 else pixels.transpose(0, 2, 3, 1)
    means = channels.reshape(-1, 3).mean(0, dtype=np.float64)
    if pixels.dtype == np.float32:
        means = 255 * (means * STD + MEAN)
    return {
        "kind": f"{pixels.dtype.name} {'NHWC' if pixels.shape[-1] == 3 else 'NCHW'}",
        "range": [float(pixels.min()), float(pixels.max())],
        "means": means.tolist(),
    }


def main() -> None:  # noqa: D103
    if sys.argv[1] == "beton":
        write_beton(*sys.argv[2:])
        return
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    with_torch = _resident()
    random.seed(0)
    torch.set_num_threads(job.cores)
    if job.contestant == FLOOR:
        measure = entropy_floor(job)
        measure(BATCH)
        print(json.dumps({"kind": ""}), file=answers)
        for line in sys.stdin:
            print(json.dumps({"images_per_cpu_second": measure(int(line))}), file=answers)
        return
    stream = iter(CONTESTANTS[job.contestant].stream(job))
    first = _describe(next(stream)) | {"with_torch": with_torch}
    for _ in range(job.discarded):
        next(stream)
    print(json.dumps(first), file=answers)
    for line in sys.stdin:
        wanted, got = int(line), 0
        started = time.perf_counter()
        while got < wanted:
            got += len(next(stream))
        print(json.dumps({"seconds": time.perf_counter() - started, "images": got}), file=answers)


if __name__ == "__main__":
    main()
