"""Rows of a table looked up by index."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import DType, TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall
from .quantize import check_moved


@operator("embedding")
@dataclass(frozen=True)
class Embedding(Op):
    """Row `indices[i]` of `weight` for each i. Operands: indices [...] (i32 or i64), weight [rows, features]."""

    quantized = Quantized.MOVE

    def infer(self, indices: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        if indices.dtype not in (DType.I32, DType.I64) or indices.is_quantized:
            raise ShapeError(f"indices are i32 or i64, not {indices.dtype.value}")
        if weight.rank != 2:
            raise ShapeError(f"a table of shape {weight.shape} has no rows")
        check_moved(weight)
        return (weight.with_shape((*indices.shape, weight.shape[1])),)

    def reference(self, indices: Tensor, weight: Tensor) -> Tensor:
        return functional.embedding(indices, weight)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        indices, weight = call.operand(0), call.operand(1)
        call.fix(weight[0], why="rows are looked up by their number")
        return ((*indices, weight[1]),)


@lowers("embedding.default")
def _lower_embedding(call: AtenCall) -> Value:
    return call.emit(Embedding(), call.value("indices"), call.value("weight"))
