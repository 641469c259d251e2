"""Common parts of convolutions, linear layers and matrix products: clamp, accumulator, requantization.

    y = saturate(requant(acc, multiplier, shift) + zero_point)                                        without residual
    y = saturate(requant(acc, multiplier, shift) + ((residual * m + offset) >> s))                    with residual

Only `fixed_point` derives these integers; the interpreter and the C backend both call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import INT32_MAX, WIDEST_SUM, Requant, Rescale, requant_sum
from ..encoding import Encoding
from ..errors import OverflowBoundError, ShapeError
from ..tensor_type import TensorType
from .base import IntegerCall

Clamp = tuple[float, float] | None
BIAS_BITS = 32


def apply_clamp(y: Tensor, clamp: Clamp) -> Tensor:
    """The fused activation: ReLU is (0, inf), ReLU6 is (0, 6)."""
    if clamp is None:
        return y
    low, high = clamp
    if (low, high) == (0.0, float("inf")):
        return torch.relu(y)
    return torch.clamp(y, None if low == float("-inf") else low, None if high == float("inf") else high)


def finish_reals(y: Tensor, residual: Tensor | None, clamp: Clamp) -> Tensor:
    """Adds the residual to a float result, then clamps."""
    return apply_clamp(y if residual is None else y + residual, clamp)


def clamp_bounds(clamp: Clamp, output: Encoding) -> tuple[int, int]:
    """Smallest and largest stored result: the clamp in the output's encoding, within its bits."""
    if clamp is None:
        return output.qmin, output.qmax
    low, high = (output.quantize(torch.tensor(bound, dtype=torch.float64)).item() for bound in clamp)
    return int(low), int(high)


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Integers of one requantization: a multiplier and a shift for each output channel."""

    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]
    zero_point: int
    low: int
    high: int
    residual: Rescale | None = None


def fixed_point(
    x: TensorType,
    weight: TensorType,
    output: TensorType,
    *,
    residual: TensorType | None = None,
    clamp: Clamp = None,
) -> FixedPoint:
    """Integer form of an accumulating operator, derived from the types alone."""
    qx, qw, qy = x.quantization, weight.quantization, output.quantization
    assert qx is not None and qw is not None and qy is not None
    steps = [Requant.of(qx.scale[0] * s / qy.scale[0]) for s in qw.scale]
    low, high = clamp_bounds(clamp, qy)
    rescale = None
    if residual is not None:
        qr = residual.quantization
        assert qr is not None
        rescale = Rescale.of((qr.scale[0] / qy.scale[0],), qr.zero_point, qy.zero_point[0], bits=qr.bits)
        if not rescale.shift and qr.bits > 8:  # halved at least: it fits int32 together with the accumulator
            raise OverflowBoundError("the residual's scale is too large compared with the result's")
    return FixedPoint(
        tuple(s.multiplier for s in steps),
        tuple(s.shift for s in steps),
        qy.zero_point[0],
        low,
        high,
        rescale,
    )


def check_addends(
    bias: TensorType | None, residual: TensorType | None, y: TensorType, *, channels: int
) -> None:
    """Raises ShapeError unless the bias has one number per output channel, and the residual has the result's shape."""
    if bias is not None and bias.shape != (channels,):
        raise ShapeError(f"bias {bias.shape} for {channels} output channels")
    if residual is not None and residual.shape != y.shape:
        raise ShapeError(f"residual {residual.shape} for a result {y.shape}")


def check_accumulating(
    operands: Sequence[TensorType | None],
    outputs: Sequence[TensorType],
    *,
    channel_axis: int | None,
    group_size: int | None = None,
) -> None:
    """Raises ShapeError unless the types are those of an integer accumulation.

    Activations per tensor, weights symmetric per tensor or per output channel (along `channel_axis`, in groups of
    `group_size`), bias in int32 with the product of both scales, residual per tensor.
    """
    x, weight, bias, residual = (*operands, None, None)[:4]
    qx, qw = _quantization(x, "the input"), _quantization(weight, "the weight")
    qy = _quantization(outputs[0], "the result")
    if not (qx.is_per_tensor and qy.is_per_tensor):
        raise ShapeError("activations are quantized per tensor")
    if not qw.is_symmetric:
        raise ShapeError("weights are quantized symmetrically")
    if qw.axis is not None and (qw.axis, qw.group_size) != (channel_axis, group_size):
        raise ShapeError(
            f"weight scales along {_scales_text(qw.axis, qw.group_size)}; this operator needs "
            f"{_scales_text(channel_axis, group_size)}"
        )
    if bias is not None:
        qb = _quantization(bias, "the bias")
        expected = tuple(qx.scale[0] * s for s in qw.scale)
        if qb.bits != BIAS_BITS or not qb.is_symmetric or tuple(qb.scale) != expected:
            raise ShapeError("the bias is int32 with scale input scale x weight scale")
    if residual is not None and not _quantization(residual, "the residual").is_per_tensor:
        raise ShapeError("the residual is quantized per tensor")


def _scales_text(axis: int | None, group_size: int | None) -> str:
    if axis is None:
        return "one scale for the tensor"
    return f"axis {axis}" if group_size is None else f"axis {axis} in groups of {group_size}"


def bias_quantization(x: Encoding, weight: Encoding) -> Encoding:
    """int32 with scale input scale x weight scale, for each output channel."""
    return Encoding(
        tuple(x.scale[0] * s for s in weight.scale), bits=BIAS_BITS, axis=None if weight.axis is None else 0
    )


def finish_accumulator(call: IntegerCall, acc: Tensor, clamp: Clamp, *, channel_axis: int = 1) -> Tensor:
    """Adds bias and residual to an accumulator, requantizes, saturates; channels of the result are on
    `channel_axis`.
    """
    x, weight = call.type("x"), call.type("weight")
    bias, residual = call.optional("bias"), call.optional("residual")
    along = [1] * acc.ndim
    along[channel_axis] = -1
    if bias is not None:
        acc = acc + bias.view(along)
    fixed = fixed_point(
        x, weight, call.output, residual=None if residual is None else call.type("residual"), clamp=clamp
    )
    multipliers, shifts = (torch.tensor(t).view(along) for t in (fixed.multipliers, fixed.shifts))
    y = requant_sum(acc, multipliers, shifts)
    fused = None if residual is None or fixed.residual is None else fixed.residual.apply(residual)
    y = y + (fixed.zero_point if fused is None else fused)
    return y.clamp(fixed.low, fixed.high)


def prove_accumulator(
    rows: Tensor, bias: Tensor | None, fixed: FixedPoint, *, x: Encoding, phases: Tensor | None = None
) -> Tensor:
    """Largest |accumulator| of each output channel over all inputs; OverflowBoundError if it can exceed 48 bits.

    `rows` [out, taps] are the integer weights of each output channel. `phases` [taps] are numbers; taps with the same
    number are summed into one result (None: all taps). The bound holds for the accumulator of raw integers with the
    input offset folded into the bias, also after the left shift. It is attained: each weight is multiplied by the end
    of the input range that increases the magnitude of the sum.
    """
    rows = rows.to(torch.int64)
    phases = torch.zeros(rows.shape[1], dtype=torch.int64) if phases is None else phases
    offset = torch.zeros(len(rows), dtype=torch.int64) if bias is None else bias.to(torch.int64)
    sums = torch.zeros(len(rows), int(phases.max()) + 1 if len(phases) else 1, dtype=torch.int64)
    positive, negative = (sums.index_add(1, phases, part) for part in (rows.clamp(min=0), rows.clamp(max=0)))
    zero, offset = x.zero_point[0], offset[:, None]
    centred_high = positive * (x.qmax - zero) + negative * (x.qmin - zero) + offset
    centred_low = positive * (x.qmin - zero) + negative * (x.qmax - zero) + offset
    folded = (offset - zero * (positive + negative)).abs()
    raw = folded + (positive - negative) * max(x.qmax, -x.qmin)
    bound = torch.maximum(torch.maximum(centred_high.abs(), centred_low.abs()), raw).amax(1)
    shifted = _shifted(bound, fixed)
    if float(shifted.max()) > WIDEST_SUM:
        channel = int(shifted.argmax())
        raise OverflowBoundError(
            f"output channel {channel} can reach an accumulator of {shifted[channel]:,.0f}, beyond 48 bits"
        )
    return bound


def fits_int32(bound: Tensor, fixed: FixedPoint) -> bool:
    """True if accumulators up to `bound`, for each channel, fit int32 also after the left shift."""
    return float(_shifted(bound, fixed).max()) <= INT32_MAX


def _shifted(bound: Tensor, fixed: FixedPoint) -> Tensor:
    """In float64, which is exact here: bounds of 48 bits times powers of two."""
    return bound.double() * 2.0 ** torch.tensor(fixed.shifts, dtype=torch.float64)


def zero_point(type: TensorType | None) -> int:
    """Zero point of a per-tensor quantized operand."""
    assert type is not None and type.quantization is not None
    return type.quantization.zero_point[0]


def _quantization(type: TensorType | None, what: str) -> Encoding:
    if type is None or type.quantization is None:
        raise ShapeError(f"{what} is not quantized")
    return type.quantization
