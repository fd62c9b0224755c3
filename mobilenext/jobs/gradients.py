"""Whether the loss gradients of single images pull apart, and how much of them reaches the stem.

The paper argues for shortcuts between wide ends with gradient confusion (Sankararaman et al., arXiv
1904.06963): the eta for which <grad f_i, grad f_j> >= -eta for the losses f_i, f_j of any two
samples. The smaller it is, the less a step for one sample undoes what another one needs; wider
networks have less of it. The paper prints no number for its networks; this job computes them.

Batch norms would make one image's gradient depend on the others of its batch. So they stay in
evaluation mode: at initialisation, with the mean statistics of a few batches of other training
images (their cumulative average, nothing else of the network in training mode); in a trained
network, with the statistics that training has left.
"""

import json
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from mobilenext.assembly.data import decoding_threads, device_batches, evaluation_transform
from mobilenext.assembly.trained import check_classes, note_differences, rebuilt
from mobilenext.config import DataConfig, HasRun, RuntimeConfig, to_yaml
from mobilenext.config.fields import (
    MISSING,
    check,
    check_choice,
    check_multipliers,
    machine_only,
    parse_number,
    path_list,
)
from mobilenext.config.targets import DATA_SOURCES, build
from mobilenext.data import ImageData
from mobilenext.data.decoders import Decoder, DecodeRequest, open_decoder
from mobilenext.errors import InputError
from mobilenext.files import write_whole
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import ieee_float32
from mobilenext.runtime.provenance import provenance
from mobilenext.seeding import generator, seed_devices
from mobilenext.training.progress import say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import load_weights, weights_path


@dataclass
class GradientsConfig(HasRun):
    """Job `gradients`."""

    name: str = "gradients"
    output_dir: str = machine_only("runs", path=True)
    """Where run folders lie."""
    networks: dict[str, Any] = field(default_factory=dict)
    """By label: `_target_` and arguments of a network, all but `num_classes`."""
    models: list[str] = field(default_factory=list)
    """Labels of those to measure at initialisation."""
    runs: list[str] = path_list(positional=True, runs=True)
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
            check_choice("models", label, tuple(self.networks))
        self.networks = {label: self.networks[label] for label in self.models}
        measured = [*self.models, *self.runs]
        check(bool(measured), "models", "a network, or some runs", self.models)
        check(len(set(measured)) == len(measured), "models and runs", "each once", measured)
        check_choice("weights", self.weights, ("best.pt", "last.pt", "model.safetensors"))
        check(self.images >= 2, "images", "at least 2", self.images)
        check(self.norm_batches >= 1, "norm_batches", "at least 1", self.norm_batches)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0
        check(distinct, "seeds", "one or more, each once", self.seeds)
        bad = self.data.on_bad_image
        check(bad == "error", "data.on_bad_image", "error: few images are read, by name", bad)


CHUNK = 8
"""Images of one vectorised backward pass; more is no faster on a CPU, and takes memory."""
COLUMNS = 1 << 18
"""Parameters whose gradients are in float64 at a time."""

NORMS = (
    "Batch norms are in evaluation mode: at initialisation with the mean statistics of {batches} "
    "batches of {images} other training images, in runs with those that training has left."
)

Batch = tuple[Tensor, Tensor]


def gradients(config: GradientsConfig, process: Process) -> dict[str, Any]:
    """Compare the gradients of single training images, network by network and seed by seed.

    A seed decides which images are drawn and, at initialisation, the weights: those that `train`
    begins with for the same seed, network and number of classes. Images are as in evaluation.

    The run folder gets config.yaml and gradients.json.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        What gradients.json says: for each network the values of `confusion` and `flow`, seed by
        seed (`seeds`), as mean over seeds and standard deviation between them (None of one seed).

    Raises:
        InputError: A run is not there or knows other classes, the data has too few images, a
            network lacks the module that `stem` or `last` names or has no usable gradients, or
            there are several processes.
    """
    process.require_alone("gradients")
    images: ImageData = build(config.data.source, DATA_SOURCES)
    trained = [_restored(run, config, images, process) for run in config.runs]
    measured = {label: [] for label in [*config.networks, *(run.label for run in trained)]}
    params = {}
    for seed in config.seeds:
        compared, *others = draw(config, images, seed, process)
        for label, node in config.networks.items():
            seed_devices("init", seed)
            network: nn.Module = build(node, num_classes=len(images.classes))
            network.to(process.device)
            set_norm_statistics(network, [batch for batch, _ in others])
            params[label] = sum(weights.numel() for weights in network.parameters())
            measured[label].append({"seed": seed, **_measured(label, network, compared, config)})
        for run in trained:
            params[run.label] = sum(weights.numel() for weights in run.network.parameters())
            values = _measured(run.label, run.network, compared, config)
            measured[run.label].append({"seed": seed, **values})
    checkpoints = {run.label: str(run.path) for run in trained}
    result = {
        "data": config.data.name,
        "image_size": config.data.eval_size,
        "classes": len(images.classes),
        "width": config.width,
        "images": config.images,
        "norms": NORMS.format(batches=config.norm_batches, images=config.images),
        "networks": [
            {
                "network": label,
                "checkpoint": checkpoints.get(label),
                "num_params": params[label],
                **_over_seeds(rows),
                "seeds": rows,
            }
            for label, rows in measured.items()
        ],
        **provenance(process),
    }
    folder = RunFolder(config.run_path)
    folder.create(to_yaml(config))
    content = json.dumps(result, indent=2, allow_nan=False) + "\n"
    with folder.writable():
        write_whole(folder.path / "gradients.json", content)
    say(render(result))
    say(f"run folder: {folder.path}")
    return result


# ---- images and networks ----


def draw(config: GradientsConfig, images: ImageData, seed: int, process: Process) -> list[Batch]:
    """Training images as evaluation sees them, a function of the seed.

    Returns:
        1 + `norm_batches` disjoint batches of `images` each, on the device: normalised images
        (N, 3, H, W) and labels (N,).

    Raises:
        InputError: There are not so many images, or one can't be read.
    """
    wanted = config.images * (1 + config.norm_batches)
    if wanted > len(images.train):
        raise InputError(
            f"images={config.images} norm_batches={config.norm_batches}: expected at most the "
            f"{len(images.train):,} training images of data={config.data.name}, got "
            f"{config.images} * (1 + {config.norm_batches}) = {wanted:,}; lower one of them"
        )
    order = torch.randperm(len(images.train), generator=generator("gradients", seed))
    data = config.data
    to_device = device_batches(data, process, config.runtime.channels_last)
    threads = decoding_threads(data, process)
    with closing(open_decoder(data.decoder, threads, process.device)) as decoder:
        return [
            to_device(*_decoded(decoder, images, part.numpy(), data))
            for part in order[:wanted].split(config.images)
        ]


def _decoded(decoder: Decoder, images: ImageData, indices: Any, data: DataConfig) -> Batch:
    transform = evaluation_transform(data)
    pixels = decoder.allocate(len(indices), data.eval_size, False)
    request = DecodeRequest(images.train, indices, indices, transform, 0, 0, pixels)
    problems = decoder.decode(request)
    if problems:
        raise InputError(problems[min(problems)])
    return pixels, images.train.targets(indices)


def set_norm_statistics(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Give batch norms the mean statistics of some batches; leaves all in evaluation mode.

    Args:
        network: Only its batch norms are in training mode meanwhile: nothing is dropped.
        batches: Images (N, 3, H, W) each.
    """
    network.eval()
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
    with torch.no_grad(), ieee_float32():
        for images in batches:
            network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@dataclass(frozen=True)
class _Run:
    label: str
    path: Path
    network: nn.Module


def _restored(run: str, config: GradientsConfig, images: ImageData, process: Process) -> _Run:
    """A trained network from a run folder or one of its files, as `evaluate` rebuilds it."""
    path = weights_path(Path(run), [config.weights])
    if not path.exists():
        raise InputError(
            f"runs: {run}: expected a run folder with {config.weights} in it, or a file with "
            "weights, found nothing there; give runs/NAME/HASH"
        )
    tensors, described = load_weights(path)
    check_classes(described, path, images, config.data.name)
    note_differences(described, path, config.data, process)
    network = rebuilt(described["model"], tensors, path, config.data.eval_size, CHUNK)
    return _Run(run, path, network.to(process.device).eval())


def _measured(
    label: str, network: nn.Module, compared: Batch, config: GradientsConfig
) -> dict[str, float | None]:
    images, labels = compared
    samples = sample_gradients(network, images, labels, config.stem, config.last)
    try:
        return {**confusion(gram_matrix(samples.flat), labels.cpu()), **flow(samples)}
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


# ---- gradients ----


@dataclass(frozen=True)
class SampleGradients:
    """Loss gradients of N single samples, float32.

    Attributes:
        flat: With respect to all P parameters, (N, P).
        losses: Cross-entropies in nats, (N,).
        stem: Norms of those with respect to the stem's output, (N,).
        last: Norms of those with respect to the last feature map, (N,).
    """

    flat: Tensor
    losses: Tensor
    stem: Tensor
    last: Tensor


def sample_gradients(
    network: nn.Module, images: Tensor, labels: Tensor, stem: str, last: str
) -> SampleGradients:
    """Gradients of each sample's own cross-entropy, computed in IEEE float32.

    Takes 4 N P bytes, and those of `CHUNK` backward passes.

    Args:
        network: In evaluation mode, so that a sample's gradient is its own.
        images: (N, 3, H, W).
        labels: Class indices (N,).
        stem: Name of the module whose output is the beginning of the information flow.
        last: Name of the one whose output is the last feature map.

    Raises:
        InputError: The network has no such module, or does not use it.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    buffers = dict(network.named_buffers())
    flat = images.new_empty(len(images), sum(p.numel() for p in parameters.values()))
    losses, norms = [], []
    with ieee_float32(), _offsets(network, (stem, last), images[:1]) as offsets:

        def loss(
            weights: dict[str, Tensor], added: dict[str, Tensor], image: Tensor, label: Tensor
        ) -> Tensor:
            offsets.update(added)
            logits = functional_call(network, {**weights, **buffers}, (image[None],))
            return F.cross_entropy(logits, label[None])

        zeros = dict(offsets)
        each = vmap(grad_and_value(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))
        for start in range(0, len(images), CHUNK):
            rows = slice(start, start + CHUNK)
            (by_name, flows), values = each(parameters, zeros, images[rows], labels[rows])
            parts = [by_name[name].flatten(1) for name in parameters]
            torch.cat(parts, dim=1, out=flat[rows])
            losses.append(values)
            norms.append(torch.stack([flows[name].flatten(1).norm(dim=1) for name in (stem, last)]))
    of_stem, of_last = torch.cat(norms, dim=1)
    return SampleGradients(flat, torch.cat(losses), of_stem, of_last)


@contextmanager
def _offsets(
    network: nn.Module, names: Sequence[str], example: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Have the network add something to some modules' outputs: what the yielded dict says.

    The gradient with respect to an offset of zero is that with respect to the output itself, for
    all that is made of it, shortcuts included. The dict begins with zeros.
    """
    offsets: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        if name not in offsets:
            offsets[name] = torch.zeros_like(output)
        return output + offsets[name]

    hooks = []
    modules = dict(network.named_modules())
    try:
        for name in dict.fromkeys(names):
            if name in modules:
                hooks.append(modules[name].register_forward_hook(partial(add, name)))
        with torch.no_grad():
            network(example)
        for name in names:
            if name not in offsets:
                raise InputError(
                    f"{type(network).__name__} has no module {name} that it uses: expected names "
                    "for stem and last, the modules that put out the first and the last feature "
                    f"map; it consists of {', '.join(dict(network.named_children()))}"
                )
        yield offsets
    finally:
        for hook in hooks:
            hook.remove()


def gram_matrix(gradients: Tensor) -> Tensor:
    """Inner products of the rows (N, P), added up in float64 on blocks of columns.

    Returns:
        float64 (N, N), on the CPU.
    """
    # Apple's GPUs have no float64.
    place = torch.device("cpu") if gradients.device.type == "mps" else gradients.device
    count = len(gradients)
    total = torch.zeros(count, count, dtype=torch.float64, device=place)
    for block in gradients.split(COLUMNS, dim=1):
        exact = block.to(place).double()
        total += exact @ exact.T
    return total.cpu()


def confusion(gram: Tensor, labels: Tensor) -> dict[str, float | None]:
    """What the gradients of all pairs of different samples say of each other.

    Args:
        gram: Inner products of the samples' gradients, float64 (N, N).
        labels: Class indices (N,).

    Returns:
        mean_cosine, min_cosine: Over all pairs.
        negative_share: Of the pairs whose gradients have a negative inner product, in [0, 1].
        same_class_cosine, other_class_cosine: Means over pairs of equal and of different labels;
            None where there are none.
        same_class_share: Of the pairs that have equal labels.
        min_inner_product: The smallest one.
        eta: Gradient confusion of these samples, max(0, -min_inner_product).
        without_gradient: Samples whose gradient is zero; they are left out of all pairs.

    Raises:
        InputError: A gradient is not finite, or fewer than two differ from zero.
    """
    squares = gram.diagonal()
    if not gram.isfinite().all():
        raise InputError("gradients are not finite numbers; choose another network or checkpoint")
    pulling = squares > 0
    count = int(pulling.sum())
    if count < 2:
        raise InputError(
            f"expected gradients of at least 2 samples, {count} of {len(gram)} differ from zero; "
            "raise images, or choose another network or checkpoint"
        )
    norms = squares[pulling].sqrt()
    rows, columns = torch.triu_indices(count, count, offset=1)
    products = gram[pulling][:, pulling][rows, columns]
    cosines = products / (norms[rows] * norms[columns])
    same = (labels[pulling][:, None] == labels[pulling])[rows, columns]
    lowest = float(products.min())
    return {
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
        "negative_share": float((products < 0).double().mean()),
        "same_class_cosine": float(cosines[same].mean()) if same.any() else None,
        "other_class_cosine": float(cosines[~same].mean()) if not same.all() else None,
        "same_class_share": float(same.double().mean()),
        "min_inner_product": lowest,
        "eta": max(0.0, -lowest),
        "without_gradient": len(gram) - count,
    }


def flow(samples: SampleGradients) -> dict[str, float | None]:
    """How much of the gradient reaches the beginning of the network.

    Returns:
        gradient_ratio: Norm of the loss gradient with respect to the stem's output over that with
            respect to the last feature map, mean over samples (those whose latter is not zero).
        loss: Mean cross-entropy in nats.
    """
    stem, last = samples.stem.cpu().double(), samples.last.cpu().double()
    there = last > 0
    ratio = float((stem[there] / last[there]).mean()) if there.any() else None
    return {"gradient_ratio": ratio, "loss": float(samples.losses.cpu().double().mean())}


# ---- the table ----


def _over_seeds(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None] | None]:
    """Mean and standard deviation of each value over the seeds that have it."""
    told: dict[str, dict[str, float | None] | None] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        if key == "seed":
            continue
        told[key] = None
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            told[key] = {"mean": statistics.fmean(values), "sd": deviation}
    return told


def render(result: dict[str, Any]) -> str:
    """The table as text, and what its columns are."""
    seeds = len(result["networks"][0]["seeds"])
    trained = any(row["checkpoint"] for row in result["networks"])
    width = max(7, *(len(row["network"]) for row in result["networks"]))
    lines = [
        f"gradients of {result['images']} training images of {result['data']} for each of {seeds} "
        f"seed{'' if seeds == 1 else 's'}, {result['image_size']} px, {result['classes']} "
        f"classes, width {result['width']:g}{' (runs: their own)' if trained else ''}, float32",
        "",
        f"{'network':<{width}}{'params':>12}{'mean cosine':>18}{'same class':>12}"
        f"{'other class':>13}{'min cosine':>17}{'negative':>10}{'stem/last':>15}",
    ]
    for row in result["networks"]:
        lines.append(
            f"{row['network']:<{width}}{row['num_params']:>12,}"
            f"{_shown(row['mean_cosine'], '+.4f', spread=True):>18}"
            f"{_shown(row['same_class_cosine'], '+.3f'):>12}"
            f"{_shown(row['other_class_cosine'], '+.3f'):>13}"
            f"{_shown(row['min_cosine'], '+.3f', spread=True):>17}"
            f"{_shown(row['negative_share'], '.1%'):>10}"
            f"{_shown(row['gradient_ratio'], '.3g', spread=True):>15}"
        )
    lost = sum(one["without_gradient"] for row in result["networks"] for one in row["seeds"])
    legend = (
        "Cosines are between two images' loss gradients with respect to all parameters, over all "
        "pairs; columns are means over seeds, ± the standard deviation between them. negative: "
        "pairs that pull apart. stem/last: norm of the loss gradient with respect to the stem's "
        "output over that with respect to the last feature map, mean over images. Layers with "
        "large gradients decide the cosines: how weights are scaled counts as much as how a "
        "network is built. "
    )
    lines += ["", *textwrap.wrap(legend + result["norms"], 100)]
    if lost:
        lines.append(f"{lost} gradients were zero; such images are left out.")
    return "\n".join(lines)


def _shown(value: dict[str, float | None] | None, form: str, spread: bool = False) -> str:
    if value is None:
        return "-"
    mean, deviation = value["mean"], value["sd"]
    assert mean is not None
    text = format(mean, form)
    if not spread or deviation is None:
        return text
    return f"{text} ± {format(deviation, form.removeprefix('+'))}"
