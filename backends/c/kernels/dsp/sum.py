"""Integer sum and difference on Cortex-M with DSP: y = sat((a * ma + b * mb + c) >> s), four elements at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir import DType
from .....ir.arithmetic import Rescale
from .....ir.ops.accumulate import clamp_bounds
from .....ir.ops.binary import Binary, rescale_of_sum
from ..base import Call, Function, Offer, Offers, Site, Work, kernel, template
from .epilogue import HEADERS


@dataclass(frozen=True)
class SumShape:
    """A weighted sum of two arrays with the same layout, saturated to [low, high]."""

    elements: int
    rescale: Rescale
    low: int = -128
    high: int = 127


def estimate(shape: SumShape) -> Work:
    """The work of the layer, fitted to exact counts."""
    per_element = 7.0 if (shape.low, shape.high) == (-128, 127) else 11.0
    return Work(results=per_element * shape.elements, code_bytes=150)


def function(shape: SumShape) -> Function:
    """The C function `name(a, b, y)`; `y` may be `a` or `b`."""
    parameters = "const int8_t *a, const int8_t *b, int8_t *y"
    return template("dsp/sum.c.j2", _context(shape), parameters, headers=HEADERS)


@kernel("add", "sub")
def weighted_sum(site: Site) -> Offers:
    """A sum of two values of one shape that are available in one layout."""
    op = site.node.op
    assert isinstance(op, Binary)
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    layout = site.at_hand("a")
    if layout is None or layout.border or layout != site.at_hand("b"):
        return "the DSP sum supports two values of the same layout"
    types = (site.type("a"), site.type("b"), site.output)
    if not site.is_integer or any(t.dtype is not DType.I8 or t.shape != types[0].shape for t in types):
        return "the DSP sum supports int8 of one shape"
    low, high = clamp_bounds(op.clamp, site.output_quantization)
    sign = 1 if op.name == "add" else -1
    shape = SumShape(site.output.numel, rescale_of_sum(*types, sign=sign), low, high)
    made = Call(function(shape), (0, 1))
    return Offer.of_calls("sum_dsp", (layout, layout), (layout,), estimate(shape), made, overwrites=(0, 1))


@dataclass(frozen=True)
class _Context:
    """Template context; factors are 16-bit lanes."""

    title: str
    factor_a: int
    factor_b: int
    offset: int
    shift: int
    clamped: bool
    low: int
    high: int
    words: int
    rest: int


def _context(shape: SumShape) -> _Context:
    factor_a, factor_b = (multiplier & 0xFFFF for multiplier in shape.rescale.multipliers)
    return _Context(
        title=f"Weighted sum of {shape.elements} elements",
        factor_a=factor_a,
        factor_b=factor_b,
        offset=shape.rescale.offset,
        shift=shape.rescale.shift,
        clamped=(shape.low, shape.high) != (-128, 127),
        low=shape.low,
        high=shape.high,
        words=shape.elements // 4,
        rest=shape.elements % 4,
    )
