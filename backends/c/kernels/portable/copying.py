"""Copies of elements to another arrangement in memory: data movement that cannot be a view."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .....ir import DType
from ...plan.layout import Layout, Shape
from ...write.literal import c_type
from ..base import Call, Offer, Site, Work, template
from ..nest import Nest, nest


@dataclass(frozen=True)
class CopyContext:
    """Template context: loops around runs of `run` elements that are contiguous in source and destination."""

    nest: Nest
    run: int
    element: str
    count: int

    @property
    def title(self) -> str:
        """Description of the function, for its comment."""
        return f"Copy of {self.count} elements to another place or order"


@dataclass(frozen=True, slots=True)
class Place:
    """Strided view of a tensor: strides along its dimensions, and offset of the first element."""

    strides: tuple[int, ...]
    start: int = 0


def copy(
    dtype: DType, sizes: Shape, source: Place, to: Place, *, operand: int = 0, result: int = 0
) -> tuple[Call, Work]:
    """The call that copies all elements of a tensor of `sizes`, and its work."""
    element = c_type(dtype)
    loops, run = nest(sizes, to.strides, source.strides, offsets=(to.start, source.start)), 1
    if loops.sizes and loops.steps[0][-1] == loops.steps[1][-1] == 1:
        run = loops.inner
        outer = (steps[:-1] for steps in loops.steps)
        loops = nest(loops.sizes[:-1], *outer, offsets=(to.start, source.start))
    context = CopyContext(loops, run, element, prod(sizes))
    path = "portable/copy.c.j2" if run == 1 else "portable/copy_runs.c.j2"
    function = template(path, context, f"const {element} *x, {element} *y")
    if run == 1:
        work = Work(4.0 * context.count, 20.0 * context.count / loops.inner, code_bytes=60)
    else:
        work = Work(0.6 * context.count, 30.0 * context.count / run, code_bytes=60)
    return Call(function, (operand,), (result,)), work


def view(site: Site, layout: Layout, seen: Layout) -> Offer:
    """A result that is the operand's memory with another type."""
    return Offer(f"{site.node.op.name}_view", site.reads({"x": layout}), (seen,), Work(), views=(0,))
