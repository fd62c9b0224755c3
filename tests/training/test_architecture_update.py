"""Gradients of an architecture: against autograd through one step that is written out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from mobilenext.models.darts.supernet import Supernet
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.training import architecture
from mobilenext.training.architecture import ArchitectureUpdate

LR, MOMENTUM, DECAY = 0.1, 0.9, 3e-3
CPU = torch.device("cpu")


def batch(seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=source, dtype=torch.float64)
    return images, torch.randint(10, (size,), generator=source)


def tiny(**arguments: Any) -> tuple[Supernet, torch.optim.SGD]:
    """A supernet in float64, and its optimiser after one step, with momentum."""
    torch.manual_seed(0)
    network = Supernet(channels=4, cells=3, nodes=2, **arguments).double()
    for tensor in network.architecture:
        tensor.copy_(torch.randn_like(tensor))
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, LR, momentum=MOMENTUM)
    images, labels = batch(1)
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def update(network: Supernet, optimizer: torch.optim.Optimizer, order: str, **more: Any) -> Any:
    alphas = torch.optim.Adam(network.architecture, 3e-4)
    return ArchitectureUpdate(
        network, network.architecture, alphas, optimizer, Precision("fp32", CPU),
        Process(CPU), order, **more,
    )  # fmt: skip


def written_out(network: Supernet, optimizer: torch.optim.SGD) -> list[Tensor]:
    """The second order by one backward pass through the weights' whole step."""
    leaves = [tensor.detach().requires_grad_() for tensor in network.architecture]
    named = dict(network.named_parameters())
    images, labels = batch(2)
    loss = F.cross_entropy(functional_call(network, dict(named), (images, *leaves)), labels)
    gradients = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    ahead = {}
    for (name, weight), gradient in zip(named.items(), gradients, strict=True):
        decay = DECAY if weight.ndim > 1 else 0.0
        buffer = optimizer.state[weight]["momentum_buffer"]
        ahead[name] = weight - LR * (MOMENTUM * buffer + gradient + decay * weight)
    images, labels = batch(3)
    loss = F.cross_entropy(functional_call(network, ahead, (images, *leaves)), labels)
    return list(torch.autograd.grad(loss, leaves))


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    largest = max(float(one.abs().max()) for one in exact)
    return max(float((a - b).abs().max()) for a, b in zip(ours, exact, strict=True)) / largest


@pytest.mark.parametrize(
    "arguments",
    [{}, {"operators": ("none", "sandglass", "inverted_residual"), "auxiliary_skip": True}],
    ids=["darts", "blocks"],
)
def test_the_second_order_is_exact(arguments: dict[str, Any]) -> None:
    network, optimizer = tiny(**arguments)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = update(network, optimizer, "second").gradient(batch(3), batch(2), LR)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert error(found, written_out(network, optimizer)) < 1e-10
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_second_order_with_weights_of_edges() -> None:
    network, optimizer = tiny(edge_weights=True)
    found = update(network, optimizer, "second").gradient(batch(3), batch(2), LR)
    assert len(found) == 2
    assert error(found, written_out(network, optimizer)) < 1e-10


def test_the_step_that_is_looked_ahead_is_the_optimisers() -> None:
    network, optimizer = tiny()
    images, labels = batch(2)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(network(images), labels), parameters)
    ahead = update(network, optimizer, "second")._ahead(parameters, gradients, LR)
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    assert error(ahead, [parameter.detach() for parameter in parameters]) < 1e-14


def test_finite_differences_come_near_where_the_step_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, optimizer = tiny()
    exact = written_out(network, optimizer)
    first = update(network, optimizer, "first").gradient(batch(3), batch(2), LR)
    monkeypatch.setattr(architecture, "FINITE_DIFFERENCE", 1e-5)
    near = update(network, optimizer, "second_fd").gradient(batch(3), batch(2), LR)
    assert error(near, exact) < 1e-3
    assert error(first, exact) > 1e-2


def test_the_first_order_is_the_gradient_at_the_weights() -> None:
    network, optimizer = tiny()
    found = update(network, optimizer, "first").gradient(batch(3), batch(2), LR)
    leaf = network.alpha.clone().requires_grad_()
    images, labels = batch(3)
    F.cross_entropy(network(images, leaf), labels).backward()
    assert leaf.grad is not None
    assert error(found, [leaf.grad]) < 1e-12


def test_checkpointing_gives_the_same_first_order() -> None:
    found = [update(*tiny(checkpointing=on), "first").gradient(batch(3), batch(2), LR)
             for on in (False, True)]  # fmt: skip
    assert torch.equal(*(one[0] for one in found))


def test_a_step_moves_the_alphas_and_nothing_else() -> None:
    network, optimizer = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step = update(network, optimizer, "first")
    (gradient,) = step.gradient(batch(3), batch(2), LR)
    for name, value in network.named_buffers():  # the first order's pass counts in the norms
        value.copy_(before.get(name, value))
    step(batch(3), batch(2), LR)
    for name, value in network.named_parameters():
        assert torch.equal(before[name], value)
        assert value.grad is None
    expected = before["alpha"] - 3e-4 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(network.alpha, expected, atol=1e-9)
    assert network.alpha.grad is None


@pytest.mark.parametrize("order", ["first", "second", "second_fd"])
def test_micro_batches_are_averaged(order: str) -> None:
    """Each has norms of its own: the mean of their gradients, by one that is written out."""
    network, optimizer = tiny()
    whole = update(network, optimizer, order, micro_batch=2).gradient(batch(3), batch(2), LR)
    if order == "first":
        leaf = network.alpha.clone().requires_grad_()
        images, labels = batch(3)
        losses = [F.cross_entropy(network(images[p : p + 2], leaf), labels[p : p + 2])
                  for p in (0, 2)]  # fmt: skip
        exact = list(torch.autograd.grad(torch.stack(losses).mean(), [leaf]))
        assert error(whole, exact) < 1e-12
    else:
        once = update(network, optimizer, order).gradient(batch(3), batch(2), LR)
        assert error(whole, once) > 1e-6  # other norms
        doubled = [
            tuple(torch.cat([part[:2], part[:2]]) for part in batch(seed)) for seed in (3, 2)
        ]
        half = [tuple(part[:2] for part in batch(seed)) for seed in (3, 2)]
        same = update(network, optimizer, order, micro_batch=2).gradient(*doubled, LR)
        assert error(same, update(network, optimizer, order).gradient(*half, LR)) < 1e-9


def test_a_gradient_that_is_not_finite_counts_as_none_if_asked() -> None:
    network, optimizer = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, labels = batch(3)
    broken = images.clone()
    broken[0, 0, 0, 0] = float("nan")
    skipping = update(network, optimizer, "first", skips_nonfinite=True)
    skipping((broken, labels), batch(2), LR)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    skipping(batch(3), batch(2), LR)
    assert not torch.equal(before["alpha"], network.alpha)
    update(network, optimizer, "first")((broken, labels), batch(2), LR)
    assert not network.alpha.isfinite().all()
