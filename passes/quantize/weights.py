"""Weights and biases as integers.

weight[c] = round(w[c] / s_w[c]),  |weight| <= 2^(bits-1) - 1
bias[c]   = round(b[c] / (s_x * s_w[c]))

Weights of one bit are -1 or 1, s_w[c] is the mean of |w[c]|: the least squared error (Rastegari et al., XNOR-Net, ECCV
2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ...ir import BINARY_BITS, Encoding, TensorType
from ...ir.ops.accumulate import bias_quantization
from ...ir.ops.conv import ConvTranspose
from ...ir.ops.layer import Layer
from ...specs.options import WeightObserver
from ..calibration.aciq import clip_scales, spread_correction
from ..weighted_layers import apply_to_channels
from .codebook import share_values
from .range_encodings import to_float32

_LARGEST_BIAS = 1 << 29  # leaves a part of int32 for the products
_LARGEST_SUM = 1.25 * 2**30  # of products of weights of 16 bits: the rest is for the bias and for rounding
_STEPS_OF_ZERO_CHANNEL = 1 << 10  # accumulator steps in one output step where all weights are zero
_SHRINKS = 50
_GROWTHS = 512
_SHORT_ROW = 64  # weights; in longer rows no scale is much nearer than another
_REFITS = 4
_STORED_BINARY_BITS = 2  # before its two values become a codebook
_MARGIN = 1e-3  # of a share, for the rounding of the errors that are compared


@dataclass(frozen=True)
class QuantizedWeights:
    """Integers of one layer, and the reals that they represent."""

    weight: Tensor
    weight_encoding: Encoding
    bias: Tensor | None
    bias_encoding: Encoding | None


def quantize_weights(
    op: Layer,
    weight: Tensor,
    bias: Tensor | None,
    *,
    x: Encoding,
    y: Encoding,
    bits: int,
    per_channel: bool = True,
    observer: WeightObserver = "minmax",
    codebook_bits: int | None = None,
    mean: Tensor | None = None,
) -> QuantizedWeights:
    """Symmetric integers for each output channel; a scale is increased if the bias would overflow with it.

    Below 8 bits `minmax` means `mse`: with `minmax`, the largest weight alone would reduce the precision of the
    others.
        The same holds with 16-bit activations, where the rounding of the weights is most of the error.
        With `codebook_bits`, the 8-bit integers of the whole weight have at most 2^codebook_bits distinct values.
        With `mean`, the mean of each input channel, the bias compensates the change that rounded weights cause in the
        mean of each output channel.
    """
    by_channel = op.channel_scales(TensorType.of(weight)) if per_channel else None
    axis, group_size = by_channel or (None, None)
    if observer == "minmax" and (bits < 8 or (x.bits > 8 and bits == 8)):
        observer = "mse"
    rows = weight.double().reshape(1, -1) if axis is None else op.rows(weight.double())
    scales = row_scales(rows, bits=bits, observer=observer)
    finest = _STEPS_OF_ZERO_CHANNEL
    if bits == BINARY_BITS:  # a channel of zeros becomes a sum of all its inputs
        finest *= rows.shape[1] << x.bits
    scales = torch.where(scales > 0, scales, y.scale[0] / (x.scale[0] * finest))
    least = torch.zeros_like(scales)
    if bias is not None:
        needed = bias.double().abs() / (x.scale[0] * _LARGEST_BIAS)
        least = needed if axis is not None else needed.max(0, keepdim=True).values
    if bits > 8:  # finer weights would exceed int32, which the fast kernels need
        summed = rows.abs().sum(1) if axis is not None else op.rows(weight.double()).abs().sum(1).max()[None]
        least = torch.maximum(least, summed * (max(x.qmax, -x.qmin) + abs(x.zero_point[0])) / _LARGEST_SUM)
    scales = torch.maximum(scales, least)
    if observer == "aciq" and bits != BINARY_BITS:
        scales = torch.maximum(scales * _spread_factor(rows, scales, bits=bits), least)
    encoding = Encoding(
        tuple(to_float32(float(s)) for s in scales),
        bits=max(bits, _STORED_BINARY_BITS),
        axis=axis,
        group_size=group_size,
    )
    step, _ = encoding.expand(tuple(weight.shape))
    integers = _nearest(weight.double(), step, bits=bits).to(encoding.container.torch)
    if codebook_bits is not None and bits == 8:
        integers = share_values(integers, step.square(), bits=codebook_bits)
    if mean is not None:
        shift = mean_shift(op, integers.double() * step - weight.double(), mean)
        bias = -shift if bias is None else bias.double() - shift
    if bias is None:
        return QuantizedWeights(integers, encoding, None, None)
    bias_encoding = bias_quantization(x, encoding)
    steps = bias_encoding.scale.tensor(torch.float64)
    return QuantizedWeights(
        integers, encoding, (bias.double() / steps).round().to(torch.int32), bias_encoding
    )


def mean_shift(op: Layer, error: Tensor, mean: Tensor) -> Tensor:
    """Mean of each output channel of a layer with weights `error`, for inputs with these means, away from borders."""
    shift = apply_to_channels(op.taps(error).sum(-1), mean)
    return shift / prod(op.stride) if isinstance(op, ConvTranspose) else shift


def row_scales(rows: Tensor, *, bits: int, observer: WeightObserver) -> Tensor:
    """A scale for each row: the largest weight divided by the largest integer, or clipped by the observer."""
    if bits == BINARY_BITS:
        return rows.abs().mean(1)
    if observer == "aciq":
        return clip_scales(rows, bits=bits)
    if observer == "minmax":
        return rows.abs().amax(1) / _largest(bits)
    return _least_squares_scales(rows, bits=bits)


def _least_squares_scales(rows: Tensor, *, bits: int) -> Tensor:
    """Scale of least squared error among smaller ones, refitted to its integers:

        s = <w, q> / <q, q>

    A scale multiplied by a factor f < 1 clips the largest weight of the row, which alone costs ((1 - f) * w)^2:
    factors
        whose clipping costs more than the unchanged scale does in total, in every row, are not tried.
        A short row of 8 bits may also be near multiples of a larger scale by chance: for 4 weights the best such scale
        has 1/3 of the error.
    """
    largest = rows.abs().amax(1) / _largest(bits)
    best, least = largest, torch.full_like(largest, float("inf"))
    _, unshrunk = _better(rows, best, least, largest, bits=bits)
    clipped = (unshrunk.sqrt() / (largest * _largest(bits))).nan_to_num(0.0)
    least_share = 1 - float(clipped.max()) - _MARGIN if len(clipped) else 1.0
    factors = [k / _SHRINKS for k in range(1, _SHRINKS + 1) if k / _SHRINKS >= least_share]
    if bits >= 8 and rows.shape[1] <= _SHORT_ROW:
        factors += [1 + k / _GROWTHS for k in range(1, _GROWTHS + 1)]
    for factor in factors:
        best, least = _better(rows, best, least, largest * factor, bits=bits)
    for _ in range(_REFITS):
        integers = _nearest(rows, _steps(best), bits=bits)
        products, squares = (rows * integers).sum(1), integers.square().sum(1)
        best, least = _better(
            rows, best, least, torch.where(squares > 0, products / squares, best), bits=bits
        )
    return best


def _better(rows: Tensor, best: Tensor, least: Tensor, scales: Tensor, *, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and squared errors of the rows, for each row those with the smaller error."""
    step = _steps(scales)
    error = _nearest(rows, step, bits=bits).mul_(step).sub_(rows).square_().sum(1)
    return torch.where(error < least, scales, best), torch.minimum(error, least)


def _spread_factor(rows: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    step = _steps(scales)
    return spread_correction(rows, _nearest(rows, step, bits=bits) * step)


def _nearest(weight: Tensor, step: Tensor, *, bits: int) -> Tensor:
    if bits == BINARY_BITS:
        return torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)
    return (weight / step).round_().clamp_(-_largest(bits), _largest(bits))


def _steps(scales: Tensor) -> Tensor:
    """Scales that divide rows: 1 for a row of zeros."""
    return torch.where(scales > 0, scales, 1.0)[:, None]


def _largest(bits: int) -> int:
    return (1 << (bits - 1)) - 1
