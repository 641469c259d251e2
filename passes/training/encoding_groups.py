"""Groups of values of an integer graph that share a step size, and the steps that may be trained.

Data movement puts its operands and results in one group. A step size is fixed if it belongs to an input or output of
the graph, if the operator requires it, if it belongs to an operand or result of a recurrent layer, or to constants
that are not trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir import Encoding, Graph, Node, Value
from ...ir.ops.base import Quantized
from ...ir.ops.pad import Pad
from ...ir.ops.quantize import Quantize
from ...ir.ops.recurrent import Recurrent
from ..quantize.groups import UnionFind


@dataclass(frozen=True)
class EncodingGroups:
    """Group of each quantized activation, quantization parameters of each group, and groups with trainable steps."""

    of: Mapping[str, str]  # group by value
    encodings: Mapping[str, Encoding]  # by group
    learnable: frozenset[str]
    rounded: frozenset[str]  # values that their node rounds; data movement only moves rounded values
    elements: Mapping[str, int]  # number of elements of a group, per sample


def encoding_groups(graph: Graph) -> EncodingGroups:
    """Groups of all computed values, and of constants that data movement joins to them."""
    groups = UnionFind()
    for node in graph.nodes:
        if node.op.quantized is Quantized.MOVE:
            groups.unite(value.name for value in _quantized_values(node))
    fixed = {groups.find(name) for name in _held(graph)}
    of: dict[str, str] = {}
    encodings: dict[str, Encoding] = {}
    elements: dict[str, int] = {}
    rounded = set()
    for node in graph.nodes:
        for value in node.outputs:
            if value.type.quantization is None:
                continue
            group = of[value.name] = groups.find(value.name)
            encodings[group] = value.type.quantization
            if not _only_moves(node):
                rounded.add(value.name)
                batch = value.type.shape[0] if value.type.shape else 1
                elements[group] = elements.get(group, 0) + max(value.type.numel // max(batch, 1), 1)
    learnable = frozenset(
        group for group in elements if group not in fixed and encodings[group].is_per_tensor
    )
    return EncodingGroups(of, encodings, learnable, frozenset(rounded), elements)


def _quantized_values(node: Node) -> list[Value]:
    return [v for v in (*node.operands, *node.outputs) if v.type.is_quantized]


def _only_moves(node: Node) -> bool:
    return node.op.quantized is Quantized.MOVE and not _puts_in(node)


def _puts_in(node: Node) -> bool:
    """True if the node inserts a constant among the elements that it moves."""
    return isinstance(node.op, Pad) and node.op.value != 0


def _held(graph: Graph) -> set[str]:
    """Values with fixed quantization parameters."""
    seen = {value.name for value in (*graph.inputs, *graph.outputs)}
    held = set(seen)
    for node in graph.nodes:
        names = {value.name for value in _quantized_values(node)}
        if isinstance(node.op, Quantize) and node.inputs[0] in graph.inputs:
            held |= names
        if isinstance(node.op, Recurrent):  # encodings of weights, biases and states depend on each other
            held |= names
        if node.op.quantized is Quantized.COMPUTE and node.op.result_encoding(1.0) is not None:
            held.add(node.outputs[0].name)
        if node.op.quantized is Quantized.MOVE and (
            _puts_in(node) or any(graph.is_constant(value) for value in _quantized_values(node))
        ):
            held |= names
    return held
