"""Sorting in portable C: the order of the indices of a row is found by merging, then the row is written in that
order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from .....ir import DType
from .....ir.ops.sort import Sort
from ...plan.layout import contiguous
from ...write.literal import c_type
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, nest


@dataclass(frozen=True)
class SortContext:
    """Template context: loops over rows, `count` elements per row, with strides `step` in the operand and `step_y` in
    the results, and the C expression of the condition that element `b` comes before element `a`.
    """

    title: str
    nest: Nest
    element: str
    count: int
    step: int
    step_y: int
    before: str


@kernel("sort")
def portable(site: Site) -> Offers:
    """One row after the other."""
    op = site.node.op
    assert isinstance(op, Sort)
    x = site.type("x")
    count = x.shape[op.axis]
    read = dense_at_hand(site)
    write = contiguous(x.shape)
    rows = [dim for dim in range(x.rank) if dim != op.axis]
    own, steps = read.strides(x.shape), write.strides(x.shape)
    loops = nest([x.shape[d] for d in rows], [steps[d] for d in rows], [own[d] for d in rows])
    relation = ">" if op.descending else "<"
    before = f"b {relation} a"
    if x.dtype is DType.F32:
        early, late = ("b", "a") if op.descending else ("a", "b")
        before += f" || ({early} != {early} && {late} == {late})"
    title = f"Order of {count} elements, the {'largest' if op.descending else 'smallest'} first"
    context = SortContext(title, loops, c_type(x.dtype), count, own[op.axis], steps[op.axis], before)
    return offer(
        site,
        "portable/sort.c.j2",
        context,
        Work(14.0 * log2(max(count, 2)) * x.numel, 0.0, 12.0 * x.numel, 200),
        reads={"x": read},
        writes=(write, write),
        results=("y", "places"),
        scratch="int32_t",
        scratch_bytes=8 * count,
    )
