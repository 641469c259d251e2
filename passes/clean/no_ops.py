"""Nodes without effect, whose result equals an operand."""

from __future__ import annotations

from ...ir import Builder, Node, Value
from ...ir.ops.activation import Bounded
from ...ir.ops.facts import EVERYTHING, Bounds


def neutral_operand(builder: Builder, node: Node) -> Value | None:
    """The operand that the node's result equals for every input, or None."""
    for operand in _candidates(builder, node):
        if operand.type == node.outputs[0].type and len(node.outputs) == 1:
            return operand
    return None


def _candidates(builder: Builder, node: Node) -> list[Value]:
    if not node.operands:
        return []
    first, types = node.operands[0], (node.operand_types, node.output_types)
    if isinstance(node.op, Bounded):
        low, high = node.op.bounds
        known_low, known_high = known_bounds(builder, first)
        return [first] if low <= known_low and known_high <= high else []
    return [first] if node.op.is_identity(*types) else _beside_neutral_numbers(builder, node)


def _beside_neutral_numbers(builder: Builder, node: Node) -> list[Value]:
    """x of x + 0, 0 + x, x - 0, x * 1, 1 * x and x / 1."""
    neutral = node.op.facts.neutral
    if not neutral or any(v.type.is_quantized for v in node.operands):
        return []
    named = dict(zip(node.operand_names, node.operands, strict=True))
    filled = [name for name, number in neutral.items() if _is_filled(builder, named[name], number)]
    return [value for name, value in named.items() for other in filled if other != name]


def _is_filled(builder: Builder, value: Value, number: float) -> bool:
    tensor = builder.tensor(value)
    return tensor is not None and bool(tensor.eq(number).all())


def known_bounds(builder: Builder, value: Value) -> Bounds:
    """Bounds of all elements, found through operators that select elements of one operand."""
    node = builder.producer(value)
    while node is not None and node.op.facts.selects and len(node.operands) == 1:
        value = node.operands[0]
        node = builder.producer(value)
    return EVERYTHING if node is None or value.type.is_quantized else node.op.facts.bounds
