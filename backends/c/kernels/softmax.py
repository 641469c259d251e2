"""Softmax and its logarithm in portable C, along any dimension: exponentials from a table on int8, libm on float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....ir.ops.softmax import LogSoftmax, Softmax
from ..layout import contiguous
from .base import Constant, Cost, Implementation, Offer, Site, call, kernel
from .nest import Nest, nest


@dataclass(frozen=True)
class SoftmaxContext:
    """What the templates see: loops over rows, and `count` elements of a row, `step` apart."""

    title: str
    nest: Nest
    count: int
    step: int


@kernel("softmax", "log_softmax")
def portable(site: Site) -> Offer:
    """One row after the other, in place where the operand is not needed any more."""
    op = site.node.op
    assert isinstance(op, (Softmax, LogSoftmax))
    shape = site.output.shape
    layout = site.layouts[0] or contiguous(shape)
    if layout.border:
        return "the operand has a border"
    strides = layout.strides(shape)
    rows = [dim for dim in range(len(shape)) if dim != op.axis]
    loops = nest([shape[d] for d in rows], [strides[d] for d in rows])
    title = f"{op.name} of {site.output.numel // shape[op.axis]} rows of {shape[op.axis]}"
    context = SoftmaxContext(title, loops, shape[op.axis], strides[op.axis])
    if site.is_integer:
        assert isinstance(op, Softmax)
        table = Constant("table", op.table(site.type(0)).numpy().astype(np.int32))
        made = call("softmax/softmax_integer.c.j2", context, site, reads={"x": 0}, constants=(table,))
        instructions = 40.0 * site.output.numel
    else:
        made = call(f"softmax/{op.name}_float.c.j2", context, site, reads={"x": 0}, uses_math=True)
        instructions = 150.0 * site.output.numel
    return (
        Implementation(
            f"{op.name}_portable",
            (layout,),
            (layout,),
            Cost(instructions, 1.4 * instructions, 160),
            (made,),
            overwrites=(0,),
        ),
    )
