"""Comparisons, logic, choice, conversion of element types and lookups by index in portable C, in any layout."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir import DType
from .....ir.ops.compare import ArgExtremum, Compare, Logic, Where
from .....ir.ops.convert import Cast
from .....ir.ops.embedding import Take
from .....ir.ops.put import Put
from ...plan.layout import Layout, arranged, contiguous
from ...write.literal import c_type
from ..base import Implementation, Offer, Operand, Site, Work, call, kernel
from ..nest import Nest, broadcast_strides, nest

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
class PutContext:
    """Template context: `count` elements scattered into `size`, and the combination."""

    size: int
    count: int
    assignment: str


@kernel("compare", "logic", "where", "cast")
def elementwise(site: Site) -> Offer:
    """One element after the other."""
    shape, count = site.output.shape, len(site.node.inputs)
    layout = _like(site)
    layouts = [_plain(site, index, layout) for index in range(count)]
    strides = [broadcast_strides(site.type(i).shape, read, shape) for i, read in enumerate(layouts)]
    loops = nest(shape, layout.strides(shape), *strides)
    names = "abc"[:count]
    values = [f"{name}[{at}]" for name, at in zip(names, loops.at[1:], strict=True)]
    context = ChoiceContext(
        f"{site.node.op.name} of {site.output.numel} elements", loops, _value(site, values)
    )
    made = call("portable/elementwise.c.j2", context, site, reads={name: i for i, name in enumerate(names)})
    work = Work(results=10.0 * site.output.numel, code_bytes=80)
    return (Implementation(f"{site.node.op.name}_portable", tuple(layouts), (layout,), work, (made,)),)


@kernel("argmax", "argmin")
def place_of_extremum(site: Site) -> Offer:
    """One row after the other."""
    op = site.node.op
    assert isinstance(op, ArgExtremum)
    x = site.type("x")
    read = _plain(site, "x", contiguous(x.shape))
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
    made = call("portable/arg_extremum.c.j2", context, site, reads={"x": "x"})
    return (
        Implementation(f"{op.name}_portable", (read,), (write,), Work(7.0 * x.numel, code_bytes=90), (made,)),
    )


@kernel("take")
def take(site: Site) -> Offer:
    """One index after the other; an index outside of the dimension means its first or last element."""
    op = site.node.op
    assert isinstance(op, Take)
    x, indices, y = site.type("x"), site.type("indices"), site.output
    reads = (_plain(site, "x", contiguous(x.shape)), _plain(site, "indices", contiguous(indices.shape)))
    strides, write = reads[0].strides(x.shape), contiguous(y.shape)
    own = write.strides(y.shape)
    after = op.axis + indices.rank
    outer = nest(indices.shape, own[op.axis : after], reads[1].strides(indices.shape))
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
    made = call("portable/take.c.j2", context, site, reads={"x": "x", "indices": "indices"})
    return (
        Implementation(
            "take_portable", reads, (write,), Work(results=10.0 * y.numel, code_bytes=120), (made,)
        ),
    )


@kernel("put")
def put(site: Site) -> Offer:
    """All elements copied, then those that are given; a number outside of the operand is left out."""
    op = site.node.op
    assert isinstance(op, Put)
    reads = tuple(contiguous(site.type(name).shape) for name in op.operand_names)
    context = PutContext(site.output.numel, site.type("indices").numel, "+=" if op.accumulate else "=")
    made = call(
        "portable/put.c.j2", context, site, reads={"x": "x", "indices": "indices", "source": "source"}
    )
    return (
        Implementation(
            "put_portable",
            reads,
            (reads[0],),
            Work(3.0 * context.size, 0.0, 14.0 * context.count, 90),
            (made,),
        ),
    )


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


def _plain(site: Site, operand: Operand, like: Layout) -> Layout:
    layout, shape = site.at_hand(operand), site.type(operand).shape
    if layout is not None and not layout.border:
        return layout
    return arranged(shape, like.order) if len(like.order) == len(shape) else contiguous(shape)
