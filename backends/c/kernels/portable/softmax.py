"""Softmax and its logarithm in portable C, along any dimension: exponentials from tables on integers, libm on float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir import DType
from .....ir.ops.softmax import LogSoftmax, Softmax
from ...plan.layout import contiguous
from ...write.literal import c_type
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, broadcast_strides, nest
from ..rounding import requantized


@dataclass(frozen=True)
class IntegerForm:
    """Types of operand and result, the exponential of an element, and the conversion to a result, as C expressions.

    `finer` is the left shift of the reciprocal of the sum, for results that are multiplied by it.
    """

    x: str
    y: str
    smallest: str
    power: str
    quotient: str
    finer: int | None


@dataclass(frozen=True)
class SoftmaxContext:
    """Template context: loops over rows of `count` elements with stride `step`, each with an operand's `value`.

    `integers` has the part that exists only on integers.
    """

    title: str
    nest: Nest
    count: int
    step: int
    value: str
    integers: IntegerForm | None = None


@dataclass(frozen=True)
class MaskedContext(SoftmaxContext):
    """Additional template context of a masked softmax.

    `kept` is the condition that the mask keeps an element, `counts` that the element counts; `start` is the initial
    value of the sum. In all of them, and in `value`, `none` is 1 in a row without kept elements.
    """

    kept: str = ""
    counts: str = ""
    start: str = ""


@kernel("softmax", "log_softmax")
def portable(site: Site) -> Offers:
    """One row after the other, in place if the operand is not needed any more."""
    op = site.node.op
    assert isinstance(op, (Softmax, LogSoftmax))
    shape = site.output.shape
    layout = site.at_hand("x") or contiguous(shape)
    if layout.border:
        return "the operand has a border"
    reads = {"x": layout}
    strides = [layout.strides(shape)]
    if site.has("keep"):
        reads["keep"] = dense_at_hand(site, "keep")
        strides.append(broadcast_strides(site.type("keep").shape, reads["keep"], shape))
    rows = [dim for dim in range(len(shape)) if dim != op.axis]
    loops = nest([shape[d] for d in rows], *([own[d] for d in rows] for own in strides))
    context = _context(site, op, loops, [own[op.axis] for own in strides])
    name = f"portable/{'masked' if site.has('keep') else op.name}"
    tables: dict[str, AnyArray] = {}
    if site.is_integer:
        assert isinstance(op, Softmax)
        tables["table"] = integer_table(site, op)
    each = 40.0 if site.is_integer else 150.0
    return offer(
        site,
        f"{name}_{'integer' if site.is_integer else 'float'}.c.j2",
        context,
        Work(each * site.output.numel, 0.0, 60.0 * site.output.numel / shape[op.axis], 160),
        reads=reads,
        writes=(layout,),
        tables=tables,
        overwrites=(0,) if site.type("x").dtype is site.output.dtype else (),
        headers=("arithmetic.h", "exponentials.h") if site.is_integer else (),
        uses_math=not site.is_integer,
    )


def _context(site: Site, op: Softmax | LogSoftmax, loops: Nest, steps: list[int]) -> SoftmaxContext:
    count = site.output.shape[op.axis]
    value = f"in[i * {steps[0]}]"
    if not site.has("keep"):
        integers = integer_form(site, op, value) if site.is_integer and isinstance(op, Softmax) else None
        return SoftmaxContext(title(site, op), loops, count, steps[0], value, integers)
    assert isinstance(op, Softmax)
    kept = f"keep[{loops.at[1]} + i * {steps[1]}]"
    counts = kept if op.empty == "zero" else f"({kept} || none)"
    if op.empty == "uniform":
        value = f"(none ? {'0' if site.is_integer else '0.0f'} : {value})"
    zero, one = ("0", "none") if site.is_integer else ("0.0f", "(float)none")
    start = one if op.empty == "zero" else zero
    integers = integer_form(site, op, value) if site.is_integer else None
    return MaskedContext(title(site, op), loops, count, steps[0], value, integers, kept, counts, start)


def title(site: Site, op: Softmax | LogSoftmax) -> str:
    """Description of the function, for its comment."""
    count = site.output.shape[op.axis]
    return f"{op.name} of {site.output.numel // count} rows of {count}"


def integer_table(site: Site, op: Softmax) -> AnyArray:
    """The table of exponentials."""
    return op.table(site.type("x"), site.output).numpy().astype(np.int32)


def integer_form(
    site: Site,
    op: Softmax,
    value: str,
    *,
    narrow_divisor: str = "(uint32_t)sum",
    half: str = "(uint32_t)sum / 2u",
) -> IntegerForm:
    """Template values of a softmax on integers; `value` is the C expression of an element."""
    x, y = site.type("x"), site.output
    power = f"table[largest - {value}]"
    if x.dtype is not DType.I8:
        power = f"fxp_power(table, {requantized(f'(largest - {value})', op.fractions(x), 0)})"
    is_narrow = y.dtype is DType.I8
    quotient = f"((uint32_t)part * {op.multiplier(y)}u + {half}) / {narrow_divisor}"
    scaled = "fxp_scale(fxp_shift_left(part, zeros - 1), reciprocal, 0)"
    return IntegerForm(
        *(c_type(x.dtype), c_type(y.dtype), "INT8_MIN" if x.dtype is DType.I8 else "INT16_MIN", power),
        f"fxp_saturate8((int32_t)({quotient}) - 128)" if is_narrow else f"fxp_saturate16({scaled})",
        None if is_narrow else op.finer(y),
    )
