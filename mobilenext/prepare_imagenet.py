"""Makes a pack of ImageNet, or of any data set in class folders: fast to read, pixels unchanged.

Restart markers are added by coding the same coefficients anew, and both files are decoded to prove
that no pixel has changed. Whatever does not pass stays byte for byte as it was; nothing is repaired
silently, and the report names all files that are odd.
"""

import io
import shutil
import struct
import sys
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import PIL.Image
from timm.data.imagenet_info import ImageNetInfo
from tqdm import tqdm

from mobilenext.config import PrepareImagenetConfig
from mobilenext.data import ImageData, archives, image_folder, native, pillow, restart
from mobilenext.data.datasets import check_layout, named_by_synsets
from mobilenext.data.encoded import EncodedImages
from mobilenext.data.pack import (
    DESCRIPTION,
    SPLITS,
    WORK,
    PackImages,
    PackWriter,
    Record,
    check_output,
    describe_pack,
    open_pack,
    read_report,
)
from mobilenext.data.sources import FolderImages
from mobilenext.data.stored import StoredImages
from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.monitor import say
from mobilenext.runtime.run_folder import RunFolder

T = TypeVar("T")

PART = 2000
"""Images of a part: what is lost, at most, when the job is ended. About 220 MB of ImageNet."""
CHUNK = 8
"""Images that a thread takes at a time."""
MOST_GROWTH = 1.05
"""Restart markers and their index may make a file so much larger; else it stays as it was."""
OFFICIAL_COUNTS = {"train": 1_281_167, "val": 50_000}

FORMAT_OF_ENDING = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF",
}  # fmt: skip
NAMED_REASONS = {*native.PROBLEMS.values(), "could not be decoded again", "pixels would differ"}
"""Why files that can be decoded may be kept as they were, where that says something of them."""
NO_SEGMENTS = np.zeros(0, np.uint16)


@dataclass(frozen=True)
class Outcome:
    """What has become of an image.

    Attributes:
        record: What to store; None: it is left out.
        before: Bytes that it had.
        what: What was done.
        odd: In which ways it is unusual.
        name: class/file, printable.
    """

    record: Record | None
    before: int
    what: str
    odd: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Recipe:
    """How the images of a split are stored; see `PrepareImagenetConfig`."""

    mode: str
    size: int | None
    quality: int
    on_bad_image: str


def prepare_imagenet(
    config: PrepareImagenetConfig, process: Process, folder: RunFolder
) -> dict[str, Any]:
    """Make a pack, go on with one, or verify one.

    Args:
        config: The job's config.
        process: This process; there may be no others.
        folder: Not used.

    Returns:
        What report.json says: for each split images, bytes before and after, what was done how
        often, and the names of odd files.

    Raises:
        InputError: Source or output are not what they have to be, an image can't be decoded, the
            disk is full, or the pack to be verified is corrupt.
    """
    del folder
    process.require_alone("prepare_imagenet", ", it uses all cores")
    output = Path(config.output).expanduser()
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
    done = {split: len(writer.parts[split]) * PART for split in SPLITS}
    bar = tqdm(
        total=sum(len(indices) for indices in chosen.values()),
        initial=sum(min(done[split], len(chosen[split])) for split in SPLITS),
        desc="prepare",
        unit="image",
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    stack.callback(bar.close)
    pool = ThreadPoolExecutor(workers)
    stack.callback(pool.shutdown, cancel_futures=True)
    for split in SPLITS:
        mode = config.mode if split == "train" else str(config.val_mode)
        recipe = Recipe(mode, config.size, config.quality, config.on_bad_image)
        rest = chosen[split][done[split] :]
        store = partial(_store, splits[split], recipe=recipe)
        note = _Note()
        for number, outcome in enumerate(_ahead(store, rest, pool, 3 * workers), 1):
            note.count(outcome)
            if outcome.record is not None:
                writer.add(split, outcome.record)
            bar.update()
            if number % PART == 0 or number == len(rest):
                writer.end_part(split, note.plain())
                note = _Note()


def _check_native(config: PrepareImagenetConfig) -> None:
    if "restart" in (config.mode, config.val_mode) and not restart.available():
        raise InputError(
            "mode=restart: expected the native decoder built with libjpeg-turbo, got "
            f"{native.description()}; install a C compiler and libjpeg-turbo's headers (Debian: "
            "libjpeg62-turbo-dev) and run pip install -e . again, or use mode=copy or, for "
            "the validation images, val_mode=copy"
        )


def _splits(data: ImageData) -> dict[str, EncodedImages]:
    """Both splits; every source that this job opens has encoded images."""
    return {"train": cast(EncodedImages, data.train), "val": cast(EncodedImages, data.val)}


def _open_source(config: PrepareImagenetConfig) -> tuple[str, ImageData]:
    """The source and what it is."""
    source = str(config.source)
    base = Path(source).expanduser()
    if not base.is_dir():
        raise InputError(
            f"source={printable(source)}: expected a folder, found none there; fix the path"
        )
    has_folders = (base / "train").is_dir()
    if archives.has_tars(base) and not has_folders:
        return "ImageNet's official tars", archives.imagenet_tars(base)
    if archives.has_webdataset(base):
        return "WebDataset", archives.webdataset(base)
    if archives.has_parquet(base):
        data = archives.parquet(base)
        if config.classes == "imagenet":
            data = named_by_synsets(base, data, sorted(ImageNetInfo("imagenet-1k").label_names()))
        return "Parquet", data
    if not has_folders:
        check_layout(base)
        raise InputError(
            f"source={printable(source)}: expected the folders train and val, or "
            f"{archives.TRAIN_TAR} and {archives.VAL_TAR}, or train-*.tar, or train-*.parquet, "
            "found none of them; fix the path"
        )
    return "class folders", image_folder(source)


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
            listing = zlib.crc32(_relative(images, index).encode(errors="surrogateescape"), listing)
    resizes = config.mode in ("max_side", "short_side")
    return {
        "mode": config.mode,
        "val_mode": config.val_mode,
        "size": config.size,
        "quality": config.quality if resizes else None,
        "lossless": {"train": not resizes, "val": True},
        "on_bad_image": config.on_bad_image,
        "limit": config.limit,
        "source": {
            "kind": kind,
            "path": str(Path(str(config.source)).expanduser().resolve()),
            "images": counts,
            "listing": listing,
        },
        "classes": list(data.classes),
    }


def _relative(images: Any, index: int) -> str:
    """class/file, for any of the sources; bytes that are not UTF-8 are surrogates."""
    if isinstance(images, StoredImages):
        return images.names[index]
    if isinstance(images, FolderImages):
        return images.relative(index)
    return Path(images.name(index)).name.replace(": row ", "/")


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
    other = sorted(key for key, value in described.items() if there.get(key) != value)
    if other:
        raise InputError(
            f"output={output} has a finished pack that was made with other values of "
            f"{', '.join(other)}; choose another output, or remove it"
        )
    shutil.rmtree(output / WORK, ignore_errors=True)  # killed between the last two steps
    report = read_report(output)
    say(f"{output} is finished already")
    return report


# ---- one image ----


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


def _store(images: EncodedImages, index: int, recipe: Recipe) -> Outcome:
    """Decide what is stored for an image.

    Raises:
        InputError: It can't be read, or can't be decoded and is to be neither kept nor left out.
    """
    name, label = _relative(images, index), int(images.labels[index])
    shown = printable(name)
    try:
        data = images.read(index)
    except InputError:
        if recipe.on_bad_image != "skip":
            raise
        return Outcome(None, 0, "left out: unreadable", ("unreadable",), shown)
    try:
        image = pillow.open_pixels(data)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        if recipe.on_bad_image == "error":
            raise InputError(
                f"{images.name(index)}: expected an image file, {pillow.reason(error, data)}; "
                "replace it, or add on_bad_image=skip to leave such files out, or "
                "on_bad_image=keep to store them as they are"
            ) from error
        odd = ("undecodable",)
        if recipe.on_bad_image == "skip":
            return Outcome(None, len(data), "left out: undecodable", odd, shown)
        record = Record(data, NO_SEGMENTS, label, 0, 0, name)
        return Outcome(record, len(data), "kept: undecodable", odd, shown)
    if recipe.mode == "copy":
        stored, segments, what = data, NO_SEGMENTS, "copied"
    elif recipe.mode == "restart":
        stored, segments, what = _with_restarts(data, image)
    else:
        stored, segments, what = _encoded_anew(data, image, recipe)
    width, height = image.size if what != "resized" else _resized(image.size, recipe)
    record = Record(stored, segments, label, width, height, name)
    reason = what.removeprefix("kept: ")
    odd = (*_oddities(image, name), *({reason} & NAMED_REASONS))
    return Outcome(record, len(data), what, odd, shown)


def _with_restarts(
    data: bytes | memoryview, image: PIL.Image.Image
) -> tuple[bytes | memoryview, np.ndarray, str]:
    if image.format not in ("JPEG", "MPO"):
        return data, NO_SEGMENTS, f"kept: {image.format}"
    result = restart.restart_index(data)
    if isinstance(result, int):
        return data, NO_SEGMENTS, f"kept: {native.PROBLEMS[result]}"
    written, segments = result
    if len(written) + segments.nbytes > MOST_GROWTH * len(data):
        return data, NO_SEGMENTS, "kept: would be larger"
    try:
        again = pillow.open_pixels(written)
    except Exception:  # as above
        return data, NO_SEGMENTS, "kept: could not be decoded again"
    if image.mode != again.mode or not np.array_equal(np.asarray(image), np.asarray(again)):
        return data, NO_SEGMENTS, "kept: pixels would differ"
    return written, segments, "restarts added"


def _resized(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    side = max(size) if recipe.mode == "max_side" else min(size)
    assert recipe.size is not None
    if side <= recipe.size:
        return size
    width, height = (max(1, round(value * recipe.size / side)) for value in size)
    return width, height


def _encoded_anew(
    data: bytes | memoryview, image: PIL.Image.Image, recipe: Recipe
) -> tuple[bytes | memoryview, np.ndarray, str]:
    size = _resized(image.size, recipe)
    pixels = pillow.eight_bits(image)
    pixels = pixels if pixels.mode == "L" else pixels.convert("RGB")
    if size != image.size:
        pixels = pixels.resize(size, PIL.Image.Resampling.BICUBIC)
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=recipe.quality, optimize=True)
    written = file.getvalue()
    if size != image.size:
        return written, NO_SEGMENTS, "resized"
    if len(written) >= len(data):
        return data, NO_SEGMENTS, "kept: would be larger"
    return written, NO_SEGMENTS, "encoded anew"


def _oddities(image: PIL.Image.Image, name: str) -> tuple[str, ...]:
    found = []
    ending = Path(name).suffix
    format_ = "JPEG" if image.format == "MPO" else image.format
    if FORMAT_OF_ENDING.get(ending.lower(), format_) != format_:
        found.append(f"{format_} named {ending}")
    if image.mode != "RGB":
        found.append("grey" if image.mode == "L" else image.mode)
    if "progressive" in image.info:
        found.append("progressive")
    if format_ == "JPEG" and not _is_sound_exif(image.info.get("exif")):
        found.append("corrupt EXIF")
    return tuple(found)


def _is_sound_exif(exif: bytes | None) -> bool:
    """Whether the entries of EXIF's first directory lie where they say.

    Pillow only warns of it, and warnings are the whole process's, not a thread's.
    """
    if exif is None:
        return True
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return False
    sizes = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)  # of the types, in bytes
    try:
        (at,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for number in range(count):
            _, kind, items, value = struct.unpack_from(f"{order}HHLL", tiff, at + 2 + 12 * number)
            size = sizes[kind] * items
            if size > 4 and value + size > len(tiff):
                return False
    except (struct.error, IndexError):
        return False
    return True


# ---- reports ----


class _Note:
    """What a part's images have become; plain values, for the journal."""

    def __init__(self) -> None:
        self.images = self.before = self.after = 0
        self.what: Counter[str] = Counter()
        self.odd: dict[str, list[str]] = {}

    def count(self, outcome: Outcome) -> None:
        self.before += outcome.before
        self.what[outcome.what] += 1
        for kind in outcome.odd:
            self.odd.setdefault(kind, []).append(outcome.name)
        if outcome.record is not None:
            self.images += 1
            self.after += len(outcome.record.data) + outcome.record.segments.nbytes

    def add(self, plain: dict[str, Any]) -> None:
        self.images += plain["images"]
        self.before += plain["bytes_before"]
        self.after += plain["bytes_after"]
        self.what.update(plain["done"])
        for kind, names in plain["odd"].items():
            self.odd.setdefault(kind, []).extend(names)

    def plain(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "bytes_before": self.before,
            "bytes_after": self.after,
            "done": dict(sorted(self.what.items())),
            "odd": dict(sorted(self.odd.items())),
        }


def _report(described: dict[str, Any], writer: PackWriter, notes: list[str]) -> dict[str, Any]:
    report: dict[str, Any] = {
        key: described[key] for key in ("source", "mode", "val_mode", "size", "quality", "limit")
    }
    report["notes"] = notes
    for split in SPLITS:
        total = _Note()
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
            for problem in tqdm(
                _ahead(images.problem, np.arange(len(images)), pool, 8 * workers),
                total=len(images),
                desc=f"verify {images.split}",
                unit="image",
            ):
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
