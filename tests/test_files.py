"""Files that are whole or not there, also after a power cut."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from mobilenext.errors import InputError
from mobilenext.files import (
    check_output_file,
    check_output_folder,
    link_atomically,
    writable,
    write_atomically,
    write_whole,
)
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


@pytest.mark.parametrize("content", ["new ä", b"new \xc3\xa4"])
def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path, content: str | bytes) -> None:
    write_whole(tmp_path / "a" / "b" / "c.txt", content)
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"new \xc3\xa4"
    assert os.listdir(tmp_path / "a" / "b") == ["c.txt"]


def test_a_failed_write_is_the_users_to_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = r"output=x: can't write there \(.*\); expected a place .*: make room, fix its perm"
    with pytest.raises(InputError, match=message), writable("output=x"):
        write_whole(tmp_path / "file" / "below", "new")
    with pytest.raises(InputError, match=": call somebody"), writable("output=x", "call somebody"):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), writable("output=x"):
        raise KeyError("not a write")
    assert (tmp_path / "file").read_text() == "mine"


def test_paths_of_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_output_file("output", tmp_path / "file")
    check_output_file("output", tmp_path / "new" / "deep" / "file")
    with pytest.raises(InputError, match=r"report=.*: expected a file's path .*, found a folder"):
        check_output_file("report", tmp_path)
    with pytest.raises(InputError, match=r"found no folder .*file$"):
        check_output_file("report", tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"found no folder .*new$"):
        check_output_file("report", tmp_path / "new" / "file", makes_folders=False)
    if Path("/proc/self").exists():  # a folder that nobody, not even root, can write to
        with pytest.raises(InputError, match=r"report=/proc/x: can't write there"):
            check_output_file("report", Path("/proc/x"))
        with pytest.raises(InputError, match="expected a regular file, got a device"):
            check_output_file("report", Path("/dev/null"))
    assert os.listdir(tmp_path) == ["file"]


def test_folders_of_outputs_have_files_of_nobody_else(tmp_path: Path) -> None:
    check_output_folder("output", tmp_path)
    check_output_folder("output", tmp_path / "new")
    (tmp_path / "file").write_text("mine")
    check_output_folder("output", tmp_path, ["file", "another"])
    with pytest.raises(InputError, match=r"a new or empty folder, got file; choose another"):
        check_output_folder("output", tmp_path)
    with pytest.raises(InputError, match=r"folder, or one with another only, got file;"):
        check_output_folder("output", tmp_path, ["another"])
    with pytest.raises(InputError, match=r"expected a folder, got a file"):
        check_output_folder("output", tmp_path / "file")
