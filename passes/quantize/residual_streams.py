"""Residual streams: sums that are normalized along a row, and their addends.

    x + f(norm(x)) + g(norm(...)) ...        pre-norm: the sums, and their first value
    norm(x + f(x))                           post-norm: the sums, and the norm's results that are added again

They carry small changes of large values through all layers of a transformer, so that their steps have the largest
effect.
"""

from __future__ import annotations

from ...ir import Graph, Node, Value
from ...ir.affine import is_movement
from ...ir.ops.binary import Add, Sub
from ...ir.ops.embedding import Embedding
from ...ir.ops.norm import RowNorm
from ..weighted_layers import is_layer


def residual_streams(graph: Graph) -> frozenset[str]:
    """Names of the values of residual streams, without tables of embeddings and values looked up in them."""
    found: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, RowNorm):
            sums = _sum_behind(graph, node.operand("x"))
            if sums is not None:
                _follow(graph, node.operand("x"), found)
    return frozenset(found)


def _sum_behind(graph: Graph, value: Value) -> Node | None:
    """The sum that a value is moved from, or None."""
    node = graph.producers.get(value.name)
    while node is not None and is_movement(node.op) and len(node.operands) == 1:
        node = graph.producers.get(node.operands[0].name)
    return node if node is not None and _addends(node) else None


def _follow(graph: Graph, value: Value, found: set[str]) -> None:
    """Adds the names of a value and of the values that are summed to it to `found`."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        node = graph.producers.get(value.name)
        if value.name in found or graph.is_constant(value) or (node and isinstance(node.op, Embedding)):
            continue
        found.add(value.name)
        if node is None:  # an input
            continue
        if is_movement(node.op) and len(node.operands) == 1:
            waiting.append(node.operands[0])
        waiting += _addends(node)


def _addends(node: Node) -> tuple[Value, ...]:
    if isinstance(node.op, Add | Sub):
        return node.operands
    residual = node.optional("residual") if is_layer(node.op) else None
    return () if residual is None else (residual,)
