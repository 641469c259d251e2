"""Enlargement and reduction of the spatial dimensions, to a `size` or by a `factor` (exactly one is given).

Nearest neighbours are data movement. Linear interpolation over one or two dimensions mixes 2 or 4 neighbours:

    y = sum_ij u_i v_j x_ij,   weights rounded to 11 bits so that each pair sums to 2^11

On integers the sum is computed over x - zx and requantized once, by sx / sy / 2^22 (2^11 over one dimension); with
equal scales on both sides this is (sum + 2^21) >> 22. Sums that could exceed int32 (operands of 16 bits over two
dimensions) have 48 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import INT32_MAX, WIDEST_SUM, Requant, requant, requant_sum
from ..errors import OverflowBoundError, ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts
from .quantize import check_moved, per_tensor_types

WEIGHT_BITS = 11


@dataclass(frozen=True)
class Resize(Op):
    """Base: size of the result. Operand x [n, c, ...]."""

    size: tuple[int, ...] = ()
    factor: tuple[float, ...] = ()

    def result_shape(self, x: TensorType, *, ranks: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the result; `ranks` lists the numbers of spatial dimensions for which the operator is defined."""
        given = len(self.size) or len(self.factor)
        if bool(self.size) == bool(self.factor) or given not in ranks or x.rank != given + 2:
            raise ShapeError(f"size {self.size} and factor {self.factor} for an input {x.shape}")
        sizes = self.size or tuple(floor(n * f) for n, f in zip(x.shape[2:], self.factor, strict=True))
        if min(*sizes, *x.shape[1:]) < 1:
            raise ShapeError(f"{x.shape} cannot be resized to {sizes}")
        return (*x.shape[:2], *sizes)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return self.operand(operands, "x").shape == outputs[0].shape and all(
            factor == 1 for factor in self.factor
        )

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(*x[2:], why="it is resized")
        return ((*x[:2], *call.fixed(*call.outputs[0].shape[2:])),)

    def _interpolate(self, x: Tensor, mode: str, align_corners: bool | None) -> Tensor:
        return functional.interpolate(
            x,
            size=list(self.size) or None,
            scale_factor=list(self.factor) or None,
            mode=mode,
            align_corners=align_corners,
        )


@operator("resize_nearest")
@dataclass(frozen=True)
class ResizeNearest(Resize):
    """Each element is the nearest one of the operand, as in `interpolate(mode="nearest")`."""

    quantized = Quantized.MOVE

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        if x.dtype.torch.is_complex:
            raise ShapeError("complex values are not resized")
        return (x.with_shape(self.result_shape(x, ranks=(1, 2, 3))),)

    def reference(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():  # torch resizes floats only; float64 holds every integer of 32 bits
            return self._interpolate(x.double(), "nearest", None).to(x.dtype)
        return self._interpolate(x, "nearest", None)

    def sources(self, x: TensorType) -> tuple[tuple[int, ...], ...]:
        """For each spatial dimension, the operand's index for each index of the result."""
        found = []
        for axis, n in enumerate(x.shape[2:]):
            line = ResizeNearest(self.size[axis : axis + 1], self.factor[axis : axis + 1])
            found.append(tuple(int(i) for i in line.reference(torch.arange(n).view(1, 1, n)).flatten()))
        return tuple(found)


@operator("resize_linear")
@dataclass(frozen=True)
class ResizeLinear(Resize):
    """Linear or bilinear interpolation; `align_corners` maps corner elements onto each other exactly."""

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), homogeneous=True)

    align_corners: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, x)
        return (x.real().with_shape(self.result_shape(x, ranks=(1, 2))),)

    def reference(self, x: Tensor) -> Tensor:
        return self._interpolate(x, "linear" if x.ndim == 3 else "bilinear", self.align_corners)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        per_tensor_types(self.operand(operands, "x"), outputs[0])
        bound = self._largest_sum(self.operand(operands, "x"), outputs[0])
        if bound > WIDEST_SUM:
            raise OverflowBoundError(f"an accumulator can reach {bound:,}, beyond 48 bits")

    def is_wide(self, x: TensorType, output: TensorType) -> bool:
        """True if sums need int64, as for 16-bit operands over two dimensions."""
        return self._largest_sum(x, output) > INT32_MAX

    def _largest_sum(self, x: TensorType, output: TensorType) -> int:
        (qx,) = per_tensor_types(x)
        return qx.reach << WEIGHT_BITS * (x.rank - 2) << self.fixed_point(x, output).shift

    def integer(self, call: IntegerCall) -> Tensor:
        type = call.type("x")
        qx, qy = per_tensor_types(type, call.output)
        assert type is not None
        acc = call.operand("x") - qx.zero_point[0]
        for axis, taps in enumerate(self.taps(type), start=2):
            low, high, weight = (torch.tensor(column) for column in zip(*taps, strict=True))
            weight = weight.view([-1 if i == axis else 1 for i in range(acc.ndim)])
            acc = (
                acc.index_select(axis, low) * ((1 << WEIGHT_BITS) - weight)
                + acc.index_select(axis, high) * weight
            )
        step = self.fixed_point(type, call.output)
        scaled = requant_sum if self.is_wide(type, call.output) else requant
        y = scaled(acc, step.multiplier, step.shift)
        return (y + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def fixed_point(self, x: TensorType, output: TensorType) -> Requant:
        """Requantization of the weighted sum of centred integers."""
        qx, qy = per_tensor_types(x, output)
        return Requant.of(qx.scale[0] / qy.scale[0] / (1 << WEIGHT_BITS * (x.rank - 2)))

    def taps(self, x: TensorType) -> tuple[tuple[tuple[int, int, int], ...], ...]:
        """For each spatial dimension and index of the result: two neighbours, and the 11-bit weight of the second."""
        return tuple(self._line(axis, n) for axis, n in enumerate(x.shape[2:]))

    def positions(self, x: TensorType) -> tuple[tuple[float, ...], ...]:
        """For each spatial dimension and index of the result: its position between the operand's elements."""
        return tuple(
            tuple(min(place, n - 1) for place in self._positions(axis, n, len(taps)))
            for axis, (n, taps) in enumerate(zip(x.shape[2:], self.taps(x), strict=True))
        )

    def _line(self, axis: int, n: int) -> tuple[tuple[int, int, int], ...]:
        count = self.size[axis] if self.size else floor(n * self.factor[axis])
        return tuple(self._tap(position, n) for position in self._positions(axis, n, count))

    def _positions(self, axis: int, n: int, count: int) -> list[float]:
        if self.align_corners:
            return [i * (n - 1) / (count - 1) if count > 1 else 0.0 for i in range(count)]
        ratio = 1 / self.factor[axis] if self.factor else n / count
        return [max((i + 0.5) * ratio - 0.5, 0.0) for i in range(count)]

    @staticmethod
    def _tap(position: float, n: int) -> tuple[int, int, int]:
        low = min(int(position), n - 1)
        weight = round(min(position - low, 1.0) * (1 << WEIGHT_BITS))
        return low, min(low + 1, n - 1), weight


@lowers("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec")
def _lower_nearest(call: AtenCall) -> Value | None:
    x, size, factor = call.value("input"), call["output_size"], call["scale_factors"]
    if not x.type.dtype.is_floating:
        return None
    return call.emit(ResizeNearest(tuple(size or ()), tuple(() if size else factor)), x)


@lowers("upsample_linear1d.vec", "upsample_bilinear2d.vec")
def _lower_linear(call: AtenCall) -> Value:
    size, factor = call["output_size"], call["scale_factors"]
    op = ResizeLinear(tuple(size or ()), tuple(() if size else factor), call["align_corners"])
    return call.emit(op, call.value("input"))


@lowers("upsample_nearest1d.default", "upsample_nearest2d.default", "upsample_nearest3d.default")
def _lower_nearest_to_size(call: AtenCall) -> Value | None:
    x = call.value("self")
    if not x.type.dtype.is_floating or _has_scales(call, x.type.rank - 2):
        return None
    return call.emit(ResizeNearest(tuple(call["output_size"])), x)


@lowers("upsample_linear1d.default", "upsample_bilinear2d.default")
def _lower_linear_to_size(call: AtenCall) -> Value | None:
    x = call.value("self")
    if _has_scales(call, x.type.rank - 2):
        return None
    return call.emit(ResizeLinear(tuple(call["output_size"]), align_corners=call["align_corners"]), x)


def _has_scales(call: AtenCall, rank: int) -> bool:
    names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[rank]
    return any(call[name] is not None for name in names)
