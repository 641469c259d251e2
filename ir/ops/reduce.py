"""Reductions over dimensions: mean, sum, maximum and minimum. `axes` lists the dimensions, all of them when empty."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..arithmetic import Requant, check_int32, prove_requant, requant
from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall
from .convert import converted
from .facts import Facts
from .quantize import check_moved, per_tensor_types


@dataclass(frozen=True)
class Reduction(Op):
    """Base of the reductions; `keepdim` leaves reduced dimensions in place with size 1."""

    axes: tuple[int, ...] = ()
    keepdim: bool = False

    def reduced(self, x: TensorType) -> tuple[int, ...]:
        """The reduced dimensions, ascending; ShapeError if one does not exist or occurs twice."""
        axes = self.axes or tuple(range(x.rank))
        if len(set(axes)) != len(axes) or not all(0 <= axis < x.rank for axis in axes):
            raise ShapeError(f"{self.axes} are not dimensions of {x.shape}")
        return tuple(sorted(axes))

    def result_shape(self, x: TensorType) -> tuple[int, ...]:
        """Sizes of the result."""
        gone = self.reduced(x)
        sizes = [1 if axis in gone else size for axis, size in enumerate(x.shape)]
        return tuple(size for axis, size in enumerate(sizes) if self.keepdim or axis not in gone)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return self.operand(operands, "x").shape == outputs[0].shape

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        gone = self.reduced(call.type("x"))
        self.couple_reduced(call, tuple(x[axis] for axis in gone))
        kept = [call.fixed(1)[0] if axis in gone else own for axis, own in enumerate(x)]
        return (tuple(own for axis, own in enumerate(kept) if self.keepdim or axis not in gone),)

    @abstractmethod
    def couple_reduced(self, call: CouplingCall, axes: Axes) -> None:
        """Declares the coupling of reduced dimensions."""


@dataclass(frozen=True)
class LinearReduction(Reduction):
    """Base of mean and sum, which share the integer form `requant(sum(x - zero_point))`."""

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), homogeneous=True)

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, x)
        return (TensorType(self.result_shape(x), x.real().dtype),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        (x, *_), (qx, _) = operands, per_tensor_types(self.operand(operands, "x"), outputs[0])
        assert x is not None
        elements = x.numel // max(outputs[0].numel, 1)
        prove_requant(qx.reach * elements, self.fixed_point(x, outputs[0])[0])

    def integer(self, call: IntegerCall) -> Tensor:
        x, (_, qy) = call.operand("x"), per_tensor_types(call.type("x"), call.output)
        step, zero = self.fixed_point(call.type("x"), call.output)
        axes = self.axes or tuple(range(x.ndim))
        acc = (x - zero).sum(axes, keepdim=self.keepdim) if x.ndim else x - zero
        y = requant(check_int32(acc, "a sum"), step.multiplier, step.shift)
        return (y + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def fixed_point(self, x: TensorType | None, output: TensorType) -> tuple[Requant, int]:
        """Requantization of the sum of centred integers, and the operand's zero point."""
        qx, qy = per_tensor_types(x, output)
        assert x is not None
        return Requant.of(qx.scale[0] / qy.scale[0] / self.divisor(x)), qx.zero_point[0]

    @abstractmethod
    def divisor(self, x: TensorType) -> int:
        """Divisor of the sum."""


@operator("mean")
@dataclass(frozen=True)
class Mean(LinearReduction):
    """Arithmetic mean over `axes`; over all spatial dimensions it is global average pooling."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.mean(x, self.axes or None, self.keepdim)

    def couple_reduced(self, call: CouplingCall, axes: Axes) -> None:
        call.pool(*axes)

    def divisor(self, x: TensorType) -> int:
        return max(1, prod(x.shape[axis] for axis in self.reduced(x)))


@operator("sum")
@dataclass(frozen=True)
class Sum(LinearReduction):
    """Sum over `axes`; of floats, or of i64."""

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.dtype is DType.I64:
            return (TensorType(self.result_shape(x), x.dtype),)
        return super().infer(x)

    def reference(self, x: Tensor) -> Tensor:
        return torch.sum(x, self.axes or None, self.keepdim)

    def couple_reduced(self, call: CouplingCall, axes: Axes) -> None:
        """Declares that a removed channel contributes nothing to the sum."""
        call.sum_over(*axes)

    def divisor(self, x: TensorType) -> int:
        return 1


@dataclass(frozen=True)
class Extremum(Reduction):
    """Base of the reductions that return one of the elements; for booleans the largest is `any`, the smallest `all`."""

    quantized = Quantized.MOVE

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        if x.dtype in (DType.C64, DType.C128) or any(x.shape[axis] == 0 for axis in self.reduced(x)):
            raise ShapeError(f"{x.shape} of {x.dtype.value} has no extremum along {self.axes}")
        return (x.with_shape(self.result_shape(x)),)

    def couple_reduced(self, call: CouplingCall, axes: Axes) -> None:
        call.fix(
            *axes,
            why=f"its {'largest' if isinstance(self, ReduceMax) else 'smallest'} element over it is the result",
        )


@operator("reduce_max")
@dataclass(frozen=True)
class ReduceMax(Extremum):
    """Largest element over `axes`; over all spatial dimensions it is global max pooling."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.amax(x, self.axes, self.keepdim)


@operator("reduce_min")
@dataclass(frozen=True)
class ReduceMin(Extremum):
    """Smallest element over `axes`."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.amin(x, self.axes, self.keepdim)


def positive_axes(listed: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Dimensions counted from the front, ascending; () means all of them, as in torch."""
    if listed is None:
        return ()
    axes = [listed] if isinstance(listed, int) else listed
    return tuple(sorted(axis % rank for axis in axes)) if rank else ()


@lowers("mean.default", "mean.dim")
def _lower_mean(call: AtenCall) -> Value | None:
    return _lower_linear_reduction(call, Mean)


@lowers("sum.default", "sum.dim_IntList")
def _lower_sum(call: AtenCall) -> Value | None:
    return _lower_linear_reduction(call, Sum)


def _lower_linear_reduction(call: AtenCall, op: type[Mean | Sum]) -> Value | None:
    x, dtype = call.value("self"), call["dtype"]
    if dtype is not None:
        x = converted(call, x, DType.of(dtype))
    elif op is Sum and not x.type.dtype.is_floating and x.type.dtype not in (DType.C64, DType.C128):
        x = converted(call, x, DType.I64)
    if not x.type.dtype.is_floating and x.type.dtype is not DType.I64:
        return None
    if call.target.endswith(".default"):
        return call.emit(op(), x)
    return call.emit(op(positive_axes(call["dim"], x.type.rank), call["keepdim"]), x)


_EXTREMA: dict[str, type[Extremum]] = {
    "amax.default": ReduceMax,
    "amin.default": ReduceMin,
    "max.default": ReduceMax,
    "min.default": ReduceMin,
    "any.default": ReduceMax,
    "any.dim": ReduceMax,
    "any.dims": ReduceMax,
    "all.default": ReduceMin,
    "all.dim": ReduceMin,
    "all.dims": ReduceMin,
}


@lowers(*_EXTREMA)
def _lower_extremum(call: AtenCall) -> Value | None:
    x, name = call.value("self"), call.target.partition(".")[0]
    if name in ("any", "all"):
        x = converted(call, x, DType.BOOL)
    if not x.type.rank:
        return x
    if name in ("max", "min") or call.target in ("any.default", "all.default"):
        return call.emit(_EXTREMA[call.target](), x)
    return call.emit(_EXTREMA[call.target](positive_axes(call["dim"], x.type.rank), call["keepdim"]), x)
