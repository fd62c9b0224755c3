"""How timm builds a network: a registered name and arguments, and config.json, which has both."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import nn

from mobilenext.deploy.hub.trained import Trained
from mobilenext.errors import InputError
from mobilenext.runtime.precision import ieee_float32
from mobilenext.seeding import generator

TIMM_NAMES = {
    "MobileNeXt": "mobilenext_100",
    "EfficientNet": "mobilenext_efficientnet_b0",
    "mnext_s": "mnext_s",
    "mnext_l": "mnext_l",
}
"""timm's names of the networks of `mobilenext.models`."""

UNUSED_KNOBS = ("width_mult", "identity_tensor_multiplier", "strides")
"""Arguments of `mobilenext.models.timm_model` that must have their defaults; timm's function has
none of them."""

WEIGHTS_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
                     "cache_dir")  # fmt: skip
"""Arguments of `timm.create_model` that say where weights come from."""

ARCHITECTURE_ENTRIES = ("architecture", "input_size", "min_input_size", "fixed_input_size",
                        "first_conv", "classifier", "paper_name", "paper_ids")  # fmt: skip
"""Entries of timm's description of a network that hold for any weights."""


@dataclass(frozen=True)
class TimmEntry:
    """A registered name and arguments, as `timm.create_model` takes them."""

    name: str
    arguments: dict[str, Any]

    @property
    def ours(self) -> bool:
        """Whether timm knows the name only after `import mobilenext`."""
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
        left_out = (*WEIGHTS_ARGUMENTS, *UNUSED_KNOBS)
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
    """Raise `InputError` if a network's arguments are more than plain values.

    Args:
        network: `_target_` and arguments.
        path: The file that describes the network, for the message.
    """
    nested = [key for key, value in network.items() if _has_target(value)]
    if nested:
        raise InputError(
            f"{path}: expected a network whose arguments are plain values, got a _target_ in "
            f"{', '.join(nested)}, which can't be written into config.json; the file itself stays "
            f"of use: python scripts/evaluate.py checkpoint={path}"
        )


def write_config(path: Path, entry: TimmEntry, trained: Trained) -> None:
    """Write config.json: architecture, arguments, names of the classes, how images are made."""
    data = trained.data
    built: Any = timm.create_model(
        entry.name, num_classes=trained.model["num_classes"], **entry.arguments
    )
    # The rest of timm's description is of weights that it may have of this network.
    built.pretrained_cfg = {
        key: value for key, value in built.pretrained_cfg.items() if key in ARCHITECTURE_ENTRIES
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


def check_rebuilt(folder: Path, network: nn.Module, image_size: int) -> None:
    """Check that timm rebuilds this very network from a folder with weights and config.json.

    Args:
        folder: The folder.
        network: The network, ready for evaluation.
        image_size: Height and width of its images, in pixels.

    Raises:
        RuntimeError: Its logits differ in a bit or more.
    """
    with _quiet_timm():
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, image_size, image_size, generator=generator("export", 0))
    with torch.no_grad(), ieee_float32():
        same = torch.equal(again(images), network(images))
    if not same:
        raise RuntimeError("timm rebuilds a network that gives other logits; nothing was written")


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keep timm from reporting each file that it reads."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_target(item) for item in value)
