"""Lookup of elements by index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator
from .binary import Mul
from .channels import Axes, CouplingCall
from .quantize import check_moved
from .reduce import Mean, ReduceMax, Sum
from .shape import Reshape
from .slicing import check_axis


@operator("embedding")
@dataclass(frozen=True)
class Embedding(Op):
    """Row `indices[i]` of `weight` for each i. Operands: indices [...] (i32 or i64), weight [rows, features]."""

    quantized = Quantized.MOVE
    learned_operands = ("weight",)

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
        indices, weight = call.operand("indices"), call.operand("weight")
        call.fix(weight[0], why="rows are looked up by index")
        return ((*indices, weight[1]),)


@operator("take")
@dataclass(frozen=True)
class Take(Op):
    """Elements `indices` of dimension `axis`, which is replaced by the dimensions of `indices`; negative indices
    count from the end.

    Operands: x, indices (i32 or i64) of any rank.
    """

    quantized = Quantized.MOVE

    axis: int = 0

    def infer(self, x: TensorType, indices: TensorType) -> tuple[TensorType, ...]:
        check_axis(self.axis, x)
        check_moved(x)
        if indices.dtype not in (DType.I32, DType.I64) or indices.is_quantized:
            raise ShapeError(f"indices are i32 or i64, not {indices.dtype.value}")
        if not x.shape[self.axis] and indices.numel:
            raise ShapeError(f"dimension {self.axis} of {x.shape} has no elements")
        return (x.with_shape((*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :])),)

    def reference(self, x: Tensor, indices: Tensor) -> Tensor:
        at: list[slice[None, None, None] | Tensor] = [slice(None)] * self.axis
        return x[(*at, indices)]

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, indices = call.operand("x"), call.operand("indices")
        call.fix(x[self.axis], why="elements are looked up by index")
        return ((*x[: self.axis], *indices, *x[self.axis + 1 :]),)


@lowers("index.Tensor")
def _lower_index(call: AtenCall) -> Value | None:
    given = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    if len(given) != 1 or given[0][1].type.dtype not in (DType.I32, DType.I64):
        return None
    ((axis, indices),) = given
    return call.emit(Take(axis), call.value("self"), indices)


@lowers("index_select.default")
def _lower_index_select(call: AtenCall) -> Value | None:
    x, indices = call.value("self"), call.value("index")
    if not x.type.rank or indices.type.rank != 1:
        return None
    return call.emit(Take(call["dim"] % x.type.rank), x, indices)


@lowers("repeat_interleave.self_Tensor")
def _lower_repeat_interleave(call: AtenCall) -> Value | None:
    """`repeat_interleave` with constant numbers of repetitions."""
    x, repeats = call.value("self"), call.constant_tensor(call.value("repeats"))
    if repeats is None:
        return None
    if call["dim"] is None:
        x, axis = call.emit(Reshape((-1,)), x), 0
    else:
        axis = call["dim"] % x.type.rank
    counts = repeats.expand(x.type.shape[axis])
    places = torch.arange(len(counts)).repeat_interleave(counts)
    return call.emit(Take(axis), x, call.constant("places", places))


@lowers("embedding_bag.padding_idx")
def _lower_embedding_bag(call: AtenCall) -> tuple[Value, ...] | None:
    """Bags of equal size with constant starts: rows are looked up, then the sum, mean or maximum of each bag."""
    indices, starts = call.value("indices"), call.constant_tensor(call.value("offsets"))
    if starts is None or call["padding_idx"] not in (None, -1) or indices.type.rank != 1:
        return None
    bags = len(starts) - bool(call["include_last_offset"])
    each, rest = divmod(indices.type.numel, max(bags, 1))
    if not bags or not each or rest or starts[:bags].tolist() != list(range(0, bags * each, each)):
        return None
    rows = call.emit(Embedding(), call.emit(Reshape((bags, each)), indices), call.value("weight"))
    weights = call.optional_value("per_sample_weights")
    if weights is not None:
        rows = call.emit(Mul(), rows, call.emit(Reshape((bags, each, 1)), weights))
    kind = (Sum, Mean, ReduceMax)[call["mode"]]
    return call.emit(kind((1,)), rows), *call.opaque()[1:]


@lowers("embedding.default")
def _lower_embedding(call: AtenCall) -> Value:
    return call.emit(Embedding(), call.value("indices"), call.value("weight"))
