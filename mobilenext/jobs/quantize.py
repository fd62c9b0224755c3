"""A trained network at 8 bits: what it loses, and as a file of a runtime."""

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilenext.assembly.data import evaluation_transform, finetuning_loader, validation_loader
from mobilenext.assembly.trained import (
    check_classes,
    complete_data,
    evaluation_data,
    images_of,
    rebuilt_with_cost,
)
from mobilenext.config import DataConfig, RuntimeConfig
from mobilenext.config.fields import MISSING, check, check_choice, path_field
from mobilenext.data import ImageData
from mobilenext.deploy.folder import CLASSIFY, publish, write_beside
from mobilenext.deploy.formats import FORMATS, Format, check_packages, load, write_as_it_is
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
from mobilenext.deploy.preprocessing import PREPROCESSING, Preprocessing
from mobilenext.errors import InputError
from mobilenext.files import check_output_folder, printable
from mobilenext.metrics.agreement import Agreement, LogitsOf, compare
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.instructions import instructions
from mobilenext.runtime.provenance import provenance, version_of
from mobilenext.seeding import generator
from mobilenext.training.progress import Progress, say
from mobilenext.training.weights_files import weights_path

RESULT = "result.json"
FILES = (RESULT, PREPROCESSING, CLASSIFY, *(form.file for form in FORMATS.values()))
BATCH = 32
"""Calibration images of one forward pass."""
WORST = 5
"""Layers with the largest error that are printed."""
MOST_BROKEN = 97.0
"""Agreement with the reference, in per cent, below which a runtime's answers are warned about."""


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

    The drop is that of reference arithmetic: sums in float of values that are rounded to 8 bits. A
    runtime's integer arithmetic differs a little, on some processors much; it stands beside.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        What result.json says.

    Raises:
        InputError: The checkpoint or its data can't be used, an optional package is missing, no
            image calibrates, the folder has other files or can't be written, or there are several
            processes.
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
    images: ImageData
    network: nn.Module
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
    data = evaluation_data(trained.data.plain, config.data)
    images = images_of(data, chosen=config.data.get("source") is not None)
    check_classes({"classes": trained.classes}, path, images, data.name)
    for note in images.notes:
        say(f"note: {note}")
    network, cost = rebuilt_with_cost(trained.model, trained.tensors, path, data.eval_size)
    check_keep_float(network, config.keep_float)
    calibration, described = _calibration(images, data, config, process)
    preprocessing = Preprocessing.of(
        evaluation_transform(data), data.mean, data.std, trained.classes
    )
    norms = 0
    whole = FromPixels(network, data.mean, data.std).to(process.device)
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
        FromPixels(original, data.mean, data.std).eval().to(process.device),
        FromPixels(folded, data.mean, data.std).eval().to(process.device),
        calibration, described,
        {"num_params": cost.params, "madds": cost.madds}, preprocessing, norms, dead,
    )  # fmt: skip


def _calibration(
    images: ImageData, data: DataConfig, config: QuantizeConfig, process: Process
) -> tuple[list[Tensor], dict[str, Any]]:
    """Batches of training images, drawn by the seed, and what they are."""
    total = len(images.train)
    order = torch.randperm(total, generator=generator("calibration", config.seed))
    places = sorted(order[: config.calibration_images].tolist())
    transform = evaluation_transform(data)

    def read(place: int) -> np.ndarray | str:
        try:
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
    logits: LogitsOf


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
        write_as_it_is(form, reference, pixels, path)
        runner = load(path, 1)
        files.append(
            _File(
                form, path, path.stat().st_size,
                lambda batch, runner=runner: torch.from_numpy(runner(batch.cpu().numpy())),
            )
        )  # fmt: skip
    write_beside(staged, job.preprocessing)
    return files


def _compared(
    job: _Job, rows: Sequence[Quantized], files: Sequence[_File], process: Process
) -> Mapping[tuple[str, str], Agreement]:
    """All forms against the float network, on the validation split."""
    others: dict[str, LogitsOf] = {
        str(number): one.reference.to(process.device) for number, one in enumerate(rows)
    }
    others |= {one.form.name: one.logits for one in files}
    with (
        closing(validation_loader(job.data, job.images, process)) as loader,
        Progress("evaluation", "batches", len(loader), 0, process) as bar,
    ):
        found = compare(
            job.network, others, _batches(bar.through(loader.epoch(0)), process), process.device
        )
        for text in loader.unreadable.values():
            say(f"warning: left out: {text}")
    return found


def _result(
    job: _Job,
    rows: Sequence[tuple[Scheme, Quantized]],
    files: Sequence[_File],
    found: Mapping[tuple[str, str], Agreement],
    config: QuantizeConfig,
    process: Process,
) -> dict[str, Any]:
    network = job.trained.model["network"]
    floats = sum(value.numel() * 4 for value in job.folded.state_dict().values())
    set_ = instructions()
    return {
        "kind": "quantized",
        "model": job.trained.model["name"],
        "network": network,
        "width": network.get("width_mult"),
        "identity": network.get("identity_tensor_multiplier"),
        "trained_seed": job.trained.config.get("seed"),
        "data": job.data.name,
        "image_size": job.data.eval_size,
        **job.cost,
        "float": found["", "0"].expected(),
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
                **found["", str(number)].result(),
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
                **found["", one.form.name].result(),
                "agreement_with_reference": found["0", one.form.name].result()["agreement"],
                "sqnr_with_reference_db": found["0", one.form.name].result()["sqnr_db"],
            }
            for one in files
        ],
        "instructions": {"vector": set_.vector, "int8": set_.int8},
        "checkpoint": str(job.trained.path),
        "decoder": job.data.decoder,
        **provenance(process),
    }  # fmt: skip


def _check_finite(result: dict[str, Any]) -> None:
    try:
        json.dumps(result, allow_nan=False)
    except ValueError as error:
        raise InputError(
            "the network at 8 bits gives logits that are not finite: nothing was written"
        ) from error


def _tell(result: dict[str, Any], output: Path, files: Sequence[str]) -> None:
    whole = result["float"]
    say(f"{whole['count']:,} validation images of "
        f"{printable(result['data'])}; float32: top-1 {whole['top1']:.3f} %")  # fmt: skip
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
        say(f"8 bits, reference arithmetic, {what}: {_scores(row)}")
        worst = sorted(row["layers"], key=lambda layer: layer["sqnr_db"])[:WORST]
        named = ", ".join(f"{printable(one['name'])} {one['sqnr_db']:.1f} dB" for one in worst)
        say(f"  layers with the largest error: {named}")
    for one in result["files"]:
        say(
            f"{one['file']}, {one['runtime']} {one['version']}: {_scores(one)}; agreement with the "
            f"reference {one['agreement_with_reference']:.2f} %; {one['bytes'] / 1e6:.2f} MB (the "
            f"float weights: {result['float_bytes'] / 1e6:.2f} MB)"
        )
    for line in _warnings(result):
        say(line)
    say(f"{output}: {', '.join(files)}")


def _scores(row: dict[str, Any]) -> str:
    return (
        f"top-1 {row['top1']:.3f} %, drop {row['drop']:.3f} ± {row['drop_std_error']:.3f} points, "
        f"agreement {row['agreement']:.2f} %, SQNR {row['sqnr_db']:.1f} dB"
    )


def _warnings(result: dict[str, Any]) -> Iterator[str]:
    int8 = result["instructions"]["int8"]
    for one in result["files"]:
        if one["agreement_with_reference"] < MOST_BROKEN:
            why = ""
            if one["file"] == FORMATS["onnx"].file and int8 == "none":
                why = (
                    ": this processor has no instruction for 8-bit products, so onnxruntime adds "
                    "pairs of them in 16 bits, which saturates; on others it may not"
                )
            yield (
                f"warning: {one['file']} answers {100 - one['agreement_with_reference']:.1f} % of "
                f"the images otherwise than the reference{why}"
            )
    first = result["rows"][0]
    if first["drop"] > 2 * first["drop_std_error"] and first["drop"] > 1:
        tries = [
            text
            for text, holds in (
                ("weights=per_channel", first["weights"] == "per_tensor"),
                ("correct_bias=true", not first["bias_corrected"]),
                ("keep_float=[...] with the layers named above", not first["keep_float"]),
                ("finetune_steps=500", not first["finetune_steps"]),
            )
            if holds
        ]
        if tries:
            yield f"to lose less, try {' or '.join(tries)}"
