"""Nodes without effect, whose result equals an operand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from ..ir import Builder, Node, Op, Value
from ..ir.ops.activation import Clamp, Hardsigmoid, Relu, Sigmoid
from ..ir.ops.binary import Add, Binary, Div, Mul, Sub
from ..ir.ops.elementary import Abs
from ..ir.ops.pad import Pad
from ..ir.ops.pool import AvgPool, MaxPool
from ..ir.ops.reduce import Mean, ReduceMax, ReduceMin, Sum
from ..ir.ops.reorder import Flip, Roll, Tile
from ..ir.ops.resize import ResizeLinear, ResizeNearest
from ..ir.ops.shape import Copy, Expand, Permute, Reshape
from ..ir.ops.slicing import Concat, Slice, Split
from ..ir.ops.softmax import Softmax
from .fuse_activation import bounds_of
from .layers import CLAMPED, clamp_of

Bounds = tuple[float, float]
_EVERYTHING: Bounds = (-inf, inf)


def neutral_operand(builder: Builder, node: Node) -> Value | None:
    """The operand that the node's result equals for every input, or None."""
    for operand in _candidates(builder, node):
        if operand.type == node.outputs[0].type and len(node.outputs) == 1:
            return operand
    return None


def _candidates(builder: Builder, node: Node) -> list[Value]:
    first = node.operands[0] if node.operands else None
    if first is None:
        return []
    if isinstance(node.op, Binary):
        return _neutral_arithmetic(builder, node, node.op)
    if isinstance(node.op, Relu | Clamp):
        low, high = bounds_of(node.op)
        known_low, known_high = known_bounds(builder, first)
        return [first] if low <= known_low and known_high <= high else []
    is_neutral = _NEUTRAL.get(type(node.op))
    return [first] if is_neutral is not None and is_neutral(node) else []


def _neutral_arithmetic(builder: Builder, node: Node, op: Binary) -> list[Value]:
    """x + 0, 0 + x, x - 0, x * 1, 1 * x, x / 1."""
    if op.clamp is not None or any(v.type.is_quantized for v in node.operands):
        return []
    neutral = _NEUTRAL_NUMBER.get(type(op))
    if neutral is None:
        return []
    a, b = node.operands
    found = [a] if _is_filled(builder, b, neutral) else []
    return found + ([b] if isinstance(op, Add | Mul) and _is_filled(builder, a, neutral) else [])


def _is_filled(builder: Builder, value: Value, number: float) -> bool:
    tensor = builder.tensor(value)
    return tensor is not None and bool(tensor.eq(number).all())


def known_bounds(builder: Builder, value: Value) -> Bounds:
    """Ends between which all elements lie, looked up through data movement."""
    node = builder.producer(value)
    while node is not None and isinstance(node.op, _SELECTING):
        value = node.operands[0]
        node = builder.producer(value)
    if node is None or value.type.is_quantized:
        return _EVERYTHING
    if isinstance(node.op, Relu | Clamp):
        return bounds_of(node.op)
    if isinstance(node.op, CLAMPED):
        return clamp_of(node.op) or _EVERYTHING
    if isinstance(node.op, Sigmoid | Hardsigmoid | Softmax):
        return 0.0, 1.0
    return (0.0, inf) if isinstance(node.op, Abs) else _EVERYTHING


_NEUTRAL_NUMBER: Mapping[type[Op], float] = {Add: 0.0, Sub: 0.0, Mul: 1.0, Div: 1.0}

# every element of the result is one of the operand's
_SELECTING: tuple[type[Op], ...] = (
    MaxPool, ReduceMax, ReduceMin, ResizeNearest, Reshape, Permute, Copy, Expand, Slice, Split, Flip, Roll, Tile,
)  # fmt: skip


def _keeps_shape(node: Node) -> bool:
    return node.operands[0].type.shape == node.outputs[0].type.shape


def _is_window_of_one(node: Node) -> bool:
    op = node.op
    assert isinstance(op, MaxPool | AvgPool)
    divides = isinstance(op, AvgPool) and op.divisor not in (None, 1)
    return set(op.kernel) == {1} and set(op.stride) == {1} and not any(op.padding) and not divides


def _is_whole_slice(node: Node) -> bool:
    assert isinstance(node.op, Slice)
    return _keeps_shape(node) and node.op.step == 1


def _is_identity_order(node: Node) -> bool:
    assert isinstance(node.op, Permute)
    return list(node.op.order) == sorted(node.op.order)


def _reverses_nothing(node: Node) -> bool:
    assert isinstance(node.op, Flip)
    return all(node.operands[0].type.shape[axis] <= 1 for axis in node.op.axes)


def _rolls_nothing(node: Node) -> bool:
    assert isinstance(node.op, Roll)
    return not any(node.op.shifts)


def _resizes_nothing(node: Node) -> bool:
    assert isinstance(node.op, ResizeNearest | ResizeLinear)
    return _keeps_shape(node) and all(factor == 1 for factor in node.op.factor)


def _is_single(node: Node) -> bool:
    return len(node.operands) == 1 and len(node.outputs) == 1


def _always(node: Node) -> bool:
    return True


_NEUTRAL: Mapping[type[Op], Callable[[Node], bool]] = {
    Copy: _always,
    Reshape: _keeps_shape,
    Expand: _keeps_shape,
    Tile: _keeps_shape,
    Permute: _is_identity_order,
    Slice: _is_whole_slice,
    Split: _is_single,
    Concat: _is_single,
    Pad: lambda node: isinstance(node.op, Pad) and not any(node.op.padding),
    Flip: _reverses_nothing,
    Roll: _rolls_nothing,
    MaxPool: _is_window_of_one,
    AvgPool: _is_window_of_one,
    ResizeNearest: _resizes_nothing,
    ResizeLinear: _resizes_nothing,
    Mean: _keeps_shape,
    Sum: _keeps_shape,
    ReduceMax: _keeps_shape,
    ReduceMin: _keeps_shape,
}
