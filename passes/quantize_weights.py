"""Weights and biases as integers, with the proof that no accumulator leaves int32.

weight[c] = round(w[c] / s_w[c]),  |weight| <= 2^(bits-1) - 1
bias[c]   = round(b[c] / (s_x * s_w[c]))
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..ir import Quantization, TensorType
from ..ir.ops.accumulate import bias_quantization
from ..ir.ops.conv import ConvTranspose
from .grid import to_float32
from .layers import Layer, apply_to_channels, channel_taps

_LARGEST_BIAS = 1 << 29  # leaves the products a share of int32
_STEPS_OF_ZERO_CHANNEL = 1 << 10  # accumulator steps in one output step where all weights are zero
_SHRINKS = 50


@dataclass(frozen=True)
class QuantizedWeights:
    """Integers of one layer, and what they stand for."""

    weight: Tensor
    weight_grid: Quantization
    bias: Tensor | None
    bias_grid: Quantization | None


def weight_axis(op: Layer, weight: TensorType) -> int | None:
    """Dimension of the weight along which output channels, and with them scales, lie; None for one scale in all."""
    return op.channel_axis(weight) if isinstance(op, ConvTranspose) else 0


def quantize_weights(
    op: Layer,
    weight: Tensor,
    bias: Tensor | None,
    *,
    x: Quantization,
    y: Quantization,
    bits: int,
    per_channel: bool = True,
    observer: Literal["minmax", "mse"] = "minmax",
    mean: Tensor | None = None,
) -> QuantizedWeights:
    """Symmetric integers for each output channel; a scale is raised where the bias would not fit beside it.

    With `mean`, the mean of each input channel, the bias takes back what rounding the weights adds to the mean of
    each output channel.
    """
    axis = weight_axis(op, TensorType.of(weight)) if per_channel else None
    rows = weight.double().movedim(axis, 0).flatten(1) if axis is not None else weight.double().view(1, -1)
    scales = _weight_scales(rows, bits=bits, observer=observer)
    scales = torch.where(scales > 0, scales, y.scale[0] / (x.scale[0] * _STEPS_OF_ZERO_CHANNEL))
    if bias is not None:
        needed = bias.double().abs() / (x.scale[0] * _LARGEST_BIAS)
        scales = torch.maximum(scales, needed if axis is not None else needed.max())
    grid = Quantization(tuple(to_float32(float(s)) for s in scales), bits=bits, axis=axis)
    step, _ = grid.expand(tuple(weight.shape))
    qmax = grid.qmax
    integers = (weight.double() / step).round().clamp(-qmax, qmax).to(grid.container.torch)
    if mean is not None:
        shift = _mean_shift(op, integers.double() * step - weight.double(), mean)
        bias = -shift if bias is None else bias.double() - shift
    if bias is None:
        return QuantizedWeights(integers, grid, None, None)
    bias_grid = bias_quantization(x, grid)
    steps = torch.tensor(bias_grid.scale, dtype=torch.float64)
    return QuantizedWeights(integers, grid, (bias.double() / steps).round().to(torch.int32), bias_grid)


def _mean_shift(op: Layer, error: Tensor, mean: Tensor) -> Tensor:
    """Mean of each output channel of a layer with weights `error`, for inputs with these means, away from borders."""
    shift = apply_to_channels(channel_taps(op, error).sum(-1), mean)
    return shift / prod(op.stride) if isinstance(op, ConvTranspose) else shift


def _weight_scales(rows: Tensor, *, bits: int, observer: Literal["minmax", "mse"]) -> Tensor:
    """The largest weight of each row on the largest integer, or the shrunk scale with the least squared error.

    Below 8 bits always the latter: there the largest weight alone would cost the others their precision.
    """
    qmax = (1 << (bits - 1)) - 1
    largest = rows.abs().amax(1) / qmax
    if observer == "minmax" and bits >= 8:
        return largest
    best, least = largest, torch.full_like(largest, float("inf"))
    for k in range(1, _SHRINKS + 1):
        scales = largest * (k / _SHRINKS)
        step = torch.where(scales > 0, scales, 1.0)[:, None]
        error = ((rows / step).round().clamp(-qmax, qmax) * step - rows).square().sum(1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best
