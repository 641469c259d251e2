"""Data movement by tables of indices, one for each dimension: padding, rolling, nearest neighbours; and lookups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .....ir.ops.embedding import Embedding
from .....ir.ops.pad import Pad
from .....ir.ops.reorder import Roll
from .....ir.ops.resize import ResizeNearest
from ...plan.layout import contiguous
from ...write.literal import c_type, integer, real
from ..base import Call, Offer, Offers, Site, Work, kernel, offer, template
from ..layouts import image_at_hand, usual_layouts
from ..nest import Nest, index, plain_nest
from .copying import Place, copy


@dataclass(frozen=True)
class GatherContext:
    """Template context: loops over the result, and the source of each run of `run` elements."""

    title: str
    nest: Nest
    source: str
    run: int
    element: str

    @property
    def reads_table(self) -> bool:
        """True if some dimension needs its table."""
        return "table" in self.source


@dataclass(frozen=True)
class FillContext:
    """Template context."""

    count: int
    value: str


@dataclass(frozen=True)
class LookupContext:
    """Template context."""

    rows: int
    features: int
    count: int
    element: str


@kernel("resize_nearest")
def nearest(site: Site) -> Offers:
    """The nearest element in each dimension."""
    op = site.node.op
    assert isinstance(op, ResizeNearest)
    x = site.type("x")
    return _gathered(site, [*(range(n) for n in x.shape[:2]), *op.sources(x)])


@kernel("roll")
def roll(site: Site) -> Offers:
    """Dimensions rotated."""
    op = site.node.op
    assert isinstance(op, Roll)
    tables = [np.arange(n) for n in site.type("x").shape]
    for axis, shift in zip(op.axes, op.shifts, strict=True):
        tables[axis] = np.roll(tables[axis], shift)
    return _gathered(site, [table.tolist() for table in tables])


@kernel("pad")
def pad(site: Site) -> Offers:
    """A frame of one value around the operand, or of the operand's own elements."""
    op = site.node.op
    assert isinstance(op, Pad)
    x = site.type("x")
    kept = x.rank - len(op.padding) // 2
    pairs = [(0, 0)] * kept + list(zip(op.padding[::2], op.padding[1::2], strict=True))
    if op.mode == "constant":
        return _framed(site, op, pairs)
    lines = [
        torch.arange(n).view([-1 if d == axis else 1 for d in range(x.rank)])
        for axis, n in enumerate(x.shape)
    ]
    tables = [
        range(n) if pair == (0, 0) else _only(op, axis, line, x.rank)
        for axis, (n, pair, line) in enumerate(zip(x.shape, pairs, lines, strict=True))
    ]
    return _gathered(site, tables)


@kernel("embedding")
def embedding(site: Site) -> Offers:
    """Rows of a table; an index outside of it selects the first or the last row."""
    assert isinstance(site.node.op, Embedding)
    if not site.is_constant("weight"):
        return "the table must be a constant"
    rows, features = site.type("weight").shape
    context = LookupContext(rows, features, site.type("indices").numel, c_type(site.output.dtype))
    return offer(
        site,
        "portable/embedding.c.j2",
        context,
        Work(float(context.count * features), 30.0 * context.count, code_bytes=60),
        reads={"x": contiguous(site.type("indices").shape)},
        writes=(contiguous(site.output.shape),),
        operands={"x": "indices"},
        constants={"table": site.array_bytes("weight")},
        pack=lambda: (site.array("weight"),),
    )


def _only(op: Pad, axis: int, line: torch.Tensor, rank: int) -> list[int]:
    """Source indices of one dimension, after padding."""
    first = rank - len(op.padding) // 2
    one = Pad(op.padding[2 * (axis - first) : 2 * (axis - first) + 2], op.mode)
    return [int(i) for i in torch.as_tensor(one.reference(line.flatten()))]


def _gathered(site: Site, tables: Sequence[Sequence[int]]) -> Offers:
    """The result whose index i in dimension d is the operand's index tables[d][i]."""
    at_hand = image_at_hand(site)
    own = at_hand.strides(site.type("x").shape)
    result = site.output.shape
    moved = [d for d, table in enumerate(tables) if list(table) != list(range(result[d]))]
    offers = []
    for layout in usual_layouts(result):
        steps = layout.strides(result)
        order = [d for d in layout.order if result[d] > 1]
        run = 1
        if order and order[-1] not in moved and own[order[-1]] == steps[order[-1]] == 1:
            run = result[order.pop()]
        loops = plain_nest([result[d] for d in order], [steps[d] for d in order])
        starts: dict[int, int] = {}
        flat: list[int] = []
        for d in moved:
            starts[d] = len(flat)
            flat += [i * own[d] for i in tables[d]]
        terms = [
            f"table[{index(starts[d], [(loop.index, 1)])}]"
            if d in moved
            else index(0, [(loop.index, own[d])])
            for loop, d in zip(loops.loops, order, strict=True)
        ]
        fixed = sum(tables[d][0] * own[d] for d in moved if result[d] == 1)
        source = " + ".join([*(t for t in terms if t != "0"), str(fixed)])
        title = f"{site.node.op.name} to {site.output.numel} elements"
        context = GatherContext(title, loops, source, run, c_type(site.output.dtype))
        table = {"table": np.array(flat or [0], np.int32)}
        elements = site.output.numel
        work = Work(1.0 * elements, 30.0 * elements / run) if run > 1 else Work(results=12.0 * elements)
        work += Work(code_bytes=90)
        offers.append(
            offer(
                site,
                "portable/gather.c.j2",
                context,
                work,
                reads={"x": at_hand},
                writes=(layout,),
                tables=table,
            )
        )
    return tuple(offers)


def _framed(site: Site, op: Pad, pairs: Sequence[tuple[int, int]]) -> Offers:
    shape, result = site.type("x").shape, site.output.shape
    at_hand = image_at_hand(site)
    own = at_hand.strides(shape)
    kept = tuple(n + min(a, 0) + min(b, 0) for n, (a, b) in zip(shape, pairs, strict=True))
    begin = sum(max(-before, 0) * step for (before, _), step in zip(pairs, own, strict=True))
    value = integer(op.fill(site.output)) if site.output.is_quantized else real(op.value)
    element = c_type(site.output.dtype)
    offers = []
    for layout in usual_layouts(result):
        steps = layout.strides(result)
        start = sum(max(before, 0) * step for (before, _), step in zip(pairs, steps, strict=True))
        fill = template(
            "portable/fill.c.j2",
            FillContext(site.output.numel, value),
            f"{element} *y",
            uses_math="INF" in value,
        )
        made, work = copy(site.output.dtype, kept, Place(own, begin), Place(steps, start))
        work += Work(results=3.0 * site.output.numel, code_bytes=60)
        offers.append(Offer.of_calls("pad_portable", (at_hand,), (layout,), work, Call(fill, ()), made))
    return tuple(offers)
