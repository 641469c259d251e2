"""Attention whose keys and values have fewer heads than its queries, without the copies that repeat them.

    attention(q, repeat(k), repeat(v))  ->  attention{grouped}(q, k, v)

Models write `repeat` as `repeat_interleave` over the heads, or as an expanded dimension that is flattened.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir import Graph, Node, Value, rewrite
from ..ir.ops.attention import Attention
from ..ir.ops.call import TorchCall
from ..ir.ops.shape import Copy, Expand, Reshape

_HEADS = -3


def group_repeated_heads(graph: Graph) -> Graph:
    """The graph in which such an attention reads each head of its keys and values once; the graph itself if there is
    none.
    """
    nodes = tuple(_grouped(graph, node) for node in graph.nodes)
    if nodes == graph.nodes:
        return graph
    return rewrite(replace(graph, nodes=nodes), lambda builder, node, operands: None)


def _grouped(graph: Graph, node: Node) -> Node:
    if not isinstance(node.op, Attention) or node.op.grouped:
        return node
    keys, values = (_with_single_heads(graph, node.operand(name)) for name in ("k", "v"))
    if keys is None or values is None or keys.type.shape[:-2] != values.type.shape[:-2]:
        return node
    if node.operand("q").type.shape[:-2] != node.operand("k").type.shape[:-2]:
        return node
    return replace(node.with_operands(k=keys, v=values), op=replace(node.op, grouped=True))


def _with_single_heads(graph: Graph, value: Value) -> Value | None:
    """The value [..., h, s, e] whose heads are repeated r times in a row in [..., h * r, s, e]."""
    node = _producer(graph, value)
    if node is not None and isinstance(node.op, TorchCall):
        return _interleaved(node, node.op)
    chain, at = [], value
    for expected in (Reshape, Expand, Reshape):
        node = _producer(graph, at)
        if node is None or not isinstance(node.op, expected):
            return None
        at = node.operand("x")
        chain.append(at.type.shape)
    repeated, single = chain[0], chain[1]
    *lead, heads, steps, features = at.type.shape if at.type.rank > 2 else (0, 0, 0)
    is_unsqueezed = single == (*lead, heads, 1, steps, features)
    is_repeated = len(repeated) == len(single) and repeated == (
        *lead,
        heads,
        repeated[_HEADS],
        steps,
        features,
    )
    is_flattened = value.type.shape == (*lead, heads * repeated[_HEADS], steps, features)
    return at if is_unsqueezed and is_repeated and is_flattened else None


def _interleaved(node: Node, op: TorchCall) -> Value | None:
    if (
        op.target != "aten.repeat_interleave.self_int"
        or len(node.operands) != 1
        or node.operands[0].type.rank < 3
    ):
        return None
    x, shape = node.operands[0], node.output.type.shape
    *lead, heads, steps, features = x.type.shape
    is_of_heads = len(shape) == len(lead) + 3 and shape != x.type.shape and shape[_HEADS] % heads == 0
    return x if is_of_heads and shape == (*lead, shape[_HEADS], steps, features) else None


def _producer(graph: Graph, value: Value) -> Node | None:
    """The node that computes a value, before copies of it."""
    node = graph.producers.get(value.name)
    while node is not None and isinstance(node.op, Copy):
        node = graph.producers.get(node.operand("x").name)
    return node
