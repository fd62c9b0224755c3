"""Detectors from training to answers: what a run leaves, and that nothing of it is by chance."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobilenext.data.drawing import colour_of
from mobilenext.errors import InputError
from mobilenext.jobs.detect import detect
from mobilenext.jobs.detection_views import detection_views
from mobilenext.jobs.evaluate import evaluate
from mobilenext.jobs.predict import predict
from mobilenext.runtime.distributed import Process
from tests.compare import assert_same_run
from tests.composed import composed, placed
from tests.kill_at import draw, kill_again_and_again
from tests.on_disk_boxes import coco_tree, voc_tree

CPU = Process(torch.device("cpu"))
TINY = ("width=0.35", "+model.network.depth_mult=0.25", "data.image_size=64", "data=voc",
        "data.source.train=[2007:trainval]", "data.source.val=[2007:test]",
        "data.source.classes=[red,green,blue]", "data.global_batch_size=6",
        "data.eval_batch_size=2", "data.mean=[0.5,0.5,0.5]", "runtime.log_every=1",
        "schedule.warmup_epochs=0", "optimizer.lr=3e-3")  # fmt: skip


def options(tree: Path, *more: str) -> list[str]:
    return [*TINY, f"data.root={tree}", *more]


@pytest.fixture(scope="session")
def tree(once) -> Path:
    return once("voc_tree", voc_tree)


@pytest.fixture(scope="session")
def found(once, tree: Path) -> Path:
    """Folder of a whole run; it is everyone's: read only."""

    def make(path: Path) -> None:
        chosen = ("epochs=2", "ema_decay=0.5", "augment.photometric=true")
        detect(placed(composed(*options(tree, *chosen), job="detect"), path), CPU)

    return once("found", make)


def result_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "result.json").read_text())


def test_what_a_run_leaves(found: Path) -> None:
    result = result_of(found)
    assert result["kind"] == "detection"
    assert result["protocol"] == "voc"
    assert result["split"] is None  # made up, not VOC07
    assert result["objects"]["train"]["images"] == 12
    assert result["objects"]["val"]["images"] == result["count"] == 6
    assert set(result["ap_by_class"]) == {"red", "green", "blue"}
    assert result["best_ap_voc_11point"] >= result["ap_voc_11point"] >= 0
    assert set(result["scores"]) == {"val", "ema"}
    assert {"ap_voc_11point", "ap_voc_area", "ap_coco", "loss"} <= result["history"][-1][
        "ema"
    ].keys()
    rows = list(csv.DictReader((found / "ap_by_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["red", "green", "blue"]
    mean = np.nanmean([float(row["ap_voc_11point"] or "nan") for row in rows])
    assert mean == pytest.approx(result["ap_voc_11point"], abs=0.01)
    curves = json.loads((found / "precision_recall.json").read_text())["classes"]
    assert all(len(one["recall"]) == len(one["precision"]) for one in curves.values())
    with PIL.Image.open(found / "detections.jpg") as sheet:
        assert sheet.width > 900
    events = EventAccumulator(str(found)).Reload()
    assert set(events.Tags()["images"]) == {"train/images", "val/detections"}


def test_the_same_command_finds_its_run_again(
    found: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("epochs=2", "ema_decay=0.5", "augment.photometric=true")
    config = placed(composed(*options(tree, *chosen), job="detect"), found)
    assert detect(config, CPU) == result_of(found)
    assert "already finished: AP (VOC, 11 points)" in capsys.readouterr().out


EXACT = ("ap_voc_11point", "ap_voc_area", "ap_coco", "loss", "detections")


def evaluated(found: Path, tree: Path, path: Path, *more: str) -> dict[str, Any]:
    given = (f"checkpoint={found / 'model.safetensors'}", f"data.root={tree}", *more)
    return evaluate(placed(composed(*given, job="evaluate"), path), CPU)


def test_evaluate_sees_that_it_is_a_detector(
    found: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "found.csv"
    result = evaluated(found, tree, tmp_path / "run", f"predictions={table}")
    assert result["ap_voc_11point"] == result_of(found)["ap_voc_11point"]
    assert result["loss"] == result_of(found)["loss"]
    assert result["task"] == "detection"
    shown = capsys.readouterr().out
    assert "AP (VOC, 11 points)" in shown
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == result["detections"]
    assert {row["class"] for row in rows} <= {"red", "green", "blue"}
    assert (tmp_path / "run" / "precision_recall.json").exists()


def test_evaluation_needs_no_training_images(found: Path, tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    for file in (root / "VOC2007").rglob("trainval*"):
        file.unlink()
    result = evaluated(found, root, tmp_path / "run")
    assert result["ap_voc_11point"] == result_of(found)["ap_voc_11point"]
    (root / "VOC2007/JPEGImages/test_0.jpg").unlink()
    with pytest.raises(InputError, match="expected its image"):
        evaluated(found, root, tmp_path / "other")
    result = evaluated(found, root, tmp_path / "other", "data.on_bad_image=skip")
    assert (result["count"], result["objects"]["missing"]) == (5, 1)


def test_precision_is_the_same_bits_for_two_processes(
    run, found: Path, tree: Path, tmp_path: Path
) -> None:
    given = ("scripts/evaluate.py", f"checkpoint={found / 'model.safetensors'}",
             f"data.root={tree}")  # fmt: skip
    results = []
    for processes in (1, 2):
        run(*given, f"output_dir={tmp_path / str(processes)}", processes=processes)
        (path,) = (tmp_path / str(processes)).glob("evaluate/*")
        result = result_of(path)
        results.append({key: result[key] for key in EXACT})
    assert results[0] == results[1]


def test_predict_draws(found: Path, tree: Path, tmp_path: Path) -> None:
    config = composed(
        f"checkpoint={found}", f"images=[{tree / 'VOC2007/JPEGImages'}]", f"output={tmp_path}",
        "threshold=0.05", "shown=5", job="predict",
    )  # fmt: skip
    result = predict(config, CPU)
    assert result["images"] == 18
    objects = json.loads((tmp_path / "predictions.json").read_text())
    assert sum(len(one["objects"]) for one in objects) == result["objects"] > 0
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + result["objects"]
    page = (tmp_path / "predictions.html").read_text()
    assert page.count("<figure>") == 5
    assert page.count("data:image/jpeg;base64,") == 5


def test_a_classifier_is_where_a_detector_begins(learned: Path, tree: Path, tmp_path: Path) -> None:
    given = ("epochs=1", f"init_from={learned}", "freeze_backbone=true", "augment=boxes_flip",
             "strides=[1,1,2,2,2]", "data.global_batch_size=12", "data.image_size=16")  # fmt: skip
    with pytest.raises(InputError, match="strides 16 and 32"):
        detect(placed(composed(*options(tree, *given), job="detect"), tmp_path), CPU)
    assert not list(tmp_path.iterdir())
    given = (*given[:4], "data.global_batch_size=12")
    config = placed(composed(*options(tree, *given), job="detect"), tmp_path)
    result = detect(config, CPU)
    assert result["init_from"]["sha256"]
    before = safetensors.torch.load_file(learned / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "model.safetensors")
    body = {k.removeprefix("backbone.body."): v for k, v in after.items() if ".body." in k}
    assert len(body) > 50
    # Frozen, its running statistics included.
    assert all(torch.equal(value, before[name]) for name, value in body.items())


def test_killed_and_taken_up_is_the_same_run(run, tree: Path, tmp_path: Path) -> None:
    chosen = [*options(tree), "epochs=2", "ema_decay=0.5", "augment=ssd", "data.workers=2"]
    often = ("checkpoint.every_steps=1", "checkpoint.max_share=1")
    (tmp_path / "whole").mkdir()
    run("scripts/detect.py", *chosen, cwd=tmp_path / "whole")
    (whole,) = (tmp_path / "whole").glob("runs/*/*/result.json")
    most = {"before a step": 4, "in evaluation": 5, "within the content": 4, "before a rename": 8}
    (tmp_path / "killed").mkdir()

    def here(*arguments: object, **more: Any) -> Any:
        return run(*arguments, cwd=tmp_path / "killed", **more)

    kill_again_and_again(here, tmp_path / "killed", draw(list(most), 2, most), "detect", *chosen,
                         *often)  # fmt: skip
    (killed,) = (tmp_path / "killed").glob("runs/*/*/result.json")
    assert_same_run(killed.parent, whole.parent)


def test_two_processes_train(run, tree: Path, tmp_path: Path) -> None:
    chosen = [*options(tree), "epochs=1", "augment=ssd"]
    run("scripts/detect.py", *chosen, processes=2)
    (path,) = tmp_path.glob("runs/*/*/result.json")
    result = json.loads(path.read_text())
    assert result["count"] == 6
    assert result["hardware"]["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data=voc", "data.root=/nowhere"), "/nowhere"),
        (("data=voc", "data.eval_size=320", "data.image_size=64"), "default boxes belong to one"),
        (("negatives=0",), "negatives=0.0: expected above 0"),
        (("data.val_share=0.2",), "data.val_share=0.2: expected null"),
        (("data.eval_crop_ratio=0.8",), "data.eval_crop_ratio=0.8: expected 1"),
        (("detector.network.taps=deep",), "taps: expected one of authors, expansion"),
        (("data.on_bad_box=ignore",), "data.on_bad_box=ignore: expected one of drop, clip, error"),
        (("augment.zoom_out=0.5",), "augment.zoom_out=0.5: expected 1 to 16"),
        (("data.global_batch_size=64",), "data.global_batch_size=64 is more than the 12"),
        (("runtime.micro_batch=4",), "runtime.micro_batch=4: expected a divisor of 6"),
        (("data.source.classes=[red]",), "green"),
        (("freeze_backbone=true",), "freeze_backbone=true: expected false"),
        (("runtime.fused=true",), "runtime.fused=true: expected false for a detector"),
        (("model=timm", "model.name=vit_tiny_patch16_224", "width=1", "data.image_size=224"),
         "strides 16 and 32"),
    ],
)  # fmt: skip
def test_errors_are_one_message(
    tree: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    base = [
        one for one in options(tree) if "depth_mult" not in one or "model=timm" not in arguments
    ]
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace("[", r"\[")):
        detect(placed(composed(*base, *arguments, job="detect"), tmp_path / "run"), CPU)
    assert not (tmp_path / "run").exists()


def test_a_split_without_objects_is_refused(tmp_path: Path) -> None:
    root = voc_tree(tmp_path, train=8, val=2)
    for file in (root / "VOC2007/Annotations").glob("test_*.xml"):
        file.write_text(file.read_text().replace("<difficult>0<", "<difficult>1<"))
    with pytest.raises(InputError, match="expected objects that are not difficult"):
        detect(placed(composed(*options(root), job="detect"), tmp_path / "run"), CPU)


def test_jobs_of_the_other_kind_say_so(run, found: Path, learned: Path, tree: Path) -> None:
    done = run("train.py", "data=voc", "data.root=/x", ok=False)
    assert "does not go with this job" in done.stderr
    with pytest.raises(InputError, match="expected images with boxes"):
        evaluate(composed(f"checkpoint={found}", "data=digits", job="evaluate"), CPU)
    given = (f"checkpoint={learned}", "data=voc", f"data.root={tree}",
             "data.source.classes=from_data", "data.source.train=[2007:trainval]")  # fmt: skip
    with pytest.raises(InputError, match="is a classifier"):
        evaluate(composed(*given, job="evaluate"), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenext", "mobilenetv2"])
def test_eight_pictures_are_learned_by_heart(
    model: str, tmp_path: Path, development_data: Path
) -> None:
    """MobileNeXt-0.35 at 128 px finds the objects of 8 photographs after 200 steps."""
    source = development_data / "voc_mini" / "VOC2007"
    tree = tmp_path / "VOC2007"
    (tree / "ImageSets/Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        os.symlink(source.absolute() / name, tree / name)
    names = (source / "ImageSets/Main/trainval.txt").read_text().split()[:8]
    (tree / "ImageSets/Main/eight.txt").write_text("\n".join(names))
    config = composed(
        "data=voc", f"model={model}", "width=0.35", f"data.root={tmp_path}", "data.image_size=128",
        "data.source.train=[2007:eight]", "data.source.val=[2007:eight]", "augment=boxes_flip",
        "data.global_batch_size=8", "epochs=200", "schedule=cosine", "schedule.warmup_epochs=0",
        "detector.network.taps=expansion", "optimizer.lr=3e-3", job="detect",
    )  # fmt: skip
    result = detect(placed(config, tmp_path / "run"), CPU)
    assert result["ap_voc_11point"] >= 80


def test_views_are_drawn(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "views.png"
    config = composed(
        *options(tree, "augment.photometric=true"), f"output={output}", "pictures=14",
        job="detection_views",
    )  # fmt: skip
    result = detection_views(config, CPU)
    assert result["pictures"] == 14
    assert result["objects"] > 10
    with PIL.Image.open(output) as sheet:
        colours = {tuple(one) for one in np.asarray(sheet.convert("RGB")).reshape(-1, 3).tolist()}
    assert {colour_of(label) for label in range(3)} <= colours
    with pytest.raises(InputError, match=r"output=views\.gif: expected a file that ends in one of"):
        composed(*options(tree), "output=views.gif", job="detection_views")


def test_coco_goes_the_same_way(tree: Path, tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "coco", tree)
    base = [one for one in options(root) if not one.startswith(("data=", "data.source."))]
    config = composed(*base, "data=coco", "epochs=1", "augment=ssd", job="detect")
    result = detect(placed(config, tmp_path / "run"), CPU)
    assert result["protocol"] == "coco"
    assert {"ap_coco", "best_ap_coco", "ap_coco_50"} <= result.keys()
    assert set(result["ap_by_class"]) == {"red", "green", "blue"}
    assert result["history"][-1]["val"].keys() == {"loss", "ap_coco", "ap_coco_50", "ap_coco_75"}


@pytest.mark.slow
def test_the_papers_table_is_a_sweep_of_three(run, tree: Path, tmp_path: Path) -> None:
    small = [one for one in TINY if not one.startswith(("data=", "width=", "+model"))]
    run("scripts/detect.py", "-m", "experiment=ssdlite_table", f"data.root={tree}", *small,
        "epochs=1", "schedule.at=[0.5]", "width=0.35")  # fmt: skip
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/result.json")]
    rows = {(one["model"], one["taps"]) for one in results}
    assert rows == {("mobilenetv2", "authors"), ("mobilenetv2", "expansion"),
                    ("mobilenext", "authors")}  # fmt: skip
