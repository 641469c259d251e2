"""Comparisons, logic, selection, conversion of element types and lookups by index in portable C, in any layout."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir import DType
from .....ir.ops.compare import ArgExtremum, Compare, Logic, Where
from .....ir.ops.convert import Cast
from .....ir.ops.embedding import Take
from .....ir.ops.put import IndexCopy, Put
from ...plan.layout import Layout, contiguous
from ...write.literal import c_type
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, broadcast_strides, nest
from .binary import operand_layout

_RELATIONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGIC = {"and": "{} && {}", "or": "{} || {}", "xor": "{} != {}", "not": "!{}"}


@dataclass(frozen=True)
class ChoiceContext:
    """Template context: loops over results, and the C expression of each."""

    title: str
    nest: Nest
    value: str


@dataclass(frozen=True)
class ArgExtremumContext:
    """Template context: loops over rows of `count` elements, and the condition `better` for element i."""

    title: str
    nest: Nest
    element: str
    count: int
    better: str


@dataclass(frozen=True)
class TakeContext:
    """Template context: loops over indices, and over the elements that each index selects."""

    title: str
    indices: Nest
    elements: Nest
    size: int
    step: int


@dataclass(frozen=True)
class IndexCopyContext:
    """Template context: loops over indices, and over the elements that each index replaces."""

    title: str
    indices: Nest
    elements: Nest
    size: int
    step: int
    bytes: int


@dataclass(frozen=True)
class PutContext:
    """Template context: `count` elements scattered into `size`, and the combination."""

    size: int
    count: int
    assignment: str


@kernel("compare", "logic", "where", "cast")
def elementwise(site: Site) -> Offers:
    """One element after the other."""
    shape, count = site.output.shape, len(site.node.inputs)
    layout = _like(site)
    layouts = [operand_layout(site, index, layout) for index in range(count)]
    strides = [broadcast_strides(site.type(i).shape, read, shape) for i, read in enumerate(layouts)]
    loops = nest(shape, layout.strides(shape), *strides)
    names = "abc"[:count]
    values = [f"{name}[{at}]" for name, at in zip(names, loops.at[1:], strict=True)]
    context = ChoiceContext(
        f"{site.node.op.name} of {site.output.numel} elements", loops, _value(site, values)
    )
    return offer(
        site,
        "portable/elementwise.c.j2",
        context,
        Work(results=10.0 * site.output.numel, code_bytes=80),
        reads=dict(zip(names, layouts, strict=True)),
        writes=(layout,),
        operands={name: i for i, name in enumerate(names)},
        overwrites=tuple(
            i for i, read in enumerate(layouts) if read == layout and site.type(i) == site.output
        ),
        variant=site.node.op.name,
    )


@kernel("argmax", "argmin")
def place_of_extremum(site: Site) -> Offers:
    """One row after the other."""
    op = site.node.op
    assert isinstance(op, ArgExtremum)
    x = site.type("x")
    read = dense_at_hand(site)
    strides = read.strides(x.shape)
    rows = [dim for dim in range(x.rank) if dim != op.axis]
    write = contiguous(site.output.shape)
    own = write.strides(site.output.shape)
    of_rows = [own[dim] for dim in rows] if op.keepdim else list(own)
    loops = nest([x.shape[d] for d in rows], of_rows, [strides[d] for d in rows])
    which, relation = ("largest", ">") if op.name == "argmax" else ("smallest", "<")
    title = f"Index of the {which} of {x.shape[op.axis]} elements"
    step = strides[op.axis]
    better = f"row[i * {step}] {relation} row[best * {step}]"
    if x.dtype is DType.F32:  # the first NaN wins
        better += f" || (row[i * {step}] != row[i * {step}] && row[best * {step}] == row[best * {step}])"
    context = ArgExtremumContext(title, loops, c_type(x.dtype), x.shape[op.axis], better)
    work = Work(7.0 * x.numel, code_bytes=90)
    return offer(site, "portable/arg_extremum.c.j2", context, work, reads={"x": read}, writes=(write,))


@kernel("take")
def take(site: Site) -> Offers:
    """One index after the other; an index outside of the dimension selects its first or last element."""
    op = site.node.op
    assert isinstance(op, Take)
    x, indices, y = site.type("x"), site.type("indices"), site.output
    reads = {name: dense_at_hand(site, name) for name in ("x", "indices")}
    strides, write = reads["x"].strides(x.shape), contiguous(y.shape)
    own = write.strides(y.shape)
    after = op.axis + indices.rank
    outer = nest(indices.shape, own[op.axis : after], reads["indices"].strides(indices.shape))
    others = [dim for dim in range(x.rank) if dim != op.axis]
    inner = nest(
        [x.shape[d] for d in others],
        [*own[: op.axis], *own[after:]],
        [strides[d] for d in others],
        prefix="j",
        depth=outer.inside,
    )
    title = f"Lookup of {indices.numel} of {x.shape[op.axis]}"
    context = TakeContext(title, outer, inner, x.shape[op.axis], strides[op.axis])
    work = Work(results=10.0 * y.numel, code_bytes=120)
    return offer(site, "portable/take.c.j2", context, work, reads=reads, writes=(write,))


@kernel("put")
def put(site: Site) -> Offers:
    """All elements copied, then the given ones; indices outside of the operand are skipped."""
    op = site.node.op
    assert isinstance(op, Put)
    reads = {name: contiguous(site.type(name).shape) for name in op.operand_names}
    context = PutContext(site.output.numel, site.type("indices").numel, "+=" if op.accumulate else "=")
    work = Work(3.0 * context.size, 0.0, 14.0 * context.count, 90)
    return offer(site, "portable/put.c.j2", context, work, reads=reads, writes=(reads["x"],))


@kernel("index_copy")
def index_copy(site: Site) -> Offers:
    """The operand, copied or in its own memory, then one index after the other; indices outside of it are skipped."""
    op = site.node.op
    assert isinstance(op, IndexCopy)
    x, source, indices = site.type("x"), site.type("source"), site.type("indices")
    reads = {name: dense_at_hand(site, name) for name in op.operand_names}
    own, given = reads["x"].strides(x.shape), reads["source"].strides(source.shape)
    outer = nest(indices.shape, (1,), given[op.axis : op.axis + 1])
    others = [dim for dim in range(x.rank) if dim != op.axis]
    inner = nest(
        [x.shape[d] for d in others],
        [own[d] for d in others],
        [given[d] for d in others],
        prefix="j",
        depth=outer.inside + 1,
    )
    context = IndexCopyContext(
        f"Replacement of {indices.numel} of {x.shape[op.axis]}",
        outer,
        inner,
        x.shape[op.axis],
        own[op.axis],
        x.numel * x.dtype.bytes,
    )
    work = Work(0.6 * x.numel, 0.0, 10.0 * source.numel, 120)
    path, layout = "portable/index_copy.c.j2", reads["x"]
    return offer(site, path, context, work, reads=reads, writes=(layout,), overwrites=(site.index("x"),))


def _value(site: Site, operands: list[str]) -> str:
    op = site.node.op
    match op:
        case Compare():
            return f"{operands[0]} {_RELATIONS[op.relation]} {operands[1]}"
        case Logic():
            return _LOGIC[op.connective].format(*operands)
        case Where():
            return f"{operands[0]} ? {operands[1]} : {operands[2]}"
        case Cast():
            return (
                f"{operands[0]} != 0" if op.dtype == "bool" else f"({c_type(DType(op.dtype))}){operands[0]}"
            )
    raise AssertionError(op.name)


def _like(site: Site) -> Layout:
    """The layout of an operand that has the result's shape, or a contiguous one."""
    for index, layout in enumerate(site.layouts):
        if layout is not None and not layout.border and site.type(index).shape == site.output.shape:
            return layout
    return contiguous(site.output.shape)
