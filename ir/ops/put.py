"""Elements written, or added, at places that are known when the network runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts


@operator("put")
@dataclass(frozen=True)
class Put(Op):
    """x with `source` in the place of the elements whose numbers are `indices`, or added to them when `accumulate`.

    Operands: x, indices (i64), source, the last two of one shape. Elements are numbered as if x were flattened;
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
            raise ShapeError(f"numbers {indices.shape} of {indices.dtype.value} for elements {source.shape}")
        if x.dtype is not source.dtype or x.is_quantized or source.is_quantized:
            raise ShapeError(f"{source.dtype.value} values are not put into {x.dtype.value} ones")
        if not x.numel and indices.numel:
            raise ShapeError("there are no elements to put anything in the place of")
        if self.accumulate and x.dtype is DType.BOOL:
            raise ShapeError("booleans are not added")
        return (x,)

    def reference(self, x: Tensor, indices: Tensor, source: Tensor) -> Tensor:
        return x.put(indices, source, self.accumulate)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        for axes in call.operands:
            call.fix(*(axes or ()), why="elements are put by their number")
        return (call.operand("x"),)


@lowers("put.default")
def _lower_put(call: AtenCall) -> Value:
    return call.emit(Put(call["accumulate"]), call.value("self"), call.value("index"), call.value("source"))
