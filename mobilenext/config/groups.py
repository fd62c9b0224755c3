"""The config groups that jobs share: a dataclass for each folder of `configs/` that needs one."""

from dataclasses import dataclass, field
from typing import Any

from mobilenext.config.fields import (
    MISSING,
    added_later,
    are_shares,
    check,
    check_choice,
    machine_only,
    path_field,
)

LARGEST_SIZE = 2048
"""Most pixels of an image's side."""
LARGEST_BATCH = 1 << 28
"""Most pixels of a batch of evaluation, 3 GB as float32: what a foreign checkpoint may ask for."""


MOST_WORKERS = 1024
MOST_READAHEAD = 1024


@dataclass
class ModelConfig:
    """Group `model`."""

    name: str = MISSING
    """Short name, for run folders and tables."""
    network: dict[str, Any] = MISSING
    """`_target_` and arguments, all but `num_classes`, which the data gives."""


@dataclass
class DataConfig:
    """Group `data`."""

    name: str = MISSING
    """Short name, for run folders and tables."""
    source: dict[str, Any] = MISSING
    """`_target_` of a function that returns `mobilenext.data.ImageData`."""
    root: str | None = path_field(None)
    """Folder with the data."""
    root_names_data: bool = False
    """Whether another root means other images, so that it is part of the run's fingerprint."""
    reencoded: bool = False
    """Whether the training images of the pack at `root` were encoded again, perhaps smaller."""
    val_folder: str | None = added_later(None)
    """Folder below `root` with the validation images of class folders; null: val."""
    val_share: float | None = added_later(None)
    """Share of the training images in class folders that is held out for validation, where they
    have no folder of their own; an image's name decides, so that a new one moves no other."""
    download: bool = machine_only(False)
    """Fetch the data if it is not there, where the source can."""
    image_size: int = MISSING
    """Height and width of training images, in pixels."""
    eval_size: int = MISSING
    """Height and width of evaluation images, in pixels."""
    eval_crop_ratio: float = 0.875
    """Evaluation resizes the short side to eval_size / eval_crop_ratio, then crops the centre."""
    eval_interpolation: str = "bicubic"
    """Interpolation of that resizing: bilinear or bicubic."""
    mean: list[float] = MISSING
    """Channel means in [0, 1], RGB."""
    std: list[float] = MISSING
    """Channel standard deviations in [0, 1], RGB."""
    global_batch_size: int = MISSING
    """Images of one optimiser step over all processes."""
    eval_batch_size: int = 256
    """Images of one forward pass of one process."""
    on_bad_image: str = "error"
    """An image that can't be read stops the run (error), or is counted, named and left out (skip):
    in training another one takes its place, in evaluation it is not part of the count."""
    on_bad_box: str = added_later("drop")
    """Of detection: a box that is not inside of its image stops the run (error), is cut to the
    image (clip), or its object is left out (drop); always counted. See `data.box_problems`."""
    max_bad_share: float = machine_only(0.01)
    """With skip: share of a split's images that may be unreadable; more stops the run."""
    order: str = added_later("shuffled")
    """Of an epoch's training images: shuffled, or, for large files on a network file system, blocks
    of 1,024 neighbours in a random order, shuffled 32 or more at a time. Refused where neighbours
    are of one class; see `prepare_imagenet`'s order."""
    readahead: int | None = machine_only(None)
    """Batches whose bytes the system is asked for (posix_fadvise) before the decoding threads read
    them, for network file systems; null or 0: none. Pixels are the same."""
    workers: int | None = machine_only(None)
    """Threads of each training process that decode; null: as many as it has cores; 0: batches are
    made when they are asked for."""
    decoder: str = machine_only("auto")
    """native, simplejpeg, torchvision, pillow, nvjpeg (on a CUDA device), or auto: the first of the
    first three that is there. Pixels differ a little (`mobilenext/data/decoders.py`, which checks
    the name)."""

    def __post_init__(self) -> None:
        for key in ("image_size", "eval_size"):
            size = getattr(self, key)
            check(1 <= size <= LARGEST_SIZE, f"data.{key}", f"1 to {LARGEST_SIZE} pixels", size)
        ratio, pixels = self.eval_crop_ratio, self.eval_batch_size * self.eval_size**2
        check(0.1 <= ratio <= 1, "data.eval_crop_ratio", "a number in [0.1, 1]", ratio)
        expected = f"at most {LARGEST_BATCH // self.eval_size**2} for data.eval_size"
        check(pixels <= LARGEST_BATCH, "data.eval_batch_size", expected, self.eval_batch_size)
        check_choice("data.eval_interpolation", self.eval_interpolation, ("bilinear", "bicubic"))
        hint = "of pixels scaled to 0 to 1 (values for 0 to 255 divided by 255)"
        expected = f"3 numbers from 0 to 1, {hint}"
        check(are_shares(self.mean), "data.mean", expected, self.mean)
        expected = f"3 numbers above 0, up to 1, {hint}"
        check(are_shares(self.std) and 0 not in self.std, "data.std", expected, self.std)
        held_out = self.val_share
        fits = held_out is None or 0 < held_out < 1
        check(fits, "data.val_share", "a share above 0 and below 1, for instance 0.2", held_out)
        check(
            held_out is None or self.val_folder is None,
            "data.val_share",
            "null beside data.val_folder: one of them says where validation images come from",
            held_out,
        )
        check_choice("data.on_bad_image", self.on_bad_image, ("error", "skip"))
        check_choice("data.on_bad_box", self.on_bad_box, ("drop", "clip", "error"))
        share = self.max_bad_share
        check(0 <= share <= 1, "data.max_bad_share", "a share in [0, 1]", share)
        check_choice("data.order", self.order, ("shuffled", "blocks"))
        workers, readahead = self.workers, self.readahead
        fits = readahead is None or 0 <= readahead <= MOST_READAHEAD
        check(fits, "data.readahead", f"null, or 0 to {MOST_READAHEAD} batches", readahead)
        expected = "0 beside data.workers=0, which makes batches when they are asked for"
        check(not readahead or workers != 0, "data.readahead", expected, readahead)
        fits = workers is None or 0 <= workers <= MOST_WORKERS
        check(fits, "data.workers", f"null, or 0 to {MOST_WORKERS}", workers)


SOURCE_KEYS: dict[str, tuple[Any, str]] = {
    "val_folder": (None, "null with data={}, whose validation images have their place"),
    "val_share": (None, "null with data={}, whose validation images are fixed"),
    "reencoded": (False, "false with data={}, which no pack was made of"),
    "download": (False, "false with data={}, which cannot be fetched"),
}
"""Keys of a data set that only some sources take: the value that changes nothing, and what is
expected of a source that does not take them."""


def check_source(data: DataConfig) -> None:
    """Refuse a key that the chosen source does not take, rather than leave it without effect.

    For data that a command describes: a checkpoint from before the check may have such a key.

    Raises:
        InputError: There is such a key.
    """
    for key, (unused, expected) in SOURCE_KEYS.items():
        value = getattr(data, key)
        fits = value == unused or key in data.source
        check(fits, f"data.{key}", expected.format(data.name), value)


@dataclass
class AugmentConfig:
    """Group `augment`: arguments of `mobilenext.data.train_transform` and of `Mixing`."""

    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Range of the random crop's share of the image's area."""
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Range of the random crop's width over height."""
    interpolation: str = "random"
    """bilinear, bicubic, or random: one of the two for each image."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    """Strength for brightness, contrast, saturation and hue."""
    randaugment: str | None = None
    """timm's description, for instance rand-m9-mstd0.5."""
    erasing: float = 0.0
    """Probability of random erasing."""
    pad_crop: int | None = added_later(None)
    """In place of the random resized crop, the whole image shifted by up to this many pixels on
    each axis, over black; null: random resized crops."""
    cutout: int | None = added_later(None)
    """Side of a square of each image that gets the mean colour, in pixels; null: none."""
    mixup: float = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 turns it off."""

    def __post_init__(self) -> None:
        for key in ("crop_scale", "crop_ratio"):
            low_high = getattr(self, key)
            check(
                len(low_high) == 2 and 0 < low_high[0] <= low_high[1],
                f"augment.{key}",
                "[low, high] with 0 < low <= high",
                low_high,
            )
        check(self.crop_scale[-1] <= 1, "augment.crop_scale", "shares up to 1", self.crop_scale)
        for key in ("hflip", "erasing"):
            check(0 <= getattr(self, key) <= 1, f"augment.{key}", "in [0, 1]", getattr(self, key))
        shift = self.pad_crop
        check(shift is None or 0 <= shift <= 512, "augment.pad_crop", "null, or 0 to 512", shift)
        side = self.cutout
        check(side is None or 1 <= side <= 2048, "augment.cutout", "null, or 1 to 2048", side)
        for key in ("mixup", "cutmix"):
            check(getattr(self, key) >= 0, f"augment.{key}", "0 or more", getattr(self, key))
        jitter = self.color_jitter
        check(
            len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5,
            "augment.color_jitter",
            "4 numbers from 0 on, hue at most 0.5",
            jitter,
        )


@dataclass
class BoxAugmentConfig:
    """Group `augment` of detection: arguments of `mobilenext.data.BoxTransform`, and colours."""

    zoom_out: float = 1.0
    """Largest side of a canvas around the image over the image's; 1: the image as it is."""
    zoom_out_probability: float = 0.5
    """Probability of a canvas that is larger than the image."""
    iou_crop: bool = False
    """Cut out a part that overlaps with an object by an IoU that is drawn."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    interpolation: str = "bilinear"
    """bilinear or bicubic, antialiased."""
    photometric: bool = False
    """SSD's distortion of brightness, contrast, saturation, hue and the order of channels."""

    def __post_init__(self) -> None:
        check(1 <= self.zoom_out <= 16, "augment.zoom_out", "1 to 16", self.zoom_out)
        for key in ("zoom_out_probability", "hflip"):
            check(0 <= getattr(self, key) <= 1, f"augment.{key}", "in [0, 1]", getattr(self, key))
        check_choice("augment.interpolation", self.interpolation, ("bilinear", "bicubic"))


@dataclass
class DetectorConfig:
    """Group `detector`."""

    name: str = MISSING
    """Short name, for run folders and tables."""
    network: dict[str, Any] = MISSING
    """`_target_` and arguments, all but `backbone`, `num_classes` and `image_size`."""


@dataclass
class RuntimeConfig:
    """Group `runtime`."""

    device: str = machine_only("auto")
    """auto (CUDA if there is one), cpu, cuda or mps."""
    precision: str = "auto"
    """fp32, tf32, bf16, fp16, or auto: bf16 on CUDA, else fp32. Evaluation is float32 always."""
    channels_last: bool = True
    """Memory format of images and weights."""
    compile: bool = False
    """torch.compile the network for training, and on CUDA the jitter of colours."""
    graph: Any = field(default=False, metadata={"machine_only": True})
    """Launch an optimiser step as one CUDA graph, the same bits; for steps that wait for the host.
    Needs optimizer.fused=true. auto: where it can be done, else a note says why not."""
    fused: bool | None = added_later(None)
    """Train batch norms together with the ReLU6 and the shortcut behind them; the last bits differ.
    null: on the CPU with fp32, where the native norms were built. On CUDA (by Triton, whose speed
    was not measured) only if it is true."""
    deterministic: bool = False
    """Only deterministic algorithms on CUDA, at some cost; on the CPU they are so anyway."""
    micro_batch: int | None = None
    """Images of one forward pass of one process; the rest of its share is accumulated."""
    threads: int | None = machine_only(None)
    """Threads of torch in each process; null: torch's choice."""
    log_every: int = machine_only(50)
    """Optimiser steps between reports."""
    timeout_minutes: float = machine_only(30.0)
    """Minutes that one process may hang before the job ends and names it."""

    def __post_init__(self) -> None:
        for key in ("micro_batch", "threads", "log_every"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"runtime.{key}", "at least 1", value)
        graph = self.graph
        check(graph in (True, False, "auto"), "runtime.graph", "true, false or auto", graph)
        expected = "false with runtime.compile=true, which fuses operators in its own way"
        check(not (self.fused and self.compile), "runtime.fused", expected, self.fused)
        expected = "true with runtime.fused=true, whose kernels know no other format"
        check(self.channels_last or not self.fused, "runtime.channels_last", expected, False)
        check(self.timeout_minutes > 0, "runtime.timeout_minutes", "above 0", self.timeout_minutes)


@dataclass
class CheckpointConfig:
    """Entry `checkpoint`; besides those at each epoch's end."""

    every_steps: int | None = None
    """Optimiser steps between checkpoints within an epoch; null: not by steps."""
    every_minutes: float | None = 10.0
    """Minutes between them; null: not by time."""
    max_share: float = 0.05
    """Share of the time that writing may take; what would exceed it is put off. Only the
    checkpoints of a new best epoch and of the last one are written in any case."""
    keep: int = 2
    """Number of the newest checkpoints to keep, beside the best."""

    def __post_init__(self) -> None:
        for key in ("every_steps", "keep"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"checkpoint.{key}", "at least 1", value)
        minutes, share = self.every_minutes, self.max_share
        check(minutes is None or minutes >= 0, "checkpoint.every_minutes", "0 or more", minutes)
        check(0 < share <= 1, "checkpoint.max_share", "a share in (0, 1]", share)
