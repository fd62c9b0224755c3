import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mobilenext.jobs.loader_report as job
from mobilenext.config import TrainConfig, from_plain, to_plain
from mobilenext.config.targets import build
from mobilenext.data import restart
from mobilenext.data.decoders import open_decoder
from mobilenext.errors import InputError
from mobilenext.jobs.loader_report import (
    LoaderReportConfig,
    StoredImages,
    Verdict,
    advice,
    loader_report,
    render,
    thread_counts,
    verdict,
)
from mobilenext.jobs.prepare_imagenet import prepare_imagenet
from mobilenext.runtime.distributed import Process
from tests.composed import composed
from tests.jpegs import photo, saved

# torchvision's decoder is among those that are measured.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

SMALL = ("model=mobilenext", "width=0.35", "data.image_size=32", "data.global_batch_size=4",
         "seconds=0.15")  # fmt: skip
CPU = Process(torch.device("cpu"))


def report(*overrides: str) -> dict[str, Any]:
    config = composed(*SMALL, *overrides, job="loader_report")
    config.runtime.precision = "fp32"
    return loader_report(config, CPU)


def test_measures_the_step_that_trains() -> None:
    """Frozen layers, rates of layers and averages included."""
    overrides = ("data=digits", "init_from=w.pt", "freeze_backbone=true", "ema_decay=0.9")
    config = composed(*SMALL, *overrides, "layer_decay=0.5", job="loader_report")
    config.runtime.precision = "fp32"
    step = job._Step(config, build(config.data.source), CPU)
    parameters = dict(step.network.named_parameters())
    trained = {name for name, value in parameters.items() if value.requires_grad}
    assert trained == {"classifier.1.weight", "classifier.1.bias"}
    features = step.network.get_submodule("features")
    assert not any(module.training for module in features.modules())
    assert all("lr_scale" in group for group in step.update.optimizer.param_groups)
    assert step.average is not None
    before = {name: value.clone() for name, value in step.average.module.state_dict().items()}
    with torch.no_grad():
        parameters["classifier.1.bias"].add_(1)
    step._run(1)
    after = step.average.module.state_dict()
    assert not torch.equal(before["classifier.1.bias"], after["classifier.1.bias"])


def test_measures_a_folder(run, photo_folder: Path, tmp_path: Path) -> None:
    written = tmp_path / "report.json"
    data = ("data=imagefolder", f"data.root={photo_folder}", "sample=5", f"report={written}")
    done = run("scripts/loader_report.py", *SMALL, *data, "seconds=0.2")
    result = json.loads(written.read_text())
    assert {"1", str(result["threads"]), str(result["cores"])} <= result["decode"].keys()
    assert all(rate > 0 for rate in result["decode"].values())
    assert result["step"] > 0
    assert result["other_decoders"]["pillow"]["images_per_second"] > 0
    assert result["wall"] in ("decoding", "step")
    assert result["factor"] >= 1
    assert result["packing"]["sample"] == 5
    kinds = {"now", "short_side"} | ({"restart"} if restart.available() else set())
    assert result["packing"]["kinds"].keys() == kinds
    assert result["packing"]["kinds"]["now"] == {
        "images_per_second": pytest.approx(result["packing"]["kinds"]["now"]["images_per_second"]),
        "to_now": 1.0,
        "bytes_to_now": 1.0,
    }
    assert all(line in done.stdout for line in result["advice"])
    assert "24 training images, 32 px, batch 4, cpu, fp32" in done.stdout
    assert f"decoding by {result['decoder']}" in done.stdout
    assert "short side 256, q90" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_arrays_have_nothing_to_pack(capsys: pytest.CaptureFixture[str]) -> None:
    result = report("data=digits")
    assert result["packing"] is None
    assert result["other_decoders"].keys() <= {"native", "pillow"}
    assert "can't be packed" in capsys.readouterr().out


def test_synthetic_data_has_nothing_to_decode(capsys: pytest.CaptureFixture[str]) -> None:
    result = report("data=synthetic", "data.source.train_images=8")
    assert (result["decode"], result["packing"], result["wall"]) == ({}, None, "step")
    assert "There is nothing to decode" in capsys.readouterr().out


@pytest.mark.skipif(not restart.available(), reason="no native decoder with libjpeg-turbo")
def test_a_restart_indexed_pack_has_its_index(photo_folder: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    wanted = (f"source={photo_folder}", f"output={pack}")
    prepare_imagenet(composed(*wanted, job="prepare_imagenet"), CPU)
    result = report("data=imagefolder", f"data.root={pack}", "sample=4")
    assert result["packing"]["already_indexed"] == 1
    assert result["packing"]["kinds"].keys() == {"now", "short_side"}
    assert any("has its restart index already" in line for line in result["advice"])


def test_unreadable_images_are_left_out_of_the_sample(photo_folder: Path) -> None:
    (photo_folder / "train" / "flower" / "0.jpg").write_bytes(b"no image")
    folder = ("data=imagefolder", f"data.root={photo_folder}", "sample=24")
    with pytest.raises(InputError, match=r"flower.0\.jpg"):
        report(*folder)
    folder = (*folder, "data.on_bad_image=skip", "data.max_bad_share=0.5", "data.decoder=pillow")
    result = report(*folder)
    assert result["packing"]["sample"] == 23
    # The decoder in use is not among the others.
    assert result["decoder"] == open_decoder("pillow", 1).description
    assert "pillow" not in result["other_decoders"]


def test_asks_for_what_it_needs(tmp_path: Path) -> None:
    config = composed(*SMALL, job="loader_report")
    with pytest.raises(InputError, match=r"expected one process, got 2; run it without torchrun"):
        loader_report(config, Process(torch.device("cpu"), world_size=2))
    for wrong in (tmp_path, tmp_path / "no" / "report.json"):
        with pytest.raises(InputError, match="expected a file's path in a folder"):
            report(f"report={wrong}")
    with pytest.raises(InputError, match="is more than the 1437 training images"):
        report("data.global_batch_size=2000")
    for override in ("seconds=0", "sample=0"):
        with pytest.raises(InputError, match="expected"):
            composed(override, job="loader_report")


@pytest.mark.parametrize(
    "overrides",
    [(), ("data=imagenet", "data.root=/x", "width=0.5"), ("experiment=mobilenext_official",)],
)
def test_measures_what_train_would_do(overrides: tuple[str, ...]) -> None:
    config = composed(*overrides, job="loader_report")
    assert isinstance(config, LoaderReportConfig)
    plain = to_plain(config)
    assert (plain.pop("seconds"), plain.pop("sample"), plain.pop("report")) == (3.0, 200, None)
    assert from_plain(TrainConfig, plain) == composed(*overrides)
    assert not config.leaves_run


def test_stored_images_are_where_they_say() -> None:
    data = saved(photo().resize((56, 40)))
    images = StoredImages([(data, None), (memoryview(data), np.array([3], np.uint16))], [1, 0])
    assert [len(images), images.size, images.indexed] == [2, 2 * len(data) + 2, 0.5]
    assert images.read(1) == data
    assert images[0][0].size == (56, 40)
    items = images.locate([1, 0]).items
    assert items["num_segments"].tolist() == [1, 0]
    assert items["length"].tolist() == [len(data)] * 2


def test_thread_counts() -> None:
    assert thread_counts(1, 1) == [1]
    assert thread_counts(6, 6) == [1, 2, 4, 6]
    assert thread_counts(8, 3) == [1, 2, 3, 4, 8]
    assert thread_counts(2, 5) == [1, 2, 5]


RATES = {1: 100.0, 2: 190.0, 4: 300.0}


def test_verdict() -> None:
    assert verdict(RATES, 150, 4, 4) == Verdict("step", 2.0, 2, None)
    assert verdict(RATES, 150, 1, 4) == Verdict("decoding", 1.5, 2, None)
    # 290 images/s are reached by 4 threads, 10 % more are not; 75 a thread
    assert verdict(RATES, 290, 4, 4) == Verdict("step", 300 / 290, None, 5)
    assert verdict(RATES, 900, 4, 4) == Verdict("decoding", 3.0, None, 14)


def made_up(step: float, threads: int = 4, **more: Any) -> dict[str, Any]:
    found = verdict(RATES, step, threads, 4)
    kinds = {
        "now": {"images_per_second": 320.0, "to_now": 1.0, "bytes_to_now": 1.0},
        "restart": {"images_per_second": 400.0, "to_now": 1.25, "bytes_to_now": 1.02},
        "short_side": {"images_per_second": 800.0, "to_now": 2.5, "bytes_to_now": 0.3},
    }
    return {
        "model": "mobilenext", "width": 1.0, "data": "imagenet", "train_images": 1000,
        "image_size": 224, "global_batch_size": 64, "precision": "bf16", "seconds": 3.0,
        "decode": {str(count): rate for count, rate in RATES.items()},
        "step": step, "threads": threads, "cores": 4, "workers": None, "device": "cuda:0",
        "decoder": "native", "cpu_share": 0.95, "wall": found.wall, "factor": found.factor,
        "enough_threads": found.enough, "needed_threads": found.needed,
        "other_decoders": {"pillow": {"images_per_second": 90.0, "to_chosen": 0.3}},
        "packing": {"sample": 200, "already_indexed": 0.0, "cpu_share": 0.95, "kinds": kinds},
    } | more  # fmt: skip


def test_advice_if_decoding_is_the_wall() -> None:
    text = "\n".join(advice(made_up(900)))
    assert "Decoding is the wall: by 4 threads 300 images/s are decoded" in text
    assert "would take 900, 3.00 times as many" in text
    assert "All 4 cores are not enough" in text
    assert "it would need about 14" in text
    assert "mode=restart (the same pixels) is decoded 1.25 times as fast, with 1.02 times" in text
    assert "size=256" in text
    assert "2.50 times as fast, with 0.30 times the bytes" in text
    assert "prepare_imagenet.py" in text
    assert "same 4 cores" not in text
    assert "pillow" not in text


def test_advice_if_the_step_is_the_wall() -> None:
    text = "\n".join(advice(made_up(150)))
    assert "The step is the wall: it takes 150 images/s" in text
    assert "2.00 times as many. Faster loading alone would bring nothing." in text
    assert "2 threads would be enough to decode 10 % more than the step takes" in text
    assert "data.workers=2" in text
    assert "packing frees cores and does little else" in text


def test_advice_on_other_things() -> None:
    assert "expect about 100 images/s of both" in "\n".join(advice(made_up(150, device="cpu")))
    assert "data.workers=0" in "\n".join(advice(made_up(150, threads=1, workers=0)))
    better = {"native": {"images_per_second": 1.0, "to_chosen": 2.0}}
    text = "\n".join(advice(made_up(150, other_decoders=better, decoder="Pillow 13")))
    assert "data.decoder=native decodes 2.00 times as fast as Pillow 13" in text
    assert advice(made_up(150, cpu_share=None)) == advice(made_up(150))
    assert "waits for files" in "\n".join(advice(made_up(150, cpu_share=0.3)))
    busy = made_up(150, cpu_share=0.3)
    busy["packing"]["cpu_share"] = 0.4
    assert "other programs seem to have the cores" in "\n".join(advice(busy))
    poor = made_up(150)
    del poor["packing"]["kinds"]["restart"]
    poor["packing"]["kinds"]["short_side"]["to_now"] = 1.01
    text = "\n".join(advice(poor))
    assert "What mode=restart would bring can't be measured" in text
    assert "would not be worth it for speed (1.01 times as fast)" in text


def test_every_number_has_its_line() -> None:
    text = render(made_up(150) | {"advice": ["Do this."]})
    for expected in ("150.0", "4 threads", "300.0", "75.0 a thread", "restart index", "- Do this."):
        assert expected in text
    assert max(map(len, text.splitlines()[:-1])) <= 110
