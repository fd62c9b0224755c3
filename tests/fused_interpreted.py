"""Norms with ReLU6 and shortcut by Triton's interpreter, on the CPU; prints JSON.

Triton reads TRITON_INTERPRET when it is imported, so this is a process of its own.
"""

import copy
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mobilenext.models import MobileNeXt, fused, norm_kernels
from mobilenext.models.fused import FusedNorm, fuse_norms
from mobilenext.models.sandglass import SandglassBlock
from mobilenext.runtime.precision import Precision
from mobilenext.training.step import Update

BY_TRITON = {"cpu": fused.KERNELS["cuda"]}
fused.KERNELS = BY_TRITON

SIZES = {  # batch, channels, height, width, and channels of the shortcut
    "one tile": (2, 16, 5, 3, 0),
    "whole shortcut": (3, 24, 7, 5, 24),
    "part of the shortcut": (3, 24, 7, 5, 8),
    "more channels than a tile": (2, 70, 6, 7, 23),
    "several tiles": (2, 8, 23, 19, 8),
    "one channel": (2, 1, 4, 4, 1),
    "one pixel": (5, 40, 1, 1, 0),
}


def norm_of(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 3.0)
    nn.init.uniform_(norm.bias, -1.0, 4.0)
    nn.init.uniform_(norm.get_buffer("running_mean"), -1.0, 1.0)
    return norm


def channels_last(*shape: int, seed: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=source) * scale + mean
    return values.contiguous(memory_format=torch.channels_last)


def of_torch(
    norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor, slopes: Tensor, clamped: bool, added: int
) -> dict[str, Tensor]:
    """What it should be, in float64; the gradient of ReLU6 is torch's."""
    norm = copy.deepcopy(norm).double()
    x, shortcut = (one.detach().double().requires_grad_() for one in (x, shortcut))
    y = norm(x)
    y = nn.functional.relu6(y) if clamped else y
    y = torch.cat((y[:, :added] + shortcut[:, :added], y[:, added:]), dim=1)
    (y * slopes).sum().backward()
    carried = shortcut.grad if added else torch.zeros_like(x)
    return collected(norm, x, y, carried)


def of_kernels(
    norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor, slopes: Tensor, clamped: bool, added: int
) -> dict[str, Tensor]:
    norm = copy.deepcopy(norm)
    x, shortcut = (one.detach().clone().requires_grad_() for one in (x, shortcut))
    running = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
    y = fused.fused_norm(
        x, norm.weight, norm.bias, running, 0.1, norm.eps, clamped=clamped,
        shortcut=shortcut if added else None, added=added,
    )  # fmt: skip
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == x.dtype
    # Memory of another format, as that of a mean's gradient is.
    y.backward(slopes.to(y.dtype).contiguous())
    return collected(norm, x, y, shortcut.grad if added else torch.zeros_like(x))


def collected(norm: Any, x: Any, y: Tensor, carried: Any) -> dict[str, Tensor]:
    return {
        "y": y.detach(), "dx": x.grad, "dshortcut": carried, "dweight": norm.weight.grad,
        "dbias": norm.bias.grad, "running_mean": norm.get_buffer("running_mean"),
        "running_var": norm.get_buffer("running_var"),
    }  # fmt: skip


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each entry, over the largest value that is expected."""
    return {
        name: float((found[name].double() - value).abs().max() / value.abs().max().clamp_min(1e-3))
        for name, value in expected.items()
    }


def compared(
    x: Tensor, clamped: bool, added: int, norm: nn.BatchNorm2d | None = None
) -> dict[str, float]:
    norm = norm_of(x.shape[1]) if norm is None else norm
    shortcut = channels_last(*x.shape, seed=1).to(x.dtype)
    slopes = channels_last(*x.shape, seed=2).to(x.dtype)
    given = (norm, x, shortcut, slopes, clamped, added)
    return apart(of_kernels(*given), of_torch(*given))


def against_torch() -> dict[str, dict[str, float]]:
    found = {}
    for name, (*shape, added) in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if dtype == torch.float32 or name == "part of the shortcut":
                x = channels_last(*shape, seed=0).to(dtype)
                short = str(dtype).removeprefix("torch.")
                found[f"{name}, {short}"] = compared(x, True, added)
    shape = (3, 24, 7, 5)
    found["linear, float32"] = compared(channels_last(*shape, seed=0), False, 24)
    found["large mean, float32"] = compared(
        channels_last(2, 24, 13, 11, seed=0, mean=1000.0), True, 0
    )
    with tiles(256, programs=3, few=2):  # blocks of several tiles, in several rounds
        x = channels_last(*shape, seed=0)
        found["small tiles, float32"] = compared(x, True, 8)
        x = channels_last(*shape, seed=0, mean=1000.0)
        found["large mean in small tiles, float32"] = compared(x, True, 8)
    return found


def borders() -> list[float]:
    """Gradients at outputs of exactly 0 and 6, beside them, and at one that is no number."""
    norm = nn.BatchNorm2d(1, eps=0.0)
    nn.init.constant_(norm.bias, 3.0)
    nn.init.constant_(norm.weight, 3.0)
    x = torch.tensor([-1.0, 1.0, 1.0, -1.0]).view(4, 1, 1, 1)  # outputs 0, 6, 6, 0
    mean, rstd = torch.zeros(1), torch.ones(1)
    values = torch.tensor([-1.0, -0.999, 0.0, 0.999, 1.0, 2.0, float("nan")]).view(-1, 1, 1, 1)
    dy, dx = torch.ones_like(values), torch.empty_like(values)
    zeros = torch.zeros(1)
    cut = norm_kernels._Cut(values)
    norm_kernels._input_gradients[cut.by_tile](
        dy, values, dx, mean, rstd, norm.weight, norm.bias, zeros, zeros, 7, 1, True, **cut.tile
    )
    x.requires_grad_()
    running = (torch.zeros(1), torch.ones(1))
    y = fused.fused_norm(x, norm.weight, norm.bias, running, 0.1, 0.0, clamped=True)
    y.sum().backward()
    assert y.flatten().tolist() == [0, 6, 6, 0]
    assert norm.bias.grad is not None
    assert norm.bias.grad.item() == 0
    return (dx / 3).flatten().tolist()


def nan_stays() -> bool:
    x = channels_last(2, 8, 3, 3, seed=0)
    x[0, 3, 1, 1] = float("nan")
    running = (torch.zeros(8), torch.ones(8))
    y = fused.fused_norm(x, torch.ones(8), torch.ones(8), running, 0.1, 1e-5, clamped=True)
    return bool(y[:, 3].isnan().all() and y[:, :3].isfinite().all())


def equal_bits() -> bool:
    """Of two calls, on blocks of several tiles."""
    x, shortcut, slopes = (channels_last(3, 24, 7, 5, seed=seed).bfloat16() for seed in range(3))
    with tiles(512, programs=3):
        one, two = (of_kernels(norm_of(24), x, shortcut, slopes, True, 8) for _ in range(2))
    return all(torch.equal(one[name], two[name]) for name in one)


@contextmanager
def tiles(size: int, channels: int = 64, programs: int = 1024, few: int = 32) -> Iterator[None]:
    """Other tiles than training has: the interpreter takes its time by the program."""
    names = ("TILE", "MOST_CHANNELS", "PROGRAMS", "FEW_BLOCKS")
    before = [getattr(norm_kernels, name) for name in names]
    for name, value in zip(names, (size, channels, programs, few), strict=True):
        setattr(norm_kernels, name, value)
    yield
    for name, value in zip(names, before, strict=True):
        setattr(norm_kernels, name, value)


def network(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    made = MobileNeXt(
        width_mult=0.35, num_classes=3, depth_mult=0.3, strides=(1, 2, 1, 1, 1), dropout=0.0, **more
    )
    return made.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]


IMAGES = channels_last(4, 3, 16, 16, seed=0)


def trained(made: nn.Module, precision: str, images: Tensor = IMAGES) -> dict[str, Tensor]:
    """What a step measures and changes: loss, gradients, running statistics."""
    gradients: list[Tensor] = []

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return nn.functional.cross_entropy(network(images), labels), None

    update = Update(
        made, torch.optim.SGD(made.parameters(), 0.1), Precision(precision, torch.device("cpu")),
        reduce=lambda given: gradients.extend(one.flatten().double() for one in given),
    )  # fmt: skip
    measured = update((images, torch.tensor([0, 1, 2, 1])), loss)
    state = made.state_dict()
    counts = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 1 for count in counts)
    running = [value.double() for name, value in state.items() if "running" in name]
    return {"loss": measured.loss.double(), "gradients": torch.cat(gradients),
            "running": torch.cat(running)}  # fmt: skip


def whole_networks() -> dict[str, Any]:
    """Distances from float64 of a step as torch takes it, and of a fused one."""
    found = {}
    whole, part = {}, {"identity_tensor_multiplier": 0.5}
    for name, precision, more in (("fp32", "fp32", whole), ("bf16", "bf16", part)):
        exact = trained(network(**more).double(), "fp32", IMAGES.double())
        plain = trained(network(**more), precision)
        calls, real = [], FusedNorm._fused
        watched: Any = lambda *given: calls.append(given[-1]) or real(*given)  # noqa: B023, E731
        FusedNorm._fused = watched
        with tiles(2**16, 2048):
            joined = trained(fuse_norms(network(**more)), precision)
        FusedNorm._fused = real
        found[name] = {
            "norms": len(calls),
            "shortcuts": sum(added > 0 for added in calls),
            **{
                key: [float((one[key] - value).norm() / value.norm()) for one in (plain, joined)]
                for key, value in exact.items()
            },
        }
    return found


def evaluated() -> dict[str, bool]:
    """A fused network is the same as before wherever it is not trained."""
    plain, joined = network(), fuse_norms(network())
    names = list(plain.state_dict()), list(joined.state_dict())
    copied = copy.deepcopy(joined).eval()
    stored = pickle.loads(pickle.dumps(joined)).eval()
    expected = plain.eval()(IMAGES)
    return {
        "names": names[0] == names[1],
        "parameters": [n for n, _ in plain.named_parameters()]
        == [n for n, _ in joined.named_parameters()],
        "evaluation": torch.equal(joined.eval()(IMAGES), expected),
        "copy": torch.equal(copied(IMAGES), expected),
        "pickled": torch.equal(stored(IMAGES), expected),
    }


def block(**more: Any) -> Any:
    torch.manual_seed(0)
    return SandglassBlock(24, 24, **more).train()


def nothing(made: nn.Module) -> None:
    """Changes nothing."""


def cumulative(made: nn.Module) -> None:
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None


def frozen(made: nn.Module) -> None:
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def refused(*given: Any) -> Any:
    raise AssertionError(f"{given} went to the kernels")


def same(change: Callable[[nn.Module], object], x: Tensor, **more: Any) -> bool:
    """Whether a fused block has torch's bits after a change to it, and runs no kernel."""
    results = []
    real: Any = FusedNorm._fused
    FusedNorm._fused = refused  # pyright: ignore[reportAttributeAccessIssue]
    for made in (block(**more), fuse_norms(block(**more))):
        change(made)
        results.append([made(x), *made.state_dict().values()])
    FusedNorm._fused = real
    return all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def fallbacks() -> dict[str, bool]:
    x = channels_last(2, 24, 5, 5, seed=0)
    contiguous = x.contiguous()
    found = {
        "contiguous": same(nothing, contiguous),
        "contiguous, in part": same(nothing, contiguous, identity_tensor_multiplier=0.5),
        "float64": same(lambda made: made.double(), x.double()),
        "cumulative": same(cumulative, x),
        "frozen": same(frozen, x),
    }
    fused.KERNELS = {}
    found["device"] = same(nothing, x)
    fused.KERNELS = BY_TRITON
    for name, more in (("drop_path", {"drop_path": 0.5}), ("se", {"se_ratio": 0.25})):
        made: Any = fuse_norms(block(**more))
        found[name] = made.identity_channels == 24 and made.conv.added == 0
    made = fuse_norms(block(activations=("first", "expand", "last")))
    found["ReLU6 before the shortcut"] = made.conv.added == 24 and made.identity_channels == 0
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {
        "against torch": against_torch(),
        "borders": borders(),
        "nan stays": nan_stays(),
        "equal bits": equal_bits(),
        "networks": whole_networks(),
        "evaluated": evaluated(),
        "fallbacks": fallbacks(),
    }
    print(json.dumps(results))  # noqa: T201
