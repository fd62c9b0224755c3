"""DARTS' networks: counts, the wide operators beside one operator at a time, found networks."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.genotype import (
    DARTS_V2,
    SKIP,
    SPACES,
    edges_of,
    genotype_named,
    random_genotype,
    substituted,
)
from mobilenext.models.complexity import count_params, measure_complexity
from mobilenext.models.darts.found import DartsNetwork
from mobilenext.models.darts.operators import (
    DEPTHWISE,
    Depthwise,
    Strided,
    block_settings,
    operator,
)
from mobilenext.models.darts.supernet import Fan, SearchCell, Supernet, rows_by_source

EVERY = (*SPACES["darts_sandglass"], "inverted_residual")


def test_counts_are_those_of_darts() -> None:
    counts = [count_params(Supernet(operators=operators)) for operators in SPACES.values()]
    assert counts == [1_930_618, 2_080_250, 4_839_034]
    assert count_params(Supernet(partial_channels=4)) == 299_578
    cost = measure_complexity(DartsNetwork("darts_v2"), 32)
    assert (cost.params, cost.madds) == (3_349_342, 528_359_040)
    whole = DartsNetwork("darts_v2", auxiliary=True)
    assert sum(p.numel() for p in whole.parameters()) == 3_349_342 + 476_426


@pytest.mark.parametrize(
    ("times", "params"),
    [(1, 3_080_710), (2, 2_812_078), (3, 2_543_446), (4, 2_274_814), (5, 2_006_182)],
)
def test_counts_of_substitutions(times: int, params: int) -> None:
    network = DartsNetwork(f"darts_v2_sandglass{times}")
    assert count_params(network) == params == substituted("sandglass", times).count_params()


@pytest.mark.parametrize("space", SPACES)
def test_a_genotype_counts_its_network(space: str) -> None:
    for seed, cells in itertools.product(range(4), (3, 6)):
        genotype = random_genotype(seed, space, nodes=2 + seed % 3)
        network = DartsNetwork(genotype.to_plain(), 7, channels=8, cells=cells)
        assert count_params(network) == genotype.count_params(8, cells, 7)


def one_by_one(fan: Fan) -> nn.ModuleList:
    """The fan's operators as modules of their own, edge by edge, with its weights."""
    edges = nn.ModuleList()
    for _ in range(fan.edges):
        here = nn.ModuleDict()
        for name in fan.operators:
            here[name] = operator(name, fan.channels, fan.stride, fan.settings)
        edges.append(here)

    with torch.no_grad():
        for edge, here in enumerate(edges):
            modules: Any = here
            for name, wide in fan.wide.items():
                own = [m for m in modules[name].modules() if isinstance(m, nn.Conv2d)]
                whole = [m for m in wide.modules() if isinstance(m, nn.Conv2d)]
                for one, all_edges in zip(own, whole, strict=True):
                    one.weight.copy_(all_edges.weight.chunk(fan.edges)[edge])
    return edges.double() if any(b.dtype == torch.float64 for b in fan.buffers()) else edges


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "operators", [*SPACES.values(), EVERY, (SKIP, "max_pool_3x3"), ("dil_conv_3x3", "sandglass")]
)
def test_a_fan_is_its_edges(operators: tuple[str, ...], stride: int) -> None:
    torch.manual_seed(0)
    fan = Fan(6, 3, stride, operators, block_settings()).double()
    edges = one_by_one(fan)
    weights = torch.randn(3, len(operators), dtype=torch.float64).softmax(1)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)

    def by_edges(x: Tensor, weights: Tensor) -> Tensor:
        sums = []
        for edge, row in zip(edges, weights, strict=True):
            modules: Any = edge
            outs = []
            for name, weight in zip(operators, row, strict=True):
                out = modules[name](x)
                if "pool" in name:  # DARTS' pools have a norm in the search
                    out = nn.functional.batch_norm(out, None, None, training=True)
                outs.append(weight * out)
            sums.append(torch.stack(outs).sum(0))
        return torch.stack(sums, 1)

    results = []
    for call in (lambda x, w: torch.stack(fan(x, w, torch.ones(len(w))), 1), by_edges):
        given = [tensor.clone().requires_grad_() for tensor in (x, weights)]
        out = call(*given)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-11 * max(
            1.0, float(theirs.detach().abs().max())
        )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (9, 6), (4, 7)])
def test_training_computes_the_same_convolutions(
    memory_format: torch.memory_format, size: tuple[int, int]
) -> None:
    """In training grids of pixels, in evaluation torch's dilated and strided convolutions."""
    torch.manual_seed(0)
    convolutions = [Depthwise(6, kernel, stride, 2) for kernel in (3, 5) for stride in (1, 2)]
    for convolution in [*convolutions, Strided(6, 4)]:
        convolution.double()
        x = torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
        results = []
        for training in (True, False):
            given = x.clone(memory_format=memory_format).requires_grad_()
            out = convolution.train(training)(given)
            assert out.is_contiguous(memory_format=memory_format)
            gradients = torch.autograd.grad(out.square().sum(), (given, convolution.weight))
            results.append([out.detach(), *gradients])
            if convolution.in_channels < 8 and isinstance(convolution, Strided):
                break  # its backward pass is what torch gets wrong: only the output is compared
        if len(results) == 1:
            with torch.no_grad():
                results[0], other = results[0][:1], [convolution.eval()(x)]
            results.append(other)
        for ours, plain in zip(*results, strict=True):
            assert (ours - plain).abs().max() < 1e-12


def test_strided_convolutions_of_few_channels_are_safe() -> None:
    """In a process of its own: torch's own backward pass damages memory, sooner or later."""
    code = (
        "import torch\n"
        "from mobilenext.models.darts.operators import Strided\n"
        "for _ in range(60):\n"
        "    module = Strided(4, 8).to(memory_format=torch.channels_last)\n"
        "    x = torch.randn(90, 4, 8, 8).contiguous(memory_format=torch.channels_last)\n"
        "    module(x.requires_grad_()).square().sum().backward()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fans_call_few_operators() -> None:
    from torch.profiler import ProfilerActivity, profile

    counted = ("aten::conv2d", "aten::relu", "aten::batch_norm", "aten::mul", "aten::add",
               "aten::cat", "aten::max_pool2d", "aten::avg_pool2d", "aten::einsum",
               "aten::repeat", "aten::stack", "aten::sum")  # fmt: skip

    def calls(run: Any) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        return sum(event.count for event in seen.key_averages() if event.key in counted)

    fan = Fan(8, 4, 1, SPACES["darts"], block_settings())
    edges, x = one_by_one(fan), torch.randn(2, 8, 8, 8)
    weights = torch.full((4, 8), 1 / 8)

    def by_edges() -> None:
        for edge in edges:
            modules: Any = edge
            torch.stack([w * modules[n](x) for w, n in zip(weights[0], SPACES["darts"],
                                                           strict=True)]).sum(0)  # fmt: skip

    assert calls(lambda: fan(x, weights, torch.ones(4))) * 3 < calls(by_edges)


def test_a_search_cell_adds_up_its_edges() -> None:
    """The order of edges: each row of the weights belongs to one node and one source."""
    torch.manual_seed(0)
    nodes = 3
    cell = SearchCell(
        12, 12, 4, nodes, False, False, 1, {"operators": SPACES["darts"], "settings": {}}
    ).double()
    before, last = (torch.randn(2, 12, 8, 8, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(9, 8, dtype=torch.float64).softmax(1)
    bypass = torch.zeros((), dtype=torch.float64)
    rows = rows_by_source(nodes)
    out = cell(before, last, [weights[some] for some in rows], (), bypass)
    states = [cell.preprocess0(before.relu()), cell.preprocess1(last.relu())]
    for node in range(nodes):
        total = 0
        for row, (of, source) in enumerate(edges_of(nodes)):
            if of == node:
                fan: Any = cell.fans[source]
                place, some = rows[source].index(row), weights[rows[source]]
                total = total + fan(states[source], some, bypass.expand(len(some)))[place]
        states.append(total)
    assert torch.allclose(out, torch.cat(states[2:], 1), atol=1e-12)


def test_checkpointing_changes_nothing() -> None:
    images = torch.randn(4, 3, 16, 16)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = Supernet(channels=4, cells=3, nodes=2, checkpointing=checkpointing)
        network(images).square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        results.append([*gradients, *network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_second_skip_that_counts_nothing_is_darts() -> None:
    images = torch.randn(4, 3, 16, 16)
    torch.manual_seed(0)
    plain = Supernet(channels=4, cells=3, nodes=2)
    more = Supernet(channels=4, cells=3, nodes=2, auxiliary_skip=True)
    more.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(more(images), plain(images), atol=1e-3)
    more.set_progress(0.5)
    half = more(images)
    more.set_progress(1.0)
    assert torch.allclose(more(images), plain(images), atol=1e-6)
    assert not torch.allclose(half, plain(images), atol=1e-3)


def test_a_second_skip_counts_as_its_edge_does() -> None:
    fan: dict[str, Any] = {"operators": ("none", SKIP), "settings": {}, "auxiliary_skip": True}
    for reduction in (False, True):
        cell = SearchCell(12, 12, 4, 1, reduction, False, 1, fan)
        maps = torch.randn(2, 12, 4, 4), torch.randn(2, 12, 4, 4)
        weights, nothing = torch.rand(2, 2).split(1), torch.zeros(2).split(1)
        out = cell(*maps, weights, nothing, torch.ones(()))
        assert torch.equal(out, torch.zeros_like(out))


def test_a_supernet_comes_back_from_its_weights() -> None:
    torch.manual_seed(0)
    network = Supernet(channels=4, cells=3, nodes=2, auxiliary_skip=True)
    network.set_progress(0.75)
    other = Supernet(channels=4, cells=3, nodes=2, auxiliary_skip=True)
    other.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(network.eval()(images), other.eval()(images))


def test_partial_channels_pass_the_others_by() -> None:
    torch.manual_seed(0)
    fan: dict[str, Any] = {"operators": ("none", SKIP), "settings": {}}
    cell = SearchCell(24, 24, 8, 1, False, False, 2, fan)
    before, last = torch.randn(2, 24, 4, 4), torch.randn(2, 24, 4, 4)
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    shares = torch.tensor([0.4, 0.6])
    out = cell(before, last, weights.split(1), shares.split(1), torch.zeros(()))
    first, second = cell.preprocess0(before.relu()), cell.preprocess1(last.relu())
    factor = torch.tensor([0.25] * 4 + [1.0] * 4)[:, None, None]
    other = torch.tensor([0.5] * 4 + [1.0] * 4)[:, None, None]
    mixed = 0.4 * factor * first + 0.6 * other * second
    assert torch.allclose(out, mixed[:, [0, 4, 1, 5, 2, 6, 3, 7]], atol=1e-6)


def test_edge_weights_are_a_softmax_for_each_node() -> None:
    network = Supernet(channels=8, cells=3, nodes=3, partial_channels=2, edge_weights=True)
    assert network.beta is not None
    network.beta.copy_(torch.randn_like(network.beta))
    edges = network.weights()[1]
    assert edges is not None
    for kind in edges:
        assert [round(sum(part), 5) for part in (kind[:2], kind[2:5], kind[5:])] == [1, 1, 1]
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_the_found_cells_are_the_strongest() -> None:
    """Against brute force: all pairs of sources and all operators of each node."""
    torch.manual_seed(1)
    for operators in SPACES.values():
        network = Supernet(channels=4, cells=3, nodes=3, operators=operators)
        network.alpha.copy_(torch.randn_like(network.alpha))
        weights = network.weights()[0]
        for rows, found in zip(weights, (network.genotype().normal, network.genotype().reduce),
                               strict=True):  # fmt: skip
            for node in range(3):
                numbers = [n for n, (of, _) in enumerate(edges_of(3)) if of == node]
                best = max(
                    ((a, b, p, q)
                     for a, b in itertools.combinations(numbers, 2)
                     for p in range(1, len(operators)) for q in range(1, len(operators))),
                    key=lambda c: rows[c[0]][c[2]] + rows[c[1]][c[3]],
                )  # fmt: skip
                expected = [(operators[best[2 + k]], edges_of(3)[best[k]][1]) for k in range(2)]
                assert list(found[2 * node : 2 * node + 2]) == expected


def test_entropy_is_one_at_the_start_and_falls() -> None:
    network = Supernet(channels=4, cells=3, nodes=2)
    assert network.entropy() == pytest.approx(1, abs=1e-6)
    network.alpha[..., 3] = 30
    assert network.entropy() < 1e-6


def test_a_found_network_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    network = DartsNetwork("darts_v2", 10, channels=4, cells=3, auxiliary=True, drop_path=0.5)
    images = torch.randn(4, 3, 32, 32)
    logits, auxiliary = network(images)
    assert logits.shape == auxiliary.shape == (4, 10)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    assert network(images).shape == (4, 10)
    assert torch.equal(network(images), network(images))
    with pytest.raises(ValueError, match="8 x 8, got 4 x 4"):
        network.train()(images[..., :16, :16])


def test_paths_are_dropped_as_training_goes_on() -> None:
    def output(progress: float) -> Tensor:
        network.set_progress(progress)
        torch.manual_seed(7)
        with torch.no_grad():
            return network(images)

    torch.manual_seed(0)
    network = DartsNetwork("darts_v2", 10, channels=4, cells=3, drop_path=0.5).train()
    whole = DartsNetwork("darts_v2", 10, channels=4, cells=3).train()
    whole.load_state_dict(network.state_dict())
    images = torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(output(0.0), whole(images), atol=1e-5)
    assert not torch.allclose(output(1.0), whole(images), atol=1e-2)

    cell: Any = network.cells[0]
    x = torch.ones(4000, 12, 4, 4)
    kept = torch.tensor(0.75)
    states = [cell.preprocess0(x), cell.preprocess1(x)]
    dropped = (cell._branch(0, states, kept).abs().amax((1, 2, 3)) == 0).float().mean()
    assert abs(float(dropped) - 0.25) < 0.03
    skips: Any = cell.operators
    place = next(n for n, module in enumerate(skips) if isinstance(module, nn.Identity))
    states += [states[0]] * 3
    assert torch.equal(cell._branch(place, states, kept), states[cell.sources[place]])


def test_a_found_network_has_timms_interface() -> None:
    network = DartsNetwork("darts_v2", 10, channels=4, cells=6).eval()
    images = torch.randn(2, 3, 32, 32)
    last, maps = network.forward_intermediates(images)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [each["num_chs"] for each in network.feature_info] == [16, 32, 64]
    assert torch.equal(last, network.forward_features(images))
    assert torch.equal(network.forward_head(last), network(images))
    network.set_grad_checkpointing()
    network.train()(images).sum().backward()
    network.reset_classifier(3)
    assert network(images).shape == (2, 3)
    whole = DartsNetwork("darts_v2", 10, channels=4, cells=6, auxiliary=True)
    whole.reset_classifier(3)
    assert [part.shape for part in whole(images)] == [(2, 3), (2, 3)]
    whole.eval()
    expected = whole.forward_intermediates(images, [1], intermediates_only=True)
    assert whole.prune_intermediate_layers([1]) == [1]
    found = whole.forward_intermediates(images, [1], intermediates_only=True)
    assert torch.equal(expected[0], found[0])
    assert torch.equal(whole(images), found[0])
    assert whole.num_features == 32
    assert DartsNetwork(width_mult=0.5).num_features == 4 * 18 * 4


def test_a_network_reads_no_file(tmp_path: Path) -> None:
    """A checkpoint from anywhere may say what its network is."""
    path = tmp_path / "genotype.yaml"
    path.write_text(DARTS_V2.to_yaml())
    assert genotype_named(str(path)) == DARTS_V2
    with pytest.raises(InputError, match="expected darts_v2"):
        DartsNetwork(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [{}, {"operators": ("none", SKIP, *EVERY[8:]), "partial_channels": 2, "edge_weights": True}],
    ids=["darts", "blocks"],
)
def test_a_supernet_is_one_graph_for_torch_compile(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = Supernet(channels=8, cells=3, nodes=2, **arguments)
    other = copy.deepcopy(network)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    images, found = torch.randn(4, 3, 16, 16), []
    for one in (network, compiled):
        leaves = [tensor.detach().requires_grad_() for tensor in network.architecture]
        found.append(torch.autograd.grad(one(images, *leaves).square().sum(), leaves))
        one(images).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("size", [9, 15])
def test_odd_sizes_are_taken(size: int) -> None:
    images = torch.randn(2, 3, size, size)
    assert Supernet(channels=4, cells=3, nodes=2)(images).shape == (2, 10)
    assert Supernet(channels=8, cells=3, nodes=2, partial_channels=2)(images).shape == (2, 10)
    assert DartsNetwork(random_genotype(0).to_plain(), channels=4, cells=3)(images).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cells": 2}, "cells: expected at least 3, got 2"),
        ({"channels": 2}, "channels: expected an even number from 4 on, got 2"),
        ({"channels": 7}, "channels: expected an even number from 4 on, got 7"),
        ({"stem_stride": 3}, "stem_stride: expected 1 or 2, got 3"),
        ({"partial_channels": 3}, "partial_channels=3: expected a divisor of channels=16"),
        ({"partial_channels": 8}, "leaves 2 of 16 channels to an operator: expected at least 4"),
        ({"operators": ["none", "sep_conv_7x7"]}, "operators: expected some of none, max_pool_3x3"),
        ({"nodes": 0}, "nodes: expected 1 to 16, got 0"),
        ({"sandglass": {"kernel": 4}}, "sandglass.kernel: expected an odd number from 1 to 11"),
        ({"sandglass": {"size": 3}}, "sandglass: expected some of kernel, ratio, shortcut"),
    ],
)
def test_supernets_that_can_not_be_built(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Supernet(**arguments)


def test_blocks_have_the_settings_that_are_asked_for() -> None:
    genotype = genotype_named("darts_v2_sandglass5").to_plain()
    genotype["sandglass"] = {"kernel": 5, "ratio": 2, "shortcut": False}
    network = DartsNetwork(genotype, channels=8, cells=3)
    block: Any = network.cells[0].operators[0]  # pyright: ignore[reportIndexIssue,reportOptionalSubscript,reportAttributeAccessIssue]
    convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == [5, 1, 1, 5]
    assert convs[1].out_channels == 4
    assert not block.residual
    assert DARTS_V2.skips == 2
    assert set(DEPTHWISE) < set(SPACES["darts"])
