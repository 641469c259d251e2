"""The last step of the portable kernels that accumulate, as C expressions: bias, residual, activation, rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ....ir.arithmetic import INT32_MAX, Requant, Rescale
from ....ir.ops.accumulate import Clamp, FixedPoint, fixed_point
from ....ir.ops.conv import Conv, ConvTranspose
from ....ir.ops.linear import Linear
from ..write.literal import integer, real
from .base import AnyArray, Site

_SATURATIONS = {
    (-128, 127): "fxp_saturate8",
    (-32768, 32767): "fxp_saturate16",
    (0, 32767): "fxp_saturate_relu16",
}


_fixed_point = lru_cache(maxsize=256)(fixed_point)


def layer_fixed_point(site: Site) -> FixedPoint:
    """Integers of the requantization of an integer layer."""
    op = site.node.op
    assert isinstance(op, Conv | ConvTranspose | Linear)
    residual = site.type("residual") if site.has("residual") else None
    return _fixed_point(site.type("x"), site.type("weight"), site.output, residual=residual, clamp=op.clamp)


@dataclass(frozen=True, slots=True)
class Finish:
    """C expressions over the accumulator `acc`, the channel `c` and the index `at` of the result."""

    start: str
    value: str


def integer_finish(fixed: FixedPoint, *, wide: bool = False) -> Finish:
    """Conversion of an accumulator, int32 or `wide`, to the integers of the result."""
    which = "[c]" if len(fixed.multipliers) > 1 else "[0]"
    accumulator, scale = "acc", "fxp_scale_sum" if wide else "fxp_scale"
    if any(fixed.shifts):
        left = f"acc * (INT64_C(1) << shifts{which})", f"fxp_shift_left(acc, shifts{which})"
        accumulator = left[0] if wide else left[1]
    addend = integer(fixed.zero_point)
    if fixed.residual is not None:
        addend = rescaled(fixed.residual, "residual[at]")
    value = saturated(f"{scale}({accumulator}, multipliers{which}, {addend})", fixed.low, fixed.high)
    return Finish("bias[c]", value)


@dataclass(frozen=True, slots=True)
class RowFinish:
    """The last step as a C function of `acc`, `c` and `at`, and the additional arrays that it needs."""

    value: str
    arrays: tuple[str, ...]
    uses_channel: bool
    uses_place: bool
    residual: str

    @property
    def parameters(self) -> str:
        """The arrays as C parameters."""
        types = {"residual": f"const {self.residual}"}
        return ", ".join(f"{types.get(name, 'const int32_t')} *{name}" for name in self.arrays)

    @property
    def arguments(self) -> str:
        """The arrays as arguments."""
        return ", ".join(self.arrays)


def row_finish(fixed: FixedPoint, *, residual: str, wide: bool = False) -> RowFinish:
    """The last step from an accumulator, as a separate function; `residual` is that operand's C type."""
    value = integer_finish(fixed, wide=wide).value
    arrays = ("multipliers", "shifts", "residual")
    used = tuple(name for name in arrays if f"{name}[" in value)
    return RowFinish(value, used, "[c]" in value, "[at]" in value, residual)


def float_finish(clamp: Clamp, *, bias: bool, residual: bool) -> Finish:
    """Conversion of a float accumulator to the float result."""
    value = "acc + residual[at]" if residual else "acc"
    return Finish("bias[c]" if bias else "0.0f", clamped(value, clamp))


def rescaled(rescale: Rescale, *operands: str) -> str:
    """The weighted sum of operands on one scale, rounded once, before saturation."""
    terms = [f"{x} * {integer(m)}" for x, m in zip(operands, rescale.multipliers, strict=True)]
    return f"(({' + '.join([*terms, integer(rescale.offset)])}) >> {rescale.shift})"


def requantized(acc: str, step: Requant, addend: int, *, wide: bool = False) -> str:
    """The requantization of an accumulator, int32 or `wide`, plus an addend."""
    if wide:
        shifted = f"{acc} * (INT64_C(1) << {step.shift})" if step.shift else acc
        return f"fxp_scale_sum({shifted}, {step.multiplier}, {integer(addend)})"
    shifted = f"fxp_shift_left({acc}, {step.shift})" if step.shift else acc
    return f"fxp_scale({shifted}, {step.multiplier}, {integer(addend)})"


def signed(number: int) -> str:
    """A literal that may follow a minus sign."""
    return integer(number) if number >= 0 or number == -(1 << 31) else f"({number})"


def saturated(expression: str, low: int, high: int) -> str:
    """The expression saturated to int8, int16, or the narrower bounds of a fused activation."""
    if (low, high) in _SATURATIONS:
        return f"{_SATURATIONS[low, high]}({expression})"
    bits = 8 if low >= -128 and high <= 127 else 16
    return f"(int{bits}_t)fxp_clamp({expression}, {integer(low)}, {integer(high)})"


def saturates_at_once(low: int, high: int) -> bool:
    """True if there is an instruction that saturates to these bounds."""
    return (low, high) in _SATURATIONS


def clamped(expression: str, clamp: Clamp) -> str:
    """The float expression within the bounds of a fused activation; NaN stays NaN."""
    if clamp is None:
        return expression
    low, high = clamp
    bounds = [real(bound) if abs(bound) != float("inf") else None for bound in (low, high)]
    match bounds:
        case [None, None]:
            return expression
        case [str(lower), None]:
            return f"fxp_maximum({expression}, {lower})"
        case [None, str(upper)]:
            return f"fxp_minimum({expression}, {upper})"
        case _:
            return f"fxp_minimum(fxp_maximum({expression}, {bounds[0]}), {bounds[1]})"


def scale_tables(fixed: FixedPoint) -> dict[str, AnyArray]:
    """Multipliers, and shifts if there are any."""
    shifts = {"shifts": np.array(fixed.shifts, np.int32)} if any(fixed.shifts) else {}
    return {"multipliers": np.array(fixed.multipliers, np.int32)} | shifts


def folded_bias(site: Site, weight: AnyArray) -> AnyArray:
    """Bias of each output channel (axis 0 of the weight) with -zx * sum(w) folded in: int32 if it fits."""
    sums = weight.astype(np.int64).reshape(len(weight), -1).sum(axis=1)
    offset: AnyArray = site.quantization("x").zero_point[0] * sums
    folded: AnyArray = (site.array("bias").astype(np.int64) if site.has("bias") else 0) - offset
    return folded if np.abs(folded).max(initial=0) > INT32_MAX else folded.astype(np.int32)


def bias_bytes(site: Site, *, wide: bool) -> int:
    """Bytes of the folded bias; it is computed for this only if sums may exceed int32."""
    return folded_bias(site, site.array("weight")).nbytes if wide else 4 * site.type("weight").shape[0]
