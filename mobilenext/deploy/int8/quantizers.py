"""Which tensors of a graph are rounded: executorch's XNNPACK rules behind two of our own.

Imports torchao and executorch, which are optional: import it where it is used.
"""

from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    ComposableQuantizer,
    QuantizationAnnotation,
    QuantizationConfig,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from mobilenext.deploy.int8.graphs import is_within, layers, module_of, pads_with_zeros
from mobilenext.deploy.int8.scheme import Scheme

SMALLEST_SCALE = 2**-12
KEPT_SHARE = 1 - 1e-5
"""Share of the values that percentile keeps within the range."""


aten = torch.ops.aten
WITHOUT_WEIGHTS: tuple[Any, ...] = (
    aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.adaptive_avg_pool2d.default,
)  # fmt: skip
"""Operators that are left to executorch's rules."""


class PercentileObserver(HistogramObserver):
    """The range that all but a share of the values lie in, half of the rest on each side."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of that range."""
        edges = torch.linspace(
            self.min_val.item(), self.max_val.item(), self.bins + 1, device=self.histogram.device
        )
        shares = self.histogram.double().cumsum(0) / self.histogram.double().sum()
        outside = (1 - KEPT_SHARE) / 2
        low = int((shares <= outside).sum())
        high = int((shares < 1 - outside).sum())
        return self._calculate_qparams(edges[low], edges[min(high, self.bins - 1) + 1])


ACTIVATIONS = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
}


def configuration(scheme: Scheme, trained: bool) -> QuantizationConfig:
    """A scheme as torchao has it.

    Args:
        scheme: The scheme.
        trained: Whether values are rounded in training (QAT), with gradients straight through.
    """
    per_channel, symmetric = scheme.weights == "per_channel", scheme.grid == "symmetric"
    kind = "per_channel" if per_channel else "per_tensor"
    weight_observer: Any = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    activation_observer: Any = ACTIVATIONS[scheme.observer]
    eps: dict[str, Any] = {"eps": SMALLEST_SCALE}
    if trained:
        moving = (
            MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
        )
        weight = FusedMovingAvgObsFakeQuantize.with_args(observer=moving, **eps)
        activation = FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, **eps
        )
    else:
        weight = weight_observer.with_args(**eps)
        activation = activation_observer.with_args(**eps)
    activations = QuantizationSpec(
        dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=activation,
    )  # fmt: skip
    weights = QuantizationSpec(
        dtype=torch.int8, quant_min=-127 if symmetric else -128, quant_max=127,
        qscheme=getattr(torch, f"{kind}_{'symmetric' if symmetric else 'affine'}"),
        ch_axis=0, observer_or_fake_quant_ctr=weight,
    )  # fmt: skip
    return QuantizationConfig(activations, activations, weights, None, trained)


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """A layer's weights as a scheme rounds them."""
    spec = configuration(scheme, trained=False).weight
    assert spec is not None
    observer = spec.observer_or_fake_quant_ctr.with_args(
        dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max, qscheme=spec.qscheme,
        **({"ch_axis": spec.ch_axis} if scheme.weights == "per_channel" else {}),
    )()  # fmt: skip
    observer.to(weight.device)(weight)
    scale, zero = observer.calculate_qparams()
    scale, zero = scale.to(weight.device), zero.to(weight.device, torch.int32)
    low, high = spec.quant_min, spec.quant_max
    assert low is not None
    assert high is not None
    if scheme.weights == "per_channel":
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, low, high)
    return torch.fake_quantize_per_tensor_affine(weight, scale, zero, low, high)


class _Rule(Quantizer):
    """Marks some of a graph's nodes.

    Args:
        config: How values are rounded.
        keep_float: Names of modules that are not.
    """

    def __init__(self, config: QuantizationConfig, keep_float: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.keep_float = keep_float

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse."""


class OneKernel(_Rule):
    """A layer and the activation behind it are one kernel: nothing is rounded between them.

    executorch's rules know this of ReLU, not of ReLU6, whose convolution they round over a range
    that the clip then cuts off; and they take no affine grid of weights.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark convolutions and linear layers, each with its activation."""
        for layer in layers(model):
            if is_within(module_of(layer.node), self.keep_float):
                continue
            images, weight = layer.node.args[:2]
            assert isinstance(images, Node)
            assert isinstance(weight, Node)
            inputs: Any = {images: self.config.input_activation, weight: self.config.weight}
            parts = [layer.node]
            while parts[-1] is not layer.last:
                parts.append(next(iter(parts[-1].users)))
            for part in parts:
                part.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    inputs if part is layer.node else {},
                    output_qspec=self.config.output_activation if part is layer.last else None,
                    _annotated=True,
                )
        return model


class SharedPadding(_Rule):
    """Padding with zeros leaves values on the grid that they are on."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the paddings."""
        for node in model.graph.nodes:
            if node.op != "call_function" or not pads_with_zeros(node):
                continue
            if is_within(module_of(node), self.keep_float):
                continue
            edge = (node.args[0], node)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                {node.args[0]: self.config.input_activation},
                output_qspec=SharedQuantizationSpec(edge), _annotated=True,
            )  # fmt: skip
        return model


class FloatConcatenations(_Rule):
    """Concatenations outside of the network and in `keep_float` stay in float.

    executorch's rules round all of them, whatever the filter says.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark them as done."""
        for node in model.graph.nodes:
            if node.op != "call_function" or node.target is not aten.cat.default:
                continue
            module = module_of(node)
            if module is None or is_within(module, self.keep_float):
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
        return model


def quantizer(scheme: Scheme, trained: bool) -> Quantizer:
    """Marks what of a graph is rounded.

    Args:
        scheme: How.
        trained: See `configuration`.
    """
    config = configuration(scheme, trained)

    def is_rounded(node: Node) -> bool:
        if node.op != "call_function":
            return True
        module = module_of(node)
        return module is not None and not is_within(module, scheme.keep_float)

    theirs = XNNPACKQuantizer().set_filter_function(is_rounded)
    for operator in WITHOUT_WEIGHTS:
        theirs.set_operator_type(operator, config)
    return ComposableQuantizer(
        [
            OneKernel(config, scheme.keep_float),
            SharedPadding(config, scheme.keep_float),
            FloatConcatenations(config, scheme.keep_float),
            theirs,
        ]
    )
