"""Elementwise arithmetic on two operands that broadcast against each other.

A number in place of an operand becomes a constant without dimensions if that changes no bit of the result.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from ..arithmetic import Requant, Rescale, check_int32, prove_requant, requant
from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .accumulate import Clamp, apply_clamp, clamp_bounds
from .base import AtenCall, IntegerCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall, tie_broadcast
from .convert import promoted, promoted_operands
from .facts import Facts, scales
from .quantize import per_tensor_types


@dataclass(frozen=True)
class Binary(Op):
    """Base: broadcasting, torch's type promotion, and a fused clamp."""

    quantized = Quantized.COMPUTE

    arithmetic: ClassVar[Facts] = Facts()
    """Facts of the result before the clamp."""

    clamp: Clamp = None

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        a, b = a.real(), b.real()
        dtype = promoted(a, b)
        if not dtype.is_floating and (self.clamp is not None or dtype is DType.BOOL):
            raise ShapeError(f"{self.name} of {a.dtype.value} and {b.dtype.value} is not defined")
        return (TensorType(broadcast(a.shape, b.shape), dtype),)

    @property
    def facts(self) -> Facts:
        known = self.arithmetic
        if self.clamp is None:
            return known
        homogeneous = known.homogeneous and scales(self.clamp)
        poles = known.poles if -inf in self.clamp or inf in self.clamp else ()
        return Facts(
            commutative=known.commutative,
            monotone=known.monotone,
            piecewise_linear=known.piecewise_linear,
            homogeneous=homogeneous,
            poles=poles,
            bounds=self.clamp,
        )

    @abstractmethod
    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        """The result before the clamp."""

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return apply_clamp(self.combine(a, b), self.clamp)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        if any(q.bits > 16 for q in per_tensor_types(*operands, outputs[0])):
            raise ShapeError(f"{self.name} computes on values of at most 16 bits")

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (tie_broadcast(call, call.outputs[0].shape, call.operand("a"), call.operand("b")),)


@operator("add")
@dataclass(frozen=True)
class Add(Binary):
    """clamp(a + b)."""

    arithmetic = Facts(
        commutative=True,
        monotone=("a", "b"),
        piecewise_linear=(("a", "b"),),
        homogeneous=True,
        neutral={"a": 0.0, "b": 0.0},
    )

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        super().check_quantized(operands, outputs)
        a, b = operands
        rescale_of_sum(a, b, outputs[0], sign=1)

    def integer(self, call: IntegerCall) -> Tensor:
        return _weighted_sum(call, self.clamp, sign=1)


@operator("sub")
@dataclass(frozen=True)
class Sub(Binary):
    """clamp(a - b)."""

    arithmetic = Facts(monotone=("a",), piecewise_linear=(("a", "b"),), homogeneous=True, neutral={"b": 0.0})

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        super().check_quantized(operands, outputs)
        a, b = operands
        rescale_of_sum(a, b, outputs[0], sign=-1)

    def integer(self, call: IntegerCall) -> Tensor:
        return _weighted_sum(call, self.clamp, sign=-1)


@operator("mul")
@dataclass(frozen=True)
class Mul(Binary):
    """clamp(a * b)."""

    arithmetic = Facts(commutative=True, piecewise_linear=(("a",), ("b",)), neutral={"a": 1.0, "b": 1.0})

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        super().check_quantized(operands, outputs)
        (a, b), (qa, qb) = operands, per_tensor_types(*operands)
        prove_requant(qa.reach * qb.reach, requant_of_product(a, b, outputs[0]))

    def integer(self, call: IntegerCall) -> Tensor:
        qa, qb, qy = per_tensor_types(*call.types, call.output)
        low, high = clamp_bounds(self.clamp, qy)
        step = requant_of_product(call.type("a"), call.type("b"), call.output)
        product = (call.operand("a") - qa.zero_point[0]) * (call.operand("b") - qb.zero_point[0])
        y = requant(check_int32(product, "a product"), step.multiplier, step.shift)
        return (y + qy.zero_point[0]).clamp(low, high)


@dataclass(frozen=True)
class FloatBinary(Binary):
    """Base of the operators that compute only on reals."""

    quantized = Quantized.NEVER

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        raise ShapeError(f"{self.name} does not compute on quantized values")


@operator("div")
@dataclass(frozen=True)
class Div(FloatBinary):
    """clamp(a / b), of floating point operands."""

    arithmetic = Facts(piecewise_linear=(("a",),), poles=("b",), neutral={"b": 1.0})

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        (y,) = super().infer(a, b)
        if not y.dtype.is_floating:
            raise ShapeError(f"div takes floating point operands, not {a.dtype.value} and {b.dtype.value}")
        return (y,)

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b


@dataclass(frozen=True)
class Ordering(FloatBinary):
    """Base of the operators that compare: complex numbers have no order."""

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        (y,) = super().infer(a, b)
        if y.dtype.torch.is_complex:
            raise ShapeError(f"{self.name} does not order {y.dtype.value}")
        return (y,)


@operator("maximum")
@dataclass(frozen=True)
class Maximum(Ordering):
    """The larger of a and b."""

    arithmetic = Facts(
        commutative=True,
        monotone=("a", "b"),
        piecewise_linear=(("a", "b"),),
        homogeneous=True,
        selects=True,
    )

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)


@operator("minimum")
@dataclass(frozen=True)
class Minimum(Ordering):
    """The smaller of a and b."""

    arithmetic = Facts(
        commutative=True,
        monotone=("a", "b"),
        piecewise_linear=(("a", "b"),),
        homogeneous=True,
        selects=True,
    )

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b)


@operator("remainder")
@dataclass(frozen=True)
class Remainder(Ordering):
    """a - b * floor(a / b): the remainder with the sign of b; a % b of Python."""

    arithmetic = Facts(piecewise_linear=(("a", "b"),), homogeneous=True)

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.remainder(a, b)


@operator("fmod")
@dataclass(frozen=True)
class Fmod(Ordering):
    """a - b * trunc(a / b): the remainder with the sign of a; fmod of C."""

    arithmetic = Facts(piecewise_linear=(("a", "b"),), homogeneous=True)

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.fmod(a, b)


@operator("floor_divide")
@dataclass(frozen=True)
class FloorDivide(Ordering):
    """floor(a / b): a // b of Python."""

    arithmetic = Facts(piecewise_linear=(("a", "b"),), poles=("b",), whole=True)

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.floor_divide(a, b)


@dataclass(frozen=True)
class OfReals(Ordering):
    """Base of the operators that are defined only on floating point operands."""

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        (y,) = super().infer(a, b)
        if not y.dtype.is_floating:
            raise ShapeError(f"{self.name} takes floating point operands, not {y.dtype.value}")
        return (y,)


@operator("power")
@dataclass(frozen=True)
class Power(OfReals):
    """a to the power b."""

    arithmetic = Facts(poles=("a",))

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.pow(a, b)


@operator("atan2")
@dataclass(frozen=True)
class Atan2(OfReals):
    """Angle of the point (b, a) in radians, in all four quadrants."""

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.atan2(a, b)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that operands of these shapes broadcast to; ShapeError if they do not."""
    sizes = []
    for column in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        different = {n for n in column if n != 1} or {1}
        if len(different) > 1:
            raise ShapeError(f"{' and '.join(map(str, shapes))} do not broadcast")
        sizes.append(different.pop())
    return tuple(reversed(sizes))


def rescale_of_sum(a: TensorType | None, b: TensorType | None, output: TensorType, *, sign: int) -> Rescale:
    """Integer form of a + sign * b in the result's encoding."""
    qa, qb, qy = per_tensor_types(a, b, output)
    factors = (qa.scale[0] / qy.scale[0], sign * qb.scale[0] / qy.scale[0])
    zero_points = (qa.zero_point[0], qb.zero_point[0])
    return Rescale.of(factors, zero_points, qy.zero_point[0], bits=max(qa.bits, qb.bits))


def requant_of_product(a: TensorType | None, b: TensorType | None, output: TensorType) -> Requant:
    """Integer form of a * b in the result's encoding."""
    qa, qb, qy = per_tensor_types(a, b, output)
    return Requant.of(qa.scale[0] * qb.scale[0] / qy.scale[0])


def _weighted_sum(call: IntegerCall, clamp: Clamp, *, sign: int) -> Tensor:
    assert call.output.quantization is not None
    low, high = clamp_bounds(clamp, call.output.quantization)
    operands = [t.expand(call.output.shape) for t in (call.operand("a"), call.operand("b"))]
    return (
        rescale_of_sum(call.type("a"), call.type("b"), call.output, sign=sign)
        .apply(*operands)
        .clamp(low, high)
    )


_OPS: dict[str, type[Binary]] = {
    "add.Tensor": Add,
    "add.Scalar": Add,
    "sub.Tensor": Sub,
    "sub.Scalar": Sub,
    "mul.Tensor": Mul,
    "mul.Scalar": Mul,
    "div.Tensor": Div,
    "div.Scalar": Div,
    "maximum.default": Maximum,
    "minimum.default": Minimum,
    "max.other": Maximum,
    "min.other": Minimum,
    "remainder.Tensor": Remainder,
    "remainder.Scalar": Remainder,
    "fmod.Tensor": Fmod,
    "fmod.Scalar": Fmod,
    "floor_divide.default": FloorDivide,
    "pow.Tensor_Tensor": Power,
    "atan2.default": Atan2,
}


@lowers(*_OPS)
def _lower_binary(call: AtenCall) -> Value | None:
    op = _OPS[call.target]
    if op in (Add, Sub) and call["alpha"] != 1:
        return None
    return _emit(call, op(), "self", "exponent" if op is Power else "other")


@lowers("rsub.Scalar", "rsub.Tensor")
def _lower_reversed_difference(call: AtenCall) -> Value | None:
    return _emit(call, Sub(), "other", "self") if call["alpha"] == 1 else None


@lowers("pow.Scalar")
def _lower_power_of_number(call: AtenCall) -> Value | None:
    return _emit(call, Power(), "self", "exponent")


def _emit(call: AtenCall, op: Binary, *names: str) -> Value | None:
    values = promoted_operands(call, *names, divided=isinstance(op, Div))
    if values is None or any(v.type.dtype is DType.BOOL for v in values):
        return None
    if isinstance(op, Div | OfReals) and not all(v.type.dtype.is_floating for v in values):
        return None
    return call.emit(op, *values)
