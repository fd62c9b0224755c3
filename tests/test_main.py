"""The command line, as a user meets it."""

import json
from pathlib import Path

import pytest

from tests.commands import command, environment
from tests.conftest import in_terminal

SMALL = ("width=0.35", "data.global_batch_size=96")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["widht=0.5"], ["Key 'widht' not in 'TrainConfig'", "did you mean width?"]),
        (["data.rooot=/x"], ["did you mean root?"]),
        (["model.network.dropuot=0"], ["did you mean dropout?"]),
        (["model=resnet"], ["Could not find 'model/resnet'", "mobilenetv2", "mobilenext"]),
        (["width=wide"], ["could not be converted to Float", "full_key: width"]),
        (["width=0"], ["error: width=0.0: expected a width multiplier above 0"]),
        (
            ["data=imagefolder", "data.root=nowhere"],
            ["error: data.root=nowhere: expected a folder"],
        ),
    ],
)
def test_one_clear_error_and_nothing_written(
    run,
    tmp_path: Path,
    arguments: list[str],
    messages: list[str],
) -> None:
    done = run("train.py", *arguments, ok=False)
    assert done.returncode == 1
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_ranks_that_cannot_share_a_batch(run, tmp_path: Path) -> None:
    done = run("train.py", "data.global_batch_size=33", processes=2, ok=False)
    assert done.returncode == 1
    assert done.stderr.count("can't be shared evenly by 2 processes") == 1
    assert "for instance 32 or 34" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_under_torchrun_is_refused(run, tmp_path: Path) -> None:
    done = run("train.py", "-m", "width=0.35,0.5", processes=2, ok=False)
    assert "a sweep (-m) can't run under torchrun" in done.stderr
    works = "python train.py -m hydra/launcher=torchrun hydra.launcher.processes=2 width=0.35,0.5"
    assert works in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_says_it_is_a_sweep_is_refused_too(run, tmp_path: Path) -> None:
    done = run("train.py", "experiment=identity_table", "data.root=x", processes=2, ok=False)
    assert "a sweep (-m) can't run under torchrun" in done.stderr
    assert "hydra.launcher.processes=2 experiment=identity_table data.root=x" in done.stderr
    assert done.returncode == 1
    assert not list(tmp_path.glob("runs/mobilenext*"))


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_sweep_runs_and_a_failing_job_does_not_stop_it(
    run, tmp_path: Path, launcher: str
) -> None:
    sweep = (
        "train.py",
        "-m",
        *SMALL,
        "identity=1/2,2,1/6",
        "epochs=1",
        f"hydra/launcher={launcher}",
    )
    done = run(*sweep, ok=False)
    assert done.returncode == 1
    said = done.stderr if launcher == "basic" else done.stdout
    assert "error: identity=2.0: expected" in said
    assert "1 of the sweep's jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/*/result.json")]
    assert sorted(result["identity"] for result in results) == [1 / 6, 1 / 2]
    again = run(*sweep, ok=False)
    word = "already finished" if launcher == "basic" else "finished earlier  top-1"
    assert again.stdout.count(word) == (2 if launcher == "basic" else 4)


def test_plain_lines_where_there_is_no_terminal(run) -> None:
    done = run("train.py", *SMALL, "epochs=2")
    lines = done.stdout.splitlines()
    assert "645,786 parameters" in lines[0]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    for word in ("loss", "val top-1", "images/s", "data wait", "left"):
        assert word in epochs[0]
    assert lines[-1].startswith("run folder: runs/mobilenext-0.35-digits/")
    assert "\r" not in done.stdout


def test_a_progress_bar_where_there_is_one(tmp_path: Path) -> None:
    arguments = command("train.py", *SMALL, "epochs=1", "runtime.log_every=2")
    shown, _ = in_terminal(arguments, tmp_path, {**environment(), "COLUMNS": "150"})
    bar = shown.split("\r")
    assert any("epoch 1/1" in state and "/14" in state for state in bar)
    assert any("train top-1" in state and "images/s" in state for state in bar)


def test_a_damaged_image_on_another_rank_is_named(run, tmp_path: Path, photo_folder: Path) -> None:
    for file in (photo_folder / "train" / "temple").glob("*.jpg"):
        file.write_bytes(file.read_bytes()[:3000])
    arguments = ["data=imagefolder", f"data.root={photo_folder}", "data.global_batch_size=2",
                 "data.image_size=32", "data.workers=0", "width=0.35", "epochs=4",
                 "schedule=constant"]  # fmt: skip
    done = run("train.py", *arguments, processes=2, ok=False)
    assert done.returncode == 1
    assert "expected an image file, could not decode it" in done.stderr
    assert "error" in done.stderr
