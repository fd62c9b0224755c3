import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilenext.errors import InputError
from mobilenext.files import link_atomically, write_atomically
from mobilenext.training.run_folder import RunFolder


def test_nothing_is_made_before_create(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.result() is None
    assert not (tmp_path / "a").exists()
    folder.create("seed: 0\n")
    assert (folder.path / "config.yaml").read_text() == "seed: 0\n"
    folder.write_result({"top1": 1.5})
    assert folder.result() == {"top1": 1.5}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output_dir="):
        RunFolder(tmp_path / "file" / "run").create("")


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"top1": ')
    with pytest.raises(InputError, match=r"result\.json is not JSON.*remove it"):
        RunFolder(tmp_path).result()


def test_metrics_are_rewound_to_a_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rewind_metrics(0, 0)
    for kind, step, epoch in (
        ("train", 10, 1), ("train", 20, 1), ("val", 20, 1), ("train", 30, 2), ("train", 40, 2),
        ("val", 40, 2),
    ):  # fmt: skip
        folder.append_metrics({"kind": kind, "step": step, "epoch": epoch})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4')  # torn by a kill
    folder.rewind_metrics(40, 1)  # the second epoch's evaluation had not been saved
    folder.append_metrics({"kind": "train", "step": 41, "epoch": 3})
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 20, 30, 40, 41]
    folder.rewind_metrics(20, 1)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 20]


def test_history_tells_of_whole_epochs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for row in (
        {"kind": "train", "step": 5, "epoch": 1, "lr": 0.1, "loss": 9.0, "top1": 1.0},
        {"kind": "train", "step": 8, "epoch": 1, "lr": 0.2, "loss": 7.0, "top1": 2.0},
        {"kind": "epoch", "step": 8, "epoch": 1, "loss": 8.0, "top1": 1.5, "images_per_second": 1},
        {"kind": "val", "step": 8, "epoch": 1, "loss": 6.0, "top1": 3.0, "top5": 4.0, "count": 9},
    ):
        folder.append_metrics(row)
    assert folder.history() == [
        {
            "epoch": 1,
            "step": 8,
            "lr": 0.2,
            "train": {"loss": 8.0, "top1": 1.5},
            "val": {"loss": 6.0, "top1": 3.0, "top5": 4.0},
        }
    ]


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder's lock, and has a child as loaders have."""
    code = f"""
import os, time
from pathlib import Path
from typing import Any
from mobilenext.training.run_folder import RunFolder
with RunFolder(Path({str(path)!r})).locked():
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
def test_a_folder_in_use_is_refused_until_its_process_dies(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            with (
                pytest.raises(InputError, match=rf"in use by process {other.pid} on .*since"),
                RunFolder(tmp_path).locked(),
            ):
                pass
        finally:
            other.kill()
            other.wait()
        try:
            with RunFolder(tmp_path).locked():  # though the child of the killed one lives on
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)
    with RunFolder(tmp_path).locked():  # let go at the end of the block
        pass


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"can't write to the run folder .*No space left"):
        folder.append_metrics({"step": 1})


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_its_content(tmp_path: Path) -> None:
    last, best = tmp_path / "last", tmp_path / "best"
    for content in (b"1", b"2"):
        write_atomically(last, lambda file, content=content: file.write(content))
        if content == b"1":
            link_atomically(last, best)
    assert (last.read_bytes(), best.read_bytes()) == (b"2", b"1")
    link_atomically(last, best)
    assert best.read_bytes() == b"2"


def test_a_copy_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "last").write_bytes(b"1")
    link_atomically(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lock_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a job that ends before its run began, between another's opening and locking."""
    folder = RunFolder(tmp_path / "run")
    lock = RunFolder._lock

    def late(self: RunFolder, file: Any) -> None:
        (self.path / ".lock").unlink()
        lock(self, file)

    monkeypatch.setattr(RunFolder, "_lock", late)
    with pytest.raises(InputError, match="removed by another job"), folder.locked():
        pass


def test_a_run_that_has_not_begun_leaves_no_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "name" / "hash")
    with folder.locked():
        assert folder.path.exists()
    assert not list(tmp_path.iterdir())
    with folder.locked():
        folder.create("")
    assert (folder.path / "config.yaml").exists()
    with folder.locked():
        pass
    assert (folder.path / "config.yaml").exists()
