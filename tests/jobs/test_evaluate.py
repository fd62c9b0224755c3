import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilenext.assembly.trained import evaluation_data
from mobilenext.config import to_plain
from mobilenext.config.targets import build
from mobilenext.data import DeviceBatches, digits, eval_loader, eval_transform, synthetic
from mobilenext.metrics.classification import score
from mobilenext.metrics.predictions import MOST_CLASSES
from mobilenext.runtime.cores import own_allowance, share
from mobilenext.runtime.distributed import Process
from mobilenext.training.checkpoint import save_checkpoint
from tests.commands import REPO, run_command
from tests.composed import composed
from tests.in_processes import LENGTHS, Pixels


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "model.safetensors"])
def test_rebuilds_the_network_from_the_file(run, learned: Path, tmp_path: Path, name: str) -> None:
    done = run("scripts/evaluate.py", f"checkpoint={learned / name}")
    result = json.loads((learned / "result.json").read_text())
    if name == "best.pt":
        assert result["best_epoch"] == result["epochs"]  # so it has the same weights
    assert f"top-1 {result['top1']:.3f} %" in done.stdout
    assert f"top-5 {result['top5']:.3f} %" in done.stdout
    assert f"loss {result['loss']:.4f}" in done.stdout
    assert "360 images of digits" in done.stdout
    (written,) = (tmp_path / "runs" / "evaluate").glob("*/result.json")
    assert json.loads(written.read_text())["top1"] == result["top1"]


def test_a_run_folder_means_its_best_checkpoint(run, learned: Path, tmp_path: Path) -> None:
    """And leaves its result where that file's evaluation does."""
    bare = run("scripts/evaluate.py", learned)
    assert bare.stdout.startswith(f"{learned / 'best.pt'}: top-1 ")
    assert run("scripts/evaluate.py", f"checkpoint={learned / 'best.pt'}").stdout == bare.stdout
    (left,) = (tmp_path / "runs" / "evaluate").iterdir()
    assert f"checkpoint: {learned / 'best.pt'}" in (left / "config.yaml").read_text()


def test_says_so_when_it_evaluates_otherwise(run, learned: Path) -> None:
    last = learned / "last.pt"
    done = run("scripts/evaluate.py", f"checkpoint={last}", "data=digits", "data.eval_size=40")
    assert f"note: data.eval_size=40, while the run of {last} evaluated with 16" in done.stdout


def digit_files(root: Path) -> Path:
    """Digits as class folders: 53 validation images in sorted order, one of which is broken."""
    images = digits(16)
    for split, part, count in (("train", images.train, 40), ("val", images.val, 53)):
        for number in range(count):
            image, label = part[number]
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:02}, a.png")
    (root / "val" / "3" / "00.png").write_bytes(b"no image")
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_classes_and_predictions_for_any_number_of_processes(
    run, learned: Path, tmp_path: Path
) -> None:
    """Of an odd number of images, one of which can't be read."""
    root = digit_files(tmp_path / "digits")
    names = [f"{path.parent.name}/{path.name}" for path in sorted((root / "val").glob("*/*.png"))]
    assert len(names) == 54
    broken = names.index("3/00.png")
    kept = [name for name in names if name != "3/00.png"]
    found = {}
    for processes in (1, 2, 3):
        done = run(
            "scripts/evaluate.py", learned, "data=imagefolder", f"data.root={root}",
            "data.eval_size=16", "data.eval_crop_ratio=1", "data.mean=[0.5,0.5,0.5]",
            "data.std=[0.5,0.5,0.5]", "data.on_bad_image=skip", "data.max_bad_share=0.1",
            "data.eval_batch_size=8", f"predictions=new/{processes}.csv",
            f"output_dir=runs-{processes}", processes=processes,
        )  # fmt: skip
        assert "3/00.png" in done.stdout
        (folder,) = (tmp_path / f"runs-{processes}" / "evaluate").iterdir()
        result = json.loads((folder / "result.json").read_text())
        predicted = rows_of(tmp_path / "new" / f"{processes}.csv")
        matrix = (folder / "confusion.csv").read_text(), (folder / "classes.csv").read_text()
        lines = done.stdout[done.stdout.index("class  ") :].partition("run folder")[0]
        found[processes] = predicted, matrix, lines, result["mean_class_top1"]

        assert [row["image"] for row in predicted] == kept
        assert all(row["class"] == row["image"][0] for row in predicted)
        assert (result["count"], result["unreadable"]) == (53, 1)
        right = sum(row["class"] == row["predicted"] for row in predicted)
        assert result["top1"] == 100 * right / 53
        counts = Counter((row["class"], row["predicted"]) for row in predicted)
        for row in rows_of(folder / "confusion.csv"):
            for column in map(str, range(10)):
                assert int(row[column]) == counts[row["class"], column]
        ranked = [row[key] for row in predicted for key in row if key.startswith("predicted")]
        assert len(ranked) == 5 * 53
    assert 0 < broken < 53
    predicted, *others = found[1]
    for processes in (2, 3):
        assert list(found[processes][1:]) == others
        for row, alone in zip(found[processes][0], predicted, strict=True):
            for key, value in alone.items():
                if key.startswith("probability"):
                    assert float(row[key]) == pytest.approx(float(value), rel=1e-4)
                else:
                    assert row[key] == value
    by_class = rows_of(folder / "classes.csv")
    assert sum(int(row["images"]) for row in by_class) == 53
    assert float(np.mean([float(row["top1"]) for row in by_class])) == pytest.approx(
        others[-1], abs=1e-3
    )


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("here.txt", "predictions=here.txt: expected null, or the path of a .csv file"),
        (".csv/", "expected null, or the path of a .csv file"),
        (
            "folder.csv",
            "predictions=folder.csv: expected a file's path in a folder, found a folder",
        ),
        ("file/x.csv", "found no folder file"),
    ],
)
def test_a_place_for_predictions_is_refused_first(
    run, tmp_path: Path, place: str, message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    done = run("scripts/evaluate.py", "not_read.pt", f"predictions={place}", ok=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.csv"]


def test_too_many_classes_for_a_matrix(run, learned: Path, tmp_path: Path) -> None:
    state = torch.load(learned / "best.pt", weights_only=True)
    network = build(state["model"]["network"], num_classes=MOST_CLASSES + 1)
    state["model"]["num_classes"] = MOST_CLASSES + 1
    state["classes"] = [str(number) for number in range(MOST_CLASSES + 1)]
    save_checkpoint(tmp_path / "wide.pt", {**state, "ema": None, "network": network.state_dict()})
    data = ("data=synthetic", f"data.source.num_classes={MOST_CLASSES + 1}",
            "data.source.val_images=5", "data.eval_size=16")  # fmt: skip
    done = run("scripts/evaluate.py", "wide.pt", *data, "predictions=p.csv")
    assert "note: no accuracy by class: 4,097 classes, expected at most 4,096" in done.stdout
    (folder,) = (tmp_path / "runs" / "evaluate").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "result.json"]
    assert json.loads((folder / "result.json").read_text())["mean_class_top1"] is None
    assert [row["image"] for row in rows_of(tmp_path / "p.csv")] == list("01234")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.pt"], "found none there"),
        ([], "checkpoint has no value"),
        (["checkpoint={}/config.yaml"], "expected a checkpoint"),
        (["checkpoint={}/last.pt", "data=synthetic"], "knows 10 classes (0, 1, 2, ...)"),
    ],
)
def test_errors_are_one_message(run, learned: Path, arguments: list[str], message: str) -> None:
    done = run("scripts/evaluate.py", *[a.format(learned) for a in arguments], ok=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_cannot_choose_what_is_called(run, learned: Path, tmp_path: Path) -> None:
    state = torch.load(learned / "last.pt", weights_only=True)
    state["model"]["network"] = {"_target_": "torch.hub.load", "repo_or_dir": "x"}
    save_checkpoint(tmp_path / "evil.pt", state)
    done = run("scripts/evaluate.py", "checkpoint=evil.pt", ok=False)
    assert "_target_=torch.hub.load is not allowed" in done.stderr


@pytest.fixture(scope="module")
def scores_alone() -> dict[str, Any]:
    return in_processes(1)


def in_processes(processes: int) -> dict[str, Any]:
    done = run_command("tests/in_processes.py", cwd=REPO, processes=processes, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_same_for_any_number_of_processes(scores_alone: dict[str, Any], processes: int) -> None:
    """Also for splits with fewer images than processes."""
    together = in_processes(processes)
    assert together.pop("given up") is True
    mine = own_allowance()
    assert together.pop("cpus") == [share(mine, [mine] * processes)] * processes
    assert together.pop("stays") is True
    mean = (processes - 1) / 2
    assert together.pop("average") == [[mean, mean]] * processes
    assert together.pop("means") == [[mean + 4, mean, mean]] * processes
    assert together.pop("broadcast") == [[0, 0]] * processes
    # heard by all ranks, one call later
    assert together.pop("agreed") == [
        [False, False], [False, False], [True, False], [False, True], [False, False],
    ]  # fmt: skip
    # one call of 17 sends; what was asked for at call 5 goes with the next, comes one later
    seen = together.pop("seldom")
    assert all(calls == seen[0] for calls in seen)
    assert seen[0] == [2 + 16 + 17]
    assert {int(length) for length in together} == set(LENGTHS)
    for length, found in together.items():
        alone = scores_alone[length]
        assert found["count"] == alone["count"] == int(length)
        assert (found["top1"], found["top5"]) == (alone["top1"], alone["top5"])
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    assert 0 < together["65"]["top1"] < together["65"]["top5"] < 100


def test_a_wrong_count_is_an_error() -> None:
    images = synthetic(1, 9, 7, 16).val
    cpu = torch.device("cpu")
    loader = eval_loader(images, eval_transform(16, crop_ratio=1), batch_size=4)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, cpu)
    with pytest.raises(
        RuntimeError, match="evaluated 9 images and could not read 0, the split has 10"
    ):
        score(Pixels(), loader, to_device, Process(cpu), 10)


def test_a_folder_of_the_runs_own_data_can_be_chosen() -> None:
    source = {"_target_": "mobilenext.data.image_folder", "root": "/a", "val_folder": None}
    stored = {**to_plain(composed("data=imagefolder", "data.root=/a").data), "source": source}
    data = evaluation_data(stored, {"val_folder": "test", "root": None})
    assert (data.val_folder, data.source) == ("test", {**source, "val_folder": "test"})
