"""Makes a pack of ImageNet, or of any data set in class folders: fast to read, pixels unchanged.

Restart markers are added by coding the same coefficients anew, and both files are decoded to prove
that no pixel has changed. Whatever does not pass stays byte for byte as it was; nothing is repaired
silently, and the report names all files that are odd.
"""

import shutil
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from timm.data.imagenet_info import ImageNetInfo

from mobilenext.config.fields import check, check_choice, path_field
from mobilenext.data import ImageData, native, relative_name, restart
from mobilenext.data.datasets import named_by_synsets
from mobilenext.data.encoded import EncodedClassImages
from mobilenext.data.imagenet_tars import TRAIN_TAR, VAL_TAR, imagenet_tars
from mobilenext.data.layouts import Layout, check_nearly_right, layout_of
from mobilenext.data.pack import (
    DESCRIPTION,
    SPLITS,
    WORK,
    PackImages,
    PackWriter,
    check_output,
    describe_pack,
    open_pack,
    read_report,
)
from mobilenext.data.packed_boxes import pictures_of
from mobilenext.data.packing import PackRecipe, Tally, store
from mobilenext.data.parquet import parquet
from mobilenext.data.sources import class_folders
from mobilenext.data.webdataset import webdataset
from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.runtime.distributed import Process
from mobilenext.seeding import generator
from mobilenext.training.progress import Progress, say
from mobilenext.training.run_folder import RunFolder


@dataclass
class PrepareImagenetConfig:
    """Job `prepare_imagenet`."""

    output: str = path_field()
    """Folder for the pack; new, empty, or what the same command has left unfinished."""
    source: str | None = path_field(None)
    """Class folders under train/ and val/, ImageNet's official tars, WebDataset or Parquet; or the
    folder of VOC's or COCO's images, whose boxes stay where they are (data.source.pack)."""
    mode: str = "restart"
    """Training images: as they are (copy), the same pixels with restart markers (restart), or JPEGs
    encoded anew whose longer (max_side) or shorter side (short_side) is at most `size`."""
    val_mode: str | None = None
    """Validation images: copy or restart; null: copy with mode=copy, else restart."""
    size: int | None = None
    """Of that side, in pixels."""
    quality: int = 90
    """Of the JPEGs that max_side and short_side encode."""
    classes: str = "auto"
    """imagenet insists on ImageNet-1k's synsets and numbers of images, auto takes any classes and
    only says so if there are these synsets with other numbers."""
    on_bad_image: str = "error"
    """An image that can't be decoded ends the job (error), is left out (skip) or stored as it is
    (keep); the report names it."""
    order: str = "source"
    """Of the training images: as in the source, or shuffled, for data.order=blocks (slow to make of
    Parquet). Validation images keep theirs."""
    workers: int | None = None
    """Threads; null: as many as there are cores."""
    limit: int | None = None
    """Take only so many images of each split, evenly spread, to try the rest out."""
    verify: bool = False
    """Instead of making a pack, compare all checksums of the one at `output`."""

    def __post_init__(self) -> None:
        modes = ("copy", "restart", "max_side", "short_side")
        check_choice("mode", self.mode, modes)
        if self.val_mode is None:
            self.val_mode = "copy" if self.mode == "copy" else "restart"
        check_choice("val_mode", self.val_mode, ("copy", "restart"))
        check_choice("classes", self.classes, ("auto", "imagenet"))
        check_choice("on_bad_image", self.on_bad_image, ("error", "skip", "keep"))
        check_choice("order", self.order, ("source", "shuffled"))
        check(1 <= self.quality <= 100, "quality", "1 to 100", self.quality)
        for key in ("size", "workers", "limit"):
            value = getattr(self, key)
            check(value is None or value >= 1, key, "null or at least 1", value)
        resizes = self.mode in ("max_side", "short_side")
        check(resizes == (self.size is not None), "size", f"{_sized(resizes)}", self.size)
        given = self.verify or self.source is not None
        check(given, "source", "a folder with images; add source=/path/to/it", self.source)


def _sized(resizes: bool) -> str:
    return "pixels, for instance 400" if resizes else "null, unless mode is max_side or short_side"


T = TypeVar("T")

PART = 2000
"""Images of a part: what is lost, at most, when the job is ended. About 220 MB of ImageNet."""
CHUNK = 8
"""Images that a thread takes at a time."""
OFFICIAL_COUNTS = {"train": 1_281_167, "val": 50_000}


def prepare_imagenet(config: PrepareImagenetConfig, process: Process) -> dict[str, Any]:
    """Make a pack, go on with one, or verify one.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        What report.json says: for each split images, bytes before and after, what was done how
        often, and the names of odd files.

    Raises:
        InputError: Source or output are not what they have to be, an image can't be decoded, the
            disk is full, or the pack to be verified is corrupt.
    """
    process.require_alone("prepare_imagenet", ", it uses all cores")
    output = Path(config.output)
    workers = process.cpus if config.workers is None else config.workers
    if config.verify:
        return _verify(output, workers)
    _check_native(config)
    finished = (output / DESCRIPTION).exists()
    if not finished:
        check_output(output)
    kind, data = _open_source(config)
    notes = [*data.notes, *_check_classes(config, data)]
    described = _described(config, kind, data)
    if finished:
        return _finished(output, described)
    for note in notes:
        say(f"note: {note}", process)
    with ExitStack() as stack:
        # Once for all threads: filters are the process's. What Pillow would warn of is looked for.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        _lock(stack, output)
        writer = PackWriter(output, described)
        stack.callback(writer.close)
        _write(config, data, writer, workers, stack)
        report = _report(described, writer, notes)
        writer.finish(report)
    say(_render(report, output), process)
    return report


def _write(
    config: PrepareImagenetConfig,
    data: ImageData,
    writer: PackWriter,
    workers: int,
    stack: ExitStack,
) -> None:
    """Write all parts that are not finished yet."""
    splits = _splits(data)
    chosen = {split: _chosen(len(images), config.limit) for split, images in splits.items()}
    if config.order == "shuffled":
        shuffled = torch.randperm(len(chosen["train"]), generator=generator("pack"))
        chosen["train"] = chosen["train"][shuffled.numpy()]
    done = {split: len(writer.parts[split]) * PART for split in SPLITS}
    count = sum(len(indices) for indices in chosen.values())
    before = sum(min(done[split], len(chosen[split])) for split in SPLITS)
    progress = stack.enter_context(Progress("prepare", "images", count, before))
    pool = ThreadPoolExecutor(workers)
    stack.callback(pool.shutdown, cancel_futures=True)
    for split in SPLITS:
        mode = config.mode if split == "train" else str(config.val_mode)
        recipe = PackRecipe(mode, config.size, config.quality, config.on_bad_image)
        rest = chosen[split][done[split] :]
        stored = partial(store, splits[split], recipe=recipe)
        note = Tally()
        for number, outcome in enumerate(_ahead(stored, rest, pool, 3 * workers), 1):
            note.count(outcome)
            if outcome.record is not None:
                writer.add(split, outcome.record)
            progress.move(progress.done + 1)
            if number % PART == 0 or number == len(rest):
                writer.end_part(split, note.plain())
                note = Tally()


def _check_native(config: PrepareImagenetConfig) -> None:
    if "restart" in (config.mode, config.val_mode) and not restart.available():
        raise InputError(
            "mode=restart: expected the native decoder built with libjpeg-turbo, got "
            f"{native.description()}; install a C compiler and libjpeg-turbo's headers (Debian: "
            "libjpeg62-turbo-dev) and run pip install -e . again, or use mode=copy or, for "
            "the validation images, val_mode=copy"
        )


def _splits(data: ImageData) -> dict[str, EncodedClassImages]:
    """Both splits; every source that this job opens has encoded images."""
    train, val = (cast(EncodedClassImages, images) for images in (data.train, data.val))
    return {"train": train, "val": val}


def _open_source(config: PrepareImagenetConfig) -> tuple[str, ImageData]:
    """The source and what it is."""
    source = str(config.source)
    base = Path(source)
    if not base.is_dir():
        raise InputError(
            f"source={printable(source)}: expected a folder, found none there; fix the path"
        )
    has_folders = (base / "train").is_dir()
    # A pack is made of what the tars were unpacked to, if that lies beside them; and not of packs.
    refused = {Layout.PACK, Layout.IMAGENET_TARS} if has_folders else {Layout.PACK}
    layout = layout_of(base, frozenset(Layout) - refused)
    match layout:
        case Layout.IMAGENET_TARS:
            return layout.value, imagenet_tars(base)
        case Layout.WEBDATASET:
            return layout.value, webdataset(base)
        case Layout.PARQUET:
            data, synsets = parquet(base), sorted(ImageNetInfo("imagenet-1k").label_names())
            if config.classes == "imagenet":
                data = named_by_synsets(base, data, synsets)
            return layout.value, data
    pictures = None if has_folders else pictures_of(base)
    if pictures is not None:
        return "images with boxes", pictures
    if not has_folders:
        check_nearly_right(base)
        raise InputError(
            f"source={printable(source)}: expected the folders train and val, or {TRAIN_TAR} and "
            f"{VAL_TAR}, or train-*.tar, or train-*.parquet, or VOC's or COCO's folders, found "
            "none of them; fix the path"
        )
    return Layout.CLASS_FOLDERS.value, class_folders(base)


def _check_classes(config: PrepareImagenetConfig, data: ImageData) -> list[str]:
    """What differs from ImageNet-1k, if the data set claims to be it."""
    official = sorted(ImageNetInfo("imagenet-1k").label_names())
    if list(data.classes) != official:
        if config.classes == "imagenet":
            odd = sorted(set(data.classes) ^ set(official))
            raise InputError(
                f"source={config.source}: expected the {len(official)} synsets of ImageNet-1k, got "
                f"{len(data.classes)} classes; missing or unknown: {', '.join(odd[:5])}. For other "
                "classes use classes=auto"
            )
        return []
    notes = []
    for split, images in (("train", data.train), ("val", data.val)):
        expected = OFFICIAL_COUNTS[split]
        if len(images) != expected:
            notes.append(f"{split} has {len(images):,} images, ImageNet-1k has {expected:,}")
    if notes and config.classes == "imagenet":
        raise InputError(
            f"source={config.source}: expected all of ImageNet-1k: {'; '.join(notes)}. Complete "
            "it, or take what is there with classes=auto"
        )
    return notes


def _described(config: PrepareImagenetConfig, kind: str, data: ImageData) -> dict[str, Any]:
    """What pack.json gets. All that decides its content is in it, and nothing else."""
    listing, counts = 0, {}
    for split, images in _splits(data).items():
        counts[split] = len(images)
        listing = zlib.crc32(np.asarray(images.labels, dtype="<i4").tobytes(), listing)
        for index in range(len(images)):
            listing = zlib.crc32(
                relative_name(images, index).encode(errors="surrogateescape"), listing
            )
    resizes = config.mode in ("max_side", "short_side")
    return {
        "mode": config.mode,
        "val_mode": config.val_mode,
        "size": config.size,
        "quality": config.quality if resizes else None,
        "lossless": {"train": not resizes, "val": True},
        "on_bad_image": config.on_bad_image,
        "limit": config.limit,
        # Packs in the source's order are described as they were before there was another one.
        **({"order": config.order} if config.order == "shuffled" else {}),
        "source": {
            "kind": kind,
            "path": str(Path(str(config.source)).resolve()),
            "images": counts,
            "listing": listing,
        },
        "classes": list(data.classes),
    }


def _chosen(images: int, limit: int | None) -> np.ndarray:
    """All indices, or so many of them, evenly spread."""
    count = images if limit is None else min(limit, images)
    return np.arange(count) * images // count


def _lock(stack: ExitStack, output: Path) -> None:
    try:
        stack.enter_context(RunFolder(output / WORK).locked())
    except InputError as error:
        raise InputError(
            f"output={output}: could not begin ({error}); two commands can't make one pack"
        ) from error


def _finished(output: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The report of a pack that is there already."""
    there = describe_pack(output)
    keys = {"order", *described}
    other = sorted(key for key in keys if there.get(key) != described.get(key))
    if other:
        raise InputError(
            f"output={output} has a finished pack that was made with other values of "
            f"{', '.join(other)}; choose another output, or remove it"
        )
    shutil.rmtree(output / WORK, ignore_errors=True)  # killed between the last two steps
    report = read_report(output)
    say(f"{output} is finished already")
    return report


def _ahead(
    function: Callable[[int], T], indices: np.ndarray, pool: ThreadPoolExecutor, window: int
) -> Iterator[T]:
    """Results in order; at most `window` chunks are worked on ahead, so memory stays bounded."""
    pending: deque[Future[list[T]]] = deque()
    for start in range(0, len(indices), CHUNK):
        chunk = indices[start : start + CHUNK].tolist()
        pending.append(pool.submit(lambda chunk: [function(index) for index in chunk], chunk))
        if len(pending) >= window:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


# ---- reports ----


def _report(described: dict[str, Any], writer: PackWriter, notes: list[str]) -> dict[str, Any]:
    kept = ("source", "mode", "val_mode", "size", "quality", "limit", "order")
    report: dict[str, Any] = {key: described[key] for key in kept if key in described}
    report["notes"] = notes
    for split in SPLITS:
        total = Tally()
        for part in writer.parts[split]:
            total.add(part["note"])
        report[split] = total.plain()
    return report


def _render(report: dict[str, Any], output: Path) -> str:
    lines = [f"{output}:"]
    for split in SPLITS:
        part = report[split]
        lines.append(
            f"  {split}: {part['images']:,} images, {part['bytes_before']:,} bytes before, "
            f"{part['bytes_after']:,} after"
        )
        lines += [f"    {what}: {count:,}" for what, count in part["done"].items()]
        for kind, names in part["odd"].items():
            more = ", ..." if len(names) > 3 else ""
            lines.append(f"    odd, {kind}: {len(names):,} ({', '.join(names[:3])}{more})")
    lines.append(f"  all names are in {output / 'report.json'}")
    return "\n".join(lines)


def _verify(output: Path, workers: int) -> dict[str, Any]:
    """Compare all checksums of a pack."""
    data = open_pack(output)
    problems: list[str] = []
    total = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for images in (data.train, data.val):
            assert isinstance(images, PackImages)
            outcomes = _ahead(images.problem, np.arange(len(images)), pool, 8 * workers)
            with Progress(f"verify {images.split}", "images", len(images)) as progress:
                for problem in progress.through(outcomes):
                    total += 1
                    if problem is not None:
                        problems.append(problem)
    finally:
        pool.shutdown(cancel_futures=True)
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{len(problems)} of {total} images are corrupt:\n" + "\n".join(problems[:20]) + more
        )
    say(f"{output}: all {total:,} images are as they were written")
    return {"images": total, "corrupt": 0}
