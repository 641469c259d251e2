"""Products of two matrices that are both activations; leading dimensions are batches and broadcast.

On integers: requant(sum((a - za) * (b - zb)), sa * sb / sy) + zy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import check_int32, prove_requant, requant
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .binary import broadcast, requant_of_product
from .channels import Axes, CouplingCall, tie_broadcast
from .linear import Linear
from .quantize import per_tensor_types
from .shape import Permute


@operator("matmul")
@dataclass(frozen=True)
class MatMul(Op):
    """a [..., m, k] times b [..., k, n]; a vector counts as one row of a, or one column of b."""

    quantized = Quantized.COMPUTE

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, a, b)
        if not a.rank or not b.rank or a.shape[-1] != b.shape[-2 if b.rank > 1 else 0]:
            raise ShapeError(f"{a.shape} times {b.shape} is no matrix product")
        batch = broadcast(a.shape[:-2], b.shape[:-2])
        return (TensorType((*batch, *a.shape[-2:-1], *(b.shape[-1:] if b.rank > 1 else ())), a.real().dtype),)

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        if any(q.bits > 8 for q in per_tensor_types(*operands, outputs[0])):
            raise ShapeError("matmul computes on values of at most 8 bits")
        a, (qa, qb) = operands[0], per_tensor_types(*operands)
        assert a is not None
        step = requant_of_product(operands[0], operands[1], outputs[0])
        prove_requant(qa.reach * qb.reach * a.shape[-1], step)

    def integer(self, call: IntegerCall) -> Tensor:
        qa, qb, qy = per_tensor_types(*call.types, call.output)
        step = requant_of_product(call.types[0], call.types[1], call.output)
        # float64 holds every partial sum of these integers exactly, and multiplies faster than int64
        a, b = call.operand(0) - qa.zero_point[0], call.operand(1) - qb.zero_point[0]
        acc = torch.matmul(a.double(), b.double()).to(torch.int64)
        y = requant(check_int32(acc, "an accumulator"), step.multiplier, step.shift)
        return (y + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        a = operands[0]
        assert a is not None
        return outputs[0].numel * a.shape[-1]

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        a, b, y = call.operand(0), call.operand(1), call.outputs[0]
        call.tie(a[-1], b[-2] if len(b) > 1 else b[0])
        rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
        batch = y.shape[: y.rank - len(rows) - len(columns)]
        lead = tie_broadcast(call, batch, a[:-2], b[:-2])
        call.heads(*lead)
        return ((*lead, *rows, *columns),)


@lowers("matmul.default")
def _lower_matmul(call: AtenCall) -> Value | None:
    return _emit(call, "self", "other")


@lowers("mm.default", "bmm.default")
def _lower_ranked_matmul(call: AtenCall) -> Value | None:
    return _emit(call, "self", "mat2")


def _emit(call: AtenCall, first: str, second: str) -> Value | None:
    a, b = call.value(first), call.value(second)
    if not a.type.dtype.is_floating or a.type.dtype is not b.type.dtype:
        return None
    return call.emit(MatMul(), a, b)


@lowers("addmm.default")
def _lower_addmm(call: AtenCall) -> Value | None:
    """A linear layer, when what is added is one number an output."""
    bias, x, weight = call.value("self"), call.value("mat1"), call.value("mat2")
    plain = call["beta"] == 1 and call["alpha"] == 1 and bias.type.shape == weight.type.shape[1:]
    if not plain or not x.type.dtype.is_floating:
        return None
    return call.emit(Linear(), x, call.emit(Permute((1, 0)), weight), bias)
