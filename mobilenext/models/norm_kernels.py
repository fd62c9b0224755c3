"""Training batch norm, ReLU6 and shortcut as one function with a backward pass, in Triton.

A feature map that is channels_last in memory is a matrix: a row for each pixel of each image, a
column for each channel. Programs take tiles of it, some rows times some channels. Sums over rows
are those of blocks of rows, written to memory, and then of the blocks, in an order that only the
shape decides: the same input gives the same bits.

`fused` says where it is used, and imports this module when it is, since Triton comes with torch's
CUDA builds for Linux only. Tile sizes are not tuned: nothing of this has been measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements of a tile."""
MOST_CHANNELS = 64
"""Channels of a tile: 128 bytes of a row in 16 bits."""
PROGRAMS = 1024
"""Programs that sum over rows, at most; then each of them has several tiles."""
FEW_BLOCKS = 32
"""Blocks of rows that are summed at a time."""
WARPS = 8

KERNEL: Any = triton.jit  # untyped: a launch gives numbers for what is a tl.constexpr inside


@KERNEL
def _tile(first, end, channels, height: tl.constexpr, width: tl.constexpr):
    """Offsets of a tile from row `first` on, and which of them lie inside of the matrix."""
    # 64 bits: 256 maps of 112 x 112 pixels and 1,920 channels have more than 2**32 elements.
    rows = first + tl.arange(0, height).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    inside = (rows < end)[:, None] & (columns < channels)[None, :]
    return rows[:, None] * channels + columns[None, :], inside


@KERNEL
def _of_channels(values, channels, width: tl.constexpr):
    """The values of a tile's channels, as one row."""
    columns = tl.program_id(1) * width + tl.arange(0, width)
    return tl.load(values + columns, mask=columns < channels, other=0.0)[None, :]


@KERNEL
def _masked(gradient, value, mean, scale, bias, clamped: tl.constexpr):
    """The gradient behind ReLU6, from that before it and from the norm's input."""
    if clamped:
        z = (value - mean) * scale + bias
        # Where z is not a number the gradient stays, as torch has it.
        gradient = tl.where((z <= 0.0) | (z >= 6.0), 0.0, gradient)
    return gradient


@KERNEL
def _block_statistics(x, blocks, count, channels, share, height: tl.constexpr, width: tl.constexpr):
    """Of each block of rows the means, then the sums of squared distances from them.

    The block's first row is taken off, since what is large in all rows would take the digits that
    tell them apart; then by Welford's way in each lane of the tile, and by Chan's for all of them.
    """
    first = tl.program_id(0) * share
    end = tl.minimum(first + share, count)
    pivot = _of_channels(x + first.to(tl.int64) * channels, channels, width).to(tl.float32)
    mean = tl.zeros((height, width), tl.float32)
    squares = tl.zeros((height, width), tl.float32)
    seen = 0.0
    for start in range(first, end, height):
        at, inside = _tile(start, end, channels, height, width)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - pivot
        seen += 1.0
        off = tl.where(inside, value - mean, 0.0)
        mean += off * (1.0 / seen)
        squares += off * (value - mean)
    # The last tile may have ended within: lanes have seen as many rows, or one less.
    lanes = ((end - first - tl.arange(0, height) + height - 1) // height).to(tl.float32)[:, None]
    block_mean = tl.sum(mean * lanes, 0, keep_dims=True) / (end - first)
    off = mean - block_mean
    block_squares = tl.sum(squares + lanes * off * off, 0, keep_dims=True)
    columns = (tl.program_id(1) * width + tl.arange(0, width))[None, :]
    at = tl.program_id(0) * channels + columns
    tl.store(blocks + at, pivot + block_mean, mask=columns < channels)
    at += tl.num_programs(0) * channels
    tl.store(blocks + at, block_squares, mask=columns < channels)


@KERNEL
def _statistics(
    blocks, mean, rstd, running_mean, running_var, count, channels, share, number, momentum, eps,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Means and reciprocal standard deviations out of those of blocks; the running statistics."""
    total = tl.zeros((width,), tl.float64)
    for start in range(0, number, height):
        at, inside = _tile(start, number, channels, height, width)
        rows = tl.minimum(count - (start + tl.arange(0, height)) * share, share)[:, None]
        total += tl.sum(tl.load(blocks + at, mask=inside, other=0.0).to(tl.float64) * rows, 0)
    means = total / count
    squares = tl.zeros((width,), tl.float64)
    for start in range(0, number, height):
        at, inside = _tile(start, number, channels, height, width)
        rows = tl.minimum(count - (start + tl.arange(0, height)) * share, share)[:, None]
        off = tl.load(blocks + at, mask=inside, other=0.0).to(tl.float64) - means[None, :]
        within = tl.load(blocks + number * channels + at, mask=inside, other=0.0)
        squares += tl.sum(tl.where(inside, within + rows * off * off, 0.0), 0)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    inside = columns < channels
    tl.store(mean + columns, means.to(tl.float32), mask=inside)
    deviations = tl.sqrt((squares / count).to(tl.float32) + eps)
    tl.store(rstd + columns, 1.0 / deviations, mask=inside)
    before = tl.load(running_mean + columns, mask=inside)
    after = (1.0 - momentum) * before + momentum * means.to(tl.float32)
    tl.store(running_mean + columns, after, mask=inside)
    before = tl.load(running_var + columns, mask=inside)
    after = (1.0 - momentum) * before + momentum * (squares / (count - 1)).to(tl.float32)
    tl.store(running_var + columns, after, mask=inside)


@KERNEL
def _outputs(
    x, shortcut, y, mean, rstd, weight, bias, count, channels, added,
    clamped: tl.constexpr, adds: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Normalised, clamped; then the shortcut's first `added` channels are added."""
    at, inside = _tile(tl.program_id(0).to(tl.int64) * height, count, channels, height, width)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = _of_channels(rstd, channels, width) * _of_channels(weight, channels, width)
    z = (value - _of_channels(mean, channels, width)) * scale
    z += _of_channels(bias, channels, width)
    if clamped:  # by comparisons, which leave what is not a number: minimum and maximum hide it
        z = tl.where(z < 0.0, 0.0, z)
        z = tl.where(z > 6.0, 6.0, z)
    if adds:
        columns = tl.program_id(1) * width + tl.arange(0, width)
        carried = inside & (columns < added)[None, :]
        z += tl.load(shortcut + at, mask=carried, other=0.0).to(tl.float32)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)


@KERNEL
def _block_gradients(
    dy, x, mean, rstd, weight, bias, blocks, count, channels, share,
    clamped: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Of each block of rows the bias's gradients, then the weight's."""
    means, deviations = _of_channels(mean, channels, width), _of_channels(rstd, channels, width)
    scale = deviations * _of_channels(weight, channels, width)
    shift = _of_channels(bias, channels, width)
    plain = tl.zeros((height, width), tl.float32)
    slopes = tl.zeros((height, width), tl.float32)
    first = tl.program_id(0) * share
    end = tl.minimum(first + share, count)
    for start in range(first, end, height):
        at, inside = _tile(start, end, channels, height, width)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        gradient = _masked(gradient, value, means, scale, shift, clamped)
        plain += gradient
        slopes += gradient * ((value - means) * deviations)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    at = tl.program_id(0) * channels + columns
    tl.store(blocks + at, tl.sum(plain, 0), mask=columns < channels)
    at += tl.num_programs(0) * channels
    tl.store(blocks + at, tl.sum(slopes, 0), mask=columns < channels)


@KERNEL
def _gradients(blocks, dweight, dbias, channels, number, height: tl.constexpr, width: tl.constexpr):
    """Gradients of weight and bias out of those of blocks."""
    plain = tl.zeros((width,), tl.float32)
    slopes = tl.zeros((width,), tl.float32)
    for start in range(0, number, height):
        at, inside = _tile(start, number, channels, height, width)
        plain += tl.sum(tl.load(blocks + at, mask=inside, other=0.0), 0)
        at += number * channels
        slopes += tl.sum(tl.load(blocks + at, mask=inside, other=0.0), 0)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    tl.store(dbias + columns, plain, mask=columns < channels)
    tl.store(dweight + columns, slopes, mask=columns < channels)


@KERNEL
def _input_gradients(
    dy, x, dx, mean, rstd, weight, bias, dweight, dbias, count, channels,
    clamped: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """The gradient of the norm's input."""
    at, inside = _tile(tl.program_id(0).to(tl.int64) * height, count, channels, height, width)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    means, deviations = _of_channels(mean, channels, width), _of_channels(rstd, channels, width)
    scale = deviations * _of_channels(weight, channels, width)
    shift = _of_channels(bias, channels, width)
    gradient = _masked(gradient, value, means, scale, shift, clamped)
    along = (value - means) * deviations * _of_channels(dweight, channels, width)
    gradient -= (_of_channels(dbias, channels, width) + along) / count
    tl.store(dx + at, (gradient * scale).to(dx.dtype.element_ty), mask=inside)


class _Cut:
    """How a feature map (N, C, H, W) is cut into tiles and blocks of rows."""

    def __init__(self, x: Tensor) -> None:
        self.channels = x.shape[1]
        self.count = x.numel() // self.channels
        width = min(MOST_CHANNELS, triton.next_power_of_2(self.channels))
        height = TILE // width
        tiles, columns = triton.cdiv(self.count, height), triton.cdiv(self.channels, width)
        programs = min(tiles, max(1, PROGRAMS // columns))
        self.share = triton.cdiv(tiles, programs) * height
        self.number = triton.cdiv(self.count, self.share)
        self.by_tile, self.by_block, self.by_channel = (
            (tiles, columns), (self.number, columns), (1, columns)
        )  # fmt: skip
        self.tile = {"height": height, "width": width, "num_warps": WARPS}
        self.few = {"height": FEW_BLOCKS, "width": width}
        self.blocks = x.new_empty((2, self.number, self.channels), dtype=torch.float32)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float,
    eps: float, clamped: bool, shortcut: Tensor | None, added: int,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The output, and what `backward` needs beside the input; see `mobilenext.models.fused`.

    Statistics, weights and all arithmetic are float32, whatever the input's type is, as in torch's
    batch norm; the output is rounded once, at its end. Autocast changes nothing of it.
    """
    cut = _Cut(x)
    mean, rstd = torch.empty_like(weight), torch.empty_like(weight)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    _block_statistics[cut.by_block](x, cut.blocks, cut.count, cut.channels, cut.share, **cut.tile)
    _statistics[cut.by_channel](
        cut.blocks, mean, rstd, *running, cut.count, cut.channels, cut.share, cut.number,
        momentum, eps, **cut.few,
    )  # fmt: skip
    _outputs[cut.by_tile](
        x, x if shortcut is None else shortcut, y, mean, rstd, weight, bias, cut.count,
        cut.channels, added, clamped, shortcut is not None, **cut.tile,
    )  # fmt: skip
    return y, [mean, rstd, weight, bias]


def backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, *,
    clamped: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the input, the weight and the bias."""
    cut = _Cut(x)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    _block_gradients[cut.by_block](
        dy, x, mean, rstd, weight, bias, cut.blocks, cut.count, cut.channels, cut.share, clamped,
        **cut.tile,
    )  # fmt: skip
    _gradients[cut.by_channel](cut.blocks, dweight, dbias, cut.channels, cut.number, **cut.few)
    _input_gradients[cut.by_tile](
        dy, x, dx, mean, rstd, weight, bias, dweight, dbias, cut.count, cut.channels, clamped,
        **cut.tile,
    )  # fmt: skip
    return dx, dweight, dbias
