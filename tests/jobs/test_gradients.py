import json
import math
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mobilenext.jobs.gradients as job
from mobilenext.config.targets import build
from mobilenext.data import ImageData, digits
from mobilenext.errors import InputError
from mobilenext.jobs.gradients import (
    GradientsConfig,
    SampleGradients,
    confusion,
    draw,
    flow,
    gradients,
    gram_matrix,
    sample_gradients,
    set_norm_statistics,
)
from mobilenext.runtime.distributed import Process
from mobilenext.seeding import seed_devices
from mobilenext.training.weights_files import load_weights
from tests.composed import composed, placed

CPU = Process(torch.device("cpu"))
SMALL = ("width=0.35", "images=6", "norm_batches=2", "seeds=[0,1]")
ABLATION = ["bottleneck_one", "bottleneck_two", "thin_ends", "sandglass"]


def config(*overrides: str) -> GradientsConfig:
    return composed(*SMALL, *overrides, job="gradients")


@pytest.fixture(scope="module")
def images() -> ImageData:
    return digits(32)


@pytest.fixture(scope="module")
def ten(images: ImageData) -> tuple[Tensor, Tensor]:
    """Ten scanned digits and their labels; more than are computed at a time."""
    return draw(config("images=10"), images, 0, CPU)[0]


def linear(*sizes: int) -> nn.Module:
    """Flattened images through linear layers: `features` are all but the last of them."""
    torch.manual_seed(0)
    *hidden, last = [nn.Linear(into, out) for into, out in pairwise(sizes)]
    features = nn.Sequential(nn.Flatten(), *hidden)
    return nn.Sequential(OrderedDict(features=features, classifier=last)).eval()


def test_a_linear_model_by_hand(ten: tuple[Tensor, Tensor]) -> None:
    pixels, labels = ten
    network = linear(3 * 32 * 32, 10)
    samples = sample_gradients(network, pixels, labels, "features.0", "features")

    x = pixels.flatten(1).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in network.parameters())
    logits = x @ weight.T + bias
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    delta = shares - np.eye(10)[labels]
    # d loss / d weight = delta x^T, d loss / d bias = delta
    gram = (delta @ delta.T) * (x @ x.T + 1)
    np.testing.assert_allclose(gram_matrix(samples.flat), gram, rtol=1e-4, atol=1e-4)
    losses = -np.log(shares[np.arange(10), labels])
    np.testing.assert_allclose(samples.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(samples.stem, np.linalg.norm(delta @ weight, axis=1), rtol=1e-5)

    norms = np.sqrt(np.diag(gram))
    cosines = (gram / np.outer(norms, norms))[np.triu_indices(10, 1)]
    told = confusion(gram_matrix(samples.flat), labels)
    assert told["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert told["min_cosine"] == pytest.approx(cosines.min(), abs=1e-6)
    assert told["negative_share"] == (cosines < 0).mean() > 0
    assert told["eta"] == pytest.approx(-gram[np.triu_indices(10, 1)].min(), rel=1e-5)


def test_the_flow_of_two_linear_layers_by_hand(ten: tuple[Tensor, Tensor]) -> None:
    network = linear(3 * 32 * 32, 16, 10)
    samples = sample_gradients(network, *ten, "features.0", "features")
    first, _, second, _ = (p.detach() for p in network.parameters())
    delta = network(ten[0]).detach().softmax(1) - F.one_hot(ten[1], 10)
    at_last = delta @ second
    ratios = (at_last @ first).norm(dim=1) / at_last.norm(dim=1)
    assert flow(samples)["gradient_ratio"] == pytest.approx(float(ratios.mean()), rel=1e-5)


@pytest.mark.parametrize("label", [*ABLATION, "sandglass_thin_shortcut", "mobilenetv2"])
def test_the_same_as_one_backward_pass_for_each_image(
    ten: tuple[Tensor, Tensor], images: ImageData, label: str
) -> None:
    """In float64: a difference of float32's rounding can turn an activation on or off."""
    chosen = config(f"models=[{label}]")
    network = build(chosen.networks[label], num_classes=10).double()
    pixels, labels = ten[0].double(), ten[1]
    others = draw(config("images=10"), images, 1, CPU)[1:]
    set_norm_statistics(network, [batch.double() for batch, _ in others])
    # In MobileNeXt, a shortcut starts at features.4 as well; thin shortcuts go around its blocks.
    stem = "features.0" if label == "sandglass_thin_shortcut" else "features.4"
    samples = sample_gradients(network, pixels, labels, stem, "features")
    assert len(pixels) > job.CHUNK
    assert samples.flat.shape == (10, sum(p.numel() for p in network.parameters()))

    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output})

    network.get_submodule(stem).register_forward_hook(keep("stem"))
    network.get_submodule("features").register_forward_hook(keep("last"))
    weights = list(network.parameters())
    for row in (0, job.CHUNK - 1, job.CHUNK, 9):  # ends of both chunks
        loss = F.cross_entropy(network(pixels[row : row + 1]), labels[row : row + 1])
        ends = [seen["stem"], seen["last"]]
        *by_weight, at_stem, at_last = torch.autograd.grad(loss, [*weights, *ends])
        flat = torch.cat([one.flatten() for one in by_weight])
        torch.testing.assert_close(samples.flat[row], flat, rtol=1e-8, atol=1e-10)
        assert float(samples.losses[row]) == pytest.approx(float(loss.detach()), rel=1e-10)
        assert float(samples.stem[row]) == pytest.approx(float(at_stem.norm()), rel=1e-8)
        assert float(samples.last[row]) == pytest.approx(float(at_last.norm()), rel=1e-8)


def test_an_image_agrees_with_itself(ten: tuple[Tensor, Tensor]) -> None:
    network = build(config().networks["sandglass"], num_classes=10)
    set_norm_statistics(network, [ten[0]])
    pixels, labels = ten[0][:1].repeat(2, 1, 1, 1), ten[1][:1].repeat(2)
    samples = sample_gradients(network, pixels, labels, "features.0", "features")
    told = confusion(gram_matrix(samples.flat), labels)
    assert told["mean_cosine"] == told["min_cosine"] == pytest.approx(1, abs=1e-12)
    assert (told["negative_share"], told["eta"]) == (0, 0)
    assert told["other_class_cosine"] is None


def test_networks_are_left_as_they_were(ten: tuple[Tensor, Tensor]) -> None:
    network = build(config().networks["sandglass"], num_classes=10).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    logits = network(ten[0])
    sample_gradients(network, *ten, "features.0", "features")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(ten[0]), logits)
    assert all(weights.grad is None for weights in network.parameters())


def test_confusion_of_known_vectors() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    told = confusion(gram_matrix(vectors), torch.tensor([5, 5, 6, 6]))
    assert told == {
        "mean_cosine": pytest.approx(-1 / 3),
        "min_cosine": -1,
        "negative_share": pytest.approx(1 / 3),
        "same_class_cosine": -1,
        "other_class_cosine": 0,
        "same_class_share": pytest.approx(1 / 3),
        "min_inner_product": -2,
        "eta": 2,
        "without_gradient": 1,
    }
    with pytest.raises(InputError, match="at least 2 samples, 1 of 2 differ from zero"):
        confusion(gram_matrix(vectors[2:]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="not finite"):
        confusion(gram_matrix(torch.tensor([[1.0], [math.nan]])), torch.tensor([0, 1]))


def test_the_flow_leaves_out_images_without_gradient() -> None:
    samples = SampleGradients(torch.zeros(3, 1), *torch.tensor([[1.0, 2, 3], [4, 9, 0], [2, 3, 0]]))
    assert flow(samples) == {"gradient_ratio": 2.5, "loss": 2}


def test_inner_products_are_exact_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large terms that cancel: float32 would have lost the small ones."""
    monkeypatch.setattr(job, "COLUMNS", 3)
    rows = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    rows[:, 0], rows[:, 99] = 1e4, torch.tensor([1e4, -1e4, 1e4, -1e4])
    exact = rows.double().numpy()
    np.testing.assert_allclose(gram_matrix(rows), exact @ exact.T, rtol=1e-9, atol=1e-6)


def test_norms_get_the_mean_statistics_of_the_batches(images: ImageData) -> None:
    network = build(config("models=[mobilenetv2]").networks["mobilenetv2"], num_classes=10)
    batches = [batch for batch, _ in draw(config(), images, 0, CPU)]
    with torch.no_grad():
        network.train()(batches[0] + 1)  # statistics that have to go
    set_norm_statistics(network, batches)
    assert not any(module.training for module in network.modules())
    norm = network.features[0][1]
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 3
    with torch.no_grad():
        stems = [network.features[0][0](batch) for batch in batches]
    mean = torch.stack([one.mean((0, 2, 3)) for one in stems]).mean(0)
    variance = torch.stack([one.var((0, 2, 3)) for one in stems]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    deep = network.features[18][1].running_mean.clone()
    set_norm_statistics(network, batches)  # would differ if dropout or history had a part in it
    assert torch.equal(network.features[18][1].running_mean, deep)


def test_images_are_drawn_by_the_seed_alone(images: ImageData) -> None:
    one, again, other = (draw(config(), images, seed, CPU) for seed in (0, 0, 1))
    assert [len(labels) for _, labels in one] == [6, 6, 6]
    for (pixels, labels), (pixels_again, labels_again) in zip(one, again, strict=True):
        assert torch.equal(pixels, pixels_again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(one[0][0], other[0][0])
    flat = torch.cat([pixels for pixels, _ in one]).flatten(1)
    assert len(flat.unique(dim=0)) == 18
    with pytest.raises(
        InputError, match=r"at most the 1,437 training images .* got 480 .* = 1,440"
    ):
        draw(config("images=480"), images, 0, CPU)


def run_job(path: Path, *overrides: str) -> dict[str, Any]:
    return gradients(placed(config(*overrides), path), CPU)


def test_results_repeat_bit_for_bit(tmp_path: Path) -> None:
    """Whatever else is measured, and in which order."""
    one = run_job(tmp_path / "a", "models=[bottleneck_one,sandglass]")
    two = run_job(tmp_path / "b", "models=[bottleneck_one,sandglass]")
    assert one["networks"] == two["networks"]
    alone = run_job(tmp_path / "c", "models=[sandglass]", "seeds=[1,0]")
    assert alone["networks"][0]["seeds"] == one["networks"][1]["seeds"][::-1]


def test_weights_are_those_that_training_begins_with(images: ImageData, tmp_path: Path) -> None:
    chosen = config("models=[sandglass]")
    (row,) = gradients(placed(chosen, tmp_path), CPU)["networks"]
    for seed, told in zip((0, 1), row["seeds"], strict=True):
        seed_devices("init", seed)
        network = build(chosen.networks["sandglass"], num_classes=10)
        (pixels, labels), *others = draw(chosen, images, seed, CPU)
        set_norm_statistics(network, [batch for batch, _ in others])
        with torch.no_grad():
            loss = F.cross_entropy(network(pixels), labels)
        assert told["seed"] == seed
        assert told["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_the_table_and_the_files(run, tmp_path: Path) -> None:
    done = run("scripts/gradients.py", *SMALL)
    (folder,) = (tmp_path / "runs" / "gradients").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "gradients.json"]
    result = json.loads((folder / "gradients.json").read_text())
    assert [row["network"] for row in result["networks"]] == ABLATION
    assert result["command"].startswith("python")
    lines = done.stdout.splitlines()
    for row in result["networks"]:
        values = [one["mean_cosine"] for one in row["seeds"]]
        assert len(set(values)) == 2
        assert row["mean_cosine"]["mean"] == pytest.approx(sum(values) / 2)
        assert row["mean_cosine"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert all(-1 <= one["min_cosine"] <= one["mean_cosine"] <= 1 for one in row["seeds"])
        assert all(one["without_gradient"] == 0 for one in row["seeds"])
        (line,) = [line for line in lines if line.startswith(f"{row['network']} ")]
        assert f"{row['num_params']:,}" in line
        for key in ("mean_cosine", "min_cosine"):
            digits = 4 if key == "mean_cosine" else 3
            mean, deviation = row[key]["mean"], row[key]["sd"]
            assert f"{mean:+.{digits}f} ± {deviation:.{digits}f}" in line
        assert f"{row['negative_share']['mean']:.1%}" in line
        assert f"{row['gradient_ratio']['mean']:.3g} ± " in line
    assert "mean statistics of 2 batches of 6" in " ".join(lines)
    assert f"run folder: runs/gradients/{folder.name}" in done.stdout
    assert "models:\n- bottleneck_one" in (folder / "config.yaml").read_text()


def test_a_trained_run_keeps_its_weights_and_norms(
    learned: Path, images: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("models=[]", f"runs=[{learned},{learned / 'model.safetensors'}]", "seeds=[3]")
    result = run_job(tmp_path, *overrides, "weights=last.pt", "data.eval_crop_ratio=0.9")
    by_folder, by_file = result["networks"]
    assert by_folder["checkpoint"] == str(learned / "last.pt")
    assert by_folder["seeds"] == by_file["seeds"]
    assert by_folder["mean_cosine"]["sd"] is None
    assert (
        by_folder["num_params"] == json.loads((learned / "result.json").read_text())["num_params"]
    )
    shown = capsys.readouterr().out
    assert "note: data.eval_crop_ratio=0.9, while" in shown
    assert "width 0.35 (runs: their own)" in shown

    tensors, described = load_weights(learned / "last.pt")
    network = build(described["model"]["network"], num_classes=10)
    network.load_state_dict(tensors)
    pixels, labels = draw(config("data.eval_crop_ratio=0.9"), images, 3, CPU)[0]
    with torch.no_grad():
        loss = F.cross_entropy(network.eval()(pixels), labels)
    assert by_folder["loss"]["mean"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: runs: nowhere: expected a run folder with best.pt in it"),
        (["models=[sandglas]"], "models=sandglas: expected one of bottleneck_one, bottleneck_two"),
        (["stem=nowhere"], "error: MobileNeXt has no module nowhere that it uses"),
    ],
)
def test_errors_are_one_message(run, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("scripts/gradients.py", *SMALL, *arguments, ok=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=[nowhere]", "weights=last.pt"], "runs: nowhere: expected .* with last.pt in it"),
        (["models=[]"], "expected a network, or some runs"),
        (["models=[sandglass,sandglass]"], "expected each once"),
        (["weights=x.pt"], "weights=x.pt: expected one of best.pt"),
        (["identity=1/2", "models=[thin_ends]"], "has no identity tensor multiplier"),
        (["images=1"], "images=1: expected at least 2"),
        (["norm_batches=0"], "norm_batches=0: expected at least 1"),
        (["seeds=[1,1]"], "expected one or more, each once"),
        (["seeds=[]"], "expected one or more, each once"),
        (["data.on_bad_image=skip"], "data.on_bad_image=skip: expected error"),
        (["+networks.x={_target_: torch.hub.load}", "models=[x]"], "torch.hub.load is not allowed"),
    ],
)
def test_what_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_job(tmp_path / "x", *arguments)
    assert not (tmp_path / "x").exists()


def test_a_run_that_knows_other_classes(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"knows 10 classes \(0, .*\), data=synthetic has 1000 \("):
        run_job(tmp_path, "models=[]", f"runs=[{learned}]", "data=synthetic")


def test_several_processes_are_refused(tmp_path: Path) -> None:
    process = Process(torch.device("cpu"), rank=0, world_size=2)
    with pytest.raises(InputError, match="expected one process, got 2"):
        gradients(placed(config(), tmp_path), process)


def test_an_unreadable_image_is_named(tmp_path: Path, photo_folder: Path) -> None:
    data = ("data=imagefolder", f"data.root={photo_folder}", "data.image_size=32",
            "norm_batches=1", "images=12", "seeds=[0]", "models=[sandglass]")  # fmt: skip
    assert run_job(tmp_path / "good", *data)["classes"] == 2
    bad = photo_folder / "train" / "temple" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(InputError, match=r"3\.jpg"):
        run_job(tmp_path / "bad", *data)
