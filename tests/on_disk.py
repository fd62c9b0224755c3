"""What reaches the disk, and when: calls of fsync and rename in their order."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

Event = tuple[str, str, Any]


def record(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """List that gets an entry for each fsync and each rename from now on.

    ("file", name, content) and ("folder", name, its names): they were brought to the disk as they
    are here; ("rename", old name, new name).
    """
    events: list[Event] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            events.append(("folder", path.name, sorted(os.listdir(path))))
        else:
            events.append(("file", path.name, path.read_bytes()))
        fsync(descriptor)

    def recording_replace(source: Any, target: Any, **more: Any) -> None:
        events.append(("rename", Path(source).name, Path(target).name))
        replace(source, target, **more)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc/self/fd to name open files by")
    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    return events
