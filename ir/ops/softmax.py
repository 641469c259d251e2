"""Softmax, over all positions of a row or those that a mask keeps, and its logarithm.

With 8 bits exponentials are read from a table of differences to the largest kept element, with 16 bits by linear
interpolation in a table of fractions of powers of two:

    e_i = table[max - x_i] where kept, else 0                                                          x of 8 bits
    d = requant(max - x_i, scale / log(2) * 2^16),   j = d / 256 % 256,   f = d % 256                  x of 16 bits
    e_i = (table[j] * 256 + (table[j + 1] - table[j]) * f + 128) / 256 >> min(d / 2^16, 31)

    y_i = floor((m * e_i + floor(sum / 2)) / sum) - 128                                                y of 8 bits
    y_i = requant(e_i << (n - 1), (2^32 - 1) / ((sum << n) >> 16) << k), saturated                     y of 16 bits

Results of 8 bits have scale 1/m and zero point -128; m, at least 256, is the power of two for which the results that
are expected use the eight bits. Those of 16 bits have scale 2^-(15 + k) and zero point 0; n are the leading zeros of
the sum. The largest entry of the table is a power of two small enough that the sum of a whole row stays below 2^31
and, for 8 bits, m times an entry does not exceed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log, log2

import torch
from torch import Tensor

from ..arithmetic import Requant, prove_requant, requant
from ..element_type import DType
from ..encoding import Encoding
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .binary import broadcast
from .channels import Axes, CouplingCall, tie_broadcast
from .facts import Facts
from .quantize import per_tensor_types
from .slicing import check_axis

TABLE_BITS = 23
WIDE_TABLE_BITS = 22  # bits of the entries of the table of fractions
FINEST_BITS = {8: 16, 16: 22}  # by bits: a result's step is at least 2 to the minus that
_STEP_BITS = {8: 8, 16: 15}  # log2 of the number of steps of results up to 1
_FRACTION_BITS = 16
EMPTY_ROWS = ("uniform", "zero", "all")


@operator("softmax")
@dataclass(frozen=True)
class Softmax(Op):
    """exp(x) / sum(exp(x)) along dimension `axis`, over the positions that `keep` marks; 0 elsewhere.

    Operands: x, keep (boolean, broadcasts to x) or none. The result of a row without kept positions is, by `empty`:
    the same number everywhere (uniform), zeros (zero), or the softmax of the row without a mask (all).
    """

    quantized = Quantized.COMPUTE
    facts = Facts(bounds=(0.0, 1.0))

    axis: int = 0
    empty: str = "uniform"

    def infer(self, x: TensorType, keep: TensorType | None = None) -> tuple[TensorType, ...]:
        check_empty(self.empty)
        if keep is not None and (keep.dtype is not DType.BOOL or broadcast(x.shape, keep.shape) != x.shape):
            raise ShapeError(f"a mask {keep.dtype.value} {keep.shape} for the softmax of {x.shape}")
        return _along(self, x)

    def reference(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None:
            return torch.softmax(x, self.axis)
        if self.empty == "all":
            keep = keep | ~keep.expand(x.shape).any(self.axis, keepdim=True)
        y = torch.softmax(torch.where(keep, x, torch.finfo(x.dtype).min), self.axis)
        return torch.where(keep, y, 0.0) if self.empty == "zero" else y

    def result_encoding(self, high: float, *, bits: int = 8) -> Encoding:
        spare = 0 if high <= 0 else floor(-log2(min(high, 1.0)))
        step = 2.0 ** -min(_STEP_BITS[bits] + spare, FINEST_BITS[bits])
        return Encoding((step,), (-128,) if bits == 8 else (0,), bits)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, keep = _couple(call, self.axis), call.optional("keep")
        if keep is not None:
            tie_broadcast(call, call.outputs[0].shape, x, keep)
        return (x,)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        qx, qy = per_tensor_types(self.operand(operands, "x"), outputs[0])
        high = qy.scale[0] * (1 << _STEP_BITS.get(qy.bits, 8))
        if qy.bits not in _STEP_BITS or qy != self.result_encoding(high, bits=qy.bits):
            raise ShapeError(
                f"softmax results have 8 bits with zero point -128, or 16 with zero point 0, and a power of two as "
                f"scale, from 2^-{FINEST_BITS[8]} to 2^-8, or from 2^-{FINEST_BITS[16]} to 2^-15"
            )
        if qx.bits > 8:
            prove_requant((1 << qx.bits) - 1, self.fractions(self.operand(operands, "x")))

    def integer(self, call: IntegerCall) -> Tensor:
        x, keep = call.operand("x"), call.optional("keep")
        kept = torch.ones_like(x, dtype=torch.bool) if keep is None else keep.expand(x.shape)
        is_empty = ~kept.any(self.axis, keepdim=True)
        if self.empty == "uniform":
            x = torch.where(is_empty, 0, x)
        if self.empty != "zero":
            kept = kept | is_empty
        largest = torch.where(kept, x, x.amin()).amax(self.axis, keepdim=True)
        powers = self._powers(call.type("x"), call.output, (largest - x).clamp(min=0))
        exponentials = torch.where(kept, powers, 0)
        total = exponentials.sum(self.axis, keepdim=True).clamp(min=1)
        (qy,) = per_tensor_types(call.output)
        if qy.bits == 8:
            multiplied = exponentials * self.multiplier(call.output)
            y = torch.div(multiplied + total // 2, total, rounding_mode="floor")
            return (y - 128).clamp(-128, 127)
        zeros = 32 - torch.frexp(total.double()).exponent.to(torch.int64)
        reciprocal = ((1 << 32) - 1) // ((total << zeros) >> 16) << self.finer(call.output)
        return requant(exponentials << (zeros - 1), reciprocal, 0).clamp(qy.qmin, qy.qmax)

    def _powers(self, x: TensorType, output: TensorType, differences: Tensor) -> Tensor:
        """Exponentials of differences, on the scale of the table."""
        table = self.table(x, output)
        (qx,) = per_tensor_types(x)
        if qx.bits <= 8:
            return table[differences]
        step = self.fractions(x)
        d = requant(differences, step.multiplier, step.shift)
        j, f = (d >> 8) & 255, d & 255
        between = ((table[j] << 8) + (table[j + 1] - table[j]) * f + 128) >> 8
        return between >> (d >> _FRACTION_BITS).clamp(max=31)

    def fractions(self, x: TensorType) -> Requant:
        """Requantization of a difference of 16 bits to steps of 2^-16 of a power of two."""
        (qx,) = per_tensor_types(x)
        return Requant.of(qx.scale[0] / log(2) * (1 << _FRACTION_BITS))

    def finer(self, output: TensorType) -> int:
        """The k by which the step of a 16-bit result, 2^-(15 + k), is finer than 2^-15."""
        return self.multiplier(output).bit_length() - 1 - _STEP_BITS[16]

    def multiplier(self, output: TensorType) -> int:
        """The m by which a share of the sum becomes an integer."""
        (qy,) = per_tensor_types(output)
        return round(1 / qy.scale[0])

    def table(self, x: TensorType | None, output: TensorType) -> Tensor:
        """exp(-scale * d) for each difference d of two integers of `x`, scaled to integers (int64).

        For an operand of 16 bits, 2^-(j / 256) for j from 0 to 256.
        """
        qx, qy = per_tensor_types(x, output)
        assert x is not None
        widest = 32 - self.multiplier(output).bit_length() if qy.bits == 8 else TABLE_BITS
        bits = min(TABLE_BITS, widest, 31 - x.shape[self.axis].bit_length())
        if qx.bits > 8:
            bits = min(bits, WIDE_TABLE_BITS)
            return torch.exp2(bits - torch.arange(257, dtype=torch.float64) / 256).round().to(torch.int64)
        differences = torch.arange(qx.qmax - qx.qmin + 1, dtype=torch.float64)
        return torch.round(torch.exp(-qx.scale[0] * differences) * 2**bits).to(torch.int64)


@operator("log_softmax")
@dataclass(frozen=True)
class LogSoftmax(Op):
    """x - log(sum(exp(x))) along dimension `axis`."""

    axis: int = 0

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return _along(self, x)

    def reference(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x, self.axis)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple(call, self.axis),)


def check_empty(empty: str) -> None:
    """Raises ShapeError unless this is one of `EMPTY_ROWS`."""
    if empty not in EMPTY_ROWS:
        raise ShapeError(f"empty rows {empty!r}; the choices are {', '.join(EMPTY_ROWS)}")


def _couple(call: CouplingCall, axis: int) -> Axes:
    x = call.operand("x")
    call.fix(x[axis], why="the softmax is computed along it")
    return x


def _along(op: Softmax | LogSoftmax, x: TensorType) -> tuple[TensorType, ...]:
    check_axis(op.axis, x)
    check_floats(op, x)
    return (x.real(),)


@lowers("softmax.int", "_softmax.default")
def _lower_softmax(call: AtenCall) -> Value | None:
    return _emit(call, Softmax)


@lowers("log_softmax.int", "_log_softmax.default")
def _lower_log_softmax(call: AtenCall) -> Value | None:
    return _emit(call, LogSoftmax)


def _emit(call: AtenCall, op: type[Softmax | LogSoftmax]) -> Value | None:
    x = call.value("self")
    if not x.type.rank or not x.type.dtype.is_floating:
        return None
    converts = (
        call["half_to_float"]
        if call.target.startswith("_")
        else call["dtype"] not in (None, x.type.dtype.torch)
    )
    if converts:
        return None
    return call.emit(op(call["dim"] % x.type.rank), x)
