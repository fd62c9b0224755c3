"""Configs as the command line makes them, and run folders at places of a test's choice."""

import copy
import functools
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
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
    return typed(copy.deepcopy(_composed(job, overrides)))


@functools.cache
def _composed(job: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(job, list(overrides))


def placed(config: Config, path: Path) -> Config:
    """The same config, whose run folder is `path` instead of one named by its recipe."""
    kind: Any = type(config)
    config.__class__ = type(kind.__name__, (kind,), {"run_path": path})
    return config
