"""From a float network to one at 8 bits, in reference arithmetic: float sums of rounded values."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from mobilenext.deploy.graph import (
    FOLDED_ALIKE,
    norms_behind_convolutions,
    relative_difference,
)
from mobilenext.deploy.int8.biases import correct_biases
from mobilenext.deploy.int8.equalization import equalize
from mobilenext.deploy.int8.graphs import (
    Layer,
    Watched,
    drop_unused,
    exported,
    is_within,
    layers,
    only_user,
    tensor_of,
)
from mobilenext.deploy.int8.scheme import Scheme
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.metrics.agreement import decibels

ALIKE = 1e-3
"""Largest difference that equalisation may make, of the largest logit."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

quantize_ops = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class LayerError:
    """What 8 bits do to the output of a layer.

    Attributes:
        name: Of its module.
        sqnr_db: Power of its float output over that of the difference, in dB: what it and all
            layers before it make.
        weight_sqnr_db: The same of its weights alone; None: they stay in float.
    """

    name: str
    sqnr_db: float
    weight_sqnr_db: float | None


@dataclass(frozen=True)
class Quantized:
    """A network at 8 bits.

    Attributes:
        reference: Takes pixels, uint8 (N, 3, H, W), to what the network gives; rounds between float
            operators.
        layers: In the order in which they run.
        equalized: Pairs of layers that were equalised.
    """

    reference: GraphModule
    layers: tuple[LayerError, ...]
    equalized: int


def check_keep_float(network: nn.Module, names: Sequence[str]) -> None:
    """Raise `InputError`, naming the nearest, if the network has no module of a name."""
    known = {name for name, _ in network.named_modules() if name}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 3, 0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"keep_float={printable(name)}: expected a module of the network, such as "
                f"{sorted(known)[0]}{hint}"
            )


@torch.no_grad()
def reestimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the batch norms' means and variances again, in place.

    Norms with a small momentum are far behind their weights after a short run.

    Args:
        network: Takes what the batches have; is left in evaluation mode.
        batches: Images, (N, 3, H, W).

    Returns:
        The number of norms.
    """
    norms = [module for module in network.eval().modules() if isinstance(module, NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
    return len(norms)


DEAD = 1e-3
"""A channel's variance, of its norm's epsilon, below which it counts as dead."""


@torch.no_grad()
def zero_dead_channels(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Zero the weights of channels whose convolution always gives the same value, in place.

    Their norm divides by the root of its epsilon alone: folded, weights that make no difference
    become some hundred times larger than all others, and with one scale for a layer these are
    rounded to nothing. Where such a channel does change on the images, all are left as they are.

    Args:
        network: Batch norms not folded; in evaluation mode, on the images' device.
        images: (N, 3, H, W) that it takes, real ones.

    Returns:
        The number of channels by the convolution's norm; empty: there are none.
    """
    kept = copy.deepcopy(network.state_dict())
    expected = network(images)
    found: dict[str, int] = {}
    for convolution, name in norms_behind_convolutions(network, images):
        norm = network.get_submodule(name)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        assert norm.running_mean is not None
        dead = norm.running_var < DEAD * norm.eps
        if not dead.any():
            continue
        found[name] = int(dead.sum())
        convolution.weight[dead] = 0
        constant = 0 if convolution.bias is None else convolution.bias[dead]
        norm.running_mean[dead] = constant  # what the convolution gives now: beta comes out
    difference = relative_difference(network(images), expected)
    if found and not difference <= FOLDED_ALIKE:
        network.load_state_dict(kept)
        return {}
    return found


@dataclass(frozen=True)
class FineTuning:
    """Training with rounded values (QAT).

    Attributes:
        batches: Pixels and labels, one for each step, on the network's device.
        steps: Their number.
        learning_rate: At the first step; falls to 0 by a cosine.
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    steps: int
    learning_rate: float


def quantize_network(
    network: nn.Module,
    calibration: Sequence[Tensor],
    scheme: Scheme,
    finetuning: FineTuning | None = None,
    shown: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> Quantized:
    """A network's form at 8 bits.

    Args:
        network: Takes pixels (`graph.FromPixels`), batch norms folded; on any device.
        calibration: Batches of pixels, uint8 (N, 3, H, W), on that device: ranges of activations
            are found on them. The first has at least two images.
        scheme: How values are rounded.
        finetuning: Trains the rounded network; None: it is not trained.
        shown: Passes calibration batches on, and shows how far they are.

    Raises:
        InputError: Equalisation changes the network, or an answer is not finite.
    """
    with quietly():
        from torchao.quantization.pt2e import quantize_pt2e

        from mobilenext.deploy.int8 import quantizers

    device = calibration[0].device
    # The graph has the network's own tensors, and all that follows changes them.
    # torchvision's feature extractors, which detectors have, are copied into training mode.
    graph = exported(copy.deepcopy(network).eval(), calibration[0])
    pairs = _equalized(graph, calibration[0]) if scheme.equalize else 0
    original = copy.deepcopy(graph)
    if scheme.correct_bias:
        rounded = [one for one in layers(graph) if not is_within(one.name, scheme.keep_float)]
        correct_biases(
            graph, [one.node for one in rounded],
            lambda weight: quantizers.rounded(weight, scheme), calibration,
        )  # fmt: skip
    trained = finetuning is not None
    prepare = quantize_pt2e.prepare_qat_pt2e if trained else quantize_pt2e.prepare_pt2e
    with quietly():
        prepared = prepare(graph, quantizers.quantizer(scheme, trained)).to(device)
    with torch.no_grad():
        for batch in shown(calibration):
            prepared(batch)
    if finetuning is not None:
        _train(prepared, finetuning)
    with quietly():
        reference = quantize_pt2e.convert_pt2e(prepared).to(device)
    drop_unused(reference)
    errors = layer_errors(original, reference, calibration[:1])
    return Quantized(reference, tuple(errors), pairs)


@torch.no_grad()
def _equalized(graph: GraphModule, pixels: Tensor) -> int:
    expected = graph(pixels)
    pairs = equalize(graph)
    difference = relative_difference(graph(pixels), expected)
    if not difference <= ALIKE:
        raise InputError(
            f"equalize=true changes what this network gives by {difference:.1e} of the largest "
            "value: leave it out"
        )
    return pairs


def _train(prepared: GraphModule, finetuning: FineTuning) -> None:
    from torchao.quantization.pt2e import disable_observer

    optimizer = torch.optim.SGD(
        prepared.parameters(), finetuning.learning_rate, momentum=0.9, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, finetuning.steps)
    for step, (pixels, labels) in enumerate(finetuning.batches):
        if step == finetuning.steps // 2:  # later steps see the ranges that they end with
            prepared.apply(disable_observer)
        loss = F.cross_entropy(prepared(pixels), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def layer_errors(
    original: GraphModule, reference: GraphModule, batches: Sequence[Tensor]
) -> list[LayerError]:
    """What 8 bits do to each layer of a network.

    Args:
        original: In float.
        reference: The same at 8 bits; nodes have their names.
        batches: Pixels to see it with.
    """
    found = {one.node.name: one for one in layers(reference)}
    pairs = [(one, found[one.node.name]) for one in layers(original) if one.node.name in found]
    sums = {one.name: _Powers() for one, _ in pairs}
    for batch in batches:
        expected = {one.last.name: sums[one.name].expect for one, _ in pairs}
        Watched(original, expected).run(batch)
        compared = {_output(other.last).name: sums[one.name].compare for one, other in pairs}
        Watched(reference, compared).run(batch)
    return [
        LayerError(
            one.name,
            decibels(sums[one.name].signal, sums[one.name].noise),
            _weight_error(original, reference, one, other),
        )
        for one, other in pairs
    ]


class _Powers:
    """Sums of squares of a layer's float outputs, and of what another form's differ from them."""

    def __init__(self) -> None:
        self.signal, self.noise = 0.0, 0.0
        self._expected: Tensor | None = None

    def expect(self, value: Tensor) -> None:
        self._expected = value

    def compare(self, value: Tensor) -> None:
        assert self._expected is not None
        expected, self._expected = self._expected.double(), None
        self.signal += expected.square().sum().item()
        self.noise += (value - expected).square().sum().item()


def _output(node: Node) -> Node:
    """The node of a layer's output, rounded if it is."""
    rounded = only_user(node)
    if rounded is not None and rounded.target is quantize_ops.quantize_per_tensor.default:
        return next(iter(rounded.users))
    return node


def _weight_error(
    original: GraphModule, reference: GraphModule, one: Layer, other: Layer
) -> float | None:
    source = other.node.args[1]
    if not isinstance(source, Node) or source.op == "get_attr":
        return None
    weight = tensor_of(original, one.node.args[1]).double()
    arguments = [tensor_of(reference, a) if isinstance(a, Node) else a for a in source.args]
    assert callable(source.target)
    rounded: Tensor = source.target(*arguments, **source.kwargs)
    noise = (rounded.double() - weight).square().sum().item()
    return decibels(weight.square().sum().item(), noise)
