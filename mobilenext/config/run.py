"""Run folders: each is named by its run's recipe, not by the clock."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mobilenext.config.groups import DataConfig
from mobilenext.errors import InputError

SAID_BY_DATA = ("root", "download", "val_folder", "val_share", "on_bad_box", "on_bad_image",
                "pack")  # fmt: skip
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


LATEST = "latest"


def with_newest_run(path: str, having_it: bool = False) -> str:
    """A path in which `latest` is the newest run folder: `runs/latest`, `runs/NAME/latest/best.pt`.

    Newest is the run that was begun or ended last. It is a word rather than a link, which
    everything that walks through `runs` would take for a second run.

    Args:
        path: Any path. What exists by that name is meant as it is.
        having_it: Whether only runs count in which the rest of the path is there.

    Raises:
        InputError: There is no run below the folder.
    """
    place = Path(path)
    if LATEST not in place.parts:
        return path
    number = place.parts.index(LATEST)
    base, rest = Path(*place.parts[:number]), place.parts[number + 1 :]
    if os.path.lexists(base / LATEST):
        return path
    sessions = sorted(base.rglob("sessions.jsonl"), key=lambda file: (file.stat().st_mtime, file))
    if having_it:
        sessions = [file for file in sessions if file.parent.joinpath(*rest).exists()]
    if not sessions:
        with_it = f" with {Path(*rest)}" if having_it else ""
        raise InputError(f"{path}: expected a run folder below {base}, found none{with_it}")
    return str(sessions[-1].parent.joinpath(*rest))
