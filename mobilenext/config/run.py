"""Run folders: each is named by its run's recipe, not by the clock."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mobilenext.config.groups import DataConfig

SAID_BY_DATA = ("root", "download", "val_folder", "val_share")
"""Arguments of data sources that the config's own keys say; not part of a recipe twice."""


class HasRun:
    """Configs of jobs that leave a run folder: `output_dir/name/fingerprint`.

    A mixin for dataclasses; the fields are theirs.
    """

    name: str
    """First part of the run folder's name."""
    output_dir: str
    """Folder in which run folders are made."""
    leaves_run = True
    """Whether the job leaves a run folder; one that extends another job's config may not."""

    def recipe(self) -> dict[str, Any]:
        """The config as plain values, without where and how to compute.

        Fields marked `machine_only` are left out, and so are those `added_later` that have their
        default. Of the data only what decides the images stays: the root only if
        `root_names_data` is set.
        """
        plain = _without_machine(self)
        data = getattr(self, "data", None)
        if isinstance(data, DataConfig):
            root = data.root if data.root_names_data else None
            plain["data"]["root"] = None if root is None else absolute(root)
            source = data.source.items()
            plain["data"]["source"] = {k: v for k, v in source if k not in SAID_BY_DATA}
        return plain

    @property
    def run_path(self) -> Path:
        """Path of the run folder."""
        return Path(self.output_dir) / self.name / fingerprint(self)


def fingerprint(config: HasRun) -> str:
    """12 hexadecimal digits of a config's recipe."""
    text = json.dumps(config.recipe(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def absolute(path: str) -> str:
    """The absolute path, `~` in front of it replaced by the home folder."""
    return os.path.abspath(os.path.expanduser(path))


def _without_machine(config: Any) -> Any:
    if not dataclasses.is_dataclass(config):
        return config
    return {
        item.name: _without_machine(getattr(config, item.name))
        for item in dataclasses.fields(config)
        if not item.metadata.get("machine_only") and not _has_added_default(config, item)
    }


def _has_added_default(config: Any, item: dataclasses.Field[Any]) -> bool:
    """Whether a field was added later (see `added_later`) and has its default."""
    return bool(item.metadata.get("added")) and getattr(config, item.name) == item.default
