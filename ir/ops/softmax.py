"""Softmax and its logarithm.

On 8 bits softmax takes exponentials from a table of differences to the largest element:

    e_i = table[max - x_i],   y_i = floor((256 * e_i + floor(sum / 2)) / sum) - 128

The largest entry is a power of two small enough that the sum of a whole row stays below 2^31. Results have
scale 1/256 and zero point -128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ShapeError
from ..tensor_type import Quantization, TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall
from .quantize import per_tensor_types
from .slicing import check_axis

TABLE_BITS = 23


@operator("softmax")
@dataclass(frozen=True)
class Softmax(Op):
    """exp(x) / sum(exp(x)) along dimension `axis`."""

    quantized = Quantized.COMPUTE
    result_grid = Quantization((1 / 256,), (-128,))

    axis: int = 0

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return _along(self, x)

    def reference(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self.axis)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple(call, self.axis),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        qx, qy = per_tensor_types(operands[0], outputs[0])
        if qx.bits > 8 or qy != self.result_grid:
            raise ShapeError("softmax takes 8 bits and gives 8 bits with scale 1/256 and zero point -128")

    def integer(self, call: IntegerCall) -> Tensor:
        x, type = call.operand(0), call.types[0]
        exponentials = self.table(type)[x.amax(self.axis, keepdim=True) - x]
        total = exponentials.sum(self.axis, keepdim=True)
        y = torch.div(exponentials * 256 + total // 2, total, rounding_mode="floor")
        return (y - 128).clamp(-128, 127)

    def table(self, x: TensorType | None) -> Tensor:
        """exp(-scale * d) for each difference d of two integers of `x`, scaled to integers (int64)."""
        (qx,) = per_tensor_types(x)
        assert x is not None
        bits = min(TABLE_BITS, 31 - x.shape[self.axis].bit_length())
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


def _couple(call: CouplingCall, axis: int) -> Axes:
    x = call.operand(0)
    call.fix(x[axis], why="the softmax is taken along it")
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
