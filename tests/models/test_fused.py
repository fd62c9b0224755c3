"""Norms that are trained together with ReLU6 and shortcut: by Triton's interpreter, on the CPU."""

import copy
import importlib.util
import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mobilenext.assembly.network import new_network
from mobilenext.errors import InputError
from mobilenext.models import MobileNeXt, native_norms
from mobilenext.models.fused import FusedLayers, FusedNorm, fuse_norms, fused_by
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.training.graph import GraphedUpdate
from mobilenext.training.step import Update
from tests.commands import run_command
from tests.composed import TINY, composed

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
needs_native = pytest.mark.skipif(
    native_norms.library() is None, reason="the native norms were not built"
)
CPU = Process(torch.device("cpu"))
TOLERANCES = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Of results, over the largest of them: a spacing of 16 bits, since the interpreter cuts off what a
GPU rounds."""
LARGE_MEAN = 1e-4
"""Of 1,000: a mean of float32 is rounded by 3e-5, as torch's."""


@pytest.fixture(scope="module")
def interpreted(once: Callable[..., Path]) -> dict[str, Any]:
    def make(folder: Path) -> None:
        folder.mkdir()
        done = run_command(
            "tests/fused_interpreted.py", cwd=folder, env={"TRITON_INTERPRET": "1"},
            before=lambda: None,  # no fork of a process that may have loaded Triton
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / "found.json").write_text(done.stdout.splitlines()[-1])

    return json.loads((once("fused", make) / "found.json").read_text())


@needs_triton
def test_outputs_statistics_and_gradients_are_torchs(interpreted: dict[str, Any]) -> None:
    """Of shapes that tiles don't divide, with the shortcut, a part of it and without."""
    found = interpreted["against torch"]
    assert len(found) == 13
    for name, errors in found.items():
        dtype = name.rpartition(" ")[2]
        for entry, error in errors.items():
            exact = entry not in ("y", "dx", "dshortcut")  # float32, whatever the input is
            bound = TOLERANCES["float32" if exact else dtype]
            assert error < (LARGE_MEAN if "large mean" in name else bound), (name, entry)
            if entry == "dshortcut":
                assert error == 0, name


@needs_triton
def test_borders_and_what_is_no_number(interpreted: dict[str, Any]) -> None:
    """Gradients of ReLU6 as torch has them: none at 0 and at 6, and those of NaN stay."""
    assert interpreted["borders"][:6] == [0, 1, 1, 1, 0, 0]
    assert math.isnan(interpreted["borders"][6])
    assert interpreted["nan stays"]
    assert interpreted["equal bits"]


@needs_triton
def test_networks_train_as_before(interpreted: dict[str, Any]) -> None:
    """Loss, gradients and statistics are as near to those of float64 as torch's are."""
    for name, found in interpreted["networks"].items():
        assert (found["norms"], found["shortcuts"]) == (18, 2)
        for entry in ("loss", "gradients", "running"):
            plain, joined = found[entry]
            # Gradients jump where an activation falls to the other side of 0 or 6.
            near = 1e-6 if name == "fp32" and entry != "gradients" else 5e-3
            assert joined < max(near, 1.5 * plain), (name, entry)


@needs_triton
def test_only_training_is_fused(interpreted: dict[str, Any]) -> None:
    for part in ("evaluated", "fallbacks"):
        assert [name for name, same in interpreted[part].items() if not same] == []


@needs_triton
def test_kernels_compile_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter takes need not compile; this needs no GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mobilenext.models import norm_kernels

    kernels = [
        value for value in vars(norm_kernels).values() if isinstance(value, triton.JITFunction)
    ]
    launched = [one for one in kernels if one.arg_names[-2:] == ["height", "width"]]
    launched = [one for one in launched if "first" not in one.arg_names]
    assert len(launched) == 6
    kinds = {"*bf16": ("x", "y", "dx", "dy", "shortcut"), "fp32": ("momentum", "eps"),
             "i32": ("count", "channels", "share", "number", "added")}  # fmt: skip
    fixed = {"height": 64, "width": 64, "clamped": True, "adds": True}
    for kernel in launched:
        constants = {name: fixed[name] for name in kernel.arg_names if name in fixed}
        signature = {name: next((k for k, names in kinds.items() if name in names), "*fp32")
                     for name in kernel.arg_names}  # fmt: skip
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]


def test_refusals_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, two = Process(torch.device("cuda", 0)), Process(torch.device("cuda", 0), 0, 2)
    monkeypatch.setattr("mobilenext.assembly.network.synchronize", lambda network, *_: network)

    def refused(process: Process, message: str, *overrides: str) -> None:
        line = rf"runtime\.fused=true: expected {message}.*; or runtime\.fused=false"
        with pytest.raises(InputError, match=line):
            new_network(composed(*TINY, "runtime.fused=true", *overrides), 10, process)

    refused(Process(torch.device("meta")), "the CPU or a CUDA device, got meta")
    with monkeypatch.context() as patched:
        patched.setattr("mobilenext.assembly.network.has_native_norms", lambda: True)
        refused(CPU, "runtime.precision=fp32 on the CPU, got bf16", "runtime.precision=bf16")
        patched.setattr("mobilenext.assembly.network.has_native_norms", lambda: False)
        refused(CPU, "the native norms, which pip builds where gcc is .* found none")
    refused(two, "norms of one process, and these are of 2", "batch_norm=sync")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused(cuda, "a C compiler for Triton .* found none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(cuda, "the package triton, .* found none")


def test_networks_without_such_a_pair_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MobileNeXt(width_mult=0.35, activation_layer=nn.SiLU, shortcut="none")
    assert fused_by(fuse_norms(network), torch.device("cuda", 0)) == "torch"
    given = composed("model=torchvision", "model.name=vit_b_16", "strides=[2,2,2,2,2]",
                     "runtime.fused=true", "data=cifar10", "+model.network.image_size=32",
                     "data.root=x")  # fmt: skip
    monkeypatch.setattr("mobilenext.assembly.network.has_native_norms", lambda: True)
    with pytest.raises(InputError, match=r"an nn\.BatchNorm2d, such as.*got a VisionTransf"):
        new_network(given, 10, CPU)


@needs_native
@pytest.mark.parametrize(
    ("overrides", "by"),
    [
        ((), "native"),
        (("model=mobilenetv2",), "native"),
        (("model=efficientnet_b0", "width=1"), "native"),
        (("model=torchvision", "model.name=shufflenet_v2_x0_5", "width=1",
          "strides=[2,2,2,2,2]"), "native"),
        (("runtime.fused=false",), "torch"),
        (("runtime.fused=true",), "native"),
        (("runtime.compile=true",), "torch"),
        (("runtime.precision=bf16",), "torch"),
        (("runtime.channels_last=false",), "torch"),
        (("freeze_norms=true", "init_from=x"), "torch"),
        (("freeze_backbone=true", "init_from=x"), "torch"),
    ],
)  # fmt: skip
def test_what_trains_norms_on_the_cpu(overrides: tuple[str, ...], by: str) -> None:
    network, _ = new_network(composed("width=0.35", *overrides), 10, CPU)
    assert fused_by(network, CPU.device) == by


@needs_native
@pytest.mark.parametrize("identity", [1.0, 0.5])
def test_on_the_cpu_a_step_is_as_near_to_float64_as_torchs(identity: float) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        network: Any = MobileNeXt(
            width_mult=0.35, num_classes=3, depth_mult=0.3, strides=(1, 2, 1, 1, 1), dropout=0.0,
            identity_tensor_multiplier=identity,
        )  # fmt: skip
        return network.to(memory_format=torch.channels_last).train()

    def step(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 1]))
        loss.backward()
        state = network.state_dict()
        gradients = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
        running = [v.flatten().double() for name, v in state.items() if "running" in name]
        assert {int(v) for name, v in state.items() if name.endswith("batches_tracked")} == {1}
        return {"loss": loss.detach().double(), "gradients": torch.cat(gradients),
                "running": torch.cat(running)}  # fmt: skip

    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    exact = step(made().double(), images.double())
    plain, joined = step(made(), images), step(fuse_norms(made()), images)
    for name, expected in exact.items():
        errors = [float((one[name] - expected).norm() / expected.norm()) for one in (plain, joined)]
        assert errors[1] < max(1e-6, 2 * errors[0]), name
        assert errors[1] > 0 or name == "loss"


def strided(norm: FusedNorm) -> None:
    norm.weight = nn.Parameter(torch.rand(16)[::2])


def of_other_type(norm: FusedNorm) -> None:
    norm.running_mean = norm.get_buffer("running_mean").double()


@needs_native
@pytest.mark.parametrize("change", [None, strided, of_other_type])
def test_what_kernels_would_misread_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[FusedNorm], None] | None
) -> None:
    """They get addresses, and would read or write beside what is there."""
    given: Any = nn.Sequential(nn.BatchNorm2d(8))
    norm: FusedNorm = fuse_norms(given)[0]  # pyright: ignore[reportIndexIssue]
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    calls, real = [], FusedNorm._fused
    monkeypatch.setattr(FusedNorm, "_fused", lambda *given: calls.append(given) or real(*given))
    if change is None:
        assert norm(x) is not None
        assert len(calls) == 1
        with pytest.raises(RuntimeError, match="should contain 16 elements"):
            norm(torch.cat((x, x), 1).contiguous(memory_format=torch.channels_last))
    else:
        change(norm)
        try:
            norm(x)
        except RuntimeError as error:
            assert "dtype" in str(error) or "type" in str(error)  # noqa: PT017 - torch's, if any
    assert len(calls) == (change is None)


@needs_native
def test_hooks_on_what_is_saved_may_change_its_format() -> None:
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    gradients = []
    for pack in (lambda tensor: tensor, lambda tensor: tensor.contiguous()):
        given = x.clone().requires_grad_()
        norm: Any = fuse_norms(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6()))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = norm(given)
        y.pow(2).sum().backward()
        gradients.append(given.grad)
    assert torch.equal(*gradients)


@needs_native
def test_evaluation_and_copies_are_torchs() -> None:
    network: Any = MobileNeXt(width_mult=0.35, num_classes=3, depth_mult=0.3)
    pixels = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    expected, names = network.eval()(pixels), list(network.state_dict())
    joined = fuse_norms(network)
    for one in (joined, copy.deepcopy(joined), pickle.loads(pickle.dumps(joined))):
        assert torch.equal(one.eval()(pixels), expected)
        assert list(one.state_dict()) == names


def test_a_row_of_layers_is_replaced_itself() -> None:
    rows = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6())
    joined = fuse_norms(rows)
    assert isinstance(joined, FusedLayers)
    assert list(joined) == list(rows)
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.equal(joined.eval()(pixels), rows(pixels))


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphed", [False, True])
def test_on_cuda_training_is_as_before(graphed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of five steps, eager and as a graph; two fused runs are the same bits."""
    device, calls = torch.device("cuda", 0), []
    real = FusedNorm._fused
    monkeypatch.setattr(FusedNorm, "_fused", lambda *given: calls.append(given) or real(*given))

    def losses(change: Callable[[nn.Module], nn.Module]) -> list[float]:
        torch.manual_seed(0)
        made: Any = MobileNeXt(width_mult=0.35, num_classes=4, dropout=0.0).to(device)
        network = change(made.to(memory_format=torch.channels_last).train())
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=True)
        update = Update(network, optimizer, Precision("bf16", device))
        step = GraphedUpdate(update) if graphed else update
        images = torch.randn((32, 3, 96, 96), generator=torch.Generator().manual_seed(0))
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(32, device=device) % 4

        def loss(network: nn.Module, images: Any, labels: Any) -> tuple[torch.Tensor, None]:
            return nn.functional.cross_entropy(network(images).float(), labels), None

        return [float(step((images, labels), loss).loss) for _ in range(5)]

    first = losses(fuse_norms)
    assert len(calls) == (4 if graphed else 5) * 48  # all of them fit; a recording is one step
    assert losses(fuse_norms) == first
    assert first == pytest.approx(losses(lambda network: network), rel=0.02)
