"""Sorting along one dimension; `topk`, `median` and `kthvalue` are parts of the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts
from .slicing import check_axis


@operator("sort")
@dataclass(frozen=True)
class Sort(Op):
    """Elements along dimension `axis` in order, and their indices (i64); the sort is stable, NaN is largest."""

    facts = Facts(piecewise_linear=(("x",),))

    axis: int = 0
    descending: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_axis(self.axis, x)
        if x.is_quantized or x.dtype in (DType.C64, DType.C128):
            raise ShapeError(f"{x.dtype.value} values are not sorted")
        return x, TensorType(x.shape, DType.I64)

    def reference(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.sort(x, dim=self.axis, descending=self.descending, stable=True))

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(x[self.axis], why="it is sorted")
        return x, x


@lowers("sort.default", "sort.stable")
def _lower_sort(call: AtenCall) -> tuple[Value, ...] | None:
    x = call.value("self")
    if not x.type.rank:
        return None
    return call.emit_many(Sort(call["dim"] % x.type.rank, call["descending"]), x)


@lowers("argsort.default", "argsort.stable")
def _lower_argsort(call: AtenCall) -> Value | None:
    found = _lower_sort(call)
    return None if found is None else found[1]


@lowers("msort.default")
def _lower_first_sort(call: AtenCall) -> Value | None:
    x = call.value("self")
    return call.emit_many(Sort(0), x)[0] if x.type.rank else None
