"""Reductions in portable C: sum, mean, maximum and minimum over any dimensions, in any layout."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir import DType
from .....ir.ops.reduce import LinearReduction, ReduceMax, Reduction
from ...plan.layout import Layout, arranged, contiguous
from ...write.literal import c_type
from ..base import Offers, Site, Work, kernel, offer
from ..nest import Nest, nest
from ..rounding import saturated, signed


@dataclass(frozen=True)
class ReduceContext:
    """Template context: loops over results and over reduced elements, and the C expressions."""

    title: str
    outer: Nest
    inner: Nest
    type: str
    start: str
    step: str
    value: str


@kernel("sum", "mean", "reduce_max", "reduce_min")
def portable(site: Site) -> Offers:
    """One result after the other."""
    op = site.node.op
    assert isinstance(op, Reduction)
    x = site.type("x")
    gone = op.reduced(x)
    kept = [dim for dim in range(x.rank) if dim not in gone]
    layout = site.at_hand("x") or contiguous(x.shape)
    layout_y = _result_layout(site, layout, kept, keepdim=op.keepdim)
    strides = layout.strides(x.shape)
    strides_y = layout_y.strides(site.output.shape)
    of_kept = [strides_y[dim] for dim in kept] if op.keepdim else list(strides_y)
    outer = nest([x.shape[d] for d in kept], of_kept, [strides[d] for d in kept])
    inner = nest(
        [x.shape[d] for d in gone],
        [strides[d] for d in gone],
        prefix="j",
        depth=outer.inside,
        offsets=(layout.offset(x.shape),),
    )
    context = _context(site, op, outer, inner)
    return offer(
        site,
        "portable/reduce.c.j2",
        context,
        Work(7.0 * x.numel, 0.0, 25.0 * site.output.numel, 70),
        reads={"x": layout},
        writes=(layout_y,),
        uses_math="INFINITY" in context.start,
        variant=op.name,
    )


def _result_layout(site: Site, layout: Layout, kept: list[int], *, keepdim: bool) -> Layout:
    if keepdim:
        return arranged(site.output.shape, layout.order)
    return arranged(site.output.shape, tuple(kept.index(dim) for dim in layout.order if dim in kept))


def _context(site: Site, op: Reduction, outer: Nest, inner: Nest) -> ReduceContext:
    title = f"{op.name} of {site.type('x').numel} elements to {site.output.numel}"
    at = f"x[{outer.at[1]} + {inner.at[0]}]"
    if not isinstance(op, LinearReduction):
        return ReduceContext(title, outer, inner, *_extremum(op, site.output.dtype, at), "acc")
    if site.output.dtype is DType.I64:
        return ReduceContext(title, outer, inner, "int64_t", "0", f"acc += {at}", "acc")
    if not site.is_integer:
        count = op.divisor(site.type("x"))
        value = "acc" if count == 1 else f"acc / {count}.0f"
        return ReduceContext(title, outer, inner, "float", "0.0f", f"acc += {at}", value)
    step, zero = op.fixed_point(site.type("x"), site.output)
    qy = site.output_quantization
    shifted = f"fxp_shift_left(acc, {step.shift})" if step.shift else "acc"
    value = saturated(f"fxp_scale({shifted}, {step.multiplier}, {qy.zero_point[0]})", qy.qmin, qy.qmax)
    return ReduceContext(title, outer, inner, "int32_t", "0", f"acc += {at} - {signed(zero)}", value)


def _extremum(op: Reduction, dtype: DType, at: str) -> tuple[str, str, str]:
    """Type, first value and step of the search for the largest or smallest element."""
    largest, element = isinstance(op, ReduceMax), c_type(dtype)
    if element == "float":
        better, worst = ("fxp_larger", "-INFINITY") if largest else ("fxp_smaller", "INFINITY")
        return element, worst, f"acc = {better}({at}, acc)"
    limits = element[:-2].upper()
    worst = f"{limits}_MAX" if not largest else "0" if element.startswith("u") else f"{limits}_MIN"
    return element, worst, f"acc = {at} {'>' if largest else '<'} acc ? {at} : acc"
