"""A trained network made ready for other runtimes: batch norms folded, pixels in."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilenext.errors import InputError
from mobilenext.models.sandglass import mask_shortcuts
from mobilenext.seeding import generator

FOLDED_ALIKE = 1e-4
"""Largest difference that folding may make, of the largest logit."""
LOGITS = ("logits",)
"""Names of a classifier's outputs."""

Outputs = Tensor | tuple[Tensor, ...]
"""What a network gives: a classifier its logits, a detector several tensors."""


def relative_difference(found: Outputs, expected: Outputs) -> float:
    """The largest difference between two forms' outputs, of the largest value that is expected.

    Of several outputs it is the worst one's. NaN if a value is not finite.

    Args:
        found: One form's.
        expected: The other's, of the same shapes.
    """
    pairs = zip(_several(found), _several(expected), strict=True)
    shares = [(a - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in pairs]
    return torch.stack(shares).max().item()


def _several(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


class FromPixels(nn.Module):
    """A network that takes pixels: uint8 (N, 3, H, W) in RGB to its logits (N, num_classes).

    Args:
        network: Takes normalised images.
        mean: Channel means in [0, 1].
        std: Channel standard deviations in [0, 1].

    Attributes:
        outputs: Names of what it gives.
    """

    outputs: ClassVar[tuple[str, ...]] = LOGITS
    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        shift = torch.tensor([255 * value for value in mean]).view(1, -1, 1, 1)
        scale = torch.tensor([1 / (255 * value) for value in std]).view(1, -1, 1, 1)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, pixels: Tensor) -> Any:
        """Map uint8 (N, 3, H, W) to logits (N, num_classes)."""
        return self.network(self.normalised(pixels))

    def normalised(self, pixels: Tensor) -> Tensor:
        """The images (N, 3, H, W) that the network gets."""
        return (pixels.to(torch.float32) - self.shift) * self.scale


def prepared(network: nn.Module, image_size: int, folded: bool, masked: bool) -> nn.Module:
    """A copy of a network for export: contiguous weights, and the form that suits a runtime.

    Weights in channels_last make exporters write shape arithmetic behind the pooling.

    Args:
        network: With its weights, on the CPU.
        image_size: Height and width of its images, in pixels.
        folded: Whether batch norms become part of the convolutions before them.
        masked: Whether partial shortcuts become masked additions (see `mask_shortcuts`), as suits
            ONNX Runtime and torch.compile; ExecuTorch and 8 bits do better with slices.

    Raises:
        InputError: The copy does not give the same outputs.
    """
    plain = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    images = torch.randn(2, 3, image_size, image_size, generator=generator("fold", 0))
    with torch.no_grad():
        expected = plain(images)
        if folded:
            fold_norms(plain, images)
        if masked:
            mask_shortcuts(plain)
        difference = relative_difference(plain(images), expected)
    if not difference <= FOLDED_ALIKE:
        raise InputError(
            f"batch norms can't be folded into this network's convolutions: what it gives then "
            f"differs by {difference:.1e} of the largest value"
        )
    return plain


def fold_norms(network: nn.Module, images: Tensor) -> int:
    """Fold each batch norm that directly follows a convolution into it, in place.

    Which one follows which is seen in a forward pass, so any network will do.

    Args:
        network: In evaluation mode.
        images: (N, 3, H, W) that it takes.

    Returns:
        The number of norms folded.
    """
    pairs = norms_behind_convolutions(network, images)
    followers = Counter(id(convolution) for convolution, _ in pairs)
    alone = [pair for pair in pairs if followers[id(pair[0])] == 1]
    for convolution, name in alone:
        norm = network.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        # timm's norms have their activation with them.
        rest = [norm.get_submodule(part) for part in ("drop", "act") if hasattr(norm, part)]
        network.set_submodule(name, nn.Sequential(*rest) if rest else nn.Identity())
    return len(alone)


def norms_behind_convolutions(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Convolutions, each with the name of a batch norm that gets its output.

    Args:
        network: In evaluation mode.
        images: (N, 3, H, W) that it takes.
    """
    made: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # a tensor's id is its own only while it lives
    pairs: list[tuple[nn.Conv2d, str]] = []

    def note_output(module: nn.Module, _inputs: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        kept.append(output)
        made[id(output)] = module

    def noting_input(name: str):
        def note_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])], name))

        return note_input

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(noting_input(name)))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return pairs
