"""Comparisons, logical operators and selection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, lowers, operator
from .binary import broadcast
from .channels import Axes, CouplingCall, tie_broadcast
from .convert import promoted_operands, scalar_fits
from .facts import Facts
from .reduce import ReduceMax, ReduceMin
from .shape import Reshape

_Function = Callable[..., Tensor]

_RELATIONS: Mapping[str, _Function] = MappingProxyType(
    {"eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}
)
_LOGIC: Mapping[str, _Function] = MappingProxyType(
    {"and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor, "not": torch.logical_not}
)
_COMPLEX = (DType.C64, DType.C128)


@operator("compare")
@dataclass(frozen=True)
class Compare(Op):
    """Boolean a `relation` b, one of eq, ne, lt, le, gt, ge; operands of one element type broadcast."""

    relation: str = "eq"

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        if self.relation not in _RELATIONS:
            raise ShapeError(f"relation {self.relation!r}; the choices are {', '.join(_RELATIONS)}")
        if a.dtype is not b.dtype or a.dtype in _COMPLEX or a.is_quantized or b.is_quantized:
            raise ShapeError(f"{a.dtype.value} and {b.dtype.value} are not compared")
        return (TensorType(broadcast(a.shape, b.shape), DType.BOOL),)

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return _RELATIONS[self.relation](a, b)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (tie_broadcast(call, call.outputs[0].shape, call.operand("a"), call.operand("b")),)


@operator("logic")
@dataclass(frozen=True)
class Logic(Op):
    """Boolean `connective` of one operand (not) or two (and, or, xor), which broadcast."""

    connective: str = "and"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if self.connective not in _LOGIC or len(operands) != (1 if self.connective == "not" else 2):
            raise ShapeError(f"{self.connective!r} of {len(operands)} operands is not a logical operator")
        if any(t.dtype is not DType.BOOL for t in operands):
            raise ShapeError("logic takes booleans")
        return (TensorType(broadcast(*(t.shape for t in operands)), DType.BOOL),)

    def reference(self, *operands: Tensor) -> Tensor:
        return _LOGIC[self.connective](*operands)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (tie_broadcast(call, call.outputs[0].shape, *call.operands),)


@operator("where")
@dataclass(frozen=True)
class Where(Op):
    """a where the condition holds, b elsewhere; all three broadcast. Operands: condition, a, b."""

    facts = Facts(monotone=("a", "b"), piecewise_linear=(("a", "b"),), homogeneous=True, selects=True)

    def infer(self, condition: TensorType, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        if condition.dtype is not DType.BOOL or a.dtype is not b.dtype or a.is_quantized or b.is_quantized:
            raise ShapeError("where takes a boolean, and two values of one element type")
        return (replace(a, shape=broadcast(condition.shape, a.shape, b.shape)),)

    def reference(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition, a, b)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (tie_broadcast(call, call.outputs[0].shape, *call.operands),)


@dataclass(frozen=True)
class ArgExtremum(Op):
    """Base of the operators that return the index (i64) of an element along dimension `axis`."""

    axis: int = 0
    keepdim: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= self.axis < x.rank or not x.shape[self.axis]:
            raise ShapeError(f"{x.shape} has no elements along {self.axis}")
        if x.dtype in (*_COMPLEX, DType.BOOL) or x.is_quantized:
            raise ShapeError(f"{self.name} of {x.dtype.value} values is not defined here")
        kept = (1,) if self.keepdim else ()
        return (TensorType((*x.shape[: self.axis], *kept, *x.shape[self.axis + 1 :]), DType.I64),)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(x[self.axis], why="its positions are results")
        return ((*x[: self.axis], *(call.fixed(1) if self.keepdim else ()), *x[self.axis + 1 :]),)


@operator("argmax")
@dataclass(frozen=True)
class ArgMax(ArgExtremum):
    """Index (i64) of the first largest element along dimension `axis`."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.argmax(x, self.axis, self.keepdim)


@operator("argmin")
@dataclass(frozen=True)
class ArgMin(ArgExtremum):
    """Index (i64) of the first smallest element along dimension `axis`."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.argmin(x, self.axis, self.keepdim)


@lowers(*(f"{relation}.{kind}" for relation in _RELATIONS for kind in ("Tensor", "Scalar")))
def _lower_compare(call: AtenCall) -> Value | None:
    values = promoted_operands(call, "self", "other")
    if values is None or values[0].type.dtype is not values[1].type.dtype:
        return None
    return call.emit(Compare(call.target.partition(".")[0]), *values)


_CONNECTIVES = {
    "logical_and.default": "and",
    "bitwise_and.Tensor": "and",
    "__and__.Tensor": "and",
    "logical_or.default": "or",
    "bitwise_or.Tensor": "or",
    "__or__.Tensor": "or",
    "logical_xor.default": "xor",
    "bitwise_xor.Tensor": "xor",
    "__xor__.Tensor": "xor",
}


@lowers(*_CONNECTIVES)
def _lower_connective(call: AtenCall) -> Value | None:
    return _emit_logic(call, _CONNECTIVES[call.target], call.value("self"), call.value("other"))


@lowers("logical_not.default", "bitwise_not.default")
def _lower_not(call: AtenCall) -> Value | None:
    return _emit_logic(call, "not", call.value("self"))


def _emit_logic(call: AtenCall, connective: str, *operands: Value) -> Value | None:
    booleans = all(v.type.dtype is DType.BOOL for v in operands)
    return call.emit(Logic(connective), *operands) if booleans else None


@lowers("where.self", "where.ScalarSelf", "where.ScalarOther")
def _lower_where(call: AtenCall) -> Value | None:
    values = promoted_operands(call, "self", "other")
    if values is None or values[0].type.dtype is not values[1].type.dtype:
        return None
    return call.emit(Where(), call.value("condition"), *values)


@lowers("masked_fill.Scalar")
def _lower_masked_fill(call: AtenCall) -> Value | None:
    x, number = call.value("self"), call["value"]
    if not scalar_fits(number, x.type.dtype):
        return None
    filling = call.constant("scalar", torch.tensor(number, dtype=x.type.dtype.torch))
    return call.emit(Where(), call.value("mask"), filling, x)


@lowers("masked_fill.Tensor")
def _lower_masked_fill_by_tensor(call: AtenCall) -> Value | None:
    x, number = call.value("self"), call.value("value")
    if number.type.dtype is not x.type.dtype:
        return None
    return call.emit(Where(), call.value("mask"), number, x)


@lowers("where.Scalar")
def _lower_choice_of_numbers(call: AtenCall) -> Value | None:
    numbers = (call["self"], call["other"])
    if not all(isinstance(number, float) for number in numbers):
        return None
    dtype = torch.get_default_dtype()
    on, off = (call.constant("scalar", torch.tensor(number, dtype=dtype)) for number in numbers)
    return call.emit(Where(), call.value("condition"), on, off)


@lowers("max.dim", "min.dim")
def _lower_extremum(call: AtenCall) -> tuple[Value, ...] | None:
    x = call.value("self")
    if not x.type.rank or x.type.dtype is DType.BOOL:
        return None
    axis, keepdim = call["dim"] % x.type.rank, call["keepdim"]
    value, index = (ReduceMax, ArgMax) if call.target == "max.dim" else (ReduceMin, ArgMin)
    return call.emit(value((axis,), keepdim), x), call.emit(index(axis, keepdim), x)


@lowers("argmax.default", "argmin.default")
def _lower_index_of_extremum(call: AtenCall) -> Value | None:
    x, op = call.value("self"), ArgMax if call.target == "argmax.default" else ArgMin
    if not x.type.rank or (call["dim"] is None and call["keepdim"]):
        return None
    if call["dim"] is None:
        return call.emit(op(0), call.emit(Reshape((x.type.numel,)), x))
    return call.emit(op(call["dim"] % x.type.rank, call["keepdim"]), x)
