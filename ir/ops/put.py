"""Elements written, or added, at positions that are known at run time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts
from .quantize import check_moved
from .shape import Expand, Reshape
from .slicing import check_axis


@operator("put")
@dataclass(frozen=True)
class Put(Op):
    """x with `source` in place of the elements with the numbers `indices`, or added to them with `accumulate`.

    Operands: x, indices (i64), source; the last two have the same shape. Elements are numbered in row-major order;
    negative numbers count from the end.
    """

    accumulate: bool = False

    @property
    def facts(self) -> Facts:
        return Facts(
            monotone=("x", "source"),
            piecewise_linear=(("x", "source"),),
            homogeneous=True,
            selects=not self.accumulate,
        )

    def infer(self, x: TensorType, indices: TensorType, source: TensorType) -> tuple[TensorType, ...]:
        if indices.dtype is not DType.I64 or indices.is_quantized or indices.shape != source.shape:
            raise ShapeError(f"indices {indices.shape} of {indices.dtype.value} for elements {source.shape}")
        if x.dtype is not source.dtype or x.is_quantized or source.is_quantized:
            raise ShapeError(f"{source.dtype.value} values are not put into {x.dtype.value} ones")
        if not x.numel and indices.numel:
            raise ShapeError("there are no elements to replace")
        if self.accumulate and x.dtype is DType.BOOL:
            raise ShapeError("booleans are not added")
        return (x,)

    def reference(self, x: Tensor, indices: Tensor, source: Tensor) -> Tensor:
        return x.put(indices, source, self.accumulate)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        for axes in call.operands:
            call.fix(*(axes or ()), why="elements are written by index")
        return (call.operand("x"),)


@operator("index_copy")
@dataclass(frozen=True)
class IndexCopy(Op):
    """x with `source` in place of the elements `indices` of dimension `axis`, such as new rows of a cache.

    Operands: x, indices [n] (i32 or i64), source, shaped like x but with n elements along the axis. Negative indices
    count from the end with `wraps`, and do not occur otherwise; of equal indices the last one is effective.
    """

    quantized = Quantized.MOVE

    axis: int = 0
    wraps: bool = True

    def infer(self, x: TensorType, indices: TensorType, source: TensorType) -> tuple[TensorType, ...]:
        check_axis(self.axis, x)
        check_moved(x, source)
        if indices.dtype not in (DType.I32, DType.I64) or indices.is_quantized or indices.rank != 1:
            raise ShapeError(
                f"indices are one dimension of i32 or i64, not {indices.shape} of {indices.dtype.value}"
            )
        if source.shape != (*x.shape[: self.axis], indices.shape[0], *x.shape[self.axis + 1 :]):
            raise ShapeError(
                f"{source.shape} does not replace {indices.shape[0]} elements of dimension {self.axis} of {x.shape}"
            )
        if not x.shape[self.axis] and indices.numel:
            raise ShapeError(f"dimension {self.axis} of {x.shape} has no elements")
        return (x,)

    def reference(self, x: Tensor, indices: Tensor, source: Tensor) -> Tensor:
        if self.wraps:
            indices = torch.where(indices < 0, indices + x.shape[self.axis], indices)
        return x.index_copy(self.axis, indices.long(), source)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, indices, source = call.operand("x"), call.operand("indices"), call.operand("source")
        call.fix(x[self.axis], *indices, source[self.axis], why="elements are written by index")
        for axis, (a, b) in enumerate(zip(x, source, strict=True)):
            if axis != self.axis:
                call.tie(a, b)
        return (x,)


@lowers("put.default")
def _lower_put(call: AtenCall) -> Value:
    return call.emit(Put(call["accumulate"]), call.value("self"), call.value("index"), call.value("source"))


@lowers("index_copy.default")
def _lower_index_copy(call: AtenCall) -> Value | None:
    x, indices, source = call.value("self"), call.value("index"), call.value("source")
    if not x.type.rank or x.type.dtype is not source.type.dtype:
        return None
    return _emit_index_copy(call, IndexCopy(call["dim"] % x.type.rank, wraps=False), x, indices, source)


@lowers("index_put.default", "_unsafe_index_put.default")
def _lower_index_put(call: AtenCall) -> Value | None:
    """x[:, :, i] = values, for indices of at most one dimension along one axis."""
    x, values = call.value("self"), call.value("values")
    given = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    if len(given) != 1 or call["accumulate"] or x.type.dtype is not values.type.dtype:
        return None
    ((axis, indices),) = given
    if indices.type.dtype not in (DType.I32, DType.I64) or indices.type.rank > 1:
        return None
    shape = (*x.type.shape[:axis], *indices.type.shape, *x.type.shape[axis + 1 :])
    if values.type.shape != shape:
        values = call.emit(Expand(shape), values)
    return _emit_index_copy(call, IndexCopy(axis), x, indices, values)


def _emit_index_copy(call: AtenCall, op: IndexCopy, x: Value, indices: Value, source: Value) -> Value:
    if not indices.type.rank:
        indices = call.emit(Reshape((1,)), indices)
    shape = (*x.type.shape[: op.axis], indices.type.shape[0], *x.type.shape[op.axis + 1 :])
    if source.type.shape != shape:
        source = call.emit(Reshape(shape), source)
    return call.emit(op, x, indices, source)
