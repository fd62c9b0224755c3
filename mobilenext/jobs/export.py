"""A trained network as a folder of the Hugging Face hub: weights, timm's config, a model card.

timm rebuilds the network from the folder or from the hub, since its config.json names a network
that timm knows (ours are registered by `import mobilenext`) and the arguments that this one was
built with. Networks that timm does not know go without config.json; their card says how to build
them.

The upload is huggingface_hub's, not timm's `push_to_hf_hub`: that one writes a card of its own,
keeps an old one, and takes only networks that timm has built.
"""

import json
import logging
import math
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import yaml
from huggingface_hub import HfApi, ModelCardData
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from mobilenext.assembly.trained import rebuilt
from mobilenext.config import DataConfig, from_plain
from mobilenext.config.fields import check, path_field
from mobilenext.errors import InputError
from mobilenext.files import printable, read_text, write_atomically
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.plain import check_plain
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import ieee_float32
from mobilenext.runtime.provenance import git_commit, versions
from mobilenext.seeding import generator
from mobilenext.training.checkpoint import load_checkpoint
from mobilenext.training.monitor import say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import check_description, checked_tensors, load_weights


@dataclass
class ExportConfig:
    """Job `export`."""

    checkpoint: str = path_field()
    """A .pt checkpoint or a .safetensors file of a run."""
    output: str = path_field()
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
        check(whole, "push", "null, or a repository of the hub as user/name", self.push)
        check(bool(self.license.strip()), "license", "a licence's name, or other", self.license)


MOST_CONFIG = 1 << 16
"""Bytes of a run's config.yaml."""

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
"""What a folder of the hub may have."""

TIMM_NAMES = {
    "MobileNeXt": "mobilenext_100",
    "EfficientNet": "mobilenext_efficientnet_b0",
    "mnext_s": "mnext_s",
    "mnext_l": "mnext_l",
}
"""What timm calls the networks of `mobilenext.models`."""

NO_KNOBS = ("width_mult", "identity_tensor_multiplier", "strides")
"""Arguments of `mobilenext.models.timm_model` that have to be at rest; timm does not get them."""

OF_CHECKPOINTS = ("network", "ema", "scores", "best", "step", "epoch")
"""Entries of a checkpoint that the card is made of."""

OF_OTHER_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
                    "cache_dir")  # fmt: skip
"""Arguments of `timm.create_model` that say where weights come from."""

OF_THE_ARCHITECTURE = ("architecture", "input_size", "min_input_size", "fixed_input_size",
                       "first_conv", "classifier", "paper_name", "paper_ids")  # fmt: skip
"""What timm's description of a network says of no weights in particular."""

IMAGENET_TERMS = "ImageNet terms of access: non-commercial research and education"
DATA_LICENSES = {
    "imagenet": IMAGENET_TERMS,
    "imagenette": f"a subset of ImageNet; {IMAGENET_TERMS}",
    "cifar10": "not stated; its authors ask to cite Krizhevsky, Learning Multiple Layers of "
    "Features from Tiny Images, 2009",
    "digits": "CC BY 4.0 (UCI Machine Learning Repository, Optical Recognition of Handwritten "
    "Digits)",
}
"""By the data's name; of other data nothing is known."""

HUB_DATASETS = {
    "imagenet": "ILSVRC/imagenet-1k",
    "imagenette": "frgfm/imagenette",
    "cifar10": "uoft-cs/cifar10",
}
"""Those that the hub has; it links what a card names, so other data is named in the text only."""

Rows = list[tuple[str, str]]


def export(config: ExportConfig, process: Process) -> dict[str, Any]:
    """Write a checkpoint's network as a folder of the Hugging Face hub, and perhaps upload it.

    The folder has a network that gives the same logits bit by bit when timm rebuilds it: that is
    tried before anything is written.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        `output`, the folder; `files`, their names; `pushed`, the address on the hub, or None.

    Raises:
        InputError: The checkpoint can't be used, its network has arguments that config.json can't
            hold, the folder has other files or can't be written, the upload failed, or there are
            several processes.
    """
    process.require_alone("export")
    output = Path(config.output).expanduser()
    check_output(output)
    trained = read_trained(Path(config.checkpoint))
    node = trained.model["network"]
    refuse_nested(node, trained.path)
    network = rebuilt(trained.model, trained.tensors, trained.path, trained.data.eval_size)
    entry = timm_entry(node)
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(staging)
        (staged / WEIGHTS).write_bytes(_weights(network, trained))
        if entry is not None:
            _write_config(staged / CONFIG, entry, trained)
            _check_rebuilt(staged, network, trained.data.eval_size)
        cost = measure_complexity(network, trained.data.eval_size)
        try:
            card = model_card(config, trained, entry, cost, output.resolve().name)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
                ValueError) as error:  # fmt: skip
            raise InputError(
                f"{trained.path}: what it and the files beside it say is not as training "
                f"writes it ({type(error).__name__}: {error}); move config.yaml and result.json "
                "away: the card then goes without the recipe"
            ) from error
        # Paths of the run's command may be no UTF-8.
        (staged / CARD).write_bytes(card.encode("utf-8", "backslashreplace"))
        files = [name for name in FILES if (staged / name).exists()]
        _publish(staged, files, output)
    say(f"{output}: {', '.join(files)} ({_summary(trained)})")
    say(_hint(output, entry))
    pushed = None
    if config.push is not None:
        pushed = push(output, files, config.push)
        say(f"pushed to {pushed}")
    return {"output": str(output), "files": files, "pushed": pushed}


# ---- the trained network, and what lies beside it ----


@dataclass(frozen=True)
class Trained:
    """A network's weights and what is known of their training.

    Attributes:
        path: The file.
        tensors: By name.
        model: `name`, `network` and `num_classes`, as a checkpoint has them.
        classes: Their names.
        data: What it was trained on and evaluated with.
        averaged: Whether the weights are averages over steps.
        scores: What the evaluation of these weights counted; None if there was none.
        when: Epochs and steps, in words; "" if the file does not say.
        highest: Whether it is the epoch with the run's highest top-1, and not its last one.
        init_from: `path` and `sha256` of the weights that training began with, if it was given any.
        config: The run's `TrainConfig` as plain values; empty if it is not there.
        result: The run's result.json; empty if it is not there.
    """

    path: Path
    tensors: dict[str, Tensor]
    model: dict[str, Any]
    classes: list[str]
    data: DataConfig
    averaged: bool
    scores: dict[str, Any] | None
    when: str
    highest: bool
    init_from: dict[str, str] | None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


def read_trained(path: Path) -> Trained:
    """Read a checkpoint or final weights, and config and result of their run if they lie beside.

    Where a checkpoint has averaged (EMA) weights, it is these.

    Raises:
        InputError: The file is missing, damaged or not one of this package, or what lies beside it
            is damaged.
    """
    if path.suffix == ".safetensors":
        tensors, described = load_weights(path)
        scores = described.get("scores", {})
        averaged = "ema" in scores
    else:
        described = load_checkpoint(path)
        check_description(described, path)
        missing = [key for key in OF_CHECKPOINTS if key not in described]
        if missing or not {"step", "epoch"} <= described["best"].keys():
            raise InputError(
                f"{printable(path)}: expected a checkpoint of training, got one without "
                f"{', '.join(missing) or 'its best epoch'}"
            )
        averaged = described["ema"] is not None
        tensors = checked_tensors(described["ema" if averaged else "network"], path)
        scores = described["scores"] if _evaluated(described) else {}
    config, result = _of_the_run(path, described)
    epochs = config.get("epochs")
    if "epoch" not in described:  # final weights
        when = _literal(f"{epochs} of {epochs}") if epochs else ""
    else:
        when = f"{described['epoch']}" + (f" of {_literal(epochs)}" if epochs else "")
        if not _evaluated(described):
            when += f", and a part of the next one (step {described['step']:,})"
    best = described.get("best", {})
    return Trained(
        path=path,
        tensors=tensors,
        model=described["model"],
        classes=list(described["classes"]),
        data=from_plain(DataConfig, described["data"]),
        averaged=averaged,
        scores=scores.get("ema" if averaged else "val"),
        when=when,
        highest=best.get("step") == described.get("step", -1) and best.get("epoch") != epochs,
        init_from=described.get("init_from"),
        config=config,
        result=result,
    )


def _evaluated(state: dict[str, Any]) -> bool:
    """Whether a checkpoint's scores are those of its weights: it may be from within an epoch."""
    steps = state.get("train_images", 0) // state["data"].get("global_batch_size", 1)
    return state["step"] in (state["best"]["step"], state["epoch"] * steps)


def _of_the_run(path: Path, described: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and result that lie beside a file, if they are of its network and data."""
    result = RunFolder(path.parent).result() or {}
    config = result.get("config") if result else None
    if config is None:
        try:
            config = yaml.safe_load(read_text(path.parent / "config.yaml", MOST_CONFIG))
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(
                f"{path.parent / 'config.yaml'}: could not read it ({error}); fix it, or move it "
                "away: the card then goes without the recipe"
            ) from error
    check_plain(config, "the config of a run", printable(path.parent))
    try:
        mine = (
            config["model"]["network"] == described["model"]["network"]
            and config["data"]["name"] == described["data"]["name"]
        )
    except (KeyError, TypeError):
        mine = False
    if not mine:
        say(f"note: what lies beside {path} is of another run, and stays out of the card")
        return {}, {}
    return config, result


# ---- what timm makes of it ----


@dataclass(frozen=True)
class TimmEntry:
    """What `timm.create_model` takes: a registered name, and arguments."""

    name: str
    arguments: dict[str, Any]

    @property
    def ours(self) -> bool:
        """Whether timm knows it by `import mobilenext` only."""
        return timm.model_entrypoint(self.name).__module__.startswith("mobilenext.")


def timm_entry(network: dict[str, Any]) -> TimmEntry | None:
    """How timm builds a network, or None if it can't.

    Args:
        network: `_target_` and arguments, plain values.
    """
    arguments = {
        key: value
        for key, value in network.items()
        if key not in ("_target_", "_partial_", "num_classes") and value is not None
    }
    target = str(network["_target_"])
    package, _, name = target.rpartition(".")
    ours = package.startswith("mobilenext.models")
    if target == "timm.create_model" or (ours and name == "timm_model"):
        left_out = (*OF_OTHER_WEIGHTS, *NO_KNOBS)
        model_name = str(arguments.pop("model_name")).split(".")[0]  # without the tag of weights
        kept = {key: value for key, value in arguments.items() if key not in left_out}
        return TimmEntry(model_name, kept) if timm.is_model(model_name) else None
    if not ours or name not in TIMM_NAMES:
        return None
    if name == "EfficientNet":  # timm's entry has the other block by default
        arguments.setdefault("block", "inverted_residual")
    entry = TIMM_NAMES[name]
    if name == "MobileNeXt":
        hundredths = round(100 * arguments.get("width_mult", 1.0))
        registered = f"mobilenext_{hundredths:03d}"
        exact = arguments.get("width_mult", 1.0) == hundredths / 100
        if exact and timm.is_model(registered):
            entry = registered
            arguments.pop("width_mult", None)
    return TimmEntry(entry, arguments)


def refuse_nested(network: dict[str, Any], path: Path) -> None:
    """Raise `InputError` if a network's arguments are more than plain values."""
    nested = [key for key, value in network.items() if _has_target(value)]
    if nested:
        raise InputError(
            f"{path}: expected a network whose arguments are plain values, got a _target_ in "
            f"{', '.join(nested)}, which can't be written into config.json; the file itself stays "
            f"of use: python scripts/evaluate.py checkpoint={path}"
        )


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_target(item) for item in value)


def _write_config(path: Path, entry: TimmEntry, trained: Trained) -> None:
    data = trained.data
    built: Any = timm.create_model(
        entry.name, num_classes=trained.model["num_classes"], **entry.arguments
    )
    # The rest of timm's description is of weights that it may have of this network.
    built.pretrained_cfg = {
        key: value for key, value in built.pretrained_cfg.items() if key in OF_THE_ARCHITECTURE
    }
    save_config_for_hf(
        built,
        str(path),
        model_config={"label_names": trained.classes},
        model_args=entry.arguments,
        data_config={
            "input_size": (3, data.eval_size, data.eval_size),
            "crop_pct": data.eval_crop_ratio,
            "crop_mode": "center",
            "interpolation": data.eval_interpolation,
            "mean": data.mean,
            "std": data.std,
        },
    )


def _check_rebuilt(folder: Path, network: nn.Module, image_size: int) -> None:
    """What timm reads from the folder has to be this very network."""
    with _quiet_timm():
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, image_size, image_size, generator=generator("export", 0))
    with torch.no_grad(), ieee_float32():
        same = torch.equal(again(images), network(images))
    if not same:
        raise RuntimeError("timm rebuilds a network that gives other logits; nothing was written")


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """It tells of every file that it reads."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _weights(network: nn.Module, trained: Trained) -> bytes:
    """The file's content; its metadata let `scripts/evaluate.py` read it as those of a run."""
    data = {**vars(trained.data), "root": None}
    if "root" in data["source"]:  # a path of this machine
        data["source"] = {**data["source"], "root": None}
    described: dict[str, Any] = {"model": trained.model, "classes": trained.classes, "data": data}
    if trained.scores is not None:
        described["scores"] = {"ema" if trained.averaged else "val": trained.scores}
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    return safetensors.torch.save(tensors, {"format": "pt", "mobilenext": json.dumps(described)})


# ---- the card ----


def model_card(
    config: ExportConfig,
    trained: Trained,
    entry: TimmEntry | None,
    cost: Complexity,
    name: str,
) -> str:
    """README.md: what the network is, its result, how it was trained, how to use it.

    Args:
        config: The job's config.
        trained: The network and its run.
        entry: How timm builds it; None if it can't.
        cost: Of the network, for one image of evaluation's size.
        name: The folder's name, for the title if nothing is pushed.
    """
    title = printable(name) if config.push is None else config.push.rpartition("/")[2]
    data = trained.data
    parts = [
        f"---\n{_front_matter(config, trained, entry)}\n---",
        f"# {title}",
        f"{_network_words(trained)}: an image classifier for {len(trained.classes):,} classes, "
        f"trained on {_literal(data.name)} with the framework mobilenext, which is built around "
        "MobileNeXt ([arXiv 2007.02269](https://arxiv.org/abs/2007.02269)).",
        "## Network",
        _table(_network_rows(trained, entry, cost)),
        "## Result",
        _result_text(trained),
        "## Use",
        _usage(config, trained, entry),
        "## Data",
        _table(_data_rows(trained)),
        "## Recipe",
        _table(recipe(trained))
        if trained.config
        else "Not known: no config of the run lay beside the weights.",
        "## Origin",
        _origin(trained),
        "## Licences",
        _table(
            [
                ("weights", _weights_license(config.license)),
                ("data", config.data_license or DATA_LICENSES.get(data.name, "not stated")),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: ExportConfig, trained: Trained, entry: TimmEntry | None) -> str:
    dataset = HUB_DATASETS.get(trained.data.name)
    return ModelCardData(
        tags=["image-classification", *(["timm"] if entry is not None else [])],
        library_name="timm" if entry is not None else None,
        pipeline_tag="image-classification",
        license=config.license,
        datasets=[dataset] if dataset is not None else None,
        metrics=["accuracy"],
    ).to_yaml()


def _network_words(trained: Trained) -> str:
    width = trained.model["network"].get("width_mult")
    return _literal(trained.model["name"]) + ("" if width is None else f", width {width:g}")


def _network_rows(trained: Trained, entry: TimmEntry | None, cost: Complexity) -> Rows:
    node = trained.model["network"]
    rows = [("network", _literal(trained.model["name"]))]
    if "width_mult" in node:
        rows.append(("width multiplier", f"{node['width_mult']:g}"))
    if "identity_tensor_multiplier" in node:
        rows.append(("identity tensor multiplier", f"{node['identity_tensor_multiplier']:.4g}"))
    rows += [
        ("parameters", f"{cost.params:,}"),
        ("multiply-adds (MAdds)", f"{cost.madds / 1e6:,.1f} M at {trained.data.eval_size} px"),
        ("built by", f"{_code_span(node['_target_'])}, {_arguments(node)}"),
    ]
    if entry is not None:
        rows.append(("timm's name", f"{_code_span(entry.name)}, with `model_args` of config.json"))
    return rows


def _result_text(trained: Trained) -> str:
    scores = trained.scores
    if scores is None:
        told: Rows = [("evaluated", "no: the checkpoint is from within an epoch")]
        if trained.path.suffix == ".safetensors":
            told = [("evaluated", "not known: the file has no scores")]
    else:
        told = [
            ("top-1", f"{scores['top1']:.3f} %"),
            ("top-5", f"{scores['top5']:.3f} %"),
            ("cross-entropy", f"{scores['loss']:.4f} nats"),
            (
                "images",
                f"{scores['count']:,} held-out ones of {_literal(trained.data.name)}, each once",
            ),
        ]
        if scores.get("unreadable"):
            told.append(("images that could not be read", f"{scores['unreadable']:,}, not counted"))
    told.append(("weights", "averages over steps (EMA)" if trained.averaged else "as trained"))
    if trained.when:
        told.append(("epoch", trained.when))
    if "seed" in trained.config:
        told.append(("seed", f"{_literal(trained.config['seed'])}, one run"))
    result = trained.result
    if result and scores is not None and result["top1"] != scores["top1"]:
        told.append(("at the end of the run", f"top-1 {result['top1']:.3f} %"))
    text = _table(told)
    if trained.highest:
        text += (
            "\n\nOf the run's epochs it is the one with the highest top-1 on these same images; "
            "the highest of several flatters."
        )
    return text


def _usage(config: ExportConfig, trained: Trained, entry: TimmEntry | None) -> str:
    repository = config.push or "USER/NAME"
    if entry is None:
        return _usage_by_class(trained, repository)
    lines = ["import timm"]
    if entry.ours:
        lines.insert(0, "import mobilenext  # makes its networks known to timm")
    lines += [
        "",
        f'network = timm.create_model("hf-hub:{repository}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
        "logits = network(transform(image).unsqueeze(0))  # of an RGB image of Pillow",
        'print(network.pretrained_cfg["label_names"][logits.argmax()])',
    ]
    needs = "`mobilenext` has to be installed. " if entry.ours else ""
    return (
        f"{_code(lines)}\n\n{needs}From a folder with these files: "
        '`timm.create_model("local-dir:FOLDER", pretrained=True)`.'
    )


def _usage_by_class(trained: Trained, repository: str) -> str:
    node, data = trained.model["network"], trained.data
    package, _, name = node["_target_"].rpartition(".")
    resized = math.floor(data.eval_size / data.eval_crop_ratio)
    given = [f"{key}={value!r}" for key, value in _given(node).items()]
    given.append(f"num_classes={trained.model['num_classes']}")
    interpolation = f"transforms.InterpolationMode.{data.eval_interpolation.upper()}"
    lines = [
        "from huggingface_hub import hf_hub_download",
        "from safetensors.torch import load_file",
        "from torchvision import transforms",
        "",
        f"from {package} import {name}",
        "",
        f"network = {name}({', '.join(given)}).eval()",
        f'path = hf_hub_download("{repository}", "{WEIGHTS}")',
        "network.load_state_dict(load_file(path))",
        "transform = transforms.Compose([",
        f"    transforms.Resize({resized}, {interpolation}),",
        f"    transforms.CenterCrop({data.eval_size}),",
        "    transforms.ToTensor(),",
        f"    transforms.Normalize({data.mean}, {data.std}),",
        "])",
        "logits = network(transform(image).unsqueeze(0))  # of an RGB image of Pillow",
    ]
    return (
        f"timm has no such network; it is built by {_code_span(node['_target_'])}.\n\n"
        f"{_code(lines)}\n\nThe names of the classes are in the metadata of {WEIGHTS}, as JSON."
    )


def _data_rows(trained: Trained) -> Rows:
    data, classes = trained.data, trained.classes
    shown = ", ".join(map(_literal, classes[:10])) + (", ..." if len(classes) > 10 else "")
    resized = math.floor(data.eval_size / data.eval_crop_ratio)
    return [
        ("name", _literal(data.name)),
        ("classes", f"{len(classes):,}: {shown}"),
        ("training images", f"{data.image_size} px" + _reencoded(data)),
        (
            "evaluation images",
            f"short side resized to {resized} px ({data.eval_interpolation}), centre of "
            f"{data.eval_size} px",
        ),
        ("mean, RGB in [0, 1]", _numbers(data.mean)),
        ("standard deviation", _numbers(data.std)),
    ]


def _reencoded(data: DataConfig) -> str:
    return ", from files that were encoded anew" if data.reencoded else ""


def recipe(trained: Trained) -> Rows:
    """How the network was trained, in words and numbers, from the run's resolved config."""
    config, runtime = trained.config, trained.config.get("runtime", {})
    rows = [
        ("initial weights", _initial_weights(trained)),
        ("optimiser", _named(config["optimizer"])),
        ("weight decay of norms and biases", _yes_no(config.get("decay_norm_and_bias"))),
        ("schedule", _named(config["schedule"])),
        ("epochs", _literal(config["epochs"])),
        ("batch", f"{config['data']['global_batch_size']:,} images a step, over all processes"),
        *_augmentation(config["augment"]),
        ("label smoothing", f"{config.get('label_smoothing', 0.0):g}"),
        ("EMA of the weights", _ema(config)),
        ("bound of the gradient's norm", _or_none(config.get("clip_grad_norm"))),
        ("running statistics of several processes", _literal(config.get("batch_norm", "reduce"))),
        ("precision", _literal(trained.result.get("precision", runtime.get("precision", "fp32")))),
    ]
    if config.get("freeze_backbone"):
        rows.insert(1, ("trained layers", "the classifier only"))
    if config.get("layer_decay") is not None:
        rows.insert(3, ("learning rate, layer by layer", f"times {config['layer_decay']:g} each"))
    return rows


def _initial_weights(trained: Trained) -> str:
    given = trained.init_from
    if given is None:
        return "random"
    return f"{_literal(Path(given['path']).name)}, SHA-256 {_literal(given['sha256'])}"


def _augmentation(augment: dict[str, Any]) -> Rows:
    scale, ratio = augment["crop_scale"], augment["crop_ratio"]
    jitter = dict(
        zip(("brightness", "contrast", "saturation", "hue"), augment["color_jitter"], strict=True)
    )
    strengths = [f"{name} {value:g}" for name, value in jitter.items() if value]
    return [
        (
            "random crop",
            f"{100 * scale[0]:.4g} to {100 * scale[1]:.4g} % of the area, width over height "
            f"{ratio[0]:.4g} to {ratio[1]:.4g}, resized by {_literal(augment['interpolation'])} "
            "interpolation",
        ),
        ("horizontal flip", f"probability {augment['hflip']:g}"),
        ("colour jitter", ", ".join(strengths) or "none"),
        ("RandAugment", _literal(augment["randaugment"] or "none")),
        ("random erasing", _or_none(augment["erasing"], "probability ")),
        ("mixup", _or_none(augment["mixup"], "alpha ")),
        ("CutMix", _or_none(augment["cutmix"], "alpha ")),
    ]


def _ema(config: dict[str, Any]) -> str:
    if config.get("ema_decay") is None:
        return "none"
    grows = ", growing towards it" if config.get("ema_warmup") else ""
    return f"decay {config['ema_decay']:g} a step{grows}"


def _origin(trained: Trained) -> str:
    result, now = trained.result, versions()
    rows: Rows = []
    if result:
        used = result["hardware"]
        device = used["accelerator"] or used["cpu"]
        rows += [
            ("commit of mobilenext", _literal(result["git_commit"] or "not known")),
            (
                "trained on",
                f"{_literal(used['processes'])} x {_literal(device)}, "
                f"{result['wall_seconds']:,.0f} s",
            ),
            ("trained with", f"torch {_literal(result['versions']['torch'])}"),
        ]
    rows += [
        ("exported from", _literal(trained.path.name)),
        ("exported by", f"commit {git_commit() or 'not known'}, timm {now['timm']}"),
    ]
    if result:
        return f"{_code([_without_places(result['command'])], '')}\n\n{_table(rows)}"
    return f"Command and commit of the training are not known: no result.json.\n\n{_table(rows)}"


def _without_places(command: str) -> str:
    """A command line that says nothing of where files lie on the machine it was typed on."""
    program, script, *arguments = shlex.split(command)
    shown = [program, Path(script).name if Path(script).is_absolute() else script]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        place = Path(value).expanduser()
        shown.append(f"{key}{equals}.../{place.name}" if place.is_absolute() else argument)
    return shlex.join(shown)


def _weights_license(name: str) -> str:
    return "other: ask those who published them" if name == "other" else name


def _given(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}


def _named(node: dict[str, Any]) -> str:
    return f"{_literal(node['_target_'].rpartition('.')[2])}, {_arguments(node)}"


def _arguments(node: dict[str, Any]) -> str:
    """A config node's arguments, for instance `lr=0.1, momentum=0.9`."""
    return _code_span(", ".join(f"{key}={value}" for key, value in _given(node).items()))


def _table(rows: Rows) -> str:
    cells = [[_cell(text) for text in row] for row in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)])


def _cell(text: str) -> str:
    """A text as a cell of a table; a backslash before a pipe would undo the pipe's escape."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<!\\)(\\*)\|", lambda found: found[1].replace("\\", "\\ ") + r"\|", text)


def _code(lines: list[str], language: str = "python") -> str:
    text = "\n".join(lines)
    fence = "`" * max(3, _longest_backticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


PLAIN = re.compile(r"(?!.*www\.)(?!\d+[.)] )\w+(?:[ .,+/:-] ?\w+)*", re.ASCII)
"""Text in which Markdown finds nothing: no links, images, HTML or emphasis."""


def _literal(value: Any) -> str:
    """A value out of a file as Markdown that shows it as it is: plain words, else a code span.

    Names of data, classes and the like are whatever somebody wrote into a checkpoint; on a public
    page they must not become images, links or headings.
    """
    text = " ".join(str(value).split())
    plain = PLAIN.fullmatch(text) and not text.startswith("_") and not text.endswith("_")
    return text if plain and "__" not in text else _code_span(text)


def _code_span(text: str) -> str:
    text = " ".join(printable(text).split())
    ticks = "`" * (_longest_backticks(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _longest_backticks(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _yes_no(value: Any) -> str:
    return "yes" if value else "no"


def _or_none(value: float | None, words: str = "") -> str:
    return f"{words}{value:g}" if value else "none"


# ---- the folder and the hub ----


def check_output(output: Path) -> None:
    """Raise `InputError` unless a path is free, or a folder with files of this job only."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output}: expected a folder, got a file; choose another path")
    others = sorted({path.name for path in output.glob("*")} - set(FILES))
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise InputError(
            f"output={output}: expected a new or empty folder, or one with {', '.join(FILES)} "
            f"only, got {', '.join(others[:3])}{more}; choose another folder, or remove these"
        )


def _publish(staged: Path, files: list[str], output: Path) -> None:
    """Move files into their folder, each as a whole, and remove what is no longer true."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in files:
            content = (staged / name).read_bytes()
            write_atomically(output / name, lambda file, content=content: file.write(content))
        for name in set(FILES) - set(files):
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"output={output}: can't write there ({error})") from error


def push(folder: Path, files: list[str], repository: str) -> str:
    """Upload files of a folder to a model repository of the hub, which is made if need be.

    Args:
        folder: Where they lie.
        files: Their names; the repository loses others of `FILES`.
        repository: user/name.

    Returns:
        The repository's address.

    Raises:
        InputError: Anything went wrong, for instance nobody is logged in.
    """
    try:
        api = HfApi(library_name="mobilenext")
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=[name for name in FILES if name not in files] or None,
            commit_message="Weights and model card, exported by mobilenext",
        )
    except Exception as error:  # the hub's client and what it stands on raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"push={repository}: the hub did not take it ({reason}). {folder} is complete and "
            "stays; log in (hf auth login, or HF_TOKEN=...) with the right to write there, and run "
            "the same command again"
        ) from error
    return str(address)


def _summary(trained: Trained) -> str:
    scores = trained.scores
    told = "not evaluated" if scores is None else f"top-1 {scores['top1']:.3f} %"
    return f"{_network_words(trained)}, {printable(trained.data.name)}, {told}"


def _hint(output: Path, entry: TimmEntry | None) -> str:
    if entry is None:
        return f"timm has no such network: {output / CARD} says how to build it"
    registers = "import mobilenext, timm" if entry.ours else "import timm"
    return f'use it: {registers}; timm.create_model("local-dir:{output}", pretrained=True)'
