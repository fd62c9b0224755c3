import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mobilenext.data import DeviceBatches, eval_loader, eval_transform, synthetic
from mobilenext.evaluate import score
from mobilenext.runtime.distributed import Process


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mobilenext.runtime.run_folder import RunFolder
    from mobilenext.train import train
    from tests.test_train import CPU, config

    path = tmp_path_factory.mktemp("trained")
    train(config("epochs=1"), CPU, RunFolder(path))
    return path


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "model.safetensors"])
def test_rebuilds_the_network_from_the_file(run, trained: Path, tmp_path: Path, name: str) -> None:
    done = run("scripts/evaluate.py", f"checkpoint={trained / name}")
    result = json.loads((trained / "result.json").read_text())
    assert f"top-1 {result['top1']:.3f} %" in done.stdout
    assert f"top-5 {result['top5']:.3f} %" in done.stdout
    assert f"loss {result['loss']:.4f}" in done.stdout
    assert "360 images of digits" in done.stdout
    (written,) = (tmp_path / "runs" / "evaluate").glob("*/result.json")
    assert json.loads(written.read_text())["top1"] == result["top1"]


def test_says_so_when_it_evaluates_otherwise(run, trained: Path) -> None:
    checkpoint = f"checkpoint={trained / 'last.pt'}"
    done = run("scripts/evaluate.py", checkpoint, "data=digits", "data.eval_size=40")
    assert "note: data.eval_size=40, while the run evaluated with 32" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.pt"], "found none there"),
        ([], "checkpoint has no value"),
        (["checkpoint={}/config.yaml"], "expected a checkpoint"),
        (["checkpoint={}/last.pt", "data=synthetic"], "knows 10 classes (0, 1, 2, ...)"),
    ],
)
def test_errors_are_one_message(run, trained: Path, arguments: list[str], message: str) -> None:
    done = run("scripts/evaluate.py", *[a.format(trained) for a in arguments], ok=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_cannot_choose_what_is_called(run, trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained / "last.pt", weights_only=True)
    state["model"]["network"] = {"_target_": "torch.hub.load", "repo_or_dir": "x"}
    torch.save(state, tmp_path / "evil.pt")
    done = run("scripts/evaluate.py", "checkpoint=evil.pt", ok=False)
    assert "_target_=torch.hub.load is not allowed" in done.stderr


class PixelSum(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.flatten(1)
        return values[:, :7] * 3


@pytest.mark.parametrize("length", [1, 7, 64, 65])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_shards_add_up_to_the_whole(length: int, world_size: int) -> None:
    """What the ranks sum up is exactly what one process sums up."""
    images = synthetic(1, length, 7, 16).val
    cpu = torch.device("cpu")
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, cpu)

    class Recording(Process):
        def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
            parts.append(values.clone())
            return torch.tensor([0.0, 0.0, 0.0, float(length)]).double()

    parts: list[torch.Tensor] = []
    for ranks in (1, world_size):
        for rank in range(ranks):
            loader = eval_loader(
                images, eval_transform(16, crop_ratio=1), batch_size=4, rank=rank, world_size=ranks
            )
            score(PixelSum(), loader, to_device, Recording(cpu, rank, ranks), length)
    whole, *shares = parts
    total = torch.stack(shares).sum(0)
    assert torch.equal(whole[[0, 1, 3]], total[[0, 1, 3]])
    assert torch.allclose(whole, total)
    assert whole[3] == length


def test_a_wrong_count_is_an_error() -> None:
    images = synthetic(1, 9, 7, 16).val
    cpu = torch.device("cpu")
    loader = eval_loader(images, eval_transform(16, crop_ratio=1), batch_size=4)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, cpu)
    with pytest.raises(RuntimeError, match="evaluated 9 images, the split has 10"):
        score(PixelSum(), loader, to_device, Process(cpu), 10)
