"""Files that are whole or not there, also after a power cut."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from mobilenext.files import link_atomically, write_atomically
from tests import on_disk


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    events = on_disk.record(monkeypatch)
    write_atomically(path, lambda file: file.write(b"new"))
    assert events == [
        ("file", ".a.bin.tmp", b"new"),
        ("rename", ".a.bin.tmp", "a.bin"),
        ("folder", tmp_path.name, ["a.bin"]),
    ]
    assert path.read_bytes() == b"new"


def test_several_processes_may_write_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = on_disk.record(monkeypatch)
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"new"), shared=True)
    assert events == [
        ("file", f".a.bin.{os.getpid()}.tmp", b"new"),
        ("rename", f".a.bin.{os.getpid()}.tmp", "a.bin"),
        ("folder", tmp_path.name, ["a.bin"]),
    ]


def test_what_is_checked_before_the_rename_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = on_disk.record(monkeypatch)
    checked: list[tuple[int, bytes]] = []
    write_atomically(
        tmp_path / "a.bin",
        lambda file: file.write(b"new"),
        lambda temporary: checked.append((len(events), temporary.read_bytes())),
    )
    assert checked == [(1, b"new")]


def fail(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("write", "before_rename"), [(fail, None), (lambda file: file.write(b"new"), fail)]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, write: Callable[[BinaryIO], object], before_rename: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write, before_rename)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_second_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(b"new")
    path.write_bytes(b"old")
    (tmp_path / ".b.bin.tmp").write_bytes(b"of a process that was killed")
    events = on_disk.record(monkeypatch)
    link_atomically(source, path)
    assert events == [
        ("rename", ".b.bin.tmp", "b.bin"),
        ("folder", tmp_path.name, ["a.bin", "b.bin"]),
    ]
    assert path.samefile(source)


def test_a_copy_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(b"new")

    def no_links(*_: object, **__: object) -> None:
        raise OSError("this file system knows no hard links")

    monkeypatch.setattr(os, "link", no_links)
    events = on_disk.record(monkeypatch)
    link_atomically(source, path)
    assert events == [
        ("file", ".b.bin.tmp", b"new"),
        ("rename", ".b.bin.tmp", "b.bin"),
        ("folder", tmp_path.name, ["a.bin", "b.bin"]),
    ]
    assert not path.samefile(source)
