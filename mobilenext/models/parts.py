"""Small modules that networks are made of: stochastic depth, squeeze-and-excitation, pooling.

They have the names and the arithmetic of timm's, so that its weights and its tools fit, without the
seconds and the 200 MB of importing timm in each process that trains.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DropPath(nn.Module):
    """Stochastic depth: drops the residual branch of whole images (arXiv 1603.09382).

    Args:
        drop_prob: Probability in [0, 1) for each image; the others are scaled to keep the mean.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Any (N, ...) to the same shape; in evaluation mode unchanged."""
        if not self.training or self.drop_prob == 0.0:
            return x
        kept = 1.0 - self.drop_prob
        mask = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(kept).div_(kept)
        return x * mask


class SqueezeExcite(nn.Module):
    """Channel attention (arXiv 1709.01507): pooled channels, through a bottleneck, gate channels.

    Args:
        channels: Of input and output.
        squeezed: Channels of the bottleneck.
        activation: Makes the activation between.
    """

    def __init__(
        self, channels: int, squeezed: int, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.act1 = activation()
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(pooled))))


class Pooling(nn.Module):
    """Pooling of a feature map to a vector.

    Args:
        pool_type: avg, max, avgmax (their mean), catavgmax (both), or "" for none.

    Shapes:
        (N, C, H, W) to (N, C), (N, 2 C) for catavgmax, unchanged for "".

    Raises:
        ValueError: Another name.
    """

    def __init__(self, pool_type: str) -> None:
        super().__init__()
        if pool_type not in ("", "avg", "max", "avgmax", "catavgmax"):
            raise ValueError(
                f"pooling: expected avg, max, avgmax, catavgmax or '', got {pool_type!r}"
            )
        self.pool_type = pool_type

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.pool_type == "":
            return x
        if self.pool_type == "avg":
            return F.adaptive_avg_pool2d(x, 1).flatten(1)
        largest = F.adaptive_max_pool2d(x, 1).flatten(1)
        if self.pool_type == "max":
            return largest
        mean = F.adaptive_avg_pool2d(x, 1).flatten(1)
        if self.pool_type == "avgmax":
            return 0.5 * (mean + largest)
        return torch.cat((mean, largest), 1)

    def feat_mult(self) -> int:
        """Features for each channel."""
        return 2 if self.pool_type == "catavgmax" else 1

    def is_identity(self) -> bool:
        """Whether feature maps pass unchanged."""
        return not self.pool_type

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"pool_type={self.pool_type!r}"


class Conv2dSame(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": what is odd goes to the right and below.

    The padding depends on the image's size. Arguments as of `nn.Conv2d`, padding left out.
    """

    def forward(self, input: Tensor) -> Tensor:  # nn.Conv2d's name
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        rows = _missing(input.shape[2], self.kernel_size[0], self.stride[0], self.dilation[0])
        columns = _missing(input.shape[3], self.kernel_size[1], self.stride[1], self.dilation[1])
        top, left = rows // 2, columns // 2
        padded = F.pad(input, [left, columns - left, top, rows - top])
        return F.conv2d(
            padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups
        )


def _missing(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Pixels that padding has to add for an output of ceil(size / stride)."""
    outputs = (size + stride - 1) // stride
    return max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)


def checkpointed(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What modules in a row make of a tensor; activations are computed again going backward."""
    for module in modules:
        out = checkpoint(module, x, use_reentrant=False)
        assert isinstance(out, Tensor)
        x = out
    return x


def taken(count: int, indices: int | list[int] | None) -> list[int]:
    """Positions of feature maps, from 0 on.

    Args:
        count: Feature maps in all.
        indices: Which; negative ones count from the end; a number: the last so many; None: all.

    Raises:
        ValueError: There are not so many.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise ValueError(f"feature maps: expected the last 1 to {count}, got {indices}")
        return list(range(count - indices, count))
    if any(not -count <= index < count for index in indices):
        raise ValueError(f"feature maps: expected indices below {count}, got {indices}")
    return [index % count for index in indices]
