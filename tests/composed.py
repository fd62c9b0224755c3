"""Configs as the command line makes them, and run folders at places of a test's choice."""

import copy
import functools
import re
import shlex
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from mobilenext.config import register, typed
from mobilenext.main import CONFIG_DIR, as_overrides
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


def composed_command(line: str) -> tuple[str, Any]:
    """Job and config of a command as a document has it; of a sweep, those of its first run.

    What the shell would put in place of $(...) is a genotype; options of launchers are left out.

    Raises:
        ValueError: It starts no job of ours.
    """
    words = shlex.split(re.sub(r"\$\([^)]*\)", "darts_v2", line), comments=True)
    name, arguments = _job_of(words)
    schema = SCHEMAS[name]
    several = {"-m", "--multirun"} & set(arguments)
    values = [
        _first_of_sweep(word) if several else word
        for word in as_overrides(arguments, schema)
        if not word.startswith(("-", "hydra"))
    ]
    return name, composed(*values, job=name)


def _job_of(words: list[str]) -> tuple[str, list[str]]:
    """The job that a command starts, and its arguments."""
    for place, word in enumerate(words):
        following = words[place + 1 :]
        if word.endswith("train.py") or word.startswith("scripts/"):
            return Path(word).stem, following
        if word.endswith("mobilenext") and following and following[0] in SCHEMAS:
            return following[0], following[1:]
    raise ValueError(f"{words}: starts no job")


def _first_of_sweep(text: str) -> str:
    (parsed,) = OverridesParser.create().parse_overrides([text])
    if not parsed.is_sweep_override():
        return text
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


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
