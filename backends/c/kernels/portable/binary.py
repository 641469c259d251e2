"""Arithmetic on two operands in portable C, with broadcasting; any layouts."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir import DType
from .....ir.ops.accumulate import clamp_bounds
from .....ir.ops.binary import Binary, requant_of_product, rescale_of_sum
from .....ir.ops.magnitude import Magnitude, MagnitudeForm
from ...plan.layout import Layout, arranged, contiguous
from ...write.literal import c_type
from ..base import Offers, Operand, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, broadcast_strides, nest
from ..rounding import clamped, rescaled, saturated, signed

_OPERANDS = ("a", "b")
_PLAIN = {DType.F32, DType.I32, DType.I64}
_SIGNS = {"add": 1, "sub": -1}
_OPERATIONS = {"add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}"}
_OPERATIONS |= {"maximum": "fxp_larger({}, {})", "minimum": "fxp_smaller({}, {})"}
_OPERATIONS |= {
    "remainder": "fxp_floor_remainder(fmodf({0}, {1}), {1})",
    "floor_divide": "rintf(fxp_floor_quotient({0}, {1}, fmodf({0}, {1})))",
}
_OPERATIONS["magnitude"] = "sqrtf({0} * {0} + {1} * {1})"
_OPERATIONS |= {"fmod": "fmodf({}, {})", "power": "powf({}, {})", "atan2": "atan2f({}, {})"}
_OF_INTEGERS = {  # expressions that differ from those on floats
    "maximum": "{0} > {1} ? {0} : {1}",
    "minimum": "{0} < {1} ? {0} : {1}",
    "remainder": "fxp_integer_remainder({}, {})",
    "floor_divide": "fxp_integer_floor_divide({}, {})",
    "fmod": "{1} == 0 || {1} == -1 ? 0 : {0} % {1}",
}
_FLOAT_ONLY = {"div", "power", "atan2", "magnitude"}
_LIBM = {
    "remainder": 60.0,
    "floor_divide": 80.0,
    "fmod": 60.0,
    "power": 200.0,
    "atan2": 150.0,
    "magnitude": 10.0,
}
_TITLES = {"add": "Sum", "sub": "Difference", "mul": "Product", "div": "Quotient"}


@dataclass(frozen=True)
class BinaryContext:
    """Template context: loops, index expressions of a, b and the result, and the result's expression."""

    title: str
    nest: Nest
    value: str


@kernel(*_OPERATIONS)
def portable(site: Site) -> Offers:
    """One element after the other, in the memory order of the larger operand."""
    kinds = {site.type("a").dtype, site.type("b").dtype, site.output.dtype}
    plain = {DType.F32} if site.node.op.name in _FLOAT_ONLY else _PLAIN
    if not site.is_integer and (len(kinds) > 1 or not kinds <= plain):
        return f"operands of {', '.join(sorted(kind.value for kind in kinds))}"
    shape = site.output.shape
    layout_y = _result_layout(site)
    reads = {operand: operand_layout(site, operand, layout_y) for operand in _OPERANDS}
    strides = [
        broadcast_strides(site.type(operand).shape, layout, shape) for operand, layout in reads.items()
    ]
    loops = nest(shape, layout_y.strides(shape), *strides)
    context = BinaryContext(_title(site), loops, _value(site, f"a[{loops.at[1]}]", f"b[{loops.at[2]}]"))
    libm = _LIBM.get(site.node.op.name, 0.0) if site.output.dtype is DType.F32 else 0.0
    each = 8.0 if not site.is_integer else 45.0 if isinstance(site.node.op, Magnitude) else 12.0
    return offer(
        site,
        "portable/binary.c.j2",
        context,
        Work(libm * site.output.numel, 0.0, each * site.output.numel, 80),
        reads=reads,
        writes=(layout_y,),
        overwrites=tuple(
            site.index(operand)
            for operand, layout in reads.items()
            if layout == layout_y and site.type(operand).shape == shape
        ),
        uses_math=libm > 0,
        variant=site.node.op.name,
    )


def _result_layout(site: Site) -> Layout:
    shape = site.output.shape
    for operand in _OPERANDS:
        layout = site.at_hand(operand)
        if layout is not None and site.type(operand).shape == shape and not layout.border:
            return layout
    for operand in _OPERANDS:
        layout = site.at_hand(operand)
        if layout is not None and len(layout.order) == len(shape) and not layout.border:
            return arranged(shape, layout.order)
    return contiguous(shape)


def operand_layout(site: Site, operand: Operand, like: Layout) -> Layout:
    """Layout of an operand: the available one; for a constant, the layout of the result."""
    shape = site.type(operand).shape
    beside = arranged(shape, like.order) if len(like.order) == len(shape) else contiguous(shape)
    return dense_at_hand(site, operand, otherwise=beside)


def _title(site: Site) -> str:
    name = site.node.op.name
    return f"{_TITLES.get(name, name.capitalize())} of {site.output.numel} elements"


def _value(site: Site, a: str, b: str) -> str:
    op = site.node.op
    assert isinstance(op, Binary)
    if not site.is_integer:
        if site.output.dtype is not DType.F32 and op.name in _OF_INTEGERS:
            return f"({c_type(site.output.dtype)})({_OF_INTEGERS[op.name].format(a, b)})"
        return clamped(_OPERATIONS[op.name].format(a, b), op.clamp)
    low, high = clamp_bounds(op.clamp, site.output_quantization)
    if op.name in _SIGNS:
        rescale = rescale_of_sum(site.type("a"), site.type("b"), site.output, sign=_SIGNS[op.name])
        return saturated(rescaled(rescale, a, b), low, high)
    qa, qb, qy = site.quantization("a"), site.quantization("b"), site.output_quantization
    a, b = (f"({x} - {signed(q.zero_point[0])})" if q.zero_point[0] else x for x, q in ((a, qa), (b, qb)))
    if isinstance(op, Magnitude):
        form = MagnitudeForm.of(qa, qb, qy)
        squares = [f"(uint32_t)({x} * {x}) * {n}u" for x, n in zip((a, b), form.weights, strict=True)]
        step, product = form.step, f"fxp_rounded_root({' + '.join(squares).replace(' * 1u', '')})"
    else:
        step, product = requant_of_product(site.type("a"), site.type("b"), site.output), f"{a} * {b}"
    shifted = f"fxp_shift_left({product}, {step.shift})" if step.shift else product
    return saturated(f"fxp_scale({shifted}, {step.multiplier}, {qy.zero_point[0]})", low, high)
