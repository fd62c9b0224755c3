"""The typed contract between YAML, the command line and the code.

One dataclass for each job; Hydra checks names and types against it, `__post_init__` checks what one
value has to do with another, and `typed` turns the composed config into these objects once. What a
constructor's own signature describes (network, optimiser, schedule, data source) stays a plain
dict with a `_target_`, which `mobilenext.targets` calls if it is in one of its tables.
"""

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mobilenext.errors import InputError, UserError
from mobilenext.plain import check_plain

DECODERS = ("auto", "native", "simplejpeg", "torchvision", "pillow", "nvjpeg")
"""Those of `mobilenext.data.decoders`."""


LARGEST_SIZE = 2048
"""Most pixels of an image's side."""
LARGEST_BATCH = 1 << 28
"""Most pixels of a batch of evaluation, 3 GB as float32: what a foreign checkpoint may ask for."""


MOST_WORKERS = 1024


def _machine_only(default: Any, path: bool = False) -> Any:
    """A field that says how or where to run, not what comes out; left out of the fingerprint."""
    return field(default=default, metadata={"machine_only": True, "path": path})


def _added(default: Any, path: bool = False) -> Any:
    """A field that came later, and whose default leaves everything as it was before.

    It is part of the fingerprint only where it has another value: runs that were begun without it
    keep their folders, so that the same command still goes on with them.
    """
    return field(default=default, metadata={"added": True, "path": path})


PATH = {"path": True}
"""Metadata of fields with paths: `~` in front of one is the user's home folder."""


def _path(default: Any = MISSING) -> Any:
    return field(default=default, metadata=PATH)


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
    root: str | None = _path(None)
    """Folder with the data."""
    root_names_data: bool = False
    """Whether another root means other images, so that it is part of the run's fingerprint."""
    reencoded: bool = False
    """Whether the training images of the pack at `root` were encoded anew, smaller for instance."""
    download: bool = _machine_only(False)
    """Fetch the data if it is not there, where the source can."""
    image_size: int = MISSING
    """Height and width of training images, in pixels."""
    eval_size: int = MISSING
    """Height and width of evaluation images, in pixels."""
    eval_crop_ratio: float = 0.875
    """Evaluation resizes the short side to eval_size / eval_crop_ratio, then crops the centre."""
    eval_interpolation: str = "bicubic"
    """Of that resizing: bilinear or bicubic."""
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
    max_bad_share: float = _machine_only(0.01)
    """With skip: share of a split's images that may be unreadable; more stops the run."""
    workers: int | None = _machine_only(None)
    """Threads of each training process that decode; null: as many as it has cores; 0: batches are
    made when they are asked for."""
    decoder: str = _machine_only("auto")
    """native, simplejpeg, torchvision, pillow, nvjpeg (on a CUDA device), or auto: the first of the
    first three that is there. Pixels differ a little (`mobilenext/data/decoders.py`)."""

    def __post_init__(self) -> None:
        for key in ("image_size", "eval_size"):
            size = getattr(self, key)
            _check(1 <= size <= LARGEST_SIZE, f"data.{key}", f"1 to {LARGEST_SIZE} pixels", size)
        ratio, pixels = self.eval_crop_ratio, self.eval_batch_size * self.eval_size**2
        _check(0.1 <= ratio <= 1, "data.eval_crop_ratio", "a number in [0.1, 1]", ratio)
        expected = f"at most {LARGEST_BATCH // self.eval_size**2} for data.eval_size"
        _check(pixels <= LARGEST_BATCH, "data.eval_batch_size", expected, self.eval_batch_size)
        _check_choice("data.eval_interpolation", self.eval_interpolation, ("bilinear", "bicubic"))
        hint = "of pixels scaled to 0 to 1 (values for 0 to 255 divided by 255)"
        expected = f"3 numbers from 0 to 1, {hint}"
        _check(_are_shares(self.mean), "data.mean", expected, self.mean)
        expected = f"3 numbers above 0, up to 1, {hint}"
        _check(_are_shares(self.std) and 0 not in self.std, "data.std", expected, self.std)
        _check_choice("data.on_bad_image", self.on_bad_image, ("error", "skip"))
        share = self.max_bad_share
        _check(0 <= share <= 1, "data.max_bad_share", "a share in [0, 1]", share)
        workers = self.workers
        fits = workers is None or 0 <= workers <= MOST_WORKERS
        _check(fits, "data.workers", f"null, or 0 to {MOST_WORKERS}", workers)
        _check_choice("data.decoder", self.decoder, DECODERS)


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
    mixup: float = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 turns it off."""

    def __post_init__(self) -> None:
        for key in ("crop_scale", "crop_ratio"):
            low_high = getattr(self, key)
            _check(
                len(low_high) == 2 and 0 < low_high[0] <= low_high[1],
                f"augment.{key}",
                "[low, high] with 0 < low <= high",
                low_high,
            )
        _check(self.crop_scale[-1] <= 1, "augment.crop_scale", "shares up to 1", self.crop_scale)
        for key in ("hflip", "erasing"):
            _check(0 <= getattr(self, key) <= 1, f"augment.{key}", "in [0, 1]", getattr(self, key))
        for key in ("mixup", "cutmix"):
            _check(getattr(self, key) >= 0, f"augment.{key}", "0 or more", getattr(self, key))
        jitter = self.color_jitter
        _check(
            len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5,
            "augment.color_jitter",
            "4 numbers from 0 on, hue at most 0.5",
            jitter,
        )


@dataclass
class RuntimeConfig:
    """Group `runtime`."""

    device: str = _machine_only("auto")
    """auto (CUDA if there is one), cpu, cuda or mps."""
    precision: str = "auto"
    """fp32, tf32, bf16, fp16, or auto: bf16 on CUDA, else fp32. Evaluation is float32 always."""
    channels_last: bool = True
    """Memory format of images and weights."""
    compile: bool = False
    """torch.compile the network for training."""
    deterministic: bool = False
    """Only deterministic algorithms on CUDA, at some cost; on the CPU they are so anyway."""
    micro_batch: int | None = None
    """Images of one forward pass of one process; the rest of its share is accumulated."""
    threads: int | None = _machine_only(None)
    """Threads of torch in each process; null: torch's choice."""
    log_every: int = _machine_only(50)
    """Optimiser steps between reports."""
    timeout_minutes: float = _machine_only(30.0)
    """How long one process may hang before the job ends and says which one it was."""

    def __post_init__(self) -> None:
        for key in ("micro_batch", "threads", "log_every"):
            value = getattr(self, key)
            _check(value is None or value >= 1, f"runtime.{key}", "at least 1", value)
        _check(self.timeout_minutes > 0, "runtime.timeout_minutes", "above 0", self.timeout_minutes)


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
    """How many of the newest to keep, beside the best."""

    def __post_init__(self) -> None:
        for key in ("every_steps", "keep"):
            value = getattr(self, key)
            _check(value is None or value >= 1, f"checkpoint.{key}", "at least 1", value)
        minutes, share = self.every_minutes, self.max_share
        _check(minutes is None or minutes >= 0, "checkpoint.every_minutes", "0 or more", minutes)
        _check(0 < share <= 1, "checkpoint.max_share", "a share in (0, 1]", share)


@dataclass
class TrainConfig:
    """Job `train`, and what a checkpoint says of the run that it belongs to."""

    name: str = MISSING
    """First part of the run folder's name."""
    output_dir: str = _machine_only("runs", path=True)
    """Where run folders lie."""
    seed: int = 0
    """Decides initial weights, order, augmentation and dropout."""
    width: float = 1.0
    """Width multiplier of the network."""
    identity: Any = 1.0
    """Identity tensor multiplier of the network, in (0, 1]; a number or a fraction such as 1/6."""
    strides: list[int] = MISSING
    """Strides of the network's five downsampling layers, the stem first: 1 or 2 each."""
    epochs: int = MISSING
    """Passes over the training split, cool-down included."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also holds for norms and biases."""
    clip_grad_norm: float | None = None
    """Upper bound of the gradient's norm; null: none."""
    ema_decay: float | None = None
    """Decay per step of averaged weights, which are then the run's result; null: no averaging."""
    ema_warmup: bool = False
    """Begin with a smaller decay that grows towards `ema_decay`."""
    nonfinite: str = "stop"
    """A loss or gradient that is not finite ends the run (stop), or its step is left out and
    counted (skip; the host then waits for the device once a step, and more than 30 in a row end
    the run). With fp16, gradients that overflow are left out in either case, by its scaler."""
    batch_norm: str = "reduce"
    """Running statistics of several processes: averaged before each evaluation (reduce), those of
    rank 0 (broadcast), or of batches over all processes in the first place (sync; CUDA only)."""
    init_from: str | None = _added(None, path=True)
    """A file with weights to begin with: of a run (model.safetensors, best.pt), or from elsewhere
    (.safetensors or what torch.save wrote). A classifier for other classes is made anew."""
    freeze_backbone: bool = _added(False)
    """Train the classifier only; the rest stays as it is, running statistics included, and is in
    evaluation mode."""
    layer_decay: float | None = _added(None)
    """Learning rate of each group of layers over that of the next one, from the classifier down; in
    (0, 1]; null: all learn at the same rate."""
    checkpoint: CheckpointConfig = field(
        default_factory=CheckpointConfig, metadata={"machine_only": True}
    )
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    augment: AugmentConfig = MISSING
    optimizer: dict[str, Any] = MISSING
    """`_target_` of a torch optimiser and its arguments, all but `params`."""
    schedule: dict[str, Any] = MISSING
    """`_target_` of a function in `mobilenext.optim.schedules` and its arguments."""
    runtime: RuntimeConfig = MISSING

    def __post_init__(self) -> None:
        self.identity = parse_number(self.identity)
        check_multipliers(self.width, self.identity)
        _check(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        smoothing, decay, clip = self.label_smoothing, self.ema_decay, self.clip_grad_norm
        _check(0 <= smoothing < 1, "label_smoothing", "a number in [0, 1)", smoothing)
        _check(decay is None or 0 < decay < 1, "ema_decay", "null or in (0, 1)", decay)
        _check(clip is None or clip > 0, "clip_grad_norm", "null or above 0", clip)
        given, layers = self.init_from is not None, self.layer_decay
        _check(layers is None or 0 < layers <= 1, "layer_decay", "null or in (0, 1]", layers)
        _check(
            given or not self.freeze_backbone,
            "freeze_backbone",
            "false, or init_from=FILE beside it: there is nothing to keep in random weights",
            self.freeze_backbone,
        )
        _check("lr" in self.optimizer, "optimizer", "an entry lr", sorted(self.optimizer))
        lr = self.optimizer["lr"]
        _check(isinstance(lr, int | float) and lr >= 0, "optimizer.lr", "a number from 0 on", lr)
        _check_choice("nonfinite", self.nonfinite, ("stop", "skip"))
        _check_choice("batch_norm", self.batch_norm, ("reduce", "broadcast", "sync"))
        is_sgd = str(self.optimizer.get("_target_")).endswith(".SGD")
        if is_sgd and self.optimizer.get("fused") and self.runtime.precision == "fp16":
            # torch 2.14 leaves uninitialised memory in the momentum when the first step overflows.
            raise InputError(
                "optimizer.fused=true: SGD's fused form spoils its momentum together with the "
                "gradient scaler of runtime.precision=fp16; use bf16, or optimizer.fused=false"
            )


@dataclass
class EvaluateConfig:
    """Job `evaluate`."""

    checkpoint: str = _path()
    """A .pt checkpoint or a .safetensors file of a run."""
    name: str = "evaluate"
    output_dir: str = _machine_only("runs", path=True)
    data: dict[str, Any] = field(default_factory=dict, metadata={"entries_of": DataConfig})
    """Entries of a `DataConfig`; what is null is as in the run, or all is of a chosen group."""
    runtime: RuntimeConfig = MISSING


@dataclass
class ExportConfig:
    """Job `export`."""

    checkpoint: str = _path()
    """A .pt checkpoint or a .safetensors file of a run."""
    output: str = _path()
    """Folder for the files; new, empty, or one that the job has written before."""
    push: str | None = None
    """Repository user/name of the Hugging Face hub that gets them as well; null: none."""
    license: str = "other"
    """Of the weights, by the hub's names: apache-2.0, cc-by-nc-4.0, other, ..."""
    data_license: str | None = None
    """Of the images; null: what is known of the run's data, by its name."""

    def __post_init__(self) -> None:
        parts = ["user", "name"] if self.push is None else self.push.split("/")
        whole = len(parts) == 2 and all(parts)
        _check(whole, "push", "null, or a repository of the hub as user/name", self.push)
        _check(bool(self.license.strip()), "license", "a licence's name, or other", self.license)


@dataclass
class SummaryConfig:
    """Job `summary`."""

    width: float = 1.0
    identity: Any = 1.0
    num_classes: int = 1000
    image_size: int = 224
    """Height and width in pixels."""
    strides: list[int] = MISSING
    """Strides of the network's five downsampling layers, the stem first: 1 or 2 each."""
    model: ModelConfig = MISSING

    def __post_init__(self) -> None:
        self.identity = parse_number(self.identity)
        check_multipliers(self.width, self.identity)
        for key in ("num_classes", "image_size"):
            _check(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))


@dataclass
class GradientsConfig:
    """Job `gradients`."""

    name: str = "gradients"
    output_dir: str = _machine_only("runs", path=True)
    """Where run folders lie."""
    networks: dict[str, Any] = field(default_factory=dict)
    """By label: `_target_` and arguments of a network, all but `num_classes`."""
    models: list[str] = field(default_factory=list)
    """Labels of those to measure at initialisation."""
    runs: list[str] = field(default_factory=list, metadata=PATH)
    """Trained networks to measure as well: run folders, or files as `evaluate` takes them."""
    weights: str = "best.pt"
    """What to take of run folders: best.pt, last.pt or model.safetensors."""
    width: float = 1.0
    identity: Any = 1.0
    strides: list[int] = MISSING
    """Strides of the networks' five downsampling layers, the stem first: 1 or 2 each."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each draws weights and images of its own."""
    images: int = 32
    """Training images whose gradients are compared, for each seed."""
    norm_batches: int = 4
    """Batches of so many further training images that give norms their statistics."""
    stem: str = "features.0"
    """Module whose output is the beginning of the information flow."""
    last: str = "features"
    """Module whose output is its end, the last feature map."""
    data: DataConfig = MISSING
    runtime: RuntimeConfig = MISSING

    def __post_init__(self) -> None:
        self.identity = parse_number(self.identity)
        check_multipliers(self.width, self.identity)
        for label in self.models:
            _check_choice("models", label, tuple(self.networks))
        self.networks = {label: self.networks[label] for label in self.models}
        measured = [*self.models, *self.runs]
        _check(bool(measured), "models", "a network, or some runs", self.models)
        _check(len(set(measured)) == len(measured), "models and runs", "each once", measured)
        _check_choice("weights", self.weights, ("best.pt", "last.pt", "model.safetensors"))
        _check(self.images >= 2, "images", "at least 2", self.images)
        _check(self.norm_batches >= 1, "norm_batches", "at least 1", self.norm_batches)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0
        _check(distinct, "seeds", "one or more, each once", self.seeds)
        bad = self.data.on_bad_image
        _check(bad == "error", "data.on_bad_image", "error: few images are read, by name", bad)


@dataclass
class PrepareImagenetConfig:
    """Job `prepare_imagenet`."""

    output: str = _path()
    """Folder for the pack; new, empty, or what the same command has left unfinished."""
    source: str | None = _path(None)
    """Class folders under train/ and val/, ImageNet's official tars, WebDataset or Parquet."""
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
    workers: int | None = None
    """Threads; null: as many as there are cores."""
    limit: int | None = None
    """Take only so many images of each split, evenly spread, to try the rest out."""
    verify: bool = False
    """Instead of making a pack, compare all checksums of the one at `output`."""

    def __post_init__(self) -> None:
        modes = ("copy", "restart", "max_side", "short_side")
        _check_choice("mode", self.mode, modes)
        if self.val_mode is None:
            self.val_mode = "copy" if self.mode == "copy" else "restart"
        _check_choice("val_mode", self.val_mode, ("copy", "restart"))
        _check_choice("classes", self.classes, ("auto", "imagenet"))
        _check_choice("on_bad_image", self.on_bad_image, ("error", "skip", "keep"))
        _check(1 <= self.quality <= 100, "quality", "1 to 100", self.quality)
        for key in ("size", "workers", "limit"):
            value = getattr(self, key)
            _check(value is None or value >= 1, key, "null or at least 1", value)
        resizes = self.mode in ("max_side", "short_side")
        _check(resizes == (self.size is not None), "size", f"{_sized(resizes)}", self.size)
        given = self.verify or self.source is not None
        _check(given, "source", "a folder with images; add source=/path/to/it", self.source)


def _sized(resizes: bool) -> str:
    return "pixels, for instance 400" if resizes else "null, unless mode is max_side or short_side"


@dataclass
class LoaderReportConfig(TrainConfig):
    """Job `loader_report`: what training would do, and how to measure it."""

    seconds: float = 3.0
    """How long each measurement takes, at least."""
    sample: int = 200
    """Training images that are packed in memory, to see what that would bring."""
    report: str | None = _path(None)
    """JSON file that gets all numbers; null: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.seconds > 0, "seconds", "above 0", self.seconds)
        _check(self.sample >= 1, "sample", "at least 1", self.sample)


@dataclass
class TablesConfig:
    """Job `render_tables`."""

    runs: list[str] = field(default_factory=list, metadata=PATH)
    """Run folders, folders of such, or result.json files; none: those that came with the source."""
    output: str | None = _path(None)
    """Folder that gets each table as Markdown, CSV and LaTeX; null: only printed."""
    update: list[str] = field(default_factory=list, metadata=PATH)
    """Markdown files whose tables are renewed: what lies between <!-- table: NAME --> and
    <!-- /table -->."""
    width: float = 1.0
    """Of the networks whose cost is counted, and so are the next two."""
    identity: Any = 1.0
    strides: list[int] = MISSING
    models: dict[str, ModelConfig] = field(default_factory=dict)
    """Networks whose cost stands in the tables, by name."""


@dataclass
class CompareCurveConfig:
    """Job `compare_curve`."""

    runs: list[str] = field(default=MISSING, metadata=PATH)
    """Run folders, finished or not."""
    output: str | None = _path(None)
    """CSV file that gets the points; null: only printed."""
    force: bool = False
    """Also for runs of another network, data or recipe than the log's, which don't compare."""

    def __post_init__(self) -> None:
        _check(bool(self.runs), "runs", "at least one run folder", self.runs)


@dataclass
class ReportConfig:
    """Job `report`."""

    runs: list[str] = field(default_factory=list, metadata=PATH)
    """Run folders, folders of such, or result.json files; none: those that came with the source."""
    output: str = _path("report.html")
    """The page."""
    title: str = "MobileNeXt: runs beside the paper"


JobConfig = (
    TrainConfig
    | EvaluateConfig
    | ExportConfig
    | SummaryConfig
    | GradientsConfig
    | PrepareImagenetConfig
    | LoaderReportConfig
    | TablesConfig
    | CompareCurveConfig
    | ReportConfig
)
SCHEMAS: dict[str, type] = {
    "train_schema": TrainConfig,
    "evaluate_schema": EvaluateConfig,
    "export_schema": ExportConfig,
    "summary_schema": SummaryConfig,
    "gradients_schema": GradientsConfig,
    "prepare_imagenet_schema": PrepareImagenetConfig,
    "loader_report_schema": LoaderReportConfig,
    "tables_schema": TablesConfig,
    "compare_curve_schema": CompareCurveConfig,
    "report_schema": ReportConfig,
}


def register() -> None:
    """Tell Hydra the schemas, and OmegaConf how `${number:1/6}` reads."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=name, node=_schema_node(schema))
    OmegaConf.register_new_resolver("number", parse_number, replace=True)


def _schema_node(schema: type) -> DictConfig:
    """A schema as Hydra merges it.

    One that extends another is merged over the other's composed config (configs/loader_report.yaml)
    and must not reset what that says: inherited fields come without their defaults.
    """
    node = OmegaConf.structured(schema)
    if dataclasses.is_dataclass(schema.__base__):
        for item in dataclasses.fields(schema.__base__):
            node[item.name] = MISSING
    return node


def is_text(config_name: str, key: str) -> bool:
    """Whether a key of a job's config holds text: a path or a name, or a list of them.

    Args:
        config_name: The job's primary config, for instance train.
        key: Dotted, for instance data.root.
    """
    schema: Any = SCHEMAS[f"{config_name}_schema"]
    hint: Any = schema
    for name in key.split("."):
        if not dataclasses.is_dataclass(schema):
            return False
        item = next((item for item in dataclasses.fields(schema) if item.name == name), None)
        if item is None:
            return False
        hint = get_type_hints(schema)[name]
        schema = item.metadata.get("entries_of", hint)
    return hint in (str, str | None, list[str])


def parse_number(value: Any) -> float:
    """A number, also one written as a fraction.

    Raises:
        InputError: It is neither.
    """
    try:
        return float(Fraction(value)) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"expected a number or a fraction such as 0.5 or 1/6, got {value!r}"
        ) from error


def check_multipliers(width: float, identity: float) -> None:
    """Raise `InputError` unless width is above 0 and identity in (0, 1]."""
    _check(0 < width <= 10, "width", "a width multiplier above 0, for instance 0.5", width)
    _check(
        0 < identity <= 1,
        "identity",
        "an identity tensor multiplier in (0, 1], for instance 1 or 1/6",
        identity,
    )


def typed(config: DictConfig) -> Any:
    """Turn a composed config into its dataclass, interpolations resolved.

    Raises:
        InputError: A value is missing, of a wrong type or out of range.
    """
    _refuse_unknown(config)
    try:
        return _with_home(OmegaConf.to_object(config))
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None)
        raise InputError(f"{key} has no value: add {key}=... to the command") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise InputError(f"{key}: {cause or str(error).splitlines()[0]}") from error


def _refuse_unknown(config: DictConfig, place: str = "") -> None:
    """A key that was added with `+` must not be ignored."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return
    known = [item.name for item in dataclasses.fields(schema)]
    for key in config:
        if key not in known:
            raise InputError(f"unknown key {place}{key}: expected one of {', '.join(known)}")
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            value = config[key]
            if isinstance(value, DictConfig):
                _refuse_unknown(value, f"{place}{key}.")


def _with_home(config: Any) -> Any:
    """The same config, `~` in front of its paths replaced by the home folder."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _with_home(value)
        elif item.metadata.get("path") and isinstance(value, str):
            setattr(config, item.name, os.path.expanduser(value))
        elif item.metadata.get("path") and isinstance(value, list):
            setattr(config, item.name, [os.path.expanduser(path) for path in value])
    return config


def from_plain(schema: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain values, such as a checkpoint has; names and types are checked.

    Nothing in them is interpolated: `${oc.env:NAME}` in a file stays these characters.

    Raises:
        InputError: A name or a type does not fit.
    """
    try:
        check_plain(values, f"the values of a {schema.__name__}")
        merged = OmegaConf.merge(OmegaConf.structured(schema), _escaped(values))
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"the stored {schema.__name__} does not fit this version: {str(error).splitlines()[0]}"
        ) from error
    assert isinstance(merged, DictConfig)
    return typed(merged)


def _escaped(value: Any) -> Any:
    """The value with each `${` in its strings written so that OmegaConf reads it as it stands."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(?<!\\)(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """A config dataclass as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def evaluation_data(stored: dict[str, Any], wanted: dict[str, Any]) -> DataConfig:
    """The data to evaluate on: a chosen group, or the run's own with some entries replaced.

    Args:
        stored: The run's `DataConfig` as plain values.
        wanted: `EvaluateConfig.data`.

    Raises:
        InputError: A name or a type does not fit.
    """
    given = {key: value for key, value in wanted.items() if value is not None}
    if "source" in given:
        source = {key: value for key, value in given["source"].items() if value is not None}
        return from_plain(DataConfig, {**given, "source": source})
    # Whoever wrote the file does not decide that something is fetched.
    values = {**stored, "download": False, **given}
    source = {key: value for key, value in stored["source"].items() if key != "download"}
    if "root" in given and "root" not in source:
        raise InputError(f"data.root: the run's data, {stored['name']}, lies in no folder")
    for key in ("root", "reencoded"):
        if key in given:
            source = {**source, key: given[key]}
    values["source"] = source
    return from_plain(DataConfig, values)


def fingerprint(config: TrainConfig | EvaluateConfig | GradientsConfig) -> str:
    """12 hexadecimal digits of the recipe: the config without where and how to compute."""
    plain = _without_machine(config)
    if isinstance(config, EvaluateConfig):
        plain["checkpoint"] = _absolute(config.checkpoint)
    else:
        root = config.data.root if config.data.root_names_data else None
        plain["data"]["root"] = None if root is None else _absolute(root)
        if plain.get("init_from") is not None:
            plain["init_from"] = _absolute(plain["init_from"])
        source = config.data.source.items()
        plain["data"]["source"] = {k: v for k, v in source if k not in ("root", "download")}
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _without_machine(config: Any) -> Any:
    if not dataclasses.is_dataclass(config):
        return config
    return {
        item.name: _without_machine(getattr(config, item.name))
        for item in dataclasses.fields(config)
        if not item.metadata.get("machine_only") and not _as_before(config, item)
    }


def _as_before(config: Any, item: dataclasses.Field[Any]) -> bool:
    """Whether a field came later (see `_added`) and is as if it had not."""
    return bool(item.metadata.get("added")) and getattr(config, item.name) == item.default


def _are_shares(values: list[float]) -> bool:
    return len(values) == 3 and all(0 <= value <= 1 for value in values)


def _check(holds: bool, key: str, expected: str, value: Any) -> None:
    if not holds:
        raise InputError(f"{key}={value}: expected {expected}")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, key, f"one of {', '.join(choices)}", value)
