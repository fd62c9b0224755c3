"""A trained network at 8 bits: what it loses, and as a file of a runtime."""

import copy
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilenext.assembly.data import evaluation_transform, finetuning_loader, validation_loader
from mobilenext.assembly.detection import (
    box_validation_loader,
    check_box_data,
    evaluation_pixels,
    rebuilt_either_with_cost,
)
from mobilenext.assembly.trained import (
    check_classes,
    complete_data,
    evaluation_data,
    images_of,
    is_detector,
)
from mobilenext.config import DataConfig, RuntimeConfig
from mobilenext.config.fields import MISSING, check, check_choice, path_field
from mobilenext.data import BoxData, DeviceBatches, ImageData
from mobilenext.deploy.detector_graph import Counted, from_pixels, postprocessing_of
from mobilenext.deploy.folder import BESIDE, publish, write_beside
from mobilenext.deploy.formats import (
    FORMATS,
    Format,
    OutputsRunner,
    check_packages,
    load_outputs,
    write_as_it_is,
)
from mobilenext.deploy.graph import FromPixels, prepared
from mobilenext.deploy.hub.trained import Trained, read_trained
from mobilenext.deploy.int8.quantization import (
    FineTuning,
    Quantized,
    check_keep_float,
    quantize_network,
    reestimate_norms,
    zero_dead_channels,
)
from mobilenext.deploy.int8.scheme import GRIDS, OBSERVERS, WEIGHTS, Scheme
from mobilenext.deploy.preprocessing import DETECTION as DETECTION_TASK
from mobilenext.deploy.preprocessing import Preprocessing
from mobilenext.errors import InputError
from mobilenext.files import check_output_folder, printable
from mobilenext.metrics.agreement import LogitsOf, compare
from mobilenext.metrics.detection import score_detections
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.instructions import instructions
from mobilenext.runtime.provenance import provenance, version_of
from mobilenext.seeding import generator
from mobilenext.training.measures import DETECTION, TOP1, Measure
from mobilenext.training.progress import Progress, say
from mobilenext.training.weights_files import weights_path

RESULT = "result.json"
FILES = (RESULT, *BESIDE, *(form.file for form in FORMATS.values()))
BATCH = 32
"""Calibration images of one forward pass."""
WORST = 5
"""Layers with the largest error that are printed."""
MOST_BROKEN = 97.0
"""Agreement with the reference, in per cent, below which a runtime's answers are warned about."""
MOST_LOST = 2.0
"""Points of average precision that a runtime's answers may be worth less than the reference's,
before it is warned about."""


@dataclass
class QuantizeConfig:
    """Job `quantize`."""

    checkpoint: str = path_field(positional=True, runs=True)
    """A run folder (runs/latest is the newest), or its .pt checkpoint or .safetensors file."""
    output: str = path_field()
    """Folder for the files; new, empty, or one that the job has written before. In runs/, tables
    and the report find its result.json."""
    data: dict[str, Any] = field(default_factory=dict, metadata={"entries_of": DataConfig})
    """Entries of a `DataConfig`; what is null is as in the run, or all is of a chosen group."""
    weights: list[str] = field(default_factory=lambda: ["per_channel"])
    """per_channel, per_tensor or both: scales of a layer's weights. Files have the first."""
    grid: str = "symmetric"
    """symmetric, or affine (a zero point; no 8-bit kernel of XNNPACK has it for weights)."""
    observer: str = "histogram"
    """How ranges of activations are found: histogram, minmax or percentile."""
    calibration_images: int = 256
    """Images that ranges are found on: of the training split, drawn by the seed, transformed as in
    evaluation."""
    equalize: bool = False
    """Even out the ranges of successive layers' weights, ReLU6 kept exact; helps per_tensor."""
    correct_bias: bool = False
    """Let biases take up the mean error of rounded weights."""
    zero_dead: bool = True
    """Zero the weights of channels that are the same for every image: folded into them, their norm
    makes them so large that one scale for a layer leaves the others nothing."""
    keep_float: list[str] = field(default_factory=list)
    """Modules of the network that stay in float32, for instance features.1.conv.0."""
    finetune_steps: int = 0
    """Steps of training with rounded values (QAT), on the training split; 0: none."""
    finetune_lr: float = 1e-3
    """Learning rate of these steps, falling to 0 by a cosine."""
    reestimate_norms: bool = False
    """Measure the batch norms' statistics again on the calibration images, before anything else."""
    formats: list[str] = field(default_factory=lambda: ["executorch"])
    """Files to write: executorch (model.pte), onnx, torch; []: none, only the result."""
    seed: int = 0
    """Decides which images calibrate, and the order of images in fine-tuning."""
    runtime: RuntimeConfig = MISSING

    def __post_init__(self) -> None:
        known = bool(self.weights) and set(self.weights) <= set(WEIGHTS)
        check(known, "weights", "per_channel, per_tensor or [per_channel,per_tensor]", self.weights)
        check_choice("grid", self.grid, GRIDS)
        check_choice("observer", self.observer, OBSERVERS)
        known = set(self.formats) <= set(FORMATS)
        check(known, "formats", f"some of [{','.join(FORMATS)}]", self.formats)
        check(self.calibration_images >= 2, "calibration_images",
              "at least 2 images to find ranges on, for instance 256",
              self.calibration_images)  # fmt: skip
        check(self.finetune_steps >= 0, "finetune_steps", "a number of steps from 0 on",
              self.finetune_steps)  # fmt: skip
        check(self.finetune_lr > 0, "finetune_lr", "a learning rate above 0", self.finetune_lr)
        for holds, key, lack in (
            (self.grid == "affine", "grid=affine", "zero points of weights"),
            (self.equalize, "equalize=true", "ceiling of its own for each channel"),
        ):
            if holds and "executorch" in self.formats:
                raise InputError(
                    f"{key}: ExecuTorch's 8-bit kernels have no {lack}: add formats=onnx, or "
                    "formats=[] for the numbers alone"
                )


def quantize(config: QuantizeConfig, process: Process) -> dict[str, Any]:
    """Take a trained network to 8 bits, and measure what that costs on the validation split.

    Of a detector all but softmax and decoding is rounded, and average precision says what it costs.

    The drop is that of reference arithmetic: sums in float of values that are rounded to 8 bits. A
    runtime's integer arithmetic differs a little, on some processors much; it stands beside.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        What result.json says.

    Raises:
        InputError: The checkpoint or its data can't be used, an option does not suit a detector,
            an optional package is missing, no image calibrates, the folder has other files or can't
            be written, or there are several processes.
    """
    process.require_alone("quantize")
    output = Path(config.output)
    check_output_folder("output", output, FILES)
    check_packages(FORMATS["executorch"], "quantize")
    for name in config.formats:
        check_packages(FORMATS[name], f"formats={name}")
    job = _opened(config, process)
    rows = [
        _at_8_bits(job, _scheme(config, weights), config, process)
        for weights in dict.fromkeys(config.weights)
    ]
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(staging)
        runners = _write_files(job, rows[0][1], config, staged)
        found = _compared(job, [one for _, one in rows], runners, process)
        result = _result(job, rows, runners, found, config, process)
        _check_finite(result)
        (staged / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        files = publish(staged, output, FILES)
    _tell(result, output, files)
    return result


@dataclass(frozen=True)
class _Job:
    trained: Trained
    data: DataConfig
    images: ImageData | BoxData
    """`BoxData` where the network is a detector."""
    network: FromPixels
    """In float, takes pixels; on the process's device."""
    folded: nn.Module
    """The same, batch norms folded."""
    calibration: list[Tensor]
    """Batches of pixels on the device."""
    described: dict[str, Any]
    """What the result says of the calibration images."""
    cost: dict[str, int]
    preprocessing: Preprocessing
    norms: int
    """Batch norms that were measured again."""
    dead: dict[str, int]
    """Channels whose weights were zeroed; see `zero_dead_channels`."""

    @property
    def measure(self) -> Measure:
        """What the network is judged by."""
        images = self.images
        return DETECTION[images.protocol] if isinstance(images, BoxData) else TOP1


def _opened(config: QuantizeConfig, process: Process) -> _Job:
    """The network and its data."""
    path = weights_path(Path(config.checkpoint))
    trained = read_trained(path, complete_data)
    odd = [name for name, value in trained.tensors.items()
           if value.is_floating_point() and not value.isfinite().all()]  # fmt: skip
    if odd:
        raise InputError(
            f"{printable(path)}: expected finite weights, {len(odd)} tensors have others, first "
            f"{printable(odd[0])}: this run went wrong"
        )
    detects = is_detector(trained.model)
    data = evaluation_data(trained.data.plain, config.data)
    images: Any = images_of(data, chosen=config.data.get("source") is not None)
    if detects:
        check_box_data(images, data.name)
        _check_for_detector(config, data, trained.data.eval_size)
    check_classes({"classes": trained.classes}, path, images, data.name)
    for note in images.notes:
        say(f"note: {note}")
    network, cost = rebuilt_either_with_cost(trained.model, trained.tensors, path, data.eval_size)
    check_keep_float(network, config.keep_float)
    calibration, described = _calibration(images, data, config, process)
    preprocessing = Preprocessing.of(
        evaluation_transform(data), data.mean, data.std, trained.classes,
        postprocessing_of(network),
    )  # fmt: skip
    norms = 0
    whole = from_pixels(network, data.mean, data.std).to(process.device)
    if config.reestimate_norms:
        norms = reestimate_norms(whole, calibration)
        say(f"{norms} batch norms measured again on {described['images']} images")
    original = copy.deepcopy(network).cpu()
    dead: dict[str, int] = {}
    if config.zero_dead:
        dead = zero_dead_channels(network, whole.normalised(calibration[0]))
    if dead:
        places = ", ".join(f"{count} before {name}" for name, count in dead.items())
        say(f"{sum(dead.values())} dead channels zeroed: {places}")
    network = network.cpu()
    folded = prepared(network, data.eval_size, folded=True, masked=False)
    return _Job(
        trained, data, images,
        from_pixels(original, data.mean, data.std).to(process.device),
        from_pixels(folded, data.mean, data.std).to(process.device),
        calibration, described,
        {"num_params": cost.params, "madds": cost.madds}, preprocessing, norms, dead,
    )  # fmt: skip


def _check_for_detector(config: QuantizeConfig, data: DataConfig, size: int) -> None:
    """Raise `InputError` for options that mean nothing to a detector of images of a size."""
    for key, given, expected, why in (
        ("finetune_steps", config.finetune_steps, 0, "fine-tuning has the loss of classifiers"),
        ("data.eval_crop_ratio", data.eval_crop_ratio, 1.0,
         "pictures are squeezed to squares, nothing is cut off"),
        ("data.eval_size", data.eval_size, size, "its default boxes belong to that size"),
    ):  # fmt: skip
        check(given == expected, key, f"{expected} with this detector: {why}", given)


def _calibration(
    images: ImageData | BoxData, data: DataConfig, config: QuantizeConfig, process: Process
) -> tuple[list[Tensor], dict[str, Any]]:
    """Batches of training images, drawn by the seed, and what they are."""
    total = len(images.train)
    order = torch.randperm(total, generator=generator("calibration", config.seed))
    places = sorted(order[: config.calibration_images].tolist())
    transform = evaluation_transform(data)

    def read(place: int) -> np.ndarray | str:
        try:
            if isinstance(images, BoxData):
                return evaluation_pixels(data, images.train, place)
            return transform(images.train[place][0]).numpy()
        except Exception as error:  # whatever damaged files raise
            return f"{error}"

    with ThreadPoolExecutor(max(1, process.cpus)) as threads:
        read_ones = list(threads.map(read, places))
    for one in read_ones:
        if isinstance(one, str):
            say(f"warning: left out of calibration: {one}")
    kept = [(p, one) for p, one in zip(places, read_ones, strict=True) if not isinstance(one, str)]
    if len(kept) < 2:
        raise InputError(
            f"data={printable(data.name)}: expected at least 2 training images to calibrate with, "
            f"{len(kept)} of {len(places)} can be read"
        )
    pixels = torch.from_numpy(np.stack([one for _, one in kept])).permute(0, 3, 1, 2)
    digest = hashlib.sha256(np.array([p for p, _ in kept], np.int64).tobytes()).hexdigest()
    described = {
        "images": len(kept), "unreadable": len(places) - len(kept), "split": "train", "of": total,
        "seed": config.seed, "sha256_of_indices": digest,
    }  # fmt: skip
    batches = [part.contiguous().to(process.device) for part in pixels.split(BATCH)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # graphs are made for two images or more
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches, described


def _scheme(config: QuantizeConfig, weights: str) -> Scheme:
    return Scheme(
        weights, config.grid, config.observer, config.equalize, config.correct_bias,
        tuple(config.keep_float),
    )  # fmt: skip


def _at_8_bits(
    job: _Job, scheme: Scheme, config: QuantizeConfig, process: Process
) -> tuple[Scheme, Quantized]:
    title = scheme.weights.replace("_", " ")
    with Progress(f"calibration, {title}", "batches", len(job.calibration), 0, process) as bar:
        if not config.finetune_steps:
            return scheme, quantize_network(job.folded, job.calibration, scheme, shown=bar.through)
        assert isinstance(job.images, ImageData)
        with closing(finetuning_loader(job.data, job.images, config.seed, process)) as loader:
            tuning = FineTuning(
                _batches(_repeated(loader, config.finetune_steps), process),
                config.finetune_steps, config.finetune_lr,
            )  # fmt: skip
            return scheme, quantize_network(
                job.folded, job.calibration, scheme, tuning, bar.through
            )


def _repeated(loader: Any, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """That many batches, epoch after epoch."""
    epoch = 0
    with Progress("fine-tuning", "steps", steps) as bar:
        done = 0
        while done < steps:
            for batch in loader.epoch(epoch):
                yield batch
                done += 1
                bar.move(done)
                if done == steps:
                    return
            epoch += 1


def _batches(
    batches: Iterable[tuple[Tensor, Tensor]], process: Process
) -> Iterator[tuple[Tensor, Tensor]]:
    """Planes of pixels, and labels, on the device."""
    for pixels, labels in batches:
        planes = pixels.to(process.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        yield planes, labels.to(process.device, non_blocking=True)


@dataclass(frozen=True)
class _File:
    form: Format
    path: Path
    bytes: int
    run: OutputsRunner

    def outputs(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """All that the file gives for pixels, uint8 (N, 3, H, W), on the host."""
        return tuple(map(torch.from_numpy, self.run(pixels.cpu().numpy())))


def _write_files(
    job: _Job, quantized: Quantized, config: QuantizeConfig, staged: Path
) -> list[_File]:
    """Files of the first scheme, each loaded again."""
    if not config.formats:
        return []
    reference = quantized.reference.cpu()
    pixels = job.calibration[0].cpu().numpy()
    files = []
    for name in dict.fromkeys(config.formats):
        form = FORMATS[name]
        say(f"writing {form.file} for {form.runtime}")
        path = staged / form.file
        write_as_it_is(form, reference, pixels, path, job.network.outputs)
        files.append(_File(form, path, path.stat().st_size, load_outputs(path, 1)))
    write_beside(staged, job.preprocessing)
    return files


@dataclass(frozen=True)
class _Found:
    """What the validation images say: entries of the result."""

    network: dict[str, Any]
    """Of the float network."""
    rows: list[dict[str, Any]]
    """Of each scheme's reference arithmetic."""
    files: dict[str, dict[str, Any]]
    """Of each file, by its format's name."""


def _compared(
    job: _Job, rows: Sequence[Quantized], files: Sequence[_File], process: Process
) -> _Found:
    """All forms against the float network, on the validation split."""
    if isinstance(job.images, BoxData):
        return _detected(job, job.images, rows, files, process)
    others: dict[str, LogitsOf] = {
        str(number): one.reference.to(process.device) for number, one in enumerate(rows)
    }
    others |= {one.form.name: lambda batch, one=one: one.outputs(batch)[0] for one in files}
    with (
        closing(validation_loader(job.data, job.images, process)) as loader,
        Progress("evaluation", "batches", len(loader), 0, process) as bar,
    ):
        found = compare(
            job.network, others, _batches(bar.through(loader.epoch(0)), process), process.device
        )
        for text in loader.unreadable.values():
            say(f"warning: left out: {text}")
    against = {one.form.name: found["0", one.form.name].result() for one in files}
    return _Found(
        found["", "0"].expected(),
        [found["", str(number)].result() for number in range(len(rows))],
        {
            name: {
                **found["", name].result(),
                "agreement_with_reference": one["agreement"],
                "sqnr_with_reference_db": one["sqnr_db"],
            }
            for name, one in against.items()
        },
    )


def _detected(
    job: _Job,
    images: BoxData,
    rows: Sequence[Quantized],
    files: Sequence[_File],
    process: Process,
) -> _Found:
    """Average precision of all forms of a detector on the validation split."""
    key = job.measure.key
    # Forms take pixels: these batches are not normalised.
    to_device = DeviceBatches((0.0,) * 3, (1 / 255,) * 3, process.device, channels_last=False)
    forms: dict[str, Any] = {"": job.network}
    forms |= {str(number): one.reference.to(process.device) for number, one in enumerate(rows)}
    forms |= {one.form.name: one.outputs for one in files}
    found: dict[str, dict[str, Any]] = {}
    for name, form in forms.items():
        title = "evaluation, " + (name if name in FORMATS else "8 bits" if name else "float")
        with (
            closing(box_validation_loader(job.data, images.val, process)) as loader,
            Progress(title, "batches", len(loader), 0, process) as bar,
        ):
            precision = score_detections(
                Counted(job.network.network, form), loader, to_device, process, images.val,
                len(images.classes), _no_loss, shown=bar.through,
            )  # fmt: skip
        found[name] = {k: value for k, value in precision.scores.items() if k != "loss"}
        if not name:
            for text in loader.unreadable.values():
                say(f"warning: left out: {text}")
            if not math.isfinite(found[name][key]):
                raise InputError(
                    f"data={printable(job.data.name)}: expected objects in the validation images, "
                    "found none: nothing says what 8 bits cost"
                )
    for name, one in found.items():
        if name:
            one["drop"] = found[""][key] - one[key]
    return _Found(
        found[""],
        [found[str(number)] for number in range(len(rows))],
        {
            one.form.name: {
                **found[one.form.name],
                "drop_from_reference": found["0"][key] - found[one.form.name][key],
            }
            for one in files
        },
    )


def _no_loss(_network: Any, _images: Tensor, _targets: Tensor) -> tuple[Tensor, None]:
    """In place of a loss: what files give has none."""
    return torch.zeros(()), None


def _result(
    job: _Job,
    rows: Sequence[tuple[Scheme, Quantized]],
    files: Sequence[_File],
    found: _Found,
    config: QuantizeConfig,
    process: Process,
) -> dict[str, Any]:
    network = job.trained.model["network"]
    floats = sum(value.numel() * 4 for value in job.folded.state_dict().values())
    set_ = instructions()
    return {
        "kind": "quantized",
        **_of_detector(job),
        "model": job.trained.model["name"],
        "network": network,
        "width": network.get("width_mult"),
        "identity": network.get("identity_tensor_multiplier"),
        "trained_seed": job.trained.config.get("seed"),
        "data": job.data.name,
        "image_size": job.data.eval_size,
        **job.cost,
        "float": found.network,
        "float_bytes": floats,
        "rows": [
            {
                "weights": scheme.weights,
                "grid": scheme.grid,
                "activations": "per-tensor affine, int8",
                "observer": scheme.observer,
                "equalized": scheme.equalize,
                "equalized_pairs": one.equalized,
                "bias_corrected": scheme.correct_bias,
                "dead_zeroed": config.zero_dead,
                "keep_float": list(scheme.keep_float),
                "finetune_steps": config.finetune_steps,
                "finetune_lr": config.finetune_lr if config.finetune_steps else None,
                **found.rows[number],
                "layers": [
                    {"name": layer.name, "sqnr_db": layer.sqnr_db,
                     "weight_sqnr_db": layer.weight_sqnr_db}
                    for layer in one.layers
                ],
            }
            for number, (scheme, one) in enumerate(rows)
        ],
        "arithmetic": "reference: values rounded to 8 bits, sums in float32",
        "norms_folded": True,
        "norms_reestimated": job.norms,
        "dead_channels": job.dead,
        "calibration": job.described,
        "files": [
            {
                "file": one.form.file,
                "runtime": one.form.runtime,
                "version": version_of(one.form.runs_in),
                "bytes": one.bytes,
                "weights": rows[0][0].weights,
                **found.files[one.form.name],
            }
            for one in files
        ],
        "instructions": {"vector": set_.vector, "int8": set_.int8},
        "checkpoint": str(job.trained.path),
        "decoder": job.data.decoder,
        **provenance(process),
    }  # fmt: skip


def _of_detector(job: _Job) -> dict[str, Any]:
    """What a detector's result says more than a classifier's."""
    if not isinstance(job.images, BoxData):
        return {}
    return {
        "task": DETECTION_TASK,
        "detector": job.trained.model["detector"].get("name"),
        "split": job.images.split_name,
        "protocol": job.images.protocol,
        "measure": job.measure.key,
        "in_float": "softmax and decoding",
        "nms": "outside of the files",
    }


def _check_finite(result: dict[str, Any]) -> None:
    try:
        json.dumps(result, allow_nan=False)
    except ValueError as error:
        raise InputError(
            "the network at 8 bits gives values that are not finite: nothing was written"
        ) from error


def _tell(result: dict[str, Any], output: Path, files: Sequence[str]) -> None:
    whole, measure = result["float"], _measure(result)
    say(f"{whole['count']:,} validation images of {printable(result['data'])}; float32: "
        f"{measure.label} {whole[measure.key]:.3f} %")  # fmt: skip
    if measure is not TOP1:
        say("softmax and decoding stay in float, non-maximum suppression is outside of the files")
    for row in result["rows"]:
        extras = [
            words
            for words, holds in (
                ("equalised", row["equalized"]), ("biases corrected", row["bias_corrected"]),
                (f"{row['finetune_steps']} steps of fine-tuning", row["finetune_steps"]),
            )
            if holds
        ]  # fmt: skip
        what = ", ".join([f"weights {row['weights'].replace('_', ' ')} {row['grid']}",
                          f"{row['observer']} ranges", *extras])  # fmt: skip
        say(f"8 bits, reference arithmetic, {what}: {_scores(row, measure)}")
        worst = sorted(row["layers"], key=lambda layer: layer["sqnr_db"])[:WORST]
        named = ", ".join(f"{printable(one['name'])} {one['sqnr_db']:.1f} dB" for one in worst)
        say(f"  layers with the largest error: {named}")
    for one in result["files"]:
        against = (
            f"agreement with the reference {one['agreement_with_reference']:.2f} %"
            if measure is TOP1
            else f"{one['drop_from_reference']:.3f} points below the reference"
        )
        say(
            f"{one['file']}, {one['runtime']} {one['version']}: {_scores(one, measure)}; {against};"
            f" {one['bytes'] / 1e6:.2f} MB (the float weights: {result['float_bytes'] / 1e6:.2f} "
            "MB)"
        )
    for line in _warnings(result):
        say(line)
    say(f"{output}: {', '.join(files)}")


def _measure(result: dict[str, Any]) -> Measure:
    return DETECTION[result["protocol"]] if result.get("task") == DETECTION_TASK else TOP1


def _scores(row: dict[str, Any], measure: Measure) -> str:
    if measure is not TOP1:
        return f"{measure.label} {row[measure.key]:.3f} %, drop {row['drop']:.3f} points"
    return (
        f"top-1 {row['top1']:.3f} %, drop {row['drop']:.3f} ± {row['drop_std_error']:.3f} points, "
        f"agreement {row['agreement']:.2f} %, SQNR {row['sqnr_db']:.1f} dB"
    )


def _warnings(result: dict[str, Any]) -> Iterator[str]:
    int8 = result["instructions"]["int8"]
    detects = _measure(result) is not TOP1
    for one in result["files"]:
        broken = (
            one["drop_from_reference"] > MOST_LOST
            if detects
            else one["agreement_with_reference"] < MOST_BROKEN
        )
        if broken:
            why = ""
            if one["file"] == FORMATS["onnx"].file and int8 == "none":
                why = (
                    ": this processor has no instruction for 8-bit products, so onnxruntime adds "
                    "pairs of them in 16 bits, which saturates; on others it may not"
                )
            how = (
                f"finds {one['drop_from_reference']:.1f} points less than"
                if detects
                else f"answers {100 - one['agreement_with_reference']:.1f} % of the images "
                "otherwise than"
            )
            yield f"warning: {one['file']} {how} the reference{why}"
    first = result["rows"][0]
    if first["drop"] > 2 * first.get("drop_std_error", 0) and first["drop"] > 1:
        tries = [
            text
            for text, holds in (
                ("weights=per_channel", first["weights"] == "per_tensor"),
                ("correct_bias=true", not first["bias_corrected"]),
                ("keep_float=[...] with the layers named above", not first["keep_float"]),
                ("finetune_steps=500", not first["finetune_steps"] and not detects),
            )
            if holds
        ]
        if tries:
            yield f"to lose less, try {' or '.join(tries)}"
