"""The model card, README.md of a folder for the hub."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mobilenext.deploy.hub.markdown import Rows, code_block, code_span, literal, table
from mobilenext.deploy.hub.timm_entry import TimmEntry
from mobilenext.deploy.hub.trained import Trained
from mobilenext.deploy.hub.upload import WEIGHTS
from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.models.complexity import Complexity
from mobilenext.runtime.provenance import git_commit, versions

IMAGENET_TERMS = "ImageNet terms of access: non-commercial research and education"
DATA_LICENSES = {
    "imagenet": IMAGENET_TERMS,
    "imagenette": f"a subset of ImageNet; {IMAGENET_TERMS}",
    "cifar10": "not stated; its authors ask to cite Krizhevsky, Learning Multiple Layers of "
    "Features from Tiny Images, 2009",
    "digits": "CC BY 4.0 (UCI Machine Learning Repository, Optical Recognition of Handwritten "
    "Digits)",
}
"""Licences by the data's name; of other data nothing is known."""

HUB_DATASETS = {
    "imagenet": "ILSVRC/imagenet-1k",
    "imagenette": "frgfm/imagenette",
    "cifar10": "uoft-cs/cifar10",
}
"""Data sets that the hub has, by our names; it links those that a card's front matter names, so
other data is named in the text only."""


@dataclass(frozen=True)
class Publication:
    """Where a network is published, and under which terms."""

    repository: str | None
    """user/name on the hub; None if it is not uploaded."""
    folder: str
    """The folder's name: the title, if there is no repository."""
    license: str
    """Licence of the weights, by the hub's names."""
    data_license: str | None
    """Licence of the images; None: what is known by the data's name."""


def model_card(
    publication: Publication, trained: Trained, entry: TimmEntry | None, cost: Complexity
) -> bytes:
    """README.md: what the network is, its result, how it was trained, how to use it.

    Args:
        publication: Where the network is published, and under which terms.
        trained: The network and its run.
        entry: How timm builds it; None if it can't.
        cost: The network's cost for one image of evaluation's size.

    Raises:
        InputError: An entry of the run's config or result is not of the kind that training writes.
    """
    try:
        text = _card(publication, trained, entry, cost)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        raise InputError(
            f"{trained.path}: what it and the files beside it say is not as training "
            f"writes it ({type(error).__name__}: {error}); move config.yaml and result.json "
            "away: the card then goes without the recipe"
        ) from error
    # Paths of the run's command may be no UTF-8.
    return text.encode("utf-8", "backslashreplace")


def network_words(trained: Trained) -> str:
    """The network's name and width."""
    width = trained.model["network"].get("width_mult")
    return literal(trained.model["name"]) + ("" if width is None else f", width {width:g}")


def recipe(trained: Trained) -> Rows:
    """How the network was trained, in words and numbers, from the run's resolved config."""
    config, runtime = trained.config, trained.config.get("runtime", {})
    rows = [
        ("initial weights", _initial_weights(trained)),
        ("optimiser", _target_and_arguments(config["optimizer"])),
        ("weight decay of norms and biases", "yes" if config.get("decay_norm_and_bias") else "no"),
        ("schedule", _target_and_arguments(config["schedule"])),
        ("epochs", literal(config["epochs"])),
        ("batch", f"{config['data']['global_batch_size']:,} images a step, over all processes"),
        *_augmentation(config["augment"]),
        ("label smoothing", f"{config.get('label_smoothing', 0.0):g}"),
        ("EMA of the weights", _ema(config)),
        ("bound of the gradient's norm", _or_none(config.get("clip_grad_norm"))),
        ("running statistics of several processes", literal(config.get("batch_norm", "reduce"))),
        ("precision", literal(trained.result.get("precision", runtime.get("precision", "fp32")))),
    ]
    if config.get("freeze_backbone"):
        rows.insert(1, ("trained layers", "the classifier only"))
    if config.get("freeze_norms"):
        rows.insert(1, ("batch norms", "with the running statistics of the initial weights"))
    if config.get("layer_decay") is not None:
        rows.insert(3, ("learning rate, layer by layer", f"times {config['layer_decay']:g} each"))
    return rows


def _card(
    publication: Publication, trained: Trained, entry: TimmEntry | None, cost: Complexity
) -> str:
    repository = publication.repository
    title = printable(publication.folder) if repository is None else repository.rpartition("/")[2]
    parts = [
        f"---\n{_front_matter(publication, trained, entry)}\n---",
        f"# {title}",
        f"{network_words(trained)}: an image classifier for {len(trained.classes):,} classes, "
        f"trained on {literal(trained.data.name)} with the framework mobilenext, which is built "
        "around MobileNeXt ([arXiv 2007.02269](https://arxiv.org/abs/2007.02269)).",
        "## Network",
        table(_network_rows(trained, entry, cost)),
        "## Result",
        _result_text(trained),
        "## Use",
        _usage(publication, trained, entry),
        "## Data",
        table(_data_rows(trained)),
        "## Recipe",
        table(recipe(trained))
        if trained.config
        else "Not known: no config of the run lay beside the weights.",
        "## Origin",
        _origin(trained),
        "## Licences",
        table(_license_rows(publication, trained)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(publication: Publication, trained: Trained, entry: TimmEntry | None) -> str:
    dataset = HUB_DATASETS.get(trained.data.name)
    return ModelCardData(
        tags=["image-classification", *(["timm"] if entry is not None else [])],
        library_name="timm" if entry is not None else None,
        pipeline_tag="image-classification",
        license=publication.license,
        datasets=[dataset] if dataset is not None else None,
        metrics=["accuracy"],
    ).to_yaml()


def _network_rows(trained: Trained, entry: TimmEntry | None, cost: Complexity) -> Rows:
    node = trained.model["network"]
    rows = [("network", literal(trained.model["name"]))]
    if "width_mult" in node:
        rows.append(("width multiplier", f"{node['width_mult']:g}"))
    if "identity_tensor_multiplier" in node:
        rows.append(("identity tensor multiplier", f"{node['identity_tensor_multiplier']:.4g}"))
    rows += [
        ("parameters", f"{cost.params:,}"),
        ("multiply-adds (MAdds)", f"{cost.madds / 1e6:,.1f} M at {trained.data.eval_size} px"),
        ("built by", f"{code_span(node['_target_'])}, {_arguments_span(node)}"),
    ]
    if entry is not None:
        rows.append(("timm's name", f"{code_span(entry.name)}, with `model_args` of config.json"))
    return rows


def _result_text(trained: Trained) -> str:
    scores = trained.scores
    if scores is None:
        rows: Rows = [("evaluated", "no: the checkpoint is from within an epoch")]
        if trained.path.suffix == ".safetensors":
            rows = [("evaluated", "not known: the file has no scores")]
    else:
        rows = [
            ("top-1", f"{scores['top1']:.3f} %"),
            ("top-5", f"{scores['top5']:.3f} %"),
            ("cross-entropy", f"{scores['loss']:.4f} nats"),
            (
                "images",
                f"{scores['count']:,} held-out ones of {literal(trained.data.name)}, each once",
            ),
        ]
        if scores.get("unreadable"):
            rows.append(("images that could not be read", f"{scores['unreadable']:,}, not counted"))
    rows.append(("weights", "averages over steps (EMA)" if trained.averaged else "as trained"))
    if trained.when:
        rows.append(("epoch", trained.when))
    if "seed" in trained.config:
        rows.append(("seed", f"{literal(trained.config['seed'])}, one run"))
    result = trained.result
    if result and scores is not None and result["top1"] != scores["top1"]:
        rows.append(("at the end of the run", f"top-1 {result['top1']:.3f} %"))
    text = table(rows)
    if trained.highest:
        text += (
            "\n\nOf the run's epochs it is the one with the highest top-1 on these same images; "
            "the highest of several flatters."
        )
    return text


def _usage(publication: Publication, trained: Trained, entry: TimmEntry | None) -> str:
    repository = publication.repository or "USER/NAME"
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
        f"{code_block(lines)}\n\n{needs}From a folder with these files: "
        '`timm.create_model("local-dir:FOLDER", pretrained=True)`.'
    )


def _usage_by_class(trained: Trained, repository: str) -> str:
    node, data = trained.model["network"], trained.data
    package, _, name = node["_target_"].rpartition(".")
    arguments = [f"{key}={value!r}" for key, value in _arguments(node).items()]
    arguments.append(f"num_classes={trained.model['num_classes']}")
    interpolation = f"transforms.InterpolationMode.{data.eval_interpolation.upper()}"
    lines = [
        "from huggingface_hub import hf_hub_download",
        "from safetensors.torch import load_file",
        "from torchvision import transforms",
        "",
        f"from {package} import {name}",
        "",
        f"network = {name}({', '.join(arguments)}).eval()",
        f'path = hf_hub_download("{repository}", "{WEIGHTS}")',
        "network.load_state_dict(load_file(path))",
        "transform = transforms.Compose([",
        f"    transforms.Resize({_resized(trained)}, {interpolation}),",
        f"    transforms.CenterCrop({data.eval_size}),",
        "    transforms.ToTensor(),",
        f"    transforms.Normalize({data.mean}, {data.std}),",
        "])",
        "logits = network(transform(image).unsqueeze(0))  # of an RGB image of Pillow",
    ]
    return (
        f"timm has no such network; it is built by {code_span(node['_target_'])}.\n\n"
        f"{code_block(lines)}\n\nThe names of the classes are in the metadata of {WEIGHTS}, as "
        "JSON."
    )


def _data_rows(trained: Trained) -> Rows:
    data, classes = trained.data, trained.classes
    shown = ", ".join(map(literal, classes[:10])) + (", ..." if len(classes) > 10 else "")
    reencoded = ", from files that were encoded anew" if data.reencoded else ""
    return [
        ("name", literal(data.name)),
        ("classes", f"{len(classes):,}: {shown}"),
        ("training images", f"{data.image_size} px{reencoded}"),
        (
            "evaluation images",
            f"short side resized to {_resized(trained)} px ({data.eval_interpolation}), centre of "
            f"{data.eval_size} px",
        ),
        ("mean, RGB in [0, 1]", _numbers(data.mean)),
        ("standard deviation", _numbers(data.std)),
    ]


def _resized(trained: Trained) -> int:
    """Length of an evaluation image's short side before the crop, in pixels."""
    return math.floor(trained.data.eval_size / trained.data.eval_crop_ratio)


def _initial_weights(trained: Trained) -> str:
    source = trained.init_from
    if source is None:
        published = trained.model["network"].get("pretrained")
        return "those that the library has published" if published else "random"
    return f"{literal(Path(source['path']).name)}, SHA-256 {literal(source['sha256'])}"


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
            f"{ratio[0]:.4g} to {ratio[1]:.4g}, resized by {literal(augment['interpolation'])} "
            "interpolation",
        ),
        ("horizontal flip", f"probability {augment['hflip']:g}"),
        ("colour jitter", ", ".join(strengths) or "none"),
        ("RandAugment", literal(augment["randaugment"] or "none")),
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
            ("commit of mobilenext", literal(result["git_commit"] or "not known")),
            (
                "trained on",
                f"{literal(used['processes'])} x {literal(device)}, "
                f"{result['wall_seconds']:,.0f} s",
            ),
            ("trained with", f"torch {literal(result['versions']['torch'])}"),
        ]
    rows += [
        ("exported from", literal(trained.path.name)),
        ("exported by", f"commit {git_commit() or 'not known'}, timm {now['timm']}"),
    ]
    if result:
        return f"{code_block([_without_folders(result['command'])], '')}\n\n{table(rows)}"
    return f"Command and commit of the training are not known: no result.json.\n\n{table(rows)}"


def _without_folders(command: str) -> str:
    """A command line that keeps the names of files and not the folders that they lie in."""
    program, script, *arguments = shlex.split(command)
    shown = [program, Path(script).name if Path(script).is_absolute() else script]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        path = Path(value).expanduser()
        shown.append(f"{key}{equals}.../{path.name}" if path.is_absolute() else argument)
    return shlex.join(shown)


def _license_rows(publication: Publication, trained: Trained) -> Rows:
    weights = publication.license
    if weights == "other":
        weights = "other: ask those who published them"
    known = DATA_LICENSES.get(trained.data.name, "not stated")
    return [("weights", weights), ("data", publication.data_license or known)]


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    """A config node's arguments."""
    return {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}


def _arguments_span(node: dict[str, Any]) -> str:
    """A config node's arguments as code, for instance `lr=0.1, momentum=0.9`."""
    return code_span(", ".join(f"{key}={value}" for key, value in _arguments(node).items()))


def _target_and_arguments(node: dict[str, Any]) -> str:
    return f"{literal(node['_target_'].rpartition('.')[2])}, {_arguments_span(node)}"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _or_none(value: float | None, words: str = "") -> str:
    return f"{words}{value:g}" if value else "none"
