"""Batch norms of native/norms.c against torch's, in float64 where numbers are compared."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilenext.models import native_norms
from mobilenext.models.fused import fused_norm

pytestmark = pytest.mark.skipif(
    native_norms.library() is None, reason="the native norms were not built"
)

Results = dict[str, Tensor]


def made(channels: int, seed: int = 0) -> nn.BatchNorm2d:
    random = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2, generator=random)
        norm.bias.normal_(1, 2, generator=random)
        norm.get_buffer("running_mean").normal_(generator=random)
    return norm


def feature_map(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 1) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (values * std + mean).contiguous(memory_format=torch.channels_last)


def torchs(x: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor, clamped: bool, added: int) -> Results:
    """By torch, in the type of `x`."""
    norm = copy.deepcopy(norm).to(x.dtype)
    x, shortcut = x.clone().requires_grad_(), shortcut.to(x.dtype, copy=True).requires_grad_()
    y: Tensor = norm(x)
    if clamped:
        y = nn.functional.relu6(y)
    y = torch.cat((y[:, :added] + shortcut[:, :added], y[:, added:]), 1)
    return results(y, x, norm, shortcut)


def ours(x: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor, clamped: bool, added: int) -> Results:
    norm = copy.deepcopy(norm)
    x, shortcut = x.clone().requires_grad_(), shortcut.clone().requires_grad_()
    running = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    y = fused_norm(
        x, norm.weight, norm.bias, running, 0.1, norm.eps, clamped=clamped,
        shortcut=shortcut if added else None, added=added,
    )  # fmt: skip
    return results(y, x, norm, shortcut)


def results(y: Tensor, x: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor) -> Results:
    gradient = feature_map(*y.shape, mean=0.2, seed=2).to(y.dtype)
    y.backward(gradient)
    found: dict[str, Any] = {
        "y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad,
        "running_mean": norm.running_mean, "running_var": norm.running_var,
    }  # fmt: skip
    if shortcut.grad is not None:
        found["dshortcut"] = shortcut.grad
    return found


def furthest(found: Results, expected: Results) -> dict[str, float]:
    """Largest differences, over the largest value."""
    return {
        name: float((value.double() - expected[name]).abs().max() / expected[name].abs().max())
        for name, value in found.items()
    }


@pytest.mark.parametrize("clamped", [True, False])
@pytest.mark.parametrize(
    ("shape", "added"),
    [
        ((2, 96, 19, 23), 0),
        ((3, 96, 40, 40), 96),  # several blocks, the last one shorter
        ((2, 96, 19, 23), 32),
        ((4, 5, 3, 3), 2),  # no whole vector
        ((2, 40_000, 1, 1), 0),  # a row is more than a block
        ((64, 1280, 1, 1), 1280),
        ((2, 1, 200, 200), 1),
    ],
)
def test_results_are_torchs(shape: tuple[int, ...], added: int, clamped: bool) -> None:
    x, shortcut, norm = feature_map(*shape, std=3), feature_map(*shape, seed=3), made(shape[1])
    expected = torchs(x.double(), norm, shortcut, clamped, added)
    found = ours(x, norm, shortcut, clamped, added)
    theirs = furthest(torchs(x, norm, shortcut, clamped, added), expected)
    for name, difference in furthest(found, expected).items():
        assert difference < max(1e-5, 2 * theirs[name]), name  # of two values, little is left
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    if clamped and not added:
        assert (found["y"] == 0).any()
        assert (found["y"] == 6).any()


def test_large_means_lose_no_more_than_in_torch() -> None:
    """A mean of 3,000 deviations: a sum of squares in float32 would be left with nothing."""
    x, norm = feature_map(8, 32, 30, 30, mean=3000), made(32)
    expected = torchs(x.double(), norm, x, False, 0)
    theirs = furthest(torchs(x, norm, x, False, 0), expected)
    for name, difference in furthest(ours(x, norm, x, False, 0), expected).items():
        assert difference < max(2 * theirs[name], 1e-5), name
        assert difference < 1e-3, name


def test_the_bits_do_not_depend_on_threads() -> None:
    x, norm = feature_map(4, 24, 64, 64), made(24)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ours(x, norm, x, True, 24))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_relu6_has_no_gradient_at_its_ends() -> None:
    """As torch's: a norm of weight 0 gives its bias everywhere."""
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.copy_(torch.tensor([0.0, 6.0, 3.0, -1.0]))
    x = feature_map(2, 4, 8, 8)
    assert ours(x, norm, x, True, 0)["dbias"].bool().tolist() == [False, False, True, False]
    assert torchs(x, norm, x, True, 0)["dbias"].bool().tolist() == [False, False, True, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    """A run that diverges has to be seen as one."""
    x, norm = feature_map(2, 3, 8, 8), made(3)
    x[0, 1, 4, 4] = value
    found = ours(x, norm, x, True, 0)
    for name in ("y", "dx"):
        assert found[name][:, 1].isnan().any()
        assert found[name][:, [0, 2]].isfinite().all()
    assert found["dweight"].isfinite().tolist() == [True, False, True]
    assert not found["running_var"][1].isfinite()


def test_gradients_of_other_layouts() -> None:
    """Behind a pooling the gradient is a view of one value for each channel."""
    x, norm = feature_map(4, 16, 7, 7), made(16)
    found = {}
    for name in ("ours", "torch"):
        here, own = x.clone().requires_grad_(), copy.deepcopy(norm)
        running = own.get_buffer("running_mean"), own.get_buffer("running_var")
        y = (
            own(here)
            if name == "torch"
            else fused_norm(here, own.weight, own.bias, running, 0.1, own.eps, clamped=False)
        )
        y.mean((2, 3)).pow(3).sum().backward()
        found[name] = here.grad
    assert furthest({"dx": found["ours"]}, {"dx": found["torch"].double()})["dx"] < 1e-4


def test_it_is_no_twice_differentiable_function() -> None:
    x, norm = feature_map(2, 3, 8, 8).requires_grad_(), made(3)
    running = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    y = fused_norm(x, norm.weight, norm.bias, running, 0.1, norm.eps, clamped=True)
    (first,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
