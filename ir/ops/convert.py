"""Conversion of element types, and torch's promotion rules for operands of several types.

Integers and booleans are converted to floats if another operand is a float, booleans to integers if another operand
is an integer. A number that is not a tensor decides the type only if its kind is higher than that of all tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, lowers, operator
from .channels import Axes, CouplingCall

_Operand = Value | int | float | bool


@operator("cast")
@dataclass(frozen=True)
class Cast(Op):
    """The same values in element type `dtype`, named as in a type: "f32", "i64", "bool", ..."""

    dtype: str = "f32"

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if self.dtype not in {dtype.value for dtype in DType} or x.is_quantized:
            raise ShapeError(f"{x.dtype.value} cannot be converted to {self.dtype!r}")
        return (replace(x, dtype=DType(self.dtype)),)

    def reference(self, x: Tensor) -> Tensor:
        return x.to(DType(self.dtype).torch)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)


def promoted(a: TensorType, b: TensorType) -> DType:
    """Element type of a result of both, as torch promotes it: a scalar takes the type of a tensor of the same kind."""
    if a.dtype is b.dtype:
        return a.dtype
    left, right = (torch.empty((1,) * min(t.rank, 1), dtype=t.dtype.torch, device="meta") for t in (a, b))
    return DType.of(torch.result_type(left, right))


def promoted_operands(call: AtenCall, *names: str, divided: bool = False) -> list[Value] | None:
    """The operands in the element type in which torch computes; numbers become constants without dimensions.

    Floats of several types stay unchanged, because torch rounds their results in special ways. Integers that are
    `divided` become floats. None if all are numbers, or if a constant could change the result: torch computes in half
    precision with more digits of a number than a constant has.
    """
    operands = [call.operand_or_scalar(name) for name in names]
    values = [v for v in operands if isinstance(v, Value)]
    if not values:
        return None
    if len(values) == len(operands) and all(v.type.dtype.is_floating for v in values):
        return values
    dtype = _common(operands)
    if divided and not dtype.torch.is_floating_point and not dtype.torch.is_complex:
        dtype = DType.F32
    found = []
    for operand in operands:
        if isinstance(operand, Value):
            found.append(converted(call, operand, dtype))
        elif scalar_fits(operand, dtype):
            found.append(call.constant("scalar", torch.tensor(operand, dtype=dtype.torch)))
        else:
            return None
    return found


def _common(operands: Sequence[_Operand]) -> DType:
    """The type that torch promotes all of them to."""
    examples = [_example(operand) for operand in operands]
    first, *others = examples
    for other in others:
        dtype = torch.result_type(first, other)
        first = torch.empty((1,), dtype=dtype, device="meta")
    assert isinstance(first, Tensor)
    return DType.of(first.dtype)


def _example(operand: _Operand) -> Tensor | int | float | bool:
    if not isinstance(operand, Value):
        return operand
    shape = (1,) * min(operand.type.rank, 1)
    return torch.empty(shape, dtype=operand.type.dtype.torch, device="meta")


def converted(call: AtenCall, value: Value, dtype: DType) -> Value:
    """The value in another element type; a constant is converted immediately."""
    if value.type.dtype is dtype:
        return value
    tensor = call.constant_tensor(value)
    if tensor is not None:
        return call.constant(value.name, tensor.to(dtype.torch))
    return call.emit(Cast(dtype.value), value)


def scalar_fits(number: int | float | bool, dtype: DType) -> bool:
    """True if torch computes the same with `number` as with a constant of `dtype`.

    In f32 and f64 torch rounds the number to the element type; in half precision it keeps more digits.
    """
    if dtype in (DType.F32, DType.F64):
        return True
    if dtype.is_floating:
        return torch.tensor(number, dtype=dtype.torch).item() == number
    if dtype is DType.BOOL or not isinstance(number, int) or isinstance(number, bool):
        return False
    limits = torch.iinfo(dtype.torch) if dtype not in (DType.C64, DType.C128) else None
    return limits is not None and limits.min <= number <= limits.max


@lowers("to.device")
def _lower_move(call: AtenCall) -> Value | None:
    """The IR has no devices; a move on the CPU changes at most the element type."""
    x, dtype = call.value("self"), DType.of(call["dtype"])
    if torch.device(call["device"]).type != "cpu" or call["memory_format"] not in (
        None,
        torch.preserve_format,
    ):
        return None
    return x if dtype is x.type.dtype else call.emit(Cast(dtype.value), x)


@lowers("to.dtype", "_to_copy.default", "type_as.default", "to.other")
def _lower_cast(call: AtenCall) -> Value | None:
    x = call.value("self")
    if call.target in ("type_as.default", "to.other"):
        dtype = call.value("other").type.dtype
    else:
        dtype = DType.of(call["dtype"]) if call["dtype"] is not None else x.type.dtype
    if call.target != "type_as.default" and call["memory_format"] not in (None, torch.preserve_format):
        return None
    return x if dtype is x.type.dtype else call.emit(Cast(dtype.value), x)
