"""Configs as the command line makes them, and run folders at places of a test's choice."""

from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir

from mobilenext.__main__ import find_job, job_names
from mobilenext.config import register, typed
from mobilenext.main import CONFIG_DIR

Config = TypeVar("Config")

SCHEMAS = {name: find_job(name)[1] for name in job_names()}
for schema in SCHEMAS.values():
    register(schema)


def composed(*overrides: str, job: str = "train") -> Any:
    """A job's config with these overrides."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose(job, list(overrides)))


def placed(config: Config, path: Path) -> Config:
    """The same config, whose run folder is `path` instead of one named by its recipe."""
    kind: Any = type(config)
    config.__class__ = type(kind.__name__, (kind,), {"run_path": path})
    return config
