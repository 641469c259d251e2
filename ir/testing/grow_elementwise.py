"""Growth by elementwise operators, reductions and softmax."""

from __future__ import annotations

from dataclasses import replace

from ..ops.activation import (
    Clamp,
    Elementwise,
    Elu,
    Gelu,
    Hardshrink,
    LeakyRelu,
    Softplus,
    Softshrink,
    Threshold,
)
from ..ops.base import OPERATORS
from ..ops.binary import Binary
from ..ops.compare import ArgExtremum, ArgMax, ArgMin, Compare, Logic, Where
from ..ops.convert import Cast
from ..ops.elementary import Pow, RoundTo
from ..ops.prelu import Prelu
from ..ops.put import Put
from ..ops.reduce import Reduction
from ..ops.shape import Reshape
from ..ops.slicing import Concat
from ..ops.softmax import EMPTY_ROWS, LogSoftmax, Softmax
from ..ops.sort import Sort
from ..tensor_type import Value
from .growth import Growth, Step, grows

INF = float("inf")
CLAMPS = (None, None, None, (0.0, INF), (0.0, 6.0), (-1.0, 1.0))

_WITH_ATTRIBUTES = (
    Clamp, LeakyRelu, Elu, Gelu, Softplus, Pow, RoundTo, Threshold, Softshrink, Hardshrink,
)  # fmt: skip
_PLAIN = [
    name for name, op in OPERATORS.items() if issubclass(op, Elementwise) and op not in _WITH_ATTRIBUTES
]
_BINARY = [name for name, op in OPERATORS.items() if issubclass(op, Binary)]
_DIVIDING = {"div", "remainder", "fmod", "floor_divide"}
_REDUCTIONS = [name for name, op in OPERATORS.items() if issubclass(op, Reduction)]


@grows(*_PLAIN)
def grow_plain(g: Growth, x: Value, step: Step) -> Value:
    """Adds a function without attributes."""
    return g.add(OPERATORS[step.op](), x)


@grows("clamp")
def grow_clamp(g: Growth, x: Value, step: Step) -> Value:
    """Adds a clamp with ReLU-like or symmetric bounds."""
    return g.add(Clamp(*step.pick(0, [(0.0, INF), (0.0, 6.0), (-1.0, 1.0), (-INF, 0.5), (0.0, 1.0)])), x)


@grows("leaky_relu")
def grow_leaky_relu(g: Growth, x: Value, step: Step) -> Value:
    """Adds a leaky ReLU with a slope on either side of 0."""
    return g.add(LeakyRelu(step.pick(0, [0.01, 0.25, -0.5])), x)


@grows("elu")
def grow_elu(g: Growth, x: Value, step: Step) -> Value:
    """Adds an ELU, or the form used by SELU and CELU."""
    return g.add(step.pick(0, [Elu(), Elu(1.5, 1.1), Elu(0.5, 1.0, 2.0)]), x)


@grows("gelu")
def grow_gelu(g: Growth, x: Value, step: Step) -> Value:
    """Adds a GELU, exact or by tanh."""
    return g.add(Gelu(step.pick(0, ["none", "tanh"])), x)


@grows("softplus")
def grow_softplus(g: Growth, x: Value, step: Step) -> Value:
    """Adds a softplus, soft or sharp."""
    return g.add(step.pick(0, [Softplus(), Softplus(3.0, 2.0)]), x)


@grows("threshold")
def grow_threshold(g: Growth, x: Value, step: Step) -> Value:
    """Adds a threshold with or without a jump."""
    return g.add(Threshold(step.pick(0, [0.0, 0.5, -0.3]), step.pick(1, [0.0, 0.5])), x)


@grows("softshrink", "hardshrink")
def grow_shrinkage(g: Growth, x: Value, step: Step) -> Value:
    """Adds a shrinkage, narrow or wide."""
    op = Softshrink if step.op == "softshrink" else Hardshrink
    return g.add(op(step.pick(0, [0.5, 0.1, 2.0])), x)


@grows("round_to")
def grow_round_to(g: Growth, x: Value, step: Step) -> Value:
    """Adds a rounding to either narrower type."""
    return g.add(RoundTo(step.pick(0, ["f16", "bf16"])), x)


@grows("pow")
def grow_pow(g: Growth, x: Value, step: Step) -> Value:
    """Adds a whole power, which is defined everywhere."""
    return g.add(Pow(step.pick(0, [2.0, 3.0, 1.0])), x)


@grows("prelu")
def grow_prelu(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a PReLU with one slope, or one per channel."""
    if not x.type.rank:
        return None
    channels = x.type.shape[1] if x.type.rank > 1 else 1
    return g.add(Prelu(), x, g.weight(step, step.pick(0, [1, channels])))


@grows(*_BINARY)
def grow_binary(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a binary operator with another value, a number, or a constant that broadcasts on either side."""
    op = OPERATORS[step.op]()
    assert isinstance(op, Binary)
    if step.op in ("add", "sub", "mul"):
        op = replace(op, clamp=step.pick(1, CLAMPS))
    shapes = [(), x.type.shape[-1:], tuple(n if i == 1 else 1 for i, n in enumerate(x.type.shape))]
    choice = step.digits[0] % (1 + len(shapes))
    if not choice:
        return g.add(op, x, g.partner(x, step))
    other = g.constant(*shapes[choice - 1], positive=step.op in _DIVIDING)
    operands = (other, x) if step.digits[2] % 3 == 2 and step.op not in _DIVIDING else (x, other)
    return g.add(op, *operands)


@grows(*_REDUCTIONS)
def grow_reduction(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a reduction over the last dimension, all spatial ones, all but the first, or all."""
    op, rank = OPERATORS[step.op], x.type.rank
    assert issubclass(op, Reduction)
    axes = step.pick(0, [(rank - 1,), tuple(range(2, rank)), tuple(range(1, rank)), ()])
    if not rank or (rank == 1 and axes != ()):
        return None
    return g.add(op(axes, step.pick(1, [True, False])), x)


@grows("compare", "logic", "where")
def grow_choice(g: Growth, x: Value, step: Step) -> Value:
    """Adds the larger or the smaller of two values, or a selection by one or two conditions."""
    other = g.partner(x, step)
    condition = g.add(Compare(step.pick(0, ["gt", "le", "eq", "ne", "lt", "ge"])), x, other)
    if step.op == "logic":
        opposite = g.add(Logic("not"), g.add(Compare("lt"), x, other))
        condition = step.pick(
            1, [opposite, g.add(Logic(step.pick(2, ["and", "or", "xor"])), condition, opposite)]
        )
    return g.add(Where(), condition, x, other)


@grows("cast")
def grow_cast(g: Growth, x: Value, step: Step) -> Value:
    """Adds casts to another type and back."""
    return g.add(Cast(x.type.dtype.value), g.add(Cast(step.pick(0, ["f64", "bool", "i32"])), x))


@grows("argmax", "argmin")
def grow_place_of_extremum(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds the index of an extremum as a number."""
    if not x.type.rank:
        return None
    kind = OPERATORS[step.op]
    assert issubclass(kind, ArgExtremum)
    op = kind(step.digits[0] % x.type.rank, step.pick(1, [False, True]))
    return g.add(Cast(x.type.dtype.value), g.add(op, x))


@grows("sort")
def grow_sort(g: Growth, x: Value, step: Step) -> tuple[Value, ...] | None:
    """Adds a sort, up or down, along any dimension; the indices as numbers."""
    if not x.type.rank:
        return None
    op = Sort(step.digits[0] % x.type.rank, step.pick(1, [False, True]))
    values, places = g.add_many(op, x)
    return values, g.add(Cast(x.type.dtype.value), places)


@grows("put")
def grow_put(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a write of one or two elements at constant or computed indices."""
    if x.type.numel < 2:
        return None
    flat = g.add(Reshape((x.type.numel,)), x)
    place = g.add(ArgMax(0, keepdim=True), flat)
    source = g.constant(1)
    if step.digits[1] % 2:
        place, source = g.add(Concat(0), place, g.add(ArgMin(0, keepdim=True), flat)), g.constant(2)
    return g.add(Put(step.pick(0, [False, True])), x, place, source)


@grows("log_softmax")
def grow_log_softmax(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a log softmax along the last or another dimension."""
    return g.add(LogSoftmax((x.type.rank - 1 - step.digits[0]) % x.type.rank), x) if x.type.rank else None


@grows("softmax")
def grow_softmax(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a softmax along the last or another dimension, over all positions or those that a comparison keeps."""
    if not x.type.rank:
        return None
    empty = step.pick(1, [None, None, *EMPTY_ROWS])
    axis = (x.type.rank - 1 - step.digits[0]) % x.type.rank
    if empty is None:
        return g.add(Softmax(axis), x)
    return g.add(Softmax(axis, empty), x, g.add(Compare("gt"), x, g.constant(*x.type.shape[-1:])))
