"""Softmax of rows of int8 on Cortex-M with DSP: the largest of four elements at a time, the rest as in portable C."""

from __future__ import annotations

from .....ir import DType
from .....ir.ops.softmax import Softmax
from ...plan.layout import contiguous
from ..base import Offers, Site, Work, kernel, offer
from ..nest import nest
from ..portable.softmax import SoftmaxContext, integer_form, integer_table, title
from .epilogue import HEADERS


@kernel("softmax")
def softmax(site: Site) -> Offers:
    """One row after the other, along dimensions whose elements are contiguous."""
    op = site.node.op
    assert isinstance(op, Softmax)
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    if not site.is_integer or site.type("x").dtype is not DType.I8:
        return "the DSP softmax computes on int8"
    if site.has("keep"):
        return "the DSP softmax does not support masks"
    shape = site.output.shape
    layout = site.at_hand("x") or contiguous(shape)
    strides = layout.strides(shape)
    if layout.border or strides[op.axis] != 1:
        return "the elements of a row are not contiguous"
    rest = [d for d in range(len(shape)) if d != op.axis]
    form = integer_form(site, op, "in[i]", narrow_divisor="divisor", half="half")
    loops = nest([shape[d] for d in rest], [strides[d] for d in rest])
    return offer(
        site,
        "dsp/softmax.c.j2",
        SoftmaxContext(title(site, op), loops, shape[op.axis], 1, "in[i]", form),
        Work(16.0 * site.output.numel, 0.0, 60.0 * site.output.numel / max(shape[op.axis], 1), 220),
        kernel="softmax_dsp",
        reads={"x": layout},
        writes=(layout,),
        tables={"table": integer_table(site, op)},
        overwrites=(0,) if site.output.dtype is DType.I8 else (),
        headers=HEADERS,
    )
