"""What a run promises, tried on the toy loop: real processes that are killed, signalled, damaged.

Where a run is killed is drawn from a seed, which failures print; MOBILENEXT_KILL_SEED chooses
another one. `test_resume` asks the same of real trainings, a few times.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mobilenext.training.checkpoint as checkpoint
import mobilenext.training.run as running
from mobilenext.errors import DivergedError, InputError, Preempted
from mobilenext.runtime.distributed import Process
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.session import Session
from mobilenext.training.step import Update
from tests.commands import run_command
from tests.compare import assert_same_run
from tests.kill_at import PLACES, draw, kill_again_and_again
from tests.toy_loop import STEPS, toy

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

CPU = Process(torch.device("cpu"))
MOST_CALLS = {  # within a session that saves after every third step
    "before a step": 20, "in evaluation": 12, "before a save": 8, "within the content": 8,
    "before the flush": 30, "before verifying": 8, "before a link": 12, "before a rename": 24,
    "before a report": 12, "before the result": 1,
}  # fmt: skip


def place(path: Path) -> Path:
    return path / "runs" / "toy" / "0"


def sessions(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place(path) / "sessions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has happened to, and that saved at each epoch only."""
    path = tmp_path_factory.mktemp("alone")
    toy(CPU, RunFolder(place(path)), every_steps=None)
    return path


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together")
    done = run_command("tests/toy_loop.py", cwd=path, processes=2)
    assert done.returncode == 0, done.stderr
    return path


def test_every_place_to_die_is_drawn() -> None:
    assert MOST_CALLS.keys() == PLACES.keys()
    assert {where for where, _ in draw(list(PLACES), 20, MOST_CALLS)} == set(PLACES)


@pytest.mark.parametrize("part", range(4))
def test_killed_anywhere(run, tmp_path: Path, alone: Path, part: int) -> None:
    points = draw(list(PLACES), 20, MOST_CALLS)[5 * part : 5 * (part + 1)]
    kill_again_and_again(run, tmp_path, points, "toy")
    assert_same_run(place(tmp_path), place(alone))


@pytest.mark.parametrize("part", range(2))
def test_two_processes_killed_anywhere(run, tmp_path: Path, together: Path, part: int) -> None:
    points = draw(list(PLACES), 10, MOST_CALLS)[5 * part : 5 * (part + 1)]
    kill_again_and_again(run, tmp_path, points, "toy", processes=2)
    assert_same_run(place(tmp_path), place(together))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint(run, tmp_path: Path, alone: Path) -> None:
    run("tests/kill_at.py", "before a save", 3, "toy", ok=False)
    flip_a_bit(place(tmp_path) / "last.pt")
    done = run("tests/toy_loop.py")
    assert "warning:" in done.stdout
    assert "does not match the checksum" in done.stdout
    assert "last-1.pt, step 3" in done.stdout
    assert_same_run(place(tmp_path), place(alone))


def test_a_full_disk_loses_nothing(run, tmp_path: Path, alone: Path) -> None:
    """A limit on the size of files: the checkpoint does not fit, all else does."""
    run("tests/kill_at.py", "before a save", 3, "toy", ok=False)
    before = (place(tmp_path) / "last.pt").read_bytes()
    done = run("tests/toy_loop.py", f"largest_file={len(before) - 1000}", ok=False)
    assert done.returncode == 1
    assert "error: can't write the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert (place(tmp_path) / "last.pt").read_bytes() == before
    end = sessions(tmp_path)[-1]
    assert end["reason"] == "failed"
    assert "can't write the checkpoint" in end["message"]
    run("tests/toy_loop.py")
    assert_same_run(place(tmp_path), place(alone))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("every_steps", "steps"),
    [(3, range(4, 9)), (1000, [STEPS])],
    ids=["within an epoch", "at the end"],
)
def test_a_write_that_fails_ends_all_processes(
    run, tmp_path: Path, alone: Path, processes: int, every_steps: int, steps: Sequence[int]
) -> None:
    """Before the next checkpoint is due, and before anything that only a finished run has."""
    too_small = (place(alone) / "last.pt").stat().st_size - 1000
    done = run(
        "tests/toy_loop.py", f"largest_file={too_small}", "epochs=1", "seconds=0.1",
        f"every_steps={every_steps}", processes=processes, ok=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("error: can't write the checkpoint") == processes, done.stderr
    assert "Traceback" not in done.stderr
    end = sessions(tmp_path)[-1]
    assert end["reason"] == "failed"
    assert end["step"] in steps
    assert "can't write the checkpoint" in end["message"]
    assert not list(place(tmp_path).glob("*.pt"))
    assert not (place(tmp_path) / "model.safetensors").exists()


def test_killed_while_training_is_ahead_of_a_write(run, tmp_path: Path, alone: Path) -> None:
    run("tests/kill_at.py", "within the content", 2, "toy", ok=False)
    rows = (place(tmp_path) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 8  # of the write after step 6
    assert (place(tmp_path) / ".last.pt.tmp").exists()
    assert [path.name for path in place(tmp_path).glob("*.pt")] == ["last.pt"]
    assert torch.load(place(tmp_path) / "last.pt", weights_only=True)["step"] == 3
    run("tests/toy_loop.py")
    assert_same_run(place(tmp_path), place(alone))


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that take longer than some steps of the toy."""
    write = checkpoint._write_sealed

    def slow(*arguments: Any) -> None:
        time.sleep(0.15)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_write_sealed", slow)


@pytest.mark.usefixtures("slow_writes")
def test_slow_writes_change_nothing(tmp_path: Path, alone: Path) -> None:
    toy(CPU, RunFolder(place(tmp_path)))
    assert_same_run(place(tmp_path), place(alone))


@pytest.mark.usefixtures("slow_writes")
def test_an_error_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the loop: it is what the run ends with, the checkpoint is finished."""
    raise_at(5, monkeypatch, RuntimeError("of the loop"))
    with pytest.raises(RuntimeError, match="of the loop"):
        toy(CPU, RunFolder(place(tmp_path)))
    assert torch.load(place(tmp_path) / "last.pt", weights_only=True)["step"] == 3
    assert sessions(tmp_path)[-1]["message"] == "RuntimeError: of the loop"


def test_two_errors_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The loop's is raised, the writer's is told."""

    def full(*_: Any) -> None:
        time.sleep(0.3)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_sealed", full)
    raise_at(4, monkeypatch, RuntimeError("of the loop"))
    with pytest.raises(RuntimeError, match="of the loop"):
        toy(CPU, RunFolder(place(tmp_path)))
    said = capsys.readouterr().out
    assert "warning: can't write the checkpoint" in said
    assert "No space left" in said


def raise_at(call: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the loop's step raise an error at one of its calls, counted from 1."""
    calls, update = 0, Update.__call__

    def failing(self: Any, *others: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return update(self, *others)

    monkeypatch.setattr(Update, "__call__", failing)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
@pytest.mark.parametrize(("step", "every_steps"), [(4, 3), (STEPS, None), (STEPS + 3, 3)])
@pytest.mark.usefixtures("slow_writes")
def test_a_signal_ends_the_run_at_the_next_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: Path,
    name: str,
    step: int,
    every_steps: int | None,
) -> None:
    """Within an epoch, at its last step, after which the evaluation gives up; beside a write."""
    after = Session.after

    def signalling(self: Session, done: int, wants_save: bool) -> Any:
        if done == step:
            os.kill(os.getpid(), getattr(signal, name))
            while self.signals.received is None:  # a thread notes it
                time.sleep(0.001)
        return after(self, done, wants_save)

    folder = RunFolder(place(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(Session, "after", signalling)
        with pytest.raises(Preempted) as caught:
            toy(CPU, folder, every_steps=every_steps)
    assert caught.value.args == (name, step)
    end = sessions(tmp_path)[-1]
    assert (end["event"], end["reason"], end["signal"]) == ("end", "preempted", name)
    assert torch.load(folder.path / "last.pt", weights_only=True)["step"] == step == end["step"]
    assert (folder.path / "last-1.pt").exists() == (every_steps is not None)
    toy(CPU, folder, every_steps=None)
    assert_same_run(folder.path, place(alone))


def test_a_signal_during_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Path
) -> None:
    """Evaluation is given up at its next batch, and made again."""
    import tests.toy_loop as loop

    real, folder = loop.score_all, RunFolder(place(tmp_path))

    def signalled(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        interrupted = arguments[5]
        while not interrupted():
            time.sleep(0.001)
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "score_all", signalled)
        with pytest.raises(Preempted):
            toy(CPU, folder)
    last = torch.load(folder.path / "last.pt", weights_only=True)
    assert (last["step"], last["epoch"]) == (STEPS, 0)
    toy(CPU, folder)
    assert_same_run(folder.path, place(alone))


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    result = toy(CPU, folder)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert toy(CPU, folder) == result
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


def test_another_job_finished_it_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look at the folder and its lock."""
    folder, first = RunFolder(tmp_path), True
    result = toy(CPU, folder)
    before = (tmp_path / "sessions.jsonl").read_text()
    look = RunFolder.result

    def late(self: RunFolder) -> Any:
        nonlocal first
        if first:
            first = False
            return None
        return look(self)

    monkeypatch.setattr(RunFolder, "result", late)
    assert toy(CPU, folder) == result
    assert (tmp_path / "sessions.jsonl").read_text() == before


@pytest.mark.parametrize("poisoned", [5, 6])
@pytest.mark.usefixtures("slow_writes")
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: int
) -> None:
    """Also where the step that spoils them is the one before a save: its own loss is finite."""
    calls, update = 0, Update.__call__

    def poison(self: Any, *others: Any) -> Any:
        nonlocal calls
        calls += 1
        measured = update(self, *others)
        if calls == poisoned:
            with torch.no_grad():
                self.network.linear.weight.fill_(float("nan"))
        return measured

    monkeypatch.setattr(Update, "__call__", poison)
    with pytest.raises(DivergedError, match=r"not finite at step 6 .*last good checkpoint is"):
        toy(CPU, RunFolder(tmp_path))
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["step"] == 3
    assert sessions_of(tmp_path)[-1]["reason"] == "failed"


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]


def test_two_runs_in_one_folder(run, tmp_path: Path) -> None:
    folder = RunFolder(place(tmp_path))
    with folder.locked():
        done = run("tests/toy_loop.py", ok=False)
    assert done.returncode == 1
    assert "is in use by process" in done.stderr
    assert "output_dir=... or name=..." in done.stderr
    assert not (folder.path / "config.yaml").exists()


def test_nothing_is_written_before_all_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise InputError("the optimiser can't be built")

    monkeypatch.setattr(torch.optim, "SGD", failing)
    with pytest.raises(InputError):
        toy(CPU, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_loop_has_to_say_what_a_step_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Update, "__call__", lambda *_: None)
    with pytest.raises(AssertionError, match=r"has to set step\.measured"):
        toy(CPU, RunFolder(tmp_path))


def test_unreadable_images_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = toy(CPU, RunFolder(tmp_path))
    said = capsys.readouterr().out
    assert said.count("image 0: made unreadable") == said.count("image 1: made unreadable") == 1
    assert result["unreadable_images"] == {"train": 2, "val": 0}
    assert (tmp_path / "unreadable.txt").read_text().count("\n") == 2


def test_the_evaluation_is_begun_before_the_epoch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads of training have nothing left to decode by then."""
    import tests.toy_loop as loop

    begun: list[tuple[str, int]] = []
    monkeypatch.setattr(
        loop.ToyLoader, "prefetch",
        lambda self, epoch, first_batch=0: begun.append((self.split, epoch)),
    )  # fmt: skip
    toy(CPU, RunFolder(tmp_path))
    assert begun == [("val", 0), ("train", 1), ("val", 0)]
    assert running.PREFETCH < STEPS


def test_epochs_between_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is the same; the last epoch is evaluated in any case, and each batch made once."""
    import tests.toy_loop as loop

    epochs: list[int] = []
    real = loop.ToyLoader.epoch

    def counted(self: Any, epoch: int, first_batch: int = 0) -> Any:
        if self.split == "val":
            epochs.append(epoch)
        return real(self, epoch, first_batch)

    monkeypatch.setattr(loop.ToyLoader, "epoch", counted)
    every, seldom = (RunFolder(tmp_path / name / "runs/toy/0") for name in ("every", "seldom"))
    toy(CPU, every, epochs=3)
    assert len(epochs) == 3, "weights and averages are evaluated in one pass"
    result = toy(CPU, seldom, epochs=3, eval_every=2)
    assert len(epochs) == 5
    evaluated = [folder.rows("ema") for folder in (every, seldom)]
    assert [row["epoch"] for row in evaluated[1]] == [2, 3]
    assert evaluated[1] == evaluated[0][1:]
    assert [sorted(row) for row in result["history"]] == [
        ["epoch", "lr", "step", "train"], *2 * [["ema", "epoch", "lr", "step", "train", "val"]],
    ]  # fmt: skip
    both = [torch.load(folder.path / "last.pt", weights_only=True) for folder in (every, seldom)]
    for name, value in both[0]["network"].items():
        assert torch.equal(value, both[1]["network"][name]), name
    assert result["best_epoch"] in (2, 3)
