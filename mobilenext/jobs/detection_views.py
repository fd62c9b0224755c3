"""What a detector's training sees: a sheet of views with their boxes, and how fast it is made."""

import io
import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from mobilenext.assembly.data import decoding_threads
from mobilenext.assembly.detection import (
    box_augment,
    box_batches,
    box_training_loader,
    check_box_data,
)
from mobilenext.config import DetectConfig
from mobilenext.config.fields import check, path_field
from mobilenext.config.targets import build
from mobilenext.data import Loader, box_texts
from mobilenext.data.boxes import PADDING
from mobilenext.data.loader import Batch
from mobilenext.files import check_output_file, writable, write_whole
from mobilenext.metrics.detection_report import with_targets
from mobilenext.runtime.distributed import Process
from mobilenext.training.pictures import contact_sheet
from mobilenext.training.progress import say

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass
class DetectionViewsConfig(DetectConfig):
    """Job `detection_views`: what training would see, with the same settings."""

    output: str = path_field("views.png")
    """Picture to write: .png or .jpg."""
    pictures: int = 24
    """Number of views on it."""

    leaves_run = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.pictures <= 400, "pictures", "1 to 400", self.pictures)
        fits = Path(self.output).suffix.lower() in SUFFIXES
        check(fits, "output", f"a file that ends in one of {', '.join(SUFFIXES)}", self.output)


def detection_views(config: DetectionViewsConfig, process: Process) -> dict[str, Any]:
    """Write a sheet of training views with their boxes, as training sees them from epoch 1 on.

    Colours are distorted and what lies beyond the images is filled, as on the device.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        `pictures`, the number of views; `objects`, that of their boxes; `images_per_second` of all
        threads, and `images_per_cpu_second`.

    Raises:
        InputError: The data can't be used, the picture can't be written, or there are several
            processes.
    """
    process.require_alone("detection_views")
    output = Path(config.output)
    check_output_file("output", output)
    images = check_box_data(build(config.data.source), config.data.name)
    to_device = box_batches(config.data, process, channels_last=True)
    augment = box_augment(config, process)
    with closing(box_training_loader(config, images, process)) as loader:
        began, used = time.perf_counter(), time.process_time()
        batches = list(itertools.islice(_batches(loader), -(-config.pictures // _size(config))))
        spent = time.perf_counter() - began, time.process_time() - used
    made = len(batches) * _size(config)
    shown, texts, objects = [], [], 0
    for epoch, index, (pixels, targets) in batches:
        drawn = None if augment is None else augment.at(epoch, index)
        inputs, places = to_device(pixels, targets, drawn)
        shown.append(with_targets(to_device.pictures(inputs), places, images.classes, len(inputs)))
        texts += box_texts(places, images.classes)
        objects += int((places[:, 1:, 4] != PADDING).sum())
    sheet = contact_sheet(torch.cat(shown), texts, most=config.pictures)
    with writable(f"output={output}"):
        write_whole(output, _encoded(sheet, output.suffix.lower()))
    wall, cpu = (made / max(1e-9, seconds) for seconds in spent)
    say(
        f"{output}: {config.pictures} views of {config.data.name} at {config.data.image_size} px\n"
        f"decoded by {loader.decoder}: {wall:,.0f} images/s by "
        f"{decoding_threads(config.data, process)} threads, {cpu:,.0f} per CPU-second (of "
        f"{made} images)"
    )
    return {"pictures": config.pictures, "objects": objects, "images_per_second": wall,
            "images_per_cpu_second": cpu}  # fmt: skip


def _size(config: DetectionViewsConfig) -> int:
    return config.data.global_batch_size


def _batches(loader: Loader) -> Iterator[tuple[int, int, Batch]]:
    """Epoch, number in the epoch, and content of one batch after the other, without end."""
    for epoch in itertools.count():
        for index, batch in enumerate(loader.epoch(epoch)):
            yield epoch, index, batch


def _encoded(sheet: np.ndarray, suffix: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(sheet).save(file, "PNG" if suffix == ".png" else "JPEG", quality=90)
    return file.getvalue()
