"""Configs as the command line makes them, and run folders at places of a test's choice."""

import copy
import functools
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from mobilenext.config import register, typed
from mobilenext.main import CONFIG_DIR
from mobilenext.start import find_job, job_names

Config = TypeVar("Config")

SCHEMAS = {name: find_job(name)[1] for name in job_names()}
for schema in SCHEMAS.values():
    register(schema)

# Most tests are about what a run does, not about what it learns. The smallest MobileNeXt has one
# block for each stage, and digits are scans of 8 px.
TINY = ("width=0.35", "+model.network.depth_mult=0.25", "data.image_size=16",
        "data.global_batch_size=48", "runtime.log_every=10")  # fmt: skip
MADE_UP = ("data=synthetic", "data.source.num_classes=10", "data.source.val_images=24")
"""Images of noise, in place of digits. Training has one batch of them, over and over."""
LEARNS = (*TINY, "strides=[1,1,2,2,2]", "epochs=2", "ema_decay=0.8", "optimizer.lr=0.05")
"""A run that gets most digits right."""


def composed(*overrides: str, job: str = "train") -> Any:
    """A job's config with these overrides."""
    return typed(composed_untyped(*overrides, job=job))


def composed_untyped(*overrides: str, job: str = "train") -> DictConfig:
    """What Hydra composes, before it is checked.

    Composing takes Hydra a sixth of a second, nearly all of it before it comes to the values of
    single keys, which it writes into the config at the end. So each set of choices is composed
    once, and the values are written, by the same function, into a copy.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [item for item in parsed if item.package is None and not _is_group(item.key_or_group)]
    choices = tuple(item.input_line or "" for item in parsed if item not in values)
    config = copy.deepcopy(_of_choices(job, choices))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


def _is_group(key: str) -> bool:
    return (CONFIG_DIR / key).is_dir()


@functools.cache
def _of_choices(job: str, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(job, list(choices))


def placed(config: Config, path: Path) -> Config:
    """The same config, whose run folder is `path` instead of one named by its recipe."""
    kind: Any = type(config)
    config.__class__ = type(kind.__name__, (kind,), {"run_path": path})
    return config
