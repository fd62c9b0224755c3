"""Pictures classified by networks of runs and by exported files."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilenext.data import digits
from mobilenext.deploy.answers import below_common_folder
from mobilenext.errors import InputError
from mobilenext.jobs.export import ExportConfig, export
from mobilenext.jobs.predict import FILES, predict
from mobilenext.runtime.distributed import Process
from tests.composed import composed

CPU = Process(torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty held-out digits as files in class folders, and what is no picture."""
    root = tmp_path_factory.mktemp("pictures")
    data = digits(16)
    for place in range(40):
        image, label = data.val[place]
        folder = root / str(label)
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{place}.png")
    (root / "3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (root / "notes.txt").write_text("no picture, and nobody said it is one")
    return root


def predicted(checkpoint: Path, images: list[Path], output: Path, *more: str) -> dict[str, Any]:
    given = ",".join(f'"{path}"' for path in images)
    config = composed(
        f"checkpoint={checkpoint}", f"images=[{given}]", f"output={output}", *more, job="predict"
    )
    return predict(config, CPU)


@pytest.fixture(scope="module")
def answered(learned: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("answers")
    found = predicted(learned, [pictures], output)
    assert found == {"images": 40, "unreadable": 1, "known": 40, "right": found["right"]}
    assert found["right"] >= 32
    return output


def test_the_files_say_the_same(answered: Path, pictures: Path) -> None:
    rows = list(csv.DictReader((answered / "predictions.csv").read_text().splitlines()))
    objects = json.loads((answered / "predictions.json").read_text())
    assert len(rows) == len(objects) == 40
    assert [row["image"] for row in rows] == [one["image"] for one in objects]
    for row, one in zip(rows, objects, strict=True):
        assert row["class"] == one["class"] == Path(row["image"]).parent.name
        best, *others = one["predictions"]
        assert row["predicted"] == best["class"]
        assert float(row["probability"]) == pytest.approx(best["probability"], rel=1e-5)
        assert len(others) == 4
        shares = [each["probability"] for each in one["predictions"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-6
    wanted = [str(path) for path in sorted(pictures.rglob("*.png")) if path.stem != "broken"]
    assert sorted(row["image"] for row in rows) == wanted


def test_answers_are_those_of_evaluation(answered: Path, learned: Path) -> None:
    """The same split through the loader, the network and its own report."""
    from mobilenext.jobs.evaluate import evaluate

    config = composed(f"checkpoint={learned}", f"predictions={answered}.csv",
                      f"output_dir={answered}-runs", job="evaluate")  # fmt: skip
    evaluate(config, CPU)
    evaluated = list(csv.DictReader(Path(f"{answered}.csv").read_text().splitlines()))
    for row in csv.DictReader((answered / "predictions.csv").read_text().splitlines()):
        there = evaluated[int(Path(row["image"]).stem)]
        for key in ("class", "predicted", "predicted_5"):
            assert row[key] == there[key]
        assert float(row["probability"]) == pytest.approx(float(there["probability"]), abs=1e-5)


def test_the_page_needs_nothing_else_and_has_wrong_ones_first(answered: Path) -> None:
    page = (answered / "predictions.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    verdicts = re.findall(r'<p class="(wrong|right)">', page)
    assert len(verdicts) == page.count("<img") == 40
    assert verdicts == sorted(verdicts, key=("wrong", "right").index)
    assert "could not be read" in page
    assert "Wrong answers come first" in page


def test_the_page_names_the_common_folder_once(answered: Path, pictures: Path) -> None:
    page = (answered / "predictions.html").read_text()
    assert page.count(str(pictures)) == 1
    assert f"Pictures in {pictures}." in page
    assert re.search(r"<figcaption>\d/\d+.png</figcaption>", page)


@pytest.mark.parametrize(
    ("images", "names", "notes"),
    [
        (["a/b.png"], ["a/b.png"], []),
        (["b.png", "a/b.png"], ["b.png", "a/b.png"], []),
        (["/x/a/1.png", "y/2.png"], ["/x/a/1.png", "y/2.png"], []),
        (["x/a/1.png", "x/2.png"], ["a/1.png", "2.png"], ["Pictures in x."]),
    ],
)
def test_names_below_a_common_folder(images: list[str], names: list[str], notes: list[str]) -> None:
    assert below_common_folder(images) == (names, notes)


def test_names_are_escaped_and_few_are_shown(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = digits(16).val[0]
    for number in range(25):
        image.save(tmp_path / f"<b>{number}.png")
    predicted(learned, [tmp_path], tmp_path / "out", "shown=3")
    page = (tmp_path / "out" / "predictions.html").read_text()
    assert "<b>0.png" not in page
    assert page.count("<img") == 3
    assert "22 more are in predictions.csv" in page
    said = capsys.readouterr().out
    assert "... and 5 more in the files" in said
    assert "25 pictures\n" in said, "no class is known"
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert next(csv.reader(file))[:3] == ["image", "predicted", "probability"]


@pytest.mark.parametrize("name", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_exported_file_answers_alike(
    answered: Path, learned: Path, pictures: Path, tmp_path: Path, name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if name == "onnx":
        pytest.importorskip("onnxscript")
    export(ExportConfig(str(learned), str(tmp_path / "x"), format=name), CPU)
    (file,) = (tmp_path / "x").glob("model.*")
    predicted(tmp_path / "x", [pictures], tmp_path / "out")
    assert f"network: {file}\n" in capsys.readouterr().out
    shutil.copy(file, file.with_stem("second"))
    with pytest.raises(InputError, match=r"expected one exported network, got several: .*second"):
        predicted(tmp_path / "x", [pictures], tmp_path / "out")
    ours, theirs = (
        json.loads((folder / "predictions.json").read_text())
        for folder in (answered, tmp_path / "out")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one["image"] == other["image"]
        assert [p["class"] for p in one["predictions"]] == [
            p["class"] for p in other["predictions"]
        ]
        assert np.allclose(
            [p["probability"] for p in one["predictions"]],
            [p["probability"] for p in other["predictions"]],
            atol=1e-4,
        )
    (tmp_path / "x" / "preprocessing.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessing\.json"):
        predicted(file, [pictures], tmp_path / "out")


def test_bad_input(learned: Path, pictures: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = pictures / "3" / "broken.png"
    for images, message in (
        ([tmp_path / "none.jpg"], "found nothing there"),
        ([empty], "expected pictures in it, found none"),
        ([broken, pictures / "notes.txt"], "none of 2 pictures can be read"),
        ([], "expected pictures, or folders"),
    ):
        with pytest.raises(InputError, match=message):
            predicted(learned, images, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    (empty / "mine.txt").touch()
    with pytest.raises(InputError, match=r"output=.*got mine\.txt"):
        predicted(learned, [pictures], empty)
    with pytest.raises(InputError, match="shown=-1: expected a number of pictures"):
        predicted(learned, [pictures], tmp_path / "out", "shown=-1")


def test_the_command(run, learned: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "runs" / "digits" / "1")
    one = next(pictures.glob("5/*.png"))
    done = run("scripts/predict.py", "runs/latest", one, f"{pictures}/3")
    said = r"network: mobilenext, width 0\.35, epoch \d+ of \d+, from runs/digits/1/best\.pt\n"
    assert re.match(said, done.stdout)
    assert f"{one}:  5 " in done.stdout
    assert "warning: left out: " in done.stdout + done.stderr
    assert "broken.png: expected an image file" in done.stdout + done.stderr
    assert all((tmp_path / "predictions" / name).exists() for name in FILES)
    (tmp_path / "runs" / "digits" / "1" / "result.json").unlink()
    again = run("scripts/predict.py", "checkpoint=runs/latest", f"images={one}")
    assert "from runs/digits/1/best.pt (the run is not finished)\n" in again.stdout
    assert "1 picture, 1 of 1 with a known class right (100.00 %)" in again.stdout
