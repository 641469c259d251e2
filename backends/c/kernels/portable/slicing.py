"""Parts of a value and concatenated values: views if a part is contiguous, copies otherwise."""

from __future__ import annotations

from dataclasses import replace

from .....ir.ops.reorder import Flip, Tile
from .....ir.ops.shape import Expand
from .....ir.ops.slicing import Concat, Select, Slice, Split
from ...plan.layout import Layout, arranged, channels_last, contiguous, from_strides
from ..base import Offer, Offers, Site, Work, kernel
from ..layouts import dense_at_hand, image_at_hand, usual_layouts
from .copying import Place, copy, view


@kernel("copy")
def same(site: Site) -> Offers:
    """The same value in the same memory."""
    layout = site.at_hand("x") or contiguous(site.type("x").shape)
    return view(site, layout, layout)


@kernel("slice")
def slice_(site: Site) -> Offers:
    """Every step-th element of a dimension."""
    op = site.node.op
    assert isinstance(op, Slice)
    strides = list(image_at_hand(site).strides(site.type("x").shape))
    start = op.start * strides[op.axis]
    strides[op.axis] *= op.step
    return _part(site, [(tuple(strides), start)])


@kernel("select")
def select(site: Site) -> Offers:
    """One element of a dimension."""
    op = site.node.op
    assert isinstance(op, Select)
    strides = image_at_hand(site).strides(site.type("x").shape)
    start = op.index * strides[op.axis]
    return _part(site, [((*strides[: op.axis], *strides[op.axis + 1 :]), start)])


@kernel("split")
def split(site: Site) -> Offers:
    """Consecutive parts of a dimension."""
    op = site.node.op
    assert isinstance(op, Split)
    strides = image_at_hand(site).strides(site.type("x").shape)
    starts = [sum(op.sizes[:i]) * strides[op.axis] for i in range(len(op.sizes))]
    return _part(site, [(strides, start) for start in starts])


@kernel("flip")
def flip(site: Site) -> Offers:
    """Dimensions in reverse order."""
    op = site.node.op
    assert isinstance(op, Flip)
    shape = site.type("x").shape
    own = image_at_hand(site).strides(shape)
    strides = tuple(-step if dim in op.axes else step for dim, step in enumerate(own))
    start = sum((shape[dim] - 1) * own[dim] for dim in op.axes)
    return _part(site, [(strides, start)])


@kernel("expand")
def expand(site: Site) -> Offers:
    """Dimensions of one element repeated."""
    assert isinstance(site.node.op, Expand)
    own = image_at_hand(site).strides(site.type("x").shape)
    added = site.output.rank - site.type("x").rank
    kept = site.type("x").shape
    strides = (0,) * added + tuple(0 if n == 1 else step for n, step in zip(kept, own, strict=True))
    return _part(site, [(strides, 0)])


@kernel("tile")
def tile(site: Site) -> Offers:
    """The operand repeated along each dimension."""
    op = site.node.op
    assert isinstance(op, Tile)
    at_hand = image_at_hand(site)
    added = site.output.rank - site.type("x").rank
    shape, own = (1,) * added + site.type("x").shape, (0,) * added + at_hand.strides(site.type("x").shape)
    offers = []
    for layout in usual_layouts(site.output.shape):
        steps = layout.strides(site.output.shape)
        sizes = (*op.repeats, *shape)
        to = (*(step * n for step, n in zip(steps, shape, strict=True)), *steps)
        made, work = copy(site.output.dtype, sizes, Place((0,) * len(shape) + own), Place(to))
        offers.append(Offer.of_calls("tile_copy", (at_hand,), (layout,), work, made))
    return tuple(offers)


@kernel("concat")
def concat(site: Site) -> Offers:
    """Operands copied next to each other; one that is contiguous in the result may be computed there instead."""
    op = site.node.op
    assert isinstance(op, Concat)
    shape = site.output.shape
    orders = [layout.order for layout in site.layouts if layout is not None and not layout.border]
    wished = [arranged(shape, order) for order in orders] + list(usual_layouts(shape))
    return tuple(_joined(site, op.axis, layout) for layout in dict.fromkeys(wished))


def _joined(site: Site, axis: int, layout: Layout) -> Offer:
    shape, dtype = site.output.shape, site.output.dtype
    strides = layout.strides(shape)
    reads, calls, total, at = [], [], Work(), 0
    for index in range(len(site.node.inputs)):
        part = site.type(index).shape
        read = dense_at_hand(site, index, otherwise=arranged(part, layout.order))
        start = at * strides[axis]
        made, work = copy(dtype, part, Place(read.strides(part)), Place(strides, start), operand=index)
        whole = from_strides(part, strides) == read
        places = index if whole and _counted_once(site, index) else None
        calls.append(replace(made, places=places, at=start * dtype.bytes))
        reads.append(read)
        total = total if whole else total + work
        at += part[axis]
    return Offer.of_calls("concat_portable", tuple(reads), (layout,), total, *calls)


def _counted_once(site: Site, index: int) -> bool:
    value = site.node.inputs[index]
    return not site.is_constant(index) and sum(v == value for v in site.node.inputs) == 1


def _part(site: Site, parts: list[tuple[tuple[int, ...], int]]) -> Offers:
    """Results at strides and starts inside the operand: views if each is contiguous, else copies."""
    at_hand = image_at_hand(site)
    results = [value.type for value in site.node.outputs]
    seen = [from_strides(type.shape, strides) for type, (strides, _) in zip(results, parts, strict=True)]
    dtype = site.type("x").dtype
    views = tuple(start * dtype.bytes for _, start in parts)
    aligned = all(offset % 4 == 0 for offset in views)
    if all(layout is not None for layout in seen) and (dtype.bytes > 1 or aligned):
        layouts = tuple(layout for layout in seen if layout is not None)
        name = f"{site.node.op.name}_view"
        return Offer(name, (at_hand,), layouts, Work(), views=views)
    offers = []
    for usual in (contiguous, channels_last):
        layouts = tuple(usual(type.shape) for type in results)
        calls, total = [], Work()
        for index, (layout, type, (strides, start)) in enumerate(zip(layouts, results, parts, strict=True)):
            to = Place(layout.strides(type.shape))
            made, work = copy(dtype, type.shape, Place(strides, start), to, result=index)
            calls.append(made)
            total += work
        offers.append(Offer.of_calls(f"{site.node.op.name}_copy", (at_hand,), layouts, total, *calls))
    return tuple(offers)
