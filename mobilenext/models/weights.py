"""Weights from elsewhere, brought to the names of a network of ours.

The same network has other names in other code: our MobileNetV2 has torchvision's, timm has names of
its own, and the MobileNeXt authors' networks with squeeze-and-excitation have those of an older
EfficientNet. What they share is the sequence of layers. So weights are matched by name if they have
the network's names, else layer by layer, and what doesn't fit is named.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobilenext.errors import InputError

WRAPPERS = ("module.", "model.", "_orig_mod.")
"""Prefixes that DataParallel, trainers and torch.compile put before names."""

COUNTER = "num_batches_tracked"
"""Counters of batch norms; torch before 0.4.1 had none."""

LAYER_ORDERS = (
    # the authors' EfficientNet-style networks, and their blocks
    ("_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc"),
    ("features", "_se_reduce", "_se_expand"),
    ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv",
     "_bn2"),
    # timm's, and its blocks without and with expansion
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"),
    ("conv_dw", "bn1", "se", "conv_pw", "bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", "se", "conv_pwl", "bn3"),
    ("conv_reduce", "conv_expand"),
    # torchvision's and ours
    ("features", "classifier"),
    ("conv", "se"),
)  # fmt: skip
"""Order of the layers of one parent in known networks, for files without an order:
safetensors are sorted by name."""

Layers = dict[str, dict[str, Tensor]]
"""Tensors by the name of their module, in order, and by what is left of their name."""


class FittedWeights(NamedTuple):
    """Weights under the names of a network."""

    tensors: dict[str, Tensor]
    """Tensors by the network's names; batch norms' counters are missing if the file has none."""
    classifier_left_out: bool
    """Whether the classifier is missing, as the weights have none or one for other classes."""


def fit_weights(tensors: Mapping[str, Tensor], network: nn.Module) -> FittedWeights:
    """Bring weights to the names of a network.

    If they have the network's names (perhaps behind a wrapper's prefix, `module.` for instance),
    they are matched by them, else layer by layer in order: both layers of a pair have to have the
    same entries (weight, bias, running_mean, ...) of the same shapes. A classifier for another
    number of classes is left out, and so is the norm that the authors' `mnext_s` and `mnext_l`
    define and never use.

    Args:
        tensors: A state dict.
        network: The network that is to have them; it is not changed.

    Raises:
        InputError: They are of another network: a tensor is missing, unexpected or of another
            shape, or holds integers or what is no number; or their names are others, and nothing
            tells how they follow each other.
    """
    found = _without_unused_norm(_unwrapped(tensors, network))
    own = network.state_dict()
    if not any(name.endswith(COUNTER) for name in found):
        own = {name: value for name, value in own.items() if not name.endswith(COUNTER)}
    own_layers, layers = _layers(own), _layers(found)
    pairs: list[tuple[str | None, str | None]]
    if 2 * len(own_layers.keys() & layers.keys()) > len(own_layers):
        pairs = [(name, name if name in layers else None) for name in own_layers]
        pairs += [(None, name) for name in layers if name not in own_layers]
    else:
        layers = _layers(_in_order(found, network))
        pairs = list(zip_longest(own_layers, layers))
    heads = _classifier_names(network)
    fitted: dict[str, Tensor] = {}
    left_out = False
    for own_name, name in pairs:
        expected = {} if own_name is None else own_layers[own_name]
        got = {} if name is None else layers[name]
        if own_name in heads and (name is None or _other_classes(expected, got)):
            left_out = True
            continue
        _check_layer(own_name, expected, name, got, network)
        _check_values(name, {part: (got[part], own) for part, own in expected.items()})
        fitted |= {_joined(own_name, part): got[part] for part in expected}
    return FittedWeights(fitted, left_out)


def fit_into(tensors: Mapping[str, Tensor], network: nn.Module) -> FittedWeights:
    """`fit_weights`, or the network's own way where it has one: detectors take classifiers'.

    Raises:
        InputError: As `fit_weights`.
    """
    own = getattr(network, "fitted", None)
    return fit_weights(tensors, network) if own is None else own(tensors)


def classifier_modules(network: nn.Module) -> list[nn.Module]:
    """The layers that make logits: what `get_classifier` says, else the last linear layer.

    A list, as some of timm's networks have two; empty if there is none.
    """
    if hasattr(network, "get_classifier"):
        given = network.get_classifier()  # pyright: ignore[reportCallIssue]
        found = list(given) if isinstance(given, tuple | list) else [given]
    else:
        found = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    return [m for m in found if isinstance(m, nn.Module) and any(True for _ in m.parameters())]


LARGE_STD = 0.02
"""Standard deviation of a classifier's random weights above which they are large to begin with:
MobileNeXt and MobileNetV2 have 0.01, torch's linear layers of 1,280 features 0.016."""


@torch.no_grad()
def shrink_classifier(network: nn.Module) -> None:
    """Halve the weights of a new classifier, in place, until their deviation is below `LARGE_STD`.

    EfficientNet's family draws them from U(-a, a) with a = classes ** -0.5, a standard deviation of
    0.18 at ten classes. On features that were learned elsewhere its first answers would be sure and
    wrong, and an epoch or more goes into unlearning them. Halving is exact: all processes have the
    same weights afterwards.

    Args:
        network: With a random classifier.
    """
    for module in classifier_modules(network):
        for name, value in module.named_parameters():
            if name.endswith("weight") and value.ndim > 1:
                while value.std() > LARGE_STD:
                    value.mul_(0.5)


def _classifier_names(network: nn.Module) -> set[str]:
    """Names of the modules that make logits."""
    within = {id(m) for head in classifier_modules(network) for m in head.modules()}
    return {name for name, module in network.named_modules() if id(module) in within}


def _unwrapped(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors without prefixes that all of them have and none of the network's."""
    # torch's AveragedModel counts beside the module that it wraps.
    found = {name: value for name, value in tensors.items() if name != "n_averaged"}
    own = network.state_dict()
    while found:
        prefixes = [
            prefix
            for prefix in WRAPPERS
            if all(name.startswith(prefix) for name in found)
            and not all(name.startswith(prefix) for name in own)
        ]
        if not prefixes:
            break
        found = {name.removeprefix(prefixes[0]): value for name, value in found.items()}
    return found


def _without_unused_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors took the 1x1 head out of EfficientNet's code, and left its norm in."""
    if "_conv_stem.weight" not in tensors or "_conv_head.weight" in tensors:
        return tensors
    return {name: value for name, value in tensors.items() if not name.startswith("_bn1.")}


def _layers(tensors: Mapping[str, Tensor]) -> Layers:
    layers: Layers = {}
    for name, value in tensors.items():
        module, _, part = name.rpartition(".")
        layers.setdefault(module, {})[part] = value
    return layers


def _joined(module: str | None, part: str) -> str:
    return f"{module}.{part}" if module else part


def _in_order(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors as they follow each other in their network, if the file has them by name."""
    if list(tensors) != sorted(tensors):  # no state dict is sorted: "weight" comes before "bias"
        return tensors
    paths = [tuple(name.split(".")) for name in tensors]
    children: dict[tuple[str, ...], set[str]] = {}
    for path in paths:
        for depth, layer in enumerate(path[:-1]):
            children.setdefault(path[:depth], set()).add(layer)
    ranks = {parent: _ranks(layers, network) for parent, layers in children.items()}

    def place(path: tuple[str, ...]) -> list[int]:
        return [ranks[path[:depth]][layer] for depth, layer in enumerate(path[:-1])]

    return {".".join(path): tensors[".".join(path)] for path in sorted(paths, key=place)}


def _ranks(siblings: set[str], network: nn.Module) -> dict[str, int]:
    """The places of layers that have the same parent."""
    if all(name.isdecimal() for name in siblings):
        return {name: int(name) for name in siblings}
    known = [order for order in LAYER_ORDERS if siblings <= set(order)]
    if not known and len(siblings) > 1:
        some = ", ".join(sorted(siblings)[:4])
        raise InputError(
            f"expected weights with the names of this {type(network).__name__}, got others, sorted "
            f"by name as safetensors are, and how {some} follow each other is not known; save the "
            "state dict with torch.save, which keeps the order, or choose the network (model, "
            "width, ...) that they were made for"
        )
    return {name: known[0].index(name) if known else 0 for name in siblings}


def _other_classes(expected: dict[str, Tensor], got: dict[str, Tensor]) -> bool:
    """Whether two linear layers differ in the number of classes and in nothing else."""
    if expected.keys() != got.keys() or "weight" not in got:
        return False
    ours, theirs = expected["weight"].shape, got["weight"].shape
    return ours[1:] == theirs[1:] and ours[0] != theirs[0]


def _check_layer(
    own_name: str | None,
    expected: dict[str, Tensor],
    name: str | None,
    got: dict[str, Tensor],
    network: nn.Module,
) -> None:
    """Raise `InputError` about the first tensor of a layer that does not fit."""
    for part in [*expected, *(part for part in got if part not in expected)]:
        ours, theirs = expected.get(part), got.get(part)
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            continue
        wanted = "none" if ours is None else f"{_joined(own_name, part)} {_shape(ours)}"
        here = "none" if theirs is None else f"{_joined(name, part)} {_shape(theirs)}"
        raise InputError(
            f"expected weights of this {type(network).__name__}, the next tensor {wanted}, got "
            f"{here}; choose the network (model, width, ...) that they were made for"
        )


def _check_values(name: str | None, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Raise `InputError` about the first of a layer's tensors that can't be trained weights."""
    for part, (given, own) in pairs.items():
        whose = f"{_joined(name, part)} {_shape(given)}"
        if given.is_floating_point() != own.is_floating_point():
            raise InputError(
                f"expected {whose} as {own.dtype}, got {given.dtype}; quantised and integer "
                "weights can't be trained on: give those from before they were converted"
            )
        if own.is_floating_point() and not given.float().isfinite().all():
            raise InputError(
                f"expected finite numbers in {whose}, got NaN or infinite ones: that training had "
                "diverged; take an earlier checkpoint of it"
            )


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
