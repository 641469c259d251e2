"""Softmax and its logarithm in portable C, along any dimension: exponentials from a table on int8, libm on float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir.ops.softmax import LogSoftmax, Softmax
from ...plan.layout import contiguous
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, broadcast_strides, nest


@dataclass(frozen=True)
class SoftmaxContext:
    """Template context: loops over rows of `count` elements with stride `step`, each with an operand's `value`.

    `multiplier` is 1 / scale of an integer result.
    """

    title: str
    nest: Nest
    count: int
    step: int
    value: str
    multiplier: int = 0


@dataclass(frozen=True)
class MaskedContext(SoftmaxContext):
    """Additional template context of a masked softmax.

    `kept` says whether the mask keeps an element, `counts` whether the element counts; `start` is what the sum begins
    with. In all of them, and in `value`, `none` is 1 in a row of which nothing is kept.
    """

    kept: str = ""
    counts: str = ""
    start: str = ""


@kernel("softmax", "log_softmax")
def portable(site: Site) -> Offers:
    """One row after the other, in place where the operand is not needed any more."""
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
        tables["table"] = op.table(site.type("x"), site.output).numpy().astype(np.int32)
    each = 40.0 if site.is_integer else 150.0
    return offer(
        site,
        f"{name}_{'integer' if site.is_integer else 'float'}.c.j2",
        context,
        Work(each * site.output.numel, 0.0, 60.0 * site.output.numel / shape[op.axis], 160),
        reads=reads,
        writes=(layout,),
        tables=tables,
        overwrites=(0,),
        uses_math=not site.is_integer,
    )


def _context(site: Site, op: Softmax | LogSoftmax, loops: Nest, steps: list[int]) -> SoftmaxContext:
    shape, count = site.output.shape, site.output.shape[op.axis]
    title = f"{op.name} of {site.output.numel // count} rows of {shape[op.axis]}"
    value = f"in[i * {steps[0]}]"
    multiplier = op.multiplier(site.output) if site.is_integer and isinstance(op, Softmax) else 0
    if not site.has("keep"):
        return SoftmaxContext(title, loops, count, steps[0], value, multiplier)
    assert isinstance(op, Softmax)
    kept = f"keep[{loops.at[1]} + i * {steps[1]}]"
    counts = kept if op.empty == "zero" else f"({kept} || none)"
    if op.empty == "uniform":
        value = f"(none ? {'0' if site.is_integer else '0.0f'} : {value})"
    zero, one = ("0", "none") if site.is_integer else ("0.0f", "(float)none")
    start = one if op.empty == "zero" else zero
    return MaskedContext(title, loops, count, steps[0], value, multiplier, kept, counts, start)
