"""Elementwise sum, difference and product of two operands that broadcast against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import Requant, Rescale, check_int32, requant
from ..errors import ShapeError
from ..tensor_type import DType, TensorType, Value
from .accumulate import Clamp, apply_clamp, clamp_bounds
from .base import AtenCall, IntegerCall, Op, Quantized, lowers, operator
from .quantize import per_tensor_types


@dataclass(frozen=True)
class Binary(Op):
    """Base of the sum, difference and product: broadcasting, and a fused clamp."""

    quantized = Quantized.COMPUTE

    clamp: Clamp = None

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        a, b = a.real(), b.real()
        try:
            shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
        except RuntimeError:
            raise ShapeError(f"{a.shape} and {b.shape} do not broadcast") from None
        empties = (torch.empty(t.shape, dtype=t.dtype.torch, device="meta") for t in (a, b))
        return (TensorType(shape, DType.of(torch.result_type(*empties))),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        per_tensor_types(*operands, outputs[0])


@operator("add")
@dataclass(frozen=True)
class Add(Binary):
    """clamp(a + b)."""

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return apply_clamp(a + b, self.clamp)

    def integer(self, call: IntegerCall) -> Tensor:
        return _weighted_sum(call, self.clamp, sign=1)


@operator("sub")
@dataclass(frozen=True)
class Sub(Binary):
    """clamp(a - b)."""

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return apply_clamp(a - b, self.clamp)

    def integer(self, call: IntegerCall) -> Tensor:
        return _weighted_sum(call, self.clamp, sign=-1)


@operator("mul")
@dataclass(frozen=True)
class Mul(Binary):
    """clamp(a * b)."""

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return apply_clamp(a * b, self.clamp)

    def integer(self, call: IntegerCall) -> Tensor:
        qa, qb, qy = per_tensor_types(*call.types, call.output)
        low, high = clamp_bounds(self.clamp, qy)
        step = Requant.of(qa.scale[0] * qb.scale[0] / qy.scale[0])
        product = (call.operand(0) - qa.zero_point[0]) * (call.operand(1) - qb.zero_point[0])
        y = requant(check_int32(product, "a product"), step.multiplier, step.shift)
        return (y + qy.zero_point[0]).clamp(low, high)


def rescale_of_sum(a: TensorType, b: TensorType, output: TensorType, *, sign: int) -> Rescale:
    """Integers of a + sign * b on the result's grid."""
    qa, qb, qy = per_tensor_types(a, b, output)
    factors = (qa.scale[0] / qy.scale[0], sign * qb.scale[0] / qy.scale[0])
    return Rescale.of(factors, (qa.zero_point[0], qb.zero_point[0]), qy.zero_point[0])


def _weighted_sum(call: IntegerCall, clamp: Clamp, *, sign: int) -> Tensor:
    a, b = call.types[0], call.types[1]
    assert a is not None and b is not None and call.output.quantization is not None
    low, high = clamp_bounds(clamp, call.output.quantization)
    operands = torch.broadcast_tensors(call.operand(0), call.operand(1))
    return rescale_of_sum(a, b, call.output, sign=sign).apply(*operands).clamp(low, high)


@lowers("add.Tensor")
def _lower_add(call: AtenCall) -> Value | None:
    return _lower_binary(call, Add()) if call["alpha"] == 1 else None


@lowers("sub.Tensor")
def _lower_sub(call: AtenCall) -> Value | None:
    return _lower_binary(call, Sub()) if call["alpha"] == 1 else None


@lowers("mul.Tensor")
def _lower_mul(call: AtenCall) -> Value | None:
    return _lower_binary(call, Mul())


def _lower_binary(call: AtenCall, op: Binary) -> Value | None:
    operands = [call.operand_or_scalar("self"), call.operand_or_scalar("other")]
    values = [v for v in operands if isinstance(v, Value)]
    if len(values) != 2 or any(not v.type.dtype.is_floating for v in values):
        return None
    return call.emit(op, *values)
