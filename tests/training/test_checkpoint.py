import argparse
import hashlib
import io
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mobilenext.errors import DamagedFileError, InputError
from mobilenext.training import checkpoint
from mobilenext.training.checkpoint import (
    Checkpoints,
    copied,
    load_checkpoint,
    save_checkpoint,
)
from mobilenext.training.weights_files import (
    load_into,
    load_weights,
    read_tensors,
    read_weights,
    save_weights,
    sha256_of,
    weights_path,
)
from tests.compare import differences

DESCRIBED = {
    "model": {"name": "tiny", "network": {"_target_": "torch.nn.Linear"}, "num_classes": 2},
    "classes": ["a", "b"],
    "data": {"name": "none", "source": {"_target_": "mobilenext.data.digits"}},
}


def state(**more: object) -> dict:
    network = nn.Linear(3, 2)
    return {**DESCRIBED, "network": network.state_dict(), "ema": None, **more}


def test_round_trip(tmp_path: Path) -> None:
    path, saved = tmp_path / "last.pt", state(step=7, scores={"val": {"top1": 1.5}})
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["scores"]) == (7, {"val": {"top1": 1.5}})
    assert torch.equal(loaded["network"]["weight"], saved["network"]["weight"])
    tensors, described = load_weights(path)
    assert described == DESCRIBED
    assert tensors.keys() == saved["network"].keys()


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    averages = nn.Linear(3, 2).state_dict()
    save_checkpoint(tmp_path / "last.pt", state(ema=averages))
    tensors, _ = load_weights(tmp_path / "last.pt")
    assert torch.equal(tensors["weight"], averages["weight"])


def test_final_weights_say_what_they_are(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    path = tmp_path / "model.safetensors"
    save_weights(path, network, DESCRIBED)
    tensors, described = load_weights(path)
    assert described == DESCRIBED
    assert torch.equal(tensors["weight"], network.weight)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mobilenext-was-here"),))


def test_foreign_files_cannot_run_code(tmp_path: Path) -> None:
    marker = Path("/tmp/mobilenext-was-here")
    marker.unlink(missing_ok=True)
    torch.save({"format": 2, "model": {}, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(DamagedFileError, match="something else wrote it"):
            load_checkpoint(tmp_path / name)
    # also where somebody took the trouble to add a checksum
    save_checkpoint(tmp_path / "sealed.pt", {"model": {}, "x": Evil()})
    with pytest.raises(InputError, match="tensors and plain values"):
        load_checkpoint(tmp_path / "sealed.pt")
    assert not marker.exists()


def test_torch_reads_our_files(tmp_path: Path) -> None:
    path, saved = tmp_path / "last.pt", state(step=7)
    save_checkpoint(path, saved)
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded["network"]["weight"], saved["network"]["weight"])


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    save_checkpoint(good, state())
    content = good.read_bytes()
    bad = tmp_path / "bad.pt"
    for damaged in (b"", b"hello", content[:-200], content[:-1], content[:200], content + b"x"):
        bad.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"bad\.pt: expected a checkpoint"):
            load_checkpoint(bad)
    with pytest.raises(InputError, match=r"got a folder; a run has .*best\.pt"):
        load_checkpoint(tmp_path)
    save_checkpoint(bad, {"weight": torch.zeros(1)})
    with pytest.raises(InputError, match="got something else"):
        load_checkpoint(bad)
    with pytest.raises(InputError, match="found none there"):
        load_weights(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="found none there"):
        load_weights(tmp_path / "nowhere.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(InputError, match="does not say which network"):
        load_weights(foreign)
    foreign.write_bytes(b"12345678901234567890")
    with pytest.raises(InputError, match="could not read it"):
        load_weights(foreign)


def test_a_run_folder_means_its_best_checkpoint_or_final_weights(tmp_path: Path) -> None:
    run = tmp_path / "name" / "hash"
    run.mkdir(parents=True)
    with pytest.raises(InputError, match=r"hash: expected a run folder .*, got an empty folder"):
        weights_path(run)
    (run / "last.pt").touch()
    with pytest.raises(InputError, match=r"with best.pt or model.safetensors, .*give .*/last.pt"):
        weights_path(run)
    (run / "model.safetensors").touch()
    assert weights_path(run) == run / "model.safetensors"
    (run / "best.pt").touch()
    assert weights_path(run) == run / "best.pt"
    assert weights_path(run, ["last.pt"]) == weights_path(run / "last.pt") == run / "last.pt"
    with pytest.raises(InputError, match=r"name: .*got a folder with hash; give .*/hash/best.pt"):
        weights_path(run.parent)


def test_every_altered_bit_is_found(tmp_path: Path) -> None:
    """Also in the archive's directory at the end, where its own checksums do not reach."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for place in {*range(len(content) - 600, len(content)), *random.integers(0, len(content), 200)}:
        altered = bytearray(content)
        altered[place] ^= 1 << int(random.integers(8))
        path.write_bytes(altered)
        with pytest.raises(DamagedFileError):
            load_checkpoint(path)


def steps_of(checkpoints: Checkpoints) -> dict[str, int]:
    folder = checkpoints.last.parent
    return {path.name: load_checkpoint(path)["step"] for path in sorted(folder.glob("*.pt"))}


@pytest.mark.parametrize(
    ("keep", "names"),
    [(1, ["last.pt"]), (2, ["last-1.pt", "last.pt"]), (3, ["last-1.pt", "last-2.pt", "last.pt"])],
)
def test_the_newest_are_kept(tmp_path: Path, keep: int, names: list[str]) -> None:
    Checkpoints(tmp_path, keep=3).save(state(step=0))  # an earlier session kept more
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in range(1, 6):
        checkpoints.save(state(step=step))
    expected = {"last.pt": 5, "last-1.pt": 4, "last-2.pt": 3}
    assert steps_of(checkpoints) == {name: expected[name] for name in names}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_the_one_before_a_damaged_checkpoint_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(state(step=step))
    damage(checkpoints.last)
    found = checkpoints.load()
    assert found.state is not None
    assert (found.state["step"], found.path.name) == (2, "last-1.pt")
    assert any("last.pt" in text for text in found.passed_over)
    assert found.passed_over[-1].endswith("last-1.pt, step 2")
    checkpoints.save(state(step=9))
    # the damaged one has pushed nothing out
    assert steps_of(checkpoints) == {"last.pt": 9, "last-1.pt": 2}


def test_the_best_is_the_last_resort(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(step=1))
    checkpoints.mark_best(checkpoints.last)
    for step in (2, 3):
        checkpoints.save(state(step=step))
    for name in ("last.pt", "last-1.pt"):
        flip_a_bit(tmp_path / name)
    found = checkpoints.load()
    assert found.path == checkpoints.best
    flip_a_bit(checkpoints.best)
    for _ in range(2):  # also when a launcher starts it again by itself
        with pytest.raises(InputError, match=r"no checkpoint of this run is whole.*best.pt.damag"):
            checkpoints.load()


def test_a_file_system_that_is_away_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(state(step=step))
    with monkeypatch.context() as away:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        away.setattr(checkpoint, "read_regular", fail)
        with pytest.raises(InputError, match=r"Input/output error.*nothing was changed"):
            checkpoints.load()
    assert steps_of(checkpoints) == {"last.pt": 2, "last-1.pt": 1}


def test_a_full_disk_when_the_best_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(step=1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "link_atomically", full)
    with pytest.raises(InputError, match=r"can't write .*best\.pt .*No space left"):
        checkpoints.mark_best(checkpoints.last)


def test_a_file_that_comes_back_altered_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(state(step=step))
    honest = checkpoint._write_sealed

    def bad_disk(content: io.BytesIO, file: BinaryIO) -> None:
        honest(content, file)
        file.seek(100)
        file.write(b"?")

    monkeypatch.setattr(checkpoint, "_write_sealed", bad_disk)
    with pytest.raises(InputError, match="does not match the checksum"):
        checkpoints.save(state(step=3))
    assert steps_of(checkpoints) == {"last.pt": 2, "last-1.pt": 1}


def test_when_a_checkpoint_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    assert not Checkpoints(tmp_path).due(100)
    by_steps = Checkpoints(tmp_path, every_steps=10)
    assert [step for step in range(1, 31) if by_steps.due(step)] == [10, 20, 30]
    by_time = Checkpoints(tmp_path, every_minutes=1)
    assert not by_time.due(1)
    now = 61.0
    assert by_time.due(2)
    late = 3 + checkpoint.PATIENCE
    assert [step for step in range(3, 60) if by_time.due(step)] == [late], "asked for once"
    now = 130.0
    with by_time:
        by_time.begin({}, best=False)
        assert not by_time.due(100)
        now = 191.0
        assert by_time.due(101)


def test_writing_stays_within_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With writes of 2 s and a share of 5 %, steps of 1 s and a wish after each."""
    now = 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, every_steps=1, max_share=0.05)

    def slow_disk(*_: object, **__: object) -> None:
        nonlocal now
        now += 2

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow_disk)
    saved = 0
    for step in range(1, 1001):
        now += 1
        if checkpoints.due(step):
            checkpoints.save({})
            saved += 1
            # the first one's cost is not known before
            assert saved == 1 or 2 * saved <= 0.05 * now
    assert saved > 20


def write_later(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have writes of checkpoints wait for the event."""
    may_write, write = threading.Event(), checkpoint._write_sealed

    def waiting(*arguments: Any) -> None:
        assert may_write.wait(timeout=60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_write_sealed", waiting)
    return may_write


def trained(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it changes meanwhile does not reach the file."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    trained(network, optimizer)
    now = {
        **DESCRIBED, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
        "step": 1, "unreadable": {"train": {3: "empty"}}, "lists": [[1, 2], ({"a": 1},)],
    }  # fmt: skip
    save_checkpoint(tmp_path / "expected.pt", now)
    may_write = write_later(monkeypatch)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.begin(now, best=True)
        assert not checkpoints.last.exists()
        trained(network, optimizer)
        now["unreadable"]["train"][4] = "cut short"
        now["lists"][0].append(3)
        now["lists"][1][0]["a"] = 2
        now["optimizer"]["param_groups"][0]["lr"] = 0.01
        may_write.set()
        checkpoints.wait()
        assert checkpoints.exist()
    for path in (checkpoints.last, checkpoints.best):
        assert differences(load_checkpoint(path), load_checkpoint(tmp_path / "expected.pt")) == []
        assert "_metadata" in vars(load_checkpoint(path)["network"])  # versions of its modules
    assert differences(network.state_dict(), load_checkpoint(checkpoints.last)["network"])


def test_copies_have_the_layout_of_the_originals() -> None:
    one = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"a": one, "again": [one], "part": one[:1, :1], "none": None}
    found = copied(state)
    assert differences(found, state) == []
    assert found["a"].stride() == one.stride()
    assert found["again"][0] is found["a"]
    assert found["a"].data_ptr() != one.data_ptr()
    assert found["part"].untyped_storage().nbytes() == 4 * 20  # not all of what it is a view of


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_gpu_are_whole_and_pinned() -> None:
    values = torch.randn(1 << 24, device="cuda")
    expected = values.cpu()
    found = copied({"values": values})["values"]
    values.zero_()
    assert found.is_pinned()
    assert torch.equal(found, expected)


def test_one_checkpoint_is_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = write_later(monkeypatch)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.begin(state(step=1), best=False)
        opener = threading.Timer(0.2, may_write.set)
        opener.start()
        checkpoints.begin(state(step=2), best=False)
        assert may_write.is_set()
        assert load_checkpoint(checkpoints.generations[0])["step"] in (1, 2)
    assert steps_of(checkpoints) == {"last.pt": 2, "last-1.pt": 1}


def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_sealed", full)


def test_an_error_of_the_thread_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_write(monkeypatch)
    with Checkpoints(tmp_path, max_share=1e-9) as checkpoints:
        assert not checkpoints.due(1)
        for raises in (lambda: checkpoints.begin(state(), best=False), checkpoints.wait):
            checkpoints.begin(state(), best=False)
            assert not checkpoints.exist()
            assert checkpoints.due(1)  # and so it is told soon
            assert checkpoints.affordable()
            with pytest.raises(InputError, match="No space left"):
                raises()
            assert not checkpoints.due(1)
        checkpoints.wait()


def test_leaving_finishes_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def leave(step: int, error: Exception | None = None) -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.begin(state(step=step), best=step == 1)
            if error is not None:
                raise error

    with pytest.raises(KeyError):
        leave(1, KeyError())
    written = {"last.pt": 1, "best.pt": 1}
    assert steps_of(Checkpoints(tmp_path)) == written
    fail_to_write(monkeypatch)
    with pytest.raises(InputError, match="No space left"):
        leave(2)
    with pytest.raises(KeyError):
        leave(2, KeyError())
    assert "warning: can't write the checkpoint" in capsys.readouterr().out
    assert steps_of(Checkpoints(tmp_path)) == written


def test_a_write_under_way_counts_as_far_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, may_write = 0.0, write_later(monkeypatch)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    with Checkpoints(tmp_path, every_minutes=1, max_share=0.1) as checkpoints:
        now = 60.0
        assert checkpoints.due(1)
        checkpoints.begin(state(), best=False)
        assert not checkpoints.due(2)  # which is what it is written for
        now = 62.0
        assert checkpoints.affordable()
        now = 64.0
        assert not checkpoints.affordable()  # it takes 4 s at least, and so will the next one
        may_write.set()


def test_weights_of_another_network() -> None:
    with pytest.raises(InputError, match=r"expected the weights of the Linear .*size mismatch"):
        load_into(nn.Linear(3, 2), nn.Linear(3, 4).state_dict(), Path("x.pt"))


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(step=1))

    def fail(content: io.BytesIO, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_sealed", fail)
    with pytest.raises(InputError, match=r"No space left.*Make room"):
        save_checkpoint(path, state(step=2))
    assert load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def assert_equal_tensors(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_of_our_own_files(tmp_path: Path) -> None:
    network, averages = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    save_checkpoint(tmp_path / "raw.pt", state(network=network.state_dict()))
    assert_equal_tensors(read_tensors(tmp_path / "raw.pt"), network.state_dict())
    save_checkpoint(tmp_path / "last.pt", state(ema=averages))
    assert_equal_tensors(read_tensors(tmp_path / "last.pt"), averages)
    save_weights(tmp_path / "model.safetensors", network, DESCRIBED)
    assert_equal_tensors(read_tensors(tmp_path / "model.safetensors"), network.state_dict())


TENSORS = {"a.weight": torch.tensor([1.0, 2.0]), "a.bias": torch.tensor([3.0])}
OTHER = {"a.weight": torch.tensor([0.0, 0.0]), "a.bias": torch.tensor([0.0])}
TRAINERS: dict[str, dict] = {
    "a state dict": TENSORS,
    # as timm's train.py saved it when the authors used it
    "timm's": {
        "epoch": 199, "arch": "mnext", "state_dict": TENSORS, "version": 2, "metric": 74.02,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
        "args": argparse.Namespace(model="mnext", lr=0.1, sched="cosine", amp=None),
    },
    "timm's with averages": {"state_dict": OTHER, "state_dict_ema": TENSORS, "model": OTHER},
    "timm's without averages": {"state_dict": TENSORS, "state_dict_ema": None},
    "torchvision's": {"model": TENSORS, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "torchvision's with averages": {"model": OTHER, "model_ema": TENSORS, "epoch": 3},
    "others' averages": {"state_dict": OTHER, "ema_state_dict": TENSORS},
    "others'": {"model_state_dict": TENSORS, "loss": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ["x.pth", "x.pth.tar", "x.pt", "x.bin"])
@pytest.mark.parametrize("content", TRAINERS.values(), ids=TRAINERS.keys())
def test_weights_of_foreign_files(tmp_path: Path, content: dict, name: str, zipped: bool) -> None:
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_equal_tensors(read_tensors(tmp_path / name), TENSORS)


def test_the_entry_that_was_taken_is_told(tmp_path: Path) -> None:
    torch.save({"model": OTHER, "model_ema": TENSORS}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").entry == "model_ema"
    torch.save(TENSORS, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").entry == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html>404</html>" + bytes(99), "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip-compressed"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_files_that_are_something_else_are_called_by_it(
    tmp_path: Path, content: bytes, told: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: expected .*, got {told}"):
        read_tensors(tmp_path / name)


def test_a_refused_class_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "args": nn.ReLU()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.activation\.ReLU"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.safetensors"])
@pytest.mark.timeout(20)
def test_a_named_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for read in (load_weights, read_tensors, sha256_of):
        with pytest.raises(InputError, match="expected a regular file, got a named pipe"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": "ab"},
        {"classes": ["a"]},
        {"classes": [1, 2]},
        {"classes": ["a" * 5_000, "b"]},
        {"data": {**DESCRIBED["data"], "x": ["y" * 9_000] * 1_000}},
        {"model": []},
        {"model": {**DESCRIBED["model"], "num_classes": 1 << 40}},
        {"model": {**DESCRIBED["model"], "num_classes": True}},
        {"model": {**DESCRIBED["model"], "network": "torch.nn.Linear"}},
        {"model": {**DESCRIBED["model"], "name": ["![x](http://x)"]}},
        {"data": None},
        {"data": {**DESCRIBED["data"], "source": {}}},
        {"scores": {"val": {"top1": "<b>100</b>"}}},
        {"scores": [1]},
        {"step": "7"},
        {"best": None},
        {"scores": {"val": {"top1": True}}},
        {"data": {**DESCRIBED["data"], "global_batch_size": 0}},
        {"data": {**DESCRIBED["data"], "x": [[[0] * 100] * 100] * 100}},
    ],
)
def test_descriptions_of_another_kind_are_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, state(**change))
    with pytest.raises(InputError, match="expected the description of a network"):
        load_weights(path)
    save_weights(tmp_path / "x.safetensors", nn.Linear(3, 2), {**DESCRIBED, **change})
    with pytest.raises(InputError, match="expected the description of a network"):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3", '"x"', "null"])
def test_metadata_that_is_no_description(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"mobilenext": text})
    with pytest.raises(InputError, match=r"expected (a|the) description of"):
        load_weights(path)


@pytest.mark.parametrize("network", [None, {}, {3: torch.zeros(1)}, {"a." * 99: torch.zeros(1)}])
def test_checkpoints_without_weights(tmp_path: Path, network: object) -> None:
    save_checkpoint(tmp_path / "x.pt", state(network=network))
    with pytest.raises(InputError, match=r"x\.pt: expected a network's weights by name"):
        load_weights(tmp_path / "x.pt")


def test_compressed_checkpoints_are_refused(tmp_path: Path) -> None:
    """A thousand times as large once they are read; torch.save compresses nothing."""
    torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as archive,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
    with pytest.raises(InputError, match="its parts are compressed"):
        read_tensors(tmp_path / "y.pth")
    assert read_tensors(tmp_path / "x.pth").keys() == {"weight"}


def test_integers_are_no_weights() -> None:
    network = nn.Linear(3, 2)
    quantised = {name: value.to(torch.int8) for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"expected weight as torch\.float32, got torch\.int8"):
        load_into(network, quantised, Path("x.pt"))


def test_weights_of_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "timm.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"format": "pt"})
    found = read_tensors(path)
    assert_equal_tensors(found, TENSORS)
    assert list(found) == ["a.bias", "a.weight"]


class MoreArguments(argparse.Namespace):
    """Not what trainers write."""


def test_foreign_weights_cannot_run_code(tmp_path: Path) -> None:
    marker = Path("/tmp/mobilenext-was-here")
    marker.unlink(missing_ok=True)
    evil = {
        "beside": {"state_dict": TENSORS, "args": Evil()},
        "in a namespace": {"state_dict": TENSORS, "args": argparse.Namespace(x=Evil())},
        "as a tensor": {"state_dict": {"a.weight": Evil()}},
        "another class": {"state_dict": TENSORS, "args": MoreArguments()},
    }
    for number, content in enumerate(evil.values()):
        path = tmp_path / f"{number}.pth.tar"
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(InputError, match="more than tensors and plain values"):
                read_tensors(path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"evil\.pkl: expected a network's weights"):
        read_tensors(tmp_path / "evil.pkl")
    save_checkpoint(tmp_path / "sealed.pt", state(x=argparse.Namespace(a=1)))
    with pytest.raises(InputError, match="tensors and plain values"):
        read_tensors(tmp_path / "sealed.pt")
    assert not marker.exists()
    # reading has left no class allowed
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_files_without_weights(tmp_path: Path) -> None:
    for missing in ("nowhere.pth", "nowhere.safetensors"):
        with pytest.raises(InputError, match=r"nowhere.*expected a file with weights, got nothing"):
            read_tensors(tmp_path / missing)
    with pytest.raises(InputError, match=r"got a folder; a run has .*model\.safetensors"):
        read_tensors(tmp_path)
    path = tmp_path / "x.pth"
    for content, told in (
        ([1, 2], "got a list"),
        ({}, "got an empty dict"),
        ({"state_dict": {}}, "got an empty dict"),
        ({"weight": torch.zeros(1), "epoch": 3}, "got 'epoch', a int"),
        ({3: torch.zeros(1)}, "got 3, a Tensor"),
        (torch.zeros(3), "got a Tensor"),
        (nn.Linear(2, 2), "more than tensors and plain values"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"x\.pth: expected a network's weights.*{told}"):
            read_tensors(path)


def test_damaged_foreign_files(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.pt", tmp_path / "theirs.pth"
    save_checkpoint(ours, state())
    torch.save({"state_dict": TENSORS}, theirs)
    bad = tmp_path / "bad.pth"
    whole = theirs.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[:-100], ours.read_bytes()[:-300]):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.pth: expected a network's weights"):
            read_tensors(bad)
    # ours without its seal has no weights where others have them
    bad.write_bytes(ours.read_bytes()[:-1])
    with pytest.raises(InputError):
        read_tensors(bad)
    flip_a_bit(ours)
    with pytest.raises(DamagedFileError, match="does not match the checksum"):
        read_tensors(ours)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"12345678901234567890")
    with pytest.raises(InputError, match="expected safetensors, could not read it"):
        read_tensors(bad)


def test_the_checksum_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"weights")
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(InputError, match="could not read it"):
        sha256_of(tmp_path / "nowhere")
