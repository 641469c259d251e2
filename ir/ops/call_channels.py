"""Channel coupling of aten overloads that have no operator in the IR.

Elementwise overloads are identified by their torch tag; all others need an entry in a table. An overload without an
entry is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .channels import Axes, CouplingCall, tie_broadcast


@dataclass(frozen=True, slots=True)
class BoundCall:
    """A call's arguments by the names of the overload's schema; an operand is its index."""

    target: str
    arguments: Mapping[str, Any]  # Any: what a torch schema allows

    def axes_of(self, call: CouplingCall, name: str) -> Axes:
        """The axes of a tensor argument."""
        return axes_at(call, self.arguments[name].index)

    def dimensions(self, name: str, rank: int) -> tuple[int, ...]:
        """A dimension or a list of them, counted from the front; all of them when none is given."""
        listed = self.arguments.get(name)
        if listed is None or listed == ():
            return tuple(range(rank))
        return tuple(d % rank for d in (listed if isinstance(listed, tuple) else (listed,)))


Rule = Callable[[CouplingCall, BoundCall], tuple[Axes, ...]]
_POINTWISE = {  # elementwise, but without the tag
    *("masked_fill.Tensor", "where.ScalarOther", "where.ScalarSelf", "where.Scalar", "floor_divide.default"),
    *("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default"),
    *(
        "fill.Tensor",
        "fill.Scalar",
        "copy.default",
        "dropout_.default",
        "dropout.default",
        "lift_fresh.default",
    ),
    *("zeros_like.default", "ones_like.default", "full_like.default", "logical_and.default", "clone.default"),
}


def axes_at(call: CouplingCall, index: int) -> Axes:
    """The axes of an operand, which is present."""
    axes = call.operands[index]
    assert axes is not None
    return axes


def couple_overload(call: CouplingCall, bound: BoundCall, tags: list[torch.Tag]) -> tuple[Axes, ...]:
    """Axes of the results of a call of a torch overload."""
    name = bound.target.removeprefix("aten.")
    if name in _RULES:
        return _RULES[name](call, bound)
    if torch.Tag.pointwise in tags or name in _POINTWISE:
        return tuple(tie_broadcast(call, y.shape, *call.operands) for y in call.outputs)
    return call.refuse()


def _made(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """A new tensor of a given size: only the element type of its operand is used."""
    return tuple(call.fixed(*y.shape) for y in call.outputs)


def _looked_up(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """x[..., i, j, ...] with neighbouring index tensors, whose dimensions replace those that they index."""
    x, listed = bound.axes_of(call, "self"), bound.arguments["indices"]
    given = [place for place, index in enumerate(listed) if index is not None]
    types = [call.types[listed[place].index] for place in given]
    are_numbers = all(t is not None and t.dtype.name.startswith("I") for t in types)
    if not given or given[-1] - given[0] >= len(given) or not are_numbers:
        return call.refuse()
    indices = [axes_at(call, listed[place].index) for place in given]
    call.fix(
        *(x[place] for place in given),
        *(a for i in indices for a in i),
        why="elements are selected by index along it",
    )
    before, after = x[: given[0]], x[given[-1] + 1 :]
    shape = call.outputs[0].shape
    return ((*before, *call.fixed(*shape[len(before) : len(shape) - len(after)]), *after),)


def _chosen(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """index_select: selected positions along one dimension."""
    x = bound.axes_of(call, "self")
    (place,) = bound.dimensions("dim", len(x))
    call.fix(x[place], *bound.axes_of(call, "index"), why="elements are selected by index along it")
    return ((*x[:place], *call.fixed(call.outputs[0].shape[place]), *x[place + 1 :]),)


def _written(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """x with a part along one dimension replaced by `src`."""
    x, source = bound.axes_of(call, "self"), bound.axes_of(call, "src")
    (place,) = bound.dimensions("dim", len(x))
    call.fix(x[place], why="part of it is overwritten")
    others = [*x[:place], *x[place + 1 :]]
    if len(source) == len(x):
        call.fix(source[place], why="it is written into a part of another tensor")
        source = (*source[:place], *source[place + 1 :])
    for a, b in zip(others, source, strict=True):
        call.tie(a, b)
    return (x,)


def _along(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Results of the operand's shape that mix one dimension: cumulative sums, softmax, sort."""
    x = bound.axes_of(call, "self")
    call.fix(*(x[place] for place in bound.dimensions("dim", len(x))), why="the operator runs along it")
    return (x,) * len(call.outputs)


def _reduced(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Reductions whose result would change with fewer elements."""
    x = bound.axes_of(call, "self")
    gone = bound.dimensions("dim", len(x))
    call.fix(*(x[place] for place in gone), why="it is reduced")
    if bound.arguments.get("keepdim"):
        kept = tuple(call.fixed(1)[0] if place in gone else axis for place, axis in enumerate(x))
    else:
        kept = tuple(axis for place, axis in enumerate(x) if place not in gone)
    return (kept,) * len(call.outputs)


def _repeated(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Each channel repeated `repeats` times in a row."""
    x, repeats, dimension = (
        bound.axes_of(call, "self"),
        bound.arguments["repeats"],
        bound.arguments.get("dim"),
    )
    if dimension is None:
        return call.refuse()
    place = dimension % len(x)
    result = call.free(call.size(x[place]) * repeats)
    index = torch.arange(call.size(result))
    call.tie_indices(result, index, x[place], torch.div(index, max(repeats, 1), rounding_mode="floor"))
    return ((*x[:place], result, *x[place + 1 :]),)


def _spatial(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Operators over the dimensions after the second."""
    x = bound.axes_of(call, "self" if "self" in bound.arguments else "input")
    call.fix(*x[2:], why="the operator runs along it")
    return tuple((*x[:2], *call.fixed(*y.shape[2:])) for y in call.outputs)


def _windows(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Tensor.unfold: windows along one dimension, with their elements in a new last dimension."""
    x = bound.axes_of(call, "self")
    place = bound.arguments["dimension"] % len(x)
    call.fix(x[place], why="a window slides along it")
    shape = call.outputs[0].shape
    return ((*x[:place], *call.fixed(shape[place]), *x[place + 1 :], *call.fixed(shape[-1])),)


def _einsum(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Each letter is one axis."""
    equation = bound.arguments["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    if "." in equation or not arrow:
        return call.refuse()
    named: dict[str, int] = {}
    for letters, operand in zip(left.split(","), bound.arguments["tensors"], strict=True):
        for letter, axis in zip(letters, axes_at(call, operand.index), strict=True):
            if call.size(named.setdefault(letter, axis)) != call.size(axis):
                return call.refuse()
            call.tie(named[letter], axis)
    return (tuple(named[letter] for letter in right),)


def _batch_statistics(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """Batch norm that uses batch statistics (weight standardization)."""
    if bound.arguments.get("running_mean") is not None:
        return call.refuse()
    x = bound.axes_of(call, "input")
    for name in ("weight", "bias"):
        if bound.arguments.get(name) is not None:
            call.tie(x[1], bound.axes_of(call, name)[0])
    call.fix(x[0], why="a normalization computes its statistics over it")
    call.pool(*x[2:])
    return (x,)


def _added_product(call: CouplingCall, bound: BoundCall) -> tuple[Axes, ...]:
    """beta * self + alpha * batch1 @ batch2."""
    a, b = bound.axes_of(call, "batch1"), bound.axes_of(call, "batch2")
    call.tie(a[2], b[1])
    call.tie(a[0], b[0])
    y = (a[0], a[1], b[2])
    tie_broadcast(call, call.outputs[0].shape, y, bound.axes_of(call, "self"))
    return (y,)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("new_zeros.default", "new_ones.default", "new_full.default", "new_empty.default", "arange.default",
         "arange.start", "arange.start_step", "zeros.default", "ones.default", "full.default", "eye.default",
         "eye.m", "linspace.default", "scalar_tensor.default", "empty.memory_format"),
        _made,
    ),
    "index.Tensor": _looked_up,
    "index_select.default": _chosen,
    **dict.fromkeys(("slice_scatter.default", "select_scatter.default"), _written),
    **dict.fromkeys(
        ("cumsum.default", "cumprod.default", "softmax.int", "_softmax.default", "log_softmax.int",
         "sort.default", "sort.stable", "argsort.default", "argsort.stable"),
        _along,
    ),
    **dict.fromkeys(
        ("linalg_vector_norm.default", "norm.ScalarOpt_dim", "var.correction", "var.dim", "std.correction",
         "std.dim", "var_mean.correction", "std_mean.correction", "logsumexp.default", "prod.dim_int", "any.dim",
         "all.dim", "any.default", "all.default", "max.dim", "min.dim", "argmax.default", "argmin.default",
         "amin.default", "sum.dim_IntList", "sum.default", "mean.dim"),
        _reduced,
    ),
    "repeat_interleave.self_int": _repeated,
    **dict.fromkeys(
        ("upsample_bicubic2d.vec", "upsample_bicubic2d.default", "upsample_trilinear3d.vec",
         "_upsample_bicubic2d_aa.vec", "_upsample_bilinear2d_aa.vec", "upsample_nearest_exact2d.vec",
         "adaptive_max_pool2d.default", "max_pool2d_with_indices.default"),
        _spatial,
    ),
    "unfold.default": _windows,
    "einsum.default": _einsum,
    "baddbmm.default": _added_product,
    "batch_norm.default": _batch_statistics,
}  # fmt: skip
