"""Layers whose Gauss-Newton block equals the Hessian: outputs piecewise linear in the weights."""

from __future__ import annotations

from ...ir import Graph
from .blocks import Block


def is_piecewise_linear(graph: Graph, block: Block) -> bool:
    """True if only piecewise linear operators are after the block, and none of its own weights."""
    reached: set[str] = set()
    starts = {node.outputs[0].name for node in block.nodes}
    for node in graph.nodes:
        named = zip(node.operand_names, node.operands, strict=True)
        behind = {name for name, value in named if value.name in reached}
        if behind and (node.outputs[0].name in starts or not node.op.facts.is_piecewise_linear_in(behind)):
            return False  # a second weight of the block after the first: the outputs depend on their product
        if behind or node.outputs[0].name in starts:
            reached.update(v.name for v in node.outputs)
    return True
