"""Training on real images (digits), small."""

import copy
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import mobilenext.assembly.network as networks
import mobilenext.jobs.train as training
from mobilenext.config import TrainConfig
from mobilenext.config.targets import build
from mobilenext.errors import DivergedError, InputError
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.training.checkpoint import Checkpoints
from mobilenext.training.step import Update
from tests.compare import differences
from tests.composed import LEARNS, MADE_UP, TINY, composed, placed
from tests.conftest import Run

CPU = Process(torch.device("cpu"))
SMALL = ("width=0.35", "data.global_batch_size=48", "epochs=2", "runtime.log_every=10")
"""All of the network's blocks, 32 px."""
NOISE = (*MADE_UP, "data.source.train_images=480", "strides=[1,2,2,2,2]", "optimizer.lr=0.05")
"""Ten steps an epoch with the same batch, which is soon learned by heart."""
# Norms by image and no dropout: the network no longer depends on how a batch is split. Two steps:
# rounding errors grow tenfold at each of the first.
SPLIT_FREE = (
    "model.network.dropout=0",
    "+model.network.norm_layer={_target_:timm.layers.GroupNorm1,_partial_:true}",
    "data.global_batch_size=12",
    "epochs=1",
    "runtime.log_every=1",
    "optimizer.lr=0.01",
    "schedule=constant",
)


def photos(folder: Path) -> tuple[str, ...]:
    """Overrides for the images of `photo_folder`: 24, and 10 held out."""
    return ("data=imagefolder", f"data.root={folder}", "data.image_size=32", "data.workers=0")


def config(*overrides: str) -> TrainConfig:
    return composed(*SMALL, *overrides)


def train(path: Path, *overrides: str) -> dict[str, Any]:
    return training.train(placed(config(*overrides), path), CPU)


def tiny_config(*overrides: str) -> TrainConfig:
    return composed(*TINY, "epochs=2", *overrides)


def tiny(path: Path, *overrides: str) -> dict[str, Any]:
    return training.train(placed(tiny_config(*overrides), path), CPU)


def rows(path: Path, kind: str) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_second", "data_wait_share", "seconds_left")
    return [
        {key: value for key, value in line.items() if key not in clock}
        for line in lines
        if line["kind"] == kind
    ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "model.safetensors")


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_short_run_improves(learned: Path) -> None:
    losses = [row["loss"] for row in rows(learned, "train")]
    assert losses[-1] < 0.6 * losses[0]
    assert rows(learned, "val")[-1]["top1"] > 75
    assert rows(learned, "ema")[-1]["top1"] > 75


def test_what_a_run_leaves(learned: Path) -> None:
    result = json.loads((learned / "result.json").read_text())
    wanted = """model width identity data top1 top5 num_params madds images_per_second
        data_wait_share epochs seed config command git_commit hardware versions wall_seconds"""
    assert result.keys() >= set(wanted.split())
    assert (result["model"], result["width"], result["data"]) == ("mobilenext", 0.35, "digits")
    assert (result["epochs"], result["steps"], result["images_seen"]) == (2, 58, 58 * 48)
    assert result["count"] == 360
    assert result["num_params"] == 439_418
    assert 0 <= result["data_wait_share"] <= 1
    assert result["images_per_second"] > 0
    assert result["versions"]["torch"].startswith("2.")
    assert result["top1"] == rows(learned, "ema")[-1]["top1"]
    assert result["best_top1"] == max(row["top1"] for row in rows(learned, "ema"))
    assert "width: 0.35" in (learned / "config.yaml").read_text()
    steps = [row["step"] for row in rows(learned, "train")]
    assert steps == [10, 20, 29, 39, 49, 58]
    assert {path.name for path in learned.iterdir() if "tfevents" not in path.name} == {
        "config.yaml", "metrics.jsonl", "sessions.jsonl", "result.json", "last.pt", "last-1.pt",
        "best.pt", "model.safetensors", ".lock",
    }  # fmt: skip


def test_tensorboard(learned: Path) -> None:
    board = EventAccumulator(str(learned)).Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) == {
        "train/loss", "train/top1", "train/lr", "train/images_per_second", "train/data_wait_share",
        "val/loss", "val/top1", "val/top5", "ema/loss", "ema/top1", "ema/top5",
        "result/top1", "result/top5", "result/best_top1", "result/num_params", "result/madds",
    }  # fmt: skip
    assert [event.step for event in board.Scalars("val/top1")] == [29, 58]
    (image,) = board.Images("train/images")
    assert min(image.width, image.height) > 16 * 4, "sixteen images with their names"
    text = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "width: 0.35" in text
    start = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    chosen = metadata.parse_session_start_info_plugin_data(start).hparams
    assert (chosen["width"].number_value, chosen["ema_decay"].number_value) == (0.35, 0.8)
    assert chosen["model"].string_value == "mobilenext"


def test_a_finished_run_returns_at_once(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in learned.iterdir()}
    result = training.train(placed(composed(*LEARNS), learned), CPU)
    assert result == json.loads((learned / "result.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in learned.iterdir()} == before
    assert "already finished" in capsys.readouterr().out


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def one_epoch(path: Path, photo_folder: Path, seed: int) -> list[dict[str, Any]]:
    tiny(path, *photos(photo_folder), "data.global_batch_size=12", "epochs=1", "augment.mixup=0.2",
         "schedule=constant", "runtime.log_every=1", f"seed={seed}")  # fmt: skip
    return rows(path, "train")


@pytest.mark.usefixtures("two_threads")
def test_a_run_repeats(tmp_path: Path, photo_folder: Path) -> None:
    one = one_epoch(tmp_path / "one", photo_folder, 0)
    assert one == one_epoch(tmp_path / "two", photo_folder, 0)
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    torch.set_num_threads(1)  # what differs here need not differ by threads
    assert one != one_epoch(tmp_path / "three", photo_folder, 1)


def assert_same_training(one: Path, two: Path) -> None:
    """Equal losses step by step, and weights that differ far less than training moved them."""
    losses = [[row["loss"] for row in rows(path, "train")] for path in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 2
    seed_devices("init", 0)
    chosen = composed(*TINY, *SPLIT_FREE, "strides=[2,2,2,2,2]")
    start = build(chosen.model.network, num_classes=2).state_dict()
    first, second = weights(one), weights(two)
    moved = torch.stack([(first[name] - start[name]).square().sum() for name in start]).sum()
    apart = torch.stack([(first[name] - second[name]).square().sum() for name in start]).sum()
    assert apart.sqrt() < 0.01 * moved.sqrt()


def test_micro_batches_add_up_to_the_batch(tmp_path: Path, photo_folder: Path) -> None:
    tiny(tmp_path / "whole", *photos(photo_folder), *SPLIT_FREE)
    tiny(tmp_path / "parts", *photos(photo_folder), *SPLIT_FREE, "runtime.micro_batch=3")
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_train_as_one(tmp_path: Path, run, photo_folder: Path) -> None:
    arguments = ["train.py", *TINY, *photos(photo_folder), *SPLIT_FREE, "augment.mixup=0.2",
                 "runtime.micro_batch=3"]  # fmt: skip
    run(*arguments, "output_dir=one")
    done = run(*arguments, "output_dir=two", processes=2)
    assert done.stdout.count("finished: top-1") == 1
    (one,) = (tmp_path / "one").glob("*/*")
    (two,) = (tmp_path / "two").glob("*/*")
    assert one.relative_to(tmp_path / "one") == two.relative_to(tmp_path / "two")
    assert_same_training(one, two)
    (alone,), (together,) = rows(one, "val"), rows(two, "val")
    assert alone["count"] == together["count"] == 10
    assert alone["loss"] == pytest.approx(together["loss"], rel=0.01)


def test_norms_of_as_many_images_on_any_number_of_processes(tmp_path: Path, run) -> None:
    """24 images a norm: as two micro-batches, on two processes, and of pairs of four processes.

    Three steps: rounding errors grow tenfold at each of the first.
    """
    arguments = ["train.py", *TINY, "epochs=1", "model.network.dropout=0", "optimizer.lr=0.01",
                 "runtime.log_every=1", "runtime.threads=1", *MADE_UP,
                 "data.source.train_images=144"]  # fmt: skip
    losses = []
    for processes, *more in ((1, "norm_batch=24"), (2,), (4, "norm_batch=24"), (4,)):
        place = tmp_path / f"{processes}{more}"
        run(*arguments, *more, f"output_dir={place}", processes=processes)
        (folder,) = place.glob("*/*")
        losses.append([row["loss"] for row in rows(folder, "train")])
    assert len(losses[0]) == 3
    for same in losses[1:3]:
        assert same[0] == pytest.approx(losses[0][0], rel=1e-4)
        assert same == pytest.approx(losses[0], rel=0.02)
    assert losses[3][0] != pytest.approx(losses[0][0], rel=1e-3), "norms of 12 images are others"


def test_two_processes_with_batch_norm(tmp_path: Path, run) -> None:
    run("train.py", *LEARNS, processes=2)
    (folder,) = (tmp_path / "runs").glob("*/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["hardware"]["processes"] == 2
    assert result["count"] == 360
    assert result["scores"]["val"]["top1"] > 60
    # the stored statistics are those that were evaluated
    done = run("scripts/evaluate.py", f"checkpoint={folder / 'last.pt'}", processes=2)
    assert f"top-1 {result['top1']:.3f} %" in done.stdout
    assert "360 images" in done.stdout


FEW_STEPS = (*NOISE, "data.source.train_images=240", "epochs=1", "optimizer.lr=0.0003",
             "clip_grad_norm=5", "runtime.log_every=1")  # fmt: skip


@pytest.fixture(scope="module")
def few_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("few_steps")
    tiny(path, *FEW_STEPS)
    return path


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_low_precision_trains(tmp_path: Path, few_steps: Path, precision: str) -> None:
    """Losses follow those of float32, and weights move about as far."""
    result = tiny(tmp_path, *FEW_STEPS, f"runtime.precision={precision}")
    assert result["precision"] == precision
    runs = {"fp32": few_steps, precision: tmp_path}
    full, low = ([row["loss"] for row in rows(path, "train")] for path in runs.values())
    assert len(low) == 5
    assert low == pytest.approx(full, rel=0.05)
    assert low != full
    seed_devices("init", 0)
    start = build(tiny_config().model.network, num_classes=10)
    moved = {
        name: sum((after[key] - value).norm() ** 2 for key, value in start.named_parameters())
        for name, after in ((name, weights(path)) for name, path in runs.items())
    }
    assert moved["fp32"] > 0
    assert 0.1 < moved[precision] / moved["fp32"] < 2  # the scaler may skip the first steps
    dtypes = {value.dtype for value in weights(tmp_path).values()}
    assert dtypes == {torch.float32, torch.int64}


@pytest.mark.parametrize("optimizer", [pytest.param("rmsprop_tf", marks=pytest.mark.slow), "adamw"])
def test_other_optimizers_learn(tmp_path: Path, optimizer: str) -> None:
    lr = {"rmsprop_tf": 0.002, "adamw": 0.003}[optimizer]
    tiny(tmp_path, *NOISE, f"optimizer={optimizer}", f"optimizer.lr={lr}", "runtime.log_every=1")
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert losses[-1] < 0.8 * losses[0]


def test_mobilenetv2_trains(tmp_path: Path) -> None:
    small = (text for text in TINY if "depth_mult" not in text)
    chosen = composed(*small, *NOISE, "model=mobilenetv2", "optimizer=adamw",
                      "optimizer.lr=0.003", "runtime.log_every=1")  # fmt: skip
    result = training.train(placed(chosen, tmp_path), CPU)
    assert result["model"] == "mobilenetv2"
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert losses[-1] < 0.8 * losses[0]


def test_class_folders_train(tmp_path: Path, photo_folder: Path) -> None:
    overrides = ("data=imagefolder", f"data.root={photo_folder}", "data.global_batch_size=8",
                 "data.image_size=64", "epochs=2", "schedule=constant", "optimizer.lr=0.01",
                 "data.workers=1", "data.eval_batch_size=3")  # fmt: skip
    result = tiny(tmp_path / "run", *overrides)
    assert (result["count"], result["data"], result["image_size"]) == (10, "imagefolder", 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "overrides",
    [["runtime.precision=bf16"], ["runtime.precision=tf32"],
     ["runtime.precision=fp16", "clip_grad_norm=5", "runtime.micro_batch=12", "ema_decay=0.8"],
     ["runtime.precision=fp32", "runtime.deterministic=true"], ["runtime.compile=true"],
     ["data.workers=2", "augment.mixup=0.2", "runtime.channels_last=false"]],
)  # fmt: skip
def test_trains_on_cuda(tmp_path: Path, overrides: list[str]) -> None:
    from mobilenext.runtime.distributed import process_group

    with process_group("cuda", 1) as process:
        chosen = config("epochs=4", *overrides)
        result = training.train(placed(chosen, tmp_path), process)
    assert result["hardware"]["device"] == "cuda"
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path: Path) -> None:
    train(tmp_path / "plain", "epochs=1")
    train(tmp_path / "compiled", "epochs=1", "runtime.compile=true")
    plain, compiled = rows(tmp_path / "plain", "train"), rows(tmp_path / "compiled", "train")
    assert plain[0]["loss"] == pytest.approx(compiled[0]["loss"], rel=0.05)
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"at step \d+ \(epoch 1, learning rate .*no checkpoint"
    ):
        tiny(tmp_path, *NOISE, "optimizer.lr=1e25")
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "last.pt").exists()
    text = (tmp_path / "metrics.jsonl").read_text() if (tmp_path / "metrics.jsonl").exists() else ""
    assert "NaN" not in text


@pytest.mark.parametrize(
    ("poisoned_step", "more"),
    [
        (14, ()),
        (20, ()),
        (14, ("checkpoint.every_steps=14", "checkpoint.max_share=1")),
    ],
    ids=["within an epoch", "at its last step", "before a checkpoint"],
)
def test_the_last_good_checkpoint_survives_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned_step: int, more: tuple[str, ...]
) -> None:
    """Weights become NaN after a step; the loss of that step is still finite."""
    steps = 0
    update = Update.__call__

    def poison(self: Any, *others: Any) -> Any:
        nonlocal steps
        steps += 1
        returned = update(self, *others)
        if steps == poisoned_step:
            with torch.no_grad():
                self.network.features[0][0].weight.fill_(float("nan"))
        return returned

    monkeypatch.setattr(Update, "__call__", poison)
    named = min(poisoned_step + 1, 20) if not more else poisoned_step
    match = rf"at step {named} \(epoch 2.*last good checkpoint is"
    with pytest.raises(DivergedError, match=match) as caught:
        tiny(tmp_path, *NOISE, "epochs=3", *more)
    assert str(tmp_path / "last.pt") in str(caught.value)
    for name in ("last.pt", "best.pt"):
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert (checkpoint["epoch"], checkpoint["step"]) == (1, 10)
        assert all(value.isfinite().all() for value in checkpoint["network"].values())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_gradient_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step is finite; what it did to the weights is never saved."""
    steps = 0
    update = Update.__call__

    def poison(self: Any, *others: Any) -> Any:
        nonlocal steps
        steps += 1
        hook = self.network.features[0][0].weight.register_hook(
            lambda gradient: gradient * (float("inf") if steps == 7 else 1)
        )
        returned = update(self, *others)
        hook.remove()
        return returned

    monkeypatch.setattr(Update, "__call__", poison)
    with pytest.raises(DivergedError, match=r"loss, gradient or weights are not finite at step 7 "):
        tiny(tmp_path, *NOISE, "checkpoint.every_steps=4", "checkpoint.max_share=1")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert sessions(tmp_path)[-1]["reason"] == "failed"


def sessions(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "sessions.jsonl").read_text().splitlines()]


def test_single_bad_steps_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, running statistics and momentum stay as they were."""
    steps = 0
    update = Update.__call__

    def poison(self: Any, batch: Any, loss: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps not in (12, 13):
            return update(self, batch, loss)
        before = copy.deepcopy([self.network.state_dict(), self.optimizer.state_dict()])
        inputs, *others = batch
        returned = update(self, (inputs * float("nan"), *others), loss)
        assert differences(before, [self.network.state_dict(), self.optimizer.state_dict()]) == []
        return returned

    monkeypatch.setattr(Update, "__call__", poison)
    result = tiny(tmp_path, *NOISE, "nonfinite=skip", "epochs=3")
    assert result["steps"] == 30
    skipped = [row.get("skipped_steps", 0) for row in rows(tmp_path, "train")]
    assert skipped == [0, 2, 0]
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert losses[-1] < 0.6 * losses[0]  # it goes on learning
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.global_batch_size=1", "strides=[2,2,2,2,2]"],
         r"training \(data\.image_size\), a batch of shape \(1, 3, 32, 32\).*more than 1"),
        (["data.global_batch_size=48", "runtime.micro_batch=1", "strides=[2,2,2,2,2]"],
         r"a batch of shape \(1, 3, 32, 32\)"),
        (["model=timm", "model.name=vit_tiny_patch16_224", "strides=[2,2,2,2,2]",
          "width=1"],
         r"model=vit_tiny_patch16_224 does not take the images of evaluation .*\(1, 3, 32, 32\)"),
        (["model=timm", "model.name=vit_tiny_patch16_224", "strides=[2,2,2,2,2]",
          "width=1", "data.eval_size=224"], r"images of training .*\(2, 3, 32, 32\)"),
        (["+model.network.global_pool=''"], r"images of (evaluation|training)"),
        (["model.network={_target_:torch.nn.Identity}"], r"expected logits of shape \(2, 10\)"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_take_the_images(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    before = threading.active_count()
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", *overrides, "data.workers=2")
    assert not (tmp_path / "run").exists()
    # The loaders were there before the network was; their threads are not left behind.
    assert threading.active_count() == before


def test_trying_a_step_leaves_no_trace() -> None:
    chosen = config("runtime.micro_batch=16")
    network = build(chosen.model.network, num_classes=10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    precision = Precision("fp32", CPU.device)
    kept = networks.try_step(chosen, network, 10, precision, CPU)
    assert 1e5 < kept < 1e7  # bytes for an image of 16 px
    assert differences(before, network.state_dict()) == []
    assert all(parameter.grad is None for parameter in network.parameters())


def test_memory_that_is_not_there_is_asked_for_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = config()
    monkeypatch.setattr(networks, "available_bytes", lambda device: 10_000_000)
    assert networks.memory_note(chosen, 10_000, CPU) == []
    (note,) = networks.memory_note(chosen, 150_000, CPU)
    assert "needs about 0.0 GB" in note
    assert "runtime.micro_batch=24" in note
    with pytest.raises(InputError, match=r"a step of 48 images at 32 px.*runtime.micro_batch=6"):
        networks.memory_note(chosen, 1_000_000, CPU)
    monkeypatch.setattr(networks, "available_bytes", lambda device: None)
    assert networks.memory_note(chosen, 1_000_000, CPU) == []


def test_what_the_data_has_to_say_is_told(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photo_folder / "train" / "flower" / "list.txt").write_text("x")
    tiny(tmp_path / "run", "data=imagefolder", f"data.root={photo_folder}", "epochs=1",
          "data.global_batch_size=8", "data.image_size=32", "schedule=constant")  # fmt: skip
    assert "note: train: files with these endings are not read: .txt" in capsys.readouterr().out


def test_unreadable_images_are_named_once_and_counted(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("train/flower/3.jpg", "train/temple/0.jpg", "val/temple/1.jpg"):
        victim = photo_folder / place
        victim.write_bytes(victim.read_bytes()[:3000])
    overrides = ("data=imagefolder", f"data.root={photo_folder}", "data.global_batch_size=8",
                 "data.image_size=64", "epochs=3", "schedule=constant", "optimizer.lr=0.01",
                 "data.workers=0", "data.on_bad_image=skip", "data.max_bad_share=0.2")  # fmt: skip
    result = tiny(tmp_path / "run", *overrides)
    assert result["unreadable_images"] == {"train": 2, "val": 1}
    assert (result["count"], result["unreadable"]) == (9, 1)
    assert result["images_seen"] == 3 * 24
    warnings = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(warnings) == 3
    for place in ("flower/3.jpg", "temple/0.jpg", "temple/1.jpg"):
        assert sum(place in line for line in warnings) == 1
    lines = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["train", "train", "val"]


def test_a_run_as_on_a_network_file_system(run: Run, tmp_path: Path, photo_folder: Path) -> None:
    """Blocks are another recipe; read-ahead is none, and changes nothing."""
    for path in (photo_folder / "train").glob("*/*"):  # an epoch longer than what is made ahead
        for number in range(3):
            path.with_name(f"{number}_{path.name}").symlink_to(path)
    arguments = ["train.py", *TINY, "data=imagefolder", f"data.root={photo_folder}", "epochs=2",
                 "data.global_batch_size=4", "data.image_size=32", "schedule=constant",
                 "optimizer.lr=0.01", "runtime=exact", "data.workers=1",
                 "data.order=blocks"]  # fmt: skip
    run(*arguments)
    (plain,) = (tmp_path / "runs").glob("*/*")
    run(*arguments, "data.readahead=4", "output_dir=ahead")
    (ahead,) = (tmp_path / "ahead").glob("*/*")
    assert ahead.name == plain.name
    assert [rows(ahead, kind) for kind in ("train", "val")] == [
        rows(plain, kind) for kind in ("train", "val")
    ]
    run(*arguments, "data.order=shuffled")
    assert len(list((tmp_path / "runs").glob("*/*"))) == 2
    refused = run("train.py", *TINY, "data.workers=1", "data.readahead=4", ok=False)
    assert refused.returncode == 1
    assert "data.readahead=4: expected images in files as they are" in refused.stderr


def test_other_images_than_before_are_refused(tmp_path: Path, photo_folder: Path) -> None:
    """Images were added to the folder, so the checkpoint's place in the epoch means nothing."""
    overrides = ("data=imagefolder", f"data.root={photo_folder}", "data.global_batch_size=8",
                 "data.image_size=64", "schedule=constant", "data.workers=0")  # fmt: skip
    tiny(tmp_path, "epochs=1", *overrides)
    (tmp_path / "result.json").unlink()
    shutil.copy(photo_folder / "val/flower/0.jpg", photo_folder / "train/flower/new.jpg")
    with pytest.raises(InputError, match=r"with the train_images 25, it has 24"):
        tiny(tmp_path, "epochs=1", *overrides)


def test_odd_files_train_and_unreadable_ones_are_named(
    run, tmp_path: Path, development_data: Path
) -> None:
    """CMYK, grey, a PNG named JPEG, EXIF of all kinds; cut short, empty, zipped, nonsense."""
    odd = sorted((development_data / "odd").iterdir())
    for split in ("train", "val"):
        for name in ("one", "two"):
            folder = tmp_path / "odd" / split / name
            folder.mkdir(parents=True)
            for file in odd:
                (folder / file.name).symlink_to(file)
    arguments = ["train.py", *TINY, "data=imagefolder", f"data.root={tmp_path / 'odd'}",
                 "data.global_batch_size=8", "data.image_size=32", "epochs=2", "schedule=constant",
                 "data.workers=1"]  # fmt: skip
    done = run(*arguments, ok=False)
    assert done.returncode == 1
    assert "expected an image file, could not decode it" in done.stderr
    done = run(*arguments, "data.on_bad_image=skip", ok=False)
    assert "data.max_bad_share=0.01" in done.stderr
    done = run(*arguments, "data.on_bad_image=skip", "data.max_bad_share=0.5", "name=skipped")
    (folder,) = (tmp_path / "runs" / "skipped").glob("*")
    result = json.loads((folder / "result.json").read_text())
    unreadable = result["unreadable_images"]["val"]
    assert result["count"] + unreadable == 2 * len(odd)
    assert 10 < unreadable < 2 * len(odd) / 2
    named = (folder / "unreadable.txt").read_text()
    assert done.stdout.count("warning: left out: ") == len(named.splitlines())
    for name in ("truncated_half.JPEG", "zero_bytes.JPEG", "gzipped_jpeg.JPEG"):
        assert name in named
    for name in ("cmyk_tench", "hopper_gray", "png_rgba_named", "exif_orientation6", "one_pixel"):
        assert name not in named


def test_the_best_checkpoint_is_marked_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    mark = Checkpoints.mark_best
    monkeypatch.setattr(Checkpoints, "mark_best", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path, *NOISE, "epochs=1")
    assert not (tmp_path / "best.pt").exists()
    monkeypatch.setattr(Checkpoints, "mark_best", mark)
    tiny(tmp_path, *NOISE, "epochs=1")
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["epoch"] == best["best"]["epoch"] == 1


@pytest.mark.parametrize("other", ["model=mobilenetv2", "width=0.5", "identity=1/2"])
def test_a_checkpoint_of_another_model(learned: Path, tmp_path: Path, other: str) -> None:
    (tmp_path / "last.pt").write_bytes((learned / "last.pt").read_bytes())
    same = [text for text in LEARNS if "model" not in other or "depth_mult" not in text]
    with pytest.raises(InputError, match=r"expected a checkpoint with the model .*it has"):
        training.train(placed(composed(*same, other), tmp_path), CPU)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.global_batch_size=1438"], "more than the 1437 training images"),
        (["data.global_batch_size=0"], "can't be shared evenly by 1 process:"),
        (
            ["runtime.micro_batch=36"],
            "runtime.micro_batch=36: expected a divisor of 48.*for instance runtime.micro_batch=24",
        ),
        (
            ["data.mean=[123.7,116.3,103.5]"],
            r"data\.mean=.*expected 3 numbers from 0 to 1.*divided",
        ),
        (["data.mean=[-0.1,0.5,0.5]"], r"data\.mean=.*expected 3 numbers from 0 to 1"),
        (["data.std=[58,57,57]"], r"data\.std=.*expected 3 numbers above 0, up to 1"),
        (["data.std=[0,1,1]"], r"data\.std=.*expected 3 numbers above 0"),
        (["data.std=[1,1]"], r"data\.std=.*expected 3 numbers"),
        (["data.image_size=100000"], r"data\.image_size=100000: expected 1 to 2048 pixels"),
        (["data.eval_crop_ratio=0.001"], r"data\.eval_crop_ratio=0\.001: expected"),
        (["norm_batch=36"], "norm_batch=36: expected a divisor of 48.*for instance norm_batch=24"),
        (["norm_batch=96"], "norm_batch=96: expected a divisor of 48.*for instance norm_batch=48"),
        (["norm_batch=24", "runtime.micro_batch=24"], "runtime.micro_batch=24: expected null"),
        (["norm_batch=24", "batch_norm=sync"], "batch_norm=sync: expected reduce or broadcast"),
        (["eval_every=0"], "eval_every=0: expected at least 1"),
        (["schedule.cooldown_epochs=2"], "raise epochs, or lower schedule.cooldown_epochs"),
        (["augment.mixup=1", "data.global_batch_size=33"], "expected an even number"),
        (["augment.interpolation=lanczos"], "augment.interpolation: expected one of random"),
        (["runtime.precision=half"], "runtime.precision: expected one of"),
        (["runtime.device=cuda:99"], "there are"),
        (["strides=[2,2]"], "expected 5 values of 1 or 2"),
        (["data=imagefolder"], "data.root is not set"),
        (["data=imagefolder", "data.root=/nowhere"], "found none there"),
        (["model=mobilenetv2", "identity=1/2"], "has no identity tensor multiplier"),
        (["optimizer._target_=torch.load"], "is not allowed"),
        (["+optimizer.momentun=0.1"], "has no argument momentun"),
        (["schedule.min_lr=low"], "schedule .*'low'"),
        (["schedule=step_decay", "epochs=9", "schedule.decay_epochs=0"], "decay_epochs above 0"),
    ],
)
def test_wrong_input_leaves_nothing_behind(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    def start() -> None:
        chosen = config(*overrides)
        from mobilenext.runtime.distributed import process_group

        with process_group(chosen.runtime.device, 1) as process:
            training.train(placed(chosen, tmp_path / "run"), process)

    with pytest.raises(InputError, match=message):
        start()
    assert not (tmp_path / "run").exists()
